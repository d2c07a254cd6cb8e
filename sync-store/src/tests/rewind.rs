//! A log that was taken back is as one that never was longer.

use std::sync::Arc;

use proptest::prelude::*;
use sync_core::acl::AclState;
use sync_core::ids::{EntryId, HistoryId, Seq, SpaceId, TreeId};
use sync_core::log::{EntryKind, Outcome, Position, Submission, TreeState, decide};
use sync_core::reconcile::{Element, SetDigest};

use super::random::{MapView, Step, steps, submission};
use super::world::{self, HISTORY, append, check_invariants, found};
use crate::{
    ObjectRow, Rewound, SalvageRow, SalvageState, SpaceCounts, Store, StoreError, StoreKind, VerdictKind, VerdictRow,
    WriteError,
};

/// Everything that a log says, but for the content that a purge drops.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    position: Position,
    acl: Arc<AclState>,
    digest: SetDigest,
    elements: Vec<Element>,
    counts: SpaceCounts,
    trees: Vec<(TreeId, Option<TreeState>)>,
    entries: Vec<(Seq, EntryKind, EntryId)>,
}

fn said(store: &Store, space: SpaceId, trees: &[TreeId]) -> Said {
    let read = store.read(|tx| {
        Ok::<_, StoreError>(Said {
            position: tx.space(space)?.unwrap().position,
            acl: tx.acl(space)?.unwrap(),
            digest: tx.digest(space)?.unwrap(),
            elements: tx.elements(space, None, usize::MAX)?,
            // Bytes count content, which a purge drops for good.
            counts: SpaceCounts { bytes: 0, ..tx.counts(space)?.unwrap() },
            trees: trees.iter().map(|tree| Ok((*tree, tx.tree(space, *tree)?))).collect::<Result<_, StoreError>>()?,
            entries: tx.entry_ids(space, Seq::ZERO, usize::MAX)?,
        })
    });
    read.unwrap()
}

async fn play(steps: Vec<Step>, cut: usize, blind: bool) {
    let mut tuning = Store::tuning(StoreKind::Client);
    if blind {
        tuning.prefix_mask = 0;
    }
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [long, short] = dirs.each_ref().map(|dir| Store::open_with(dir.path(), StoreKind::Client, tuning).unwrap());
    let genesis = world::space(1);
    let space = genesis.space();
    let mut map = MapView::new(&genesis);
    for store in [&long, &short] {
        let genesis = genesis.clone();
        store.write(move |tx| tx.create_space(&genesis, HISTORY)).await.unwrap();
    }
    let mut taken: Vec<Submission> = Vec::new();
    for step in steps {
        let Some(submission) = submission(&map, step, &taken) else { continue };
        let Ok(Outcome::Append(decision)) = decide(&map, &submission) else { continue };
        let epoch = map.acl.epoch;
        map.follow(&decision, epoch);
        taken.push(submission);
    }
    let cut = cut % (taken.len() + 1);
    for (n, submission) in taken.iter().enumerate() {
        append(&long, space, submission.clone()).await;
        if n < cut {
            append(&short, space, submission.clone()).await;
        }
    }
    let trees: Vec<_> = map.trees.keys().copied().collect();
    let (whole, expected) = (said(&long, space, &trees), said(&short, space, &trees));
    let to = expected.position.seq;
    let watch = long.watch(space);
    let rewound = long.write(move |tx| tx.rewind(space, to)).await.unwrap().value;
    assert_eq!(rewound.position, expected.position);
    assert_eq!(watch.borrow().seq, to, "who watches sees the log fall");
    assert_eq!(said(&long, space, &trees), expected);
    check_invariants(&long, space);

    let salvage = long.read(|tx| tx.salvage_waiting(space, usize::MAX)).unwrap();
    let kept: Vec<_> = salvage.iter().map(|row| (row.seq, row.kind, row.entry)).collect();
    assert_eq!(kept, whole.entries[expected.entries.len()..], "in the old order");
    assert!(salvage.iter().all(|row| row.record.id() == row.entry && row.state == SalvageState::Waiting));

    // The same records again, in the same order: the same log again.
    for submission in &taken[cut..] {
        append(&long, space, submission.clone()).await;
    }
    assert_eq!(said(&long, space, &trees), whole);
    drop(long);
    let long = Store::open_with(dirs[0].path(), StoreKind::Client, tuning).unwrap();
    assert_eq!(said(&long, space, &trees), whole, "and so on the disk");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rewound_log_is_as_one_that_never_was_longer(steps in steps(), cut in any::<usize>(), blind in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps, cut, blind));
    }
}

async fn client() -> (tempfile::TempDir, Store, SpaceId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    (dir, store, space)
}

async fn rewind(store: &Store, space: SpaceId, to: u64) -> Result<Rewound, WriteError<StoreError>> {
    Ok(store.write(move |tx| tx.rewind(space, Seq(to))).await?.value)
}

