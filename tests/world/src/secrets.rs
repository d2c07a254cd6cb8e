//! The secrets of a story, as those who may have them have them: what the node's disk must never show, and what nobody opens
//! who was not given it.

use std::collections::BTreeMap;

use client_sdk::{Client, Seq, Space, SpaceId, token_from_text};
use sync_core::acl::AclState;
use sync_core::ids::Epoch;
use sync_core::record::{AclRecord, AclRoot, Kind, RawRecord, Salt, SpaceHeader, verify_as};
use sync_e2ee::{AccountKeys, KeyRing, SpaceKeys};
use sync_store::Store;
use sync_store::memory::Image;

use crate::invariants::{Held, NEEDLE, read, unless};
use crate::story::Who;
use crate::told::{Stage, Told};
use crate::violation::Violation;
use crate::world::World;

/// A key of the index: how each secret begins.
type Beginning = [u8; 8];

/// Byte strings that only some may know, and what each is.
pub(crate) struct Secrets(BTreeMap<Beginning, Vec<(Vec<u8>, String)>>);

impl Secrets {
    /// Everything that is secret in a story as of now: what it writes, what its accounts are, the keys of its spaces, and the
    /// invites that were handed over.
    pub(crate) fn of(world: &World, told: &Told, clients: &[Who]) -> Result<Self, Violation> {
        let mut secrets = Self(BTreeMap::new());
        secrets.add(NEEDLE.as_bytes(), "plaintext");
        for token in &told.lock().tokens {
            secrets.add(token.as_bytes(), "the token of an invite");
            for invited in token_from_text(token).iter().flat_map(|token| &token.body().spaces) {
                secrets.add(&invited.invite_secret, format_args!("the secret of an invite to {}", invited.space));
            }
        }
        for who in clients {
            secrets.add_of(world, *who)?;
        }
        Ok(secrets)
    }

