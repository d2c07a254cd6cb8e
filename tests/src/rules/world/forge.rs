//! Records that no honest client makes. They are judged by the node: first the bytes in themselves, then the rules.

use prost::Message as _;
use sync_core::pb;
use sync_core::record::{Body as _, Kind, TreeName};

use super::govern::Closes;
use super::*;
use crate::hostile::{Misspelling, signed_bytes};
use crate::script::{ByteFlaw, ChangeFlaw, ContentFlaw, Forgery, JoinFlaw, PlaceFlaw};

/// The id of nothing that any log holds.
const NOTHING: [u8; 32] = [9; 32];
/// The number of `index` in an ACL record's body.
const INDEX_FIELD: u8 = 3;
/// A content whose one field, empty, has a number that none has: 18.
const UNKNOWN_CONTENT: [u8; 5] = [0x3a, 3, 0x92, 0x01, 0];

impl PureWorld {
    pub(super) fn forge(&mut self, who: &str, space: SpaceId, forgery: &Forgery) -> Result<(), Trouble> {
        self.node_log(space)?;
        match forgery {
            Forgery::Bytes(flaw) => self.forge_bytes(who, space, flaw),
            Forgery::Place(flaw) => self.forge_place(who, space, *flaw),
            Forgery::Content(flaw) => {
                let contents = self.forged_contents(who, space, flaw)?;
                self.submit_contents(who, space, contents)
            }
            Forgery::Join(flaw) => {
                let content = self.forged_join(who, space, flaw)?;
                self.submit_contents(who, space, vec![content])
            }
            Forgery::Change { object, flaw } => self.forge_change(who, space, object, *flaw),
            Forgery::TreeOfOtherSpace => self.forge_tree_of_other_space(who, space),
            Forgery::Heads { count, object } => self.forge_heads(who, space, object, *count),
            Forgery::Again { object } => self.push_again(space, object, EntryKind::Change),
            Forgery::PurgeAgain { object } => self.push_again(space, object, EntryKind::Tombstone),
        }
    }

    fn submit_contents(&mut self, who: &str, space: SpaceId, contents: Vec<AclContent>) -> Result<(), Trouble> {
        let record = AclRecord { contents, ..self.next_record(who, space) };
        self.submit_record(who, space, &record)
    }

    fn next_record(&self, who: &str, space: SpaceId) -> AclRecord {
        self.sign(who, space, AclContent::Leave).body().clone()
    }

    fn submit_record(&mut self, who: &str, space: SpaceId, record: &AclRecord) -> Result<(), Trouble> {
        let key = self.person(who).keys.signing_key().clone();
        self.submit_bytes(space, signed_bytes(Kind::AclRecord, record.to_message().encode_to_vec(), None, &key))
    }

    /// As the node takes bytes: verified in themselves, and judged.
    fn submit_bytes(&mut self, space: SpaceId, record: pb::SignedRecord) -> Result<(), Trouble> {
        let verified = RawRecord::try_from(record).and_then(verify);
        let verified = verified.map_err(|e| Trouble::refused(Code::from(&e).name(), e))?;
        let submission = Submission::pair(None, verified).map_err(|reject| rejected(&reject))?;
        self.submit(space, &submission)
    }

    fn submit(&mut self, space: SpaceId, submission: &Submission) -> Result<(), Trouble> {
        self.append_at_node(space, submission).map(|_| ()).map_err(|reject| rejected(&reject))
    }

    // ---- bytes and places -------------------------------------------------------------------------------------------

