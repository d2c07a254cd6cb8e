//! HeadSync: one digest when nothing differs; cells, or sorted pages of elements, when something does.

use std::sync::Arc;

use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::reconcile::{block_after, encode_cells};
use sync_proto::v1::{
    HeadSyncCells, HeadSyncDifferent, HeadSyncElement, HeadSyncEqual, HeadSyncNextPage, HeadSyncNotComparable,
    HeadSyncOpen, HeadSyncPage, HeadSyncRequest, HeadSyncResponse, head_sync_request, head_sync_response,
};
use sync_proto::{array, id, required};
use tonic::Streaming;
use tracing::Instrument as _;

use super::{State, about, next};
use crate::answers::Answers;
use crate::failure::CallError;
use crate::gate::MemberView;
use crate::metrics;
use crate::session::Session;
use crate::sketches::{Found, Frozen};

type Answer = head_sync_response::Message;

pub(super) async fn head_sync(
    state: Arc<State>,
    session: Session,
    mut requests: Streaming<HeadSyncRequest>,
    answers: Answers<HeadSyncResponse>,
) -> Result<(), CallError> {
    let mut comparison: Option<Comparison> = None;
    while let Some(request) = next_while_held(&mut requests, &mut comparison).await? {
        let place = answers.reserve().await?;
        let opened = || CallError::new(Code::Malformed, "the first message is Open");
        let answer = match required("message", request.message)? {
            head_sync_request::Message::Open(open) => {
                let comparison = comparison.insert(Comparison { space: id(&open.space)?, cells: None });
                let span = about(comparison.space);
                comparison.compare(&state, &session, &open).instrument(span).await?
            }
            head_sync_request::Message::NextPage(page) => {
                let space = comparison.as_ref().ok_or_else(opened)?.space;
                list(&state, &session, space, &page).instrument(about(space)).await?
            }
            head_sync_request::Message::More(_) => {
                let comparison = comparison.as_mut().ok_or_else(opened)?;
                let span = about(comparison.space);
                comparison.more(&state, &session).instrument(span).await?
            }
        };
        place.send(HeadSyncResponse { message: Some(answer) });
    }
    Ok(())
}

/// The next message. A sketch that nobody asks for is not held for them.
async fn next_while_held(
    requests: &mut Streaming<HeadSyncRequest>,
    comparison: &mut Option<Comparison>,
) -> Result<Option<HeadSyncRequest>, CallError> {
    if let Some(held) = comparison.as_mut().filter(|comparison| comparison.cells.is_some()) {
        match tokio::time::timeout(limits::HEADSYNC_HELD_MAX, next(requests)).await {
            Ok(request) => return request,
            Err(_elapsed) => held.cells = None,
        }
    }
    next(requests).await
}

/// One comparison, from its `Open` to the next.
struct Comparison {
    space: SpaceId,
    cells: Option<Sent>,
}

/// All blocks come from one sketch: the log may move while they are sent.
struct Sent {
    from: Frozen,
    cells: usize,
}

/// What two digests say.
enum Compared {
    NotComparable(Seq),
    Equal(Seq),
    Different { seq: Seq, digest: [u8; 32], elements: u64 },
}

