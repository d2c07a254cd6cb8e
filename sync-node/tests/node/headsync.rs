//! HeadSync in cells: what the node sends to a replica that differs.

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::TreeId;
use sync_core::reconcile::{Asking, Difference, Element, Next, Sketch, SymbolKey, TreePrefix};
use sync_core::record::Role;
use sync_proto::v1::{
    HeadSyncDifferent, HeadSyncMore, HeadSyncNextPage, HeadSyncOpen, HeadSyncRequest, HeadSyncResponse,
    head_sync_request::Message as Ask, head_sync_response::Message as Answer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::common::{Caller, Person, Stage, code};

/// A HeadSync stream of a caller.
struct Comparing {
    requests: mpsc::Sender<HeadSyncRequest>,
    answers: Streaming<HeadSyncResponse>,
}

impl Comparing {
    async fn begin(caller: &mut Caller) -> Self {
        let (requests, outgoing) = mpsc::channel(1);
        let request = caller.request(ReceiverStream::new(outgoing));
        let answers = caller.client.head_sync(request).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn ask(&mut self, message: Ask) -> Result<Answer, Status> {
        let _ = self.requests.send(HeadSyncRequest { message: Some(message) }).await;
        Ok(self.answers.message().await?.expect("an answer").message.expect("a message"))
    }

    async fn open(&mut self, stage: &Stage, seq: u64) -> Answer {
        let open = HeadSyncOpen { space: stage.space.id.to_bytes(), seq, digest: Bytes::from_static(&[0; 32]) };
        self.ask(Ask::Open(open)).await.unwrap()
    }

    async fn differs(&mut self, stage: &Stage, seq: u64) -> HeadSyncDifferent {
        match self.open(stage, seq).await {
            Answer::Different(different) => different,
            other => panic!("{other:?}"),
        }
    }

    async fn elements(&mut self) -> Vec<Element> {
        match self.ask(Ask::NextPage(HeadSyncNextPage::default())).await.unwrap() {
            Answer::Page(page) => page.elements.iter().map(|e| Element::try_from(e).unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Decodes as a replica with `ours` does. Returns what came out, and how many blocks were sent.
    async fn decode(&mut self, first: &HeadSyncDifferent, ours: &[Element]) -> (Difference, usize) {
        let key = SymbolKey::new(&first.key.as_ref().try_into().unwrap());
        let mut sketch = Sketch::empty(key.clone(), 4096);
        ours.iter().for_each(|element| sketch.insert(element));
        let mut asking = Asking::new(key.clone(), first.elements);
        let mut block = first.cells.clone();
        for blocks in 1.. {
            asking.take(&block).unwrap();
            match asking.next(&sketch).unwrap() {
                Next::Decoded(decoded) => return (decoded.resolve(&key, ours).unwrap(), blocks),
                Next::More => {}
                Next::List => panic!("should decode"),
            }
            block = match self.ask(Ask::More(HeadSyncMore {})).await.unwrap() {
                Answer::Cells(cells) => cells.cells,
                other => panic!("{other:?}"),
            };
        }
        unreachable!("blocks end")
    }
}

/// Elements as a replica has them that lost or mistook some trees.
fn spoiled(elements: &[Element], wrong: usize) -> (Vec<Element>, Vec<TreeId>) {
    let mut ours = elements.to_vec();
    let mut trees = Vec::new();
    for element in ours.iter_mut().filter(|e| e.key().is_some()).take(wrong) {
        if let Element::Tree { tree, heads_hash } = element {
            trees.push(*tree);
            heads_hash[7] ^= 1;
        }
    }
    trees.sort_unstable();
    (ours, trees)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_decoded_from_cells() {
    let mut stage = Stage::new().await;
    for nonce in 1..=60 {
        stage.write(nonce, &["text"]).await;
    }
    let end = 2 + 2 * 60;
    let mut comparing = Comparing::begin(&mut stage.alice).await;
    let elements = {
        comparing.differs(&stage, end).await;
        comparing.elements().await
    };
    for wrong in [1, 5, 20] {
        let first = comparing.differs(&stage, end).await;
        assert_eq!(first.elements, 61);
        let (ours, trees) = spoiled(&elements, wrong);
        let (found, _) = comparing.decode(&first, &ours).await;
        assert_eq!(found, Difference { trees, ..Difference::default() });
    }
    // A tree that only the node has.
    let first = comparing.differs(&stage, end).await;
    let lost = elements[9].key().unwrap();
    let (found, blocks) = comparing.decode(&first, &[&elements[..9], &elements[10..]].concat()).await;
    assert_eq!((found.elsewhere, blocks), (vec![TreePrefix::of(&lost)], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sketch_follows_the_log() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    for nonce in 1..=10 {
        stage.write(nonce, &["text"]).await;
    }
    let mut comparing = Comparing::begin(&mut stage.alice).await;
    let cold = comparing.differs(&stage, 22).await;
    // Trees that grow, a new one, and the ACL.
    stage.write(11, &["one", "two", "three"]).await;
    stage.add(&bob, Role::Writer).await;
    let warm = comparing.differs(&stage, 27).await;
    assert_eq!(warm.key, cold.key, "one key for the life of the process");
    assert_eq!(warm.elements, 12);
    let elements = comparing.elements().await;
    let (found, blocks) = comparing.decode(&warm, &elements).await;
    assert_eq!((found, blocks), (Difference::default(), 1), "the cells are those of the set as it is now");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_blocks_are_of_one_moment() {
    let mut stage = Stage::new().await;
    for nonce in 1..=100 {
        stage.write(nonce, &["text"]).await;
    }
    let mut comparing = Comparing::begin(&mut stage.alice).await;
    let first = comparing.differs(&stage, 202).await;
    let elements = comparing.elements().await;
    // The log moves before the next block is asked for.
    for nonce in 101..=120 {
        stage.write(nonce, &["text"]).await;
    }
    let (ours, trees) = spoiled(&elements, 40);
    let (found, blocks) = comparing.decode(&first, &ours).await;
    assert_eq!(found, Difference { trees, ..Difference::default() });
    assert!(blocks > 2, "{blocks} blocks");
    let at = comparing.open(&stage, 202).await;
    assert!(matches!(at, Answer::NotComparable(ref at) if at.seq == 242), "{at:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_end_and_are_for_members() {
    let mut stage = Stage::new().await;
    let bob = Person::new(2);
    stage.add(&bob, Role::Writer).await;
    let mut theirs = Caller::connect(&stage.node, &bob).await;
    let mut stranger = Comparing::begin(&mut Caller::connect(&stage.node, &Person::new(3)).await).await;
    let before = stranger.ask(Ask::More(HeadSyncMore {})).await.unwrap_err();
    assert_eq!(code(&before), Code::Malformed);
    let mut stranger = Comparing::begin(&mut Caller::connect(&stage.node, &Person::new(3)).await).await;
    let open = HeadSyncOpen { space: stage.space.id.to_bytes(), seq: 3, digest: Bytes::from_static(&[0; 32]) };
    assert_eq!(code(&stranger.ask(Ask::Open(open)).await.unwrap_err()), Code::Forbidden);

    let mut comparing = Comparing::begin(&mut theirs).await;
    comparing.differs(&stage, 3).await;
    // As many as a sketch has, which is far more than this set can differ in.
    let mut blocks = 0;
    loop {
        match comparing.ask(Ask::More(HeadSyncMore {})).await.unwrap() {
            Answer::Cells(cells) if cells.cells.is_empty() => break,
            Answer::Cells(_) => blocks += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((10..100).contains(&blocks), "{blocks}");

    comparing.differs(&stage, 3).await;
    let alice = stage.alice.person.clone();
    let record = stage.space.remove(&alice, &bob, &[&alice]);
    stage.alice.append(stage.space.id, &record).await.unwrap();
    let ended = comparing.ask(Ask::More(HeadSyncMore {})).await.unwrap_err();
    assert_eq!(code(&ended), Code::Forbidden);
}

/// What is held for one comparison is memory that others lack.
#[tokio::test]
async fn a_comparison_that_asks_nothing_holds_no_sketch() {
    let mut stage = Stage::new().await;
    for nonce in 1..=60 {
        stage.write(nonce, &["text"]).await;
    }
    let mut comparing = Comparing::begin(&mut stage.alice).await;
    comparing.differs(&stage, 2 + 2 * 60).await;
    let more = async |comparing: &mut Comparing| match comparing.ask(Ask::More(HeadSyncMore {})).await.unwrap() {
        Answer::Cells(cells) => cells.cells,
        other => panic!("{other:?}"),
    };
    assert!(!more(&mut comparing).await.is_empty());
    tokio::time::pause();
    tokio::time::advance(sync_core::limits::HEADSYNC_HELD_MAX + std::time::Duration::from_millis(1)).await;
    tokio::time::resume();
    assert!(more(&mut comparing).await.is_empty(), "it lists instead");
    comparing.differs(&stage, 2 + 2 * 60).await;
    assert!(!more(&mut comparing).await.is_empty(), "or begins anew");
}
