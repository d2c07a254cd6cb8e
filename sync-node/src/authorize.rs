//! Who may read what. Knowing an id is worth nothing.
//!
//! | who | reads |
//! |---|---|
//! | member | everything |
//! | account with a pending request, holder of a live invite | the ACL log |
//! | former member (removed, or left) | the log and its ACL, up to and including what ended its membership |
//! | account whose request was decided, whatever became of the invite | the ACL log, up to that |
//! | everybody else | nothing |
//!
//! A former member gets its part of the log by HeadUpdates alone, where its replica grows: Fetch, HeadSync and Certify speak of
//! the present, and are for members.

use bytes::Bytes;
use sync_core::acl::{self, AclReject, AclState, RequestStatus};
use sync_core::code::Code;
use sync_core::ids::{AccountId, InviteId, Seq};
use sync_core::log::{Refusal, Reject};
use sync_proto::status::Failure;
use sync_proto::{WireError, id, v1};

use crate::failure::CallError;
use crate::session::Session;

/// How much of an ACL log somebody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AclAccess {
    Whole,
    /// Up to and including this entry.
    UpTo(Seq),
}

impl AclAccess {
    /// The last entry of a log that ends at `end` which may be shown.
    pub(crate) fn clip(self, end: Seq) -> Seq {
        match self {
            Self::Whole => end,
            Self::UpTo(last) => end.min(last),
        }
    }
}

/// An invite with its key's word for this session, as received.
#[derive(Debug, Clone)]
pub(crate) struct InviteTicket {
    invite: InviteId,
    signature: Bytes,
}

impl InviteTicket {
    pub(crate) fn read(proof: Option<&v1::InviteProof>) -> Result<Option<Self>, WireError> {
        let read =
            |proof: &v1::InviteProof| Ok(Self { invite: id(&proof.invite)?, signature: proof.signature.clone() });
        proof.map(read).transpose()
    }
}

/// A member, or `FORBIDDEN`.
pub(crate) fn require_member(acl: &AclState, session: &Session) -> Result<(), CallError> {
    if acl.members.contains_key(&session.account()) { Ok(()) } else { Err(CallError::forbidden(&acl.space)) }
}

/// Where the log ends for a subscriber: nowhere for a member; for one who no longer is, with the entry that ended its
/// membership. Until there the log was its own to read.
///
/// # Errors
/// `FORBIDDEN` for those who never were members.
pub(crate) fn log_access(acl: &AclState, session: &Session) -> Result<Option<Seq>, CallError> {
    let Err(forbidden) = require_member(acl, session) else { return Ok(None) };
    acl.membership_ended(&session.account()).map(Some).ok_or(forbidden)
}

/// What of the ACL log a caller may read.
///
/// # Errors
/// `FORBIDDEN`; with a ticket, why it is not good (any more), so that a joiner learns the reason.
pub(crate) fn acl_access(
    acl: &AclState,
    session: &Session,
    ticket: Option<&InviteTicket>,
    now_ms: u64,
) -> Result<AclAccess, CallError> {
    let account = session.account();
    if acl.members.contains_key(&account) || has_pending_request(acl, &account) {
        return Ok(AclAccess::Whole);
    }
    let ended = acl.membership_ended(&account);
    let decision = last_decision(acl, &account);
    match ticket.map(|ticket| check_ticket(acl, session, ticket, now_ms)) {
        Some(Ok(())) => Ok(AclAccess::Whole),
        // The decision can be read although the invite did not outlive it. One from before the end was read as a member.
        Some(Err(why)) => decision.filter(|at| Some(*at) > ended).map(AclAccess::UpTo).ok_or(why),
        None => ended.max(decision).map(AclAccess::UpTo).ok_or_else(|| CallError::forbidden(&acl.space)),
    }
}

/// A removal ends what was asked before it.
fn has_pending_request(acl: &AclState, account: &AccountId) -> bool {
    let removed = acl.removed.get(account).copied();
    acl.pending_request(account).is_some_and(|(_, request)| Some(request.at) > removed)
}

/// Where the last of an account's requests was decided.
fn last_decision(acl: &AclState, account: &AccountId) -> Option<Seq> {
    let decided = |status: &RequestStatus| match status {
        RequestStatus::Pending => None,
        RequestStatus::Accepted { at, .. } | RequestStatus::Declined { at } | RequestStatus::Cancelled { at } => {
            Some(*at)
        }
    };
    acl.requests.values().filter(|r| r.claim.account == *account).filter_map(|r| decided(&r.status)).max()
}

fn check_ticket(state: &AclState, session: &Session, ticket: &InviteTicket, now_ms: u64) -> Result<(), CallError> {
    let (account, invite) = (session.account(), ticket.invite);
    let nonces = session.nonces().joined();
    // First the proof: who does not hold the invite's secret learns nothing about it.
    acl::verify_read_proof(invite, &nonces, state.space, account, &ticket.signature).map_err(Reject::Acl)?;
    let found = state.live_invite(&invite).map_err(Reject::Acl)?;
    if found.content.max_uses.is_some_and(|max| found.uses >= max) {
        return Err(Reject::Acl(AclReject::InviteUsedUp { invite }).into());
    }
    if state.removed.get(&account).is_some_and(|removed| found.created <= *removed) {
        return Err(Reject::Acl(AclReject::InviteBeforeRemoval { invite, account }).into());
    }
    match found.content.expires_ms {
        Some(expires_ms) if expires_ms <= now_ms => Err(Refusal::InviteExpired { invite, expires_ms }.into()),
        Some(_) | None => Ok(()),
    }
}

/// What a caller who may not read the whole ACL is told: what is wrong, not where the log stands.
pub(crate) fn without_positions(error: CallError) -> CallError {
    match error {
        CallError::Failed(failure) if failure.code == Code::AclConflict => {
            CallError::new(Code::AclConflict, "the ACL has moved: read it and try again")
        }
        CallError::Failed(failure) => {
            CallError::Failed(Box::new(Failure { log_seq: Seq::ZERO, acl_head: None, ..*failure }))
        }
        CallError::Store(_) | CallError::HungUp => error,
    }
}
