//! Making changes: parents, keys and signature are chosen in the transaction that keeps the pending row, so a write is either
//! whole and durable or it never was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sync_core::acl::AclState;
use sync_core::ids::{ChangeId, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{Reject, TreeState, may_purge, may_write};
use sync_core::record::{
    ChangeKind, Kind, PayloadClaim, RawRecord, Seen, Tombstone, TreeChange, TreeName, TreeRoot, Verified, WriteRule,
    verify_as,
};
use sync_e2ee::{ContentContext, ContentError, Envelope, KeyRing, encrypt, object_root};
use sync_store::{CommitNo, PendingWrite, ReadTx, WriteId, WriteState, WriteTx};

use super::live::{overlaid_heads, overlaid_state};
use super::project::stored_state;
use super::recovery::seen_now;
use super::{Space, SpaceInner, read_ring};
use crate::client::Shared;
use crate::error::{ReadError, WriteError, from_store_write};
use crate::events::Event;
use crate::object::{self, ObjectState, Op};

const NAME_BYTES_MAX: usize = 256;

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectKey {
    pub(crate) object_type: String,
    pub(crate) id: String,
}

impl ObjectKey {
    pub(crate) fn new(object_type: &str, id: &str) -> Result<Self, WriteError> {
        for (what, text) in [("type", object_type), ("id", id)] {
            if text.is_empty() || text.len() > NAME_BYTES_MAX {
                return Err(WriteError::BadName { what, max: NAME_BYTES_MAX });
            }
        }
        Ok(Self { object_type: object_type.to_owned(), id: id.to_owned() })
    }
}

/// A tree whose changes are the application's own: a foreign CRDT, a history to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTree {
    /// What the payloads are; encrypted.
    pub data_type: String,
    pub write_rule: WriteRule,
}

/// Decides what to write, given what a reader sees now.
pub(crate) type MakeOps = dyn FnOnce(Option<&ObjectState>) -> Result<Vec<Op>, WriteError> + Send;

impl SpaceInner {
    /// The tree that an object is, if the keys are here.
    pub(crate) fn object_tree(&self, key: &ObjectKey) -> Result<TreeId, ReadError> {
        let named = |ring: &KeyRing| Ok(object_root_of(&self.shared, self.id, ring, key)?.tree_id());
        match named(&self.ring()) {
            Err(ReadError::NoKeys) => {}
            found => return found,
        }
        match self.ahead() {
            // The log here does not reach the keys yet.
            Some(ahead) => named(&ahead.ring),
            // Or they were committed just now: who could write already can read.
            None => named(&self.shared.store.read(|tx| read_ring(tx, &self.shared, self.id))?.ring),
        }
    }

    /// Writes operations on one object; `None` if there was nothing to write.
    pub(crate) async fn write_object(
        self: &std::sync::Arc<Self>,
        key: ObjectKey,
        make: Box<MakeOps>,
    ) -> Result<Option<WriteId>, WriteError> {
        Ok(self.write_objects(vec![(key, make)]).await?.pop().flatten())
    }

