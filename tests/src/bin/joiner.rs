//! A client process for tests to kill: opens the account in a directory, joins by a token, says `joined` when that is durable and
//! `ready` when it is, and stays. `joiner DIR TOKEN`.

use std::io::Write as _;
use std::path::PathBuf;

use client_sdk::Client;
use sync_tests::harness::{PATIENCE, config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
    let dir = PathBuf::from(next("DIR")?);
    let token = next("TOKEN")?;
    let client = Client::open(config(&dir)).await?;
    let joining = client.join(&token).await?;
    say("joined")?;
    joining.ready(PATIENCE).await?;
    say("ready")?;
    std::future::pending().await
}

fn say(what: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{what}\n").as_bytes())?;
    stdout.flush()
}
