//! Networks that fail without saying so: cables that swallow bytes, one way or both, proxies that keep one kind of message back,
//! and long absences. Nothing is called synced that is not, what is missing is named, and everything is well again by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client_sdk::{
    InviteOptions, JoinError, NotSynced, NotSyncedCode, ReadError, Reason, ReasonCode, Role, Space, SyncState, WriteId,
    WriteState,
};
use serde_json::json;
use sync_core::limits::HEARTBEAT_INTERVAL;
use sync_tests::harness::{
    NodeProcess, Outcome, PATIENCE, TestClient, agree, changed, join, object, request_of, until,
};
use sync_tests::relay::{Calls, Fate, Frame, Relay, entries};
use sync_tests::wire::{Flow, Wire};

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);
/// How long a link may be silent before both ends know: three heartbeats, and what a loaded machine takes.
const NOTICED_WITHIN: Duration = Duration::from_secs(17);

fn no<T: std::fmt::Debug>(result: Result<T, NotSynced>) -> Outcome<NotSynced> {
    match result {
        Ok(yes) => Err(format!("it must not say yes: {yes:?}").into()),
        Err(no) => Ok(no),
    }
}

fn names(space: &Space, code: ReasonCode) -> Outcome<bool> {
    Ok(Reason::find(&space.explain()?, code).is_some())
}

async fn put(space: &Space, id: &str, n: u64) -> Outcome<WriteId> {
    Ok(space.objects().put("item", id, json!({ "n": n })).await?.ok_or("a new number is a write")?)
}

// ---- links that fall silent -------------------------------------------------------------------------------------------

/// A member at the end of a cable.
struct Cabled {
    wire: Wire,
    member: TestClient,
    space: Space,
}

async fn cabled(node: &NodeProcess, admin: &Space, name: &str) -> Outcome<Cabled> {
    let wire = Wire::to(&node.address().endpoint).await;
    let member = TestClient::create(name, &wire.address(node.address())).await;
    let space = join(admin, &member, Role::Writer).await?;
    space.await_synced().await?;
    Ok(Cabled { wire, member, space })
}

/// What a member met at a cable that went dead.
struct Silence {
    /// Until the client said that there is no node.
    noticed: Duration,
    own: WriteId,
}

impl Cabled {
    /// The cable goes dead; the member writes, asks, and finds out.
    async fn falls_silent(&self, to_node: Flow, from_node: Flow) -> Outcome<Silence> {
        let began = Instant::now();
        self.wire.set(to_node, from_node);
        let own = put(&self.space, &self.member.own(), 1).await?;
        let no = no(self.space.await_synced_within(A_MOMENT).await)?;
        assert!(!no.residue.is_empty(), "a no names what is missing");
        let state = self.space.write_state(own)?;
        assert!(matches!(state, Some(WriteState::Pending { .. })), "nobody said that it arrived: {state:?}");
        until(&self.space, || Ok((self.space.status()?.state == SyncState::Offline).then_some(()))).await?;
        let noticed = began.elapsed();
        let status = self.space.status()?;
        assert_eq!(status.fresh_ms, None);
        assert!(Reason::find(&status.reasons, ReasonCode::NoNode).is_some(), "{:?}", status.reasons);
        Ok(Silence { noticed, own })
    }
}

/// S31, and one-way partitions: bytes are swallowed both ways, only towards the node, only from it. Each is noticed within three
/// heartbeats; nothing counts as arrived that nobody said arrived; then everything is well by itself, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn s31_silent_links_are_noticed_in_15_s() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let both = cabled(&node, &space, "Both").await?;
    let deaf = cabled(&node, &space, "Deaf").await?;
    let mute = cabled(&node, &space, "Mute").await?;
    agree(&[&space, &both.space, &deaf.space, &mute.space]).await?;

    let (a, b, c) = tokio::try_join!(
        both.falls_silent(Flow::Swallow, Flow::Swallow),
        deaf.falls_silent(Flow::Pass, Flow::Swallow),
        mute.falls_silent(Flow::Swallow, Flow::Pass),
    )?;
    for (name, silence) in [("both", &a), ("deaf", &b), ("mute", &c)] {
        eprintln!("{name}: noticed after {:?}", silence.noticed);
        assert!(silence.noticed < NOTICED_WITHIN, "{name}: {:?}", silence.noticed);
        assert!(silence.noticed > HEARTBEAT_INTERVAL, "{name} is not a silence: {:?}", silence.noticed);
    }
    for (cabled, silence) in [(&both, &a), (&deaf, &b), (&mute, &c)] {
        cabled.wire.heal();
        cabled.member.reconnect();
        cabled.space.await_durable_within(silence.own, PATIENCE).await?;
        assert!(cabled.space.fresh_within().is_some_and(|age| age < HEARTBEAT_INTERVAL * 2));
    }
    agree(&[&space, &both.space, &deaf.space, &mute.space]).await?;
    for cabled in [&both, &deaf, &mute] {
        let tree = space.objects().tree_id("item", &cabled.member.own())?;
        let changes = space.tree(tree)?.ok_or("there")?.changes()?;
        assert_eq!(changes.len(), 1, "however often it was sent");
    }
    Ok(())
}

