//! The caller's side: a command that the daemon of its data directory runs, with this process's files and terminal.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use client_sdk::local::{self, LOCAL_COMMAND_BYTES_MAX, LocalChannel};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::pb::command_server_client::CommandServerClient;
use super::pb::{self, from_caller, reply::Reply, to_caller::Message};
use super::wire::{Assembly, Room, failed, identity, os_string, path, path_bytes, pieces};
use crate::caller;
use crate::error::CliError;
use crate::output::{Output, Progress};

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// How long a daemon may say nothing at all to a command; then it is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Messages that wait for the daemon.
const REPLIES_MAX: usize = 4;

/// Has the daemon of a data directory run what was typed; `None` if there is none.
pub(crate) async fn hand_over(dir: &Path, out: &Output) -> Result<Option<ExitCode>, CliError> {
    let Some((place, channel)) = local::connect(dir).await? else { return Ok(None) };
    // One listener from the beginning to the end: none of them is lost between two answers.
    let pressed = signal(SignalKind::interrupt()).map_err(CliError::file("signals"))?;
    let (say, said) = mpsc::channel(REPLIES_MAX);
    // The channel is empty, so there is room.
    let _ = say.send(message(from_caller::Message::Begin(begin(dir, out)?))).await;
    let assembly = Assembly::within(Room::new(LOCAL_COMMAND_BYTES_MAX));
    let mut handed = Handed { say: say.clone(), out, assembly, shown: None };
    let ended = tokio::select! {
        biased;
        exit = given_up(pressed, say) => Ok(exit),
        ended = handed.run(channel, said) => ended,
    };
    match ended {
        Ok(exit) => Ok(Some(exit)),
        Err(Broken::Daemon(status)) => Err(CliError::daemon(place.pid, &status)),
        Err(Broken::Print(error)) => Err(CliError::Print(error)),
    }
}

fn begin(dir: &Path, out: &Output) -> Result<pb::Begin, CliError> {
    let (colors, error_colors) = out.colors();
    Ok(pb::Begin {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        args: std::env::args_os().map(|arg| Bytes::from(OsString::into_vec(arg))).collect(),
        data: path_bytes(dir),
        data_is: Some(identity(dir).map_err(CliError::file(dir))?),
        colors,
        error_colors,
        somebody: caller::is_somebody(),
    })
}

/// Passes Ctrl-C on, and ends with the second: whatever the daemon does, whoever pressed it is free.
async fn given_up(mut pressed: Signal, say: mpsc::Sender<pb::FromCaller>) -> ExitCode {
    pressed.recv().await;
    let interrupt = message(from_caller::Message::Interrupt(pb::Interrupt {}));
    // A daemon that reads nothing has no room for it.
    tokio::spawn(async move { drop(say.send(interrupt).await) });
    pressed.recv().await;
    INTERRUPTED.into()
}

/// Why a command that was handed over was not followed to its end.
enum Broken {
    Daemon(Status),
    Print(std::io::Error),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Daemon(status)
    }
}

/// A command that runs in the daemon. What may block here (a file, stdin, a terminal) blocks a thread of its own, never what
/// listens for Ctrl-C.
struct Handed<'a> {
    say: mpsc::Sender<pb::FromCaller>,
    out: &'a Output,
    assembly: Assembly,
    shown: Option<(u64, Progress)>,
}

