//! What somebody waits for: a list while much streams in (S09), an await while others write (S44), one's own profile in a
//! large space that is joined with nothing (S78).
//!
//! Each is held against the same without what makes it hard, taken in turns: nobody writes, or the space is small.

use std::process::Command;
use std::time::{Duration, Instant};

use client_sdk::{InviteOptions, Role, Space};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, binary, join, put_rows};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::{Row, millis};

const STREAMED: usize = 2_000;
const LISTS: usize = 500;
const WRITES_APART: Duration = Duration::from_millis(10);
const AWAITS: usize = 100;
const LARGE: usize = 10_000;
const SMALL: usize = 10;
const JOINS: usize = 5;

pub(crate) async fn run() -> Outcome<Vec<Row>> {
    let mut rows = lists().await?;
    rows.extend(awaits().await?);
    rows.extend(cold_joins().await?);
    Ok(rows)
}

/// A member that has what a writer wrote.
struct Two {
    _node: NodeProcess,
    _admin: TestClient,
    _member: TestClient,
    space: Space,
    joined: Space,
}

async fn two() -> Outcome<Two> {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    Ok(Two { _node: node, _admin: admin, _member: member, space, joined })
}

async fn fill(space: &Space, count: usize, n: usize) -> Outcome {
    put_rows(space, "row", count, |_| json!({ "n": n, "text": "x".repeat(100) })).await
}

async fn lists() -> Outcome<Vec<Row>> {
    let two = two().await?;
    fill(&two.space, STREAMED, 0).await?;
    two.joined.await_synced_within(PATIENCE).await?;
    let idle = list_often(&two.joined)?;
    let space = two.space.clone();
    let streaming: JoinHandle<Outcome> = tokio::spawn(async move {
        for n in 1.. {
            fill(&space, STREAMED, n).await?;
        }
        Ok(())
    });
    let busy = list_often(&two.joined)?;
    if streaming.is_finished() {
        return Err("nothing streamed in".into());
    }
    streaming.abort();
    let name = "list of 2,000 objects";
    Ok(vec![
        Row::new(name, "Headwater: while all of them change", busy.clone(), "ms"),
        Row::new(name, "Headwater: 99 of 100, while all of them change", vec![percentile_99(busy)], "ms"),
        Row::new(name, "beside it: nobody writes", idle.clone(), "ms"),
        Row::new(name, "beside it: 99 of 100, nobody writes", vec![percentile_99(idle)], "ms"),
    ])
}

fn list_often(space: &Space) -> Outcome<Vec<f64>> {
    let mut took = Vec::with_capacity(LISTS);
    for _ in 0..LISTS {
        let begun = Instant::now();
        let listed = space.objects().list("row")?.len();
        took.push(millis(begun.elapsed()));
        assert_eq!(listed, STREAMED);
    }
    Ok(took)
}

fn percentile_99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}

async fn awaits() -> Outcome<Vec<Row>> {
    let two = two().await?;
    let idle = await_often(&two.joined).await?;
    let space = two.space.clone();
    let writing: JoinHandle<Outcome> = tokio::spawn(async move {
        let mut tick = tokio::time::interval(WRITES_APART);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for n in 0_u64.. {
            tick.tick().await;
            space.objects().put("counter", "c", json!({ "n": n })).await?;
        }
        Ok(())
    });
    let before = two.joined.status()?.seq;
    let begun = Instant::now();
    let busy = await_often(&two.joined).await?;
    let written = two.joined.status()?.seq - before;
    let rate = written as f64 / begun.elapsed().as_secs_f64();
    if writing.is_finished() {
        return Err("nobody wrote".into());
    }
    writing.abort();
    let name = "await_synced";
    Ok(vec![
        Row::new(name, format!("Headwater: another member writes {rate:.0} times a second"), busy, "ms"),
        Row::new(name, "beside it: nobody writes", idle, "ms"),
    ])
}

/// Over a while, and not all at once: the writer goes on between them.
async fn await_often(space: &Space) -> Outcome<Vec<f64>> {
    let mut took = Vec::with_capacity(AWAITS);
    for _ in 0..AWAITS {
        let begun = Instant::now();
        space.await_synced_within(PATIENCE).await?;
        took.push(millis(begun.elapsed()));
        tokio::time::sleep(WRITES_APART * 3).await;
    }
    Ok(took)
}

/// A process that has nothing, to its own profile, the newest of all objects, and to everything.
async fn cold_joins() -> Outcome<Vec<Row>> {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (large, small) = (admin.create_space("Large").await?, admin.create_space("Small").await?);
    fill(&large, LARGE, 0).await?;
    fill(&small, SMALL, 0).await?;
    let (mut to_profile, mut to_all, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..JOINS {
        let told = cold_join(&node, &large).await?;
        to_profile.push(told.profile_ms);
        to_all.push(told.synced_ms);
        beside.push(cold_join(&node, &small).await?.profile_ms);
    }
    let name = "join of 10,000 trees, with nothing";
    Ok(vec![
        Row::new(name, "Headwater: to one's own profile, the newest", to_profile, "ms"),
        Row::new(name, "Headwater: to all of it", to_all, "ms"),
        Row::new(name, "beside it: to one's own profile among 10", beside, "ms"),
    ])
}

struct Told {
    profile_ms: f64,
    synced_ms: f64,
}

async fn cold_join(node: &NodeProcess, space: &Space) -> Outcome<Told> {
    let member = TestClient::create("Member", node.address()).await;
    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    space.await_synced_within(PATIENCE).await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let dir = member.shut().await;
    let told = Command::new(binary("cold")).arg(dir.path()).arg(&token).output()?;
    let told = String::from_utf8(told.stdout)?;
    let words: Vec<&str> = told.split_whitespace().collect();
    let ["profile", profile_ms, "synced", synced_ms, ..] = words[..] else {
        return Err(format!("the process said {told:?}").into());
    };
    Ok(Told { profile_ms: profile_ms.parse()?, synced_ms: synced_ms.parse()? })
}
