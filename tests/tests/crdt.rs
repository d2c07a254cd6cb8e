//! Reducers: foreign CRDTs over trees, and states that depend on the order, against plain folds of the same changes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use automerge::transaction::Transactable as _;
use automerge::{ROOT, ReadDoc as _};
use bytes::Bytes;
use client_sdk::{
    ChangeId, FailedWhy, NewTree, Order, ParentRef, ReducedChange, Reducer, Role, Space, Tree, TreeId, TreeWrite,
    WriteRule,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sync_tests::harness::{NodeProcess, Outcome, PATIENCE, TestClient, join};
use yrs::Text as _;

#[path = "../../client-sdk/examples/shared_notes/reducer.rs"]
mod notes;
#[path = "../../client-sdk/examples/shared_text/reducer.rs"]
mod text;

fn one(payload: impl Into<Bytes>) -> Vec<TreeWrite> {
    vec![TreeWrite { parents: None, payload: payload.into() }]
}

fn of(data_type: &str) -> NewTree {
    NewTree { data_type: data_type.to_owned(), write_rule: WriteRule::WRITERS }
}

async fn synced(spaces: &[&Space]) -> Outcome {
    for _ in 0..2 {
        for space in spaces {
            space.await_synced_within(PATIENCE).await?;
        }
    }
    Ok(())
}

/// Two clients write to one Automerge document while the node is away: each sees its own writes, and then both see all of them.
#[tokio::test(flavor = "multi_thread")]
async fn automerge_documents_converge_after_offline_writes() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Notes").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let empty = automerge::Automerge::new();
    let tree =
        space.create_tree(of(notes::DATA_TYPE), one(notes::edit(&empty, |d| d.put(ROOT, "made", true))?)).await?;
    synced(&[&space, &joined]).await?;
    let mut reduced = Vec::new();
    for space in [&space, &joined] {
        reduced.push(space.tree(tree.tree)?.ok_or("synced")?.reduced::<notes::Notes>()?);
    }

    node.kill();
    for round in 0..5 {
        for (who, space) in [(0, &space), (1, &joined)] {
            let now = reduced[who].get().await?;
            let payload = notes::edit(&now.view, |document| {
                document.put(ROOT, format!("{who}-{round}"), round)?;
                document.put(ROOT, "last", who as i64)
            })?;
            space.append(tree.tree, notes::DATA_TYPE.to_owned(), one(payload)).await?;
            let now = reduced[who].get().await?;
            assert!(now.view.get(ROOT, format!("{who}-{round}"))?.is_some(), "one's own writes are there at once");
            assert_eq!(now.pending, round as usize + 1);
        }
    }
    node.restart();
    synced(&[&space, &joined]).await?;
    let (one, two) = (reduced[0].get().await?, reduced[1].get().await?);
    assert_eq!(one.view.get_heads(), two.view.get_heads());
    assert_eq!((one.changes, one.pending, one.unread), (11, 0, 0));
    assert_eq!(one.view.keys(ROOT).count(), 12);
    for key in one.view.keys(ROOT) {
        assert_eq!(one.view.get(ROOT, &key)?, two.view.get(ROOT, &key)?, "{key}");
    }

    // From the beginning it is what it became step by step.
    let dir = member.shut().await;
    let again = TestClient::open(dir).await;
    let mut fresh = again.space(space.id())?.tree(tree.tree)?.ok_or("kept")?.reduced::<notes::Notes>()?;
    assert_eq!(fresh.get().await?.view.get_heads(), one.view.get_heads());
    Ok(())
}

