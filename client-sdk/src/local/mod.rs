//! The client as a gRPC service on this machine: what the SDK does, for programs in other languages (`headwater.client.v1`).
//!
//! ```no_run
//! # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use client_sdk::local::{Listen, Service};
//! let service = Service::new(client, "/home/ada/.local/share/headwater");
//! let serving = service.start(Listen::Loopback { port: 0 }).await?;
//! println!("{}", serving.place().target);
//! serving.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Wire types are mapped in two files, `from_wire` and `to_wire`; every failure in one table, `failure`. A call is only a
//! caller: what it began belongs to the client and its spaces, and goes on without it.

mod current;
mod failure;
mod from_wire;
mod listen;
mod place;
mod service;
mod to_wire;
mod token;

use std::io;
use std::path::{Path, PathBuf};

use sync_core::limits;
use sync_host::Host;
use sync_proto::client_v1::client_server::ClientServer;
use sync_proto::client_v1::door_server::DoorServer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes, RoutesBuilder};
use tonic::transport::Server;

pub use current::Current;
pub use listen::Listen;
pub use place::{ConnectError, LocalChannel, PLACE_FILE, Place, SOCKET_FILE, TOKEN_FILE, connect};
pub use sync_core::limits::{LOCAL_COMMAND_BYTES_MAX, LOCAL_COMMANDS_BYTES_MAX};
pub use token::Bearer;

/// Nobody has proved anything who asks for a proof.
const PROVE_BYTES_MAX: usize = 1024;

use listen::Accept;
use token::{Guard, Prover, Token};

/// Why a service was not started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{} is in use: another process listens there", .path.display())]
    InUse { path: PathBuf },
    #[error("{} is there, and is no socket: move it away", .path.display())]
    NotASocket { path: PathBuf },
    #[error("{} is {actual} bytes long, and a socket's path has at most {max}: listen on loopback, or use a shorter data directory", .path.display())]
    SocketPath { path: PathBuf, actual: usize, max: usize },
    #[error("the socket {} cannot be made", .path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("port {port} of 127.0.0.1 cannot be listened on")]
    Port { port: u16, source: io::Error },
    #[error("{} cannot be written", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("there is no open client to serve")]
    NoClient,
    #[error("gRPC reflection could not be set up")]
    Reflection(#[source] tonic_reflection::server::Error),
}

impl ServeError {
    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "IN_USE",
            Self::NotASocket { .. } | Self::SocketPath { .. } | Self::Socket { .. } => "BAD_SOCKET",
            Self::Port { .. } => "BAD_PORT",
            Self::File { .. } => "IO",
            Self::NoClient => "CLOSED",
            Self::Reflection(_) => "INTERNAL",
        }
    }
}

/// A service that is not started yet.
#[derive(Debug)]
pub struct Service {
    current: Current,
    dir: PathBuf,
    routes: RoutesBuilder,
    descriptors: Vec<&'static [u8]>,
    closing: CancellationToken,
}

impl Service {
    /// The service of a client. `daemon.json`, and the token of a loopback port, are kept in `dir`: the data directory, so that
    /// whoever may use the account finds them and nobody else.
    #[must_use]
    pub fn new(client: impl Into<Current>, dir: impl Into<PathBuf>) -> Self {
        let (current, closing) = (client.into(), CancellationToken::new());
        let mut routes = RoutesBuilder::default();
        let client = ClientServer::new(service::Service::new(current.clone(), closing.clone()));
        routes.add_service(
            client
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(limits::MESSAGE_BYTES_MAX),
        );
        Self { current, dir: dir.into(), routes, descriptors: vec![sync_proto::CLIENT_DESCRIPTORS], closing }
    }

    /// The client that it speaks for, which can be replaced.
    #[must_use]
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// Is cancelled when the service begins to close: what answers without end ends then.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Another service on the same socket, behind the same token: `add` puts it among the routes. `descriptors` are its encoded
    /// `FileDescriptorSet`, for reflection.
    #[must_use]
    pub fn with(mut self, descriptors: &'static [u8], add: impl FnOnce(&mut RoutesBuilder)) -> Self {
        add(&mut self.routes);
        self.descriptors.push(descriptors);
        self
    }

