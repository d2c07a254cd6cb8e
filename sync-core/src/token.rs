//! Invite tokens and node addresses: what people hand each other as text.
//!
//! A token is one line, `headwater1` and the base32 of a signed record. It holds the secret of an invite: who holds an open
//! one can read the space. It never appears in a log.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;

use crate::ids::{AuthorityId, IdError};
use crate::limits;
use crate::record::{InviteToken, RawRecord, Verified, VerifyError, verify_as};

const TEXT_PREFIX: &str = "headwater1";
const ADDRESS_PREFIX: &str = "headwater://";

/// Why a text is no invite token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not an invite: it should begin with \"{TEXT_PREFIX}\"")]
    NotAToken,
    #[error("the invite is damaged: it was cut off or changed on the way")]
    Damaged,
    #[error("the invite is {actual} characters long; the limit is {max}")]
    TooLong { actual: usize, max: usize },
    #[error("the invite does not verify")]
    Invalid(#[source] VerifyError),
}

/// The text of a token.
#[must_use]
pub fn token_to_text(token: &Verified<InviteToken>) -> String {
    format!("{TEXT_PREFIX}{}", BASE32_NOPAD.encode(&token.raw().to_vec()).to_ascii_lowercase())
}

/// Reads and checks a token: form and signature. Whether it can still be used, only the space's home can tell.
///
/// # Errors
/// What is wrong with the text.
pub fn token_from_text(text: &str) -> Result<Verified<InviteToken>, TokenError> {
    let text = text.trim();
    if text.len() > limits::TOKEN_CHARS_MAX {
        return Err(TokenError::TooLong { actual: text.len(), max: limits::TOKEN_CHARS_MAX });
    }
    let encoded = text.strip_prefix(TEXT_PREFIX).ok_or(TokenError::NotAToken)?;
    let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes()).map_err(|_| TokenError::Damaged)?;
    let raw = RawRecord::from_slice(&bytes).map_err(|_| TokenError::Damaged)?;
    verify_as(raw).map_err(TokenError::Invalid)
}

/// Where a node is, and who it must prove to be: `headwater://auth_…@host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    pub authority: AuthorityId,
    /// `host:port`.
    pub endpoint: String,
}

/// Why a text is no node address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("a node address looks like {ADDRESS_PREFIX}auth_…@host:port, not like {0:?}")]
    Form(String),
    #[error(transparent)]
    Authority(#[from] IdError),
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ADDRESS_PREFIX}{}@{}", self.authority, self.endpoint)
    }
}

impl FromStr for NodeAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(text.chars().take(120).collect());
        let rest = text.trim().strip_prefix(ADDRESS_PREFIX).ok_or_else(form)?;
        let (authority, endpoint) = rest.split_once('@').ok_or_else(form)?;
        let (host, port) = endpoint.rsplit_once(':').ok_or_else(form)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(form());
        }
        Ok(Self { authority: authority.parse()?, endpoint: endpoint.to_owned() })
    }
}