    /// Writes operations on several objects in one transaction: all or none.
    pub(crate) async fn write_objects(
        self: &std::sync::Arc<Self>,
        writes: Vec<(ObjectKey, Box<MakeOps>)>,
    ) -> Result<Vec<Option<WriteId>>, WriteError> {
        let space = self.clone();
        let job = move |tx: &mut WriteTx<'_>| -> Result<Vec<Option<Made>>, WriteError> {
            let maker = Maker::new(tx, &space)?;
            writes.into_iter().map(|(key, make)| maker.write_object(tx, key, make)).collect()
        };
        let made = self.keep(job, |made| made.iter().flatten().collect()).await?;
        Ok(made.into_iter().map(|made| made.map(|m| m.write)).collect())
    }

    /// Runs a write to its end, and tells of it and has it pushed even if the caller stops waiting half-way.
    async fn keep<T: Send + 'static>(
        self: &std::sync::Arc<Self>,
        job: impl FnOnce(&mut WriteTx<'_>) -> Result<T, WriteError> + Send + 'static,
        told: impl FnOnce(&T) -> Vec<&Made> + Send + 'static,
    ) -> Result<T, WriteError> {
        let space = self.clone();
        let keeping = async move {
            let written = space.shared.store.write(job).await.map_err(from_store_write::<WriteError>)?;
            told(&written.value).into_iter().for_each(|made| space.announce(made, written.commit));
            space.push_wanted.notify_one();
            space.touch();
            Ok(written.value)
        };
        self.shared.to_its_end(keeping).await?
    }

    fn announce(&self, made: &Made, commit: CommitNo) {
        self.refresh_to(made.tree, commit);
        self.emit(match &made.key {
            Some(key) => Event::Object {
                space: self.id,
                tree: made.tree,
                object_type: key.object_type.clone(),
                id: key.id.clone(),
            },
            None => Event::Tree { space: self.id, tree: made.tree },
        });
    }

    pub(super) async fn set_refused_aside(self: &std::sync::Arc<Self>, write: WriteId) -> Result<(), WriteError> {
        let (here, space) = (self.clone(), self.id);
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), WriteError> {
            if let Some(WriteState::Refused(_)) = tx.write_state(space, write)? {
                tx.set_write_state(write, &WriteState::Dismissed)?;
            }
            Ok(())
        };
        let keeping = async move {
            here.shared.store.write(job).await.map_err(from_store_write::<WriteError>)?;
            here.touch();
            Ok(())
        };
        self.shared.to_its_end(keeping).await?
    }

    /// Ends a tree for good: its content is dropped here, at the node and at every member, and nobody can write to it again.
    pub(crate) async fn purge(
        self: &std::sync::Arc<Self>,
        tree: TreeId,
        key: Option<ObjectKey>,
    ) -> Result<WriteId, WriteError> {
        let space = self.clone();
        let job = move |tx: &mut WriteTx<'_>| Maker::new(tx, &space)?.purge(tx, tree, key);
        let made = self.keep(job, |made| vec![made]).await?;
        Ok(made.write)
    }
}

/// What a rebuilt change stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reparent {
    /// The changes it stood on, as they are now called.
    Keep,
    /// The heads that are here, merged.
    OntoHeads,
}

struct Made {
    write: WriteId,
    tree: TreeId,
    change: ChangeId,
    key: Option<ObjectKey>,
}

/// Everything that making a change needs, fixed for one transaction.
pub(super) struct Maker<'a> {
    space: SpaceId,
    shared: &'a Shared,
    ring: Arc<KeyRing>,
    acl: Arc<AclState>,
    seen: Option<Seen>,
}

