//! What rows look like outside.

use prost::Message as _;
use sync_core::ids::{AclId, ChangeId, EntryId, HistoryId, Seq, SpaceId, TreeId};
use sync_core::log::{EntryKind, Position};
use sync_core::pb;
use sync_core::record::{Kind, PayloadClaim, RawRecord};
use sync_core::tree::{Height, OrderKey};

/// A space with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceRow {
    pub space: SpaceId,
    /// The signed-by-hash header that founds the space.
    pub header: RawRecord,
    /// The end of the log.
    pub position: Position,
    pub acl_head: AclId,
    pub history: HistoryId,
}

/// How much a space holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceCounts {
    /// Trees, purged ones included.
    pub trees: u64,
    /// Accepted changes.
    pub changes: u64,
    /// Log entries.
    pub entries: u64,
    /// The records' own bytes, as on the wire.
    pub bytes: u64,
}

/// One log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// Its place: `seq`, and the chain including it.
    pub position: Position,
    pub kind: EntryKind,
    pub id: EntryId,
    pub record: RawRecord,
    /// The tree that the record names; `None` for ACL records (and where [`LogRow::is_intact`] says no).
    pub tree: Option<TreeId>,
    /// Set on accepted changes.
    pub height: Option<Height>,
    /// Set on entries that fail the rules and are kept for the chain alone.
    pub quarantined: bool,
}

/// An accepted change without its record: its place in the log, and in the graph of its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLink {
    pub seq: Seq,
    pub id: ChangeId,
    pub parents: Vec<ChangeId>,
}

/// Where an accepted change stands: in the total order of its tree, and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangePlace {
    pub order: OrderKey,
    pub seq: Seq,
}

impl LogRow {
    /// Hashes the record again. SQLite does not notice a flipped bit in a blob: check what leaves the process.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.record.id() == self.id && self.record.payload.as_ref().is_none_or(|p| self.claims(p))
    }

    fn claims(&self, payload: &[u8]) -> bool {
        let Ok(change) = pb::TreeChange::decode(self.record.body.clone()) else { return false };
        let claim = PayloadClaim::of(payload);
        claim.hash == *change.payload_hash && claim.len == change.payload_len
    }
}

/// The tree that a record of the log names; `None` for ACL records and for bodies that are damaged.
pub(crate) fn tree_named(kind: EntryKind, record: &RawRecord, id: EntryId) -> Option<TreeId> {
    let tree = match kind {
        EntryKind::Acl => return None,
        EntryKind::Root => return Some(id.into()),
        EntryKind::Change => pb::TreeChange::decode(record.body.clone()).ok()?.tree,
        EntryKind::Tombstone => pb::Tombstone::decode(record.body.clone()).ok()?.tree,
    };
    TreeId::try_from(tree.as_ref()).ok()
}

pub(crate) fn entry_kind(kind: Kind) -> Result<EntryKind, String> {
    match kind {
        Kind::AclRoot | Kind::AclRecord => Ok(EntryKind::Acl),
        Kind::TreeRoot => Ok(EntryKind::Root),
        Kind::TreeChange => Ok(EntryKind::Change),
        Kind::Tombstone => Ok(EntryKind::Tombstone),
        Kind::SpaceHeader
        | Kind::DeviceCertificate
        | Kind::DeviceList
        | Kind::NodeCertificate
        | Kind::Receipt
        | Kind::HistoryStarted
        | Kind::InviteToken => Err(format!("a record of kind {kind:?} is no log entry")),
    }
}

/// The stored number of a record kind.
pub(crate) fn kind_code(kind: Kind) -> Result<i64, String> {
    match kind {
        Kind::AclRoot => Ok(1),
        Kind::AclRecord => Ok(2),
        Kind::TreeRoot => Ok(3),
        Kind::TreeChange => Ok(4),
        Kind::Tombstone => Ok(5),
        Kind::SpaceHeader
        | Kind::DeviceCertificate
        | Kind::DeviceList
        | Kind::NodeCertificate
        | Kind::Receipt
        | Kind::HistoryStarted
        | Kind::InviteToken => Err(format!("a record of kind {kind:?} is no log entry")),
    }
}

pub(crate) fn kind_of_code(code: i64) -> Result<Kind, String> {
    match code {
        1 => Ok(Kind::AclRoot),
        2 => Ok(Kind::AclRecord),
        3 => Ok(Kind::TreeRoot),
        4 => Ok(Kind::TreeChange),
        5 => Ok(Kind::Tombstone),
        other => Err(format!("{other} is no kind of log entry")),
    }
}
