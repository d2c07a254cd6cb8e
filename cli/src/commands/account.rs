//! The account on this machine.

use std::path::Path;

use client_sdk::{AccountId, AclChange, AclError, Client, ClientConfig, Mnemonic, NodeAddress, Space, Unlock};
use serde_json::{Value, json};

use crate::app::{App, NewLock};
use crate::args::{Confirm, Init};
use crate::commands::plan::{self, Planned};
use crate::error::CliError;
use crate::exit;
use crate::output::{Answer, pairs};
use crate::text;
use crate::who::Names;

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
    if let Some(name) = args.device_name {
        config = config.device_name(name);
    }
    let (client, words) = if args.restore {
        let words = Mnemonic::parse(app.caller.read_input(Path::new("-")).await?.trim())?;
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
    app.with_config(|config| config.node(address), async |client: &Client| node_answer(client)).await
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

// ---- replacing ----------------------------------------------------------------------------------------------------------

const REPLACING: &str = "Replacing an account";

pub(crate) async fn replace(
    app: &App,
    old: &str,
    new: AccountId,
    all_spaces: bool,
    confirm: Confirm,
) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        if all_spaces {
            return replace_everywhere(app, client, old, new, confirm).await;
        }
        let space = app.space(client)?;
        app.refresh(&space).await?;
        let old = Names::of_members(&space)?.choose(old)?;
        let planned = Planned::of(&space, AclChange::ReplaceAccount { old, new })?;
        planned.confirm(app, confirm, REPLACING).await?;
        let said = format!("{}\nthey type: headwater space open {}", planned.text(), space.id());
        let effects = planned.effects_json();
        let _spinner = app.out.spinner("asking the node");
        space.change(planned.change).await?;
        let replaced = [replaced_json(&space, &effects)?];
        Ok(Answer::new(said, replaced_all_json(old, new, &replaced, &[])))
    })
    .await
}

/// In every space where the old account is a member. Where the rules refuse it, that is said and the others are done.
async fn replace_everywhere(
    app: &App,
    client: &Client,
    typed: &str,
    new: AccountId,
    confirm: Confirm,
) -> Result<Answer, CliError> {
    let mut names = Names::default();
    let mut spaces = Vec::new();
    for info in client.spaces()? {
        let space = client.space(info.id)?;
        let acl = space.acl()?;
        if acl.deleted || acl.role(&client.account()).is_none() {
            continue;
        }
        app.refresh(&space).await?;
        names.learn_members(&space)?;
        spaces.push(space);
    }
    let old = names.choose(typed)?;
    let (mut possible, mut lines, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for space in spaces {
        if space.acl()?.role(&old).is_none() {
            continue;
        }
        match Planned::of(&space, AclChange::ReplaceAccount { old, new }) {
            Ok(planned) => {
                lines.extend(planned.sentences.iter().map(|s| Ok(format!("{}: {s}", shown(&space)?))));
                possible.push((space, planned));
            }
            Err(CliError::Acl(error)) => failed.push(Failed { space, error }),
            Err(error) => return Err(error),
        }
    }
    let mut lines = lines.into_iter().collect::<Result<Vec<String>, CliError>>()?;
    if possible.is_empty() {
        return Err(match failed.into_iter().next() {
            Some(Failed { error, .. }) => error.into(),
            None => CliError::NotFound(format!("{} is a member of no space here", names.show(&old))),
        });
    }
    plan::ask(app, confirm, REPLACING, &lines).await?;
    let mut replaced = Vec::new();
    for (space, planned) in possible {
        let _spinner = app.out.spinner(format!("replacing in {}", shown(&space)?));
        let effects = planned.effects_json();
        match space.change(planned.change).await {
            Ok(()) => replaced.push(replaced_json(&space, &effects)?),
            Err(error) => failed.push(Failed { space, error }),
        }
    }
    for failed in &failed {
        lines.push(format!("{}: NOT done: {}", shown(&failed.space)?, failed.error));
    }
    let not = failed.iter().map(Failed::json).collect::<Result<Vec<_>, _>>()?;
    let answer = Answer::new(lines.join("\n"), replaced_all_json(old, new, &replaced, &not));
    Ok(match failed.first() {
        None => answer,
        Some(failed) => answer.but(exit::of_acl(&failed.error)),
    })
}

/// A space where an account was not replaced.
struct Failed {
    space: Space,
    error: AclError,
}

impl Failed {
    fn json(&self) -> Result<Value, CliError> {
        Ok(json!({
            "space": self.space.id().to_string(),
            "name": self.space.name()?,
            "code": self.error.code(),
            "message": self.error.to_string(),
        }))
    }
}

fn shown(space: &Space) -> Result<String, CliError> {
    Ok(space.name()?.map_or_else(|| space.id().short(), |name| text::plain(&name)))
}

fn replaced_json(space: &Space, effects: &Value) -> Result<Value, CliError> {
    Ok(json!({ "space": space.id().to_string(), "name": space.name()?, "effects": effects }))
}

fn replaced_all_json(old: AccountId, new: AccountId, replaced: &[Value], not_replaced: &[Value]) -> Value {
    json!({
        "old": old.to_string(),
        "new": new.to_string(),
        "replaced": replaced,
        "not_replaced": not_replaced,
    })
}
