//! Enemies: in some stories somebody does not play by the rules. What must hold does not change by that, but for what an enemy is
//! rightly accused of.
//!
//! Who the enemy is, and what it does when, is drawn from the seed like everything else; its deeds are steps of the story.

pub(crate) mod liar;
mod patched;
pub(crate) mod set_back;

use std::fmt;

use client_sdk::{ReasonCode, SpaceId};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use sync_store::memory::Image;
use tokio::task::JoinHandle;

use crate::machine::dice;
use crate::story::{Act, NODE, Step, Story, Who};
use crate::told::Told;
use crate::violation::Violation;
use crate::world::World;

pub use liar::Lie;
pub use patched::Attack;

/// Who does not play by the rules in a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foe {
    /// The operator of the node, who puts an older disk into it.
    Operator(Restore),
    /// A client of this account beside the honest one, that sends what it likes.
    Patched(Who),
    /// The node, to this client.
    Liar(Who),
}

/// How a node is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// It just starts with the older disk.
    Silent,
    /// With `sync-node restore`, so that clients know.
    Recognised,
}

/// What an enemy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Copies what is safe on the node's disk.
    BackUp,
    /// Puts the copy back, and starts the node.
    SetBack(Restore),
    /// A patched client of an account sends something wrong.
    Attack { by: Who, space: usize, attack: Attack },
    /// The node begins to lie to a client.
    Lie { to: Who, lie: Lie },
    /// The node lies no more, and the client is started anew.
    Truth { to: Who },
}

impl fmt::Display for Foe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(Restore::Silent) => f.write_str("the node's disk is set back"),
            Self::Operator(Restore::Recognised) => f.write_str("the node is restored"),
            Self::Liar(who) => write!(f, "the node lies to {who}"),
            Self::Patched(who) => write!(f, "{who} has a patched client, too"),
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackUp => f.write_str("a backup of the node is made"),
            Self::SetBack(Restore::Silent) => f.write_str("the node starts with the backup on its disk"),
            Self::SetBack(Restore::Recognised) => {
                f.write_str("the node is restored from the backup, and clients are told")
            }
            Self::Attack { by, space, attack } => write!(f, "{by}, patched, attacks space {space}: {attack:?}"),
            Self::Lie { to, lie } => write!(f, "the node lies to {to}: {lie:?}"),
            Self::Truth { to } => write!(f, "the node lies to {to} no more, who starts anew"),
        }
    }
}

/// One story of so many has an enemy.
const ONE_IN: u32 = 5;

impl Foe {
    fn draw(dice: &mut ChaCha8Rng, clients: usize) -> Option<Self> {
        if !dice.random_ratio(1, ONE_IN) {
            return None;
        }
        let restore = if dice.random_bool(0.5) { Restore::Silent } else { Restore::Recognised };
        let who = Who(dice.random_range(1..clients));
        Some(match dice.random_range(0..20) {
            0..9 => Self::Operator(restore),
            9..15 => Self::Patched(who),
            _ => Self::Liar(who),
        })
    }
}

/// Gives a story its enemy, if the seed has one for it, and puts the deeds between the steps.
pub(crate) fn add_to(story: &mut Story) {
    let mut dice = dice(story.seed, "foes");
    story.foe = Foe::draw(&mut dice, story.clients);
    let deeds = match story.foe {
        None => Vec::new(),
        Some(Foe::Operator(restore)) => set_back::deeds(&mut dice, restore),
        Some(Foe::Patched(who)) => patched::deeds(&mut dice, who),
        Some(Foe::Liar(who)) => liar::deeds(&mut dice, who),
    };
    insert(&mut dice, story, deeds);
}

/// In their order, at places that the dice choose, none before everybody was let in.
fn insert(dice: &mut ChaCha8Rng, story: &mut Story, deeds: Vec<Deed>) {
    let first = story.clients.min(story.steps.len());
    let mut places: Vec<usize> = deeds.iter().map(|_| dice.random_range(first..=story.steps.len())).collect();
    places.sort_unstable();
    for (before, (place, deed)) in places.into_iter().zip(deeds).enumerate() {
        let number = u32::try_from(story.steps.len()).unwrap_or(u32::MAX);
        let then_ms = if dice.random_bool(0.5) { 0 } else { dice.random_range(0..3000) };
        story.steps.insert(place + before, Step { number, act: Act::Foe(deed), then_ms });
    }
}

/// The enemies of a story that is being told.
pub(crate) struct Foes {
    world: World,
    told: Told,
    backup: Option<Image>,
    attacks: Vec<JoinHandle<()>>,
}

impl Foes {
    pub(crate) fn new(world: World, told: Told) -> Self {
        Self { world, told, backup: None, attacks: Vec::new() }
    }

    pub(crate) async fn act(&mut self, number: u32, deed: Deed) {
        match deed {
            Deed::BackUp => self.backup = self.world.disk(NODE).safe_image(),
            Deed::Attack { by, space, attack } => {
                let attack = patched::attack(self.world.clone(), self.told.clone(), by, space, attack, number);
                self.attacks.push(tokio::spawn(attack));
            }
            Deed::Lie { to, lie } => {
                self.told.lock().victim = Some(to);
                self.world.lie(to.name(), Some(lie));
            }
            Deed::Truth { to } => {
                // One who is down is started by whoever looks after it.
                self.world.lie(to.name(), None);
                self.world.kill(to.name());
            }
            Deed::SetBack(restore) => {
                if let Some(image) = self.backup.clone() {
                    set_back::set_back(&self.world, &self.told, image, restore).await;
                }
            }
        }
    }

    /// The weather is good: what an enemy still does ends here, with the time that those who suffered from it need.
    pub(crate) async fn come_to_an_end(&mut self) {
        for attack in self.attacks.drain(..) {
            // It ends by itself; one that panics is noted like any other.
            let _ = attack.await;
        }
        let victim = self.told.lock().victim;
        if let Some(victim) = victim {
            liar::truth(&self.world, &self.told, victim).await;
            liar::dismiss_all(&self.world, &self.told).await;
        }
        if self.told.is_set_back() {
            set_back::end_recovery(&self.world, &self.told).await;
        }
    }

    /// What a client may say of the node in this story and be right.
    pub(crate) fn is_true(&self, who: Who, space: SpaceId, code: ReasonCode) -> bool {
        let victim = self.told.lock().victim;
        set_back::is_true(&self.told, space, code) || liar::is_true(victim, who, code)
    }

    /// What must hold when everything is over.
    pub(crate) fn judge(&self) -> Result<(), Violation> {
        set_back::judge(&self.world, &self.told)
    }
}
