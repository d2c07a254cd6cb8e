//! Reads and the life of a tree: one instance, every edit told once.

use client_sdk::{Event, Role};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, changed, join};

const EDITS: u64 = 10;
const READS: usize = 10_000;

/// Pages of objects, in the order of their trees, are the list: what only waits here, and what was deleted, too.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_objects_are_the_list() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let objects = space.objects();
    for n in 0..30 {
        let object_type = if n % 3 == 0 { "rare" } else { "item" };
        objects.put(object_type, &n.to_string(), json!({ "n": n })).await?;
    }
    objects.delete("item", "1").await?;
    space.await_synced_within(PATIENCE).await?;
    node.kill();
    for n in 30..40 {
        objects.put("item", &n.to_string(), json!({ "n": n })).await?;
    }
    objects.put("item", "2", json!({ "n": "other" })).await?;
    objects.delete("rare", "3").await?;
    for (object_type, listed) in
        [(Some("item"), objects.list("item")?), (Some("rare"), objects.list("rare")?), (None, objects.list_all()?)]
    {
        for size in [1, 4, 7, 100] {
            let (mut after, mut paged) = (None, Vec::new());
            loop {
                let page = objects.page(object_type, after, size)?;
                assert!(page.len() <= size);
                let Some(last) = page.last() else { break };
                after = Some(last.tree);
                paged.extend(page);
            }
            assert!(paged.windows(2).all(|pair| pair[0].tree < pair[1].tree), "each once, in one order");
            paged.sort_by(|a, b| (&a.object_type, &a.id).cmp(&(&b.object_type, &b.id)));
            assert_eq!(paged, listed, "{object_type:?} by {size}");
        }
    }
    Ok(())
}

/// S11: 10,000 reads between any two remote edits: every edit is told once, in order, by the same instance.
#[tokio::test(flavor = "multi_thread")]
async fn s11_reads_between_edits_lose_none() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("counter", "c", json!({ "n": 0 })).await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_object("counter", "c", PATIENCE).await?;
    let objects = joined.objects();
    let first = objects.tree("counter", "c")?.ok_or("it was just awaited")?;
    first.snapshot()?;
    let before = first.loads();

    let mut watch = objects.watch("counter");
    let mut turns = first.watch()?;
    for edit in 1..=EDITS {
        space.objects().put("counter", "c", json!({ "n": edit })).await?;
        for _ in 0..READS {
            let tree = objects.tree("counter", "c")?.ok_or("it does not go away")?;
            assert!(tree.is_same_instance(&first));
            let shown = tree.snapshot()?.object.clone().ok_or("it does not go away")?;
            assert!(shown.fields["n"] == edit || shown.fields["n"] == edit - 1, "neither before nor after: {shown:?}");
        }
        assert_eq!(changed(&mut watch).await?.fields["n"], edit);
        let turned = tokio::time::timeout(PATIENCE, turns.next()).await??.ok_or("the client is open")?;
        assert_eq!(turned.object, first.snapshot()?.object);
        assert_eq!(first.snapshot()?.object.as_ref().ok_or("it does not go away")?.fields["n"], edit);
    }
    space.objects().put("counter", "last", json!({ "n": 1 })).await?;
    assert_eq!(changed(&mut watch).await?.id, "last", "no edit was told twice");
    assert_eq!(first.loads() - before, EDITS, "built anew once for each edit, never for a read");
    Ok(())
}

/// S14: the handle from read, write, sync and feed is one allocation.
#[tokio::test(flavor = "multi_thread")]
async fn s14_one_instance_from_every_side() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let objects = joined.objects();
    let before = joined.live_trees();
    let mut feed = joined.events();

    let write = objects.put("item", "milk", json!({ "n": 1 })).await?.ok_or("a new object is a write")?;
    let of_write = objects.tree("item", "milk")?.ok_or("pending is enough")?;
    let told = told_tree(&mut feed).await?;
    let of_feed = joined.tree(told)?.ok_or("the feed told of it")?;
    joined.await_durable(write).await?;
    let of_sync = joined.tree(objects.tree_id("item", "milk")?)?.ok_or("logged now")?;
    space.await_object("item", "milk", PATIENCE).await?;
    let mut turns = of_sync.watch()?;
    space.objects().put("item", "milk", json!({ "n": 2 })).await?;
    tokio::time::timeout(PATIENCE, turns.next()).await??;
    let read = objects.get("item", "milk")?.ok_or("there")?;
    assert_eq!(read.fields["n"], 2);
    let of_read = joined.tree(read.tree)?.ok_or("read")?;

    let all = [&of_write, &of_feed, &of_sync, &of_read];
    assert!(all.iter().all(|handle| handle.is_same_instance(&of_read)));
    assert_eq!(joined.live_trees(), before + 1);
    Ok(())
}

async fn told_tree(feed: &mut client_sdk::Events) -> Outcome<client_sdk::TreeId> {
    loop {
        match tokio::time::timeout(PATIENCE, feed.next()).await? {
            Some(Event::Object { tree, object_type, .. }) if object_type == "item" => return Ok(tree),
            Some(_) => {}
            None => return Err("the feed ended".into()),
        }
    }
}
