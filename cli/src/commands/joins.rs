//! Asking to join, and letting people in.

use std::collections::BTreeMap;
use std::path::Path;

use client_sdk::{
    Client, HistoryMode, JoinError, JoinInfo, JoinRequest, JoinStage, Joining, Preparation, RequestStatus, Role, Space,
    SpaceId, TreeId, token_from_text,
};
use serde_json::{Value, json};

use crate::app::{App, NODE_LOOKUP_MAX};
use crate::args::{Approve, Asker, Join, Requests};
use crate::caller::Caller;
use crate::commands::members::{silent, waits_for_node};
use crate::commands::spaces::stage_text;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;
use crate::who::is_beginning;

// ---- joining ------------------------------------------------------------------------------------------------------------

pub(crate) async fn run(app: &App, args: Join) -> Result<Answer, CliError> {
    match (&args.token, &args.resume, &args.cancel) {
        (Some(token), _, _) => {
            let token = app.caller.read_token(token).await?;
            join(app, args, &token).await
        }
        (None, Some(space), _) => resume(app, space, args.no_wait).await,
        (None, None, Some(space)) => cancel(app, space, args.no_wait).await,
        (None, None, None) => Err(CliError::Usage("what is to be joined?".to_owned())),
    }
}

async fn join(app: &App, args: Join, token: &str) -> Result<Answer, CliError> {
    let roles: BTreeMap<SpaceId, Role> =
        token_from_text(token)?.body().spaces.iter().map(|s| (s.space, s.role)).collect();
    let Join { name, no_wait, .. } = args;
    let work = async |client: &Client| {
        let spinner = app.out.spinner("asking the node");
        let asked = tokio::time::timeout(app.timeout(), client.join(token)).await;
        let joining = asked.map_err(|_| no_answer())??;
        drop(spinner);
        follow(app, client, &joining, &roles, no_wait).await
    };
    match name {
        Some(name) => app.with_config(|config| config.name(name), work).await,
        None => app.with_client(work).await,
    }
}

fn no_answer() -> JoinError {
    JoinError::NotReady { waiting: "the node's answer".to_owned() }
}

/// Goes on with a join, here or from another device of the account.
async fn resume(app: &App, typed: &str, no_wait: bool) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let spinner = app.out.spinner("asking the node");
        // What another device began is told by the account's own space.
        app.tell_devices(client).await;
        let joins = client.joins()?;
        let id = choose(&joins, typed)?;
        let roles = joins.iter().map(|j| (j.space, j.role)).collect();
        let asked = tokio::time::timeout(app.timeout(), client.resume_join(id)).await;
        let joining = asked.map_err(|_| no_answer())??;
        drop(spinner);
        follow(app, client, &joining, &roles, no_wait).await
    })
    .await
}

/// Waits for a join, unless that was not wanted, and says how far it is.
async fn follow(
    app: &App,
    client: &Client,
    joining: &Joining,
    roles: &BTreeMap<SpaceId, Role>,
    no_wait: bool,
) -> Result<Answer, CliError> {
    if !no_wait {
        let joins = client.joins()?;
        let waits = joins.iter().find(|s| joining.spaces().contains(&s.space));
        if let Some(wait) = waits {
            app.out.note(format!("the node has it; {}", stage_text(wait.stage))).await;
        }
        let _spinner = app.out.spinner(waits.map_or("reading the space", |s| stage_text(s.stage)));
        joining.ready(app.timeout()).await?;
    }
    app.tell_devices(client).await;
    joined(client, joining.spaces(), roles)
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
        let shown = name.as_deref().map_or_else(|| "the space".to_owned(), text::plain);
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

/// Takes a join back.
async fn cancel(app: &App, typed: &str, no_wait: bool) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let id = choose(&client.joins()?, typed)?;
        let patience = if no_wait { app.timeout().min(NODE_LOOKUP_MAX) } else { app.timeout() };
        let cancelled = {
            let _spinner = app.out.spinner("taking it back");
            tokio::time::timeout(patience, client.cancel_join(id)).await
        };
        let error = match cancelled {
            Ok(Ok(())) => {
                let json = json!({ "space": id.to_string(), "state": "cancelled" });
                return Ok(Answer::new(format!("no longer joining {id}"), json));
            }
            Ok(Err(error)) => error,
            Err(_) => silent(client).await.into(),
        };
        let is_kept = client.joins()?.iter().any(|j| j.space == id && j.stage == JoinStage::Cancelling);
        let waits = matches!(&error, JoinError::Acl(acl) if waits_for_node(acl));
        if no_wait && is_kept && waits {
            let said = "that it is taken back is kept here, and goes out when the node is reached";
            return Ok(Answer::new(said, json!({ "space": id.to_string(), "state": "kept" })));
        }
        if is_kept {
            app.out.note("that it is taken back is kept here, and goes out by itself").await;
        }
        Err(error.into())
    })
    .await
}

