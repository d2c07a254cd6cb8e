//! The tables of docs/acl.md are what the rules do: every cell is tried, in a log of its own.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test says what it expects, and fails otherwise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sync_core::code::Code;
use sync_core::ids::{AclId, AuthorityId, ChangeId, Epoch, InviteId, TreeId};
use sync_core::limits;
use sync_core::log::{Reject, Submission};
use sync_core::record::{
    AclContent, AclRecord, HistoryMode, InviteMode, Role, SpaceOptions, TreeHeads, Verified, Who, WriteRule,
};

use fixture::*;

#[expect(dead_code, reason = "shared with the tests of the rules, which use all of it")]
#[path = "../../sync-core/tests/core/fixture.rs"]
mod fixture;
mod map_log {
    pub(crate) use sync_tests::rules::{MapLog, Taken};
}

// ---- the page -------------------------------------------------------------------------------------------------------

/// The cells of a table's rows, header and rule left out: of the first table under this heading.
fn table(heading: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/acl.md");
    let page = std::fs::read_to_string(path).unwrap();
    let section = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        let line = line.strip_prefix('|').unwrap().strip_suffix('|').unwrap();
        line.split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    let mut rows = lines.map(cells);
    let header = rows.next().unwrap_or_else(|| panic!("no table under {heading}"));
    let rows: Vec<_> = rows.skip(1).collect();
    for row in &rows {
        assert_eq!(row.len(), header.len(), "{heading}: {row:?}");
    }
    (header, rows)
}

fn verdict(result: Result<map_log::Taken, Reject>) -> String {
    match result {
        Ok(_) => "yes".to_owned(),
        Err(reject) => Code::from(&reject).name().to_owned(),
    }
}

