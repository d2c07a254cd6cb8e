//! The outbox of one space: what was written here goes to the node, in order, for as long as it takes.
//!
//! A push belongs to the space: whoever wrote may have hung up long ago. One batch is under way at a time; a refusal is data
//! about one write and never holds up the others, except those that build on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sync_core::code::{Code, NextStep};
use sync_core::ids::{Seq, TreeId};
use sync_core::limits;
use sync_core::log::{DecideError, Reject, Submission, View as _, decide};
use sync_core::record::{TreeChange, verify, verify_as};
use sync_core::session::{pause, pause_asked};
use sync_host::Host;
use sync_proto::status::Failure;
use sync_proto::v1;
use sync_store::{PendingLine, PendingWrite, RefusalRow, WriteId, WriteState, WriteTx};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::SpaceInner;
use super::write::{Maker, Rebuild, Reparent, local_envelope};
use crate::connect::{Conn, failure};
use crate::error::{CallError, ReadError, WriteError, from_store_write, local};
use crate::events::Event;

pub(super) async fn run(space: Arc<SpaceInner>) {
    let mut connection = space.shared.connection.clone();
    let mut failures = 0;
    loop {
        let online = tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            online = connection.wait_for(|c| c.online().is_some()) => online.map(|c| c.online()),
        };
        let Ok(Some(conn)) = online else { return };
        let generation = conn.generation();
        let ended = tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            _ = space.shared.parted(&conn) => continue,
            ended = space.push_on(&conn, &mut failures) => ended,
        };
        failures += 1;
        let hint = match ended {
            Ok(()) => Duration::ZERO,
            Err(error) => {
                tracing::debug!(space = %space.id.short(), error = %error, "pushing stopped");
                space.note_pressure(&error)
            }
        };
        let [jitter] = space.shared.host.random();
        let wait = pause_asked(failures, jitter, hint);
        tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            // Another connection may fare better at once.
            _ = connection.wait_for(|c| c.generation().is_some_and(|g| g != generation)) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One Push stream: a batch out, its verdicts back.
pub(super) struct Pusher {
    requests: mpsc::Sender<v1::PushRequest>,
    responses: Streaming<v1::PushResponse>,
}

impl Pusher {
    pub(super) async fn open(conn: &Conn) -> Result<Self, CallError> {
        let (requests, outgoing) = mpsc::channel(1);
        let mut rpc = conn.rpc();
        let opened = tokio::time::timeout(limits::UNARY_TIMEOUT, rpc.push(ReceiverStream::new(outgoing))).await;
        let responses = opened.map_err(|_| CallError::TimedOut)?.map_err(|s| failure(&s))?.into_inner();
        Ok(Self { requests, responses })
    }

    /// One verdict for each item. A stream on which none comes for long has lost the question or the answer.
    pub(super) async fn exchange(&mut self, request: v1::PushRequest) -> Result<Vec<v1::Verdict>, CallError> {
        let mut open: BTreeSet<u64> = request.items.iter().map(|item| item.tag).collect();
        let mut verdicts = Vec::with_capacity(open.len());
        let closed = || CallError::Broken("the push stream ended".to_owned());
        self.requests.send(request).await.map_err(|_| closed())?;
        while !open.is_empty() {
            let answer = tokio::time::timeout(limits::PUSH_ANSWER_TIMEOUT, self.responses.message());
            let message = answer.await.map_err(|_| CallError::TimedOut)?.map_err(|s| CallError::from(failure(&s)))?;
            // What is said twice, or of what nobody asked, is no verdict.
            verdicts.extend(message.ok_or_else(closed)?.verdicts.into_iter().filter(|v| open.remove(&v.tag)));
        }
        Ok(verdicts)
    }
}

impl SpaceInner {
    /// A node that cannot keep up is given less at a time; how long it asks to be left alone.
    fn note_pressure(&self, error: &CallError) -> Duration {
        let hint = error.hint();
        if error.is_transient() {
            let now = self.shared.host.now();
            self.shared.with_budget(|budget| budget.press(hint, now));
        }
        hint
    }

    /// Until the node may be asked again.
    async fn left_alone(&self) {
        let now = self.shared.host.now();
        if let Some(until) = self.shared.with_budget(|budget| budget.hold(now)) {
            tokio::time::sleep(until.0.saturating_sub(now.0)).await;
        }
    }

