//! SpacePush, SpacePull, AclRead, AclAppend, and who may read.

use crate::common::{Caller, Person, Space, Stage, code, invite_id, key};
use sync_core::code::Code;
use sync_core::ids::{AuthorityId, Seq};
use sync_core::record::{AclContent, JoinClaim, Role};
use sync_node::{Node, NodeConfig};
use sync_proto::v1::{
    AclReadEntry, AclReadRequest, CertifyRequest, FetchRequest, HeadSyncOpen, HeadSyncRequest, HeadUpdatesRequest,
    InviteProof, PushRequest, SpacePullRequest, acl_read_entry, head_sync_request, head_updates_request,
    head_updates_response, verdict,
};
use tonic::Status;

async fn acl_read(
    caller: &mut Caller,
    space: &Space,
    invite_proof: Option<InviteProof>,
) -> Result<Vec<AclReadEntry>, Status> {
    let request = AclReadRequest { space: space.id.to_bytes(), from_seq: 0, follow: false, invite_proof };
    let request = caller.request(request);
    let mut answers = caller.client.acl_read(request).await?.into_inner();
    let mut entries = Vec::new();
    let mut first = true;
    while let Some(answer) = answers.message().await? {
        assert_eq!(answer.header.is_some(), first, "the first message carries the header");
        first = false;
        entries.extend(answer.entries);
    }
    Ok(entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_a_space_twice_is_founding_it_once() {
    let mut stage = Stage::new().await;
    let first = stage.alice.push_space(&stage.space).await.unwrap();
    stage.write(1, &["one"]).await;
    let second = stage.alice.push_space(&stage.space).await.unwrap();
    assert_eq!((first.seq, first.durable_seq), (2, 2));
    assert_eq!(second.seq, 4);
    assert_eq!(first.history, second.history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_who_is_no_member_any_more_founds_nothing_again() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (stage.alice.person.clone(), Person::new(2));
    stage.add(&bob, Role::Admin).await;
    let beginning = stage.space.clone();
    let handed = stage.space.acl(&alice, AclContent::TransferOwnership { account: bob.account() });
    stage.alice.append(stage.space.id, &handed).await.unwrap();
    let left = stage.space.acl(&alice, AclContent::Leave);
    stage.alice.append(stage.space.id, &left).await.unwrap();
    assert_eq!(code(&stage.alice.push_space(&beginning).await.unwrap_err()), Code::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_readable_although_the_invite_did_not_outlive_it() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (stage.alice.person.clone(), Person::new(2));
    let invite = key(41);
    let created = stage.space.invite(&alice, &invite, None);
    stage.alice.append(stage.space.id, &created).await.unwrap();
    let proof = sync_core::acl::sign_join_proof(&invite, stage.space.id, bob.account(), Role::Writer);
    let (invite_id, account, role) = (invite_id(&invite), bob.account(), Role::Writer);
    let claim = JoinClaim { invite: invite_id, account, role, proof, profile_ct: bytes::Bytes::new() };
    let asked = stage.space.acl(&bob, AclContent::RequestJoin { claim });
    let mut bob = Caller::connect(&stage.node, &bob).await;
    bob.append(stage.space.id, &asked).await.unwrap();
    let declined = stage.space.acl(&alice, AclContent::DeclineJoin { request: asked.id().into() });
    let revoked = stage.space.acl(&alice, AclContent::RevokeInvite { invite: invite_id, rotation: None });
    stage.alice.append(stage.space.id, &declined).await.unwrap();
    stage.alice.append(stage.space.id, &revoked).await.unwrap();
    let ticket = bob.invite_proof(&invite, stage.space.id);
    let entries = acl_read(&mut bob, &stage.space, Some(ticket)).await.unwrap();
    assert_eq!(entries.last().unwrap().seq, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_reads_the_acl_up_to_its_leaving_and_is_not_told_where_the_log_stands() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    stage.add(&bob, Role::Writer).await;
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let left = stage.space.acl(&bob, AclContent::Leave);
    on_line.append(stage.space.id, &left).await.unwrap();
    stage.write(1, &["after"]).await;
    let again = stage.space.clone().acl(&bob, AclContent::Leave);
    stage.add(&Person::new(3), Role::Reader).await;

    let entries = acl_read(&mut on_line, &stage.space, None).await.unwrap();
    assert_eq!(entries.last().map(|entry| entry.seq), Some(4));
    let request = on_line.request(SpacePullRequest { space: stage.space.id.to_bytes(), invite_proof: None });
    let pulled = on_line.client.space_pull(request).await.unwrap().into_inner().position.unwrap();
    assert_eq!((pulled.seq, pulled.durable_seq), (4, 4));
    let conflict = on_line.append(stage.space.id, &again).await.unwrap_err();
    let failure = sync_proto::status::Failure::from_status(&conflict).unwrap();
    assert_eq!((failure.code, failure.log_seq, failure.acl_head), (Code::AclConflict, Seq::ZERO, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beyond_every_log_is_beyond_the_end() {
    let mut stage = Stage::new().await;
    let space = stage.space.id.to_bytes();
    let request = AclReadRequest { space, from_seq: u64::MAX, follow: false, invite_proof: None };
    let request = stage.alice.request(request);
    let mut answers = stage.alice.client.acl_read(request).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(answer.entries.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_that_began_otherwise_is_a_conflict() {
    let mut stage = Stage::new().await;
    let mut other = stage.space.clone();
    let home = AclContent::SetHome { authority: stage.node.address().authority };
    let contents = vec![home.clone()];
    other.set_home = {
        let body = sync_core::record::AclRecord { at_ms: 999, contents, ..stage.space.set_home.body().clone() };
        sync_core::record::Verified::sign(&body, &stage.alice.person.key, None).unwrap()
    };
    assert_eq!(code(&stage.alice.push_space(&other).await.unwrap_err()), Code::AclConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_only_spaces_of_its_authority_and_of_the_caller() {
    let mut stage = Stage::new().await;
    let elsewhere = Space::found(&stage.alice.person, AuthorityId::from(&key(77).verifying_key()), 9);
    assert_eq!(code(&stage.alice.push_space(&elsewhere).await.unwrap_err()), Code::NotHome);
    let of_bob = Space::found(&Person::new(2), stage.node.address().authority, 9);
    assert_eq!(code(&stage.alice.push_space(&of_bob).await.unwrap_err()), Code::SpaceCreationRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_founds_so_many_spaces_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig { plaintext: true, max_spaces_per_account: 2, ..NodeConfig::on_loopback(dir.path()) };
    let node = Node::start(config).await.unwrap();
    let mut alice = Caller::connect(&node, &Person::new(1)).await;
    let space = |n| Space::found(&Person::new(1), node.address().authority, n);
    alice.push_space(&space(1)).await.unwrap();
    alice.push_space(&space(2)).await.unwrap();
    alice.push_space(&space(2)).await.unwrap();
    assert_eq!(code(&alice.push_space(&space(3)).await.unwrap_err()), Code::SpaceCreationRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn knowing_an_id_is_worth_nothing() {
    let mut stage = Stage::new().await;
    let (tree, _) = stage.write(1, &["one"]).await;
    let space = stage.space.id.to_bytes();
    let mut mallory = Caller::connect(&stage.node, &Person::new(9)).await;

    let request = mallory.request(SpacePullRequest { space: space.clone(), invite_proof: None });
    assert_eq!(code(&mallory.client.space_pull(request).await.unwrap_err()), Code::Forbidden);
    assert_eq!(code(&acl_read(&mut mallory, &stage.space, None).await.unwrap_err()), Code::Forbidden);

    let trees = vec![sync_core::pb::TreeHeads { tree: tree.to_bytes(), heads: Vec::new() }];
    let request = mallory.request(FetchRequest { space: space.clone(), trees });
    let mut fetched = mallory.client.fetch(request).await.unwrap().into_inner();
    assert_eq!(code(&fetched.message().await.unwrap_err()), Code::Forbidden);

    let nonce = bytes::Bytes::from_static(&[1; 16]);
    let request = mallory.request(CertifyRequest { space: space.clone(), nonce, ..CertifyRequest::default() });
    assert_eq!(code(&mallory.client.certify(request).await.unwrap_err()), Code::Forbidden);

    let open = HeadSyncOpen { space: space.clone(), seq: 4, digest: bytes::Bytes::from_static(&[0; 32]) };
    let open = HeadSyncRequest { message: Some(head_sync_request::Message::Open(open)) };
    let request = mallory.request(tokio_stream::iter([open]));
    let mut compared = mallory.client.head_sync(request).await.unwrap().into_inner();
    assert_eq!(code(&compared.message().await.unwrap_err()), Code::Forbidden);

    let subscribe = head_updates_request::Message::Subscribe(stage.space.subscribe(0));
    let request = mallory.request(tokio_stream::iter([HeadUpdatesRequest { message: Some(subscribe) }]));
    // The caller's half is open as long as the test: a stream that ends ends its subscriptions.
    let (metadata, extensions, sent) = request.into_parts();
    let sent = tokio_stream::StreamExt::chain(sent, tokio_stream::pending());
    let request = tonic::Request::from_parts(metadata, extensions, sent);
    let mut tail = mallory.client.head_updates(request).await.unwrap().into_inner();
    match tail.message().await.unwrap().unwrap().message.unwrap() {
        head_updates_response::Message::Refused(refused) => {
            assert_eq!(refused.error.unwrap().code, Code::Forbidden.number());
        }
        other => panic!("{other:?}"),
    }

    let root = stage.space.tree(7);
    let change = stage.space.first_change(&mallory.person, &root, "mine");
    let request = PushRequest { space: space.clone(), items: vec![crate::common::item(1, Some(&root), &change)] };
    let request = mallory.request(tokio_stream::iter([request]));
    let mut pushed = mallory.client.push(request).await.unwrap().into_inner();
    let verdicts = pushed.message().await.unwrap().unwrap().verdicts;
    match verdicts[0].outcome.as_ref().unwrap() {
        verdict::Outcome::Rejected(detail) => assert_eq!(detail.code, Code::Forbidden.number()),
        other => panic!("{other:?}"),
    }

    // Not even where the ACL stands.
    let stale = crate::common::acl_record(
        &mallory.person,
        stage.space.id,
        stage.space.root.id().into(),
        1,
        vec![AclContent::Leave],
    );
    let refused = mallory.append(stage.space.id, &stale).await.unwrap_err();
    let failure = sync_proto::status::Failure::from_status(&refused).unwrap();
    assert_eq!((failure.code, failure.acl_head, failure.log_seq.0), (Code::AclConflict, None, 0));
    assert!(!failure.message.contains("acl_"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_space_is_unknown() {
    let mut stage = Stage::new().await;
    let elsewhere = Space::found(&stage.alice.person, stage.node.address().authority, 99);
    assert_eq!(code(&acl_read(&mut stage.alice, &elsewhere, None).await.unwrap_err()), Code::SpaceUnknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_acl_is_read_in_full_and_the_rest_as_ids() {
    let mut stage = Stage::new().await;
    stage.write(1, &["one", "two"]).await;
    stage.add(&Person::new(2), Role::Writer).await;
    let mut bob = Caller::connect(&stage.node, &Person::new(2)).await;
    let entries = acl_read(&mut bob, &stage.space, None).await.unwrap();
    let seqs: Vec<_> = entries.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    let full: Vec<_> = entries.iter().map(|e| matches!(e.entry, Some(acl_read_entry::Entry::Acl(_)))).collect();
    assert_eq!(full, [true, true, false, false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_reads_up_to_its_removal() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    stage.add(&bob, Role::Writer).await;
    let removal = stage.space.remove(&stage.alice.person, &bob, &[&stage.alice.person.clone()]);
    stage.alice.append(stage.space.id, &removal).await.unwrap();
    stage.add(&Person::new(3), Role::Reader).await;
    let mut bob = Caller::connect(&stage.node, &bob).await;
    let entries = acl_read(&mut bob, &stage.space, None).await.unwrap();
    assert_eq!(entries.last().unwrap().seq, 4);
    let request = bob.request(SpacePullRequest { space: stage.space.id.to_bytes(), invite_proof: None });
    assert_eq!(bob.client.space_pull(request).await.unwrap().into_inner().position.unwrap().seq, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_live_invite_reads_the_acl_and_of_a_dead_one_learns_why_not() {
    let mut stage = Stage::new().await;
    let (good, expired, revoked, unknown) = (key(201), key(202), key(203), key(204));
    let admin = stage.alice.person.clone();
    let records = [
        stage.space.invite(&admin, &good, None),
        stage.space.invite(&admin, &expired, Some(1)),
        stage.space.invite(&admin, &revoked, None),
        stage.space.acl(&admin, AclContent::RevokeInvite { invite: invite_id(&revoked), rotation: None }),
    ];
    for record in &records {
        stage.alice.append(stage.space.id, record).await.unwrap();
    }
    let mut bob = Caller::connect(&stage.node, &Person::new(2)).await;
    let mut read = async |invite: &ed25519_dalek::SigningKey| {
        let proof = bob.invite_proof(invite, stage.space.id);
        acl_read(&mut bob, &stage.space, Some(proof)).await.map(|entries| entries.len()).map_err(|e| code(&e))
    };
    assert_eq!(read(&good).await, Ok(6));
    assert_eq!(read(&expired).await, Err(Code::InviteExpired));
    assert_eq!(read(&revoked).await, Err(Code::InviteRevoked));
    assert_eq!(read(&unknown).await, Err(Code::InviteUnknown));
    // Another session's proof is no proof of this one.
    let alices = stage.alice.invite_proof(&good, stage.space.id);
    assert_eq!(
        acl_read(&mut bob, &stage.space, Some(alices)).await.map_err(|e| code(&e)).err(),
        Some(Code::BadInviteProof)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_follows_is_shown_what_comes() {
    let mut stage = Stage::new().await;
    let request = AclReadRequest { space: stage.space.id.to_bytes(), from_seq: 2, follow: true, invite_proof: None };
    let request = stage.alice.request(request);
    let mut answers = stage.alice.client.acl_read(request).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().header.is_some());
    assert_eq!(answers.message().await.unwrap().unwrap().complete_to_seq, 2);
    stage.add(&Person::new(2), Role::Writer).await;
    let shown = answers.message().await.unwrap().unwrap();
    assert_eq!((shown.entries.len(), shown.complete_to_seq), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn acl_appends_compare_before_they_append() {
    let mut stage = Stage::new().await;
    let (bob, carol) = (Person::new(2), Person::new(3));
    let mut fork = stage.space.clone();
    let admin = stage.alice.person.clone();
    let first = stage.space.add(&admin, &bob, Role::Writer);
    let second = fork.add(&admin, &carol, Role::Writer);
    stage.alice.append(stage.space.id, &first).await.unwrap();
    stage.alice.append(stage.space.id, &first).await.unwrap();
    let conflict = stage.alice.append(stage.space.id, &second).await.unwrap_err();
    assert_eq!(conflict.code(), tonic::Code::Aborted);
    let failure = sync_proto::status::Failure::from_status(&conflict).unwrap();
    assert_eq!((failure.code, failure.acl_head), (Code::AclConflict, Some(stage.space.acl_head)));
}
