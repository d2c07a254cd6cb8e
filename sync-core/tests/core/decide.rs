//! One row for each way in which a record can be refused, and for what must be allowed beside it.

use std::collections::BTreeSet;

use sync_core::acl::{AclReject, AclState, RequestStatus, sign_join_proof};
use sync_core::code::{Class, Code};
use sync_core::ids::{AclId, ChangeId, Epoch, Seq, SpaceId, TreeId};
use sync_core::log::{Admission, DecideError, Refusal, Reject, Submission, admit, decide, genesis};
use sync_core::record::{
    AclContent, ChangeKind, HistoryMode, InviteMode, Role, SpaceOptions, TreeHeads, VerifiedRecord, Who, WriteRule,
};

use crate::fixture::*;
use crate::map_log::Taken;

/// Every variant's name, and the name of a value; the compiler keeps them complete.
macro_rules! variants {
    ($name:ident, $all:ident, $enum:ident { $($variant:ident),* $(,)? }) => {
        const $all: &[&str] = &[$(stringify!($variant)),*];
        fn $name(value: &$enum) -> &'static str {
            match value { $($enum::$variant { .. } => stringify!($variant)),* }
        }
    };
}

variants!(
    reject_name,
    REJECTS,
    Reject {
        Acl,
        BadGenesis,
        WrongSpace,
        NotAnEntry,
        RootMismatch,
        MissingRoot,
        MissingParent,
        BadParents,
        UnknownAclHead,
        StaleAclHead,
        StaleEpoch,
        NotAWriter,
        WriteRule,
        OnceTaken,
        TreePurged,
        HeadsFull,
        UnsupportedChangeKind,
        SpaceDeleted,
        BadFrontier,
    }
);

variants!(
    acl_name,
    ACL_REJECTS,
    AclReject {
        WrongSpace,
        Conflict,
        WrongIndex,
        SpaceDeleted,
        BadGenesis,
        NotAMember,
        RoleTooLow,
        BadRole,
        AlreadyMember,
        InviteUnknown,
        InviteRevoked,
        InviteDead,
        InviteUsedUp,
        InviteModeMismatch,
        InviteBeforeRemoval,
        BadInviteProof,
        NotTheJoiner,
        RequestUnknown,
        RequestExists,
        BadSeals,
        BadEpoch,
        OwnerCannotLeave,
        LimitReached,
    }
);

fn name(reject: &Reject) -> &'static str {
    match reject {
        Reject::Acl(reject) => acl_name(reject),
        other => reject_name(other),
    }
}

