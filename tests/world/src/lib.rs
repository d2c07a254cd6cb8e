//! A simulated world: real clients and real nodes, on simulated machines, disks and networks, in virtual time, from a seed.
//!
//! Everything above the machine is the product itself: the SDK, the node, the rules, the wire, the store. The machine is ours:
//! its clock, its dice, its disk ([`sync_store::memory::Disk`]), its connections. So a minute costs nothing, the power can be cut
//! at any commit, and what went wrong once goes wrong again, to the last message, whenever the seed is given.
//!
//! # For the tests of an app
//!
//! [`World::seeded`] makes a world with clients and a node; [`Plan::run`] tells a story in it. Clients are [`client_sdk::Client`]s
//! as anywhere else. Give it bad weather ([`Faults::all`]), cut ways, kill and start machines, and assert what your app promises.
//!
//! ```
//! use client_sdk::InviteOptions;
//! use serde_json::json;
//! use std::time::Duration;
//! use sync_world::{Faults, World};
//!
//! for seed in 0..3 {
//!     World::seeded(seed).clients(2).faults(Faults::all()).run(|world| async move {
//!         let (alice, bob) = (world.client("alice").unwrap(), world.client("bob").unwrap());
//!         let list = alice.create_space("Shopping").await.unwrap();
//!         let invite = list.invite(InviteOptions::open()).await.unwrap();
//!         let joining = bob.join(&invite.token).await.unwrap();
//!         let theirs = joining.ready(Duration::from_secs(60)).await.unwrap().remove(0);
//!
//!         // Bob shops in the cellar; meanwhile the node loses power.
//!         world.cut("bob", "node-0");
//!         theirs.objects().put("item", "milk", json!({ "title": "Milk" })).await.unwrap();
//!         world.power_cut("node-0");
//!         tokio::time::sleep(Duration::from_secs(30)).await;
//!
//!         world.clear_up().await.unwrap();
//!         theirs.await_synced_within(Duration::from_secs(60)).await.unwrap();
//!         list.await_synced_within(Duration::from_secs(60)).await.unwrap();
//!         assert_eq!(list.objects().get("item", "milk").unwrap().unwrap().fields["title"], "Milk");
//!     });
//! }
//! ```
//!
//! A client handle belongs to one process: after [`World::kill`], [`World::power_cut`] or [`World::stop`] and
//! [`World::start`], ask [`World::client`] again. Work that should die with a machine is spawned with [`World::spawn_on`].
//! When the story panics, the seed and what happened are printed.
//!
//! # For our own
//!
//! [`Story::of`] makes a story from a seed: founders, invites, writes, removals, awaits, cuts, kills, power cuts, full and
//! failing disks. [`Story::tell`] tells it, looks at the world after every step, and returns the first [`Violation`] of an
//! invariant; [`shrink`] makes a failing story short. The program `simulate` does that for many seeds.
//!
//! # Never here
//!
//! No second implementation of a rule that the product has, unless to compare the two. No real clock, no real socket, no thread:
//! one world is one thread. No waiting for real time.

mod foe;
mod follow;
mod invariants;
mod line;
mod machine;
mod net;
mod secrets;
mod shrink;
mod story;
mod tale;
mod told;
mod trace;
mod violation;
mod world;

pub use foe::{Attack, Deed, Foe, Lie, Restore};
pub use line::Garble;
pub use net::Latency;
pub use shrink::{Shrunk, shrink};
pub use story::{Act, Direction, Given, History, Mishap, Place, Profile, Step, Story, Way, Who};
pub use tale::{Ending, note_panics};
pub use violation::Violation;
pub use world::{CLIENT_NAMES, Down, Faults, Plan, StartError, World};
