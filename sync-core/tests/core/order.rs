//! What follows from a log depends on its records alone.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use sync_core::acl::InviteStatus;
use sync_core::ids::{ChangeId, TreeId};
use sync_core::log::{EntryKind, Genesis, Submission};
use sync_core::record::{AclContent, InviteMode, RawRecord, Role, VerifiedRecord, WriteRule, verify_many};
use sync_core::tree::{heads_after, heads_hash};

use crate::fixture::*;
use crate::map_log::{MapLog, Taken};

/// One change of a random graph: which earlier changes are its parents (none: the root), who made it, and when it arrives.
#[derive(Debug, Clone)]
struct Node {
    parents: Vec<prop::sample::Index>,
    author: u8,
    arrivals: [u32; 2],
}

fn graph() -> impl Strategy<Value = Vec<Node>> {
    let node = (prop::collection::vec(any::<prop::sample::Index>(), 0..4), OWNER..=WRITER, any::<[u32; 2]>());
    prop::collection::vec(node.prop_map(|(parents, author, arrivals)| Node { parents, author, arrivals }), 1..24)
}

/// The submissions of a graph, none of them appended, and the indexes that each builds on.
fn submissions(space: &Space, graph: &[Node]) -> (TreeId, Vec<(Submission, BTreeSet<usize>)>) {
    let root = tree_root(space.id(), 1, WriteRule::WRITERS);
    let tree = TreeId::from(root.id());
    let mut made: Vec<(Submission, BTreeSet<usize>)> = Vec::new();
    for node in graph {
        let on: BTreeSet<usize> =
            if made.is_empty() { BTreeSet::new() } else { node.parents.iter().map(|p| p.index(made.len())).collect() };
        let parents: Vec<ChangeId> = on.iter().map(|i| made[*i].0.id().into()).collect();
        let root = on.is_empty().then_some(&root);
        made.push((space.change_with(node.author, root, tree, &parents, |_| {}), on));
    }
    (tree, made)
}

