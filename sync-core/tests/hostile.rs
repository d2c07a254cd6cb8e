//! What the fuzz targets run (`fuzz/`), on seeded inputs.

#[path = "hostile/cells.rs"]
mod cells;
#[path = "hostile/records.rs"]
mod records;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Cells that are noise, and honest cells that were touched.
#[test]
fn hostile_cells_never_panic_and_never_name_a_wrong_difference() {
    inputs(5000, cells::run);
}

/// Bytes that are no record, and honest records that were touched.
#[test]
fn hostile_records_never_panic_and_never_verify() {
    inputs(2000, records::run);
}

fn inputs(count: usize, run: fn(&[u8])) {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    for _ in 0..count {
        let mut bytes = vec![0; rng.next_u32() as usize % 4000];
        rng.fill_bytes(&mut bytes);
        // Small numbers are what structure is made of.
        if rng.next_u32() % 2 == 0 {
            bytes.iter_mut().for_each(|byte| *byte %= 3);
        }
        run(&bytes);
    }
}
