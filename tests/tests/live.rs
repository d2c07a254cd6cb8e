//! Live trees: built once, evicted without loss, told change by change, and contained when something panics over one of them.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use client_sdk::host::Host;
use client_sdk::{
    ChangeCursor, ClientConfig, InviteOptions, MemoryVault, NewTree, NotSyncedCode, ObjectType, Place, ReadError,
    ReasonCode, ReplayWhy, Role, Space, Tree, TreeStep, TreeWrite, WriteRule,
};
use serde_json::json;
use sync_store::{ObjectRow, StoreKind};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, changed, join, object, rows, until};
use tokio::task::JoinSet;

const READERS: usize = 1_000;
const TREES: usize = 400;
const CACHED: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not zero");

/// S10: 1,000 readers that cannot wait, during a cold join: each tree is fetched once, and built once.
#[tokio::test(flavor = "multi_thread")]
async fn s10_a_thousand_readers_cost_one_build_and_one_fetch_a_tree() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put_many(rows("row", 0..TREES, |n| json!({ "n": n }))).await?;
    space.await_synced_within(PATIENCE).await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let joining = member.join(&token).await?;
    // The replica is there from the first entry on; who reads now reads while the rest streams in.
    let id = space.id();
    let joined = loop {
        match member.space(id) {
            Ok(joined) => break joined,
            Err(ReadError::UnknownSpace(_)) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    };
    let mut readers = JoinSet::new();
    for n in 0..READERS {
        let joined = joined.clone();
        readers.spawn(async move { joined.await_object("row", &(n % TREES).to_string(), PATIENCE).await });
    }
    joining.ready(PATIENCE).await?;
    while let Some(read) = readers.join_next().await {
        let object = read??;
        assert_eq!(object.id, object.fields["n"].to_string());
    }
    joined.await_synced_within(PATIENCE).await?;
    for n in 0..TREES {
        let tree = joined.objects().tree("row", &n.to_string())?.ok_or("synced")?;
        assert_eq!(tree.loads(), 1, "row {n}");
    }
    let counters = joined.tree_counters();
    assert_eq!(counters.repeated, 0, "{counters:?}");
    // The first two entries found the space, and came with the answer to the join.
    assert_eq!(counters.fetched, joined.status()?.seq - 2, "every record once: {counters:?}");
    assert!(counters.hits > 0 && counters.evicted == 0, "{counters:?}");
    Ok(())
}

/// 1,000 readers of one tree while its writer is busy: none waits for another, none sees an older state after a newer one, and all
/// of them cost no more than the commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_and_a_writer_share_one_instance() -> Outcome {
    const WRITES: u64 = 100;
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "milk", json!({ "n": 0 })).await?;
    space.await_synced().await?;
    let tree = space.objects().tree("item", "milk")?.ok_or("written")?;
    tree.snapshot()?;
    let loads = tree.loads();
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let space = space.clone();
        readers.spawn(async move {
            let mut seen = 0;
            while seen < WRITES {
                let tree = space.objects().tree("item", "milk")?.ok_or("written")?;
                let snapshot = tree.snapshot()?;
                let now = snapshot.object.as_ref().and_then(|o| o.fields["n"].as_u64()).ok_or("an object")?;
                assert!(now >= seen, "{now} after {seen}");
                seen = now;
                tokio::task::yield_now().await;
            }
            Outcome::Ok(())
        });
    }
    for n in 1..=WRITES {
        space.objects().put("item", "milk", json!({ "n": n })).await?;
    }
    while let Some(read) = readers.join_next().await {
        read??;
    }
    space.await_synced_within(PATIENCE).await?;
    // A write is kept, logged, and signed for: each is a commit, and some come together.
    let built = tree.loads() - loads;
    assert!(built <= 4 * WRITES, "{built} times for {WRITES} writes and {READERS} readers");
    Ok(())
}