impl Handed<'_> {
    async fn run(&mut self, channel: LocalChannel, said: mpsc::Receiver<pb::FromCaller>) -> Result<ExitCode, Broken> {
        let mut commands: CommandServerClient<LocalChannel> = CommandServerClient::new(channel);
        let begun = tokio::time::timeout(ANSWER_MAX, commands.run(ReceiverStream::new(said))).await;
        let silent = |_| Status::unavailable(format!("it has not answered for {} seconds", ANSWER_MAX.as_secs()));
        self.follow(begun.map_err(silent)??.into_inner()).await
    }

    async fn follow(&mut self, mut answers: Streaming<pb::ToCaller>) -> Result<ExitCode, Broken> {
        // The daemon goes on talking while it waits for a reply: that it gave up, say.
        let mut replying = tokio::task::JoinSet::new();
        loop {
            let answer = tokio::select! {
                biased;
                Some(_) = replying.join_next() => continue,
                answer = answers.message() => answer?,
            };
            let Some(answer) = answer else { return Err(Status::unavailable("it ended before the command").into()) };
            match answer.message {
                Some(Message::Stdout(bytes)) => self.print(std::io::stdout(), bytes).await.map_err(Broken::Print)?,
                // If stderr is gone, there is nobody to tell.
                Some(Message::Stderr(bytes)) => drop(self.print(std::io::stderr(), bytes).await),
                Some(Message::Progress(progress)) => self.show(progress),
                Some(Message::Ask(piece)) => {
                    if let Some(ask) = self.asked(piece)? {
                        replying.spawn(reply_to(ask, self.say.clone()));
                    }
                }
                Some(Message::Done(done)) => {
                    self.shown = None;
                    return Ok(exit(&done));
                }
                None => {}
            }
        }
    }

    /// What is under way goes from the terminal before anything stands there.
    async fn print(&mut self, mut to: impl std::io::Write + Send + 'static, bytes: Bytes) -> std::io::Result<()> {
        self.shown = None;
        let printed = tokio::task::spawn_blocking(move || to.write_all(&bytes).and_then(|()| to.flush()));
        printed.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    fn show(&mut self, progress: pb::Progress) {
        let Some(text) = progress.text else {
            self.shown = None;
            return;
        };
        if self.shown.as_ref().is_none_or(|(number, _)| *number != progress.number) {
            let bar = match progress.total {
                Some(total) => self.out.bar(usize::try_from(total).unwrap_or(usize::MAX), text.clone()),
                None => self.out.spinner(text.clone()),
            };
            self.shown = Some((progress.number, bar));
        }
        if let Some((_, bar)) = &self.shown {
            bar.say(text);
            bar.reach(progress.done);
        }
    }

    fn asked(&mut self, piece: pb::Piece) -> Result<Option<pb::ask::Ask>, Broken> {
        let ask = self.assembly.add::<pb::Ask>(piece).map_err(|e| Status::internal(e.to_string()))?;
        let ask = ask.and_then(|a| a.ask);
        if ask.is_some() {
            self.shown = None;
        }
        Ok(ask)
    }
}

async fn reply_to(ask: pb::ask::Ask, say: mpsc::Sender<pb::FromCaller>) {
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || runtime.block_on(do_for(ask))).await;
    let reply = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let reply = reply.unwrap_or_else(|error| Reply::Failed(failed(&error)));
    for piece in pieces_of(reply) {
        // A daemon that is gone says so in its answers.
        let _ = say.send(message(from_caller::Message::Reply(piece))).await;
    }
}

/// What is too large for the way is said instead of it.
fn pieces_of(reply: Reply) -> Vec<pb::Piece> {
    let whole = |reply| pb::Reply { reply: Some(reply) };
    match pieces(&whole(reply)) {
        Ok(pieces) => pieces.collect(),
        Err(error) => pieces(&whole(Reply::Failed(failed(&error)))).map(Iterator::collect).unwrap_or_default(),
    }
}

/// What the command needs of the place where it was typed.
async fn do_for(ask: pb::ask::Ask) -> std::io::Result<Reply> {
    use pb::ask::Ask;
    let here = caller::Caller::Here;
    Ok(match ask {
        Ask::Read(file) => Reply::Content(here.read(&path(&file)).await?.into()),
        Ask::ReadStdin(pb::ReadStdin {}) => Reply::Content(here.read_stdin().await?.into()),
        Ask::ReadLine(pb::ReadLine {}) => Reply::Content(here.read_line().await?.into()),
        Ask::FilesIn(dir) => {
            let found = here.files_in(&path(&dir)).await?;
            let is_dir = found.is_some();
            let paths = found.unwrap_or_default().iter().map(|p| path_bytes(p)).collect();
            Reply::Files(pb::Files { is_dir, paths })
        }
        Ask::Write(write) => {
            here.write(&path(&write.path), write.content.into()).await?;
            Reply::Done(pb::reply::Done {})
        }
        Ask::MakeDir(dir) => {
            here.make_dir(&path(&dir)).await?;
            Reply::Done(pb::reply::Done {})
        }
        Ask::Git(git) => {
            let output = here.git(git.args.iter().map(os_string).collect()).await?;
            let (stdout, stderr) = (output.stdout.into(), output.stderr.into());
            Reply::Git(pb::GitOutput { success: output.success, stdout, stderr })
        }
    })
}

fn message(message: from_caller::Message) -> pb::FromCaller {
    pb::FromCaller { message: Some(message) }
}

fn exit(done: &pb::Done) -> ExitCode {
    if done.interrupted {
        return INTERRUPTED.into();
    }
    u8::try_from(done.exit).unwrap_or(crate::exit::Exit::Internal as u8).into()
}

impl CliError {
    /// What a daemon did not do.
    fn daemon(pid: u32, status: &Status) -> Self {
        let message = status.message().to_owned();
        let code = status.code();
        if code == Code::FailedPrecondition {
            return Self::OtherDaemon { pid, message };
        }
        if code == Code::Unimplemented {
            return Self::NoCommands { pid };
        }
        if code == Code::ResourceExhausted {
            return Self::DaemonBusy { pid, message };
        }
        Self::DaemonGone { pid, message }
    }
}
