//! Membership and keys a second time, as plain as it can be: lists that are searched, and no state that is clever.

use std::collections::{BTreeMap, BTreeSet};

use sync_core::acl::AclState;
use sync_core::ids::{AccountId, AclId, Epoch, InviteId, TreeId};
use sync_core::log::{EntryKind, NewEntry};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, HistoryMode, InviteMode, Role, Tombstone, TreeChange, TreeRoot, Who, verify_as,
};

/// Records by their bytes, so that each is decoded once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    acl: BTreeMap<AclId, AclRecord>,
    changes: BTreeMap<AclId, TreeChange>,
}

#[derive(Debug, Clone)]
struct PlainInvite {
    id: InviteId,
    creator: AccountId,
    role: Role,
    mode: InviteMode,
    created: usize,
    uses_left: Option<u32>,
    live: bool,
}

/// Keys that somebody got: of an account, or of whoever knows the secret of an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    to: [u8; 32],
    epoch: u32,
    history: bool,
}

/// The membership as a list of people, and the keys as a list of gifts. Panics at the first entry that should not stand.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    members: Vec<(AccountId, Role)>,
    /// The entry that gave each account what it is, the last one counts.
    since: Vec<(AccountId, usize)>,
    /// The records of the ACL so far, and their entries.
    acl: Vec<(AclId, usize)>,
    at: usize,
    removed: Vec<(AccountId, usize)>,
    invites: Vec<PlainInvite>,
    /// Open requests: the record, who, as what, by which invite.
    requests: Vec<(AclId, AccountId, Role, InviteId)>,
    purged: Vec<TreeId>,
    firsts: Vec<(TreeId, AccountId)>,
    history_for_all: bool,
    owed: bool,
    deleted: bool,
    epoch: u32,
    grants: Vec<Grant>,
    /// For each epoch after the first: whether its history key opens the history key of the one before, too.
    whole_links: Vec<bool>,
}

impl Plain {
    pub(crate) fn of(entries: &[NewEntry], records: &mut Records) -> Self {
        let mut plain = Self::default();
        let root = verify_as::<AclRoot>(entries[0].record.clone()).expect("entry 1 is the root of the ACL");
        plain.history_for_all = root.body().options.history == HistoryMode::All;
        plain.members.push((root.body().owner, Role::Owner));
        plain.grants.push(Grant { to: *root.body().owner.as_bytes(), epoch: 0, history: true });
        plain.acl.push((root.id().into(), 0));
        let mut rules = BTreeMap::new();
        for (at, entry) in entries.iter().enumerate().skip(1) {
            plain.at = at;
            assert!(!plain.deleted, "nothing stands after the end of a space");
            match entry.kind {
                EntryKind::Acl => {
                    let record = records.acl.entry(entry.id.into()).or_insert_with(|| {
                        verify_as::<AclRecord>(entry.record.clone()).expect("a record of the ACL").body().clone()
                    });
                    let [content] = record.contents.as_slice() else { panic!("scripts make one content a record") };
                    plain.act(at, entry.id.into(), record.author, content);
                    plain.bury();
                    plain.acl.push((entry.id.into(), at));
                }
                EntryKind::Root => {
                    let root = verify_as::<TreeRoot>(entry.record.clone()).expect("a root");
                    rules.insert(root.body().tree_id(), root.body().write_rule);
                }
                EntryKind::Change => {
                    let change = records.changes.entry(AclId::from_hash(*entry.id.as_bytes())).or_insert_with(|| {
                        verify_as::<TreeChange>(entry.record.clone()).expect("a change").body().clone()
                    });
                    let (tree, author) = (change.tree, change.author);
                    let role = plain.role(&author).unwrap_or_else(|| panic!("entry {at} by {author}, no member"));
                    assert!(role >= Role::Writer, "entry {at} by {author}, a {role}");
                    assert!(may(rules[&tree].who, author, role), "entry {at} by {author} against the write rule");
                    assert!(!plain.purged.contains(&tree), "entry {at} in a tree that was ended");
                    let is_first = !plain.firsts.iter().any(|(t, _)| *t == tree);
                    assert!(is_first || !rules[&tree].once, "entry {at} in a tree that takes one change");
                    assert_eq!(change.epoch.0, plain.epoch, "entry {at}");
                    plain.knew_its_role(&author, &change.acl_head);
                    if is_first {
                        plain.firsts.push((tree, author));
                    }
                }
                EntryKind::Tombstone => {
                    let stone = verify_as::<Tombstone>(entry.record.clone()).expect("a tombstone");
                    let (tree, author) = (stone.body().tree, stone.body().author);
                    let role = plain.role(&author).expect("a tombstone by a member");
                    let owns = matches!(rules[&tree].who, Who::Account(a) | Who::AccountOrAdmins(a) if a == author);
                    let was_first = plain.firsts.contains(&(tree, author));
                    assert!(role >= Role::Admin || (role == Role::Writer && (owns || was_first)), "entry {at}");
                    assert!(!plain.purged.contains(&tree), "a tree ends once");
                    plain.knew_its_role(&author, &stone.body().acl_head);
                    plain.purged.push(tree);
                }
            }
        }
        plain
    }

