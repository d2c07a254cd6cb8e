//! The decoded bodies: protobuf in, checked fields out, and back to the very same bytes.
//!
//! Only shapes are judged here (lengths, enums, sortedness, limits of one record). Rules about a log live in `acl` and `log`.

use bytes::Bytes;

use super::{Body, Kind, PayloadClaim, VerifyError};
use crate::ids::{
    AccountId, AclId, AuthorityId, Chain, ChangeId, DeviceId, Epoch, HistoryId, InviteId, NodeId, Seq, SpaceId, TreeId,
};
use crate::{limits, pb};

type Result<T> = std::result::Result<T, VerifyError>;

const fn bad(field: &'static str, problem: &'static str) -> VerifyError {
    VerifyError::Field { field, problem }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or(bad(field, "missing"))
}

fn exactly<const N: usize>(field: &'static str, bytes: &Bytes) -> Result<[u8; N]> {
    bytes.as_ref().try_into().map_err(|_| bad(field, "has the wrong length"))
}

fn version_1(version: u32) -> Result<()> {
    if version == super::VERSION { Ok(()) } else { Err(VerifyError::UnknownVersion(version)) }
}

fn at_most<T>(field: &'static str, items: &[T], max: usize) -> Result<()> {
    if items.len() > max { Err(bad(field, "has too many elements")) } else { Ok(()) }
}

fn not_empty<T>(field: &'static str, items: &[T]) -> Result<()> {
    if items.is_empty() { Err(bad(field, "must not be empty")) } else { Ok(()) }
}

fn strictly_sorted<T: Ord>(field: &'static str, items: &[T]) -> Result<()> {
    if items.windows(2).all(|w| w[0] < w[1]) { Ok(()) } else { Err(bad(field, "must be sorted, without repeats")) }
}

fn ids<T>(field: &'static str, raw: &[Bytes], max: usize) -> Result<Vec<T>>
where
    T: for<'a> TryFrom<&'a [u8], Error = crate::ids::IdError>,
{
    at_most(field, raw, max)?;
    raw.iter().map(|b| T::try_from(b.as_ref()).map_err(Into::into)).collect()
}

// ---- shared parts -------------------------------------------------------------------------------------------------

/// Keys encrypted to one account or invite (HPKE). Opaque to the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The account or invite key that can open it.
    pub recipient: [u8; 32],
    /// HPKE's encapsulated key.
    pub enc: Bytes,
    pub ciphertext: Bytes,
}

const SEAL_CIPHERTEXT_MAX: usize = 256;

impl TryFrom<pb::Seal> for Seal {
    type Error = VerifyError;
    fn try_from(seal: pb::Seal) -> Result<Self> {
        if seal.enc.len() != 32 {
            return Err(bad("seal.enc", "has the wrong length"));
        }
        if seal.ciphertext.len() > SEAL_CIPHERTEXT_MAX {
            return Err(bad("seal.ciphertext", "is too long"));
        }
        Ok(Self { recipient: exactly("seal.recipient", &seal.recipient)?, enc: seal.enc, ciphertext: seal.ciphertext })
    }
}

impl From<&Seal> for pb::Seal {
    fn from(seal: &Seal) -> Self {
        Self {
            recipient: Bytes::copy_from_slice(&seal.recipient),
            enc: seal.enc.clone(),
            ciphertext: seal.ciphertext.clone(),
        }
    }
}

fn seals(field: &'static str, raw: Vec<pb::Seal>) -> Result<Vec<Seal>> {
    at_most(field, &raw, limits::MEMBERS_MAX)?;
    raw.into_iter().map(TryInto::try_into).collect()
}

/// The author's last durable log position: gossip that exposes a node which tells two stories. Never a rule of validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub history: HistoryId,
    pub seq: Seq,
    pub chain: Chain,
}

impl TryFrom<pb::Seen> for Seen {
    type Error = VerifyError;
    fn try_from(seen: pb::Seen) -> Result<Self> {
        Ok(Self {
            history: HistoryId::try_from(seen.history.as_ref())?,
            seq: Seq(seen.seq),
            chain: Chain::try_from(seen.chain.as_ref())?,
        })
    }
}

impl From<&Seen> for pb::Seen {
    fn from(seen: &Seen) -> Self {
        Self { history: Bytes::copy_from_slice(&seen.history.0), seq: seen.seq.0, chain: seen.chain.to_bytes() }
    }
}

/// The heads of one tree at one moment. Without heads: "exists".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeHeads {
    pub tree: TreeId,
    /// Sorted.
    pub heads: Vec<ChangeId>,
}

impl TryFrom<pb::TreeHeads> for TreeHeads {
    type Error = VerifyError;
    fn try_from(raw: pb::TreeHeads) -> Result<Self> {
        let heads = ids("heads", &raw.heads, limits::HEADS_MAX)?;
        strictly_sorted("heads", &heads)?;
        Ok(Self { tree: TreeId::try_from(raw.tree.as_ref())?, heads })
    }
}

impl From<&TreeHeads> for pb::TreeHeads {
    fn from(heads: &TreeHeads) -> Self {
        Self { tree: heads.tree.to_bytes(), heads: heads.heads.iter().map(|h| h.to_bytes()).collect() }
    }
}

/// Who a member is in a space. Ordered: a greater role may do everything that a lesser one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A reader without history.
    Guest,
    Reader,
    Writer,
    Admin,
    Owner,
}

