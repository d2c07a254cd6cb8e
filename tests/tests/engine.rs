//! The engine of a space: what failed is tried again for as long as it takes, what is bad holds up nothing else, and what
//! somebody waits for comes first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_sdk::{
    Await, Client, InviteOptions, JoinError, JoinInfo, NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState,
    TreeId,
};
use serde_json::json;
use sync_core::limits;
use sync_proto::v1::HeadUpdate;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, gone, join, object, put_rows, until};
use sync_tests::process::ClientProcess;
use sync_tests::relay::{Calls, Fate, Frame, Relay, entries};
use sync_tests::spoil::{mend, spoil};

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

async fn put_items(space: &Space, count: usize) -> Outcome {
    put_rows(space, "item", count, |n| json!({ "n": n })).await
}

fn tree_of(space: &Space, id: usize) -> Outcome<TreeId> {
    Ok(space.objects().tree_id("item", &id.to_string())?)
}

/// From now on every Fetch is answered so; how many there were.
fn answer_fetches(relay: &Relay, with: Calls) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    relay.calls(move |name| match name {
        "Fetch" => {
            count.fetch_add(1, Ordering::SeqCst);
            with
        }
        _ => Calls::Forward,
    });
    asked
}

/// S17: the node is not available, five times, for one tree: attempts and next retry are visible, and success clears them.
#[tokio::test(flavor = "multi_thread")]
async fn s17_a_tree_that_fails_is_tried_again_until_it_comes() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space, 3).await?;
    let tree = tree_of(&space, 1)?;
    let lost = spoil(&mut node, space.id(), &[tree]).await;
    node.restart();
    admin.reconnect();
    let refused = answer_fetches(&relay, Calls::Refuse);
    let joined = join(&space, &member, Role::Writer).await?;
    let failing = || {
        let reasons = joined.explain()?;
        let missing = Reason::find(&reasons, ReasonCode::ContentMissing);
        let fetching = missing.and_then(|r| Reason::find(&r.causes, ReasonCode::Fetching));
        Ok(fetching.filter(|r| r.attempts >= 5 && r.next_retry_ms.is_some()).cloned())
    };
    let fetching = until(&joined, failing).await?;
    assert!(fetching.since_ms.is_some(), "{fetching:?}");
    let status = joined.status()?;
    assert_eq!((status.missing, status.wanted, status.failing, status.state), (1, 1, 1, SyncState::Attention));
    assert_eq!(joined.objects().list("item")?.len(), 2, "its neighbours are here");

    // It passes at the node: as long as nobody answered that it is not there, it may come.
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("one is missing");
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded, "{no:?}");
    assert!(Reason::find(&no.residue, ReasonCode::ContentMissing).is_some(), "{no:?}");
    mend(&mut node, space.id(), lost).await;
    node.restart();
    relay.heal();
    admin.reconnect();
    member.reconnect();
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(object(&joined, "item", "1")?.fields["n"], 1);
    let status = joined.status()?;
    assert_eq!((status.missing, status.wanted, status.failing), (0, 0, 0));
    assert_eq!(joined.explain()?, []);
    assert!(refused.load(Ordering::SeqCst) >= 5);
    Ok(())
}

/// S18: one poison tree among 500: the others are ready, and the await fails early, naming it and why.
#[tokio::test(flavor = "multi_thread")]
async fn s18_one_poison_tree_among_500() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space, 500).await?;
    let tree = tree_of(&space, 77)?;
    let lost = spoil(&mut node, space.id(), &[tree]).await;
    node.restart();
    admin.reconnect();
    let joined = join(&space, &member, Role::Reader).await?;
    let begun = std::time::Instant::now();
    let no = joined.await_synced_within(PATIENCE).await.expect_err("one is poison");
    assert!(begun.elapsed() < PATIENCE / 2, "it failed early");
    assert_eq!(no.code, NotSyncedCode::NodeFault, "{no:?}");
    assert_eq!(no.residue.len(), 1, "{no:?}");
    assert_eq!(no.residue[0].code, ReasonCode::ContentMissing);
    assert!(no.residue[0].scope.contains(&tree.short()), "it is named: {no:?}");
    assert_eq!(joined.objects().list("item")?.len(), 499);
    let why = joined.explain_tree(tree)?;
    assert!(Reason::find(&why, ReasonCode::ContentMissing).is_some(), "{why:?}");
    assert!(Reason::find(&why, ReasonCode::Fetching).is_some_and(|r| r.attempts > 0), "{why:?}");
    assert_eq!(joined.explain_tree(tree_of(&space, 78)?)?, [], "another tree is well");

    // The operator has a copy: it comes by itself.
    mend(&mut node, space.id(), lost).await;
    node.restart();
    admin.reconnect();
    member.reconnect();
    until(&joined, || Ok((joined.status()?.missing == 0).then_some(()))).await?;
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(object(&joined, "item", "77")?.fields["n"], 77);
    Ok(())
}

