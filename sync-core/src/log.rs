//! The log of a space: positions, the hash chain, and what may stand where.
//!
//! Two functions judge a record, and every rule belongs to exactly one of them:
//!
//! - [`valid`]: a pure function of the log before the record. Everyone runs it and everyone gets the same answer.
//! - [`admit`]: the node's own affair (clock, configuration, durability). Runs on the node only, before `valid`.
//!
//! [`decide`] is `valid` over a [`View`], with its consequences as a value. The effects of a [`Decision`] are out of reach
//! until the store committed its entries and turned it into a [`Committed`]: memory is never ahead of disk, and nobody is
//! told what was not stored.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::acl::{AclReject, AclState};
use crate::ids::{
    AccountId, AclId, AuthorityId, Chain, ChangeId, EntryId, Epoch, InviteId, Seq, SpaceId, TombstoneId, TreeId,
};
use crate::limits;
use crate::record::{
    AclContent, AclRecord, AclRoot, ChangeKind, HistoryMode, RawRecord, Role, SpaceHeader, Tombstone, TreeChange,
    TreeHeads, TreeRoot, Verified, VerifiedRecord, Who,
};
use crate::tree::{Height, heads_after};

/// A place in a log: everything up to `seq`, summed up in `chain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub seq: Seq,
    pub chain: Chain,
}

impl Position {
    /// Before the first entry.
    #[must_use]
    pub fn start(space: &SpaceId) -> Self {
        let hash = blake3::derive_key("headwater/chain/v1", space.as_bytes());
        Self { seq: Seq::ZERO, chain: Chain::from_hash(hash) }
    }

    /// After one more entry.
    #[must_use]
    pub fn after(&self, id: &EntryId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("headwater/chain/v1");
        hasher.update(self.chain.as_bytes());
        hasher.update(id.as_bytes());
        Self { seq: self.seq.next(), chain: Chain::from_hash(*hasher.finalize().as_bytes()) }
    }
}

/// What a log entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    Acl,
    Root,
    Change,
    Tombstone,
}

/// What the rules ask of the log so far. A failed read is an error, never a "no".
pub trait View {
    type Error: std::error::Error + Send + Sync + 'static;

    /// The end of the log.
    fn position(&self) -> Position;

    /// The ACL there.
    fn acl(&self) -> &AclState;

    /// A tree that has an accepted change.
    ///
    /// # Errors
    /// If the store fails.
    fn tree(&self, tree: &TreeId) -> Result<Option<TreeState>, Self::Error>;

    /// An accepted change of a tree.
    ///
    /// # Errors
    /// If the store fails.
    fn change(&self, tree: &TreeId, change: &ChangeId) -> Result<Option<ChangeState>, Self::Error>;
}

/// What the log says of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeState {
    pub root: TreeRoot,
    /// Where its root stands.
    pub created: Seq,
    pub first_author: AccountId,
    pub heads: BTreeSet<ChangeId>,
    pub purged: Option<Purge>,
}

/// The end of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    pub at: Seq,
    pub by: TombstoneId,
}

/// What the log says of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeState {
    pub at: Seq,
    pub height: Height,
    pub epoch: Epoch,
}

/// A rule that a record breaks at this position. The peer's fault, never ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error(transparent)]
    Acl(#[from] AclReject),
    #[error("the header, the ACL root and the first SetHome do not belong together")]
    BadGenesis,
    #[error("the record belongs to {actual}, not to {expected}")]
    WrongSpace { expected: SpaceId, actual: SpaceId },
    #[error("a record of this kind cannot be appended to a log")]
    NotAnEntry,
    #[error("the root does not name the tree of the change beside it")]
    RootMismatch { tree: TreeId },
    #[error("{tree} is not in the log, and its root did not come with the change")]
    MissingRoot { tree: TreeId },
    #[error("parent {parent} is not in the log of {tree}")]
    MissingParent { tree: TreeId, parent: ChangeId },
    #[error("the parents of a change are the root alone, or other changes")]
    BadParents { tree: TreeId },
    #[error("ACL record {acl_head} is not in the log")]
    UnknownAclHead { acl_head: AclId },
    #[error("ACL record {acl_head} is older than the author's present role")]
    StaleAclHead { acl_head: AclId },
    #[error("the change is of epoch {actual}; the space is at epoch {current}")]
    StaleEpoch { actual: Epoch, current: Epoch },
    #[error("{account} may not write here (its role: {})", .role.map_or("none".into(), |r| r.to_string()))]
    NotAWriter { account: AccountId, role: Option<Role> },
    #[error("the write rule of {tree} does not let {account} write")]
    WriteRule { tree: TreeId, account: AccountId },
    #[error("{tree} takes one change only, and has it")]
    OnceTaken { tree: TreeId },
    #[error("{tree} was purged")]
    TreePurged { tree: TreeId },
    #[error("{tree} has {max} heads; merge some first", max = limits::HEADS_MAX)]
    HeadsFull { tree: TreeId },
    #[error("this kind of change is reserved")]
    UnsupportedChangeKind,
    #[error("the space was deleted")]
    SpaceDeleted,
    #[error("the acceptance promises {tree}, which is not in the log as it says")]
    BadFrontier { tree: TreeId },
}

