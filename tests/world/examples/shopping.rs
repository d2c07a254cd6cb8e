//! How an app tests itself in a simulated world: a shopping list, two people, a cellar, a node that loses power.
//!
//! ```text
//! cargo run -p sync-world --example shopping
//! ```

#![expect(clippy::print_stdout, reason = "an example that says what it did")]

use std::time::Duration;

use client_sdk::{InviteOptions, NotSynced, Space, WriteError};
use serde_json::json;
use sync_world::{Faults, World};

const PATIENCE: Duration = Duration::from_secs(120);

/// The app: all that it does with a space.
struct List(Space);

impl List {
    async fn add(&self, item: &str) -> Result<(), WriteError> {
        self.0.objects().put("item", item, json!({ "title": item, "done": false })).await?;
        Ok(())
    }

    async fn tick(&self, item: &str) -> Result<(), WriteError> {
        self.0.objects().put("item", item, json!({ "done": true })).await?;
        Ok(())
    }

    /// What still has to be bought.
    fn open(&self) -> Vec<String> {
        let items = self.0.objects().list("item").unwrap_or_default();
        items.into_iter().filter(|item| item.fields["done"] == false).map(|item| item.id).collect()
    }

    async fn synced(&self) -> Result<(), NotSynced> {
        self.0.await_synced_within(PATIENCE).await.map(|_| ())
    }
}

/// What the app promises: whatever happens on the way, both see the same list in the end, and nothing that was ticked is
/// bought twice.
async fn two_shop(world: World) -> Result<(), Box<dyn std::error::Error>> {
    let alice = List(world.client("alice")?.create_space("Shopping").await?);
    alice.add("milk").await?;
    let invite = alice.0.invite(InviteOptions::open()).await?;
    let bob = List(world.client("bob")?.join(&invite.token).await?.ready(PATIENCE).await?.remove(0));

    world.cut("bob", "node-0");
    bob.tick("milk").await?;
    bob.add("bread").await?;
    alice.add("eggs").await?;
    world.power_cut("node-0");
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.kill("bob");

    world.clear_up().await?;
    // A new process: ask for its client, and for its space.
    let bob = List(world.client("bob")?.space(bob.0.id())?);
    bob.synced().await?;
    alice.synced().await?;
    bob.synced().await?;
    assert_eq!(alice.open(), ["bread", "eggs"]);
    assert_eq!(bob.open(), alice.open());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for seed in 0..10 {
        World::seeded(seed).clients(2).faults(Faults::all()).run(two_shop)?;
        println!("seed {seed}: both see the same list");
    }
    Ok(())
}
