//! A client process that does what it is told, for tests that stop it, fill its disk or set its clock: opens the account in a
//! directory, and answers each line on standard input with one line of JSON. `sync-tests-client DIR SPACE`.
//!
//! `put ID N` · `flushed` · `durable WRITE` · `synced MS` · `changed MS` · `status` · `items`

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use client_sdk::{Client, NotSynced, Space, SpaceId};
use serde_json::{Value, json};
use sync_tests::harness::{PATIENCE, config};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, space] = args.as_slice() else { return Err("usage: sync-tests-client DIR SPACE".into()) };
    let client = Client::open(config(&PathBuf::from(dir))).await?;
    let space = client.space(space.parse::<SpaceId>()?)?;
    say(&json!("ready"))?;
    // Lines are few and this process has nothing else to do on this thread.
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        say(&answer(&space, &line).await?)?;
    }
    client.close().await;
    Ok(())
}

fn say(answer: &Value) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{answer}")?;
    stdout.flush()
}

async fn answer(space: &Space, line: &str) -> Result<Value, Failure> {
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words.as_slice() {
        ["put", id, n] => match space.objects().put("item", id, json!({ "n": n.parse::<u64>()? })).await {
            Ok(write) => json!({ "ok": write.map(|w| w.0) }),
            Err(error) => json!({ "error": error.code() }),
        },
        ["flushed"] => match space.durable_locally().await {
            Ok(()) => json!({ "ok": true }),
            Err(error) => json!({ "error": error.code() }),
        },
        ["durable", write] => {
            let waited = space.await_durable_within(client_sdk::WriteId(write.parse()?), PATIENCE).await;
            waited.map_or_else(|no| refusal(&no), |receipt| json!({ "ok": receipt.body().seq.0 }))
        }
        ["synced", ms] => {
            let waited = space.await_synced_within(Duration::from_millis(ms.parse()?)).await;
            waited.map_or_else(|no| refusal(&no), |synced| json!({ "ok": synced.receipt.body().seq.0 }))
        }
        ["changed", ms] => {
            let before = space.status()?.timeless();
            let mut statuses = space.status_stream();
            let other = async {
                while let Some(status) = statuses.next().await? {
                    if status.timeless() != before {
                        break;
                    }
                }
                Ok::<_, Failure>(())
            };
            let moved = tokio::time::timeout(Duration::from_millis(ms.parse()?), other).await;
            json!({ "ok": moved.is_ok() })
        }
        ["status"] => match space.status() {
            Ok(status) => json!({ "ok": status }),
            Err(error) => json!({ "error": error.code() }),
        },
        ["items"] => match space.objects().list("item") {
            Ok(items) => json!({ "ok": items.into_iter().map(|o| o.id).collect::<Vec<_>>() }),
            Err(error) => json!({ "error": error.code() }),
        },
        _ => return Err(format!("not a command: {line}").into()),
    })
}

fn refusal(no: &NotSynced) -> Value {
    let reasons: Vec<_> = no.residue.iter().map(|r| r.code.name()).collect();
    json!({ "error": no.code.name(), "reasons": reasons })
}
