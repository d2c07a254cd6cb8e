//! Logs, trees, elements: what was decided is what is read.

use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::log::{EntryKind, Outcome, Position, Submission, View as _, decide, quarantine};
use sync_core::reconcile::{Element, Sketch, SymbolKey, TreePrefix};
use sync_core::tree::Height;

use super::world::{self, HISTORY, acl, append, begin, check_invariants, extend, found, heads, open, purge, tree_of};
use crate::{Creation, Rebuilt, Store, StoreError, StoreKind, Watermarks};

#[tokio::test]
async fn a_log_round_trips_and_survives_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let genesis = world::space(1);
    let space = genesis.space();
    let again = genesis.clone();
    let created = store.write(move |tx| tx.create_space(&genesis, HISTORY)).await.unwrap();
    assert_eq!((created.value, created.commit), (Creation::Created, world::FIRST));
    let twice = store.write(move |tx| tx.create_space(&again, HISTORY)).await.unwrap();
    assert_eq!((twice.value, twice.commit), (Creation::AlreadyThere, world::FIRST));

    append(&store, space, world::add_writer(&acl(&store, space), 2)).await;
    let acl_now = acl(&store, space);
    let first = begin(&acl_now, 1);
    let tree = tree_of(&first);
    let written = append(&store, space, first.clone()).await;
    let [(of, committed)] = written.committed.as_slice() else { panic!("one decision") };
    assert_eq!((*of, committed.position().seq), (space, Seq(5)));
    assert_eq!(committed.touched().unwrap().heads, heads(&store, space, tree));
    let fork = extend(&acl_now, tree, &heads(&store, space, tree), 10);
    let other = extend(&acl_now, tree, &heads(&store, space, tree), 11);
    append(&store, space, fork.clone()).await;
    append(&store, space, other.clone()).await;
    let merge = extend(&acl_now, tree, &heads(&store, space, tree), 12);
    append(&store, space, merge.clone()).await;
    assert_eq!(heads(&store, space, tree), [ChangeId::from(merge.id())]);

    let look = |store: &Store| {
        store
            .read(|tx| {
                let rows = tx.entries(space, Seq::ZERO, usize::MAX, usize::MAX)?;
                assert_eq!(rows.len(), 8);
                let kinds: Vec<_> = rows.iter().map(|r| r.kind).collect();
                use EntryKind::{Acl, Change, Root};
                assert_eq!(kinds, [Acl, Acl, Acl, Root, Change, Change, Change, Change]);
                assert_eq!(rows[3].tree, Some(tree));
                assert_eq!(rows[7].height, Some(Height(3)));
                let ids = tx.entry_ids(space, Seq(3), 2)?;
                assert_eq!(ids, [(Seq(4), Root, tree.into()), (Seq(5), Change, first.id())]);
                let records = tx.acl_records(space)?;
                assert_eq!(records.iter().map(|r| r.0.0).collect::<Vec<_>>(), [1, 2, 3]);
                assert_eq!(tx.position_at(space, Seq(5))?, Some(rows[4].position));
                assert_eq!(tx.position_at(space, Seq(9))?, None);
                assert_eq!(tx.position_at(space, Seq::ZERO)?, Some(Position::start(&space)));
                assert_eq!(tx.entry_at(space, Seq(6))?.as_ref(), Some(&rows[5]));
                let changes = tx.tree_changes(space, tree)?;
                assert!(changes.is_sorted_by_key(|c| (c.height, c.id)));
                assert_eq!(changes.len(), 4);
                assert_eq!(tx.change(space, tree, fork.id().into())?.as_ref(), Some(&rows[5]));
                assert_eq!(tx.change(space, tree, tree.as_bytes().as_slice().try_into().unwrap())?, None);
                let row = tx.space(space)?.unwrap();
                assert_eq!((row.position, row.history), (rows[7].position, HISTORY));
                assert_eq!(row.header.id().as_bytes(), space.as_bytes());
                assert_eq!(tx.spaces()?, [row]);
                Ok::<_, StoreError>(rows)
            })
            .unwrap()
    };
    let before = look(&store);
    check_invariants(&store, space);
    let acl_before = acl(&store, space);
    store.close().await;

    let store = open(dir.path());
    assert_eq!(look(&store), before);
    assert_eq!(acl(&store, space), acl_before);
    check_invariants(&store, space);
    assert_eq!(*store.watch(space).borrow(), Watermarks { seq: Seq(8), durable_seq: Seq(8) });
    append(&store, space, purge(&acl_before, tree)).await;
    check_invariants(&store, space);
    let purged = store.read(|tx| tx.tree(space, tree)).unwrap().unwrap();
    assert!(purged.heads.is_empty());
    assert_eq!(purged.purged.unwrap().at, Seq(9));
}

