//! Much of everything: one long tree, many trees, readers while it streams. Memory is bounded; how long it takes is printed.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use client_sdk::{ChangeCursor, InviteOptions, NewTree, Place, Role, Space, TreeId, TreeStep, TreeWrite, WriteRule};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, binary, join, put_rows, rows};
use sync_tests::process::ClientProcess;
use sync_tests::spoil::{mend, spoil};

const CHANGE_BYTES: usize = 8 << 10;
/// Of more than 80 MiB of content, and ten times that with all of S79.
const TOLD_MEMORY_MAX: usize = 64 << 20;
const CHUNK: usize = 1_000;

/// `HEADWATER_LONG_TREE=100000` makes it as long as S79 says.
fn long_tree_changes() -> usize {
    std::env::var("HEADWATER_LONG_TREE").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

/// One at a time: each counts the memory of the process, which has all of them when they run as one program.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Memory that this process holds, bytes. Pages of files are not counted, as those of a database that are mapped: they are the
/// machine's to take.
fn held() -> Outcome<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: Vec<usize> = statm.split_whitespace().take(3).map(str::parse).collect::<Result<_, _>>()?;
    let [_, resident, of_files] = pages[..] else { return Err("statm has seven numbers".into()) };
    Ok((resident - of_files) * 4096)
}

/// S79: one long tree is told page by page, from the beginning and from the middle, and its reader holds no content.
#[tokio::test(flavor = "multi_thread")]
async fn s79_a_long_tree_is_told_in_bounded_memory() -> Outcome {
    let _alone = ALONE.lock().await;
    let count = long_tree_changes();
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Long").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    let started = Instant::now();
    let tree = write_long(&space, count).await?;
    space.await_synced_within(PATIENCE).await?;
    joined.await_synced_within(PATIENCE * 10).await?;
    eprintln!("written and synced: {count} changes in {:?}", started.elapsed());

    let followed = joined.tree(tree)?.ok_or("synced")?;
    let before = held()?;
    let started = Instant::now();
    let (mut feed, mut told, mut middle, mut most) = (followed.feed(), 0, ChangeCursor::START, 0);
    while let Some(step) = feed.next_now()? {
        match step.step {
            TreeStep::Replay(_) => assert_eq!(told, 0, "from the beginning, once"),
            TreeStep::Change { change, place, .. } => {
                assert_eq!(place, Place::Append, "in the order of the tree");
                let (_, payload) = change.content.ok_or("a member reads it")?;
                assert!(payload.starts_with(format!("{told}:").as_bytes()), "{told}");
                told += 1;
            }
            unexpected @ (TreeStep::Pending { .. } | TreeStep::Withdrawn { .. } | TreeStep::Purged) => {
                return Err(format!("{unexpected:?}").into());
            }
        }
        if told == count / 2 {
            middle = step.cursor;
        }
        if told % 1_000 == 0 {
            most = most.max(held()?.saturating_sub(before));
        }
    }
    eprintln!("told in {:?}; {} KiB more memory than {} KiB at most", started.elapsed(), most >> 10, before >> 10);
    assert_eq!(told, count);
    assert!(most < TOLD_MEMORY_MAX, "{} KiB for {} KiB of content", most >> 10, (count * CHANGE_BYTES) >> 10);

    // From the middle of the replay, in a feed of its own; and then what comes.
    let mut resumed = followed.changes_from(middle.to_string().parse()?);
    let mut rest = 0;
    while resumed.next_now()?.is_some() {
        rest += 1;
    }
    assert_eq!(rest, count - count / 2);
    let last = vec![TreeWrite { parents: None, payload: "last".into() }];
    space.append(tree, "line".to_owned(), last).await?;
    let step = tokio::time::timeout(PATIENCE, resumed.next()).await??.ok_or("the client is open")?.step;
    assert!(matches!(step, TreeStep::Change { place: Place::Append, .. }), "{step:?}");
    Ok(())
}

