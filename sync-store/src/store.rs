//! The handle: everything that tasks see of the store.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sync_core::ids::{Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Committed;
use tokio::sync::{oneshot, watch};

use crate::cache::AclCache;
use crate::db::Tuning;
use crate::error::{OpenError, StoreError, WriteError};
use crate::feed::Feeds;
use crate::job::{Message, TypedJob};
use crate::memory::{Disk, Tenancy};
use crate::open::{self, DirLock, Opened};
use crate::read::ReadTx;
use crate::readers::Readers;
use crate::thread::Storage;
use crate::write::WriteTx;

/// How long a client's commit may wait for its barrier while nobody asks: one write after the other then costs no fsync each.
const CLIENT_BARRIER_DELAY: Duration = Duration::from_millis(20);
/// Write-ahead log, in pages of 4 KiB, beyond which it is checkpointed although there is work: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4096;

/// Whose store it is. A directory belongs to one kind for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    Node,
    Client,
}

impl StoreKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Node, Self::Client].into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the log of a space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Watermarks {
    /// Committed: survives a killed process.
    pub seq: Seq,
    /// Synced: survives a power cut. Never beyond `seq`.
    pub durable_seq: Seq,
}

/// The number of a commit of this open store; 0 before the first. Not kept across processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitNo(pub u64);

/// What a write led to. Exists only after its commit.
#[derive(Debug)]
pub struct Written<T> {
    /// What the job returned.
    pub value: T,
    /// The commit that holds the write, or, if it wrote nothing, the last one before its answer: what it read is in there.
    pub commit: CommitNo,
    /// The effects of the decisions it appended, in log order within each space; of several that touch one tree, or that
    /// touch none, those of the last.
    pub committed: Vec<(SpaceId, Committed)>,
}

/// The embedded store of a node or a client.
///
/// A cheap handle. The store closes when the last one is dropped (which waits for the storage thread to write out what was
/// queued) or by [`Store::close`].
///
/// ```
/// use sync_store::{Store, StoreKind};
///
/// # let dir = tempfile::tempdir().unwrap();
/// let store = Store::open(dir.path(), StoreKind::Client).unwrap();
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let written = store.write(|tx| tx.kv_put("greeting", b"hello")).await.unwrap();
/// store.durable(written.commit).await.unwrap();
/// # });
/// let value = store.read(|tx| tx.kv("greeting")).unwrap();
/// assert_eq!(value.as_deref(), Some(&b"hello"[..]));
/// ```
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("commit", &*self.inner.shared.commits.borrow()).finish_non_exhaustive()
    }
}

struct Inner {
    shared: Arc<Shared>,
    backend: Backend,
}

/// Where a store lives.
enum Backend {
    Directory(Directory),
    Memory(Tenancy),
}

struct Directory {
    readers: Readers,
    /// Taken when the last handle goes: the storage thread ends when there is no sender left.
    queue: Option<SyncSender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the storage thread and the handles share.
pub(crate) struct Shared {
    pub(crate) acls: Arc<AclCache>,
    pub(crate) marks: Marks,
    pub(crate) feeds: Feeds,
    pub(crate) commits: watch::Sender<CommitNo>,
    pub(crate) durable: watch::Sender<CommitNo>,
    pub(crate) spaces: watch::Sender<u64>,
    pub(crate) phase: watch::Sender<Phase>,
    /// The greatest commit that somebody waits for to be durable.
    pub(crate) durable_wanted: AtomicU64,
}

/// The life of the storage thread.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Open,
    /// No new work; what is queued is still done.
    Closing,
    Closed,
    Failed(StoreError),
}

