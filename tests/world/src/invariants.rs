//! What must hold, whatever happens. Each is a function, and a violation carries its name.
//!
//! They look at the world from outside: at the files on the simulated disks, read by a store of their own; at what clients were
//! told ([`crate::told`]); at what two replicas show of one log. What they compare was computed on two ways, or by two parties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client_sdk::{
    AccountId, Chain, ChangeId, Client, Object, Reason, ReasonCode, Role, Seq, SignedReceipt, Space, SpaceId,
    SyncState, Tree, TreeId, WriteId, WriteState,
};
use sync_core::acl::{AclState, RequestStatus};
use sync_core::log::{EntryKind, Position};
use sync_core::record::{AclRecord, AclRoot, TreeChange, verify_as};
use sync_store::memory::{Disk, Image};
use sync_store::{ReadTx, Store, StoreError, StoreKind};

use crate::story::Who;
use crate::told::{Field, Stage, Told, Written};
use crate::violation::Violation;
use crate::world::World;

pub(crate) type Held = Result<(), Violation>;

/// What stands in every plaintext of a story, and in nothing else.
pub(crate) const NEEDLE: &str = "zqxneedle";

/// A store of our own over what is on a disk.
pub(crate) fn ledger(image: Image, kind: StoreKind) -> Result<Store, Violation> {
    let disk = Disk::holding("ledger", image);
    Store::open_on(&disk, kind).map_err(|e| Violation::new("every_image_opens", "a store that opens", e))
}

