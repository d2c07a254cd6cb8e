//! The side that serves. Every answer is read after the right of the side that asks was checked in the same transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::limits;
use sync_core::pb;
use sync_core::receipt::SignedReceipt;
use sync_core::reconcile::{Element, Sketch, SymbolKey, TreePrefix, block_after, encode_cells};
use sync_core::session::{MeetingSide, sign_meeting, verify_meeting};
use sync_host::Stream;
use sync_proto::peer_v1::peer_request::Message as Ask;
use sync_proto::peer_v1::peer_response::Message as Answer;
use sync_proto::peer_v1::{
    PeerCells, PeerElement, PeerEntryList, PeerIdList, PeerPage, PeerRefused, PeerRequest, PeerResponse, PeerState,
    PeerTree, PeerTreeState, PeerTreeStates, PeerWelcome,
};
use sync_store::ReadTx;

use super::frames::Frames;
use super::{PeerError, PeerIdentity};
use crate::error::ReadError;
use crate::space::SpaceInner;

/// Trees of one prefix that are told.
const TREES_OF_PREFIX_MAX: usize = 64;

pub(super) async fn serve(space: Arc<SpaceInner>, stream: Stream) -> Result<(), PeerError> {
    let mut frames = Frames::new(stream);
    let served = serve_on(&space, &mut frames).await;
    if let Err(error) = &served {
        let refused = PeerRefused { reason: error.refusal().into(), message: error.to_string() };
        // It may be gone.
        let _ = send(&mut frames, Answer::Refused(refused)).await;
    }
    served
}

async fn serve_on(space: &Arc<SpaceInner>, frames: &mut Frames) -> Result<(), PeerError> {
    let mut serving = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, Serving::meet(space, frames)).await {
        Ok(met) => met?,
        Err(_) => return Err(PeerError::TimedOut),
    };
    tracing::info!(space = %space.id.short(), peer = %serving.peer.account.short(), "another client is served");
    loop {
        let asked = tokio::select! {
            biased;
            () = space.closed.cancelled() => return Ok(()),
            asked = frames.receive::<PeerRequest>(limits::PEER_IDLE_MAX) => asked?,
        };
        let Some(asked) = asked else { return Ok(()) };
        let answer = serving.answer(asked.message.ok_or(PeerError::BadAnswer("an empty request".to_owned()))?).await?;
        send(frames, answer).await?;
    }
}

async fn send(frames: &mut Frames, answer: Answer) -> Result<(), PeerError> {
    let response = PeerResponse { message: Some(answer) };
    tokio::time::timeout(limits::UNARY_TIMEOUT, frames.send(&response)).await.map_err(|_| PeerError::TimedOut)?
}

/// One client that is served.
struct Serving {
    space: Arc<SpaceInner>,
    peer: PeerIdentity,
    key: SymbolKey,
    /// What cells are taken from, and how many were sent.
    sketch: Option<(Sketch, usize)>,
}

impl Serving {
    async fn meet(space: &Arc<SpaceInner>, frames: &mut Frames) -> Result<Self, PeerError> {
        let asked: Option<PeerRequest> = frames.receive(limits::HANDSHAKE_TIMEOUT).await?;
        let Some(Ask::Hello(hello)) = asked.and_then(|a| a.message) else {
            return Err(PeerError::BadAnswer("the first message is Hello".to_owned()));
        };
        let (peer, theirs) = space.read_hello(hello)?;
        let ours: [u8; 32] = space.shared.host.random();
        let identity = &space.shared.identity;
        let meeting = space.meeting(peer.device, identity.device(), theirs, ours);
        let signature = sign_meeting(&identity.device_key, MeetingSide::Serves, &meeting);
        send(frames, Answer::Hello(space.hello(ours, Some(signature)))).await?;
        let asked: Option<PeerRequest> = frames.receive(limits::HANDSHAKE_TIMEOUT).await?;
        let Some(Ask::Proof(proof)) = asked.and_then(|a| a.message) else { return Err(PeerError::BadProof) };
        verify_meeting(MeetingSide::Asks, &meeting, &proof.signature).map_err(|_| PeerError::BadProof)?;
        send(frames, Answer::Welcome(PeerWelcome {})).await?;
        let key = SymbolKey::new(&meeting.symbol_seed());
        Ok(Self { space: Arc::clone(space), peer, key, sketch: None })
    }

