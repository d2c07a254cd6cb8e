//! One open space. Opening it *is* starting its sync: there is nothing else to start, and nothing to forget.

mod ahead;
mod apply;
mod contained;
mod fetch;
mod heads;
mod headsync;
mod judge;
mod live;
mod outbox;
mod project;
mod push;
pub(crate) mod recovery;
mod syncer;
mod worker;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use sync_core::acl::AclState;
use sync_core::ids::{AccountId, Chain, Epoch, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{AclRecord, AclRoot, Kind, RawRecord, Role, verify_as};
use sync_core::session::Moment;
use sync_e2ee::KeyRing;
use sync_store::{PeerKind, PeerRow, ReadTx, WriteId, WriteState, WriteTx};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::account;
use crate::client::Shared;
use crate::error::{ReadError, WriteError};
use crate::events::{Event, Events};
use crate::objects::Objects;
use crate::status::{Confirmed, SpaceStatus, SpaceTrouble};
use crate::types::SPACE_INFO;

pub(crate) use contained::contained;
pub(crate) use live::read_object;
pub use live::{
    BadChangeCursor, ChangeCursor, ChangeFeed, ChangePage, LoggedChange, Place, Reduced, Reduction, ReplayWhy,
    ToldStep, Tree, TreeCounters, TreeSnapshot, TreeStep, TreeWatch,
};
pub use outbox::{RefusedContent, RefusedWrite};
pub(crate) use project::{Content, open as open_change, open_row, type_tag};
pub(crate) use worker::Inbound;
pub(crate) use write::{MakeOps, ObjectKey};
pub use write::{NewTree, ParentRef, TreeWrite, TreeWritten};

/// What was heard longer ago is not fresh: two heartbeats.
pub(crate) const STALE: Duration = limits::HEARTBEAT_INTERVAL.saturating_mul(2);
const EVENTS_KEPT: usize = 4096;
const INBOX_FRAMES: usize = 8;

/// An open space: a cheap handle. Dropping every handle does not stop its sync; closing the client does.
#[derive(Clone)]
pub struct Space {
    pub(crate) inner: Arc<SpaceInner>,
}

/// The one open instance of a space.
pub(crate) struct SpaceInner {
    pub(crate) id: SpaceId,
    pub(crate) shared: Arc<Shared>,
    /// Replaced as a whole after the commit that moved it.
    ring: RwLock<Arc<KeyRing>>,
    live: live::LiveTrees,
    events: broadcast::Sender<Event>,
    pub(crate) inbox: mpsc::Sender<Inbound>,
    push_wanted: Notify,
    /// Something else than a new write happened to what is pending.
    outbox_moved: AtomicBool,
    /// Something more is wanted, and kept.
    sync_wanted: Notify,
    /// Held while trees are judged again: one reading of the log serves all that are wanted.
    judging: tokio::sync::Mutex<()>,
    /// What trees that were fetched ahead of the tail are read with.
    ahead: RwLock<Option<Arc<ahead::Ahead>>>,
    /// The ACL that they are decided with.
    ahead_acl: ahead::Shown,
    pub(crate) recovery: recovery::Recovery,
    trouble: Mutex<SpaceTrouble>,
    node_seq: watch::Sender<Seq>,
    /// Up to here, keys, live trees and events have followed the log.
    announced: AtomicU64,
    confirmed: Mutex<Option<Confirmed>>,
    /// When the node was last asked something about this space that it answered.
    heard: Mutex<Option<Moment>>,
    /// True while a task does what was left to be done.
    pub(crate) driving: AtomicBool,
    /// Ends with the client, or when the space is forgotten.
    pub(crate) closed: CancellationToken,
    /// Moves whenever anything about this space's sync may have changed.
    pub(crate) moved: watch::Sender<u64>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Space").field(&self.inner.id).finish()
    }
}

/// A member, as the ACL and its profile say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    pub account: AccountId,
    pub role: Role,
    /// What the member called itself when it joined; encrypted to the space.
    pub name: Option<String>,
    pub joined: Seq,
}

