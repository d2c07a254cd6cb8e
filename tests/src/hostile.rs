//! A patched client: keys of its own, a real session, and any bytes it likes. It makes records that are right, and spoils them.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use client_sdk::object::{self, Existence, Op};
use client_sdk::{Client, ClientConfig};
use data_encoding::BASE32_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use prost::Message as _;
use rand::RngExt as _;
use serde_json::Value;
use sync_core::acl::{AclState, InviteStatus, sign_join_proof, sign_read_proof};
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, AuthorityId, Chain, ChangeId, DeviceId, EntryId, Epoch, Seq, SpaceId, TreeId};
use sync_core::log::{Submission, genesis, quarantine};
use sync_core::pb;
use sync_core::record::{
    AclContent, AclRecord, AclRoot, Body, ChangeKind, InviteMode, JoinClaim, Kind, NodeCertificate, PayloadClaim,
    RawRecord, Receipt, Role, Rotation, SpaceHeader, Tombstone, TreeChange, TreeName, TreeRoot, VERSION, Verified,
    WriteRule, verify, verify_as,
};
use sync_core::session::{Nonces, sign_proof};
use sync_core::token::{NodeAddress, Transport};
use sync_e2ee::{
    AccountKeys, ContentContext, DeviceKeys, Envelope, HistoryAccess, InviteSecret, KeyRing, Mnemonic, Recipient,
    SpaceKeys, encrypt, make_rotation, object_root, seal_keys,
};
use sync_proto::status::Failure;
use sync_proto::v1::sync_client::SyncClient;
use sync_proto::v1::{self, acl_read_entry::Entry, verdict::Outcome};
use sync_proto::{TOKEN_KEY, read_verified};
use sync_store::{Store, StoreError, StoreKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::harness::{NodeProcess, TestClient, config};

const OWN: &str = "a record made here has the form that is checked here";
const HONEST_NODE: &str = "the node under test answers as the protocol says";

/// The typed code of a status.
///
/// # Panics
/// If the status has none: every failure of a node is typed.
#[must_use]
pub fn code_of(status: &Status) -> Code {
    Failure::from_status(status).unwrap_or_else(|| panic!("not a typed failure: {status:?}")).code
}

/// A person with an honest client, whose words a test knows: a patched client can be the same person.
#[derive(Debug)]
pub struct Person {
    pub client: TestClient,
    pub words: Mnemonic,
}

impl Person {
    /// Makes an account that uses the node.
    pub async fn new(name: &str, node: &NodeAddress) -> Self {
        Self::with(node, |config| config.name(name)).await
    }

    /// Makes an account that uses the node, with more settings.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn with(node: &NodeAddress, more: impl FnOnce(ClientConfig) -> ClientConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = more(config(dir.path()).node(node.clone()));
        let (client, words) = Client::create(config).await.expect("a client can be made");
        Self { client: TestClient { dir, client }, words }
    }

    /// The same person with a patched client, beside the honest one.
    pub async fn patched(&self, node: &NodeAddress) -> Hostile {
        Hostile::beside(node, &self.words, vec![self.client.device()]).await
    }
}

/// A patched client with an open session. Speaks to a node without TLS.
#[derive(Debug, Clone)]
pub struct Hostile {
    pub account: AccountKeys,
    pub rpc: SyncClient<Channel>,
    nonces: Nonces,
    token: AsciiMetadataValue,
}

/// What a node holds of a space, in short. Equal before and after: nothing was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub seq: Seq,
    pub chain: Chain,
    pub acl_head: AclId,
    pub set_digest: Option<[u8; 32]>,
}

/// What a verdict says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Accepted,
    Known,
    Rejected(Code),
}

impl Hostile {
    /// An account that nobody knows.
    pub async fn stranger(node: &NodeAddress) -> Self {
        Self::beside(node, &Mnemonic::generate(&mut rand::rng()), Vec::new()).await
    }

