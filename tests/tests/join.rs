//! What becomes of a join that is not simply accepted.

use std::collections::BTreeMap;

use client_sdk::{InviteOptions, JoinError, JoinStage, Space};
use sync_tests::harness::{NodeProcess, PATIENCE, TestClient};
use sync_tests::relay::{Calls, Relay};

type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn pending(space: &Space) -> client_sdk::AclId {
    let mut events = space.events();
    loop {
        let waiting = space.requests().expect("requests can be read");
        let found = waiting.iter().find(|r| r.status == client_sdk::RequestStatus::Pending);
        if let Some(request) = found {
            return request.id;
        }
        tokio::time::timeout(PATIENCE, events.next()).await.expect("somebody asks");
    }
}

/// S56: declined, and then asked again on purpose; a decline is said once and never repeated behind anybody's back.
#[tokio::test(flavor = "multi_thread")]
async fn s56_declined_then_asked_again() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::approval()).await?.token;

    let joining = member.join(&token).await?;
    space.decline(pending(&space).await).await?;
    assert!(matches!(joining.ready(PATIENCE).await, Err(JoinError::Declined)));
    assert_eq!(member.joins()?, [], "nothing of it stays behind");

    // Another process of the same account learns of a decline that came while nobody waited.
    member.join(&token).await?;
    space.decline(pending(&space).await).await?;
    let member = member.reopen().await;
    assert!(matches!(member.join(&token).await, Err(JoinError::Declined)));
    assert_eq!(space.requests()?.len(), 2, "being told asks nobody");

    let joining = member.join(&token).await?;
    assert_eq!(member.joins()?[0].stage, JoinStage::Requested);
    space.approve_as(pending(&space).await, None).await?;
    joining.ready(PATIENCE).await?;
    assert!(member.joins()?.is_empty());
    Ok(())
}

/// The process ends after asking; another one goes on without being told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_in_the_next_process() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    member.join(&token).await?;
    let member = member.reopen().await;
    space.approve_as(pending(&space).await, None).await?;
    let joined = member.join(&token).await?.ready(PATIENCE).await?.remove(0);
    joined.await_synced().await?;
    assert_eq!(space.requests()?.len(), 1);
    Ok(())
}

/// A node that is being started again ends sessions and refuses for a moment: that is nothing a joiner has to hear of.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_in_a_moment_fails_no_join() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let relay = Relay::start(node.address()).await;
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    member.connected(PATIENCE).await?;

    let mut met: BTreeMap<&str, u32> = BTreeMap::new();
    relay.calls(move |name| {
        let times = met.entry(name).or_default();
        *times += 1;
        let refused = matches!(name, "AclRead" | "AclAppend" | "Certify") && *times <= 2;
        if refused { Calls::Refuse } else { Calls::Forward }
    });
    member.join(&token).await?.ready(PATIENCE).await?;
    assert_eq!(relay.calls_met("AclRead"), 2, "the first question was refused twice");
    assert_eq!(relay.calls_met("AclAppend"), 2);
    Ok(())
}
