//! The world: machines with disks, what runs on them, and what goes wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_sdk::{Client, ClientConfig, MemoryVault, Mnemonic, NodeAddress, ObjectType};
use ed25519_dalek::SigningKey;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use sync_core::ids::AuthorityId;
use sync_core::limits;
use sync_e2ee::Secrets;
use sync_node::{Node, NodeConfig, NodeKeys, Recovering, RestoreError, RunningNode};
use sync_store::memory::{AtCommit, Disk, Fate};
use sync_store::{Store, StoreKind};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::foe::Lie;
use crate::line::{Garble, Line};
use crate::machine::{Ground, Process, dice};
use crate::net::{Gone, Latency, Net};
use crate::trace::Trace;

/// What clients are called, in this order.
pub const CLIENT_NAMES: [&str; 8] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];

/// How bad the weather is: what goes wrong by itself, from the seed, while a story is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Messages take this long.
    pub latency: Latency,
    /// How long a commit may wait for its flush.
    pub flush_after_max: Duration,
    /// How long a caller may wait for the answer to a commit.
    pub answer_after_max: Duration,
    /// One commit of so many is written back by the system before its flush; 0 for none.
    pub written_back_one_in: u32,
    /// Wall clocks are wrong by so much at most.
    pub skew_max: Duration,
}

impl Faults {
    /// Nothing goes wrong by itself.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            latency: Latency::CALM,
            flush_after_max: Duration::from_millis(2),
            answer_after_max: Duration::ZERO,
            written_back_one_in: 0,
            skew_max: Duration::ZERO,
        }
    }

    /// A bad line, a slow disk, wrong clocks.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            latency: Latency { min: Duration::from_millis(1), max: Duration::from_millis(150) },
            flush_after_max: Duration::from_millis(200),
            answer_after_max: Duration::from_millis(20),
            written_back_one_in: 4,
            skew_max: Duration::from_secs(36 * 3600),
        }
    }
}

/// A world before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    clients: usize,
    nodes: usize,
    faults: Faults,
    types: Vec<ObjectType>,
    lines: Lines,
    cached_trees: NonZeroUsize,
}

/// Live trees that a client keeps unless it is told otherwise: more than a story has.
pub(crate) const CACHED_TREES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// How the clients of a world reach their nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    Direct,
    /// By way of a [`Line`].
    Garbled,
}

impl Plan {
    /// With so many clients, see [`CLIENT_NAMES`]. Each has an account of its own, and uses the first node.
    #[must_use]
    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients.min(CLIENT_NAMES.len());
        self
    }

    /// With so many nodes, called `node-0` and so on.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// With this weather.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// With a line between each client and its node that [`World::garble`] can make lose, repeat, swap and delay messages.
    #[must_use]
    pub fn lines(mut self) -> Self {
        self.lines = Lines::Garbled;
        self
    }

    /// With so many live trees that a client keeps in each space although nobody holds them.
    #[must_use]
    pub fn cached_trees(mut self, trees: NonZeroUsize) -> Self {
        self.cached_trees = trees;
        self
    }

    /// With a kind of object that every client declares.
    #[must_use]
    pub fn object_type(mut self, object_type: ObjectType) -> Self {
        self.types.push(object_type);
        self
    }

    /// Builds the world and tells the story in it, in virtual time, on this thread. Returns what the story returns.
    ///
    /// # Panics
    /// If the story panics, after the seed and what happened were printed; if the world cannot be built.
    pub fn run<F, T>(self, story: impl FnOnce(World) -> F) -> T
    where
        F: Future<Output = T>,
    {
        runtime(self.seed).block_on(async {
            let world = World::build(self).await;
            let _confess = Confess(world.clone());
            story(world).await
        })
    }
}

/// One thread, and a clock that jumps to the next timer when there is nothing to do.
///
/// Which of several waiting tasks is woken first is chance in tokio, unless it is built with `--cfg tokio_unstable`, as this
/// workspace is: then the seed decides that, too.
fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime of one thread needs nothing of the system")
}

/// Prints what happened when a story panics.
struct Confess(World);

impl Drop for Confess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the world of seed {}:\n{}", self.0.seed(), self.0.trace());
        }
    }
}

