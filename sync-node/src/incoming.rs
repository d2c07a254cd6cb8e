//! Connections: accepted, bounded in number, and wrapped in TLS before anything else is read from them.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use sync_core::limits;
use sync_host::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Connected;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::shutdown::Tasks;

/// Connections whose handshake is done and that wait to be served.
const READY_MAX: usize = 64;
/// The pause after a failed accept (no descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may stand before somebody has proved an identity on it: the HTTP/2 preface and the handshake.
const UNPROVEN_MAX: Duration = limits::HANDSHAKE_TIMEOUT.saturating_mul(2);

/// One address has at most this part of a node's connections,
const ADDRESS_SHARE: usize = 8;
/// and at least so many, where the node has room for them.
const CONNECTIONS_PER_ADDRESS_MIN: usize = 64;
/// Sessions of one connection.
const SESSIONS_PER_CONNECTION_MAX: usize = 16;

/// How connections are protected.
#[derive(Clone)]
pub(crate) enum Protection {
    Tls(TlsAcceptor),
    /// None of ours: loopback, or behind a proxy.
    Plain,
}

/// Whether a session may be used on another connection than the one that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    ThisConnection,
    /// A proxy may spread one client's calls over several connections.
    AnyConnection,
}

/// What a call knows of the connection that it came on. Cloned into every request; alive as long as the connection or a
/// request on it.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<LinkInner>);

#[derive(Debug)]
struct LinkInner {
    number: u64,
    binding: Binding,
    /// Somebody proved an identity on this connection.
    proven: AtomicBool,
    sessions: Arc<Semaphore>,
    subscriptions: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

/// See [`Link::session_room`].
pub(crate) enum SessionRoom {
    /// Of this connection's share.
    Counted(OwnedSemaphorePermit),
    /// Behind a proxy a connection is nobody's in particular.
    Uncounted,
}

impl SessionRoom {
    pub(crate) fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        match self {
            Self::Counted(permit) => Some(permit),
            Self::Uncounted => None,
        }
    }
}

impl Link {
    pub(crate) fn new(number: u64, binding: Binding) -> Self {
        Self(Arc::new(LinkInner {
            number,
            binding,
            proven: AtomicBool::new(false),
            sessions: Arc::new(Semaphore::new(SESSIONS_PER_CONNECTION_MAX)),
            subscriptions: Arc::new(Semaphore::new(limits::SUBSCRIPTIONS_MAX)),
            pages: Arc::new(Semaphore::new(limits::PAGES_PER_CONNECTION_MAX)),
        }))
    }

    /// Room for one more session on this connection; `None` if there is none.
    pub(crate) fn session_room(&self) -> Option<SessionRoom> {
        match self.0.binding {
            Binding::ThisConnection => Arc::clone(&self.0.sessions).try_acquire_owned().ok().map(SessionRoom::Counted),
            Binding::AnyConnection => Some(SessionRoom::Uncounted),
        }
    }

    /// Room for the subscriptions of a session that is opened here: shared by the sessions of one connection, or its own
    /// where a proxy puts many clients on one connection.
    pub(crate) fn subscriptions(&self) -> Arc<Semaphore> {
        match self.0.binding {
            Binding::ThisConnection => Arc::clone(&self.0.subscriptions),
            Binding::AnyConnection => Arc::new(Semaphore::new(limits::SUBSCRIPTIONS_MAX)),
        }
    }

