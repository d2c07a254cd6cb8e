//! S64 and S66: several devices of one account, and an account that is brought back from its words alone.

use std::time::Duration;

use client_sdk::{
    Client, ClientConfig, ClientEvent, InviteOptions, Mnemonic, Reason, ReasonCode, RecoverError, Role, Space, SpaceId,
};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, accept, config, gone, object, seen, until};
use sync_tests::relay::Relay;
use tempfile::TempDir;

/// An account's first device, with the words.
async fn first(node: &NodeProcess) -> Outcome<(TestClient, Mnemonic)> {
    let dir = tempfile::tempdir()?;
    let config = named(&dir, node, "laptop");
    let (client, words) = Client::create(config).await?;
    Ok((TestClient { dir, client }, words))
}

/// A further device of an account.
async fn another(node: &NodeProcess, words: &Mnemonic, name: &str) -> Outcome<TestClient> {
    let dir = tempfile::tempdir()?;
    let client = Client::restore(named(&dir, node, name), words.clone()).await?;
    Ok(TestClient { dir, client })
}

fn named(dir: &TempDir, node: &NodeProcess, device: &str) -> ClientConfig {
    config(dir.path()).node(node.address().clone()).name("Ada").device_name(device)
}

/// What the account's space says of its spaces.
fn listed(client: &Client) -> Outcome<Vec<SpaceId>> {
    let objects = client.account_space()?.objects().list("headwater.account.space")?;
    let mut spaces = objects.iter().map(|o| o.id.parse()).collect::<Result<Vec<SpaceId>, _>>()?;
    spaces.sort_unstable();
    Ok(spaces)
}

/// Waits until the account's space lists exactly these.
async fn lists(client: &Client, expected: &[SpaceId]) -> Outcome {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let space = client.account_space()?;
    let waiting = until(&space, || Ok((listed(client)? == expected).then_some(())));
    tokio::time::timeout(PATIENCE, waiting).await?
}

/// The account's own space is the same on every device, lists what the account is in, and is in no listing itself.
#[tokio::test]
async fn a_second_device_has_the_accounts_spaces() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    assert_eq!(a.spaces()?, []);
    let space = a.create_space("Shopping").await?;
    space.objects().put("item", "milk", json!({ "title": "Milk" })).await?;
    lists(&a, &[space.id()]).await?;

    let b = another(&node, &words, "phone").await?;
    assert_eq!(b.account_space()?.id(), a.account_space()?.id());
    let there = b.wait_for_space(space.id(), PATIENCE).await?;
    there.await_synced().await?;
    assert_eq!(object(&there, "item", "milk")?.fields["title"], "Milk");
    assert_eq!(b.spaces()?.iter().map(|s| s.id).collect::<Vec<_>>(), [space.id()]);

    // And the other way.
    let second = b.create_space("Trips").await?;
    let here = a.wait_for_space(second.id(), PATIENCE).await?;
    here.await_synced().await?;
    for client in [&a, &b] {
        lists(client, &[space.id(), second.id()]).await?;
        client.account_space()?.await_synced().await?;
    }
    let device = object(&a.account_space()?, "headwater.account.device", &b.device().to_string())?;
    assert_eq!(device.fields["name"], "phone");
    Ok(())
}

/// The account's space is made without the node, and is registered when there is one.
#[tokio::test]
async fn the_accounts_space_is_made_offline() -> Outcome {
    let mut node = NodeProcess::start();
    node.kill();
    let (a, _) = first(&node).await?;
    let space = a.create_space("Offline").await?;
    lists(&a, &[space.id()]).await?;
    node.restart();
    a.connected(PATIENCE).await?;
    a.account_space()?.await_synced_within(PATIENCE).await?;
    Ok(())
}

