//! `daemon.json`: where the service of a data directory is to be had, for programs that look for it; and how to reach it.
//!
//! A file may outlive what it speaks of. So it counts only while the process that wrote it has the directory, and on a port, where
//! anybody of this machine may listen, who answers must prove it before anything is said.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sync_host::Host;
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::door_client::DoorClient;
use sync_store::Holder;
use tokio::net::UnixStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use super::token::{Bearer, NONCE_BYTES, Token, write_private};

/// The file in a data directory that says where its daemon listens.
pub const PLACE_FILE: &str = "daemon.json";
/// The socket in a data directory, unless another one is wanted.
pub const SOCKET_FILE: &str = "daemon.sock";
/// The file in a data directory with the token of its daemon's loopback port.
pub const TOKEN_FILE: &str = "daemon.token";

/// A service on this machine answers at once, or is not there.
const DIAL_MAX: Duration = Duration::from_secs(5);

/// Where a service is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The process that listens.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// As gRPC libraries take it: `unix:///…` or `127.0.0.1:port`.
    pub target: String,
    /// The file with the token that every call brings; none where the socket is protected itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_file: Option<PathBuf>,
}

/// Why a service that is said to be there was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{} cannot be read", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} does not say where a daemon is: stop the daemon and remove the file", .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    #[error("{target} is no place for a daemon: stop the daemon and remove {}", .path.display())]
    Target { path: PathBuf, target: String },
    #[error("whoever answers at {target} does not prove to be the daemon, process {pid}: nothing was sent there")]
    Unproven { pid: u32, target: String },
}

/// A connection to a service, with its token.
pub type LocalChannel = InterceptedService<Channel, Bearer>;

impl Place {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        write_private(&dir.join(PLACE_FILE), &text)
    }

    /// What the data directory says; `None` where no daemon wrote anything.
    ///
    /// # Errors
    /// [`ConnectError`] for a file that cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, ConnectError> {
        let path = dir.join(PLACE_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ConnectError::File { path, source }),
        };
        Ok(Some(serde_json::from_slice(&text).map_err(|source| ConnectError::Form { path, source })?))
    }

    /// The process that wrote it runs, and has the directory. What a killed one left, or came along with a copy, says nothing.
    fn is_alive(&self, dir: &Path) -> Result<bool, ConnectError> {
        let holder = sync_store::holder(dir).map_err(|source| ConnectError::File { path: dir.to_owned(), source })?;
        Ok(holder == Holder::Process(Some(self.pid)))
    }

    /// Connects; `None` if nobody answers, as when it ends just now.
    async fn connect(&self, dir: &Path) -> Result<Option<LocalChannel>, ConnectError> {
        let wrong = || ConnectError::Target { path: dir.join(PLACE_FILE), target: self.target.clone() };
        if let Some(socket) = self.target.strip_prefix("unix://") {
            let channel = dial_unix(PathBuf::from(socket)).await;
            return Ok(channel.map(|channel| InterceptedService::new(channel, Bearer(None))));
        }
        let address: SocketAddr = self.target.parse().map_err(|_| wrong())?;
        let path = self.token_file.as_ref().filter(|_| address.ip().is_loopback()).ok_or_else(wrong)?;
        let token = match Token::read(path) {
            Ok(token) => token,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ConnectError::File { path: path.clone(), source }),
        };
        let host = Host::real();
        let Some(channel) = dial_loopback(host.clone(), address).await else { return Ok(None) };
        let proof = tokio::time::timeout(DIAL_MAX, is_proven(&host, channel.clone(), &token)).await;
        if !proof.unwrap_or(false) {
            return Err(ConnectError::Unproven { pid: self.pid, target: self.target.clone() });
        }
        Ok(Some(InterceptedService::new(channel, Bearer(Some(token)))))
    }
}

/// Whoever listens there has the token, too.
async fn is_proven(host: &Host, channel: Channel, token: &Token) -> bool {
    let nonce: [u8; NONCE_BYTES] = host.random();
    let request = pb::ProveRequest { nonce: nonce.to_vec().into() };
    let answer = DoorClient::new(channel).prove(request).await;
    answer.is_ok_and(|answer| token.is_proven(&nonce, &answer.into_inner().proof))
}

/// One connection, and no second one if that breaks: what was proved holds for this one.
async fn dial_loopback(host: Host, address: SocketAddr) -> Option<Channel> {
    let is_dialed = Arc::new(AtomicBool::new(false));
    let dial = move |_| {
        let (host, again) = (host.clone(), is_dialed.swap(true, Ordering::SeqCst));
        async move {
            if again {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection to the daemon has ended"));
            }
            Ok(TokioIo::new(host.connect(&address.to_string()).await?))
        }
    };
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(DIAL_MAX);
    endpoint.connect_with_connector(tower::service_fn(dial)).await.ok()
}

/// The address is only a name here: the socket is dialled.
async fn dial_unix(socket: PathBuf) -> Option<Channel> {
    let dial = move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    };
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(DIAL_MAX);
    endpoint.connect_with_connector(tower::service_fn(dial)).await.ok()
}

/// The daemon of a data directory, if one has it and answers. On a port it has proved that it is the one; a connection that breaks
/// then is not made anew, but by calling this again.
///
/// # Errors
/// [`ConnectError`] where `daemon.json` or the token cannot be read, or somebody else answers.
pub async fn connect(dir: &Path) -> Result<Option<(Place, LocalChannel)>, ConnectError> {
    let Some(place) = Place::read(dir)? else { return Ok(None) };
    if !place.is_alive(dir)? {
        return Ok(None);
    }
    let channel = place.connect(dir).await?;
    Ok(channel.map(|channel| (place, channel)))
}
