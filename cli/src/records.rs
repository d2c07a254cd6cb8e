//! JSON files to records and back.
//!
//! A record is a JSON object that becomes one object, with a type and an id. [`Loaded::read`] decides both for every record and checks
//! everything before anything is written. [`array_text`] is the way back: the canonical JSON (RFC 8785) of an array of the
//! records of one type, sorted by id, so a file that was imported and its export can be compared byte for byte.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::path::{Path, PathBuf};

use client_sdk::{CanonicalError, canonical_json};
use serde_json::{Map, Value};

use crate::args::RecordArgs;
use crate::caller::Caller;
use crate::exit::Exit;

/// Fields that hold an id, if nothing else is said, in this order.
pub(crate) const ID_FIELDS: [&str; 5] = ["id", "alpha_3", "alpha_2", "code", "name"];

/// What the store takes as a type or an id.
const NAME_BYTES_MAX: usize = 256;

/// How many bad records an error for people names.
const NAMED_MAX: usize = 8;

/// A record, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) object_type: String,
    pub(crate) id: String,
    pub(crate) fields: Map<String, Value>,
}

/// Why files were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{} cannot be read", .file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("{} is not JSON", .file.display())]
    Json { file: PathBuf, source: serde_json::Error },
    #[error("{} holds no records: it is {found}, and should be an array or an object of records", .file.display())]
    Form { file: PathBuf, found: &'static str },
    #[error("there is no JSON file in {}", .dir.display())]
    NoFiles { dir: PathBuf },
    #[error("nothing was written: {0}")]
    Bad(BadRecords),
}

impl RecordError {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "FILE",
            Self::Json { .. } => "NOT_JSON",
            Self::Form { .. } => "NO_RECORDS",
            Self::NoFiles { .. } => "NO_FILES",
            Self::Bad(bad) => bad.0.first().map_or("BAD_RECORDS", |b| b.problem.code()),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
            Self::File { .. } => Exit::Internal,
            Self::NoFiles { .. } => Exit::NotFound,
            Self::Json { .. } | Self::Form { .. } | Self::Bad(_) => Exit::Damaged,
        }
    }
}

/// Every record that cannot become an object.
#[derive(Debug)]
pub(crate) struct BadRecords(pub(crate) Vec<BadRecord>);

impl fmt::Display for BadRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            several => {
                write!(f, "{} records cannot become objects", several.len())?;
                for bad in several.iter().take(NAMED_MAX) {
                    write!(f, "\n  {bad}")?;
                }
                match several.len().saturating_sub(NAMED_MAX) {
                    0 => Ok(()),
                    more => write!(f, "\n  … and {more} more"),
                }
            }
        }
    }
}

/// One record that cannot become an object.
#[derive(Debug)]
pub(crate) struct BadRecord {
    file: PathBuf,
    place: Place,
    problem: Problem,
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.file.display(), self.place, self.problem)
    }
}

/// Where a record stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Whole,
    Index(usize),
    IndexIn(String, usize),
    Key(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("the record"),
            Self::Index(index) => write!(f, "record {index}"),
            Self::IndexIn(section, index) => write!(f, "record {index} of {section:?}"),
            Self::Key(key) => write!(f, "record {key:?}"),
        }
    }
}