    /// The account of these words, on one more device than `others`.
    ///
    /// # Panics
    /// If the node refuses the session.
    pub async fn beside(node: &NodeAddress, words: &Mnemonic, others: Vec<DeviceId>) -> Self {
        assert_eq!(node.transport, Transport::Plain, "a patched client speaks to a node without TLS");
        let endpoint = Channel::from_shared(format!("http://{}", node.endpoint)).expect("an endpoint is a URL");
        let mut rpc = SyncClient::new(endpoint.connect().await.expect("the node listens"));
        let (account, device) = (AccountKeys::from_mnemonic(words), DeviceKeys::generate(&mut rand::rng()));
        let client_nonce: [u8; 32] = rand::random();
        let hello = hello(&account, &device, others, client_nonce);
        let challenge = rpc.open_session(hello).await.expect(HONEST_NODE).into_inner();
        let certificate: Verified<NodeCertificate> =
            read_verified("node_certificate", challenge.node_certificate).expect(HONEST_NODE);
        assert_eq!(certificate.body().authority, node.authority);
        let server = challenge.server_nonce.as_ref().try_into().expect(HONEST_NODE);
        let nonces = Nonces { client: client_nonce, server };
        let signature = sign_proof(device.signing_key(), &nonces, &node.authority);
        let proof = v1::Proof { session: challenge.session, signature: Bytes::copy_from_slice(&signature) };
        let token = rpc.prove_session(proof).await.expect(HONEST_NODE).into_inner().token;
        let token = BASE32_NOPAD.encode(&token).to_ascii_lowercase().parse().expect("base32 is ASCII");
        Self { account, rpc, nonces, token }
    }

    /// Both nonces of the session, for invite proofs.
    #[must_use]
    pub fn nonces(&self) -> [u8; 64] {
        self.nonces.joined()
    }

