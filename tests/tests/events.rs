//! The events of a space: told in the order of the log, each once, over restarts and to slow readers.

use std::collections::BTreeSet;

use client_sdk::{Event, EventCursor, InviteOptions, LoggedEvent, LoggedEvents, Role, Space, TreeId};
use serde_json::json;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join, rows};

const MANY: usize = 6_000;

/// S81: a reader that stops anywhere, over restarts of its client, is told what one is told that reads all at once.
#[tokio::test(flavor = "multi_thread")]
async fn s81_a_cursor_over_restarts_loses_and_doubles_nothing() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let mut member = TestClient::create("Member", node.address()).await;
    let third = TestClient::create("Third", node.address()).await;
    let space = admin.create_space("Club").await?;
    let id = join(&space, &member, Role::Writer).await?.id();

    let mut cursor = EventCursor::START;
    let mut told = Vec::new();
    for round in 0..6 {
        // While the member is not there: objects, a change of role, somebody who comes and goes.
        let dir = member.shut().await;
        for n in usize::from(round > 3)..round {
            space.objects().put("item", &n.to_string(), json!({ "round": round })).await?;
        }
        space.objects().put("item", "twice", json!({ "n": round })).await?;
        let role = if round % 2 == 0 { Role::Reader } else { Role::Writer };
        if round > 0 {
            space.change_role(member_of(&space, "Member")?, role).await?;
        }
        if round == 2 {
            third.join(&space.invite(InviteOptions::open()).await?.token).await?.ready(PATIENCE).await?;
            space.remove_members(&[third.account()]).await?;
        }
        if round == 3 {
            space.objects().purge("item", "0").await?;
        }
        space.await_synced_within(PATIENCE).await?;

        member = TestClient::open(dir).await;
        let joined = member.space(id)?;
        joined.await_synced_within(PATIENCE).await?;
        // As it would be kept in a file.
        let mut events = joined.events_from(cursor.to_string().parse()?);
        let stop_after = 1 + round * 3;
        for _ in 0..stop_after {
            let Some(event) = events.next_now()? else { break };
            cursor = event.cursor;
            told.push((event.seq, event.event));
        }
    }
    let joined = member.space(id)?;
    told.extend(all_from(&joined, cursor)?.into_iter().map(|e| (e.seq, e.event)));
    let at_once = plain(all_from(&joined, EventCursor::START)?);
    // What was told by its name before it was purged has none any more.
    let purged = joined.objects().tree_id("item", "0")?;
    let told: Vec<_> = told.into_iter().map(|(seq, event)| (seq, nameless(event, purged))).collect();
    assert_eq!(told, at_once);
    assert!(at_once.is_sorted_by_key(|(seq, _)| *seq), "in the order of the log");
    let revealed = |events: &[(u64, Event)]| events.iter().filter(|(_, e)| matches!(e, Event::Revealed { .. })).count();
    assert_eq!(revealed(&at_once), 1, "the keys came with the acceptance, after things were written");

    // Everybody is told the same, but for what each can read when.
    let mut others = plain(all_from(&space, EventCursor::START)?);
    assert_eq!(revealed(&others), 0, "the founder had every key from the start");
    others.push(at_once.iter().find(|(_, e)| matches!(e, Event::Revealed { .. })).cloned().ok_or("counted above")?);
    let set = |events: &[(u64, Event)]| events.iter().map(|e| format!("{e:?}")).collect::<BTreeSet<_>>();
    assert_eq!(set(&others), set(&at_once));
    let gone = Event::MemberGone { space: id, account: third.account(), removed: true };
    assert!(at_once.iter().any(|(_, event)| *event == gone));
    Ok(())
}

/// A reader that reads nothing for long holds nobody up, and is told everything afterwards. One that waits is woken.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_lags_and_loses_nothing() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Club").await?;
    let joined = join(&space, &member, Role::Reader).await?;
    let mut slow = joined.events_from(joined.event_cursor()?);
    let mut hints = joined.events();
    for chunk in 0..MANY / 500 {
        let objects = rows("row", chunk * 500..(chunk + 1) * 500, |n| json!({ "n": n }));
        space.objects().put_many(objects).await?;
    }
    space.await_synced_within(PATIENCE).await?;
    joined.await_synced_within(PATIENCE).await?;
    assert!(matches!(hints.next().await, Some(Event::Lagged { .. })), "more than the hints keep");

    let mut ids = Vec::new();
    while let Some(told) = slow.next_now()? {
        if let Event::Object { id, .. } = told.event {
            ids.push(id.parse::<usize>()?);
        }
    }
    assert_eq!(ids, (0..MANY).collect::<Vec<_>>(), "each once, in order");
    let waiting = tokio::spawn(async move { next_object(&mut slow).await });
    space.objects().put("row", "last", json!({ "n": 1 })).await?;
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await???, "last");
    Ok(())
}

/// A cursor that is not of this log says so, and goes on from the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_lists_again() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let (one, two) = (admin.create_space("One").await?, admin.create_space("Two").await?);
    one.await_synced_within(PATIENCE).await?;
    two.await_synced_within(PATIENCE).await?;
    let mut events = one.events_from(two.event_cursor()?);
    assert_eq!(events.next_now()?.map(|e| e.event), Some(Event::ListAgain { space: one.id() }));
    assert_eq!(events.next_now()?, None);
    assert_eq!(events.cursor(), one.event_cursor()?);
    one.objects().put("item", "milk", json!({ "n": 1 })).await?;
    assert_eq!(next_object(&mut events).await?, "milk");
    Ok(())
}

async fn next_object(events: &mut LoggedEvents) -> Outcome<String> {
    loop {
        let told = tokio::time::timeout(PATIENCE, events.next()).await??.ok_or("the feed ended")?;
        if let Event::Object { id, .. } = told.event {
            return Ok(id);
        }
    }
}

fn all_from(space: &Space, cursor: EventCursor) -> Outcome<Vec<LoggedEvent>> {
    let mut events = space.events_from(cursor);
    let mut all = Vec::new();
    while let Some(told) = events.next_now()? {
        all.push(told);
    }
    Ok(all)
}

fn plain(events: Vec<LoggedEvent>) -> Vec<(u64, Event)> {
    events.into_iter().map(|e| (e.seq, e.event)).collect()
}

fn nameless(event: Event, purged: TreeId) -> Event {
    if let Event::Object { space, tree, .. } = event
        && tree == purged
    {
        return Event::Tree { space, tree };
    }
    event
}

fn member_of(space: &Space, name: &str) -> Outcome<client_sdk::AccountId> {
    let found = space.members()?.into_iter().find(|m| m.name.as_deref() == Some(name));
    Ok(found.ok_or_else(|| format!("no member {name}"))?.account)
}