/// Compares a table, whose first `named` columns name a row, with what the rules say. `None` from the rules is a case that
/// cannot be: `—`.
fn check(heading: &str, named: usize, columns: &[&str], rules: &[(Vec<&str>, Vec<Option<String>>)]) {
    let (header, rows) = table(heading);
    assert_eq!(header[named..], *columns, "the columns of {heading}");
    let found: Vec<&[String]> = rows.iter().map(|row| &row[..named]).collect();
    let expected: Vec<&Vec<&str>> = rules.iter().map(|(name, _)| name).collect();
    assert_eq!(found, expected, "the rows of {heading}");
    let mut wrong = Vec::new();
    for (row, (name, verdicts)) in rows.iter().zip(rules) {
        for ((cell, actual), column) in row[named..].iter().zip(verdicts).zip(columns) {
            let actual = actual.as_deref().unwrap_or("—");
            if cell != actual {
                wrong.push(format!(
                    "{heading}: {}, {column}: the page says {cell}, the rules {actual}",
                    name.join(", ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

// ---- who acts -------------------------------------------------------------------------------------------------------

/// Who tries something. The owner's account of the fixture makes everything that has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    Member(Role),
    Stranger,
    Removed,
    Left,
}

const COLUMNS: [&str; 8] = ["owner", "admin", "writer", "reader", "guest", "stranger", "removed", "left"];
const ACTORS: [Actor; 8] = [
    Actor::Member(Role::Owner),
    Actor::Member(Role::Admin),
    Actor::Member(Role::Writer),
    Actor::Member(Role::Reader),
    Actor::Member(Role::Guest),
    Actor::Stranger,
    Actor::Removed,
    Actor::Left,
];
const ROLES: [Role; 5] = [Role::Owner, Role::Admin, Role::Writer, Role::Reader, Role::Guest];

/// Whose act is judged.
const ACTOR: u8 = 20;
/// A member whom something is done to.
const TARGET: u8 = 21;
/// An account that is no member and asks, or is added.
const ASKING: u8 = 22;
/// Another writer.
const OTHER: u8 = 23;
const APPROVAL: u8 = 50;
const OPEN: u8 = 51;
const NEW: u8 = 52;
/// By which the actor asked before it was added.
const EARLIER: u8 = 53;

impl Actor {
    /// Makes the actor what it is. Before, while it is a writer, it does `earlier`; a stranger never was one.
    fn enter(self, space: &mut Space, earlier: impl FnOnce(&mut Space)) {
        if self == Self::Stranger {
            return;
        }
        add(space, ACTOR, Role::Writer);
        earlier(space);
        match self {
            Self::Member(Role::Owner) => {
                set_role(space, OWNER, ACTOR, Role::Admin);
                space.act(OWNER, AclContent::TransferOwnership { account: account(ACTOR) });
            }
            Self::Member(role) => set_role(space, OWNER, ACTOR, role),
            Self::Removed => {
                let rotation = space.rotation(&[ACTOR]);
                space.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(ACTOR)], rotation });
            }
            Self::Left => {
                space.act(ACTOR, AclContent::Leave);
                let rotation = space.rotation(&[]);
                space.act(OWNER, AclContent::RotateKey { rotation });
            }
            Self::Stranger => {}
        }
    }

    fn is_member(self) -> bool {
        matches!(self, Self::Member(_))
    }
}

fn add(space: &mut Space, n: u8, role: Role) {
    space.act(OWNER, AclContent::AddMembers { members: vec![(account(n), role, seal(n))] });
}

fn set_role(space: &mut Space, by: u8, n: u8, role: Role) {
    space.act(by, AclContent::ChangeRole { account: account(n), role, seal: None });
}

/// After [`Actor::enter`] the first owner is an Admin at least, and does what prepares a case.
fn invite(space: &mut Space, n: u8, mode: InviteMode, role: Role) {
    space.act(OWNER, AclContent::CreateInvite(Space::invite(n, mode, role)));
}

fn accept(request: AclId, who: u8, role: Role) -> AclContent {
    AclContent::AcceptJoin { request, role, seals: vec![seal(who)], frontier: Vec::new() }
}

// ---- every content by every role ------------------------------------------------------------------------------------

/// One name for each content; a new one does not compile until it is here, and then the page must have it.
macro_rules! contents {
    ($($name:ident),*) => {
        const CONTENTS: &[&str] = &[$(stringify!($name)),*];

        fn name_of(content: &AclContent) -> &'static str {
            match content { $(AclContent::$name { .. } => stringify!($name),)* }
        }
    };
}

contents!(
    SetHome,
    CreateInvite,
    RevokeInvite,
    JoinByInvite,
    RequestJoin,
    CancelJoin,
    AcceptJoin,
    DeclineJoin,
    AddMembers,
    ChangeRole,
    RemoveMembers,
    Leave,
    RotateKey,
    Reseal,
    SetOptions,
    TransferOwnership,
    DeleteSpace
);

/// Prepares a case, and gives the content that the actor then tries.
type Case = fn(&mut Space, Actor) -> AclContent;

/// The contents in a form that is right but for who tries it.
const CASES: &[(&str, Case)] = &[
    ("SetHome", |_, _| AclContent::SetHome { authority: AuthorityId::from(&key(201).verifying_key()) }),
    ("CreateInvite, open", |_, _| AclContent::CreateInvite(Space::invite(NEW, InviteMode::Open, Role::Reader))),
    ("CreateInvite, approval", |_, _| AclContent::CreateInvite(Space::invite(NEW, InviteMode::Approval, Role::Reader))),
    ("RevokeInvite, open", |space, _| {
        invite(space, OPEN, InviteMode::Open, Role::Reader);
        let mut rotation = space.rotation(&[]);
        rotation.invite_seals.clear();
        AclContent::RevokeInvite { invite: invite_id(OPEN), rotation: Some(rotation) }
    }),
    ("RevokeInvite, approval", |space, _| {
        invite(space, APPROVAL, InviteMode::Approval, Role::Reader);
        AclContent::RevokeInvite { invite: invite_id(APPROVAL), rotation: None }
    }),
    ("JoinByInvite", |space, _| {
        invite(space, OPEN, InviteMode::Open, Role::Reader);
        space.join(OPEN, ACTOR, Role::Reader)
    }),
    ("RequestJoin", |space, _| {
        invite(space, APPROVAL, InviteMode::Approval, Role::Reader);
        space.request(APPROVAL, ACTOR, Role::Reader)
    }),
    ("CancelJoin, its own", |space, actor| {
        // A member's own request ended when it became one: `asked` made it before.
        if !actor.is_member() {
            invite(space, APPROVAL, InviteMode::Approval, Role::Reader);
            space.act(ACTOR, space.request(APPROVAL, ACTOR, Role::Reader));
        }
        let requests = &space.log.acl_state().requests;
        let own = requests.iter().find(|(_, request)| request.claim.account == account(ACTOR));
        AclContent::CancelJoin { request: *own.unwrap().0 }
    }),
    ("CancelJoin, another's", |space, _| AclContent::CancelJoin { request: asked(space, ASKING, Role::Reader) }),
    ("AcceptJoin", |space, _| accept(asked(space, ASKING, Role::Reader), ASKING, Role::Reader)),
    ("DeclineJoin", |space, _| AclContent::DeclineJoin { request: asked(space, ASKING, Role::Reader) }),
    ("AddMembers", |_, _| AclContent::AddMembers { members: vec![(account(ASKING), Role::Reader, seal(ASKING))] }),
    ("ChangeRole", |_, _| AclContent::ChangeRole { account: account(TARGET), role: Role::Reader, seal: None }),
    ("RemoveMembers", |space, _| {
        let rotation = space.rotation(&[TARGET]);
        AclContent::RemoveMembers { accounts: vec![account(TARGET)], rotation }
    }),
    ("Leave", |_, _| AclContent::Leave),
    ("RotateKey", |space, _| AclContent::RotateKey { rotation: space.rotation(&[]) }),
    ("Reseal", |space, _| AclContent::Reseal {
        account: account(TARGET),
        epoch: space.log.acl_state().epoch,
        seal: seal(TARGET),
    }),
    ("SetOptions", |_, _| AclContent::SetOptions {
        options: SpaceOptions { history: HistoryMode::SinceJoin, min_version: 1 },
    }),
    ("TransferOwnership", |_, _| AclContent::TransferOwnership { account: account(TARGET) }),
    ("DeleteSpace", |_, _| AclContent::DeleteSpace),
];

/// A pending request for a role.
fn asked(space: &mut Space, who: u8, role: Role) -> AclId {
    let key = if who == ACTOR { EARLIER } else { APPROVAL };
    invite(space, key, InviteMode::Approval, role);
    space.act(who, space.request(key, who, role))
}

/// A space with a target and an actor, who asked to join before it was added.
fn peopled(actor: Actor) -> Space {
    let mut space = Space::new();
    add(&mut space, TARGET, Role::Writer);
    if actor.is_member() {
        asked(&mut space, ACTOR, Role::Reader);
    }
    actor.enter(&mut space, |_| {});
    space
}

fn tried(space: &mut Space, by: u8, content: AclContent) -> (&'static str, String) {
    let name = name_of(&content);
    assert_eq!(name, content.name());
    let submission = space.acl(by, content);
    (name, verdict(space.take(&submission)))
}

#[test]
fn every_content_by_every_role() {
    let rules: Vec<_> = CASES
        .iter()
        .map(|(row, case)| {
            let verdicts = ACTORS.iter().map(|actor| {
                let mut space = peopled(*actor);
                let content = case(&mut space, *actor);
                let (name, verdict) = tried(&mut space, ACTOR, content);
                assert_eq!(row.split(',').next(), Some(name));
                Some(verdict)
            });
            (vec![*row], verdicts.collect())
        })
        .collect();
    let tried: BTreeSet<_> = CASES.iter().filter_map(|(row, _)| row.split(',').next()).collect();
    assert_eq!(tried, CONTENTS.iter().copied().collect(), "a content that nobody tries");
    check("Every content by every role", 1, &COLUMNS, &rules);
}

// ---- roles given and taken ------------------------------------------------------------------------------------------

/// Prepares the case of a role, and gives the content; `None` where there can be no such thing.
type RoleCase = fn(&mut Space, Role) -> Option<AclContent>;

const ROLE_CASES: &[(&str, RoleCase)] = &[
    ("CreateInvite, for the role", |_, role| {
        Some(AclContent::CreateInvite(Space::invite(NEW, InviteMode::Open, role)))
    }),
    ("RevokeInvite, of one for the role", |space, role| {
        if role == Role::Owner {
            return None;
        }
        let by_owner = AclContent::CreateInvite(Space::invite(APPROVAL, InviteMode::Approval, role));
        space.act(owner(space), by_owner);
        Some(AclContent::RevokeInvite { invite: invite_id(APPROVAL), rotation: None })
    }),
    ("AcceptJoin, with the role", |space, role| {
        let asked_for = role.min(Role::Admin);
        let by_owner = AclContent::CreateInvite(Space::invite(APPROVAL, InviteMode::Approval, asked_for));
        space.act(owner(space), by_owner);
        let request = space.act(ASKING, space.request(APPROVAL, ASKING, asked_for));
        Some(accept(request, ASKING, role))
    }),
    ("DeclineJoin, of one who asks for the role", |space, role| {
        if role == Role::Owner {
            return None;
        }
        let by_owner = AclContent::CreateInvite(Space::invite(APPROVAL, InviteMode::Approval, role));
        space.act(owner(space), by_owner);
        Some(AclContent::DeclineJoin { request: space.act(ASKING, space.request(APPROVAL, ASKING, role)) })
    }),
    ("AddMembers, with the role", |_, role| {
        Some(AclContent::AddMembers { members: vec![(account(ASKING), role, seal(ASKING))] })
    }),
    ("ChangeRole, to the role", |_, role| Some(AclContent::ChangeRole { account: account(TARGET), role, seal: None })),
    ("ChangeRole, of one with the role", |space, role| {
        let target = with_role(space, role);
        Some(AclContent::ChangeRole { account: account(target), role: Role::Reader, seal: Some(seal(target)) })
    }),
    ("RemoveMembers, of one with the role", |space, role| {
        let target = with_role(space, role);
        let rotation = space.rotation(&[target]);
        Some(AclContent::RemoveMembers { accounts: vec![account(target)], rotation })
    }),
    ("Reseal, to one with the role", |space, role| {
        let target = with_role(space, role);
        Some(AclContent::Reseal { account: account(target), epoch: Epoch(0), seal: seal(target) })
    }),
    ("TransferOwnership, to one with the role", |space, role| {
        Some(AclContent::TransferOwnership { account: account(with_role(space, role)) })
    }),
];

/// The number of the account that owns the space.
fn owner(space: &Space) -> u8 {
    let owner = space.log.acl_state().owner;
    [OWNER, ACTOR].into_iter().find(|n| account(*n) == owner).unwrap()
}

/// A member with this role, who is not the actor unless the actor alone can have it.
fn with_role(space: &mut Space, role: Role) -> u8 {
    let owner = owner(space);
    if role == Role::Owner {
        return owner;
    }
    let seal = Some(seal(TARGET));
    space.act(owner, AclContent::ChangeRole { account: account(TARGET), role, seal });
    TARGET
}

#[test]
fn roles_are_given_and_taken_from_above() {
    let columns = ["owner", "admin", "writer", "reader", "guest"];
    let mut rules = Vec::new();
    for (row, case) in ROLE_CASES {
        for (by, role) in [("owner", Role::Owner), ("admin", Role::Admin)] {
            let verdicts = ROLES.iter().map(|of| {
                let mut space = peopled(Actor::Member(role));
                let content = case(&mut space, *of)?;
                Some(tried(&mut space, ACTOR, content).1)
            });
            rules.push((vec![*row, by], verdicts.collect()));
        }
    }
    check("Roles given and taken", 2, &columns, &rules);
}

// ---- what a content asks beside the role ----------------------------------------------------------------------------

/// By an owner: what is wrong, and how it is answered.
type WrongCase = fn(&mut Space) -> (u8, AclContent);

fn rotated(space: &Space) -> sync_core::record::Rotation {
    space.rotation(&[])
}

fn pending(space: &mut Space) -> AclId {
    invite(space, APPROVAL, InviteMode::Approval, Role::Writer);
    space.act(ASKING, space.request(APPROVAL, ASKING, Role::Writer))
}

fn joins(claim: sync_core::record::JoinClaim) -> AclContent {
    AclContent::JoinByInvite { claim, seals: vec![seal(ASKING)] }
}

fn unknown_request() -> AclId {
    AclId::from_hash([7; 32])
}

/// A thousand members, and nobody may come in any more.
fn full(space: &mut Space) {
    let here = space.log.acl_state().members.len();
    let many: Vec<_> = (here..limits::MEMBERS_MAX)
        .map(|n| {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let id = sync_core::ids::AccountId::from(&ed25519_dalek::SigningKey::from_bytes(&bytes).verifying_key());
            (id, Role::Reader, seal_to(id.as_bytes()))
        })
        .collect();
    space.act(OWNER, AclContent::AddMembers { members: many });
}

const WRONG: &[(&str, &str, WrongCase)] = &[
    ("CreateInvite", "LIMIT_REACHED", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        (OWNER, AclContent::CreateInvite(Space::invite(NEW, InviteMode::Approval, Role::Reader)))
    }),
    ("CreateInvite", "BAD_SEALS", |_| {
        let mut open = Space::invite(NEW, InviteMode::Open, Role::Reader);
        open.seals.clear();
        (OWNER, AclContent::CreateInvite(open))
    }),
    ("CreateInvite", "BAD_SEALS", |_| {
        let mut approval = Space::invite(NEW, InviteMode::Approval, Role::Reader);
        approval.seals.push(seal_to(invite_id(NEW).as_bytes()));
        (OWNER, AclContent::CreateInvite(approval))
    }),
    ("CreateInvite", "INVITE_MODE_MISMATCH", |_| {
        let mut approval = Space::invite(NEW, InviteMode::Approval, Role::Reader);
        approval.requires.push(TreeId::from_hash([1; 32]));
        (OWNER, AclContent::CreateInvite(approval))
    }),
    ("RevokeInvite", "INVITE_UNKNOWN", |_| {
        (OWNER, AclContent::RevokeInvite { invite: invite_id(NEW), rotation: None })
    }),
    ("RevokeInvite", "INVITE_REVOKED", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        let revoke = || AclContent::RevokeInvite { invite: invite_id(NEW), rotation: None };
        space.act(OWNER, revoke());
        (OWNER, revoke())
    }),
    ("RevokeInvite", "INVITE_DEAD", |space| {
        (OWNER, AclContent::RevokeInvite { invite: dead_invite(space, InviteMode::Approval), rotation: None })
    }),
    ("RevokeInvite", "BAD_SEALS", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        (OWNER, AclContent::RevokeInvite { invite: invite_id(NEW), rotation: None })
    }),
    ("RevokeInvite", "BAD_SEALS", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        let rotation = Some(rotated(space));
        (OWNER, AclContent::RevokeInvite { invite: invite_id(NEW), rotation })
    }),
    ("JoinByInvite", "INVITE_UNKNOWN", |space| (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))),
    ("JoinByInvite", "INVITE_REVOKED", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        let rotation = space.rotation(&[OTHER]);
        space.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(OTHER)], rotation });
        (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("JoinByInvite", "INVITE_DEAD", |space| {
        dead_invite(space, InviteMode::Open);
        (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("JoinByInvite", "INVITE_USED_UP", |space| {
        let mut once = Space::invite(NEW, InviteMode::Open, Role::Reader);
        once.max_uses = Some(1);
        space.act(OWNER, AclContent::CreateInvite(once));
        space.act(ACTOR, space.join(NEW, ACTOR, Role::Reader));
        (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("JoinByInvite", "INVITE_MODE_MISMATCH", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("JoinByInvite", "BAD_ROLE", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        (ASKING, joins(space.claim(NEW, ASKING, Role::Writer)))
    }),
    ("JoinByInvite", "BAD_INVITE_PROOF", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        (STRANGER, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("JoinByInvite", "BAD_SEALS", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        let claim = space.claim(NEW, ASKING, Role::Reader);
        (ASKING, AclContent::JoinByInvite { claim, seals: Vec::new() })
    }),
    ("JoinByInvite", "LIMIT_REACHED", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        full(space);
        (ASKING, joins(space.claim(NEW, ASKING, Role::Reader)))
    }),
    ("RequestJoin", "INVITE_UNKNOWN", |space| (ASKING, space.request(NEW, ASKING, Role::Reader))),
    ("RequestJoin", "INVITE_REVOKED", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        space.act(OWNER, AclContent::RevokeInvite { invite: invite_id(NEW), rotation: None });
        (ASKING, space.request(NEW, ASKING, Role::Reader))
    }),
    ("RequestJoin", "INVITE_DEAD", |space| {
        dead_invite(space, InviteMode::Approval);
        (ASKING, space.request(NEW, ASKING, Role::Reader))
    }),
    ("RequestJoin", "INVITE_DEAD", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        let rotation = space.rotation(&[OTHER]);
        space.act(OWNER, AclContent::RemoveMembers { accounts: vec![account(OTHER)], rotation });
        (OTHER, space.request(NEW, OTHER, Role::Reader))
    }),
    ("RequestJoin", "INVITE_USED_UP", |space| {
        let mut once = Space::invite(NEW, InviteMode::Approval, Role::Reader);
        once.max_uses = Some(1);
        space.act(OWNER, AclContent::CreateInvite(once));
        space.act(ACTOR, space.request(NEW, ACTOR, Role::Reader));
        (ASKING, space.request(NEW, ASKING, Role::Reader))
    }),
    ("RequestJoin", "INVITE_MODE_MISMATCH", |space| {
        invite(space, NEW, InviteMode::Open, Role::Reader);
        (ASKING, space.request(NEW, ASKING, Role::Reader))
    }),
    ("RequestJoin", "BAD_ROLE", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        (ASKING, space.request(NEW, ASKING, Role::Guest))
    }),
    ("RequestJoin", "BAD_INVITE_PROOF", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        let mut claim = space.claim(NEW, ASKING, Role::Reader);
        claim.proof = space.claim(OPEN, ASKING, Role::Reader).proof;
        (ASKING, AclContent::RequestJoin { claim })
    }),
    ("RequestJoin", "REQUEST_EXISTS", |space| {
        pending(space);
        (ASKING, space.request(APPROVAL, ASKING, Role::Writer))
    }),
    ("RequestJoin", "LIMIT_REACHED", |space| {
        invite(space, NEW, InviteMode::Approval, Role::Reader);
        crowd(space);
        (ASKING, space.request(NEW, ASKING, Role::Reader))
    }),
    ("CancelJoin", "REQUEST_UNKNOWN", |_| (ASKING, AclContent::CancelJoin { request: unknown_request() })),
    ("AcceptJoin", "REQUEST_UNKNOWN", |_| (OWNER, accept(unknown_request(), ASKING, Role::Writer))),
    ("AcceptJoin", "BAD_ROLE", |space| (OWNER, accept(pending(space), ASKING, Role::Admin))),
    ("AcceptJoin", "BAD_SEALS", |space| (OWNER, accept(pending(space), OTHER, Role::Writer))),
    ("AcceptJoin", "BAD_FRONTIER", |space| {
        let request = pending(space);
        let frontier = vec![TreeHeads { tree: TreeId::from_hash([1; 32]), heads: Vec::new() }];
        (OWNER, AclContent::AcceptJoin { request, role: Role::Writer, seals: vec![seal(ASKING)], frontier })
    }),
    ("AcceptJoin", "BAD_FRONTIER", |space| {
        // A guest is promised what was written under keys that it is not given.
        let request = pending(space);
        let (tree, first) = space.begin(OTHER, 1, WriteRule::WRITERS);
        let rotation = rotated(space);
        space.act(OWNER, AclContent::RotateKey { rotation });
        let frontier = vec![TreeHeads { tree, heads: vec![first] }];
        (OWNER, AclContent::AcceptJoin { request, role: Role::Guest, seals: vec![seal(ASKING)], frontier })
    }),
    ("AcceptJoin", "LIMIT_REACHED", |space| {
        let request = pending(space);
        full(space);
        (OWNER, accept(request, ASKING, Role::Writer))
    }),
    ("DeclineJoin", "REQUEST_UNKNOWN", |_| (OWNER, AclContent::DeclineJoin { request: unknown_request() })),
    ("AddMembers", "BAD_SEALS", |_| {
        (OWNER, AclContent::AddMembers { members: vec![(account(ASKING), Role::Reader, seal(OTHER))] })
    }),
    ("AddMembers", "ALREADY_MEMBER", |_| {
        (OWNER, AclContent::AddMembers { members: vec![(account(OTHER), Role::Reader, seal(OTHER))] })
    }),
    ("AddMembers", "LIMIT_REACHED", |space| {
        full(space);
        (OWNER, AclContent::AddMembers { members: vec![(account(ASKING), Role::Reader, seal(ASKING))] })
    }),
    ("ChangeRole", "NOT_A_MEMBER", |_| {
        (OWNER, AclContent::ChangeRole { account: account(ASKING), role: Role::Reader, seal: None })
    }),
    ("ChangeRole", "BAD_SEALS", |space| {
        set_role(space, OWNER, OTHER, Role::Guest);
        (OWNER, AclContent::ChangeRole { account: account(OTHER), role: Role::Reader, seal: None })
    }),
    ("RemoveMembers", "NOT_A_MEMBER", |space| {
        let rotation = rotated(space);
        (OWNER, AclContent::RemoveMembers { accounts: vec![account(ASKING)], rotation })
    }),
    ("RemoveMembers", "BAD_SEALS", |space| {
        let rotation = rotated(space);
        (OWNER, AclContent::RemoveMembers { accounts: vec![account(OTHER)], rotation })
    }),
    ("RotateKey", "BAD_SEALS", |space| {
        let mut rotation = rotated(space);
        rotation.seals.pop();
        (OWNER, AclContent::RotateKey { rotation })
    }),
    ("RotateKey", "BAD_SEALS", |space| {
        let mut rotation = rotated(space);
        rotation.epoch = Epoch(7);
        (OWNER, AclContent::RotateKey { rotation })
    }),
    ("Reseal", "NOT_A_MEMBER", |_| {
        (OWNER, AclContent::Reseal { account: account(ASKING), epoch: Epoch(0), seal: seal(ASKING) })
    }),
    ("Reseal", "BAD_SEALS", |_| {
        (OWNER, AclContent::Reseal { account: account(OTHER), epoch: Epoch(1), seal: seal(OTHER) })
    }),
    ("Reseal", "BAD_SEALS", |space| {
        let rotation = rotated(space);
        space.act(OWNER, AclContent::RotateKey { rotation });
        add(space, ASKING, Role::Guest);
        (OWNER, AclContent::Reseal { account: account(ASKING), epoch: Epoch(0), seal: seal(ASKING) })
    }),
    ("TransferOwnership", "NOT_A_MEMBER", |_| (OWNER, AclContent::TransferOwnership { account: account(ASKING) })),
];

/// An invite whose maker is an admin no more.
fn dead_invite(space: &mut Space, mode: InviteMode) -> InviteId {
    add(space, ADMIN, Role::Admin);
    space.act(ADMIN, AclContent::CreateInvite(Space::invite(NEW, mode, Role::Reader)));
    set_role(space, OWNER, ADMIN, Role::Writer);
    invite_id(NEW)
}

/// As many requests as a space takes.
fn crowd(space: &mut Space) {
    invite(space, OPEN, InviteMode::Approval, Role::Reader);
    for n in 0..limits::REQUESTS_MAX {
        let mut bytes = [8; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let asking = ed25519_dalek::SigningKey::from_bytes(&bytes);
        let id = sync_core::ids::AccountId::from(&asking.verifying_key());
        let proof = sync_core::acl::sign_join_proof(&key(OPEN), space.id(), id, Role::Reader);
        let mut claim = space.claim(OPEN, ASKING, Role::Reader);
        (claim.account, claim.proof) = (id, proof);
        let acl = space.log.acl_state();
        let record = AclRecord {
            space: acl.space,
            prev: acl.head,
            index: acl.index + 1,
            author: id,
            at_ms: 0,
            seen: None,
            contents: vec![AclContent::RequestJoin { claim }],
        };
        let record = Verified::sign(&record, &asking, None).unwrap();
        space.take(&Submission::Acl(record)).unwrap();
    }
}

/// The first table lists every content once, and for each exactly the codes that it can be refused with.
#[test]
fn the_rules_of_every_content_name_their_codes() {
    let (header, rows) = table("The contents");
    assert_eq!(header, ["Content", "Who", "What it asks and does", "Refused with"]);
    let listed: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(listed, CONTENTS, "the contents, in the order of the code");

    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (expected, code, case) in WRONG {
        let mut space = Space::new();
        add(&mut space, OTHER, Role::Writer);
        let (by, content) = case(&mut space);
        let (name, verdict) = tried(&mut space, by, content);
        assert_eq!((name, verdict.as_str()), (*expected, *code));
        reached.entry(name).or_default().insert(verdict);
    }
    for (heading, named) in [("Every content by every role", 1), ("Roles given and taken", 2)] {
        for row in table(heading).1 {
            let name = CONTENTS.iter().find(|name| row[0].split(',').next() == Some(*name)).unwrap();
            let codes = row[named..].iter().filter(|cell| !["yes", "—"].contains(&cell.as_str()));
            reached.entry(name).or_default().extend(codes.cloned());
        }
    }
    for row in &rows {
        let codes: BTreeSet<_> = row[3].split_whitespace().map(str::to_owned).collect();
        let known: BTreeSet<_> = Code::ALL.iter().map(|code| code.name().to_owned()).collect();
        assert!(codes.is_subset(&known), "{}: {codes:?}", row[0]);
        assert_eq!(codes, reached.remove(row[0].as_str()).unwrap_or_default(), "the codes of {}", row[0]);
    }
}

// ---- write rules and purges -----------------------------------------------------------------------------------------

/// Whose a tree is: the rule, with the account that it names.
fn who(rule: &str) -> Who {
    match rule {
        "writers" => Who::Writers,
        "admins" => Who::Admins,
        "account: its own" => Who::Account(account(ACTOR)),
        "account: another's" => Who::Account(account(OTHER)),
        "account_or_admins: its own" => Who::AccountOrAdmins(account(ACTOR)),
        "account_or_admins: another's" => Who::AccountOrAdmins(account(OTHER)),
        other => panic!("no rule {other}"),
    }
}

const WRITE_RULES: [&str; 6] = [
    "writers",
    "admins",
    "account: its own",
    "account: another's",
    "account_or_admins: its own",
    "account_or_admins: another's",
];

/// Someone else whom the rule lets write: never the actor.
fn begin(space: &mut Space, rule: WriteRule) -> Option<(TreeId, ChangeId)> {
    let by = match rule.who {
        Who::Writers | Who::Admins | Who::AccountOrAdmins(_) => OWNER,
        Who::Account(named) if named == account(OTHER) => OTHER,
        Who::Account(_) => return None,
    };
    Some(space.begin(by, 1, rule))
}

/// The actor, and the tree that it writes to; what it needs of its own is written while it is a writer.
fn written_to(actor: Actor, rule: WriteRule) -> Option<(Space, TreeId, ChangeId)> {
    let mut space = Space::new();
    add(&mut space, OTHER, Role::Writer);
    let mut begun = begin(&mut space, rule);
    if begun.is_none() && actor == Actor::Stranger {
        return None;
    }
    actor.enter(&mut space, |space| {
        if begun.is_none() {
            begun = Some(space.begin(ACTOR, 1, rule));
        }
    });
    let (tree, change) = begun?;
    Some((space, tree, change))
}

#[test]
fn every_write_rule_by_every_role() {
    let mut rules = Vec::new();
    for rule in WRITE_RULES {
        for (change, once) in [("first", false), ("first, once", true), ("later", false), ("later, once", true)] {
            let write_rule = WriteRule { who: who(rule), once };
            let verdicts = ACTORS.iter().map(|actor| {
                if change.starts_with("first") {
                    let mut space = Space::new();
                    add(&mut space, OTHER, Role::Writer);
                    actor.enter(&mut space, |_| {});
                    let root = tree_root(space.id(), 1, write_rule);
                    let first = space.first(ACTOR, &root);
                    return Some(verdict(space.take(&first)));
                }
                let (mut space, tree, parent) = written_to(*actor, write_rule)?;
                let later = space.change(ACTOR, tree, &[parent]);
                Some(verdict(space.take(&later)))
            });
            rules.push((vec![rule, change], verdicts.collect()));
        }
    }
    check("Writing", 2, &COLUMNS, &rules);
}

#[test]
fn every_purge_by_every_role() {
    let mut rules = Vec::new();
    for rule in WRITE_RULES {
        for began in ["the actor", "another"] {
            let write_rule = WriteRule { who: who(rule), once: false };
            let verdicts = ACTORS.iter().map(|actor| {
                let mut space = Space::new();
                add(&mut space, OTHER, Role::Writer);
                let mut tree = None;
                if began == "another" {
                    tree = begin(&mut space, write_rule).map(|(tree, _)| tree);
                }
                actor.enter(&mut space, |space| {
                    if began == "the actor" {
                        tree = begun_by_the_actor(space, write_rule);
                    }
                });
                let purge = space.tombstone(ACTOR, tree?);
                Some(verdict(space.take(&purge)))
            });
            let verdicts: Vec<_> = verdicts.collect();
            // Nobody begins a tree that its rule keeps from it.
            if verdicts.iter().any(Option::is_some) {
                rules.push((vec![rule, began], verdicts));
            }
        }
    }
    let verdicts = ACTORS.iter().map(|actor| {
        let mut space = Space::new();
        actor.enter(&mut space, |_| {});
        let (tree, _) = space.begin(OWNER, 1, WriteRule::WRITERS);
        let purge = space.tombstone(OWNER, tree);
        space.take(&purge).unwrap();
        let again = space.tombstone(ACTOR, tree);
        Some(verdict(space.take(&again)))
    });
    rules.push((vec!["purged already", "another"], verdicts.collect()));
    check("Purging", 2, &COLUMNS, &rules);
}

/// Begun while the rule let the actor: for an admins' tree it was an admin for a while.
fn begun_by_the_actor(space: &mut Space, rule: WriteRule) -> Option<TreeId> {
    match rule.who {
        Who::Account(named) if named != account(ACTOR) => None,
        Who::Admins | Who::AccountOrAdmins(_) => {
            set_role(space, OWNER, ACTOR, Role::Admin);
            let (tree, _) = space.begin(ACTOR, 1, rule);
            set_role(space, OWNER, ACTOR, Role::Writer);
            Some(tree)
        }
        Who::Writers | Who::Account(_) => Some(space.begin(ACTOR, 1, rule).0),
    }
}

// ---- the place of a record ------------------------------------------------------------------------------------------

#[test]
fn the_place_of_a_record_is_judged_first() {
    type Make = fn() -> Vec<AclContent>;
    type Edit = fn(&mut AclRecord);
    let leave: Make = || vec![AclContent::Leave];
    let invites: Make = || {
        let invite = |n| AclContent::CreateInvite(Space::invite(n, InviteMode::Approval, Role::Reader));
        vec![invite(NEW), invite(OPEN)]
    };
    let after_the_end: Make = || vec![AclContent::DeleteSpace, AclContent::Leave];
    let cases: [(&str, Make, Edit); 5] = [
        ("it names this space", leave, |r| r.space = sync_core::ids::SpaceId::from_hash([8; 32])),
        ("prev is the ACL head", leave, |r| r.prev = AclId::from_hash([8; 32])),
        ("index is the next number", leave, |r| r.index += 1),
        ("it makes at most one invite", invites, |_| {}),
        ("nothing stands after a DeleteSpace", after_the_end, |_| {}),
    ];
    let rules: Vec<_> = cases
        .into_iter()
        .map(|(row, contents, edit)| {
            let mut space = Space::new();
            let submission = space.acl_with(OWNER, contents(), edit);
            (vec![row], vec![Some(verdict(space.take(&submission)))])
        })
        .collect();
    check("The place of a record", 1, &["Refused with"], &rules);
}
