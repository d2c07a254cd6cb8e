//! Repush: what this node once signed for and lost comes back, in its old order.
//!
//! Whoever brings a durable receipt of this authority, and the ids that lead from this node's log to it, may bring exactly
//! those records: the node's own signature vouches for them, so it does not matter who brings them, and its conditions for new
//! records do not apply. The rules do. Nothing is held of the records but one message.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{AccountId, EntryId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{Position, Submission};
use sync_core::receipt::SignedReceipt;
use sync_core::record::{AclContent, RawRecord, VerifiedRecord, verify_many};
use sync_proto::status::Failure;
use sync_proto::v1::{
    RepushCommon, RepushIds, RepushOpen, RepushReady, RepushRecords, RepushRequest, RepushResponse, RepushTaken,
    repush_request, repush_response,
};
use sync_proto::{WireError, id, required};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Streaming;
use tracing::{Span, error, info};

use super::{State, next};
use crate::answers::Answers;
use crate::failure::CallError;
use crate::gate::{Common, Lost, LostEntry};
use crate::metrics;
use crate::session::Session;

type Ask = repush_request::Message;
type Answer = repush_response::Message;

/// Who brings something back at present: [`limits::REPUSHES_MAX`] at a time, and each account once.
#[derive(Debug)]
pub(crate) struct Turns {
    room: Arc<Semaphore>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
}

/// A turn; over when dropped.
#[derive(Debug)]
struct Turn {
    account: AccountId,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
    _room: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(limits::REPUSHES_MAX)), accounts: Arc::default() }
    }
}

impl Turns {
    fn take(&self, account: AccountId) -> Result<Turn, CallError> {
        let busy = || Failure::new(Code::Overloaded, "others bring back what was lost").retry_after(1000);
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| busy())?;
        if !self.accounts.lock().unwrap_or_else(PoisonError::into_inner).insert(account) {
            return Err(busy().into());
        }
        Ok(Turn { account, accounts: Arc::clone(&self.accounts), _room: room })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.account);
    }
}

pub(super) async fn repush(
    state: Arc<State>,
    session: Session,
    mut requests: Streaming<RepushRequest>,
    answers: Answers<RepushResponse>,
) -> Result<(), CallError> {
    let Some(Ask::Open(open)) = message(&mut requests).await? else {
        return Err(malformed("a re-push begins with Open"));
    };
    let (space, receipt, ladder) = read_open(&state, open)?;
    Span::current().record("space", space.short());
    let Common { position: common, history, histories } = state.gate.common_with(space, ladder).await?;
    let history = Bytes::copy_from_slice(&history.0);
    send(&answers, Answer::Common(RepushCommon { common_seq: common.seq.0, history, histories })).await?;
    if common == receipt.position() {
        return Ok(());
    }
    // Who holds no such receipt takes nobody's turn.
    let _turn = state.repushing.take(session.account())?;
    let bringing = bring_back(&state, &session, (space, receipt, common), &mut requests, &answers);
    tokio::time::timeout(limits::REPUSH_TURN_MAX, bringing).await.unwrap_or_else(|_| Err(turn_over()))
}

async fn bring_back(
    state: &State,
    session: &Session,
    (space, receipt, common): (SpaceId, SignedReceipt, Position),
    requests: &mut Streaming<RepushRequest>,
    answers: &Answers<RepushResponse>,
) -> Result<(), CallError> {
    let Some(mut lost) = read_ids(state, requests, common, &receipt).await? else { return Ok(()) };
    let from = state.gate.meet_lost(space, &mut lost).await?;
    send(answers, Answer::Ready(RepushReady { from_seq: from.0 })).await?;
    info!(space = %space.short(), from = from.0, to = receipt.body().seq.0, account = %session.account().short(),
        "what was lost comes back");
    let mut next_seq = from.next();
    while let Some(ask) = message_in_time(requests).await? {
        let Ask::Records(records) = ask else { return Err(malformed("after Ready come records")) };
        let (entries, after) = read_records(state, &lost, next_seq, records).await?;
        next_seq = after;
        let (taken, kept) = state.gate.take_back(space, lost, entries).await?;
        lost = kept;
        metrics::repushed(taken.appended);
        send(answers, Answer::Taken(RepushTaken { seq: taken.to.0 })).await?;
    }
    Ok(())
}

