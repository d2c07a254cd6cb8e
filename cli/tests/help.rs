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
