//! Real signed records from fixed seeds, and a space to try them in.

use std::cell::Cell;
use std::collections::BTreeSet;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sync_core::acl::{InviteStatus, sign_join_proof};
use sync_core::ids::{AccountId, AclId, AuthorityId, ChangeId, Epoch, InviteId, SpaceId, TreeId};
use sync_core::log::{Genesis, Reject, Submission, genesis, space_id};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, ChangeKind, CreateInvite, InviteMode, JoinClaim, PayloadClaim, Role, Rotation,
    Salt, Seal, SpaceHeader, SpaceOptions, Tombstone, TreeChange, TreeName, TreeRoot, Verified, Who, WriteRule,
};

use crate::map_log::{MapLog, Taken};

pub(crate) const OWNER: u8 = 1;
pub(crate) const ADMIN: u8 = 2;
pub(crate) const WRITER: u8 = 3;
pub(crate) const READER: u8 = 4;
pub(crate) const GUEST: u8 = 5;
pub(crate) const STRANGER: u8 = 6;

pub(crate) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(crate) fn account(n: u8) -> AccountId {
    AccountId::from(&key(n).verifying_key())
}

pub(crate) fn invite_id(n: u8) -> InviteId {
    InviteId::from(&key(n).verifying_key())
}

pub(crate) fn authority() -> AuthorityId {
    AuthorityId::from(&key(200).verifying_key())
}

pub(crate) fn seal_to(recipient: &[u8; 32]) -> Seal {
    Seal { recipient: *recipient, enc: vec![1; 32].into(), ciphertext: vec![2; 64].into() }
}

pub(crate) fn seal(n: u8) -> Seal {
    seal_to(account(n).as_bytes())
}

pub(crate) fn acl_root(owner: u8) -> Verified<AclRoot> {
    let root = AclRoot {
        owner: account(owner),
        options: SpaceOptions::default(),
        key_id: [1; 32],
        history_id: [2; 32],
        profile_key: [3; 32],
        seals: vec![seal(owner)],
    };
    Verified::sign(&root, &key(owner), None).unwrap()
}

pub(crate) fn header(owner: u8, root: &Verified<AclRoot>) -> Verified<SpaceHeader> {
    let header =
        SpaceHeader { owner: account(owner), created_ms: 1, salt: Salt::Nonce([9; 16]), acl_root: root.id().into() };
    Verified::unsigned(&header).unwrap()
}

pub(crate) fn second(
    header: &Verified<SpaceHeader>,
    root: &Verified<AclRoot>,
    author: u8,
    content: AclContent,
) -> Verified<AclRecord> {
    let record = AclRecord {
        space: space_id(header),
        prev: root.id().into(),
        index: 1,
        author: account(author),
        at_ms: 2,
        seen: None,
        contents: vec![content],
    };
    Verified::sign(&record, &key(author), None).unwrap()
}

pub(crate) fn founded() -> Genesis {
    let root = acl_root(OWNER);
    let header = header(OWNER, &root);
    let set_home = second(&header, &root, OWNER, AclContent::SetHome { authority: authority() });
    genesis(header, &root, &set_home).unwrap()
}

pub(crate) fn tree_root(space: SpaceId, n: u32, write_rule: WriteRule) -> Verified<TreeRoot> {
    let mut nonce = [0; 16];
    nonce[..4].copy_from_slice(&n.to_be_bytes());
    Verified::unsigned(&TreeRoot { space, name: TreeName::Nonce(nonce), write_rule }).unwrap()
}

pub(crate) fn rule(who: Who) -> WriteRule {
    WriteRule { who, once: false }
}

/// A space and its log.
pub(crate) struct Space {
    pub(crate) log: MapLog,
    salt: Cell<u32>,
}

impl Space {
    /// A space with its owner alone.
    pub(crate) fn new() -> Self {
        Self { log: MapLog::found(&founded()), salt: Cell::new(0) }
    }

    /// A space with a member of every role.
    pub(crate) fn peopled() -> Self {
        let mut space = Self::new();
        let roles = [(ADMIN, Role::Admin), (WRITER, Role::Writer), (READER, Role::Reader), (GUEST, Role::Guest)];
        space.act(OWNER, AclContent::AddMembers { members: roles.map(|(n, r)| (account(n), r, seal(n))).to_vec() });
        space
    }

    pub(crate) fn id(&self) -> SpaceId {
        self.log.space()
    }

    fn next_salt(&self) -> u32 {
        self.salt.set(self.salt.get() + 1);
        self.salt.get()
    }

    pub(crate) fn take(&mut self, submission: &Submission) -> Result<Taken, Reject> {
        self.log.take(submission)
    }

