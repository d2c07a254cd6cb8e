//! Disks that are full, slow, read-only, failing, cut from power, damaged or put back to an older copy, under the node and under a
//! client. What was acknowledged is there afterwards or is missed by name; what was not is said to be so.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use client_sdk::{
    AclError, Client, NotSyncedCode, Reason, ReasonCode, Role, Space, SyncState, WriteError, WriteId, WriteState,
};
use nix::sys::signal::Signal;
use serde_json::json;
use sync_core::ids::Seq;
use sync_store::{LogRow, Store, StoreKind};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, agree, binary, config, join, object, until};
use sync_tests::machine::{self, LoopDisk, SmallDisk, Tampering};
use sync_tests::process::ClientProcess;
use sync_tests::scenario;
use tempfile::TempDir;

fn main() -> ExitCode {
    machine::main(&[
        scenario!(a_full_disk_under_the_node_refuses_writes_and_nothing_else, Mounts),
        scenario!(a_full_disk_under_a_client_refuses_writes_and_nothing_else, Mounts),
        scenario!(a_node_whose_disk_turns_read_only_stops_and_says_why, LoopDisks),
        scenario!(a_client_does_not_open_on_a_read_only_disk, LoopDisks),
        scenario!(a_slow_disk_delays_what_is_durable_and_nothing_else, Tracing),
        scenario!(a_node_whose_flush_fails_stops_and_never_signs, Tracing),
        scenario!(a_client_whose_flush_fails_says_so_and_takes_nothing_more, Tracing),
        scenario!(what_was_signed_for_survives_power_cuts, LoopDisks),
        scenario!(a_flipped_bit_at_the_node_is_withheld_and_named),
        scenario!(a_torn_end_of_the_log_loses_nothing_that_was_signed_for),
        scenario!(a_log_that_is_cut_short_is_noticed),
        scenario!(a_client_restored_from_an_old_copy_catches_up),
    ])
}

/// What must not succeed is given this long.
const A_MOMENT: Duration = Duration::from_millis(700);
/// `sync-node` ends with it when the storage failed.
const STORAGE_FAILED: i32 = 74;

async fn put(space: &Space, id: &str, n: u64) -> Outcome<WriteId> {
    Ok(space.objects().put("item", id, json!({ "n": n })).await?.ok_or("a new number is a write")?)
}

fn ids(space: &Space) -> Outcome<BTreeSet<String>> {
    Ok(space.objects().list("item")?.into_iter().map(|o| o.id).collect())
}

fn has(space: &Space, code: ReasonCode) -> Outcome<Option<String>> {
    Ok(Reason::find(&space.explain()?, code).map(|r| r.detail.clone()))
}

// ---- full -------------------------------------------------------------------------------------------------------------

/// Writes are refused by name and stay pending, acts on the ACL fail by name; who reads goes on reading, also from a session that
/// is new; and with room again everything goes out by itself.
async fn a_full_disk_under_the_node_refuses_writes_and_nothing_else() -> Outcome {
    let disk = SmallDisk::of(16 << 20)?;
    let node = NodeProcess::start_in(&disk.path().join("node"), &[]);
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    agree(&[&space, &joined]).await?;
    let id = space.id();
    drop(joined);
    let dir = member.shut().await;
    let before = put(&space, "before", 1).await?;
    space.await_durable(before).await?;

    disk.fill()?;
    let mut writes = Vec::new();
    // The log of the database may have a little room inside.
    for n in 0..40 {
        let text = "x".repeat(60_000);
        writes.extend(space.objects().put("item", &n.to_string(), json!({ "text": text })).await?);
    }
    let retrying = until(&space, || has(&space, ReasonCode::Retrying)).await?;
    assert!(retrying.contains("no room"), "{retrying}");
    let last = *writes.last().ok_or("there were writes")?;
    let refused = space.await_durable_within(last, A_MOMENT).await.expect_err("there is no room for it");
    assert!(refused.residue.iter().any(|r| r.code == ReasonCode::Retrying), "{refused:?}");
    assert!(matches!(space.write_state(last)?, Some(WriteState::Pending { .. })));
    let rotated = space.rotate_keys().await.expect_err("there is no room for it");
    assert!(matches!(&rotated, AclError::Call(_)) && rotated.code() == "STORE_FULL", "{rotated:?}");
    assert_eq!(ids(&space)?.len(), 41, "all are readable where they were written");

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    joined.await_object("item", "before", PATIENCE).await?;
    joined.await_synced().await?;
    assert!(node.pid().is_some());

    disk.make_room()?;
    for write in writes {
        space.await_durable_within(write, PATIENCE).await?;
    }
    space.rotate_keys().await?;
    agree(&[&space, &joined]).await?;
    assert_eq!(ids(&joined)?.len(), 41);
    assert_eq!(space.explain()?, []);
    Ok(())
}

