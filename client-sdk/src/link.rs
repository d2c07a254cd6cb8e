//! The thin shell around [`Link`]: sockets, timers and tasks for what the state machine decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::session::{Input, Link, Moment, Output};
use sync_host::Host;
use sync_proto::status::Failure;
use sync_proto::v1::{self, head_updates_request::Message as Ask, head_updates_response::Message as Answer};
use sync_store::ReadTx;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::client::Shared;
use crate::connect::{Conn, DialError, dial, failure};
use crate::error::ReadError;
use crate::space::{Inbound, SpaceInner};

/// How the client stands towards its node.
#[derive(Debug, Clone)]
pub(crate) enum Connection {
    Connecting,
    Offline { cause: String, code: &'static str, attempts: u32, retry_at: Option<Moment>, since_ms: u64 },
    Online(Box<Conn>),
}

impl Connection {
    pub(crate) fn online(&self) -> Option<Conn> {
        match self {
            Self::Online(conn) => Some(Conn::clone(conn)),
            Self::Connecting | Self::Offline { .. } => None,
        }
    }

    pub(crate) fn generation(&self) -> Option<u64> {
        self.online().map(|c| c.generation())
    }
}

/// What the rest of the client asks of the shell.
pub(crate) enum Command {
    Opened(Arc<SpaceInner>),
    Closed(SpaceId),
    Input(Input),
    /// End this session and open another.
    Redial,
}

/// What the tasks around one connection report.
enum Report {
    Dialed { generation: u64, result: Result<Conn, DialError> },
    Streams { generation: u64, requests: mpsc::Sender<v1::HeadUpdatesRequest> },
    Message { generation: u64, message: Answer },
    Ended { generation: u64, cause: String },
}

struct Shell {
    shared: Arc<Shared>,
    link: Link,
    connection: watch::Sender<Connection>,
    spaces: BTreeMap<SpaceId, Arc<SpaceInner>>,
    reports: mpsc::Sender<Report>,
    generation: u64,
    requests: Option<mpsc::Sender<v1::HeadUpdatesRequest>>,
    fresh: watch::Sender<Option<Moment>>,
    last_error: Option<(String, &'static str)>,
    /// Since when there is no connection, milliseconds since 1970.
    down_since: Option<u64>,
}

/// Runs the connection of a client until it closes.
pub(crate) async fn run(
    shared: Arc<Shared>,
    connection: watch::Sender<Connection>,
    fresh: watch::Sender<Option<Moment>>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let (reports, mut reported) = mpsc::channel(16);
    let mut shell = Shell {
        shared: shared.clone(),
        link: Link::new(),
        connection,
        spaces: BTreeMap::new(),
        reports,
        generation: 0,
        requests: None,
        fresh,
        last_error: None,
        down_since: None,
    };
    loop {
        let deadline = shell.link.deadline();
        tokio::select! {
            biased;
            () = shared.cancel.cancelled() => {
                // The session's socket goes with the last clone of it.
                let _ = shell.connection.send_replace(Connection::Connecting);
                return;
            }
            command = commands.recv() => match command {
                None => return,
                Some(Command::Opened(space)) => shell.opened(space).await,
                Some(Command::Closed(space)) => {
                    shell.spaces.remove(&space);
                    shell.handle(Input::SpaceClosed { space }).await;
                }
                // A device that was revoked asks again in its own time, however many wait for it.
                Some(Command::Input(Input::Wake)) if shared.devices.is_revoked() => {}
                Some(Command::Input(input)) => shell.handle(input).await,
                Some(Command::Redial) => {
                    shell.last_error = Some(("this side began a new session".to_owned(), "REDIAL"));
                    shell.disconnected().await;
                }
            },
            Some(report) = reported.recv() => shell.report(report).await,
            () = sleep_until(&shared.host, deadline) => shell.handle(Input::Tick).await,
        }
    }
}

async fn sleep_until(host: &Host, deadline: Option<Moment>) {
    match deadline {
        None => std::future::pending().await,
        Some(at) => {
            // Never longer than a heartbeat: the timer does not run through suspend, the clock does.
            let left = at.0.saturating_sub(host.now().0).min(limits::HEARTBEAT_INTERVAL);
            tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        }
    }
}

impl Shell {
    async fn opened(&mut self, space: Arc<SpaceInner>) {
        let input = Input::SpaceOpened { space: space.id, cursor: space.cursor() };
        self.spaces.insert(space.id, space);
        self.handle(input).await;
    }

