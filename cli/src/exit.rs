//! What the exit codes mean, and the one table from failures to them.
//!
//! Every enum of the SDK is matched exhaustively: a new way to fail does not compile until it has a code here.

use std::process::ExitCode;

use client_sdk::local::ServeError;
use client_sdk::{
    AclError, CallError, Code, DeviceError, JoinError, NotSynced, NotSyncedCode, OpenError, ReadError, RecoverError,
    WriteError,
};

/// The exit codes, for people.
pub(crate) const HELP: &str = "Exit codes:
   0  done
   1  refused by the rules, or a comparison found a difference; the error has a code
   2  used wrongly
   3  there is no such space, member, invite, request, device, object, tree, write or file
   4  not synced in time, or the node was not reached, where waiting for it was asked for
   5  damaged or forged input: a token, a receipt, words, records, or what the node said
   6  the data directory has no account, is locked, or is in use
  70  an internal error, or the local store failed";

/// An exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Refused = 1,
    Usage = 2,
    NotFound = 3,
    NotSynced = 4,
    Damaged = 5,
    Unavailable = 6,
    Internal = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What the rules or the node decided.
pub(crate) fn of_code(code: Code) -> Exit {
    match code {
        Code::Malformed
        | Code::NonCanonical
        | Code::UnknownKind
        | Code::UnknownVersion
        | Code::BadKey
        | Code::BadSignature
        | Code::BadPayload
        | Code::PayloadMissing => Exit::Damaged,
        Code::TooLarge
        | Code::WrongSpace
        | Code::MissingRoot
        | Code::MissingParent
        | Code::UnknownAclHead
        | Code::StaleAclHead
        | Code::StaleEpoch
        | Code::NotAWriter
        | Code::WriteRule
        | Code::OnceTaken
        | Code::TreePurged
        | Code::HeadsFull
        | Code::BadParents
        | Code::UnsupportedChangeKind
        | Code::SpaceDeleted
        | Code::NotAMember
        | Code::RoleTooLow
        | Code::AlreadyMember
        | Code::InviteUnknown
        | Code::InviteRevoked
        | Code::InviteUsedUp
        | Code::InviteDead
        | Code::BadInviteProof
        | Code::BadRole
        | Code::RequestExists
        | Code::BadFrontier
        | Code::BadSeals
        | Code::BadGenesis
        | Code::LimitReached
        | Code::InviteModeMismatch
        | Code::WrongIndex
        | Code::OwnerCannotLeave
        | Code::InviteExpired
        | Code::RequiresMissing
        | Code::NotHome
        | Code::Quota
        | Code::SpaceCreationRefused
        | Code::Forbidden
        | Code::SessionRefused
        | Code::VersionMismatch
        | Code::DeviceRevoked => Exit::Refused,
        Code::RequestUnknown | Code::SpaceUnknown => Exit::NotFound,
        Code::AclConflict
        | Code::SessionExpired
        | Code::Overloaded
        | Code::StoreFailed
        | Code::StoreFull
        | Code::Recovering
        | Code::LogDiverged
        | Code::ShuttingDown => Exit::NotSynced,
    }
}

pub(crate) fn of_open(error: &OpenError) -> Exit {
    match error {
        OpenError::NoAccount { .. }
        | OpenError::AccountExists { .. }
        | OpenError::BadKeyFile { .. }
        | OpenError::LooseMode { .. }
        | OpenError::Vault(_) => Exit::Unavailable,
        OpenError::Mnemonic(_) | OpenError::Damaged { .. } => Exit::Damaged,
        OpenError::Address(_) => Exit::Usage,
        OpenError::Store(_) if error.code() == "IN_USE" => Exit::Unavailable,
        OpenError::Store(_) | OpenError::Storage(_) | OpenError::Io { .. } => Exit::Internal,
    }
}

pub(crate) fn of_serve(error: &ServeError) -> Exit {
    match error {
        ServeError::InUse { .. }
        | ServeError::NotASocket { .. }
        | ServeError::SocketPath { .. }
        | ServeError::NoClient => Exit::Unavailable,
        ServeError::Socket { .. } | ServeError::Port { .. } | ServeError::File { .. } | ServeError::Reflection(_) => {
            Exit::Internal
        }
    }
}

pub(crate) fn of_read(error: &ReadError) -> Exit {
    match error {
        ReadError::UnknownSpace(_) | ReadError::UnknownWait { .. } => Exit::NotFound,
        ReadError::NoKeys => Exit::NotSynced,
        ReadError::Store(_)
        | ReadError::Row(_)
        | ReadError::State(_)
        | ReadError::Panicked { .. }
        | ReadError::Closed => Exit::Internal,
    }
}

pub(crate) fn of_write(error: &WriteError) -> Exit {
    match error {
        WriteError::Rejected(reject) => of_code(Code::from(reject)),
        WriteError::BadName { .. }
        | WriteError::NotAnObject
        | WriteError::Canonical(_)
        | WriteError::Ops(_)
        | WriteError::ObjectTree { .. }
        | WriteError::TooManyParents { .. }
        | WriteError::Record(_)
        | WriteError::Content(_) => Exit::Usage,
        WriteError::NoSuchObject { .. } | WriteError::NotRefused { .. } | WriteError::UnknownParent(_) => {
            Exit::NotFound
        }
        WriteError::Read(error) => of_read(error),
        WriteError::TooManyWaits { .. } => Exit::Refused,
        WriteError::StoreFull | WriteError::Overloaded | WriteError::OutcomeUnknown(_) | WriteError::Closed => {
            Exit::Internal
        }
    }
}

