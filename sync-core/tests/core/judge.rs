//! A tree judged again from its entries comes out as it was decided one by one.

use sync_core::acl::AclState;
use sync_core::ids::TreeId;
use sync_core::judge::{AclWalk, Judged, Logged, Standing, judge_tree};
use sync_core::log::{Reject, Submission, View as _};
use sync_core::record::{AclContent, AclRecord, Role, Verified, WriteRule};

use crate::fixture::*;

/// The entries of one tree, and of the ACL, as a log took them, with what a lying node put in between.
struct Told {
    space: Space,
    logged: Vec<Logged>,
    acl: Vec<(sync_core::ids::Seq, Verified<AclRecord>)>,
}

impl Told {
    fn new() -> Self {
        let root = acl_root(OWNER);
        let home = second(&header(OWNER, &root), &root, OWNER, AclContent::SetHome { authority: authority() });
        let mut told = Self { space: Space::new(), logged: Vec::new(), acl: vec![(sync_core::ids::Seq(2), home)] };
        let roles = [(ADMIN, Role::Admin), (WRITER, Role::Writer)];
        let members = roles.map(|(n, r)| (account(n), r, seal(n))).to_vec();
        told.act(AclContent::AddMembers { members });
        told
    }

    fn act(&mut self, content: AclContent) {
        let submission = self.space.acl(OWNER, content);
        let at = self.space.log.position().seq.next();
        self.space.take(&submission).unwrap();
        let Submission::Acl(record) = submission else { panic!("an act") };
        self.acl.push((at, record));
    }

    fn entry(&mut self, submission: &Submission) -> bool {
        let first = self.space.log.position().seq.next();
        let taken = self.space.take(submission).is_ok();
        self.logged.push(Logged { first, submission: submission.clone() });
        taken
    }

    fn judge(&self, tree: TreeId) -> sync_core::judge::JudgedTree {
        let found = AclState::found(self.space.id(), &acl_root(OWNER));
        judge_tree(tree, &mut AclWalk::new(found, self.acl.clone()), &self.logged).unwrap()
    }
}

fn accepted(entries: &[Judged]) -> Vec<bool> {
    entries.iter().map(|entry| matches!(entry.standing, Standing::Accepted { .. })).collect()
}

#[test]
fn a_tree_is_judged_as_it_was_decided() {
    let mut told = Told::new();
    let root = tree_root(told.space.id(), 1, WriteRule::WRITERS);
    let tree = TreeId::from(root.id());
    let first = told.space.first(WRITER, &root);
    let mut taken = vec![told.entry(&first)];
    let one = first.id().into();
    let change = told.space.change(WRITER, tree, &[one]);
    let two = change.id().into();
    taken.push(told.entry(&change));
    // Signed before its author was removed, logged after.
    let late = told.space.change(WRITER, tree, &[two]);
    let rotation = told.space.rotation(&[WRITER]);
    told.act(AclContent::RemoveMembers { accounts: vec![account(WRITER)], rotation });
    taken.push(told.entry(&late));
    let on_it = told.space.change(ADMIN, tree, &[late.id().into()]);
    taken.push(told.entry(&on_it));
    let beside = told.space.change(ADMIN, tree, &[two]);
    taken.push(told.entry(&beside));
    let end = told.space.tombstone(OWNER, tree);
    taken.push(told.entry(&end));
    let after = told.space.change(ADMIN, tree, &[two]);
    taken.push(told.entry(&after));
    assert_eq!(taken, [true, true, false, false, true, true, false], "as it was decided");

    let judged = told.judge(tree);
    assert_eq!(accepted(&judged.entries), taken);
    assert_eq!(judged.state, told.space.log.tree(&tree).unwrap());
    assert_eq!(
        (judged.entries[0].root, judged.entries[0].at.0),
        (Some(told.logged[0].first), told.logged[0].first.0 + 1)
    );
    let Standing::Quarantined(reject) = &judged.entries[3].standing else { panic!("{judged:?}") };
    assert!(matches!(reject, Reject::MissingParent { .. }), "{reject}");
}

/// What is lost at the beginning takes what builds on it along, and nothing else comes of it.
#[test]
fn without_its_beginning_nothing_stands() {
    let mut told = Told::new();
    let root = tree_root(told.space.id(), 1, WriteRule::WRITERS);
    let first = told.space.first(WRITER, &root);
    let tree = TreeId::from(root.id());
    assert!(told.entry(&first));
    let change = told.space.change(WRITER, tree, &[first.id().into()]);
    assert!(told.entry(&change));
    assert_eq!(accepted(&told.judge(tree).entries), [true, true]);
    told.logged.remove(0);
    let judged = told.judge(tree);
    assert_eq!((accepted(&judged.entries), judged.state), (vec![false], None));
}
