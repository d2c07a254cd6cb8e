//! The grammar. One line is `who verb words [! refusal]`; a new verb is one row of [`VERBS`] and one arm in each world.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use client_sdk::{InviteMode, Role};
use serde_json::{Map, Value};
use sync_core::record::HistoryMode;

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
    /// In how many orders of messages it is played, for one that takes long.
    pub seeds: Option<u64>,
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
        history: HistoryMode,
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
    /// Changes who is in a space, what they may do, or its keys.
    Governs(Governing),
    /// A record that no honest client makes; always behind `forces`.
    Forges(Forgery),
    Writes {
        object: ObjectName,
        fields: Map<String, Value>,
        /// The number of the ACL record that the change cites, instead of the newest; behind `forces`.
        citing: Option<u64>,
    },
    Deletes {
        object: ObjectName,
    },
    /// Ends an object for good.
    Purges {
        object: ObjectName,
    },
    Reads {
        object: ObjectName,
        shown: Shown,
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
    /// The epochs of which this person can open keys, with the whole log and every invite that it was ever given.
    HoldsEpochs {
        epochs: BTreeSet<u32>,
    },
    HoldsNoKey {
        epoch: u32,
    },
    /// Writes that were refused and are kept for their author.
    HasRefused {
        count: usize,
    },
    /// Sets every refused write aside.
    Dismisses,
}

/// What a reader sees of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    Nothing,
    /// The tree is in the log, and this reader can never read it.
    Hidden,
    Fields(Map<String, Value>),
}

/// An act on the members, the keys or the end of a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Governing {
    Removes {
        whom: Vec<String>,
    },
    Leaves,
    Makes {
        whom: String,
        role: Role,
    },
    Adds {
        whom: String,
        role: Role,
    },
    /// The invite that this person was given last.
    Revokes {
        whom: String,
    },
    Cancels,
    Rotates,
    Reseals {
        whom: String,
    },
    Transfers {
        to: String,
    },
    SetsHistory {
        history: HistoryMode,
    },
    DeletesSpace,
}

/// A record that the grammar cannot say otherwise. `whom` is always a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgery {
    Bytes(ByteFlaw),
    Place(PlaceFlaw),
    Content(ContentFlaw),
    /// By the newest invite that one was given.
    Join(JoinFlaw),
    Change {
        object: ObjectName,
        flaw: ChangeFlaw,
    },
    TreeOfOtherSpace,
    /// So many changes side by side.
    Heads {
        count: usize,
        object: ObjectName,
    },
    /// What stands in the log already.
    Again {
        object: ObjectName,
    },
    /// The tombstone of an object once more.
    PurgeAgain {
        object: ObjectName,
    },
}

/// What makes a record wrong in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteFlaw {
    NoContents,
    EmptyContent,
    UnknownContent,
    AcceptsWithoutRole { whom: String },
    SpelledOtherwise,
    SignedByAnother,
}

/// Why an ACL record has no place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceFlaw {
    OldHead,
    OtherNumber,
    OtherSpace,
}

/// A content that an honest client does not make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentFlaw {
    TwoInvites,
    OneKeyTwice,
    OpenInviteWithoutSeal,
    ApprovalInviteWithSeal,
    ApprovalInviteThatRequires,
    InviteOfNobody,
    NewHome,
    RequestAs { whom: String },
    CancelsRequestOf { whom: String },
    AcceptsSealedTo { whom: String, other: String },
    AcceptsPromising { whom: String, object: ObjectName },
    RevokesWithoutRotation { whom: String },
    RevokesWithRotation { whom: String },
    RemovesSealingTo { whom: String },
    RotatesWithout { whom: String },
    RotatesAlsoTo { whom: String },
    RotatesTo { epoch: u32 },
    LiftsWithoutKey { whom: String },
    ResealsEpoch { epoch: u32, whom: String },
}

