//! Both halves of an operator's work with backups: making one beside a running node, and putting one back so that clients
//! recognise it as a restore.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use sync_core::history::SignedHistory;
use sync_core::ids::{AuthorityId, HistoryId};
use sync_core::record::{HistoryStarted, Verified};
use sync_host::Host;
use sync_store::{BackupError, DATABASE_FILE, OpenError, SpaceRow, Store, StoreError, StoreKind, WriteError, WriteTx};

use crate::identity::{AUTHORITY_FILE, Identity, IdentityError, NODE_FILE, NodeKeys};
use crate::node::{KEYS_DIR, STORE_DIR};
use crate::recovering::Recovering;

/// Where a restore makes the new store.
pub(crate) const RESTORING_DIR: &str = "store.restoring";

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Spaces that have a new history.
    pub spaces: usize,
    /// Where the store is that stood there before.
    pub replaced: Option<PathBuf>,
}

/// Why a node was not restored. The data directory is as it was then, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{} has no keys: put back your copy of them first, or clients will not know this node", .path.display())]
    NoKeys { path: PathBuf },
    #[error("there is no store in {}: name a backup with --backup", .path.display())]
    NoStore { path: PathBuf },
    #[error("the store could not be opened")]
    Store(#[from] OpenError),
    #[error("the node's keys could not be used")]
    Identity(#[from] IdentityError),
    #[error(
        "the store is of the node {theirs}, and the keys are those of {ours}: put its own keys there, or name its own backup"
    )]
    OtherNode { theirs: AuthorityId, ours: AuthorityId },
    #[error("the backup could not be copied")]
    Copy(#[from] BackupError),
    #[error("the new histories could not be written")]
    Renew(#[from] WriteError<StoreError>),
    #[error("the new histories may be lost in a power cut: restore again")]
    NotDurable(#[source] StoreError),
    #[error("{} cannot be read or written", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Copies the store of the node in `data` into the new file `to`, whether the node runs or not. The keys are not in it.
///
/// # Errors
/// See [`BackupError`].
pub fn back_up(data: &Path, to: &Path) -> Result<(), BackupError> {
    sync_store::backup(&data.join(STORE_DIR), StoreKind::Node, to)
}

/// Makes the store in `data` a restored one: every space gets a new history and a signed word about it, and the next start
/// takes nothing new for a while. With `backup`, that file takes the place of the store; otherwise the operator has put an
/// older store there. The node must not run.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore(data: &Path, backup: Option<&Path>) -> Result<Restored, RestoreError> {
    let host = Host::real();
    let keys = data.join(KEYS_DIR);
    if !keys.join(AUTHORITY_FILE).is_file() || !keys.join(NODE_FILE).is_file() {
        return Err(RestoreError::NoKeys { path: keys });
    }
    let identity = Identity::existing(&host, &keys)?;
    let store = data.join(STORE_DIR);
    match backup {
        None if !store.join(DATABASE_FILE).is_file() => Err(RestoreError::NoStore { path: store }),
        None => {
            let opened = Store::open(&store, StoreKind::Node)?;
            let opened = owned_by(&identity, opened).await?;
            Recovering::order(data).map_err(at(data))?;
            Ok(Restored { spaces: renew(&host, &identity, opened).await?, replaced: None })
        }
        Some(backup) => {
            sync_store::check_backup(backup, StoreKind::Node)?;
            // Nobody may have the store open that is put away; without one there is nobody to ask.
            let _lock = store.is_dir().then(|| sync_store::lock(&store)).transpose()?;
            let beside = data.join(RESTORING_DIR);
            let opened = put_beside(backup, &beside)?;
            let opened = owned_by(&identity, opened).await?;
            let spaces = renew(&host, &identity, opened).await?;
            Recovering::order(data).map_err(at(data))?;
            let replaced = put_away(&host, data, &store)?;
            if let Err(error) = fs::rename(&beside, &store) {
                // As it was. If that fails, too, the next start says what happened.
                replaced.map(|replaced| fs::rename(replaced, &store)).transpose().map_err(at(&store))?;
                return Err(at(&store)(error));
            }
            fs::File::open(data).and_then(|dir| dir.sync_all()).map_err(at(data))?;
            Ok(Restored { spaces, replaced })
        }
    }
}

/// As [`restore`], for a store without a directory, see [`crate::Node::start_on`]: the older store is in place already. Closes
/// it. The caller sees to the time after it, with [`crate::Recovering::lasting`]. For simulated worlds.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore_on(host: &Host, store: Store, keys: &NodeKeys) -> Result<usize, RestoreError> {
    renew(host, &Identity::of(host, keys)?, store).await
}

/// A store of its own with what the backup says.
fn put_beside(backup: &Path, beside: &Path) -> Result<Store, RestoreError> {
    match fs::remove_dir_all(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(beside)(error)),
        // An earlier restore did not get to its end.
        Ok(()) | Err(_) => {}
    }
    fs::DirBuilder::new().mode(0o700).create(beside).map_err(at(beside))?;
    let database = beside.join(DATABASE_FILE);
    sync_store::copy_backup(backup, StoreKind::Node, &database)?;
    Ok(Store::open(beside, StoreKind::Node)?)
}

