//! How a space stands: a view over durable rows and the connection, and the reasons for everything that is not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sync_core::code::Code;
use sync_core::ids::{ChangeId, DeviceId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::View as _;
use sync_core::session::Moment;
use sync_store::{PeerKind, PeerRow, Registration, VerdictKind, VerdictRow, WriteClass, WriteCount};

use crate::error::{CallError, ReadError};
use crate::link::Connection;
use crate::rest::Rest;
use crate::space::{STALE, Space, SpaceInner};

/// One word for people; the numbers beside it say the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncState {
    /// No session with the node; writes wait in the outbox.
    Offline,
    /// Entries of the node are on their way here.
    CatchingUp,
    /// Writes are on their way to the node.
    Pushing,
    /// Nothing is known to be missing on either side. Only [`crate::Space::await_synced`] proves it.
    UpToDate,
    /// Something needs a person: see the reasons.
    Attention,
}

/// A snapshot of one space's sync: a view over durable rows, the connection, and what stops the space as a whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpaceStatus {
    pub space: String,
    /// This account's role, as the log here says; `None` for a former member.
    pub role: Option<String>,
    /// The owner deleted the space.
    pub deleted: bool,
    pub state: SyncState,
    /// The end of the log here.
    pub seq: u64,
    /// How far the node's disk is known to hold the log.
    pub durable_seq: u64,
    /// The end of the node's log, as far as we know.
    pub node_seq: u64,
    /// Entries of the log here that the objects do not include yet.
    pub projection_lag: u64,
    pub trees: u64,
    pub changes: u64,
    pub pending: usize,
    pub refused: usize,
    pub quarantined: usize,
    /// Changes that the node sent without their content.
    pub missing: usize,
    /// What is fetched by itself: trees ahead of the tail, and content that is missing.
    pub wanted: u64,
    /// How much of it failed at least once.
    pub failing: u64,
    pub void: usize,
    pub hidden: usize,
    pub misplaced: usize,
    /// Milliseconds since the node is known to have said nothing new; `None` when not fresh.
    pub fresh_ms: Option<u64>,
    /// Milliseconds since 1970 when HeadSync last found both sides equal, and at which seq.
    pub confirmed: Option<Confirmed>,
    pub reasons: Vec<Reason>,
}

impl SpaceStatus {
    /// Without what moves with the clock alone: two of these differ when something happened.
    #[must_use]
    pub fn timeless(&self) -> Self {
        let mut still = Self { fresh_ms: self.fresh_ms.map(|_| 0), confirmed: None, ..self.clone() };
        still.reasons.iter_mut().for_each(Reason::stop_clocks);
        still
    }
}

/// A snapshot of one tree's sync.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TreeStatus {
    pub tree: String,
    pub state: SyncState,
    /// The log here has it.
    pub logged: bool,
    pub purged: bool,
    /// It is read from entries that were fetched before the tail brought them.
    pub ahead: bool,
    /// The logged heads here.
    pub heads: Vec<String>,
    /// Heads that peers told of and that are not the ones here.
    pub told: Vec<ToldHeads>,
    pub pending: usize,
    pub quarantined: usize,
    pub missing: usize,
    pub void: usize,
    pub hidden: usize,
    pub misplaced: usize,
    pub reasons: Vec<Reason>,
}

impl TreeStatus {
    /// Without what moves with the clock alone.
    #[must_use]
    pub fn timeless(&self) -> Self {
        let mut still = self.clone();
        still.reasons.iter_mut().for_each(Reason::stop_clocks);
        still
    }
}

/// Heads of a tree as a peer last told them, where they are not the ones here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToldHeads {
    pub peer: String,
    pub heads: Vec<String>,
    pub seq: u64,
    pub told_ms: u64,
}

