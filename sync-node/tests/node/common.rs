//! People with keys, records made by hand, and callers with a session. No encryption: the node cannot tell.

use std::path::Path;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use ed25519_dalek::SigningKey;
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, AuthorityId, ChangeId, DeviceId, Epoch, InviteId, NodeId, SpaceId, TreeId};
use sync_core::log::space_id;
use sync_core::record::{
    AclContent, AclRecord, AclRoot, ChangeKind, CreateInvite, DeviceCertificate, DeviceList, InviteMode,
    NodeCertificate, PayloadClaim, Role, Rotation, Salt, Seal, SpaceHeader, SpaceOptions, TreeChange, TreeName,
    TreeRoot, Verified, WriteRule,
};
use sync_core::session::{Nonces, sign_proof, verify_challenge};
use sync_node::{Node, NodeConfig, RunningNode};
use sync_proto::status::Failure;
use sync_proto::v1::sync_client::SyncClient;
use sync_proto::v1::{
    Challenge, Hello, InviteProof, Proof, PushItem, PushRequest, SpacePosition, SpacePushRequest, Subscribe, Verdict,
    VersionRange, verdict,
};
use sync_proto::{TOKEN_KEY, read_verified};
use tonic::transport::Channel;
use tonic::{Request, Status};

pub(crate) async fn start(dir: &Path) -> RunningNode {
    Node::start(NodeConfig { plaintext: true, ..NodeConfig::on_loopback(dir) }).await.unwrap()
}

pub(crate) async fn dial(node: &RunningNode) -> SyncClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", node.local_addr().unwrap())).unwrap();
    SyncClient::new(endpoint.connect().await.unwrap())
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn code(status: &Status) -> Code {
    Failure::from_status(status).unwrap_or_else(|| panic!("not a typed failure: {status:?}")).code
}

// ---- people ---------------------------------------------------------------------------------------------------------

#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) key: SigningKey,
    pub(crate) device: SigningKey,
}

impl Person {
    pub(crate) fn new(seed: u8) -> Self {
        Self { key: key(seed), device: key(seed.wrapping_add(100)) }
    }

    pub(crate) fn account(&self) -> AccountId {
        AccountId::from(&self.key.verifying_key())
    }

    pub(crate) fn device_id(&self) -> DeviceId {
        DeviceId::from(&self.device.verifying_key())
    }

    pub(crate) fn certificate(&self) -> Verified<DeviceCertificate> {
        let body = DeviceCertificate { account: self.account(), device: self.device_id(), at_ms: 1 };
        Verified::sign(&body, &self.key, None).unwrap()
    }

    pub(crate) fn list(&self, version: u64, devices: &[&SigningKey]) -> Verified<DeviceList> {
        let mut devices: Vec<_> = devices.iter().map(|d| DeviceId::from(&d.verifying_key())).collect();
        devices.sort_unstable();
        Verified::sign(&DeviceList { account: self.account(), version, devices }, &self.key, None).unwrap()
    }

    pub(crate) fn hello(&self) -> Hello {
        self.hello_with(&self.list(1, &[&self.device]))
    }

    pub(crate) fn hello_with(&self, list: &Verified<DeviceList>) -> Hello {
        Hello {
            versions: Some(VersionRange { min: 1, max: 1 }),
            features: vec!["anything".into()],
            account: self.account().to_bytes(),
            device: self.device_id().to_bytes(),
            certificate: Some(self.certificate().raw().clone().into()),
            device_list: Some(list.raw().clone().into()),
            client_nonce: Bytes::from_static(&[3; 32]),
        }
    }

    /// Answers a challenge as this person's device, after checking the node's half.
    pub(crate) fn answer(&self, challenge: Challenge) -> (Proof, Nonces) {
        let nonces = Nonces { client: [3; 32], server: challenge.server_nonce.as_ref().try_into().unwrap() };
        let certificate: Verified<NodeCertificate> =
            read_verified("node_certificate", challenge.node_certificate).unwrap();
        let node: NodeId = certificate.body().node;
        let authority: AuthorityId = certificate.body().authority;
        verify_challenge(&node, &nonces, &self.account(), &self.device_id(), &challenge.signature).unwrap();
        let signature = sign_proof(&self.device, &nonces, &authority);
        (Proof { session: challenge.session, signature: Bytes::copy_from_slice(&signature) }, nonces)
    }
}

/// A person on the line.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) person: Person,
    pub(crate) client: SyncClient<Channel>,
    pub(crate) nonces: Nonces,
    token: String,
}

impl Caller {
    pub(crate) async fn connect(node: &RunningNode, person: &Person) -> Self {
        Self::over(dial(node).await, person, person.hello()).await.unwrap()
    }

