//! Processes that are stopped, for a while or for good: SIGSTOP of the node and of a client, SIGTERM under load. Nothing that was
//! known before the stop counts after it, and nothing that was acknowledged is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use client_sdk::{NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState, WriteState};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sync_core::limits::{DRAIN_TIMEOUT, HEARTBEAT_INTERVAL};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, join, object, until};
use sync_tests::process::ClientProcess;
use sync_tests::wire::{Flow, Wire};
use tempfile::TempDir;

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

async fn offline(space: &Space) -> Outcome {
    until(space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await
}

// ---- SIGSTOP ----------------------------------------------------------------------------------------------------------

/// A member of the space in a process of its own, synced and fresh.
async fn member_process(space: &Space, node: &NodeProcess, name: &str) -> Outcome<(TempDir, ClientProcess)> {
    let member = TestClient::create(name, node.address()).await;
    join(space, &member, Role::Writer).await?;
    let dir = member.shut().await;
    let mut process = ClientProcess::start(dir.path(), space.id()).await?;
    loop {
        let synced = process.ask("synced 30000").await?;
        assert!(synced["ok"].is_u64(), "{synced}");
        let status = process.ask("status").await?;
        if status["ok"]["fresh_ms"].is_u64() {
            return Ok((dir, process));
        }
    }
}

/// A client is stopped for longer than two heartbeats, and another for longer than its connection lives. What either says when it
/// goes on is not what it knew before: not fresh unless it has asked again, and no yes without what came in the meantime.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_client_says_yes_only_after_asking_again() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let (_short_dir, short) = member_process(&space, &node, "Short").await?;
    let (_long_dir, long) = member_process(&space, &node, "Long").await?;
    short.signal(Signal::SIGSTOP)?;
    long.signal(Signal::SIGSTOP)?;
    let write = space.objects().put("item", "meanwhile", json!({ "n": 1 })).await?.ok_or("a write")?;
    let seq = space.await_durable(write).await?.body().seq.0;
    tokio::try_join!(
        goes_on_after(short, HEARTBEAT_INTERVAL * 2 + Duration::from_secs(1), seq),
        goes_on_after(long, HEARTBEAT_INTERVAL * 3 + Duration::from_secs(2), seq),
    )?;
    Ok(())
}

async fn goes_on_after(mut process: ClientProcess, stopped: Duration, seq: u64) -> Outcome {
    // The time is what this test is about.
    tokio::time::sleep(stopped).await;
    // They are the first that it finds: before anything from the network.
    for command in ["status", "synced 30000", "items"] {
        process.tell(command).await?;
    }
    process.signal(Signal::SIGCONT)?;
    let status = process.answer().await?;
    let fresh_ms = &status["ok"]["fresh_ms"];
    let asked_again = fresh_ms.as_u64().is_some_and(|ms| u128::from(ms) < HEARTBEAT_INTERVAL.as_millis());
    assert!(fresh_ms.is_null() || asked_again, "fresh from before the stop: {status}");
    let synced = process.answer().await?;
    assert!(synced["ok"].as_u64().is_some_and(|at| at >= seq), "{synced}, and the log ends at {seq}");
    let items = process.answer().await?;
    assert_eq!(items["ok"], json!(["meanwhile"]), "a yes, and it is not here");
    Ok(())
}

/// The node is stopped: no await says yes, writes wait, reads go on, and within three heartbeats the clients say that there is no
/// node. When it goes on, so does everything, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_is_no_node() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    node.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let durable = space.await_durable_within(write, A_MOMENT).await.expect_err("nobody signed for it");
    assert!(!durable.residue.is_empty());
    let synced = joined.await_synced_within(A_MOMENT).await.expect_err("nobody was asked");
    assert!(!synced.residue.is_empty());
    assert_eq!(object(&space, "item", "milk")?.pending, 1);

    tokio::try_join!(offline(&space), offline(&joined))?;
    assert!(began.elapsed() < HEARTBEAT_INTERVAL * 3 + Duration::from_secs(2), "{:?}", began.elapsed());
    let status = joined.status()?;
    assert_eq!(status.fresh_ms, None);
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("there is no node");
    assert_eq!(no.code, NotSyncedCode::NoNode);
    assert!(Reason::find(&no.residue, ReasonCode::NoNode).is_some(), "{no:?}");

    node.signal(Signal::SIGCONT);
    admin.reconnect();
    member.reconnect();
    space.await_durable_within(write, PATIENCE).await?;
    joined.await_object("item", "milk", PATIENCE).await?;
    agree(&[&space, &joined]).await?;
    let tree = space.objects().tree_id("item", "milk")?;
    assert_eq!(joined.tree(tree)?.ok_or("there")?.changes()?.len(), 1);
    Ok(())
}

