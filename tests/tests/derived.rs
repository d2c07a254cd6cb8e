//! What a client derived from the log wrongly, or lost, it derives again by itself: as soon as it is told what others derived.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use client_sdk::{Reason, ReasonCode, Role, Space, SpaceId, SyncState, TreeId};
use serde_json::json;
use sync_core::judge::{Judged, JudgedTree, Standing};
use sync_core::limits;
use sync_core::log::Reject;
use sync_store::{Store, StoreError, StoreKind, WriteTx};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, join, object, put_rows, until};
use sync_tests::relay::{Calls, Relay};
use tempfile::TempDir;

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);
const ITEMS: usize = 5;

async fn put(space: &Space, id: usize, n: u64) -> Outcome {
    space.objects().put("item", &id.to_string(), json!({ "n": n })).await?;
    Ok(())
}

fn tree_of(space: &Space, id: usize) -> Outcome<TreeId> {
    Ok(space.objects().tree_id("item", &id.to_string())?)
}

/// What is left of a tree.
#[derive(Debug, Clone, Copy)]
enum Left {
    Nothing,
    /// All but its last change.
    Older,
}

/// Leaves the rows of a closed store as a wrong derivation does: some entries of these trees count for nothing, and digest,
/// heads and objects are consistent with that.
async fn derive_wrongly(dir: &Path, kind: StoreKind, space: SpaceId, trees: Vec<(TreeId, Left)>) {
    let store = Store::open(dir, kind).expect("a closed store");
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
        let mut judged_trees = Vec::new();
        for (tree, left) in trees {
            let mut rows = tx.tree_changes(space, tree)?;
            rows.sort_by_key(|row| row.position.seq);
            let kept = match left {
                Left::Nothing => 0,
                Left::Older => rows.len() - 1,
            };
            let judged = |(at, row): (usize, &sync_store::LogRow)| Judged {
                root: None,
                at: row.position.seq,
                standing: match at < kept {
                    true => Standing::Accepted { height: row.height },
                    false => Standing::Quarantined(Reject::NotAnEntry),
                },
            };
            let entries = rows.iter().enumerate().map(judged).collect();
            let mut state = tx.tree(space, tree)?.filter(|_| kept > 0);
            if let Some(state) = &mut state {
                state.heads = [rows[kept - 1].id.into()].into();
            }
            tx.delete_object(space, tree)?;
            judged_trees.push((tree, JudgedTree { entries, state }));
        }
        tx.put_judged(space, &judged_trees)
    };
    let written = store.write(job).await.expect("a closed store");
    store.durable(written.commit).await.expect("a closed store");
    store.close().await;
}

/// Two of the trees are not what the log says: one is lost, of one the newest change.
async fn two_wrong(dir: &Path, kind: StoreKind, space: &Space) -> Outcome {
    let wrong = vec![(tree_of(space, 1)?, Left::Nothing), (tree_of(space, 2)?, Left::Older)];
    derive_wrongly(dir, kind, space.id(), wrong).await;
    Ok(())
}

async fn put_items(space: &Space) -> Outcome {
    for id in 0..ITEMS {
        put(space, id, 1).await?;
    }
    put(space, 2, 2).await?;
    space.await_synced_within(PATIENCE).await?;
    Ok(())
}

/// Lets a member in, waits until it has everything, and closes it.
async fn joined_and_shut(space: &Space, member: TestClient, role: Role) -> Outcome<TempDir> {
    let joined = join(space, &member, role).await?;
    joined.await_synced_within(PATIENCE).await?;
    drop(joined);
    Ok(member.shut().await)
}

fn is_whole(space: &Space) -> Outcome<bool> {
    Ok(space.objects().list("item")?.len() == ITEMS && object(space, "item", "2")?.fields["n"] == 2)
}

/// HeadSync finds it, and has it judged again from the log.
#[tokio::test(flavor = "multi_thread")]
async fn what_headsync_finds_to_differ_is_derived_again() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space).await?;
    let (dir, id) = (joined_and_shut(&space, member, Role::Writer).await?, space.id());
    two_wrong(dir.path(), StoreKind::Client, &space).await?;

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    until(&joined, || Ok((is_whole(&joined)? && joined.explain()?.is_empty()).then_some(()))).await?;
    joined.await_synced_within(PATIENCE).await?;
    let status = joined.status()?;
    assert_eq!((status.quarantined, status.wanted, status.state), (0, 0, SyncState::UpToDate));
    assert_eq!((status.trees, status.changes), (space.status()?.trees, space.status()?.changes));
    until(&joined, || Ok(joined.status()?.confirmed.filter(|c| c.seq == status.seq))).await?;
    agree(&[&space, &joined]).await
}

/// So much differs that the elements are listed, page by page, instead of decoded.
#[tokio::test(flavor = "multi_thread")]
async fn when_nearly_everything_differs_it_is_listed_in_pages() -> Outcome {
    const MANY: usize = limits::HEADSYNC_PAGE_MAX + 100;
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    for n in 1..=2 {
        put_rows(&space, "item", MANY, |_| json!({ "n": n })).await?;
    }
    let joined = join(&space, &member, Role::Reader).await?;
    joined.await_synced_within(PATIENCE).await?;
    let id = joined.id();
    let before = until(&joined, || Ok(joined.status()?.confirmed)).await?;
    drop(joined);
    let dir = member.shut().await;
    let older = (0..MANY).map(|item| Ok((tree_of(&space, item)?, Left::Older))).collect::<Outcome<Vec<_>>>()?;
    derive_wrongly(dir.path(), StoreKind::Client, id, older).await;

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    let no = joined.await_synced_within(Duration::ZERO).await.expect_err("it is another state, and will be found out");
    assert!(!no.residue.is_empty(), "{no:?}");
    until(&joined, || Ok(joined.status()?.confirmed.filter(|c| c.at_ms > before.at_ms))).await?;
    assert_eq!(joined.objects().list("item")?.iter().filter(|o| o.fields["n"] == 2).count(), MANY);
    assert_eq!(joined.explain()?, []);
    agree(&[&space, &joined]).await
}

