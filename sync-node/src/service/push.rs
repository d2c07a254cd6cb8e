//! Push: records in, one verdict each out.
//!
//! Two halves run beside each other: one reads and verifies the next message while the other has the storage thread decide
//! the one before. Each message is one job: it stays whole when the caller goes away.

use std::sync::Arc;

use sync_core::ids::{EntryId, SpaceId};
use sync_core::limits;
use sync_core::log::Submission;
use sync_core::record::{RawRecord, VerifiedRecord, VerifyError, verify_many};
use sync_host::HostRng;
use sync_proto::status::Failure;
use sync_proto::v1::{Accepted, ErrorDetail, Known, PushItem, PushRequest, PushResponse, Verdict, verdict};
use sync_proto::{WireError, id, read_record};
use tokio::sync::mpsc;
use tonic::Streaming;
use tracing::{Instrument as _, Span, error};

use super::{State, about, next};
use crate::answers::Answers;
use crate::failure::CallError;
use crate::gate::{self, Taken};
use crate::metrics;
use crate::session::Session;

/// Verified messages that wait for the storage thread.
const VERIFIED_MAX: usize = 1;
/// Records that are verified at once on the task itself; more go to a thread for long work.
const VERIFY_INLINE_MAX: usize = 4;

/// A message after verification.
struct Batch {
    space: Result<SpaceId, WireError>,
    items: Vec<Item>,
}

struct Item {
    tag: u64,
    /// Ids of what came with it.
    ids: Vec<EntryId>,
    submission: Result<Submission, Failure>,
}

/// What is known of an item before its verdict.
struct Pending {
    tag: u64,
    ids: Vec<EntryId>,
    waits: Waits,
}

/// What a verdict waits for besides the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    ForNothing,
    /// An ACL record's verdict is given only after the fsync.
    ForTheDisk,
}

pub(super) async fn push(
    state: Arc<State>,
    session: Session,
    requests: Streaming<PushRequest>,
    answers: Answers<PushResponse>,
) -> Result<(), CallError> {
    let (verified, mut waiting) = mpsc::channel::<Batch>(VERIFIED_MAX);
    let storing = async {
        while let Some(batch) = waiting.recv().await {
            let span = batch.space.as_ref().map_or_else(|_| Span::none(), |space| about(*space));
            store(&state, &session, batch, &answers).instrument(span).await?;
        }
        Ok(())
    };
    tokio::try_join!(read(&state, requests, verified), storing).map(|((), ())| ())
}