/// What is wrong with a join or a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinFlaw {
    OtherRole,
    NoProof,
    OtherMode,
    SealedTo { whom: String },
}

/// What is wrong with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeFlaw {
    OfEpoch(u32),
    Snapshot,
    OnNothing,
    OnRootAndHead,
    WithoutRoot,
    /// On the root alone, beside all others.
    OneMoreHead,
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
    ("creates", creates),
    ("invites", invites),
    ("joins", |w| Ok(Act::Joins { by: if w.take("by") { Some(w.next("a person")?) } else { None } })),
    ("is ready", |_| Ok(Act::IsReady)),
    ("approves", approves),
    ("declines", |w| Ok(Act::Declines { whom: w.next("a person")? })),
    ("removes", |w| Ok(Act::Governs(Governing::Removes { whom: w.people()? }))),
    ("leaves", |_| Ok(Act::Governs(Governing::Leaves))),
    ("makes", |w| Ok(Act::Governs(Governing::Makes { whom: w.next("a person")?, role: w.role()? }))),
    ("adds", adds),
    ("revokes", |w| Ok(Act::Governs(Governing::Revokes { whom: w.next("a person")? }))),
    ("cancels", |_| Ok(Act::Governs(Governing::Cancels))),
    ("rotates", |_| Ok(Act::Governs(Governing::Rotates))),
    ("reseals", |w| Ok(Act::Governs(Governing::Reseals { whom: w.next("a person")? }))),
    ("transfers to", |w| Ok(Act::Governs(Governing::Transfers { to: w.next("a person")? }))),
    ("sets history", |w| Ok(Act::Governs(Governing::SetsHistory { history: w.history()? }))),
    ("deletes the space", |_| Ok(Act::Governs(Governing::DeletesSpace))),
    ("a", |w| Ok(Act::Forges(forgery(w)?))),
    ("an", |w| Ok(Act::Forges(forgery(w)?))),
    ("writes", writes),
    ("deletes", |w| Ok(Act::Deletes { object: w.object()? })),
    ("purges", |w| Ok(Act::Purges { object: w.object()? })),
    ("reads", reads),
    ("lists", lists),
    ("goes offline", |_| Ok(Act::GoesOffline)),
    ("goes online", |_| Ok(Act::GoesOnline)),
    ("restarts", |_| Ok(Act::Restarts)),
    ("is killed", |_| Ok(Act::IsKilled)),
    ("settle", |_| Ok(Act::Settles)),
    ("agrees", |_| Ok(Act::Agrees)),
    ("holds epochs", |w| Ok(Act::HoldsEpochs { epochs: w.epochs()? })),
    ("holds no keys", |_| Ok(Act::HoldsEpochs { epochs: BTreeSet::new() })),
    ("holds no key of epoch", |w| Ok(Act::HoldsNoKey { epoch: w.number()? })),
    ("holds", holds),
    ("has refused", |w| Ok(Act::HasRefused { count: w.number()? })),
    ("dismisses", |_| Ok(Act::Dismisses)),
];

fn creates(w: &mut Words) -> Result<Act, String> {
    let space = w.next("a space")?;
    let history = if w.take("history") { w.history()? } else { HistoryMode::All };
    Ok(Act::Creates { space, history })
}

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

fn adds(w: &mut Words) -> Result<Act, String> {
    let whom = w.next("a person")?;
    w.expect("as")?;
    Ok(Act::Governs(Governing::Adds { whom, role: w.role()? }))
}

fn writes(w: &mut Words) -> Result<Act, String> {
    let object = w.object()?;
    let citing = match w.trailing("citing") {
        Some(index) => Some(index.parse().map_err(|_| format!("{index:?} is not the number of a record"))?),
        None => None,
    };
    Ok(Act::Writes { object, fields: w.fields()?, citing })
}