/// Waits for an event of the client.
async fn happens(events: &mut client_sdk::ClientEvents, wanted: ClientEvent) -> Outcome {
    let waiting = async {
        while let Some(event) = events.next().await {
            if event == wanted {
                return Ok(());
            }
        }
        Err("the client was closed")
    };
    Ok(tokio::time::timeout(PATIENCE, waiting).await??)
}

/// An event tells of each space that comes.
#[tokio::test]
async fn a_space_that_comes_is_told_of() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    let b = another(&node, &words, "phone").await?;
    let mut events = b.events();
    let space: Space = a.create_space("Shopping").await?;
    happens(&mut events, ClientEvent::SpaceAppeared { space: space.id() }).await?;
    let nowhere = SpaceId::from_hash([7; 32]);
    let missing = b.wait_for_space(nowhere, Duration::from_millis(10)).await;
    assert_eq!(missing.expect_err("there is no such space").code(), "TIMED_OUT");
    Ok(())
}

// ---- devices ----------------------------------------------------------------------------------------------------------

/// Waits until the client knows exactly these devices.
async fn knows(client: &Client, expected: &[&TestClient]) -> Outcome {
    let mut expected: Vec<_> = expected.iter().map(|c| c.device()).collect();
    expected.sort_unstable();
    let mut events = client.events();
    let waiting = async {
        loop {
            let known: Vec<_> = client.devices()?.into_iter().map(|d| d.id).collect();
            if known == expected {
                return Outcome::Ok(());
            }
            events.next().await.ok_or("the client was closed")?;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await?
}

/// Waits until the client says that the node refuses this very device.
async fn is_refused(client: &Client, space: &Space) -> Outcome {
    until(space, || {
        let refused = Reason::find(&space.explain()?, ReasonCode::SessionRefused).is_some();
        Ok((refused && client.is_revoked()).then_some(()))
    })
    .await
}

/// S64: two devices write, and one is revoked while its stream runs. The other goes on; the revoked one stays as it was.
#[tokio::test]
async fn s64_two_devices_of_one_account() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    let space = a.create_space("Shopping").await?;
    let b = another(&node, &words, "phone").await?;
    let there = b.wait_for_space(space.id(), PATIENCE).await?;
    there.await_synced().await?;
    let (here, elsewhere) = (space.objects(), there.objects());
    tokio::try_join!(
        here.put("item", "milk", json!({ "title": "Milk" })),
        elsewhere.put("item", "milk", json!({ "bought": 2 })),
        here.put("item", "tea", json!({ "title": "Tea" })),
        elsewhere.put("item", "rice", json!({ "title": "Rice" })),
    )?;
    for _ in 0..2 {
        space.await_synced().await?;
        there.await_synced().await?;
    }
    assert_eq!(seen(&space)?, seen(&there)?);
    let milk = object(&space, "item", "milk")?;
    assert_eq!((&milk.fields["title"], &milk.fields["bought"]), (&json!("Milk"), &json!(2)));
    knows(&a, &[&a, &b]).await?;
    knows(&b, &[&a, &b]).await?;
    until(&a.account_space()?, || {
        let devices = a.devices()?;
        let phone = devices.iter().find(|d| d.id == b.device());
        Ok(phone.filter(|d| d.name.as_deref() == Some("phone") && !d.is_this).map(|_| ()))
    })
    .await?;

    let mut told = b.events();
    a.revoke_device(b.device()).await?;
    happens(&mut told, ClientEvent::DeviceRevoked).await?;
    is_refused(&b, &there).await?;
    knows(&a, &[&a]).await?;
    // What it has can be read, and what it writes goes nowhere.
    assert_eq!(object(&there, "item", "tea")?.fields["title"], "Tea");
    there.objects().put("item", "tea", json!({ "title": "Stolen" })).await?;
    space.objects().put("item", "salt", json!({ "title": "Salt" })).await?;
    space.await_synced().await?;
    assert_eq!(object(&space, "item", "tea")?.fields["title"], "Tea");

    // It stays revoked when it is opened again, and says so again.
    let b = b.reopen().await;
    let mut told = b.events();
    let there = b.space(space.id())?;
    if !b.is_revoked() {
        happens(&mut told, ClientEvent::DeviceRevoked).await?;
    }
    is_refused(&b, &there).await?;
    let refused = there.await_synced_within(Duration::from_millis(300)).await;
    assert!(refused.is_err());
    knows(&a, &[&a]).await?;
    Ok(())
}

/// What cannot be revoked says so.
#[tokio::test]
async fn a_revocation_that_makes_no_sense_is_refused() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    let refused = a.revoke_device(a.device()).await.expect_err("the device itself");
    assert_eq!(refused.code(), "THIS_DEVICE");
    let (stranger, _) = first(&node).await?;
    let refused = a.revoke_device(stranger.device()).await.expect_err("another account's device");
    assert_eq!(refused.code(), "DEVICE_NOT_LISTED");
    let b = another(&node, &words, "phone").await?;
    knows(&a, &[&a, &b]).await?;
    a.revoke_device(b.device()).await?;
    let refused = a.revoke_device(b.device()).await.expect_err("it is off the list");
    assert_eq!(refused.code(), "DEVICE_NOT_LISTED");
    assert!(stranger.devices()?.iter().all(|d| d.is_this));
    Ok(())
}

