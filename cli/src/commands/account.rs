//! The account on this machine.

use std::path::Path;

use client_sdk::{Client, ClientConfig, Mnemonic, NodeAddress, Unlock};
use serde_json::json;

use crate::app::{App, NewLock};
use crate::args::Init;
use crate::error::CliError;
use crate::output::{Answer, pairs};
use crate::text;

pub(crate) async fn init(app: &App, args: Init) -> Result<Answer, CliError> {
    let dir = app.dir()?;
    let lock = if args.passphrase { NewLock::Passphrase } else { NewLock::KeyFile };
    let unlock = app.new_unlock(lock)?;
    let locked_by = match &unlock {
        Unlock::Passphrase(_) => "a passphrase",
        Unlock::KeyFile(_) => "the key file device.key beside it: whoever has the whole directory has the account",
    };
    let mut config = ClientConfig::new(dir.clone(), unlock).node(args.node);
    if let Some(name) = args.name {
        config = config.name(name);
    }
    let (client, words) = if args.restore {
        let words = Mnemonic::parse(text::read_input(Path::new("-"))?.trim())?;
        (Box::pin(Client::restore(config, words)).await?, None)
    } else {
        let (client, words) = Box::pin(Client::create(config)).await?;
        (client, Some(words))
    };
    let mut rows = vec![
        ("account", client.account().to_string()),
        ("device", client.device().to_string()),
        ("node", client.node().to_string()),
        ("data", dir.display().to_string()),
        ("locked by", locked_by.to_owned()),
    ];
    let mut json = json!({
        "account": client.account().to_string(),
        "device": client.device().to_string(),
        "node": client.node().to_string(),
        "data": dir.display().to_string(),
    });
    client.close().await;
    let paint = app.out.paint();
    let mut said = String::new();
    if let Some(words) = words {
        json["words"] = words.phrase().into();
        rows.insert(1, ("words", words.phrase().to_owned()));
        let warning = "Keep the 24 words in a safe place: they are the account, and they are shown this once.";
        said = format!("\n{}", paint.yellow(warning));
    }
    Ok(Answer::new(format!("{}{said}", pairs(paint, rows)), json))
}

pub(crate) async fn whoami(app: &App) -> Result<Answer, CliError> {
    let dir = app.dir()?;
    app.with_client(async |client: &Client| {
        let rows = [
            ("account", client.account().to_string()),
            ("device", client.device().to_string()),
            ("node", client.node().to_string()),
            ("data", dir.display().to_string()),
        ];
        let json = json!({
            "account": client.account().to_string(),
            "device": client.device().to_string(),
            "node": client.node().to_string(),
            "data": dir.display().to_string(),
        });
        Ok(Answer::new(pairs(app.out.paint(), rows), json))
    })
    .await
}

pub(crate) async fn node_set(app: &App, address: NodeAddress) -> Result<Answer, CliError> {
    let config = app.config()?.node(address);
    app.with_config(config, async |client: &Client| node_answer(client)).await
}

pub(crate) async fn node_show(app: &App) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| node_answer(client)).await
}

fn node_answer(client: &Client) -> Result<Answer, CliError> {
    let node = client.node();
    let json = json!({
        "node": node.to_string(),
        "authority": node.authority.to_string(),
        "endpoint": node.endpoint,
    });
    Ok(Answer::new(node.to_string(), json))
}
