//! A tree as it was judged again: its rows, its entries' standing, the digest.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use sync_core::ids::{EntryId, Seq, SpaceId, TreeId};
use sync_core::judge::{JudgedTree, Standing};
use sync_core::reconcile::TreePrefix;
use sync_core::record::RawRecord;

use crate::db::{blob, hash, integer, log_key, log_key_last, number, seq_of_key};
use crate::error::StoreError;
use crate::feed::Moved;
use crate::read::ReadTx;
use crate::rows::{entry_kind, kind_of_code, tree_named};
use crate::write::{WriteTx, insert_tree, update_tree};

type Result<T, E = StoreError> = std::result::Result<T, E>;

impl ReadTx<'_> {
    /// Where the entries of some trees stand, roots too, whatever was derived from them; and of all trees whose ids begin with
    /// one of `prefixes`. Reads the whole log.
    ///
    /// # Errors
    /// If the store fails.
    pub fn entries_of_trees(
        &self,
        space: SpaceId,
        trees: &BTreeSet<TreeId>,
        prefixes: &BTreeSet<TreePrefix>,
    ) -> Result<BTreeMap<TreeId, Vec<Seq>>> {
        const SQL: &str = "SELECT key, kind, id, body FROM log WHERE key > ?1 AND key <= ?2 AND kind >= 3 ORDER BY key";
        let mut found: BTreeMap<TreeId, Vec<Seq>> = BTreeMap::new();
        let Some(space_no) = self.log_no(&space)? else { return Ok(found) };
        let range = [log_key(space_no, Seq::ZERO)?, log_key_last(space_no)];
        self.db.each(SQL, range, |row| {
            let kind = kind_of_code(row.get(1)?).map_err(|e| crate::db::misfit(1, e))?;
            let id = EntryId::from_hash(hash(row, 2)?);
            let record = RawRecord { kind, version: 1, body: blob(row, 3)?, signature: Bytes::new(), payload: None };
            let tree = entry_kind(kind).ok().and_then(|kind| tree_named(kind, &record, id));
            if let Some(tree) = tree.filter(|t| trees.contains(t) || prefixes.contains(&TreePrefix::of(t))) {
                found.entry(tree).or_default().push(seq_of_key(row.get(0)?));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

impl WriteTx<'_> {
    /// Keeps trees as they were judged again, and sums the digest of the space up anew: in proportion to its trees, however
    /// many of them were judged. What was derived further, objects and verdicts, is the shell's to derive again; the object
    /// of a tree that is none any more goes.
    ///
    /// # Errors
    /// [`StoreError::UnknownSpace`], or if the store fails.
    pub fn put_judged(&mut self, space: SpaceId, trees: &[(TreeId, JudgedTree)]) -> Result<()> {
        let space_no = self.log_no(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        self.forget_orphans(space_no)?;
        for (tree, judged) in trees {
            self.put_judged_tree(space_no, tree, judged)?;
        }
        self.recount(space, space_no)
    }

    fn put_judged_tree(&mut self, space_no: i64, tree: &TreeId, judged: &JudgedTree) -> Result<()> {
        let tree_no = match (&judged.state, self.tree_no(space_no, tree)?) {
            (Some(state), Some(tree_no)) => {
                update_tree(&self.db, tree_no, state, 0)?;
                Some(tree_no)
            }
            (Some(state), None) => Some(insert_tree(&self.db, space_no, tree, state, 0)?),
            (None, Some(tree_no)) => {
                self.db.execute("DELETE FROM objects WHERE tree_no = ?1", [tree_no])?;
                self.db.execute("UPDATE log SET tree_no = NULL WHERE tree_no = ?1", [tree_no])?;
                self.db.execute("DELETE FROM trees WHERE tree_no = ?1", [tree_no])?;
                None
            }
            (None, None) => None,
        };
        for entry in &judged.entries {
            let (flags, height) = match &entry.standing {
                Standing::Accepted { height } => (0, height.map(|h| integer("height", h.0)).transpose()?),
                Standing::Quarantined(_) => (1, None),
            };
            if let Some(root) = entry.root {
                self.db.execute("UPDATE log SET flags = ?2 WHERE key = ?1", (log_key(space_no, root)?, flags))?;
            }
            self.db.execute(
                "UPDATE log SET flags = ?2, tree_no = ?3, height = ?4 WHERE key = ?1",
                (log_key(space_no, entry.at)?, flags, tree_no.filter(|_| flags == 0), height),
            )?;
        }
        if let Some(tree_no) = tree_no {
            self.count_changes(tree_no)?;
            if judged.state.as_ref().is_some_and(|state| state.purged.is_some()) {
                self.drop_tree(space_no, tree_no)?;
                self.db.execute("DELETE FROM objects WHERE tree_no = ?1", [tree_no])?;
            }
        }
        Ok(())
    }

    /// What speaks of a tree whose row was lost: its number may be given again.
    fn forget_orphans(&self, space_no: i64) -> Result<()> {
        self.db.execute(
            "DELETE FROM objects WHERE space_no = ?1 AND tree_no NOT IN (SELECT tree_no FROM trees)",
            [space_no],
        )?;
        self.db.execute(
            "UPDATE log SET tree_no = NULL WHERE key > ?1 AND key <= ?2 AND tree_no IS NOT NULL
             AND tree_no NOT IN (SELECT tree_no FROM trees)",
            [log_key(space_no, Seq::ZERO)?, log_key_last(space_no)],
        )?;
        Ok(())
    }

    fn recount(&mut self, space: SpaceId, space_no: i64) -> Result<()> {
        let mut live = self.live_clone(&space)?.ok_or(StoreError::UnknownSpace { space })?;
        let counted = self.db.one(
            "SELECT count(*), coalesce(sum(changes), 0) FROM trees WHERE space_no = ?1",
            [space_no],
            |row| Ok((number(row, 0)?, number(row, 1)?)),
        )?;
        (live.head.counts.trees, live.head.counts.changes) = counted.unwrap_or_default();
        self.put_live(space, live);
        self.note_move(space, || Moved::Anew);
        self.rebuild_digest(space)?;
        Ok(())
    }
}
