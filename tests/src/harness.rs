//! Real processes: a node that can be killed and started again on the same data and port, and clients with data directories.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use client_sdk::{Client, ClientConfig, NodeAddress, Unlock};
use tempfile::TempDir;

/// What a scenario on a loaded two-core machine may take at most before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A binary of this workspace, built beside the test that asks.
///
/// # Panics
/// If it is not there: `cargo build --workspace --bins` makes it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps");
    let path = profile.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A node process with a data directory of its own.
#[derive(Debug)]
pub struct NodeProcess {
    dir: TempDir,
    child: Option<Child>,
    stdout: Option<BufReader<ChildStdout>>,
    address: NodeAddress,
    flags: Vec<String>,
}

impl NodeProcess {
    /// Starts a node on a free port, with TLS.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a node on a free port with more flags.
    #[must_use]
    pub fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let (child, stdout, address) = launch(dir.path(), "127.0.0.1:0", &flags);
        Self { dir, child: Some(child), stdout: Some(stdout), address, flags }
    }

    /// Where it listens, and who it is.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a running child can be killed");
            child.wait().expect("a killed child can be waited for");
        }
        self.stdout = None;
    }

    /// Starts it again on the same data directory and port.
    pub fn restart(&mut self) {
        self.kill();
        let (child, stdout, address) = launch(self.dir.path(), &self.address.endpoint, &self.flags);
        assert_eq!(address, self.address, "a node keeps its identity");
        self.child = Some(child);
        self.stdout = Some(stdout);
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(dir: &Path, listen: &str, flags: &[String]) -> (Child, BufReader<ChildStdout>, NodeAddress) {
    let mut child = Command::new(binary("sync-node"))
        .arg("--data")
        .arg(dir)
        .args(["--listen", listen])
        .args(flags)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the node starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the node prints its address");
    let address = line.trim().parse().unwrap_or_else(|e| panic!("not an address: {line:?}: {e}"));
    (child, stdout, address)
}

/// A client with a data directory of its own, which survives closing.
#[derive(Debug)]
pub struct TestClient {
    pub dir: TempDir,
    pub client: Client,
}

impl TestClient {
    /// Makes an account that uses the node.
    pub async fn create(name: &str, node: &NodeAddress) -> Self {
        show_logs();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path()).node(node.clone()).name(name);
        let (client, _) = Client::create(config).await.expect("a client can be made");
        Self { dir, client }
    }

    /// Closes it and opens it again.
    pub async fn reopen(self) -> Self {
        let Self { dir, client } = self;
        client.close().await;
        let client = Client::open(config(dir.path())).await.expect("a client can be opened again");
        Self { dir, client }
    }
}

impl std::ops::Deref for TestClient {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Client logs as `RUST_LOG` says; nothing without it.
fn show_logs() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Another test of this process may have been first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

/// How tests open a client in `dir`.
#[must_use]
pub fn config(dir: &Path) -> ClientConfig {
    ClientConfig::new(dir, Unlock::KeyFile(dir.join("device.key")))
}
