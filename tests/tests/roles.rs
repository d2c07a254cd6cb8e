//! Roles that change under people's hands, and objects that belong to somebody.

use client_sdk::{
    Code, InviteOptions, ObjectType, RefusedContent, Role, Space, Who, WriteError, WriteId, WriteRule, WriteState,
};
use serde_json::json;
use sync_core::log::Reject;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, accept, agree, join, object, until};
use sync_tests::hostile::{Pen, Person, Said, id_of, item};

async fn has_role(space: &Space, role: &str) -> Outcome {
    until(space, || Ok((space.status()?.role.as_deref() == Some(role)).then_some(()))).await
}

// ---- S57 ------------------------------------------------------------------------------------------------------------

/// What became of a write in the end: in the log (or durable), or refused.
async fn settled(space: &Space, write: WriteId) -> Outcome<WriteState> {
    until(space, || {
        Ok(space.write_state(write)?.filter(|state| match state {
            WriteState::Logged { .. } | WriteState::Durable { .. } | WriteState::Refused(_) => true,
            WriteState::Pending { .. } | WriteState::Dismissed => false,
        }))
    })
    .await
}

/// S57: writer, reader, writer, again and again, while the member writes as fast as it can. Every write has one clear end, the
/// refused ones can be tried again, and everybody sees the same.
#[tokio::test(flavor = "multi_thread")]
async fn s57_roles_change_with_writes_in_flight() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let theirs = join(&space, &member, Role::Writer).await?;
    let account = member.account();
    let changing = tokio::spawn({
        let space = space.clone();
        async move {
            for _ in 0..10 {
                for role in [Role::Reader, Role::Writer] {
                    space.change_role(account, role).await?;
                }
            }
            Outcome::Ok(())
        }
    });
    let (mut writes, mut refused_here) = (Vec::new(), 0);
    let mut since = 0;
    while writes.len() < 100 || !changing.is_finished() {
        match theirs.objects().put("note", &format!("{}", writes.len()), json!({ "n": writes.len() })).await {
            Ok(write) => writes.push(write.ok_or("a new note")?),
            Err(error) => {
                assert_eq!(error.code(), Code::NotAWriter.name(), "{error:?}");
                refused_here += 1;
                tokio::time::timeout(PATIENCE, theirs.status_changed(&mut since)).await?;
            }
        }
    }
    changing.await??;
    has_role(&theirs, "writer").await?;
    let mut refused = Vec::new();
    for write in &writes {
        if let WriteState::Refused(row) = settled(&theirs, *write).await? {
            assert_eq!(Code::from_number(row.code), Some(Code::NotAWriter), "{row:?}");
            refused.push(*write);
        }
    }
    eprintln!(
        "{} writes, {} refused after they were taken, {refused_here} refused at once",
        writes.len(),
        refused.len()
    );
    let listed: Vec<_> = theirs.refused()?.into_iter().map(|w| w.write).collect();
    assert_eq!(listed, refused);
    for write in refused {
        theirs.retry(write).await?;
    }
    agree(&[&theirs, &space]).await?;
    let numbers: Vec<_> = space.objects().list("note")?.into_iter().map(|o| o.fields["n"].clone()).collect();
    assert_eq!(numbers.len(), writes.len());
    Ok(())
}

/// S57: a write that waits when its author becomes a reader is refused with everything on top of it, and comes back with the
/// role.
#[tokio::test(flavor = "multi_thread")]
async fn s57_what_waits_when_the_role_goes_is_kept() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.objects().put("note", "n", json!({ "text": "before" })).await?;
    agree(&[&theirs, &space]).await?;
    let dir = member.shut().await;
    space.change_role(theirs_account(&space)?, Role::Reader).await?;
    node.kill();
    let member = TestClient::open(dir).await;
    let theirs = member.space(space.id())?;
    for n in 0..3 {
        theirs.objects().put("note", "n", json!({ "text": format!("offline {n}") })).await?;
    }
    node.restart();
    member.reconnect();
    has_role(&theirs, "reader").await?;
    until(&theirs, || Ok((theirs.status()?.refused == 3).then_some(()))).await?;
    assert_eq!(object(&theirs, "note", "n")?.fields["text"], "before");
    let kept = theirs.refused()?;
    assert!(kept.iter().all(|w| w.code == "NOT_A_WRITER"), "{kept:?}");
    assert!(matches!(&kept[2].content, RefusedContent::Object { fields, .. } if fields["text"] == "offline 2"));
    let still = theirs.retry(kept[0].write).await.expect_err("a reader still");
    assert_eq!(still.code(), "NOT_A_WRITER");
    assert_eq!(theirs.status()?.refused, 3);
    admin.connected(PATIENCE).await?;
    space.change_role(member.account(), Role::Writer).await?;
    has_role(&theirs, "writer").await?;
    for write in kept {
        theirs.retry(write.write).await?;
    }
    agree(&[&theirs, &space]).await?;
    assert_eq!(object(&space, "note", "n")?.fields["text"], "offline 2");
    Ok(())
}

