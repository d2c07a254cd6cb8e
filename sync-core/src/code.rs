//! One code for every way a record or a call can fail: the same on the wire, in the SDK, in `--json` and in the docs.
//!
//! The enums that name the operands ([`Reject`], [`AclReject`], [`Refusal`], [`VerifyError`]) are mapped here, exhaustively;
//! nobody ever matches on a text.

use crate::acl::AclReject;
use crate::log::{Refusal, Reject};
use crate::record::VerifyError;

macro_rules! codes {
    ($($name:ident = $number:literal $text:literal),* $(,)?) => {
        /// What went wrong, without its operands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`")] $name = $number,)*
        }

        impl Code {
            /// Every code, in wire order.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable name, as in the protocol and in `--json`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code with this wire number.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    Malformed = 1 "MALFORMED",
    NonCanonical = 2 "NON_CANONICAL",
    TooLarge = 3 "TOO_LARGE",
    UnknownKind = 4 "UNKNOWN_KIND",
    UnknownVersion = 5 "UNKNOWN_VERSION",
    BadKey = 6 "BAD_KEY",
    BadSignature = 7 "BAD_SIGNATURE",
    BadPayload = 8 "BAD_PAYLOAD",
    PayloadMissing = 9 "PAYLOAD_MISSING",
    WrongSpace = 20 "WRONG_SPACE",
    MissingRoot = 21 "MISSING_ROOT",
    MissingParent = 22 "MISSING_PARENT",
    UnknownAclHead = 23 "UNKNOWN_ACL_HEAD",
    StaleAclHead = 24 "STALE_ACL_HEAD",
    StaleEpoch = 25 "STALE_EPOCH",
    NotAWriter = 26 "NOT_A_WRITER",
    WriteRule = 27 "WRITE_RULE",
    OnceTaken = 28 "ONCE_TAKEN",
    TreePurged = 29 "TREE_PURGED",
    HeadsFull = 30 "HEADS_FULL",
    BadParents = 31 "BAD_PARENTS",
    UnsupportedChangeKind = 32 "UNSUPPORTED_CHANGE_KIND",
    SpaceDeleted = 33 "SPACE_DELETED",
    AclConflict = 50 "ACL_CONFLICT",
    NotAMember = 51 "NOT_A_MEMBER",
    RoleTooLow = 52 "ROLE_TOO_LOW",
    AlreadyMember = 53 "ALREADY_MEMBER",
    InviteUnknown = 54 "INVITE_UNKNOWN",
    InviteRevoked = 55 "INVITE_REVOKED",
    InviteUsedUp = 56 "INVITE_USED_UP",
    InviteDead = 57 "INVITE_DEAD",
    BadInviteProof = 58 "BAD_INVITE_PROOF",
    BadRole = 59 "BAD_ROLE",
    RequestUnknown = 60 "REQUEST_UNKNOWN",
    RequestExists = 61 "REQUEST_EXISTS",
    BadFrontier = 62 "BAD_FRONTIER",
    BadSeals = 63 "BAD_SEALS",
    BadGenesis = 64 "BAD_GENESIS",
    LimitReached = 65 "LIMIT_REACHED",
    InviteModeMismatch = 66 "INVITE_MODE_MISMATCH",
    WrongIndex = 67 "WRONG_INDEX",
    OwnerCannotLeave = 68 "OWNER_CANNOT_LEAVE",
    InviteExpired = 80 "INVITE_EXPIRED",
    RequiresMissing = 81 "REQUIRES_MISSING",
    NotHome = 82 "NOT_HOME",
    Quota = 83 "QUOTA",
    SpaceCreationRefused = 84 "SPACE_CREATION_REFUSED",
    Recovering = 85 "RECOVERING",
    SpaceUnknown = 100 "SPACE_UNKNOWN",
    Forbidden = 101 "FORBIDDEN",
    SessionExpired = 102 "SESSION_EXPIRED",
    SessionRefused = 103 "SESSION_REFUSED",
    VersionMismatch = 104 "VERSION_MISMATCH",
    Overloaded = 105 "OVERLOADED",
    StoreFailed = 106 "STORE_FAILED",
    StoreFull = 107 "STORE_FULL",
    ShuttingDown = 108 "SHUTTING_DOWN",
    DeviceRevoked = 109 "DEVICE_REVOKED",
    LogDiverged = 112 "LOG_DIVERGED",
}

impl Code {
    /// The wire number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose affair a code is, and so what it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The bytes are wrong in themselves: the same everywhere, for good.
    Bytes,
    /// A rule of [`crate::log::valid`]: the same for everyone at that position.
    Rule,
    /// The node's own conditions: says nothing about validity, may change.
    Admission,
    /// The call or the session, not the record.
    Call,
}

/// What the author of a pending write does when the node does not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Make the change anew on the present heads, epoch and ACL, and push that.
    Rebuild,
    /// Give up: the write becomes a refused row that the app can list, export, retry or dismiss.
    Refuse,
    /// Keep it pending and try again later.
    Retry,
}

