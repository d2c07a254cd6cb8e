//! Signed records: kept as received, named by their hash, verified once.
//!
//! ```text
//! SignedRecord { kind, version, body, signature, payload? }
//! id        = BLAKE3.derive_key("headwater/<kind>/v<version>", body)
//! signature = Ed25519("headwater/<kind>/sig/v<version>" || id)
//! ```
//!
//! A [`RawRecord`] is what arrived. A [`Verified`] can only be made by [`verify`], [`verify_many`] or [`Verified::sign`], so
//! holding one is the proof that size, canonical form, field shapes, payload hash and signature are right. Whether a record
//! may enter a log is another question: see [`crate::log`].
//!
//! Signatures follow [ZIP 215](https://zips.z.cash/zip-0215), where single and batch verification agree on every input.

mod body;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use ed25519_zebra::{VerificationKeyBytes, batch};
use prost::Message as _;
use rand_core::CryptoRng;

use crate::ids::{EntryId, IdError};
use crate::{limits, pb};

pub use body::*;

/// The only format version there is.
pub const VERSION: u32 = 1;

/// What a record is. Selects the hash context, so a lie about it changes the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    SpaceHeader,
    AclRoot,
    AclRecord,
    TreeRoot,
    TreeChange,
    Tombstone,
    DeviceCertificate,
    DeviceList,
    NodeCertificate,
    Receipt,
    HistoryStarted,
    InviteToken,
}

impl Kind {
    /// The BLAKE3 context of ids, and the prefix of what is signed.
    const fn contexts(self) -> (&'static str, &'static str) {
        macro_rules! pair {
            ($name:literal) => {
                (concat!("headwater/", $name, "/v1"), concat!("headwater/", $name, "/sig/v1"))
            };
        }
        match self {
            Self::SpaceHeader => pair!("space-header"),
            Self::AclRoot => pair!("acl-root"),
            Self::AclRecord => pair!("acl-record"),
            Self::TreeRoot => pair!("tree-root"),
            Self::TreeChange => pair!("tree-change"),
            Self::Tombstone => pair!("tombstone"),
            Self::DeviceCertificate => pair!("device-certificate"),
            Self::DeviceList => pair!("device-list"),
            Self::NodeCertificate => pair!("node-certificate"),
            Self::Receipt => pair!("receipt"),
            Self::HistoryStarted => pair!("history-started"),
            Self::InviteToken => pair!("invite-token"),
        }
    }

    /// The largest body of this kind, bytes.
    #[must_use]
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::AclRecord | Self::AclRoot => limits::ACL_BODY_BYTES_MAX,
            Self::Receipt => limits::TOKEN_CHARS_MAX,
            Self::InviteToken => limits::TOKEN_BODY_BYTES_MAX,
            Self::SpaceHeader
            | Self::TreeRoot
            | Self::TreeChange
            | Self::Tombstone
            | Self::DeviceCertificate
            | Self::DeviceList
            | Self::NodeCertificate
            | Self::HistoryStarted => limits::BODY_BYTES_MAX,
        }
    }

    fn to_pb(self) -> pb::RecordKind {
        match self {
            Self::SpaceHeader => pb::RecordKind::SpaceHeader,
            Self::AclRoot => pb::RecordKind::AclRoot,
            Self::AclRecord => pb::RecordKind::AclRecord,
            Self::TreeRoot => pb::RecordKind::TreeRoot,
            Self::TreeChange => pb::RecordKind::TreeChange,
            Self::Tombstone => pb::RecordKind::Tombstone,
            Self::DeviceCertificate => pb::RecordKind::DeviceCertificate,
            Self::DeviceList => pb::RecordKind::DeviceList,
            Self::NodeCertificate => pb::RecordKind::NodeCertificate,
            Self::Receipt => pb::RecordKind::Receipt,
            Self::HistoryStarted => pb::RecordKind::HistoryStarted,
            Self::InviteToken => pb::RecordKind::InviteToken,
        }
    }

    fn from_pb(kind: i32) -> Result<Self, VerifyError> {
        let unknown = VerifyError::UnknownKind(kind);
        Ok(match pb::RecordKind::try_from(kind).map_err(|_| unknown.clone())? {
            pb::RecordKind::Unspecified => return Err(unknown),
            pb::RecordKind::SpaceHeader => Self::SpaceHeader,
            pb::RecordKind::AclRoot => Self::AclRoot,
            pb::RecordKind::AclRecord => Self::AclRecord,
            pb::RecordKind::TreeRoot => Self::TreeRoot,
            pb::RecordKind::TreeChange => Self::TreeChange,
            pb::RecordKind::Tombstone => Self::Tombstone,
            pb::RecordKind::DeviceCertificate => Self::DeviceCertificate,
            pb::RecordKind::DeviceList => Self::DeviceList,
            pb::RecordKind::NodeCertificate => Self::NodeCertificate,
            pb::RecordKind::Receipt => Self::Receipt,
            pb::RecordKind::HistoryStarted => Self::HistoryStarted,
            pb::RecordKind::InviteToken => Self::InviteToken,
        })
    }
}

