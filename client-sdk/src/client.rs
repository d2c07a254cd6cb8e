//! The client: one account, one device, one data directory, one node.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sync_core::ids::{AccountId, AclId, HistoryId, SpaceId};
use sync_core::limits;
use sync_core::log::genesis;
use sync_core::record::{AclContent, AclRecord, AclRoot, RawRecord, Role, Salt, SpaceHeader, SpaceOptions, Verified};
use sync_core::session::{Input, Moment};
use sync_core::syncer::Budget;
use sync_core::token::NodeAddress;
use sync_e2ee::{AccountKeys, DeviceKeys, LocalKey, Mnemonic, Recipient, Secrets, SpaceKeys, seal_keys};
use sync_host::Host;
use sync_proto::v1;
use sync_store::{Registration, Store, WriteTx};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::{self, ClientEvent, Devices, Own};
use crate::acl::leave_key;
use crate::connect::{Conn, Identity, failure};
use crate::error::{AclError, CallError, OpenError, ReadError, WriteError, from_store_write, local};
use crate::home::{Home, MemoryVault, Unlock};
use crate::join::{Speakers, Turns};
use crate::link::{self, Command, Connection};
use crate::space::{Space, SpaceInner};
use crate::status::PeerBudget;
use crate::types::{ObjectType, ObjectTypes, SPACE_INFO};
use crate::waits;

/// Live trees that a space keeps unless it is told otherwise.
const CACHED_TREES: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");
const NODE_ADDRESS: &str = "node-address";
/// Requests to join that wait for their answer on a stream of their own; a connection has 64 streams.
const FOLLOWING_MAX: usize = 16;
const DISPLAY_NAME: &str = "display-name";
const DEVICE_NAME: &str = "device-name";

/// What every part of a client shares.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) store: Store,
    pub(crate) account: AccountKeys,
    pub(crate) identity: Identity,
    pub(crate) local: LocalKey,
    pub(crate) types: ObjectTypes,
    /// Live trees that each space keeps although nobody holds them.
    pub(crate) cached_trees: NonZeroUsize,
    pub(crate) address: NodeAddress,
    pub(crate) display_name: Option<String>,
    /// The account's own space.
    pub(crate) own: Own,
    pub(crate) devices: Devices,
    pub(crate) connection: watch::Receiver<Connection>,
    fresh: watch::Receiver<Option<Moment>>,
    /// What the node is given at a time, by all spaces together.
    budget: Mutex<Budget>,
    /// Moves when the budget may have room again.
    pub(crate) budget_moved: watch::Sender<u64>,
    /// Unbounded, and still bounded by what it carries: a space reports once for each frame that the shell gave it, and the
    /// shell must never wait for a space that waits for the shell.
    commands: mpsc::UnboundedSender<Command>,
    spaces: Mutex<BTreeMap<SpaceId, Arc<SpaceInner>>>,
    pub(crate) speakers: Speakers,
    pub(crate) turns: Turns,
    /// Room for requests that wait on a stream of their own.
    pub(crate) following: tokio::sync::Semaphore,
    tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

/// An open client. A cheap handle; the sync of its spaces goes on until [`Client::close`] or until the last handle is gone.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    _running: Arc<Running>,
}

/// Ends the client's tasks with its last handle.
struct Running {
    shared: Arc<Shared>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        // Spaces hold what is shared, and are held by it.
        self.shared.lock_spaces().clear();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("account", &self.account()).finish_non_exhaustive()
    }
}

/// How to make an account, or open one.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    host: Host,
    home: Home,
    types: Vec<ObjectType>,
    node: Option<NodeAddress>,
    name: Option<String>,
    device_name: Option<String>,
    cached_trees: NonZeroUsize,
}

impl ClientConfig {
    /// A client whose data is in `dir`, and which `unlock` opens.
    pub fn new(dir: impl Into<PathBuf>, unlock: Unlock) -> Self {
        Self::at(Host::real(), Home::Directory { dir: dir.into(), unlock, held: None })
    }

    /// A client on a machine of the caller's own: its clock, randomness and network are `host`'s, its secrets are in `vault`
    /// and everything else in `store`, which the caller opened. For simulated worlds; an application wants
    /// [`ClientConfig::new`]. Who keeps `vault` and what `store` is on can open the same client again.
    pub fn on(host: Host, vault: MemoryVault, store: Store) -> Self {
        Self::at(host, Home::Memory { vault, store })
    }