    async fn handle(&mut self, input: Input) {
        self.link.handle(input, self.shared.host.now());
        self.perform(None).await;
    }

    async fn report(&mut self, report: Report) {
        match report {
            Report::Dialed { generation, result } if generation == self.generation => match result {
                Ok(conn) => self.dialed(conn),
                Err(error) => {
                    self.last_error = Some((chain(&error), error.code()));
                    self.disconnected().await;
                }
            },
            Report::Streams { generation, requests } if generation == self.generation => {
                self.requests = Some(requests);
                self.down_since = None;
                self.handle(Input::Connected).await;
            }
            Report::Message { generation, message } if generation == self.generation => {
                self.message(message).await;
            }
            Report::Ended { generation, cause } if generation == self.generation => {
                self.last_error = Some((cause, "CONNECTION_LOST"));
                self.disconnected().await;
            }
            Report::Dialed { .. } | Report::Streams { .. } | Report::Message { .. } | Report::Ended { .. } => {}
        }
    }

    /// A session is open: now the stream that everything else waits for.
    fn dialed(&mut self, conn: Conn) {
        let (reports, generation) = (self.reports.clone(), self.generation);
        let _ = self.connection.send_replace(Connection::Online(Box::new(conn.clone())));
        let cancel = self.shared.cancel.clone();
        self.shared.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                cause = follow(conn, generation, &reports) => cause,
            };
            let _ = reports.send(Report::Ended { generation, cause: ended }).await;
        });
    }

    async fn disconnected(&mut self) {
        // What is still in flight belongs to an older generation from here on.
        self.generation += 1;
        self.requests = None;
        let [jitter] = self.shared.host.random();
        self.link.handle(Input::Disconnected { jitter }, self.shared.host.now());
        let (cause, code) = self.last_error.clone().unwrap_or_else(|| ("the link fell silent".to_owned(), "SILENT"));
        let (retry_at, attempts) = self.link.waiting().unzip();
        let attempts = attempts.unwrap_or(0);
        let since_ms = *self.down_since.get_or_insert_with(|| self.shared.host.wall_ms());
        let _ = self.connection.send_replace(Connection::Offline { cause, code, attempts, retry_at, since_ms });
        self.fresh.send_replace(None);
        for space in self.spaces.values() {
            space.touch();
        }
        self.perform(None).await;
    }

    async fn message(&mut self, message: Answer) {
        match message {
            Answer::Update(update) => self.update(update).await,
            Answer::Pong(v1::Pong { number }) => {
                self.handle(Input::PongArrived { number }).await;
                let before = self.fresh.send_replace(self.link.fresh_at(self.shared.host.now()));
                if before.is_none() {
                    self.spaces.values().for_each(|space| space.touch());
                }
            }
            Answer::Heartbeat(heartbeat) => {
                let receipt = heartbeat.receipt.and_then(|r| r.try_into().ok());
                if let Some(receipt) = receipt {
                    self.deliver(&heartbeat.space, Inbound::Heartbeat(receipt)).await;
                }
            }
            Answer::Durable(v1::DurableTo { space, durable_seq }) => {
                if let Ok(space) = SpaceId::try_from(space.as_ref()) {
                    self.handle(Input::NodeReaches { space, seq: Seq(durable_seq) }).await;
                }
                self.deliver(&space, Inbound::Durable(Seq(durable_seq))).await;
            }
            Answer::Subscribed(subscribed) => {
                if let Ok(space) = SpaceId::try_from(subscribed.space.as_ref()) {
                    self.handle(Input::Subscribed { space }).await;
                }
                let space = subscribed.space.clone();
                self.deliver(&space, Inbound::Subscribed(subscribed)).await;
            }
            Answer::Rewound(rewound) => {
                let space = rewound.space.clone();
                self.deliver(&space, Inbound::Rewound(rewound)).await;
            }
            Answer::Refused(v1::SubscriptionRefused { space, error }) => {
                let unknown = || Failure::new(Code::Malformed, "the subscription was refused for an unknown reason");
                let failure = error.and_then(|e| Failure::try_from(e).ok()).unwrap_or_else(unknown);
                self.deliver(&space, Inbound::Refused(failure)).await;
            }
        }
    }

    async fn update(&mut self, update: v1::HeadUpdate) {
        let Ok(space) = SpaceId::try_from(update.space.as_ref()) else { return };
        let (Some(first), Some(last)) = (update.entries.first(), update.entries.last()) else {
            self.deliver(&update.space, Inbound::Durable(Seq(update.durable_seq))).await;
            return;
        };
        let input = Input::EntriesArrived { space, first: Seq(first.seq), last: Seq(last.seq) };
        self.link.handle(input, self.shared.host.now());
        let durable = Seq(update.durable_seq);
        // Heads that cannot be read are no reason to lose the entries.
        let heads = update.heads.into_iter().filter_map(|h| h.try_into().ok()).collect();
        self.perform(Some(Inbound::Entries { entries: update.entries, heads, durable })).await;
    }

    async fn deliver(&self, space: &[u8], inbound: Inbound) {
        let space = SpaceId::try_from(space).ok().and_then(|id| self.spaces.get(&id));
        if let Some(space) = space {
            // The space's own pace is the back-pressure; it ends only with the client.
            let _ = space.inbox.send(inbound).await;
        }
    }

    /// Does what the link decided. `arrived` are the entries that an `Apply` speaks of.
    async fn perform(&mut self, mut arrived: Option<Inbound>) {
        while let Some(output) = self.link.poll() {
            match output {
                Output::Dial => self.dial(),
                Output::HangUp => {
                    self.last_error = None;
                    Box::pin(self.disconnected()).await;
                }
                Output::Subscribe { space, cursor } => self.subscribe(space, cursor).await,
                Output::Unsubscribe { space } => {
                    // A stream that is not there carries no subscription.
                    let _ = self.send(Ask::Unsubscribe(v1::Unsubscribe { space: space.to_bytes() })).await;
                }
                Output::Online { space } => {
                    let online = self.connection.borrow().online();
                    if let Some(conn) = online {
                        self.deliver(space.as_bytes(), Inbound::Online(conn)).await;
                    }
                }
                Output::Apply { space, .. } => {
                    if let Some(entries) = arrived.take() {
                        self.deliver(space.as_bytes(), entries).await;
                    }
                }
                Output::Ping { number } => drop(self.send(Ask::Ping(v1::Ping { number })).await),
            }
        }
    }

    fn dial(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        let (reports, shared) = (self.reports.clone(), self.shared.clone());
        self.connection.send_if_modified(|c| {
            let fresh = matches!(c, Connection::Online(_));
            if fresh {
                *c = Connection::Connecting;
            }
            fresh
        });
        self.shared.spawn(async move {
            let result = tokio::select! {
                biased;
                () = shared.cancel.cancelled() => return,
                result = dial_as_listed(&shared, generation) => result,
            };
            let _ = reports.send(Report::Dialed { generation, result }).await;
        });
    }

    async fn subscribe(&mut self, space: SpaceId, cursor: Seq) {
        match self.shared.store.read(|tx| ladder(tx, space, cursor)) {
            Ok(ladder) => {
                let subscribe = v1::Subscribe { space: space.to_bytes(), cursor: cursor.0, ladder };
                if !self.send(Ask::Subscribe(subscribe)).await {
                    // It went nowhere, so nothing would ever come of it.
                    self.link.handle(Input::SubscriptionFailed { space }, self.shared.host.now());
                }
            }
            Err(error) => {
                tracing::warn!(space = %space.short(), error = %error, "the ladder could not be read");
                self.link.handle(Input::SubscriptionFailed { space }, self.shared.host.now());
            }
        }
    }

    /// True if it is on its way.
    async fn send(&mut self, message: Ask) -> bool {
        // A stream that ended is reported by its reader.
        let Some(requests) = &self.requests else { return false };
        let request = v1::HeadUpdatesRequest { message: Some(message) };
        // A node that reads nothing is as good as silent: the missing pongs end the connection.
        matches!(tokio::time::timeout(limits::RETRY_FIRST, requests.send(request)).await, Ok(Ok(())))
    }
}