/// What is wrong with a record in itself, before any log is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The kind is none of version 1.
    #[error("record kind {0} is unknown")]
    UnknownKind(i32),
    /// A known kind of a version that this build cannot read.
    #[error("record version {0} is unknown; this build reads version {VERSION}")]
    UnknownVersion(u32),
    /// Another kind than this place takes.
    #[error("expected a record of kind {expected:?}, got {actual:?}")]
    WrongKind { expected: Kind, actual: Kind },
    /// The body is larger than its kind allows.
    #[error("{what} is {actual} bytes long; the limit is {max}")]
    TooLarge { what: &'static str, actual: usize, max: usize },
    /// The body is not the protobuf message of its kind.
    #[error("the body is not a valid message: {0}")]
    Undecodable(String),
    /// A field breaks its shape.
    #[error("field {field}: {problem}")]
    Field { field: &'static str, problem: &'static str },
    /// The body does not re-encode to the bytes received.
    #[error("the body is not in canonical form")]
    NonCanonical,
    /// A key or id field is malformed or weak.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The signature is missing, malformed or not by the author over this record.
    #[error("the signature does not verify")]
    BadSignature,
    /// The payload does not match the hash and length in the body, or stands where none belongs.
    #[error("the payload does not match the signed body")]
    BadPayload,
}

/// A record as received. Nothing about it is known to be true. `Debug` shows no bytes: the body of a token is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RawRecord {
    pub kind: Kind,
    pub version: u32,
    /// The signed bytes; never re-encoded.
    pub body: Bytes,
    /// 64 bytes, or empty for the kinds that only a hash names.
    pub signature: Bytes,
    /// Ciphertext.
    pub payload: Option<Bytes>,
}

impl std::fmt::Debug for RawRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawRecord")
            .field("kind", &self.kind)
            .field("body_bytes", &self.body.len())
            .field("payload_bytes", &self.payload.as_ref().map(Bytes::len))
            .finish_non_exhaustive()
    }
}

impl RawRecord {
    /// The id that these bytes have, true or not.
    #[must_use]
    pub fn id(&self) -> EntryId {
        EntryId::from_hash(blake3::derive_key(self.kind.contexts().0, &self.body))
    }

    /// Bytes this record takes in a message, about.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.body.len() + self.signature.len() + self.payload.as_ref().map_or(0, Bytes::len) + 16
    }

    /// The whole record as protobuf bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        pb::SignedRecord::from(self.clone()).encode_to_vec()
    }

    /// Reads what [`RawRecord::to_vec`] wrote.
    ///
    /// # Errors
    /// [`VerifyError::Undecodable`], [`VerifyError::UnknownKind`] or [`VerifyError::UnknownVersion`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, VerifyError> {
        pb::SignedRecord::decode(bytes).map_err(|e| VerifyError::Undecodable(e.to_string()))?.try_into()
    }

    fn signed_bytes(&self, id: &EntryId) -> Vec<u8> {
        [self.kind.contexts().1.as_bytes(), id.as_bytes()].concat()
    }
}

