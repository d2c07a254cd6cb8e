//! The grammar. One line is `who verb words [! refusal]`; a new verb is one row of [`VERBS`] and one arm in each world.

use std::collections::BTreeSet;
use std::path::Path;

use client_sdk::{InviteMode, Role};
use serde_json::{Map, Value};

/// Where a script can be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The rules over maps.
    Pure,
    /// A node process and clients.
    Real,
}

/// A script, as read.
#[derive(Debug, Clone)]
pub struct Script {
    pub path: String,
    pub steps: Vec<Step>,
    /// The one stage that it is for; `None`: both.
    pub only: Option<Stage>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Step {
    pub line: usize,
    pub text: String,
    /// A person, `node` or `everyone`.
    pub who: String,
    /// Past the rules of one's own replica, as a patched client would.
    pub forced: bool,
    pub act: Act,
    /// The space, if the line names one; otherwise the one that was made last.
    pub space: Option<String>,
    /// The code or a part of the text of the refusal that must follow.
    pub refusal: Option<String>,
}

/// What happens on a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Creates {
        space: String,
    },
    /// Without a mode: by an open invite that the invited one uses at once.
    Invites {
        whom: String,
        role: Role,
        mode: Option<InviteMode>,
        max_uses: Option<u32>,
        must_see: Vec<ObjectName>,
    },
    /// By the invite that `by` was given; without: by one's own.
    Joins {
        by: Option<String>,
    },
    /// Waits until everything that the joiner must see is there.
    IsReady,
    Approves {
        whom: String,
        role: Option<Role>,
        promising: Vec<ObjectName>,
    },
    Declines {
        whom: String,
    },
    Writes {
        object: ObjectName,
        fields: Map<String, Value>,
    },
    Deletes {
        object: ObjectName,
    },
    Reads {
        object: ObjectName,
        fields: Option<Map<String, Value>>,
    },
    Lists {
        object_type: String,
        count: usize,
    },
    GoesOffline,
    GoesOnline,
    Restarts,
    IsKilled,
    Settles,
    Agrees,
    Holds {
        space: String,
        entries: u64,
    },
}

/// An object. The id of a profile is the name of a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    pub object_type: String,
    pub id: String,
}

type Parse = fn(&mut Words) -> Result<Act, String>;

/// Every verb, by the words that it begins with.
const VERBS: &[(&str, Parse)] = &[
    ("creates", |w| Ok(Act::Creates { space: w.next("a space")? })),
    ("invites", invites),
    ("joins", |w| Ok(Act::Joins { by: if w.take("by") { Some(w.next("a person")?) } else { None } })),
    ("is ready", |_| Ok(Act::IsReady)),
    ("approves", approves),
    ("declines", |w| Ok(Act::Declines { whom: w.next("a person")? })),
    ("writes", |w| Ok(Act::Writes { object: w.object()?, fields: w.fields()? })),
    ("deletes", |w| Ok(Act::Deletes { object: w.object()? })),
    ("reads", reads),
    ("lists", lists),
    ("goes offline", |_| Ok(Act::GoesOffline)),
    ("goes online", |_| Ok(Act::GoesOnline)),
    ("restarts", |_| Ok(Act::Restarts)),
    ("is killed", |_| Ok(Act::IsKilled)),
    ("settle", |_| Ok(Act::Settles)),
    ("agrees", |_| Ok(Act::Agrees)),
    ("holds", holds),
];

fn invites(w: &mut Words) -> Result<Act, String> {
    let whom = w.next("a person")?;
    w.expect("as")?;
    let role = w.role()?;
    let mode = match (w.take("open"), w.take("approval")) {
        (true, _) => Some(InviteMode::Open),
        (false, true) => Some(InviteMode::Approval),
        (false, false) => None,
    };
    let max_uses = if w.take("uses") { Some(w.number()?) } else { None };
    let must_see = if w.take("must-see") { w.objects()? } else { Vec::new() };
    Ok(Act::Invites { whom, role, mode, max_uses, must_see })
}

