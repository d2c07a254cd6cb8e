//! What ends at once: everything of a member that was removed, and of a device that is on no list any more.

use std::time::Duration;

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::pb;
use sync_core::record::{DeviceList, RawRecord, Role, Verified, verify_as};
use sync_node::RunningNode;
use sync_proto::status::Failure;
use sync_proto::v1::{
    AclReadRequest, AclReadResponse, CertifyRequest, FetchRequest, HeadSyncNextPage, HeadSyncOpen, HeadSyncRequest,
    HeadSyncResponse, HeadUpdatesRequest, HeadUpdatesResponse, PushItem, PushRequest, PushResponse, SpacePullRequest,
    head_sync_request, head_updates_request, head_updates_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::common::{Caller, Person, Stage, code, dial, item, key, refusal, start};

/// One stream of each kind that can stay open.
struct Streams {
    tail_requests: mpsc::Sender<HeadUpdatesRequest>,
    tail: Streaming<HeadUpdatesResponse>,
    push_requests: mpsc::Sender<PushRequest>,
    push: Streaming<PushResponse>,
    compare_requests: mpsc::Sender<HeadSyncRequest>,
    compare: Streaming<HeadSyncResponse>,
    acl: Streaming<AclReadResponse>,
}

impl Streams {
    async fn open(caller: &mut Caller, space: Bytes) -> Self {
        let (tail_requests, requests) = mpsc::channel(16);
        let request = caller.request(ReceiverStream::new(requests));
        let tail = caller.client.head_updates(request).await.unwrap().into_inner();
        let (push_requests, requests) = mpsc::channel(16);
        let request = caller.request(ReceiverStream::new(requests));
        let push = caller.client.push(request).await.unwrap().into_inner();
        let (compare_requests, requests) = mpsc::channel(16);
        let request = caller.request(ReceiverStream::new(requests));
        let compare = caller.client.head_sync(request).await.unwrap().into_inner();
        let request = caller.request(AclReadRequest { space, from_seq: 0, follow: true, invite_proof: None });
        let acl = caller.client.acl_read(request).await.unwrap().into_inner();
        Self { tail_requests, tail, push_requests, push, compare_requests, compare, acl }
    }

    async fn subscribe(&self, stage: &Stage, cursor: u64) {
        let subscribe = head_updates_request::Message::Subscribe(stage.space.subscribe(cursor));
        self.tail_requests.send(HeadUpdatesRequest { message: Some(subscribe) }).await.unwrap();
    }

    async fn compare(&mut self, message: head_sync_request::Message) -> Result<HeadSyncResponse, Status> {
        self.compare_requests.send(HeadSyncRequest { message: Some(message) }).await.unwrap();
        answer(&mut self.compare).await
    }
}

/// The next message, which must come soon.
async fn answer<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await.expect("an answer");
    message.map(|message| message.expect("the stream goes on"))
}

