//! A chat in an encrypted space. Two terminals, one node:
//!
//! ```text
//! sync-node --data /tmp/node                                   # prints headwater://auth_…@127.0.0.1:4710
//! cargo run --example chat -- /tmp/ada  Ada  headwater://auth_…@127.0.0.1:4710
//! cargo run --example chat -- /tmp/bert Bert headwater://auth_…@127.0.0.1:4710 headwater1…
//! ```
//!
//! The first one makes the space and prints a token; the second one joins with it. Every line that is typed becomes an object
//! of its own, so people who are offline lose nothing: their lines appear when they are back.

use std::path::PathBuf;
use std::time::Duration;

use client_sdk::{Client, ClientConfig, InviteOptions, NodeAddress, Object, ObjectChange, Space, Unlock};
use tokio::sync::mpsc;

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: chat DIR NAME NODE-ADDRESS [TOKEN]";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(name), Some(node)) = (args.next(), args.next(), args.next()) else { return Err(USAGE.into()) };
    let client = open(dir.into(), &name, node.parse()?).await?;
    let space = match args.next() {
        Some(token) => client.join(&token).await?.ready(Duration::from_secs(60)).await?.remove(0),
        None => host(&client).await?,
    };
    talk(&space, &name).await?;
    client.close().await;
    Ok(())
}

async fn open(dir: PathBuf, name: &str, node: NodeAddress) -> Result<Client, Error> {
    let config = ClientConfig::new(&dir, Unlock::KeyFile(dir.join("device.key"))).node(node).name(name);
    if dir.join("vault").exists() {
        return Ok(Client::open(config).await?);
    }
    Ok(Client::create(config).await?.0)
}

/// The space that was made before, or a new one with an invite.
async fn host(client: &Client) -> Result<Space, Error> {
    if let Some(info) = client.spaces()?.first() {
        return Ok(client.space(info.id)?);
    }
    let space = client.create_space("Chat").await?;
    let invite = space.invite(InviteOptions::open()).await?;
    eprintln!("hand this to the others; whoever has it can read the chat:\n{}", invite.token);
    Ok(space)
}

async fn talk(space: &Space, name: &str) -> Result<(), Error> {
    let messages = space.objects();
    let mut incoming = messages.watch("message");
    let mut history = messages.list("message")?;
    history.sort_by_key(|m| m.fields.get("at").and_then(serde_json::Value::as_u64));
    history.iter().for_each(show);
    let mut lines = typed_lines();
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(text) = line else { return Ok(()) };
                let at = std::time::UNIX_EPOCH.elapsed()?.as_millis();
                let id = format!("{at}-{name}");
                messages.put("message", &id, serde_json::json!({ "from": name, "text": text, "at": at as u64 })).await?;
            }
            change = incoming.next() => match change? {
                Some(ObjectChange::Changed(message)) if message.fields["from"] != name => show(&message),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// Lines of standard input; the end of it ends the channel.
fn typed_lines() -> mpsc::Receiver<String> {
    let (typed, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[expect(clippy::print_stdout, reason = "a chat is what it prints")]
fn show(message: &Object) {
    let field = |name| message.fields.get(name).and_then(|v| v.as_str()).unwrap_or("?");
    println!("{}: {}", field("from"), field("text"));
}
