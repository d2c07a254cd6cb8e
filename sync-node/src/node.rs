//! Starting, running and stopping a node.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use sync_core::limits;
use sync_core::token::{NodeAddress, Transport};
use sync_host::{Host, Workers};
use sync_proto::DESCRIPTORS;
use sync_proto::v1::sync_server::SyncServer;
use sync_store::{OpenError, Store, StoreError, StoreKind};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http::header::DATE;
use tonic::codegen::http::{HeaderValue, Response};
use tonic::transport::Server;
use tonic_health::server::HealthReporter;
use tower::util::MapResponseLayer;
use tracing::{error, info, warn};

use crate::config::NodeConfig;
use crate::gate::Gate;
use crate::identity::{Identity, IdentityError, NodeKeys};
use crate::incoming::{Arrived, Arriving, Connection, Protection, accept, arriving};
use crate::receipts::Receipts;
use crate::recovering::{RECOVERING_FILE, Recovering};
use crate::restore::RESTORING_DIR;
use crate::service::{State, SyncService, Turns};
use crate::session::Sessions;
use crate::shutdown::Tasks;
use crate::sketches::Sketches;
use crate::tls::{self, TlsError};

/// In the data directory while the node runs: the line that clients need.
pub const ADDRESS_FILE: &str = "address";
pub(crate) const KEYS_DIR: &str = "keys";
pub(crate) const STORE_DIR: &str = "store";

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// The last second of the year 9999, beyond which HTTP has no dates.
const HTTP_DATE_MS_MAX: u64 = 253_402_300_799_000;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{listen} is not on loopback: give --behind-proxy if a proxy you trust stands before it, or use TLS")]
    PlaintextInTheOpen { listen: String },
    #[error("the node cannot listen on {listen}")]
    Listen {
        listen: String,
        #[source]
        source: io::Error,
    },
    #[error("the data directory could not be set up: {}", .path.display())]
    Data {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a restore did not come to its end: {} is there and no store; run `sync-node restore --backup FILE` again", .path.display())]
    HalfRestored { path: PathBuf },
    #[error("the store cannot be read")]
    Read(#[source] StoreError),
    #[error("the store did not open")]
    Store(#[from] OpenError),
    #[error("the node's keys could not be used")]
    Identity(#[from] IdentityError),
    #[error("TLS could not be set up")]
    Tls(#[from] TlsError),
    #[error("gRPC reflection could not be set up")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Why a node stopped.
#[derive(Debug, Clone)]
pub enum Stopped {
    /// It was asked to.
    AsAsked,
    /// Its storage failed. The process must end; the next start recovers.
    StoreFailed(StoreError),
    /// Serving ended by itself.
    ServerFailed(String),
}

/// A node that is not running.
#[derive(Debug)]
pub struct Node;

/// A node that runs in this process. Dropping it stops nothing: call [`RunningNode::shutdown`].
#[derive(Debug)]
pub struct RunningNode {
    address: NodeAddress,
    local_addr: Option<SocketAddr>,
    tasks: Tasks,
    stopped: watch::Receiver<Option<Stopped>>,
}

impl Node {
    /// Opens the data directory, binds the socket and serves. When this returns, clients can connect.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// ```
    /// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
    /// let dir = tempfile::tempdir().unwrap();
    /// let node = sync_node::Node::start(sync_node::NodeConfig::on_loopback(dir.path())).await.unwrap();
    /// println!("{}", node.address());
    /// node.shutdown().await;
    /// # });
    /// ```
    pub async fn start(config: NodeConfig) -> Result<RunningNode, StartError> {
        let host = Host::real();
        let listener = bind(&config).await?;
        let local_addr = listener.local_addr().map_err(|source| listen_error(&config, source))?;
        create_data_dir(&config)?;
        // The lock comes first: two processes must not make one set of keys.
        let store = open_store(&host, &config).await?;
        let identity = identity(&host, &config.data.join(KEYS_DIR), &store)?;
        let protection = if config.plaintext { Protection::Plain } else { Protection::Tls(tls::acceptor(&identity)?) };
        let address = NodeAddress {
            transport: if config.plaintext { Transport::Plain } else { Transport::Tls },
            authority: identity.authority(),
            endpoint: config.advertise.clone().unwrap_or_else(|| local_addr.to_string()),
        };
        let window = Duration::from_secs(config.recovery_window);
        let recovering = Recovering::begin(&host, &config.data, window)
            .map_err(|source| StartError::Data { path: config.data.join(RECOVERING_FILE), source })?;
        let local = Some(Local { addr: local_addr, address_file: config.data.join(ADDRESS_FILE) });
        let ground = Ground { host, store, identity, protection, arriving: arriving(listener), recovering, local };
        Self::run(ground, address, &config).await
    }

    /// Serves on a machine of the caller's own: time, randomness and threads are `host`'s, everything is kept in `store`,
    /// and whoever `incoming` brings is a client, without TLS. No file and no socket is touched; of `config` only the limits,
    /// `reflection` and what clients are told (`advertise`, else `listen`) count. The node ends with `incoming`. For
    /// simulated worlds; a program wants [`Node::start`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(
        host: Host,
        store: Store,
        keys: &NodeKeys,
        incoming: impl Stream<Item = io::Result<Arrived>> + Send + 'static,
        config: NodeConfig,
    ) -> Result<RunningNode, StartError> {
        Self::start_restored_on(host, store, keys, incoming, config, Recovering::default()).await
    }

    /// As [`Node::start_on`], within the time after a restore ([`crate::restore_on`]).
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_restored_on(
        host: Host,
        store: Store,
        keys: &NodeKeys,
        incoming: impl Stream<Item = io::Result<Arrived>> + Send + 'static,
        config: NodeConfig,
        recovering: Recovering,
    ) -> Result<RunningNode, StartError> {
        let identity = Identity::of(&host, keys)?;
        let address = NodeAddress {
            transport: Transport::Plain,
            authority: identity.authority(),
            endpoint: config.advertise.clone().unwrap_or_else(|| config.listen.clone()),
        };
        let (protection, arriving) = (Protection::Plain, Box::pin(incoming));
        let ground = Ground { host, store, identity, protection, arriving, recovering, local: None };
        Self::run(ground, address, &config).await
    }

    async fn run(ground: Ground, address: NodeAddress, config: &NodeConfig) -> Result<RunningNode, StartError> {
        let Ground { host, store, identity, protection, arriving, recovering, local } = ground;
        let identity = Arc::new(identity);
        let tasks = Tasks::default();
        let watching = host.clone();
        let state = Arc::new(State {
            sessions: Sessions::default(),
            gate: Gate::new(
                host.clone(),
                store.clone(),
                identity.authority(),
                config.max_spaces_per_account,
                recovering.clone(),
            ),
            receipts: Receipts::new(host.clone(), Arc::clone(&identity)),
            identity,
            sketches: Sketches::new(&host, tasks.clone()),
            tasks: tasks.clone(),
            verifying: tokio::sync::Semaphore::new(beside_each_other(&host)),
            repushing: Turns::default(),
            host,
        });
        recovering.watch(&watching, &tasks);
        let connections = accept(arriving, protection, config.max_connections, &tasks);
        let served = serve(config, state, ReceiverStream::new(connections)).await.inspect_err(|_| tasks.stop())?;
        let (local_addr, address_file) = local.map(|local| (local.addr, local.address_file)).unzip();
        if let Some(path) = &address_file {
            write_address(path, &address).inspect_err(|_| tasks.stop())?;
        }
        let (tell, stopped) = watch::channel(None);
        let supervisor = Supervisor { tasks: tasks.clone(), store, address_file, health: served.health };
        // Not tracked: it is what waits for everything that is.
        tokio::spawn(async move {
            let why = supervisor.run(served.serving).await;
            tell.send_replace(Some(why));
        });
        info!(%address, local_addr = local_addr.map(tracing::field::display), "ready");
        Ok(RunningNode { address, local_addr, tasks, stopped })
    }
}

impl RunningNode {
    /// What clients need to connect.
    #[must_use]
    pub fn address(&self) -> NodeAddress {
        self.address.clone()
    }

    /// Where the node listens; nowhere if its connections are brought to it.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Stops: no new connections, streams end with `SHUTTING_DOWN`, work gets [`limits::DRAIN_TIMEOUT`] to finish, and the
    /// store is closed.
    pub async fn shutdown(self) -> Stopped {
        self.tasks.stop();
        self.stopped().await
    }

    /// Resolves when the node has stopped, for whatever reason.
    pub async fn stopped(&self) -> Stopped {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) {
            Some(why) => why,
            None => Stopped::ServerFailed("the supervising task ended".into()),
        }
    }
}

/// What a node stands on.
struct Ground {
    host: Host,
    store: Store,
    identity: Identity,
    protection: Protection,
    arriving: Arriving,
    recovering: Recovering,
    local: Option<Local>,
}

/// What a node has of the machine's network and files while it runs.
struct Local {
    addr: SocketAddr,
    address_file: PathBuf,
}

/// Messages that are verified at the same time.
fn beside_each_other(host: &Host) -> usize {
    match host.workers() {
        Workers::Threads(threads) => threads,
        Workers::Inline => 1,
    }
}

/// Everything that is served, once it is polled.
struct Served {
    serving: Serving,
    health: HealthReporter,
}

type Serving = Pin<Box<dyn Future<Output = Result<(), tonic::transport::Error>> + Send>>;

async fn serve(
    config: &NodeConfig,
    state: Arc<State>,
    connections: ReceiverStream<Result<Connection, io::Error>>,
) -> Result<Served, StartError> {
    let (host, tasks) = (state.host.clone(), state.tasks.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SyncServer<SyncService>>().await;
    let reflection = if config.reflection { Some(reflection()?) } else { None };
    let sync = SyncServer::new(SyncService::new(state))
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .layer(MapResponseLayer::new(move |response| dated(&host, response)))
        .add_service(health_service)
        .add_optional_service(reflection)
        .add_service(sync);
    let stopped = async move { tasks.stopped().await };
    Ok(Served { serving: Box::pin(router.serve_with_incoming_shutdown(connections, stopped)), health })
}

/// The date of an answer, as this node believes; without one, HTTP takes the machine's.
fn dated(host: &Host, mut response: Response<Body>) -> Response<Body> {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(host.wall_ms().min(HTTP_DATE_MS_MAX)));
    if let Ok(date) = HeaderValue::try_from(date) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    StartError,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(StartError::Reflection)
}

/// Runs until the node stops, and cleans up behind it.
struct Supervisor {
    tasks: Tasks,
    store: Store,
    address_file: Option<PathBuf>,
    health: HealthReporter,
}

impl Supervisor {
    async fn run(self, serving: Serving) -> Stopped {
        let mut server = tokio::spawn(serving);
        let (why, server_ended) = tokio::select! {
            // In this order: a server that was asked to stop has not failed.
            biased;
            () = self.tasks.stopped() => (Stopped::AsAsked, false),
            error = self.store.failed() => (Stopped::StoreFailed(error), false),
            ended = &mut server => (Stopped::ServerFailed(format!("{ended:?}")), true),
        };
        self.health.set_not_serving::<SyncServer<SyncService>>().await;
        self.tasks.stop();
        info!("stopping");
        let drained = async {
            self.tasks.ended().await;
            if !server_ended {
                let _ = (&mut server).await;
            }
        };
        if tokio::time::timeout(limits::DRAIN_TIMEOUT, drained).await.is_err() {
            warn!("work was still running after the time to drain; it is cut off");
            server.abort();
        }
        if let Some(path) = &self.address_file
            && let Err(error) = fs::remove_file(path)
        {
            warn!(%error, "the address file could not be removed");
        }
        match &why {
            Stopped::StoreFailed(error) => error!(error = error as &dyn std::error::Error, "the storage failed"),
            Stopped::AsAsked | Stopped::ServerFailed(_) => self.store.close().await,
        }
        info!(?why, "stopped");
        why
    }
}

async fn bind(config: &NodeConfig) -> Result<TcpListener, StartError> {
    let addresses: Vec<SocketAddr> =
        config.listen.to_socket_addrs().map_err(|source| listen_error(config, source))?.collect();
    let in_the_open = addresses.iter().any(|address| !address.ip().is_loopback());
    if config.plaintext && in_the_open && !config.behind_proxy {
        return Err(StartError::PlaintextInTheOpen { listen: config.listen.clone() });
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(|source| listen_error(config, source))
}

fn listen_error(config: &NodeConfig, source: io::Error) -> StartError {
    StartError::Listen { listen: config.listen.clone(), source }
}

fn create_data_dir(config: &NodeConfig) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let (store, restoring) = (config.data.join(STORE_DIR), config.data.join(RESTORING_DIR));
    if !store.exists() && restoring.exists() {
        return Err(StartError::HalfRestored { path: restoring });
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&store);
    made.map_err(|source| StartError::Data { path: store, source })
}

/// Keys are made for a node without spaces alone: with others it would be another node to whoever knows it.
fn identity(host: &Host, keys: &Path, store: &Store) -> Result<Identity, StartError> {
    let has_spaces = store.read(|tx| Ok(!tx.spaces()?.is_empty())).map_err(StartError::Read)?;
    Ok(if has_spaces { Identity::existing(host, keys)? } else { Identity::open(host, keys)? })
}

async fn open_store(host: &Host, config: &NodeConfig) -> Result<Store, StartError> {
    let dir = config.data.join(STORE_DIR);
    let opened = host
        .blocking(move || Store::open(&dir, StoreKind::Node))
        .await
        .map_err(|failed| StartError::Data { path: config.data.clone(), source: io::Error::other(failed) })?;
    Ok(opened?)
}

fn write_address(path: &Path, address: &NodeAddress) -> Result<(), StartError> {
    let beside = path.with_extension("new");
    let written = fs::write(&beside, format!("{address}\n")).and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| StartError::Data { path: path.to_owned(), source })
}
