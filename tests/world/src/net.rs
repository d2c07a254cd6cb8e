//! The network of a world: connections as pipes, with delays from the seed and cuts on call.
//!
//! A way leads from one machine to another, and each direction can be cut by itself. As with TCP, a cut loses nothing: what is
//! on its way waits until the way is open again, or until an end gives the connection up. What loses whole messages is a
//! [`crate::line`]. A machine that is killed resets its
//! connections; one that loses power says nothing until it is started again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sync_host::Stream;
use sync_node::Arrived;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep};

use crate::line::{self, Garble, Line};

/// Bytes on their way in one direction of a connection, beyond which a writer waits.
const IN_FLIGHT_MAX: usize = 256 << 10;

/// How long what is sent is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    pub min: Duration,
    pub max: Duration,
}

impl Latency {
    /// As on a good line.
    pub const CALM: Self = Self { min: Duration::from_micros(500), max: Duration::from_millis(2) };

    fn draw(self, rng: &mut ChaCha8Rng) -> Duration {
        let spread = u64::try_from((self.max - self.min).as_micros()).unwrap_or(u64::MAX);
        self.min + Duration::from_micros(rng.random_range(0..=spread))
    }
}

/// The network, as a cheap handle.
#[derive(Clone)]
pub(crate) struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Moves when a way opens.
    opened: watch::Sender<u64>,
}

struct State {
    rng: ChaCha8Rng,
    latency: Latency,
    /// Directions that are cut, from and to.
    cut: BTreeSet<(String, String)>,
    listeners: BTreeMap<String, Listener>,
    /// Of machines whose messages can be garbled.
    lines: BTreeMap<String, Arc<Line>>,
    pipes: BTreeMap<u64, Placed>,
    next: u64,
    /// How often each machine has sent something, or asked for a connection.
    sent: BTreeMap<String, Arc<AtomicU64>>,
}

struct Listener {
    machine: String,
    arrivals: mpsc::UnboundedSender<io::Result<Arrived>>,
}

/// A pipe and where it lies.
struct Placed {
    from: String,
    to: String,
    pipe: Weak<Pipe>,
}

/// How a machine goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Its kernel resets what was open.
    Killed,
    /// Nobody is told.
    Dark,
}

