//! Real signed records from fixed seeds.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sync_core::acl::AclState;
use sync_core::ids::{AccountId, AuthorityId, ChangeId, HistoryId, SpaceId, TreeId};
use sync_core::log::{Genesis, Outcome, Submission, decide, genesis};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, ChangeKind, PayloadClaim, Role, Salt, Seal, SpaceHeader, SpaceOptions, Tombstone,
    TreeChange, TreeName, TreeRoot, Verified, WriteRule,
};

use crate::{CommitNo, Store, StoreError, StoreKind, WriteError, Written};

pub(super) const HISTORY: HistoryId = HistoryId([7; 16]);

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(super) fn account(n: u8) -> AccountId {
    AccountId::from(&key(n).verifying_key())
}

/// A space owned by key 1.
pub(super) fn space(nonce: u8) -> Genesis {
    let owner = account(1);
    let root = AclRoot {
        owner,
        options: SpaceOptions { min_version: 1, ..SpaceOptions::default() },
        key_id: [1; 32],
        history_id: [2; 32],
        profile_key: [3; 32],
        seals: Vec::new(),
    };
    let root = Verified::sign(&root, &key(1), None).unwrap();
    let salt = Salt::Nonce([nonce; 16]);
    let header = SpaceHeader { owner, created_ms: 1, salt, acl_root: root.id().into() };
    let header = Verified::unsigned(&header).unwrap();
    let set_home = AclRecord {
        space: sync_core::log::space_id(&header),
        prev: root.id().into(),
        index: 1,
        author: owner,
        at_ms: 2,
        seen: None,
        contents: vec![AclContent::SetHome { authority: AuthorityId::from(&key(200).verifying_key()) }],
    };
    let set_home = Verified::sign(&set_home, &key(1), None).unwrap();
    genesis(header, &root, &set_home).unwrap()
}

pub(super) fn add_writer(acl: &AclState, n: u8) -> Submission {
    let seal = Seal { recipient: *account(n).as_bytes(), enc: vec![0; 32].into(), ciphertext: vec![0; 64].into() };
    let record = AclRecord {
        space: acl.space,
        prev: acl.head,
        index: acl.index + 1,
        author: account(1),
        at_ms: 3,
        seen: None,
        contents: vec![AclContent::AddMembers { members: vec![(account(n), Role::Writer, seal)] }],
    };
    Submission::Acl(Verified::sign(&record, &key(1), None).unwrap())
}

pub(super) fn root(space: SpaceId, n: u32) -> Verified<TreeRoot> {
    let mut nonce = [0; 16];
    nonce[..4].copy_from_slice(&n.to_be_bytes());
    Verified::unsigned(&TreeRoot { space, name: TreeName::Nonce(nonce), write_rule: WriteRule::WRITERS }).unwrap()
}

pub(super) fn change(
    acl: &AclState,
    author: u8,
    tree: TreeId,
    parents: &[ChangeId],
    salt: u32,
) -> Verified<TreeChange> {
    change_with(acl, author, tree, parents, salt, Bytes::from(format!("payload {salt}")))
}

pub(super) fn change_with(
    acl: &AclState,
    author: u8,
    tree: TreeId,
    parents: &[ChangeId],
    salt: u32,
    payload: Bytes,
) -> Verified<TreeChange> {
    let mut nonce = [0; 24];
    nonce[..4].copy_from_slice(&salt.to_be_bytes());
    let mut parents = parents.to_vec();
    parents.sort();
    if parents.is_empty() {
        parents.push(TreeChange::root_as_parent(tree));
    }
    let body = TreeChange {
        tree,
        parents,
        acl_head: acl.head,
        epoch: acl.epoch,
        author: account(author),
        at_ms: 4,
        seen: None,
        kind: ChangeKind::Content,
        nonce,
        payload: PayloadClaim::of(&payload),
    };
    Verified::sign(&body, &key(author), Some(payload)).unwrap()
}

/// Begins tree `n` with one change.
pub(super) fn begin(acl: &AclState, n: u32) -> Submission {
    let root = root(acl.space, n);
    let change = change(acl, 1, root.id().into(), &[], n);
    Submission::Change { root: Some(root), change }
}

