//! A client in a process of its own, which can be stopped, starved and killed as a node can.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use client_sdk::SpaceId;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::{Outcome, PATIENCE, binary};

/// A process that opened the account in a directory, and does what it is told: the program `sync-tests-client` says what.
/// Killed when dropped.
#[derive(Debug)]
pub struct ClientProcess {
    child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl ClientProcess {
    /// Opens the account in `dir`; ready when this returns.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn start(dir: &Path, space: SpaceId) -> Outcome<Self> {
        Self::start_under(&[], dir, space).await
    }

    /// The same, by way of another program, which must become the client.
    ///
    /// # Errors
    /// As [`ClientProcess::start`].
    pub async fn start_under(program: &[&str], dir: &Path, space: SpaceId) -> Outcome<Self> {
        let own = binary("sync-tests-client");
        let own = own.to_str().ok_or("a path that is text")?;
        let command: Vec<&str> = program.iter().copied().chain([own]).collect();
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .arg(dir)
            .arg(space.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().ok_or("stdin is piped")?;
        let stdout = child.stdout.take().ok_or("stdout is piped")?;
        let mut process = Self { child, stdin, answers: BufReader::new(stdout).lines() };
        process.answer().await?;
        Ok(process)
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Outcome<u32> {
        Ok(self.child.id().ok_or("the process has ended")?)
    }

    /// Sends a signal, and waits for nothing.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(nix::sys::signal::kill(Pid::from_raw(self.pid()?.try_into()?), signal)?)
    }

    /// Kills it, and returns when it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(mut self) -> Outcome {
        Ok(self.child.kill().await?)
    }

    /// Says a command without waiting for the answer: it may be stopped.
    ///
    /// # Errors
    /// When the process has ended.
    pub async fn tell(&mut self, command: &str) -> Outcome {
        Ok(self.stdin.write_all(format!("{command}\n").as_bytes()).await?)
    }

    /// The next answer.
    ///
    /// # Errors
    /// When none comes.
    pub async fn answer(&mut self) -> Outcome<Value> {
        self.answer_within(PATIENCE).await
    }

    async fn answer_within(&mut self, within: Duration) -> Outcome<Value> {
        let line = tokio::time::timeout(within, self.answers.next_line()).await??;
        Ok(serde_json::from_str(&line.ok_or("the process has ended")?)?)
    }

    /// A command and its answer.
    ///
    /// # Errors
    /// As [`ClientProcess::answer`].
    pub async fn ask(&mut self, command: &str) -> Outcome<Value> {
        self.tell(command).await?;
        self.answer().await
    }

    /// A command that has this long itself (`synced MS`, `changed MS`, here without the number), and its answer.
    ///
    /// # Errors
    /// As [`ClientProcess::answer`].
    pub async fn ask_within(&mut self, command: &str, within: Duration) -> Outcome<Value> {
        self.tell(&format!("{command} {}", within.as_millis())).await?;
        self.answer_within(within + PATIENCE).await
    }
}
