//! Failures on the wire: one typed [`Failure`], as data among other items or as the detail of a gRPC status.
//!
//! The table from code to gRPC status is here and nowhere else. A client reads the detail, never the text.

use bytes::Bytes;
use prost::Message as _;
use sync_core::acl::AclReject;
use sync_core::code::Code;
use sync_core::ids::{AclId, Seq};
use sync_core::limits;
use sync_core::log::{Refusal, Reject};
use sync_core::pb::SignedRecord;
use sync_core::record::VerifyError;

use crate::WireError;
use crate::v1::ErrorDetail;

/// What went wrong, as it crosses the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    /// For people.
    pub message: String,
    /// The node's position at the time of the verdict; 0 where there is none.
    pub log_seq: Seq,
    /// Id of what the code is about; empty where there is none.
    pub subject: Bytes,
    /// Milliseconds; 0: no hint.
    pub retry_after_ms: u64,
    /// With [`Code::AclConflict`]: the head to rebase onto.
    pub acl_head: Option<AclId>,
    /// With [`Code::DeviceRevoked`], after a proof: the device list that counts.
    pub device_list: Option<Box<SignedRecord>>,
}

impl Failure {
    /// A failure with a text and nothing else.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            log_seq: Seq::ZERO,
            subject: Bytes::new(),
            retry_after_ms: 0,
            acl_head: None,
            device_list: None,
        }
    }

    /// The same, with the position at which it was judged.
    #[must_use]
    pub fn at(self, log_seq: Seq) -> Self {
        Self { log_seq, ..self }
    }

    /// The same, with what it is about.
    #[must_use]
    pub fn about(self, subject: impl Into<Bytes>) -> Self {
        Self { subject: subject.into(), ..self }
    }

    /// The same, with a hint when to come back, milliseconds.
    #[must_use]
    pub fn retry_after(self, retry_after_ms: u64) -> Self {
        Self { retry_after_ms, ..self }
    }

    /// Reads the typed detail of a status. A status without one came from the transport, not from a node: `None`.
    #[must_use]
    pub fn from_status(status: &tonic::Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        ErrorDetail::decode(status.details()).ok()?.try_into().ok()
    }
}

impl TryFrom<ErrorDetail> for Failure {
    type Error = WireError;
    fn try_from(detail: ErrorDetail) -> Result<Self, WireError> {
        Ok(Self {
            code: Code::from_number(detail.code).ok_or(WireError::Missing("a known error code"))?,
            message: detail.message,
            log_seq: Seq(detail.log_seq),
            subject: detail.subject,
            retry_after_ms: detail.retry_after_ms,
            acl_head: AclId::try_from(detail.acl_head.as_ref()).ok(),
            device_list: detail.device_list.map(Box::new),
        })
    }
}

impl From<&Failure> for ErrorDetail {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.number(),
            message: failure.message.clone(),
            log_seq: failure.log_seq.0,
            subject: failure.subject.clone(),
            retry_after_ms: failure.retry_after_ms,
            acl_head: failure.acl_head.map_or_else(Bytes::new, |head| head.to_bytes()),
            device_list: failure.device_list.as_deref().cloned(),
        }
    }
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let detail = ErrorDetail::from(&failure).encode_to_vec();
        Self::with_details(grpc_code(failure.code), failure.message, detail.into())
    }
}

