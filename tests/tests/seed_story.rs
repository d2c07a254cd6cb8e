//! The seed story: a member joins and sees the record that was just made for it, whatever comes first.

use std::sync::Arc;
use std::time::Duration;

use client_sdk::{AclError, Code, InviteOptions, JoinError, JoinStage, ObjectType, Role, Space, Who, WriteRule};
use serde_json::json;
use sync_tests::harness::{
    NodeProcess, Outcome, PATIENCE, TestClient, accept, changed, heads, join, object, put_rows, request_of, seen, until,
};
use sync_tests::relay::{Calls, Fate, Frame, Relay, entries};
use tokio::task::JoinSet;

/// Long enough for anything that is not waiting for something else; what must *not* come is given this long.
const A_MOMENT: Duration = Duration::from_millis(500);

/// S01: admin writes the profile, invites; the member joins and reads it.
#[tokio::test(flavor = "multi_thread")]
async fn s01_approve_join_read_own_profile() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let own = member.own();
    space.objects().put("profile", &own, json!({ "name": "Member" })).await?;
    let mut invite = InviteOptions::approval();
    invite.must_see = vec![space.objects().tree_id("profile", &own)?];
    let invite = space.invite(invite).await?;
    let joining = member.join(&invite.token).await?;
    let joined = accept(&space, &member, &joining, Role::Writer, &[]).await?;
    let profile = object(&joined, "profile", &own)?;
    assert_eq!(profile.fields["name"], "Member");
    joined.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(heads(&space)?, heads(&joined)?);
    assert_eq!(seen(&space)?, seen(&joined)?);
    assert!(member.joins()?.is_empty(), "a join that is ready is over");
    Ok(())
}

/// S02: the token is made first, the profile written before the join.
#[tokio::test(flavor = "multi_thread")]
async fn s02_profile_between_invite_and_join() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let invite = space.invite(InviteOptions::approval()).await?;
    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    let joining = member.join(&invite.token).await?;
    let joined = accept(&space, &member, &joining, Role::Writer, &[]).await?;
    let profile = joined.await_object("profile", &member.own(), PATIENCE).await?;
    assert_eq!(profile.fields["name"], "Member");
    Ok(())
}

/// S02: the profile is written when the member has long been ready: it comes by push, as an event.
#[tokio::test(flavor = "multi_thread")]
async fn s02_profile_after_the_join_comes_by_push() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    joined.await_synced().await?;
    let mut watch = joined.objects().watch("profile");
    let waiting = tokio::spawn({
        let (joined, own) = (joined.clone(), member.own());
        async move { joined.await_object("profile", &own, PATIENCE).await }
    });
    assert_eq!(joined.objects().get("profile", &member.own())?, None);
    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    assert_eq!(changed(&mut watch).await?.fields["name"], "Member");
    assert_eq!(waiting.await??.fields["name"], "Member");
    Ok(())
}

/// S02: the token names the profile before anybody wrote it. The request goes out all the same; only `ready` waits.
#[tokio::test(flavor = "multi_thread")]
async fn s02_ready_waits_for_what_the_token_names() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let tree = space.objects().tree_id("profile", &member.own())?;
    let mut options = InviteOptions::approval();
    options.must_see = vec![tree];
    let invite = space.invite(options).await?;

    let joining = member.join(&invite.token).await?;
    assert_eq!(member.joins()?[0].stage, JoinStage::Requested);
    let request = request_of(&space, &member).await?;
    space.approve_as(request, None).await?;
    let not_ready = joining.ready(A_MOMENT).await;
    assert!(matches!(&not_ready, Err(JoinError::NotReady { .. })), "{not_ready:?}");
    let joined = member.space(space.id())?;
    until(&joined, || Ok(joined.acl()?.members.contains_key(&member.account()).then_some(()))).await?;
    let not_ready = joining.ready(A_MOMENT).await;
    let Err(JoinError::NotReady { waiting }) = not_ready else { return Err(format!("{not_ready:?}").into()) };
    assert!(waiting.contains(&tree.to_string()), "it says what it waits for: {waiting}");

    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    let joined = joining.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&joined, "profile", &member.own())?.fields["name"], "Member");
    Ok(())
}

