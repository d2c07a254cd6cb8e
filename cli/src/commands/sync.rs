//! Synced or not, and why.

use client_sdk::{
    Client, NotSynced, NotSyncedCode, PeerStatus, Reason, ReasonCode, Space, SpaceStatus, SyncState, TreeId,
};
use serde_json::{Value, json};

use crate::app::{App, Reached};
use crate::args::{AwaitSynced, Status, Sync, Why};
use crate::commands::receipt;
use crate::error::CliError;
use crate::output::{Answer, Paint, pairs};
use crate::{reasons, text};

/// How long `why` tries before it says what is in the way.
const WHY_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// How long `status` listens to the node before it says how things stand.
const STATUS_MAX: std::time::Duration = std::time::Duration::from_secs(3);

/// What a revoked device says before everything else.
const REVOKED: &str = "this device was revoked by another device of the account: what is here can be read and exported, and \
nothing new comes or goes";

pub(crate) async fn await_synced(app: &App, args: AwaitSynced) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let synced = {
            let _spinner = app.out.spinner("comparing with the node");
            space.await_synced_within(app.timeout()).await?
        };
        let text = synced.receipt.to_text();
        let mut json = receipt::facts_json(&synced.receipt);
        json["equal_now"] = synced.equal_now.into();
        json["void"] = synced.void.len().into();
        json["hidden"] = synced.hidden.len().into();
        json["receipt"] = text.clone().into();
        let mut rows = receipt::facts(&synced.receipt);
        if !synced.void.is_empty() {
            rows.push(("void", format!("{}: wrong from the start, the same for everyone", synced.void.len())));
        }
        if !synced.hidden.is_empty() {
            rows.push(("hidden", format!("{}: from before this member's keys", synced.hidden.len())));
        }
        if let Some(file) = args.receipt {
            app.write_file(&file, format!("{text}\n")).await?;
            rows.push(("receipt", file.display().to_string()));
            json["file"] = file.display().to_string().into();
        }
        let paint = app.out.paint();
        Ok(Answer::new(format!("{}\n{}", paint.green("synced"), pairs(paint, rows)), json))
    })
    .await
}

pub(crate) async fn status(app: &App, args: Status) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let spaces = app.spaces(client)?;
        if args.watch {
            tokio::select! {
                watched = watch_all(app, &spaces) => watched?,
                () = app.caller.interrupted() => {}
            }
            return Ok(Answer::nothing());
        }
        for space in &spaces {
            // A moment to hear from the node: before that, nothing is known to be missing. What came of it is in the status.
            let _spinner = app.out.spinner("asking the node");
            if let Reached::Yes = app.reach(space).await? {
                let _ = space.await_synced_within(app.timeout().min(STATUS_MAX)).await;
            }
        }
        let mut texts = Vec::new();
        let mut json = Vec::new();
        for space in &spaces {
            let status = space.status()?;
            let name = space.name()?;
            let peers = space.peers()?;
            texts.push(status_text(app.out.paint(), name.as_deref(), &status, &peers));
            let mut one = status_json(name, &status);
            one["peers"] = json!(peers);
            json.push(one);
        }
        if spaces.is_empty() {
            app.out.note("no spaces yet: headwater space create NAME, or headwater join TOKEN").await;
        }
        if client.is_revoked() {
            texts.insert(0, app.out.paint().red(REVOKED));
        }
        Ok(Answer::new(texts.join("\n\n"), json!({ "device_revoked": client.is_revoked(), "spaces": json })))
    })
    .await
}

fn status_json(name: Option<String>, status: &SpaceStatus) -> Value {
    let mut json = json!(status);
    json["name"] = name.into();
    json
}

fn state_text(paint: Paint, state: SyncState) -> String {
    let text = text::sync_state(state);
    match state {
        SyncState::UpToDate => paint.green(text),
        SyncState::Offline | SyncState::CatchingUp | SyncState::Pushing => paint.yellow(text),
        SyncState::Attention => paint.red(text),
    }
}