impl Role {
    fn from_pb(role: i32) -> Result<Self> {
        Ok(match pb::Role::try_from(role).map_err(|_| bad("role", "is unknown"))? {
            pb::Role::None => return Err(bad("role", "None is not a role")),
            pb::Role::Guest => Self::Guest,
            pb::Role::Reader => Self::Reader,
            pb::Role::Writer => Self::Writer,
            pb::Role::Admin => Self::Admin,
            pb::Role::Owner => Self::Owner,
        })
    }

    fn to_pb(self) -> i32 {
        match self {
            Self::Guest => pb::Role::Guest,
            Self::Reader => pb::Role::Reader,
            Self::Writer => pb::Role::Writer,
            Self::Admin => pb::Role::Admin,
            Self::Owner => pb::Role::Owner,
        }
        .into()
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
            Self::Owner => "owner",
        })
    }
}

/// What a member who joins later may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HistoryMode {
    #[default]
    All,
    SinceJoin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceOptions {
    pub history: HistoryMode,
    /// The format version that members must be able to read; 0 means 1.
    pub min_version: u32,
}

impl TryFrom<pb::SpaceOptions> for SpaceOptions {
    type Error = VerifyError;
    fn try_from(raw: pb::SpaceOptions) -> Result<Self> {
        let history = match pb::HistoryMode::try_from(raw.history).map_err(|_| bad("history", "is unknown"))? {
            pb::HistoryMode::All => HistoryMode::All,
            pb::HistoryMode::SinceJoin => HistoryMode::SinceJoin,
        };
        Ok(Self { history, min_version: raw.min_version })
    }
}

impl From<&SpaceOptions> for pb::SpaceOptions {
    fn from(options: &SpaceOptions) -> Self {
        let history = match options.history {
            HistoryMode::All => pb::HistoryMode::All,
            HistoryMode::SinceJoin => pb::HistoryMode::SinceJoin,
        };
        Self { history: history.into(), min_version: options.min_version }
    }
}

// ---- spaces -------------------------------------------------------------------------------------------------------

/// What keeps two spaces of one owner apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Salt {
    Nonce([u8; 16]),
    Derivation(Bytes),
}

/// Unsigned; its hash is the space id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceHeader {
    pub owner: AccountId,
    /// 0 for a derived space.
    pub created_ms: u64,
    pub salt: Salt,
    pub acl_root: AclId,
}

impl Body for SpaceHeader {
    const KIND: Kind = Kind::SpaceHeader;
    type Message = pb::SpaceHeader;

    fn from_message(m: pb::SpaceHeader) -> Result<Self> {
        version_1(m.version)?;
        let salt = match required("salt", m.salt)? {
            pb::space_header::Salt::Nonce(nonce) => Salt::Nonce(exactly("nonce", &nonce)?),
            pb::space_header::Salt::Derivation(label) => Salt::Derivation(label),
        };
        Ok(Self {
            owner: AccountId::try_from(m.owner.as_ref())?,
            created_ms: m.created_ms,
            salt,
            acl_root: AclId::try_from(m.acl_root.as_ref())?,
        })
    }

    fn to_message(&self) -> pb::SpaceHeader {
        let salt = match &self.salt {
            Salt::Nonce(nonce) => pb::space_header::Salt::Nonce(Bytes::copy_from_slice(nonce)),
            Salt::Derivation(label) => pb::space_header::Salt::Derivation(label.clone()),
        };
        pb::SpaceHeader {
            version: super::VERSION,
            owner: self.owner.to_bytes(),
            created_ms: self.created_ms,
            salt: Some(salt),
            acl_root: self.acl_root.to_bytes(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        None
    }
}

/// Entry 1 of every log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclRoot {
    pub owner: AccountId,
    pub options: SpaceOptions,
    pub key_id: [u8; 32],
    pub history_id: [u8; 32],
    pub profile_key: [u8; 32],
    pub seals: Vec<Seal>,
}

impl Body for AclRoot {
    const KIND: Kind = Kind::AclRoot;
    type Message = pb::AclRoot;

    fn from_message(m: pb::AclRoot) -> Result<Self> {
        version_1(m.version)?;
        Ok(Self {
            owner: AccountId::try_from(m.owner.as_ref())?,
            options: required("options", m.options)?.try_into()?,
            key_id: exactly("key_id", &m.key_id)?,
            history_id: exactly("history_id", &m.history_id)?,
            profile_key: exactly("profile_key", &m.profile_key)?,
            seals: seals("seals", m.seals)?,
        })
    }