    pub(crate) async fn over(mut client: SyncClient<Channel>, person: &Person, hello: Hello) -> Result<Self, Status> {
        let challenge = client.open_session(hello).await?.into_inner();
        let (proof, nonces) = person.answer(challenge);
        let token = client.prove_session(proof).await?.into_inner().token;
        let token = BASE32_NOPAD.encode(&token).to_ascii_lowercase();
        Ok(Self { person: person.clone(), client, nonces, token })
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(TOKEN_KEY, self.token.parse().unwrap());
        request
    }

    pub(crate) async fn push_space(&mut self, space: &Space) -> Result<SpacePosition, Status> {
        let request = self.request(space.push_request());
        Ok(self.client.space_push(request).await?.into_inner())
    }

    /// One message of items; one verdict each, in the order of their tags.
    pub(crate) async fn push(&mut self, space: SpaceId, items: Vec<PushItem>) -> Vec<Verdict> {
        let request = self.request(tokio_stream::iter([PushRequest { space: space.to_bytes(), items }]));
        let mut answers = self.client.push(request).await.unwrap().into_inner();
        let mut verdicts = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            verdicts.extend(answer.verdicts);
        }
        verdicts.sort_by_key(|v| v.tag);
        verdicts
    }

    pub(crate) async fn append(&mut self, space: SpaceId, record: &Verified<AclRecord>) -> Result<(), Status> {
        let request = self.request(sync_proto::v1::AclAppendRequest {
            space: space.to_bytes(),
            record: Some(record.raw().clone().into()),
            invite_proof: None,
        });
        self.client.acl_append(request).await.map(|_| ())
    }

    pub(crate) fn invite_proof(&self, invite: &SigningKey, space: SpaceId) -> InviteProof {
        let account = self.person.account();
        let signature = sync_core::acl::sign_read_proof(invite, &self.nonces.joined(), space, account);
        InviteProof { invite: invite_id(invite).to_bytes(), signature: Bytes::copy_from_slice(&signature) }
    }
}

pub(crate) fn invite_id(invite: &SigningKey) -> InviteId {
    InviteId::from(&invite.verifying_key())
}

/// What a verdict says: the code of a refusal, or `None`.
pub(crate) fn refusal(verdict: &Verdict) -> Option<Code> {
    match verdict.outcome.as_ref().unwrap() {
        verdict::Outcome::Accepted(_) | verdict::Outcome::Known(_) => None,
        verdict::Outcome::Rejected(detail) => Some(Code::from_number(detail.code).unwrap()),
    }
}

// ---- spaces ---------------------------------------------------------------------------------------------------------

/// A space and the head of its ACL, as its test knows it.
#[derive(Clone)]
pub(crate) struct Space {
    pub(crate) id: SpaceId,
    pub(crate) header: Verified<SpaceHeader>,
    pub(crate) root: Verified<AclRoot>,
    pub(crate) set_home: Verified<AclRecord>,
    pub(crate) acl_head: AclId,
    pub(crate) index: u64,
    pub(crate) epoch: Epoch,
}

impl Space {
    pub(crate) fn found(owner: &Person, authority: AuthorityId, nonce: u8) -> Self {
        let root = AclRoot {
            owner: owner.account(),
            options: SpaceOptions::default(),
            key_id: [nonce; 32],
            history_id: [2; 32],
            profile_key: [3; 32],
            seals: vec![seal(owner.account())],
        };
        let root = Verified::sign(&root, &owner.key, None).unwrap();
        let header = Verified::unsigned(&SpaceHeader {
            owner: owner.account(),
            created_ms: 5,
            salt: Salt::Nonce([nonce; 16]),
            acl_root: root.id().into(),
        })
        .unwrap();
        let id = space_id(&header);
        let content = AclContent::SetHome { authority };
        let set_home = acl_record(owner, id, root.id().into(), 1, vec![content]);
        let acl_head = set_home.id().into();
        Self { id, header, root, set_home, acl_head, index: 1, epoch: Epoch(0) }
    }

    pub(crate) fn push_request(&self) -> SpacePushRequest {
        SpacePushRequest {
            header: Some(self.header.raw().clone().into()),
            acl_root: Some(self.root.raw().clone().into()),
            set_home: Some(self.set_home.raw().clone().into()),
        }
    }

    /// The next ACL record; the space takes it as its head.
    pub(crate) fn acl(&mut self, author: &Person, content: AclContent) -> Verified<AclRecord> {
        let record = acl_record(author, self.id, self.acl_head, self.index + 1, vec![content]);
        self.acl_head = record.id().into();
        self.index += 1;
        record
    }

    pub(crate) fn add(&mut self, admin: &Person, member: &Person, role: Role) -> Verified<AclRecord> {
        let members = vec![(member.account(), role, seal(member.account()))];
        self.acl(admin, AclContent::AddMembers { members })
    }

