//! Spaces and who is in them.

use client_sdk::{AclChange, Client, JoinStage, Registration, Space, SpaceId, SpaceInfo, SpaceOptions};
use serde_json::json;

use crate::app::App;
use crate::args::{Confirm, HistoryArg, Settle};
use crate::commands::plan::{self, Planned};
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;

pub(crate) async fn create(app: &App, name: &str, history: HistoryArg, settle: Settle) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let options = SpaceOptions { history: history.into(), ..SpaceOptions::default() };
        let space = client.create_space_with(name, options).await?;
        let settled = registered(app, &space, settle).await?;
        if settled.state == "durable" {
            app.tell_devices(client).await;
        }
        let id = space.id();
        let json = json!({
            "space": id.to_string(),
            "name": name,
            "history": text::history(space.acl()?.options.history),
            "state": settled.state,
            "reason": settled.why,
        });
        Ok(Answer::new(format!("{id}\n{}", settled.text()), json))
    })
    .await
}

struct Registered {
    state: &'static str,
    why: Option<client_sdk::Reason>,
}

impl Registered {
    fn text(&self) -> String {
        match (&self.why, self.state) {
            (Some(why), _) => format!("kept here, goes to the node when it is reached ({})", why.detail),
            (None, "durable") => "on the node's disk".to_owned(),
            (None, _) => "kept here, goes to the node with the next command that reaches it".to_owned(),
        }
    }
}

async fn registered(app: &App, space: &Space, settle: Settle) -> Result<Registered, CliError> {
    let kept = |why| Registered { state: "kept", why };
    if settle.no_wait {
        space.durable_locally().await?;
        return Ok(kept(None));
    }
    if !settle.wait
        && let crate::app::Reached::No(why) = app.reach(space).await?
    {
        space.durable_locally().await?;
        return Ok(kept(why));
    }
    match space.await_synced_within(app.timeout()).await {
        Ok(_) => Ok(Registered { state: "durable", why: None }),
        Err(error) if settle.wait => Err(error.into()),
        Err(error) => Ok(kept(error.cause().cloned())),
    }
}

pub(crate) async fn list(app: &App) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let spaces = client.spaces()?;
        let joins = client.joins()?;
        let on_node = |registration| match registration {
            Registration::Registered => "yes",
            Registration::Unregistered => "not yet",
        };
        let mut rows = Vec::new();
        for info in &spaces {
            let unnamed = if info.deleted { "(deleted)" } else { "(not here yet)" };
            let name = info.name.as_deref().map_or_else(|| unnamed.to_owned(), text::plain);
            rows.push(vec![
                name,
                info.id.to_string(),
                you_are(info),
                info.seq.to_string(),
                info.members.to_string(),
                on_node(info.registration).to_owned(),
            ]);
        }
        let mut said = if rows.is_empty() {
            "no spaces yet: headwater space create NAME, or headwater join TOKEN".to_owned()
        } else {
            table(&["name", "space", "you are", "entries", "members", "on the node"], rows)
        };
        for join in &joins {
            let place = if join.here { "begun here" } else { "begun on another device" };
            let stage = stage_text(join.stage);
            said.push_str(&format!("\njoining {} as {} ({place}): {stage}", join.space, join.role));
        }
        let spaces: Vec<_> = spaces
            .iter()
            .map(|info| {
                json!({
                    "space": info.id.to_string(),
                    "name": info.name,
                    "role": info.role.map(|role| role.to_string()),
                    "deleted": info.deleted,
                    "seq": info.seq,
                    "members": info.members,
                    "registered": info.registration == Registration::Registered,
                })
            })
            .collect();
        let joins: Vec<_> = joins
            .iter()
            .map(|join| {
                json!({
                    "space": join.space.to_string(),
                    "mode": text::mode(join.mode),
                    "role": join.role.to_string(),
                    "stage": join.stage,
                    "here": join.here,
                })
            })
            .collect();
        Ok(Answer::new(said, json!({ "spaces": spaces, "joins": joins })))
    })
    .await
}

