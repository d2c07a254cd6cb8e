//! A client's own rows.

use sync_core::ids::{ChangeId, HistoryId, Seq, SpaceId, TreeId};
use sync_core::log::Position;

use super::world::{self, acl, append, begin, found, tree_of};
use crate::{
    AccusationKind, AccusationRow, AccusationState, AheadRow, NodeState, ObjectRow, PeerHeads, PeerKind, PeerRow,
    RefusalRow, Registration, Store, StoreError, StoreKind, SyncItem, SyncItemKind, VerdictKind, VerdictRow,
    WriteError, WriteId, WriteState,
};

const PENDING: WriteState = WriteState::Pending { attempts: 0, last_refusal: None, next_retry_ms: None };

async fn client() -> (tempfile::TempDir, Store, SpaceId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    (dir, store, space)
}

async fn put(store: &Store, space: SpaceId, n: u32) -> (WriteId, TreeId, ChangeId) {
    let (root, change) =
        (world::root(space, n), world::change(&acl(store, space), 1, world::root(space, n).id().into(), &[], n));
    let (tree, id) = (root.id().into(), change.id().into());
    let job = move |tx: &mut crate::WriteTx<'_>| {
        tx.put_pending(space, tree, Some(root.raw()), change.raw(), &n.to_be_bytes())
    };
    (store.write(job).await.unwrap().value, tree, id)
}

async fn set(store: &Store, id: WriteId, state: WriteState) -> Result<(), WriteError<StoreError>> {
    store.write(move |tx| tx.set_write_state(id, &state)).await.map(|_| ())
}

fn ids(found: Result<Vec<crate::PendingWrite>, StoreError>) -> Vec<u64> {
    found.unwrap().iter().map(|w| w.id.0).collect()
}

/// Writes that are not known to be on the node's disk: pending or logged.
fn outbox(store: &Store, space: SpaceId) -> Vec<u64> {
    let read = store.read(|tx| {
        let open = tx.open_writes(space)?.into_iter();
        let rows: Result<Vec<_>, _> = open.map(|id| tx.open_write(space, id)).collect();
        rows
    });
    let rows = read.unwrap().into_iter().flatten();
    rows.filter(|w| !matches!(w.state, WriteState::Refused(_))).map(|w| w.id.0).collect()
}

#[tokio::test]
async fn a_local_write_goes_its_way() {
    let (_dir, store, space) = client().await;
    let refusal = RefusalRow { code: 9, message: "no".into(), log_seq: Seq(2) };
    let mut writes = Vec::new();
    for n in 0..4 {
        writes.push(put(&store, space, n).await);
    }
    let [(a, tree_a, change_a), (b, ..), (c, _, change_c), (d, ..)] = writes[..] else { panic!() };
    assert_eq!([a, b, c, d].map(|w| w.0), [1, 2, 3, 4]);
    assert_eq!(ids(store.read(|tx| tx.pending(space, None, 9))), [1, 2, 3, 4]);
    assert_eq!(ids(store.read(|tx| tx.pending_of_tree(space, tree_a))), [1]);
    let one = store.read(|tx| tx.pending_by_change(space, change_a)).unwrap().unwrap();
    assert_eq!((one.id, one.tree, &one.state, one.local), (a, tree_a, &PENDING, 0_u32.to_be_bytes().to_vec()));
    assert_eq!(one.record.id(), change_a.into());
    assert_eq!(TreeId::from(one.root.unwrap().id()), tree_a);

    let retry = WriteState::Pending { attempts: 3, last_refusal: Some(refusal.clone()), next_retry_ms: Some(77) };
    set(&store, d, retry.clone()).await.unwrap();
    set(&store, a, WriteState::Logged { seq: Seq(4) }).await.unwrap();
    set(&store, b, WriteState::Logged { seq: Seq(6) }).await.unwrap();
    set(&store, c, WriteState::Refused(refusal.clone())).await.unwrap();
    assert_eq!(ids(store.read(|tx| tx.pending(space, None, 9))), [4]);
    assert_eq!(store.read(|tx| tx.pending_count(space)).unwrap(), 1);
    assert_eq!(outbox(&store, space), [1, 2, 4]);
    assert_eq!(ids(store.read(|tx| tx.refused(space))), [3]);
    assert_eq!(ids(store.read(|tx| tx.pending_of_tree(space, tree_a))), [0; 0]);
    assert!(store.read(|tx| tx.pending_by_change(space, change_c)).unwrap().is_some());
    assert_eq!(store.read(|tx| tx.write_state(space, d)).unwrap(), Some(retry));

    assert_eq!(store.write(move |tx| tx.settle_durable(space, Seq(5))).await.unwrap().value, 1);
    assert_eq!(store.read(|tx| tx.write_state(space, a)).unwrap(), Some(WriteState::Durable { seq: Seq(4) }));
    assert_eq!(outbox(&store, space), [2, 4]);
    assert_eq!(store.read(|tx| tx.pending_by_change(space, change_a)).unwrap(), None);
    set(&store, c, WriteState::Dismissed).await.unwrap();
    assert_eq!(store.read(|tx| tx.write_state(space, c)).unwrap(), Some(WriteState::Dismissed));
    assert!(matches!(set(&store, c, PENDING).await, Err(WriteError::Job(StoreError::WriteSettled { id })) if id == c));
    let unknown = set(&store, WriteId(99), PENDING).await;
    assert!(matches!(unknown, Err(WriteError::Job(StoreError::UnknownWrite { id: WriteId(99) }))));
    assert_eq!(store.read(|tx| tx.write_state(space, WriteId(99))).unwrap(), None);
    assert_eq!(put(&store, space, 9).await.0, WriteId(5), "a number is never given twice");
}

