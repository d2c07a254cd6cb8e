//! A node that goes back in time: its disk is put back to an older state, with or without telling anybody.

use std::time::Duration;

use client_sdk::{
    AccusationKind, AccusationState, Chain, ReasonCode, Seq, SignedReceipt, Space, SpaceId, judge as proves,
};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use sync_core::acl::AclState;
use sync_core::limits;
use sync_store::memory::Image;
use sync_store::{ReadTx, Registration, Store, StoreError, StoreKind};

use super::{Deed, Restore};
use crate::invariants::{ledger, read, unless};
use crate::story::{NODE, Who};
use crate::told::{Certified, Stage, Told};
use crate::violation::Violation;
use crate::world::{CLIENT_NAMES, World};

/// A node that was restored takes nothing new for as long as a story can last.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// In good weather everybody has been at the node within this time, and has brought back what it has.
const BROUGHT_BACK_WITHIN: Duration = Duration::from_secs(90);

pub(super) fn deeds(dice: &mut ChaCha8Rng, restore: Restore) -> Vec<Deed> {
    let again = dice.random_bool(0.25);
    let anew = dice.random_bool(0.5);
    let once = [Deed::BackUp, Deed::SetBack(restore)];
    match (again, anew) {
        (false, _) => once.to_vec(),
        (true, false) => [&once[..], &once[1..]].concat(),
        (true, true) => [once, once].concat(),
    }
}

/// A node went back in time: what there was before.
#[derive(Debug, Clone)]
pub(crate) struct SetBack {
    pub(crate) restore: Restore,
    /// What the node had, and what it has instead.
    before: Store,
    after: Store,
    /// What each client had, safe on its disk.
    clients: Vec<Holder>,
    /// A client has lost power since: what it was about to say of the node may be lost with it.
    pub(crate) client_lost_power: bool,
}

/// A client, as the next start would find it.
#[derive(Debug, Clone)]
struct Holder {
    who: Who,
    store: Store,
    account: client_sdk::AccountId,
}

pub(super) async fn set_back(world: &World, told: &Told, image: Image, restore: Restore) {
    let disk = world.disk(NODE);
    let (Some(before), Ok(after)) = (disk.image(), ledger(image.clone(), StoreKind::Node)) else { return };
    let Ok(before) = ledger(before, StoreKind::Node) else { return };
    let clients = holders(world, told);
    world.restore(NODE, image);
    disk.mend();
    told.lock().set_backs.push(SetBack { restore, before, after, clients, client_lost_power: false });
    if restore == Restore::Recognised
        && let Err(error) = world.recognise_restore(NODE, WINDOW).await
    {
        // Nobody would start it so.
        told.found(Violation::new("every_backup_can_be_restored", "a restored node", error));
    }
    if let Err(error) = world.start(NODE).await {
        world.note(format_args!("{NODE} does not start: {error}"));
    }
}

fn holders(world: &World, told: &Told) -> Vec<Holder> {
    let accounts = told.lock().accounts.clone();
    let all = (0..CLIENT_NAMES.len()).map(Who).filter(|who| world.has(who.name()));
    all.filter_map(|who| {
        let store = ledger(world.disk(who.name()).safe_image()?, StoreKind::Client).ok()?;
        Some(Holder { who, store, account: *accounts.get(&who)? })
    })
    .collect()
}

/// Everybody comes and brings what it has; then the node takes what is new again.
pub(super) async fn end_recovery(world: &World, told: &Told) {
    tokio::time::sleep(BROUGHT_BACK_WITHIN).await;
    // A log that was written over is a second story, and that stays so: somebody has seen it. A rollback settles by itself.
    for (_, space) in spaces(world, told) {
        for accusation in space.accusations().unwrap_or_default() {
            if accusation.kind == AccusationKind::Fork {
                // One that is settled meanwhile stays so.
                let _ = space.dismiss_accusation(accusation.id).await;
            }
        }
    }
    world.end_recovery(NODE);
    // A write that was told to come later comes then.
    tokio::time::sleep(limits::RETRY_MAX * 2).await;
}

impl Told {
    pub(crate) fn is_set_back(&self) -> bool {
        !self.lock().set_backs.is_empty()
    }

    /// The node had this before it was set back, after `since` earlier times.
    pub(crate) fn was_true(&self, since: usize, space: SpaceId, seq: Seq, chain: Chain) -> bool {
        let set_backs = self.lock().set_backs.clone();
        set_backs.iter().skip(since).any(|set_back| chain_at(&set_back.before, space, seq) == Some(chain))
    }
}

fn chain_at(store: &Store, space: SpaceId, seq: Seq) -> Option<Chain> {
    store.read(|tx| tx.position_at(space, seq)).ok().flatten().map(|position| position.chain)
}