pub(super) fn extend(acl: &AclState, tree: TreeId, parents: &[ChangeId], salt: u32) -> Submission {
    Submission::Change { root: None, change: change(acl, 1, tree, parents, salt) }
}

pub(super) fn purge(acl: &AclState, tree: TreeId) -> Submission {
    let body = Tombstone { tree, author: account(1), acl_head: acl.head, at_ms: 5 };
    Submission::Tombstone(Verified::sign(&body, &key(1), None).unwrap())
}

pub(super) fn delete_space(acl: &AclState) -> Submission {
    let record = AclRecord {
        space: acl.space,
        prev: acl.head,
        index: acl.index + 1,
        author: account(1),
        at_ms: 3,
        seen: None,
        contents: vec![AclContent::DeleteSpace],
    };
    Submission::Acl(Verified::sign(&record, &key(1), None).unwrap())
}

pub(super) fn open(dir: &std::path::Path) -> Store {
    Store::open(dir, StoreKind::Node).unwrap()
}

pub(super) async fn found(store: &Store, nonce: u8) -> SpaceId {
    let genesis = space(nonce);
    let id = genesis.space();
    store.write(move |tx| tx.create_space(&genesis, HISTORY)).await.unwrap();
    id
}

/// Decides and appends; panics unless it is appended.
pub(super) async fn append(store: &Store, space: SpaceId, submission: Submission) -> Written<()> {
    try_append(store, space, submission).await.unwrap()
}

pub(super) async fn try_append(
    store: &Store,
    space: SpaceId,
    submission: Submission,
) -> Result<Written<()>, WriteError<StoreError>> {
    store.write(move |tx| append_in(tx, space, &submission)).await
}

pub(super) fn append_in(
    tx: &mut crate::WriteTx<'_>,
    space: SpaceId,
    submission: &Submission,
) -> Result<(), StoreError> {
    let outcome = decide(&tx.view(space)?.unwrap(), submission).unwrap();
    let Outcome::Append(decision) = outcome else { panic!("known already") };
    tx.append(space, decision).map(|_| ())
}

pub(super) fn acl(store: &Store, space: SpaceId) -> std::sync::Arc<AclState> {
    store.read(|tx| tx.acl(space)).unwrap().unwrap()
}

pub(super) fn tree_of(submission: &Submission) -> TreeId {
    submission.tree().unwrap()
}

pub(super) fn heads(store: &Store, space: SpaceId, tree: TreeId) -> Vec<ChangeId> {
    store.read(|tx| tx.tree(space, tree)).unwrap().unwrap().heads.into_iter().collect()
}

/// Everything that must hold of a store at any moment.
pub(super) fn check_invariants(store: &Store, space: SpaceId) {
    store
        .read(|tx| {
            let row = tx.space(space)?.unwrap();
            let mut position = sync_core::log::Position::start(&space);
            let mut bytes = 0;
            for entry in tx.entries(space, sync_core::ids::Seq::ZERO, usize::MAX, usize::MAX)? {
                position = position.after(&entry.id);
                assert_eq!(entry.position, position, "the chain holds");
                assert!(entry.is_intact());
                bytes += entry.record.wire_bytes() as u64;
            }
            assert_eq!(row.position, position, "the log ends where its row says");
            assert_eq!(row.acl_head, tx.acl(space)?.unwrap().head);
            let elements = tx.elements(space, None, usize::MAX)?;
            assert!(elements.is_sorted_by_key(|e| e.key()), "elements are sorted by tree");
            let mut digest = sync_core::reconcile::SetDigest::empty();
            elements.iter().for_each(|e| digest.insert(e));
            assert_eq!(tx.digest(space)?.unwrap(), digest, "the digest is that of the elements");
            let counts = tx.counts(space)?.unwrap();
            assert_eq!(counts.trees + 1, elements.len() as u64);
            assert_eq!((counts.entries, counts.bytes), (position.seq.0, bytes));
            Ok::<_, StoreError>(())
        })
        .unwrap();
}

pub(super) const FIRST: CommitNo = CommitNo(1);