    /// A request that carries the session.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(TOKEN_KEY, self.token.clone());
        request
    }

    /// One push message on a stream of its own; what was said of each item, in the order of the items.
    ///
    /// # Errors
    /// The status that ended the stream.
    ///
    /// # Panics
    /// If an item got no verdict, or two.
    pub async fn push(&mut self, space: SpaceId, items: Vec<v1::PushItem>) -> Result<Vec<Said>, Status> {
        Ok(self.push_in_detail(space, items).await?.into_iter().map(|verdict| said(&verdict)).collect())
    }

    /// The same, with the verdicts as they came.
    ///
    /// # Errors
    /// As [`Hostile::push`].
    ///
    /// # Panics
    /// As [`Hostile::push`].
    pub async fn push_in_detail(
        &mut self,
        space: SpaceId,
        mut items: Vec<v1::PushItem>,
    ) -> Result<Vec<v1::Verdict>, Status> {
        for (tag, item) in items.iter_mut().enumerate() {
            item.tag = tag as u64;
        }
        let expected = items.len();
        let message = v1::PushRequest { space: space.to_bytes(), items };
        let request = self.request(tokio_stream::iter([message]));
        let mut answers = self.rpc.push(request).await?.into_inner();
        let mut verdicts = Vec::new();
        while let Some(answer) = answers.message().await? {
            verdicts.extend(answer.verdicts);
        }
        verdicts.sort_by_key(|v| v.tag);
        let tags: Vec<u64> = verdicts.iter().map(|v| v.tag).collect();
        assert_eq!(tags, (0..expected as u64).collect::<Vec<_>>(), "one verdict for each item");
        Ok(verdicts)
    }

    /// Appends an ACL record by its own call.
    ///
    /// # Errors
    /// The node's.
    pub async fn append(&mut self, space: SpaceId, record: pb::SignedRecord) -> Result<(), Status> {
        let message = v1::AclAppendRequest { space: space.to_bytes(), record: Some(record), invite_proof: None };
        let request = self.request(message);
        self.rpc.acl_append(request).await.map(|_| ())
    }

    /// Where the space stands at the node, on its disk.
    ///
    /// # Panics
    /// If the node does not certify.
    pub async fn standing(&mut self, space: SpaceId) -> Standing {
        let message = v1::CertifyRequest {
            space: space.to_bytes(),
            nonce: Bytes::copy_from_slice(&rand::random::<[u8; 16]>()),
            prev: Bytes::new(),
            trees: Vec::new(),
            with_set_digest: true,
        };
        let request = self.request(message);
        let answer = self.rpc.certify(request).await.expect(HONEST_NODE).into_inner();
        let receipt: Verified<Receipt> = read_verified("receipt", answer.receipt).expect(HONEST_NODE);
        let Receipt { seq, chain, acl_head, set_digest, durable, .. } = *receipt.body();
        assert!(durable, "a certified position is on the disk");
        Standing { seq, chain, acl_head, set_digest }
    }

    /// Reads the ACL and the keys that it gives to this account, and the ids of all entries.
    ///
    /// # Panics
    /// If the node refuses, or shows a log that breaks the rules.
    pub async fn read(&mut self, space: SpaceId) -> Known {
        // What is not durable is not shown.
        self.standing(space).await;
        self.read_acl(space, None).await.expect(HONEST_NODE)
    }

    /// Reads as much of the ACL as the node shows: to members, to former ones, and to the holder of an invite.
    ///
    /// # Errors
    /// The node's.
    ///
    /// # Panics
    /// If the log breaks the rules.
    pub async fn read_acl(&mut self, space: SpaceId, invite: Option<&InviteSecret>) -> Result<Known, Status> {
        let proof = |secret: &InviteSecret| {
            let signature = sign_read_proof(secret.signing_key(), &self.nonces(), space, self.account.id());
            v1::InviteProof { invite: secret.id().to_bytes(), signature: Bytes::copy_from_slice(&signature) }
        };
        let invite_proof = invite.map(proof);
        let message = v1::AclReadRequest { space: space.to_bytes(), from_seq: 0, follow: false, invite_proof };
        let request = self.request(message);
        let mut stream = self.rpc.acl_read(request).await?.into_inner();
        let mut reader = Reader { invite: invite.cloned(), ..Reader::default() };
        while let Some(message) = stream.message().await? {
            reader.header = reader.header.or(message.header);
            reader.entries.extend(message.entries);
        }
        Ok(reader.finish(space, &self.account))
    }

    /// Subscribes to the log of a space from after `cursor`.
    ///
    /// # Panics
    /// If the node takes no stream.
    pub async fn tail(&mut self, space: SpaceId, cursor: Seq) -> Tail {
        let (requests, stream) = mpsc::channel(1);
        let subscribe = v1::Subscribe { space: space.to_bytes(), cursor: cursor.0, ladder: Vec::new() };
        let message = v1::head_updates_request::Message::Subscribe(subscribe);
        let subscribe = v1::HeadUpdatesRequest { message: Some(message) };
        requests.send(subscribe).await.expect("there is room for the first");
        let request = self.request(ReceiverStream::new(stream));
        let frames = self.rpc.head_updates(request).await.expect(HONEST_NODE).into_inner();
        Tail { frames, _requests: requests }
    }
}

impl Hostile {
    /// The first `count` entries after `cursor`, in full.
    pub async fn entries(&mut self, space: SpaceId, cursor: Seq, count: usize) -> Vec<RawRecord> {
        self.tail(space, cursor).await.records(count).await
    }

    /// Pushes what somebody else has signed: a root goes with the change after it.
    ///
    /// # Panics
    /// If the node does not take it.
    pub async fn relay(&mut self, space: SpaceId, records: Vec<RawRecord>) {
        let (mut root, mut items) = (None, Vec::new());
        for record in records {
            if record.kind == Kind::TreeRoot {
                root = Some(record.into());
            } else {
                items.push(v1::PushItem { tag: 0, root: root.take(), record: Some(record.into()) });
            }
        }
        let said = self.push(space, items).await.expect(HONEST_NODE);
        assert!(said.iter().all(|said| *said == Said::Accepted), "{said:?}");
    }
}

