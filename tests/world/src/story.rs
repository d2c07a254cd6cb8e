//! Stories: lists of steps, made from a seed.
//!
//! A story is data. It can be told again, and told without some of its steps: a step that has lost its sense (a write to a space
//! that nobody made) does nothing. So a long story that breaks an invariant can be made short.

use std::fmt;
use std::num::NonZeroUsize;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use crate::foe::{self, Deed, Foe};
use crate::line::Garble;
use crate::machine::dice;
use crate::world::{CACHED_TREES, CLIENT_NAMES, Faults};

/// What happens, and how long the world then waits before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Stays the same when steps before it are left out: what a step writes is named after it.
    pub number: u32,
    pub act: Act,
    pub then_ms: u64,
}

/// A client of the story, by its place in [`CLIENT_NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who(pub usize);

impl Who {
    #[must_use]
    pub fn name(self) -> &'static str {
        CLIENT_NAMES[self.0]
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A machine of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Node,
    Client(Who),
}

/// The node of a story.
pub(crate) const NODE: &str = "node-0";

impl Place {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => NODE,
            Self::Client(who) => who.name(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How somebody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    Approval,
}

/// When the profile of a newcomer is written, which it must see when it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    None,
    BeforeTheInvite,
    /// The token is handed over first.
    AfterTheInvite,
    /// By the approval; with an open invite as [`Profile::BeforeTheInvite`].
    WithTheApproval,
}

/// A role that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    Reader,
    Writer,
    Admin,
}

/// Who reads what was written before it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    Everybody,
    NobodyNew,
}

/// What a disk does wrong at a commit to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    FailsBefore,
    FailsAfter,
    DiesBefore,
    DiesAfter,
    FlushFails,
}

/// Which direction is cut, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
    Both,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create {
        by: Who,
        space: usize,
        history: History,
    },
    Admit {
        by: Who,
        space: usize,
        who: Who,
        way: Way,
        given: Given,
        profile: Profile,
    },
    Put {
        by: Who,
        space: usize,
        object: usize,
    },
    Merge {
        by: Who,
        space: usize,
        object: usize,
    },
    Erase {
        by: Who,
        space: usize,
        object: usize,
    },
    Purge {
        by: Who,
        space: usize,
        object: usize,
    },
    Grow {
        by: Who,
        space: usize,
        tree: usize,
    },
    ChangeRole {
        by: Who,
        space: usize,
        who: Who,
        given: Given,
    },
    Remove {
        by: Who,
        space: usize,
        who: Who,
    },
    Leave {
        who: Who,
        space: usize,
    },
    Rotate {
        by: Who,
        space: usize,
    },
    AwaitSynced {
        by: Who,
        space: usize,
        deadline_ms: u64,
    },
    AwaitDurable {
        by: Who,
        space: usize,
    },
    AwaitLocally {
        by: Who,
        space: usize,
    },
    AwaitObject {
        by: Who,
        space: usize,
        object: usize,
    },
    Read {
        by: Who,
        space: usize,
    },
    Cut {
        who: Who,
        direction: Direction,
    },
    Heal {
        who: Who,
    },
    Sever {
        who: Who,
    },
    /// The line of a client loses, repeats, swaps and delays messages from now on; or none any more.
    Garble {
        who: Who,
        garble: Garble,
    },
    Kill {
        place: Place,
    },
    PowerCut {
        place: Place,
    },
    Stop {
        place: Place,
    },
    Start {
        place: Place,
    },
    Fill {
        place: Place,
    },
    MakeRoom {
        place: Place,
    },
    Fail {
        place: Place,
        mishap: Mishap,
    },
    Foe(Deed),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3} {}", self.number, self.act)?;
        if self.then_ms > 0 { write!(f, ", then {} ms", self.then_ms) } else { Ok(()) }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { by, space, history: History::Everybody } => write!(f, "{by} creates space {space}"),
            Self::Create { by, space, history: History::NobodyNew } => {
                write!(f, "{by} creates space {space}, without history for newcomers")
            }
            Self::Admit { by, space, who, way, given, profile } => {
                write!(f, "{by} lets {who} into space {space} as {given:?} ({way:?}, profile {profile:?})")
            }
            Self::Put { by, space, object } => write!(f, "{by} writes object {object} of space {space}"),
            Self::Merge { by, space, object } => write!(f, "{by} merges into object {object} of space {space}"),
            Self::Erase { by, space, object } => write!(f, "{by} deletes object {object} of space {space}"),
            Self::Purge { by, space, object } => write!(f, "{by} purges object {object} of space {space}"),
            Self::Grow { by, space, tree } => write!(f, "{by} appends to tree {tree} of space {space}"),
            Self::ChangeRole { by, space, who, given } => write!(f, "{by} makes {who} {given:?} of space {space}"),
            Self::Remove { by, space, who } => write!(f, "{by} removes {who} from space {space}"),
            Self::Leave { who, space } => write!(f, "{who} leaves space {space}"),
            Self::Rotate { by, space } => write!(f, "{by} rotates the keys of space {space}"),
            Self::AwaitSynced { by, space, deadline_ms } => {
                write!(f, "{by} waits to be synced with space {space}, {deadline_ms} ms at most")
            }
            Self::AwaitDurable { by, space } => write!(f, "{by} waits for its last write to space {space}"),
            Self::AwaitLocally { by, space } => write!(f, "{by} waits for its own disk, space {space}"),
            Self::AwaitObject { by, space, object } => write!(f, "{by} waits for object {object} of space {space}"),
            Self::Read { by, space } => write!(f, "{by} reads space {space}"),
            Self::Cut { who, direction } => write!(f, "{who} is cut off ({direction:?})"),
            Self::Heal { who } => write!(f, "{who} is connected again"),
            Self::Sever { who } => write!(f, "the connections of {who} are reset"),
            Self::Garble { who, garble } if *garble == Garble::CLEAR => write!(f, "the line of {who} is clear"),
            Self::Garble { who, garble } => write!(f, "the line of {who}: {garble}"),
            Self::Kill { place } => write!(f, "{place} is killed"),
            Self::PowerCut { place } => write!(f, "{place} loses power"),
            Self::Stop { place } => write!(f, "{place} stops in good order"),
            Self::Start { place } => write!(f, "{place} starts"),
            Self::Fill { place } => write!(f, "the disk of {place} is full"),
            Self::MakeRoom { place } => write!(f, "the disk of {place} has room"),
            Self::Fail { place, mishap } => write!(f, "the disk of {place}: {mishap:?}"),
            Self::Foe(deed) => write!(f, "{deed}"),
        }
    }
}

