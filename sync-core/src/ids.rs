//! Names of things: one type per kind of id, with one text form each.
//!
//! Hash ids are BLAKE3 under a domain-separated context, keys are Ed25519 public keys; both are 32 bytes. In text they are
//! lower-case base32 without padding (RFC 4648, section 6) behind a type prefix, for example `space_mfrgg…`.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::edwards::CompressedEdwardsY;
use data_encoding::BASE32_NOPAD;

/// Why a text or a byte string is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The byte string has the wrong length.
    #[error("{what} must be {expected} bytes long, not {actual}")]
    Length { what: &'static str, expected: usize, actual: usize },
    /// The text does not begin with the prefix of its type.
    #[error("{what} begins with \"{prefix}\"; this does not: {text:?}")]
    Prefix { what: &'static str, prefix: &'static str, text: String },
    /// The text behind the prefix is not base32.
    #[error("{what} has a character that is not base32: {text:?}")]
    Encoding { what: &'static str, text: String },
    /// The bytes are not a canonical Ed25519 point of large order.
    #[error("{what} is not an acceptable Ed25519 public key (non-canonical or of small order)")]
    WeakKey { what: &'static str },
}

fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut text = String::from(prefix);
    text.push_str(&BASE32_NOPAD.encode(bytes).to_ascii_lowercase());
    text
}

fn decode(what: &'static str, prefix: &'static str, text: &str) -> Result<[u8; 32], IdError> {
    let encoded = text.strip_prefix(prefix).ok_or_else(|| IdError::Prefix { what, prefix, text: clip(text) })?;
    let encoding = || IdError::Encoding { what, text: clip(text) };
    // Upper case is not the text form: one id has one spelling.
    if encoded.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(encoding());
    }
    let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes()).map_err(|_| encoding())?;
    bytes.as_slice().try_into().map_err(|_| IdError::Length { what, expected: 32, actual: bytes.len() })
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            #[doc = concat!("What the text form of ", $what, " begins with.")]
            pub const PREFIX: &'static str = $prefix;

            /// The raw bytes, as they stand on the wire.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight bytes as a number: the narrow index key of the store.
            #[must_use]
            pub fn prefix8(&self) -> i64 {
                let [a, b, c, d, e, f, g, h, ..] = self.0;
                i64::from_be_bytes([a, b, c, d, e, f, g, h])
            }

            /// The bytes as a protobuf field.
            #[must_use]
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }

            /// The first characters of the text form, for tables read by people.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string().chars().take($prefix.len() + 8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode($prefix, &self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(decode($what, $prefix, text)?.as_slice())
            }
        }
    };
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        id!($(#[$doc])* $name, $what, $prefix);

        impl $name {
            /// An id from the hash that it is.
            #[must_use]
            pub const fn from_hash(hash: [u8; 32]) -> Self {
                Self(hash)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let bytes = bytes
                    .try_into()
                    .map_err(|_| IdError::Length { what: $what, expected: 32, actual: bytes.len() })?;
                Ok(Self(bytes))
            }
        }
    };
}

macro_rules! key_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        id!($(#[$doc])* $name, $what, $prefix);

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            /// Refuses non-canonical encodings and points of small order: such keys verify signatures that nobody made.
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let bytes: [u8; 32] = bytes
                    .try_into()
                    .map_err(|_| IdError::Length { what: $what, expected: 32, actual: bytes.len() })?;
                if is_strong_key(&bytes) { Ok(Self(bytes)) } else { Err(IdError::WeakKey { what: $what }) }
            }
        }

        impl From<&ed25519_dalek::VerifyingKey> for $name {
            fn from(key: &ed25519_dalek::VerifyingKey) -> Self {
                Self(key.to_bytes())
            }
        }
    };
}

fn is_strong_key(bytes: &[u8; 32]) -> bool {
    let compressed = CompressedEdwardsY(*bytes);
    compressed.decompress().is_some_and(|point| !point.is_small_order() && point.compress() == compressed)
}

hash_id!(
    /// A space: the hash of its header.
    SpaceId, "a space id", "space_"
);
hash_id!(
    /// A record of an ACL log.
    AclId, "an ACL record id", "acl_"
);
hash_id!(
    /// A tree: the hash of its root.
    TreeId, "a tree id", "tree_"
);
hash_id!(
    /// A change of a tree.
    ChangeId, "a change id", "change_"
);
hash_id!(
    /// A purge of a tree.
    TombstoneId, "a tombstone id", "purge_"
);
hash_id!(
    /// Any log entry, when its kind does not matter.
    EntryId, "an entry id", "entry_"
);
hash_id!(
    /// The hash chain over a log.
    Chain, "a chain hash", "chain_"
);
key_id!(
    /// A person: the account's Ed25519 public key.
    AccountId, "an account id", "acct_"
);
key_id!(
    /// One installation of an account.
    DeviceId, "a device id", "dev_"
);
key_id!(
    /// One node: its TLS and receipt key.
    NodeId, "a node id", "node_"
);
key_id!(
    /// The identity that addresses, invites and receipts name; certifies node keys.
    AuthorityId, "an authority id", "auth_"
);
key_id!(
    /// An invite's public key.
    InviteId, "an invite id", "invite_"
);

macro_rules! into_entry {
    ($($name:ident),*) => {$(
        impl From<$name> for EntryId {
            fn from(id: $name) -> Self {
                Self(id.0)
            }
        }
        impl From<EntryId> for $name {
            fn from(id: EntryId) -> Self {
                Self(id.0)
            }
        }
    )*};
}
into_entry!(AclId, TreeId, ChangeId, TombstoneId);

/// A position in a log. The first entry has 1; 0 is the position before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A generation of a space's keys, 0 in the ACL root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One unbroken life of a node's copy of a space; renewed only by a recognised restore.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryId(pub [u8; 16]);

impl fmt::Debug for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode("history_", &self.0))
    }
}

impl TryFrom<&[u8]> for HistoryId {
    type Error = IdError;
    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.try_into().map(Self).map_err(|_| IdError::Length {
            what: "a history id",
            expected: 16,
            actual: bytes.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_names_its_type() {
        let id = TreeId::from_hash([7; 32]);
        assert_eq!(id.to_string().parse::<TreeId>(), Ok(id));
        assert!(matches!(id.to_string().parse::<SpaceId>(), Err(IdError::Prefix { .. })));
        assert!(matches!(id.to_string().to_uppercase().parse::<TreeId>(), Err(IdError::Prefix { .. })));
        assert!(matches!("tree_my".parse::<TreeId>(), Err(IdError::Length { .. })));
        assert!(matches!("tree_M1".parse::<TreeId>(), Err(IdError::Encoding { .. })));
    }

    #[test]
    fn weak_keys_are_refused() {
        // The identity, and -0 (a non-canonical spelling of a point of order 4).
        let mut identity = [0; 32];
        identity[0] = 1;
        for weak in [identity, [0; 32], [0xff; 32]] {
            assert_eq!(AccountId::try_from(weak.as_slice()), Err(IdError::WeakKey { what: "an account id" }));
        }
    }
}
