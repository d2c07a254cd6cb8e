//! Entries from the node: verified in batches, decided one by one against the log as of their position, and stored together
//! with what they mean for objects, keys and pending writes, in one transaction.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sync_core::acl::AclState;
use sync_core::ids::{EntryId, Epoch, Seq, SpaceId, TreeId};
use sync_core::log::{DecideError, Decision, Outcome, Reject, Submission, View as _, decide, quarantine};
use sync_core::record::{AclRecord, RawRecord, TreeHeads, Verified, VerifiedRecord, verify_many};
use sync_e2ee::KeyRing;
use sync_proto::{WireError, v1};
use sync_store::{
    AccusationId, AccusationKind, CommitNo, StoreError, SyncItemKind, VerdictKind, VerdictRow, WriteState, WriteTx,
};

use super::ahead;
use super::outbox::{Redecided, redecide};
use super::project::{self, ObjectTouched, Projection};
use super::recovery::seen::SeenCheck;
use super::write::Maker;
use super::{SpaceInner, absorb, heads, owed_keys, worker};
use crate::acl::{events_of, leave_key};
use crate::client::Shared;
use crate::error::{ReadError, WriteError, from_store_write};
use crate::events::{Event, older_epochs_held};

/// One message of the tail.
pub(super) struct Arrived {
    pub(super) entries: Vec<v1::LogEntry>,
    /// Heads of the touched trees, after the last entry.
    pub(super) heads: Vec<TreeHeads>,
    pub(super) last: Seq,
    pub(super) durable: Seq,
}

/// Whether an ACL record was among some entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AclMoved {
    Yes,
    No,
}

/// Why entries were not applied. Nothing of the batch is kept then.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The node sent what no honest node sends: the space stops.
    #[error("{0}")]
    Fault(String),
    #[error("the entries begin at {first}; the log here ends at {end}")]
    Gap { first: Seq, end: Seq },
    #[error("entry {seq} came as the id of a write of ours that is not here under that id")]
    UnknownOwn { seq: Seq },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(WriteError),
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        Self::Read(error.into())
    }
}

impl From<ApplyError> for WriteError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Read(error) => Self::Read(error),
            ApplyError::Write(error) => error,
            ApplyError::Fault(_) | ApplyError::Gap { .. } | ApplyError::UnknownOwn { .. } => Self::Closed,
        }
    }
}

/// One or two neighbouring entries that are decided together.
struct Step {
    first: Seq,
    submission: Submission,
}

/// What a batch did, for those who are told after the commit.
#[derive(Default)]
struct Applied {
    ring: Option<KeyRing>,
    key_problem: Option<String>,
    objects: Vec<ObjectTouched>,
    /// Objects whose pending writes were refused.
    refused: Vec<ObjectTouched>,
    trees: BTreeSet<TreeId>,
    acl: Vec<Event>,
    acl_moved: bool,
    deleted: bool,
    /// The log has what was read ahead of it.
    ahead_taken: bool,
    /// The node had shown another entry here before it came to the log.
    showed_another: Option<Seq>,
    /// Content that did not come is wanted, or something is to be judged again.
    wants: bool,
    /// Because of what records had seen.
    accused: Vec<AccusationId>,
}

