//! Many writes that wait: what one of them costs does not depend on how many others there are.

use std::time::Duration;

use client_sdk::{NewObject, Space, SyncState};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, until};
use sync_tests::relay::{Fate, Relay, entries};

const FEW: usize = 500;
const MANY: usize = 4_000;
const READS: usize = 200;
const ONE_BY_ONE: usize = 100;
/// As a person writes: each goes out by itself.
const BETWEEN: Duration = Duration::from_millis(30);

/// One at a time: each counts the time of the process, which has all of them when they run as one program.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The processor's time that this process has had.
fn spent() -> Outcome<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs();
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

fn row(n: usize) -> NewObject {
    let fields = json!({ "n": n, "text": "x".repeat(100) }).as_object().cloned().unwrap_or_default();
    NewObject { object_type: "row".to_owned(), id: n.to_string(), fields }
}

async fn write_many(space: &Space, count: usize) -> Outcome {
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        space.objects().put_many(chunk.iter().map(|n| row(*n)).collect()).await?;
    }
    Ok(())
}

/// Writes without a node, reads the status, and has all of it go out: what each write cost, and what each status did.
async fn drain(count: usize) -> Outcome<(f64, f64)> {
    let mut node = NodeProcess::start();
    let client = TestClient::create("Writer", node.address()).await;
    let space = client.create_space("Many").await?;
    space.await_synced_within(PATIENCE).await?;
    node.kill();
    write_many(&space, count).await?;
    assert_eq!(space.status()?.pending, count);

    let begun = spent()?;
    for _ in 0..READS {
        space.status()?;
    }
    let status = spent()?.saturating_sub(begun).as_secs_f64() / READS as f64;

    let begun = spent()?;
    node.restart();
    space.await_synced_within(PATIENCE * 4).await?;
    let write = spent()?.saturating_sub(begun).as_secs_f64() / count as f64;
    let after = space.status()?;
    assert_eq!((after.pending, after.state), (0, SyncState::UpToDate), "{:?}", after.reasons);
    eprintln!("{count}: {:.0} µs a write to the node, {:.0} µs a status", write * 1e6, status * 1e6);
    Ok((write, status))
}

/// Eight times as many, each at most three times as dear.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_outbox_is_not_read_whole() -> Outcome {
    let _alone = ALONE.lock().await;
    let (few, few_status) = drain(FEW).await?;
    let (many, many_status) = drain(MANY).await?;
    assert!(many < few * 3.0, "{:.0} µs a write of {MANY}, {:.0} µs of {FEW}", many * 1e6, few * 1e6);
    assert!(many_status < few_status * 3.0, "{:.0} µs, {:.0} µs", many_status * 1e6, few_status * 1e6);
    Ok(())
}

/// Writes one by one while the node takes them and its log does not come back: what each write costs behind so many.
async fn behind(waiting: usize) -> Outcome<f64> {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let client = TestClient::create("Writer", relay.address()).await;
    let space = client.create_space("Many").await?;
    space.await_synced_within(PATIENCE).await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    write_many(&space, waiting).await?;
    // A root and a change each: the node has them all, and says so with its heartbeat.
    until(&space, || Ok((space.status()?.node_seq >= 2 * waiting as u64).then_some(()))).await?;
    let begun = spent()?;
    for n in 0..ONE_BY_ONE {
        space.objects().put("late", &n.to_string(), json!({ "n": n })).await?;
        tokio::time::sleep(BETWEEN).await;
    }
    let each = spent()?.saturating_sub(begun).as_secs_f64() / ONE_BY_ONE as f64;
    assert_eq!(space.status()?.pending, waiting + ONE_BY_ONE, "none came back");
    eprintln!("behind {waiting}: {:.0} µs a write", each * 1e6);
    relay.heal();
    space.await_synced_within(PATIENCE * 4).await?;
    assert_eq!(space.objects().list("late")?.len(), ONE_BY_ONE);
    Ok(each)
}

/// When all that waits was read for each new write, it cost three times as much behind eight times as many.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_does_not_pay_for_those_before_it() -> Outcome {
    let _alone = ALONE.lock().await;
    let (few, many) = (behind(FEW).await?, behind(MANY).await?);
    assert!(many < few * 2.0, "{:.0} µs behind {MANY}, {:.0} µs behind {FEW}", many * 1e6, few * 1e6);
    Ok(())
}
