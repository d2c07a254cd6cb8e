//! Sockets: a Unix socket for the owner of the data directory alone, or loopback with a token. Connections are bounded in
//! number, and each counts its awaits.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::unistd::Uid;
use sync_core::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
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
}

impl Peer {
    fn new() -> Self {
        Self { awaits: Arc::new(Semaphore::new(limits::LOCAL_AWAITS_MAX)) }
    }

    /// Room for one more await.
    pub(super) fn await_room(&self) -> Result<OwnedSemaphorePermit, LocalError> {
        let max = limits::LOCAL_AWAITS_MAX;
        self.awaits.clone().try_acquire_owned().map_err(|_| LocalError::TooManyAwaits { max })
    }
}

/// A connection. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    peer: Peer,
    _room: OwnedSemaphorePermit,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept_one(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Connections of this user. The mode of the file says the same; root can pass it by.
impl Accept for UnixListener {
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
    type Stream = TcpStream;
    async fn accept_one(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Every connection, as long as somebody asks for the next.
pub(super) fn connections<L: Accept>(
    listener: L,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send + 'static {
    let room = Arc::new(Semaphore::new(limits::LOCAL_CONNECTIONS_MAX));
    async_stream::stream! {
        // The semaphore is never closed.
        while let Ok(permit) = room.clone().acquire_owned().await {
            match listener.accept_one().await {
                Ok(stream) => yield Ok(Connection { stream, peer: Peer::new(), _room: permit }),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
