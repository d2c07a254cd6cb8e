//! Many people at the same moment: joins, approvals, and acts of admins. Whatever the order, one linear log comes of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client_sdk::{AccountId, AclError, AclId, Code, InviteOptions, JoinError, RequestStatus, Role, Space};
use serde_json::json;
use sync_core::acl::AclState;
use sync_tests::harness::{NodeProcess, Outcome, TestClient, join, object, until};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// What a crowd in one process, unoptimized, on two cores may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// So many accounts, made one after the other.
async fn crowd(node: &NodeProcess, people: usize) -> Vec<Arc<TestClient>> {
    let mut crowd = Vec::with_capacity(people);
    for n in 0..people {
        crowd.push(Arc::new(TestClient::create(&format!("Person {n}"), node.address()).await));
    }
    crowd
}

/// Runs one act of each at the same moment; what came of them, in their order.
async fn at_once<T: Send + 'static, F: Future<Output = Outcome<T>> + Send + 'static>(
    acts: impl IntoIterator<Item = F>,
) -> Outcome<Vec<T>> {
    let acts: Vec<F> = acts.into_iter().collect();
    let start = Arc::new(Barrier::new(acts.len()));
    let mut running = JoinSet::new();
    for (n, act) in acts.into_iter().enumerate() {
        let start = start.clone();
        running.spawn(async move {
            start.wait().await;
            (n, act.await)
        });
    }
    let mut done = Vec::new();
    while let Some(joined) = running.join_next().await {
        let (n, result) = joined?;
        done.push((n, result.map_err(|e| format!("number {n}: {e}"))?));
    }
    done.sort_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

/// The ACL is one chain without gaps, the same on all replicas.
async fn linear(spaces: &[&Space]) -> Outcome<Arc<AclState>> {
    for _ in 0..2 {
        for space in spaces {
            space.await_synced_within(PATIENCE).await?;
        }
    }
    let acl = spaces[0].acl()?;
    assert_eq!(acl.records.len() as u64, acl.index + 1, "each record follows the one before");
    for space in spaces {
        assert_eq!(*space.acl()?, *acl);
        assert_eq!(space.status()?.quarantined, 0);
    }
    Ok(acl)
}

/// S55: 50 by an open invite at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn s55_fifty_open_joins_at_once() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    space.objects().put("note", "n", json!({ "text": "welcome" })).await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    let crowd = crowd(&node, 50).await;
    let begin = Instant::now();
    let joins = crowd.iter().map(|client| {
        let (client, token) = (client.clone(), token.clone());
        async move { Ok(client.join(&token).await?.ready(PATIENCE).await?.remove(0)) }
    });
    let joined = at_once(joins).await?;
    eprintln!("50 open joins took {:?}", begin.elapsed());
    let spaces: Vec<&Space> = [&space].into_iter().chain(&joined).collect();
    let acl = linear(&spaces).await?;
    assert_eq!(acl.members.len(), 51);
    assert_eq!(acl.index, 2 + 50, "one record of each join");
    assert_eq!(acl.invites.values().map(|i| i.uses).collect::<Vec<_>>(), [50]);
    for (client, space) in crowd.iter().zip(&joined) {
        assert_eq!(object(space, "note", "n")?.fields["text"], "welcome");
        assert_eq!(client.joins()?, []);
    }
    Ok(())
}