    /// Listens, and says so in `daemon.json`.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn start(self, listen: Listen) -> Result<Serving, ServeError> {
        let place = |target: String, token_file: Option<PathBuf>| Place {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            target,
            token_file,
        };
        match listen {
            Listen::Unix(socket) => {
                let listener = listen::bind_unix(&socket).await?;
                let place = place(format!("unix://{}", absolute(&socket)?.display()), None);
                let mut serving = self.serve(place, Guard::Socket, listener).await?;
                serving.socket = Some(socket);
                Ok(serving)
            }
            Listen::Loopback { port } => {
                let listener = listen::bind_loopback(port).await?;
                let bound = listener.local_addr().map_err(|source| ServeError::Port { port, source })?;
                let token = Token::generate(&self.host()?);
                let path = absolute(&self.dir.join(TOKEN_FILE))?;
                token.write(&path).map_err(|source| ServeError::File { path: path.clone(), source })?;
                let place = place(bound.to_string(), Some(path));
                self.serve(place, Guard::Token(token), listener).await
            }
        }
    }

    fn host(&self) -> Result<Host, ServeError> {
        Ok(self.current.client().ok_or(ServeError::NoClient)?.shared.host.clone())
    }

    async fn serve(mut self, place: Place, guard: Guard, listener: impl Accept) -> Result<Serving, ServeError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ClientServer<service::Service>>().await;
        self.routes.add_service(health_service);
        let mut reflection = tonic_reflection::server::Builder::configure();
        for set in &self.descriptors {
            reflection = reflection.register_encoded_file_descriptor_set(set);
        }
        self.routes.add_service(reflection.build_v1().map_err(ServeError::Reflection)?);
        let path = self.dir.join(PLACE_FILE);
        place.write(&self.dir).map_err(|source| ServeError::File { path, source })?;
        let closing = self.closing.clone();
        let incoming = listen::connections(listener, closing.clone());
        let router =
            Server::builder().max_concurrent_streams(limits::LOCAL_CALLS_MAX).add_routes(guarded(self.routes, guard));
        let served = router.serve_with_incoming_shutdown(incoming, async move { closing.cancelled().await });
        let task = tokio::spawn(served);
        Ok(Serving { place, dir: self.dir, socket: None, closing: self.closing, task })
    }
}

/// Everything behind the guard, but for what proves whom a caller has reached.
fn guarded(routes: RoutesBuilder, guard: Guard) -> Routes {
    let prover = match &guard {
        Guard::Socket => None,
        Guard::Token(token) => Some(DoorServer::new(Prover(token.clone()))),
    };
    let behind = Routes::from(routes.routes().into_axum_router().layer(InterceptorLayer::new(guard)));
    match prover {
        Some(prover) => behind.add_service(prover.max_decoding_message_size(PROVE_BYTES_MAX)),
        None => behind,
    }
}

/// A path that means the same to every process.
fn absolute(path: &Path) -> Result<PathBuf, ServeError> {
    std::path::absolute(path).map_err(|source| ServeError::File { path: path.to_owned(), source })
}

/// A service that listens. Dropping it ends the service at once; [`Serving::close`] lets calls finish.
#[derive(Debug)]
pub struct Serving {
    place: Place,
    dir: PathBuf,
    socket: Option<PathBuf>,
    closing: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Serving {
    /// Where it is to be had.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Takes no more calls, ends streams, waits for what is under way (10 seconds at most), and removes its files. The client
    /// stays open.
    pub async fn close(mut self) {
        self.closing.cancel();
        match tokio::time::timeout(limits::DRAIN_TIMEOUT, &mut self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the local service ended"),
            Ok(Err(error)) => tracing::warn!(%error, "the local service was stopped"),
            Err(_) => tracing::warn!("calls that were under way were given up"),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.closing.cancel();
        self.task.abort();
        let token = self.place.token_file.take();
        for path in [Some(self.dir.join(PLACE_FILE)), self.socket.take(), token].into_iter().flatten() {
            // Whoever finds one of them finds nobody behind it.
            let _ = std::fs::remove_file(path);
        }
    }
}