/// S12: a cache of 8, 1,000 other trees touched: whoever follows a tree, in any way, is told of the edit.
#[tokio::test(flavor = "multi_thread")]
async fn s12_eviction_loses_no_edit() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create_with("Member", node.address(), |c| c.cached_trees(CACHED)).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "followed", json!({ "n": 1 })).await?;
    space.objects().put("item", "dropped", json!({ "n": 1 })).await?;
    space.objects().put_many(rows("other", 0..1_000, |n| json!({ "n": n }))).await?;
    space.await_synced().await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;

    // Nobody keeps the handle: each holds the instance by itself.
    let of = |id: &str| -> Outcome<Tree> { Ok(joined.objects().tree("item", id)?.ok_or("synced")?) };
    let mut snapshots = of("followed")?.watch()?;
    let mut changes = of("followed")?.feed();
    let mut objects = joined.objects().watch("item");
    while changes.next_now()?.is_some() {}
    of("dropped")?.snapshot()?;
    for n in 0..1_000 {
        joined.objects().tree("other", &n.to_string())?.ok_or("synced")?.snapshot()?;
    }
    let counters = joined.tree_counters();
    assert_eq!(counters.cached, CACHED.get(), "{counters:?}");
    assert!(counters.live <= CACHED.get() + 1 && counters.evicted >= 993, "{counters:?}");

    space.objects().put("item", "dropped", json!({ "n": 2 })).await?;
    space.objects().put("item", "followed", json!({ "n": 2 })).await?;
    let shown = tokio::time::timeout(PATIENCE, snapshots.next()).await??.ok_or("the client is open")?;
    assert_eq!(shown.object.as_ref().ok_or("there")?.fields["n"], 2);
    let told = tokio::time::timeout(PATIENCE, changes.next()).await??.ok_or("the client is open")?;
    assert!(matches!(told.step, TreeStep::Change { place: Place::Append, .. }), "{told:?}");
    // Both may come as one batch, which tells of its objects in no certain order.
    let told = BTreeSet::from([changed(&mut objects).await?.id, changed(&mut objects).await?.id]);
    assert_eq!(told, BTreeSet::from(["dropped".to_owned(), "followed".to_owned()]));
    assert_eq!(object(&joined, "item", "dropped")?.fields["n"], 2, "read anew, with everything in it");
    assert!(of("followed")?.is_same_instance(snapshots.tree()));
    Ok(())
}

/// S16: a load that failed is not remembered: the next read meets a healthy store.
#[tokio::test(flavor = "multi_thread")]
async fn s16_a_failed_load_is_not_cached() -> Outcome {
    let node = NodeProcess::start();
    let dir = tempfile::tempdir()?;
    let store = sync_store::Store::open(dir.path(), StoreKind::Client)?;
    let config = ClientConfig::on(Host::real(), MemoryVault::default(), store.clone());
    let (client, _) = client_sdk::Client::create(config.node(node.address().clone())).await?;
    let space = client.create_space("Club").await?;
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a new object is a write")?;
    space.await_durable(write).await?;
    let id = space.id();
    let tree = space.objects().tree_id("item", "milk")?;
    let whole = store.read(|tx| tx.object(id, tree))?.ok_or("it is projected")?;

    // Under the client's feet, as a bad sector would.
    let damaged = ObjectRow { state: vec![0; 64], ..whole.clone() };
    store.write::<_, sync_store::StoreError, _>(move |tx| tx.put_object(id, &damaged)).await?;
    let other = client_sdk::ReadError::Row(sync_e2ee::ContentError::Undecryptable);
    evict(&space).await?;
    for _ in 0..3 {
        let failed = space.objects().get("item", "milk").err().ok_or("the row is damaged")?;
        assert_eq!(failed.code(), other.code());
    }
    store.write::<_, sync_store::StoreError, _>(move |tx| tx.put_object(id, &whole)).await?;
    assert_eq!(object(&space, "item", "milk")?.fields["n"], 1);
    client.close().await;
    Ok(())
}

/// Has every instance that nobody holds leave the cache.
async fn evict(space: &Space) -> Outcome {
    space.objects().put_many(rows("filler", 0..1_100, |n| json!({ "n": n }))).await?;
    for n in 0..1_100 {
        space.objects().tree("filler", &n.to_string())?.ok_or("just written")?.snapshot()?;
    }
    Ok(())
}