/// Two fresh devices at once: both end on the list, whoever is first.
#[tokio::test(flavor = "multi_thread")]
async fn fresh_devices_at_once_all_end_on_the_list() -> Outcome {
    let mut node = NodeProcess::start();
    node.kill();
    let (a, words) = first(&node).await?;
    let (b, c) = tokio::try_join!(another(&node, &words, "phone"), another(&node, &words, "tablet"))?;
    node.restart();
    tokio::try_join!(a.connected(PATIENCE), b.connected(PATIENCE), c.connected(PATIENCE))?;
    for client in [&a, &b, &c] {
        knows(client, &[&a, &b, &c]).await?;
        assert!(!client.is_revoked());
    }
    Ok(())
}

/// One device revokes a second while a third puts itself on the list; two devices revoke two others. Nothing is lost of it.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_list_at_once_all_hold() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    let (b, c) = tokio::try_join!(another(&node, &words, "phone"), another(&node, &words, "tablet"))?;
    let d = another(&node, &words, "watch").await?;
    for client in [&a, &b] {
        knows(client, &[&a, &b, &c, &d]).await?;
    }
    let fresh = another(&node, &words, "frame");
    let (revoke_c, revoke_d) = (async { Outcome::Ok(a.revoke_device(c.device()).await?) }, async {
        Outcome::Ok(b.revoke_device(d.device()).await?)
    });
    let ((), (), e) = tokio::try_join!(revoke_c, revoke_d, fresh)?;
    for client in [&a, &b, &e] {
        knows(client, &[&a, &b, &e]).await?;
    }
    for (client, is_revoked) in [(&a, false), (&b, false), (&e, false)] {
        assert_eq!(client.is_revoked(), is_revoked);
    }
    is_refused(&c, &c.account_space()?).await?;
    is_refused(&d, &d.account_space()?).await?;
    // Two that revoke each other: one of them wins.
    let (one, other) = tokio::join!(a.revoke_device(b.device()), b.revoke_device(a.device()));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    Ok(())
}

/// A third device while the first is offline for the whole time: it learns of everything when it comes back.
#[tokio::test]
async fn the_first_device_may_be_away_for_long() -> Outcome {
    let node = NodeProcess::start();
    let (a, words) = first(&node).await?;
    let kept = a.create_space("Kept").await?;
    kept.await_synced().await?;
    a.account_space()?.await_synced().await?;
    let TestClient { dir, client } = a;
    client.close().await;

    let b = another(&node, &words, "phone").await?;
    b.wait_for_space(kept.id(), PATIENCE).await?;
    let c = another(&node, &words, "tablet").await?;
    let trips = c.create_space("Trips").await?;
    b.wait_for_space(trips.id(), PATIENCE).await?;
    lists(&c, &[kept.id(), trips.id()]).await?;
    c.account_space()?.await_synced().await?;

    let a = TestClient::open(dir).await;
    a.wait_for_space(trips.id(), PATIENCE).await?.await_synced().await?;
    for client in [&a, &b, &c] {
        knows(client, &[&a, &b, &c]).await?;
        lists(client, &[kept.id(), trips.id()]).await?;
    }
    Ok(())
}

