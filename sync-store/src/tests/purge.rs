//! What was ended for good keeps its entries and loses its content, in the file too.

use std::path::Path;

use bytes::Bytes;
use sync_core::ids::{ChangeId, Seq, SpaceId, TreeId};
use sync_core::log::{EntryKind, Submission, quarantine};

use super::world::{self, acl, append, check_invariants, delete_space, found, heads, open, purge};
use crate::{LogRow, Rebuilt, Store, StoreError, StoreKind, VerdictKind, VerdictRow};

/// Bytes that stand nowhere else: the mark of the tree, and the number of the change, over and over.
fn content(mark: u8, n: u32, len: usize) -> Bytes {
    let word = [&[mark; 12][..], &n.to_be_bytes()].concat();
    word.into_iter().cycle().take(len).collect()
}

/// Pages of the file and of its write-ahead log that hold a trace of the mark.
fn traces(dir: &Path, mark: u8) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        found += bytes.chunks(4096).filter(|page| page.windows(12).any(|w| w == [mark; 12])).count();
    }
    found
}

/// Begins a tree, or goes on with it.
async fn write(store: &Store, space: SpaceId, tree: u32, n: u32, content: Bytes) -> TreeId {
    let acl = acl(store, space);
    let root = world::root(space, tree);
    let id = TreeId::from(root.id());
    let begun = store.read(|tx| tx.tree(space, id)).unwrap().is_some();
    let parents: Vec<ChangeId> = if begun { heads(store, space, id) } else { Vec::new() };
    let change = world::change_with(&acl, 1, id, &parents, n, content);
    append(store, space, Submission::Change { root: (!begun).then_some(root), change }).await;
    id
}

fn rows(store: &Store, space: SpaceId) -> Vec<LogRow> {
    store.read(|tx| tx.entries(space, Seq::ZERO, usize::MAX, usize::MAX)).unwrap()
}

/// How many changes there are of a tree (or of all), and how many of them have their payload.
fn payloads(store: &Store, space: SpaceId, tree: Option<TreeId>) -> (usize, usize) {
    let rows = rows(store, space);
    let changes: Vec<_> =
        rows.iter().filter(|r| r.kind == EntryKind::Change && tree.is_none_or(|tree| r.tree == Some(tree))).collect();
    (changes.len(), changes.iter().filter(|r| r.record.payload.is_some()).count())
}

/// Two spaces that grow by turns, so that rows move between pages, and contents of every size.
async fn two_spaces(store: &Store) -> ([SpaceId; 2], TreeId) {
    let spaces = [found(store, 1).await, found(store, 2).await];
    let lengths = [20, 300, 900, 1_500, 3_000, 9_000, 40, 70_000, 600, 4_090];
    let mut ended = None;
    for n in 0..60 {
        let len = lengths[n as usize % lengths.len()];
        ended = Some(write(store, spaces[0], 1, n, content(0xa1, n, len)).await);
        write(store, spaces[0], 2, n, content(0xb2, n, len / 2)).await;
        write(store, spaces[1], 1, n, content(0xc3, n, len)).await;
    }
    (spaces, ended.unwrap())
}

#[tokio::test]
async fn a_purge_drops_the_content_of_its_tree_and_nothing_else() {
    for kind in [StoreKind::Node, StoreKind::Client] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), kind).unwrap();
        let ([space, other], tree) = two_spaces(&store).await;
        let before = rows(&store, space);
        let (bytes_before, digest_of_other) =
            store.read(|tx| Ok::<_, StoreError>((tx.counts(space)?.unwrap().bytes, tx.digest(other)?))).unwrap();
        append(&store, space, purge(&acl(&store, space), tree)).await;

        check_invariants(&store, space);
        check_invariants(&store, other);
        assert_eq!(payloads(&store, space, Some(tree)), (60, 0));
        assert_eq!(payloads(&store, space, None), (120, 60));
        assert_eq!(payloads(&store, other, None), (60, 60));
        assert!(store.read(|tx| tx.counts(space)).unwrap().unwrap().bytes < bytes_before);
        assert_eq!(store.read(|tx| tx.digest(other)).unwrap(), digest_of_other);
        // Everything but the content is as it was: who wrote what, after what, and the chain over it.
        for (was, is) in before.iter().zip(rows(&store, space)) {
            let mut was = was.clone();
            if was.tree == Some(tree) && was.kind == EntryKind::Change {
                was.record.payload = None;
            }
            assert_eq!(was, is);
        }
        assert_eq!(store.read(|tx| tx.change_links(space, tree)).unwrap().len(), 60);
        let rebuilt = store.write(move |tx| tx.rebuild_tree(space, tree)).await.unwrap().value;
        assert_eq!(rebuilt, Rebuilt::Unchanged);

        store.close().await;
        assert_eq!(traces(dir.path(), 0xa1), 0, "the ciphertext is gone from the file");
        assert!(traces(dir.path(), 0xb2) > 0 && traces(dir.path(), 0xc3) > 0, "the rest is there");
        let store = Store::open(dir.path(), kind).unwrap();
        check_invariants(&store, space);
        assert_eq!(payloads(&store, space, Some(tree)), (60, 0));
    }
}

