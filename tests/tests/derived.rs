//! What a client derived from the log wrongly, or lost, it derives again by itself: as soon as it is told what others derived.

use std::path::Path;

use client_sdk::{Reason, ReasonCode, Role, Space, SpaceId, SyncState, TreeId};
use serde_json::json;
use sync_core::judge::{Judged, JudgedTree, Standing};
use sync_core::log::Reject;
use sync_store::{Store, StoreError, StoreKind, WriteTx};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, join, object, until};
use sync_tests::relay::{Calls, Relay};

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

/// Leaves the rows of a closed client as a wrong derivation does: some entries of these trees count for nothing, and digest,
/// heads and objects are consistent with that.
async fn derive_wrongly(dir: &Path, space: SpaceId, trees: Vec<(TreeId, Left)>) {
    let store = Store::open(dir, StoreKind::Client).expect("the store of a closed client");
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
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
            tx.put_judged(space, tree, &JudgedTree { entries, state })?;
        }
        Ok(())
    };
    let written = store.write(job).await.expect("the store of a closed client");
    store.durable(written.commit).await.expect("the store of a closed client");
    store.close().await;
}

/// HeadSync finds it, says so, and has it judged again from the log.
#[tokio::test(flavor = "multi_thread")]
async fn what_headsync_finds_to_differ_is_derived_again() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    for id in 0..ITEMS {
        put(&space, id, 1).await?;
    }
    put(&space, 2, 2).await?;
    space.await_synced_within(PATIENCE).await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced_within(PATIENCE).await?;
    let id = joined.id();
    drop(joined);
    let dir = member.shut().await;
    derive_wrongly(dir.path(), id, vec![(tree_of(&space, 1)?, Left::Nothing), (tree_of(&space, 2)?, Left::Older)])
        .await;

    // It hears once that something differs, and not again whether that has passed.
    let mut asked = 0;
    relay.calls(move |name| {
        asked += u32::from(name == "HeadSync");
        if name == "HeadSync" && asked > 1 { Calls::Refuse } else { Calls::Forward }
    });
    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    let different = || Ok(Reason::find(&joined.explain()?, ReasonCode::Different).cloned());
    let reason = until(&joined, different).await?;
    assert!(reason.detail.contains("2 tree(s)") || reason.count == 2, "{reason:?}");
    assert!(reason.since_ms.is_some() || !reason.examples.is_empty(), "{reason:?}");
    assert_eq!(joined.status()?.state, SyncState::CatchingUp);
    let whole = || {
        let items = joined.objects().list("item")?;
        Ok((items.len() == ITEMS && object(&joined, "item", "2")?.fields["n"] == 2).then_some(()))
    };
    until(&joined, whole).await?;
    assert!(relay.calls_met("HeadSync") <= 4, "it asks again after a pause");

    relay.heal();
    until(&joined, || Ok(joined.explain()?.is_empty().then_some(()))).await?;
    joined.await_synced_within(PATIENCE).await?;
    let status = joined.status()?;
    assert_eq!((status.quarantined, status.wanted, status.state), (0, 0, SyncState::UpToDate));
    assert_eq!(status.trees, space.status()?.trees);
    assert_eq!(status.changes, space.status()?.changes);
    assert_eq!(status.confirmed.map(|c| c.seq), Some(status.seq));
    agree(&[&space, &joined]).await
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
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced_within(PATIENCE).await?;
    let id = joined.id();
    drop(joined);
    let dir = member.shut().await;
    derive_wrongly(dir.path(), id, vec![(tree_of(&space, 1)?, Left::Nothing)]).await;

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
