//! The only way from a call to the store.
//!
//! A handler gets at a space through a view ([`MemberView`], [`AclView`], [`TailView`]) that is made inside the very
//! transaction that is read, after the caller's right was checked against the ACL of that transaction. There is nothing to
//! check beforehand and nothing to forget. The loopholes are [`Gate::standing_for_heartbeat`], and those of a re-push, where this
//! authority's own signature stands for a right ([`Gate::common_with`], [`Gate::meet_lost`], [`Gate::take_back`]).

mod lost;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use sync_core::acl::AclState;
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, ChangeId, EntryId, Epoch, HistoryId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{
    self, Admission, DecideError, EntryKind, Genesis, Outcome, Position, Refusal, Submission, View as _,
};
use sync_core::pb::HistoryExport;
use sync_core::reconcile::{Element, SetDigest};
use sync_core::record::{DeviceList, RawRecord, SpaceHeader, TreeHeads, Verified, verify_as};
use sync_core::tree::heads_hash;
use sync_host::Host;
use sync_proto::status::Failure;
use sync_store::{ChangeLink, Creation, ElementFeed, LogRow, ReadTx, SpaceRow, Store, StoreError, Watermarks, WriteTx};
use tokio::sync::watch;
use tracing::{Span, error};

use crate::authorize::{AclAccess, InviteTicket, acl_access, log_access, require_member, without_positions};
use crate::failure::CallError;
use crate::recovering::Recovering;
use crate::session::Session;

pub(crate) use lost::{Lost, LostEntry, TakenBack};

/// Log rows read at a time as ids only.
const IDS_PAGE_MAX: usize = 4096;
/// Spaces whose watermarks are kept at hand.
const MARKS_MAX: usize = 16_384;

/// The store, closed to everybody who has no session or no right.
#[derive(Debug)]
pub(crate) struct Gate {
    host: Host,
    store: Store,
    authority: sync_core::ids::AuthorityId,
    spaces_per_account_max: u64,
    /// Asking the store for the watermarks of a space reads the disk; one receiver is kept and cloned. Live as long as it is
    /// kept, so never stale.
    marks: Mutex<BTreeMap<SpaceId, watch::Receiver<Watermarks>>>,
    recovering: Recovering,
}

/// What became of a submission that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Accepted(Seq),
    Known(Seq),
}

/// What became of a submission.
pub(crate) type Verdict = Result<Taken, Failure>;

/// Where a space stands, as receipts say it. All from one transaction.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) position: Position,
    pub(crate) acl_head: AclId,
    pub(crate) epoch: Epoch,
    pub(crate) history: HistoryId,
    pub(crate) set_digest: [u8; 32],
    pub(crate) trees: Vec<(TreeId, [u8; 32])>,
}

/// A write that waits for the disk.
#[derive(Debug)]
#[must_use = "what is not awaited may be lost in a power cut"]
pub(crate) struct AwaitDisk(sync_store::CommitNo);

impl Gate {
    pub(crate) fn new(
        host: Host,
        store: Store,
        authority: sync_core::ids::AuthorityId,
        spaces_per_account_max: u64,
        recovering: Recovering,
    ) -> Self {
        Self { host, store, authority, spaces_per_account_max, marks: Mutex::default(), recovering }
    }

    // ---- reading ----------------------------------------------------------------------------------------------------