    /// Room for the pages that a session of this connection is being sent; shared in the same way.
    pub(crate) fn pages(&self) -> Arc<Semaphore> {
        match self.0.binding {
            Binding::ThisConnection => Arc::clone(&self.0.pages),
            Binding::AnyConnection => Arc::new(Semaphore::new(limits::PAGES_PER_CONNECTION_MAX)),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.0.number
    }

    pub(crate) fn binding(&self) -> Binding {
        self.0.binding
    }

    /// The connection has earned its place: it is not closed for saying nothing of worth.
    pub(crate) fn note_proven(&self) {
        self.0.proven.store(true, Ordering::Relaxed);
    }

    fn is_proven(&self) -> bool {
        self.0.proven.load(Ordering::Relaxed)
    }

    /// Tells later whether the connection still stands, without keeping it.
    pub(crate) fn watch(&self) -> LinkWatch {
        LinkWatch(Arc::downgrade(&self.0))
    }
}

/// See [`Link::watch`].
#[derive(Debug)]
pub(crate) struct LinkWatch(std::sync::Weak<LinkInner>);

impl LinkWatch {
    pub(crate) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// One connection, ready to be served. Dropping it closes the socket and makes room for another.
pub(crate) struct Connection {
    socket: Socket,
    link: Link,
    /// Resolves when it is to be closed, unless somebody has proved an identity on it before.
    unproven_end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _room: (OwnedSemaphorePermit, Share),
}

enum Socket {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
}

/// A connection that somebody made to this node.
pub struct Arrived {
    pub stream: Stream,
    /// Where it comes from, for the log.
    pub peer: String,
}

impl std::fmt::Debug for Arrived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrived").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Connections, one after the other.
pub(crate) type Arriving = Pin<Box<dyn tokio_stream::Stream<Item = io::Result<Arrived>> + Send>>;

/// Those that arrive at a socket.
pub(crate) fn arriving(listener: TcpListener) -> Arriving {
    Box::pin(TcpListenerStream::new(listener).map(|accepted| accepted.and_then(arrived)))
}

fn arrived(socket: TcpStream) -> io::Result<Arrived> {
    socket.set_nodelay(true)?;
    Ok(Arrived { peer: socket.peer_addr()?.to_string(), stream: Box::new(socket) })
}

/// Accepts until shutdown. Handshakes run beside each other, so a slow one holds up nobody.
pub(crate) fn accept(
    arriving: Arriving,
    protection: Protection,
    connections_max: usize,
    tasks: &Tasks,
) -> mpsc::Receiver<Result<Connection, io::Error>> {
    let (ready, incoming) = mpsc::channel(READY_MAX);
    let acceptor = Acceptor {
        protection,
        room: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
        shares: Shares::new(connections_max),
        next: AtomicU64::new(1),
        ready,
        tasks: tasks.clone(),
    };
    tasks.spawn(async move { acceptor.run(arriving).await });
    incoming
}

struct Acceptor {
    protection: Protection,
    room: Arc<Semaphore>,
    shares: Shares,
    next: AtomicU64,
    ready: mpsc::Sender<Result<Connection, io::Error>>,
    tasks: Tasks,
}

impl Acceptor {
    async fn run(self, mut arriving: Arriving) {
        loop {
            let accepted = self.tasks.unless_stopped(self.accept_one(&mut arriving)).await.flatten();
            // Stopped, or there will be no more.
            let Some(accepted) = accepted else { return };
            match accepted {
                Ok((arrived, room)) => match self.share(&arrived) {
                    Some(share) => self.handshake(arrived, (room, share)),
                    None => debug!(peer = arrived.peer, "this address has all the connections that one may have"),
                },
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept_one(&self, arriving: &mut Arriving) -> Option<Result<(Arrived, OwnedSemaphorePermit), io::Error>> {
        // Room first: without it the backlog of the kernel is the queue.
        let room = match Arc::clone(&self.room).acquire_owned().await {
            Ok(room) => room,
            Err(closed) => return Some(Err(io::Error::other(closed))),
        };
        Some(arriving.next().await?.map(|arrived| (arrived, room)))
    }

    /// Behind a proxy all connections come from one address.
    fn share(&self, arrived: &Arrived) -> Option<Share> {
        match self.protection {
            Protection::Tls(_) => self.shares.take(origin(&arrived.peer)),
            Protection::Plain => Some(Share(None)),
        }
    }

    fn handshake(&self, arrived: Arrived, room: (OwnedSemaphorePermit, Share)) {
        let Arrived { stream, peer } = arrived;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (protection, ready, tasks) = (self.protection.clone(), self.ready.clone(), self.tasks.clone());
        let span = info_span!("connection", number, %peer);
        let task = async move {
            match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, protect(protection, stream)).await {
                Ok(Ok((socket, binding))) => {
                    debug!("connected");
                    let connection = Connection::new(socket, number, binding, room, tasks);
                    // A closed channel means that the node is stopping; the connection goes with it.
                    let _ = ready.send(Ok(connection)).await;
                }
                Ok(Err(error)) => debug!(%error, "the TLS handshake failed"),
                Err(_elapsed) => debug!("the TLS handshake took too long"),
            }
        };
        let tasks = self.tasks.clone();
        self.tasks.spawn(async move { tasks.unless_stopped(task).await }.instrument(span));
    }
}

/// Where a connection comes from: an address, or the network that one household or host has.
fn origin(peer: &str) -> Option<IpAddr> {
    match peer.parse::<SocketAddr>().ok()?.ip().to_canonical() {
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Some(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
        }
    }
}

/// Connections by where they come from: one place gets its share of all, so that it keeps nobody else out.
struct Shares {
    max: usize,
    taken: Counts,
}

/// A part of a share, given back when it is dropped; nothing where nothing is counted.
struct Share(Option<(IpAddr, Counts)>);

/// Connections of each address.
type Counts = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

impl Shares {
    fn new(connections_max: usize) -> Self {
        let max = (connections_max / ADDRESS_SHARE).max(CONNECTIONS_PER_ADDRESS_MIN).min(connections_max);
        Self { max, taken: Arc::default() }
    }

    /// `None` if that address has its share.
    fn take(&self, origin: Option<IpAddr>) -> Option<Share> {
        let Some(origin) = origin else { return Some(Share(None)) };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(origin).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share(Some((origin, Arc::clone(&self.taken)))))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some((origin, taken)) = &self.0 else { return };
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(origin) {
            *count -= 1;
            if *count == 0 {
                taken.remove(origin);
            }
        }
    }
}

async fn protect(protection: Protection, stream: Stream) -> Result<(Socket, Binding), io::Error> {
    Ok(match protection {
        Protection::Tls(acceptor) => (Socket::Tls(Box::new(acceptor.accept(stream).await?)), Binding::ThisConnection),
        Protection::Plain => (Socket::Plain(stream), Binding::AnyConnection),
    })
}

impl Connection {
    fn new(socket: Socket, number: u64, binding: Binding, room: (OwnedSemaphorePermit, Share), tasks: Tasks) -> Self {
        let link = Link::new(number, binding);
        let end = async move {
            let patience = match binding {
                Binding::ThisConnection => tokio::time::sleep(UNPROVEN_MAX),
                // Behind a proxy, who may stay connected is the proxy's affair.
                Binding::AnyConnection => return tasks.stopped().await,
            };
            // Over either way.
            let _ = tasks.unless_stopped(patience).await;
        };
        Self { socket, link, unproven_end: Some(Box::pin(end)), _room: room }
    }

