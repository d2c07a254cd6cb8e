//! The daemon's side: commands of other processes, run with the client that is open here.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use clap::FromArgMatches as _;
use client_sdk::local::{Current, LOCAL_COMMANDS_BYTES_MAX};
use client_sdk::{Client, ClientConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::pb::command_server_server::CommandServer;
use super::pb::{self, from_caller, to_caller::Message};
use super::remote::{Interrupts, ProgressSlot, Remote, SAID_MAX};
use super::wire::{Assembly, Room, identity, os_string, path};
use crate::app::App;
use crate::args::{self, Cli};
use crate::caller::Caller;
use crate::error::CliError;
use crate::output::Output;

/// Commands that run at once; each has a thread of its own.
const COMMANDS_MAX: usize = 64;

/// The account that the daemon keeps open.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    current: Current,
    /// Holds the data directory, so that nobody else gets it between two openings.
    config: ClientConfig,
    /// One reopening at a time.
    reopening: Arc<tokio::sync::Mutex<()>>,
    /// Ends the daemon, when nothing can be opened any more.
    lost: CancellationToken,
}

impl Open {
    pub(crate) fn new(current: Current, config: ClientConfig, lost: CancellationToken) -> Self {
        Self { current, config, reopening: Arc::default(), lost }
    }

    pub(crate) fn client(&self) -> Result<Client, CliError> {
        self.current.client().ok_or(CliError::Reopening)
    }

    /// Opens the account anew with another configuration. Whatever was under way with it is told that it was closed. Once begun it
    /// goes on to its end, whoever asked for it: a daemon without an account is none.
    pub(crate) async fn reopen(&self, change: impl FnOnce(ClientConfig) -> ClientConfig) -> Result<Client, CliError> {
        let (open, config) = (self.clone(), change(self.config.clone()));
        let reopening = tokio::spawn(async move { open.reopen_with(config).await });
        reopening.await.unwrap_or_else(|error| Err(CliError::Internal(error.to_string())))
    }

    /// Closes the account, after a reopening that is under way.
    pub(crate) async fn close(&self) {
        let _one = self.reopening.lock().await;
        if let Some(client) = self.current.take() {
            client.close().await;
        }
    }

    async fn reopen_with(&self, config: ClientConfig) -> Result<Client, CliError> {
        let _one = self.reopening.lock().await;
        if let Some(client) = self.current.take() {
            client.close().await;
        }
        let opened = match Box::pin(Client::open(config)).await {
            Ok(client) => Ok(client),
            Err(error) => {
                // As it was before.
                match Box::pin(Client::open(self.config.clone())).await {
                    Ok(client) => self.current.put(client),
                    Err(_) => self.lost.cancel(),
                }
                Err(error)
            }
        };
        let client = opened?;
        self.current.put(client.clone());
        Ok(client)
    }
}

/// The service.
#[derive(Debug)]
pub(crate) struct Commands {
    open: Open,
    data_is: pb::DirIdentity,
    room: Arc<Semaphore>,
    /// For what callers send.
    replies: Room,
    closing: CancellationToken,
}

impl Commands {
    /// The commands of a data directory.
    pub(crate) fn new(open: Open, dir: &Path, closing: CancellationToken) -> std::io::Result<Self> {
        let room = Arc::new(Semaphore::new(COMMANDS_MAX));
        Ok(Self { open, data_is: identity(dir)?, room, replies: Room::new(LOCAL_COMMANDS_BYTES_MAX), closing })
    }

    /// A caller of the same program, who means this directory.
    fn check(&self, begin: &pb::Begin) -> Result<(), Status> {
        if begin.version != env!("CARGO_PKG_VERSION") {
            let text = format!("the daemon is of version {}, this of {}", env!("CARGO_PKG_VERSION"), begin.version);
            return Err(Status::failed_precondition(text));
        }
        if begin.data_is != Some(self.data_is) {
            let text = format!("its data directory is another one than {}", path(&begin.data).display());
            return Err(Status::failed_precondition(text));
        }
        Ok(())
    }
}

