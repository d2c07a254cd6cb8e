//! The awaits. They answer yes only with a receipt that the node signed for this very call, and never no without naming what
//! is missing.
//!
//! The target is fixed at the call: the log position of a Certify answer, every write of ours that was not durable yet, and
//! nothing that others write later.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::receipt::SignedReceipt;
use sync_core::session::{Input, Moment, pause_asked};
use sync_core::syncer::Priority;
use sync_proto::v1;
use sync_store::{LogRange, ReadTx, SyncItemKind, VerdictKind, VerdictRow, WriteClass, WriteId, WriteState};
use tokio::sync::watch;

use crate::connect::Conn;
use crate::error::{CallError, NotSynced, NotSyncedCode, ReadError, local};
use crate::explain::UNSETTLED;
use crate::objects::Object;
use crate::rest::Rest;
use crate::space::{Space, SpaceInner};
use crate::status::{Reason, ReasonCode};

/// How long an await waits unless it is told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How an await waits, and for how much.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::{Await, Level};
/// let how = Await::default().level(Level::Received).deadline(Duration::from_secs(5)).stall(Duration::from_secs(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Await {
    level: Level,
    deadline: Option<Duration>,
    stall: Option<Duration>,
    trees: BTreeMap<TreeId, BTreeSet<ChangeId>>,
    fresh_within: Duration,
}

/// What must be true of own writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// They are in the node's log: they survive a killed node.
    Received,
    /// They are on the node's disk, and a receipt proves it: they survive a power cut.
    Durable,
}

impl Default for Await {
    /// Durable, within 30 seconds, and nothing older than two heartbeats at the end.
    fn default() -> Self {
        Self {
            level: Level::Durable,
            deadline: Some(DEADLINE),
            stall: None,
            trees: BTreeMap::new(),
            fresh_within: limits::HEARTBEAT_INTERVAL * 2,
        }
    }
}

impl Await {
    /// What must be true of own writes.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// The longest that it waits.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// It waits for as long as it takes. Dropping it ends it.
    #[must_use]
    pub fn without_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// The longest that it waits without progress. Progress means that something left what is missing.
    #[must_use]
    pub fn stall(mut self, stall: Duration) -> Self {
        self.stall = Some(stall);
        self
    }

    /// Waits for a tree, too: for these changes of it, or for any without them.
    #[must_use]
    pub fn tree(mut self, tree: TreeId, heads: impl IntoIterator<Item = ChangeId>) -> Self {
        self.trees.entry(tree).or_default().extend(heads);
        self
    }

    /// The node's word must not be older than this when the await answers, counted from when it was asked.
    #[must_use]
    pub fn fresh_within(mut self, fresh_within: Duration) -> Self {
        self.fresh_within = fresh_within;
        self
    }

    pub(crate) fn chosen_level(&self) -> Level {
        self.level
    }
}

/// The proof that local and node agree, durably, readably.
#[derive(Debug, Clone, PartialEq)]
pub struct Synced {
    /// Signed by the node for this call; verifiable offline.
    pub receipt: SignedReceipt,
    /// Changes that can never be shown because their authors made them wrongly. Settled, the same for everyone.
    pub void: Vec<(TreeId, ChangeId)>,
    /// Changes of epochs whose keys this member was never given. Settled.
    pub hidden: Vec<(TreeId, ChangeId)>,
    /// The logged heads of the trees that the caller named.
    pub heads: BTreeMap<TreeId, BTreeSet<ChangeId>>,
    /// True if nothing was added on either side since the target was fixed.
    pub equal_now: bool,
}

/// How far an await is.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Progress {
    /// The log position that it waits for; `None` while the node has yet to name it.
    pub target: Option<u64>,
    /// The end of what is here and readable.
    pub here: u64,
    /// How many things are missing, by kind.
    pub missing: BTreeMap<ReasonCode, u64>,
}

impl Progress {
    /// How many things are missing.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.missing.values().sum()
    }
}

/// One word of an await that is followed.
#[derive(Debug, Clone)]
pub enum AwaitEvent {
    Progress(Progress),
    /// The last one.
    Synced(Box<Synced>),
    /// The last one.
    Failed(NotSynced),
}

/// What an await does until it ends.
type Work = Pin<Box<dyn Future<Output = Result<Synced, NotSynced>> + Send>>;

/// An await whose progress is followed. It waits while it is asked; dropping it ends it and leaves nothing behind.
pub struct SyncedStream {
    work: Option<Work>,
    progress: watch::Receiver<Progress>,
}

impl std::fmt::Debug for SyncedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncedStream").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

impl SyncedStream {
    /// Progress as often as it moves, then one end; `None` after that.
    pub async fn next(&mut self) -> Option<AwaitEvent> {
        let work = self.work.as_mut()?;
        let ended = tokio::select! {
            biased;
            Ok(()) = self.progress.changed() => {
                return Some(AwaitEvent::Progress(self.progress.borrow_and_update().clone()));
            }
            ended = work => ended,
        };
        self.work = None;
        Some(match ended {
            Ok(synced) => AwaitEvent::Synced(Box::new(synced)),
            Err(failed) => AwaitEvent::Failed(failed),
        })
    }
}

/// A write that is where the caller wanted it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// Where it stands in the log.
    pub seq: Seq,
    /// With [`Level::Durable`]: the node's signed word that its disk holds it.
    pub receipt: Option<SignedReceipt>,
}