/// Who this account is in a space.
fn you_are(info: &SpaceInfo) -> String {
    match (info.role, info.deleted) {
        (_, true) => "(deleted)".to_owned(),
        (Some(role), false) => role.to_string(),
        (None, false) => "(no member)".to_owned(),
    }
}

pub(crate) const fn stage_text(stage: JoinStage) -> &'static str {
    match stage {
        JoinStage::Kept => "the node was not asked yet",
        JoinStage::Requested => "an admin has to accept",
        JoinStage::Joined => "what it must see is on its way",
        JoinStage::Cancelling => "taken back as soon as the node is reached",
        JoinStage::Declined => "an admin declined; join again to ask again",
    }
}

/// Opens a space whose admin added this account.
pub(crate) async fn open(app: &App, id: SpaceId) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let spinner = app.out.spinner("asking the node for the space");
        let space = client.open_joined(id, app.timeout()).await?;
        spinner.say("reading the space");
        // What is missing comes by itself; the keys are here.
        let synced = space.await_synced_within(app.timeout()).await;
        app.tell_devices(client).await;
        drop(spinner);
        let name = space.name()?;
        let role = space.acl()?.role(&client.account()).map(|role| role.to_string());
        let shown = name.as_deref().map_or_else(|| "the space".to_owned(), text::plain);
        let state = if synced.is_ok() { "synced" } else { "open" };
        let said = match &role {
            Some(role) => format!("{shown} ({id}): {state}, as {role}"),
            None => format!("{shown} ({id}): {state}"),
        };
        let json = json!({ "space": id.to_string(), "name": name, "role": role, "state": state });
        Ok(Answer::new(said, json))
    })
    .await
}

pub(crate) async fn options(app: &App, history: Option<HistoryArg>) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        if let Some(history) = history {
            let _spinner = app.out.spinner("asking the node");
            let options = SpaceOptions { history: history.into(), ..space.acl()?.options };
            space.set_options(options).await?;
        }
        let options = space.acl()?.options;
        let history = text::history(options.history);
        let reads = match options.history {
            client_sdk::HistoryMode::All => "new members read everything, from the beginning",
            client_sdk::HistoryMode::SinceJoin => "new members read what is written after they joined",
        };
        let json = json!({
            "space": space.id().to_string(),
            "history": history,
            "min_version": options.min_version,
        });
        Ok(Answer::new(format!("history {history}: {reads}"), json))
    })
    .await
}

pub(crate) async fn delete(app: &App, confirm: Confirm) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let id = space.id();
        let shown = space.name()?.map_or_else(|| id.to_string(), |name| text::plain(&name));
        let mut planned = Planned::of(space, AclChange::DeleteSpace)?;
        planned.sentences.insert(0, format!("{shown} ({id})"));
        planned.confirm(app, confirm, "Deleting a space").await?;
        let json = json!({ "space": id.to_string(), "deleted": true, "effects": planned.effects_json() });
        let _spinner = app.out.spinner("asking the node");
        space.change(planned.change).await?;
        Ok(Answer::new(format!("{shown} is deleted, for everybody"), json))
    })
    .await
}

pub(crate) async fn forget(app: &App, typed: &str, confirm: Confirm) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let space = app.space_typed(client, typed)?;
        let id = space.id();
        let shown = space.name()?.map_or_else(|| id.to_string(), |name| text::plain(&name));
        let mut plan = vec![format!("what is here of {shown} ({id}) is dropped from this device")];
        let refused = space.refused()?.len();
        if refused > 0 {
            let writes = text::count(refused, "refused write");
            plan.push(format!("{writes} would be lost with it: headwater refused export FILE keeps them"));
        }
        plan::ask(app, confirm, "Forgetting a space", &plan).await?;
        client.forget_space(id).await?;
        app.tell_devices(client).await;
        Ok(Answer::new(format!("{shown} is forgotten here"), json!({ "space": id.to_string(), "forgotten": true })))
    })
    .await
}
