//! What a change of the ACL would do, in sentences; and asking before it is done.

use client_sdk::{AclChange, AclPlan, Client, Effect, HistoryMode, Space, SpaceOptions};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::{Confirm, Plan};
use crate::commands::invites;
use crate::error::CliError;
use crate::output::{Answer, Form};
use crate::text;
use crate::who::Names;

/// A change and what it would do.
pub(crate) struct Planned {
    pub(crate) change: AclChange,
    plan: AclPlan,
    pub(crate) sentences: Vec<String>,
}

impl Planned {
    /// Asks the rules; nothing is sent.
    pub(crate) fn of(space: &Space, change: AclChange) -> Result<Self, CliError> {
        let plan = space.plan(&change)?;
        let names = Names::of_everybody(space)?;
        let labels = space.invites()?.into_iter().filter_map(|i| Some((i.id, i.label?))).collect();
        let sentences = plan.effects.iter().map(|effect| sentence(effect, &names, &labels)).collect();
        Ok(Self { change, plan, sentences })
    }

    pub(crate) fn effects_json(&self) -> Value {
        self.plan.effects.iter().map(effect_json).collect()
    }

    pub(crate) fn text(&self) -> String {
        match self.sentences.as_slice() {
            [] => "nothing changes for anybody".to_owned(),
            some => some.join("\n"),
        }
    }

    /// Shows it and asks, unless that was answered beforehand.
    pub(crate) async fn confirm(&self, app: &App, confirm: Confirm, what: &'static str) -> Result<(), CliError> {
        ask(app, confirm, what, &self.sentences).await
    }
}

/// Asks a person before something that cannot be taken back.
pub(crate) async fn ask(app: &App, confirm: Confirm, what: &'static str, plan: &[String]) -> Result<(), CliError> {
    if confirm.yes {
        return Ok(());
    }
    if !app.caller.is_somebody() || app.out.form() == Form::Json {
        return Err(CliError::NeedsYes(what));
    }
    for sentence in plan {
        app.out.say(&format!("  {sentence}")).await;
    }
    app.out.say(&format!("{what} cannot be taken back. Go on? [y/N]")).await;
    let answer = app.caller.read_line().await.map_err(CliError::file("the terminal"))?;
    if is_yes(&answer) { Ok(()) } else { Err(CliError::SaidNo) }
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

pub(crate) async fn plan(app: &App, typed: Plan) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let planned = Planned::of(space, change_of(space, &typed)?)?;
        let json = json!({
            "space": space.id().to_string(),
            "contents": planned.plan.contents,
            "effects": planned.effects_json(),
            "sentences": planned.sentences,
        });
        Ok(Answer::new(planned.text(), json))
    })
    .await
}

fn change_of(space: &Space, typed: &Plan) -> Result<AclChange, CliError> {
    let names = Names::of_members(space)?;
    Ok(match typed {
        Plan::Remove { who } => {
            let accounts = who.iter().map(|typed| names.choose(typed)).collect::<Result<_, _>>()?;
            AclChange::RemoveMembers { accounts }
        }
        Plan::Role(args) => AclChange::ChangeRole { account: names.choose(&args.who)?, role: args.role.into() },
        Plan::Add(args) => AclChange::AddMembers { members: vec![(args.account, args.role.into())] },
        Plan::Leave => AclChange::Leave,
        Plan::Rotate => AclChange::RotateKeys,
        Plan::Revoke { invite } => AclChange::RevokeInvite { invite: invites::choose(&space.invites()?, invite)?.id },
        Plan::Transfer { who } => AclChange::TransferOwnership { account: names.choose(who)? },
        Plan::Delete => AclChange::DeleteSpace,
        Plan::Replace { old, new } => AclChange::ReplaceAccount { old: names.choose(old)?, new: *new },
        Plan::Options { history } => {
            let options = SpaceOptions { history: (*history).into(), ..space.acl()?.options };
            AclChange::SetOptions { options }
        }
    })
}

type Labels = std::collections::BTreeMap<client_sdk::InviteId, String>;

