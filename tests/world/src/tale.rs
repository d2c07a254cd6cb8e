//! Telling a story: steps are done one after the other, most of them without waiting for their end, and after each the world
//! is looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use client_sdk::{
    AclError, Client, HistoryMode, InviteOptions, NewTree, NotSyncedCode, ReasonCode, Role, Space, SpaceId,
    SpaceOptions, TreeId, TreeWrite, Update, WriteError, WriteId, WriteRule,
};
use serde_json::json;
use sync_store::StoreKind;
use sync_store::memory::Fate;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::foe::{Deed, Foes, set_back};
use crate::follow::Readers;
use crate::invariants as hold;
use crate::invariants::{Auditor, Claim, NEEDLE, Replica};
use crate::secrets::{self, Secrets};
use crate::story::{Act, Direction, Given, History, Mishap, NODE, Place, Profile, Step, Story, Way, Who};
use crate::told::{Certified, Field, Stage, Told, Written};
use crate::violation::Violation;
use crate::world::World;

/// What has been down for so long is started by whoever looks after it.
const LOOKED_AFTER: Duration = Duration::from_secs(8);
/// How long a join, an approval or an act on the ACL may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// In good weather, everything that was begun is over within this time, and everybody agrees.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// Rounds in which writes that were refused are set aside, and what is sent in one is had by all in the next.
const ROUNDS: usize = 4;

