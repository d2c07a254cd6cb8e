//! Real input through real processes: the CLI imports, another account joins, and both export the same bytes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sync_tests::harness::{NodeProcess, binary};

const ISO_CODES: &str = "/usr/share/iso-codes/json";

/// A person at a command line.
struct Person {
    dir: tempfile::TempDir,
}

impl Person {
    fn new(name: &str, node: &NodeProcess) -> Self {
        let person = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        person.ok(&["init", "--node", &node.address().to_string(), "--name", name]);
        person
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("headwater"));
        command.arg("--data").arg(self.dir.path().join("account")).args(["--json", "--timeout", "120s"]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the CLI runs")
    }

    /// Runs a command that must succeed; its JSON.
    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "headwater {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("headwater {args:?} printed no JSON: {e}: {text}"))
    }

    fn export(&self) -> PathBuf {
        let out = self.dir.path().join("export");
        self.ok(&["export", path(&out)]);
        out
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// Lets `joiner` into the only space of `admin`.
fn join(admin: &Person, joiner: &Person) {
    let token = admin.ok(&["invite"])["token"].as_str().expect("a token").to_owned();
    let joining = joiner.command(&["join", &token]).stdout(Stdio::piped()).spawn().expect("the CLI runs");
    admin.ok(&["approve", "--all", "--wait"]);
    let joined = joining.wait_with_output().expect("join ends");
    assert!(joined.status.success(), "join: {}", String::from_utf8_lossy(&joined.stdout));
}

fn same_files(a: &Path, b: &Path) {
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).expect("an export").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
    assert!(!names(a).is_empty(), "something was exported");
    for name in names(a) {
        let read = |dir: &Path| std::fs::read(dir.join(&name)).expect("an exported file");
        assert!(read(a) == read(b), "{} differs", name.display());
    }
}

/// Imports files as one person, lets another join, and compares what both export with each other and with the source.
fn round_trip(files: &[&Path]) {
    let node = NodeProcess::start();
    let (ada, bo) = (Person::new("Ada", &node), Person::new("Bo", &node));
    ada.ok(&["space", "create", "Atlas", "--wait"]);
    let files: Vec<&str> = files.iter().map(|f| path(f)).collect();
    ada.ok(&[&["import", "--wait"], files.as_slice()].concat());
    join(&ada, &bo);
    bo.ok(&["await-synced"]);
    ada.ok(&["await-synced"]);
    same_files(&ada.export(), &bo.export());
    bo.ok(&[&["export", "--check"], files.as_slice()].concat());
}

/// 7,900 records of languages, names in many scripts among them.
#[test]
fn iso_codes_import_join_export_are_identical() {
    let file = Path::new(ISO_CODES).join("iso_639-3.json");
    if file.exists() {
        round_trip(&[&file, &Path::new(ISO_CODES).join("iso_3166-1.json")]);
    } else {
        // Debian's iso-codes cannot be had here; the shape is the same.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("made.json");
        std::fs::write(&file, made_records().to_string()).expect("a file");
        round_trip(&[&file]);
    }
}

/// Every kind of value, many scripts, and texts that JSON escapes.
#[test]
fn every_value_comes_back_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("values.json");
    let records = json!([
        { "id": "1", "text": "ქართული ᚠᛇᚻ 日本語 \u{1F600} \"quotes\" \\ \n\t\u{0}", "none": null },
        { "id": "2", "numbers": [0, -1, 1.5, 1e21, 9007199254740991_i64], "truth": [true, false] },
        { "id": "3", "nested": { "b": { "a": [[], {}, [{}]] }, "a": "" } },
        { "id": "é", "composed": "é", "decomposed": "e\u{301}" },
    ]);
    std::fs::write(&file, records.to_string()).expect("a file");
    round_trip(&[&file]);
}

fn made_records() -> Value {
    (0..7910).map(|n| json!({ "id": format!("r{n:05}"), "name": format!("Namæ {n} \u{4E00}"), "n": n })).collect()
}

#[test]
fn a_git_history_keeps_its_shape() {
    let repo = tempfile::tempdir().expect("a temporary directory");
    make_repository(repo.path());
    let node = NodeProcess::start();
    let (ada, bo) = (Person::new("Ada", &node), Person::new("Bo", &node));
    ada.ok(&["space", "create", "Code", "--wait"]);
    let imported = ada.ok(&["import-git", path(repo.path()), "--all", "--wait"]);
    let tree = imported["tree"].as_str().expect("the tree's id").to_owned();
    join(&ada, &bo);
    bo.ok(&["await-synced"]);
    for person in [&ada, &bo] {
        person.ok(&["tree", "verify-git", &tree, path(repo.path()), "--all"]);
    }
    // A tip that the tree does not have is noticed.
    git(repo.path(), &["commit", "--allow-empty", "-m", "later"]);
    let later = bo.run(&["tree", "verify-git", &tree, path(repo.path()), "--all"]);
    assert_eq!(later.status.code(), Some(1), "{}", String::from_utf8_lossy(&later.stdout));
}

/// Two roots, branches, a merge, an octopus, and a branch that nobody merged.
fn make_repository(dir: &Path) {
    git(dir, &["init", "--initial-branch=main"]);
    let commit = |message: &str| git(dir, &["commit", "--allow-empty", "-m", message]);
    commit("first\n\nwith a body, “quotes” and 日本語");
    for branch in ["a", "b", "c"] {
        git(dir, &["checkout", "-b", branch, "main"]);
        commit(&format!("on {branch}"));
        commit(&format!("more on {branch}"));
    }
    git(dir, &["checkout", "main"]);
    commit("second");
    git(dir, &["merge", "--no-ff", "-m", "octopus", "a", "b"]);
    git(dir, &["checkout", "--orphan", "other"]);
    commit("another root");
    git(dir, &["checkout", "main"]);
    git(dir, &["merge", "--allow-unrelated-histories", "--no-ff", "-m", "two roots", "other"]);
    git(dir, &["checkout", "-b", "open", "a"]);
    commit("never merged");
    git(dir, &["checkout", "main"]);
}

fn git(dir: &Path, args: &[&str]) {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@invalid", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(dir).args(identity).args(args).output().expect("git runs");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
