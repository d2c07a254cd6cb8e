//! The rules of Headwater, and nothing else.
//!
//! Bytes become a [`record::RawRecord`], a raw record becomes [`record::Verified`], a verified record becomes a
//! [`log::Decision`], and a decision that was stored becomes [`log::Committed`]. Never backwards. Each module imports only
//! from those before it: `ids -> limits -> record -> acl -> tree -> log -> judge -> code -> reconcile -> receipt ->
//! history -> evidence -> token -> session -> syncer`.
//!
//! # Never here
//!
//! No IO, no clock, no randomness, no locks, no async, no transport types, no plaintext and no secret key of an account:
//! `now` and random generators are arguments, effects are return values.

pub mod acl;
pub mod code;
pub mod evidence;
pub mod history;
pub mod ids;
pub mod judge;
pub mod limits;
pub mod log;
pub mod receipt;
pub mod reconcile;
pub mod record;
pub mod session;
pub mod syncer;
pub mod token;
pub mod tree;

/// The protobuf messages of `records.proto`: signed bodies, as they are hashed.
#[allow(missing_debug_implementations, unreachable_pub, clippy::large_enum_variant, reason = "generated code")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/headwater.records.v1.rs"));
}