/// Appends everything: of what may stand, always the one that arrived first.
fn arrive(mut log: MapLog, made: &[(Submission, BTreeSet<usize>)], arrivals: &[u32]) -> MapLog {
    let mut waiting: BTreeSet<usize> = (0..made.len()).collect();
    while !waiting.is_empty() {
        let ready = waiting.iter().filter(|i| made[**i].1.is_disjoint(&waiting));
        let next = *ready.min_by_key(|i| (arrivals[**i], **i)).expect("a graph without cycles has a first");
        assert!(matches!(log.take(&made[next].0), Ok(Taken::Appended(_))));
        waiting.remove(&next);
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_order_depends_on_the_set_alone(graph in graph()) {
        let space = Space::peopled();
        let (tree, made) = submissions(&space, &graph);
        let [one, two] = [0, 1].map(|n| {
            let arrivals: Vec<u32> = graph.iter().map(|node| node.arrivals[n]).collect();
            arrive(space.log.clone(), &made, &arrivals)
        });
        prop_assert_eq!(one.order(tree).len(), graph.len());
        prop_assert_eq!(one.order(tree), two.order(tree));
        prop_assert_eq!(&one.trees()[&tree].heads, &two.trees()[&tree].heads);
        prop_assert_eq!(one.digest(), two.digest(), "the ACL did not move, so the sets are equal");
        for log in [&one, &two] {
            log.parents_stand_before_their_children();
            log.heads_are_the_changes_without_children();
            log.summaries_are_those_of_the_log();
        }
    }

    #[test]
    fn a_prefix_of_a_set_keeps_its_order(graph in graph(), kept in any::<prop::sample::Index>()) {
        let space = Space::peopled();
        let (tree, made) = submissions(&space, &graph);
        let arrivals: Vec<u32> = (0..).take(made.len()).collect();
        let whole = arrive(space.log.clone(), &made, &arrivals).order(tree);
        let part = arrive(space.log.clone(), &made[..=kept.index(made.len())], &arrivals).order(tree);
        let in_part: Vec<_> = whole.into_iter().filter(|key| part.contains(key)).collect();
        prop_assert_eq!(in_part, part, "what came later never moves what was there before, relative to each other");
    }

    #[test]
    fn heads_hash_tells_sets_and_trees_apart(one in prop::collection::btree_set(any::<[u8; 32]>(), 0..4),
                                             two in prop::collection::btree_set(any::<[u8; 32]>(), 0..4)) {
        let tree = TreeId::from_hash([1; 32]);
        let heads = |set: &BTreeSet<[u8; 32]>| set.iter().map(|h| ChangeId::from_hash(*h)).collect::<BTreeSet<_>>();
        let (first, second) = (heads(&one), heads(&two));
        prop_assert_eq!(heads_hash(&tree, &first) == heads_hash(&tree, &second), first == second);
        prop_assert_ne!(heads_hash(&tree, &first), heads_hash(&TreeId::from_hash([2; 32]), &first));
    }

    #[test]
    fn a_change_takes_the_place_of_its_parents_among_the_heads(
        heads in prop::collection::btree_set(any::<u8>(), 0..12),
        parents in prop::collection::btree_set(any::<u8>(), 1..12),
    ) {
        let id = |n: &u8| ChangeId::from_hash([*n; 32]);
        let before: BTreeSet<_> = heads.iter().map(id).collect();
        let named: Vec<_> = parents.iter().map(id).collect();
        let new = ChangeId::from_hash([7; 32].map(|b: u8| b.wrapping_mul(3).wrapping_add(9)));
        let after = heads_after(&before, new, &named);
        prop_assert!(after.contains(&new));
        prop_assert!(named.iter().all(|p| *p == new || !after.contains(p)));
        prop_assert!(before.iter().filter(|h| !named.contains(h)).all(|h| after.contains(h)));
    }
}

/// A log of random acts that the rules allow, and some that they do not.
fn random_log(seed: u64, steps: usize) -> (Genesis, MapLog) {
    let genesis = founded();
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut space = Space::peopled();
    let mut trees: Vec<TreeId> = Vec::new();
    let mut refused = 0;
    for step in 0..steps {
        let mut below = |n: u32| rng.next_u32() % n;
        let author = [OWNER, ADMIN, WRITER, READER][below(4) as usize];
        let other = [ADMIN, WRITER, READER, GUEST, STRANGER][below(5) as usize];
        let submission = match below(10) {
            0 => {
                let root = tree_root(space.id(), u32::try_from(step).unwrap(), WriteRule::WRITERS);
                space.first(author, &root)
            }
            1..=4 if !trees.is_empty() => {
                let tree = trees[below(u32::try_from(trees.len()).unwrap()) as usize];
                let heads: Vec<_> = space.log.trees()[&tree].heads.iter().copied().collect();
                let all = space.log.order(tree);
                let parents =
                    if below(2) == 0 { heads } else { vec![all[below(u32::try_from(all.len()).unwrap()) as usize].id] };
                space.change(author, tree, &parents)
            }
            5 if !trees.is_empty() => {
                space.tombstone(author, trees[below(u32::try_from(trees.len()).unwrap()) as usize])
            }
            6 => {
                let role = [Role::Guest, Role::Reader, Role::Writer, Role::Admin][below(4) as usize];
                space.acl(author, AclContent::ChangeRole { account: account(other), role, seal: Some(seal(other)) })
            }
            7 => {
                let mode = if below(2) == 0 { InviteMode::Open } else { InviteMode::Approval };
                let invite = Space::invite(100 + u8::try_from(step % 100).unwrap(), mode, Role::Reader);
                space.acl(author, AclContent::CreateInvite(invite))
            }
            8 => {
                let rotation = space.rotation(&[other]);
                space.acl(author, AclContent::RemoveMembers { accounts: vec![account(other)], rotation })
            }
            _ => {
                let live = space.log.acl_state().invites.values().find(|i| i.status == InviteStatus::Live);
                let Some(invite) = live else { continue };
                let n = (100..200).find(|n| invite_id(*n) == invite.content.key).unwrap();
                let content = match invite.content.mode {
                    InviteMode::Open => space.join(n, other, Role::Reader),
                    InviteMode::Approval => space.request(n, other, Role::Reader),
                };
                space.acl(other, content)
            }
        };
        match space.take(&submission) {
            Ok(_) => trees.extend(submission.tree().filter(|t| !trees.contains(t))),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0, "seed {seed}: nothing was refused, so nothing was tried");
    (genesis, space.log)
}

/// Reads a log anew, from bytes alone.
fn replay(genesis: &Genesis, log: &MapLog, rng: &mut ChaCha20Rng) -> MapLog {
    let bytes: Vec<Vec<u8>> = log.entries()[2..].iter().map(|e| e.record.to_vec()).collect();
    let raws = bytes.iter().map(|b| RawRecord::from_slice(b).unwrap()).collect();
    let mut copy = MapLog::found(genesis);
    let mut root = None;
    for (record, entry) in verify_many(raws, rng).into_iter().zip(&log.entries()[2..]) {
        let record = record.unwrap();
        if entry.kind == EntryKind::Root {
            assert!(matches!(record, VerifiedRecord::TreeRoot(_)));
            root = Some(record);
            continue;
        }
        let taken = copy.take(&Submission::pair(root.take(), record).unwrap());
        assert_eq!(taken, Ok(Taken::Appended(entry.position.seq)));
    }
    copy
}

#[test]
fn equal_logs_give_equal_replicas() {
    for seed in 0..12 {
        let (genesis, log) = random_log(seed, 120);
        let mut rng = ChaCha20Rng::seed_from_u64(!seed);
        let copy = replay(&genesis, &log, &mut rng);
        assert_eq!(copy.acl_state(), log.acl_state(), "seed {seed}: ACL");
        assert_eq!(copy.digest(), log.digest(), "seed {seed}: digest");
        assert_eq!(copy, log, "seed {seed}");
        log.heads_are_the_changes_without_children();
        log.parents_stand_before_their_children();
        log.summaries_are_those_of_the_log();
    }
}
