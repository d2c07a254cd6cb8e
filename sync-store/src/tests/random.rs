//! The store and a map, given the same history, decide the same.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use proptest::prelude::*;
use sync_core::acl::AclState;
use sync_core::ids::{ChangeId, Epoch, SpaceId, TreeId};
use sync_core::log::{
    ChangeState, DecideError, EntryKind, Genesis, Outcome, Position, Submission, TreeState, View, decide,
};
use sync_core::reconcile::SetDigest;

use super::world::{self, HISTORY, check_invariants};
use crate::db::Tuning;
use crate::memory::Disk;
use crate::{Store, StoreError, StoreKind};

/// The reference: a log over maps.
pub(super) struct MapView {
    pub(super) position: Position,
    pub(super) acl: Arc<AclState>,
    pub(super) trees: BTreeMap<TreeId, TreeState>,
    changes: BTreeMap<(TreeId, ChangeId), ChangeState>,
    pub(super) digest: SetDigest,
}

impl View for MapView {
    type Error = Infallible;

    fn position(&self) -> Position {
        self.position
    }

    fn acl(&self) -> &AclState {
        &self.acl
    }

    fn tree(&self, tree: &TreeId) -> Result<Option<TreeState>, Infallible> {
        Ok(self.trees.get(tree).cloned())
    }

    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>, Infallible> {
        Ok(self.changes.get(&(*tree, *change)).copied())
    }
}

impl MapView {
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self {
            position: genesis.entries()[1].position,
            acl: Arc::new(genesis.acl().clone()),
            trees: BTreeMap::new(),
            changes: BTreeMap::new(),
            digest: SetDigest::of_genesis(genesis.acl()),
        }
    }

    pub(super) fn follow(&mut self, decision: &sync_core::log::Decision, epoch: Epoch) {
        self.digest.apply(decision);
        for entry in decision.entries().iter().filter(|e| e.kind == EntryKind::Change) {
            let state = ChangeState { at: entry.position.seq, height: entry.height.unwrap(), epoch };
            self.changes.insert((entry.tree.unwrap(), entry.id.into()), state);
        }
        if let Some(update) = decision.tree() {
            self.trees.insert(update.tree, update.after.clone());
        }
        if let Some(acl) = decision.acl() {
            self.acl = Arc::new(acl.clone());
        }
        self.position = decision.position();
    }
}

/// One step; what it names is taken modulo what there is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    AddWriter(u8),
    Begin(u32),
    Extend { tree: usize, author: u8, heads: usize, salt: u32 },
    MissingParent { tree: usize },
    Purge { tree: usize },
    Again(usize),
    Fail(u32),
    Reopen,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (2..6_u8).prop_map(Step::AddWriter),
        4 => (0..12_u32).prop_map(Step::Begin),
        8 => (any::<usize>(), 1..6_u8, 1..4_usize, 0..40_u32)
            .prop_map(|(tree, author, heads, salt)| Step::Extend { tree, author, heads, salt }),
        1 => any::<usize>().prop_map(|tree| Step::MissingParent { tree }),
        1 => any::<usize>().prop_map(|tree| Step::Purge { tree }),
        2 => any::<usize>().prop_map(Step::Again),
        1 => (100..110_u32).prop_map(Step::Fail),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

pub(super) fn submission(map: &MapView, step: Step, past: &[Submission]) -> Option<Submission> {
    let acl = &map.acl;
    let pick = |n: usize| map.trees.iter().nth(n % map.trees.len().max(1));
    Some(match step {
        Step::AddWriter(n) => world::add_writer(acl, n),
        Step::Begin(n) | Step::Fail(n) => world::begin(acl, n),
        Step::Extend { tree, author, heads, salt } => {
            let (tree, state) = pick(tree)?;
            let parents: Vec<_> = state.heads.iter().copied().take(heads).collect();
            Submission::Change { root: None, change: world::change(acl, author, *tree, &parents, salt) }
        }
        Step::MissingParent { tree } => {
            let missing = [ChangeId::from_hash([9; 32])];
            Submission::Change { root: None, change: world::change(acl, 1, *pick(tree)?.0, &missing, 0) }
        }
        Step::Purge { tree } => world::purge(acl, *pick(tree)?.0),
        Step::Again(n) => past.get(n % past.len().max(1))?.clone(),
        Step::Reopen => return None,
    })
}