/// Where a change goes.
struct Place {
    root: TreeRoot,
    tree: TreeId,
    logged: Option<TreeState>,
    parents: Vec<ChangeId>,
    /// The root travels with the first change of a tree.
    root_record: Option<RawRecord>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(tx: &WriteTx<'_>, space: &'a SpaceInner) -> Result<Self, WriteError> {
        let acl = tx.acl(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?;
        let ring = space.ring_of(tx, &acl)?;
        Ok(Self::with(tx, &space.shared, acl, ring)?)
    }

    /// With an ACL and the keys as of it.
    pub(super) fn with(
        tx: &ReadTx<'_>,
        shared: &'a Shared,
        acl: Arc<AclState>,
        ring: Arc<KeyRing>,
    ) -> Result<Self, ReadError> {
        Ok(Self { space: acl.space, shared, ring, seen: seen_now(tx, acl.space)?, acl })
    }

    pub(super) fn space(&self) -> SpaceId {
        self.space
    }

    fn write_object(
        &self,
        tx: &mut WriteTx<'_>,
        key: ObjectKey,
        make: Box<MakeOps>,
    ) -> Result<Option<Made>, WriteError> {
        let root = object_root_of(self.shared, self.space, &self.ring, &key)?;
        let tree = root.tree_id();
        let pending = tx.pending_of_tree(self.space, tree)?;
        let logged = stored_state(tx, self.shared, self.space, tree)?;
        let state = overlaid_state(logged, self.shared, &pending)?;
        let ops = make(state.as_ref())?;
        if ops.is_empty() {
            return Ok(None);
        }
        let envelope = Envelope {
            object_type: key.object_type.clone(),
            object_id: key.id.clone(),
            data_type: object::DATA_TYPE.to_owned(),
            payload: object::encode(&ops),
        };
        let place = self.place(tx, root, &pending)?;
        let made = self.append(tx, place, &envelope)?;
        Ok(Some(Made { key: Some(key), ..made }))
    }

    /// On top of everything that is here.
    fn place(&self, tx: &WriteTx<'_>, root: TreeRoot, pending: &[PendingWrite]) -> Result<Place, WriteError> {
        let tree = root.tree_id();
        let logged = tx.tree(self.space, tree)?;
        self.check(tree, &root, logged.as_ref(), pending)?;
        let heads = overlaid_heads(logged.as_ref().map(|t| t.heads.clone()).unwrap_or_default(), pending);
        let parents = parents_of(tree, &heads);
        let root_record = if logged.is_none() && pending.is_empty() { Some(root_record(&root)?) } else { None };
        Ok(Place { root, tree, logged, parents, root_record })
    }

    fn check(
        &self,
        tree: TreeId,
        root: &TreeRoot,
        logged: Option<&TreeState>,
        pending: &[PendingWrite],
    ) -> Result<(), WriteError> {
        let author = self.shared.account.id();
        if self.acl.deleted {
            return Err(Reject::SpaceDeleted.into());
        }
        may_write(&self.acl, tree, root, logged, &author, &self.acl.head)?;
        if pending.iter().any(is_purge) {
            return Err(Reject::TreePurged { tree }.into());
        }
        if root.write_rule.once && !pending.is_empty() {
            return Err(Reject::OnceTaken { tree }.into());
        }
        Ok(())
    }

    fn purge(&self, tx: &mut WriteTx<'_>, tree: TreeId, key: Option<ObjectKey>) -> Result<Made, WriteError> {
        let pending = tx.pending_of_tree(self.space, tree)?;
        if pending.iter().any(is_purge) {
            return Err(Reject::TreePurged { tree }.into());
        }
        self.may_purge(tx, tree)?;
        let named = key.clone().unwrap_or(ObjectKey { object_type: String::new(), id: String::new() });
        let (object_type, object_id) = (named.object_type, named.id);
        let envelope = Envelope { object_type, object_id, data_type: PURGE.to_owned(), payload: Bytes::new() };
        let record = self.tombstone(tree)?;
        let local = self.shared.local.seal_row(tree.as_bytes(), &encode_local(&envelope), &mut self.shared.host.rng());
        let change = record.id().into();
        let write = tx.put_pending(self.space, tree, None, record.raw(), &local)?;
        Ok(Made { write, tree, change, key })
    }

    fn tombstone(&self, tree: TreeId) -> Result<Verified<Tombstone>, WriteError> {
        let author = self.shared.account.id();
        let tombstone = Tombstone { tree, author, acl_head: self.acl.head, at_ms: self.shared.host.wall_ms() };
        Ok(Verified::sign(&tombstone, self.shared.account.signing_key(), None)?)
    }

    fn root_of(
        &self,
        tree: TreeId,
        logged: Option<&TreeState>,
        pending: &[PendingWrite],
    ) -> Result<TreeRoot, WriteError> {
        match (logged, pending.iter().find_map(|w| w.root.clone())) {
            (Some(tree), _) => Ok(tree.root),
            (None, Some(root)) => Ok(*verified::<TreeRoot>(root)?.body()),
            (None, None) => Err(Reject::MissingRoot { tree }.into()),
        }
    }

    /// What the rules say now to our ending a tree.
    pub(super) fn may_purge(&self, tx: &WriteTx<'_>, tree: TreeId) -> Result<(), WriteError> {
        let logged = tx.tree(self.space, tree)?;
        let pending = tx.pending_of_tree(self.space, tree)?;
        let root = self.root_of(tree, logged.as_ref(), &pending)?;
        if self.acl.deleted {
            return Err(Reject::SpaceDeleted.into());
        }
        let author = self.shared.account.id();
        Ok(may_purge(&self.acl, tree, &root, logged.as_ref(), &author, &self.acl.head)?)
    }

    /// What the rules say now to our writing to a tree at all.
    pub(super) fn may_write(&self, tx: &WriteTx<'_>, tree: TreeId) -> Result<(), WriteError> {
        let logged = tx.tree(self.space, tree)?;
        let pending = tx.pending_of_tree(self.space, tree)?;
        let root = self.root_of(tree, logged.as_ref(), &pending)?;
        self.check(tree, &root, logged.as_ref(), &[])
    }

    fn append(&self, tx: &mut WriteTx<'_>, place: Place, envelope: &Envelope) -> Result<Made, WriteError> {
        let Place { root, tree, logged: _, parents, root_record } = place;
        let change = self.sign(root.space, tree, parents, envelope)?;
        let local = self.shared.local.seal_row(tree.as_bytes(), &encode_local(envelope), &mut self.shared.host.rng());
        let id = change.id().into();
        let write = tx.put_pending(self.space, tree, root_record.as_ref(), change.raw(), &local)?;
        Ok(Made { write, tree, change: id, key: None })
    }

    fn sign(
        &self,
        space: SpaceId,
        tree: TreeId,
        parents: Vec<ChangeId>,
        envelope: &Envelope,
    ) -> Result<Verified<TreeChange>, WriteError> {
        let (epoch, author, kind) = (self.acl.epoch, self.shared.account.id(), ChangeKind::Content);
        let keys = self.ring.keys(epoch).ok_or(ReadError::NoKeys)?;
        let context = ContentContext { space, tree, epoch, author, kind };
        let encrypted = encrypt(keys, &context, envelope, &mut self.shared.host.rng())?;
        let change = TreeChange {
            tree,
            parents,
            acl_head: self.acl.head,
            epoch,
            author,
            at_ms: self.shared.host.wall_ms(),
            seen: self.seen,
            kind,
            nonce: encrypted.nonce,
            payload: PayloadClaim::of(&encrypted.ciphertext),
        };
        Ok(Verified::sign(&change, self.shared.account.signing_key(), Some(encrypted.ciphertext))?)
    }

    /// Makes pending writes of a tree anew on the present ACL and epoch: those that `rebuild` names, and what builds on them.
    pub(super) fn rebuild(&self, tx: &mut WriteTx<'_>, tree: TreeId, rebuild: Rebuild) -> Result<Rebuilt, WriteError> {
        let pending = tx.pending_of_tree(self.space, tree)?;
        let logged = tx.tree(self.space, tree)?;
        let root = self.root_of(tree, logged.as_ref(), &pending)?;
        let mut renamed = BTreeMap::new();
        for write in &pending {
            if tx.is_salvage_waiting(self.space, write.record.id())? {
                // It may come back as it was.
                continue;
            }
            if is_purge(write) {
                if rebuild.names(self, write)? {
                    tx.rebuild_pending(write.id, None, self.tombstone(tree)?.raw())?;
                }
                continue;
            }
            let old = verified::<TreeChange>(write.record.clone())?;
            // What does not build on it may be on its way through the log already, under the id it has.
            let builds_on_it = old.body().parents.iter().any(|p| renamed.contains_key(p));
            if !builds_on_it && !rebuild.names(self, write)? {
                continue;
            }
            self.check(tree, &root, logged.as_ref(), &[])?;
            let parents = match rebuild {
                Rebuild::One(id, Reparent::OntoHeads) if write.id == id => {
                    parents_of(tree, &logged.as_ref().map(|t| t.heads.clone()).unwrap_or_default())
                }
                Rebuild::One(..) | Rebuild::Stale => rename(&old.body().parents, &renamed),
            };
            let change = self.sign(self.space, tree, parents, &local_envelope(self.shared, write)?)?;
            renamed.insert(ChangeId::from(old.id()), ChangeId::from(change.id()));
            tx.rebuild_pending(write.id, write.root.as_ref(), change.raw())?;
        }
        Ok(if renamed.is_empty() { Rebuilt::No } else { Rebuilt::Yes })
    }

    /// Makes a refused write anew, on top of everything that is here, and has it wait for the node again.
    pub(super) fn retry(&self, tx: &mut WriteTx<'_>, write: &PendingWrite) -> Result<(), WriteError> {
        let tree = write.tree;
        let pending = tx.pending_of_tree(self.space, tree)?;
        let logged = tx.tree(self.space, tree)?;
        let envelope = local_envelope(self.shared, write)?;
        let known = self.root_of(tree, logged.as_ref(), &pending);
        let root = match (known, &write.root) {
            (Ok(root), _) => root,
            (Err(_), Some(root)) => *verified::<TreeRoot>(root.clone())?.body(),
            (Err(error), None) if envelope.object_type.is_empty() => return Err(error),
            (Err(_), None) => {
                let key = ObjectKey { object_type: envelope.object_type.clone(), id: envelope.object_id.clone() };
                object_root_of(self.shared, self.space, &self.ring, &key)?
            }
        };
        if is_purge(write) {
            self.may_purge(tx, tree)?;
            tx.rebuild_pending(write.id, None, self.tombstone(tree)?.raw())?;
        } else {
            self.check(tree, &root, logged.as_ref(), &pending)?;
            // Rebuilding, refusing and pushing go by number: a write stands on earlier ones only.
            let earlier: Vec<_> = pending.iter().filter(|w| w.id < write.id).cloned().collect();
            let heads = overlaid_heads(logged.as_ref().map(|t| t.heads.clone()).unwrap_or_default(), &earlier);
            let begins = logged.is_none() && earlier.is_empty();
            let root_record = if begins { Some(root_record(&root)?) } else { None };
            let change = self.sign(self.space, tree, parents_of(tree, &heads), &envelope)?;
            tx.rebuild_pending(write.id, root_record.as_ref(), change.raw())?;
        }
        tx.set_write_state(write.id, &WriteState::Pending { attempts: 0, last_refusal: None, next_retry_ms: None })?;
        Ok(())
    }
}

/// Whether changes have new ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuilt {
    Yes,
    No,
}