/// A story before it is told.
#[derive(Debug, Clone)]
pub struct Story {
    pub seed: u64,
    pub clients: usize,
    pub faults: Faults,
    /// Who does not play by the rules, if anybody.
    pub foe: Option<Foe>,
    /// Live trees that a client keeps in each space although nobody holds them.
    pub cached_trees: NonZeroUsize,
    pub steps: Vec<Step>,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weather = if self.faults == Faults::none() { "good weather" } else { "bad weather" };
        write!(f, "{} clients, {weather}, {} live trees kept", self.clients, self.cached_trees)?;
        self.foe.map_or(Ok(()), |foe| write!(f, ", {foe}"))?;
        writeln!(f)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// Objects that a story writes in each space, and trees that are none.
pub(crate) const OBJECTS: usize = 4;
pub(crate) const TREES: usize = 2;
const SPACES: usize = 2;

/// What happens in a story at all. Each seed has a choice of it: a bug that hides when everything happens at once shows itself
/// when little does (Groce et al., "Swarm testing", ISSTA 2012).
#[derive(Debug, Clone, Copy)]
struct Swarm {
    two_spaces: bool,
    approval: bool,
    open: bool,
    erases: bool,
    purges: bool,
    trees: bool,
    roles: bool,
    removals: bool,
    leaves: bool,
    rotations: bool,
    awaits: bool,
    cuts: bool,
    one_way: bool,
    severs: bool,
    client_ends: bool,
    client_power: bool,
    node_ends: bool,
    node_power: bool,
    stops: bool,
    full: bool,
    failing: bool,
    deadly: bool,
    weather: bool,
    history: History,
}

impl Swarm {
    fn draw(dice: &mut ChaCha8Rng) -> Self {
        let mut flip = |likely: f64| dice.random_bool(likely);
        Self {
            two_spaces: flip(0.3),
            approval: flip(0.6),
            open: flip(0.7),
            erases: flip(0.4),
            purges: flip(0.3),
            trees: flip(0.4),
            roles: flip(0.4),
            removals: flip(0.35),
            leaves: flip(0.3),
            rotations: flip(0.35),
            awaits: flip(0.85),
            cuts: flip(0.5),
            one_way: flip(0.4),
            severs: flip(0.4),
            client_ends: flip(0.5),
            client_power: flip(0.35),
            node_ends: flip(0.45),
            node_power: flip(0.4),
            stops: flip(0.3),
            full: flip(0.35),
            failing: flip(0.25),
            deadly: flip(0.35),
            weather: flip(0.6),
            history: if flip(0.15) { History::NobodyNew } else { History::Everybody },
        }
    }
}

impl Story {
    /// The story of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut dice = dice(seed, "story");
        let swarm = Swarm::draw(&mut dice);
        let clients = dice.random_range(2..=4);
        let faults = if swarm.weather { Faults::all() } else { Faults::none() };
        let mut maker = Maker { dice, swarm, clients, steps: Vec::new(), lines: Lines::draw(seed) };
        maker.beginning();
        let length = maker.dice.random_range(15..=45);
        for _ in 0..length {
            if maker.dice.random_bool(0.06) {
                maker.full_disk();
            }
            maker.anything();
        }
        let cached_trees = cached_trees(seed);
        let mut story = Self { seed, clients, faults, foe: None, cached_trees, steps: maker.steps };
        foe::add_to(&mut story);
        story
    }
}