fn sentence(effect: &Effect, names: &Names, labels: &Labels) -> String {
    match effect {
        Effect::Joins { account, role, reads_history } => {
            let reads = if *reads_history { "everything written before, too" } else { "what is written from now on" };
            format!("{} becomes {} and reads {reads}", names.show(account), text::a_role(*role))
        }
        Effect::Goes { account, role } => format!(
            "{}, {} until now, is a member no more: can write nothing, and read nothing that is written later",
            names.show(account),
            text::a_role(*role)
        ),
        Effect::Role { account, from, to } => {
            format!("{} becomes {}, and was {}", names.show(account), text::a_role(*to), text::a_role(*from))
        }
        Effect::InviteEnds { invite } => match labels.get(invite) {
            Some(label) => format!("the invite \"{}\" ends", text::plain(label)),
            None => format!("the invite {} ends", invite.short()),
        },
        Effect::NewKeys { epoch, members, invites } => {
            let open = match invites {
                0 => String::new(),
                some => format!(" and {}", text::count(*some, "open invite")),
            };
            format!("the space gets new keys (epoch {epoch}), for {}{open}", text::count(*members, "member"))
        }
        Effect::RotationOwed => {
            "until an admin's device makes new keys, what is written can be read with the keys of today".to_owned()
        }
        Effect::History { mode: HistoryMode::All } => "new members read everything, from the beginning".to_owned(),
        Effect::History { mode: HistoryMode::SinceJoin } => {
            "new members read only what is written after they joined".to_owned()
        }
        Effect::SpaceEnds => "the space ends for everybody; its contents are dropped everywhere".to_owned(),
        Effect::RequestEnds { account, accepted } => {
            let how = if *accepted { "accepted" } else { "closed" };
            format!("the request of {} to join is {how}", names.show(account))
        }
    }
}

fn effect_json(effect: &Effect) -> Value {
    match effect {
        Effect::Joins { account, role, reads_history } => json!({
            "effect": "joins",
            "account": account.to_string(),
            "role": role.to_string(),
            "reads_history": reads_history,
        }),
        Effect::Goes { account, role } => {
            json!({ "effect": "goes", "account": account.to_string(), "role": role.to_string() })
        }
        Effect::Role { account, from, to } => json!({
            "effect": "role",
            "account": account.to_string(),
            "from": from.to_string(),
            "to": to.to_string(),
        }),
        Effect::InviteEnds { invite } => json!({ "effect": "invite_ends", "invite": invite.to_string() }),
        Effect::NewKeys { epoch, members, invites } => {
            json!({ "effect": "new_keys", "epoch": epoch, "members": members, "invites": invites })
        }
        Effect::RotationOwed => json!({ "effect": "rotation_owed" }),
        Effect::History { mode } => json!({ "effect": "history", "history": text::history(*mode) }),
        Effect::SpaceEnds => json!({ "effect": "space_ends" }),
        Effect::RequestEnds { account, accepted } => {
            json!({ "effect": "request_ends", "account": account.to_string(), "accepted": accepted })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, yes) in
            [("y\n", true), (" YES \n", true), ("\n", false), ("", false), ("yep", false), ("n", false)]
        {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }

    #[test]
    fn effects_are_sentences() {
        let (names, labels) = (Names::default(), Labels::new());
        let keys = Effect::NewKeys { epoch: 2, members: 1, invites: 0 };
        assert_eq!(sentence(&keys, &names, &labels), "the space gets new keys (epoch 2), for 1 member");
        let keys = Effect::NewKeys { epoch: 3, members: 4, invites: 2 };
        assert_eq!(
            sentence(&keys, &names, &labels),
            "the space gets new keys (epoch 3), for 4 members and 2 open invites"
        );
        assert_eq!(effect_json(&Effect::SpaceEnds), json!({ "effect": "space_ends" }));
        let mode = HistoryMode::SinceJoin;
        assert_eq!(effect_json(&Effect::History { mode }), json!({ "effect": "history", "history": "since-join" }));
    }
}
