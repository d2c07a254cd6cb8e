//! The side that asks: compares, and takes what the home signed for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sync_core::ids::{ChangeId, EntryId, Seq, TombstoneId, TreeId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::receipt::SignedReceipt;
use sync_core::reconcile::{Asking, Difference, Element, Next, SymbolKey, difference};
use sync_core::record::{Kind, RawRecord, TreeHeads};
use sync_core::session::{Meeting, MeetingSide, sign_meeting, verify_meeting};
use sync_host::Stream;
use sync_proto::peer_v1::peer_request::Message as Ask;
use sync_proto::peer_v1::peer_response::Message as Answer;
use sync_proto::peer_v1::{
    PeerCompare, PeerEntries, PeerIds, PeerMore, PeerNextPage, PeerProof, PeerRefusal, PeerRequest, PeerResponse,
    PeerState, PeerTree, PeerTreeState, PeerTrees,
};
use sync_proto::v1;
use tokio::sync::oneshot;

use super::frames::Frames;
use super::{PeerError, PeerIdentity};
use crate::error::ReadError;
use crate::space::{Inbound, SpaceInner};

/// Trees that are asked for in one message, with so many heads.
const TREES_ASKED_MAX: usize = 256;
const HEADS_ASKED_MAX: usize = 4096;

/// Another client of the space, met with [`crate::Space::meet`]. Dropping it ends the meeting.
pub struct Peer {
    space: Arc<SpaceInner>,
    frames: Frames,
    who: PeerIdentity,
    meeting: Meeting,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("space", &self.space.id).field("who", &self.who).finish_non_exhaustive()
    }
}

/// How two replicas stand to each other, as of one moment each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The end of the log here.
    pub here: Position,
    /// The end of the other client's log, as it says.
    pub there: Position,
    /// True if both ACLs end with the same record.
    pub same_acl: bool,
    /// Trees whose logged heads differ, by id.
    pub trees: Vec<TreeComparison>,
    /// What the other client wrote and no log has.
    pub unlogged: Vec<TreeHeads>,
}

/// One tree that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeComparison {
    pub tree: TreeId,
    /// As our log says; `None` if it does not know the tree.
    pub here: Option<TreeStands>,
    /// As the other client says.
    pub there: Option<TreeStands>,
    /// Heads of the other side that are not in the log here: *unlogged*, until the home's log has them here too.
    pub unlogged_here: Vec<ChangeId>,
    /// Heads of ours that are not in the other side's log.
    pub unlogged_there: Vec<ChangeId>,
}

/// A tree on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeStands {
    pub heads: Vec<ChangeId>,
    pub purged_by: Option<TombstoneId>,
}

/// What was taken from another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    /// The end of the log here before.
    pub from: Seq,
    /// The end of the log here now.
    pub to: Seq,
}

impl Comparison {
    /// True if nothing differs and nothing is unlogged.
    #[must_use]
    pub const fn is_same(&self) -> bool {
        self.same_acl && self.trees.is_empty() && self.unlogged.is_empty()
    }
}

