//! Writes reach the node and everybody, whatever happens to the caller, the client, the node and the way between them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use client_sdk::{InviteOptions, Role, Space, SyncState, Update, WriteState};
use serde_json::{Value, json};
use sync_tests::harness::{
    NodeProcess, Outcome, PATIENCE, TestClient, binary, changed, heads, join, object, rows, seen, until,
};
use sync_tests::relay::{Calls, Fate, Relay, entries};

fn fields(space: &Space, object_type: &str, id: &str) -> Outcome<Value> {
    Ok(Value::Object(object(space, object_type, id)?.fields))
}

/// `synced_means_equal`: after both awaits said yes, nothing differs.
async fn synced_means_equal(one: &Space, other: &Space) -> Outcome {
    one.await_synced().await?;
    other.await_synced().await?;
    one.await_synced().await?;
    assert_eq!(heads(one)?, heads(other)?);
    assert_eq!(seen(one)?, seen(other)?);
    Ok(())
}

/// Waits until a client knows that its node is gone.
async fn offline(space: &Space) -> Outcome {
    until(space, || Ok((space.status()?.state == SyncState::Offline).then_some(()))).await
}

/// Ids of all items.
fn items(space: &Space) -> Outcome<BTreeSet<String>> {
    Ok(space.objects().list("item")?.into_iter().map(|o| o.id).collect())
}

// ---- the caller hangs up ----------------------------------------------------------------------------------------------

/// S35: the task that wrote ends right after `put`; nobody waits for anything.
#[tokio::test(flavor = "multi_thread")]
async fn s35_the_caller_hangs_up_after_put() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let caller = tokio::spawn({
        let objects = joined.objects();
        async move {
            let _ = objects.put("item", "milk", json!({ "n": 1 })).await;
            std::future::pending::<()>().await;
        }
    });
    until(&joined, || Ok(joined.objects().get("item", "milk")?)).await?;
    caller.abort();
    drop(joined);
    space.await_object("item", "milk", PATIENCE).await?;
    Ok(())
}

/// S35: the caller hangs up in the middle of `put`, as soon as it has begun: the write is whole, told at home, and pushed.
#[tokio::test(flavor = "multi_thread")]
async fn s35_the_caller_hangs_up_in_the_middle_of_put() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    // Nothing else may wake the outbox for it.
    joined.await_synced().await?;
    let objects = joined.objects();
    let mut watch = objects.watch("item");
    for n in 0..20 {
        let id = n.to_string();
        let mut put = Box::pin(objects.put("item", &id, json!({ "n": n })));
        tokio::select! {
            biased;
            written = &mut put => drop(written?),
            () = std::future::ready(()) => {}
        }
        drop(put);
        while changed(&mut watch).await?.id != id {}
        space.await_object("item", &id, PATIENCE).await?;
    }
    Ok(())
}

// ---- several writers --------------------------------------------------------------------------------------------------

/// A node that is away, and two admins who did not notice each other's writes yet.
async fn two_admins() -> Outcome<(NodeProcess, [TestClient; 2], [Space; 2])> {
    let node = NodeProcess::start();
    let one = TestClient::create("One", node.address()).await;
    let two = TestClient::create("Two", node.address()).await;
    let space = one.create_space("Club").await?;
    let joined = join(&space, &two, Role::Admin).await?;
    synced_means_equal(&space, &joined).await?;
    Ok((node, [one, two], [space, joined]))
}

async fn come_back(node: &mut NodeProcess, clients: &[TestClient]) -> Outcome {
    node.restart();
    for client in clients {
        client.connected(PATIENCE).await?;
    }
    Ok(())
}