impl TryFrom<pb::SignedRecord> for RawRecord {
    type Error = VerifyError;
    fn try_from(record: pb::SignedRecord) -> Result<Self, VerifyError> {
        let kind = Kind::from_pb(record.kind)?;
        if record.version != VERSION {
            return Err(VerifyError::UnknownVersion(record.version));
        }
        let pb::SignedRecord { version, body, signature, payload, .. } = record;
        Ok(Self { kind, version, body, signature, payload })
    }
}

impl From<RawRecord> for pb::SignedRecord {
    fn from(raw: RawRecord) -> Self {
        let RawRecord { kind, version, body, signature, payload } = raw;
        Self { kind: kind.to_pb().into(), version, body, signature, payload }
    }
}

/// What every body type tells about itself.
pub trait Body: Sized + Clone {
    const KIND: Kind;
    #[doc(hidden)]
    type Message: prost::Message + Default;

    #[doc(hidden)]
    fn from_message(message: Self::Message) -> Result<Self, VerifyError>;
    #[doc(hidden)]
    fn to_message(&self) -> Self::Message;

    /// The public key that must have signed; `None` for kinds that only a hash names.
    fn signer(&self) -> Option<[u8; 32]>;

    /// Hash and length that a payload must have; `None` where no payload belongs.
    fn payload_claim(&self) -> Option<PayloadClaim> {
        None
    }
}

/// What a signed body says about the ciphertext beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadClaim {
    pub hash: [u8; 32],
    pub len: u32,
}

impl PayloadClaim {
    /// The claim that is true of these bytes.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Self { hash: blake3::derive_key("headwater/payload/v1", payload), len }
    }
}

/// A record whose form and signature were checked. Private fields: holding one is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<B> {
    id: EntryId,
    raw: RawRecord,
    body: B,
}

impl<B> Verified<B> {
    /// The hash of the body.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        self.id
    }

    /// The record as received.
    #[must_use]
    pub const fn raw(&self) -> &RawRecord {
        &self.raw
    }

    /// The decoded body.
    #[must_use]
    pub const fn body(&self) -> &B {
        &self.body
    }

    /// Gives up the proof.
    #[must_use]
    pub fn into_raw(self) -> RawRecord {
        self.raw
    }
}

impl<B: Body> Verified<B> {
    /// Makes and signs a record. The key must be the one that [`Body::signer`] names.
    ///
    /// # Errors
    /// What [`verify`] would say of the result: a caller's own bytes are not trusted either.
    pub fn sign(body: &B, key: &SigningKey, payload: Option<Bytes>) -> Result<Self, VerifyError> {
        let mut raw = unsigned_raw(body, payload);
        let id = raw.id();
        raw.signature = Bytes::copy_from_slice(&key.sign(&raw.signed_bytes(&id)).to_bytes());
        // A signature just made by the key that must have made it needs no second look: that would cost twice the signing.
        if body.signer() != Some(key.verifying_key().to_bytes()) {
            return Err(VerifyError::BadSignature);
        }
        check_form(raw)
    }

    /// Makes a record of a kind that only a hash names.
    ///
    /// # Errors
    /// What [`verify`] would say of the result.
    pub fn unsigned(body: &B) -> Result<Self, VerifyError> {
        verify_as(unsigned_raw(body, None))
    }
}

fn unsigned_raw<B: Body>(body: &B, payload: Option<Bytes>) -> RawRecord {
    let body = Bytes::from(body.to_message().encode_to_vec());
    RawRecord { kind: B::KIND, version: VERSION, body, signature: Bytes::new(), payload }
}

/// A verified record of any kind that can stand in a log (or found one).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifiedRecord {
    SpaceHeader(Verified<SpaceHeader>),
    AclRoot(Verified<AclRoot>),
    Acl(Verified<AclRecord>),
    TreeRoot(Verified<TreeRoot>),
    Change(Verified<TreeChange>),
    Tombstone(Verified<Tombstone>),
}

impl VerifiedRecord {
    /// The record as received.
    #[must_use]
    pub const fn raw(&self) -> &RawRecord {
        match self {
            Self::SpaceHeader(r) => r.raw(),
            Self::AclRoot(r) => r.raw(),
            Self::Acl(r) => r.raw(),
            Self::TreeRoot(r) => r.raw(),
            Self::Change(r) => r.raw(),
            Self::Tombstone(r) => r.raw(),
        }
    }

