//! A real node and two real clients on machines that are functions of a seed: two runs with one seed are one run.
//!
//! Which of several waiting tasks tokio wakes first is chance, too. A build with `--cfg tokio_unstable` lets the seed decide
//! that; other builds tell the story and compare nothing.

#![expect(clippy::unwrap_used, reason = "what fails here ends the test")]

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use client_sdk::host::{Connecting, Host, Machine, Stream, Workers};
use client_sdk::{Client, ClientConfig, InviteOptions, MemoryVault, NodeAddress, Space, Update};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use sync_core::session::Moment;
use sync_node::{Arrived, Node, NodeConfig, NodeKeys};
use sync_store::memory::Disk;
use sync_store::{Store, StoreKind};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a simulated connection holds in each direction, bytes.
const PIPE_BYTES: usize = 64 << 10;
/// The wall clock of the world begins here.
const WALL_MS: u64 = 1_800_000_000_000;

/// Everything that could be seen from outside, in the order in which it happened.
#[derive(Clone, Default)]
struct Transcript(Arc<Mutex<String>>);

impl Transcript {
    fn note(&self, began: tokio::time::Instant, line: impl std::fmt::Display) {
        let mut text = self.0.lock().unwrap();
        writeln!(text, "{} {line}", began.elapsed().as_micros()).unwrap();
    }
}

struct Simulated {
    name: &'static str,
    began: tokio::time::Instant,
    random: Mutex<StdRng>,
    node: mpsc::UnboundedSender<Arrived>,
    transcript: Transcript,
}

