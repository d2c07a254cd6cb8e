//! Compiles `records.proto` (the signed bodies) with protox: no protoc needed.

use std::error::Error;

const RECORDS: &str = "headwater/records/v1/records.proto";
const INCLUDE: &str = "../proto/proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}/{RECORDS}");
    let descriptors = protox::compile([RECORDS], [INCLUDE])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