fn approves(w: &mut Words) -> Result<Act, String> {
    let whom = w.next("a person")?;
    let role = if w.take("as") { Some(w.role()?) } else { None };
    let promising = if w.take("promising") { w.objects()? } else { Vec::new() };
    Ok(Act::Approves { whom, role, promising })
}

fn reads(w: &mut Words) -> Result<Act, String> {
    let object = w.object()?;
    w.expect("=")?;
    let fields = if w.take("nothing") { None } else { Some(w.fields()?) };
    Ok(Act::Reads { object, fields })
}

fn lists(w: &mut Words) -> Result<Act, String> {
    let object_type = w.next("a type")?;
    w.expect("=")?;
    Ok(Act::Lists { object_type, count: w.number()? })
}

fn holds(w: &mut Words) -> Result<Act, String> {
    let space = w.next("a space")?.trim_end_matches(':').to_owned();
    let entries = w.number()?;
    for word in ["entries,", "no", "plaintext"] {
        w.expect(word)?;
    }
    Ok(Act::Holds { space, entries })
}

impl Script {
    /// Reads a script file.
    ///
    /// # Errors
    /// A text that names file, line and problem.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads the text of a script.
    ///
    /// # Errors
    /// A text that names file, line and problem.
    pub fn parse(path: &str, text: &str) -> Result<Self, String> {
        let mut script = Self { path: path.to_owned(), steps: Vec::new(), only: None };
        for (index, line) in text.lines().enumerate() {
            let at = |problem: String| format!("{path}:{}: {problem}\n  {line}", index + 1);
            let words = words(line).map_err(at)?;
            match words.first().map(String::as_str) {
                None => {}
                Some("world:") => script.only = Some(stage(words.get(1)).map_err(at)?),
                Some(_) => script.steps.push(step(index + 1, line, words).map_err(at)?),
            }
        }
        Ok(script)
    }

    /// Every person of the script.
    #[must_use]
    pub fn people(&self) -> BTreeSet<&str> {
        self.steps.iter().map(|s| s.who.as_str()).filter(|who| !["node", "everyone"].contains(who)).collect()
    }
}

fn stage(word: Option<&String>) -> Result<Stage, String> {
    match word.map(String::as_str) {
        Some("pure") => Ok(Stage::Pure),
        Some("real") => Ok(Stage::Real),
        other => Err(format!("a world is `pure` or `real`, not {other:?}")),
    }
}

fn step(line: usize, text: &str, mut words: Vec<String>) -> Result<Step, String> {
    let refusal = match words.iter().position(|w| w == "!") {
        Some(at) => Some(words.split_off(at)[1..].join(" ")),
        None => None,
    };
    if refusal.as_deref() == Some("") {
        return Err("after `!` comes the code or text of the refusal".to_owned());
    }
    if words[0] == "settle" {
        words.insert(0, "everyone".to_owned());
    }
    let mut words = Words { words, at: 0 };
    let who = words.next("who")?;
    let forced = words.take("forces");
    let space = words.trailing_space();
    let act = words.verb()?;
    words.end()?;
    Ok(Step { line, text: text.trim().to_owned(), who, forced, act, space, refusal })
}

/// Words of a line, without its comment. Quotes hold words together and stay.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        if c == '#' && !quoted && word.is_empty() {
            break;
        }
        if c == '"' {
            quoted = !quoted;
        }
        if c.is_whitespace() && !quoted {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        } else {
            word.push(c);
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    words.extend((!word.is_empty()).then_some(word));
    Ok(words)
}

struct Words {
    words: Vec<String>,
    at: usize,
}

