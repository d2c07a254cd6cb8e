//! Own writes: what became of them, and those that were refused.

use sync_proto::client_v1 as pb;
use sync_store::WriteId;

use super::pages::{at, page};
use super::spaces;
use crate::client::Client;
use crate::local::failure::LocalError;
use crate::local::from_wire::PageRequest;
use crate::local::to_wire;

pub(super) async fn get(client: Client, request: pb::GetWriteRequest) -> Result<pb::Write, LocalError> {
    let state = spaces::of(&client, &request.space)?.write_state(WriteId(request.write))?;
    Ok(to_wire::write(request.write, state.ok_or(LocalError::NoWrite(request.write))?))
}

pub(super) async fn refused(
    client: Client,
    request: pb::ListRefusedWritesRequest,
) -> Result<pb::ListRefusedWritesResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let refused = spaces::of(&client, &request.space)?.refused()?;
    let all = refused.into_iter().map(|w| (at(w.write.0, w.tree), w)).collect();
    let page = page(all, &wanted, pb::RefusedWrite::from);
    Ok(pb::ListRefusedWritesResponse { writes: page.items, next_page_token: page.next })
}

pub(super) async fn retry(
    client: Client,
    request: pb::RetryWriteRequest,
) -> Result<pb::RetryWriteResponse, LocalError> {
    spaces::of(&client, &request.space)?.retry(WriteId(request.write)).await?;
    Ok(pb::RetryWriteResponse {})
}

pub(super) async fn dismiss(
    client: Client,
    request: pb::DismissWriteRequest,
) -> Result<pb::DismissWriteResponse, LocalError> {
    spaces::of(&client, &request.space)?.dismiss(WriteId(request.write)).await?;
    Ok(pb::DismissWriteResponse {})
}
