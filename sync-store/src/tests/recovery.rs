//! Rows about nodes that went back in time.

use sync_core::ids::{Chain, HistoryId, Seq, SpaceId};
use sync_core::log::Position;

use super::world::{self, append, found};
use crate::{
    AccusationKind, AccusationRow, AccusationState, LogRange, SalvageState, Store, StoreError, StoreKind, WriteState,
};

async fn client() -> (tempfile::TempDir, Store, SpaceId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    (dir, store, space)
}

#[tokio::test]
async fn an_accusation_survives_with_its_evidence() {
    let (dir, store, space) = client().await;
    let row = |kind| AccusationRow {
        kind,
        state: AccusationState::Open,
        claim: Position { seq: Seq(7), chain: Chain::from_hash([7; 32]) },
        detail: "it lost entries".into(),
        evidence: None,
        at_ms: 5,
    };
    let mut ids = Vec::new();
    for kind in [AccusationKind::Rollback, AccusationKind::Fork, AccusationKind::Seen] {
        ids.push(store.write(move |tx| tx.put_accusation(space, &row(kind))).await.unwrap().value);
    }
    let proven = AccusationRow {
        state: AccusationState::MadeGood,
        evidence: Some(vec![1, 2]),
        detail: "and took them back".into(),
        ..row(AccusationKind::Fork)
    };
    let (second, kept) = (ids[1], proven.clone());
    assert!(store.write(move |tx| tx.update_accusation(space, second, &kept)).await.unwrap().value);
    let elsewhere = SpaceId::from_hash([9; 32]);
    let other = proven.clone();
    assert!(!store.write(move |tx| tx.update_accusation(elsewhere, second, &other)).await.unwrap().value);
    drop(store);
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let expected =
        [(ids[0], row(AccusationKind::Rollback)), (ids[1], proven), (ids[2], row(AccusationKind::Seen))].to_vec();
    assert_eq!(store.read(|tx| tx.accusations(space)).unwrap(), expected);
}

#[tokio::test]
async fn restores_are_kept_once_and_in_order() {
    let (_dir, store, space) = client().await;
    let job = move |tx: &mut crate::WriteTx<'_>| -> Result<(), StoreError> {
        for n in [3, 1, 3] {
            tx.put_history(space, HistoryId([n; 16]), &[n])?;
        }
        tx.set_node_history(space, HistoryId([3; 16]))?;
        tx.set_node_history(space, HistoryId([1; 16]))
    };
    store.write(job).await.unwrap();
    let read = store.read(|tx| Ok::<_, StoreError>((tx.histories(space)?, tx.node_history(space)?)));
    assert_eq!(read.unwrap(), (vec![vec![3], vec![1]], Some(HistoryId([1; 16]))));
}

#[tokio::test]
async fn salvage_goes_when_the_log_has_it_and_stays_when_it_is_lost() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    for n in 1..=2 {
        append(&store, space, world::begin(&acl, n)).await;
    }
    store.write(move |tx| tx.rewind(space, Seq(2))).await.unwrap();
    let rows = store.read(|tx| tx.salvage_waiting(space, 9)).unwrap();
    assert_eq!(rows.len(), 4);
    let (first, second, third) = (rows[0].clone(), rows[1].clone(), rows[2].clone());
    let is_waiting = |entry| store.read(|tx| tx.is_salvage_waiting(space, entry)).unwrap();
    assert!(is_waiting(first.entry));
    assert!(store.write(move |tx| tx.take_from_salvage(space, first.entry)).await.unwrap().value);
    assert!(!is_waiting(first.entry));
    store.write(move |tx| tx.lose_salvage(second.id, 25, "too late")).await.unwrap();
    assert!(!is_waiting(second.entry), "what is lost waits for nothing");
    let lost = store.read(|tx| tx.salvage_lost(space, None, 9)).unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].state, SalvageState::Lost { code: 25, message: "too late".into() });
    assert_eq!(store.read(|tx| tx.salvage_counts(space)).unwrap(), (2, 1));
    let elsewhere = SpaceId::from_hash([9; 32]);
    assert!(!store.write(move |tx| tx.forget_salvage(elsewhere, third.id)).await.unwrap().value);
    assert!(store.write(move |tx| tx.forget_salvage(space, second.id)).await.unwrap().value);
    assert_eq!(store.read(|tx| tx.salvage_counts(space)).unwrap(), (2, 0));
    // Lost, and yet there: somebody else brought it back.
    store.write(move |tx| tx.lose_salvage(third.id, 25, "too late")).await.unwrap();
    assert!(store.write(move |tx| tx.take_from_salvage(space, third.entry)).await.unwrap().value);
}

#[tokio::test]
async fn a_write_whose_bytes_were_dropped_gets_them_back() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    let submission = world::begin(&acl, 1);
    let tree = world::tree_of(&submission);
    let sync_core::log::Submission::Change { root, change } = submission.clone() else { panic!("a change") };
    let (root, record) = (root.unwrap().into_raw(), change.into_raw());
    let (r, c) = (root.clone(), record.clone());
    let write = store.write(move |tx| tx.put_pending(space, tree, Some(&r), &c, b"local")).await.unwrap().value;
    append(&store, space, submission).await;
    store.write(move |tx| tx.set_write_state(write, &WriteState::Durable { seq: Seq(4) })).await.unwrap();
    let range = |after, to| LogRange { after: Seq(after), to: Seq(to) };
    let within = |range| store.read(|tx| tx.writes_in(space, range)).unwrap();
    assert_eq!(within(range(2, 9)), [(write, Seq(4))]);
    assert_eq!(within(range(4, 9)), []);
    assert_eq!(within(range(2, 3)), []);
    assert!(store.read(|tx| tx.open_writes(space)).unwrap().is_empty());

    let state = WriteState::Pending { attempts: 0, last_refusal: None, next_retry_ms: None };
    let (r, c, s) = (root.clone(), record.clone(), state.clone());
    store.write(move |tx| tx.revive_write(write, tree, Some(&r), &c, b"anew", &s)).await.unwrap();
    let outbox = store.read(|tx| tx.pending(space, None, 9)).unwrap();
    assert_eq!(outbox.len(), 1);
    let row = &outbox[0];
    assert_eq!((row.id, row.tree, &row.root, &row.record), (write, tree, &Some(root), &record));
    assert_eq!((row.local.as_slice(), &row.state), (&b"anew"[..], &state));
    let found = store.read(|tx| tx.pending_by_change(space, record.id().into())).unwrap();
    assert_eq!(found.map(|w| w.id), Some(write));
}
