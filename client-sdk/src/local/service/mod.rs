//! The rpcs. Each is a small function of an open client and a request; here they are only handed in and out.

mod account;
mod awaiting;
mod evidence;
mod feeds;
mod joins;
mod members;
mod objects;
mod pages;
mod spaces;
mod trees;
mod writes;

use std::pin::Pin;

use sync_proto::client_v1 as pb;
use sync_proto::client_v1::client_server;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::current::Current;
use super::failure::LocalError;
use super::listen::Peer;
use crate::client::Client;

/// What a server-streaming rpc answers with. It owns what it reads from: dropping it, as the transport does when the caller goes
/// away, ends everything that was done for it.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The `Client` service over the client that is open now.
#[derive(Debug, Clone)]
pub(super) struct Service {
    current: Current,
    /// Ends the streams, so that a stopping server need not wait for its callers.
    closing: CancellationToken,
}

impl Service {
    pub(super) const fn new(current: Current, closing: CancellationToken) -> Self {
        Self { current, closing }
    }

    /// One answer.
    async fn one<Q, A>(
        &self,
        request: Request<Q>,
        work: impl AsyncFnOnce(Client, Q) -> Result<A, LocalError>,
    ) -> Result<Response<A>, Status> {
        if self.closing.is_cancelled() {
            return Err(LocalError::ShuttingDown.into());
        }
        // What began before is finished: a stopping server waits for it.
        Ok(Response::new(Box::pin(work(self.current.get()?, request.into_inner())).await?))
    }

    /// Answers until they or the server end.
    fn many<A: Send + 'static>(
        &self,
        answers: impl Stream<Item = Result<A, LocalError>> + Send + 'static,
    ) -> Response<Answers<A>> {
        let closing = self.closing.clone();
        Response::new(Box::pin(async_stream::stream! {
            let mut answers = std::pin::pin!(answers);
            loop {
                let next = tokio_stream::StreamExt::next(&mut answers);
                match closing.run_until_cancelled(next).await {
                    Some(Some(answer)) => yield answer.map_err(Status::from),
                    Some(None) => return,
                    None => {
                        yield Err(LocalError::ShuttingDown.into());
                        return;
                    }
                }
            }
        }))
    }
}

/// Room for one more await on the connection of a call.
fn await_room<Q>(request: &Request<Q>) -> Result<Option<OwnedSemaphorePermit>, LocalError> {
    // A service that is called without a socket, inside a process, has no connection to count for.
    request.extensions().get::<Peer>().map(Peer::await_room).transpose()
}

macro_rules! rpcs {
    (
        one { $($one:ident($asked:ident) -> $answer:ident = $work:path;)* }
        many { $($many:ident($many_asked:ident) -> $many_answer:ident as $stream:ident = $feed:path;)* }
        awaits { $($wait:ident($wait_asked:ident) -> $wait_answer:ident as $wait_stream:ident = $waiting:path;)* }
    ) => {
        #[tonic::async_trait]
        impl client_server::Client for Service {
            $(
                async fn $one(&self, request: Request<pb::$asked>) -> Result<Response<pb::$answer>, Status> {
                    self.one(request, $work).await
                }
            )*
            $(
                type $stream = Answers<pb::$many_answer>;
                async fn $many(&self, request: Request<pb::$many_asked>) -> Result<Response<Self::$stream>, Status> {
                    Ok(self.many($feed(self.current.get()?, request.into_inner())?))
                }
            )*
            $(
                type $wait_stream = Answers<pb::$wait_answer>;
                async fn $wait(&self, request: Request<pb::$wait_asked>) -> Result<Response<Self::$wait_stream>, Status> {
                    let room = await_room(&request)?;
                    Ok(self.many($waiting(self.current.get()?, request.into_inner(), room)?))
                }
            )*
        }
    };
}

