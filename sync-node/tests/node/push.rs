//! Push: one verdict each, and a bad record never blocks its neighbours.

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{AclId, ChangeId, TreeId};
use sync_core::pb;
use sync_core::record::{AclContent, Role, Verified};
use sync_proto::v1::{AclAppendRequest, PushItem, PushRequest, verdict};

use crate::common::{Caller, Person, Space, Stage, code, item, refusal};

fn bent(good: &PushItem, tag: u64, bend: impl FnOnce(&mut pb::SignedRecord)) -> PushItem {
    let mut bad = PushItem { tag, ..good.clone() };
    bend(bad.record.as_mut().unwrap());
    bad
}

/// The same message in another order of bytes: field 2 before field 1.
fn reordered(body: &Bytes) -> Bytes {
    let first = 2 + usize::from(body[1]);
    [&body[first..], &body[..first]].concat().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_has_its_own_verdict() {
    let mut stage = Stage::new().await;
    let (alice, reader, stranger) = (Person::new(1), Person::new(2), Person::new(3));
    stage.add(&reader, Role::Reader).await;
    let space = stage.space.clone();
    let elsewhere = Space::found(&alice, stage.node.address().authority, 9);
    stage.alice.push_space(&elsewhere).await.unwrap();

    let root = space.tree(1);
    let tree = TreeId::from(root.id());
    let first = space.first_change(&alice, &root, "first");
    let good = item(0, Some(&root), &first);
    let second = space.change(&alice, tree, vec![first.id().into()], "second");
    let lost_parent = space.change(&alice, tree, vec![ChangeId::from_hash([5; 32])], "orphan");
    let other_root = space.tree(2);
    let rootless = space.first_change(&alice, &other_root, "no root");
    let mut unknown_acl = space.clone();
    unknown_acl.acl_head = AclId::from_hash([6; 32]);
    let unknown_acl = unknown_acl.change(&alice, tree, vec![first.id().into()], "from the future");
    let foreign_root = elsewhere.tree(3);
    let replayed = elsewhere.first_change(&alice, &foreign_root, "of another space");
    let acl_of_stranger = crate::common::acl_record(&stranger, space.id, space.acl_head, 3, vec![AclContent::Leave]);

    let good_second = item(1, None, &second);
    let items = vec![
        good.clone(),
        bent(&good_second, 2, |r| r.body = Bytes::from_static(&[0xff, 0xff, 0xff])),
        bent(&good_second, 3, |r| r.body = reordered(&r.body)),
        bent(&good_second, 4, |r| r.signature = Bytes::from_static(&[9; 64])),
        bent(&good_second, 5, |r| r.payload = Some(Bytes::from_static(b"other"))),
        bent(&good_second, 6, |r| r.payload = None),
        bent(&good_second, 7, |r| r.kind = 99),
        bent(&good_second, 8, |r| r.version = 2),
        PushItem { tag: 9, root: None, record: None },
        item(10, Some(&foreign_root), &replayed),
        item(11, None, &rootless),
        item(12, None, &lost_parent),
        item(13, None, &unknown_acl),
        item(14, None, &space.change(&reader, tree, vec![first.id().into()], "by a reader")),
        item(15, None, &space.change(&stranger, tree, vec![first.id().into()], "by a stranger")),
        PushItem { tag: 16, root: None, record: Some(acl_of_stranger.raw().clone().into()) },
        PushItem { tag: 17, root: None, record: Some(space.header.raw().clone().into()) },
        PushItem { tag: 18, ..good_second.clone() },
        PushItem { tag: 19, ..good.clone() },
    ];
    let verdicts = stage.alice.push(space.id, items).await;
    let codes: Vec<_> = verdicts.iter().map(|v| (v.tag, refusal(v))).collect();
    let expected = [
        (0, None),
        (2, Some(Code::Malformed)),
        (3, Some(Code::NonCanonical)),
        (4, Some(Code::BadSignature)),
        (5, Some(Code::BadPayload)),
        (6, Some(Code::PayloadMissing)),
        (7, Some(Code::UnknownKind)),
        (8, Some(Code::UnknownVersion)),
        (9, Some(Code::Malformed)),
        (10, Some(Code::WrongSpace)),
        (11, Some(Code::MissingRoot)),
        (12, Some(Code::MissingParent)),
        (13, Some(Code::UnknownAclHead)),
        (14, Some(Code::NotAWriter)),
        (15, Some(Code::NotAMember)),
        (16, Some(Code::NotAMember)),
        (17, Some(Code::UnknownKind)),
        (18, None),
        (19, None),
    ];
    assert_eq!(codes, expected);
    let positions: Vec<_> = verdicts.iter().filter_map(|v| v.outcome.as_ref()).filter_map(position).collect();
    assert_eq!(positions, [("accepted", 5), ("accepted", 6), ("known", 5)]);
    for verdict in &verdicts {
        if let Some(verdict::Outcome::Rejected(detail)) = &verdict.outcome {
            assert!((3..=5).contains(&detail.log_seq), "{detail:?}");
        }
    }
}

fn position(outcome: &verdict::Outcome) -> Option<(&'static str, u64)> {
    match outcome {
        verdict::Outcome::Accepted(accepted) => Some(("accepted", accepted.seq)),
        verdict::Outcome::Known(known) => Some(("known", known.seq)),
        verdict::Outcome::Rejected(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acl_records_travel_with_changes() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    let root = stage.space.tree(1);
    let change = stage.space.first_change(&alice, &root, "one");
    let addition = stage.space.add(&alice, &bob, Role::Writer);
    let addition = PushItem { tag: 2, root: None, record: Some(addition.raw().clone().into()) };
    let verdicts = stage.alice.push(stage.space.id, vec![item(1, Some(&root), &change), addition]).await;
    assert_eq!(verdicts.iter().map(refusal).collect::<Vec<_>>(), [None, None]);
    let mut bob = Caller::connect(&stage.node, &bob).await;
    let tree = TreeId::from(root.id());
    let reply = stage.space.change(&bob.person, tree, vec![change.id().into()], "two");
    let verdicts = bob.push(stage.space.id, vec![item(1, None, &reply)]).await;
    assert_eq!(refusal(&verdicts[0]), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_too_many_items_ends_the_stream() {
    let mut stage = Stage::new().await;
    let items = vec![PushItem::default(); sync_core::limits::PUSH_ITEMS_MAX + 1];
    let request = PushRequest { space: stage.space.id.to_bytes(), items };
    let request = stage.alice.request(tokio_stream::iter([request]));
    let mut answers = stage.alice.client.push(request).await.unwrap().into_inner();
    assert_eq!(code(&answers.message().await.unwrap_err()), Code::TooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_stays_when_the_caller_hangs_up() {
    let mut stage = Stage::new().await;
    let root = stage.space.tree(1);
    let change = stage.space.first_change(&stage.alice.person, &root, "one");
    let request = PushRequest { space: stage.space.id.to_bytes(), items: vec![item(1, Some(&root), &change)] };
    let request = stage.alice.request(tokio_stream::iter([request]));
    let answers = stage.alice.client.push(request).await.unwrap();
    // Whether the node got the message before the hang-up is open; what it took must be whole.
    drop(answers);
    let again = stage.alice.push(stage.space.id, vec![item(1, Some(&root), &change)]).await;
    assert_eq!(refusal(&again[0]), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_by_somebody_else_is_appended_for_members_only() {
    let mut stage = Stage::new().await;
    let (alice, bob, mallory) = (Person::new(1), Person::new(2), Person::new(9));
    let addition: Verified<_> = stage.space.add(&alice, &bob, Role::Reader);
    let mut mallory = Caller::connect(&stage.node, &mallory).await;
    let request = mallory.request(AclAppendRequest {
        space: stage.space.id.to_bytes(),
        record: Some(addition.raw().clone().into()),
        invite_proof: None,
    });
    assert_eq!(code(&mallory.client.acl_append(request).await.unwrap_err()), Code::Forbidden);
    stage.alice.append(stage.space.id, &addition).await.unwrap();
}