/// S73: two admins create the same profile, knowing nothing of each other: one tree, with what both said.
#[tokio::test(flavor = "multi_thread")]
async fn s73_two_admins_create_one_profile() -> Outcome {
    let (mut node, admins, [one, two]) = two_admins().await?;
    let subject = admins[1].own();
    node.kill();
    one.objects().put("profile", &subject, json!({ "name": "by one", "city": "Bern" })).await?;
    two.objects().put("profile", &subject, json!({ "name": "by two", "year": 1999 })).await?;
    let tree = one.objects().tree_id("profile", &subject)?;
    assert_eq!(tree, two.objects().tree_id("profile", &subject)?);
    come_back(&mut node, &admins).await?;
    synced_means_equal(&one, &two).await?;
    assert_eq!(one.objects().list("profile")?.len(), 1);
    assert_eq!(one.trees(None, 100)?.len(), 2, "the profile and the space's own");
    let profile = object(&two, "profile", &subject)?;
    assert_eq!((profile.tree, &profile.fields["city"], &profile.fields["year"]), (tree, &json!("Bern"), &json!(1999)));
    let changes = one.tree(tree)?.ok_or("there")?.changes()?;
    assert_eq!(changes.len(), 2, "both changes stand in the one tree");
    Ok(())
}

/// S73 while the node is there: both at the same moment, many times.
#[tokio::test(flavor = "multi_thread")]
async fn s73_two_admins_create_profiles_at_once() -> Outcome {
    let (_node, _admins, [one, two]) = two_admins().await?;
    for n in 0..50 {
        let id = n.to_string();
        let (of_one, of_two) = (one.objects(), two.objects());
        let first = of_one.put("profile", &id, json!({ "one": n }));
        let second = of_two.put("profile", &id, json!({ "two": n }));
        tokio::try_join!(first, second)?;
    }
    synced_means_equal(&one, &two).await?;
    let profiles = one.objects().list("profile")?;
    assert_eq!(profiles.len(), 50);
    for profile in profiles {
        let n: u64 = profile.id.parse()?;
        assert_eq!(Value::Object(profile.fields), json!({ "one": n, "two": n }));
    }
    Ok(())
}

/// S74: concurrent edits of different fields both survive; of the same field, one wins, the same everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn s74_different_fields_survive_and_the_same_converges() -> Outcome {
    let (mut node, admins, [one, two]) = two_admins().await?;
    one.objects().put("card", "c", json!({ "a": 0, "b": 0, "same": 0, "kept": "k" })).await?;
    synced_means_equal(&one, &two).await?;
    node.kill();
    one.objects().put("card", "c", json!({ "a": 1, "same": "one" })).await?;
    one.objects().update("card", "c", Update::new().increment("count", 2).add("tags", "x")).await?;
    two.objects().put("card", "c", json!({ "b": 2, "same": "two" })).await?;
    two.objects().update("card", "c", Update::new().increment("count", 3).add("tags", "y")).await?;
    come_back(&mut node, &admins).await?;
    synced_means_equal(&one, &two).await?;
    let merged = fields(&one, "card", "c")?;
    assert!(merged["same"] == "one" || merged["same"] == "two", "{merged}");
    let expected = json!({ "a": 1, "b": 2, "same": merged["same"], "kept": "k", "count": 5, "tags": ["x", "y"] });
    assert_eq!(merged, expected);
    Ok(())
}

/// S75: a write that names some fields leaves the others alone; removing one is said.
#[tokio::test(flavor = "multi_thread")]
async fn s75_a_partial_write_clears_nothing() -> Outcome {
    let (_node, _admins, [one, two]) = two_admins().await?;
    one.objects().put("card", "c", json!({ "a": 1, "b": { "deep": [1, 2] }, "c": null })).await?;
    two.await_object("card", "c", PATIENCE).await?;
    two.objects().put("card", "c", json!({ "a": 2 })).await?;
    synced_means_equal(&one, &two).await?;
    assert_eq!(fields(&one, "card", "c")?, json!({ "a": 2, "b": { "deep": [1, 2] }, "c": null }));
    assert_eq!(one.objects().put("card", "c", json!({})).await?, None, "nothing said, nothing written");
    assert_eq!(one.objects().put("card", "c", json!({ "a": 2 })).await?, None, "said already");
    one.objects().update("card", "c", Update::new().unset("b")).await?;
    synced_means_equal(&one, &two).await?;
    assert_eq!(fields(&two, "card", "c")?, json!({ "a": 2, "c": null }));
    Ok(())
}

