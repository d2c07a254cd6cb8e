//! A relay between a client and a plaintext node: forwards every call, metadata included, and does to them what a bad network
//! or a bad proxy would, but on purpose.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use client_sdk::{NodeAddress, SpaceId};
use sync_proto::v1::sync_client::SyncClient;
use sync_proto::v1::sync_server::{Sync, SyncServer};
use sync_proto::v1::{self, head_updates_response};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Extensions, Request, Response, Status, Streaming};

/// Messages that may wait in the relay, on each stream.
const FRAMES: usize = 64;

/// A message of the tail, from the node to the client.
pub type Frame = head_updates_response::Message;

/// What becomes of a message of the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Drop,
    Twice,
    /// After the next message that passes.
    AfterNext,
    /// At [`Relay::heal`], in order.
    Hold,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    Forward,
    /// UNAVAILABLE; the node never hears of it.
    Refuse,
    /// The node does what it is asked; then UNAVAILABLE instead of its (first) answer.
    LoseAnswer,
    /// No answer at all; the node never hears of it.
    HangBefore,
    /// The node does what it is asked, and no answer comes through.
    HangAfter,
}

/// The protocol versions that the two sides say to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    AsTheyAre,
    /// The client says that it speaks from one to another.
    OfClient(u32, u32),
    /// The node says so.
    OfNode(u32, u32),
}

type FrameRule = Box<dyn FnMut(&Frame) -> Fate + Send>;
type Edit = Box<dyn FnMut(&mut Frame) + Send>;
type CallRule = Box<dyn FnMut(&'static str, &[u8]) -> Calls + Send>;

struct Rules {
    edit: Edit,
    frames: FrameRule,
    calls: CallRule,
    versions: Versions,
    /// How often each fate other than passing was met.
    met: BTreeMap<&'static str, u64>,
}

struct Faults {
    rules: Mutex<Rules>,
    healed: watch::Sender<u64>,
    cut: watch::Sender<u64>,
}

impl Faults {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, frame: &mut Frame) -> Fate {
        let mut rules = self.rules();
        (rules.edit)(frame);
        let fate = (rules.frames)(frame);
        if fate != Fate::Pass {
            *rules.met.entry("frames").or_default() += 1;
        }
        fate
    }

    fn call(&self, name: &'static str, space: &[u8]) -> Calls {
        let mut rules = self.rules();
        let fate = (rules.calls)(name, space);
        if fate != Calls::Forward {
            *rules.met.entry(name).or_default() += 1;
        }
        fate
    }
}