fn status_text(paint: Paint, name: Option<&str>, status: &SpaceStatus, peers: &[PeerStatus]) -> String {
    let fresh = match status.fresh_ms {
        Some(ms) => format!("the node was heard {} ago", text::duration(ms)),
        None => "not fresh".to_owned(),
    };
    let confirmed = match status.confirmed {
        Some(c) => format!("equal at {} at {}", c.seq, text::moment(c.at_ms)),
        None => "never".to_owned(),
    };
    let mut rows = vec![
        ("space", status.space.clone()),
        ("state", state_text(paint, status.state)),
        ("you are", standing(status)),
        ("log", format!("{} here, {} at the node, {} on its disk", status.seq, status.node_seq, status.durable_seq)),
        (
            "holds",
            format!(
                "{}, {}",
                text::count(usize_of(status.trees), "tree"),
                text::count(usize_of(status.changes), "change")
            ),
        ),
        ("waiting", text::count(status.pending, "write")),
        ("freshness", fresh),
        ("compared", confirmed),
    ];
    for (what, n) in [
        ("refused", status.refused),
        ("quarantined", status.quarantined),
        ("without content", status.missing),
        ("fetching", usize_of(status.wanted)),
        ("not shown yet", usize_of(status.projection_lag)),
        ("other heads told", usize_of(peers.iter().map(|peer| peer.trees_apart).sum())),
        ("void", status.void),
        ("hidden", status.hidden),
        ("misplaced", status.misplaced),
    ] {
        if n > 0 {
            rows.push((what, n.to_string()));
        }
    }
    let unnamed = if status.deleted { "(deleted)" } else { "(name not here yet)" };
    let title = paint.bold(name.map_or_else(|| unnamed.to_owned(), text::plain));
    let reasons = reasons::render(paint, &status.reasons);
    format!("{title}\n{}{reasons}", pairs(paint, rows))
}

/// Who this account is in the space, in words.
fn standing(status: &SpaceStatus) -> String {
    let about = |code| status.reasons.iter().find(|r| r.code == code).map(|r| r.detail.as_str());
    if status.deleted {
        return "nobody: the owner deleted the space, and its contents are gone".to_owned();
    }
    match (&status.role, about(ReasonCode::NotAMember), about(ReasonCode::Leaving)) {
        (None, Some(how), _) => format!("no member any more: {how}"),
        (None, None, _) => "no member, as far as the log here tells".to_owned(),
        (Some(role), _, Some(how)) => format!("{role}, and leaving: {how}"),
        (Some(role), _, None) => role.clone(),
    }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

async fn watch_all(app: &App, spaces: &[Space]) -> Result<(), CliError> {
    let mut watched = tokio::task::JoinSet::new();
    let (say, mut said) = tokio::sync::mpsc::channel(16);
    for space in spaces {
        let (space, say) = (space.clone(), say.clone());
        watched.spawn(async move { follow(&space, &say).await });
    }
    drop(say);
    while let Some((name, status)) = said.recv().await {
        let paint = app.out.paint();
        let shown = name.as_deref().map_or_else(|| status.space.clone(), text::plain);
        let state = state_text(paint, status.state);
        let text = format!(
            "{shown}: {state}, log {} of {}, {} waiting, {}",
            status.seq,
            status.node_seq,
            status.pending,
            text::count(status.reasons.len(), "reason"),
        );
        app.out.line(&text, &status_json(name, &status)).await?;
    }
    while let Some(ended) = watched.join_next().await {
        ended.map_err(|e| CliError::Internal(e.to_string()))??;
    }
    Ok(())
}

type Said = tokio::sync::mpsc::Sender<(Option<String>, SpaceStatus)>;

/// Sends the status whenever something else than the clock moved in it.
async fn follow(space: &Space, say: &Said) -> Result<(), CliError> {
    let mut statuses = space.status_stream();
    while let Some(status) = statuses.next().await? {
        if say.send((space.name()?, status)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

pub(crate) async fn why(app: &App, args: Why) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let (space, object) = args.target();
        if let Some(object) = object {
            let space = match space {
                Some(typed) => app.space_named(client, typed)?,
                None => app.space(client)?,
            };
            return why_tree(app, &space, app.tree_id(&space, object)?, object).await;
        }
        let spaces = match space {
            Some(typed) => vec![app.space_named(client, typed)?],
            None => app.spaces(client)?,
        };
        let mut texts = Vec::new();
        let mut json = Vec::new();
        for space in spaces {
            let tried = {
                let _spinner = app.out.spinner("trying");
                space.await_synced_within(app.timeout().min(WHY_MAX)).await
            };
            let (code, reasons) = match tried {
                // What the await does not wait for may be the matter all the same.
                Ok(_) => (None, space.explain()?),
                Err(error) => {
                    let error = with_membership(&space, error)?;
                    (Some(error.code), error.residue)
                }
            };
            let (name, deleted) = (space.name()?, space.acl()?.deleted);
            let shown = match name.as_deref() {
                Some(name) => text::plain(name),
                None => space.id().short(),
            };
            texts.push(why_text(app.out.paint(), &shown, deleted, code, &reasons));
            json.push(json!({
                "space": space.id().to_string(),
                "name": name,
                "deleted": deleted,
                "synced": code.is_none(),
                "code": code.map(NotSyncedCode::name),
                "reasons": reasons,
            }));
        }
        for join in client.joins()? {
            texts.push(format!("joining {}: {}", join.space, stage(&join)));
            json.push(
                json!({ "space": join.space.to_string(), "synced": false, "code": "JOINING", "stage": join.stage }),
            );
        }
        if client.is_revoked() {
            texts.insert(0, app.out.paint().red(REVOKED));
        }
        Ok(Answer::new(texts.join("\n"), json!({ "device_revoked": client.is_revoked(), "spaces": json })))
    })
    .await
}

/// Why one tree is not synced, or not here.
async fn why_tree(app: &App, space: &Space, tree: TreeId, typed: &str) -> Result<Answer, CliError> {
    {
        let _spinner = app.out.spinner("trying");
        // What came of it is in the status.
        let _ = space.await_synced_within(app.timeout().min(WHY_MAX)).await;
    }
    let status = space.tree_status(tree)?;
    let paint = app.out.paint();
    let text = match status.reasons.as_slice() {
        [] if status.purged => format!("{}: purged; nothing of it is left", paint.bold(typed)),
        [] => format!("{}: {}", paint.bold(typed), paint.green("synced; nothing is missing")),
        some => format!("{}: {}{}", paint.bold(typed), paint.yellow("not synced"), reasons::render(paint, some)),
    };
    Ok(Answer::new(text, json!(status)))
}

/// A former member is told so before anything that follows from it.
fn with_membership(space: &Space, mut error: NotSynced) -> Result<NotSynced, CliError> {
    let mut known = space.explain()?;
    known.retain(|reason| !error.residue.iter().any(|r| (r.code, &r.scope) == (reason.code, &reason.scope)));
    if known.iter().any(|reason| reason.code == ReasonCode::NotAMember) {
        error.residue.retain(|reason| reason.code != ReasonCode::Forbidden);
    }
    known.append(&mut error.residue);
    error.residue = known;
    Ok(error)
}

fn stage(join: &client_sdk::JoinInfo) -> &'static str {
    crate::commands::spaces::stage_text(join.stage)
}