/// What is wrong with a record.
#[derive(Debug)]
enum Problem {
    NotARecord { found: &'static str },
    NoIdField,
    Missing { field: String },
    Unusable { field: String, found: &'static str },
    Length { what: &'static str, bytes: usize },
    Duplicate { object_type: String, id: String, first: String },
    Canonical(CanonicalError),
}

impl Problem {
    const fn code(&self) -> &'static str {
        match self {
            Self::NotARecord { .. } => "NOT_AN_OBJECT",
            Self::NoIdField => "NO_ID_FIELD",
            Self::Missing { .. } => "FIELD_MISSING",
            Self::Unusable { .. } => "FIELD_UNUSABLE",
            Self::Length { .. } => "BAD_NAME",
            Self::Duplicate { .. } => "DUPLICATE_ID",
            Self::Canonical(_) => "INEXACT_NUMBER",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotARecord { found } => write!(f, "it is {found}, not an object"),
            Self::NoIdField => {
                write!(f, "it has none of the fields {}; name one with --id-field", ID_FIELDS.join(", "))
            }
            Self::Missing { field } => write!(f, "it has no field {field:?}"),
            Self::Unusable { field, found } => write!(f, "its field {field:?} is {found}, not text or an integer"),
            Self::Length { what, bytes } => {
                write!(f, "its {what} is {bytes} bytes long, and must be 1 to {NAME_BYTES_MAX}")
            }
            Self::Duplicate { object_type, id, first } => {
                write!(f, "{object_type} {id:?} stands in {first} already")
            }
            Self::Canonical(error) => error.fmt(f),
        }
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) records: Vec<Record>,
    pub(crate) files: Vec<PathBuf>,
    /// JSON Schema files of directories.
    pub(crate) left_out: Vec<PathBuf>,
}

/// Files as they were read, before anything is made of them.
#[derive(Debug, Default)]
pub(crate) struct Loaded(Vec<LoadedFile>);

#[derive(Debug)]
struct LoadedFile {
    file: PathBuf,
    /// Of a directory that was named, rather than named itself.
    in_directory: bool,
    value: Value,
}

/// Loads files, and those of directories.
pub(crate) async fn load(caller: &Caller, paths: &[PathBuf]) -> Result<Loaded, RecordError> {
    let mut loaded = Loaded::default();
    for path in paths {
        let listed = caller.files_in(path).await;
        let listed = listed.map_err(|source| RecordError::File { file: path.to_owned(), source })?;
        let in_directory = listed.is_some();
        let files = match listed {
            Some(files) => json_files(path, files)?,
            None => vec![path.to_owned()],
        };
        for file in files {
            let bytes = caller.read(&file).await.map_err(|source| RecordError::File { file: file.clone(), source })?;
            let value = parse(&file, &bytes)?;
            loaded.0.push(LoadedFile { file, in_directory, value });
        }
    }
    Ok(loaded)
}

impl Loaded {
    /// Makes records of them, and checks every one.
    pub(crate) fn read(self, how: &RecordArgs) -> Result<Sources, RecordError> {
        let mut sources = Sources::default();
        let mut rows = Vec::new();
        for LoadedFile { file, in_directory, value } in self.0 {
            if in_directory && is_schema(&value) {
                sources.left_out.push(file);
                continue;
            }
            rows.extend(rows_of(&file, value, how)?);
            sources.files.push(file);
        }
        sources.records = check(rows)?;
        Ok(sources)
    }
}

/// The JSON files of a directory, by name.
fn json_files(dir: &Path, mut files: Vec<PathBuf>) -> Result<Vec<PathBuf>, RecordError> {
    files.retain(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")));
    files.sort();
    if files.is_empty() {
        return Err(RecordError::NoFiles { dir: dir.to_owned() });
    }
    Ok(files)
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Value, RecordError> {
    serde_json::from_slice(bytes).map_err(|source| RecordError::Json { file: file.to_owned(), source })
}

fn is_schema(value: &Value) -> bool {
    value.get("$schema").is_some_and(Value::is_string)
}

/// A record before it is checked.
struct Row {
    file: PathBuf,
    place: Place,
    object_type: Result<String, Problem>,
    id: Result<String, Problem>,
    fields: Map<String, Value>,
}

/// Records that share a type and a way to find their ids.
struct Section {
    object_type: String,
    members: Vec<(Place, Option<String>, Value)>,
}

fn rows_of(file: &Path, value: Value, how: &RecordArgs) -> Result<Vec<Row>, RecordError> {
    let sections = sections_of(file, value)?;
    Ok(sections.into_iter().flat_map(|section| section_rows(file, section, how)).collect())
}

/// What the form of a file says about types and ids.
fn sections_of(file: &Path, value: Value) -> Result<Vec<Section>, RecordError> {
    let stem = file.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    match value {
        Value::Array(items) => {
            let members = items.into_iter().enumerate().map(|(i, v)| (Place::Index(i), None, v)).collect();
            Ok(vec![Section { object_type: stem, members }])
        }
        Value::Object(map) if !map.is_empty() && map.values().all(Value::is_array) => {
            Ok(map.into_iter().map(|(key, items)| keyed_section(key, items)).collect())
        }
        Value::Object(map) if !map.is_empty() && map.values().all(Value::is_object) => {
            let members = map.into_iter().map(|(key, v)| (Place::Key(key.clone()), Some(key), v)).collect();
            Ok(vec![Section { object_type: stem, members }])
        }
        Value::Object(map) => {
            let members = vec![(Place::Whole, None, Value::Object(map))];
            Ok(vec![Section { object_type: stem, members }])
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(RecordError::Form { file: file.to_owned(), found: kind(&value) })
        }
    }
}

fn keyed_section(key: String, items: Value) -> Section {
    let items = match items {
        Value::Array(items) => items,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => vec![items],
    };
    let place = |index| Place::IndexIn(key.clone(), index);
    let members = items.into_iter().enumerate().map(|(i, v)| (place(i), None, v)).collect();
    Section { object_type: key, members }
}

fn section_rows(file: &Path, section: Section, how: &RecordArgs) -> Vec<Row> {
    let id_field = how.id_field.clone().or_else(|| detect(&section).map(str::to_owned));
    let type_of_section = how.object_type.clone().unwrap_or(section.object_type);
    let prefix = how.prefix.as_deref().unwrap_or_default();
    let row = |(place, key, value): (Place, Option<String>, Value)| {
        let Value::Object(fields) = value else {
            let found = kind(&value);
            let problem = Problem::NotARecord { found };
            return Row {
                file: file.to_owned(),
                place,
                object_type: Ok(String::new()),
                id: Err(problem),
                fields: Map::new(),
            };
        };
        let id = match (&how.id_field, key, &id_field) {
            (None, Some(key), _) => Ok(key),
            (_, _, Some(field)) => name_in(&fields, field),
            (_, _, None) => Err(Problem::NoIdField),
        };
        let object_type = match &how.type_field {
            None => Ok(type_of_section.clone()),
            Some(field) => name_in(&fields, field),
        };
        let object_type = object_type.map(|t| format!("{prefix}{t}"));
        Row { file: file.to_owned(), place, object_type, id, fields }
    };
    section.members.into_iter().map(row).collect()
}

/// The first candidate that every record has; or else the first that any has, so that the error can name those without.
fn detect(section: &Section) -> Option<&'static str> {
    let has = |value: &Value, field: &str| value.as_object().is_some_and(|o| name_in(o, field).is_ok());
    let all = |field: &&str| section.members.iter().all(|(_, _, v)| has(v, field));
    let any = |field: &&str| section.members.iter().any(|(_, _, v)| has(v, field));
    ID_FIELDS.into_iter().find(all).or_else(|| ID_FIELDS.into_iter().find(any))
}

fn name_in(fields: &Map<String, Value>, field: &str) -> Result<String, Problem> {
    let unusable = |found| Err(Problem::Unusable { field: field.to_owned(), found });
    match fields.get(field) {
        None => Err(Problem::Missing { field: field.to_owned() }),
        Some(Value::String(text)) if text.is_empty() => unusable("empty"),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Some(Value::Number(_)) => unusable("a number with a fraction"),
        Some(other) => unusable(kind(other)),
    }
}

fn check(rows: Vec<Row>) -> Result<Vec<Record>, RecordError> {
    let mut bad = Vec::new();
    let mut records = Vec::with_capacity(rows.len());
    let mut seen = BTreeMap::new();
    for row in rows {
        let Row { file, place, object_type, id, fields } = row;
        match check_row(object_type, id, fields, format!("{}, {place}", file.display()), &mut seen) {
            Ok(record) => records.push(record),
            Err(problem) => bad.push(BadRecord { file, place, problem }),
        }
    }
    if bad.is_empty() { Ok(records) } else { Err(RecordError::Bad(BadRecords(bad))) }
}

fn check_row(
    object_type: Result<String, Problem>,
    id: Result<String, Problem>,
    fields: Map<String, Value>,
    place: String,
    seen: &mut BTreeMap<(String, String), String>,
) -> Result<Record, Problem> {
    let (id, object_type) = (id?, object_type?);
    for (what, text) in [("type", &object_type), ("id", &id)] {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(Problem::Length { what, bytes: text.len() });
        }
    }
    let whole = Value::Object(fields);
    canonical_json(&whole).map_err(Problem::Canonical)?;
    let Value::Object(fields) = whole else { unreachable!("it was made an object above") };
    match seen.entry((object_type.clone(), id.clone())) {
        btree_map::Entry::Occupied(first) => Err(Problem::Duplicate { object_type, id, first: first.get().clone() }),
        btree_map::Entry::Vacant(free) => {
            free.insert(place);
            Ok(Record { object_type, id, fields })
        }
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

// ---- the way back -------------------------------------------------------------------------------------------------------

/// Records by type and id.
pub(crate) type ByType = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

/// Sorts records by type and id.
pub(crate) fn by_type(records: impl IntoIterator<Item = Record>) -> ByType {
    let mut sorted = ByType::new();
    for Record { object_type, id, fields } in records {
        sorted.entry(object_type).or_default().insert(id, fields);
    }
    sorted
}

/// The canonical JSON of an array of the records of one type, sorted by id.
pub(crate) fn array_text(records: &BTreeMap<String, Map<String, Value>>) -> Result<String, CanonicalError> {
    let mut text = String::from("[");
    for (index, fields) in records.values().enumerate() {
        if index > 0 {
            text.push(',');
        }
        // One by one: a record may nest as deep as the limit, and the array around it is not part of it.
        text.push_str(&canonical_json(&Value::Object(fields.clone()))?);
    }
    text.push(']');
    Ok(text)
}

/// The canonical JSON of an object with such an array for every type.
pub(crate) fn sections_text(types: &ByType) -> Result<String, CanonicalError> {
    let mut sections: Vec<_> = types.iter().collect();
    // RFC 8785 sorts names by their UTF-16 form.
    sections.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    let mut parts = Vec::with_capacity(sections.len());
    for (object_type, records) in sections {
        let name = canonical_json(&Value::String(object_type.clone()))?;
        parts.push(format!("{name}:{}", array_text(records)?));
    }
    Ok(format!("{{{}}}", parts.join(",")))
}

/// The name of the file of a type: what is not safe in a file name is written as %XX.
pub(crate) fn file_name(object_type: &str) -> String {
    let mut name = String::with_capacity(object_type.len() + 5);
    for (index, c) in object_type.chars().enumerate() {
        let plain = c.is_alphanumeric() || matches!(c, '-' | '_' | ' ' | '+' | ',') || (c == '.' && index > 0);
        if plain {
            name.push(c);
        } else {
            let mut buffer = [0; 4];
            name.extend(c.encode_utf8(&mut buffer).bytes().map(|b| format!("%{b:02X}")));
        }
    }
    name.push_str(".json");
    name
}

/// The first difference between what was meant and what is there, by type and id; `None` if there is none.
pub(crate) fn difference(wanted: &ByType, found: &ByType) -> Option<String> {
    let nothing = BTreeMap::new();
    wanted.iter().find_map(|(object_type, wanted)| {
        let found = found.get(object_type).unwrap_or(&nothing);
        difference_in(object_type, wanted, found)
    })
}

fn difference_in(
    object_type: &str,
    wanted: &BTreeMap<String, Map<String, Value>>,
    found: &BTreeMap<String, Map<String, Value>>,
) -> Option<String> {
    let missing = wanted.keys().find(|id| !found.contains_key(*id));
    if let Some(id) = missing {
        return Some(format!("{object_type} {id:?} is in the files and not in the space"));
    }
    if let Some(id) = found.keys().find(|id| !wanted.contains_key(*id)) {
        return Some(format!("{object_type} {id:?} is in the space and not in the files"));
    }
    wanted.iter().find_map(|(id, fields)| {
        let field = field_difference(fields, found.get(id)?)?;
        Some(format!("{object_type} {id:?}: {field}"))
    })
}

fn field_difference(wanted: &Map<String, Value>, found: &Map<String, Value>) -> Option<String> {
    let text = |value: Option<&Value>| match value.map(canonical_json) {
        None => "nothing".to_owned(),
        Some(Ok(text)) => text,
        Some(Err(error)) => error.to_string(),
    };
    let names = wanted.keys().chain(found.keys());
    names.into_iter().find_map(|name| {
        let (wanted, found) = (text(wanted.get(name)), text(found.get(name)));
        (wanted != found).then(|| format!("field {name:?} is {wanted} in the files and {found} in the space"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn how() -> RecordArgs {
        RecordArgs { object_type: None, type_field: None, id_field: None, prefix: None }
    }

    fn rows(value: Value, how: &RecordArgs) -> Result<Vec<(String, String)>, String> {
        let rows = rows_of(Path::new("dir/things.json"), value, how).map_err(|e| e.code().to_owned())?;
        let records = check(rows).map_err(|e| format!("{} {e}", e.code()))?;
        Ok(records.into_iter().map(|r| (r.object_type, r.id)).collect())
    }

    #[test]
    fn forms_of_a_file() {
        let one = |t: &str, id: &str| Ok(vec![(t.to_owned(), id.to_owned())]);
        for (value, expected) in [
            (json!([{ "id": "a" }]), one("things", "a")),
            (json!({ "639-3": [{ "alpha_3": "deu", "name": "German" }] }), one("639-3", "deu")),
            (json!({ "milk": { "title": "Milk", "id": "not this" } }), one("things", "milk")),
            (json!({ "id": 7, "title": "Milk" }), one("things", "7")),
            (json!([{ "alpha_2": "DE", "name": "Germany" }]), one("things", "DE")),
            (json!([{ "id": null, "code": "x" }]), one("things", "x")),
            (json!([]), Ok(vec![])),
            (json!(3), Err("NO_RECORDS".to_owned())),
        ] {
            assert_eq!(rows(value.clone(), &how()), expected, "{value}");
        }
    }

    #[test]
    fn flags_decide_type_and_id() {
        let value = json!([{ "k": "a", "t": "x", "id": "not this" }]);
        let with = |type_: Option<&str>, field: Option<&str>, prefix: Option<&str>| RecordArgs {
            object_type: type_.map(str::to_owned),
            type_field: field.map(str::to_owned),
            id_field: Some("k".to_owned()),
            prefix: prefix.map(str::to_owned),
        };
        for (how, object_type) in [
            (with(None, None, None), "things"),
            (with(Some("y"), None, None), "y"),
            (with(None, Some("t"), None), "x"),
            (with(None, Some("t"), Some("iso.")), "iso.x"),
        ] {
            assert_eq!(rows(value.clone(), &how), Ok(vec![(object_type.to_owned(), "a".to_owned())]));
        }
    }

    #[test]
    fn bad_records_are_named() {
        let deep = (0..70).fold(json!(1), |inner, _| json!([inner]));
        for (value, expected) in [
            (
                json!([{ "x": 1 }]),
                "NO_ID_FIELD nothing was written: dir/things.json, record 0: it has none of the fields",
            ),
            (
                json!([{ "id": "a" }, { "x": 1 }]),
                "FIELD_MISSING nothing was written: dir/things.json, record 1: it has no field \"id\"",
            ),
            (
                json!([{ "id": "a" }, { "id": [] }]),
                "FIELD_UNUSABLE nothing was written: dir/things.json, record 1: its field \"id\" is an array",
            ),
            (
                json!([{ "id": "a" }, { "id": "a" }]),
                "DUPLICATE_ID nothing was written: dir/things.json, record 1: things \"a\" stands in dir/things.json, record 0 already",
            ),
            (
                json!({ "s": [{ "id": "a" }, 3] }),
                "NOT_AN_OBJECT nothing was written: dir/things.json, record 1 of \"s\": it is a number",
            ),
            (
                json!([{ "id": "a".repeat(257) }]),
                "BAD_NAME nothing was written: dir/things.json, record 0: its id is 257 bytes",
            ),
            (json!([{ "id": "a", "n": 9_007_199_254_740_993_u64 }]), "INEXACT_NUMBER"),
            (json!([{ "id": "a", "deep": deep }]), "INEXACT_NUMBER"),
        ] {
            let error = rows(value.clone(), &how()).unwrap_err();
            assert!(error.starts_with(expected), "{value}\n{error}");
        }
    }

    #[test]
    fn what_is_imported_is_exported_byte_for_byte() {
        let text = r#" [
            {"id":"한국어","z":1.0,"a":{"β":[1,2.50,{"x":null}],"α":"é\u0301"},"flag":"🏳️‍🌈"},
            {"name":"עברית","id":"he","rtl":true,"n":1e21},
            {"id":"zh","名":"中文","nested":{"deep":[[["字"]]]},"quote":"\"\\\/\u0007"}
        ] "#;
        let rows = rows_of(Path::new("langs.json"), serde_json::from_str(text).unwrap(), &how()).unwrap();
        let types = by_type(check(rows).unwrap());
        let expected = concat!(
            r#"[{"id":"he","n":1e+21,"name":"עברית","rtl":true},"#,
            r#"{"id":"zh","nested":{"deep":[[["字"]]]},"quote":"\"\\/\u0007","名":"中文"},"#,
            "{\"a\":{\"α\":\"é\u{301}\",\"β\":[1,2.5,{\"x\":null}]},\"flag\":\"🏳️‍🌈\",\"id\":\"한국어\",\"z\":1}]",
        );
        let array = array_text(&types["langs"]).unwrap();
        assert_eq!(array, expected);
        // The export of an import of the export is the export.
        let again = rows_of(Path::new("langs.json"), serde_json::from_str(&array).unwrap(), &how()).unwrap();
        assert_eq!(array_text(&by_type(check(again).unwrap())["langs"]).unwrap(), expected);
        assert_eq!(sections_text(&types).unwrap(), format!("{{\"langs\":{expected}}}"));
    }

    #[tokio::test]
    async fn iso_codes_survive_the_round_trip() {
        let dir = Path::new("/usr/share/iso-codes/json");
        if !dir.is_dir() {
            return;
        }
        let sources = load(&Caller::Here, &[dir.to_owned()]).await.unwrap().read(&how()).unwrap();
        assert!(!sources.left_out.is_empty());
        for file in &sources.files {
            let Value::Object(sections) = parse(file, &std::fs::read(file).unwrap()).unwrap() else {
                panic!("{}", file.display())
            };
            for (name, records) in sections {
                let types = by_type(sources.records.iter().filter(|r| r.object_type == name).cloned());
                let mut expected = records.as_array().unwrap().clone();
                let id = ID_FIELDS.into_iter().find(|f| expected.iter().all(|r| r.get(f).is_some())).unwrap();
                expected.sort_by_key(|r| r[id].as_str().unwrap().to_owned());
                let expected = canonical_json(&Value::Array(expected)).unwrap();
                assert_eq!(array_text(&types[&name]).unwrap(), expected, "{name}");
            }
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let types = |value: Value| by_type(check(rows_of(Path::new("t.json"), value, &how()).unwrap()).unwrap());
        let here = types(json!([{ "id": "a", "n": 1 }, { "id": "b" }]));
        assert_eq!(difference(&here, &types(json!([{ "id": "a", "n": 1.0 }, { "id": "b" }]))), None);
        for (found, text) in [
            (json!([{ "id": "a", "n": 1 }]), "t \"b\" is in the files and not in the space"),
            (
                json!([{ "id": "a", "n": 1 }, { "id": "b" }, { "id": "c" }]),
                "t \"c\" is in the space and not in the files",
            ),
            (
                json!([{ "id": "a", "n": 2 }, { "id": "b" }]),
                "t \"a\": field \"n\" is 1 in the files and 2 in the space",
            ),
            (
                json!([{ "id": "a", "n": 1 }, { "id": "b", "x": 1 }]),
                "t \"b\": field \"x\" is nothing in the files and 1 in the space",
            ),
        ] {
            assert_eq!(difference(&here, &types(found)), Some(text.to_owned()));
        }
    }

    #[test]
    fn file_names_are_safe() {
        assert_eq!(file_name("639-3"), "639-3.json");
        assert_eq!(file_name("../x/語"), "%2E.%2Fx%2F語.json");
    }
}