/// In half of the stories a live tree is let go as soon as another one is asked for.
fn cached_trees(seed: u64) -> NonZeroUsize {
    if dice(seed, "live trees").random_bool(0.5) { NonZeroUsize::MIN } else { CACHED_TREES }
}

struct Maker {
    dice: ChaCha8Rng,
    swarm: Swarm,
    clients: usize,
    steps: Vec<Step>,
    lines: Lines,
}

/// Whether lines are garbled in a story, and when. With dice of its own: what else happens does not depend on it.
struct Lines {
    dice: ChaCha8Rng,
    swarm: Garble,
}

impl Lines {
    fn draw(seed: u64) -> Self {
        let mut dice = dice(seed, "lines");
        let is_garbled = dice.random_bool(0.35);
        let most = if dice.random_bool(0.2) { 25 } else { 12 };
        let mut share = || if is_garbled && dice.random_bool(0.6) { dice.random_range(1..=most) } else { 0 };
        let swarm = Garble { lost: share(), twice: share(), swapped: share(), late: share() };
        Self { dice, swarm }
    }

    fn maybe(&mut self, clients: usize) -> Vec<Act> {
        if self.swarm == Garble::CLEAR || !self.dice.random_bool(0.2) {
            return Vec::new();
        }
        let who = Who(self.dice.random_range(0..clients));
        let garble = if self.dice.random_bool(0.3) { Garble::CLEAR } else { self.swarm };
        let mut acts = vec![Act::Garble { who, garble }];
        // Everything is said anew on a bad line, too.
        acts.extend(self.dice.random_bool(0.5).then_some(Act::Sever { who }));
        acts
    }
}

impl Maker {
    fn beginning(&mut self) {
        let history = self.swarm.history;
        self.add(Act::Create { by: Who(0), space: 0, history }, 100);
        for n in 1..self.clients {
            if self.dice.random_bool(0.7) {
                let act = self.admit(Who(0), 0, Who(n));
                let pause = self.dice.random_range(0..=1500);
                self.add(act, pause);
            }
        }
    }

    fn add(&mut self, act: Act, then_ms: u64) {
        let number = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.steps.push(Step { number, act, then_ms });
    }

    /// Most steps come close after each other; some leave time for everything to be over.
    fn pause(&mut self) -> u64 {
        match self.dice.random_range(0..10) {
            0..3 => 0,
            3..6 => self.dice.random_range(1..50),
            6..9 => self.dice.random_range(50..1500),
            _ => self.dice.random_range(1500..25_000),
        }
    }

    fn who(&mut self) -> Who {
        Who(self.dice.random_range(0..self.clients))
    }

    fn place(&mut self) -> Place {
        if self.dice.random_bool(0.4) { Place::Node } else { Place::Client(self.who()) }
    }

    /// Somebody else.
    fn other(&mut self, than: Who) -> Who {
        Who((than.0 + self.dice.random_range(1..self.clients)) % self.clients)
    }

    fn space(&mut self) -> usize {
        if self.swarm.two_spaces { self.dice.random_range(0..SPACES) } else { 0 }
    }

    fn object(&mut self) -> usize {
        self.dice.random_range(0..OBJECTS)
    }

    fn given(&mut self) -> Given {
        match self.dice.random_range(0..6) {
            0 => Given::Reader,
            1 | 2 => Given::Admin,
            _ => Given::Writer,
        }
    }

    fn admit(&mut self, by: Who, space: usize, who: Who) -> Act {
        let way = match (self.swarm.open, self.swarm.approval) {
            (true, true) if self.dice.random_bool(0.5) => Way::Open,
            (true, false) | (false, false) => Way::Open,
            (_, true) => Way::Approval,
        };
        let profile = match self.dice.random_range(0..4) {
            0 => Profile::None,
            1 => Profile::BeforeTheInvite,
            2 => Profile::AfterTheInvite,
            _ => Profile::WithTheApproval,
        };
        let given = self.given();
        Act::Admit { by, space, who, way, given, profile }
    }