    fn role(&self, who: &AccountId) -> Option<Role> {
        self.members.iter().find(|(account, _)| account == who).map(|(_, role)| *role)
    }

    fn set(&mut self, who: AccountId, role: Option<Role>) {
        let before = self.role(&who);
        self.members.retain(|(account, _)| *account != who);
        self.members.extend(role.map(|role| (who, role)));
        // A role that is given again is as old as it was.
        if before != role {
            self.since.push((who, self.at));
        }
    }

    /// Nobody writes as of a time before it was what it is.
    fn knew_its_role(&self, author: &AccountId, cited: &AclId) {
        let cited = self.acl.iter().find(|(id, _)| id == cited).map(|(_, at)| *at).expect("a record of this log");
        let since = self.since.iter().rfind(|(account, _)| account == author).map_or(0, |(_, at)| *at);
        assert!(cited >= since, "entry {}: cites entry {cited}, and its role is of entry {since}", self.at);
    }

    fn act(&mut self, at: usize, id: AclId, author: AccountId, content: &AclContent) {
        let actor = self.role(&author);
        let admin = |why: &str| assert!(actor >= Some(Role::Admin), "entry {at}: {why} by {author}, {actor:?}");
        let below = |role: Option<Role>, why: &str| assert!(role.is_some() && role < actor, "entry {at}: {why}");
        match content {
            AclContent::SetHome { .. } => assert_eq!(actor, Some(Role::Owner)),
            AclContent::CreateInvite(invite) => {
                admin("an invite");
                below(Some(invite.role), "an invite above its creator");
                if invite.mode == InviteMode::Open {
                    self.give(*invite.key.as_bytes(), invite.role, author);
                }
                self.invites.push(PlainInvite {
                    id: invite.key,
                    creator: author,
                    role: invite.role,
                    mode: invite.mode,
                    created: at,
                    uses_left: invite.max_uses,
                    live: true,
                });
            }
            AclContent::RevokeInvite { invite, .. } => {
                admin("a revocation");
                let found = self.invites.iter_mut().find(|i| i.id == *invite).expect("an invite that was made");
                assert!(found.live, "revoked once");
                found.live = false;
                if found.mode == InviteMode::Open {
                    self.rotate(author);
                }
            }
            AclContent::JoinByInvite { claim, .. } => {
                assert_eq!(claim.account, author);
                let role = self.claim(&claim.invite, author, InviteMode::Open);
                self.enter(author, role);
                // It gives itself what the invite opens: nothing that it did not have.
                let held = self.read_of(*claim.invite.as_bytes(), self.epoch);
                assert!(held.is_some(), "an invite that lives opens the present epoch");
                let history = held == Some(true);
                self.grants.push(Grant { to: *author.as_bytes(), epoch: self.epoch, history });
            }
            AclContent::RequestJoin { claim } => {
                assert_eq!(claim.account, author);
                assert!(!self.requests.iter().any(|(_, account, ..)| *account == author), "one request at a time");
                let role = self.claim(&claim.invite, author, InviteMode::Approval);
                self.requests.push((id, author, role, claim.invite));
            }
            AclContent::CancelJoin { request } => {
                let (account, _) = self.request_ends(request, true);
                assert_eq!(account, author, "one's own request");
            }
            AclContent::DeclineJoin { request } => {
                admin("a decline");
                self.request_ends(request, true);
            }
            AclContent::AcceptJoin { request, role, .. } => {
                admin("an acceptance");
                below(Some(*role), "an acceptance above its author");
                let (account, asked) = self.request_ends(request, false);
                assert!(*role <= asked);
                self.enter(account, *role);
                self.give(*account.as_bytes(), *role, author);
            }
            AclContent::AddMembers { members } => {
                admin("an addition");
                for (account, role, _) in members {
                    below(Some(*role), "an addition above its author");
                    self.enter(*account, *role);
                    self.give(*account.as_bytes(), *role, author);
                }
            }
            AclContent::ChangeRole { account, role, seal } => {
                admin("a change of roles");
                below(self.role(account), "a change of the role of one above");
                below(Some(*role), "a role above its giver");
                self.set(*account, Some(*role));
                if seal.is_some() {
                    self.give(*account.as_bytes(), *role, author);
                }
            }
            AclContent::RemoveMembers { accounts, .. } => {
                admin("a removal");
                for account in accounts {
                    below(self.role(account), "a removal of one above");
                    self.set(*account, None);
                    self.removed.push((*account, at));
                }
                self.close_open_invites();
                self.rotate(author);
            }
            AclContent::Leave => {
                assert!(actor.is_some_and(|role| role < Role::Owner), "entry {at}: {actor:?} leaves");
                self.set(author, None);
                self.owed = true;
            }
            AclContent::RotateKey { .. } => {
                admin("a rotation");
                self.rotate(author);
            }
            AclContent::Reseal { account, epoch, .. } => {
                admin("a reseal");
                assert_eq!(epoch.0, self.epoch, "scripts reseal the present epoch");
                let role = self.role(account).expect("a reseal for a member");
                self.give(*account.as_bytes(), role, author);
            }
            AclContent::SetOptions { options } => {
                assert_eq!(actor, Some(Role::Owner));
                self.history_for_all = options.history == HistoryMode::All;
            }
            AclContent::TransferOwnership { account } => {
                assert_eq!(actor, Some(Role::Owner));
                assert!(self.role(account).is_some() && *account != author);
                self.set(*account, Some(Role::Owner));
                self.set(author, Some(Role::Admin));
            }
            AclContent::DeleteSpace => {
                assert_eq!(actor, Some(Role::Owner));
                self.deleted = true;
            }
        }
    }