    fn at(host: Host, home: Home) -> Self {
        Self { host, home, types: Vec::new(), node: None, name: None, device_name: None, cached_trees: CACHED_TREES }
    }

    /// Takes the data directory of an account for this process, until this, its clones, and every client that was opened with
    /// them are gone: between two openings nobody else gets in. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`]: there is no account, or another process has the directory.
    pub fn hold(mut self) -> Result<Self, OpenError> {
        self.home.hold()?;
        Ok(self)
    }

    /// Declares a kind of object; needed for kinds with a write rule of their own.
    #[must_use]
    pub fn object_type(mut self, object_type: ObjectType) -> Self {
        self.types.push(object_type);
        self
    }

    /// How many live trees each space keeps in memory although nobody holds them, the last used ones: 1,024 unless it is said. What
    /// anybody holds, or follows, is in memory whatever this says, and what is not is read again when it is asked for.
    #[must_use]
    pub fn cached_trees(mut self, trees: NonZeroUsize) -> Self {
        self.cached_trees = trees;
        self
    }

    /// The node to use from now on. An open client keeps the one it was made with unless this is set.
    #[must_use]
    pub fn node(mut self, node: NodeAddress) -> Self {
        self.node = Some(node);
        self
    }

    /// What others call this account; sent, encrypted, with every join.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What the account's other devices call this one; the name of the host unless it is said.
    #[must_use]
    pub fn device_name(mut self, name: impl Into<String>) -> Self {
        self.device_name = Some(name.into());
        self
    }
}

/// What a client was opened with.
struct Settings {
    host: Host,
    account: AccountKeys,
    address: NodeAddress,
    display_name: Option<String>,
    own: Own,
    devices: Devices,
    types: ObjectTypes,
    cached_trees: NonZeroUsize,
}

/// A space of this client, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceInfo {
    pub id: SpaceId,
    /// `None` while the name is not here yet.
    pub name: Option<String>,
    pub seq: u64,
    pub members: usize,
    pub registration: Registration,
    /// This account's role; `None` for a former member.
    pub role: Option<Role>,
    /// The owner deleted the space.
    pub deleted: bool,
}