/// A snapshot of what is known of one peer's copy of a space.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// The node's authority, or another client's device.
    pub peer: String,
    pub kind: PeerClass,
    pub connected: bool,
    /// Milliseconds since it is known to have said nothing new; `None` when not fresh.
    pub fresh_ms: Option<u64>,
    /// The end of its log, as last told.
    pub seq: u64,
    /// How far its disk holds it, as last told.
    pub durable_seq: u64,
    /// Entries of its log that are not here.
    pub missing: u64,
    /// Own writes that are not known to be on its disk.
    pub pending: u64,
    /// Trees whose heads it told of and that are not the ones here.
    pub trees_apart: u64,
    /// The position of the last receipt that it signed.
    pub receipt_seq: Option<u64>,
    /// When a comparison last found both sides equal.
    pub confirmed: Option<Confirmed>,
    /// How many requests it is given at a time now, and for how many milliseconds it asked to be left alone.
    pub budget: Option<PeerBudget>,
}

impl PeerStatus {
    /// Without what moves with the clock alone.
    #[must_use]
    pub fn timeless(&self) -> Self {
        let budget = self.budget.map(|budget| PeerBudget { hold_ms: budget.hold_ms.min(1), ..budget });
        Self { fresh_ms: self.fresh_ms.map(|_| 0), budget, ..self.clone() }
    }
}

/// What a peer is given at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PeerBudget {
    pub requests: u32,
    pub hold_ms: u64,
}

/// Who a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerClass {
    Node,
    Client,
}

/// The last time that HeadSync found both sides equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Confirmed {
    pub seq: u64,
    pub at_ms: u64,
}

/// Why something is not synced. What it comes from stands below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub code: ReasonCode,
    /// What it is about: a space, tree, write or change, or how many of them, as text.
    pub scope: String,
    /// The evidence, for people.
    pub detail: String,
    /// How many things it stands for.
    pub count: u64,
    /// Since when, milliseconds since 1970, where that is known.
    pub since_ms: Option<u64>,
    pub attempts: u32,
    /// Milliseconds until the next attempt.
    pub next_retry_ms: Option<u64>,
    /// What a person can do.
    pub suggestion: &'static str,
    /// The first few of the things, if it stands for several; [`crate::Space::reason_items`] has all.
    pub examples: Vec<Example>,
    /// What it comes from.
    pub causes: Vec<Reason>,
}

/// One of the things that a reason stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    pub scope: String,
    pub detail: String,
    pub attempts: u32,
    pub next_retry_ms: Option<u64>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code.name(), self.scope, self.detail)
    }
}

macro_rules! reason_codes {
    ($($name:ident $text:literal $suggestion:literal),* $(,)?) => {
        /// Every way in which something can be not synced.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum ReasonCode { $(#[doc = $suggestion] $name),* }

        impl ReasonCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// What a person can do.
            #[must_use]
            pub const fn suggestion(self) -> &'static str {
                match self { $(Self::$name => $suggestion),* }
            }
        }
    };
}

