//! `await_synced` says yes only when it is so, and a no always names what is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client_sdk::{
    Await, Level, NotSynced, NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState, TreeWrite, WriteError,
};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join, object, until};
use sync_tests::hostile::{Pen, Person, Said, id_of};
use sync_tests::relay::{Calls, Fate, Relay, entries};
use tokio::task::JoinSet;

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

fn no<T: std::fmt::Debug>(result: Result<T, NotSynced>) -> Outcome<NotSynced> {
    match result {
        Ok(yes) => Err(format!("it must not say yes: {yes:?}").into()),
        Err(no) => Ok(no),
    }
}

fn named(no: &NotSynced, code: ReasonCode) -> Outcome<String> {
    let found = Reason::find(&no.residue, code);
    Ok(found.ok_or_else(|| format!("{code:?} is not among {:?}", no.residue))?.detail.clone())
}

/// S42: a space in which nobody wrote anything.
#[tokio::test(flavor = "multi_thread")]
async fn s42_an_empty_space_is_synced_at_once() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let synced = space.await_synced().await?;
    assert!(synced.equal_now);
    let joined = join(&space, &member, Role::Reader).await?;
    let synced = joined.await_synced().await?;
    assert!(synced.receipt.body().durable);
    assert_eq!((synced.void, synced.hidden), (vec![], vec![]));
    assert_eq!(synced.receipt.body().seq.0, joined.status()?.seq);
    assert_eq!(joined.explain()?, []);
    assert_eq!(joined.status()?.state, SyncState::UpToDate);
    Ok(())
}

/// S42 from the first moment: the space is still on its way to the node when its maker asks.
#[tokio::test(flavor = "multi_thread")]
async fn s42_a_space_that_was_just_made_is_synced() -> Outcome {
    let node = NodeProcess::start();
    for _ in 0..25 {
        // A new client each time: registering and asking both wait for its first connection.
        let admin = TestClient::create("Admin", node.address()).await;
        let mut asking = JoinSet::new();
        for _ in 0..10 {
            let space = admin.create_space("Club").await?;
            asking.spawn(async move { space.await_synced().await });
        }
        while let Some(synced) = asking.join_next().await {
            synced??;
        }
    }
    Ok(())
}

/// S43: an object that nobody wrote: it waits, then says which object is missing, however much else there is.
#[tokio::test(flavor = "multi_thread")]
async fn s43_an_unknown_object_is_never_found_by_count() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    for n in 0..20 {
        space.objects().put("profile", &format!("somebody-{n}"), json!({ "n": n })).await?;
    }
    space.await_synced().await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;
    let no = no(joined.await_object("profile", &member.own(), A_MOMENT).await)?;
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded);
    assert_eq!(no.residue[0].code, ReasonCode::Missing);
    assert_eq!(no.residue[0].scope, format!("profile/{}", member.own()));
    joined.await_synced().await?;
    Ok(())
}

/// An admin, and a member behind a relay, who has read v1 of its profile.
struct World {
    _node: NodeProcess,
    relay: Relay,
    _admin: TestClient,
    member: TestClient,
    space: Space,
    joined: Space,
}

async fn world() -> Outcome<World> {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("profile", &member.own(), json!({ "name": "v1" })).await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_object("profile", &member.own(), PATIENCE).await?;
    space.await_synced().await?;
    joined.await_synced().await?;
    Ok(World { _node: node, relay, _admin: admin, member, space, joined })
}

/// The wrong definition "at least one tree is indexed": there are some, and the newest is not here.
#[tokio::test(flavor = "multi_thread")]
async fn synced_is_not_that_some_tree_is_here() -> Outcome {
    let world = world().await?;
    let World { relay, space, joined, .. } = &world;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Drop } else { Fate::Pass });
    let write = space.objects().put("credential", "c1", json!({ "level": 3 })).await?;
    let seq = space.await_durable(write.ok_or("a new object is a write")?).await?.body().seq;
    assert!(joined.status()?.trees > 0, "something is indexed");
    let no = no(joined.await_synced_within(A_MOMENT).await)?;
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded);
    let behind = named(&no, ReasonCode::Behind)?;
    assert!(behind.ends_with(&format!("of {seq}")), "it says how far: {behind}");
    assert_eq!(joined.status()?.state, SyncState::CatchingUp);
    relay.heal();
    joined.await_synced().await?;
    assert_eq!(object(joined, "credential", "c1")?.fields["level"], 3);
    Ok(())
}

