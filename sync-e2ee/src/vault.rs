//! Secrets at rest: bytes in, bytes out. Whoever writes the file gives it mode 0600.
//!
//! ```text
//! magic "HWVAULT" (7) || version 1 (u8) || kind (u8: 1 passphrase, 2 key file)
//! || Argon2id memory KiB (u32) || passes (u32) || lanes (u32)        all zero for a key file; numbers big-endian
//! || salt (16) || nonce (24)                                         the header ends here: 61 bytes, the associated data
//! || XChaCha20-Poly1305(key, nonce, header, secrets)
//! || BLAKE3.derive_key("headwater/vault-sum/v1", all before) (32)
//!
//! key     = Argon2id(passphrase as UTF-8, salt), 32 bytes            RFC 9106
//!         | HKDF-SHA256(key file (32), salt, "headwater/vault/v1")   RFC 5869
//! secrets = protobuf { 1: mnemonic phrase, 2: device seed (32), 3: local key (32) }, canonical
//! ```
//!
//! The sum at the end is no protection: it tells a damaged file ([`VaultError::Damaged`]) from a wrong passphrase
//! ([`VaultError::WrongSecret`]). Whoever alters the file on purpose gets the latter.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use prost::Message as _;
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::account::DeviceKeys;
use crate::aead::{self, NONCE_BYTES, TAG_BYTES};
use crate::mnemonic::Mnemonic;

pub use crate::local::LocalKey;

const MAGIC: &[u8; 7] = b"HWVAULT";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 16;
const HEADER_BYTES: usize = MAGIC.len() + 2 + 3 * 4 + SALT_BYTES + NONCE_BYTES;
const SUM_BYTES: usize = 32;

/// What a passphrase costs to try: 64 MiB, 3 passes, 1 lane (RFC 9106, section 4, second recommendation, in one lane).
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// The most that a file may ask of the reader: 1 GiB, 64 passes, 16 lanes.
const COST_MAX: Cost = Cost { memory_kib: 1 << 20, passes: 64, lanes: 16 };

/// Why a vault was not made or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The bytes do not begin like a vault.
    #[error("this is not a vault")]
    NotAVault,
    /// A vault of a newer version.
    #[error("the vault has version {0}; this build reads version {VERSION}")]
    UnknownVersion(u8),
    /// Locked with a passphrase and tried with a key file, or the other way round.
    #[error("the vault is locked with the other kind of secret (passphrase or key file)")]
    WrongKind,
    /// The file is whole and the passphrase or key file does not open it.
    #[error("the passphrase or key file does not open the vault")]
    WrongSecret,
    /// The bytes are not those that were written.
    #[error("the vault is damaged")]
    Damaged,
    /// The passphrase could not be stretched: there is not enough memory.
    #[error("not enough memory to stretch the passphrase ({} MiB)", .kib / 1024)]
    OutOfMemory { kib: u32 },
}

/// What one installation must keep.
#[derive(Clone)]
pub struct Secrets {
    pub mnemonic: Mnemonic,
    pub device: DeviceKeys,
    pub local_key: LocalKey,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(redacted)")
    }
}

/// What locks a vault.
#[derive(Clone, Copy)]
pub enum Unlock<'a> {
    /// Any text, taken byte by byte as UTF-8 (not normalized). An empty one protects nothing.
    Passphrase(&'a str),
    /// 32 random bytes, for machines that start without a person.
    KeyFile(&'a [u8; 32]),
}

impl fmt::Debug for Unlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(redacted)",
            Self::KeyFile(_) => "KeyFile(redacted)",
        })
    }
}

/// Encrypts secrets, about 400 bytes. A passphrase takes some tenths of a second and 64 MiB.
///
/// # Errors
/// [`VaultError::OutOfMemory`].
pub fn lock(secrets: &Secrets, unlock: &Unlock<'_>, rng: &mut impl CryptoRng) -> Result<Vec<u8>, VaultError> {
    let header = Header {
        kind: Kind::of(unlock),
        cost: match unlock {
            Unlock::Passphrase(_) => COST,
            Unlock::KeyFile(_) => Cost::NONE,
        },
        salt: aead::random(rng),
        nonce: aead::random(rng),
    };
    let key = header.key(unlock)?;
    let mut bytes = header.to_vec();
    let ciphertext = aead::encrypt(&key, &header.nonce, &bytes, &encode(secrets));
    bytes.extend_from_slice(&ciphertext);
    bytes.extend_from_slice(&sum(&bytes));
    Ok(bytes)
}

