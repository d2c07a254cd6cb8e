//! The caller's side: a command that the daemon of its data directory runs, with this process's files and terminal.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use client_sdk::local::{self, LOCAL_COMMAND_BYTES_MAX, LocalChannel};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::pb::command_server_client::CommandServerClient;
use super::pb::{self, from_caller, reply::Reply, to_caller::Message};
use super::wire::{Assembly, Room, failed, os_string, path, path_bytes, pieces};
use crate::caller;
use crate::error::CliError;
use crate::output::{Output, Progress};

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// Messages that wait for the daemon.
const REPLIES_MAX: usize = 4;

/// Has the daemon of a data directory run what was typed; `None` if there is none.
pub(crate) async fn hand_over(dir: &Path, out: &Output) -> Result<Option<ExitCode>, CliError> {
    let Some((place, channel)) = local::connect(dir).await? else { return Ok(None) };
    // One listener from the beginning to the end: none of them is lost between two answers.
    let pressed = signal(SignalKind::interrupt()).map_err(CliError::file("signals"))?;
    let refused = |status: &Status| CliError::daemon(place.pid, status);
    let (say, said) = mpsc::channel(REPLIES_MAX);
    let (colors, error_colors) = out.colors();
    let begin = pb::Begin {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        args: std::env::args_os().map(|arg| Bytes::from(OsString::into_vec(arg))).collect(),
        data: path_bytes(dir),
        colors,
        error_colors,
        somebody: caller::is_somebody(),
    };
    // The channel is empty, so there is room.
    let _ = say.send(message(from_caller::Message::Begin(begin))).await;
    let mut commands: CommandServerClient<LocalChannel> = CommandServerClient::new(channel);
    let answers = match commands.run(ReceiverStream::new(said)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return Err(refused(&status)),
    };
    let mut handed =
        Handed { say, out, pressed, assembly: Assembly::within(Room::new(LOCAL_COMMAND_BYTES_MAX)), shown: None };
    match handed.follow(answers).await {
        Ok(exit) => Ok(Some(exit)),
        Err(Broken::Daemon(status)) => Err(refused(&status)),
        Err(Broken::Print(error)) => Err(CliError::Print(error)),
    }
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

/// A command that runs in the daemon.
struct Handed<'a> {
    say: mpsc::Sender<pb::FromCaller>,
    out: &'a Output,
    /// Ctrl-C.
    pressed: Signal,
    assembly: Assembly,
    shown: Option<(u64, Progress)>,
}

impl Handed<'_> {
    async fn follow(&mut self, mut answers: Streaming<pb::ToCaller>) -> Result<ExitCode, Broken> {
        let mut interrupts = 0;
        loop {
            let answer = tokio::select! {
                biased;
                answer = answers.message() => answer?,
                _ = self.pressed.recv() => {
                    interrupts += 1;
                    if interrupts > 1 {
                        return Ok(INTERRUPTED.into());
                    }
                    let _ = self.say.send(message(from_caller::Message::Interrupt(pb::Interrupt {}))).await;
                    continue;
                }
            };
            let Some(answer) = answer else { return Err(Status::unavailable("it ended before the command").into()) };
            match answer.message {
                Some(Message::Stdout(bytes)) => self.print(std::io::stdout(), &bytes).map_err(Broken::Print)?,
                // If stderr is gone, there is nobody to tell.
                Some(Message::Stderr(bytes)) => drop(self.print(std::io::stderr(), &bytes)),
                Some(Message::Progress(progress)) => self.show(progress),
                Some(Message::Ask(piece)) => self.asked(piece).await?,
                Some(Message::Done(done)) => {
                    self.shown = None;
                    return Ok(exit(&done));
                }
                None => {}
            }
        }
    }

    /// What is under way goes from the terminal before anything stands there.
    fn print(&mut self, mut to: impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
        self.shown = None;
        to.write_all(bytes)?;
        to.flush()
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

    async fn asked(&mut self, piece: pb::Piece) -> Result<(), Broken> {
        let ask = self.assembly.add::<pb::Ask>(piece).map_err(|e| Status::internal(e.to_string()))?;
        let Some(ask) = ask.and_then(|a| a.ask) else { return Ok(()) };
        self.shown = None;
        let done = do_for(ask).await.unwrap_or_else(|error| Reply::Failed(failed(&error)));
        let reply = |reply| pb::Reply { reply: Some(reply) };
        let told = match pieces(&reply(done)) {
            Ok(pieces) => pieces,
            Err(error) => pieces(&reply(Reply::Failed(failed(&error)))).map_err(|e| Status::internal(e.to_string()))?,
        };
        for piece in told {
            // A daemon that is gone says so in its answers.
            let _ = self.say.send(message(from_caller::Message::Reply(piece))).await;
        }
        Ok(())
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
