//! Seals: the keys of a space encrypted to one account or invite, and profiles encrypted to the members of an epoch.
//!
//! HPKE base mode (RFC 9180), single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305; no associated data.
//!
//! ```text
//! info            = "headwater/seal/v1" || space (32) || epoch (u32, big-endian) || purpose || recipient (32)
//! purpose         = "keys" | "profile"
//! keys, plaintext = name key (32) || read key (32) [|| history key (32)]
//! ```
//!
//! - **Recipient.** An account's or invite's X25519 key comes from its Ed25519 key by the birational map (RFC 7748, section
//!   4.1; for the joint use, <https://eprint.iacr.org/2021/509>): the public one is the Montgomery form of the point, the secret
//!   one the clamped first half of SHA-512(seed). `recipient` in `info` is the Ed25519 key; for a profile it is the
//!   epoch's `profile_key`, which is an X25519 key already.
//! - **Space.** The ACL root is made before the space id exists: that is the hash of a header that names the root. Seals in a
//!   root therefore have 32 zero bytes in place of the space (`None` here); all others name it.
//!
//! Base mode does not authenticate the sealer: the signed ACL record around a seal does, and `key_id` and `history_id` in the
//! log prove what should have been inside.

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use hpke::{Deserializable as _, HpkeError, OpModeR, OpModeS, Serializable as _};
use rand_core::CryptoRng;
use sync_core::ids::{AccountId, Epoch, InviteId, SpaceId};
use sync_core::record::Seal;
use zeroize::Zeroizing;

use crate::aead::TAG_BYTES;

pub use crate::keys::{HistoryKey, NameKey, ReadKey, SpaceKeys};

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::ChaCha20Poly1305;
type PublicKey = <Kem as hpke::Kem>::PublicKey;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type EncappedKey = <Kem as hpke::Kem>::EncappedKey;

const CONTEXT: &[u8] = b"headwater/seal/v1";
const ENC_BYTES: usize = 32;

/// Why nothing was sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The seal names another recipient.
    #[error("the seal is for somebody else")]
    NotForUs,
    /// The seal names us and does not open: made wrong, damaged, or moved from another space or epoch.
    #[error("the seal does not open")]
    Undecryptable,
    /// A part of the seal has a length that none of ours has.
    #[error("the seal has an impossible length")]
    BadLength,
    /// The recipient's public key is no point of large order.
    #[error("the recipient's key is not acceptable")]
    BadRecipientKey,
}

/// Who can open a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    Account(AccountId),
    Invite(InviteId),
}

impl Recipient {
    fn key(&self) -> &[u8; 32] {
        match self {
            Self::Account(id) => id.as_bytes(),
            Self::Invite(id) => id.as_bytes(),
        }
    }
}

#[derive(Clone, Copy)]
enum Purpose {
    Keys,
    Profile,
}

/// Seals keys to one recipient. `space` is `None` in an ACL root and nowhere else.
///
/// Give `keys.without_history()` to a Guest, and to members of a space whose history starts at the join.
///
/// # Errors
/// [`SealError::BadRecipientKey`].
pub fn seal_keys(
    space: Option<SpaceId>,
    epoch: Epoch,
    to: Recipient,
    keys: &SpaceKeys,
    rng: &mut impl CryptoRng,
) -> Result<Seal, SealError> {
    seal_plaintext(space, epoch, to, &keys.to_plaintext(), rng)
}