    fn to_message(&self) -> pb::AclRoot {
        pb::AclRoot {
            version: super::VERSION,
            owner: self.owner.to_bytes(),
            options: Some((&self.options).into()),
            key_id: Bytes::copy_from_slice(&self.key_id),
            history_id: Bytes::copy_from_slice(&self.history_id),
            profile_key: Bytes::copy_from_slice(&self.profile_key),
            seals: self.seals.iter().map(Into::into).collect(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.owner.as_bytes())
    }
}

// ---- the ACL ------------------------------------------------------------------------------------------------------

/// A record of the ACL log after its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclRecord {
    pub space: SpaceId,
    pub prev: AclId,
    /// AclRoot is 0, SetHome is 1.
    pub index: u64,
    pub author: AccountId,
    pub at_ms: u64,
    pub seen: Option<Seen>,
    pub contents: Vec<AclContent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteMode {
    /// Whoever holds the token joins by itself.
    Open,
    /// An admin accepts or declines.
    Approval,
}

/// New keys of a space, sealed to those who remain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    pub epoch: Epoch,
    pub key_id: [u8; 32],
    pub history_id: [u8; 32],
    pub profile_key: [u8; 32],
    pub seals: Vec<Seal>,
    pub invite_seals: Vec<Seal>,
    pub chain_nonce: Bytes,
    pub chain_ct: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateInvite {
    pub key: InviteId,
    pub mode: InviteMode,
    pub role: Role,
    /// Judged by the node alone.
    pub expires_ms: Option<u64>,
    pub max_uses: Option<u32>,
    pub seals: Vec<Seal>,
    pub must_see: Vec<TreeId>,
    pub requires: Vec<TreeId>,
    pub label_ct: Bytes,
}

/// How a joiner names itself: the invite, the account, the role it was offered, and the invite key's word for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinClaim {
    pub invite: InviteId,
    pub account: AccountId,
    pub role: Role,
    pub proof: Bytes,
    pub profile_ct: Bytes,
}

/// One act in an ACL record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AclContent {
    SetHome { authority: AuthorityId },
    CreateInvite(CreateInvite),
    RevokeInvite { invite: InviteId, rotation: Option<Rotation> },
    JoinByInvite { claim: JoinClaim, seals: Vec<Seal> },
    RequestJoin { claim: JoinClaim },
    CancelJoin { request: AclId },
    AcceptJoin { request: AclId, role: Role, seals: Vec<Seal>, frontier: Vec<TreeHeads> },
    DeclineJoin { request: AclId },
    AddMembers { members: Vec<(AccountId, Role, Seal)> },
    ChangeRole { account: AccountId, role: Role, seal: Option<Seal> },
    RemoveMembers { accounts: Vec<AccountId>, rotation: Rotation },
    Leave,
    RotateKey { rotation: Rotation },
    Reseal { account: AccountId, epoch: Epoch, seal: Seal },
    SetOptions { options: SpaceOptions },
    TransferOwnership { account: AccountId },
    DeleteSpace,
}

impl AclContent {
    /// The name of the act, for errors and listings.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SetHome { .. } => "SetHome",
            Self::CreateInvite(_) => "CreateInvite",
            Self::RevokeInvite { .. } => "RevokeInvite",
            Self::JoinByInvite { .. } => "JoinByInvite",
            Self::RequestJoin { .. } => "RequestJoin",
            Self::CancelJoin { .. } => "CancelJoin",
            Self::AcceptJoin { .. } => "AcceptJoin",
            Self::DeclineJoin { .. } => "DeclineJoin",
            Self::AddMembers { .. } => "AddMembers",
            Self::ChangeRole { .. } => "ChangeRole",
            Self::RemoveMembers { .. } => "RemoveMembers",
            Self::Leave => "Leave",
            Self::RotateKey { .. } => "RotateKey",
            Self::Reseal { .. } => "Reseal",
            Self::SetOptions { .. } => "SetOptions",
            Self::TransferOwnership { .. } => "TransferOwnership",
            Self::DeleteSpace => "DeleteSpace",
        }
    }
}

impl Body for AclRecord {
    const KIND: Kind = Kind::AclRecord;
    type Message = pb::AclRecord;

    fn from_message(m: pb::AclRecord) -> Result<Self> {
        at_most("contents", &m.contents, limits::ACL_CONTENTS_MAX)?;
        not_empty("contents", &m.contents)?;
        Ok(Self {
            space: SpaceId::try_from(m.space.as_ref())?,
            prev: AclId::try_from(m.prev.as_ref())?,
            index: m.index,
            author: AccountId::try_from(m.author.as_ref())?,
            at_ms: m.at_ms,
            seen: m.seen.map(TryInto::try_into).transpose()?,
            contents: m.contents.into_iter().map(content_from_pb).collect::<Result<_>>()?,
        })
    }

