//! Wire to core. The peer may lie: everything is `TryFrom`, and nothing is assumed to be there.

use sync_core::code::Code;
use sync_core::ids::{Chain, IdError, Seq};
use sync_core::log::Position;
use sync_core::record::{Body, RawRecord, Verified, VerifyError, verify_as};
use sync_core::{limits, pb};

use crate::{peer_v1, v1};

/// Why a message is not one of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("field {0} is missing")]
    Missing(&'static str),
    #[error("field {field} has {actual} elements; the limit is {max}")]
    TooMany { field: &'static str, actual: usize, max: usize },
    #[error("field {field} must be {expected} bytes long, not {actual}")]
    Length { field: &'static str, expected: usize, actual: usize },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Record(#[from] VerifyError),
}

impl From<&WireError> for Code {
    fn from(error: &WireError) -> Self {
        match error {
            WireError::Missing(_) | WireError::Length { .. } => Self::Malformed,
            WireError::TooMany { .. } => Self::TooLarge,
            WireError::Id(error) => (&VerifyError::Id(error.clone())).into(),
            WireError::Record(error) => error.into(),
        }
    }
}

/// A field that must be set.
///
/// # Errors
/// [`WireError::Missing`].
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

/// An id or key field.
///
/// # Errors
/// [`WireError::Id`].
pub fn id<T: for<'a> TryFrom<&'a [u8], Error = IdError>>(bytes: &[u8]) -> Result<T, WireError> {
    Ok(T::try_from(bytes)?)
}

/// A field of fixed length.
///
/// # Errors
/// [`WireError::Length`].
pub fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Length { field, expected: N, actual: bytes.len() })
}

/// A record that must be there; not yet verified.
///
/// # Errors
/// [`WireError::Missing`], or an unknown kind or version.
pub fn read_record(field: &'static str, record: Option<pb::SignedRecord>) -> Result<RawRecord, WireError> {
    Ok(required(field, record)?.try_into()?)
}

/// A record of a known kind that must be there, verified.
///
/// # Errors
/// [`WireError::Missing`], or what is wrong with the record.
pub fn read_verified<B: Body>(field: &'static str, record: Option<pb::SignedRecord>) -> Result<Verified<B>, WireError> {
    Ok(verify_as(read_record(field, record)?)?)
}

fn at_most<T>(field: &'static str, items: &[T], max: usize) -> Result<(), WireError> {
    if items.len() > max { Err(WireError::TooMany { field, actual: items.len(), max }) } else { Ok(()) }
}

impl TryFrom<&v1::ChainPoint> for Position {
    type Error = WireError;
    fn try_from(point: &v1::ChainPoint) -> Result<Self, WireError> {
        Ok(Self { seq: Seq(point.seq), chain: id::<Chain>(&point.chain)? })
    }
}

impl v1::Subscribe {
    /// The ladder, newest first as sent.
    ///
    /// # Errors
    /// Too many points, or a malformed one.
    pub fn read_ladder(&self) -> Result<Vec<Position>, WireError> {
        read_ladder(&self.ladder)
    }
}

impl v1::RepushOpen {
    /// The ladder, newest first as sent.
    ///
    /// # Errors
    /// Too many points, or a malformed one.
    pub fn read_ladder(&self) -> Result<Vec<Position>, WireError> {
        read_ladder(&self.ladder)
    }
}

fn read_ladder(ladder: &[v1::ChainPoint]) -> Result<Vec<Position>, WireError> {
    at_most("ladder", ladder, limits::LADDER_POINTS_MAX)?;
    ladder.iter().map(Position::try_from).collect()
}

impl v1::PushRequest {
    /// Checks the number of items.
    ///
    /// # Errors
    /// [`WireError::TooMany`].
    pub fn check(&self) -> Result<(), WireError> {
        at_most("items", &self.items, limits::PUSH_ITEMS_MAX)
    }
}

impl v1::FetchRequest {
    /// Checks the number of trees.
    ///
    /// # Errors
    /// [`WireError::TooMany`].
    pub fn check(&self) -> Result<(), WireError> {
        at_most("trees", &self.trees, limits::IDS_PER_REQUEST_MAX)
    }
}

impl TryFrom<&peer_v1::PeerElement> for sync_core::reconcile::Element {
    type Error = WireError;
    fn try_from(element: &peer_v1::PeerElement) -> Result<Self, WireError> {
        use peer_v1::peer_element::State;
        Ok(match required("state", element.state.as_ref())? {
            State::AclHead(head) => Self::AclHead(id(head)?),
            State::HeadsHash(hash) => Self::Tree { tree: id(&element.tree)?, heads_hash: array("heads_hash", hash)? },
            State::PurgedBy(by) => Self::Purged { tree: id(&element.tree)?, by: id(by)? },
        })
    }
}

impl TryFrom<&v1::HeadSyncElement> for sync_core::reconcile::Element {
    type Error = WireError;
    fn try_from(element: &v1::HeadSyncElement) -> Result<Self, WireError> {
        use v1::head_sync_element::State;
        Ok(match required("state", element.state.as_ref())? {
            State::AclHead(head) => Self::AclHead(id(head)?),
            State::HeadsHash(hash) => Self::Tree { tree: id(&element.key)?, heads_hash: array("heads_hash", hash)? },
            State::PurgedBy(by) => Self::Purged { tree: id(&element.key)?, by: id(by)? },
        })
    }
}
