//! Several nodes in one world. A client has one node; what one node suffers is no affair of the clients of another.

use std::time::Duration;

use client_sdk::{InviteOptions, JoinError, Space};
use serde_json::json;
use sync_core::judge::{Judged, JudgedTree, Standing};
use sync_core::limits;
use sync_core::log::Reject;
use sync_store::{Store, StoreError, StoreKind, WriteTx, memory::Disk};
use sync_world::{Faults, Garble, World};

const MINUTE: Duration = Duration::from_secs(60);

/// Two members of one space, on the node that both use.
async fn meet(world: &World, founder: &str, guest: &str) -> [Space; 2] {
    let [here, there] = [founder, guest].map(|name| world.client(name).expect("it runs"));
    let space = here.create_space(founder).await.expect("a space is made offline");
    let invite = space.invite(InviteOptions::open()).await.expect("the node is there");
    let joining = there.join(&invite.token).await.expect("the token is good");
    let joined = joining.ready(MINUTE).await.expect("nothing is in the way").remove(0);
    [space, joined]
}

async fn put(space: &Space, id: &str) {
    space.objects().put("note", id, json!({ "text": id })).await.expect("a write is local");
}

/// Which spaces stand on a node's disk.
fn spaces_on(world: &World, node: &str) -> Vec<client_sdk::SpaceId> {
    let image = world.disk(node).image().expect("the node ran");
    let store = Store::open_on(&Disk::holding("looked at", image), StoreKind::Node).expect("it opens");
    store.read(|tx| tx.spaces()).expect("it is readable").into_iter().map(|row| row.space).collect()
}

#[test]
fn a_node_that_is_down_is_no_affair_of_another_nodes_clients() {
    for seed in 0..4 {
        World::seeded(seed).clients(2).nodes(2).faults(Faults::all()).run(|world| async move {
            for name in ["carol", "dave"] {
                world.add_client(name, "node-1");
                world.start(name).await.expect("it starts");
            }
            let (first, second) = tokio::join!(meet(&world, "alice", "bob"), meet(&world, "carol", "dave"));
            world.power_cut("node-1");
            for (n, [here, there]) in [&first, &second].into_iter().enumerate() {
                put(here, &format!("{n} here")).await;
                put(there, &format!("{n} there")).await;
            }
            for space in &first {
                space.await_synced_within(MINUTE).await.expect("their node is up");
            }
            for space in &second {
                let not = space.await_synced_within(Duration::from_secs(5)).await.expect_err("their node is down");
                assert!(!not.residue.is_empty(), "{not}");
            }
            world.clear_up().await.expect("everything starts");
            for space in first.iter().chain(&second) {
                space.await_synced_within(MINUTE).await.expect("the weather is good");
            }
            // What the second had not seen of the first when it said that it was synced came before this answer.
            for [here, there] in [&first, &second] {
                here.await_synced_within(MINUTE).await.expect("the weather is good");
                assert_eq!(here.objects().list_all().unwrap(), there.objects().list_all().unwrap());
            }
            let ([zero, one], [first, second]) =
                (["node-0", "node-1"].map(|node| spaces_on(&world, node)), [&first, &second].map(|pair| pair[0].id()));
            assert!(zero.contains(&first) && !zero.contains(&second), "{zero:?}");
            assert!(one.contains(&second) && !one.contains(&first), "{one:?}");
        });
    }
}

/// An account is at one node: there is no space of another one in it, and the answer says whose the invite is.
#[test]
fn an_invite_to_another_node_is_refused_with_both_names_and_leaves_nothing() {
    World::seeded(1).clients(1).nodes(2).run(|world| async move {
        world.add_client("carol", "node-1");
        world.start("carol").await.expect("it starts");
        let [alice, carol] = ["alice", "carol"].map(|name| world.client(name).expect("it runs"));
        let space = alice.create_space("Club").await.expect("a space is made offline");
        let invite = space.invite(InviteOptions::open()).await.expect("the node is there");
        match carol.join(&invite.token).await {
            Err(JoinError::WrongAuthority { expected, actual }) => {
                assert_eq!((expected, actual), (world.address("node-0").authority, world.address("node-1").authority));
            }
            other => panic!("joined at another node: {other:?}"),
        }
        assert!(carol.joins().expect("readable").is_empty());
        assert!(carol.space(space.id()).is_err());
        assert_eq!(space.acl().expect("readable").members.len(), 1);
    });
}

/// A line that eats every tenth message delays everything and breaks nothing.
#[test]
fn a_line_that_garbles_messages_only_delays() {
    let garble = Garble { lost: 8, twice: 8, swapped: 8, late: 4 };
    World::seeded(3).clients(2).lines().run(|world| async move {
        let [here, there] = meet(&world, "alice", "bob").await;
        world.garble("alice", garble);
        world.garble("bob", garble);
        for n in 0..20 {
            put(&here, &format!("a{n}")).await;
            put(&there, &format!("b{n}")).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        world.clear_up().await.expect("everything runs");
        for space in [&here, &there, &here] {
            space.await_synced_within(MINUTE * 3).await.expect("the line is clear");
        }
        assert_eq!(here.objects().list("note").unwrap().len(), 40);
        assert_eq!(here.objects().list_all().unwrap(), there.objects().list_all().unwrap());
    });
}

/// Wrong derivations are found while the line stands, by what every heartbeat says, and not only by the next connection.
#[test]
fn a_heartbeat_shows_what_was_derived_wrongly() {
    World::seeded(4).clients(2).run(|world| async move {
        let [here, there] = meet(&world, "alice", "bob").await;
        put(&here, "one").await;
        put(&here, "two").await;
        there.await_synced_within(MINUTE).await.expect("nothing is in the way");
        here.await_synced_within(MINUTE).await.expect("nothing is in the way");
        there.await_synced_within(MINUTE).await.expect("nothing is in the way");
        // The comparison of this connection is over.
        tokio::time::sleep(MINUTE).await;
        let (space, tree) = (there.id(), there.objects().tree_id("note", "one").expect("it has the keys"));
        let derive_wrongly = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
            let standing = || Standing::Quarantined(Reject::NotAnEntry);
            let rows = tx.tree_changes(space, tree)?.into_iter();
            let entries = rows.map(|row| Judged { root: None, at: row.position.seq, standing: standing() }).collect();
            tx.delete_object(space, tree)?;
            tx.put_judged(space, &[(tree, JudgedTree { entries, state: None })])
        };
        world.store("bob").expect("it runs").write(derive_wrongly).await.expect("it is written");
        assert_eq!(there.objects().list("note").expect("it is readable").len(), 1);

        tokio::time::sleep(limits::HEARTBEAT_INTERVAL * 3).await;
        assert_eq!(there.objects().list("note").expect("it is readable").len(), 2);
        there.await_synced_within(MINUTE).await.expect("it is whole again");
        assert_eq!(there.explain().expect("it is readable"), []);
    });
}
