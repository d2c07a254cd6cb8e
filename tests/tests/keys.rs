//! Who reads what: spaces whose members read from their own beginning on, and keys that an admin sealed wrongly.

use client_sdk::{
    Client, HistoryMode, InviteOptions, NotSyncedCode, ReasonCode, Role, Space, SpaceOptions, SyncState, WriteRule,
};
use serde_json::json;
use sync_core::ids::Epoch;
use sync_core::record::AclContent;
use sync_e2ee::{Recipient, SpaceKeys, seal_keys};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join, object, request_of, seen, until};
use sync_tests::hostile::{Pen, Person, Said, item};

// ---- since_join -----------------------------------------------------------------------------------------------------

/// A space whose members read from their own beginning on.
async fn since_join(admin: &Client) -> Outcome<Space> {
    let options = SpaceOptions { history: HistoryMode::SinceJoin, ..SpaceOptions::default() };
    Ok(admin.create_space_with("Chat", options).await?)
}

/// The ids of the notes that a replica shows, once it is synced.
async fn notes(space: &Space) -> Outcome<Vec<String>> {
    space.await_synced_within(PATIENCE).await?;
    Ok(space.objects().list("note")?.into_iter().map(|o| o.id).collect())
}

async fn write(space: &Space, id: &str) -> Outcome {
    let write = space.objects().put("note", id, json!({ "text": id })).await?.ok_or("a new note")?;
    space.await_durable(write).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_since_join_space_read_from_their_own_beginning() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = since_join(&admin).await?;
    write(&space, "1 alone").await?;

    // By approval, by an open invite, and without asking.
    let one = TestClient::create("One", node.address()).await;
    let ones = join(&space, &one, Role::Writer).await?;
    write(&space, "2 with one").await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let two = TestClient::create("Two", node.address()).await;
    let twos = two.join(&token).await?.ready(PATIENCE).await?.remove(0);
    write(&twos, "3 with two").await?;
    let three = TestClient::create("Three", node.address()).await;
    space.add_members(&[(three.account(), Role::Writer)]).await?;
    let threes = three.open_joined(space.id(), PATIENCE).await?;
    write(&threes, "4 with three").await?;

    let all = ["1 alone", "2 with one", "3 with two", "4 with three"];
    for (space, from) in [(&space, 0), (&ones, 1), (&twos, 2), (&threes, 3)] {
        assert_eq!(notes(space).await?, &all[from..]);
        assert_eq!(space.name()?.as_deref(), Some("Chat"), "everybody knows where it is");
    }
    // An update by somebody who reads all of it shows what it says, and no more.
    space.objects().put("note", "1 alone", json!({ "more": "later" })).await?;
    space.await_synced().await?;
    threes.await_synced().await?;
    assert_eq!(json!(object(&threes, "note", "1 alone")?.fields), json!({ "more": "later" }));

    // Two removals: who stays reads on, and nothing of before comes with the new keys.
    space.remove_members(&[one.account()]).await?;
    write(&twos, "5 without one").await?;
    space.remove_members(&[two.account()]).await?;
    write(&threes, "6 without two").await?;
    let threes_now = notes(&threes).await?;
    for (id, reads) in [("3 with two", false), ("4 with three", true), ("5 without one", true), ("6 without two", true)]
    {
        assert_eq!(threes_now.contains(&id.to_owned()), reads, "{id}: {threes_now:?}");
    }
    until(&twos, || Ok(twos.explain()?.iter().any(|r| r.code == ReasonCode::NotAMember).then_some(()))).await?;
    let last: Vec<_> = twos.objects().list("note")?.into_iter().map(|o| o.id).collect();
    assert!(last.contains(&"5 without one".to_owned()) && !last.contains(&"6 without two".to_owned()), "{last:?}");

    // Back again by a new invite: from its new beginning on, and what it had it has.
    let ones = join(&space, &one, Role::Writer).await?;
    write(&threes, "7 with one again").await?;
    let ones_now = notes(&ones).await?;
    for (id, reads) in
        [("2 with one", true), ("5 without one", false), ("6 without two", false), ("7 with one again", true)]
    {
        assert_eq!(ones_now.contains(&id.to_owned()), reads, "{id}: {ones_now:?}");
    }
    // The same for a copy that begins anew.
    let ones_dir = one.shut().await;
    let one = TestClient::open(ones_dir).await;
    assert_eq!(notes(&one.space(space.id())?).await?, ones_now);
    assert_eq!(notes(&space).await?.len(), 7);
    Ok(())
}

