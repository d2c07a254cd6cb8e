//! A client process for tests to kill: opens the account in a directory and says `synced SEQ SUM` whenever it proved that it is
//! synced: the end of its log, and the sum of what its objects of the type `row` count. `follower DIR SPACE`; it never ends.

use std::io::Write as _;
use std::path::PathBuf;

use client_sdk::{Client, SpaceId};
use sync_tests::harness::{PATIENCE, config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
    let dir = PathBuf::from(next("DIR")?);
    let space: SpaceId = next("SPACE")?.parse()?;
    let client = Client::open(config(&dir)).await?;
    let space = client.space(space)?;
    loop {
        let synced = space.await_synced_within(PATIENCE).await?;
        let rows = space.objects().list("row")?;
        let sum: u64 = rows.iter().filter_map(|row| row.fields.get("n")?.as_u64()).sum();
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(format!("synced {} {sum}\n", synced.receipt.body().seq).as_bytes())?;
        stdout.flush()?;
    }
}
