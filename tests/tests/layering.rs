//! Who may know whom: what each crate's "Never here" says, held against the manifests and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace").to_owned()
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(workspace().join("Cargo.toml"));
    // What this very build was resolved to, for this machine; nothing is asked of the network.
    command.other_options(["--offline".to_owned(), "--filter-platform".to_owned(), host()]);
    command.exec().expect("cargo describes the workspace")
}

/// The platform that this build is for, as rustc calls it.
fn host() -> String {
    let told = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let told = String::from_utf8(told.stdout).expect("text");
    told.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned()
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> &'a Package {
    let found = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == name);
    found.unwrap_or_else(|| panic!("no crate {name} in the workspace"))
}

/// What a crate names under `[dependencies]`.
fn direct(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let normal = package(metadata, name).dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
    normal.map(|d| d.name.clone()).collect()
}

/// Everything that is linked into a crate: its dependencies and theirs, without what only builds or tests them.
fn closure(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("a resolved workspace");
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut open = vec![&package(metadata, name).id];
    let mut seen: BTreeSet<&PackageId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        for dep in &nodes[id].deps {
            let linked = dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            if linked && seen.insert(&dep.pkg) {
                open.push(&dep.pkg);
            }
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

/// Every Rust file of a crate: sources, tests, benches, examples.
fn rust_files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.push((path, text));
        }
    }
    found
}

fn crate_files(name: &str) -> Vec<(PathBuf, String)> {
    let files = rust_files(&workspace().join(name));
    assert!(!files.is_empty(), "{name} has no sources");
    files
}

/// A source without its comments to the end of the line, so that saying a word is not using it.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

const CRATES: [&str; 9] =
    ["proto", "host", "sync-core", "sync-e2ee", "sync-store", "sync-node", "client-sdk", "cli", "tests"];

/// The rules need a hash, signatures, an encoding, an error derive, and nothing that does anything.
#[test]
fn the_core_has_only_what_it_computes_with() {
    let metadata = metadata();
    let expected = [
        "blake3",
        "bytes",
        "curve25519-dalek",
        "data-encoding",
        "ed25519-dalek",
        "ed25519-zebra",
        "prost",
        "rand_core",
        "thiserror",
    ];
    assert_eq!(direct(&metadata, "sync-core"), expected.map(str::to_owned).into());
    let linked = closure(&metadata, "sync-core");
    for never in
        ["tokio", "tonic", "rusqlite", "libsqlite3-sys", "getrandom", "rand", "tracing", "hyper", "libc", "mio"]
    {
        assert!(!linked.contains(never), "sync-core is linked with {never}");
    }
}

/// Effects are return values and time is an argument.
#[test]
fn the_core_names_no_clock_no_randomness_and_no_lock() {
    let never = [
        "std::time::Instant",
        "SystemTime",
        "Instant::now",
        "rand::rng",
        "thread_rng",
        "getrandom",
        "std::thread",
        "thread::",
        "Mutex",
        "RwLock",
        "OnceLock",
        "Atomic",
        "std::fs",
        "std::net",
        "std::io",
        "std::env",
        "async fn",
        "tokio",
        "println!",
        "static mut",
    ];
    for (path, text) in rust_files(&workspace().join("sync-core/src")) {
        let text = code(&text);
        for word in never {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
        // A length of time is a value; a clock is not.
        let of_time = text.match_indices("std::time::").map(|(at, _)| &text[at..]);
        for used in of_time {
            assert!(used.starts_with("std::time::Duration"), "{}: {}", path.display(), &used[..40.min(used.len())]);
        }
    }
}

/// The order stands in `lib.rs`; this reads it there.
#[test]
fn modules_of_the_core_import_only_from_those_before_them() {
    let dir = workspace().join("sync-core/src");
    let lib = fs::read_to_string(dir.join("lib.rs")).expect("sync-core/src/lib.rs");
    let docs: String = lib.lines().filter_map(|l| l.strip_prefix("//!")).collect::<Vec<_>>().join(" ");
    let stated = docs.split('`').find(|part| part.contains("->")).expect("lib.rs states an order");
    let order: Vec<&str> = stated.split("->").map(str::trim).collect();
    let declared: BTreeSet<&str> =
        lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::trim).collect();
    assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), declared, "the order names every module");

    for (path, text) in rust_files(&dir) {
        let relative = path.strip_prefix(&dir).expect("below").with_extension("");
        let module = relative.iter().next().and_then(|m| m.to_str()).expect("a module").to_owned();
        if module == "lib" {
            continue;
        }
        let own = order.iter().position(|m| *m == module).unwrap_or_else(|| panic!("{module} is not in the order"));
        for used in modules_named(&code(&text)) {
            // The generated messages stand below everything.
            if used == "pb" || used == module {
                continue;
            }
            let at = order.iter().position(|m| *m == used).unwrap_or_else(|| panic!("{used} is not in the order"));
            assert!(at < own, "{}: {module} imports from {used}", path.display());
        }
    }
}

