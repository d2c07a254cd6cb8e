//! Invites and joins that do not go the short way: several spaces at once, faults in between, dead invites, coming back, crashes,
//! wrong clocks.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client_sdk::{
    Client, Code, Event, InviteMode, InviteOptions, JoinError, JoinStage, RequestStatus, Role, Space, WriteRule,
};
use serde_json::json;
use sync_core::record::{AclContent, InviteToken, Verified};
use sync_core::token::{token_from_text, token_to_text};
use sync_e2ee::{InviteSecret, Recipient, seal_keys};
use sync_tests::harness::{
    NodeProcess, Outcome, PATIENCE, TestClient, accept, binary, join, object, request_of, seen, until,
};
use sync_tests::hostile::{Hostile, Pen, Person, Said, item, some_authority};
use sync_tests::relay::{Calls, Fate, Frame, Relay};
use tokio::sync::mpsc;

fn secret_of(token: &str) -> InviteSecret {
    let token = token_from_text(token).expect("a token");
    InviteSecret::from_bytes(token.body().spaces[0].invite_secret)
}

// ---- S07 ------------------------------------------------------------------------------------------------------------

/// Two spaces, each with a note, and one token for both.
async fn two_spaces(admin: &Client, options: &InviteOptions) -> Outcome<([Space; 2], String)> {
    let spaces = [admin.create_space("First").await?, admin.create_space("Second").await?];
    for space in &spaces {
        space.objects().put("note", "n", json!({ "of": space.id().to_string() })).await?;
    }
    let offers: Vec<_> = spaces.iter().map(|s| (s.clone(), options.clone())).collect();
    let token = admin.invite_to(&offers).await?.token;
    Ok((spaces, token))
}

/// The error of a join names a space, and why.
fn names(error: &JoinError, space: &Space, code: &str) {
    let JoinError::Space { space: named, .. } = error else { panic!("{error:?}") };
    assert_eq!((*named, error.code()), (space.id(), code), "{error:?}");
    assert!(error.to_string().contains(&space.id().to_string()), "{error}");
}

/// The space is a whole member's: it reads and writes, at once.
async fn usable(client: &Client, space: &Space) -> Outcome<Space> {
    let here = client.space(space.id())?;
    let note = here.await_object("note", "n", PATIENCE).await?;
    assert_eq!(note.fields["of"], space.id().to_string());
    let id = client.account().to_string();
    here.objects().put("note", &id, json!({ "text": "here" })).await?;
    here.await_synced().await?;
    space.await_synced().await?;
    object(space, "note", &id)?;
    Ok(here)
}

/// S07 by a network that loses every call for the second space.
#[tokio::test(flavor = "multi_thread")]
async fn s07_one_token_two_spaces_and_no_way_to_the_second() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    for options in [InviteOptions::open(), InviteOptions::approval()] {
        let ([first, second], token) = two_spaces(&admin, &options).await?;
        let member = TestClient::create("Member", relay.address()).await;
        relay.refuse_space(second.id());
        let failed = member.join(&token).await.expect_err("no way to the second");
        names(&failed, &second, "CONNECTION_BROKEN");
        if options.mode == InviteMode::Approval {
            first.approve_as(request_of(&first, &member).await?, None).await?;
            member.resume_join(first.id()).await?.ready(PATIENCE).await?;
        }
        usable(&member, &first).await?;
        assert!(member.space(second.id()).is_err());

        relay.heal();
        let joining = member.join(&token).await?;
        if options.mode == InviteMode::Approval {
            second.approve_as(request_of(&second, &member).await?, None).await?;
        }
        let ready = joining.ready(PATIENCE).await?;
        assert_eq!(ready.iter().map(Space::id).collect::<Vec<_>>(), [first.id(), second.id()]);
        usable(&member, &second).await?;
        assert_eq!(member.joins()?, []);
        for space in [&first, &second] {
            space.await_synced().await?;
            let acl = space.acl()?;
            assert_eq!(acl.invites.values().map(|i| i.uses).collect::<Vec<_>>(), [1]);
            assert_eq!(acl.members.len(), 2);
        }
    }
    Ok(())
}