/// A case: what happened before, what is submitted, and the verdict: "ok", or a variant and its code.
struct Row {
    what: &'static str,
    expected: (&'static str, Option<Code>),
    actual: Result<(), Reject>,
}

fn row(what: &'static str, variant: &'static str, code: Code, case: impl FnOnce(&mut Space) -> Submission) -> Row {
    let mut space = Space::peopled();
    let submission = case(&mut space);
    judged(what, (variant, Some(code)), space, &submission)
}

fn allowed(what: &'static str, case: impl FnOnce(&mut Space) -> Submission) -> Row {
    let mut space = Space::peopled();
    let submission = case(&mut space);
    judged(what, ("ok", None), space, &submission)
}

fn judged(
    what: &'static str,
    expected: (&'static str, Option<Code>),
    mut space: Space,
    submission: &Submission,
) -> Row {
    let before = space.log.clone();
    let actual = space.take(submission).map(|_| ());
    if actual.is_err() {
        assert_eq!(space.log, before, "{what}: a refused record changes nothing");
    } else {
        assert!(matches!(space.take(submission), Ok(Taken::Known(_))), "{what}: again is known");
    }
    space.log.summaries_are_those_of_the_log();
    space.log.heads_are_the_changes_without_children();
    pending_requests_are_found(space.log.acl_state());
    Row { what, expected, actual }
}

fn pending_requests_are_found(acl: &AclState) {
    for (id, request) in &acl.requests {
        let found = acl.pending_request(&request.claim.account);
        let is_found = found.is_some_and(|(found, _)| found == *id);
        assert_eq!(is_found, request.status == RequestStatus::Pending);
    }
}

fn check(rows: Vec<Row>) -> Vec<Reject> {
    let mut reached = Vec::new();
    for row in rows {
        let actual = match &row.actual {
            Ok(()) => ("ok", None),
            Err(reject) => (name(reject), Some(Code::from(reject))),
        };
        assert_eq!(actual, row.expected, "{}: {:?}", row.what, row.actual);
        reached.extend(row.actual.err());
    }
    reached
}

fn change_rows() -> Vec<Row> {
    let missing = ChangeId::from_hash([0xAA; 32]);
    vec![
        allowed("a writer begins a tree", |s| {
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.first(WRITER, &root)
        }),
        allowed("a second creator of one tree", |s| {
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.begin(WRITER, 1, WriteRule::WRITERS);
            s.first(ADMIN, &root)
        }),
        allowed("a root that comes again is ignored", |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.change_with(ADMIN, Some(&root), tree, &[first], |_| {})
        }),
        row("the tree of another space", "WrongSpace", Code::WrongSpace, |s| {
            let root = tree_root(SpaceId::from_hash([8; 32]), 1, WriteRule::WRITERS);
            s.first(WRITER, &root)
        }),
        row("the root of another tree", "RootMismatch", Code::MissingRoot, |s| {
            let (root, other) = (tree_root(s.id(), 1, WriteRule::WRITERS), tree_root(s.id(), 2, WriteRule::WRITERS));
            s.change_with(WRITER, Some(&root), other.id().into(), &[], |_| {})
        }),
        row("no root", "MissingRoot", Code::MissingRoot, |s| s.change(WRITER, TreeId::from_hash([5; 32]), &[])),
        row("an unknown parent", "MissingParent", Code::MissingParent, |s| {
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change(WRITER, tree, &[missing])
        }),
        row("a parent in another tree", "MissingParent", Code::MissingParent, |s| {
            let (_, other) = s.begin(WRITER, 2, WriteRule::WRITERS);
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change(WRITER, tree, &[other])
        }),
        row("the root beside other parents", "BadParents", Code::BadParents, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change(WRITER, tree, &[first, sync_core::record::TreeChange::root_as_parent(tree)])
        }),
        row("an unknown ACL record", "UnknownAclHead", Code::UnknownAclHead, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change_with(WRITER, None, tree, &[first], |c| c.acl_head = AclId::from_hash([1; 32]))
        }),
        row("an ACL record from before the role", "StaleAclHead", Code::StaleAclHead, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let old = s.log.acl_state().head;
            s.act(OWNER, AclContent::ChangeRole { account: account(READER), role: Role::Writer, seal: None });
            s.change_with(READER, None, tree, &[first], |c| c.acl_head = old)
        }),
        allowed("an ACL record from before the same role was given again", |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let old = s.log.acl_state().head;
            s.act(OWNER, AclContent::ChangeRole { account: account(WRITER), role: Role::Writer, seal: None });
            s.change_with(WRITER, None, tree, &[first], |c| c.acl_head = old)
        }),
        allowed("an older ACL record that is not older than the role", |s| {
            let old = s.log.acl_state().head;
            s.act(OWNER, AclContent::ChangeRole { account: account(READER), role: Role::Writer, seal: None });
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.change_with(WRITER, Some(&root), root.id().into(), &[], |c| c.acl_head = old)
        }),
        row("an old epoch", "StaleEpoch", Code::StaleEpoch, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.change_with(WRITER, None, tree, &[first], |c| c.epoch = Epoch(0))
        }),
        row("an epoch to come", "StaleEpoch", Code::StaleEpoch, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change_with(WRITER, None, tree, &[first], |c| c.epoch = Epoch(1))
        }),
        row("a reader writes", "NotAWriter", Code::NotAWriter, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change(READER, tree, &[first])
        }),
        row("a guest writes", "NotAWriter", Code::NotAWriter, |s| {
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.first(GUEST, &root)
        }),
        row("a stranger writes", "NotAWriter", Code::NotAMember, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change(STRANGER, tree, &[first])
        }),
        row("a removed member writes", "NotAWriter", Code::NotAMember, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let rotation = s.rotation(&[WRITER]);
            s.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(WRITER)], rotation });
            s.change(WRITER, tree, &[first])
        }),
        row("a writer in an admins' tree", "WriteRule", Code::WriteRule, |s| {
            let (tree, first) = s.begin(ADMIN, 1, rule(Who::Admins));
            s.change(WRITER, tree, &[first])
        }),
        row("a writer begins an admins' tree", "WriteRule", Code::WriteRule, |s| {
            let root = tree_root(s.id(), 1, rule(Who::Admins));
            s.first(WRITER, &root)
        }),
        row("another's tree", "WriteRule", Code::WriteRule, |s| {
            let (tree, first) = s.begin(WRITER, 1, rule(Who::Account(account(WRITER))));
            s.change(OWNER, tree, &[first])
        }),
        row("a rule never widens a role", "NotAWriter", Code::NotAWriter, |s| {
            let root = tree_root(s.id(), 1, rule(Who::Account(account(READER))));
            s.first(READER, &root)
        }),
        allowed("an admin in a tree of an account or admins", |s| {
            let (tree, first) = s.begin(WRITER, 1, rule(Who::AccountOrAdmins(account(WRITER))));
            s.change(ADMIN, tree, &[first])
        }),
        row("a second change of a once tree", "OnceTaken", Code::OnceTaken, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule { who: Who::Writers, once: true });
            s.change(WRITER, tree, &[first])
        }),
        row("a second creator of a once tree", "OnceTaken", Code::OnceTaken, |s| {
            s.begin(WRITER, 1, WriteRule { who: Who::Writers, once: true });
            let root = tree_root(s.id(), 1, WriteRule { who: Who::Writers, once: true });
            s.first(ADMIN, &root)
        }),
        row("a purged tree", "TreePurged", Code::TreePurged, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let purge = s.tombstone(ADMIN, tree);
            s.take(&purge).unwrap();
            s.change(WRITER, tree, &[first])
        }),
        row("a late root does not bring a purged tree back", "TreePurged", Code::TreePurged, |s| {
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let purge = s.tombstone(ADMIN, tree);
            s.take(&purge).unwrap();
            let root = tree_root(s.id(), 1, WriteRule::WRITERS);
            s.first(WRITER, &root)
        }),
        row("a snapshot", "UnsupportedChangeKind", Code::UnsupportedChangeKind, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.change_with(WRITER, None, tree, &[first], |c| c.kind = ChangeKind::Snapshot)
        }),
        row("a deleted space", "SpaceDeleted", Code::SpaceDeleted, |s| {
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.act(OWNER, AclContent::DeleteSpace);
            s.change(OWNER, tree, &[first])
        }),
    ]
}

