//! Who asked for something lasting and went away: what was kept of it is done all the same, in the same process.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use client_sdk::{Client, InviteOptions, JoinError, JoinStage, Role, Space};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, gone, join, object, request_of, until};
use sync_tests::relay::{Calls, Relay};

/// Asks, and hangs up at the first moment at which there is anything to wait for. Where there is nothing, it is done already.
async fn hang_up_on<T>(asking: impl Future<Output = T>) {
    hang_up_after(1, asking).await;
}

/// Asks, and hangs up after so many looks at what becomes of it. Whether it was answered before that.
async fn hang_up_after<T>(looks: usize, asking: impl Future<Output = T>) -> bool {
    let (mut asking, mut left) = (pin!(asking), looks);
    std::future::poll_fn(move |cx| {
        if asking.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        left -= 1;
        if left == 0 { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

async fn club() -> Outcome<(NodeProcess, TestClient, Space)> {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Club").await?;
    Ok((node, admin, space))
}

async fn let_in(space: &Space, member: &Client) -> Outcome {
    space.approve_as(request_of(space, member).await?, None).await?;
    Ok(())
}

/// Waits until no join is left over.
async fn no_joins(client: &Client) -> Outcome {
    let mut events = client.events();
    let waiting = async {
        while !client.joins()?.is_empty() {
            events.next().await.ok_or("the client was closed")?;
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| format!("{:?}", client.joins()))?
}

/// The space comes by itself, with what is in it, and the join is over.
async fn comes(space: &Space, member: &Client) -> Outcome {
    let theirs = member.wait_for_space(space.id(), PATIENCE).await?;
    theirs.await_synced().await?;
    assert_eq!(theirs.name()?.as_deref(), Some("Club"));
    no_joins(member).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wanted_to_leave_leaves() -> Outcome {
    let (node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    hang_up_on(theirs.leave()).await;
    gone(&theirs).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_is_made_whole() -> Outcome {
    let node = NodeProcess::start();
    let owner = TestClient::create("Owner", node.address()).await;
    hang_up_on(owner.create_space("Club")).await;
    let mut events = owner.events();
    let named = async {
        loop {
            if let Some(space) = owner.spaces()?.into_iter().find(|s| s.name.as_deref() == Some("Club")) {
                return Outcome::Ok(owner.space(space.id)?);
            }
            // Its name comes after it, and is no event of the client.
            let _ = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        }
    };
    let space = tokio::time::timeout(PATIENCE, named).await??;
    space.await_synced().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_write_that_is_wanted_again_goes_out() -> Outcome {
    let (mut node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let theirs = join(&space, &member, Role::Writer).await?;
    theirs.await_synced().await?;
    let account = member.account();
    let dir = member.shut().await;
    space.remove_members(&[account]).await?;
    node.kill();
    let member = TestClient::open(dir).await;
    let theirs = member.space(space.id())?;
    theirs.objects().put("note", "1", json!({ "text": "offline" })).await?;
    node.restart();
    member.reconnect();
    gone(&theirs).await?;
    let rejoined = join(&space, &member, Role::Writer).await?;
    let refused = rejoined.refused()?;
    assert_eq!(refused.len(), 1, "{refused:?}");

    let mut events = space.events();
    hang_up_on(rejoined.retry(refused[0].write)).await;
    let arrives = async {
        while space.objects().get("note", "1")?.is_none() {
            events.next().await.ok_or("the space was closed")?;
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(PATIENCE, arrives).await??;
    assert_eq!(object(&space, "note", "1")?.fields["text"], "offline");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_when_nobody_waits_for_it() -> Outcome {
    let (node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    drop(member.join(&token).await?);
    let_in(&space, &member).await?;
    comes(&space, &member).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_when_the_time_to_wait_is_over() -> Outcome {
    let (node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    let joining = member.join(&token).await?;
    let late = joining.ready(Duration::ZERO).await.expect_err("nobody let it in");
    assert!(matches!(late, JoinError::NotReady { .. }), "{late:?}");
    let_in(&space, &member).await?;
    comes(&space, &member).await?;
    // Whoever asks after that is told the same.
    assert_eq!(joining.ready(PATIENCE).await?[0].id(), space.id());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_when_the_node_did_not_answer_who_asked() -> Outcome {
    let (node, _admin, space) = club().await?;
    let relay = Relay::start(node.address()).await;
    let member = TestClient::create("Member", relay.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    relay.calls(|name| if name == "AclAppend" { Calls::Refuse } else { Calls::Forward });
    let mut events = member.events();
    tokio::select! {
        _ = member.join(&token) => panic!("nothing can be appended"),
        kept = async {
            while member.joins()?.is_empty() {
                events.next().await.ok_or("the client was closed")?;
            }
            Outcome::Ok(())
        } => kept?,
    }
    relay.heal();
    let_in(&space, &member).await?;
    comes(&space, &member).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_taken_back_is_taken_back() -> Outcome {
    let (node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    drop(member.join(&token).await?);
    assert_eq!(member.joins()?[0].stage, JoinStage::Requested);
    request_of(&space, &member).await?;
    hang_up_on(member.cancel_join(space.id())).await;
    no_joins(&member).await?;
    until(&space, || Ok(space.request_of(member.account()).is_err().then_some(()))).await
}

/// An answer to what was asked before is none to what is asked now.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_asked_again_goes_on() -> Outcome {
    let (node, _admin, space) = club().await?;
    let relay = Relay::start(node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    for is_declined in [true, false] {
        let member = TestClient::create("Member", relay.address()).await;
        let joining = member.join(&token).await?;
        let request = request_of(&space, &member).await?;
        if is_declined {
            space.decline(request).await?;
            assert!(matches!(joining.ready(PATIENCE).await, Err(JoinError::Declined)));
        } else {
            member.cancel_join(space.id()).await?;
            until(&space, || Ok(space.request_of(member.account()).is_err().then_some(()))).await?;
        }

        relay.calls(|name| if name == "AclAppend" { Calls::Refuse } else { Calls::Forward });
        let mut events = member.events();
        tokio::select! {
            _ = member.join(&token) => panic!("nothing can be appended"),
            kept = async {
                while member.joins()?.is_empty() {
                    events.next().await.ok_or("the client was closed")?;
                }
                Outcome::Ok(())
            } => kept?,
        }
        relay.heal();
        let_in(&space, &member).await?;
        comes(&space, &member).await?;
    }
    Ok(())
}

/// Wherever it is that whoever asked goes away: nothing is kept, or it is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_kept_and_goes_on_or_is_not_kept() -> Outcome {
    let (node, _admin, space) = club().await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    for looks in 1.. {
        let member = TestClient::create("Member", node.address()).await;
        member.connected(PATIENCE).await?;
        let is_answered = hang_up_after(looks, member.join(&token)).await;
        // What was on its way to the disk is there after that.
        member.account_synced(PATIENCE).await?;
        if !member.joins()?.is_empty() {
            request_of(&space, &member).await.map_err(|e| format!("after {looks} looks: {e}"))?;
        }
        if is_answered {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelling_is_done_wherever_one_hangs_up() -> Outcome {
    let (node, _admin, space) = club().await?;
    let member = TestClient::create("Member", node.address()).await;
    let token = space.invite(InviteOptions::approval()).await?.token;
    for looks in 1.. {
        drop(member.join(&token).await?);
        request_of(&space, &member).await?;
        let is_answered = hang_up_after(looks, member.cancel_join(space.id())).await;
        no_joins(&member).await.map_err(|e| format!("after {looks} looks: {e}"))?;
        until(&space, || Ok(space.request_of(member.account()).is_err().then_some(()))).await?;
        if is_answered {
            break;
        }
    }
    Ok(())
}

/// The last wish counts.
#[tokio::test(flavor = "multi_thread")]
async fn who_wants_to_join_after_all_joins() -> Outcome {
    let (node, _admin, space) = club().await?;
    let token = space.invite(InviteOptions::approval()).await?.token;
    for looks in 1.. {
        let member = TestClient::create("Member", node.address()).await;
        drop(member.join(&token).await?);
        request_of(&space, &member).await?;
        let is_answered = hang_up_after(looks, member.cancel_join(space.id())).await;
        drop(member.join(&token).await?);
        member.account_synced(PATIENCE).await?;
        let stages: Vec<_> = member.joins()?.into_iter().map(|join| join.stage).collect();
        assert_eq!(stages, [JoinStage::Requested], "after {looks} looks");
        until(&space, || Ok(space.request_of(member.account()).is_ok().then_some(()))).await?;
        let_in(&space, &member).await.map_err(|e| format!("after {looks} looks: {e}"))?;
        comes(&space, &member).await?;
        if is_answered {
            break;
        }
    }
    Ok(())
}

/// A join that waits for what an invite promised is over with the membership, whoever waits for it; and with the space.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_over_with_what_it_waits_for() -> Outcome {
    let (node, _admin, space) = club().await?;
    let must_see = vec![space.objects().tree_id("note", "never written")?];
    let options = InviteOptions { must_see, ..InviteOptions::approval() };
    let token = space.invite(options).await?.token;
    let member = TestClient::create("Member", node.address()).await;

    let joining = member.join(&token).await?;
    let_in(&space, &member).await?;
    let theirs = member.wait_for_space(space.id(), PATIENCE).await?;
    theirs.await_synced().await?;
    let waiting = tokio::spawn({
        let joining = member.join(&token).await?;
        async move { joining.ready(PATIENCE).await }
    });
    theirs.leave().await?;
    let left = tokio::time::timeout(PATIENCE / 2, waiting).await??.expect_err("it left");
    assert_eq!(left.code(), "NOT_A_MEMBER", "{left:?}");
    no_joins(&member).await?;
    // Whoever asks later is not let in by that.
    let left = joining.ready(PATIENCE).await.expect_err("it left");
    assert!(["NOT_A_MEMBER", "CANCELLED"].contains(&left.code()), "{left:?}");
    space.await_synced().await?;
    assert!(space.request_of(member.account()).is_err(), "it was asked anew");

    // Asked for anew, it comes anew, though what was here is forgotten.
    drop(member.join(&token).await?);
    drop(theirs);
    member.forget_space(space.id()).await?;
    assert_eq!(member.joins()?[0].stage, JoinStage::Requested);
    let_in(&space, &member).await?;
    let theirs = member.wait_for_space(space.id(), PATIENCE).await?;
    theirs.await_synced().await?;
    assert_eq!(member.joins()?.len(), 1, "what was promised is not here");
    space.delete().await?;
    until(&theirs, || Ok(theirs.acl()?.deleted.then_some(()))).await?;
    drop(theirs);
    member.forget_space(space.id()).await?;
    no_joins(&member).await?;
    let member = member.reopen().await;
    member.account_synced(PATIENCE).await?;
    assert_eq!(member.joins()?, []);
    assert_eq!(member.spaces()?, [], "it is forgotten");
    Ok(())
}
