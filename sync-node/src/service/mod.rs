//! The rpcs: each module maps one group of messages to the gate and back. No rule is decided here.

mod certify;
mod fetch;
mod headsync;
mod push;
mod repush;
mod session;
mod spaces;
mod tail;

pub(crate) use repush::Turns;

use std::future::Future;
use std::sync::Arc;

use sync_core::code::Code;
use sync_core::ids::SpaceId;
use sync_core::limits;
use sync_host::Host;
use sync_proto::v1::sync_server::Sync;
use sync_proto::v1::{
    AclAppendRequest, AclAppendResponse, AclReadRequest, AclReadResponse, CertifyRequest, CertifyResponse, Challenge,
    FetchRequest, FetchResponse, HeadSyncRequest, HeadSyncResponse, HeadUpdatesRequest, HeadUpdatesResponse, Hello,
    Proof, PushRequest, PushResponse, RepushRequest, RepushResponse, SessionToken, SpacePosition, SpacePullRequest,
    SpacePullResponse, SpacePushRequest,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, debug, info_span};

use crate::answers::{self, AnswerStream, Answers};
use crate::failure::{CallError, overloaded};
use crate::gate::Gate;
use crate::identity::Identity;
use crate::incoming::Link;
use crate::receipts::Receipts;
use crate::session::{Session, Sessions, revoked};
use crate::shutdown::Tasks;
use crate::sketches::Sketches;

/// What every call can reach.
pub(crate) struct State {
    pub(crate) host: Host,
    pub(crate) identity: Arc<Identity>,
    pub(crate) sessions: Sessions,
    pub(crate) gate: Gate,
    pub(crate) receipts: Receipts,
    pub(crate) sketches: Sketches,
    pub(crate) tasks: Tasks,
    /// Pushed messages that are verified beside each other: more would only hold memory, and the threads that read.
    pub(crate) verifying: Semaphore,
    /// Re-pushes at the same time: each holds the ids of what it brings back.
    pub(crate) repushing: Turns,
}

/// The `Sync` service of one node.
#[derive(Clone)]
pub(crate) struct SyncService {
    state: Arc<State>,
}

impl SyncService {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Who is calling, and the span in which the call is logged.
    fn enter<T>(&self, rpc: &'static str, request: &Request<T>) -> Result<(Session, Span), Status> {
        let session = self.state.sessions.authenticate(self.state.host.now(), request.metadata(), link(request)?)?;
        let (account, device) = (session.account().short(), session.device().short());
        Ok((session, info_span!("rpc", rpc, account, device, space = Empty)))
    }

    /// As [`SyncService::enter`], for a call that concerns one space.
    fn enter_space<T>(&self, rpc: &'static str, request: &Request<T>, space: &[u8]) -> Result<(Session, Span), Status> {
        let (session, span) = self.enter(rpc, request)?;
        if let Ok(space) = SpaceId::try_from(space) {
            span.record("space", space.short());
        }
        Ok((session, span))
    }
}

/// The connection of a request.
fn link<T>(request: &Request<T>) -> Result<&Link, Status> {
    request.extensions().get::<Link>().ok_or_else(|| Status::internal("a request without a connection"))
}

/// The span of a piece of work on one space, in a stream that may concern many. What is recorded in the span of the stream is
/// kept, and printed, until the stream ends: nothing may be, but once.
fn about(space: SpaceId) -> Span {
    info_span!("about", space = %space.short())
}

/// Bounds a call that has one answer.
async fn unary<T>(span: Span, call: impl Future<Output = Result<T, CallError>>) -> Result<Response<T>, Status> {
    let call = tokio::time::timeout(limits::UNARY_TIMEOUT, call).instrument(span.clone());
    let answer = call.await.unwrap_or_else(|_elapsed| Err(overloaded().into()));
    answer.map(Response::new).map_err(|error| span.in_scope(|| refuse(error)))
}

/// The last step of a failed call.
fn refuse(error: CallError) -> Status {
    let failure = error.into_failure();
    debug!(code = %failure.code, reason = failure.message, "refused");
    failure.into()
}

type Answering<T> = Result<Response<AnswerStream<T>>, Status>;

/// Runs a streaming call as a task of its own. It ends when its work does, when the caller hangs up, when its device is
/// revoked, or when the node stops.
fn stream<T, F>(state: &Arc<State>, session: Session, span: Span, work: impl FnOnce(Answers<T>) -> F) -> Answering<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), CallError>> + Send + 'static,
{
    let (sender, receiver) = answers::channel(session.pages());
    let work = work(sender.clone());
    let state_of_task = Arc::clone(state);
    let task = async move {
        let ended = tokio::select! {
            biased;
            () = session.revoked() => Err(revoked().into()),
            () = state_of_task.tasks.stopped() => Err(CallError::shutting_down()),
            () = sender.closed() => Err(CallError::HungUp),
            ended = work => ended,
        };
        match ended {
            Ok(()) | Err(CallError::HungUp) => {}
            // Bounded: a reader that takes nothing is not waited for when the node stops.
            Err(error) => {
                sender.end(refuse(error)).await;
            }
        }
    };
    state.tasks.spawn(task.instrument(span));
    Ok(Response::new(receiver))
}