impl Client {
    /// Makes a new account in an empty directory and opens it. The words are the account: whoever has them is it, and they
    /// are shown this once.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn create(config: ClientConfig) -> Result<(Self, Mnemonic), OpenError> {
        let words = Mnemonic::generate(&mut config.host.rng());
        Ok((Self::restore(config, words.clone()).await?, words))
    }

    /// Makes a new installation of the account that the words are.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn restore(config: ClientConfig, mnemonic: Mnemonic) -> Result<Self, OpenError> {
        let mut rng = config.host.rng();
        let secrets =
            Secrets { mnemonic, device: DeviceKeys::generate(&mut rng), local_key: LocalKey::generate(&mut rng) };
        config.home.create(&secrets, &mut rng)?;
        Self::open(config).await
    }

    /// Opens the account in a directory. Its spaces begin to sync at once.
    ///
    /// # Errors
    /// [`OpenError`]; `IN_USE` if another process has the directory open.
    pub async fn open(config: ClientConfig) -> Result<Self, OpenError> {
        let ClientConfig { host, home, types, node, name, device_name, cached_trees } = config;
        let (dir, secrets, store) = (home.dir(), home.secrets()?, home.store()?);
        let kept = Kept { host: &host, store: &store, local: &secrets.local_key };
        let address = kept.remember(NODE_ADDRESS, node.map(|n| n.to_string())).await?;
        let address: NodeAddress = address.ok_or(OpenError::NoAccount { dir })?.parse()?;
        let display_name = kept.remember(DISPLAY_NAME, name).await?;
        let device_name = kept.remember(DEVICE_NAME, device_name).await?.unwrap_or_else(|| home.device_name());
        let account = AccountKeys::from_mnemonic(&secrets.mnemonic);
        let own = Own::new(account::found(&host, &store, &account, address.authority).await?, device_name);
        let devices = Devices::load(&store, &secrets.local_key, secrets.device.id())?;
        let types = ObjectTypes::new(types);
        let settings = Settings { host, account, address, display_name, own, devices, types, cached_trees };
        let client = Self::start(secrets, store, settings);
        client.open_spaces()?;
        client.shared.spawn(account::run(client.shared.clone()));
        client.shared.spawn_until_closed(tell_of_failure(client.shared.clone()));
        Ok(client)
    }

    fn start(secrets: Secrets, store: Store, settings: Settings) -> Self {
        let Settings { host, account, address, display_name, own, devices, types, cached_trees } = settings;
        let identity = identity(&host, &account, &secrets.device);
        let (connection, connection_rx) = watch::channel(Connection::Connecting);
        let (fresh, fresh_rx) = watch::channel(None);
        let (commands, commands_rx) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            host,
            store,
            account,
            identity,
            local: secrets.local_key,
            types,
            cached_trees,
            address,
            display_name,
            own,
            devices,
            connection: connection_rx,
            fresh: fresh_rx,
            budget: Mutex::new(Budget::default()),
            budget_moved: watch::channel(0).0,
            commands,
            spaces: Mutex::new(BTreeMap::new()),
            speakers: Speakers::default(),
            turns: Turns::default(),
            following: tokio::sync::Semaphore::new(FOLLOWING_MAX),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        shared.spawn(link::run(shared.clone(), connection, fresh, commands_rx));
        Self { _running: Arc::new(Running { shared: shared.clone() }), shared }
    }

    fn open_spaces(&self) -> Result<(), OpenError> {
        let rows = self.shared.store.read(|tx| tx.spaces())?;
        for row in rows {
            match self.shared.open_space(row.space) {
                Ok(_) => {}
                Err(ReadError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(space = %row.space.short(), error = %error, "a space could not be opened");
                }
            }
        }
        Ok(())
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.shared.account.id()
    }

    /// The device key of this installation.
    #[must_use]
    pub fn device(&self) -> sync_core::ids::DeviceId {
        self.shared.identity.device()
    }

    /// The node that this client uses.
    #[must_use]
    pub fn node(&self) -> &NodeAddress {
        &self.shared.address
    }

    /// Makes a space, here and at once; the node gets it as soon as it is reached.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn create_space(&self, name: &str) -> Result<Space, WriteError> {
        self.create_space_with(name, SpaceOptions::default()).await
    }

    /// Makes a space with its own options: whether new members read what was written before they came, say.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{HistoryMode, SpaceOptions};
    /// // Whoever comes later reads what is written from then on.
    /// let options = SpaceOptions { history: HistoryMode::SinceJoin, min_version: 0 };
    /// let space = client.create_space_with("Board", options).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn create_space_with(&self, name: &str, options: SpaceOptions) -> Result<Space, WriteError> {
        let founded = found(&self.shared.host, &self.shared.account, self.shared.address.authority, options);
        let id = founded.space();
        let history = HistoryId(self.shared.host.random());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), WriteError> {
            tx.create_space(&founded, history)?;
            Ok(())
        };
        let (shared, info) = (self.shared.clone(), serde_json::json!({ "name": name }));
        let making = async move {
            shared.store.write(job).await.map_err(from_store_write::<WriteError>)?;
            let space = shared.open_space(id)?;
            space.objects().put(SPACE_INFO, "self", info).await?;
            Ok(space)
        };
        self.shared.to_its_end(making).await?
    }

    /// Drops everything of a space from this device: for a space that this account is not in any more, or that was deleted.
    /// What is refused and was not exported goes with it.
    ///
    /// # Errors
    /// [`AclError::StillAMember`]: leave first.
    pub async fn forget_space(&self, id: SpaceId) -> Result<(), AclError> {
        let space = self.space(id)?;
        let acl = space.inner.acl()?;
        if !acl.deleted && acl.members.contains_key(&self.account()) {
            return Err(AclError::StillAMember { space: id });
        }
        // Nothing that waits for something in it opens it again.
        self.shared.forget_join_in(id, acl.deleted).await?;
        self.shared.unlist_space(id).await?;
        self.shared.close_space(&space.inner);
        let shared = self.shared.clone();
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            tx.kv_delete(&leave_key(id))?;
            waits::forget_of(tx, &shared, id)?;
            Ok(tx.forget_space(id)?)
        };
        self.shared.store.write(job).await.map_err(from_store_write)?;
        Ok(())
    }

    /// An open space.
    ///
    /// # Errors
    /// [`ReadError::UnknownSpace`] if this client is not in it.
    pub fn space(&self, id: SpaceId) -> Result<Space, ReadError> {
        self.shared.open_space(id)
    }

    /// The spaces of this client, by id. The account's own is not among them: see [`Client::account_space`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn spaces(&self) -> Result<Vec<SpaceInfo>, ReadError> {
        let rows = self.shared.store.read(|tx| tx.spaces())?;
        let mut infos = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(|row| row.space != self.shared.own.id) {
            let space = self.space(row.space)?;
            let registration = self.shared.store.read(|tx| tx.node_state(row.space))?.registration;
            let acl = space.acl()?;
            infos.push(SpaceInfo {
                id: row.space,
                name: space.name()?,
                seq: row.position.seq.0,
                members: acl.members.len(),
                registration,
                role: acl.role(&self.account()),
                deleted: acl.deleted,
            });
        }
        Ok(infos)
    }

    /// Dials the node now instead of after the pause.
    pub fn reconnect(&self) {
        self.shared.link(Input::Wake);
    }

    /// Waits until there is a session with the node.
    ///
    /// # Errors
    /// [`CallError::Offline`] with the last cause, after `timeout`.
    pub async fn connected(&self, timeout: std::time::Duration) -> Result<(), CallError> {
        self.reconnect();
        tokio::time::timeout(timeout, self.shared.conn()).await.map_err(|_| self.shared.offline())??;
        Ok(())
    }

    /// Stops all sync, writes out what is queued, and gives the data directory free.
    pub async fn close(self) {
        self.shared.cancel.cancel();
        self.shared.tracker.close();
        let _ = tokio::time::timeout(limits::DRAIN_TIMEOUT, self.shared.tracker.wait()).await;
        self.shared.lock_spaces().clear();
        self.shared.store.clone().close().await;
    }
}