#[tokio::test]
async fn what_was_derived_of_shortened_trees_goes_and_the_rest_stays() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    let (kept, shortened, gone) = (world::begin(&acl, 1), world::begin(&acl, 2), world::begin(&acl, 3));
    let [kept_tree, short_tree, gone_tree] = [&kept, &shortened, &gone].map(world::tree_of);
    for submission in [kept, shortened] {
        append(&store, space, submission).await;
    }
    let to = store.read(|tx| tx.space(space)).unwrap().unwrap().position.seq;
    let heads = world::heads(&store, space, short_tree);
    append(&store, space, world::extend(&acl, short_tree, &heads, 9)).await;
    append(&store, space, gone).await;
    let end = to.0 + 3;
    let job = move |tx: &mut crate::WriteTx<'_>| -> Result<(), StoreError> {
        for tree in [kept_tree, short_tree, gone_tree] {
            tx.put_object(space, &ObjectRow { tree, type_tag: [1; 16], state: vec![1], at: Seq(end) })?;
        }
        for (tree, at) in [(kept_tree, to), (gone_tree, Seq(end))] {
            let row = VerdictRow { kind: VerdictKind::Hidden, detail: String::new(), seq: at };
            tx.put_verdict(space, tree, sync_core::ids::ChangeId::from_hash([1; 32]), &row)?;
        }
        tx.set_projected(space, Seq(end))
    };
    store.write(job).await.unwrap();
    let rewound = rewind(&store, space, to.0).await.unwrap();
    assert_eq!((rewound.shortened, rewound.gone), (vec![short_tree], vec![gone_tree]));
    let read = store.read(|tx| {
        let objects: Vec<_> = tx.objects(space, [1; 16], None, 9)?.into_iter().map(|o| o.tree).collect();
        let verdicts: Vec<_> = tx.verdicts(space)?.into_iter().map(|(tree, ..)| tree).collect();
        Ok::<_, StoreError>((objects, verdicts, tx.projected_to(space)?))
    });
    assert_eq!(read.unwrap(), (vec![kept_tree], vec![kept_tree], to));
}

#[tokio::test]
async fn a_root_is_not_parted_from_its_first_change() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    append(&store, space, world::begin(&acl, 1)).await;
    assert_eq!(rewind(&store, space, 3).await.unwrap().position.seq, Seq(2));
    check_invariants(&store, space);
}

#[tokio::test]
async fn there_is_nothing_before_the_beginning_and_nothing_beyond_the_end() {
    let (_dir, store, space) = client().await;
    for to in [0, 1, 3, u64::MAX] {
        let refused = rewind(&store, space, to).await;
        assert!(matches!(refused, Err(WriteError::Job(StoreError::OutOfRange { .. }))), "{to}: {refused:?}");
    }
    assert_eq!(rewind(&store, space, 2).await.unwrap().position.seq, Seq(2), "nothing to take back");
    let unknown = SpaceId::from_hash([9; 32]);
    let refused = rewind(&store, unknown, 2).await;
    assert!(matches!(refused, Err(WriteError::Job(StoreError::UnknownSpace { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_rewind_that_fails_half_way_leaves_no_trace() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    append(&store, space, world::begin(&acl, 1)).await;
    let tree = world::tree_of(&world::begin(&acl, 1));
    let before = said(&store, space, &[tree]);
    let failed = store.write(move |tx| tx.rewind(space, Seq(2)).and(Err::<(), _>(StoreError::Closed))).await;
    assert!(failed.is_err());
    assert_eq!(said(&store, space, &[tree]), before);
    assert_eq!(store.read(|tx| tx.salvage_counts(space)).unwrap(), (0, 0));
    assert_eq!(store.watch(space).borrow().seq, before.position.seq);
    check_invariants(&store, space);
}

#[tokio::test]
async fn what_follows_in_the_same_job_and_transaction_stands_on_the_shorter_log() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    append(&store, space, world::begin(&acl, 1)).await;
    append(&store, space, world::add_writer(&acl, 3)).await;
    let again = world::begin(&acl, 7);
    let written = store.write(move |tx| {
        tx.rewind(space, Seq(2))?;
        world::append_in(tx, space, &again)
    });
    let written = written.await.unwrap();
    assert_eq!(written.committed.len(), 1, "told of what is there, and of nothing that is not");
    assert_eq!(store.watch(space).borrow().seq, Seq(4));
    assert_eq!(*world::acl(&store, space), *acl, "the ACL that readers share is the shorter one, too");
    check_invariants(&store, space);
    store.durable(written.commit).await.unwrap();
    assert_eq!(store.watch(space).borrow().durable_seq, Seq(4));
}

#[tokio::test]
async fn forgetting_a_space_forgets_what_was_salvaged_of_it() {
    let (_dir, store, space) = client().await;
    let acl = world::acl(&store, space);
    append(&store, space, world::begin(&acl, 1)).await;
    rewind(&store, space, 2).await.unwrap();
    store.write(move |tx| tx.set_node_history(space, HistoryId([3; 16]))).await.unwrap();
    store.write(move |tx| tx.forget_space(space)).await.unwrap();
    let read = store.read(|tx| {
        let rows: Vec<SalvageRow> = tx.salvage_waiting(space, 9)?;
        Ok::<_, StoreError>((rows, tx.node_history(space)?))
    });
    assert_eq!(read.unwrap(), (Vec::new(), None));
}