    fn to_message(&self) -> pb::AclRecord {
        pb::AclRecord {
            space: self.space.to_bytes(),
            prev: self.prev.to_bytes(),
            index: self.index,
            author: self.author.to_bytes(),
            at_ms: self.at_ms,
            seen: self.seen.as_ref().map(Into::into),
            contents: self.contents.iter().map(content_to_pb).collect(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.author.as_bytes())
    }
}

const PROFILE_CT_MAX: usize = 16 << 10;

fn small(field: &'static str, bytes: Bytes) -> Result<Bytes> {
    if bytes.len() > PROFILE_CT_MAX { Err(bad(field, "is too long")) } else { Ok(bytes) }
}

fn content_from_pb(content: pb::AclContent) -> Result<AclContent> {
    use pb::acl_content::Content as C;
    Ok(match required("content", content.content)? {
        C::SetHome(m) => AclContent::SetHome { authority: AuthorityId::try_from(m.authority.as_ref())? },
        C::CreateInvite(m) => AclContent::CreateInvite(create_invite_from_pb(m)?),
        C::RevokeInvite(m) => AclContent::RevokeInvite {
            invite: InviteId::try_from(m.invite.as_ref())?,
            rotation: m.rotation.map(TryInto::try_into).transpose()?,
        },
        C::JoinByInvite(m) => AclContent::JoinByInvite {
            seals: seals("seals", m.seals)?,
            claim: claim_from_pb(&m.invite, &m.account, m.role, m.proof, m.profile_ct)?,
        },
        C::RequestJoin(m) => {
            AclContent::RequestJoin { claim: claim_from_pb(&m.invite, &m.account, m.role, m.proof, m.profile_ct)? }
        }
        C::CancelJoin(m) => AclContent::CancelJoin { request: AclId::try_from(m.request.as_ref())? },
        C::AcceptJoin(m) => {
            at_most("frontier", &m.frontier, limits::NAMED_TREES_MAX)?;
            AclContent::AcceptJoin {
                request: AclId::try_from(m.request.as_ref())?,
                role: Role::from_pb(m.role)?,
                seals: seals("seals", m.seals)?,
                frontier: m.frontier.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            }
        }
        C::DeclineJoin(m) => AclContent::DeclineJoin { request: AclId::try_from(m.request.as_ref())? },
        C::AddMembers(m) => {
            at_most("members", &m.members, limits::MEMBERS_MAX)?;
            not_empty("members", &m.members)?;
            let member = |m: pb::NewMember| {
                Ok((
                    AccountId::try_from(m.account.as_ref())?,
                    Role::from_pb(m.role)?,
                    required("seal", m.seal)?.try_into()?,
                ))
            };
            AclContent::AddMembers { members: m.members.into_iter().map(member).collect::<Result<_>>()? }
        }
        C::ChangeRole(m) => AclContent::ChangeRole {
            account: AccountId::try_from(m.account.as_ref())?,
            role: Role::from_pb(m.role)?,
            seal: m.seal.map(TryInto::try_into).transpose()?,
        },
        C::RemoveMembers(m) => {
            not_empty("accounts", &m.accounts)?;
            AclContent::RemoveMembers {
                accounts: ids("accounts", &m.accounts, limits::MEMBERS_MAX)?,
                rotation: required("rotation", m.rotation)?.try_into()?,
            }
        }
        C::Leave(pb::Leave {}) => AclContent::Leave,
        C::RotateKey(m) => AclContent::RotateKey { rotation: required("rotation", m.rotation)?.try_into()? },
        C::Reseal(m) => AclContent::Reseal {
            account: AccountId::try_from(m.account.as_ref())?,
            epoch: Epoch(m.epoch),
            seal: required("seal", m.seal)?.try_into()?,
        },
        C::SetOptions(m) => AclContent::SetOptions { options: required("options", m.options)?.try_into()? },
        C::TransferOwnership(m) => AclContent::TransferOwnership { account: AccountId::try_from(m.account.as_ref())? },
        C::DeleteSpace(pb::DeleteSpace {}) => AclContent::DeleteSpace,
    })
}

fn content_to_pb(content: &AclContent) -> pb::AclContent {
    use pb::acl_content::Content as C;
    let content = match content {
        AclContent::SetHome { authority } => C::SetHome(pb::SetHome { authority: authority.to_bytes() }),
        AclContent::CreateInvite(invite) => C::CreateInvite(create_invite_to_pb(invite)),
        AclContent::RevokeInvite { invite, rotation } => {
            C::RevokeInvite(pb::RevokeInvite { invite: invite.to_bytes(), rotation: rotation.as_ref().map(Into::into) })
        }
        AclContent::JoinByInvite { claim, seals } => C::JoinByInvite(pb::JoinByInvite {
            invite: claim.invite.to_bytes(),
            account: claim.account.to_bytes(),
            role: claim.role.to_pb(),
            proof: claim.proof.clone(),
            seals: seals.iter().map(Into::into).collect(),
            profile_ct: claim.profile_ct.clone(),
        }),
        AclContent::RequestJoin { claim } => C::RequestJoin(pb::RequestJoin {
            invite: claim.invite.to_bytes(),
            account: claim.account.to_bytes(),
            role: claim.role.to_pb(),
            proof: claim.proof.clone(),
            profile_ct: claim.profile_ct.clone(),
        }),
        AclContent::CancelJoin { request } => C::CancelJoin(pb::CancelJoin { request: request.to_bytes() }),
        AclContent::AcceptJoin { request, role, seals, frontier } => C::AcceptJoin(pb::AcceptJoin {
            request: request.to_bytes(),
            role: role.to_pb(),
            seals: seals.iter().map(Into::into).collect(),
            frontier: frontier.iter().map(Into::into).collect(),
        }),
        AclContent::DeclineJoin { request } => C::DeclineJoin(pb::DeclineJoin { request: request.to_bytes() }),
        AclContent::AddMembers { members } => C::AddMembers(pb::AddMembers {
            members: members
                .iter()
                .map(|(account, role, seal)| pb::NewMember {
                    account: account.to_bytes(),
                    role: role.to_pb(),
                    seal: Some(seal.into()),
                })
                .collect(),
        }),
        AclContent::ChangeRole { account, role, seal } => C::ChangeRole(pb::ChangeRole {
            account: account.to_bytes(),
            role: role.to_pb(),
            seal: seal.as_ref().map(Into::into),
        }),
        AclContent::RemoveMembers { accounts, rotation } => C::RemoveMembers(pb::RemoveMembers {
            accounts: accounts.iter().map(|a| a.to_bytes()).collect(),
            rotation: Some(rotation.into()),
        }),
        AclContent::Leave => C::Leave(pb::Leave {}),
        AclContent::RotateKey { rotation } => C::RotateKey(pb::RotateKey { rotation: Some(rotation.into()) }),
        AclContent::Reseal { account, epoch, seal } => {
            C::Reseal(pb::Reseal { account: account.to_bytes(), epoch: epoch.0, seal: Some(seal.into()) })
        }
        AclContent::SetOptions { options } => C::SetOptions(pb::SetOptions { options: Some(options.into()) }),
        AclContent::TransferOwnership { account } => {
            C::TransferOwnership(pb::TransferOwnership { account: account.to_bytes() })
        }
        AclContent::DeleteSpace => C::DeleteSpace(pb::DeleteSpace {}),
    };
    pb::AclContent { content: Some(content) }
}

fn create_invite_from_pb(m: pb::CreateInvite) -> Result<CreateInvite> {
    let mode = match pb::InviteMode::try_from(m.mode).map_err(|_| bad("mode", "is unknown"))? {
        pb::InviteMode::Unspecified => return Err(bad("mode", "missing")),
        pb::InviteMode::Open => InviteMode::Open,
        pb::InviteMode::Approval => InviteMode::Approval,
    };
    Ok(CreateInvite {
        key: InviteId::try_from(m.key.as_ref())?,
        mode,
        role: Role::from_pb(m.role)?,
        expires_ms: (m.expires_ms != 0).then_some(m.expires_ms),
        max_uses: (m.max_uses != 0).then_some(m.max_uses),
        seals: seals("seals", m.seals)?,
        must_see: ids("must_see", &m.must_see, limits::NAMED_TREES_MAX)?,
        requires: ids("requires", &m.requires, limits::NAMED_TREES_MAX)?,
        label_ct: small("label_ct", m.label_ct)?,
    })
}

fn create_invite_to_pb(invite: &CreateInvite) -> pb::CreateInvite {
    let mode = match invite.mode {
        InviteMode::Open => pb::InviteMode::Open,
        InviteMode::Approval => pb::InviteMode::Approval,
    };
    pb::CreateInvite {
        key: invite.key.to_bytes(),
        mode: mode.into(),
        role: invite.role.to_pb(),
        expires_ms: invite.expires_ms.unwrap_or(0),
        max_uses: invite.max_uses.unwrap_or(0),
        seals: invite.seals.iter().map(Into::into).collect(),
        must_see: invite.must_see.iter().map(|t| t.to_bytes()).collect(),
        requires: invite.requires.iter().map(|t| t.to_bytes()).collect(),
        label_ct: invite.label_ct.clone(),
    }
}

fn claim_from_pb(invite: &Bytes, account: &Bytes, role: i32, proof: Bytes, profile_ct: Bytes) -> Result<JoinClaim> {
    if proof.len() != 64 {
        return Err(bad("proof", "has the wrong length"));
    }
    Ok(JoinClaim {
        invite: InviteId::try_from(invite.as_ref())?,
        account: AccountId::try_from(account.as_ref())?,
        role: Role::from_pb(role)?,
        proof,
        profile_ct: small("profile_ct", profile_ct)?,
    })
}

impl TryFrom<pb::Rotation> for Rotation {
    type Error = VerifyError;
    fn try_from(m: pb::Rotation) -> Result<Self> {
        if m.chain_nonce.len() != 24 {
            return Err(bad("chain_nonce", "has the wrong length"));
        }
        Ok(Self {
            epoch: Epoch(m.epoch),
            key_id: exactly("key_id", &m.key_id)?,
            history_id: exactly("history_id", &m.history_id)?,
            profile_key: exactly("profile_key", &m.profile_key)?,
            seals: seals("seals", m.seals)?,
            invite_seals: seals("invite_seals", m.invite_seals)?,
            chain_nonce: m.chain_nonce,
            chain_ct: small("chain_ct", m.chain_ct)?,
        })
    }
}

impl From<&Rotation> for pb::Rotation {
    fn from(rotation: &Rotation) -> Self {
        Self {
            epoch: rotation.epoch.0,
            key_id: Bytes::copy_from_slice(&rotation.key_id),
            history_id: Bytes::copy_from_slice(&rotation.history_id),
            profile_key: Bytes::copy_from_slice(&rotation.profile_key),
            seals: rotation.seals.iter().map(Into::into).collect(),
            invite_seals: rotation.invite_seals.iter().map(Into::into).collect(),
            chain_nonce: rotation.chain_nonce.clone(),
            chain_ct: rotation.chain_ct.clone(),
        }
    }
}

// ---- trees --------------------------------------------------------------------------------------------------------

/// What makes two trees with one write rule differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeName {
    /// Keyed hash of (object type, object id): whoever holds the name key can compute it.
    Tag([u8; 32]),
    Nonce([u8; 16]),
}