impl Code {
    /// Whose affair it is.
    #[must_use]
    pub const fn class(self) -> Class {
        match self.number() {
            ..20 => Class::Bytes,
            20..80 => Class::Rule,
            80..100 => Class::Admission,
            _ => Class::Call,
        }
    }

    /// True if the same call may succeed a moment later: the one list of them.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::SessionExpired | Self::Overloaded | Self::ShuttingDown | Self::StoreFailed | Self::StoreFull
        )
    }

    /// What the author of a pending write does about it.
    #[must_use]
    pub const fn next_step(self) -> NextStep {
        match self {
            Self::StaleEpoch | Self::StaleAclHead | Self::HeadsFull => NextStep::Rebuild,
            // The node's log is behind ours; what it lacks is on its way to it.
            Self::MissingRoot | Self::MissingParent | Self::UnknownAclHead | Self::PayloadMissing => NextStep::Retry,
            // The bytes are wrong, or a rule is broken: so it is everywhere, and for good.
            Self::Malformed
            | Self::NonCanonical
            | Self::TooLarge
            | Self::UnknownKind
            | Self::UnknownVersion
            | Self::BadKey
            | Self::BadSignature
            | Self::BadPayload
            | Self::WrongSpace
            | Self::NotAWriter
            | Self::WriteRule
            | Self::OnceTaken
            | Self::TreePurged
            | Self::BadParents
            | Self::UnsupportedChangeKind
            | Self::SpaceDeleted
            | Self::AclConflict
            | Self::NotAMember
            | Self::RoleTooLow
            | Self::AlreadyMember
            | Self::InviteUnknown
            | Self::InviteRevoked
            | Self::InviteUsedUp
            | Self::InviteDead
            | Self::BadInviteProof
            | Self::BadRole
            | Self::RequestUnknown
            | Self::RequestExists
            | Self::BadFrontier
            | Self::BadSeals
            | Self::BadGenesis
            | Self::LimitReached
            | Self::InviteModeMismatch
            | Self::WrongIndex
            | Self::OwnerCannotLeave => NextStep::Refuse,
            // The node's own conditions, or the call: they may change.
            Self::InviteExpired
            | Self::RequiresMissing
            | Self::NotHome
            | Self::Quota
            | Self::SpaceCreationRefused
            | Self::Recovering
            | Self::SpaceUnknown
            | Self::Forbidden
            | Self::SessionExpired
            | Self::SessionRefused
            | Self::VersionMismatch
            | Self::Overloaded
            | Self::StoreFailed
            | Self::StoreFull
            | Self::ShuttingDown
            | Self::DeviceRevoked
            | Self::LogDiverged => NextStep::Retry,
        }
    }
}

impl From<&VerifyError> for Code {
    fn from(error: &VerifyError) -> Self {
        match error {
            VerifyError::UnknownKind(_) | VerifyError::WrongKind { .. } => Self::UnknownKind,
            VerifyError::UnknownVersion(_) => Self::UnknownVersion,
            VerifyError::TooLarge { .. } => Self::TooLarge,
            VerifyError::Undecodable(_) | VerifyError::Field { .. } => Self::Malformed,
            VerifyError::NonCanonical => Self::NonCanonical,
            VerifyError::Id(crate::ids::IdError::WeakKey { .. }) => Self::BadKey,
            VerifyError::Id(
                crate::ids::IdError::Length { .. }
                | crate::ids::IdError::Prefix { .. }
                | crate::ids::IdError::Encoding { .. },
            ) => Self::Malformed,
            VerifyError::BadSignature => Self::BadSignature,
            VerifyError::BadPayload => Self::BadPayload,
        }
    }
}