#[tokio::test]
async fn a_stale_decision_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let decided = |n| {
        let decide = |tx: &crate::ReadTx<'_>| Ok(decide(&tx.view(space)?.unwrap(), &begin(&acl_now, n)).unwrap());
        store.read::<_, StoreError>(decide).unwrap()
    };
    let (Outcome::Append(one), Outcome::Append(two)) = (decided(1), decided(2)) else { panic!("both new") };
    store.write(move |tx| tx.append(space, one)).await.unwrap();
    let refused = store.write(move |tx| tx.append(space, two)).await.unwrap_err();
    assert!(
        matches!(refused, crate::WriteError::Job(StoreError::StaleDecision { log_end: Seq(4), decided: Seq(3), .. })),
        "{refused:?}"
    );
    check_invariants(&store, space);
}

#[tokio::test]
async fn pages_of_entries_keep_a_root_and_its_change_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    for n in 0..3 {
        append(&store, space, begin(&acl_now, n)).await;
    }
    let seqs = |after, max, bytes| {
        let rows = store.read(|tx| tx.entries(space, Seq(after), max, bytes)).unwrap();
        rows.iter().map(|r| r.position.seq.0).collect::<Vec<_>>()
    };
    assert_eq!(seqs(0, 2, usize::MAX), [1, 2]);
    assert_eq!(seqs(0, 3, usize::MAX), [1, 2, 3, 4]);
    assert_eq!(seqs(2, 1, usize::MAX), [3, 4]);
    assert_eq!(seqs(2, 0, 0), [3, 4]);
    assert_eq!(seqs(3, 1, usize::MAX), [4]);
    assert_eq!(seqs(2, 100, 1), [3, 4]);
    assert_eq!(seqs(8, 100, usize::MAX), [0; 0]);
    assert_eq!(seqs(u64::MAX, 100, usize::MAX), [0; 0]);
    let far = Seq(1 << 40);
    let nothing =
        store.read(|tx| Ok::<_, StoreError>((tx.position_at(space, far)?, tx.entry_at(space, far)?))).unwrap();
    assert_eq!(nothing, (None, None));
    assert!(store.read(|tx| tx.entry_ids(space, far, 10)).unwrap().is_empty());
}