/// A subscription, as long as it lives.
#[derive(Debug)]
pub struct Tail {
    frames: Streaming<v1::HeadUpdatesResponse>,
    _requests: mpsc::Sender<v1::HeadUpdatesRequest>,
}

impl Tail {
    /// What the node says of a ladder that is not on its log, as the first thing.
    ///
    /// # Panics
    /// If it says anything else.
    pub async fn rewound(&mut self) -> v1::Rewound {
        match self.frames.message().await.expect(HONEST_NODE).and_then(|frame| frame.message) {
            Some(v1::head_updates_response::Message::Rewound(rewound)) => rewound,
            other => panic!("{other:?}"),
        }
    }

    async fn records(&mut self, count: usize) -> Vec<RawRecord> {
        use v1::head_updates_response::Message;
        let mut records = Vec::new();
        while records.len() < count {
            let frame = self.frames.message().await.expect(HONEST_NODE).expect("a tail goes on");
            let Some(Message::Update(update)) = frame.message else { continue };
            for entry in update.entries {
                let Some(v1::log_entry::Entry::Record(record)) = entry.entry else { panic!("pushed by somebody else") };
                records.push(RawRecord::try_from(record).expect(HONEST_NODE));
            }
        }
        records.truncate(count);
        records
    }

    /// Takes what comes until the node refuses to go on: the entries, and why.
    ///
    /// # Panics
    /// If the stream ends in another way.
    pub async fn until_refused(&mut self) -> (Vec<v1::LogEntry>, Code) {
        use v1::head_updates_response::Message;
        let mut entries = Vec::new();
        loop {
            let frame = self.frames.message().await.expect(HONEST_NODE).expect("a tail goes on until it is refused");
            match frame.message.expect(HONEST_NODE) {
                Message::Update(update) => entries.extend(update.entries),
                Message::Refused(refused) => {
                    let code = refused.error.expect(HONEST_NODE).code;
                    return (entries, Code::from_number(code).expect("a known code"));
                }
                Message::Heartbeat(_) | Message::Pong(_) | Message::Durable(_) | Message::Subscribed(_) => {}
                Message::Rewound(rewound) => panic!("{rewound:?}"),
            }
        }
    }
}

fn hello(account: &AccountKeys, device: &DeviceKeys, mut devices: Vec<DeviceId>, client_nonce: [u8; 32]) -> v1::Hello {
    // Each list replaces the one before, and those that honest devices of the account made.
    static VERSIONS: AtomicU64 = AtomicU64::new(1_000);
    devices.push(device.id());
    v1::Hello {
        versions: Some(v1::VersionRange { min: 1, max: 1 }),
        features: Vec::new(),
        account: account.id().to_bytes(),
        device: device.id().to_bytes(),
        certificate: Some(account.certify_device(device.id(), 1).into_raw().into()),
        device_list: Some(account.device_list(VERSIONS.fetch_add(1, Ordering::Relaxed), devices).into_raw().into()),
        client_nonce: Bytes::copy_from_slice(&client_nonce),
    }
}

/// What a verdict says.
///
/// # Panics
/// If it says nothing, or has a code that nobody knows.
#[must_use]
pub fn said(verdict: &v1::Verdict) -> Said {
    match verdict.outcome.as_ref().expect("a verdict has an outcome") {
        Outcome::Accepted(_) => Said::Accepted,
        Outcome::Known(_) => Said::Known,
        Outcome::Rejected(detail) => Said::Rejected(Code::from_number(detail.code).expect("a known code")),
    }
}

// ---- reading --------------------------------------------------------------------------------------------------------

/// What this account knows of a space.
#[derive(Debug, Clone)]
pub struct Known {
    pub acl: AclState,
    pub ring: KeyRing,
    /// Of every entry, in log order.
    pub ids: Vec<EntryId>,
}