fn tombstone_rows() -> Vec<Row> {
    vec![
        allowed("the first author purges", |s| {
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.tombstone(WRITER, tree)
        }),
        allowed("the account of the rule purges what an admin began", |s| {
            let (tree, _) = s.begin(ADMIN, 1, rule(Who::AccountOrAdmins(account(WRITER))));
            s.tombstone(WRITER, tree)
        }),
        row("a tree that is not there", "MissingRoot", Code::MissingRoot, |s| {
            s.tombstone(ADMIN, TreeId::from_hash([5; 32]))
        }),
        row("twice, by another", "TreePurged", Code::TreePurged, |s| {
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let purge = s.tombstone(ADMIN, tree);
            s.take(&purge).unwrap();
            s.tombstone(OWNER, tree)
        }),
        row("by a writer who did not begin it", "WriteRule", Code::WriteRule, |s| {
            let (tree, _) = s.begin(ADMIN, 1, WriteRule::WRITERS);
            s.tombstone(WRITER, tree)
        }),
        row("by its first author, a reader by now", "NotAWriter", Code::NotAWriter, |s| {
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.act(OWNER, AclContent::ChangeRole { account: account(WRITER), role: Role::Reader, seal: None });
            s.tombstone(WRITER, tree)
        }),
    ]
}

fn place_rows() -> Vec<Row> {
    let leave = || vec![AclContent::Leave];
    vec![
        row("another space", "WrongSpace", Code::WrongSpace, |s| {
            s.acl_with(WRITER, leave(), |r| r.space = SpaceId::from_hash([8; 32]))
        }),
        row("not on the head", "Conflict", Code::AclConflict, |s| {
            s.acl_with(WRITER, leave(), |r| r.prev = AclId::from_hash([8; 32]))
        }),
        row("a wrong number", "WrongIndex", Code::WrongIndex, |s| s.acl_with(WRITER, leave(), |r| r.index += 1)),
        row("two invites in one record", "LimitReached", Code::LimitReached, |s| {
            let make = |n| AclContent::CreateInvite(Space::invite(n, InviteMode::Approval, Role::Writer));
            s.acl_with(ADMIN, vec![make(50), make(51)], |_| {})
        }),
    ]
}

