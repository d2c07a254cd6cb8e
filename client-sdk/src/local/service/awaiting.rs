//! Awaits: progress as it is made, then one answer. And the receipts that prove it.

use std::future::Future;
use std::time::Duration;

use sync_core::limits;
use sync_core::receipt::SignedReceipt;
use sync_proto::client_v1 as pb;
use sync_store::WriteId;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;

use super::{members, objects, spaces};
use crate::client::Client;
use crate::error::NotSynced;
use crate::local::failure::LocalError;
use crate::local::from_wire;
use crate::local::to_wire;
use crate::space::Space;
use crate::synced::AwaitEvent;
use crate::waits::{WaitFor, WaitId, Waited};

/// What an await has come to.
enum Step<T> {
    Progress(pb::Progress),
    Done(T),
    Failed(pb::Failed),
}

/// Follows an await that tells of no progress of its own: what is missing in the space, whenever that changes, then how it
/// ended. The caller's going away ends it, and nothing that is under way for the space.
fn follow<T: Send + 'static>(
    space: Space,
    room: Option<OwnedSemaphorePermit>,
    awaited: impl Future<Output = Result<T, NotSynced>> + Send + 'static,
) -> impl Stream<Item = Result<Step<T>, LocalError>> + Send + 'static {
    async_stream::try_stream! {
        let _room = room;
        let mut awaited = Box::pin(awaited);
        let (mut since, mut told) = (0, None);
        loop {
            let progress = progress(&space)?;
            if told.as_ref() != Some(&progress) {
                told = Some(progress.clone());
                yield Step::Progress(progress);
            }
            let ended = tokio::select! {
                biased;
                ended = &mut awaited => Some(ended),
                () = space.status_changed(&mut since) => None,
            };
            match ended {
                None => {}
                Some(Ok(done)) => {
                    yield Step::Done(done);
                    return;
                }
                Some(Err(failed)) => {
                    yield Step::Failed((&failed).into());
                    return;
                }
            }
        }
    }
}

fn progress(space: &Space) -> Result<pb::Progress, LocalError> {
    let missing = space.explain()?;
    let missing = missing.iter().map(|r| pb::Missing { code: r.code.name().to_owned(), count: r.count });
    Ok(pb::Progress { target: None, here: space.inner.announced().0, missing: missing.collect() })
}

pub(super) fn synced(
    client: Client,
    request: pb::AwaitSyncedRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::AwaitSyncedResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::await_synced_response::Step as Wire;
    let space = spaces::of(&client, &request.space)?;
    let mut how = from_wire::patience(request.patience).level(from_wire::level(request.level)?);
    if let Some(millis) = request.fresh_within_ms {
        how = how.fresh_within(Duration::from_millis(millis));
    }
    from_wire::at_most("trees", &request.trees, limits::IDS_PER_REQUEST_MAX)?;
    for named in request.trees {
        let tree = members::tree(&space, from_wire::required("trees.tree", named.tree)?)?;
        how = how.tree(tree, from_wire::ids("trees.heads", &named.heads)?);
    }
    let mut events = space.follow_synced(how);
    Ok(async_stream::stream! {
        let (_room, _open) = (room, client);
        while let Some(event) = events.next().await {
            let step = match event {
                AwaitEvent::Progress(progress) => Wire::Progress(progress.into()),
                AwaitEvent::Synced(synced) => Wire::Synced((&*synced).into()),
                AwaitEvent::Failed(failed) => Wire::Failed((&failed).into()),
            };
            yield Ok(pb::AwaitSyncedResponse { step: Some(step) });
        }
    })
}

pub(super) fn durable(
    client: Client,
    request: pb::AwaitDurableRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::AwaitDurableResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::await_durable_response::Step as Wire;
    let space = spaces::of(&client, &request.space)?;
    let how = from_wire::patience(request.patience).level(from_wire::level(request.level)?);
    let (asked, write) = (space.clone(), WriteId(request.write));
    if space.write_state(write)?.is_none() {
        return Err(LocalError::NoWrite(request.write));
    }
    let steps = follow(space, room, async move { asked.await_write(write, &how).await });
    Ok(map(client, steps, |step| {
        let step = match step {
            Step::Progress(progress) => Wire::Progress(progress),
            Step::Done(settled) => Wire::Settled((&settled).into()),
            Step::Failed(failed) => Wire::Failed(failed),
        };
        Ok(pb::AwaitDurableResponse { step: Some(step) })
    }))
}

