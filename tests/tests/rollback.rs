//! A node that went back in time is caught, with evidence that anybody can judge; its clients give it back what it lost, and
//! who did nothing wrong is accused of nothing.

use std::process::Command;
use std::time::Duration;

use client_sdk::local::{self, Listen, Service};
use client_sdk::{
    AccusationKind, AccusationState, AclChange, Client, Compared, Evidence, NotSyncedCode, Reason, ReasonCode, Role,
    SignedReceipt, Space, SyncState, WriteState, judge,
};
use serde_json::{Value, json};
use sync_core::ids::Seq;
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::client_client::ClientClient;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, binary, join, object, until};
use sync_tests::hostile::{Hostile, Person};
use sync_tests::relay::{Calls, Fate, Frame, Relay};

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);

/// Writes an object, and has the node sign that it holds it.
async fn certified(space: &Space, id: &str) -> Outcome<SignedReceipt> {
    let write = space.objects().put("note", id, json!({ "text": id })).await?.ok_or("a write")?;
    Ok(space.await_durable_within(write, PATIENCE).await?)
}

/// Each receipt holds for the log of each replica.
async fn hold(receipts: &[&SignedReceipt], spaces: &[&Space]) -> Outcome {
    for space in spaces {
        for receipt in receipts {
            assert_eq!(space.compare_receipt(receipt).await?, Compared::Same, "at entry {}", receipt.body().seq);
        }
    }
    Ok(())
}

fn notes(space: &Space) -> Outcome<Vec<String>> {
    let mut found: Vec<_> = space.objects().list("note")?.into_iter().map(|note| note.id).collect();
    found.sort();
    Ok(found)
}

fn accused(space: &Space) -> Outcome<Vec<(AccusationKind, AccusationState)>> {
    Ok(space.accusations()?.into_iter().map(|a| (a.kind, a.state)).collect())
}

/// Runs `headwater` without any account: exit code, and what it printed as JSON.
fn offline(arguments: &[&str]) -> (Option<i32>, Value) {
    let nowhere = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(binary("headwater"));
    command.env_clear().env("HOME", nowhere.path()).arg("--json").args(arguments);
    let output = command.output().expect("the program runs");
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json)
}

/// Judged by a program that knows nobody.
fn judged(space: &Space, kind: &str) -> Outcome {
    let accusation = space.accusations()?.into_iter().next_back().ok_or("an accusation")?;
    let evidence = accusation.evidence.ok_or_else(|| format!("no evidence: {}", accusation.detail))?;
    judge(&evidence)?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), evidence.to_text())?;
    let (code, json) = offline(&["receipt", "verify", &file.path().display().to_string()]);
    assert_eq!((code, &json["kind"], &json["verified"]), (Some(0), &json!(kind), &json!(true)), "{json}");
    let damaged: String = evidence.to_text().chars().take(400).collect();
    std::fs::write(file.path(), damaged)?;
    let (code, _) = offline(&["receipt", "verify", &file.path().display().to_string()]);
    assert_eq!(code, Some(5), "half a bundle proves nothing");
    Ok(())
}

// ---- lost, and brought back -----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_node_set_back_to_an_old_copy_is_accused_and_takes_back_what_it_lost() -> Outcome {
    let mut node = NodeProcess::start();
    let client = TestClient::create("Ada", node.address()).await;
    let space = client.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    let old = node.copy_store();
    node.restart();
    let receipt = certified(&space, "acknowledged").await?;
    node.kill();
    node.put_back(&old);
    let mut events = space.events();
    node.restart();

    space.await_synced_within(PATIENCE).await?;
    hold(&[&receipt], &[&space]).await?;
    assert_eq!(accused(&space)?, [(AccusationKind::Rollback, AccusationState::MadeGood)]);
    judged(&space, "rollback")?;
    let told = async {
        loop {
            match events.next().await {
                Some(client_sdk::Event::NodeAccused { kind, .. }) => return kind,
                Some(_) => {}
                None => panic!("the feed ended before the accusation"),
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, told).await?, AccusationKind::Rollback);
    assert_eq!(space.explain()?, [], "made good, and kept as evidence");

    let id = space.id();
    let client = client.reopen().await;
    let space = client.space(id)?;
    assert_eq!(accused(&space)?, [(AccusationKind::Rollback, AccusationState::MadeGood)], "it survives a restart");
    judged(&space, "rollback")?;
    let other = TestClient::create("Bob", node.address()).await;
    let of_bob = join(&space, &other, Role::Writer).await?;
    agree(&[&space, &of_bob]).await?;
    hold(&[&receipt], &[&of_bob]).await
}