async fn message(requests: &mut Streaming<RepushRequest>) -> Result<Option<Ask>, CallError> {
    let Some(request) = next(requests).await? else { return Ok(None) };
    Ok(Some(required("message", request.message)?))
}

/// The same while others wait for the turn.
async fn message_in_time(requests: &mut Streaming<RepushRequest>) -> Result<Option<Ask>, CallError> {
    tokio::time::timeout(limits::UNARY_TIMEOUT, message(requests)).await.unwrap_or_else(|_| Err(turn_over()))
}

fn turn_over() -> CallError {
    let text = "others wait to bring back what was lost: go on where this ended";
    Failure::new(Code::Overloaded, text).retry_after(1000).into()
}

async fn send(answers: &Answers<RepushResponse>, message: Answer) -> Result<(), CallError> {
    answers.send(RepushResponse { message: Some(message) }).await
}

fn malformed(text: &str) -> CallError {
    CallError::new(Code::Malformed, text)
}

/// A receipt of this authority for this space, and a ladder that begins with it.
fn read_open(state: &State, open: RepushOpen) -> Result<(SpaceId, SignedReceipt, Vec<Position>), CallError> {
    let space: SpaceId = id(&open.space)?;
    let ladder = open.read_ladder()?;
    let receipt = SignedReceipt::from_export(required("receipt", open.receipt)?)
        .map_err(|error| CallError::new(Code::BadSignature, format!("the receipt proves nothing: {error}")))?;
    let body = receipt.body();
    if body.authority != state.identity.authority() || body.space != space || !body.durable {
        let text = "a re-push opens with a durable receipt of this authority for this space";
        return Err(CallError::new(Code::Forbidden, text));
    }
    if ladder.first() != Some(&receipt.position()) {
        return Err(malformed("the ladder begins with the receipt"));
    }
    Ok((space, receipt, ladder))
}

/// The ids from what is common up to the receipt; `None` if the caller has no more to say.
async fn read_ids(
    state: &State,
    requests: &mut Streaming<RepushRequest>,
    common: Position,
    receipt: &SignedReceipt,
) -> Result<Option<Lost>, CallError> {
    let expected = receipt.body().seq.0.saturating_sub(common.seq.0);
    if expected > limits::REPUSH_IDS_MAX as u64 {
        let max = limits::REPUSH_IDS_MAX;
        return Err(CallError::new(Code::TooLarge, format!("{expected} entries are lost; a re-push brings {max}")));
    }
    let (mut ids, mut ends) = (Vec::new(), Ends::default());
    loop {
        let Some(ask) = message_in_time(requests).await? else { return Ok(None) };
        let Ask::Ids(page) = ask else { return Err(malformed("after Open come ids")) };
        let last = page.last;
        read_ids_page(state, page, &mut ids, &mut ends).await?;
        if ids.len() as u64 > expected {
            return Err(malformed("more ids than lead to the receipt"));
        }
        if last {
            break;
        }
    }
    let end = ids.iter().fold(common, |at, id| at.after(id));
    if end != receipt.position() {
        return Err(CallError::new(Code::LogDiverged, "the ids do not lead from this node's log to the receipt"));
    }
    Ok(Some(Lost::new(common, ids, ends.trees, ends.space)))
}

/// What ends among the lost entries: the content before it is gone for good.
#[derive(Default)]
struct Ends {
    trees: BTreeSet<TreeId>,
    space: bool,
}

