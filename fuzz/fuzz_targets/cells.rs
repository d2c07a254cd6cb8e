//! HeadSync against a side that sends what it likes.

#![no_main]

#[path = "../../sync-core/tests/hostile/cells.rs"]
mod cells;

libfuzzer_sys::fuzz_target!(|input: &[u8]| cells::run(input));