pub(crate) fn read<T>(store: &Store, f: impl FnOnce(&ReadTx<'_>) -> Result<T, StoreError>) -> Result<T, Violation> {
    store.read(f).map_err(|e| Violation::new("every_store_is_readable", "rows that can be read", e))
}

pub(crate) fn unless(holds: bool, violation: impl FnOnce() -> Violation) -> Held {
    if holds { Ok(()) } else { Err(violation()) }
}

// ---- of any store ---------------------------------------------------------------------------------------------------

/// The heads of every tree are its accepted changes that no accepted change has as its parent.
pub(crate) fn heads_are_the_changes_without_children(machine: &str, store: &Store) -> Held {
    read(store, |tx| {
        let mut found = Vec::new();
        for space in tx.spaces()? {
            for element in tx.elements(space.space, None, usize::MAX)? {
                let Some(tree) = element.key() else { continue };
                let Some(state) = tx.tree(space.space, tree)? else { continue };
                if state.purged.is_none() {
                    let links = tx.change_links(space.space, tree)?;
                    let parents: BTreeSet<ChangeId> = links.iter().flat_map(|l| l.parents.clone()).collect();
                    let heads: BTreeSet<ChangeId> =
                        links.iter().map(|l| l.id).filter(|id| !parents.contains(id)).collect();
                    found.push((tree, heads, state.heads));
                }
            }
        }
        Ok(found)
    })?
    .into_iter()
    .try_for_each(|(tree, expected, seen)| {
        unless(expected == seen, || {
            let expected = format!("{machine}, {tree}: {expected:?}");
            Violation::new("heads_are_the_changes_without_children", expected, seen)
        })
    })
}

// ---- of the network -------------------------------------------------------------------------------------------------

/// What each machine has sent since the world was last looked at.
#[derive(Default)]
pub(crate) struct Sent(BTreeMap<String, (Duration, u64)>);

impl Sent {
    /// As often a machine may send something in one moment, however much there is to say.
    const AT_ONCE: u64 = 600;
    /// So much more often in each second after it.
    const IN_A_SECOND: u64 = 10;

    /// Whatever a question is answered, it is not asked again as fast as the answers come.
    /// Whoever has a patched client sends what it likes.
    pub(crate) fn nobody_asks_without_end(&mut self, world: &World, patched: Option<Who>) -> Held {
        let now = world.elapsed();
        for machine in world.machines().into_iter().filter(|machine| patched.is_none_or(|who| who.name() != machine)) {
            let sent = world.sent(&machine);
            let (then, before) = self.0.insert(machine.clone(), (now, sent)).unwrap_or_default();
            let (sent, time) = (sent - before, now.saturating_sub(then));
            let most = Self::AT_ONCE + time.as_secs() * Self::IN_A_SECOND;
            unless(sent <= most, || {
                let expected = format!("{machine} sends at most {most} times in {time:?}");
                Violation::new("nobody_asks_without_end", expected, sent)
            })?;
        }
        Ok(())
    }
}

// ---- of the node's log ----------------------------------------------------------------------------------------------

/// Reads the node's log as it grows, with an ACL of its own.
#[derive(Default)]
pub(crate) struct Auditor {
    spaces: BTreeMap<SpaceId, Audited>,
}

struct Audited {
    position: Position,
    acl: Option<AclState>,
    /// What a change can build on.
    known: BTreeSet<ChangeId>,
}

impl Auditor {
    /// What a power cut took is read again from the beginning.
    pub(crate) fn begin_anew(&mut self) {
        self.spaces.clear();
    }

    /// The chain is that of the entries, and every entry was written by somebody who was allowed to at its place.
    pub(crate) fn no_entry_by_a_non_writer(&mut self, store: &Store) -> Held {
        for space in read(store, |tx| tx.spaces())? {
            let id = space.space;
            let audited = self.spaces.entry(id).or_insert_with(|| Audited {
                position: Position::start(&id),
                acl: None,
                known: BTreeSet::new(),
            });
            let after = audited.position.seq;
            for row in read(store, |tx| tx.entries(id, after, usize::MAX, usize::MAX))? {
                audited.take(id, row)?;
            }
        }
        Ok(())
    }
}

impl Audited {
    fn take(&mut self, space: SpaceId, row: sync_store::LogRow) -> Held {
        const NAME: &str = "no_entry_by_a_non_writer";
        let expected = self.position.after(&row.id);
        unless(row.position == expected, || Violation::new(NAME, format!("{space} at {expected:?}"), row.position))?;
        self.position = expected;
        let at = row.position.seq;
        let unreadable = |e| Violation::new(NAME, format!("entry {at} of {space} that verifies"), e);
        match row.kind {
            EntryKind::Acl => {
                let next = match self.acl.take() {
                    None => AclState::found(space, &verify_as::<AclRoot>(row.record).map_err(unreadable)?),
                    Some(acl) => {
                        let record = verify_as::<AclRecord>(row.record).map_err(unreadable)?;
                        let folded = acl.fold_in(&record, at);
                        folded.map_err(|e| Violation::new(NAME, format!("an allowed entry {at} of {space}"), e))?
                    }
                };
                self.acl = Some(next);
            }
            EntryKind::Change => {
                let change = verify_as::<TreeChange>(row.record).map_err(unreadable)?;
                let (body, id) = (change.body(), ChangeId::from(change.id()));
                let author = body.author;
                let epoch = self.acl.as_ref().map(|acl| acl.epoch);
                unless(Some(body.epoch) == epoch, || {
                    Violation::new(NAME, format!("entry {at} of {space} in the present epoch"), (body.epoch, epoch))
                })?;
                let root = TreeChange::root_as_parent(body.tree);
                let stray = body.parents.iter().find(|parent| **parent != root && !self.known.contains(parent));
                unless(stray.is_none(), || {
                    Violation::new(NAME, format!("entry {at} of {space} on what is in the log"), stray)
                })?;
                self.known.insert(id);
                let role = self.acl.as_ref().and_then(|acl| acl.role(&author));
                unless(role >= Some(Role::Writer), || {
                    Violation::new(NAME, format!("entry {at} of {space} by a writer"), (author, role))
                })?;
            }
            EntryKind::Root | EntryKind::Tombstone => {}
        }
        Ok(())
    }
}

/// Every receipt that a client accepted is true of the node's disk, as a power cut would leave it.
pub(crate) fn every_acknowledged_change_survives_a_crash(told: &Told, node: &Store) -> Held {
    let (certified, set_backs) = {
        let everything = told.lock();
        (everything.certified.clone(), everything.set_backs.len())
    };
    // What was certified before the node was set back may be on its way back, or written over.
    let certified: Vec<_> = certified.into_iter().filter(|c| c.since == set_backs).collect();
    let found = read(node, |tx| {
        certified
            .iter()
            .map(|c| Ok((*c, tx.position_at(c.space, c.seq)?.map(|p| p.chain))))
            .collect::<Result<Vec<_>, _>>()
    })?;
    found.into_iter().try_for_each(|(certified, chain)| {
        unless(chain == Some(certified.chain), || {
            Violation::new(
                "every_acknowledged_change_survives_a_crash",
                format!("on the node's disk: {certified:?}"),
                chain,
            )
        })
    })
}

/// What a client holds of an ACL is on the node's disk, as a power cut would leave it, and so for good.
pub(crate) fn acl_records_are_never_undone(machine: &str, client: &Store, node: &Store) -> Held {
    let held = read(client, |tx| {
        let mut held = Vec::new();
        for space in tx.spaces()? {
            let registered = tx.node_state(space.space)?.registration == client_sdk::Registration::Registered;
            let last = tx.acl(space.space)?.and_then(|acl| acl.records.values().max().copied());
            if let Some(seq) = last.filter(|_| registered)
                && let Some(position) = tx.position_at(space.space, seq)?
            {
                held.push((space.space, position));
            }
        }
        Ok(held)
    })?;
    held.into_iter().try_for_each(|(space, position)| {
        let on_disk = read(node, |tx| tx.position_at(space, position.seq))?;
        unless(on_disk == Some(position), || {
            let expected = format!("{machine} holds {position:?} of {space}, and so does the node's disk");
            Violation::new("acl_records_are_never_undone", expected, on_disk)
        })
    })
}

/// The log of a client is the log on the node's disk, as a power cut would leave it: nothing is shown before it is safe.
pub(crate) fn nothing_is_shown_before_it_is_safe(machine: &str, client: &Store, node: &Store) -> Held {
    let shown = read(client, |tx| {
        let mut shown = Vec::new();
        for row in tx.spaces()? {
            if tx.node_state(row.space)?.registration == client_sdk::Registration::Registered {
                shown.push((row.space, row.position));
            }
        }
        Ok(shown)
    })?;
    shown.into_iter().try_for_each(|(space, position)| {
        let on_disk = read(node, |tx| tx.position_at(space, position.seq))?;
        unless(on_disk == Some(position), || {
            let expected = format!("{machine} was shown {position:?} of {space}, and it is on the node's disk");
            Violation::new("nothing_is_shown_before_it_is_safe", expected, on_disk)
        })
    })
}

// ---- of one client --------------------------------------------------------------------------------------------------

/// Every write that returned is known, and has gone forward or stands where it stood.
pub(crate) fn writes_only_go_forward(told: &Told, who: Who, client: &Client) -> Held {
    let mut everything = told.lock();
    // Who was lied to may have believed that something was taken.
    let is_set_back = !everything.set_backs.is_empty() || everything.victim == Some(who);
    let lost_power = everything.node_lost_power || is_set_back;
    for write in everything.writes.iter_mut().filter(|w| w.by == who) {
        let Ok(space) = client.space(write.space) else { continue };
        let state = space.write_state(write.id);
        let state = state.map_err(|e| Violation::new("writes_only_go_forward", "a readable state", e))?;
        let Some(state) = state else {
            let expected = format!("write {} of {who} (step {}) is kept", write.id, write.number);
            return Err(Violation::new("every_acknowledged_change_survives_a_crash", expected, state));
        };
        let now = Stage::of(&state);
        let forward = match (write.state, now) {
            (Stage::Pending, _) | (Stage::Refused, Stage::Refused | Stage::Dismissed) => true,
            (Stage::Logged(_), Stage::Pending | Stage::Refused) => lost_power,
            (Stage::Logged(a), Stage::Logged(b) | Stage::Durable(b)) => a == b || lost_power,
            (Stage::Durable(a), Stage::Durable(b)) => a == b || is_set_back,
            (Stage::Durable(_), Stage::Pending | Stage::Logged(_) | Stage::Refused) => is_set_back,
            (Stage::Dismissed, Stage::Dismissed) => true,
            (Stage::Logged(_) | Stage::Durable(_), Stage::Dismissed) => is_set_back,
            (Stage::Refused | Stage::Dismissed, _) => false,
        };
        unless(forward, || {
            let expected = format!("write {} of {who} after {:?}", write.id, write.state);
            Violation::new("writes_only_go_forward", expected, now)
        })?;
        write.state = now;
    }
    Ok(())
}

/// A status never says less than it knows: what is not synced has a reason, and "up to date" has none.
pub(crate) fn status_is_not_silent(who: Who, space: &Space) -> Held {
    const NAME: &str = "status_is_not_silent";
    let Ok(status) = space.status() else { return Ok(()) };
    let open = status.pending + status.refused + status.quarantined + status.missing;
    unless(open == 0 || !status.reasons.is_empty(), || Violation::new(NAME, format!("{who}: reasons"), &status))?;
    let behind = status.node_seq > status.seq;
    unless(!behind || !status.reasons.is_empty(), || Violation::new(NAME, format!("{who}: why behind"), &status))?;
    let up_to_date = status.state == SyncState::UpToDate;
    unless(!up_to_date || (open == 0 && !behind), || {
        Violation::new(NAME, format!("{who}: something else than up to date"), &status)
    })
}

/// Of a tree the status says no less: what stands over the whole space stands over each tree of it.
pub(crate) fn no_tree_is_better_off_than_its_space(who: Who, space: &Space, held: &[Tree]) -> Held {
    const NAME: &str = "status_is_not_silent";
    let Ok(of_space) = space.status() else { return Ok(()) };
    let is_of_all = |code| {
        use ReasonCode as R;
        matches!(code, R::Behind | R::Faulted | R::Forked | R::Rewound | R::RolledBack | R::NotAMember | R::KeyOwed)
    };
    for tree in held {
        let (Ok(Some(_)), Ok(status)) = (space.tree(tree.id()), space.tree_status(tree.id())) else { continue };
        unless((status.state == SyncState::UpToDate) == status.reasons.is_empty(), || {
            Violation::new(NAME, format!("{who}: a state for its reasons"), &status)
        })?;
        let silent = of_space
            .reasons
            .iter()
            .find(|reason| is_of_all(reason.code) && Reason::find(&status.reasons, reason.code).is_none());
        unless(silent.is_none(), || Violation::new(NAME, format!("{who}: {silent:?} of a tree, too"), &status))?;
    }
    Ok(())
}

/// Where nobody lies, nobody is accused; `is_true` says what may be said of somebody who does.
pub(crate) fn no_honest_party_is_accused(who: Who, space: &Space, is_true: impl Fn(ReasonCode) -> bool) -> Held {
    let Ok(reasons) = space.explain() else { return Ok(()) };
    let accuses = |code| {
        matches!(
            code,
            ReasonCode::Forked
                | ReasonCode::Rewound
                | ReasonCode::RolledBack
                | ReasonCode::LostByNode
                | ReasonCode::Faulted
                | ReasonCode::Quarantined
                | ReasonCode::ContentMissing
                | ReasonCode::WrongNode
                | ReasonCode::Different
        )
    };
    match reasons.iter().find(|r| accuses(r.code) && !is_true(r.code)) {
        None => Ok(()),
        Some(reason) => Err(Violation::new("no_honest_party_is_accused", format!("{who}: no accusation"), reason)),
    }
}

/// Whoever asks for a tree has the one live instance.
pub(crate) fn one_live_instance_per_tree(who: Who, space: &Space, objects: &[Object]) -> Held {
    const NAME: &str = "one_live_instance_per_tree";
    for object in objects {
        let by_name = space.objects().tree(&object.object_type, &object.id);
        let (Ok(Some(by_name)), Ok(Some(by_id))) = (by_name, space.tree(object.tree)) else {
            return Err(Violation::new(NAME, format!("{who}: the tree of a listed object"), object));
        };
        unless(by_name.is_same_instance(&by_id), || Violation::new(NAME, format!("{who}: one instance"), object))?;
    }
    Ok(())
}

/// A live tree that somebody holds is the one that everybody gets, however many others were asked for since.
pub(crate) fn a_held_tree_is_the_instance(who: Who, space: &Space, held: &[Tree]) -> Held {
    held.iter().try_for_each(|tree| match space.tree(tree.id()) {
        Ok(Some(now)) => unless(now.is_same_instance(tree), || {
            Violation::new("one_live_instance_per_tree", format!("{who}: the instance that is held"), &now)
        }),
        // Of another space; or the store failed.
        Ok(None) | Err(_) => Ok(()),
    })
}

/// As [`a_live_tree_shows_what_is_stored`], of trees that were held all the while.
pub(crate) fn a_held_tree_shows_what_is_stored(who: Who, objects: &[Object], held: &[Tree]) -> Held {
    held.iter().try_for_each(|tree| {
        let Some(object) = objects.iter().find(|object| object.tree == tree.id()) else { return Ok(()) };
        let shown = tree.snapshot().ok().and_then(|s| s.object.clone());
        unless(shown.as_ref() == Some(object), || {
            Violation::new("a_live_tree_shows_what_is_stored", format!("{who}, held: {object:?}"), &shown)
        })
    })
}

/// When nothing is under way, a live tree shows what the list shows: one is kept up by commits, the other read from rows.
pub(crate) fn a_live_tree_shows_what_is_stored(who: Who, space: &Space, objects: &[Object]) -> Held {
    objects.iter().try_for_each(|object| {
        let tree = space.tree(object.tree).ok().flatten();
        let shown = tree.and_then(|tree| tree.snapshot().ok()).and_then(|s| s.object.clone());
        unless(shown.as_ref() == Some(object), || {
            Violation::new("a_live_tree_shows_what_is_stored", format!("{who}: {object:?}"), &shown)
        })
    })
}

/// Who wrote reads it in the same moment, wherever the node is.
pub(crate) fn own_writes_are_shown_at_once(told: &Told, who: Who, space: &Space, wrote: (WriteId, &Field)) -> Held {
    let (write, field) = wrote;
    let is_pending = matches!(space.write_state(write), Ok(Some(WriteState::Pending { .. })));
    let object = space.objects().get(field.object_type, &field.object);
    let shown = object.ok().flatten().and_then(|o| o.fields.get(&field.name).cloned());
    let is_shown = shown.as_ref().and_then(|v| v.as_str()) == Some(field.value.as_str());
    // What the log has of it by now, others may have written over.
    unless(is_shown || !is_pending || told.is_erased(space.id(), field), || {
        Violation::new("own_writes_are_shown_at_once", format!("{who}: {field:?}"), &shown)
    })
}

/// An acceptance names what was prepared for the newcomer, so that the newcomer can wait for it.
pub(crate) fn an_acceptance_promises_what_was_prepared(
    who: Who,
    space: &Space,
    newcomer: AccountId,
    profile: &Field,
) -> Held {
    const NAME: &str = "an_acceptance_promises_what_was_prepared";
    let unreadable = |e: client_sdk::ReadError| Violation::new(NAME, format!("{who} reads it"), e);
    let tree = space.objects().tree_id(profile.object_type, &profile.object).map_err(unreadable)?;
    let acl = space.acl().map_err(unreadable)?;
    let promises = |status: &RequestStatus| match status {
        RequestStatus::Accepted { frontier, .. } => frontier.iter().any(|heads| heads.tree == tree),
        RequestStatus::Pending | RequestStatus::Declined { .. } | RequestStatus::Cancelled { .. } => false,
    };
    let asked: Vec<_> = acl.requests.values().filter(|r| r.claim.account == newcomer).map(|r| &r.status).collect();
    unless(asked.iter().any(|status| promises(status)), || {
        Violation::new(NAME, format!("{who} promises {newcomer} {tree}"), &asked)
    })
}

/// A joiner that was told "ready" reads its own profile.
pub(crate) fn ready_means_readable(who: Who, space: &Space, profile: &Field) -> Held {
    let object = space.objects().get(profile.object_type, &profile.object);
    let shown = object.ok().flatten().and_then(|o| o.fields.get(&profile.name).cloned());
    unless(shown.as_ref().and_then(|v| v.as_str()) == Some(profile.value.as_str()), || {
        Violation::new("ready_means_readable", format!("{who}: {profile:?}"), &shown)
    })
}

// ---- of an await ----------------------------------------------------------------------------------------------------

/// `await_synced` said yes: then everything that was pending is on the node's disk, the log here is the log there, and
/// everything readable up to that place is shown.
pub(crate) fn synced_means_equal(world: &World, told: &Told, claim: &Claim<'_>) -> Held {
    claim.receipt_is_true(world, told)?;
    claim.own_writes_are_there()?;
    claim.everything_is_shown(world, told)
}

/// What an await said, and what there was when it was asked.
pub(crate) struct Claim<'a> {
    pub(crate) who: Who,
    pub(crate) client: &'a Client,
    pub(crate) space: &'a Space,
    pub(crate) receipt: &'a SignedReceipt,
    /// Own writes that had returned at the call.
    pub(crate) before: Vec<Written>,
    pub(crate) node: &'a str,
    /// How often the node had been set back when it was asked.
    pub(crate) since: usize,
}

