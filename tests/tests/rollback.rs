//! A node that was set back to an older copy of itself is caught, and never certifies what it lost.

use std::path::Path;
use std::process::Command;

use client_sdk::{NotSyncedCode, ReasonCode};
use serde_json::json;
use sync_tests::harness::{NodeProcess, TestClient};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} is copied to {}", from.display(), to.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restored_from_an_old_copy_is_named_and_certifies_nothing() -> Outcome {
    let mut node = NodeProcess::start();
    let client = TestClient::create("Ada", node.address()).await;
    let space = client.create_space("Club").await?;
    space.await_synced().await?;
    node.kill();
    let backup = tempfile::tempdir()?;
    copy(&node.dir().join("store"), backup.path());
    node.restart();

    let write = space.objects().put("note", "n", json!({ "text": "acknowledged" })).await?.ok_or("a write")?;
    space.await_durable(write).await?;
    node.kill();
    std::fs::remove_dir_all(node.dir().join("store"))?;
    copy(&backup.path().join("store"), node.dir());
    node.restart();

    let failed = space.await_synced().await.expect_err("the node lost what it had signed for");
    assert_eq!(failed.code, NotSyncedCode::NodeFault, "{failed:?}");
    let named = |code| failed.residue.iter().any(|r| r.code == code);
    assert!(named(ReasonCode::Rewound) || named(ReasonCode::Forked) || named(ReasonCode::Faulted), "{failed:?}");
    let again = space.await_durable(write).await;
    assert!(again.is_err(), "{again:?}");
    assert_eq!(space.objects().get("note", "n")?.ok_or("the note")?.fields["text"], "acknowledged");
    Ok(())
}