impl SpaceInner {
    /// Applies entries; returns the cursor after them, and whether an ACL record was among them.
    pub(super) async fn apply(&self, arrived: Arrived) -> Result<(Seq, AclMoved), ApplyError> {
        let steps = self.read_steps(arrived.entries)?;
        if let (Some(first), end) = (steps.first().map(|s| s.first), self.cursor())
            && first > end.next()
        {
            return Err(ApplyError::Gap { first, end });
        }
        let (space, ring) = (self.id, self.ring());
        let (shared, node_seq) = (self.shared.clone(), self.node_seq());
        let told = heads::Told { heads: arrived.heads, seq: arrived.last, now_ms: shared.host.wall_ms() };
        let job = move |tx: &mut WriteTx<'_>| {
            let mut batch = Batch::new(tx, &shared, space, &ring)?;
            for step in &steps {
                batch.step(tx, step)?;
            }
            let mut applied = batch.finish(tx)?;
            let end = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position.seq;
            worker::settle(tx, space, arrived.durable.min(end))?;
            applied.wants |= heads::apply(tx, &shared, space, told)? == heads::Wants::Something;
            if end >= node_seq {
                // The tail brought what was to be read ahead of it.
                tx.drop_sync_items(space, SyncItemKind::Fetch)?;
            }
            Ok::<_, ApplyError>((end, applied))
        };
        let rewinds = self.recovery.rewinds();
        let written = self.shared.store.write(job).await.map_err(|error| match error {
            sync_store::WriteError::Job(error) => error,
            sync_store::WriteError::Overloaded
            | sync_store::WriteError::Full
            | sync_store::WriteError::OutcomeUnknown(_)
            | sync_store::WriteError::Failed(_)
            | sync_store::WriteError::Closed => ApplyError::Write(from_store_write(error)),
        })?;
        let (end, applied) = written.value;
        let acl_moved = if applied.acl_moved { AclMoved::Yes } else { AclMoved::No };
        if applied.ahead_taken {
            self.end_ahead().await;
        }
        if let Some(seq) = applied.showed_another {
            self.accuse_of_showing_another(seq).await;
        }
        if applied.wants {
            self.sync_wanted.notify_one();
        }
        self.announce_applied(applied, written.commit);
        if self.recovery.rewinds() == rewinds {
            self.announced.fetch_max(end.0, Ordering::Release);
        } else {
            // The log was taken back meanwhile, before these entries or after them.
            self.announced.store(self.cursor().0, Ordering::Release);
        }
        self.note_trouble(|t| (t.faulted, t.store_full) = (None, None));
        Ok((end, acl_moved))
    }

    fn announce_applied(&self, applied: Applied, commit: CommitNo) {
        if let Some(ring) = applied.ring {
            self.publish_ring(ring);
        }
        if applied.acl_moved {
            let (account, ring) = (self.shared.account.id(), self.ring());
            let owed = self.acl().ok().and_then(|acl| owed_keys(&acl, &account, &ring, applied.key_problem));
            self.note_trouble(|t| t.key = owed);
        }
        let mut other = applied.trees;
        for object in &applied.objects {
            other.remove(&object.tree);
        }
        self.tell_objects(applied.objects, commit);
        for tree in other {
            self.refresh_to(tree, commit);
            self.emit(Event::Tree { space: self.id, tree });
        }
        if applied.acl_moved {
            self.emit(Event::Acl { space: self.id });
            // Keys and roles moved: what was held back may go out now.
            self.push_anew();
        }
        if applied.deleted {
            self.refresh_all();
        }
        for event in applied.acl {
            self.emit(event);
        }
        for accusation in applied.accused {
            self.tell_accused(AccusationKind::Seen, Some(accusation));
        }
    }

    /// After a commit that moved the logged state of objects.
    pub(super) fn tell_objects(&self, objects: Vec<ObjectTouched>, commit: CommitNo) {
        for ObjectTouched { tree, object_type, id } in objects {
            self.refresh_to(tree, commit);
            self.emit(Event::Object { space: self.id, tree, object_type, id });
        }
        self.touch();
    }

    /// From wire entries to verified submissions, a root with its first change.
    fn read_steps(&self, entries: Vec<v1::LogEntry>) -> Result<Vec<Step>, ApplyError> {
        let fault = |error: &dyn std::fmt::Display| ApplyError::Fault(format!("the node sent a bad entry: {error}"));
        let raws = self.resolve(entries)?;
        let (seqs, raws): (Vec<_>, Vec<_>) = raws.into_iter().unzip();
        let verified = verify_many(raws, &mut self.shared.host.rng());
        let mut steps = Vec::with_capacity(seqs.len());
        let mut root: Option<(Seq, VerifiedRecord)> = None;
        for (seq, record) in seqs.into_iter().zip(verified) {
            let record = record.map_err(|e| fault(&e))?;
            if let VerifiedRecord::TreeRoot(_) = &record {
                if root.replace((seq, record)).is_some() {
                    return Err(fault(&"a root without its first change"));
                }
                continue;
            }
            let first = root.as_ref().map_or(seq, |(seq, _)| *seq);
            let submission = Submission::pair(root.take().map(|(_, r)| r), record).map_err(|e| fault(&e))?;
            steps.push(Step { first, submission });
        }
        if root.is_some() {
            return Err(fault(&"a root without its first change"));
        }
        Ok(steps)
    }

    /// Full records for all entries: what we pushed ourselves may come back as an id.
    fn resolve(&self, entries: Vec<v1::LogEntry>) -> Result<Vec<(Seq, RawRecord)>, ApplyError> {
        use v1::log_entry::Entry;
        let fault = |error: WireError| ApplyError::Fault(format!("the node sent a bad entry: {error}"));
        let stored = self.cursor();
        let full = |entry: &&v1::LogEntry| matches!(entry.entry, Some(Entry::Record(_)));
        let repeated = entries.iter().filter(full).filter(|entry| Seq(entry.seq) <= stored).count();
        self.live.note_fetched(entries.iter().filter(full).count(), repeated);
        let mut resolved = Vec::with_capacity(entries.len());
        // Sent twice; what stands in the log is what was verified then.
        let news = entries.into_iter().filter(|entry| Seq(entry.seq) > stored);
        // A row has the root with the change that it begins with: from the last to the first, the change is known before it.
        for entry in news.collect::<Vec<_>>().into_iter().rev() {
            let seq = Seq(entry.seq);
            let record = match entry.entry.ok_or(fault(WireError::Missing("entry")))? {
                Entry::Record(record) => RawRecord::try_from(record).map_err(|e| fault(WireError::Record(e)))?,
                Entry::Id(bytes) => {
                    let id = EntryId::try_from(bytes.as_ref()).map_err(|e| fault(WireError::Id(e)))?;
                    let after = resolved.last().map(|(_, record): &(Seq, RawRecord)| record.id());
                    self.own_record(id, after)?.ok_or(ApplyError::UnknownOwn { seq })?
                }
            };
            resolved.push((seq, record));
        }
        resolved.reverse();
        Ok(resolved)
    }

    /// A record of a write of ours: the write itself, or the root that stands before it.
    fn own_record(&self, id: EntryId, after: Option<EntryId>) -> Result<Option<RawRecord>, ReadError> {
        self.shared.store.read(|tx| {
            if let Some(write) = tx.pending_by_change(self.id, id.into())? {
                return Ok(Some(write.record));
            }
            let Some(after) = after else { return Ok(None) };
            let first = tx.pending_by_change(self.id, after.into())?;
            Ok(first.and_then(|write| write.root).filter(|root| root.id() == id))
        })
    }
}

