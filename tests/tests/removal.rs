//! What becomes of a removed member, and of the honest ones whose keys change meanwhile: with patched clients, with writes made
//! offline, with people who are away for long.

use std::collections::BTreeSet;

use client_sdk::{Code, InviteOptions, NewTree, RefusedContent, Role, Space, TreeId, TreeWrite, WriteRule};
use serde_json::json;
use sync_core::ids::{ChangeId, Epoch, Seq};
use sync_core::pb;
use sync_core::record::AclContent;
use sync_core::token::token_from_text;
use sync_e2ee::InviteSecret;
use sync_proto::v1;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, gone, join, object};
use sync_tests::hostile::{Hostile, Pen, Person, Said, code_of, item};
use sync_tests::relay::{Calls, Relay};

/// All are synced, hold the same, and nothing is wrong or waits.
async fn agree_in_order(spaces: &[&Space]) -> Outcome {
    agree(spaces).await?;
    for space in spaces {
        let status = space.status()?;
        assert_eq!([status.quarantined, status.void, status.missing, status.refused, status.pending], [0; 5]);
    }
    Ok(())
}

fn secret_of(token: &str) -> InviteSecret {
    let token = token_from_text(token).expect("a token");
    InviteSecret::from_bytes(token.body().spaces[0].invite_secret)
}

// ---- S51 ------------------------------------------------------------------------------------------------------------

/// A club of three. One of them, who has a patched client and invites that it never used, is removed.
struct Removed {
    node: NodeProcess,
    admin: Person,
    member: Person,
    _stays: TestClient,
    space: Space,
    theirs: Space,
    stays_space: Space,
    /// The member's, from before its removal: what it knew and could sign then.
    before: Pen,
    patched: Hostile,
    own_tree: TreeId,
    own_head: ChangeId,
    open: String,
    approval: String,
    removed_at: Seq,
}

impl Removed {
    /// Also what an open subscription of the member was told.
    async fn new() -> Outcome<(Self, Vec<v1::LogEntry>, Code)> {
        let node = NodeProcess::start_with(&["--plaintext"]);
        let admin = Person::new("Admin", node.address()).await;
        let member = Person::new("Member", node.address()).await;
        let stays = TestClient::create("Stays", node.address()).await;
        let space = admin.client.create_space("Club").await?;
        let theirs = join(&space, &member.client, Role::Writer).await?;
        let stays_space = join(&space, &stays, Role::Writer).await?;
        theirs.objects().put("note", "own", json!({ "text": "before" })).await?;
        theirs.await_synced().await?;
        let own_tree = theirs.objects().tree_id("note", "own")?;
        let own_head = *theirs.tree(own_tree)?.ok_or("its tree")?.snapshot()?.heads.first().ok_or("a head")?;
        let open = space.invite(InviteOptions::open()).await?.token;
        let approval = space.invite(InviteOptions::approval()).await?.token;
        let mut patched = member.patched(node.address()).await;
        let before = Pen::of(&mut patched, space.id()).await;
        let cursor = Seq(before.known.ids.len() as u64);

        let mut tail = patched.tail(space.id(), cursor).await;
        space.objects().put("note", "shared", json!({ "text": "while it is a member" })).await?;
        space.await_synced().await?;
        space.remove_members(&[member.client.account()]).await?;
        let removed_at = space.acl()?.removed[&member.client.account()];
        space.objects().put("note", "later", json!({ "text": "after" })).await?;
        space.await_synced().await?;
        let (told, why) = tokio::time::timeout(PATIENCE, tail.until_refused()).await?;
        drop(tail);
        let removed = Self {
            node,
            admin,
            member,
            _stays: stays,
            space,
            theirs,
            stays_space,
            before,
            patched,
            own_tree,
            own_head,
            open,
            approval,
            removed_at,
        };
        Ok((removed, told, why))
    }

