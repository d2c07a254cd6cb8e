//! A client's own rows.

use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};

use super::world::{self, acl, append, begin, found, tree_of};
use crate::{
    NodeState, ObjectRow, RefusalRow, Registration, Store, StoreError, StoreKind, VerdictKind, VerdictRow, WriteError,
    WriteId, WriteState,
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
    assert_eq!(ids(store.read(|tx| tx.pending(space))), [1, 2, 3, 4]);
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
    assert_eq!(ids(store.read(|tx| tx.pending(space))), [4]);
    assert_eq!(store.read(|tx| tx.pending_count(space)).unwrap(), 1);
    assert_eq!(ids(store.read(|tx| tx.outbox(space))), [1, 2, 4]);
    assert_eq!(ids(store.read(|tx| tx.refused(space))), [3]);
    assert_eq!(ids(store.read(|tx| tx.pending_of_tree(space, tree_a))), [0; 0]);
    assert!(store.read(|tx| tx.pending_by_change(space, change_c)).unwrap().is_some());
    assert_eq!(store.read(|tx| tx.write_state(space, d)).unwrap(), Some(retry));

    assert_eq!(store.write(move |tx| tx.settle_durable(space, Seq(5))).await.unwrap().value, 1);
    assert_eq!(store.read(|tx| tx.write_state(space, a)).unwrap(), Some(WriteState::Durable { seq: Seq(4) }));
    assert_eq!(ids(store.read(|tx| tx.outbox(space))), [2, 4]);
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
        let pending = "SELECT * FROM writes WHERE space_no = 1 AND state < 3 AND state = 0 ORDER BY id";
        let element =
            "SELECT id FROM trees WHERE space_no = 1 AND id8 >= 2 AND (id8 > 2 OR id > x'') ORDER BY id8, id LIMIT 3";
        let change = "SELECT key FROM log WHERE tree_no = 1 AND id8 = 2 AND id = x'' AND kind = 4";
        let acl = "SELECT key FROM log INDEXED BY log_acl WHERE kind <= 2 AND key > 1 AND key <= 2 ORDER BY key";
        Ok::<_, StoreError>([settle, pending, element, change, acl].map(plan))
    });
    let plans = plans.await.unwrap().value;
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