impl Machine for Simulated {
    fn now(&self) -> Moment {
        Moment(self.began.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS + u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap().fill_bytes(bytes);
    }

    fn connect(&self, _: &str) -> Connecting {
        let (here, there) = tokio::io::duplex(PIPE_BYTES);
        let stream = Watched { stream: here, name: self.name, began: self.began, transcript: self.transcript.clone() };
        let brought = self.node.send(Arrived { stream: Box::new(there), peer: self.name.to_owned() });
        Box::pin(async move {
            brought.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn workers(&self) -> Workers {
        Workers::Inline
    }
}

/// Notes every byte that passes.
struct Watched {
    stream: DuplexStream,
    name: &'static str,
    began: tokio::time::Instant,
    transcript: Transcript,
}

impl Watched {
    fn note(&self, what: &str, bytes: &[u8]) {
        let hash = blake3::hash(bytes);
        self.transcript.note(self.began, format_args!("{} {what} {} {hash}", self.name, bytes.len()));
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.note("reads", &buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            self.note("writes", &buf[..written]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct World {
    seed: u64,
    began: tokio::time::Instant,
    node: mpsc::UnboundedSender<Arrived>,
    transcript: Transcript,
}

impl World {
    fn host(&self, name: &'static str, number: u64) -> Host {
        Host::new(Simulated {
            name,
            began: self.began,
            random: Mutex::new(StdRng::seed_from_u64(self.seed * 100 + number)),
            node: self.node.clone(),
            transcript: self.transcript.clone(),
        })
    }

    fn note(&self, line: impl std::fmt::Display) {
        self.transcript.note(self.began, line);
    }

    /// Writes the feed of a space into the transcript for as long as it lasts.
    fn listen(&self, name: &'static str, space: &Space) {
        let (mut events, transcript, began) = (space.events(), self.transcript.clone(), self.began);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                transcript.note(began, format_args!("{name} {event:?}"));
            }
        });
    }
}

/// A client that can be opened again.
struct Person {
    host: Host,
    vault: MemoryVault,
    disk: Disk,
    node: NodeAddress,
}

impl Person {
    fn config(&self) -> ClientConfig {
        let store = Store::open_on(&self.disk, StoreKind::Client).unwrap();
        ClientConfig::on(self.host.clone(), self.vault.clone(), store).node(self.node.clone())
    }
}

/// A space is made, somebody joins, both write at once, one goes and comes back; both prove that they are synced.
async fn run(seed: u64) -> String {
    let (node, incoming) = mpsc::unbounded_channel();
    let world = World { seed, began: tokio::time::Instant::now(), node, transcript: Transcript::default() };
    let keys = NodeKeys { authority: [1; 32], node: [2; 32] };
    let disk = Disk::new("node");
    let store = Store::open_on(&disk, StoreKind::Node).unwrap();
    let incoming = UnboundedReceiverStream::new(incoming).map(Ok);
    let config = NodeConfig { listen: "node:4710".to_owned(), ..NodeConfig::default() };
    let node = Node::start_on(world.host("node", 0), store, &keys, incoming, config).await.unwrap();
    let person = |name, number| Person {
        host: world.host(name, number),
        vault: MemoryVault::default(),
        disk: Disk::new(name),
        node: node.address(),
    };
    let (alice, bob) = (person("alice", 1), person("bob", 2));

    let (a, _) = Client::create(alice.config().name("Alice")).await.unwrap();
    let (b, _) = Client::create(bob.config().name("Bob")).await.unwrap();
    let ours = a.create_space("Shopping").await.unwrap();
    world.listen("alice", &ours);
    let invite = ours.invite(InviteOptions::open()).await.unwrap();
    let theirs = b.join(&invite.token).await.unwrap().ready(PATIENCE).await.unwrap().remove(0);
    world.listen("bob", &theirs);
    for n in 0..20 {
        ours.objects().put("item", &format!("a{n}"), json!({ "n": n })).await.unwrap();
        theirs.objects().update("item", "shared", Update::new().increment("n", 1)).await.ok();
        theirs.objects().put("item", &format!("b{n}"), json!({ "n": n })).await.unwrap();
    }
    synced(&world, &ours, &theirs).await;

    b.close().await;
    ours.objects().put("item", "while-away", json!({ "n": 1 })).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let b = Client::open(bob.config()).await.unwrap();
    let theirs = b.space(ours.id()).unwrap();
    theirs.objects().put("item", "back", json!({ "n": 2 })).await.unwrap();
    synced(&world, &ours, &theirs).await;
    assert_eq!(ours.objects().list_all().unwrap(), theirs.objects().list_all().unwrap());
    world.note(format_args!("{:?}", ours.objects().list_all().unwrap()));
    a.close().await;
    b.close().await;
    world.note(format_args!("{:?}", node.shutdown().await));
    world.transcript.0.lock().unwrap().clone()
}

async fn synced(world: &World, ours: &Space, theirs: &Space) {
    theirs.await_synced_within(PATIENCE).await.unwrap();
    let receipt = ours.await_synced_within(PATIENCE).await.unwrap().receipt;
    let other = theirs.await_synced_within(PATIENCE).await.unwrap().receipt;
    assert_eq!(receipt.body().chain, other.body().chain);
    world.note(format_args!("synced at {} {}", receipt.body().seq, receipt.body().chain));
}

fn transcript(seed: u64) -> String {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    runtime.enable_time().start_paused(true).build().unwrap().block_on(run(seed))
}

#[test]
fn a_node_and_its_clients_need_nothing_of_this_machine() {
    let text = transcript(1);
    assert_eq!(text.matches("synced at").count(), 2, "{text}");
}

#[cfg(tokio_unstable)]
#[test]
fn two_runs_with_one_seed_are_one_run() {
    let began = std::time::Instant::now();
    let first = transcript(1);
    eprintln!("{} lines in {:?}", first.lines().count(), began.elapsed());
    for run in 0..20 {
        let again = transcript(1);
        for (n, (one, other)) in first.lines().zip(again.lines()).enumerate() {
            assert_eq!(one, other, "line {n} of run {run}");
        }
        assert_eq!(first.len(), again.len());
    }
    assert_ne!(first, transcript(2), "the seed decides");
}
