//! Trees whose changes are the application's own.

use sync_core::ids::TreeId;
use sync_proto::client_v1 as pb;
use tokio_stream::Stream;

use super::pages::page_token;
use super::{members, spaces};
use crate::client::Client;
use crate::local::failure::LocalError;
use crate::local::from_wire::{self, BadRequest, PageRequest};
use crate::local::to_wire;
use crate::space::{NewTree, Space, Tree};

pub(super) async fn create(client: Client, request: pb::CreateTreeRequest) -> Result<pb::TreeWritten, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let new = NewTree { data_type: request.data_type, write_rule: from_wire::write_rule(request.write_rule)? };
    Ok(space.create_tree(new, from_wire::tree_writes(request.changes)?).await?.into())
}

pub(super) async fn append(client: Client, request: pb::AppendTreeRequest) -> Result<pb::TreeWritten, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let tree = from_wire::id("tree", &request.tree)?;
    Ok(space.append(tree, request.data_type, from_wire::tree_writes(request.changes)?).await?.into())
}

pub(super) async fn purge(client: Client, request: pb::PurgeTreeRequest) -> Result<pb::Written, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    Ok(to_wire::written(Some(space.purge_tree(from_wire::id("tree", &request.tree)?).await?)))
}

pub(super) async fn get(client: Client, request: pb::GetTreeRequest) -> Result<pb::Tree, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let named = from_wire::required("tree", request.tree)?;
    let tree = find(&space, members::tree(&space, named)?)?;
    Ok((&*tree.snapshot()?).into())
}

fn find(space: &Space, tree: TreeId) -> Result<Tree, LocalError> {
    space.tree(tree)?.ok_or_else(|| LocalError::NoTree(tree.to_string()))
}

pub(super) async fn list(client: Client, request: pb::ListTreesRequest) -> Result<pb::ListTreesResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let after = wanted.after.map(|text| text.parse()).transpose().map_err(|_| BadRequest::PageToken)?;
    // One more than is wanted: whether there are more.
    let mut trees = space.trees(after, wanted.size + 1)?;
    let more = trees.len() > wanted.size;
    trees.truncate(wanted.size);
    let last = trees.last().filter(|_| more).map(ToString::to_string);
    let next_page_token = last.as_deref().map(page_token).unwrap_or_default();
    Ok(pb::ListTreesResponse { trees: trees.iter().map(ToString::to_string).collect(), next_page_token })
}

pub(super) async fn changes(
    client: Client,
    request: pb::ListTreeChangesRequest,
) -> Result<pb::ListTreeChangesResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let wanted = PageRequest::new(request.page_size, "")?;
    let tree = find(&space, from_wire::id("tree", &request.tree)?)?;
    let page = tree.changes_after(request.after_seq, wanted.size)?;
    let changes = page.changes.into_iter().map(pb::LoggedChange::from).collect();
    Ok(pb::ListTreeChangesResponse { changes, more: page.more })
}

pub(super) fn watch(
    client: Client,
    request: pb::WatchTreeRequest,
) -> Result<impl Stream<Item = Result<pb::WatchTreeResponse, LocalError>> + Send + 'static, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let tree = find(&space, from_wire::id("tree", &request.tree)?)?;
    let mut watch = tree.watch()?;
    Ok(async_stream::try_stream! {
        let _client = client;
        let mut shown = Some(tree.snapshot()?);
        while let Some(snapshot) = shown {
            yield pb::WatchTreeResponse { tree: Some((&*snapshot).into()), changes_seen: watch.seen() };
            shown = watch.next().await?;
        }
    })
}