impl SpaceInner {
    /// Opens a space that stands in the store, and starts its tasks.
    pub(crate) fn open(shared: &Arc<Shared>, id: SpaceId) -> Result<Arc<Self>, ReadError> {
        let ring = shared.store.read(|tx| read_ring(tx, shared, id))?;
        let confirmed = shared.store.read(|tx| read_confirmed(tx, shared, id))?;
        let ahead = shared.store.read(|tx| ahead::read_ahead(tx, id, &ring.ring))?;
        let (inbox, inbound) = mpsc::channel(INBOX_FRAMES);
        let inner = Arc::new(Self {
            id,
            shared: shared.clone(),
            ring: RwLock::new(Arc::new(ring.ring)),
            live: live::LiveTrees::new(shared.cached_trees),
            events: broadcast::channel(EVENTS_KEPT).0,
            inbox,
            push_wanted: Notify::new(),
            outbox_moved: AtomicBool::new(false),
            sync_wanted: Notify::new(),
            judging: tokio::sync::Mutex::default(),
            ahead: RwLock::new(ahead),
            ahead_acl: ahead::Shown::default(),
            recovery: recovery::Recovery::default(),
            trouble: Mutex::new(SpaceTrouble { key: ring.problem, ..SpaceTrouble::default() }),
            node_seq: watch::channel(Seq::ZERO).0,
            announced: AtomicU64::new(shared.store.watch(id).borrow().seq.0),
            confirmed: Mutex::new(confirmed),
            heard: Mutex::new(None),
            driving: AtomicBool::new(false),
            closed: shared.cancel.child_token(),
            moved: watch::channel(0).0,
        });
        shared.spawn(worker::run(inner.clone(), inbound));
        shared.spawn(push::run(inner.clone()));
        shared.spawn(syncer::run(inner.clone()));
        shared.spawn(recovery::salvage::run(inner.clone()));
        Ok(inner)
    }

    pub(crate) fn ring(&self) -> Arc<KeyRing> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys as of an ACL. Those that were just committed are published a moment later: until then the log has them.
    pub(crate) fn ring_of(&self, tx: &ReadTx<'_>, acl: &AclState) -> Result<Arc<KeyRing>, ReadError> {
        let ring = self.ring();
        if ring.keys(acl.epoch).is_some() {
            return Ok(ring);
        }
        Ok(Arc::new(read_ring(tx, &self.shared, self.id)?.ring))
    }

