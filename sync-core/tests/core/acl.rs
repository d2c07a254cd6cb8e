//! What an ACL record does to the state, where the verdict alone does not show it.

use sync_core::acl::{AclReject, AclState, InviteStatus, RequestStatus};
use sync_core::ids::{Epoch, Seq};
use sync_core::log::{Reject, Submission};
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

#[test]
fn a_rotation_seals_to_no_invite_that_died_in_the_same_record() {
    let mut space = Space::peopled();
    for (author, invite, role) in [(ADMIN, 50, Role::Writer), (OWNER, 51, Role::Admin), (OWNER, 52, Role::Writer)] {
        space.act(author, AclContent::CreateInvite(Space::invite(invite, InviteMode::Open, role)));
    }
    let demoted = AclContent::ChangeRole { account: account(ADMIN), role: Role::Writer, seal: None };
    // The former owner, an Admin from here on, could not invite an Admin.
    let handed_over = AclContent::TransferOwnership { account: account(WRITER) };
    let mut rotation = space.rotation(&[]);
    let to_the_dead = vec![demoted.clone(), handed_over.clone(), AclContent::RotateKey { rotation: rotation.clone() }];
    let to_the_dead = space.acl_with(OWNER, to_the_dead, |_| {});
    assert!(matches!(space.take(&to_the_dead), Err(Reject::Acl(AclReject::BadSeals(_)))));

    rotation.invite_seals = vec![seal_to(invite_id(52).as_bytes())];
    let contents = vec![demoted, handed_over, AclContent::RotateKey { rotation }];
    let submission = space.acl_with(OWNER, contents, |_| {});
    space.take(&submission).unwrap();
    let acl = space.log.acl_state();
    let status = [50, 51, 52].map(|n| acl.invites[&invite_id(n)].status);
    assert_eq!(status, [InviteStatus::Dead, InviteStatus::Dead, InviteStatus::Live]);
}

/// Else it would be in the way of asking again after the membership, or let an admin accept the removed.
#[test]
fn a_pending_request_ends_when_its_account_becomes_a_member_another_way() {
    for author in [OWNER, STRANGER] {
        let mut space = Space::peopled();
        let mut approval = Space::invite(50, InviteMode::Approval, Role::Writer);
        approval.max_uses = Some(2);
        space.act(ADMIN, AclContent::CreateInvite(approval));
        space.act(ADMIN, AclContent::CreateInvite(Space::invite(51, InviteMode::Open, Role::Writer)));
        let request = space.act(STRANGER, space.request(50, STRANGER, Role::Writer));
        let other = space.act(7, space.request(50, 7, Role::Writer));
        assert_eq!(space.log.acl_state().invites[&invite_id(50)].uses, 2);

        let content = if author == OWNER {
            AclContent::AddMembers { members: vec![(account(STRANGER), Role::Reader, seal(STRANGER))] }
        } else {
            space.join(51, STRANGER, Role::Writer)
        };
        let entry = space.act(author, content);
        let acl = space.log.acl_state();
        let at = acl.records[&entry];
        assert_eq!(acl.requests[&request].status, RequestStatus::Cancelled { at });
        assert_eq!(acl.requests[&other].status, RequestStatus::Pending, "somebody else's");
        assert_eq!(acl.invites[&invite_id(50)].uses, 1, "the use is given back");

        let rotation = space.rotation(&[STRANGER]);
        space.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(STRANGER)], rotation });
        let accept =
            AclContent::AcceptJoin { request, role: Role::Reader, seals: vec![seal(STRANGER)], frontier: Vec::new() };
        let late = space.acl(ADMIN, accept);
        assert!(matches!(space.take(&late), Err(Reject::Acl(AclReject::RequestUnknown { .. }))));
        space.act(ADMIN, AclContent::CreateInvite(Space::invite(52, InviteMode::Approval, Role::Writer)));
        space.act(STRANGER, space.request(52, STRANGER, Role::Writer));
    }
}
