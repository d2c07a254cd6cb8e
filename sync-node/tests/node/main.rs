//! The node in this process, on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test says what it expects, and fails otherwise"
)]

mod common;
mod ends;
mod gone;
mod headsync;
mod process;
mod proof;
mod push;
mod repush;
mod session;
mod spaces;
mod tail;
mod tls;