    fn enter(&mut self, account: AccountId, role: Role) {
        assert_eq!(self.role(&account), None, "who enters was not there");
        self.set(account, Some(role));
        self.removed.retain(|(gone, _)| *gone != account);
        if let Some(request) = self.requests.iter().find(|(_, a, ..)| *a == account).map(|(id, ..)| *id) {
            self.request_ends(&request, true);
        }
    }

    fn claim(&mut self, invite: &InviteId, account: AccountId, mode: InviteMode) -> Role {
        assert_eq!(self.role(&account), None, "who joins is not there");
        let found = self.invites.iter_mut().find(|i| i.id == *invite).expect("an invite that was made");
        assert!(found.live && found.mode == mode && found.uses_left != Some(0), "{found:?}");
        let too_old = self.removed.iter().any(|(gone, at)| *gone == account && found.created <= *at);
        assert!(!too_old, "an invite from before the removal");
        found.uses_left = found.uses_left.map(|left| left - 1);
        found.role
    }

    fn request_ends(&mut self, request: &AclId, gives_back: bool) -> (AccountId, Role) {
        let at = self.requests.iter().position(|(id, ..)| id == request).expect("a request that is open");
        let (_, account, role, invite) = self.requests.remove(at);
        let invite = self.invites.iter_mut().find(|i| i.id == invite).expect("it asked by an invite");
        invite.uses_left = invite.uses_left.map(|left| left + u32::from(gives_back));
        (account, role)
    }

    fn close_open_invites(&mut self) {
        self.invites.iter_mut().filter(|i| i.mode == InviteMode::Open).for_each(|i| i.live = false);
    }