fn role_rows() -> Vec<Row> {
    let change = |n, role| AclContent::ChangeRole { account: account(n), role, seal: None };
    let invite = |mode, role| AclContent::CreateInvite(Space::invite(50, mode, role));
    let since_join = SpaceOptions { history: HistoryMode::SinceJoin, min_version: 0 };
    vec![
        row("a stranger invites", "NotAMember", Code::NotAMember, |s| {
            s.acl(STRANGER, invite(InviteMode::Open, Role::Reader))
        }),
        row("a writer invites", "RoleTooLow", Code::RoleTooLow, |s| {
            s.acl(WRITER, invite(InviteMode::Open, Role::Reader))
        }),
        row("an admin invites an admin", "BadRole", Code::BadRole, |s| {
            s.acl(ADMIN, invite(InviteMode::Open, Role::Admin))
        }),
        row("the owner invites an owner", "BadRole", Code::BadRole, |s| {
            s.acl(OWNER, invite(InviteMode::Approval, Role::Owner))
        }),
        allowed("the owner invites an admin", |s| s.acl(OWNER, invite(InviteMode::Approval, Role::Admin))),
        row("an admin makes an admin", "BadRole", Code::BadRole, |s| s.acl(ADMIN, change(WRITER, Role::Admin))),
        row("an admin demotes the owner", "BadRole", Code::BadRole, |s| s.acl(ADMIN, change(OWNER, Role::Reader))),
        row("an admin demotes itself", "BadRole", Code::BadRole, |s| s.acl(ADMIN, change(ADMIN, Role::Reader))),
        allowed("the owner makes an admin", |s| s.acl(OWNER, change(WRITER, Role::Admin))),
        row("the role of a stranger", "NotAMember", Code::NotAMember, |s| s.acl(OWNER, change(STRANGER, Role::Reader))),
        row("a guest is lifted without a key", "BadSeals", Code::BadSeals, |s| {
            s.acl(ADMIN, change(GUEST, Role::Reader))
        }),
        row("a key for somebody else", "BadSeals", Code::BadSeals, |s| {
            let seal = Some(seal(READER));
            s.acl(ADMIN, AclContent::ChangeRole { account: account(GUEST), role: Role::Reader, seal })
        }),
        row("a member is added again", "AlreadyMember", Code::AlreadyMember, |s| {
            s.acl(OWNER, AclContent::AddMembers { members: vec![(account(WRITER), Role::Reader, seal(WRITER))] })
        }),
        row("a writer removes", "RoleTooLow", Code::RoleTooLow, |s| {
            let rotation = s.rotation(&[READER]);
            s.acl(WRITER, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation })
        }),
        row("an admin removes the owner", "BadRole", Code::BadRole, |s| {
            let rotation = s.rotation(&[OWNER]);
            s.acl(ADMIN, AclContent::RemoveMembers { accounts: vec![account(OWNER)], rotation })
        }),
        row("one account removed twice", "NotAMember", Code::NotAMember, |s| {
            let rotation = s.rotation(&[READER]);
            s.acl(ADMIN, AclContent::RemoveMembers { accounts: vec![account(READER); 2], rotation })
        }),
        row("a removal that seals to the removed", "BadSeals", Code::BadSeals, |s| {
            let rotation = s.rotation(&[]);
            s.acl(ADMIN, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation })
        }),
        row("a removal that forgets somebody", "BadSeals", Code::BadSeals, |s| {
            let rotation = s.rotation(&[READER, GUEST]);
            s.acl(ADMIN, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation })
        }),
        row("a rotation that skips an epoch", "BadEpoch", Code::BadSeals, |s| {
            let mut rotation = s.rotation(&[]);
            rotation.epoch = Epoch(2);
            s.acl(ADMIN, AclContent::RotateKey { rotation })
        }),
        row("a rotation that forgets an open invite", "BadSeals", Code::BadSeals, |s| {
            s.act(ADMIN, invite(InviteMode::Open, Role::Writer));
            let mut rotation = s.rotation(&[]);
            rotation.invite_seals.clear();
            s.acl(ADMIN, AclContent::RotateKey { rotation })
        }),
        row("a reseal of an epoch to come", "BadEpoch", Code::BadSeals, |s| {
            s.acl(ADMIN, AclContent::Reseal { account: account(WRITER), epoch: Epoch(1), seal: seal(WRITER) })
        }),
        row("a reseal to a guest of an epoch from before its time", "BadSeals", Code::BadSeals, |s| {
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Guest, seal(STRANGER))] });
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(0), seal: seal(STRANGER) })
        }),
        allowed("a reseal to a guest of the epoch it came in, which is over", |s| {
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.acl(ADMIN, AclContent::Reseal { account: account(GUEST), epoch: Epoch(0), seal: seal(GUEST) })
        }),
        row("a reseal of the past where history starts at the join", "BadSeals", Code::BadSeals, |s| {
            s.act(OWNER, AclContent::SetOptions { options: since_join });
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Writer, seal(STRANGER))] });
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(0), seal: seal(STRANGER) })
        }),
        allowed("a reseal of the past to who joined when history was for all", |s| {
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Writer, seal(STRANGER))] });
            s.act(OWNER, AclContent::SetOptions { options: since_join });
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(0), seal: seal(STRANGER) })
        }),
        row("a reseal of what was closed when history was opened", "BadSeals", Code::BadSeals, |s| {
            s.act(OWNER, AclContent::SetOptions { options: since_join });
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(OWNER, AclContent::SetOptions { options: SpaceOptions::default() });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Writer, seal(STRANGER))] });
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(0), seal: seal(STRANGER) })
        }),
        allowed("a reseal of the epoch in which history was opened", |s| {
            s.act(OWNER, AclContent::SetOptions { options: since_join });
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(OWNER, AclContent::SetOptions { options: SpaceOptions::default() });
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Writer, seal(STRANGER))] });
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(1), seal: seal(STRANGER) })
        }),
        allowed("a reseal of the past to a guest that was lifted", |s| {
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.act(ADMIN, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Guest, seal(STRANGER))] });
            let (account, role, seal) = (account(STRANGER), Role::Reader, seal(STRANGER));
            s.act(ADMIN, AclContent::ChangeRole { account, role, seal: Some(seal.clone()) });
            s.acl(ADMIN, AclContent::Reseal { account, epoch: Epoch(0), seal })
        }),
        row("an act after the end in the same record", "SpaceDeleted", Code::SpaceDeleted, |s| {
            let home = AclContent::SetHome { authority: authority() };
            s.acl_with(OWNER, vec![AclContent::DeleteSpace, home], |_| {})
        }),
        row("the space is handed to a stranger", "NotAMember", Code::NotAMember, |s| {
            s.acl(OWNER, AclContent::TransferOwnership { account: account(STRANGER) })
        }),
        row("an admin removes itself", "BadRole", Code::BadRole, |s| {
            let rotation = s.rotation(&[ADMIN]);
            s.acl(ADMIN, AclContent::RemoveMembers { accounts: vec![account(ADMIN)], rotation })
        }),
        row("one account added twice", "AlreadyMember", Code::AlreadyMember, |s| {
            let member = (account(STRANGER), Role::Reader, seal(STRANGER));
            s.acl(ADMIN, AclContent::AddMembers { members: vec![member.clone(), member] })
        }),
        row("the owner makes a second owner", "BadRole", Code::BadRole, |s| s.acl(OWNER, change(WRITER, Role::Owner))),
        row("the owner adds a second owner", "BadRole", Code::BadRole, |s| {
            let members = vec![(account(STRANGER), Role::Owner, seal(STRANGER))];
            s.acl(OWNER, AclContent::AddMembers { members })
        }),
        row("a reseal to a stranger", "NotAMember", Code::NotAMember, |s| {
            s.acl(ADMIN, AclContent::Reseal { account: account(STRANGER), epoch: Epoch(0), seal: seal(STRANGER) })
        }),
        row("the owner leaves", "OwnerCannotLeave", Code::OwnerCannotLeave, |s| s.acl(OWNER, AclContent::Leave)),
        allowed("a guest leaves", |s| s.acl(GUEST, AclContent::Leave)),
        row("a stranger leaves", "NotAMember", Code::NotAMember, |s| s.acl(STRANGER, AclContent::Leave)),
        row("an admin moves the home", "RoleTooLow", Code::RoleTooLow, |s| {
            s.acl(ADMIN, AclContent::SetHome { authority: authority() })
        }),
        row("an admin sets options", "RoleTooLow", Code::RoleTooLow, |s| {
            s.acl(ADMIN, AclContent::SetOptions { options: SpaceOptions::default() })
        }),
        row("an admin deletes the space", "RoleTooLow", Code::RoleTooLow, |s| s.acl(ADMIN, AclContent::DeleteSpace)),
        row("an admin takes the space", "RoleTooLow", Code::RoleTooLow, |s| {
            s.acl(ADMIN, AclContent::TransferOwnership { account: account(ADMIN) })
        }),
        row("the owner hands over to itself", "AlreadyMember", Code::AlreadyMember, |s| {
            s.acl(OWNER, AclContent::TransferOwnership { account: account(OWNER) })
        }),
        row("the owner hands over to a stranger", "NotAMember", Code::NotAMember, |s| {
            s.acl(OWNER, AclContent::TransferOwnership { account: account(STRANGER) })
        }),
        row("the owner hands over to who has no history key", "BadRole", Code::BadRole, |s| {
            s.acl(OWNER, AclContent::TransferOwnership { account: account(GUEST) })
        }),
        allowed("the owner lifts a guest and hands over to it", |s| {
            let lift = AclContent::ChangeRole { account: account(GUEST), role: Role::Reader, seal: Some(seal(GUEST)) };
            let hand_over = AclContent::TransferOwnership { account: account(GUEST) };
            s.acl_with(OWNER, vec![lift, hand_over], |_| {})
        }),
        allowed("the owner hands over to a guest where nobody has history", |s| {
            let options = SpaceOptions { history: HistoryMode::SinceJoin, min_version: 0 };
            s.act(OWNER, AclContent::SetOptions { options });
            s.acl(OWNER, AclContent::TransferOwnership { account: account(GUEST) })
        }),
        row("the former owner acts as one", "RoleTooLow", Code::RoleTooLow, |s| {
            s.act(OWNER, AclContent::TransferOwnership { account: account(WRITER) });
            s.acl(OWNER, AclContent::DeleteSpace)
        }),
    ]
}

