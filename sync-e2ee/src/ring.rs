//! The keys of one space that this account holds, and how a space gets new ones.
//!
//! A rotation seals the new epoch's keys to those who remain, and chains back to the old epoch's for those who may read
//! history:
//!
//! ```text
//! chain_ct = XChaCha20-Poly1305(new history key, chain_nonce, aad, old read key (32) [|| old history key (32)])
//! aad      = "headwater/chain-key/v1" || space (32) || new epoch (u32, big-endian)
//! ```
//!
//! A rotator who has no history key of the old epoch itself (an Admin who joined a space whose history starts at the join)
//! gives the read key alone: the chain ends there. The name key is not in the chain: it never rotates.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use rand_core::CryptoRng;
use sync_core::ids::{AccountId, Epoch, InviteId, SpaceId};
use sync_core::record::{AclContent, AclRecord, AclRoot, CreateInvite, Rotation, Seal};
use zeroize::Zeroizing;

use crate::account::{AccountKeys, InviteSecret};
use crate::aead::{self, NONCE_BYTES};
use crate::keys::{HistoryKey, NameKey, ReadKey, SpaceKeys};
use crate::seal::{Recipient, SealError, open_keys, seal_keys};

/// Why keys that stand in the ACL for us were not taken, or not as they stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A seal to us does not open or holds other keys than the log publishes for the epoch, or the record that begins the epoch
    /// publishes another profile key than theirs, or the `chain_ct` of the rotation to this epoch does not hold the keys of the
    /// one before. The record's author is at fault; an Admin may reseal.
    #[error("the keys given to us for epoch {epoch} are not those of the space")]
    BadSeal { epoch: Epoch },
    /// The seal gives another name key than an earlier one. The other keys were taken, the first name key stays; a `Reseal`
    /// replaces it.
    #[error("the seal of epoch {epoch} has another name key than the space had")]
    NameKeyDiffers { epoch: Epoch },
    /// The caller knows no published ids of an epoch that keys were given for.
    #[error("nothing is known of epoch {epoch}")]
    UnknownEpoch { epoch: Epoch },
    /// The secret is not this invite's.
    #[error("the secret belongs to another invite")]
    WrongInvite,
}

/// What the log publishes of one epoch: key id and history id.
type Published = ([u8; 32], [u8; 32]);

/// How the log reaches back from one epoch to the one before.
#[derive(Clone)]
struct Chain {
    nonce: Bytes,
    ciphertext: Bytes,
}

/// The keys of one space that this account holds. Lives in memory only and is rebuilt from the ACL, in log order.
///
/// Every `absorb` takes all that is right in a record and then reports the first thing that was not: an error loses no key.
/// Absorbing a record again changes nothing.
#[derive(Clone)]
pub struct KeyRing {
    account: AccountKeys,
    invites: BTreeMap<InviteId, InviteSecret>,
    name_key: Option<NameKey>,
    keys: BTreeMap<Epoch, SpaceKeys>,
    published: BTreeMap<Epoch, Published>,
    chains: BTreeMap<Epoch, Chain>,
}

impl KeyRing {
    /// An empty ring.
    #[must_use]
    pub fn new(account: AccountKeys) -> Self {
        Self {
            account,
            invites: BTreeMap::new(),
            name_key: None,
            keys: BTreeMap::new(),
            published: BTreeMap::new(),
            chains: BTreeMap::new(),
        }
    }

    /// Takes what entry 1 seals to us: the keys of epoch 0.
    ///
    /// # Errors
    /// [`KeyError::BadSeal`] of epoch 0.
    pub fn absorb_root(&mut self, root: &AclRoot) -> Result<(), KeyError> {
        self.published.insert(Epoch(0), (root.key_id, root.history_id));
        self.take_new(None, Epoch(0), &root.profile_key, &root.seals, &|_| None)
    }

    /// Derives the keys of epoch 0 of our own derived space: its root has no seals.
    ///
    /// # Errors
    /// [`KeyError::BadSeal`] of epoch 0 if the root is not the one that we derive from this label.
    pub fn absorb_derived_root(&mut self, root: &AclRoot, label: &[u8]) -> Result<(), KeyError> {
        let keys = SpaceKeys::derived(&self.account, label);
        let ids = (root.key_id, root.history_id);
        if root.owner != self.account.id() || !are_of(&keys, &ids) || keys.profile_public() != root.profile_key {
            return Err(KeyError::BadSeal { epoch: Epoch(0) });
        }
        self.published.insert(Epoch(0), ids);
        self.hold(Epoch(0), keys)
    }

