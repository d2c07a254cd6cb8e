//! Telling a story: steps are done one after the other, most of them without waiting for their end, and after each the world
//! is looked at.

mod hand;
mod settle;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use client_sdk::{Client, Space, SpaceId, TreeId, WriteId};
use sync_store::StoreKind;
use sync_store::memory::Fate;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::hand::Hand;
use crate::foe::{Deed, Foe, Foes, set_back};
use crate::follow::Readers;
use crate::invariants as hold;
use crate::invariants::{Auditor, Sent};
use crate::secrets::{self, Secrets};
use crate::story::{Act, Direction, Mishap, NODE, Place, Step, Story, Who};
use crate::told::{Stage, Told};
use crate::violation::Violation;
use crate::world::World;

/// What has been down for so long is started by whoever looks after it.
const LOOKED_AFTER: Duration = Duration::from_secs(8);

/// What telling a story led to.
#[derive(Debug, Clone)]
pub struct Ending {
    pub violation: Option<Violation>,
    pub trace: String,
    pub trace_hash: [u8; 32],
    pub elapsed: Duration,
    /// Entries in the node's logs at the end.
    pub entries: u64,
}

thread_local! {
    /// Where a panic was: a task that panics is only seen by whoever waits for it.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on, panics of this process are noted for the story that is being told on their thread, and not printed.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|panic| PANICKED.with(|seen| *seen.borrow_mut() = Some(panic.to_string()))));
}

impl Story {
    /// Tells the story in a world of its own, up to the first broken invariant.
    #[must_use]
    pub fn tell(&self) -> Ending {
        PANICKED.with(|seen| seen.borrow_mut().take());
        let steps = self.steps.clone();
        let plan = World::seeded(self.seed).clients(self.clients).faults(self.faults).cached_trees(self.cached_trees);
        let patched = if let Some(Foe::Patched(who)) = self.foe { Some(who) } else { None };
        let is_lined = |act: Act| matches!(act, Act::Garble { .. } | Act::Foe(Deed::Lie { .. }));
        let plan = if self.steps.iter().any(|s| is_lined(s.act)) { plan.lines() } else { plan };
        plan.run(|world| async move {
            let mut teller = Teller::new(world.clone(), patched);
            let told = Box::pin(teller.tell(&steps)).await;
            let entries = teller.entries();
            Ending {
                violation: told.err(),
                trace: world.trace(),
                trace_hash: world.trace_hash(),
                elapsed: world.elapsed(),
                entries,
            }
        })
    }
}

struct Teller {
    world: World,
    told: Told,
    auditor: Auditor,
    readers: Readers,
    sent: Sent,
    /// Who has a patched client, too.
    patched: Option<Who>,
    work: Vec<JoinHandle<()>>,
    down: BTreeMap<String, Instant>,
    /// The tree that each slot of a space holds.
    trees: Trees,
    clients: Vec<Who>,
    foes: Foes,
    /// The weather is good, and everything that was begun is over.
    settled: bool,
}

type Trees = std::sync::Arc<std::sync::Mutex<BTreeMap<(SpaceId, usize), TreeId>>>;

impl Teller {
    fn new(world: World, patched: Option<Who>) -> Self {
        let clients = (0..crate::world::CLIENT_NAMES.len()).map(Who).filter(|w| world.has(w.name())).collect();
        let (told, auditor, readers) = (Told::default(), Auditor::default(), Readers::default());
        let (work, down, trees) = (Vec::new(), BTreeMap::new(), Trees::default());
        let foes = Foes::new(world.clone(), told.clone());
        let sent = Sent::default();
        Self { world, told, auditor, readers, sent, patched, work, down, trees, clients, foes, settled: false }
    }

    async fn tell(&mut self, steps: &[Step]) -> Result<(), Violation> {
        for step in steps {
            self.world.note(format_args!("---- {step}"));
            self.act(step).await;
            tokio::time::sleep(Duration::from_millis(step.then_ms)).await;
            // Let the present run out: what is ready now happens before the world is looked at.
            tokio::task::yield_now().await;
            self.look_after().await;
            self.check(step)?;
        }
        Box::pin(self.settle()).await
    }

    /// Starts what has been down for long.
    async fn look_after(&mut self) {
        for name in self.world.machines() {
            if self.world.is_up(&name) {
                self.down.remove(&name);
                continue;
            }
            let since = *self.down.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() >= LOOKED_AFTER {
                self.start(&name).await;
            }
        }
    }

    async fn start(&mut self, name: &str) {
        if let Err(error) = self.world.start(name).await {
            self.world.note(format_args!("{name} does not start: {error}"));
        }
    }

    // ---- acts -------------------------------------------------------------------------------------------------------