pub(super) fn object(
    client: Client,
    request: pb::AwaitObjectRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::AwaitObjectResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::await_object_response::Step as Wire;
    let space = spaces::of(&client, &request.space)?;
    let how = from_wire::patience(request.patience);
    let (asked, object_type, id) = (space.clone(), request.r#type, request.id);
    let steps = follow(space, room, async move { asked.await_object_with(&object_type, &id, &how).await });
    Ok(map(client, steps, |step| {
        let step = match step {
            Step::Progress(progress) => Wire::Progress(progress),
            Step::Done(object) => Wire::Object(objects::whole(object)?),
            Step::Failed(failed) => Wire::Failed(failed),
        };
        Ok(pb::AwaitObjectResponse { step: Some(step) })
    }))
}

/// The steps as messages; the client stays open as long as somebody waits with it.
fn map<T: Send + 'static, M: Send + 'static>(
    client: Client,
    steps: impl Stream<Item = Result<Step<T>, LocalError>> + Send + 'static,
    mut message: impl FnMut(Step<T>) -> Result<M, LocalError> + Send + 'static,
) -> impl Stream<Item = Result<M, LocalError>> + Send + 'static {
    tokio_stream::StreamExt::map(steps, move |step| {
        let _open = &client;
        message(step?)
    })
}

// ---- awaits that survive a restart ----------------------------------------------------------------------------------

pub(super) async fn keep(client: Client, request: pb::KeepAwaitRequest) -> Result<pb::KeepAwaitResponse, LocalError> {
    use pb::keep_await_request::What;
    let space = spaces::of(&client, &request.space)?;
    let what = match from_wire::required("what", request.what)? {
        What::Synced(pb::EverythingSynced {}) => WaitFor::Synced,
        What::Write(one) => WaitFor::Write { write: one.write, level: from_wire::level(one.level)? },
        What::Object(object) => WaitFor::Object { object_type: object.r#type, id: object.id },
    };
    Ok(pb::KeepAwaitResponse { wait: space.await_later(what).await?.0 })
}

pub(super) async fn kept(client: Client, _: pb::ListAwaitsRequest) -> Result<pb::ListAwaitsResponse, LocalError> {
    Ok(pb::ListAwaitsResponse { awaits: client.waits()?.into_iter().map(Into::into).collect() })
}

pub(super) async fn give_up(
    client: Client,
    request: pb::DropAwaitRequest,
) -> Result<pb::DropAwaitResponse, LocalError> {
    client.drop_wait(WaitId(request.wait)).await?;
    Ok(pb::DropAwaitResponse {})
}

pub(super) fn resume(
    client: Client,
    request: pb::ResumeAwaitRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::ResumeAwaitResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::resume_await_response::Step as Wire;
    let wait = client.resume_wait(WaitId(request.wait))?;
    let (space, how) = (client.space(wait.info().space)?, from_wire::patience(request.patience));
    let steps = follow(space, room, async move { wait.done(&how).await });
    Ok(map(client, steps, |step| {
        let step = match step {
            Step::Progress(progress) => Wire::Progress(progress),
            Step::Done(Waited::Synced(synced)) => Wire::Synced((&*synced).into()),
            Step::Done(Waited::Write(settled)) => Wire::Settled((&*settled).into()),
            Step::Done(Waited::Object(object)) => Wire::Object(objects::whole(*object)?),
            Step::Failed(failed) => Wire::Failed(failed),
        };
        Ok(pb::ResumeAwaitResponse { step: Some(step) })
    }))
}

// ---- receipts -------------------------------------------------------------------------------------------------------

pub(super) async fn receipt(client: Client, request: pb::GetReceiptRequest) -> Result<pb::Receipt, LocalError> {
    let receipt = spaces::of(&client, &request.space)?.receipt()?;
    Ok(to_wire::receipt(&receipt.ok_or(LocalError::NoReceipt)?))
}

pub(super) async fn verify(_: Client, request: pb::VerifyReceiptRequest) -> Result<pb::Receipt, LocalError> {
    Ok(to_wire::receipt(&SignedReceipt::from_text(request.text.trim())?))
}