impl Store {
    /// Opens a data directory, or makes one. What is found there is durable when this returns.
    ///
    /// Blocks on the disk; the storage thread starts here.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, kind: StoreKind) -> Result<Self, OpenError> {
        Self::open_with(dir, kind, Self::tuning(kind))
    }

    /// [`Store::open`] for a directory that the caller has locked, and keeps locked as long as it keeps a clone of `lock`: also
    /// between two stores.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_locked(lock: &DirLock, kind: StoreKind) -> Result<Self, OpenError> {
        let tuning = Self::tuning(kind);
        Self::start(open::open_locked(lock.clone(), kind, tuning)?, tuning)
    }

    pub(crate) const fn tuning(kind: StoreKind) -> Tuning {
        let barrier_delay = match kind {
            StoreKind::Node => Duration::ZERO,
            StoreKind::Client => CLIENT_BARRIER_DELAY,
        };
        Tuning { prefix_mask: -1, barrier_delay, checkpoint_pages: CHECKPOINT_PAGES }
    }

    pub(crate) fn open_with(dir: &Path, kind: StoreKind, tuning: Tuning) -> Result<Self, OpenError> {
        Self::start(open::open(dir, kind, tuning)?, tuning)
    }

    fn start(opened: Opened, tuning: Tuning) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::new());
        let readers = Readers::new(opened.database.clone(), tuning, Arc::clone(&shared.acls));
        let (queue, jobs) = sync_channel(limits::WRITE_QUEUE_MAX);
        let database = opened.database.clone();
        let storage = Storage::new(opened, Arc::clone(&shared), jobs)
            .map_err(|e| OpenError::Io { path: database.clone(), source: Arc::new(e) })?;
        let thread = std::thread::Builder::new()
            .name("headwater-store".into())
            .spawn(move || storage.run())
            .map_err(|e| OpenError::Io { path: database, source: Arc::new(e) })?;
        let directory = Directory { readers, queue: Some(queue), thread: Mutex::new(Some(thread)) };
        let inner = Inner { shared, backend: Backend::Directory(directory) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes a simulated disk into use: see [`crate::memory`].
    ///
    /// # Errors
    /// See [`OpenError`]; a disk that another store uses is [`OpenError::InUse`].
    pub fn open_on(disk: &Disk, kind: StoreKind) -> Result<Self, OpenError> {
        Self::open_on_with(disk, kind, Self::tuning(kind))
    }

    pub(crate) fn open_on_with(disk: &Disk, kind: StoreKind, tuning: Tuning) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::new());
        let backend = Backend::Memory(disk.open(kind, tuning, Arc::clone(&shared))?);
        Ok(Self { inner: Arc::new(Inner { shared, backend }) })
    }

    /// Runs a job on the storage thread, in its transaction, and returns when that is committed.
    ///
    /// The job is queued when this is first polled; after that it runs even if the caller goes away. Jobs run one at a time,
    /// in the order they came, and a job that fails leaves no trace. A job must not wait for anything: everyone waits for it.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write<T, E, F>(&self, job: F) -> Result<Written<T>, WriteError<E>>
    where
        F: FnOnce(&mut WriteTx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.accepts()?;
        let (reply, answer) = oneshot::channel();
        let job = Box::new(TypedJob::new(job, reply));
        match &self.inner.backend {
            Backend::Directory(directory) => self.submit(directory, Message::Job(job))?,
            Backend::Memory(tenancy) => tenancy.run(job).await,
        }
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    fn accepts<E>(&self) -> Result<(), WriteError<E>> {
        match &*self.inner.shared.phase.borrow() {
            Phase::Open => Ok(()),
            Phase::Closing | Phase::Closed => Err(WriteError::Closed),
            Phase::Failed(e) => Err(WriteError::Failed(e.clone())),
        }
    }

    fn submit<E>(&self, directory: &Directory, message: Message) -> Result<(), WriteError<E>> {
        let Some(queue) = &directory.queue else { return Err(WriteError::Closed) };
        queue.try_send(message).map_err(|e| match e {
            TrySendError::Full(_) => WriteError::Overloaded,
            TrySendError::Disconnected(_) => self.gone(),
        })
    }

    /// Why the storage thread no longer answers.
    fn gone<E>(&self) -> WriteError<E> {
        match &*self.inner.shared.phase.borrow() {
            Phase::Failed(e) => WriteError::Failed(e.clone()),
            Phase::Open | Phase::Closing | Phase::Closed => WriteError::Closed,
        }
    }

    /// Reads one moment, on the caller's thread. Blocks on the disk, and while [`crate::READERS_MAX`] others read; so it must not
    /// be nested.
    ///
    /// # Errors
    /// What the closure returns, or the store's failure to begin.
    pub fn read<T, E: From<StoreError>>(&self, f: impl FnOnce(&ReadTx<'_>) -> Result<T, E>) -> Result<T, E> {
        match &self.inner.backend {
            Backend::Directory(directory) => directory.readers.read(f),
            Backend::Memory(tenancy) => tenancy.read(f),
        }
    }

    /// Follows the log of a space. Level-triggered: a slow receiver sees the newest state, and nothing is queued for it.
    ///
    /// It falls only when a log is taken back ([`WriteTx::rewind`]), which a client alone does.
    ///
    /// The value is right from the start; for a space without a log (or if it cannot be read) it is zero. A receiver sees its
    /// space being forgotten as zero and the end: a space that begins again is watched anew.
    #[must_use]
    pub fn watch(&self, space: SpaceId) -> watch::Receiver<Watermarks> {
        let marks = &self.inner.shared.marks;
        let receiver = marks.subscribe(space);
        loop {
            let rewinds = marks.rewinds();
            // After subscribing: a commit in between is either seen here or published there.
            let seq = self.read(|tx| tx.space(space).map(|row| row.map_or(Seq::ZERO, |r| r.position.seq)));
            match seq {
                Ok(seq) if !marks.raise(&space, Found { seq, rewinds }, &receiver) => {}
                Ok(_) => return receiver,
                Err(error) => {
                    tracing::error!(%space, ?error, "the watermarks could not be read");
                    return receiver;
                }
            }
        }
    }

    /// Moves when a space is created.
    #[must_use]
    pub fn watch_spaces(&self) -> watch::Receiver<u64> {
        self.inner.shared.spaces.subscribe()
    }

    /// The last commit that wrote something: whatever is read from now on has it and all before it.
    #[must_use]
    pub fn commit(&self) -> CommitNo {
        *self.inner.shared.commits.borrow()
    }

    /// Moves with every commit that wrote something.
    #[must_use]
    pub fn watch_commits(&self) -> watch::Receiver<CommitNo> {
        self.inner.shared.commits.subscribe()
    }

    /// Waits until a commit is on disk, and makes that happen soon.
    ///
    /// # Errors
    /// If the store fails or is closed before.
    pub async fn durable(&self, commit: CommitNo) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        let mut durable = shared.durable.subscribe();
        if *durable.borrow_and_update() >= commit {
            return Ok(());
        }
        shared.durable_wanted.fetch_max(commit.0, Ordering::SeqCst);
        self.inner.wake();
        let mut phase = shared.phase.subscribe();
        let ended = phase.wait_for(|p| matches!(p, Phase::Closed | Phase::Failed(_)));
        tokio::select! {
            biased;
            reached = durable.wait_for(|d| *d >= commit) => reached.map(|_| ()).map_err(|_| StoreError::Closed),
            ended = ended => match ended.as_deref() {
                Ok(Phase::Failed(e)) => Err(e.clone()),
                Ok(Phase::Open | Phase::Closing | Phase::Closed) | Err(_) => Err(StoreError::Closed),
            },
        }
    }

    /// Resolves when the store has failed: the process should then stop, and the next start recovers. Never resolves
    /// otherwise, not even when the store is closed.
    pub async fn failed(&self) -> StoreError {
        let mut phase = self.inner.shared.phase.subscribe();
        let failed = phase.wait_for(|p| matches!(p, Phase::Failed(_))).await.ok().map(|p| p.clone());
        match failed {
            Some(Phase::Failed(error)) => error,
            Some(Phase::Open | Phase::Closing | Phase::Closed) | None => std::future::pending().await,
        }
    }

    /// Refuses new work, does what is queued, writes everything into the database file and ends the storage thread.
    ///
    /// Other handles then answer `Closed`; the directory can be opened again.
    pub async fn close(self) {
        let shared = &self.inner.shared;
        shared.phase.send_if_modified(|phase| match phase {
            Phase::Open => {
                *phase = Phase::Closing;
                true
            }
            Phase::Closing | Phase::Closed | Phase::Failed(_) => false,
        });
        match &self.inner.backend {
            Backend::Directory(directory) => directory.readers.close(),
            Backend::Memory(tenancy) => tenancy.finish(),
        }
        self.inner.wake();
        let mut phase = shared.phase.subscribe();
        let _ = phase.wait_for(|p| matches!(p, Phase::Closed | Phase::Failed(_))).await;
        // The thread has nothing left to do: this does not block.
        match &self.inner.backend {
            Backend::Directory(directory) => directory.join(),
            Backend::Memory(_) => {}
        }
    }
}

