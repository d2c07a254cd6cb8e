//! Every limit of the format, at the limit and one past it.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sync_core::acl::{AclReject, sign_join_proof};
use sync_core::ids::{
    AccountId, AclId, Chain, ChangeId, DeviceId, Epoch, HistoryId, InviteId, NodeId, Seq, SpaceId, TreeId,
};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{
    AclContent, AclRecord, Body, DeviceList, InviteMode, InviteToken, InvitedSpace, JoinClaim, NodeCertificate,
    PayloadClaim, Receipt, Role, Salt, SpaceHeader, TreeChange, TreeHeads, Verified, VerifyError, WriteRule,
};
use sync_core::token::{token_from_text, token_to_text};

use crate::fixture::*;

fn trees(n: usize) -> Vec<TreeId> {
    (0..n).map(|i| TreeId::from_hash(numbered(i))).collect()
}

fn changes(n: usize) -> Vec<ChangeId> {
    (0..n).map(|i| ChangeId::from_hash(numbered(i))).collect()
}

fn numbered(n: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    bytes
}

fn numbered_key(n: usize) -> SigningKey {
    SigningKey::from_bytes(&numbered(n))
}

fn field<T: std::fmt::Debug>(result: Result<T, VerifyError>) -> &'static str {
    match result {
        Err(VerifyError::Field { field, .. }) => field,
        other => panic!("expected a bad field, got {other:?}"),
    }
}

fn too_large<T: std::fmt::Debug>(result: Result<T, VerifyError>) -> (usize, usize) {
    match result {
        Err(VerifyError::TooLarge { actual, max, .. }) => (actual, max),
        other => panic!("expected too large, got {other:?}"),
    }
}

fn change(parents: Vec<ChangeId>, payload: Bytes) -> Result<Verified<TreeChange>, VerifyError> {
    let body = TreeChange {
        tree: TreeId::from_hash([1; 32]),
        parents,
        acl_head: AclId::from_hash([2; 32]),
        epoch: Epoch(0),
        author: account(1),
        at_ms: 0,
        seen: None,
        kind: sync_core::record::ChangeKind::Content,
        nonce: [0; 24],
        payload: PayloadClaim::of(&payload),
    };
    Verified::sign(&body, &key(1), Some(payload))
}

fn record(contents: Vec<AclContent>) -> Result<Verified<AclRecord>, VerifyError> {
    let record = AclRecord {
        space: SpaceId::from_hash([1; 32]),
        prev: AclId::from_hash([2; 32]),
        index: 2,
        author: account(1),
        at_ms: 1,
        seen: None,
        contents,
    };
    Verified::sign(&record, &key(1), None)
}

#[test]
fn parents_and_payload() {
    assert!(change(changes(limits::PARENTS_MAX), Bytes::new()).is_ok());
    assert_eq!(field(change(changes(limits::PARENTS_MAX + 1), Bytes::new())), "parents");
    assert_eq!(field(change(Vec::new(), Bytes::new())), "parents");
    let mut unsorted = changes(2);
    unsorted.reverse();
    assert_eq!(field(change(unsorted, Bytes::new())), "parents");
    assert_eq!(field(change([changes(1), changes(1)].concat(), Bytes::new())), "parents");
    let max = limits::PAYLOAD_BYTES_MAX;
    assert!(change(changes(1), vec![0; max].into()).is_ok());
    assert_eq!(too_large(change(changes(1), vec![0; max + 1].into())), (max + 1, max));
}

/// For the table of rules: the tree is full at the limit, and one more is refused.
pub(crate) fn one_head_too_many() -> Reject {
    let mut space = Space::peopled();
    let (tree, first) = space.begin(WRITER, 1, WriteRule::WRITERS);
    for _ in 1..limits::HEADS_MAX {
        let head = space.change(WRITER, tree, &[]);
        space.take(&head).unwrap();
    }
    assert_eq!(space.log.trees()[&tree].heads.len(), limits::HEADS_MAX);
    let refused = space.change(WRITER, tree, &[]);
    let reject = space.take(&refused).unwrap_err();
    assert_eq!(reject, Reject::HeadsFull { tree });
    // A change on one of the heads adds none, and a merge makes room.
    let merge: Vec<_> = space.log.trees()[&tree].heads.iter().take(2).copied().collect();
    for parents in [vec![first], merge] {
        let change = space.change(WRITER, tree, &parents);
        if space.log.trees()[&tree].heads.is_superset(&parents.iter().copied().collect()) {
            space.take(&change).unwrap();
        }
    }
    assert!(space.take(&refused).is_ok(), "there is room again");
    reject
}