    async fn push_on(&self, conn: &Conn, failures: &mut u32) -> Result<(), CallError> {
        self.registered().await?;
        let mut pusher = None;
        let mut out = Outgoing::default();
        loop {
            let wanted = self.push_wanted.notified();
            self.tail_answered(conn.generation()).await;
            let batch = self.next_batch(&mut out).map_err(local)?;
            if batch.ready.is_empty() {
                // A connection has room for few streams; many spaces share it.
                pusher = None;
                tokio::select! {
                    biased;
                    () = wanted => {}
                    () = sleep_until_retry(&self.shared.host, batch.next_retry_ms) => {}
                }
                continue;
            }
            let pusher = match &mut pusher {
                Some(pusher) => pusher,
                None => pusher.insert(Pusher::open(conn).await?),
            };
            self.left_alone().await;
            let verdicts = pusher.exchange(request(self.id, &batch.ready)).await?;
            self.shared.with_budget(sync_core::syncer::Budget::keeps_up);
            let answered = self.take_verdicts(batch.ready, verdicts).await;
            let answered = answered.map_err(local)?;
            *failures = 0;
            if answered.rejected {
                out.read_again();
            }
            out.sent.extend(answered.accepted);
            if let Some(hold) = answered.recovering {
                // The node takes nothing of this space now: one batch in a while is enough to hear when it does.
                tokio::time::sleep(hold.clamp(limits::RETRY_FIRST, limits::RETRY_HINT_MAX)).await;
            }
        }
    }

    /// What is pending may be other than it was, not only more: it is read from its beginning, and goes out.
    pub(super) fn push_anew(&self) {
        self.outbox_moved.store(true, Ordering::Release);
        self.push_wanted.notify_one();
    }