/// Two accounts in one process, on one node: neither sees anything of the other.
#[tokio::test]
async fn two_accounts_in_one_process_stay_apart() -> Outcome {
    let node = NodeProcess::start();
    let ((a, words), (b, _)) = (first(&node).await?, first(&node).await?);
    let (ours, theirs) = (a.create_space("Ours").await?, b.create_space("Theirs").await?);
    lists(&a, &[ours.id()]).await?;
    lists(&b, &[theirs.id()]).await?;
    assert_ne!(a.account_space()?.id(), b.account_space()?.id());
    assert!(a.space(theirs.id()).is_err() && b.space(ours.id()).is_err());
    assert!(a.space(b.account_space()?.id()).is_err());
    b.account_space()?.await_synced().await?;
    let stranger = a.open_joined(b.account_space()?.id(), Duration::from_millis(300)).await;
    assert_eq!(stranger.expect_err("another account's own space").code(), "TIMED_OUT");
    a.account_space()?.await_synced().await?;
    let again = another(&node, &words, "phone").await?;
    let recovered = again.recovered(PATIENCE).await?;
    assert_eq!(recovered.spaces.iter().map(Space::id).collect::<Vec<_>>(), [ours.id()]);
    assert_eq!(b.devices()?.len(), 1);
    Ok(())
}

// ---- joins and recovery -------------------------------------------------------------------------------------------------

/// Waits until the client shows exactly these joins, with or without the space being joined here.
async fn joins(client: &Client, expected: &[(SpaceId, bool)]) -> Outcome {
    let mut events = client.events();
    let waiting = async {
        loop {
            let known: Vec<_> = client.joins()?.into_iter().map(|j| (j.space, j.here)).collect();
            if known == expected {
                return Outcome::Ok(());
            }
            events.next().await.ok_or("the client was closed")?;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| format!("{:?}", client.joins()))?
}

/// A join that one device began is seen on the other, which cancels one and finishes the next.
#[tokio::test]
async fn a_join_is_finished_or_cancelled_by_another_device() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (a, words) = first(&node).await?;
    let b = another(&node, &words, "phone").await?;
    let club = admin.create_space("Club").await?;
    let invite = club.invite(InviteOptions::approval()).await?;
    a.join(&invite.token).await?;
    joins(&a, &[(club.id(), true)]).await?;
    joins(&b, &[(club.id(), false)]).await?;

    b.cancel_join(club.id()).await?;
    joins(&b, &[]).await?;
    joins(&a, &[]).await?;
    club.await_synced().await?;
    assert!(club.request_of(a.account()).is_err(), "the request was taken back");
    let none = b.resume_join(club.id()).await.expect_err("it is over");
    assert_eq!(none.code(), "NO_JOIN");

    // The same invite again; this time the second device finishes it.
    a.join(&invite.token).await?;
    joins(&b, &[(club.id(), false)]).await?;
    let joining = b.resume_join(club.id()).await?;
    let there = accept(&club, &b, &joining, Role::Writer, &[]).await?;
    assert_eq!(there.name()?.as_deref(), Some("Club"));
    joins(&b, &[]).await?;
    a.wait_for_space(club.id(), PATIENCE).await?.await_synced().await?;
    for client in [&a, &b] {
        lists(client, &[club.id()]).await?;
    }
    Ok(())
}

