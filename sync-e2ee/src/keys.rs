//! Symmetric keys as types, so that none can stand where another belongs.

use std::fmt;

use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::account::AccountKeys;
use crate::aead;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $vis:vis generate) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// 32 bytes of the generator.
            #[must_use]
            $vis fn generate(rng: &mut impl CryptoRng) -> Self {
                let mut key = Self([0; 32]);
                rng.fill_bytes(&mut key.0);
                key
            }

            pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            pub(crate) const fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}
pub(crate) use secret;

secret!(
    /// 32 bytes, one for the life of a space: blinds the names of objects and opens nothing.
    NameKey, pub(crate) generate
);
secret!(
    /// 32 bytes, one per epoch: every content key of the epoch comes from it.
    ReadKey, pub(crate) generate
);
secret!(
    /// 32 bytes, one per epoch: opens the keys of the epoch before.
    HistoryKey, pub(crate) generate
);

impl NameKey {
    /// Compares in constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        // `blake3::Hash` compares in constant time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

/// The keys of one space in one epoch, as far as a member has them.
#[derive(Clone)]
pub struct SpaceKeys {
    pub name_key: NameKey,
    pub read_key: ReadKey,
    /// `None` for members without history.
    pub history_key: Option<HistoryKey>,
}

const KEY_ID: &str = "headwater/epoch-id/v1";
const HISTORY_ID: &str = "headwater/history-id/v1";
const PROFILE: &[u8] = b"headwater/profile/v1";
const DERIVED_SPACE: &[u8] = b"headwater/derived-space/v1";

impl SpaceKeys {
    /// New keys for a new space.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self {
            name_key: NameKey::generate(rng),
            read_key: ReadKey::generate(rng),
            history_key: Some(HistoryKey::generate(rng)),
        }
    }

    /// The keys of epoch 0 of a derived space: HKDF-SHA256 of the account's secret, `info` = "headwater/derived-space/v1" ‖
    /// label; 96 bytes, name key ‖ read key ‖ history key. Every device of the account derives the same.
    #[must_use]
    pub fn derived(account: &AccountKeys, label: &[u8]) -> Self {
        let bytes: Zeroizing<[u8; 96]> = aead::hkdf(b"", account.signing_key().as_bytes(), &[DERIVED_SPACE, label]);
        Self::from_plaintext(bytes.as_ref()).expect("96 bytes are three keys")
    }

    /// What the ACL publishes of the read key, so that a wrong seal is provable.
    #[must_use]
    pub fn key_id(&self) -> [u8; 32] {
        blake3::derive_key(KEY_ID, &self.read_key.0)
    }

    /// What the ACL publishes of the history key; `None` without one.
    #[must_use]
    pub fn history_id(&self) -> Option<[u8; 32]> {
        self.history_key.as_ref().map(history_id)
    }

    /// The X25519 public key that profiles of this epoch are sealed to, 32 bytes.
    #[must_use]
    pub fn profile_public(&self) -> [u8; 32] {
        crate::seal::x25519_public(&self.profile_secret())
    }

    /// The same keys for a member without history.
    #[must_use]
    pub fn without_history(&self) -> Self {
        Self { history_key: None, ..self.clone() }
    }

    pub(crate) fn profile_secret(&self) -> Zeroizing<[u8; 32]> {
        aead::hkdf(b"", &self.read_key.0, &[PROFILE])
    }

    /// name key ‖ read key ‖ history key, or without the last: what is sealed, and what must stand nowhere unsealed.
    #[must_use]
    pub fn to_plaintext(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(96));
        bytes.extend_from_slice(&self.name_key.0);
        bytes.extend_from_slice(&self.read_key.0);
        if let Some(history) = &self.history_key {
            bytes.extend_from_slice(&history.0);
        }
        bytes
    }

    /// `None` unless the length is 64 or 96 bytes.
    pub(crate) fn from_plaintext(bytes: &[u8]) -> Option<Self> {
        let (name, rest) = bytes.split_at_checked(32)?;
        let (read, history) = rest.split_at_checked(32)?;
        let history_key = if history.is_empty() { None } else { Some(HistoryKey::from_slice(history)?) };
        Some(Self { name_key: NameKey::from_slice(name)?, read_key: ReadKey::from_slice(read)?, history_key })
    }
}

pub(crate) fn history_id(key: &HistoryKey) -> [u8; 32] {
    blake3::derive_key(HISTORY_ID, &key.0)
}

impl fmt::Debug for SpaceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history = if self.history_key.is_some() { "with history" } else { "without history" };
        write!(f, "SpaceKeys(redacted, {history})")
    }
}