fn approves(w: &mut Words) -> Result<Act, String> {
    let whom = w.next("a person")?;
    if w.take("with") {
        w.expect("role")?;
        w.expect("none")?;
        return Ok(Act::Forges(Forgery::Bytes(ByteFlaw::AcceptsWithoutRole { whom })));
    }
    let role = if w.take("as") { Some(w.role()?) } else { None };
    let promising = if w.take("promising") { w.objects()? } else { Vec::new() };
    Ok(Act::Approves { whom, role, promising })
}

fn reads(w: &mut Words) -> Result<Act, String> {
    let object = w.object()?;
    w.expect("=")?;
    let shown = match (w.take("nothing"), w.take("hidden")) {
        (true, _) => Shown::Nothing,
        (false, true) => Shown::Hidden,
        (false, false) => Shown::Fields(w.fields()?),
    };
    Ok(Act::Reads { object, shown })
}

fn change(given: &mut Given, flaw: ChangeFlaw) -> Result<Forgery, String> {
    Ok(Forgery::Change { object: given.object()?, flaw })
}

/// Every forgery, by its words. Capitals stand for a person, a number or an object.
fn forgery(w: &mut Words) -> Result<Forgery, String> {
    type Make = fn(&mut Given) -> Result<Forgery, String>;
    const FORGERIES: &[(&str, Make)] = &[
        ("record of nothing", |_| Ok(Forgery::Bytes(ByteFlaw::NoContents))),
        ("record of an empty content", |_| Ok(Forgery::Bytes(ByteFlaw::EmptyContent))),
        ("unknown content", |_| Ok(Forgery::Bytes(ByteFlaw::UnknownContent))),
        ("record spelled otherwise", |_| Ok(Forgery::Bytes(ByteFlaw::SpelledOtherwise))),
        ("record signed by another", |_| Ok(Forgery::Bytes(ByteFlaw::SignedByAnother))),
        ("record on an old head", |_| Ok(Forgery::Place(PlaceFlaw::OldHead))),
        ("record of another number", |_| Ok(Forgery::Place(PlaceFlaw::OtherNumber))),
        ("record of another space", |_| Ok(Forgery::Place(PlaceFlaw::OtherSpace))),
        ("record of two invites", |_| Ok(Forgery::Content(ContentFlaw::TwoInvites))),
        ("invite with a used key", |_| Ok(Forgery::Content(ContentFlaw::OneKeyTwice))),
        ("open invite without a seal", |_| Ok(Forgery::Content(ContentFlaw::OpenInviteWithoutSeal))),
        ("approval invite with a seal", |_| Ok(Forgery::Content(ContentFlaw::ApprovalInviteWithSeal))),
        ("approval invite that requires", |_| Ok(Forgery::Content(ContentFlaw::ApprovalInviteThatRequires))),
        ("join by an invite of nobody", |_| Ok(Forgery::Content(ContentFlaw::InviteOfNobody))),
        ("new home", |_| Ok(Forgery::Content(ContentFlaw::NewHome))),
        ("request as X", |g| Ok(Forgery::Content(ContentFlaw::RequestAs { whom: g.person()? }))),
        ("join as another role", |_| Ok(Forgery::Join(JoinFlaw::OtherRole))),
        ("join without a proof", |_| Ok(Forgery::Join(JoinFlaw::NoProof))),
        ("join by the other mode", |_| Ok(Forgery::Join(JoinFlaw::OtherMode))),
        ("join sealed to X", |g| Ok(Forgery::Join(JoinFlaw::SealedTo { whom: g.person()? }))),
        ("cancellation for X", |g| Ok(Forgery::Content(ContentFlaw::CancelsRequestOf { whom: g.person()? }))),
        ("approval of X sealed to X", |g| {
            Ok(Forgery::Content(ContentFlaw::AcceptsSealedTo { whom: g.person()?, other: g.person()? }))
        }),
        ("approval of X promising X", |g| {
            Ok(Forgery::Content(ContentFlaw::AcceptsPromising { whom: g.person()?, object: g.object()? }))
        }),
        ("revocation of X without a rotation", |g| {
            Ok(Forgery::Content(ContentFlaw::RevokesWithoutRotation { whom: g.person()? }))
        }),
        ("revocation of X with a rotation", |g| {
            Ok(Forgery::Content(ContentFlaw::RevokesWithRotation { whom: g.person()? }))
        }),
        ("removal of X sealed to X", |g| Ok(Forgery::Content(ContentFlaw::RemovesSealingTo { whom: g.same()? }))),
        ("rotation without X", |g| Ok(Forgery::Content(ContentFlaw::RotatesWithout { whom: g.person()? }))),
        ("rotation also to X", |g| Ok(Forgery::Content(ContentFlaw::RotatesAlsoTo { whom: g.person()? }))),
        ("rotation to epoch X", |g| Ok(Forgery::Content(ContentFlaw::RotatesTo { epoch: g.number()? }))),
        ("lift of X without a key", |g| Ok(Forgery::Content(ContentFlaw::LiftsWithoutKey { whom: g.person()? }))),
        ("reseal of epoch X to X", |g| {
            Ok(Forgery::Content(ContentFlaw::ResealsEpoch { epoch: g.number()?, whom: g.person()? }))
        }),
        ("change of X as of epoch X", |g| {
            Ok(Forgery::Change { object: g.object()?, flaw: ChangeFlaw::OfEpoch(g.number()?) })
        }),
        ("snapshot of X", |g| change(g, ChangeFlaw::Snapshot)),
        ("change of X on nothing", |g| change(g, ChangeFlaw::OnNothing)),
        ("change of X on root and head", |g| change(g, ChangeFlaw::OnRootAndHead)),
        ("change of X without its root", |g| change(g, ChangeFlaw::WithoutRoot)),
        ("tree of another space", |_| Ok(Forgery::TreeOfOtherSpace)),
        ("load of X heads on X", |g| Ok(Forgery::Heads { count: g.number()?, object: g.object()? })),
        ("head more on X", |g| change(g, ChangeFlaw::OneMoreHead)),
        ("change of X again", |g| Ok(Forgery::Again { object: g.object()? })),
        ("purge of X again", |g| Ok(Forgery::PurgeAgain { object: g.object()? })),
    ];
    let words = w.rest();
    for (form, make) in FORGERIES {
        let form: Vec<_> = form.split(' ').collect();
        let fits = |(part, word): (&&str, &String)| *part == "X" || part == word;
        if form.len() == words.len() && form.iter().zip(&words).all(fits) {
            let given = form.iter().zip(&words).filter(|(part, _)| **part == "X").map(|(_, word)| word.clone());
            return make(&mut Given(given.collect()));
        }
    }
    let known: Vec<_> = FORGERIES.iter().map(|(form, _)| *form).collect();
    Err(format!("{words:?} is no forgery; there are: {}", known.join(", ")))
}

