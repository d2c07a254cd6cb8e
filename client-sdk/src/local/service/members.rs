//! Members, changes of the ACL, invites, requests.

use sync_core::ids::{AclId, TreeId};
use sync_core::limits;
use sync_core::token::token_from_text;
use sync_proto::client_v1 as pb;

use super::pages::{at, page};
use super::spaces;
use crate::acl::{InviteOptions, Preparation};
use crate::client::Client;
use crate::error::AclError;
use crate::local::failure::LocalError;
use crate::local::from_wire::{self, BadRequest, NamedTree, PageRequest};
use crate::local::to_wire;
use crate::objects::Update;
use crate::space::Space;

pub(super) async fn list(
    client: Client,
    request: pb::ListMembersRequest,
) -> Result<pb::ListMembersResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let members = spaces::of(&client, &request.space)?.members()?;
    let all = members.into_iter().map(|m| (m.account.to_string(), m)).collect();
    let page = page(all, &wanted, pb::Member::from);
    Ok(pb::ListMembersResponse { members: page.items, next_page_token: page.next })
}

pub(super) async fn change(client: Client, request: pb::ChangeAclRequest) -> Result<pb::ChangeAclResponse, LocalError> {
    let change = from_wire::acl_change(request.change)?;
    spaces::of(&client, &request.space)?.change(change).await?;
    Ok(pb::ChangeAclResponse {})
}

pub(super) async fn plan(client: Client, request: pb::PlanAclRequest) -> Result<pb::PlanAclResponse, LocalError> {
    let change = from_wire::acl_change(request.change)?;
    let plan = spaces::of(&client, &request.space)?.plan(&change)?;
    Ok(pb::PlanAclResponse {
        contents: plan.contents.into_iter().map(str::to_owned).collect(),
        effects: plan.effects.iter().map(Into::into).collect(),
    })
}

// ---- invites --------------------------------------------------------------------------------------------------------

pub(super) async fn invite(
    client: Client,
    request: pb::CreateInviteRequest,
) -> Result<pb::CreateInviteResponse, LocalError> {
    from_wire::at_most("offers", &request.offers, limits::ACL_CONTENTS_MAX)?;
    let offers = request.offers.into_iter().map(|offer| read_offer(&client, offer));
    let offers = offers.collect::<Result<Vec<_>, LocalError>>()?;
    let invite = client.invite_to(&offers).await?;
    let invites = invite.ids.iter().map(ToString::to_string).collect();
    let not_pushed = invite.not_pushed.iter().map(Into::into).collect();
    Ok(pb::CreateInviteResponse { token: invite.token, invites, not_pushed })
}

fn read_offer(client: &Client, offer: pb::InviteOffer) -> Result<(Space, InviteOptions), LocalError> {
    let space = spaces::of(client, &offer.space)?;
    let mut options = from_wire::invite_options(&offer)?;
    let trees = |named: Vec<pb::TreeRef>| named.into_iter().map(|t| tree(&space, t)).collect::<Result<_, LocalError>>();
    options.must_see = trees(offer.must_see)?;
    options.requires = trees(offer.requires)?;
    Ok((space, options))
}

/// The tree that a request names.
pub(super) fn tree(space: &Space, named: pb::TreeRef) -> Result<TreeId, LocalError> {
    Ok(match from_wire::named_tree(named)? {
        NamedTree::Tree(tree) => tree,
        NamedTree::Object { object_type, id } => space.objects().tree_id(&object_type, &id)?,
    })
}

pub(super) async fn invites(
    client: Client,
    request: pb::ListInvitesRequest,
) -> Result<pb::ListInvitesResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let invites = spaces::of(&client, &request.space)?.invites()?;
    let all = invites.into_iter().map(|i| (at(i.created.0, i.id), i)).collect();
    let page = page(all, &wanted, pb::Invite::from);
    Ok(pb::ListInvitesResponse { invites: page.items, next_page_token: page.next })
}