/// Only its owner can found a space again. A member to whom the node had signed for it accuses the node all the same, once, and
/// is let in again when the owner has been there.
#[tokio::test(flavor = "multi_thread")]
async fn a_space_that_is_gone_is_missed_by_a_member_and_founded_again_by_its_owner() -> Outcome {
    let mut node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let bob = TestClient::create("Bob", node.address()).await;
    node.kill();
    let empty = node.copy_store();
    node.restart();
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob, Role::Writer).await?;
    agree(&[&space, &of_bob]).await?;
    let receipts = [certified(&space, "of-ada").await?, certified(&of_bob, "of-bob").await?];
    agree(&[&space, &of_bob]).await?;
    let ada = ada.shut().await;
    node.kill();
    node.put_back(&empty);
    node.restart();

    let is_missed = || Ok((!of_bob.accusations()?.is_empty()).then_some(()));
    until(&of_bob, is_missed).await?;
    assert_eq!(accused(&of_bob)?, [(AccusationKind::Rollback, AccusationState::Open)]);
    let found = of_bob.accusations()?.pop().ok_or("an accusation")?.id;
    assert!(of_bob.dismiss_accusation(found).await?);
    let id = space.id();
    let bob = bob.reopen().await;
    let of_bob = bob.space(id)?;
    let is_refused = || Ok(of_bob.explain()?.iter().any(|r| r.code == ReasonCode::NotRegistered).then_some(()));
    until(&of_bob, is_refused).await?;
    assert_eq!(accused(&of_bob)?, [(AccusationKind::Rollback, AccusationState::Dismissed)], "it is said once");

    let ada = TestClient::open(ada).await;
    let space = ada.space(id)?;
    let is_let_in = || Ok(of_bob.explain()?.is_empty().then_some(()));
    until(&of_bob, is_let_in).await?;
    agree(&[&space, &of_bob]).await?;
    hold(&receipts.iter().collect::<Vec<_>>(), &[&space, &of_bob]).await?;
    for space in [&space, &of_bob] {
        assert_eq!(notes(space)?, ["of-ada", "of-bob"]);
        assert_eq!(space.explain()?, []);
    }
    Ok(())
}