/// The member that is not the owner.
fn theirs_account(space: &Space) -> Outcome<client_sdk::AccountId> {
    let acl = space.acl()?;
    Ok(*acl.members.keys().find(|account| **account != acl.owner).ok_or("a member")?)
}

/// S57: what an admin gave out is worth no more than the admin.
#[tokio::test(flavor = "multi_thread")]
async fn s57_invites_of_a_demoted_admin_are_dead() -> Outcome {
    let node = NodeProcess::start();
    let owner = TestClient::create("Owner", node.address()).await;
    let deputy = TestClient::create("Deputy", node.address()).await;
    let space = owner.create_space("Club").await?;
    let deputys = join(&space, &deputy, Role::Admin).await?;
    let open = deputys.invite(InviteOptions::open()).await?;
    let approval = deputys.invite(InviteOptions::approval()).await?;
    let early = TestClient::create("Early", node.address()).await;
    let joining = early.join(&approval.token).await?;
    space.change_role(deputy.account(), Role::Writer).await?;
    let late = TestClient::create("Late", node.address()).await;
    for invite in [&open, &approval] {
        let refused = late.join(&invite.token).await.expect_err("dead");
        assert_eq!(refused.code(), Code::InviteDead.name(), "{refused:?}");
        assert_eq!(late.joins()?, []);
    }
    // Who asked while it lived may still be let in, by those who may.
    has_role(&deputys, "writer").await?;
    let request = deputys.request_of(early.account())?;
    assert_eq!(deputys.approve_as(request, None).await.expect_err("no admin").code(), Code::RoleTooLow.name());
    assert_eq!(deputys.invite(InviteOptions::open()).await.expect_err("no admin").code(), Code::RoleTooLow.name());
    accept(&space, &early, &joining, Role::Writer, &[]).await?;
    // An admin again: what is dead stays dead, and a new one lives.
    space.change_role(deputy.account(), Role::Admin).await?;
    has_role(&deputys, "admin").await?;
    assert_eq!(late.join(&open.token).await.expect_err("dead for good").code(), Code::InviteDead.name());
    let again = deputys.invite(InviteOptions::open()).await?;
    let theirs = late.join(&again.token).await?.ready(PATIENCE).await?.remove(0);
    agree(&[&space, &deputys, &theirs]).await?;
    Ok(())
}

/// S57: a guest that is made a reader reads everything at once, from the beginning, in the same process.
#[tokio::test(flavor = "multi_thread")]
async fn s57_a_guest_made_reader_reads_everything_at_once() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let guest = TestClient::create("Guest", node.address()).await;
    let space = admin.create_space("Club").await?;
    for epoch in 0..3 {
        for n in 0..5 {
            space.objects().put("note", &format!("{epoch} {n}"), json!({ "n": n })).await?;
        }
        // What is not in the log yet would be written with the new keys.
        space.await_synced().await?;
        space.rotate_keys().await?;
    }
    let theirs = join(&space, &guest, Role::Guest).await?;
    space.objects().put("note", "0 0", json!({ "more": "since" })).await?;
    space.objects().put("note", "new", json!({ "n": 9 })).await?;
    space.await_synced().await?;
    let synced = theirs.await_synced().await?;
    assert_eq!(synced.hidden.len(), 16, "15 notes and the first name of the space: {:?}", synced.hidden);
    let visible: Vec<_> = theirs.objects().list("note")?.into_iter().map(|o| o.id).collect();
    assert!(visible.contains(&"new".to_owned()) && visible.len() <= 2, "{visible:?}");
    let mut watch = theirs.objects().watch("note");

    space.change_role(guest.account(), Role::Reader).await?;
    has_role(&theirs, "reader").await?;
    until(&theirs, || Ok((theirs.status()?.hidden == 0).then_some(()))).await?;
    agree(&[&theirs, &space]).await?;
    assert_eq!(theirs.objects().list("note")?.len(), 16);
    assert_eq!(object(&theirs, "note", "0 0")?.fields["n"], 0);
    assert_eq!(theirs.await_synced().await?.hidden, []);
    // Who watches is told.
    let told = tokio::time::timeout(PATIENCE, watch.next()).await??;
    assert!(told.is_some(), "{told:?}");
    // The same in the next process.
    let guest = guest.reopen().await;
    assert_eq!(guest.space(space.id())?.objects().list("note")?.len(), 16);
    Ok(())
}