impl From<&Reject> for Code {
    fn from(reject: &Reject) -> Self {
        match reject {
            Reject::Acl(reject) => reject.into(),
            Reject::BadGenesis => Self::BadGenesis,
            Reject::WrongSpace { .. } => Self::WrongSpace,
            Reject::NotAnEntry => Self::UnknownKind,
            Reject::RootMismatch { .. } | Reject::MissingRoot { .. } => Self::MissingRoot,
            Reject::MissingParent { .. } => Self::MissingParent,
            Reject::BadParents { .. } => Self::BadParents,
            Reject::UnknownAclHead { .. } => Self::UnknownAclHead,
            Reject::StaleAclHead { .. } => Self::StaleAclHead,
            Reject::StaleEpoch { .. } => Self::StaleEpoch,
            Reject::NotAWriter { role: None, .. } => Self::NotAMember,
            Reject::NotAWriter { role: Some(_), .. } => Self::NotAWriter,
            Reject::WriteRule { .. } => Self::WriteRule,
            Reject::OnceTaken { .. } => Self::OnceTaken,
            Reject::TreePurged { .. } => Self::TreePurged,
            Reject::HeadsFull { .. } => Self::HeadsFull,
            Reject::UnsupportedChangeKind => Self::UnsupportedChangeKind,
            Reject::SpaceDeleted => Self::SpaceDeleted,
            Reject::BadFrontier { .. } => Self::BadFrontier,
        }
    }
}

impl From<&AclReject> for Code {
    fn from(reject: &AclReject) -> Self {
        match reject {
            AclReject::WrongSpace { .. } => Self::WrongSpace,
            AclReject::Conflict { .. } => Self::AclConflict,
            AclReject::WrongIndex { .. } => Self::WrongIndex,
            AclReject::SpaceDeleted => Self::SpaceDeleted,
            AclReject::BadGenesis => Self::BadGenesis,
            AclReject::NotAMember { .. } => Self::NotAMember,
            AclReject::RoleTooLow { .. } => Self::RoleTooLow,
            AclReject::BadRole { .. } => Self::BadRole,
            AclReject::AlreadyMember { .. } => Self::AlreadyMember,
            AclReject::InviteUnknown { .. } => Self::InviteUnknown,
            AclReject::InviteRevoked { .. } => Self::InviteRevoked,
            AclReject::InviteDead { .. } | AclReject::InviteBeforeRemoval { .. } => Self::InviteDead,
            AclReject::InviteUsedUp { .. } => Self::InviteUsedUp,
            AclReject::InviteModeMismatch { .. } => Self::InviteModeMismatch,
            AclReject::BadInviteProof | AclReject::NotTheJoiner => Self::BadInviteProof,
            AclReject::RequestUnknown { .. } => Self::RequestUnknown,
            AclReject::RequestExists { .. } => Self::RequestExists,
            AclReject::BadSeals(_) | AclReject::BadEpoch { .. } => Self::BadSeals,
            AclReject::OwnerCannotLeave => Self::OwnerCannotLeave,
            AclReject::LimitReached { .. } => Self::LimitReached,
        }
    }
}

impl From<&Refusal> for Code {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::InviteExpired { .. } => Self::InviteExpired,
            Refusal::RequiresMissing { .. } => Self::RequiresMissing,
            Refusal::NotHome { .. } => Self::NotHome,
            Refusal::PayloadMissing => Self::PayloadMissing,
            Refusal::Recovering { .. } => Self::Recovering,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_about_the_call_and_never_about_the_record() {
        let passing: Vec<_> = Code::ALL.iter().filter(|c| c.is_transient()).map(|c| c.name()).collect();
        let expected = ["SESSION_EXPIRED", "OVERLOADED", "STORE_FAILED", "STORE_FULL", "SHUTTING_DOWN"];
        assert_eq!(passing, expected);
        for code in Code::ALL.iter().filter(|c| c.is_transient()) {
            assert_eq!((code.class(), code.next_step()), (Class::Call, NextStep::Retry), "{code}");
        }
    }

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
