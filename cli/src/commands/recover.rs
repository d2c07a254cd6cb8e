//! An account from its words, on an empty machine.

use std::io::IsTerminal as _;
use std::path::Path;

use client_sdk::{Client, ClientConfig, JoinInfo, Mnemonic, NodeAddress, Space};
use serde_json::{Value, json};

use crate::app::{App, NewLock, prompt};
use crate::args::Recover;
use crate::commands::spaces::stage_text;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;

pub(crate) async fn recover(app: &App, args: Recover) -> Result<Answer, CliError> {
    let Some(node) = args.node.clone() else {
        return app.with_client(async |client: &Client| recovered(app, client).await).await;
    };
    let client = restore(app, args, node).await?;
    let result = Box::pin(recovered(app, &client)).await;
    client.close().await;
    result
}

/// Makes the account here. From then on nothing of this can be lost: the rest can be waited for again.
async fn restore(app: &App, args: Recover, node: NodeAddress) -> Result<Client, CliError> {
    let dir = app.dir()?;
    let lock = if args.passphrase { NewLock::Passphrase } else { NewLock::KeyFile };
    let unlock = app.new_unlock(lock)?;
    let words = if std::io::stdin().is_terminal() {
        prompt("The 24 words: ")?
    } else {
        app.caller.read_input(Path::new("-")).await?
    };
    let words = Mnemonic::parse(words.trim())?;
    let mut config = ClientConfig::new(dir, unlock).node(node);
    if let Some(name) = args.name {
        config = config.name(name);
    }
    if let Some(name) = args.device_name {
        config = config.device_name(name);
    }
    Ok(Box::pin(Client::restore(config, words)).await?)
}

async fn recovered(app: &App, client: &Client) -> Result<Answer, CliError> {
    let recovered = {
        let _spinner = app.out.spinner("fetching what the account has");
        client.recovered(app.timeout()).await?
    };
    let mut rows = Vec::new();
    let mut spaces = Vec::new();
    for space in &recovered.spaces {
        let found = Found::of(client, space)?;
        rows.push(found.row());
        spaces.push(found.json());
    }
    let account = client.account();
    let mut said = format!("account {account}\n");
    said.push_str(&match rows.is_empty() {
        true => "it has no spaces".to_owned(),
        false => table(&["name", "space", "role", "members", "objects", "synced"], rows),
    });
    for join in &recovered.joins {
        said.push_str(&format!("\njoining {} as {}: {}", join.space, join.role, stage_text(join.stage)));
    }
    let joins: Vec<_> = recovered.joins.iter().map(join_json).collect();
    let json = json!({
        "account": account.to_string(),
        "device": client.device().to_string(),
        "spaces": spaces,
        "joins": joins,
    });
    Ok(Answer::new(said, json))
}

/// A space that is back.
struct Found {
    id: String,
    name: Option<String>,
    role: Option<String>,
    members: usize,
    objects: usize,
    seq: u64,
}

impl Found {
    fn of(client: &Client, space: &Space) -> Result<Self, CliError> {
        let acl = space.acl()?;
        let objects = space.objects().list_all()?;
        Ok(Self {
            id: space.id().to_string(),
            name: space.name()?,
            role: acl.role(&client.account()).map(|role| role.to_string()),
            members: acl.members.len(),
            objects: objects.iter().filter(|o| !o.object_type.starts_with("headwater.")).count(),
            seq: space.status()?.seq,
        })
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.as_deref().map_or_else(|| "(unnamed)".to_owned(), text::plain),
            self.id.clone(),
            self.role.clone().unwrap_or_default(),
            self.members.to_string(),
            self.objects.to_string(),
            format!("up to entry {}", self.seq),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "space": self.id,
            "name": self.name,
            "role": self.role,
            "members": self.members,
            "objects": self.objects,
            "seq": self.seq,
            "synced": true,
        })
    }
}

fn join_json(join: &JoinInfo) -> Value {
    json!({
        "space": join.space.to_string(),
        "mode": text::mode(join.mode),
        "role": join.role.to_string(),
        "stage": join.stage,
        "here": join.here,
    })
}
