//! A line that handles whole messages: it loses, repeats, swaps and delays them, as the seed says.
//!
//! A way of bytes loses nothing, as TCP does. What stands between a client and its node in the world outside, a proxy that
//! speaks HTTP/2, can do worse. Here is one: on every connection of its client it serves the node's rpcs, whatever they are,
//! and carries each message on, or does not. It reads no message, but where the node is to seem a liar
//! ([`crate::foe::liar`]). When one of its two connections ends, so does the other.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use sync_core::limits;
use sync_host::Stream;
use sync_proto::v1::sync_server::SERVICE_NAME;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::{self, NamedService, StreamingService};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::foe::liar::{Lie, Mouth, Towards};

/// How often a line does each thing to a message: so many in a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garble {
    /// It never comes. A call whose only message is lost goes unanswered.
    pub lost: u8,
    /// It comes twice. A call with one message is made twice, and the first answer counts.
    pub twice: u8,
    /// It comes after the next one.
    pub swapped: u8,
    /// It comes some seconds late, and what is behind it in its stream waits.
    pub late: u8,
}

impl Garble {
    /// Every message comes, once, in its place and at once.
    pub const CLEAR: Self = Self { lost: 0, twice: 0, swapped: 0, late: 0 };
}

impl fmt::Display for Garble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, twice, swapped, late } = self;
        write!(f, "of 100 messages {lost} are lost, {twice} come twice, {swapped} after the next, {late} late")
    }
}

/// The longest that a late message takes.
const LATE_MAX: Duration = Duration::from_secs(12);
/// Messages that wait in a line, in each direction of a call.
const WAITING_MAX: usize = 16;
/// Bytes between a client and its line.
const NEAR_BYTES: usize = 64 << 10;

/// The rpcs with many requests, and those with many answers. In all others one message is all there is.
const MANY_REQUESTS: [&str; 4] = ["Push", "Repush", "HeadUpdates", "HeadSync"];
const MANY_ANSWERS: [&str; 6] = ["Push", "Repush", "HeadUpdates", "HeadSync", "AclRead", "Fetch"];

/// The line of one client: what is done to its messages from now on.
pub(crate) struct Line(Mutex<State>);

struct State {
    garble: Garble,
    mouth: Mouth,
    dice: ChaCha8Rng,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    Lost,
    Twice,
    AfterNext,
    Late(Duration),
}

/// Whether a message is the only one of its direction in its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    Only,
    OneOfMany,
}

impl Kin {
    fn of(path: &str, many: &[&str]) -> Self {
        let rpc = path.rsplit('/').next().unwrap_or_default();
        if many.contains(&rpc) { Self::OneOfMany } else { Self::Only }
    }
}

impl Line {
    pub(crate) fn new(dice: ChaCha8Rng) -> Self {
        Self(Mutex::new(State { garble: Garble::CLEAR, mouth: Mouth::default(), dice }))
    }

    pub(crate) fn garble(&self, garble: Garble) {
        self.lock().garble = garble;
    }

    /// From now on the node seems to lie so.
    pub(crate) fn tell(&self, lie: Option<Lie>) {
        self.lock().mouth.tell(lie);
    }

    fn twist(&self, path: &str, to: Towards, message: Bytes) -> Option<Bytes> {
        let mut state = self.lock();
        let State { mouth, dice, .. } = &mut *state;
        mouth.twist(path, to, message, dice)
    }

