//! What an ACL record does to the state, where the verdict alone does not show it.

use sync_core::acl::AclState;
use sync_core::ids::{Epoch, Seq};
use sync_core::log::Submission;
use sync_core::record::{AclContent, AclRecord, InviteMode, Role, Verified};

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

/// Keys may rotate between the request, which the profile was sealed for, and the acceptance.
#[test]
fn the_profile_of_who_was_accepted_is_of_the_epoch_of_the_request() {
    let mut space = Space::peopled();
    space.act(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Approval, Role::Writer)));
    let mut claim = space.claim(50, STRANGER, Role::Writer);
    claim.profile_ct = vec![7; 80].into();
    let request = space.act(STRANGER, AclContent::RequestJoin { claim: claim.clone() });
    let rotation = space.rotation(&[]);
    let accept =
        AclContent::AcceptJoin { request, role: Role::Writer, seals: vec![seal(STRANGER)], frontier: Vec::new() };
    let both = space.acl_with(ADMIN, vec![AclContent::RotateKey { rotation }, accept], |_| {});
    space.take(&both).unwrap();
    let acl = space.log.acl_state();
    assert_eq!(acl.epoch, Epoch(1));
    let member = &acl.members[&account(STRANGER)];
    assert_eq!((&member.profile_ct, member.profile_epoch), (&claim.profile_ct, Epoch(0)));

    space.act(ADMIN, AclContent::CreateInvite(Space::invite(51, InviteMode::Open, Role::Writer)));
    let join = space.join(51, 7, Role::Writer);
    space.act(7, join);
    assert_eq!(space.log.acl_state().members[&account(7)].profile_epoch, Epoch(1));
}
