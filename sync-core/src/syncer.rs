//! What a space fetches by itself: which item next, how many at a time, and when one that failed is tried again.
//!
//! [`Syncer`] takes what happened ([`Input`]) and the time, and says what to do ([`Output`]). Items live in the store; the
//! machine holds a window of those that are due, so its memory does not grow with them. [`Budget`] is what one peer is given
//! at a time, by all spaces together: it grows while the peer keeps up, and halves when it says that it does not.
//!
//! - Trees that are not here share a pool of requests; what is wanted of trees that are here goes through one worker.
//! - An item that failed is tried again after a pause that grows, for ever. It never stands in the way of another.
//! - What a reader waits for goes first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::TreeId;
use crate::limits;
use crate::session::{Moment, pause, pause_asked};

/// What is wanted of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Want {
    /// Its entries, before the tail brings them.
    Fetch,
    /// Content of its changes that came without it.
    Content,
    /// Its entries judged again: what is derived from them here is not what the peer derived.
    Judge,
}

/// Who waits for it: the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody asked for it and waits.
    Reader,
    /// A join is not ready without it.
    Join,
    /// What is here has a gap.
    Gap,
}

impl Priority {
    /// As a number in a row.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Reader => 0,
            Self::Join => 1,
            Self::Gap => 2,
        }
    }

    /// From [`Priority::number`]; what a later version wrote goes last.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Reader,
            1 => Self::Join,
            _ => Self::Gap,
        }
    }
}

/// Names an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub tree: TreeId,
    pub want: Want,
}

/// An item that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub key: Key,
    pub priority: Priority,
    /// How often it failed.
    pub attempts: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What was wanted is here, and the item is gone from the store.
    Done,
    /// The item's own affair: it failed, others may not.
    Failed { jitter: u8 },
    /// The peer has too much to do, and may have said for how long it wants to be left alone.
    Pressed { hint: Duration, jitter: u8 },
    /// The connection went away: nobody's fault, and not counted.
    Lost,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed, or the budget has room; see [`Syncer::deadline`].
    Tick,
    /// There is a connection that items can be fetched on.
    Online,
    Offline,
    /// Something more is wanted, and kept in the store.
    Stored,
    /// What the store has that is due, as [`Output::Load`] asked, and when the next item will be.
    Loaded {
        due: Vec<Item>,
        next: Option<Moment>,
    },
    /// An attempt ended.
    Ended {
        key: Key,
        end: End,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Read items that are due from the store, most urgent first.
    Load { max: usize },
    /// Try this one.
    Start { item: Item },
    /// Keep in the store that it failed so often, and that it is not tried before.
    Retry { key: Key, attempts: u32, at: Moment },
}

/// What one peer is given at a time.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Requests at a time, in thousandths.
    window: u32,
    in_flight: u32,
    /// Nothing new before this: the peer asked for it.
    hold: Option<Moment>,
    /// Whoever says until then that it is too much says the same as the one before.
    halved_until: Moment,
}

impl Default for Budget {
    fn default() -> Self {
        Self { window: limits::FETCHES_MAX * 1000, in_flight: 0, hold: None, halved_until: Moment::default() }
    }
}

impl Budget {
    /// Requests that the peer is given at a time now.
    #[must_use]
    pub const fn requests(&self) -> u32 {
        self.window / 1000
    }

    /// Nothing new goes to the peer before this.
    #[must_use]
    pub fn hold(&self, now: Moment) -> Option<Moment> {
        self.hold.filter(|until| *until > now)
    }

    /// True if another request may go out.
    #[must_use]
    pub fn has_room(&self, now: Moment) -> bool {
        self.in_flight < self.requests() && self.hold(now).is_none()
    }

    /// A request went out.
    pub fn start(&mut self) {
        self.in_flight += 1;
    }

