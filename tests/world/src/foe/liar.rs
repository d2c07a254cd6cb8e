//! A node that lies to one client: its messages are changed on their way to it. It can sign nothing that it does not sign anyway.
//!
//! What the client must do is believe none of it: no wrong "synced", nothing of its own lost, and what is wrong has a name. When
//! the node tells the truth again, and the client is started anew, everything is as if nothing had been.

use bytes::Bytes;
use client_sdk::ReasonCode;
use ed25519_dalek::SigningKey;
use prost::Message as _;
use rand::{Rng as _, RngExt as _};
use rand_chacha::ChaCha8Rng;
use sync_core::ids::{AccountId, AclId, Epoch, TreeId};
use sync_core::record::{ChangeKind, PayloadClaim, TreeChange, Verified};
use sync_proto::v1::{self, head_sync_response, head_updates_response, log_entry, verdict};

use super::Deed;
use crate::story::{NODE, Who};
use crate::told::Told;
use crate::world::World;

/// What the node lies about, to its victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It keeps the entries of the log to itself.
    NoEntries,
    /// It keeps their content to itself.
    NoContent,
    /// It answers Certify with what it once signed.
    OldReceipts,
    /// It changes a record.
    OtherBytes,
    /// It says that it took what it did not take.
    NotLogged,
    /// It says that it has on its disk what it has not.
    NotDurable,
    /// It tells of heads that it does not have.
    OtherHeads,
    /// It adds an entry by somebody who is no member.
    Stranger,
    /// It compares with another set.
    OtherSet,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoEntries,
        Self::NoContent,
        Self::OldReceipts,
        Self::OtherBytes,
        Self::NotLogged,
        Self::NotDurable,
        Self::OtherHeads,
        Self::Stranger,
        Self::OtherSet,
    ];
}

pub(super) fn deeds(dice: &mut ChaCha8Rng, to: Who) -> Vec<Deed> {
    let lies = dice.random_range(1..=3);
    let any = |dice: &mut ChaCha8Rng| Lie::ALL[dice.random_range(0..Lie::ALL.len())];
    (0..lies).flat_map(|_| [Deed::Lie { to, lie: any(dice) }, Deed::Truth { to }]).collect()
}

/// What a line to a victim remembers.
#[derive(Debug, Default)]
pub(crate) struct Mouth {
    lie: Option<Lie>,
    receipt: Option<Bytes>,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Towards {
    Node,
    Client,
}

impl Mouth {
    pub(crate) fn tell(&mut self, lie: Option<Lie>) {
        self.lie = lie;
    }

    /// What the other side is told instead of a message of an rpc; `None`: nothing.
    pub(crate) fn twist(&mut self, path: &str, to: Towards, message: Bytes, dice: &mut ChaCha8Rng) -> Option<Bytes> {
        let rpc = path.rsplit('/').next().unwrap_or_default();
        if (rpc, to) == ("Certify", Towards::Client) {
            let first = self.receipt.get_or_insert_with(|| message.clone()).clone();
            return Some(if self.lie == Some(Lie::OldReceipts) { first } else { message });
        }
        let Some(lie) = self.lie else { return Some(message) };
        match (rpc, to) {
            ("HeadUpdates", Towards::Client) => twist_tail(lie, message, dice),
            ("Fetch", Towards::Client) if lie == Lie::NoContent => Some(edit(message, |m: &mut v1::FetchResponse| {
                m.entries.iter_mut().filter_map(|e| e.record.as_mut()).for_each(|record| record.payload = None);
            })),
            ("Push", Towards::Node) if lie == Lie::NotLogged => Some(edit(message, |m: &mut v1::PushRequest| {
                for record in m.items.iter_mut().filter_map(|item| item.record.as_mut()) {
                    record.signature = random_bytes(dice, 64);
                }
            })),
            ("Push", Towards::Client) if lie == Lie::NotLogged => Some(edit(message, |m: &mut v1::PushResponse| {
                for verdict in &mut m.verdicts {
                    let seq = dice.random_range(3..60);
                    verdict.outcome = Some(verdict::Outcome::Accepted(v1::Accepted { seq }));
                }
            })),
            ("HeadSync", Towards::Client) if lie == Lie::OtherSet => {
                Some(edit(message, |m: &mut v1::HeadSyncResponse| {
                    m.message = m.message.take().map(|m| another(m, dice))
                }))
            }
            _ => Some(message),
        }
    }
}

fn twist_tail(lie: Lie, message: Bytes, dice: &mut ChaCha8Rng) -> Option<Bytes> {
    let mut answer = v1::HeadUpdatesResponse::decode(message.clone()).ok()?;
    match (&mut answer.message, lie) {
        (Some(head_updates_response::Message::Update(_)), Lie::NoEntries) => return None,
        (Some(head_updates_response::Message::Update(update)), Lie::NoContent) => {
            records(update).for_each(|record| record.payload = None);
        }
        (Some(head_updates_response::Message::Update(update)), Lie::OtherBytes) => {
            if let Some(record) = records(update).last() {
                let mut body = record.body.to_vec();
                let at = dice.random_range(0..body.len().max(1));
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1;
                }
                record.body = body.into();
            }
        }
        (Some(head_updates_response::Message::Update(update)), Lie::NotDurable) => update.durable_seq += 1_000,
        (Some(head_updates_response::Message::Durable(durable)), Lie::NotDurable) => durable.durable_seq += 1_000,
        (Some(head_updates_response::Message::Update(update)), Lie::OtherHeads) => {
            update.heads.iter_mut().for_each(|tree| tree.heads = vec![random_bytes(dice, 32)]);
        }
        (Some(head_updates_response::Message::Update(update)), Lie::Stranger) => {
            let seq = update.entries.last().map_or(1, |entry| entry.seq + 1);
            let entry = Some(log_entry::Entry::Record(by_a_stranger(dice).into_raw().into()));
            update.entries.push(v1::LogEntry { seq, entry });
        }
        _ => return Some(message),
    }
    Some(answer.encode_to_vec().into())
}