/// The wrong definition "the tree has heads": it has, of v1.
#[tokio::test(flavor = "multi_thread")]
async fn synced_is_not_that_a_tree_has_heads() -> Outcome {
    let world = world().await?;
    let World { relay, space, joined, member, .. } = &world;
    let own = member.own();
    relay.frames(|frame| if entries(frame) > 0 { Fate::Drop } else { Fate::Pass });
    let write = space.objects().put("profile", &own, json!({ "name": "v2" })).await?;
    space.await_durable(write.ok_or("another name is a write")?).await?;
    let tree = joined.objects().tree("profile", &own)?.ok_or("v1 is here")?;
    assert!(!tree.snapshot()?.heads.is_empty(), "the tree has heads");
    let no = no(joined.await_synced_within(A_MOMENT).await)?;
    named(&no, ReasonCode::Behind)?;
    assert_eq!(object(joined, "profile", &own)?.fields["name"], "v1");
    relay.heal();
    joined.await_synced().await?;
    assert_eq!(object(joined, "profile", &own)?.fields["name"], "v2");
    Ok(())
}

/// Without a node nothing is synced, and the reason says so; own writes are named.
#[tokio::test(flavor = "multi_thread")]
async fn synced_needs_a_node() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    let offline = || Ok((space.status()?.state == SyncState::Offline).then_some(()));
    until(&space, offline).await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    let no = no(space.await_synced_within(A_MOMENT).await)?;
    assert_eq!(no.code, NotSyncedCode::NoNode);
    named(&no, ReasonCode::NoNode)?;
    named(&no, ReasonCode::Pending)?;
    node.restart();
    admin.reconnect();
    space.await_synced().await?;
    Ok(())
}

/// The target is fixed at the call: what others write meanwhile is not chased.
#[tokio::test(flavor = "multi_thread")]
async fn s44_others_who_write_all_the_time_do_not_hold_it_up() -> Outcome {
    let world = world().await?;
    let World { space, joined, .. } = &world;
    let enough = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (space, enough) = (space.clone(), enough.clone());
        async move {
            for n in 0_u64.. {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                space.objects().put("counter", "c", json!({ "n": n })).await?;
            }
            Outcome::Ok(())
        }
    });
    for _ in 0..5 {
        joined.await_synced().await?;
    }
    assert!(!writing.is_finished(), "somebody writes all the time");
    enough.store(true, Ordering::Relaxed);
    writing.await??;
    space.await_synced().await?;
    joined.await_synced().await?;
    assert_eq!(object(space, "counter", "c")?, object(joined, "counter", "c")?);
    Ok(())
}

/// At the level RECEIVED an own write is waited for until the node's log has it, and the receipt is the one that fixed the target.
#[tokio::test(flavor = "multi_thread")]
async fn received_waits_for_the_log_and_durable_for_a_receipt() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    assert!(space.await_synced().await?.equal_now);
    // The write stands in no log before the target is fixed, and nothing is certified after that.
    let mut certified = false;
    relay.calls(move |name| match name {
        "Push" if !certified => Calls::Refuse,
        "Certify" if certified => Calls::Refuse,
        "Certify" => {
            certified = true;
            Calls::Forward
        }
        _ => Calls::Forward,
    });
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let received = space.await_synced_with(&Await::default().level(Level::Received)).await?;
    let logged = space.await_write(write, &Await::default().level(Level::Received)).await?.seq;
    assert!(received.receipt.body().seq < logged, "{:?} covers {logged}", received.receipt.body());
    assert!(!received.equal_now, "the log went on");
    no(space.await_synced_within(A_MOMENT).await)?;
    relay.heal();
    let durable = space.await_synced().await?;
    assert!(durable.receipt.body().seq >= logged && durable.equal_now);
    Ok(())
}

/// What its author made wrongly is settled, the same for everybody, and named. Who would make it by mistake is told so.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_void_is_settled_and_named() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    space.await_synced().await?;
    let tree = space.objects().tree_id("item", "milk")?;
    let append = space.append(tree, "text".to_owned(), vec![TreeWrite { parents: None, payload: "next".into() }]).await;
    assert!(matches!(append, Err(WriteError::ObjectTree { tree: of }) if of == tree), "{append:?}");
    assert_eq!(space.status()?.pending, 0);

    let heads: Vec<_> = space.tree(tree)?.ok_or("it is here")?.snapshot()?.heads.iter().copied().collect();
    let mut patched = admin.patched(node.address()).await;
    let wrong = Pen::of(&mut patched, space.id()).await.next(tree, &heads, |_, _| {});
    let void = vec![(tree, id_of(&wrong))];
    assert_eq!(patched.push(space.id(), vec![wrong]).await?, [Said::Accepted]);
    for space in [&space, &joined] {
        assert_eq!(space.await_synced().await?.void, void);
        assert_eq!(object(space, "item", "milk")?.fields["n"], 1);
        assert_eq!((space.status()?.void, space.explain()?), (1, vec![]));
    }
    Ok(())
}