pub(crate) fn of_call(error: &CallError) -> Exit {
    match error {
        CallError::Offline { .. } | CallError::TimedOut | CallError::Broken(_) => Exit::NotSynced,
        CallError::Refused(failure) => of_code(failure.code),
        CallError::BadAnswer(_) => Exit::Damaged,
    }
}

pub(crate) fn of_acl(error: &AclError) -> Exit {
    match error {
        AclError::Rejected(reject) => of_code(Code::from(reject)),
        AclError::Call(error) => of_call(error),
        AclError::Read(error) => of_read(error),
        AclError::Contended { .. } => Exit::NotSynced,
        AclError::Seal(_) | AclError::Record(_) => Exit::Internal,
        AclError::NoSpaces => Exit::Usage,
        AclError::StillAMember { .. } | AclError::CannotShow { .. } => Exit::Refused,
        AclError::NoRequest { .. } | AclError::NothingToPromise { .. } => Exit::NotFound,
        AclError::NotDurable(error) => of_not_synced(error),
        AclError::Write(error) => of_write(error),
    }
}

pub(crate) fn of_join(error: &JoinError) -> Exit {
    match error {
        JoinError::Token(_) | JoinError::BadReceipt(_) | JoinError::NodeFault(_) | JoinError::Keys(_) => Exit::Damaged,
        JoinError::NoJoin { .. } => Exit::NotFound,
        JoinError::WrongAuthority { .. }
        | JoinError::Expired { .. }
        | JoinError::Declined
        | JoinError::Cancelled
        | JoinError::AlreadyMember { .. }
        | JoinError::Hidden { .. } => Exit::Refused,
        JoinError::NotReady { .. } => Exit::NotSynced,
        JoinError::Space { source, .. } => of_join(source),
        JoinError::Acl(error) => of_acl(error),
        JoinError::Write(error) => of_write(error),
    }
}

pub(crate) fn of_device(error: &DeviceError) -> Exit {
    match error {
        DeviceError::ThisDevice | DeviceError::Revoked => Exit::Refused,
        DeviceError::NotListed { .. } => Exit::NotFound,
        DeviceError::Call(error) => of_call(error),
    }
}

pub(crate) fn of_recover(error: &RecoverError) -> Exit {
    match error {
        RecoverError::Account(error) => of_not_synced(error),
        RecoverError::Missing { .. } => Exit::NotSynced,
        RecoverError::Read(error) => of_read(error),
    }
}

pub(crate) const fn of_not_synced(error: &NotSynced) -> Exit {
    match error.code {
        NotSyncedCode::NoNode
        | NotSyncedCode::DeadlineExceeded
        | NotSyncedCode::Stalled
        | NotSyncedCode::Aborted
        | NotSyncedCode::Unreadable => Exit::NotSynced,
        NotSyncedCode::Refused | NotSyncedCode::Forbidden => Exit::Refused,
        NotSyncedCode::NodeFault => Exit::Damaged,
        NotSyncedCode::StoreFailed | NotSyncedCode::Panicked => Exit::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        for exit in [
            Exit::Refused,
            Exit::Usage,
            Exit::NotFound,
            Exit::NotSynced,
            Exit::Damaged,
            Exit::Unavailable,
            Exit::Internal,
        ] {
            let number = format!("{:>4}  ", exit as u8);
            assert!(HELP.lines().any(|line| line.starts_with(&number)), "{exit:?}");
        }
    }

    #[test]
    fn codes_of_the_rules() {
        for (code, exit) in [
            (Code::NotAWriter, Exit::Refused),
            (Code::InviteExpired, Exit::Refused),
            (Code::Forbidden, Exit::Refused),
            (Code::RequestUnknown, Exit::NotFound),
            (Code::SpaceUnknown, Exit::NotFound),
            (Code::BadSignature, Exit::Damaged),
            (Code::ShuttingDown, Exit::NotSynced),
        ] {
            assert_eq!(of_code(code), exit, "{code}");
        }
        for code in Code::ALL {
            assert_ne!(of_code(*code), Exit::Usage, "{code}: nobody's typing is refused by a node");
        }
    }

    #[test]
    fn failures_of_the_sdk() {
        let offline = || CallError::Offline { cause: None, code: None };
        assert_eq!(of_call(&offline()), Exit::NotSynced);
        assert_eq!(of_join(&JoinError::Acl(offline().into())), Exit::NotSynced);
        assert_eq!(of_join(&JoinError::Declined), Exit::Refused);
        assert_eq!(of_join(&JoinError::NotReady { waiting: String::new() }), Exit::NotSynced);
        assert_eq!(of_open(&OpenError::NoAccount { dir: "x".into() }), Exit::Unavailable);
        assert_eq!(of_device(&DeviceError::ThisDevice), Exit::Refused);
        assert_eq!(of_device(&offline().into()), Exit::NotSynced);
        assert_eq!(of_recover(&RecoverError::Missing { missing: Vec::new(), of: 1 }), Exit::NotSynced);
        let missing = WriteError::NoSuchObject { object_type: "a".into(), id: "b".into() };
        assert_eq!(of_write(&missing), Exit::NotFound);
        for (code, exit) in [
            (NotSyncedCode::NoNode, Exit::NotSynced),
            (NotSyncedCode::DeadlineExceeded, Exit::NotSynced),
            (NotSyncedCode::Refused, Exit::Refused),
            (NotSyncedCode::Forbidden, Exit::Refused),
            (NotSyncedCode::NodeFault, Exit::Damaged),
            (NotSyncedCode::StoreFailed, Exit::Internal),
            (NotSyncedCode::Panicked, Exit::Internal),
            (NotSyncedCode::Unreadable, Exit::NotSynced),
        ] {
            assert_eq!(of_not_synced(&NotSynced { code, residue: Vec::new() }), exit, "{code:?}");
        }
    }
}