    /// A request ended: one more at a time after as many as fit the window, half as many when the peer is pressed.
    pub fn end(&mut self, end: End, now: Moment) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match end {
            End::Done => self.keeps_up(),
            End::Pressed { hint, .. } => self.press(hint, now),
            End::Failed { .. } | End::Lost => {}
        }
    }

    /// The peer answered in time.
    pub fn keeps_up(&mut self) {
        let more = 1_000_000 / self.window;
        self.window = (self.window + more).min(limits::FETCHES_MAX * 1000);
    }

    /// The peer has too much to do: half as many from now on. Only what it asks for itself holds up everything; an item that
    /// it cannot serve waits alone.
    pub fn press(&mut self, hint: Duration, now: Moment) {
        if now >= self.halved_until {
            self.window = (self.window / 2).max(1000);
            self.halved_until = now.plus(limits::RETRY_FIRST);
        }
        if !hint.is_zero() {
            self.hold = self.hold.max(Some(now.plus(hint.min(limits::RETRY_HINT_MAX))));
        }
    }
}

/// The order of the window: priority, then who came first.
type Place = (Priority, u64);

/// The work of one space.
#[derive(Debug)]
pub struct Syncer {
    online: bool,
    queue: BTreeMap<Place, Item>,
    places: BTreeMap<Key, Place>,
    in_flight: BTreeMap<Key, Item>,
    next_place: u64,
    /// The store may hold items that are due and not in the window.
    backlog: Backlog,
    next_due: Option<Moment>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backlog {
    None,
    Some,
    /// It may be more urgent than what is in the window.
    New,
    Loading,
    /// More came since the store was asked.
    Outdated,
}

impl Default for Syncer {
    fn default() -> Self {
        Self {
            online: false,
            queue: BTreeMap::new(),
            places: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            next_place: 0,
            backlog: Backlog::Some,
            next_due: None,
            outputs: VecDeque::new(),
        }
    }
}

impl Syncer {
    /// The next thing to do, if any.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted: an item is due then, or the peer may be asked again.
    #[must_use]
    pub fn deadline(&self, budget: &Budget, now: Moment) -> Option<Moment> {
        if !self.online {
            return None;
        }
        let held = budget.hold(now).filter(|_| !self.queue.is_empty());
        [held, self.next_due].into_iter().flatten().min()
    }