impl Peer {
    pub(super) async fn meet(space: Arc<SpaceInner>, stream: Stream) -> Result<Self, PeerError> {
        let meet = async {
            let mut frames = Frames::new(stream);
            let ours: [u8; 32] = space.shared.host.random();
            let Answer::Hello(hello) = ask(&mut frames, Ask::Hello(space.hello(ours, None))).await? else {
                return Err(PeerError::BadAnswer("the first answer is Hello".to_owned()));
            };
            let signature = hello.signature.clone();
            let (who, theirs) = space.read_hello(hello)?;
            let identity = &space.shared.identity;
            let meeting = space.meeting(identity.device(), who.device, ours, theirs);
            verify_meeting(MeetingSide::Serves, &meeting, &signature).map_err(|_| PeerError::BadProof)?;
            let signature = sign_meeting(&identity.device_key, MeetingSide::Asks, &meeting).to_vec().into();
            let Answer::Welcome(_) = ask(&mut frames, Ask::Proof(PeerProof { signature })).await? else {
                return Err(PeerError::BadAnswer("a proof is answered with Welcome".to_owned()));
            };
            Ok(Self { space: Arc::clone(&space), frames, who, meeting })
        };
        tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, meet).await.map_err(|_| PeerError::TimedOut)?
    }

    /// Who is on the other side.
    #[must_use]
    pub const fn who(&self) -> PeerIdentity {
        self.who
    }

    /// Compares what both derived from their logs. Changes nothing.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn compare(&mut self) -> Result<Comparison, PeerError> {
        let state = self.state().await?;
        let there = position(&state)?;
        let found = self.difference(&state).await?;
        let here = self.space.position()?;
        let trees = self.told(&found).await?;
        let unlogged: Result<Vec<TreeHeads>, _> = state.unlogged.into_iter().map(TreeHeads::try_from).collect();
        let unlogged = unlogged.map_err(|e| PeerError::bad(&e))?;
        Ok(Comparison { here, there, same_acl: !found.acl, trees, unlogged })
    }

    /// Takes the entries that the other client has beyond the log here, as far as a durable receipt of the home proves them.
    /// They are judged by the rules as if they came from the home.
    ///
    /// # Errors
    /// [`PeerError::Unproven`] if there is more and no proof of it; nothing that is not proven is kept.
    /// [`PeerError::Diverged`] if the home signed for another log than ours: where that proves something against it, it is
    /// accused ([`crate::Space::accusations`]).
    pub async fn pull(&mut self) -> Result<Pulled, PeerError> {
        let from = self.space.position()?.seq;
        loop {
            let state = self.state().await?;
            let here = self.space.position()?;
            let (there, proof) = (state.seq, self.proof(state)?);
            if let Some(receipt) = &proof {
                self.is_of_our_log(receipt).await?;
            }
            if there <= here.seq.0 {
                return Ok(Pulled { from, to: here.seq });
            }
            let Some(receipt) = proof.filter(|receipt| receipt.body().seq > here.seq) else {
                return match here.seq > from {
                    true => Ok(Pulled { from, to: here.seq }),
                    false => Err(PeerError::Unproven { here: here.seq }),
                };
            };
            let ids = self.proven_ids(here, &receipt).await?;
            self.take(here.seq, ids, receipt.body().seq).await?;
        }
    }

    async fn ask(&mut self, message: Ask) -> Result<Answer, PeerError> {
        ask(&mut self.frames, message).await
    }

    async fn state(&mut self) -> Result<PeerState, PeerError> {
        let Answer::State(state) = self.ask(Ask::Compare(PeerCompare {})).await? else { return Err(unexpected()) };
        Ok(state)
    }

    // ---- comparing --------------------------------------------------------------------------------------------------

    async fn difference(&mut self, state: &PeerState) -> Result<Difference, PeerError> {
        let key = SymbolKey::new(&self.meeting.symbol_seed());
        let mut asking = Asking::new(key.clone(), state.elements);
        let ours = self.space.own_sketch(key.clone(), limits::HEADSYNC_SKETCH_CELLS).await?;
        let mut block = state.cells.clone();
        loop {
            if block.is_empty() {
                return self.listed().await;
            }
            asking.take(&block).map_err(|e| PeerError::bad(&e))?;
            if asking.cells() > ours.sketch.cells().len() {
                return self.listed().await;
            }
            match asking.next(&ours.sketch) {
                Ok(Next::Decoded(decoded)) => {
                    let candidates = self.space.elements_named(&decoded)?.0;
                    return match decoded.resolve(&key, &candidates) {
                        Ok(found) => Ok(found),
                        // Our log moved on meanwhile, or somebody made elements that do not decode.
                        Err(_) => self.listed().await,
                    };
                }
                Ok(Next::More) => {}
                Ok(Next::List) | Err(_) => return self.listed().await,
            }
            let Answer::Cells(cells) = self.ask(Ask::More(PeerMore {})).await? else { return Err(unexpected()) };
            block = cells.cells;
        }
    }

    async fn listed(&mut self) -> Result<Difference, PeerError> {
        let mut theirs: Vec<Element> = Vec::new();
        loop {
            let after = theirs.last().and_then(Element::key).map_or_else(Vec::new, |t| t.as_bytes().to_vec());
            let Answer::Page(page) = self.ask(Ask::NextPage(PeerNextPage { after: after.into() })).await? else {
                return Err(unexpected());
            };
            for element in &page.elements {
                let element = Element::try_from(element).map_err(|e| PeerError::bad(&e))?;
                if theirs.last().is_some_and(|last| last.key() >= element.key()) {
                    return Err(PeerError::BadAnswer("pages out of order".to_owned()));
                }
                theirs.push(element);
            }
            if theirs.len() > limits::PEER_ELEMENTS_MAX {
                return Err(PeerError::BadAnswer(format!("more than {} elements", limits::PEER_ELEMENTS_MAX)));
            }
            if page.last || page.elements.is_empty() {
                break;
            }
        }
        Ok(difference(&self.space.own_elements().await?.1, &theirs))
    }

    /// How the trees of a difference stand on both sides.
    async fn told(&mut self, found: &Difference) -> Result<Vec<TreeComparison>, PeerError> {
        let mut wanted = VecDeque::new();
        for tree in &found.trees {
            let heads = self.space.stands(*tree)?.map_or_else(Vec::new, |stands| stands.heads);
            wanted.push_back(PeerTree {
                tree: tree.to_bytes(),
                heads: heads.iter().map(|head| head.to_bytes()).collect(),
            });
        }
        let prefixes: BTreeSet<_> = found.elsewhere.iter().collect();
        wanted.extend(prefixes.into_iter().map(|p| PeerTree { tree: p.0.to_vec().into(), heads: Vec::new() }));
        let mut trees = BTreeMap::new();
        while !wanted.is_empty() {
            let mut heads = 0;
            let fits = |tree: &&PeerTree| {
                heads += tree.heads.len();
                heads <= HEADS_ASKED_MAX
            };
            let asked: Vec<PeerTree> = wanted.iter().take(TREES_ASKED_MAX).take_while(fits).cloned().collect();
            let most = asked.len();
            let Answer::Trees(answered) = self.ask(Ask::Trees(PeerTrees { asked })).await? else {
                return Err(unexpected());
            };
            let count = answered.answered as usize;
            if !(1..=most).contains(&count) {
                return Err(PeerError::BadAnswer("other trees than were asked for".to_owned()));
            }
            wanted.drain(..count);
            for state in answered.trees {
                let compared = self.compare_tree(state)?;
                if compared.here != compared.there {
                    trees.insert(compared.tree, compared);
                }
            }
        }
        Ok(trees.into_values().collect())
    }

    fn compare_tree(&self, state: PeerTreeState) -> Result<TreeComparison, PeerError> {
        let bad = |e: sync_proto::WireError| PeerError::bad(&e);
        let ids = |ids: &[bytes::Bytes]| ids.iter().map(|id| sync_proto::id(id)).collect::<Result<Vec<ChangeId>, _>>();
        let tree: TreeId = sync_proto::id(&state.tree).map_err(bad)?;
        let (heads, unlogged_there) = (ids(&state.heads).map_err(bad)?, ids(&state.unknown).map_err(bad)?);
        let purged_by = match state.purged_by.is_empty() {
            true => None,
            false => Some(sync_proto::id(&state.purged_by).map_err(bad)?),
        };
        let there = Some(TreeStands { heads, purged_by }).filter(|s| !s.heads.is_empty() || s.purged_by.is_some());
        let theirs = there.as_ref().map_or(&[][..], |stands| &stands.heads);
        let unlogged_here = self.space.not_in_the_log(tree, theirs)?;
        Ok(TreeComparison { tree, here: self.space.stands(tree)?, there, unlogged_here, unlogged_there })
    }

    // ---- pulling ----------------------------------------------------------------------------------------------------

    /// The other side's receipt, if it is the home's, of this space, and durable.
    fn proof(&self, state: PeerState) -> Result<Option<SignedReceipt>, PeerError> {
        let Some(export) = state.receipt else { return Ok(None) };
        let receipt = SignedReceipt::from_export(export).map_err(|e| PeerError::bad(&e))?;
        let body = receipt.body();
        let ours = body.space == self.space.id && Some(body.authority) == self.space.acl()?.home;
        Ok((ours && body.durable).then_some(receipt))
    }

    /// The ids after `here` up to the receipt, as many as are taken at a time. All of them were followed to its chain.
    async fn proven_ids(&mut self, here: Position, receipt: &SignedReceipt) -> Result<Vec<EntryId>, PeerError> {
        let mut at = here;
        let mut kept = Vec::new();
        while at.seq < receipt.body().seq {
            let Answer::Ids(ids) = self.ask(Ask::Ids(PeerIds { after: at.seq.0 })).await? else {
                return Err(unexpected());
            };
            let ids = ids.ids;
            let (ids, rest) = ids.as_chunks::<32>();
            if ids.is_empty() || !rest.is_empty() || ids.len() > limits::PEER_IDS_MAX {
                return Err(PeerError::BadAnswer("no ids up to its receipt".to_owned()));
            }
            for id in ids {
                let id = EntryId::from_hash(*id);
                at = at.after(&id);
                if kept.len() < limits::PEER_PULL_MAX {
                    kept.push(id);
                }
                if at.seq == receipt.body().seq {
                    break;
                }
            }
        }
        if at != receipt.position() {
            // The home told two stories, or lost what one of us has; or the other one lies. No log here can tell.
            return Err(PeerError::Diverged { at: at.seq });
        }
        Ok(kept)
    }

    /// What the home signed for another log than ours is held against the home, not against who shows it.
    async fn is_of_our_log(&self, receipt: &SignedReceipt) -> Result<(), PeerError> {
        let diverged = PeerError::Diverged { at: receipt.body().seq };
        let own = self.space.chain_at(receipt.body().seq)?;
        if own.is_none_or(|chain| chain == receipt.body().chain) {
            return Ok(());
        }
        self.space.compare_receipt(receipt).await.map_err(|error| PeerError::NotTaken(error.to_string()))?;
        Err(diverged)
    }

    /// Takes the entries with these ids.
    async fn take(&mut self, after: Seq, ids: Vec<EntryId>, durable: Seq) -> Result<(), PeerError> {
        let mut ids = VecDeque::from(ids);
        let mut at = after;
        while !ids.is_empty() {
            let Answer::Entries(entries) = self.ask(Ask::Entries(PeerEntries { after: at.0 })).await? else {
                return Err(unexpected());
            };
            let records = entries.records;
            let mut entries = Vec::new();
            let mut is_root = false;
            for record in records.into_iter().take(ids.len()) {
                let read = RawRecord::try_from(record.clone()).map_err(|e| PeerError::bad(&e))?;
                if ids.pop_front() != Some(read.id()) {
                    return Err(PeerError::BadAnswer(format!("entry {} is not the home's", at.next())));
                }
                is_root = read.kind == Kind::TreeRoot;
                at = at.next();
                entries.push(v1::LogEntry { seq: at.0, entry: Some(v1::log_entry::Entry::Record(record)) });
            }
            if entries.is_empty() {
                return Err(PeerError::BadAnswer("no entries up to its receipt".to_owned()));
            }
            if ids.is_empty() && is_root {
                // The limit fell between a root and its first change: the next pull brings both.
                entries.pop();
            }
            self.space.relay(entries, durable).await?;
        }
        Ok(())
    }
}

