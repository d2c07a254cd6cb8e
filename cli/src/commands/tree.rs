//! Trees as they stand in the log.

use client_sdk::{ChangeId, Client, LoggedChange, Space, Tree, TreeId, object};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::CliError;
use crate::git;
use crate::output::{Answer, table};
use crate::text;

/// How many trees are asked for at a time.
const PAGE: usize = 512;

/// Which trees a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// Those that are no objects.
    Own,
}

impl Which {
    pub(crate) const fn of(all: bool) -> Self {
        if all { Self::All } else { Self::Own }
    }
}

pub(crate) async fn list(app: &App, which: Which, limit: usize) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let mut rows = Vec::new();
        let mut after = None;
        while rows.len() < limit {
            let page = space.trees(after, PAGE)?;
            after = page.last().copied();
            for id in &page {
                if rows.len() < limit
                    && let Some(tree) = space.tree(*id)?
                {
                    rows.extend(listed(&tree, which)?);
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        if rows.is_empty() && which == Which::Own {
            app.out.note("there are no trees but those of objects; --all shows them").await;
        }
        let table = table(
            &["tree", "what", "changes", "heads", "pending"],
            rows.iter().map(|r| {
                vec![
                    r.id.to_string(),
                    r.what.clone(),
                    r.changes.to_string(),
                    r.heads.to_string(),
                    r.pending.to_string(),
                ]
            }),
        );
        let json: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({
                    "tree": r.id.to_string(),
                    "what": r.what,
                    "changes": r.changes,
                    "heads": r.heads,
                    "pending": r.pending,
                })
            })
            .collect();
        let said = if rows.is_empty() { String::new() } else { table };
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "trees": json })))
    })
    .await
}

struct Listed {
    id: TreeId,
    what: String,
    changes: usize,
    heads: usize,
    pending: usize,
}

fn listed(tree: &Tree, which: Which) -> Result<Option<Listed>, CliError> {
    let snapshot = tree.snapshot()?;
    if which == Which::Own && snapshot.object.is_some() {
        return Ok(None);
    }
    let changes = tree.changes()?;
    let data_type = changes.iter().find_map(|c| c.content.as_ref()).map(|(data_type, _)| data_type.as_str());
    if which == Which::Own && data_type == Some(object::DATA_TYPE) {
        return Ok(None);
    }
    let what = match (&snapshot.object, data_type) {
        (Some(object), _) => text::plain(&format!("{}/{}", object.object_type, object.id)),
        (None, Some(object::DATA_TYPE)) => "(deleted object)".to_owned(),
        (None, Some(data_type)) => text::plain(data_type),
        (None, None) if snapshot.purged => "(purged)".to_owned(),
        (None, None) => "(not readable here)".to_owned(),
    };
    Ok(Some(Listed {
        id: tree.id(),
        what,
        changes: changes.len(),
        heads: snapshot.heads.len(),
        pending: snapshot.pending,
    }))
}

/// The tree that was typed.
pub(crate) fn find(app: &App, space: &Space, typed: &str) -> Result<Tree, CliError> {
    let id = app.tree_id(space, typed)?;
    space.tree(id)?.ok_or_else(|| CliError::NotFound(format!("there is no tree {typed} here")))
}

pub(crate) async fn heads(app: &App, typed: &str) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let tree = find(app, space, typed)?;
        let snapshot = tree.snapshot()?;
        let heads: Vec<_> = snapshot.heads.iter().map(ToString::to_string).collect();
        let json = json!({ "tree": tree.id().to_string(), "heads": heads, "pending": snapshot.pending });
        Ok(Answer::new(heads.join("\n"), json))
    })
    .await
}

pub(crate) async fn log(app: &App, typed: &str, limit: Option<usize>) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let tree = find(app, space, typed)?;
        let changes = tree.changes()?;
        let pending = tree.snapshot()?.pending;
        let skipped = limit.map_or(0, |limit| changes.len().saturating_sub(limit));
        let changes = &changes[skipped..];
        let rows = changes.iter().map(|c| {
            vec![
                c.height.to_string(),
                c.id.short(),
                parents_text(&tree, c),
                c.author.short(),
                text::moment(c.at_ms),
                shown(c),
            ]
        });
        let mut said = table(&["height", "change", "parents", "author", "time", "data"], rows);
        if skipped > 0 {
            said = format!("… {} before\n{said}", text::count(skipped, "change"));
        }
        if pending > 0 {
            said.push_str(&format!("\n… and {} of our own on the way to the log", text::count(pending, "change")));
        }
        let json: Vec<_> = changes.iter().map(change_json).collect();
        Ok(Answer::new(said, json!({ "tree": tree.id().to_string(), "pending": pending, "changes": json })))
    })
    .await
}

/// A first change stands on the root of its tree, which is no change.
fn parents_text(tree: &Tree, change: &LoggedChange) -> String {
    let id = tree.id();
    let short = |p: &ChangeId| if p.as_bytes() == id.as_bytes() { "root".to_owned() } else { p.short() };
    change.parents.iter().map(short).collect::<Vec<_>>().join(" ")
}

fn change_json(change: &LoggedChange) -> Value {
    let content = change.content.as_ref();
    let payload = content.map(|(_, payload)| {
        serde_json::from_slice::<Value>(payload).unwrap_or_else(|_| json!({ "hex": text::hex(payload) }))
    });
    json!({
        "change": change.id.to_string(),
        "seq": change.seq,
        "height": change.height,
        "parents": change.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "author": change.author.to_string(),
        "at_ms": change.at_ms,
        "data_type": content.map(|(data_type, _)| data_type),
        "payload": payload,
    })
}

/// The content of a change, in one line.
fn shown(change: &LoggedChange) -> String {
    let Some((data_type, payload)) = &change.content else { return "(not readable here)".to_owned() };
    let shown = match serde_json::from_slice::<git::Content>(payload) {
        Ok(commit) if data_type == git::DATA_TYPE => {
            let oid: String = commit.oid.chars().take(9).collect();
            format!("{oid} {}", commit.message.lines().next().unwrap_or_default())
        }
        Ok(_) | Err(_) => match std::str::from_utf8(payload) {
            Ok(text) if text.chars().all(|c| !c.is_control()) => text.to_owned(),
            Ok(_) | Err(_) => format!("{data_type}, {} bytes", payload.len()),
        },
    };
    text::start(&shown)
}
