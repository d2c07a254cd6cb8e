//! `daemon.json`: where the service of a data directory is to be had, for programs that look for it; and how to reach it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use super::token::{Bearer, Token, write_private};

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

    /// Connects; `None` if nobody answers, as after a daemon that was killed.
    async fn connect(&self, dir: &Path) -> Result<Option<LocalChannel>, ConnectError> {
        let token = match &self.token_file {
            Some(path) => match Token::read(path) {
                Ok(token) => Some(token),
                Err(source) => return Err(ConnectError::File { path: path.clone(), source }),
            },
            None => None,
        };
        let wrong = || ConnectError::Target { path: dir.join(PLACE_FILE), target: self.target.clone() };
        let channel = match self.target.strip_prefix("unix://") {
            Some(socket) => dial_unix(PathBuf::from(socket)).await,
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{}", self.target)).map_err(|_| wrong())?;
                endpoint.connect_timeout(DIAL_MAX).connect().await.ok()
            }
        };
        Ok(channel.map(|channel| InterceptedService::new(channel, Bearer(token))))
    }
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

/// The daemon of a data directory, if one answers.
///
/// # Errors
/// [`ConnectError`] where `daemon.json` or the token cannot be read.
pub async fn connect(dir: &Path) -> Result<Option<(Place, LocalChannel)>, ConnectError> {
    let Some(place) = Place::read(dir)? else { return Ok(None) };
    let channel = place.connect(dir).await?;
    Ok(channel.map(|channel| (place, channel)))
}