/// S66: spaces, roles, keys of all epochs, objects, names and pending joins come back.
#[tokio::test]
async fn s66_recovery_from_the_words_alone() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (a, words) = first(&node).await?;
    let own = a.create_space("Own").await?;
    own.objects().put("item", "old", json!({ "title": "Before the rotation" })).await?;
    own.await_synced().await?;
    own.rotate_keys().await?;
    own.objects().put("item", "new", json!({ "title": "After the rotation" })).await?;
    own.await_synced().await?;
    let club = admin.create_space("Club").await?;
    club.objects().put("note", "rules", json!({ "text": "be kind" })).await?;
    let member = sync_tests::harness::join(&club, &a, Role::Admin).await?;
    member.await_synced().await?;
    let waiting = admin.create_space("Waiting").await?;
    let invite = waiting.invite(InviteOptions::approval()).await?;
    a.join(&invite.token).await?;
    a.account_synced(PATIENCE).await?;
    let TestClient { dir, client } = a;
    client.close().await;
    drop(dir);

    let again = another(&node, &words, "new laptop").await?;
    let recovered = again.recovered(PATIENCE).await?;
    let mut expected = [own.id(), club.id()];
    expected.sort_unstable();
    assert_eq!(recovered.spaces.iter().map(Space::id).collect::<Vec<_>>(), expected);
    assert_eq!(recovered.joins.iter().map(|j| (j.space, j.here)).collect::<Vec<_>>(), [(waiting.id(), false)]);
    let own = again.space(own.id())?;
    assert_eq!(own.name()?.as_deref(), Some("Own"));
    for (id, title) in [("old", "Before the rotation"), ("new", "After the rotation")] {
        assert_eq!(object(&own, "item", id)?.fields["title"], title);
    }
    let club = again.space(club.id())?;
    assert_eq!(object(&club, "note", "rules")?.fields["text"], "be kind");
    assert_eq!(club.acl()?.members[&again.account()].role, Role::Admin);
    assert_eq!(own.acl()?.members[&again.account()].role, Role::Owner);
    let joining = again.resume_join(waiting.id()).await?;
    accept(&waiting, &again, &joining, Role::Reader, &[]).await?;

    // Without the node there is nothing to recover from, and it says so.
    let mut node = node;
    node.kill();
    let alone = another(&node, &words, "offline").await?;
    let missing = alone.recovered(Duration::from_millis(300)).await.expect_err("no node");
    assert_eq!(missing.code(), "NO_NODE");
    Ok(())
}

/// A space that does not come takes no time from the others: what is missing is named, and only that.
#[tokio::test]
async fn a_space_that_does_not_come_back_holds_up_no_other() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let (a, words) = first(&node).await?;
    let mut spaces = [a.create_space("One").await?.id(), a.create_space("Two").await?.id()];
    a.account_synced(PATIENCE).await?;
    spaces.sort_unstable();
    let [refused, other] = spaces;
    relay.refuse_space(refused);
    let dir = tempfile::tempdir()?;
    let config = config(dir.path()).node(relay.address().clone()).name("Ada").device_name("phone");
    let again = Client::restore(config, words).await?;
    let missing = again.recovered(Duration::from_secs(5)).await.expect_err("one does not come");
    let RecoverError::Missing { missing, of } = missing else { return Err(missing.into()) };
    assert_eq!((missing.iter().map(|m| m.space).collect::<Vec<_>>(), of), (vec![refused], 2), "{missing:?}");
    assert!(missing[0].why.to_string().contains("the node has yet to answer"), "{missing:?}");
    again.space(other)?.await_synced().await?;
    relay.heal();
    assert_eq!(again.recovered(PATIENCE).await?.spaces.len(), 2);
    Ok(())
}

// ---- what ended stays ended -----------------------------------------------------------------------------------------

