//! The node in this process, on real sockets.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod process;
mod proof;
mod push;
mod session;
mod spaces;
mod tail;
mod tls;