rpcs! {
    one {
        get_me(GetMeRequest) -> Me = account::me;
        list_devices(ListDevicesRequest) -> ListDevicesResponse = account::devices;
        revoke_device(RevokeDeviceRequest) -> RevokeDeviceResponse = account::revoke_device;

        list_spaces(ListSpacesRequest) -> ListSpacesResponse = spaces::list;
        get_space(GetSpaceRequest) -> Space = spaces::get;
        create_space(CreateSpaceRequest) -> Space = spaces::create;
        open_space(OpenSpaceRequest) -> Space = spaces::open;
        rename_space(RenameSpaceRequest) -> Written = spaces::rename;
        leave_space(LeaveSpaceRequest) -> LeaveSpaceResponse = spaces::leave;
        forget_space(ForgetSpaceRequest) -> ForgetSpaceResponse = spaces::forget;

        list_members(ListMembersRequest) -> ListMembersResponse = members::list;
        change_acl(ChangeAclRequest) -> ChangeAclResponse = members::change;
        plan_acl(PlanAclRequest) -> PlanAclResponse = members::plan;

        create_invite(CreateInviteRequest) -> CreateInviteResponse = members::invite;
        list_invites(ListInvitesRequest) -> ListInvitesResponse = members::invites;
        show_invite(ShowInviteRequest) -> ShowInviteResponse = members::show_invite;
        list_joins(ListJoinsRequest) -> ListJoinsResponse = joins::list;
        cancel_join(CancelJoinRequest) -> CancelJoinResponse = joins::cancel;
        list_requests(ListRequestsRequest) -> ListRequestsResponse = members::requests;
        approve(ApproveRequest) -> ApproveResponse = members::approve;
        decline(DeclineRequest) -> DeclineResponse = members::decline;

        put_object(PutObjectRequest) -> Written = objects::put;
        put_objects(PutObjectsRequest) -> PutObjectsResponse = objects::put_many;
        update_object(UpdateObjectRequest) -> Written = objects::update;
        delete_object(DeleteObjectRequest) -> Written = objects::delete;
        purge_object(PurgeObjectRequest) -> Written = objects::purge;
        get_object(GetObjectRequest) -> Object = objects::get;
        list_objects(ListObjectsRequest) -> ListObjectsResponse = objects::list;

        create_tree(CreateTreeRequest) -> TreeWritten = trees::create;
        append_tree(AppendTreeRequest) -> TreeWritten = trees::append;
        purge_tree(PurgeTreeRequest) -> Written = trees::purge;
        get_tree(GetTreeRequest) -> Tree = trees::get;
        list_trees(ListTreesRequest) -> ListTreesResponse = trees::list;
        list_tree_changes(ListTreeChangesRequest) -> ListTreeChangesResponse = trees::changes;

        get_status(GetStatusRequest) -> SpaceStatus = feeds::status;
        get_tree_status(GetTreeStatusRequest) -> TreeStatus = feeds::tree_status;
        list_peers(ListPeersRequest) -> ListPeersResponse = feeds::peers;
        explain_sync(ExplainSyncRequest) -> ExplainSyncResponse = feeds::explain;
        list_reason_items(ListReasonItemsRequest) -> ListReasonItemsResponse = feeds::reason_items;

        keep_await(KeepAwaitRequest) -> KeepAwaitResponse = awaiting::keep;
        list_awaits(ListAwaitsRequest) -> ListAwaitsResponse = awaiting::kept;
        drop_await(DropAwaitRequest) -> DropAwaitResponse = awaiting::give_up;
        get_receipt(GetReceiptRequest) -> Receipt = awaiting::receipt;
        verify_receipt(VerifyReceiptRequest) -> Receipt = awaiting::verify;

        get_write(GetWriteRequest) -> Write = writes::get;
        list_refused_writes(ListRefusedWritesRequest) -> ListRefusedWritesResponse = writes::refused;
        retry_write(RetryWriteRequest) -> RetryWriteResponse = writes::retry;
        dismiss_write(DismissWriteRequest) -> DismissWriteResponse = writes::dismiss;

        list_accusations(ListAccusationsRequest) -> ListAccusationsResponse = evidence::accusations;
        dismiss_accusation(DismissAccusationRequest) -> DismissAccusationResponse = evidence::dismiss_accusation;
        list_lost(ListLostRequest) -> ListLostResponse = evidence::lost;
        dismiss_lost(DismissLostRequest) -> DismissLostResponse = evidence::dismiss_lost;
    }
    many {
        watch_objects(WatchObjectsRequest) -> WatchObjectsResponse as WatchObjectsStream = objects::watch;
        watch_tree(WatchTreeRequest) -> WatchTreeResponse as WatchTreeStream = trees::watch;
        events(EventsRequest) -> Event as EventsStream = feeds::events;
        watch_status(WatchStatusRequest) -> SpaceStatus as WatchStatusStream = feeds::watch_status;
        get_evidence(GetEvidenceRequest) -> GetEvidenceResponse as GetEvidenceStream = evidence::evidence;
    }
    awaits {
        join(JoinRequest) -> JoinResponse as JoinStream = joins::join;
        await_synced(AwaitSyncedRequest) -> AwaitSyncedResponse as AwaitSyncedStream = awaiting::synced;
        await_durable(AwaitDurableRequest) -> AwaitDurableResponse as AwaitDurableStream = awaiting::durable;
        await_object(AwaitObjectRequest) -> AwaitObjectResponse as AwaitObjectStream = awaiting::object;
        resume_await(ResumeAwaitRequest) -> ResumeAwaitResponse as ResumeAwaitStream = awaiting::resume;
    }
}