/// What an approval promises is written once more for who reads from now on; the rest stays hidden, and is settled.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_shows_what_it_names_in_a_since_join_space() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = since_join(&admin).await?;
    for id in ["shown", "not shown"] {
        space.objects().put("note", id, json!({ "text": id, "n": 1 })).await?;
    }
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let joining = member.join(&token).await?;
    let request = request_of(&space, &member).await?;
    space
        .approve(request, None, |w| {
            let id = w.account().to_string();
            w.promise("note", "shown")?;
            w.put("profile", &id, json!({ "title": "new" }))?;
            Ok(())
        })
        .await?;
    let theirs = joining.ready(PATIENCE).await?.remove(0);
    assert_eq!(object(&theirs, "note", "shown")?.fields["n"], 1);
    assert_eq!(object(&theirs, "profile", &member.own())?.fields["title"], "new");
    assert_eq!(notes(&theirs).await?, ["shown"]);
    assert!(!theirs.await_synced().await?.hidden.is_empty(), "hidden, and settled");
    let refused = theirs.await_object("note", "not shown", PATIENCE).await.expect_err("never");
    assert_eq!(refused.code, NotSyncedCode::Unreadable, "{refused:?}");
    assert_eq!(seen(&space)?.len(), 4);
    Ok(())
}

// ---- BAD_SEAL, Reseal -----------------------------------------------------------------------------------------------

/// How an admin's client spoils what it seals to somebody.
#[derive(Debug, Clone, Copy)]
enum Spoilt {
    /// A good seal of keys that are none.
    OtherKeys,
    /// Bytes.
    Noise,
    /// Sealed to somebody else.
    Misdirected,
}

/// A patched admin leaves one member without the new keys. The member says so, by name, and shows nothing wrong; another admin
/// gives it the keys, and all is there.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_sealed_wrongly_are_owed_and_healed() -> Outcome {
    for spoilt in [Spoilt::OtherKeys, Spoilt::Noise, Spoilt::Misdirected] {
        owed_and_healed(spoilt).await.map_err(|e| format!("{spoilt:?}: {e}"))?;
    }
    Ok(())
}