/// A node that was set back is rightly said to have lost something. One that says so itself is not accused, unless it cannot
/// speak of the space, since that is not in the backup.
pub(super) fn is_true(told: &Told, space: SpaceId, code: ReasonCode) -> bool {
    let set_backs = told.lock().set_backs.clone();
    let lacks = |set_back: &SetBack| set_back.after.read(|tx| tx.space(space)).is_ok_and(|row| row.is_none());
    let accuses = || set_backs.iter().any(|s| s.restore == Restore::Silent || lacks(s));
    if matches!(code, ReasonCode::Rewound | ReasonCode::LostByNode) {
        !set_backs.is_empty()
    } else {
        matches!(code, ReasonCode::RolledBack | ReasonCode::Forked) && accuses()
    }
}

pub(super) fn judge(world: &World, told: &Told) -> Result<(), Violation> {
    let set_backs = told.lock().set_backs.clone();
    let Some(last) = set_backs.last() else { return Ok(()) };
    what_was_certified_holds_again(world, told, last)?;
    accusations_are_just(world, told)?;
    if set_backs.len() == 1 { a_set_back_is_noticed(world, told, last) } else { Ok(()) }
}

/// Every receipt holds again for whose entries somebody still had, unless somebody else wrote over them before it came: that is
/// only possible for who did not have them, and not at all after a recognised restore, as far as receipts reach.
fn what_was_certified_holds_again(world: &World, told: &Told, last: &SetBack) -> Result<(), Violation> {
    const NAME: &str = "what_was_certified_holds_again";
    let Some(image) = world.disk(NODE).safe_image() else { return Ok(()) };
    let node = ledger(image, StoreKind::Node)?;
    let (certified, set_backs) = {
        let everything = told.lock();
        (everything.certified.clone(), everything.set_backs.len())
    };
    for certified in certified.into_iter().filter(|c| c.since < set_backs) {
        let Certified { space, seq, chain, .. } = certified;
        let had: Vec<&Holder> = last.clients.iter().filter(|holder| holder.has(&certified)).collect();
        if had.is_empty() || chain_at(&node, space, seq) == Some(chain) {
            continue;
        }
        let end = read(&node, |tx| tx.space(space))?.map(|row| row.position);
        let at = end.map_or(Seq::ZERO, |end| end.seq.min(seq));
        let is_another_log = end.is_some() && chain_at(&node, space, at) != chain_at(&last.before, space, at);
        let who: Vec<Who> = had.iter().map(|holder| holder.who).collect();
        unless(is_another_log, || {
            Violation::new(NAME, format!("on the node's disk, since {who:?} had it: {certified:?}"), end)
        })?;
        let may_be = match last.restore {
            Restore::Silent => had.len() < last.clients.len(),
            Restore::Recognised => !had.iter().any(|holder| holder.proves(&certified)),
        };
        unless(may_be, || Violation::new(NAME, format!("nobody writes over what {who:?} had: {certified:?}"), end))?;
    }
    Ok(())
}

impl Holder {
    /// It held this entry, as a member who would bring it back.
    fn has(&self, certified: &Certified) -> bool {
        self.is_member(certified.space)
            && chain_at(&self.store, certified.space, certified.seq) == Some(certified.chain)
    }

    fn is_member(&self, space: SpaceId) -> bool {
        let acl = self.store.read(|tx| tx.acl(space)).ok().flatten();
        acl.is_some_and(|acl| acl.role(&self.account).is_some() && !acl.deleted)
    }

    /// It held a receipt of the node's for it.
    fn proves(&self, certified: &Certified) -> bool {
        self.receipt(certified.space).is_some_and(|receipt| receipt.body().seq >= certified.seq)
    }

    /// The last durable receipt of the node's that it held.
    fn receipt(&self, space: SpaceId) -> Option<SignedReceipt> {
        let text = self.store.read(|tx| tx.node_state(space)).ok()?.receipt?;
        let receipt = SignedReceipt::from_text(std::str::from_utf8(&text).ok()?).ok()?;
        receipt.body().durable.then_some(receipt)
    }