/// As long as the node has not taken back what it signed for, the space says so, and so does each of its trees.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_made_good_yet_is_a_reason_of_the_space_and_of_its_trees() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let client = TestClient::create("Ada", relay.address()).await;
    let space = client.create_space("Club").await?;
    certified(&space, "kept").await?;
    let kept = space.objects().tree_id("note", "kept")?;
    node.kill();
    let old = node.copy_store();
    node.restart();
    certified(&space, "lost").await?;
    assert_eq!((space.explain()?, space.explain_tree(kept)?), (vec![], vec![]));
    node.kill();
    node.put_back(&old);
    relay.calls(|name| if name == "Repush" { Calls::HangBefore } else { Calls::Forward });
    node.restart();

    let whole = [ReasonCode::RolledBack, ReasonCode::Rewound];
    let said = |reasons: &[Reason]| whole.iter().all(|code| Reason::find(reasons, *code).is_some());
    until(&space, || Ok(said(&space.explain()?).then_some(()))).await?;
    assert_eq!(accused(&space)?, [(AccusationKind::Rollback, AccusationState::Open)]);
    let status = space.tree_status(kept)?;
    assert!(said(&status.reasons) && status.state == SyncState::Attention, "{status:?}");
    let no = space.await_synced_within(A_MOMENT).await.expect_err("the node has less than we");
    assert!(said(&no.residue), "{no:?}");

    relay.heal();
    space.await_synced_within(PATIENCE).await?;
    assert_eq!((space.explain()?, space.explain_tree(kept)?), (vec![], vec![]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_more_and_less_of_what_was_lost_bring_it_back_together() -> Outcome {
    let mut node = NodeProcess::start();
    let (ada, bob) = (TestClient::create("Ada", node.address()).await, TestClient::create("Bob", node.address()).await);
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob, Role::Writer).await?;
    agree(&[&space, &of_bob]).await?;
    node.kill();
    let old = node.copy_store();
    node.restart();
    let mut receipts = Vec::new();
    for n in 0..5 {
        receipts.push(certified(&space, &format!("a{n}")).await?);
        receipts.push(certified(&of_bob, &format!("b{n}")).await?);
    }
    agree(&[&space, &of_bob]).await?;
    let id = space.id();
    let shorter = bob.shut().await;
    for n in 5..9 {
        receipts.push(certified(&space, &format!("a{n}")).await?);
    }
    node.kill();
    node.put_back(&old);
    node.restart();

    let bob = TestClient::open(shorter).await;
    let of_bob = bob.space(id)?;
    agree(&[&space, &of_bob]).await?;
    hold(&receipts.iter().collect::<Vec<_>>(), &[&space, &of_bob]).await?;
    assert_eq!(notes(&space)?.len(), 14);
    for space in [&space, &of_bob] {
        let all = accused(space)?;
        assert!(!all.iter().any(|(_, state)| *state == AccusationState::Open), "{all:?}");
        assert_eq!(space.lost(0, 9)?, []);
    }
    assert!(!accused(&space)?.is_empty(), "who had seen more than the node has noticed it");
    Ok(())
}

/// Who is in the story of a restore, and what the node had signed to them.
struct Story {
    node: NodeProcess,
    ada: TestClient,
    space: Space,
    bob: tempfile::TempDir,
    carl: TestClient,
    dora: TestClient,
    eve: tempfile::TempDir,
    receipts: Vec<SignedReceipt>,
}

/// Eve is away all the time. After the backup, Ada writes, removes Carl, rotates the keys twice, purges, and lets Dora in; Bob
/// and Dora write.
async fn story(backup: &std::path::Path) -> Outcome<Story> {
    let node = NodeProcess::start();
    let [ada, bob, carl, dora, eve] = [
        TestClient::create("Ada", node.address()).await,
        TestClient::create("Bob", node.address()).await,
        TestClient::create("Carl", node.address()).await,
        TestClient::create("Dora", node.address()).await,
        TestClient::create("Eve", node.address()).await,
    ];
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob, Role::Writer).await?;
    let of_carl = join(&space, &carl, Role::Writer).await?;
    let of_eve = join(&space, &eve, Role::Writer).await?;
    let early = certified(&space, "early").await?;
    agree(&[&space, &of_bob, &of_carl, &of_eve]).await?;
    let eve = eve.shut().await;
    // While it runs.
    node.command(&["backup", "--to", &backup.display().to_string()]);

    let mut receipts = vec![early, certified(&space, "secret").await?, certified(&of_carl, "carls").await?];
    space.change(AclChange::RemoveMembers { accounts: vec![carl.account()] }).await?;
    receipts.push(certified(&space, "after-carl").await?);
    of_bob.await_synced_within(PATIENCE).await?;
    receipts.push(certified(&of_bob, "bobs").await?);
    let bob = bob.shut().await;
    space.change(AclChange::RotateKeys).await?;
    let purged = space.objects().tree_id("note", "secret")?;
    let purge = space.purge_tree(purged).await?;
    receipts.push(space.await_durable_within(purge, PATIENCE).await?);
    let of_dora = join(&space, &dora, Role::Writer).await?;
    receipts.push(certified(&of_dora, "doras").await?);
    receipts.push(certified(&space, "last").await?);
    agree(&[&space, &of_dora]).await?;
    Ok(Story { node, ada, space, bob, carl, dora, eve, receipts })
}

const ALL_NOTES: [&str; 6] = ["after-carl", "bobs", "carls", "doras", "early", "last"];