impl Inner {
    /// If the queue is full the thread is awake, and looks before it sleeps.
    fn wake(&self) {
        match &self.backend {
            Backend::Directory(Directory { queue: Some(queue), .. }) => drop(queue.try_send(Message::Wake)),
            Backend::Directory(Directory { queue: None, .. }) | Backend::Memory(_) => {}
        }
    }
}

impl Directory {
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        // A job may hold the last handle.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &mut self.backend {
            Backend::Directory(directory) => {
                directory.queue = None;
                directory.readers.close();
                directory.join();
            }
            Backend::Memory(tenancy) => tenancy.finish(),
        }
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            acls: Arc::default(),
            marks: Marks::default(),
            feeds: Feeds::default(),
            commits: watch::Sender::default(),
            durable: watch::Sender::default(),
            spaces: watch::Sender::default(),
            phase: watch::Sender::new(Phase::Open),
            durable_wanted: AtomicU64::default(),
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Closing)
    }
}

/// The watermarks that somebody watches, and which spaces have commits that are not durable.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<MarksInner>);

#[derive(Debug, Default)]
struct MarksInner {
    watched: HashMap<SpaceId, watch::Sender<Watermarks>>,
    /// Sweep senders without receivers when there are more than this.
    sweep_at: usize,
    /// What is durable of spaces with commits since the last barrier. A space that is not here is durable to its end.
    lagging: BTreeMap<SpaceId, Seq>,
    /// How many logs were taken back.
    rewinds: u64,
}