/// Why the node does not take a record now. Says nothing about its validity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("invite {invite} expired at {expires_ms} ms")]
    InviteExpired { invite: InviteId, expires_ms: u64 },
    #[error("{} tree(s) must be durable before this invite can be used", .trees.len())]
    RequiresMissing { trees: Vec<TreeId> },
    #[error("the home of the space is {home:?}, not this node's authority")]
    NotHome { home: Option<AuthorityId> },
    #[error("the change came without its payload")]
    PayloadMissing,
    #[error("the node was restored from a backup and first takes back what it lost: {} s are left", .left.as_secs())]
    Recovering { left: Duration },
}

/// A rule was broken, or the store failed.
#[derive(Debug, thiserror::Error)]
pub enum DecideError<E> {
    #[error(transparent)]
    Reject(#[from] Reject),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the log could not be read")]
    View(#[source] E),
}

/// What may be appended after the first two entries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all submissions are changes: a box would cost each an allocation"
)]
pub enum Submission {
    Acl(Verified<AclRecord>),
    /// `root` stands with the first change of a tree, and is ignored when the tree exists.
    Change {
        root: Option<Verified<TreeRoot>>,
        change: Verified<TreeChange>,
    },
    Tombstone(Verified<Tombstone>),
}

impl Submission {
    /// Puts a record and the root that came with it together.
    ///
    /// # Errors
    /// [`Reject::NotAnEntry`] for a kind that is never appended, [`Reject::RootMismatch`] if the root names another tree.
    pub fn pair(root: Option<VerifiedRecord>, record: VerifiedRecord) -> Result<Self, Reject> {
        let root = match root {
            None => None,
            Some(VerifiedRecord::TreeRoot(root)) => Some(root),
            Some(
                VerifiedRecord::SpaceHeader(_)
                | VerifiedRecord::AclRoot(_)
                | VerifiedRecord::Acl(_)
                | VerifiedRecord::Change(_)
                | VerifiedRecord::Tombstone(_),
            ) => return Err(Reject::NotAnEntry),
        };
        match (root, record) {
            (None, VerifiedRecord::Acl(record)) => Ok(Self::Acl(record)),
            (None, VerifiedRecord::Tombstone(record)) => Ok(Self::Tombstone(record)),
            (root, VerifiedRecord::Change(change)) => {
                let tree = change.body().tree;
                if root.as_ref().is_some_and(|r| TreeId::from(r.id()) != tree) {
                    return Err(Reject::RootMismatch { tree });
                }
                Ok(Self::Change { root, change })
            }
            (
                _,
                VerifiedRecord::Acl(_)
                | VerifiedRecord::Tombstone(_)
                | VerifiedRecord::SpaceHeader(_)
                | VerifiedRecord::AclRoot(_)
                | VerifiedRecord::TreeRoot(_),
            ) => Err(Reject::NotAnEntry),
        }
    }

    /// The id of the record itself (of the change, when a root came with it).
    #[must_use]
    pub const fn id(&self) -> EntryId {
        match self {
            Self::Acl(r) => r.id(),
            Self::Change { change, .. } => change.id(),
            Self::Tombstone(r) => r.id(),
        }
    }

    /// The tree it touches.
    #[must_use]
    pub const fn tree(&self) -> Option<TreeId> {
        match self {
            Self::Acl(_) => None,
            Self::Change { change, .. } => Some(change.body().tree),
            Self::Tombstone(r) => Some(r.body().tree),
        }
    }