/// A world that goes on. A cheap handle.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    ground: Ground,
    faults: Faults,
    types: Vec<ObjectType>,
    cached_trees: NonZeroUsize,
    calm: AtomicBool,
    state: Mutex<State>,
    trace: Trace,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<String, Machine>,
}

/// A machine: what stays of it when its process ends, and the process.
struct Machine {
    disk: Disk,
    skew_ms: i64,
    lives: u64,
    kind: Kind,
    process: Option<Running>,
}

enum Kind {
    Node { keys: NodeKeys, address: NodeAddress, recovering: Recovering },
    Client { vault: MemoryVault, node: String, account: Account },
}

/// Which account a client is at its next start.
#[derive(Clone)]
enum Account {
    New,
    /// The one of these words, on a new device.
    Of(Mnemonic),
    /// The one in its vault.
    Kept,
}

/// A process.
struct Running {
    store: Store,
    alive: Arc<AtomicBool>,
    what: What,
    /// Work of the application on this machine: ends with the process.
    tasks: Vec<tokio::task::AbortHandle>,
}

enum What {
    Node(RunningNode),
    Client(Client),
}

/// There is no process on the machine.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0} is not running")]
pub struct Down(pub String);

/// A process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} died while it started")]
    Died(String),
    #[error("the store did not open")]
    Store(#[from] sync_store::OpenError),
    #[error("the client did not open")]
    Client(#[from] client_sdk::OpenError),
    #[error("the node did not start")]
    Node(#[from] sync_node::StartError),
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.seed()).finish_non_exhaustive()
    }
}

impl World {
    /// A world of this seed: the same seed, plan and story give the same world, to the last message.
    #[must_use]
    pub fn seeded(seed: u64) -> Plan {
        Plan {
            seed,
            clients: 2,
            nodes: 1,
            faults: Faults::none(),
            types: Vec::new(),
            lines: Lines::Direct,
            cached_trees: CACHED_TREES,
        }
    }

    async fn build(plan: Plan) -> Self {
        let net = Net::new(dice(plan.seed, "net"));
        net.set_latency(plan.faults.latency);
        let ground = Ground { seed: plan.seed, began: Instant::now(), net };
        let inner = Inner {
            ground,
            faults: plan.faults,
            types: plan.types,
            cached_trees: plan.cached_trees,
            calm: AtomicBool::new(false),
            state: Mutex::default(),
            trace: Trace::new(),
        };
        let world = Self { inner: Arc::new(inner) };
        for n in 0..plan.nodes {
            world.add_node(&format!("node-{n}"));
        }
        for name in &CLIENT_NAMES[..plan.clients] {
            world.add_client(name, "node-0");
            if plan.lines == Lines::Garbled {
                let dice = dice(plan.seed, &format!("line of {name}"));
                world.inner.ground.net.lay(name, Line::new(dice));
            }
        }
        for name in world.machines() {
            world.start(&name).await.unwrap_or_else(|e| panic!("{name} starts in a new world: {e}"));
        }
        world
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.inner.ground.seed
    }