/// S07 by the node, which insists on something that is not there yet, and by an invite that is over.
#[tokio::test(flavor = "multi_thread")]
async fn s07_one_token_two_spaces_and_the_node_refuses_the_second() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let spaces = [admin.create_space("First").await?, admin.create_space("Second").await?];
    let [first, second] = &spaces;
    for space in &spaces {
        space.objects().put("note", "n", json!({ "of": space.id().to_string() })).await?;
    }
    let wanted = second.objects().tree_id("charter", "self")?;
    let insists = InviteOptions { requires: vec![wanted], ..InviteOptions::open() };
    let offers = [(first.clone(), InviteOptions::open()), (second.clone(), insists)];
    let token = admin.invite_to(&offers).await?.token;
    let member = TestClient::create("Member", node.address()).await;
    let failed = member.join(&token).await.expect_err("not yet");
    names(&failed, second, Code::RequiresMissing.name());
    usable(&member, first).await?;
    second.objects().put("charter", "self", json!({ "text": "signed" })).await?;
    second.await_synced().await?;
    let ready = member.join(&token).await?.ready(PATIENCE).await?;
    assert_eq!(object(&ready[1], "charter", "self")?.fields["text"], "signed");
    usable(&member, second).await?;

    // The second one's invite is revoked: that is for good, and the first is no less a space.
    let ([first, second], token) = two_spaces(&admin, &InviteOptions::open()).await?;
    second.revoke_invite(second.invites()?[0].id).await?;
    let failed = member.join(&token).await.expect_err("revoked");
    names(&failed, &second, Code::InviteRevoked.name());
    usable(&member, &first).await?;
    assert!(member.space(second.id()).is_err());
    assert!(member.joins()?.iter().all(|j| j.space != second.id()), "nothing of the second stays behind");
    Ok(())
}

// ---- S54 ------------------------------------------------------------------------------------------------------------

/// Every way in which an invite is no way in, for one joiner: a code of its own each, and nothing left on either side.
#[tokio::test(flavor = "multi_thread")]
async fn s54_each_dead_invite_has_its_own_code() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let elsewhere = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let deputy = TestClient::create("Deputy", node.address()).await;
    let first = TestClient::create("First", node.address()).await;
    let second = TestClient::create("Second", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let deputys = join(&space, &deputy, Role::Admin).await?;
    let once = InviteOptions { max_uses: Some(1), ..InviteOptions::open() };
    let used_up = space.invite(once).await?.token;
    first.join(&used_up).await?.ready(PATIENCE).await?;
    let soon = InviteOptions { expires_in: Some(Duration::from_millis(1)), ..InviteOptions::open() };
    let expired = space.invite(soon).await?.token;
    let revoked = space.invite(InviteOptions::approval()).await?;
    space.revoke_invite(revoked.id()).await?;
    let orphan = deputys.invite(InviteOptions::open()).await?.token;
    space.change_role(deputy.account(), Role::Writer).await?;
    // Of another network: its node is the home of another space.
    let stranger = TestClient::create("Stranger", elsewhere.address()).await;
    let abroad = stranger.create_space("Abroad").await?;
    let abroad_token = abroad.invite(InviteOptions::open()).await?.token;
    // Of no node that anybody knows.
    let good = space.invite(InviteOptions::open()).await?.token;
    let body = token_from_text(&good)?.body().clone();
    let mut patched = admin.patched(node.address()).await;
    let sign = |body: InviteToken| {
        token_to_text(&Verified::sign(&body, patched.account.signing_key(), None).expect("a token"))
    };
    let nobodys = sign(InviteToken { authority: some_authority(), ..body.clone() });
    let mut unknown = body.clone();
    unknown.spaces[0].invite_secret = rand::random();
    let unknown = sign(unknown);
    let mut garbage = good.clone();
    garbage.truncate(good.len() / 2);

    let cases = [
        ("used up", &used_up, "INVITE_USED_UP"),
        ("expired", &expired, "INVITE_EXPIRED"),
        ("revoked", &revoked.token, "INVITE_REVOKED"),
        ("of an admin who is none any more", &orphan, "INVITE_DEAD"),
        ("never made", &unknown, "INVITE_UNKNOWN"),
        ("of another network", &abroad_token, "WRONG_AUTHORITY"),
        ("of another authority", &nobodys, "WRONG_AUTHORITY"),
        ("garbage", &garbage, "BAD_TOKEN"),
    ];
    let standing = patched.standing(space.id()).await;
    let mut codes = BTreeSet::new();
    for (name, token, code) in cases {
        for _ in 0..2 {
            let error = second.join(token).await.expect_err(name);
            assert_eq!(error.code(), code, "{name}: {error:?}");
            codes.insert(error.code());
            assert_eq!(second.joins()?, [], "{name}");
            assert_eq!(second.spaces()?, [], "{name}");
        }
        assert_eq!(patched.standing(space.id()).await, standing, "{name}: nothing at the node");
    }
    assert_eq!(codes.len(), cases.len() - 1, "another network is another authority: {codes:?}");

    // Whoever is in by it may use it again, as often as it likes: nothing is appended.
    for token in [&used_up, &good] {
        let again = first.join(token).await?.ready(PATIENCE).await?;
        assert_eq!(again[0].id(), space.id());
    }
    assert_eq!(patched.standing(space.id()).await, standing);
    assert_eq!(first.joins()?, []);
    // Also with a client that lost everything but its words.
    second.join(&good).await?.ready(PATIENCE).await?;
    Ok(())
}