async fn ask(frames: &mut Frames, message: Ask) -> Result<Answer, PeerError> {
    let request = PeerRequest { message: Some(message) };
    tokio::time::timeout(limits::UNARY_TIMEOUT, frames.send(&request)).await.map_err(|_| PeerError::TimedOut)??;
    let answer: Option<PeerResponse> = frames.receive(limits::UNARY_TIMEOUT).await?;
    match answer.ok_or(PeerError::Ended)?.message {
        Some(Answer::Refused(refused)) => {
            let reason = PeerRefusal::try_from(refused.reason).unwrap_or(PeerRefusal::Unspecified);
            Err(PeerError::Refused { reason: reason.as_str_name(), message: refused.message })
        }
        Some(answer) => Ok(answer),
        None => Err(PeerError::BadAnswer("an empty answer".to_owned())),
    }
}

fn unexpected() -> PeerError {
    PeerError::BadAnswer("another answer than was asked for".to_owned())
}

fn position(state: &PeerState) -> Result<Position, PeerError> {
    let chain = sync_proto::id(&state.chain).map_err(|e| PeerError::bad(&e))?;
    Ok(Position { seq: Seq(state.seq), chain })
}

impl SpaceInner {
    fn position(&self) -> Result<Position, ReadError> {
        self.shared.store.read(|tx| Ok(tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?.position))
    }