#[derive(Default)]
struct Reader {
    invite: Option<InviteSecret>,
    header: Option<pb::SignedRecord>,
    entries: Vec<v1::AclReadEntry>,
}

impl Reader {
    fn finish(self, space: SpaceId, account: &AccountKeys) -> Known {
        let mut records = Vec::new();
        let mut ids = Vec::new();
        for entry in self.entries {
            match entry.entry.expect(HONEST_NODE) {
                Entry::Id(id) => ids.push(EntryId::try_from(id.as_ref()).expect(HONEST_NODE)),
                Entry::Acl(record) => {
                    let raw = RawRecord::try_from(record).expect(HONEST_NODE);
                    ids.push(raw.id());
                    records.push((Seq(entry.seq), raw));
                }
            }
        }
        let mut records = records.into_iter();
        let mut next = || records.next().expect("a log begins with two ACL records").1;
        let header: Verified<SpaceHeader> = read_verified("header", self.header).expect(HONEST_NODE);
        let root: Verified<AclRoot> = verify_as(next()).expect(HONEST_NODE);
        let home: Verified<AclRecord> = verify_as(next()).expect(HONEST_NODE);
        let begin = genesis(header, &root, &home).expect(HONEST_NODE);
        assert_eq!(begin.space(), space);
        let mut acl = begin.acl().clone();
        let mut ring = KeyRing::new(account.clone());
        ring.absorb_root(root.body()).expect("the keys of the root open");
        if let Some(secret) = self.invite {
            ring.hold_invite(secret);
        }
        for (seq, raw) in records {
            let record: Verified<AclRecord> = verify_as(raw).expect(HONEST_NODE);
            let before = acl.epoch;
            acl = acl.apply(&record, seq).expect(HONEST_NODE);
            let published = |e: Epoch| acl.epochs.get(&e).map(|info| (info.key_id, info.history_id));
            // A key that is missing shows where it is needed.
            let _ = ring.absorb(record.body(), before, &published);
        }
        Known { acl, ring, ids }
    }
}

// ---- making records -------------------------------------------------------------------------------------------------

/// Who writes, and as of what: makes records that the rules accept, until a test changes them.
#[derive(Debug, Clone)]
pub struct Pen {
    pub account: AccountKeys,
    pub known: Known,
}

impl Pen {
    /// Writes as this account, as of now.
    pub async fn of(patched: &mut Hostile, space: SpaceId) -> Self {
        Self { account: patched.account.clone(), known: patched.read(space).await }
    }

