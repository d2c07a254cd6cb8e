//! A job on its way through the storage thread.

use sync_core::ids::SpaceId;
use sync_core::log::Committed;
use tokio::sync::oneshot;

use crate::error::{StoreError, WriteError};
use crate::store::{CommitNo, Written};
use crate::write::WriteTx;

/// What the storage thread is sent.
pub(crate) enum Message {
    Job(Box<dyn Job>),
    /// Look at what is wanted: a barrier, or the end.
    Wake,
}

/// A closure and its caller, whatever their types.
pub(crate) trait Job: Send {
    /// Runs the closure and keeps its result.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Ran;
    /// The closure ignored a failed statement: its result becomes that failure.
    fn fail(&mut self, error: StoreError);
    /// Tells the caller, once. It may have gone.
    fn answer(self: Box<Self>, verdict: Verdict);
}

/// What a job wants of its part of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ran {
    Keep,
    RollBack,
}

/// What became of a job's transaction.
pub(crate) enum Verdict {
    Committed { commit: CommitNo, committed: Vec<(SpaceId, Committed)> },
    Full,
    OutcomeUnknown(StoreError),
}

type Answer<T, E> = Result<Written<T>, WriteError<E>>;

pub(crate) struct TypedJob<T, E, F> {
    state: State<T, E, F>,
    caller: Option<oneshot::Sender<Answer<T, E>>>,
}

enum State<T, E, F> {
    Queued(F),
    Running,
    Ran(Result<T, E>),
}

impl<T, E, F> TypedJob<T, E, F> {
    pub(crate) fn new(job: F, caller: oneshot::Sender<Answer<T, E>>) -> Self {
        Self { state: State::Queued(job), caller: Some(caller) }
    }
}

impl<T, E, F> Job for TypedJob<T, E, F>
where
    F: FnOnce(&mut WriteTx<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Ran {
        let State::Queued(job) = std::mem::replace(&mut self.state, State::Running) else { return Ran::RollBack };
        let result = job(tx);
        let ran = if result.is_ok() { Ran::Keep } else { Ran::RollBack };
        self.state = State::Ran(result);
        ran
    }

    fn fail(&mut self, error: StoreError) {
        if matches!(self.state, State::Ran(Ok(_))) {
            self.state = State::Ran(Err(error.into()));
        }
    }

    fn answer(mut self: Box<Self>, verdict: Verdict) {
        let Some(caller) = self.caller.take() else { return };
        let state = std::mem::replace(&mut self.state, State::Running);
        let answer = match (verdict, state) {
            (Verdict::Committed { commit, committed }, State::Ran(Ok(value))) => {
                Ok(Written { value, commit, committed })
            }
            (Verdict::Committed { .. }, State::Ran(Err(e))) => Err(WriteError::Job(e)),
            (Verdict::Committed { .. }, State::Queued(_) | State::Running) => Err(WriteError::Closed),
            (Verdict::Full, _) => Err(WriteError::Full),
            (Verdict::OutcomeUnknown(e), _) => Err(WriteError::OutcomeUnknown(e)),
        };
        let _ = caller.send(answer);
    }
}

impl<T, E, F> Drop for TypedJob<T, E, F> {
    /// A job that began and was never answered was lost in a panic of the storage thread itself: nobody knows its outcome.
    /// One that did not begin needs no word: its caller hears that the thread is gone.
    fn drop(&mut self) {
        let began = match self.state {
            State::Queued(_) => false,
            State::Running | State::Ran(_) => true,
        };
        if let Some(caller) = self.caller.take().filter(|_| began) {
            let message = "the storage thread ended inside a transaction".into();
            let _ = caller.send(Err(WriteError::OutcomeUnknown(StoreError::Panicked { message })));
        }
    }
}
