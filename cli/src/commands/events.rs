//! Who comes, asks and goes, as it happens.

use client_sdk::{Client, Code, Event, Events, Space};
use serde_json::{Value, json};

use crate::app::App;
use crate::args;
use crate::error::CliError;
use crate::output::{Answer, Form};
use crate::text;
use crate::who::Names;

/// An event of one of the spaces.
struct Heard {
    space: usize,
    event: Event,
}

pub(crate) async fn events(app: &App, args: args::Events) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let spaces = app.spaces(client)?;
        if spaces.is_empty() {
            app.space(client)?;
        }
        tokio::select! {
            told = tell(app, &spaces, args.count) => told,
            () = app.caller.interrupted() => Ok(()),
        }
    })
    .await?;
    Ok(Answer::nothing())
}

async fn tell(app: &App, spaces: &[Space], count: Option<u64>) -> Result<(), CliError> {
    let mut names = Names::default();
    let (say, mut heard) = tokio::sync::mpsc::channel(64);
    let mut listening = tokio::task::JoinSet::new();
    for (at, space) in spaces.iter().enumerate() {
        listening.spawn(listen(at, space.events(), say.clone()));
        names.learn_everybody(space)?;
    }
    drop(say);
    if app.out.form() == Form::Json {
        // Whatever happens after this line is told.
        let ids: Vec<_> = spaces.iter().map(|s| s.id().to_string()).collect();
        app.out.line("", &json!({ "event": "listening", "spaces": ids })).await?;
    } else {
        app.out.note("listening; Ctrl-C ends it").await;
    }
    let mut said = 0;
    while count.is_none_or(|count| said < count) {
        let Some(Heard { space, event }) = heard.recv().await else { return Ok(()) };
        let Some(space) = spaces.get(space) else { continue };
        names.learn_everybody(space)?;
        let Some((text, mut json)) = told(&event, &names) else { continue };
        json["space"] = space.id().to_string().into();
        let shown = space.name()?.map_or_else(|| space.id().short(), |name| text::plain(&name));
        app.out.line(&format!("{}: {text}", app.out.paint().bold(shown)), &json).await?;
        said += 1;
    }
    Ok(())
}

async fn listen(space: usize, mut events: Events, say: tokio::sync::mpsc::Sender<Heard>) {
    while let Some(event) = events.next().await {
        if say.send(Heard { space, event }).await.is_err() {
            return;
        }
    }
}

/// What is said of an event; nothing of those that `watch` tells.
fn told(event: &Event, names: &Names) -> Option<(String, Value)> {
    let who = |account: &client_sdk::AccountId| names.show(account);
    let about = |event: &str, account: &client_sdk::AccountId| json!({ "event": event, "account": account.to_string(), "name": names.name(account) });
    Some(match event {
        Event::MemberJoined { account, role, .. } => {
            let mut json = about("member_joined", account);
            json["role"] = role.to_string().into();
            (format!("{} is {} now", who(account), text::a_role(*role)), json)
        }
        Event::MemberGone { account, removed, .. } => {
            let mut json = about("member_gone", account);
            json["removed"] = (*removed).into();
            let how = if *removed { "was removed" } else { "left" };
            (format!("{} {how}", who(account)), json)
        }
        Event::RoleChanged { account, role, .. } => {
            let mut json = about("role_changed", account);
            json["role"] = role.to_string().into();
            (format!("{} is {} from now on", who(account), text::a_role(*role)), json)
        }
        Event::JoinRequested { request, account, .. } => {
            let mut json = about("join_requested", account);
            json["request"] = request.to_string().into();
            (format!("{} asks to join", who(account)), json)
        }
        Event::RequestDecided { request, account, accepted, .. } => {
            let mut json = about("request_decided", account);
            json["request"] = request.to_string().into();
            json["accepted"] = (*accepted).into();
            let how = if *accepted { "accepted" } else { "declined or taken back" };
            (format!("the request of {} was {how}", who(account)), json)
        }
        Event::KeysRotated { epoch, .. } => {
            (format!("new keys (epoch {})", epoch.0), json!({ "event": "keys_rotated", "epoch": epoch.0 }))
        }
        Event::SpaceDeleted { .. } => ("the owner deleted the space".to_owned(), json!({ "event": "space_deleted" })),
        Event::WriteRefused { write, code, .. } => {
            let code = Code::from_number(*code).map_or("UNKNOWN", Code::name);
            let json = json!({ "event": "write_refused", "write": write.0, "code": code });
            (format!("write {write} was refused: {code}; headwater refused shows it"), json)
        }
        Event::NodeAccused { accusation, kind, .. } => {
            let json = json!({ "event": "node_accused", "accusation": accusation.0, "kind": kind.name() });
            (format!("the node is accused ({}): headwater receipt accusations", kind.name()), json)
        }
        Event::LogRewound { to, .. } => {
            let text = format!("the node lost entries; the log here follows it from entry {to}");
            (text, json!({ "event": "log_rewound", "to": to.0 }))
        }
        Event::LostByNode { entries, .. } => {
            let text = format!("{entries} entries that the node lost cannot come back: headwater lost");
            (text, json!({ "event": "lost_by_node", "entries": entries }))
        }
        Event::Lagged { missed } => {
            let text = format!("{missed} events were too fast for this reader: headwater members, headwater requests");
            (text, json!({ "event": "lagged", "missed": missed }))
        }
        Event::Revealed { .. } => ("what was hidden can be read now".to_owned(), json!({ "event": "revealed" })),
        // The second is of the logged feed only, which this command does not read.
        Event::Object { .. } | Event::ListAgain { .. } | Event::Tree { .. } | Event::Acl { .. } => return None,
    })
}