/// A write is refused by name and leaves nothing behind; what is there can be read, what others write waits at the node and the
/// client says that it is behind; with room again it catches up by itself.
async fn a_full_disk_under_a_client_refuses_writes_and_nothing_else() -> Outcome {
    let disk = SmallDisk::of(48 << 20)?;
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let dir = TempDir::new_in(disk.path())?;
    let (client, _) = Client::create(config(dir.path()).node(node.address().clone()).name("Member")).await?;
    let member = TestClient { dir, client };
    let joined = join(&space, &member, Role::Writer).await?;
    let before = put(&joined, "before", 1).await?;
    joined.await_durable(before).await?;
    agree(&[&space, &joined]).await?;

    disk.fill()?;
    let text = "x".repeat(60_000);
    let mut kept = 0;
    let full = loop {
        match joined.objects().put("item", &format!("kept-{kept}"), json!({ "text": text })).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, WriteError::StoreFull) && full.code() == "STORE_FULL", "{full:?}");
    assert_eq!(joined.objects().get("item", &format!("kept-{kept}"))?, None, "nothing of it is there");
    assert_eq!(object(&joined, "item", "before")?.fields["n"], 1);
    assert_eq!(ids(&joined)?.len(), kept + 1);

    let mut others = Vec::new();
    for n in 0..40 {
        others.extend(space.objects().put("item", &format!("other-{n}"), json!({ "text": text })).await?);
    }
    space.await_durable(*others.last().ok_or("there were writes")?).await?;
    let no = joined.await_synced_within(A_MOMENT).await.expect_err("there is no room for it here");
    assert!(no.residue.iter().any(|r| r.code == ReasonCode::Behind), "{no:?}");
    // Not the same as a healthy catching up: it needs a person.
    assert!(has(&joined, ReasonCode::StoreFull)?.is_some(), "{:?}", joined.explain()?);
    assert_eq!(joined.status()?.state, SyncState::Attention);
    assert_eq!(object(&joined, "item", "before")?.fields["n"], 1);

    disk.make_room()?;
    agree(&[&space, &joined]).await?;
    assert_eq!(joined.explain()?, []);
    assert_eq!(ids(&space)?.len(), kept + 41);
    let after = put(&joined, "after", 2).await?;
    joined.await_durable(after).await?;
    Ok(())
}

// ---- read-only --------------------------------------------------------------------------------------------------------

/// The kernel found an error and takes no more writes: the node stops with its own code instead of pretending, does not start
/// again on such a disk, and says what to look at. The write waits at the client.
async fn a_node_whose_disk_turns_read_only_stops_and_says_why() -> Outcome {
    let disk = LoopDisk::of_megabytes(48)?;
    let mut node = NodeProcess::start_in(&disk.path().join("node"), &[]);
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    disk.turns_read_only()?;
    let write = put(&space, "late", 1).await?;
    let (ended, mut node) = tokio::task::spawn_blocking(move || (node.ended(), node)).await?;
    assert_eq!(ended.code(), Some(STORAGE_FAILED));
    until(&space, || has(&space, ReasonCode::NoNode)).await?;
    assert!(matches!(space.write_state(write)?, Some(WriteState::Pending { .. })));

    let again =
        Command::new(binary("sync-node")).args(["--listen", "127.0.0.1:0", "--data"]).arg(node.dir()).output()?;
    let said = String::from_utf8(again.stderr)?;
    assert_eq!(again.status.code(), Some(STORAGE_FAILED), "{said}");
    assert!(said.contains("cannot be written: check owner, permissions and mount options"), "{said}");

    disk.power_again()?;
    node.restart();
    admin.reconnect();
    space.await_durable_within(write, PATIENCE).await?;
    Ok(())
}

