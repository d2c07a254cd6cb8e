//! Objects: put, get, list, rm, watch.

use std::collections::BTreeMap;
use std::path::Path;

use client_sdk::{Client, Event, Object, Space, Update};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::args::{Get, List, Put, Rm, Watch};
use crate::caller::Caller;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;

pub(crate) async fn put(app: &App, args: Put) -> Result<Answer, CliError> {
    let fields = fields_of(&app.caller, &args.fields).await?;
    let update = update_of(&args)?;
    app.with_space(async |_: &Client, space: &Space| {
        let (object_type, id) = (&args.object_type, &args.id);
        let objects = space.objects();
        let mut writes = Vec::new();
        match update {
            None => writes.extend(objects.put(object_type, id, Value::Object(fields)).await?),
            Some(update) => {
                // Operations stand on an object that exists.
                if objects.get(object_type, id)?.is_none() {
                    writes.extend(objects.put(object_type, id, Value::Object(Map::new())).await?);
                }
                let update = fields.into_iter().fold(update, |update, (name, value)| update.set(name, value));
                writes.extend(objects.update(object_type, id, update).await?);
            }
        }
        let settled = app.settle(space, &writes, args.settle).await?;
        let said = format!("{object_type}/{id}: {}", settled.text());
        let json = json!({
            "space": space.id().to_string(),
            "type": object_type,
            "id": id,
            "tree": objects.tree_id(object_type, id)?.to_string(),
            "writes": writes.iter().map(|w| w.0).collect::<Vec<_>>(),
        });
        Ok(Answer::new(said, settled.into_json(json)))
    })
    .await
}

pub(crate) async fn rm(app: &App, args: Rm) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let (object_type, id) = (&args.object_type, &args.id);
        let write = space.objects().delete(object_type, id).await?;
        let writes: Vec<_> = write.into_iter().collect();
        let settled = app.settle(space, &writes, args.settle).await?;
        let said = format!("{object_type}/{id} deleted: {}", settled.text());
        let json = json!({ "space": space.id().to_string(), "type": object_type, "id": id, "deleted": true });
        Ok(Answer::new(said, settled.into_json(json)))
    })
    .await
}

/// The fields that were typed, later ones over earlier ones.
async fn fields_of(caller: &Caller, typed: &[String]) -> Result<Map<String, Value>, CliError> {
    let mut fields = Map::new();
    for text in typed {
        if text == "-" {
            fields.extend(object_in("stdin", &caller.read_input(Path::new("-")).await?)?);
        } else if let Some(file) = text.strip_prefix('@') {
            fields.extend(object_in(file, &caller.read_input(Path::new(file)).await?)?);
        } else if text.trim_start().starts_with('{') {
            fields.extend(object_in("the argument", text)?);
        } else {
            let (name, value) = pair(text)?;
            fields.insert(name, value);
        }
    }
    Ok(fields)
}

fn object_in(place: &str, text: &str) -> Result<Map<String, Value>, CliError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(CliError::Usage(format!("{place} is not a JSON object"))),
        Err(error) => Err(CliError::Usage(format!("{place} is not a JSON object: {error}"))),
    }
}

fn pair(text: &str) -> Result<(String, Value), CliError> {
    let usage = || CliError::Usage(format!("{text:?} is not of the form FIELD=VALUE"));
    let (name, value) = text.split_once('=').ok_or_else(usage)?;
    if name.is_empty() {
        return Err(usage());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

fn update_of(args: &Put) -> Result<Option<Update>, CliError> {
    if args.inc.is_empty() && args.add.is_empty() && args.remove.is_empty() && args.unset.is_empty() {
        return Ok(None);
    }
    let mut update = Update::new();
    for field in &args.unset {
        update = update.unset(field);
    }
    for text in &args.inc {
        let (name, value) = pair(text)?;
        let by = value.as_i64().ok_or_else(|| CliError::Usage(format!("{text:?}: --inc takes an integer")))?;
        update = update.increment(name, by);
    }
    for text in &args.add {
        let (name, value) = pair(text)?;
        update = update.add(name, value);
    }
    for text in &args.remove {
        let (name, value) = pair(text)?;
        update = update.remove(name, value);
    }
    Ok(Some(update))
}

pub(crate) async fn get(app: &App, args: Get) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let (object_type, id) = (&args.object_type, &args.id);
        let object = if args.wait {
            let _spinner = app.out.spinner(format!("waiting for {object_type}/{id}"));
            space.await_object(object_type, id, app.timeout()).await?
        } else {
            let missing = || CliError::NotFound(format!("there is no {object_type} {id:?} here"));
            space.objects().get(object_type, id)?.ok_or_else(missing)?
        };
        Ok(Answer::new(pretty(&object), object_json(&object)))
    })
    .await
}

fn object_json(object: &Object) -> Value {
    json!({
        "type": object.object_type,
        "id": object.id,
        "tree": object.tree.to_string(),
        "pending": object.pending,
        "fields": object.fields,
    })
}

fn pretty(object: &Object) -> String {
    serde_json::to_string_pretty(&object.fields).unwrap_or_default()
}

fn one_line(object: &Object) -> String {
    serde_json::to_string(&object.fields).unwrap_or_default()
}

pub(crate) async fn list(app: &App, args: List) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| match &args.object_type {
        Some(object_type) => list_objects(app, space, object_type, args.limit).await,
        None => list_types(space),
    })
    .await
}