    /// Takes what a record of the ACL log gives us. `epoch_before` is the space's epoch before the record, `published` tells key
    /// id and history id of an epoch.
    ///
    /// # Errors
    /// The first [`KeyError`] of the record.
    pub fn absorb(
        &mut self,
        record: &AclRecord,
        epoch_before: Epoch,
        published: &dyn Fn(Epoch) -> Option<([u8; 32], [u8; 32])>,
    ) -> Result<(), KeyError> {
        let space = record.space;
        let mut epoch = epoch_before;
        let mut verdict = Ok(());
        for content in &record.contents {
            let result = match content {
                AclContent::CreateInvite(CreateInvite { seals, .. }) | AclContent::AcceptJoin { seals, .. } => {
                    self.take_all(Some(space), epoch, seals, published)
                }
                AclContent::JoinByInvite { claim, seals } => {
                    // No admin wrote this: whoever joins gives keys to itself and to nobody else.
                    let ours = claim.account == self.account.id();
                    self.take_all(Some(space), epoch, seals.iter().filter(|_| ours), published)
                }
                AclContent::AddMembers { members } => {
                    self.take_all(Some(space), epoch, members.iter().map(|(_, _, seal)| seal), published)
                }
                AclContent::ChangeRole { seal, .. } => self.take_all(Some(space), epoch, seal, published),
                AclContent::Reseal { epoch: resealed, seal, .. } => self.take_reseal(space, *resealed, seal, published),
                AclContent::RevokeInvite { rotation: Some(rotation), .. }
                | AclContent::RemoveMembers { rotation, .. }
                | AclContent::RotateKey { rotation } => {
                    epoch = rotation.epoch;
                    self.take_rotation(space, rotation, published)
                }
                AclContent::SetHome { .. }
                | AclContent::RevokeInvite { rotation: None, .. }
                | AclContent::RequestJoin { .. }
                | AclContent::CancelJoin { .. }
                | AclContent::DeclineJoin { .. }
                | AclContent::Leave
                | AclContent::SetOptions { .. }
                | AclContent::TransferOwnership { .. }
                | AclContent::DeleteSpace => Ok(()),
            };
            verdict = verdict.and(result);
        }
        verdict
    }

    /// Takes the keys of the epoch in which an open invite was made, and keeps the secret: later rotations that re-seal to the
    /// invite open too. So call it where the invite stands in the log, or before absorbing the log at all.
    ///
    /// # Errors
    /// [`KeyError::WrongInvite`], [`KeyError::BadSeal`], or [`KeyError::UnknownEpoch`] if the epoch's chain was absorbed and
    /// the epoch before was not.
    pub fn absorb_open_invite(
        &mut self,
        space: SpaceId,
        invite: &CreateInvite,
        secret: &InviteSecret,
        epoch: Epoch,
        published: ([u8; 32], [u8; 32]),
    ) -> Result<(), KeyError> {
        if secret.id() != invite.key {
            return Err(KeyError::WrongInvite);
        }
        self.hold_invite(secret.clone());
        self.take_all(Some(space), epoch, &invite.seals, &|asked| (asked == epoch).then_some(published))
    }

    /// Keeps an invite's secret, so that absorbing the log takes whatever is sealed to the invite.
    pub fn hold_invite(&mut self, secret: InviteSecret) {
        self.invites.insert(secret.id(), secret);
    }

    /// The keys of one epoch.
    #[must_use]
    pub fn keys(&self, epoch: Epoch) -> Option<&SpaceKeys> {
        self.keys.get(&epoch)
    }

    /// The keys of the newest epoch that we have any of.
    #[must_use]
    pub fn newest(&self) -> Option<(Epoch, &SpaceKeys)> {
        self.keys.last_key_value().map(|(epoch, keys)| (*epoch, keys))
    }

    /// The key that blinds names; there once any keys are.
    #[must_use]
    pub const fn name_key(&self) -> Option<&NameKey> {
        self.name_key.as_ref()
    }

    /// True if content of this epoch can be read.
    #[must_use]
    pub fn holds(&self, epoch: Epoch) -> bool {
        self.keys.contains_key(&epoch)
    }

