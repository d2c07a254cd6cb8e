//! Sockets: a Unix socket for the owner of the data directory alone, or loopback with a token. Connections are bounded in
//! number, and each counts its awaits.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::unistd::Uid;
use sync_core::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::ServeError;
use super::failure::LocalError;

/// The pause after a failed accept (no descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the kernel has room for in the address of a socket: `sun_path` with its last NUL.
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Where the service is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A socket file (mode 0600) that only this user's processes can open.
    Unix(PathBuf),
    /// A port of 127.0.0.1 (0: any that is free); every call brings the token.
    Loopback { port: u16 },
}

/// What a call knows of the connection that it came on.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    awaits: Arc<Semaphore>,
    standing: Arc<Standing>,
}

/// Whose connections a socket gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// This user's.
    Known,
    /// Anybody's, until they bring the token.
    Unknown,
}

/// How a connection stands.
#[derive(Debug)]
struct Standing {
    /// It is this user's: it came on the socket, or it brought the token.
    is_proven: AtomicBool,
    /// It has to go.
    ended: CancellationToken,
}

impl Standing {
    fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }
}

impl Peer {
    fn new(owner: Owner, ended: CancellationToken) -> Self {
        let is_proven = AtomicBool::new(owner == Owner::Known);
        let standing = Standing { is_proven, ended };
        Self { awaits: Arc::new(Semaphore::new(limits::LOCAL_AWAITS_MAX)), standing: Arc::new(standing) }
    }

    /// It brought the token.
    pub(super) fn note_proven(&self) {
        self.standing.is_proven.store(true, Ordering::Relaxed);
    }

    /// Room for one more await.
    pub(super) fn await_room(&self) -> Result<OwnedSemaphorePermit, LocalError> {
        let max = limits::LOCAL_AWAITS_MAX;
        self.awaits.clone().try_acquire_owned().map_err(|_| LocalError::TooManyAwaits { max })
    }
}

/// A connection. Dropping it makes room for another.
pub(super) struct Connection<S> {
    stream: S,
    peer: Peer,
    /// Resolves when it is to be closed, unless it was proven before.
    unproven_end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _room: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn new(stream: S, peer: Peer, room: OwnedSemaphorePermit) -> Self {
        let ended = peer.standing.ended.clone();
        let end = async move {
            // Over either way.
            let _ = tokio::time::timeout(limits::LOCAL_UNPROVEN_MAX, ended.cancelled()).await;
        };
        Self { stream, peer, unproven_end: Some(Box::pin(end)), _room: room }
    }

    /// An error once somebody has stood here too long without the token.
    fn poll_unproven(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(end) = &mut self.unproven_end else { return Ok(()) };
        if self.peer.standing.is_proven() {
            self.unproven_end = None;
            return Ok(());
        }
        match end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody brought the token in time")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_unproven(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A loopback port.
pub(super) async fn bind_loopback(port: u16) -> Result<TcpListener, ServeError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|source| ServeError::Port { port, source })
}

/// A socket file. One that a killed process left behind is replaced; one that somebody answers on is not.
pub(super) async fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let actual = path.as_os_str().len();
    if actual > SOCKET_PATH_BYTES_MAX {
        return Err(ServeError::SocketPath { path: path.to_owned(), actual, max: SOCKET_PATH_BYTES_MAX });
    }
    let io = |source| ServeError::Socket { path: path.to_owned(), source };
    remove_stale(path).await?;
    let listener = bind_private(path).map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    UnixListener::from_std(listener).map_err(io)
}

/// The file has its mode before anybody can know its name: it is made under another one and moved.
fn bind_private(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

async fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let io = |source| ServeError::Socket { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::InUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(io)
}

/// A socket that gives the connections of those who may have one.
pub(super) trait Accept: Send + Sync + 'static {
    const OWNER: Owner;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept_one(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Connections of this user. The mode of the file says the same; root can pass it by.
impl Accept for UnixListener {
    const OWNER: Owner = Owner::Known;
    type Stream = UnixStream;
    async fn accept_one(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.accept().await?;
        let uid = Uid::from_raw(stream.peer_cred()?.uid());
        if uid != Uid::effective() && !uid.is_root() {
            let text = format!("user {uid} is not the owner of this client");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(stream)
    }
}

/// Connections of anybody on this machine; the token says whose they are.
impl Accept for TcpListener {
    const OWNER: Owner = Owner::Unknown;
    type Stream = TcpStream;
    async fn accept_one(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Every connection, as long as somebody asks for the next. Where all places are taken, the oldest connection that brought no
/// token goes: whoever else is on this machine keeps the owner out of none of them. At the end nobody waits for those.
pub(super) fn connections<L: Accept>(
    listener: L,
    closing: CancellationToken,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send + 'static {
    let room = Arc::new(Semaphore::new(limits::LOCAL_CONNECTIONS_MAX));
    let mut unproven = Unproven::default();
    async_stream::stream! {
        loop {
            let stream = match listener.accept_one().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if room.available_permits() == 0 {
                unproven.end_oldest();
            }
            // The semaphore is never closed.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let peer = Peer::new(L::OWNER, closing.child_token());
            unproven.note(&peer);
            yield Ok(Connection::new(stream, peer, permit));
        }
    }
}

/// Connections that brought no token yet, the oldest first.
#[derive(Debug, Default)]
struct Unproven(VecDeque<Weak<Standing>>);

impl Unproven {
    fn note(&mut self, peer: &Peer) {
        self.0.retain(|standing| standing.upgrade().is_some_and(|standing| !standing.is_proven()));
        if !peer.standing.is_proven() {
            self.0.push_back(Arc::downgrade(&peer.standing));
        }
    }

    fn end_oldest(&mut self) {
        while let Some(oldest) = self.0.pop_front() {
            if let Some(standing) = oldest.upgrade().filter(|standing| !standing.is_proven()) {
                standing.ended.cancel();
                return;
            }
        }
    }
}