/// A client on a disk that takes no writes says so and opens nothing; what the disk holds is as it was.
async fn a_client_does_not_open_on_a_read_only_disk() -> Outcome {
    let disk = LoopDisk::of_megabytes(48)?;
    let node = NodeProcess::start();
    let dir = TempDir::new_in(disk.path())?;
    let (client, _) = Client::create(config(dir.path()).node(node.address().clone()).name("Ada")).await?;
    let space = client.create_space("Club").await?;
    let write = put(&space, "milk", 1).await?;
    space.await_durable(write).await?;
    let id = space.id();
    drop(space);
    client.close().await;

    disk.turns_read_only()?;
    let refused = Client::open(config(dir.path())).await.expect_err("nothing can be written here");
    assert_eq!(refused.code(), "STORE_UNUSABLE", "{refused:?}");
    let text = machine::causes(&refused);
    assert!(text.contains("check owner, permissions and mount options"), "{text}");

    disk.power_again()?;
    let client = Client::open(config(dir.path())).await?;
    let space = client.space(id)?;
    assert_eq!(object(&space, "item", "milk")?.fields["n"], 1);
    space.await_synced().await?;
    client.close().await;
    // Before the disk under it goes.
    drop((space, dir));
    Ok(())
}

// ---- slow and failing -------------------------------------------------------------------------------------------------

/// Each flush takes its time: nothing is called durable before it, reading and writing here do not wait for it, and others who read
/// at the node do not either.
async fn a_slow_disk_delays_what_is_durable_and_nothing_else() -> Outcome {
    const FLUSH: Duration = Duration::from_millis(800);
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    for n in 0..100 {
        put(&space, &n.to_string(), n).await?;
    }
    agree(&[&space, &joined]).await?;
    let id = space.id();
    drop(joined);
    let dir = member.shut().await;

    let pid = node.pid().ok_or("the node runs")?;
    let slow = Tampering::with(pid, "fdatasync,fsync", &format!("delay_enter={}", FLUSH.as_micros()))?;
    let began = Instant::now();
    let write = put(&space, "slow", 1).await?;
    assert!(began.elapsed() < FLUSH, "a write here waits for no disk elsewhere: {:?}", began.elapsed());
    space.await_durable(write).await?;
    assert!(began.elapsed() >= FLUSH, "signed for before the flush: {:?}", began.elapsed());

    // The node's disk is busy all the time; what is on it can be read.
    let writing = async {
        for n in 0..3 {
            let write = put(&space, "slow", 10 + n).await?;
            space.await_durable(write).await?;
        }
        Outcome::Ok(())
    };
    let reading = async {
        let member = TestClient::open(dir).await;
        let joined = member.space(id)?;
        joined.await_object("item", "slow", PATIENCE).await?;
        Outcome::Ok(member)
    };
    let ((), member) = tokio::try_join!(writing, reading)?;
    drop(slow);
    agree(&[&space, &member.space(id)?]).await
}

/// A flush fails: the node never signs for what it cannot know, never tries a second time on the same handle, and ends with its own
/// code. The same write after the restart is safe, whether it was kept or not.
async fn a_node_whose_flush_fails_stops_and_never_signs() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.await_synced().await?;
    let pid = node.pid().ok_or("the node runs")?;
    // Only the first fails: a second would succeed, and lie.
    let failing = Tampering::with(pid, "fdatasync,fsync", "error=EIO:when=1")?;
    let write = put(&space, "doubtful", 1).await?;
    let (ended, mut node) = tokio::task::spawn_blocking(move || (node.ended(), node)).await?;
    assert_eq!(ended.code(), Some(STORAGE_FAILED));
    drop(failing);
    until(&space, || has(&space, ReasonCode::NoNode)).await?;
    let state = space.write_state(write)?;
    assert!(!matches!(state, Some(WriteState::Durable { .. })), "{state:?}");
    space.await_durable_within(write, A_MOMENT).await.expect_err("nobody signed for it");

    node.restart();
    admin.reconnect();
    space.await_durable_within(write, PATIENCE).await?;
    let tree = space.objects().tree_id("item", "doubtful")?;
    assert_eq!(space.tree(tree)?.ok_or("there")?.changes()?.len(), 1);
    Ok(())
}

