//! Real processes: a node that can be killed and started again on the same data and port, and clients with data directories.

use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use client_sdk::{
    AclId, Client, ClientConfig, InviteOptions, Joining, NewObject, NodeAddress, Object, ObjectChange, ObjectWatch,
    ReasonCode, Role, Space, TreeId, Unlock,
};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// What a scenario on a loaded two-core machine may take at most before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A binary of this workspace, built beside the test that asks.
///
/// # Panics
/// If it is not there: `cargo build --workspace --bins` makes it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    // Tests lie in target/<profile>/deps, programs one above.
    let profile = if folder.ends_with("deps") { folder.parent().expect("deps lies in a profile") } else { folder };
    let path = profile.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Where a process keeps its data.
#[derive(Debug)]
enum Data {
    /// Gone with the handle.
    Own(TempDir),
    Given(PathBuf),
}

impl Data {
    fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

/// A node process with a data directory of its own.
#[derive(Debug)]
pub struct NodeProcess {
    data: Data,
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
        Self::start_under(&[], flags)
    }

    /// Starts a node by way of another program, which must become the node: `["prlimit", "--nofile=64"]`.
    #[must_use]
    pub fn start_under(program: &[&str], flags: &[&str]) -> Self {
        Self::launch(program, Data::Own(tempfile::tempdir().expect("a temporary directory")), flags)
    }

    /// Starts a node with its data in a directory that is the caller's.
    #[must_use]
    pub fn start_in(dir: &Path, flags: &[&str]) -> Self {
        Self::launch(&[], Data::Given(dir.to_owned()), flags)
    }

    fn launch(program: &[&str], data: Data, flags: &[&str]) -> Self {
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let (child, stdout, address) = launch(program, data.path(), "127.0.0.1:0", &flags);
        Self { data, child: Some(child), stdout: Some(stdout), address, flags }
    }

    /// A node with a copy of this one's data, keys included, on a port of its own: one authority that can tell two stories.
    /// This one should be stopped while the copy is made.
    ///
    /// # Panics
    /// If the copy cannot be made.
    #[must_use]
    pub fn twin(&self) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy_into(self.dir(), dir.path());
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let twin = Self::launch(&[], Data::Own(dir), &flags);
        assert_eq!(twin.address.authority, self.address.authority, "a twin has the same keys");
        twin
    }

    /// A copy of the stopped node's store, as it is now.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn copy_store(&self) -> TempDir {
        assert!(self.child.is_none(), "the copy of a running node's file is none");
        let copy = tempfile::tempdir().expect("a temporary directory");
        copy_into(&self.dir().join("store"), copy.path());
        copy
    }

    /// Puts an older copy in the place of the stopped node's store, and says so to nobody.
    ///
    /// # Panics
    /// If it cannot be done.
    pub fn put_back(&self, copy: &TempDir) {
        assert!(self.child.is_none(), "a running node keeps its store");
        let store = self.dir().join("store");
        std::fs::remove_dir_all(&store).expect("the store can be removed");
        std::fs::create_dir(&store).expect("and made again");
        copy_into(copy.path(), &store);
    }

    /// Has the node's program do something with its data besides serving; what it said.
    ///
    /// # Panics
    /// If it fails.
    pub fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("sync-node"));
        let output = command.arg("--data").arg(self.dir()).args(arguments).output().expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text")
    }

    /// Where it listens, and who it is.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Its data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.data.path()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal, and waits for nothing.
    ///
    /// # Panics
    /// If the process is not there.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.child.as_ref().expect("the node runs"), signal);
    }

    /// Waits until it ends, by itself or as it was asked to.
    ///
    /// # Panics
    /// If the process was not there.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        self.stdout = None;
        child.wait().expect("a child can be waited for")
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
        self.restart_under(&[]);
    }

    /// The same, by way of another program.
    ///
    /// # Panics
    /// If it is somebody else now.
    pub fn restart_under(&mut self, program: &[&str]) {
        self.kill();
        let (child, stdout, address) = launch(program, self.data.path(), &self.address.endpoint, &self.flags);
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

/// Sends a signal to a child.
///
/// # Panics
/// If it is not there.
pub fn send_signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("a child takes a signal");
}

/// A command that runs `binary` by way of `program`, if there is one.
fn command(program: &[&str], binary: PathBuf) -> Command {
    match program {
        [] => Command::new(binary),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(binary);
            command
        }
    }
}

fn copy_into(from: &Path, to: &Path) {
    let everything = from.join(".");
    let status = Command::new("cp").arg("-a").arg(everything).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} is copied to {}", from.display(), to.display());
}

fn launch(
    program: &[&str],
    dir: &Path,
    listen: &str,
    flags: &[String],
) -> (Child, BufReader<ChildStdout>, NodeAddress) {
    let mut child = command(program, binary("sync-node"))
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
        Self::create_with(name, node, |config| config).await
    }

    /// Makes an account that uses the node, with more settings.
    pub async fn create_with(name: &str, node: &NodeAddress, more: impl Fn(ClientConfig) -> ClientConfig) -> Self {
        show_logs();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = more(config(dir.path())).node(node.clone()).name(name);
        let (client, _) = Client::create(config).await.expect("a client can be made");
        Self { dir, client }
    }

    /// The id of its own profile.
    #[must_use]
    pub fn own(&self) -> String {
        self.account().to_string()
    }

    /// Closes it and opens it again.
    pub async fn reopen(self) -> Self {
        Self::open(self.shut().await).await
    }

    /// Closes the client, and keeps its directory.
    pub async fn shut(self) -> TempDir {
        let Self { dir, client } = self;
        client.close().await;
        dir
    }

    /// Opens the account in a directory, at another node of the same authority.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub async fn open_at(dir: TempDir, node: &NodeAddress) -> Self {
        let client = Client::open(config(dir.path()).node(node.clone())).await.expect("a client can be opened again");
        Self { dir, client }
    }

    /// Opens the account in a directory, whatever process had it before.
    pub async fn open(dir: TempDir) -> Self {
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

// ---- from one to the other ------------------------------------------------------------------------------------------

/// How scenario tests end.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Waits until `check` gives a value, looking again whenever something about the space's sync has moved.
///
/// # Errors
/// When it did not within [`PATIENCE`], or `check` fails.
pub async fn until<T>(space: &Space, mut check: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let mut since = 0;
    // For all of it: something may move all the time, and never be what is waited for.
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check()? {
            return Ok(found);
        }
        tokio::time::timeout_at(end, space.status_changed(&mut since)).await?;
    }
}