pub(crate) fn seal_plaintext(
    space: Option<SpaceId>,
    epoch: Epoch,
    to: Recipient,
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Seal, SealError> {
    let recipient = *to.key();
    let point = VerifyingKey::from_bytes(&recipient).map_err(|_| SealError::BadRecipientKey)?.to_montgomery();
    let info = info(space, epoch, Purpose::Keys, &recipient);
    let (enc, ciphertext) = hpke_seal(point.as_bytes(), &info, plaintext, rng)?;
    Ok(Seal { recipient, enc, ciphertext })
}

/// Opens a seal with the account's or invite's own key. `space` and `epoch` are those of the record that the seal stands in.
///
/// What comes out is not known to be right: compare [`SpaceKeys::key_id`] and [`SpaceKeys::history_id`] with the log.
/// [`KeyRing`](crate::ring::KeyRing) does.
///
/// # Errors
/// [`SealError::NotForUs`] before anything else, then [`SealError::BadLength`], then [`SealError::Undecryptable`].
pub fn open_keys(space: Option<SpaceId>, epoch: Epoch, seal: &Seal, key: &SigningKey) -> Result<SpaceKeys, SealError> {
    if seal.recipient != key.verifying_key().to_bytes() {
        return Err(SealError::NotForUs);
    }
    let secret = Zeroizing::new(key.to_scalar_bytes());
    let info = info(space, epoch, Purpose::Keys, &seal.recipient);
    let plaintext = hpke_open(&secret, &info, &seal.enc, &seal.ciphertext)?;
    SpaceKeys::from_plaintext(&plaintext).ok_or(SealError::BadLength)
}

/// Seals a profile to whoever has the read key of an epoch; `profile_key` is the one in the log. Gives `enc (32) || ciphertext`.
///
/// # Errors
/// [`SealError::BadRecipientKey`].
pub fn seal_profile(
    space: SpaceId,
    epoch: Epoch,
    profile_key: &[u8; 32],
    profile: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Bytes, SealError> {
    let info = info(Some(space), epoch, Purpose::Profile, profile_key);
    let (enc, ciphertext) = hpke_seal(profile_key, &info, profile, rng)?;
    Ok([enc, ciphertext].concat().into())
}

/// Opens what [`seal_profile`] made, with the keys of the same epoch.
///
/// # Errors
/// [`SealError::BadLength`] or [`SealError::Undecryptable`].
pub fn open_profile(space: SpaceId, epoch: Epoch, keys: &SpaceKeys, ct: &[u8]) -> Result<Vec<u8>, SealError> {
    let (enc, ciphertext) = ct.split_at_checked(ENC_BYTES).ok_or(SealError::BadLength)?;
    let secret = keys.profile_secret();
    let info = info(Some(space), epoch, Purpose::Profile, &x25519_public(&secret));
    let mut plaintext = hpke_open(&secret, &info, enc, ciphertext)?;
    Ok(std::mem::take(&mut *plaintext))
}

/// The public half of an X25519 secret (clamped here), 32 bytes each.
pub(crate) fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    <Kem as hpke::Kem>::sk_to_pk(&private_key(secret)).to_bytes().into()
}

fn info(space: Option<SpaceId>, epoch: Epoch, purpose: Purpose, recipient: &[u8; 32]) -> Vec<u8> {
    let space = space.map_or([0; 32], |space| *space.as_bytes());
    let purpose: &[u8] = match purpose {
        Purpose::Keys => b"keys",
        Purpose::Profile => b"profile",
    };
    // Only one part has no fixed length, so no two inputs give the same bytes.
    [CONTEXT, &space, &epoch.0.to_be_bytes(), purpose, recipient].concat()
}

fn hpke_seal(
    recipient: &[u8; 32],
    info: &[u8],
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<(Bytes, Bytes), SealError> {
    let public = PublicKey::from_bytes(recipient).map_err(|_| SealError::BadRecipientKey)?;
    // The one thing that can go wrong is an all-zero shared secret (RFC 9180, section 7.1.4): a point of small order.
    let (enc, ciphertext) =
        hpke::single_shot_seal_with_rng::<Aead, Kdf, Kem>(&OpModeS::Base, &public, info, plaintext, b"", rng)
            .map_err(|_| SealError::BadRecipientKey)?;
    Ok((Bytes::copy_from_slice(&enc.to_bytes()), ciphertext.into()))
}

fn hpke_open(secret: &[u8; 32], info: &[u8], enc: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if ciphertext.len() < TAG_BYTES {
        return Err(SealError::BadLength);
    }
    let enc = EncappedKey::from_bytes(enc).map_err(|_: HpkeError| SealError::BadLength)?;
    hpke::single_shot_open::<Aead, Kdf, Kem>(&OpModeR::Base, &private_key(secret), &enc, info, ciphertext, b"")
        .map(Zeroizing::new)
        .map_err(|_| SealError::Undecryptable)
}

fn private_key(secret: &[u8; 32]) -> PrivateKey {
    PrivateKey::from_bytes(secret).expect("32 bytes are an X25519 secret")
}