    /// Virtual time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.inner.ground.began.elapsed()
    }

    /// Writes a line of what happened.
    pub fn note(&self, line: impl fmt::Display) {
        self.inner.trace.note(self.elapsed(), &line);
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> String {
        self.inner.trace.text()
    }

    /// A hash of what happened: equal for two runs of one seed.
    #[must_use]
    pub fn trace_hash(&self) -> [u8; 32] {
        self.inner.trace.hash()
    }

    /// How often a machine has sent something, or asked for a connection.
    pub(crate) fn sent(&self, name: &str) -> u64 {
        self.inner.ground.net.sent(name)
    }

    // ---- machines ---------------------------------------------------------------------------------------------------

    /// The names of all machines, nodes and clients.
    #[must_use]
    pub fn machines(&self) -> Vec<String> {
        self.lock().machines.keys().cloned().collect()
    }

    /// A new machine that will run a node; [`World::start`] starts it.
    pub fn add_node(&self, name: &str) {
        let mut dice = dice(self.seed(), &format!("keys of {name}"));
        let keys = NodeKeys { authority: dice.random(), node: dice.random() };
        self.add_node_with(name, keys);
    }

    /// As [`World::add_node`], with the keys of another: its twin.
    pub fn add_node_with(&self, name: &str, keys: NodeKeys) {
        let endpoint = format!("{name}:4710");
        let address = NodeAddress {
            transport: sync_core::token::Transport::Plain,
            authority: AuthorityId::from(&SigningKey::from_bytes(&keys.authority).verifying_key()),
            endpoint,
        };
        self.add(name, Kind::Node { keys, address, recovering: Recovering::default() });
    }

    /// A new machine that will run a client of a node; [`World::start`] starts it, and makes its account the first time.
    pub fn add_client(&self, name: &str, node: &str) {
        let vault = MemoryVault::default();
        self.add(name, Kind::Client { vault, node: node.to_owned(), account: Account::New });
    }

    /// A new machine that will run another device of a client's account, which knows nothing but the words.
    ///
    /// # Panics
    /// If there is no such client.
    pub fn add_device(&self, name: &str, of: &str) {
        let words = self.secrets(of).unwrap_or_else(|| panic!("{of} is a client that was started")).mnemonic;
        let Some(node) = self.node_of(of) else { panic!("{of} is a node") };
        self.add(name, Kind::Client { vault: MemoryVault::default(), node, account: Account::Of(words) });
    }

    fn node_of(&self, client: &str) -> Option<String> {
        match &self.lock().machine(client).kind {
            Kind::Client { node, .. } => Some(node.clone()),
            Kind::Node { .. } => None,
        }
    }

    /// What a client keeps in its vault; `None` of a node, and before the first start.
    pub(crate) fn secrets(&self, client: &str) -> Option<Secrets> {
        match &self.lock().machine(client).kind {
            Kind::Client { vault, .. } => vault.secrets().ok(),
            Kind::Node { .. } => None,
        }
    }

    fn add(&self, name: &str, kind: Kind) {
        let skew_max = i64::try_from(self.inner.faults.skew_max.as_millis()).unwrap_or(i64::MAX);
        let skew_ms = dice(self.seed(), &format!("clock of {name}")).random_range(-skew_max..=skew_max);
        let disk = Disk::new(name);
        disk.flush_on_call();
        self.govern(name, &disk);
        let machine = Machine { disk: disk.clone(), skew_ms, lives: 0, kind, process: None };
        self.lock().machines.insert(name.to_owned(), machine);
        tokio::spawn(flushes(self.clone(), disk.clone(), dice(self.seed(), &format!("flushes of {name}"))));
        tokio::spawn(deaths(self.clone(), name.to_owned(), disk));
    }

    /// What happens at each commit.
    fn govern(&self, name: &str, disk: &Disk) {
        let mut dice = dice(self.seed(), &format!("commits of {name}"));
        let (world, faults) = (Arc::downgrade(&self.inner), self.inner.faults);
        let answer_max = u64::try_from(faults.answer_after_max.as_micros()).unwrap_or(u64::MAX);
        disk.govern(move || {
            let is_calm = world.upgrade().is_none_or(|world| world.calm.load(Ordering::Relaxed));
            if is_calm {
                return AtCommit::default();
            }
            let one_in = faults.written_back_one_in;
            let written_back = one_in > 0 && dice.random_ratio(1, one_in);
            let fate = if written_back { Fate::WrittenBack } else { Fate::Kept };
            AtCommit { fate, answer_after: Duration::from_micros(dice.random_range(0..=answer_max)) }
        });
    }

    /// Starts the process of a machine. Nothing happens if it runs.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, name: &str) -> Result<(), StartError> {
        if self.is_up(name) {
            return Ok(());
        }
        let (disk, skew_ms, life) = {
            let mut state = self.lock();
            let machine = state.machine(name);
            machine.lives += 1;
            (machine.disk.clone(), machine.skew_ms, machine.lives)
        };
        self.inner.ground.net.come_back(name);
        let (host, alive) = Process::host(&self.inner.ground, name, skew_ms, life);
        let kind = match self.lock().machine(name).kind {
            Kind::Node { .. } => StoreKind::Node,
            Kind::Client { .. } => StoreKind::Client,
        };
        let store = Store::open_on(&disk, kind)?;
        let mut deaths = disk.deaths();
        let starting = async {
            match kind {
                StoreKind::Node => self.start_node(name, host, store.clone()).await,
                StoreKind::Client => self.start_client(name, host, store.clone()).await,
            }
        };
        let started = tokio::select! {
            biased;
            _ = deaths.changed() => Err(StartError::Died(name.to_owned())),
            started = starting => started,
        };
        let what = match started {
            Ok(what) => what,
            Err(error) => {
                disk.kill();
                return Err(error);
            }
        };
        self.lock().machine(name).process = Some(Running { store, alive, what, tasks: Vec::new() });
        self.note(format_args!("{name} starts"));
        Ok(())
    }

    async fn start_node(&self, name: &str, host: sync_host::Host, store: Store) -> Result<What, StartError> {
        let (keys, address, recovering) = match &self.lock().machine(name).kind {
            Kind::Node { keys, address, recovering } => (keys.clone(), address.clone(), recovering.clone()),
            Kind::Client { .. } => panic!("{name} is a client"),
        };
        let arriving = UnboundedReceiverStream::new(self.inner.ground.net.listen(name, &address.endpoint));
        let config = NodeConfig { listen: address.endpoint, plaintext: true, ..NodeConfig::default() };
        let node = Node::start_restored_on(host, store.clone(), &keys, arriving, config, recovering).await?;
        tokio::spawn(supervise(self.clone(), name.to_owned(), self.life(name), store));
        Ok(What::Node(node))
    }

    async fn start_client(&self, name: &str, host: sync_host::Host, store: Store) -> Result<What, StartError> {
        let (vault, address, account) = {
            let mut state = self.lock();
            let (vault, node, account) = match &state.machine(name).kind {
                Kind::Client { vault, node, account } => (vault.clone(), node.clone(), account.clone()),
                Kind::Node { .. } => panic!("{name} is a node"),
            };
            (vault, state.address(&node), account)
        };
        let mut config = ClientConfig::on(host, vault, store).node(address).name(format!("{name}-the-person"));
        for object_type in &self.inner.types {
            config = config.object_type(object_type.clone());
        }
        config = config.cached_trees(self.inner.cached_trees);
        let client = match account {
            Account::New => Client::create(config).await?.0,
            Account::Of(words) => Client::restore(config, words).await?,
            Account::Kept => Client::open(config).await?,
        };
        if let Kind::Client { account, .. } = &mut self.lock().machine(name).kind {
            *account = Account::Kept;
        }
        Ok(What::Client(client))
    }

    /// Which process of a machine runs, counted from its first.
    pub(crate) fn life(&self, name: &str) -> u64 {
        self.lock().machine(name).lives
    }

    /// Whether there is such a machine.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.lock().machines.contains_key(name)
    }

    /// Whether a process runs on a machine.
    #[must_use]
    pub fn is_up(&self, name: &str) -> bool {
        self.lock().machine(name).process.is_some()
    }

    /// The client on a machine.
    ///
    /// # Errors
    /// [`Down`].
    pub fn client(&self, name: &str) -> Result<Client, Down> {
        match &self.lock().machine(name).process {
            Some(Running { what: What::Client(client), .. }) => Ok(client.clone()),
            Some(_) | None => Err(Down(name.to_owned())),
        }
    }

    /// The words of a client's account, once it is made: another client can be the same person.
    #[must_use]
    pub fn words(&self, client: &str) -> Option<Mnemonic> {
        self.secrets(client).map(|secrets| secrets.mnemonic)
    }

    /// A connection of one's own from a machine to a node, as bytes.
    ///
    /// # Errors
    /// As of a socket.
    pub async fn dial(&self, from: &str, node: &str) -> std::io::Result<sync_host::Stream> {
        let endpoint = self.address(node).endpoint;
        self.inner.ground.net.connect(from.to_owned(), endpoint).await
    }

    /// The address of a node.
    #[must_use]
    pub fn address(&self, node: &str) -> NodeAddress {
        self.lock().address(node)
    }

    /// The disk of a machine: to look at, to fill, to make it fail.
    #[must_use]
    pub fn disk(&self, name: &str) -> Disk {
        self.lock().machine(name).disk.clone()
    }

    /// The store that a running process has open: to look at.
    ///
    /// # Errors
    /// [`Down`].
    pub fn store(&self, name: &str) -> Result<Store, Down> {
        let mut state = self.lock();
        let running = state.machine(name).process.as_ref().ok_or_else(|| Down(name.to_owned()))?;
        Ok(running.store.clone())
    }

    /// Runs work of an application on a machine: it ends when the process ends.
    pub fn spawn_on<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<T>, Down> {
        let mut state = self.lock();
        let running = state.machine(name).process.as_mut().ok_or_else(|| Down(name.to_owned()))?;
        let task = tokio::spawn(work);
        running.tasks.retain(|task| !task.is_finished());
        running.tasks.push(task.abort_handle());
        Ok(task)
    }

    // ---- the ends of processes --------------------------------------------------------------------------------------

    /// Kills the process of a machine. What it committed stays.
    pub fn kill(&self, name: &str) {
        self.note(format_args!("{name} is killed"));
        self.end(name, Gone::Killed, Disk::kill);
    }

    /// Cuts the power of a machine: its process ends, what was not flushed is lost, and nobody is told.
    pub fn power_cut(&self, name: &str) {
        self.note(format_args!("{name} loses power"));
        self.end(name, Gone::Dark, Disk::power_cut);
    }

    /// Puts a former content on the disk of a machine, as somebody does who restores a backup. Kills the process.
    pub fn restore(&self, name: &str, image: sync_store::memory::Image) {
        self.note(format_args!("{name} is restored from a backup"));
        self.end(name, Gone::Killed, |disk| disk.restore(image));
    }

    /// Makes what [`World::restore`] put on the disk of a node a recognised restore, as `sync-node restore` does: with the next
    /// start it takes nothing new for so long, or until [`World::end_recovery`].
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub async fn recognise_restore(&self, node: &str, window: Duration) -> Result<(), RestoreError> {
        let (disk, keys, skew_ms, life) = {
            let mut state = self.lock();
            let machine = state.machine(node);
            machine.lives += 1;
            let Kind::Node { keys, .. } = &machine.kind else { panic!("{node} is a client") };
            (machine.disk.clone(), keys.clone(), machine.skew_ms, machine.lives)
        };
        let (host, _alive) = Process::host(&self.inner.ground, node, skew_ms, life);
        let spaces = sync_node::restore_on(&host, Store::open_on(&disk, StoreKind::Node)?, &keys).await?;
        disk.kill();
        if let Kind::Node { recovering, .. } = &mut self.lock().machine(node).kind {
            *recovering = Recovering::lasting(&host, window);
        }
        self.note(format_args!("{node} has new histories of {spaces} spaces"));
        Ok(())
    }

    /// The operator of a node ends the time in which it takes nothing new.
    pub fn end_recovery(&self, node: &str) {
        self.note(format_args!("{node} takes what is new"));
        if let Kind::Node { recovering, .. } = &self.lock().machine(node).kind {
            recovering.end();
        }
    }

    fn end(&self, name: &str, how: Gone, disk_does: impl FnOnce(&Disk)) {
        let (disk, process) = {
            let mut state = self.lock();
            let machine = state.machine(name);
            (machine.disk.clone(), machine.process.take())
        };
        disk_does(&disk);
        self.inner.ground.net.vanish(name, how);
        let Some(process) = process else { return };
        process.alive.store(false, Ordering::Relaxed);
        process.tasks.iter().for_each(tokio::task::AbortHandle::abort);
        match process.what {
            // Dropping it ends its tasks; they reach nothing any more.
            What::Client(client) => drop(client),
            What::Node(node) => drop(tokio::spawn(async move { node.shutdown().await })),
        }
    }

    /// Stops the process of a machine in good order; kills it if it does not end.
    pub async fn stop(&self, name: &str) {
        let process = self.lock().machine(name).process.take();
        let Some(process) = process else { return };
        process.tasks.iter().for_each(tokio::task::AbortHandle::abort);
        drop(process.store);
        let closing = async {
            match process.what {
                What::Client(client) => client.close().await,
                What::Node(node) => drop(node.shutdown().await),
            }
        };
        // One that dies on the way never ends.
        let _ = tokio::time::timeout(limits::DRAIN_TIMEOUT * 2, closing).await;
        self.inner.ground.net.vanish(name, Gone::Killed);
        // Whatever still held the store, the process is gone.
        self.disk(name).kill();
        self.note(format_args!("{name} stops"));
    }

    // ---- the network ------------------------------------------------------------------------------------------------

    /// Cuts the way between two machines, in both directions.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Holds back what goes from one machine to another.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.note(format_args!("{from} does not reach {to}"));
        self.inner.ground.net.cut(from, to);
    }

    /// Mends the way between two machines.
    pub fn heal(&self, a: &str, b: &str) {
        self.note(format_args!("{a} and {b} reach each other"));
        self.inner.ground.net.heal(a, b);
        self.inner.ground.net.heal(b, a);
    }

    /// Resets every connection between two machines.
    pub fn sever(&self, a: &str, b: &str) {
        self.note(format_args!("connections between {a} and {b} are reset"));
        self.inner.ground.net.sever(a, b);
    }

    /// From now on, the line of a client does this to messages; nothing happens without [`Plan::lines`].
    pub fn garble(&self, client: &str, garble: Garble) {
        self.note(format_args!("the line of {client}: {garble}"));
        if let Some(line) = self.inner.ground.net.line(client) {
            line.garble(garble);
        }
    }

    /// From now on the node lies so to a client; nothing happens without [`Plan::lines`].
    pub fn lie(&self, client: &str, lie: Option<Lie>) {
        if let Some(line) = self.inner.ground.net.line(client) {
            line.tell(lie);
        }
    }

    /// The weather clears for good: every way is open, every line is clear, every disk has room and is quick, and every machine runs.
    ///
    /// # Errors
    /// If a machine does not start.
    pub async fn clear_up(&self) -> Result<(), StartError> {
        self.note("the weather clears");
        self.inner.calm.store(true, Ordering::Relaxed);
        self.inner.ground.net.set_latency(Latency::CALM);
        self.inner.ground.net.heal_all();
        self.inner.ground.net.clear_lines();
        for name in self.machines() {
            self.disk(&name).mend();
            if self.has_failed(&name) {
                self.kill(&name);
            }
            self.start(&name).await?;
        }
        Ok(())
    }

    /// The store under a process has failed: all that it can do is end.
    fn has_failed(&self, name: &str) -> bool {
        let Ok(store) = self.store(name) else { return false };
        let mut failed = Box::pin(store.failed());
        let waker = std::task::Waker::noop();
        failed.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).unwrap_or_else(|| panic!("there is no machine {name} in this world"))
    }

    fn address(&self, node: &str) -> NodeAddress {
        match self.machines.get(node).map(|machine| &machine.kind) {
            Some(Kind::Node { address, .. }) => address.clone(),
            Some(Kind::Client { .. }) | None => panic!("there is no node {node} in this world"),
        }
    }
}

/// Flushes a disk some time after its commits, for ever.
async fn flushes(world: World, disk: Disk, mut dice: ChaCha8Rng) {
    let max = world.inner.faults.flush_after_max;
    let calm = Faults::none().flush_after_max;
    loop {
        disk.owes_flush().await;
        let max = if world.inner.calm.load(Ordering::Relaxed) { calm } else { max };
        let micros = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_micros(dice.random_range(0..=micros))).await;
        disk.flush();
    }
}

/// Ends a process whose commit was fatal.
async fn deaths(world: World, name: String, disk: Disk) {
    let mut deaths = disk.deaths();
    while deaths.changed().await.is_ok() {
        world.kill(&name);
    }
}

/// A node whose store fails ends its process.
async fn supervise(world: World, name: String, life: u64, store: Store) {
    store.failed().await;
    if world.life(&name) == life {
        world.note(format_args!("the store of {name} has failed"));
        world.kill(&name);
    }
}