    fn fate(&self) -> Fate {
        let mut state = self.lock();
        let Garble { lost, twice, swapped, late } = state.garble;
        let mut left = state.dice.random_range(0..100_u8);
        for (share, fate) in [(lost, Fate::Lost), (twice, Fate::Twice), (swapped, Fate::AfterNext)] {
            if left < share {
                return fate;
            }
            left -= share;
        }
        let wait = Duration::from_millis(state.dice.random_range(1..=LATE_MAX.as_millis() as u64));
        if left < late { Fate::Late(wait) } else { Fate::Passes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a line into a connection to a node; what the client has of it.
pub(crate) fn put_into(node: Stream, line: Arc<Line>) -> Stream {
    let (near, far) = tokio::io::duplex(NEAR_BYTES);
    let ended = CancellationToken::new();
    let node = Tied::new(node, &ended);
    tokio::spawn(serve(Tied::new(far, &ended), node, line));
    Box::new(near)
}

async fn serve(client: Tied<DuplexStream>, node: Tied<Stream>, line: Arc<Line>) {
    let mut node = Some(TokioIo::new(node));
    let only_once = tower::service_fn(move |_: Uri| {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection to the node has ended");
        ready(node.take().ok_or_else(gone))
    });
    let endpoint = Endpoint::from_static("http://node")
        .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    // One that cannot be begun has ended, and the other with it.
    let Ok(node) = endpoint.connect_with_connector(only_once).await else { return };
    let carrier = Carrier { node, line };
    let connections = tokio_stream::iter([Ok::<_, io::Error>(client)]);
    // The connection outlives what accepts it, and says itself how it ends.
    let _ = Server::builder().add_service(carrier).serve_with_incoming(connections).await;
}

// ---- a connection that ends with another ----------------------------------------------------------------------------

/// One of two connections that end together.
struct Tied<S> {
    stream: S,
    ended: CancellationToken,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Tied<S> {
    fn new(stream: S, ended: &CancellationToken) -> Self {
        Self { stream, ended: ended.clone(), end: Box::pin(ended.clone().cancelled_owned()) }
    }
}

impl<S> Drop for Tied<S> {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Connected for Tied<DuplexStream> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Tied<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let at_end = matches!(&read, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if at_end || matches!(&read, Poll::Ready(Err(_))) {
            self.ended.cancel();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tied<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// ---- calls ----------------------------------------------------------------------------------------------------------

/// Answers every rpc of the node with what the node answers.
#[derive(Clone)]
struct Carrier {
    node: Channel,
    line: Arc<Line>,
}

type Answers = ReceiverStream<Result<Bytes, Status>>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

impl NamedService for Carrier {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Carrier {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = Call { carrier: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move { Ok(server::Grpc::new(Sealed).streaming(call, request).await) })
    }
}

/// One call of one rpc.
#[derive(Clone)]
struct Call {
    carrier: Carrier,
    path: String,
}

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Answering {
        Box::pin(self.clone().carry(request))
    }
}

impl Call {
    async fn carry(self, request: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (out, carried) = mpsc::channel(WAITING_MAX);
        let up = Pump { call: self.clone(), kin: Kin::of(&self.path, &MANY_REQUESTS), out, held: None };
        tokio::spawn(up.run(requests, Again::Calls(metadata.clone())));
        let requests = tokio_stream::StreamExt::map_while(ReceiverStream::new(carried), Result::ok);
        let (metadata, answers, _) = self.ask(metadata, requests).await?.into_parts();
        let (out, carried) = mpsc::channel(WAITING_MAX);
        let down = Pump { kin: Kin::of(&self.path, &MANY_ANSWERS), call: self, out, held: None };
        tokio::spawn(down.run(answers, Again::Sends));
        Ok(Response::from_parts(metadata, ReceiverStream::new(carried), Extensions::default()))
    }

    async fn ask(
        &self,
        metadata: MetadataMap,
        requests: impl tokio_stream::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let gone = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let mut node = client::Grpc::new(self.carrier.node.clone());
        node.ready().await.map_err(gone)?;
        let path = self.path.parse().map_err(|_| Status::unimplemented("a path that is none"))?;
        node.streaming(Request::from_parts(metadata, Extensions::default(), requests), path, Sealed).await
    }
}

/// What it means that the only message of a direction comes twice.
enum Again {
    /// The call is made twice.
    Calls(MetadataMap),
    /// A second answer has no place.
    Sends,
}

/// One direction of a call.
struct Pump {
    call: Call,
    kin: Kin,
    out: mpsc::Sender<Result<Bytes, Status>>,
    /// Comes after the next message.
    held: Option<Bytes>,
}

/// Nobody takes the messages any more.
struct Gone;

impl Pump {
    async fn run(mut self, mut messages: Streaming<Bytes>, again: Again) {
        let out = self.out.clone();
        tokio::select! {
            biased;
            () = out.closed() => {}
            _ = self.carry(&mut messages, &again) => {}
        }
    }

    async fn carry(&mut self, messages: &mut Streaming<Bytes>, again: &Again) -> Result<(), Gone> {
        loop {
            match messages.message().await {
                Ok(Some(message)) => self.take(message, again).await?,
                Ok(None) => return self.pass_held().await,
                Err(status) => {
                    self.pass_held().await?;
                    return self.out.send(Err(status)).await.map_err(|_| Gone);
                }
            }
        }
    }

    async fn take(&mut self, message: Bytes, again: &Again) -> Result<(), Gone> {
        let to = match again {
            Again::Calls(_) => Towards::Node,
            Again::Sends => Towards::Client,
        };
        let Some(message) = self.call.carrier.line.twist(&self.call.path, to, message) else { return Ok(()) };
        match (self.call.carrier.line.fate(), self.kin, again) {
            (Fate::Passes, ..) | (Fate::AfterNext, Kin::Only, _) | (Fate::Twice, Kin::Only, Again::Sends) => {
                self.pass(message).await
            }
            (Fate::Lost, Kin::OneOfMany, _) => Ok(()),
            (Fate::Lost, Kin::Only, _) => std::future::pending().await,
            (Fate::Twice, Kin::OneOfMany, _) => {
                self.pass(message.clone()).await?;
                self.pass(message).await
            }
            (Fate::Twice, Kin::Only, Again::Calls(metadata)) => {
                self.pass(message.clone()).await?;
                tokio::spawn(self.call.clone().again(metadata.clone(), message));
                Ok(())
            }
            (Fate::AfterNext, Kin::OneOfMany, _) => match self.held.replace(message) {
                Some(earlier) => self.send(earlier).await,
                None => Ok(()),
            },
            (Fate::Late(wait), ..) => {
                tokio::time::sleep(wait).await;
                self.pass(message).await
            }
        }
    }

    async fn pass(&mut self, message: Bytes) -> Result<(), Gone> {
        self.send(message).await?;
        self.pass_held().await
    }

    async fn pass_held(&mut self) -> Result<(), Gone> {
        match self.held.take() {
            Some(held) => self.send(held).await,
            None => Ok(()),
        }
    }

    async fn send(&self, message: Bytes) -> Result<(), Gone> {
        self.out.send(Ok(message)).await.map_err(|_| Gone)
    }
}

impl Call {
    /// The same call once more; nobody waits for its answers.
    async fn again(self, metadata: MetadataMap, message: Bytes) {
        let Ok(answers) = self.ask(metadata, tokio_stream::iter([message])).await else { return };
        let mut answers = answers.into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    }
}

/// Messages as bytes, in both directions.
struct Sealed;

impl Codec for Sealed {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Sealed {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(message);
        Ok(())
    }
}

impl Decoder for Sealed {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}