impl From<&CallError> for NotSyncedCode {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Offline { .. } | CallError::Broken(_) => Self::NoNode,
            CallError::TimedOut => Self::DeadlineExceeded,
            CallError::Refused(failure) if failure.code == Code::Forbidden => Self::Forbidden,
            CallError::Refused(_) => Self::Refused,
            CallError::BadAnswer(_) => Self::NodeFault,
        }
    }
}

impl Space {
    /// Waits until everything that the node has is here and readable, and everything of ours is on the node's disk, as of
    /// this call; at most 30 seconds.
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing.
    pub async fn await_synced(&self) -> Result<Synced, NotSynced> {
        self.await_synced_with(&Await::default()).await
    }

    /// [`Space::await_synced`] with its own deadline.
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing.
    pub async fn await_synced_within(&self, deadline: Duration) -> Result<Synced, NotSynced> {
        self.await_synced_with(&Await::default().deadline(deadline)).await
    }

    /// [`Space::await_synced`], as the caller wants it.
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing.
    pub async fn await_synced_with(&self, how: &Await) -> Result<Synced, NotSynced> {
        let progress = watch::channel(Progress::default()).0;
        self.inner.synced_with(how, BTreeSet::new(), &progress).await
    }

    /// [`Space::await_synced`], with what is missing on the way.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) {
    /// use client_sdk::{Await, AwaitEvent};
    /// let mut waiting = space.follow_synced(Await::default());
    /// while let Some(event) = waiting.next().await {
    ///     match event {
    ///         AwaitEvent::Progress(progress) => println!("{} left", progress.left()),
    ///         AwaitEvent::Synced(synced) => println!("synced up to {}", synced.receipt.body().seq),
    ///         AwaitEvent::Failed(failed) => println!("{failed}"),
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn follow_synced(&self, how: Await) -> SyncedStream {
        let (progress, seen) = watch::channel(Progress::default());
        let space = self.inner.clone();
        let work = Box::pin(async move { space.synced_with(&how, BTreeSet::new(), &progress).await });
        SyncedStream { work: Some(work), progress: seen }
    }

    /// Waits until a write is on the node's disk; the receipt proves it.
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_durable(&self, write: WriteId) -> Result<SignedReceipt, NotSynced> {
        self.await_durable_within(write, DEADLINE).await
    }

    /// [`Space::await_durable`] with its own deadline.
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_durable_within(&self, write: WriteId, deadline: Duration) -> Result<SignedReceipt, NotSynced> {
        self.inner.durable_with(write, &Await::default().deadline(deadline)).await
    }

    /// Waits until a write is as safe as the caller wants it: in the node's log, or on its disk.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space, write: client_sdk::WriteId) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{Await, Level};
    /// let settled = space.await_write(write, &Await::default().level(Level::Received)).await?;
    /// println!("in the node's log at {}", settled.seq);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_write(&self, write: WriteId, how: &Await) -> Result<Settled, NotSynced> {
        self.inner.write_with(write, how).await
    }

    /// Waits until an object is here and readable. It may not have been written yet.
    ///
    /// # Errors
    /// [`NotSynced`]: never an Ok for an object that is not here.
    pub async fn await_object(&self, object_type: &str, id: &str, deadline: Duration) -> Result<Object, NotSynced> {
        self.await_object_with(object_type, id, &Await::default().deadline(deadline)).await
    }

    /// [`Space::await_object`], as the caller wants it.
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_object_with(&self, object_type: &str, id: &str, how: &Await) -> Result<Object, NotSynced> {
        let progress = watch::channel(Progress::default()).0;
        let found = self.inner.limited(how, &progress, self.inner.object(object_type, id)).await;
        found.map_err(|mut failed| {
            let absent = Reason::find(&failed.residue, ReasonCode::Unreadable).is_none();
            if absent
                && matches!(
                    failed.code,
                    NotSyncedCode::DeadlineExceeded | NotSyncedCode::NoNode | NotSyncedCode::Stalled
                )
            {
                let scope = format!("{object_type}/{id}");
                failed.residue.insert(0, Reason::new(ReasonCode::Missing, scope, "nobody's write of it arrived"));
            }
            failed
        })
    }
}

/// What is missing at a target, and whether waiting can help.
#[derive(Default)]
struct Residue {
    missing: BTreeMap<ReasonCode, u64>,
    /// What no waiting changes.
    hopeless: Vec<Reason>,
    hopeless_count: u64,
}

impl Residue {
    fn waits(&mut self, code: ReasonCode, count: u64) {
        *self.missing.entry(code).or_default() += count;
    }

    fn fails(&mut self, reason: Reason) {
        self.fail(1, std::iter::once(reason));
    }

    /// So many of one kind, of which some are named.
    fn fail(&mut self, count: u64, named: impl Iterator<Item = Reason>) {
        let mut named = named.peekable();
        if let Some(first) = named.peek() {
            self.waits(first.code, count);
            self.hopeless_count += count;
        }
        let room = limits::RESIDUE_MAX.saturating_sub(self.hopeless.len());
        self.hopeless.extend(named.take(room).take(usize::try_from(count).unwrap_or(usize::MAX)));
    }

    fn left(&self) -> u64 {
        self.missing.values().sum()
    }
}

/// What an await waits for.
struct Target<'a> {
    seq: Seq,
    ours: &'a Ours,
    how: &'a Await,
}

