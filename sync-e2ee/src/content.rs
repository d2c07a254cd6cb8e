//! What is inside a change, and what names a tree.
//!
//! ```text
//! content key = HKDF-SHA256(read key, no salt, "headwater/content/v1" || tree (32))               RFC 5869
//! ciphertext  = XChaCha20-Poly1305(content key, random 24-byte nonce, aad, envelope)              draft-irtf-cfrg-xchacha-03
//! aad         = space (32) || tree (32) || epoch (u32, big-endian) || author (32) || kind (u8: 0 content, 1 snapshot)
//! envelope    = protobuf { 1: object_type, 2: object_id, 3: data_type, 4: payload }, canonical
//! name tag    = keyed BLAKE3(name key, len || object type || len || object id), lengths u64, big-endian, bytes
//! ```

use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use rand_core::CryptoRng;
use sync_core::ids::{AccountId, Epoch, SpaceId, TreeId};
use sync_core::limits;
use sync_core::record::{ChangeKind, TreeName, TreeRoot, WriteRule};
use zeroize::Zeroizing;

use crate::aead::{self, NONCE_BYTES, TAG_BYTES};
use crate::keys::{NameKey, SpaceKeys};

/// Why content was not encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The payload is over [`limits::CONTENT_BYTES_MAX`], or the ciphertext would be over [`limits::PAYLOAD_BYTES_MAX`]
    /// because of long names; bytes.
    #[error("the content is {actual} bytes long; the limit is {max}")]
    TooLarge { actual: usize, max: usize },
    /// Not made with this key for this place, or altered since.
    #[error("the ciphertext does not open here")]
    Undecryptable,
    /// It opened, and what was inside is not a canonical envelope: its author's fault.
    #[error("the decrypted content is not an envelope")]
    BadEnvelope,
}

/// The plaintext of a change. `Debug` shows the payload's length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    pub object_type: String,
    pub object_id: String,
    /// What the payload is, in the application's words.
    pub data_type: String,
    /// At most [`limits::CONTENT_BYTES_MAX`] bytes.
    pub payload: Bytes,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope").field("payload_bytes", &self.payload.len()).finish_non_exhaustive()
    }
}

/// Where a change stands. Ciphertext made for one place opens in no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentContext {
    pub space: SpaceId,
    pub tree: TreeId,
    pub epoch: Epoch,
    pub author: AccountId,
    pub kind: ChangeKind,
}

/// What a change carries: the nonce in its signed body, the ciphertext as its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    pub nonce: [u8; 24],
    /// At most [`limits::PAYLOAD_BYTES_MAX`] bytes.
    pub ciphertext: Bytes,
}

/// Encrypts the content of a change with the keys of `context.epoch`.
///
/// # Errors
/// [`ContentError::TooLarge`].
pub fn encrypt(
    keys: &SpaceKeys,
    context: &ContentContext,
    envelope: &Envelope,
    rng: &mut impl CryptoRng,
) -> Result<Encrypted, ContentError> {
    at_most(envelope.payload.len(), limits::CONTENT_BYTES_MAX)?;
    let wire = WireEnvelope::from(envelope);
    at_most(wire.encoded_len() + TAG_BYTES, limits::PAYLOAD_BYTES_MAX)?;
    let nonce = aead::random::<NONCE_BYTES>(rng);
    let plaintext = Zeroizing::new(wire.encode_to_vec());
    let ciphertext = aead::encrypt(&content_key(keys, context.tree), &nonce, &associated_data(context), &plaintext);
    Ok(Encrypted { nonce, ciphertext: ciphertext.into() })
}

/// Decrypts the content of a change with the keys of `context.epoch`. That the names inside fit the tree's name tag is left to
/// the caller, who knows the tree's root.
///
/// # Errors
/// [`ContentError::Undecryptable`] or [`ContentError::BadEnvelope`].
pub fn decrypt(
    keys: &SpaceKeys,
    context: &ContentContext,
    nonce: &[u8; 24],
    ciphertext: &[u8],
) -> Result<Envelope, ContentError> {
    let plaintext = aead::decrypt(&content_key(keys, context.tree), nonce, &associated_data(context), ciphertext)
        .ok_or(ContentError::Undecryptable)?;
    let wire = WireEnvelope::decode(plaintext.as_slice()).map_err(|_| ContentError::BadEnvelope)?;
    // One envelope has one encoding, as with signed bodies: everybody gives the same verdict over the same bytes.
    if wire.encode_to_vec() != *plaintext {
        return Err(ContentError::BadEnvelope);
    }
    Ok(wire.into())
}

/// The blinded name of an object: equal for equal names, and says nothing to those without the name key.
#[must_use]
pub fn name_tag(name_key: &NameKey, object_type: &str, object_id: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(name_key.expose());
    for part in [object_type, object_id] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// The root of the tree that holds a named object. All who create the same object make the same tree.
#[must_use]
pub fn object_root(
    space: SpaceId,
    name_key: &NameKey,
    object_type: &str,
    object_id: &str,
    rule: WriteRule,
) -> TreeRoot {
    TreeRoot { space, name: TreeName::Tag(name_tag(name_key, object_type, object_id)), write_rule: rule }
}

const fn at_most(actual: usize, max: usize) -> Result<(), ContentError> {
    if actual > max { Err(ContentError::TooLarge { actual, max }) } else { Ok(()) }
}

fn content_key(keys: &SpaceKeys, tree: TreeId) -> Zeroizing<[u8; 32]> {
    aead::hkdf(b"", keys.read_key.expose(), &[b"headwater/content/v1", tree.as_bytes()])
}

fn associated_data(context: &ContentContext) -> Vec<u8> {
    let ContentContext { space, tree, epoch, author, kind } = context;
    let kind = match kind {
        ChangeKind::Content => 0,
        ChangeKind::Snapshot => 1,
    };
    [space.as_bytes().as_slice(), tree.as_bytes(), &epoch.0.to_be_bytes(), author.as_bytes(), &[kind]].concat()
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireEnvelope {
    #[prost(string, tag = "1")]
    object_type: String,
    #[prost(string, tag = "2")]
    object_id: String,
    #[prost(string, tag = "3")]
    data_type: String,
    #[prost(bytes = "bytes", tag = "4")]
    payload: Bytes,
}

impl From<&Envelope> for WireEnvelope {
    fn from(envelope: &Envelope) -> Self {
        let Envelope { object_type, object_id, data_type, payload } = envelope.clone();
        Self { object_type, object_id, data_type, payload }
    }
}

impl From<WireEnvelope> for Envelope {
    fn from(wire: WireEnvelope) -> Self {
        let WireEnvelope { object_type, object_id, data_type, payload } = wire;
        Self { object_type, object_id, data_type, payload }
    }
}