async fn list_objects(app: &App, space: &Space, object_type: &str, limit: Option<usize>) -> Result<Answer, CliError> {
    let mut objects = space.objects().list(object_type)?;
    let total = objects.len();
    objects.truncate(limit.unwrap_or(usize::MAX));
    let paint = app.out.paint();
    let mut lines: Vec<_> =
        objects.iter().map(|o| format!("{}  {}", paint.bold(text::plain(&o.id)), one_line(o))).collect();
    if objects.len() < total {
        lines.push(paint.dim(format!("… {} of {total}", objects.len())));
    }
    if total == 0 {
        app.out.note(format!("there is no {object_type} here")).await;
    }
    let json = json!({
        "space": space.id().to_string(),
        "type": object_type,
        "total": total,
        "objects": objects.iter().map(object_json).collect::<Vec<_>>(),
    });
    Ok(Answer::new(lines.join("\n"), json))
}

fn list_types(space: &Space) -> Result<Answer, CliError> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for object in space.objects().list_all()? {
        *counts.entry(object.object_type).or_default() += 1;
    }
    let rows = counts.iter().map(|(object_type, count)| vec![text::plain(object_type), count.to_string()]);
    Ok(Answer::new(table(&["type", "objects"], rows), json!({ "space": space.id().to_string(), "types": counts })))
}

pub(crate) async fn watch(app: &App, args: Watch) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        tokio::select! {
            watched = Watcher { app, space, args: &args, said: 0 }.run() => watched,
            () = app.caller.interrupted() => Ok(()),
        }
    })
    .await?;
    Ok(Answer::nothing())
}

/// A running watch.
struct Watcher<'a> {
    app: &'a App,
    space: &'a Space,
    args: &'a Watch,
    said: u64,
}

impl Watcher<'_> {
    async fn run(mut self) -> Result<(), CliError> {
        // The feed first: what changes while we list comes again, and nothing falls between.
        let mut events = self.space.events();
        if !self.args.new {
            self.say_all("current").await?;
        }
        while !self.is_done() {
            let Some(event) = events.next().await else { return Ok(()) };
            match event {
                Event::Object { object_type, id, .. } => self.changed(&object_type, &id).await?,
                Event::Lagged { missed } => {
                    self.app
                        .out
                        .note(format!("{missed} changes were too fast for this reader; here is everything again"))
                        .await;
                    self.say_all("current").await?;
                }
                Event::Tree { .. }
                | Event::Acl { .. }
                | Event::JoinRequested { .. }
                | Event::RequestDecided { .. }
                | Event::MemberJoined { .. }
                | Event::MemberGone { .. }
                | Event::RoleChanged { .. }
                | Event::KeysRotated { .. }
                | Event::SpaceDeleted { .. }
                | Event::WriteRefused { .. }
                | Event::NodeAccused { .. }
                | Event::LogRewound { .. }
                | Event::LostByNode { .. }
                | Event::Revealed { .. }
                | Event::ListAgain { .. } => {}
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.args.count.is_some_and(|count| self.said >= count)
    }

    fn wants(&self, object_type: &str) -> bool {
        self.args.object_type.as_ref().is_none_or(|wanted| wanted == object_type)
    }

    async fn say_all(&mut self, event: &str) -> Result<(), CliError> {
        let objects = match &self.args.object_type {
            Some(object_type) => self.space.objects().list(object_type)?,
            None => self.space.objects().list_all()?,
        };
        for object in &objects {
            self.say(event, object).await?;
        }
        Ok(())
    }

    async fn changed(&mut self, object_type: &str, id: &str) -> Result<(), CliError> {
        if !self.wants(object_type) {
            return Ok(());
        }
        match self.space.objects().get(object_type, id)? {
            Some(object) => self.say("changed", &object).await,
            None => {
                let shown = format!("{}/{}", text::plain(object_type), text::plain(id));
                let text = format!("{} {shown}", self.app.out.paint().red("deleted"));
                self.line(&text, &json!({ "event": "deleted", "type": object_type, "id": id })).await
            }
        }
    }

    async fn say(&mut self, event: &str, object: &Object) -> Result<(), CliError> {
        let paint = self.app.out.paint();
        let event_text = if event == "changed" { paint.green(event) } else { paint.dim(event) };
        let shown = format!("{}/{}", text::plain(&object.object_type), text::plain(&object.id));
        let text = format!("{event_text} {shown}  {}", one_line(object));
        let mut json = object_json(object);
        json["event"] = event.into();
        self.line(&text, &json).await
    }

    async fn line(&mut self, text: &str, json: &Value) -> Result<(), CliError> {
        if self.is_done() {
            return Ok(());
        }
        self.said += 1;
        self.app.out.line(text, json).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_where_they_are_json() {
        for (text, value) in [
            ("a=1", json!(1)),
            ("a=true", json!(true)),
            ("a=\"1\"", json!("1")),
            ("a=[1,2]", json!([1, 2])),
            ("a=Milk", json!("Milk")),
            ("a=", json!("")),
            ("a=b=c", json!("b=c")),
            ("a=01", json!("01")),
        ] {
            assert_eq!(pair(text).unwrap(), ("a".to_owned(), value), "{text}");
        }
        assert!(pair("a").is_err());
        assert!(pair("=a").is_err());
    }

    #[tokio::test]
    async fn later_fields_stand_over_earlier_ones() {
        let fields = fields_of(&Caller::Here, &[r#"{"a":1,"b":2}"#.to_owned(), "b=3".to_owned()]).await.unwrap();
        assert_eq!(Value::Object(fields), json!({ "a": 1, "b": 3 }));
        assert!(fields_of(&Caller::Here, &["{".to_owned()]).await.is_err());
    }
}
