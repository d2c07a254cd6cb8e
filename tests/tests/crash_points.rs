//! The node dies in the middle of a system call: while it writes, before it flushes, after it flushed and before it answers. Each
//! of them in the middle of a join, of a push and of an act on the ACL. What was acknowledged is there, what was not is sent again,
//! and nothing is there twice (S26, S27).

use std::process::ExitCode;

use client_sdk::{InviteOptions, Reason, ReasonCode, Role, Space, WriteState};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, accept, agree, join, until};
use sync_tests::machine::{self, Tampering};
use sync_tests::scenario;

fn main() -> ExitCode {
    machine::main(&[
        scenario!(s26_node_killed_at_every_point_of_an_open_join, Tracing),
        scenario!(s26_node_killed_at_every_point_of_a_request, Tracing),
        scenario!(s27_node_killed_at_every_point_of_a_push, Tracing),
        scenario!(node_killed_at_every_point_of_a_rotation, Tracing),
    ])
}

/// The calls that write, and the how-manieth of them is the last that the node makes.
const POINTS: [(&str, u32); 7] = [
    ("pwrite64", 1),
    ("pwrite64", 2),
    ("pwrite64", 4),
    ("fdatasync,fsync", 1),
    // The socket: an answer that is ready, and is never sent.
    ("sendto,sendmsg,writev,write", 1),
    ("sendto,sendmsg,writev,write", 2),
    ("sendto,sendmsg,writev,write", 4),
];

/// Kills the node at one of the points from now on; it may take a moment until somebody gives it something to do.
fn doomed(node: &NodeProcess, (calls, nth): (&str, u32)) -> Outcome<Tampering> {
    Tampering::with(node.pid().ok_or("the node runs")?, calls, &format!("signal=KILL:when={nth}"))
}

/// Waits for its death, and starts it again.
async fn reborn(mut node: NodeProcess, doom: Tampering) -> Outcome<NodeProcess> {
    tokio::task::spawn_blocking(move || {
        doom.until_it_ends()?;
        node.restart();
        Ok(node)
    })
    .await?
}

/// Something that the node does not survive: what came of it, and the node that is there afterwards.
async fn through_death<T>(
    node: NodeProcess,
    point: (&str, u32),
    clients: [&TestClient; 2],
    act: impl Future<Output = T>,
) -> Outcome<(T, NodeProcess)> {
    let doom = doomed(&node, point)?;
    let reviving = async {
        let node = reborn(node, doom).await?;
        clients.iter().for_each(|client| client.reconnect());
        Outcome::Ok(node)
    };
    let (done, revived) = tokio::join!(act, reviving);
    Ok((done, revived?))
}

/// `one_record_of_a_join`: however often it was tried.
fn one_record_of_a_join(space: &Space, members: usize) -> Outcome {
    let acl = space.acl()?;
    let uses: u32 = acl.invites.values().map(|invite| invite.uses).sum();
    assert_eq!((acl.members.len(), usize::try_from(uses)?), (members + 1, members), "once each");
    Ok(())
}

async fn s26_node_killed_at_every_point_of_an_open_join() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    space.await_synced().await?;
    for (n, point) in POINTS.into_iter().enumerate() {
        let member = TestClient::create("Member", node.address()).await;
        let invite = space.invite(InviteOptions::open()).await?;
        member.connected(PATIENCE).await?;
        space.await_synced().await?;
        let (first, revived) = through_death(node, point, [&admin, &member], member.join(&invite.token)).await?;
        node = revived;
        // It was answered, or it was not; then the same token goes on.
        let joining = match first {
            Ok(joining) => joining,
            Err(_) => member.join(&invite.token).await?,
        };
        let joined = joining.ready(PATIENCE).await.map_err(|e| format!("{point:?}: {e}"))?.remove(0);
        joined.await_object("item", "milk", PATIENCE).await?;
        agree(&[&space, &joined]).await.map_err(|e| format!("{point:?}: {e}"))?;
        one_record_of_a_join(&space, n + 1)?;
    }
    Ok(())
}