fn put_away(host: &Host, data: &Path, store: &Path) -> Result<Option<PathBuf>, RestoreError> {
    if !store.exists() {
        return Ok(None);
    }
    let replaced = data.join(format!("{STORE_DIR}.replaced-{}", host.wall_ms()));
    fs::rename(store, &replaced).map_err(at(store))?;
    Ok(Some(replaced))
}

/// A node can speak for spaces only that it is the home of. One whose owners moved some away is still theirs.
async fn owned_by(identity: &Identity, store: Store) -> Result<Store, RestoreError> {
    let ours = identity.authority();
    let homes = |tx: &sync_store::ReadTx<'_>| -> Result<Vec<AuthorityId>, StoreError> {
        let acls = tx.spaces()?.into_iter().map(|row| tx.acl(row.space)).collect::<Result<Vec<_>, _>>()?;
        Ok(acls.into_iter().flatten().filter_map(|acl| acl.home).collect())
    };
    let homes = store.read(homes).map_err(WriteError::Job)?;
    let Some(theirs) = homes.first().filter(|_| !homes.contains(&ours)) else { return Ok(store) };
    store.close().await;
    Err(RestoreError::OtherNode { theirs: *theirs, ours })
}

/// Gives every space a new history, in one transaction, and closes the store.
async fn renew(host: &Host, identity: &Identity, store: Store) -> Result<usize, RestoreError> {
    let spaces = store.read(|tx| tx.spaces()).map_err(WriteError::Job)?;
    let renewed: Vec<_> = spaces.iter().map(|row| (row.space, started(host, identity, row))).collect();
    let count = renewed.len();
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
        for (space, signed) in &renewed {
            let new = signed.body().new;
            tx.set_history(*space, new)?;
            tx.put_history(*space, new, &signed.to_export().encode_to_vec())?;
        }
        Ok(())
    };
    let written = store.write(job).await?;
    store.durable(written.commit).await.map_err(RestoreError::NotDurable)?;
    store.close().await;
    Ok(count)
}

fn started(host: &Host, identity: &Identity, row: &SpaceRow) -> SignedHistory {
    let body = HistoryStarted {
        authority: identity.authority(),
        node: identity.node(),
        space: row.space,
        old: row.history,
        new: HistoryId(host.random()),
        after_seq: row.position.seq,
        chain: row.position.chain,
        at_ms: host.wall_ms(),
    };
    let signed = Verified::sign(&body, &identity.node_key, None).expect("two random histories differ");
    SignedHistory::pair(signed, identity.certificate.clone()).expect("the certificate is this node's")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(keys: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        if keys {
            Identity::open(&Host::real(), &dir.path().join(KEYS_DIR)).unwrap();
        }
        dir
    }

    fn store_of(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join(STORE_DIR), StoreKind::Node).unwrap()
    }

    #[tokio::test]
    async fn what_a_restore_needs_is_asked_for_by_name() {
        let without = node(false);
        let refused = restore(without.path(), None).await;
        assert!(matches!(refused, Err(RestoreError::NoKeys { .. })), "{refused:?}");
        assert!(!without.path().join(KEYS_DIR).exists(), "no new identity is made");
        let empty = node(true);
        let refused = restore(empty.path(), None).await;
        assert!(matches!(refused, Err(RestoreError::NoStore { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_node_that_runs_is_not_restored() {
        let dir = node(true);
        let running = store_of(&dir);
        running.write(|tx| tx.kv_put("mark", b"newer")).await.unwrap();
        let file = dir.path().join("backup");
        back_up(dir.path(), &file).unwrap();
        for backup in [None, Some(file.as_path())] {
            let refused = restore(dir.path(), backup).await;
            assert!(matches!(refused, Err(RestoreError::Store(OpenError::InUse { .. }))), "{refused:?}");
        }
        running.close().await;
    }

    #[tokio::test]
    async fn a_copied_store_comes_back_with_its_log() {
        let dir = node(true);
        let running = store_of(&dir);
        running.write(|tx| tx.kv_put("mark", b"in the log alone")).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        for file in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}-wal")] {
            fs::copy(dir.path().join(STORE_DIR).join(&file), copy.path().join(&file)).unwrap();
        }
        running.close().await;
        restore(dir.path(), Some(&copy.path().join(DATABASE_FILE))).await.unwrap();
        let mark = store_of(&dir).read(|tx| tx.kv("mark")).unwrap();
        assert_eq!(mark.as_deref(), Some(&b"in the log alone"[..]));
    }

    #[tokio::test]
    async fn a_backup_takes_the_place_of_the_store_which_is_kept() {
        let dir = node(true);
        let store = store_of(&dir);
        store.write(|tx| tx.kv_put("mark", b"older")).await.unwrap();
        let file = dir.path().join("backup");
        back_up(dir.path(), &file).unwrap();
        store.write(|tx| tx.kv_put("mark", b"newer")).await.unwrap();
        store.close().await;
        let restored = restore(dir.path(), Some(&file)).await.unwrap();
        assert_eq!(restored.spaces, 0);
        let mark = |store: Store| store.read(|tx| tx.kv("mark")).unwrap();
        assert_eq!(mark(store_of(&dir)).as_deref(), Some(&b"older"[..]));
        let replaced = Store::open(&restored.replaced.unwrap(), StoreKind::Node).unwrap();
        assert_eq!(mark(replaced).as_deref(), Some(&b"newer"[..]));
        assert!(dir.path().join(crate::RECOVERING_FILE).exists());
    }
}
