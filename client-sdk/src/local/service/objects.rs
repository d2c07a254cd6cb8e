//! Objects: put, get, list, update, delete, purge, watch.

use std::ops::ControlFlow;

use prost::Message as _;
use sync_core::limits;
use sync_proto::client_v1 as pb;
use tokio_stream::Stream;

use super::pages::page_token;
use super::spaces;
use crate::client::Client;
use crate::local::failure::LocalError;
use crate::local::from_wire::{self, BadRequest, PageRequest};
use crate::local::to_wire;
use crate::objects::{Object, ObjectChange};

pub(super) async fn put(client: Client, request: pb::PutObjectRequest) -> Result<pb::Written, LocalError> {
    let objects = spaces::of(&client, &request.space)?.objects();
    let fields = from_wire::fields(&request.fields_json)?;
    Ok(to_wire::written(objects.put(&request.r#type, &request.id, fields.into()).await?))
}

pub(super) async fn put_many(
    client: Client,
    request: pb::PutObjectsRequest,
) -> Result<pb::PutObjectsResponse, LocalError> {
    from_wire::at_most("objects", &request.objects, limits::LOCAL_PAGE_MAX)?;
    let objects = spaces::of(&client, &request.space)?.objects();
    let new = request.objects.into_iter().map(from_wire::new_object).collect::<Result<Vec<_>, _>>()?;
    let written = objects.put_many(new).await?;
    Ok(pb::PutObjectsResponse { written: written.into_iter().map(to_wire::written).collect() })
}

pub(super) async fn update(client: Client, request: pb::UpdateObjectRequest) -> Result<pb::Written, LocalError> {
    let objects = spaces::of(&client, &request.space)?.objects();
    let update = from_wire::update(request.ops)?;
    Ok(to_wire::written(objects.update(&request.r#type, &request.id, update).await?))
}

pub(super) async fn delete(client: Client, request: pb::DeleteObjectRequest) -> Result<pb::Written, LocalError> {
    let objects = spaces::of(&client, &request.space)?.objects();
    Ok(to_wire::written(objects.delete(&request.r#type, &request.id).await?))
}

pub(super) async fn purge(client: Client, request: pb::PurgeObjectRequest) -> Result<pb::Written, LocalError> {
    let objects = spaces::of(&client, &request.space)?.objects();
    Ok(to_wire::written(Some(objects.purge(&request.r#type, &request.id).await?)))
}

pub(super) async fn get(client: Client, request: pb::GetObjectRequest) -> Result<pb::Object, LocalError> {
    let objects = spaces::of(&client, &request.space)?.objects();
    let (object_type, id) = (request.r#type, request.id);
    let Some(mut object) = objects.get(&object_type, &id)? else {
        return Err(LocalError::NoObject { object_type, id });
    };
    if !request.only_fields.is_empty() {
        object.fields.retain(|field, _| request.only_fields.contains(field));
    }
    whole(object)
}

/// An object that fits a message.
pub(super) fn whole(object: Object) -> Result<pb::Object, LocalError> {
    let what = format!("{}/{}", object.object_type, object.id);
    let message = pb::Object::from(object);
    let actual = message.encoded_len();
    if actual > limits::BATCH_BYTES_MAX {
        return Err(LocalError::TooLarge { what, actual, max: limits::BATCH_BYTES_MAX });
    }
    Ok(message)
}

/// An object among others. One that is too large for a message must not hide the rest: it comes without its fields.
fn listed(object: Object) -> pb::Object {
    let mut message = pb::Object::from(object);
    if message.encoded_len() > limits::BATCH_BYTES_MAX {
        message.omitted_bytes = u64::try_from(message.fields_json.len()).unwrap_or(u64::MAX);
        message.fields_json.clear();
    }
    message
}

pub(super) async fn list(
    client: Client,
    request: pb::ListObjectsRequest,
) -> Result<pb::ListObjectsResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let after = wanted.after.map(|text| text.parse()).transpose().map_err(|_| BadRequest::PageToken)?;
    let objects = spaces::of(&client, &request.space)?.objects();
    let object_type = Some(request.r#type.as_str()).filter(|text| !text.is_empty());
    let (mut found, mut bytes, mut last, mut next) = (Vec::new(), 0, None, None);
    objects.each(object_type, after, |object| {
        if found.len() == wanted.size || bytes >= limits::BATCH_BYTES_MAX {
            // There is another one: the next page begins after the last of this.
            next = last;
            return ControlFlow::Break(());
        }
        last = Some(object.tree);
        let object = listed(object);
        bytes += object.encoded_len();
        found.push(object);
        ControlFlow::Continue(())
    })?;
    let next_page_token = next.map(|tree| page_token(&tree.to_string())).unwrap_or_default();
    Ok(pb::ListObjectsResponse { objects: found, next_page_token })
}

pub(super) fn watch(
    client: Client,
    request: pb::WatchObjectsRequest,
) -> Result<impl Stream<Item = Result<pb::WatchObjectsResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::watch_objects_response::Change;
    let objects = spaces::of(&client, &request.space)?.objects();
    let mut watch = objects.watch(request.r#type.clone());
    let say = |change| pb::WatchObjectsResponse { change: Some(change) };
    Ok(async_stream::try_stream! {
        let _client = client;
        yield say(Change::Watching(pb::Watching {}));
        if request.existing {
            for object in objects.list(&request.r#type)? {
                yield say(Change::Changed(listed(object)));
            }
        }
        while let Some(change) = watch.next().await? {
            yield say(match change {
                ObjectChange::Changed(object) => Change::Changed(listed(object)),
                ObjectChange::Deleted { object_type, id } => Change::Deleted(pb::ObjectRef { r#type: object_type, id }),
                ObjectChange::Lagged { missed } => Change::Lagged(pb::Lagged { missed }),
            });
        }
    })
}
