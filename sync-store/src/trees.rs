//! The row of a tree.

use std::collections::BTreeSet;

use rusqlite::Row;
use sync_core::ids::{AccountId, ChangeId, SpaceId, TombstoneId};
use sync_core::log::{Purge, TreeState};
use sync_core::record::{TreeName, TreeRoot, Who, WriteRule};

use crate::db::{Db, hash, misfit, seq};

/// A tree's number and state.
#[derive(Debug, Clone)]
pub(crate) struct TreeRow {
    pub(crate) tree_no: i64,
    pub(crate) state: TreeState,
}

/// The columns that [`read_tree`] reads, from column 0.
macro_rules! tree_columns {
    () => {
        "tree_no, root, created, first_author, heads, purged_at, purged_by"
    };
}
pub(crate) use tree_columns;

pub(crate) fn read_tree(db: &Db<'_>, space: SpaceId, row: &Row<'_>) -> rusqlite::Result<TreeRow> {
    let root = decode_root(db, space, row.get_ref(1)?.as_blob()?)?;
    let first_author = db.account(3, row.get_ref(3)?.as_blob()?)?;
    let heads = decode_heads(row.get_ref(4)?.as_blob()?)?;
    let purged = match row.get::<_, Option<i64>>(5)? {
        None => None,
        Some(_) => Some(Purge { at: seq(row, 5)?, by: TombstoneId::from_hash(hash(row, 6)?) }),
    };
    let state = TreeState { root, created: seq(row, 2)?, first_author, heads, purged };
    Ok(TreeRow { tree_no: row.get(0)?, state })
}

/// Sorted ids, one after the other.
pub(crate) fn encode_heads(heads: &BTreeSet<ChangeId>) -> Vec<u8> {
    heads.iter().flat_map(|h| h.as_bytes()).copied().collect()
}

fn decode_heads(bytes: &[u8]) -> rusqlite::Result<BTreeSet<ChangeId>> {
    let (ids, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(misfit(4, "heads are not whole ids"));
    }
    Ok(ids.iter().map(|id| ChangeId::from_hash(*id)).collect())
}

/// `name kind, who, once`, then the name (32 or 16 bytes), then the account if the rule has one. The space is the row's.
pub(crate) fn encode_root(root: &TreeRoot) -> Vec<u8> {
    let (who, account) = match &root.write_rule.who {
        Who::Writers => (0, None),
        Who::Admins => (1, None),
        Who::Account(account) => (2, Some(account)),
        Who::AccountOrAdmins(account) => (3, Some(account)),
    };
    let (kind, name): (u8, &[u8]) = match &root.name {
        TreeName::Tag(tag) => (0, tag),
        TreeName::Nonce(nonce) => (1, nonce),
    };
    let account = account.map_or(&[][..], |a: &AccountId| a.as_bytes());
    [&[kind, who, u8::from(root.write_rule.once)], name, account].concat()
}

fn decode_root(db: &Db<'_>, space: SpaceId, bytes: &[u8]) -> rusqlite::Result<TreeRoot> {
    let bad = || misfit(1, "not a tree root");
    let ([kind, who, once], rest) = bytes.split_first_chunk::<3>().ok_or_else(bad)?;
    let (name, account) = match kind {
        0 => rest.split_first_chunk().map(|(tag, rest)| (TreeName::Tag(*tag), rest)),
        1 => rest.split_first_chunk().map(|(nonce, rest)| (TreeName::Nonce(*nonce), rest)),
        _ => None,
    }
    .ok_or_else(bad)?;
    let who = match (who, account) {
        (0, []) => Who::Writers,
        (1, []) => Who::Admins,
        (2, account) => Who::Account(db.account(1, account)?),
        (3, account) => Who::AccountOrAdmins(db.account(1, account)?),
        _ => return Err(bad()),
    };
    let once = match once {
        0 => false,
        1 => true,
        _ => return Err(bad()),
    };
    Ok(TreeRoot { space, name, write_rule: WriteRule { who, once } })
}