#[tokio::test(flavor = "multi_thread")]
async fn a_recognised_restore_in_a_story_of_removals_and_rotations_accuses_nobody_and_loses_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let backup = dir.path().join("backup");
    let Story { mut node, ada, space, bob, carl, dora, eve, receipts } = story(&backup).await?;
    let id = space.id();
    // The first to come back is one whom the restored node has never heard of, and who holds everything.
    let ada = ada.shut().await;
    node.kill();
    let said = node.command(&["restore", "--backup", &backup.display().to_string()]);
    assert!(said.contains("new history"), "{said}");
    node.restart();
    let of_dora = dora.space(id)?;
    of_dora.await_synced_within(PATIENCE).await?;
    hold(&receipts.iter().collect::<Vec<_>>(), &[&of_dora]).await?;

    // Nothing new while others may still hold more.
    let waiting = of_dora.objects().put("note", "new", json!({ "text": "new" })).await?.ok_or("a write")?;
    until(&of_dora, || Ok(of_dora.explain()?.iter().any(|r| r.code == ReasonCode::Recovering).then_some(()))).await?;
    std::fs::remove_file(node.dir().join("recovering"))?;
    of_dora.await_durable_within(waiting, PATIENCE).await?;

    let (ada, bob, eve) = (TestClient::open(ada).await, TestClient::open(bob).await, TestClient::open(eve).await);
    let space = ada.space(id)?;
    let (of_bob, of_eve) = (bob.space(id)?, eve.space(id)?);
    let all = [&space, &of_bob, &of_dora, &of_eve];
    agree(&all).await?;
    hold(&receipts.iter().collect::<Vec<_>>(), &all).await?;
    for space in all {
        assert_eq!(accused(space)?, [], "a recognised restore accuses nobody");
        assert_eq!(space.lost(0, 9)?, []);
        assert_eq!(notes(space)?, [&ALL_NOTES[..], &["new"]].concat());
        assert_eq!((space.refused()?, space.explain()?), (vec![], vec![]));
    }
    let of_carl = carl.space(id)?;
    sync_tests::harness::gone(&of_carl).await?;
    assert!(of_carl.objects().get("note", "after-carl")?.is_none(), "removed then, and removed now");

    // Once more, in place, with another history: as good as before.
    let late = certified(&space, "later").await?;
    node.kill();
    node.command(&["restore"]);
    std::fs::remove_file(node.dir().join("recovering"))?;
    node.restart();
    agree(&all).await?;
    hold(&[&late], &all).await?;
    assert!(all.iter().all(|space| accused(space).is_ok_and(|a| a.is_empty())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unrecognised_one_in_the_same_story_is_accused_and_loses_nothing_either() -> Outcome {
    let dir = tempfile::tempdir()?;
    let backup = dir.path().join("backup");
    let Story { mut node, ada: _ada, space, bob, carl, dora, eve, receipts } = story(&backup).await?;
    let id = space.id();
    node.kill();
    for file in ["headwater.db", "headwater.db-wal", "headwater.db-shm"] {
        // Only the first is always there.
        let _ = std::fs::remove_file(node.dir().join("store").join(file));
    }
    std::fs::copy(&backup, node.dir().join("store/headwater.db"))?;
    node.restart();
    let of_dora = dora.space(id)?;
    let (bob, eve) = (TestClient::open(bob).await, TestClient::open(eve).await);
    let (of_bob, of_eve) = (bob.space(id)?, eve.space(id)?);
    let all = [&space, &of_bob, &of_dora, &of_eve];
    agree(&all).await?;
    hold(&receipts.iter().collect::<Vec<_>>(), &all).await?;
    for space in all {
        assert_eq!(notes(space)?, ALL_NOTES);
        assert_eq!(space.refused()?, [], "the node had certified all of it");
        assert!(accused(space)?.iter().all(|(_, state)| *state == AccusationState::MadeGood), "{:?}", accused(space)?);
    }
    // Whoever came first has noticed it; for the others the node was whole again.
    let of_carl = carl.space(id)?;
    let noticed = [&space, &of_bob, &of_dora, &of_carl].map(|space| accused(space).map(|all| !all.is_empty()));
    assert!(noticed.into_iter().any(|noticed| noticed.is_ok_and(|noticed| noticed)), "somebody had more than the node");
    assert_eq!(accused(&of_eve)?, [], "Eve had seen nothing of it");
    Ok(())
}

/// What was purged after the node's last signature cannot come back as it was: its content is gone everywhere. Everything else
/// comes back, and nothing waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_after_the_last_receipt_holds_up_nothing() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let ada = TestClient::create("Ada", relay.address()).await;
    let space = ada.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    let old = node.copy_store();
    node.restart();
    let erased = space.objects().put("note", "purged", json!({ "text": "purged" })).await?.ok_or("a write")?;
    let first = space.await_durable_within(erased, PATIENCE).await?;
    certified(&space, "kept").await?;
    relay.frames(|frame| if matches!(frame, Frame::Heartbeat(_)) { Fate::Drop } else { Fate::Pass });
    relay.calls(|name| if name == "Certify" { Calls::Refuse } else { Calls::Forward });
    let purge = space.objects().purge("note", "purged").await?;
    until(&space, || Ok(matches!(space.write_state(purge)?, Some(WriteState::Durable { .. })).then_some(()))).await?;
    node.kill();
    node.put_back(&old);
    relay.heal();
    node.restart();
    ada.reconnect();
    let lost = until(&space, || Ok(space.lost(0, 9)?.pop())).await?;
    assert_eq!((lost.code, lost.seq), ("PAYLOAD_MISSING", first.body().seq), "{lost:?}");
    space.dismiss_lost(lost.id).await?;
    let refused = until(&space, || Ok(space.refused()?.pop())).await?;
    assert_eq!(refused.write, purge, "there is nothing left to purge: {refused:?}");
    space.dismiss(purge).await?;
    space.await_synced_within(PATIENCE).await?;
    assert_eq!(notes(&space)?, ["kept"]);
    // Where it stood is no place of this log.
    assert_eq!(space.write_state(erased)?, Some(WriteState::Dismissed));
    let ben = TestClient::create("Ben", node.address()).await;
    let bens = join(&space, &ben, Role::Reader).await?;
    agree(&[&space, &bens]).await?;
    assert_eq!(notes(&bens)?, ["kept"]);
    Ok(())
}

// ---- lost, and written over -----------------------------------------------------------------------------------------

/// Bob is away while Ada writes, removes Carl and writes again. The node loses that, and Bob comes first: `meanwhile` is what he
/// does. Then Ada comes.
async fn written_over(
    meanwhile: impl AsyncFnOnce(&Client, &Space) -> Outcome,
) -> Outcome<(NodeProcess, [TestClient; 2], [Space; 2])> {
    let mut node = NodeProcess::start();
    let [ada, bob, carl] = [
        TestClient::create("Ada", node.address()).await,
        TestClient::create("Bob", node.address()).await,
        TestClient::create("Carl", node.address()).await,
    ];
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob, Role::Admin).await?;
    let of_carl = join(&space, &carl, Role::Writer).await?;
    agree(&[&space, &of_bob, &of_carl]).await?;
    let id = space.id();
    let (bob, _carl) = (bob.shut().await, carl.shut().await);
    node.kill();
    let old = node.copy_store();
    node.restart();
    certified(&space, "a1").await?;
    space.change(AclChange::RemoveMembers { accounts: vec![_carl_account(&space)?] }).await?;
    certified(&space, "a2").await?;
    let ada = ada.shut().await;
    node.kill();
    node.put_back(&old);
    node.restart();
    let bob = TestClient::open(bob).await;
    let of_bob = bob.space(id)?;
    meanwhile(&bob, &of_bob).await?;
    let ada = TestClient::open(ada).await;
    let space = ada.space(id)?;
    Ok((node, [ada, bob], [space, of_bob]))
}