/// Of the trees that are to be judged again, one cannot be: its record is damaged here. It is in no other tree's way.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_judged_is_in_nobodys_way() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space).await?;
    let (dir, id) = (joined_and_shut(&space, member, Role::Writer).await?, space.id());
    let damaged = tree_of(&space, 0)?;
    let wrong = (0..ITEMS).map(|item| Ok((tree_of(&space, item)?, Left::Nothing))).collect::<Outcome<Vec<_>>>()?;
    derive_wrongly(dir.path(), StoreKind::Client, id, wrong).await;
    damage_record(dir.path(), id, damaged).await?;

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    until(&joined, || Ok((joined.objects().list("item")?.len() == ITEMS - 1).then_some(()))).await?;
    let failing = || Ok(joined.explain_tree(damaged)?.into_iter().find(|reason| reason.attempts > 0));
    let reason = until(&joined, failing).await?;
    assert_eq!(reason.code, ReasonCode::Different);
    assert!(reason.detail.contains("damaged") && reason.next_retry_ms.is_some(), "{reason:?}");
    joined.await_synced_within(A_MOMENT).await.expect_err("one tree is not what the node has");
    Ok(())
}

/// One bit of the signature of a tree's first change turns over on the disk of a closed client.
async fn damage_record(dir: &Path, space: SpaceId, tree: TreeId) -> Outcome {
    let store = Store::open(dir, StoreKind::Client)?;
    let place = store.read(|tx| tx.entries_of_trees(space, &BTreeSet::from([tree]), &BTreeSet::new()))?;
    let at = *place.get(&tree).and_then(|seqs| seqs.last()).ok_or("a tree has entries")?;
    let record = store.read(|tx| tx.entry_at(space, at))?.ok_or("it is in the log")?.record;
    store.close().await;
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        let mut bytes = if path.is_file() { std::fs::read(&path)? } else { continue };
        let found = bytes.windows(record.signature.len()).position(|part| *part == record.signature[..]);
        if let Some(at) = found {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes)?;
            return Ok(());
        }
    }
    Err("no file has the signature".into())
}

/// When it is the node that derived something wrongly, its clients say that they differ, as long as it is so, and stay right.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_derived_wrongly_differs() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space).await?;
    node.kill();
    let right = node.copy_store();
    two_wrong(&node.dir().join("store"), StoreKind::Node, &space).await?;
    node.restart();
    admin.reconnect();
    let still = || {
        let different = Reason::find(&space.explain()?, ReasonCode::Different).cloned();
        Ok(different.filter(|reason| reason.detail.contains("still")))
    };
    let reason = until(&space, still).await?;
    assert!(reason.detail.starts_with("2 tree(s)") && reason.since_ms.is_some(), "{reason:?}");
    assert_eq!(space.status()?.state, SyncState::CatchingUp);
    assert!(is_whole(&space)?, "the log is what counts");
    let no = space.await_synced_within(A_MOMENT).await.expect_err("heads that differ are not the same");
    assert!(Reason::find(&no.residue, ReasonCode::Different).is_some(), "{no:?}");
    let of_one = space.explain_tree(tree_of(&space, 1)?)?;
    assert!(Reason::find(&of_one, ReasonCode::Different).is_some(), "{of_one:?}");

    node.kill();
    node.put_back(&right);
    node.restart();
    admin.reconnect();
    until(&space, || Ok(space.explain()?.is_empty().then_some(()))).await?;
    space.await_synced_within(PATIENCE).await?;
    assert!(is_whole(&space)?);
    Ok(())
}

/// A change that stands in quarantine because what it builds on was lost here is judged again when the node tells heads of its
/// tree.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_quarantine_is_judged_again_when_the_heads_move() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    for id in 0..ITEMS {
        put(&space, id, 1).await?;
    }
    space.await_synced_within(PATIENCE).await?;
    let (dir, id) = (joined_and_shut(&space, member, Role::Writer).await?, space.id());
    derive_wrongly(dir.path(), StoreKind::Client, id, vec![(tree_of(&space, 1)?, Left::Nothing)]).await;

    // Nothing compares: only the tail tells.
    relay.calls(|name| if name == "HeadSync" { Calls::Refuse } else { Calls::Forward });
    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(joined.objects().list("item")?.len(), ITEMS - 1, "one is lost here");
    put(&space, 1, 2).await?;
    let right = || Ok(joined.objects().get("item", "1")?.filter(|object| object.fields["n"] == 2).map(drop));
    until(&joined, right).await?;
    let status = joined.status()?;
    assert_eq!((status.quarantined, status.wanted), (0, 0), "{:?}", status.reasons);
    put(&joined, 1, 3).await?;
    joined.await_synced_within(PATIENCE).await?;
    relay.heal();
    agree(&[&space, &joined]).await
}
