//! Opening a space with 1,000 members and 100 rotations: from a closed data directory to a readable object.
//!
//! Held against: reading the same ACL records from the same store and checking each signature, which nobody who trusts no
//! file can do without.

use std::path::Path;
use std::time::{Duration, Instant};

use client_sdk::{AccountId, Client, Role, SpaceId};
use ed25519_dalek::SigningKey;
use sync_core::record::{AclRecord, Kind, verify_as};
use sync_store::{Store, StoreKind};
use sync_tests::harness::{NodeProcess, Outcome, TestClient, config};

use crate::{Row, millis};

const MEMBERS: usize = 1_000;
const ROTATIONS: usize = 100;
const ROUNDS: usize = 9;

pub(crate) async fn run() -> Outcome<Vec<Row>> {
    let node = NodeProcess::start();
    let owner = TestClient::create("Owner", node.address()).await;
    let space = owner.create_space("Crowd").await?;
    let accounts: Vec<_> = (1..MEMBERS).map(|_| (account(), Role::Reader)).collect();
    space.add_members(&accounts).await?;
    for _ in 0..ROTATIONS {
        space.rotate_keys().await?;
    }
    space.await_synced_within(Duration::from_secs(120)).await?;
    let id = space.id();
    drop(space);
    let dir = owner.shut().await;
    // Opened once more and closed: what lay in the write-ahead log is in the file.
    open(dir.path(), id).await?;

    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(millis(open(dir.path(), id).await?));
        limit.push(millis(read_and_verify(dir.path(), id).await?));
    }
    let name = "open, 1,000 members, 100 rotations";
    let size = std::fs::read_dir(dir.path())?.map(|e| Ok(e?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    Ok(vec![
        Row::new(name, "Headwater: closed directory to a read object", ours, "ms"),
        Row::new(name, "limit: the ACL records, read and verified", limit, "ms"),
        Row::new(name, "Headwater: files of the client", vec![size as f64 / 1e6], "MB"),
    ])
}

fn account() -> AccountId {
    AccountId::from(&SigningKey::from_bytes(&rand::random()).verifying_key())
}

/// Without the wait for its last tasks: the next opening needs the directory's lock.
async fn open(dir: &Path, space: SpaceId) -> Outcome<Duration> {
    let begun = Instant::now();
    let client = Client::open(config(dir)).await?;
    let opened = client.space(space)?;
    assert_eq!(opened.name()?.as_deref(), Some("Crowd"));
    assert_eq!(opened.acl()?.members.len(), MEMBERS);
    let took = begun.elapsed();
    client.close().await;
    Ok(took)
}

async fn read_and_verify(dir: &Path, space: SpaceId) -> Outcome<Duration> {
    let begun = Instant::now();
    let store = Store::open(dir, StoreKind::Client)?;
    let mut contents = 0;
    for (_, record) in store.read(|tx| tx.acl_records(space))? {
        if record.kind == Kind::AclRecord {
            contents += verify_as::<AclRecord>(record)?.body().contents.len();
        }
    }
    let took = begun.elapsed();
    assert!(contents > ROTATIONS);
    store.close().await;
    Ok(took)
}