/// What a page says grows with its ids, which are counted: so nobody makes the node keep more than those.
async fn read_ids_page(
    state: &State,
    page: RepushIds,
    ids: &mut Vec<EntryId>,
    ends: &mut Ends,
) -> Result<(), CallError> {
    let (actual, max) = (page.ids.len(), limits::REPUSH_IDS_PER_MESSAGE_MAX);
    if actual > max {
        return Err(WireError::TooMany { field: "ids", actual, max }.into());
    }
    if actual == 0 && !page.last {
        return Err(malformed("a page without ids"));
    }
    let before = ids.len();
    for bytes in &page.ids {
        ids.push(id(bytes)?);
    }
    let told: BTreeSet<EntryId> = ids[before..].iter().copied().collect();
    let raws = page.ends.into_iter().map(RawRecord::try_from).collect::<Result<Vec<_>, _>>()?;
    if raws.len() > told.len() || !raws.iter().all(|raw| told.contains(&raw.id())) {
        return Err(malformed("a record that ends a tree is not among the ids of its page"));
    }
    for record in verified(state, raws).await? {
        match &record {
            VerifiedRecord::Tombstone(tombstone) => drop(ends.trees.insert(tombstone.body().tree)),
            VerifiedRecord::Acl(acl) if acl.body().contents.iter().any(|c| matches!(c, AclContent::DeleteSpace)) => {
                ends.space = true;
            }
            VerifiedRecord::SpaceHeader(_)
            | VerifiedRecord::AclRoot(_)
            | VerifiedRecord::Acl(_)
            | VerifiedRecord::TreeRoot(_)
            | VerifiedRecord::Change(_) => return Err(malformed("a record that ends nothing")),
        }
    }
    Ok(())
}

/// The records of the next ids, verified; and the seq after them.
async fn read_records(
    state: &State,
    lost: &Lost,
    from: Seq,
    records: RepushRecords,
) -> Result<(Vec<LostEntry>, Seq), CallError> {
    let (actual, max) = (records.records.len(), limits::PUSH_ITEMS_MAX + 1);
    if actual > max {
        return Err(WireError::TooMany { field: "records", actual, max }.into());
    }
    if actual == 0 {
        return Err(malformed("a message without records"));
    }
    let raws = records.records.into_iter().map(RawRecord::try_from).collect::<Result<Vec<_>, _>>()?;
    for (raw, seq) in raws.iter().zip(from.0..) {
        if lost.id_at(Seq(seq)) != Some(raw.id()) {
            return Err(malformed("a record that is not the next one"));
        }
    }
    pair(from, verified(state, raws).await?)
}

/// All of them, verified beside the runtime.
async fn verified(state: &State, raws: Vec<RawRecord>) -> Result<Vec<VerifiedRecord>, CallError> {
    if raws.is_empty() {
        return Ok(Vec::new());
    }
    let _turn = state.verifying.acquire().await.map_err(|_closed| CallError::shutting_down())?;
    let mut rng = state.host.rng();
    let verified = state.host.blocking(move || verify_many(raws, &mut rng)).await.map_err(|failed| {
        error!(error = %failed, "verification panicked");
        CallError::new(Code::StoreFailed, "the node failed to verify")
    })?;
    Ok(verified.into_iter().collect::<Result<_, _>>()?)
}

/// Each root with the change right after it.
fn pair(from: Seq, records: Vec<VerifiedRecord>) -> Result<(Vec<LostEntry>, Seq), CallError> {
    let mut entries = Vec::with_capacity(records.len());
    let (mut seq, mut root) = (from, None);
    for record in records {
        if let VerifiedRecord::TreeRoot(_) = &record {
            if root.replace(record).is_some() {
                return Err(malformed("a root without its first change"));
            }
            continue;
        }
        let ids = root.iter().map(VerifiedRecord::id).chain([record.id()]).collect::<Vec<_>>();
        let submission = Submission::pair(root.take(), record)?;
        let first = seq;
        seq = Seq(seq.0 + ids.len() as u64);
        entries.push(LostEntry { first, ids, submission });
    }
    if root.is_some() {
        return Err(malformed("a root without its first change"));
    }
    Ok((entries, seq))
}
