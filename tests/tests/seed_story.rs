//! The seed story: a member joins and sees the record that was just made for it.

use client_sdk::{InviteOptions, Space};
use serde_json::json;
use sync_tests::harness::{NodeProcess, PATIENCE, TestClient};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// S01: admin writes the profile, invites; the member joins and reads it.
#[tokio::test(flavor = "multi_thread")]
async fn s01_approve_join_read_own_profile() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let own = member.account().to_string();
    space.objects().put("profile", &own, json!({ "name": "Member" })).await?;
    let mut invite = InviteOptions::approval();
    invite.must_see = vec![space.objects().tree_id("profile", &own)?];
    let invite = space.invite(invite).await?;
    let joining = member.join(&invite.token).await?;
    let request = request_of(&space, &member).await?;
    space.approve(request, None, &[]).await?;
    let joined = joining.ready(PATIENCE).await?.remove(0);
    let profile = joined.objects().get("profile", &own)?.ok_or("the profile is missing")?;
    assert_eq!(profile.fields["name"], "Member");
    joined.await_synced().await?;
    space.await_synced().await?;
    let heads = |s: &Space| s.tree(profile.tree).unwrap().unwrap().snapshot().unwrap().heads.clone();
    assert_eq!(heads(&space), heads(&joined));
    Ok(())
}

/// Waits for the member's request on the admin's own event feed.
async fn request_of(space: &Space, member: &TestClient) -> Result<client_sdk::AclId, Box<dyn std::error::Error>> {
    let mut events = space.events();
    loop {
        if let Ok(request) = space.request_of(member.account()) {
            return Ok(request);
        }
        tokio::time::timeout(PATIENCE, events.next()).await?;
    }
}
