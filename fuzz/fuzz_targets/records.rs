//! Records out of any bytes.

#![no_main]

#[path = "../../sync-core/tests/hostile/records.rs"]
mod records;

libfuzzer_sys::fuzz_target!(|input: &[u8]| records::run(input));
