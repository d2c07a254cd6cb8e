//! Spaces and who is in them.

use client_sdk::{Client, JoinStage, Registration, Space};
use serde_json::json;

use crate::app::App;
use crate::args::Settle;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;

pub(crate) async fn create(app: &App, name: &str, settle: Settle) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let space = client.create_space(name).await?;
        let settled = registered(app, &space, settle).await?;
        let id = space.id();
        let json = json!({ "space": id.to_string(), "name": name, "state": settled.state, "reason": settled.why });
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
        Err(error) => Ok(kept(error.residue.into_iter().next())),
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
            let name = info.name.clone().unwrap_or_else(|| "(not here yet)".to_owned());
            rows.push(vec![
                name,
                info.id.to_string(),
                info.seq.to_string(),
                info.members.to_string(),
                on_node(info.registration).to_owned(),
            ]);
        }
        let mut said = if rows.is_empty() {
            "no spaces yet: headwater space create NAME, or headwater join TOKEN".to_owned()
        } else {
            table(&["name", "space", "entries", "members", "on the node"], rows)
        };
        for join in &joins {
            said.push_str(&format!("\njoining {} as {}: {}", join.space, join.role, stage_text(join.stage)));
        }
        let spaces: Vec<_> = spaces
            .iter()
            .map(|info| {
                json!({
                    "space": info.id.to_string(),
                    "name": info.name,
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
                })
            })
            .collect();
        Ok(Answer::new(said, json!({ "spaces": spaces, "joins": joins })))
    })
    .await
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

pub(crate) async fn members(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let members = space.members()?;
        let row = |m: &client_sdk::MemberInfo| {
            vec![m.account.to_string(), m.role.to_string(), m.name.clone().unwrap_or_default(), m.joined.to_string()]
        };
        let said = table(&["account", "role", "name", "since entry"], members.iter().map(row));
        let json: Vec<_> = members
            .iter()
            .map(|m| {
                json!({
                    "account": m.account.to_string(),
                    "role": m.role.to_string(),
                    "name": m.name,
                    "joined": m.joined.0,
                })
            })
            .collect();
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "members": json })))
    })
    .await
}

pub(crate) async fn rotate_keys(app: &App) -> Result<Answer, CliError> {
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