/// How a stream ends, whatever still came before.
async fn end<T>(stream: &mut Streaming<T>) -> Code {
    loop {
        if let Err(status) = answer(stream).await {
            return code(&status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_loses_everything_at_once() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    stage.add(&bob, Role::Writer).await;
    let (tree, changes) = stage.write(1, &["one", "two"]).await;
    let space = stage.space.id.to_bytes();
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let mut streams = Streams::open(&mut on_line, space.clone()).await;
    streams.subscribe(&stage, 6).await;
    let open = HeadSyncOpen { space: space.clone(), seq: 6, digest: Bytes::from_static(&[0; 32]) };
    let compared = streams.compare(head_sync_request::Message::Open(open)).await.unwrap();
    assert!(compared.message.is_some());
    let reply = stage.space.change(&bob, tree, vec![changes[1]], "allowed");
    let request = |items: Vec<PushItem>| PushRequest { space: space.clone(), items };
    streams.push_requests.send(request(vec![item(1, None, &reply)])).await.unwrap();
    assert_eq!(refusal(&answer(&mut streams.push).await.unwrap().verdicts[0]), None);

    // Others go on writing all the time.
    let removal = stage.space.remove(&alice, &bob, &[&alice]);
    let after = stage.space.clone();
    let mut writer = Caller::connect(&stage.node, &alice).await;
    stage.alice.append(after.id, &removal).await.unwrap();
    let writing = tokio::spawn(async move {
        for nonce in 10..60 {
            let root = after.tree(nonce);
            let change = after.first_change(&writer.person, &root, "after");
            for verdict in writer.push(after.id, vec![item(1, Some(&root), &change)]).await {
                assert_eq!(refusal(&verdict), None);
            }
        }
    });

    // The tail: up to the removal (entry 8), and not one entry more.
    let mut seqs = Vec::new();
    let refused = loop {
        match answer(&mut streams.tail).await.unwrap().message.unwrap() {
            head_updates_response::Message::Update(update) => {
                assert!(update.durable_seq <= 8, "{}", update.durable_seq);
                seqs.extend(update.entries.iter().map(|entry| entry.seq));
            }
            head_updates_response::Message::Refused(refused) => break refused.error.unwrap().code,
            head_updates_response::Message::Durable(durable) => assert!(durable.durable_seq <= 8, "{durable:?}"),
            head_updates_response::Message::Heartbeat(heartbeat) => {
                let receipt = RawRecord::try_from(heartbeat.receipt.unwrap()).unwrap();
                let receipt = verify_as::<sync_core::record::Receipt>(receipt).unwrap();
                assert!(receipt.body().seq.0 <= 8, "{receipt:?}");
            }
            head_updates_response::Message::Subscribed(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((seqs, refused), (vec![7, 8], Code::Forbidden.number()));

    // Streams that were open before, and the calls of a session that goes on.
    let late = stage.space.change(&bob, tree, vec![changes[1]], "late");
    streams.push_requests.send(request(vec![item(2, None, &late)])).await.unwrap();
    assert_eq!(refusal(&answer(&mut streams.push).await.unwrap().verdicts[0]), Some(Code::Forbidden));
    let page = head_sync_request::Message::NextPage(HeadSyncNextPage { after: Bytes::new() });
    assert_eq!(code(&streams.compare(page).await.unwrap_err()), Code::Forbidden);
    let mut last = 0;
    while let Some(answer) = streams.acl.message().await.unwrap() {
        last = answer.entries.iter().map(|entry| entry.seq).fold(last, u64::max);
        assert!(answer.complete_to_seq <= 8);
    }
    assert_eq!(last, 8, "the reader of the ACL is told of the removal, and the stream ends");
    let trees = vec![pb::TreeHeads { tree: tree.to_bytes(), heads: Vec::new() }];
    let fetch = on_line.request(FetchRequest { space: space.clone(), trees });
    let mut fetched = on_line.client.fetch(fetch).await.unwrap().into_inner();
    assert_eq!(code(&fetched.message().await.unwrap_err()), Code::Forbidden);
    let nonce = Bytes::from_static(&[1; 16]);
    let certify = on_line.request(CertifyRequest { space, nonce, ..CertifyRequest::default() });
    assert_eq!(code(&on_line.client.certify(certify).await.unwrap_err()), Code::Forbidden);
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_under_way_ends_when_its_caller_is_removed() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    stage.add(&bob, Role::Reader).await;
    let text = "x".repeat(200_000);
    let mut trees = Vec::new();
    for nonce in 0..40 {
        let (tree, _) = stage.write(nonce, &[text.as_str(), text.as_str()]).await;
        trees.push(pb::TreeHeads { tree: tree.to_bytes(), heads: Vec::new() });
    }
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let request = on_line.request(FetchRequest { space: stage.space.id.to_bytes(), trees });
    let mut fetched = on_line.client.fetch(request).await.unwrap().into_inner();
    fetched.message().await.unwrap().unwrap();
    let removal = stage.space.remove(&alice, &bob, &[&alice]);
    stage.alice.append(stage.space.id, &removal).await.unwrap();
    // What was read before is on its way; the rest, far more than the connection holds back, is not read any more.
    assert_eq!(end(&mut fetched).await, Code::Forbidden);
}

// ---- devices --------------------------------------------------------------------------------------------------------

/// One account with three devices.
fn devices() -> [Person; 3] {
    let phone = Person::new(1);
    let with = |seed| Person { device: key(seed), ..phone.clone() };
    [phone.clone(), with(55), with(56)]
}

async fn over(node: &RunningNode, person: &Person, list: &Verified<DeviceList>) -> Result<Caller, Failure> {
    let opened = Caller::over(dial(node).await, person, person.hello_with(list)).await;
    opened.map_err(|status| Failure::from_status(&status).unwrap())
}

/// The list that a session was refused with.
async fn list_against(node: &RunningNode, person: &Person, list: &Verified<DeviceList>) -> Verified<DeviceList> {
    let failure = over(node, person, list).await.err().expect("a refusal");
    assert_eq!(failure.code, Code::DeviceRevoked);
    verify_as(RawRecord::try_from(*failure.device_list.expect("the list that counts")).unwrap()).unwrap()
}

/// The list that an opened session was answered with.
async fn counting(node: &RunningNode, person: &Person, list: &Verified<DeviceList>) -> Verified<DeviceList> {
    let mut client = dial(node).await;
    let challenge = client.open_session(person.hello_with(list)).await.unwrap().into_inner();
    let (proof, _) = person.answer(challenge);
    let raw = client.prove_session(proof).await.unwrap().into_inner().device_list.unwrap();
    verify_as(RawRecord::try_from(raw).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_list_counts_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let [phone, laptop, tablet] = devices();
    let nothing = phone.list(0, &[]);
    over(&node, &tablet, &nothing).await.unwrap();
    let both = phone.list(3, &[&phone.device, &laptop.device]);
    assert_eq!(counting(&node, &phone, &both).await, both);

    // One of the same version with other content does not replace it; one that is older does not either.
    let all = phone.list(3, &[&phone.device, &laptop.device, &tablet.device]);
    assert_eq!(counting(&node, &laptop, &all).await, both);
    assert_eq!(counting(&node, &laptop, &phone.list(2, &[&laptop.device])).await, both);
    // Version 0 declares nothing: it opens no session where a list counts that leaves the device out.
    for list in [&all, &nothing, &phone.list(2, &[&tablet.device])] {
        assert_eq!(list_against(&node, &tablet, list).await, both);
    }
    assert_eq!(counting(&node, &laptop, &nothing).await, both);

    node.shutdown().await;
    let node = start(dir.path()).await;
    assert_eq!(list_against(&node, &tablet, &nothing).await, both);
    assert_eq!(counting(&node, &laptop, &nothing).await, both);
    let newer = phone.list(4, &[&tablet.device]);
    assert_eq!(counting(&node, &tablet, &newer).await, newer);
    assert_eq!(list_against(&node, &phone, &both).await, newer);
}

/// The account said it, whoever carries the word.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_leaves_out_who_brings_it_counts_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let [phone, laptop, _] = devices();
    let mut on_laptop = over(&node, &laptop, &phone.list(1, &[&phone.device, &laptop.device])).await.unwrap();
    let phone_only = phone.list(2, &[&phone.device]);
    assert_eq!(list_against(&node, &laptop, &phone_only).await, phone_only);
    let request = on_laptop.request(SpacePullRequest::default());
    assert_eq!(code(&on_laptop.client.space_pull(request).await.unwrap_err()), Code::DeviceRevoked);
    assert_eq!(counting(&node, &phone, &phone.list(0, &[])).await, phone_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_of_a_device_ends_with_its_place_on_the_list() {
    let mut stage = Stage::new().await;
    let [phone, laptop, _] = devices();
    let (tree, _) = stage.write(1, &["one"]).await;
    let both = phone.list(2, &[&phone.device, &laptop.device]);
    let space = stage.space.id.to_bytes();
    let mut on_laptop = over(&stage.node, &laptop, &both).await.unwrap();
    let mut streams = Streams::open(&mut on_laptop, space.clone()).await;
    streams.subscribe(&stage, 0).await;
    answer(&mut streams.tail).await.unwrap();
    let mut of_phone = Streams::open(&mut stage.alice, space.clone()).await;

    over(&stage.node, &phone, &phone.list(3, &[&phone.device])).await.unwrap();
    assert_eq!(end(&mut streams.tail).await, Code::DeviceRevoked);
    assert_eq!(end(&mut streams.push).await, Code::DeviceRevoked);
    assert_eq!(end(&mut streams.compare).await, Code::DeviceRevoked);
    assert_eq!(end(&mut streams.acl).await, Code::DeviceRevoked);
    let trees = vec![pb::TreeHeads { tree: tree.to_bytes(), heads: Vec::new() }];
    let fetch = on_laptop.request(FetchRequest { space: space.clone(), trees });
    assert_eq!(code(&on_laptop.client.fetch(fetch).await.unwrap_err()), Code::DeviceRevoked);

    // The account's other sessions go on.
    let root = stage.space.tree(2);
    let change = stage.space.first_change(&phone, &root, "still here");
    let items = vec![item(1, Some(&root), &change)];
    of_phone.push_requests.send(PushRequest { space, items }).await.unwrap();
    assert_eq!(refusal(&answer(&mut of_phone.push).await.unwrap().verdicts[0]), None);
}
