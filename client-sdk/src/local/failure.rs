//! How a call of the local service fails: one enum of what it can suffer, and the one table from that to a gRPC status.
//!
//! Every enum of the SDK is matched exhaustively: a new way to fail does not compile until it has a status here.

use std::error::Error;

use prost::Message as _;
use sync_core::code::Code;
use sync_core::receipt::ReceiptError;
use sync_core::token::TokenError;
use sync_proto::client_v1 as pb;
use sync_proto::status::grpc_code;
use tonic::{Code as Grpc, Status};

use super::from_wire::BadRequest;
use crate::account::DeviceError;
use crate::error::{AclError, CallError, JoinError, NotSynced, NotSyncedCode, ReadError, WriteError};

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    #[error(transparent)]
    Request(#[from] BadRequest),
    #[error("a call on this socket needs metadata `authorization: Bearer …`, with the token in daemon.token")]
    Unauthenticated,
    #[error("{max} awaits are under way on this connection: end one, or use another connection")]
    TooManyAwaits { max: usize },
    #[error("{what} is {actual} bytes long, and a message has room for {max}: ask for less of it")]
    TooLarge { what: String, actual: usize, max: usize },
    #[error("there is no {object_type} {id:?}")]
    NoObject { object_type: String, id: String },
    #[error("there is no tree {0} here")]
    NoTree(String),
    #[error("there is no write {0} here")]
    NoWrite(u64),
    #[error("the node has given no receipt for this space yet")]
    NoReceipt,
    #[error("there is no accusation {0} with evidence here")]
    NoEvidence(u64),
    #[error("the client is opened anew: ask again")]
    Reopening,
    #[error("the daemon is stopping")]
    ShuttingDown,
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
    Token(#[from] TokenError),
    #[error("the receipt proves nothing")]
    Receipt(#[from] ReceiptError),
}

impl LocalError {
    /// The stable name.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Request(_) => "BAD_REQUEST",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::TooManyAwaits { .. } => "TOO_MANY_AWAITS",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::NoObject { .. } => "NO_SUCH_OBJECT",
            Self::NoTree(_) => "NO_SUCH_TREE",
            Self::NoWrite(_) => "NO_SUCH_WRITE",
            Self::NoReceipt => "NO_RECEIPT",
            Self::NoEvidence(_) => "NO_EVIDENCE",
            Self::Reopening => "REOPENING",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::Read(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::Call(error) => error.code(),
            Self::Acl(error) => error.code(),
            Self::Join(error) => error.code(),
            Self::Device(error) => error.code(),
            Self::Token(_) => "BAD_TOKEN",
            Self::Receipt(_) => "BAD_RECEIPT",
        }
    }

    /// The one table to gRPC statuses.
    fn grpc(&self) -> Grpc {
        match self {
            Self::Request(_) | Self::Token(_) | Self::Receipt(_) => Grpc::InvalidArgument,
            Self::Unauthenticated => Grpc::Unauthenticated,
            Self::TooManyAwaits { .. } | Self::TooLarge { .. } => Grpc::ResourceExhausted,
            Self::NoObject { .. } | Self::NoTree(_) | Self::NoWrite(_) | Self::NoReceipt | Self::NoEvidence(_) => {
                Grpc::NotFound
            }
            Self::Reopening | Self::ShuttingDown => Grpc::Unavailable,
            Self::Read(error) => of_read(error),
            Self::Write(error) => of_write(error),
            Self::Call(error) => of_call(error),
            Self::Acl(error) => of_acl(error),
            Self::Join(error) => of_join(error),
            Self::Device(error) => of_device(error),
        }
    }

    /// What it is about, where that is one thing.
    fn subject(&self) -> String {
        match self {
            Self::Request(error) => error.field().to_owned(),
            Self::NoObject { object_type, id } => format!("{object_type}/{id}"),
            Self::NoTree(tree) => tree.clone(),
            Self::NoWrite(write) => write.to_string(),
            Self::NoEvidence(accusation) => accusation.to_string(),
            Self::Read(error) => read_subject(error),
            Self::Write(error) => write_subject(error),
            Self::Acl(error) => acl_subject(error),
            Self::Join(error) => join_subject(error),
            Self::Device(DeviceError::NotListed { device }) => device.to_string(),
            Self::TooLarge { what, .. } => what.clone(),
            Self::Unauthenticated
            | Self::TooManyAwaits { .. }
            | Self::NoReceipt
            | Self::Reopening
            | Self::ShuttingDown
            | Self::Call(_)
            | Self::Device(_)
            | Self::Token(_)
            | Self::Receipt(_) => String::new(),
        }
    }

    /// What an await inside of it still missed.
    fn residue(&self) -> Vec<pb::Reason> {
        match self {
            Self::Acl(AclError::NotDurable(not)) | Self::Join(JoinError::Acl(AclError::NotDurable(not))) => {
                not.residue.iter().map(Into::into).collect()
            }
            Self::Request(_)
            | Self::Unauthenticated
            | Self::TooManyAwaits { .. }
            | Self::TooLarge { .. }
            | Self::NoObject { .. }
            | Self::NoTree(_)
            | Self::NoWrite(_)
            | Self::NoEvidence(_)
            | Self::NoReceipt
            | Self::Reopening
            | Self::ShuttingDown
            | Self::Read(_)
            | Self::Write(_)
            | Self::Call(_)
            | Self::Acl(_)
            | Self::Join(_)
            | Self::Device(_)
            | Self::Token(_)
            | Self::Receipt(_) => Vec::new(),
        }
    }

    fn detail(&self) -> pb::ErrorDetail {
        pb::ErrorDetail {
            code: self.code().to_owned(),
            message: self.to_string(),
            subject: self.subject(),
            retry: may_pass(self.grpc()),
            causes: causes(self),
            residue: self.residue(),
        }
    }
}

impl From<LocalError> for Status {
    fn from(error: LocalError) -> Self {
        let detail = error.detail();
        Self::with_details(error.grpc(), detail.message.clone(), detail.encode_to_vec().into())
    }
}

/// The chain below an error, outermost first. Some layers only pass on what is below them.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut above = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if text != above {
            causes.push(text.clone());
        }
        above = text;
        source = error.source();
    }
    causes
}

