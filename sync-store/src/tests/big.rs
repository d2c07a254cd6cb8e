//! How long a big space takes to open. Not run with the others; in a release build:
//! `cargo test --release -p sync-store --lib -- --ignored --nocapture big`.

#![expect(clippy::print_stdout, reason = "a measurement is for people")]

use std::time::Instant;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sync_core::acl::sign_join_proof;
use sync_core::ids::{AccountId, Epoch, InviteId, SpaceId};
use sync_core::log::Submission;
use sync_core::record::{AclContent, AclRecord, CreateInvite, InviteMode, JoinClaim, Role, Rotation, Seal, Verified};

use super::world::{self, found, open};
use crate::{Store, StoreError, WriteTx};

/// Members, the owner included: as many as a space may have.
const MEMBERS: u32 = 1_000;
const ROTATIONS: u32 = 100;

fn key(n: u32) -> SigningKey {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

fn account(n: u32) -> AccountId {
    AccountId::from(&key(n).verifying_key())
}

/// As long as a real one, and as hard to compress: two random-looking halves for each recipient.
fn seal(recipient: &[u8; 32], salt: u32) -> Seal {
    let fill = |what: &str, len: usize| {
        let mut bytes = vec![0; len];
        let mut hasher =
            sync_core::record::PayloadClaim::of(&[what.as_bytes(), recipient, &salt.to_be_bytes()].concat()).hash;
        for chunk in bytes.chunks_mut(32) {
            chunk.copy_from_slice(&hasher[..chunk.len()]);
            hasher = sync_core::record::PayloadClaim::of(&hasher).hash;
        }
        Bytes::from(bytes)
    };
    Seal { recipient: *recipient, enc: fill("enc", 32), ciphertext: fill("ciphertext", 112) }
}

fn act(
    tx: &mut WriteTx<'_>,
    space: SpaceId,
    author: &SigningKey,
    content: AclContent,
) -> Result<Submission, StoreError> {
    let acl = tx.acl(space)?.unwrap();
    let record = AclRecord {
        space,
        prev: acl.head,
        index: acl.index + 1,
        author: AccountId::from(&author.verifying_key()),
        at_ms: 1,
        seen: None,
        contents: vec![content],
    };
    let submission = Submission::Acl(Verified::sign(&record, author, None).unwrap());
    world::append_in(tx, space, &submission)?;
    Ok(submission)
}

fn invite(n: u32, mode: InviteMode) -> CreateInvite {
    let id = InviteId::from(&key(n).verifying_key());
    let seals = match mode {
        InviteMode::Open => vec![seal(id.as_bytes(), n)],
        InviteMode::Approval => Vec::new(),
    };
    CreateInvite {
        key: id,
        mode,
        role: Role::Writer,
        expires_ms: None,
        max_uses: None,
        seals,
        must_see: Vec::new(),
        requires: Vec::new(),
        label_ct: Bytes::new(),
    }
}

/// Half of the members come by an open invite each on its own, half ask and are accepted; then the keys rotate, and rotate.
fn grow(tx: &mut WriteTx<'_>, space: SpaceId) -> Result<(), StoreError> {
    let owner = world::key(1);
    let (open, approval) = (10_000, 10_001);
    act(tx, space, &owner, AclContent::CreateInvite(invite(open, InviteMode::Open)))?;
    act(tx, space, &owner, AclContent::CreateInvite(invite(approval, InviteMode::Approval)))?;
    for n in 1..MEMBERS {
        let (who, by) = (account(n), if n % 2 == 0 { open } else { approval });
        let claim = JoinClaim {
            invite: InviteId::from(&key(by).verifying_key()),
            account: who,
            role: Role::Writer,
            proof: sign_join_proof(&key(by), space, who, Role::Writer),
            profile_ct: Bytes::from(vec![3; 120]),
        };
        let seals = vec![seal(who.as_bytes(), n)];
        if by == open {
            act(tx, space, &key(n), AclContent::JoinByInvite { claim, seals })?;
        } else {
            let request = act(tx, space, &key(n), AclContent::RequestJoin { claim })?.id().into();
            let accept = AclContent::AcceptJoin { request, role: Role::Writer, seals, frontier: Vec::new() };
            act(tx, space, &owner, accept)?;
        }
    }
    for n in 1..=ROTATIONS {
        let acl = tx.acl(space)?.unwrap();
        let open = InviteId::from(&key(open).verifying_key());
        let rotation = Rotation {
            epoch: Epoch(acl.epoch.0 + 1),
            key_id: [1; 32],
            history_id: [2; 32],
            profile_key: [3; 32],
            seals: acl.members.keys().map(|member| seal(member.as_bytes(), 1_000_000 + n)).collect(),
            invite_seals: vec![seal(open.as_bytes(), 1_000_000 + n)],
            chain_nonce: vec![0; 24].into(),
            chain_ct: vec![0; 80].into(),
        };
        act(tx, space, &owner, AclContent::RotateKey { rotation })?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_big_space_opens_in_under_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let space = found(&store, 1).await;
    let since = Instant::now();
    store.write(move |tx| grow(tx, space)).await.unwrap();
    println!("made in {:?}", since.elapsed());
    store.close().await;
    let bytes = std::fs::metadata(dir.path().join(crate::DATABASE_FILE)).unwrap().len();
    println!("file: {:.1} MB", bytes as f64 / 1e6);

    let store: Store = open(dir.path());
    let since = Instant::now();
    let acl = store.read(|tx| tx.acl(space)).unwrap().unwrap();
    let took = since.elapsed();
    println!("acl: {took:?} ({} members, {} records)", acl.members.len(), acl.records.len());
    let since = Instant::now();
    let again = store.read(|tx| tx.acl(space)).unwrap().unwrap();
    println!("acl, remembered: {:?}", since.elapsed());
    assert_eq!(acl, again);
    let since = Instant::now();
    let records = store.read(|tx| tx.acl_records(space)).unwrap();
    println!("acl_records: {:?} ({} records)", since.elapsed(), records.len());
    let since = Instant::now();
    let copy = (*acl).clone();
    println!("a copy of the state: {:?}", since.elapsed());
    assert_eq!(copy.members.len(), MEMBERS as usize);
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
}
