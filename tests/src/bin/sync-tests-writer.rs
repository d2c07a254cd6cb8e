//! A client process for tests to kill: opens the account in a directory, writes objects to a space one after the other, and
//! prints the number of each once its write has returned. `sync-tests-writer DIR SPACE COUNT`; it never ends by itself.

use std::io::Write as _;
use std::path::PathBuf;

use client_sdk::{Client, SpaceId};
use serde_json::json;
use sync_tests::harness::config;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
    let dir = PathBuf::from(next("DIR")?);
    let space: SpaceId = next("SPACE")?.parse()?;
    let count: u64 = next("COUNT")?.parse()?;
    let client = Client::open(config(&dir)).await?;
    let space = client.space(space)?;
    let mut out = std::io::stdout();
    for n in 0..count {
        space.objects().put("item", &n.to_string(), json!({ "n": n })).await?;
        writeln!(out, "{n}")?;
        out.flush()?;
    }
    std::future::pending().await
}