    /// An error once a connection has stood too long without a proof.
    fn poll_unproven(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(end) = &mut self.unproven_end else { return Ok(()) };
        if self.link.is_proven() {
            self.unproven_end = None;
            return Ok(());
        }
        match end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody proved an identity in time")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Link;

    fn connect_info(&self) -> Link {
        self.link.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_unproven(cx)?;
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(stream) => stream.is_write_vectored(),
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes_all(rooms: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        let all = u32::try_from(limits::SUBSCRIPTIONS_MAX).unwrap();
        Arc::clone(rooms).try_acquire_many_owned(all).unwrap()
    }

    #[test]
    fn the_sessions_of_a_connection_share_its_room_for_subscriptions() {
        let link = Link::new(1, Binding::ThisConnection);
        let (one, two) = (link.subscriptions(), link.clone().subscriptions());
        let taken = takes_all(&one);
        assert!(two.try_acquire().is_err());
        drop(taken);
        assert!(two.try_acquire().is_ok());
    }

    #[test]
    fn behind_a_proxy_each_session_has_its_own_room() {
        let link = Link::new(1, Binding::AnyConnection);
        let _taken = takes_all(&link.subscriptions());
        assert!(link.subscriptions().try_acquire().is_ok());
        let rooms: Vec<_> = (0..100).map(|_| link.session_room()).collect();
        assert!(rooms.iter().all(Option::is_some));
    }

    #[test]
    fn an_address_has_its_share_of_the_connections_and_no_more() {
        let shares = Shares::new(4096);
        let (one, other) = (origin("192.0.2.1:1"), origin("192.0.2.2:1"));
        let taken: Vec<_> = (0..512).map(|_| shares.take(one).unwrap()).collect();
        assert!(shares.take(one).is_none() && shares.take(other).is_some());
        drop(taken);
        assert!(shares.take(one).is_some());
        assert!(shares.taken.lock().unwrap().is_empty(), "nothing is kept of who is gone");
        assert_eq!((Shares::new(100).max, Shares::new(8).max), (64, 8));
        assert_eq!(origin("[2001:db8::1]:5"), origin("[2001:db8::2:0:0:1]:6"), "a network of one household");
        assert_ne!(origin("[2001:db8::1]:5"), origin("[2001:db8:0:1::1]:5"));
        assert_eq!(origin("[::ffff:192.0.2.1]:5"), one);
        assert!(shares.take(origin("a simulated machine")).is_some());
    }

    #[test]
    fn a_connection_has_room_for_so_many_sessions_and_gets_it_back() {
        let link = Link::new(1, Binding::ThisConnection);
        let rooms: Vec<_> = (0..SESSIONS_PER_CONNECTION_MAX).map(|_| link.session_room().unwrap()).collect();
        assert!(link.session_room().is_none());
        drop(rooms);
        assert!(link.session_room().is_some());
    }
}