    /// The hash of the body.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        match self {
            Self::SpaceHeader(r) => r.id(),
            Self::AclRoot(r) => r.id(),
            Self::Acl(r) => r.id(),
            Self::TreeRoot(r) => r.id(),
            Self::Change(r) => r.id(),
            Self::Tombstone(r) => r.id(),
        }
    }
}

/// Verifies one record of a known kind.
///
/// # Errors
/// The first check that fails: kind, size, canonical form, fields, payload, signature; cheap ones first.
pub fn verify_as<B: Body>(raw: RawRecord) -> Result<Verified<B>, VerifyError> {
    let checked = check_form(raw)?;
    check_signature(&checked)?;
    Ok(checked)
}

/// Verifies one record of any log kind.
///
/// # Errors
/// As [`verify_as`]; [`VerifyError::Field`] for a kind that never stands in a log.
pub fn verify(raw: RawRecord) -> Result<VerifiedRecord, VerifyError> {
    let record = check_form_any(raw)?;
    match &record {
        VerifiedRecord::SpaceHeader(r) => check_signature(r)?,
        VerifiedRecord::AclRoot(r) => check_signature(r)?,
        VerifiedRecord::Acl(r) => check_signature(r)?,
        VerifiedRecord::TreeRoot(r) => check_signature(r)?,
        VerifiedRecord::Change(r) => check_signature(r)?,
        VerifiedRecord::Tombstone(r) => check_signature(r)?,
    }
    Ok(record)
}

/// Verifies many records at about a third of the cost each. The verdicts are the same as [`verify`]'s, one by one and in
/// order; `rng` must be unpredictable to whoever made the records.
pub fn verify_many(raws: Vec<RawRecord>, rng: &mut impl CryptoRng) -> Vec<Result<VerifiedRecord, VerifyError>> {
    let mut results = Vec::with_capacity(raws.len());
    let mut rest = raws.into_iter().peekable();
    while rest.peek().is_some() {
        let batch: Vec<_> = rest.by_ref().take(limits::VERIFY_BATCH_MAX).map(check_form_any).collect();
        results.extend(verify_batch(batch, rng));
    }
    results
}

fn verify_batch(
    mut batch: Vec<Result<VerifiedRecord, VerifyError>>,
    rng: &mut impl CryptoRng,
) -> Vec<Result<VerifiedRecord, VerifyError>> {
    let mut verifier = batch::Verifier::new();
    let mut items = Vec::with_capacity(batch.len());
    for (index, record) in batch.iter_mut().enumerate() {
        let Ok(verified) = record else { continue };
        match signature_item(verified) {
            Ok(Some(item)) => {
                verifier.queue(item.clone());
                items.push((index, item));
            }
            Ok(None) => {}
            Err(error) => *record = Err(error),
        }
    }
    if verifier.verify(rng).is_err() {
        // Somebody in the batch lied; ZIP 215 makes the single verdicts agree with the batch's.
        for (index, item) in items {
            if item.verify_single().is_err() {
                batch[index] = Err(VerifyError::BadSignature);
            }
        }
    }
    batch
}

fn signature_item(record: &VerifiedRecord) -> Result<Option<batch::Item>, VerifyError> {
    match record {
        VerifiedRecord::SpaceHeader(r) => item(r),
        VerifiedRecord::AclRoot(r) => item(r),
        VerifiedRecord::Acl(r) => item(r),
        VerifiedRecord::TreeRoot(r) => item(r),
        VerifiedRecord::Change(r) => item(r),
        VerifiedRecord::Tombstone(r) => item(r),
    }
}

fn check_form_any(raw: RawRecord) -> Result<VerifiedRecord, VerifyError> {
    Ok(match raw.kind {
        Kind::SpaceHeader => VerifiedRecord::SpaceHeader(check_form(raw)?),
        Kind::AclRoot => VerifiedRecord::AclRoot(check_form(raw)?),
        Kind::AclRecord => VerifiedRecord::Acl(check_form(raw)?),
        Kind::TreeRoot => VerifiedRecord::TreeRoot(check_form(raw)?),
        Kind::TreeChange => VerifiedRecord::Change(check_form(raw)?),
        Kind::Tombstone => VerifiedRecord::Tombstone(check_form(raw)?),
        Kind::DeviceCertificate
        | Kind::DeviceList
        | Kind::NodeCertificate
        | Kind::Receipt
        | Kind::HistoryStarted
        | Kind::InviteToken => {
            return Err(VerifyError::Field { field: "kind", problem: "never stands in a log" });
        }
    })
}