/// How long S28 is away.
const AWAY: Duration = Duration::from_secs(60);
const WRITES_AWAY: u32 = 20;

/// S28: nobody asks for anything: both sides write while the cable is dead, for a minute, and when it is whole again each has
/// what the other wrote, at the latest after the longest pause between attempts.
#[tokio::test(flavor = "multi_thread")]
async fn s28_back_on_line_without_anybody_asking() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let away = cabled(&node, &space, "Away").await?;
    away.wire.set(Flow::Swallow, Flow::Swallow);
    away.wire.cut();
    let attempts = until(&away.space, || {
        let tried = Reason::find(&away.space.explain()?, ReasonCode::NoNode).map(|r| r.attempts);
        Ok(tried.filter(|attempts| *attempts >= 2))
    });
    let began = Instant::now();
    let writes = async {
        for n in 0..WRITES_AWAY {
            put(&space, "of-admin", n.into()).await?;
            put(&away.space, "of-member", n.into()).await?;
            tokio::time::sleep(AWAY / WRITES_AWAY).await;
        }
        // The keys move, too: what was written before must be made anew.
        space.rotate_keys().await?;
        Outcome::Ok(())
    };
    tokio::try_join!(attempts, writes)?;
    assert!(began.elapsed() >= AWAY);
    assert_eq!(away.space.status()?.pending, 20);
    assert_eq!(object(&away.space, "item", "of-member")?.fields["n"], 19, "readable all the while");
    away.wire.heal();
    let came = away.space.await_object("item", "of-admin", PATIENCE);
    let went = space.await_object("item", "of-member", PATIENCE);
    tokio::try_join!(came, went)?;
    agree(&[&space, &away.space]).await?;
    assert_eq!(object(&space, "item", "of-member")?.fields["n"], 19);
    assert_eq!(object(&away.space, "item", "of-admin")?.fields["n"], 19);
    assert_eq!((away.space.status()?.pending, away.space.status()?.refused), (0, 0));
    Ok(())
}

// ---- one kind of message is kept back ---------------------------------------------------------------------------------

/// An admin, and a member behind a relay.
struct Relayed {
    _node: NodeProcess,
    relay: Relay,
    _admin: TestClient,
    member: TestClient,
    space: Space,
    joined: Space,
}

async fn relayed() -> Outcome<Relayed> {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    Ok(Relayed { _node: node, relay, _admin: admin, member, space, joined })
}

const EDITS: u64 = 20;

/// S32: no comparison ever comes through: every edit is there within a second, by push alone, and the awaits say yes.
#[tokio::test(flavor = "multi_thread")]
async fn s32_pushes_only() -> Outcome {
    let world = relayed().await?;
    let Relayed { relay, space, joined, member, .. } = &world;
    relay.calls(|name| if name == "HeadSync" { Calls::Refuse } else { Calls::Forward });
    // A comparison is made on every connect: from here on there is a connection without one.
    relay.cut();
    until(joined, || Ok((relay.calls_met("HeadSync") > 0).then_some(()))).await?;
    member.connected(PATIENCE).await?;
    joined.await_synced().await?;
    let mut watch = joined.objects().watch("item");
    let mut took = Vec::new();
    for n in 1..=EDITS {
        let began = Instant::now();
        put(space, "milk", n).await?;
        assert_eq!(changed(&mut watch).await?.fields["n"], n);
        took.push(began.elapsed());
    }
    took.sort();
    eprintln!("{took:?}");
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
    // On a machine that does other things as well: at least none of them waited for a heartbeat.
    assert!(took.last().is_some_and(|slowest| *slowest < HEARTBEAT_INTERVAL), "{took:?}");
    agree(&[space, joined]).await?;
    assert_eq!(joined.explain()?, []);
    Ok(())
}

