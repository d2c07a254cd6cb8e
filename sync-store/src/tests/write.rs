//! Jobs, commits, barriers: who is told what, and when.

use std::sync::mpsc;

use sync_core::ids::Seq;
use sync_core::log::Outcome;

use super::world::{self, acl, append, append_in, begin, check_invariants, found, open};
use crate::{CommitNo, Store, StoreError, StoreKind, Watermarks, WriteError, WriteTx};

fn refuse() -> StoreError {
    StoreError::Closed
}

/// Keeps the storage thread busy until the sender goes, so that what is queued meanwhile shares one transaction.
fn hold(store: &Store) -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (started, has_started) = mpsc::channel();
    let store = store.clone();
    tokio::spawn(async move {
        let job = move |_: &mut WriteTx<'_>| {
            started.send(()).unwrap();
            let _ = released.recv();
            Ok::<_, StoreError>(())
        };
        store.write(job).await.unwrap();
    });
    (release, has_started)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_job_leaves_its_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let before = *store.watch_commits().borrow();
    let (release, started) = hold(&store);
    started.recv().unwrap();
    let jobs: Vec<_> = (0..6_u32)
        .map(|n| {
            let (submission, store) = (begin(&acl_now, n), store.clone());
            let job = move |tx: &mut WriteTx<'_>| {
                append_in(tx, space, &submission)?;
                tx.kv_put(&format!("job {n}"), b"")?;
                if n % 2 == 1 { Err(refuse()) } else { Ok(tx.space(space)?.unwrap().position.seq) }
            };
            let mut write = Box::pin(async move { store.write(job).await });
            // The first poll queues the job.
            let waker = std::task::Waker::noop();
            assert!(write.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
            write
        })
        .collect();
    drop(release);
    let mut seqs = Vec::new();
    for (n, job) in jobs.into_iter().enumerate() {
        match job.await {
            Ok(written) => {
                assert_eq!(written.commit, CommitNo(before.0 + 1), "one commit for all");
                seqs.push(written.value.0);
            }
            Err(error) => assert!(n % 2 == 1 && matches!(error, WriteError::Job(StoreError::Closed)), "{error:?}"),
        }
    }
    assert_eq!(seqs, [4, 6, 8], "each saw the jobs before it that succeeded");
    let kept = store.read(|tx| tx.kv_scan("job ")).unwrap();
    assert_eq!(kept.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["job 0", "job 2", "job 4"]);
    check_invariants(&store, space);
}