    /// Reads a space as a member of it.
    pub(crate) async fn as_member<T: Send + 'static>(
        &self,
        session: &Session,
        space: SpaceId,
        read: impl FnOnce(&MemberView<'_, '_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let session = session.clone();
        self.read(move |tx| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            require_member(&acl, &session)?;
            read(&MemberView { tx, space })
        })
        .await
    }

    /// Reads the ACL of a space, as whoever may.
    pub(crate) async fn as_acl_reader<T: Send + 'static>(
        &self,
        session: &Session,
        space: SpaceId,
        ticket: Option<InviteTicket>,
        read: impl FnOnce(&AclView<'_, '_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let (session, host) = (session.clone(), self.host.clone());
        self.read(move |tx| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            let access = acl_access(&acl, &session, ticket.as_ref(), host.wall_ms())?;
            read(&AclView { tx, space, access })
        })
        .await
    }

    /// Reads a log for a subscription: a member's, or, up to where its membership ended, of one who was a member.
    pub(crate) async fn as_subscriber<T: Send + 'static>(
        &self,
        session: &Session,
        space: SpaceId,
        read: impl FnOnce(&TailView<'_, '_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let session = session.clone();
        self.read(move |tx| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            let last = log_access(&acl, &session)?;
            read(&TailView { tx, space, last })
        })
        .await
    }

    /// The watermarks of a space. They say how long its log is and nothing else; a caller gets them after a view.
    pub(crate) async fn watch(&self, space: SpaceId) -> Result<watch::Receiver<Watermarks>, CallError> {
        if let Some(receiver) = self.marks_at_hand().get(&space) {
            return Ok(receiver.clone());
        }
        let store = self.store.clone();
        let receiver = self.blocking(move || Ok(store.watch(space))).await?;
        // What is no space is not kept: its id may be anybody's invention.
        if receiver.borrow().seq > Seq::ZERO {
            let mut known = self.marks_at_hand();
            if known.len() >= MARKS_MAX {
                known.clear();
            }
            known.insert(space, receiver.clone());
        }
        Ok(receiver)
    }

    fn marks_at_hand(&self) -> MutexGuard<'_, BTreeMap<SpaceId, watch::Receiver<Watermarks>>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loophole: where a space stands, for the heartbeat that all its subscribers share. Each of them has shown its right
    /// to the very facts before it is sent one.
    pub(crate) async fn standing_for_heartbeat(&self, space: SpaceId) -> Result<Standing, CallError> {
        self.read(move |tx| standing(tx, space, &[])).await
    }

    /// Reading blocks on the disk; a thread for that is at hand.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let span = Span::current();
        let reading = self.host.blocking(move || span.in_scope(read));
        reading.await.unwrap_or_else(|error| {
            error!(%error, "a read panicked");
            Err(CallError::new(Code::StoreFailed, "the node failed to read"))
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTx<'_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let store = self.store.clone();
        self.blocking(move || store.read(read)).await
    }

    /// A loophole for re-pushes: the newest point of a ladder that the log has, and which history the log is of.
    pub(crate) async fn common_with(&self, space: SpaceId, ladder: Vec<Position>) -> Result<Common, CallError> {
        self.read(move |tx| {
            let history = row(tx, space)?.history;
            let mut common = Position::start(&space);
            for point in ladder {
                if point.seq > common.seq && tx.position_at(space, point.seq)? == Some(point) {
                    common = point;
                }
            }
            Ok(Common { position: common, history, histories: histories(tx, space)? })
        })
        .await
    }

    /// The loophole's other half: the end of the log, if what is lost continues it.
    ///
    /// # Errors
    /// `LOG_DIVERGED` if it does not.
    pub(crate) async fn meet_lost(&self, space: SpaceId, lost: &mut Lost) -> Result<Seq, CallError> {
        let mut met = lost.clone();
        let (seq, met) = self.read(move |tx| Ok((met.meet(tx, space)?.seq, met))).await?;
        *lost = met;
        Ok(seq)
    }

    // ---- writing ----------------------------------------------------------------------------------------------------

    /// Founds a space. `Ok` only once it is on the disk.
    pub(crate) async fn found_space(&self, session: &Session, genesis: Genesis) -> Result<SpaceRow, CallError> {
        let (space, authority, max) = (genesis.space(), self.authority, self.spaces_per_account_max);
        if genesis.acl().home != Some(authority) {
            return Err(Refusal::NotHome { home: genesis.acl().home }.into());
        }
        if genesis.acl().owner != session.account() {
            return Err(CallError::new(
                Code::SpaceCreationRefused,
                "an account founds spaces of its own, and no others",
            ));
        }
        let session = session.clone();
        let history = HistoryId(self.host.random());
        let (row, disk) = self.write(move |tx| found(tx, &session, &genesis, history, max)).await?;
        self.durable(disk).await?;
        row.ok_or_else(|| CallError::space_unknown(&space))
    }

    /// Decides one ACL record. `Ok` only once it is on the disk.
    pub(crate) async fn append_acl(
        &self,
        session: &Session,
        space: SpaceId,
        ticket: Option<InviteTicket>,
        record: Submission,
    ) -> Result<Taken, CallError> {
        let (session, authority) = (session.clone(), self.authority);
        let now = (self.host.clone(), self.recovering.clone());
        let append = move |tx: &mut WriteTx<'_>| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            let is_member = require_member(&acl, &session);
            if record.author() != session.account() {
                is_member?;
            }
            let admission = admission(&now, tx, space, authority)?;
            let verdict = submit(tx, space, &record, &admission)?.map_err(CallError::from);
            // A joiner is told why; who may not read the ACL to its end is not told where that is.
            match acl_access(&acl, &session, ticket.as_ref(), now.0.wall_ms()) {
                Ok(AclAccess::Whole) => verdict,
                Ok(AclAccess::UpTo(_)) | Err(_) => verdict.map_err(without_positions),
            }
        };
        let (taken, disk) = self.write(append).await?;
        self.durable(disk).await?;
        Ok(taken)
    }

    /// Decides records in order, each by itself: a bad one changes nothing for its neighbours. They survive a killed process
    /// when this returns, and a power cut after [`Gate::durable`].
    ///
    /// # Errors
    /// `FORBIDDEN` if the caller is no member; the store's.
    pub(crate) async fn push(
        &self,
        session: &Session,
        space: SpaceId,
        submissions: Vec<Result<Submission, Failure>>,
    ) -> Result<(Vec<Verdict>, AwaitDisk), CallError> {
        let (session, authority) = (session.clone(), self.authority);
        let now = (self.host.clone(), self.recovering.clone());
        self.write(move |tx| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            require_member(&acl, &session)?;
            let admission = admission(&now, tx, space, authority)?;
            let mut verdicts = Vec::with_capacity(submissions.len());
            for submission in submissions {
                verdicts.push(match submission {
                    Ok(submission) => submit(tx, space, &submission, &admission)?,
                    Err(failure) => Err(failure.at(end_of(tx, space)?)),
                });
            }
            Ok(verdicts)
        })
        .await
    }

    /// Appends what was lost: what this authority signed for needs no admission, whoever brings it. Durable when this returns.
    ///
    /// # Errors
    /// `LOG_DIVERGED` if the log went another way meanwhile; the rule that a record breaks; the store's.
    pub(crate) async fn take_back(
        &self,
        space: SpaceId,
        mut lost: Lost,
        entries: Vec<LostEntry>,
    ) -> Result<(TakenBack, Lost), CallError> {
        let authority = self.authority;
        let take = move |tx: &mut WriteTx<'_>| {
            let home = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?.home;
            if home != Some(authority) {
                return Err(Refusal::NotHome { home }.into());
            }
            let mut taken = TakenBack { to: lost.meet(tx, space)?.seq, appended: 0 };
            for entry in &entries {
                if entry.first > taken.to {
                    taken.appended += lost.append(tx, space, entry)?;
                    taken.to = lost.at.seq;
                }
            }
            Ok((taken, lost))
        };
        let ((taken, lost), disk) = self.write(take).await?;
        self.durable(disk).await?;
        Ok((taken, lost))
    }

    /// Keeps a device list if it is newer than the one that is known; the one that counts comes back, and is on the disk.
    /// Version 0 declares nothing: until an account made a list, every device that it certified may open sessions.
    pub(crate) async fn keep_device_list(
        &self,
        offered: Verified<DeviceList>,
    ) -> Result<Option<Verified<DeviceList>>, CallError> {
        let keep = move |tx: &mut WriteTx<'_>| {
            let key = format!("device-list/{}", offered.body().account);
            let known = tx.kv(&key)?.map(|bytes| read_device_list(&bytes)).transpose()?;
            match known {
                Some(known) if known.body().version >= offered.body().version => Ok(Some(known)),
                None if offered.body().version == 0 => Ok(None),
                Some(_) | None => {
                    tx.kv_put(&key, &offered.raw().to_vec())?;
                    Ok::<_, CallError>(Some(offered))
                }
            }
        };
        let (counts, disk) = self.write(keep).await?;
        self.durable(disk).await?;
        Ok(counts)
    }

    /// Waits until a write is on the disk.
    pub(crate) async fn durable(&self, disk: AwaitDisk) -> Result<(), CallError> {
        Ok(self.store.durable(disk.0).await?)
    }

    /// Follows what HeadSync compares in a space. What a member reads after this, and then the moves beyond, is all.
    pub(crate) async fn follow_elements(&self, session: &Session, space: SpaceId) -> Result<ElementFeed, CallError> {
        let session = session.clone();
        let follow = move |tx: &mut WriteTx<'_>| {
            let acl = tx.acl(space)?.ok_or_else(|| CallError::space_unknown(&space))?;
            require_member(&acl, &session)?;
            Ok(tx.follow_elements(space))
        };
        Ok(self.write(follow).await?.0)
    }

    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut WriteTx<'_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<(T, AwaitDisk), CallError> {
        let written = self.store.write(job).await?;
        Ok((written.value, AwaitDisk(written.commit)))
    }
}