/// S19: the stream is cut at 60 %: it goes on where it stopped, without a gap, and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn s19_a_stream_that_is_cut_goes_on_where_it_stopped() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    // Several messages' worth.
    let text = "x".repeat(20_000);
    for n in 0..100 {
        space.objects().put("item", &n.to_string(), json!({ "n": n, "text": text })).await?;
    }
    let total = space.await_synced().await?.receipt.body().seq.0;
    let line = Arc::new(Mutex::new(Line::default()));
    let (counted, id) = (line.clone(), space.id().to_bytes());
    relay.frames(move |frame| match frame {
        Frame::Update(update) if update.space == id => {
            counted.lock().expect("nobody panicked").pass(update, total * 6 / 10)
        }
        Frame::Subscribed(subscribed) if subscribed.space == id => {
            counted.lock().expect("nobody panicked").is_stuck = false;
            Fate::Pass
        }
        Frame::Update(_)
        | Frame::Subscribed(_)
        | Frame::Heartbeat(_)
        | Frame::Durable(_)
        | Frame::Rewound(_)
        | Frame::Refused(_)
        | Frame::Pong(_) => Fate::Pass,
    });
    let invite = space.invite(InviteOptions { role: Role::Reader, ..InviteOptions::open() }).await?;
    let joining = member.join(&invite.token).await?;
    joining.ready(A_MOMENT).await.expect_err("the rest does not come");
    let joined = member.space(space.id())?;
    let passed = || line.lock().expect("nobody panicked").last;
    until(&joined, || Ok((joined.status()?.seq == passed()).then_some(()))).await?;
    assert!((total / 3..total * 6 / 10).contains(&passed()), "{} of {total}", passed());
    relay.cut();
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(joined.objects().list("item")?.len(), 100, "no gap");
    assert!(passed() >= total, "{} of {total}", passed());
    let twice = line.lock().expect("nobody panicked").twice;
    assert_eq!(twice, 0, "what was here came again");
    Ok(())
}

/// What came through of a tail that is cut once.
#[derive(Default)]
struct Line {
    last: u64,
    /// Entries that came although they had come before.
    twice: usize,
    is_stuck: bool,
    was_cut: bool,
}

impl Line {
    /// Everything up to an entry, and then nothing until the tail is asked for anew.
    fn pass(&mut self, update: &HeadUpdate, up_to: u64) -> Fate {
        let Some(last) = update.entries.last().map(|entry| entry.seq) else { return Fate::Pass };
        if !self.was_cut && last >= up_to {
            (self.is_stuck, self.was_cut) = (true, true);
        }
        if self.is_stuck {
            return Fate::Drop;
        }
        self.twice += update.entries.iter().filter(|entry| entry.seq <= self.last).count();
        self.last = last;
        Fate::Pass
    }
}

