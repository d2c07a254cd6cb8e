//! Calls of the local service that the other tests of it do not make: what each answers, in the words of the SDK's own tests.

use client_sdk::local::{self, Listen, LocalChannel, Service, Serving};
use client_sdk::{AclChange, Role, Space};
use prost::Message as _;
use sync_core::acl::RequestStatus;
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::client_client::ClientClient;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join, until};
use tonic::{Code, Status};

/// What must not succeed is given this long, milliseconds.
const A_MOMENT_MS: u64 = 700;
const PATIENCE_MS: u64 = PATIENCE.as_secs() * 1000;

/// A client and its service, which ends with it.
struct Served {
    client: TestClient,
    rpc: ClientClient<LocalChannel>,
    serving: Serving,
}

impl Served {
    async fn new(name: &str, node: &NodeProcess) -> Outcome<Self> {
        Self::of(TestClient::create(name, node.address()).await).await
    }

    async fn of(client: TestClient) -> Outcome<Self> {
        let listen = Listen::Unix(client.dir.path().join(local::SOCKET_FILE));
        let serving = Service::new(client.client.clone(), client.dir.path()).start(listen).await?;
        let (_, channel) = local::connect(client.dir.path()).await?.ok_or("it answers")?;
        Ok(Self { client, rpc: ClientClient::new(channel), serving })
    }

    async fn club(&mut self) -> Outcome<String> {
        let request = pb::CreateSpaceRequest { name: "Club".to_owned(), options: None };
        Ok(self.rpc.create_space(request).await?.into_inner().space)
    }