/// S24: a panic over one tree, in the application's own code on the storage thread: that tree says so, the others go on, and the
/// fixed program shows it.
#[tokio::test(flavor = "multi_thread")]
async fn s24_a_panic_over_one_tree_is_contained_and_visible() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("poison", "good", json!({ "n": 1 })).await?;
    space.objects().put("poison", "bad", json!({ "n": 1 })).await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    space.await_synced().await?;
    let panics = Arc::new(AtomicBool::new(true));
    let typed = |config: ClientConfig| {
        let panics = panics.clone();
        config.object_type(ObjectType::new("poison").rule(move |id| {
            assert!(id != "bad" || !panics.load(Ordering::Relaxed), "this rule cannot judge {id:?}");
            WriteRule::WRITERS
        }))
    };
    let member = TestClient::create_with("Member", node.address(), typed).await;
    let token = space.invite(InviteOptions::open()).await?.token;
    let joined = member.join(&token).await?.ready(PATIENCE).await?.remove(0);

    let failed = joined.await_synced_within(PATIENCE).await.err().ok_or("one tree cannot be shown")?;
    assert_eq!(failed.code, NotSyncedCode::Panicked, "{failed:?}");
    let bad = space.objects().tree_id("poison", "bad")?;
    assert!(failed.residue.iter().all(|reason| reason.code == ReasonCode::Panicked), "{failed:?}");
    let told = format!("{:?}", joined.explain()?);
    assert!(told.contains(&bad.short()) && told.contains("cannot judge"), "{told}");
    assert_eq!(object(&joined, "poison", "good")?.fields["n"], 1);

    // Everything else goes on, here and in both directions.
    space.objects().put("poison", "bad", json!({ "n": 2 })).await?;
    space.objects().put("item", "milk", json!({ "n": 2 })).await?;
    until(&joined, || Ok((object(&joined, "item", "milk")?.fields["n"] == 2).then_some(()))).await?;
    let write = joined.objects().put("item", "bread", json!({ "n": 1 })).await?.ok_or("a new object is a write")?;
    joined.await_durable_within(write, PATIENCE).await?;
    assert!(joined.tree(bad)?.ok_or("it is in the log")?.snapshot()?.object.is_none());

    // The same data under a program that can.
    let dir = member.shut().await;
    panics.store(false, Ordering::Relaxed);
    let client = client_sdk::Client::open(typed(sync_tests::harness::config(dir.path()))).await?;
    let again = client.space(space.id())?;
    again.await_synced_within(PATIENCE).await?;
    assert_eq!(object(&again, "poison", "bad")?.fields["n"], 2);
    client.close().await;
    Ok(())
}

/// The feed of a tree against the tree itself: two who write at the same time, cut and resumed anywhere, pending writes, purge.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_every_change_once_and_where_it_goes() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let write = |text: String| vec![TreeWrite { parents: None, payload: text.into() }];
    let new = NewTree { data_type: "line".to_owned(), write_rule: WriteRule::WRITERS };
    let tree = space.create_tree(new, write("first".to_owned())).await?.tree;
    space.await_synced().await?;
    joined.await_synced().await?;

    // What a reader makes of the steps alone, resumed from its cursor after every few of them.
    let mut reader = Lines::default();
    let mut inserted = 0;
    let followed = joined.tree(tree)?.ok_or("synced")?;
    for round in 0..12 {
        // At the same time, from the same heads: one of the two goes before the other in the order of the tree.
        let (ours, theirs) = tokio::join!(
            space.append(tree, "line".to_owned(), write(format!("admin {round}"))),
            joined.append(tree, "line".to_owned(), write(format!("member {round}"))),
        );
        ours?;
        theirs?;
        inserted += reader.read(&followed, 1 + round % 3)?;
        if round % 4 == 3 {
            space.await_synced_within(PATIENCE).await?;
            joined.await_synced_within(PATIENCE).await?;
        }
        inserted += reader.read(&followed, 1 + round % 5)?;
    }
    space.await_synced_within(PATIENCE).await?;
    joined.await_synced_within(PATIENCE).await?;
    inserted += reader.read(&followed, usize::MAX)?;
    let expected: Vec<_> = followed.changes()?.iter().map(|c| (c.order(), c.content.clone())).collect();
    assert_eq!(reader.lines, expected);
    assert!(inserted > 0, "some were written at the same time");
    assert_eq!(reader.replays, 1, "from the beginning, once");

    space.purge_tree(tree).await?;
    space.await_synced_within(PATIENCE).await?;
    joined.await_synced_within(PATIENCE).await?;
    let mut feed = followed.changes_from(reader.cursor);
    assert_eq!(feed.next_now()?.ok_or("purged")?.step, TreeStep::Purged);
    assert_eq!(feed.next_now()?, None);
    assert_eq!(followed.changes_from(feed.cursor()).next_now()?, None, "told once");
    Ok(())
}

/// What an application would keep: the lines in order, and how far it has read.
struct Lines {
    cursor: ChangeCursor,
    lines: Vec<(client_sdk::OrderKey, Option<(String, bytes::Bytes)>)>,
    replays: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { cursor: ChangeCursor::START, lines: Vec::new(), replays: 0 }
    }
}

