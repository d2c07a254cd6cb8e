//! Invites: making, listing, and the token that carries one.

use std::time::Duration;

use bytes::Bytes;
use sync_core::acl::{AclState, InviteStatus};
use sync_core::ids::{AccountId, Epoch, InviteId, Seq, TreeId};
use sync_core::record::{AclContent, CreateInvite, InviteMode, InviteToken, InvitedSpace, Role, TreeHeads, Verified};
use sync_core::token::token_to_text;
use sync_e2ee::{InviteSecret, Recipient, seal_keys, seal_profile};

use super::change::keys_for_new;
use super::{keys_for, open_name, reads_from_now_on};
use crate::client::Client;
use crate::error::{AclError, ReadError};
use crate::space::{Space, SpaceInner};
use crate::status::Reason;

/// What an invite offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteOptions {
    pub mode: InviteMode,
    pub role: Role,
    /// From now. Judged by the node: worth as much as the node.
    pub expires_in: Option<Duration>,
    pub max_uses: Option<u32>,
    /// What the joiner waits for before it is ready. The trees need not exist yet.
    pub must_see: Vec<TreeId>,
    /// Open invites: what the node insists on having durably before it takes a join.
    pub requires: Vec<TreeId>,
    /// What the members call it in their list of invites; encrypted to them.
    pub label: Option<String>,
}

impl InviteOptions {
    /// An invite whose requests an admin accepts or declines, for writers.
    #[must_use]
    pub fn approval() -> Self {
        Self {
            mode: InviteMode::Approval,
            role: Role::Writer,
            expires_in: None,
            max_uses: None,
            must_see: Vec::new(),
            requires: Vec::new(),
            label: None,
        }
    }

    /// An invite by which whoever holds it joins by itself, as a writer. Its secret is a read key: together with somebody who
    /// has the node's data its holder reads without joining.
    #[must_use]
    pub fn open() -> Self {
        Self { mode: InviteMode::Open, ..Self::approval() }
    }
}

/// A fresh invite. The token is shown this once; whoever holds it can use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// One for each space, in the order of the call.
    pub ids: Vec<InviteId>,
    pub token: String,
    /// Own writes that the node did not have when the invites were made: who joins now does not find them yet.
    pub not_pushed: Vec<Reason>,
}

impl Invite {
    /// The invite of a token for one space.
    #[must_use]
    pub fn id(&self) -> InviteId {
        self.ids[0]
    }
}

impl std::fmt::Debug for Invite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invite")
            .field("ids", &self.ids)
            .field("token", &"(secret)")
            .field("not_pushed", &self.not_pushed)
            .finish()
    }
}

/// An invite, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteInfo {
    pub id: InviteId,
    pub mode: InviteMode,
    pub role: Role,
    pub creator: AccountId,
    pub uses: u32,
    pub max_uses: Option<u32>,
    pub expires_ms: Option<u64>,
    pub status: InviteStatus,
    pub label: Option<String>,
    pub created: Seq,
}

impl Space {
    /// Makes an invite.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{InviteOptions, Role};
    /// let options = InviteOptions { role: Role::Reader, max_uses: Some(1), ..InviteOptions::approval() };
    /// // The one line that is handed to whoever is invited.
    /// println!("{}", space.invite(options).await?.token);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn invite(&self, options: InviteOptions) -> Result<Invite, AclError> {
        let made = self.inner.invite(options).await?;
        self.inner.shared.token(vec![made])
    }

    /// Every invite of the space, the oldest first.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn invites(&self) -> Result<Vec<InviteInfo>, ReadError> {
        let acl = self.inner.acl()?;
        let ring = self.inner.ring();
        let info = |(id, invite): (&InviteId, &sync_core::acl::Invite)| InviteInfo {
            id: *id,
            mode: invite.content.mode,
            role: invite.content.role,
            creator: invite.creator,
            uses: invite.uses,
            max_uses: invite.content.max_uses,
            expires_ms: invite.content.expires_ms,
            status: invite.status,
            label: open_name(&ring, self.inner.id, label_epoch(&acl, invite), &invite.content.label_ct),
            created: invite.created,
        };
        let mut invites: Vec<_> = acl.invites.iter().map(info).collect();
        invites.sort_by_key(|i| i.created);
        Ok(invites)
    }
}

/// A label is sealed before the record that makes the invite, so to the epoch before it.
fn label_epoch(acl: &AclState, invite: &sync_core::acl::Invite) -> Epoch {
    let before = acl.epochs.iter().filter(|(_, info)| info.since < invite.created);
    before.map(|(epoch, _)| *epoch).max().unwrap_or_default()
}

