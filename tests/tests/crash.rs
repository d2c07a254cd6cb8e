//! `kill -9`, at any moment, of anybody: what was acknowledged is there afterwards, and both sides agree.
//!
//! `HEADWATER_ROUNDS` and `HEADWATER_SEED` choose how often and which; a failure prints both.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use client_sdk::{Client, InviteOptions, Space, SpaceId};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sync_tests::harness::{NodeProcess, PATIENCE, TestClient, binary, config};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const BATCHES: u32 = 60;
const BATCH_SIZE: u32 = 3;

/// Who is killed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Node,
    Admin,
    Member,
}

/// One round, drawn before it begins.
#[derive(Debug, Clone, Copy)]
struct Plan {
    victim: Victim,
    /// From the first acknowledgement, or else from the start of the processes.
    after_first: bool,
    delay: Duration,
    /// How long the others go on alone, before they are killed too.
    aftermath: Duration,
    /// The node goes down with the rest.
    node_too: bool,
    /// Which client is opened first afterwards.
    admin_first: bool,
}

impl Plan {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        Self {
            victim: [Victim::Node, Victim::Admin, Victim::Member][rng.random_range(0..3)],
            after_first: rng.random_bool(0.8),
            delay: Duration::from_micros(rng.random_range(0..400_000)),
            aftermath: Duration::from_micros(rng.random_range(0..150_000)),
            node_too: rng.random_bool(0.5),
            admin_first: rng.random_bool(0.5),
        }
    }
}

// ---- an import that can be killed -----------------------------------------------------------------------------------

/// What an import said before it ended.
#[derive(Debug, Default)]
struct Acknowledged {
    local: BTreeSet<u32>,
    durable: BTreeSet<u32>,
}

struct Import {
    child: Child,
    prefix: String,
    first: Receiver<()>,
    reader: JoinHandle<Acknowledged>,
}