    fn take_rotation(
        &mut self,
        space: SpaceId,
        rotation: &Rotation,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<(), KeyError> {
        let Rotation { epoch, key_id, history_id, profile_key, seals, invite_seals, chain_nonce, chain_ct } = rotation;
        self.published.insert(*epoch, (*key_id, *history_id));
        self.chains.insert(*epoch, Chain { nonce: chain_nonce.clone(), ciphertext: chain_ct.clone() });
        self.take_new(Some(space), *epoch, profile_key, seals.iter().chain(invite_seals), published)
    }

    /// Keys of an epoch that begins here. Profiles will be sealed to the profile key that the record publishes beside them:
    /// were it another than theirs, its author alone could read what joiners mean for the members.
    fn take_new<'a>(
        &mut self,
        space: Option<SpaceId>,
        epoch: Epoch,
        profile_key: &[u8; 32],
        seals: impl IntoIterator<Item = &'a Seal>,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<(), KeyError> {
        self.take_if(space, epoch, seals, published, |keys| keys.profile_public() == *profile_key)
    }

    /// Keys of an epoch that began earlier: its ids say enough, and a wrong profile key is the fault of who began it.
    fn take_all<'a>(
        &mut self,
        space: Option<SpaceId>,
        epoch: Epoch,
        seals: impl IntoIterator<Item = &'a Seal>,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<(), KeyError> {
        self.take_if(space, epoch, seals, published, |_| true)
    }

    fn take_if<'a>(
        &mut self,
        space: Option<SpaceId>,
        epoch: Epoch,
        seals: impl IntoIterator<Item = &'a Seal>,
        published: &dyn Fn(Epoch) -> Option<Published>,
        right: impl Fn(&SpaceKeys) -> bool,
    ) -> Result<(), KeyError> {
        let mut verdict = Ok(());
        for seal in seals {
            let result = match self.open(space, epoch, seal, published) {
                Ok(Some(keys)) if !right(&keys) => Err(KeyError::BadSeal { epoch }),
                Ok(Some(keys)) => {
                    let held = self.hold(epoch, keys);
                    held.and(space.map_or(Ok(()), |space| self.follow_chain(space, epoch, published)))
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            verdict = verdict.and(result);
        }
        verdict
    }

    /// As any seal; and its name key, the repair of a wrong one, counts from here on.
    fn take_reseal(
        &mut self,
        space: SpaceId,
        epoch: Epoch,
        seal: &Seal,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<(), KeyError> {
        let Some(keys) = self.open(Some(space), epoch, seal, published)? else { return Ok(()) };
        for held in self.keys.values_mut() {
            held.name_key = keys.name_key.clone();
        }
        self.name_key = Some(keys.name_key.clone());
        self.hold(epoch, keys)?;
        self.follow_chain(space, epoch, published)
    }

    /// `None` if the seal is for somebody else.
    fn open(
        &self,
        space: Option<SpaceId>,
        epoch: Epoch,
        seal: &Seal,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<Option<SpaceKeys>, KeyError> {
        let keys = if seal.recipient == *self.account.id().as_bytes() {
            open_keys(space, epoch, seal, self.account.signing_key())
        } else if let Some(invite) = self.invite(&seal.recipient) {
            open_keys(space, epoch, seal, invite.signing_key())
        } else {
            return Ok(None);
        };
        let ids = self.published(epoch, published).ok_or(KeyError::UnknownEpoch { epoch })?;
        keys.ok().filter(|keys| are_of(keys, &ids)).map(Some).ok_or(KeyError::BadSeal { epoch })
    }

    /// By its bytes: to make an id of each recipient of each seal would check a thousand points for one of ours.
    fn invite(&self, recipient: &[u8; 32]) -> Option<&InviteSecret> {
        self.invites.iter().find(|(id, _)| id.as_bytes() == recipient).map(|(_, secret)| secret)
    }

    /// The record's own word first: a rotation may not be in the caller's state yet.
    fn published(&self, epoch: Epoch, published: &dyn Fn(Epoch) -> Option<Published>) -> Option<Published> {
        self.published.get(&epoch).copied().or_else(|| published(epoch))
    }

    /// Adds keys that were checked against the published ids; never trades keys with history for keys without.
    fn hold(&mut self, epoch: Epoch, mut keys: SpaceKeys) -> Result<(), KeyError> {
        let name_key = self.name_key.get_or_insert_with(|| keys.name_key.clone());
        let verdict = if name_key.is(&keys.name_key) { Ok(()) } else { Err(KeyError::NameKeyDiffers { epoch }) };
        keys.name_key = name_key.clone();
        if keys.history_key.is_some() || !self.holds(epoch) {
            self.keys.insert(epoch, keys);
        }
        verdict
    }

    /// Opens earlier epochs from this one, as far as the chain goes. Checks the first link even when it leads to keys that we
    /// have: those who come later depend on it.
    fn follow_chain(
        &mut self,
        space: SpaceId,
        from: Epoch,
        published: &dyn Fn(Epoch) -> Option<Published>,
    ) -> Result<(), KeyError> {
        let mut epoch = from;
        loop {
            let (Some(keys), Some(chain), Some(before)) =
                (self.keys.get(&epoch), self.chains.get(&epoch), epoch.0.checked_sub(1).map(Epoch))
            else {
                return Ok(());
            };
            let Some(history) = &keys.history_key else { return Ok(()) };
            let ids = self.published(before, published).ok_or(KeyError::UnknownEpoch { epoch: before })?;
            let older = open_chain(space, epoch, &chain.nonce, &chain.ciphertext, history, &keys.name_key)
                .filter(|older| are_of(older, &ids))
                .ok_or(KeyError::BadSeal { epoch })?;
            let goes_on_from_there = self.keys.get(&before).is_some_and(|held| held.history_key.is_some());
            self.hold(before, older)?;
            if goes_on_from_there {
                return Ok(());
            }
            epoch = before;
        }
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs: Vec<u32> = self.keys.keys().map(|epoch| epoch.0).collect();
        f.debug_struct("KeyRing").field("account", &self.account).field("epochs", &epochs).finish_non_exhaustive()
    }
}

/// `None` if the history key does not open it, or not to one or two keys.
pub(crate) fn open_chain(
    space: SpaceId,
    epoch: Epoch,
    nonce: &[u8],
    ciphertext: &[u8],
    history: &HistoryKey,
    name_key: &NameKey,
) -> Option<SpaceKeys> {
    let nonce: &[u8; NONCE_BYTES] = nonce.try_into().ok()?;
    let plaintext = aead::decrypt(history.expose(), nonce, &chain_aad(space, epoch), ciphertext)?;
    let whole = Zeroizing::new([name_key.expose().as_slice(), &plaintext].concat());
    SpaceKeys::from_plaintext(&whole)
}

/// Whether a member gets the history key of a new epoch, and with it the epochs before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryAccess {
    WithHistory,
    WithoutHistory,
}

/// New keys for the epoch after `old.0`, sealed to exactly `members`, in their order.
///
/// `invite_seals` is empty: where the rotation keeps open invites alive, add a [`seal_keys`] to each
/// [`Recipient::Invite`] under `Some(space)` and `rotation.epoch`, with the keys given back here, `without_history` if the
/// invite's role has none.
///
/// # Errors
/// [`SealError::BadRecipientKey`].
pub fn make_rotation(
    space: SpaceId,
    old: (Epoch, &SpaceKeys),
    members: &[(AccountId, HistoryAccess)],
    rng: &mut impl CryptoRng,
) -> Result<(Rotation, SpaceKeys), SealError> {
    let (old_epoch, old_keys) = old;
    // After 2^32 - 1 rotations the epoch would stand still, and the log refuses that.
    let epoch = Epoch(old_epoch.0.saturating_add(1));
    let history = HistoryKey::generate(rng);
    let history_key = Some(history.clone());
    let keys = SpaceKeys { name_key: old_keys.name_key.clone(), read_key: ReadKey::generate(rng), history_key };
    let without = keys.without_history();
    let mut seals = Vec::with_capacity(members.len());
    for (account, access) in members {
        let given = match access {
            HistoryAccess::WithHistory => &keys,
            HistoryAccess::WithoutHistory => &without,
        };
        seals.push(seal_keys(Some(space), epoch, Recipient::Account(*account), given, rng)?);
    }
    let chain_nonce = aead::random::<NONCE_BYTES>(rng);
    let old_plaintext = old_keys.to_plaintext();
    let (_name, chained) = old_plaintext.split_at(32);
    let chain_ct = aead::encrypt(history.expose(), &chain_nonce, &chain_aad(space, epoch), chained);
    let rotation = Rotation {
        epoch,
        key_id: keys.key_id(),
        history_id: crate::keys::history_id(&history),
        profile_key: keys.profile_public(),
        seals,
        invite_seals: Vec::new(),
        chain_nonce: Bytes::copy_from_slice(&chain_nonce),
        chain_ct: chain_ct.into(),
    };
    Ok((rotation, keys))
}

fn chain_aad(space: SpaceId, epoch: Epoch) -> Vec<u8> {
    [b"headwater/chain-key/v1".as_slice(), space.as_bytes(), &epoch.0.to_be_bytes()].concat()
}

fn are_of(keys: &SpaceKeys, (key_id, history_id): &Published) -> bool {
    keys.key_id() == *key_id && keys.history_id().is_none_or(|id| id == *history_id)
}
