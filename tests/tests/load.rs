//! A crowd at the door: everybody is connected, the node goes away for a moment, and all come back at once (S37).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use client_sdk::SyncState;
use sync_tests::harness::{NodeProcess, Outcome, TestClient, until};
use tokio::task::JoinSet;

const CLIENTS: usize = 500;
/// Clients that are made at the same time.
const AT_ONCE: usize = 8;
/// What the crowd may take to be back, on a machine that runs all of its clients as well.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// S37: 500 clients, each with a store, a connection and a space of its own, lose the node and dial it in the same moment. Nobody is
/// turned away for good, each is proven synced again, and the node holds one session and one subscription for each: not more.
#[tokio::test(flavor = "multi_thread")]
async fn s37_five_hundred_clients_reconnect_at_once() -> Outcome {
    let metrics = free_endpoint()?;
    let mut node = NodeProcess::start_with(&["--metrics", &metrics, "--log", "warn"]);
    let began = Instant::now();
    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        let next = (0..AT_ONCE.min(CLIENTS - clients.len())).map(|_| {
            let address = node.address().clone();
            async move { TestClient::create("Member", &address).await }
        });
        clients.extend(next.collect::<JoinSet<_>>().join_all().await);
    }
    eprintln!("{CLIENTS} clients after {:?}", began.elapsed());
    everybody_is_synced(&clients).await?;
    assert_eq!(reading(&metrics, "headwater_subscriptions")?, CLIENTS as u64);

    node.kill();
    for client in &clients {
        let space = client.account_space()?;
        until(&space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await?;
    }
    node.restart();
    let began = Instant::now();
    for client in &clients {
        client.reconnect();
    }
    everybody_is_synced(&clients).await?;
    eprintln!("{CLIENTS} are back after {:?}", began.elapsed());
    assert_eq!(reading(&metrics, "headwater_subscriptions")?, CLIENTS as u64);
    let sessions = reading(&metrics, "headwater_sessions_opened_total")?;
    assert!(sessions >= CLIENTS as u64, "{sessions}");
    assert!(sessions < 2 * CLIENTS as u64, "they were turned away again and again: {sessions} sessions");
    assert!(node.pid().is_some());
    Ok(())
}

async fn everybody_is_synced(clients: &[TestClient]) -> Outcome {
    let mut waits = JoinSet::new();
    for client in clients {
        let space = client.account_space()?;
        waits.spawn(async move { space.await_synced_within(BACK_WITHIN).await });
    }
    while let Some(waited) = waits.join_next().await {
        waited??;
    }
    Ok(())
}

/// A port that was free a moment ago.
fn free_endpoint() -> Outcome<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// What the node's metrics say.
fn reading(endpoint: &str, metric: &str) -> Outcome<u64> {
    let mut stream = TcpStream::connect(endpoint)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(metric));
    let value = line.and_then(|line| line.split(' ').nth(1)).ok_or_else(|| format!("no {metric} in {text}"))?;
    // Gauges are printed as numbers with a fraction.
    Ok(value.split('.').next().unwrap_or(value).parse()?)
}