#[tokio::test]
async fn a_job_cannot_swallow_a_failed_statement() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let job = |tx: &mut WriteTx<'_>| {
        tx.kv_put("kept?", b"")?;
        let broken = tx.db.execute("INSERT INTO barrier VALUES (0, 0)", []);
        assert!(matches!(broken, Err(StoreError::Statement { .. })));
        Ok::<_, StoreError>(())
    };
    assert!(matches!(store.write(job).await, Err(WriteError::Job(StoreError::Statement { .. }))));
    assert_eq!(store.read(|tx| tx.kv("kept?")).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_seen_before_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let submission = world::add_writer(&acl(&store, space), 2);
    let watch = store.watch(space);
    let commits = store.watch_commits();
    let (at, old_commit, old_acl) = (*watch.borrow(), *commits.borrow(), acl(&store, space));
    assert_eq!(at.seq, Seq(2));
    let (release, released) = mpsc::channel::<()>();
    let (started, has_started) = mpsc::channel();
    let writer = store.clone();
    let write = tokio::spawn(async move {
        let job = move |tx: &mut WriteTx<'_>| {
            append_in(tx, space, &submission)?;
            assert_eq!(tx.space(space)?.unwrap().position.seq, Seq(3));
            assert_eq!(tx.acl(space)?.unwrap().members.len(), 2);
            started.send(()).unwrap();
            let _ = released.recv();
            Ok::<_, StoreError>(())
        };
        writer.write(job).await
    });
    has_started.recv().unwrap();
    assert_eq!((watch.borrow().seq, *commits.borrow()), (Seq(2), old_commit));
    assert_eq!(acl(&store, space), old_acl);
    assert_eq!(store.read(|tx| tx.position_at(space, Seq(3))).unwrap(), None);
    assert!(!write.is_finished());
    drop(release);
    let written = write.await.unwrap().unwrap();
    assert!(written.committed[0].1.acl_moved());
    assert_eq!((watch.borrow().seq, *commits.borrow()), (Seq(3), written.commit));
    assert_eq!(acl(&store, space).members.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_rise_and_durable_never_leads() {
    for kind in [StoreKind::Node, StoreKind::Client] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), kind).unwrap();
        let spaces = store.watch_spaces();
        let space = found(&store, 1).await;
        assert_eq!(*spaces.borrow(), 1);
        let acl_now = acl(&store, space);
        let mut watch = store.watch(space);
        let follower = tokio::spawn(async move {
            let mut last = Watermarks::default();
            loop {
                let now = *watch.borrow_and_update();
                assert!(now.seq >= last.seq && now.durable_seq >= last.durable_seq, "{last:?} then {now:?}");
                assert!(now.durable_seq <= now.seq, "{now:?}");
                last = now;
                if now.durable_seq == Seq(102) {
                    return;
                }
                watch.changed().await.unwrap();
            }
        });
        let mut last = CommitNo(0);
        for n in 0..50 {
            let written = append(&store, space, begin(&acl_now, n)).await;
            assert!(written.commit > last);
            last = written.commit;
            let fresh = *store.watch(space).borrow();
            assert_eq!(fresh.seq, written.committed[0].1.position().seq);
            assert!(fresh.durable_seq <= fresh.seq);
        }
        store.durable(last).await.unwrap();
        assert_eq!(*store.watch(space).borrow(), Watermarks { seq: Seq(102), durable_seq: Seq(102) });
        follower.await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_becomes_durable_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    let mut watch = store.watch(space);
    watch.wait_for(|w| w.durable_seq == Seq(2)).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_passes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    append(&store, space, begin(&acl(&store, space), 1)).await;
    let limit = |pages: u32| {
        move |tx: &mut WriteTx<'_>| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            tx.db.session.conn.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap();
            Ok::<_, StoreError>(())
        }
    };
    store.write(limit(1)).await.unwrap();
    let big = |tx: &mut WriteTx<'_>| tx.kv_put("big", &vec![0; 1 << 20]);
    for _ in 0..3 {
        assert!(matches!(store.write(big).await, Err(WriteError::Full)));
    }
    assert_eq!(store.read(|tx| tx.kv("big")).unwrap(), None, "reads go on");
    let acl_now = acl(&store, space);
    store.write(limit(1 << 20)).await.unwrap();
    store.write(big).await.unwrap();
    let written = append(&store, space, begin(&acl_now, 2)).await;
    store.durable(written.commit).await.unwrap();
    check_invariants(&store, space);
}

#[tokio::test]
async fn a_panic_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let panics = |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
        tx.kv_put("half", b"")?;
        panic!("on purpose")
    };
    let lost = store.write(panics).await.unwrap_err();
    assert!(matches!(lost, WriteError::OutcomeUnknown(StoreError::Panicked { .. })), "{lost:?}");
    assert!(matches!(store.failed().await, StoreError::Panicked { message } if message == "on purpose"));
    let later = store.write(|tx| tx.kv_put("later", b"")).await.unwrap_err();
    assert!(matches!(later, WriteError::Failed(StoreError::Panicked { .. })), "{later:?}");
    assert!(matches!(store.durable(CommitNo(9)).await, Err(StoreError::Panicked { .. })));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.read(|tx| tx.kv("half")).unwrap(), None);
}

