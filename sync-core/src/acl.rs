//! Who is in a space: the ACL log folded into a state, and the rule of every act in it.
//!
//! [`AclState::fold_in`] is a pure function of the log so far and one record: the same for everyone, never dependent on
//! a clock, on configuration or on who delivered the record. Everything that is not named here is denied.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ed25519_dalek::SigningKey;

use crate::ids::{AccountId, AclId, AuthorityId, Epoch, InviteId, Seq, SpaceId};
use crate::limits;
use crate::record::{
    AclContent, AclRecord, AclRoot, CreateInvite, HistoryMode, InviteMode, JoinClaim, Role, Rotation, Seal,
    SpaceOptions, TreeHeads, Verified, sign_bytes, verify_bytes,
};

/// Why an ACL record may not stand at this position of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclReject {
    #[error("the record belongs to {actual}, not to {expected}")]
    WrongSpace { expected: SpaceId, actual: SpaceId },
    #[error("the record follows {prev}, but the ACL stands at {head}: read the ACL and try again")]
    Conflict { prev: AclId, head: AclId, index: u64 },
    #[error("the record calls itself number {actual}; the next one is number {expected}")]
    WrongIndex { expected: u64, actual: u64 },
    #[error("the space was deleted")]
    SpaceDeleted,
    #[error("the second entry of a log is its SetHome by the owner, and nothing else")]
    BadGenesis,
    #[error("{account} is not a member")]
    NotAMember { account: AccountId },
    #[error("{act} needs more than the role {role}")]
    RoleTooLow { act: &'static str, role: Role },
    #[error("the role {role} cannot be given here")]
    BadRole { role: Role },
    #[error("{account} is a member already")]
    AlreadyMember { account: AccountId },
    #[error("no invite {invite} was ever made in this space")]
    InviteUnknown { invite: InviteId },
    #[error("invite {invite} was revoked or closed")]
    InviteRevoked { invite: InviteId },
    #[error("invite {invite} is dead: its creator may no longer make it")]
    InviteDead { invite: InviteId },
    #[error("invite {invite} has no uses left")]
    InviteUsedUp { invite: InviteId },
    #[error("invite {invite} is for {expected:?} joining")]
    InviteModeMismatch { invite: InviteId, expected: InviteMode },
    #[error("invite {invite} was made before {account} was removed: a newer invite is needed")]
    InviteBeforeRemoval { invite: InviteId, account: AccountId },
    #[error("the proof is not the invite key's signature for this account and role")]
    BadInviteProof,
    #[error("the author of a join must be the account that joins")]
    NotTheJoiner,
    #[error("no join request {request} is pending")]
    RequestUnknown { request: AclId },
    #[error("{account} has a pending request already: {request}")]
    RequestExists { account: AccountId, request: AclId },
    #[error("the keys are not sealed to exactly those who should hold them: {0}")]
    BadSeals(&'static str),
    #[error("the rotation must lead to epoch {expected}, not {actual}")]
    BadEpoch { expected: Epoch, actual: Epoch },
    #[error("the owner cannot leave: transfer ownership first")]
    OwnerCannotLeave,
    #[error("limit reached: {what} (at most {max})")]
    LimitReached { what: &'static str, max: usize },
}

/// One generation of keys, as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochInfo {
    pub key_id: [u8; 32],
    pub history_id: [u8; 32],
    pub profile_key: [u8; 32],
    /// Where in the log it began.
    pub since: Seq,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub role: Role,
    /// The entry that gave the current role.
    pub role_since: Seq,
    pub joined: Seq,
    /// The first epoch whose keys this membership gives: the one it began in, or 0 since it could read all history.
    pub reads_from: Epoch,
    /// Encrypted to the profile key of the epoch beside it; empty for those who joined without one.
    pub profile_ct: Bytes,
    pub profile_epoch: Epoch,
}

/// What became of an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteStatus {
    Live,
    /// Revoked by name, or closed by a rotation that had to.
    Revoked,
    /// Its creator lost the role it needs.
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    pub creator: AccountId,
    pub created: Seq,
    pub content: CreateInvite,
    pub uses: u32,
    pub status: InviteStatus,
}

