//! Attacks that were thought of, each against an honest node and, where a node could let it through, against honest clients of a
//! node that lies.

use client_sdk::{Code, NotSyncedCode, ObjectType, Reason, ReasonCode, Role, Space, SyncState, TreeId, Who, WriteRule};
use serde_json::json;
use sync_core::acl::AclReject;
use sync_core::ids::{ChangeId, Seq};
use sync_core::log::{Position, Reject};
use sync_core::record::{AclContent, SpaceOptions, Tombstone};
use sync_proto::v1;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, heads, join, object, seen, until};
use sync_tests::hostile::{Hostile, Pen, Person, Said, code_of, id_of, item, slip_in};
use sync_tests::relay::{Frame, Relay};

/// An admin, a writer that turns bad, and a bystander; the writer has written an object of its own and one of everybody's.
struct Stage {
    node: NodeProcess,
    admin: Person,
    bad: Person,
    bystander: TestClient,
    space: Space,
    watching: Space,
    patched: Hostile,
    /// As of when the writer was a member.
    pen: Pen,
    own: TreeId,
    shared: TreeId,
}

impl Stage {
    async fn new() -> Outcome<Self> {
        let node = NodeProcess::start_with(&["--plaintext"]);
        let admin = Person::new("Admin", node.address()).await;
        let bad = Person::new("Bad", node.address()).await;
        let bystander = TestClient::create("Bystander", node.address()).await;
        let space = admin.client.create_space("Club").await?;
        let theirs = join(&space, &bad.client, Role::Writer).await?;
        let watching = join(&space, &bystander, Role::Writer).await?;
        space.objects().put("note", "shared", json!({ "text": "agreed" })).await?;
        theirs.objects().put("note", "own", json!({ "text": "mine" })).await?;
        for space in [&space, &theirs, &watching, &space] {
            space.await_synced().await?;
        }
        let own = theirs.objects().tree_id("note", "own")?;
        let shared = theirs.objects().tree_id("note", "shared")?;
        let mut patched = bad.patched(node.address()).await;
        let pen = Pen::of(&mut patched, space.id()).await;
        Ok(Self { node, admin, bad, bystander, space, watching, patched, pen, own, shared })
    }

    fn heads_of(&self, tree: TreeId) -> Outcome<Vec<ChangeId>> {
        Ok(self.watching.tree(tree)?.ok_or("the tree")?.snapshot()?.heads.iter().copied().collect())
    }

    /// Fields of a note that exists, as the bad one writes them.
    fn note(&self, id: &str, tree: TreeId, parents: &[ChangeId], text: &str) -> Outcome<v1::PushItem> {
        let root = self.pen.object_root("note", id, WriteRule::WRITERS);
        assert_eq!(TreeId::from(root.id()), tree);
        Ok(self.pen.object(("note", id), &root, parents, json!({ "text": text }), |_| {}))
    }

    /// A note that does not exist yet.
    fn new_note(&self, id: &str, text: &str) -> (TreeId, v1::PushItem) {
        let root = self.pen.object_root("note", id, WriteRule::WRITERS);
        (root.id().into(), self.pen.object(("note", id), &root, &[], json!({ "text": text }), |_| {}))
    }

    async fn reconnect(&self) -> Outcome {
        for client in [&self.admin.client, &self.bystander] {
            client.connected(PATIENCE).await?;
        }
        Ok(())
    }
}

/// The log here up to an entry, and that it ends where the node signs that it does.
async fn chain_verifies(space: &Space, patched: &mut Hostile) -> Outcome {
    let standing = patched.standing(space.id()).await;
    let known = patched.read(space.id()).await;
    let end = known.ids.iter().fold(Position::start(&space.id()), |end, id| end.after(id));
    assert_eq!((end.seq, end.chain), (standing.seq, standing.chain), "every entry is where the node signed it");
    let receipt = space.receipt()?.ok_or("a receipt")?;
    assert_eq!((receipt.body().seq, receipt.body().chain), (end.seq, end.chain));
    assert_eq!(space.status()?.seq, end.seq.0);
    Ok(())
}