    /// What may go out now: in order, and nothing whose tree is held up by an earlier write or that is on its way already. Begins
    /// where nothing is left to look at, stops where the batch is full, and reads the bytes of what it takes alone.
    fn next_batch(&self, out: &mut Outgoing) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        if self.salvage_waits()? {
            // What the node lost goes before what is new.
            return Ok(batch);
        }
        if self.outbox_moved.swap(false, Ordering::AcqRel) || out.is_crowded() {
            out.read_again();
        }
        let now_ms = self.shared.host.wall_ms();
        let room = self.batch_bytes_max();
        let mut reading = Reading::from(out.done_to);
        let read = self.shared.store.read(|tx| -> Result<(), ReadError> {
            loop {
                let page = tx.pending_lines(self.id, reading.at, limits::PUSH_ITEMS_MAX)?;
                if page.is_empty() {
                    return Ok(());
                }
                for line in page {
                    if reading.takes(&line, &out.sent, now_ms)
                        && let Some(write) = tx.open_write(self.id, line.id)?
                    {
                        batch.push(write, room);
                    }
                    if batch.is_full {
                        return Ok(());
                    }
                }
            }
        });
        read?;
        batch.next_retry_ms = reading.next_retry_ms;
        out.follow(reading, batch.is_full);
        Ok(batch)
    }

    /// A node that cannot keep up is sent less at a time.
    fn batch_bytes_max(&self) -> usize {
        let share = usize::try_from(self.shared.budget_now().requests).unwrap_or(1);
        limits::BATCH_BYTES_MAX * share / limits::FETCHES_MAX as usize
    }

    /// Keeps what the node said; returns what it took.
    async fn take_verdicts(
        &self,
        batch: Vec<PendingWrite>,
        verdicts: Vec<v1::Verdict>,
    ) -> Result<Answered, WriteError> {
        let by_id: BTreeMap<u64, PendingWrite> = batch.into_iter().map(|w| (w.id.0, w)).collect();
        let mut rejected = Vec::new();
        let mut accepted = Vec::new();
        for verdict in verdicts {
            let Some(write) = by_id.get(&verdict.tag) else { continue };
            match accepted_of(verdict) {
                Ok(seq) => {
                    self.saw_node_seq(seq);
                    accepted.push(write.id);
                }
                Err(failure) => {
                    if failure.code == Code::Overloaded {
                        let (hint, now) = (Duration::from_millis(failure.retry_after_ms), self.shared.host.now());
                        self.shared.with_budget(|budget| budget.press(hint, now));
                    }
                    rejected.push((write.clone(), failure));
                }
            }
        }
        let recovering = rejected.iter().find(|(_, failure)| failure.code == Code::Recovering);
        self.note_recovering(recovering.map(|(_, failure)| failure.message.clone()));
        let recovering = recovering.map(|(_, failure)| Duration::from_millis(failure.retry_after_ms));
        let answered = Answered { accepted, rejected: !rejected.is_empty(), recovering };
        if rejected.is_empty() {
            return Ok(answered);
        }
        self.keep_rejections(rejected).await?;
        Ok(answered)
    }

    /// In a task of its own: a connection that ends takes whoever pushes with it, and what was kept is to be told.
    async fn keep_rejections(&self, rejected: Vec<(PendingWrite, Failure)>) -> Result<(), WriteError> {
        let space = self.shared.space_of(self.id).ok_or(WriteError::Closed)?;
        let (done, kept) = tokio::sync::oneshot::channel();
        self.shared.spawn(async move {
            let told = space.keep_and_tell(rejected).await;
            // Whoever asked may have gone.
            let _ = done.send(told);
        });
        kept.await.map_err(|_| WriteError::Closed)?
    }

    async fn keep_and_tell(self: Arc<Self>, rejected: Vec<(PendingWrite, Failure)>) -> Result<(), WriteError> {
        let space = self.clone();
        let mut trees = BTreeMap::new();
        for (write, _) in &rejected {
            trees.insert(write.tree, local_envelope(&self.shared, write)?);
        }
        let job = move |tx: &mut WriteTx<'_>| -> Result<Vec<Event>, WriteError> {
            let mut events = Vec::new();
            // What was refused together is tried again together.
            let [jitter] = space.shared.host.random();
            for (write, failure) in rejected {
                space.keep_rejection(tx, &write, failure, jitter, &mut events)?;
            }
            Ok(events)
        };
        let events = self.shared.store.write(job).await.map_err(from_store_write)?.value;
        for (tree, envelope) in trees {
            // What was overlaid is taken back, and readers see it.
            self.refresh(tree);
            let (object_type, id) = (envelope.object_type, envelope.object_id);
            self.emit(Event::Object { space: self.id, tree, object_type, id });
        }
        for event in events {
            if let Event::WriteRefused { write, .. } = &event {
                tracing::info!(space = %self.id.short(), write = write.0, "a write was refused");
            }
            self.emit(event);
        }
        self.touch();
        Ok(())
    }

    fn keep_rejection(
        &self,
        tx: &mut WriteTx<'_>,
        write: &PendingWrite,
        failure: Failure,
        jitter: u8,
        events: &mut Vec<Event>,
    ) -> Result<(), WriteError> {
        let Some(WriteState::Pending { attempts, .. }) = tx.write_state(self.id, write.id)? else { return Ok(()) };
        if tx.pending_by_change(self.id, write.record.id().into())?.is_none() {
            // Rebuilt since it was sent, together with what it builds on: the verdict is about a change that is no more.
            return Ok(());
        }
        let refusal =
            RefusalRow { code: failure.code.number(), message: failure.message.clone(), log_seq: failure.log_seq };
        let host = &self.shared.host;
        let later = |tx: &mut WriteTx<'_>, refusal| {
            let attempts = attempts + 1;
            let wait = pause_asked(attempts, jitter, Duration::from_millis(failure.retry_after_ms));
            retry_after(host, tx, write.id, attempts, refusal, wait)
        };
        let step = failure.code.next_step();
        match (step, self.own_verdict(tx, write, &failure)?) {
            // A rule is judged on our own log, once it reached the place where the node judged.
            (NextStep::Rebuild | NextStep::Refuse, OwnVerdict::Behind) => {
                // It is asked again as soon as what is missing may have come, and ever more slowly where it does not come.
                let attempts = attempts + 1;
                let wait = (CATCH_UP * attempts).min(pause(attempts, jitter));
                retry_after(host, tx, write.id, attempts, refusal, wait)?
            }
            (NextStep::Rebuild | NextStep::Refuse, OwnVerdict::Valid) => {
                let message = format!("the node refuses what the rules allow: {}", failure.message);
                later(tx, RefusalRow { message, ..refusal })?;
            }
            (NextStep::Rebuild, OwnVerdict::Invalid) => {
                let parents = if failure.code == Code::HeadsFull { Reparent::OntoHeads } else { Reparent::Keep };
                match Maker::new(tx, self)?.rebuild(tx, write.tree, Rebuild::One(write.id, parents)) {
                    Ok(_) => {}
                    Err(WriteError::Rejected(_)) => self.refuse(tx, write, &refusal, events)?,
                    // Keys or heads that the rebuild needs are on their way.
                    Err(_) => later(tx, refusal)?,
                }
            }
            (NextStep::Refuse, OwnVerdict::Invalid) => self.refuse(tx, write, &refusal, events)?,
            (NextStep::Retry, _) if self.builds_on_what_is_lost(tx, write, &failure)? => {
                match Maker::new(tx, self)?.rebuild(tx, write.tree, Rebuild::One(write.id, Reparent::OntoHeads)) {
                    Ok(_) => {}
                    Err(WriteError::Read(ReadError::NoKeys)) => later(tx, refusal)?,
                    Err(WriteError::Read(ReadError::Store(error))) => return Err(error.into()),
                    Err(error) => {
                        let message = format!("{}; {error}", failure.message);
                        self.refuse(tx, write, &RefusalRow { message, ..refusal }, events)?;
                    }
                }
            }
            (NextStep::Retry, _) => later(tx, refusal)?,
        }
        Ok(())
    }

    /// The log was taken back, and what this write builds on went with it for good: it is neither in the log, nor on its way
    /// there, nor kept to be offered again.
    fn builds_on_what_is_lost(
        &self,
        tx: &WriteTx<'_>,
        write: &PendingWrite,
        failure: &Failure,
    ) -> Result<bool, WriteError> {
        if !matches!(failure.code, Code::MissingParent | Code::MissingRoot | Code::UnknownAclHead) {
            return Ok(false);
        }
        let view = tx.view(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
        if view.position().seq < failure.log_seq || tx.salvage_counts(self.id)?.0 > 0 {
            return Ok(false);
        }
        let Ok(change) = verify_as::<TreeChange>(write.record.clone()) else { return Ok(false) };
        for parent in &change.body().parents {
            if tx.pending_by_change(self.id, *parent)?.is_some() {
                return Ok(false);
            }
        }
        let root = write.root.clone().map(verify).transpose();
        let (Ok(root), Ok(record)) = (root, verify(write.record.clone())) else { return Ok(false) };
        let Ok(submission) = Submission::pair(root, record) else { return Ok(false) };
        match decide(&view, &submission) {
            Err(DecideError::Reject(reject)) => Ok(Code::from(&reject) == failure.code),
            Ok(_) | Err(DecideError::Refused(_)) => Ok(false),
            Err(DecideError::View(error)) => Err(error.into()),
        }
    }

    /// What our own log says of a write that the node refused.
    fn own_verdict(&self, tx: &WriteTx<'_>, write: &PendingWrite, failure: &Failure) -> Result<OwnVerdict, WriteError> {
        let view = tx.view(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
        if view.position().seq < failure.log_seq {
            return Ok(OwnVerdict::Behind);
        }
        let root = write.root.clone().map(verify).transpose();
        let (Ok(root), Ok(record)) = (root, verify(write.record.clone())) else { return Ok(OwnVerdict::Invalid) };
        let Ok(submission) = Submission::pair(root, record) else { return Ok(OwnVerdict::Invalid) };
        match decide(&view, &submission) {
            Ok(_) => Ok(OwnVerdict::Valid),
            // What it builds on was taken and is still on its way here.
            Err(DecideError::Reject(Reject::MissingParent { .. } | Reject::MissingRoot { .. })) => {
                Ok(OwnVerdict::Behind)
            }
            Err(DecideError::Reject(_) | DecideError::Refused(_)) => Ok(OwnVerdict::Invalid),
            Err(DecideError::View(error)) => Err(error.into()),
        }
    }
}

/// What our own log says of a write that the node refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnVerdict {
    /// Our log did not reach the place of the node's verdict.
    Behind,
    /// The rules allow it: the refusal is the node's fault.
    Valid,
    Invalid,
}