/// S47: killed with three pending pushes and two failing trees, started again without a node: the status shows the same five.
#[tokio::test(flavor = "multi_thread")]
async fn s47_what_waits_and_what_fails_survives_a_kill() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let id = joined.id();
    drop(joined);
    let dir = member.shut().await;
    put_items(&space, 6).await?;
    let trees = [tree_of(&space, 2)?, tree_of(&space, 4)?];
    let _lost = spoil(&mut node, space.id(), &trees).await;
    node.restart();
    let mut process = ClientProcess::start(dir.path(), id).await?;
    // It says no as soon as both were asked for and the node has answered that it does not have them.
    let no = process.ask_within("synced", PATIENCE).await?;
    assert_eq!(no["error"], "NODE_FAULT", "{no}");
    node.kill();
    for n in 10..13 {
        let written = process.ask(&format!("put {n} {n}")).await?;
        assert!(written["ok"].is_u64(), "{written}");
    }
    let of = |status: &serde_json::Value| {
        let status = &status["ok"];
        ["pending", "missing", "wanted", "failing"].map(|count| status[count].as_u64().unwrap_or_default())
    };
    let before = process.ask("status").await?;
    assert_eq!(of(&before), [3, 2, 2, 2], "{before}");
    process.kill().await?;

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    let status = joined.status()?;
    assert_eq!((status.pending, status.missing, status.wanted, status.failing), (3, 2, 2, 2), "{:?}", status.reasons);
    let reasons = joined.explain()?;
    let scopes = |reason: &Reason| reason.examples.iter().map(|e| e.scope.clone()).collect::<Vec<_>>();
    let pending = Reason::find(&reasons, ReasonCode::Pending).ok_or("three are pending")?;
    let missing = Reason::find(&reasons, ReasonCode::ContentMissing).ok_or("two are missing")?;
    let fetching = Reason::find(&missing.causes, ReasonCode::Fetching).ok_or("two are fetched")?;
    assert_eq!((scopes(pending).len(), scopes(missing).len(), scopes(fetching).len()), (3, 2, 2));
    assert!(fetching.attempts > 0 && fetching.since_ms.is_some(), "{fetching:?}");
    for tree in &trees {
        assert!(scopes(fetching).contains(&tree.short()), "{fetching:?}");
    }
    let was = before["ok"]["reasons"].as_array().ok_or("reasons")?;
    let scopes_of = |code: &str| {
        let named = was.iter().find(|r| r["code"] == code).map(|r| r["examples"].clone()).unwrap_or_default();
        let named = named.as_array().cloned().unwrap_or_default();
        named.iter().filter_map(|e| e["scope"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(scopes(pending), scopes_of("PENDING"), "the very same writes");
    assert_eq!(scopes(missing), scopes_of("CONTENT_MISSING"), "the very same changes");
    Ok(())
}

/// What a joiner is meant to see is in the log, and its content is not on the node: it is neither readable nor ready, and says
/// what it waits for. Being listed is not being shown.
#[tokio::test(flavor = "multi_thread")]
async fn s02_a_join_is_not_ready_without_the_content_of_what_it_names() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space, 3).await?;
    let tree = tree_of(&space, 1)?;
    let lost = spoil(&mut node, space.id(), &[tree]).await;
    node.restart();
    admin.reconnect();
    member.reconnect();
    let options = InviteOptions { role: Role::Writer, must_see: vec![tree], ..InviteOptions::open() };
    let invite = space.invite(options).await?;
    let joining = member.join(&invite.token).await?;
    let joined = member.wait_for_space(space.id(), PATIENCE).await?;
    until(&joined, || Ok((joined.objects().list("item")?.len() == 2).then_some(()))).await?;
    for early in [joining.ready(A_MOMENT).await, joining.readable(A_MOMENT).await] {
        let Err(JoinError::NotReady { waiting }) = early else { return Err(format!("{early:?}").into()) };
        assert!(waiting.contains(&tree.to_string()), "it says what it waits for: {waiting}");
    }
    let head = space.tree(tree)?.ok_or("there")?.snapshot()?.heads.first().copied().ok_or("a head")?;
    let how = Await::default().tree(tree, [head]).deadline(A_MOMENT);
    let no = joined.await_synced_with(&how).await.expect_err("it is named");
    assert!(Reason::find(&no.residue, ReasonCode::ContentMissing).is_some(), "{no:?}");

    mend(&mut node, space.id(), lost).await;
    node.restart();
    admin.reconnect();
    member.reconnect();
    let ready = joining.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&ready, "item", "1")?.fields["n"], 1);
    Ok(())
}

/// What was being fetched for a space that is forgotten gives its share of the budget back: other spaces go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_space_holds_up_no_other() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let mut spaces = Vec::new();
    for n in 0..=limits::FETCHES_MAX {
        let space = admin.create_space(&n.to_string()).await?;
        put_items(&space, 1).await?;
        spaces.push(space);
    }
    for space in &spaces {
        let _lost = spoil(&mut node, space.id(), &[tree_of(space, 0)?]).await;
    }
    node.restart();
    admin.reconnect();
    let fetches = answer_fetches(&relay, Calls::HangBefore);
    let last = spaces.pop().ok_or("the last")?;
    for (n, space) in spaces.iter().enumerate() {
        let joined = join(space, &member, Role::Reader).await?;
        until(&joined, || Ok((fetches.load(Ordering::SeqCst) > n).then_some(()))).await?;
    }
    for space in &spaces {
        space.remove_members(&[member.account()]).await?;
        gone(&member.space(space.id())?).await?;
        member.forget_space(space.id()).await?;
    }
    relay.heal();
    let joined = join(&last, &member, Role::Reader).await?;
    let no = joined.await_synced_within(PATIENCE).await.expect_err("the node does not have the content");
    assert_eq!(no.code, NotSyncedCode::NodeFault, "it was asked, and said so: {no:?}");
    Ok(())
}