    async fn put(&mut self, space: &str, id: &str) -> Outcome<u64> {
        let fields_json = format!(r#"{{"name":"{id}"}}"#);
        let request =
            pb::PutObjectRequest { space: space.to_owned(), r#type: ITEM.to_owned(), id: id.to_owned(), fields_json };
        Ok(self.rpc.put_object(request).await?.into_inner().write.ok_or("news is a write")?)
    }
}

const ITEM: &str = "item";

fn object(id: &str) -> Option<pb::TreeRef> {
    let object = pb::ObjectRef { r#type: ITEM.to_owned(), id: id.to_owned() };
    Some(pb::TreeRef { tree: Some(pb::tree_ref::Tree::Object(object)) })
}

fn code(status: &Status) -> String {
    pb::ErrorDetail::decode(status.details()).map(|detail| detail.code).unwrap_or_default()
}

fn patience(timeout_ms: u64) -> Option<pb::Patience> {
    Some(pb::Patience { timeout_ms: Some(timeout_ms), stall_ms: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn spaces_objects_and_trees() -> Outcome {
    let node = NodeProcess::start();
    let mut ada = Served::new("Ada", &node).await?;
    let space = ada.club().await?;
    let other = ada.club().await?;
    ada.rpc.rename_space(pb::RenameSpaceRequest { space: other.clone(), name: "Shed".to_owned() }).await?;
    let named = ada.rpc.get_space(pb::GetSpaceRequest { space: other.clone() }).await?.into_inner();
    assert_eq!((named.name.as_deref(), named.members), (Some("Shed"), 1));
    let opened = pb::OpenSpaceRequest { space: other.clone(), timeout_ms: PATIENCE_MS };
    assert_eq!(ada.rpc.open_space(opened).await?.into_inner().name, named.name);
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = ada.rpc.list_spaces(pb::ListSpacesRequest { page_size: 1, page_token }).await?.into_inner();
        assert!(page.spaces.len() <= 1);
        found.extend(page.spaces.into_iter().map(|s| s.space));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.sort();
    let mut expected = vec![space.clone(), other];
    expected.sort();
    assert_eq!(found, expected);

    // Several at once, all or none.
    let new = |id: &str, fields: &str| pb::NewObject {
        r#type: ITEM.to_owned(),
        id: id.to_owned(),
        fields_json: fields.to_owned(),
    };
    let objects = vec![new("milk", "{}"), new("bread", "nonsense")];
    let refused = ada.rpc.put_objects(pb::PutObjectsRequest { space: space.clone(), objects }).await;
    assert_eq!(refused.expect_err("one is no JSON").code(), Code::InvalidArgument);
    let objects = vec![new("milk", r#"{"n":1}"#), new("bread", r#"{"n":2}"#), new("salt", "{}")];
    let written = ada.rpc.put_objects(pb::PutObjectsRequest { space: space.clone(), objects }).await?.into_inner();
    assert_eq!(written.written.iter().filter(|w| w.write.is_some()).count(), 3);
    let (r#type, id) = (ITEM.to_owned(), "bread".to_owned());
    ada.rpc.delete_object(pb::DeleteObjectRequest { space: space.clone(), r#type: r#type.clone(), id }).await?;
    let purge = pb::PurgeObjectRequest { space: space.clone(), r#type, id: "salt".to_owned() };
    ada.rpc.purge_object(purge).await?;
    let list = pb::ListObjectsRequest { space: space.clone(), r#type: ITEM.to_owned(), ..Default::default() };
    let left = ada.rpc.list_objects(list).await?.into_inner().objects;
    assert_eq!(left.iter().map(|o| o.id.as_str()).collect::<Vec<_>>(), ["milk"]);
    let get = |id: &str| pb::GetTreeRequest { space: space.clone(), tree: object(id) };
    let milk = ada.rpc.get_tree(get("milk")).await?.into_inner();
    assert_eq!((milk.heads.len(), milk.purged, milk.object.map(|o| o.id)), (1, false, Some("milk".to_owned())));
    let bread = ada.rpc.get_tree(get("bread")).await?.into_inner();
    assert_eq!((bread.purged, bread.object), (false, None));
    assert!(ada.rpc.get_tree(get("salt")).await?.into_inner().purged);

    // Foreign data: what is appended is told to whoever watches.
    let change = |text: &str| pb::TreeChange { payload: text.to_owned().into(), ..Default::default() };
    let (data_type, changes) = ("log/1".to_owned(), vec![change("one")]);
    let request = pb::CreateTreeRequest { space: space.clone(), data_type, write_rule: None, changes };
    let tree = ada.rpc.create_tree(request).await?.into_inner().tree;
    let watch = pb::WatchTreeRequest { space: space.clone(), tree: tree.clone() };
    let mut watched = ada.rpc.watch_tree(watch).await?.into_inner();
    let first = watched.message().await?.and_then(|m| m.tree).ok_or("as it is now")?;
    let (data_type, changes) = ("log/1".to_owned(), vec![change("two")]);
    let append = pb::AppendTreeRequest { space: space.clone(), tree: tree.clone(), data_type, changes };
    let appended = ada.rpc.append_tree(append).await?.into_inner();
    loop {
        let now = watched.message().await?.and_then(|m| m.tree).ok_or("it goes on")?;
        if now.heads == appended.changes {
            assert_ne!(now.heads, first.heads);
            break;
        }
    }
    // Those of the log.
    ada.client.space(space.parse()?)?.await_synced_within(PATIENCE).await?;
    let trees = pb::ListTreesRequest { space: space.clone(), ..Default::default() };
    let trees = ada.rpc.list_trees(trees).await?.into_inner().trees;
    assert!(trees.contains(&tree) && trees.contains(&milk.tree), "{trees:?}");
    ada.rpc.purge_tree(pb::PurgeTreeRequest { space: space.clone(), tree: tree.clone() }).await?;
    loop {
        if watched.message().await?.and_then(|m| m.tree).ok_or("it goes on")?.purged {
            break;
        }
    }
    drop(watched);
    ada.serving.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_awaits_and_writes_over_an_outage() -> Outcome {
    let mut node = NodeProcess::start();
    let mut ada = Served::new("Ada", &node).await?;
    let space = ada.club().await?;
    ada.put(&space, "milk").await?;
    let mut statuses = ada.rpc.watch_status(pb::WatchStatusRequest { space: space.clone() }).await?.into_inner();
    let up = pb::SyncState::UpToDate as i32;
    loop {
        let status = statuses.message().await?.ok_or("it goes on")?;
        assert_eq!(status.state == up, status.reasons.is_empty(), "{status:?}");
        if status.state == up && status.changes > 0 {
            break;
        }
    }
    ada.client.space(space.parse()?)?.await_synced_within(PATIENCE).await?;
    let of_tree = |id: &str| pb::GetTreeStatusRequest { space: space.clone(), tree: object(id) };
    let milk = ada.rpc.get_tree_status(of_tree("milk")).await?.into_inner();
    assert_eq!((milk.logged, milk.state, milk.reasons), (true, up, vec![]));
    let peers = ada.rpc.list_peers(pb::ListPeersRequest { space: space.clone() }).await?.into_inner().peers;
    assert_eq!((peers.len(), peers[0].class, peers[0].connected), (1, pb::PeerClass::Node as i32, true));
    let receipt = ada.rpc.get_receipt(pb::GetReceiptRequest { space: space.clone() }).await?.into_inner();
    assert!(receipt.durable && receipt.seq > 0, "{receipt:?}");

    node.kill();
    let offline = pb::SyncState::Offline as i32;
    while statuses.message().await?.ok_or("it goes on")?.state != offline {}
    let mut writes = Vec::new();
    for id in ["a", "b", "c"] {
        writes.push(ada.put(&space, id).await?);
    }
    let status = ada.rpc.get_status(pb::GetStatusRequest { space: space.clone() }).await?.into_inner();
    assert_eq!((status.state, status.pending), (offline, 3), "{status:?}");
    let explain = pb::ExplainSyncRequest { space: space.clone(), tree: object("milk") };
    let reasons = ada.rpc.explain_sync(explain).await?.into_inner().reasons;
    assert!(reasons.iter().any(|reason| reason.code == "NO_NODE"), "{reasons:?}");
    let items = pb::ListReasonItemsRequest {
        space: space.clone(),
        code: "PENDING".to_owned(),
        page_size: 2,
        page_token: String::new(),
    };
    let page = ada.rpc.list_reason_items(items.clone()).await?.into_inner();
    let rest = pb::ListReasonItemsRequest { page_token: page.next_page_token.clone(), ..items };
    let rest = ada.rpc.list_reason_items(rest).await?.into_inner();
    assert_eq!((page.items.len(), rest.items.len(), rest.next_page_token.as_str()), (2, 1, ""));
    let get_write = pb::GetWriteRequest { space: space.clone(), write: writes[0] };
    let write = ada.rpc.get_write(get_write.clone()).await?.into_inner();
    assert!(matches!(write.state, Some(pb::write::State::Pending(_))), "{write:?}");

    // What is waited for is kept under a number; one of them is forgotten.
    let keep = |what| pb::KeepAwaitRequest { space: space.clone(), what: Some(what) };
    let everything = keep(pb::keep_await_request::What::Synced(pb::EverythingSynced {}));
    let everything = ada.rpc.keep_await(everything).await?.into_inner().wait;
    let level = pb::Level::Durable.into();
    let one = keep(pb::keep_await_request::What::Write(pb::OneWrite { write: writes[1], level }));
    let one = ada.rpc.keep_await(one).await?.into_inner().wait;
    let kept = ada.rpc.list_awaits(pb::ListAwaitsRequest {}).await?.into_inner().awaits;
    assert_eq!(kept.iter().map(|k| k.wait).collect::<Vec<_>>(), [everything, one]);
    ada.rpc.drop_await(pb::DropAwaitRequest { wait: one }).await?;
    let resume = |timeout_ms| pb::ResumeAwaitRequest { wait: everything, patience: patience(timeout_ms) };
    let no = last(ada.rpc.resume_await(resume(A_MOMENT_MS)).await?.into_inner()).await?;
    assert!(matches!(&no, pb::resume_await_response::Step::Failed(no) if no.code == "NO_NODE"), "{no:?}");
    let gone = pb::ResumeAwaitRequest { wait: one, patience: None };
    let gone = match ada.rpc.resume_await(gone).await {
        Ok(steps) => steps.into_inner().message().await.expect_err("it was forgotten"),
        Err(status) => status,
    };
    assert_eq!(code(&gone), "UNKNOWN_WAIT", "{gone:?}");

    node.restart();
    let yes = last(ada.rpc.resume_await(resume(PATIENCE_MS)).await?.into_inner()).await?;
    assert!(matches!(&yes, pb::resume_await_response::Step::Synced(_)), "{yes:?}");
    assert_eq!(ada.rpc.list_awaits(pb::ListAwaitsRequest {}).await?.into_inner().awaits, [], "it is done");
    let write = ada.rpc.get_write(get_write).await?.into_inner();
    assert!(matches!(write.state, Some(pb::write::State::DurableSeq(_))), "{write:?}");
    let none = pb::DismissAccusationRequest { space: space.clone(), accusation: 7 };
    assert!(!ada.rpc.dismiss_accusation(none).await?.into_inner().found, "nobody is accused");
    drop(statuses);
    ada.serving.close().await;
    Ok(())
}

/// How a join ended that does not get ready.
async fn ended(mut steps: tonic::Streaming<pb::JoinResponse>) -> Outcome<Status> {
    loop {
        match steps.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Err("it ended without a word".into()),
            Err(status) => return Ok(status),
        }
    }
}

/// Whether anybody waits to be let in.
fn is_asked(space: &Space) -> Outcome<bool> {
    Ok(space.acl()?.requests.values().any(|request| matches!(request.status, RequestStatus::Pending)))
}

/// The last step of a resumed wait.
async fn last(mut steps: tonic::Streaming<pb::ResumeAwaitResponse>) -> Outcome<pb::resume_await_response::Step> {
    let mut last = None;
    while let Some(step) = steps.message().await? {
        last = step.step;
    }
    Ok(last.ok_or("a wait ends with an answer")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_refusals_and_leaving() -> Outcome {
    let mut node = NodeProcess::start();
    let mut ada = Served::new("Ada", &node).await?;
    let mut bob = Served::new("Bob", &node).await?;
    let space = ada.club().await?;
    let id = space.parse()?;
    let offer = pb::InviteOffer {
        space: space.clone(),
        mode: pb::InviteMode::Approval.into(),
        label: Some("for Bob".to_owned()),
        ..Default::default()
    };
    let token = ada.rpc.create_invite(pb::CreateInviteRequest { offers: vec![offer] }).await?.into_inner().token;
    let invites = pb::ListInvitesRequest { space: space.clone(), ..Default::default() };
    let invites = ada.rpc.list_invites(invites).await?.into_inner().invites;
    assert_eq!((invites.len(), invites[0].label.as_deref()), (1, Some("for Bob")));

    // Asked, and taken back; asked again, and declined.
    let requested = pb::JoinStage::Requested as i32;
    let ask = pb::JoinRequest { what: Some(pb::join_request::What::Token(token)), timeout_ms: PATIENCE_MS };
    for declined in [false, true] {
        let mut steps = bob.rpc.join(ask.clone()).await?.into_inner();
        let mut stage = None;
        while stage != Some(requested) {
            let step = steps.message().await?.and_then(|m| m.step).ok_or("it goes on")?;
            let pb::join_response::Step::Progress(progress) = step else { return Err("nobody let him in".into()) };
            stage = progress.joins.first().map(|join| join.stage);
        }
        drop(steps);
        let joins = bob.rpc.list_joins(pb::ListJoinsRequest {}).await?.into_inner().joins;
        assert_eq!((joins.len(), joins[0].stage, joins[0].here), (1, requested, true), "{joins:?}");
        let of_ada = ada.client.space(id)?;
        until(&of_ada, || Ok(is_asked(&of_ada)?.then_some(()))).await?;
        let list = pb::ListRequestsRequest { space: space.clone(), pending_only: true, ..Default::default() };
        let requests = ada.rpc.list_requests(list.clone()).await?.into_inner().requests;
        assert_eq!((requests.len(), requests[0].account.clone()), (1, bob.client.account().to_string()));
        if declined {
            let who = Some(pb::decline_request::Who::Request(requests[0].request.clone()));
            ada.rpc.decline(pb::DeclineRequest { space: space.clone(), who }).await?;
        } else {
            bob.rpc.cancel_join(pb::CancelJoinRequest { space: space.clone() }).await?;
            until(&of_ada, || Ok((!is_asked(&of_ada)?).then_some(()))).await?;
        }
        assert_eq!(ada.rpc.list_requests(list).await?.into_inner().requests, []);
    }

    let again = pb::JoinRequest { what: Some(pb::join_request::What::Space(space.clone())), ..ask };
    let declined = ended(bob.rpc.join(again).await?.into_inner()).await?;
    assert_eq!(code(&declined), "DECLINED", "{declined:?}");

    // A writer, offline, who is no writer any more when the node hears of it.
    let of_ada = ada.client.space(id)?;
    let of_bob = join(&of_ada, &bob.client, Role::Writer).await?;
    of_bob.await_synced_within(PATIENCE).await?;
    drop(of_bob);
    bob.serving.close().await;
    let dir = bob.client.shut().await;
    node.kill();
    let mut offline = Served::of(TestClient::open(dir).await).await?;
    for name in ["first", "second"] {
        offline.put(&space, name).await?;
    }
    offline.serving.close().await;
    let account = offline.client.account();
    let dir = offline.client.shut().await;
    node.restart();
    ada.client.reconnect();
    of_ada.change(AclChange::ChangeRole { account, role: Role::Reader }).await?;
    of_ada.await_synced_within(PATIENCE).await?;
    let mut bob = Served::of(TestClient::open(dir).await).await?;
    let of_bob = bob.client.space(id)?;
    until(&of_bob, || Ok((of_bob.status()?.refused == 2).then_some(()))).await?;
    let list = pb::ListRefusedWritesRequest { space: space.clone(), ..Default::default() };
    let refused = bob.rpc.list_refused_writes(list.clone()).await?.into_inner().writes;
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        matches!(&refused[0].content, Some(pb::refused_write::Content::Object(o)) if o.id == "first"),
        "{refused:?}"
    );
    of_ada.change(AclChange::ChangeRole { account, role: Role::Writer }).await?;
    of_bob.await_synced_within(PATIENCE).await.expect_err("what was refused is not forgotten");
    bob.rpc.retry_write(pb::RetryWriteRequest { space: space.clone(), write: refused[0].write }).await?;
    bob.rpc.dismiss_write(pb::DismissWriteRequest { space: space.clone(), write: refused[1].write }).await?;
    assert_eq!(bob.rpc.list_refused_writes(list).await?.into_inner().writes, []);
    of_bob.await_synced_within(PATIENCE).await?;
    of_ada.await_object(ITEM, "first", PATIENCE).await?;
    assert_eq!(of_ada.objects().get(ITEM, "second")?, None, "it was dismissed");

    // Devices: one, this one, which takes itself off no list.
    let devices = bob.rpc.list_devices(pb::ListDevicesRequest {}).await?.into_inner().devices;
    assert!(devices.iter().filter(|d| d.is_this).count() == 1, "{devices:?}");
    let this = pb::RevokeDeviceRequest { device: bob.rpc.get_me(pb::GetMeRequest {}).await?.into_inner().device };
    let refused = bob.rpc.revoke_device(this).await.expect_err("with nothing left to sign with");
    assert_eq!(code(&refused), "THIS_DEVICE", "{refused:?}");

    // Not forgotten by a member; by who left, for good.
    let forget = pb::ForgetSpaceRequest { space: space.clone() };
    let refused = bob.rpc.forget_space(forget.clone()).await.expect_err("he is a member");
    assert_eq!(code(&refused), "STILL_A_MEMBER", "{refused:?}");
    bob.rpc.leave_space(pb::LeaveSpaceRequest { space: space.clone() }).await?;
    until(&of_bob, || Ok(of_bob.acl()?.left.contains_key(&account).then_some(()))).await?;
    drop(of_bob);
    bob.rpc.forget_space(forget).await?;
    let gone = bob.rpc.get_space(pb::GetSpaceRequest { space }).await.expect_err("it is forgotten");
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    bob.serving.close().await;
    ada.serving.close().await;
    Ok(())
}
