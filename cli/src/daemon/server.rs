//! The daemon's side: commands of other processes, run with the client that is open here.

use std::ffi::OsString;
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
use super::wire::{Assembly, Room, os_string, path};
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

    /// Opens the account anew with another configuration. Whatever was under way with it is told that it was closed.
    pub(crate) async fn reopen(&self, change: impl FnOnce(ClientConfig) -> ClientConfig) -> Result<Client, CliError> {
        let _one = self.reopening.lock().await;
        if let Some(client) = self.current.take() {
            client.close().await;
        }
        let opened = match Box::pin(Client::open(change(self.config.clone()))).await {
            Ok(client) => Ok(client),
            Err(error) => {
                // As it was before: a daemon without an account is none.
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
    room: Arc<Semaphore>,
    /// For what callers send.
    replies: Room,
    closing: CancellationToken,
}

impl Commands {
    pub(crate) fn new(open: Open, closing: CancellationToken) -> Self {
        let room = Arc::new(Semaphore::new(COMMANDS_MAX));
        Self { open, room, replies: Room::new(LOCAL_COMMANDS_BYTES_MAX), closing }
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
        if begin.version != env!("CARGO_PKG_VERSION") {
            let text = format!("the daemon is of version {}, this of {}", env!("CARGO_PKG_VERSION"), begin.version);
            return Err(Status::failed_precondition(text));
        }
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
                Some(said) = session.said.recv() => Happened::Said(said),
                Ok(()) = session.progress.changed() => Happened::Progress,
                ended = &mut session.ended => Happened::Ended(ended.unwrap_or(INTERNAL)),
                heard = inbound.message() => match heard {
                    Ok(Some(message)) => Happened::Heard(message),
                    Ok(None) | Err(_) => Happened::Gone,
                },
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