/// The same with a Yjs text; and one state for each tree, however many ask.
#[tokio::test(flavor = "multi_thread")]
async fn yjs_texts_converge_after_offline_writes() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Text").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    let first = text::edit(&text::empty(), |t, transaction| t.insert(transaction, 0, "begin "))?;
    let tree = space.create_tree(of(text::DATA_TYPE), one(first)).await?.tree;
    synced(&[&space, &joined]).await?;
    let mut reduced = Vec::new();
    for space in [&space, &joined] {
        reduced.push(space.tree(tree)?.ok_or("synced")?.reduced::<text::Text>()?);
    }
    node.kill();
    for round in 0..5 {
        for (who, space) in [(0, &space), (1, &joined)] {
            let now = reduced[who].get().await?;
            let word = format!("{}{round} ", if who == 0 { "a" } else { "b" });
            let payload = text::edit(&now.view, |t, transaction| {
                let end = t.len(transaction);
                t.insert(transaction, end, &word);
            })?;
            space.append(tree, text::DATA_TYPE.to_owned(), one(payload)).await?;
            assert!(reduced[who].get().await?.view.text.ends_with(&word));
        }
    }
    node.restart();
    synced(&[&space, &joined]).await?;
    let (one_, two) = (reduced[0].get().await?, reduced[1].get().await?);
    assert_eq!(one_.view.text, two.view.text);
    let mut words: Vec<_> = one_.view.text.split_whitespace().collect();
    words.sort_unstable();
    let expected = ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "b3", "b4", "begin"];
    assert_eq!(words, expected);

    // Rubbish is left out and listed; the text goes on.
    space.append(tree, text::DATA_TYPE.to_owned(), one(&b"\x05"[..])).await?;
    let payload = text::edit(&one_.view, |t, transaction| t.insert(transaction, 0, "before "))?;
    space.append(tree, text::DATA_TYPE.to_owned(), one(payload)).await?;
    synced(&[&space, &joined]).await?;
    for reduced in &mut reduced {
        let now = reduced.get().await?;
        assert!(now.view.text.starts_with("before "), "{:?}", now.view.text);
        assert!(matches!(&now.failed[..], [failed] if matches!(failed.why, FailedWhy::Refused(_))), "{:?}", now.failed);
    }
    let mut other = space.tree(tree)?.ok_or("there")?.reduced::<text::Text>()?;
    let same = std::sync::Arc::ptr_eq(&other.get().await?, &reduced[0].get().await?);
    assert!(same, "one state, however many ask");
    Ok(())
}

/// The payloads in order: whatever is out of place shows.
struct Listed;
/// The same without a copy to come back to.
struct ListedAnew;

macro_rules! listed {
    ($name:ident, $copy:expr) => {
        impl Reducer for $name {
            type State = Vec<(ChangeId, Bytes)>;
            type View = Self::State;
            type Error = Infallible;
            const ORDER: Order = Order::Total;

            fn start() -> Self::State {
                Vec::new()
            }

            fn append(state: &mut Self::State, change: &ReducedChange) -> Result<(), Infallible> {
                state.push((change.id, change.payload.clone()));
                Ok(())
            }

            fn view(state: &Self::State) -> Self::View {
                state.clone()
            }

            fn copy(state: &Self::State) -> Option<Self::State> {
                let copy: fn(&Self::State) -> Option<Self::State> = $copy;
                copy(state)
            }
        }
    };
}
listed!(Listed, |state| Some(state.clone()));
listed!(ListedAnew, |_| None);

/// A set by id: the order does not matter, and twice is once.
struct Gathered;

impl Reducer for Gathered {
    type State = BTreeMap<ChangeId, Bytes>;
    type View = Self::State;
    type Error = Infallible;
    const ORDER: Order = Order::Any;

    fn start() -> Self::State {
        BTreeMap::new()
    }

    fn append(state: &mut Self::State, change: &ReducedChange) -> Result<(), Infallible> {
        state.insert(change.id, change.payload.clone());
        Ok(())
    }

    fn view(state: &Self::State) -> Self::View {
        state.clone()
    }
}

