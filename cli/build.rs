//! Compiles the service between the command line and its daemon with protox: no protoc needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const COMMAND: &str = "headwater/cli/v1/command.proto";
const INCLUDE: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    let descriptors = protox::compile([COMMAND], [INCLUDE])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