reason_codes! {
    NoNode "NO_NODE" "check that the node runs and that this machine reaches it; writes are kept and go out by themselves",
    WrongNode "WRONG_NODE" "another node answers at this address: ask for the right address",
    SessionRefused "SESSION_REFUSED" "the node does not accept this device or this version: see the detail",
    NotRegistered "NOT_REGISTERED" "the node does not have the space yet; it is registered as soon as the node is reached",
    Forbidden "FORBIDDEN" "this account may not read the space: ask an admin",
    NotFresh "NOT_FRESH" "the node was not heard for a while; it is asked again by itself",
    Fetching "FETCHING" "it is fetched by itself; nothing to do",
    Behind "BEHIND" "entries of the node are on their way; nothing to do",
    Pending "PENDING" "the write goes out by itself",
    Retrying "RETRYING" "the node did not take the write yet; it is tried again by itself",
    NotDurable "NOT_DURABLE" "the node has it and has not confirmed its disk yet; nothing to do",
    Refused "REFUSED" "export, retry or dismiss the write",
    Quarantined "QUARANTINED" "the node logged a change that breaks the rules: its operator should be told",
    ContentMissing "CONTENT_MISSING" "the node logged a change and does not have its content: its operator should be told",
    Panicked "PANICKED" "this program failed over it: update it and open it again; everything else is shown, and nothing is lost",
    Missing "MISSING" "it is not in the log yet: its author has not reached the node",
    NotAMember "NOT_A_MEMBER" "this account is not in the space any more: what is here can be read and exported; ask an admin for a new invite, or forget the space",
    Leaving "LEAVING" "the leaving goes out by itself; nothing to do",
    Unreadable "UNREADABLE" "it can never be read with this member's keys",
    KeyOwed "KEY_OWED" "an admin must give this member the key again",
    Faulted "FAULTED" "the space is stopped, because the node broke the rules of its log: its operator should be told",
    Rewound "REWOUND" "the node lost entries that it had; they are brought back by themselves, as far as they can be",
    RolledBack "ROLLED_BACK" "the node lost what it had signed for: tell its operator, and keep the evidence (headwater receipt evidence); it is settled when the node has it again, or dismiss it",
    LostByNode "LOST_BY_NODE" "the node lost it and its log has gone another way: write it again if it is still wanted, and dismiss it",
    Recovering "RECOVERING" "the node was restored from a backup and takes nothing new for a while; it is tried again by itself",
    Forked "FORKED" "the node told two different stories: keep the receipts and tell the other members",
    Different "DIFFERENT" "what both sides derived from the same log differs: it is derived again by itself",
    StoreFull "STORE_FULL" "make room on this machine's disk; what is missing comes by itself",
    StoreFailed "STORE_FAILED" "look at the disk and start again; nothing acknowledged is lost",
    TimedOut "TIMED_OUT" "try again with more time",
}

impl ReasonCode {
    /// What a space is in while this is among its reasons.
    #[must_use]
    pub const fn state(self) -> SyncState {
        match self {
            Self::WrongNode
            | Self::Forbidden
            | Self::Refused
            | Self::Quarantined
            | Self::ContentMissing
            | Self::Panicked
            | Self::NotAMember
            | Self::Unreadable
            | Self::KeyOwed
            | Self::Faulted
            | Self::Rewound
            | Self::RolledBack
            | Self::LostByNode
            | Self::Forked
            | Self::StoreFull
            | Self::StoreFailed => SyncState::Attention,
            Self::NoNode | Self::SessionRefused => SyncState::Offline,
            Self::Behind | Self::Different | Self::Missing | Self::Fetching | Self::NotFresh | Self::TimedOut => {
                SyncState::CatchingUp
            }
            Self::NotRegistered
            | Self::Pending
            | Self::Retrying
            | Self::NotDurable
            | Self::Leaving
            | Self::Recovering => SyncState::Pushing,
        }
    }
}

impl Reason {
    pub(crate) fn new(code: ReasonCode, scope: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self {
            code,
            scope: scope.to_string(),
            detail: detail.into(),
            count: 1,
            since_ms: None,
            attempts: 0,
            next_retry_ms: None,
            suggestion: code.suggestion(),
            examples: Vec::new(),
            causes: Vec::new(),
        }
    }

    pub(crate) fn since(mut self, since_ms: Option<u64>) -> Self {
        self.since_ms = since_ms;
        self
    }

    /// The first reason with a code, here or among what these come from.
    #[must_use]
    pub fn find(reasons: &[Self], code: ReasonCode) -> Option<&Self> {
        reasons.iter().find_map(|r| if r.code == code { Some(r) } else { Self::find(&r.causes, code) })
    }

    /// Without what moves with the clock alone.
    fn stop_clocks(&mut self) {
        self.next_retry_ms = None;
        self.examples.iter_mut().for_each(|e| e.next_retry_ms = None);
        self.causes.iter_mut().for_each(Self::stop_clocks);
    }

