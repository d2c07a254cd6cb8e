//! Spaces: making, listing, opening, ending them.

use std::time::Duration;

use serde_json::json;
use sync_proto::client_v1 as pb;
use sync_store::Registration;

use super::pages::page;
use crate::client::Client;
use crate::error::ReadError;
use crate::local::failure::LocalError;
use crate::local::from_wire::{self, PageRequest};
use crate::local::to_wire;
use crate::space::Space;
use crate::synced::DEADLINE;
use crate::types::SPACE_INFO;

/// The open space of a request.
pub(super) fn of(client: &Client, text: &str) -> Result<Space, LocalError> {
    Ok(client.space(from_wire::space(text)?)?)
}

/// A space as callers see it.
pub(super) fn message(space: &Space) -> Result<pb::Space, ReadError> {
    let inner = &space.inner;
    let acl = inner.acl()?;
    let registration = inner.shared.store.read(|tx| tx.node_state(inner.id))?.registration;
    Ok(pb::Space {
        space: inner.id.to_string(),
        name: space.name()?,
        seq: inner.cursor().0,
        members: u32::try_from(acl.members.len()).unwrap_or(u32::MAX),
        registered: registration == Registration::Registered,
        role: to_wire::role(acl.role(&inner.shared.account.id())),
        deleted: acl.deleted,
        options: Some(to_wire::options(acl.options)),
    })
}

pub(super) async fn list(client: Client, request: pb::ListSpacesRequest) -> Result<pb::ListSpacesResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let mut all = Vec::new();
    for info in client.spaces()? {
        all.push((info.id.to_string(), message(&client.space(info.id)?)?));
    }
    let page = page(all, &wanted, |space| space);
    Ok(pb::ListSpacesResponse { spaces: page.items, next_page_token: page.next })
}

pub(super) async fn get(client: Client, request: pb::GetSpaceRequest) -> Result<pb::Space, LocalError> {
    Ok(message(&of(&client, &request.space)?)?)
}

pub(super) async fn create(client: Client, request: pb::CreateSpaceRequest) -> Result<pb::Space, LocalError> {
    let options = request.options.map(from_wire::options).transpose()?.unwrap_or_default();
    let space = client.create_space_with(&request.name, options).await?;
    Ok(message(&space)?)
}

pub(super) async fn open(client: Client, request: pb::OpenSpaceRequest) -> Result<pb::Space, LocalError> {
    let timeout = match request.timeout_ms {
        0 => DEADLINE,
        millis => Duration::from_millis(millis),
    };
    let space = client.open_joined(from_wire::space(&request.space)?, timeout).await?;
    Ok(message(&space)?)
}

pub(super) async fn rename(client: Client, request: pb::RenameSpaceRequest) -> Result<pb::Written, LocalError> {
    let space = of(&client, &request.space)?;
    Ok(to_wire::written(space.objects().put(SPACE_INFO, "self", json!({ "name": request.name })).await?))
}

pub(super) async fn leave(
    client: Client,
    request: pb::LeaveSpaceRequest,
) -> Result<pb::LeaveSpaceResponse, LocalError> {
    of(&client, &request.space)?.leave().await?;
    Ok(pb::LeaveSpaceResponse {})
}

pub(super) async fn forget(
    client: Client,
    request: pb::ForgetSpaceRequest,
) -> Result<pb::ForgetSpaceResponse, LocalError> {
    client.forget_space(from_wire::space(&request.space)?).await?;
    Ok(pb::ForgetSpaceResponse {})
}
