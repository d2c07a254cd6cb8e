//! Compiles the services with protox: no protoc needed. Signed bodies come from the core.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const SYNC: &str = "headwater/sync/v1/sync.proto";
const INCLUDE: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    let descriptors = protox::compile([SYNC], [INCLUDE])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".headwater.records.v1", "::sync_core::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