    fn forge_bytes(&mut self, who: &str, space: SpaceId, flaw: &ByteFlaw) -> Result<(), Trouble> {
        let mut message = self.next_record(who, space).to_message();
        let mut key = self.person(who).keys.signing_key().clone();
        match flaw {
            ByteFlaw::NoContents => message.contents.clear(),
            ByteFlaw::EmptyContent => message.contents = vec![pb::AclContent { content: None }],
            ByteFlaw::UnknownContent => {
                message.contents.clear();
                let body = [message.encode_to_vec(), UNKNOWN_CONTENT.to_vec()].concat();
                return self.submit_bytes(space, signed_bytes(Kind::AclRecord, body, None, &key));
            }
            ByteFlaw::AcceptsWithoutRole { whom } => {
                let request = self.request_of(who, space, whom, true)?;
                let account = self.account(whom);
                let seal = self.seal_to(who, space, account, Role::Reader, true)?;
                let accept = pb::AcceptJoin {
                    request: request.to_bytes(),
                    role: pb::Role::None.into(),
                    seals: vec![(&seal).into()],
                    frontier: Vec::new(),
                };
                message.contents = vec![pb::AclContent { content: Some(pb::acl_content::Content::AcceptJoin(accept)) }];
            }
            ByteFlaw::SpelledOtherwise => {
                let body = Misspelling::OverlongVarint.of(&message.encode_to_vec(), INDEX_FIELD);
                return self.submit_bytes(space, signed_bytes(Kind::AclRecord, body, None, &key));
            }
            ByteFlaw::SignedByAnother => key = ed25519(self.seed ^ 0xbad),
        }
        self.submit_bytes(space, signed_bytes(Kind::AclRecord, message.encode_to_vec(), None, &key))
    }

    fn forge_place(&mut self, who: &str, space: SpaceId, flaw: PlaceFlaw) -> Result<(), Trouble> {
        let mut record = self.next_record(who, space);
        match flaw {
            PlaceFlaw::OldHead => record.prev = self.acl_record(space, record.index.saturating_sub(2)),
            PlaceFlaw::OtherNumber => record.index += 1,
            PlaceFlaw::OtherSpace => record.space = SpaceId::from_hash(NOTHING),
        }
        self.submit_record(who, space, &record)
    }

    /// The id of the ACL record with this number; of a number that none has, an unknown id.
    fn acl_record(&self, space: SpaceId, index: u64) -> AclId {
        let mut records: Vec<_> = self.node[&space].acl_state().records.iter().map(|(id, at)| (*at, *id)).collect();
        records.sort_unstable();
        let at = usize::try_from(index).expect("logs of tests are short");
        records.get(at).map_or(AclId::from_hash(NOTHING), |(_, id)| *id)
    }

    // ---- contents ---------------------------------------------------------------------------------------------------

