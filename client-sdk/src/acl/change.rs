//! What a member can change about a space, as intents.

use sync_core::acl::{AclReject, AclState};
use sync_core::ids::{AccountId, AclId, Epoch, InviteId};
use sync_core::log::Reject;
use sync_core::record::{AclContent, HistoryMode, InviteMode, Role, SpaceOptions};
use sync_e2ee::{Recipient, SpaceKeys, seal_keys};

use super::{OpenInvites, keys_for, reads_from_now_on};
use crate::error::{AclError, ReadError};
use crate::space::{Space, SpaceInner};

/// A change of the ACL: done by [`Space::change`], foretold by [`Space::plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AclChange {
    /// Makes accounts members without their asking. They open the space with [`crate::Client::open_joined`].
    AddMembers { members: Vec<(AccountId, Role)> },
    /// Gives a member another role, below one's own.
    ChangeRole { account: AccountId, role: Role },
    /// Takes membership and future keys away, in one record; closes every open invite.
    RemoveMembers { accounts: Vec<AccountId> },
    /// Puts a new account in the place of one whose keys were stolen: the old one is removed, the new one has its role. For an
    /// owner only the owner itself can do it: the new account becomes the owner and the old one an admin, whom it can remove.
    ReplaceAccount { old: AccountId, new: AccountId },
    /// Ends one's own membership. See [`Space::leave`], which also works offline.
    Leave,
    /// Ends an invite; an open one takes the present keys with it.
    RevokeInvite { invite: InviteId },
    /// Accepts a request to join, with nothing to prepare; see [`Space::approve`].
    AcceptRequest { request: AclId, role: Option<Role> },
    /// Declines a request to join.
    DeclineRequest { request: AclId },
    /// New keys for what is written from now on.
    RotateKeys,
    /// Gives a member every key again that it should have and that we hold, because those in the log do not open (`KEY_OWED`).
    Reseal { account: AccountId },
    /// Who reads history, and the format version that members must be able to read, which nothing judges yet. Opening the
    /// history of a space makes new keys, which lead back to the ones before them and no further: earlier ones were never given
    /// with a way back.
    SetOptions { options: SpaceOptions },
    /// Makes a member the owner; the former owner becomes an admin.
    TransferOwnership { account: AccountId },
    /// Ends the space for everybody, for good. Its contents are dropped at the node and at the members.
    DeleteSpace,
}

impl AclChange {
    /// The roles of those whom it lets in.
    fn newcomers(&self, acl: &AclState) -> Vec<Role> {
        match self {
            Self::AddMembers { members } => members.iter().map(|(_, role)| *role).collect(),
            Self::ReplaceAccount { old, .. } => acl.role(old).into_iter().collect(),
            Self::AcceptRequest { request, role } => {
                let asked = acl.requests.get(request).map(|r| r.claim.role);
                role.or(asked).into_iter().collect()
            }
            Self::ChangeRole { .. }
            | Self::RemoveMembers { .. }
            | Self::Leave
            | Self::RevokeInvite { .. }
            | Self::DeclineRequest { .. }
            | Self::RotateKeys
            | Self::Reseal { .. }
            | Self::SetOptions { .. }
            | Self::TransferOwnership { .. }
            | Self::DeleteSpace => Vec::new(),
        }
    }

    /// The contents of the record that does it, on top of `acl`. The rules judge them, not this.
    pub(super) fn contents(&self, space: &SpaceInner, acl: &AclState) -> Result<Vec<AclContent>, AclError> {
        Ok(match self {
            Self::AddMembers { members } => add_members(space, acl, members)?,
            Self::ChangeRole { account, role } => {
                let lifted = acl.role(account) == Some(Role::Guest) && *role > Role::Guest;
                let seal = if lifted { Some(sealed(space, acl, *account, *role)?) } else { None };
                vec![AclContent::ChangeRole { account: *account, role: *role, seal }]
            }
            Self::RemoveMembers { accounts } => {
                let (rotation, _) = space.rotation(acl, accounts, OpenInvites::Close)?;
                vec![AclContent::RemoveMembers { accounts: accounts.clone(), rotation }]
            }
            Self::ReplaceAccount { old, new } => replace(space, acl, *old, *new)?,
            Self::Leave => vec![AclContent::Leave],
            Self::RevokeInvite { invite } => {
                let mode = acl.live_invite(invite).map_err(Reject::Acl)?.content.mode;
                let rotation = match mode {
                    InviteMode::Open => Some(space.rotation(acl, &[], OpenInvites::Reseal { except: Some(invite) })?.0),
                    InviteMode::Approval => None,
                };
                vec![AclContent::RevokeInvite { invite: *invite, rotation }]
            }
            Self::AcceptRequest { request, role } => accept(space, acl, *request, *role)?,
            Self::DeclineRequest { request } => vec![AclContent::DeclineJoin { request: *request }],
            Self::RotateKeys => vec![AclContent::RotateKey {
                rotation: space.rotation(acl, &[], OpenInvites::Reseal { except: None })?.0,
            }],
            Self::Reseal { account } => reseal(space, acl, *account)?,
            Self::SetOptions { options } => set_options(space, acl, *options)?,
            Self::TransferOwnership { account } => vec![AclContent::TransferOwnership { account: *account }],
            Self::DeleteSpace => vec![AclContent::DeleteSpace],
        })
    }
}

