//! Status, reasons and awaits: nothing is unsynced without a reason, no reason is without a test, and no await leaves anything
//! behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_sdk::{
    Await, AwaitEvent, InviteOptions, Level, NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState, TreeId,
    WaitFor, Waited,
};
use serde_json::json;
use sync_store::{RefusalRow, Store, StoreError, StoreKind, VerdictKind, VerdictRow, WriteId, WriteState, WriteTx};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join, object, until};
use sync_tests::relay::{Calls, Fate, Frame, Relay, entries};

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

/// Each reason, and the test that reaches it by a fault.
const REACHED: &[(ReasonCode, &str, &str)] = &[
    (ReasonCode::NoNode, "await_synced", "synced_needs_a_node"),
    (ReasonCode::WrongNode, "bad_input", "the_wrong_end_of_a_line"),
    (ReasonCode::SessionRefused, "devices", "ReasonCode::SessionRefused"),
    (ReasonCode::NotRegistered, "status", "a_space_that_the_node_never_saw_says_so"),
    (ReasonCode::Forbidden, "status", "a_subscription_that_the_node_refuses_is_forbidden"),
    (ReasonCode::NotFresh, "status", "a_link_without_heartbeats_is_not_synced"),
    (ReasonCode::Fetching, "engine", "s17_a_tree_that_fails_is_tried_again_until_it_comes"),
    (ReasonCode::Behind, "await_synced", "synced_is_not_that_some_tree_is_here"),
    (ReasonCode::Pending, "await_synced", "synced_needs_a_node"),
    (ReasonCode::Retrying, "faults_of_disks", "ReasonCode::Retrying"),
    (ReasonCode::NotDurable, "status", "a_write_that_is_logged_and_not_certified_says_so"),
    (ReasonCode::Refused, "pending", "ReasonCode::Refused"),
    (ReasonCode::Quarantined, "attacks", "ReasonCode::Quarantined"),
    (ReasonCode::ContentMissing, "engine", "s18_one_poison_tree_among_500"),
    (ReasonCode::Missing, "await_synced", "s43_an_unknown_object_is_never_found_by_count"),
    (ReasonCode::NotAMember, "keys", "ReasonCode::NotAMember"),
    (ReasonCode::Leaving, "membership", "ReasonCode::Leaving"),
    (ReasonCode::Unreadable, "status", "a_purged_object_is_never_waited_for"),
    (ReasonCode::KeyOwed, "keys", "ReasonCode::KeyOwed"),
    (ReasonCode::Faulted, "attacks", "ReasonCode::Faulted"),
    (ReasonCode::Rewound, "rollback", "ReasonCode::Rewound"),
    (ReasonCode::RolledBack, "rollback", "ReasonCode::RolledBack"),
    (ReasonCode::LostByNode, "rollback", "ReasonCode::LostByNode"),
    (ReasonCode::Recovering, "rollback", "ReasonCode::Recovering"),
    (ReasonCode::Panicked, "live", "s24_a_panic_over_one_tree_is_contained_and_visible"),
    (ReasonCode::Forked, "rollback", "ReasonCode::Forked"),
    (ReasonCode::Different, "derived", "a_node_that_derived_wrongly_differs"),
    (ReasonCode::StoreFull, "faults_of_disks", "ReasonCode::StoreFull"),
    (ReasonCode::StoreFailed, "faults_of_disks", "STORE_FAILED"),
    (ReasonCode::TimedOut, "status", "an_await_without_time_says_that"),
];

#[test]
fn every_reason_code_is_reached_by_some_fault_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for code in ReasonCode::ALL {
        let row = REACHED.iter().find(|(c, _, _)| c == code);
        let (_, file, name) = row.unwrap_or_else(|| panic!("no test reaches {}", code.name()));
        let source = std::fs::read_to_string(tests.join(format!("{file}.rs"))).expect("the file of a test");
        assert!(source.contains(name), "{file}.rs has no {name}, which is to reach {}", code.name());
        let speaks = *name == format!("ReasonCode::{code:?}")
            || *name == code.name()
            || source.contains(&format!("ReasonCode::{code:?}"));
        assert!(speaks, "{file}.rs does not speak of {code:?}");
    }
}