    fn forged_contents(&mut self, who: &str, space: SpaceId, flaw: &ContentFlaw) -> Result<Vec<AclContent>, Trouble> {
        let acl = self.node[&space].acl_state().clone();
        let own = self.account(who);
        let content = match flaw {
            ContentFlaw::TwoInvites => {
                let invites = [InviteMode::Approval; 2].map(|mode| self.forged_invite(mode));
                return Ok(invites.map(AclContent::CreateInvite).to_vec());
            }
            ContentFlaw::OneKeyTwice => {
                let used = acl.invites.keys().next().ok_or_else(|| Trouble::wrong("an invite", "nobody made one"))?;
                AclContent::CreateInvite(CreateInvite { key: *used, ..self.forged_invite(InviteMode::Approval) })
            }
            ContentFlaw::OpenInviteWithoutSeal => AclContent::CreateInvite(self.forged_invite(InviteMode::Open)),
            ContentFlaw::ApprovalInviteWithSeal => {
                let mut invite = self.forged_invite(InviteMode::Approval);
                let keys = self.any_keys(space).clone();
                invite.seals = vec![self.seal(space, Recipient::Invite(invite.key), Role::Reader, &keys)];
                AclContent::CreateInvite(invite)
            }
            ContentFlaw::ApprovalInviteThatRequires => {
                let requires = vec![TreeId::from_hash(NOTHING)];
                AclContent::CreateInvite(CreateInvite { requires, ..self.forged_invite(InviteMode::Approval) })
            }
            ContentFlaw::NewHome => {
                AclContent::SetHome { authority: acl.home.expect("a space has a home after its second entry") }
            }
            ContentFlaw::InviteOfNobody => {
                let secret = InviteSecret::generate(&mut self.secrets);
                AclContent::RequestJoin { claim: claim(space, own, Role::Reader, &secret) }
            }
            ContentFlaw::RequestAs { whom } => {
                let (_, token) = self.own_token(who, space)?;
                let account = self.account(whom);
                AclContent::RequestJoin { claim: claim(space, account, Role::Reader, &token.secret) }
            }
            ContentFlaw::CancelsRequestOf { whom } => {
                AclContent::CancelJoin { request: self.request_of(who, space, whom, true)? }
            }
            ContentFlaw::AcceptsSealedTo { whom, other } => {
                let (request, other) = (self.request_of(who, space, whom, true)?, self.account(other));
                let seals = vec![self.seal_to(who, space, other, Role::Reader, true)?];
                AclContent::AcceptJoin { request, role: Role::Reader, seals, frontier: Vec::new() }
            }
            ContentFlaw::AcceptsPromising { whom, object } => {
                let (request, account) = (self.request_of(who, space, whom, true)?, self.account(whom));
                let seals = vec![self.seal_to(who, space, account, Role::Reader, true)?];
                let tree = self.tree_of(space, object)?;
                let frontier = vec![TreeHeads { tree, heads: vec![ChangeId::from_hash(NOTHING)] }];
                AclContent::AcceptJoin { request, role: Role::Reader, seals, frontier }
            }
            ContentFlaw::RevokesWithoutRotation { whom } => {
                AclContent::RevokeInvite { invite: self.invite_of(whom, space)?, rotation: None }
            }
            ContentFlaw::RevokesWithRotation { whom } => {
                let invite = self.invite_of(whom, space)?;
                let rotation = Some(self.rotation(who, space, &[], Closes::One(invite), true)?);
                AclContent::RevokeInvite { invite, rotation }
            }
            ContentFlaw::RemovesSealingTo { whom } => {
                let rotation = self.rotation(who, space, &[], Closes::All, true)?;
                AclContent::RemoveMembers { accounts: vec![self.account(whom)], rotation }
            }
            ContentFlaw::RotatesWithout { whom } => {
                let account = self.account(whom);
                AclContent::RotateKey { rotation: self.rotation(who, space, &[account], Closes::Nothing, true)? }
            }
            ContentFlaw::RotatesAlsoTo { whom } => {
                let account = self.account(whom);
                let mut rotation = self.rotation(who, space, &[], Closes::Nothing, true)?;
                rotation.seals.push(self.seal_to(who, space, account, Role::Reader, true)?);
                AclContent::RotateKey { rotation }
            }
            ContentFlaw::RotatesTo { epoch } => {
                let mut rotation = self.rotation(who, space, &[], Closes::Nothing, true)?;
                rotation.epoch = Epoch(*epoch);
                AclContent::RotateKey { rotation }
            }
            ContentFlaw::LiftsWithoutKey { whom } => {
                AclContent::ChangeRole { account: self.account(whom), role: Role::Reader, seal: None }
            }
            ContentFlaw::ResealsEpoch { epoch, whom } => {
                let account = self.account(whom);
                let seal = self.seal_to(who, space, account, Role::Reader, true)?;
                AclContent::Reseal { account, epoch: Epoch(*epoch), seal }
            }
        };
        Ok(vec![content])
    }

    fn forged_invite(&mut self, mode: InviteMode) -> CreateInvite {
        CreateInvite {
            key: InviteSecret::generate(&mut self.secrets).id(),
            mode,
            role: Role::Reader,
            expires_ms: None,
            max_uses: None,
            seals: Vec::new(),
            must_see: Vec::new(),
            requires: Vec::new(),
            label_ct: Bytes::new(),
        }
    }