/// S77: everything twice, neighbours swapped, and now and then one lost: the same state, no error.
#[tokio::test(flavor = "multi_thread")]
async fn s77_duplicates_and_disorder() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let mut seen_frames = 0_u32;
    relay.frames(move |frame| {
        if entries(frame) == 0 {
            return Fate::Pass;
        }
        seen_frames += 1;
        match seen_frames % 7 {
            1 | 4 => Fate::AfterNext,
            6 => Fate::Drop,
            _ => Fate::Twice,
        }
    });
    for n in 0..60 {
        let (who, id) = if n % 3 == 0 { (&joined, "theirs") } else { (&space, "ours") };
        let write = who.objects().put("item", id, json!({ "n": n })).await?.ok_or("another number is a write")?;
        if n % 3 != 0 {
            // One entry, one message.
            who.await_durable(write).await?;
        }
    }
    synced_means_equal(&space, &joined).await?;
    assert!(relay.frames_met() > 20, "{} messages did not simply pass", relay.frames_met());
    assert_eq!(fields(&joined, "item", "ours")?, json!({ "n": 59 }));
    assert_eq!(fields(&space, "item", "theirs")?, json!({ "n": 57 }));
    let status = joined.status()?;
    assert_eq!((status.quarantined, status.refused, status.void), (0, 0, 0));
    assert_eq!(joined.explain()?, []);
    Ok(())
}

// ---- the node dies, or is away ------------------------------------------------------------------------------------------

/// S27: the node is killed while 500 writes go out: what it acknowledged is there, the rest arrives, nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn s27_node_killed_in_the_middle_of_a_push() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    let writing = tokio::spawn({
        let space = space.clone();
        async move {
            let mut writes = Vec::new();
            for n in 0..500 {
                writes.extend(space.objects().put("item", &n.to_string(), json!({ "n": n })).await?);
            }
            Outcome::Ok(writes)
        }
    });
    // In the middle: some are acknowledged, some are not.
    until(&space, || Ok((space.status()?.seq > 60).then_some(()))).await?;
    node.kill();
    let writes = writing.await??;
    offline(&space).await?;
    let acknowledged: BTreeSet<String> = items(&space)?
        .into_iter()
        .filter(|id| {
            let write = id.parse::<usize>().ok().and_then(|n| writes.get(n));
            write.is_some_and(|w| matches!(space.write_state(*w), Ok(Some(WriteState::Durable { .. }))))
        })
        .collect();
    assert!(!acknowledged.is_empty(), "some were acknowledged");
    assert!(acknowledged.len() < writes.len(), "some were not");
    node.restart();

    // A stranger to all this sees what was acknowledged, before the writer is back.
    let invite = {
        admin.connected(PATIENCE).await?;
        space.invite(InviteOptions::open()).await?
    };
    let member = TestClient::create("Member", node.address()).await;
    let joined = member.join(&invite.token).await?.ready(PATIENCE).await?.remove(0);
    joined.await_synced().await?;
    let there = items(&joined)?;
    assert!(acknowledged.is_subset(&there), "acknowledged and lost: {:?}", acknowledged.difference(&there));
    synced_means_equal(&space, &joined).await?;
    assert_eq!(items(&joined)?.len(), 500);
    let status = joined.status()?;
    assert_eq!((status.trees, status.changes), (501, 501), "nothing is there twice");
    for write in writes {
        let state = space.write_state(write)?;
        assert!(matches!(state, Some(WriteState::Durable { .. })), "{state:?}");
    }
    Ok(())
}

/// S27: the node took the push, but its verdicts were lost: pushed again, it is known.
#[tokio::test(flavor = "multi_thread")]
async fn s27_a_push_whose_verdicts_were_lost() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let mut lost = 0;
    relay.calls(move |name| {
        lost += u32::from(name == "Push");
        if name == "Push" && lost <= 2 { Calls::LoseAnswer } else { Calls::Forward }
    });
    relay.frames(|frame| if entries(frame) > 0 { Fate::Hold } else { Fate::Pass });
    let write = joined.objects().put("item", "milk", json!({ "n": 1 })).await?.ok_or("a new object is a write")?;
    space.await_object("item", "milk", PATIENCE).await?;
    let pending = joined.write_state(write)?;
    assert!(matches!(pending, Some(WriteState::Pending { .. })), "nothing told it yet: {pending:?}");
    relay.heal();
    joined.await_durable(write).await?;
    synced_means_equal(&space, &joined).await?;
    assert_eq!(space.tree(space.objects().tree_id("item", "milk")?)?.ok_or("there")?.changes()?.len(), 1);
    Ok(())
}