    pub(crate) fn offline(space: SpaceId, connection: &Connection, now: Moment) -> Option<Self> {
        match connection {
            Connection::Online(_) => None,
            Connection::Connecting => Some(Self::new(ReasonCode::NoNode, space.short(), "connecting")),
            Connection::Offline { cause, code, attempts, retry_at, since_ms } => {
                let reason = match *code {
                    "WRONG_NODE" => ReasonCode::WrongNode,
                    code if Code::ALL.iter().any(|c| c.name() == code) => ReasonCode::SessionRefused,
                    _ => ReasonCode::NoNode,
                };
                let next_retry_ms =
                    retry_at.map(|at| u64::try_from(at.0.saturating_sub(now.0).as_millis()).unwrap_or(u64::MAX));
                let mut found = Self::new(reason, space.short(), cause.clone()).since(Some(*since_ms));
                found.attempts = *attempts;
                found.next_retry_ms = next_retry_ms;
                Some(found)
            }
        }
    }

    /// Of a change that is not shown and not settled either.
    pub(crate) fn of_verdict(tree: TreeId, change: ChangeId, verdict: VerdictRow) -> Self {
        let code = match verdict.kind {
            VerdictKind::Missing => ReasonCode::ContentMissing,
            VerdictKind::Broken => ReasonCode::Panicked,
            VerdictKind::Quarantined | VerdictKind::Void | VerdictKind::Hidden | VerdictKind::Misplaced => {
                ReasonCode::Quarantined
            }
        };
        Self::new(code, format!("{} of {}", change.short(), tree.short()), verdict.detail)
    }

    pub(crate) fn of_call(scope: impl fmt::Display, error: &CallError) -> Self {
        let code = match error {
            CallError::Offline { code: Some("WRONG_NODE"), .. } => ReasonCode::WrongNode,
            CallError::Offline { .. } | CallError::Broken(_) => ReasonCode::NoNode,
            CallError::TimedOut => ReasonCode::TimedOut,
            CallError::Refused(failure) if failure.code == Code::Forbidden => ReasonCode::Forbidden,
            CallError::Refused(failure) if failure.code == Code::SpaceUnknown => ReasonCode::NotRegistered,
            CallError::Refused(_) => ReasonCode::Refused,
            CallError::BadAnswer(_) => ReasonCode::Faulted,
        };
        Self::new(code, scope, error.to_string())
    }
}

/// What stops a space as a whole; in memory, found again on every start from the same causes.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpaceTrouble {
    /// The local store failed: nothing is kept any more.
    pub(crate) store_failed: Option<String>,
    /// What came from the node did not fit on the disk here.
    pub(crate) store_full: Option<String>,
    /// The node's log broke the rules, or a local invariant does not hold.
    pub(crate) faulted: Option<String>,
    pub(crate) rewound: Option<String>,
    pub(crate) forked: Option<String>,
    /// The node was restored and takes nothing new.
    pub(crate) recovering: Option<String>,
    pub(crate) different: Option<String>,
    pub(crate) refused: Option<(Code, String)>,
    pub(crate) key: Option<String>,
    /// When each of them was first seen, milliseconds since 1970.
    pub(crate) since: BTreeMap<ReasonCode, u64>,
}

impl SpaceTrouble {
    /// What is the matter, most important first.
    pub(crate) fn reasons(&self, space: SpaceId) -> Vec<Reason> {
        let texts = [
            (ReasonCode::StoreFailed, &self.store_failed),
            (ReasonCode::StoreFull, &self.store_full),
            (ReasonCode::Faulted, &self.faulted),
            (ReasonCode::Forked, &self.forked),
            (ReasonCode::Rewound, &self.rewound),
            (ReasonCode::Recovering, &self.recovering),
            (ReasonCode::KeyOwed, &self.key),
            (ReasonCode::Different, &self.different),
        ];
        let mut found: Vec<_> = texts.into_iter().filter_map(|(code, text)| Some((code, text.clone()?))).collect();
        found.extend(self.refused.clone().map(|(code, text)| (refusal_reason(code), text)));
        let reason = |(code, text): (ReasonCode, String)| {
            Reason::new(code, space.short(), text).since(self.since.get(&code).copied())
        };
        found.into_iter().map(reason).collect()
    }