impl Net {
    pub(crate) fn new(rng: ChaCha8Rng) -> Self {
        let state = State {
            rng,
            latency: Latency::CALM,
            cut: BTreeSet::new(),
            listeners: BTreeMap::new(),
            lines: BTreeMap::new(),
            pipes: BTreeMap::new(),
            next: 0,
            sent: BTreeMap::new(),
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), opened: watch::Sender::default() }) }
    }

    /// Machine `machine` answers at `endpoint`.
    pub(crate) fn listen(&self, machine: &str, endpoint: &str) -> mpsc::UnboundedReceiver<io::Result<Arrived>> {
        let (arrivals, arriving) = mpsc::unbounded_channel();
        let listener = Listener { machine: machine.to_owned(), arrivals };
        self.lock().listeners.insert(endpoint.to_owned(), listener);
        arriving
    }

    /// Opens a connection. Waits while the way there or back is cut, as the first packet of a connection is sent again and again.
    pub(crate) async fn connect(&self, from: String, endpoint: String) -> io::Result<Stream> {
        let there = {
            let mut state = self.lock();
            state.sends(&from).fetch_add(1, Ordering::Relaxed);
            state.delay()
        };
        sleep(there).await;
        let mut opened = self.inner.opened.subscribe();
        loop {
            opened.borrow_and_update();
            if let Some(connected) = self.try_connect(&from, &endpoint) {
                let back = self.lock().delay();
                sleep(back).await;
                let line = self.line(&from);
                return connected.map(|stream| match line {
                    Some(line) => line::put_into(stream, line),
                    None => stream,
                });
            }
            // The sender lives in `self`.
            let _ = opened.changed().await;
        }
    }

    /// `None` while the way is cut.
    fn try_connect(&self, from: &str, endpoint: &str) -> Option<io::Result<Stream>> {
        let mut state = self.lock();
        let refused = || Some(Err(io::ErrorKind::ConnectionRefused.into()));
        let Some(listener) = state.listeners.get(endpoint) else { return refused() };
        let (to, arrivals) = (listener.machine.clone(), listener.arrivals.clone());
        if state.is_cut(from, &to) || state.is_cut(&to, from) {
            return None;
        }
        let there = state.pipe(from, &to);
        let back = state.pipe(&to, from);
        let theirs = End { read: there.clone(), write: back.clone(), sleep: None };
        let ours = End { read: back, write: there, sleep: None };
        let arrived = Arrived { stream: Box::new(theirs), peer: from.to_owned() };
        match arrivals.send(Ok(arrived)) {
            Ok(()) => Some(Ok(Box::new(ours) as Stream)),
            Err(_) => refused(),
        }
    }

    /// From now on, what a machine connects to is reached by way of this line.
    pub(crate) fn lay(&self, machine: &str, line: Line) {
        self.lock().lines.insert(machine.to_owned(), Arc::new(line));
    }

    /// The line of a machine that has one.
    pub(crate) fn line(&self, machine: &str) -> Option<Arc<Line>> {
        self.lock().lines.get(machine).cloned()
    }

    /// Messages of every machine come as they were sent.
    pub(crate) fn clear_lines(&self) {
        self.lock().lines.values().for_each(|line| line.garble(Garble::CLEAR));
    }

    /// How often a machine has sent something, or asked for a connection.
    pub(crate) fn sent(&self, machine: &str) -> u64 {
        self.lock().sent.get(machine).map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    pub(crate) fn set_latency(&self, latency: Latency) {
        let mut state = self.lock();
        state.latency = latency;
        state.each(|_, pipe| pipe.lock().latency = latency);
    }

    /// Holds back what goes from one machine to another.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        let mut state = self.lock();
        state.cut.insert((from.to_owned(), to.to_owned()));
        state.each(|placed, pipe| {
            if placed.from == from && placed.to == to {
                pipe.lock().flow = Flow::Held;
            }
        });
    }

    /// Opens a direction again.
    pub(crate) fn heal(&self, from: &str, to: &str) {
        let mut state = self.lock();
        state.cut.remove(&(from.to_owned(), to.to_owned()));
        state.each(|placed, pipe| {
            if placed.from == from && placed.to == to {
                pipe.let_flow();
            }
        });
        drop(state);
        self.inner.opened.send_modify(|n| *n += 1);
    }

    /// Opens every direction.
    pub(crate) fn heal_all(&self) {
        let mut state = self.lock();
        state.cut.clear();
        state.each(|_, pipe| pipe.let_flow());
        drop(state);
        self.inner.opened.send_modify(|n| *n += 1);
    }

    /// Resets every connection between two machines, as something between them does.
    pub(crate) fn sever(&self, a: &str, b: &str) {
        self.lock().each(|placed, pipe| {
            if (placed.from == a && placed.to == b) || (placed.from == b && placed.to == a) {
                pipe.end(Ending::Reset);
            }
        });
    }

    /// A machine goes away, with all its connections and what it listens on.
    pub(crate) fn vanish(&self, machine: &str, how: Gone) {
        let mut state = self.lock();
        state.listeners.retain(|_, listener| listener.machine != machine);
        state.each(|placed, pipe| {
            if placed.from == machine {
                match how {
                    Gone::Killed => pipe.end(Ending::Reset),
                    Gone::Dark => pipe.lock().flow = Flow::Dark,
                }
            } else if placed.to == machine {
                pipe.lock().reader_is_gone = true;
            }
        });
    }

    /// A machine is there again: what it had before it went dark is reset.
    pub(crate) fn come_back(&self, machine: &str) {
        self.lock().each(|placed, pipe| {
            if placed.from == machine && pipe.lock().flow == Flow::Dark {
                pipe.let_flow();
                pipe.end(Ending::Reset);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn delay(&mut self) -> Duration {
        self.latency.draw(&mut self.rng)
    }

    fn sends(&mut self, machine: &str) -> Arc<AtomicU64> {
        self.sent.entry(machine.to_owned()).or_default().clone()
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    fn pipe(&mut self, from: &str, to: &str) -> Arc<Pipe> {
        let rng = ChaCha8Rng::seed_from_u64(self.rng.next_u64());
        let sent = self.sends(from);
        let pipe = Arc::new(Pipe::new(rng, self.latency, sent));
        let placed = Placed { from: from.to_owned(), to: to.to_owned(), pipe: Arc::downgrade(&pipe) };
        self.pipes.insert(self.next, placed);
        self.next += 1;
        pipe
    }

    fn each(&mut self, mut act: impl FnMut(&Placed, &Pipe)) {
        self.pipes.retain(|_, placed| match placed.pipe.upgrade() {
            Some(pipe) => {
                act(placed, &pipe);
                true
            }
            None => false,
        });
    }
}

// ---- one direction of a connection ----------------------------------------------------------------------------------

struct Pipe(Mutex<PipeState>);

struct PipeState {
    rng: ChaCha8Rng,
    latency: Latency,
    /// Of the machine that writes.
    sent: Arc<AtomicU64>,
    /// With when each arrives; never before the one ahead of it.
    chunks: VecDeque<(Instant, Bytes)>,
    in_flight: usize,
    last: Instant,
    end: Option<(Instant, Ending)>,
    flow: Flow,
    reader_is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flows,
    /// The way is cut.
    Held,
    /// The machine that sends lost power.
    Dark,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// In good order, after all that was sent.
    Closed,
    /// At once.
    Reset,
}

impl Pipe {
    fn new(rng: ChaCha8Rng, latency: Latency, sent: Arc<AtomicU64>) -> Self {
        Self(Mutex::new(PipeState {
            rng,
            latency,
            sent,
            chunks: VecDeque::new(),
            in_flight: 0,
            last: Instant::now(),
            end: None,
            flow: Flow::Flows,
            reader_is_gone: false,
            reader: None,
            writer: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_flow(&self) {
        let mut state = self.lock();
        state.flow = Flow::Flows;
        state.wake_reader();
    }

    fn end(&self, how: Ending) {
        let mut state = self.lock();
        let at = state.arrival();
        match state.end {
            Some((_, Ending::Reset)) => {}
            Some((_, Ending::Closed)) if how == Ending::Closed => {}
            Some((_, Ending::Closed)) | None => state.end = Some((at, how)),
        }
        state.wake_reader();
        state.wake_writer();
    }
}

/// What a reader finds.
enum Found {
    Bytes,
    At(Instant),
    End(Ending),
    Nothing,
}

impl PipeState {
    fn arrival(&mut self) -> Instant {
        let at = Instant::now() + self.latency.draw(&mut self.rng);
        self.last = self.last.max(at);
        self.last
    }

    fn found(&self, now: Instant) -> Found {
        if self.flow != Flow::Flows {
            return Found::Nothing;
        }
        let reset = self.end.filter(|(_, how)| *how == Ending::Reset);
        let next = self.chunks.front().map(|(at, _)| *at);
        match (reset, next, self.end) {
            (Some((at, how)), _, _) if at <= now => Found::End(how),
            (_, Some(at), _) if at <= now => Found::Bytes,
            (_, Some(at), _) => Found::At(at),
            (_, None, Some((at, how))) if at <= now => Found::End(how),
            (_, None, Some((at, _))) => Found::At(at),
            (_, None, None) => Found::Nothing,
        }
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// One end of a connection.
struct End {
    read: Arc<Pipe>,
    write: Arc<Pipe>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.write.end(Ending::Closed);
        let mut read = self.read.lock();
        read.reader_is_gone = true;
        read.wake_writer();
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let at = {
                let mut state = self.read.lock();
                state.reader = Some(cx.waker().clone());
                match state.found(Instant::now()) {
                    Found::Bytes => {
                        take(&mut state, buf);
                        return Poll::Ready(Ok(()));
                    }
                    Found::End(Ending::Closed) => return Poll::Ready(Ok(())),
                    Found::End(Ending::Reset) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                    Found::Nothing => return Poll::Pending,
                    Found::At(at) => at,
                }
            };
            let timer = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn take(state: &mut PipeState, buf: &mut ReadBuf<'_>) {
    let now = Instant::now();
    while let Some((at, chunk)) = state.chunks.front_mut()
        && *at <= now
        && buf.remaining() > 0
    {
        let len = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..len]);
        chunk.advance(len);
        state.in_flight -= len;
        if chunk.is_empty() {
            state.chunks.pop_front();
        }
    }
    state.wake_writer();
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.write.lock();
        if state.reader_is_gone || state.end.is_some() {
            // A reset is on its way here, too. Until then the sender's kernel takes what it is given.
            return if state.end.is_some() {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            } else {
                Poll::Ready(Ok(bytes.len()))
            };
        }
        if state.in_flight >= IN_FLIGHT_MAX {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.sent.fetch_add(1, Ordering::Relaxed);
        let at = state.arrival();
        state.chunks.push_back((at, Bytes::copy_from_slice(bytes)));
        state.in_flight += bytes.len();
        state.wake_reader();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.end(Ending::Closed);
        Poll::Ready(Ok(()))
    }
}