    /// The newest invite that this person was given, and the token.
    fn own_token(&mut self, who: &str, space: SpaceId) -> Result<(CreateInvite, Token), Trouble> {
        let id = self.invite_of(who, space)?;
        let token = self.person(who).tokens.iter().find(|t| t.secret.id() == id).expect("just found").clone();
        let invite = self.node[&space]
            .acl_state()
            .invites
            .get(&id)
            .ok_or_else(|| Trouble::wrong("an invite in the log", "it is not there"))?;
        Ok((invite.content.clone(), token))
    }

    fn forged_join(&mut self, who: &str, space: SpaceId, flaw: &JoinFlaw) -> Result<AclContent, Trouble> {
        let own = self.account(who);
        let (invite, token) = self.own_token(who, space)?;
        let mut claim = claim(space, own, invite.role, &token.secret);
        let (mut mode, mut sealed_to) = (invite.mode, own);
        match flaw {
            JoinFlaw::OtherRole => claim.role = if invite.role == Role::Admin { Role::Guest } else { Role::Admin },
            JoinFlaw::NoProof => claim.proof = Bytes::from_static(&[0; 64]),
            JoinFlaw::OtherMode => {
                mode = match invite.mode {
                    InviteMode::Open => InviteMode::Approval,
                    InviteMode::Approval => InviteMode::Open,
                }
            }
            JoinFlaw::SealedTo { whom } => sealed_to = self.account(whom),
        }
        let seal = self.seal_to(who, space, sealed_to, invite.role, true)?;
        Ok(match mode {
            InviteMode::Approval => AclContent::RequestJoin { claim },
            InviteMode::Open => AclContent::JoinByInvite { claim, seals: vec![seal] },
        })
    }

    // ---- changes ----------------------------------------------------------------------------------------------------

    /// As a patched client writes: well-formed, signed by itself, with whatever keys it once had.
    pub(super) fn write_past_the_rules(
        &mut self,
        who: &str,
        space: SpaceId,
        object: &ObjectName,
        fields: &Map<String, Value>,
        citing: Option<u64>,
    ) -> Result<(), Trouble> {
        self.node_log(space)?;
        let object = self.resolve(object);
        self.note_plaintext(&object, fields);
        let mut draft = self.draft(who, space, &object);
        draft.acl_head = citing.map_or(draft.acl_head, |index| self.acl_record(space, index));
        draft.ops = object::diff(&Map::new(), fields);
        let submission = self.signed_draft(who, space, draft);
        self.submit(space, &submission)
    }

    fn draft(&mut self, who: &str, space: SpaceId, object: &ObjectName) -> Draft {
        let object = self.resolve(object);
        let root =
            object_root(space, &self.any_keys(space).name_key, &object.object_type, &object.id, rule_of(&object));
        let tree = root.tree_id();
        let log = &self.node[&space];
        let heads = log.trees().get(&tree).map(|t| t.heads.clone()).unwrap_or_default();
        let (acl_head, epoch) = (log.acl_state().head, log.acl_state().epoch);
        let ops = vec![Op::Set { field: "by".into(), value: json!(who) }];
        let with_root = !log.trees().contains_key(&tree);
        Draft { root, tree, parents: parents_of(tree, &heads), acl_head, epoch, object, ops, with_root }
    }

    fn signed_draft(&mut self, who: &str, space: SpaceId, draft: Draft) -> Submission {
        let (keys, ring_keys) = (self.person(who).keys.clone(), self.any_keys(space).clone());
        let Draft { root, tree, parents, acl_head, epoch, object, ops, with_root } = draft;
        let change = self.sign_change(&keys, &ring_keys, space, tree, parents, (acl_head, epoch), &object, &ops);
        let root = with_root.then(|| Verified::unsigned(&root).expect(OWN));
        Submission::Change { root, change }
    }