/// Where a log meets a ladder.
pub(crate) struct Common {
    pub(crate) position: Position,
    pub(crate) history: HistoryId,
    pub(crate) histories: Vec<HistoryExport>,
}

/// Recognised restores of a space, the latest ones, as they are sent.
fn histories(tx: &ReadTx<'_>, space: SpaceId) -> Result<Vec<HistoryExport>, CallError> {
    let kept = tx.histories(space)?;
    let latest = kept.len().saturating_sub(limits::HISTORIES_MAX);
    let damaged = |e: prost::DecodeError| StoreError::Damaged { what: format!("a kept history of {space}: {e}") };
    let read = |bytes: &Vec<u8>| HistoryExport::decode(bytes.as_slice()).map_err(|e| damaged(e).into());
    kept[latest..].iter().map(read).collect()
}

// ---- views ----------------------------------------------------------------------------------------------------------

/// Everything of one space at one moment, for a member.
pub(crate) struct MemberView<'t, 'c> {
    tx: &'t ReadTx<'c>,
    space: SpaceId,
}

impl MemberView<'_, '_> {
    pub(crate) fn position(&self) -> Result<Position, CallError> {
        Ok(row(self.tx, self.space)?.position)
    }

    pub(crate) fn standing(&self, trees: &[TreeId]) -> Result<Standing, CallError> {
        standing(self.tx, self.space, trees)
    }