// ---- S56 ------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn s56_declined_and_invited_again_by_another_invite() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let as_writer = space.invite(InviteOptions::approval()).await?.token;
    let joining = member.join(&as_writer).await?;
    space.decline(request_of(&space, &member).await?).await?;
    assert!(matches!(joining.ready(PATIENCE).await, Err(JoinError::Declined)));

    // Invited again, with less.
    let as_reader = space.invite(InviteOptions { role: Role::Reader, ..InviteOptions::approval() }).await?.token;
    let joining = member.join(&as_reader).await?;
    let request = request_of(&space, &member).await?;
    let refused = space.approve_as(request, Some(Role::Writer)).await.expect_err("above what was asked");
    assert_eq!(refused.code(), Code::BadRole.name());
    let theirs = accept(&space, &member, &joining, Role::Reader, &[]).await?;
    assert_eq!(theirs.acl()?.role(&member.account()), Some(Role::Reader));
    let statuses: Vec<_> = space.requests()?.into_iter().map(|r| r.status).collect();
    assert!(matches!(statuses[..], [RequestStatus::Declined { .. }, RequestStatus::Accepted { .. }]), "{statuses:?}");

    // And declined, then invited by an open one.
    let other = TestClient::create("Other", node.address()).await;
    let joining = other.join(&as_writer).await?;
    space.decline(request_of(&space, &other).await?).await?;
    assert!(matches!(joining.ready(PATIENCE).await, Err(JoinError::Declined)));
    let open = space.invite(InviteOptions::open()).await?.token;
    let theirs = other.join(&open).await?.ready(PATIENCE).await?.remove(0);
    theirs.await_synced().await?;
    assert_eq!(other.joins()?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s56_removed_comes_back_by_a_new_invite_only() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let old = space.invite(InviteOptions::approval()).await?.token;
    for round in 0..3 {
        let token = space.invite(InviteOptions::approval()).await?.token;
        let joining = member.join(&token).await?;
        let theirs = accept(&space, &member, &joining, Role::Writer, &[]).await?;
        let id = format!("round {round}");
        theirs.objects().put("note", &id, json!({ "round": round })).await?;
        theirs.await_synced().await?;
        space.remove_members(&[member.account()]).await?;
        until(&theirs, || Ok(theirs.status()?.role.is_none().then_some(()))).await?;
        for dead in [&old, &token] {
            let refused = member.join(dead).await.expect_err("made before the removal");
            assert_eq!(refused.code(), Code::InviteDead.name(), "{refused:?}");
            assert_eq!(member.joins()?, []);
        }
        assert_eq!(object(&member.space(space.id())?, "note", &id)?.fields["round"], round);
    }
    let back = join(&space, &member, Role::Writer).await?;
    back.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(seen(&back)?, seen(&space)?);
    assert_eq!(back.objects().list("note")?.len(), 3);
    // For everybody else the old invite is as good as ever.
    let other = TestClient::create("Other", node.address()).await;
    let joining = other.join(&old).await?;
    accept(&space, &other, &joining, Role::Writer, &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s56_who_left_comes_back_by_the_old_approval_invite() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let open = space.invite(InviteOptions::open()).await?.token;
    for round in 0..3 {
        let joining = member.join(&token).await?;
        let theirs = accept(&space, &member, &joining, Role::Writer, &[]).await?;
        theirs.await_synced().await?;
        let mut events = space.events();
        theirs.leave().await?;
        // The admin makes new keys by itself.
        loop {
            match tokio::time::timeout(PATIENCE, events.next()).await? {
                Some(Event::KeysRotated { epoch, .. }) if epoch.0 == round + 1 => break,
                Some(_) => {}
                None => return Err("the events ended".into()),
            }
        }
        space.objects().put("note", &format!("without, {round}"), json!({})).await?;
        space.await_synced().await?;
    }
    let late = member.join(&open).await.expect_err("closed when somebody left");
    assert_eq!(late.code(), Code::InviteRevoked.name());
    let joining = member.join(&token).await?;
    let theirs = accept(&space, &member, &joining, Role::Writer, &[]).await?;
    theirs.await_synced().await?;
    assert_eq!(theirs.objects().list("note")?.len(), 3, "a member with history reads what was written meanwhile");
    assert_eq!(seen(&theirs)?, seen(&space)?);
    Ok(())
}

// ---- S67 ------------------------------------------------------------------------------------------------------------

/// Where a joining process is killed.
#[derive(Debug, Clone, Copy)]
struct Point {
    /// A call of the join, by name, and which of them.
    call: &'static str,
    number: usize,
    /// Before the node hears of it, or after it did what it was asked.
    fate: Calls,
    /// What the next process finds of the join, if that is known.
    kept: Option<JoinStage>,
}

const fn point(call: &'static str, number: usize, fate: Calls, kept: Option<JoinStage>) -> Point {
    Point { call, number, fate, kept }
}

/// A process that joins. It never ends by itself.
struct Joiner(Child);

impl Joiner {
    fn start(dir: &Path, token: &str) -> Self {
        let child = Command::new(binary("joiner")).arg(dir).arg(token).stdout(Stdio::piped()).spawn();
        Self(child.expect("a joiner starts"))
    }

    /// `kill -9`.
    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills a joining process at a point, and lets the next one finish.
async fn crash_at(point: Point, options: &InviteOptions) -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("note", "n", json!({ "text": "hello" })).await?;
    let must_see = vec![space.objects().tree_id("note", "n")?];
    let invite = space.invite(InviteOptions { must_see, ..options.clone() }).await?;
    let member = TestClient::create("Member", relay.address()).await;
    let account = member.account();
    let dir = member.shut().await;

    let (hit, mut hits) = mpsc::unbounded_channel();
    let mut seen = 0;
    let wanted = space.id().to_bytes();
    let hit_first = hit.clone();
    let of_the_join = wanted.clone();
    relay.frames(move |frame| {
        let Frame::Update(update) = frame else { return Fate::Pass };
        if point.call != "entries" || update.space != of_the_join {
            return Fate::Pass;
        }
        let _ = hit_first.send(());
        Fate::Hold
    });
    relay.calls_of(move |call, space| {
        if call != point.call || !(space.is_empty() || space == wanted) {
            return Calls::Forward;
        }
        seen += 1;
        if seen < point.number {
            return Calls::Forward;
        }
        let _ = hit.send(());
        point.fate
    });
    let process = Joiner::start(dir.path(), &invite.token);
    if options.mode == InviteMode::Approval && point.kept == Some(JoinStage::Joined) {
        let (space, hit_first) = (space.clone(), hits.recv());
        // The request may never come.
        let approving = async {
            let request = approve_when_asked(&space).await;
            std::future::pending::<()>().await;
            request
        };
        tokio::select! {
            hit = tokio::time::timeout(PATIENCE, hit_first) => assert!(hit?.is_some(), "{point:?} is on the way"),
            approved = approving => approved?,
        }
    } else {
        assert!(tokio::time::timeout(PATIENCE, hits.recv()).await?.is_some(), "{point:?} is on the way");
    }
    process.kill();
    relay.heal();

    let member = TestClient::open(dir).await;
    if let Some(stage) = point.kept {
        let kept: Vec<_> = member.joins()?.into_iter().map(|j| j.stage).collect();
        let is_in = member.space(space.id()).is_ok();
        assert!(kept == [stage] || is_in || kept == [JoinStage::Joined], "{point:?}: {kept:?}");
    }
    let joining = member.join(&invite.token).await?;
    let approving = async {
        if options.mode == InviteMode::Approval && !space.acl()?.members.contains_key(&account) {
            approve_when_asked(&space).await?;
        }
        Outcome::Ok(())
    };
    let (approved, ready) = tokio::join!(approving, joining.ready(PATIENCE));
    approved?;
    let joined = ready?.remove(0);
    assert_eq!(object(&joined, "note", "n")?.fields["text"], "hello");
    joined.objects().put("note", "mine", json!({ "text": "here" })).await?;
    joined.await_synced_within(PATIENCE).await?;
    space.await_synced().await?;
    assert_eq!(seen_notes(&space)?, seen_notes(&joined)?);
    assert_eq!(member.joins()?, []);
    // One record of it, whatever happened.
    let acl = space.acl()?;
    assert_eq!(acl.invites[&invite.id()].uses, 1, "{point:?}");
    assert_eq!(acl.requests.len(), usize::from(options.mode == InviteMode::Approval), "{point:?}");
    let expected = match options.mode {
        // SetHome, the invite, and the join; with a request, its acceptance, too.
        InviteMode::Open => 3,
        InviteMode::Approval => 4,
    };
    assert_eq!(acl.index, expected, "{point:?}");
    Ok(())
}

fn seen_notes(space: &Space) -> Outcome<usize> {
    Ok(space.objects().list("note")?.len())
}

/// Accepts the next request, or the one that is there.
async fn approve_when_asked(space: &Space) -> Outcome {
    let mut events = space.events();
    loop {
        let pending = space.requests()?.into_iter().find(|r| r.status == RequestStatus::Pending);
        if let Some(request) = pending {
            return Ok(space.approve_as(request.id, None).await?);
        }
        tokio::time::timeout(PATIENCE, events.next()).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s67_killed_at_eight_points_of_an_open_join() -> Outcome {
    use Calls::{HangAfter, HangBefore};
    let kept = Some(JoinStage::Kept);
    for point in [
        point("OpenSession", 1, HangBefore, None),
        point("AclRead", 1, HangBefore, None),
        point("AclRead", 1, HangAfter, None),
        point("AclAppend", 1, HangBefore, kept),
        point("AclAppend", 1, HangAfter, kept),
        point("AclRead", 2, HangBefore, kept),
        point("AclRead", 2, HangAfter, kept),
        point("entries", 1, HangBefore, Some(JoinStage::Joined)),
    ] {
        Box::pin(crash_at(point, &InviteOptions::open())).await.map_err(|e| format!("{point:?}: {e}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s67_killed_at_eight_points_of_a_join_by_approval() -> Outcome {
    use Calls::{HangAfter, HangBefore};
    let (kept, asked) = (Some(JoinStage::Kept), Some(JoinStage::Requested));
    for point in [
        point("AclRead", 1, HangAfter, None),
        point("AclAppend", 1, HangBefore, kept),
        point("AclAppend", 1, HangAfter, kept),
        point("AclRead", 2, HangBefore, kept),
        point("AclRead", 2, HangAfter, kept),
        point("AclRead", 3, HangBefore, asked),
        point("AclRead", 3, HangAfter, asked),
        point("entries", 1, HangBefore, Some(JoinStage::Joined)),
    ] {
        Box::pin(crash_at(point, &InviteOptions::approval())).await.map_err(|e| format!("{point:?}: {e}"))?;
    }
    Ok(())
}

/// Killed while it waits to be let in; let in while nobody is there.
#[tokio::test(flavor = "multi_thread")]
async fn s67_killed_while_the_request_waits_and_let_in_meanwhile() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let dir = TestClient::create("Member", node.address()).await.shut().await;
    let mut process = Joiner::start(dir.path(), &token);
    let mut lines = std::io::BufReader::new(process.0.stdout.take().ok_or("its output")?);
    let mut line = String::new();
    tokio::task::block_in_place(|| lines.read_line(&mut line))?;
    assert_eq!(line.trim(), "joined");
    process.kill();
    approve_when_asked(&space).await?;
    // By itself: nobody shows the token again.
    let member = TestClient::open(dir).await;
    let mut events = member.events();
    while member.space(space.id()).is_err() {
        tokio::time::timeout(PATIENCE, events.next()).await?;
    }
    member.space(space.id())?.await_synced_within(PATIENCE).await?;
    assert_eq!(space.acl()?.requests.len(), 1);
    Ok(())
}

// ---- S71 ------------------------------------------------------------------------------------------------------------

/// 1970, yesterday, tomorrow, 2100, and the end of time, as seen by a machine whose clock is wrong.
fn wrong_clocks() -> [u64; 5] {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let now = u64::try_from(now).expect("a date");
    let day = 24 * 3_600_000;
    [0, now - day, now + day, 4_102_444_800_000, u64::MAX]
}

/// Admins, joiners and writers whose clocks are wrong: what they do counts as that of others.
#[tokio::test(flavor = "multi_thread")]
async fn s71_what_a_wrong_clock_signs_is_as_good_as_any() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let founder = TestClient::create("Founder", node.address()).await;
    let space = founder.create_space("Club").await?;
    let admin = Person::new("Admin", node.address()).await;
    join(&space, &admin.client, Role::Admin).await?;
    let mut patched = admin.patched(node.address()).await;
    for at_ms in wrong_clocks() {
        // An invite that is good for an hour from now, of both kinds.
        let mut tokens = Vec::new();
        let hour = InviteOptions { expires_in: Some(Duration::from_secs(3_600)), ..InviteOptions::open() };
        for options in [hour.clone(), InviteOptions { mode: InviteMode::Approval, ..hour }] {
            tokens.push(space.invite(options).await?.token);
        }
        let (open, approval) = (secret_of(&tokens[0]), secret_of(&tokens[1]));
        for (secret, mode) in [(open, InviteMode::Open), (approval, InviteMode::Approval)] {
            let mut joiner = Hostile::stranger(node.address()).await;
            let known = joiner.read_acl(space.id(), Some(&secret)).await?;
            let pen = Pen { account: joiner.account.clone(), known };
            let claim = pen.claim(&secret, Role::Writer);
            let content = match mode {
                InviteMode::Open => {
                    let (acl, ring) = (&pen.known.acl, &pen.known.ring);
                    let keys = ring.keys(acl.epoch).ok_or("the keys of the invite")?;
                    let to = Recipient::Account(pen.account.id());
                    let seal = seal_keys(Some(space.id()), acl.epoch, to, keys, &mut rand::rng())?;
                    AclContent::JoinByInvite { claim, seals: vec![seal] }
                }
                InviteMode::Approval => AclContent::RequestJoin { claim },
            };
            let mut record = pen.acl(content);
            record.at_ms = at_ms;
            joiner.append(space.id(), pen.signed(&record, None)).await?;
            if mode == InviteMode::Approval {
                // The admin's clock is wrong, too.
                let pen = Pen::of(&mut patched, space.id()).await;
                let (request, _) = pen.known.acl.pending_request(&joiner.account.id()).ok_or("asked")?;
                let keys = pen.known.ring.keys(pen.known.acl.epoch).ok_or("keys")?;
                let to = Recipient::Account(joiner.account.id());
                let seal = seal_keys(Some(space.id()), pen.known.acl.epoch, to, keys, &mut rand::rng())?;
                let content =
                    AclContent::AcceptJoin { request, role: Role::Writer, seals: vec![seal], frontier: Vec::new() };
                let mut record = pen.acl(content);
                record.at_ms = at_ms;
                patched.append(space.id(), pen.signed(&record, None)).await?;
            }
            // A member now: it writes, and its clock orders nothing.
            let pen = Pen::of(&mut joiner, space.id()).await;
            let id = format!("{at_ms} {mode:?}");
            let root = pen.object_root("note", &id, WriteRule::WRITERS);
            let write = pen.object(("note", &id), &root, &[], json!({ "v": 1 }), |change| change.at_ms = at_ms);
            let first = sync_tests::hostile::id_of(&write);
            let later = pen.object(("note", &id), &root, &[first], json!({ "v": 2 }), |change| change.at_ms = 7);
            assert_eq!(joiner.push(space.id(), vec![write, later]).await?, [Said::Accepted; 2]);
        }
        // And its invites work.
        let pen = Pen::of(&mut patched, space.id()).await;
        let mut rotate = pen.acl(AclContent::RotateKey { rotation: pen.rotation(&[]).0 });
        rotate.at_ms = at_ms;
        assert_eq!(patched.push(space.id(), vec![item(None, pen.signed(&rotate, None))]).await?, [Said::Accepted]);
    }
    // Honest ones take all of it, and show times as they were said.
    let late = TestClient::create("Late", node.address()).await;
    let late_space = join(&space, &late, Role::Reader).await?;
    let admins = admin.client.space(space.id())?;
    for space in [&space, &late_space, &admins] {
        space.await_synced_within(PATIENCE).await?;
        let status = space.status()?;
        assert_eq!([status.quarantined, status.void, status.hidden, status.misplaced, status.missing], [0; 5]);
        let notes = space.objects().list("note")?;
        assert_eq!(notes.len(), 2 * wrong_clocks().len());
        assert!(notes.iter().all(|n| n.fields["v"] == 2), "what builds on something is later than it: {notes:?}");
    }
    let asked: BTreeSet<_> = space.requests()?.into_iter().map(|r| r.at_ms).collect();
    assert!(asked.contains(&0) && asked.contains(&u64::MAX), "{asked:?}");
    Ok(())
}

// ---- joins whose space moves under them ------------------------------------------------------------------------------

/// The invite ends while the request waits: what was asked can still be granted.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_outlives_its_invite() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", node.address()).await;
    let invite = space.invite(InviteOptions { max_uses: Some(1), ..InviteOptions::approval() }).await?;
    let joining = member.join(&invite.token).await?;
    let request = request_of(&space, &member).await?;
    space.revoke_invite(invite.id()).await?;
    let dir = member.shut().await;
    drop(joining);
    let member = TestClient::open(dir).await;
    space.approve_as(request, None).await?;
    let theirs = member.wait_for_space(space.id(), PATIENCE).await?;
    theirs.await_synced().await?;
    Ok(())
}

/// Who leaves while it is away and is removed meanwhile has nothing left to do.
#[tokio::test(flavor = "multi_thread")]
async fn left_offline_and_removed_meanwhile() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", relay.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    relay.calls(|_| Calls::Refuse);
    relay.cut();
    let dir = {
        let leaving = theirs.clone();
        let left = tokio::spawn(async move { leaving.leave().await });
        until(&theirs, || {
            Ok(theirs.explain()?.iter().any(|r| r.code == client_sdk::ReasonCode::Leaving).then_some(()))
        })
        .await?;
        left.abort();
        drop(theirs);
        member.shut().await
    };
    space.remove_members(&[admin_other(&space, &admin)?]).await?;
    relay.heal();
    let member = TestClient::open(dir).await;
    let theirs = member.space(space.id())?;
    until(&theirs, || Ok(theirs.status()?.role.is_none().then_some(()))).await?;
    until(&theirs, || Ok((!theirs.explain()?.iter().any(|r| r.code == client_sdk::ReasonCode::Leaving)).then_some(())))
        .await?;
    space.await_synced().await?;
    assert_eq!((space.acl()?.removed.len(), space.acl()?.left.len()), (1, 0));
    Ok(())
}

/// The member that is not this one.
fn admin_other(space: &Space, own: &Client) -> Outcome<client_sdk::AccountId> {
    let acl = space.acl()?;
    Ok(*acl.members.keys().find(|account| **account != own.account()).ok_or("a member")?)
}

/// The joiner's clock is a day fast: by it the invite is over, and by the node it is not. The node's word counts.
#[tokio::test(flavor = "multi_thread")]
async fn s71_a_joiner_whose_clock_is_a_day_fast() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let day = Duration::from_secs(24 * 3_600);
    let token = space.invite(InviteOptions { expires_in: Some(day), ..InviteOptions::open() }).await?.token;
    // What its clock, a day and an hour ahead, makes of the token's time.
    let mut body = token_from_text(&token)?.body().clone();
    body.expires_ms -= 25 * 3_600_000;
    let key = sync_e2ee::AccountKeys::from_mnemonic(&admin.words);
    let token = token_to_text(&Verified::sign(&body, key.signing_key(), None)?);
    let theirs = member.join(&token).await?.ready(PATIENCE).await?.remove(0);
    theirs.await_synced().await?;
    Ok(())
}

/// Let in, and removed before it was ready: it is told so at once, not when its patience ends.
#[tokio::test(flavor = "multi_thread")]
async fn removed_before_it_was_ready() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", relay.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let joining = member.join(&token).await?;
    let request = request_of(&space, &member).await?;
    // It learns that it is in; the log itself is lost on the way.
    let wanted = space.id().to_bytes();
    relay.frames(move |frame| {
        let Frame::Update(update) = frame else { return Fate::Pass };
        if update.space == wanted { Fate::Drop } else { Fate::Pass }
    });
    space.approve_as(request, None).await?;
    let waiting = tokio::spawn(async move { joining.ready(PATIENCE).await });
    member.wait_for_space(space.id(), PATIENCE).await?;
    space.remove_members(&[member.account()]).await?;
    // Both come at once.
    relay.heal();
    relay.cut();
    let failed = tokio::time::timeout(PATIENCE / 2, waiting).await??.expect_err("removed");
    assert!(["NOT_A_MEMBER", "INVITE_DEAD"].contains(&failed.code()), "{failed:?}");
    assert!(member.joins()?.iter().all(|j| !j.here), "nothing is under way");
    Ok(())
}