async fn write_long(space: &Space, count: usize) -> Outcome<TreeId> {
    let line = |n: usize| {
        let mut payload = format!("{n}:").into_bytes();
        payload.resize(CHANGE_BYTES, b'.');
        TreeWrite { parents: None, payload: payload.into() }
    };
    let new = NewTree { data_type: "line".to_owned(), write_rule: WriteRule::WRITERS };
    let made = space.create_tree(new, vec![line(0)]).await?;
    let mut at = 1;
    while at < count {
        let until = (at + CHUNK).min(count);
        let written = space.append(made.tree, "line".to_owned(), (at..until).map(line).collect()).await?;
        // No more than a chunk waits here at a time.
        space.await_durable_within(*written.writes.last().ok_or("a chunk has writes")?, PATIENCE).await?;
        at = until;
    }
    Ok(made.tree)
}

/// S09: whoever reads while much streams in sees no object go back, none half-written, and hears how fresh it is.
#[tokio::test(flavor = "multi_thread")]
async fn s09_reads_are_monotonic_while_objects_stream_in() -> Outcome {
    let _alone = ALONE.lock().await;
    const OBJECTS: usize = 2_000;
    const ROUNDS: u64 = 3;
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Stream").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    let writer = tokio::spawn(async move {
        for round in 1..=ROUNDS {
            for from in (0..OBJECTS).step_by(100) {
                let chunk = rows("row", from..from + 100, |_| json!({ "a": round, "b": round, "c": round }));
                space.objects().put_many(chunk).await?;
            }
        }
        space.await_synced_within(PATIENCE).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut reads = 0;
    let started = Instant::now();
    while seen.len() < OBJECTS || seen.values().any(|round| *round < ROUNDS) {
        assert!(started.elapsed() < PATIENCE * 2, "after {reads} reads: {seen:?}");
        let listed = joined.objects().list("row")?;
        assert!(listed.len() >= seen.len(), "an object went away");
        for object in listed {
            // A list reads the store, a get the live tree: neither shows less than the other did before.
            for shown in [Some(object.clone()), joined.objects().get("row", &object.id)?] {
                let Some(shown) = shown else { continue };
                let round = shown.fields["a"].as_u64().ok_or("a number")?;
                assert!(shown.fields["b"] == round && shown.fields["c"] == round, "torn: {shown:?}");
                let before = seen.insert(shown.id.clone(), round).unwrap_or_default();
                assert!(round >= before, "{} went from {before} back to {round}", shown.id);
            }
        }
        assert!(joined.fresh_within().is_some(), "the node is there, and was heard");
        reads += 1;
        tokio::task::yield_now().await;
    }
    writer.await??;
    eprintln!("{reads} lists");
    Ok(())
}

/// S78: a space of 10,000 trees, joined by a process that has nothing: everything comes, its own profile soon, in bounded memory.
#[tokio::test(flavor = "multi_thread")]
async fn s78_a_cold_join_of_many_trees_is_bounded() -> Outcome {
    let _alone = ALONE.lock().await;
    const TREES: usize = 10_000;
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let own = member.own();
    let space = admin.create_space("Large").await?;
    put_rows(&space, "row", TREES, |n| json!({ "n": n, "text": "x".repeat(100) })).await?;
    // The newest of all, as it was in the field.
    space.objects().put("profile", &own, json!({ "name": "Member" })).await?;
    space.await_synced_within(PATIENCE).await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let dir = member.shut().await;
    let told = Command::new(binary("cold")).arg(dir.path()).arg(&token).output()?;
    let told = String::from_utf8(told.stdout)?;
    let words: Vec<&str> = told.split_whitespace().collect();
    let ["profile", profile_ms, "synced", synced_ms, objects, "memory", peak_kib] = words[..] else {
        return Err(format!("the process said {told:?}").into());
    };
    eprintln!("own profile after {profile_ms} ms, synced after {synced_ms} ms, {peak_kib} KiB at most");
    assert_eq!(objects.parse::<usize>()?, TREES);
    assert!(peak_kib.parse::<usize>()? < 256 << 10, "{peak_kib} KiB");
    Ok(())
}