/// An outcome in words, so that errors of two kinds of view compare.
fn words<E>(outcome: &Result<Outcome, DecideError<E>>) -> String {
    match outcome {
        Ok(Outcome::Known(seq)) => format!("known {seq}"),
        Ok(Outcome::Append(d)) => format!("append {:?} {:?}", d.entries(), d.tree()),
        Err(DecideError::Reject(e)) => format!("reject {e:?}"),
        Err(DecideError::Refused(e)) => format!("refused {e:?}"),
        Err(DecideError::View(_)) => "the view failed".into(),
    }
}

async fn play_in_a_directory(steps: Vec<Step>, tuning: Tuning) {
    let dir = tempfile::tempdir().unwrap();
    play(steps, || Store::open_with(dir.path(), StoreKind::Node, tuning).unwrap()).await;
}

async fn play_on_a_disk_in_memory(steps: Vec<Step>, tuning: Tuning) {
    let disk = Disk::new("node");
    play(steps, || Store::open_on_with(&disk, StoreKind::Node, tuning).unwrap()).await;
}

async fn play(steps: Vec<Step>, open: impl Fn() -> Store) {
    let mut store = open();
    let genesis = world::space(1);
    let space = genesis.space();
    let mut map = MapView::new(&genesis);
    store.write(move |tx| tx.create_space(&genesis, HISTORY)).await.unwrap();
    let mut past = Vec::new();
    for step in steps {
        if matches!(step, Step::Reopen) {
            drop(store);
            store = open();
        }
        let Some(submission) = submission(&map, step, &past) else { continue };
        let ours = decide(&map, &submission);
        let epoch = map.acl.epoch;
        if let Step::Fail(_) = step {
            let failed =
                store.write(move |tx| world::append_in(tx, space, &submission).and(Err::<(), _>(StoreError::Closed)));
            assert!(failed.await.is_err());
            continue;
        }
        past.push(submission.clone());
        let theirs = store.write(move |tx| judge(tx, space, &submission)).await.unwrap().value;
        assert_eq!(words(&ours), theirs, "{step:?}");
        if let Ok(Outcome::Append(decision)) = ours {
            map.follow(&decision, epoch);
        }
    }
    check_invariants(&store, space);
    store
        .read(|tx| {
            assert_eq!(tx.space(space)?.unwrap().position, map.position);
            assert_eq!(tx.acl(space)?.unwrap(), map.acl);
            assert_eq!(tx.digest(space)?.unwrap(), map.digest);
            for (tree, state) in &map.trees {
                assert_eq!(tx.tree(space, *tree)?.as_ref(), Some(state));
            }
            let changes = map.changes.len() as u64;
            assert_eq!(tx.counts(space)?.unwrap().changes, changes);
            Ok::<_, StoreError>(())
        })
        .unwrap();
    let trees: Vec<_> = map.trees.keys().copied().collect();
    let repaired = store.write(move |tx| tx.rebuild_trees(space, &trees)).await.unwrap().value;
    assert!(repaired.is_empty(), "rows are what the log says: {repaired:?}");
}

fn judge(tx: &mut crate::WriteTx<'_>, space: SpaceId, submission: &Submission) -> Result<String, StoreError> {
    let outcome = decide(&tx.view(space)?.unwrap(), submission);
    let said = words(&outcome);
    if let Ok(Outcome::Append(decision)) = outcome {
        tx.append(space, decision)?;
    }
    Ok(said)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_and_a_map_decide_the_same(steps in steps(), blind in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut tuning = Store::tuning(StoreKind::Node);
        if blind {
            tuning.prefix_mask = 0;
        }
        runtime.block_on(play_in_a_directory(steps.clone(), tuning));
        runtime.block_on(play_on_a_disk_in_memory(steps, tuning));
    }
}