    /// The space that is written to.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        self.known.acl.space
    }

    /// The root of a new tree.
    ///
    /// # Panics
    /// Never: the form is right.
    #[must_use]
    pub fn root(&self, write_rule: WriteRule) -> Verified<TreeRoot> {
        let root = TreeRoot { space: self.space(), name: TreeName::Nonce(rand::random()), write_rule };
        Verified::unsigned(&root).expect(OWN)
    }

    /// A change on `parents` with its payload, encrypted as an honest client does; no parents: the first of its tree.
    ///
    /// # Panics
    /// If the keys of the epoch are not here.
    #[must_use]
    pub fn draft(&self, tree: TreeId, parents: &[ChangeId], text: &[u8]) -> (TreeChange, Bytes) {
        let envelope = Envelope {
            object_type: String::new(),
            object_id: String::new(),
            data_type: "text".to_owned(),
            payload: Bytes::copy_from_slice(text),
        };
        self.sealed(tree, parents, &envelope)
    }

    /// The root that an object has under a write rule.
    ///
    /// # Panics
    /// If the key of names is not here.
    #[must_use]
    pub fn object_root(&self, object_type: &str, id: &str, rule: WriteRule) -> Verified<TreeRoot> {
        let name_key = self.known.ring.name_key().expect("the key of names");
        Verified::unsigned(&object_root(self.space(), name_key, object_type, id, rule)).expect(OWN)
    }

    /// A change that sets fields of an object, in the tree of any root, after `spoil` had its way with it; no parents: the
    /// first of its tree, with the root.
    ///
    /// # Panics
    /// If the fields are not an object.
    pub fn object(
        &self,
        (object_type, id): (&str, &str),
        root: &Verified<TreeRoot>,
        parents: &[ChangeId],
        fields: Value,
        spoil: impl FnOnce(&mut TreeChange),
    ) -> v1::PushItem {
        let Value::Object(fields) = fields else { panic!("not an object: {fields}") };
        let mut ops: Vec<Op> = fields.into_iter().map(|(field, value)| Op::Set { field, value }).collect();
        ops.push(Op::Exists(Existence::Present));
        let envelope = Envelope {
            object_type: object_type.to_owned(),
            object_id: id.to_owned(),
            data_type: object::DATA_TYPE.to_owned(),
            payload: object::encode(&ops),
        };
        let (mut change, payload) = self.sealed(root.id().into(), parents, &envelope);
        spoil(&mut change);
        let root = parents.is_empty().then(|| root.raw().clone().into());
        item(root, self.signed(&change, Some(payload)))
    }

    fn sealed(&self, tree: TreeId, parents: &[ChangeId], envelope: &Envelope) -> (TreeChange, Bytes) {
        let (acl, author) = (&self.known.acl, self.account.id());
        let keys = self.known.ring.keys(acl.epoch).expect("the keys of the epoch");
        let context = ContentContext { space: acl.space, tree, epoch: acl.epoch, author, kind: ChangeKind::Content };
        let encrypted = encrypt(keys, &context, envelope, &mut rand::rng()).expect("small enough");
        let root = [TreeChange::root_as_parent(tree)];
        let change = TreeChange {
            tree,
            parents: if parents.is_empty() { root.to_vec() } else { parents.to_vec() },
            acl_head: acl.head,
            epoch: acl.epoch,
            author,
            at_ms: 7,
            seen: None,
            kind: ChangeKind::Content,
            nonce: encrypted.nonce,
            payload: PayloadClaim::of(&encrypted.ciphertext),
        };
        (change, encrypted.ciphertext)
    }

    /// A tree of its own with one change, as one item.
    #[must_use]
    pub fn fresh(&self) -> (Verified<TreeRoot>, v1::PushItem) {
        let root = self.root(WriteRule::WRITERS);
        let item = self.first(&root, |_, _| {});
        (root, item)
    }

    /// The first change of a tree after `spoil` had its way with the body and the payload; signed over what came out.
    pub fn first(&self, root: &Verified<TreeRoot>, spoil: impl FnOnce(&mut TreeChange, &mut Bytes)) -> v1::PushItem {
        let tree = TreeId::from(root.id());
        let (mut change, mut payload) = self.draft(tree, &[], b"first");
        spoil(&mut change, &mut payload);
        item(Some(root.raw().clone().into()), self.signed(&change, Some(payload)))
    }

    /// A later change of a tree, spoiled likewise.
    pub fn next(
        &self,
        tree: TreeId,
        parents: &[ChangeId],
        spoil: impl FnOnce(&mut TreeChange, &mut Bytes),
    ) -> v1::PushItem {
        let (mut change, mut payload) = self.draft(tree, parents, b"next");
        spoil(&mut change, &mut payload);
        item(None, self.signed(&change, Some(payload)))
    }

    /// The end of a tree.
    #[must_use]
    pub fn tombstone(&self, tree: TreeId) -> pb::SignedRecord {
        let body = Tombstone { tree, author: self.account.id(), acl_head: self.known.acl.head, at_ms: 7 };
        self.signed(&body, None)
    }

    /// The next ACL record.
    #[must_use]
    pub fn acl(&self, content: AclContent) -> AclRecord {
        let acl = &self.known.acl;
        AclRecord {
            space: acl.space,
            prev: acl.head,
            index: acl.index + 1,
            author: self.account.id(),
            at_ms: 7,
            seen: None,
            contents: vec![content],
        }
    }

    /// New keys for all members but `without`; open invites get them too, unless somebody goes.
    ///
    /// # Panics
    /// If the keys of the epoch are not here.
    #[must_use]
    pub fn rotation(&self, without: &[AccountId]) -> (Rotation, SpaceKeys) {
        let acl = &self.known.acl;
        let stays = acl.members.keys().filter(|account| !without.contains(account));
        let members: Vec<_> = stays.map(|account| (*account, HistoryAccess::WithHistory)).collect();
        let keys = self.known.ring.keys(acl.epoch).expect("the keys of the epoch");
        let (mut rotation, keys) =
            make_rotation(acl.space, (acl.epoch, keys), &members, &mut rand::rng()).expect("members have good keys");
        let open = acl.invites.iter().filter(|(_, i)| i.status == InviteStatus::Live);
        let open = open.filter(|(_, i)| i.content.mode == InviteMode::Open && without.is_empty());
        for (invite, _) in open {
            let to = Recipient::Invite(*invite);
            let seal = seal_keys(Some(acl.space), rotation.epoch, to, &keys, &mut rand::rng());
            rotation.invite_seals.push(seal.expect("an invite has a good key"));
        }
        (rotation, keys)
    }

    /// This account's word that it holds an invite.
    #[must_use]
    pub fn claim(&self, secret: &InviteSecret, role: Role) -> JoinClaim {
        let account = self.account.id();
        let proof = sign_join_proof(secret.signing_key(), self.space(), account, role);
        JoinClaim { invite: secret.id(), account, role, proof, profile_ct: Bytes::new() }
    }

    /// Signs a body as it is, whatever it says.
    #[must_use]
    pub fn signed<B: Body>(&self, body: &B, payload: Option<Bytes>) -> pb::SignedRecord {
        signed_bytes(B::KIND, body.to_message().encode_to_vec(), payload, self.account.signing_key())
    }
}