/// A relay on a port of its own. It ends with this handle.
pub struct Relay {
    address: NodeAddress,
    faults: Arc<Faults>,
    server: AbortHandle,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Relay").field(&self.address).finish()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Relay {
    /// Starts a relay in front of a node that runs with `--plaintext`.
    pub async fn start(node: &NodeAddress) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = listener.local_addr().expect("a bound listener has an address").to_string();
        let channel = Channel::from_shared(format!("http://{}", node.endpoint)).expect("an endpoint").connect_lazy();
        let rules = Rules {
            edit: Box::new(|_| {}),
            frames: Box::new(|_| Fate::Pass),
            calls: Box::new(|_, _| Calls::Forward),
            versions: Versions::AsTheyAre,
            met: BTreeMap::new(),
        };
        let (healed, cut) = (watch::channel(0).0, watch::channel(0).0);
        let faults = Arc::new(Faults { rules: Mutex::new(rules), healed, cut });
        let service = SyncServer::new(Forward { node: SyncClient::new(channel), faults: faults.clone() });
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serving.await.expect("the relay serves") }).abort_handle();
        Self { address: NodeAddress { endpoint, ..node.clone() }, faults, server }
    }

    /// The address of the node by way of this relay.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// From now on, `rule` says what becomes of each message of the tail.
    pub fn frames(&self, rule: impl FnMut(&Frame) -> Fate + Send + 'static) {
        self.faults.rules().frames = Box::new(rule);
    }

    /// From now on, `edit` changes each message of the tail before it goes on: a node that lies.
    pub fn edits(&self, edit: impl FnMut(&mut Frame) + Send + 'static) {
        self.faults.rules().edit = Box::new(edit);
    }

    /// From now on, `rule` says what becomes of each call, by the name of its rpc.
    pub fn calls(&self, mut rule: impl FnMut(&'static str) -> Calls + Send + 'static) {
        self.calls_of(move |name, _| rule(name));
    }

    /// As [`Relay::calls`], by the space, too; it is empty where a call concerns none or several.
    pub fn calls_of(&self, rule: impl FnMut(&'static str, &[u8]) -> Calls + Send + 'static) {
        self.faults.rules().calls = Box::new(rule);
    }

    /// From now on, no call for this space comes through.
    pub fn refuse_space(&self, refused: SpaceId) {
        self.calls_of(move |_, space| if *space == *refused.as_bytes() { Calls::Refuse } else { Calls::Forward });
    }

    /// From now on, one side seems to be of another version.
    pub fn versions(&self, versions: Versions) {
        self.faults.rules().versions = versions;
    }

    /// Ends every stream that is open, as a network does.
    pub fn cut(&self) {
        self.faults.cut.send_modify(|n| *n += 1);
    }

    /// Lets everything pass from now on, and first what was held.
    pub fn heal(&self) {
        let mut rules = self.faults.rules();
        rules.edit = Box::new(|_| {});
        rules.frames = Box::new(|_| Fate::Pass);
        rules.calls = Box::new(|_, _| Calls::Forward);
        rules.versions = Versions::AsTheyAre;
        self.faults.healed.send_modify(|n| *n += 1);
    }

    /// What was held of the tail comes now, and all that follows; the other rules stay.
    pub fn let_pass(&self) {
        self.faults.rules().frames = Box::new(|_| Fate::Pass);
        self.faults.healed.send_modify(|n| *n += 1);
    }

    /// How many messages of the tail did not simply pass.
    #[must_use]
    pub fn frames_met(&self) -> u64 {
        self.faults.rules().met.get("frames").copied().unwrap_or(0)
    }

    /// How many calls of an rpc did not simply pass.
    #[must_use]
    pub fn calls_met(&self, name: &'static str) -> u64 {
        self.faults.rules().met.get(name).copied().unwrap_or(0)
    }
}

/// The entries of a message of the tail.
#[must_use]
pub fn entries(frame: &Frame) -> usize {
    match frame {
        Frame::Update(update) => update.entries.len(),
        Frame::Heartbeat(_)
        | Frame::Rewound(_)
        | Frame::Refused(_)
        | Frame::Pong(_)
        | Frame::Durable(_)
        | Frame::Subscribed(_) => 0,
    }
}

struct Forward {
    node: SyncClient<Channel>,
    faults: Arc<Faults>,
}

fn fresh<T>(request: Request<T>) -> Request<T> {
    let (metadata, _, body) = request.into_parts();
    Request::from_parts(metadata, Extensions::default(), body)
}

fn fresh_stream<T: Send + 'static>(
    request: Request<Streaming<T>>,
) -> Request<impl tokio_stream::Stream<Item = T> + Send + 'static> {
    let (metadata, _, body) = request.into_parts();
    Request::from_parts(metadata, Extensions::default(), body.map_while(Result::ok))
}