impl From<&Reject> for Failure {
    fn from(reject: &Reject) -> Self {
        let acl_head = match reject {
            Reject::Acl(AclReject::Conflict { head, .. }) => Some(*head),
            Reject::Acl(_)
            | Reject::BadGenesis
            | Reject::WrongSpace { .. }
            | Reject::NotAnEntry
            | Reject::RootMismatch { .. }
            | Reject::MissingRoot { .. }
            | Reject::MissingParent { .. }
            | Reject::BadParents { .. }
            | Reject::UnknownAclHead { .. }
            | Reject::StaleAclHead { .. }
            | Reject::StaleEpoch { .. }
            | Reject::NotAWriter { .. }
            | Reject::WriteRule { .. }
            | Reject::OnceTaken { .. }
            | Reject::TreePurged { .. }
            | Reject::HeadsFull { .. }
            | Reject::UnsupportedChangeKind
            | Reject::SpaceDeleted
            | Reject::BadFrontier { .. } => None,
        };
        Self { acl_head, ..Self::new(reject.into(), reject.to_string()) }
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let failure = Self::new(refusal.into(), refusal.to_string());
        match refusal {
            // Asked again before the end: the operator may end it earlier.
            Refusal::Recovering { left } => {
                let wait = (*left).min(limits::RECOVERY_RETRY);
                failure.retry_after(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
            }
            Refusal::InviteExpired { .. }
            | Refusal::RequiresMissing { .. }
            | Refusal::NotHome { .. }
            | Refusal::PayloadMissing => failure,
        }
    }
}

impl From<&VerifyError> for Failure {
    fn from(error: &VerifyError) -> Self {
        Self::new(error.into(), error.to_string())
    }
}

impl From<&WireError> for Failure {
    fn from(error: &WireError) -> Self {
        Self::new(error.into(), error.to_string())
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Failure::from(&error).into()
    }
}

/// The one table from code to gRPC status.
#[must_use]
pub const fn grpc_code(code: Code) -> tonic::Code {
    use tonic::Code as Grpc;
    match code {
        Code::Malformed
        | Code::NonCanonical
        | Code::TooLarge
        | Code::UnknownKind
        | Code::UnknownVersion
        | Code::BadKey
        | Code::BadSignature
        | Code::BadPayload
        | Code::PayloadMissing
        | Code::WrongSpace
        | Code::BadParents
        | Code::UnsupportedChangeKind
        | Code::BadGenesis
        | Code::BadInviteProof
        | Code::BadRole
        | Code::BadFrontier
        | Code::BadSeals
        | Code::InviteModeMismatch
        | Code::WrongIndex => Grpc::InvalidArgument,
        Code::MissingRoot
        | Code::MissingParent
        | Code::UnknownAclHead
        | Code::StaleAclHead
        | Code::StaleEpoch
        | Code::OnceTaken
        | Code::TreePurged
        | Code::HeadsFull
        | Code::SpaceDeleted
        | Code::InviteRevoked
        | Code::InviteUsedUp
        | Code::InviteDead
        | Code::InviteExpired
        | Code::RequiresMissing
        | Code::NotHome
        | Code::OwnerCannotLeave
        | Code::LogDiverged
        | Code::VersionMismatch => Grpc::FailedPrecondition,
        Code::NotAWriter
        | Code::WriteRule
        | Code::NotAMember
        | Code::RoleTooLow
        | Code::SpaceCreationRefused
        | Code::Forbidden => Grpc::PermissionDenied,
        Code::AclConflict => Grpc::Aborted,
        Code::AlreadyMember | Code::RequestExists => Grpc::AlreadyExists,
        Code::InviteUnknown | Code::RequestUnknown | Code::SpaceUnknown => Grpc::NotFound,
        Code::LimitReached | Code::Quota | Code::Overloaded | Code::StoreFull => Grpc::ResourceExhausted,
        Code::SessionExpired | Code::SessionRefused | Code::DeviceRevoked => Grpc::Unauthenticated,
        Code::StoreFailed => Grpc::Internal,
        Code::ShuttingDown | Code::Recovering => Grpc::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let failure = Failure::new(*code, "because").at(Seq(7)).about(vec![1, 2]).retry_after(9);
            let status = tonic::Status::from(failure.clone());
            assert_eq!(Failure::from_status(&status), Some(failure));
        }
        assert_eq!(Failure::from_status(&tonic::Status::unavailable("no route")), None);
    }
}
