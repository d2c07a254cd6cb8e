//! The script language of scenario tests: a text that reads as a story, played over the pure rules and over real processes.
//!
//! ```text
//! alice creates notes
//! alice invites bob as writer
//! bob   writes  notes "one"
//! settle
//! alice reads   notes = one
//! everyone agrees
//! ```
//!
//! A refusal that must follow stands behind `!`, by its code (`NOT_A_WRITER`, or `not a writer`) or a part of its text. Lines
//! without it must succeed. `world: pure` or `world: real` keeps a script to one of the two; `seeds: 1` plays it in one order of
//! messages instead of all. `forces` behind a name makes a patched client of it, which its own replica does not hold back.

mod parse;
mod world;

use std::collections::BTreeSet;
use std::fmt;

use client_sdk::{AccountId, Who, WriteRule};
use serde_json::{Map, Value};

pub use parse::{
    Act, ByteFlaw, ChangeFlaw, ContentFlaw, Forgery, Governing, JoinFlaw, ObjectName, PlaceFlaw, Script, Shown, Stage,
    Step,
};
pub use world::RealWorld;

/// Where a script is played.
pub trait World {
    /// Does what a line says.
    fn act(&mut self, step: &Step) -> impl Future<Output = Result<(), Trouble>>;

    /// What replays this very run, if chance takes part.
    fn seed(&self) -> Option<u64>;
}

/// Why a line did not do what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// By a rule, the node or the SDK; a script can expect it.
    Refused { code: String, text: String },
    /// Something is not as the line says.
    Wrong { expected: String, happened: String },
}

impl Trouble {
    /// A refusal.
    pub fn refused(code: impl Into<String>, text: impl fmt::Display) -> Self {
        Self::Refused { code: code.into(), text: text.to_string() }
    }

    /// Something that is not as it should be.
    pub fn wrong(expected: impl fmt::Display, happened: impl fmt::Display) -> Self {
        Self::Wrong { expected: expected.to_string(), happened: happened.to_string() }
    }
}

/// The first line that did not go as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub path: String,
    pub line: usize,
    pub text: String,
    pub expected: String,
    pub happened: String,
    pub seed: Option<u64>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, text, expected, happened, seed } = self;
        write!(f, "{path}:{line}: {text}\n  expected: {expected}\n  happened: {happened}")?;
        if let Some(seed) = seed {
            write!(f, "\n  again:    SCRIPT_SEED={seed}")?;
        }
        Ok(())
    }
}

/// Plays a script to its end.
///
/// # Errors
/// The first line that did not go as written.
pub async fn play(script: &Script, world: &mut impl World) -> Result<(), Failure> {
    for step in &script.steps {
        let outcome = world.act(step).await;
        judge(step, outcome).map_err(|(expected, happened)| Failure {
            path: script.path.clone(),
            line: step.line,
            text: step.text.clone(),
            expected,
            happened,
            seed: world.seed(),
        })?;
    }
    Ok(())
}

fn judge(step: &Step, outcome: Result<(), Trouble>) -> Result<(), (String, String)> {
    let expected = match &step.refusal {
        None => "it succeeds".to_owned(),
        Some(refusal) => format!("refused: {refusal}"),
    };
    match (outcome, &step.refusal) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(_)) => Err((expected, "it succeeded".to_owned())),
        (Err(Trouble::Refused { code, text }), Some(refusal)) if is_meant(refusal, &code, &text) => Ok(()),
        (Err(Trouble::Refused { code, text }), _) => Err((expected, format!("refused: {code}: {text}"))),
        (Err(Trouble::Wrong { expected, happened }), _) => Err((expected, happened)),
    }
}

fn is_meant(refusal: &str, code: &str, text: &str) -> bool {
    refusal.to_uppercase().replace(' ', "_") == code || text.contains(refusal)
}

/// Types of objects in scripts whose id is a person, and whose write rule names it.
pub(crate) fn is_of_an_account(object_type: &str) -> bool {
    ["profile", "diary", "pass", "badge"].contains(&object_type)
}

/// The write rules of the types of objects in scripts. `id` is an account where the rule names one.
pub(crate) fn rule_of(object_type: &str, id: &str) -> WriteRule {
    let rule = |who, once| WriteRule { who, once };
    let account = id.parse::<AccountId>().ok();
    match (object_type, account) {
        ("ballot", _) => rule(Who::Writers, true),
        ("notice", _) => rule(Who::Admins, false),
        ("statute", _) => rule(Who::Admins, true),
        ("diary", Some(account)) => rule(Who::Account(account), false),
        ("pass", Some(account)) => rule(Who::Account(account), true),
        ("profile", Some(account)) => rule(Who::AccountOrAdmins(account), false),
        ("badge", Some(account)) => rule(Who::AccountOrAdmins(account), true),
        _ => WriteRule::WRITERS,
    }
}

/// What a field shows, as text.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a reader sees, against what the line says: all fields and no others.
pub(crate) fn compare(expected: Option<&Map<String, Value>>, seen: Option<&Map<String, Value>>) -> Result<(), Trouble> {
    let show = |fields: Option<&Map<String, Value>>| {
        fields.map_or("nothing".to_owned(), |f| Value::from(f.clone()).to_string())
    };
    if expected == seen { Ok(()) } else { Err(Trouble::wrong(show(expected), show(seen))) }
}

/// Shorter texts stand in random bytes by chance.
const PLAINTEXT_BYTES_MIN: usize = 5;

/// `the_node_never_holds_plaintext`: none of these texts stands in any of these bytes. Accounts are no plaintext: the node
/// knows who is in a space, and who founded how many.
pub(crate) fn no_plaintext<'a>(
    plaintext: &BTreeSet<String>,
    held: impl Iterator<Item = &'a [u8]>,
) -> Result<(), Trouble> {
    for bytes in held {
        for text in plaintext.iter().filter(|t| t.len() >= PLAINTEXT_BYTES_MIN && !t.starts_with("acct_")) {
            if holds(bytes, text) {
                return Err(Trouble::wrong("no plaintext", format!("the node holds {text:?}")));
            }
        }
    }
    Ok(())
}

pub(crate) fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}