const SYNCED: &str = "synced_means_equal";

impl Claim<'_> {
    /// The node's disk, and our own log, say at that place what the receipt says.
    pub(crate) fn receipt_is_true(&self, world: &World, told: &Told) -> Held {
        let body = self.receipt.body();
        let id = self.space.id();
        let Some(image) = world.disk(self.node).safe_image() else {
            return Err(Violation::new(SYNCED, "a node with something on its disk", self.node));
        };
        let node = ledger(image, StoreKind::Node)?;
        let there = read(&node, |tx| tx.position_at(id, body.seq))?.map(|p| p.chain);
        let is_there = there == Some(body.chain) || told.was_true(self.since, id, body.seq, body.chain);
        unless(is_there, || {
            Violation::new(SYNCED, format!("{}: on the node's disk at {}: {}", self.who, body.seq, body.chain), there)
        })?;
        let Ok(store) = world.store(self.who.name()) else { return Ok(()) };
        let here = read(&store, |tx| tx.position_at(id, body.seq))?.map(|p| p.chain);
        unless(here == Some(body.chain), || {
            Violation::new(SYNCED, format!("{}: here at {}: {}", self.who, body.seq, body.chain), here)
        })
    }

    /// Where the node may tell more than one log: the write is durable in one that is not this client's.
    fn is_of_another_log(&self, world: &World, told: &Told, write: &Written, at: Seq) -> Result<bool, Violation> {
        if !told.is_set_back() {
            return Ok(false);
        }
        let Ok(store) = world.store(self.who.name()) else { return Ok(true) };
        let here = read(&store, |tx| tx.position_at(write.space, at))?.map(|p| p.chain);
        Ok(write.chain.is_none() || write.chain != here)
    }

    fn own_writes_are_there(&self) -> Held {
        let seq = self.receipt.body().seq;
        for write in &self.before {
            let state = self.space.write_state(write.id).ok().flatten().map(|s| Stage::of(&s));
            let settled = match state {
                Some(Stage::Logged(at) | Stage::Durable(at)) => at <= seq,
                Some(Stage::Dismissed) => true,
                // Refused in the meantime, or still on its way: then the answer is no.
                Some(Stage::Pending | Stage::Refused) | None => false,
            };
            unless(settled, || {
                let expected = format!("{}: write {} of step {} on the node's disk", self.who, write.id, write.number);
                Violation::new(SYNCED, expected, state)
            })?;
        }
        Ok(())
    }

    fn everything_is_shown(&self, world: &World, told: &Told) -> Held {
        let id = self.space.id();
        let Some(from) = reads_from(self.space, &self.client.account()) else { return Ok(()) };
        let seq = self.receipt.body().seq;
        let writes: Vec<Written> = told.lock().writes.iter().filter(|w| w.space == id).cloned().collect();
        for write in writes {
            let Some(field) = &write.field else { continue };
            let Stage::Durable(at) = write.state else { continue };
            if at > seq || at < from || told.is_erased(id, field) || self.is_of_another_log(world, told, &write, at)? {
                continue;
            }
            let shown = self.space.objects().get(field.object_type, &field.object).ok().flatten();
            let value = shown.as_ref().and_then(|o| o.fields.get(&field.name)).and_then(|v| v.as_str());
            unless(value == Some(field.value.as_str()), || {
                let expected = format!("{} shows {field:?}, entry {at} of {seq}", self.who);
                Violation::new(SYNCED, expected, &shown)
            })?;
        }
        Ok(())
    }
}