/// gRPC's own rule: what these say may be otherwise a moment later, and the call was safe to repeat to begin with.
const fn may_pass(code: Grpc) -> bool {
    matches!(code, Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::Aborted)
}

fn of_read(error: &ReadError) -> Grpc {
    match error {
        ReadError::UnknownSpace(_) | ReadError::UnknownWait { .. } => Grpc::NotFound,
        // They are on their way, or owed.
        ReadError::NoKeys => Grpc::FailedPrecondition,
        ReadError::Store(_) | ReadError::Panicked { .. } => Grpc::Internal,
        ReadError::Closed => Grpc::Unavailable,
        ReadError::Row(_) | ReadError::State(_) => Grpc::DataLoss,
    }
}

fn of_write(error: &WriteError) -> Grpc {
    match error {
        WriteError::Rejected(reject) => grpc_code(Code::from(reject)),
        WriteError::BadName { .. }
        | WriteError::NotAnObject
        | WriteError::Canonical(_)
        | WriteError::Ops(_)
        | WriteError::ObjectTree { .. }
        | WriteError::TooManyParents { .. }
        | WriteError::Record(_)
        | WriteError::Content(_) => Grpc::InvalidArgument,
        WriteError::NoSuchObject { .. } | WriteError::NotRefused { .. } | WriteError::UnknownParent(_) => {
            Grpc::NotFound
        }
        WriteError::Read(error) => of_read(error),
        WriteError::StoreFull | WriteError::Overloaded | WriteError::TooManyWaits { .. } => Grpc::ResourceExhausted,
        WriteError::OutcomeUnknown(_) => Grpc::Internal,
        WriteError::Closed => Grpc::Unavailable,
    }
}