#[test]
fn contents_of_an_acl_record() {
    assert!(record(vec![AclContent::Leave; limits::ACL_CONTENTS_MAX]).is_ok());
    assert_eq!(field(record(vec![AclContent::Leave; limits::ACL_CONTENTS_MAX + 1])), "contents");
    assert_eq!(field(record(Vec::new())), "contents");
    // An act that names nobody is none.
    assert_eq!(field(record(vec![AclContent::AddMembers { members: Vec::new() }])), "members");
    let rotation = Space::peopled().rotation(&[]);
    assert_eq!(field(record(vec![AclContent::RemoveMembers { accounts: Vec::new(), rotation }])), "accounts");
}

#[test]
fn named_trees_heads_and_seals() {
    let invite = |must_see, requires| {
        let mut invite = Space::invite(50, InviteMode::Open, Role::Writer);
        (invite.must_see, invite.requires) = (must_see, requires);
        record(vec![AclContent::CreateInvite(invite)])
    };
    let max = limits::NAMED_TREES_MAX;
    assert!(invite(trees(max), trees(max)).is_ok());
    assert_eq!(field(invite(trees(max + 1), Vec::new())), "must_see");
    assert_eq!(field(invite(Vec::new(), trees(max + 1))), "requires");
    let accept = |frontier| {
        let request = AclId::from_hash([3; 32]);
        record(vec![AclContent::AcceptJoin { request, role: Role::Writer, seals: vec![seal(1)], frontier }])
    };
    let promise = |tree, heads| TreeHeads { tree, heads };
    assert!(accept(trees(max).into_iter().map(|t| promise(t, Vec::new())).collect()).is_ok());
    assert_eq!(field(accept(trees(max + 1).into_iter().map(|t| promise(t, Vec::new())).collect())), "frontier");
    let tree = trees(1)[0];
    assert!(accept(vec![promise(tree, changes(limits::HEADS_MAX))]).is_ok());
    assert_eq!(field(accept(vec![promise(tree, changes(limits::HEADS_MAX + 1))])), "heads");
    assert_eq!(field(accept(vec![promise(tree, [changes(1), changes(1)].concat())])), "heads");
    let reseal = |bytes: usize| {
        let seal = sync_core::record::Seal { ciphertext: vec![0; bytes].into(), ..seal(1) };
        record(vec![AclContent::Reseal { account: account(1), epoch: Epoch(0), seal }])
    };
    assert!(reseal(256).is_ok());
    assert_eq!(field(reseal(257)), "seal.ciphertext");
}

/// A request with a profile of so many bytes.
fn profile(bytes: usize) -> AclContent {
    let claim = JoinClaim {
        invite: invite_id(50),
        account: account(6),
        role: Role::Writer,
        proof: vec![0; 64].into(),
        profile_ct: vec![0; bytes].into(),
    };
    AclContent::RequestJoin { claim }
}

#[test]
fn the_body_of_an_acl_record() {
    const PROFILE_MAX: usize = 16 << 10;
    assert!(record(vec![profile(PROFILE_MAX)]).is_ok());
    assert_eq!(field(record(vec![profile(PROFILE_MAX + 1)])), "profile_ct");
    let whole = |last: usize| record([vec![profile(PROFILE_MAX); 15], vec![profile(last)]].concat());
    let max = limits::ACL_BODY_BYTES_MAX;
    let slack = max - whole(10_000).unwrap().raw().body.len();
    let at_limit = whole(10_000 + slack).unwrap();
    assert_eq!(at_limit.raw().body.len(), max);
    assert_eq!(too_large(whole(10_001 + slack)), (max + 1, max));
    assert!(at_limit.raw().wire_bytes() < limits::MESSAGE_BYTES_MAX, "an ACL record is never split");
}

