//! Requests to what the SDK takes. A caller may be wrong: everything is checked, and what is wrong is named by its field.

use std::str::FromStr;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};
use sync_core::ids::{AccountId, IdError, SpaceId, TreeId};
use sync_core::limits;
use sync_core::record::{HistoryMode, InviteMode, Role, SpaceOptions, Who, WriteRule};
use sync_proto::client_v1 as pb;

use crate::acl::{AclChange, InviteOptions};
use crate::objects::{NewObject, Update};
use crate::space::{ParentRef, TreeWrite};
use crate::status::ReasonCode;
use crate::synced::{Await, Level};

/// Why a request is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} is no id of the kind that belongs there")]
    Id { field: &'static str, source: IdError },
    #[error("{field} is not JSON")]
    Json { field: &'static str, source: serde_json::Error },
    #[error("{field} is not a JSON object")]
    NotAnObject { field: &'static str },
    #[error("{field} has a value that this version does not know: {value}")]
    Unknown { field: &'static str, value: i32 },
    #[error("{field} has {actual} elements; the limit is {max}")]
    TooMany { field: &'static str, actual: usize, max: usize },
    #[error("{field} has {actual} bytes, and takes {expected}")]
    Length { field: &'static str, actual: usize, expected: usize },
    #[error("code is none of the reasons in docs/errors.md")]
    ReasonCode,
    #[error("cursor is neither \"start\" nor \"now\" nor one that this feed gave")]
    Cursor,
    #[error("page_token is not one that this list gave")]
    PageToken,
}

impl BadRequest {
    /// The field that is wrong.
    pub(super) const fn field(&self) -> &'static str {
        match self {
            Self::Missing { field }
            | Self::Id { field, .. }
            | Self::Json { field, .. }
            | Self::NotAnObject { field }
            | Self::Unknown { field, .. }
            | Self::Length { field, .. }
            | Self::TooMany { field, .. } => field,
            Self::ReasonCode => "code",
            Self::Cursor => "cursor",
            Self::PageToken => "page_token",
        }
    }
}

type Result<T> = std::result::Result<T, BadRequest>;

pub(super) fn required<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or(BadRequest::Missing { field })
}

/// An id, from its text.
pub(super) fn id<T: FromStr<Err = IdError>>(field: &'static str, text: &str) -> Result<T> {
    if text.is_empty() {
        return Err(BadRequest::Missing { field });
    }
    text.parse().map_err(|source| BadRequest::Id { field, source })
}

pub(super) fn space(text: &str) -> Result<SpaceId> {
    id("space", text)
}

pub(super) fn ids<T: FromStr<Err = IdError>>(field: &'static str, texts: &[String]) -> Result<Vec<T>> {
    at_most(field, texts, limits::IDS_PER_REQUEST_MAX)?;
    texts.iter().map(|text| id(field, text)).collect()
}

pub(super) fn at_most<T>(field: &'static str, items: &[T], max: usize) -> Result<()> {
    if items.len() > max { Err(BadRequest::TooMany { field, actual: items.len(), max }) } else { Ok(()) }
}

/// A JSON value, from its text.
fn json(field: &'static str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|source| BadRequest::Json { field, source })
}

/// The fields of an object, from the text of a JSON object.
pub(super) fn fields(text: &str) -> Result<Map<String, Value>> {
    match json("fields_json", text)? {
        Value::Object(fields) => Ok(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(BadRequest::NotAnObject { field: "fields_json" })
        }
    }
}

pub(super) fn new_object(object: pb::NewObject) -> Result<NewObject> {
    Ok(NewObject { object_type: object.r#type, id: object.id, fields: fields(&object.fields_json)? })
}

pub(super) fn update(ops: Vec<pb::Op>) -> Result<Update> {
    use pb::op::Op;
    at_most("ops", &ops, limits::IDS_PER_REQUEST_MAX)?;
    let mut update = Update::new();
    for pb::Op { field, op } in ops {
        update = match required("ops.op", op)? {
            Op::SetJson(value) => update.set(field, json("set_json", &value)?),
            Op::Unset(_) => update.unset(field),
            Op::Increment(by) => update.increment(field, by),
            Op::AddJson(value) => update.add(field, json("add_json", &value)?),
            Op::RemoveJson(value) => update.remove(field, json("remove_json", &value)?),
        };
    }
    Ok(update)
}

/// How long a call waits; without end for 0.
pub(super) fn timeout(millis: u64) -> Duration {
    if millis == 0 { Duration::MAX } else { Duration::from_millis(millis) }
}

/// How an await waits: as said, and as usual where nothing is said.
pub(super) fn patience(patience: Option<pb::Patience>) -> Await {
    let patience = patience.unwrap_or_default();
    let how = match patience.timeout_ms {
        None => Await::default(),
        Some(0) => Await::default().without_deadline(),
        Some(millis) => Await::default().deadline(Duration::from_millis(millis)),
    };
    match patience.stall_ms {
        Some(millis) => how.stall(Duration::from_millis(millis)),
        None => how,
    }
}

pub(super) fn level(value: i32) -> Result<Level> {
    let level = pb::Level::try_from(value).map_err(|_| BadRequest::Unknown { field: "level", value })?;
    Ok(match level {
        pb::Level::Unspecified | pb::Level::Durable => Level::Durable,
        pb::Level::Received => Level::Received,
    })
}

pub(super) fn reason_code(name: &str) -> Result<ReasonCode> {
    let found = ReasonCode::ALL.iter().find(|code| code.name() == name);
    found.copied().ok_or(BadRequest::ReasonCode)
}

/// A role, or `None` where the one is meant that is usual.
pub(super) fn role(value: i32) -> Result<Option<Role>> {
    let role = pb::Role::try_from(value).map_err(|_| BadRequest::Unknown { field: "role", value })?;
    Ok(match role {
        pb::Role::Unspecified => None,
        pb::Role::Guest => Some(Role::Guest),
        pb::Role::Reader => Some(Role::Reader),
        pb::Role::Writer => Some(Role::Writer),
        pb::Role::Admin => Some(Role::Admin),
        pb::Role::Owner => Some(Role::Owner),
    })
}

fn said_role(value: i32) -> Result<Role> {
    required("role", role(value)?)
}

pub(super) fn options(options: pb::SpaceOptions) -> Result<SpaceOptions> {
    let value = options.history;
    let history = pb::HistoryMode::try_from(value).map_err(|_| BadRequest::Unknown { field: "history", value })?;
    let history = match history {
        pb::HistoryMode::Unspecified | pb::HistoryMode::All => HistoryMode::All,
        pb::HistoryMode::SinceJoin => HistoryMode::SinceJoin,
    };
    Ok(SpaceOptions { history, min_version: options.min_version })
}

pub(super) fn acl_change(change: Option<pb::AclChange>) -> Result<AclChange> {
    use pb::acl_change::Change;
    Ok(match required("change", change.and_then(|c| c.change))? {
        Change::AddMembers(add) => {
            at_most("members", &add.members, limits::MEMBERS_MAX)?;
            let member = |m: &pb::NewMember| Ok((id::<AccountId>("account", &m.account)?, said_role(m.role)?));
            AclChange::AddMembers { members: add.members.iter().map(member).collect::<Result<_>>()? }
        }
        Change::ChangeRole(change) => {
            AclChange::ChangeRole { account: id("account", &change.account)?, role: said_role(change.role)? }
        }
        Change::RemoveMembers(remove) => AclChange::RemoveMembers { accounts: ids("accounts", &remove.accounts)? },
        Change::ReplaceAccount(replace) => {
            AclChange::ReplaceAccount { old: id("old", &replace.old)?, new: id("new", &replace.new)? }
        }
        Change::RevokeInvite(revoke) => AclChange::RevokeInvite { invite: id("invite", &revoke.invite)? },
        Change::RotateKeys(pb::RotateKeys {}) => AclChange::RotateKeys,
        Change::Reseal(reseal) => AclChange::Reseal { account: id("account", &reseal.account)? },
        Change::SetOptions(wanted) => AclChange::SetOptions { options: options(wanted)? },
        Change::TransferOwnership(transfer) => {
            AclChange::TransferOwnership { account: id("account", &transfer.account)? }
        }
        Change::DeleteSpace(pb::DeleteSpace {}) => AclChange::DeleteSpace,
        Change::AcceptRequest(accept) => {
            AclChange::AcceptRequest { request: id("request", &accept.request)?, role: role(accept.role)? }
        }
        Change::DeclineRequest(decline) => AclChange::DeclineRequest { request: id("request", &decline.request)? },
    })
}

/// What names a tree, before the object types have said which one it is.
pub(super) enum NamedTree {
    Tree(TreeId),
    Object { object_type: String, id: String },
}

pub(super) fn named_tree(tree: pb::TreeRef) -> Result<NamedTree> {
    use pb::tree_ref::Tree;
    Ok(match required("tree", tree.tree)? {
        Tree::Id(text) => NamedTree::Tree(id("tree", &text)?),
        Tree::Object(object) => NamedTree::Object { object_type: object.r#type, id: object.id },
    })
}

/// An offer, without the trees that it names.
pub(super) fn invite_options(offer: &pb::InviteOffer) -> Result<InviteOptions> {
    let value = offer.mode;
    let mode = pb::InviteMode::try_from(value).map_err(|_| BadRequest::Unknown { field: "mode", value })?;
    let mode = match mode {
        pb::InviteMode::Unspecified | pb::InviteMode::Approval => InviteMode::Approval,
        pb::InviteMode::Open => InviteMode::Open,
    };
    at_most("must_see", &offer.must_see, limits::NAMED_TREES_MAX)?;
    at_most("requires", &offer.requires, limits::NAMED_TREES_MAX)?;
    Ok(InviteOptions {
        mode,
        role: role(offer.role)?.unwrap_or(Role::Writer),
        expires_in: offer.expires_in_ms.map(Duration::from_millis),
        max_uses: offer.max_uses,
        must_see: Vec::new(),
        requires: Vec::new(),
        label: offer.label.clone(),
    })
}

pub(super) fn write_rule(rule: Option<pb::WriteRule>) -> Result<WriteRule> {
    use pb::write_rule::Who as Wire;
    let Some(rule) = rule else { return Ok(WriteRule::WRITERS) };
    let who = match rule.who {
        None | Some(Wire::Writers(_)) => Who::Writers,
        Some(Wire::Admins(_)) => Who::Admins,
        Some(Wire::Account(text)) => Who::Account(id("account", &text)?),
        Some(Wire::AccountOrAdmins(text)) => Who::AccountOrAdmins(id("account_or_admins", &text)?),
    };
    Ok(WriteRule { who, once: rule.once })
}

pub(super) fn tree_writes(changes: Vec<pb::TreeChange>) -> Result<Vec<TreeWrite>> {
    at_most("changes", &changes, limits::IDS_PER_REQUEST_MAX)?;
    changes.into_iter().map(tree_write).collect()
}

fn tree_write(change: pb::TreeChange) -> Result<TreeWrite> {
    let parents = change.parents.iter().map(parent).collect::<Result<Vec<_>>>()?;
    Ok(TreeWrite { parents: change.has_parents.then_some(parents), payload: change.payload })
}

fn parent(parent: &pb::Parent) -> Result<ParentRef> {
    use pb::parent::Parent;
    Ok(match required("parents.parent", parent.parent.as_ref())? {
        Parent::Change(text) => ParentRef::Change(id("parents.change", text)?),
        Parent::Earlier(n) => ParentRef::Earlier(usize::try_from(*n).unwrap_or(usize::MAX)),
    })
}

/// Which part of a list is wanted.
#[derive(Debug)]
pub(super) struct PageRequest {
    pub(super) size: usize,
    /// The key of the last item that the caller has.
    pub(super) after: Option<String>,
}

impl PageRequest {
    pub(super) fn new(size: u32, token: &str) -> Result<Self> {
        let size = match usize::try_from(size).unwrap_or(usize::MAX) {
            0 => limits::LOCAL_PAGE_DEFAULT,
            size => size.min(limits::LOCAL_PAGE_MAX),
        };
        let after = match token {
            "" => None,
            token => {
                let key = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| BadRequest::PageToken)?;
                Some(String::from_utf8(key).map_err(|_| BadRequest::PageToken)?)
            }
        };
        Ok(Self { size, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |error: BadRequest| error.field();
        assert_eq!(space("").map_err(wrong), Err("space"));
        assert_eq!(space("acct_x").map_err(wrong), Err("space"));
        assert_eq!(fields("[1]").map_err(wrong), Err("fields_json"));
        assert_eq!(fields("{").map_err(wrong), Err("fields_json"));
        assert_eq!(role(77).map_err(wrong), Err("role"));
        assert_eq!(acl_change(None).map_err(wrong), Err("change"));
        assert_eq!(PageRequest::new(1, "not base64!").map(drop).map_err(wrong), Err("page_token"));
    }

    #[test]
    fn integers_keep_their_digits() {
        let big = r#"{"n":123456789012345678901234567890}"#;
        assert_eq!(Value::Object(fields(big).expect("an object")).to_string(), big);
    }
}