#[tokio::test]
async fn element_pages_are_sorted_and_complete() {
    let dir = tempfile::tempdir().unwrap();
    // Four bits of prefix only: every page border falls into equal prefixes.
    let tuning = crate::db::Tuning { prefix_mask: 0xf << 60, ..Store::tuning(StoreKind::Node) };
    let store = Store::open_with(dir.path(), StoreKind::Node, tuning).unwrap();
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let submissions: Vec<_> = (0..100).map(|n| begin(&acl_now, n)).collect();
    let trees: std::collections::BTreeSet<TreeId> = submissions.iter().map(tree_of).collect();
    let job = move |tx: &mut crate::WriteTx<'_>| submissions.iter().try_for_each(|s| world::append_in(tx, space, s));
    store.write(job).await.unwrap();
    for max in [1, 7, 64, 1000] {
        let mut found: Vec<Element> = Vec::new();
        loop {
            let after = found.last().and_then(Element::key);
            // The page after the ACL head alone begins before the first tree, and cannot say so: one more.
            let page_max = if found.is_empty() { max + 1 } else { max };
            let page = store.read(|tx| tx.elements(space, after, page_max)).unwrap();
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert!(matches!(found[0], Element::AclHead(_)));
        let keys: Vec<_> = found[1..].iter().filter_map(Element::key).collect();
        assert_eq!(keys, trees.iter().copied().collect::<Vec<_>>(), "{max} at a time");
    }
    check_invariants(&store, space);
}

#[tokio::test]
async fn ids_with_one_prefix_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let blind = crate::db::Tuning { prefix_mask: 0, ..Store::tuning(StoreKind::Node) };
    let store = Store::open_with(dir.path(), StoreKind::Node, blind).unwrap();
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let firsts: Vec<Submission> = (0..8).map(|n| begin(&acl_now, n)).collect();
    for first in &firsts {
        append(&store, space, first.clone()).await;
        append(&store, space, extend(&acl_now, tree_of(first), &[first.id().into()], 99)).await;
    }
    for first in &firsts {
        let tree = tree_of(first);
        store
            .read(|tx| {
                assert_eq!(tx.change(space, tree, first.id().into())?.unwrap().id, first.id());
                let changes = tx.tree_changes(space, tree)?;
                assert!(changes.iter().all(|c| c.tree == Some(tree)));
                assert_eq!(changes.len(), 2);
                assert_eq!(tx.tree(space, tree)?.unwrap().root.tree_id(), tree);
                let view = tx.view(space)?.unwrap();
                let elsewhere = firsts.iter().find(|f| f.id() != first.id()).unwrap();
                assert_eq!(view.change(&tree, &elsewhere.id().into())?, None, "a change of another tree");
                Ok::<_, StoreError>(())
            })
            .unwrap();
    }
    check_invariants(&store, space);
}

#[tokio::test]
async fn a_quarantined_change_is_kept_and_never_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let root = world::root(space, 1);
    let tree = root.id().into();
    // Account 9 is no member.
    let change = world::change(&acl_now, 9, tree, &[], 1);
    let id = change.id();
    let bad = Submission::Change { root: Some(root), change };
    let decision = store.read(|tx| Ok::<_, StoreError>(quarantine(&tx.view(space)?.unwrap(), &bad))).unwrap();
    store.write(move |tx| tx.append(space, decision)).await.unwrap();
    store
        .read(|tx| {
            assert_eq!(tx.tree(space, tree)?, None);
            assert_eq!(tx.change(space, tree, id.into())?, None);
            let rows = tx.entries(space, Seq(2), 10, usize::MAX)?;
            assert!(rows.iter().all(|r| r.quarantined && r.tree == Some(tree)));
            assert_eq!(rows.len(), 2);
            Ok::<_, StoreError>(())
        })
        .unwrap();
    check_invariants(&store, space);
}

#[tokio::test]
async fn a_broken_tree_row_is_rebuilt_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let first = begin(&acl_now, 1);
    let tree = tree_of(&first);
    append(&store, space, first.clone()).await;
    append(&store, space, extend(&acl_now, tree, &[first.id().into()], 2)).await;
    let right = store.read(|tx| tx.tree(space, tree)).unwrap();
    let untouched = store.write(move |tx| tx.rebuild_tree(space, tree)).await.unwrap();
    assert_eq!(untouched.value, Rebuilt::Unchanged);
    let stale = *first.id().as_bytes();
    store.write(move |tx| tx.db.execute("UPDATE trees SET heads = ?1", [stale]).map(|_| ())).await.unwrap();
    assert_ne!(store.read(|tx| tx.tree(space, tree)).unwrap(), right);
    let repaired = store.write(move |tx| tx.rebuild_tree(space, tree)).await.unwrap();
    assert_eq!(repaired.value, Rebuilt::Repaired);
    assert_eq!(store.read(|tx| tx.tree(space, tree)).unwrap(), right);
    check_invariants(&store, space);
    append(&store, space, purge(&acl_now, tree)).await;
    assert_eq!(store.write(move |tx| tx.rebuild_tree(space, tree)).await.unwrap().value, Rebuilt::Unchanged);
}

