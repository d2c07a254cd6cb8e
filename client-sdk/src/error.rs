//! What can go wrong, one enum per kind of operation, each with a stable code.
//!
//! Codes are the names of [`Code`] wherever the rules or the node decided, and a few of the client's own
//! (`OFFLINE`, `TIMED_OUT`, …). Programs match on variants or codes, never on texts.

use std::path::PathBuf;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::{AccountId, AuthorityId, SpaceId, TreeId};
use sync_core::log::Reject;
use sync_core::token::{AddressError, TokenError};
use sync_e2ee::{ContentError, KeyError, MnemonicError, SealError, VaultError};
use sync_proto::status::Failure;
use sync_store::StoreError;

use crate::connect::RpcError;
use crate::object::{CanonicalError, OpError, StateError};
use crate::status::{Reason, ReasonCode};

/// Why a client was not opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("there is no account in {}: create one first", .dir.display())]
    NoAccount { dir: PathBuf },
    #[error("there is an account in {} already", .dir.display())]
    AccountExists { dir: PathBuf },
    #[error("the key file {} must hold exactly 32 bytes", .path.display())]
    BadKeyFile { path: PathBuf },
    #[error("{} can be read by others; allow only its owner (mode 0600)", .path.display())]
    LooseMode { path: PathBuf },
    #[error("the account's secrets could not be read")]
    Vault(#[from] VaultError),
    #[error("the recovery words are wrong")]
    Mnemonic(#[from] MnemonicError),
    #[error("the node address is wrong")]
    Address(#[from] AddressError),
    #[error("the local store could not be opened")]
    Store(#[from] sync_store::OpenError),
    #[error("the local store failed")]
    Storage(#[from] StoreError),
    #[error("{what} cannot be read: the store was changed from outside")]
    Damaged { what: &'static str },
    #[error("{}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl OpenError {
    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoAccount { .. } => "NO_ACCOUNT",
            Self::AccountExists { .. } => "ACCOUNT_EXISTS",
            Self::BadKeyFile { .. } | Self::Vault(_) => "LOCKED",
            Self::LooseMode { .. } => "LOOSE_MODE",
            Self::Mnemonic(_) => "BAD_WORDS",
            Self::Address(_) => "BAD_ADDRESS",
            Self::Store(sync_store::OpenError::InUse { .. }) => "IN_USE",
            Self::Store(_) => "STORE_UNUSABLE",
            Self::Storage(_) => "STORE_FAILED",
            Self::Damaged { .. } => "STORE_DAMAGED",
            Self::Io { .. } => "IO",
        }
    }
}

/// Why something local could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is no space {0} here")]
    UnknownSpace(SpaceId),
    #[error("the keys of the space are not here yet")]
    NoKeys,
    #[error("there is no wait {wait} here: it was done, or dropped")]
    UnknownWait { wait: u64 },
    #[error("the local store failed")]
    Store(#[from] StoreError),
    #[error("a local row cannot be decrypted: the store was changed from outside")]
    Row(#[from] ContentError),
    #[error("a local row cannot be decoded: the store was changed from outside")]
    State(#[from] StateError),
    /// A fault of this program, contained: other trees are not affected, and the next read tries again.
    #[error("this program panicked over {tree}: {message}")]
    Panicked { tree: TreeId, message: String },
    #[error("the client is closed")]
    Closed,
}

impl ReadError {
    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownSpace(_) => "SPACE_UNKNOWN",
            Self::NoKeys => "NO_KEYS",
            Self::UnknownWait { .. } => "UNKNOWN_WAIT",
            Self::Store(_) => "STORE_FAILED",
            Self::Row(_) | Self::State(_) => "STORE_DAMAGED",
            Self::Panicked { .. } => "PANICKED",
            Self::Closed => "CLOSED",
        }
    }
}

/// Why a write was refused here, before it left.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The rules refuse it: the role, the write rule, a purge, `once`.
    #[error(transparent)]
    Rejected(#[from] Reject),
    #[error("an object {what} must be 1 to {max} bytes of text")]
    BadName { what: &'static str, max: usize },
    #[error("the object is not a JSON object")]
    NotAnObject,
    #[error("there is no {object_type} {id:?}")]
    NoSuchObject { object_type: String, id: String },
    #[error("the value cannot be kept exactly")]
    Canonical(#[from] CanonicalError),
    #[error("the operations are not acceptable")]
    Ops(#[from] OpError),
    #[error("the content cannot be encrypted")]
    Content(#[source] ContentError),
    #[error("write {write} is not a refused one")]
    NotRefused { write: sync_store::WriteId },
    #[error(
        "{tree} is the tree of an object: what is appended to it as something else is void for everybody; put the object"
    )]
    ObjectTree { tree: TreeId },
    #[error("parent {0} is neither logged nor pending in this tree")]
    UnknownParent(sync_core::ids::ChangeId),
    #[error("a change has at most {max} parents, not {actual}")]
    TooManyParents { actual: usize, max: usize },
    #[error("the change cannot be made")]
    Record(#[from] sync_core::record::VerifyError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the disk is full: nothing was written")]
    StoreFull,
    #[error("too many writes are waiting: nothing was written, try again")]
    Overloaded,
    #[error("the local store failed; whether the write was kept is unknown, and writing again is safe")]
    OutcomeUnknown(#[source] StoreError),
    #[error("{max} awaits are kept already: resume or drop some")]
    TooManyWaits { max: usize },
    #[error("the client is closed")]
    Closed,
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Read(ReadError::Store(error))
    }
}

impl From<ContentError> for WriteError {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

impl WriteError {
    /// The stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected(reject) => Code::from(reject).name(),
            Self::BadName { .. } => "BAD_NAME",
            Self::NotAnObject => "NOT_AN_OBJECT",
            Self::NoSuchObject { .. } => "NO_SUCH_OBJECT",
            Self::Canonical(_) => "INEXACT_NUMBER",
            Self::Ops(_) => "BAD_OPERATION",
            Self::Content(_) => "TOO_LARGE",
            Self::NotRefused { .. } => "NOT_REFUSED",
            Self::ObjectTree { .. } => "OBJECT_TREE",
            Self::UnknownParent(_) => "MISSING_PARENT",
            Self::TooManyParents { .. } => "BAD_PARENTS",
            Self::Record(error) => Code::from(error).name(),
            Self::Read(error) => error.code(),
            Self::StoreFull => "STORE_FULL",
            Self::Overloaded => "OVERLOADED",
            Self::OutcomeUnknown(_) => "STORE_FAILED",
            Self::TooManyWaits { .. } => "TOO_MANY_WAITS",
            Self::Closed => "CLOSED",
        }
    }
}

pub(crate) fn from_store_write<E: From<StoreError> + Into<WriteError>>(error: sync_store::WriteError<E>) -> WriteError {
    match error {
        sync_store::WriteError::Job(error) => error.into(),
        sync_store::WriteError::Overloaded => WriteError::Overloaded,
        sync_store::WriteError::Full => WriteError::StoreFull,
        sync_store::WriteError::OutcomeUnknown(error) | sync_store::WriteError::Failed(error) => {
            WriteError::OutcomeUnknown(error)
        }
        sync_store::WriteError::Closed => WriteError::Closed,
    }
}

/// Why the node did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No session with the node; `cause` is what the last attempt met.
    #[error("the node cannot be reached{}", .cause.as_ref().map_or(String::new(), |c| format!(": {c}")))]
    Offline { cause: Option<String>, code: Option<&'static str> },
    #[error("the node did not answer in time")]
    TimedOut,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("{0}")]
    Refused(Failure),
    #[error("the node answered what no honest node answers: {0}")]
    BadAnswer(String),
}

impl From<RpcError> for CallError {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::Node(failure) => Self::Refused(failure),
            RpcError::Transport(text) => Self::Broken(text),
        }
    }
}

impl CallError {
    /// How long the node asks to be left alone.
    pub(crate) const fn hint(&self) -> Duration {
        match self {
            Self::Refused(failure) => Duration::from_millis(failure.retry_after_ms),
            Self::Offline { .. } | Self::TimedOut | Self::Broken(_) | Self::BadAnswer(_) => Duration::ZERO,
        }
    }

    /// True if the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Offline { .. } | Self::TimedOut | Self::Broken(_) => true,
            Self::Refused(failure) => failure.code.is_transient(),
            Self::BadAnswer(_) => false,
        }
    }

    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Offline { code: Some(code), .. } => code,
            Self::Offline { code: None, .. } => "OFFLINE",
            Self::TimedOut => "TIMED_OUT",
            Self::Broken(_) => "CONNECTION_BROKEN",
            Self::Refused(failure) => failure.code.name(),
            Self::BadAnswer(_) => "NODE_FAULT",
        }
    }
}