/// From which entry on a member reads; `None` if it is none.
pub(crate) fn reads_from(space: &Space, account: &AccountId) -> Option<Seq> {
    let acl = space.acl().ok()?;
    let member = acl.members.get(account)?;
    Some(acl.epochs.get(&member.reads_from).map_or(Seq::ZERO, |epoch| epoch.since))
}

// ---- at the end -----------------------------------------------------------------------------------------------------

/// A new device of an account, which was given nothing but the words, shows what the account's other device shows.
pub(crate) fn a_fresh_replica_is_the_same(old: &[Replica], fresh: &[Replica]) -> Held {
    const NAME: &str = "a_fresh_replica_is_the_same";
    let spaces = |replicas: &[Replica]| replicas.iter().map(|r| r.space).collect::<BTreeSet<_>>();
    unless(spaces(old) == spaces(fresh), || Violation::new(NAME, format!("{:?}", spaces(old)), spaces(fresh)))?;
    let all = [old, fresh].concat();
    replicas_converge(&all).map_err(|violation| Violation { invariant: NAME, ..violation })
}

/// Replicas of one log show the same: the chain, the ACL, the heads, and, who reads from the same epoch on, the objects.
pub(crate) fn replicas_converge(replicas: &[Replica]) -> Held {
    for replica in replicas {
        let Some(first) = replicas.iter().find(|r| r.space == replica.space) else { continue };
        unless(replica.chain == first.chain, || differ("chain", first, replica, &first.chain, &replica.chain))?;
        unless(replica.acl == first.acl, || differ("ACL", first, replica, &first.acl, &replica.acl))?;
        unless(replica.heads == first.heads, || differ("heads", first, replica, &first.heads, &replica.heads))?;
        let reader = replicas.iter().find(|r| r.space == replica.space && r.reads_from == replica.reads_from);
        let Some(reader) = reader else { continue };
        unless(replica.objects == reader.objects, || {
            differ("objects", reader, replica, &reader.objects, &replica.objects)
        })?;
    }
    Ok(())
}

