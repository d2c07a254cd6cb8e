//! SpacePush, SpacePull, AclRead, AclAppend.

use std::sync::Arc;

use bytes::Bytes;
use sync_core::ids::{HistoryId, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::{Position, Submission, genesis};
use sync_core::record::{AclRecord, AclRoot, SpaceHeader, Verified};
use sync_proto::v1::{
    Accepted, AclAppendRequest, AclAppendResponse, AclReadEntry, AclReadRequest, AclReadResponse, Known, SpacePosition,
    SpacePullRequest, SpacePullResponse, SpacePushRequest, acl_append_response, acl_read_entry,
};
use sync_proto::{id, read_verified};

use super::State;
use crate::answers::Answers;
use crate::authorize::InviteTicket;
use crate::failure::CallError;
use crate::gate::{AclLine, AclPage, IsAll, Taken};
use crate::session::Session;

pub(super) async fn space_push(
    state: &State,
    session: &Session,
    request: SpacePushRequest,
) -> Result<SpacePosition, CallError> {
    let header: Verified<SpaceHeader> = read_verified("header", request.header)?;
    let root: Verified<AclRoot> = read_verified("acl_root", request.acl_root)?;
    let set_home: Verified<AclRecord> = read_verified("set_home", request.set_home)?;
    let row = state.gate.found_space(session, genesis(header, &root, &set_home)?).await?;
    position_to_wire(state, row.space, row.position, row.history).await
}

pub(super) async fn space_pull(
    state: &State,
    session: &Session,
    request: SpacePullRequest,
) -> Result<SpacePullResponse, CallError> {
    let space: SpaceId = id(&request.space)?;
    let ticket = InviteTicket::read(request.invite_proof.as_ref())?;
    let read =
        state.gate.as_acl_reader(session, space, ticket, |view| Ok((view.row()?, view.position()?, view.histories()?)));
    let (row, position, histories) = read.await?;
    let position = position_to_wire(state, space, position, row.history).await?;
    Ok(SpacePullResponse { header: Some(row.header.into()), position: Some(position), histories })
}

async fn position_to_wire(
    state: &State,
    space: SpaceId,
    position: Position,
    history: HistoryId,
) -> Result<SpacePosition, CallError> {
    let durable_seq = state.gate.watch(space).await?.borrow().durable_seq.min(position.seq);
    Ok(SpacePosition {
        space: space.to_bytes(),
        seq: position.seq.0,
        durable_seq: durable_seq.0,
        chain: position.chain.to_bytes(),
        history: Bytes::copy_from_slice(&history.0),
    })
}

/// What a reader wants when the log has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtTheEnd {
    Stop,
    Follow,
}

pub(super) async fn acl_read(
    state: Arc<State>,
    session: Session,
    request: AclReadRequest,
    answers: Answers<AclReadResponse>,
) -> Result<(), CallError> {
    let space: SpaceId = id(&request.space)?;
    let ticket = InviteTicket::read(request.invite_proof.as_ref())?;
    let at_the_end = if request.follow { AtTheEnd::Follow } else { AtTheEnd::Stop };
    let header = state.gate.as_acl_reader(&session, space, ticket.clone(), |view| Ok(view.row()?.header)).await?;
    let mut marks = state.gate.watch(space).await?;
    let mut cursor = Seq(request.from_seq);
    answers.send(AclReadResponse { header: Some(header.into()), ..AclReadResponse::default() }).await?;
    loop {
        let place = answers.reserve().await?;
        let durable_seq = marks.borrow_and_update().durable_seq;
        // Every page asks anew whether the caller may read: an invite can be revoked while somebody reads by it.
        let read = state.gate.as_acl_reader(&session, space, ticket.clone(), move |v| v.page(cursor, durable_seq));
        let page = read.await?;
        let progress = page.complete_to > cursor;
        cursor = page.complete_to;
        let is_all = page.is_all;
        let at_end = cursor >= durable_seq || !progress;
        let complete = at_end || is_all == IsAll::Yes;
        place.send(page_to_wire(page, complete.then_some(cursor)));
        match (is_all, at_end, at_the_end) {
            (IsAll::Yes, ..) | (IsAll::No, true, AtTheEnd::Stop) => return Ok(()),
            (IsAll::No, true, AtTheEnd::Follow) => {
                let moved = marks.wait_for(|m| m.durable_seq > durable_seq);
                // After that the end is told again: who follows knows that nothing was lost on the way.
                if let Ok(moved) = tokio::time::timeout(limits::HEARTBEAT_INTERVAL, moved).await {
                    drop(moved.map_err(|_| CallError::shutting_down())?);
                }
            }
            (IsAll::No, false, _) => {}
        }
    }
}

/// `complete` at the end of what may be shown now.
fn page_to_wire(page: AclPage, complete: Option<Seq>) -> AclReadResponse {
    let entry = |line| match line {
        AclLine::Record(seq, record) => {
            AclReadEntry { seq: seq.0, entry: Some(acl_read_entry::Entry::Acl(record.into())) }
        }
        AclLine::Id(seq, id) => AclReadEntry { seq: seq.0, entry: Some(acl_read_entry::Entry::Id(id.to_bytes())) },
    };
    AclReadResponse {
        header: None,
        entries: page.lines.into_iter().map(entry).collect(),
        complete_to_seq: complete.map_or(0, |seq| seq.0),
    }
}

pub(super) async fn acl_append(
    state: &State,
    session: &Session,
    request: AclAppendRequest,
) -> Result<AclAppendResponse, CallError> {
    let space: SpaceId = id(&request.space)?;
    let ticket = InviteTicket::read(request.invite_proof.as_ref())?;
    let record: Verified<AclRecord> = read_verified("record", request.record)?;
    let taken = state.gate.append_acl(session, space, ticket, Submission::Acl(record)).await?;
    let outcome = match taken {
        Taken::Accepted(seq) => acl_append_response::Outcome::Accepted(Accepted { seq: seq.0 }),
        Taken::Known(seq) => acl_append_response::Outcome::Known(Known { seq: seq.0 }),
    };
    Ok(AclAppendResponse { outcome: Some(outcome) })
}