/// Whose changes a tree takes, among the members who may write at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Writers,
    Admins,
    Account(AccountId),
    AccountOrAdmins(AccountId),
}

/// The write rule of a tree. It narrows a member's role and never widens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteRule {
    pub who: Who,
    /// Only the first logged change is accepted.
    pub once: bool,
}

impl WriteRule {
    /// Every writer, any number of times.
    pub const WRITERS: Self = Self { who: Who::Writers, once: false };
}

/// Unsigned; its hash is the tree id. Enters a log only together with its first change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeRoot {
    pub space: SpaceId,
    pub name: TreeName,
    pub write_rule: WriteRule,
}

impl TreeRoot {
    /// The tree that this root names.
    #[must_use]
    pub fn tree_id(&self) -> TreeId {
        super::unsigned_raw(self, None).id().into()
    }
}

impl Body for TreeRoot {
    const KIND: Kind = Kind::TreeRoot;
    type Message = pb::TreeRoot;

    fn from_message(m: pb::TreeRoot) -> Result<Self> {
        version_1(m.version)?;
        let name = match required("name", m.name)? {
            pb::tree_root::Name::NameTag(tag) => TreeName::Tag(exactly("name_tag", &tag)?),
            pb::tree_root::Name::Nonce(nonce) => TreeName::Nonce(exactly("nonce", &nonce)?),
        };
        let rule = required("write_rule", m.write_rule)?;
        use pb::write_rule::Who as W;
        let who = match required("write_rule.who", rule.who)? {
            W::Writers(pb::WhoWriters {}) => Who::Writers,
            W::Admins(pb::WhoAdmins {}) => Who::Admins,
            W::Account(account) => Who::Account(AccountId::try_from(account.as_ref())?),
            W::AccountOrAdmins(account) => Who::AccountOrAdmins(AccountId::try_from(account.as_ref())?),
        };
        let space = SpaceId::try_from(m.space.as_ref())?;
        Ok(Self { space, name, write_rule: WriteRule { who, once: rule.once } })
    }