/// At most so many seals in one record; each is about 190 bytes.
const RESEALS_MAX: usize = 1_000;

fn reseal(space: &SpaceInner, acl: &AclState, account: AccountId) -> Result<Vec<AclContent>, AclError> {
    let member = acl.members.get(&account).ok_or(Reject::Acl(AclReject::NotAMember { account }))?;
    let ring = space.shared.store.read(|tx| space.ring_of(tx, acl))?;
    let mut contents = Vec::new();
    // The newest first: from them a way may lead back to the others.
    for epoch in acl.epochs.range(member.reads_from..).rev().map(|(epoch, _)| *epoch).take(RESEALS_MAX) {
        let Some(keys) = ring.keys(epoch) else { continue };
        let seal = seal_to(space, acl, epoch, account, member.role, keys)?;
        contents.push(AclContent::Reseal { account, epoch, seal });
    }
    if contents.is_empty() { Err(ReadError::NoKeys.into()) } else { Ok(contents) }
}

fn set_options(space: &SpaceInner, acl: &AclState, options: SpaceOptions) -> Result<Vec<AclContent>, AclError> {
    let mut contents = vec![AclContent::SetOptions { options }];
    if options.history == HistoryMode::All && acl.options.history != HistoryMode::All {
        let invites = OpenInvites::Reseal { except: None };
        let (rotation, _) = space.rotation_with(acl, options.history, &[], invites)?;
        contents.push(AclContent::RotateKey { rotation });
    }
    Ok(contents)
}

fn role_of(acl: &AclState, account: AccountId) -> Result<Role, AclError> {
    Ok(acl.role(&account).ok_or(Reject::Acl(AclReject::NotAMember { account }))?)
}

fn seal_to(
    space: &SpaceInner,
    acl: &AclState,
    epoch: Epoch,
    account: AccountId,
    role: Role,
    keys: &SpaceKeys,
) -> Result<sync_core::record::Seal, AclError> {
    let keys = keys_for(acl.options.history, role, keys);
    Ok(seal_keys(Some(acl.space), epoch, Recipient::Account(account), &keys, &mut space.shared.host.rng())?)
}

/// The present keys, for a role.
pub(super) fn sealed(
    space: &SpaceInner,
    acl: &AclState,
    account: AccountId,
    role: Role,
) -> Result<sync_core::record::Seal, AclError> {
    seal_to(space, acl, acl.epoch, account, role, &space.current_keys(acl)?)
}

fn accept(space: &SpaceInner, acl: &AclState, request: AclId, role: Option<Role>) -> Result<Vec<AclContent>, AclError> {
    let claim = SpaceInner::pending_claim(acl, request)?;
    let role = role.unwrap_or(claim.role);
    let (mut contents, epoch, keys) = keys_for_new(space, acl, &[role])?;
    let seals = vec![seal_to(space, acl, epoch, claim.account, role, &keys)?];
    contents.push(AclContent::AcceptJoin { request, role, seals, frontier: Vec::new() });
    Ok(contents)
}

/// The keys that new members of these roles get. Who is not to read what was written before gets new ones, made in the same
/// record.
pub(super) fn keys_for_new(
    space: &SpaceInner,
    acl: &AclState,
    roles: &[Role],
) -> Result<(Vec<AclContent>, Epoch, SpaceKeys), AclError> {
    if roles.iter().any(|role| reads_from_now_on(acl.options.history, *role)) {
        let (rotation, keys) = space.rotation(acl, &[], OpenInvites::Reseal { except: None })?;
        let epoch = rotation.epoch;
        return Ok((vec![AclContent::RotateKey { rotation }], epoch, keys));
    }
    Ok((Vec::new(), acl.epoch, space.current_keys(acl)?))
}

fn add_members(space: &SpaceInner, acl: &AclState, members: &[(AccountId, Role)]) -> Result<Vec<AclContent>, AclError> {
    let roles: Vec<_> = members.iter().map(|(_, role)| *role).collect();
    let (mut contents, epoch, keys) = keys_for_new(space, acl, &roles)?;
    let seal = |(account, role): &(AccountId, Role)| {
        Ok((*account, *role, seal_to(space, acl, epoch, *account, *role, &keys)?))
    };
    let members = members.iter().map(seal).collect::<Result<_, AclError>>()?;
    contents.push(AclContent::AddMembers { members });
    Ok(contents)
}