#[tokio::test]
async fn damage_found_by_a_job_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    store.write(|tx| tx.db.execute("UPDATE space_heads SET digest = x'00'", [])).await.unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(matches!(store.read(|tx| tx.space(space)), Err(StoreError::Damaged { .. })));
    // Even a job that looks away.
    let looks_away = move |tx: &mut WriteTx<'_>| {
        let _ = tx.space(space);
        Ok::<_, StoreError>(())
    };
    assert!(matches!(store.write(looks_away).await, Err(WriteError::OutcomeUnknown(StoreError::Damaged { .. }))));
    assert!(matches!(store.failed().await, StoreError::Damaged { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_so_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (release, started) = hold(&store);
    started.recv().unwrap();
    let waker = std::task::Waker::noop();
    let mut queued = Vec::new();
    let overloaded = loop {
        let store = store.clone();
        let mut write = Box::pin(async move { store.write(|tx| tx.kv_put("k", b"")).await });
        match write.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
            std::task::Poll::Pending => queued.push(write),
            std::task::Poll::Ready(result) => break result.unwrap_err(),
        }
    };
    assert!(matches!(overloaded, WriteError::Overloaded));
    assert_eq!(queued.len(), sync_core::limits::WRITE_QUEUE_MAX);
    drop(release);
    for write in queued {
        write.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_what_is_queued_and_nothing_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (release, started) = hold(&store);
    started.recv().unwrap();
    let other = store.clone();
    let waker = std::task::Waker::noop();
    let writer = store.clone();
    let mut queued = Box::pin(async move { writer.write(|tx| tx.kv_put("queued", b"")).await });
    assert!(queued.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    drop(store);
    let closing = tokio::spawn(other.clone().close());
    drop(release);
    closing.await.unwrap();
    queued.await.unwrap();
    assert!(matches!(other.write(|tx| tx.kv_put("late", b"")).await, Err(WriteError::Closed)));
    assert!(matches!(other.read(|tx| tx.kv("queued")), Err(StoreError::Closed)));
    let wal = dir.path().join("headwater.db-wal");
    assert_eq!(std::fs::metadata(&wal).map_or(0, |m| m.len()), 0, "all is in the database file");
    let again = open(dir.path());
    assert_eq!(again.read(|tx| tx.kv("queued")).unwrap(), Some(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_cancels_its_wait_and_not_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (release, started) = hold(&store);
    started.recv().unwrap();
    {
        let mut write = Box::pin(store.write(|tx| tx.kv_put("done anyway", b"")));
        let waker = std::task::Waker::noop();
        assert!(write.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    }
    drop(release);
    store.write(|_| Ok::<_, StoreError>(())).await.unwrap();
    assert!(store.read(|tx| tx.kv("done anyway")).unwrap().is_some());
}

#[tokio::test]
async fn a_reader_sees_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let (grow, growing) = mpsc::channel::<()>();
    let (grown, has_grown) = mpsc::channel::<()>();
    let reader = std::thread::spawn({
        let store = store.clone();
        move || {
            store.read(|tx| {
                let before = tx.space(space)?.unwrap();
                grow.send(()).unwrap();
                has_grown.recv().unwrap();
                assert_eq!(tx.space(space)?.unwrap(), before);
                assert_eq!(tx.acl(space)?.unwrap().head, before.acl_head);
                assert_eq!(tx.entries(space, Seq::ZERO, 100, usize::MAX)?.len(), 2);
                Ok::<_, StoreError>(())
            })
        }
    });
    growing.recv().unwrap();
    append(&store, space, world::add_writer(&acl_now, 3)).await;
    grown.send(()).unwrap();
    reader.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_known_record_is_answered_with_the_commit_that_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let submission = begin(&acl(&store, space), 1);
    let first = append(&store, space, submission.clone()).await;
    let job = move |tx: &mut WriteTx<'_>| {
        let outcome = sync_core::log::decide(&tx.view(space)?.unwrap(), &submission).unwrap();
        assert!(matches!(outcome, Outcome::Known(Seq(4))));
        Ok::<_, StoreError>(())
    };
    let again = store.write(job).await.unwrap();
    assert_eq!(again.commit, first.commit);
    assert!(again.committed.is_empty());
}

#[tokio::test]
async fn a_job_sees_what_is_durable_and_not_what_it_appends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let last = append(&store, space, begin(&acl_now, 1)).await;
    store.durable(last.commit).await.unwrap();
    let submission = begin(&acl_now, 2);
    let job = move |tx: &mut WriteTx<'_>| {
        append_in(tx, space, &submission)?;
        tx.durable_seq(space)
    };
    assert_eq!(store.write(job).await.unwrap().value, Seq(4));
}