/// One batch inside its transaction.
struct Batch<'a> {
    shared: &'a Shared,
    space: SpaceId,
    ring: Cow<'a, KeyRing>,
    projection: Projection,
    /// Keys of an epoch arrived that were not held before.
    keys_came: bool,
    /// What decided over our pending writes when they were decided last.
    standing: Standing,
    purged: BTreeSet<TreeId>,
    seen: SeenCheck,
    /// Something that the node lost waits for the log to take it again, or was given up.
    salvages: Salvages,
    applied: Applied,
}

/// Whether a space has anything in its salvage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Salvages {
    Some,
    None,
}

/// What of an ACL decides over a pending write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    since: Option<Seq>,
    epoch: Epoch,
    deleted: bool,
}

impl Standing {
    fn of(acl: &AclState, shared: &Shared) -> Self {
        let since = acl.members.get(&shared.account.id()).map(|m| m.role_since);
        Self { since, epoch: acl.epoch, deleted: acl.deleted }
    }
}

impl<'a> Batch<'a> {
    fn new(tx: &WriteTx<'_>, shared: &'a Shared, space: SpaceId, ring: &'a KeyRing) -> Result<Self, ApplyError> {
        let acl = tx.acl(space)?.ok_or(ReadError::UnknownSpace(space))?;
        Ok(Self {
            shared,
            space,
            ring: Cow::Borrowed(ring),
            projection: Projection::default(),
            keys_came: false,
            standing: Standing::of(&acl, shared),
            purged: BTreeSet::new(),
            seen: SeenCheck::new(tx, space)?,
            salvages: if tx.salvage_counts(space)? == (0, 0) { Salvages::None } else { Salvages::Some },
            applied: Applied::default(),
        })
    }