    fn publish_ring(&self, ring: KeyRing) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }

    pub(crate) fn acl(&self) -> Result<Arc<AclState>, ReadError> {
        self.shared.store.read(|tx| tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id)))
    }

    /// The end of the log here.
    pub(crate) fn cursor(&self) -> Seq {
        self.shared.store.watch(self.id).borrow().seq
    }

    /// The end of what readers of this space were told of.
    pub(crate) fn announced(&self) -> Seq {
        Seq(self.announced.load(Ordering::Acquire))
    }

    pub(crate) fn chain_at(&self, seq: Seq) -> Result<Option<Chain>, ReadError> {
        Ok(self.shared.store.read(|tx| tx.position_at(self.id, seq))?.map(|p| p.chain))
    }

    pub(crate) fn trouble(&self) -> SpaceTrouble {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_trouble(&self, note: impl FnOnce(&mut SpaceTrouble)) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut trouble);
        trouble.date(self.id, self.shared.host.wall_ms());
        drop(trouble);
        self.touch();
    }

    pub(crate) fn touch(&self) {
        self.moved.send_modify(|n| *n += 1);
    }

    pub(crate) fn node_seq(&self) -> Seq {
        *self.node_seq.borrow()
    }

    pub(crate) fn saw_node_seq(&self, seq: Seq) {
        self.node_seq.send_if_modified(|known| {
            let newer = seq > *known;
            *known = seq.max(*known);
            newer
        });
    }

    pub(crate) fn confirmed(&self) -> Option<Confirmed> {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both sides were found equal; kept, so that a later process knows when that was.
    async fn note_confirmed(&self, confirmed: Confirmed) {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(confirmed);
        let (space, peer) = (self.id, *self.shared.address.authority.as_bytes());
        let row = PeerRow { peer, kind: PeerKind::Node, confirmed: Seq(confirmed.seq), confirmed_ms: confirmed.at_ms };
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.put_peer(space, &row)?) };
        if let Err(error) = self.shared.store.write(job).await {
            tracing::warn!(space = %self.id.short(), error = %error, "a comparison could not be noted");
        }
        self.touch();
    }

    /// The node answered what it was asked at that moment: whatever it says is at least as new.
    pub(crate) fn note_heard(&self, asked: Moment) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let was_stale = heard.is_none_or(|at| self.shared.host.now().0.saturating_sub(at.0) > STALE);
        *heard = (*heard).max(Some(asked));
        drop(heard);
        if was_stale {
            self.touch();
        }
    }

    /// Milliseconds since the node is known to have said nothing new about this space; `None` when that is too long ago, or
    /// there is no connection.
    pub(crate) fn fresh_ms(&self) -> Option<u64> {
        self.shared.connection.borrow().online()?;
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = heard.map(|at| self.shared.host.now().0.saturating_sub(at.0));
        let age = [heard, self.fresh_age()].into_iter().flatten().min()?;
        (age <= STALE).then(|| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn feed(&self) -> Events {
        Events::new(self.events.subscribe(), self.closed.clone())
    }

    fn emit(&self, event: Event) {
        self.shared.own.heard(self.id, &event);
        // Nobody listening is fine: the feed is a hint over durable rows.
        let _ = self.events.send(event);
    }

    pub(crate) fn write_state(&self, write: WriteId) -> Result<Option<WriteState>, ReadError> {
        Ok(self.shared.store.read(|tx| tx.write_state(self.id, write))?)
    }

    /// The latest receipt that the node gave for this space.
    pub(crate) fn last_receipt(&self) -> Result<Option<SignedReceipt>, ReadError> {
        let stored = self.shared.store.read(|tx| tx.node_state(self.id))?.receipt;
        Ok(stored.and_then(|bytes| SignedReceipt::from_text(std::str::from_utf8(&bytes).ok()?).ok()))
    }
}

/// When a comparison with the node last found both equal.
fn read_confirmed(tx: &ReadTx<'_>, shared: &Shared, space: SpaceId) -> Result<Option<Confirmed>, ReadError> {
    let own = shared.address.authority;
    let row = tx.peers(space)?.into_iter().find(|row| row.peer == *own.as_bytes());
    Ok(row.map(|row| Confirmed { seq: row.confirmed.0, at_ms: row.confirmed_ms }))
}

/// The keys that the log gives us, and what was wrong with them if those of the present epoch are missing.
pub(crate) struct RingRead {
    pub(crate) ring: KeyRing,
    pub(crate) problem: Option<String>,
}

/// Rebuilds the keys of a space from its ACL log.
pub(crate) fn read_ring(tx: &ReadTx<'_>, shared: &Shared, space: SpaceId) -> Result<RingRead, ReadError> {
    let acl = tx.acl(space)?.ok_or(ReadError::UnknownSpace(space))?;
    let mut read = RingRead { ring: KeyRing::new(shared.account.clone()), problem: None };
    let mut epoch = Epoch(0);
    let header = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.header;
    let label = account::label_of(header).filter(|_| acl.owner == shared.account.id());
    for (_, record) in tx.acl_records(space)? {
        let result = match &label {
            Some(label) if record.kind == Kind::AclRoot => account::absorb_derived(&mut read.ring, record, label),
            Some(_) | None => absorb(&mut read.ring, record, &mut epoch, &acl),
        };
        if let Err(problem) = result {
            read.problem.get_or_insert(problem);
        }
    }
    read.problem = owed_keys(&acl, &shared.account.id(), &read.ring, read.problem);
    Ok(read)
}

/// What a member should have and does not hold. An old wrong seal that was made good is history.
fn owed_keys(acl: &AclState, account: &AccountId, ring: &KeyRing, problem: Option<String>) -> Option<String> {
    let member = acl.members.get(account)?;
    let mut missing =
        acl.epochs.range(member.reads_from..).map(|(epoch, _)| epoch.0).filter(|e| !ring.holds(Epoch(*e)));
    let first = missing.next()?;
    let more = missing.count();
    let why = problem.unwrap_or_else(|| "no key in the log opens it".to_owned());
    Some(match more {
        0 => format!("of epoch {first}: {why}"),
        more => format!("of epoch {first} and {more} more: {why}"),
    })
}

pub(crate) fn absorb(ring: &mut KeyRing, record: RawRecord, epoch: &mut Epoch, acl: &AclState) -> Result<(), String> {
    let published = |e: Epoch| acl.epochs.get(&e).map(|i| (i.key_id, i.history_id));
    if record.kind == Kind::AclRoot {
        let root = verify_as::<AclRoot>(record).map_err(|e| e.to_string())?;
        return ring.absorb_root(root.body()).map_err(|e| e.to_string());
    }
    let record = verify_as::<AclRecord>(record).map_err(|e| e.to_string())?;
    let before = *epoch;
    if let Some(seq) = acl.records.get(&record.id().into()) {
        *epoch = acl.epochs.iter().filter(|(_, info)| info.since <= *seq).map(|(e, _)| *e).max().unwrap_or(before);
    }
    ring.absorb(record.body(), before, &published).map_err(|e| e.to_string())
}

impl Space {
    /// The id.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        self.inner.id
    }

    /// The JSON objects of the space.
    #[must_use]
    pub fn objects(&self) -> Objects {
        Objects::new(self.inner.clone())
    }

    /// The name that its admins gave it, if it is here yet.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn name(&self) -> Result<Option<String>, ReadError> {
        match self.objects().get(SPACE_INFO, "self") {
            Ok(object) => Ok(object.and_then(|o| o.fields.get("name").and_then(|n| n.as_str().map(str::to_owned)))),
            Err(ReadError::NoKeys) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The one live instance of a tree; `None` if neither the log nor the outbox knows it.
    ///
    /// # Errors
    /// [`ReadError`]. A load that failed is not remembered.
    pub fn tree(&self, tree: TreeId) -> Result<Option<Tree>, ReadError> {
        self.inner.live_tree(tree)
    }

    /// Every tree of the log, sorted by id, after `after`, at most `max`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn trees(&self, after: Option<TreeId>, max: usize) -> Result<Vec<TreeId>, ReadError> {
        let elements = self.inner.shared.store.read(|tx| tx.elements(self.inner.id, after, max))?;
        Ok(elements.iter().filter_map(sync_core::reconcile::Element::key).collect())
    }

    /// Who is in the space, by account.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn members(&self) -> Result<Vec<MemberInfo>, ReadError> {
        let acl = self.inner.acl()?;
        let ring = self.inner.ring();
        let info = |(account, member): (&AccountId, &sync_core::acl::Member)| MemberInfo {
            account: *account,
            role: member.role,
            name: crate::acl::open_name(&ring, self.inner.id, member.profile_epoch, &member.profile_ct)
                .or_else(|| self.inner.shared.own_name(account)),
            joined: member.joined,
        };
        Ok(acl.members.iter().map(info).collect())
    }

    /// The ACL as of the end of the log here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn acl(&self) -> Result<Arc<AclState>, ReadError> {
        self.inner.acl()
    }

    /// A feed of what happens in the space from now on, own writes included as soon as they are kept. It is a hint over durable
    /// rows and remembers nothing; [`Space::events_from`] goes on where a reader left off.
    #[must_use]
    pub fn events(&self) -> Events {
        self.inner.feed()
    }

    /// How the space stands now.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn status(&self) -> Result<SpaceStatus, ReadError> {
        self.inner.status()
    }

    /// Waits until something about the sync of this space may have changed since the last call on `since`.
    pub async fn status_changed(&self, since: &mut u64) {
        let mut moved = self.inner.moved.subscribe();
        tokio::select! {
            biased;
            // An error means that the space is gone; the caller's next read says so.
            _ = moved.wait_for(|now| *now > *since) => {}
            () = self.inner.closed.cancelled() => {}
        }
        *since = *moved.borrow();
    }

    /// The latest receipt that the node gave for this space.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn receipt(&self) -> Result<Option<SignedReceipt>, ReadError> {
        self.inner.last_receipt()
    }

    /// What became of a write.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn write_state(&self, write: WriteId) -> Result<Option<WriteState>, ReadError> {
        self.inner.write_state(write)
    }

    /// Waits until a write survives power loss *here*; says nothing about the node.
    ///
    /// # Errors
    /// If the store failed.
    pub async fn durable_locally(&self) -> Result<(), WriteError> {
        let commit = *self.inner.shared.store.watch_commits().borrow();
        self.inner.shared.store.durable(commit).await.map_err(WriteError::OutcomeUnknown)
    }

    /// Forgets a refused write: it no longer stands in the way of `await_synced`.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn dismiss(&self, write: WriteId) -> Result<(), WriteError> {
        self.inner.set_refused_aside(write).await
    }

    /// How long the node has been silent at most, if the connection is fresh.
    #[must_use]
    pub fn fresh_within(&self) -> Option<Duration> {
        self.inner.fresh_ms().map(Duration::from_millis)
    }
}
