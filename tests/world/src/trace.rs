//! What happened in a world, line by line.

use std::fmt;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of lines that are kept; what comes later only counts for the hash.
const KEPT_MAX: usize = 1 << 20;

pub(crate) struct Trace(Mutex<Lines>);

struct Lines {
    text: String,
    hasher: blake3::Hasher,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Lines { text: String::new(), hasher: blake3::Hasher::new() }))
    }

    pub(crate) fn note(&self, at: Duration, line: &dyn fmt::Display) {
        let line = format!("{:>10.6} {line}\n", at.as_secs_f64());
        let mut lines = self.lock();
        lines.hasher.update(line.as_bytes());
        if lines.text.len() < KEPT_MAX {
            // Writing to a string does not fail.
            let _ = lines.text.write_str(&line);
        }
    }

    pub(crate) fn text(&self) -> String {
        self.lock().text.clone()
    }

    pub(crate) fn hash(&self) -> [u8; 32] {
        *self.lock().hasher.finalize().as_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