fn _carl_account(space: &Space) -> Outcome<client_sdk::AccountId> {
    let found = space.members()?.into_iter().find(|m| m.name.as_deref() == Some("Carl"));
    Ok(found.ok_or("Carl is a member")?.account)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_after_what_was_written_meanwhile_is_written_again() -> Outcome {
    let written = written_over(async |_, of_bob| certified(of_bob, "b1").await.map(|_| ()));
    let (_node, _clients, [space, of_bob]) = written.await?;
    agree(&[&space, &of_bob]).await?;
    assert_eq!(notes(&of_bob)?, ["a1", "a2", "b1"]);
    assert_eq!(space.members()?.len(), 2, "Carl is removed again");
    assert_eq!(accused(&space)?, [(AccusationKind::Rollback, AccusationState::Followed)]);
    let proof = space.accusations()?.remove(0).evidence.ok_or("the node signed for two logs")?;
    judge(&proof)?;
    assert_eq!((space.lost(0, 9)?, space.refused()?), (vec![], vec![]));
    // What the node certifies from now on is as good as ever.
    certified(&space, "a3").await?;
    agree(&[&space, &of_bob]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_any_more_is_named_and_nothing_goes_silently() -> Outcome {
    let written = written_over(async |_, of_bob| {
        // An act on the ACL takes the place of the removal that was lost.
        of_bob.change(AclChange::RotateKeys).await?;
        certified(of_bob, "b1").await.map(|_| ())
    });
    let (_node, [ada, _bob], [space, of_bob]) = written.await?;
    let lost = until(&space, || Ok(space.lost(0, 9)?.pop())).await?;
    assert_eq!((lost.code, lost.acts.as_slice()), ("ACL_CONFLICT", &["RemoveMembers".to_owned()][..]), "{lost:?}");
    let failed = space.await_synced_within(PATIENCE).await.expect_err("somebody must see what is lost");
    assert!(failed.residue.iter().any(|r| r.code == ReasonCode::LostByNode), "{failed:?}");
    assert_eq!(failed.code, NotSyncedCode::NodeFault, "{failed:?}");

    seen_over_the_local_service(&ada, &space).await?;
    assert_eq!(space.lost(0, 9)?, []);
    agree(&[&space, &of_bob]).await?;
    assert_eq!(notes(&of_bob)?, ["a1", "a2", "b1"], "own writes are made anew with the keys of now");
    assert_eq!(space.members()?.len(), 3, "Carl is still there: Ada was told");
    Ok(())
}

/// Programs on the same machine list what the node did, take the evidence, and say that it was seen.
async fn seen_over_the_local_service(client: &TestClient, space: &Space) -> Outcome {
    let listen = Listen::Unix(client.dir.path().join(local::SOCKET_FILE));
    let serving = Service::new(client.client.clone(), client.dir.path()).start(listen).await?;
    let (_, channel) = local::connect(client.dir.path()).await?.ok_or("it is served")?;
    let mut rpc = ClientClient::new(channel);
    let id = space.id().to_string();
    let list = pb::ListAccusationsRequest { space: id.clone(), ..Default::default() };
    let accusations = rpc.list_accusations(list).await?.into_inner().accusations;
    let [accusation] = accusations.as_slice() else { return Err(format!("{accusations:?}").into()) };
    assert_eq!((accusation.kind.as_str(), accusation.state.as_str()), ("rollback", "followed"));
    assert!(accusation.has_evidence);
    let asked = pb::GetEvidenceRequest { space: id.clone(), accusation: accusation.accusation };
    let mut parts = rpc.get_evidence(asked).await?.into_inner();
    let mut text = String::new();
    while let Some(part) = parts.message().await? {
        text.push_str(&part.part);
    }
    judge(&Evidence::from_text(&text)?)?;
    let none = pb::GetEvidenceRequest { space: id.clone(), accusation: u64::MAX };
    assert_eq!(rpc.get_evidence(none).await.expect_err("there is none").code(), tonic::Code::NotFound);

    let mut page_token = String::new();
    let mut seen = Vec::new();
    loop {
        let list = pb::ListLostRequest { space: id.clone(), page_size: 1, page_token };
        let page = rpc.list_lost(list).await?.into_inner();
        seen.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let listed: Vec<_> = space.lost(0, 9)?.iter().map(|lost| (lost.id.0, lost.what(), lost.code.to_owned())).collect();
    let told: Vec<_> = seen.iter().map(|lost| (lost.lost, lost.what.clone(), lost.code.clone())).collect();
    assert_eq!(told, listed);
    for lost in seen {
        let dismissed = pb::DismissLostRequest { space: id.clone(), lost: lost.lost };
        assert!(rpc.dismiss_lost(dismissed.clone()).await?.into_inner().found);
        assert!(!rpc.dismiss_lost(dismissed).await?.into_inner().found, "once");
    }
    serving.close().await;
    Ok(())
}

// ---- two stories ----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn two_members_who_were_told_two_stories_find_out_from_the_next_record_of_either() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let ada = TestClient::create("Ada", node.address()).await;
    let bob = Person::new("Bob", node.address()).await;
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob.client, Role::Writer).await?;
    agree(&[&space, &of_bob]).await?;
    let id = space.id();
    let Person { client: bob, words } = bob;
    let bob = bob.shut().await;
    node.kill();
    let twin = node.twin();
    node.restart();

    let bob = TestClient::open_at(bob, twin.address()).await;
    let of_bob = bob.space(id)?;
    certified(&space, "to-ada").await?;
    certified(&of_bob, "to-bob").await?;
    let before = of_bob.status()?.seq;
    let telling = certified(&of_bob, "telling").await?;
    assert_eq!((accused(&space)?, accused(&of_bob)?), (vec![], vec![]), "neither can know yet");

    // The two-faced node relays one record of Bob's to Ada: it is a good one.
    let mut there = Hostile::beside(twin.address(), &words, vec![bob.device()]).await;
    let records = there.entries(id, Seq(before), 2).await;
    let mut here = Hostile::beside(node.address(), &words, vec![bob.device()]).await;
    here.relay(id, records).await;
    let told = until(&space, || Ok(accused(&space)?.pop())).await?;
    assert_eq!(told, (AccusationKind::Seen, AccusationState::Open));
    assert!(object(&space, "note", "telling").is_ok(), "it is no rule: the record stands");
    assert!(space.explain()?.iter().any(|r| r.code == ReasonCode::Forked));
    certified(&space, "goes-on").await?;
    judged(&space, "seen")?;

    // Bob's receipt against Ada's log: proof.
    assert_eq!(space.compare_receipt(&telling).await?, Compared::Forked);
    certified(&space, "one-more").await.expect_err("what would synced mean now?");
    judged(&space, "fork")
}

// ---- no false alarm -------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_on_the_nodes_disk_accuses_nobody() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let ada = TestClient::create("Ada", node.address()).await;
    let bob = Person::new("Bob", node.address()).await;
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob.client, Role::Writer).await?;
    agree(&[&space, &of_bob]).await?;
    let id = space.id();
    let Person { client: bob, .. } = bob;
    let (ada, bob) = (ada.shut().await, bob.shut().await);
    node.kill();
    let flushed = node.copy_store();
    node.restart();
    // Bob's write is taken by the node, more than once, and he is told nothing of it: a power cut takes it before the flush.
    let bob = TestClient::open_at(bob, relay.address()).await;
    let of_bob = bob.space(id)?;
    of_bob.await_synced_within(PATIENCE).await?;
    relay.frames(|_| Fate::Drop);
    relay.calls(|name| if name == "Push" { Calls::LoseAnswer } else { Calls::Forward });
    let write = of_bob.objects().put("note", "lost", json!({ "text": "taken" })).await?.ok_or("a write")?;
    until(&of_bob, || Ok((relay.calls_met("Push") >= 2).then_some(()))).await?;
    node.kill();
    assert!(matches!(of_bob.write_state(write)?, Some(WriteState::Pending { .. })), "he was told nothing");
    node.put_back(&flushed);
    relay.heal();
    node.restart();
    let ada = TestClient::open(ada).await;
    let space = ada.space(id)?;
    agree(&[&space, &of_bob]).await?;
    assert_eq!(notes(&space)?, ["lost"], "it was taken, lost, and went out again");
    assert_eq!((accused(&space)?, accused(&of_bob)?), (vec![], vec![]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cross_accuse_nobody() -> Outcome {
    let node = NodeProcess::start();
    let (ada, bob) = (TestClient::create("Ada", node.address()).await, TestClient::create("Bob", node.address()).await);
    let space = ada.create_space("Club").await?;
    let of_bob = join(&space, &bob, Role::Writer).await?;
    // Receipts of many askers, for a log that moves all the time, in whatever order they come back.
    let asking = |space: Space| async move {
        for n in 0..20 {
            space.objects().put("note", &format!("{n}"), json!({ "n": n })).await?;
            tokio::try_join!(space.await_synced_within(PATIENCE), space.await_synced_within(PATIENCE))?;
        }
        Outcome::Ok(())
    };
    tokio::try_join!(asking(space.clone()), asking(space.clone()), asking(of_bob.clone()))?;
    agree(&[&space, &of_bob]).await?;
    assert_eq!((accused(&space)?, accused(&of_bob)?), (vec![], vec![]));
    Ok(())
}
