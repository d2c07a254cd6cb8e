//! What an ACL record tells those who watch the space.

use sync_core::acl::{AclState, RequestStatus};
use sync_core::record::{AclContent, AclRecord, Verified};

use crate::events::Event;

/// The events of a record; `acl` is the state after it.
pub(crate) fn events_of(acl: &AclState, record: &Verified<AclRecord>) -> Vec<Event> {
    let (space, author) = (acl.space, record.body().author);
    let rotated = |rotation: &sync_core::record::Rotation| Event::KeysRotated { space, epoch: rotation.epoch };
    let role_of = |account| acl.role(account).map(|role| Event::RoleChanged { space, account: *account, role });
    let joined = |account, role| Event::MemberJoined { space, account, role };
    let decided = |request: &_, accepted| {
        let account = acl.requests.get(request).map(|r| r.claim.account);
        account.map(|account| Event::RequestDecided { space, request: *request, account, accepted })
    };
    let mut events = Vec::new();
    for content in &record.body().contents {
        match content {
            AclContent::RequestJoin { claim } => {
                let request = record.id().into();
                if acl.requests.get(&request).is_some_and(|r| r.status == RequestStatus::Pending) {
                    events.push(Event::JoinRequested { space, request, account: claim.account });
                }
            }
            AclContent::CancelJoin { request } | AclContent::DeclineJoin { request } => {
                events.extend(decided(request, false));
            }
            AclContent::AcceptJoin { request, role, .. } => {
                events.extend(decided(request, true));
                events.extend(acl.requests.get(request).map(|r| joined(r.claim.account, *role)));
            }
            AclContent::JoinByInvite { claim, .. } => events.push(joined(claim.account, claim.role)),
            AclContent::AddMembers { members } => {
                events.extend(members.iter().map(|(account, role, _)| joined(*account, *role)));
            }
            AclContent::ChangeRole { account, .. } => events.extend(role_of(account)),
            AclContent::RemoveMembers { accounts, rotation } => {
                let gone = |account: &_| Event::MemberGone { space, account: *account, removed: true };
                events.extend(accounts.iter().map(gone));
                events.push(rotated(rotation));
            }
            AclContent::Leave => events.push(Event::MemberGone { space, account: author, removed: false }),
            AclContent::RotateKey { rotation } | AclContent::RevokeInvite { rotation: Some(rotation), .. } => {
                events.push(rotated(rotation));
            }
            AclContent::TransferOwnership { account } => {
                events.extend(role_of(account));
                events.extend(role_of(&author));
            }
            AclContent::DeleteSpace => events.push(Event::SpaceDeleted { space }),
            AclContent::SetHome { .. }
            | AclContent::CreateInvite(_)
            | AclContent::RevokeInvite { rotation: None, .. }
            | AclContent::Reseal { .. }
            | AclContent::SetOptions { .. } => {}
        }
    }
    events
}