/// What became of a join request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestStatus {
    Pending,
    /// `frontier`: what the accepted account is meant to see first; already in the log.
    Accepted {
        at: Seq,
        frontier: Vec<TreeHeads>,
    },
    Declined {
        at: Seq,
    },
    /// By the requester, or by becoming a member another way.
    Cancelled {
        at: Seq,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub at: Seq,
    pub at_ms: u64,
    pub claim: JoinClaim,
    /// The epoch in which it was asked: the claim's profile is sealed to its key.
    pub epoch: Epoch,
    pub status: RequestStatus,
}

/// Everything that the ACL log of a space says, at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclState {
    pub space: SpaceId,
    pub owner: AccountId,
    pub options: SpaceOptions,
    /// Who assigns positions; `None` only between entry 1 and entry 2.
    pub home: Option<AuthorityId>,
    pub head: AclId,
    /// Number of the head: the root is 0.
    pub index: u64,
    pub epoch: Epoch,
    pub epochs: BTreeMap<Epoch, EpochInfo>,
    /// How far back members with history read: 0, or the epoch in which the space's history was opened to them.
    pub history_from: Epoch,
    /// Where every ACL record stands in the log.
    pub records: BTreeMap<AclId, Seq>,
    pub members: BTreeMap<AccountId, Member>,
    /// Former members who were removed, and where.
    pub removed: BTreeMap<AccountId, Seq>,
    /// Former members who left by themselves, and where.
    pub left: BTreeMap<AccountId, Seq>,
    pub invites: BTreeMap<InviteId, Invite>,
    /// Those of `invites` that are live.
    live_invites: BTreeSet<InviteId>,
    pub requests: BTreeMap<AclId, Request>,
    /// Those of `requests` that are pending, by their account: each has one at most.
    pending_requests: BTreeMap<AccountId, AclId>,
    /// A member left since the last rotation.
    pub rotation_owed: bool,
    /// An open invite died since the last rotation: whoever has its secret has the present keys.
    pub exposed: bool,
    pub deleted: bool,
}

impl AclState {
    /// The state after entry 1.
    #[must_use]
    pub fn found(space: SpaceId, root: &Verified<AclRoot>) -> Self {
        let body = root.body();
        let at = Seq(1);
        let owner = Member {
            role: Role::Owner,
            role_since: at,
            joined: at,
            reads_from: Epoch(0),
            profile_ct: Bytes::new(),
            profile_epoch: Epoch(0),
        };
        let epoch =
            EpochInfo { key_id: body.key_id, history_id: body.history_id, profile_key: body.profile_key, since: at };
        Self {
            space,
            owner: body.owner,
            options: body.options,
            home: None,
            head: root.id().into(),
            index: 0,
            epoch: Epoch(0),
            epochs: BTreeMap::from([(Epoch(0), epoch)]),
            history_from: Epoch(0),
            records: BTreeMap::from([(root.id().into(), at)]),
            members: BTreeMap::from([(body.owner, owner)]),
            removed: BTreeMap::new(),
            left: BTreeMap::new(),
            invites: BTreeMap::new(),
            live_invites: BTreeSet::new(),
            requests: BTreeMap::new(),
            pending_requests: BTreeMap::new(),
            rotation_owed: false,
            exposed: false,
            deleted: false,
        }
    }

    /// The role of an account now.
    #[must_use]
    pub fn role(&self, account: &AccountId) -> Option<Role> {
        self.members.get(account).map(|m| m.role)
    }

    /// The entry that ended the last membership of an account; `None` for members, and for those who never were.
    #[must_use]
    pub fn membership_ended(&self, account: &AccountId) -> Option<Seq> {
        self.removed.get(account).or_else(|| self.left.get(account)).copied()
    }

    /// An invite that may still be used, by anybody who has not used it.
    ///
    /// # Errors
    /// Why it may not.
    pub fn live_invite(&self, invite: &InviteId) -> Result<&Invite, AclReject> {
        let found = self.invites.get(invite).ok_or(AclReject::InviteUnknown { invite: *invite })?;
        match found.status {
            InviteStatus::Live => Ok(found),
            InviteStatus::Revoked => Err(AclReject::InviteRevoked { invite: *invite }),
            InviteStatus::Dead => Err(AclReject::InviteDead { invite: *invite }),
        }
    }

    /// The pending request of an account.
    #[must_use]
    pub fn pending_request(&self, account: &AccountId) -> Option<(AclId, &Request)> {
        let id = self.pending_requests.get(account)?;
        self.requests.get(id).map(|request| (*id, request))
    }

