//! Stories in a simulated world: told from seeds, and told by hand.

use std::time::Duration;

use client_sdk::{InviteOptions, Space};
use serde_json::json;
use sync_world::{Faults, Story, World, note_panics};

/// A few of the seeds that `scripts/simulate` tells by the thousand.
const SEEDS: std::ops::Range<u64> = 0..24;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn stories_from_seeds_break_nothing() -> Result<(), String> {
    note_panics();
    for seed in SEEDS {
        let told = Story::of(seed).tell();
        // Returned, since panics are noted and not printed.
        if let Some(violation) = told.violation {
            return Err(format!("{violation}\nseed {seed}: `scripts/simulate --seed {seed}` makes it short"));
        }
    }
    Ok(())
}

/// Without this flag, which of several waiting tasks is woken first is chance.
#[cfg(tokio_unstable)]
#[test]
fn a_seed_replays_to_the_last_line() {
    for seed in 0..4 {
        let story = Story::of(seed);
        let (first, second) = (story.tell(), story.tell());
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert!(first.entries > 0 && !first.trace.is_empty());
    }
}

#[test]
fn stories_differ_by_seed() {
    assert_ne!(Story::of(1).steps, Story::of(2).steps);
}

/// Two members of one space, as every story by hand begins.
async fn meet(world: &World) -> (Space, Space) {
    let [alice, bob] = ["alice", "bob"].map(|name| world.client(name).expect("it runs"));
    let space = alice.create_space("Club").await.expect("a space is made offline");
    let invite = space.invite(InviteOptions::open()).await.expect("the node is there");
    let joining = bob.join(&invite.token).await.expect("the token is good");
    let joined = joining.ready(MINUTE).await.expect("nothing is in the way").remove(0);
    (space, joined)
}

#[test]
fn what_was_not_flushed_goes_with_the_power_and_stays_with_a_kill() {
    for cut in [true, false] {
        World::seeded(1).clients(1).run(|world| async move {
            let alice = world.client("alice").unwrap();
            let space = alice.create_space("Diary").await.unwrap();
            space.objects().put("page", "1", json!({ "n": 1 })).await.unwrap();
            space.durable_locally().await.unwrap();
            space.objects().put("page", "2", json!({ "n": 2 })).await.unwrap();
            if cut {
                world.power_cut("alice")
            } else {
                world.kill("alice")
            };
            assert!(world.client("alice").is_err());
            world.start("alice").await.unwrap();
            let again = world.client("alice").unwrap().space(space.id()).unwrap();
            assert!(again.objects().get("page", "1").unwrap().is_some());
            assert_eq!(again.objects().get("page", "2").unwrap().is_some(), !cut);
        });
    }
}

#[test]
fn a_way_that_is_cut_carries_nothing_and_then_everything() {
    World::seeded(2).faults(Faults::all()).run(|world| async move {
        let (here, there) = meet(&world).await;
        world.cut_one_way("alice", "node-0");
        here.objects().put("note", "a", json!({ "text": "held back" })).await.unwrap();
        let early = there.await_object("note", "a", Duration::from_secs(5)).await;
        assert!(early.is_err(), "{early:?}");
        world.heal("alice", "node-0");
        there.await_object("note", "a", MINUTE).await.unwrap();
    });
}