/// S02: the acceptance promises the profile, which was written after the request. The tail is held back: `ready` waits.
#[tokio::test(flavor = "multi_thread")]
async fn s02_ready_waits_for_what_the_acceptance_promises() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let tree = space.objects().tree_id("profile", &member.own())?;
    let invite = space.invite(InviteOptions::approval()).await?;
    let joining = member.join(&invite.token).await?;
    let request = request_of(&space, &member).await?;
    let nothing = space.approve(request, None, |w| w.promise_trees(&[tree])).await;
    assert!(matches!(nothing, Err(AclError::NothingToPromise { tree: named }) if named == tree), "{nothing:?}");

    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    space.approve(request, None, |w| w.promise_trees(&[tree])).await?;
    let not_ready = joining.ready(A_MOMENT).await;
    assert!(matches!(&not_ready, Err(JoinError::NotReady { .. })), "{not_ready:?}");
    relay.heal();
    let joined = joining.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&joined, "profile", &member.own())?.fields["name"], "Member");
    Ok(())
}

/// S02: an open invite may insist that something is on the node first; then the same token works.
#[tokio::test(flavor = "multi_thread")]
async fn s02_an_open_invite_requires_what_it_names() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let tree = space.objects().tree_id("profile", &member.own())?;
    let mut options = InviteOptions::open();
    (options.must_see, options.requires) = (vec![tree], vec![tree]);
    let invite = space.invite(options).await?;
    let refused = member.join(&invite.token).await.expect_err("nobody wrote the profile yet");
    assert_eq!(refused.code(), Code::RequiresMissing.name());
    let write = space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    space.await_durable(write.ok_or("a new profile is a write")?).await?;
    let joined = member.join(&invite.token).await?.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&joined, "profile", &member.own())?.fields["name"], "Member");
    Ok(())
}

const RACES: usize = 500;
const RACES_AT_ONCE: usize = 6;

/// S03: the admin's write and the member's join race with skews from -5 to +5 ms: no loss, no second instance of the tree.
#[tokio::test(flavor = "multi_thread")]
async fn s03_one_millisecond_apart() -> Outcome {
    let node = NodeProcess::start();
    let admin = Arc::new(TestClient::create("Admin", node.address()).await);
    let member = Arc::new(TestClient::create("Member", node.address()).await);
    let mut races = JoinSet::new();
    for race in 0..RACES {
        if races.len() == RACES_AT_ONCE {
            races.join_next().await.ok_or("a race is under way")???;
        }
        let skew_ms = i64::try_from(race % 11)? - 5;
        let (admin, member) = (admin.clone(), member.clone());
        let race = async move {
            let raced = Box::pin(write_and_join(&admin, &member, skew_ms)).await;
            raced.map_err(|error| format!("race {race}, skew {skew_ms} ms: {error}"))
        };
        races.spawn(race);
    }
    while let Some(race) = races.join_next().await {
        race??;
    }
    assert_eq!(member.spaces()?.len(), RACES);
    Ok(())
}