/// Where a record stands, or why the node did not take it.
pub(super) fn accepted_of(verdict: v1::Verdict) -> Result<Seq, Failure> {
    use v1::verdict::Outcome;
    match verdict.outcome {
        Some(Outcome::Accepted(v1::Accepted { seq }) | Outcome::Known(v1::Known { seq })) => Ok(Seq(seq)),
        Some(Outcome::Rejected(detail)) => Err(Failure::try_from(detail)
            .unwrap_or_else(|e| Failure::new(Code::Malformed, format!("an unreadable verdict: {e}")))),
        None => Err(Failure::new(Code::Malformed, "a verdict without an outcome")),
    }
}

/// What the node said to a batch.
struct Answered {
    accepted: Vec<WriteId>,
    /// Some of it was not taken: it is tried again, made anew, or refused.
    rejected: bool,
    /// The node takes nothing new, and asks to be left alone for so long.
    recovering: Option<Duration>,
}

#[derive(Default)]
struct Batch {
    ready: Vec<PendingWrite>,
    bytes: usize,
    is_full: bool,
    next_retry_ms: Option<u64>,
}

impl Batch {
    fn push(&mut self, write: PendingWrite, bytes_max: usize) {
        self.bytes += write.record.wire_bytes() + write.root.as_ref().map_or(0, |r| r.wire_bytes());
        self.is_full = self.bytes > bytes_max || self.ready.len() + 1 >= limits::PUSH_ITEMS_MAX;
        self.ready.push(write);
    }
}