    pub(crate) fn digest(&self) -> Result<SetDigest, CallError> {
        self.tx.digest(self.space)?.ok_or_else(|| CallError::space_unknown(&self.space))
    }

    /// One for the ACL head and one for each tree.
    pub(crate) fn elements_len(&self) -> Result<u64, CallError> {
        Ok(self.tx.counts(self.space)?.map_or(0, |counts| counts.trees) + 1)
    }

    pub(crate) fn elements(&self, after: Option<TreeId>, max: usize) -> Result<Vec<Element>, CallError> {
        Ok(self.tx.elements(self.space, after, max)?)
    }

    /// All elements, in no order.
    pub(crate) fn each_element(&self, with: impl FnMut(Element)) -> Result<(), CallError> {
        Ok(self.tx.each_element(self.space, with)?)
    }

    /// Where the entries of a tree stand, in log order: root, changes, and the tombstone that ended it. Without those that are,
    /// or lead to, one of `held`; and the root, if there is such a change. `None` for a tree without entries.
    pub(crate) fn tree_seqs(&self, tree: TreeId, held: &[ChangeId]) -> Result<Option<VecDeque<Seq>>, CallError> {
        let Some(state) = self.tx.tree(self.space, tree)? else { return Ok(None) };
        let links = self.tx.change_links(self.space, tree)?;
        let held = with_ancestors(&links, held);
        let root = held.is_empty().then_some(state.created);
        let changes = links.iter().filter(|link| !held.contains(&link.id)).map(|link| link.seq);
        Ok(Some(root.into_iter().chain(changes).chain(state.purged.map(|purge| purge.at)).collect()))
    }

