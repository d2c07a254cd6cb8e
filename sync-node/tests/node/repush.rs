//! What a node lost comes back: from whoever holds its receipt, in its old order, and nothing else.

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{ChangeId, EntryId, Seq, TreeId};
use sync_core::log::Position;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{RawRecord, Role, Tombstone, Verified};
use sync_node::{Node, NodeConfig};
use sync_proto::v1::{
    CertifyRequest, ChainPoint, RepushIds, RepushOpen, RepushRecords, RepushRequest, RepushResponse, repush_request,
    repush_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::common::{Caller, Person, Stage, code, item, refusal};

type Ask = repush_request::Message;
type Answer = repush_response::Message;

/// A node that had signed for a log, and another one with the same keys that has only its beginning.
struct Lost {
    stage: Stage,
    receipt: SignedReceipt,
    /// Of the whole log.
    records: Vec<RawRecord>,
    common: Position,
    restored: sync_node::RunningNode,
    _dir: tempfile::TempDir,
}

async fn certified(stage: &mut Stage) -> SignedReceipt {
    let challenge = stage.alice.client.open_session(stage.alice.person.hello()).await.unwrap().into_inner();
    let certificate = RawRecord::try_from(challenge.node_certificate.unwrap()).unwrap();
    let space = stage.space.id.to_bytes();
    let request = CertifyRequest { space, nonce: Bytes::from_static(&[6; 16]), ..CertifyRequest::default() };
    let receipt = stage.alice.client.certify(stage.alice.request(request)).await.unwrap().into_inner().receipt;
    SignedReceipt::verify(RawRecord::try_from(receipt.unwrap()).unwrap(), certificate).unwrap()
}

/// After what both nodes have, Alice writes, lets Bob in, purges what she wrote, and removes Bob.
async fn lost() -> Lost {
    let mut stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let keys = std::process::Command::new("cp").arg("-a").arg(stage.dir.path().join("keys")).arg(dir.path()).status();
    assert!(keys.unwrap().success());
    let config = NodeConfig { plaintext: true, ..NodeConfig::on_loopback(dir.path()) };
    let restored = Node::start(config).await.unwrap();
    Caller::connect(&restored, &stage.alice.person).await.push_space(&stage.space).await.unwrap();

    let (alice, bob) = (stage.alice.person.clone(), Person::new(2));
    let mut records = vec![stage.space.root.raw().clone(), stage.space.set_home.raw().clone()];
    let common = records.iter().fold(Position::start(&stage.space.id), |at, record| at.after(&record.id()));
    let (root, other) = (stage.space.tree(1), stage.space.tree(2));
    let first = stage.space.first_change(&alice, &root, "purged");
    let kept = stage.space.first_change(&alice, &other, "kept");
    let verdicts = vec![item(1, Some(&root), &first), item(2, Some(&other), &kept)];
    assert!(stage.alice.push(stage.space.id, verdicts).await.iter().all(|v| refusal(v).is_none()));
    let add = stage.space.add(&alice, &bob, Role::Writer);
    stage.alice.append(stage.space.id, &add).await.unwrap();
    let tombstone =
        Tombstone { tree: root.id().into(), author: alice.account(), acl_head: stage.space.acl_head, at_ms: 9 };
    let tombstone = Verified::sign(&tombstone, &alice.key, None).unwrap();
    let purge = sync_proto::v1::PushItem { tag: 3, root: None, record: Some(tombstone.raw().clone().into()) };
    assert_eq!(refusal(&stage.alice.push(stage.space.id, vec![purge]).await[0]), None);
    let remove = stage.space.remove(&alice, &bob, &[&alice]);
    stage.alice.append(stage.space.id, &remove).await.unwrap();
    let bare = RawRecord { payload: None, ..first.raw().clone() };
    records.extend([root.raw().clone(), bare, other.raw().clone(), kept.raw().clone()]);
    records.extend([add.raw().clone(), tombstone.raw().clone(), remove.raw().clone()]);
    let receipt = certified(&mut stage).await;
    let end = records.iter().fold(Position::start(&stage.space.id), |at, record| at.after(&record.id()));
    assert_eq!(receipt.position(), end);
    Lost { stage, receipt, records, common, restored, _dir: dir }
}

struct Stream {
    send: mpsc::Sender<RepushRequest>,
    answers: Streaming<RepushResponse>,
}

impl Stream {
    async fn open(caller: &mut Caller, lost: &Lost) -> Self {
        let (send, requests) = mpsc::channel(16);
        let request = caller.request(ReceiverStream::new(requests));
        let answers = caller.client.repush(request).await.unwrap().into_inner();
        let stream = Self { send, answers };
        let ladder = [lost.receipt.position(), lost.common].iter().map(ChainPoint::from).collect();
        let open =
            RepushOpen { space: lost.stage.space.id.to_bytes(), receipt: Some(lost.receipt.to_export()), ladder };
        stream.say(Ask::Open(open)).await;
        stream
    }

    async fn say(&self, message: Ask) {
        self.send.send(RepushRequest { message: Some(message) }).await.unwrap();
    }

    async fn answer(&mut self) -> Result<Answer, Code> {
        match self.answers.message().await {
            Ok(answer) => Ok(answer.unwrap().message.unwrap()),
            Err(status) => Err(code(&status)),
        }
    }

    /// Up to the point where records are wanted.
    async fn ready(&mut self, lost: &Lost) -> u64 {
        let Answer::Common(common) = self.answer().await.unwrap() else { panic!("common first") };
        self.say(Ask::Ids(ids(lost, common.common_seq))).await;
        let Answer::Ready(ready) = self.answer().await.unwrap() else { panic!("then ready") };
        ready.from_seq
    }

    async fn records(&mut self, records: &[RawRecord]) -> Result<u64, Code> {
        let records = records.iter().map(|record| record.clone().into()).collect();
        self.say(Ask::Records(RepushRecords { records })).await;
        match self.answer().await? {
            Answer::Taken(taken) => Ok(taken.seq),
            other => panic!("{other:?}"),
        }
    }
}

fn ids(lost: &Lost, after: u64) -> RepushIds {
    let after = usize::try_from(after).unwrap();
    let ids: Vec<EntryId> = lost.records[after..].iter().map(RawRecord::id).collect();
    let ends = lost.records[after..].iter().filter(|r| r.kind == sync_core::record::Kind::Tombstone);
    let ends = ends.map(|record| record.clone().into()).collect();
    RepushIds { ids: ids.iter().map(|id| id.to_bytes()).collect(), last: true, ends }
}

async fn end_of(node: &sync_node::RunningNode, lost: &Lost) -> (u64, Vec<u8>) {
    let mut alice = Caller::connect(node, &lost.stage.alice.person).await;
    let position = alice.push_space(&lost.stage.space).await.unwrap();
    (position.seq, position.chain.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_the_receipt_brings_it_back_and_the_chain_is_the_old_one() {
    let lost = lost().await;
    // Bob came and went in what is lost: to this node he is a stranger.
    let mut bob = Caller::connect(&lost.restored, &Person::new(2)).await;
    let mut stream = Stream::open(&mut bob, &lost).await;
    assert_eq!(stream.ready(&lost).await, 2);
    assert_eq!(stream.records(&lost.records[2..4]).await, Ok(4), "root and change");
    // Somebody else brings the same, from where they are.
    let mut carol = Caller::connect(&lost.restored, &Person::new(3)).await;
    let mut second = Stream::open(&mut carol, &lost).await;
    assert_eq!(second.ready(&lost).await, 4);
    assert_eq!(second.records(&lost.records[4..]).await, Ok(9));
    assert_eq!(stream.records(&lost.records[4..]).await, Ok(9), "what is there already is passed over");
    let expected = (9, lost.receipt.body().chain.as_bytes().to_vec());
    assert_eq!(end_of(&lost.restored, &lost).await, expected);

    let mut third = Stream::open(&mut carol, &lost).await;
    let Answer::Common(common) = third.answer().await.unwrap() else { panic!("common first") };
    assert_eq!(common.common_seq, 9, "nothing is lost any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_not_kept_back() {
    let lost = lost().await;
    let mut bob = Caller::connect(&lost.restored, &Person::new(2)).await;
    let mut stream = Stream::open(&mut bob, &lost).await;
    stream.ready(&lost).await;
    assert_eq!(stream.records(&lost.records[2..4]).await, Ok(4), "its tree is purged later");
    let kept = RawRecord { payload: None, ..lost.records[5].clone() };
    assert_eq!(stream.records(&[lost.records[4].clone(), kept.clone()]).await, Err(Code::PayloadMissing));
    assert_eq!(end_of(&lost.restored, &lost).await.0, 4);

    // A tombstone that is not among the lost entries ends nothing.
    let tree = TreeId::from(lost.records[4].id());
    let alice = &lost.stage.alice.person;
    let forged = Tombstone { tree, author: alice.account(), acl_head: lost.stage.space.acl_head, at_ms: 1 };
    let forged = Verified::sign(&forged, &alice.key, None).unwrap();
    let mut stream = Stream::open(&mut bob, &lost).await;
    stream.answer().await.unwrap();
    let mut all = ids(&lost, 2);
    all.ends.push(forged.raw().clone().into());
    stream.say(Ask::Ids(all)).await;
    assert_eq!(stream.answer().await.unwrap_err(), Code::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_leads_to_the_receipt_is_taken() {
    let lost = lost().await;
    let mut bob = Caller::connect(&lost.restored, &Person::new(2)).await;
    let refused = async |caller: &mut Caller, spoil: &dyn Fn(&mut RepushIds)| {
        let mut stream = Stream::open(caller, &lost).await;
        stream.answer().await.unwrap();
        let mut all = ids(&lost, 2);
        spoil(&mut all);
        stream.say(Ask::Ids(all)).await;
        stream.answer().await.unwrap_err()
    };
    let other = EntryId::from(ChangeId::from_hash([7; 32])).to_bytes();
    assert_eq!(refused(&mut bob, &|all| all.ids[3] = other.clone()).await, Code::LogDiverged);
    assert_eq!(refused(&mut bob, &|all| drop(all.ids.pop())).await, Code::LogDiverged);
    assert_eq!(refused(&mut bob, &|all| all.ids.push(other.clone())).await, Code::Malformed);

    let mut stream = Stream::open(&mut bob, &lost).await;
    stream.ready(&lost).await;
    let swapped = [lost.records[4].clone(), lost.records[5].clone()];
    assert_eq!(stream.records(&swapped).await, Err(Code::Malformed), "in the old order");
    let mut stream = Stream::open(&mut bob, &lost).await;
    stream.ready(&lost).await;
    assert_eq!(stream.records(&lost.records[2..3]).await, Err(Code::Malformed), "a root alone");
    assert_eq!(end_of(&lost.restored, &lost).await.0, 2, "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_another_way_takes_nothing_back() {
    let lost = lost().await;
    let mut alice = Caller::connect(&lost.restored, &lost.stage.alice.person).await;
    let root = lost.stage.space.tree(9);
    let space = space_before(&lost);
    let change = space.first_change(&lost.stage.alice.person, &root, "new");
    assert_eq!(refusal(&alice.push(space.id, vec![item(1, Some(&root), &change)]).await[0]), None);
    let mut bob = Caller::connect(&lost.restored, &Person::new(2)).await;
    let mut stream = Stream::open(&mut bob, &lost).await;
    stream.answer().await.unwrap();
    stream.say(Ask::Ids(ids(&lost, 2))).await;
    assert_eq!(stream.answer().await.unwrap_err(), Code::LogDiverged);
}

/// The space as it was before anything was lost.
fn space_before(lost: &Lost) -> crate::common::Space {
    let mut space = lost.stage.space.clone();
    (space.acl_head, space.index, space.epoch) = (lost.stage.space.set_home.id().into(), 1, sync_core::ids::Epoch(0));
    space
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_somebody_else_opens_nothing() {
    let lost = lost().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = crate::common::start(elsewhere.path()).await;
    let mut bob = Caller::connect(&other, &Person::new(2)).await;
    let mut stream = Stream::open(&mut bob, &lost).await;
    assert_eq!(stream.answer().await.unwrap_err(), Code::Forbidden, "another authority");

    let mut bob = Caller::connect(&lost.restored, &Person::new(2)).await;
    let (send, requests) = mpsc::channel(16);
    let request = bob.request(ReceiverStream::new(requests));
    let answers = bob.client.repush(request).await.unwrap().into_inner();
    let mut stream = Stream { send, answers };
    let mut export = lost.receipt.to_export();
    export.receipt.as_mut().unwrap().signature = Bytes::from_static(&[0; 64]);
    let ladder = vec![ChainPoint::from(&lost.receipt.position())];
    let open = RepushOpen { space: lost.stage.space.id.to_bytes(), receipt: Some(export), ladder };
    stream.say(Ask::Open(open)).await;
    assert_eq!(stream.answer().await.unwrap_err(), Code::BadSignature);
    assert_eq!(Seq(end_of(&lost.restored, &lost).await.0), Seq(2));
}

/// A turn is for who has something to bring back, and for one of an account.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_takes_nobodys_turn() {
    let lost = lost().await;
    // Anybody can have an account, and streams that say nothing.
    let mut silent = Vec::new();
    for seed in 50..50 + u8::try_from(sync_core::limits::REPUSHES_MAX).unwrap() {
        let mut stranger = Caller::connect(&lost.restored, &Person::new(seed)).await;
        let (send, requests) = mpsc::channel::<RepushRequest>(1);
        let request = stranger.request(ReceiverStream::new(requests));
        silent.push((stranger.client.repush(request).await.unwrap(), send, stranger));
    }
    let mut alice = Caller::connect(&lost.restored, &lost.stage.alice.person).await;
    let mut first = Stream::open(&mut alice, &lost).await;
    assert!(matches!(first.answer().await, Ok(Answer::Common(_))));
    // A second one of the same account waits.
    let mut second = Stream::open(&mut alice, &lost).await;
    assert!(matches!(second.answer().await, Ok(Answer::Common(_))));
    assert!(matches!(second.answer().await, Err(Code::Overloaded)));
    first.say(Ask::Ids(ids(&lost, lost.common.seq.0))).await;
    assert!(matches!(first.answer().await, Ok(Answer::Ready(_))));
    let after = usize::try_from(lost.common.seq.0).unwrap();
    assert_eq!(first.records(&lost.records[after..]).await, Ok(lost.receipt.body().seq.0));
    drop(first);
}

/// Nothing that grows without end is listened to.
#[tokio::test(flavor = "multi_thread")]
async fn pages_that_bring_nothing_end_a_repush() {
    let lost = lost().await;
    let mut alice = Caller::connect(&lost.restored, &lost.stage.alice.person).await;
    let whole = ids(&lost, lost.common.seq.0);
    let empty = RepushIds { ids: Vec::new(), last: false, ends: Vec::new() };
    let ends_alone = RepushIds { ids: Vec::new(), last: false, ends: whole.ends.clone() };
    let strange = RepushIds { ids: vec![whole.ids[0].clone()], last: false, ends: whole.ends.clone() };
    for page in [empty, ends_alone, strange] {
        let mut stream = Stream::open(&mut alice, &lost).await;
        assert!(matches!(stream.answer().await, Ok(Answer::Common(_))));
        stream.say(Ask::Ids(page)).await;
        assert!(matches!(stream.answer().await, Err(Code::Malformed)));
    }
    let mut stream = Stream::open(&mut alice, &lost).await;
    stream.ready(&lost).await;
    assert_eq!(stream.records(&[]).await, Err(Code::Malformed));
}
