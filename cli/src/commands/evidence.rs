//! What a node is accused of, the evidence for it, and what it lost for good.

use std::path::Path;

use client_sdk::{
    Accusation, AccusationId, AuthorityId, Client, Compared, Evidence, LostEntry, Proven, SalvageId, SignedReceipt,
    Space, judge,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::Lost;
use crate::error::CliError;
use crate::output::{Answer, pairs, table};
use crate::text;

/// Lost entries that are listed at a time.
const LOST_PAGE: usize = 500;

/// Judges evidence offline.
pub(crate) fn verify(app: &App, read: &str, authority: Option<AuthorityId>) -> Result<Answer, CliError> {
    let evidence = Evidence::from_text(read)?;
    if let Some(expected) = authority.filter(|a| *a != evidence.authority()) {
        return Err(CliError::OtherReceipt(format!("it is about {}, not about {expected}", evidence.authority())));
    }
    let proven = judge(&evidence)?;
    let does_not = "why: a disk, an operator and a liar look alike from here";
    let rows = vec![
        ("proves", proven.to_string()),
        ("against", evidence.authority().to_string()),
        ("does not", does_not.to_owned()),
    ];
    let paint = app.out.paint();
    let mut json = proven_json(&proven);
    json["verified"] = true.into();
    json["authority"] = evidence.authority().to_string().into();
    json["proves"] = proven.to_string().into();
    Ok(Answer::new(format!("{}\n{}", paint.green("the evidence holds"), pairs(paint, rows)), json))
}

fn proven_json(proven: &Proven) -> Value {
    match proven {
        Proven::Rollback { space, before, after, .. } => {
            json!({ "kind": "rollback", "space": space.to_string(), "before": before.0, "after": after.0 })
        }
        Proven::Fork { space, seq, .. } => json!({ "kind": "fork", "space": space.to_string(), "seq": seq.0 }),
        Proven::WordAgainstWord { space, author, seq, .. } => json!({
            "kind": "seen",
            "space": space.to_string(),
            "author": author.to_string(),
            "seq": seq.0,
        }),
    }
}

pub(crate) async fn accusations(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let accusations = space.accusations()?;
        let json = json!({
            "space": space.id().to_string(),
            "accusations": accusations.iter().map(accusation_json).collect::<Vec<_>>(),
        });
        if accusations.is_empty() {
            app.out.note("the node was never accused of anything here").await;
            return Ok(Answer::new("", json));
        }
        let rows = accusations.iter().map(|a| {
            let proof = if a.evidence.is_some() { "yes" } else { "no" };
            let state = a.state.name().replace('_', " ");
            vec![a.id.to_string(), a.kind.name().to_owned(), state, proof.to_owned(), a.detail.clone()]
        });
        Ok(Answer::new(table(&["number", "what", "state", "proof", "detail"], rows), json))
    })
    .await
}

fn accusation_json(accusation: &Accusation) -> Value {
    json!({
        "number": accusation.id.0,
        "kind": accusation.kind.name(),
        "state": accusation.state.name(),
        "claim": { "seq": accusation.claim.seq.0, "chain": accusation.claim.chain.to_string() },
        "detail": accusation.detail,
        "at_ms": accusation.at_ms,
        "evidence": accusation.evidence.as_ref().map(Evidence::to_text),
    })
}

/// Prints the evidence for one accusation, or for the latest one that has some.
pub(crate) async fn export(app: &App, number: Option<u64>) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let accusations = space.accusations()?;
        let found = match number {
            Some(number) => accusations.iter().find(|a| a.id == AccusationId(number)),
            None => accusations.iter().rev().find(|a| a.evidence.is_some()),
        };
        let found = found.ok_or_else(|| CliError::NotFound("there is no such accusation".to_owned()))?;
        let evidence = found.evidence.as_ref().ok_or_else(|| {
            CliError::NotFound(format!("accusation {} has no proof: the node did not sign enough", found.id))
        })?;
        Ok(Answer::new(evidence.to_text(), accusation_json(found)))
    })
    .await
}

pub(crate) async fn dismiss(app: &App, number: u64) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        if !space.dismiss_accusation(AccusationId(number)).await? {
            return Err(CliError::NotFound(format!("there is no accusation {number}")));
        }
        Ok(Answer::new(format!("accusation {number} is dismissed, and kept"), json!({ "dismissed": number })))
    })
    .await
}

/// Compares a receipt of another member with the log here.
pub(crate) async fn compare(app: &App, file: &Path) -> Result<Answer, CliError> {
    let other = SignedReceipt::from_text(app.caller.read_input(file).await?.trim())?;
    app.with_space(async |_: &Client, space: &Space| {
        let (compared, said) = match space.compare_receipt(&other).await? {
            Compared::Same => ("same", "the node told both of you one story"),
            Compared::Ahead => ("ahead", "it speaks of entries that are not here yet: sync, and compare again"),
            Compared::Nothing => {
                return Err(CliError::OtherReceipt("it has nothing to do with this space and its node".to_owned()));
            }
            Compared::Forked => {
                let text = "the node told two stories; headwater receipt accusations has the evidence".to_owned();
                return Err(CliError::Different(text));
            }
        };
        Ok(Answer::new(said, json!({ "compared": compared })))
    })
    .await
}

/// What the node lost for good.
pub(crate) async fn lost(app: &App, args: Lost) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        let lost = space.lost(0, LOST_PAGE)?;
        if args.dismiss.is_none() && !args.dismiss_all {
            return Ok(list(app, space, &lost).await);
        }
        let mut dismissed = Vec::new();
        for entry in lost.iter().filter(|e| args.dismiss_all || args.dismiss == Some(e.id.0)) {
            if space.dismiss_lost(entry.id).await? {
                dismissed.push(entry.id.0);
            }
        }
        match args.dismiss.filter(|number| !dismissed.contains(number)) {
            Some(number) => Err(CliError::NotFound(format!("there is no lost entry {}", SalvageId(number)))),
            None => {
                let said = format!("{} dismissed", text::count(dismissed.len(), "lost entry"));
                Ok(Answer::new(said, json!({ "dismissed": dismissed })))
            }
        }
    })
    .await
}

async fn list(app: &App, space: &Space, lost: &[LostEntry]) -> Answer {
    let json = json!({
        "space": space.id().to_string(),
        "lost": lost.iter().map(lost_json).collect::<Vec<_>>(),
    });
    if lost.is_empty() {
        app.out.note("the node lost nothing for good").await;
        return Answer::new("", json);
    }
    let rows = lost.iter().map(|e| vec![e.id.to_string(), e.what(), format!("{}: {}", e.code, e.message)]);
    Answer::new(table(&["number", "what", "why"], rows), json)
}

fn lost_json(lost: &LostEntry) -> Value {
    json!({
        "number": lost.id.0,
        "seq": lost.seq.0,
        "entry": lost.entry.to_string(),
        "author": lost.author.map(|a| a.to_string()),
        "tree": lost.tree.map(|t| t.to_string()),
        "acts": lost.acts,
        "code": lost.code,
        "message": lost.message,
    })
}