    /// Takes entries from the front of `wanted` while they fit `room` bytes. At least one, if `at_least` says so.
    pub(crate) fn take_entries(
        &self,
        wanted: &mut VecDeque<Seq>,
        room: usize,
        at_least: AtLeast,
    ) -> Result<Vec<LogRow>, CallError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(seq) = wanted.front() {
            if let Some(mut row) = self.tx.entry_at(self.space, *seq)? {
                bytes += row.record.wire_bytes();
                if bytes > room && (at_least == AtLeast::None || !rows.is_empty()) {
                    break;
                }
                withhold_damage(self.space, &mut row);
                rows.push(row);
            }
            wanted.pop_front();
        }
        Ok(rows)
    }
}

/// How many entries a page has that has room for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtLeast {
    None,
    One,
}

/// Those of `heads` that are changes of this tree, and everything before them.
fn with_ancestors(links: &[ChangeLink], heads: &[ChangeId]) -> BTreeSet<ChangeId> {
    let mut held = BTreeSet::new();
    if heads.is_empty() {
        return held;
    }
    let parents: BTreeMap<ChangeId, &[ChangeId]> = links.iter().map(|l| (l.id, l.parents.as_slice())).collect();
    let mut open = heads.to_vec();
    while let Some(id) = open.pop() {
        let Some(parents) = parents.get(&id) else { continue };
        if held.insert(id) {
            open.extend_from_slice(parents);
        }
    }
    held
}

/// The ACL log of one space at one moment, as far as the caller may read it.
pub(crate) struct AclView<'t, 'c> {
    tx: &'t ReadTx<'c>,
    space: SpaceId,
    access: AclAccess,
}

/// One entry for a reader of the ACL: ACL records in full, others as ids.
pub(crate) enum AclLine {
    Record(Seq, RawRecord),
    Id(Seq, EntryId),
}

/// A stretch of the log for a reader of the ACL.
pub(crate) struct AclPage {
    pub(crate) lines: Vec<AclLine>,
    /// Everything up to here has been read.
    pub(crate) complete_to: Seq,
    /// Nothing after `complete_to` may ever be shown to this caller.
    pub(crate) is_all: IsAll,
}

/// Whether there can be more later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsAll {
    Yes,
    No,
}

impl AclView<'_, '_> {
    pub(crate) fn row(&self) -> Result<SpaceRow, CallError> {
        row(self.tx, self.space)
    }

    pub(crate) fn histories(&self) -> Result<Vec<HistoryExport>, CallError> {
        histories(self.tx, self.space)
    }

    /// The end of the log as this caller may know it.
    pub(crate) fn position(&self) -> Result<Position, CallError> {
        let end = self.row()?.position;
        let last = self.access.clip(end.seq);
        if last == end.seq {
            return Ok(end);
        }
        self.tx.position_at(self.space, last)?.ok_or_else(|| CallError::space_unknown(&self.space))
    }

    /// A page of lines after `after` and up to `durable_seq`: what is not durable is not shown.
    pub(crate) fn page(&self, after: Seq, durable_seq: Seq) -> Result<AclPage, CallError> {
        let last = self.access.clip(self.row()?.position.seq.min(durable_seq));
        let mut page = AclPage { lines: Vec::new(), complete_to: after, is_all: IsAll::No };
        let mut bytes = 0;
        for (seq, kind, id) in self.tx.entry_ids(self.space, after, IDS_PAGE_MAX)? {
            if seq > last || bytes >= limits::BATCH_BYTES_MAX {
                break;
            }
            let line = match kind {
                EntryKind::Acl => AclLine::Record(seq, self.acl_record(seq)?),
                EntryKind::Root | EntryKind::Change | EntryKind::Tombstone => AclLine::Id(seq, id),
            };
            bytes += line.wire_bytes();
            page.lines.push(line);
            page.complete_to = seq;
        }
        if matches!(self.access, AclAccess::UpTo(end) if page.complete_to >= end) {
            page.is_all = IsAll::Yes;
        }
        Ok(page)
    }