    fn to_message(&self) -> pb::TreeRoot {
        use pb::write_rule::Who as W;
        let name = match &self.name {
            TreeName::Tag(tag) => pb::tree_root::Name::NameTag(Bytes::copy_from_slice(tag)),
            TreeName::Nonce(nonce) => pb::tree_root::Name::Nonce(Bytes::copy_from_slice(nonce)),
        };
        let who = match self.write_rule.who {
            Who::Writers => W::Writers(pb::WhoWriters {}),
            Who::Admins => W::Admins(pb::WhoAdmins {}),
            Who::Account(account) => W::Account(account.to_bytes()),
            Who::AccountOrAdmins(account) => W::AccountOrAdmins(account.to_bytes()),
        };
        pb::TreeRoot {
            version: super::VERSION,
            space: self.space.to_bytes(),
            name: Some(name),
            write_rule: Some(pb::WriteRule { who: Some(who), once: self.write_rule.once }),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Content,
    /// Reserved; refused in version 1.
    Snapshot,
}

/// One step of a tree's history. The content is in the payload, encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeChange {
    pub tree: TreeId,
    /// Strictly sorted. The tree id itself stands for "nothing before".
    pub parents: Vec<ChangeId>,
    pub acl_head: AclId,
    pub epoch: Epoch,
    pub author: AccountId,
    pub at_ms: u64,
    pub seen: Option<Seen>,
    pub kind: ChangeKind,
    pub nonce: [u8; 24],
    pub payload: PayloadClaim,
}

impl TreeChange {
    /// The tree's root, as a parent.
    #[must_use]
    pub fn root_as_parent(tree: TreeId) -> ChangeId {
        ChangeId::from_hash(*tree.as_bytes())
    }

    /// True if this change has no change before it.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.parents == [Self::root_as_parent(self.tree)]
    }
}

impl Body for TreeChange {
    const KIND: Kind = Kind::TreeChange;
    type Message = pb::TreeChange;

    fn from_message(m: pb::TreeChange) -> Result<Self> {
        let parents: Vec<ChangeId> = ids("parents", &m.parents, limits::PARENTS_MAX)?;
        if parents.is_empty() {
            return Err(bad("parents", "must name at least the tree's root"));
        }
        strictly_sorted("parents", &parents)?;
        let kind = match pb::ChangeKind::try_from(m.kind).map_err(|_| bad("kind", "is unknown"))? {
            pb::ChangeKind::Content => ChangeKind::Content,
            pb::ChangeKind::Snapshot => ChangeKind::Snapshot,
        };
        Ok(Self {
            tree: TreeId::try_from(m.tree.as_ref())?,
            parents,
            acl_head: AclId::try_from(m.acl_head.as_ref())?,
            epoch: Epoch(m.epoch),
            author: AccountId::try_from(m.author.as_ref())?,
            at_ms: m.at_ms,
            seen: m.seen.map(TryInto::try_into).transpose()?,
            kind,
            nonce: exactly("nonce", &m.nonce)?,
            payload: PayloadClaim { hash: exactly("payload_hash", &m.payload_hash)?, len: m.payload_len },
        })
    }

    fn to_message(&self) -> pb::TreeChange {
        let kind = match self.kind {
            ChangeKind::Content => pb::ChangeKind::Content,
            ChangeKind::Snapshot => pb::ChangeKind::Snapshot,
        };
        pb::TreeChange {
            tree: self.tree.to_bytes(),
            parents: self.parents.iter().map(|p| p.to_bytes()).collect(),
            acl_head: self.acl_head.to_bytes(),
            epoch: self.epoch.0,
            author: self.author.to_bytes(),
            at_ms: self.at_ms,
            seen: self.seen.as_ref().map(Into::into),
            kind: kind.into(),
            nonce: Bytes::copy_from_slice(&self.nonce),
            payload_hash: Bytes::copy_from_slice(&self.payload.hash),
            payload_len: self.payload.len,
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.author.as_bytes())
    }

    fn payload_claim(&self) -> Option<PayloadClaim> {
        Some(self.payload)
    }
}

/// Ends a tree for good: payloads may be dropped everywhere, and no late peer brings it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    pub tree: TreeId,
    pub author: AccountId,
    pub acl_head: AclId,
    pub at_ms: u64,
}

impl Body for Tombstone {
    const KIND: Kind = Kind::Tombstone;
    type Message = pb::Tombstone;

    fn from_message(m: pb::Tombstone) -> Result<Self> {
        Ok(Self {
            tree: TreeId::try_from(m.tree.as_ref())?,
            author: AccountId::try_from(m.author.as_ref())?,
            acl_head: AclId::try_from(m.acl_head.as_ref())?,
            at_ms: m.at_ms,
        })
    }

    fn to_message(&self) -> pb::Tombstone {
        pb::Tombstone {
            tree: self.tree.to_bytes(),
            author: self.author.to_bytes(),
            acl_head: self.acl_head.to_bytes(),
            at_ms: self.at_ms,
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.author.as_bytes())
    }
}

// ---- identities ---------------------------------------------------------------------------------------------------

/// The account's word that a device is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCertificate {
    pub account: AccountId,
    pub device: DeviceId,
    pub at_ms: u64,
}