    async fn answer(&mut self, asked: Ask) -> Result<Answer, PeerError> {
        Ok(match asked {
            Ask::Hello(_) | Ask::Proof(_) => return Err(PeerError::BadAnswer("a second Hello".to_owned())),
            Ask::Compare(_) => self.compare().await?,
            Ask::More(_) => Answer::Cells(PeerCells { cells: self.block() }),
            Ask::NextPage(page) => {
                let after = match page.after.is_empty() {
                    true => None,
                    false => Some(sync_proto::id(&page.after).map_err(|e| PeerError::bad(&e))?),
                };
                self.page(after).await?
            }
            Ask::Trees(asked) => self.trees(asked.asked).await?,
            Ask::Ids(ids) => {
                let max = limits::PEER_IDS_MAX;
                let ids = self.read(move |tx, space| Ok(tx.entry_ids(space, Seq(ids.after), max)?)).await?;
                let ids: Vec<u8> = ids.iter().flat_map(|(_, _, id)| *id.as_bytes()).collect();
                Answer::Ids(PeerIdList { ids: ids.into() })
            }
            Ask::Entries(entries) => {
                let after = Seq(entries.after);
                let (most, bytes) = (limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX);
                let rows = self.read(move |tx, space| Ok(tx.entries(space, after, most, bytes)?)).await?;
                let records = rows.into_iter().map(|row| row.record.into()).collect();
                Answer::Entries(PeerEntryList { records })
            }
        })
    }

    /// Reads as a member may, out of the way of other tasks.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTx<'_>, sync_core::ids::SpaceId) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, PeerError> {
        let (space, peer) = (Arc::clone(&self.space), self.peer);
        space.require_member(&peer)?;
        let (store, id) = (space.shared.store.clone(), space.id);
        let read = move || {
            store.read(|tx| {
                let acl = tx.acl(id)?.ok_or(ReadError::UnknownSpace(id))?;
                match acl.members.contains_key(&peer.account) {
                    true => read(tx, id).map(Some),
                    false => Ok(None),
                }
            })
        };
        let read = space.shared.host.blocking(read).await;
        let read: Result<Option<T>, ReadError> =
            read.map_err(|e| PeerError::Local(crate::error::CallError::Broken(e.to_string())))?;
        read?.ok_or(PeerError::NotAMember { account: peer.account })
    }

    async fn compare(&mut self) -> Result<Answer, PeerError> {
        let mut sketch = Sketch::empty(self.key.clone(), limits::HEADSYNC_SKETCH_CELLS);
        let (position, unlogged, receipt, sketch) = self
            .read(move |tx, space| {
                tx.each_element(space, |element| sketch.insert(&element))?;
                let position = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position;
                Ok((position, unlogged(tx, space)?, provable(tx, space)?, sketch))
            })
            .await?;
        let elements = sketch.elements();
        self.sketch = Some((sketch, 0));
        Ok(Answer::State(PeerState {
            seq: position.seq.0,
            chain: position.chain.to_bytes(),
            elements,
            cells: self.block(),
            unlogged,
            receipt: receipt.map(|receipt| receipt.to_export()),
        }))
    }

    /// The next block, as far as the sketch reaches.
    fn block(&mut self) -> Bytes {
        let Some((sketch, sent)) = &mut self.sketch else { return Bytes::new() };
        let block = block_after(*sent).unwrap_or(*sent..*sent);
        let cells = sketch.cells().get(block.clone()).unwrap_or_default();
        *sent = block.end;
        encode_cells(cells, block.start, sketch.elements()).into()
    }

    async fn page(&self, after: Option<TreeId>) -> Result<Answer, PeerError> {
        let max = limits::HEADSYNC_PAGE_MAX;
        let mut elements = self.read(move |tx, space| Ok(tx.elements(space, after, max + 1)?)).await?;
        let last = elements.len() <= max;
        elements.truncate(max);
        Ok(Answer::Page(PeerPage { elements: elements.iter().map(PeerElement::from).collect(), last }))
    }

    async fn trees(&self, asked: Vec<PeerTree>) -> Result<Answer, PeerError> {
        let asked: Vec<Asked> = asked.into_iter().map(Asked::try_from).collect::<Result<_, _>>()?;
        let states = self.read(move |tx, space| {
            let mut states = PeerTreeStates::default();
            let mut room = limits::BATCH_BYTES_MAX;
            for asked in asked {
                let told = asked.told(tx, space)?;
                let bytes: usize = told.iter().map(prost::Message::encoded_len).sum();
                if bytes > room && states.answered > 0 {
                    break;
                }
                room = room.saturating_sub(bytes);
                states.answered += 1;
                states.trees.extend(told);
            }
            Ok(states)
        });
        Ok(Answer::Trees(states.await?))
    }
}

