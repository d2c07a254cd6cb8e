//! Acts on the membership of a space: invites, requests, acceptance.
//!
//! They are *intents*: on a conflict with another admin the intent is judged again on the new ACL and a new record is made.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sync_core::acl::{AclState, InviteStatus, RequestStatus};
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, Epoch, InviteId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::record::{
    AclContent, AclRecord, CreateInvite, HistoryMode, InviteMode, InviteToken, InvitedSpace, Role, Rotation, TreeHeads,
    Verified,
};
use sync_core::token::token_to_text;
use sync_e2ee::{HistoryAccess, InviteSecret, KeyRing, Recipient, SpaceKeys, make_rotation, open_profile, seal_keys};
use sync_proto::v1::{self, acl_append_response::Outcome};

use crate::clock;
use crate::connect::failure;
use crate::error::{AclError, CallError, ReadError};
use crate::space::{Space, SpaceInner};

const ATTEMPTS_MAX: u32 = 50;

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
        }
    }

    /// An invite by which whoever holds it joins by itself, as a writer. Its holder can read the space without joining.
    #[must_use]
    pub fn open() -> Self {
        Self { mode: InviteMode::Open, ..Self::approval() }
    }
}

/// A fresh invite. The token is shown this once; whoever holds it can use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    pub id: InviteId,
    pub token: String,
}

impl std::fmt::Debug for Invite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invite").field("id", &self.id).field("token", &"(secret)").finish()
    }
}

/// Somebody who asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    pub id: AclId,
    pub account: AccountId,
    pub role: Role,
    /// What the account calls itself.
    pub name: Option<String>,
    pub at_ms: u64,
    pub status: RequestStatus,
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
}

impl Space {
    /// Makes an invite.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn invite(&self, options: InviteOptions) -> Result<Invite, AclError> {
        let secret = InviteSecret::generate(&mut rand::rng());
        let expires_ms = options
            .expires_in
            .map(|d| clock::wall_ms().saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)));
        let space = self.inner.clone();
        let (id, invite, key) = (space.id, options.clone(), secret.id());
        let make = move |acl: &AclState| {
            let seals = match invite.mode {
                InviteMode::Approval => Vec::new(),
                InviteMode::Open => {
                    let ring = space.shared.store.read(|tx| space.ring_of(tx, acl))?;
                    let keys = ring.keys(acl.epoch).ok_or(ReadError::NoKeys)?;
                    let keys = keys_for(acl, invite.role, keys);
                    vec![seal_keys(Some(id), acl.epoch, Recipient::Invite(key), &keys, &mut rand::rng())?]
                }
            };
            Ok(vec![AclContent::CreateInvite(CreateInvite {
                key,
                mode: invite.mode,
                role: invite.role,
                expires_ms,
                max_uses: invite.max_uses,
                seals,
                must_see: invite.must_see.clone(),
                requires: invite.requires.clone(),
                label_ct: Bytes::new(),
            })])
        };
        self.inner.append_acl(&make).await?;
        let token = self.token(&secret, &options, expires_ms)?;
        Ok(Invite { id: secret.id(), token })
    }

    fn token(
        &self,
        secret: &InviteSecret,
        options: &InviteOptions,
        expires_ms: Option<u64>,
    ) -> Result<String, AclError> {
        let shared = &self.inner.shared;
        let invited = InvitedSpace {
            space: self.inner.id,
            invite_secret: secret.to_bytes(),
            mode: options.mode,
            role: options.role,
            must_see: options.must_see.iter().map(|tree| TreeHeads { tree: *tree, heads: Vec::new() }).collect(),
            receipt: self.inner.last_receipt()?.map(|r| r.to_export()),
        };
        let token = InviteToken {
            authority: shared.address.authority,
            addresses: vec![shared.address.to_string()],
            spaces: vec![invited],
            inviter: shared.account.id(),
            created_ms: clock::wall_ms(),
            expires_ms: expires_ms.unwrap_or(0),
        };
        Ok(token_to_text(&Verified::sign(&token, shared.account.signing_key(), None)?))
    }

    /// Every invite of the space.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn invites(&self) -> Result<Vec<InviteInfo>, ReadError> {
        let acl = self.inner.acl()?;
        let info = |(id, invite): (&InviteId, &sync_core::acl::Invite)| InviteInfo {
            id: *id,
            mode: invite.content.mode,
            role: invite.content.role,
            creator: invite.creator,
            uses: invite.uses,
            max_uses: invite.content.max_uses,
            expires_ms: invite.content.expires_ms,
            status: invite.status,
        };
        Ok(acl.invites.iter().map(info).collect())
    }

    /// Every request to join, oldest first, with what became of it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn requests(&self) -> Result<Vec<JoinRequest>, ReadError> {
        let acl = self.inner.acl()?;
        let ring = self.inner.ring();
        let info = |(id, request): (&AclId, &sync_core::acl::Request)| JoinRequest {
            id: *id,
            account: request.claim.account,
            role: request.claim.role,
            name: open_name(&ring, self.inner.id, request.epoch, &request.claim.profile_ct),
            at_ms: request.at_ms,
            status: request.status.clone(),
        };
        let mut requests: Vec<_> = acl.requests.iter().map(|r| (r.1.at, info(r))).collect();
        requests.sort_by_key(|(at, _)| *at);
        Ok(requests.into_iter().map(|(_, r)| r).collect())
    }

    /// Accepts a request. `promised` are trees that the new member is meant to see first: they are made durable on the node
    /// before the acceptance is appended, and the acceptance names their heads, so the member's `ready` waits for them.
    ///
    /// # Errors
    /// [`AclError::NothingToPromise`] for a tree that nobody wrote yet.
    pub async fn approve(&self, request: AclId, role: Option<Role>, promised: &[TreeId]) -> Result<(), AclError> {
        if !promised.is_empty() {
            self.promised_durable(promised).await?;
        }
        let (space, promised) = (self.inner.clone(), promised.to_vec());
        let make = move |acl: &AclState| {
            let pending = acl.requests.get(&request).filter(|r| r.status == RequestStatus::Pending);
            let claim = &pending.ok_or(Reject::Acl(sync_core::acl::AclReject::RequestUnknown { request }))?.claim;
            let ring = space.shared.store.read(|tx| space.ring_of(tx, acl))?;
            let keys = ring.keys(acl.epoch).ok_or(ReadError::NoKeys)?;
            let to = Recipient::Account(claim.account);
            let role = role.unwrap_or(claim.role);
            let keys = keys_for(acl, role, keys);
            let seal = seal_keys(Some(space.id), acl.epoch, to, &keys, &mut rand::rng())?;
            Ok(vec![AclContent::AcceptJoin { request, role, seals: vec![seal], frontier: space.frontier(&promised)? }])
        };
        self.inner.append_acl(&make).await
    }

    async fn promised_durable(&self, promised: &[TreeId]) -> Result<(), AclError> {
        let space = self.inner.id;
        let pending = self.inner.shared.store.read(|tx| -> Result<Vec<_>, ReadError> {
            let mut writes = Vec::new();
            for tree in promised {
                writes.extend(tx.pending_of_tree(space, *tree)?.into_iter().map(|w| w.id));
            }
            Ok(writes)
        })?;
        for write in pending {
            self.await_durable(write).await.map_err(|e| AclError::NotDurable(Box::new(e)))?;
        }
        Ok(())
    }

    /// Declines a request.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn decline(&self, request: AclId) -> Result<(), AclError> {
        self.inner.append_acl(&move |_: &AclState| Ok(vec![AclContent::DeclineJoin { request }])).await
    }

    /// Gives the space new keys: what is written from then on is read by those who are members then, and by holders of its
    /// live open invites. Writes of others that are on their way are encrypted anew before they land.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn rotate_keys(&self) -> Result<(), AclError> {
        let space = self.inner.clone();
        let make = move |acl: &AclState| Ok(vec![AclContent::RotateKey { rotation: rotation(&space, acl)? }]);
        self.inner.append_acl(&make).await
    }

    /// The pending request of an account.
    ///
    /// # Errors
    /// [`AclError::NoRequest`].
    pub fn request_of(&self, account: AccountId) -> Result<AclId, AclError> {
        let acl = self.inner.acl()?;
        acl.pending_request(&account).map(|(id, _)| id).ok_or(AclError::NoRequest { account })
    }
}

