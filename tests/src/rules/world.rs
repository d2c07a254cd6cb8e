//! One node and one replica per person, connected by queues whose order a seed decides.

mod forge;
mod govern;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use client_sdk::object::{self, Existence, ObjectState, Op};
use client_sdk::{InviteMode, ObjectType, Role, WriteRule};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rand_chacha::ChaCha20Rng;
use serde_json::{Map, Value, json};
use sync_core::acl::{AclReject, AclState, InviteStatus, RequestStatus, sign_join_proof};
use sync_core::code::{Code, NextStep};
use sync_core::ids::{AccountId, AclId, AuthorityId, ChangeId, Epoch, InviteId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{EntryKind, Genesis, Reject, Submission, genesis, may_write, space_id};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, ChangeKind, CreateInvite, HistoryMode, JoinClaim, PayloadClaim, RawRecord, Salt,
    Seal, SpaceHeader, SpaceOptions, Tombstone, TreeChange, TreeHeads, TreeRoot, Verified, verify, verify_as,
};
use sync_core::tree::{Height, OrderKey, heads_after};
use sync_e2ee::{
    AccountKeys, ContentContext, Envelope, InviteSecret, KeyRing, Mnemonic, Recipient, SpaceKeys, decrypt, encrypt,
    object_root, seal_keys,
};

use super::{MapLog, Taken};
use crate::script::{Act, ObjectName, Shown, Step, Trouble, World};

const SPACE_INFO: &str = "headwater.space";
/// Deliveries after which settling counts as endless.
const DELIVERIES_MAX: usize = 100_000;
const OWN: &str = "records made here have the form that is checked here";

/// What a replica tells the node, and the node a replica.
#[derive(Debug, Clone)]
enum Message {
    Push { root: Option<RawRecord>, record: RawRecord },
    Entry { seq: Seq, kind: EntryKind, record: RawRecord },
    Verdict { change: ChangeId, reject: Reject },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Up,
    Down,
}

type Queue = (String, SpaceId, Way);

/// A write that is not in the log yet.
#[derive(Debug, Clone)]
struct Pending {
    root: TreeRoot,
    with_root: bool,
    change: Verified<TreeChange>,
    object: ObjectName,
    ops: Vec<Op>,
}

/// One person's copy of one space.
struct Replica {
    genesis: Genesis,
    log: MapLog,
    ring: KeyRing,
    pending: Vec<Pending>,
    refused: Vec<(ChangeId, Reject)>,
    root_before: Option<RawRecord>,
}

#[derive(Clone)]
struct Token {
    space: SpaceId,
    secret: InviteSecret,
    must_see: Vec<TreeId>,
}

struct Person {
    keys: AccountKeys,
    is_online: bool,
    replicas: BTreeMap<SpaceId, Replica>,
    /// Handed to this person, oldest first.
    tokens: Vec<Token>,
    /// Every invite secret that this person ever saw, used or not.
    secrets: Vec<InviteSecret>,
    /// Joins under way, and the trees that they wait for.
    joining: BTreeMap<SpaceId, Vec<TreeId>>,
}

/// The rules over maps.
pub struct PureWorld {
    seed: u64,
    rng: StdRng,
    /// For keys and nonces; never decides an order.
    secrets: ChaCha20Rng,
    people: BTreeMap<String, Person>,
    node: BTreeMap<SpaceId, MapLog>,
    node_is_up: bool,
    genesis: BTreeMap<SpaceId, Genesis>,
    queues: BTreeMap<Queue, VecDeque<Message>>,
    names: BTreeMap<String, SpaceId>,
    latest: Option<SpaceId>,
    plaintext: BTreeSet<String>,
    /// All keys that were ever made here, by their published id: what a patched client may have from anywhere.
    all_keys: BTreeMap<[u8; 32], SpaceKeys>,
    judged: Vec<Judged>,
    clock_ms: u64,
}

/// A submission that the node judged, where, and how.
#[derive(Debug, Clone)]
pub struct Judged {
    pub space: SpaceId,
    /// The end of the log before it.
    pub after: Seq,
    pub submission: Submission,
    pub verdict: Result<Taken, Reject>,
}

impl std::fmt::Debug for PureWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PureWorld").field("seed", &self.seed).finish_non_exhaustive()
    }
}

fn rejected(reject: &Reject) -> Trouble {
    Trouble::refused(Code::from(reject).name(), reject)
}

/// The write rule of an object, as the SDK declares it.
fn rule_of(object: &ObjectName) -> WriteRule {
    if object.object_type == SPACE_INFO {
        return WriteRule { who: client_sdk::Who::Admins, once: false };
    }
    crate::script::rule_of(&object.object_type, &object.id)
}

impl World for PureWorld {
    async fn act(&mut self, step: &Step) -> Result<(), Trouble> {
        self.clock_ms += 1;
        self.meet(&step.who);
        self.adopt_all();
        self.deliver_some();
        self.perform(step)
    }

    fn seed(&self) -> Option<u64> {
        Some(self.seed)
    }
}