fn unavailable() -> Status {
    Status::unavailable("the relay has no way to the node")
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Forward {
    async fn unary<Q, A, F>(
        &self,
        (name, space): (&'static str, Bytes),
        request: Request<Q>,
        call: impl FnOnce(SyncClient<Channel>, Request<Q>) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let fate = self.faults.call(name, &space);
        match fate {
            Calls::Refuse => return Err(unavailable()),
            Calls::HangBefore => return std::future::pending().await,
            Calls::Forward | Calls::LoseAnswer | Calls::HangAfter => {}
        }
        let answer = call(self.node.clone(), fresh(request)).await;
        match fate {
            Calls::LoseAnswer => Err(unavailable()),
            Calls::HangAfter => std::future::pending().await,
            Calls::Forward | Calls::Refuse | Calls::HangBefore => answer,
        }
    }

    async fn stream<Q, A, F>(
        &self,
        (name, space): (&'static str, Bytes),
        request: Q,
        call: impl FnOnce(SyncClient<Channel>, Q) -> F,
    ) -> Result<Response<Answers<A>>, Status>
    where
        A: Send + 'static,
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let fate = self.faults.call(name, &space);
        match fate {
            Calls::Refuse => return Err(unavailable()),
            Calls::HangBefore => return std::future::pending().await,
            Calls::Forward | Calls::LoseAnswer | Calls::HangAfter => {}
        }
        let mut answers = call(self.node.clone(), request).await?.into_inner();
        if fate == Calls::HangAfter {
            return std::future::pending().await;
        }
        let (out, forwarded) = mpsc::channel(FRAMES);
        let mut cut = self.faults.cut.subscribe();
        tokio::spawn(async move {
            loop {
                let answer = tokio::select! {
                    _ = cut.changed() => Err(unavailable()),
                    () = out.closed() => return,
                    answer = answers.message() => match answer.transpose() {
                        None => return,
                        Some(Ok(_)) if fate == Calls::LoseAnswer => Err(unavailable()),
                        Some(answer) => answer,
                    },
                };
                let last = answer.is_err();
                if out.send(answer).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(forwarded)))
    }
}

/// One tail on its way to a client.
struct Tail {
    faults: Arc<Faults>,
    out: mpsc::Sender<Result<v1::HeadUpdatesResponse, Status>>,
    held: VecDeque<Frame>,
    late: Option<Frame>,
}

impl Tail {
    async fn run(mut self, mut frames: Streaming<v1::HeadUpdatesResponse>) {
        let mut cut = self.faults.cut.subscribe();
        let mut healed = self.faults.healed.subscribe();
        loop {
            let passed = tokio::select! {
                biased;
                _ = cut.changed() => {
                    let _ = self.out.send(Err(unavailable())).await;
                    return;
                }
                () = self.out.closed() => return,
                _ = healed.changed() => self.release().await,
                frame = frames.message() => match frame {
                    Ok(Some(v1::HeadUpdatesResponse { message: Some(frame) })) => self.take(frame).await,
                    Ok(Some(v1::HeadUpdatesResponse { message: None })) => Ok(()),
                    Ok(None) => return,
                    Err(status) => {
                        let _ = self.out.send(Err(status)).await;
                        return;
                    }
                },
            };
            if passed.is_err() {
                return;
            }
        }
    }

    async fn take(&mut self, mut frame: Frame) -> Result<(), Gone> {
        match self.faults.frame(&mut frame) {
            Fate::Drop => Ok(()),
            Fate::Pass => self.pass(frame).await,
            Fate::Twice => {
                self.pass(frame.clone()).await?;
                self.pass(frame).await
            }
            Fate::AfterNext => match self.late.replace(frame) {
                Some(earlier) => self.send(earlier).await,
                None => Ok(()),
            },
            Fate::Hold => {
                self.held.push_back(frame);
                Ok(())
            }
        }
    }

    async fn pass(&mut self, frame: Frame) -> Result<(), Gone> {
        self.send(frame).await?;
        match self.late.take() {
            Some(late) => self.send(late).await,
            None => Ok(()),
        }
    }

    async fn release(&mut self) -> Result<(), Gone> {
        while let Some(frame) = self.held.pop_front() {
            self.send(frame).await?;
        }
        Ok(())
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.out.send(Ok(v1::HeadUpdatesResponse { message: Some(frame) })).await.map_err(|_| Gone)
    }
}

/// The client hung up.
struct Gone;

#[tonic::async_trait]
impl Sync for Forward {
    async fn open_session(&self, mut request: Request<v1::Hello>) -> Result<Response<v1::Challenge>, Status> {
        let versions = self.faults.rules().versions;
        if let Versions::OfClient(min, max) = versions {
            request.get_mut().versions = Some(v1::VersionRange { min, max });
        }
        let challenge = self.unary(("OpenSession", Bytes::new()), request, |mut node, request| async move {
            node.open_session(request).await
        });
        let mut challenge = challenge.await?;
        if let Versions::OfNode(min, max) = versions {
            challenge.get_mut().versions = Some(v1::VersionRange { min, max });
        }
        Ok(challenge)
    }

    async fn prove_session(&self, request: Request<v1::Proof>) -> Result<Response<v1::SessionToken>, Status> {
        self.unary(("ProveSession", Bytes::new()), request, |mut node, request| async move {
            node.prove_session(request).await
        })
        .await
    }

    async fn space_push(&self, request: Request<v1::SpacePushRequest>) -> Result<Response<v1::SpacePosition>, Status> {
        self.unary(
            ("SpacePush", Bytes::new()),
            request,
            |mut node, request| async move { node.space_push(request).await },
        )
        .await
    }

    async fn space_pull(
        &self,
        request: Request<v1::SpacePullRequest>,
    ) -> Result<Response<v1::SpacePullResponse>, Status> {
        let space = request.get_ref().space.clone();
        self.unary(("SpacePull", space), request, |mut node, request| async move { node.space_pull(request).await })
            .await
    }

    type AclReadStream = Answers<v1::AclReadResponse>;

    async fn acl_read(&self, request: Request<v1::AclReadRequest>) -> Result<Response<Self::AclReadStream>, Status> {
        let space = request.get_ref().space.clone();
        self.stream(("AclRead", space), fresh(request), |mut node, request| async move { node.acl_read(request).await })
            .await
    }

    async fn acl_append(
        &self,
        request: Request<v1::AclAppendRequest>,
    ) -> Result<Response<v1::AclAppendResponse>, Status> {
        let space = request.get_ref().space.clone();
        self.unary(("AclAppend", space), request, |mut node, request| async move { node.acl_append(request).await })
            .await
    }

    type PushStream = Answers<v1::PushResponse>;

    async fn push(&self, request: Request<Streaming<v1::PushRequest>>) -> Result<Response<Self::PushStream>, Status> {
        let request = fresh_stream(request);
        self.stream(("Push", Bytes::new()), request, |mut node, request| async move { node.push(request).await }).await
    }

    type RepushStream = Answers<v1::RepushResponse>;

    async fn repush(
        &self,
        request: Request<Streaming<v1::RepushRequest>>,
    ) -> Result<Response<Self::RepushStream>, Status> {
        let request = fresh_stream(request);
        self.stream(("Repush", Bytes::new()), request, |mut node, request| async move { node.repush(request).await })
            .await
    }

    type HeadUpdatesStream = Answers<v1::HeadUpdatesResponse>;

    async fn head_updates(
        &self,
        request: Request<Streaming<v1::HeadUpdatesRequest>>,
    ) -> Result<Response<Self::HeadUpdatesStream>, Status> {
        if self.faults.call("HeadUpdates", &[]) != Calls::Forward {
            return Err(unavailable());
        }
        let frames = self.node.clone().head_updates(fresh_stream(request)).await?.into_inner();
        let (out, forwarded) = mpsc::channel(FRAMES);
        let tail = Tail { faults: self.faults.clone(), out, held: VecDeque::new(), late: None };
        tokio::spawn(tail.run(frames));
        Ok(Response::new(ReceiverStream::new(forwarded)))
    }

    type HeadSyncStream = Answers<v1::HeadSyncResponse>;

    async fn head_sync(
        &self,
        request: Request<Streaming<v1::HeadSyncRequest>>,
    ) -> Result<Response<Self::HeadSyncStream>, Status> {
        let request = fresh_stream(request);
        self.stream(
            ("HeadSync", Bytes::new()),
            request,
            |mut node, request| async move { node.head_sync(request).await },
        )
        .await
    }

    type FetchStream = Answers<v1::FetchResponse>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let space = request.get_ref().space.clone();
        self.stream(("Fetch", space), fresh(request), |mut node, request| async move { node.fetch(request).await })
            .await
    }

    async fn certify(&self, request: Request<v1::CertifyRequest>) -> Result<Response<v1::CertifyResponse>, Status> {
        let space = request.get_ref().space.clone();
        self.unary(("Certify", space), request, |mut node, request| async move { node.certify(request).await }).await
    }
}
