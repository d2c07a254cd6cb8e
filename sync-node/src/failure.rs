//! How calls fail: typed all the way, and turned into a gRPC status at the last step.

use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::SpaceId;
use sync_core::limits;
use sync_core::log::{DecideError, Refusal, Reject};
use sync_core::record::VerifyError;
use sync_proto::WireError;
use sync_proto::status::Failure;
use sync_store::{StoreError, WriteError};
use tonic::Status;
use tracing::{error, warn};

use crate::session::millis;

/// Why a call, or one item of it, has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The caller's doing, or the node's own conditions: the caller is told exactly this.
    Failed(Box<Failure>),
    /// Ours. The caller is told that, and no more.
    Store(StoreError),
    /// The caller went away: nobody is told.
    HungUp,
}

impl CallError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Failure::new(code, message).into()
    }

    pub(crate) fn space_unknown(space: &SpaceId) -> Self {
        Failure::new(Code::SpaceUnknown, format!("{space} is not on this node")).about(space.to_bytes()).into()
    }

    pub(crate) fn forbidden(space: &SpaceId) -> Self {
        Failure::new(Code::Forbidden, format!("this account may not do that in {space}")).about(space.to_bytes()).into()
    }

    pub(crate) fn shutting_down() -> Self {
        Failure::new(Code::ShuttingDown, "the node is stopping").retry_after(millis(limits::RETRY_FIRST)).into()
    }

    /// What the caller is told. The log is told more.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Failed(failure) => *failure,
            Self::Store(error) => store_failure(&error),
            Self::HungUp => Failure::new(Code::ShuttingDown, "the stream ended"),
        }
    }
}

/// What a caller is told when the storage queue is full.
pub(crate) fn overloaded() -> Failure {
    Failure::new(Code::Overloaded, "the node has more to do than it can; try again")
        .retry_after(millis(Duration::from_millis(200)))
}

fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Full { .. } => Failure::new(Code::StoreFull, "there is no room on the node's disk"),
        StoreError::UnknownSpace { space } => CallError::space_unknown(space).into_failure(),
        StoreError::Closed => CallError::shutting_down().into_failure(),
        StoreError::Io { .. }
        | StoreError::Damaged { .. }
        | StoreError::Statement { .. }
        | StoreError::Panicked { .. }
        | StoreError::NoThread { .. }
        | StoreError::UnknownTree { .. }
        | StoreError::StaleDecision { .. }
        | StoreError::UnknownWrite { .. }
        | StoreError::WriteSettled { .. }
        | StoreError::OutOfRange { .. } => {
            error!(error = error as &dyn std::error::Error, "the store failed a call");
            Failure::new(Code::StoreFailed, "the node's storage failed")
        }
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        Failure::from(&error).into()
    }
}

impl From<VerifyError> for CallError {
    fn from(error: VerifyError) -> Self {
        Failure::from(&error).into()
    }
}

impl From<Reject> for CallError {
    fn from(reject: Reject) -> Self {
        Failure::from(&reject).into()
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Failure::from(&refusal).into()
    }
}

impl From<DecideError<StoreError>> for CallError {
    fn from(error: DecideError<StoreError>) -> Self {
        match error {
            DecideError::Reject(reject) => reject.into(),
            DecideError::Refused(refusal) => refusal.into(),
            DecideError::View(error) => error.into(),
        }
    }
}

impl From<WriteError<Self>> for CallError {
    fn from(error: WriteError<Self>) -> Self {
        match error {
            WriteError::Job(error) => error,
            WriteError::Overloaded => overloaded().into(),
            WriteError::Full => Self::new(Code::StoreFull, "there is no room on the node's disk"),
            WriteError::OutcomeUnknown(error) | WriteError::Failed(error) => {
                warn!(error = &error as &dyn std::error::Error, "a write failed");
                Self::new(Code::StoreFailed, "the node's storage failed; whether the write was kept is unknown")
            }
            WriteError::Closed => Self::shutting_down(),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        error.into_failure().into()
    }
}