/// A device that was away while another one left a space does not bring it back; joining again does.
#[tokio::test]
async fn a_space_that_was_left_is_not_brought_back() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (a, words) = first(&node).await?;
    let b = another(&node, &words, "phone").await?;
    let club = admin.create_space("Club").await?;
    let here = sync_tests::harness::join(&club, &a, Role::Writer).await?;
    b.wait_for_space(club.id(), PATIENCE).await?.await_synced().await?;
    b.account_space()?.await_synced().await?;
    let TestClient { dir, client } = b;
    client.close().await;

    let mut gone = a.events();
    here.leave().await?;
    happens(&mut gone, ClientEvent::SpaceGone { space: club.id() }).await?;
    lists(&a, &[]).await?;
    a.account_space()?.await_synced().await?;

    let b = TestClient::open(dir).await;
    lists(&b, &[]).await?;
    let stale = b.space(club.id())?;
    until(&stale, || Ok(stale.acl()?.left.contains_key(&b.account()).then_some(()))).await?;
    for client in [&a, &b] {
        client.account_space()?.await_synced().await?;
        lists(client, &[]).await?;
    }

    sync_tests::harness::join(&club, &b, Role::Writer).await?;
    for client in [&a, &b] {
        lists(client, &[club.id()]).await?;
    }
    Ok(())
}

/// What an invite promised is not there, so the join is not over; then another device leaves the space. Nobody asks anew.
#[tokio::test]
async fn a_join_that_waits_for_a_promise_does_not_outlive_the_membership() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (a, words) = first(&node).await?;
    let b = another(&node, &words, "phone").await?;
    let club = admin.create_space("Club").await?;
    let must_see = vec![club.objects().tree_id("note", "never written")?];
    let token = club.invite(InviteOptions { must_see, ..InviteOptions::open() }).await?.token;
    drop(a.join(&token).await?);
    a.wait_for_space(club.id(), PATIENCE).await?.await_synced().await?;
    a.account_synced(PATIENCE).await?;
    let here = b.wait_for_space(club.id(), PATIENCE).await?;
    here.await_synced().await?;
    let TestClient { dir, client } = a;
    client.close().await;
    here.leave().await?;
    gone(&here).await?;

    // The first start hears of the end, the second one has heard of it.
    let mut dir = dir;
    for _ in 0..2 {
        let a = TestClient::open(dir).await;
        joins(&a, &[]).await?;
        a.account_synced(PATIENCE).await?;
        gone(&a.space(club.id())?).await?;
        let TestClient { dir: kept, client } = a;
        client.close().await;
        dir = kept;
    }
    club.await_synced().await?;
    assert!(!club.acl()?.members.contains_key(&b.account()), "it was joined anew");
    assert_eq!(club.acl()?.left.len(), 1);
    Ok(())
}

/// An admin put the account into a space without an invite: its id is enough, and the other device finds it by itself.
#[tokio::test]
async fn who_was_added_needs_only_the_id() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (a, words) = first(&node).await?;
    let b = another(&node, &words, "phone").await?;
    let club = admin.create_space("Club").await?;
    club.await_synced().await?;
    let early = a.open_joined(club.id(), Duration::from_millis(300)).await;
    assert_eq!(early.expect_err("nobody added it yet").code(), "TIMED_OUT");
    club.add_members(&[(a.account(), Role::Writer)]).await?;
    let here = a.open_joined(club.id(), PATIENCE).await?;
    here.await_synced().await?;
    assert_eq!(here.name()?.as_deref(), Some("Club"));
    here.objects().put("note", "hello", json!({ "text": "hello" })).await?;
    b.wait_for_space(club.id(), PATIENCE).await?.await_synced().await?;

    club.remove_members(&[a.account()]).await?;
    for client in [&a, &b] {
        lists(client, &[]).await?;
    }
    club.add_members(&[(a.account(), Role::Writer)]).await?;
    let joined = b.open_joined(club.id(), PATIENCE).await;
    assert!(joined.is_ok(), "{joined:?}");
    lists(&a, &[club.id()]).await?;
    Ok(())
}