    /// A record that is not appended yet, changed by `edit` before it is signed.
    pub(crate) fn acl_with(
        &self,
        author: u8,
        contents: Vec<AclContent>,
        edit: impl FnOnce(&mut AclRecord),
    ) -> Submission {
        let acl = self.log.acl_state();
        let mut record = AclRecord {
            space: acl.space,
            prev: acl.head,
            index: acl.index + 1,
            author: account(author),
            at_ms: u64::from(self.next_salt()),
            seen: None,
            contents,
        };
        edit(&mut record);
        Submission::Acl(Verified::sign(&record, &key(author), None).unwrap())
    }

    pub(crate) fn acl(&self, author: u8, content: AclContent) -> Submission {
        self.acl_with(author, vec![content], |_| {})
    }

    /// Appends an act that must be allowed.
    pub(crate) fn act(&mut self, author: u8, content: AclContent) -> AclId {
        let submission = self.acl(author, content);
        self.take(&submission).unwrap();
        submission.id().into()
    }

    pub(crate) fn invite(key: u8, mode: InviteMode, role: Role) -> CreateInvite {
        let key = invite_id(key);
        let seals = match mode {
            InviteMode::Open => vec![seal_to(key.as_bytes())],
            InviteMode::Approval => Vec::new(),
        };
        CreateInvite {
            key,
            mode,
            role,
            expires_ms: None,
            max_uses: None,
            seals,
            must_see: Vec::new(),
            requires: Vec::new(),
            label_ct: Bytes::new(),
        }
    }

    pub(crate) fn claim(&self, invite: u8, who: u8, role: Role) -> JoinClaim {
        let account = account(who);
        let proof = sign_join_proof(&key(invite), self.id(), account, role);
        JoinClaim { invite: invite_id(invite), account, role, proof, profile_ct: Bytes::new() }
    }

    pub(crate) fn join(&self, invite: u8, who: u8, role: Role) -> AclContent {
        AclContent::JoinByInvite { claim: self.claim(invite, who, role), seals: vec![seal(who)] }
    }

    pub(crate) fn request(&self, invite: u8, who: u8, role: Role) -> AclContent {
        AclContent::RequestJoin { claim: self.claim(invite, who, role) }
    }

    /// A rotation for everybody but `without`. `open` are the live open invites that stay.
    pub(crate) fn rotation(&self, without: &[u8]) -> Rotation {
        let acl = self.log.acl_state();
        let gone: BTreeSet<_> = without.iter().map(|n| account(*n)).collect();
        let seals = acl.members.keys().filter(|a| !gone.contains(a)).map(|a| seal_to(a.as_bytes())).collect();
        let stays = without.is_empty() && !acl.rotation_owed;
        let live = acl
            .invites
            .values()
            .filter(|i| stays && i.status == InviteStatus::Live && i.content.mode == InviteMode::Open);
        Rotation {
            epoch: Epoch(acl.epoch.0 + 1),
            key_id: [4; 32],
            history_id: [5; 32],
            profile_key: [6; 32],
            seals,
            invite_seals: live.map(|i| seal_to(i.content.key.as_bytes())).collect(),
            chain_nonce: vec![0; 24].into(),
            chain_ct: vec![0; 80].into(),
        }
    }

    pub(crate) fn change_with(
        &self,
        author: u8,
        root: Option<&Verified<TreeRoot>>,
        tree: TreeId,
        parents: &[ChangeId],
        edit: impl FnOnce(&mut TreeChange),
    ) -> Submission {
        let acl = self.log.acl_state();
        let payload = Bytes::from(format!("payload {}", self.next_salt()));
        let mut parents = parents.to_vec();
        parents.sort();
        if parents.is_empty() {
            parents.push(TreeChange::root_as_parent(tree));
        }
        let mut body = TreeChange {
            tree,
            parents,
            acl_head: acl.head,
            epoch: acl.epoch,
            author: account(author),
            at_ms: 4,
            seen: None,
            kind: ChangeKind::Content,
            nonce: [7; 24],
            payload: PayloadClaim::of(&payload),
        };
        edit(&mut body);
        let change = Verified::sign(&body, &key(author), Some(payload)).unwrap();
        Submission::Change { root: root.cloned(), change }
    }

    pub(crate) fn change(&self, author: u8, tree: TreeId, parents: &[ChangeId]) -> Submission {
        self.change_with(author, None, tree, parents, |_| {})
    }

    pub(crate) fn first(&self, author: u8, root: &Verified<TreeRoot>) -> Submission {
        self.change_with(author, Some(root), root.id().into(), &[], |_| {})
    }

    /// Begins a tree; gives the tree and its first change.
    pub(crate) fn begin(&mut self, author: u8, n: u32, write_rule: WriteRule) -> (TreeId, ChangeId) {
        let root = tree_root(self.id(), n, write_rule);
        let first = self.first(author, &root);
        self.take(&first).unwrap();
        (root.id().into(), first.id().into())
    }

    pub(crate) fn tombstone(&self, author: u8, tree: TreeId) -> Submission {
        let body = Tombstone { tree, author: account(author), acl_head: self.log.acl_state().head, at_ms: 5 };
        Submission::Tombstone(Verified::sign(&body, &key(author), None).unwrap())
    }
}