/// One tree that is asked for, or what all trees begin with.
enum Asked {
    Tree(TreeId, Vec<ChangeId>),
    Prefix(TreePrefix),
}

impl TryFrom<PeerTree> for Asked {
    type Error = PeerError;

    fn try_from(asked: PeerTree) -> Result<Self, PeerError> {
        if let Ok(prefix) = <[u8; 8]>::try_from(asked.tree.as_ref()) {
            return Ok(Self::Prefix(TreePrefix(prefix)));
        }
        if asked.heads.len() > limits::HEADS_MAX {
            return Err(PeerError::BadAnswer("more heads than a tree has".to_owned()));
        }
        let heads: Result<Vec<ChangeId>, _> = asked.heads.iter().map(|head| sync_proto::id(head)).collect();
        let tree = sync_proto::id(&asked.tree).map_err(|e| PeerError::bad(&e))?;
        Ok(Self::Tree(tree, heads.map_err(|e| PeerError::bad(&e))?))
    }
}

impl Asked {
    fn told(&self, tx: &ReadTx<'_>, space: sync_core::ids::SpaceId) -> Result<Vec<PeerTreeState>, ReadError> {
        match self {
            Self::Tree(tree, heads) => Ok(vec![state_of(tx, space, *tree, heads)?]),
            Self::Prefix(prefix) => {
                let mut told = Vec::new();
                let named = tx.elements_with(space, *prefix)?;
                for tree in named.iter().filter_map(Element::key).take(TREES_OF_PREFIX_MAX) {
                    told.push(state_of(tx, space, tree, &[])?);
                }
                Ok(told)
            }
        }
    }
}

fn state_of(
    tx: &ReadTx<'_>,
    space: sync_core::ids::SpaceId,
    tree: TreeId,
    theirs: &[ChangeId],
) -> Result<PeerTreeState, ReadError> {
    let mut state = PeerTreeState { tree: tree.to_bytes(), ..PeerTreeState::default() };
    if let Some(known) = tx.tree(space, tree)? {
        state.heads = known.heads.iter().map(|head| head.to_bytes()).collect();
        state.purged_by = known.purged.map_or_else(Bytes::new, |purge| purge.by.to_bytes());
    }
    for head in theirs {
        if tx.change(space, tree, *head)?.is_none() {
            state.unknown.push(head.to_bytes());
        }
    }
    Ok(state)
}

/// What we wrote and no log has, by tree.
fn unlogged(tx: &ReadTx<'_>, space: sync_core::ids::SpaceId) -> Result<Vec<pb::TreeHeads>, ReadError> {
    let mut trees: BTreeMap<TreeId, Vec<Bytes>> = BTreeMap::new();
    for write in tx.pending(space, None, limits::IDS_PER_REQUEST_MAX)? {
        trees.entry(write.tree).or_default().push(write.record.id().to_bytes());
    }
    Ok(trees.into_iter().map(|(tree, heads)| pb::TreeHeads { tree: tree.to_bytes(), heads }).collect())
}

/// The home's last receipt, if our log reaches it and it speaks of our log.
fn provable(tx: &ReadTx<'_>, space: sync_core::ids::SpaceId) -> Result<Option<SignedReceipt>, ReadError> {
    let kept = tx.node_state(space)?.receipt;
    let receipt = kept.and_then(|bytes| SignedReceipt::from_text(std::str::from_utf8(&bytes).ok()?).ok());
    let Some(receipt) = receipt.filter(|receipt| receipt.body().durable) else { return Ok(None) };
    Ok((tx.position_at(space, receipt.body().seq)? == Some(receipt.position())).then_some(receipt))
}
