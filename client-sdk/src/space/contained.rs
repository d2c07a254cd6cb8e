//! Code that is not trusted not to panic: applications' own, and what reads what others wrote.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs it; a panic becomes its message. What it was about to change is to be dropped or read anew by the caller.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| message(panic.as_ref()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