/// The same at a client: it says that its store failed, takes nothing more, and the next start finds what was there.
async fn a_client_whose_flush_fails_says_so_and_takes_nothing_more() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let member = TestClient::create("Member", node.address()).await;
    join(&space, &member, Role::Writer).await?;
    let dir = member.shut().await;
    let mut process = ClientProcess::start(dir.path(), space.id()).await?;
    assert!(process.ask("synced 30000").await?["ok"].is_u64());
    let failing = Tampering::with(process.pid()?, "fdatasync,fsync", "error=EIO:when=1")?;
    let said = process.ask("put doubtful 1").await?;
    // The node may have signed for it before the flush here begins.
    let flushed = process.ask("flushed").await?;
    assert_eq!(flushed["error"], "STORE_FAILED", "{flushed}");
    let synced = process.ask("synced 30000").await?;
    assert_eq!(synced["error"], "STORE_FAILED", "{synced}");
    assert_eq!(synced["reasons"], json!(["STORE_FAILED"]), "{synced}");
    let status = process.ask("status").await?;
    assert_eq!(status["ok"]["reasons"][0]["code"], "STORE_FAILED", "{status}");
    let refused = process.ask("put late 1").await?;
    assert_eq!(refused["error"], "STORE_FAILED", "{refused}");
    drop((failing, process));

    let member = TestClient::open(dir).await;
    let joined = member.space(space.id())?;
    let late = joined.objects().get("item", "late")?;
    assert_eq!(late, None, "it was refused");
    if said["ok"].is_u64() {
        assert_eq!(object(&joined, "item", "doubtful")?.fields["n"], 1, "a killed process loses nothing");
    }
    agree(&[&space, &joined]).await
}

// ---- power ------------------------------------------------------------------------------------------------------------

const CUTS: u64 = 6;
/// Writes of one writer that are on their way at the same time.
const AT_ONCE: usize = 10;

/// The power goes while two clients write; the file system keeps what was flushed and nothing else. Everything that the node signed
/// for is there afterwards, and what it was only given comes again.
async fn what_was_signed_for_survives_power_cuts() -> Outcome {
    let disk = LoopDisk::of_megabytes(96)?;
    let mut node = NodeProcess::start_in(&disk.path().join("node"), &[]);
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let id = space.id();
    let mut dirs = Vec::new();
    for name in ["Reader", "One", "Two"] {
        let client = TestClient::create(name, node.address()).await;
        join(&space, &client, Role::Writer).await?;
        dirs.push(client.shut().await);
    }
    let (reader, writers) = dirs.split_first().ok_or("three")?;
    let (mut signed, mut unsigned) = (0, 0);
    for cut in 0..CUTS {
        let mut loads = Vec::new();
        for (n, dir) in writers.iter().enumerate() {
            let client = Client::open(config(dir.path())).await?;
            client.connected(PATIENCE).await?;
            loads.push(tokio::spawn(load(client, id, format!("{cut}-{n}"))));
        }
        // At another moment each time: that is what this test is about.
        tokio::time::sleep(Duration::from_millis(300 + 170 * cut)).await;
        disk.lose_power()?;
        node.kill();
        let mut durable = BTreeSet::new();
        for load in loads {
            let done = load.await??;
            unsigned += done.others;
            durable.extend(done.durable);
        }
        signed += durable.len();
        disk.power_again()?;
        node.restart();

        // One who wrote nothing: what it finds, the node has.
        let reading = Client::open(config(reader.path())).await?;
        let read = reading.space(id)?;
        read.await_synced_within(PATIENCE).await?;
        let lost: Vec<_> = durable.difference(&ids(&read)?).cloned().collect();
        assert!(lost.is_empty(), "cut {cut}: signed for, and lost: {lost:?}");
        for dir in writers {
            let client = Client::open(config(dir.path())).await?;
            let written = client.space(id)?;
            agree(&[&read, &written]).await?;
            assert_eq!((written.status()?.pending, written.status()?.refused), (0, 0));
            drop(written);
            client.close().await;
        }
        drop(read);
        reading.close().await;
    }
    eprintln!("{signed} were signed for in {CUTS} rounds, {unsigned} were not");
    assert!(signed > 0 && unsigned > 0, "the cuts came in the middle: {signed}, {unsigned}");
    // Before the disk under it goes.
    node.kill();
    Ok(())
}