/// Which writes of a tree are made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuild {
    One(WriteId, Reparent),
    /// Those that the ACL has passed: of an older epoch, or citing a record from before our present role.
    Stale,
}

impl Rebuild {
    fn names(self, maker: &Maker<'_>, write: &PendingWrite) -> Result<bool, WriteError> {
        match self {
            Self::One(id, _) => Ok(write.id == id),
            Self::Stale if is_purge(write) => {
                let old = verified::<Tombstone>(write.record.clone())?;
                Ok(maker.is_stale(&old.body().acl_head))
            }
            Self::Stale => {
                let old = verified::<TreeChange>(write.record.clone())?;
                Ok(old.body().epoch != maker.acl.epoch || maker.is_stale(&old.body().acl_head))
            }
        }
    }
}

impl Maker<'_> {
    fn is_stale(&self, acl_head: &sync_core::ids::AclId) -> bool {
        let since = self.acl.members.get(&self.shared.account.id()).map(|m| m.role_since);
        self.acl.records.get(acl_head).copied() < since
    }
}

/// The data type of the local row of a purge. It is never on the wire.
const PURGE: &str = "headwater.purge";

/// True if the write is a tombstone.
pub(super) fn is_purge(write: &PendingWrite) -> bool {
    write.record.kind == Kind::Tombstone
}

