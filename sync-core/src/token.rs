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
const TLS_SCHEME: &str = "headwater://";
const PLAIN_SCHEME: &str = "headwater+plain://";

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
    let raw = RawRecord::from_slice(&bytes).map_err(|error| match error {
        // Whole, and made by a newer program: not the holder's fault.
        VerifyError::UnknownVersion(_) => TokenError::Invalid(error),
        VerifyError::UnknownKind(_)
        | VerifyError::WrongKind { .. }
        | VerifyError::TooLarge { .. }
        | VerifyError::Undecodable(_)
        | VerifyError::Field { .. }
        | VerifyError::NonCanonical
        | VerifyError::Id(_)
        | VerifyError::BadSignature
        | VerifyError::BadPayload => TokenError::Damaged,
    })?;
    verify_as(raw).map_err(TokenError::Invalid)
}

/// How the connection to a node is protected on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TLS, pinned to the authority: `headwater://`.
    Tls,
    /// None: `headwater+plain://`. For loopback, or behind a proxy that the operator trusts. Records stay encrypted end to
    /// end, but session tokens and metadata are readable on the way.
    Plain,
}

/// Where a node is, and who it must prove to be: `headwater://auth_…@host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    pub transport: Transport,
    pub authority: AuthorityId,
    /// `host:port`.
    pub endpoint: String,
}

/// Why a text is no node address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("a node address looks like {TLS_SCHEME}auth_…@host:port, not like {0:?}")]
    Form(String),
    #[error("the authority in the node address is wrong")]
    Authority(#[from] IdError),
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Tls => TLS_SCHEME,
            Transport::Plain => PLAIN_SCHEME,
        };
        write!(f, "{scheme}{}@{}", self.authority, self.endpoint)
    }
}

impl FromStr for NodeAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(text.chars().take(120).collect());
        let line = text.trim();
        let tls = line.strip_prefix(TLS_SCHEME).map(|rest| (Transport::Tls, rest));
        let plain = || line.strip_prefix(PLAIN_SCHEME).map(|rest| (Transport::Plain, rest));
        let (transport, rest) = tls.or_else(plain).ok_or_else(form)?;
        let (authority, endpoint) = rest.split_once('@').ok_or_else(form)?;
        let (host, port) = endpoint.rsplit_once(':').ok_or_else(form)?;
        if !is_host(host) || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() {
            return Err(form());
        }
        Ok(Self { transport, authority: authority.parse()?, endpoint: endpoint.to_owned() })
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets; nothing that would make the address mean another one.
fn is_host(host: &str) -> bool {
    let (plain, colons_allowed) = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => (inner, true),
        None => (host, false),
    };
    let is_fine =
        |c: char| !c.is_whitespace() && !c.is_control() && !"@/?#[]".contains(c) && (colons_allowed || c != ':');
    !plain.is_empty() && plain.chars().all(is_fine)
}