fn hang(relay: &Relay, name: &'static str) {
    relay.calls(move |call| if call == name { Calls::HangBefore } else { Calls::Forward });
}

/// What is asked on a connection that nothing comes through is asked anew on the one that replaces it, not when its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_a_replaced_connection_is_asked_anew_at_once() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space, 1).await?;
    let lost = spoil(&mut node, space.id(), &[tree_of(&space, 0)?]).await;
    node.restart();
    admin.reconnect();
    hang(&relay, "Fetch");
    let joined = join(&space, &member, Role::Reader).await?;
    until(&joined, || Ok((relay.calls_met("Fetch") > 0).then_some(()))).await?;
    mend(&mut node, space.id(), lost).await;
    relay.heal();
    node.restart();
    joined.await_synced_within(limits::UNARY_TIMEOUT / 2).await?;

    hang(&relay, "Certify");
    let waited = tokio::spawn({
        let joined = joined.clone();
        async move { joined.await_synced_within(limits::UNARY_TIMEOUT / 2).await }
    });
    until(&joined, || Ok((relay.calls_met("Certify") > 0).then_some(()))).await?;
    node.kill();
    relay.heal();
    node.restart();
    waited.await??;
    assert_eq!(object(&joined, "item", "0")?.fields["n"], 0);
    Ok(())
}

fn join_of(client: &Client) -> Outcome<Vec<JoinInfo>> {
    Ok(client.joins()?)
}

/// What a joiner is meant to see is read before the rest of the log is here, over a restart, too; it is never called synced,
/// and becomes ordinary when the tail passes it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_seen_first_is_read_ahead_of_the_tail() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    put_items(&space, 300).await?;
    space.objects().put("profile", &member.own(), json!({ "name": "v1" })).await?;
    space.objects().put("profile", &member.own(), json!({ "name": "v2" })).await?;
    space.await_synced().await?;
    let tree = space.objects().tree_id("profile", &member.own())?;
    let options = InviteOptions { role: Role::Writer, must_see: vec![tree], ..InviteOptions::open() };
    let invite = space.invite(options).await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    let joining = member.join(&invite.token).await?;
    let early = joining.readable(PATIENCE).await?.remove(0);
    assert_eq!(object(&early, "profile", &member.own())?.fields["name"], "v2");
    assert_eq!(early.objects().list("profile")?.len(), 1);
    let status = early.tree_status(tree)?;
    assert!(status.ahead && !status.logged && status.heads.is_empty(), "{status:?}");
    let no = early.await_synced_within(A_MOMENT).await.expect_err("the log is not here");
    assert!(Reason::find(&no.residue, ReasonCode::Behind).is_some(), "{no:?}");
    assert!(joining.ready(A_MOMENT).await.is_err(), "not ready for writing");
    assert_eq!(join_of(&member)?.len(), 1, "the join goes on");

    // What was read ahead is durable.
    let id = early.id();
    drop((early, joining));
    let member = member.reopen().await;
    let early = member.space(id)?;
    assert_eq!(object(&early, "profile", &member.own())?.fields["name"], "v2");
    relay.heal();
    early.await_synced_within(PATIENCE).await?;
    let status = early.tree_status(tree)?;
    assert!(!status.ahead && status.logged, "{status:?}");
    assert_eq!(object(&early, "profile", &member.own())?.fields["name"], "v2");
    assert_eq!(early.objects().list("item")?.len(), 300);
    early.objects().put("item", "mine", json!({ "n": 1 })).await?;
    early.await_synced_within(PATIENCE).await?;
    assert_eq!(early.explain()?, []);
    Ok(())
}

/// What a reader waits for is fetched first, wherever the tail is.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_waited_for_comes_before_the_tail() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    put_items(&space, 200).await?;
    // The node's word that there is more comes with its heartbeats; here with an await that does not succeed.
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("the tail is held");
    assert!(Reason::find(&no.residue, ReasonCode::Behind).is_some(), "{no:?}");
    let found = joined.await_object("item", "33", PATIENCE).await?;
    assert_eq!(found.fields["n"], 33);
    assert_eq!(joined.objects().list("item")?.len(), 1, "only that one");
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("the tail is held");
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded, "{no:?}");
    relay.heal();
    joined.await_synced_within(PATIENCE).await?;
    assert_eq!(joined.objects().list("item")?.len(), 200);
    Ok(())
}
