//! Every script of `tests/scripts`, over the rules and over real processes.
//!
//! `SCRIPT_SEED=n` plays the pure world with one seed only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sync_tests::rules::PureWorld;
use sync_tests::script::{RealWorld, Script, Stage, play};

/// Orders of messages in which every script is played.
const SEEDS: u64 = 24;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

fn read(name: &str) -> Script {
    Script::read(&folder().join(name).with_extension("hw")).unwrap_or_else(|problem| panic!("{problem}"))
}

async fn pure(name: &str) {
    let script = read(name);
    let seed: Option<u64> = std::env::var("SCRIPT_SEED").ok().map(|s| s.parse().expect("SCRIPT_SEED is a number"));
    let seeds = seed.map_or(0..script.seeds.unwrap_or(SEEDS), |seed| seed..seed + 1);
    for seed in seeds.filter(|_| script.only != Some(Stage::Real)) {
        if let Err(failure) = play(&script, &mut PureWorld::new(seed)).await {
            panic!("\n{failure}");
        }
    }
}

async fn real(name: &str) {
    let script = read(name);
    if script.only == Some(Stage::Pure) {
        return;
    }
    if let Err(failure) = play(&script, &mut RealWorld::start()).await {
        panic!("\n{failure}");
    }
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod pure_script {
            $(#[tokio::test] async fn $name() { super::pure(stringify!($name)).await; })*
        }

        mod real_script {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::real(stringify!($name)).await; })*
        }
    };
}

scripts! {
    acl_back_date, acl_contents, acl_deletion, acl_heads, acl_history, acl_history_join, acl_invite_rules, acl_invites,
    acl_leave, acl_once_race, acl_pending, acl_purge, acl_purge_late, acl_records, acl_removal, acl_requests,
    acl_rotation, acl_targets, acl_transfer, acl_write_rules, approval, concurrent, decline, example, forged,
    member_deletion, member_history, member_invites, member_leave, member_offline, member_pending, member_purge, member_purge_late,
    member_removal, member_rules, member_transfer, node_restart, offline, open_invite, owner, partial, profiles,
    readers, revive, roles, two_spaces, used_up,
}

#[test]
fn every_script_is_played() {
    let files = std::fs::read_dir(folder()).expect("the folder of scripts");
    let mut found: Vec<_> = files
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "hw"))
        .map(|path| path.file_stem().expect("a script has a name").to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, NAMES, "scripts are named in `scripts!`, in order");
    let steps: usize = found.iter().map(|name| read(name).steps.len()).sum();
    assert!(steps >= 80, "{steps} steps");
}

/// So that the suite of membership rules cannot shrink unnoticed.
#[test]
fn the_rules_of_membership_have_many_steps() {
    let scripts: Vec<_> = NAMES
        .iter()
        .filter(|name| name.starts_with("acl_") || name.starts_with("member_"))
        .map(|name| read(name))
        .collect();
    let steps: Vec<_> = scripts.iter().flat_map(|script| &script.steps).collect();
    let refusals: Vec<_> = steps.iter().filter_map(|step| step.refusal.as_deref()).collect();
    let codes: BTreeSet<_> = refusals.iter().collect();
    eprintln!("{} steps, {} refusals, {} codes", steps.len(), refusals.len(), codes.len());
    assert!(steps.len() >= 750, "{} steps", steps.len());
    assert!(refusals.len() >= 380, "{} refusals", refusals.len());
    assert!(codes.len() >= 35, "{codes:?}");
}