// ---- SIGTERM ----------------------------------------------------------------------------------------------------------

const WRITERS: usize = 3;
/// Writes of one writer that are on their way at the same time.
const AT_ONCE: usize = 20;

/// S40: the node is asked to stop while three clients write as fast as they can and one takes nothing any more. It ends within the
/// time to drain, in good order; what it said it has, it has: a reader who was away finds it before any writer is back.
#[tokio::test(flavor = "multi_thread")]
async fn s40_sigterm_under_load_drains_and_loses_nothing() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let reader = TestClient::create("Reader", node.address()).await;
    join(&space, &reader, Role::Reader).await?;
    let reader = reader.shut().await;
    let wire = Wire::to(&node.address().endpoint).await;
    let stuck = TestClient::create("Stuck", &wire.address(node.address())).await;
    let at_the_end = join(&space, &stuck, Role::Reader).await?;
    at_the_end.await_synced().await?;
    wire.set(Flow::Pass, Flow::Hold);

    let mut clients = Vec::new();
    let mut loads = Vec::new();
    for n in 0..WRITERS {
        let client = TestClient::create("Writer", node.address()).await;
        let joined = join(&space, &client, Role::Writer).await?;
        loads.push(tokio::spawn(load(joined.clone(), n)));
        clients.push((client, joined));
    }
    until(&space, || Ok((space.status()?.seq > 300).then_some(()))).await?;
    node.signal(Signal::SIGTERM);
    let began = Instant::now();
    let (ended, mut node) = tokio::task::spawn_blocking(move || (node.ended(), node)).await?;
    let took = began.elapsed();
    eprintln!("stopped after {took:?}");
    assert_eq!(ended.code(), Some(0), "in good order");
    assert!(took < DRAIN_TIMEOUT + Duration::from_secs(2), "{took:?}");

    let (mut acknowledged, mut written) = (BTreeSet::new(), 0);
    for (load, (_, joined)) in loads.into_iter().zip(&clients) {
        offline(joined).await?;
        for (id, write) in load.await?? {
            written += 1;
            match joined.write_state(write)? {
                Some(WriteState::Durable { .. } | WriteState::Logged { .. }) => drop(acknowledged.insert(id)),
                Some(WriteState::Pending { .. }) => {}
                other => return Err(format!("{id}: {other:?}").into()),
            }
        }
    }
    assert!(acknowledged.len() > 100, "{} of {written} were acknowledged", acknowledged.len());
    let mut dirs = Vec::new();
    for (client, joined) in clients {
        drop(joined);
        dirs.push(client.shut().await);
    }

    node.restart();
    let reader = TestClient::open(reader).await;
    let read = reader.space(space.id())?;
    read.await_synced_within(PATIENCE).await?;
    let there: BTreeSet<String> = read.objects().list("item")?.into_iter().map(|o| o.id).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    for dir in dirs {
        let writer = TestClient::open(dir).await;
        let joined = writer.space(space.id())?;
        joined.await_synced_within(PATIENCE).await?;
        assert_eq!((joined.status()?.pending, joined.status()?.refused), (0, 0));
        writer.shut().await;
    }
    admin.reconnect();
    agree(&[&read, &space]).await?;
    assert_eq!(read.objects().list("item")?.len(), written);
    Ok(())
}

/// Writes until nobody takes it any more; what was written, by object.
async fn load(space: Space, writer: usize) -> Outcome<Vec<(String, client_sdk::WriteId)>> {
    let mut writes = Vec::new();
    loop {
        let id = format!("{writer}-{}", writes.len());
        let fields: Value = json!({ "n": writes.len(), "text": "x".repeat(2000) });
        let write = space.objects().put("item", &id, fields).await?.ok_or("a new object is a write")?;
        writes.push((id, write));
        if writes.len() % AT_ONCE == 0 && space.await_durable_within(write, A_MOMENT).await.is_err() {
            return Ok(writes);
        }
    }
}