async fn owed_and_healed(spoilt: Spoilt) -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let owner = TestClient::create("Owner", node.address()).await;
    let bad = Person::new("Bad admin", node.address()).await;
    let victim = TestClient::create("Victim", node.address()).await;
    let space = owner.create_space("Club").await?;
    join(&space, &bad.client, Role::Admin).await?;
    let theirs = join(&space, &victim, Role::Writer).await?;
    theirs.objects().put("note", "before", json!({ "n": 0 })).await?;
    theirs.await_synced().await?;

    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let (mut rotation, keys) = pen.rotation(&[]);
    let seal = rotation.seals.iter_mut().find(|s| s.recipient == *victim.account().as_bytes()).ok_or("its seal")?;
    let seal_to = |to, keys: &SpaceKeys| seal_keys(Some(space.id()), Epoch(1), to, keys, &mut rand::rng());
    let wrong = match spoilt {
        Spoilt::OtherKeys => seal_to(Recipient::Account(victim.account()), &SpaceKeys::generate(&mut rand::rng()))?,
        Spoilt::Misdirected => seal_to(Recipient::Account(owner.account()), &keys)?,
        Spoilt::Noise => {
            let mut noise = seal.clone();
            noise.ciphertext = noise.ciphertext.iter().map(|b| b ^ 0x55).collect::<Vec<_>>().into();
            noise
        }
    };
    *seal = sync_core::record::Seal { recipient: seal.recipient, ..wrong };
    let record = pen.acl(AclContent::RotateKey { rotation });
    assert_eq!(patched.push(space.id(), vec![item(None, pen.signed(&record, None))]).await?, [Said::Accepted]);

    // The others go on.
    let pen = Pen::of(&mut patched, space.id()).await;
    let root = pen.object_root("note", "by the bad one", WriteRule::WRITERS);
    let more = pen.object(("note", "by the bad one"), &root, &[], json!({ "n": 1 }), |_| {});
    assert_eq!(patched.push(space.id(), vec![more]).await?, [Said::Accepted]);
    space.objects().put("note", "by the owner", json!({ "n": 2 })).await?;
    space.objects().put("note", "before", json!({ "more": true })).await?;
    space.await_synced().await?;

    // The member says what is wrong, in every way, and goes on showing what it can.
    let owed = |space: &Space| -> Outcome<bool> { Ok(space.explain()?.iter().any(|r| r.code == ReasonCode::KeyOwed)) };
    until(&theirs, || Ok((owed(&theirs)? && theirs.status()?.hidden == 3).then_some(()))).await?;
    assert_eq!(theirs.status()?.state, SyncState::Attention);
    let failed = theirs.await_synced().await.expect_err("not without the keys");
    assert!(failed.residue.iter().any(|r| r.code == ReasonCode::KeyOwed), "{failed:?}");
    let ids = |space: &Space| -> Outcome<Vec<String>> {
        Ok(space.objects().list("note")?.into_iter().map(|o| o.id).collect())
    };
    assert_eq!(ids(&theirs)?, ["before"]);
    assert_eq!(object(&theirs, "note", "before")?.fields.get("more"), None);
    // What it writes now could only be written with keys that it has not.
    let refused = theirs.objects().put("note", "meanwhile", json!({ "n": 3 })).await;
    assert_eq!(refused.expect_err("without keys").code(), "NO_KEYS");
    // Also in the next process.
    let victim = victim.reopen().await;
    let theirs = victim.space(space.id())?;
    victim.connected(PATIENCE).await?;
    until(&theirs, || Ok(owed(&theirs)?.then_some(()))).await?;

    space.reseal(victim.account()).await?;
    until(&theirs, || Ok((!owed(&theirs)?).then_some(()))).await?;
    theirs.await_synced_within(PATIENCE).await?;
    space.await_synced().await?;
    assert_eq!(theirs.status()?.hidden, 0);
    assert_eq!(seen(&theirs)?, seen(&space)?);
    assert_eq!(object(&theirs, "note", "before")?.fields["more"], true);
    theirs.objects().put("note", "meanwhile", json!({ "n": 3 })).await?;
    theirs.await_synced_within(PATIENCE).await?;
    space.await_synced().await?;
    assert_eq!(ids(&space)?, ["before", "by the bad one", "by the owner", "meanwhile"]);
    // What was wrong once is no trouble any more, in later processes and with later keys.
    let victim = victim.reopen().await;
    let theirs = victim.space(space.id())?;
    space.rotate_keys().await?;
    theirs.await_synced_within(PATIENCE).await?;
    assert!(!owed(&theirs)?);
    assert_eq!(seen(&theirs)?, seen(&space)?);
    Ok(())
}

/// A bad admin also spoils the heal, and the removal of somebody else: each time it is said, each time it is healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_reseal_heals_nothing_and_a_right_one_does() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let owner = TestClient::create("Owner", node.address()).await;
    let bad = Person::new("Bad admin", node.address()).await;
    let victim = TestClient::create("Victim", node.address()).await;
    let leaver = TestClient::create("Leaver", node.address()).await;
    let space = owner.create_space("Club").await?;
    join(&space, &bad.client, Role::Admin).await?;
    let theirs = join(&space, &victim, Role::Writer).await?;
    join(&space, &leaver, Role::Writer).await?;
    let wrong_for_victim = |epoch| {
        let keys = SpaceKeys::generate(&mut rand::rng());
        seal_keys(Some(space.id()), epoch, Recipient::Account(victim.account()), &keys, &mut rand::rng())
    };
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let (mut rotation, _) = pen.rotation(&[leaver.account()]);
    let seal = rotation.seals.iter_mut().find(|s| s.recipient == *victim.account().as_bytes()).ok_or("its seal")?;
    *seal = wrong_for_victim(Epoch(1))?;
    let removal = pen.acl(AclContent::RemoveMembers { accounts: vec![leaver.account()], rotation });
    assert_eq!(patched.push(space.id(), vec![item(None, pen.signed(&removal, None))]).await?, [Said::Accepted]);
    let pen = Pen::of(&mut patched, space.id()).await;
    let content = AclContent::Reseal { account: victim.account(), epoch: Epoch(1), seal: wrong_for_victim(Epoch(1))? };
    let reseal = pen.signed(&pen.acl(content), None);
    assert_eq!(patched.push(space.id(), vec![item(None, reseal)]).await?, [Said::Accepted]);
    let end = patched.standing(space.id()).await.seq;
    until(&theirs, || Ok((theirs.status()?.seq >= end.0).then_some(()))).await?;
    assert!(theirs.explain()?.iter().any(|r| r.code == ReasonCode::KeyOwed), "{:?}", theirs.explain()?);
    space.await_synced().await?;
    space.reseal(victim.account()).await?;
    until(&theirs, || Ok((!theirs.explain()?.iter().any(|r| r.code == ReasonCode::KeyOwed)).then_some(()))).await?;
    theirs.objects().put("note", "n", json!({ "n": 1 })).await?;
    theirs.await_synced_within(PATIENCE).await?;
    space.await_synced().await?;
    assert_eq!(seen(&theirs)?, seen(&space)?);
    // Once it holds them, a wrong one more changes nothing.
    let pen = Pen::of(&mut patched, space.id()).await;
    let content = AclContent::Reseal { account: victim.account(), epoch: Epoch(1), seal: wrong_for_victim(Epoch(1))? };
    let reseal = pen.signed(&pen.acl(content), None);
    assert_eq!(patched.push(space.id(), vec![item(None, reseal)]).await?, [Said::Accepted]);
    theirs.await_synced_within(PATIENCE).await?;
    let victim = victim.reopen().await;
    victim.space(space.id())?.await_synced_within(PATIENCE).await?;
    Ok(())
}