/// The end of a log as a reader found it, when so many logs had been taken back.
#[derive(Clone, Copy)]
struct Found {
    seq: Seq,
    rewinds: u64,
}

impl MarksInner {
    fn durable(&self, space: &SpaceId, seq: Seq) -> Seq {
        self.lagging.get(space).map_or(seq, |durable| seq.min(*durable))
    }
}

impl Marks {
    /// Before the commit: readers may see its rows before anything is published, and they are not durable then.
    pub(crate) fn announce(&self, space: SpaceId, durable_seq: Seq) {
        self.lock().lagging.entry(space).or_insert(durable_seq);
    }

    /// Before the commit that forgets a space: of what may begin in its place nothing is durable.
    pub(crate) fn announce_anew(&self, space: SpaceId) {
        self.lock().lagging.insert(space, Seq::ZERO);
    }

    /// Before the commit that takes a log back: of what may be appended in place of its end nothing is durable.
    pub(crate) fn announce_rewound(&self, space: SpaceId, to: Seq) {
        self.lock().lagging.entry(space).and_modify(|durable| *durable = to.min(*durable)).or_insert(to);
    }

    /// After that commit, and before anything that was appended since is published.
    pub(crate) fn rewind(&self, space: &SpaceId, to: Seq) {
        let mut marks = self.lock();
        marks.rewinds += 1;
        if let Some(sender) = marks.watched.get(space) {
            sender.send_modify(|mark| {
                mark.seq = to.min(mark.seq);
                mark.durable_seq = to.min(mark.durable_seq);
            });
        }
    }

    /// After the commit that forgot a space, and before anything of its successor is published.
    pub(crate) fn forget(&self, space: &SpaceId) {
        if let Some(sender) = self.lock().watched.remove(space) {
            sender.send_replace(Watermarks::default());
        }
    }

    /// After the commit.
    pub(crate) fn publish(&self, spaces: impl Iterator<Item = (SpaceId, Seq)>) {
        let mut marks = self.lock();
        for (space, seq) in spaces {
            if let Some(sender) = marks.watched.get(&space) {
                sender.send_if_modified(|mark| raise(&mut mark.seq, seq));
                if sender.receiver_count() == 0 {
                    marks.watched.remove(&space);
                }
            }
        }
    }

    /// After the barrier: everything committed is durable.
    pub(crate) fn publish_durable(&self) {
        let mut marks = self.lock();
        for space in std::mem::take(&mut marks.lagging).into_keys() {
            if let Some(sender) = marks.watched.get(&space) {
                sender.send_if_modified(|mark| {
                    let seq = mark.seq;
                    raise(&mut mark.durable_seq, seq)
                });
            }
        }
    }

    fn subscribe(&self, space: SpaceId) -> watch::Receiver<Watermarks> {
        let mut marks = self.lock();
        if marks.watched.len() > marks.sweep_at {
            marks.watched.retain(|_, sender| sender.receiver_count() > 0);
            marks.sweep_at = marks.watched.len() * 2 + 64;
        }
        marks.watched.entry(space).or_default().subscribe()
    }

    /// What is durable of a log that is committed up to `seq`.
    pub(crate) fn durable(&self, space: &SpaceId, seq: Seq) -> Seq {
        self.lock().durable(space, seq)
    }

    fn rewinds(&self) -> u64 {
        self.lock().rewinds
    }

    /// What a reader found; false if a log was taken back since, and it has to look again. Else marks only rise, so a late
    /// reader does no harm; one that is so late that the space was forgotten meanwhile has a receiver of its own time.
    fn raise(&self, space: &SpaceId, found: Found, receiver: &watch::Receiver<Watermarks>) -> bool {
        let marks = self.lock();
        if marks.rewinds != found.rewinds {
            return false;
        }
        let durable_seq = marks.durable(space, found.seq);
        if let Some(sender) = marks.watched.get(space).filter(|sender| sender.subscribe().same_channel(receiver)) {
            sender.send_if_modified(|mark| {
                let seq_rose = raise(&mut mark.seq, found.seq);
                raise(&mut mark.durable_seq, durable_seq) || seq_rose
            });
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, MarksInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn raise(mark: &mut Seq, to: Seq) -> bool {
    let rises = to > *mark;
    if rises {
        *mark = to;
    }
    rises
}