fn of_call(error: &CallError) -> Grpc {
    match error {
        CallError::Offline { .. } | CallError::Broken(_) => Grpc::Unavailable,
        CallError::TimedOut => Grpc::DeadlineExceeded,
        CallError::Refused(failure) if failure.code.is_transient() => Grpc::Unavailable,
        CallError::Refused(failure) => of_node(failure.code),
        CallError::BadAnswer(_) => Grpc::DataLoss,
    }
}

/// What the node says of this client's session is no word about the caller's token.
fn of_node(code: Code) -> Grpc {
    let said = grpc_code(code);
    if said == Grpc::Unauthenticated { Grpc::FailedPrecondition } else { said }
}

fn of_acl(error: &AclError) -> Grpc {
    match error {
        AclError::Rejected(reject) => grpc_code(Code::from(reject)),
        AclError::Call(error) => of_call(error),
        AclError::Read(error) => of_read(error),
        AclError::Contended { .. } => Grpc::Aborted,
        AclError::Seal(_) => Grpc::Internal,
        AclError::NoSpaces | AclError::Record(_) => Grpc::InvalidArgument,
        AclError::StillAMember { .. } | AclError::NothingToPromise { .. } | AclError::CannotShow { .. } => {
            Grpc::FailedPrecondition
        }
        AclError::NoRequest { .. } => Grpc::NotFound,
        AclError::NotDurable(error) => of_not_synced(error.code),
        AclError::Write(error) => of_write(error),
    }
}

fn of_join(error: &JoinError) -> Grpc {
    match error {
        JoinError::Token(_) | JoinError::BadReceipt(_) => Grpc::InvalidArgument,
        JoinError::WrongAuthority { .. } | JoinError::Expired { .. } | JoinError::Hidden { .. } => {
            Grpc::FailedPrecondition
        }
        JoinError::Declined => Grpc::PermissionDenied,
        JoinError::Cancelled => Grpc::Cancelled,
        JoinError::NoJoin { .. } => Grpc::NotFound,
        JoinError::AlreadyMember { .. } => Grpc::AlreadyExists,
        JoinError::NotReady { .. } => Grpc::DeadlineExceeded,
        JoinError::NodeFault(_) | JoinError::Keys(_) => Grpc::DataLoss,
        JoinError::Space { source, .. } => of_join(source),
        JoinError::Acl(error) => of_acl(error),
        JoinError::Write(error) => of_write(error),
    }
}

fn of_device(error: &DeviceError) -> Grpc {
    match error {
        DeviceError::ThisDevice | DeviceError::Revoked => Grpc::FailedPrecondition,
        DeviceError::NotListed { .. } => Grpc::NotFound,
        DeviceError::Call(error) => of_call(error),
    }
}

/// How an await that failed inside of a call ends the call.
pub(super) fn of_not_synced(code: NotSyncedCode) -> Grpc {
    match code {
        NotSyncedCode::NoNode => Grpc::Unavailable,
        NotSyncedCode::DeadlineExceeded | NotSyncedCode::Stalled => Grpc::DeadlineExceeded,
        NotSyncedCode::Aborted => Grpc::Cancelled,
        NotSyncedCode::Refused | NotSyncedCode::Unreadable => Grpc::FailedPrecondition,
        NotSyncedCode::Forbidden => Grpc::PermissionDenied,
        NotSyncedCode::NodeFault => Grpc::DataLoss,
        NotSyncedCode::StoreFailed | NotSyncedCode::Panicked => Grpc::Internal,
    }
}