/// Both write without a node; when it is back, everything is everywhere, without anybody asking for it.
#[tokio::test(flavor = "multi_thread")]
async fn s28_offline_writes_on_both_sides() -> Outcome {
    let (mut node, admins, [one, two]) = two_admins().await?;
    node.kill();
    offline(&one).await?;
    offline(&two).await?;
    let mut watch = two.objects().watch("of-one");
    one.objects().put("of-one", "a", json!({ "n": 1 })).await?;
    two.objects().put("of-two", "b", json!({ "n": 2 })).await?;
    two.objects().put("of-two", "b", json!({ "more": true })).await?;
    assert_eq!(object(&two, "of-two", "b")?.pending, 2, "readable at once, and said to be pending");
    come_back(&mut node, &admins).await?;
    assert_eq!(changed(&mut watch).await?.id, "a");
    one.await_object("of-two", "b", PATIENCE).await?;
    synced_means_equal(&one, &two).await?;
    assert_eq!(fields(&one, "of-two", "b")?, json!({ "n": 2, "more": true }));
    assert_eq!(object(&two, "of-two", "b")?.pending, 0);
    Ok(())
}

/// A client is closed with writes that never left, opened again without a node, and once more with one.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_client_keeps_its_pending_writes() -> Outcome {
    let (mut node, [one, two], [space, joined]) = two_admins().await?;
    node.kill();
    offline(&joined).await?;
    let id = joined.id();
    let writes = joined.objects().put_many(rows("item", 0..50, |n| json!({ "n": n }))).await?;
    drop(joined);
    let two = two.reopen().await;
    let joined = two.space(id)?;
    assert_eq!(joined.status()?.pending, 50);
    assert_eq!(items(&joined)?.len(), 50, "and they are readable");
    let state = joined.write_state(writes[7].ok_or("a new object is a write")?)?;
    assert!(matches!(state, Some(WriteState::Pending { .. })), "{state:?}");
    node.restart();
    one.connected(PATIENCE).await?;
    two.connected(PATIENCE).await?;
    synced_means_equal(&space, &joined).await?;
    assert_eq!(items(&space)?.len(), 50);
    assert_eq!(joined.status()?.pending, 0);
    Ok(())
}

/// S47, the half about writes: a client process is killed while it writes without a node. What `put` said is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_keeps_its_pending_writes() -> Outcome {
    let (mut node, [one, two], [space, joined]) = two_admins().await?;
    let id = joined.id();
    node.kill();
    let TestClient { dir, client } = two;
    drop(joined);
    client.close().await;
    let mut process = Command::new(binary("sync-tests-writer"))
        .arg(dir.path())
        .args([id.to_string(), "100000".to_owned()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(process.stdout.take().ok_or("stdout is piped")?).lines();
    let said: Vec<String> = lines.by_ref().take(40).collect::<Result<_, _>>()?;
    process.kill()?;
    process.wait()?;
    let later: Vec<String> = lines.map_while(Result::ok).collect();

    let two = TestClient::open(dir).await;
    let joined = two.space(id)?;
    let kept = items(&joined)?;
    for n in said.iter().chain(&later) {
        assert!(kept.contains(n), "{n} was said to be written");
    }
    assert_eq!(joined.status()?.pending, kept.len());
    node.restart();
    one.connected(PATIENCE).await?;
    two.connected(PATIENCE).await?;
    synced_means_equal(&space, &joined).await?;
    assert_eq!(items(&space)?, kept);
    Ok(())
}

/// The keys are replaced again and again while somebody writes: no write fails, every one lands, and all read all.
#[tokio::test(flavor = "multi_thread")]
async fn writes_while_keys_rotate() -> Outcome {
    let (_node, _admins, [one, two]) = two_admins().await?;
    let rotating = tokio::spawn(async move {
        for _ in 0..20 {
            one.rotate_keys().await?;
        }
        Outcome::Ok(one)
    });
    let mut written = 0;
    while written < 50 || !rotating.is_finished() {
        two.objects().put("item", &written.to_string(), json!({ "n": written })).await?;
        written += 1;
    }
    let one = rotating.await??;
    synced_means_equal(&one, &two).await?;
    assert_eq!(items(&one)?.len(), written);
    Ok(())
}
