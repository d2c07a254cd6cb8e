//! HeadSync: one digest when nothing differs, sorted pages of elements when something does.

use std::sync::Arc;

use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_proto::v1::{
    HeadSyncDifferent, HeadSyncElement, HeadSyncEqual, HeadSyncNextPage, HeadSyncNotComparable, HeadSyncOpen,
    HeadSyncPage, HeadSyncRequest, HeadSyncResponse, head_sync_request, head_sync_response,
};
use sync_proto::{array, id, required};
use tonic::Streaming;

use super::{Answers, State, next};
use crate::failure::CallError;
use crate::metrics;
use crate::session::Session;

type Answer = head_sync_response::Message;

pub(super) async fn head_sync(
    state: Arc<State>,
    session: Session,
    mut requests: Streaming<HeadSyncRequest>,
    answers: Answers<HeadSyncResponse>,
) -> Result<(), CallError> {
    let mut opened = None;
    while let Some(request) = next(&mut requests).await? {
        let answer = match required("message", request.message)? {
            head_sync_request::Message::Open(open) => {
                let space: SpaceId = id(&open.space)?;
                opened = Some(space);
                compare(&state, &session, space, &open).await?
            }
            head_sync_request::Message::NextPage(page) => {
                let space = opened.ok_or_else(|| CallError::new(Code::Malformed, "the first message is Open"))?;
                list(&state, &session, space, &page).await?
            }
        };
        answers.send(HeadSyncResponse { message: Some(answer) }).await?;
    }
    Ok(())
}

async fn compare(state: &State, session: &Session, space: SpaceId, open: &HeadSyncOpen) -> Result<Answer, CallError> {
    let digest: [u8; 32] = array("digest", &open.digest)?;
    let theirs = Seq(open.seq);
    let compare = move |view: &crate::gate::MemberView<'_, '_>| {
        let seq = view.position()?.seq;
        if seq != theirs {
            metrics::compared("not_comparable");
            return Ok(Answer::NotComparable(HeadSyncNotComparable { seq: seq.0 }));
        }
        let ours = view.digest()?.finish();
        if ours == digest {
            metrics::compared("equal");
            return Ok(Answer::Equal(HeadSyncEqual { seq: seq.0 }));
        }
        let elements = view.elements_len()?;
        metrics::compared("different");
        Ok(Answer::Different(HeadSyncDifferent { seq: seq.0, digest: ours.to_vec().into(), elements }))
    };
    state.gate.as_member(session, space, compare).await
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