// ---- each fault its own reason ----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_space_that_the_node_never_saw_says_so() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    node.kill();
    let space = admin.create_space("Club").await?;
    let offline = || Ok(Reason::find(&space.explain()?, ReasonCode::NoNode).filter(|r| r.attempts > 0).cloned());
    until(&space, offline).await?;
    let reasons = space.explain()?;
    assert_eq!(reasons.len(), 1, "one reason, with what it comes from below it: {reasons:?}");
    assert_eq!(reasons[0].code, ReasonCode::Pending, "the write of its name");
    assert_eq!(reasons[0].causes[0].code, ReasonCode::NotRegistered);
    assert_eq!(reasons[0].causes[0].causes[0].code, ReasonCode::NoNode);
    assert!(reasons[0].causes[0].causes[0].since_ms.is_some());
    assert_eq!(space.status()?.state, SyncState::Offline);
    node.restart();
    admin.reconnect();
    space.await_synced().await?;
    assert_eq!(space.explain()?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_the_node_refuses_is_forbidden() -> Outcome {
    use sync_proto::v1::{self, head_updates_response::Message};
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    let id = space.id();
    relay.edits(move |frame| {
        if let Message::Pong(_) = frame {
            let code = client_sdk::Code::Forbidden.number();
            let error = Some(v1::ErrorDetail { code, message: "not for you".to_owned(), ..v1::ErrorDetail::default() });
            *frame = Message::Refused(v1::SubscriptionRefused { space: id.as_bytes().to_vec().into(), error });
        }
    });
    let forbidden = || Ok(Reason::find(&space.explain()?, ReasonCode::Forbidden).cloned());
    let reason = until(&space, forbidden).await?;
    assert!(reason.since_ms.is_some(), "{reason:?}");
    assert_eq!(space.status()?.state, SyncState::Attention);
    let no = space.await_synced().await.expect_err("the node says no");
    assert_eq!(no.code, NotSyncedCode::Forbidden, "{no:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_without_heartbeats_is_not_synced() -> Outcome {
    use sync_proto::v1::head_updates_response::Message;
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    assert_eq!(space.status()?.state, SyncState::UpToDate);
    // Everything but the answers to pings: entries and heartbeats keep the link from being hung up.
    relay.frames(|frame| if matches!(frame, Message::Pong(_)) { Fate::Drop } else { Fate::Pass });
    let mut statuses = space.status_stream();
    let stale = async {
        loop {
            let status = statuses.next().await?.ok_or("the space is open")?;
            if status.reasons.iter().any(|r| matches!(r.code, ReasonCode::NotFresh | ReasonCode::NoNode)) {
                return Outcome::Ok(status);
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, stale).await??;
    assert_ne!(status.state, SyncState::UpToDate, "what was heard long ago is not called synced");
    assert_eq!(status.fresh_ms, None);
    relay.heal();
    space.await_synced().await?;
    assert_eq!(space.status()?.state, SyncState::UpToDate, "it has asked again");
    Ok(())
}

/// Whoever follows the status hears that it is not fresh when that begins, and not at the next occasion.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_freshness_is_told_when_it_comes() -> Outcome {
    use sync_core::limits::HEARTBEAT_INTERVAL;
    use sync_proto::v1::head_updates_response::Message;
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    let word = |frame: &_| matches!(frame, Message::Pong(_) | Message::Heartbeat(_) | Message::Durable(_));
    relay.frames(move |frame| if word(frame) { Fate::Drop } else { Fate::Pass });
    // From now on it only grows.
    let age = space.fresh_within().ok_or("it was just heard")?;
    let ends = std::time::Instant::now() + (HEARTBEAT_INTERVAL * 2).saturating_sub(age);
    // Out of step with whatever is looked at every few seconds.
    tokio::time::sleep(HEARTBEAT_INTERVAL / 2).await;
    let mut statuses = space.status_stream();
    let stale = async {
        loop {
            let status = statuses.next().await?.ok_or("the space is open")?;
            if Reason::find(&status.reasons, ReasonCode::NotFresh).is_some() {
                return Outcome::Ok(std::time::Instant::now());
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, stale).await??;
    assert!(told >= ends, "not before");
    assert!(told - ends < Duration::from_secs(1), "{:?} late", told - ends);
    relay.heal();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_logged_and_not_certified_says_so() -> Outcome {
    use sync_proto::v1::head_updates_response::Message;
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    relay.edits(|frame| {
        if let Message::Update(update) = frame {
            update.durable_seq = 0;
        }
    });
    let of_the_disk = |frame: &_| matches!(frame, Message::Durable(_) | Message::Heartbeat(_));
    relay.frames(move |frame| if of_the_disk(frame) { Fate::Drop } else { Fate::Pass });
    relay.calls(|name| if name == "Certify" { Calls::Refuse } else { Calls::Forward });
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let received = space.await_write(write, &Await::default().level(Level::Received)).await?;
    assert_eq!(received.receipt, None);
    let reasons = space.explain()?;
    assert!(Reason::find(&reasons, ReasonCode::NotDurable).is_some(), "{reasons:?}");
    let durable = space.await_write(write, &Await::default().deadline(A_MOMENT)).await;
    let no = durable.expect_err("the node has not said that its disk holds it");
    assert!(Reason::find(&no.residue, ReasonCode::NotDurable).is_some(), "{no:?}");
    relay.heal();
    let durable = space.await_write(write, &Await::default().deadline(PATIENCE)).await?;
    assert_eq!(durable.seq, received.seq);
    assert!(durable.receipt.is_some_and(|r| r.body().durable && r.body().seq >= durable.seq));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_object_is_never_waited_for() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    let tree = space.objects().tree_id("item", "milk")?;
    space.objects().purge("item", "milk").await?;
    space.await_synced_with(&Await::default().tree(tree, [])).await?;
    let no = space.await_object("item", "milk", PATIENCE).await.expect_err("it never comes back");
    assert_eq!(no.code, NotSyncedCode::Unreadable, "{no:?}");
    assert_eq!(no.residue[0].code, ReasonCode::Unreadable);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_await_without_time_says_that() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    // However fast the node is, and however slow a clock that counts milliseconds.
    relay.calls(|name| if name == "Certify" { Calls::HangBefore } else { Calls::Forward });
    let no = space.await_synced_within(Duration::ZERO).await.expect_err("there was no time");
    assert_eq!((no.code, no.residue[0].code), (NotSyncedCode::DeadlineExceeded, ReasonCode::TimedOut), "{no:?}");
    Ok(())
}

/// A tree that is here is not "synced" while entries that may be of it are on their way.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_here_may_be_behind() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    let tree = space.objects().tree_id("item", "milk")?;
    let joined = join(&space, &member, Role::Reader).await?;
    joined.await_synced_within(PATIENCE).await?;
    until(&joined, || Ok((joined.tree_status(tree)?.state == SyncState::UpToDate).then_some(()))).await?;
    relay.frames(|frame| if matches!(frame, Frame::Update(_)) { Fate::Drop } else { Fate::Pass });
    space.objects().put("item", "milk", json!({ "n": 2 })).await?;
    space.await_synced_within(PATIENCE).await?;
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("the edit does not come through");
    assert!(Reason::find(&no.residue, ReasonCode::Behind).is_some(), "{no:?}");
    let mut statuses = joined.tree_status_stream(tree);
    let status = statuses.next().await?.ok_or("open")?;
    assert_eq!(status.state, SyncState::CatchingUp, "{status:?}");
    assert!(Reason::find(&status.reasons, ReasonCode::Behind).is_some(), "{status:?}");
    let mut peers = joined.peers_stream();
    let of_node = peers.next().await?.ok_or("open")?.remove(0);
    assert!(of_node.missing > 0, "{of_node:?}");
    relay.heal();
    let told = async {
        while let Some(status) = statuses.next().await? {
            if status.reasons.is_empty() {
                break;
            }
        }
        while let Some(now) = peers.next().await? {
            if now[0].missing == 0 {
                return Outcome::Ok(());
            }
        }
        Err("the stream ended".into())
    };
    tokio::time::timeout(PATIENCE, told).await??;
    joined.await_synced_within(PATIENCE).await?;
    until(&joined, || Ok(joined.explain_tree(tree)?.is_empty().then_some(()))).await?;
    assert_eq!(joined.tree(tree)?.ok_or("here")?.changes()?.len(), 2);
    Ok(())
}

// ---- bounded, and paged -----------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pending_writes_are_one_reason() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    until(&space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await?;
    for n in 0..100 {
        space.objects().put("item", &n.to_string(), json!({ "n": n })).await?;
    }
    let reasons = space.explain()?;
    let pending = Reason::find(&reasons, ReasonCode::Pending).ok_or("a hundred are pending")?;
    assert_eq!((pending.count, pending.examples.len(), pending.causes.len()), (100, 5, 1));
    assert_eq!(space.status()?.pending, 100);
    let page = space.reason_items(ReasonCode::Pending, 90, 50)?;
    assert_eq!(page.len(), 10);
    assert_eq!(space.reason_items(ReasonCode::Pending, 0, 5)?, pending.examples);
    let tree = space.objects().tree_id("item", "7")?;
    let why = space.explain_tree(tree)?;
    assert_eq!((why[0].code, why[0].count), (ReasonCode::Pending, 1));
    assert_eq!(Reason::find(&why[0].causes, ReasonCode::NoNode).map(|r| r.code), Some(ReasonCode::NoNode));
    let absent = space.explain_tree(space.objects().tree_id("item", "nobody's")?)?;
    assert_eq!(absent[0].code, ReasonCode::Missing);
    let peers = space.peers()?;
    assert_eq!((peers[0].pending, peers[0].connected), (100, false));
    assert!(peers[0].confirmed.is_some() || peers[0].receipt_seq.is_some(), "{peers:?}");
    Ok(())
}

/// Whatever rows there are: nothing is unsynced without a reason, and nothing is a reason that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn no_state_is_unsynced_without_a_reason() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let mut writes = Vec::new();
    for n in 0..6 {
        let write = space.objects().put("item", &n.to_string(), json!({ "n": n })).await?;
        writes.extend(write);
    }
    space.await_synced().await?;
    check(&space)?;
    let (id, mut dir) = (space.id(), Some(drop_and_shut(space, admin).await));
    for seed in 0..12_u64 {
        let path = dir.take().ok_or("one at a time")?;
        scribble(path.path(), id, seed).await;
        let admin = TestClient::open(path).await;
        let space = admin.space(id)?;
        check(&space)?;
        let _ = space.await_synced_within(A_MOMENT).await;
        check(&space)?;
        dir = Some(drop_and_shut(space, admin).await);
    }
    Ok(())
}

async fn drop_and_shut(space: Space, client: TestClient) -> tempfile::TempDir {
    drop(space);
    client.shut().await
}

fn check(space: &Space) -> Outcome {
    let status = space.status()?;
    let reasons = &status.reasons;
    assert_eq!(status.state == SyncState::UpToDate, reasons.is_empty(), "{status:?}");
    let named = |code| Reason::find(reasons, code).map_or(0, |r| usize::try_from(r.count).unwrap_or(usize::MAX));
    let pending = named(ReasonCode::Pending) + named(ReasonCode::Retrying) + named(ReasonCode::NotDurable);
    assert_eq!(pending, status.pending, "{status:?}");
    assert_eq!(named(ReasonCode::Refused), status.refused, "{status:?}");
    assert_eq!(named(ReasonCode::Quarantined), status.quarantined, "{status:?}");
    assert_eq!(named(ReasonCode::ContentMissing), status.missing, "{status:?}");
    assert_eq!(named(ReasonCode::Panicked), 0, "nothing panicked: {status:?}");
    assert!(status.node_seq <= status.seq || named(ReasonCode::Behind) > 0, "{status:?}");
    let examples = |r: &Reason| r.examples.len() <= 5 && (r.count > 1 || r.examples.is_empty());
    assert!(reasons.iter().all(examples), "{reasons:?}");
    space.objects().list("item")?.iter().try_for_each(|object| check_tree(space, object.tree))
}

/// A tree is never better off than its space, and says why.
fn check_tree(space: &Space, tree: TreeId) -> Outcome {
    let (before, status, after) = (space.explain()?, space.tree_status(tree)?, space.explain()?);
    assert_eq!(status.state == SyncState::UpToDate, status.reasons.is_empty(), "{status:?}");
    let open = status.pending + status.quarantined + status.missing;
    assert!(open == 0 || !status.reasons.is_empty(), "{status:?}");
    for code in [ReasonCode::Behind, ReasonCode::NoNode, ReasonCode::Faulted, ReasonCode::Rewound] {
        let of_all = [&before, &after].into_iter().all(|of_space| Reason::find(of_space, code).is_some());
        assert!(!of_all || Reason::find(&status.reasons, code).is_some(), "{code:?}: {status:?}");
    }
    Ok(())
}

/// Rows such as faults leave, by a seed.
async fn scribble(dir: &Path, space: client_sdk::SpaceId, seed: u64) {
    let store = Store::open(dir, StoreKind::Client).expect("the store of a closed client");
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
        let mut dice = seed;
        let mut roll = move |sides: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % sides
        };
        let kinds = [
            VerdictKind::Void,
            VerdictKind::Hidden,
            VerdictKind::Misplaced,
            VerdictKind::Quarantined,
            VerdictKind::Missing,
        ];
        let trees: Vec<_> =
            tx.elements(space, None, 100)?.iter().filter_map(sync_core::reconcile::Element::key).collect();
        for (tree, change, _) in tx.verdicts(space)? {
            tx.delete_verdict(space, tree, change)?;
        }
        for tree in trees {
            let Some(head) = tx.tree(space, tree)?.and_then(|t| t.heads.first().copied()) else { continue };
            let kind = kinds[usize::try_from(roll(8)).unwrap_or(0) % 5];
            if roll(2) == 0 {
                let seq = sync_core::ids::Seq(3);
                tx.put_verdict(space, tree, head, &VerdictRow { kind, detail: format!("seed {seed}"), seq })?;
            }
        }
        let refusal = RefusalRow { code: 26, message: "no".to_owned(), log_seq: sync_core::ids::Seq(3) };
        for id in 1..8 {
            let state = match roll(4) {
                0 => WriteState::Refused(refusal.clone()),
                1 => WriteState::Pending { attempts: 2, last_refusal: Some(refusal.clone()), next_retry_ms: Some(1) },
                2 => WriteState::Logged { seq: sync_core::ids::Seq(1 << 30) },
                _ => WriteState::Pending { attempts: 0, last_refusal: None, next_retry_ms: None },
            };
            // Those whose bytes are gone stay as they are.
            if let Some(WriteState::Pending { .. } | WriteState::Refused(_)) = tx.write_state(space, WriteId(id))? {
                tx.set_write_state(WriteId(id), &state)?;
            }
        }
        Ok(())
    };
    store.write(job).await.expect("written");
    store.close().await;
}

// ---- what is asked of the node ----------------------------------------------------------------------------------------

/// When nothing is missing an await is one question. With much to wait for it asks again, if its caller wants a younger answer than
/// the first.
#[tokio::test(flavor = "multi_thread")]
async fn an_await_asks_once_or_until_the_answer_is_young_enough() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    joined.await_synced_within(PATIENCE).await?;
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    relay.calls(move |name| {
        count.fetch_add(u64::from(name == "Certify"), Ordering::Relaxed);
        Calls::Forward
    });
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(asked.load(Ordering::Relaxed), 1, "nothing was missing");

    // What was asked is a second old when the entries come; pongs are held with them.
    relay.frames(|_| Fate::Hold);
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    space.await_synced_within(PATIENCE).await?;
    let young = Await::default().deadline(PATIENCE).fresh_within(A_MOMENT / 2);
    let held = async {
        tokio::time::sleep(A_MOMENT).await;
        relay.let_pass();
    };
    let (synced, ()) = tokio::join!(joined.await_synced_with(&young), held);
    synced?;
    assert!(asked.load(Ordering::Relaxed) >= 3, "the answer that was too old was not asked again");
    Ok(())
}