    /// It held more of the node's log than the node has left, and had heard that the node has it: what it founded itself it
    /// holds before the node does. Whom the node does not let in any more may have been removed: only its receipt tells. The
    /// owner of a space that is gone needs none.
    fn knows_better(&self, space: SpaceId, set_back: &SetBack) -> Result<bool, StoreError> {
        if self.store.read(|tx| tx.node_state(space))?.registration == Registration::Unregistered {
            return Ok(false);
        }
        let end = |store: &Store| store.read(|tx: &ReadTx<'_>| Ok(tx.space(space)?.map(|row| row.position)));
        let (Some(own), left) = (end(&self.store)?, end(&set_back.after)?) else { return Ok(false) };
        let left = left.map_or(Seq::ZERO, |left| left.seq);
        let was_there = chain_at(&set_back.before, space, own.seq) == Some(own.chain);
        let acl = |store: &Store| store.read(|tx| tx.acl(space));
        let needs_none = match acl(&set_back.after)? {
            Some(acl) => acl.role(&self.account).is_some(),
            None => acl(&self.store)?.is_some_and(|acl| acl.owner == self.account),
        };
        let can_tell = needs_none || self.receipt(space).is_some_and(|receipt| receipt.body().seq > left);
        Ok(was_there && own.seq > left && can_tell)
    }
}

fn spaces(world: &World, told: &Told) -> Vec<(Who, Space)> {
    let ids: Vec<SpaceId> = told.lock().spaces.values().copied().collect();
    let clients = (0..CLIENT_NAMES.len()).map(Who).filter(|who| world.has(who.name()));
    clients
        .filter_map(|who| Some((who, world.client(who.name()).ok()?)))
        .flat_map(|(who, client)| {
            ids.iter().filter_map(move |id| Some((who, client.space(*id).ok()?))).collect::<Vec<_>>()
        })
        .collect()
}

/// Whatever somebody accuses the node of is true, is over, and proves itself where it says that it does.
fn accusations_are_just(world: &World, told: &Told) -> Result<(), Violation> {
    const NAME: &str = "accusations_are_just";
    let Some(image) = world.disk(NODE).safe_image() else { return Ok(()) };
    let node = ledger(image, StoreKind::Node)?;
    for (who, space) in spaces(world, told) {
        let account = told.lock().accounts.get(&who).copied();
        let acl = space.acl().map_err(|e| Violation::new(NAME, "a readable ACL", e))?;
        let there = read(&node, |tx| tx.acl(space.id()))?;
        let is_in = |acl: &std::sync::Arc<AclState>| {
            account.is_some_and(|account| acl.role(&account).is_some() && !acl.deleted)
        };
        // A log that went another way may have lost a membership for good.
        let is_member = is_in(&acl) && there.as_ref().is_some_and(is_in);
        let accusations = space.accusations().map_err(|e| Violation::new(NAME, "readable accusations", e))?;
        for accusation in accusations {
            let code = match accusation.kind {
                AccusationKind::Rollback => ReasonCode::RolledBack,
                AccusationKind::Fork | AccusationKind::Seen => ReasonCode::Forked,
            };
            unless(is_true(told, space.id(), code), || Violation::new(NAME, format!("{who}: none"), &accusation))?;
            // Who is a member no more hears nothing that would settle it; and what another one had seen, and nobody brought
            // back, is proof of a rollback for good.
            let is_gone = accusation.kind == AccusationKind::Seen
                && chain_at(&node, space.id(), accusation.claim.seq) != Some(accusation.claim.chain);
            unless(accusation.state != AccusationState::Open || !is_member || is_gone, || {
                Violation::new(NAME, format!("{who}: none that is open in good weather"), &accusation)
            })?;
            if let Some(Err(error)) = accusation.evidence.as_ref().map(proves) {
                return Err(Violation::new(NAME, format!("{who}: evidence that proves"), (error, &accusation)));
            }
        }
    }
    Ok(())
}

/// Who had more than the node has left notices it, and says so.
fn a_set_back_is_noticed(world: &World, told: &Told, set_back: &SetBack) -> Result<(), Violation> {
    if set_back.restore == Restore::Recognised || set_back.client_lost_power {
        return Ok(());
    }
    let ids: Vec<SpaceId> = told.lock().spaces.values().copied().collect();
    for id in ids {
        let better: Vec<Who> = set_back
            .clients
            .iter()
            .filter(|holder| holder.is_member(id) && holder.knows_better(id, set_back).unwrap_or(false))
            .map(|holder| holder.who)
            .collect();
        let accused = spaces(world, told)
            .iter()
            .any(|(_, space)| space.id() == id && space.accusations().is_ok_and(|all| !all.is_empty()));
        unless(better.is_empty() || accused, || {
            Violation::new(
                "a_set_back_is_noticed",
                format!("one of {better:?} accuses the node of {id}"),
                "nobody does",
            )
        })?;
    }
    Ok(())
}

/// Of each write that is durable, which log it is durable in.
pub(crate) fn note_chains(told: &Told, who: Who, store: &Store) {
    for write in told.lock().writes.iter_mut().filter(|write| write.by == who) {
        let durable = if let Stage::Durable(seq) = write.state { Some(seq) } else { None };
        write.chain = durable.and_then(|seq| chain_at(store, write.space, seq));
    }
}