/// Points of our chain, exponentially spaced, newest first: how the node finds where two logs part.
pub(crate) fn ladder(tx: &ReadTx<'_>, space: SpaceId, cursor: Seq) -> Result<Vec<v1::ChainPoint>, ReadError> {
    let mut points = Vec::new();
    let (mut seq, mut step) = (cursor.0, 1);
    while seq > 0 && points.len() < limits::LADDER_POINTS_MAX {
        if let Some(position) = tx.position_at(space, Seq(seq))? {
            points.push((&position).into());
        }
        seq = seq.saturating_sub(step);
        step *= 2;
    }
    if points.is_empty() {
        points.push((&Position::start(&space)).into());
    }
    Ok(points)
}

/// How often a device puts itself on the next list when others were faster.
const LISTS_MAX: u32 = 20;

/// Dials, and learns which devices the account has: of the session, or of its refusal. A device that stood on no list yet puts
/// itself on the next one.
async fn dial_as_listed(shared: &Shared, generation: u64) -> Result<Conn, DialError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let offer = shared.devices.offer(&shared.account).into_raw();
        let dialed = dial(&shared.host, &shared.address, &shared.identity, offer, generation).await;
        let counts = match &dialed {
            Ok(conn) => conn.device_list().cloned(),
            Err(DialError::Refused(failure)) => failure.device_list.as_deref().cloned(),
            Err(_) => None,
        };
        let news = match counts {
            Some(list) => shared.learn_devices(list).await,
            None => false,
        };
        let revoked = shared.devices.is_revoked();
        match dialed {
            // A node that lost the newest list is no way back.
            Ok(_) if revoked => {
                let failure = Failure::new(Code::DeviceRevoked, "the account took this device off its list");
                return Err(DialError::Refused(failure));
            }
            Err(DialError::Refused(_)) if news && !revoked && attempt < LISTS_MAX => {}
            Ok(_) | Err(_) => return dialed,
        }
    }
}

/// Opens the HeadUpdates stream and forwards what it brings; returns why it ended.
async fn follow(conn: Conn, generation: u64, reports: &mpsc::Sender<Report>) -> String {
    let (requests, outgoing) = mpsc::channel(64);
    let mut rpc = conn.rpc();
    let opening = rpc.head_updates(ReceiverStream::new(outgoing));
    let mut answers = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, opening).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return failure(&status).to_string(),
        Err(_) => return "the node opened a session and no stream".to_owned(),
    };
    if reports.send(Report::Streams { generation, requests }).await.is_err() {
        return "the client is closed".to_owned();
    }
    loop {
        match answers.message().await {
            Ok(Some(v1::HeadUpdatesResponse { message: Some(message) })) => {
                if reports.send(Report::Message { generation, message }).await.is_err() {
                    return "the client is closed".to_owned();
                }
            }
            Ok(Some(v1::HeadUpdatesResponse { message: None })) => {}
            Ok(None) => return "the node ended the stream".to_owned(),
            Err(status) => return failure(&status).to_string(),
        }
    }
}

/// An error with all its causes, for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
