//! Each fault that is injected has its own reason (S49), and two sides of different versions say which (S72).
//!
//! Faults that need more than a relay are shown where they are injected: `STORE_FULL`, `STORE_FAILED`, `RETRYING` and
//! `CONTENT_MISSING` in `faults_of_disks`, `QUARANTINED` and `FAULTED` in `attacks`, `KEY_OWED` in `keys`.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use client_sdk::{NotSynced, NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState};
use serde_json::{Value, json};
use sync_core::limits::HEARTBEAT_INTERVAL;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, binary, join, until};
use sync_tests::relay::{Calls, Fate, Frame, Relay, Versions, entries};
use sync_tests::wire::{Flow, Wire};

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

/// An admin, and a member behind a relay.
struct World {
    node: NodeProcess,
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
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    Ok(World { node, relay, _admin: admin, member, space, joined })
}

async fn put(space: &Space, id: &str, n: u64) -> Outcome {
    space.objects().put("item", id, json!({ "n": n })).await?.ok_or("a new number is a write")?;
    Ok(())
}

/// Waits until a space gives a reason; what it says.
async fn says(space: &Space, code: ReasonCode) -> Outcome<String> {
    let said = || Ok(Reason::find(&space.explain()?, code).map(|r| r.detail.clone()));
    until(space, said).await.map_err(|error| format!("{}: {error}: {:?}", code.name(), space.explain()).into())
}

/// The codes that a no names first.
fn named(no: NotSynced) -> Vec<ReasonCode> {
    no.residue.into_iter().map(|reason| reason.code).collect()
}