/// What a writer knows at its end.
struct Done {
    durable: BTreeSet<String>,
    others: usize,
}

/// Writes until nobody signs any more.
async fn load(client: Client, space: client_sdk::SpaceId, prefix: String) -> Outcome<Done> {
    let space = client.space(space)?;
    let mut writes = Vec::new();
    loop {
        let id = format!("{prefix}-{}", writes.len());
        let write = put(&space, &id, 1).await?;
        writes.push((id, write));
        if writes.len() % AT_ONCE == 0 && space.await_durable_within(write, A_MOMENT * 2).await.is_err() {
            break;
        }
    }
    let mut durable = BTreeSet::new();
    let all = writes.len();
    for (id, write) in writes {
        if matches!(space.write_state(write)?, Some(WriteState::Durable { .. })) {
            durable.insert(id);
        }
    }
    let others = all - durable.len();
    drop(space);
    client.close().await;
    Ok(Done { durable, others })
}

// ---- damage -----------------------------------------------------------------------------------------------------------

/// Flips one bit in the middle of where `bytes` stand in a file.
fn flip(file: &Path, bytes: &[u8]) -> Outcome {
    let all = fs::read(file)?;
    let found = all.windows(bytes.len()).position(|window| window == bytes);
    let at = found.ok_or("the bytes are not in the file")? + bytes.len() / 2;
    Ok(OpenOptions::new().write(true).open(file)?.write_all_at(&[all[at] ^ 1], at.try_into()?)?)
}

/// Stops a node in good order and gives the log of a space as it stands in its file.
async fn stopped_log(node: &mut NodeProcess, space: client_sdk::SpaceId) -> Outcome<Vec<LogRow>> {
    node.signal(Signal::SIGTERM);
    tokio::task::block_in_place(|| assert!(node.ended().success()));
    let store = Store::open(&node.dir().join("store"), StoreKind::Node)?;
    let rows = store.read(|tx| tx.entries(space, Seq::ZERO, 1000, usize::MAX))?;
    store.close().await;
    Ok(rows)
}

/// A bit of a stored ciphertext flips, which the database does not notice: the node sends the change without it, and a member who
/// needs it says what is missing and whose fault it is. Nothing else is held up, and who has it keeps it.
async fn a_flipped_bit_at_the_node_is_withheld_and_named() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    let id = space.id();
    drop(joined);
    let dir = member.shut().await;
    for n in 0..5 {
        put(&space, &n.to_string(), n).await?;
    }
    space.await_synced().await?;
    let rows = stopped_log(&mut node, id).await?;
    let tree = space.objects().tree_id("item", "3")?;
    let of_three = rows.iter().filter(|row| row.tree == Some(tree)).find_map(|row| row.record.payload.clone());
    flip(&node.dir().join("store").join("headwater.db"), &of_three.ok_or("a change has a payload")?)?;
    node.restart();

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    let no = joined.await_synced_within(PATIENCE).await.expect_err("one change is missing");
    assert_eq!(no.code, NotSyncedCode::NodeFault, "{no:?}");
    let codes: Vec<_> = no.residue.iter().map(|r| r.code).collect();
    assert_eq!(codes, [ReasonCode::ContentMissing], "{no:?}");
    assert!(no.residue[0].scope.contains(&tree.short().to_string()), "it names the tree: {no:?}");
    let status = joined.status()?;
    assert_eq!((status.missing, status.quarantined, status.state), (1, 0, SyncState::Attention));
    let expected = ["0", "1", "2", "4"].map(str::to_owned);
    assert_eq!(ids(&joined)?, BTreeSet::from(expected), "its neighbours are not held up");

    admin.reconnect();
    space.await_synced().await?;
    assert_eq!(object(&space, "item", "3")?.fields["n"], 3);
    let write = put(&joined, "5", 5).await?;
    joined.await_durable(write).await?;
    space.await_object("item", "5", PATIENCE).await?;
    Ok(())
}