// ---- awaits -----------------------------------------------------------------------------------------------------------

/// S48: a thousand awaits are begun and dropped: nothing of them stays.
#[tokio::test(flavor = "multi_thread")]
async fn s48_a_thousand_cancelled_awaits_leave_nothing() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    until(&space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await?;
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for n in 0..1000 {
        let how = Await::default().without_deadline();
        let brief = Duration::from_micros(n % 50);
        let ended = match n % 4 {
            0 => tokio::time::timeout(brief, space.await_synced_with(&how)).await.is_ok(),
            1 => tokio::time::timeout(brief, space.await_write(write, &how)).await.is_ok(),
            2 => tokio::time::timeout(brief, space.await_object_with("item", "none", &how)).await.is_ok(),
            _ => {
                let mut following = space.follow_synced(how);
                tokio::time::timeout(brief, following.next()).await.is_ok()
            }
        };
        assert!(!ended, "there is no node");
    }
    assert!(tasks() <= before + 2, "{} tasks, {before} before", tasks());
    assert_eq!(admin.waits()?, []);
    node.restart();
    admin.reconnect();
    space.await_synced().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_await_that_is_followed_tells_progress_and_then_one_end() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let target = space.await_durable(write).await?.body().seq.0;
    let mut following = joined.follow_synced(Await::default().deadline(PATIENCE));
    let mut seen = Vec::new();
    let synced = loop {
        match following.next().await.ok_or("it ends with an answer")? {
            AwaitEvent::Progress(progress) => {
                if progress.left() > 0 {
                    relay.heal();
                }
                seen.push(progress);
            }
            AwaitEvent::Synced(synced) => break synced,
            AwaitEvent::Failed(failed) => return Err(failed.into()),
        }
    };
    assert!(following.next().await.is_none(), "one end");
    assert!(seen.iter().any(|p| p.target == Some(target) && p.missing.contains_key(&ReasonCode::Behind)), "{seen:?}");
    assert_eq!(synced.receipt.body().seq.0, target);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_await_without_progress_stalls_before_its_deadline() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Drop } else { Fate::Pass });
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    space.await_durable(write).await?;
    let how = Await::default().without_deadline().stall(A_MOMENT);
    let no = tokio::time::timeout(PATIENCE, joined.await_synced_with(&how)).await?.expect_err("nothing comes");
    assert_eq!(no.code, NotSyncedCode::Stalled, "{no:?}");
    assert!(Reason::find(&no.residue, ReasonCode::Behind).is_some(), "{no:?}");
    relay.heal();
    joined.await_synced().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_await_for_trees_that_the_caller_names_waits_for_them() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let tree = space.objects().tree_id("item", "milk")?;
    let named = Await::default().tree(tree, []);
    let no = joined.await_synced_with(&named.clone().deadline(A_MOMENT)).await.expect_err("nobody wrote it");
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded, "{no:?}");
    let waiting = tokio::spawn({
        let (joined, named) = (joined.clone(), named.clone());
        async move { joined.await_synced_with(&named).await }
    });
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    let synced = waiting.await??;
    let heads = space.tree(tree)?.ok_or("it is here")?.snapshot()?.heads.clone();
    assert_eq!(synced.heads.get(&tree), Some(&heads), "the answer says which heads");
    Ok(())
}

