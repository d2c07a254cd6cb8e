//! A disk in memory, for tests and simulated worlds: what is on it survives its user, and it fails when it is told to.
//!
//! A [`Disk`] belongs to the world around a process; [`Store::open_on`] is that process taking it into use. Between the two,
//! everything is as in a directory: one user at a time, commits that survive a killed process, commits that a power cut takes
//! unless a flush came after them, a full disk that answers [`WriteError::Full`], and a failing one that stops the store.
//!
//! - *Commit*: a job runs inside [`Store::write`], at its first poll. What becomes of the commit is a [`Fate`], by default
//!   [`Fate::Kept`].
//! - *Flush*: by default right after each commit. After [`Disk::flush_on_call`] only [`Disk::flush`] flushes, so that the world
//!   decides how long commits are in danger.
//! - *The end of the process*: [`Disk::kill`] keeps every commit, [`Disk::power_cut`] those before the last flush. What is left
//!   of the dead process gets no more answers: its writes never return, its reads find the store closed. Drop it.
//!
//! ```
//! use sync_store::memory::Disk;
//! use sync_store::{Store, StoreKind};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let disk = Disk::new("alice");
//! disk.flush_on_call();
//! let store = Store::open_on(&disk, StoreKind::Client).unwrap();
//! store.write(|tx| tx.kv_put("kept", b"1")).await.unwrap();
//! disk.flush();
//! store.write(|tx| tx.kv_put("lost", b"2")).await.unwrap();
//! disk.power_cut();
//!
//! let store = Store::open_on(&disk, StoreKind::Client).unwrap();
//! assert!(store.read(|tx| tx.kv("kept")).unwrap().is_some());
//! assert!(store.read(|tx| tx.kv("lost")).unwrap().is_none());
//! # });
//! ```
//!
//! # Never here
//!
//! No clock, no chance, no task: time and dice are the world's. No second way to commit: jobs run in the same `Writer` as
//! those of a directory.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, MAIN_DB};
use tokio::sync::watch;

use crate::db::{Db, Session, Tuning};
use crate::error::{Cause, OpenError, StoreError};
use crate::job::Job;
use crate::open;
use crate::read::ReadTx;
use crate::store::{Phase, Shared, StoreKind};
use crate::writer::{Medium, Writer, Wrote};

#[cfg(doc)]
use crate::{Store, WriteError};

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Committed. A power cut before the next flush takes it.
    Kept,
    /// Committed, and the system wrote it back by itself: it and all before it survive a power cut, though nobody was told.
    WrittenBack,
    /// There is no room: nothing of it is stored, and the store goes on.
    Full,
    /// The disk fails before the commit is in the file. The store stops.
    FailsBefore,
    /// The disk fails when the commit is in the file. The store stops, and nobody knows that the commit is there.
    FailsAfter,
    /// The process is killed before the commit.
    DiesBefore,
    /// The process is killed after the commit, before anybody is told.
    DiesAfter,
}

/// What a world decides for one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtCommit {
    pub fate: Fate,
    /// How long after the commit the caller hears of it. More than zero needs a runtime with a clock.
    pub answer_after: Duration,
}

impl Default for AtCommit {
    fn default() -> Self {
        Self { fate: Fate::Kept, answer_after: Duration::ZERO }
    }
}

/// Asked at each commit that wrote something.
type Governor = Box<dyn FnMut() -> AtCommit + Send>;

/// The content of a disk at some moment: a SQLite database file.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(Arc<Vec<u8>>);

impl Image {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.0.len())
    }
}

/// A simulated disk: a cheap handle that the world keeps while its users come and go.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    /// Stands where a directory has its path.
    path: PathBuf,
    state: Mutex<State>,
    /// Commits that no flush has covered.
    unflushed: watch::Sender<u64>,
    /// How often a commit ended its process.
    deaths: watch::Sender<u64>,
}

