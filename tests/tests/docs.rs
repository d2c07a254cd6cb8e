//! The documentation says what the code says: names, tables, links, commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use client_sdk::ReasonCode;
use sync_core::code::{Class, Code, NextStep};
use sync_proto::status::grpc_code;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file that git knows or would take, so that build output and caches are left out.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(workspace())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "{listed:?}");
    let names = String::from_utf8(listed.stdout).expect("names are text");
    names.lines().map(PathBuf::from).filter(|path| workspace().join(path).is_file()).collect()
}

fn markdown() -> Vec<(PathBuf, String)> {
    let pages = files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "md"));
    pages.map(|path| (path.clone(), read(path.to_str().expect("a name in UTF-8")))).collect()
}

/// The cells of every table row of a page.
fn rows(page: &str) -> Vec<Vec<String>> {
    let lines = page.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
    lines.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

// ---- tables ---------------------------------------------------------------------------------------------------------

/// One row for each code, and it says what the code does.
#[test]
fn the_error_table_is_the_code_table() {
    let page = read("docs/errors.md");
    let rows = rows(&page);
    for code in Code::ALL {
        let name = format!("`{}`", code.name());
        let found: Vec<_> = rows.iter().filter(|row| row[0] == name && row.len() == 6).collect();
        let [row] = found[..] else { panic!("{} rows for {name} in docs/errors.md", found.len()) };
        let class = match code.class() {
            Class::Bytes => "bytes",
            Class::Rule => "rule",
            Class::Admission => "admission",
            Class::Call => "call",
        };
        let step = match code.next_step() {
            NextStep::Rebuild => "rebuild",
            NextStep::Refuse => "refuse",
            NextStep::Retry => "retry",
        };
        let expected = [code.number().to_string(), class.to_owned(), grpc_name(*code), step.to_owned()];
        assert_eq!(row[1..5], expected, "{name}");
        assert!(!row[5].is_empty(), "{name} has no cause");
        assert!(page.matches(&name).count() >= 2, "{name} has no advice in \"What to do\"");
    }
    let known: BTreeSet<String> = Code::ALL.iter().map(|code| format!("`{}`", code.name())).collect();
    for row in rows.iter().filter(|row| row.len() == 6 && row[0].starts_with('`')) {
        assert!(known.contains(&row[0]), "{} is in the table and not in the code", row[0]);
    }
}

/// `FailedPrecondition` as gRPC writes it: `FAILED_PRECONDITION`.
fn grpc_name(code: Code) -> String {
    let name = format!("{:?}", grpc_code(code));
    let mut text = String::new();
    for (at, c) in name.chars().enumerate() {
        if at > 0 && c.is_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

/// Why a space is not synced: every reason has its row, with the suggestion that the program gives.
#[test]
fn every_reason_is_explained() {
    let rows = rows(&read("docs/errors.md"));
    for reason in ReasonCode::ALL {
        let name = format!("`{}`", reason.name());
        let found = rows.iter().filter(|row| row.len() == 2 && row[0] == name).count();
        assert_eq!(found, 1, "rows for the reason {name} in docs/errors.md");
    }
}

/// Every code that the SDK gives by itself.
#[test]
fn every_code_of_the_sdk_is_listed() {
    let page = read("docs/errors.md");
    let mut found = BTreeSet::new();
    for path in files().into_iter().filter(|path| path.starts_with("client-sdk/src")) {
        let source = read(path.to_str().expect("a name in UTF-8"));
        let codes = source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
        let is_code = |text: &String| text.len() > 3 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        found.extend(codes.filter(is_code));
    }
    assert!(found.len() > 40, "{found:?}");
    for code in found {
        let listed = |c: char| !(c.is_ascii_uppercase() || c == '_');
        assert!(page.split(listed).any(|word| word == code), "docs/errors.md says nothing of {code}");
    }
}

/// Every limit has its row, and every row its limit.
#[test]
fn the_limits_are_those_of_the_code() {
    let page = read("docs/guarantees.md");
    let source = read("sync-core/src/limits.rs");
    for line in source.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let name = line.split(':').next().expect("a name");
        // KEEPALIVE_INTERVAL and KEEPALIVE_TIMEOUT share a row, and so do the pauses.
        let short = name.split_once('_').map_or(name, |(_, rest)| rest);
        let named = page.contains(name) || page.contains(&format!(", _{short} |"));
        assert!(named, "docs/guarantees.md says nothing of {name}");
    }
}

/// Every act of the ACL is on the page of formats, by the name that errors give it.
#[test]
fn every_act_of_the_acl_is_described() {
    let source = read("sync-core/src/record/body.rs");
    let names = source.split("pub const fn name(&self)").nth(1).expect("AclContent::name");
    let names = &names[..names.find("\n    }\n").expect("its end")];
    let names: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    assert!(names.len() >= 17, "{names:?}");
    let page = read("docs/formats.md");
    for name in names {
        assert!(page.contains(name), "docs/formats.md says nothing of {name}");
    }
}

/// Every kind of record and every message that is signed.
#[test]
fn every_kind_of_record_is_described() {
    let page = read("docs/formats.md");
    let proto = read("proto/proto/headwater/records/v1/records.proto");
    let kinds = proto.lines().filter_map(|line| line.trim().strip_prefix("RECORD_KIND_")?.split(" = ").next());
    for kind in kinds.filter(|kind| *kind != "UNSPECIFIED") {
        let context = format!("`{}`", kind.to_ascii_lowercase().replace('_', "-"));
        assert!(page.contains(&context), "docs/formats.md says nothing of {context}");
    }
}

/// Every rpc is on the page of the protocol.
#[test]
fn every_rpc_is_described() {
    let proto = read("proto/proto/headwater/sync/v1/sync.proto");
    let page = read("docs/protocol.md");
    let names: Vec<&str> =
        proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
    assert!(names.len() >= 11, "{names:?}");
    for name in names {
        assert!(page.contains(name), "docs/protocol.md says nothing of {name}");
    }
}

/// The code map names every module, by crate.
#[test]
fn every_module_is_on_the_map() {
    let page = read("ARCHITECTURE.md");
    let section = |title: &str| {
        let from = page.split_once(&format!("\n### {title}")).unwrap_or_else(|| panic!("no section {title}")).1;
        from.split("\n## ").next().and_then(|s| s.split("\n### ").next()).expect("a section").to_owned()
    };
    let crates = [
        ("sync-core", "sync-core"),
        ("proto", "proto"),
        ("sync-e2ee", "sync-e2ee"),
        ("sync-store", "sync-store"),
        ("sync-node", "sync-node"),
        ("client-sdk", "client-sdk"),
    ];
    for (title, dir) in crates {
        let rows = rows(&section(title));
        let named: BTreeSet<&str> = rows.iter().flat_map(|row| row[0].split([',', '/'])).map(str::trim).collect();
        let src = Path::new(dir).join("src");
        for path in files().into_iter().filter(|path| path.starts_with(&src)) {
            let inside = path.strip_prefix(&src).expect("it starts so");
            let module = inside.components().next().expect("a name").as_os_str().to_str().expect("UTF-8");
            let module = module.trim_end_matches(".rs");
            if !["lib", "tests"].contains(&module) {
                assert!(named.contains(module), "ARCHITECTURE.md says nothing of {dir}'s {module}");
            }
        }
    }
}

/// Decisions are numbered without a gap, and each has its four parts.
#[test]
fn decisions_have_a_form() {
    let mut found: Vec<_> = markdown().into_iter().filter(|(path, _)| path.starts_with("docs/decisions")).collect();
    found.sort();
    for ((path, text), number) in found.iter().zip(1..) {
        assert!(text.starts_with(&format!("# {number:04}: ")), "{}", path.display());
        assert!(path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{number:04}-"))));
        for part in ["Context", "Decision", "Evidence", "Consequences"] {
            assert!(text.contains(&format!("**{part}.**")), "{}: no {part}", path.display());
        }
    }
    assert!(found.len() >= 15, "{} decisions", found.len());
}

/// One row for each word, in order.
#[test]
fn the_glossary_is_in_order() {
    let words: Vec<_> = rows(&read("docs/glossary.md")).into_iter().skip(2).map(|row| row[0].to_lowercase()).collect();
    for pair in words.windows(2) {
        assert!(pair[0] < pair[1], "{} stands before {}", pair[0], pair[1]);
    }
}

// ---- links and commands ---------------------------------------------------------------------------------------------

/// Links to files of the repository lead somewhere, to the heading they name too.
#[test]
fn every_relative_link_resolves() {
    let mut checked = 0;
    for (page, text) in markdown() {
        for target in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = match file {
                "" => page.clone(),
                file => page.parent().unwrap_or(Path::new("")).join(file),
            };
            let full = workspace().join(&path);
            assert!(full.exists(), "{}: the link {target} leads nowhere", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
                assert!(anchors(&text).contains(heading), "{}: no heading for {target}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} links were found");
}

/// Targets of `[text](target)`, outside of code blocks.
fn links(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            found.extend(rest.find(')').map(|end| rest[..end].to_owned()));
        }
    }
    found
}

/// Names that headings have as link targets.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// What a page tells people to run is there and can be run.
#[test]
fn scripts_that_are_named_exist() {
    use std::os::unix::fs::PermissionsExt as _;
    let readme = read("README.md");
    for script in ["scripts/demo", "scripts/test"] {
        assert!(readme.contains(script), "README.md does not name {script}");
    }
    for (page, text) in markdown() {
        for (at, _) in text.match_indices("scripts/") {
            let name: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || "/-_.".contains(*c)).collect();
            let name = name.trim_end_matches(['.', '/']);
            if name == "scripts" {
                continue;
            }
            let path = workspace().join(name);
            let meta = fs::metadata(&path).unwrap_or_else(|e| panic!("{} names {name}: {e}", page.display()));
            assert!(meta.permissions().mode() & 0o100 != 0 || name.ends_with(".sh"), "{name} cannot be run");
        }
    }
}

/// Flags that the page on operations names are flags of the node.
#[test]
fn the_nodes_flags_are_documented() {
    let page = read("docs/operations.md");
    let help = Command::new(sync_tests::harness::binary("sync-node")).arg("--help").output().expect("the node runs");
    let help = String::from_utf8(help.stdout).expect("help is text");
    let flags = |text: &str| -> BTreeSet<String> {
        let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect::<String>();
        text.match_indices("--").map(|(at, _)| word(&text[at..])).filter(|flag| flag.len() > 3).collect()
    };
    for flag in flags(&help).iter().filter(|flag| !["--help", "--version"].contains(&flag.as_str())) {
        assert!(page.contains(flag.as_str()), "docs/operations.md says nothing of {flag}");
    }
}

// ---- where things come from -----------------------------------------------------------------------------------------

/// Dependencies come from one registry, and no file tells cargo where that is: of its configuration there is one flag.
#[test]
fn no_file_names_a_registry_host() {
    let lock = read("Cargo.lock");
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert_eq!(sources.len(), 1, "one registry, and nothing from anywhere else: {sources:?}");
    assert!(sources.iter().all(|source| source.starts_with("\"registry+")), "{sources:?}");
    let own = Path::new("tests/tests/docs.rs");
    for path in files() {
        if path == own || path == Path::new("Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(workspace().join(&path)) else { continue };
        if path.starts_with(".cargo") {
            let settings = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            let flag = r#"rustflags = ["--cfg", "tokio_unstable"]"#;
            assert!(settings.eq(["[build]", flag]), "{} configures cargo for everybody", path.display());
        }
        for word in ["replace-with", "index-url", "CARGO_REGISTRIES"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}
