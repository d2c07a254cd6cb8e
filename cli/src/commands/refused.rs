//! Own writes that the rules refused, and what a person does about them; and dropping content for good.

use std::path::Path;

use client_sdk::{Client, RefusedContent, RefusedWrite, Space, WriteId, WriteState};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::{Confirm, Purge, Settle, WhichWrite};
use crate::commands::plan;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Answer, table};
use crate::text;

pub(crate) async fn list(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let refused = space.refused()?;
        if refused.is_empty() {
            app.out.note("nothing was refused").await;
            return Ok(Answer::new("", refused_json(space, &refused)));
        }
        let rows = refused.iter().map(|r| {
            let content = shown(&r.content);
            vec![r.write.to_string(), content.what, content.object, content.said, format!("{}: {}", r.code, r.message)]
        });
        let said = table(&["write", "what", "object", "content", "why"], rows);
        Ok(Answer::new(said, refused_json(space, &refused)))
    })
    .await
}

pub(crate) async fn export(app: &App, file: &Path) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let refused = space.refused()?;
        let json = refused_json(space, &refused);
        let text = serde_json::to_string_pretty(&json).map_err(|e| CliError::Internal(e.to_string()))?;
        if file == Path::new("-") {
            return Ok(Answer::new(text, json));
        }
        app.write_file(file, format!("{text}\n")).await?;
        let (n, shown) = (refused.len(), file.display().to_string());
        let json = json!({ "space": space.id().to_string(), "writes": n, "file": shown });
        Ok(Answer::new(format!("{} in {shown}", text::count(n, "write")), json))
    })
    .await
}

fn refused_json(space: &Space, refused: &[RefusedWrite]) -> Value {
    let each: Vec<_> = refused.iter().map(write_json).collect();
    json!({ "space": space.id().to_string(), "refused": each })
}

fn write_json(refused: &RefusedWrite) -> Value {
    let mut json = json!({
        "write": refused.write.0,
        "tree": refused.tree.to_string(),
        "code": refused.code,
        "message": refused.message,
    });
    match &refused.content {
        RefusedContent::Object { object_type, id, fields } => {
            json["what"] = "object".into();
            json["type"] = object_type.as_str().into();
            json["id"] = id.as_str().into();
            json["fields"] = Value::Object(fields.clone());
        }
        RefusedContent::Purge { object_type, id } => {
            json["what"] = "purge".into();
            json["type"] = object_type.as_str().into();
            json["id"] = id.as_str().into();
        }
        RefusedContent::Foreign { data_type, payload } => {
            json["what"] = "change".into();
            json["data_type"] = data_type.as_str().into();
            json["payload"] = serde_json::from_slice(payload).unwrap_or_else(|_| json!({ "hex": text::hex(payload) }));
        }
    }
    json
}

/// A refused write in the cells of a table.
struct Shown {
    what: String,
    object: String,
    said: String,
}

fn shown(content: &RefusedContent) -> Shown {
    let object = |object_type: &str, id: &str| match object_type {
        "" => String::new(),
        _ => format!("{}/{}", text::plain(object_type), text::plain(id)),
    };
    match content {
        RefusedContent::Object { object_type, id, fields } => Shown {
            what: "put".to_owned(),
            object: object(object_type, id),
            said: text::start(&serde_json::to_string(fields).unwrap_or_default()),
        },
        RefusedContent::Purge { object_type, id } => {
            Shown { what: "purge".to_owned(), object: object(object_type, id), said: String::new() }
        }
        RefusedContent::Foreign { data_type, payload } => Shown {
            what: "change".to_owned(),
            object: text::plain(data_type),
            said: text::count(payload.len(), "byte"),
        },
    }
}

pub(crate) async fn retry(app: &App, which: WhichWrite, settle: Settle) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        if let Some(write) = which.write {
            let write = known(space, write)?;
            space.retry(write).await?;
            let settled = app.settle(space, &[write], settle).await?;
            let said = format!("write {write}: {}", settled.text());
            return Ok(Answer::new(said, settled.into_json(json!({ "retried": [write.0], "refused": [] }))));
        }
        let (mut retried, mut lines, mut still) = (Vec::new(), Vec::new(), Vec::new());
        for refused in space.refused()? {
            let write = refused.write;
            match space.retry(write).await {
                Ok(()) => retried.push(write),
                Err(error) => {
                    lines.push(format!("write {write} is refused still: {error}"));
                    still.push(json!({ "write": write.0, "code": error.code(), "message": error.to_string() }));
                }
            }
        }
        let settled = app.settle(space, &retried, settle).await?;
        lines.insert(0, format!("{} tried again: {}", text::count(retried.len(), "write"), settled.text()));
        let numbers: Vec<_> = retried.iter().map(|w| w.0).collect();
        let answer = Answer::new(lines.join("\n"), settled.into_json(json!({ "retried": numbers, "refused": &still })));
        Ok(if still.is_empty() { answer } else { answer.but(Exit::Refused) })
    })
    .await
}