/// What a replica says of entries that a node should not have logged: so many, by name, as the node's fault, in every answer.
async fn accused(space: &Space, entries: usize) -> Outcome {
    until(space, || Ok((space.status()?.quarantined == entries).then_some(()))).await?;
    let status = space.status()?;
    assert_eq!(status.state, SyncState::Attention);
    let reasons = space.explain()?;
    let named = Reason::find(&reasons, ReasonCode::Quarantined).map(|r| r.count);
    assert_eq!(named, Some(entries as u64), "{reasons:?}");
    let failed = space.await_synced().await.expect_err("the node is at fault");
    assert_eq!(failed.code, NotSyncedCode::NodeFault, "{failed:?}");
    assert_eq!(failed.residue.iter().filter(|r| r.code == ReasonCode::Quarantined).count(), entries, "{failed:?}");
    Ok(())
}

// ---- back-dating ----------------------------------------------------------------------------------------------------

/// A removed member signs as of when it was one. The node refuses it, whoever brings it.
#[tokio::test(flavor = "multi_thread")]
async fn back_dating_is_refused_by_the_node() -> Outcome {
    let mut stage = Stage::new().await?;
    let heads = stage.heads_of(stage.own)?;
    let items = vec![
        stage.note("own", stage.own, &heads, "back-dated")?,
        stage.new_note("new", "back-dated").1,
        item(None, stage.pen.tombstone(stage.own)),
    ];
    stage.space.remove_members(&[stage.bad.client.account()]).await?;
    let mut insider = stage.admin.patched(stage.node.address()).await;
    let before = insider.standing(stage.space.id()).await;
    assert_eq!(stage.patched.push(stage.space.id(), items.clone()).await?, [Said::Rejected(Code::Forbidden); 3]);
    assert_eq!(insider.push(stage.space.id(), items).await?, [Said::Rejected(Code::NotAMember); 3]);
    assert_eq!(insider.standing(stage.space.id()).await, before);
    Ok(())
}

/// A node in league with the removed member logs it all the same. Honest clients keep it for the chain's sake, show none of it,
/// say whose fault it is, and go on with everything else.
#[tokio::test(flavor = "multi_thread")]
async fn back_dating_through_a_lying_node_is_seen_and_never_shown() -> Outcome {
    let mut stage = Stage::new().await?;
    let [own, shared] = [stage.heads_of(stage.own)?, stage.heads_of(stage.shared)?];
    let (new_tree, new) = stage.new_note("new", "back-dated");
    let on_own = stage.note("own", stage.own, &own, "back-dated")?;
    let on_shared = stage.note("shared", stage.shared, &shared, "back-dated")?;
    // What builds on it, also beside something good.
    let child = stage.note("shared", stage.shared, &[id_of(&on_shared)], "on top of it")?;
    let stone = item(None, stage.pen.tombstone(stage.own));
    let bad = [on_own, on_shared, child, new, stone];
    stage.space.remove_members(&[stage.bad.client.account()]).await?;
    for space in [&stage.space, &stage.watching] {
        space.await_synced().await?;
    }
    slip_in(&mut stage.node, stage.space.id(), bad.to_vec()).await;
    stage.reconnect().await?;

    for space in [&stage.space, &stage.watching] {
        accused(space, bad.len()).await?;
        assert_eq!(object(space, "note", "own")?.fields["text"], "mine");
        assert_eq!(object(space, "note", "shared")?.fields["text"], "agreed");
        assert!(space.objects().get("note", "new")?.is_none());
        assert!(space.tree(new_tree)?.is_none(), "a tree without a good change is none");
        assert_eq!(space.objects().list("note")?.len(), 2);
        assert_eq!(space.tree(stage.shared)?.ok_or("there")?.changes()?.len(), 1);
    }

    // Everything else goes on: the same objects, that name, and others.
    stage.watching.objects().put("note", "shared", json!({ "text": "still agreed" })).await?;
    stage.space.objects().put("note", "new", json!({ "text": "honest" })).await?;
    let written = stage.space.objects().put("note", "other", json!({ "text": "honest" })).await?.ok_or("a write")?;
    stage.space.await_durable(written).await?;
    let written = stage.watching.objects().put("note", "last", json!({ "n": 1 })).await?.ok_or("a write")?;
    let receipt = stage.watching.await_durable(written).await?;
    until(&stage.space, || Ok((stage.space.status()?.seq >= receipt.body().seq.0).then_some(()))).await?;
    assert_eq!(seen(&stage.space)?, seen(&stage.watching)?);
    assert_eq!(heads(&stage.space)?, heads(&stage.watching)?);
    assert_eq!(object(&stage.space, "note", "shared")?.fields["text"], "still agreed");
    assert_eq!(object(&stage.watching, "note", "new")?.fields["text"], "honest");
    let mut insider = stage.admin.patched(stage.node.address()).await;
    accused(&stage.space, bad.len()).await?;
    chain_verifies(&stage.space, &mut insider).await?;

    // Who comes later, and who comes back, says the same.
    let late = TestClient::create("Late", stage.node.address()).await;
    let late_space = join(&stage.space, &late, Role::Reader).await?;
    accused(&late_space, bad.len()).await?;
    assert_eq!(seen(&late_space)?, seen(&stage.space)?);
    let bystander = stage.bystander.reopen().await;
    let again = bystander.space(stage.space.id())?;
    accused(&again, bad.len()).await?;
    assert_eq!(seen(&again)?, seen(&stage.space)?);
    Ok(())
}