struct State {
    /// At rest: all that is on it. In use: see `user`.
    content: Option<Image>,
    /// What a power cut leaves.
    safe: Option<Image>,
    user: Option<Writer>,
    /// Counts users: what is left of an earlier one is told apart.
    users: u64,
    flushing: Flushing,
    room: Room,
    next: VecDeque<Fate>,
    governor: Option<Governor>,
    flush_fails: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flushing {
    AtEachCommit,
    OnCall,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Enough,
    None,
}

/// What the simulated disk says when it fails.
#[derive(Debug, thiserror::Error)]
#[error("the simulated disk was told to fail")]
struct Simulated;

/// SQLite's codes for what is simulated.
const IOERR_WRITE: i32 = 778;
const IOERR_FSYNC: i32 = 1034;

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Disk {
    /// An empty disk. The name stands in errors.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, None)
    }

    /// A disk that holds what another one held: a backup, or a copy to look into.
    #[must_use]
    pub fn holding(name: &str, image: Image) -> Self {
        Self::with(name, Some(image))
    }

    fn with(name: &str, content: Option<Image>) -> Self {
        let state = State {
            safe: content.clone(),
            content,
            user: None,
            users: 0,
            flushing: Flushing::AtEachCommit,
            room: Room::Enough,
            next: VecDeque::new(),
            governor: None,
            flush_fails: false,
        };
        let inner = Inner {
            path: Path::new("memory").join(name),
            state: Mutex::new(state),
            unflushed: watch::Sender::default(),
            deaths: watch::Sender::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    // ---- what is on it ----------------------------------------------------------------------------------------------

    /// What is on it now, every commit included. `None` if nothing was ever.
    #[must_use]
    pub fn image(&self) -> Option<Image> {
        self.lock().now()
    }

    /// What a power cut would leave.
    #[must_use]
    pub fn safe_image(&self) -> Option<Image> {
        self.lock().safe.clone()
    }

    /// Puts an image in the place of all that is on it, as somebody does who restores a backup. Ends the present user.
    pub fn restore(&self, image: Image) {
        let mut state = self.lock();
        state.user = None;
        state.safe = Some(image.clone());
        state.content = Some(image);
        self.inner.unflushed.send_replace(0);
    }

    // ---- flushes ----------------------------------------------------------------------------------------------------

    /// From now on only [`Disk::flush`] flushes.
    pub fn flush_on_call(&self) {
        self.lock().flushing = Flushing::OnCall;
    }

    /// Resolves when there are commits that no flush has covered.
    pub async fn owes_flush(&self) {
        // The sender lives in `self`.
        let _ = self.inner.unflushed.subscribe().wait_for(|n| *n > 0).await;
    }

    /// Whether a power cut would take nothing.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        *self.inner.unflushed.borrow() == 0
    }

    /// The durability barrier of the present user: every commit so far survives a power cut, and who waits is told.
    pub fn flush(&self) {
        self.flush_in(&mut self.lock());
    }

    fn flush_in(&self, state: &mut State) {
        if !state.is_in_use() {
            return;
        }
        if std::mem::take(&mut state.flush_fails) {
            state.fail(StoreError::Io { code: IOERR_FSYNC, source: Arc::new(Simulated) });
            return;
        }
        state.safe = state.now();
        if let Some(user) = &state.user {
            user.became_durable();
        }
        self.inner.unflushed.send_replace(0);
    }

    // ---- what goes wrong --------------------------------------------------------------------------------------------

    /// Decides the fate of the next commit; several calls, of the next several.
    pub fn next_commit(&self, fate: Fate) {
        self.lock().next.push_back(fate);
    }

    /// Asks `governor` at every commit that [`Disk::next_commit`] has not decided.
    pub fn govern(&self, governor: impl FnMut() -> AtCommit + Send + 'static) {
        self.lock().governor = Some(Box::new(governor));
    }

    /// Every commit finds the disk full, until [`Disk::make_room`].
    pub fn fill(&self) {
        self.lock().room = Room::None;
    }

    pub fn make_room(&self) {
        self.lock().room = Room::Enough;
    }

    /// Nothing of what was decided for later goes wrong any more, and there is room.
    pub fn mend(&self) {
        let mut state = self.lock();
        state.next.clear();
        state.flush_fails = false;
        state.room = Room::Enough;
    }

    /// The next flush fails, and with it the store.
    pub fn fail_next_flush(&self) {
        self.lock().flush_fails = true;
    }

    /// Ends the present user at once. Every commit survives.
    pub fn kill(&self) {
        self.lock().end_user();
        // What the next user finds is durable when its open returns.
        self.inner.unflushed.send_replace(0);
    }

    /// Ends the present user at once, and takes the commits that no flush has covered and the system did not write back.
    pub fn power_cut(&self) {
        let mut state = self.lock();
        state.end_user();
        state.content = state.safe.clone();
        self.inner.unflushed.send_replace(0);
    }

    /// How often a commit ended its process, see [`Fate::DiesBefore`]; and whenever it does again.
    #[must_use]
    pub fn deaths(&self) -> watch::Receiver<u64> {
        self.inner.deaths.subscribe()
    }

    // ---- its user ---------------------------------------------------------------------------------------------------

    pub(crate) fn open(&self, kind: StoreKind, tuning: Tuning, shared: Arc<Shared>) -> Result<Tenancy, OpenError> {
        let mut state = self.lock();
        let path = &self.inner.path;
        if state.is_in_use() {
            return Err(OpenError::InUse { path: path.clone(), pid: None });
        }
        state.end_user();
        let conn = open::open_image(path, state.content.as_ref().map(Image::bytes), kind)?;
        state.user = Some(Writer::new(Session::new(conn, tuning), Arc::clone(&shared)));
        state.users += 1;
        // What an open finds is durable when it returns, and so is the file that it makes.
        state.safe = state.now();
        Ok(Tenancy { disk: self.clone(), number: state.users, shared })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in a state is half done when a closure of a caller can panic.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&mut self) -> Option<Image> {
        match &mut self.user {
            Some(user) => image_of(&mut user.session.conn),
            None => self.content.clone(),
        }
    }

    fn end_user(&mut self) {
        self.content = self.now();
        self.user = None;
    }

    /// A user that failed holds the disk no longer, although it may still read.
    fn is_in_use(&self) -> bool {
        self.user.as_ref().is_some_and(|user| !matches!(*user.shared.phase.borrow(), Phase::Failed(_)))
    }

    /// Fail-stop.
    fn fail(&self, error: StoreError) {
        if let Some(user) = &self.user {
            tracing::error!(error = %error, cause = ?error, "the store has failed");
            user.shared.phase.send_replace(Phase::Failed(error));
        }
    }

    fn decide(&mut self) -> AtCommit {
        let governed = self.governor.as_mut().map(|governor| governor()).unwrap_or_default();
        let fate = self.next.pop_front().unwrap_or(match self.room {
            Room::None => Fate::Full,
            Room::Enough => governed.fate,
        });
        AtCommit { fate, ..governed }
    }
}

fn image_of(conn: &mut Connection) -> Option<Image> {
    // It fails only for want of memory.
    conn.serialize(MAIN_DB).ok().map(|data| Image(Arc::new(data.to_vec())))
}

/// A store's right to use a disk, and its way to it.
pub(crate) struct Tenancy {
    disk: Disk,
    number: u64,
    shared: Arc<Shared>,
}

impl Tenancy {
    /// Runs a job now. Returns when its caller may be told; never, if the process has ended meanwhile.
    pub(crate) async fn run(&self, job: Box<dyn Job>) {
        match self.transact(job) {
            Some(AtCommit { answer_after, .. }) if answer_after.is_zero() => {}
            Some(AtCommit { answer_after, .. }) => tokio::time::sleep(answer_after).await,
            None => std::future::pending().await,
        }
        if self.was_killed() {
            std::future::pending::<()>().await;
        }
    }