/// Waits until a request to join is in the admin's own log.
///
/// # Errors
/// As [`until`].
pub async fn request_of(space: &Space, member: &Client) -> Outcome<AclId> {
    until(space, || Ok(space.request_of(member.account()).ok())).await
}

/// Accepts what a join asks for, and waits until it is ready.
///
/// # Errors
/// What either side meets.
pub async fn accept(
    space: &Space,
    member: &Client,
    joining: &Joining,
    role: Role,
    promised: &[TreeId],
) -> Outcome<Space> {
    let request = request_of(space, member).await?;
    space.approve(request, Some(role), |w| w.promise_trees(promised)).await?;
    Ok(joining.ready(PATIENCE).await?.remove(0))
}

/// The whole way of a member into a space: invite, join, approval.
///
/// # Errors
/// What either side meets.
pub async fn join(space: &Space, member: &Client, role: Role) -> Outcome<Space> {
    let invite = space.invite(InviteOptions { role, ..InviteOptions::approval() }).await?;
    let joining = member.join(&invite.token).await?;
    accept(space, member, &joining, role, &[]).await
}

/// New objects of one type, each with its number as its id.
///
/// # Panics
/// If the fields are no JSON object.
pub fn rows(object_type: &str, ids: Range<usize>, fields: impl Fn(usize) -> Value) -> Vec<NewObject> {
    let row = |n: usize| {
        let fields = serde_json::from_value(fields(n)).expect("the fields are a JSON object");
        NewObject { object_type: object_type.to_owned(), id: n.to_string(), fields }
    };
    ids.map(row).collect()
}

/// Puts that many [`rows`], a thousand at a time; each thousand is synced before the next.
///
/// # Errors
/// What a write or an await meets.
pub async fn put_rows(space: &Space, object_type: &str, count: usize, fields: impl Fn(usize) -> Value) -> Outcome {
    const CHUNK: usize = 1_000;
    for from in (0..count).step_by(CHUNK) {
        let chunk = rows(object_type, from..count.min(from + CHUNK), &fields);
        space.objects().put_many(chunk).await?;
        space.await_synced_within(PATIENCE).await?;
    }
    Ok(())
}

/// Waits until a replica says that its account is no member any more.
///
/// # Errors
/// As [`until`].
pub async fn gone(space: &Space) -> Outcome {
    until(space, || Ok(space.explain()?.iter().any(|r| r.code == ReasonCode::NotAMember).then_some(()))).await
}

/// All are synced, and hold the same: heads, objects, ACL. Twice round: what is sent in the first, all have in the second.
///
/// # Errors
/// What an await or a read meets.
///
/// # Panics
/// If two differ.
pub async fn agree(spaces: &[&Space]) -> Outcome {
    for _ in 0..2 {
        for space in spaces {
            space.await_synced_within(PATIENCE).await?;
        }
    }
    for space in &spaces[1..] {
        assert_eq!(heads(space)?, heads(spaces[0])?);
        assert_eq!(seen(space)?, seen(spaces[0])?);
        assert_eq!(space.acl()?, spaces[0].acl()?);
    }
    Ok(())
}

/// The next change that a watch tells of, which must be of an object that is there.
///
/// # Errors
/// When none comes within [`PATIENCE`], or it is something else.
pub async fn changed(watch: &mut ObjectWatch) -> Outcome<Object> {
    match tokio::time::timeout(PATIENCE, watch.next()).await?? {
        Some(ObjectChange::Changed(object)) => Ok(object),
        other => Err(format!("not a changed object: {other:?}").into()),
    }
}

/// The object as it is here, which must exist.
///
/// # Errors
/// When it does not, or cannot be read.
pub fn object(space: &Space, object_type: &str, id: &str) -> Outcome<Object> {
    Ok(space.objects().get(object_type, id)?.ok_or_else(|| format!("there is no {object_type} {id}"))?)
}

/// Everything that a reader sees, comparable between replicas.
///
/// # Errors
/// When something cannot be read.
pub fn seen(space: &Space) -> Outcome<Vec<Object>> {
    Ok(space.objects().list_all()?)
}

/// `heads_are_equal`: every tree of both replicas has the same heads, and both have the same trees.
///
/// # Errors
/// When something cannot be read.
pub fn heads(space: &Space) -> Outcome<Vec<(TreeId, Vec<client_sdk::ChangeId>)>> {
    let mut heads = Vec::new();
    for id in space.trees(None, 10_000)? {
        let tree = space.tree(id)?.ok_or("a listed tree is gone")?;
        heads.push((id, tree.snapshot()?.heads.iter().copied().collect()));
    }
    Ok(heads)
}
