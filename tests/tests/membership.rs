//! Who is in a space, with real processes: removal, leaving, roles, direct adding, replacing, deletion, purge.

use client_sdk::{
    AclChange, AclError, Client, Code, Effect, HistoryMode, InviteOptions, JoinStage, ObjectType, ReasonCode,
    RefusedContent, Role, Space, SpaceOptions, Update, Who, WriteRule,
};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, gone, join, object, until};
use sync_tests::relay::{Calls, Relay};

async fn club(node: &NodeProcess) -> Outcome<(TestClient, Space)> {
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    Ok((admin, space))
}

fn holds(client: &Client, space: &Space) -> Outcome<Space> {
    Ok(client.space(space.id())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_removed_member_writes_and_reads_nothing_more() -> Outcome {
    let node = NodeProcess::start();
    let (admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    let stays = TestClient::create("Stays", node.address()).await;
    let stays_space = join(&space, &stays, Role::Writer).await?;
    theirs.objects().put("note", "1", json!({ "text": "before" })).await?;
    theirs.await_synced().await?;

    let plan = space.plan(&AclChange::RemoveMembers { accounts: vec![member.account()] })?;
    assert!(plan.effects.contains(&Effect::Goes { account: member.account(), role: Role::Writer }), "{plan:?}");
    space.remove_members(&[member.account()]).await?;
    space.objects().put("note", "2", json!({ "text": "after" })).await?;
    space.await_synced().await?;

    gone(&theirs).await?;
    let refused = theirs.objects().put("note", "1", json!({ "text": "still here" })).await;
    assert_eq!(refused.expect_err("removed").code(), "NOT_A_MEMBER");
    assert_eq!(object(&theirs, "note", "1")?.fields["text"], "before", "what it read it has");
    assert!(theirs.objects().get("note", "2")?.is_none());
    let failed = theirs.await_synced().await.expect_err("not a member");
    assert_eq!(failed.code.name(), "FORBIDDEN", "{failed:?}");

    stays_space.await_synced().await?;
    assert_eq!(object(&stays_space, "note", "1")?.fields["text"], "before");
    assert_eq!(object(&stays_space, "note", "2")?.fields["text"], "after", "those who stay read on");
    assert_eq!(space.acl()?.epoch.0, 1);
    drop(admin);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s52_what_it_wrote_offline_is_refused_and_kept() -> Outcome {
    let mut node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    let account = member.account();
    let dir = member.shut().await;
    space.remove_members(&[account]).await?;
    node.kill();
    let member = TestClient::open(dir).await;
    let theirs = holds(&member, &space)?;
    theirs.objects().put("note", "1", json!({ "text": "offline" })).await?.expect("a change");
    theirs.objects().put("note", "1", json!({ "text": "offline again" })).await?;
    node.restart();
    member.reconnect();
    gone(&theirs).await?;
    let refused = theirs.refused()?;
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(refused[0].code, "NOT_A_MEMBER");
    let RefusedContent::Object { fields, .. } = &refused[0].content else { panic!("{refused:?}") };
    assert_eq!(fields["text"], "offline");
    assert!(theirs.objects().get("note", "1")?.is_none());

    // Let in anew, it says what it had to say.
    let rejoined = join(&space, &member, Role::Writer).await?;
    for write in rejoined.refused()? {
        rejoined.retry(write.write).await?;
    }
    rejoined.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(object(&space, "note", "1")?.fields["text"], "offline again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaver_is_gone_and_the_keys_change() -> Outcome {
    let node = NodeProcess::start();
    let (admin, space) = club(&node).await?;
    assert_eq!(space.leave().await.expect_err("the owner").code(), Code::OwnerCannotLeave.name());
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.leave().await?;
    gone(&theirs).await?;
    until(&space, || Ok((space.acl()?.epoch.0 == 1).then_some(()))).await?;
    assert!(!space.acl()?.rotation_owed);
    assert!(!space.acl()?.members.contains_key(&member.account()));
    drop(admin);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_is_for_good_and_a_delete_is_not() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    for id in ["purged", "deleted"] {
        theirs.objects().put("note", id, json!({ "text": id })).await?;
    }
    theirs.await_synced().await?;
    space.await_synced().await?;
    space.objects().delete("note", "deleted").await?;
    let write = space.objects().purge("note", "purged").await?;
    assert!(space.objects().get("note", "purged")?.is_none(), "at once");
    let again = space.objects().put("note", "purged", json!({ "text": "again" })).await;
    assert_eq!(again.expect_err("purged").code(), "TREE_PURGED");
    space.await_durable(write).await?;
    theirs.await_synced().await?;
    assert!(theirs.objects().get("note", "purged")?.is_none());
    let again = theirs.objects().put("note", "purged", json!({ "text": "again" })).await;
    assert_eq!(again.expect_err("purged").code(), "TREE_PURGED");
    theirs.objects().put("note", "deleted", json!({ "text": "again" })).await?;
    theirs.await_synced().await?;
    let late = TestClient::create("Late", node.address()).await;
    let late_space = join(&space, &late, Role::Reader).await?;
    late_space.await_synced().await?;
    assert!(late_space.objects().get("note", "purged")?.is_none());
    assert_eq!(object(&late_space, "note", "deleted")?.fields["text"], "again");
    assert_eq!(late_space.status()?.missing, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_space_ends_for_everybody() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.objects().put("note", "1", json!({ "text": "soon gone" })).await?;
    theirs.await_synced().await?;
    space.delete().await?;
    until(&theirs, || Ok(theirs.status()?.deleted.then_some(()))).await?;
    for space in [&space, &theirs] {
        assert_eq!(space.objects().list_all()?, []);
        let refused = space.objects().put("note", "2", json!({ "text": "late" })).await;
        assert_eq!(refused.expect_err("deleted").code(), "SPACE_DELETED");
        space.await_synced().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_was_revoked_lets_nobody_in() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    for options in [InviteOptions::open(), InviteOptions::approval()] {
        let invite = space.invite(InviteOptions { label: Some("for Bo".into()), ..options.clone() }).await?;
        let listed = space.invites()?.into_iter().find(|i| i.id == invite.id()).expect("listed");
        assert_eq!(listed.label.as_deref(), Some("for Bo"));
        space.revoke_invite(invite.id()).await?;
        let late = TestClient::create("Late", node.address()).await;
        let error = late.join(&invite.token).await.expect_err("revoked");
        assert_eq!(error.code(), Code::InviteRevoked.name());
        let twice = space.revoke_invite(invite.id()).await;
        assert!(matches!(&twice, Err(AclError::Rejected(_))), "{twice:?}");
    }
    assert_eq!(space.acl()?.epoch.0, 1, "the open one took the keys with it, the other had none");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_taken_back() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let invite = space.invite(InviteOptions::approval()).await?;
    member.join(&invite.token).await?;
    let request = sync_tests::harness::request_of(&space, &member).await?;
    member.cancel_join(space.id()).await?;
    assert_eq!(member.joins()?, []);
    let late = space.approve_as(request, None).await.expect_err("cancelled");
    assert_eq!(late.code(), Code::RequestUnknown.name());
    let joining = member.join(&invite.token).await?;
    sync_tests::harness::accept(&space, &member, &joining, Role::Writer, &[]).await?;
    assert_eq!(member.cancel_join(space.id()).await.expect_err("over").code(), "NO_JOIN");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_prepares_what_the_member_is_meant_to_see() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    space.objects().put("plan", "secret", json!({ "text": "old", "more": 1 })).await?;
    for role in [Role::Writer, Role::Guest] {
        let member = TestClient::create("Member", node.address()).await;
        let invite = space.invite(InviteOptions { role, ..InviteOptions::approval() }).await?;
        let joining = member.join(&invite.token).await?;
        let request = sync_tests::harness::request_of(&space, &member).await?;
        space
            .approve(request, None, |w| {
                let id = w.account().to_string();
                w.put("profile", &id, json!({ "title": "new" }))
            })
            .await?;
        let theirs = joining.ready(PATIENCE).await?.remove(0);
        assert_eq!(object(&theirs, "profile", &member.own())?.fields["title"], "new");
        theirs.await_synced().await?;
        let old = theirs.objects().get("plan", "secret")?;
        assert_eq!(old.is_some(), role == Role::Writer, "a guest reads from now on");
        assert_eq!(theirs.name()?.as_deref(), Some("Club"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_space_without_history_read_from_now_on() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let options = SpaceOptions { history: HistoryMode::SinceJoin, ..SpaceOptions::default() };
    let space = admin.create_space_with("Club", options).await?;
    space.objects().put("note", "old", json!({ "text": "before" })).await?;
    let asked = TestClient::create("Asked", node.address()).await;
    let by_approval = join(&space, &asked, Role::Writer).await?;
    let invited = TestClient::create("Invited", node.address()).await;
    let invite = space.invite(InviteOptions::open()).await?;
    let by_invite = invited.join(&invite.token).await?.ready(PATIENCE).await?.remove(0);
    let added = TestClient::create("Added", node.address()).await;
    space.add_members(&[(added.account(), Role::Admin)]).await?;
    let by_hand = added.open_joined(space.id(), PATIENCE).await?;
    space.objects().put("note", "new", json!({ "text": "after" })).await?;
    space.await_synced().await?;
    for theirs in [&by_approval, &by_invite, &by_hand] {
        let synced = theirs.await_synced().await?;
        assert!(!synced.hidden.is_empty(), "the past is there, and hidden");
        assert!(theirs.objects().get("note", "old")?.is_none());
        assert_eq!(object(theirs, "note", "new")?.fields["text"], "after");
        assert_eq!(theirs.name()?.as_deref(), Some("Club"));
    }
    by_hand.rotate_keys().await?;
    by_invite.objects().put("note", "newer", json!({ "text": "all" })).await?;
    by_invite.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(object(&space, "note", "newer")?.fields["text"], "all");
    assert_eq!(object(&space, "note", "old")?.fields["text"], "before", "who was there reads on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_members_copy_can_be_forgotten_and_come_back() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.objects().put("note", "1", json!({ "text": "mine" })).await?;
    theirs.await_synced().await?;
    assert_eq!(member.forget_space(space.id()).await.expect_err("a member").code(), "STILL_A_MEMBER");
    theirs.leave().await?;
    gone(&theirs).await?;
    member.forget_space(space.id()).await?;
    assert_eq!(member.spaces()?.len(), 0);
    assert!(member.space(space.id()).is_err());
    let member = member.reopen().await;
    assert_eq!(member.spaces()?.len(), 0);
    let again = join(&space, &member, Role::Reader).await?;
    again.await_synced().await?;
    assert_eq!(object(&again, "note", "1")?.fields["text"], "mine");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_account_is_replaced() -> Outcome {
    let node = NodeProcess::start();
    let (admin, space) = club(&node).await?;
    let stolen = TestClient::create("Stolen", node.address()).await;
    let theirs = join(&space, &stolen, Role::Admin).await?;
    theirs.objects().put("note", "1", json!({ "text": "mine" })).await?;
    theirs.await_synced().await?;
    let fresh = TestClient::create("Fresh", node.address()).await;
    space.replace_account(stolen.account(), fresh.account()).await?;
    gone(&theirs).await?;
    let anew = fresh.open_joined(space.id(), PATIENCE).await?;
    anew.await_synced().await?;
    assert_eq!(object(&anew, "note", "1")?.fields["text"], "mine");
    assert_eq!(space.acl()?.role(&fresh.account()), Some(Role::Admin));
    // An owner can do it for itself alone, as long as it is faster than the thief.
    let heir = TestClient::create("Heir", node.address()).await;
    assert!(anew.replace_account(admin.account(), heir.account()).await.is_err());
    space.replace_account(admin.account(), heir.account()).await?;
    let heirs = heir.open_joined(space.id(), PATIENCE).await?;
    assert_eq!(heirs.acl()?.owner, heir.account());
    heirs.remove_members(&[admin.account()]).await?;
    gone(&space).await
}

/// As above, with the process alive all the time and the network away.
#[tokio::test(flavor = "multi_thread")]
async fn s52_a_member_who_was_cut_off_while_it_was_removed() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (_admin, space) = club(&node).await?;
    let relay = Relay::start(node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    relay.calls(|_| Calls::Refuse);
    relay.cut();
    theirs.objects().put("note", "1", json!({ "text": "offline" })).await?.expect("a change");
    space.remove_members(&[member.account()]).await?;
    relay.heal();
    member.reconnect();
    gone(&theirs).await?;
    assert_eq!(theirs.refused()?.len(), 1);
    let failed = theirs.await_synced().await.expect_err("not a member");
    assert_eq!(failed.code.name(), "FORBIDDEN", "{failed:?}");
    Ok(())
}

/// What the rules ask of a purge is not what they ask of a change: one's own `once` tree can be ended while keys rotate.
#[tokio::test(flavor = "multi_thread")]
async fn a_pending_purge_outlives_a_rotation() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (_admin, space) = club(&node).await?;
    let relay = Relay::start(node.address()).await;
    let ballot = || ObjectType::new("ballot").rule(|_| WriteRule { who: Who::Writers, once: true });
    let member = TestClient::create_with("Member", relay.address(), |c| c.object_type(ballot())).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.objects().put("ballot", "1", json!({ "for": "me" })).await?;
    theirs.await_synced().await?;
    relay.calls(|name| if name == "Push" { Calls::Refuse } else { Calls::Forward });
    relay.cut();
    let purge = theirs.objects().purge("ballot", "1").await?;
    space.rotate_keys().await?;
    until(&theirs, || Ok((theirs.acl()?.epoch.0 == 1).then_some(()))).await?;
    assert_eq!(theirs.refused()?, []);
    relay.heal();
    theirs.await_durable(purge).await?;
    Ok(())
}

/// Opening the history of a space reaches back to the keys of that moment, and every member knows what it should hold.
#[tokio::test(flavor = "multi_thread")]
async fn history_is_opened_from_there_on() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let since_join = SpaceOptions { history: HistoryMode::SinceJoin, ..SpaceOptions::default() };
    let space = admin.create_space_with("Club", since_join).await?;
    let first = TestClient::create("First", node.address()).await;
    let firsts = join(&space, &first, Role::Writer).await?;
    space.objects().put("note", "old", json!({ "text": "closed" })).await?;
    // What is still on its way when keys change is encrypted with the new ones.
    space.await_synced().await?;
    space.rotate_keys().await?;
    space.objects().put("note", "recent", json!({ "text": "just before" })).await?;
    space.await_synced().await?;
    space.set_options(SpaceOptions { history: HistoryMode::All, ..since_join }).await?;
    space.rotate_keys().await?;
    space.objects().put("note", "new", json!({ "text": "open" })).await?;
    let late = TestClient::create("Late", node.address()).await;
    let lates = join(&space, &late, Role::Reader).await?;
    for theirs in [&firsts, &lates] {
        theirs.await_synced().await?;
        assert_eq!(object(theirs, "note", "new")?.fields["text"], "open");
        assert_eq!(object(theirs, "note", "recent")?.fields["text"], "just before");
    }
    assert_eq!(object(&firsts, "note", "old")?.fields["text"], "closed", "it was there");
    assert!(lates.objects().get("note", "old")?.is_none());
    Ok(())
}

/// Taken back while the node is away, it goes out by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_taken_back_later() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (_admin, space) = club(&node).await?;
    let relay = Relay::start(node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let invite = space.invite(InviteOptions::approval()).await?;
    member.join(&invite.token).await?;
    sync_tests::harness::request_of(&space, &member).await?;
    relay.calls(|name| if name == "AclRead" || name == "AclAppend" { Calls::Refuse } else { Calls::Forward });
    member.cancel_join(space.id()).await.expect_err("the node is away");
    assert_eq!(member.joins()?[0].stage, JoinStage::Cancelling);
    relay.heal();
    until(&space, || Ok(space.request_of(member.account()).is_err().then_some(()))).await
}

/// Whichever way somebody comes who reads from now on, it knows the name of the space.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_from_now_on_knows_the_spaces_name() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let options = SpaceOptions { history: HistoryMode::SinceJoin, ..SpaceOptions::default() };
    let space = admin.create_space_with("Club", options).await?;
    let [guest, asked, heir] = [(); 3].map(|()| TestClient::create("Somebody", node.address()));
    let (guest, asked, heir) = (guest.await, asked.await, heir.await);
    space.change(AclChange::AddMembers { members: vec![(guest.account(), Role::Guest)] }).await?;
    let joining = asked.join(&space.invite(InviteOptions::approval()).await?.token).await?;
    let request = sync_tests::harness::request_of(&space, &asked).await?;
    space.change(AclChange::AcceptRequest { request, role: None }).await?;
    let askeds = joining.ready(PATIENCE).await?.remove(0);
    space.replace_account(asked.account(), heir.account()).await?;
    gone(&askeds).await?;
    let guests = guest.open_joined(space.id(), PATIENCE).await?;
    let heirs = heir.open_joined(space.id(), PATIENCE).await?;
    for theirs in [&guests, &heirs] {
        space.await_synced().await?;
        theirs.await_synced().await?;
        assert_eq!(theirs.name()?.as_deref(), Some("Club"));
    }
    Ok(())
}

/// Nobody joins by the open invite of a demoted admin, and nobody reads on by it either.
#[tokio::test(flavor = "multi_thread")]
async fn keys_change_when_an_open_invite_dies() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let other = TestClient::create("Other", node.address()).await;
    let others = join(&space, &other, Role::Admin).await?;
    others.invite(InviteOptions::open()).await?;
    let kept = space.invite(InviteOptions::open()).await?;
    others.await_synced().await?;
    space.await_synced().await?;
    let change = AclChange::ChangeRole { account: other.account(), role: Role::Writer };
    assert!(space.plan(&change)?.effects.contains(&Effect::RotationOwed));
    space.change(change).await?;
    until(&space, || Ok((space.acl()?.epoch.0 == 1).then_some(()))).await?;
    assert!(!space.acl()?.exposed);
    let late = TestClient::create("Late", node.address()).await;
    late.join(&kept.token).await?.ready(PATIENCE).await?.remove(0).await_synced().await?;
    Ok(())
}

/// Other admins change the keys while somebody is let in: what was written is written once, and seen.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_is_overtaken_does_nothing_twice() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let other = TestClient::create("Other", node.address()).await;
    let others = join(&space, &other, Role::Admin).await?;
    space.objects().put("counter", "guests", json!({ "label": "so many" })).await?;
    let guest = TestClient::create("Guest", node.address()).await;
    let invite = space.invite(InviteOptions { role: Role::Guest, ..InviteOptions::approval() }).await?;
    let joining = guest.join(&invite.token).await?;
    let request = sync_tests::harness::request_of(&space, &guest).await?;
    let rotating = async {
        for _ in 0..3 {
            others.rotate_keys().await?;
        }
        Ok::<_, AclError>(())
    };
    let count = |w: &mut client_sdk::Preparation| w.update("counter", "guests", Update::new().increment("n", 1));
    tokio::try_join!(space.approve(request, None, count), rotating)?;
    let theirs = joining.ready(PATIENCE).await?.remove(0);
    let seen = object(&theirs, "counter", "guests")?;
    assert_eq!((&seen.fields["n"], &seen.fields["label"]), (&json!(1), &json!("so many")));
    Ok(())
}

/// What was decided in one go is decided as it would have been entry by entry: removed and let in again is removed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_removal_refused_stays_refused_after_coming_back() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (_admin, space) = club(&node).await?;
    let relay = Relay::start(node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    relay.calls(|_| Calls::Refuse);
    relay.cut();
    theirs.objects().put("note", "1", json!({ "text": "offline" })).await?;
    space.remove_members(&[member.account()]).await?;
    space.add_members(&[(member.account(), Role::Writer)]).await?;
    relay.heal();
    member.reconnect();
    until(&theirs, || Ok((theirs.refused()?.len() == 1).then_some(()))).await?;
    // Retried while something newer waits, and made anew once more: it stands on what came before it.
    relay.calls(|_| Calls::Refuse);
    relay.cut();
    theirs.objects().put("note", "1", json!({ "more": "newer" })).await?;
    theirs.retry(theirs.refused()?[0].write).await?;
    space.rotate_keys().await?;
    relay.heal();
    member.reconnect();
    theirs.await_synced().await?;
    space.await_synced().await?;
    let fields = object(&space, "note", "1")?.fields;
    assert_eq!((&fields["text"], &fields["more"]), (&json!("offline"), &json!("newer")));
    Ok(())
}

/// The process that joins anew has a copy which does not know that its membership ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_over_an_old_copy_is_a_join() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, space) = club(&node).await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    drop(theirs);
    let account = member.account();
    let dir = member.shut().await;
    space.remove_members(&[account]).await?;
    let invite = space.invite(InviteOptions::approval()).await?;
    let member = TestClient::open(dir).await;
    let joining = member.join(&invite.token).await?;
    let early = joining.ready(std::time::Duration::from_millis(300)).await;
    assert!(early.is_err(), "nobody accepted it yet");
    let anew = sync_tests::harness::accept(&space, &member, &joining, Role::Reader, &[]).await?;
    anew.await_synced().await?;
    assert_eq!(anew.acl()?.role(&account), Some(Role::Reader));
    Ok(())
}

/// A wish to leave ends with the membership, whatever the app does when it hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_leave_does_not_outlive_the_membership() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (_admin, space) = club(&node).await?;
    let relay = Relay::start(node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    relay.calls(|name| if name == "AclAppend" { Calls::Refuse } else { Calls::Forward });
    // Whoever asked hangs up; the wish is kept.
    let caller = theirs.clone();
    let asking = tokio::spawn(async move { caller.leave().await });
    until(&theirs, || Ok(theirs.explain()?.iter().any(|r| r.code == ReasonCode::Leaving).then_some(()))).await?;
    asking.abort();
    relay.heal();
    gone(&theirs).await?;
    member.forget_space(space.id()).await?;
    let again = join(&space, &member, Role::Writer).await?;
    again.objects().put("note", "1", json!({ "text": "back" })).await?;
    again.await_synced().await?;
    space.rotate_keys().await?;
    again.await_synced().await?;
    assert!(again.acl()?.members.contains_key(&member.account()));
    Ok(())
}