#[tokio::test]
async fn a_pending_write_is_rebuilt_under_its_number() {
    let (_dir, store, space) = client().await;
    let (id, tree, old) = put(&store, space, 1).await;
    let change = world::change(&acl(&store, space), 1, tree, &[], 55);
    let new: ChangeId = change.id().into();
    store.write(move |tx| tx.rebuild_pending(id, None, change.raw())).await.unwrap();
    assert_eq!(store.read(|tx| tx.pending_by_change(space, old)).unwrap(), None);
    let found = store.read(|tx| tx.pending_by_change(space, new)).unwrap().unwrap();
    assert_eq!((found.id, found.root, found.state), (id, None, PENDING));
}

#[tokio::test]
async fn one_write_does_not_cost_the_others() {
    let (_dir, store, _space) = client().await;
    let plans = store.write(|tx| {
        let plan = |sql: &str| {
            let mut statement = tx.db.session.conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let rows = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
            rows.map(Result::unwrap).collect::<Vec<_>>().join("; ")
        };
        let settle = "UPDATE writes SET state = 3 WHERE space_no = 1 AND state < 3 AND state = 1 AND seq <= 5";
        let pending = "SELECT * FROM writes INDEXED BY writes_by_state
             WHERE space_no = 1 AND state < 3 AND state = 0 AND seq IS NULL AND id > 7 ORDER BY id LIMIT 9";
        let counts = "SELECT state, count(*) FROM writes INDEXED BY writes_by_state
             WHERE space_no = 1 AND state < 3 GROUP BY state";
        let retrying = "SELECT count(*), max(attempts), min(next_retry_ms) FROM writes INDEXED BY writes_retrying
             WHERE space_no = 1 AND state = 0 AND refusal_code IS NOT NULL";
        let unlogged = "SELECT id, state FROM writes INDEXED BY writes_by_state
             WHERE space_no = 1 AND state < 3 AND state IN (0, 2) AND seq IS NULL AND id BETWEEN 3 AND 5";
        let element =
            "SELECT id FROM trees WHERE space_no = 1 AND id8 >= 2 AND (id8 > 2 OR id > x'') ORDER BY id8, id LIMIT 3";
        let change = "SELECT key FROM log WHERE tree_no = 1 AND id8 = 2 AND id = x'' AND kind = 4";
        let acl = "SELECT key FROM log INDEXED BY log_acl WHERE kind <= 2 AND key > 1 AND key <= 2 ORDER BY key";
        let bare = [counts, retrying, unlogged].map(plan);
        Ok::<_, StoreError>(([settle, pending, element, change, acl].map(plan), bare))
    });
    let (plans, bare) = plans.await.unwrap().value;
    for plan in &bare {
        assert!(plan.contains("SEARCH writes USING COVERING INDEX") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
    assert!(!plans[1].contains("TEMP B-TREE"), "{}", plans[1]);
    for (plan, index) in
        plans.iter().zip(["writes_by_state", "writes_by_state", "trees_by_id", "log_by_tree", "log_acl"])
    {
        assert!(plan.contains("SEARCH") && plan.contains(index) && !plan.contains("SCAN"), "{plan}");
    }
}

#[tokio::test]
async fn what_the_node_has_and_what_cannot_be_shown() {
    let (_dir, store, space) = client().await;
    assert_eq!(store.read(|tx| tx.node_state(space)).unwrap(), NodeState::default());
    let state = NodeState { registration: Registration::Registered, durable_seq: Seq(2), receipt: Some(vec![1, 2]) };
    let put = state.clone();
    store.write(move |tx| tx.put_node_state(space, &put)).await.unwrap();
    assert_eq!(store.read(|tx| tx.node_state(space)).unwrap(), state);

    let (tree, change) = (TreeId::from_hash([1; 32]), ChangeId::from_hash([2; 32]));
    let verdict = |kind| VerdictRow { kind, detail: "why".into(), seq: Seq(7) };
    use VerdictKind as V;
    for kind in [V::Hidden, V::Void, V::Misplaced, V::Quarantined, V::Missing] {
        store.write(move |tx| tx.put_verdict(space, tree, change, &verdict(kind))).await.unwrap();
        assert_eq!(store.read(|tx| tx.verdicts(space)).unwrap(), [(tree, change, verdict(kind))]);
    }
    store.write(move |tx| tx.delete_verdict(space, tree, change)).await.unwrap();
    assert!(store.read(|tx| tx.verdicts(space)).unwrap().is_empty());
}

#[tokio::test]
async fn objects_are_listed_by_type_and_tree() {
    let (_dir, store, space) = client().await;
    let acl_now = acl(&store, space);
    let mut trees = Vec::new();
    for n in 0..20 {
        let first = begin(&acl_now, n);
        trees.push(tree_of(&first));
        append(&store, space, first).await;
    }
    let row = |tree, tag: u8, state: u8| ObjectRow { tree, type_tag: [tag; 16], state: vec![state], at: Seq(9) };
    for (n, tree) in (0_u8..).zip(trees.clone()) {
        store.write(move |tx| tx.put_object(space, &row(tree, n % 2, 0))).await.unwrap();
    }
    let changed = trees[4];
    store.write(move |tx| tx.put_object(space, &row(changed, 0, 1))).await.unwrap();
    assert_eq!(store.read(|tx| tx.object(space, changed)).unwrap(), Some(row(changed, 0, 1)));
    let mut evens: Vec<_> = trees.iter().copied().step_by(2).collect();
    evens.sort();
    let page = |after, max| store.read(|tx| tx.objects(space, [0; 16], after, max)).unwrap();
    let listed: Vec<_> = page(None, 100).iter().map(|o| o.tree).collect();
    assert_eq!(listed, evens);
    assert_eq!(page(Some(evens[2]), 3).iter().map(|o| o.tree).collect::<Vec<_>>(), evens[3..6]);
    assert_eq!(store.read(|tx| tx.object_count(space, None)).unwrap(), 20);
    assert_eq!(store.read(|tx| tx.object_count(space, Some([1; 16]))).unwrap(), 10);
    store.write(move |tx| tx.put_object(space, &row(changed, 1, 2))).await.unwrap();
    assert_eq!(store.read(|tx| tx.object_count(space, Some([1; 16]))).unwrap(), 11);
    store.write(move |tx| tx.delete_object(space, changed)).await.unwrap();
    assert_eq!(store.read(|tx| tx.object(space, changed)).unwrap(), None);
    let nowhere = TreeId::from_hash([0; 32]);
    let unknown = store.write(move |tx| tx.put_object(space, &row(nowhere, 0, 0))).await.unwrap_err();
    assert!(matches!(unknown, WriteError::Job(StoreError::UnknownTree { .. })));
    assert_eq!(store.read(|tx| tx.projected_to(space)).unwrap(), Seq::ZERO);
    store.write(move |tx| tx.set_projected(space, Seq(9))).await.unwrap();
    assert_eq!(store.read(|tx| tx.projected_to(space)).unwrap(), Seq(9));
}

/// Tables with rows of a space, and how many rows they have.
fn rows_of_spaces(dir: &std::path::Path) -> Vec<(String, i64)> {
    let conn = rusqlite::Connection::open(dir.join(crate::DATABASE_FILE)).unwrap();
    let sql =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('meta', 'barrier', 'sqlite_sequence')";
    let names: Vec<String> =
        conn.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let count = |name: &String| conn.query_row(&format!("SELECT count(*) FROM {name}"), [], |row| row.get(0)).unwrap();
    names.into_iter().map(|name| (name.clone(), count(&name))).collect()
}

/// One of everything that a client keeps of a space.
async fn fill(store: &Store, space: SpaceId) {
    let written = append(store, space, begin(&acl(store, space), 1)).await;
    let tree = written.committed[0].1.touched().unwrap().tree;
    append(store, space, world::add_writer(&acl(store, space), 2)).await;
    let (pending, ..) = put(store, space, 2).await;
    let (settled, ..) = put(store, space, 3).await;
    set(store, settled, WriteState::Durable { seq: Seq(4) }).await.unwrap();
    let job = move |tx: &mut crate::WriteTx<'_>| {
        assert_eq!(tx.write_state(space, pending)?, Some(PENDING));
        tx.put_object(space, &ObjectRow { tree, type_tag: [1; 16], state: vec![1], at: Seq(4) })?;
        tx.set_projected(space, Seq(4))?;
        let verdict = VerdictRow { kind: VerdictKind::Void, detail: "no".into(), seq: Seq(4) };
        tx.put_verdict(space, tree, ChangeId::from_hash([1; 32]), &verdict)?;
        let state = NodeState { registration: Registration::Registered, durable_seq: Seq(4), receipt: Some(vec![1]) };
        tx.put_node_state(space, &state)?;
        tx.put_history(space, HistoryId([2; 16]), b"restored")?;
        tx.set_node_history(space, HistoryId([2; 16]))?;
        let accusation = AccusationRow {
            kind: AccusationKind::Fork,
            state: AccusationState::Open,
            claim: Position::start(&space),
            detail: String::new(),
            evidence: None,
            at_ms: 1,
        };
        tx.put_accusation(space, &accusation)?;
        // One entry too many, which goes into the salvage.
        let end = tx.space(space)?.unwrap().position.seq;
        world::append_in(tx, space, &world::add_writer(&tx.acl(space)?.unwrap(), 3))?;
        tx.rewind(space, end)?;
        fill_engine(tx, space, tree)
    };
    store.write(job).await.unwrap();
}

/// What the engine keeps of a space. A rewind drops some of it.
fn fill_engine(tx: &mut crate::WriteTx<'_>, space: SpaceId, tree: TreeId) -> Result<(), StoreError> {
    let record = tx.entry_at(space, Seq(4))?.unwrap();
    let (kind, error) = (SyncItemKind::Fetch, None);
    tx.want_sync_item(space, &SyncItem { tree, kind, priority: 1, attempts: 0, error, next_retry_ms: 0, since_ms: 1 })?;
    let (kind, confirmed) = (PeerKind::Node, Seq(4));
    tx.put_peer(space, &PeerRow { peer: [1; 32], kind, confirmed, confirmed_ms: 1 })?;
    let heads = vec![ChangeId::from_hash([9; 32])];
    tx.put_peer_heads(space, &PeerHeads { peer: [1; 32], tree, heads, seq: Seq(9), told_ms: 1 })?;
    tx.put_ahead(space, &AheadRow { seq: Seq(99), tree: Some(tree), id: record.id, record: record.record })
}

fn is_gone(tx: &crate::ReadTx<'_>, space: SpaceId) -> Result<(), StoreError> {
    assert_eq!(tx.space(space)?, None);
    assert_eq!(tx.acl(space)?, None);
    assert!(tx.view(space)?.is_none());
    assert!(tx.entries(space, Seq::ZERO, 9, 9)?.is_empty() && tx.elements(space, None, 9)?.is_empty());
    assert!(tx.open_writes(space)?.is_empty() && tx.verdicts(space)?.is_empty());
    assert_eq!((tx.node_state(space)?, tx.projected_to(space)?), (NodeState::default(), Seq::ZERO));
    assert_eq!(tx.object_count(space, None)?, 0);
    assert_eq!((tx.salvage_counts(space)?, tx.node_history(space)?), ((0, 0), None));
    assert!(tx.accusations(space)?.is_empty() && tx.histories(space)?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_forgotten_space_leaves_nothing_and_may_begin_again() {
    let (dir, store, space) = client().await;
    fill(&store, space).await;
    let full = rows_of_spaces(dir.path());
    assert!(full.iter().all(|(name, rows)| name == "kv" || *rows > 0), "{full:?}");
    let other = found(&store, 2).await;
    fill(&store, other).await;
    store.write(|tx| tx.kv_put("mine", b"stays")).await.unwrap();
    let of_other = store.read(|tx| tx.entries(other, Seq::ZERO, 99, usize::MAX)).unwrap();
    let mut watched = store.watch(space);
    assert!(watched.borrow_and_update().seq > Seq(2));

    let job = move |tx: &mut crate::WriteTx<'_>| {
        tx.forget_space(space)?;
        is_gone(tx, space)?;
        assert_eq!(tx.durable_seq(space)?, Seq::ZERO);
        Ok::<_, StoreError>(())
    };
    store.write(job).await.unwrap();
    store.read(|tx| is_gone(tx, space)).unwrap();
    assert_eq!(watched.borrow().seq, Seq::ZERO, "who watched it sees that it is gone");
    assert_eq!(*store.watch(space).borrow(), crate::Watermarks::default());
    assert_eq!(store.read(|tx| tx.spaces()).unwrap().len(), 1);
    let left = rows_of_spaces(dir.path());
    for ((name, was), (_, is)) in full.iter().zip(&left) {
        assert_eq!(*is, if name == "kv" { 1 } else { *was }, "{name} has the other space's rows alone");
    }
    assert_eq!(store.read(|tx| tx.entries(other, Seq::ZERO, 99, usize::MAX)).unwrap(), of_other);
    world::check_invariants(&store, other);
    // Once more is no more.
    store.write(move |tx| tx.forget_space(space)).await.unwrap();

    // From the start: the positions of another log, not those that somebody remembers.
    assert_eq!(found(&store, 1).await, space);
    let began = store.watch(space);
    assert_eq!((began.borrow().seq, acl(&store, space).members.len()), (Seq(2), 1));
    let added = world::add_writer(&acl(&store, space), 2);
    let id = added.id().into();
    append(&store, space, added).await;
    assert_eq!(acl(&store, space).records[&id], Seq(3), "it stood at 5 before");
    let last = append(&store, space, begin(&acl(&store, space), 1)).await;
    store.durable(last.commit).await.unwrap();
    assert_eq!(*began.borrow(), crate::Watermarks { seq: Seq(5), durable_seq: Seq(5) });
    world::check_invariants(&store, space);
    store.close().await;

    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    world::check_invariants(&store, space);
    world::check_invariants(&store, other);
}

#[tokio::test]
async fn a_space_is_forgotten_and_begins_again_in_one_job_or_not_at_all() {
    let (dir, store, space) = client().await;
    fill(&store, space).await;
    let end = store.read(|tx| tx.space(space)).unwrap().unwrap().position;
    let refused = move |tx: &mut crate::WriteTx<'_>| {
        tx.forget_space(space)?;
        Err::<(), _>(StoreError::Closed)
    };
    store.write(refused).await.unwrap_err();
    assert_eq!(store.read(|tx| tx.space(space)).unwrap().unwrap().position, end);
    let submission = begin(&acl(&store, space), 7);
    append(&store, space, submission).await;
    world::check_invariants(&store, space);

    let genesis = world::space(1);
    let job = move |tx: &mut crate::WriteTx<'_>| {
        // What was done to it before goes with it, also what was to be told of it.
        world::append_in(tx, space, &begin(&tx.acl(space)?.unwrap(), 8))?;
        tx.forget_space(space)?;
        assert_eq!(tx.create_space(&genesis, world::HISTORY)?, crate::Creation::Created);
        assert_eq!(tx.durable_seq(space)?, Seq::ZERO);
        world::append_in(tx, space, &world::add_writer(&tx.acl(space)?.unwrap(), 3))
    };
    let written = store.write(job).await.unwrap();
    assert_eq!(written.committed.len(), 1);
    assert_eq!(acl(&store, space).members.len(), 2);
    assert_eq!(store.watch(space).borrow().seq, Seq(3));
    store.durable(written.commit).await.unwrap();
    assert_eq!(*store.watch(space).borrow(), crate::Watermarks { seq: Seq(3), durable_seq: Seq(3) });
    world::check_invariants(&store, space);
    assert!(store.read(|tx| tx.open_writes(space)).unwrap().is_empty());
    drop(dir);
}