    async fn act(&mut self, step: &Step) {
        match step.act {
            Act::Cut { who, direction } => match direction {
                Direction::Up => self.world.cut_one_way(who.name(), NODE),
                Direction::Down => self.world.cut_one_way(NODE, who.name()),
                Direction::Both => self.world.cut(who.name(), NODE),
            },
            Act::Heal { who } => self.world.heal(who.name(), NODE),
            Act::Sever { who } => self.world.sever(who.name(), NODE),
            Act::Garble { who, garble } => self.world.garble(who.name(), garble),
            Act::Kill { place } => self.world.kill(place.name()),
            Act::PowerCut { place } => self.power_cut(place),
            Act::Stop { place } => self.world.stop(place.name()).await,
            Act::Start { place } => self.start(place.name()).await,
            Act::Fill { place } => self.world.disk(place.name()).fill(),
            Act::MakeRoom { place } => self.world.disk(place.name()).make_room(),
            Act::Fail { place, mishap } => self.fail(place, mishap),
            Act::Foe(deed) => {
                self.foes.act(step.number, deed).await;
                // What the node has may be another log than it was.
                self.auditor.begin_anew();
            }
            Act::Create { by, .. }
            | Act::Admit { by, .. }
            | Act::Put { by, .. }
            | Act::Merge { by, .. }
            | Act::Erase { by, .. }
            | Act::Purge { by, .. }
            | Act::Grow { by, .. }
            | Act::ChangeRole { by, .. }
            | Act::Remove { by, .. }
            | Act::Leave { who: by, .. }
            | Act::Rotate { by, .. }
            | Act::AwaitSynced { by, .. }
            | Act::AwaitDurable { by, .. }
            | Act::AwaitLocally { by, .. }
            | Act::AwaitObject { by, .. }
            | Act::Read { by, .. } => self.begin(*step, by),
        }
    }

    fn power_cut(&self, place: Place) {
        match place {
            Place::Node => self.told.lock().node_lost_power = true,
            Place::Client(who) => self.told.forget_undurable(who),
        }
        self.world.power_cut(place.name());
    }

    fn fail(&self, place: Place, mishap: Mishap) {
        let disk = self.world.disk(place.name());
        match mishap {
            Mishap::FailsBefore => disk.next_commit(Fate::FailsBefore),
            Mishap::FailsAfter => disk.next_commit(Fate::FailsAfter),
            Mishap::DiesBefore => disk.next_commit(Fate::DiesBefore),
            Mishap::DiesAfter => disk.next_commit(Fate::DiesAfter),
            Mishap::FlushFails => disk.fail_next_flush(),
        }
    }

    /// Begins work on a client, if it runs.
    fn begin(&mut self, step: Step, by: Who) {
        let Ok(client) = self.world.client(by.name()) else { return };
        let hand =
            Hand { world: self.world.clone(), told: self.told.clone(), trees: self.trees.clone(), step, by, client };
        if let Act::Admit { who, .. } = step.act {
            return self.begin_join(hand, who);
        }
        self.spawn(by, hand.work());
    }

    fn spawn(&mut self, on: Who, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(task) = self.world.spawn_on(on.name(), work) {
            self.work.retain(|task| !task.is_finished());
            self.work.push(task);
        }
    }

    /// The one who lets in and the one who comes, each on a machine of its own; the token goes from hand to hand.
    fn begin_join(&mut self, host: Hand, who: Who) {
        let Ok(client) = self.world.client(who.name()) else { return };
        let guest = Hand { by: who, client, ..host.clone() };
        let account = guest.client.account();
        let (token, handed) = oneshot::channel();
        let (on_host, on_guest) = (host.by, who);
        self.spawn(on_host, host.admit(account, token));
        self.spawn(on_guest, guest.come(handed));
    }

    // ---- looking ----------------------------------------------------------------------------------------------------

    /// What is cheap, after every step.
    fn check(&mut self, step: &Step) -> Result<(), Violation> {
        self.nothing_panics()?;
        if let Some(found) = self.told.lock().violations.pop() {
            return Err(found);
        }
        self.sent.nobody_asks_without_end(&self.world, self.patched)?;
        self.check_node()?;
        for who in self.clients.clone() {
            self.check_client(who)?;
            // A reader that goes away in the middle now and then.
            self.read_on(who, 1 + step.number as usize % 5)?;
        }
        self.check_shown()?;
        // One machine after the other.
        let machines = self.world.machines();
        let machine = &machines[step.number as usize % machines.len()];
        match self.world.store(machine) {
            Ok(store) => hold::heads_are_the_changes_without_children(machine, &store),
            Err(_) => Ok(()),
        }
    }