/// Everything but the signature. The result must not leave this module before [`check_signature`] passed.
fn check_form<B: Body>(raw: RawRecord) -> Result<Verified<B>, VerifyError> {
    if raw.kind != B::KIND {
        return Err(VerifyError::WrongKind { expected: B::KIND, actual: raw.kind });
    }
    if raw.version != VERSION {
        return Err(VerifyError::UnknownVersion(raw.version));
    }
    let max = B::KIND.body_bytes_max();
    if raw.body.len() > max {
        return Err(VerifyError::TooLarge { what: "the body", actual: raw.body.len(), max });
    }
    check_payload_size(&raw)?;
    let message = B::Message::decode(raw.body.clone()).map_err(|e| VerifyError::Undecodable(e.to_string()))?;
    if message.encode_to_vec() != raw.body {
        return Err(VerifyError::NonCanonical);
    }
    let body = B::from_message(message)?;
    match (&raw.payload, body.payload_claim()) {
        (Some(payload), Some(claim)) if PayloadClaim::of(payload) != claim => return Err(VerifyError::BadPayload),
        (Some(_), None) => return Err(VerifyError::BadPayload),
        (Some(_) | None, _) => {}
    }
    Ok(Verified { id: raw.id(), raw, body })
}

fn check_payload_size(raw: &RawRecord) -> Result<(), VerifyError> {
    let actual = raw.payload.as_ref().map_or(0, Bytes::len);
    if actual > limits::PAYLOAD_BYTES_MAX {
        return Err(VerifyError::TooLarge { what: "the payload", actual, max: limits::PAYLOAD_BYTES_MAX });
    }
    Ok(())
}

fn check_signature<B: Body>(record: &Verified<B>) -> Result<(), VerifyError> {
    match item(record)? {
        Some(item) => item.verify_single().map_err(|_| VerifyError::BadSignature),
        None => Ok(()),
    }
}

fn item<B: Body>(record: &Verified<B>) -> Result<Option<batch::Item>, VerifyError> {
    let Some(signer) = record.body.signer() else {
        return if record.raw.signature.is_empty() { Ok(None) } else { Err(VerifyError::BadSignature) };
    };
    let signature: [u8; 64] = record.raw.signature.as_ref().try_into().map_err(|_| VerifyError::BadSignature)?;
    let message = record.raw.signed_bytes(&record.id);
    Ok(Some((VerificationKeyBytes::from(signer), ed25519_zebra::Signature::from(signature), &message[..]).into()))
}

/// Verifies a signature over free bytes under a context, with the same rule as records: for proofs that are no records.
///
/// # Errors
/// [`VerifyError::BadSignature`].
pub fn verify_bytes(key: &[u8; 32], context: &str, parts: &[&[u8]], signature: &[u8]) -> Result<(), VerifyError> {
    let signature: [u8; 64] = signature.try_into().map_err(|_| VerifyError::BadSignature)?;
    let message = proof_bytes(context, parts);
    let item: batch::Item =
        (VerificationKeyBytes::from(*key), ed25519_zebra::Signature::from(signature), &message[..]).into();
    item.verify_single().map_err(|_| VerifyError::BadSignature)
}

/// Signs what [`verify_bytes`] verifies.
#[must_use]
pub fn sign_bytes(key: &SigningKey, context: &str, parts: &[&[u8]]) -> [u8; 64] {
    key.sign(&proof_bytes(context, parts)).to_bytes()
}

/// `context || BLAKE3(len || part || len || part …)`: parts cannot run into each other.
fn proof_bytes(context: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new_derive_key("headwater/proof/v1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    [context.as_bytes(), hasher.finalize().as_bytes()].concat()
}