async fn s26_node_killed_at_every_point_of_a_request() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("item", "milk", json!({ "n": 1 })).await?;
    space.await_synced().await?;
    for (n, point) in POINTS.into_iter().enumerate() {
        let member = TestClient::create("Member", node.address()).await;
        let invite = space.invite(InviteOptions::approval()).await?;
        member.connected(PATIENCE).await?;
        space.await_synced().await?;
        let (first, revived) = through_death(node, point, [&admin, &member], member.join(&invite.token)).await?;
        node = revived;
        let joining = match first {
            Ok(joining) => joining,
            Err(_) => member.join(&invite.token).await?,
        };
        // And once more, at the same point of the acceptance.
        let accepting = accept(&space, &member, &joining, Role::Writer, &[]);
        let (accepted, revived) = Box::pin(through_death(node, point, [&admin, &member], accepting)).await?;
        node = revived;
        let joined = match accepted {
            Ok(joined) => joined,
            // The admin was told that it is not known; it is not there, or it is.
            Err(_) => match space.request_of(member.account()) {
                Ok(_) => accept(&space, &member, &joining, Role::Writer, &[]).await?,
                Err(_) => joining.ready(PATIENCE).await?.remove(0),
            },
        };
        joined.await_object("item", "milk", PATIENCE).await?;
        agree(&[&space, &joined]).await.map_err(|e| format!("{point:?}: {e}"))?;
        one_record_of_a_join(&space, n + 1)?;
    }
    Ok(())
}

async fn s27_node_killed_at_every_point_of_a_push() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    let mut writes = Vec::new();
    for (n, point) in POINTS.into_iter().enumerate() {
        let doom = doomed(&node, point)?;
        let mut batch = Vec::new();
        for i in 0..5 {
            let id = format!("{n}-{i}");
            batch.extend(joined.objects().put("item", &id, json!({ "n": i })).await?);
        }
        node = reborn(node, doom).await?;
        let offline = || Ok(Reason::find(&joined.explain()?, ReasonCode::NoNode).is_some().then_some(()));
        until(&joined, offline).await?;
        let said: Vec<_> = batch.iter().map(|write| joined.write_state(*write)).collect::<Result<_, _>>()?;
        // The admin asks first: what it finds came from the node's disk.
        admin.reconnect();
        space.await_synced_within(PATIENCE).await?;
        for (i, state) in said.iter().enumerate() {
            if matches!(state, Some(WriteState::Durable { .. } | WriteState::Logged { .. })) {
                let there = space.objects().get("item", &format!("{n}-{i}"))?;
                assert!(there.is_some(), "{point:?}: {state:?}, and it is lost");
            }
        }
        member.reconnect();
        for write in &batch {
            joined.await_durable_within(*write, PATIENCE).await.map_err(|e| format!("{point:?}: {e}"))?;
        }
        writes.extend(batch);
    }
    agree(&[&space, &joined]).await?;
    assert_eq!(space.objects().list("item")?.len(), writes.len());
    let status = space.status()?;
    assert_eq!(
        (status.changes, status.trees),
        (writes.len() as u64 + 1, writes.len() as u64 + 1),
        "nothing is there twice"
    );
    Ok(())
}

async fn node_killed_at_every_point_of_a_rotation() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    let mut epochs = space.acl()?.epoch.0;
    for point in POINTS {
        let (rotated, revived) = through_death(node, point, [&admin, &member], space.rotate_keys()).await?;
        node = revived;
        rotated.map_err(|e| format!("{point:?}: {e}"))?;
        epochs += 1;
        let write = joined.objects().put("item", "milk", json!({ "n": epochs })).await?.ok_or("a write")?;
        joined.await_durable_within(write, PATIENCE).await?;
        agree(&[&space, &joined]).await.map_err(|e| format!("{point:?}: {e}"))?;
        assert_eq!(joined.acl()?.epoch.0, epochs, "{point:?}: one rotation, however often it was sent");
    }
    Ok(())
}