impl Lines {
    /// Reads some steps, from where it was; how many went between others.
    fn read(&mut self, tree: &Tree, steps: usize) -> Outcome<usize> {
        let mut feed = tree.changes_from(self.cursor.to_string().parse()?);
        let mut inserted = 0;
        for _ in 0..steps {
            let Some(told) = feed.next_now()? else { break };
            self.cursor = told.cursor;
            match told.step {
                TreeStep::Replay(why) => {
                    assert_eq!(why, ReplayWhy::Beginning);
                    self.lines.clear();
                    self.replays += 1;
                }
                TreeStep::Change { change, place, .. } => {
                    let order = change.order();
                    let at = self.lines.partition_point(|(other, _)| *other < order);
                    match place {
                        Place::Append => assert_eq!(at, self.lines.len(), "it goes to the end"),
                        Place::Insert => assert!(at < self.lines.len(), "it goes before others"),
                    }
                    inserted += usize::from(place == Place::Insert);
                    self.lines.insert(at, (order, change.content));
                }
                TreeStep::Pending { .. } | TreeStep::Withdrawn { .. } => {}
                TreeStep::Purged => return Err("nobody purged it".into()),
            }
        }
        Ok(inserted)
    }
}

/// Own writes are told as pending, and then once more as what they became.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_own_writes_before_and_after() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let new = NewTree { data_type: "line".to_owned(), write_rule: WriteRule::WRITERS };
    let line = |text: &'static str| vec![TreeWrite { parents: None, payload: text.into() }];
    let tree = space.create_tree(new, line("first")).await?.tree;
    space.await_synced().await?;
    joined.await_synced().await?;
    let mut feed = joined.tree(tree)?.ok_or("synced")?.feed();
    assert!(matches!(next(&mut feed).await?, TreeStep::Replay(ReplayWhy::Beginning)));
    assert!(matches!(next(&mut feed).await?, TreeStep::Change { was_pending: None, .. }));

    node.kill();
    let taken = joined.append(tree, "line".to_owned(), line("taken")).await?;
    let TreeStep::Pending { write, change, payload, .. } = next(&mut feed).await? else { return Err("pending".into()) };
    assert_eq!((write, change, &payload[..]), (taken.writes[0], taken.changes[0], &b"taken"[..]));
    node.restart();
    joined.await_durable_within(write, PATIENCE).await?;
    let TreeStep::Change { change, was_pending, place } = next(&mut feed).await? else { return Err("logged".into()) };
    assert_eq!((change.id, was_pending, place), (taken.changes[0], Some(write), Place::Append));

    // What the rules refuse for good is withdrawn.
    space.await_synced_within(PATIENCE).await?;
    node.kill();
    let refused = joined.append(tree, "line".to_owned(), line("refused")).await?;
    assert!(matches!(next(&mut feed).await?, TreeStep::Pending { .. }));
    let dir = member.dir.path().to_owned();
    drop(feed);
    let kept = joined.id();
    member.client.clone().close().await;
    node.restart();
    space.change_role(member.account(), Role::Reader).await?;
    let member = client_sdk::Client::open(sync_tests::harness::config(&dir)).await?;
    let joined = member.space(kept)?;
    let mut feed = joined.tree(tree)?.ok_or("synced")?.feed();
    let mut steps = Vec::new();
    while steps.len() < 5 {
        steps.push(next(&mut feed).await?);
        if matches!(steps.last(), Some(TreeStep::Withdrawn { .. })) {
            break;
        }
    }
    let told_pending = |step: &TreeStep| matches!(step, TreeStep::Pending { write, .. } if *write == refused.writes[0]);
    let withdrawn = |step: &TreeStep| matches!(step, TreeStep::Withdrawn { write } if *write == refused.writes[0]);
    assert_eq!(steps.iter().filter(|s| matches!(s, TreeStep::Change { .. })).count(), 2, "{steps:?}");
    // It may have been refused before the feed came to its end.
    assert_eq!(steps.iter().any(told_pending), steps.iter().any(withdrawn), "{steps:?}");
    member.close().await;
    Ok(())
}

async fn next(feed: &mut client_sdk::ChangeFeed) -> Outcome<TreeStep> {
    Ok(tokio::time::timeout(PATIENCE, feed.next()).await??.ok_or("the feed ended")?.step)
}