    fn forge_change(
        &mut self,
        who: &str,
        space: SpaceId,
        object: &ObjectName,
        flaw: ChangeFlaw,
    ) -> Result<(), Trouble> {
        let mut draft = self.draft(who, space, object);
        let root = TreeChange::root_as_parent(draft.tree);
        match flaw {
            ChangeFlaw::OfEpoch(epoch) => draft.epoch = Epoch(epoch),
            ChangeFlaw::OnNothing => draft.parents = vec![ChangeId::from_hash(NOTHING)],
            ChangeFlaw::OnRootAndHead => {
                draft.parents.push(root);
                draft.parents.sort_unstable();
            }
            ChangeFlaw::WithoutRoot => draft.with_root = false,
            ChangeFlaw::OneMoreHead => draft.parents = vec![root],
            ChangeFlaw::Snapshot => {
                let Submission::Change { root, change } = self.signed_draft(who, space, draft) else {
                    unreachable!("a draft is a change");
                };
                let body = TreeChange { kind: ChangeKind::Snapshot, ..change.body().clone() };
                let payload = change.raw().payload.clone();
                let change = Verified::sign(&body, self.person(who).keys.signing_key(), payload).expect(OWN);
                return self.submit(space, &Submission::Change { root, change });
            }
        }
        let submission = self.signed_draft(who, space, draft);
        self.submit(space, &submission)
    }

    fn forge_tree_of_other_space(&mut self, who: &str, space: SpaceId) -> Result<(), Trouble> {
        let object = ObjectName { object_type: "note".to_owned(), id: "elsewhere".to_owned() };
        let mut draft = self.draft(who, space, &object);
        draft.root = TreeRoot { space: SpaceId::from_hash(NOTHING), name: TreeName::Nonce([1; 16]), ..draft.root };
        draft.tree = draft.root.tree_id();
        draft.parents = vec![TreeChange::root_as_parent(draft.tree)];
        let submission = self.signed_draft(who, space, draft);
        self.submit(space, &submission)
    }

    /// Many at once, past the checks that look at a whole tree after each entry.
    fn forge_heads(&mut self, who: &str, space: SpaceId, object: &ObjectName, count: usize) -> Result<(), Trouble> {
        for _ in 0..count {
            let mut draft = self.draft(who, space, object);
            draft.parents = vec![TreeChange::root_as_parent(draft.tree)];
            let submission = self.signed_draft(who, space, draft);
            self.node.get_mut(&space).expect("checked").take(&submission).map_err(|reject| rejected(&reject))?;
        }
        for who in self.names_of_people() {
            self.reconnect(&who);
        }
        Ok(())
    }

    /// What the node has already it knows, whoever brings it.
    fn push_again(&mut self, space: SpaceId, object: &ObjectName, kind: EntryKind) -> Result<(), Trouble> {
        let tree = self.tree_of(space, object)?;
        let log = &self.node[&space];
        let entry = log.entries().iter().rfind(|e| e.kind == kind && e.tree == Some(tree));
        let entry = entry.ok_or_else(|| Trouble::wrong("an entry of that tree", "there is none"))?;
        let (seq, record) = (entry.position.seq, verify(entry.record.clone()).expect(OWN));
        let submission = Submission::pair(None, record).expect(OWN);
        match self.append_at_node(space, &submission) {
            Ok(Taken::Known(at)) if at == seq => Ok(()),
            other => Err(Trouble::wrong(format!("known at {seq:?}"), format!("{other:?}"))),
        }
    }
}

/// What a change says, before it is signed.
struct Draft {
    root: TreeRoot,
    tree: TreeId,
    parents: Vec<ChangeId>,
    acl_head: AclId,
    epoch: Epoch,
    object: ObjectName,
    ops: Vec<Op>,
    with_root: bool,
}

fn claim(space: SpaceId, account: AccountId, role: Role, secret: &InviteSecret) -> JoinClaim {
    let proof = sign_join_proof(secret.signing_key(), space, account, role);
    JoinClaim { invite: secret.id(), account, role, proof, profile_ct: Bytes::new() }
}