impl Import {
    fn start(dir: &Path, space: SpaceId, prefix: String) -> Self {
        let mut child = Command::new(binary("importer"))
            .arg(dir)
            .args([space.to_string(), prefix.clone(), BATCHES.to_string(), BATCH_SIZE.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("an import starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (told, first) = channel();
        let reader = std::thread::spawn(move || {
            let mut said = Acknowledged::default();
            for line in BufReader::new(stdout).lines() {
                let line = line.expect("lines of text");
                let (what, batch) = line.split_once(' ').expect("two words");
                let batch = batch.parse().expect("a number");
                let new = match what {
                    "local" => said.local.insert(batch),
                    "durable" => said.durable.insert(batch),
                    other => panic!("{other:?}"),
                };
                assert!(new, "acknowledged twice: {line}");
                // Nobody may be listening any more.
                let _ = told.send(());
            }
            said
        });
        Self { child, prefix, first, reader }
    }

    /// Until its first acknowledgement; it may end without one.
    fn wait_for_first(&self) {
        match self.first.recv_timeout(PATIENCE) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => panic!("{} acknowledges nothing", self.prefix),
        }
    }

    fn kill(&mut self) {
        // It may be done already.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    fn end(mut self) -> Done {
        self.kill();
        Done { prefix: self.prefix, said: self.reader.join().expect("the reader ends with the pipe") }
    }
}

struct Done {
    prefix: String,
    said: Acknowledged,
}

impl Done {
    /// The ids that must be there if `batches` were acknowledged.
    fn ids<'a>(&'a self, batches: &'a BTreeSet<u32>) -> impl Iterator<Item = String> + 'a {
        batches.iter().flat_map(move |batch| (0..BATCH_SIZE).map(move |n| format!("{}-{batch}-{n}", self.prefix)))
    }
}

// ---- the rounds -----------------------------------------------------------------------------------------------------

struct World {
    node: NodeProcess,
    admin: TempDir,
    member: TempDir,
    space: SpaceId,
}

/// What came of all rounds, so that a test which tests nothing is noticed.
#[derive(Debug, Default)]
struct Tally {
    victims: BTreeSet<Victim>,
    local: usize,
    durable: usize,
    local_only: usize,
    unfinished: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() -> Outcome {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = setting("HEADWATER_SEED").unwrap_or_else(rand::random);
    let rounds = setting("HEADWATER_ROUNDS").unwrap_or(50);
    eprintln!("HEADWATER_SEED={seed} HEADWATER_ROUNDS={rounds}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new().await?;
    let mut tally = Tally::default();
    for round in 0..rounds {
        let plan = Plan::draw(&mut rng);
        eprintln!("round {round}: {plan:?}");
        world.round(round, plan, &mut tally).await.map_err(|e| format!("seed {seed}, round {round}, {plan:?}: {e}"))?;
    }
    eprintln!("{tally:?}");
    assert!(tally.durable > 0 && tally.local_only > 0 && tally.unfinished > 0, "{tally:?}");
    assert!(rounds < 20 || tally.victims.len() == 3, "{tally:?}");
    Ok(())
}

impl World {
    async fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let node = NodeProcess::start();
        let admin = TestClient::create("Admin", node.address()).await;
        let member = TestClient::create("Member", node.address()).await;
        let space = admin.create_space("Import").await?;
        let token = space.invite(InviteOptions::open()).await?.token;
        member.join(&token).await?.ready(PATIENCE).await?;
        let id = space.id();
        drop(space);
        let (TestClient { dir: admin, client: first }, TestClient { dir: member, client: second }) = (admin, member);
        first.close().await;
        second.close().await;
        Ok(Self { node, admin, member, space: id })
    }

    async fn round(&mut self, round: u64, plan: Plan, tally: &mut Tally) -> Outcome {
        let [admin, member] = self.crash(round, plan);
        tally.victims.insert(plan.victim);
        for done in [&admin, &member] {
            tally.local += done.said.local.len();
            tally.durable += done.said.durable.len();
            tally.local_only += done.said.local.difference(&done.said.durable).count();
            tally.unfinished += usize::from(done.said.local.len() < BATCHES as usize);
        }
        let sides = [(self.admin.path().to_owned(), &admin), (self.member.path().to_owned(), &member)];
        let [first, second] = if plan.admin_first { [&sides[0], &sides[1]] } else { [&sides[1], &sides[0]] };

        // One side comes back alone, and where the node is down, without it: what it has it kept itself, and what the other was
        // told is on the node's disk can only come from there.
        let (one, here) = reopen(&first.0, self.space).await?;
        has_all(&here, first.1.ids(&first.1.said.local), "after its own acknowledgement")?;
        if self.node.pid().is_none() {
            self.node.restart();
            one.reconnect();
        }
        here.await_synced_within(PATIENCE).await?;
        has_all(&here, second.1.ids(&second.1.said.durable), "although the node had signed for it")?;

        let (two, there) = reopen(&second.0, self.space).await?;
        has_all(&there, second.1.ids(&second.1.said.local), "after its own acknowledgement")?;
        there.await_synced_within(PATIENCE).await?;
        let synced = here.await_synced_within(PATIENCE).await?.receipt;
        let also = there.await_synced_within(PATIENCE).await?.receipt;
        if synced.position() != also.position() {
            return Err(format!("{:?} and {:?}", synced.position(), also.position()).into());
        }
        for done in [&admin, &member] {
            has_all(&here, done.ids(&done.said.local), "at the first after both synced")?;
            has_all(&there, done.ids(&done.said.local), "at the second after both synced")?;
        }
        let (ours, theirs) = (here.objects().list_all()?, there.objects().list_all()?);
        if ours != theirs {
            return Err(format!("{} objects here, {} there, and they differ", ours.len(), theirs.len()).into());
        }
        one.close().await;
        two.close().await;
        Ok(())
    }

    /// Both import, somebody is killed, and soon after everybody.
    fn crash(&mut self, round: u64, plan: Plan) -> [Done; 2] {
        let mut admin = Import::start(self.admin.path(), self.space, format!("admin-{round}"));
        let mut member = Import::start(self.member.path(), self.space, format!("member-{round}"));
        if plan.after_first {
            admin.wait_for_first();
            member.wait_for_first();
        }
        // The moment is what this test is about.
        std::thread::sleep(plan.delay);
        match plan.victim {
            Victim::Node => self.node.kill(),
            Victim::Admin => admin.kill(),
            Victim::Member => member.kill(),
        }
        std::thread::sleep(plan.aftermath);
        let done = [admin.end(), member.end()];
        if plan.node_too {
            self.node.kill();
        }
        done
    }
}

async fn reopen(dir: &Path, space: SpaceId) -> Result<(Client, Space), Box<dyn std::error::Error>> {
    let client = Client::open(config(dir)).await?;
    let space = client.space(space)?;
    Ok((client, space))
}

fn has_all(space: &Space, ids: impl Iterator<Item = String>, when: &str) -> Outcome {
    for id in ids {
        let object = space.objects().get("row", &id)?.ok_or_else(|| format!("{id} is lost {when}"))?;
        if object.fields.len() != 2 {
            return Err(format!("{id} is torn: {:?}", object.fields).into());
        }
    }
    Ok(())
}