    /// Who wrote it.
    #[must_use]
    pub const fn author(&self) -> AccountId {
        match self {
            Self::Acl(r) => r.body().author,
            Self::Change { change, .. } => change.body().author,
            Self::Tombstone(r) => r.body().author,
        }
    }
}

/// One entry that a decision adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Its place: `seq`, and the chain including it.
    pub position: Position,
    pub kind: EntryKind,
    pub id: EntryId,
    pub record: RawRecord,
    /// The tree it belongs to.
    pub tree: Option<TreeId>,
    /// Set on accepted changes.
    pub height: Option<Height>,
    /// Set on changes that fail the rules and are kept for the chain alone: the node's fault, shown and never applied.
    pub quarantined: bool,
}

/// What a decision does to one tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeUpdate {
    pub tree: TreeId,
    /// Before; `None` for a tree that begins here.
    pub before: Option<TreeState>,
    pub after: TreeState,
}

/// What would be appended, and what follows from it: decided, not stored.
#[derive(Debug, Clone)]
#[must_use = "a decision that is not committed changes nothing"]
pub struct Decision {
    entries: Vec<NewEntry>,
    tree: Option<TreeUpdate>,
    acl_before: AclId,
    acl: Option<AclState>,
}

impl Decision {
    /// The rows to write, in order.
    #[must_use]
    pub fn entries(&self) -> &[NewEntry] {
        &self.entries
    }

    /// The tree row to write.
    #[must_use]
    pub const fn tree(&self) -> Option<&TreeUpdate> {
        self.tree.as_ref()
    }

    /// The ACL after it, if it changes.
    #[must_use]
    pub const fn acl(&self) -> Option<&AclState> {
        self.acl.as_ref()
    }

    /// The ACL head before it.
    #[must_use]
    pub const fn acl_before(&self) -> AclId {
        self.acl_before
    }

    /// The end of the log after it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.entries.last().expect("a decision appends at least one entry").position
    }

    /// Opens the effects. For the store alone, after the transaction that holds the entries was committed.
    #[must_use]
    pub fn after_commit(self) -> Committed {
        let position = self.position();
        let touched = self.tree.map(|t| TreeHeads { tree: t.tree, heads: t.after.heads.into_iter().collect() });
        Committed { position, touched, acl_moved: self.acl.is_some() }
    }
}

/// The effects of a decision that is stored: what subscribers and callers may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    position: Position,
    touched: Option<TreeHeads>,
    acl_moved: bool,
}

impl Committed {
    /// The end of the log, including it.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// The tree that changed, with its heads now.
    #[must_use]
    pub const fn touched(&self) -> Option<&TreeHeads> {
        self.touched.as_ref()
    }

    /// True if the ACL changed: pending writes are decided again.
    #[must_use]
    pub const fn acl_moved(&self) -> bool {
        self.acl_moved
    }
}

/// What becomes of a submission.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "nearly all outcomes are decisions: a box would cost each an allocation")]
pub enum Outcome {
    /// It stands in the log already.
    Known(Seq),
    Append(Decision),
}

// ---- the beginning of a log -----------------------------------------------------------------------------------------

/// The first two entries of a log.
#[derive(Debug, Clone)]
pub struct Genesis {
    header: Verified<SpaceHeader>,
    acl: AclState,
    entries: [NewEntry; 2],
}

impl Genesis {
    /// The space that begins.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        self.acl.space
    }

    /// The header, as received.
    #[must_use]
    pub const fn header(&self) -> &Verified<SpaceHeader> {
        &self.header
    }

    /// The ACL after both entries.
    #[must_use]
    pub const fn acl(&self) -> &AclState {
        &self.acl
    }

    /// AclRoot and SetHome.
    #[must_use]
    pub const fn entries(&self) -> &[NewEntry; 2] {
        &self.entries
    }
}

/// The id of the space that a header founds.
#[must_use]
pub fn space_id(header: &Verified<SpaceHeader>) -> SpaceId {
    SpaceId::from_hash(*header.id().as_bytes())
}