fn object_root_of(shared: &Shared, space: SpaceId, ring: &KeyRing, key: &ObjectKey) -> Result<TreeRoot, ReadError> {
    let name_key = ring.name_key().ok_or(ReadError::NoKeys)?;
    let rule = shared.types.rule(&key.object_type, &key.id);
    Ok(object_root(space, name_key, &key.object_type, &key.id, rule))
}

fn rename(parents: &[ChangeId], renamed: &BTreeMap<ChangeId, ChangeId>) -> Vec<ChangeId> {
    let parents: BTreeSet<_> = parents.iter().map(|p| *renamed.get(p).unwrap_or(p)).collect();
    parents.into_iter().collect()
}

/// A record of our own rows; one that does not verify means that the store was changed from outside.
fn verified<B: sync_core::record::Body>(record: RawRecord) -> Result<Verified<B>, WriteError> {
    verify_as(record).map_err(|_| ReadError::Row(ContentError::BadEnvelope).into())
}

fn root_record(root: &TreeRoot) -> Result<RawRecord, WriteError> {
    Ok(Verified::unsigned(root).expect("a root made here has the form that is checked here").into_raw())
}

/// At most 32 of the heads, or the root where there is none.
fn parents_of(tree: TreeId, heads: &BTreeSet<ChangeId>) -> Vec<ChangeId> {
    if heads.is_empty() {
        return vec![TreeChange::root_as_parent(tree)];
    }
    heads.iter().take(limits::PARENTS_MAX).copied().collect()
}