    fn acl_record(&self, seq: Seq) -> Result<RawRecord, CallError> {
        let missing = || StoreError::Damaged { what: format!("entry {seq} of {} is gone", self.space) };
        Ok(self.tx.entry_at(self.space, seq)?.ok_or_else(missing)?.record)
    }
}

impl AclLine {
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Record(_, record) => record.wire_bytes() + 16,
            Self::Id(..) => 48,
        }
    }
}

/// The log of one space at one moment, for a subscription.
pub(crate) struct TailView<'t, 'c> {
    tx: &'t ReadTx<'c>,
    space: SpaceId,
    /// The entry that ended the caller's membership: for it, the log ends there.
    last: Option<Seq>,
}

/// A stretch of the log for a subscriber.
pub(crate) struct TailPage {
    pub(crate) rows: Vec<LogRow>,
    /// Of the trees that the rows touch and that no later entry touches.
    pub(crate) heads: Vec<TreeHeads>,
    /// What is durable of the log, as far as this caller may know.
    pub(crate) durable_seq: Seq,
    /// After these rows, nothing may be shown to this caller any more.
    pub(crate) is_all: IsAll,
}

impl TailView<'_, '_> {
    /// The end of the log as this caller may know it.
    pub(crate) fn position(&self) -> Result<Position, CallError> {
        let end = row(self.tx, self.space)?.position;
        match self.last.filter(|last| *last < end.seq) {
            None => Ok(end),
            Some(last) => self.tx.position_at(self.space, last)?.ok_or_else(|| CallError::space_unknown(&self.space)),
        }
    }

    /// Whether nothing after an entry may be shown to this caller, ever.
    pub(crate) fn is_all(&self, seq: Seq) -> IsAll {
        if self.last.is_some_and(|last| seq >= last) { IsAll::Yes } else { IsAll::No }
    }

    /// The log up to an entry; `None` beyond its end.
    pub(crate) fn position_at(&self, seq: Seq) -> Result<Option<Position>, CallError> {
        let is_hidden = self.last.is_some_and(|last| seq > last);
        if is_hidden { Ok(None) } else { Ok(self.tx.position_at(self.space, seq)?) }
    }

    pub(crate) fn history(&self) -> Result<HistoryId, CallError> {
        Ok(row(self.tx, self.space)?.history)
    }

    pub(crate) fn histories(&self) -> Result<Vec<HistoryExport>, CallError> {
        histories(self.tx, self.space)
    }

    /// Entries after `cursor` that are durable: what a power cut could take is shown to nobody.
    pub(crate) fn page(&self, cursor: Seq, durable_seq: Seq) -> Result<TailPage, CallError> {
        let mut rows = self.tx.entries(self.space, cursor, limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX)?;
        // Both ends are ends of transactions, so no root is parted from its first change.
        let end = self.last.map_or(durable_seq, |last| last.min(durable_seq));
        rows.retain(|row| row.position.seq <= end);
        let reached = rows.last().map_or(cursor, |row| row.position.seq);
        let is_all = self.is_all(reached);
        let heads = match self.last {
            None => self.heads_of_touched(&rows, reached)?,
            // Which trees were touched since is part of what comes after the end.
            Some(_) => Vec::new(),
        };
        rows.iter_mut().for_each(|row| withhold_damage(self.space, row));
        Ok(TailPage { rows, heads, durable_seq: end, is_all })
    }