// ---- S58, S59 -------------------------------------------------------------------------------------------------------

/// Each account has one of each: a card that it alone writes, a diploma that it or admins write, a vow that it makes once, and
/// a verdict on it that it or an admin gives once.
fn types() -> [ObjectType; 4] {
    let of = |name: &'static str, who: fn(client_sdk::AccountId) -> Who, once: bool| {
        ObjectType::new(name).rule(move |id| WriteRule { who: id.parse().map_or(Who::Admins, who), once })
    };
    [
        of("card", Who::Account, false),
        of("diploma", Who::AccountOrAdmins, false),
        of("vow", Who::Account, true),
        of("verdict", Who::AccountOrAdmins, true),
    ]
}

async fn person(node: &NodeProcess, name: &str) -> Person {
    Person::with(node.address(), |config| {
        types().into_iter().fold(config.name(name), |config, object_type| config.object_type(object_type))
    })
    .await
}

/// S59: what is another member's is refused by one's own client, and by the node if the client is patched.
#[tokio::test(flavor = "multi_thread")]
async fn s59_another_members_objects() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (owner, bad, victim) =
        (person(&node, "Owner").await, person(&node, "Bad").await, person(&node, "Victim").await);
    let space = owner.client.create_space("Club").await?;
    let bads = join(&space, &bad.client, Role::Writer).await?;
    let victims = join(&space, &victim.client, Role::Writer).await?;
    let id = victim.client.own();
    for name in ["card", "diploma"] {
        victims.objects().put(name, &id, json!({ "text": "mine" })).await?;
    }
    agree(&[&victims, &bads, &space]).await?;

    // By the SDK, whatever exists already.
    for name in ["card", "diploma", "vow", "verdict"] {
        let refused = bads.objects().put(name, &id, json!({ "text": "theirs" })).await.expect_err(name);
        assert!(matches!(refused, WriteError::Rejected(Reject::WriteRule { .. })), "{refused:?}");
    }
    for name in ["card", "vow"] {
        let refused = space.objects().put(name, &id, json!({ "text": "the owner's" })).await.expect_err(name);
        assert_eq!(refused.code(), Code::WriteRule.name());
    }
    for (name, may) in [("card", false), ("diploma", false)] {
        assert_eq!(bads.objects().purge(name, &id).await.is_ok(), may);
    }
    assert_eq!(bads.status()?.pending, 0);

    // By a patched client: new trees, later changes, and the end of them.
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let account = victim.client.account();
    let standing = patched.standing(space.id()).await;
    for object_type in types() {
        let name = object_type.name();
        let rule = match name {
            "card" => WriteRule { who: Who::Account(account), once: false },
            "diploma" => WriteRule { who: Who::AccountOrAdmins(account), once: false },
            "vow" => WriteRule { who: Who::Account(account), once: true },
            _ => WriteRule { who: Who::AccountOrAdmins(account), once: true },
        };
        let root = pen.object_root(name, &id, rule);
        let mut items = vec![pen.object((name, &id), &root, &[], json!({ "text": "forged" }), |_| {})];
        if let Some(tree) = victims.tree(root.id().into())? {
            let heads: Vec<_> = tree.snapshot()?.heads.iter().copied().collect();
            items.push(pen.object((name, &id), &root, &heads, json!({ "text": "forged" }), |_| {}));
            items.push(item(None, pen.tombstone(root.id().into())));
        }
        let expected = vec![Said::Rejected(Code::WriteRule); items.len()];
        assert_eq!(patched.push(space.id(), items).await?, expected, "{name}");
    }
    assert_eq!(patched.standing(space.id()).await, standing);

    // An admin writes where the rule has admins; the account writes its own.
    space.objects().put("diploma", &id, json!({ "grade": "A" })).await?;
    space.objects().put("verdict", &id, json!({ "text": "good" })).await?;
    victims.objects().put("vow", &id, json!({ "text": "always" })).await?;
    agree(&[&victims, &bads, &space]).await?;
    let late = victims.objects().put("verdict", &id, json!({ "text": "better" })).await.expect_err("given");
    assert_eq!(late.code(), Code::OnceTaken.name());
    let twice = victims.objects().put("vow", &id, json!({ "text": "never" })).await.expect_err("made");
    assert_eq!(twice.code(), Code::OnceTaken.name());
    for space in [&victims, &bads, &space] {
        assert_eq!(object(space, "card", &id)?.fields["text"], "mine");
        assert_eq!(object(space, "diploma", &id)?.fields["grade"], "A");
        assert_eq!(object(space, "vow", &id)?.fields["text"], "always");
        assert_eq!(object(space, "verdict", &id)?.fields["text"], "good");
    }
    Ok(())
}