/// The node is killed while it writes, and the end of the database's log is half of something, as a torn write leaves it.
async fn a_torn_end_of_the_log_loses_nothing_that_was_signed_for() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let mut durable = BTreeSet::new();
    for round in 0..5 {
        for n in 0..10 {
            put(&space, &format!("{round}-{n}"), n).await?;
        }
        let last = put(&space, &format!("{round}-last"), round).await?;
        space.await_durable(last).await?;
        durable.insert(format!("{round}-last"));
        node.kill();
        let wal = OpenOptions::new().append(true).open(node.dir().join("store").join("headwater.db-wal"))?;
        let mut torn = vec![0; 2000];
        rand::fill(torn.as_mut_slice());
        std::io::Write::write_all(&mut &wal, &torn)?;
        node.restart();
        admin.reconnect();
        space.await_synced_within(PATIENCE).await?;
        assert!(durable.is_subset(&ids(&space)?));
    }
    let member = TestClient::create("Member", node.address()).await;
    let joined = join(&space, &member, Role::Reader).await?;
    agree(&[&space, &joined]).await?;
    assert_eq!(ids(&joined)?.len(), 55);
    Ok(())
}

/// What was flushed is gone all the same: the database's log is cut short. The client that knows better never hears a yes that
/// leaves it out.
async fn a_log_that_is_cut_short_is_noticed() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    agree(&[&space, &joined]).await?;
    let id = space.id();
    drop(joined);
    let dir = member.shut().await;
    // Long enough for the log to be copied into the file: what is in the log then is only what comes next.
    tokio::time::sleep(A_MOMENT).await;
    let write = put(&space, "lost", 1).await?;
    space.await_durable(write).await?;
    node.kill();
    let wal = node.dir().join("store").join("headwater.db-wal");
    assert!(fs::metadata(&wal)?.len() > 0, "it was written to the log");
    OpenOptions::new().write(true).open(&wal)?.set_len(0)?;
    node.restart();

    admin.reconnect();
    match space.await_synced_within(A_MOMENT * 10).await {
        Err(no) => {
            assert_eq!(no.code, NotSyncedCode::NodeFault, "{no:?}");
            let fault = [ReasonCode::Rewound, ReasonCode::Forked, ReasonCode::Faulted];
            assert!(no.residue.iter().any(|r| fault.contains(&r.code)), "{no:?}");
            assert_eq!(object(&space, "item", "lost")?.fields["n"], 1, "it is not lost here");
        }
        // Then it is at the node again, for everybody.
        Ok(_) => {
            let member = TestClient::open(dir).await;
            member.space(id)?.await_object("item", "lost", PATIENCE).await?;
        }
    }
    Ok(())
}

// ---- old copies -------------------------------------------------------------------------------------------------------

fn copy(from: &Path, to: &Path) -> Outcome<String> {
    machine::run("cp", &["-a", from.to_str().ok_or("text")?, to.to_str().ok_or("text")?])
}

/// A client is put back to a copy of itself, made while writes of it were on their way: it catches up with what it forgot, and what
/// it sends a second time is there once.
async fn a_client_restored_from_an_old_copy_catches_up() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    agree(&[&space, &joined]).await?;
    let id = space.id();
    node.kill();
    for n in 0..5 {
        put(&joined, &format!("pending-{n}"), n).await?;
    }
    drop(joined);
    let dir = member.shut().await;
    let backup = tempfile::tempdir()?;
    copy(dir.path(), &backup.path().join("copy"))?;

    node.restart();
    admin.reconnect();
    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    agree(&[&space, &joined]).await?;
    let later = put(&joined, "later", 1).await?;
    joined.await_durable(later).await?;
    space.rotate_keys().await?;
    let other = put(&space, "of-admin", 1).await?;
    space.await_durable(other).await?;
    drop(joined);
    let dir = member.shut().await;
    fs::remove_dir_all(dir.path())?;
    copy(&backup.path().join("copy"), dir.path())?;

    let member = TestClient::open(dir).await;
    let joined = member.space(id)?;
    assert_eq!(joined.status()?.pending, 5, "as when the copy was made");
    agree(&[&space, &joined]).await?;
    assert_eq!(ids(&joined)?.len(), 7);
    assert_eq!((joined.status()?.pending, joined.status()?.refused), (0, 0));
    let tree = joined.objects().tree_id("item", "pending-3")?;
    assert_eq!(space.tree(tree)?.ok_or("there")?.changes()?.len(), 1, "it was sent twice");
    let new = put(&joined, "new", 1).await?;
    joined.await_durable(new).await?;
    agree(&[&space, &joined]).await
}