/// Checks the three records that begin a space.
///
/// # Errors
/// [`Reject::BadGenesis`] if they do not belong together, or what the ACL says of the SetHome.
pub fn genesis(
    header: Verified<SpaceHeader>,
    root: &Verified<AclRoot>,
    set_home: &Verified<AclRecord>,
) -> Result<Genesis, Reject> {
    let space = space_id(&header);
    if header.body().acl_root != AclId::from(root.id()) || header.body().owner != root.body().owner {
        return Err(Reject::BadGenesis);
    }
    let first = Position::start(&space).after(&root.id());
    let second = first.after(&set_home.id());
    let acl = AclState::found(space, root).fold_in(set_home, second.seq)?;
    let entries =
        [acl_entry(first, root.id(), root.raw().clone()), acl_entry(second, set_home.id(), set_home.raw().clone())];
    Ok(Genesis { header, acl, entries })
}

fn acl_entry(position: Position, id: EntryId, record: RawRecord) -> NewEntry {
    NewEntry { position, kind: EntryKind::Acl, id, record, tree: None, height: None, quarantined: false }
}

// ---- the rules ------------------------------------------------------------------------------------------------------

/// Judges a submission at the end of the log and works out what follows.
///
/// # Errors
/// The rule it breaks, or the view's failure.
pub fn decide<V: View>(view: &V, submission: &Submission) -> Result<Outcome, DecideError<V::Error>> {
    if let Some(seq) = known(view, submission)? {
        return Ok(Outcome::Known(seq));
    }
    let consequences = valid(view, submission)?;
    Ok(Outcome::Append(append(view, submission, consequences)))
}

/// What a valid submission leads to.
#[derive(Debug, Clone)]
pub struct Consequences {
    tree: Option<TreeUpdate>,
    acl: Option<AclState>,
    height: Option<Height>,
}

/// Where the record stands already, if it does.
fn known<V: View>(view: &V, submission: &Submission) -> Result<Option<Seq>, DecideError<V::Error>> {
    match submission {
        Submission::Acl(record) => Ok(view.acl().records.get(&record.id().into()).copied()),
        Submission::Change { change, .. } => {
            let found = view.change(&change.body().tree, &change.id().into()).map_err(DecideError::View)?;
            Ok(found.map(|c| c.at))
        }
        Submission::Tombstone(record) => {
            let tree = view.tree(&record.body().tree).map_err(DecideError::View)?;
            let purge = tree.and_then(|t| t.purged).filter(|p| p.by == record.id().into());
            Ok(purge.map(|p| p.at))
        }
    }
}

/// The rules: may this record stand right after this log? The same answer for everyone.
///
/// # Errors
/// The rule it breaks, or the view's failure.
pub fn valid<V: View>(view: &V, submission: &Submission) -> Result<Consequences, DecideError<V::Error>> {
    if view.acl().deleted {
        return Err(Reject::SpaceDeleted.into());
    }
    match submission {
        Submission::Acl(record) => valid_acl(view, record),
        Submission::Change { root, change } => valid_change(view, root.as_ref(), change),
        Submission::Tombstone(record) => valid_tombstone(view, record),
    }
}

fn valid_acl<V: View>(view: &V, record: &Verified<AclRecord>) -> Result<Consequences, DecideError<V::Error>> {
    let acl = view.acl().apply(record, view.position().seq.next()).map_err(Reject::Acl)?;
    let mut given = Given { epoch: view.acl().epoch, history: view.acl().options.history };
    for content in &record.body().contents {
        given.follow(content);
        if let AclContent::AcceptJoin { role, frontier, .. } = content {
            for promised in frontier {
                valid_frontier(view, given, *role, promised)?;
            }
        }
    }
    Ok(Consequences { tree: None, acl: Some(acl), height: None })
}

/// What an acceptance at this place of a record gives: an earlier content of the same record may have rotated the keys.
#[derive(Clone, Copy)]
struct Given {
    epoch: Epoch,
    history: HistoryMode,
}