/// First segments of every `crate::…` path, grouped imports included.
fn modules_named(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => named.extend([word(rest)]),
            Some(group) => {
                let group = &group[..group.find("};").unwrap_or(group.len())];
                let mut depth = 0;
                for part in group.split_inclusive([',', '{', '}']) {
                    if depth == 0 && !part.trim().is_empty() {
                        named.insert(word(part.trim()));
                    }
                    depth += part.matches('{').count();
                    depth -= part.matches('}').count().min(depth);
                }
            }
        }
    }
    named.remove("");
    named
}

/// One crate speaks SQL.
#[test]
fn only_the_store_names_sqlite() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let names = package.dependencies.iter().any(|d| d.name.contains("sqlite"));
        assert_eq!(names, package.name.as_str() == "sync-store", "{}", package.name);
    }
    for name in CRATES.iter().filter(|n| !["sync-store", "tests"].contains(n)) {
        for (path, text) in crate_files(name) {
            assert!(!code(&text).contains("rusqlite"), "{} names rusqlite", path.display());
        }
    }
}

/// The node cannot decrypt: what could is not in the program.
#[test]
fn the_node_links_nothing_that_can_read() {
    let linked = closure(&metadata(), "sync-node");
    for never in ["sync-e2ee", "client-sdk", "hpke", "chacha20poly1305", "bip39", "argon2"] {
        assert!(!linked.contains(never), "sync-node is linked with {never}");
    }
    for needed in ["sync-core", "sync-store", "sync-proto"] {
        assert!(linked.contains(needed), "the closure is read wrongly: no {needed}");
    }
}

/// What the command line can do, every application can do.
#[test]
fn the_cli_stands_on_the_sdk_alone() {
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    let used: Vec<String> = direct(&metadata, "cli").intersection(&ours).cloned().collect();
    assert_eq!(used, ["client-sdk"]);
}

/// The arrows between our crates.
#[test]
fn dependencies_point_downwards() {
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    let expected: [(&str, &[&str]); 8] = [
        ("sync-core", &[]),
        ("sync-host", &["sync-core"]),
        ("sync-proto", &["sync-core"]),
        ("sync-e2ee", &["sync-core"]),
        ("sync-store", &["sync-core"]),
        ("sync-node", &["sync-core", "sync-host", "sync-proto", "sync-store"]),
        ("client-sdk", &["sync-core", "sync-e2ee", "sync-host", "sync-proto", "sync-store"]),
        ("cli", &["client-sdk"]),
    ];
    for (name, expected) in expected {
        let used: Vec<String> = direct(&metadata, name).intersection(&ours).cloned().collect();
        assert_eq!(used, expected, "{name}");
    }
}

/// A shell is a function of the host that it was given: that is what a simulated world rests on.
#[test]
fn shells_ask_the_machine_for_nothing_by_themselves() {
    let never = [
        "SystemTime",
        "Instant::now",
        "clock_gettime",
        "rand::rng",
        "rand::random",
        "thread_rng",
        "TcpStream::connect",
        "spawn_blocking",
        "block_in_place",
        "thread::spawn",
        "RandomState",
        "HashMap",
    ];
    for name in ["client-sdk", "sync-node"] {
        for (path, text) in rust_files(&workspace().join(name).join("src")) {
            let text = code(text.split("#[cfg(test)]").next().unwrap_or_default());
            // Tokio's clock is the runtime's, which a simulated world moves.
            let text = text.replace("tokio::time::Instant::now", "");
            for word in never {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
            let selects = text.matches("select! {").count();
            assert_eq!(selects, text.matches("biased;").count(), "{}: an order that chance decides", path.display());
        }
    }
}

/// Opening the effects of a decision is the store's alone: memory is never ahead of disk.
#[test]
fn only_the_store_opens_a_decision() {
    let mut named_by = BTreeSet::new();
    for name in CRATES.iter().filter(|n| **n != "tests") {
        if crate_files(name).iter().any(|(_, text)| code(text).contains("after_commit")) {
            named_by.insert(*name);
        }
    }
    assert_eq!(named_by, BTreeSet::from(["sync-core", "sync-store"]));
}

/// The readers of sources above see what they should.
#[test]
fn paths_are_read_from_sources() {
    let source = "use crate::{acl::{AclState, x}, pb, log};\nfn f() -> crate::ids::Seq { super::g() } // crate::token";
    let expected = ["acl", "ids", "log", "pb"].map(str::to_owned);
    assert_eq!(modules_named(&code(source)), expected.into());
}