pub(crate) async fn dismiss(app: &App, which: WhichWrite) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let Some(write) = which.write else { return dismiss_all(space).await };
        let write = known(space, write)?;
        space.dismiss(write).await?;
        if !matches!(space.write_state(write)?, Some(WriteState::Dismissed)) {
            return Err(CliError::Usage(format!("write {write} was not refused: there is nothing to dismiss")));
        }
        Ok(Answer::new(format!("write {write} is dismissed"), json!({ "write": write.0, "state": "dismissed" })))
    })
    .await
}

async fn dismiss_all(space: &Space) -> Result<Answer, CliError> {
    let refused = space.refused()?;
    for one in &refused {
        space.dismiss(one.write).await?;
    }
    let numbers: Vec<_> = refused.iter().map(|r| r.write.0).collect();
    let said = match numbers.len() {
        1 => "1 write is dismissed".to_owned(),
        n => format!("{n} writes are dismissed"),
    };
    Ok(Answer::new(said, json!({ "writes": numbers, "state": "dismissed" })))
}

fn known(space: &Space, write: u64) -> Result<WriteId, CliError> {
    let write = WriteId(write);
    match space.write_state(write)? {
        Some(_) => Ok(write),
        None => Err(CliError::NotFound(format!("there is no write {write} here: headwater refused"))),
    }
}

// ---- purging ------------------------------------------------------------------------------------------------------------

const PURGING: &str = "Purging";

pub(crate) async fn purge(app: &App, args: Purge) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let (object_type, id) = (&args.object_type, &args.id);
        if space.objects().tree(object_type, id)?.is_none() {
            return Err(CliError::NotFound(format!("there is no {object_type} {id:?} here")));
        }
        let what = format!("{object_type}/{id}");
        plan::ask(app, args.confirm, PURGING, &for_good(&what)).await?;
        let write = space.objects().purge(object_type, id).await?;
        let json = json!({
            "space": space.id().to_string(),
            "type": object_type,
            "id": id,
            "tree": space.objects().tree_id(object_type, id)?.to_string(),
            "purged": true,
        });
        purged(app, space, write, &what, json, args.settle).await
    })
    .await
}

pub(crate) async fn purge_tree(app: &App, typed: &str, confirm: Confirm, settle: Settle) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let tree = super::tree::find(app, space, typed)?.id();
        plan::ask(app, confirm, PURGING, &for_good(typed)).await?;
        let write = space.purge_tree(tree).await?;
        let json = json!({ "space": space.id().to_string(), "tree": tree.to_string(), "purged": true });
        purged(app, space, write, typed, json, settle).await
    })
    .await
}

fn for_good(what: &str) -> [String; 1] {
    [format!("the content of {what} is dropped here, at the node and at every member; it cannot be written again")]
}

async fn purged(
    app: &App,
    space: &Space,
    write: WriteId,
    what: &str,
    json: Value,
    settle: Settle,
) -> Result<Answer, CliError> {
    let settled = app.settle(space, &[write], settle).await?;
    Ok(Answer::new(format!("{what} purged: {}", settled.text()), settled.into_json(json)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_content_is_exported_whole() {
        let write = |content| RefusedWrite {
            write: WriteId(7),
            tree: client_sdk::TreeId::from_hash([1; 32]),
            code: "NOT_A_MEMBER",
            message: "no".to_owned(),
            content,
        };
        let fields = json!({ "a": [1, 2] }).as_object().cloned().unwrap_or_default();
        let object = RefusedContent::Object { object_type: "item".into(), id: "milk".into(), fields };
        let json = write_json(&write(object));
        assert_eq!((&json["what"], &json["fields"]), (&json!("object"), &json!({ "a": [1, 2] })));
        let purge = RefusedContent::Purge { object_type: String::new(), id: String::new() };
        assert_eq!(shown(&purge).object, "");
        let foreign = RefusedContent::Foreign { data_type: "x".into(), payload: vec![255].into() };
        assert_eq!(write_json(&write(foreign))["payload"], json!({ "hex": "ff" }));
    }
}