impl Given {
    fn follow(&mut self, content: &AclContent) {
        match content {
            AclContent::RevokeInvite { rotation: Some(rotation), .. }
            | AclContent::RemoveMembers { rotation, .. }
            | AclContent::RotateKey { rotation } => self.epoch = rotation.epoch,
            AclContent::SetOptions { options } => self.history = options.history,
            AclContent::SetHome { .. }
            | AclContent::CreateInvite(_)
            | AclContent::RevokeInvite { rotation: None, .. }
            | AclContent::JoinByInvite { .. }
            | AclContent::RequestJoin { .. }
            | AclContent::CancelJoin { .. }
            | AclContent::AcceptJoin { .. }
            | AclContent::DeclineJoin { .. }
            | AclContent::AddMembers { .. }
            | AclContent::ChangeRole { .. }
            | AclContent::Leave
            | AclContent::Reseal { .. }
            | AclContent::TransferOwnership { .. }
            | AclContent::DeleteSpace => {}
        }
    }
}

/// What an acceptance promises is in the log, and of an epoch whose keys the acceptance gives.
fn valid_frontier<V: View>(
    view: &V,
    given: Given,
    role: Role,
    promised: &TreeHeads,
) -> Result<(), DecideError<V::Error>> {
    let bad = Reject::BadFrontier { tree: promised.tree };
    if view.tree(&promised.tree).map_err(DecideError::View)?.is_none() {
        return Err(bad.into());
    }
    let reads_history = given.history == HistoryMode::All && role > Role::Guest;
    for head in &promised.heads {
        let change = view.change(&promised.tree, head).map_err(DecideError::View)?;
        if !change.is_some_and(|c| reads_history || c.epoch == given.epoch) {
            return Err(bad.into());
        }
    }
    Ok(())
}

fn valid_change<V: View>(
    view: &V,
    root: Option<&Verified<TreeRoot>>,
    record: &Verified<TreeChange>,
) -> Result<Consequences, DecideError<V::Error>> {
    let change = record.body();
    let before = view.tree(&change.tree).map_err(DecideError::View)?;
    let (tree_root, created) = match (&before, root) {
        (Some(tree), _) => (tree.root, tree.created),
        (None, Some(root)) if TreeId::from(root.id()) != change.tree => {
            return Err(Reject::RootMismatch { tree: change.tree }.into());
        }
        (None, Some(root)) => (*root.body(), view.position().seq.next()),
        (None, None) => return Err(Reject::MissingRoot { tree: change.tree }.into()),
    };
    let acl = view.acl();
    if tree_root.space != acl.space {
        return Err(Reject::WrongSpace { expected: acl.space, actual: tree_root.space }.into());
    }
    may_write(acl, change.tree, &tree_root, before.as_ref(), &change.author, &change.acl_head)?;
    if change.kind == ChangeKind::Snapshot {
        return Err(Reject::UnsupportedChangeKind.into());
    }
    if change.epoch != acl.epoch {
        return Err(Reject::StaleEpoch { actual: change.epoch, current: acl.epoch }.into());
    }
    let height = valid_parents(view, change)?;
    let heads = before.as_ref().map_or_else(BTreeSet::new, |t| t.heads.clone());
    let heads = heads_after(&heads, record.id().into(), &change.parents);
    if heads.len() > limits::HEADS_MAX {
        return Err(Reject::HeadsFull { tree: change.tree }.into());
    }
    let first_author = before.as_ref().map_or(change.author, |t| t.first_author);
    let after = TreeState { root: tree_root, created, first_author, heads, purged: None };
    let tree = TreeUpdate { tree: change.tree, before, after };
    Ok(Consequences { tree: Some(tree), acl: None, height: Some(height) })
}

/// Permission is judged at this position, never at the ACL record that the author cites; but an author must have seen the
/// record that gave it its present role.
fn valid_author(acl: &AclState, author: &AccountId, acl_head: &AclId) -> Result<Role, Reject> {
    let cited = *acl.records.get(acl_head).ok_or(Reject::UnknownAclHead { acl_head: *acl_head })?;
    let member = acl.members.get(author).ok_or(Reject::NotAWriter { account: *author, role: None })?;
    if member.role < Role::Writer {
        return Err(Reject::NotAWriter { account: *author, role: Some(member.role) });
    }
    if cited < member.role_since {
        return Err(Reject::StaleAclHead { acl_head: *acl_head });
    }
    Ok(member.role)
}