impl Comparison {
    async fn compare(&mut self, state: &State, session: &Session, open: &HeadSyncOpen) -> Result<Answer, CallError> {
        let digest: [u8; 32] = array("digest", &open.digest)?;
        let theirs = Seq(open.seq);
        let compare = move |view: &MemberView<'_, '_>| compare_digests(view, theirs, digest);
        Ok(match state.gate.as_member(session, self.space, compare).await? {
            Compared::NotComparable(seq) => not_comparable(seq),
            Compared::Equal(seq) => {
                metrics::compared("equal");
                Answer::Equal(HeadSyncEqual { seq: seq.0 })
            }
            Compared::Different { seq, digest, elements } => {
                let first = limits::HEADSYNC_FIRST_CELLS;
                let mut different =
                    HeadSyncDifferent { seq: seq.0, digest: digest.to_vec().into(), elements, ..Default::default() };
                match state.sketches.frozen(&state.gate, session, self.space, seq, first).await? {
                    Found::Moved(seq) => return Ok(not_comparable(seq)),
                    // The caller lists instead.
                    Found::NoRoom => {}
                    Found::Frozen(from) => {
                        different.elements = from.sketch().elements();
                        different.key = state.sketches.key(&self.space).to_vec().into();
                        different.cells = self.cells.insert(Sent { from, cells: 0 }).block();
                    }
                }
                metrics::compared("different");
                Answer::Different(different)
            }
        })
    }

    async fn more(&mut self, state: &State, session: &Session) -> Result<Answer, CallError> {
        // The right may have ended since the last block.
        state.gate.as_member(session, self.space, |_| Ok(())).await?;
        let Some(sent) = &mut self.cells else { return Ok(no_more()) };
        let Some(block) = block_after(sent.cells) else { return Ok(no_more()) };
        if block.end > sent.from.sketch().cells().len() {
            match state.sketches.frozen(&state.gate, session, self.space, sent.from.seq, block.end).await? {
                Found::Frozen(from) => sent.from = from,
                Found::Moved(seq) => {
                    self.cells = None;
                    return Ok(not_comparable(seq));
                }
                Found::NoRoom => return Ok(no_more()),
            }
        }
        Ok(Answer::Cells(HeadSyncCells { cells: sent.block() }))
    }
}

impl Sent {
    /// The next block, as far as the sketch reaches.
    fn block(&mut self) -> bytes::Bytes {
        let sketch = self.from.sketch();
        let block = block_after(self.cells).unwrap_or(self.cells..self.cells);
        let cells = sketch.cells().get(block.clone()).unwrap_or_default();
        metrics::cells_sent(cells.len());
        self.cells = block.end;
        encode_cells(cells, block.start, sketch.elements()).into()
    }
}

/// The caller lists instead.
fn no_more() -> Answer {
    Answer::Cells(HeadSyncCells::default())
}

fn not_comparable(seq: Seq) -> Answer {
    metrics::compared("not_comparable");
    Answer::NotComparable(HeadSyncNotComparable { seq: seq.0 })
}

fn compare_digests(view: &MemberView<'_, '_>, theirs: Seq, digest: [u8; 32]) -> Result<Compared, CallError> {
    let seq = view.position()?.seq;
    if seq != theirs {
        return Ok(Compared::NotComparable(seq));
    }
    let ours = view.digest()?.finish();
    if ours == digest {
        return Ok(Compared::Equal(seq));
    }
    Ok(Compared::Different { seq, digest: ours, elements: view.elements_len()? })
}

async fn list(state: &State, session: &Session, space: SpaceId, page: &HeadSyncNextPage) -> Result<Answer, CallError> {
    let after: Option<TreeId> = if page.after.is_empty() { None } else { Some(id(&page.after)?) };
    let max = limits::HEADSYNC_PAGE_MAX;
    // One more than fits tells whether this page is the last.
    let mut elements = state.gate.as_member(session, space, move |view| view.elements(after, max + 1)).await?;
    let last = elements.len() <= max;
    elements.truncate(max);
    let elements = elements.iter().map(HeadSyncElement::from).collect();
    Ok(Answer::Page(HeadSyncPage { elements, last }))
}

/// An element is two ids and their framing.
const _: () = assert!(limits::HEADSYNC_PAGE_MAX * 80 < limits::MESSAGE_BYTES_MAX, "a page fits one message");
/// A cell is a symbol, a check, and a count of at most ten bytes.
const _: () = assert!(limits::HEADSYNC_BLOCK_CELLS_MAX * 42 < limits::MESSAGE_BYTES_MAX, "a block fits one message");