/// What went out on one connection, so that what waits behind it is not looked at again and again.
#[derive(Default)]
struct Outgoing {
    /// Accepted, and on their way back on the tail. A new connection asks again: `Known` costs little.
    sent: BTreeSet<WriteId>,
    /// Everything that is pending up to here was sent.
    done_to: Option<WriteId>,
    /// How many notes of what was sent were left when they were last compared with what is pending.
    noted: usize,
}

impl Outgoing {
    /// Notes of what the log has meanwhile are most of all.
    fn is_crowded(&self) -> bool {
        self.sent.len() > self.noted * 2 + limits::PUSH_ITEMS_MAX
    }

    fn read_again(&mut self) {
        self.done_to = None;
    }

    fn follow(&mut self, reading: Reading, is_full: bool) {
        if self.done_to.is_none() {
            // What is not pending any more needs no note. What was not read may be.
            let unread = |write: &WriteId| is_full && Some(*write) > reading.at;
            self.sent.retain(|write| reading.still_sent.contains(write) || unread(write));
            self.noted = self.sent.len();
        }
        self.done_to = reading.done_to;
    }
}

/// One walk over what is pending.
struct Reading {
    at: Option<WriteId>,
    done_to: Option<WriteId>,
    /// Trees with a write that is not to be tried yet.
    held: BTreeSet<TreeId>,
    still_sent: BTreeSet<WriteId>,
    next_retry_ms: Option<u64>,
}

impl Reading {
    fn from(done_to: Option<WriteId>) -> Self {
        Self { at: done_to, done_to, held: BTreeSet::new(), still_sent: BTreeSet::new(), next_retry_ms: None }
    }

    /// Whether the next write goes out now, after those before it.
    fn takes(&mut self, line: &PendingLine, sent: &BTreeSet<WriteId>, now_ms: u64) -> bool {
        self.at = Some(line.id);
        if sent.contains(&line.id) {
            self.still_sent.insert(line.id);
        } else {
            // A moment further away than any pause is from before the clock was set back.
            if let Some(at) = line.next_retry_ms.filter(|at| *at > now_ms && *at <= now_ms + RETRY_WAIT_MS_MAX) {
                self.held.insert(line.tree);
                self.next_retry_ms = Some(self.next_retry_ms.map_or(at, |known| known.min(at)));
            }
            if self.held.contains(&line.tree) {
                return false;
            }
        }
        if self.held.is_empty() {
            self.done_to = self.at;
        }
        !sent.contains(&line.id)
    }
}

async fn sleep_until_retry(host: &Host, next_retry_ms: Option<u64>) {
    match next_retry_ms {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(host.wall_ms()))).await,
    }
}

/// The longest pause that a node's hint can ask for.
const RETRY_WAIT_MS_MAX: u64 = limits::RETRY_HINT_MAX.as_secs() * 1_000;

/// The pause until our own log has probably caught up with the node's.
const CATCH_UP: Duration = Duration::from_millis(50);

fn retry_after(
    host: &Host,
    tx: &mut WriteTx<'_>,
    write: WriteId,
    attempts: u32,
    refusal: RefusalRow,
    wait: Duration,
) -> Result<(), WriteError> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(RETRY_WAIT_MS_MAX);
    let next_retry_ms = Some(host.wall_ms() + wait_ms);
    tx.set_write_state(write, &WriteState::Pending { attempts, last_refusal: Some(refusal), next_retry_ms })?;
    Ok(())
}

fn request(space: sync_core::ids::SpaceId, writes: &[PendingWrite]) -> v1::PushRequest {
    let item = |write: &PendingWrite| v1::PushItem {
        tag: write.id.0,
        root: write.root.clone().map(Into::into),
        record: Some(write.record.clone().into()),
    };
    v1::PushRequest { space: space.to_bytes(), items: writes.iter().map(item).collect() }
}