    /// What the member may still know: everything up to its removal.
    async fn afterwards(&mut self) -> Outcome<Pen> {
        let known = self.patched.read_acl(self.space.id(), None).await?;
        Ok(Pen { account: self.before.account.clone(), known })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_an_open_session_loses_the_space_at_once() -> Outcome {
    let (mut removed, told, why) = Removed::new().await?;
    assert_eq!(why, Code::Forbidden);
    let last = told.last().ok_or("its own removal")?;
    assert_eq!(Seq(last.seq), removed.removed_at, "the removal, and nothing after it");
    assert!(told.len() >= 2, "what came while it was a member");
    let space = removed.space.id();

    // On the same session: nothing of the present, by any call.
    let patched = &mut removed.patched;
    let request = patched.request(v1::CertifyRequest {
        space: space.to_bytes(),
        nonce: vec![7; 16].into(),
        prev: Vec::new().into(),
        trees: Vec::new(),
        with_set_digest: true,
    });
    assert_eq!(code_of(&patched.rpc.certify(request).await.expect_err("gone")), Code::Forbidden);
    let tree = pb::TreeHeads { tree: removed.own_tree.to_bytes(), heads: Vec::new() };
    let request = patched.request(v1::FetchRequest { space: space.to_bytes(), trees: vec![tree] });
    let refused = match patched.rpc.fetch(request).await {
        Ok(answers) => answers.into_inner().message().await.expect_err("gone"),
        Err(status) => status,
    };
    assert_eq!(code_of(&refused), Code::Forbidden);
    let mut again = patched.tail(space, removed.removed_at).await;
    assert_eq!(again.until_refused().await, (Vec::new(), Code::Forbidden));
    // From the start it is shown what it could read then, and no more.
    let mut again = patched.tail(space, Seq::ZERO).await;
    let (entries, why) = again.until_refused().await;
    assert_eq!((entries.last().map(|e| Seq(e.seq)), why), (Some(removed.removed_at), Code::Forbidden));
    // Who has another log than the node is told where this one ends, for it, and nothing of what came later.
    let mut parted = patched.tail(space, Seq(removed.removed_at.0 + 40)).await;
    assert_eq!(Seq(parted.rewound().await.node_seq), removed.removed_at);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_what_a_removed_member_signs_is_taken_from_nobody() -> Outcome {
    let (mut removed, ..) = Removed::new().await?;
    let space = removed.space.id();
    let after = removed.afterwards().await?;
    let (now, epoch) = (after.known.acl.head, after.known.acl.epoch);
    assert_eq!(epoch, Epoch(1));
    let old = &removed.before;
    let (tree, head) = (removed.own_tree, [removed.own_head]);
    let stone = |acl_head| {
        let body = sync_core::record::Tombstone { tree, author: old.account.id(), acl_head, at_ms: 8 };
        item(None, old.signed(&body, None))
    };
    let records = [
        // As of when it was a member.
        old.next(tree, &head, |_, _| {}),
        old.fresh().1,
        stone(old.known.acl.head),
        // As of its removal, with the keys that it had, and with the number of those that it has not.
        old.next(tree, &head, |change, _| change.acl_head = now),
        old.next(tree, &head, |change, _| (change.acl_head, change.epoch) = (now, epoch)),
        old.next(tree, &head, |change, _| change.epoch = epoch),
        old.first(&old.root(WriteRule::WRITERS), |change, _| (change.acl_head, change.epoch) = (now, epoch)),
        stone(now),
    ];
    let mut insider = removed.admin.patched(removed.node.address()).await;
    let standing = insider.standing(space).await;
    // It brings them itself, and a member who is in league with it brings them.
    assert_eq!(removed.patched.push(space, records.to_vec()).await?, [Said::Rejected(Code::Forbidden); 8]);
    assert_eq!(insider.push(space, records.to_vec()).await?, [Said::Rejected(Code::NotAMember); 8]);

    // Nor does it change who is in the space: as it was then, or as it is now.
    let rotate = AclContent::RotateKey { rotation: old.rotation(&[]).0 };
    for content in [AclContent::Leave, rotate] {
        for (pen, code) in [(old, Code::AclConflict), (&after, Code::NotAMember)] {
            let record = pen.signed(&pen.acl(content.clone()), None);
            let answered = removed.patched.append(space, record.clone()).await.expect_err("not a member");
            assert_eq!(code_of(&answered), code, "{content:?}");
            let said = insider.push(space, vec![item(None, record)]).await?;
            assert_eq!(said, [Said::Rejected(code)], "{content:?}");
        }
    }
    assert_eq!(insider.standing(space).await, standing, "nothing of all that is in the log");

    agree_in_order(&[&removed.space, &removed.stays_space]).await?;
    assert_eq!(object(&removed.stays_space, "note", "own")?.fields["text"], "before");
    assert_eq!(removed.space.objects().list("note")?.len(), 3);
    gone(&removed.theirs).await?;
    let refused = removed.theirs.objects().put("note", "own", json!({ "text": "again" })).await;
    assert_eq!(refused.expect_err("removed").code(), "NOT_A_MEMBER");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_no_invite_that_it_held_lets_it_read_or_come_back() -> Outcome {
    let (mut removed, ..) = Removed::new().await?;
    let space = removed.space.id();
    for (token, code) in [(&removed.open, Code::InviteRevoked), (&removed.approval, Code::InviteDead)] {
        // With its proof in hand it is shown no more than without.
        let secret = secret_of(token);
        let shown = removed.patched.read_acl(space, Some(&secret)).await;
        match shown {
            Ok(known) => assert_eq!(known.acl.records[&known.acl.head], removed.removed_at),
            Err(status) => assert_eq!(code_of(&status), code),
        }
        // Its own client asks in good faith.
        let refused = removed.member.client.join(token).await.expect_err("an old invite");
        assert_eq!(refused.code(), code.name(), "{refused:?}");
        assert_eq!(removed.member.client.joins()?, []);
    }
    // What it knows gives it no key of later on, whatever secrets it holds.
    let known = removed.patched.read_acl(space, None).await?;
    assert_eq!(known.acl.records[&known.acl.head], removed.removed_at);
    for secret in [secret_of(&removed.open), secret_of(&removed.approval)] {
        let mut ring = known.ring.clone();
        ring.hold_invite(secret);
        for entry in 0..2 {
            assert_eq!(ring.keys(Epoch(entry)).is_some(), entry == 0, "epoch {entry}");
        }
    }
    // The patched client asks all the same.
    let after = removed.afterwards().await?;
    let (open, approval) = (secret_of(&removed.open), secret_of(&removed.approval));
    let keys = removed.before.known.ring.keys(Epoch(0)).ok_or("the old keys")?;
    let own = sync_e2ee::Recipient::Account(after.account.id());
    let seal = sync_e2ee::seal_keys(Some(space), Epoch(1), own, keys, &mut rand::rng())?;
    let asked = [
        (AclContent::JoinByInvite { claim: after.claim(&open, Role::Writer), seals: vec![seal] }, Code::InviteRevoked),
        (AclContent::RequestJoin { claim: after.claim(&approval, Role::Writer) }, Code::InviteDead),
    ];
    let mut insider = removed.admin.patched(removed.node.address()).await;
    let mut now = Pen::of(&mut insider, space).await;
    now.account = after.account.clone();
    let standing = insider.standing(space).await;
    for (content, code) in asked {
        let record = now.signed(&now.acl(content), None);
        let refused = removed.patched.append(space, record.clone()).await.expect_err("an old invite");
        assert_eq!(code_of(&refused), code);
        assert_eq!(insider.push(space, vec![item(None, record)]).await?, [Said::Rejected(code)]);
    }
    assert_eq!(insider.standing(space).await, standing);

    // An invite that was made after the removal is another matter: it is meant.
    let again = removed.space.invite(InviteOptions::open()).await?.token;
    let back = removed.member.client.join(&again).await?.ready(PATIENCE).await?.remove(0);
    agree_in_order(&[&removed.space, &removed.stays_space, &back]).await?;
    assert_eq!(object(&back, "note", "later")?.fields["text"], "after");
    Ok(())
}

// ---- S52 ------------------------------------------------------------------------------------------------------------

/// A tree of the application's own, with a few changes.
async fn own_tree(space: &Space, texts: &[&'static str]) -> Outcome<TreeId> {
    let new = NewTree { data_type: "lines/1".to_owned(), write_rule: WriteRule::WRITERS };
    let write = |text: &&'static str| TreeWrite { parents: None, payload: text.as_bytes().into() };
    Ok(space.create_tree(new, texts.iter().map(write).collect()).await?.tree)
}

#[tokio::test(flavor = "multi_thread")]
async fn s52_many_offline_writes_of_a_removed_member_are_refused_and_can_be_taken_along() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let stays = TestClient::create("Stays", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let theirs = join(&space, &member, Role::Writer).await?;
    let stays_space = join(&space, &stays, Role::Writer).await?;
    theirs.objects().put("note", "known", json!({ "text": "before" })).await?;
    theirs.objects().put("note", "purged", json!({ "text": "its own" })).await?;
    let known_tree = own_tree(&theirs, &["one"]).await?;
    agree_in_order(&[&space, &theirs, &stays_space]).await?;

    relay.calls(|_| Calls::Refuse);
    relay.cut();
    space.remove_members(&[member.account()]).await?;
    stays_space.objects().put("note", "known", json!({ "text": "by who stays" })).await?;
    let objects = theirs.objects();
    for n in 0..20 {
        objects.put("note", &format!("new {n}"), json!({ "text": format!("offline {n}") })).await?;
        objects.put("note", "known", json!({ "text": format!("offline {n}") })).await?;
    }
    objects.delete("note", "new 0").await?;
    objects.purge("note", "purged").await?;
    let tree = own_tree(&theirs, &["two", "three"]).await?;
    let more = vec![TreeWrite { parents: None, payload: "four".into() }];
    theirs.append(known_tree, "lines/1".to_owned(), more).await?;
    let written = 20 + 20 + 1 + 1 + 2 + 1;
    assert_eq!(theirs.status()?.pending, written);

    relay.heal();
    member.reconnect();
    gone(&theirs).await?;
    let refused = theirs.refused()?;
    assert_eq!(refused.len(), written, "{refused:?}");
    assert!(refused.iter().all(|w| w.code == "NOT_A_MEMBER"), "{refused:?}");
    assert_eq!(theirs.status()?.pending, 0);

    // All of it can be taken along.
    let texts: BTreeSet<_> = refused
        .iter()
        .filter_map(|w| {
            let RefusedContent::Object { id, fields, .. } = &w.content else { return None };
            if id == "known" { fields["text"].as_str() } else { None }
        })
        .collect();
    assert_eq!(texts.len(), 20, "{texts:?}");
    let purges = refused.iter().filter(|w| matches!(&w.content, RefusedContent::Purge { id, .. } if id == "purged"));
    assert_eq!(purges.count(), 1);
    let lines: Vec<_> = refused
        .iter()
        .filter_map(|w| {
            let RefusedContent::Foreign { payload, data_type } = &w.content else { return None };
            Some((w.tree, data_type.as_str(), &payload[..]))
        })
        .collect();
    let line = |tree, text: &'static str| (tree, "lines/1", text.as_bytes());
    assert_eq!(lines, [line(tree, "two"), line(tree, "three"), line(known_tree, "four")]);

    // What is shown there is what was agreed while it was a member; elsewhere nobody ever sees the rest.
    assert_eq!(object(&theirs, "note", "known")?.fields["text"], "before");
    assert_eq!(object(&theirs, "note", "purged")?.fields["text"], "its own");
    agree_in_order(&[&space, &stays_space]).await?;
    for space in [&space, &stays_space] {
        assert_eq!(object(space, "note", "known")?.fields["text"], "by who stays");
        assert_eq!(object(space, "note", "purged")?.fields["text"], "its own");
        assert_eq!(space.objects().list("note")?.len(), 2);
        assert!(space.tree(tree)?.is_none());
        assert_eq!(space.tree(known_tree)?.ok_or("there")?.changes()?.len(), 1);
    }
    // It is still all there in the next process.
    let member = member.reopen().await;
    assert_eq!(member.space(space.id())?.refused()?, refused);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn s52_honest_writes_from_before_two_removals_land_with_the_new_keys() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let honest = TestClient::create("Honest", relay.address()).await;
    let theirs = join(&space, &honest, Role::Writer).await?;
    let mut leaving = Vec::new();
    for name in ["One", "Two"] {
        let client = TestClient::create(name, node.address()).await;
        leaving.push((join(&space, &client, Role::Writer).await?, client));
    }
    theirs.objects().put("note", "both", json!({ "a": 0, "b": 0 })).await?;
    let old_tree = own_tree(&theirs, &["one"]).await?;
    agree_in_order(&[&space, &theirs]).await?;

    relay.calls(|_| Calls::Refuse);
    relay.cut();
    let mut written = BTreeSet::from(["both".to_owned()]);
    for (round, (_, client)) in leaving.iter().enumerate() {
        for n in 0..10 {
            let id = format!("{round} {n}");
            theirs.objects().put("note", &id, json!({ "text": "offline" })).await?;
            theirs.objects().put("note", &id, json!({ "more": n })).await?;
            written.insert(id);
        }
        theirs.objects().put("note", "both", json!({ "a": round + 1 })).await?;
        let line = vec![TreeWrite { parents: None, payload: "more".into() }];
        theirs.append(old_tree, "lines/1".to_owned(), line).await?;
        space.remove_members(&[client.account()]).await?;
        space.objects().put("note", "both", json!({ "b": round + 1 })).await?;
    }
    assert_eq!(space.acl()?.epoch, Epoch(2));
    assert_eq!(theirs.acl()?.epoch, Epoch(0), "it knows of nothing yet");
    relay.heal();
    honest.reconnect();
    agree_in_order(&[&space, &theirs]).await?;
    let ids: BTreeSet<_> = space.objects().list("note")?.into_iter().map(|o| o.id).collect();
    assert_eq!(ids, written);
    let both = object(&space, "note", "both")?;
    assert_eq!((&both.fields["a"], &both.fields["b"]), (&json!(2), &json!(2)));
    assert_eq!(space.tree(old_tree)?.ok_or("there")?.changes()?.len(), 3);
    for (gone_space, _) in &leaving {
        gone(gone_space).await?;
        assert!(gone_space.objects().get("note", "0 0")?.is_none(), "written with keys that it never got");
    }
    Ok(())
}

// ---- S53 ------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn s53_three_rotations_while_five_are_away() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let mut away = Vec::new();
    for n in 0..5 {
        let client = TestClient::create(&format!("Member {n}"), relay.address()).await;
        let theirs = client.join(&token).await?.ready(PATIENCE).await?.remove(0);
        theirs.await_synced().await?;
        away.push((client, theirs));
    }
    relay.calls(|_| Calls::Refuse);
    relay.cut();
    for epoch in 1..=3 {
        space.rotate_keys().await?;
        assert_eq!(space.acl()?.epoch, Epoch(epoch));
        space.objects().put("note", &format!("epoch {epoch}"), json!({ "n": epoch })).await?;
    }
    // Two of them end while they are away; two write meanwhile.
    for (n, (_, theirs)) in away.iter().enumerate().take(2) {
        theirs.objects().put("note", &format!("away {n}"), json!({ "n": n })).await?;
    }
    let mut all = Vec::new();
    for (n, (client, theirs)) in away.into_iter().enumerate() {
        if n % 2 == 0 {
            all.push((client, theirs));
        } else {
            drop(theirs);
            let client = client.reopen().await;
            let theirs = client.space(space.id())?;
            all.push((client, theirs));
        }
    }
    relay.heal();
    for (n, (client, theirs)) in all.iter().enumerate() {
        client.connected(PATIENCE).await?;
        theirs.await_synced_within(PATIENCE).await?;
        assert_eq!(theirs.acl()?.epoch, Epoch(3));
        theirs.objects().put("note", &format!("back {n}"), json!({ "n": n })).await?;
    }
    let mut spaces = vec![&space];
    spaces.extend(all.iter().map(|(_, theirs)| theirs));
    agree_in_order(&spaces).await?;
    assert_eq!(space.objects().list("note")?.len(), 3 + 2 + 5);

    // The open invite got all the new keys, too.
    let late = TestClient::create("Late", node.address()).await;
    let late_space = late.join(&token).await?.ready(PATIENCE).await?.remove(0);
    agree_in_order(&[&space, &late_space]).await?;
    Ok(())
}
