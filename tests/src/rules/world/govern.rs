//! Acts on members, keys and the end of a space.

use sync_core::record::Rotation;
use sync_e2ee::{HistoryAccess, make_rotation};

use super::*;
use crate::script::Governing;

/// The open invites that an act closes before it makes new keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closes {
    Nothing,
    One(InviteId),
    All,
}

impl PureWorld {
    pub(super) fn govern(&mut self, who: &str, space: SpaceId, act: &Governing, forced: bool) -> Result<(), Trouble> {
        match act {
            Governing::Cancels => return self.cancel(who, space, forced),
            Governing::Adds { whom, role } => return self.add(who, space, whom, *role, forced),
            Governing::Removes { .. }
            | Governing::Leaves
            | Governing::Makes { .. }
            | Governing::Revokes { .. }
            | Governing::Rotates
            | Governing::Reseals { .. }
            | Governing::Transfers { .. }
            | Governing::SetsHistory { .. }
            | Governing::DeletesSpace => {}
        }
        if !forced {
            self.prepare(who, space)?;
        }
        let acl = self.node_log(space)?.acl_state().clone();
        let content = match act {
            Governing::Removes { whom } => {
                let accounts: Vec<_> = whom.iter().map(|name| self.account(name)).collect();
                let rotation = self.rotation(who, space, &accounts, Closes::All, forced)?;
                AclContent::RemoveMembers { accounts, rotation }
            }
            Governing::Leaves => AclContent::Leave,
            Governing::Makes { whom, role } => {
                let account = self.account(whom);
                let lifted = acl.role(&account) == Some(Role::Guest) && *role > Role::Guest;
                let seal = match lifted {
                    true => Some(self.seal_to(who, space, account, *role, forced)?),
                    false => None,
                };
                AclContent::ChangeRole { account, role: *role, seal }
            }
            Governing::Revokes { whom } => self.revocation(who, space, whom, forced)?,
            Governing::Rotates => {
                AclContent::RotateKey { rotation: self.rotation(who, space, &[], Closes::Nothing, forced)? }
            }
            Governing::Reseals { whom } => {
                let account = self.account(whom);
                let role = acl.role(&account).unwrap_or(Role::Reader);
                let seal = self.seal_to(who, space, account, role, forced)?;
                AclContent::Reseal { account, epoch: acl.epoch, seal }
            }
            Governing::Transfers { to } => AclContent::TransferOwnership { account: self.account(to) },
            Governing::SetsHistory { history } => {
                AclContent::SetOptions { options: SpaceOptions { history: *history, ..acl.options } }
            }
            Governing::DeletesSpace => AclContent::DeleteSpace,
            Governing::Cancels | Governing::Adds { .. } => unreachable!("done above"),
        };
        self.append(who, space, content, forced).map(|_| ())
    }

    pub(super) fn account(&mut self, who: &str) -> AccountId {
        self.meet(who);
        self.person(who).keys.id()
    }

    /// A request is taken back by somebody who is no member: there is no replica to judge it on.
    fn cancel(&mut self, who: &str, space: SpaceId, forced: bool) -> Result<(), Trouble> {
        if !self.is_connected(who) {
            return Err(Trouble::refused("OFFLINE", "the node cannot be reached"));
        }
        let account = self.account(who);
        let request = match self.node_log(space)?.acl_state().pending_request(&account) {
            Some((request, _)) => request,
            // A patched client sends it for whatever request it finds.
            None if forced => self.request_of(who, space, who, true)?,
            None => return Err(Trouble::refused("REQUEST_UNKNOWN", format!("{who} has no pending request"))),
        };
        self.append(who, space, AclContent::CancelJoin { request }, true)?;
        self.person_mut(who).joining.remove(&space);
        Ok(())
    }

    /// The added one opens the space by itself.
    fn add(&mut self, who: &str, space: SpaceId, whom: &str, role: Role, forced: bool) -> Result<(), Trouble> {
        let account = self.account(whom);
        let seal = self.seal_to(who, space, account, role, forced)?;
        self.append(who, space, AclContent::AddMembers { members: vec![(account, role, seal)] }, forced)?;
        self.person_mut(whom).joining.insert(space, Vec::new());
        self.adopt_all();
        self.enter(whom, space)
    }

    pub(super) fn seal_to(
        &mut self,
        who: &str,
        space: SpaceId,
        account: AccountId,
        role: Role,
        forced: bool,
    ) -> Result<Seal, Trouble> {
        let keys = self.keys_to_give(who, space, forced)?;
        Ok(self.seal(space, Recipient::Account(account), role, &keys))
    }

    /// The id of the invite that a person was given last.
    pub(super) fn invite_of(&mut self, whom: &str, space: SpaceId) -> Result<InviteId, Trouble> {
        self.meet(whom);
        let given = self.person(whom).tokens.iter().rev().find(|t| t.space == space).map(|t| t.secret.id());
        given.ok_or_else(|| Trouble::wrong("an invite", format!("nobody gave {whom} one")))
    }

    fn revocation(&mut self, who: &str, space: SpaceId, whom: &str, forced: bool) -> Result<AclContent, Trouble> {
        let invite = self.invite_of(whom, space)?;
        let mode = self.node_log(space)?.acl_state().invites.get(&invite).map(|i| i.content.mode);
        let rotation = match mode {
            Some(InviteMode::Open) => Some(self.rotation(who, space, &[], Closes::One(invite), forced)?),
            Some(InviteMode::Approval) | None => None,
        };
        Ok(AclContent::RevokeInvite { invite, rotation })
    }

    /// New keys for those who stay, and for the open invites that stay.
    pub(super) fn rotation(
        &mut self,
        who: &str,
        space: SpaceId,
        gone: &[AccountId],
        closes: Closes,
        forced: bool,
    ) -> Result<Rotation, Trouble> {
        let keys = self.keys_to_give(who, space, forced)?;
        let acl = self.node[&space].acl_state().clone();
        let access = |role| match reads_history(acl.options.history, role) {
            true => HistoryAccess::WithHistory,
            false => HistoryAccess::WithoutHistory,
        };
        let stay = acl.members.iter().filter(|(account, _)| !gone.contains(account));
        let members: Vec<_> = stay.map(|(account, member)| (*account, access(member.role))).collect();
        let (mut rotation, new) =
            make_rotation(space, (acl.epoch, &keys), &members, &mut self.secrets).expect("keys of people are strong");
        let closes_all = closes == Closes::All || acl.rotation_owed;
        for (id, invite) in acl.invites.iter().filter(|_| !closes_all) {
            let is_live = invite.status == InviteStatus::Live && invite.content.mode == InviteMode::Open;
            if is_live && closes != Closes::One(*id) {
                let given = match access(invite.content.role) {
                    HistoryAccess::WithHistory => new.clone(),
                    HistoryAccess::WithoutHistory => new.without_history(),
                };
                let to = Recipient::Invite(*id);
                let seal = seal_keys(Some(space), rotation.epoch, to, &given, &mut self.secrets).expect(OWN);
                rotation.invite_seals.push(seal);
            }
        }
        self.all_keys.insert(new.key_id(), new);
        Ok(rotation)
    }
}
