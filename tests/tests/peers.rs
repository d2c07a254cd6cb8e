//! Two clients that meet without a node: what they compare, what one takes from the other, and what it does not.

use bytes::Bytes;
use client_sdk::{AccusationKind, AccusationState, AclChange, Peer, PeerError, Role, Space};
use serde_json::json;
use sync_proto::peer_v1::{PeerRequest, PeerResponse, peer_response::Message as Answer};
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, heads, join, seen};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

const PIPE_BYTES: usize = 64 << 10;

/// A space with two members, one of which slept while the other one wrote; then the node went away for good.
struct Stage {
    ann: TestClient,
    ben: TestClient,
    anns: Space,
    bens: Space,
}

impl Stage {
    async fn new() -> Outcome<Self> {
        let mut node = NodeProcess::start();
        let ann = TestClient::create("Ann", node.address()).await;
        let ben = TestClient::create("Ben", node.address()).await;
        let anns = ann.create_space("Club").await?;
        anns.objects().put("item", "old", json!({ "n": 0 })).await?;
        anns.objects().put("item", "changed", json!({ "n": 0 })).await?;
        let bens = join(&anns, &ben, Role::Writer).await?;
        bens.await_synced_within(PATIENCE).await?;
        let id = bens.id();
        let dir = ben.shut().await;
        for n in 0..20 {
            anns.objects().put("item", &format!("new-{n}"), json!({ "n": n })).await?;
        }
        anns.objects().put("item", "changed", json!({ "n": 1 })).await?;
        anns.await_synced_within(PATIENCE).await?;
        node.kill();
        let ben = TestClient::open(dir).await;
        let bens = ben.space(id)?;
        Ok(Self { ann, ben, anns, bens })
    }
}