/// The plain fold: the log's changes in the order of the tree.
fn plain(tree: &Tree) -> Outcome<Vec<(ChangeId, Bytes)>> {
    let mut listed = Vec::new();
    for change in tree.changes()? {
        listed.extend(change.content.map(|(_, payload)| (change.id, payload)));
    }
    Ok(listed)
}

/// Random trees, grown at random places by two clients, read at random moments: step by step is the same as from the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn step_by_step_is_the_same_as_from_the_beginning() -> Outcome {
    let mut node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let member = TestClient::create("Member", node.address()).await;
    let space = admin.create_space("Trees").await?;
    let joined = join(&space, &member, Role::Writer).await?;
    for seed in 0..4 {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let tree = space.create_tree(of("line"), one("first")).await?.tree;
        synced(&[&space, &joined]).await?;
        let trees = [space.tree(tree)?.ok_or("synced")?, joined.tree(tree)?.ok_or("synced")?];
        let mut listed = trees.iter().map(Tree::reduced::<Listed>).collect::<Result<Vec<_>, _>>()?;
        let mut anew = trees.iter().map(Tree::reduced::<ListedAnew>).collect::<Result<Vec<_>, _>>()?;
        let mut gathered = trees.iter().map(Tree::reduced::<Gathered>).collect::<Result<Vec<_>, _>>()?;
        for round in 0..24 {
            match dice.random_range(0..8) {
                0 => node.kill(),
                1 => node.restart(),
                _ => {
                    let who = dice.random_range(0..2);
                    let writes = random_writes(&trees[who], &mut dice, &format!("{seed}/{round}"))?;
                    [&space, &joined][who].append(tree, "line".to_owned(), writes).await?;
                }
            }
            let who = dice.random_range(0..2);
            match dice.random_range(0..4) {
                0 => drop(listed[who].get().await?),
                1 => drop(anew[who].get().await?),
                2 => drop(gathered[who].get().await?),
                _ => {}
            }
        }
        node.restart();
        synced(&[&space, &joined]).await?;
        let expected = plain(&trees[0])?;
        assert_eq!(expected, plain(&trees[1])?, "seed {seed}");
        for who in 0..2 {
            let shown = listed[who].get().await?;
            assert_eq!(*shown.view, expected, "seed {seed}, client {who}");
            assert_eq!((shown.changes as usize, shown.pending), (expected.len(), 0));
            assert_eq!(*anew[who].get().await?.view, expected, "seed {seed}, client {who}, without copies");
            let all: BTreeMap<_, _> = expected.iter().cloned().collect();
            assert_eq!(*gathered[who].get().await?.view, all, "seed {seed}, client {who}");
        }
    }
    Ok(())
}

/// One to four changes that begin at random changes of the tree, so that their place is anywhere.
fn random_writes(tree: &Tree, dice: &mut ChaCha8Rng, mark: &str) -> Outcome<Vec<TreeWrite>> {
    let known: Vec<_> = tree.changes()?.iter().map(|change| change.id).collect();
    let writes = (0..dice.random_range(1..5)).map(|n| {
        let parents = match dice.random_range(0..3) {
            0 => None,
            1 if n > 0 => Some(vec![ParentRef::Earlier(n - 1)]),
            _ => {
                let at = dice.next_u32() as usize % known.len();
                Some(vec![ParentRef::Change(known[at])])
            }
        };
        TreeWrite { parents, payload: format!("{mark}/{n}").into() }
    });
    Ok(writes.collect())
}