/// Where settings are kept.
struct Kept<'a> {
    host: &'a Host,
    store: &'a Store,
    local: &'a LocalKey,
}

impl Kept<'_> {
    /// Keeps a setting, encrypted, when it is given, and reads it when it is not.
    async fn remember(&self, key: &'static str, value: Option<String>) -> Result<Option<String>, OpenError> {
        let Some(value) = value else {
            let sealed = self.store.read(|tx| tx.kv(key))?;
            let bytes = sealed.and_then(|row| self.local.open_row(key.as_bytes(), &row).ok());
            return Ok(bytes.and_then(|b| String::from_utf8(b).ok()));
        };
        let sealed = self.local.seal_row(key.as_bytes(), value.as_bytes(), &mut self.host.rng());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), sync_store::StoreError> { tx.kv_put(key, &sealed) };
        self.store.write(job).await.map_err(|error| open_from_store_write(key, error))?;
        Ok(Some(value))
    }
}

/// Why something that a client needs to open could not be kept.
pub(crate) fn open_from_store_write(what: &str, error: sync_store::WriteError<sync_store::StoreError>) -> OpenError {
    match error {
        sync_store::WriteError::Job(error)
        | sync_store::WriteError::OutcomeUnknown(error)
        | sync_store::WriteError::Failed(error) => error.into(),
        sync_store::WriteError::Overloaded | sync_store::WriteError::Full | sync_store::WriteError::Closed => {
            OpenError::Io {
                path: PathBuf::from(what),
                source: std::io::Error::other("the store takes no writes: is the disk full?"),
            }
        }
    }
}

fn identity(host: &Host, account: &AccountKeys, device: &DeviceKeys) -> Identity {
    Identity {
        account: account.id(),
        device_key: device.signing_key().clone(),
        certificate: account.certify_device(device.id(), host.wall_ms()).into_raw(),
    }
}