type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<pb::ToCaller, Status>> + Send>>;

#[tonic::async_trait]
impl CommandServer for Commands {
    type RunStream = Answers;

    async fn run(&self, request: Request<Streaming<pb::FromCaller>>) -> Result<Response<Answers>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|m| m.message);
        let Some(from_caller::Message::Begin(begin)) = first else {
            return Err(Status::invalid_argument("a command begins with Begin"));
        };
        self.check(&begin)?;
        let room = self.room.clone().try_acquire_owned();
        let room = room.map_err(|_| Status::resource_exhausted(format!("{COMMANDS_MAX} commands are running")))?;
        let rooms = (room, self.replies.clone());
        let answers = answers(self.open.clone(), begin, inbound, self.closing.clone(), rooms);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Runs the command and passes on what it says; ends with it, or with the caller.
fn answers(
    open: Open,
    begin: pb::Begin,
    mut inbound: Streaming<pb::FromCaller>,
    closing: CancellationToken,
    rooms: (OwnedSemaphorePermit, Room),
) -> impl Stream<Item = Result<pb::ToCaller, Status>> + Send {
    async_stream::try_stream! {
        let mut session = Session::start(open, begin, rooms);
        let mut is_closing = false;
        loop {
            let happened = tokio::select! {
                biased;
                // First: a command that has always something to say is ended by Ctrl-C, too.
                heard = inbound.message() => match heard {
                    Ok(Some(message)) => Happened::Heard(message),
                    Ok(None) | Err(_) => Happened::Gone,
                },
                Some(said) = session.said.recv() => Happened::Said(said),
                Ok(()) = session.progress.changed() => Happened::Progress,
                ended = &mut session.ended => Happened::Ended(ended.unwrap_or(INTERNAL)),
                () = closing.cancelled(), if !is_closing => Happened::Closing,
            };
            match happened {
                Happened::Said(message) => yield say(message),
                Happened::Progress => {
                    let progress = session.progress.borrow_and_update().clone();
                    yield say(Message::Progress(progress));
                }
                Happened::Ended(exit) => {
                    // What it said last stands in the queue yet.
                    while let Ok(message) = session.said.try_recv() {
                        yield say(message);
                    }
                    yield say(Message::Done(pb::Done { exit, interrupted: false }));
                    return;
                }
                Happened::Heard(message) => session.heard(message).await?,
                Happened::Gone => return,
                Happened::Closing => {
                    is_closing = true;
                    session.interrupts.tell();
                }
            }
            if session.is_given_up {
                yield say(Message::Done(pb::Done { exit: 0, interrupted: true }));
                return;
            }
        }
    }
}

fn say(message: Message) -> pb::ToCaller {
    pb::ToCaller { message: Some(message) }
}

const INTERNAL: u32 = crate::exit::Exit::Internal as u32;

enum Happened {
    Said(Message),
    Progress,
    Ended(u32),
    Heard(pb::FromCaller),
    Gone,
    Closing,
}

/// A command that runs. Dropping it ends the command.
struct Session {
    said: mpsc::Receiver<Message>,
    progress: watch::Receiver<pb::Progress>,
    ended: tokio::task::JoinHandle<u32>,
    replies: mpsc::Sender<pb::Reply>,
    assembly: Assembly,
    interrupts: Interrupts,
    is_given_up: bool,
    _until_dropped: tokio_util::sync::DropGuard,
}

