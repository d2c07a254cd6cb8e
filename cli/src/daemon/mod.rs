//! The daemon: a process that keeps an account open, serves it to programs (`headwater.client.v1`), and runs the commands of
//! other `headwater` processes on the same data directory.
//!
//! A command is run where the account is open; its files, its terminal and its Ctrl-C stay where it was typed. [`handed`] is the
//! caller's side, [`server`] the daemon's, [`remote`] what a command there has of its caller.

mod handed;
mod remote;
mod server;
mod wire;

pub(crate) use handed::hand_over;
pub(crate) use remote::{Printed, ProgressSlot, Remote, RemoteProgress};
pub(crate) use server::{Commands, Open};

/// Generated from `command.proto`.
pub(crate) mod pb {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::large_enum_variant,
        clippy::wildcard_enum_match_arm,
        clippy::default_trait_access,
        rust_2018_idioms,
        reason = "generated code"
    )]
    tonic::include_proto!("headwater.cli.v1");
}

/// For gRPC reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