    /// After something changed: notes since when what is the matter is.
    pub(crate) fn date(&mut self, space: SpaceId, now_ms: u64) {
        let codes: BTreeSet<ReasonCode> = self.reasons(space).iter().map(|r| r.code).collect();
        self.since.retain(|code, _| codes.contains(code));
        for code in codes {
            self.since.entry(code).or_insert(now_ms);
        }
    }
}

fn refusal_reason(code: Code) -> ReasonCode {
    if code == Code::SpaceUnknown { ReasonCode::NotRegistered } else { ReasonCode::Forbidden }
}

impl SpaceInner {
    /// How the space stands now.
    pub(crate) fn status(&self) -> Result<SpaceStatus, ReadError> {
        let fresh_ms = self.fresh_ms();
        let node_seq = self.node_seq();
        let confirmed = self.confirmed();
        self.shared.store.read(|tx| {
            let view = tx.view(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let seq = view.position().seq;
            let node = tx.node_state(self.id)?;
            let verdicts = tx.verdict_counts(self.id)?;
            let writes = tx.write_counts(self.id)?;
            let wanted = tx.sync_item_counts(self.id)?;
            let counts = tx.counts(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            // Of one moment with everything else.
            let reasons = self.reasons_in(tx)?;
            let acl = view.acl();
            Ok(SpaceStatus {
                space: self.id.to_string(),
                role: acl.role(&self.shared.account.id()).map(|role| role.to_string()),
                deleted: acl.deleted,
                state: state_of(&reasons),
                seq: seq.0,
                durable_seq: node.durable_seq.0,
                node_seq: node_seq.max(seq_on_node(seq, &node)).0,
                projection_lag: seq.0.saturating_sub(tx.projected_to(self.id)?.0),
                trees: counts.trees,
                changes: counts.changes,
                pending: writes_of(&writes, &[WriteClass::Pending, WriteClass::Retrying, WriteClass::Logged]),
                refused: writes_of(&writes, &[WriteClass::Refused]),
                quarantined: verdicts_of(&verdicts, VerdictKind::Quarantined),
                missing: verdicts_of(&verdicts, VerdictKind::Missing),
                wanted: wanted.iter().map(|(_, count, _)| count).sum(),
                failing: wanted.iter().map(|(_, _, failing)| failing).sum(),
                void: verdicts_of(&verdicts, VerdictKind::Void),
                hidden: verdicts_of(&verdicts, VerdictKind::Hidden),
                misplaced: verdicts_of(&verdicts, VerdictKind::Misplaced),
                fresh_ms,
                confirmed,
                reasons,
            })
        })
    }

    /// How one tree stands now.
    pub(crate) fn tree_status(&self, tree: TreeId) -> Result<TreeStatus, ReadError> {
        self.shared.store.read(|tx| {
            let state = tx.tree(self.id, tree)?;
            let verdicts = tx.verdicts_of_tree(self.id, tree)?;
            let count = |kind| verdicts.iter().filter(|(_, _, v)| v.kind == kind).count();
            let told = tx.peer_heads_of(self.id, tree)?.into_iter().map(|t| ToldHeads {
                peer: self.peer_name(&t.peer),
                heads: t.heads.iter().map(ToString::to_string).collect(),
                seq: t.seq.0,
                told_ms: t.told_ms,
            });
            let reasons = self.tree_reasons_in(tx, tree)?;
            Ok(TreeStatus {
                tree: tree.to_string(),
                state: state_of(&reasons),
                logged: state.is_some(),
                purged: state.as_ref().is_some_and(|s| s.purged.is_some()),
                ahead: !tx.ahead_of_tree(self.id, tree)?.is_empty(),
                heads: state.iter().flat_map(|s| &s.heads).map(ToString::to_string).collect(),
                told: told.collect(),
                pending: tx.pending_of_tree(self.id, tree)?.len(),
                quarantined: count(VerdictKind::Quarantined),
                missing: count(VerdictKind::Missing),
                void: count(VerdictKind::Void),
                hidden: count(VerdictKind::Hidden),
                misplaced: count(VerdictKind::Misplaced),
                reasons,
            })
        })
    }

    /// What is known of each peer: the node first, then clients that were compared with.
    pub(crate) fn peers(&self) -> Result<Vec<PeerStatus>, ReadError> {
        let (node_seq, fresh_ms) = (self.node_seq(), self.fresh_ms());
        let receipt_seq = self.last_receipt()?.map(|r| r.body().seq.0);
        self.shared.store.read(|tx| {
            let node = tx.node_state(self.id)?;
            let seq = tx.space(self.id)?.map_or(Seq::ZERO, |row| row.position.seq);
            let writes = tx.write_counts(self.id)?;
            let apart: BTreeMap<_, _> = tx.peer_head_counts(self.id)?.into_iter().collect();
            let known = tx.peers(self.id)?;
            let own = *self.shared.address.authority.as_bytes();
            let told = node_seq.max(seq_on_node(seq, &node));
            let confirmed = |row: &PeerRow| Confirmed { seq: row.confirmed.0, at_ms: row.confirmed_ms };
            let mut peers = vec![PeerStatus {
                peer: self.shared.address.authority.to_string(),
                kind: PeerClass::Node,
                connected: self.shared.connection.borrow().online().is_some(),
                fresh_ms,
                seq: told.0,
                durable_seq: node.durable_seq.0,
                missing: told.0.saturating_sub(seq.0),
                pending: count_of(&writes, &[WriteClass::Pending, WriteClass::Retrying, WriteClass::Logged]),
                trees_apart: apart.get(&own).copied().unwrap_or_default(),
                receipt_seq,
                confirmed: known.iter().find(|row| row.peer == own).map(confirmed),
                budget: Some(self.shared.budget_now()),
            }];
            peers.extend(known.iter().filter(|row| row.peer != own).map(|row| PeerStatus {
                peer: self.peer_name(&row.peer),
                kind: match row.kind {
                    PeerKind::Node => PeerClass::Node,
                    PeerKind::Client => PeerClass::Client,
                },
                connected: false,
                fresh_ms: None,
                seq: row.confirmed.0,
                durable_seq: 0,
                missing: 0,
                pending: 0,
                trees_apart: apart.get(&row.peer).copied().unwrap_or_default(),
                receipt_seq: None,
                confirmed: Some(confirmed(row)),
                budget: None,
            }));
            Ok(peers)
        })
    }

    /// The text form of a peer's key.
    fn peer_name(&self, peer: &[u8; 32]) -> String {
        if peer == self.shared.address.authority.as_bytes() {
            return self.shared.address.authority.to_string();
        }
        DeviceId::try_from(peer.as_slice()).map_or_else(|_| "an unknown peer".to_owned(), |id| id.to_string())
    }
}

fn count_of(writes: &[WriteCount], classes: &[WriteClass]) -> u64 {
    writes.iter().filter(|w| classes.contains(&w.class)).map(|w| w.count).sum()
}

fn writes_of(writes: &[WriteCount], classes: &[WriteClass]) -> usize {
    usize::try_from(count_of(writes, classes)).unwrap_or(usize::MAX)
}

fn verdicts_of(verdicts: &[(VerdictKind, u64)], kind: VerdictKind) -> usize {
    let count = verdicts.iter().find(|(k, _)| *k == kind).map_or(0, |(_, count)| *count);
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// What came from the node is on the node; what was only made here is not.
fn seq_on_node(seq: Seq, node: &sync_store::NodeState) -> Seq {
    match node.registration {
        Registration::Registered => seq,
        Registration::Unregistered => Seq::ZERO,
    }
}

/// The most urgent state of any reason; without one, nothing is known to be missing.
pub(crate) fn state_of(reasons: &[Reason]) -> SyncState {
    let rank = |state: &SyncState| match state {
        SyncState::Attention => 0,
        SyncState::Offline => 1,
        SyncState::CatchingUp => 2,
        SyncState::Pushing => 3,
        SyncState::UpToDate => 4,
    };
    let of = |reason: &Reason| {
        let (own, below) = (reason.code.state(), state_of(&reason.causes));
        if rank(&below) < rank(&own) { below } else { own }
    };
    reasons.iter().map(of).min_by_key(rank).unwrap_or(SyncState::UpToDate)
}

/// An age is told in whole milliseconds.
const JUST_OVER: Duration = Duration::from_millis(2);

/// A status as it changes: of a space, of one tree, or of the peers. Dropping it ends it.
pub struct StatusStream<T = SpaceStatus> {
    space: Space,
    read: Read<T>,
    timeless: fn(&T) -> T,
    since: u64,
    last: Option<T>,
    rest: Rest,
}

type Read<T> = Box<dyn Fn(&Space) -> Result<T, ReadError> + Send + Sync>;

impl<T> fmt::Debug for StatusStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusStream").field("space", &self.space).field("since", &self.since).finish_non_exhaustive()
    }
}

impl<T: PartialEq> StatusStream<T> {
    /// The next status that differs in more than what the clock moves; the first at once. `None` when the space is closed.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<T>, ReadError> {
        loop {
            let host = &self.space.inner.shared.host;
            self.rest.over(host).await;
            if self.space.inner.closed.is_cancelled() {
                return Ok(None);
            }
            let begun = host.now();
            let age = self.space.inner.fresh_ms().map(Duration::from_millis);
            let status = (self.read)(&self.space)?;
            self.rest = Rest::after(begun, host);
            let timeless = (self.timeless)(&status);
            if self.last.as_ref() != Some(&timeless) {
                self.last = Some(timeless);
                return Ok(Some(status));
            }
            // Freshness ends by itself, without an event: that is told when it is so.
            let fresh = age.map_or(limits::HEARTBEAT_INTERVAL, |age| STALE.saturating_sub(age) + JUST_OVER);
            let moved = self.space.status_changed(&mut self.since);
            let _ = tokio::time::timeout(fresh.min(limits::HEARTBEAT_INTERVAL), moved).await;
        }
    }
}

