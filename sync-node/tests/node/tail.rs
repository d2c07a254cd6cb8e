//! HeadUpdates: in order, without gaps, from the cursor.

use std::time::Duration;

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::log::Position;
use sync_core::record::{AclContent, RawRecord, Receipt, Role, verify_as};
use sync_proto::v1::{
    ChainPoint, HeadUpdate, HeadUpdatesRequest, HeadUpdatesResponse, Ping, Subscribe, Unsubscribe,
    head_updates_request, head_updates_response, log_entry,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::common::{Caller, Person, Stage, code, item, refusal};

type Frame = head_updates_response::Message;

struct Tail {
    send: mpsc::Sender<HeadUpdatesRequest>,
    frames: Streaming<HeadUpdatesResponse>,
}

impl Tail {
    async fn open(caller: &mut Caller) -> Self {
        let (send, requests) = mpsc::channel(16);
        let request = caller.request(ReceiverStream::new(requests));
        let frames = caller.client.head_updates(request).await.unwrap().into_inner();
        Self { send, frames }
    }

    async fn of(caller: &mut Caller, subscribe: Subscribe) -> Self {
        let tail = Self::open(caller).await;
        tail.say(head_updates_request::Message::Subscribe(subscribe)).await;
        tail
    }

    async fn say(&self, message: head_updates_request::Message) {
        self.send.send(HeadUpdatesRequest { message: Some(message) }).await.unwrap();
    }

    async fn frame(&mut self) -> Frame {
        let frame = tokio::time::timeout(Duration::from_secs(20), self.frames.message()).await.expect("a frame");
        frame.unwrap().unwrap().message.unwrap()
    }

    async fn update(&mut self) -> HeadUpdate {
        loop {
            match self.frame().await {
                Frame::Update(update) => return update,
                Frame::Subscribed(_) | Frame::Durable(_) | Frame::Heartbeat(_) | Frame::Pong(_) => {}
                other @ (Frame::Rewound(_) | Frame::Refused(_)) => panic!("{other:?}"),
            }
        }
    }

    /// Positions of entries up to `last`, as they came.
    async fn seqs_to(&mut self, last: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.last().is_none_or(|seq| *seq < last) {
            seqs.extend(self.update().await.entries.iter().map(|e| e.seq));
        }
        seqs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_subscribers_get_everything_in_order_while_it_is_pushed() {
    let mut stage = Stage::new().await;
    stage.add(&Person::new(2), Role::Reader).await;
    stage.add(&Person::new(3), Role::Reader).await;
    let mut bob = Caller::connect(&stage.node, &Person::new(2)).await;
    let mut carol = Caller::connect(&stage.node, &Person::new(3)).await;
    let mut one = Tail::of(&mut bob, stage.space.subscribe(0)).await;
    let mut two = Tail::of(&mut carol, stage.space.subscribe(0)).await;
    let last = 4 + 2 * 40;
    let first = tokio::spawn(async move { one.seqs_to(last).await });
    let second = tokio::spawn(async move { two.seqs_to(last).await });
    for nonce in 0..40 {
        stage.write(nonce, &["x"]).await;
    }
    let expected: Vec<u64> = (1..=last).collect();
    assert_eq!(first.await.unwrap(), expected);
    assert_eq!(second.await.unwrap(), expected);

    let mut again = Tail::of(&mut bob, stage.space.subscribe(50)).await;
    assert_eq!(again.seqs_to(last).await, (51..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_comes_in_full_to_others_and_as_its_id_to_whoever_pushed_it() {
    let mut stage = Stage::new().await;
    stage.add(&Person::new(2), Role::Reader).await;
    let mut bob = Caller::connect(&stage.node, &Person::new(2)).await;
    let (tree, changes) = stage.write(1, &["one"]).await;
    let mut of_bob = Tail::of(&mut bob, stage.space.subscribe(3)).await;
    let mut of_alice = Tail::of(&mut stage.alice, stage.space.subscribe(3)).await;

    let update = of_bob.update().await;
    let full: Vec<_> = update.entries.iter().map(|e| matches!(e.entry, Some(log_entry::Entry::Record(_)))).collect();
    assert_eq!(full, [true, true], "root and first change come together");
    assert_eq!(update.heads.len(), 1);
    assert_eq!(update.heads[0].tree, tree.to_bytes());
    assert_eq!(update.heads[0].heads, [changes[0].to_bytes()]);

    let update = of_alice.update().await;
    match update.entries[1].entry.as_ref().unwrap() {
        log_entry::Entry::Id(id) => assert_eq!(*id, changes[0].to_bytes()),
        other @ log_entry::Entry::Record(_) => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_carries_pings_and_ends_subscriptions() {
    let mut stage = Stage::new().await;
    let mut tail = Tail::of(&mut stage.alice, stage.space.subscribe(0)).await;
    assert_eq!(tail.seqs_to(2).await, [1, 2]);
    tail.say(head_updates_request::Message::Unsubscribe(Unsubscribe { space: stage.space.id.to_bytes() })).await;
    tail.say(head_updates_request::Message::Ping(Ping { number: 7 })).await;
    loop {
        match tail.frame().await {
            Frame::Pong(pong) => break assert_eq!(pong.number, 7),
            Frame::Subscribed(_) | Frame::Durable(_) => {}
            other => panic!("{other:?}"),
        }
    }
    stage.write(1, &["unseen"]).await;
    tail.say(head_updates_request::Message::Subscribe(stage.space.subscribe(2))).await;
    assert_eq!(tail.seqs_to(4).await, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_is_durable() {
    let mut stage = Stage::new().await;
    let mut tail = Tail::of(&mut stage.alice, stage.space.subscribe(2)).await;
    stage.write(1, &["one"]).await;
    let update = tail.update().await;
    let shown = update.entries.last().map(|entry| entry.seq);
    assert!(shown <= Some(update.durable_seq), "{shown:?} of {}", update.durable_seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_the_node_does_not_continue_is_rewound() {
    let mut stage = Stage::new().await;
    stage.write(1, &["one"]).await;
    let space = stage.space.id;
    let first = Position::start(&space).after(&stage.space.root.id());
    let second = first.after(&stage.space.set_home.id());
    let fork = |seq| ChainPoint { seq, chain: Bytes::from_static(&[7; 32]) };
    let cases = [
        (vec![fork(3), ChainPoint::from(&second), ChainPoint::from(&first)], 2),
        (vec![fork(3), fork(2), ChainPoint::from(&first)], 1),
        (vec![fork(4)], 0),
        (vec![fork(900), ChainPoint::from(&second)], 2),
    ];
    for (ladder, common) in cases {
        let cursor = ladder[0].seq;
        let subscribe = Subscribe { space: space.to_bytes(), cursor, ladder };
        match Tail::of(&mut stage.alice, subscribe).await.frame().await {
            Frame::Rewound(rewound) => assert_eq!((rewound.common_seq, rewound.node_seq), (common, 4)),
            other => panic!("{other:?}"),
        }
    }
    let subscribe = Subscribe { space: space.to_bytes(), cursor: 99, ladder: Vec::new() };
    assert!(matches!(Tail::of(&mut stage.alice, subscribe).await.frame().await, Frame::Rewound(_)));
    let subscribe = Subscribe { space: space.to_bytes(), cursor: 2, ladder: vec![ChainPoint::from(&second)] };
    assert_eq!(Tail::of(&mut stage.alice, subscribe).await.seqs_to(4).await, [3, 4]);
}

async fn entries_then_refusal(tail: &mut Tail) -> (Vec<u64>, i32) {
    let mut seqs = Vec::new();
    loop {
        match tail.frame().await {
            Frame::Update(update) => seqs.extend(update.entries.iter().map(|e| e.seq)),
            Frame::Refused(refused) => return (seqs, refused.error.unwrap().code),
            Frame::Subscribed(_) | Frame::Durable(_) | Frame::Heartbeat(_) | Frame::Pong(_) => {}
            other @ Frame::Rewound(_) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_sees_its_removal_and_nothing_after_it() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    stage.add(&bob, Role::Writer).await;
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let mut tail = Tail::of(&mut on_line, stage.space.subscribe(2)).await;
    assert_eq!(tail.seqs_to(3).await, [3]);
    let removal = stage.space.remove(&stage.alice.person, &bob, &[&Person::new(1)]);
    let root = stage.space.tree(1);
    let secret = stage.space.first_change(&stage.alice.person, &root, "after");
    let removal = sync_proto::v1::PushItem { tag: 1, root: None, record: Some(removal.raw().clone().into()) };
    for verdict in stage.alice.push(stage.space.id, vec![removal, item(2, Some(&root), &secret)]).await {
        assert_eq!(refusal(&verdict), None);
    }
    assert_eq!(entries_then_refusal(&mut tail).await, (vec![4], Code::Forbidden.number()));
    let mut again = Tail::of(&mut on_line, stage.space.subscribe(4)).await;
    assert_eq!(entries_then_refusal(&mut again).await, (vec![], Code::Forbidden.number()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaver_sees_that_it_left() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    stage.add(&bob, Role::Writer).await;
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    let mut tail = Tail::of(&mut on_line, stage.space.subscribe(2)).await;
    assert_eq!(tail.seqs_to(3).await, [3]);
    let leave = stage.space.acl(&bob, AclContent::Leave);
    on_line.append(stage.space.id, &leave).await.unwrap();
    assert_eq!(entries_then_refusal(&mut tail).await, (vec![4], Code::Forbidden.number()));
}

/// The replica of a member grows by the tail alone: what came while it was away is how it learns that it is out.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_or_left_while_away_reads_on_to_that_entry() {
    for leaves in [false, true] {
        let mut stage = Stage::new().await;
        let (alice, bob) = (Person::new(1), Person::new(2));
        stage.add(&bob, Role::Writer).await;
        let mut on_line = Caller::connect(&stage.node, &bob).await;
        stage.write(1, &["before"]).await;
        let ending = match leaves {
            true => stage.space.acl(&bob, AclContent::Leave),
            false => stage.space.remove(&alice, &bob, &[&alice]),
        };
        match leaves {
            true => on_line.append(stage.space.id, &ending).await.unwrap(),
            false => stage.alice.append(stage.space.id, &ending).await.unwrap(),
        }
        stage.write(2, &["after"]).await;

        let forbidden = Code::Forbidden.number();
        let mut tail = Tail::of(&mut on_line, stage.space.subscribe(0)).await;
        assert_eq!(entries_then_refusal(&mut tail).await, ((1..=6).collect(), forbidden));
        let mut tail = Tail::of(&mut on_line, stage.space.subscribe(5)).await;
        let update = tail.update().await;
        assert_eq!((update.entries.len(), update.durable_seq), (1, 6), "how long the log is now, is not its to know");
        assert_eq!(entries_then_refusal(&mut tail).await, (vec![], forbidden));
        let mut tail = Tail::of(&mut on_line, stage.space.subscribe(6)).await;
        assert_eq!(entries_then_refusal(&mut tail).await, (vec![], forbidden), "it has all of it");
        // Who has more than that has another log: where this one ends is all that it is told.
        for cursor in [7, 8, 9] {
            match Tail::of(&mut on_line, stage.space.subscribe(cursor)).await.frame().await {
                Frame::Rewound(rewound) => assert_eq!((rewound.common_seq, rewound.node_seq), (0, 6), "from {cursor}"),
                other => panic!("from {cursor}: {other:?}"),
            }
        }

        let ids = [stage.space.root.id(), stage.space.set_home.id()];
        let second = ids.iter().fold(Position::start(&stage.space.id), |position, id| position.after(id));
        let ladder = vec![ChainPoint { seq: 4, chain: Bytes::from_static(&[7; 32]) }, ChainPoint::from(&second)];
        let subscribe = Subscribe { space: stage.space.id.to_bytes(), cursor: 4, ladder };
        match Tail::of(&mut on_line, subscribe).await.frame().await {
            Frame::Rewound(rewound) => assert_eq!((rewound.common_seq, rewound.node_seq), (2, 6)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_came_back_is_a_plain_member_and_who_went_again_reads_to_the_last_end() {
    let mut stage = Stage::new().await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    let mut on_line = Caller::connect(&stage.node, &bob).await;
    stage.add(&bob, Role::Writer).await;
    let left = stage.space.acl(&bob, AclContent::Leave);
    on_line.append(stage.space.id, &left).await.unwrap();
    stage.add(&bob, Role::Reader).await;
    stage.write(1, &["back"]).await;
    assert_eq!(Tail::of(&mut on_line, stage.space.subscribe(0)).await.seqs_to(7).await, (1..=7).collect::<Vec<_>>());

    let removed = stage.space.remove(&alice, &bob, &[&alice]);
    stage.alice.append(stage.space.id, &removed).await.unwrap();
    stage.write(2, &["after"]).await;
    let mut tail = Tail::of(&mut on_line, stage.space.subscribe(0)).await;
    assert_eq!(entries_then_refusal(&mut tail).await, ((1..=8).collect(), Code::Forbidden.number()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_a_receipt_that_subscribers_share() {
    let mut stage = Stage::new().await;
    let mut one = Tail::of(&mut stage.alice, stage.space.subscribe(2)).await;
    let mut two = Tail::of(&mut stage.alice, stage.space.subscribe(0)).await;
    let mut receipts = Vec::new();
    for tail in [&mut one, &mut two] {
        loop {
            if let Frame::Heartbeat(heartbeat) = tail.frame().await {
                break receipts.push(heartbeat.receipt.unwrap());
            }
        }
    }
    assert_eq!(receipts[0], receipts[1]);
    let receipt = verify_as::<Receipt>(RawRecord::try_from(receipts.remove(0)).unwrap()).unwrap();
    let body = receipt.body();
    assert_eq!((body.seq, body.durable, body.nonce), (Seq(2), true, None));
    assert!(body.set_digest.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn catching_up_over_many_pages_loses_nothing() {
    let mut stage = Stage::new().await;
    let root = stage.space.tree(1);
    let tree = TreeId::from(root.id());
    let text = "x".repeat(40_000);
    let mut parents: Vec<ChangeId> = vec![];
    for n in 0..30_u64 {
        let change = match parents.is_empty() {
            true => stage.space.first_change(&stage.alice.person, &root, &text),
            false => stage.space.change(&stage.alice.person, tree, parents, &text),
        };
        parents = vec![change.id().into()];
        let verdicts = stage.alice.push(stage.space.id, vec![item(n, (n == 0).then_some(&root), &change)]).await;
        assert_eq!(refusal(&verdicts[0]), None);
    }
    let mut other_session = Caller::connect(&stage.node, &Person::new(1)).await;
    let mut tail = Tail::of(&mut other_session, stage.space.subscribe(0)).await;
    let mut pages = 0;
    let mut seqs = Vec::new();
    while seqs.last() != Some(&33) {
        let update = tail.update().await;
        pages += 1;
        seqs.extend(update.entries.iter().map(|e| e.seq));
        // Heads are those after the last entry: told only where no later entry touches the tree.
        assert_eq!(update.heads.is_empty(), seqs.last() != Some(&33));
    }
    assert_eq!(seqs, (1..=33).collect::<Vec<_>>());
    assert!(pages > 1, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_says_so() {
    let mut stage = Stage::new().await;
    let mut tail = Tail::of(&mut stage.alice, stage.space.subscribe(0)).await;
    assert_eq!(tail.seqs_to(2).await, [1, 2]);
    let stopping = tokio::spawn(stage.node.shutdown());
    let error = loop {
        match tail.frames.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a word"),
            Err(error) => break error,
        }
    };
    assert_eq!(code(&error), Code::ShuttingDown);
    drop(tail);
    assert!(matches!(stopping.await.unwrap(), sync_node::Stopped::AsAsked));
}