/// Decrypts what [`lock`] made. A passphrase takes some tenths of a second and 64 MiB, unless an error comes first.
///
/// # Errors
/// The first that holds of [`VaultError::NotAVault`], [`VaultError::UnknownVersion`], [`VaultError::Damaged`],
/// [`VaultError::WrongKind`], [`VaultError::OutOfMemory`], [`VaultError::WrongSecret`].
pub fn unlock(bytes: &[u8], unlock: &Unlock<'_>) -> Result<Secrets, VaultError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(VaultError::NotAVault)?;
    let version = *rest.first().ok_or(VaultError::Damaged)?;
    if version != VERSION {
        return Err(VaultError::UnknownVersion(version));
    }
    let (summed, claimed) = bytes.split_last_chunk::<SUM_BYTES>().ok_or(VaultError::Damaged)?;
    let (header_bytes, ciphertext) = summed.split_at_checked(HEADER_BYTES).ok_or(VaultError::Damaged)?;
    if sum(summed) != *claimed || ciphertext.len() < TAG_BYTES {
        return Err(VaultError::Damaged);
    }
    let header = Header::from_slice(header_bytes).ok_or(VaultError::Damaged)?;
    if header.kind != Kind::of(unlock) {
        return Err(VaultError::WrongKind);
    }
    let key = header.key(unlock)?;
    let plaintext = aead::decrypt(&key, &header.nonce, header_bytes, ciphertext).ok_or(VaultError::WrongSecret)?;
    decode(&plaintext).ok_or(VaultError::Damaged)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Passphrase,
    KeyFile,
}

impl Kind {
    const fn of(unlock: &Unlock<'_>) -> Self {
        match unlock {
            Unlock::Passphrase(_) => Self::Passphrase,
            Unlock::KeyFile(_) => Self::KeyFile,
        }
    }
}

/// Parameters of Argon2id.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    const NONE: Self = Self { memory_kib: 0, passes: 0, lanes: 0 };

    fn params(self) -> Option<Params> {
        let Self { memory_kib, passes, lanes } = self;
        if memory_kib > COST_MAX.memory_kib || passes > COST_MAX.passes || lanes > COST_MAX.lanes {
            return None;
        }
        Params::new(memory_kib, passes, lanes, Some(32)).ok()
    }
}

struct Header {
    kind: Kind,
    cost: Cost,
    salt: [u8; SALT_BYTES],
    nonce: [u8; NONCE_BYTES],
}

impl Header {
    fn to_vec(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Passphrase => 1,
            Kind::KeyFile => 2,
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[VERSION, kind]);
        for number in [self.cost.memory_kib, self.cost.passes, self.cost.lanes] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.nonce);
        bytes
    }

    /// `None` unless [`Header::to_vec`] of this version could have written it.
    fn from_slice(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?;
        let (kind, rest) = rest.split_first()?;
        let (memory_kib, rest) = number(rest)?;
        let (passes, rest) = number(rest)?;
        let (lanes, rest) = number(rest)?;
        let (salt, rest) = rest.split_first_chunk()?;
        let cost = Cost { memory_kib, passes, lanes };
        let kind = match kind {
            1 => cost.params().map(|_| Kind::Passphrase)?,
            2 if cost == Cost::NONE => Kind::KeyFile,
            _ => return None,
        };
        Some(Self { kind, cost, salt: *salt, nonce: rest.try_into().ok()? })
    }

    fn key(&self, unlock: &Unlock<'_>) -> Result<Zeroizing<[u8; 32]>, VaultError> {
        match unlock {
            Unlock::Passphrase(passphrase) => {
                let params = self.cost.params().ok_or(VaultError::Damaged)?;
                let mut key = Zeroizing::new([0; 32]);
                // Only memory can fail: a passphrase is shorter than 4 GiB, and the other lengths are ours.
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(passphrase.as_bytes(), &self.salt, key.as_mut())
                    .map_err(|_| VaultError::OutOfMemory { kib: self.cost.memory_kib })?;
                Ok(key)
            }
            Unlock::KeyFile(secret) => Ok(aead::hkdf(&self.salt, secret.as_slice(), &[b"headwater/vault/v1"])),
        }
    }
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn sum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    blake3::derive_key("headwater/vault-sum/v1", bytes)
}

#[derive(Clone, PartialEq, Zeroize, ZeroizeOnDrop, prost::Message)]
#[prost(skip_debug)]
struct WireSecrets {
    #[prost(string, tag = "1")]
    mnemonic: String,
    #[prost(bytes = "vec", tag = "2")]
    device: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    local_key: Vec<u8>,
}

impl fmt::Debug for WireSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireSecrets(redacted)")
    }
}

fn encode(secrets: &Secrets) -> Zeroizing<Vec<u8>> {
    let wire = WireSecrets {
        mnemonic: secrets.mnemonic.phrase().to_owned(),
        device: secrets.device.signing_key().as_bytes().to_vec(),
        local_key: secrets.local_key.expose().to_vec(),
    };
    Zeroizing::new(wire.encode_to_vec())
}

/// `None` unless [`encode`] of this version could have written it.
fn decode(plaintext: &[u8]) -> Option<Secrets> {
    let wire = WireSecrets::decode(plaintext).ok()?;
    let mnemonic = Mnemonic::parse(&wire.mnemonic).ok()?;
    let device = Zeroizing::new(<[u8; 32]>::try_from(wire.device.as_slice()).ok()?);
    let local_key = LocalKey::from_slice(&wire.local_key)?;
    let secrets = Secrets { mnemonic, device: DeviceKeys::from_seed(&device), local_key };
    (*encode(&secrets) == *plaintext).then_some(secrets)
}
