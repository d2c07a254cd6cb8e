//! What a command in the daemon has of its caller.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::pb::{self, to_caller::Message};
use super::wire::{io_error, parts, path, path_bytes, pieces};
use crate::caller::GitOutput;

/// Messages that wait for a slow caller.
pub(super) const SAID_MAX: usize = 16;

/// A caller in another process.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    say: mpsc::Sender<Message>,
    /// One thing is asked at a time.
    replies: Arc<Mutex<mpsc::Receiver<pb::Reply>>>,
    interrupts: Interrupts,
    is_somebody: bool,
}

/// Ctrl-C of the caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupts {
    interrupted: CancellationToken,
    listening: Arc<AtomicUsize>,
}

impl Interrupts {
    /// Tells the command, if it listens; false if it does not.
    pub(super) fn tell(&self) -> bool {
        let listens = self.listening.load(Ordering::SeqCst) > 0;
        if listens {
            self.interrupted.cancel();
        }
        listens
    }
}

/// Counts a listener for as long as it listens.
struct Listening<'a>(&'a AtomicUsize);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Remote {
    pub(super) fn new(
        say: mpsc::Sender<Message>,
        replies: mpsc::Receiver<pb::Reply>,
        interrupts: Interrupts,
        is_somebody: bool,
    ) -> Self {
        Self { say, replies: Arc::new(Mutex::new(replies)), interrupts, is_somebody }
    }

    pub(crate) fn printed(&self) -> Printed {
        Printed { say: self.say.clone() }
    }

    pub(crate) const fn is_somebody(&self) -> bool {
        self.is_somebody
    }

    /// Listens from this call on.
    pub(crate) fn interrupted(&self) -> impl Future<Output = ()> + '_ {
        self.interrupts.listening.fetch_add(1, Ordering::SeqCst);
        let listening = Listening(&self.interrupts.listening);
        async move {
            let _listening = listening;
            self.interrupts.interrupted.cancelled().await;
        }
    }

    pub(crate) async fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        content(self.ask(pb::ask::Ask::Read(path_bytes(path))).await?)
    }

    pub(crate) async fn read_stdin(&self) -> io::Result<Vec<u8>> {
        content(self.ask(pb::ask::Ask::ReadStdin(pb::ReadStdin {})).await?)
    }

    pub(crate) async fn read_line(&self) -> io::Result<String> {
        let line = content(self.ask(pb::ask::Ask::ReadLine(pb::ReadLine {})).await?)?;
        String::from_utf8(line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    pub(crate) async fn files_in(&self, dir: &Path) -> io::Result<Option<Vec<PathBuf>>> {
        let reply = self.ask(pb::ask::Ask::FilesIn(path_bytes(dir))).await?;
        let pb::reply::Reply::Files(files) = reply else { return Err(wrong(&reply)) };
        Ok(files.is_dir.then(|| files.paths.iter().map(path).collect()))
    }

    pub(crate) async fn write(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        let write = pb::WriteFile { path: path_bytes(path), content: content.into() };
        done(self.ask(pb::ask::Ask::Write(write)).await?)
    }

    pub(crate) async fn make_dir(&self, path: &Path) -> io::Result<()> {
        done(self.ask(pb::ask::Ask::MakeDir(path_bytes(path))).await?)
    }

    pub(crate) async fn git(&self, args: Vec<OsString>) -> io::Result<GitOutput> {
        let args = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        let reply = self.ask(pb::ask::Ask::Git(pb::Git { args })).await?;
        let pb::reply::Reply::Git(output) = reply else { return Err(wrong(&reply)) };
        Ok(GitOutput { success: output.success, stdout: output.stdout.into(), stderr: output.stderr.into() })
    }

    async fn ask(&self, ask: pb::ask::Ask) -> io::Result<pb::reply::Reply> {
        let mut replies = self.replies.lock().await;
        for piece in pieces(&pb::Ask { ask: Some(ask) })? {
            self.say.send(Message::Ask(piece)).await.map_err(|_| gone())?;
        }
        match replies.recv().await.ok_or_else(gone)?.reply {
            Some(pb::reply::Reply::Failed(failed)) => Err(io_error(failed)),
            Some(reply) => Ok(reply),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "an empty reply")),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "whoever typed the command is gone")
}

fn content(reply: pb::reply::Reply) -> io::Result<Vec<u8>> {
    let pb::reply::Reply::Content(bytes) = reply else { return Err(wrong(&reply)) };
    Ok(bytes.into())
}

fn done(reply: pb::reply::Reply) -> io::Result<()> {
    if matches!(reply, pb::reply::Reply::Done(_)) { Ok(()) } else { Err(wrong(&reply)) }
}

fn wrong(reply: &pb::reply::Reply) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the reply to something else: {reply:?}"))
}

/// Where a command prints when its terminal is another process's.
#[derive(Debug, Clone)]
pub(crate) struct Printed {
    say: mpsc::Sender<Message>,
}

impl Printed {
    pub(crate) async fn stdout(&self, bytes: Vec<u8>) -> io::Result<()> {
        for part in parts(bytes) {
            self.say.send(Message::Stdout(part)).await.map_err(|_| gone())?;
        }
        Ok(())
    }

    pub(crate) async fn stderr(&self, bytes: Vec<u8>) -> io::Result<()> {
        for part in parts(bytes) {
            self.say.send(Message::Stderr(part)).await.map_err(|_| gone())?;
        }
        Ok(())
    }
}

/// What is under way: only the present state of it is told, so a slow caller never holds the work up.
#[derive(Debug, Clone)]
pub(crate) struct ProgressSlot {
    slot: Arc<watch::Sender<pb::Progress>>,
    next: Arc<AtomicU64>,
}

impl ProgressSlot {
    pub(super) fn new(slot: watch::Sender<pb::Progress>) -> Self {
        Self { slot: Arc::new(slot), next: Arc::new(AtomicU64::new(1)) }
    }

    /// Begins something, of known length or not.
    pub(crate) fn begin(&self, text: String, total: Option<u64>) -> RemoteProgress {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.slot.send_replace(pb::Progress { number, text: Some(text), total, done: 0 });
        RemoteProgress { slot: self.slot.clone(), number }
    }
}

/// Something under way; over when dropped.
#[derive(Debug)]
pub(crate) struct RemoteProgress {
    slot: Arc<watch::Sender<pb::Progress>>,
    number: u64,
}

impl RemoteProgress {
    pub(crate) fn say(&self, text: String) {
        self.change(|progress| progress.text = Some(text));
    }

    pub(crate) fn advance(&self, by: u64) {
        self.change(|progress| progress.done = progress.done.saturating_add(by));
    }

    /// What began later stands in its place until that is over.
    fn change(&self, change: impl FnOnce(&mut pb::Progress)) {
        self.slot.send_if_modified(|progress| {
            let is_ours = progress.number == self.number;
            if is_ours {
                change(progress);
            }
            is_ours
        });
    }
}

impl Drop for RemoteProgress {
    fn drop(&mut self) {
        self.change(|progress| progress.text = None);
    }
}
