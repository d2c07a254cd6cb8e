//! A real node process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use client_sdk::NodeAddress;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::error::CliError;

/// How long a node may take to print its address.
const START_MAX: Duration = Duration::from_secs(30);

/// A node that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct NodeProcess {
    child: Child,
    binary: PathBuf,
    dir: PathBuf,
    address: NodeAddress,
}

impl NodeProcess {
    /// Starts a node on a free port.
    pub(super) async fn start(binary: &Path, dir: &Path) -> Result<Self, CliError> {
        let (child, address) = spawn(binary, dir, "127.0.0.1:0").await?;
        Ok(Self { child, binary: binary.to_owned(), dir: dir.to_owned(), address })
    }

    pub(super) const fn address(&self) -> &NodeAddress {
        &self.address
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// SIGKILL: no goodbye, no flush.
    pub(super) async fn kill(&mut self) -> Result<(), CliError> {
        self.child.kill().await.map_err(CliError::file(&self.binary))
    }

    /// Starts it again, with the same data and at the same address.
    pub(super) async fn restart(&mut self) -> Result<(), CliError> {
        let (child, address) = spawn(&self.binary, &self.dir, &self.address.endpoint).await?;
        if address != self.address {
            return Err(CliError::Different(format!("the node came back as {address}, not as {}", self.address)));
        }
        self.child = child;
        Ok(())
    }
}

async fn spawn(binary: &Path, dir: &Path, listen: &str) -> Result<(Child, NodeAddress), CliError> {
    let log_file = dir.with_extension("log");
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(&log_file).map_err(CliError::file(&log_file))?;
    let mut child = Command::new(binary)
        .arg("--data")
        .arg(dir)
        .args(["--listen", listen])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .map_err(CliError::file(binary))?;
    let stdout = child.stdout.take().ok_or_else(|| CliError::Internal("the node has no stdout".to_owned()))?;
    let mut lines = BufReader::new(stdout).lines();
    let said = |what: String| {
        let log = std::fs::read_to_string(&log_file).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it said nothing").to_owned();
        CliError::Internal(format!("the node {what}: {last}"))
    };
    let line = tokio::time::timeout(START_MAX, lines.next_line()).await;
    let line = line.map_err(|_| said(format!("did not start in {} s", START_MAX.as_secs())))?;
    let line = line.map_err(CliError::file(binary))?.ok_or_else(|| said("ended at once".to_owned()))?;
    let address = line.parse().map_err(|_| said(format!("printed {line:?} instead of its address")))?;
    Ok((child, address))
}