    fn transact(&self, job: Box<dyn Job>) -> Option<AtCommit> {
        let disk = &self.disk;
        let mut state = disk.lock();
        let mut user = self.take(&mut state)?;
        let mut spindle = Spindle { state: &mut state, decided: None };
        let done = user.transact(job, &mut spindle);
        let decided = spindle.decided.unwrap_or_default();
        state.user = Some(user);
        match decided.fate {
            Fate::DiesBefore | Fate::DiesAfter => {
                state.end_user();
                disk.inner.unflushed.send_replace(0);
                disk.inner.deaths.send_modify(|n| *n += 1);
                return None;
            }
            Fate::WrittenBack => state.safe = state.now(),
            Fate::Kept | Fate::Full | Fate::FailsBefore | Fate::FailsAfter => {}
        }
        match done {
            Ok(Wrote::Nothing) => {}
            Ok(Wrote::Something) if state.flushing == Flushing::AtEachCommit => disk.flush_in(&mut state),
            Ok(Wrote::Something) => disk.inner.unflushed.send_modify(|n| *n += 1),
            Err(error) => state.fail(error),
        }
        Some(decided)
    }

    /// Nobody writes meanwhile: that is one moment.
    pub(crate) fn read<T, E: From<StoreError>>(&self, read: impl FnOnce(&ReadTx<'_>) -> Result<T, E>) -> Result<T, E> {
        let state = self.disk.lock();
        let user = state.user.as_ref().filter(|_| state.users == self.number).ok_or(StoreError::Closed)?;
        read(&ReadTx::of_snapshot(Db::new(&user.session), &self.shared.acls))
    }

    /// The end of a store in good order: everything is durable.
    pub(crate) fn finish(&self) {
        let mut state = self.disk.lock();
        if state.user.is_none() || state.users != self.number {
            return;
        }
        self.disk.flush_in(&mut state);
        state.end_user();
        self.shared.phase.send_if_modified(|phase| match phase {
            Phase::Open | Phase::Closing => {
                *phase = Phase::Closed;
                true
            }
            Phase::Closed | Phase::Failed(_) => false,
        });
    }

    fn take(&self, state: &mut State) -> Option<Writer> {
        if state.users == self.number { state.user.take() } else { None }
    }

    /// The process ended without a word.
    fn was_killed(&self) -> bool {
        let state = self.disk.lock();
        let in_use = state.users == self.number && state.user.is_some();
        let said = matches!(*self.shared.phase.borrow(), Phase::Closed | Phase::Failed(_));
        !in_use && !said
    }
}

/// Where a transaction meets its fate.
struct Spindle<'a> {
    state: &'a mut State,
    decided: Option<AtCommit>,
}

impl Medium for Spindle<'_> {
    /// Jobs come one at a time.
    fn next_job(&mut self) -> Option<Box<dyn Job>> {
        None
    }

    fn before_commit(&mut self, wrote: Wrote) -> Result<(), StoreError> {
        if wrote == Wrote::Nothing {
            return Ok(());
        }
        let decided = self.state.decide();
        self.decided = Some(decided);
        let source: Cause = Arc::new(Simulated);
        match decided.fate {
            Fate::Kept | Fate::WrittenBack | Fate::FailsAfter | Fate::DiesAfter => Ok(()),
            Fate::Full => Err(StoreError::Full { source }),
            Fate::FailsBefore | Fate::DiesBefore => Err(StoreError::Io { code: IOERR_WRITE, source }),
        }
    }

    fn after_commit(&mut self, _: Wrote) -> Result<(), StoreError> {
        match self.decided.map(|decided| decided.fate) {
            Some(Fate::FailsAfter | Fate::DiesAfter) => {
                Err(StoreError::Io { code: IOERR_WRITE, source: Arc::new(Simulated) })
            }
            None | Some(Fate::Kept | Fate::WrittenBack | Fate::Full | Fate::FailsBefore | Fate::DiesBefore) => Ok(()),
        }
    }
}
