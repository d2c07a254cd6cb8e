//! Machines that give a node too little, or the wrong time, and networks that end without a word: few descriptors, little memory,
//! clocks that are years off, cables that are pulled.

use std::fs;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use client_sdk::{Reason, ReasonCode, Role, Space, SyncState, WriteId, WriteState};
use serde_json::json;
use sync_core::limits::HEARTBEAT_INTERVAL;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, join, object, until};
use sync_tests::machine::{self, Cable};
use sync_tests::process::ClientProcess;
use sync_tests::scenario;
use sync_tests::wire::{Flow, Wire};

fn main() -> ExitCode {
    machine::main(&[
        scenario!(a_node_without_descriptors_serves_whom_it_has_and_comes_back),
        scenario!(a_reader_that_takes_nothing_costs_the_node_no_memory),
        scenario!(clocks_that_are_years_off_change_nothing, WrongClocks),
        scenario!(s31_a_pulled_cable_is_noticed_in_15_s, Networks),
    ])
}

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

async fn put(space: &Space, id: &str, n: u64) -> Outcome<WriteId> {
    Ok(space.objects().put("item", id, json!({ "n": n })).await?.ok_or("a new number is a write")?)
}

// ---- descriptors ------------------------------------------------------------------------------------------------------

/// Open files of the node, sockets included.
const DESCRIPTORS: usize = 64;

/// Somebody opens connections until the node can take no more. Who is connected is served as before, the node does not burn its
/// processor on what it cannot accept, and when the others are gone it takes new ones.
async fn a_node_without_descriptors_serves_whom_it_has_and_comes_back() -> Outcome {
    let limit = format!("--nofile={DESCRIPTORS}");
    let node = NodeProcess::start_under(&["prlimit", &limit], &[]);
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;

    let pid = node.pid().ok_or("the node runs")?;
    let crowd: Vec<TcpStream> =
        (0..DESCRIPTORS * 2).map(|_| TcpStream::connect(&node.address().endpoint)).collect::<Result<_, _>>()?;
    let began = Instant::now();
    let before = processor_ticks(pid)?;
    let write = put(&joined, "milk", 1).await?;
    joined.await_durable(write).await?;
    space.await_object("item", "milk", PATIENCE).await?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    assert!(open + 2 >= DESCRIPTORS, "it is at its limit: {open}");
    // Longer than it pauses after an accept that failed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    agree(&[&space, &joined]).await?;
    let used = Duration::from_millis((processor_ticks(pid)? - before) * 10);
    assert!(used < began.elapsed() / 2, "{used:?} of {:?}", began.elapsed());

    drop(crowd);
    let late = TestClient::create("Late", node.address()).await;
    let of_late = join(&space, &late, Role::Reader).await?;
    agree(&[&space, &of_late]).await?;
    Ok(())
}

/// Time that a process has had on a processor, in hundredths of a second.
fn processor_ticks(pid: u32) -> Outcome<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): fields 14 and 15; the name before may hold spaces.
    let (_, after) = stat.rsplit_once(')').ok_or("a name in brackets")?;
    let field = |n: usize| after.split_whitespace().nth(n - 3).and_then(|field| field.parse::<u64>().ok());
    Ok(field(14).zip(field(15)).map(|(user, system)| user + system).ok_or("two numbers")?)
}

// ---- memory -----------------------------------------------------------------------------------------------------------

/// What waits for slow readers: this many changes of this many bytes.
const BACKLOG: usize = 100;
const BACKLOG_EACH: usize = 200_000;

/// Four members stop taking anything while 20 MB are written for each of them. What waits for them is in the log on the disk, not in the
/// node's memory; and when they take again they get all of it.
async fn a_reader_that_takes_nothing_costs_the_node_no_memory() -> Outcome {
    let node = NodeProcess::start();
    let pid = node.pid().ok_or("the node runs")?;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let mut slow = Vec::new();
    for name in ["One", "Two", "Three", "Four"] {
        let wire = Wire::to(&node.address().endpoint).await;
        let member = TestClient::create(name, &wire.address(node.address())).await;
        let joined = join(&space, &member, Role::Reader).await?;
        joined.await_synced().await?;
        slow.push((wire, member, joined));
    }
    for (wire, ..) in &slow {
        wire.set(Flow::Pass, Flow::Hold);
    }
    let before = resident_bytes(pid)?;
    for n in 0..BACKLOG {
        let write = space.objects().put("item", &n.to_string(), json!({ "text": text(n) })).await?;
        if n % 20 == 19 {
            space.await_durable(write.ok_or("a write")?).await?;
        }
    }
    let grown = resident_bytes(pid)?.saturating_sub(before);
    let written = (BACKLOG * BACKLOG_EACH) as u64;
    eprintln!("{} MB grown for {} MB that wait four times", grown >> 20, written >> 20);
    // The database caches what was written, once.
    assert!(grown < written * 2, "{grown} bytes more in memory");
    for (wire, member, joined) in &slow {
        wire.heal();
        member.reconnect();
        joined.await_synced_within(PATIENCE).await?;
        assert_eq!(joined.objects().list("item")?.len(), BACKLOG);
    }
    Ok(())
}