/// S59: a tree under another's name, with a rule that suits the squatter. The log takes it; nobody shows it as the object, and
/// the object is there for whom it belongs to.
#[tokio::test(flavor = "multi_thread")]
async fn s59_a_squatted_name_is_misplaced_and_never_the_object() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let (owner, bad, victim) =
        (person(&node, "Owner").await, person(&node, "Bad").await, person(&node, "Victim").await);
    let space = owner.client.create_space("Club").await?;
    let bads = join(&space, &bad.client, Role::Writer).await?;
    let victims = join(&space, &victim.client, Role::Writer).await?;
    let (id, account) = (victim.client.own(), victim.client.account());
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let everybody = WriteRule::WRITERS;
    let own = WriteRule { who: Who::Account(bad.client.account()), once: false };
    let once = WriteRule { who: Who::Account(account), once: true };
    let mut squatted = Vec::new();
    for (name, rule) in [("card", everybody), ("card", own), ("diploma", everybody), ("vow", own), ("profile", own)] {
        let root = pen.object_root(name, &id, rule);
        let first = pen.object((name, &id), &root, &[], json!({ "text": "squatted" }), |_| {});
        let more = pen.object((name, &id), &root, &[id_of(&first)], json!({ "text": "squatted" }), |_| {});
        assert_eq!(patched.push(space.id(), vec![first, more]).await?, [Said::Accepted; 2]);
        squatted.push(sync_core::ids::TreeId::from(root.id()));
    }
    // Not even the account itself may choose another rule.
    let root = pen.object_root("card", &id, once);
    let first = pen.object(("card", &id), &root, &[], json!({}), |_| {});
    assert_eq!(patched.push(space.id(), vec![first]).await?, [Said::Rejected(Code::WriteRule)]);

    let late = person(&node, "Late").await;
    let lates = join(&space, &late.client, Role::Reader).await?;
    for space in [&space, &bads, &victims, &lates] {
        space.await_synced().await?;
        assert_eq!(space.status()?.misplaced, 2 * squatted.len());
        for name in ["card", "diploma", "vow", "profile"] {
            assert_eq!(space.objects().list(name)?, [], "{name}");
            assert!(space.objects().get(name, &id)?.is_none());
            assert!(!squatted.contains(&space.objects().tree_id(name, &id)?));
        }
        for tree in &squatted {
            assert!(space.tree(*tree)?.ok_or("it is in the log")?.snapshot()?.object.is_none());
        }
    }
    for name in ["card", "diploma", "vow", "profile"] {
        victims.objects().put(name, &id, json!({ "text": "mine" })).await?;
    }
    agree(&[&victims, &space, &bads, &lates]).await?;
    for space in [&space, &bads, &victims, &lates] {
        for name in ["card", "diploma", "vow", "profile"] {
            assert_eq!(object(space, name, &id)?.fields["text"], "mine");
            assert_eq!(space.objects().list(name)?.len(), 1);
        }
    }
    // An admin clears up.
    for tree in squatted {
        space.purge_tree(tree).await?;
    }
    agree(&[&space, &victims, &bads, &lates]).await?;
    assert_eq!(victims.status()?.misplaced, 0);
    assert_eq!(victims.objects().list("card")?.len(), 1);
    Ok(())
}

/// S58: a guest and a reader, with honest clients: nothing is written, nothing waits; with a role they write.
#[tokio::test(flavor = "multi_thread")]
async fn s58_readers_and_guests_write_nothing_until_they_may() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("note", "n", json!({ "text": "the admin's" })).await?;
    for role in [Role::Reader, Role::Guest] {
        let member = TestClient::create("Member", node.address()).await;
        let theirs = join(&space, &member, role).await?;
        theirs.await_synced().await?;
        let objects = theirs.objects();
        for refused in [
            objects.put("note", "n", json!({ "text": "mine" })).await.map(drop),
            objects.put("note", "new", json!({ "text": "mine" })).await.map(drop),
            objects.put("profile", &member.own(), json!({ "name": "me" })).await.map(drop),
            theirs.purge_tree(space.objects().tree_id("note", "n")?).await.map(drop),
        ] {
            assert_eq!(refused.expect_err("may not write").code(), Code::NotAWriter.name(), "{role}");
        }
        let status = theirs.status()?;
        assert_eq!((status.pending, status.refused), (0, 0));
        space.change_role(member.account(), Role::Writer).await?;
        has_role(&theirs, "writer").await?;
        objects.put("profile", &member.own(), json!({ "name": "me" })).await?;
        agree(&[&theirs, &space]).await?;
        object(&space, "profile", &member.own())?;
    }
    Ok(())
}