impl Words {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn next(&mut self, what: &str) -> Result<String, String> {
        let word = self.peek().ok_or_else(|| format!("{what} is missing"))?.to_owned();
        self.at += 1;
        Ok(word)
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(format!("expected `{word}`, not {:?}", self.peek())) }
    }

    fn end(&self) -> Result<(), String> {
        self.peek().map_or(Ok(()), |word| Err(format!("what does {word:?} mean here?")))
    }

    /// `in SPACE` at the end of the line.
    fn trailing_space(&mut self) -> Option<String> {
        let from = self.words.len().checked_sub(2).filter(|at| *at > self.at && self.words[*at] == "in")?;
        self.words.split_off(from).pop()
    }

    fn verb(&mut self) -> Result<Act, String> {
        for (verb, parse) in VERBS {
            let parts: Vec<_> = verb.split(' ').collect();
            if self.words[self.at..].iter().take(parts.len()).eq(parts.iter()) {
                self.at += parts.len();
                return parse(self);
            }
        }
        let known: Vec<_> = VERBS.iter().map(|(verb, _)| *verb).collect();
        Err(format!("{:?} is no verb; there are: {}", self.peek().unwrap_or(""), known.join(", ")))
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let word = self.next("a number")?;
        word.parse().map_err(|_| format!("{word:?} is not such a number"))
    }

    fn role(&mut self) -> Result<Role, String> {
        Ok(match self.next("a role")?.as_str() {
            "guest" => Role::Guest,
            "reader" => Role::Reader,
            "writer" => Role::Writer,
            "admin" => Role::Admin,
            "owner" => Role::Owner,
            other => return Err(format!("{other:?} is no role")),
        })
    }

    /// `TYPE/ID`, or a bare id of type `text`.
    fn object(&mut self) -> Result<ObjectName, String> {
        let word = self.next("an object")?;
        let (object_type, id) = word.split_once('/').unwrap_or(("text", &word));
        Ok(ObjectName { object_type: object_type.to_owned(), id: id.to_owned() })
    }

    fn objects(&mut self) -> Result<Vec<ObjectName>, String> {
        let mut objects = vec![self.object()?];
        while self.peek().is_some() {
            objects.push(self.object()?);
        }
        Ok(objects)
    }

    /// `field=value …`, or one bare value for the field `text`.
    fn fields(&mut self) -> Result<Map<String, Value>, String> {
        let mut fields = Map::new();
        while let Some(word) = self.peek().map(str::to_owned) {
            self.at += 1;
            let (field, text) = match word.split_once('=') {
                Some((field, text)) if !word.starts_with('"') => (field, text),
                Some(_) | None => ("text", word.as_str()),
            };
            if fields.insert(field.to_owned(), value(text)).is_some() {
                return Err(format!("the field {field} stands there twice"));
            }
        }
        if fields.is_empty() { Err("fields are missing".to_owned()) } else { Ok(fields) }
    }
}

/// JSON where it is JSON, and otherwise a string.
fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.trim_matches('"')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Step, String> {
        Script::parse("here", line).map(|s| s.steps.into_iter().next().expect("one line is one step"))
    }

    #[test]
    fn lines_say_what_they_look_like() {
        let step = one("bob   writes  note/1 title=\"a b\" n=3 in club ! not a writer # why").expect("a line");
        assert_eq!((step.who.as_str(), step.space.as_deref()), ("bob", Some("club")));
        assert_eq!(step.refusal.as_deref(), Some("not a writer"));
        let Act::Writes { object, fields } = step.act else { panic!("{step:?}") };
        assert_eq!((object.object_type.as_str(), object.id.as_str()), ("note", "1"));
        assert_eq!(Value::Object(fields), serde_json::json!({ "title": "a b", "n": 3 }));
        assert_eq!(one("settle").expect("a line").act, Act::Settles);
        assert!(one("bob forces joins").expect("a line").forced);
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_line() {
        for (line, problem) in [
            ("bob dances", "is no verb"),
            ("bob writes note/1", "fields are missing"),
            ("bob writes note/1 \"open", "a quote is not closed"),
            ("bob invites carol as king", "is no role"),
            ("bob joins quickly", "what does"),
            ("bob lists note = many", "not such a number"),
            ("bob reads note/1 3", "expected `=`"),
            ("bob joins !", "after `!`"),
            ("world: flat", "a world is"),
        ] {
            let error = Script::parse("a.hw", &format!("# first\n{line}")).expect_err(line);
            assert!(error.starts_with("a.hw:2: ") && error.contains(problem), "{line}: {error}");
        }
    }
}