    /// Items in memory.
    #[must_use]
    pub fn window(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// Takes one input. Outputs are read with [`Syncer::poll`].
    pub fn handle(&mut self, input: Input, budget: &mut Budget, now: Moment) {
        match input {
            Input::Tick => {}
            Input::Online => {
                self.online = true;
                self.note_backlog();
            }
            Input::Offline => self.online = false,
            Input::Stored => {
                self.backlog = match self.backlog {
                    Backlog::Loading | Backlog::Outdated => Backlog::Outdated,
                    Backlog::None | Backlog::Some | Backlog::New => Backlog::New,
                };
            }
            Input::Loaded { due, next } => self.loaded(due, next),
            Input::Ended { key, end } => self.ended(key, end, budget, now),
        }
        if self.next_due.is_some_and(|due| due <= now) {
            self.next_due = None;
            self.note_backlog();
        }
        self.load();
        self.start(budget, now);
    }

    fn note_backlog(&mut self) {
        if self.backlog == Backlog::None {
            self.backlog = Backlog::Some;
        }
    }

    fn enqueue(&mut self, item: Item) {
        if let Some(place) = self.places.get(&item.key).copied() {
            if place.0 <= item.priority {
                return;
            }
            self.queue.remove(&place);
        }
        self.next_place += 1;
        let place = (item.priority, self.next_place);
        self.places.insert(item.key, place);
        self.queue.insert(place, item);
    }

    fn loaded(&mut self, due: Vec<Item>, next: Option<Moment>) {
        let full = due.len() >= limits::SYNC_WINDOW_MAX;
        self.backlog = match self.backlog {
            Backlog::Outdated => Backlog::New,
            Backlog::None | Backlog::Some | Backlog::New | Backlog::Loading if full => Backlog::Some,
            Backlog::None | Backlog::Some | Backlog::New | Backlog::Loading => Backlog::None,
        };
        self.next_due = [self.next_due, next].into_iter().flatten().min();
        for item in due {
            if !self.in_flight.contains_key(&item.key) {
                self.enqueue(item);
            }
        }
        while self.queue.len() > limits::SYNC_WINDOW_MAX
            && let Some((_, last)) = self.queue.pop_last()
        {
            // It is in the store, and comes back.
            self.places.remove(&last.key);
            self.note_backlog();
        }
    }

    fn ended(&mut self, key: Key, end: End, budget: &mut Budget, now: Moment) {
        let Some(item) = self.in_flight.remove(&key) else { return };
        budget.end(end, now);
        match end {
            End::Done => {}
            End::Failed { jitter } => self.retry(item, pause(item.attempts + 1, jitter), now),
            End::Pressed { hint, jitter } => {
                let wait = pause_asked(item.attempts + 1, jitter, hint);
                self.retry(item, wait, now);
            }
            End::Lost => self.enqueue(item),
        }
    }

    fn retry(&mut self, item: Item, wait: Duration, now: Moment) {
        let (attempts, at) = (item.attempts.saturating_add(1), now.plus(wait));
        self.next_due = Some(self.next_due.map_or(at, |due| due.min(at)));
        self.outputs.push_back(Output::Retry { key: item.key, attempts, at });
    }

    fn load(&mut self) {
        let wanted = match self.backlog {
            Backlog::None | Backlog::Loading | Backlog::Outdated => false,
            Backlog::Some => self.queue.len() <= limits::SYNC_WINDOW_MAX / 2,
            Backlog::New => true,
        };
        if wanted && self.online {
            self.backlog = Backlog::Loading;
            self.outputs.push_back(Output::Load { max: limits::SYNC_WINDOW_MAX });
        }
    }

    fn start(&mut self, budget: &mut Budget, now: Moment) {
        while self.online && budget.has_room(now) {
            let Some(place) = self.next() else { return };
            let Some(item) = self.queue.remove(&place) else { return };
            self.places.remove(&item.key);
            self.in_flight.insert(item.key, item);
            budget.start();
            self.outputs.push_back(Output::Start { item });
        }
    }

    /// The most urgent item whose worker is free.
    fn next(&self) -> Option<Place> {
        let head_worker_busy = self.in_flight.keys().any(|key| key.want != Want::Fetch);
        let free = |item: &Item| item.key.want == Want::Fetch || !head_worker_busy;
        self.queue.iter().find(|(_, item)| free(item)).map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    fn tree(n: u32) -> TreeId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        TreeId::from_hash(id)
    }

    fn fetch(n: u32, priority: Priority) -> Item {
        Item { key: Key { tree: tree(n), want: Want::Fetch }, priority, attempts: 0 }
    }

    fn content(n: u32) -> Item {
        Item { key: Key { tree: tree(n), want: Want::Content }, priority: Priority::Gap, attempts: 0 }
    }

    /// What the store's indexes give.
    #[derive(Default)]
    struct Rows {
        rows: BTreeMap<Key, (Item, Moment)>,
        by_priority: BTreeSet<(Priority, Moment, Key)>,
        by_time: BTreeSet<(Moment, Key)>,
    }

    impl Rows {
        fn put(&mut self, item: Item, due: Moment) {
            self.remove(item.key);
            self.rows.insert(item.key, (item, due));
            self.by_priority.insert((item.priority, due, item.key));
            self.by_time.insert((due, item.key));
        }

        fn remove(&mut self, key: Key) {
            if let Some((item, due)) = self.rows.remove(&key) {
                self.by_priority.remove(&(item.priority, due, key));
                self.by_time.remove(&(due, key));
            }
        }

        fn due(&self, now: Moment, max: usize) -> Vec<Item> {
            let due = self.by_priority.iter().filter(|(_, due, _)| *due <= now).take(max);
            due.map(|(_, _, key)| self.rows[key].0).collect()
        }

        fn next(&self, now: Moment) -> Option<Moment> {
            let later = (std::ops::Bound::Excluded((now, LAST)), std::ops::Bound::Unbounded);
            self.by_time.range(later).next().map(|(due, _)| *due)
        }
    }

    const LAST: Key = Key { tree: TreeId::from_hash([255; 32]), want: Want::Content };

    /// The machine with a store and a virtual clock.
    struct World {
        syncer: Syncer,
        budget: Budget,
        store: Rows,
        running: Vec<Item>,
        now: Moment,
        window_max: usize,
    }

    impl World {
        fn new(items: impl IntoIterator<Item = Item>) -> Self {
            let mut store = Rows::default();
            items.into_iter().for_each(|item| store.put(item, at(0)));
            let (syncer, budget) = (Syncer::default(), Budget::default());
            let mut world = Self { syncer, budget, store, running: Vec::new(), now: at(0), window_max: 0 };
            world.give(Input::Online);
            world
        }

        fn give(&mut self, input: Input) {
            self.syncer.handle(input, &mut self.budget, self.now);
            while let Some(output) = self.syncer.poll() {
                match output {
                    Output::Load { max } => {
                        let (due, next) = (self.store.due(self.now, max), self.store.next(self.now));
                        self.syncer.handle(Input::Loaded { due, next }, &mut self.budget, self.now);
                    }
                    Output::Start { item } => self.running.push(item),
                    Output::Retry { key, attempts, at } => {
                        let (item, _) = self.store.rows[&key];
                        self.store.put(Item { attempts, ..item }, at);
                    }
                }
            }
            self.window_max = self.window_max.max(self.syncer.window());
        }

        fn end(&mut self, item: Item, end: End) {
            self.running.retain(|r| r.key != item.key);
            if end == End::Done {
                self.store.remove(item.key);
            }
            self.give(Input::Ended { key: item.key, end });
        }

        /// On to the next moment at which the machine wants to be asked.
        fn sleep(&mut self) -> Moment {
            self.now = self.syncer.deadline(&self.budget, self.now).expect("something is waited for");
            self.give(Input::Tick);
            self.now
        }

        fn attempts(&self, n: u32) -> u32 {
            self.store.rows[&fetch(n, Priority::Gap).key].0.attempts
        }
    }

    const FAILED: End = End::Failed { jitter: 0 };

    #[test]
    fn s17_a_tree_that_fails_is_tried_after_growing_pauses_and_success_clears_them() {
        let mut world = World::new([fetch(1, Priority::Reader)]);
        let mut pauses = Vec::new();
        for failure in 1..=12 {
            let item = world.running[0];
            let before = world.now;
            world.end(item, FAILED);
            assert_eq!(world.attempts(1), failure, "attempts are visible");
            assert_eq!(world.running, [], "not before its time");
            pauses.push(world.sleep().0.as_millis() - before.0.as_millis());
        }
        assert_eq!(pauses[..6], [1000, 1500, 2250, 3375, 5062, 7594]);
        assert_eq!(pauses[8..], [20_000; 4]);
        let item = world.running[0];
        world.end(item, End::Done);
        assert!(world.store.rows.is_empty());
        world.store.put(fetch(1, Priority::Reader), world.now);
        world.give(Input::Stored);
        assert_eq!(world.running[0].attempts, 0, "success cleared them");
    }

    #[test]
    fn one_bad_item_never_blocks_another() {
        let mut world = World::new((0..500).map(|n| fetch(n, Priority::Gap)));
        let (mut done, mut poison) = (0, 0);
        while done < 499 {
            let Some(item) = world.running.first().copied() else {
                world.sleep();
                continue;
            };
            if item.key.tree == tree(7) {
                poison += 1;
                world.end(item, FAILED);
            } else {
                done += 1;
                world.end(item, End::Done);
            }
        }
        assert_eq!(poison, 1, "everything else was done before it was due again");
        assert_eq!(world.store.rows.len(), 1);
        world.sleep();
        assert_eq!(world.running.len(), 1, "and it is tried again");
    }

    #[test]
    fn what_a_reader_waits_for_goes_first() {
        let mut world = World::new((0..1000).map(|n| fetch(n, Priority::Gap)));
        assert_eq!(world.running.len(), 10, "the pool");
        let wanted = fetch(5000, Priority::Reader);
        world.store.put(wanted, world.now);
        world.give(Input::Stored);
        let first = world.running[0];
        world.end(first, End::Done);
        assert_eq!(world.running.last().map(|i| i.key), Some(wanted.key));
    }

    #[test]
    fn trees_that_are_here_go_through_one_worker() {
        let world = World::new((0..5).map(content).chain((5..8).map(|n| fetch(n, Priority::Gap))));
        let of = |world: &World, want| world.running.iter().filter(|i| i.key.want == want).count();
        assert_eq!((of(&world, Want::Content), of(&world, Want::Fetch)), (1, 3), "and it holds up no tree that is not");
    }

    #[test]
    fn a_hundred_thousand_items_fit_a_small_window_and_none_is_lost() {
        let mut world = World::new((0..100_000).map(|n| fetch(n, Priority::Gap)));
        let mut done = 0;
        let mut odd = 0;
        while !world.store.rows.is_empty() {
            let Some(item) = world.running.first().copied() else {
                world.sleep();
                continue;
            };
            odd += 1;
            if odd % 7 == 0 && item.attempts < 2 {
                world.end(item, FAILED);
            } else {
                done += 1;
                world.end(item, End::Done);
            }
        }
        assert_eq!(done, 100_000);
        assert!(world.window_max <= limits::SYNC_WINDOW_MAX * 2 + 10, "{}", world.window_max);
    }

    #[test]
    fn wanting_more_than_fits_keeps_the_urgent_ones() {
        let mut world = World::new([]);
        for n in 0..2000 {
            let item = fetch(n, if n == 1999 { Priority::Reader } else { Priority::Gap });
            world.store.put(item, world.now);
            world.give(Input::Stored);
        }
        assert!(world.syncer.window() <= limits::SYNC_WINDOW_MAX + 10);
        let first = world.running[0];
        world.end(first, End::Done);
        assert_eq!(world.running.last().map(|i| i.key.tree), Some(tree(1999)));
        while let Some(item) = world.running.first().copied() {
            world.end(item, End::Done);
        }
        assert!(world.store.rows.is_empty(), "what did not fit came back from the store");
    }

    #[test]
    fn a_pressed_peer_is_given_half_and_left_alone_for_as_long_as_it_asks() {
        let mut world = World::new((0..100).map(|n| fetch(n, Priority::Gap)));
        let pressed = End::Pressed { hint: Duration::from_secs(4), jitter: 0 };
        for item in world.running.clone() {
            world.end(item, pressed);
        }
        assert_eq!(world.budget.requests(), 5, "all of one moment count once");
        assert_eq!(world.running, []);
        world.sleep();
        assert_eq!(world.now, at(4000), "the hint is honoured");
        assert_eq!(world.running.len(), 5);
        for round in 0..40 {
            let Some(item) = world.running.first().copied() else { panic!("stopped in round {round}") };
            world.end(item, End::Done);
        }
        assert!(world.budget.requests() >= 8, "it grows while the peer keeps up: {}", world.budget.requests());
        assert!(world.running.len() <= 10);
    }

    #[test]
    fn a_lost_connection_counts_against_nobody() {
        let mut world = World::new([fetch(1, Priority::Gap)]);
        let item = world.running[0];
        world.give(Input::Offline);
        world.end(item, End::Lost);
        assert_eq!((world.attempts(1), world.running.len()), (0, 0));
        assert_eq!(world.syncer.deadline(&world.budget, world.now), None, "nothing to do without a peer");
        world.give(Input::Online);
        assert_eq!(world.running.len(), 1);
    }
}