fn differ(
    what: &str,
    a: &Replica,
    b: &Replica,
    expected: &impl std::fmt::Debug,
    seen: &impl std::fmt::Debug,
) -> Violation {
    Violation::new(
        "replicas_converge",
        format!("{what} of {} at {} as at {}: {expected:?}", a.space, b.who, a.who),
        seen,
    )
}

/// What a member holds of a space.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) who: String,
    pub(crate) space: SpaceId,
    chain: Option<Chain>,
    acl: Arc<AclState>,
    heads: Vec<(TreeId, BTreeSet<ChangeId>)>,
    reads_from: Option<Seq>,
    objects: Vec<Object>,
}

impl Replica {
    pub(crate) fn of(who: &str, client: &Client, store: &Store, space: &Space) -> Result<Self, Violation> {
        let id = space.id();
        let unreadable = |e| Violation::new("replicas_converge", format!("{who} reads {id}"), e);
        let (chain, heads) = read(store, |tx| {
            let mut heads = Vec::new();
            for tree in tx.elements(id, None, usize::MAX)?.iter().filter_map(sync_core::reconcile::Element::key) {
                heads.push((tree, tx.tree(id, tree)?.map(|t| t.heads).unwrap_or_default()));
            }
            Ok((tx.space(id)?.map(|s| s.position.chain), heads))
        })?;
        Ok(Self {
            who: who.to_owned(),
            space: id,
            chain,
            acl: space.acl().map_err(unreadable)?,
            heads,
            reads_from: reads_from(space, &client.account()),
            objects: space.objects().list_all().map_err(unreadable)?,
        })
    }
}
