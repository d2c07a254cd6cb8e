//! The life of a pending write: overlaid on reads, rebuilt when the space moved on, refused with a reason.

use client_sdk::{
    Client, InviteOptions, NewTree, NodeAddress, NotSyncedCode, ObjectType, ParentRef, ReasonCode, Space, TreeWrite,
    Who, WriteError, WriteRule, WriteState,
};
use serde_json::json;
use sync_tests::harness::{NodeProcess, PATIENCE, TestClient, config};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The address of the same authority where nothing listens.
fn nowhere(node: &NodeAddress) -> NodeAddress {
    let mut address = node.clone();
    // Port 9 is "discard"; nobody serves it here.
    address.endpoint = "127.0.0.1:9".to_owned();
    address
}

async fn reopen_at(client: TestClient, node: NodeAddress) -> TestClient {
    let TestClient { dir, client } = client;
    client.close().await;
    let types = ObjectType::new("ballot").rule(|_| WriteRule { who: Who::Writers, once: true });
    let client = Client::open(config(dir.path()).node(node).object_type(types)).await.expect("the client opens again");
    TestClient { dir, client }
}

/// An admin and a writer in one space.
async fn two_members(node: &NodeProcess) -> Result<(TestClient, Space, TestClient, Space), Box<dyn std::error::Error>> {
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let admin_space = admin.create_space("Club").await?;
    let invite = admin_space.invite(InviteOptions::open()).await?;
    let member_space = member.join(&invite.token).await?.ready(PATIENCE).await?.remove(0);
    member_space.await_synced().await?;
    Ok((admin, admin_space, member, member_space))
}

/// Written under old keys while offline: encrypted anew, and lands. So does what was written on top of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_from_before_a_rotation_is_rebuilt_and_lands() -> Outcome {
    let node = NodeProcess::start();
    let (_admin, admin_space, member, member_space) = two_members(&node).await?;
    let id = member_space.id();
    let offline = reopen_at(member, nowhere(node.address())).await;
    let notes = offline.space(id)?.objects();
    let first = notes.put("note", "n", json!({ "text": "offline", "count": 1 })).await?.ok_or("a write")?;
    let second = notes.put("note", "n", json!({ "count": 2 })).await?.ok_or("a write")?;
    let seen = notes.get("note", "n")?.ok_or("pending writes are overlaid")?;
    assert_eq!((seen.pending, &seen.fields["count"]), (2, &json!(2)));

    admin_space.rotate_keys().await?;
    let online = reopen_at(offline, node.address().clone()).await;
    let space = online.space(id)?;
    for write in [first, second] {
        space.await_durable(write).await?;
    }
    assert!(matches!(space.write_state(second)?, Some(WriteState::Durable { .. } | WriteState::Logged { .. })));
    let landed = admin_space.await_object("note", "n", PATIENCE).await?;
    admin_space.await_synced().await?;
    let landed_now = admin_space.objects().get("note", "n")?.ok_or("the note")?;
    assert_eq!(landed.fields["text"], "offline");
    assert_eq!(landed_now.fields, space.objects().get("note", "n")?.ok_or("the note")?.fields);
    assert_eq!(admin_space.acl()?.epoch.0, 1);
    Ok(())
}

/// Two ballots for one box that takes one: the second becomes a refused row, is not shown as the truth, and does not block.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_write_is_named_and_can_be_dismissed() -> Outcome {
    let node = NodeProcess::start();
    let (admin, _, member, member_space) = two_members(&node).await?;
    let id = member_space.id();
    let admin = reopen_at(admin, node.address().clone()).await;
    let admin_space = admin.space(id)?;
    let offline = reopen_at(member, nowhere(node.address())).await;
    let late = offline.space(id)?.objects().put("ballot", "box", json!({ "vote": "b" })).await?.ok_or("a write")?;

    let early = admin_space.objects().put("ballot", "box", json!({ "vote": "a" })).await?.ok_or("a write")?;
    admin_space.await_durable(early).await?;
    let online = reopen_at(offline, node.address().clone()).await;
    let space = online.space(id)?;
    let neighbour = space.objects().put("note", "n", json!({ "text": "lands" })).await?.ok_or("a write")?;
    space.await_durable(neighbour).await?;

    let failed = space.await_synced().await.expect_err("a refused write is residue");
    assert_eq!(failed.code, NotSyncedCode::Refused);
    assert!(failed.residue.iter().any(|r| r.code == ReasonCode::Refused), "{failed:?}");
    assert!(matches!(space.write_state(late)?, Some(WriteState::Refused(_))));
    assert!(space.explain()?.iter().any(|r| r.code == ReasonCode::Refused));
    assert_eq!(space.objects().get("ballot", "box")?.ok_or("the ballot")?.fields["vote"], "a");

    space.dismiss(late).await?;
    space.await_synced().await?;
    assert_eq!(space.write_state(late)?, Some(WriteState::Dismissed));
    Ok(())
}

/// A history of one's own with more branches than a change can join: refused by name, and the client works on.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_with_too_many_parents_is_refused_by_name() -> Outcome {
    let node = NodeProcess::start();
    let client = TestClient::create("Ada", node.address()).await;
    let space = client.create_space("Code").await?;
    let write = |parents| TreeWrite { parents: Some(parents), payload: bytes_of("commit") };
    let branches: Vec<_> = (0..33).map(|_| write(Vec::new())).collect();
    let tree = NewTree { data_type: "test/1".to_owned(), write_rule: WriteRule::WRITERS };
    let written = space.create_tree(tree, branches).await?;
    let join = |n: usize| written.changes[..n].iter().map(|c| ParentRef::Change(*c)).collect::<Vec<_>>();
    let refused = space.append(written.tree, "test/1".to_owned(), vec![write(join(33))]).await;
    assert!(matches!(refused, Err(WriteError::TooManyParents { actual: 33, max: 32 })), "{refused:?}");
    let joined = space.append(written.tree, "test/1".to_owned(), vec![write(join(32))]).await?;
    space.await_durable(joined.writes[0]).await?;
    let changes = space.tree(written.tree)?.ok_or("the tree")?.changes()?;
    assert_eq!(changes.len(), 34);
    assert_eq!(space.tree(written.tree)?.ok_or("the tree")?.snapshot()?.heads.len(), 2);
    Ok(())
}

/// One more branch than a tree may have: the last write is made anew on top of others, and lands.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_finds_the_heads_full_is_rebuilt_on_top_of_some() -> Outcome {
    let node = NodeProcess::start();
    let client = TestClient::create("Ada", node.address()).await;
    let space = client.create_space("Code").await?;
    let branch = || TreeWrite { parents: Some(Vec::new()), payload: bytes_of("commit") };
    let tree = NewTree { data_type: "test/1".to_owned(), write_rule: WriteRule::WRITERS };
    let written = space.create_tree(tree, (0..1025).map(|_| branch()).collect()).await?;
    let last = *written.writes.last().ok_or("a write")?;
    space.await_durable_within(last, PATIENCE).await?;
    space.await_synced().await?;
    let tree = space.tree(written.tree)?.ok_or("the tree")?;
    let changes = tree.changes()?;
    assert_eq!(changes.len(), 1025, "nothing was lost");
    let joined = changes.iter().filter(|c| c.parents.len() == 32).count();
    assert_eq!(joined, 1, "the last one joins 32 branches");
    assert_eq!(tree.snapshot()?.heads.len(), 1024 - 32 + 1);
    Ok(())
}

fn bytes_of(text: &'static str) -> bytes::Bytes {
    bytes::Bytes::from_static(text.as_bytes())
}