fn why_text(paint: Paint, name: &str, deleted: bool, code: Option<NotSyncedCode>, reasons: &[Reason]) -> String {
    let verdict = match (code, reasons) {
        (Some(code), _) => format!("{} ({})", paint.yellow("not synced"), code.name()),
        (None, []) if deleted => "deleted by its owner; nothing more comes, nothing is missing".to_owned(),
        (None, []) => paint.green("synced; nothing is missing"),
        (None, _) => format!("{}; what else is known:", paint.green("synced")),
    };
    format!("{}: {verdict}{}", paint.bold(name), reasons::render(paint, reasons))
}

pub(crate) async fn sync(app: &App, args: Sync) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        if args.once {
            return once(app, client).await;
        }
        let spaces = app.spaces(client)?;
        tokio::select! {
            watched = watch_all(app, &spaces) => watched?,
            () = app.caller.interrupted() => {}
        }
        Ok(Answer::nothing())
    })
    .await
}

async fn once(app: &App, client: &Client) -> Result<Answer, CliError> {
    let spaces = app.live_spaces(client)?;
    let mut lines = Vec::new();
    let mut json = Vec::new();
    for space in &spaces {
        let name = space.name()?;
        let shown = name.as_deref().map_or_else(|| space.id().short(), text::plain);
        let _spinner = app.out.spinner(format!("syncing {shown}"));
        let synced = space.await_synced_within(app.timeout()).await?;
        lines.push(format!("{shown}: synced up to {}", synced.receipt.body().seq));
        json.push(json!({
            "space": space.id().to_string(),
            "name": name,
            "seq": synced.receipt.body().seq.0,
            "equal_now": synced.equal_now,
        }));
    }
    {
        let _spinner = app.out.spinner("telling the account's other devices");
        client.account_synced(app.timeout()).await?;
    }
    Ok(Answer::new(lines.join("\n"), json!({ "spaces": json })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state for each head line; the reasons below are [`reasons::render`]'s.
    #[test]
    fn why_says_how_it_stands_before_it_says_why() {
        let text = |deleted, code| why_text(Paint::Plain, "Club", deleted, code, &[]);
        assert_eq!(text(false, None), "Club: synced; nothing is missing");
        assert_eq!(text(true, None), "Club: deleted by its owner; nothing more comes, nothing is missing");
        assert_eq!(text(false, Some(NotSyncedCode::NoNode)), "Club: not synced (NO_NODE)");
        let known = [reasons::of(ReasonCode::RolledBack)];
        let text = why_text(Paint::Plain, "Club", false, None, &known);
        assert!(text.starts_with("Club: synced; what else is known:\n  ROLLED_BACK accusation 1 of"), "{text}");
    }
}