/// The space of a join that was meant: by its id or the beginning of it.
fn choose(joins: &[JoinInfo], typed: &str) -> Result<SpaceId, CliError> {
    if let Ok(space) = typed.parse() {
        return Ok(space);
    }
    let is_meant = |j: &&JoinInfo| is_beginning(&j.space.to_string(), SpaceId::PREFIX, typed);
    match joins.iter().filter(is_meant).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.space),
        [] => Err(CliError::NotFound(format!("no join of {typed:?} is under way: headwater space list"))),
        several => Err(CliError::Usage(format!("{typed:?} could be {} spaces; use the id", several.len()))),
    }
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
            app.out.note("nobody is waiting").await;
        }
        let rows = requests.iter().map(|r| {
            vec![
                r.account.to_string(),
                r.name.as_deref().map(text::plain).unwrap_or_default(),
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
    let mut written = Vec::with_capacity(args.write.len());
    for typed in &args.write {
        written.push(read_write(&app.caller, typed).await?);
    }
    // What cannot be meant is said before anybody is asked anything.
    written.iter().try_for_each(|typed| Written::parse(typed).map(drop))?;
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
        let history = space.acl()?.options.history;
        for request in &requests {
            let account = request.account.to_string();
            let writes = written.iter().map(|typed| Written::parse(&typed.replace("{account}", &account)));
            let writes = writes.collect::<Result<Vec<_>, _>>()?;
            // Who reads from now on is shown promised objects anew, with its own keys; all others have them as they are.
            let anew = history == HistoryMode::SinceJoin || role.unwrap_or(request.role) == Role::Guest;
            let promises = args.promise.iter().map(|typed| typed.replace("{account}", &account));
            let promises = promises.map(|typed| Promised::parse(app, space, &typed, anew));
            let promises = promises.collect::<Result<Vec<_>, _>>()?;
            let _spinner = app.out.spinner(format!("accepting {}", request.account.short()));
            let prepare = |preparation: &mut Preparation| {
                for Written { object_type, id, fields } in writes {
                    preparation.put(&object_type, &id, fields)?;
                }
                for promised in promises {
                    match promised {
                        Promised::Object { object_type, id } => preparation.promise(&object_type, &id)?,
                        Promised::Tree(tree) => preparation.promise_trees(&[tree])?,
                    }
                }
                Ok(())
            };
            space.approve(request.id, role, prepare).await?;
        }
        answer_decided(app, space, &requests, "accepted").await
    })
    .await
}

/// What `--promise` names.
enum Promised {
    Object { object_type: String, id: String },
    Tree(TreeId),
}

impl Promised {
    fn parse(app: &App, space: &Space, typed: &str, anew: bool) -> Result<Self, CliError> {
        match typed.split_once('/') {
            Some((object_type, id)) if anew => {
                Ok(Self::Object { object_type: object_type.to_owned(), id: id.to_owned() })
            }
            Some(_) | None => Ok(Self::Tree(app.tree_id(space, typed)?)),
        }
    }
}

/// What `--write` says.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    object_type: String,
    id: String,
    fields: Value,
}

impl Written {
    fn parse(typed: &str) -> Result<Self, CliError> {
        let usage = |why: &str| CliError::Usage(format!("--write {typed:?}: {why}"));
        let (object, fields) = typed.split_once('=').ok_or_else(|| usage("it is not of the form TYPE/ID={…}"))?;
        let (object_type, id) = object.split_once('/').ok_or_else(|| usage("no TYPE/ID stands before the ="))?;
        if object_type.is_empty() || id.is_empty() {
            return Err(usage("no TYPE/ID stands before the ="));
        }
        let fields = serde_json::from_str(fields).map_err(|e| usage(&format!("the fields are no JSON: {e}")))?;
        if !matches!(fields, Value::Object(_)) {
            return Err(usage("the fields are not a JSON object"));
        }
        Ok(Self { object_type: object_type.to_owned(), id: id.to_owned(), fields })
    }
}

/// `TYPE/ID=@FILE` with what is in the file.
async fn read_write(caller: &Caller, typed: &str) -> Result<String, CliError> {
    match typed.split_once("=@") {
        Some((object, file)) if !object.contains('=') => {
            Ok(format!("{object}={}", caller.read_input(Path::new(file)).await?))
        }
        Some(_) | None => Ok(typed.to_owned()),
    }
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
        answer_decided(app, space, &requests, "declined").await
    })
    .await
}

async fn answer_decided(app: &App, space: &Space, requests: &[JoinRequest], what: &str) -> Result<Answer, CliError> {
    if requests.is_empty() {
        app.out.note("nobody is waiting").await;
    }
    let name = |r: &JoinRequest| r.name.as_deref().map(text::plain).unwrap_or_default();
    let line = |r: &JoinRequest| format!("{what} {} {}", r.account, name(r));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_a_new_member() {
        let written = Written::parse(r#"profile/acct_a={"a":"b=c","n":[1]}"#).expect("an object");
        assert_eq!((written.object_type.as_str(), written.id.as_str()), ("profile", "acct_a"));
        assert_eq!(written.fields, json!({ "a": "b=c", "n": [1] }));
        assert_eq!(Written::parse("a/b/c={}").expect("an id may hold a slash").id, "b/c");
        for wrong in ["profile", "profile/x", "profile={}", "/x={}", "a/={}", "a/b=", "a/b=[1]", "a/b=1", "a/b={"] {
            assert_eq!(Written::parse(wrong).map_err(|e| e.code()), Err("USAGE"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn fields_from_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"a":1}"#).expect("written");
        let typed = format!("item/milk=@{}", file.path().display());
        assert_eq!(
            read_write(&Caller::Here, &typed).await.map_err(|e| e.code()),
            Ok(r#"item/milk={"a":1}"#.to_owned())
        );
        let plain = r#"item/milk={"a":"=@x"}"#;
        assert_eq!(read_write(&Caller::Here, plain).await.map_err(|e| e.code()), Ok(plain.to_owned()));
        assert_eq!(read_write(&Caller::Here, "item/milk=@/nowhere").await.map_err(|e| e.code()), Err("FILE"));
    }
}
