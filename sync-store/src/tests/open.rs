//! What stands in the way of opening, and what survives a killed process.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{OpenError, SCHEMA_VERSION, Store, StoreError, StoreKind, WriteError};

const ROLE: &str = "HEADWATER_STORE_TEST_ROLE";
const DIR: &str = "HEADWATER_STORE_TEST_DIR";

/// Not a test of its own: other tests run it in processes of their own.
#[test]
fn child() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Store::open(Path::new(&dir), StoreKind::Node).unwrap();
    match role.as_str() {
        "hold" => {
            say("open");
            std::io::stdin().lines().for_each(drop);
        }
        "write" => runtime.block_on(async {
            let next = store.read(|tx| tx.kv_scan("row ")).unwrap().len();
            for n in next.. {
                store.write(move |tx| tx.kv_put(&format!("row {n:08}"), &[0; 300])).await.unwrap();
                say(&format!("acknowledged {n}"));
            }
        }),
        "no room for files" => runtime.block_on(async {
            store.write(|tx| tx.kv_put("small", b"")).await.unwrap();
            let error = store.write(|tx| tx.kv_put("big", &vec![0; 16 << 20])).await.unwrap_err();
            assert!(matches!(error, WriteError::OutcomeUnknown(StoreError::Io { .. })), "{error:?}");
            assert!(matches!(store.failed().await, StoreError::Io { .. }));
            let later = store.write(|tx| tx.kv_put("later", b"")).await.unwrap_err();
            assert!(matches!(later, WriteError::Failed(StoreError::Io { .. })), "{later:?}");
            say("failed as it should");
        }),
        other => panic!("no role {other}"),
    }
}

/// Beside the harness, which would keep printed lines.
fn say(line: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {line}").unwrap();
    out.flush().unwrap();
}

fn test_command(shell_prefix: &str, role: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{shell_prefix} exec \"$0\" --exact tests::open::child --nocapture"))
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn spawn(role: &str, dir: &Path) -> Child {
    test_command("", role, dir).spawn().unwrap()
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let out = BufReader::new(child.stdout.take().unwrap());
    // The harness may leave its own words on the line.
    out.lines().map_while(Result::ok).filter_map(|l| l.split_once("child: ").map(|(_, said)| said.to_owned()))
}

#[test]
fn a_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn("hold", dir.path());
    assert_eq!(lines(&mut child).next().as_deref(), Some("open"));
    let error = Store::open(dir.path(), StoreKind::Node).unwrap_err();
    let OpenError::InUse { path, pid } = &error else { panic!("{error:?}") };
    assert_eq!((path.as_path(), *pid), (dir.path(), Some(child.id())));
    assert!(error.to_string().contains(&child.id().to_string()));
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(dir.path(), StoreKind::Node).unwrap();
    assert!(matches!(Store::open(dir.path(), StoreKind::Node), Err(OpenError::InUse { .. })));
    drop(store);
    Store::open(dir.path(), StoreKind::Node).unwrap();
}

#[test]
fn every_acknowledged_write_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut least = 0;
    for round in 0..6 {
        let mut child = spawn("write", dir.path());
        let mut said = lines(&mut child);
        let acknowledged = said.by_ref().nth(40 + round * 37).unwrap();
        child.kill().unwrap();
        let last = said.last().unwrap_or(acknowledged);
        child.wait().unwrap();
        let last: usize = last.strip_prefix("acknowledged ").unwrap().parse().unwrap();
        let store = Store::open(dir.path(), StoreKind::Node).unwrap();
        let rows = store.read(|tx| tx.kv_scan("row ")).unwrap();
        assert!(rows.len() > last, "{} rows, {last} acknowledged", rows.len());
        assert!(rows.iter().enumerate().all(|(n, (key, _))| *key == format!("row {n:08}")), "no gaps");
        assert!(rows.len() > least);
        least = rows.len();
    }
}

#[test]
fn a_disk_error_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    // A write past the limit fails with EFBIG, which is no ENOSPC: to SQLite the disk is broken.
    let mut child = test_command("trap '' XFSZ; ulimit -f 4000;", "no room for files", dir.path()).spawn().unwrap();
    assert_eq!(lines(&mut child).collect::<Vec<_>>(), ["failed as it should"]);
    assert!(child.wait().unwrap().success());
    Store::open(dir.path(), StoreKind::Node).unwrap();
}

#[test]
fn somebody_elses_file_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(crate::DATABASE_FILE);
    std::fs::write(&file, "all my letters, in plain text").unwrap();
    assert!(matches!(Store::open(dir.path(), StoreKind::Node), Err(OpenError::Foreign { path }) if path == file));
    assert_eq!(std::fs::read(&file).unwrap(), b"all my letters, in plain text");
    std::fs::remove_file(&file).unwrap();
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE letters (text); INSERT INTO letters VALUES ('dear')").unwrap();
    drop(other);
    let bytes = std::fs::read(&file).unwrap();
    assert!(matches!(Store::open(dir.path(), StoreKind::Node), Err(OpenError::Foreign { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn a_later_schema_is_refused_only_if_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), StoreKind::Client).unwrap());
    let edit = |sql: &str| {
        let conn = rusqlite::Connection::open(dir.path().join(crate::DATABASE_FILE)).unwrap();
        conn.execute_batch(sql).unwrap();
    };
    edit("PRAGMA user_version = 7; UPDATE meta SET value = 7 WHERE name = 'written_version'");
    drop(Store::open(dir.path(), StoreKind::Client).unwrap());
    edit("UPDATE meta SET value = 6 WHERE name = 'readable_from'");
    let error = Store::open(dir.path(), StoreKind::Client).unwrap_err();
    assert!(matches!(error, OpenError::TooNew { readable_from: 6, ours: SCHEMA_VERSION, .. }), "{error:?}");
    assert!(error.to_string().contains("upgrade"));
}

#[test]
fn a_node_does_not_open_a_clients_store() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), StoreKind::Client).unwrap());
    let error = Store::open(dir.path(), StoreKind::Node).unwrap_err();
    let expected = (StoreKind::Node, StoreKind::Client);
    assert!(matches!(error, OpenError::WrongKind { expected: e, found, .. } if (e, found) == expected), "{error:?}");
    drop(Store::open(dir.path(), StoreKind::Client).unwrap());
}

#[test]
fn a_file_without_its_tables_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), StoreKind::Node).unwrap());
    let conn = rusqlite::Connection::open(dir.path().join(crate::DATABASE_FILE)).unwrap();
    conn.execute_batch("DELETE FROM meta WHERE name = 'kind'").unwrap();
    drop(conn);
    assert!(matches!(Store::open(dir.path(), StoreKind::Node), Err(OpenError::Damaged { .. })));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    // Nobody may make directories there, not even root.
    let path = Path::new("/sys/headwater-test");
    let error = Store::open(path, StoreKind::Node).unwrap_err();
    assert!(matches!(&error, OpenError::ReadOnly { path: p, .. } if p == path), "{error:?}");
}

#[test]
fn files_are_private() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("new").join("store");
    let store = Store::open(&dir, StoreKind::Node).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(store);
}

#[tokio::test]
async fn every_opening_commits_something_and_so_syncs_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let opened = || {
        drop(Store::open(dir.path(), StoreKind::Node).unwrap());
        let file = rusqlite::Connection::open(dir.path().join(crate::DATABASE_FILE)).unwrap();
        file.query_row("SELECT count FROM barrier", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let first = opened();
    assert!(opened() > first);
}