    /// The state after `record`, which would stand at `at`. Copies the whole state; to read a log, [`Self::fold_in`].
    ///
    /// # Errors
    /// The rule that the record breaks. Nothing of a refused record is applied.
    pub fn apply(&self, record: &Verified<AclRecord>, at: Seq) -> Result<Self, AclReject> {
        // What lost a race is refused without a copy.
        self.check_place(record.body())?;
        self.clone().fold_in(record, at)
    }

    /// As [`Self::apply`], in place: a log of any length is folded without a copy of the state for each record.
    ///
    /// # Errors
    /// The rule that the record breaks. The state is gone then: half of the record may be in it.
    pub fn fold_in(mut self, record: &Verified<AclRecord>, at: Seq) -> Result<Self, AclReject> {
        let body = record.body();
        self.check_place(body)?;
        for content in &body.contents {
            if self.deleted {
                return Err(AclReject::SpaceDeleted);
            }
            self.apply_content(content, record, at)?;
        }
        self.exposed |= self.bury_dead_invites();
        self.head = record.id().into();
        self.index = body.index;
        self.records.insert(self.head, at);
        Ok(self)
    }

    fn check_place(&self, body: &AclRecord) -> Result<(), AclReject> {
        if body.space != self.space {
            return Err(AclReject::WrongSpace { expected: self.space, actual: body.space });
        }
        if self.deleted {
            return Err(AclReject::SpaceDeleted);
        }
        if body.prev != self.head {
            return Err(AclReject::Conflict { prev: body.prev, head: self.head, index: self.index });
        }
        if body.index != self.index + 1 {
            return Err(AclReject::WrongIndex { expected: self.index + 1, actual: body.index });
        }
        if self.home.is_none() && !matches!(body.contents.as_slice(), [AclContent::SetHome { .. }]) {
            return Err(AclReject::BadGenesis);
        }
        let invites = body.contents.iter().filter(|c| matches!(c, AclContent::CreateInvite(_))).count();
        if invites > 1 {
            return Err(AclReject::LimitReached { what: "invites made by one record", max: 1 });
        }
        Ok(())
    }

    fn apply_content(&mut self, content: &AclContent, record: &Verified<AclRecord>, at: Seq) -> Result<(), AclReject> {
        let author = record.body().author;
        let at_least = |role: Role| self.require(&author, role, content.name());
        match content {
            AclContent::SetHome { authority } => {
                at_least(Role::Owner)?;
                self.home = Some(*authority);
            }
            AclContent::CreateInvite(invite) => {
                let actor = at_least(Role::Admin)?;
                self.create_invite(invite, author, actor, at)?;
            }
            AclContent::RevokeInvite { invite, rotation } => {
                at_least(Role::Admin)?;
                self.revoke_invite(invite, rotation.as_ref(), at)?;
            }
            AclContent::JoinByInvite { claim, seals } => self.join(claim, seals, author, at)?,
            AclContent::RequestJoin { claim } => self.request(claim, record, at)?,
            AclContent::CancelJoin { request } => {
                let claimed = self.pending(request)?.claim.account;
                if claimed != author {
                    return Err(AclReject::NotTheJoiner);
                }
                self.settle(request, RequestStatus::Cancelled { at });
            }
            AclContent::AcceptJoin { request, role, seals, frontier } => {
                let actor = at_least(Role::Admin)?;
                self.accept(request, *role, seals, frontier, actor, at)?;
            }
            AclContent::DeclineJoin { request } => {
                at_least(Role::Admin)?;
                self.pending(request)?;
                self.settle(request, RequestStatus::Declined { at });
            }
            AclContent::AddMembers { members } => {
                let actor = at_least(Role::Admin)?;
                for (account, role, seal) in members {
                    below(*role, actor)?;
                    sealed_to(std::slice::from_ref(seal), account.as_bytes())?;
                    self.add(*account, *role, (Bytes::new(), self.epoch), at)?;
                }
            }
            AclContent::ChangeRole { account, role, seal } => {
                let actor = at_least(Role::Admin)?;
                self.change_role(*account, *role, seal.as_ref(), actor, at)?;
            }
            AclContent::RemoveMembers { accounts, rotation } => {
                let actor = at_least(Role::Admin)?;
                self.remove(accounts, rotation, actor, at)?;
            }
            AclContent::Leave => {
                let role = self.require(&author, Role::Guest, content.name())?;
                if role == Role::Owner {
                    return Err(AclReject::OwnerCannotLeave);
                }
                self.members.remove(&author);
                self.left.insert(author, at);
                self.rotation_owed = true;
            }
            AclContent::RotateKey { rotation } => {
                at_least(Role::Admin)?;
                self.rotate(rotation, at)?;
            }
            AclContent::Reseal { account, epoch, seal } => {
                at_least(Role::Admin)?;
                let member = self.members.get(account).ok_or(AclReject::NotAMember { account: *account })?;
                if !self.epochs.contains_key(epoch) {
                    return Err(AclReject::BadEpoch { expected: self.epoch, actual: *epoch });
                }
                if *epoch < member.reads_from {
                    return Err(AclReject::BadSeals("a member without history gets no keys from before its time"));
                }
                sealed_to(std::slice::from_ref(seal), account.as_bytes())?;
            }
            AclContent::SetOptions { options } => {
                at_least(Role::Owner)?;
                if options.history == HistoryMode::All && self.options.history != HistoryMode::All {
                    // Nobody was given history keys until now, so nothing leads further back than the present keys.
                    self.history_from = self.epoch;
                }
                self.options = *options;
            }
            AclContent::TransferOwnership { account } => {
                at_least(Role::Owner)?;
                self.transfer(*account, author, at)?;
            }
            AclContent::DeleteSpace => {
                at_least(Role::Owner)?;
                self.deleted = true;
            }
        }
        Ok(())
    }