    fn add_of(&mut self, world: &World, who: Who) -> Held {
        let Some(own) = world.secrets(who.name()) else { return Ok(()) };
        let account = AccountKeys::from_mnemonic(&own.mnemonic);
        self.add(own.mnemonic.phrase().as_bytes(), format_args!("the words of {who}"));
        self.add(account.signing_key().as_bytes(), format_args!("the account key of {who}"));
        self.add(own.device.signing_key().as_bytes(), format_args!("the device key of {who}"));
        let Ok(store) = world.store(who.name()) else { return Ok(()) };
        for space in read(&store, |tx| tx.spaces())?.iter().map(|row| row.space) {
            let Some((ring, acl)) = ring(&store, space, &account)? else { continue };
            for epoch in acl.epochs.keys() {
                for part in ring.keys(*epoch).iter().flat_map(|keys| parts(keys)) {
                    self.add(&part, format_args!("a key of epoch {epoch} of {space}"));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, secret: &[u8], what: impl std::fmt::Display) {
        let Some(beginning) = secret.first_chunk() else { return };
        let known = self.0.entry(*beginning).or_default();
        if !known.iter().any(|(bytes, _)| bytes == secret) {
            known.push((secret.to_vec(), what.to_string()));
        }
    }

    fn first_in(&self, haystack: &[u8]) -> Option<&str> {
        haystack.windows(size_of::<Beginning>()).enumerate().find_map(|(at, beginning)| {
            let candidates = self.0.get(beginning)?;
            let found = candidates.iter().find(|(secret, _)| haystack[at..].starts_with(secret));
            found.map(|(_, what)| what.as_str())
        })
    }
}

/// The keys of 32 bytes each that the keys of an epoch are.
fn parts(keys: &SpaceKeys) -> Vec<Vec<u8>> {
    keys.to_plaintext().chunks(32).map(<[u8]>::to_vec).collect()
}

/// What of a space an account can open with a log that it holds, by a key ring of our own.
fn ring(store: &Store, space: SpaceId, account: &AccountKeys) -> Result<Option<(KeyRing, AclState)>, Violation> {
    let (row, acl, records) = read(store, |tx| Ok((tx.space(space)?, tx.acl(space)?, tx.acl_records(space)?)))?;
    let (Some(row), Some(acl)) = (row, acl) else { return Ok(None) };
    let mut ring = KeyRing::new(account.clone());
    for (at, record) in records {
        absorb(&mut ring, &acl, &row.header, at, record);
    }
    let acl = AclState::clone(&acl);
    Ok(Some((ring, acl)))
}

/// Takes what a record gives. What it gives to others gives nothing.
fn absorb(ring: &mut KeyRing, acl: &AclState, header: &RawRecord, at: Seq, record: RawRecord) {
    let published = |epoch: Epoch| acl.epochs.get(&epoch).map(|info| (info.key_id, info.history_id));
    let before = acl.epochs.iter().filter(|(_, info)| info.since < at).map(|(epoch, _)| *epoch).max();
    let taken = if record.kind == Kind::AclRoot {
        verify_as::<AclRoot>(record).map(|root| match derivation(header) {
            Some(label) => ring.absorb_derived_root(root.body(), &label),
            None => ring.absorb_root(root.body()),
        })
    } else {
        verify_as::<AclRecord>(record).map(|record| ring.absorb(record.body(), before.unwrap_or_default(), &published))
    };
    // Seals that do not open are for somebody else.
    let _ = taken;
}

fn derivation(header: &RawRecord) -> Option<Vec<u8>> {
    match &verify_as::<SpaceHeader>(header.clone()).ok()?.body().salt {
        Salt::Derivation(label) => Some(label.to_vec()),
        Salt::Nonce(_) => None,
    }
}

/// Nothing that a story wrote in plaintext and no secret of anybody stands on the node's disk.
pub(crate) fn the_node_never_holds_plaintext_or_keys(image: &Image, secrets: &Secrets) -> Held {
    match secrets.first_in(image.bytes()) {
        None => Ok(()),
        Some(what) => Err(Violation::new("the_node_never_holds_plaintext_or_keys", "nothing to read", what)),
    }
}

/// What a thief reads on the disk of a client, who does not have what opens its vault: nothing that a story wrote in plaintext,
/// and no secret.
pub(crate) fn a_stolen_disk_shows_nothing(who: Who, image: &Image, secrets: &Secrets) -> Held {
    match secrets.first_in(image.bytes()) {
        None => Ok(()),
        Some(what) => {
            Err(Violation::new("a_stolen_disk_shows_nothing", format!("nothing to read on the disk of {who}"), what))
        }
    }
}

/// Who was removed opens nothing that was written afterwards: not with its keys and all that the node has, and not in its
/// client. Who left opens nothing of a later epoch.
pub(crate) fn the_removed_read_nothing_new(world: &World, told: &Told, who: Who, node: &Store) -> Held {
    const NAME: &str = "the_removed_read_nothing_new";
    let (Ok(client), Some(own)) = (world.client(who.name()), world.secrets(who.name())) else { return Ok(()) };
    let account = AccountKeys::from_mnemonic(&own.mnemonic);
    let spaces: Vec<SpaceId> = told.lock().spaces.values().copied().collect();
    for space in spaces {
        // All of the log, as if the node gave everything to everybody.
        let Some((ring, acl)) = ring(node, space, &account)? else { continue };
        let Some(from) = shut_out_from(&acl, &client) else { continue };
        let held: Vec<[u8; 32]> =
            acl.epochs.keys().filter_map(|epoch| ring.keys(*epoch)).map(SpaceKeys::key_id).collect();
        let opened = acl.epochs.iter().find(|(_, info)| info.since >= from && held.contains(&info.key_id));
        unless(opened.is_none(), || {
            Violation::new(NAME, format!("{who}, shut out of {space} at {from}, has no later key"), opened)
        })?;
        nothing_later_is_shown(told, who, (&client, space, from))?;
    }
    Ok(())
}

/// The first entry that a former member must not read; `None` for members, and while what it knows is in use.
fn shut_out_from(acl: &AclState, client: &Client) -> Option<Seq> {
    let account = client.account();
    if acl.members.contains_key(&account) || acl.deleted {
        return None;
    }
    let ended = acl.membership_ended(&account)?;
    acl.epochs.values().map(|info| info.since).filter(|since| *since >= ended).min()
}

fn nothing_later_is_shown(told: &Told, who: Who, (client, id, from): (&Client, SpaceId, Seq)) -> Held {
    const NAME: &str = "the_removed_read_nothing_new";
    let objects = client.space(id).ok().and_then(|space| shown(&space)).unwrap_or_default();
    let writes: Vec<_> = told.lock().writes.iter().filter(|w| w.space == id && w.by != who).cloned().collect();
    for write in writes {
        let Stage::Durable(at) = write.state else { continue };
        let Some(field) = write.field.filter(|_| at >= from) else { continue };
        unless(!objects.contains(&field.value), || {
            let expected = format!("{who}, shut out of {id} at {from}, does not have {field:?}, entry {at}");
            Violation::new(NAME, expected, &objects)
        })?;
    }
    Ok(())
}

/// The values of all fields that a client shows.
fn shown(space: &Space) -> Option<Vec<String>> {
    let objects = space.objects().list_all().ok()?;
    let values = objects.iter().flat_map(|object| object.fields.values());
    Some(values.filter_map(|value| value.as_str().map(str::to_owned)).collect())
}
