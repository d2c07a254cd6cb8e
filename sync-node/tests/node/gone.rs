//! What was ended for good: a purged tree, a deleted space. The log goes on telling of it; the content is gone.

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::TreeId;
use sync_core::pb;
use sync_core::record::{AclContent, Kind, RawRecord, Role, Tombstone, Verified};
use sync_node::{Node, NodeConfig};
use sync_proto::v1::{
    AclReadRequest, CertifyRequest, FetchRequest, HeadUpdatesRequest, PushItem, acl_read_entry, head_updates_request,
    head_updates_response, log_entry,
};

use crate::common::{Caller, Person, Space, Stage, code, item, refusal};

fn tombstone(space: &Space, author: &Person, tree: TreeId) -> Verified<Tombstone> {
    let body = Tombstone { tree, author: author.account(), acl_head: space.acl_head, at_ms: 9 };
    Verified::sign(&body, &author.key, None).unwrap()
}

/// The records of the log up to `last`, as a subscriber gets them.
async fn log_of(caller: &mut Caller, space: &Space, last: u64) -> Vec<RawRecord> {
    let subscribe = head_updates_request::Message::Subscribe(space.subscribe(0));
    let sent = tokio_stream::iter([HeadUpdatesRequest { message: Some(subscribe) }]);
    let request = caller.request(tokio_stream::StreamExt::chain(sent, tokio_stream::pending()));
    let mut frames = caller.client.head_updates(request).await.unwrap().into_inner();
    let mut records = Vec::new();
    while (records.len() as u64) < last {
        match frames.message().await.unwrap().unwrap().message.unwrap() {
            head_updates_response::Message::Update(update) => {
                for entry in update.entries {
                    let log_entry::Entry::Record(record) = entry.entry.unwrap() else {
                        panic!("pushed by nobody here")
                    };
                    records.push(RawRecord::try_from(record).unwrap());
                }
            }
            head_updates_response::Message::Subscribed(_)
            | head_updates_response::Message::Durable(_)
            | head_updates_response::Message::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_gets_a_purged_tree_without_its_content_and_then_the_tombstone() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    stage.add(&bob, Role::Reader).await;
    let (tree, changes) = stage.write(1, &["one", "two"]).await;
    let (other, _) = stage.write(2, &["stays"]).await;
    let ended = tombstone(&stage.space, &alice, tree);
    let ended = PushItem { tag: 1, root: None, record: Some(ended.raw().clone().into()) };
    for verdict in stage.alice.push(stage.space.id, vec![ended.clone(), ended]).await {
        assert_eq!(refusal(&verdict), None, "the second one is known");
    }

    let mut late = Caller::connect(&stage.node, &bob).await;
    let records = log_of(&mut late, &stage.space, 9).await;
    let told: Vec<_> = records.iter().map(|r| (r.kind, r.payload.as_deref())).skip(3).collect();
    let expected: [(Kind, Option<&[u8]>); 6] = [
        (Kind::TreeRoot, None),
        (Kind::TreeChange, None),
        (Kind::TreeChange, None),
        (Kind::TreeRoot, None),
        (Kind::TreeChange, Some(b"stays")),
        (Kind::Tombstone, None),
    ];
    assert_eq!(told, expected);
    assert_eq!([4, 5].map(|n| records[n].id()), [changes[0].into(), changes[1].into()], "the signed part is whole");

    let trees = [tree, other].map(|tree| pb::TreeHeads { tree: tree.to_bytes(), heads: Vec::new() });
    let request = late.request(FetchRequest { space: stage.space.id.to_bytes(), trees: trees.to_vec() });
    let mut fetched = late.client.fetch(request).await.unwrap().into_inner();
    let entries = fetched.message().await.unwrap().unwrap().entries;
    let payloads: Vec<_> = entries.iter().map(|e| e.record.as_ref().unwrap().payload.is_some()).collect();
    assert_eq!(payloads, [false, false, false, false, false, true], "root, changes, tombstone; root, change");

    let nonce = Bytes::from_static(&[1; 16]);
    let certify = CertifyRequest { space: stage.space.id.to_bytes(), nonce, ..CertifyRequest::default() };
    let request = late.request(certify);
    late.client.certify(request).await.unwrap();
    let revived = stage.space.change(&alice, tree, vec![changes[1]], "no way back");
    let verdicts = stage.alice.push(stage.space.id, vec![item(1, None, &revived)]).await;
    assert_eq!(refusal(&verdicts[0]), Some(Code::TreePurged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_space_tells_its_members_so_and_takes_nothing() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    stage.add(&bob, Role::Writer).await;
    let (tree, changes) = stage.write(1, &["one"]).await;
    let ended = stage.space.acl(&alice, AclContent::DeleteSpace);
    stage.alice.append(stage.space.id, &ended).await.unwrap();

    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let records = log_of(&mut on_line, &stage.space, 6).await;
    assert!(records.iter().all(|record| record.payload.is_none()));
    assert_eq!(records[5].id(), ended.id());
    let space = stage.space.id.to_bytes();
    let request = on_line.request(AclReadRequest { space, from_seq: 0, follow: false, invite_proof: None });
    let mut read = on_line.client.acl_read(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = read.message().await.unwrap() {
        last = answer.entries.into_iter().last().or(last);
    }
    assert!(matches!(last.unwrap().entry, Some(acl_read_entry::Entry::Acl(record)) if record.body == ended.raw().body));

    // Also what the node would have conditions for: nothing that comes later changes the answer.
    let root = stage.space.tree(2);
    let first = stage.space.first_change(&bob, &root, "new");
    let mut bare = item(3, Some(&root), &first);
    bare.record.as_mut().unwrap().payload = None;
    let items = vec![
        item(1, None, &stage.space.change(&bob, tree, vec![changes[0]], "more")),
        item(2, Some(&root), &first),
        bare,
        PushItem { tag: 4, root: None, record: Some(tombstone(&stage.space, &bob, tree).raw().clone().into()) },
    ];
    for verdict in on_line.push(stage.space.id, items).await {
        assert_eq!(refusal(&verdict), Some(Code::SpaceDeleted), "{}", verdict.tag);
    }
    let leave = stage.space.acl(&bob, AclContent::Leave);
    assert_eq!(code(&on_line.append(stage.space.id, &leave).await.unwrap_err()), Code::SpaceDeleted);
    // What stands in the log is known, as ever.
    stage.alice.append(stage.space.id, &ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_space_does_not_count_for_who_founded_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = || NodeConfig { plaintext: true, max_spaces_per_account: 1, ..NodeConfig::on_loopback(dir.path()) };
    let node = Node::start(config()).await.unwrap();
    let authority = node.address().authority;
    let (alice, bob) = (Person::new(1), Person::new(2));
    let mut on_line = Caller::connect(&node, &alice).await;
    let mut first = Space::found(&alice, authority, 1);
    let beginning = first.clone();
    let second = Space::found(&alice, authority, 2);
    on_line.push_space(&first).await.unwrap();
    assert_eq!(code(&on_line.push_space(&second).await.unwrap_err()), Code::SpaceCreationRefused);

    // Another owner deletes it; it was Alice who founded it.
    let added = first.add(&alice, &bob, Role::Admin);
    on_line.append(first.id, &added).await.unwrap();
    let handed = first.acl(&alice, AclContent::TransferOwnership { account: bob.account() });
    on_line.append(first.id, &handed).await.unwrap();
    let mut of_bob = Caller::connect(&node, &bob).await;
    let ended = first.acl(&bob, AclContent::DeleteSpace);
    of_bob.append(first.id, &ended).await.unwrap();
    of_bob.append(first.id, &ended).await.unwrap();
    of_bob.push_space(&Space::found(&bob, authority, 4)).await.unwrap();
    assert_eq!(
        code(&of_bob.push_space(&Space::found(&bob, authority, 5)).await.unwrap_err()),
        Code::SpaceCreationRefused
    );

    on_line.push_space(&second).await.unwrap();
    // Founding the deleted one again founds nothing, and counts nothing.
    on_line.push_space(&beginning).await.unwrap();
    let third = Space::found(&alice, authority, 3);
    assert_eq!(code(&on_line.push_space(&third).await.unwrap_err()), Code::SpaceCreationRefused);
    node.shutdown().await;
}
