//! Compiles the services with protox: no protoc needed. Signed bodies come from the core.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const SYNC: &str = "headwater/sync/v1/sync.proto";
const CLIENT: &str = "headwater/client/v1/client.proto";
const PEER: &str = "headwater/peer/v1/peer.proto";
const INCLUDE: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    // One set each: the node's reflection shows what the node serves.
    compile(SYNC, "sync_descriptors.bin")?;
    compile(CLIENT, "client_descriptors.bin")?;
    compile(PEER, "peer_descriptors.bin")
}

fn compile(proto: &str, kept: &str) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([proto], [INCLUDE])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join(kept), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".headwater.records.v1", "::sync_core::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