impl Body for DeviceCertificate {
    const KIND: Kind = Kind::DeviceCertificate;
    type Message = pb::DeviceCertificate;

    fn from_message(m: pb::DeviceCertificate) -> Result<Self> {
        Ok(Self {
            account: AccountId::try_from(m.account.as_ref())?,
            device: DeviceId::try_from(m.device.as_ref())?,
            at_ms: m.at_ms,
        })
    }

    fn to_message(&self) -> pb::DeviceCertificate {
        pb::DeviceCertificate { account: self.account.to_bytes(), device: self.device.to_bytes(), at_ms: self.at_ms }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.account.as_bytes())
    }
}

/// The devices of an account; the highest version counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList {
    pub account: AccountId,
    pub version: u64,
    /// Strictly sorted.
    pub devices: Vec<DeviceId>,
}

impl DeviceList {
    /// True if the device is on the list.
    #[must_use]
    pub fn names(&self, device: &DeviceId) -> bool {
        self.devices.binary_search(device).is_ok()
    }
}

impl Body for DeviceList {
    const KIND: Kind = Kind::DeviceList;
    type Message = pb::DeviceList;

    fn from_message(m: pb::DeviceList) -> Result<Self> {
        let devices = ids("devices", &m.devices, limits::DEVICES_MAX)?;
        strictly_sorted("devices", &devices)?;
        Ok(Self { account: AccountId::try_from(m.account.as_ref())?, version: m.version, devices })
    }

    fn to_message(&self) -> pb::DeviceList {
        pb::DeviceList {
            account: self.account.to_bytes(),
            version: self.version,
            devices: self.devices.iter().map(|d| d.to_bytes()).collect(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.account.as_bytes())
    }
}

/// The authority's word that a node serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCertificate {
    pub authority: AuthorityId,
    pub node: NodeId,
    pub not_before_ms: u64,
}

impl Body for NodeCertificate {
    const KIND: Kind = Kind::NodeCertificate;
    type Message = pb::NodeCertificate;

    fn from_message(m: pb::NodeCertificate) -> Result<Self> {
        Ok(Self {
            authority: AuthorityId::try_from(m.authority.as_ref())?,
            node: NodeId::try_from(m.node.as_ref())?,
            not_before_ms: m.not_before_ms,
        })
    }

    fn to_message(&self) -> pb::NodeCertificate {
        pb::NodeCertificate {
            authority: self.authority.to_bytes(),
            node: self.node.to_bytes(),
            not_before_ms: self.not_before_ms,
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.authority.as_bytes())
    }
}

// ---- receipts -----------------------------------------------------------------------------------------------------

/// What a node signs: "I hold this space up to `seq`, with this chain".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub authority: AuthorityId,
    pub node: NodeId,
    pub space: SpaceId,
    pub history: HistoryId,
    pub seq: Seq,
    pub chain: Chain,
    pub acl_head: AclId,
    pub epoch: Epoch,
    /// True: on disk after an fsync. False: committed, and survives a killed process.
    pub durable: bool,
    pub at_ms: u64,
    /// The caller's, in an answer to Certify; absent in a heartbeat.
    pub nonce: Option<[u8; 16]>,
    /// Id of the receipt the caller last held.
    pub prev: Option<[u8; 32]>,
    pub set_digest: Option<[u8; 32]>,
    pub trees: Vec<(TreeId, [u8; 32])>,
}

impl Body for Receipt {
    const KIND: Kind = Kind::Receipt;
    type Message = pb::Receipt;

    fn from_message(m: pb::Receipt) -> Result<Self> {
        version_1(m.version)?;
        at_most("trees", &m.trees, limits::RECEIPT_TREES_MAX)?;
        let tree =
            |t: &pb::TreeHeadsHash| Ok((TreeId::try_from(t.tree.as_ref())?, exactly("heads_hash", &t.heads_hash)?));
        Ok(Self {
            authority: AuthorityId::try_from(m.authority.as_ref())?,
            node: NodeId::try_from(m.node.as_ref())?,
            space: SpaceId::try_from(m.space.as_ref())?,
            history: HistoryId::try_from(m.history.as_ref())?,
            seq: Seq(m.seq),
            chain: Chain::try_from(m.chain.as_ref())?,
            acl_head: AclId::try_from(m.acl_head.as_ref())?,
            epoch: Epoch(m.epoch),
            durable: m.durable,
            at_ms: m.at_ms,
            nonce: m.nonce.as_ref().map(|b| exactly("nonce", b)).transpose()?,
            prev: m.prev.as_ref().map(|b| exactly("prev", b)).transpose()?,
            set_digest: m.set_digest.as_ref().map(|b| exactly("set_digest", b)).transpose()?,
            trees: m.trees.iter().map(tree).collect::<Result<_>>()?,
        })
    }

    fn to_message(&self) -> pb::Receipt {
        let bytes = |b: &[u8]| Bytes::copy_from_slice(b);
        pb::Receipt {
            version: super::VERSION,
            authority: self.authority.to_bytes(),
            node: self.node.to_bytes(),
            space: self.space.to_bytes(),
            history: bytes(&self.history.0),
            seq: self.seq.0,
            chain: self.chain.to_bytes(),
            acl_head: self.acl_head.to_bytes(),
            epoch: self.epoch.0,
            durable: self.durable,
            at_ms: self.at_ms,
            nonce: self.nonce.map(|b| bytes(&b)),
            prev: self.prev.map(|b| bytes(&b)),
            set_digest: self.set_digest.map(|b| bytes(&b)),
            trees: self
                .trees
                .iter()
                .map(|(tree, hash)| pb::TreeHeadsHash { tree: tree.to_bytes(), heads_hash: bytes(hash) })
                .collect(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.node.as_bytes())
    }
}

/// What a recognised restore leaves: the copy of a space is that of history `old` up to `after_seq`, and goes on as `new`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryStarted {
    pub authority: AuthorityId,
    pub node: NodeId,
    pub space: SpaceId,
    pub old: HistoryId,
    pub new: HistoryId,
    pub after_seq: Seq,
    /// There.
    pub chain: Chain,
    pub at_ms: u64,
}

