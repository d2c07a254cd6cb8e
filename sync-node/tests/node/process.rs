//! Configuration, restarts and the binary: what an operator sees.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use sync_core::token::{NodeAddress, Transport};
use sync_node::{Flags, IdentityError, Node, NodeConfig, StartError};

use sync_proto::v1::sync_client::SyncClient;

use crate::common::{Caller, Person, Space, Stage, code, start};

fn binary(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-node"));
    command.env_clear().arg("--data").arg(dir).args(["--listen", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The line that a ready node prints.
fn ready(child: &mut Child) -> NodeAddress {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().parse().unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

fn terminate(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

#[test]
fn a_node_says_where_it_is_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = binary(dir.path()).spawn().unwrap();
    let address = ready(&mut node);
    assert_eq!(address.transport, Transport::Tls);
    let file = dir.path().join("address");
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), address.to_string());

    let second = binary(dir.path()).output().unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(75), "{text}");
    assert!(text.contains("in use"), "{text}");
    assert!(second.stdout.is_empty());

    // Somebody who connected and never said a word holds up nobody.
    let _mute = std::net::TcpStream::connect(&address.endpoint).unwrap();
    let asked = Instant::now();
    terminate(&node);
    assert_eq!(node.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < sync_core::limits::DRAIN_TIMEOUT / 2);
    assert!(!file.exists());
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let open = binary(dir.path()).args(["--listen=0.0.0.0:0", "--plaintext"]).output().unwrap();
    assert_eq!(open.status.code(), Some(2));
    assert!(String::from_utf8(open.stderr).unwrap().contains("--behind-proxy"));
    let unknown = binary(dir.path()).arg("--no-such-flag").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let file = dir.path().join("node.toml");
    fs::write(&file, "no_such_setting = 1\n").unwrap();
    let misspelt = binary(dir.path()).arg("--config").arg(&file).output().unwrap();
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(String::from_utf8(misspelt.stderr).unwrap().contains("no_such_setting"));
    let filter = binary(dir.path()).args(["--log", "a=b=c"]).output().unwrap();
    assert_eq!(filter.status.code(), Some(2));
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let settings = "advertise = \"file.example:1\"\nlisten = \"127.0.0.1:1\"\nplaintext = true\n";
    fs::write(&file, settings).unwrap();
    let data = dir.path().join("data");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-node"));
    command.env_clear().env("HEADWATER_NODE_CONFIG", &file).env("HEADWATER_NODE_DATA", &data);
    command.env("HEADWATER_NODE_LISTEN", "127.0.0.1:2").env("HEADWATER_NODE_SOMETHING_ELSE", "1");
    command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut node = command.spawn().unwrap();
    let address = ready(&mut node);
    terminate(&node);
    node.wait().unwrap();
    assert_eq!((address.transport, address.endpoint.as_str()), (Transport::Plain, "file.example:1"));
    assert!(data.join("keys").exists());
}

#[test]
fn every_setting_has_a_default() {
    let config = NodeConfig::load(&Flags::default()).unwrap();
    assert_eq!(config, NodeConfig::default());
    assert_eq!(config.listen, "127.0.0.1:4710");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_in_the_open_is_refused_unless_a_proxy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = NodeConfig { listen: "0.0.0.0:0".into(), plaintext: true, ..NodeConfig::on_loopback(dir.path()) };
    assert!(matches!(Node::start(open.clone()).await, Err(StartError::PlaintextInTheOpen { .. })));
    let node = Node::start(NodeConfig { behind_proxy: true, ..open }).await.unwrap();
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_who_it_was_and_has_what_it_had() {
    let mut stage = Stage::new().await;
    stage.write(1, &["one"]).await;
    let before = stage.alice.push_space(&stage.space).await.unwrap();
    let authority = stage.node.address().authority;
    drop(stage.alice);
    stage.node.shutdown().await;

    let node = start(stage.dir.path()).await;
    assert_eq!(node.address().authority, authority);
    let mut alice = Caller::connect(&node, &Person::new(1)).await;
    let after = alice.push_space(&stage.space).await.unwrap();
    assert_eq!((after.seq, &after.chain, &after.history), (4, &before.chain, &before.history));
    assert_eq!(after.durable_seq, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = start(dir.path()).await;
    let second = Node::start(NodeConfig::on_loopback(dir.path())).await;
    assert!(matches!(second, Err(StartError::Store(sync_store::OpenError::InUse { .. }))));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_always_there_and_reflection_when_switched_on() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};

    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig { plaintext: true, reflection: true, ..NodeConfig::on_loopback(dir.path()) };
    let node = Node::start(config).await.unwrap();
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", node.local_addr().unwrap())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let service = "headwater.sync.v1.Sync".to_owned();
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest { service: service.clone() }).await;
    assert_eq!(health.unwrap().into_inner().status(), ServingStatus::Serving);
    let ask = MessageRequest::FileContainingSymbol(service);
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(format!("{:?}", answer.message_response).contains("FileDescriptor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_storage_fails_stops_with_exit_code_74() {
    let dir = tempfile::tempdir().unwrap();
    // A file that may not grow: writing to it fails as a broken disk does.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sync-node")]);
    shell.args(["--listen", "127.0.0.1:0", "--plaintext", "--data"]).arg(dir.path());
    let mut process = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let address = ready(&mut process);
    let client = async || {
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", address.endpoint)).unwrap();
        SyncClient::new(endpoint.connect().await.unwrap())
    };
    let alice = Person::new(1);
    let mut caller = Caller::over(client().await, &alice, alice.hello()).await.unwrap();
    caller.push_space(&Space::found(&alice, address.authority, 1)).await.unwrap();
    let mut refused = None;
    for nonce in 2..=255 {
        match caller.push_space(&Space::found(&alice, address.authority, nonce)).await {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("a disk that fails is noticed");
    assert_eq!(code(&refused), sync_core::code::Code::StoreFailed);
    let status = tokio::task::spawn_blocking(move || process.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(74));
}

/// A node that lost its keys says so, and does not become another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_served_with_its_own_keys_only() {
    let stage = Stage::new().await;
    let data = stage.dir.path().to_owned();
    let backup = data.join("backup");
    sync_node::back_up(&data, &backup).unwrap();
    stage.node.shutdown().await;
    let config = || NodeConfig { plaintext: true, ..NodeConfig::on_loopback(&data) };
    std::fs::rename(data.join("keys"), data.join("elsewhere")).unwrap();
    let refused = Node::start(config()).await;
    assert!(matches!(&refused, Err(StartError::Identity(IdentityError::Missing { .. }))), "{refused:?}");
    assert!(!data.join("keys").exists(), "no new identity is made");
    std::fs::rename(data.join("elsewhere"), data.join("keys")).unwrap();

    // A restore that ended between taking the store away and putting the new one there.
    std::fs::rename(data.join("store"), data.join("store.restoring")).unwrap();
    let refused = Node::start(config()).await;
    assert!(matches!(&refused, Err(StartError::HalfRestored { .. })), "{refused:?}");
    assert!(!data.join("store").exists(), "no empty store is made");
    std::fs::rename(data.join("store.restoring"), data.join("store")).unwrap();
    Node::start(config()).await.unwrap().shutdown().await;

    // Another node's backup.
    let other = Stage::new().await;
    let data = other.dir.path().to_owned();
    other.node.shutdown().await;
    let refused = sync_node::restore(&data, Some(&backup)).await;
    assert!(matches!(&refused, Err(sync_node::RestoreError::OtherNode { .. })), "{refused:?}");
    assert!(!data.join("recovering").exists(), "it is as it was");
    Node::start(NodeConfig { plaintext: true, ..NodeConfig::on_loopback(&data) }).await.unwrap().shutdown().await;
}
