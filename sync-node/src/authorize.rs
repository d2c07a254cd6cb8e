//! Who may read what. Knowing an id is worth nothing.
//!
//! | who | reads |
//! |---|---|
//! | member | everything |
//! | account with a pending request, holder of a live invite | the ACL log |
//! | account whose request was decided (whatever became of the invite), account that was removed | the ACL log, up to that |
//! | everybody else | nothing |

use bytes::Bytes;
use sync_core::acl::{AclReject, AclState, Request, RequestStatus};
use sync_core::code::Code;
use sync_core::ids::{AccountId, InviteId, Seq};
use sync_core::log::{Refusal, Reject};
use sync_core::{acl, pb};
use sync_proto::status::Failure;
use sync_proto::{WireError, id, v1};

use crate::clock;
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

/// What of the ACL log a caller may read.
///
/// # Errors
/// `FORBIDDEN`; with a ticket, why it is not good (any more), so that a joiner learns the reason.
pub(crate) fn acl_access(
    acl: &AclState,
    session: &Session,
    ticket: Option<&InviteTicket>,
) -> Result<AclAccess, CallError> {
    let account = session.account();
    if acl.members.contains_key(&account) || has_pending_request(acl, &account) {
        return Ok(AclAccess::Whole);
    }
    let removed = acl.removed.get(&account).copied();
    let decision = last_decision(acl, &account);
    match ticket.map(|ticket| check_ticket(acl, session, ticket)) {
        Some(Ok(())) => Ok(AclAccess::Whole),
        // The decision can be read although the invite did not outlive it. One from before a removal was read as a member.
        Some(Err(why)) => decision.filter(|at| Some(*at) > removed).map(AclAccess::UpTo).ok_or(why),
        None => removed.max(decision).map(AclAccess::UpTo).ok_or_else(|| CallError::forbidden(&acl.space)),
    }
}

/// A removal ends what was asked before it.
fn has_pending_request(acl: &AclState, account: &AccountId) -> bool {
    let removed = acl.removed.get(account).copied();
    let counts =
        |r: &Request| r.claim.account == *account && r.status == RequestStatus::Pending && Some(r.at) > removed;
    acl.requests.values().any(counts)
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

fn check_ticket(state: &AclState, session: &Session, ticket: &InviteTicket) -> Result<(), CallError> {
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
        Some(expires_ms) if expires_ms <= clock::now_ms() => Err(Refusal::InviteExpired { invite, expires_ms }.into()),
        Some(_) | None => Ok(()),
    }
}

/// True if the record, which stands in the log, is the one by which `account` lost its membership.
pub(crate) fn ends_membership(body: &pb::AclRecord, account: &AccountId) -> bool {
    use pb::acl_content::Content;
    let by_author = body.author.as_ref() == account.as_bytes();
    body.contents.iter().filter_map(|c| c.content.as_ref()).any(|content| match content {
        Content::Leave(_) => by_author,
        Content::RemoveMembers(removal) => removal.accounts.iter().any(|a| a.as_ref() == account.as_bytes()),
        Content::SetHome(_)
        | Content::CreateInvite(_)
        | Content::RevokeInvite(_)
        | Content::JoinByInvite(_)
        | Content::RequestJoin(_)
        | Content::CancelJoin(_)
        | Content::AcceptJoin(_)
        | Content::DeclineJoin(_)
        | Content::AddMembers(_)
        | Content::ChangeRole(_)
        | Content::RotateKey(_)
        | Content::Reseal(_)
        | Content::SetOptions(_)
        | Content::TransferOwnership(_)
        | Content::DeleteSpace(_) => false,
    })
}

/// What a caller who may not read the ACL is told: what is wrong, not where the log stands.
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