    fn require(&self, account: &AccountId, role: Role, act: &'static str) -> Result<Role, AclReject> {
        let actual = self.role(account).ok_or(AclReject::NotAMember { account: *account })?;
        if actual < role { Err(AclReject::RoleTooLow { act, role: actual }) } else { Ok(actual) }
    }

    fn create_invite(
        &mut self,
        invite: &CreateInvite,
        creator: AccountId,
        actor: Role,
        at: Seq,
    ) -> Result<(), AclReject> {
        below(invite.role, actor)?;
        if self.invites.contains_key(&invite.key) {
            return Err(AclReject::LimitReached { what: "uses of one invite key", max: 1 });
        }
        if self.live_invites.len() >= limits::INVITES_MAX {
            return Err(AclReject::LimitReached { what: "live invites", max: limits::INVITES_MAX });
        }
        match invite.mode {
            InviteMode::Open => sealed_to(&invite.seals, invite.key.as_bytes())?,
            InviteMode::Approval if !invite.seals.is_empty() => {
                return Err(AclReject::BadSeals("an approval invite gives no keys"));
            }
            InviteMode::Approval if !invite.requires.is_empty() => {
                return Err(AclReject::InviteModeMismatch { invite: invite.key, expected: InviteMode::Open });
            }
            InviteMode::Approval => {}
        }
        let invite_entry =
            Invite { creator, created: at, content: invite.clone(), uses: 0, status: InviteStatus::Live };
        self.invites.insert(invite.key, invite_entry);
        self.live_invites.insert(invite.key);
        Ok(())
    }

    fn revoke_invite(&mut self, invite: &InviteId, rotation: Option<&Rotation>, at: Seq) -> Result<(), AclReject> {
        let mode = self.live_invite(invite)?.content.mode;
        self.end_invites(&[*invite], InviteStatus::Revoked);
        match (mode, rotation) {
            (InviteMode::Open, Some(rotation)) => self.rotate(rotation, at),
            (InviteMode::Open, None) => Err(AclReject::BadSeals("revoking an open invite rotates the keys")),
            (InviteMode::Approval, Some(_)) => Err(AclReject::BadSeals("revoking an approval invite rotates nothing")),
            (InviteMode::Approval, None) => Ok(()),
        }
    }

    fn end_invites(&mut self, ended: &[InviteId], status: InviteStatus) {
        for id in ended {
            self.live_invites.remove(id);
            if let Some(invite) = self.invites.get_mut(id) {
                invite.status = status;
            }
        }
    }

