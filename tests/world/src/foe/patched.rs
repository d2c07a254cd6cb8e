//! A patched client: a real account with a real session, beside the honest client of that account, that sends what no honest
//! client sends. Nothing of it may stand in a log, and nobody else may notice.

use std::time::Duration;

use bytes::Bytes;
use client_sdk::{ChangeId, Role, SpaceId};
use data_encoding::BASE32_NOPAD;
use ed25519_dalek::Signer as _;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rand::{Rng as _, RngExt as _};
use rand_chacha::ChaCha8Rng;
use sync_core::acl::AclState;
use sync_core::ids::{AccountId, AclId, Epoch, Seq, TreeId};
use sync_core::limits;
use sync_core::pb;
use sync_core::record::{
    AclContent, AclRecord, AclRoot, Body as _, ChangeKind, Kind, PayloadClaim, RawRecord, TreeChange, TreeName,
    TreeRoot, Verified, WriteRule, verify_as,
};
use sync_core::session::{Nonces, sign_proof};
use sync_e2ee::{AccountKeys, DeviceKeys};
use sync_proto::TOKEN_KEY;
use sync_proto::v1::sync_client::SyncClient;
use sync_proto::v1::{self, acl_read_entry, head_updates_request, head_updates_response, verdict::Outcome};
use tokio_stream::StreamExt as _;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::Deed;
use crate::machine::dice;
use crate::story::{NODE, Who};
use crate::told::Told;
use crate::violation::Violation;
use crate::world::World;

/// What a patched client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// A change with a signature that is not its author's.
    Signature,
    /// A change that is spelled in a way that no encoder has.
    Spelling,
    /// A change of an epoch to come.
    Epoch,
    /// A change on parents that nobody knows.
    Parents,
    /// A change in the name of the owner.
    Impostor,
    /// A change with other content than it names.
    Content,
    /// A change with more content, and one with more parents, than there may be.
    Giant,
    /// A record that makes its author an admin.
    Promotion,
    /// A change in order whose content opens for nobody, whether its author may write or not.
    Garbage,
    /// What others wrote, once more, here and in a space of its own.
    Replay,
    /// Requests that are no requests.
    Junk,
    /// Everything at once, many times.
    Flood,
}

/// How long a patched client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Records that it takes from the tail to send them again.
const REPLAYED_MAX: usize = 64;
const FLOODS: usize = 40;

pub(super) fn deeds(dice: &mut ChaCha8Rng, by: Who) -> Vec<Deed> {
    let count = dice.random_range(2..=8);
    let any = |dice: &mut ChaCha8Rng| Attack::ALL[dice.random_range(0..Attack::ALL.len())];
    (0..count).map(|_| Deed::Attack { by, space: 0, attack: any(dice) }).collect()
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Signature,
        Self::Spelling,
        Self::Epoch,
        Self::Parents,
        Self::Impostor,
        Self::Content,
        Self::Giant,
        Self::Promotion,
        Self::Garbage,
        Self::Replay,
        Self::Junk,
        Self::Flood,
    ];
}