/// Not to be made shorter by anybody on the way.
fn text(n: usize) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(BACKLOG_EACH);
    let mut state = n as u64 + 1;
    while text.len() < BACKLOG_EACH {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Into a String nothing can fail.
        let _ = write!(text, "{state:016x}");
    }
    text
}

/// The most memory that a process has had, but for files that are mapped.
fn resident_bytes(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    Ok(kilobytes.ok_or("a number of kilobytes")? << 10)
}

// ---- the time of day --------------------------------------------------------------------------------------------------

/// The node lives in 2041, one member in 1999, one today. Sessions open, writes arrive in the log's order, later ones win, and what
/// is synced is said to be. (Who may still use which invite is another matter: that is the node's clock, see S71.)
async fn clocks_that_are_years_off_change_nothing() -> Outcome {
    let (future, past) = (machine::wrong_clock("2041-03-04 05:06:07")?, machine::wrong_clock("1999-12-31 23:59:50")?);
    let [future, past] = [&future, &past].map(|clock| clock.iter().map(String::as_str).collect::<Vec<_>>());
    let node = NodeProcess::start_under(&future, &[]);
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    drop(joined);
    let dir = member.shut().await;
    let mut past = ClientProcess::start_under(&past, dir.path(), space.id()).await?;
    assert!(past.ask("synced 30000").await?["ok"].is_u64());
    for n in 1..=5 {
        let write = put(&space, "milk", n * 10).await?;
        space.await_durable(write).await?;
        assert!(past.ask("synced 30000").await?["ok"].is_u64());
        let said = past.ask(&format!("put milk {}", n * 10 + 1)).await?;
        let durable = past.ask(&format!("durable {}", said["ok"])).await?;
        assert!(durable["ok"].is_u64(), "{durable}");
        space.await_synced().await?;
        assert_eq!(
            object(&space, "item", "milk")?.fields["n"],
            n * 10 + 1,
            "the later in the log wins, not the later date"
        );
    }
    let status = past.ask("status").await?;
    assert_eq!(status["ok"]["reasons"], json!([]), "{status}");
    assert!(status["ok"]["fresh_ms"].as_u64().is_some_and(|ms| ms < 10_000), "{status}");
    Ok(())
}

// ---- a cable ----------------------------------------------------------------------------------------------------------

/// S31 below TCP: nothing arrives any more, in one direction or in both, and nobody says so; packets are sent again and again by the
/// kernel. Noticed within three heartbeats; plugged in again, everything goes on by itself.
async fn s31_a_pulled_cable_is_noticed_in_15_s() -> Outcome {
    tokio::try_join!(pulled(1, Cable::lose_all), pulled(2, Cable::lose_from_node))?;
    Ok(())
}

async fn pulled(number: u8, pull: fn(&Cable) -> Outcome) -> Outcome {
    let cable = Cable::new(number)?;
    let at_the_node = cable.at_the_node();
    let at_the_node: Vec<&str> = at_the_node.iter().map(String::as_str).collect();
    let node = NodeProcess::start_under(&at_the_node, &["--listen", &format!("{}:0", cable.node_address())]);
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    let began = Instant::now();
    pull(&cable)?;
    let write = put(&space, "milk", 1).await?;
    space.await_synced_within(A_MOMENT).await.expect_err("nothing arrives");
    until(&space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await?;
    let took = began.elapsed();
    eprintln!("cable {number}: noticed after {took:?}");
    assert!(took < HEARTBEAT_INTERVAL * 3 + Duration::from_secs(2), "{took:?}");
    assert!(took > HEARTBEAT_INTERVAL, "that was no silence: {took:?}");
    assert!(Reason::find(&space.explain()?, ReasonCode::NoNode).is_some());
    assert!(matches!(space.write_state(write)?, Some(WriteState::Pending { .. })));
    cable.mend()?;
    admin.reconnect();
    space.await_durable_within(write, PATIENCE).await?;
    Ok(())
}