    /// The live invites that `is_meant` says.
    fn live_invites_where(&self, is_meant: impl Fn(&Invite) -> bool) -> Vec<InviteId> {
        let is_meant = |id: &&InviteId| self.invites.get(id).is_some_and(&is_meant);
        self.live_invites.iter().filter(is_meant).copied().collect()
    }

    fn join(&mut self, claim: &JoinClaim, seals: &[Seal], author: AccountId, at: Seq) -> Result<(), AclReject> {
        self.check_claim(claim, author, InviteMode::Open)?;
        sealed_to(seals, claim.account.as_bytes())?;
        self.use_invite(&claim.invite);
        self.add(claim.account, claim.role, (claim.profile_ct.clone(), self.epoch), at)
    }

    fn request(&mut self, claim: &JoinClaim, record: &Verified<AclRecord>, at: Seq) -> Result<(), AclReject> {
        self.check_claim(claim, record.body().author, InviteMode::Approval)?;
        if let Some((request, _)) = self.pending_request(&claim.account) {
            return Err(AclReject::RequestExists { account: claim.account, request });
        }
        if self.pending_requests.len() >= limits::REQUESTS_MAX {
            return Err(AclReject::LimitReached { what: "pending requests", max: limits::REQUESTS_MAX });
        }
        self.use_invite(&claim.invite);
        let request = Request {
            at,
            at_ms: record.body().at_ms,
            claim: claim.clone(),
            epoch: self.epoch,
            status: RequestStatus::Pending,
        };
        self.requests.insert(record.id().into(), request);
        self.pending_requests.insert(claim.account, record.id().into());
        Ok(())
    }

    fn check_claim(&self, claim: &JoinClaim, author: AccountId, mode: InviteMode) -> Result<(), AclReject> {
        if claim.account != author {
            return Err(AclReject::NotTheJoiner);
        }
        if self.members.contains_key(&claim.account) {
            return Err(AclReject::AlreadyMember { account: claim.account });
        }
        let invite = self.live_invite(&claim.invite)?;
        if invite.content.mode != mode {
            return Err(AclReject::InviteModeMismatch { invite: claim.invite, expected: invite.content.mode });
        }
        if invite.content.role != claim.role {
            return Err(AclReject::BadRole { role: claim.role });
        }
        if self.removed.get(&claim.account).is_some_and(|removed| invite.created <= *removed) {
            return Err(AclReject::InviteBeforeRemoval { invite: claim.invite, account: claim.account });
        }
        verify_join_proof(self.space, claim)?;
        if invite.content.max_uses.is_some_and(|max| invite.uses >= max) {
            return Err(AclReject::InviteUsedUp { invite: claim.invite });
        }
        Ok(())
    }

    fn use_invite(&mut self, invite: &InviteId) {
        if let Some(invite) = self.invites.get_mut(invite) {
            invite.uses = invite.uses.saturating_add(1);
        }
    }

    fn pending(&self, request: &AclId) -> Result<&Request, AclReject> {
        self.requests
            .get(request)
            .filter(|r| r.status == RequestStatus::Pending)
            .ok_or(AclReject::RequestUnknown { request: *request })
    }

    /// Ends a pending request. One that was not accepted gives its use of the invite back.
    fn settle(&mut self, request: &AclId, status: RequestStatus) {
        let Some(settled) = self.requests.get_mut(request) else { return };
        let gives_back = !matches!(status, RequestStatus::Accepted { .. });
        settled.status = status;
        self.pending_requests.remove(&settled.claim.account);
        let invite = settled.claim.invite;
        if gives_back && let Some(invite) = self.invites.get_mut(&invite) {
            invite.uses = invite.uses.saturating_sub(1);
        }
    }

    fn accept(
        &mut self,
        request: &AclId,
        role: Role,
        seals: &[Seal],
        frontier: &[TreeHeads],
        actor: Role,
        at: Seq,
    ) -> Result<(), AclReject> {
        let asked = self.pending(request)?;
        let (claim, asked_in) = (asked.claim.clone(), asked.epoch);
        below(role, actor)?;
        if role > claim.role {
            return Err(AclReject::BadRole { role });
        }
        sealed_to(seals, claim.account.as_bytes())?;
        self.settle(request, RequestStatus::Accepted { at, frontier: frontier.to_vec() });
        self.add(claim.account, role, (claim.profile_ct, asked_in), at)
    }

