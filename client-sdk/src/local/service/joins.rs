//! Joining by a token, and going on with it.

use std::time::Duration;

use sync_proto::client_v1 as pb;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;

use super::spaces;
use crate::client::Client;
use crate::error::JoinError;
use crate::join::JoinInfo;
use crate::local::failure::LocalError;
use crate::local::from_wire::{self, required};
use crate::space::Space;

pub(super) async fn list(client: Client, _: pb::ListJoinsRequest) -> Result<pb::ListJoinsResponse, LocalError> {
    Ok(pb::ListJoinsResponse { joins: client.joins()?.iter().map(Into::into).collect() })
}

pub(super) async fn cancel(
    client: Client,
    request: pb::CancelJoinRequest,
) -> Result<pb::CancelJoinResponse, LocalError> {
    client.cancel_join(from_wire::space(&request.space)?).await?;
    Ok(pb::CancelJoinResponse {})
}

/// Where a join stands, whenever that changes, and then the spaces. The join itself belongs to the client: it goes on when the
/// caller is gone, and the same call again is told of it.
pub(super) fn join(
    client: Client,
    request: pb::JoinRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::JoinResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::join_response::Step;
    let what = required("what", request.what)?;
    if let pb::join_request::What::Space(text) = &what {
        from_wire::space(text)?;
    }
    let timeout = from_wire::timeout(request.timeout_ms);
    Ok(async_stream::try_stream! {
        let _room = room;
        let mut changes = client.events();
        let mut ready = std::pin::pin!(ready(client.clone(), what, timeout));
        let mut told: Option<Vec<JoinInfo>> = None;
        loop {
            let joins = client.joins()?;
            if told.as_ref() != Some(&joins) {
                let progress = pb::JoinProgress { joins: joins.iter().map(Into::into).collect() };
                yield pb::JoinResponse { step: Some(Step::Progress(progress)) };
                told = Some(joins);
            }
            let joined = tokio::select! {
                biased;
                joined = &mut ready => Some(joined),
                // The end of the client ends the join with an error.
                _ = changes.next() => None,
            };
            if let Some(joined) = joined {
                let spaces = joined?.iter().map(spaces::message).collect::<Result<_, _>>()?;
                yield pb::JoinResponse { step: Some(Step::Ready(pb::JoinReady { spaces })) };
                return;
            }
        }
    })
}

async fn ready(client: Client, what: pb::join_request::What, timeout: Duration) -> Result<Vec<Space>, LocalError> {
    let begun = tokio::time::Instant::now();
    let joining = async {
        Ok::<_, LocalError>(match &what {
            pb::join_request::What::Token(token) => client.join(token.trim()).await?,
            pb::join_request::What::Space(text) => client.resume_join(from_wire::space(text)?).await?,
        })
    };
    let joining = tokio::time::timeout(timeout, Box::pin(joining)).await;
    let joining = joining.map_err(|_| JoinError::from(client.shared.offline()))??;
    Ok(joining.ready(timeout.saturating_sub(begun.elapsed())).await?)
}