fn records(update: &mut v1::HeadUpdate) -> impl Iterator<Item = &mut sync_core::pb::SignedRecord> {
    update.entries.iter_mut().filter_map(|entry| match &mut entry.entry {
        Some(log_entry::Entry::Record(record)) => Some(record),
        Some(log_entry::Entry::Id(_)) | None => None,
    })
}

fn another(message: head_sync_response::Message, dice: &mut ChaCha8Rng) -> head_sync_response::Message {
    match message {
        head_sync_response::Message::Equal(v1::HeadSyncEqual { seq }) => {
            let (digest, key, cells) = (random_bytes(dice, 32), random_bytes(dice, 32), random_bytes(dice, 900));
            head_sync_response::Message::Different(v1::HeadSyncDifferent { seq, digest, elements: 3, key, cells })
        }
        head_sync_response::Message::Page(_) => {
            let page = v1::HeadSyncPage { elements: Vec::new(), last: true };
            head_sync_response::Message::Page(page)
        }
        other @ (head_sync_response::Message::NotComparable(_)
        | head_sync_response::Message::Different(_)
        | head_sync_response::Message::Cells(_)) => other,
    }
}

fn by_a_stranger(dice: &mut ChaCha8Rng) -> Verified<TreeChange> {
    let key = SigningKey::from_bytes(&dice.random());
    let (tree, payload) = (TreeId::from_hash(dice.random()), random_bytes(dice, 40));
    let change = TreeChange {
        tree,
        parents: vec![TreeChange::root_as_parent(tree)],
        acl_head: AclId::from_hash(dice.random()),
        epoch: Epoch(0),
        author: AccountId::from(&key.verifying_key()),
        at_ms: 7,
        seen: None,
        kind: ChangeKind::Content,
        nonce: dice.random(),
        payload: PayloadClaim::of(&payload),
    };
    Verified::sign(&change, &key, Some(payload)).expect("a change in order")
}

fn edit<M: prost::Message + Default>(message: Bytes, edit: impl FnOnce(&mut M)) -> Bytes {
    match M::decode(message.clone()) {
        Ok(mut decoded) => {
            edit(&mut decoded);
            decoded.encode_to_vec().into()
        }
        Err(_) => message,
    }
}

fn random_bytes(dice: &mut ChaCha8Rng, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    dice.fill_bytes(&mut bytes);
    bytes.into()
}

/// What the victim says of the node is true, whatever it is. Others hear of it by what its records say that it saw.
pub(super) fn is_true(victim: Option<Who>, who: Who, code: ReasonCode) -> bool {
    victim.is_some_and(|victim| victim == who || code == ReasonCode::Forked)
}

/// The node tells the truth, and the victim is started anew; what was found is seen to.
pub(super) async fn truth(world: &World, told: &Told, to: Who) {
    world.lie(to.name(), None);
    world.kill(to.name());
    world.sever(to.name(), NODE);
    if let Err(error) = world.start(to.name()).await {
        world.note(format_args!("{to} does not start: {error}"));
    }
    let spaces: Vec<_> = told.lock().spaces.values().copied().collect();
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    dismiss(world, to, &spaces).await;
}

/// Somebody has seen what the node is accused of.
async fn dismiss(world: &World, who: Who, spaces: &[client_sdk::SpaceId]) {
    let Ok(client) = world.client(who.name()) else { return };
    for space in spaces.iter().filter_map(|id| client.space(*id).ok()) {
        for accusation in space.accusations().unwrap_or_default() {
            world.note(format_args!(
                "{who} has seen: {:?} {:?} {}",
                accusation.kind, accusation.state, accusation.detail
            ));
            // One that is settled meanwhile stays so.
            let _ = space.dismiss_accusation(accusation.id).await;
        }
    }
}

/// Everybody has seen it.
pub(super) async fn dismiss_all(world: &World, told: &Told) {
    let spaces: Vec<_> = told.lock().spaces.values().copied().collect();
    let clients = (0..crate::world::CLIENT_NAMES.len()).map(Who).filter(|who| world.has(who.name()));
    for who in clients {
        dismiss(world, who, &spaces).await;
    }
}