impl Space {
    /// The status of the space as it changes.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut statuses = space.status_stream();
    /// while let Some(status) = statuses.next().await? {
    ///     println!("{:?}, {} pending", status.state, status.pending);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn status_stream(&self) -> StatusStream {
        self.statuses(Self::status, SpaceStatus::timeless)
    }

    /// The status of one tree as it changes, whether the log here has it or not.
    #[must_use]
    pub fn tree_status_stream(&self, tree: TreeId) -> StatusStream<TreeStatus> {
        self.statuses(move |space| space.tree_status(tree), TreeStatus::timeless)
    }

    /// What is known of each peer's copy as it changes: the node first.
    #[must_use]
    pub fn peers_stream(&self) -> StatusStream<Vec<PeerStatus>> {
        self.statuses(Self::peers, |peers| peers.iter().map(PeerStatus::timeless).collect())
    }

    fn statuses<T>(
        &self,
        read: impl Fn(&Self) -> Result<T, ReadError> + Send + Sync + 'static,
        timeless: fn(&T) -> T,
    ) -> StatusStream<T> {
        StatusStream {
            space: self.clone(),
            read: Box::new(read),
            timeless,
            since: 0,
            last: None,
            rest: Rest::default(),
        }
    }

    /// How one tree stands now, whether the log here has it or not.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tree_status(&self, tree: TreeId) -> Result<TreeStatus, ReadError> {
        self.inner.tree_status(tree)
    }

    /// What is known of each peer's copy of the space: the node first.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn peers(&self) -> Result<Vec<PeerStatus>, ReadError> {
        self.inner.peers()
    }
}