/// What our own store could not do on the way to a call: the node is not to blame, and it may pass.
pub(crate) fn local(error: impl std::fmt::Display) -> CallError {
    CallError::Broken(error.to_string())
}

/// Why an act on the membership of a space did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// The rules refuse it here already.
    #[error(transparent)]
    Rejected(#[from] Reject),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("other admins were faster, {attempts} times in a row")]
    Contended { attempts: u32 },
    #[error("the keys could not be sealed")]
    Seal(#[from] SealError),
    #[error("an invite is to at least one space")]
    NoSpaces,
    #[error("this account is a member of {space}: leave first")]
    StillAMember { space: SpaceId },
    #[error("{account} has no pending request")]
    NoRequest { account: AccountId },
    #[error("{tree} has nothing on the node yet, so an acceptance cannot promise it")]
    NothingToPromise { tree: TreeId },
    #[error("{tree} cannot be shown to somebody who reads from now on: only its app can write it anew")]
    CannotShow { tree: TreeId },
    #[error("the write that the acceptance promises was not made durable")]
    NotDurable(#[source] Box<NotSynced>),
    #[error("the record cannot be made")]
    Record(#[from] sync_core::record::VerifyError),
    #[error("what the new member is meant to see could not be written")]
    Write(#[source] Box<WriteError>),
}

impl From<WriteError> for AclError {
    fn from(error: WriteError) -> Self {
        Self::Write(Box::new(error))
    }
}

impl From<StoreError> for AclError {
    fn from(error: StoreError) -> Self {
        Self::Read(error.into())
    }
}

impl AclError {
    /// The stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected(reject) => Code::from(reject).name(),
            Self::Call(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Contended { .. } => "ACL_CONFLICT",
            Self::Seal(_) => "BAD_SEALS",
            Self::NoSpaces => "NO_SPACES",
            Self::StillAMember { .. } => "STILL_A_MEMBER",
            Self::NoRequest { .. } => "REQUEST_UNKNOWN",
            Self::NothingToPromise { .. } => "BAD_FRONTIER",
            Self::CannotShow { .. } => "HIDDEN",
            Self::NotDurable(_) => "NOT_DURABLE",
            Self::Record(_) => "MALFORMED",
            Self::Write(error) => error.code(),
        }
    }
}

/// Why a join did not come to its end. Every step is durable: joining again with the same token goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the invite is for the node of {expected}; this client uses the node of {actual}")]
    WrongAuthority { expected: AuthorityId, actual: AuthorityId },
    #[error("the invite expired")]
    Expired { expires_ms: u64 },
    #[error("the request was declined")]
    Declined,
    #[error("the request was cancelled")]
    Cancelled,
    #[error("no device of the account joins {space}")]
    NoJoin { space: SpaceId },
    #[error("an admin let this account into {space} already: leave it instead")]
    AlreadyMember { space: SpaceId },
    #[error("the receipt in the token proves nothing: {0}")]
    BadReceipt(String),
    #[error("{tree} was written before this member's keys begin, so it can never be read here")]
    Hidden { tree: TreeId },
    #[error("not ready in time: {waiting}")]
    NotReady { waiting: String },
    #[error("the node shows a log that does not follow from the space's id: {0}")]
    NodeFault(String),
    #[error("the invite's keys do not open")]
    Keys(#[from] KeyError),
    #[error("space {space}: {source}")]
    Space { space: SpaceId, source: Box<Self> },
    #[error(transparent)]
    Acl(#[from] AclError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<CallError> for JoinError {
    fn from(error: CallError) -> Self {
        Self::Acl(error.into())
    }
}

impl From<ReadError> for JoinError {
    fn from(error: ReadError) -> Self {
        Self::Acl(error.into())
    }
}

impl From<StoreError> for JoinError {
    fn from(error: StoreError) -> Self {
        Self::Acl(error.into())
    }
}

impl JoinError {
    /// The stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Token(_) => "BAD_TOKEN",
            Self::WrongAuthority { .. } => "WRONG_AUTHORITY",
            Self::Expired { .. } => Code::InviteExpired.name(),
            Self::Declined => "DECLINED",
            Self::Cancelled => "CANCELLED",
            Self::NoJoin { .. } => "NO_JOIN",
            Self::AlreadyMember { .. } => Code::AlreadyMember.name(),
            Self::BadReceipt(_) => "BAD_TOKEN",
            Self::Hidden { .. } => "HIDDEN",
            Self::NotReady { .. } => "TIMED_OUT",
            Self::NodeFault(_) => "NODE_FAULT",
            Self::Keys(_) => "BAD_SEALS",
            Self::Space { source, .. } => source.code(),
            Self::Acl(error) => error.code(),
            Self::Write(error) => error.code(),
        }
    }
}

/// Why an await did not succeed. It never says "no" without naming what is missing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not synced: {}", self.cause().map_or_else(|| self.code.name().to_owned(), ToString::to_string))]
pub struct NotSynced {
    pub code: NotSyncedCode,
    /// What stands between here and "synced", most important first.
    pub residue: Vec<Reason>,
}

impl NotSynced {
    /// The reason that says most: why there is no node, if that is it, and otherwise the first.
    #[must_use]
    pub fn cause(&self) -> Option<&Reason> {
        let link = [ReasonCode::NoNode, ReasonCode::WrongNode, ReasonCode::SessionRefused];
        let link = link.iter().find_map(|code| Reason::find(&self.residue, *code));
        link.filter(|_| self.code == NotSyncedCode::NoNode).or_else(|| self.residue.first())
    }
}

/// How an await ended without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotSyncedCode {
    /// No session with the node for the whole time.
    NoNode,
    DeadlineExceeded,
    /// Nothing left what is missing for as long as the caller wanted to see that.
    Stalled,
    /// The client or the space was closed.
    Aborted,
    /// The node or the rules refused something that cannot change by waiting.
    Refused,
    /// The account may not read the space.
    Forbidden,
    /// The node showed something that contradicts what it signed or what the rules allow.
    NodeFault,
    /// The local store failed.
    StoreFailed,
    /// The object was purged, or can never be read with this member's keys.
    Unreadable,
    /// This program failed over something that is here: everything else is synced.
    Panicked,
}

impl NotSyncedCode {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoNode => "NO_NODE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Stalled => "STALLED",
            Self::Aborted => "ABORTED",
            Self::Refused => "REFUSED",
            Self::Forbidden => "FORBIDDEN",
            Self::NodeFault => "NODE_FAULT",
            Self::StoreFailed => "STORE_FAILED",
            Self::Unreadable => "UNREADABLE",
            Self::Panicked => "PANICKED",
        }
    }
}