const NOTE: &str = "zqxneedle-note";
const PROFILE: &str = "zqxneedle-profile";

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
        let is_lined = |act: Act| matches!(act, Act::Garble { .. } | Act::Foe(Deed::Lie { .. }));
        let plan = if self.steps.iter().any(|s| is_lined(s.act)) { plan.lines() } else { plan };
        plan.run(|world| async move {
            let mut teller = Teller::new(world.clone());
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
    fn new(world: World) -> Self {
        let clients = (0..crate::world::CLIENT_NAMES.len()).map(Who).filter(|w| world.has(w.name())).collect();
        let (told, auditor, readers) = (Told::default(), Auditor::default(), Readers::default());
        let (work, down, trees) = (Vec::new(), BTreeMap::new(), Trees::default());
        let foes = Foes::new(world.clone(), told.clone());
        Self { world, told, auditor, readers, work, down, trees, clients, foes, settled: false }
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
        for space in self.spaces_of(&client) {
            hold::status_is_not_silent(who, &space)?;
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

    // ---- the end ----------------------------------------------------------------------------------------------------

    /// The weather clears, everything that was begun is over, and everybody agrees.
    async fn settle(&mut self) -> Result<(), Violation> {
        self.check_disks()?;
        let cleared = self.world.clear_up().await;
        cleared.map_err(|e| Violation::new("settle_terminates", "every machine starts", e))?;
        self.foes.come_to_an_end().await;
        Box::pin(self.settle_terminates()).await?;
        self.settled = true;
        let last = Step { number: u32::MAX, act: Act::Heal { who: Who(0) }, then_ms: 0 };
        self.check(&last)?;
        self.check_disks()?;
        let mut replicas = Vec::new();
        for who in self.clients.clone() {
            let (Ok(client), Ok(store)) = (self.world.client(who.name()), self.world.store(who.name())) else {
                continue;
            };
            let is_there = |space: &&Space| is_member(&client, space) && !self.is_lost(&client, space);
            let spaces: Vec<Space> = self.spaces_of(&client).into_iter().filter(|s| is_there(&s)).collect();
            for space in &spaces {
                let replica = Replica::of(who.name(), &client, &store, space)?;
                let objects = space.objects().list_all().unwrap_or_default();
                hold::one_live_instance_per_tree(who, space, &objects)?;
                let held = self.told.held(who, self.world.life(who.name()));
                hold::a_held_tree_is_the_instance(who, space, &held)?;
                hold::a_live_tree_shows_what_is_stored(who, space, &objects)?;
                hold::a_held_tree_shows_what_is_stored(who, &objects, &held)?;
                self.readers.have_been_told_all(who, space, &store)?;
                self.world.note(format_args!("{who} has {} objects in {}", objects.len(), space.id()));
                replicas.push(replica);
            }
        }
        hold::replicas_converge(&replicas)?;
        self.foes.judge()?;
        Box::pin(self.begin_anew(&replicas)).await
    }

    /// One of the accounts on a new machine: it reads everything from nothing.
    async fn begin_anew(&self, replicas: &[Replica]) -> Result<(), Violation> {
        const FRESH: &str = "fresh";
        let who = self.clients[usize::try_from(self.world.seed()).unwrap_or(0) % self.clients.len()];
        let absent = |e: &dyn std::fmt::Debug| Violation::new("settle_terminates", format!("{who} on a new device"), e);
        let old = self.world.client(who.name()).map_err(|e| absent(&e))?;
        // From now on another device finds everything: so says the call.
        old.account_synced(SETTLED_WITHIN).await.map_err(|e| absent(&e))?;
        self.world.add_device(FRESH, who.name());
        self.world.start(FRESH).await.map_err(|e| absent(&e))?;
        let client = self.world.client(FRESH).map_err(|e| absent(&e))?;
        client.recovered(SETTLED_WITHIN).await.map_err(|e| absent(&e))?;
        let mut compared = Ok(());
        for _ in 0..ROUNDS {
            let mut spaces: BTreeSet<SpaceId> =
                replicas.iter().filter(|r| r.who == who.name()).map(|r| r.space).collect();
            let members = self.spaces_of(&client).into_iter().filter(|space| is_member(&client, space));
            spaces.extend(members.map(|space| space.id()));
            let mut replicas = [Vec::new(), Vec::new()];
            for space in &spaces {
                replicas[0].push(self.comes_to(who.name(), &old, *space).await?);
                replicas[1].push(self.comes_to(FRESH, &client, *space).await?);
            }
            let [known, fresh] = &replicas;
            compared = hold::a_fresh_replica_is_the_same(known, fresh);
            if compared.is_ok() {
                self.world.note(format_args!("{who} has {} spaces on a new device", fresh.len()));
                break;
            }
            // What somebody began in a process that ended, a join for one, goes on by itself, and writes between two looks.
        }
        compared
    }

    async fn comes_to(&self, name: &str, client: &Client, id: SpaceId) -> Result<Replica, Violation> {
        let stuck = |e: &dyn std::fmt::Debug| Violation::new("settle_terminates", format!("{name} comes to {id}"), e);
        let space = client.wait_for_space(id, SETTLED_WITHIN).await.map_err(|e| stuck(&e))?;
        space.await_synced_within(SETTLED_WITHIN).await.map_err(|e| stuck(&e))?;
        let store = self.world.store(name).map_err(|e| stuck(&e))?;
        Replica::of(name, client, &store, &space)
    }

    async fn settle_terminates(&mut self) -> Result<(), Violation> {
        let until = Instant::now() + SETTLED_WITHIN;
        for task in std::mem::take(&mut self.work) {
            if tokio::time::timeout_at(until, task).await.is_err() {
                return Err(Violation::new("settle_terminates", "everything that was begun is over", self.stuck()));
            }
        }
        for _ in 0..ROUNDS {
            for who in self.clients.clone() {
                let Ok(client) = self.world.client(who.name()) else { continue };
                for space in self.spaces_of(&client).iter().filter(|space| is_member(&client, space)) {
                    set_refused_aside(space).await;
                    self.synced_at_last(who, &client, space).await?;
                }
            }
        }
        Ok(())
    }

    fn stuck(&self) -> String {
        let why = |who: &Who| {
            let client = self.world.client(who.name()).ok()?;
            let reasons: Vec<_> = self.spaces_of(&client).iter().filter_map(|s| s.explain().ok()).flatten().collect();
            Some(format!("{who}: {reasons:?}"))
        };
        self.clients.iter().filter_map(why).collect::<Vec<_>>().join("; ")
    }

    async fn synced_at_last(&self, who: Who, client: &Client, space: &Space) -> Result<(), Violation> {
        let (before, since) = (self.told.writes_of(who, space.id()), self.told.lock().set_backs.len());
        let mut synced = space.await_synced_within(SETTLED_WITHIN).await;
        for _ in 0..ROUNDS {
            let is_lost = |not: &client_sdk::NotSynced| not.residue.iter().any(|r| r.code == ReasonCode::LostByNode);
            if !matches!(&synced, Err(not) if not.code == NotSyncedCode::Refused || is_lost(not)) {
                break;
            }
            // Written while the client was away, and refused when it was back: a no that names it is the right answer.
            set_refused_aside(space).await;
            synced = space.await_synced_within(SETTLED_WITHIN).await;
        }
        let before = before.into_iter().filter(|w| is_open(space, w.id)).collect();
        match synced {
            Ok(synced) => {
                let claim = Claim { who, client, space, receipt: &synced.receipt, before, node: NODE, since };
                hold::synced_means_equal(&self.world, &self.told, &claim)
            }
            // The end of a membership may only be heard of now, and the entry that says so come after the word of the node.
            // A node that was set back, and whose log went another way since, may have lost a membership for good.
            Err(not) if not.code == NotSyncedCode::Forbidden && self.is_lost(client, space) => Ok(()),
            Err(not) if not.code == NotSyncedCode::Forbidden && hears_of_its_end(client, space).await => Ok(()),
            Err(_) if !is_member(client, space) => Ok(()),
            Err(error) => {
                let expected = format!("{who} is synced with {} in good weather", space.id());
                Err(Violation::new("settle_terminates", expected, (error, space.explain())))
            }
        }
    }

    /// The node was set back, and does not know this member.
    fn is_lost(&self, client: &Client, space: &Space) -> bool {
        let Ok(store) = self.world.store(NODE) else { return false };
        let acl = store.read(|tx| tx.acl(space.id())).ok().flatten();
        self.told.is_set_back() && acl.is_none_or(|acl| acl.role(&client.account()).is_none())
    }

    fn is_lost_somewhere(&self, who: Who) -> bool {
        let Ok(client) = self.world.client(who.name()) else { return false };
        self.spaces_of(&client).iter().any(|space| is_member(&client, space) && self.is_lost(&client, space))
    }

    fn entries(&self) -> u64 {
        let Ok(store) = self.world.store(NODE) else { return 0 };
        store.read(|tx| tx.spaces()).map(|spaces| spaces.iter().map(|s| s.position.seq.0).sum()).unwrap_or(0)
    }
}

fn is_member(client: &Client, space: &Space) -> bool {
    space.acl().is_ok_and(|acl| acl.role(&client.account()).is_some() && !acl.deleted)
}

/// Whether the log here comes to the end of this client's membership, in good time.
async fn hears_of_its_end(client: &Client, space: &Space) -> bool {
    let mut since = 0;
    let heard = async {
        while is_member(client, space) {
            space.status_changed(&mut since).await;
        }
    };
    tokio::time::timeout(SETTLED_WITHIN, heard).await.is_ok()
}

/// A write that a synced answer speaks of.
fn is_open(space: &Space, write: WriteId) -> bool {
    let state = space.write_state(write).ok().flatten();
    state.is_some_and(|state| !matches!(Stage::of(&state), Stage::Refused | Stage::Dismissed))
}

/// What was refused, or lost by the node: somebody has seen it.
async fn set_refused_aside(space: &Space) {
    for refused in space.refused().unwrap_or_default() {
        // One that is gone meanwhile is set aside.
        let _ = space.dismiss(refused.write).await;
    }
    for lost in space.lost(0, usize::MAX).unwrap_or_default() {
        let _ = space.dismiss_lost(lost.id).await;
    }
}

/// One piece of work of a client.
#[derive(Clone)]
struct Hand {
    world: World,
    told: Told,
    trees: Trees,
    step: Step,
    by: Who,
    client: Client,
}

impl Hand {
    fn say(&self, what: impl std::fmt::Display) {
        self.world.note(format_args!("{:>3} {}: {what}", self.step.number, self.by));
    }

    fn space(&self, slot: usize) -> Option<Space> {
        self.client.space(self.told.space(slot)?).ok()
    }

    async fn work(self) {
        match self.step.act {
            Act::Create { space, history, .. } => self.create(space, history).await,
            Act::Put { space, object, .. } => self.put(space, object).await,
            Act::Merge { space, object, .. } => self.merge(space, object).await,
            Act::Erase { space, object, .. } => self.erase(space, object).await,
            Act::Purge { space, object, .. } => self.purge(space, object).await,
            Act::Grow { space, tree, .. } => self.grow(space, tree).await,
            Act::ChangeRole { space, who, given, .. } => self.change_role(space, who, given).await,
            Act::Remove { space, who, .. } => self.remove(space, who).await,
            Act::Leave { space, .. } => self.leave(space).await,
            Act::Rotate { space, .. } => self.rotate(space).await,
            Act::AwaitSynced { space, deadline_ms, .. } => self.await_synced(space, deadline_ms).await,
            Act::AwaitDurable { space, .. } => self.await_durable(space).await,
            Act::AwaitLocally { space, .. } => self.await_locally(space).await,
            Act::AwaitObject { space, object, .. } => self.await_object(space, object).await,
            Act::Read { space, .. } => self.read(space),
            Act::Admit { .. }
            | Act::Cut { .. }
            | Act::Heal { .. }
            | Act::Sever { .. }
            | Act::Garble { .. }
            | Act::Kill { .. }
            | Act::PowerCut { .. }
            | Act::Stop { .. }
            | Act::Start { .. }
            | Act::Fill { .. }
            | Act::MakeRoom { .. }
            | Act::Fail { .. }
            | Act::Foe(_) => {}
        }
    }

    // ---- spaces and members -----------------------------------------------------------------------------------------

    async fn create(&self, slot: usize, history: History) {
        if self.told.space(slot).is_some() {
            return;
        }
        let history = match history {
            History::Everybody => HistoryMode::All,
            History::NobodyNew => HistoryMode::SinceJoin,
        };
        let options = SpaceOptions { history, ..SpaceOptions::default() };
        match self.client.create_space_with(&format!("{NEEDLE} space {slot}"), options).await {
            Ok(space) => {
                self.told.lock().spaces.entry(slot).or_insert(space.id());
                self.say(format_args!("made {}", space.id()));
            }
            Err(error) => self.say(error),
        }
    }

    fn profile(&self, account: client_sdk::AccountId) -> Field {
        let value = format!("{NEEDLE}-value-{}", self.step.number);
        Field { object_type: PROFILE, object: account.to_string(), name: field_name(self.step.number), value }
    }

    async fn admit(self, account: client_sdk::AccountId, token: oneshot::Sender<String>) {
        let Act::Admit { space, way, given, profile, .. } = self.step.act else { return };
        let Some(space) = self.space(space) else { return };
        *self.told.lock().admitted.entry((space.id(), account)).or_default() += 1;
        let field = self.profile(account);
        let by_approval = way == Way::Approval && profile == Profile::WithTheApproval;
        let is_promised = profile != Profile::None;
        if is_promised && !by_approval && profile != Profile::AfterTheInvite {
            self.write_profile(&space, &field).await;
        }
        let options = match way {
            Way::Open => InviteOptions::open(),
            Way::Approval => InviteOptions::approval(),
        };
        let tree = space.objects().tree_id(field.object_type, &field.object).ok();
        let must_see = tree.filter(|_| is_promised && !by_approval).into_iter().collect();
        let options = InviteOptions { role: role(given), max_uses: Some(1), must_see, ..options };
        let invited = tokio::time::timeout(PATIENCE, space.invite(options)).await;
        let Ok(Ok(invite)) = invited else {
            self.say(format_args!("no invite: {}", invited.map_or("too slow".to_owned(), |r| text(r.map(|_| ())))));
            return;
        };
        self.say("invited");
        self.told.lock().tokens.insert(invite.token.clone());
        if token.send(invite.token).is_err() {
            return;
        }
        if profile == Profile::AfterTheInvite {
            self.write_profile(&space, &field).await;
        }
        if way == Way::Approval {
            let prepared = by_approval.then_some(field);
            let approved = tokio::time::timeout(PATIENCE, self.approve(&space, account, prepared)).await;
            self.say(format_args!("approved: {}", approved.map_or("too slow".to_owned(), text)));
        }
    }

    async fn write_profile(&self, space: &Space, field: &Field) {
        let put = space.objects().put(field.object_type, &field.object, json!({ &field.name: field.value })).await;
        self.wrote(space, put, Some(field.clone()));
    }

    async fn approve(
        &self,
        space: &Space,
        account: client_sdk::AccountId,
        prepared: Option<Field>,
    ) -> Result<(), AclError> {
        let mut since = 0;
        let request = loop {
            match space.request_of(account) {
                Ok(request) => break request,
                Err(_) => space.status_changed(&mut since).await,
            }
        };
        space
            .approve(request, None, |w| match &prepared {
                Some(field) => w.put(field.object_type, &field.object, json!({ &field.name: field.value })),
                None => Ok(()),
            })
            .await
    }

    /// The newcomer's side.
    async fn come(self, handed: oneshot::Receiver<String>) {
        let Act::Admit { space, profile, way, .. } = self.step.act else { return };
        let was_here = self.space(space).is_some();
        let Ok(Ok(token)) = tokio::time::timeout(PATIENCE, handed).await else { return };
        let joining = match self.client.join(&token).await {
            Ok(joining) => joining,
            Err(error) => return self.say(format_args!("no join: {} {error}", error.code())),
        };
        self.say("joins");
        match joining.ready(PATIENCE).await {
            Ok(spaces) => {
                self.say("ready");
                // A member that was let in another way before was promised nothing by this one.
                let promised = profile != Profile::None && way == Way::Open || profile == Profile::WithTheApproval;
                let field = self.profile(self.client.account());
                for space in spaces.iter().filter(|_| promised) {
                    if !was_here
                        && self.told.is_admitted_once(space.id(), self.client.account())
                        && let Err(violation) = hold::ready_means_readable(self.by, space, &field)
                    {
                        self.told.found(violation);
                    }
                }
            }
            Err(error) => self.say(format_args!("not ready: {} {error}", error.code())),
        }
    }

    async fn change_role(&self, slot: usize, who: Who, given: Given) {
        let (Some(space), Ok(other)) = (self.space(slot), self.world.client(who.name())) else { return };
        self.say(text(space.change_role(other.account(), role(given)).await));
    }

    async fn remove(&self, slot: usize, who: Who) {
        let (Some(space), Ok(other)) = (self.space(slot), self.world.client(who.name())) else { return };
        self.say(text(space.remove_members(&[other.account()]).await));
    }

    async fn leave(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        self.say(text(space.leave().await));
    }

    async fn rotate(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        self.say(text(space.rotate_keys().await));
    }

    // ---- writing ----------------------------------------------------------------------------------------------------

    fn field(&self, object: usize) -> Field {
        Field {
            object_type: NOTE,
            object: object_name(object),
            name: field_name(self.step.number),
            value: format!("{NEEDLE}-value-{}", self.step.number),
        }
    }

    async fn put(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        let field = self.field(object);
        let put = space.objects().put(NOTE, &field.object, json!({ &field.name: field.value })).await;
        self.wrote(&space, put, Some(field));
    }

    async fn merge(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        let field = self.field(object);
        let tag = format!("{NEEDLE}-tag-{}", self.step.number % 3);
        let update = Update::new().set(&field.name, field.value.clone()).increment("count", 1).add("tags", tag);
        let updated = space.objects().update(NOTE, &field.object, update).await;
        self.wrote(&space, updated, Some(field));
    }

    async fn erase(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        self.erases(&space, object);
        let deleted = space.objects().delete(NOTE, &object_name(object)).await;
        self.wrote(&space, deleted, None);
    }

    async fn purge(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        self.erases(&space, object);
        let purged = space.objects().purge(NOTE, &object_name(object)).await.map(Some);
        self.wrote(&space, purged, None);
    }

    fn erases(&self, space: &Space, object: usize) {
        self.told.lock().erased.insert((space.id(), NOTE, object_name(object)));
    }

    async fn grow(&self, slot: usize, tree: usize) {
        let Some(space) = self.space(slot) else { return };
        let key = (space.id(), tree);
        let payload = Bytes::from(format!("{NEEDLE}-payload-{}", self.step.number));
        let write = TreeWrite { parents: None, payload };
        let known = self.lock_trees().get(&key).copied();
        let data_type = format!("{NEEDLE}/type");
        let written = match known {
            Some(tree) => space.append(tree, data_type, vec![write]).await,
            None => space.create_tree(NewTree { data_type, write_rule: WriteRule::WRITERS }, vec![write]).await,
        };
        match written {
            Ok(written) => {
                self.lock_trees().entry(key).or_insert(written.tree);
                self.wrote(&space, Ok(written.writes.first().copied()), None);
            }
            Err(error) => self.wrote(&space, Err(error), None),
        }
    }

    fn lock_trees(&self) -> std::sync::MutexGuard<'_, BTreeMap<(SpaceId, usize), TreeId>> {
        self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A write returned.
    fn wrote(&self, space: &Space, written: Result<Option<WriteId>, WriteError>, field: Option<Field>) {
        match written {
            Ok(Some(id)) => {
                self.say(format_args!("wrote {id}"));
                if let Some(field) = &field {
                    let shown = hold::own_writes_are_shown_at_once(&self.told, self.by, space, (id, field));
                    shown.unwrap_or_else(|violation| self.told.found(violation));
                }
                let written = Written {
                    number: self.step.number,
                    by: self.by,
                    space: space.id(),
                    id,
                    field,
                    locally_durable: false,
                    state: Stage::Pending,
                    chain: None,
                };
                self.told.lock().writes.push(written);
            }
            Ok(None) => self.say("nothing to write"),
            Err(error) => self.say(format_args!("not written: {} {error}", error.code())),
        }
    }

    // ---- waiting and reading ----------------------------------------------------------------------------------------

    async fn await_synced(&self, slot: usize, deadline_ms: u64) {
        let Some(space) = self.space(slot) else { return };
        let (before, since) = (self.told.writes_of(self.by, space.id()), self.told.lock().set_backs.len());
        let before: Vec<Written> = before.into_iter().filter(|w| is_open(&space, w.id)).collect();
        match space.await_synced_within(Duration::from_millis(deadline_ms)).await {
            Ok(synced) => {
                self.say(format_args!("synced at {}", synced.receipt.body().seq));
                let claim = Claim {
                    who: self.by,
                    client: &self.client,
                    space: &space,
                    receipt: &synced.receipt,
                    before,
                    node: NODE,
                    since,
                };
                self.judge(hold::synced_means_equal(&self.world, &self.told, &claim));
                self.certified(&space, &synced.receipt, since);
            }
            Err(not) => {
                self.say(format_args!("not synced: {not}"));
                if not.residue.is_empty() {
                    let expected = format!("{}: a no that names something", self.by);
                    self.told.found(Violation::new("not_synced_names_something", expected, not.code));
                }
            }
        }
    }

    async fn await_durable(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        let writes = self.told.writes_of(self.by, space.id());
        let Some(write) = writes.last() else { return };
        let since = self.told.lock().set_backs.len();
        match space.await_durable(write.id).await {
            Ok(receipt) => {
                self.say(format_args!("write {} is durable at {}", write.id, receipt.body().seq));
                let before = vec![write.clone()];
                let (who, client) = (self.by, &self.client);
                let claim = Claim { who, client, space: &space, receipt: &receipt, before, node: NODE, since };
                self.judge(claim.receipt_is_true(&self.world, &self.told));
                self.certified(&space, &receipt, since);
            }
            Err(not) => self.say(format_args!("not durable: {not}")),
        }
    }

    fn certified(&self, space: &Space, receipt: &client_sdk::SignedReceipt, since: usize) {
        let body = receipt.body();
        self.told.lock().certified.push(Certified { space: space.id(), seq: body.seq, chain: body.chain, since });
    }

    fn judge(&self, held: Result<(), Violation>) {
        if let Err(violation) = held {
            self.told.found(violation);
        }
    }

    async fn await_locally(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        let writes: Vec<WriteId> = self.told.writes_of(self.by, space.id()).iter().map(|w| w.id).collect();
        match space.durable_locally().await {
            Ok(()) => {
                self.say("durable here");
                self.told.locally_durable(self.by, &writes);
            }
            Err(error) => self.say(error),
        }
    }

    async fn await_object(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        match space.await_object(NOTE, &object_name(object), PATIENCE).await {
            Ok(object) => self.say(format_args!("{} has {} fields", object.id, object.fields.len())),
            Err(not) if not.residue.is_empty() && not.code != NotSyncedCode::StoreFailed => {
                let expected = format!("{}: a no that names something", self.by);
                self.told.found(Violation::new("not_synced_names_something", expected, not.code));
            }
            Err(not) => self.say(format_args!("no object: {not}")),
        }
    }

    fn read(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        match space.objects().list_all() {
            Ok(objects) => {
                self.say(format_args!("reads {} objects", objects.len()));
                let life = self.world.life(self.by.name());
                let held = self.told.held(self.by, life);
                self.judge(hold::a_held_tree_is_the_instance(self.by, &space, &held));
                self.judge(hold::one_live_instance_per_tree(self.by, &space, &objects));
                let one = objects.get(self.step.number as usize % objects.len().max(1));
                if let Some(Ok(Some(tree))) = one.map(|object| space.tree(object.tree)) {
                    self.told.lock().held.push((self.by, life, tree));
                }
            }
            Err(error) => self.say(error),
        }
    }
}

fn object_name(object: usize) -> String {
    format!("{NEEDLE}-object-{object}")
}

fn field_name(number: u32) -> String {
    format!("{NEEDLE}-field-{number}")
}

fn role(given: Given) -> Role {
    match given {
        Given::Reader => Role::Reader,
        Given::Writer => Role::Writer,
        Given::Admin => Role::Admin,
    }
}

fn text(done: Result<(), AclError>) -> String {
    match done {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{} {error}", error.code()),
    }
}
