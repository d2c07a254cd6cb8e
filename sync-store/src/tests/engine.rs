//! A client's rows about its sync.

use sync_core::ids::{Seq, TreeId};

use super::world::{self, found};
use crate::{
    AheadRow, PeerHeads, PeerKind, PeerRow, Store, StoreKind, SyncItem, SyncItemKind, VerdictKind, VerdictRow,
    WriteClass, WriteId, WriteState, WriteTx,
};

fn tree(n: u8) -> TreeId {
    TreeId::from_hash([n; 32])
}

fn item(n: u8, priority: u8, next_retry_ms: u64) -> SyncItem {
    let kind = SyncItemKind::Fetch;
    SyncItem { tree: tree(n), kind, priority, attempts: 0, error: None, next_retry_ms, since_ms: 5 }
}

async fn client() -> (tempfile::TempDir, Store, sync_core::ids::SpaceId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    (dir, store, space)
}

async fn write(store: &Store, job: impl FnOnce(&mut WriteTx<'_>) -> Result<(), crate::StoreError> + Send + 'static) {
    store.write(job).await.unwrap();
}

#[tokio::test]
async fn wanted_items_are_due_by_priority_and_survive_reopening() {
    let (dir, store, space) = client().await;
    write(&store, move |tx| {
        for one in [item(1, 2, 10), item(2, 2, 500), item(3, 0, 20), item(4, 2, 1_000_000)] {
            tx.want_sync_item(space, &one)?;
        }
        tx.note_sync_failure(space, &SyncItem { attempts: 3, error: Some((105, "busy".into())), ..item(2, 9, 500) })?;
        // Nobody wants this one.
        tx.note_sync_failure(space, &item(9, 0, 0))
    })
    .await;
    let due = |store: &Store, now| {
        let load = store.read(|tx| tx.sync_items_due(space, now, 60_000, 10)).unwrap();
        (load.due.iter().map(|i| i.tree.as_bytes()[0]).collect::<Vec<_>>(), load.next_ms)
    };
    // 4 is further away than any pause: the clock was set back since.
    assert_eq!(due(&store, 100), (vec![3, 1, 4], Some(500)));
    assert_eq!(due(&store, 500), (vec![3, 1, 2, 4], None));
    store.close().await;
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let kept = store.read(|tx| tx.sync_item(space, tree(2), SyncItemKind::Fetch)).unwrap().unwrap();
    assert_eq!((kept.attempts, kept.priority, kept.error), (3, 2, Some((105, "busy".into()))));
    assert_eq!(store.read(|tx| tx.sync_item_counts(space)).unwrap(), [(SyncItemKind::Fetch, 4, 1)]);

    // Wanted by a reader: at once, and its history is kept.
    write(&store, move |tx| tx.want_sync_item(space, &item(2, 0, 30))).await;
    let kept = store.read(|tx| tx.sync_item(space, tree(2), SyncItemKind::Fetch)).unwrap().unwrap();
    assert_eq!((kept.attempts, kept.priority, kept.next_retry_ms), (3, 0, 30));
    write(&store, move |tx| tx.want_sync_item(space, &item(2, 2, 999))).await;
    let kept = store.read(|tx| tx.sync_item(space, tree(2), SyncItemKind::Fetch)).unwrap().unwrap();
    assert_eq!((kept.priority, kept.next_retry_ms), (0, 30), "somebody less urgent changes nothing");
    write(&store, move |tx| tx.drop_sync_item(space, tree(2), SyncItemKind::Fetch)).await;
    assert_eq!(due(&store, 100).0, [3, 1, 4]);
    write(&store, move |tx| tx.forget_space(space)).await;
    assert_eq!(due(&store, 100).0, [0; 0]);
}

#[tokio::test]
async fn what_is_ahead_is_taken_when_the_log_passes_it() {
    let (_dir, store, space) = client().await;
    let record = world::root(space, 1).raw().clone();
    let row = |seq, of| AheadRow { seq: Seq(seq), tree: of, id: record.id(), record: record.clone() };
    let rows = [row(5, None), row(7, Some(tree(1))), row(9, Some(tree(2)))];
    let kept = rows.clone();
    write(&store, move |tx| {
        kept.iter().try_for_each(|row| tx.put_ahead(space, row))?;
        // What is kept for a place stays.
        tx.put_ahead(space, &AheadRow { tree: Some(tree(3)), ..kept[1].clone() })
    })
    .await;
    assert_eq!(store.read(|tx| tx.ahead_acl(space)).unwrap(), rows[..1]);
    assert_eq!(store.read(|tx| tx.ahead_of_tree(space, tree(1))).unwrap(), rows[1..2]);
    assert_eq!(store.read(|tx| tx.ahead_trees(space)).unwrap(), [tree(1), tree(2)]);
    let taken = store.write(move |tx| tx.take_ahead(space, Seq(7))).await.unwrap().value;
    assert_eq!(taken, [(Seq(5), record.id()), (Seq(7), record.id())]);
    assert_eq!(store.read(|tx| tx.ahead_trees(space)).unwrap(), [tree(2)]);
    write(&store, move |tx| tx.drop_ahead(space)).await;
    assert_eq!(store.read(|tx| tx.ahead_trees(space)).unwrap(), []);
}

#[tokio::test]
async fn peers_are_remembered_and_heads_only_while_they_differ() {
    let (_dir, store, space) = client().await;
    let row = |peer, kind| PeerRow { peer: [peer; 32], kind, confirmed: Seq(4), confirmed_ms: 9 };
    let told = |heads| PeerHeads { peer: [1; 32], tree: tree(1), heads, seq: Seq(6), told_ms: 8 };
    let apart = told(vec![sync_core::ids::ChangeId::from_hash([3; 32])]);
    let given = apart.clone();
    write(&store, move |tx| {
        tx.put_peer(space, &row(2, PeerKind::Client))?;
        tx.put_peer(space, &row(1, PeerKind::Node))?;
        tx.put_peer_heads(space, &given).map(|told| assert_eq!(told, crate::HeadsTold::Apart))
    })
    .await;
    assert_eq!(store.read(|tx| tx.peers(space)).unwrap(), [row(1, PeerKind::Node), row(2, PeerKind::Client)]);
    assert_eq!(store.read(|tx| tx.peer_heads_of(space, tree(1))).unwrap(), [apart]);
    assert_eq!(store.read(|tx| tx.peer_head_counts(space)).unwrap(), [([1; 32], 1)]);
    // There is no such tree here, and now none there.
    write(&store, move |tx| {
        let told = tx.put_peer_heads(space, &told(Vec::new()))?;
        assert_eq!(told, crate::HeadsTold::Equal);
        Ok(())
    })
    .await;
    assert_eq!(store.read(|tx| tx.peer_head_counts(space)).unwrap(), []);
}

#[tokio::test]
async fn counts_and_pages_are_of_the_rows() {
    let (_dir, store, space) = client().await;
    let (root, change) = {
        let root = world::root(space, 1);
        let change = world::change(&world::acl(&store, space), 1, root.id().into(), &[], 1);
        (root, change)
    };
    let of = TreeId::from(root.id());
    write(&store, move |tx| {
        for n in 0..7_u8 {
            let id = tx.put_pending(space, of, Some(root.raw()), change.raw(), &[n])?;
            let refusal = crate::RefusalRow { code: 1, message: format!("no {n}"), log_seq: Seq(2) };
            let state = match n {
                0 => WriteState::Logged { seq: Seq(3) },
                1 => WriteState::Refused(refusal),
                2 => WriteState::Pending { attempts: 4, last_refusal: Some(refusal), next_retry_ms: Some(66) },
                _ => continue,
            };
            tx.set_write_state(id, &state)?;
        }
        for n in 0..4 {
            let kind = if n == 0 { VerdictKind::Void } else { VerdictKind::Quarantined };
            let row = VerdictRow { kind, detail: String::new(), seq: Seq(3) };
            tx.put_verdict(space, tree(n), sync_core::ids::ChangeId::from_hash([n; 32]), &row)?;
        }
        Ok(())
    })
    .await;
    let counts = store.read(|tx| tx.write_counts(space)).unwrap();
    let brief: Vec<_> = counts.iter().map(|c| (c.class, c.count)).collect();
    let expected =
        [(WriteClass::Pending, 4), (WriteClass::Retrying, 1), (WriteClass::Logged, 1), (WriteClass::Refused, 1)];
    assert_eq!(brief, expected);
    assert_eq!((counts[1].attempts_max, counts[1].next_retry_ms), (4, Some(66)));
    let ids = |class, skip, max| -> Vec<u64> {
        store.read(|tx| tx.writes_of(space, class, skip, max)).unwrap().iter().map(|w| w.id.0).collect()
    };
    assert_eq!((ids(WriteClass::Pending, 0, 2), ids(WriteClass::Pending, 2, 9)), (vec![4, 5], vec![6, 7]));
    let others = [WriteClass::Retrying, WriteClass::Logged, WriteClass::Refused].map(|class| ids(class, 0, 9));
    assert_eq!(others, [vec![3], vec![1], vec![2]]);

    let lines = |after, max| store.read(|tx| tx.pending_lines(space, after, max)).unwrap();
    let first = lines(None, 2);
    assert_eq!(first.iter().map(|l| (l.id.0, l.next_retry_ms)).collect::<Vec<_>>(), [(3, Some(66)), (4, None)]);
    assert_eq!(lines(first.last().map(|l| l.id), 9).len(), 3);
    assert_eq!(store.read(|tx| tx.pending_trees(space)).unwrap(), [of].into());
    let unlogged = store.read(|tx| tx.unlogged_writes(space, WriteId(1), WriteId(4))).unwrap();
    let mut unlogged: Vec<_> = unlogged.into_iter().map(|(id, class)| (id.0, class)).collect();
    unlogged.sort_unstable();
    assert_eq!(unlogged, [(2, WriteClass::Refused), (3, WriteClass::Retrying), (4, WriteClass::Pending)]);
    assert_eq!(store.read(|tx| tx.writes_of_tree(space, of)).unwrap().len(), 7);
    assert_eq!(store.read(|tx| tx.open_writes(space)).unwrap().len(), 7);
    assert_eq!(
        store.read(|tx| tx.verdict_counts(space)).unwrap(),
        [(VerdictKind::Void, 1), (VerdictKind::Quarantined, 3)]
    );
    let first = store.read(|tx| tx.verdicts_of(space, VerdictKind::Quarantined, None, 1)).unwrap();
    let after = first.first().map(|(t, c, _)| (*t, *c));
    assert_eq!(after, Some((tree(1), sync_core::ids::ChangeId::from_hash([1; 32]))));
    assert_eq!(store.read(|tx| tx.verdicts_of(space, VerdictKind::Quarantined, after, 9)).unwrap().len(), 2);
    assert_eq!(store.read(|tx| tx.verdicts_of_tree(space, tree(2))).unwrap().len(), 1);
}