/// Removed while it was away between its acceptance and its first look.
#[tokio::test(flavor = "multi_thread")]
async fn let_in_and_removed_while_away() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    member.join(&token).await?;
    let request = request_of(&space, &member).await?;
    let account = member.account();
    let dir = member.shut().await;
    space.approve_as(request, None).await?;
    space.remove_members(&[account]).await?;
    let member = TestClient::open(dir).await;
    let failed = match member.join(&token).await {
        Ok(joining) => joining.ready(PATIENCE).await.expect_err("removed"),
        Err(error) => error,
    };
    assert_eq!(failed.code(), Code::InviteDead.name(), "{failed:?}");
    assert!(member.joins()?.iter().all(|j| !j.here));
    assert_eq!(space.acl()?.requests.len(), 1, "it did not ask again");
    // A new invite is good.
    let back = join(&space, &member, Role::Writer).await?;
    back.await_synced().await?;
    Ok(())
}

/// The space ends while a request waits, and before a token is used.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_of_a_space_that_ends() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", node.address()).await;
    let late = TestClient::create("Late", node.address()).await;
    let approval = space.invite(InviteOptions::approval()).await?.token;
    let open = space.invite(InviteOptions::open()).await?.token;
    let joining = member.join(&approval).await?;
    request_of(&space, &member).await?;
    let waiting = tokio::spawn(async move { joining.ready(PATIENCE).await });
    space.delete().await?;
    let failed = tokio::time::timeout(PATIENCE / 2, waiting).await??.expect_err("deleted");
    assert_eq!(failed.code(), Code::SpaceDeleted.name(), "{failed:?}");
    for token in [&open, &approval] {
        let failed = late.join(token).await.expect_err("deleted");
        assert_eq!(failed.code(), Code::SpaceDeleted.name(), "{failed:?}");
        assert_eq!(late.joins()?, []);
        assert_eq!(late.spaces()?, []);
    }
    assert!(member.joins()?.iter().all(|j| !j.here));
    Ok(())
}

/// What is over is not listed, from the moment on at which that is said: not as this device's, and not as another's.
#[tokio::test(flavor = "multi_thread")]
async fn a_declined_join_is_listed_nowhere() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let member = TestClient::create("Member", node.address()).await;
    for round in 0..20 {
        let joining = member.join(&token).await?;
        // Other devices of the account could see it now.
        let own = member.account_space()?;
        until(&own, || Ok(own.objects().list_all()?.iter().any(|o| o.fields.contains_key("stage")).then_some(())))
            .await?;
        own.await_synced().await?;
        space.decline(request_of(&space, &member).await?).await?;
        assert!(matches!(joining.ready(PATIENCE).await, Err(JoinError::Declined)));
        assert_eq!(member.joins()?, [], "round {round}");
    }
    Ok(())
}
