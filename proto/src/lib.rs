//! The wire: generated gRPC types, and the only mapping between them and the core.
//!
//! `from_wire` is `TryFrom` (the peer may lie), `to_wire` is `From` (we do not). [`status`] turns every failure into a gRPC
//! status with a typed detail, in one table, and back.
//!
//! # Never here
//!
//! No rules, no IO, no storage types.

mod from_wire;
pub mod status;
mod to_wire;

pub use from_wire::{WireError, array, id, read_record, read_verified, required};

/// A module of generated code, which our lints are not about.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident $package:literal) => {
        $(#[$doc])*
        pub mod $name {
            #![allow(
                missing_debug_implementations,
                unreachable_pub,
                clippy::large_enum_variant,
                clippy::wildcard_enum_match_arm,
                clippy::default_trait_access,
                rust_2018_idioms,
                reason = "generated code"
            )]
            tonic::include_proto!($package);
        }
    };
}

generated! {
    /// Generated from `sync.proto`.
    v1 "headwater.sync.v1"
}

generated! {
    /// Generated from `client.proto`: the service of a client, for programs on the same machine.
    client_v1 "headwater.client.v1"
}

generated! {
    /// Generated from `peer.proto`: what two clients say to each other.
    peer_v1 "headwater.peer.v1"
}

/// For gRPC reflection: the node's service and every message of it, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sync_descriptors.bin"));

/// For gRPC reflection: the service of a client and every message of it, as an encoded `FileDescriptorSet`.
pub const CLIENT_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client_descriptors.bin"));

/// The metadata key that carries the session token, as ASCII base32.
pub const TOKEN_KEY: &str = "headwater-session";

/// `2.25.4710471047104710`: the extension (not critical) of a node's X.509 certificate whose content is the protobuf bytes of
/// its signed `NodeCertificate` record. A client pins the authority by it during the handshake.
pub const CERTIFICATE_EXTENSION_OID: &[u64] = &[2, 25, 4_710_471_047_104_710];