/// What is found: the fault, and the code that tells it.
#[derive(Default)]
struct Table(BTreeMap<&'static str, ReasonCode>);

impl Table {
    async fn row(&mut self, fault: &'static str, space: &Space, code: ReasonCode) -> Outcome {
        says(space, code).await.map_err(|error| format!("{fault}: {error}"))?;
        self.0.insert(fault, code);
        Ok(())
    }
}

/// One fault after the other, each alone, each healed before the next.
#[tokio::test(flavor = "multi_thread")]
async fn s49_each_injected_fault_has_its_own_reason() -> Outcome {
    use ReasonCode as R;
    let World { mut node, relay, _admin, member, space, joined } = world().await?;
    let mut table = Table::default();

    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    put(&space, "held", 1).await?;
    table.row("what others wrote does not come through", &joined, R::Behind).await?;
    healed(&relay, &space, &joined).await?;

    relay.calls(|name| if name == "Push" { Calls::HangBefore } else { Calls::Forward });
    put(&joined, "waits", 1).await?;
    table.row("a push is never answered", &joined, R::Pending).await?;
    healed(&relay, &space, &joined).await?;

    relay.edits(|frame| {
        if let Frame::Update(update) = frame {
            update.durable_seq = 0;
        }
    });
    relay.frames(|frame| match frame {
        Frame::Durable(_) | Frame::Heartbeat(_) => Fate::Drop,
        Frame::Update(_) | Frame::Rewound(_) | Frame::Refused(_) | Frame::Pong(_) | Frame::Subscribed(_) => Fate::Pass,
    });
    put(&joined, "undurable", 1).await?;
    table.row("the node does not say that its disk has it", &joined, R::NotDurable).await?;
    healed(&relay, &space, &joined).await?;

    relay.calls(|name| if name == "SpacePush" { Calls::Refuse } else { Calls::Forward });
    let made = member.create_space("Mine").await?;
    table.row("a new space does not reach the node", &made, R::NotRegistered).await?;
    relay.heal();
    made.await_synced().await?;

    let unknown = joined.await_object("item", "nobody's", A_MOMENT).await.expect_err("nobody wrote it");
    assert_eq!(named(unknown)[0], R::Missing);
    table.0.insert("its author has not written it", R::Missing);

    put(&space, "purged", 1).await?;
    joined.await_object("item", "purged", PATIENCE).await?;
    space.objects().purge("item", "purged").await?;
    agree(&[&space, &joined]).await?;
    let purged = joined.await_object("item", "purged", A_MOMENT).await.expect_err("it was purged");
    assert_eq!(named(purged), [R::Unreadable]);
    table.0.insert("it was purged", R::Unreadable);

    relay.versions(Versions::OfNode(7, 9));
    relay.cut();
    table.row("the node speaks another version", &joined, R::SessionRefused).await?;
    relay.heal();
    member.connected(PATIENCE).await?;

    node.kill();
    table.row("the node is gone", &space, R::NoNode).await?;
    let endpoint = node.address().endpoint.clone();
    let stranger = NodeProcess::start_with(&["--plaintext", "--listen", &endpoint]);
    _admin.reconnect();
    table.row("another node answers at its address", &space, R::WrongNode).await?;
    drop(stranger);
    node.restart();
    _admin.connected(PATIENCE).await?;
    member.connected(PATIENCE).await?;
    agree(&[&space, &joined]).await?;

    relay.calls(|name| if name == "Push" { Calls::HangBefore } else { Calls::Forward });
    put(&joined, "too late", 1).await?;
    space.change_role(member.account(), Role::Reader).await?;
    table.row("the role was taken while a write waited", &joined, R::Refused).await?;
    relay.heal();

    relay.calls(|name| if name == "AclAppend" { Calls::HangBefore } else { Calls::Forward });
    let leaving = tokio::spawn({
        let joined = joined.clone();
        async move { joined.leave().await }
    });
    table.row("a leaving does not reach the node", &joined, R::Leaving).await?;
    leaving.abort();
    space.remove_members(&[member.account()]).await?;
    relay.heal();
    table.row("removed by an admin", &joined, R::NotAMember).await?;

    let mut faults_of: BTreeMap<ReasonCode, Vec<&str>> = BTreeMap::new();
    for (fault, code) in &table.0 {
        faults_of.entry(*code).or_default().push(fault);
    }
    eprintln!("{faults_of:#?}");
    let shared: Vec<_> = faults_of.iter().filter(|(_, faults)| faults.len() > 1).collect();
    assert!(shared.is_empty(), "one code for several faults: {shared:?}");
    assert_eq!(faults_of.len(), 12);
    Ok(())
}

/// The fault is over, and nothing of it remains.
async fn healed(relay: &Relay, space: &Space, joined: &Space) -> Outcome {
    relay.heal();
    relay.cut();
    agree(&[space, joined]).await?;
    until(joined, || Ok(joined.explain()?.is_empty().then_some(()))).await
}

/// A link that is silent for two heartbeats is not fresh, before it is known to be dead.
#[tokio::test(flavor = "multi_thread")]
async fn s49_a_silent_link_is_not_fresh_before_it_is_dead() -> Outcome {
    let node = NodeProcess::start();
    let wire = Wire::to(&node.address().endpoint).await;
    let client = TestClient::create("Ada", &wire.address(node.address())).await;
    let space = client.create_space("Club").await?;
    space.await_synced().await?;
    until(&space, || Ok(space.explain()?.is_empty().then_some(()))).await?;
    wire.set(Flow::Swallow, Flow::Swallow);
    // The time is what this test is about: more than two heartbeats, less than three.
    tokio::time::sleep(HEARTBEAT_INTERVAL * 5 / 2).await;
    let codes: Vec<_> = space.explain()?.into_iter().map(|reason| reason.code).collect();
    assert_eq!(codes, [ReasonCode::NotFresh]);
    assert_eq!(space.status()?.fresh_ms, None);
    says(&space, ReasonCode::NoNode).await?;
    Ok(())
}

// ---- versions ---------------------------------------------------------------------------------------------------------

fn headwater(client: &std::path::Path, args: &[&str]) -> Outcome<(Option<i32>, Value)> {
    let ran = Command::new(binary("headwater"))
        .arg("--data")
        .arg(client)
        .arg("--json")
        .args(args)
        .env_remove("HEADWATER_DATA")
        .env_remove("HEADWATER_PASSPHRASE")
        .output()?;
    Ok((ran.status.code(), serde_json::from_slice(&ran.stdout)?))
}

/// S72: a client and a node without a common version. Whichever of them notices, what is shown names what both speak, in the SDK and
/// on the command line; nothing is lost, and the session opens as soon as the older one is upgraded.
#[tokio::test(flavor = "multi_thread")]
async fn s72_version_mismatch_names_what_both_sides_speak() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let mut client = TestClient::create("Ada", relay.address()).await;
    let id = client.create_space("Club").await?.id();
    client.space(id)?.await_synced().await?;
    // The node is asked first, and refuses; or it says what it speaks, and the client does.
    for (versions, ranges) in
        [(Versions::OfClient(7, 9), ["7 to 9", "1 to 1"]), (Versions::OfNode(7, 9), ["7 to 9", "1"])]
    {
        let space = client.space(id)?;
        relay.versions(versions);
        relay.cut();
        let detail = says(&space, ReasonCode::SessionRefused).await?;
        for range in ranges {
            assert!(detail.contains(range), "{versions:?}: {range} is not in: {detail}");
        }
        assert_eq!(space.status()?.state, SyncState::Offline);
        put(&space, "meanwhile", 1).await.or_else(|_| Outcome::Ok(()))?;
        let no = space.await_synced_within(A_MOMENT).await.expect_err("there is no session");
        assert_eq!(no.code, NotSyncedCode::NoNode);
        assert!(Reason::find(&no.residue, ReasonCode::SessionRefused).is_some(), "{no:?}");
        drop(space);

        let dir = client.shut().await;
        let space = id.to_string();
        let (exit, said) = headwater(dir.path(), &["--space", &space, "await-synced", "--timeout", "3s"])?;
        assert_eq!(exit, Some(4), "{said}");
        let told = said.to_string();
        assert!(told.contains("SESSION_REFUSED"), "{told}");
        for range in ranges {
            assert!(told.contains(range), "{versions:?}: {range} is not in: {told}");
        }
        client = TestClient::open(dir).await;
        relay.heal();
        client.connected(PATIENCE).await?;
        client.space(id)?.await_synced().await?;
    }
    Ok(())
}
