//! Membership: invites, joins, requests.

use std::collections::BTreeMap;

use client_sdk::{
    Client, InviteMode, InviteOptions, JoinError, JoinRequest, NotSyncedCode, Reason, RequestStatus, Role, Space,
    SpaceId, token_from_text,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::{Approve, Asker, Invite, Join, Requests};
use crate::commands::spaces::stage_text;
use crate::error::CliError;
use crate::output::{Answer, pairs, table};
use crate::text;

// ---- invites ------------------------------------------------------------------------------------------------------------

pub(crate) async fn invite(app: &App, args: Invite) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let trees = |typed: &[String]| typed.iter().map(|t| app.tree_id(space, t)).collect::<Result<Vec<_>, _>>();
        let options = InviteOptions {
            mode: if args.open { InviteMode::Open } else { InviteMode::Approval },
            role: args.role.into(),
            expires_in: args.expires,
            max_uses: args.uses,
            must_see: trees(&args.must_see)?,
            requires: trees(&args.requires)?,
            label: None,
        };
        let spinner = app.out.spinner("pushing what the invite is for");
        let not_pushed = pushed_before(app, space).await?;
        spinner.say("making the invite");
        let invite = space.invite(options).await?;
        drop(spinner);
        for reason in &not_pushed {
            app.out.note(format!("not on the node yet: {reason}"));
        }
        let json = json!({
            "space": space.id().to_string(),
            "invite": invite.id().to_string(),
            "token": invite.token,
            "not_pushed": not_pushed,
        });
        Ok(Answer::new(invite.token, json))
    })
    .await
}

/// An invite speaks of what the node has, so ours goes there first. What cannot is named.
async fn pushed_before(app: &App, space: &Space) -> Result<Vec<Reason>, CliError> {
    match space.await_synced_within(app.timeout()).await {
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.code == NotSyncedCode::NoNode => Err(error.into()),
        Err(error) => Ok(error.residue),
    }
}

pub(crate) async fn invites(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let invites = space.invites()?;
        let status = |status| match status {
            client_sdk::InviteStatus::Live => "live",
            client_sdk::InviteStatus::Revoked => "revoked",
            client_sdk::InviteStatus::Dead => "dead",
        };
        let rows = invites.iter().map(|i| {
            vec![
                i.id.to_string(),
                text::mode(i.mode).to_owned(),
                i.role.to_string(),
                i.max_uses.map_or_else(|| i.uses.to_string(), |max| format!("{} of {max}", i.uses)),
                i.expires_ms.map_or_else(|| "never".to_owned(), text::moment),
                status(i.status).to_owned(),
            ]
        });
        let said = table(&["invite", "mode", "role", "uses", "expires", "status"], rows);
        let json: Vec<_> = invites
            .iter()
            .map(|i| {
                json!({
                    "invite": i.id.to_string(),
                    "mode": text::mode(i.mode),
                    "role": i.role.to_string(),
                    "creator": i.creator.to_string(),
                    "uses": i.uses,
                    "max_uses": i.max_uses,
                    "expires_ms": i.expires_ms,
                    "status": status(i.status),
                })
            })
            .collect();
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "invites": json })))
    })
    .await
}

/// What a token says, offline. Its secret is not printed.
pub(crate) fn show(app: &App, typed: &str) -> Result<Answer, CliError> {
    let token = token_from_text(&text::read_token(typed)?)?;
    let token = token.body();
    let expires = if token.expires_ms == 0 { "never".to_owned() } else { text::moment(token.expires_ms) };
    let mut rows = vec![
        ("authority", token.authority.to_string()),
        ("node", token.addresses.join(", ")),
        ("inviter", token.inviter.to_string()),
        ("created", text::moment(token.created_ms)),
        ("expires", expires),
    ];
    let mut spaces = Vec::new();
    for space in &token.spaces {
        let how = match space.mode {
            InviteMode::Open => "whoever holds this joins by itself, and can read the space without joining",
            InviteMode::Approval => "an admin accepts or declines",
        };
        rows.push(("space", space.space.to_string()));
        rows.push(("  mode", format!("{}: {how}", text::mode(space.mode))));
        rows.push(("  role", space.role.to_string()));
        let must_see: Vec<_> = space.must_see.iter().map(|t| t.tree.to_string()).collect();
        rows.extend(must_see.iter().map(|tree| ("  must see", tree.clone())));
        spaces.push(json!({
            "space": space.space.to_string(),
            "mode": text::mode(space.mode),
            "role": space.role.to_string(),
            "must_see": must_see,
            "has_receipt": space.receipt.is_some(),
        }));
    }
    let json = json!({
        "authority": token.authority.to_string(),
        "addresses": token.addresses,
        "inviter": token.inviter.to_string(),
        "created_ms": token.created_ms,
        "expires_ms": (token.expires_ms != 0).then_some(token.expires_ms),
        "spaces": spaces,
    });
    Ok(Answer::new(pairs(app.out.paint(), rows), json))
}

