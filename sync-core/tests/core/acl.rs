//! What an ACL record does to the state, where the verdict alone does not show it.

use sync_core::acl::AclState;
use sync_core::ids::{Epoch, Seq};
use sync_core::log::Submission;
use sync_core::record::{AclContent, AclRecord, Role, Verified};

use crate::fixture::*;

fn record(submission: Submission) -> Verified<AclRecord> {
    let Submission::Acl(record) = submission else { unreachable!() };
    record
}

/// A long log is folded in time that grows with the log, not with its square.
#[test]
fn a_fold_does_as_apply_and_copies_nothing() {
    let mut space = Space::new();
    let mut folded = space.log.acl_state().clone();
    // Nothing below touches this map, so it moves only if the state is copied.
    let place = &raw const folded.epochs[&Epoch(0)];
    for (n, at) in (10..60).zip(3..) {
        let add = AclContent::AddMembers { members: vec![(account(n), Role::Reader, seal(n))] };
        let submission = space.acl(OWNER, add);
        let next = record(submission.clone());
        let before: AclState = space.log.acl_state().clone();
        let applied = before.apply(&next, Seq(at)).unwrap();
        assert_eq!(&before, space.log.acl_state());
        folded = folded.fold_in(&next, Seq(at)).unwrap();
        assert_eq!(folded, applied);
        space.take(&submission).unwrap();
        assert_eq!(&folded, space.log.acl_state());
    }
    assert_eq!(&raw const folded.epochs[&Epoch(0)], place, "the state was copied");

    let late = record(space.acl(STRANGER, AclContent::Leave));
    let refused = folded.apply(&late, Seq(99)).unwrap_err();
    assert_eq!(folded.fold_in(&late, Seq(99)), Err(refused));
}
