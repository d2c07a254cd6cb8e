//! Writes objects until it is done or killed, and says on standard output what was acknowledged: `local N` once the write of
//! batch N returned, `durable N` once the node signed for it.
//!
//! `importer DIR SPACE PREFIX BATCHES SIZE`; the objects of batch N are `PREFIX-N-0` to `PREFIX-N-(SIZE-1)`.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use client_sdk::{Client, NewObject, Space, SpaceId, WriteId};
use serde_json::{Map, Value};
use sync_tests::harness::{PATIENCE, config};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Batches on their way to the node's disk at the same time.
const UNDER_WAY_MAX: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, space, prefix, batches, size] = args.as_slice() else {
        return Err("usage: importer DIR SPACE PREFIX BATCHES SIZE".into());
    };
    let client = Client::open(config(Path::new(dir))).await?;
    let space = client.space(space.parse::<SpaceId>()?)?;
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut waits = JoinSet::new();
    for batch in 0..batches.parse()? {
        let permit = room.clone().acquire_owned().await?;
        let writes = space.objects().put_many(objects(prefix, batch, size.parse()?)).await?;
        say("local", batch)?;
        waits.spawn(wait(space.clone(), writes.into_iter().flatten().collect(), batch, permit));
    }
    while let Some(waited) = waits.join_next().await {
        waited??;
    }
    client.close().await;
    Ok(())
}

fn objects(prefix: &str, batch: u32, size: u32) -> Vec<NewObject> {
    let object = |n: u32| NewObject {
        object_type: "row".to_owned(),
        id: format!("{prefix}-{batch}-{n}"),
        fields: Map::from_iter([("batch".to_owned(), Value::from(batch)), ("n".to_owned(), Value::from(n))]),
    };
    (0..size).map(object).collect()
}

async fn wait(space: Space, writes: Vec<WriteId>, batch: u32, permit: OwnedSemaphorePermit) -> std::io::Result<()> {
    for write in writes {
        if space.await_durable_within(write, PATIENCE).await.is_err() {
            return Ok(());
        }
    }
    drop(permit);
    say("durable", batch)
}

/// One line in one write: a reader never sees half of it.
fn say(what: &str, batch: u32) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{what} {batch}\n").as_bytes())?;
    stdout.flush()
}
