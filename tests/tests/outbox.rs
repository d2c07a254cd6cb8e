//! Many writes that wait: what one of them costs does not depend on how many others there are.

use std::time::Duration;

use client_sdk::{NewObject, Space, SyncState};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient};

const FEW: usize = 500;
const MANY: usize = 4_000;
/// One by one, as an application writes.
const READS: usize = 200;

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

/// Eight times as many, each at most three times as dear: with a read of all of them for each batch it was more than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_outbox_is_not_read_whole() -> Outcome {
    let (few, few_status) = drain(FEW).await?;
    let (many, many_status) = drain(MANY).await?;
    assert!(many < few * 3.0, "{:.0} µs a write of {MANY}, {:.0} µs of {FEW}", many * 1e6, few * 1e6);
    assert!(many_status < few_status * 3.0, "{:.0} µs, {:.0} µs", many_status * 1e6, few_status * 1e6);
    Ok(())
}
