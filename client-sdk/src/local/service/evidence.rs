//! What the node did: accusations with their evidence, and what it lost for good.

use sync_core::limits;
use sync_proto::client_v1 as pb;
use sync_store::{AccusationId, SalvageId};
use tokio_stream::Stream;

use super::pages::{at, page, page_token};
use super::spaces;
use crate::client::Client;
use crate::local::failure::LocalError;
use crate::local::from_wire::{BadRequest, PageRequest};

pub(super) async fn accusations(
    client: Client,
    request: pb::ListAccusationsRequest,
) -> Result<pb::ListAccusationsResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    // As many as are kept at most: `limits::ACCUSATIONS_MAX`.
    let known = spaces::of(&client, &request.space)?.accusations()?;
    let all = known.into_iter().map(|accusation| (at(accusation.id.0, ""), accusation)).collect();
    let page = page(all, &wanted, pb::Accusation::from);
    Ok(pb::ListAccusationsResponse { accusations: page.items, next_page_token: page.next })
}

pub(super) fn evidence(
    client: Client,
    request: pb::GetEvidenceRequest,
) -> Result<impl Stream<Item = Result<pb::GetEvidenceResponse, LocalError>> + Send + 'static, LocalError> {
    let known = spaces::of(&client, &request.space)?.accusations()?;
    let accused = known.into_iter().find(|accusation| accusation.id == AccusationId(request.accusation));
    let evidence = accused.and_then(|accusation| accusation.evidence);
    let text = evidence.ok_or(LocalError::NoEvidence(request.accusation))?.to_text();
    Ok(async_stream::try_stream! {
        let mut rest = text.as_str();
        while !rest.is_empty() {
            // The text is ASCII, so it may be cut anywhere.
            let (part, left) = rest.split_at(rest.len().min(limits::BATCH_BYTES_MAX));
            rest = left;
            yield pb::GetEvidenceResponse { part: part.to_owned() };
        }
    })
}

pub(super) async fn dismiss_accusation(
    client: Client,
    request: pb::DismissAccusationRequest,
) -> Result<pb::DismissAccusationResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let found = space.dismiss_accusation(AccusationId(request.accusation)).await?;
    Ok(pb::DismissAccusationResponse { found })
}

pub(super) async fn lost(client: Client, request: pb::ListLostRequest) -> Result<pb::ListLostResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let after = wanted.after.map(|text| text.parse().map(SalvageId)).transpose().map_err(|_| BadRequest::PageToken)?;
    // One more than is wanted: whether there are more.
    let mut lost = space.lost_after(after, wanted.size + 1)?;
    let more = lost.len() > wanted.size;
    lost.truncate(wanted.size);
    let last = lost.last().filter(|_| more).map(|entry| page_token(&entry.id.0.to_string()));
    Ok(pb::ListLostResponse {
        entries: lost.into_iter().map(Into::into).collect(),
        next_page_token: last.unwrap_or_default(),
    })
}

pub(super) async fn dismiss_lost(
    client: Client,
    request: pb::DismissLostRequest,
) -> Result<pb::DismissLostResponse, LocalError> {
    let found = spaces::of(&client, &request.space)?.dismiss_lost(SalvageId(request.lost)).await?;
    Ok(pb::DismissLostResponse { found })
}