fn replace(space: &SpaceInner, acl: &AclState, old: AccountId, new: AccountId) -> Result<Vec<AclContent>, AclError> {
    let role = role_of(acl, old)?;
    let is_member = acl.members.contains_key(&new);
    if role == Role::Owner {
        let mut contents = if is_member { Vec::new() } else { add_members(space, acl, &[(new, Role::Admin)])? };
        contents.push(AclContent::TransferOwnership { account: new });
        return Ok(contents);
    }
    let (rotation, keys) = space.rotation(acl, &[old], OpenInvites::Close)?;
    let seal = seal_to(space, acl, rotation.epoch, new, role, &keys)?;
    let lifted = acl.role(&new) == Some(Role::Guest) && role > Role::Guest;
    let takes_over = if is_member {
        AclContent::ChangeRole { account: new, role, seal: lifted.then_some(seal) }
    } else {
        AclContent::AddMembers { members: vec![(new, role, seal)] }
    };
    Ok(vec![AclContent::RemoveMembers { accounts: vec![old], rotation }, takes_over])
}

impl Space {
    /// Does a change: returns when it is on the node's disk and in the log here. If others are faster it is made again on
    /// what they did, as long as the rules still allow it. It goes on if the caller goes away, until it is done or fails.
    ///
    /// # Errors
    /// [`AclError`]; the rules are asked before anything is sent.
    ///
    /// ```no_run
    /// # async fn f(space: client_sdk::Space, bob: client_sdk::AccountId) -> Result<(), client_sdk::AclError> {
    /// use client_sdk::AclChange;
    /// let change = AclChange::RemoveMembers { accounts: vec![bob] };
    /// println!("{:?}", space.plan(&change)?);
    /// space.change(change).await
    /// # }
    /// ```
    pub async fn change(&self, change: AclChange) -> Result<(), AclError> {
        let (space, newcomers) = (self.inner.clone(), change.newcomers(&*self.inner.acl()?));
        let changing = Box::pin(async move {
            let make = |acl: &AclState| change.contents(&space, acl);
            let done = space.append_acl(&make).await;
            let history = space.acl()?.options.history;
            // Where the answer was lost they may be in.
            let may_be_in = matches!(done, Ok(()) | Err(AclError::Call(_)));
            if may_be_in && newcomers.into_iter().any(|role| reads_from_now_on(history, role)) {
                // The space's own name is from before their time.
                space.show_space_info().await;
            }
            done
        });
        self.inner.shared.until_closed(changing).await?
    }

    /// Adds accounts without their asking; see [`AclChange::AddMembers`].
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn add_members(&self, members: &[(AccountId, Role)]) -> Result<(), AclError> {
        self.change(AclChange::AddMembers { members: members.to_vec() }).await
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn change_role(&self, account: AccountId, role: Role) -> Result<(), AclError> {
        self.change(AclChange::ChangeRole { account, role }).await
    }

    /// Removes members: from this record on nothing of theirs is accepted, and nothing is readable to them that is written
    /// later. What they have read they have read.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn remove_members(&self, accounts: &[AccountId]) -> Result<(), AclError> {
        self.change(AclChange::RemoveMembers { accounts: accounts.to_vec() }).await
    }

    /// Puts a new account in the place of a stolen one; see [`AclChange::ReplaceAccount`].
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space, stolen: client_sdk::AccountId, new: client_sdk::AccountId) -> Result<(), Box<dyn std::error::Error>> {
    /// // By an admin above both, in every space that the stolen account is in.
    /// space.replace_account(stolen, new).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn replace_account(&self, old: AccountId, new: AccountId) -> Result<(), AclError> {
        self.change(AclChange::ReplaceAccount { old, new }).await
    }

    /// Ends an invite.
    ///
    /// # Errors
    /// [`AclError`]; `INVITE_REVOKED` if it ended before.
    pub async fn revoke_invite(&self, invite: InviteId) -> Result<(), AclError> {
        self.change(AclChange::RevokeInvite { invite }).await
    }

    /// Declines a request.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn decline(&self, request: AclId) -> Result<(), AclError> {
        self.change(AclChange::DeclineRequest { request }).await
    }

    /// Gives the space new keys: what is written from then on is read by those who are members then, and by holders of its
    /// live open invites. Writes of others that are on their way are encrypted anew before they land.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn rotate_keys(&self) -> Result<(), AclError> {
        self.change(AclChange::RotateKeys).await
    }

    /// Gives a member the keys of the space again.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn reseal(&self, account: AccountId) -> Result<(), AclError> {
        self.change(AclChange::Reseal { account }).await
    }

    /// Changes the options of the space.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn set_options(&self, options: SpaceOptions) -> Result<(), AclError> {
        self.change(AclChange::SetOptions { options }).await
    }

    /// Makes a member the owner.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn transfer_ownership(&self, account: AccountId) -> Result<(), AclError> {
        self.change(AclChange::TransferOwnership { account }).await
    }

    /// Deletes the space for everybody.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn delete(&self) -> Result<(), AclError> {
        self.change(AclChange::DeleteSpace).await
    }

    /// Leaves the space. Kept durably first: if the node is not reached now it goes out by itself as soon as it is, also from a
    /// later process, and the error is `OFFLINE`. What this account reads it can read until the next rotation, which the
    /// first admin makes who sees it.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// space.leave().await?;
    /// // What is here may be read still, until it is dropped.
    /// client.forget_space(space.id()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AclError`]; an owner transfers the space first.
    pub async fn leave(&self) -> Result<(), AclError> {
        self.inner.leave().await
    }
}