#[tokio::test]
async fn of_many_changes_to_one_tree_the_last_heads_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let (one, two) = (begin(&acl_now, 1), begin(&acl_now, 2));
    let (first_tree, second_tree) = (tree_of(&one), tree_of(&two));
    let job = move |tx: &mut crate::WriteTx<'_>| {
        world::append_in(tx, space, &one)?;
        world::append_in(tx, space, &two)?;
        let heads: Vec<ChangeId> = tx.tree(space, first_tree)?.unwrap().heads.into_iter().collect();
        world::append_in(tx, space, &extend(&acl_now, first_tree, &heads, 9))
    };
    let written = store.write::<_, StoreError, _>(job).await.unwrap();
    let told: Vec<_> =
        written.committed.iter().map(|(_, c)| (c.position().seq, c.touched().unwrap().clone())).collect();
    let [(Seq(6), of_second), (Seq(7), of_first)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(of_second.heads, heads(&store, space, second_tree));
    assert_eq!(of_first.heads, heads(&store, space, first_tree));
}

/// A sketch that was made at some moment and followed the log since equals one that is made anew.
#[tokio::test]
async fn followers_of_the_elements_miss_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let first = begin(&acl_now, 1);
    append(&store, space, first.clone()).await;
    let sketch_of = |store: &Store| {
        let mut sketch = Sketch::empty(SymbolKey::new(&[3; 32]), 64);
        let seq = store.read(|tx| {
            tx.each_element(space, |element| sketch.insert(&element))?;
            Ok::<_, StoreError>(tx.space(space)?.unwrap().position.seq)
        });
        (seq.unwrap(), sketch)
    };

    let mut feed = store.write(move |tx| Ok::<_, StoreError>(tx.follow_elements(space))).await.unwrap().value;
    // Between following and reading: what the reader sees already is told all the same, and skipped by its seq.
    append(&store, space, begin(&acl_now, 2)).await;
    let (mut seq, mut kept) = sketch_of(&store);
    append(&store, space, extend(&acl_now, tree_of(&first), &[first.id().into()], 9)).await;
    append(&store, space, purge(&acl_now, tree_of(&first))).await;
    append(&store, space, world::add_writer(&acl(&store, space), 2)).await;
    // A job that fails tells nothing.
    let lost = begin(&acl(&store, space), 3);
    let failed = store.write(move |tx| {
        world::append_in(tx, space, &lost)?;
        Err::<(), _>(StoreError::UnknownSpace { space })
    });
    assert!(failed.await.is_err());
    let (end, fresh) = sketch_of(&store);
    while seq < end {
        let moved = feed.next().await.unwrap();
        if moved.seq > seq {
            seq = moved.seq;
            moved.steps.iter().for_each(|step| kept.apply(step));
        }
    }
    assert_eq!((seq, kept.cells(), kept.elements()), (end, fresh.cells(), fresh.elements()));

    // A space that is forgotten has no moves any more.
    store.write(move |tx| tx.forget_space(space)).await.unwrap();
    assert_eq!(feed.next().await, None);
}

#[tokio::test]
async fn a_repair_ends_what_follows_the_elements() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let first = begin(&acl(&store, space), 1);
    let tree = tree_of(&first);
    append(&store, space, first).await;
    let mut feed = store.write(move |tx| Ok::<_, StoreError>(tx.follow_elements(space))).await.unwrap().value;
    store.write(move |tx| tx.db.execute("UPDATE trees SET heads = x''", []).map(|_| ())).await.unwrap();
    store.write(move |tx| tx.rebuild_tree(space, tree)).await.unwrap();
    assert_eq!(feed.next().await, None);
}