// ---- a resurrected delete -------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn nothing_brings_a_purged_tree_back() -> Outcome {
    let mut stage = Stage::new().await?;
    let head = stage.heads_of(stage.shared)?;
    let on_top = stage.note("shared", stage.shared, &head, "back again")?;
    let first = stage.pen.object_root("note", "shared", WriteRule::WRITERS);
    let anew = stage.pen.object(("note", "shared"), &first, &[], json!({ "text": "anew" }), |_| {});
    let purge = stage.space.objects().purge("note", "shared").await?;
    stage.space.await_durable(purge).await?;
    stage.watching.await_synced().await?;
    stage.pen = Pen::of(&mut stage.patched, stage.space.id()).await;
    let now = stage.note("shared", stage.shared, &head, "as of now")?;
    let again = item(None, stage.pen.tombstone(stage.shared));
    let bad = vec![on_top, anew, now, again];
    let before = stage.patched.standing(stage.space.id()).await;
    assert_eq!(stage.patched.push(stage.space.id(), bad.clone()).await?, [Said::Rejected(Code::TreePurged); 4]);
    assert_eq!(stage.patched.standing(stage.space.id()).await, before);

    // Through a node that lies.
    slip_in(&mut stage.node, stage.space.id(), bad.clone()).await;
    stage.reconnect().await?;
    let late = TestClient::create("Late", stage.node.address()).await;
    let late_space = join(&stage.space, &late, Role::Reader).await?;
    for space in [&stage.space, &stage.watching, &late_space] {
        accused(space, bad.len()).await?;
        assert!(space.objects().get("note", "shared")?.is_none());
        assert_eq!(space.objects().list("note")?.len(), 1);
        let refused = space.objects().put("note", "shared", json!({ "text": "no" })).await.expect_err("purged");
        assert!(["TREE_PURGED", "NOT_A_WRITER"].contains(&refused.code()), "{refused:?}");
        assert_eq!(object(space, "note", "own")?.fields["text"], "mine");
    }
    let mut insider = stage.admin.patched(stage.node.address()).await;
    chain_verifies(&stage.space, &mut insider).await?;
    Ok(())
}

// ---- tombstones -----------------------------------------------------------------------------------------------------