/// Ben asks, Ann serves.
async fn meet(asks: &Space, serves: &Space) -> (Result<Peer, PeerError>, JoinHandle<Result<(), PeerError>>) {
    let (near, far) = duplex(PIPE_BYTES);
    let serves = serves.clone();
    let serving = tokio::spawn(async move { serves.serve_peer(far).await });
    (asks.meet(near).await, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_home_signed_for_is_taken_from_another_client() -> Outcome {
    let Stage { ann, ben, anns, bens } = Stage::new().await?;
    let (peer, serving) = meet(&bens, &anns).await;
    let mut peer = peer?;
    assert_eq!((peer.who().account, peer.who().device), (ann.account(), ann.device()));

    let before = peer.compare().await?;
    assert!(before.there.seq > before.here.seq && before.same_acl && before.unlogged.is_empty());
    assert_eq!(before.trees.len(), 21, "twenty that are new, and one that changed");
    for tree in &before.trees {
        let there = tree.there.as_ref().ok_or("Ann has them all")?;
        assert_eq!(tree.unlogged_here, there.heads, "no log here has them");
    }
    let known: Vec<_> = before.trees.iter().filter(|t| t.here.is_some()).collect();
    assert_eq!(known.len(), 1);
    assert!(known[0].unlogged_there.is_empty(), "Ann's log has the change that was before");

    let pulled = peer.pull().await?;
    assert_eq!((pulled.from, pulled.to), (before.here.seq, before.there.seq));
    assert_eq!((heads(&bens)?, seen(&bens)?), (heads(&anns)?, seen(&anns)?));
    let after = peer.compare().await?;
    assert!(after.is_same() && after.here == after.there, "{after:?}");
    assert_eq!(peer.pull().await?.from, pulled.to, "nothing more to take");
    drop(peer);
    serving.await??;
    // The other way there is nothing to take, and nothing is lost.
    let (peer, _) = meet(&anns, &bens).await;
    assert!(peer?.compare().await?.is_same());
    ben.shut().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_log_has_is_shown_and_not_taken() -> Outcome {
    let Stage { ann: _ann, ben: _ben, anns, bens } = Stage::new().await?;
    anns.objects().put("item", "draft", json!({ "n": 1 })).await?;
    anns.objects().put("item", "changed", json!({ "n": 2 })).await?;
    let (peer, _serving) = meet(&bens, &anns).await;
    let mut peer = peer?;
    peer.pull().await?;
    let compared = peer.compare().await?;
    assert!(compared.trees.is_empty(), "logs are the same");
    assert_eq!(compared.unlogged.len(), 2);
    assert!(!compared.is_same());
    let draft = anns.objects().tree("item", "draft")?.ok_or("Ann has it")?.id();
    assert!(compared.unlogged.iter().any(|tree| tree.tree == draft && tree.heads.len() == 1));
    // It is neither an object nor a parent of what is written here.
    assert_eq!(bens.objects().get("item", "draft")?, None);
    assert_eq!(bens.objects().get("item", "changed")?.ok_or("logged")?.fields["n"], 1);
    bens.objects().put("item", "changed", json!({ "n": 3 })).await?;
    let (back, _serving) = meet(&anns, &bens).await;
    let back = back?.compare().await?;
    assert_eq!(back.unlogged.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_meet() -> Outcome {
    let node = NodeProcess::start();
    let ann = TestClient::create("Ann", node.address()).await;
    let eve = TestClient::create("Eve", node.address()).await;
    let anns = ann.create_space("Club").await?;
    let eves = join(&anns, &eve, Role::Reader).await?;
    anns.change(AclChange::RemoveMembers { accounts: vec![eve.account()] }).await?;
    // Eve does not know yet, or does: Ann's log decides.
    let (near, far) = duplex(PIPE_BYTES);
    let serving = tokio::spawn({
        let anns = anns.clone();
        async move { anns.serve_peer(far).await }
    });
    let refused = eves.meet(near).await.err().ok_or("she is no member")?;
    assert!(matches!(refused, PeerError::Refused { reason: "PEER_REFUSAL_NOT_A_MEMBER", .. }), "{refused:?}");
    let served = serving.await?.err().ok_or("she is no member")?;
    assert!(matches!(served, PeerError::NotAMember { account } if account == eve.account()), "{served:?}");

    let other = ann.create_space("Other").await?;
    let (refused, _) = meet(&other, &anns).await;
    assert!(matches!(refused.err(), Some(PeerError::Refused { reason: "PEER_REFUSAL_SPACE", .. })));
    Ok(())
}

/// What a liar between the two does to each answer.
type Twist = fn(&mut Answer);

/// Passes frames on, and twists answers.
async fn meet_through(asks: &Space, serves: &Space, twist: Twist) -> Result<Peer, PeerError> {
    let (near, mut asked) = duplex(PIPE_BYTES);
    let (mut serving, far) = duplex(PIPE_BYTES);
    let serves = serves.clone();
    tokio::spawn(async move { serves.serve_peer(far).await });
    tokio::spawn(async move {
        while let Some(request) = frame::<PeerRequest>(&mut asked).await {
            pass(&mut serving, &request).await;
            let Some(mut response) = frame::<PeerResponse>(&mut serving).await else { return };
            response.message.iter_mut().for_each(twist);
            pass(&mut asked, &response).await;
        }
    });
    asks.meet(near).await
}

async fn frame<M: prost::Message + Default>(stream: &mut DuplexStream) -> Option<M> {
    let len = stream.read_u32().await.ok()?;
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).await.ok()?;
    M::decode(Bytes::from(bytes)).ok()
}

async fn pass(stream: &mut DuplexStream, message: &impl prost::Message) {
    let bytes = message.encode_to_vec();
    let _ = stream.write_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).await;
    let _ = stream.write_all(&bytes).await;
}

/// A liar can withhold, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_that_the_home_did_not_sign_for() -> Outcome {
    let Stage { ann: _ann, ben: _ben, anns, bens } = Stage::new().await?;
    let before = (heads(&bens)?, seen(&bens)?);
    let lies: [(&str, Twist); 6] = [
        ("another order", |answer| {
            if let Answer::Ids(ids) = answer {
                let mut turned = ids.ids.to_vec();
                turned.rotate_left(32);
                ids.ids = turned.into();
            }
        }),
        ("fewer ids", |answer| {
            if let Answer::Ids(ids) = answer {
                ids.ids = ids.ids.slice(..ids.ids.len() - 32);
            }
        }),
        ("other records", |answer| {
            if let Answer::Entries(entries) = answer {
                entries.records.reverse();
            }
        }),
        ("no records", |answer| {
            if let Answer::Entries(entries) = answer {
                entries.records.clear();
            }
        }),
        ("no receipt", |answer| {
            if let Answer::State(state) = answer {
                state.receipt = None;
            }
        }),
        ("a receipt for more", |answer| {
            if let Answer::State(state) = answer
                && let Some(receipt) = state.receipt.as_mut().and_then(|export| export.receipt.as_mut())
            {
                let mut body = receipt.body.to_vec();
                body.iter_mut().rev().take(8).for_each(|byte| *byte ^= 1);
                receipt.body = body.into();
            }
        }),
    ];
    for (name, twist) in lies {
        let mut peer = meet_through(&bens, &anns, twist).await?;
        let refused = peer.pull().await.err().ok_or(name)?;
        let told = matches!(refused, PeerError::BadAnswer(_) | PeerError::Unproven { .. } | PeerError::Diverged { .. });
        assert!(told, "{name}: {refused:?}");
        assert_eq!((heads(&bens)?, seen(&bens)?), before, "{name}");
    }
    let mut honest = meet_through(&bens, &anns, |_| {}).await?;
    honest.pull().await?;
    assert_eq!(heads(&bens)?, heads(&anns)?);
    Ok(())
}

/// A proof is by the device that the certificate names, for this meeting.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_is_none_ends_the_meeting() -> Outcome {
    let Stage { ann: _ann, ben: _ben, anns, bens } = Stage::new().await?;
    let refused = meet_through(&bens, &anns, |answer| {
        if let Answer::Hello(hello) = answer {
            let mut signature = hello.signature.to_vec();
            signature[3] ^= 1;
            hello.signature = signature.into();
        }
    });
    assert!(matches!(refused.await.err(), Some(PeerError::BadProof)));
    let other_nonce = meet_through(&bens, &anns, |answer| {
        if let Answer::Hello(hello) = answer {
            hello.nonce = Bytes::from_static(&[7; 32]);
        }
    });
    assert!(matches!(other_nonce.await.err(), Some(PeerError::BadProof)));
    Ok(())
}

/// Two members who were told two stories find out when they meet, without the node: it is held against the node, with both of
/// its signatures, and neither calls the other a liar.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_another_story_is_no_liar() -> Outcome {
    let mut node = NodeProcess::start();
    let ann = TestClient::create("Ann", node.address()).await;
    let ben = TestClient::create("Ben", node.address()).await;
    let anns = ann.create_space("Club").await?;
    let bens = join(&anns, &ben, Role::Writer).await?;
    bens.await_synced_within(PATIENCE).await?;
    anns.await_synced_within(PATIENCE).await?;
    let id = anns.id();
    drop(bens);
    let bens_dir = ben.shut().await;
    node.kill();
    let old = node.copy_store();
    node.restart();
    ann.reconnect();
    anns.objects().put("item", "told to Ann", json!({ "n": 1 })).await?;
    anns.await_synced_within(PATIENCE).await?;
    drop(anns);
    let anns_dir = ann.shut().await;
    node.kill();
    node.put_back(&old);
    node.restart();
    let ben = TestClient::open(bens_dir).await;
    let bens = ben.space(id)?;
    bens.objects().put("item", "told to Ben", json!({ "n": 2 })).await?;
    bens.await_synced_within(PATIENCE).await?;
    node.kill();

    let ann = TestClient::open(anns_dir).await;
    let anns = ann.space(id)?;
    for (asks, serves) in [(&anns, &bens), (&bens, &anns)] {
        let (peer, _serving) = meet(asks, serves).await;
        let parted = peer?.pull().await.err().ok_or("their logs part")?;
        assert!(matches!(parted, PeerError::Diverged { .. }), "{parted:?}");
        let accusation = asks.accusations()?.pop().ok_or("the home told two stories")?;
        assert_eq!((accusation.kind, accusation.state), (AccusationKind::Fork, AccusationState::Open));
        client_sdk::judge(&accusation.evidence.ok_or("with both its signatures")?)?;
    }
    Ok(())
}