/// A push item; the tag is given when it is sent.
#[must_use]
pub fn item(root: Option<pb::SignedRecord>, record: pb::SignedRecord) -> v1::PushItem {
    v1::PushItem { tag: 0, root, record: Some(record) }
}

/// The change of an item.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn id_of(item: &v1::PushItem) -> ChangeId {
    let record = item.record.clone().expect("an item has a record");
    RawRecord::try_from(record).expect("a known kind").id().into()
}

/// What lies in the log of a space at a node that lies: these too, whatever the rules say. The node is stopped, and runs again
/// afterwards.
///
/// # Panics
/// If an item has not the form of a record, or the store fails.
pub async fn slip_in(node: &mut NodeProcess, space: SpaceId, items: Vec<v1::PushItem>) {
    let read = |record: pb::SignedRecord| verify(RawRecord::try_from(record).expect("a known kind")).expect("a record");
    let submissions: Vec<Submission> = items
        .into_iter()
        .map(|item| Submission::pair(item.root.map(read), read(item.record.expect("a record"))).expect("an entry"))
        .collect();
    node.kill();
    let store = Store::open(&node.dir().join("store"), StoreKind::Node).expect("the store of a node that is down");
    let job = move |tx: &mut sync_store::WriteTx<'_>| -> Result<(), StoreError> {
        for submission in &submissions {
            let decision = quarantine(&tx.view(space)?.expect("the space"), submission);
            tx.append(space, decision)?;
        }
        Ok(())
    };
    let written = store.write(job).await.expect("written");
    store.durable(written.commit).await.expect("on the disk");
    store.close().await;
    node.restart();
}