/// Goes on beside the story, until the node does not answer any more.
pub(super) async fn attack(world: World, told: Told, by: Who, slot: usize, attack: Attack, number: u32) {
    let Some(space) = told.space(slot) else { return };
    let mut dice = dice(world.seed(), &format!("attack {number}"));
    let Ok(Ok(mut patched)) = tokio::time::timeout(PATIENCE, Patched::open(&world, by, &mut dice)).await else {
        return;
    };
    let said = tokio::time::timeout(PATIENCE, patched.run(space, attack, &mut dice)).await;
    match said {
        Err(_) => world.note(format_args!("{by}, patched: no answer to {attack:?}")),
        Ok(Err(status)) => world.note(format_args!("{by}, patched: {attack:?}: {:?}", status.code())),
        Ok(Ok(verdicts)) => {
            world.note(format_args!("{by}, patched: {attack:?}: {verdicts:?}"));
            let may_pass = attack == Attack::Garbage;
            if !may_pass && let Some(taken) = verdicts.iter().find(|said| **said == Said::Accepted) {
                let expected = format!("{attack:?} of {by} is refused");
                told.found(Violation::new("wrong_records_are_refused", expected, taken));
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Accepted,
    Known,
    /// With the number of the code.
    Rejected(i32),
}

struct Patched {
    account: AccountKeys,
    rpc: SyncClient<Channel>,
    token: AsciiMetadataValue,
}

/// What a record is made of, as far as this account may know.
struct Known {
    space: SpaceId,
    owner: AccountId,
    head: AclId,
    index: u64,
    epoch: Epoch,
    role: Option<Role>,
}

impl Patched {
    async fn open(world: &World, by: Who, dice: &mut ChaCha8Rng) -> Result<Self, Status> {
        let down = |text: &str| Status::unavailable(text.to_owned());
        let words = world.words(by.name()).ok_or_else(|| down("no account yet"))?;
        let honest = world.client(by.name()).map_err(|e| down(&e.to_string()))?;
        let stream = world.dial(by.name(), NODE).await.map_err(|e| down(&e.to_string()))?;
        let mut stream = Some(TokioIo::new(stream));
        let once = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            std::future::ready(stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
        });
        let endpoint = Endpoint::from_static("http://node");
        let channel = endpoint.connect_with_connector(once).await.map_err(|e| down(&e.to_string()))?;
        let mut rpc = SyncClient::new(channel);
        let (account, device) = (AccountKeys::from_mnemonic(&words), DeviceKeys::generate(dice));
        let client_nonce: [u8; 32] = dice.random();
        // Each list replaces the one before; the honest device stays on it.
        let version = 1_000 + u64::try_from(world.elapsed().as_millis()).unwrap_or(u64::MAX);
        let list = account.device_list(version, vec![honest.device(), device.id()]);
        let hello = v1::Hello {
            versions: Some(v1::VersionRange { min: 1, max: 1 }),
            features: Vec::new(),
            account: account.id().to_bytes(),
            device: device.id().to_bytes(),
            certificate: Some(account.certify_device(device.id(), 1).into_raw().into()),
            device_list: Some(list.into_raw().into()),
            client_nonce: Bytes::copy_from_slice(&client_nonce),
        };
        let challenge = rpc.open_session(hello).await?.into_inner();
        let server = challenge.server_nonce.as_ref().try_into().map_err(|_| down("a nonce of another length"))?;
        let nonces = Nonces { client: client_nonce, server };
        let signature = sign_proof(device.signing_key(), &nonces, &world.address(NODE).authority);
        let proof = v1::Proof { session: challenge.session, signature: Bytes::copy_from_slice(&signature) };
        let token = rpc.prove_session(proof).await?.into_inner().token;
        let token = BASE32_NOPAD.encode(&token).to_ascii_lowercase();
        let token = token.parse().map_err(|_| down("a token that is no text"))?;
        Ok(Self { account, rpc, token })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(TOKEN_KEY, self.token.clone());
        request
    }

    async fn run(&mut self, space: SpaceId, attack: Attack, dice: &mut ChaCha8Rng) -> Result<Vec<Said>, Status> {
        let known = self.read(space).await?;
        match attack {
            Attack::Promotion => self.promote(&known).await,
            Attack::Replay => self.replay(&known, dice).await,
            Attack::Junk => self.junk(&known, dice).await,
            Attack::Flood => self.flood(&known, dice).await,
            Attack::Signature
            | Attack::Spelling
            | Attack::Epoch
            | Attack::Parents
            | Attack::Impostor
            | Attack::Content
            | Attack::Giant
            | Attack::Garbage => {
                let items = self.spoiled(&known, attack, dice);
                self.push(space, items).await
            }
        }
    }

    /// The ACL, if it is shown; else what a stranger would make up.
    async fn read(&mut self, space: SpaceId) -> Result<Known, Status> {
        let message = v1::AclReadRequest { space: space.to_bytes(), from_seq: 0, follow: false, invite_proof: None };
        let mut acl: Option<AclState> = None;
        match self.rpc.acl_read(self.request(message)).await {
            Err(_) => {}
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while let Some(message) = stream.message().await? {
                    for entry in message.entries {
                        let Some(acl_read_entry::Entry::Acl(record)) = entry.entry else { continue };
                        acl = fold(space, acl, record, Seq(entry.seq));
                    }
                    if message.complete_to_seq != 0 {
                        break;
                    }
                }
            }
        }
        let account = self.account.id();
        Ok(match acl {
            Some(acl) => {
                let AclState { owner, head, index, epoch, .. } = acl;
                Known { space, owner, head, index, epoch, role: acl.role(&account) }
            }
            None => {
                let head = AclId::from_hash(*space.as_bytes());
                Known { space, owner: account, head, index: 0, epoch: Epoch(0), role: None }
            }
        })
    }

    async fn push(&mut self, space: SpaceId, mut items: Vec<v1::PushItem>) -> Result<Vec<Said>, Status> {
        items.iter_mut().zip(0..).for_each(|(item, tag)| item.tag = tag);
        let message = v1::PushRequest { space: space.to_bytes(), items };
        let mut answers = self.rpc.push(self.request(tokio_stream::iter([message]))).await?.into_inner();
        let mut said = Vec::new();
        while let Some(answer) = answers.message().await? {
            said.extend(answer.verdicts.into_iter().filter_map(|verdict| verdict.outcome).map(read_outcome));
        }
        Ok(said)
    }

    // ---- records ----------------------------------------------------------------------------------------------------

    /// The first change of a tree of its own: in order, until it is spoiled.
    fn spoiled(&self, known: &Known, attack: Attack, dice: &mut ChaCha8Rng) -> Vec<v1::PushItem> {
        let name = TreeName::Nonce(dice.random());
        let root = TreeRoot { space: known.space, name, write_rule: WriteRule::WRITERS };
        let Ok(root) = Verified::unsigned(&root) else { return Vec::new() };
        let tree = TreeId::from(root.id());
        let payload = random_bytes(dice, 64);
        let mut change = TreeChange {
            tree,
            parents: vec![TreeChange::root_as_parent(tree)],
            acl_head: known.head,
            epoch: known.epoch,
            author: self.account.id(),
            at_ms: 7,
            seen: None,
            kind: ChangeKind::Content,
            nonce: dice.random(),
            payload: PayloadClaim::of(&payload),
        };
        let item = |change: &TreeChange, payload: &Bytes| v1::PushItem {
            tag: 0,
            root: Some(root.raw().clone().into()),
            record: Some(self.signed(Kind::TreeChange, change.to_message().encode_to_vec(), Some(payload.clone()))),
        };
        match attack {
            Attack::Signature => {
                let mut item = item(&change, &payload);
                if let Some(record) = &mut item.record {
                    record.signature = random_bytes(dice, 64);
                }
                vec![item]
            }
            Attack::Spelling => {
                // Field 15, the varint 1: unknown.
                let body = [change.to_message().encode_to_vec(), vec![0x78, 1]].concat();
                let record = self.signed(Kind::TreeChange, body, Some(payload));
                vec![v1::PushItem { tag: 0, root: Some(root.raw().clone().into()), record: Some(record) }]
            }
            Attack::Epoch => {
                // So far ahead that no rotation meets it while the attack goes on.
                change.epoch = Epoch(known.epoch.0 + 1_000);
                vec![item(&change, &payload)]
            }
            Attack::Parents => {
                change.parents = vec![ChangeId::from_hash(dice.random())];
                vec![item(&change, &payload)]
            }
            // Of the owner's own, it is signed by the owner.
            Attack::Impostor if known.owner == self.account.id() => Vec::new(),
            Attack::Impostor => {
                change.author = known.owner;
                vec![item(&change, &payload)]
            }
            Attack::Content => vec![item(&change, &random_bytes(dice, 64))],
            Attack::Giant => {
                let much = random_bytes(dice, limits::PAYLOAD_BYTES_MAX + 1);
                let mut parents: Vec<ChangeId> =
                    (0..=limits::PARENTS_MAX).map(|_| ChangeId::from_hash(dice.random())).collect();
                parents.sort_unstable();
                let fat = TreeChange { payload: PayloadClaim::of(&much), ..change.clone() };
                let wide = TreeChange { parents, ..change };
                vec![item(&fat, &much), item(&wide, &payload)]
            }
            Attack::Garbage | Attack::Promotion | Attack::Replay | Attack::Junk | Attack::Flood => {
                vec![item(&change, &payload)]
            }
        }
    }

    /// Any bytes as a record, with a signature of this account's.
    fn signed(&self, kind: Kind, body: Vec<u8>, payload: Option<Bytes>) -> pb::SignedRecord {
        let version = sync_core::record::VERSION;
        let mut raw = RawRecord { kind, version, body: body.into(), signature: Bytes::new(), payload };
        let context =
            if kind == Kind::AclRecord { "headwater/acl-record/sig/v1" } else { "headwater/tree-change/sig/v1" };
        let message = [context.as_bytes(), raw.id().as_bytes()].concat();
        raw.signature = Bytes::copy_from_slice(&self.account.signing_key().sign(&message).to_bytes());
        raw.into()
    }

    async fn promote(&mut self, known: &Known) -> Result<Vec<Said>, Status> {
        if known.role >= Some(Role::Admin) {
            return Ok(Vec::new());
        }
        let record = AclRecord {
            space: known.space,
            prev: known.head,
            index: known.index + 1,
            author: self.account.id(),
            at_ms: 7,
            seen: None,
            contents: vec![AclContent::ChangeRole { account: self.account.id(), role: Role::Admin, seal: None }],
        };
        let record = self.signed(Kind::AclRecord, record.to_message().encode_to_vec(), None);
        let items = vec![v1::PushItem { tag: 0, root: None, record: Some(record.clone()) }];
        let mut said = self.push(known.space, items).await.unwrap_or_default();
        let message = v1::AclAppendRequest { space: known.space.to_bytes(), record: Some(record), invite_proof: None };
        match self.rpc.acl_append(self.request(message)).await?.into_inner().outcome {
            Some(v1::acl_append_response::Outcome::Accepted(_)) => said.push(Said::Accepted),
            Some(v1::acl_append_response::Outcome::Known(_)) | None => {}
        }
        Ok(said)
    }

    // ---- requests ---------------------------------------------------------------------------------------------------

    async fn replay(&mut self, known: &Known, dice: &mut ChaCha8Rng) -> Result<Vec<Said>, Status> {
        let subscribe = v1::Subscribe { space: known.space.to_bytes(), cursor: 0, ladder: Vec::new() };
        let message = head_updates_request::Message::Subscribe(subscribe);
        let ask = v1::HeadUpdatesRequest { message: Some(message) };
        // The stream stays open on this side until what is wanted has come.
        let asks = tokio_stream::iter([ask]).chain(tokio_stream::pending());
        let mut tail = self.rpc.head_updates(self.request(asks)).await?.into_inner();
        let mut records: Vec<pb::SignedRecord> = Vec::new();
        while let Ok(Ok(Some(answer))) = tokio::time::timeout(Duration::from_secs(3), tail.message()).await {
            if let Some(head_updates_response::Message::Update(update)) = answer.message {
                records.extend(update.entries.into_iter().filter_map(|entry| match entry.entry? {
                    v1::log_entry::Entry::Record(record) => Some(record),
                    v1::log_entry::Entry::Id(_) => None,
                }));
            }
            if records.len() >= REPLAYED_MAX {
                break;
            }
        }
        drop(tail);
        let (mut items, mut root) = (Vec::new(), None);
        for record in records {
            let Ok(raw) = RawRecord::try_from(record.clone()) else { continue };
            if raw.kind == Kind::TreeRoot {
                root = Some(record);
            } else if !dice.random_bool(0.1) {
                items.push(v1::PushItem { tag: 0, root: root.take(), record: Some(record) });
            }
        }
        let mut said = self.push(known.space, items.clone()).await?;
        said.extend(self.push(SpaceId::from_hash(dice.random()), items).await.unwrap_or_default());
        Ok(said)
    }

    async fn junk(&mut self, known: &Known, dice: &mut ChaCha8Rng) -> Result<Vec<Said>, Status> {
        let space = known.space.to_bytes();
        let junk = random_bytes(dice, 40);
        let trees = 0..=limits::IDS_PER_REQUEST_MAX;
        let trees: Vec<_> = trees.map(|_| pb::TreeHeads { tree: junk.clone(), heads: vec![junk.clone()] }).collect();
        let _ = self.rpc.fetch(self.request(v1::FetchRequest { space: space.clone(), trees })).await;
        let certify = v1::CertifyRequest {
            space: space.clone(),
            nonce: junk.clone(),
            prev: junk.clone(),
            trees: vec![junk.clone(); limits::RECEIPT_TREES_MAX + 1],
            with_set_digest: true,
        };
        let _ = self.rpc.certify(self.request(certify)).await;
        let proof = Some(v1::InviteProof { invite: junk.clone(), signature: junk.clone() });
        let read =
            v1::AclReadRequest { space: space.clone(), from_seq: u64::MAX, follow: true, invite_proof: proof.clone() };
        let _ = self.rpc.acl_read(self.request(read)).await;
        let pull = v1::SpacePullRequest { space: junk.clone(), invite_proof: proof };
        let _ = self.rpc.space_pull(self.request(pull)).await;
        let ids = v1::RepushIds { ids: vec![junk.clone(); 100], last: true, ends: Vec::new() };
        let open = v1::RepushOpen { space: space.clone(), receipt: None, ladder: Vec::new() };
        let asks = [
            v1::repush_request::Message::Ids(ids),
            v1::repush_request::Message::Open(open),
            v1::repush_request::Message::Records(v1::RepushRecords { records: Vec::new() }),
        ];
        let asks = asks.map(|message| v1::RepushRequest { message: Some(message) });
        drain(self.rpc.repush(self.request(tokio_stream::iter(asks))).await).await;
        let open = v1::HeadSyncOpen { space: space.clone(), seq: dice.random(), digest: junk.clone() };
        let asks = [
            v1::head_sync_request::Message::Open(open),
            v1::head_sync_request::Message::More(v1::HeadSyncMore {}),
            v1::head_sync_request::Message::NextPage(v1::HeadSyncNextPage { after: junk.clone() }),
        ];
        let asks = asks.map(|message| v1::HeadSyncRequest { message: Some(message) });
        drain(self.rpc.head_sync(self.request(tokio_stream::iter(asks))).await).await;
        let point = v1::ChainPoint { seq: u64::MAX, chain: junk.clone() };
        let subscribe = v1::Subscribe { space: junk, cursor: u64::MAX, ladder: vec![point; 200] };
        let ask = v1::HeadUpdatesRequest { message: Some(head_updates_request::Message::Subscribe(subscribe)) };
        drain(self.rpc.head_updates(self.request(tokio_stream::iter([ask]))).await).await;
        Ok(Vec::new())
    }

    async fn flood(&mut self, known: &Known, dice: &mut ChaCha8Rng) -> Result<Vec<Said>, Status> {
        let mut said = Vec::new();
        let mut open = Vec::new();
        for n in 0..FLOODS {
            let subscribe = v1::Subscribe { space: random_bytes(dice, 32), cursor: 0, ladder: Vec::new() };
            let message = Some(head_updates_request::Message::Subscribe(subscribe));
            let asks = vec![v1::HeadUpdatesRequest { message }; 30];
            let asks = tokio_stream::iter(asks).chain(tokio_stream::pending());
            // Nobody reads what comes.
            let asked = self.rpc.head_updates(self.request(asks));
            open.extend(tokio::time::timeout(Duration::from_millis(200), asked).await.ok().and_then(Result::ok));
            let items = (0..5).flat_map(|_| self.spoiled(known, Attack::Epoch, dice)).collect();
            let pushed = tokio::time::timeout(Duration::from_secs(2), self.push(known.space, items)).await;
            said.extend(pushed.ok().and_then(Result::ok).unwrap_or_default());
            if n % 8 == 0 {
                let nonce = random_bytes(dice, 16);
                let (space, prev) = (known.space.to_bytes(), Bytes::new());
                let certify = v1::CertifyRequest { space, nonce, prev, trees: Vec::new(), with_set_digest: true };
                let asked = self.rpc.certify(self.request(certify));
                let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
            }
        }
        Ok(said)
    }
}

/// Whatever is answered, to its end.
async fn drain<T>(answers: Result<tonic::Response<tonic::Streaming<T>>, Status>) {
    let Ok(answers) = answers else { return };
    let mut answers = answers.into_inner();
    while let Ok(Ok(Some(_))) = tokio::time::timeout(Duration::from_secs(1), answers.message()).await {}
}

fn read_outcome(outcome: Outcome) -> Said {
    match outcome {
        Outcome::Accepted(_) => Said::Accepted,
        Outcome::Known(_) => Said::Known,
        Outcome::Rejected(detail) => Said::Rejected(detail.code),
    }
}

fn fold(space: SpaceId, acl: Option<AclState>, record: pb::SignedRecord, at: Seq) -> Option<AclState> {
    let raw = RawRecord::try_from(record).ok()?;
    match acl {
        None => Some(AclState::found(space, &verify_as::<AclRoot>(raw).ok()?)),
        Some(acl) => acl.fold_in(&verify_as::<AclRecord>(raw).ok()?, at).ok(),
    }
}

fn random_bytes(dice: &mut ChaCha8Rng, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    dice.fill_bytes(&mut bytes);
    bytes.into()
}
