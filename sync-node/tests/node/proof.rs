//! Certify, HeadSync and Fetch: what a client proves its copy with.

use std::collections::BTreeSet;

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::log::Position;
use sync_core::pb;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{Kind, RawRecord};
use sync_core::tree::heads_hash;
use sync_proto::v1::{
    CertifyRequest, FetchRequest, FetchResponse, HeadSyncNextPage, HeadSyncOpen, HeadSyncRequest, HeadSyncResponse,
    head_sync_request, head_sync_response,
};

use crate::common::{Stage, code};

async fn certify(stage: &mut Stage, request: CertifyRequest) -> Result<SignedReceipt, tonic::Status> {
    let challenge = stage.alice.client.open_session(stage.alice.person.hello()).await?.into_inner();
    let certificate = RawRecord::try_from(challenge.node_certificate.unwrap()).unwrap();
    let request = stage.alice.request(request);
    let receipt = stage.alice.client.certify(request).await?.into_inner().receipt.unwrap();
    Ok(SignedReceipt::verify(RawRecord::try_from(receipt).unwrap(), certificate).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_durable_and_answers_its_caller() {
    let mut stage = Stage::new().await;
    let (tree, changes) = stage.write(1, &["one", "two"]).await;
    let space = stage.space.id.to_bytes();
    let nonce = Bytes::from_static(&[6; 16]);
    let first = CertifyRequest { space: space.clone(), nonce, ..CertifyRequest::default() };
    let first = certify(&mut stage, first).await.unwrap();
    let body = first.body().clone();
    assert_eq!((body.seq, body.durable, body.nonce, body.prev), (Seq(5), true, Some([6; 16]), None));
    assert_eq!((body.space, body.acl_head, body.epoch), (stage.space.id, stage.space.acl_head, stage.space.epoch));
    assert_eq!(body.authority, stage.node.address().authority);
    assert_eq!((body.set_digest, body.trees.len()), (None, 0));
    let root = stage.space.tree(1);
    let ids = [stage.space.root.id(), stage.space.set_home.id(), root.id(), changes[0].into(), changes[1].into()];
    let chain = ids.iter().fold(Position::start(&stage.space.id), |position, id| position.after(id));
    assert_eq!(first.position(), chain);

    let second = CertifyRequest {
        space,
        nonce: Bytes::from_static(&[7; 16]),
        prev: Bytes::copy_from_slice(&first.hash()),
        trees: vec![tree.to_bytes()],
        with_set_digest: true,
    };
    let second = certify(&mut stage, second).await.unwrap();
    assert_eq!(second.body().prev, Some(first.hash()));
    assert_eq!(second.body().trees, [(tree, heads_hash(&tree, &BTreeSet::from([changes[1]])))]);
    assert!(second.body().set_digest.is_some());
    assert_eq!(second.body().history, body.history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_needs_a_nonce_and_names_so_many_trees() {
    let mut stage = Stage::new().await;
    let space = stage.space.id.to_bytes();
    let without = CertifyRequest { space: space.clone(), ..CertifyRequest::default() };
    assert_eq!(code(&certify(&mut stage, without).await.unwrap_err()), Code::Malformed);
    let nonce = Bytes::from_static(&[7; 16]);
    let trees = vec![Bytes::from_static(&[1; 32]); 257];
    let many = CertifyRequest { space, nonce, trees, ..CertifyRequest::default() };
    assert_eq!(code(&certify(&mut stage, many).await.unwrap_err()), Code::TooLarge);
}

async fn head_sync(stage: &mut Stage, messages: Vec<head_sync_request::Message>) -> Vec<head_sync_response::Message> {
    let requests: Vec<_> = messages.into_iter().map(|m| HeadSyncRequest { message: Some(m) }).collect();
    let request = stage.alice.request(tokio_stream::iter(requests));
    let mut answers = stage.alice.client.head_sync(request).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(HeadSyncResponse { message }) = answers.message().await.unwrap() {
        got.push(message.unwrap());
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_compared_at_equal_positions_and_differences_listed() {
    use head_sync_request::Message::{NextPage, Open};
    use head_sync_response::Message::{Different, Equal, NotComparable, Page};

    let mut stage = Stage::new().await;
    let (one, _) = stage.write(1, &["one"]).await;
    let (two, _) = stage.write(2, &["two"]).await;
    let space = stage.space.id.to_bytes();
    let nonce = Bytes::from_static(&[7; 16]);
    let request = CertifyRequest { space: space.clone(), nonce, with_set_digest: true, ..CertifyRequest::default() };
    let digest = certify(&mut stage, request).await.unwrap().body().set_digest.unwrap();
    let open = |seq, digest: [u8; 32]| {
        Open(HeadSyncOpen { space: space.clone(), seq, digest: Bytes::copy_from_slice(&digest) })
    };
    let next = |after: &[u8]| NextPage(HeadSyncNextPage { after: Bytes::copy_from_slice(after) });

    let same = head_sync(&mut stage, vec![open(6, digest)]).await;
    assert!(matches!(same.as_slice(), [Equal(equal)] if equal.seq == 6), "{same:?}");
    let other = head_sync(&mut stage, vec![open(5, digest)]).await;
    assert!(matches!(other.as_slice(), [NotComparable(at)] if at.seq == 6), "{other:?}");
    let listed = head_sync(&mut stage, vec![open(6, [0; 32]), next(&[]), next(one.min(two).as_bytes())]).await;
    match listed.as_slice() {
        [Different(different), Page(all), Page(rest)] => {
            assert_eq!(different.elements, 3);
            let keys: Vec<_> = all.elements.iter().map(|e| e.key.clone()).collect();
            assert_eq!(keys, [Bytes::new(), one.min(two).to_bytes(), one.max(two).to_bytes()]);
            assert_eq!((all.last, rest.elements.len(), rest.last), (true, 1, true));
        }
        other => panic!("{other:?}"),
    }
}

async fn fetch(stage: &mut Stage, trees: &[(TreeId, &[ChangeId])]) -> Vec<FetchResponse> {
    let trees = trees.iter().map(|(tree, heads)| pb::TreeHeads {
        tree: tree.to_bytes(),
        heads: heads.iter().map(|h| h.to_bytes()).collect(),
    });
    let request = FetchRequest { space: stage.space.id.to_bytes(), trees: trees.collect() };
    let request = stage.alice.request(request);
    let mut answers = stage.alice.client.fetch(request).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        got.push(answer);
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_gives_what_the_caller_lacks_parents_first() {
    let mut stage = Stage::new().await;
    let (tree, changes) = stage.write(1, &["one", "two", "three"]).await;
    let unknown = TreeId::from_hash([5; 32]);

    let all = fetch(&mut stage, &[(tree, &[]), (unknown, &[])]).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].unknown_trees, [unknown.to_bytes()]);
    assert_eq!(all[0].entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4, 5, 6]);
    let first = RawRecord::try_from(all[0].entries[0].record.clone().unwrap()).unwrap();
    assert_eq!(first.kind, Kind::TreeRoot);

    let rest = fetch(&mut stage, &[(tree, &changes[1..2])]).await;
    assert_eq!(rest[0].entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [6]);
    // Heads that the node does not know lead to nothing.
    let strange = fetch(&mut stage, &[(tree, &[ChangeId::from_hash([9; 32])])]).await;
    assert_eq!(strange[0].entries.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_sends_chunks_that_fit_a_message() {
    let mut stage = Stage::new().await;
    let text = "x".repeat(100_000);
    let texts = [text.as_str(); 8];
    let (tree, _) = stage.write(1, &texts).await;
    let chunks = fetch(&mut stage, &[(tree, &[])]).await;
    assert_eq!(chunks.iter().map(|c| c.entries.len()).collect::<Vec<_>>(), [6, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_hold_the_end_of_one_tree_and_the_beginning_of_the_next() {
    let mut stage = Stage::new().await;
    let text = "x".repeat(150_000);
    let (one, changes) = stage.write(1, &[text.as_str(); 4]).await;
    let (two, _) = stage.write(2, &[text.as_str(); 2]).await;
    let unknown = TreeId::from_hash([5; 32]);
    let chunks = fetch(&mut stage, &[(one, &changes[1..2]), (unknown, &[]), (two, &[])]).await;
    let seqs: Vec<Vec<u64>> = chunks.iter().map(|c| c.entries.iter().map(|e| e.seq).collect()).collect();
    assert_eq!(seqs, [vec![6, 7, 8, 9], vec![10]]);
    assert_eq!(chunks[0].unknown_trees, [unknown.to_bytes()]);
}

/// Each time a tree is named costs a read of all its links.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_fetched_once_in_a_request() {
    let mut stage = Stage::new().await;
    let (tree, changes) = stage.write(1, &["one"]).await;
    let heads = changes.iter().map(|head| head.to_bytes()).collect();
    let named = pb::TreeHeads { tree: tree.to_bytes(), heads };
    let request = FetchRequest { space: stage.space.id.to_bytes(), trees: vec![named; 2] };
    let request = stage.alice.request(request);
    let mut answers = stage.alice.client.fetch(request).await.unwrap().into_inner();
    assert_eq!(code(&answers.message().await.unwrap_err()), Code::Malformed);
}