// ---- trees of the application's own -------------------------------------------------------------------------------------

/// One change to append to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeWrite {
    /// `None`: on top of everything that is here. Otherwise changes of this tree, logged, pending, or earlier in the same
    /// call; empty for a change that has nothing before it.
    pub parents: Option<Vec<ParentRef>>,
    pub payload: Bytes,
}

/// A parent of a change that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentRef {
    Change(ChangeId),
    /// The n-th write of the same call, from 0.
    Earlier(usize),
}

/// What was written to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeWritten {
    pub tree: TreeId,
    pub writes: Vec<WriteId>,
    /// The changes as they are now; one that had to be rebuilt before it was logged gets another id.
    pub changes: Vec<ChangeId>,
}

impl Space {
    /// Purges a tree: its content is dropped here, at the node and at every member, for good. A later write answers
    /// `TREE_PURGED`, and no late peer brings it back. For admins, the account of its write rule, and the author of its first
    /// change. To delete an object so that it can be written again there is [`crate::Objects::delete`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn purge_tree(&self, tree: TreeId) -> Result<WriteId, WriteError> {
        self.inner.purge(tree, None).await
    }

    /// Makes a new tree and appends changes to it, in one transaction.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is written then.
    pub async fn create_tree(&self, new: NewTree, writes: Vec<TreeWrite>) -> Result<TreeWritten, WriteError> {
        let nonce: [u8; 16] = self.inner.shared.host.random();
        let root = TreeRoot { space: self.inner.id, name: TreeName::Nonce(nonce), write_rule: new.write_rule };
        self.write_tree(root, new.data_type, writes).await
    }

    /// Appends changes to a tree that is here, in one transaction.
    ///
    /// # Errors
    /// [`WriteError`], [`WriteError::ObjectTree`] for a tree that is written with [`crate::Objects::put`]; nothing is written
    /// then.
    pub async fn append(
        &self,
        tree: TreeId,
        data_type: String,
        writes: Vec<TreeWrite>,
    ) -> Result<TreeWritten, WriteError> {
        let space = self.inner.id;
        let root = self.inner.shared.store.read(|tx| -> Result<_, ReadError> {
            if let Some(tree) = tx.tree(space, tree)? {
                return Ok(Some(tree.root));
            }
            let pending = tx.pending_of_tree(space, tree)?;
            let record = pending.into_iter().find_map(|w| w.root);
            Ok(record.and_then(|r| verify_as::<TreeRoot>(r).ok()).map(|r| *r.body()))
        })?;
        let root = root.ok_or(Reject::MissingRoot { tree })?;
        if let TreeName::Tag(_) = root.name {
            return Err(WriteError::ObjectTree { tree });
        }
        self.write_tree(root, data_type, writes).await
    }

    async fn write_tree(
        &self,
        root: TreeRoot,
        data_type: String,
        writes: Vec<TreeWrite>,
    ) -> Result<TreeWritten, WriteError> {
        let space = self.inner.clone();
        let tree = root.tree_id();
        let job = move |tx: &mut WriteTx<'_>| -> Result<Vec<Made>, WriteError> {
            let maker = Maker::new(tx, &space)?;
            append_all(tx, &maker, root, &data_type, writes)
        };
        let made = self.inner.keep(job, |made: &Vec<Made>| made.last().into_iter().collect()).await?;
        let (writes, changes) = made.iter().map(|m| (m.write, m.change)).unzip();
        Ok(TreeWritten { tree, writes, changes })
    }
}