async fn read(
    state: &State,
    mut requests: Streaming<PushRequest>,
    verified: mpsc::Sender<Batch>,
) -> Result<(), CallError> {
    while let Some(request) = next(&mut requests).await? {
        request.check()?;
        if verified.send(verify_request(state, request).await?).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn verify_request(state: &State, request: PushRequest) -> Result<Batch, CallError> {
    if request.items.len() <= VERIFY_INLINE_MAX {
        return Ok(verify_items(request, state.host.rng()));
    }
    let _turn = state.verifying.acquire().await.map_err(|_closed| CallError::shutting_down())?;
    let rng = state.host.rng();
    state.host.blocking(move || verify_items(request, rng)).await.map_err(|failed| {
        error!(error = %failed, "verification panicked");
        CallError::new(sync_core::code::Code::StoreFailed, "the node failed to verify")
    })
}

fn verify_items(request: PushRequest, mut rng: HostRng) -> Batch {
    let mut raws = Vec::with_capacity(request.items.len());
    let read: Vec<(u64, Result<Shape, Failure>)> =
        request.items.into_iter().map(|item| (item.tag, read_item(item, &mut raws))).collect();
    // Unpredictable to whoever made the records.
    let mut verified = verify_many(raws, &mut rng).into_iter();
    let items = read
        .into_iter()
        .map(|(tag, shape)| match shape {
            Ok(shape) => paired(tag, shape, &mut verified),
            Err(failure) => Item { tag, ids: Vec::new(), submission: Err(failure) },
        })
        .collect();
    Batch { space: id(&request.space), items }
}

/// How many records of an item are on their way through verification.
enum Shape {
    RecordOnly,
    WithRoot,
}

fn read_item(item: PushItem, raws: &mut Vec<RawRecord>) -> Result<Shape, Failure> {
    let failure = |error: WireError| Failure::from(&error);
    let root = item.root.map(RawRecord::try_from).transpose().map_err(|e| Failure::from(&e))?;
    let record = read_record("record", item.record).map_err(failure)?;
    let shape = if root.is_some() { Shape::WithRoot } else { Shape::RecordOnly };
    raws.extend(root);
    raws.push(record);
    Ok(shape)
}

fn paired(tag: u64, shape: Shape, verified: &mut impl Iterator<Item = Result<VerifiedRecord, VerifyError>>) -> Item {
    let mut next = || verified.next().expect("verification gives one verdict for each record");
    let root = match shape {
        Shape::RecordOnly => Ok(None),
        Shape::WithRoot => next().map(Some),
    };
    let record = next();
    let ids = [root.as_ref().ok().and_then(Option::as_ref), record.as_ref().ok()];
    let ids = ids.into_iter().flatten().map(VerifiedRecord::id).collect();
    let submission = match (root, record) {
        (Ok(root), Ok(record)) => Submission::pair(root, record).map_err(|reject| Failure::from(&reject)),
        (Err(error), _) | (_, Err(error)) => Err(Failure::from(&error)),
    };
    Item { tag, ids, submission }
}

async fn store(
    state: &State,
    session: &Session,
    batch: Batch,
    answers: &Answers<PushResponse>,
) -> Result<(), CallError> {
    let (pending, submissions): (Vec<_>, Vec<_>) = batch.items.into_iter().map(split).unzip();
    let pushed = match batch.space {
        Ok(space) => state.gate.push(session, space, submissions).await,
        Err(error) => Err(error.into()),
    };
    let (verdicts, disk) = match pushed {
        Ok(pushed) => pushed,
        // What concerns the whole message is every item's verdict; the stream goes on.
        Err(error) => return reject_all(&pending, error, answers).await,
    };
    let taken = pending.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_ok());
    session.note_pushed(taken.flat_map(|(item, _)| item.ids.iter().copied()));

    let (at_once, after_fsync): (Vec<_>, Vec<_>) =
        pending.iter().zip(verdicts).partition(|(item, verdict)| item.waits == Waits::ForNothing || verdict.is_err());
    send(at_once.into_iter().map(|(item, verdict)| verdict_to_wire(item.tag, verdict)), answers).await?;
    if after_fsync.is_empty() {
        return Ok(());
    }
    state.gate.durable(disk).await?;
    send(after_fsync.into_iter().map(|(item, verdict)| verdict_to_wire(item.tag, verdict)), answers).await
}

fn split(item: Item) -> (Pending, Result<Submission, Failure>) {
    let waits = match &item.submission {
        Ok(Submission::Acl(_)) => Waits::ForTheDisk,
        Ok(Submission::Change { .. } | Submission::Tombstone(_)) | Err(_) => Waits::ForNothing,
    };
    (Pending { tag: item.tag, ids: item.ids, waits }, item.submission)
}

async fn reject_all(pending: &[Pending], error: CallError, answers: &Answers<PushResponse>) -> Result<(), CallError> {
    let failure = error.into_failure();
    send(pending.iter().map(|item| verdict_to_wire(item.tag, Err(failure.clone()))), answers).await
}

async fn send(verdicts: impl Iterator<Item = Verdict>, answers: &Answers<PushResponse>) -> Result<(), CallError> {
    let verdicts: Vec<_> = verdicts.collect();
    if verdicts.is_empty() { Ok(()) } else { answers.send(PushResponse { verdicts }).await }
}

fn verdict_to_wire(tag: u64, verdict: gate::Verdict) -> Verdict {
    metrics::record(match &verdict {
        Ok(Taken::Accepted(_)) => "accepted",
        Ok(Taken::Known(_)) => "known",
        Err(failure) => failure.code.name(),
    });
    let outcome = match verdict {
        Ok(Taken::Accepted(seq)) => verdict::Outcome::Accepted(Accepted { seq: seq.0 }),
        Ok(Taken::Known(seq)) => verdict::Outcome::Known(Known { seq: seq.0 }),
        Err(failure) => verdict::Outcome::Rejected(ErrorDetail::from(&failure)),
    };
    Verdict { tag, outcome: Some(outcome) }
}

const _: () = assert!(limits::PUSH_ITEMS_MAX * 512 < limits::MESSAGE_BYTES_MAX, "verdicts fit one message");
