//! Who typed the command: its terminal, its files, its programs. They are this process's own, or, in a daemon, those of the
//! process that handed the command in.

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::Remote;
use crate::error::CliError;

/// What git printed.
#[derive(Debug)]
pub(crate) struct GitOutput {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Who typed the command.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Whoever started this process.
    Here,
    /// Another process, which the daemon runs the command for.
    There(Remote),
}

impl Caller {
    /// A file.
    pub(crate) async fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::Here => std::fs::read(path),
            Self::There(remote) => remote.read(path).await,
        }
    }

    /// All of a file as text, or of stdin where `-` was typed.
    pub(crate) async fn read_input(&self, path: &Path) -> Result<String, CliError> {
        let (bytes, shown) = match path == Path::new("-") {
            true => (self.read_stdin().await, Path::new("stdin")),
            false => (self.read(path).await, path),
        };
        let not_text = |_| std::io::Error::new(std::io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        bytes.and_then(|bytes| String::from_utf8(bytes).map_err(not_text)).map_err(CliError::file(shown))
    }

    /// A token as it was typed, or from stdin where `-` was typed.
    pub(crate) async fn read_token(&self, typed: &str) -> Result<String, CliError> {
        let text = if typed == "-" { self.read_input(Path::new("-")).await? } else { typed.to_owned() };
        Ok(text.trim().to_owned())
    }

    /// All of stdin.
    pub(crate) async fn read_stdin(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Here => {
                let mut bytes = Vec::new();
                io::stdin().lock().read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Self::There(remote) => remote.read_stdin().await,
        }
    }

    /// The files of a directory; `None` if the path is none.
    pub(crate) async fn files_in(&self, path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
        match self {
            Self::Here => files_in(path),
            Self::There(remote) => remote.files_in(path).await,
        }
    }

    pub(crate) async fn write(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Here => std::fs::write(path, content),
            Self::There(remote) => remote.write(path, content).await,
        }
    }

    /// A directory, with those above it.
    pub(crate) async fn make_dir(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Here => std::fs::create_dir_all(path),
            Self::There(remote) => remote.make_dir(path).await,
        }
    }

    /// Runs git.
    pub(crate) async fn git(&self, args: Vec<OsString>) -> io::Result<GitOutput> {
        match self {
            Self::Here => git(args).await,
            Self::There(remote) => remote.git(args).await,
        }
    }

    /// One line from the terminal.
    pub(crate) async fn read_line(&self) -> io::Result<String> {
        match self {
            Self::Here => read_line(),
            Self::There(remote) => remote.read_line().await,
        }
    }

    /// A person sits at the terminal, and can be asked.
    pub(crate) fn is_somebody(&self) -> bool {
        match self {
            Self::Here => is_somebody(),
            Self::There(remote) => remote.is_somebody(),
        }
    }

    /// Resolves at Ctrl-C. A command that waits for this ends by itself then; any other is ended. It counts from this call on,
    /// not from the first poll: what is printed in between may be answered by Ctrl-C.
    pub(crate) fn interrupted(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        match self {
            Self::Here => match signal(SignalKind::interrupt()) {
                Ok(mut pressed) => Box::pin(async move {
                    let _ = pressed.recv().await;
                }),
                // Without a handler for it the signal ends the process.
                Err(_) => Box::pin(std::future::pending()),
            },
            Self::There(remote) => Box::pin(remote.interrupted()),
        }
    }
}

pub(crate) fn is_somebody() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

pub(crate) fn files_in(path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let entries: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
    Ok(Some(entries.into_iter().map(|e| e.path()).filter(|p| p.is_file()).collect()))
}

pub(crate) fn read_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

pub(crate) async fn git(args: Vec<OsString>) -> io::Result<GitOutput> {
    let mut command = tokio::process::Command::new("git");
    let output = command.env("GIT_NO_REPLACE_OBJECTS", "1").args(args).output().await?;
    Ok(GitOutput { success: output.status.success(), stdout: output.stdout, stderr: output.stderr })
}
