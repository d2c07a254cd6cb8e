//! The bugs that the simulator must find: each can still be planted. That it is found shows `scripts/simulate --planted`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the simulator was promised to be shown.
const BUGS_MIN: usize = 12;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace").to_owned()
}

fn patches() -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace().join("tests/world/planted")).expect("the planted bugs");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    found.sort();
    found
}

#[test]
fn every_planted_bug_can_be_planted() {
    let patches = patches();
    assert!(patches.len() >= BUGS_MIN, "{} bugs", patches.len());
    for patch in patches {
        let mut git = Command::new("git");
        git.current_dir(workspace()).args(["apply", "--check", "--recount", "-C1"]).arg(&patch);
        let checked = git.output().expect("git runs");
        let why = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{} cannot be planted any more: {why}", patch.display());
    }
}

#[test]
fn every_planted_bug_says_what_it_is_and_where_it_was_met() {
    for patch in patches() {
        let text = fs::read_to_string(&patch).expect("a patch");
        let words: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert!(words.len() >= 2, "{} says nothing", patch.display());
        assert!(words.iter().any(|line| line.starts_with("Field: ")), "{} is of no failure", patch.display());
        assert!(words.iter().all(|line| line.chars().count() <= 120), "{}", patch.display());
        let touched: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
        assert!(!touched.is_empty(), "{} changes nothing", patch.display());
        assert!(touched.iter().all(|file| file.contains("/src/")), "{} is not in the product", patch.display());
    }
}
