//! The rules, as tables and properties. Random cases print the seed or the shrunken input that replays them.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test says what it expects, and fails otherwise"
)]

mod acl;
mod canonical;
mod decide;
mod evidence;
mod fixture;
mod judge;
mod limit;
mod link;
#[expect(unreachable_pub, reason = "shared with the scenario tests, where it is public")]
#[path = "../../../tests/src/rules/map_log.rs"]
mod map_log;
mod order;
mod signature;
mod text;