impl Body for HistoryStarted {
    const KIND: Kind = Kind::HistoryStarted;
    type Message = pb::HistoryStarted;

    fn from_message(m: pb::HistoryStarted) -> Result<Self> {
        let started = Self {
            authority: AuthorityId::try_from(m.authority.as_ref())?,
            node: NodeId::try_from(m.node.as_ref())?,
            space: SpaceId::try_from(m.space.as_ref())?,
            old: HistoryId::try_from(m.old.as_ref())?,
            new: HistoryId::try_from(m.new.as_ref())?,
            after_seq: Seq(m.after_seq),
            chain: Chain::try_from(m.chain.as_ref())?,
            at_ms: m.at_ms,
        };
        if started.old == started.new { Err(bad("new", "is the old one")) } else { Ok(started) }
    }

    fn to_message(&self) -> pb::HistoryStarted {
        pb::HistoryStarted {
            space: self.space.to_bytes(),
            old: Bytes::copy_from_slice(&self.old.0),
            new: Bytes::copy_from_slice(&self.new.0),
            after_seq: self.after_seq.0,
            chain: self.chain.to_bytes(),
            at_ms: self.at_ms,
            authority: self.authority.to_bytes(),
            node: self.node.to_bytes(),
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.node.as_bytes())
    }
}

// ---- invite tokens ------------------------------------------------------------------------------------------------

/// What one invited person is handed, as one line of text.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteToken {
    pub authority: AuthorityId,
    pub addresses: Vec<String>,
    pub spaces: Vec<InvitedSpace>,
    pub inviter: AccountId,
    pub created_ms: u64,
    /// 0: does not expire.
    pub expires_ms: u64,
}

/// One space of a token. Holds a secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct InvitedSpace {
    pub space: SpaceId,
    pub invite_secret: [u8; 32],
    pub mode: InviteMode,
    pub role: Role,
    pub must_see: Vec<TreeHeads>,
    /// The inviter's receipt, if it had one.
    pub receipt: Option<pb::ReceiptExport>,
}

impl std::fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InviteToken")
            .field("authority", &self.authority)
            .field("spaces", &self.spaces)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for InvitedSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InvitedSpace")
            .field("space", &self.space)
            .field("mode", &self.mode)
            .field("role", &self.role)
            .field("invite_secret", &"(secret)")
            .finish_non_exhaustive()
    }
}

impl Body for InviteToken {
    const KIND: Kind = Kind::InviteToken;
    type Message = pb::InviteToken;

    fn from_message(m: pb::InviteToken) -> Result<Self> {
        at_most("addresses", &m.addresses, 16)?;
        at_most("spaces", &m.spaces, 64)?;
        if m.spaces.is_empty() {
            return Err(bad("spaces", "must not be empty"));
        }
        Ok(Self {
            authority: AuthorityId::try_from(m.authority.as_ref())?,
            addresses: m.addresses,
            spaces: m.spaces.into_iter().map(invited_from_pb).collect::<Result<_>>()?,
            inviter: AccountId::try_from(m.inviter.as_ref())?,
            created_ms: m.created_ms,
            expires_ms: m.expires_ms,
        })
    }

    fn to_message(&self) -> pb::InviteToken {
        pb::InviteToken {
            authority: self.authority.to_bytes(),
            addresses: self.addresses.clone(),
            spaces: self.spaces.iter().map(invited_to_pb).collect(),
            inviter: self.inviter.to_bytes(),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        }
    }

    fn signer(&self) -> Option<[u8; 32]> {
        Some(*self.inviter.as_bytes())
    }
}

fn invited_from_pb(m: pb::InvitedSpace) -> Result<InvitedSpace> {
    at_most("must_see", &m.must_see, limits::NAMED_TREES_MAX)?;
    let mode = match pb::InviteMode::try_from(m.mode).map_err(|_| bad("mode", "is unknown"))? {
        pb::InviteMode::Unspecified => return Err(bad("mode", "missing")),
        pb::InviteMode::Open => InviteMode::Open,
        pb::InviteMode::Approval => InviteMode::Approval,
    };
    Ok(InvitedSpace {
        space: SpaceId::try_from(m.space.as_ref())?,
        invite_secret: exactly("invite_secret", &m.invite_secret)?,
        mode,
        role: Role::from_pb(m.role)?,
        must_see: m.must_see.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
        receipt: m.receipt,
    })
}

fn invited_to_pb(space: &InvitedSpace) -> pb::InvitedSpace {
    let mode = match space.mode {
        InviteMode::Open => pb::InviteMode::Open,
        InviteMode::Approval => pb::InviteMode::Approval,
    };
    pb::InvitedSpace {
        space: space.space.to_bytes(),
        invite_secret: Bytes::copy_from_slice(&space.invite_secret),
        mode: mode.into(),
        role: space.role.to_pb(),
        must_see: space.must_see.iter().map(Into::into).collect(),
        receipt: space.receipt.clone(),
    }
}