    /// `profile`: the ciphertext, and the epoch whose key it is sealed to.
    fn add(&mut self, account: AccountId, role: Role, profile: (Bytes, Epoch), at: Seq) -> Result<(), AclReject> {
        if self.members.contains_key(&account) {
            return Err(AclReject::AlreadyMember { account });
        }
        if self.members.len() >= limits::MEMBERS_MAX {
            return Err(AclReject::LimitReached { what: "members", max: limits::MEMBERS_MAX });
        }
        self.removed.remove(&account);
        self.left.remove(&account);
        // Nothing of a request outlives the membership that came another way.
        if let Some((request, _)) = self.pending_request(&account) {
            self.settle(&request, RequestStatus::Cancelled { at });
        }
        let (profile_ct, profile_epoch) = profile;
        let reads_from = if self.reads_history(role) { self.history_from } else { self.epoch };
        let member = Member { role, role_since: at, joined: at, reads_from, profile_ct, profile_epoch };
        self.members.insert(account, member);
        Ok(())
    }

    fn change_role(
        &mut self,
        account: AccountId,
        role: Role,
        seal: Option<&Seal>,
        actor: Role,
        at: Seq,
    ) -> Result<(), AclReject> {
        below(role, actor)?;
        let reads_history = self.reads_history(role);
        let member = self.members.get_mut(&account).ok_or(AclReject::NotAMember { account })?;
        below(member.role, actor)?;
        let needs_seal = member.role == Role::Guest && reads_history;
        match seal {
            Some(seal) => sealed_to(std::slice::from_ref(seal), account.as_bytes())?,
            None if needs_seal => return Err(AclReject::BadSeals("lifting a guest gives it the history key")),
            None => {}
        }
        if reads_history {
            member.reads_from = member.reads_from.min(self.history_from);
        }
        // Who is given the role it has goes on with what it has written meanwhile.
        if member.role != role {
            member.role = role;
            member.role_since = at;
        }
        Ok(())
    }

    /// Whether a member of this role reads what was written before its time.
    fn reads_history(&self, role: Role) -> bool {
        role > Role::Guest && self.options.history == HistoryMode::All
    }

    fn remove(&mut self, accounts: &[AccountId], rotation: &Rotation, actor: Role, at: Seq) -> Result<(), AclReject> {
        for account in accounts {
            let member = self.members.get(account).ok_or(AclReject::NotAMember { account: *account })?;
            below(member.role, actor)?;
            self.members.remove(account);
            self.removed.insert(*account, at);
        }
        self.close_open_invites();
        self.rotate(rotation, at)
    }

    fn close_open_invites(&mut self) {
        let open = self.live_invites_where(|invite| invite.content.mode == InviteMode::Open);
        self.end_invites(&open, InviteStatus::Revoked);
    }

    fn rotate(&mut self, rotation: &Rotation, at: Seq) -> Result<(), AclReject> {
        let expected = Epoch(self.epoch.0 + 1);
        if rotation.epoch != expected {
            return Err(AclReject::BadEpoch { expected, actual: rotation.epoch });
        }
        // What died earlier in this record gets no keys.
        self.bury_dead_invites();
        if self.rotation_owed {
            // Who left may hold an open invite's secret, so none survives.
            self.close_open_invites();
        }
        let members: BTreeSet<_> = self.members.keys().map(|a| *a.as_bytes()).collect();
        sealed_to_exactly(&rotation.seals, &members)?;
        let open = self.live_invites_where(|invite| invite.content.mode == InviteMode::Open);
        let invites: BTreeSet<_> = open.iter().map(|invite| *invite.as_bytes()).collect();
        sealed_to_exactly(&rotation.invite_seals, &invites)?;
        let info = EpochInfo {
            key_id: rotation.key_id,
            history_id: rotation.history_id,
            profile_key: rotation.profile_key,
            since: at,
        };
        self.epoch = expected;
        self.epochs.insert(expected, info);
        self.rotation_owed = false;
        self.exposed = false;
        Ok(())
    }

