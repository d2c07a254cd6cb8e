//! The README's tour, run as it stands there: every `$` line is a command, the lines below it are what it prints. `…` stands
//! for any text, a line with nothing else for any lines.

use std::process::Command;

use sync_tests::harness::{NodeProcess, binary};

#[test]
fn the_tour_prints_what_the_readme_says() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("a README");
    let steps = steps(&readme);
    assert!(steps.len() > 8, "the tour has {} commands", steps.len());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = NodeProcess::start();
    std::os::unix::fs::symlink(node.dir(), dir.path().join("node")).expect("a link to the node's directory");
    let path = binary("headwater").parent().expect("binaries lie in a directory").display().to_string();
    for Step { command, expected } in steps {
        let printed = if command.starts_with("sync-node") {
            // The other terminal: it runs already, and printed its address.
            format!("{}\n", node.address())
        } else {
            run(&command, dir.path(), &path)
        };
        assert!(
            matches(&expected, &printed.lines().collect::<Vec<_>>()),
            "$ {command}\nthe README says:\n{}\nit printed:\n{printed}",
            expected.join("\n")
        );
    }
}

struct Step {
    command: String,
    expected: Vec<String>,
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let blocks = readme.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    for line in blocks.flat_map(str::lines) {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), expected: Vec::new() }),
            (None, Some(step)) => step.expected.push(line.to_owned()),
            (None, None) => panic!("output before the first command: {line}"),
        }
    }
    steps
}

fn run(command: &str, dir: &std::path::Path, path: &str) -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", command])
        .current_dir(dir)
        .env("PATH", format!("{path}:{inherited}"))
        .env_remove("HEADWATER_DATA")
        .output()
        .expect("bash runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "$ {command}\n{errors}");
    String::from_utf8(output.stdout).expect("the output is text")
}

fn matches(expected: &[String], printed: &[&str]) -> bool {
    match (expected, printed) {
        ([], []) => true,
        ([any, rest @ ..], _) if any == "…" => (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..])),
        ([line, rest @ ..], [first, others @ ..]) => line_matches(line, first) && matches(rest, others),
        ([], _) | (_, []) => false,
    }
}

fn line_matches(expected: &str, printed: &str) -> bool {
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

#[test]
fn a_wrong_line_is_noticed() {
    let expected = ["a … c".to_owned(), "…".to_owned(), "end".to_owned()];
    assert!(matches(&expected, &["a b c", "x", "y", "end"]));
    assert!(!matches(&expected, &["a b d", "end"]));
    assert!(!matches(&expected, &["a b c", "end", "more"]));
}