// ---- joining ------------------------------------------------------------------------------------------------------------

pub(crate) async fn join(app: &App, args: Join) -> Result<Answer, CliError> {
    let token = text::read_token(&args.token)?;
    let roles: BTreeMap<SpaceId, Role> =
        token_from_text(&token)?.body().spaces.iter().map(|s| (s.space, s.role)).collect();
    let mut config = app.config()?;
    if let Some(name) = args.name {
        config = config.name(name);
    }
    app.with_config(config, async |client: &Client| {
        let spinner = app.out.spinner("asking the node");
        let asked = tokio::time::timeout(app.timeout(), client.join(&token)).await;
        let waiting = || "the node's answer".to_owned();
        let joining = asked.map_err(|_| JoinError::NotReady { waiting: waiting() })??;
        let stages = client.joins()?;
        if args.no_wait {
            drop(spinner);
            return joined(client, joining.spaces(), &roles);
        }
        let waits = stages.iter().find(|s| joining.spaces().contains(&s.space));
        spinner.say(waits.map_or("reading the space", |s| stage_text(s.stage)));
        if let Some(wait) = waits {
            app.out.note(format!("the node has it; {}", stage_text(wait.stage)));
        }
        joining.ready(app.timeout()).await?;
        drop(spinner);
        joined(client, joining.spaces(), &roles)
    })
    .await
}

fn joined(client: &Client, spaces: &[SpaceId], roles: &BTreeMap<SpaceId, Role>) -> Result<Answer, CliError> {
    let under_way = client.joins()?;
    let mut lines = Vec::new();
    let mut json = Vec::new();
    for id in spaces {
        let stage = under_way.iter().find(|j| j.space == *id).map(|j| j.stage);
        let name = match client.space(*id) {
            Ok(space) => space.name()?,
            Err(client_sdk::ReadError::UnknownSpace(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let shown = name.as_deref().unwrap_or("the space");
        let text = stage.map_or("ready", stage_text);
        lines.push(format!("{shown} ({id}): {text}"));
        json.push(json!({
            "space": id.to_string(),
            "name": name,
            "role": roles.get(id).map(ToString::to_string),
            "state": stage.map_or_else(|| json!("ready"), |s| json!(s)),
        }));
    }
    Ok(Answer::new(lines.join("\n"), json!({ "spaces": json })))
}

// ---- requests -----------------------------------------------------------------------------------------------------------

pub(crate) async fn requests(app: &App, args: Requests) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        if args.wait {
            let _spinner = app.out.spinner("waiting for somebody to ask");
            wait_for(app, space, |requests| requests.iter().any(is_pending)).await?;
        }
        let mut requests = space.requests()?;
        requests.retain(|r| args.all || is_pending(r));
        if requests.is_empty() {
            app.out.note("nobody is waiting");
        }
        let rows = requests.iter().map(|r| {
            vec![
                r.account.to_string(),
                r.name.clone().unwrap_or_default(),
                r.role.to_string(),
                text::moment(r.at_ms),
                text::request_status(&r.status).to_owned(),
            ]
        });
        let said = if requests.is_empty() {
            String::new()
        } else {
            table(&["account", "name", "role", "asked", "status"], rows)
        };
        let json: Vec<_> = requests.iter().map(request_json).collect();
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "requests": json })))
    })
    .await
}