fn read_subject(error: &ReadError) -> String {
    match error {
        ReadError::UnknownSpace(space) => space.to_string(),
        ReadError::UnknownWait { wait } => wait.to_string(),
        ReadError::Panicked { tree, .. } => tree.to_string(),
        ReadError::NoKeys | ReadError::Store(_) | ReadError::Row(_) | ReadError::State(_) | ReadError::Closed => {
            String::new()
        }
    }
}

fn write_subject(error: &WriteError) -> String {
    match error {
        WriteError::NoSuchObject { object_type, id } => format!("{object_type}/{id}"),
        WriteError::NotRefused { write } => write.to_string(),
        WriteError::UnknownParent(change) => change.to_string(),
        WriteError::ObjectTree { tree } => tree.to_string(),
        WriteError::BadName { what, .. } => (*what).to_owned(),
        WriteError::Read(error) => read_subject(error),
        WriteError::Rejected(_)
        | WriteError::NotAnObject
        | WriteError::Canonical(_)
        | WriteError::Ops(_)
        | WriteError::Content(_)
        | WriteError::TooManyParents { .. }
        | WriteError::Record(_)
        | WriteError::StoreFull
        | WriteError::Overloaded
        | WriteError::TooManyWaits { .. }
        | WriteError::OutcomeUnknown(_)
        | WriteError::Closed => String::new(),
    }
}

fn acl_subject(error: &AclError) -> String {
    match error {
        AclError::StillAMember { space } => space.to_string(),
        AclError::NoRequest { account } => account.to_string(),
        AclError::NothingToPromise { tree } | AclError::CannotShow { tree } => tree.to_string(),
        AclError::Read(error) => read_subject(error),
        AclError::Write(error) => write_subject(error),
        AclError::Rejected(_)
        | AclError::Call(_)
        | AclError::Contended { .. }
        | AclError::Seal(_)
        | AclError::NoSpaces
        | AclError::NotDurable(_)
        | AclError::Record(_) => String::new(),
    }
}

fn join_subject(error: &JoinError) -> String {
    match error {
        JoinError::NoJoin { space } | JoinError::AlreadyMember { space } | JoinError::Space { space, .. } => {
            space.to_string()
        }
        JoinError::Hidden { tree } => tree.to_string(),
        JoinError::Acl(error) => acl_subject(error),
        JoinError::Write(error) => write_subject(error),
        JoinError::Token(_)
        | JoinError::WrongAuthority { .. }
        | JoinError::Expired { .. }
        | JoinError::Declined
        | JoinError::Cancelled
        | JoinError::BadReceipt(_)
        | JoinError::NotReady { .. }
        | JoinError::NodeFault(_)
        | JoinError::Keys(_) => String::new(),
    }
}

impl From<&NotSynced> for pb::Failed {
    fn from(failed: &NotSynced) -> Self {
        Self { code: failed.code.name().to_owned(), residue: failed.residue.iter().map(Into::into).collect() }
    }
}

#[cfg(test)]
mod tests {
    use sync_core::ids::SpaceId;

    use super::*;

    #[test]
    fn a_failure_has_a_typed_detail() {
        let space = SpaceId::from_hash([7; 32]);
        let status = Status::from(LocalError::from(JoinError::from(ReadError::UnknownSpace(space))));
        let detail = pb::ErrorDetail::decode(status.details()).expect("a detail");
        assert_eq!((status.code(), detail.code.as_str()), (Grpc::NotFound, "SPACE_UNKNOWN"));
        assert_eq!((detail.subject, detail.retry), (space.to_string(), false));
        assert_eq!(detail.causes, Vec::<String>::new(), "layers that only pass it on are left out");
    }

    #[test]
    fn what_the_node_says_of_the_session_is_not_about_the_token() {
        let refused = sync_proto::status::Failure::new(Code::DeviceRevoked, "no");
        let status = Status::from(LocalError::from(CallError::Refused(refused)));
        assert_eq!(status.code(), Grpc::FailedPrecondition);
        assert_eq!(Status::from(LocalError::Unauthenticated).code(), Grpc::Unauthenticated);
    }
}