/// An invite for ten, and 20 who want in at the same moment: ten are in, ten are told why not.
#[tokio::test(flavor = "multi_thread")]
async fn s55_an_invite_for_ten_lets_ten_of_twenty_in() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    let token = space.invite(InviteOptions { max_uses: Some(10), ..InviteOptions::open() }).await?.token;
    let crowd = crowd(&node, 20).await;
    let joins = crowd.iter().map(|client| {
        let (client, token) = (client.clone(), token.clone());
        async move {
            match client.join(&token).await {
                Ok(joining) => Ok(Some(joining.ready(PATIENCE).await?.remove(0))),
                Err(error) if error.code() == Code::InviteUsedUp.name() => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
    });
    let joined = at_once(joins).await?;
    assert_eq!(joined.iter().flatten().count(), 10);
    for (client, space) in crowd.iter().zip(&joined) {
        assert_eq!(client.joins()?, []);
        assert_eq!(client.spaces()?.len(), usize::from(space.is_some()));
    }
    let spaces: Vec<&Space> = [&space].into_iter().chain(joined.iter().flatten()).collect();
    assert_eq!(linear(&spaces).await?.members.len(), 11);
    Ok(())
}

/// The pending requests of so many people, once they are here.
async fn requests(space: &Space, people: usize) -> Outcome<Vec<(AclId, AccountId)>> {
    until(space, || {
        let pending = space.requests()?.into_iter().filter(|r| r.status == RequestStatus::Pending);
        let pending: Vec<_> = pending.map(|r| (r.id, r.account)).collect();
        Ok((pending.len() == people).then_some(pending))
    })
    .await
}

/// Two admins and so many who asked to join; the admins' spaces, the people with their joins, and the requests.
struct Registration {
    node: NodeProcess,
    admins: [TestClient; 2],
    spaces: [Space; 2],
    crowd: Vec<Arc<TestClient>>,
    joins: Vec<client_sdk::Joining>,
    requests: Vec<(AclId, AccountId)>,
}

async fn registration(people: usize) -> Outcome<Registration> {
    let node = NodeProcess::start();
    let admins = [TestClient::create("One", node.address()).await, TestClient::create("Two", node.address()).await];
    let one = admins[0].create_space("School").await?;
    let two = join(&one, &admins[1], Role::Admin).await?;
    let token = one.invite(InviteOptions::approval()).await?.token;
    let crowd = crowd(&node, people).await;
    let joins = at_once(crowd.iter().map(|client| {
        let (client, token) = (client.clone(), token.clone());
        async move { Ok(client.join(&token).await?) }
    }))
    .await?;
    let requests_of_two = requests(&two, people).await?;
    let requests = requests(&one, people).await?;
    assert_eq!(requests, requests_of_two);
    Ok(Registration { node, admins, spaces: [one, two], crowd, joins, requests })
}

/// S55: 50 ask at the same moment, and two admins accept them, each going through all of them.
#[tokio::test(flavor = "multi_thread")]
async fn s55_fifty_requests_at_once_and_two_admins() -> Outcome {
    let Registration { node: _node, admins: _admins, spaces, crowd, joins, requests } = registration(50).await?;
    // One begins at the front, the other at the back: in the middle they meet, and one of them is told so.
    let accepting = [false, true].into_iter().zip(spaces.clone()).map(|(back, space)| {
        let mut requests = requests.clone();
        if back {
            requests.reverse();
        }
        async move {
            let mut accepted = 0;
            for (request, _) in requests {
                match space.approve_as(request, None).await {
                    Ok(()) => accepted += 1,
                    Err(error) if error.code() == Code::RequestUnknown.name() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(accepted)
        }
    });
    let accepted: Vec<usize> = at_once(accepting).await?;
    assert_eq!(accepted.iter().sum::<usize>(), 50, "each request is accepted by one of them: {accepted:?}");
    assert!(accepted.iter().all(|n| *n > 0), "{accepted:?}");
    let ready = at_once(joins.into_iter().map(|joining| async move { Ok(joining.ready(PATIENCE).await?.remove(0)) }));
    let joined = ready.await?;
    let all: Vec<&Space> = spaces.iter().chain(&joined).collect();
    let acl = linear(&all).await?;
    assert_eq!(acl.members.len(), 52);
    assert!(acl.requests.values().all(|r| matches!(r.status, RequestStatus::Accepted { .. })));
    assert!(crowd.iter().all(|client| acl.members.contains_key(&client.account())));
    Ok(())
}

/// Waits until no device of an account works on a join.
async fn nothing_joins(client: &TestClient) -> Outcome {
    let mut events = client.events();
    while !client.joins()?.is_empty() {
        tokio::time::timeout(PATIENCE, events.next()).await?;
    }
    Ok(())
}

/// S82: 15 register together; twelve are accepted by two admins at the same time, three declined. Whoever is ready has the profile
/// that was prepared for it.
#[tokio::test(flavor = "multi_thread")]
async fn s82_fifteen_register_together() -> Outcome {
    let Registration { node: _node, admins: _admins, spaces, crowd, joins, requests } = registration(15).await?;
    let acts = requests.iter().enumerate().map(|(n, (request, account))| {
        let (space, request, account) = (spaces[n % 2].clone(), *request, *account);
        async move {
            if n % 5 == 4 {
                space.decline(request).await?;
            } else {
                let prepare = |w: &mut client_sdk::Preparation| -> Result<(), AclError> {
                    let id = w.account().to_string();
                    w.put("profile", &id, json!({ "number": n, "of": id }))?;
                    Ok(())
                };
                space.approve(request, None, prepare).await?;
            }
            Ok((account, n))
        }
    });
    // All fifteen decisions at the same moment, seven or eight by each admin.
    let decided = at_once(acts).await?;
    let number = |client: &TestClient| {
        decided.iter().find(|(account, _)| *account == client.account()).map(|(_, n)| *n).expect("decided")
    };
    let mut joined = Vec::new();
    for (client, joining) in crowd.iter().zip(&joins) {
        let n = number(client);
        match joining.ready(PATIENCE).await {
            Ok(mut ready) => {
                assert_ne!(n % 5, 4);
                let space = ready.remove(0);
                // At the very moment when it is ready, and for its eyes.
                let profile = object(&space, "profile", &client.own())?;
                assert_eq!((&profile.fields["number"], &profile.fields["of"]), (&json!(n), &json!(client.own())));
                joined.push(space);
            }
            Err(error) => {
                assert!(matches!(error, JoinError::Declined), "{error:?}");
                assert_eq!(n % 5, 4);
                assert_eq!(client.spaces()?, []);
            }
        }
        nothing_joins(client).await?;
    }
    assert_eq!(joined.len(), 12);
    let all: Vec<&Space> = spaces.iter().chain(&joined).collect();
    let acl = linear(&all).await?;
    assert_eq!(acl.members.len(), 14);
    for space in all {
        assert_eq!(space.objects().list("profile")?.len(), 12);
    }
    Ok(())
}

/// 50 admins do one thing each at the same moment: all of it lands, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_admins_act_at_once() -> Outcome {
    let node = NodeProcess::start();
    let owner = TestClient::create("Owner", node.address()).await;
    let space = owner.create_space("Club").await?;
    let crowd = crowd(&node, 50).await;
    let members: Vec<_> = crowd.iter().map(|client| (client.account(), Role::Admin)).collect();
    space.add_members(&members).await?;
    let opened = at_once(crowd.iter().map(|client| {
        let (client, id) = (client.clone(), space.id());
        async move {
            let space = client.open_joined(id, PATIENCE).await?;
            space.await_synced_within(PATIENCE).await?;
            Ok(space)
        }
    }))
    .await?;
    let before = linear(&opened.iter().collect::<Vec<_>>()).await?;
    let begin = Instant::now();
    let acts = opened.iter().cloned().enumerate().map(|(n, space)| async move {
        match n % 5 {
            0 | 1 => drop(space.invite(InviteOptions::approval()).await?),
            2 => drop(space.invite(InviteOptions::open()).await?),
            3 => space.rotate_keys().await?,
            _ => space.add_members(&[(sync_tests::hostile::some_account(), Role::Reader)]).await?,
        }
        Ok(())
    });
    at_once(acts).await?;
    eprintln!("50 acts took {:?}", begin.elapsed());
    let all: Vec<&Space> = [&space].into_iter().chain(&opened).collect();
    let acl = linear(&all).await?;
    assert_eq!(acl.index, before.index + 50, "each act is one record");
    assert_eq!(acl.epoch.0, before.epoch.0 + 10);
    assert_eq!((acl.invites.len(), acl.members.len()), (30, 51 + 10));
    let authors: BTreeSet<_> = acl.invites.values().map(|i| i.creator).collect();
    assert_eq!(authors.len(), 30);
    Ok(())
}