#[test]
fn other_bodies() {
    let header = |label: usize| {
        let salt = Salt::Derivation(vec![0; label].into());
        let header = SpaceHeader { owner: account(1), created_ms: 0, salt, acl_root: AclId::from_hash([1; 32]) };
        Verified::unsigned(&header)
    };
    let max = limits::BODY_BYTES_MAX;
    let slack = max - header(1000).unwrap().raw().body.len();
    assert_eq!(header(1000 + slack).unwrap().raw().body.len(), max);
    assert_eq!(too_large(header(1001 + slack)), (max + 1, max));
    // The largest honest bodies are far below.
    assert!(change(changes(limits::PARENTS_MAX), Bytes::new()).unwrap().raw().body.len() < max / 2);
}

#[test]
fn devices_of_an_account() {
    let mut devices: Vec<_> =
        (0..=limits::DEVICES_MAX).map(|n| DeviceId::from(&numbered_key(n).verifying_key())).collect();
    devices.sort();
    let list = |devices: &[DeviceId]| {
        let list = DeviceList { account: account(1), version: 1, devices: devices.to_vec() };
        Verified::sign(&list, &key(1), None)
    };
    assert!(list(&devices[1..]).is_ok());
    assert_eq!(field(list(&devices)), "devices");
    devices.truncate(2);
    devices.reverse();
    assert_eq!(field(list(&devices)), "devices");
}

#[test]
fn trees_of_a_receipt_and_its_size_without_them() {
    let node = key(201);
    let receipt = |n: usize| Receipt {
        authority: authority(),
        node: NodeId::from(&node.verifying_key()),
        space: SpaceId::from_hash([1; 32]),
        history: HistoryId([1; 16]),
        seq: Seq(u64::MAX),
        chain: Chain::from_hash([1; 32]),
        acl_head: AclId::from_hash([1; 32]),
        epoch: Epoch(u32::MAX),
        durable: true,
        at_ms: u64::MAX,
        nonce: Some([1; 16]),
        prev: Some([1; 32]),
        set_digest: Some([1; 32]),
        trees: trees(n).into_iter().map(|t| (t, [1; 32])).collect(),
    };
    let sign = |n| Verified::sign(&receipt(n), &node, None);
    assert!(sign(limits::RECEIPT_TREES_MAX).is_ok());
    assert_eq!(field(sign(limits::RECEIPT_TREES_MAX + 1)), "trees");
    let largest = sign(0).unwrap();
    assert!(largest.raw().wire_bytes() <= limits::RECEIPT_BYTES_MAX, "{}", largest.raw().wire_bytes());
    let certificate = NodeCertificate { authority: authority(), node: receipt(0).node, not_before_ms: 0 };
    assert!(SignedReceipt::pair(largest, Verified::sign(&certificate, &key(200), None).unwrap()).is_ok());
}

fn token(addresses: Vec<String>, spaces: usize) -> Result<Verified<InviteToken>, VerifyError> {
    let space = InvitedSpace {
        space: SpaceId::from_hash([1; 32]),
        invite_secret: [1; 32],
        mode: InviteMode::Approval,
        role: Role::Writer,
        must_see: Vec::new(),
        receipt: None,
    };
    let token = InviteToken {
        authority: authority(),
        addresses,
        spaces: vec![space; spaces],
        inviter: account(1),
        created_ms: 1,
        expires_ms: 0,
    };
    Verified::sign(&token, &key(1), None)
}