    /// An invite ends with the right of its creator to make it, and does not come back.
    fn bury(&mut self) {
        let members = self.members.clone();
        for invite in &mut self.invites {
            let creator = members.iter().find(|(account, _)| *account == invite.creator).map(|(_, role)| *role);
            invite.live &= creator >= Some(Role::Admin) && creator > Some(invite.role);
        }
    }

    // ---- keys

    const fn reads_history(&self, role: Role) -> bool {
        self.history_for_all && !matches!(role, Role::Guest)
    }

    /// The present keys, as far as the giver has them and the role may.
    fn give(&mut self, to: [u8; 32], role: Role, from: AccountId) {
        let held = self.read_of(*from.as_bytes(), self.epoch);
        let history = held.expect("who gives keys has them") && self.reads_history(role);
        self.grants.push(Grant { to, epoch: self.epoch, history });
    }

    /// New keys: for the members there are now, and the open invites that live.
    fn rotate(&mut self, author: AccountId) {
        self.bury();
        if self.owed {
            self.close_open_invites();
        }
        let whole = self.read_of(*author.as_bytes(), self.epoch).expect("who rotates has the old keys");
        self.whole_links.push(whole);
        self.owed = false;
        self.epoch += 1;
        let members = self.members.iter().map(|(account, role)| (*account.as_bytes(), *role));
        let open = self.invites.iter().filter(|i| i.live && i.mode == InviteMode::Open);
        let all: Vec<_> = members.chain(open.map(|i| (*i.id.as_bytes(), i.role))).collect();
        for (to, role) in all {
            self.grants.push(Grant { to, epoch: self.epoch, history: self.reads_history(role) });
        }
    }

    /// Whether it has the read key of an epoch, and with it the history key.
    fn read_of(&self, holder: [u8; 32], epoch: u32) -> Option<bool> {
        self.opened(&[holder]).get(&epoch).copied()
    }

    /// What these holders can open together: epochs, and whether with the history key.
    fn opened(&self, holders: &[[u8; 32]]) -> BTreeMap<u32, bool> {
        let mut opened: BTreeMap<u32, bool> = BTreeMap::new();
        for grant in self.grants.iter().filter(|g| holders.contains(&g.to)) {
            *opened.entry(grant.epoch).or_default() |= grant.history;
        }
        for epoch in (1..=self.epoch).rev() {
            if opened.get(&epoch) == Some(&true) {
                *opened.entry(epoch - 1).or_default() |= self.whole_links[epoch as usize - 1];
            }
        }
        opened
    }

    pub(crate) fn epochs_of(&self, account: &AccountId, invites: &BTreeSet<InviteId>) -> BTreeSet<Epoch> {
        let mut holders = vec![*account.as_bytes()];
        holders.extend(invites.iter().map(|invite| *invite.as_bytes()));
        self.opened(&holders).into_keys().map(Epoch).collect()
    }

    // ---- against the first implementation

    pub(crate) fn is_what_the_rules_say(&self, acl: &AclState) {
        let members: BTreeMap<_, _> = self.members.iter().copied().collect();
        let theirs: BTreeMap<_, _> = acl.members.iter().map(|(account, m)| (*account, m.role)).collect();
        assert_eq!(members, theirs);
        let live: BTreeSet<_> = self.invites.iter().filter(|i| i.live).map(|i| i.id).collect();
        let theirs: BTreeSet<_> = acl.invites.keys().filter(|id| acl.live_invite(id).is_ok()).copied().collect();
        assert_eq!(live, theirs);
        let waiting: BTreeSet<_> = self.requests.iter().map(|(_, account, ..)| *account).collect();
        let theirs = acl.requests.values().map(|r| r.claim.account);
        let theirs: BTreeSet<_> = theirs.filter(|account| acl.pending_request(account).is_some()).collect();
        assert_eq!(waiting, theirs);
        assert_eq!((self.epoch, self.owed, self.deleted), (acl.epoch.0, acl.rotation_owed, acl.deleted));
        assert_eq!(self.role(&acl.owner), Some(Role::Owner));
    }
}

fn may(who: Who, author: AccountId, role: Role) -> bool {
    match who {
        Who::Writers => true,
        Who::Admins => role >= Role::Admin,
        Who::Account(account) => account == author,
        Who::AccountOrAdmins(account) => account == author || role >= Role::Admin,
    }
}
