//! Opening a session: the happy path, and each way it is refused.

use crate::common::{Caller, Person, Stage, code, dial, start};
use bytes::Bytes;
use sync_core::code::Code;
use sync_proto::TOKEN_KEY;
use sync_proto::status::Failure;
use sync_proto::v1::{HeadUpdatesRequest, Proof, SpacePullRequest, VersionRange};
use tonic::Request;

async fn refused(change: impl FnOnce(&mut sync_proto::v1::Hello)) -> Code {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let mut hello = Person::new(1).hello();
    change(&mut hello);
    let error = Caller::over(dial(&node).await, &Person::new(1), hello).await.err().unwrap();
    node.shutdown().await;
    code(&error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_device_gets_a_token_that_opens_calls() {
    let mut stage = Stage::new().await;
    let request = stage.alice.request(SpacePullRequest { space: stage.space.id.to_bytes(), invite_proof: None });
    let pulled = stage.alice.client.space_pull(request).await.unwrap().into_inner();
    assert_eq!(pulled.position.unwrap().seq, 2);
    assert_eq!(pulled.header, Some(stage.space.header.raw().clone().into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn papers_that_do_not_fit_are_refused() {
    let bob = Person::new(2);
    assert_eq!(refused(|h| h.account = bob.account().to_bytes()).await, Code::SessionRefused);
    assert_eq!(refused(|h| h.device = bob.device_id().to_bytes()).await, Code::SessionRefused);
    let of_bob = bob.certificate().raw().clone();
    assert_eq!(refused(|h| h.certificate = Some(of_bob.into())).await, Code::SessionRefused);
    let list_of_bob = bob.list(1, &[&Person::new(1).device]).raw().clone();
    assert_eq!(refused(|h| h.device_list = Some(list_of_bob.into())).await, Code::SessionRefused);
    let without = Person::new(1).list(1, &[&bob.device]).raw().clone();
    assert_eq!(refused(|h| h.device_list = Some(without.into())).await, Code::DeviceRevoked);
    assert_eq!(refused(|h| h.certificate = None).await, Code::Malformed);
    assert_eq!(refused(|h| h.client_nonce = Bytes::from_static(&[1; 31])).await, Code::Malformed);
    assert_eq!(refused(|h| h.account = Bytes::from_static(&[0; 32])).await, Code::BadKey);
    assert_eq!(refused(|h| h.features = vec!["x".repeat(129 << 10)]).await, Code::TooLarge);
    let mut forged: sync_core::pb::SignedRecord = Person::new(1).certificate().raw().clone().into();
    forged.signature = Bytes::from_static(&[7; 64]);
    assert_eq!(refused(|h| h.certificate = Some(forged)).await, Code::BadSignature);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_mismatch_names_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let mut hello = Person::new(1).hello();
    hello.versions = Some(VersionRange { min: 7, max: 9 });
    let error = dial(&node).await.open_session(hello).await.unwrap_err();
    let failure = Failure::from_status(&error).unwrap();
    assert_eq!(failure.code, Code::VersionMismatch);
    assert!(failure.message.contains("7 to 9") && failure.message.contains("1 to 1"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_good_once_and_by_the_right_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let (alice, bob) = (Person::new(1), Person::new(2));
    let mut client = dial(&node).await;
    let challenge = client.open_session(alice.hello()).await.unwrap().into_inner();
    let thief = Person { key: alice.key.clone(), device: alice.device.clone() };
    let (proof, _) = thief.answer(challenge);
    let forged = Proof { signature: Bytes::from_static(&[1; 64]), ..proof.clone() };
    assert_eq!(code(&client.prove_session(forged).await.unwrap_err()), Code::SessionRefused);
    // A failed proof used the handshake up.
    assert_eq!(code(&client.prove_session(proof).await.unwrap_err()), Code::SessionRefused);

    let challenge = client.open_session(bob.hello()).await.unwrap().into_inner();
    let (proof, _) = bob.answer(challenge);
    client.prove_session(proof.clone()).await.unwrap();
    assert_eq!(code(&client.prove_session(proof).await.unwrap_err()), Code::SessionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_opens_nothing_is_expired() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let mut client = dial(&node).await;
    for token in [None, Some("a".repeat(52)), Some("not base32!".into()), Some(String::new())] {
        let mut request = Request::new(SpacePullRequest::default());
        if let Some(token) = token {
            request.metadata_mut().insert(TOKEN_KEY, token.parse().unwrap());
        }
        assert_eq!(code(&client.space_pull(request).await.unwrap_err()), Code::SessionExpired);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_device_list_ends_the_sessions_of_those_it_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let phone = Person::new(1);
    let laptop = Person { device: crate::common::key(55), ..phone.clone() };
    let both = phone.list(1, &[&phone.device, &laptop.device]);
    let mut on_phone = Caller::over(dial(&node).await, &phone, phone.hello_with(&both)).await.unwrap();
    let open = on_phone.request(tokio_stream::pending::<HeadUpdatesRequest>());
    let mut stream = on_phone.client.head_updates(open).await.unwrap().into_inner();

    let laptop_only = phone.list(2, &[&laptop.device]);
    Caller::over(dial(&node).await, &laptop, laptop.hello_with(&laptop_only)).await.unwrap();

    assert_eq!(code(&stream.message().await.unwrap_err()), Code::DeviceRevoked);
    let request = on_phone.request(SpacePullRequest::default());
    assert_eq!(code(&on_phone.client.space_pull(request).await.unwrap_err()), Code::DeviceRevoked);
    // The older list does not bring it back; the known one decides.
    let again = Caller::over(dial(&node).await, &phone, phone.hello_with(&both)).await;
    assert_eq!(code(&again.err().unwrap()), Code::DeviceRevoked);
    Caller::over(dial(&node).await, &laptop, laptop.hello_with(&both)).await.unwrap();
}
