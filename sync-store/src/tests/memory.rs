//! A disk in memory: what survives what, and what its users are told.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use sync_core::ids::Seq;

use super::world::{acl, append, begin, check_invariants, found};
use crate::memory::{AtCommit, Disk, Fate};
use crate::{OpenError, Store, StoreError, StoreKind, Watermarks, WriteError};

fn open(disk: &Disk) -> Store {
    Store::open_on(disk, StoreKind::Node).unwrap()
}

async fn put(store: &Store, key: &'static str) -> Result<(), WriteError<StoreError>> {
    store.write(move |tx| tx.kv_put(key, b"")).await.map(|_| ())
}

fn keys(store: &Store) -> Vec<String> {
    store.read(|tx| tx.kv_scan("")).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_power_cut_takes_what_no_flush_covered_and_a_kill_takes_nothing() {
    for cut in [false, true] {
        let disk = Disk::new("node");
        disk.flush_on_call();
        let store = open(&disk);
        let space = found(&store, 1).await;
        let watch = store.watch(space);
        assert_eq!(*watch.borrow(), Watermarks { seq: Seq(2), durable_seq: Seq(0) });
        disk.owes_flush().await;
        disk.flush();
        assert_eq!(*watch.borrow(), Watermarks { seq: Seq(2), durable_seq: Seq(2) });
        let written = append(&store, space, begin(&acl(&store, space), 1)).await;
        assert_eq!(*watch.borrow(), Watermarks { seq: Seq(4), durable_seq: Seq(2) });
        let mut durable = Box::pin(store.durable(written.commit));
        assert!(poll_once(durable.as_mut()).is_pending());
        if cut {
            disk.power_cut()
        } else {
            disk.kill()
        };
        assert!(poll_once(durable.as_mut()).is_pending(), "the dead are told nothing");
        assert!(poll_once(Box::pin(put(&store, "late")).as_mut()).is_pending());
        assert!(matches!(store.read(|tx| tx.kv("late")), Err(StoreError::Closed)));

        let again = open(&disk);
        check_invariants(&again, space);
        let seq = if cut { Seq(2) } else { Seq(4) };
        assert_eq!(*again.watch(space).borrow(), Watermarks { seq, durable_seq: seq }, "what is found is durable");
        drop(durable);
        drop(store);
        assert!(
            matches!(Store::open_on(&disk, StoreKind::Node), Err(OpenError::InUse { .. })),
            "the dead free nothing"
        );
        again.close().await;
        check_invariants(&open(&disk), space);
    }
}

#[tokio::test]
async fn what_the_system_wrote_back_survives_with_all_before_it() {
    let disk = Disk::new("node");
    disk.flush_on_call();
    let store = open(&disk);
    for (key, fate) in [("a", Fate::Kept), ("b", Fate::WrittenBack), ("c", Fate::Kept)] {
        disk.next_commit(fate);
        put(&store, key).await.unwrap();
    }
    disk.power_cut();
    assert_eq!(keys(&open(&disk)), ["a", "b"]);
}

#[tokio::test]
async fn a_full_disk_refuses_until_there_is_room() {
    let disk = Disk::new("node");
    let store = open(&disk);
    put(&store, "before").await.unwrap();
    disk.fill();
    assert!(matches!(put(&store, "full").await, Err(WriteError::Full)));
    store.write(|_| Ok::<_, StoreError>(())).await.unwrap();
    assert_eq!(keys(&store), ["before"], "reads go on");
    disk.make_room();
    put(&store, "after").await.unwrap();
    assert_eq!(keys(&store), ["after", "before"]);
    disk.fill();
    disk.next_commit(Fate::FailsBefore);
    disk.fail_next_flush();
    disk.mend();
    put(&store, "mended").await.unwrap();
}

#[tokio::test]
async fn a_failing_disk_stops_the_store() {
    for (fate, kept) in [(Fate::FailsBefore, vec!["a"]), (Fate::FailsAfter, vec!["a", "b"])] {
        let disk = Disk::new("node");
        let store = open(&disk);
        put(&store, "a").await.unwrap();
        disk.next_commit(fate);
        assert!(matches!(put(&store, "b").await, Err(WriteError::OutcomeUnknown(StoreError::Io { .. }))));
        assert!(matches!(store.failed().await, StoreError::Io { .. }));
        assert!(matches!(put(&store, "c").await, Err(WriteError::Failed(StoreError::Io { .. }))));
        let again = open(&disk);
        assert_eq!(keys(&again), kept, "{fate:?}");
        drop(store);
        put(&again, "d").await.unwrap();
    }
}

#[tokio::test]
async fn a_flush_that_fails_stops_the_store_and_nothing_becomes_durable() {
    let disk = Disk::new("node");
    disk.flush_on_call();
    let store = open(&disk);
    let written = store.write(|tx| tx.kv_put("a", b"")).await.unwrap();
    disk.fail_next_flush();
    disk.flush();
    assert!(matches!(store.durable(written.commit).await, Err(StoreError::Io { .. })));
    disk.power_cut();
    assert!(keys(&open(&disk)).is_empty());
}

#[tokio::test]
async fn a_process_dies_at_a_commit_without_a_word() {
    for (fate, kept) in [(Fate::DiesBefore, vec!["a"]), (Fate::DiesAfter, vec!["a", "b"])] {
        let disk = Disk::new("node");
        let store = open(&disk);
        put(&store, "a").await.unwrap();
        disk.next_commit(fate);
        let mut deaths = disk.deaths();
        assert!(poll_once(Box::pin(put(&store, "b")).as_mut()).is_pending());
        deaths.wait_for(|n| *n == 1).await.unwrap();
        assert_eq!(keys(&open(&disk)), kept, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_come_later_than_its_commit() {
    let disk = Disk::new("node");
    let store = open(&disk);
    let later = AtCommit { answer_after: std::time::Duration::from_millis(5), ..AtCommit::default() };
    disk.govern(move || later);
    let mut write = Box::pin(put(&store, "a"));
    assert!(poll_once(write.as_mut()).is_pending());
    assert_eq!(keys(&store), ["a"]);
    write.await.unwrap();
    let mut write = Box::pin(put(&store, "b"));
    assert!(poll_once(write.as_mut()).is_pending());
    store.clone().close().await;
    write.await.unwrap();
}

#[tokio::test]
async fn a_backup_is_put_back_and_looked_into() {
    let disk = Disk::new("node");
    let store = open(&disk);
    put(&store, "a").await.unwrap();
    let backup = disk.image().unwrap();
    put(&store, "b").await.unwrap();
    assert_eq!(keys(&open(&Disk::holding("copy", disk.image().unwrap()))), ["a", "b"]);
    disk.restore(backup);
    assert_eq!(keys(&open(&disk)), ["a"]);
    let wrong = Store::open_on(&Disk::holding("copy", disk.image().unwrap()), StoreKind::Client);
    assert!(matches!(wrong, Err(OpenError::WrongKind { .. })));
}