/// The records that begin a space.
fn found(
    host: &Host,
    account: &AccountKeys,
    home: sync_core::ids::AuthorityId,
    options: SpaceOptions,
) -> sync_core::log::Genesis {
    const OWN: &str = "records made here have the form that is checked here";
    let mut rng = host.rng();
    let keys = SpaceKeys::generate(&mut rng);
    let epoch = sync_core::ids::Epoch(0);
    let seal = seal_keys(None, epoch, Recipient::Account(account.id()), &keys, &mut rng).expect(OWN);
    let root = AclRoot {
        owner: account.id(),
        options,
        key_id: keys.key_id(),
        history_id: keys.history_id().expect("fresh keys have a history key"),
        profile_key: keys.profile_public(),
        seals: vec![seal],
    };
    let root = Verified::sign(&root, account.signing_key(), None).expect(OWN);
    let header = SpaceHeader {
        owner: account.id(),
        created_ms: host.wall_ms(),
        salt: Salt::Nonce(host.random()),
        acl_root: AclId::from(root.id()),
    };
    let header = Verified::unsigned(&header).expect(OWN);
    let set_home = AclRecord {
        space: sync_core::log::space_id(&header),
        prev: AclId::from(root.id()),
        index: 1,
        author: account.id(),
        at_ms: host.wall_ms(),
        seen: None,
        contents: vec![AclContent::SetHome { authority: home }],
    };
    let set_home = Verified::sign(&set_home, account.signing_key(), None).expect(OWN);
    genesis(header, &root, &set_home).expect(OWN)
}

impl Shared {
    /// Runs a task until it ends or the client closes.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Runs a task until it ends, or the client closes and drops it.
    pub(crate) fn spawn_until_closed(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.cancel.clone();
        self.spawn(async move {
            let _ = closed.run_until_cancelled(task).await;
        });
    }

