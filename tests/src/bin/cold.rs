//! A client process that joins a space that is not here yet, and says how that went: `profile MS` once its own profile is here,
//! `synced MS OBJECTS` once everything is, and `memory KIB`, the most that it ever held. `cold DIR TOKEN`.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use client_sdk::Client;
use sync_tests::harness::{PATIENCE, config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
    let dir = PathBuf::from(next("DIR")?);
    let token = next("TOKEN")?;
    let client = Client::open(config(&dir)).await?;
    let began = Instant::now();
    let space = client.join(&token).await?.ready(PATIENCE).await?.remove(0);
    space.await_object("profile", &client.account().to_string(), PATIENCE).await?;
    say(format!("profile {}", began.elapsed().as_millis()))?;
    space.await_synced_within(PATIENCE * 5).await?;
    let objects = space.objects().list("row")?.len();
    say(format!("synced {} {objects}", began.elapsed().as_millis()))?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    say(format!("memory {}", peak.trim().trim_end_matches(" kB")))?;
    client.close().await;
    Ok(())
}

fn say(line: String) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes())?;
    stdout.flush()
}