/// Our writes that an await is about.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    /// Those that were not settled when it began, or when the wait was kept that it goes on with.
    open: BTreeSet<WriteId>,
    /// And all up to this one, if they are open when it matters: what a node loses is to be written again.
    to: WriteId,
}

impl Ours {
    fn now(&self, tx: &ReadTx<'_>, space: SpaceId) -> Result<BTreeSet<WriteId>, ReadError> {
        Ok(tx.open_writes_to(space, self.to)?.into_iter().chain(self.open.iter().copied()).collect())
    }
}

/// A receipt, when it was asked for, and how often our log had been taken back then.
struct Certified {
    receipt: SignedReceipt,
    asked: Moment,
    rewinds: u64,
}

/// What becomes of a claim that is looked at once more.
enum Claim<T> {
    Holds(T),
    /// The log was taken back in the meantime, or something is to be waited for again.
    Anew,
}

impl SpaceInner {
    /// [`Space::await_durable`].
    pub(crate) async fn durable_within(&self, write: WriteId) -> Result<SignedReceipt, NotSynced> {
        self.durable_with(write, &Await::default()).await
    }

    async fn durable_with(&self, write: WriteId, how: &Await) -> Result<SignedReceipt, NotSynced> {
        let progress = watch::channel(Progress::default()).0;
        Ok(self.limited(how, &progress, self.durable(write)).await?.0)
    }

    pub(crate) async fn write_with(&self, write: WriteId, how: &Await) -> Result<Settled, NotSynced> {
        let progress = watch::channel(Progress::default()).0;
        let work = async {
            match how.level {
                Level::Received => Ok(Settled { seq: self.logged(write).await?, receipt: None }),
                Level::Durable => {
                    let (receipt, seq) = self.durable(write).await?;
                    Ok(Settled { seq, receipt: Some(receipt) })
                }
            }
        };
        self.limited(how, &progress, work).await
    }