    /// Runs work to its end, even if whoever asked goes away half-way: what was kept must be told of, and acted on. For short
    /// work: the client closes after it.
    ///
    /// # Errors
    /// [`WriteError::Closed`] if the runtime ended before it.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WriteError> {
        let worked = self.tracker.spawn(work).await;
        worked.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => WriteError::Closed,
        })
    }

    /// As [`Self::to_its_end`], for work that waits for the node: the client closes without it.
    pub(crate) async fn until_closed<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WriteError> {
        let closed = self.cancel.clone();
        let worked = self.to_its_end(async move { closed.run_until_cancelled(work).await }).await?;
        worked.ok_or(WriteError::Closed)
    }

    fn lock_spaces(&self) -> std::sync::MutexGuard<'_, BTreeMap<SpaceId, Arc<SpaceInner>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn space_of(&self, id: SpaceId) -> Option<Arc<SpaceInner>> {
        self.lock_spaces().get(&id).cloned()
    }

    /// The one open instance of a space; opening it starts its sync.
    pub(crate) fn open_space(self: &Arc<Self>, id: SpaceId) -> Result<Space, ReadError> {
        let mut spaces = self.lock_spaces();
        if let Some(inner) = spaces.get(&id) {
            return Ok(Space { inner: inner.clone() });
        }
        let inner = SpaceInner::open(self, id)?;
        spaces.insert(id, inner.clone());
        drop(spaces);
        self.spawn(register_then_follow(self.clone(), inner.clone()));
        if id != self.own.id {
            self.own.tell(ClientEvent::SpaceAppeared { space: id });
            self.own.moved(id);
        }
        Ok(Space { inner })
    }

    /// Ends the sync of a space, and forgets the open instance.
    fn close_space(&self, space: &Arc<SpaceInner>) {
        self.lock_spaces().remove(&space.id);
        space.closed.cancel();
        let _ = self.commands.send(Command::Closed(space.id));
    }

    pub(crate) fn redial(&self) {
        let _ = self.commands.send(Command::Redial);
    }

    pub(crate) fn link(&self, input: Input) {
        // The shell ends only with the client.
        let _ = self.commands.send(Command::Input(input));
    }

    /// The session with the node, as soon as there is one.
    pub(crate) async fn conn(&self) -> Result<Conn, CallError> {
        let mut connection = self.connection.clone();
        let online = connection.wait_for(|c| c.online().is_some()).await;
        online.ok().and_then(|c| c.online()).ok_or_else(|| self.offline())
    }

    /// Waits until that connection is not the one with the node any more; what a call on it meets then.
    pub(crate) async fn parted(&self, conn: &Conn) -> CallError {
        let mut connection = self.connection.clone();
        // The sender goes with the client.
        let _ = connection.wait_for(|c| c.generation() != Some(conn.generation())).await;
        CallError::Broken("another connection took its place".to_owned())
    }

    /// What the node answers to a call on that connection. One that nothing comes through may be replaced long before the call
    /// has had its time.
    pub(crate) async fn answer<T>(
        &self,
        conn: &Conn,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, CallError> {
        // Large, and every caller's future would hold it.
        let call = Box::pin(tokio::time::timeout(limits::UNARY_TIMEOUT, call));
        tokio::select! {
            biased;
            answer = call => {
                answer.map_err(|_| CallError::TimedOut)?.map_err(|status| failure(&status).into())
            }
            parted = self.parted(conn) => Err(parted),
        }
    }

    pub(crate) fn offline(&self) -> CallError {
        match &*self.connection.borrow() {
            Connection::Offline { cause, code, .. } => {
                CallError::Offline { cause: Some(cause.clone()), code: Some(code) }
            }
            Connection::Connecting | Connection::Online(_) => CallError::Offline { cause: None, code: None },
        }
    }

    /// How long ago the newest echoed ping was sent.
    pub(crate) fn fresh_age(&self) -> Option<Duration> {
        let since = (*self.fresh.borrow())?;
        Some(self.host.now().0.saturating_sub(since.0))
    }

    /// Looks at the budget, or changes it.
    pub(crate) fn with_budget<T>(&self, f: impl FnOnce(&mut Budget) -> T) -> T {
        f(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn budget_now(&self) -> PeerBudget {
        let now = self.host.now();
        self.with_budget(|budget| {
            let hold = budget.hold(now).map_or(Duration::ZERO, |until| until.0.saturating_sub(now.0));
            PeerBudget { requests: budget.requests(), hold_ms: u64::try_from(hold.as_millis()).unwrap_or(u64::MAX) }
        })
    }

    /// What this account calls itself: a founder never sent its name with a join.
    pub(crate) fn own_name(&self, account: &AccountId) -> Option<String> {
        self.display_name.clone().filter(|_| *account == self.account.id())
    }

    pub(crate) fn is_registered(&self, space: SpaceId) -> bool {
        let state = self.store.read(|tx| tx.node_state(space));
        state.is_ok_and(|s| s.registration == Registration::Registered)
    }
}

/// A store that failed keeps nothing any more: whoever waits is told, and every status says so.
async fn tell_of_failure(shared: Arc<Shared>) {
    let failed = shared.store.failed().await.to_string();
    let spaces: Vec<_> = shared.lock_spaces().values().cloned().collect();
    for space in spaces {
        space.note_trouble(|t| t.store_failed = Some(failed.clone()));
    }
}

/// A space that was made here goes to the node first; then its tail is followed.
async fn register_then_follow(shared: Arc<Shared>, space: Arc<SpaceInner>) {
    let id = space.id;
    let registered = async {
        while !shared.is_registered(id) {
            shared.link(Input::Wake);
            match register(&space).await {
                Ok(()) => space.note_trouble(|t| (t.refused, t.store_full) = (None, None)),
                Err(error) => {
                    tracing::info!(space = %id.short(), error = %error, "the space could not be registered yet");
                    if let CallError::Refused(failure) = &error {
                        space.note_trouble(|t| t.refused = Some((failure.code, failure.message.clone())));
                    }
                    tokio::time::sleep(limits::RETRY_FIRST).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.cancel.cancelled() => return,
        () = registered => {}
    }
    let _ = shared.commands.send(Command::Opened(space));
}

async fn register(space: &SpaceInner) -> Result<(), CallError> {
    let conn = space.shared.conn().await?;
    register_on(&space.shared, &conn, space.id).await?;
    space.note_registered().await.map_err(local)
}

/// Founds a space at the node, or finds it there.
pub(crate) async fn register_on(shared: &Shared, conn: &Conn, space: SpaceId) -> Result<(), CallError> {
    let broken = |e: ReadError| CallError::Broken(e.to_string());
    let (header, first, second) = shared.store.read(|tx| read_genesis(tx, space)).map_err(broken)?;
    let request = v1::SpacePushRequest {
        header: Some(header.into()),
        acl_root: Some(first.into()),
        set_home: Some(second.into()),
    };
    let mut rpc = conn.rpc();
    shared.answer(conn, rpc.space_push(request)).await?;
    Ok(())
}

fn read_genesis(tx: &sync_store::ReadTx<'_>, space: SpaceId) -> Result<(RawRecord, RawRecord, RawRecord), ReadError> {
    let row = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?;
    let entries = tx.entries(space, sync_core::ids::Seq::ZERO, 2, usize::MAX)?;
    let mut records = entries.into_iter().map(|e| e.record);
    match (records.next(), records.next()) {
        (Some(first), Some(second)) => Ok((row.header, first, second)),
        _ => Err(ReadError::UnknownSpace(space)),
    }
}