/// Any bytes as the body of a record, with a signature that fits them.
#[must_use]
pub fn signed_bytes(kind: Kind, body: Vec<u8>, payload: Option<Bytes>, key: &SigningKey) -> pb::SignedRecord {
    let mut raw = RawRecord { kind, version: VERSION, body: body.into(), signature: Bytes::new(), payload };
    let message = [signature_context(kind).as_bytes(), raw.id().as_bytes()].concat();
    raw.signature = Bytes::copy_from_slice(&key.sign(&message).to_bytes());
    raw.into()
}

/// Of the kinds that a patched client signs; written out, so that a changed context is noticed.
fn signature_context(kind: Kind) -> &'static str {
    match kind {
        Kind::AclRecord => "headwater/acl-record/sig/v1",
        Kind::TreeChange => "headwater/tree-change/sig/v1",
        Kind::Tombstone => "headwater/tombstone/sig/v1",
        Kind::DeviceCertificate => "headwater/device-certificate/sig/v1",
        Kind::SpaceHeader
        | Kind::AclRoot
        | Kind::TreeRoot
        | Kind::DeviceList
        | Kind::NodeCertificate
        | Kind::Receipt
        | Kind::HistoryStarted
        | Kind::InviteToken => "headwater/none/sig/v1",
    }
}

// ---- spoiling bytes -------------------------------------------------------------------------------------------------

/// The ways in which one meaning gets a second spelling that a lenient decoder would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misspelling {
    UnknownField,
    DuplicateField,
    OverlongVarint,
    ExplicitDefault,
    OtherOrder,
    Trailing,
}

impl Misspelling {
    /// All six.
    pub const ALL: [Self; 6] = [
        Self::UnknownField,
        Self::DuplicateField,
        Self::OverlongVarint,
        Self::ExplicitDefault,
        Self::OtherOrder,
        Self::Trailing,
    ];

    /// Misspells a body whose varint field `number` has a value below 128.
    ///
    /// # Panics
    /// If the body has no such field.
    #[must_use]
    pub fn of(self, body: &[u8], number: u8) -> Vec<u8> {
        let mut fields = fields(body);
        let tag = number << 3;
        let at = fields.iter().position(|f| f[0] == tag).expect("the field is there");
        let [_, value] = fields[at][..] else { panic!("not a one-byte varint: {:?}", fields[at]) };
        match self {
            // Field 15, the varint 1.
            Self::UnknownField => fields.push(vec![0x78, 1]),
            Self::DuplicateField => fields.insert(at, fields[at].clone()),
            Self::OverlongVarint => fields[at] = vec![tag, value | 0x80, 0],
            Self::ExplicitDefault => fields[at] = vec![tag, 0],
            Self::OtherOrder => fields.swap(0, at),
            // Field 15, a group that begins and ends.
            Self::Trailing => fields.push(vec![0x7b, 0x7c]),
        }
        fields.concat()
    }
}

/// The fields of a message, each with its tag. Varints and length-delimited ones with numbers below 16, as records have.
fn fields(mut message: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let end = match message[0] & 7 {
            0 => 1 + varint(&message[1..]).1,
            2 => {
                let (len, digits) = varint(&message[1..]);
                1 + digits + len
            }
            other => panic!("wire type {other} is not in use"),
        };
        fields.push(message[..end].to_vec());
        message = &message[end..];
    }
    fields
}

fn varint(bytes: &[u8]) -> (usize, usize) {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (value, at + 1);
        }
    }
    panic!("a varint without an end");
}

/// Flips one random bit.
///
/// # Panics
/// If there are no bytes.
#[must_use]
pub fn flipped(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    let bit = rand::rng().random_range(0..bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes.into()
}

/// An authority that certifies nothing.
#[must_use]
pub fn some_authority() -> AuthorityId {
    AuthorityId::from(&SigningKey::from_bytes(&rand::random()).verifying_key())
}

/// An account that is in no space.
#[must_use]
pub fn some_account() -> AccountId {
    AccountId::from(&SigningKey::from_bytes(&rand::random()).verifying_key())
}