fn invite_rows() -> Vec<Row> {
    let open = |s: &mut Space, role| s.act(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Open, role)));
    let approval =
        |s: &mut Space| s.act(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Approval, Role::Writer)));
    vec![
        allowed("an open join", move |s| {
            open(s, Role::Writer);
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("an invite that never was", "InviteUnknown", Code::InviteUnknown, |s| {
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("a member joins", "AlreadyMember", Code::AlreadyMember, move |s| {
            open(s, Role::Writer);
            s.acl(READER, s.join(50, READER, Role::Writer))
        }),
        row("an invite key used for two invites", "LimitReached", Code::LimitReached, move |s| {
            open(s, Role::Writer);
            s.acl(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Open, Role::Writer)))
        }),
        row("an open invite without a seal", "BadSeals", Code::BadSeals, |s| {
            let mut invite = Space::invite(50, InviteMode::Open, Role::Writer);
            invite.seals.clear();
            s.acl(ADMIN, AclContent::CreateInvite(invite))
        }),
        row("an approval invite with a seal", "BadSeals", Code::BadSeals, |s| {
            let mut invite = Space::invite(50, InviteMode::Approval, Role::Writer);
            invite.seals = vec![seal_to(invite.key.as_bytes())];
            s.acl(ADMIN, AclContent::CreateInvite(invite))
        }),
        row("an approval invite that requires", "InviteModeMismatch", Code::InviteModeMismatch, |s| {
            let mut invite = Space::invite(50, InviteMode::Approval, Role::Writer);
            invite.requires = vec![TreeId::from_hash([1; 32])];
            s.acl(ADMIN, AclContent::CreateInvite(invite))
        }),
        row("a join without the key for itself", "BadSeals", Code::BadSeals, move |s| {
            open(s, Role::Writer);
            let claim = s.claim(50, STRANGER, Role::Writer);
            s.acl(STRANGER, AclContent::JoinByInvite { claim, seals: Vec::new() })
        }),
        row("revoked", "InviteRevoked", Code::InviteRevoked, move |s| {
            open(s, Role::Writer);
            let mut rotation = s.rotation(&[]);
            rotation.invite_seals.clear();
            s.act(ADMIN, AclContent::RevokeInvite { invite: invite_id(50), rotation: Some(rotation) });
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("an open invite revoked without new keys", "BadSeals", Code::BadSeals, move |s| {
            open(s, Role::Writer);
            s.acl(ADMIN, AclContent::RevokeInvite { invite: invite_id(50), rotation: None })
        }),
        row("an approval invite revoked with new keys", "BadSeals", Code::BadSeals, move |s| {
            approval(s);
            let rotation = Some(s.rotation(&[]));
            s.acl(ADMIN, AclContent::RevokeInvite { invite: invite_id(50), rotation })
        }),
        row("a removal closes open invites", "InviteRevoked", Code::InviteRevoked, move |s| {
            open(s, Role::Writer);
            let rotation = s.rotation(&[READER]);
            s.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation });
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("its creator is a writer by now", "InviteDead", Code::InviteDead, move |s| {
            open(s, Role::Writer);
            s.act(OWNER, AclContent::ChangeRole { account: account(ADMIN), role: Role::Writer, seal: None });
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("dead for good, although its creator is an admin again", "InviteDead", Code::InviteDead, move |s| {
            open(s, Role::Writer);
            for role in [Role::Writer, Role::Admin] {
                s.act(OWNER, AclContent::ChangeRole { account: account(ADMIN), role, seal: None });
            }
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("no uses left", "InviteUsedUp", Code::InviteUsedUp, |s| {
            let mut invite = Space::invite(50, InviteMode::Open, Role::Writer);
            invite.max_uses = Some(1);
            s.act(ADMIN, AclContent::CreateInvite(invite));
            s.act(7, s.join(50, 7, Role::Writer));
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        allowed("a declined request gives its use back", |s| {
            let mut invite = Space::invite(50, InviteMode::Approval, Role::Writer);
            invite.max_uses = Some(1);
            s.act(ADMIN, AclContent::CreateInvite(invite));
            let request = s.act(7, s.request(50, 7, Role::Writer));
            s.act(ADMIN, AclContent::DeclineJoin { request });
            s.acl(STRANGER, s.request(50, STRANGER, Role::Writer))
        }),
        row("an open invite does not take requests", "InviteModeMismatch", Code::InviteModeMismatch, move |s| {
            open(s, Role::Writer);
            s.acl(STRANGER, s.request(50, STRANGER, Role::Writer))
        }),
        row("an approval invite does not let in", "InviteModeMismatch", Code::InviteModeMismatch, move |s| {
            approval(s);
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("a greater role than the invite's", "BadRole", Code::BadRole, move |s| {
            open(s, Role::Reader);
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
        row("a proof by another key", "BadInviteProof", Code::BadInviteProof, move |s| {
            open(s, Role::Writer);
            let mut claim = s.claim(50, STRANGER, Role::Writer);
            claim.proof = sign_join_proof(&key(51), s.id(), account(STRANGER), Role::Writer);
            s.acl(STRANGER, AclContent::JoinByInvite { claim, seals: vec![seal(STRANGER)] })
        }),
        row("a proof for another account", "BadInviteProof", Code::BadInviteProof, move |s| {
            open(s, Role::Writer);
            let mut claim = s.claim(50, STRANGER, Role::Writer);
            claim.proof = sign_join_proof(&key(50), s.id(), account(7), Role::Writer);
            s.acl(STRANGER, AclContent::JoinByInvite { claim, seals: vec![seal(STRANGER)] })
        }),
        row("a join for somebody else", "NotTheJoiner", Code::BadInviteProof, move |s| {
            open(s, Role::Writer);
            s.acl(STRANGER, s.join(50, 7, Role::Writer))
        }),
        row("an invite from before the removal", "InviteBeforeRemoval", Code::InviteDead, move |s| {
            approval(s);
            let rotation = s.rotation(&[READER]);
            s.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation });
            s.acl(READER, s.request(50, READER, Role::Writer))
        }),
        allowed("an invite from after the removal", |s| {
            let rotation = s.rotation(&[READER]);
            s.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(READER)], rotation });
            s.act(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Open, Role::Writer)));
            s.acl(READER, s.join(50, READER, Role::Writer))
        }),
        allowed("who left comes back by an old invite", move |s| {
            approval(s);
            s.act(READER, AclContent::Leave);
            s.acl(READER, s.request(50, READER, Role::Writer))
        }),
        row("after a leave a rotation closes open invites", "InviteRevoked", Code::InviteRevoked, move |s| {
            open(s, Role::Writer);
            s.act(READER, AclContent::Leave);
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.acl(STRANGER, s.join(50, STRANGER, Role::Writer))
        }),
    ]
}

fn request_rows() -> Vec<Row> {
    let requested = |s: &mut Space| {
        s.act(ADMIN, AclContent::CreateInvite(Space::invite(50, InviteMode::Approval, Role::Writer)));
        s.act(STRANGER, s.request(50, STRANGER, Role::Writer))
    };
    let accept =
        |request, role, frontier| AclContent::AcceptJoin { request, role, seals: vec![seal(STRANGER)], frontier };
    let since_join = SpaceOptions { history: HistoryMode::SinceJoin, min_version: 0 };
    vec![
        allowed("accepted", move |s| {
            let request = requested(s);
            s.acl(ADMIN, accept(request, Role::Writer, Vec::new()))
        }),
        allowed("accepted although the invite was revoked since: the admin decides", move |s| {
            let request = requested(s);
            s.act(ADMIN, AclContent::RevokeInvite { invite: invite_id(50), rotation: None });
            s.acl(ADMIN, accept(request, Role::Writer, Vec::new()))
        }),
        allowed("accepted although the invite died since", move |s| {
            let request = requested(s);
            s.act(OWNER, AclContent::ChangeRole { account: account(ADMIN), role: Role::Reader, seal: None });
            s.acl(OWNER, accept(request, Role::Writer, Vec::new()))
        }),
        allowed("accepted with a lesser role", move |s| {
            let request = requested(s);
            s.acl(ADMIN, accept(request, Role::Guest, Vec::new()))
        }),
        row("accepted above the invite", "BadRole", Code::BadRole, move |s| {
            let request = requested(s);
            s.acl(OWNER, accept(request, Role::Admin, Vec::new()))
        }),
        row("accepted by a writer", "RoleTooLow", Code::RoleTooLow, move |s| {
            let request = requested(s);
            s.acl(WRITER, accept(request, Role::Reader, Vec::new()))
        }),
        row("accepted with a key for another", "BadSeals", Code::BadSeals, move |s| {
            let request = requested(s);
            let seals = vec![seal(READER)];
            s.acl(ADMIN, AclContent::AcceptJoin { request, role: Role::Writer, seals, frontier: Vec::new() })
        }),
        row("accepted twice", "RequestUnknown", Code::RequestUnknown, move |s| {
            let request = requested(s);
            s.act(ADMIN, accept(request, Role::Writer, Vec::new()));
            s.acl(ADMIN, accept(request, Role::Writer, Vec::new()))
        }),
        row("accepted after it was declined", "RequestUnknown", Code::RequestUnknown, move |s| {
            let request = requested(s);
            s.act(ADMIN, AclContent::DeclineJoin { request });
            s.acl(ADMIN, accept(request, Role::Writer, Vec::new()))
        }),
        row("cancelled after it was accepted", "RequestUnknown", Code::RequestUnknown, move |s| {
            let request = requested(s);
            s.act(ADMIN, accept(request, Role::Writer, Vec::new()));
            s.acl(STRANGER, AclContent::CancelJoin { request })
        }),
        row("cancelled by an admin", "NotTheJoiner", Code::BadInviteProof, move |s| {
            let request = requested(s);
            s.acl(ADMIN, AclContent::CancelJoin { request })
        }),
        row("asked twice", "RequestExists", Code::RequestExists, move |s| {
            requested(s);
            s.acl(STRANGER, s.request(50, STRANGER, Role::Writer))
        }),
        allowed("asked again after it was declined", move |s| {
            let request = requested(s);
            s.act(ADMIN, AclContent::DeclineJoin { request });
            s.acl(STRANGER, s.request(50, STRANGER, Role::Writer))
        }),
        row("accepted after it was added", "RequestUnknown", Code::RequestUnknown, move |s| {
            let request = requested(s);
            s.act(OWNER, AclContent::AddMembers { members: vec![(account(STRANGER), Role::Reader, seal(STRANGER))] });
            s.acl(ADMIN, accept(request, Role::Writer, Vec::new()))
        }),
        allowed("a promise that is kept", move |s| {
            let request = requested(s);
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            s.acl(ADMIN, accept(request, Role::Writer, vec![TreeHeads { tree, heads: vec![first] }]))
        }),
        row("a promise of a tree that is not there", "BadFrontier", Code::BadFrontier, move |s| {
            let request = requested(s);
            let promised = TreeHeads { tree: TreeId::from_hash([5; 32]), heads: Vec::new() };
            s.acl(ADMIN, accept(request, Role::Writer, vec![promised]))
        }),
        row("a promise of a change that is not there", "BadFrontier", Code::BadFrontier, move |s| {
            let request = requested(s);
            let (tree, _) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let heads = vec![ChangeId::from_hash([5; 32])];
            s.acl(ADMIN, accept(request, Role::Writer, vec![TreeHeads { tree, heads }]))
        }),
        row("a promise that a guest cannot read", "BadFrontier", Code::BadFrontier, move |s| {
            let request = requested(s);
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.acl(ADMIN, accept(request, Role::Guest, vec![TreeHeads { tree, heads: vec![first] }]))
        }),
        allowed("a promise that a reader of all history can read", move |s| {
            let request = requested(s);
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let rotation = s.rotation(&[]);
            s.act(ADMIN, AclContent::RotateKey { rotation });
            s.acl(ADMIN, accept(request, Role::Reader, vec![TreeHeads { tree, heads: vec![first] }]))
        }),
        row("a promise of the epoch that the same record ends", "BadFrontier", Code::BadFrontier, move |s| {
            s.act(OWNER, AclContent::SetOptions { options: since_join });
            let request = requested(s);
            let (tree, first) = s.begin(WRITER, 1, WriteRule::WRITERS);
            let rotation = s.rotation(&[]);
            let accepted = accept(request, Role::Reader, vec![TreeHeads { tree, heads: vec![first] }]);
            s.acl_with(ADMIN, vec![AclContent::RotateKey { rotation }, accepted], |_| {})
        }),
    ]
}

/// What is refused elsewhere than in `decide`.
fn other_refusals() -> Vec<Reject> {
    let (root, other) = (acl_root(OWNER), acl_root(ADMIN));
    let set_home = || AclContent::SetHome { authority: authority() };
    let owned = header(OWNER, &root);
    let wrong_root = genesis(owned.clone(), &other, &second(&owned, &other, OWNER, set_home())).unwrap_err();
    assert_eq!((name(&wrong_root), Code::from(&wrong_root)), ("BadGenesis", Code::BadGenesis));
    assert!(matches!(wrong_root, Reject::BadGenesis));
    let no_home = genesis(owned.clone(), &root, &second(&owned, &root, OWNER, AclContent::Leave)).unwrap_err();
    assert!(matches!(no_home, Reject::Acl(AclReject::BadGenesis)), "{no_home:?}");
    let thief = genesis(owned.clone(), &root, &second(&owned, &root, ADMIN, set_home())).unwrap_err();
    assert!(matches!(thief, Reject::Acl(AclReject::NotAMember { .. })), "{thief:?}");

    let mut space = Space::peopled();
    let tree = tree_root(space.id(), 1, WriteRule::WRITERS);
    let Submission::Change { change, .. } = space.first(WRITER, &tree) else { unreachable!() };
    let mismatch = tree_root(space.id(), 2, WriteRule::WRITERS);
    let mismatch = Submission::pair(Some(VerifiedRecord::TreeRoot(mismatch)), VerifiedRecord::Change(change.clone()));
    let mismatch = mismatch.unwrap_err();
    assert_eq!((name(&mismatch), Code::from(&mismatch)), ("RootMismatch", Code::MissingRoot));
    let mut reached = vec![wrong_root, no_home, thief, mismatch];
    for (root, record) in [
        (None, VerifiedRecord::SpaceHeader(owned)),
        (None, VerifiedRecord::AclRoot(root)),
        (None, VerifiedRecord::TreeRoot(tree.clone())),
        (Some(VerifiedRecord::Change(change.clone())), VerifiedRecord::Change(change)),
    ] {
        let refused = Submission::pair(root, record).unwrap_err();
        assert_eq!((name(&refused), Code::from(&refused)), ("NotAnEntry", Code::UnknownKind));
        reached.push(refused);
    }

    space.act(OWNER, AclContent::DeleteSpace);
    let Submission::Acl(late) = space.acl(OWNER, set_home()) else { unreachable!() };
    let deleted = space.log.acl_state().apply(&late, Seq(9)).unwrap_err();
    assert_eq!(deleted, AclReject::SpaceDeleted);
    reached.push(deleted.into());
    reached.push(crate::limit::one_head_too_many());
    reached
}

#[test]
fn every_rule_is_reached_and_has_its_code() {
    let rows = [change_rows(), tombstone_rows(), place_rows(), role_rows(), invite_rows(), request_rows()];
    let mut reached = check(rows.into_iter().flatten().collect());
    reached.extend(other_refusals());

    let of_log: BTreeSet<_> = reached.iter().map(reject_name).collect();
    assert_eq!(of_log, REJECTS.iter().copied().collect(), "a rule of the log that no case breaks");
    let of_acl: BTreeSet<_> =
        reached.iter().filter_map(|r| if let Reject::Acl(a) = r { Some(acl_name(a)) } else { None }).collect();
    assert_eq!(of_acl, ACL_REJECTS.iter().copied().collect(), "a rule of the ACL that no case breaks");

    let codes: BTreeSet<_> = reached.iter().map(Code::from).collect();
    let mut rules: BTreeSet<_> = Code::ALL.iter().copied().filter(|c| c.class() == Class::Rule).collect();
    rules.insert(Code::UnknownKind);
    assert_eq!(codes, rules, "the codes of class Rule, and UNKNOWN_KIND for what is no entry");
}

#[test]
fn admission_is_the_nodes_own_and_says_why() {
    let mut space = Space::peopled();
    let (tree, _) = space.begin(WRITER, 1, WriteRule::WRITERS);
    let created = space.log.trees()[&tree].created;
    let mut invite = Space::invite(50, InviteMode::Open, Role::Writer);
    invite.expires_ms = Some(1000);
    invite.requires = vec![tree];
    space.act(ADMIN, AclContent::CreateInvite(invite));
    let join = space.acl(STRANGER, space.join(50, STRANGER, Role::Writer));
    let at = |now_ms, durable_seq| Admission { authority: authority(), now_ms, durable_seq, recovering: None };
    let judge = |submission: &Submission, admission| match admit(&space.log, submission, &admission) {
        Ok(()) => None,
        Err(DecideError::Refused(refusal)) => Some(refusal),
        Err(other) => panic!("{other}"),
    };
    let durable = created.next();
    assert_eq!(judge(&join, at(999, durable)), None);
    let expired = Refusal::InviteExpired { invite: invite_id(50), expires_ms: 1000 };
    assert_eq!(judge(&join, at(1000, durable)), Some(expired.clone()));
    let missing = Refusal::RequiresMissing { trees: vec![tree] };
    assert_eq!(judge(&join, at(0, created)), Some(missing.clone()), "the root alone does not count");
    let elsewhere =
        Admission { authority: sync_core::ids::AuthorityId::from(&key(9).verifying_key()), ..at(0, durable) };
    let not_home = Refusal::NotHome { home: Some(authority()) };
    assert_eq!(judge(&join, elsewhere), Some(not_home.clone()));
    let left = std::time::Duration::from_secs(3);
    let restored = Admission { recovering: Some(left), ..at(0, durable) };
    let recovering = Refusal::Recovering { left };
    assert_eq!(judge(&join, restored), Some(recovering.clone()));
    let fresh = space.change(WRITER, tree, &[]);
    assert_eq!(judge(&fresh, restored), Some(recovering.clone()), "nothing new, of whatever kind");
    let Submission::Change { change, .. } = fresh else { unreachable!() };
    let mut raw = change.into_raw();
    raw.payload = None;
    let change = Submission::Change { root: None, change: sync_core::record::verify_as(raw).unwrap() };
    assert_eq!(judge(&change, at(0, durable)), Some(Refusal::PayloadMissing));
    assert!(decide(&space.log, &change).is_ok(), "a dropped payload does not make a change invalid");

    let reached = [expired, missing, not_home, Refusal::PayloadMissing, recovering];
    let codes: Vec<_> = reached.iter().map(Code::from).collect();
    let expected = [Code::InviteExpired, Code::RequiresMissing, Code::NotHome, Code::PayloadMissing, Code::Recovering];
    assert_eq!(codes, expected);
}
