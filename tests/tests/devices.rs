//! S64 and S66: several devices of one account, and an account that is brought back from its words alone.

use std::time::Duration;

use client_sdk::{Client, ClientConfig, ClientEvent, Mnemonic, Space, SpaceId};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, config, object, until};
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