/// A tombstone by who may not end the tree, one that is replayed for another tree or in another space, and one that stands in
/// the log already.
#[tokio::test(flavor = "multi_thread")]
async fn tombstones_of_others_and_replayed_ones() -> Outcome {
    let mut stage = Stage::new().await?;
    // Another's tree, as a writer.
    let foreign = item(None, stage.pen.tombstone(stage.shared));
    let said = stage.patched.push(stage.space.id(), vec![foreign.clone()]).await?;
    assert_eq!(said, [Said::Rejected(Code::WriteRule)]);
    // Its own, which it may; and the same record again changes nothing.
    let own = item(None, stage.pen.tombstone(stage.own));
    assert_eq!(stage.patched.push(stage.space.id(), vec![own.clone()]).await?, [Said::Accepted]);
    let standing = stage.patched.standing(stage.space.id()).await;
    assert_eq!(stage.patched.push(stage.space.id(), vec![own.clone(), own.clone()]).await?, [Said::Known; 2]);
    // Bent to another tree: the signature says no.
    let mut bent = own.record.clone().ok_or("a record")?;
    let body =
        Tombstone { tree: stage.shared, author: stage.pen.account.id(), acl_head: stage.pen.known.acl.head, at_ms: 7 };
    bent.body = stage.pen.signed(&body, None).body;
    assert_eq!(
        stage.patched.push(stage.space.id(), vec![item(None, bent)]).await?,
        [Said::Rejected(Code::BadSignature)]
    );
    // In another space of the same people, where there is no such tree.
    let other = stage.admin.client.create_space("Other").await?;
    join(&other, &stage.bad.client, Role::Admin).await?;
    let said = stage.patched.push(other.id(), vec![own.clone()]).await?;
    assert_eq!(said, [Said::Rejected(Code::MissingRoot)]);
    assert_eq!(stage.patched.standing(stage.space.id()).await, standing);
    for space in [&stage.space, &stage.watching] {
        space.await_synced().await?;
        assert!(space.objects().get("note", "own")?.is_none());
        assert_eq!(object(space, "note", "shared")?.fields["text"], "agreed");
    }

    // Through a node that lies: a foreign one ends nothing.
    slip_in(&mut stage.node, stage.space.id(), vec![foreign]).await;
    stage.reconnect().await?;
    for space in [&stage.space, &stage.watching] {
        accused(space, 1).await?;
        assert_eq!(object(space, "note", "shared")?.fields["text"], "agreed");
    }
    let write =
        stage.watching.objects().put("note", "shared", json!({ "text": "lives on" })).await?.ok_or("a write")?;
    stage.watching.await_durable(write).await?;
    Ok(())
}

/// A record that stands in the log already cannot stand there again: the space stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_logs_a_record_twice_stops_the_space() -> Outcome {
    let mut stage = Stage::new().await?;
    let (_, good) = stage.new_note("once", "good");
    assert_eq!(stage.patched.push(stage.space.id(), vec![good.clone()]).await?, [Said::Accepted]);
    stage.watching.await_synced().await?;
    let again = v1::PushItem { root: None, ..good };
    slip_in(&mut stage.node, stage.space.id(), vec![again]).await;
    stage.bystander.connected(PATIENCE).await?;
    faulted(&stage.watching).await?;
    assert_eq!(object(&stage.watching, "note", "once")?.fields["text"], "good");
    Ok(())
}

// ---- the ACL --------------------------------------------------------------------------------------------------------

/// The space is stopped, says so in every answer, and what was read before can be read.
async fn faulted(space: &Space) -> Outcome {
    until(space, || Ok(space.explain()?.iter().any(|r| r.code == ReasonCode::Faulted).then_some(()))).await?;
    assert_eq!(space.status()?.state, SyncState::Attention);
    let failed = space.await_synced().await.expect_err("the node is at fault");
    assert_eq!(failed.code, NotSyncedCode::NodeFault, "{failed:?}");
    assert!(failed.residue.iter().any(|r| r.code == ReasonCode::Faulted), "{failed:?}");
    Ok(())
}