fn append_all(
    tx: &mut WriteTx<'_>,
    maker: &Maker<'_>,
    root: TreeRoot,
    data_type: &str,
    writes: Vec<TreeWrite>,
) -> Result<Vec<Made>, WriteError> {
    let tree = root.tree_id();
    let space = maker.space;
    let pending = tx.pending_of_tree(space, tree)?;
    let first = maker.place(tx, root, &pending)?;
    let mut heads = overlaid_heads(first.logged.map(|t| t.heads).unwrap_or_default(), &pending);
    let mut root_record = first.root_record;
    let mut known: BTreeSet<ChangeId> = pending.iter().map(|w| w.record.id().into()).collect();
    let mut made: Vec<Made> = Vec::with_capacity(writes.len());
    for write in writes {
        let parents = match write.parents {
            None => parents_of(tree, &heads),
            Some(named) => named_parents(tx, space, tree, &named, &made, &known)?,
        };
        let envelope = Envelope {
            object_type: String::new(),
            object_id: String::new(),
            data_type: data_type.to_owned(),
            payload: write.payload,
        };
        heads.retain(|h| !parents.contains(h));
        let place = Place { root, tree, logged: None, parents, root_record: root_record.take() };
        let next = maker.append(tx, place, &envelope)?;
        heads.insert(next.change);
        known.insert(next.change);
        made.push(next);
    }
    Ok(made)
}

fn named_parents(
    tx: &WriteTx<'_>,
    space: SpaceId,
    tree: TreeId,
    named: &[ParentRef],
    made: &[Made],
    known: &BTreeSet<ChangeId>,
) -> Result<Vec<ChangeId>, WriteError> {
    let mut parents = BTreeSet::new();
    for parent in named {
        let id = match parent {
            ParentRef::Change(id) => *id,
            ParentRef::Earlier(index) => {
                made.get(*index).map(|m| m.change).unwrap_or_else(|| TreeChange::root_as_parent(tree))
            }
        };
        if !known.contains(&id) && tx.change(space, tree, id)?.is_none() {
            return Err(WriteError::UnknownParent(id));
        }
        parents.insert(id);
    }
    if parents.len() > limits::PARENTS_MAX {
        return Err(WriteError::TooManyParents { actual: parents.len(), max: limits::PARENTS_MAX });
    }
    if parents.is_empty() {
        parents.insert(TreeChange::root_as_parent(tree));
    }
    Ok(parents.into_iter().collect())
}

// ---- what a pending row keeps for a rebuild -----------------------------------------------------------------------------

/// What a row keeps of a purge that came back.
pub(super) fn purge_envelope() -> Envelope {
    let (object_type, object_id) = (String::new(), String::new());
    Envelope { object_type, object_id, data_type: PURGE.to_owned(), payload: Bytes::new() }
}

/// What a row keeps of its plaintext.
pub(super) fn local_of(shared: &Shared, tree: TreeId, envelope: &Envelope) -> Vec<u8> {
    shared.local.seal_row(tree.as_bytes(), &encode_local(envelope), &mut shared.host.rng())
}

/// A JSON array of the three names, a line feed (which JSON escapes), and the payload as it is.
fn encode_local(envelope: &Envelope) -> Vec<u8> {
    let names = [&envelope.object_type, &envelope.object_id, &envelope.data_type];
    let mut bytes = serde_json::to_vec(&names).expect("strings are always JSON");
    bytes.push(b'\n');
    bytes.extend_from_slice(&envelope.payload);
    bytes
}

/// The plaintext of a pending write, from its own row.
pub(super) fn local_envelope(shared: &Shared, write: &PendingWrite) -> Result<Envelope, ReadError> {
    let bytes = shared.local.open_row(write.tree.as_bytes(), &write.local)?;
    let damaged = || ReadError::Row(ContentError::BadEnvelope);
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
    let [object_type, object_id, data_type]: [String; 3] =
        serde_json::from_slice(&bytes[..end]).map_err(|_| damaged())?;
    Ok(Envelope { object_type, object_id, data_type, payload: Bytes::copy_from_slice(&bytes[end + 1..]) })
}
