//! The local service of a client: in process, as a real daemon, and from another language. S69, S01, S02.

use std::hash::{Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use client_sdk::local::{self, Listen, LocalChannel, Service, Serving};
use prost::Message as _;
use serde_json::Value;
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::client_client::ClientClient;
use sync_proto::client_v1::door_server::{Door, DoorServer};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, binary};
use tempfile::TempDir;
use tonic::{Code, Status};

// ---- in process -----------------------------------------------------------------------------------------------------

type Stub = ClientClient<LocalChannel>;

async fn stub(dir: &Path) -> Outcome<Stub> {
    let (_, channel) = local::connect(dir).await?.ok_or("no daemon answers")?;
    Ok(ClientClient::new(channel))
}

async fn serve(client: &TestClient, listen: Listen) -> Outcome<Serving> {
    Ok(Service::new(client.client.clone(), client.dir.path()).start(listen).await?)
}

fn socket(client: &TestClient) -> Listen {
    Listen::Unix(client.dir.path().join(local::SOCKET_FILE))
}

/// The code in the detail of a failure.
fn detail(status: &Status) -> pb::ErrorDetail {
    pb::ErrorDetail::decode(status.details()).unwrap_or_else(|e| panic!("{status:?} has no detail: {e}"))
}

#[tokio::test]
async fn what_the_sdk_does_is_done_over_the_socket() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let serving = serve(&ada, socket(&ada)).await?;
    let path = ada.dir.path().join(local::SOCKET_FILE);
    assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    let mut rpc = stub(ada.dir.path()).await?;
    let me = rpc.get_me(pb::GetMeRequest {}).await?.into_inner();
    assert_eq!(me.account, ada.account().to_string());
    let space = rpc.create_space(pb::CreateSpaceRequest { name: "Club".to_owned(), options: None }).await?.into_inner();
    assert_eq!((space.name.as_deref(), space.role), (Some("Club"), pb::Role::Owner.into()));

    // A partial write clears nothing.
    let put = |fields: &str| pb::PutObjectRequest {
        space: space.space.clone(),
        r#type: "item".to_owned(),
        id: "milk".to_owned(),
        fields_json: fields.to_owned(),
    };
    rpc.put_object(put(r#"{"n":9007199254740991,"title":"Milk"}"#)).await?;
    let write = rpc.put_object(put(r#"{"title":"Oat milk"}"#)).await?.into_inner().write;
    assert!(write.is_some());
    assert_eq!(rpc.put_object(put(r#"{"title":"Oat milk"}"#)).await?.into_inner().write, None);
    let get = pb::GetObjectRequest { only_fields: Vec::new(), ..get(&space.space, "item", "milk") };
    let object = rpc.get_object(get.clone()).await?.into_inner();
    assert_eq!(object.fields_json, r#"{"n":9007199254740991,"title":"Oat milk"}"#);
    let one = pb::GetObjectRequest { only_fields: vec!["title".to_owned()], ..get };
    assert_eq!(rpc.get_object(one).await?.into_inner().fields_json, r#"{"title":"Oat milk"}"#);

    let inexact = rpc.put_object(put(r#"{"n":9007199254740993}"#)).await.expect_err("a double would round it");
    assert_eq!((inexact.code(), detail(&inexact).code.as_str()), (Code::InvalidArgument, "INEXACT_NUMBER"));

    // Progress, then exactly one answer, with a receipt that anybody can judge.
    let await_synced =
        pb::AwaitSyncedRequest { space: space.space.clone(), patience: patience(60_000), ..Default::default() };
    let mut steps = rpc.await_synced(await_synced).await?.into_inner();
    let mut last = None;
    while let Some(step) = steps.message().await? {
        assert!(!matches!(last, Some(pb::await_synced_response::Step::Synced(_))), "nothing follows the answer");
        last = step.step;
    }
    let Some(pb::await_synced_response::Step::Synced(synced)) = last else { panic!("{last:?}") };
    let receipt = synced.receipt.ok_or("a receipt")?;
    let judged = rpc.verify_receipt(pb::VerifyReceiptRequest { text: receipt.text.clone() }).await?.into_inner();
    assert_eq!(judged, receipt);

    // A tree of one's own, read as a feed.
    let change = |payload: &str| pb::TreeChange {
        has_parents: false,
        parents: Vec::new(),
        payload: payload.to_owned().into_bytes().into(),
    };
    let create = pb::CreateTreeRequest {
        space: space.space.clone(),
        data_type: "log/1".to_owned(),
        write_rule: None,
        changes: vec![change("one"), change("two"), change("three")],
    };
    let tree = rpc.create_tree(create).await?.into_inner();
    let wait = pb::AwaitDurableRequest { space: space.space.clone(), write: tree.writes[2], ..Default::default() };
    let mut steps = rpc.await_durable(wait).await?.into_inner();
    while steps.message().await?.is_some() {}
    let (mut read, mut after_seq) = (Vec::new(), 0);
    loop {
        let request =
            pb::ListTreeChangesRequest { space: space.space.clone(), tree: tree.tree.clone(), after_seq, page_size: 2 };
        let page = rpc.list_tree_changes(request).await?.into_inner();
        after_seq = page.changes.last().map_or(after_seq, |c| c.seq);
        read.extend(page.changes.into_iter().map(|c| String::from_utf8_lossy(&c.payload).into_owned()));
        if !page.more {
            break;
        }
    }
    assert_eq!(read, ["one", "two", "three"]);

    // What goes wrong has a code, and names what is wrong.
    let missing = rpc.get_object(self::get(&space.space, "item", "none")).await.expect_err("there is none");
    assert_eq!((missing.code(), detail(&missing).code.as_str()), (Code::NotFound, "NO_SUCH_OBJECT"));
    assert_eq!(detail(&missing).subject, "item/none");
    let wrong = rpc.get_object(self::get("acct_x", "item", "none")).await.expect_err("no space");
    assert_eq!((wrong.code(), detail(&wrong).subject.as_str()), (Code::InvalidArgument, "space"));

    serving.close().await;
    assert!(
        !path.exists() && !ada.dir.path().join(local::PLACE_FILE).exists(),
        "nothing is left that nobody answers on"
    );
    assert!(local::connect(ada.dir.path()).await?.is_none());
    Ok(())
}

fn patience(timeout_ms: u64) -> Option<pb::Patience> {
    Some(pb::Patience { timeout_ms: Some(timeout_ms), stall_ms: None })
}

fn get(space: &str, object_type: &str, id: &str) -> pb::GetObjectRequest {
    pb::GetObjectRequest {
        space: space.to_owned(),
        r#type: object_type.to_owned(),
        id: id.to_owned(),
        only_fields: Vec::new(),
    }
}

#[tokio::test]
async fn a_loopback_port_opens_to_its_token_alone() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let serving = serve(&ada, Listen::Loopback { port: 0 }).await?;
    let token = serving.place().token_file.clone().ok_or("a token")?;
    assert_eq!(std::fs::metadata(&token)?.permissions().mode() & 0o777, 0o600);
    stub(ada.dir.path()).await?.get_me(pb::GetMeRequest {}).await?;

    let target = format!("http://{}", serving.place().target);
    let mut stranger = ClientClient::connect(target.clone()).await?;
    let right = std::fs::read_to_string(&token)?.trim().to_owned();
    for wrong in [None, Some("Bearer "), Some("Bearer nonsense"), Some(right.as_str())] {
        let mut request = tonic::Request::new(pb::GetMeRequest {});
        if let Some(text) = wrong {
            request.metadata_mut().insert("authorization", text.parse()?);
        }
        let refused = stranger.get_me(request).await.expect_err("no token");
        assert_eq!((refused.code(), detail(&refused).code.as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"));
    }
    let mut request = tonic::Request::new(pb::GetMeRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {right}").parse()?);
    stranger.get_me(request).await?;
    serving.close().await;
    assert!(!token.exists());
    Ok(())
}

#[tokio::test]
async fn a_connection_has_so_many_awaits_and_no_more() -> Outcome {
    const MAX: usize = sync_core::limits::LOCAL_AWAITS_MAX;
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let space = ada.create_space("Club").await?.id().to_string();
    let serving = serve(&ada, socket(&ada)).await?;
    let mut rpc = stub(ada.dir.path()).await?;
    let wait = || pb::AwaitObjectRequest {
        space: space.clone(),
        r#type: "note".to_owned(),
        id: "never".to_owned(),
        patience: patience(0),
    };
    let mut waiting = Vec::new();
    for _ in 0..MAX {
        waiting.push(rpc.await_object(wait()).await?.into_inner());
    }
    let refused = rpc.await_object(wait()).await.expect_err("one too many");
    assert_eq!((refused.code(), detail(&refused).code.as_str()), (Code::ResourceExhausted, "TOO_MANY_AWAITS"));
    // Another connection has room of its own, and other calls are not in the way.
    stub(ada.dir.path()).await?.await_object(wait()).await?;
    rpc.get_me(pb::GetMeRequest {}).await?;

    // A caller that goes away leaves nothing behind: as many fit again.
    drop(waiting);
    let begun = std::time::Instant::now();
    let mut again = Vec::new();
    while again.len() < MAX {
        match rpc.await_object(wait()).await {
            Ok(stream) => again.push(stream.into_inner()),
            // The resets are on their way; each answer shows how far they came.
            Err(status) => assert!(begun.elapsed() < PATIENCE, "{} came back: {status}", again.len()),
        }
    }
    serving.close().await;
    for stream in &mut again {
        while let Ok(Some(_)) = stream.message().await {}
    }
    Ok(())
}

#[tokio::test]
async fn a_closing_service_says_so_to_its_streams() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let serving = serve(&ada, socket(&ada)).await?;
    let mut rpc = stub(ada.dir.path()).await?;
    let mut events = rpc.events(pb::EventsRequest { space: String::new(), cursor: None }).await?.into_inner();
    assert!(matches!(events.message().await?.and_then(|e| e.event), Some(pb::event::Event::Listening(_))));
    serving.close().await;
    // What happened before it closed is told before.
    let ended = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(ended) => break ended,
        }
    };
    assert_eq!((ended.code(), detail(&ended).code.as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    Ok(())
}

#[tokio::test]
async fn a_socket_that_is_none_is_left_alone() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let path = ada.dir.path().join("mine");
    std::fs::write(&path, "precious")?;
    let refused = serve(&ada, Listen::Unix(path.clone())).await.expect_err("a file");
    assert!(refused.to_string().contains("is no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path)?, "precious");
    let long = ada.dir.path().join("x".repeat(120));
    let refused = serve(&ada, Listen::Unix(long)).await.expect_err("too long");
    assert!(refused.to_string().contains("loopback"), "{refused}");
    // One that somebody answers on stays theirs.
    let serving = serve(&ada, socket(&ada)).await?;
    let refused = serve(&ada, socket(&ada)).await.expect_err("in use");
    assert!(refused.to_string().contains("in use"), "{refused}");
    stub(ada.dir.path()).await?.get_me(pb::GetMeRequest {}).await?;
    serving.close().await;
    Ok(())
}

/// Answers on a port as somebody who has read everything but the token.
struct Impostor {
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

#[tonic::async_trait]
impl Door for Impostor {
    async fn prove(
        &self,
        request: tonic::Request<pb::ProveRequest>,
    ) -> Result<tonic::Response<pb::ProveResponse>, Status> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        assert!(request.metadata().get("authorization").is_none(), "the token is not sent before the proof");
        Ok(tonic::Response::new(pb::ProveResponse { proof: request.into_inner().nonce }))
    }
}

#[tokio::test]
async fn who_answers_on_a_port_proves_it_before_anything_is_said() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let token_file = ada.dir.path().join(local::TOKEN_FILE);
    std::fs::write(&token_file, "secret\n")?;
    let place = local::Place {
        pid: std::process::id(),
        version: String::new(),
        target: listener.local_addr()?.to_string(),
        token_file: Some(token_file),
    };
    std::fs::write(ada.dir.path().join(local::PLACE_FILE), serde_json::to_vec(&place)?)?;
    let asked = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let impostor = DoorServer::new(Impostor { asked: asked.clone() });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tokio::spawn(tonic::transport::Server::builder().add_service(impostor).serve_with_incoming(incoming));
    let refused = local::connect(ada.dir.path()).await.expect_err("it has no token");
    assert!(matches!(refused, local::ConnectError::Unproven { .. }), "{refused:?}");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    serving.abort();
    Ok(())
}

/// What was proved holds for one connection: nobody gets the next call who took the port meanwhile.
#[tokio::test]
async fn a_connection_to_a_port_is_not_made_anew() -> Outcome {
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let serving = serve(&ada, Listen::Loopback { port: 0 }).await?;
    let target = serving.place().target.clone();
    let mut rpc = stub(ada.dir.path()).await?;
    rpc.get_me(pb::GetMeRequest {}).await?;
    serving.close().await;
    let taken = std::net::TcpListener::bind(&target)?;
    taken.set_nonblocking(true)?;
    // If somebody was asked, he does not answer.
    let asked = tokio::time::timeout(std::time::Duration::from_secs(5), rpc.get_me(pb::GetMeRequest {})).await;
    let reached = taken.accept();
    assert!(asked.is_ok_and(|answer| answer.is_err()), "the daemon is gone");
    assert!(reached.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{reached:?}");
    Ok(())
}

/// Connections that bring no token take no place from one that does.
#[tokio::test]
async fn strangers_on_the_port_keep_nobody_out() -> Outcome {
    use tokio::io::AsyncReadExt as _;
    let node = NodeProcess::start();
    let ada = TestClient::create("Ada", node.address()).await;
    let serving = serve(&ada, Listen::Loopback { port: 0 }).await?;
    // One that has the token, and is older than all of them.
    let mut owner = stub(ada.dir.path()).await?;
    owner.get_me(pb::GetMeRequest {}).await?;
    let mut strangers = Vec::new();
    for _ in 0..sync_core::limits::LOCAL_CONNECTIONS_MAX + 10 {
        strangers.push(tokio::net::TcpStream::connect(&serving.place().target).await?);
    }
    let mut late = tokio::time::timeout(sync_core::limits::LOCAL_UNPROVEN_MAX / 2, stub(ada.dir.path())).await??;
    late.get_me(pb::GetMeRequest {}).await?;
    owner.get_me(pb::GetMeRequest {}).await?;
    // The oldest of them gave way. What it is still told is that it has to go.
    let mut said = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, strangers[0].read_to_end(&mut said)).await?;
    serving.close().await;
    Ok(())
}

// ---- as a daemon ----------------------------------------------------------------------------------------------------

/// A data directory with an account.
struct Person {
    dir: TempDir,
}

impl Person {
    fn init(name: &str, node: &NodeProcess) -> Self {
        let person = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        person.ok(&["init", "--node", &node.address().to_string(), "--name", name]);
        person
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("headwater"));
        command.arg("--data").arg(self.dir.path()).arg("--json").args(args);
        command.env_remove("HEADWATER_DATA").env_remove("HEADWATER_PASSPHRASE").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("headwater runs")
    }

    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn daemon(&self, listen: &str) -> Daemon {
        let mut child =
            self.command(&["daemon", "--listen", listen]).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        assert_eq!((&said["event"], said["pid"].as_u64()), (&"listening".into(), Some(child.id().into())));
        Daemon { child: Some(child) }
    }
}

struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn kill(mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// SIGTERM, and its exit code.
    fn stop(mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it can be told");
        child.wait().expect("it ends").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn error(output: &Output) -> Value {
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{output:?}: {e}"));
    json["error"].clone()
}

/// S69: two processes, one data directory.
#[test]
fn s69_a_second_process_is_told_who_has_the_directory_and_what_to_do() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.ok(&["space", "create", "Club"]);

    // A command that holds the directory, and one that comes meanwhile.
    let mut holder = ada.command(&["watch"]).stdout(Stdio::piped()).spawn().expect("watch starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout is piped"));
    lines.read_line(&mut String::new()).expect("it is open");
    let refused = ada.run(&["list"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    let said = error(&refused);
    assert_eq!(said["code"], "IN_USE");
    assert!(said["causes"].to_string().contains(&format!("process {}", holder.id())), "{said}");
    assert!(said["hint"].to_string().contains("wait for the other command"), "{said}");
    holder.kill().expect("it can be killed");
    holder.wait().expect("it ends");
    ada.ok(&["list"]);

    // A daemon: other commands go through it, another daemon is refused with its name.
    let daemon = ada.daemon("unix");
    ada.ok(&["list"]);
    let refused = ada.run(&["daemon"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    let said = error(&refused);
    assert_eq!(said["code"], "IN_USE");
    assert!(said["causes"].to_string().contains(&format!("process {}", daemon.pid())), "{said}");
    assert!(said["hint"].to_string().contains("a daemon has it"), "{said}");
    ada.ok(&["list"]);
    assert_eq!(daemon.stop(), Some(0));
    assert!(!ada.dir.path().join("daemon.json").exists());
    ada.ok(&["list"]);
}

/// What a killed daemon leaves is in nobody's way.
#[test]
fn the_socket_of_a_killed_daemon_is_replaced() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.daemon("unix").kill();
    assert!(ada.dir.path().join("daemon.sock").exists() && ada.dir.path().join("daemon.json").exists());
    // Nobody answers: the command opens the directory itself.
    ada.ok(&["whoami"]);
    let daemon = ada.daemon("unix");
    ada.ok(&["whoami"]);
    daemon.kill();
    let daemon = ada.daemon("loopback");
    ada.ok(&["whoami"]);
    assert_eq!(daemon.stop(), Some(0));
}

/// Whoever listens where a killed daemon listened gets nothing, not even a connection.
#[test]
fn nobody_inherits_the_port_of_a_killed_daemon() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    let daemon = ada.daemon("loopback");
    ada.ok(&["space", "create", "Club"]);
    daemon.kill();
    let place: Value =
        serde_json::from_slice(&std::fs::read(ada.dir.path().join("daemon.json")).expect("it is left")).expect("JSON");
    let taken = std::net::TcpListener::bind(place["target"].as_str().expect("a port")).expect("the port is free");
    taken.set_nonblocking(true).expect("a socket");
    assert_eq!(ada.ok(&["put", "item", "milk", "{}"])["id"], "milk");
    let reached = taken.accept();
    assert!(reached.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{reached:?}");
    // Without its token it is no daemon either, and no failure.
    std::fs::remove_file(ada.dir.path().join("daemon.token")).expect("it is left");
    ada.ok(&["whoami"]);
}

/// A copy of a data directory is not what the daemon of the original has.
#[test]
fn a_copied_directory_has_no_daemon() {
    let mut node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.ok(&["space", "create", "Club"]);
    let daemon = ada.daemon("unix");
    let copy = Person { dir: tempfile::tempdir().expect("a temporary directory") };
    let mut copying = Command::new("cp");
    copying.arg("-a").arg(format!("{}/.", ada.dir.path().display())).arg(copy.dir.path());
    assert!(copying.status().expect("cp runs").success());
    assert!(copy.dir.path().join("daemon.json").exists());
    // Nothing comes back to the original by way of the node.
    node.kill();
    copy.ok(&["put", "note", "here", "{}", "--no-wait"]);
    assert_eq!(ada.run(&["get", "note", "here"]).status.code(), Some(3), "the original was not written to");
    // One that only looks like the daemon's: the daemon itself says no.
    let alias = Person { dir: tempfile::tempdir().expect("a temporary directory") };
    for file in ["daemon.json", "lock"] {
        std::os::unix::fs::symlink(ada.dir.path().join(file), alias.dir.path().join(file)).expect("a link");
    }
    let refused = alias.run(&["put", "note", "here", "{}"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert_eq!(error(&refused)["code"], "OTHER_DAEMON", "{refused:?}");
    // The same directory by another name is the same.
    std::os::unix::fs::symlink(ada.dir.path(), alias.dir.path().join("link")).expect("a link");
    let linked =
        Command::new(binary("headwater")).arg("--data").arg(alias.dir.path().join("link")).arg("whoami").output();
    assert!(linked.as_ref().is_ok_and(|output| output.status.success()), "{linked:?}");
    assert_eq!(daemon.stop(), Some(0));
}

fn press(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, signal).expect("it can be told");
}

/// Until Ctrl-C is this process's own affair.
fn until_it_listens(child: &Child) {
    let begun = std::time::Instant::now();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("its signals");
        let caught = u64::from_str_radix(caught.trim(), 16).expect("a number");
        if caught & (1 << (nix::libc::SIGINT - 1)) != 0 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "it never listens");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// How a process ended that had the time of a patient person.
fn ended(child: &mut Child) -> Option<std::process::ExitStatus> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("it can be asked") {
            return Some(status);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    None
}

/// Ctrl-C is heard while a command waits for its own terminal, and while the daemon says nothing at all.
#[test]
fn ctrl_c_ends_a_command_whatever_it_waits_for() {
    use nix::sys::signal::Signal;
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.ok(&["space", "create", "Club"]);
    let daemon = ada.daemon("unix");
    // A file that nobody writes to: opening it for writing waits for its reader, so afterwards the command is reading.
    let fifo = ada.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let fifo_path = fifo.display().to_string();
    let mut reading = ada.command(&["import", &fifo_path]).spawn().expect("import starts");
    let writer = std::fs::File::options().write(true).open(&fifo).expect("it is read");
    press(&reading, Signal::SIGINT);
    let status = ended(&mut reading).expect("Ctrl-C ends it");
    assert_eq!(status.code(), Some(130));
    drop(writer);
    // The second one needs nobody's help.
    let stopped = daemon.child.as_ref().expect("it runs");
    press(stopped, Signal::SIGSTOP);
    let mut stuck = ada.command(&["whoami"]).spawn().expect("whoami starts");
    until_it_listens(&stuck);
    let begun = std::time::Instant::now();
    // Two that come at once are one.
    while stuck.try_wait().expect("it can be asked").is_none() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "Ctrl-C does nothing");
        press(&stuck, Signal::SIGINT);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    press(stopped, Signal::SIGCONT);
    assert_eq!(daemon.stop(), Some(0));
}

/// SIGTERM does not wait for those who only listen, and a Ctrl-C goes where the command runs.
#[test]
fn commands_that_listen_end_with_their_caller_and_with_the_daemon() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.ok(&["space", "create", "Club"]);
    let daemon = ada.daemon("unix");
    let listen = || {
        let mut child = ada.command(&["events"]).stdout(Stdio::piped()).spawn().expect("events start");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert!(line.contains("listening"), "{line}");
        child
    };
    let mut pressed = listen();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pressed.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it can be told");
    assert_eq!(pressed.wait().expect("it ends").code(), Some(0), "Ctrl-C ends what listens as it should");
    // One that does not listen for it is ended.
    let mut waiting = ada.command(&["get", "note", "never", "--wait", "--timeout", "10m"]).spawn().expect("get starts");
    let mut gone = listen();
    gone.kill().expect("it can be killed");
    gone.wait().expect("it ends");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.id()).expect("a process id"));
    // Ctrl-C counts once the command was handed over; before, it ends the process by itself.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it can be told");
    assert_ne!(waiting.wait().expect("it ends").code(), Some(0));
    let mut left = listen();
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(left.wait().expect("it ends").code(), Some(0), "a daemon that stops ends what listens");
}

/// What a command reads and writes lies where it was typed, and another node is another opening.
#[test]
fn files_and_settings_of_a_command_are_its_callers() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    ada.ok(&["space", "create", "Club"]);
    let daemon = ada.daemon("unix");
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(elsewhere.path().join("item.json"), r#"[{"id":"milk","n":1},{"id":"tea"}]"#).expect("written");
    let here = |args: &[&str]| {
        let output = ada.command(args).current_dir(elsewhere.path()).output().expect("headwater runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or(Value::Null)
    };
    assert_eq!(here(&["import", "item.json"])["records"], 2);
    here(&["export", "out"]);
    let exported = std::fs::read_to_string(elsewhere.path().join("out/item.json")).expect("it was written here");
    assert_eq!(exported, r#"[{"id":"milk","n":1},{"id":"tea"}]"#);
    here(&["export", "--check", "item.json"]);
    let missing = ada.command(&["import", "none.json"]).current_dir(elsewhere.path()).output().expect("it runs");
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    // stdin is the caller's.
    let mut put =
        ada.command(&["put", "item", "tea", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("put");
    std::io::Write::write_all(&mut put.stdin.take().expect("stdin"), br#"{"from":"stdin"}"#).expect("written");
    assert!(put.wait().expect("it ends").success());
    assert_eq!(here(&["get", "item", "tea"])["fields"]["from"], "stdin");
    // The same account, opened anew with the same node's address: the daemon goes on.
    let address = node.address().to_string();
    assert_eq!(here(&["node", "set", &address])["node"], address.as_str());
    assert_eq!(here(&["get", "item", "tea"])["fields"]["from"], "stdin");
    assert_eq!(daemon.stop(), Some(0));
}

// ---- from another language ------------------------------------------------------------------------------------------

/// S01, S02 and S05 from Python: one daemon on a socket, one on a port, a real node between them.
#[test]
fn the_seed_story_from_python() {
    let node = NodeProcess::start();
    let (ada, bo) = (Person::init("Ada", &node), Person::init("Bo", &node));
    let (_first, _second) = (ada.daemon("unix"), bo.daemon("loopback"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python(&root.join("python/requirements.txt")))
        .arg(root.join("python/seed_story.py"))
        .arg(root.join("../proto/proto"))
        .arg(ada.dir.path())
        .arg(bo.dir.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.trim(), "the seed story holds");
}

/// The example in docs/local-rpc.md, as it stands there.
#[test]
fn the_example_in_the_docs_runs() {
    let node = NodeProcess::start();
    let ada = Person::init("Ada", &node);
    let daemon = ada.daemon("loopback");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../docs/local-rpc.md")).expect("the page");
    let example = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("example.py"), example).expect("written");
    let python = python(&root.join("python/requirements.txt"));
    let mut stubs = Command::new(&python);
    stubs.args(["-m", "grpc_tools.protoc", "--python_out=.", "--grpc_python_out=."]).current_dir(dir.path());
    stubs.arg(format!("-I{}", root.join("../proto/proto").display()));
    run(stubs.arg("headwater/client/v1/client.proto"));
    let output = Command::new(&python).arg("example.py").arg(ada.dir.path()).current_dir(dir.path()).output();
    let output = output.expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("the node has signed for entry "), "{said}");
    assert_eq!(&lines[1..], ["NO_SUCH_OBJECT"], "{said}");
    assert_eq!(daemon.stop(), Some(0));
}

/// A Python with what the requirements name, in an environment of its own under target/; made once for these requirements.
fn python(requirements: &Path) -> PathBuf {
    let wanted = std::fs::read(requirements).expect("the requirements");
    let target = binary("headwater").ancestors().nth(2).expect("target/<profile>/headwater").to_owned();
    let mut hasher = std::hash::DefaultHasher::new();
    wanted.hash(&mut hasher);
    let dir = target.join(format!("python-{:016x}", hasher.finish()));
    let python = dir.join("bin/python");
    // Two tests may want it at once.
    let lock = std::fs::File::create(target.join("python.lock")).expect("a lock file");
    lock.lock().expect("a lock");
    if dir.join("complete").exists() {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements));
    std::fs::write(dir.join("complete"), "").expect("it can be marked");
    python
}

fn run(command: &mut Command) {
    const WHAT: &str = "this test needs Python 3.9 or newer with venv and pip: apt-get install python3 python3-venv";
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}\n{WHAT}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}\n{}\n{WHAT}", String::from_utf8_lossy(&output.stdout));
}