    /// How a tree stands in the log here.
    fn stands(&self, tree: TreeId) -> Result<Option<TreeStands>, ReadError> {
        let state = self.shared.store.read(|tx| tx.tree(self.id, tree))?;
        Ok(state.map(|state| TreeStands {
            heads: state.heads.into_iter().collect(),
            purged_by: state.purged.map(|purge| purge.by),
        }))
    }

    /// Those of `changes` that the log here has not.
    fn not_in_the_log(&self, tree: TreeId, changes: &[ChangeId]) -> Result<Vec<ChangeId>, ReadError> {
        self.shared.store.read(|tx| {
            let mut unlogged = Vec::new();
            for change in changes {
                if tx.change(self.id, tree, *change)?.is_none() {
                    unlogged.push(*change);
                }
            }
            Ok(unlogged)
        })
    }

    /// Hands entries of the home to the task that takes what the home itself sends, and waits until they are in the log.
    async fn relay(&self, entries: Vec<v1::LogEntry>, durable: Seq) -> Result<(), PeerError> {
        let (done, taken) = oneshot::channel();
        let gone = || PeerError::NotTaken("the space is closed".to_owned());
        self.inbox.send(Inbound::Relayed { entries, durable, done }).await.map_err(|_| gone())?;
        taken.await.map_err(|_| gone())?.map_err(PeerError::NotTaken)
    }
}