pub(super) async fn show_invite(
    _: Client,
    request: pb::ShowInviteRequest,
) -> Result<pb::ShowInviteResponse, LocalError> {
    let token = token_from_text(request.token.trim())?;
    let token = token.body();
    let space = |invited: &sync_core::record::InvitedSpace| pb::InvitedSpace {
        space: invited.space.to_string(),
        mode: to_wire::mode(invited.mode),
        role: to_wire::role(Some(invited.role)),
        must_see: invited.must_see.iter().map(|t| t.tree.to_string()).collect(),
    };
    Ok(pb::ShowInviteResponse {
        authority: token.authority.to_string(),
        addresses: token.addresses.clone(),
        inviter: token.inviter.to_string(),
        created_ms: token.created_ms,
        expires_ms: (token.expires_ms != 0).then_some(token.expires_ms),
        spaces: token.spaces.iter().map(space).collect(),
    })
}

// ---- requests -------------------------------------------------------------------------------------------------------

pub(super) async fn requests(
    client: Client,
    request: pb::ListRequestsRequest,
) -> Result<pb::ListRequestsResponse, LocalError> {
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let mut requests = spaces::of(&client, &request.space)?.requests()?;
    requests.retain(|r| !request.pending_only || r.status == sync_core::acl::RequestStatus::Pending);
    let all = requests.into_iter().map(|r| (at(r.at_ms, r.id), r)).collect();
    let page = page(all, &wanted, pb::Request::from);
    Ok(pb::ListRequestsResponse { requests: page.items, next_page_token: page.next })
}

pub(super) async fn approve(client: Client, request: pb::ApproveRequest) -> Result<pb::ApproveResponse, LocalError> {
    use pb::approve_request::Who;
    let space = spaces::of(&client, &request.space)?;
    let asked = match from_wire::required("who", request.who)? {
        Who::Request(text) => from_wire::id("request", &text)?,
        Who::Account(text) => space.request_of(from_wire::id("account", &text)?)?,
    };
    from_wire::at_most("prepare", &request.prepare, limits::NAMED_TREES_MAX)?;
    let steps = request.prepare.into_iter().map(read_step).collect::<Result<Vec<_>, _>>()?;
    let role = from_wire::role(request.role)?;
    space.approve(asked, role, |preparation| steps.into_iter().try_for_each(|step| step.take(preparation))).await?;
    Ok(pb::ApproveResponse {})
}

/// One thing to prepare for a new member.
enum Step {
    Put { object_type: String, id: String, fields: serde_json::Value },
    Update { object_type: String, id: String, update: Update },
    PromiseObject { object_type: String, id: String },
    PromiseTree(TreeId),
}

impl Step {
    fn take(self, preparation: &mut Preparation) -> Result<(), AclError> {
        match self {
            Self::Put { object_type, id, fields } => preparation.put(&object_type, &id, fields),
            Self::Update { object_type, id, update } => preparation.update(&object_type, &id, update),
            Self::PromiseObject { object_type, id } => preparation.promise(&object_type, &id),
            Self::PromiseTree(tree) => preparation.promise_trees(&[tree]),
        }
    }
}

fn read_step(step: pb::Prepared) -> Result<Step, BadRequest> {
    use pb::prepared::Step as Wire;
    Ok(match from_wire::required("prepare.step", step.step)? {
        Wire::Put(put) => {
            let fields = from_wire::fields(&put.fields_json)?.into();
            Step::Put { object_type: put.r#type, id: put.id, fields }
        }
        Wire::Update(update) => {
            let ops = from_wire::update(update.ops)?;
            Step::Update { object_type: update.r#type, id: update.id, update: ops }
        }
        Wire::Promise(named) => match from_wire::named_tree(named)? {
            NamedTree::Tree(tree) => Step::PromiseTree(tree),
            NamedTree::Object { object_type, id } => Step::PromiseObject { object_type, id },
        },
    })
}

pub(super) async fn decline(client: Client, request: pb::DeclineRequest) -> Result<pb::DeclineResponse, LocalError> {
    use pb::decline_request::Who;
    let space = spaces::of(&client, &request.space)?;
    let asked: AclId = match request.who.ok_or(BadRequest::Missing { field: "who" })? {
        Who::Request(text) => from_wire::id("request", &text)?,
        Who::Account(text) => space.request_of(from_wire::id("account", &text)?)?,
    };
    space.decline(asked).await?;
    Ok(pb::DeclineResponse {})
}