type MakeContents<'a> = dyn Fn(&AclState) -> Result<Vec<AclContent>, AclError> + Send + Sync + 'a;

impl SpaceInner {
    /// Heads of the promised trees, as logged.
    fn frontier(&self, promised: &[TreeId]) -> Result<Vec<TreeHeads>, AclError> {
        self.shared.store.read(|tx| {
            let mut frontier = Vec::with_capacity(promised.len());
            for tree in promised {
                let state = tx.tree(self.id, *tree)?.ok_or(AclError::NothingToPromise { tree: *tree })?;
                frontier.push(TreeHeads { tree: *tree, heads: state.heads.into_iter().collect() });
            }
            Ok(frontier)
        })
    }

    /// Appends an ACL record for an intent, and waits until it is part of our own log.
    pub(crate) async fn append_acl(self: &Arc<Self>, make: &MakeContents<'_>) -> Result<(), AclError> {
        let registered = tokio::time::timeout(limits::UNARY_TIMEOUT, self.registered()).await;
        registered.map_err(|_| self.shared.timed_out())??;
        for _ in 0..ATTEMPTS_MAX {
            let acl = self.acl()?;
            let record = sign_record(&self.shared, &acl, make(&acl)?)?;
            // What the rules refuse here, they refuse everywhere.
            acl.apply(&record, Seq(u64::MAX)).map_err(Reject::Acl)?;
            let request = v1::AclAppendRequest {
                space: self.id.to_bytes(),
                record: Some(record.into_raw().into()),
                invite_proof: None,
            };
            match self.shared.acl_append(request).await {
                Ok(seq) => return Ok(self.reaches(seq).await?),
                Err(CallError::Refused(refused)) if refused.code == Code::AclConflict => {
                    self.acl_moves_from(acl.head).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(AclError::Contended { attempts: ATTEMPTS_MAX })
    }

    /// Waits until the node has the space, for as long as it takes.
    pub(crate) async fn registered(&self) -> Result<(), CallError> {
        let mut moved = self.moved.subscribe();
        while !self.shared.is_registered(self.id) {
            moved.changed().await.map_err(|_| self.shared.offline())?;
        }
        Ok(())
    }

    /// Waits until our log holds `seq`.
    pub(crate) async fn reaches(&self, seq: Seq) -> Result<(), CallError> {
        let mut watermarks = self.shared.store.watch(self.id);
        let reached = watermarks.wait_for(|w| w.seq >= seq);
        let waited = tokio::time::timeout(limits::UNARY_TIMEOUT, reached).await;
        waited.map_err(|_| CallError::TimedOut)?.map_err(|_| self.shared.offline())?;
        Ok(())
    }

    async fn acl_moves_from(&self, head: AclId) -> Result<(), AclError> {
        let mut watermarks = self.shared.store.watch(self.id);
        let moves = async {
            loop {
                watermarks.borrow_and_update();
                if self.acl()?.head != head {
                    return Ok::<_, AclError>(());
                }
                watermarks.changed().await.map_err(|_| self.shared.offline())?;
            }
        };
        tokio::time::timeout(limits::UNARY_TIMEOUT, moves).await.map_err(|_| CallError::TimedOut)?
    }
}

/// New keys, sealed to exactly those who hold the present ones by right.
fn rotation(space: &SpaceInner, acl: &AclState) -> Result<Rotation, AclError> {
    let ring = space.shared.store.read(|tx| space.ring_of(tx, acl))?;
    let keys = ring.keys(acl.epoch).ok_or(ReadError::NoKeys)?;
    let access = |role| match acl.options.history {
        HistoryMode::All if role > Role::Guest => HistoryAccess::WithHistory,
        HistoryMode::All | HistoryMode::SinceJoin => HistoryAccess::WithoutHistory,
    };
    let members: Vec<_> = acl.members.iter().map(|(account, m)| (*account, access(m.role))).collect();
    let mut rng = rand::rng();
    let (mut rotation, new_keys) = make_rotation(acl.space, (acl.epoch, keys), &members, &mut rng)?;
    if acl.rotation_owed {
        // A leaver may hold the secret of an open invite: the rotation closes them all.
        return Ok(rotation);
    }
    for (id, invite) in &acl.invites {
        if invite.status == InviteStatus::Live && invite.content.mode == InviteMode::Open {
            let keys = keys_for(acl, invite.content.role, &new_keys);
            let to = Recipient::Invite(*id);
            rotation.invite_seals.push(seal_keys(Some(acl.space), rotation.epoch, to, &keys, &mut rng)?);
        }
    }
    Ok(rotation)
}

/// The keys that a role is given: the way back to older epochs only where the space lets its members read history.
pub(crate) fn keys_for(acl: &AclState, role: Role, keys: &SpaceKeys) -> SpaceKeys {
    match acl.options.history {
        HistoryMode::All if role > Role::Guest => keys.clone(),
        HistoryMode::All | HistoryMode::SinceJoin => keys.without_history(),
    }
}

/// The next record of an ACL log.
pub(crate) fn sign_record(
    shared: &crate::client::Shared,
    acl: &AclState,
    contents: Vec<AclContent>,
) -> Result<Verified<AclRecord>, AclError> {
    let record = AclRecord {
        space: acl.space,
        prev: acl.head,
        index: acl.index + 1,
        author: shared.account.id(),
        at_ms: clock::wall_ms(),
        seen: None,
        contents,
    };
    Ok(Verified::sign(&record, shared.account.signing_key(), None)?)
}

impl crate::client::Shared {
    /// One AclAppend; the position of the record, durable.
    pub(crate) async fn acl_append(&self, request: v1::AclAppendRequest) -> Result<Seq, CallError> {
        let call = async {
            let conn = self.conn().await?;
            conn.rpc().acl_append(request).await.map_err(|s| CallError::from(failure(&s)))
        };
        let answer = tokio::time::timeout(limits::UNARY_TIMEOUT, call).await;
        let answer = answer.map_err(|_| self.timed_out())??.into_inner();
        match answer.outcome {
            Some(Outcome::Accepted(v1::Accepted { seq }) | Outcome::Known(v1::Known { seq })) => Ok(Seq(seq)),
            None => Err(CallError::BadAnswer("an append without an outcome".to_owned())),
        }
    }

    /// Why a call timed out: no session all the time, or a silent node.
    pub(crate) fn timed_out(&self) -> CallError {
        if self.connection.borrow().online().is_some() { CallError::TimedOut } else { self.offline() }
    }
}

/// The name in a member's encrypted profile.
pub(crate) fn open_name(ring: &KeyRing, space: SpaceId, epoch: Epoch, profile_ct: &[u8]) -> Option<String> {
    let plain = open_profile(space, epoch, ring.keys(epoch)?, profile_ct).ok()?;
    let profile: serde_json::Value = serde_json::from_slice(&plain).ok()?;
    profile.get("name")?.as_str().map(str::to_owned)
}
