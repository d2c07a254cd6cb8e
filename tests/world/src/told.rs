//! What the clients were told: every acknowledgement, kept beside the world, to hold the world to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client_sdk::{AccountId, Chain, Seq, SpaceId, Tree, WriteId, WriteState};

use crate::foe::set_back::SetBack;
use crate::story::Who;
use crate::violation::Violation;

/// A write that returned.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// Of the step that wrote it.
    pub(crate) number: u32,
    pub(crate) by: Who,
    pub(crate) space: SpaceId,
    pub(crate) id: WriteId,
    /// The object, and the field that only this write sets; none for what writes no field.
    pub(crate) field: Option<Field>,
    /// The author was told that it survives a power cut here.
    pub(crate) locally_durable: bool,
    pub(crate) state: Stage,
    /// Of the log that it is durable in, at its place; only noted where the node may tell more than one.
    pub(crate) chain: Option<Chain>,
}

/// A field of an object, with a value that stands nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) object_type: &'static str,
    pub(crate) object: String,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// How far a write has come. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Pending,
    Logged(Seq),
    Durable(Seq),
    Refused,
    Dismissed,
}

impl Stage {
    pub(crate) fn of(state: &WriteState) -> Self {
        match state {
            WriteState::Pending { .. } => Self::Pending,
            WriteState::Logged { seq } => Self::Logged(*seq),
            WriteState::Durable { seq } => Self::Durable(*seq),
            WriteState::Refused(_) => Self::Refused,
            WriteState::Dismissed => Self::Dismissed,
        }
    }
}

/// A receipt that a client accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) space: SpaceId,
    pub(crate) seq: Seq,
    pub(crate) chain: Chain,
    /// How often the node had been set back when the client asked.
    pub(crate) since: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Everything {
    pub(crate) spaces: BTreeMap<usize, SpaceId>,
    pub(crate) writes: Vec<Written>,
    pub(crate) certified: Vec<Certified>,
    /// Of invites, as they were handed over.
    pub(crate) tokens: BTreeSet<String>,
    /// How often somebody began to let an account into a space.
    pub(crate) admitted: BTreeMap<(SpaceId, AccountId), u32>,
    /// Objects that somebody began to delete or purge: what they hold is nobody's promise.
    pub(crate) erased: BTreeSet<(SpaceId, &'static str, String)>,
    /// The node lost power at some time: what was only logged may have gone back to being pending.
    pub(crate) node_lost_power: bool,
    /// The node's disk was put back to an older state.
    pub(crate) set_backs: Vec<SetBack>,
    /// To whom the node has lied.
    pub(crate) victim: Option<Who>,
    pub(crate) accounts: BTreeMap<Who, AccountId>,
    /// Live trees that an application holds: of a client, in one life of its process.
    pub(crate) held: Vec<(Who, u64, Tree)>,
    /// What a task found.
    pub(crate) violations: Vec<Violation>,
}

/// A cheap handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Everything>>);

impl Told {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Everything> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn space(&self, slot: usize) -> Option<SpaceId> {
        self.lock().spaces.get(&slot).copied()
    }

    pub(crate) fn found(&self, violation: Violation) {
        self.lock().violations.push(violation);
    }

    /// What a client wrote to a space and was told of.
    pub(crate) fn writes_of(&self, by: Who, space: SpaceId) -> Vec<Written> {
        self.lock().writes.iter().filter(|w| w.by == by && w.space == space).cloned().collect()
    }

    /// Nobody else let this account into the space: what it sees there first was prepared by one.
    pub(crate) fn is_admitted_once(&self, space: SpaceId, account: AccountId) -> bool {
        self.lock().admitted.get(&(space, account)) == Some(&1)
    }

    pub(crate) fn is_erased(&self, space: SpaceId, field: &Field) -> bool {
        self.lock().erased.contains(&(space, field.object_type, field.object.clone()))
    }

    /// The live trees that the present process of a client gave out and that are held since. What an earlier one gave is let go.
    pub(crate) fn held(&self, by: Who, life: u64) -> Vec<Tree> {
        let mut everything = self.lock();
        everything.held.retain(|(who, of, _)| *who != by || *of == life);
        everything.held.iter().filter(|(who, ..)| *who == by).map(|(.., tree)| tree.clone()).collect()
    }

    pub(crate) fn locally_durable(&self, by: Who, writes: &[WriteId]) {
        for write in &mut self.lock().writes {
            if write.by == by && writes.contains(&write.id) {
                write.locally_durable = true;
            }
        }
    }

    /// The power of a client was cut: it owes nothing but what it called durable.
    pub(crate) fn forget_undurable(&self, by: Who) {
        let mut everything = self.lock();
        everything.writes.retain(|w| w.by != by || w.locally_durable);
        // What became of it may not have been on the disk, and is heard again.
        everything.writes.iter_mut().filter(|w| w.by == by).for_each(|w| (w.state, w.chain) = (Stage::Pending, None));
        everything.set_backs.iter_mut().for_each(|set_back| set_back.client_lost_power = true);
    }
}