    /// [`Space::await_synced`], about all writes that there are now. Of the `kept` ones, something is said although they may be
    /// settled.
    pub(crate) async fn synced_with(
        &self,
        how: &Await,
        kept: BTreeSet<WriteId>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Synced, NotSynced> {
        let read = self.shared.store.read(|tx| -> Result<Ours, ReadError> {
            let open = tx.open_writes(self.id)?.into_iter().chain(kept).collect();
            Ok(Ours { open, to: tx.last_write()? })
        });
        let ours = read.map_err(|e| store_failed(&e))?;
        self.limited(how, progress, self.synced(how, &ours, progress)).await
    }

    /// Within the deadline, and not longer than `stall` without progress.
    async fn limited<T>(
        &self,
        how: &Await,
        progress: &watch::Sender<Progress>,
        work: impl Future<Output = Result<T, NotSynced>>,
    ) -> Result<T, NotSynced> {
        let after = async |limit: Option<Duration>| match limit {
            // No time at all is over before the clock moves.
            Some(Duration::ZERO) => {}
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        };
        // Large, and every caller's future would hold it.
        let work = Box::pin(work);
        tokio::select! {
            biased;
            // A client that is closed parts from its node: that is not what happened.
            result = work => result.map_err(|failed| {
                let parted = failed.code == NotSyncedCode::NoNode && self.is_closing();
                if parted { self.ended(NotSyncedCode::Aborted, progress) } else { failed }
            }),
            () = self.closed.cancelled() => Err(self.ended(NotSyncedCode::Aborted, progress)),
            () = after(how.deadline) => Err(self.ended(NotSyncedCode::DeadlineExceeded, progress)),
            () = stalled(how.stall, progress) => Err(self.ended(NotSyncedCode::Stalled, progress)),
        }
    }

    /// The space is closed a moment after its client.
    fn is_closing(&self) -> bool {
        self.closed.is_cancelled() || self.shared.cancel.is_cancelled()
    }

    /// It ended before it was done: with everything that is known to be missing.
    fn ended(&self, code: NotSyncedCode, progress: &watch::Sender<Progress>) -> NotSynced {
        let mut residue = match self.reasons() {
            Ok(reasons) => reasons,
            Err(error) => return store_failed(&error),
        };
        // A new connection has yet to hear how far the node's log goes; what was waited for is known all the same.
        let (here, target) = (self.announced(), progress.borrow().target.unwrap_or(0));
        if here.0 < target && Reason::find(&residue, ReasonCode::Behind).is_none() {
            residue.push(Reason::new(ReasonCode::Behind, self.id.short(), format!("here {here} of {target}")));
        }
        let offline = [ReasonCode::NoNode, ReasonCode::WrongNode, ReasonCode::SessionRefused];
        let offline = offline.iter().any(|code| Reason::find(&residue, *code).is_some());
        let code = if offline && code != NotSyncedCode::Aborted { NotSyncedCode::NoNode } else { code };
        let mut failed = NotSynced { code, residue };
        if failed.residue.is_empty() {
            failed.residue.push(Reason::new(ReasonCode::TimedOut, self.id.short(), "the time was too short"));
        }
        failed
    }

    async fn synced(&self, how: &Await, ours: &Ours, progress: &watch::Sender<Progress>) -> Result<Synced, NotSynced> {
        loop {
            let certified = self.certified().await?;
            let target = Target { seq: certified.receipt.body().seq, ours, how };
            self.arrives(&target, progress).await?;
            self.is_fresh(certified.asked, how).await?;
            match self.settled(&certified, &target).await? {
                Claim::Holds(synced) => return Ok(synced),
                Claim::Anew => {}
            }
        }
    }

    /// What was asked long ago, by a process that was stopped since or that had much to catch up, is asked again: the target
    /// stays, and the node still stands behind it.
    async fn is_fresh(&self, asked: Moment, how: &Await) -> Result<(), NotSynced> {
        let age = |since: Moment| self.shared.host.now().0.saturating_sub(since.0);
        let is_old = |age: Duration| age > how.fresh_within;
        let mut asked = asked;
        while is_old(age(asked)) && self.fresh_age().is_none_or(is_old) {
            let again = self.certified().await?.asked;
            if is_old(age(again)) {
                // The way there and back takes longer than that.
                tokio::time::sleep(limits::RETRY_FIRST).await;
            }
            asked = again;
        }
        Ok(())
    }

    /// A durable receipt with a nonce of our own, checked; waits for a session as long as it takes.
    async fn certified(&self) -> Result<Certified, NotSynced> {
        let mut failures = 0;
        loop {
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            let conn = self.shared.conn().await.map_err(|e| self.call_failed(&e))?;
            // As of the question: it may be registered while the answer is on its way.
            let on_its_way = !self.shared.is_registered(self.id);
            let (asked, rewinds) = (self.shared.host.now(), self.recovery.rewinds());
            // What a node signs that does not continue our log is for its recovery to judge.
            let certified = match self.tail_stands(&conn).await {
                Ok(()) => self.certify(&conn).await,
                Err(error) => Err(error),
            };
            let error = match certified {
                Ok(receipt) => {
                    self.note_heard(asked);
                    return Ok(Certified { receipt, asked, rewinds });
                }
                Err(error) => error,
            };
            failures += 1;
            let is_unknown = matches!(&error, CallError::Refused(failure) if failure.code == Code::SpaceUnknown);
            if on_its_way && is_unknown {
                // A space that is on its way to the node arrives.
                self.registered().await.map_err(|e| self.call_failed(&e))?;
            } else if error.is_transient() {
                self.comes_anew(&conn, failures, &error).await;
            } else {
                return Err(self.call_failed(&error));
            }
        }
    }

    /// A session that broke is replaced by another one; one that stands is asked again after a pause.
    async fn comes_anew(&self, conn: &Conn, failures: u32, error: &CallError) {
        let mut connection = self.shared.connection.clone();
        let another = connection.wait_for(|c| c.generation().is_some_and(|g| g != conn.generation()));
        let [jitter] = self.shared.host.random();
        let wait = pause_asked(failures, jitter, error.hint());
        let _ = tokio::time::timeout(wait, another).await;
    }

    /// One Certify call.
    async fn certify(&self, conn: &Conn) -> Result<SignedReceipt, CallError> {
        let nonce: [u8; 16] = self.shared.host.random();
        // Whatever is in our log came from the node's disk: an honest node never stands before it again.
        let floor = self.cursor();
        let before = self.last_receipt().map_err(local)?;
        let request = v1::CertifyRequest {
            space: self.id.to_bytes(),
            nonce: nonce.to_vec().into(),
            prev: before.as_ref().map_or_else(Vec::new, |r| r.hash().to_vec()).into(),
            trees: Vec::new(),
            with_set_digest: false,
        };
        let mut rpc = conn.rpc();
        let receipt = self.shared.answer(conn, rpc.certify(request)).await?.into_inner().receipt;
        let receipt = receipt.and_then(|r| r.try_into().ok());
        let receipt = receipt.ok_or_else(|| CallError::BadAnswer("Certify answered without a receipt".to_owned()))?;
        let receipt = self.take_receipt(conn, receipt).await?;
        let body = receipt.body();
        if body.nonce != Some(nonce) || !body.durable || body.prev != before.map(|r| r.hash()) {
            return Err(CallError::BadAnswer("the receipt was not made for this call".to_owned()));
        }
        if body.seq < floor {
            let text = format!("the node signs for {} entries; it sent {floor}", body.seq);
            self.note_trouble(|t| t.rewound = Some(text.clone()));
            // The tail finds out what became of the rest.
            self.shared.link(Input::Rewound { space: self.id, cursor: self.cursor() });
            return Err(CallError::Broken(text));
        }
        Ok(receipt)
    }

    /// Waits until nothing is missing at a target. What no waiting changes fails it, as soon as all else is here.
    async fn arrives(&self, target: &Target<'_>, progress: &watch::Sender<Progress>) -> Result<(), NotSynced> {
        self.saw_node_seq(target.seq);
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let begun = self.shared.host.now();
            let here = self.announced();
            let residue = self.residue(target, here)?;
            let rest = Rest::after(begun, &self.shared.host);
            let now = Progress { target: Some(target.seq.0), here: here.0, missing: residue.missing.clone() };
            progress.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
            if residue.left() == 0 {
                return Ok(());
            }
            if residue.left() == residue.hopeless_count {
                return Err(hopeless(residue.hopeless));
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            rest.over(&self.shared.host).await;
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    /// What is missing in scope, at or before the target.
    fn residue(&self, target: &Target<'_>, here: Seq) -> Result<Residue, NotSynced> {
        self.shared.store.read(|tx| self.residue_in(tx, target, here)).map_err(|e| store_failed(&e))
    }

    fn residue_in(&self, tx: &ReadTx<'_>, target: &Target<'_>, here: Seq) -> Result<Residue, ReadError> {
        let mut residue = Residue::default();
        if here < target.seq {
            residue.waits(ReasonCode::Behind, target.seq.0 - here.0);
        }
        let shown = tx.projected_to(self.id)?;
        let log = tx.space(self.id)?.map_or(Seq::ZERO, |row| row.position.seq);
        if log >= target.seq && shown < target.seq && tx.counts(self.id)?.is_some_and(|c| c.changes > 0) {
            residue.waits(ReasonCode::Behind, target.seq.0 - shown.0);
        }
        self.residue_of_writes(tx, target.ours, &mut residue)?;
        self.residue_of_verdicts(tx, target.seq, &mut residue)?;
        self.residue_of_salvage(tx, &mut residue)?;
        self.residue_of_trees(tx, target, &mut residue)?;
        let trouble = self.trouble();
        // What was derived differs on the two sides: heads do not match, whatever the logs say.
        if trouble.different.is_some() {
            residue.waits(ReasonCode::Different, 1);
        }
        if let Some(problem) = trouble.key
            && here >= target.seq
        {
            residue.fails(Reason::new(ReasonCode::KeyOwed, self.id.short(), problem));
        }
        Ok(residue)
    }

    fn residue_of_writes(&self, tx: &ReadTx<'_>, ours: &Ours, residue: &mut Residue) -> Result<(), ReadError> {
        for (write, class) in tx.unlogged_writes(self.id, WriteId(0), ours.to)? {
            match class {
                WriteClass::Pending => residue.waits(ReasonCode::Pending, 1),
                WriteClass::Retrying => residue.waits(ReasonCode::Retrying, 1),
                WriteClass::Refused => residue.fails(self.refused_reason(tx, write)?),
                WriteClass::Logged => {}
            }
        }
        Ok(())
    }

    fn refused_reason(&self, tx: &ReadTx<'_>, write: WriteId) -> Result<Reason, ReadError> {
        let why = match tx.write_state(self.id, write)? {
            Some(WriteState::Refused(refusal)) => refusal.message,
            Some(_) | None => String::new(),
        };
        Ok(refused_reason(write, &why))
    }

    /// Counted, not read: there may be many, and this is asked whenever something moved.
    fn residue_of_verdicts(&self, tx: &ReadTx<'_>, target: Seq, residue: &mut Residue) -> Result<(), ReadError> {
        for kind in UNSETTLED {
            let mut hopeless = 0;
            for (code, count) in tx.verdict_attempts(self.id, kind, target)? {
                let code = code.and_then(Code::from_number);
                match kind {
                    // It was asked for, or was not answered yet: it may still come.
                    VerdictKind::Missing if code.is_none_or(Code::is_transient) => {
                        residue.waits(ReasonCode::ContentMissing, count);
                    }
                    VerdictKind::Missing
                    | VerdictKind::Quarantined
                    | VerdictKind::Broken
                    | VerdictKind::Void
                    | VerdictKind::Hidden
                    | VerdictKind::Misplaced => hopeless += count,
                }
            }
            if hopeless > 0 {
                let first = tx.verdicts_until(self.id, kind, target, limits::RESIDUE_MAX)?.into_iter();
                residue.fail(hopeless, first.map(|(tree, change, verdict)| Reason::of_verdict(tree, change, verdict)));
            }
        }
        Ok(())
    }

    /// What the node lost may come back, or is lost until somebody has seen that.
    fn residue_of_salvage(&self, tx: &ReadTx<'_>, residue: &mut Residue) -> Result<(), ReadError> {
        let (waiting, lost) = tx.salvage_counts(self.id)?;
        if waiting > 0 {
            residue.waits(ReasonCode::Rewound, waiting);
        }
        if let Some(lost) = self.lost_reason(tx, lost)? {
            residue.fails(lost);
        }
        Ok(())
    }

    fn residue_of_trees(&self, tx: &ReadTx<'_>, target: &Target<'_>, residue: &mut Residue) -> Result<(), ReadError> {
        for (tree, heads) in &target.how.trees {
            let here = match self.readability_in(tx, *tree)? {
                // What was purged is settled.
                Readability::Purged => continue,
                Readability::Hidden => {
                    let detail = "all of it was written before this member's keys begin";
                    residue.fails(Reason::new(ReasonCode::Unreadable, tree.short(), detail));
                    continue;
                }
                Readability::Absent => false,
                Readability::Readable => true,
            };
            let mut lacks = u64::from(!here && heads.is_empty());
            for head in heads {
                match self.sight_of(tx, *tree, *head)? {
                    Sight::Shown => lacks += u64::from(!here),
                    Sight::Absent => lacks += 1,
                    // Up to the target they are counted with all the others.
                    Sight::Kept(verdict) if UNSETTLED.contains(&verdict.kind) && verdict.seq <= target.seq => {}
                    Sight::Kept(verdict) if verdict.kind == VerdictKind::Missing => {
                        residue.waits(ReasonCode::ContentMissing, 1);
                    }
                    Sight::Kept(verdict) if verdict.kind == VerdictKind::Hidden => {
                        let detail = "it was written before this member's keys begin";
                        residue.fails(Reason::new(ReasonCode::Unreadable, head.short(), detail));
                    }
                    Sight::Kept(verdict) => residue.fails(Reason::of_verdict(*tree, *head, verdict)),
                }
            }
            if lacks > 0 {
                residue.waits(ReasonCode::Missing, lacks);
            }
        }
        Ok(())
    }

    /// Waits until a write is in the log; where.
    async fn logged(&self, write: WriteId) -> Result<Seq, NotSynced> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            match self.write_state(write).map_err(|e| store_failed(&e))? {
                Some(WriteState::Logged { seq } | WriteState::Durable { seq }) => return Ok(seq),
                Some(WriteState::Dismissed) => {
                    return Err(
                        self.refused_write(write, "it was dismissed: refused and seen, or purged and lost by the node")
                    );
                }
                Some(WriteState::Refused(refusal)) => return Err(self.refused_write(write, &refusal.message)),
                Some(WriteState::Pending { .. }) => {}
                None => return Err(self.refused_write(write, "no such write")),
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    fn refused_write(&self, write: WriteId, why: &str) -> NotSynced {
        NotSynced { code: NotSyncedCode::Refused, residue: vec![refused_reason(write, why)] }
    }

    /// What no waiting changes.
    fn stopped(&self) -> Option<NotSynced> {
        let trouble = self.trouble();
        if let Some(text) = trouble.store_failed {
            let residue = vec![Reason::new(ReasonCode::StoreFailed, self.id.short(), text)];
            return Some(NotSynced { code: NotSyncedCode::StoreFailed, residue });
        }
        let fault = trouble.faulted.or(trouble.forked).or_else(|| self.proven_fork());
        if let Some(text) = fault {
            let mut residue = self.reasons().unwrap_or_default();
            if residue.is_empty() {
                // It passed just now, or nothing can be read.
                residue.push(Reason::new(ReasonCode::Faulted, self.id.short(), text));
            }
            return Some(NotSynced { code: NotSyncedCode::NodeFault, residue });
        }
        let (code, text) = trouble.refused?;
        // Made here, and not registered yet.
        let on_its_way = code == Code::SpaceUnknown && !self.shared.is_registered(self.id);
        if on_its_way || code.is_transient() {
            return None;
        }
        let found = if code == Code::Forbidden { NotSyncedCode::Forbidden } else { NotSyncedCode::Refused };
        let reason = if code == Code::Forbidden { ReasonCode::Forbidden } else { ReasonCode::NotRegistered };
        Some(NotSynced { code: found, residue: vec![Reason::new(reason, self.id.short(), text)] })
    }

    fn call_failed(&self, error: &CallError) -> NotSynced {
        NotSynced { code: error.into(), residue: vec![Reason::of_call(self.id.short(), error)] }
    }

    /// Whether our own log says at the receipt's position what the node signed; if not, why.
    fn differs(&self, tx: &ReadTx<'_>, receipt: &SignedReceipt) -> Result<Option<&'static str>, ReadError> {
        let body = receipt.body();
        let chain = tx.position_at(self.id, body.seq)?.map(|p| p.chain);
        let acl = tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
        let head = acl.records.iter().filter(|(_, at)| **at <= body.seq).max_by_key(|(_, at)| **at);
        Ok(if !receipt.proves(body.seq, chain) {
            Some("the node signed another log than ours")
        } else if head.map(|(id, _)| *id) != Some(body.acl_head) {
            Some("the node signed another ACL than ours")
        } else if acl.home != Some(body.authority) {
            Some("the receipt is not by the space's home")
        } else {
            None
        })
    }

    /// What a receipt that does not fit our log leads to: the log was taken back since it was asked for, or the node lies.
    async fn anew_or_fault<T>(&self, certified: &Certified, differs: &str) -> Result<Claim<T>, NotSynced> {
        if certified.rewinds != self.recovery.rewinds() {
            return Ok(Claim::Anew);
        }
        // Kept, if it can be proven; the answer is the same.
        let _ = self.hold_against_log(&certified.receipt).await;
        let reason = Reason::new(ReasonCode::Forked, self.id.short(), differs);
        Err(NotSynced { code: NotSyncedCode::NodeFault, residue: vec![reason] })
    }

    /// The answer, once nothing is missing: everything at one moment, because a node that went back takes our log with it.
    async fn settled(&self, certified: &Certified, target: &Target<'_>) -> Result<Claim<Synced>, NotSynced> {
        let receipt = &certified.receipt;
        let here = self.announced();
        let read = self.shared.store.read(|tx| -> Result<_, ReadError> {
            if let Some(differs) = self.differs(tx, receipt)? {
                return Ok(Err(differs));
            }
            let is_done = self.residue_in(tx, target, here)?.left() == 0 && self.is_level_reached(tx, target)?;
            Ok(Ok(if is_done { Claim::Holds(self.synced_at(tx, receipt, target.how)?) } else { Claim::Anew }))
        });
        match read.map_err(|e| store_failed(&e))? {
            // The node has told that it went back since: what it signed is not what it has.
            Ok(_) if self.recovery.is_parted() => Ok(Claim::Anew),
            Ok(claim) => Ok(claim),
            Err(differs) => self.anew_or_fault(certified, differs).await,
        }
    }

    /// Whether the receipt speaks of all that is ours, where that was asked.
    fn is_level_reached(&self, tx: &ReadTx<'_>, target: &Target<'_>) -> Result<bool, ReadError> {
        if target.how.chosen_level() == Level::Received {
            return Ok(true);
        }
        for write in target.ours.now(tx, self.id)? {
            match tx.write_state(self.id, write)? {
                Some(WriteState::Logged { .. }) => return Ok(false),
                Some(WriteState::Durable { seq }) if seq > target.seq => return Ok(false),
                Some(
                    WriteState::Durable { .. }
                    | WriteState::Pending { .. }
                    | WriteState::Refused(_)
                    | WriteState::Dismissed,
                )
                | None => {}
            }
        }
        // What was durable at the call, and was taken back and written anew since, may stand after what the receipt covers.
        if self.recovery.rewinds() == 0 {
            return Ok(true);
        }
        let end = tx.space(self.id)?.map_or(Seq::ZERO, |row| row.position.seq);
        let beyond = tx.writes_in(self.id, LogRange { after: target.seq, to: end })?;
        Ok(!beyond.into_iter().any(|(write, _)| write <= target.ours.to))
    }

    fn synced_at(&self, tx: &ReadTx<'_>, receipt: &SignedReceipt, how: &Await) -> Result<Synced, ReadError> {
        let target = receipt.body().seq;
        let of = |kinds: &[VerdictKind]| -> Result<Vec<_>, ReadError> {
            let mut found = Vec::new();
            for kind in kinds {
                let all = tx.verdicts_of(self.id, *kind, None, usize::MAX)?.into_iter();
                found.extend(all.filter(|(_, _, v)| v.seq <= target).map(|(tree, change, _)| (tree, change)));
            }
            found.sort_unstable();
            Ok(found)
        };
        let mut heads = BTreeMap::new();
        for tree in how.trees.keys() {
            heads.insert(*tree, tx.tree(self.id, *tree)?.map(|t| t.heads).unwrap_or_default());
        }
        let end = tx.space(self.id)?.map_or(Seq::ZERO, |s| s.position.seq);
        let equal_now = end == target && tx.pending_count(self.id)? == 0 && self.node_seq() <= target;
        let (void, hidden) = (of(&[VerdictKind::Void, VerdictKind::Misplaced])?, of(&[VerdictKind::Hidden])?);
        Ok(Synced { receipt: receipt.clone(), void, hidden, heads, equal_now })
    }

    /// Certifies one write; where it stands.
    async fn durable(&self, write: WriteId) -> Result<(SignedReceipt, Seq), NotSynced> {
        loop {
            self.logged(write).await?;
            let certified = self.certified().await?;
            self.reaches_target(certified.receipt.body().seq).await?;
            match self.certifies(&certified, write).await? {
                Claim::Holds(seq) => return Ok((certified.receipt, seq)),
                Claim::Anew => {}
            }
        }
    }

    /// Whether a receipt covers a write where it stands now: what a node lost is to be written again.
    async fn certifies(&self, certified: &Certified, write: WriteId) -> Result<Claim<Seq>, NotSynced> {
        let receipt = &certified.receipt;
        let read = self.shared.store.read(|tx| -> Result<_, ReadError> {
            if let Some(differs) = self.differs(tx, receipt)? {
                return Ok(Err(differs));
            }
            Ok(Ok(match tx.write_state(self.id, write)? {
                Some(WriteState::Logged { seq } | WriteState::Durable { seq }) if seq <= receipt.body().seq => {
                    Claim::Holds(seq)
                }
                Some(
                    WriteState::Logged { .. }
                    | WriteState::Durable { .. }
                    | WriteState::Pending { .. }
                    | WriteState::Refused(_)
                    | WriteState::Dismissed,
                )
                | None => Claim::Anew,
            }))
        });
        match read.map_err(|e| store_failed(&e))? {
            Ok(claim) => Ok(claim),
            Err(differs) => self.anew_or_fault(certified, differs).await,
        }
    }

    /// Waits until our log, and with it everything derived from it, holds `seq`.
    async fn reaches_target(&self, seq: Seq) -> Result<(), NotSynced> {
        self.saw_node_seq(seq);
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            if self.announced() >= seq {
                return Ok(());
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    async fn object(self: &Arc<Self>, object_type: &str, id: &str) -> Result<Object, NotSynced> {
        let objects = crate::objects::Objects::new(self.clone());
        let mut moved = self.moved.subscribe();
        let mut asked = false;
        loop {
            moved.borrow_and_update();
            match objects.get(object_type, id) {
                Ok(Some(object)) => return Ok(object),
                Ok(None) => {
                    if let Some(failed) = self.unreadable(&objects, object_type, id)? {
                        return Err(failed);
                    }
                }
                Err(ReadError::NoKeys) => {}
                Err(error) => return Err(store_failed(&error)),
            }
            if !asked {
                asked = self.ask_ahead(&objects, object_type, id).await?;
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    /// Where the tail is far behind, what is waited for is fetched first.
    async fn ask_ahead(
        self: &Arc<Self>,
        objects: &crate::objects::Objects,
        object_type: &str,
        id: &str,
    ) -> Result<bool, NotSynced> {
        if self.node_seq().0.saturating_sub(self.announced().0) < limits::AHEAD_BEHIND_MIN {
            return Ok(false);
        }
        match objects.tree_id(object_type, id) {
            Ok(tree) => {
                let wanted = self.want(vec![tree], SyncItemKind::Fetch, Priority::Reader).await;
                // The tail brings it anyway.
                Ok(wanted.is_ok())
            }
            Err(ReadError::NoKeys) => Ok(false),
            Err(error) => Err(store_failed(&error)),
        }
    }

    /// The object is here and waiting will not show it: purged, or hidden from this member for good.
    fn unreadable(
        &self,
        objects: &crate::objects::Objects,
        object_type: &str,
        id: &str,
    ) -> Result<Option<NotSynced>, NotSynced> {
        let tree = objects.tree_id(object_type, id).map_err(|e| store_failed(&e))?;
        let why = self.readability(tree).map_err(|e| store_failed(&e))?;
        let detail = match why {
            Readability::Purged => "it was purged",
            Readability::Hidden => "all of it was written before this member's keys begin",
            Readability::Readable | Readability::Absent => return Ok(None),
        };
        let reason = Reason::new(ReasonCode::Unreadable, format!("{object_type}/{id}"), detail);
        Ok(Some(NotSynced { code: NotSyncedCode::Unreadable, residue: vec![reason] }))
    }

    /// Whether this member can read a tree.
    pub(crate) fn readability(&self, tree: TreeId) -> Result<Readability, ReadError> {
        self.shared.store.read(|tx| self.readability_in(tx, tree))
    }

    fn readability_in(&self, tx: &ReadTx<'_>, tree: TreeId) -> Result<Readability, ReadError> {
        let Some(state) = tx.tree(self.id, tree)? else { return Ok(Readability::Absent) };
        if state.purged.is_some() {
            return Ok(Readability::Purged);
        }
        let mut kept = BTreeMap::new();
        for (_, change, verdict) in tx.verdicts_of_tree(self.id, tree)? {
            if is_kept(verdict.kind) {
                kept.insert(change, verdict.kind);
            }
        }
        let kept: Vec<VerdictKind> = state.heads.iter().filter_map(|head| kept.get(head).copied()).collect();
        if state.heads.is_empty() || kept.len() < state.heads.len() {
            return Ok(Readability::Readable);
        }
        let is_member = tx.acl(self.id)?.is_some_and(|acl| acl.members.contains_key(&self.shared.account.id()));
        // Content may still come; and where the log here does not reach our own join yet, the keys.
        let is_hidden = is_member && kept.iter().all(|kind| *kind == VerdictKind::Hidden);
        Ok(if is_hidden { Readability::Hidden } else { Readability::Absent })
    }

    /// Whether a change of a tree, which somebody is meant to see, is shown.
    pub(crate) fn sight_of(&self, tx: &ReadTx<'_>, tree: TreeId, change: ChangeId) -> Result<Sight, ReadError> {
        let verdicts = tx.verdicts_of_tree(self.id, tree)?.into_iter();
        let verdict = verdicts.filter(|(_, of, _)| *of == change).map(|(.., verdict)| verdict).next();
        Ok(match verdict.filter(|verdict| is_kept(verdict.kind)) {
            Some(verdict) => Sight::Kept(verdict),
            None if tx.change(self.id, tree, change)?.is_some() => Sight::Shown,
            None => Sight::Absent,
        })
    }
}

/// A change, for somebody who is meant to see it.
pub(crate) enum Sight {
    Shown,
    Absent,
    /// It is in the log, and this keeps it from being shown.
    Kept(VerdictRow),
}

/// What is its author's fault is settled; anything else keeps a change from a reader who is meant to see it.
fn is_kept(kind: VerdictKind) -> bool {
    match kind {
        VerdictKind::Hidden | VerdictKind::Quarantined | VerdictKind::Missing | VerdictKind::Broken => true,
        VerdictKind::Void | VerdictKind::Misplaced => false,
    }
}

/// Ends when nothing left what is missing for so long.
async fn stalled(stall: Option<Duration>, progress: &watch::Sender<Progress>) {
    let Some(stall) = stall else { return std::future::pending().await };
    let mut seen = progress.subscribe();
    let mut least = None;
    loop {
        let still = async {
            loop {
                let known = seen.borrow_and_update().clone();
                // Before the first target nothing can leave it; another target begins anew.
                let now = (known.target, known.left());
                let better = least.is_none_or(|(target, left)| target != now.0 || now.1 < left);
                if better && Some(now) != least {
                    return now;
                }
                if seen.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(stall, still).await {
            Ok(now) => least = Some(now),
            Err(_) => return,
        }
    }
}

/// Nothing but what no waiting changes.
fn hopeless(residue: Vec<Reason>) -> NotSynced {
    let any = |code| residue.iter().any(|r| r.code == code);
    let all = |code| residue.iter().all(|r| r.code == code);
    let code = if any(ReasonCode::Refused) {
        NotSyncedCode::Refused
    } else if any(ReasonCode::Unreadable) {
        NotSyncedCode::Unreadable
    } else if all(ReasonCode::Panicked) {
        NotSyncedCode::Panicked
    } else {
        NotSyncedCode::NodeFault
    };
    NotSynced { code, residue }
}

fn refused_reason(write: WriteId, why: &str) -> Reason {
    Reason::new(ReasonCode::Refused, format!("write {write}"), why)
}

/// Whether this member can read a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readability {
    Readable,
    /// Not in the log here.
    Absent,
    Purged,
    Hidden,
}

pub(crate) fn store_failed(error: &ReadError) -> NotSynced {
    let reason = Reason::new(ReasonCode::StoreFailed, "local store", error.to_string());
    NotSynced { code: NotSyncedCode::StoreFailed, residue: vec![reason] }
}
