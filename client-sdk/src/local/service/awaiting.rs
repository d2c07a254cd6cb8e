//! Awaits: progress as it is made, then one answer. And the receipts that prove it.

use std::future::Future;

use sync_core::receipt::SignedReceipt;
use sync_proto::client_v1 as pb;
use sync_store::WriteId;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;

use super::{objects, spaces};
use crate::client::Client;
use crate::error::NotSynced;
use crate::local::failure::LocalError;
use crate::local::from_wire;
use crate::local::to_wire;
use crate::space::Space;
use crate::synced::DEADLINE;

/// What an await has come to.
enum Step<T> {
    Progress(pb::Progress),
    Done(T),
    Failed(pb::Failed),
}

/// Follows an await: what is missing, whenever that changes, then how it ended. The caller's going away ends it, and nothing
/// that is under way for the space.
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
            let residue = residue(&space)?;
            let shape = Some(without_clocks(residue.clone()));
            if shape != told {
                told = shape;
                yield Step::Progress(pb::Progress { residue });
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

fn residue(space: &Space) -> Result<Vec<pb::Reason>, LocalError> {
    Ok(space.explain()?.iter().map(Into::into).collect())
}

fn without_clocks(mut residue: Vec<pb::Reason>) -> Vec<pb::Reason> {
    residue.iter_mut().for_each(|reason| reason.next_retry_ms = None);
    residue
}

pub(super) fn synced(
    client: Client,
    request: pb::AwaitSyncedRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::AwaitSyncedResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::await_synced_response::Step as Wire;
    let space = spaces::of(&client, &request.space)?;
    let deadline = from_wire::timeout(request.timeout_ms, DEADLINE);
    let asked = space.clone();
    let steps = follow(space, room, async move { asked.await_synced_within(deadline).await });
    Ok(map(client, steps, |step| {
        let step = match step {
            Step::Progress(progress) => Wire::Progress(progress),
            Step::Done(synced) => Wire::Synced((&synced).into()),
            Step::Failed(failed) => Wire::Failed(failed),
        };
        Ok(pb::AwaitSyncedResponse { step: Some(step) })
    }))
}

pub(super) fn durable(
    client: Client,
    request: pb::AwaitDurableRequest,
    room: Option<OwnedSemaphorePermit>,
) -> Result<impl Stream<Item = Result<pb::AwaitDurableResponse, LocalError>> + Send + 'static, LocalError> {
    use pb::await_durable_response::Step as Wire;
    let space = spaces::of(&client, &request.space)?;
    let deadline = from_wire::timeout(request.timeout_ms, DEADLINE);
    let (asked, write) = (space.clone(), WriteId(request.write));
    if space.write_state(write)?.is_none() {
        return Err(LocalError::NoWrite(request.write));
    }
    let steps = follow(space, room, async move { asked.await_durable_within(write, deadline).await });
    Ok(map(client, steps, |step| {
        let step = match step {
            Step::Progress(progress) => Wire::Progress(progress),
            Step::Done(receipt) => Wire::Durable(to_wire::receipt(&receipt)),
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
    let deadline = from_wire::timeout(request.timeout_ms, DEADLINE);
    let (asked, object_type, id) = (space.clone(), request.r#type, request.id);
    let steps = follow(space, room, async move { asked.await_object(&object_type, &id, deadline).await });
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

pub(super) async fn receipt(client: Client, request: pb::GetReceiptRequest) -> Result<pb::Receipt, LocalError> {
    let receipt = spaces::of(&client, &request.space)?.receipt()?;
    Ok(to_wire::receipt(&receipt.ok_or(LocalError::NoReceipt)?))
}

pub(super) async fn verify(_: Client, request: pb::VerifyReceiptRequest) -> Result<pb::Receipt, LocalError> {
    Ok(to_wire::receipt(&SignedReceipt::from_text(request.text.trim())?))
}