/// What is waited for survives the process that began to wait.
#[tokio::test(flavor = "multi_thread")]
async fn awaits_survive_a_restart() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let whole = space.await_later(WaitFor::Synced).await?;
    let one = space.await_later(WaitFor::Write { write: write.0, level: Level::Durable }).await?;
    let object_type = "item".to_owned();
    let later = space.await_later(WaitFor::Object { object_type, id: "bread".to_owned() }).await?;
    let gone = space.await_later(WaitFor::Synced).await?;
    admin.drop_wait(gone).await?;
    let (id, dir) = (space.id(), drop_and_shut(space, admin).await);
    let admin = TestClient::open(dir).await;
    let ids: Vec<_> = admin.waits()?.iter().map(|w| w.id).collect();
    assert_eq!(ids, [whole, one, later]);
    assert!(admin.resume_wait(gone).is_err());
    let failed = admin.resume_wait(one)?.done(&Await::default().deadline(A_MOMENT)).await.expect_err("no node");
    assert_eq!(failed.code, NotSyncedCode::NoNode);
    assert_eq!(admin.waits()?.len(), 3, "it can be resumed again");
    node.restart();
    admin.reconnect();
    let how = Await::default().deadline(PATIENCE);
    assert!(matches!(admin.resume_wait(whole)?.done(&how).await?, Waited::Synced(_)));
    let Waited::Write(settled) = admin.resume_wait(one)?.done(&how).await? else { return Err("of a write".into()) };
    assert!(settled.receipt.is_some());
    admin.space(id)?.objects().put("item", "bread", json!({ "n": 2 })).await?;
    assert!(matches!(admin.resume_wait(later)?.done(&how).await?, Waited::Object(_)));
    assert_eq!(admin.waits()?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_client_ends_its_awaits_by_name() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    until(&space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await?;
    let waiting = tokio::spawn(async move { space.await_synced_with(&Await::default().without_deadline()).await });
    tokio::task::yield_now().await;
    let _dir = admin.shut().await;
    let no = tokio::time::timeout(PATIENCE, waiting).await??.expect_err("the client is closed");
    assert_eq!(no.code, NotSyncedCode::Aborted, "{no:?}");
    Ok(())
}

/// A status is told whenever it changes, and S29's cut-off admin is named while the member is synced with what the node has.
#[tokio::test(flavor = "multi_thread")]
async fn s29_an_admin_that_is_cut_off() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", relay.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    space.await_synced().await?;
    let mut statuses = space.status_stream();
    let first = statuses.next().await?.ok_or("the first comes at once")?;
    assert_eq!(first.space, space.id().to_string());
    relay.calls(|name| if matches!(name, "Push" | "Certify") { Calls::Refuse } else { Calls::Forward });
    let write = space.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a write")?;
    let no = space.await_durable_within(write, A_MOMENT).await.expect_err("it cannot go out");
    assert!(Reason::find(&no.residue, ReasonCode::Pending).is_some(), "{no:?}");
    let pending = async {
        loop {
            let status = statuses.next().await?.ok_or("the space is open")?;
            if status.state == SyncState::Pushing {
                return Outcome::Ok(status);
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, pending).await??.pending, 1);
    let invite = space.invite(InviteOptions::approval()).await?;
    let [missing] = &invite.not_pushed[..] else { return Err(format!("{invite:?}").into()) };
    assert_eq!((missing.code, missing.count), (ReasonCode::Pending, 1), "who joins now does not find the milk");
    joined.await_synced().await?;
    assert_eq!(joined.objects().get("item", "milk")?, None, "what the node has, and no more");
    relay.heal();
    space.await_durable_within(write, PATIENCE).await?;
    assert_eq!(space.invite(InviteOptions::approval()).await?.not_pushed, []);
    space.await_durable_within(write, PATIENCE).await?;
    joined.await_object("item", "milk", PATIENCE).await?;
    assert_eq!(object(&joined, "item", "milk")?.fields["n"], 1);
    Ok(())
}
