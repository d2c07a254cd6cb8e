//! What a node says in its log about a call. The call of a tail is open for weeks: whatever its span is told with each message
//! is kept until the end, and printed in each line.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_sdk::{InviteOptions, ReasonCode};
use serde_json::json;
use sync_world::World;
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry};

const MINUTE: Duration = Duration::from_secs(60);
const WRITES: usize = 20;
/// A question in each second, and whatever else there is to be said.
const ASKED_IN_A_MINUTE: usize = 200;

/// How often each span that is open was told something after it began, and the most there was of any.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<(BTreeMap<u64, usize>, usize)>>);

impl<S: Subscriber> Layer<S> for Told {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        self.0.lock().expect("no panic").0.insert(id.into_u64(), 0);
    }

    fn on_record(&self, id: &Id, _: &Record<'_>, _: Context<'_, S>) {
        let (spans, most) = &mut *self.0.lock().expect("no panic");
        let times = spans.entry(id.into_u64()).or_default();
        *times += 1;
        *most = (*most).max(*times);
    }
}

#[test]
fn no_span_grows_with_the_life_of_its_call() {
    let told = Told::default();
    let layer = told.clone().with_filter(LevelFilter::from_level(Level::INFO));
    // Everything in a world happens on one thread.
    let _logging = tracing::subscriber::set_default(Registry::default().with(layer));
    World::seeded(1).clients(2).run(|world| async move {
        let [here, there] = ["alice", "bob"].map(|name| world.client(name).expect("it runs"));
        let space = here.create_space("Club").await.expect("a space is made offline");
        let invite = space.invite(InviteOptions::open()).await.expect("the node is there");
        let joining = there.join(&invite.token).await.expect("the token is good");
        let joined = joining.ready(MINUTE).await.expect("nothing is in the way").remove(0);
        for n in 0..WRITES {
            space.objects().put("note", &n.to_string(), json!({ "n": n })).await.expect("a write is local");
            space.await_synced_within(MINUTE).await.expect("the weather is good");
            joined.await_synced_within(MINUTE).await.expect("the weather is good");
        }
    });
    let (spans, most) = told.0.lock().expect("no panic").clone();
    assert!(spans.len() > WRITES, "the node names its calls: {} spans", spans.len());
    assert_eq!(most, 1, "a call names its space once, if it is one of one space");
}

#[test]
fn a_disk_without_room_makes_no_client_ask_without_end() {
    let told = Told::default();
    let layer = told.clone().with_filter(LevelFilter::from_level(Level::INFO));
    let _logging = tracing::subscriber::set_default(Registry::default().with(layer));
    let calls = move || told.0.lock().expect("no panic").0.len();
    World::seeded(1).clients(2).run(|world| async move {
        let [here, there] = ["alice", "bob"].map(|name| world.client(name).expect("it runs"));
        let known = here.create_space("Known").await.expect("a space is made offline");
        let invite = known.invite(InviteOptions::open()).await.expect("the node is there");
        let joining = there.join(&invite.token).await.expect("the token is good");
        let joined = joining.ready(MINUTE).await.expect("nothing is in the way").remove(0);
        let new = here.create_space("New").await.expect("a space is made offline");
        world.disk("alice").fill();
        joined.objects().put("note", "1", json!({ "n": 1 })).await.expect("a write is local");
        joined.await_synced_within(MINUTE).await.expect("the weather is good");
        let before = calls();
        tokio::time::sleep(MINUTE).await;
        let asked = calls() - before;
        assert!(asked < ASKED_IN_A_MINUTE, "{asked} calls in a minute that brought nothing");
        let reasons: Vec<_> = new.explain().expect("it is readable").into_iter().map(|r| r.code).collect();
        assert!(reasons.contains(&ReasonCode::StoreFull), "{reasons:?}");
        world.disk("alice").make_room();
        for space in [known, new] {
            space.await_synced_within(MINUTE).await.expect("there is room");
            assert_eq!(space.explain().expect("it is readable"), []);
        }
    });
}
