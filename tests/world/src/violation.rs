//! A broken promise.

use std::fmt;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The name of the invariant: that of the function which checks it.
    pub invariant: &'static str,
    /// Where, and what was expected there.
    pub expected: String,
    pub seen: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, expected: impl fmt::Display, seen: impl fmt::Debug) -> Self {
        Self { invariant, expected: expected.to_string(), seen: format!("{seen:?}") }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  expected: {}\n  seen:     {}", self.invariant, self.expected, self.seen)
    }
}

impl std::error::Error for Violation {}