    /// Where the node's disk has everything there is nothing to be shown too early.
    fn check_shown(&self) -> Result<(), Violation> {
        let disk = self.world.disk(NODE);
        if disk.is_flushed() || self.told.is_set_back() {
            return Ok(());
        }
        let Some(image) = disk.safe_image() else { return Ok(()) };
        let node = hold::ledger(image, StoreKind::Node)?;
        let victim = self.told.lock().victim;
        for who in self.clients.iter().filter(|who| victim != Some(**who)) {
            if let Ok(store) = self.world.store(who.name()) {
                hold::nothing_is_shown_before_it_is_safe(who.name(), &store, &node)?;
            }
        }
        Ok(())
    }

    fn nothing_panics(&self) -> Result<(), Violation> {
        let panicked = PANICKED.with(|seen| seen.borrow_mut().take());
        panicked.map_or(Ok(()), |text| Err(Violation::new("nothing_panics", "no panic", text)))
    }

    fn check_node(&mut self) -> Result<(), Violation> {
        let Ok(store) = self.world.store(NODE) else {
            // Whatever ended it, what it comes back with is read from the beginning.
            self.auditor.begin_anew();
            return Ok(());
        };
        self.auditor.no_entry_by_a_non_writer(&store)
    }

    fn check_client(&self, who: Who) -> Result<(), Violation> {
        let Ok(client) = self.world.client(who.name()) else { return Ok(()) };
        hold::writes_only_go_forward(&self.told, who, &client)?;
        self.told.lock().accounts.insert(who, client.account());
        if let (true, Ok(store)) = (self.told.is_set_back(), self.world.store(who.name())) {
            set_back::note_chains(&self.told, who, &store);
        }
        let held = self.told.held(who, self.world.life(who.name()));
        for space in self.spaces_of(&client) {
            hold::status_is_not_silent(who, &space)?;
            hold::no_tree_is_better_off_than_its_space(who, &space, &held)?;
            hold::no_honest_party_is_accused(who, &space, |code| self.foes.is_true(who, space.id(), code))?;
        }
        Ok(())
    }

    fn read_on(&mut self, who: Who, most: usize) -> Result<(), Violation> {
        let Ok(client) = self.world.client(who.name()) else { return Ok(()) };
        self.spaces_of(&client).iter().try_for_each(|space| self.readers.read_on(who, space, most))
    }

    fn spaces_of(&self, client: &Client) -> Vec<Space> {
        let ids: Vec<SpaceId> = self.told.lock().spaces.values().copied().collect();
        ids.into_iter().filter_map(|id| client.space(id).ok()).collect()
    }

    /// The node's disk, as a power cut would leave it.
    fn check_disks(&self) -> Result<(), Violation> {
        let Some(image) = self.world.disk(NODE).safe_image() else { return Ok(()) };
        let secrets = Secrets::of(&self.world, &self.told, &self.clients)?;
        secrets::the_node_never_holds_plaintext_or_keys(&image, &secrets)?;
        let node = hold::ledger(image, StoreKind::Node)?;
        hold::every_acknowledged_change_survives_a_crash(&self.told, &node)?;
        for who in &self.clients {
            // What the node lost is on its way back.
            // Who was lied to may have been removed before the truth came; as a member, it is compared with the others.
            let is_victim = self.told.lock().victim == Some(*who);
            if is_victim || self.told.is_set_back() && !self.settled || self.is_lost_somewhere(*who) {
                continue;
            }
            if let Ok(store) = self.world.store(who.name()) {
                hold::acl_records_are_never_undone(who.name(), &store, &node)?;
                hold::heads_are_the_changes_without_children(who.name(), &store)?;
            }
            if let Some(image) = self.world.disk(who.name()).image() {
                secrets::a_stolen_disk_shows_nothing(*who, &image, &secrets)?;
            }
            secrets::the_removed_read_nothing_new(&self.world, &self.told, *who, &node)?;
        }
        hold::heads_are_the_changes_without_children(NODE, &node)
    }

    fn entries(&self) -> u64 {
        let Ok(store) = self.world.store(NODE) else { return 0 };
        store.read(|tx| tx.spaces()).map(|spaces| spaces.iter().map(|s| s.position.seq.0).sum()).unwrap_or(0)
    }
}

fn is_member(client: &Client, space: &Space) -> bool {
    space.acl().is_ok_and(|acl| acl.role(&client.account()).is_some() && !acl.deleted)
}

/// A write that a synced answer speaks of.
fn is_open(space: &Space, write: WriteId) -> bool {
    let state = space.write_state(write).ok().flatten();
    state.is_some_and(|state| !matches!(Stage::of(&state), Stage::Refused | Stage::Dismissed))
}
