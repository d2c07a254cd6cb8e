//! A backup is a whole store as of one moment.

use std::os::unix::fs::PermissionsExt as _;

use super::world::{self, append, check_invariants, found};
use crate::{BackupError, DATABASE_FILE, OpenError, Store, StoreKind, backup, check_backup};

fn restored(file: &std::path::Path) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(file, dir.path().join(DATABASE_FILE)).unwrap();
    let store = Store::open(dir.path(), StoreKind::Node).unwrap();
    (dir, store)
}

#[tokio::test]
async fn a_backup_is_made_beside_a_running_store() {
    let dir = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let store = world::open(dir.path());
    let space = found(&store, 1).await;
    let acl = world::acl(&store, space);
    let mut files = Vec::new();
    for n in 0..3 {
        append(&store, space, world::begin(&acl, n)).await;
        let to = out.path().join(format!("backup-{n}"));
        backup(dir.path(), StoreKind::Node, &to).unwrap();
        files.push((to, store.read(|tx| tx.space(space)).unwrap()));
    }
    append(&store, space, world::begin(&acl, 9)).await;
    check_invariants(&store, space);
    drop(store);
    for (file, row) in &files {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        check_backup(file, StoreKind::Node).unwrap();
        let (_dir, copy) = restored(file);
        assert_eq!(&copy.read(|tx| tx.space(space)).unwrap(), row);
        check_invariants(&copy, space);
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), files.len(), "nothing else is left");
}

#[tokio::test]
async fn a_backup_is_made_of_a_store_that_nobody_has_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = world::open(dir.path());
    let space = found(&store, 1).await;
    store.close().await;
    let file = dir.path().join("copy");
    backup(dir.path(), StoreKind::Node, &file).unwrap();
    let (_dir, copy) = restored(&file);
    check_invariants(&copy, space);
}

#[tokio::test]
async fn what_was_purged_is_not_in_a_later_backup() {
    let dir = tempfile::tempdir().unwrap();
    let store = world::open(dir.path());
    let space = found(&store, 1).await;
    let acl = world::acl(&store, space);
    let begin = world::begin(&acl, 4242);
    append(&store, space, begin.clone()).await;
    append(&store, space, world::purge(&acl, world::tree_of(&begin))).await;
    let file = dir.path().join("copy");
    backup(dir.path(), StoreKind::Node, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert!(!bytes.windows(12).any(|w| w == b"payload 4242"));
}

#[test]
fn a_backup_replaces_nothing_and_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy");
    let none = backup(dir.path(), StoreKind::Node, &file);
    assert!(matches!(none, Err(BackupError::NoStore { .. })), "{none:?}");
    drop(Store::open(dir.path(), StoreKind::Client).unwrap());
    let wrong = backup(dir.path(), StoreKind::Node, &file);
    assert!(matches!(wrong, Err(BackupError::Store(OpenError::WrongKind { .. }))), "{wrong:?}");
    std::fs::write(&file, "letters").unwrap();
    let there = backup(dir.path(), StoreKind::Client, &file);
    assert!(matches!(there, Err(BackupError::Exists { .. })), "{there:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"letters");
    let foreign = check_backup(&file, StoreKind::Node);
    assert!(matches!(foreign, Err(OpenError::Foreign { .. })), "{foreign:?}");
    let nowhere = backup(dir.path(), StoreKind::Client, &dir.path().join("no/such/dir"));
    assert!(matches!(nowhere, Err(BackupError::Io { .. })), "{nowhere:?}");
}