    fn step(&mut self, tx: &mut WriteTx<'_>, step: &Step) -> Result<(), ApplyError> {
        let view = tx.view(self.space)?.ok_or(ReadError::UnknownSpace(self.space))?;
        let end = view.position().seq;
        if step.first != end.next() {
            return Err(ApplyError::Gap { first: step.first, end });
        }
        let verdict = match decide(&view, &step.submission) {
            Ok(Outcome::Append(decision)) => Ok(decision),
            Ok(Outcome::Known(at)) => {
                return Err(ApplyError::Fault(format!("the node logged one record twice, at {at} and {}", step.first)));
            }
            Err(DecideError::Reject(reject)) => Err((quarantine(&view, &step.submission), reject)),
            Err(DecideError::Refused(refusal)) => return Err(ApplyError::Fault(refusal.to_string())),
            Err(DecideError::View(error)) => return Err(error.into()),
        };
        drop(view);
        match verdict {
            Ok(decision) => self.append(tx, step, decision),
            Err((decision, reject)) => self.quarantine(tx, step, decision, &reject),
        }
    }

    fn append(&mut self, tx: &mut WriteTx<'_>, step: &Step, decision: Decision) -> Result<(), ApplyError> {
        let sent = match &step.submission {
            Submission::Change { root: Some(_), .. } => 2,
            Submission::Acl(_) | Submission::Change { root: None, .. } | Submission::Tombstone(_) => 1,
        };
        if decision.entries().len() != sent {
            return Err(ApplyError::Fault(format!("the node logged a second root at {}", step.first)));
        }
        let height = decision.entries().last().and_then(|e| e.height);
        let update = decision.tree().map(|t| t.after.root);
        if self.salvages == Salvages::Some {
            for entry in decision.entries() {
                tx.take_from_salvage(self.space, entry.id)?;
            }
        }
        let at = tx.append(self.space, decision)?.seq;
        self.compare_seen(tx, &step.submission, at)?;
        match (&step.submission, update) {
            (Submission::Acl(record), _) => self.acl_moved(tx, record, at),
            (Submission::Change { change, .. }, Some(root)) => {
                self.own_logged(tx, &step.submission, at)?;
                let content =
                    project::open(self.shared, &self.ring, &root, change.body(), change.raw().payload.as_ref());
                self.applied.trees.insert(change.body().tree);
                let place = (at, height.unwrap_or_default());
                Ok(self.projection.fold(tx, self.shared, &self.ring, change, place, (self.space, content))?)
            }
            (Submission::Tombstone(record), _) => {
                let tree = record.body().tree;
                self.own_logged(tx, &step.submission, at)?;
                self.applied.trees.insert(tree);
                self.purged.insert(tree);
                Ok(self.projection.purge(tx, self.space, tree)?)
            }
            (Submission::Change { .. }, None) => Ok(()),
        }
    }

    fn compare_seen(&mut self, tx: &WriteTx<'_>, submission: &Submission, at: Seq) -> Result<(), ApplyError> {
        let (said, record) = match submission {
            Submission::Acl(record) => ((record.body().author, record.body().seen), record.raw()),
            Submission::Change { change, .. } => ((change.body().author, change.body().seen), change.raw()),
            Submission::Tombstone(_) => return Ok(()),
        };
        Ok(self.seen.check(tx, self.space, said, at, record)?)
    }

    fn quarantine(
        &mut self,
        tx: &mut WriteTx<'_>,
        step: &Step,
        decision: Decision,
        reject: &Reject,
    ) -> Result<(), ApplyError> {
        let Some(tree) = step.submission.tree() else {
            return Err(ApplyError::Fault(format!(
                "the node logged an ACL record at {} that breaks the rules: {reject}",
                step.first
            )));
        };
        let id = step.submission.id();
        let seq = tx.append(self.space, decision)?.seq;
        let row = VerdictRow { kind: VerdictKind::Quarantined, detail: reject.to_string(), seq };
        tx.put_verdict(self.space, tree, id.into(), &row)?;
        self.own_logged(tx, &step.submission, seq)?;
        self.applied.trees.insert(tree);
        Ok(())
    }

    /// A write of ours is in the log. Those of others are not looked up.
    fn own_logged(&mut self, tx: &mut WriteTx<'_>, submission: &Submission, seq: Seq) -> Result<(), ApplyError> {
        if submission.author() != self.shared.account.id() {
            return Ok(());
        }
        let write = tx.pending_by_change(self.space, submission.id().into())?;
        if let Some(write) = write.filter(|w| matches!(w.state, WriteState::Pending { .. })) {
            tx.set_write_state(write.id, &WriteState::Logged { seq })?;
        }
        Ok(())
    }