/// Whoever asks first and goes away stops nothing: the next one gets what was begun for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_goes_away_leaves_the_work_to_the_next() -> Outcome {
    static APPENDED: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Reducer for Counted {
        type State = usize;
        type View = usize;
        type Error = Infallible;
        const ORDER: Order = Order::Any;

        fn start() -> usize {
            0
        }

        fn append(state: &mut usize, _: &ReducedChange) -> Result<(), Infallible> {
            APPENDED.fetch_add(1, Ordering::Relaxed);
            *state += 1;
            Ok(())
        }

        fn view(state: &usize) -> usize {
            *state
        }
    }

    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Trees").await?;
    let tree = space.create_tree(of("line"), one("first")).await?.tree;
    for n in 0..50 {
        append(&space, tree, &n.to_string()).await?;
    }
    space.await_synced_within(PATIENCE).await?;
    let tree = space.tree(tree)?.ok_or("there")?;
    for _ in 0..10 {
        let mut first = tree.reduced::<Counted>()?;
        // Asked once, and dropped.
        let _ = tokio::time::timeout(Duration::ZERO, first.get()).await;
    }
    let now = tokio::time::timeout(PATIENCE, tree.reduced::<Counted>()?.get()).await??;
    assert_eq!((*now.view, APPENDED.load(Ordering::Relaxed)), (51, 51), "reduced once");
    Ok(())
}

/// Panics over what says so.
struct Fragile;

impl Reducer for Fragile {
    type State = Vec<Bytes>;
    type View = Vec<Bytes>;
    type Error = Infallible;
    const ORDER: Order = Order::Total;

    fn start() -> Vec<Bytes> {
        Vec::new()
    }

    fn append(state: &mut Vec<Bytes>, change: &ReducedChange) -> Result<(), Infallible> {
        state.push(change.payload.clone());
        assert!(!change.payload.starts_with(b"boom"), "cannot hold {:?}", change.payload);
        Ok(())
    }

    fn view(state: &Vec<Bytes>) -> Vec<Bytes> {
        state.clone()
    }
}

/// S24, the half that concerns reducers: the change is left out and listed, nothing of it stays in the state, the tree and the
/// others go on; a reducer that panics over everything is given up, and that is shown, too.
#[tokio::test(flavor = "multi_thread")]
async fn s24_a_reducer_that_panics_is_contained() -> Outcome {
    let node = NodeProcess::start();
    let admin = TestClient::create("Admin", node.address()).await;
    let space = admin.create_space("Trees").await?;
    let fragile = space.create_tree(of("line"), one("first")).await?.tree;
    let healthy = space.create_tree(of("line"), one("other")).await?.tree;
    let mut reduced = space.tree(fragile)?.ok_or("there")?.reduced::<Fragile>()?;
    let mut others = space.tree(healthy)?.ok_or("there")?.reduced::<Fragile>()?;
    let boom = append(&space, fragile, "boom").await?;
    append(&space, fragile, "last").await?;
    append(&space, healthy, "more").await?;
    let check = async |reduced: &mut client_sdk::Reduced<Fragile>| -> Outcome {
        let now = tokio::time::timeout(PATIENCE, reduced.get()).await??;
        assert_eq!(*now.view, [Bytes::from("first"), Bytes::from("last")]);
        let [failed] = &now.failed[..] else { return Err(format!("{:?}", now.failed).into()) };
        assert_eq!(failed.change, boom);
        assert!(matches!(&failed.why, FailedWhy::Panicked(why) if why.contains("cannot hold")), "{failed:?}");
        Ok(())
    };
    check(&mut reduced).await?;
    space.await_synced_within(PATIENCE).await?;
    check(&mut reduced).await?;
    assert_eq!(others.get().await?.view.len(), 2);

    for n in 0..20 {
        append(&space, fragile, &format!("boom {n}")).await?;
    }
    let given_up = tokio::time::timeout(PATIENCE, async {
        loop {
            match reduced.get().await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return error,
            }
        }
    });
    assert_eq!(given_up.await?.code(), "PANICKED");
    space.await_synced_within(PATIENCE).await?;
    append(&space, healthy, "and more").await?;
    assert_eq!(others.get().await?.view.len(), 3);
    Ok(())
}

async fn append(space: &Space, tree: TreeId, text: &str) -> Outcome<ChangeId> {
    Ok(space.append(tree, "line".to_owned(), one(text.to_owned())).await?.changes[0])
}