/// An admin who spoils what it seals to an open invite: who comes by it is told, with nothing left behind, and comes in after the
/// next honest rotation.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_invite_that_was_sealed_wrongly_says_so() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let owner = TestClient::create("Owner", node.address()).await;
    let bad = Person::new("Bad admin", node.address()).await;
    let space = owner.create_space("Club").await?;
    join(&space, &bad.client, Role::Admin).await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let (mut rotation, _) = pen.rotation(&[]);
    for seal in &mut rotation.invite_seals {
        seal.ciphertext = seal.ciphertext.iter().map(|b| b ^ 0x55).collect::<Vec<_>>().into();
    }
    assert_eq!(rotation.invite_seals.len(), 1);
    let record = pen.signed(&pen.acl(AclContent::RotateKey { rotation }), None);
    assert_eq!(patched.push(space.id(), vec![item(None, record)]).await?, [Said::Accepted]);
    let late = TestClient::create("Late", node.address()).await;
    let standing = patched.standing(space.id()).await;
    let refused = late.join(&token).await.expect_err("without keys");
    assert_eq!(refused.code(), "NO_KEYS", "{refused:?}");
    assert_eq!(patched.standing(space.id()).await, standing);
    assert!(late.spaces()?.is_empty());
    space.await_synced().await?;
    space.rotate_keys().await?;
    let theirs = late.join(&token).await?.ready(PATIENCE).await?.remove(0);
    theirs.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(seen(&theirs)?, seen(&space)?);
    Ok(())
}

/// An admin who spoils the way back from the new keys to the old ones hurts those who come later: they say so, and are healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_way_back_to_older_keys_is_owed_and_healed() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let owner = TestClient::create("Owner", node.address()).await;
    let bad = Person::new("Bad admin", node.address()).await;
    let space = owner.create_space("Club").await?;
    join(&space, &bad.client, Role::Admin).await?;
    space.objects().put("note", "old", json!({ "n": 1 })).await?;
    space.await_synced().await?;
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let (mut rotation, _) = pen.rotation(&[]);
    rotation.chain_ct = rotation.chain_ct.iter().map(|b| b ^ 0x55).collect::<Vec<_>>().into();
    let record = pen.signed(&pen.acl(AclContent::RotateKey { rotation }), None);
    assert_eq!(patched.push(space.id(), vec![item(None, record)]).await?, [Said::Accepted]);
    space.await_synced().await?;
    space.objects().put("note", "new", json!({ "n": 2 })).await?;
    space.await_synced().await?;
    assert_eq!(notes(&space).await?, ["new", "old"], "who was here before lacks nothing");

    let late = TestClient::create("Late", node.address()).await;
    let theirs = join(&space, &late, Role::Reader).await?;
    let failed = theirs.await_synced().await.expect_err("a member with history reads the beginning, too");
    assert!(failed.residue.iter().any(|r| r.code == ReasonCode::KeyOwed), "{failed:?}");
    assert_eq!(object(&theirs, "note", "new")?.fields["n"], 2);
    space.reseal(late.account()).await?;
    until(&theirs, || Ok((theirs.status()?.hidden == 0).then_some(()))).await?;
    assert_eq!(notes(&theirs).await?, ["new", "old"]);
    assert_eq!(seen(&theirs)?, seen(&space)?);
    Ok(())
}