/// S20: killed at any moment while entries stream in, a client never said "synced" over objects that lag behind its log, and never
/// opens with any that do.
#[tokio::test(flavor = "multi_thread")]
async fn s20_the_projection_never_lags_behind_the_log() -> Outcome {
    let _alone = ALONE.lock().await;
    const ROWS: usize = 20;
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Stream").await?;
    let id = join(&space, &member, Role::Reader).await?.id();
    let mut dir = member.shut().await;
    let mut dice = ChaCha8Rng::seed_from_u64(20);
    let mut count = 0;
    let mut heard = 0;
    for round in 0..6 {
        let mut child =
            Command::new(binary("follower")).arg(dir.path()).arg(id.to_string()).stdout(Stdio::piped()).spawn()?;
        let until = Instant::now() + Duration::from_millis(dice.random_range(300..1_500));
        while Instant::now() < until {
            space.objects().put_many(rows("row", 0..ROWS, |_| json!({ "n": count }))).await?;
            count += 1;
        }
        child.kill()?;
        let said = child.wait_with_output()?.stdout;
        let said = String::from_utf8(said)?;
        // The last line may be cut.
        let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        node.kill();
        let again = TestClient::open(dir).await;
        let replica = again.space(id)?;
        let mut sum = 0;
        for row in replica.objects().list("row")? {
            let tree = replica.tree(row.tree)?.ok_or("listed")?;
            let logged = tree.changes()?;
            let n = row.fields["n"].as_u64().ok_or("a number")?;
            assert_eq!(n + 1, logged.len() as u64, "round {round}: {} of {} changes are shown", n + 1, logged.len());
            sum += n;
        }
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["synced", seq, shown] = words[..] else { return Err(format!("{line:?}").into()) };
            assert!(seq.parse::<u64>()? <= replica.status()?.seq, "round {round}: said {line:?}");
            assert!(shown.parse::<u64>()? <= sum, "round {round}: said {line:?}, and shows {sum}");
            heard += 1;
        }
        dir = again.shut().await;
        node.restart();
    }
    eprintln!("{count} batches, said to be synced {heard} times");
    assert!(heard > 0, "nothing was said");
    Ok(())
}

/// `HEADWATER_MISSING=100000` makes it as many as S22 says.
fn missing_changes() -> usize {
    std::env::var("HEADWATER_MISSING").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

/// What a client may allocate, bytes; mapped pages of files are not counted here either.
const DATA_MAX: usize = 256 << 20;

/// S22: so many changes came without their content, to a process: it asks for each, again and again, and would end if it had to
/// hold more memory than it may; when the node has them again all of them come.
#[tokio::test(flavor = "multi_thread")]
async fn s22_many_that_are_missing_are_asked_for_in_bounded_memory() -> Outcome {
    let _alone = ALONE.lock().await;
    let count = missing_changes();
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Many").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    let id = joined.id();
    drop(joined);
    let dir = member.shut().await;
    put_rows(&space, "item", count, |n| json!({ "n": n })).await?;
    let trees = (0..count).map(|n| space.objects().tree_id("item", &n.to_string())).collect::<Result<Vec<_>, _>>()?;
    drop(space);
    let _admin = admin.shut().await;
    let lost = spoil(&mut node, id, &trees).await;
    node.restart();
    let began = Instant::now();
    let limit = format!("--data={DATA_MAX}");
    let mut process = ClientProcess::start_under(&["prlimit", &limit], dir.path(), id).await?;
    // A no that names them comes when each was asked for, and the node had it not.
    let no = process.ask_within("synced", PATIENCE * 10).await?;
    assert_eq!(no["error"], "NODE_FAULT", "{no}");
    let status = process.ask("status").await?;
    let counts = ["missing", "wanted", "failing"].map(|of| status["ok"][of].as_u64());
    assert_eq!(counts, [Some(count as u64); 3], "none is forgotten");
    let asked = began.elapsed();
    mend(&mut node, id, lost).await;
    node.restart();
    let mut yes = process.ask_within("synced", PATIENCE * 10).await?;
    while yes["error"] == "NODE_FAULT" && began.elapsed() < PATIENCE * 20 {
        // Those that were asked for before are asked for again by and by.
        process.ask_within("changed", PATIENCE).await?;
        yes = process.ask_within("synced", PATIENCE * 10).await?;
    }
    assert!(yes["ok"].is_u64(), "{yes}");
    assert_eq!(process.ask("items").await?["ok"].as_array().map(Vec::len), Some(count), "no loss");
    eprintln!("{count} asked for in {asked:?}, all there after {:?}", began.elapsed());
    Ok(())
}
