//! A node whose disk lost the content of a change, and got it back.

use bytes::Bytes;
use client_sdk::{ChangeId, SpaceId, TreeId};
use sync_core::log::EntryKind;
use sync_store::{Store, StoreError, StoreKind, WriteTx};

use crate::harness::NodeProcess;

const STOPPED: &str = "the store of a node that is down";

/// The content of a change that a node lost.
#[derive(Debug, Clone)]
pub struct Lost {
    pub tree: TreeId,
    pub change: ChangeId,
    payload: Bytes,
}

/// Stops the node and spoils the content of the first change of each tree: it notices, and leaves it out. The node stays down.
///
/// # Panics
/// If a tree has no change with content, or the store fails.
pub async fn spoil(node: &mut NodeProcess, space: SpaceId, trees: &[TreeId]) -> Vec<Lost> {
    node.kill();
    let store = open(node);
    let found = |tree: &TreeId| -> Result<Lost, StoreError> {
        let rows = store.read(|tx| tx.tree_changes(space, *tree))?;
        let row = rows.into_iter().find(|row| row.kind == EntryKind::Change).expect("a tree has a change");
        let payload = row.record.payload.expect("a change has content");
        Ok(Lost { tree: *tree, change: row.id.into(), payload })
    };
    let lost: Vec<Lost> = trees.iter().map(|tree| found(tree).expect(STOPPED)).collect();
    write(store, space, lost.iter().map(|l| Lost { payload: Bytes::from_static(b"spoilt"), ..l.clone() }).collect())
        .await;
    lost
}

/// Gives the content back to a node that is down.
///
/// # Panics
/// If the store fails.
pub async fn mend(node: &mut NodeProcess, space: SpaceId, lost: Vec<Lost>) {
    node.kill();
    write(open(node), space, lost).await;
}

fn open(node: &NodeProcess) -> Store {
    Store::open(&node.dir().join("store"), StoreKind::Node).expect(STOPPED)
}

async fn write(store: Store, space: SpaceId, lost: Vec<Lost>) {
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> {
        for Lost { tree, change, payload } in &lost {
            assert!(tx.restore_payload(space, *tree, *change, payload)?, "{tree} is in the log");
        }
        Ok(())
    };
    let written = store.write(job).await.expect(STOPPED);
    store.durable(written.commit).await.expect(STOPPED);
    store.close().await;
}