/// The part of the rules that a writer can ask before it makes a change: may `author` write to this tree now?
///
/// # Errors
/// The rule against it: role, cited ACL record, write rule, `once`, purge.
pub fn may_write(
    acl: &AclState,
    tree: TreeId,
    root: &TreeRoot,
    before: Option<&TreeState>,
    author: &AccountId,
    acl_head: &AclId,
) -> Result<(), Reject> {
    let role = valid_author(acl, author, acl_head)?;
    let allowed = match root.write_rule.who {
        Who::Writers => true,
        Who::Admins => role >= Role::Admin,
        Who::Account(account) => *author == account,
        Who::AccountOrAdmins(account) => *author == account || role >= Role::Admin,
    };
    if !allowed {
        return Err(Reject::WriteRule { tree, account: *author });
    }
    if before.is_some_and(|t| t.purged.is_some()) {
        return Err(Reject::TreePurged { tree });
    }
    if root.write_rule.once && before.is_some() {
        return Err(Reject::OnceTaken { tree });
    }
    Ok(())
}

/// The part of the rules that one can ask before a purge: may `author` end this tree now? `before` is the tree in the log;
/// without it the tree has only changes of `author`'s own.
///
/// # Errors
/// The rule against it: role, cited ACL record, write rule, purge.
pub fn may_purge(
    acl: &AclState,
    tree: TreeId,
    root: &TreeRoot,
    before: Option<&TreeState>,
    author: &AccountId,
    acl_head: &AclId,
) -> Result<(), Reject> {
    if before.is_some_and(|t| t.purged.is_some()) {
        return Err(Reject::TreePurged { tree });
    }
    let role = valid_author(acl, author, acl_head)?;
    let owns = match root.write_rule.who {
        Who::Account(account) | Who::AccountOrAdmins(account) => account == *author,
        Who::Writers | Who::Admins => false,
    };
    if role < Role::Admin && !owns && before.is_some_and(|t| t.first_author != *author) {
        return Err(Reject::WriteRule { tree, account: *author });
    }
    Ok(())
}

fn valid_parents<V: View>(view: &V, change: &TreeChange) -> Result<Height, DecideError<V::Error>> {
    if change.is_first() {
        return Ok(Height::above([]));
    }
    let root = TreeChange::root_as_parent(change.tree);
    let mut heights = Vec::with_capacity(change.parents.len());
    for parent in &change.parents {
        if *parent == root {
            return Err(Reject::BadParents { tree: change.tree }.into());
        }
        let found = view.change(&change.tree, parent).map_err(DecideError::View)?;
        let found = found.ok_or(Reject::MissingParent { tree: change.tree, parent: *parent })?;
        heights.push(found.height);
    }
    Ok(Height::above(heights))
}

fn valid_tombstone<V: View>(view: &V, record: &Verified<Tombstone>) -> Result<Consequences, DecideError<V::Error>> {
    let tombstone = record.body();
    let before = view.tree(&tombstone.tree).map_err(DecideError::View)?;
    let before = before.ok_or(Reject::MissingRoot { tree: tombstone.tree })?;
    let Tombstone { tree, author, acl_head, at_ms: _ } = tombstone;
    may_purge(view.acl(), *tree, &before.root, Some(&before), author, acl_head)?;
    let purged = Some(Purge { at: view.position().seq.next(), by: record.id().into() });
    let after = TreeState { heads: BTreeSet::new(), purged, ..before.clone() };
    let tree = TreeUpdate { tree: tombstone.tree, before: Some(before), after };
    Ok(Consequences { tree: Some(tree), acl: None, height: None })
}

fn append<V: View>(view: &V, submission: &Submission, consequences: Consequences) -> Decision {
    let Consequences { tree, acl, height } = consequences;
    let begins = tree.as_ref().is_some_and(|t| t.before.is_none());
    let mut entries = entries_of(view.position(), submission, begins);
    if let Some(last) = entries.last_mut() {
        last.height = height;
    }
    Decision { entries, tree, acl_before: view.acl().head, acl }
}

fn entries_of(from: Position, submission: &Submission, begins: bool) -> Vec<NewEntry> {
    let tree = submission.tree();
    let entry = |position, kind, id, record: &RawRecord| NewEntry {
        position,
        kind,
        id,
        record: record.clone(),
        tree,
        height: None,
        quarantined: false,
    };
    match submission {
        Submission::Acl(r) => vec![entry(from.after(&r.id()), EntryKind::Acl, r.id(), r.raw())],
        Submission::Tombstone(r) => vec![entry(from.after(&r.id()), EntryKind::Tombstone, r.id(), r.raw())],
        Submission::Change { root: Some(root), change } if begins => {
            let first = from.after(&root.id());
            let second = first.after(&change.id());
            vec![
                entry(first, EntryKind::Root, root.id(), root.raw()),
                entry(second, EntryKind::Change, change.id(), change.raw()),
            ]
        }
        Submission::Change { change, .. } => {
            vec![entry(from.after(&change.id()), EntryKind::Change, change.id(), change.raw())]
        }
    }
}