impl Client {
    /// One token for several spaces: an invite is made in each, in order, and whoever joins by the token joins them all.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, club: client_sdk::Space, board: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::InviteOptions;
    /// let both = [(club, InviteOptions::open()), (board, InviteOptions::approval())];
    /// println!("{}", client.invite_to(&both).await?.token);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AclError`] of the first space where no invite could be made; those made before are revoked again.
    /// [`AclError::NoSpaces`] for none at all.
    pub async fn invite_to(&self, spaces: &[(Space, InviteOptions)]) -> Result<Invite, AclError> {
        if spaces.is_empty() {
            return Err(AclError::NoSpaces);
        }
        let mut made: Vec<(usize, MadeInvite)> = Vec::with_capacity(spaces.len());
        for (at, (space, options)) in spaces.iter().enumerate() {
            match space.inner.invite(options.clone()).await {
                Ok(invite) => made.push((at, invite)),
                Err(error) => {
                    for (at, invite) in made {
                        // Best effort: nobody was given its secret, which is gone with this call.
                        if let Err(error) = spaces[at].0.revoke_invite(invite.secret.id()).await {
                            tracing::warn!(error = %error, "an invite that nobody holds could not be revoked");
                        }
                    }
                    return Err(error);
                }
            }
        }
        self.shared.token(made.into_iter().map(|(_, invite)| invite).collect())
    }
}

/// An invite that stands in the log, before it is in a token.
struct MadeInvite {
    secret: InviteSecret,
    invited: InvitedSpace,
    expires_ms: Option<u64>,
    not_pushed: Vec<Reason>,
}

impl SpaceInner {
    async fn invite(self: &std::sync::Arc<Self>, options: InviteOptions) -> Result<MadeInvite, AclError> {
        let secret = InviteSecret::generate(&mut self.shared.host.rng());
        let expires_ms = options
            .expires_in
            .map(|d| self.shared.host.wall_ms().saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)));
        let (space, key, offer) = (self.clone(), secret.id(), options.clone());
        self.append_acl(&move |acl: &AclState| space.create_invite(acl, key, &offer, expires_ms)).await?;
        let not_pushed = self.not_pushed()?;
        if options.mode == InviteMode::Open && reads_from_now_on(self.acl()?.options.history, options.role) {
            self.show_space_info().await;
        }
        let invited = InvitedSpace {
            space: self.id,
            invite_secret: secret.to_bytes(),
            mode: options.mode,
            role: options.role,
            must_see: options.must_see.iter().map(|tree| TreeHeads { tree: *tree, heads: Vec::new() }).collect(),
            receipt: self.last_receipt()?.filter(|r| r.body().durable).map(|r| r.to_export()),
        };
        Ok(MadeInvite { secret, invited, expires_ms, not_pushed })
    }

    /// An open invite by which nobody is to read what was written before begins with new keys.
    fn create_invite(
        &self,
        acl: &AclState,
        key: InviteId,
        options: &InviteOptions,
        expires_ms: Option<u64>,
    ) -> Result<Vec<AclContent>, AclError> {
        let history = acl.options.history;
        let mut contents = Vec::with_capacity(2);
        let seals = match options.mode {
            InviteMode::Approval => Vec::new(),
            InviteMode::Open => {
                let (rotated, epoch, keys) = keys_for_new(self, acl, &[options.role])?;
                contents.extend(rotated);
                let keys = keys_for(history, options.role, &keys);
                vec![seal_keys(Some(self.id), epoch, Recipient::Invite(key), &keys, &mut self.shared.host.rng())?]
            }
        };
        contents.push(AclContent::CreateInvite(CreateInvite {
            key,
            mode: options.mode,
            role: options.role,
            expires_ms,
            max_uses: options.max_uses,
            seals,
            must_see: options.must_see.clone(),
            requires: options.requires.clone(),
            label_ct: self.label_ct(acl, options.label.as_deref())?,
        }));
        Ok(contents)
    }

    fn label_ct(&self, acl: &AclState, label: Option<&str>) -> Result<Bytes, AclError> {
        let (Some(label), Some(epoch)) = (label, acl.epochs.get(&acl.epoch)) else { return Ok(Bytes::new()) };
        let label = serde_json::json!({ "name": label }).to_string();
        Ok(seal_profile(self.id, acl.epoch, &epoch.profile_key, label.as_bytes(), &mut self.shared.host.rng())?)
    }
}

impl crate::client::Shared {
    fn token(&self, made: Vec<MadeInvite>) -> Result<Invite, AclError> {
        let ids = made.iter().map(|m| m.secret.id()).collect();
        let expires_ms = made.iter().filter_map(|m| m.expires_ms).min();
        let not_pushed = made.iter().flat_map(|m| m.not_pushed.iter().cloned()).collect();
        let token = InviteToken {
            authority: self.address.authority,
            addresses: vec![self.address.to_string()],
            spaces: made.into_iter().map(|m| m.invited).collect(),
            inviter: self.account.id(),
            created_ms: self.host.wall_ms(),
            expires_ms: expires_ms.unwrap_or(0),
        };
        let token = token_to_text(&Verified::sign(&token, self.account.signing_key(), None)?);
        Ok(Invite { ids, token, not_pushed })
    }
}
