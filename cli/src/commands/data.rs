//! Import and export of records.

use std::path::Path;

use client_sdk::{Client, NewObject, Objects, Space, WriteId};
use serde_json::json;

use crate::app::App;
use crate::args::{Export, Import, RecordArgs};
use crate::error::CliError;
use crate::output::{Answer, Progress, table};
use crate::records::{self, ByType, Record};
use crate::text;

/// Objects in one transaction.
const BATCH: usize = 500;

/// What the system writes for itself.
const OWN_PREFIX: &str = "headwater.";

pub(crate) async fn import(app: &App, args: Import) -> Result<Answer, CliError> {
    let sources = records::load(&app.caller, &args.paths).await?.read(&args.records)?;
    for file in &sources.left_out {
        app.out.note(format!("left out, because it is a JSON Schema: {}", file.display())).await;
    }
    app.with_space(async |_: &Client, space: &Space| {
        let read = sources.records.len();
        let types: ByType = records::by_type(sources.records.iter().cloned());
        let writes = {
            let bar = app.out.bar(read, "writing");
            write_all(&space.objects(), sources.records, &bar).await?
        };
        let settled = {
            let _spinner = app.out.spinner(format!("pushing {}", text::count(writes.len(), "write")));
            app.settle(space, &writes, args.settle).await?
        };
        let rows = types.iter().map(|(object_type, records)| vec![object_type.clone(), records.len().to_string()]);
        let said = format!(
            "{}\n{} from {}, {} written: {}",
            table(&["type", "records"], rows),
            text::count(read, "record"),
            text::count(sources.files.len(), "file"),
            writes.len(),
            settled.text(),
        );
        let counts: serde_json::Map<_, _> = types.iter().map(|(t, r)| (t.clone(), r.len().into())).collect();
        let json = json!({
            "space": space.id().to_string(),
            "files": sources.files.len(),
            "records": read,
            "written": writes.len(),
            "types": counts,
        });
        Ok(Answer::new(said, settled.into_json(json)))
    })
    .await
}

/// Writes records, some hundreds in one transaction. Those that are there already as they are cost nothing.
pub(crate) async fn write_all(
    objects: &Objects,
    records: Vec<Record>,
    bar: &Progress,
) -> Result<Vec<WriteId>, CliError> {
    let mut writes = Vec::new();
    let mut records = records.into_iter();
    loop {
        let batch: Vec<_> = records.by_ref().take(BATCH).map(new_object).collect();
        if batch.is_empty() {
            return Ok(writes);
        }
        let size = batch.len();
        writes.extend(objects.put_many(batch).await?.into_iter().flatten());
        bar.advance(size);
    }
}

fn new_object(record: Record) -> NewObject {
    NewObject { object_type: record.object_type, id: record.id, fields: record.fields }
}

pub(crate) async fn export(app: &App, args: Export) -> Result<Answer, CliError> {
    if !args.check.is_empty() {
        return check(app, &args).await;
    }
    if args.records.id_field.is_some() || args.records.type_field.is_some() || args.records.prefix.is_some() {
        let text = "--id-field, --type-field and --prefix say how files are read: they go with --check";
        return Err(CliError::Usage(text.to_owned()));
    }
    let Some(to) = &args.to else { return Err(CliError::Usage("where to?".to_owned())) };
    app.with_space(async |_: &Client, space: &Space| {
        let types = exported(space, &args.records)?;
        if to == Path::new("-") { print(&types, &args.records) } else { write_files(app, to, &types).await }
    })
    .await
}

/// The objects of the space, or of one type, as records.
pub(crate) fn exported(space: &Space, how: &RecordArgs) -> Result<ByType, CliError> {
    let objects = match &how.object_type {
        Some(object_type) => space.objects().list(object_type)?,
        None => {
            let mut all = space.objects().list_all()?;
            all.retain(|o| !o.object_type.starts_with(OWN_PREFIX));
            all
        }
    };
    let record = |o: client_sdk::Object| Record { object_type: o.object_type, id: o.id, fields: o.fields };
    Ok(records::by_type(objects.into_iter().map(record)))
}

fn print(types: &ByType, how: &RecordArgs) -> Result<Answer, CliError> {
    let text = match &how.object_type {
        Some(object_type) => records::array_text(types.get(object_type).unwrap_or(&Default::default()))?,
        None => records::sections_text(types)?,
    };
    // The same bytes in both forms: the export is JSON already.
    let json = serde_json::from_str(&text).map_err(|e| CliError::Internal(e.to_string()))?;
    Ok(Answer::new(text, json))
}

async fn write_files(app: &App, dir: &Path, types: &ByType) -> Result<Answer, CliError> {
    app.caller.make_dir(dir).await.map_err(CliError::file(dir))?;
    let mut rows = Vec::new();
    let mut json = Vec::new();
    for (object_type, of_type) in types {
        let text = records::array_text(of_type)?;
        let file = dir.join(records::file_name(object_type));
        let bytes = text.len();
        app.write_file(&file, text).await?;
        rows.push(vec![object_type.clone(), of_type.len().to_string(), bytes.to_string(), file.display().to_string()]);
        json.push(json!({
            "type": object_type,
            "records": of_type.len(),
            "bytes": bytes,
            "file": file.display().to_string(),
        }));
    }
    Ok(Answer::new(table(&["type", "records", "bytes", "file"], rows), json!({ "files": json })))
}

async fn check(app: &App, args: &Export) -> Result<Answer, CliError> {
    let sources = records::load(&app.caller, &args.check).await?.read(&args.records)?;
    let wanted = records::by_type(sources.records);
    app.with_space(async |_: &Client, space: &Space| {
        let everything = RecordArgs { object_type: None, ..args.records.clone() };
        let found = exported(space, &everything)?;
        if let Some(difference) = records::difference(&wanted, &found) {
            return Err(CliError::Different(difference));
        }
        let mut rows = Vec::new();
        let mut json = Vec::new();
        for (object_type, records) in &wanted {
            let text = records::array_text(records)?;
            let here = found.get(object_type).map(records::array_text).transpose()?;
            if here.as_deref() != Some(text.as_str()) {
                return Err(CliError::Different(format!("the canonical JSON of {object_type} differs")));
            }
            rows.push(vec![object_type.clone(), records.len().to_string(), text.len().to_string(), "equal".to_owned()]);
            json.push(json!({ "type": object_type, "records": records.len(), "bytes": text.len(), "equal": true }));
        }
        Ok(Answer::new(table(&["type", "records", "bytes", "byte for byte"], rows), json!({ "types": json })))
    })
    .await
}