    fn transfer(&mut self, to: AccountId, from: AccountId, at: Seq) -> Result<(), AclReject> {
        if to == from {
            return Err(AclReject::AlreadyMember { account: to });
        }
        let all_history = self.options.history == HistoryMode::All;
        let heir = self.members.get_mut(&to).ok_or(AclReject::NotAMember { account: to })?;
        if heir.role == Role::Guest && all_history {
            // An owner without the history key could give it to nobody.
            return Err(AclReject::BadRole { role: heir.role });
        }
        heir.role = Role::Owner;
        heir.role_since = at;
        if let Some(former) = self.members.get_mut(&from) {
            former.role = Role::Admin;
            former.role_since = at;
        }
        self.owner = to;
        Ok(())
    }

    /// An invite is dead for good from the first rotation or end of an entry at which its creator could not create it.
    /// True if one of them was open.
    fn bury_dead_invites(&mut self) -> bool {
        let dead = self.live_invites_where(|invite| {
            let creator = self.members.get(&invite.creator).map(|m| m.role);
            creator.is_none_or(|role| role < Role::Admin || invite.content.role >= role)
        });
        let is_open = |id: &InviteId| self.invites.get(id).is_some_and(|i| i.content.mode == InviteMode::Open);
        let any_open = dead.iter().any(is_open);
        self.end_invites(&dead, InviteStatus::Dead);
        any_open
    }
}

/// The role given or taken must be strictly below the actor's: only the owner makes or removes admins.
fn below(role: Role, actor: Role) -> Result<(), AclReject> {
    if role < actor { Ok(()) } else { Err(AclReject::BadRole { role }) }
}

fn sealed_to(seals: &[Seal], recipient: &[u8; 32]) -> Result<(), AclReject> {
    match seals {
        [seal] if seal.recipient == *recipient => Ok(()),
        _ => Err(AclReject::BadSeals("there must be one seal, to the one who gets the keys")),
    }
}

fn sealed_to_exactly(seals: &[Seal], recipients: &BTreeSet<[u8; 32]>) -> Result<(), AclReject> {
    let sealed: BTreeSet<_> = seals.iter().map(|s| s.recipient).collect();
    if sealed.len() != seals.len() || sealed != *recipients {
        return Err(AclReject::BadSeals("a rotation seals to exactly those who remain"));
    }
    Ok(())
}

// ---- proofs by an invite's key --------------------------------------------------------------------------------------

const JOIN_PROOF: &str = "headwater/invite/join/v1";
const READ_PROOF: &str = "headwater/invite/read/v1";

/// The invite key's word that `account` may join `space` with `role`.
#[must_use]
pub fn sign_join_proof(invite_key: &SigningKey, space: SpaceId, account: AccountId, role: Role) -> Bytes {
    let invite = InviteId::from(&invite_key.verifying_key());
    let parts = join_parts(&space, &invite, &account);
    Bytes::copy_from_slice(&sign_bytes(invite_key, JOIN_PROOF, &[parts[0], parts[1], parts[2], &[role as u8]]))
}

fn verify_join_proof(space: SpaceId, claim: &JoinClaim) -> Result<(), AclReject> {
    let parts = join_parts(&space, &claim.invite, &claim.account);
    let parts = [parts[0], parts[1], parts[2], &[claim.role as u8]];
    verify_bytes(claim.invite.as_bytes(), JOIN_PROOF, &parts, &claim.proof).map_err(|_| AclReject::BadInviteProof)
}

fn join_parts<'a>(space: &'a SpaceId, invite: &'a InviteId, account: &'a AccountId) -> [&'a [u8]; 3] {
    [space.as_bytes(), invite.as_bytes(), account.as_bytes()]
}

/// The invite key's word, for one session only, that its holder may read the ACL of `space`.
#[must_use]
pub fn sign_read_proof(
    invite_key: &SigningKey,
    session_nonces: &[u8; 64],
    space: SpaceId,
    account: AccountId,
) -> [u8; 64] {
    sign_bytes(invite_key, READ_PROOF, &[session_nonces, space.as_bytes(), account.as_bytes()])
}

/// Checks what [`sign_read_proof`] made.
///
/// # Errors
/// [`AclReject::BadInviteProof`].
pub fn verify_read_proof(
    invite: InviteId,
    session_nonces: &[u8; 64],
    space: SpaceId,
    account: AccountId,
    signature: &[u8],
) -> Result<(), AclReject> {
    let parts: [&[u8]; 3] = [session_nonces, space.as_bytes(), account.as_bytes()];
    verify_bytes(invite.as_bytes(), READ_PROOF, &parts, signature).map_err(|_| AclReject::BadInviteProof)
}