impl Session {
    /// The command has a thread of its own: it may compute for long, and what it borrows need not move between threads.
    fn start(open: Open, begin: pb::Begin, (room, replies_room): (OwnedSemaphorePermit, Room)) -> Self {
        let (say, said) = mpsc::channel(SAID_MAX);
        let (reply, replies) = mpsc::channel(1);
        let (slot, progress) = watch::channel(pb::Progress::default());
        let (interrupts, given_up) = (Interrupts::default(), CancellationToken::new());
        let remote = Remote::new(say, replies, interrupts.clone(), begin.somebody);
        let (progress_slot, runtime) = (ProgressSlot::new(slot), tokio::runtime::Handle::current());
        let until = given_up.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let _room = room;
            let command = run(open, begin, remote, progress_slot);
            runtime.block_on(until.run_until_cancelled_owned(command)).unwrap_or(INTERNAL)
        });
        Self {
            said,
            progress,
            ended,
            replies: reply,
            assembly: Assembly::within(replies_room),
            interrupts,
            is_given_up: false,
            _until_dropped: given_up.drop_guard(),
        }
    }

    async fn heard(&mut self, message: pb::FromCaller) -> Result<(), Status> {
        match message.message {
            Some(from_caller::Message::Reply(piece)) => {
                let reply = self.assembly.add(piece).map_err(|e| Status::invalid_argument(e.to_string()))?;
                if let Some(reply) = reply {
                    // Nobody waits for it when the command ended meanwhile.
                    let _ = self.replies.send(reply).await;
                }
            }
            // A command that does not listen for it is ended, as its process would be.
            Some(from_caller::Message::Interrupt(_)) => self.is_given_up = !self.interrupts.tell(),
            Some(from_caller::Message::Begin(_)) | None => return Err(Status::invalid_argument("nothing begins here")),
        }
        Ok(())
    }
}

/// Runs a command as its own process would have.
async fn run(open: Open, begin: pb::Begin, remote: Remote, progress: ProgressSlot) -> u32 {
    let args: Vec<OsString> = begin.args.iter().map(os_string).collect();
    let parsed = args::command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let mut cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return misread(&remote, &error).await,
    };
    cli.global.data = Some(path(&begin.data));
    let out = Output::there(&cli.global, remote.printed(), progress, (begin.colors, begin.error_colors));
    let app = App::new(cli.global, out, Caller::There(remote), Some(open));
    crate::run(&app, cli.command).await.into()
}

/// The caller could read it, so this is another build.
async fn misread(remote: &Remote, error: &clap::Error) -> u32 {
    let text =
        format!("the daemon is of another build and does not know this command: stop it and start it again\n{error}\n");
    // If the caller is gone, nobody is to be told.
    let _ = remote.printed().stderr(text.into_bytes()).await;
    crate::exit::Exit::Unavailable as u32
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::Duration;

    use client_sdk::Unlock;

    use super::*;

    /// Nobody listens there.
    fn node(port: u16) -> client_sdk::NodeAddress {
        let authority = "auth_25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
        format!("headwater+plain://{authority}@127.0.0.1:{port}").parse().expect("an address")
    }

    /// Whoever asked for another opening may go away in the middle of it.
    #[tokio::test]
    async fn a_reopening_goes_on_without_its_caller() {
        let dir = tempfile::tempdir().expect("a directory");
        let unlock = Unlock::KeyFile(dir.path().join("device.key"));
        let config = ClientConfig::new(dir.path(), unlock);
        let (client, _) = Client::create(config.clone().node(node(1))).await.expect("made");
        client.close().await;
        let config = config.hold().expect("free");
        let client = Client::open(config.clone()).await.expect("opened");
        let lost = CancellationToken::new();
        let open = Open::new(Current::from(client), config, lost.clone());
        let mut reopening = Box::pin(open.reopen(|config| config.node(node(2))));
        let step = std::future::poll_fn(|cx| Poll::Ready(reopening.as_mut().poll(cx))).await;
        assert!(step.is_pending(), "it was not seen in the middle");
        drop(reopening);
        let opened = tokio::time::timeout(Duration::from_secs(60), async {
            while !open.client().is_ok_and(|client| *client.node() == node(2)) {
                assert!(is_in_use(dir.path()), "somebody else could have taken it");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        opened.await.expect("it is opened again");
        assert!(!lost.is_cancelled());
        open.close().await;
    }

    fn is_in_use(dir: &Path) -> bool {
        let other = ClientConfig::new(dir, Unlock::KeyFile(dir.join("device.key"))).hold();
        matches!(other, Err(client_sdk::OpenError::Store(client_sdk::StoreOpenError::InUse { .. })))
    }
}
