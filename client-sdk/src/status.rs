//! How a space stands: a view over durable rows and the connection, and the reasons for everything that is not synced.

use std::fmt;

use serde::Serialize;
use sync_core::code::Code;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::log::View as _;
use sync_core::session::Moment;
use sync_store::{ReadTx, Registration, VerdictKind, VerdictRow, WriteState};

use crate::acl::leave_key;
use crate::error::{CallError, ReadError};
use crate::link::Connection;
use crate::space::SpaceInner;

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

/// A snapshot of one space's sync.
#[derive(Debug, Clone, Serialize)]
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
    pub trees: u64,
    pub changes: u64,
    pub pending: usize,
    pub refused: usize,
    pub quarantined: usize,
    /// Changes that the node sent without their content.
    pub missing: usize,
    pub void: usize,
    pub hidden: usize,
    pub misplaced: usize,
    /// Milliseconds since the node is known to have said nothing new; `None` when not fresh.
    pub fresh_ms: Option<u64>,
    /// Milliseconds since 1970 when HeadSync last found both sides equal, and at which seq.
    pub confirmed: Option<Confirmed>,
    pub reasons: Vec<Reason>,
}

/// The last time that HeadSync found both sides equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Confirmed {
    pub seq: u64,
    pub at_ms: u64,
}

/// Why something is not synced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub code: ReasonCode,
    /// What it is about: a space, tree, write or change, as text.
    pub scope: String,
    pub detail: String,
    pub attempts: u32,
    /// Milliseconds until the next attempt.
    pub next_retry_ms: Option<u64>,
    /// What a person can do.
    pub suggestion: &'static str,
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

            const fn suggestion(self) -> &'static str {
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
    Behind "BEHIND" "entries of the node are on their way; nothing to do",
    Pending "PENDING" "the write goes out by itself",
    Retrying "RETRYING" "the node did not take the write yet; it is tried again by itself",
    NotDurable "NOT_DURABLE" "the node has it and has not confirmed its disk yet; nothing to do",
    Refused "REFUSED" "export, retry or dismiss the write",
    Quarantined "QUARANTINED" "the node logged a change that breaks the rules: its operator should be told",
    ContentMissing "CONTENT_MISSING" "the node logged a change and does not have its content: its operator should be told",
    Missing "MISSING" "it is not in the log yet: its author has not reached the node",
    NotAMember "NOT_A_MEMBER" "this account is not in the space any more: what is here can be read and exported; ask an admin for a new invite, or forget the space",
    Leaving "LEAVING" "the leaving goes out by itself; nothing to do",
    Unreadable "UNREADABLE" "it can never be read with this member's keys",
    KeyOwed "KEY_OWED" "an admin must give this member the key again",
    Faulted "FAULTED" "the space is stopped, because the node broke the rules of its log: its operator should be told",
    Rewound "REWOUND" "the node lost entries that it had: its operator should be told",
    Forked "FORKED" "the node told two different stories: keep the receipts and tell the other members",
    Different "DIFFERENT" "what both sides derived from the same log differs: it is fetched and rebuilt",
    StoreFailed "STORE_FAILED" "look at the disk and start again; nothing acknowledged is lost",
    TimedOut "TIMED_OUT" "try again with more time",
}

impl Reason {
    pub(crate) fn new(code: ReasonCode, scope: impl fmt::Display, detail: impl Into<String>) -> Self {
        let (scope, detail) = (scope.to_string(), detail.into());
        Self { code, scope, detail, attempts: 0, next_retry_ms: None, suggestion: code.suggestion() }
    }