async fn write_and_join(admin: &TestClient, member: &TestClient, skew_ms: i64) -> Outcome {
    let own = member.own();
    let space = admin.create_space("Club").await?;
    let invite = space.invite(InviteOptions::open()).await?;
    let after = |ms: i64| tokio::time::sleep(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
    let write = async {
        after(skew_ms).await;
        space.objects().put("profile", &own, json!({ "name": "Member" })).await?;
        Outcome::Ok(())
    };
    let come = async {
        after(-skew_ms).await;
        Outcome::Ok(member.join(&invite.token).await?.ready(PATIENCE).await?.remove(0))
    };
    let ((), joined) = tokio::try_join!(write, come)?;
    let early = joined.objects().tree("profile", &own)?;
    let profile = joined.await_object("profile", &own, PATIENCE).await?;
    assert_eq!(profile.fields["name"], "Member");
    let handle = joined.tree(profile.tree)?.ok_or("what was read has a tree")?;
    assert!(early.is_none_or(|early| early.is_same_instance(&handle)), "a second instance");
    tokio::try_join!(joined.await_synced(), space.await_synced())?;
    assert_eq!(heads(&space)?, heads(&joined)?);
    assert_eq!(joined.objects().list("profile")?, [profile]);
    assert_eq!(joined.live_trees(), 2, "the profile and the space's own object, once each");
    Ok(())
}

/// S05: v2 arrives by event when the member has read v1; the fields that it does not name stay.
#[tokio::test(flavor = "multi_thread")]
async fn s05_update_after_the_grant() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let own = member.own();
    space.objects().put("profile", &own, json!({ "name": "v1", "city": "Bern", "tags": ["a"] })).await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let v1 = joined.await_object("profile", &own, PATIENCE).await?;
    assert_eq!(v1.fields["name"], "v1");

    let handle = joined.tree(v1.tree)?.ok_or("what was read has a tree")?;
    let mut watch = joined.objects().watch("profile");
    space.objects().put("profile", &own, json!({ "name": "v2" })).await?;
    let mut v2 = changed(&mut watch).await?;
    while v2.fields["name"] == "v1" {
        // What was read a moment before its event was sent is told of once more.
        v2 = changed(&mut watch).await?;
    }
    assert_eq!(serde_json::Value::Object(v2.fields), json!({ "name": "v2", "city": "Bern", "tags": ["a"] }));
    let shown = handle.snapshot()?.object.clone().ok_or("the profile is there")?;
    assert_eq!(shown.fields["name"], "v2", "the handle from before shows it too");
    Ok(())
}

/// S06: 200 profiles, the own one last, and exactly its push is lost. `await_synced` brings it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn s06_all_but_mine() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    put_rows(&space, "profile", 200, |n| json!({ "n": n })).await?;
    joined.await_synced().await?;
    assert_eq!(joined.objects().list("profile")?.len(), 200);

    // With it goes the word that the node's disk has more: only what comes by and by can tell.
    let mut lost = false;
    relay.frames(move |frame| match frame {
        Frame::Update(_) if !std::mem::replace(&mut lost, true) => Fate::Drop,
        Frame::Durable(_) => Fate::Drop,
        Frame::Update(_)
        | Frame::Heartbeat(_)
        | Frame::Rewound(_)
        | Frame::Refused(_)
        | Frame::Pong(_)
        | Frame::Subscribed(_) => Fate::Pass,
    });
    let write = space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    space.await_durable(write.ok_or("a new profile is a write")?).await?;
    assert_eq!(joined.objects().get("profile", &member.own())?, None, "its push was lost");
    joined.await_synced().await?;
    assert_eq!(joined.objects().list("profile")?.len(), 201);
    assert_eq!(object(&joined, "profile", &member.own())?.fields["name"], "Member");
    Ok(())
}

/// S08: type definition, profile and credential arrive in all six orders: the same state.
#[tokio::test(flavor = "multi_thread")]
async fn s08_all_six_orders_give_the_same_state() -> Outcome {
    let node = NodeProcess::start();
    let credential = ObjectType::new("credential").rule(|_| WriteRule { who: Who::Admins, once: true });
    let typed = |config: client_sdk::ClientConfig| config.object_type(credential.clone());
    let admin = TestClient::create_with("Admin", node.address(), typed).await;
    let member = TestClient::create_with("Member", node.address(), typed).await;
    let own = member.own();
    let parts = [
        ("type", "credential".to_owned(), json!({ "fields": ["holder", "level"] })),
        ("profile", own.clone(), json!({ "name": "Member", "credential": "c1" })),
        ("credential", "c1".to_owned(), json!({ "holder": own, "level": 3 })),
    ];
    let mut states = Vec::new();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let space = admin.create_space("Club").await?;
        let joined = join(&space, &member, Role::Writer).await?;
        for part in order {
            let (object_type, id, fields) = &parts[part];
            let write = space.objects().put(object_type, id, fields.clone()).await?;
            space.await_durable(write.ok_or("a new object is a write")?).await?;
            joined.await_object(object_type, id, PATIENCE).await?;
        }
        let synced = joined.await_synced().await?;
        assert_eq!((synced.void, synced.hidden), (vec![], vec![]));
        assert_eq!(joined.status()?.misplaced, 0);
        let state: Vec<_> = seen(&joined)?.into_iter().map(|o| (o.object_type, o.id, o.fields)).collect();
        assert_eq!(seen(&joined)?, seen(&space)?);
        states.push(state);
    }
    assert_eq!(states[0].len(), 4, "three and the space's own");
    assert!(states.iter().all(|state| *state == states[0]), "{states:#?}");
    Ok(())
}