    pub(crate) fn remove(&mut self, admin: &Person, member: &Person, remaining: &[&Person]) -> Verified<AclRecord> {
        self.epoch = Epoch(self.epoch.0 + 1);
        let rotation = Rotation {
            epoch: self.epoch,
            key_id: [9; 32],
            history_id: [9; 32],
            profile_key: [9; 32],
            seals: remaining.iter().map(|p| seal(p.account())).collect(),
            invite_seals: Vec::new(),
            chain_nonce: Bytes::from_static(&[1; 24]),
            chain_ct: Bytes::from_static(&[1; 48]),
        };
        self.acl(admin, AclContent::RemoveMembers { accounts: vec![member.account()], rotation })
    }

    pub(crate) fn invite(
        &mut self,
        admin: &Person,
        invite: &SigningKey,
        expires_ms: Option<u64>,
    ) -> Verified<AclRecord> {
        let content = CreateInvite {
            key: invite_id(invite),
            mode: InviteMode::Approval,
            role: Role::Writer,
            expires_ms,
            max_uses: None,
            seals: Vec::new(),
            must_see: Vec::new(),
            requires: Vec::new(),
            label_ct: Bytes::new(),
        };
        self.acl(admin, AclContent::CreateInvite(content))
    }

    pub(crate) fn tree(&self, nonce: u8) -> Verified<TreeRoot> {
        let root = TreeRoot { space: self.id, name: TreeName::Nonce([nonce; 16]), write_rule: WriteRule::WRITERS };
        Verified::unsigned(&root).unwrap()
    }

    pub(crate) fn first_change(&self, author: &Person, root: &Verified<TreeRoot>, text: &str) -> Verified<TreeChange> {
        let tree = TreeId::from(root.id());
        self.change(author, tree, vec![TreeChange::root_as_parent(tree)], text)
    }

    pub(crate) fn change(
        &self,
        author: &Person,
        tree: TreeId,
        parents: Vec<ChangeId>,
        text: &str,
    ) -> Verified<TreeChange> {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let body = TreeChange {
            tree,
            parents,
            acl_head: self.acl_head,
            epoch: self.epoch,
            author: author.account(),
            at_ms: 7,
            seen: None,
            kind: ChangeKind::Content,
            nonce: [4; 24],
            payload: PayloadClaim::of(&payload),
        };
        Verified::sign(&body, &author.key, Some(payload)).unwrap()
    }

    pub(crate) fn subscribe(&self, cursor: u64) -> Subscribe {
        Subscribe { space: self.id.to_bytes(), cursor, ladder: Vec::new() }
    }
}

pub(crate) fn acl_record(
    author: &Person,
    space: SpaceId,
    prev: AclId,
    index: u64,
    contents: Vec<AclContent>,
) -> Verified<AclRecord> {
    let body = AclRecord { space, prev, index, author: author.account(), at_ms: 6, seen: None, contents };
    Verified::sign(&body, &author.key, None).unwrap()
}

pub(crate) fn seal(recipient: AccountId) -> Seal {
    Seal {
        recipient: *recipient.as_bytes(),
        enc: Bytes::from_static(&[8; 32]),
        ciphertext: Bytes::from_static(&[8; 48]),
    }
}

pub(crate) fn item(tag: u64, root: Option<&Verified<TreeRoot>>, change: &Verified<TreeChange>) -> PushItem {
    PushItem { tag, root: root.map(|r| r.raw().clone().into()), record: Some(change.raw().clone().into()) }
}

/// A node, the owner of a space on it, and the space.
pub(crate) struct Stage {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: RunningNode,
    pub(crate) alice: Caller,
    pub(crate) space: Space,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path()).await;
        let mut alice = Caller::connect(&node, &Person::new(1)).await;
        let space = Space::found(&alice.person, node.address().authority, 1);
        alice.push_space(&space).await.unwrap();
        Self { dir, node, alice, space }
    }

    pub(crate) async fn add(&mut self, member: &Person, role: Role) {
        let record = self.space.add(&self.alice.person, member, role);
        self.alice.append(self.space.id, &record).await.unwrap();
    }

    /// Pushes a new tree with one change per text, each on the one before.
    pub(crate) async fn write(&mut self, nonce: u8, texts: &[&str]) -> (TreeId, Vec<ChangeId>) {
        let root = self.space.tree(nonce);
        let tree = TreeId::from(root.id());
        let mut changes: Vec<Verified<TreeChange>> = Vec::new();
        let mut items = Vec::new();
        for (tag, text) in texts.iter().enumerate() {
            let change = match changes.last() {
                None => self.space.first_change(&self.alice.person, &root, text),
                Some(last) => self.space.change(&self.alice.person, tree, vec![last.id().into()], text),
            };
            items.push(item(tag as u64, (tag == 0).then_some(&root), &change));
            changes.push(change);
        }
        for verdict in self.alice.push(self.space.id, items).await {
            assert_eq!(refusal(&verdict), None);
        }
        (tree, changes.iter().map(|c| c.id().into()).collect())
    }
}