    fn acl_moved(&mut self, tx: &mut WriteTx<'_>, record: &Verified<AclRecord>, at: Seq) -> Result<(), ApplyError> {
        let acl = tx.acl(self.space)?.ok_or(ReadError::UnknownSpace(self.space))?;
        let mut epoch = acl.epochs.iter().filter(|(_, i)| i.since < at).map(|(e, _)| *e).max().unwrap_or_default();
        let held = |ring: &KeyRing| acl.epochs.keys().filter(|e| ring.keys(**e).is_some()).count();
        let before = held(&self.ring);
        let older = older_epochs_held(&acl, &self.ring, at);
        if let Err(problem) = absorb(self.ring.to_mut(), record.raw().clone(), &mut epoch, &acl) {
            self.applied.key_problem = Some(problem);
        }
        self.keys_came |= held(&self.ring) > before;
        self.applied.acl_moved = true;
        self.applied.acl.extend(events_of(&acl, record));
        if older_epochs_held(&acl, &self.ring, at) > older {
            self.applied.acl.push(Event::Revealed { space: self.space });
        }
        if acl.deleted || acl.membership_ended(&self.shared.account.id()).is_some() {
            tx.kv_delete(&leave_key(self.space))?;
        }
        if acl.deleted {
            self.applied.deleted = true;
            self.projection.end_space(tx, self.space)?;
        }
        let standing = Standing::of(&acl, self.shared);
        if standing != self.standing {
            self.standing = standing;
            self.redecide(tx, None)?;
        }
        Ok(())
    }

    /// What the log up to here says about our pending writes: to all trees, or to some. Everything of ours that the log took
    /// before is not pending any more, so what is left was not taken before, and never will be as it is. Asked at the very entry
    /// that moved our standing, so that the answer does not depend on where a batch ends.
    fn redecide(&mut self, tx: &mut WriteTx<'_>, trees: Option<&BTreeSet<TreeId>>) -> Result<(), ApplyError> {
        let acl = tx.acl(self.space)?.ok_or(ReadError::UnknownSpace(self.space))?;
        let ring = Arc::new(self.ring.clone().into_owned());
        let maker = Maker::with(tx, self.shared, acl, ring)?;
        let mut redecided = Redecided::default();
        redecide(tx, self.shared, &maker, trees, &mut redecided).map_err(ApplyError::Write)?;
        self.applied.acl.extend(redecided.events);
        self.applied.refused.extend(redecided.touched);
        self.applied.trees.extend(redecided.rebuilt);
        Ok(())
    }

    fn finish(mut self, tx: &mut WriteTx<'_>) -> Result<Applied, ApplyError> {
        let end = tx.space(self.space)?.ok_or(ReadError::UnknownSpace(self.space))?.position.seq;
        self.applied.wants = self.projection.wants_content();
        self.applied.objects = std::mem::take(&mut self.projection).flush(tx, self.shared, self.space, end)?;
        if self.keys_came {
            // A log is older than one's membership in it: what came before the keys is opened now.
            let mut revealed = Projection::default();
            self.applied.trees.extend(revealed.reveal(tx, self.shared, self.space, &self.ring)?);
            self.applied.objects.extend(revealed.flush(tx, self.shared, self.space, end)?);
        }
        match ahead::passed(tx, self.space, end)? {
            ahead::Passed::Nothing => {}
            ahead::Passed::Taken => self.applied.ahead_taken = true,
            ahead::Passed::Another { seq } => {
                // What it showed then goes, and its log is followed: that is the one that it signs for.
                tx.drop_ahead(self.space)?;
                self.applied.ahead_taken = true;
                self.applied.showed_another = Some(seq);
            }
        }
        if !self.purged.is_empty() {
            let purged = std::mem::take(&mut self.purged);
            self.redecide(tx, Some(&purged))?;
        }
        self.applied.accused = self.seen.keep(tx, self.space, self.shared.host.wall_ms())?;
        let refused = std::mem::take(&mut self.applied.refused);
        self.applied.objects.extend(refused);
        if let Cow::Owned(ring) = self.ring {
            self.applied.ring = Some(ring);
        }
        Ok(self.applied)
    }
}