#[tokio::test]
async fn trees_are_found_by_their_first_eight_bytes() {
    for prefix_mask in [-1, 0xf << 60] {
        let dir = tempfile::tempdir().unwrap();
        let tuning = crate::db::Tuning { prefix_mask, ..Store::tuning(StoreKind::Node) };
        let store = Store::open_with(dir.path(), StoreKind::Node, tuning).unwrap();
        let space = found(&store, 1).await;
        let acl_now = acl(&store, space);
        for n in 0..40 {
            append(&store, space, begin(&acl_now, n)).await;
        }
        let all = store.read(|tx| tx.elements(space, None, usize::MAX)).unwrap();
        for element in &all[1..] {
            let prefix = TreePrefix::of(&element.key().unwrap());
            assert_eq!(store.read(|tx| tx.elements_with(space, prefix)).unwrap(), [*element]);
        }
        let none = store.read(|tx| tx.elements_with(space, TreePrefix([0; 8]))).unwrap();
        assert_eq!(none, []);
    }
}

/// What follows one tree reads it in its own order and in the log's, whole or by pages, and gets the same.
#[tokio::test]
async fn a_tree_is_followed_by_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let acl_now = acl(&store, space);
    let first = begin(&acl_now, 1);
    let tree = tree_of(&first);
    let root_change: ChangeId = first.id().into();
    append(&store, space, first).await;
    append(&store, space, begin(&acl_now, 2)).await;
    // Two branches, so that the order of the tree is not that of the log, with another tree in between.
    let mut branches = [root_change, root_change];
    for n in 3..20 {
        let next = extend(&acl_now, tree, &[branches[usize::from(n % 3 == 0)]], n);
        branches[usize::from(n % 3 == 0)] = next.id().into();
        append(&store, space, next).await;
        append(&store, space, begin(&acl_now, n + 40)).await;
    }
    store
        .read(|tx| {
            let end = tx.space(space)?.unwrap().position.seq;
            let all = tx.tree_changes(space, tree)?;
            let places = tx.change_places(space, tree, end)?;
            let expected: Vec<_> = all.iter().map(|row| (row.height.unwrap(), row.id, row.position.seq)).collect();
            let found: Vec<_> = places.iter().map(|p| (p.order.height, p.order.id.into(), p.seq)).collect();
            assert_eq!(found, expected);
            let mut by_log = all;
            by_log.sort_by_key(|row| row.position.seq);
            assert_ne!(
                by_log.iter().map(|r| r.position.seq).collect::<Vec<_>>(),
                expected.iter().map(|e| e.2).collect::<Vec<_>>()
            );
            for (max, bytes) in [(1, usize::MAX), (4, usize::MAX), (1000, usize::MAX), (1000, 1)] {
                let (mut at, mut read) = (Seq::ZERO, Vec::new());
                loop {
                    let page = tx.tree_changes_after(space, tree, (at, end), max, bytes)?;
                    let Some(last) = page.last() else { break };
                    assert!(page.len() <= max && (bytes > 1 || page.len() == 1));
                    at = last.position.seq;
                    read.extend(page);
                }
                assert_eq!(read, by_log, "{max} at a time");
            }
            // A short end of the log is read from the log itself, and the middle ends where it is told to.
            let half = Seq(end.0 / 2);
            let (before, after) = (by_log.iter().filter(|r| r.position.seq <= half).cloned(), Seq(end.0 - 3));
            assert_eq!(
                tx.tree_changes_after(space, tree, (Seq::ZERO, half), 1000, usize::MAX)?,
                before.collect::<Vec<_>>()
            );
            assert_eq!(
                tx.change_places(space, tree, half)?.len(),
                by_log.iter().filter(|r| r.position.seq <= half).count()
            );
            let late: Vec<_> = by_log.iter().filter(|r| r.position.seq > after).cloned().collect();
            assert!(!late.is_empty());
            assert_eq!(tx.tree_changes_after(space, tree, (after, end), 1000, usize::MAX)?, late);
            Ok::<_, StoreError>(())
        })
        .unwrap();
}