    /// Heads are stored as of the end of the log. They are those after `reached` where none of them lies beyond it.
    fn heads_of_touched(&self, rows: &[LogRow], reached: Seq) -> Result<Vec<TreeHeads>, CallError> {
        let touched: BTreeSet<TreeId> = rows.iter().filter(|r| !r.quarantined).filter_map(|r| r.tree).collect();
        let Some(view) = self.tx.view(self.space)? else { return Ok(Vec::new()) };
        let mut found = Vec::with_capacity(touched.len());
        let mut room = limits::HEADS_MAX;
        for tree in touched {
            let Some(state) = view.tree(&tree)? else { continue };
            let heads: Vec<ChangeId> = state.heads.into_iter().collect();
            if heads.len() > room {
                continue;
            }
            if view.position().seq > reached && !all_within(&view, &tree, &heads, reached)? {
                continue;
            }
            room -= heads.len();
            found.push(TreeHeads { tree, heads });
        }
        Ok(found)
    }
}

fn all_within(
    view: &sync_store::SpaceView<'_>,
    tree: &TreeId,
    heads: &[ChangeId],
    reached: Seq,
) -> Result<bool, StoreError> {
    for head in heads {
        if view.change(tree, head)?.is_none_or(|change| change.at > reached) {
            return Ok(false);
        }
    }
    // A purged tree has no heads, and its purge may lie ahead.
    Ok(view.tree(tree)?.and_then(|t| t.purged).is_none_or(|purge| purge.at <= reached))
}

/// The disk may have changed a stored record. A payload that is not the signed one stays here; the receiver sees that it is
/// missing and asks elsewhere.
fn withhold_damage(space: SpaceId, row: &mut LogRow) {
    if !row.is_intact() {
        error!(space = %space.short(), seq = row.position.seq.0, "a stored record is damaged and is not sent");
        row.record.payload = None;
    }
}

// ---- helpers --------------------------------------------------------------------------------------------------------

/// The node's own conditions at this moment.
fn admission(
    (host, recovering): &(Host, Recovering),
    tx: &mut WriteTx<'_>,
    space: SpaceId,
    authority: sync_core::ids::AuthorityId,
) -> Result<Admission, StoreError> {
    let durable_seq = tx.durable_seq(space)?;
    Ok(Admission { authority, now_ms: host.wall_ms(), durable_seq, recovering: recovering.left(host) })
}

fn row(tx: &ReadTx<'_>, space: SpaceId) -> Result<SpaceRow, CallError> {
    tx.space(space)?.ok_or_else(|| CallError::space_unknown(&space))
}

fn end_of(tx: &ReadTx<'_>, space: SpaceId) -> Result<Seq, CallError> {
    Ok(row(tx, space)?.position.seq)
}

fn standing(tx: &ReadTx<'_>, space: SpaceId, trees: &[TreeId]) -> Result<Standing, CallError> {
    let unknown = || CallError::space_unknown(&space);
    let row = row(tx, space)?;
    let acl = tx.acl(space)?.ok_or_else(unknown)?;
    let digest = tx.digest(space)?.ok_or_else(unknown)?;
    let mut named = Vec::with_capacity(trees.len());
    for tree in trees {
        // A tree without heads (unknown, or purged) is named too, with the hash of none.
        let heads = tx.tree(space, *tree)?.map(|state| state.heads).unwrap_or_default();
        named.push((*tree, heads_hash(tree, &heads)));
    }
    Ok(Standing {
        position: row.position,
        acl_head: row.acl_head,
        epoch: acl.epoch,
        history: row.history,
        set_digest: digest.finish(),
        trees: named,
    })
}

/// Decides one record and appends it if it may stand. A broken rule is data; only the store's own failure is an error.
fn submit(
    tx: &mut WriteTx<'_>,
    space: SpaceId,
    submission: &Submission,
    admission: &Admission,
) -> Result<Verdict, StoreError> {
    let view = tx.view(space)?.ok_or(StoreError::UnknownSpace { space })?;
    let end = view.position().seq;
    let decided = admit_and_decide(&view, submission, admission);
    drop(view);
    match decided {
        Ok(Outcome::Known(seq)) => Ok(Ok(Taken::Known(seq))),
        Ok(Outcome::Append(decision)) => {
            let ends_space = decision.acl().is_some_and(|acl| acl.deleted);
            let seq = tx.append(space, decision)?.seq;
            if ends_space {
                forget_founding(tx, space)?;
            }
            Ok(Ok(Taken::Accepted(seq)))
        }
        Err(DecideError::Reject(reject)) => Ok(Err(Failure::from(&reject).at(end))),
        Err(DecideError::Refused(refusal)) => Ok(Err(Failure::from(&refusal).at(end))),
        Err(DecideError::View(error)) => Err(error),
    }
}