/// Who comes late gets changes without content, and cannot know why before the tombstone. What it made of that goes with it;
/// that the node logged what the rules refuse stays.
#[tokio::test]
async fn verdicts_about_the_content_go_with_it() {
    for ends_space in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreKind::Client).unwrap();
        let space = found(&store, 1).await;
        let tree = write(&store, space, 1, 1, content(0xa1, 1, 500)).await;
        let other = write(&store, space, 2, 2, content(0xb2, 2, 500)).await;
        let changes = rows(&store, space).into_iter().filter(|row| row.kind == EntryKind::Change);
        let ids: Vec<ChangeId> = changes.map(|row| row.id.into()).collect();
        let bad = world::extend(&acl(&store, space), tree, &[ChangeId::from_hash([9; 32])], 7);
        let bad_id = ChangeId::from(bad.id());
        let named = [(tree, ids[0]), (other, ids[1]), (tree, bad_id)];
        let job = move |tx: &mut crate::WriteTx<'_>| {
            let decision = quarantine(&tx.view(space)?.unwrap(), &bad);
            tx.append(space, decision)?;
            for (tree, change) in named {
                let verdict = VerdictRow { kind: VerdictKind::Quarantined, detail: "?".into(), seq: Seq(4) };
                tx.put_verdict(space, tree, change, &verdict)?;
            }
            Ok::<_, StoreError>(())
        };
        store.write(job).await.unwrap();
        let acl = acl(&store, space);
        append(&store, space, if ends_space { delete_space(&acl) } else { purge(&acl, tree) }).await;
        let mut left: Vec<_> = store.read(|tx| tx.verdicts(space)).unwrap().into_iter().map(|(_, id, _)| id).collect();
        left.sort_unstable();
        let mut expected = if ends_space { vec![bad_id] } else { vec![bad_id, ids[1]] };
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}

#[tokio::test]
async fn a_purge_that_is_not_kept_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let tree = write(&store, space, 1, 1, content(0xa1, 1, 500)).await;
    let tombstone = purge(&acl(&store, space), tree);
    let job = move |tx: &mut crate::WriteTx<'_>| {
        world::append_in(tx, space, &tombstone)?;
        Err::<(), _>(StoreError::Closed)
    };
    store.write(job).await.unwrap_err();
    assert_eq!(payloads(&store, space, Some(tree)), (1, 1));
    check_invariants(&store, space);
}

#[tokio::test]
async fn a_quarantined_tombstone_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreKind::Client).unwrap();
    let space = found(&store, 1).await;
    let tree = write(&store, space, 1, 1, content(0xa1, 1, 500)).await;
    let tombstone = purge(&acl(&store, space), tree);
    let job = move |tx: &mut crate::WriteTx<'_>| {
        let decision = quarantine(&tx.view(space)?.unwrap(), &tombstone);
        tx.append(space, decision)
    };
    store.write(job).await.unwrap();
    assert_eq!(payloads(&store, space, Some(tree)), (1, 1));
    check_invariants(&store, space);
}

#[tokio::test]
async fn the_end_of_a_space_drops_the_content_of_all_its_trees() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ([space, other], _) = two_spaces(&store).await;
    append(&store, space, delete_space(&acl(&store, space))).await;
    check_invariants(&store, space);
    assert_eq!(payloads(&store, space, None), (120, 0));
    assert_eq!(payloads(&store, other, None), (60, 60));
    store.close().await;
    assert_eq!((traces(dir.path(), 0xa1), traces(dir.path(), 0xb2)), (0, 0));
    assert!(traces(dir.path(), 0xc3) > 0);
}