/// The next message of a caller; `None` when it has no more, or is gone.
///
/// # Errors
/// For a message that is too large, or is none.
async fn next<T>(requests: &mut Streaming<T>) -> Result<Option<T>, CallError> {
    let status = match requests.message().await {
        Ok(message) => return Ok(message),
        Err(status) => status,
    };
    if status.code() == tonic::Code::OutOfRange {
        let max = limits::MESSAGE_BYTES_MAX;
        return Err(CallError::new(Code::TooLarge, format!("a message is longer than {max} bytes")));
    }
    if status.code() == tonic::Code::Internal {
        return Err(CallError::new(Code::Malformed, "a message cannot be decoded"));
    }
    // The rest is the connection's end.
    debug!(code = ?status.code(), "the caller's stream broke");
    Ok(None)
}

#[tonic::async_trait]
impl Sync for SyncService {
    async fn open_session(&self, request: Request<Hello>) -> Result<Response<Challenge>, Status> {
        let link = link(&request)?.clone();
        let span = info_span!("rpc", rpc = "OpenSession", connection = link.number());
        unary(span, async { session::open(&self.state, &link, request.into_inner()) }).await
    }

    async fn prove_session(&self, request: Request<Proof>) -> Result<Response<SessionToken>, Status> {
        let link = link(&request)?.clone();
        let span = info_span!("rpc", rpc = "ProveSession", connection = link.number());
        unary(span, session::prove(Arc::clone(&self.state), link, request.into_inner())).await
    }

    async fn space_push(&self, request: Request<SpacePushRequest>) -> Result<Response<SpacePosition>, Status> {
        let (session, span) = self.enter("SpacePush", &request)?;
        unary(span, spaces::space_push(&self.state, &session, request.into_inner())).await
    }

    async fn space_pull(&self, request: Request<SpacePullRequest>) -> Result<Response<SpacePullResponse>, Status> {
        let (session, span) = self.enter_space("SpacePull", &request, &request.get_ref().space)?;
        unary(span, spaces::space_pull(&self.state, &session, request.into_inner())).await
    }

    type AclReadStream = AnswerStream<AclReadResponse>;

    async fn acl_read(&self, request: Request<AclReadRequest>) -> Answering<AclReadResponse> {
        let (session, span) = self.enter_space("AclRead", &request, &request.get_ref().space)?;
        let (state, request) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| spaces::acl_read(state, session, request, answers))
    }

    async fn acl_append(&self, request: Request<AclAppendRequest>) -> Result<Response<AclAppendResponse>, Status> {
        let (session, span) = self.enter_space("AclAppend", &request, &request.get_ref().space)?;
        unary(span, spaces::acl_append(&self.state, &session, request.into_inner())).await
    }

    type PushStream = AnswerStream<PushResponse>;

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Answering<PushResponse> {
        let (session, span) = self.enter("Push", &request)?;
        let (state, requests) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| push::push(state, session, requests, answers))
    }

    type RepushStream = AnswerStream<RepushResponse>;

    async fn repush(&self, request: Request<Streaming<RepushRequest>>) -> Answering<RepushResponse> {
        let (session, span) = self.enter("Repush", &request)?;
        let (state, requests) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| repush::repush(state, session, requests, answers))
    }

    type HeadUpdatesStream = AnswerStream<HeadUpdatesResponse>;

    async fn head_updates(&self, request: Request<Streaming<HeadUpdatesRequest>>) -> Answering<HeadUpdatesResponse> {
        let (session, span) = self.enter("HeadUpdates", &request)?;
        let (state, requests) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| tail::head_updates(state, session, requests, answers))
    }

    type HeadSyncStream = AnswerStream<HeadSyncResponse>;

    async fn head_sync(&self, request: Request<Streaming<HeadSyncRequest>>) -> Answering<HeadSyncResponse> {
        let (session, span) = self.enter("HeadSync", &request)?;
        let (state, requests) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| headsync::head_sync(state, session, requests, answers))
    }

    type FetchStream = AnswerStream<FetchResponse>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Answering<FetchResponse> {
        let (session, span) = self.enter_space("Fetch", &request, &request.get_ref().space)?;
        let (state, request) = (Arc::clone(&self.state), request.into_inner());
        stream(&self.state, session.clone(), span, |answers| fetch::fetch(state, session, request, answers))
    }

    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let (session, span) = self.enter_space("Certify", &request, &request.get_ref().space)?;
        unary(span, certify::certify(&self.state, &session, request.into_inner())).await
    }
}