/// The node's own conditions come first, but a record that stands in the log needs none.
fn admit_and_decide<V: log::View>(
    view: &V,
    submission: &Submission,
    admission: &Admission,
) -> Result<Outcome, DecideError<V::Error>> {
    match log::admit(view, submission, admission) {
        Ok(()) => log::decide(view, submission),
        Err(DecideError::Refused(refusal)) => match log::decide(view, submission) {
            Ok(Outcome::Known(seq)) => Ok(Outcome::Known(seq)),
            Err(DecideError::View(error)) => Err(DecideError::View(error)),
            Ok(Outcome::Append(_)) | Err(DecideError::Reject(_) | DecideError::Refused(_)) => Err(refusal.into()),
        },
        Err(error) => Err(error),
    }
}

fn found(
    tx: &mut WriteTx<'_>,
    session: &Session,
    genesis: &Genesis,
    history: HistoryId,
    spaces_max: u64,
) -> Result<Option<SpaceRow>, CallError> {
    let space = genesis.space();
    if let Some(acl) = tx.acl(space)? {
        // Its founder may have left it since.
        require_member(&acl, session)?;
        return same_beginning(tx, genesis, &acl).map(Some);
    }
    let owner = genesis.acl().owner;
    let founded = spaces_founded(tx, &owner)?;
    if founded >= spaces_max {
        let text = format!("this account has founded {founded} spaces here; the limit is {spaces_max}");
        return Err(CallError::new(Code::SpaceCreationRefused, text));
    }
    match tx.create_space(genesis, history)? {
        Creation::Created => tx.kv_put(&founded_key(&owner), &(founded + 1).to_be_bytes())?,
        Creation::AlreadyThere => {}
    }
    Ok(tx.space(space)?)
}

fn founded_key(owner: &AccountId) -> String {
    format!("spaces-founded/{owner}")
}

/// How many spaces an account founded here that are not deleted.
fn spaces_founded(tx: &ReadTx<'_>, owner: &AccountId) -> Result<u64, StoreError> {
    let kept = tx.kv(&founded_key(owner))?;
    Ok(kept.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// A space that was deleted does not count any more: for the account that founded it, whoever owned it in the end.
fn forget_founding(tx: &mut WriteTx<'_>, space: SpaceId) -> Result<(), StoreError> {
    let Some(row) = tx.space(space)? else { return Ok(()) };
    let damaged =
        |e: sync_core::record::VerifyError| StoreError::Damaged { what: format!("the header of {space}: {e}") };
    let owner = verify_as::<SpaceHeader>(row.header).map_err(damaged)?.body().owner;
    let founded = spaces_founded(tx, &owner)?;
    tx.kv_put(&founded_key(&owner), &founded.saturating_sub(1).to_be_bytes())
}

/// A repetition is answered with where the space stands; another beginning of the same space is a conflict.
fn same_beginning(tx: &ReadTx<'_>, genesis: &Genesis, acl: &AclState) -> Result<SpaceRow, CallError> {
    let space = genesis.space();
    let [_, home] = genesis.entries();
    if tx.position_at(space, home.position.seq)? == Some(home.position) {
        return row(tx, space);
    }
    let text = "the space has begun with another SetHome: read its ACL";
    Err(Failure { acl_head: Some(acl.head), ..Failure::new(Code::AclConflict, text) }.into())
}

fn read_device_list(bytes: &[u8]) -> Result<Verified<DeviceList>, StoreError> {
    let damaged = |e: sync_core::record::VerifyError| StoreError::Damaged { what: format!("a kept device list: {e}") };
    RawRecord::from_slice(bytes).and_then(verify_as).map_err(damaged)
}