/// An ACL record by somebody who may not make it: the node refuses it; a node that lets it through stops the space for those who
/// get it, before anything of it counts.
#[tokio::test(flavor = "multi_thread")]
async fn an_acl_record_without_the_right_stops_the_space() -> Outcome {
    let mut stage = Stage::new().await?;
    let space = stage.space.id();
    stage.pen = Pen::of(&mut stage.patched, space).await;
    let own = stage.pen.account.id();
    let crown = AclContent::ChangeRole { account: own, role: Role::Admin, seal: None };
    let contents = [
        (crown.clone(), Code::RoleTooLow),
        (AclContent::TransferOwnership { account: own }, Code::RoleTooLow),
        (AclContent::SetOptions { options: SpaceOptions::default() }, Code::RoleTooLow),
        (AclContent::RotateKey { rotation: stage.pen.rotation(&[]).0 }, Code::RoleTooLow),
        (AclContent::DeleteSpace, Code::RoleTooLow),
        (AclContent::SetHome { authority: sync_tests::hostile::some_authority() }, Code::RoleTooLow),
    ];
    let before = stage.patched.standing(space).await;
    for (content, code) in contents {
        let record = stage.pen.signed(&stage.pen.acl(content), None);
        let refused = stage.patched.append(space, record.clone()).await.expect_err("a writer");
        assert_eq!(code_of(&refused), code);
        assert_eq!(stage.patched.push(space, vec![item(None, record)]).await?, [Said::Rejected(code)]);
    }
    assert_eq!(stage.patched.standing(space).await, before);

    // A node that lies sends it to one of them, where the next entry belongs.
    let relay = Relay::start(stage.node.address()).await;
    let victim = TestClient::create("Victim", relay.address()).await;
    let victims = join(&stage.space, &victim, Role::Writer).await?;
    victims.await_synced().await?;
    stage.pen = Pen::of(&mut stage.patched, space).await;
    let crown = stage.pen.signed(&stage.pen.acl(crown), None);
    relay.edits(move |frame| {
        if let Frame::Update(update) = frame
            && update.space == space.to_bytes()
            && let Some(first) = update.entries.first_mut()
        {
            first.entry = Some(v1::log_entry::Entry::Record(crown.clone()));
        }
    });
    let seq = victims.status()?.seq;
    stage.space.objects().put("note", "next", json!({ "text": "an honest entry" })).await?;
    faulted(&victims).await?;
    let reasons = victims.explain()?;
    let text = AclReject::RoleTooLow { act: "ChangeRole", role: Role::Writer };
    let text = Reject::from(text).to_string();
    let said = reasons.iter().find(|r| r.code == ReasonCode::Faulted).ok_or("faulted")?;
    assert!(said.detail.contains(&text) && said.detail.contains(&Seq(seq + 1).to_string()), "{said:?}");
    assert_eq!(victims.status()?.seq, seq, "nothing of it is in the log here");
    assert_eq!(victims.acl()?.role(&own), Some(Role::Writer));
    assert_eq!(object(&victims, "note", "shared")?.fields["text"], "agreed");
    // It goes on as soon as the node tells the truth.
    relay.heal();
    victim.reconnect();
    relay.cut();
    until(&victims, || {
        let stopped = victims.explain()?.iter().any(|r| r.code == ReasonCode::Faulted);
        Ok(if stopped { None } else { victims.objects().get("note", "next")? })
    })
    .await?;
    victims.await_synced_within(PATIENCE).await?;
    assert_eq!(seen(&victims)?, seen(&stage.space)?);
    Ok(())
}

// ---- other members' objects through a lying node --------------------------------------------------------------------

/// A change against the write rule, by a member in good standing, that a node logged.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_against_the_write_rule_is_quarantined() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let card = || {
        ObjectType::new("card").rule(|id| WriteRule { who: id.parse().map_or(Who::Admins, Who::Account), once: false })
    };
    let admin = Person::with(node.address(), |config| config.object_type(card())).await;
    let bad = Person::with(node.address(), |config| config.object_type(card())).await;
    let space = admin.client.create_space("Club").await?;
    let theirs = join(&space, &bad.client, Role::Writer).await?;
    let own = admin.client.own();
    space.objects().put("card", &own, json!({ "text": "hers" })).await?;
    for space in [&space, &theirs] {
        space.await_synced().await?;
    }
    let tree = space.objects().tree_id("card", &own)?;
    let head: Vec<_> = space.tree(tree)?.ok_or("there")?.snapshot()?.heads.iter().copied().collect();
    let mut patched = bad.patched(node.address()).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let rule = WriteRule { who: Who::Account(admin.client.account()), once: false };
    let root = pen.object_root("card", &own, rule);
    let forged = pen.object(("card", &own), &root, &head, json!({ "text": "his" }), |_| {});
    let said = patched.push(space.id(), vec![forged.clone()]).await?;
    assert_eq!(said, [Said::Rejected(Code::WriteRule)]);
    slip_in(&mut node, space.id(), vec![forged]).await;
    for (client, space) in [(&admin.client, &space), (&bad.client, &theirs)] {
        client.connected(PATIENCE).await?;
        accused(space, 1).await?;
        assert_eq!(object(space, "card", &own)?.fields["text"], "hers");
    }
    Ok(())
}
