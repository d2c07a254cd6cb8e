//! Receipts: what a node signed, and what that proves.

use std::path::{Path, PathBuf};

use client_sdk::{AuthorityId, Client, Evidence, SignedReceipt, Space, SpaceId};
use serde_json::{Value, json};

use crate::app::App;
use crate::commands::evidence;
use crate::error::CliError;
use crate::output::{Answer, pairs};
use crate::text;

/// What a receipt says, for people.
pub(crate) fn facts(receipt: &SignedReceipt) -> Vec<(&'static str, String)> {
    let body = receipt.body();
    vec![
        ("space", body.space.to_string()),
        ("seq", body.seq.to_string()),
        ("chain", body.chain.to_string()),
        ("acl head", body.acl_head.to_string()),
        ("node", body.node.to_string()),
        ("authority", body.authority.to_string()),
        ("signed at", text::moment(body.at_ms)),
    ]
}

/// What a receipt says, for programs.
pub(crate) fn facts_json(receipt: &SignedReceipt) -> Value {
    let body = receipt.body();
    json!({
        "space": body.space.to_string(),
        "seq": body.seq.0,
        "chain": body.chain.to_string(),
        "acl_head": body.acl_head.to_string(),
        "epoch": body.epoch.0,
        "history": text::hex(&body.history.0),
        "node": body.node.to_string(),
        "authority": body.authority.to_string(),
        "durable": body.durable,
        "at_ms": body.at_ms,
    })
}

async fn read(app: &App, file: &Path) -> Result<SignedReceipt, CliError> {
    Ok(SignedReceipt::from_text(app.caller.read_input(file).await?.trim())?)
}

pub(crate) async fn verify(
    app: &App,
    file: &Path,
    authority: Option<AuthorityId>,
    space: Option<SpaceId>,
) -> Result<Answer, CliError> {
    let read = app.caller.read_input(file).await?;
    if Evidence::is_text(&read) {
        return evidence::verify(app, &read, authority);
    }
    let receipt = SignedReceipt::from_text(read.trim())?;
    let body = receipt.body();
    if let Some(expected) = authority.filter(|a| *a != body.authority) {
        return Err(CliError::OtherReceipt(format!("it is by {}, not by {expected}", body.authority)));
    }
    if let Some(expected) = space.filter(|s| *s != body.space) {
        return Err(CliError::OtherReceipt(format!("it is for {}, not for {expected}", body.space)));
    }
    let durability = if body.durable { "on its disk" } else { "in its log, not yet on its disk" };
    let proves = format!(
        "the node held the space up to entry {} {durability}; whoever has the same entries computes the same chain",
        body.seq
    );
    let limits =
        "that the authority is yours, and what the node did later; compare the authority with your node's address";
    let mut rows = vec![("proves", proves.clone()), ("does not", limits.to_owned())];
    rows.extend(facts(&receipt));
    let mut json = facts_json(&receipt);
    json["verified"] = true.into();
    json["proves"] = proves.into();
    let paint = app.out.paint();
    Ok(Answer::new(format!("{}\n{}", paint.green("the receipt verifies"), pairs(paint, rows)), json))
}

pub(crate) async fn show(app: &App, file: Option<PathBuf>) -> Result<Answer, CliError> {
    match file {
        Some(file) => {
            let receipt = read(app, &file).await?;
            Ok(Answer::new(pairs(app.out.paint(), facts(&receipt)), with_text(&receipt)))
        }
        None => {
            app.with_space(async |_: &Client, space: &Space| {
                let _spinner = app.out.spinner("asking the node");
                let synced = space.await_synced_within(app.timeout()).await?;
                Ok(Answer::new(synced.receipt.to_text(), with_text(&synced.receipt)))
            })
            .await
        }
    }
}

fn with_text(receipt: &SignedReceipt) -> Value {
    let mut json = facts_json(receipt);
    json["receipt"] = receipt.to_text().into();
    json
}
