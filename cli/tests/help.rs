//! The program as built: it explains itself. (Having this test also makes `cargo test --workspace` build the program, which
//! scenario tests run.)

use std::process::Command;

#[test]
fn exit_codes_are_explained_and_kept() {
    let run = |words: &[&str]| Command::new(env!("CARGO_BIN_EXE_headwater")).args(words).output().expect("it runs");
    let told = run(&["exit-codes"]);
    assert_eq!(told.status.code(), Some(0));
    let text = String::from_utf8(told.stdout).expect("text");
    for code in [0, 1, 2, 3, 4, 5, 6, 70] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))), "{code} in {text}");
    }
    assert_eq!(run(&["no-such-command"]).status.code(), Some(2));
}

/// The commands that the program lists.
fn commands() -> Vec<String> {
    let help = Command::new(env!("CARGO_BIN_EXE_headwater")).arg("-h").output().expect("it runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let lines = help.lines().take_while(|line| !line.starts_with("Global options"));
    let named = lines.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with([' ', '-'])));
    named.filter_map(|rest| rest.split(' ').next()).map(str::to_owned).filter(|name| name != "help").collect()
}

#[test]
fn every_command_stands_in_the_readme_and_in_completions() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("a README");
    let script = Command::new(env!("CARGO_BIN_EXE_headwater")).args(["completions", "bash"]).output().expect("it runs");
    let script = String::from_utf8(script.stdout).expect("text");
    let commands = commands();
    assert!(commands.len() > 30, "{commands:?}");
    for name in commands {
        let is_named = readme.contains(&format!("`{name}`")) || readme.contains(&format!("`{name} "));
        assert!(is_named, "README.md does not name `{name}`");
        assert!(script.contains(&format!("headwater,{name})")), "no completion for {name}");
    }
}