fn request_json(request: &JoinRequest) -> Value {
    json!({
        "request": request.id.to_string(),
        "account": request.account.to_string(),
        "role": request.role.to_string(),
        "name": request.name,
        "at_ms": request.at_ms,
        "status": text::request_status(&request.status),
    })
}

fn is_pending(request: &JoinRequest) -> bool {
    request.status == RequestStatus::Pending
}

/// Waits until the requests of a space are as they should be.
async fn wait_for(app: &App, space: &Space, mut there: impl FnMut(&[JoinRequest]) -> bool) -> Result<(), CliError> {
    let mut since = 0;
    let waiting = async {
        while !there(&space.requests()?) {
            space.status_changed(&mut since).await;
        }
        Ok(())
    };
    match tokio::time::timeout(app.timeout(), waiting).await {
        Ok(result) => result,
        Err(_) => Err(client_sdk::CallError::TimedOut.into()),
    }
}

pub(crate) async fn approve(app: &App, args: Approve) -> Result<Answer, CliError> {
    let who = args.who.as_deref().map(parse_asker).transpose()?;
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let wanted = |r: &JoinRequest| is_pending(r) && who.is_none_or(|who| is_by(r, who));
        if args.wait {
            let _spinner = app.out.spinner("waiting for the request");
            wait_for(app, space, |requests| requests.iter().any(wanted)).await?;
        }
        let requests: Vec<_> = space.requests()?.into_iter().filter(wanted).collect();
        if let (Some(typed), []) = (&args.who, requests.as_slice()) {
            return Err(CliError::NotFound(format!("{typed} is not waiting for an answer")));
        }
        let role = args.role.map(Role::from);
        for request in &requests {
            let promised = promised(app, space, &args.promise, request)?;
            let _spinner = app.out.spinner(format!("accepting {}", request.account.short()));
            space.approve(request.id, role, |w| w.promise_trees(&promised)).await?;
        }
        answer_decided(app, space, &requests, "accepted")
    })
    .await
}

fn promised(
    app: &App,
    space: &Space,
    typed: &[String],
    request: &JoinRequest,
) -> Result<Vec<client_sdk::TreeId>, CliError> {
    let account = request.account.to_string();
    typed.iter().map(|t| app.tree_id(space, &t.replace("{account}", &account))).collect()
}

pub(crate) async fn decline(app: &App, typed: &str) -> Result<Answer, CliError> {
    let who = parse_asker(typed)?;
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let mut requests = space.requests()?;
        requests.retain(|r| is_pending(r) && is_by(r, who));
        let Some(request) = requests.first() else {
            return Err(CliError::NotFound(format!("{typed} is not waiting for an answer")));
        };
        space.decline(request.id).await?;
        answer_decided(app, space, &requests, "declined")
    })
    .await
}

fn answer_decided(app: &App, space: &Space, requests: &[JoinRequest], what: &str) -> Result<Answer, CliError> {
    if requests.is_empty() {
        app.out.note("nobody is waiting");
    }
    let line = |r: &JoinRequest| format!("{what} {} {}", r.account, r.name.as_deref().unwrap_or_default());
    let said: Vec<_> = requests.iter().map(|r| line(r).trim_end().to_owned()).collect();
    let accounts: Vec<_> = requests.iter().map(|r| r.account.to_string()).collect();
    let mut json = json!({ "space": space.id().to_string() });
    json[what] = json!(accounts);
    Ok(Answer::new(said.join("\n"), json))
}

fn is_by(request: &JoinRequest, who: Asker) -> bool {
    match who {
        Asker::Account(account) => request.account == account,
        Asker::Request(id) => request.id == id,
    }
}

fn parse_asker(typed: &str) -> Result<Asker, CliError> {
    if let Ok(account) = typed.parse() {
        return Ok(Asker::Account(account));
    }
    let request = typed.parse().map(Asker::Request);
    request.map_err(|_| CliError::Usage(format!("{typed:?} is neither an account (acct_…) nor a request (acl_…)")))
}
