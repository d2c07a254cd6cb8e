//! What scenario tests share: real node processes, clients with stores of their own, and the way from one to the other.
//!
//! Tests wait with the SDK's own waits and event feeds, never by sleeping or polling.

pub mod capture;
pub mod harness;
pub mod hostile;
pub mod machine;
pub mod process;
pub mod relay;
pub mod rules;
pub mod script;
pub mod spoil;
pub mod wire;