impl PureWorld {
    /// A world in which this seed decides the order of messages.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The SDK must agree on these rules, or both worlds would not make the same trees.
        assert_eq!((ObjectType::profile().name(), ObjectType::space_info().name()), ("profile", SPACE_INFO));
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            secrets: rand_chacha::rand_core::SeedableRng::seed_from_u64(seed ^ 0x5eed),
            people: BTreeMap::new(),
            node: BTreeMap::new(),
            node_is_up: true,
            genesis: BTreeMap::new(),
            queues: BTreeMap::new(),
            names: BTreeMap::new(),
            latest: None,
            plaintext: BTreeSet::new(),
            all_keys: BTreeMap::new(),
            judged: Vec::new(),
            clock_ms: 1,
        }
    }

    fn perform(&mut self, step: &Step) -> Result<(), Trouble> {
        let who = step.who.as_str();
        match &step.act {
            Act::Creates { space, history } => self.create_space(who, space, *history),
            Act::GoesOffline => self.go_offline(who),
            Act::GoesOnline => self.go_online(who),
            Act::Restarts if who == "node" => self.restart_node(),
            Act::Restarts => self.restart(who),
            Act::IsKilled => self.kill_node(),
            Act::Settles => self.settle(),
            Act::Holds { space, entries } => self.node_holds(space, *entries),
            Act::Agrees
            | Act::Invites { .. }
            | Act::Joins { .. }
            | Act::IsReady
            | Act::Approves { .. }
            | Act::Declines { .. }
            | Act::Governs(_)
            | Act::Forges(_)
            | Act::Writes { .. }
            | Act::Deletes { .. }
            | Act::Purges { .. }
            | Act::Reads { .. }
            | Act::Lists { .. }
            | Act::HoldsEpochs { .. }
            | Act::HoldsNoKey { .. }
            | Act::HasRefused { .. }
            | Act::Dismisses => self.perform_in(step, self.space(step)?),
        }
    }

    fn perform_in(&mut self, step: &Step, space: SpaceId) -> Result<(), Trouble> {
        let (who, forced) = (step.who.as_str(), step.forced);
        self.enter(who, space)?;
        match &step.act {
            Act::Invites { whom, role, mode, max_uses, must_see } => {
                self.meet(whom);
                let must_see = must_see.iter().map(|o| self.tree_of(space, o)).collect::<Result<_, _>>()?;
                self.invite(who, space, whom, *role, mode.unwrap_or(InviteMode::Open), *max_uses, must_see, forced)?;
                if mode.is_some() {
                    return Ok(());
                }
                self.join(whom, space, None, false)?;
                self.enter(whom, space)
            }
            Act::Joins { by } => self.join(who, space, by.as_deref(), forced),
            Act::IsReady => self.is_ready(who, space),
            Act::Approves { whom, role, promising } => self.approve(who, space, whom, *role, promising, forced),
            Act::Declines { whom } => {
                let request = self.request_of(who, space, whom, forced)?;
                self.append(who, space, AclContent::DeclineJoin { request }, forced).map(|_| ())
            }
            Act::Governs(act) => self.govern(who, space, act, forced),
            Act::Forges(forgery) => self.forge(who, space, forgery),
            Act::Writes { object, fields, citing } if forced => {
                self.write_past_the_rules(who, space, object, fields, *citing)
            }
            Act::Writes { object, fields, citing: _ } => self.write(who, space, object, fields),
            Act::Deletes { object } => self.delete(who, space, object),
            Act::Purges { object } => self.purge(who, space, object, forced),
            Act::Reads { object, shown } => self.read(who, space, object, shown),
            Act::Lists { object_type, count } => self.list(who, space, object_type, *count),
            Act::HoldsEpochs { epochs } => self.holds_epochs(who, space, epochs),
            Act::HoldsNoKey { epoch } => self.holds_no_key(who, space, *epoch),
            Act::HasRefused { count } => self.has_refused(who, space, *count),
            Act::Dismisses => self.dismiss(who, space),
            Act::Agrees => self.everyone_agrees(),
            Act::Creates { .. }
            | Act::GoesOffline
            | Act::GoesOnline
            | Act::Restarts
            | Act::IsKilled
            | Act::Settles
            | Act::Holds { .. } => unreachable!("needs no space"),
        }
    }

    // ---- for tests that look inside ---------------------------------------------------------------------------------

    /// The log of a space at the node, if it knows the space.
    #[must_use]
    pub fn node_log_of(&self, name: &str) -> Option<&MapLog> {
        self.node.get(self.names.get(name)?)
    }

    /// How a space began.
    #[must_use]
    pub fn genesis_of(&self, name: &str) -> Option<&Genesis> {
        self.genesis.get(self.names.get(name)?)
    }

    /// Everything that the node was ever asked to take, in order.
    #[must_use]
    pub fn judged(&self) -> &[Judged] {
        &self.judged
    }

    /// Who took part so far.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, AccountId)> {
        self.people.iter().map(|(who, person)| (who.as_str(), person.keys.id()))
    }

    /// A person's copy of a space, and the epochs whose keys it holds.
    #[must_use]
    pub fn replica_of(&self, who: &str, name: &str) -> Option<(&MapLog, BTreeSet<Epoch>)> {
        let replica = self.people.get(who)?.replicas.get(self.names.get(name)?)?;
        let epochs = replica.log.acl_state().epochs.keys().filter(|epoch| replica.ring.holds(**epoch));
        Some((&replica.log, epochs.copied().collect()))
    }

    /// The invites whose secret a person was ever handed.
    #[must_use]
    pub fn invites_seen_by(&self, who: &str) -> BTreeSet<InviteId> {
        self.people.get(who).into_iter().flat_map(|p| &p.secrets).map(InviteSecret::id).collect()
    }

    /// The epochs that a person can open with the whole log of the node and every invite that it was ever handed.
    #[must_use]
    pub fn opened_by(&self, who: &str, name: &str) -> BTreeSet<Epoch> {
        let Some((space, log)) = self.names.get(name).and_then(|id| Some((*id, self.node.get(id)?))) else {
            return BTreeSet::new();
        };
        let ring = self.opens(who, space).expect("the node knows the space");
        log.acl_state().epochs.keys().filter(|epoch| ring.holds(**epoch)).copied().collect()
    }

    // ---- people and spaces ------------------------------------------------------------------------------------------

    fn meet(&mut self, who: &str) {
        if ["node", "everyone"].contains(&who) || self.people.contains_key(who) {
            return;
        }
        let keys = AccountKeys::from_mnemonic(&Mnemonic::generate(&mut self.secrets));
        let person = Person {
            keys,
            is_online: true,
            replicas: BTreeMap::new(),
            tokens: Vec::new(),
            secrets: Vec::new(),
            joining: BTreeMap::new(),
        };
        self.people.insert(who.to_owned(), person);
    }

    fn person(&self, who: &str) -> &Person {
        self.people.get(who).unwrap_or_else(|| panic!("nobody introduced {who}"))
    }

    fn person_mut(&mut self, who: &str) -> &mut Person {
        self.people.get_mut(who).unwrap_or_else(|| panic!("nobody introduced {who}"))
    }

    fn space(&self, step: &Step) -> Result<SpaceId, Trouble> {
        let named = step.space.as_ref().map(|name| self.names.get(name).copied());
        named.unwrap_or(self.latest).ok_or_else(|| Trouble::wrong("a space", "nobody made it"))
    }

    fn replica(&self, who: &str, space: SpaceId) -> Result<&Replica, Trouble> {
        let replica = self.person(who).replicas.get(&space);
        replica.ok_or_else(|| Trouble::refused("SPACE_UNKNOWN", format!("there is no space {space} here")))
    }

    fn replica_mut(&mut self, who: &str, space: SpaceId) -> &mut Replica {
        self.person_mut(who).replicas.get_mut(&space).expect("the caller has it")
    }

    /// Where the id of an object is an account, scripts say the name of a person.
    fn resolve(&mut self, object: &ObjectName) -> ObjectName {
        if !crate::script::is_of_an_account(&object.object_type) {
            return object.clone();
        }
        self.meet(&object.id);
        ObjectName { id: self.person(&object.id).keys.id().to_string(), ..object.clone() }
    }

    /// The keys of the space now, from wherever: for what a patched client knows.
    fn any_keys(&self, space: SpaceId) -> &SpaceKeys {
        let acl = self.node.get(&space).map_or_else(|| self.genesis[&space].acl(), MapLog::acl_state);
        &self.all_keys[&acl.epochs[&acl.epoch].key_id]
    }

    /// Where the node has no log yet, nobody but the owner knows the space.
    fn node_log(&self, space: SpaceId) -> Result<&MapLog, Trouble> {
        self.node.get(&space).ok_or_else(|| Trouble::refused("SPACE_UNKNOWN", "the node does not know the space"))
    }

    fn tree_of(&mut self, space: SpaceId, object: &ObjectName) -> Result<TreeId, Trouble> {
        let object = self.resolve(object);
        let keys = self.any_keys(space);
        Ok(object_root(space, &keys.name_key, &object.object_type, &object.id, rule_of(&object)).tree_id())
    }

    fn create_space(&mut self, who: &str, name: &str, history: HistoryMode) -> Result<(), Trouble> {
        let keys = self.person(who).keys.clone();
        let found = self.found(&keys, history);
        let space = found.space();
        let log = MapLog::found(&found);
        self.person_mut(who).replicas.insert(space, Replica::new(&keys, found.clone(), log));
        self.genesis.insert(space, found);
        self.names.insert(name.to_owned(), space);
        self.latest = Some(space);
        self.register(who, space);
        let info = ObjectName { object_type: SPACE_INFO.to_owned(), id: "self".to_owned() };
        let fields = Map::from_iter([("name".to_owned(), json!(name))]);
        self.write(who, space, &info, &fields)
    }

    fn found(&mut self, owner: &AccountKeys, history: HistoryMode) -> Genesis {
        let keys = SpaceKeys::generate(&mut self.secrets);
        self.all_keys.insert(keys.key_id(), keys.clone());
        let to = Recipient::Account(owner.id());
        let seal = seal_keys(None, Epoch(0), to, &keys, &mut self.secrets).expect(OWN);
        let root = AclRoot {
            owner: owner.id(),
            options: SpaceOptions { history, ..SpaceOptions::default() },
            key_id: keys.key_id(),
            history_id: keys.history_id().expect("fresh keys have a history key"),
            profile_key: keys.profile_public(),
            seals: vec![seal],
        };
        let root = Verified::sign(&root, owner.signing_key(), None).expect(OWN);
        let salt = Salt::Nonce(self.rng.random());
        let header =
            SpaceHeader { owner: owner.id(), created_ms: self.clock_ms, salt, acl_root: AclId::from(root.id()) };
        let header = Verified::unsigned(&header).expect(OWN);
        let home = AuthorityId::from(&ed25519(self.seed).verifying_key());
        let set_home = AclRecord {
            space: space_id(&header),
            prev: AclId::from(root.id()),
            index: 1,
            author: owner.id(),
            at_ms: self.clock_ms,
            seen: None,
            contents: vec![AclContent::SetHome { authority: home }],
        };
        let set_home = Verified::sign(&set_home, owner.signing_key(), None).expect(OWN);
        genesis(header, &root, &set_home).expect(OWN)
    }

    // ---- the connection ---------------------------------------------------------------------------------------------

    fn is_connected(&self, who: &str) -> bool {
        self.node_is_up && self.person(who).is_online
    }

    /// A space that was made here goes to the node.
    fn register(&mut self, who: &str, space: SpaceId) {
        if self.is_connected(who) && !self.node.contains_key(&space) {
            self.node.insert(space, MapLog::found(&self.genesis[&space]));
        }
    }

    fn go_offline(&mut self, who: &str) -> Result<(), Trouble> {
        self.person_mut(who).is_online = false;
        self.lose_messages(Some(who));
        Ok(())
    }

    fn go_online(&mut self, who: &str) -> Result<(), Trouble> {
        self.person_mut(who).is_online = true;
        self.reconnect(who);
        Ok(())
    }

    fn kill_node(&mut self) -> Result<(), Trouble> {
        self.node_is_up = false;
        self.lose_messages(None);
        Ok(())
    }

    /// What the node has comes back from its bytes alone.
    fn restart_node(&mut self) -> Result<(), Trouble> {
        self.kill_node()?;
        for (space, log) in &mut self.node {
            *log = replayed(&self.genesis[space], log)?;
        }
        self.node_is_up = true;
        for who in self.names_of_people() {
            self.reconnect(&who);
        }
        Ok(())
    }

    fn restart(&mut self, who: &str) -> Result<(), Trouble> {
        self.lose_messages(Some(who));
        let person = self.person_mut(who);
        for replica in person.replicas.values_mut() {
            let mut fresh =
                Replica::new(&person.keys, replica.genesis.clone(), replayed(&replica.genesis, &replica.log)?);
            fresh.rebuild_ring(&person.keys);
            fresh.pending = std::mem::take(&mut replica.pending);
            fresh.refused = std::mem::take(&mut replica.refused);
            *replica = fresh;
        }
        self.reconnect(who);
        Ok(())
    }

    fn lose_messages(&mut self, whose: Option<&str>) {
        self.queues.retain(|(person, ..), _| whose.is_some_and(|w| w != person));
    }

    /// The tail from what is stored, and everything that is pending.
    fn reconnect(&mut self, who: &str) {
        if !self.is_connected(who) {
            return;
        }
        self.lose_messages(Some(who));
        let spaces: Vec<_> = self.person(who).replicas.keys().copied().collect();
        for space in spaces {
            self.register(who, space);
            let replica = self.replica_mut(who, space);
            replica.root_before = None;
            let cursor = replica.log.entries().len();
            let pushes: Vec<_> = replica.pending.iter().map(Pending::push).collect();
            let visible = self.visible(who, space).max(cursor);
            let entries: Vec<_> = self.node[&space].entries()[cursor..visible].iter().map(tail_message).collect();
            self.queue(who, space, Way::Down).extend(entries);
            self.queue(who, space, Way::Up).extend(pushes);
        }
    }

    /// How many entries the node shows to a person: all to a member, and to others those up to their removal.
    fn visible(&self, who: &str, space: SpaceId) -> usize {
        let (log, account) = (&self.node[&space], self.person(who).keys.id());
        if log.acl_state().members.contains_key(&account) {
            return log.entries().len();
        }
        log.acl_state().removed.get(&account).map_or(0, |at| usize::try_from(at.0).expect("logs of tests are short"))
    }

    fn queue(&mut self, who: &str, space: SpaceId, way: Way) -> &mut VecDeque<Message> {
        self.queues.entry((who.to_owned(), space, way)).or_default()
    }

    fn names_of_people(&self) -> Vec<String> {
        self.people.keys().cloned().collect()
    }

    /// Whoever was accepted and can reach the node begins its replica.
    fn adopt_all(&mut self) {
        for who in self.names_of_people() {
            let joining: Vec<_> = self.person(&who).joining.keys().copied().collect();
            for space in joining {
                let account = self.person(&who).keys.id();
                let is_member = self.node.get(&space).is_some_and(|log| log.acl_state().members.contains_key(&account));
                if is_member && self.is_connected(&who) && !self.person(&who).replicas.contains_key(&space) {
                    let found = self.genesis[&space].clone();
                    let keys = self.person(&who).keys.clone();
                    let replica = Replica::new(&keys, found.clone(), MapLog::found(&found));
                    self.person_mut(&who).replicas.insert(space, replica);
                    self.reconnect(&who);
                }
            }
        }
    }

    /// Who was let in waits for the log up to its own join before it acts, as an app would.
    fn enter(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        let Some(person) = self.people.get(who) else { return Ok(()) };
        let account = person.keys.id();
        let waits = |replica: &Replica| !replica.log.acl_state().members.contains_key(&account);
        if self.is_connected(who) && person.replicas.get(&space).is_some_and(waits) {
            self.catch_up(who, space)?;
        }
        Ok(())
    }

    fn deliver_some(&mut self) {
        let deliveries = self.rng.random_range(0..6);
        for _ in 0..deliveries {
            self.deliver_one();
        }
    }

    /// One message of a queue that chance picks; false if there is none.
    fn deliver_one(&mut self) -> bool {
        let ready: Vec<Queue> = self.queues.iter().filter(|(_, q)| !q.is_empty()).map(|(key, _)| key.clone()).collect();
        if ready.is_empty() {
            return false;
        }
        let queue = ready[self.rng.random_range(0..ready.len())].clone();
        self.deliver(&queue);
        true
    }

    fn deliver(&mut self, queue: &Queue) {
        let Some(message) = self.queues.get_mut(queue).and_then(VecDeque::pop_front) else { return };
        let (who, space, _) = queue;
        match message {
            Message::Push { root, record } => self.node_takes(who, *space, root, record),
            Message::Entry { seq, kind, record } => self.replica_mut(who, *space).follow(seq, kind, record),
            Message::Verdict { change, reject } => self.take_verdict(who, *space, change, reject),
        }
    }

    /// A refused write is judged again on one's own log, and made anew, tried again or kept as refused.
    fn take_verdict(&mut self, who: &str, space: SpaceId, change: ChangeId, reject: Reject) {
        let replica = &self.person(who).replicas[&space];
        // Made anew since it was sent: the verdict is about a change that is no more.
        let Some(pending) = replica.pending.iter().find(|p| p.id() == change).cloned() else { return };
        let own = replica.log.clone().take(&pending.submission());
        let behind = matches!(own, Err(Reject::MissingParent { .. } | Reject::MissingRoot { .. }));
        match Code::from(&reject).next_step() {
            NextStep::Rebuild | NextStep::Refuse if own.is_ok() || behind => self.push(who, space, pending.push()),
            NextStep::Rebuild => {
                self.rebuild(who, space, &pending, reject == Reject::HeadsFull { tree: pending.tree() })
            }
            NextStep::Refuse => self.replica_mut(who, space).keep_refusal(change, &reject),
            NextStep::Retry => self.push(who, space, pending.push()),
        }
    }

    fn push(&mut self, who: &str, space: SpaceId, push: Message) {
        if self.is_connected(who) {
            self.register(who, space);
            self.queue(who, space, Way::Up).push_back(push);
        }
    }

    /// Makes a pending write, and those that build on it, anew on the present ACL and epoch.
    fn rebuild(&mut self, who: &str, space: SpaceId, from: &Pending, onto_heads: bool) {
        let keys = self.person(who).keys.clone();
        let replica = &self.person(who).replicas[&space];
        let (tree, acl) = (from.tree(), replica.log.acl_state());
        let place = (acl.head, acl.epoch);
        let logged = replica.log.trees().get(&tree);
        if let Err(reject) = may_write(acl, tree, &from.root, logged, &keys.id(), &acl.head) {
            return self.replica_mut(who, space).keep_refusal(from.id(), &reject);
        }
        let ring_keys = replica.ring.keys(acl.epoch).expect("a writer holds the keys of the epoch").clone();
        let heads = logged.map(|t| t.heads.clone()).unwrap_or_default();
        let of_tree = replica.pending.iter().skip_while(|p| p.id() != from.id()).filter(|p| p.tree() == tree);
        let suffix: Vec<Pending> = of_tree.cloned().collect();
        let mut renamed = BTreeMap::new();
        for old in suffix {
            let first = old.id() == from.id();
            if !first && !old.change.body().parents.iter().any(|p| renamed.contains_key(p)) {
                continue;
            }
            let parents = if first && onto_heads { parents_of(tree, &heads) } else { old.parents_as_now(&renamed) };
            let change = self.sign_change(&keys, &ring_keys, space, tree, parents, place, &old.object, &old.ops);
            renamed.insert(old.id(), change.id().into());
            let new = Pending { change, ..old.clone() };
            let push = new.push();
            let row = self.replica_mut(who, space).pending.iter_mut().find(|p| p.id() == old.id());
            *row.expect("nobody took it") = new;
            self.push(who, space, push);
        }
    }

    fn node_takes(&mut self, who: &str, space: SpaceId, root: Option<RawRecord>, record: RawRecord) {
        let change = ChangeId::from(record.id());
        let root = root.map(|r| verify(r).expect(OWN));
        let submission = Submission::pair(root, verify(record).expect(OWN)).expect(OWN);
        if let Err(reject) = self.append_at_node(space, &submission) {
            self.queue(who, space, Way::Down).push_back(Message::Verdict { change, reject });
        }
    }

    /// The node decides, and tells everybody who follows the space.
    fn append_at_node(&mut self, space: SpaceId, submission: &Submission) -> Result<Taken, Reject> {
        let log = self.node.get_mut(&space).expect("a space that is registered");
        let (before, members) = (log.entries().len(), log.acl_state().members.clone());
        let verdict = log.take(submission);
        let after = Seq(before as u64);
        self.judged.push(Judged { space, after, submission: submission.clone(), verdict: verdict.clone() });
        let taken = verdict?;
        let log = &self.node[&space];
        if let Some(tree) = submission.tree() {
            log.heads_of_a_tree_are_its_changes_without_children(tree);
        }
        let news: Vec<_> = log.entries()[before..].iter().map(tail_message).collect();
        for who in self.names_of_people() {
            if !self.is_connected(&who) || !self.person(&who).replicas.contains_key(&space) {
                continue;
            }
            let account = self.person(&who).keys.id();
            let is_member = self.node[&space].acl_state().members.contains_key(&account);
            // Whose membership ends here sees the entry that ends it.
            match (members.contains_key(&account), is_member) {
                (true, _) => self.queue(&who, space, Way::Down).extend(news.clone()),
                (false, true) => self.reconnect(&who),
                (false, false) => {}
            }
        }
        Ok(taken)
    }

    /// Everything that is on its way to one replica arrives.
    fn catch_up(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        if !self.is_connected(who) {
            return Err(Trouble::refused("OFFLINE", "the node cannot be reached"));
        }
        let queue = (who.to_owned(), space, Way::Down);
        while self.queues.get(&queue).is_some_and(|q| !q.is_empty()) {
            self.deliver(&queue);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        for _ in 0..DELIVERIES_MAX {
            self.adopt_all();
            if !self.deliver_one() {
                return self.settled();
            }
        }
        Err(Trouble::wrong("settling ends", format!("messages are still under way after {DELIVERIES_MAX}")))
    }

    fn settled(&self) -> Result<(), Trouble> {
        for (who, person) in self.people.iter().filter(|(who, _)| self.is_connected(who)) {
            for replica in person.replicas.values() {
                if let Some((_, reject)) = replica.refused.first() {
                    return Err(Trouble::refused("REFUSED", format!("not synced: {who}: {reject}")));
                }
                if !replica.pending.is_empty() || !self.is_up_to_date(person, &replica.log) {
                    let happened =
                        format!("{who} has {} pending, log {:?}", replica.pending.len(), replica.log.entries().len());
                    return Err(Trouble::wrong("everything arrived", happened));
                }
            }
        }
        Ok(())
    }

    /// As the node's log; of a former member, as the beginning of it.
    fn is_up_to_date(&self, person: &Person, log: &MapLog) -> bool {
        let node = &self.node[&log.space()];
        if node.acl_state().members.contains_key(&person.keys.id()) {
            log == node
        } else {
            node.entries().starts_with(log.entries())
        }
    }

    // ---- membership -------------------------------------------------------------------------------------------------

    /// What an honest client knows before it acts: its own log up to date, and itself in it.
    fn prepare(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        self.replica(who, space)?;
        self.catch_up(who, space)?;
        let account = self.person(who).keys.id();
        let acl = self.person(who).replicas[&space].log.acl_state();
        if acl.members.contains_key(&account) {
            return Ok(());
        }
        Err(Trouble::refused("NOT_A_MEMBER", format!("{who} is not a member")))
    }

    /// Appends an act: judged on one's own replica first, and by the node, with one verdict.
    fn append(&mut self, who: &str, space: SpaceId, content: AclContent, forced: bool) -> Result<AclId, Trouble> {
        if !forced {
            self.prepare(who, space)?;
        }
        self.node_log(space)?;
        let record = self.sign(who, space, content);
        let local = (!forced).then(|| {
            let log = &self.person(who).replicas[&space].log;
            log.clone().take(&Submission::Acl(record.clone()))
        });
        let id = AclId::from(record.id());
        let taken = self.append_at_node(space, &Submission::Acl(record));
        if let Some(local) = local {
            assert_eq!(local, taken, "seed {}: a replica and the node judge one record on one log", self.seed);
            self.catch_up(who, space)?;
        }
        taken.map(|_| id).map_err(|reject| rejected(&reject))
    }

    fn sign(&self, who: &str, space: SpaceId, content: AclContent) -> Verified<AclRecord> {
        let acl = self.node[&space].acl_state();
        let keys = &self.person(who).keys;
        let record = AclRecord {
            space,
            prev: acl.head,
            index: acl.index + 1,
            author: keys.id(),
            at_ms: self.clock_ms,
            seen: None,
            contents: vec![content],
        };
        Verified::sign(&record, keys.signing_key(), None).expect(OWN)
    }

    #[expect(clippy::too_many_arguments, reason = "what a line of a script says")]
    fn invite(
        &mut self,
        who: &str,
        space: SpaceId,
        whom: &str,
        role: Role,
        mode: InviteMode,
        max_uses: Option<u32>,
        must_see: Vec<TreeId>,
        forced: bool,
    ) -> Result<(), Trouble> {
        let secret = InviteSecret::generate(&mut self.secrets);
        let seals = match mode {
            InviteMode::Approval => Vec::new(),
            InviteMode::Open => {
                let keys = self.keys_to_give(who, space, forced)?;
                vec![self.seal(space, Recipient::Invite(secret.id()), role, &keys)]
            }
        };
        let invite = CreateInvite {
            key: secret.id(),
            mode,
            role,
            expires_ms: None,
            max_uses,
            seals,
            must_see: must_see.clone(),
            requires: Vec::new(),
            label_ct: Bytes::new(),
        };
        self.append(who, space, AclContent::CreateInvite(invite), forced)?;
        let person = self.person_mut(whom);
        person.secrets.push(secret.clone());
        person.tokens.push(Token { space, secret, must_see });
        Ok(())
    }

    /// The keys of the epoch that one holds; a patched client has them from wherever.
    fn keys_to_give(&mut self, who: &str, space: SpaceId, forced: bool) -> Result<SpaceKeys, Trouble> {
        if forced {
            self.node_log(space)?;
            return Ok(self.any_keys(space).clone());
        }
        self.prepare(who, space)?;
        let replica = self.replica(who, space)?;
        let keys = replica.ring.keys(replica.log.acl_state().epoch).cloned();
        keys.ok_or_else(|| Trouble::refused("NO_KEYS", "no keys of this epoch"))
    }

    /// What a role is given of these keys: history only where the space lets it have it.
    fn seal(&mut self, space: SpaceId, to: Recipient, role: Role, keys: &SpaceKeys) -> Seal {
        let acl = self.node[&space].acl_state();
        let epoch = acl.epoch;
        let given = if reads_history(acl.options.history, role) { keys.clone() } else { keys.without_history() };
        seal_keys(Some(space), epoch, to, &given, &mut self.secrets).expect("keys of people are strong")
    }

    fn join(&mut self, who: &str, space: SpaceId, by: Option<&str>, forced: bool) -> Result<(), Trouble> {
        self.meet(by.unwrap_or(who));
        let tokens = &self.person(by.unwrap_or(who)).tokens;
        let token = tokens.iter().rev().find(|t| t.space == space).cloned();
        let token = token.ok_or_else(|| Trouble::wrong("an invite", format!("nobody gave {who} one")))?;
        if !self.is_connected(who) {
            return Err(Trouble::refused("OFFLINE", "the node cannot be reached"));
        }
        let acl = self.node_log(space)?.acl_state().clone();
        self.person_mut(who).secrets.push(token.secret.clone());
        let account = self.person(who).keys.id();
        let settled = acl.members.contains_key(&account) || acl.pending_request(&account).is_some();
        if settled && !forced {
            return Ok(());
        }
        let content = self.join_content(&acl, account, &token).map_err(|reject| rejected(&reject))?;
        self.append(who, space, content, true)?;
        self.person_mut(who).joining.insert(space, token.must_see);
        self.adopt_all();
        Ok(())
    }

    fn join_content(&mut self, acl: &AclState, account: AccountId, token: &Token) -> Result<AclContent, Reject> {
        // Whether it is live is for the log to say.
        let invite =
            acl.invites.get(&token.secret.id()).ok_or(AclReject::InviteUnknown { invite: token.secret.id() })?;
        let (role, mode) = (invite.content.role, invite.content.mode);
        let proof = sign_join_proof(token.secret.signing_key(), acl.space, account, role);
        let claim = JoinClaim { invite: token.secret.id(), account, role, proof, profile_ct: Bytes::new() };
        Ok(match mode {
            InviteMode::Approval => AclContent::RequestJoin { claim },
            InviteMode::Open => {
                let keys = match invite.status {
                    InviteStatus::Live => self.keys_of_invite(acl, token),
                    // It opens nothing any more; a patched client tries all the same.
                    InviteStatus::Revoked | InviteStatus::Dead => self.any_keys(acl.space).clone(),
                };
                let to = Recipient::Account(account);
                let seal = seal_keys(Some(acl.space), acl.epoch, to, &keys, &mut self.secrets).expect("a strong key");
                AclContent::JoinByInvite { claim, seals: vec![seal] }
            }
        })
    }

    /// What an open invite's secret opens, from the log alone.
    fn keys_of_invite(&self, acl: &AclState, token: &Token) -> SpaceKeys {
        let stranger = AccountKeys::from_mnemonic(&Mnemonic::generate(&mut self.secrets.clone()));
        let mut ring = KeyRing::new(stranger);
        ring.hold_invite(token.secret.clone());
        absorb_all(&mut ring, &self.node[&acl.space]);
        ring.keys(acl.epoch).expect("an open invite gives the keys of its epoch").clone()
    }

    fn request_of(&mut self, who: &str, space: SpaceId, whom: &str, forced: bool) -> Result<AclId, Trouble> {
        self.meet(whom);
        if !forced {
            self.prepare(who, space)?;
        }
        let account = self.person(whom).keys.id();
        let requests = self.node[&space].acl_state().requests.iter().filter(|(_, r)| r.claim.account == account);
        let latest = requests.max_by_key(|(_, r)| r.at).map(|(id, _)| *id);
        latest.ok_or_else(|| Trouble::refused("REQUEST_UNKNOWN", format!("{whom} has no pending request")))
    }

    fn approve(
        &mut self,
        who: &str,
        space: SpaceId,
        whom: &str,
        role: Option<Role>,
        promising: &[ObjectName],
        forced: bool,
    ) -> Result<(), Trouble> {
        let request = self.request_of(who, space, whom, forced)?;
        self.push_own(who, space);
        let claim = self.node[&space].acl_state().requests[&request].claim.clone();
        let mut frontier = Vec::new();
        for object in promising {
            let tree = self.tree_of(space, object)?;
            let state = self.node[&space].trees().get(&tree);
            let state =
                state.ok_or_else(|| Trouble::refused("BAD_FRONTIER", format!("{tree} has nothing on the node")))?;
            frontier.push(TreeHeads { tree, heads: state.heads.iter().copied().collect() });
        }
        let role = role.unwrap_or(claim.role);
        let keys = self.keys_to_give(who, space, forced)?;
        let seals = vec![self.seal(space, Recipient::Account(claim.account), role, &keys)];
        let content = AclContent::AcceptJoin { request, role, seals, frontier };
        self.append(who, space, content, forced)?;
        self.adopt_all();
        Ok(())
    }

    /// One's own writes reach the node before an acceptance promises them.
    fn push_own(&mut self, who: &str, space: SpaceId) {
        let queue = (who.to_owned(), space, Way::Up);
        while self.queues.get(&queue).is_some_and(|q| !q.is_empty()) {
            self.deliver(&queue);
        }
    }

    fn is_ready(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        let account = self.person(who).keys.id();
        if !self.node[&space].acl_state().members.contains_key(&account) {
            let requests = self.node[&space].acl_state().requests.values().filter(|r| r.claim.account == account);
            return Err(match requests.max_by_key(|r| r.at).map(|r| &r.status) {
                Some(RequestStatus::Declined { .. }) => Trouble::refused("DECLINED", "the request was declined"),
                Some(RequestStatus::Pending | RequestStatus::Cancelled { .. } | RequestStatus::Accepted { .. })
                | None => Trouble::refused("TIMED_OUT", "not ready in time: an admin to accept the request"),
            });
        }
        self.replica(who, space)?;
        self.catch_up(who, space)?;
        let person = self.person(who);
        let log = &person.replicas[&space].log;
        let frontiers = log.acl_state().requests.values().filter(|r| r.claim.account == account);
        let promised = frontiers.flat_map(|r| match &r.status {
            RequestStatus::Accepted { frontier, .. } => frontier.iter().map(|t| t.tree).collect(),
            RequestStatus::Pending | RequestStatus::Declined { .. } | RequestStatus::Cancelled { .. } => Vec::new(),
        });
        let named = person.joining.get(&space).into_iter().flatten().copied();
        match promised.chain(named).find(|tree| !log.trees().contains_key(tree)) {
            None => Ok(()),
            Some(tree) => Err(Trouble::refused("TIMED_OUT", format!("not ready in time: {tree}"))),
        }
    }

    // ---- objects ----------------------------------------------------------------------------------------------------

    fn note_plaintext(&mut self, object: &ObjectName, fields: &Map<String, Value>) {
        self.plaintext.extend([object.object_type.clone(), object.id.clone()]);
        self.plaintext.extend(fields.iter().flat_map(|(field, value)| [field.clone(), crate::script::plain(value)]));
    }

    fn write(
        &mut self,
        who: &str,
        space: SpaceId,
        object: &ObjectName,
        fields: &Map<String, Value>,
    ) -> Result<(), Trouble> {
        let object = self.resolve(object);
        self.note_plaintext(&object, fields);
        let state = self.replica(who, space)?.object(&object)?;
        let current = state.as_ref().map(ObjectState::fields).unwrap_or_default();
        let mut ops = object::diff(&current, fields);
        if !state.is_some_and(|s| s.exists()) {
            ops.push(Op::Exists(Existence::Present));
        }
        self.put(who, space, object, ops)
    }

    fn delete(&mut self, who: &str, space: SpaceId, object: &ObjectName) -> Result<(), Trouble> {
        let object = self.resolve(object);
        let state = self.replica(who, space)?.object(&object)?;
        if !state.is_some_and(|s| s.exists()) {
            return Err(Trouble::refused(
                "NO_SUCH_OBJECT",
                format!("there is no {} {:?}", object.object_type, object.id),
            ));
        }
        self.put(who, space, object, vec![Op::Exists(Existence::Deleted)])
    }

    fn put(&mut self, who: &str, space: SpaceId, object: ObjectName, ops: Vec<Op>) -> Result<(), Trouble> {
        if ops.is_empty() {
            return Ok(());
        }
        let keys = self.person(who).keys.clone();
        let replica = self.replica(who, space)?;
        let root = replica.root(&object)?;
        let tree = root.tree_id();
        let acl = replica.log.acl_state();
        let logged = replica.log.trees().get(&tree);
        if acl.deleted {
            return Err(rejected(&Reject::SpaceDeleted));
        }
        may_write(acl, tree, &root, logged, &keys.id(), &acl.head).map_err(|reject| rejected(&reject))?;
        if root.write_rule.once && replica.pending.iter().any(|p| p.tree() == tree) {
            return Err(rejected(&Reject::OnceTaken { tree }));
        }
        let parents = replica.heads(tree);
        let with_root = logged.is_none() && !replica.pending.iter().any(|p| p.change.body().tree == tree);
        let ring_keys = replica.ring.keys(acl.epoch).ok_or_else(|| Trouble::refused("NO_KEYS", "no keys yet"))?.clone();
        let (head, epoch) = (acl.head, acl.epoch);
        let change = self.sign_change(&keys, &ring_keys, space, tree, parents, (head, epoch), &object, &ops);
        let pending = Pending { root, with_root, change, object, ops };
        let push = pending.push();
        self.replica_mut(who, space).pending.push(pending);
        self.push(who, space, push);
        Ok(())
    }

    /// Ends an object for good: at the node, judged here first.
    fn purge(&mut self, who: &str, space: SpaceId, object: &ObjectName, forced: bool) -> Result<(), Trouble> {
        if !forced {
            self.prepare(who, space)?;
        }
        let tree = self.tree_of(space, object)?;
        let keys = &self.person(who).keys;
        let acl_head = self.node_log(space)?.acl_state().head;
        let body = Tombstone { tree, author: keys.id(), acl_head, at_ms: self.clock_ms };
        let submission = Submission::Tombstone(Verified::sign(&body, keys.signing_key(), None).expect(OWN));
        let local = (!forced).then(|| self.person(who).replicas[&space].log.clone().take(&submission));
        let taken = self.append_at_node(space, &submission);
        if let Some(local) = local {
            assert_eq!(local, taken, "seed {}: a replica and the node judge one tombstone on one log", self.seed);
            self.catch_up(who, space)?;
        }
        taken.map(|_| ()).map_err(|reject| rejected(&reject))
    }

    fn has_refused(&self, who: &str, space: SpaceId, count: usize) -> Result<(), Trouble> {
        let refused = &self.replica(who, space)?.refused;
        if refused.len() == count { Ok(()) } else { Err(Trouble::wrong(count, format!("{refused:?}"))) }
    }

    fn dismiss(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        self.replica(who, space)?;
        self.replica_mut(who, space).refused.clear();
        Ok(())
    }

    // ---- keys -------------------------------------------------------------------------------------------------------

    /// Everything that a person can open: with the whole log, and every invite that was ever handed to it.
    fn opens(&self, who: &str, space: SpaceId) -> Result<KeyRing, Trouble> {
        let person = self.person(who);
        let mut ring = KeyRing::new(person.keys.clone());
        person.secrets.iter().for_each(|secret| ring.hold_invite(secret.clone()));
        absorb_all(&mut ring, self.node_log(space)?);
        Ok(ring)
    }

    fn holds_epochs(&self, who: &str, space: SpaceId, epochs: &BTreeSet<u32>) -> Result<(), Trouble> {
        let ring = self.opens(who, space)?;
        let all = self.node_log(space)?.acl_state().epochs.keys();
        let held: BTreeSet<u32> = all.filter(|epoch| ring.holds(**epoch)).map(|epoch| epoch.0).collect();
        if held == *epochs { Ok(()) } else { Err(Trouble::wrong(format!("{epochs:?}"), format!("{held:?}"))) }
    }

    fn holds_no_key(&self, who: &str, space: SpaceId, epoch: u32) -> Result<(), Trouble> {
        if !self.node_log(space)?.acl_state().epochs.contains_key(&Epoch(epoch)) {
            return Err(Trouble::wrong(format!("an epoch {epoch}"), "the space has none"));
        }
        match self.opens(who, space)?.holds(Epoch(epoch)) {
            false => Ok(()),
            true => Err(Trouble::wrong(format!("no key of epoch {epoch}"), format!("{who} opens it"))),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything that a change says")]
    fn sign_change(
        &mut self,
        keys: &AccountKeys,
        ring_keys: &SpaceKeys,
        space: SpaceId,
        tree: TreeId,
        parents: Vec<ChangeId>,
        (acl_head, epoch): (AclId, Epoch),
        object: &ObjectName,
        ops: &[Op],
    ) -> Verified<TreeChange> {
        let context = ContentContext { space, tree, epoch, author: keys.id(), kind: ChangeKind::Content };
        let envelope = Envelope {
            object_type: object.object_type.clone(),
            object_id: object.id.clone(),
            data_type: object::DATA_TYPE.to_owned(),
            payload: object::encode(ops),
        };
        let encrypted = encrypt(ring_keys, &context, &envelope, &mut self.secrets).expect("scripts write little");
        let change = TreeChange {
            tree,
            parents,
            acl_head,
            epoch,
            author: keys.id(),
            at_ms: self.clock_ms,
            seen: None,
            kind: ChangeKind::Content,
            nonce: encrypted.nonce,
            payload: PayloadClaim::of(&encrypted.ciphertext),
        };
        Verified::sign(&change, keys.signing_key(), Some(encrypted.ciphertext)).expect(OWN)
    }

    fn read(&mut self, who: &str, space: SpaceId, object: &ObjectName, shown: &Shown) -> Result<(), Trouble> {
        let object = self.resolve(object);
        let replica = self.replica(who, space)?;
        let seen = replica.object(&object)?.filter(ObjectState::exists).map(|s| s.fields());
        match shown {
            Shown::Nothing => crate::script::compare(None, seen.as_ref()),
            Shown::Fields(fields) => crate::script::compare(Some(fields), seen.as_ref()),
            Shown::Hidden if replica.is_hidden(replica.root(&object)?.tree_id()) => Ok(()),
            Shown::Hidden => Err(Trouble::wrong("a tree that this reader cannot read", format!("{seen:?}"))),
        }
    }

    fn list(&self, who: &str, space: SpaceId, object_type: &str, count: usize) -> Result<(), Trouble> {
        let objects = self.replica(who, space)?.objects()?;
        let found: Vec<_> = objects.keys().filter(|o| o.object_type == object_type).map(|o| &o.id).collect();
        if found.len() == count { Ok(()) } else { Err(Trouble::wrong(count, format!("{}: {found:?}", found.len()))) }
    }

    // ---- what must hold ---------------------------------------------------------------------------------------------

    fn everyone_agrees(&self) -> Result<(), Trouble> {
        for (who, person) in self.people.iter().filter(|(who, _)| self.is_connected(who)) {
            for (space, replica) in &person.replicas {
                let node = &self.node[space];
                if !node.acl_state().members.contains_key(&person.keys.id()) {
                    continue;
                }
                replica.log.heads_are_the_changes_without_children();
                replica.log.parents_stand_before_their_children();
                replica.log.summaries_are_those_of_the_log();
                let equal = replica.log == *node && replica.log.digest() == node.digest();
                if !equal {
                    let (ours, theirs) = (replica.log.entries().len(), node.entries().len());
                    return Err(Trouble::wrong(
                        "one log",
                        format!("{who} has {ours} entries, the node {theirs}, or they differ"),
                    ));
                }
                self.agrees_with_all(who, *space, replica)?;
            }
        }
        Ok(())
    }

    fn agrees_with_all(&self, who: &str, space: SpaceId, replica: &Replica) -> Result<(), Trouble> {
        let ours = replica.objects()?;
        let epochs = |replica: &Replica| {
            let all = replica.log.acl_state().epochs.keys();
            all.filter(|epoch| replica.ring.holds(**epoch)).copied().collect::<Vec<_>>()
        };
        let others = self.people.iter().filter(|(name, _)| self.is_connected(name));
        for (name, other) in others.filter_map(|(name, p)| Some((name, p.replicas.get(&space)?))) {
            // Who was given other keys, or saw less of the log, sees other objects.
            if other.log != replica.log || epochs(other) != epochs(replica) {
                continue;
            }
            let theirs = other.objects()?;
            if ours != theirs {
                return Err(Trouble::wrong(
                    format!("{who} and {name} see the same"),
                    format!("{ours:?} and {theirs:?}"),
                ));
            }
        }
        Ok(())
    }

    fn node_holds(&self, name: &str, entries: u64) -> Result<(), Trouble> {
        let space = self.names.get(name).ok_or_else(|| Trouble::wrong("a space", format!("nobody made {name}")))?;
        let log = self.node.get(space).ok_or_else(|| Trouble::wrong(entries, "the node does not know the space"))?;
        if log.entries().len() as u64 != entries {
            let kinds: Vec<_> = log.entries().iter().map(|e| e.kind).collect();
            return Err(Trouble::wrong(format!("{entries} entries"), format!("{}: {kinds:?}", kinds.len())));
        }
        let bytes: Vec<Vec<u8>> = log.entries().iter().map(|e| e.record.to_vec()).collect();
        crate::script::no_plaintext(&self.plaintext, bytes.iter().map(Vec::as_slice))
    }
}

impl Pending {
    fn push(&self) -> Message {
        let root = self.with_root.then(|| Verified::unsigned(&self.root).expect(OWN).into_raw());
        Message::Push { root, record: self.change.raw().clone() }
    }

    fn submission(&self) -> Submission {
        let root = self.with_root.then(|| Verified::unsigned(&self.root).expect(OWN));
        Submission::Change { root, change: self.change.clone() }
    }

    fn id(&self) -> ChangeId {
        self.change.id().into()
    }

    fn tree(&self) -> TreeId {
        self.change.body().tree
    }

    /// Its parents, after some of them were made anew.
    fn parents_as_now(&self, renamed: &BTreeMap<ChangeId, ChangeId>) -> Vec<ChangeId> {
        let parents = self.change.body().parents.iter().map(|p| *renamed.get(p).unwrap_or(p));
        parents.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Replica {
    fn new(keys: &AccountKeys, genesis: Genesis, log: MapLog) -> Self {
        let mut new = Self {
            genesis,
            log,
            ring: KeyRing::new(keys.clone()),
            pending: Vec::new(),
            refused: Vec::new(),
            root_before: None,
        };
        new.rebuild_ring(keys);
        new
    }

    fn rebuild_ring(&mut self, keys: &AccountKeys) {
        self.ring = KeyRing::new(keys.clone());
        absorb_all(&mut self.ring, &self.log);
    }

    /// Takes the next entry of the tail: judged anew, in its place.
    fn follow(&mut self, seq: Seq, kind: EntryKind, record: RawRecord) {
        if kind == EntryKind::Root {
            self.root_before = Some(record);
            return;
        }
        let root = self.root_before.take().map(|r| verify(r).expect(OWN));
        let record = verify(record).expect(OWN);
        let id = ChangeId::from(record.id());
        let epoch_before = self.log.acl_state().epoch;
        let submission = Submission::pair(root, record).expect(OWN);
        let taken = self.log.take(&submission);
        assert_eq!(taken, Ok(Taken::Appended(seq)), "what the node logged is valid here, in the same place");
        self.pending.retain(|p| p.id() != id);
        if let Submission::Acl(record) = &submission {
            let acl = self.log.acl_state();
            let published = |epoch: Epoch| acl.epochs.get(&epoch).map(|i| (i.key_id, i.history_id));
            let absorbed = self.ring.absorb(record.body(), epoch_before, &published);
            absorbed.expect("nobody seals wrongly here");
        }
    }

    /// The write and everything of ours that builds on it.
    fn keep_refusal(&mut self, change: ChangeId, reject: &Reject) {
        let Some(at) = self.pending.iter().position(|p| p.id() == change) else { return };
        let tree = self.pending[at].tree();
        // Without its root, nothing of a tree can stand.
        let root_gone = self.pending[at].with_root && !self.log.trees().contains_key(&tree);
        let mut gone = BTreeSet::from([change]);
        for pending in self.pending.split_off(at) {
            let builds_on_it = pending.change.body().parents.iter().any(|p| gone.contains(p));
            if pending.tree() == tree && (pending.id() == change || root_gone || builds_on_it) {
                gone.insert(pending.id());
                self.refused.push((pending.id(), reject.clone()));
            } else {
                self.pending.push(pending);
            }
        }
    }

    /// In the log, and of no epoch whose keys are here.
    fn is_hidden(&self, tree: TreeId) -> bool {
        let logged = self.logged(tree);
        !logged.is_empty() && logged.iter().all(|(_, change)| !self.ring.holds(change.body().epoch))
    }

    fn root(&self, object: &ObjectName) -> Result<TreeRoot, Trouble> {
        let name_key = self.ring.name_key().ok_or_else(|| Trouble::refused("NO_KEYS", "the keys are not here yet"))?;
        Ok(object_root(self.log.space(), name_key, &object.object_type, &object.id, rule_of(object)))
    }

    /// On top of everything that is here.
    fn heads(&self, tree: TreeId) -> Vec<ChangeId> {
        let mut heads = self.log.trees().get(&tree).map(|t| t.heads.clone()).unwrap_or_default();
        for pending in self.pending.iter().filter(|p| p.change.body().tree == tree) {
            heads = heads_after(&heads, pending.change.id().into(), &pending.change.body().parents);
        }
        parents_of(tree, &heads)
    }

    /// What a reader sees of one object.
    fn object(&self, object: &ObjectName) -> Result<Option<ObjectState>, Trouble> {
        self.tree(self.root(object)?.tree_id())
    }

    /// What a reader sees of one tree: what is logged, with what is pending over it.
    fn tree(&self, tree: TreeId) -> Result<Option<ObjectState>, Trouble> {
        let mut state: Option<ObjectState> = None;
        for (key, change) in self.logged(tree) {
            let body = change.body();
            let context = ContentContext {
                space: self.log.space(),
                tree,
                epoch: body.epoch,
                author: body.author,
                kind: body.kind,
            };
            let Some(keys) = self.ring.keys(body.epoch) else { continue };
            let payload = change.raw().payload.as_ref().expect("nothing is purged here");
            let envelope = decrypt(keys, &context, &body.nonce, payload)
                .map_err(|e| Trouble::wrong("content that opens", format!("{tree}: {e}")))?;
            let ops = object::decode(&envelope.payload).map_err(|e| Trouble::wrong("operations", e))?;
            let state = state.get_or_insert_with(|| ObjectState::new(&envelope.object_type, &envelope.object_id));
            state.apply(key, &ops);
        }
        for (index, pending) in self.pending.iter().enumerate().filter(|(_, p)| p.change.body().tree == tree) {
            let name = &pending.object;
            let state = state.get_or_insert_with(|| ObjectState::new(&name.object_type, &name.id));
            let key = OrderKey { height: Height(u64::MAX / 2 + index as u64), id: pending.change.id().into() };
            state.apply(key, &pending.ops);
        }
        Ok(state)
    }

    fn logged(&self, tree: TreeId) -> Vec<(OrderKey, Verified<TreeChange>)> {
        if self.log.trees().get(&tree).is_some_and(|t| t.purged.is_some()) {
            // What a purge ended is nowhere to be read.
            return Vec::new();
        }
        let changes = self.log.entries().iter().filter(|e| e.kind == EntryKind::Change && e.tree == Some(tree));
        let keyed = changes.map(|entry| {
            let height = entry.height.expect("an accepted change has a height");
            let change = verify_as::<TreeChange>(entry.record.clone()).expect(OWN);
            (OrderKey { height, id: entry.id.into() }, change)
        });
        keyed.collect()
    }

    /// Every object that exists.
    fn objects(&self) -> Result<BTreeMap<ObjectName, Map<String, Value>>, Trouble> {
        let pending = self.pending.iter().map(|p| p.change.body().tree);
        let trees: BTreeSet<TreeId> = self.log.trees().keys().copied().chain(pending).collect();
        let mut objects = BTreeMap::new();
        for tree in trees {
            if let Some(state) = self.tree(tree)?.filter(ObjectState::exists) {
                let name = ObjectName { object_type: state.object_type().into(), id: state.object_id().into() };
                objects.insert(name, state.fields());
            }
        }
        Ok(objects)
    }
}

/// At most as many heads as a change can name, or the root where there is none.
fn parents_of(tree: TreeId, heads: &BTreeSet<ChangeId>) -> Vec<ChangeId> {
    if heads.is_empty() {
        return vec![TreeChange::root_as_parent(tree)];
    }
    heads.iter().take(limits::PARENTS_MAX).copied().collect()
}

/// Guests, and whoever joins a space whose history begins at the join, get the keys of the epoch alone.
fn reads_history(history: HistoryMode, role: Role) -> bool {
    match history {
        HistoryMode::All => role > Role::Guest,
        HistoryMode::SinceJoin => false,
    }
}

fn tail_message(entry: &sync_core::log::NewEntry) -> Message {
    Message::Entry { seq: entry.position.seq, kind: entry.kind, record: entry.record.clone() }
}

fn ed25519(seed: u64) -> ed25519_dalek::SigningKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    ed25519_dalek::SigningKey::from_bytes(&bytes)
}

/// Takes all keys that a log gives to the holder of this ring.
fn absorb_all(ring: &mut KeyRing, log: &MapLog) {
    let acl = log.acl_state();
    let published = |epoch: Epoch| acl.epochs.get(&epoch).map(|i| (i.key_id, i.history_id));
    for entry in log.entries().iter().filter(|e| e.kind == EntryKind::Acl) {
        let absorbed = if entry.position.seq == Seq(1) {
            ring.absorb_root(verify_as::<AclRoot>(entry.record.clone()).expect(OWN).body())
        } else {
            let before =
                acl.epochs.iter().filter(|(_, info)| info.since < entry.position.seq).map(|(epoch, _)| *epoch).max();
            let record = verify_as::<AclRecord>(entry.record.clone()).expect(OWN);
            ring.absorb(record.body(), before.unwrap_or_default(), &published)
        };
        absorbed.expect("nobody seals wrongly here");
    }
}

/// A log read again from its bytes, which must say the same.
fn replayed(genesis: &Genesis, log: &MapLog) -> Result<MapLog, Trouble> {
    let mut copy = MapLog::found(genesis);
    let mut root = None;
    for entry in &log.entries()[2..] {
        let raw = RawRecord::from_slice(&entry.record.to_vec()).expect("what was stored can be read");
        let record = verify(raw).expect("what was stored verifies");
        if entry.kind == EntryKind::Root {
            root = Some(record);
            continue;
        }
        let submission = Submission::pair(root.take(), record).expect("what was stored fits together");
        copy.take(&submission).map_err(|reject| Trouble::wrong("the same log again", reject))?;
    }
    if copy == *log { Ok(copy) } else { Err(Trouble::wrong("the same log again", "another one")) }
}