/// S33: nothing is pushed: what is new is dropped on its way, with the word that there is something. The heartbeat names an entry
/// that did not arrive, it is asked for, and comes; an await says no by name until then, and yes after.
#[tokio::test(flavor = "multi_thread")]
async fn s33_reconciliation_only() -> Outcome {
    let world = relayed().await?;
    let Relayed { relay, space, joined, .. } = &world;
    let told = Arc::new(AtomicBool::new(false));
    let asked = told.clone();
    relay.frames(move |frame| match frame {
        // Only what was asked for because of a heartbeat comes through.
        Frame::Heartbeat(_) => {
            asked.store(true, Ordering::Relaxed);
            Fate::Pass
        }
        Frame::Update(_) if asked.swap(false, Ordering::Relaxed) => Fate::Pass,
        Frame::Update(_) | Frame::Durable(_) => Fate::Drop,
        Frame::Rewound(_) | Frame::Refused(_) | Frame::Pong(_) | Frame::Subscribed(_) => Fate::Pass,
    });
    for n in 1..=3 {
        told.store(false, Ordering::Relaxed);
        let began = Instant::now();
        let write = put(space, "milk", n).await?;
        let seq = space.await_durable(write).await?.body().seq;
        if n == 1 {
            let no = no(joined.await_synced_within(A_MOMENT).await)?;
            assert_eq!(no.code, NotSyncedCode::DeadlineExceeded);
            let behind = no.residue.iter().find(|r| r.code == ReasonCode::Behind).ok_or("it is behind")?;
            assert!(behind.detail.ends_with(&format!("of {seq}")), "{behind:?}");
        }
        joined.await_synced().await?;
        assert_eq!(object(joined, "item", "milk")?.fields["n"], n);
        assert!(began.elapsed() < HEARTBEAT_INTERVAL * 2, "one heartbeat tells it: {:?}", began.elapsed());
    }
    assert!(relay.frames_met() > 2, "pushes were dropped");
    relay.heal();
    agree(&[space, joined]).await
}

/// S30: the member's connection is cut when it has read the ACL and none of the trees. It is a member, says what it waits for, is
/// not ready, and says so after a restart, too; with the network back it is, by itself.
#[tokio::test(flavor = "multi_thread")]
async fn s30_member_cut_between_acl_and_trees() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let own = member.own();
    let profile = space.objects().put("profile", &own, json!({ "name": "Member" })).await?;
    for n in 0..50 {
        put(&space, &n.to_string(), n).await?;
    }
    space.await_durable(profile.ok_or("a new profile is a write")?).await?;
    let tree = space.objects().tree_id("profile", &own)?;
    let invite = space.invite(InviteOptions::approval()).await?;
    let joining = member.join(&invite.token).await?;
    let request = request_of(&space, &member).await?;

    // From here on the ACL comes through, as a stream of its own, and no tree does.
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    relay.calls(|name| if name == "Fetch" || name == "HeadSync" { Calls::Refuse } else { Calls::Forward });
    space.approve(request, Some(Role::Writer), |w| w.promise_trees(&[tree])).await?;
    let not_ready = joining.ready(A_MOMENT).await;
    assert!(matches!(&not_ready, Err(JoinError::NotReady { .. })), "{not_ready:?}");
    let joined = member.space(space.id())?;
    relay.cut();
    cut_off(&joined, &own).await?;
    drop((joined, joining));

    let member = member.reopen().await;
    let joined = member.space(space.id())?;
    cut_off(&joined, &own).await?;
    assert_eq!(member.joins()?.len(), 1, "the join is not over");

    relay.heal();
    relay.cut();
    let joining = member.join(&invite.token).await?;
    let joined = joining.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&joined, "profile", &own)?.fields["name"], "Member");
    agree(&[&space, &joined]).await?;
    assert_eq!(joined.objects().list("item")?.len(), 50);
    Ok(())
}

/// A member without the trees: it says so, by name, to everybody who asks.
async fn cut_off(joined: &Space, own: &str) -> Outcome {
    // Its own log does not reach its keys.
    let read = joined.objects().get("profile", own);
    assert!(matches!(read, Err(ReadError::NoKeys)), "{read:?}");
    let no = no(joined.await_synced_within(A_MOMENT * 6).await)?;
    assert_eq!(no.code, NotSyncedCode::DeadlineExceeded, "{no:?}");
    assert!(no.residue.iter().any(|r| r.code == ReasonCode::Behind), "{no:?}");
    until(joined, || Ok(names(joined, ReasonCode::Behind)?.then_some(()))).await?;
    let status = joined.status()?;
    assert_eq!(status.state, SyncState::CatchingUp);
    assert!(status.seq < status.node_seq, "{status:?}");
    Ok(())
}
