//! Taking a client's log back, so that it can follow a node that lost what came after.
//!
//! Afterwards everything is as if the log had never been longer: ACL, trees, digest, counts, projection watermark. What was
//! taken out stands in the salvage, in its old order. One thing does not come back: content that a tombstone among it has
//! dropped.

use std::ops::ControlFlow;
use std::sync::Arc;

use sync_core::ids::{Seq, SpaceId, TreeId};
use sync_core::log::{EntryKind, Position};
use sync_core::reconcile::SetDigest;

use crate::cache::Live;
use crate::db::{hash, integer, log_key, log_key_last, number};
use crate::error::StoreError;
use crate::read::{entry_columns, fold_acl, read_entry};
use crate::rows::SpaceCounts;
use crate::write::{WriteTx, update_tree};

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a rewind did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    /// The end of the log now. A root is never parted from its first change, so it may be one before what was asked for.
    pub position: Position,
    /// Trees that lost entries and are still there: what was derived from them is gone, and is derived again by the shell.
    pub shortened: Vec<TreeId>,
    /// Trees that began in the part that was taken out.
    pub gone: Vec<TreeId>,
}

/// What speaks of places after the new end, or was learnt of a peer by the old one.
const AFTER: [&str; 5] = [
    "DELETE FROM verdicts WHERE space_no = ?1 AND seq > ?2",
    "UPDATE projections SET seq = min(seq, ?2) WHERE space_no = ?1",
    "DELETE FROM ahead WHERE space_no = ?1 AND seq > ?2",
    "DELETE FROM peer_heads WHERE space_no = ?1 AND seq > ?2",
    "DELETE FROM peers WHERE space_no = ?1 AND confirmed > ?2",
];

/// The tables that say something about one tree alone.
const FORGET_TREE: [&str; 2] = ["DELETE FROM objects WHERE tree_no = ?1", "DELETE FROM trees WHERE tree_no = ?1"];

impl WriteTx<'_> {
    /// Takes the log back to `to`, and puts what came after into the salvage.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`]; [`StoreError::OutOfRange`] for a position that the log does not reach, or within its first
    /// two entries; or if the store fails.
    pub fn rewind(&mut self, space: SpaceId, to: Seq) -> Result<Rewound> {
        let live = self.live_clone(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        let space_no = live.head.space_no;
        let position = self.rewind_to(space, &live, to)?;
        let range = [log_key(space_no, position.seq)?, log_key_last(space_no)];
        let dropped = self.dropped_bytes(range)?;
        let touched = self.touched_trees(range)?;
        self.db.execute(
            "INSERT INTO salvage (space_no, state, seq, kind, id8, entry, version, body, signature, payload)
             SELECT ?3, 0, key & 0xFFFFFFFFFF, kind, id8, id, version, body, signature, payload FROM log
             WHERE key > ?1 AND key <= ?2 AND flags = 0 ORDER BY key",
            (range[0], range[1], space_no),
        )?;
        self.db.execute("DELETE FROM log WHERE key > ?1 AND key <= ?2", range)?;
        let (shortened, gone) = self.rewind_trees(space, position.seq, touched)?;
        let seq = integer("log position", position.seq.0)?;
        for sql in AFTER {
            self.db.execute(sql, (space_no, seq))?;
        }
        self.rewind_head(space, live, position, dropped)?;
        Ok(Rewound { position, shortened, gone })
    }

    fn rewind_to(&self, space: SpaceId, live: &Live, to: Seq) -> Result<Position> {
        let refused = StoreError::OutOfRange { what: "position to go back to", value: to.0 };
        if to < GENESIS || to > live.head.position.seq {
            return Err(refused);
        }
        let last = self.entry_at(space, to)?.ok_or_else(|| refused.clone())?;
        if last.kind == EntryKind::Root && to < live.head.position.seq {
            let before = Seq(to.0 - 1);
            return self.position_at(space, before)?.ok_or(refused);
        }
        Ok(last.position)
    }

    fn dropped_bytes(&self, range: [i64; 2]) -> Result<u64> {
        const SQL: &str = concat!("SELECT ", entry_columns!(), " FROM log WHERE key > ?1 AND key <= ?2");
        let mut bytes = 0;
        self.db.each(SQL, range, |row| {
            bytes += read_entry(row)?.record.wire_bytes() as u64;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(bytes)
    }

    fn touched_trees(&self, range: [i64; 2]) -> Result<Vec<(i64, TreeId)>> {
        self.db.all(
            "SELECT tree_no, id FROM trees WHERE tree_no IN
             (SELECT tree_no FROM log WHERE key > ?1 AND key <= ?2 AND tree_no IS NOT NULL)",
            range,
            |row| Ok((row.get(0)?, TreeId::from_hash(hash(row, 1)?))),
        )
    }

    fn rewind_trees(
        &mut self,
        space: SpaceId,
        to: Seq,
        touched: Vec<(i64, TreeId)>,
    ) -> Result<(Vec<TreeId>, Vec<TreeId>)> {
        let (mut shortened, mut gone) = (Vec::new(), Vec::new());
        for (tree_no, tree) in touched {
            self.db.execute("DELETE FROM objects WHERE tree_no = ?1", [tree_no])?;
            let row = self.tree_row(&space, &tree)?.ok_or(StoreError::UnknownTree { space, tree })?;
            if row.state.created > to {
                for sql in FORGET_TREE {
                    self.db.execute(sql, [tree_no])?;
                }
                gone.push(tree);
                continue;
            }
            update_tree(&self.db, tree_no, &self.tree_of_log(space, tree, tree_no)?, 0)?;
            self.count_changes(tree_no)?;
            shortened.push(tree);
        }
        Ok((shortened, gone))
    }

    fn rewind_head(&mut self, space: SpaceId, mut live: Live, position: Position, dropped: u64) -> Result<()> {
        let space_no = live.head.space_no;
        let acl = match fold_acl(space, self.acl_rows(space_no)?) {
            Ok(acl) => acl,
            Err(why) => return self.db.damaged(format!("the ACL log of {space}: {why}")),
        };
        let (trees, changes) = self
            .db
            .one("SELECT count(*), coalesce(sum(changes), 0) FROM trees WHERE space_no = ?1", [space_no], |row| {
                Ok((number(row, 0)?, number(row, 1)?))
            })?
            .unwrap_or_default();
        live.head.counts = SpaceCounts {
            trees,
            changes,
            entries: position.seq.0,
            bytes: live.head.counts.bytes.saturating_sub(dropped),
        };
        live.head.position = position;
        live.head.acl_head = acl.head;
        live.acl = Arc::new(acl);
        self.read.staging_mut().job.rewind(space, live.clone());
        // After the new end stands: elements are read from it.
        let mut digest = SetDigest::empty();
        for element in self.elements(space, None, usize::MAX)? {
            digest.insert(&element);
        }
        live.head.digest = digest;
        self.read.staging_mut().job.rewind(space, live);
        Ok(())
    }
}

/// The entries that every log of a space begins with.
const GENESIS: Seq = Seq(2);
