//! Failures of a command: what went wrong, why, what to try, and the code for programs.

use std::error::Error;
use std::path::PathBuf;

use client_sdk::local::{ConnectError, Place, ServeError};
use client_sdk::{
    AclError, CallError, CanonicalError, DeviceError, EvidenceError, JoinError, MnemonicError, NotSynced, OpenError,
    ProvesNothing, ReadError, ReceiptError, RecoverError, StoreOpenError, TokenError, WriteError,
};
use serde_json::{Value, json};

use crate::exit::{self, Exit};
use crate::git::GitError;
use crate::records::RecordError;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Acl(#[from] AclError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the receipt proves nothing")]
    Receipt(#[from] ReceiptError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the signatures are genuine, and prove nothing: {0}")]
    ProvesNothing(#[from] ProvesNothing),
    #[error("the receipt is genuine, but {0}")]
    OtherReceipt(String),
    #[error("the words are not those of an account")]
    Words(#[from] MnemonicError),
    #[error("a value has no exact JSON form")]
    Canonical(#[from] CanonicalError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("{0}")]
    Usage(String),
    #[error("{0} asks first, and there is nobody to ask here")]
    NeedsYes(&'static str),
    #[error("nothing was done")]
    SaidNo,
    #[error("there is no account here that these flags open: {0}")]
    Locked(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Different(String),
    #[error("{}", .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("process {pid} has the data directory, and runs no commands of others")]
    NoCommands { pid: u32 },
    #[error("the daemon (process {pid}) is another one than this command: {message}")]
    OtherDaemon { pid: u32, message: String },
    #[error("the daemon (process {pid}) has its hands full: {message}")]
    DaemonBusy { pid: u32, message: String },
    #[error("the daemon (process {pid}) was lost while it ran this, and how far it came is unknown: {message}")]
    DaemonGone { pid: u32, message: String },
    #[error("the daemon is opening the account anew")]
    Reopening,
    #[error("the output could not be written")]
    Print(#[source] std::io::Error),
    #[error("{0}")]
    Internal(String),
}

impl CliError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// The stable name, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Open(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::Call(error) => error.code(),
            Self::Acl(error) => error.code(),
            Self::Join(error) => error.code(),
            Self::Device(error) => error.code(),
            Self::Recover(error) => error.code(),
            Self::NotSynced(error) => error.code.name(),
            Self::Token(_) => "BAD_TOKEN",
            Self::Receipt(_) => "BAD_RECEIPT",
            Self::Evidence(_) => "BAD_EVIDENCE",
            Self::ProvesNothing(_) => "PROVES_NOTHING",
            Self::OtherReceipt(_) => "OTHER_RECEIPT",
            Self::Words(_) => "BAD_WORDS",
            Self::Canonical(_) => "INEXACT_NUMBER",
            Self::Records(error) => error.code(),
            Self::Git(error) => error.code(),
            Self::Usage(_) => "USAGE",
            Self::NeedsYes(_) => "NEEDS_YES",
            Self::SaidNo => "NOT_CONFIRMED",
            Self::Locked(_) => "LOCKED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Different(_) => "DIFFERENT",
            Self::File { .. } => "FILE",
            Self::Serve(error) => error.code(),
            Self::Connect(ConnectError::Unproven { .. }) => "DAEMON_UNPROVEN",
            Self::Connect(_) => "DAEMON_UNREADABLE",
            Self::NoCommands { .. } => "IN_USE",
            Self::OtherDaemon { .. } => "OTHER_DAEMON",
            Self::DaemonBusy { .. } => "DAEMON_BUSY",
            Self::DaemonGone { .. } => "DAEMON_GONE",
            Self::Reopening => "REOPENING",
            Self::Print(_) => "OUTPUT",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Open(error) => exit::of_open(error),
            Self::Read(error) => exit::of_read(error),
            Self::Write(error) => exit::of_write(error),
            Self::Call(error) => exit::of_call(error),
            Self::Acl(error) => exit::of_acl(error),
            Self::Join(error) => exit::of_join(error),
            Self::Device(error) => exit::of_device(error),
            Self::Recover(error) => exit::of_recover(error),
            Self::NotSynced(error) => exit::of_not_synced(error),
            Self::Token(_)
            | Self::Receipt(_)
            | Self::Evidence(_)
            | Self::ProvesNothing(_)
            | Self::OtherReceipt(_)
            | Self::Words(_) => Exit::Damaged,
            Self::Canonical(_) | Self::Usage(_) | Self::NeedsYes(_) => Exit::Usage,
            Self::Records(error) => error.exit(),
            Self::Git(error) => error.exit(),
            Self::Locked(_)
            | Self::Connect(_)
            | Self::NoCommands { .. }
            | Self::OtherDaemon { .. }
            | Self::DaemonBusy { .. }
            | Self::DaemonGone { .. }
            | Self::Reopening => Exit::Unavailable,
            Self::Serve(error) => exit::of_serve(error),
            Self::NotFound(_) => Exit::NotFound,
            Self::Different(_) | Self::SaidNo => Exit::Refused,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            Self::File { .. } | Self::Print(_) | Self::Internal(_) => Exit::Internal,
        }
    }

    /// What a person can try.
    pub(crate) fn hint(&self) -> Option<String> {
        if let Self::NotSynced(error) = self {
            return error.cause().map(|reason| reason.suggestion.to_owned());
        }
        let hint = match self.code() {
            _ if matches!(self, Self::Recover(_)) => "headwater recover --timeout 10m: it goes on where it stopped",
            "NO_ACCOUNT" => "headwater init --node headwater://auth_…@host:port (the line that the node printed)",
            "ACCOUNT_EXISTS" => "another --data directory, or go on with the account that is there",
            "IN_USE" if self.is_in_use_by_daemon() => {
                "a daemon has it, and other commands find it by themselves; stop it with SIGTERM to start another"
            }
            "IN_USE" => "wait for the other command, or use another --data directory",
            "OTHER_DAEMON" => "stop the daemon with SIGTERM and start it again, with this program",
            "DAEMON_BUSY" | "REOPENING" => "again, in a moment",
            "DAEMON_GONE" => {
                "look first what was done (headwater space list, headwater list): a new space, an invite or an appended change would be \
                 made twice; headwater daemon starts it anew"
            }
            "BAD_SOCKET" => "--listen loopback",
            "LOCKED" => "--passphrase-file FILE, or HEADWATER_PASSPHRASE",
            "WRONG_NODE" => "ask for the right address, then headwater node set ADDRESS",
            "OFFLINE" | "CONNECTION_BROKEN" => "check that the node runs; headwater why says more",
            "TIMED_OUT" if matches!(self, Self::Join(_)) => {
                "the same command again: it goes on where it stopped. An admin runs: headwater approve --all"
            }
            "TIMED_OUT" => "again, with a longer --timeout",
            "SPACE_UNKNOWN" => "headwater space list",
            "BAD_TOKEN" => "copy the whole line again: it begins with headwater1",
            "BAD_WORDS" => "24 words of the English BIP-39 list, in their order",
            "INVITE_EXPIRED" | "INVITE_USED_UP" | "INVITE_REVOKED" | "INVITE_DEAD" => "ask for a new invite",
            "REQUEST_UNKNOWN" => "headwater requests",
            "NEEDS_YES" => {
                "the same command with --yes; headwater acl plan shows first what a change of members would do"
            }
            "OWNER_CANNOT_LEAVE" => "headwater transfer ACCOUNT, or headwater space delete",
            "ALREADY_MEMBER" if matches!(self, Self::Join(_)) => "headwater leave",
            "STILL_A_MEMBER" => "headwater leave, then again",
            "THIS_DEVICE" => "headwater devices revoke, on another device of the account",
            "DEVICE_NOT_LISTED" => "headwater devices",
            "NO_JOIN" => "headwater space list shows the joins that are under way",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whoever has the data directory says so in it.
    fn is_in_use_by_daemon(&self) -> bool {
        let Self::Open(OpenError::Store(StoreOpenError::InUse { path, pid: Some(pid) })) = self else { return false };
        Place::read(path).is_ok_and(|place| place.is_some_and(|place| place.pid == *pid))
    }

    /// The chain below the error, outermost first.
    pub(crate) fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut above = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some layers only pass on what is below them.
            if text != above {
                causes.push(text.clone());
            }
            above = text;
            source = error.source();
        }
        causes
    }

    /// The error as programs see it.
    pub(crate) fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.code(), "message": self.to_string(), "causes": self.causes() });
        if let Some(hint) = self.hint() {
            error["hint"] = hint.into();
        }
        if let Self::Recover(RecoverError::Missing { missing, .. }) = self {
            let one = |m: &client_sdk::MissingSpace| json!({ "space": m.space.to_string(), "why": m.why.to_string() });
            error["missing"] = missing.iter().map(one).collect();
        }
        if let Self::NotSynced(not_synced) = self {
            error["reasons"] = json!(not_synced.residue);
        }
        if let Self::Records(RecordError::Bad(bad)) = self {
            error["records"] = bad.0.iter().map(ToString::to_string).collect();
        }
        json!({ "error": error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_only_repeats_is_left_out() {
        let error = CliError::from(JoinError::from(CallError::TimedOut));
        assert_eq!(error.to_string(), "the node did not answer in time");
        assert_eq!(error.causes(), Vec::<String>::new());
        assert_eq!(error.to_json()["error"]["code"], "TIMED_OUT");
    }

    #[test]
    fn causes_are_listed() {
        let source = std::io::Error::other("no such thing");
        let error = CliError::File { path: "a.json".into(), source };
        assert_eq!(error.causes(), ["no such thing"]);
        assert_eq!(error.exit(), Exit::Internal);
    }
}