    fn anything(&mut self) {
        for act in self.lines.maybe(self.clients) {
            self.add(act, 0);
        }
        let then_ms = self.pause();
        // What the seed does not allow becomes what every story has.
        let act = self.rare().unwrap_or_else(|| self.common());
        self.add(act, then_ms);
    }

    /// Writes to a disk that is full for a while, or through a node whose disk is.
    fn full_disk(&mut self) {
        if !self.swarm.full {
            return;
        }
        let place = self.place();
        self.add(Act::Fill { place }, 0);
        for _ in 0..self.dice.random_range(1..4) {
            let (space, object, then_ms) = (self.space(), self.object(), self.dice.random_range(0..400));
            let by = match place {
                Place::Client(who) => who,
                Place::Node => self.who(),
            };
            self.add(Act::Put { by, space, object }, then_ms);
        }
        self.add(Act::MakeRoom { place }, 0);
    }

    fn common(&mut self) -> Act {
        let (by, space, object) = (self.who(), self.space(), self.object());
        match self.dice.random_range(0..12) {
            0..5 => Act::Put { by, space, object },
            5..8 => Act::Merge { by, space, object },
            8 if self.swarm.awaits => Act::AwaitObject { by, space, object },
            9 | 10 if self.swarm.awaits => {
                let deadline_ms = if self.dice.random_bool(0.3) { self.dice.random_range(1..2000) } else { 30_000 };
                Act::AwaitSynced { by, space, deadline_ms }
            }
            11 if self.swarm.awaits => Act::AwaitDurable { by, space },
            _ => Act::Read { by, space },
        }
    }

    fn rare(&mut self) -> Option<Act> {
        if self.dice.random_bool(0.4) {
            return None;
        }
        let swarm = self.swarm;
        let (by, space, object) = (self.who(), self.space(), self.object());
        let who = self.other(by);
        let place = self.place();
        let client = Place::Client(by);
        let allowed = |yes: bool, act: Act| yes.then_some(act);
        match self.dice.random_range(0..28) {
            0 => allowed(swarm.two_spaces, Act::Create { by, space: 1, history: swarm.history }),
            1..4 => Some(self.admit(by, space, who)),
            4 => allowed(swarm.erases, Act::Erase { by, space, object }),
            5 => allowed(swarm.purges, Act::Purge { by, space, object }),
            6 | 7 => {
                let tree = self.dice.random_range(0..TREES);
                allowed(swarm.trees, Act::Grow { by, space, tree })
            }
            8 => {
                let given = self.given();
                allowed(swarm.roles, Act::ChangeRole { by, space, who, given })
            }
            9 => allowed(swarm.removals, Act::Remove { by, space, who }),
            10 => allowed(swarm.leaves, Act::Leave { who, space }),
            11 => allowed(swarm.rotations, Act::Rotate { by, space }),
            12 => allowed(swarm.awaits, Act::AwaitLocally { by, space }),
            13 => allowed(swarm.cuts, Act::Cut { who, direction: Direction::Both }),
            14 => {
                let direction = if self.dice.random_bool(0.5) { Direction::Up } else { Direction::Down };
                allowed(swarm.one_way, Act::Cut { who, direction })
            }
            15 | 16 => allowed(swarm.cuts || swarm.one_way, Act::Heal { who }),
            17 => allowed(swarm.severs, Act::Sever { who }),
            18 => allowed(swarm.client_ends, Act::Kill { place: client }),
            19 => allowed(swarm.client_power, Act::PowerCut { place: client }),
            20 => allowed(swarm.node_ends, Act::Kill { place: Place::Node }),
            21 => allowed(swarm.node_power, Act::PowerCut { place: Place::Node }),
            22 => allowed(swarm.stops, Act::Stop { place }),
            23 | 24 => Some(Act::Start { place }),
            25 => {
                let room = self.dice.random_bool(0.5);
                allowed(swarm.full, if room { Act::MakeRoom { place } } else { Act::Fill { place } })
            }
            26 => {
                let mishap = match self.dice.random_range(0..3) {
                    0 => Mishap::FailsBefore,
                    1 => Mishap::FailsAfter,
                    _ => Mishap::FlushFails,
                };
                allowed(swarm.failing, Act::Fail { place, mishap })
            }
            _ => {
                let mishap = if self.dice.random_bool(0.5) { Mishap::DiesBefore } else { Mishap::DiesAfter };
                allowed(swarm.deadly, Act::Fail { place, mishap })
            }
        }
    }
}