    pub(crate) fn offline(space: SpaceId, connection: &Connection, now: Moment) -> Option<Self> {
        match connection {
            Connection::Online(_) => None,
            Connection::Connecting => Some(Self::new(ReasonCode::NoNode, space.short(), "connecting")),
            Connection::Offline { cause, code, attempts, retry_at } => {
                let reason = match *code {
                    "WRONG_NODE" => ReasonCode::WrongNode,
                    code if Code::ALL.iter().any(|c| c.name() == code) => ReasonCode::SessionRefused,
                    _ => ReasonCode::NoNode,
                };
                let next_retry_ms =
                    retry_at.map(|at| u64::try_from(at.0.saturating_sub(now.0).as_millis()).unwrap_or(u64::MAX));
                let mut found = Self::new(reason, space.short(), cause.clone());
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
    /// The node's log broke the rules, or a local invariant does not hold.
    pub(crate) faulted: Option<String>,
    pub(crate) rewound: Option<String>,
    pub(crate) forked: Option<String>,
    pub(crate) different: Option<String>,
    pub(crate) refused: Option<(Code, String)>,
    pub(crate) key: Option<String>,
}

impl SpaceInner {
    /// Every reason why this space is not synced, most important first.
    pub(crate) fn reasons(&self) -> Result<Vec<Reason>, ReadError> {
        self.shared.store.read(|tx| self.reasons_in(tx))
    }

    fn reasons_in(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = self.membership_reasons(tx)?;
        reasons.extend(self.trouble_reasons());
        if reasons.iter().any(|r| r.code == ReasonCode::NotAMember) {
            // What the node says to a stranger is no news then.
            reasons.retain(|r| r.code != ReasonCode::Forbidden);
        }
        reasons.extend(Reason::offline(self.id, &self.shared.connection.borrow(), self.shared.host.now()));
        let short = self.id.short();
        let node_seq = self.node_seq();
        let now_ms = self.shared.host.wall_ms();
        let Some(row) = tx.space(self.id)? else { return Ok(reasons) };
        let node = tx.node_state(self.id)?;
        if node.registration == Registration::Unregistered {
            reasons.push(Reason::new(ReasonCode::NotRegistered, &short, "made here, not on the node yet"));
        }
        if node_seq > row.position.seq {
            let detail = format!("here {} of {}", row.position.seq, node_seq);
            reasons.push(Reason::new(ReasonCode::Behind, &short, detail));
        }
        for write in tx.outbox(self.id)? {
            reasons.extend(write_reason(&write.state, format!("write {} of {}", write.id, write.tree.short()), now_ms));
        }
        for write in tx.refused(self.id)? {
            reasons.extend(write_reason(&write.state, format!("write {} of {}", write.id, write.tree.short()), now_ms));
        }
        for (tree, change, verdict) in tx.verdicts(self.id)? {
            match verdict.kind {
                VerdictKind::Quarantined | VerdictKind::Missing => {
                    reasons.push(Reason::of_verdict(tree, change, verdict));
                }
                VerdictKind::Void | VerdictKind::Hidden | VerdictKind::Misplaced => {}
            }
        }
        Ok(reasons)
    }

    /// A former member's space stands still, and says so.
    fn membership_reasons(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = Vec::new();
        let account = self.shared.account.id();
        let acl = tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
        let removed = acl.removed.get(&account).map(|at| format!("removed by an admin, at entry {at}"));
        let left = acl.left.get(&account).map(|at| format!("left, at entry {at}"));
        if let Some(detail) = removed.or(left) {
            reasons.push(Reason::new(ReasonCode::NotAMember, self.id.short(), detail));
        } else if tx.kv(&leave_key(self.id))?.is_some() {
            reasons.push(Reason::new(ReasonCode::Leaving, self.id.short(), "kept here, not on the node yet"));
        }
        Ok(reasons)
    }

    fn trouble_reasons(&self) -> Vec<Reason> {
        let trouble = self.trouble();
        let short = self.id.short();
        let mut found = Vec::new();
        let mut push = |code, detail: Option<String>| {
            found.extend(detail.map(|detail| Reason::new(code, &short, detail)));
        };
        push(ReasonCode::Faulted, trouble.faulted);
        push(ReasonCode::Forked, trouble.forked);
        push(ReasonCode::Rewound, trouble.rewound);
        push(ReasonCode::KeyOwed, trouble.key);
        push(ReasonCode::Different, trouble.different);
        if let Some((code, text)) = trouble.refused {
            let code = if code == Code::SpaceUnknown { ReasonCode::NotRegistered } else { ReasonCode::Forbidden };
            found.push(Reason::new(code, &short, text));
        }
        found
    }

    /// How the space stands now.
    pub(crate) fn status(&self) -> Result<SpaceStatus, ReadError> {
        let fresh_ms = self.shared.fresh_ms();
        let node_seq = self.node_seq();
        let confirmed = self.confirmed();
        self.shared.store.read(|tx| {
            let view = tx.view(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let seq = view.position().seq;
            let node = tx.node_state(self.id)?;
            let verdicts = tx.verdicts(self.id)?;
            let count = |kind| verdicts.iter().filter(|(_, _, v)| v.kind == kind).count();
            let counts = tx.counts(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let pending = tx.outbox(self.id)?.len();
            // Of one moment with everything else.
            let reasons = self.reasons_in(tx)?;
            let state = state_of(&reasons, pending);
            let acl = view.acl();
            Ok(SpaceStatus {
                space: self.id.to_string(),
                role: acl.role(&self.shared.account.id()).map(|role| role.to_string()),
                deleted: acl.deleted,
                state,
                seq: seq.0,
                durable_seq: node.durable_seq.0,
                node_seq: node_seq.max(seq_on_node(seq, &node)).0,
                trees: counts.trees,
                changes: counts.changes,
                pending,
                refused: tx.refused(self.id)?.len(),
                quarantined: count(VerdictKind::Quarantined),
                missing: count(VerdictKind::Missing),
                void: count(VerdictKind::Void),
                hidden: count(VerdictKind::Hidden),
                misplaced: count(VerdictKind::Misplaced),
                fresh_ms,
                confirmed,
                reasons,
            })
        })
    }
}

/// What came from the node is on the node; what was only made here is not.
fn seq_on_node(seq: Seq, node: &sync_store::NodeState) -> Seq {
    match node.registration {
        Registration::Registered => seq,
        Registration::Unregistered => Seq::ZERO,
    }
}

fn state_of(reasons: &[Reason], pending: usize) -> SyncState {
    let any = |codes: &[ReasonCode]| reasons.iter().any(|r| codes.contains(&r.code));
    use ReasonCode as R;
    let attention = [
        R::Faulted,
        R::Forked,
        R::Rewound,
        R::Forbidden,
        R::NotAMember,
        R::Refused,
        R::Quarantined,
        R::ContentMissing,
        R::KeyOwed,
        R::WrongNode,
    ];
    if any(&attention) {
        SyncState::Attention
    } else if any(&[R::NoNode, R::SessionRefused]) {
        SyncState::Offline
    } else if any(&[R::Behind, R::Different]) {
        SyncState::CatchingUp
    } else if pending > 0 || any(&[R::NotRegistered]) {
        SyncState::Pushing
    } else {
        SyncState::UpToDate
    }
}

fn write_reason(state: &WriteState, scope: String, now_ms: u64) -> Option<Reason> {
    match state {
        WriteState::Pending { attempts, last_refusal, next_retry_ms } => {
            let (code, detail) = match last_refusal {
                None => (ReasonCode::Pending, "waits for the node".to_owned()),
                Some(refusal) => (ReasonCode::Retrying, refusal.message.clone()),
            };
            let mut reason = Reason::new(code, scope, detail);
            reason.attempts = *attempts;
            reason.next_retry_ms = next_retry_ms.map(|at| at.saturating_sub(now_ms));
            Some(reason)
        }
        WriteState::Logged { seq } => {
            Some(Reason::new(ReasonCode::NotDurable, scope, format!("logged at {seq}, disk not confirmed")))
        }
        WriteState::Refused(refusal) => Some(Reason::new(ReasonCode::Refused, scope, refusal.message.clone())),
        WriteState::Durable { .. } | WriteState::Dismissed => None,
    }
}
