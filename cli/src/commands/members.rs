//! Who is in a space, and changing that.

use std::time::Duration;

use client_sdk::{AccountId, AclChange, AclError, CallError, Client, MemberInfo, ReadError, ReasonCode, Space};
use serde_json::{Value, json};

use crate::app::{App, NODE_LOOKUP_MAX, Reached};
use crate::args::{AddMember, ChangeRole, Leave, Remove, Transfer};
use crate::commands::plan::Planned;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;
use crate::who::Names;

pub(crate) async fn members(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |client: &Client, space: &Space| {
        app.refresh(space).await?;
        let mut members = space.members()?;
        members.sort_by_key(|m| m.joined);
        let me = client.account();
        let row = |m: &MemberInfo| {
            let name = m.name.as_deref().map(text::plain).unwrap_or_default();
            let you = if m.account == me { "  (you)" } else { "" };
            vec![format!("{name}{you}"), m.account.to_string(), m.role.to_string(), format!("entry {}", m.joined)]
        };
        let said = table(&["name", "account", "role", "since"], members.iter().map(row));
        let json: Vec<_> = members
            .iter()
            .map(|m| {
                json!({
                    "account": m.account.to_string(),
                    "role": m.role.to_string(),
                    "name": m.name,
                    "joined": m.joined.0,
                    "you": m.account == me,
                })
            })
            .collect();
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "members": json })))
    })
    .await
}

pub(crate) async fn change_role(app: &App, args: ChangeRole) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let account = Names::of_members(space)?.choose(&args.who)?;
        let planned = Planned::of(space, AclChange::ChangeRole { account, role: args.role.into() })?;
        done(app, space, planned, json!({ "account": account.to_string() })).await
    })
    .await
}

pub(crate) async fn remove(app: &App, args: Remove) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let names = Names::of_members(space)?;
        let mut accounts = args.who.iter().map(|typed| names.choose(typed)).collect::<Result<Vec<_>, _>>()?;
        accounts.sort();
        accounts.dedup();
        let planned = Planned::of(space, AclChange::RemoveMembers { accounts: accounts.clone() })?;
        planned.confirm(app, args.confirm, "Removing members").await?;
        done(app, space, planned, json!({ "removed": texts(&accounts) })).await
    })
    .await
}

pub(crate) async fn transfer(app: &App, args: Transfer) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let account = Names::of_members(space)?.choose(&args.who)?;
        let planned = Planned::of(space, AclChange::TransferOwnership { account })?;
        planned.confirm(app, args.confirm, "Giving the space to another owner").await?;
        done(app, space, planned, json!({ "owner": account.to_string() })).await
    })
    .await
}

pub(crate) async fn add(app: &App, args: AddMember) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let members = [(args.account, args.role.into())];
        let planned = Planned::of(space, AclChange::AddMembers { members: members.to_vec() })?;
        {
            let _spinner = app.out.spinner("asking the node");
            space.add_members(&members).await?;
        }
        let id = space.id();
        let said = format!("{}\nthey type: headwater space open {id}", planned.text());
        let json = json!({
            "space": id.to_string(),
            "account": args.account.to_string(),
            "role": client_sdk::Role::from(args.role).to_string(),
            "effects": planned.effects_json(),
            "open_with": ["headwater", "space", "open", id.to_string()],
        });
        Ok(Answer::new(said, json))
    })
    .await
}

pub(crate) async fn rotate(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let _spinner = app.out.spinner("sealing new keys to the members");
        app.refresh(space).await?;
        space.rotate_keys().await?;
        let epoch = space.acl()?.epoch.0;
        let said = format!("new keys for what is written from now on (epoch {epoch})");
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "epoch": epoch })))
    })
    .await
}

pub(crate) async fn reseal(app: &App, typed: &str) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let names = Names::of_members(space)?;
        let account = names.choose(typed)?;
        {
            let _spinner = app.out.spinner("sealing the keys");
            space.reseal(account).await?;
        }
        let said = format!("{} has the keys of the space again", names.show(&account));
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "account": account.to_string() })))
    })
    .await
}

pub(crate) async fn leave(app: &App, args: Leave) -> Result<Answer, CliError> {
    app.with_space(async |client: &Client, space: &Space| {
        let left = {
            let _spinner = app.out.spinner("leaving");
            let is_away = args.no_wait && matches!(app.reach(space).await?, Reached::No(_));
            let patience = if args.no_wait { app.timeout().min(NODE_LOOKUP_MAX) } else { app.timeout() };
            tokio::select! {
                left = tokio::time::timeout(patience, space.leave()) => match left {
                    Ok(left) => left,
                    Err(_) => Err(silent(client).await.into()),
                },
                kept = kept(space), if is_away => kept.and(Err(CallError::TimedOut.into())),
            }
        };
        let id = space.id().to_string();
        let shown = space.name()?.map_or_else(|| id.clone(), |name| text::plain(&name));
        let Err(error) = left else {
            app.tell_devices(client).await;
            let said = format!("no member of {shown} any more; what is here can still be read");
            return Ok(Answer::new(said, json!({ "space": id, "state": "left" })));
        };
        let is_kept = is_leaving(space)?;
        if args.no_wait && is_kept && waits_for_node(&error) {
            let said = format!("leaving {shown} is kept here, and goes out when the node is reached");
            return Ok(Answer::new(said, json!({ "space": id, "state": "kept" })));
        }
        if is_kept {
            app.out.note("the wish to leave is kept here, and goes out by itself").await;
        }
        Err(error.into())
    })
    .await
}

/// Waits until the wish to leave is kept here.
async fn kept(space: &Space) -> Result<(), AclError> {
    let mut since = 0;
    while !is_leaving(space)? {
        space.status_changed(&mut since).await;
    }
    Ok(())
}

fn is_leaving(space: &Space) -> Result<bool, ReadError> {
    Ok(space.explain()?.iter().any(|reason| reason.code == ReasonCode::Leaving))
}

/// Why the node said nothing in time.
pub(crate) async fn silent(client: &Client) -> CallError {
    client.connected(Duration::ZERO).await.err().unwrap_or(CallError::TimedOut)
}

/// True if only the node is missing.
pub(crate) fn waits_for_node(error: &AclError) -> bool {
    matches!(error, AclError::Call(call) if call.is_transient())
}

/// Does a planned change and says what came of it.
async fn done(app: &App, space: &Space, planned: Planned, mut json: Value) -> Result<Answer, CliError> {
    json["space"] = space.id().to_string().into();
    json["effects"] = planned.effects_json();
    let said = planned.text();
    let _spinner = app.out.spinner("asking the node");
    space.change(planned.change).await?;
    Ok(Answer::new(said, json))
}

fn texts(accounts: &[AccountId]) -> Vec<String> {
    accounts.iter().map(ToString::to_string).collect()
}