#[test]
fn tokens_that_can_be_made_can_be_read() {
    assert!(token(vec![String::new(); 16], 64).is_ok());
    assert_eq!(field(token(vec![String::new(); 17], 1)), "addresses");
    assert_eq!(field(token(Vec::new(), 65)), "spaces");
    assert_eq!(field(token(Vec::new(), 0)), "spaces");
    let long = |bytes: usize| token(vec!["x".repeat(bytes)], 1);
    let max = limits::TOKEN_BODY_BYTES_MAX;
    let slack = max - long(30_000).unwrap().raw().body.len();
    let at_limit = long(30_000 + slack).unwrap();
    assert_eq!(at_limit.raw().body.len(), max);
    let text = token_to_text(&at_limit);
    assert!(text.len() <= limits::TOKEN_CHARS_MAX);
    assert_eq!(token_from_text(&text), Ok(at_limit));
    assert_eq!(too_large(long(30_001 + slack)), (max + 1, max));
    assert_eq!(<InviteToken as Body>::KIND.body_bytes_max(), max);
}

#[test]
fn members_of_a_space() {
    let mut space = Space::new();
    let member = |n: usize| {
        let account = AccountId::from(&numbered_key(n).verifying_key());
        (account, Role::Reader, seal_to(account.as_bytes()))
    };
    // The owner is one of them.
    space.act(OWNER, AclContent::AddMembers { members: (1..limits::MEMBERS_MAX).map(member).collect() });
    assert_eq!(space.log.acl_state().members.len(), limits::MEMBERS_MAX);
    let one_more = space.acl(OWNER, AclContent::AddMembers { members: vec![member(limits::MEMBERS_MAX)] });
    let full = Reject::Acl(AclReject::LimitReached { what: "members", max: limits::MEMBERS_MAX });
    assert_eq!(space.take(&one_more), Err(full));
    let rotation = space.rotation(&[]);
    assert_eq!(rotation.seals.len(), limits::MEMBERS_MAX);
    space.act(OWNER, AclContent::RotateKey { rotation });
}

#[test]
fn live_invites_of_a_space() {
    let mut space = Space::new();
    let invite = |n: usize| {
        let mut invite = Space::invite(50, InviteMode::Approval, Role::Writer);
        invite.key = InviteId::from(&numbered_key(n).verifying_key());
        AclContent::CreateInvite(invite)
    };
    for n in 0..limits::INVITES_MAX {
        space.act(OWNER, invite(n));
    }
    let one_more = space.acl(OWNER, invite(limits::INVITES_MAX));
    let full = Reject::Acl(AclReject::LimitReached { what: "live invites", max: limits::INVITES_MAX });
    assert_eq!(space.take(&one_more), Err(full));
    let first = InviteId::from(&numbered_key(0).verifying_key());
    space.act(OWNER, AclContent::RevokeInvite { invite: first, rotation: None });
    space.act(OWNER, invite(limits::INVITES_MAX));
}

#[test]
fn pending_requests_of_a_space() {
    let mut space = Space::new();
    space.act(OWNER, AclContent::CreateInvite(Space::invite(50, InviteMode::Approval, Role::Writer)));
    let request = |space: &Space, n: usize| {
        let signing = numbered_key(n);
        let account = AccountId::from(&signing.verifying_key());
        let proof = sign_join_proof(&key(50), space.id(), account, Role::Writer);
        let claim = JoinClaim { invite: invite_id(50), account, role: Role::Writer, proof, profile_ct: Bytes::new() };
        let acl = space.log.acl_state();
        let record = AclRecord {
            space: acl.space,
            prev: acl.head,
            index: acl.index + 1,
            author: account,
            at_ms: 1,
            seen: None,
            contents: vec![AclContent::RequestJoin { claim }],
        };
        sync_core::log::Submission::Acl(Verified::sign(&record, &signing, None).unwrap())
    };
    for n in 0..limits::REQUESTS_MAX {
        let asked = request(&space, n);
        space.take(&asked).unwrap();
    }
    let one_more = request(&space, limits::REQUESTS_MAX);
    let full = Reject::Acl(AclReject::LimitReached { what: "pending requests", max: limits::REQUESTS_MAX });
    assert_eq!(space.take(&one_more), Err(full));
    let declined = *space.log.acl_state().requests.keys().next().unwrap();
    space.act(OWNER, AclContent::DeclineJoin { request: declined });
    let one_more = request(&space, limits::REQUESTS_MAX);
    assert!(space.take(&one_more).is_ok());
}