/// For clients: keeps a change or tombstone that the node logged although it fails [`valid`], so that the chain goes on.
/// It is never applied, and what builds on it fails in turn. An ACL record that fails stops the space instead.
///
/// `root_came` tells whether the node logged the root right before it.
pub fn quarantine<V: View>(view: &V, submission: &Submission) -> Decision {
    let root_came = matches!(submission, Submission::Change { root: Some(_), .. });
    let mut entries = entries_of(view.position(), submission, root_came);
    for entry in &mut entries {
        entry.quarantined = true;
    }
    Decision { entries, tree: None, acl_before: view.acl().head, acl: None }
}

// ---- admission ------------------------------------------------------------------------------------------------------

/// What a node knows when it admits a record.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    pub authority: AuthorityId,
    pub now_ms: u64,
    pub durable_seq: Seq,
    /// What is left of the time in which a restored node takes nothing new.
    pub recovering: Option<Duration>,
}

/// The node's own conditions, before [`decide`]. A record that stands in the log already needs no admission.
///
/// # Errors
/// [`DecideError::Refused`], or the view's failure.
pub fn admit<V: View>(view: &V, submission: &Submission, admission: &Admission) -> Result<(), DecideError<V::Error>> {
    if view.acl().deleted {
        // Nothing depends on the node here: `valid` refuses everything.
        return Ok(());
    }
    if view.acl().home != Some(admission.authority) {
        return Err(Refusal::NotHome { home: view.acl().home }.into());
    }
    if let Some(left) = admission.recovering {
        return Err(Refusal::Recovering { left }.into());
    }
    match submission {
        Submission::Acl(record) => {
            for content in &record.body().contents {
                admit_content(view, content, admission)?;
            }
            Ok(())
        }
        Submission::Change { change, .. } if change.raw().payload.is_none() => Err(Refusal::PayloadMissing.into()),
        Submission::Change { .. } | Submission::Tombstone(_) => Ok(()),
    }
}

fn admit_content<V: View>(view: &V, content: &AclContent, admission: &Admission) -> Result<(), DecideError<V::Error>> {
    let (invite, joins) = match content {
        AclContent::JoinByInvite { claim, .. } => (&claim.invite, true),
        AclContent::RequestJoin { claim } => (&claim.invite, false),
        AclContent::SetHome { .. }
        | AclContent::CreateInvite(_)
        | AclContent::RevokeInvite { .. }
        | AclContent::CancelJoin { .. }
        | AclContent::AcceptJoin { .. }
        | AclContent::DeclineJoin { .. }
        | AclContent::AddMembers { .. }
        | AclContent::ChangeRole { .. }
        | AclContent::RemoveMembers { .. }
        | AclContent::Leave
        | AclContent::RotateKey { .. }
        | AclContent::Reseal { .. }
        | AclContent::SetOptions { .. }
        | AclContent::TransferOwnership { .. }
        | AclContent::DeleteSpace => return Ok(()),
    };
    // What is over for other reasons is the rules' to say, and tells a stranger nothing of the log.
    let Ok(invite) = view.acl().live_invite(invite) else { return Ok(()) };
    if let Some(expires_ms) = invite.content.expires_ms.filter(|at| *at <= admission.now_ms) {
        return Err(Refusal::InviteExpired { invite: invite.content.key, expires_ms }.into());
    }
    if !joins {
        return Ok(());
    }
    let mut missing = Vec::new();
    for tree in &invite.content.requires {
        let found = view.tree(tree).map_err(DecideError::View)?;
        // The root's neighbour is the first change, so the tree is durable when the entry after its root is.
        if found.is_none_or(|t| t.created.next() > admission.durable_seq) {
            missing.push(*tree);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Refusal::RequiresMissing { trees: missing }.into()) }
}