// ---- a node that dies in the middle of a join -------------------------------------------------------------------------

/// `one_record_of_a_join`: however often it was tried.
fn one_record_of_a_join(space: &Space, member: &TestClient) -> Outcome {
    let acl = space.acl()?;
    let requests = acl.requests.values().filter(|r| r.claim.account == member.account()).count();
    let uses: u32 = acl.invites.values().map(|i| i.uses).sum();
    if (requests, uses) != (1, 1) && (requests, uses) != (0, 1) {
        return Err(format!("{requests} requests, {uses} uses of the invite").into());
    }
    Ok(())
}

/// The node is killed while a request waits for its approval, and once more right after it: the join ends well.
#[tokio::test(flavor = "multi_thread")]
async fn s26_node_killed_between_request_and_approval() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let tree = space.objects().tree_id("profile", &member.own())?;
    space.objects().put("profile", &member.own(), json!({ "name": "Member" })).await?;
    let invite = space.invite(InviteOptions::approval()).await?;
    let joining = member.join(&invite.token).await?;
    let waiting = tokio::spawn(async move { joining.ready(PATIENCE).await });
    node.kill();
    node.restart();
    admin.connected(PATIENCE).await?;
    let request = request_of(&space, &member).await?;
    space.approve(request, None, |w| w.promise_trees(&[tree])).await?;
    node.kill();
    node.restart();
    member.reconnect();
    let joined = waiting.await??.remove(0);
    assert_eq!(object(&joined, "profile", &member.own())?.fields["name"], "Member");
    joined.await_synced().await?;
    one_record_of_a_join(&joined, &member)
}

/// The node took the join, but its answer was lost: the same token finishes, and there is one record.
#[tokio::test(flavor = "multi_thread")]
async fn s26_a_join_whose_answer_was_lost() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    for options in [InviteOptions::open(), InviteOptions::approval()] {
        let member = TestClient::create("Member", relay.address()).await;
        let invite = space.invite(options.clone()).await?;
        relay.calls(|name| if name == "AclAppend" { Calls::LoseAnswer } else { Calls::Forward });
        let lost = member.join(&invite.token).await;
        assert!(matches!(&lost, Err(JoinError::Acl(_))), "{lost:?}");
        assert_eq!(member.joins()?.len(), 1, "the token is kept");
        relay.heal();
        let joining = member.join(&invite.token).await?;
        if options == InviteOptions::approval() {
            space.approve_as(request_of(&space, &member).await?, None).await?;
        }
        let joined = joining.ready(PATIENCE).await?.remove(0);
        joined.await_synced().await?;
        let uses = joined.acl()?.invites.get(&invite.id()).map(|i| i.uses);
        assert_eq!(uses, Some(1));
    }
    Ok(())
}

/// The node answers UNAVAILABLE to every kind of call of a join, one kind after the other: it is tried again, and ends well.
#[tokio::test(flavor = "multi_thread")]
async fn s26_a_join_through_refused_calls() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", relay.address()).await;
    let invite = space.invite(InviteOptions::approval()).await?;
    for refused in ["AclRead", "AclAppend"] {
        relay.calls(move |name| if name == refused { Calls::Refuse } else { Calls::Forward });
        let error = member.join(&invite.token).await.expect_err("the call was refused");
        assert_eq!(error.code(), "CONNECTION_BROKEN");
        relay.heal();
    }
    let joining = member.join(&invite.token).await?;
    // From here on it goes by itself: the streams are cut and refused while the request waits.
    let mut refusals = 0;
    relay.calls(move |name| {
        refusals += 1;
        if refusals <= 3 && (name == "AclRead" || name == "HeadUpdates") { Calls::Refuse } else { Calls::Forward }
    });
    relay.cut();
    let joined = accept(&space, &member, &joining, Role::Writer, &[]).await?;
    joined.await_synced().await?;
    one_record_of_a_join(&joined, &member)
}