/// The words that stand where the form of a forgery has an `X`.
struct Given(VecDeque<String>);

impl Given {
    fn person(&mut self) -> Result<String, String> {
        self.0.pop_front().ok_or_else(|| "a person is missing".to_owned())
    }

    /// Two words that must be one person.
    fn same(&mut self) -> Result<String, String> {
        let (one, other) = (self.person()?, self.person()?);
        if one == other { Ok(one) } else { Err(format!("{one} and {other} must be the same person here")) }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let word = self.person()?;
        word.parse().map_err(|_| format!("{word:?} is not such a number"))
    }

    fn object(&mut self) -> Result<ObjectName, String> {
        Ok(ObjectName::parse(&self.person()?))
    }
}

impl ObjectName {
    /// `TYPE/ID`, or a bare id of type `text`.
    fn parse(word: &str) -> Self {
        let (object_type, id) = word.split_once('/').unwrap_or(("text", word));
        Self { object_type: object_type.to_owned(), id: id.to_owned() }
    }
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
        let mut script = Self { path: path.to_owned(), steps: Vec::new(), only: None, seeds: None };
        for (index, line) in text.lines().enumerate() {
            let at = |problem: String| format!("{path}:{}: {problem}\n  {line}", index + 1);
            let words = words(line).map_err(at)?;
            match words.first().map(String::as_str) {
                None => {}
                Some("world:") => script.only = Some(stage(words.get(1)).map_err(at)?),
                Some("seeds:") => script.seeds = Some(seeds(words.get(1)).map_err(at)?),
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

fn seeds(word: Option<&String>) -> Result<u64, String> {
    word.and_then(|w| w.parse().ok()).filter(|n| *n > 0).ok_or_else(|| format!("{word:?} is not a number of orders"))
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
    let space = words.trailing("in");
    let act = words.verb()?;
    words.end()?;
    let needs_force = matches!(act, Act::Forges(_) | Act::Writes { citing: Some(_), .. });
    if needs_force && !forced {
        return Err("no honest client does that: it needs `forces`".to_owned());
    }
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

    /// Everything up to the end of the line.
    fn rest(&mut self) -> Vec<String> {
        let rest = self.words[self.at..].to_vec();
        self.at = self.words.len();
        rest
    }

    /// `WORD VALUE` at the end of the line.
    fn trailing(&mut self, word: &str) -> Option<String> {
        let from = self.words.len().checked_sub(2).filter(|at| *at > self.at && self.words[*at] == word)?;
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

    fn history(&mut self) -> Result<HistoryMode, String> {
        Ok(match self.next("a history")?.as_str() {
            "all" => HistoryMode::All,
            "since-join" => HistoryMode::SinceJoin,
            other => return Err(format!("history is `all` or `since-join`, not {other:?}")),
        })
    }

    fn people(&mut self) -> Result<Vec<String>, String> {
        let mut people = vec![self.next("a person")?];
        people.extend(self.rest());
        Ok(people)
    }

    fn epochs(&mut self) -> Result<BTreeSet<u32>, String> {
        self.rest().iter().map(|word| word.parse().map_err(|_| format!("{word:?} is no epoch"))).collect()
    }

    fn object(&mut self) -> Result<ObjectName, String> {
        Ok(ObjectName::parse(&self.next("an object")?))
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
        let Act::Writes { object, fields, citing: None } = step.act else { panic!("{step:?}") };
        assert_eq!((object.object_type.as_str(), object.id.as_str()), ("note", "1"));
        assert_eq!(Value::Object(fields), serde_json::json!({ "title": "a b", "n": 3 }));
        assert_eq!(one("settle").expect("a line").act, Act::Settles);
        assert!(one("bob forces joins").expect("a line").forced);
        let step = one("bob forces an approval of carol sealed to dave in club").expect("a line");
        let flaw = ContentFlaw::AcceptsSealedTo { whom: "carol".to_owned(), other: "dave".to_owned() };
        assert_eq!((step.act, step.space.as_deref()), (Act::Forges(Forgery::Content(flaw)), Some("club")));
        let epochs = Act::HoldsEpochs { epochs: BTreeSet::from([0, 2]) };
        assert_eq!(one("bob holds epochs 0 2").expect("a line").act, epochs);
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
            ("bob an unknown content", "it needs `forces`"),
            ("bob writes note/1 a=b citing 3", "it needs `forces`"),
            ("bob forces a miracle", "is no forgery"),
            ("bob forces a removal of carol sealed to dave", "must be the same person"),
            ("bob sets history never", "history is"),
            ("seeds: none", "is not a number of orders"),
            ("world: flat", "a world is"),
        ] {
            let error = Script::parse("a.hw", &format!("# first\n{line}")).expect_err(line);
            assert!(error.starts_with("a.hw:2: ") && error.contains(problem), "{line}: {error}");
        }
    }
}
