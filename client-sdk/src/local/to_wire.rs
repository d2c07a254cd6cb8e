//! What the SDK says to answers. We do not lie: nothing here fails.

use std::collections::BTreeSet;

use sync_core::acl::{InviteStatus, RequestStatus};
use sync_core::code::Code;
use sync_core::ids::{ChangeId, TreeId};
use sync_core::receipt::SignedReceipt;
use sync_core::record::{HistoryMode, InviteMode, Role, SpaceOptions};
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::event::Event as Wire;
use sync_store::{AccusationKind, AccusationState, RefusalRow, WriteId, WriteState};

use crate::account::{ClientEvent, DeviceInfo};
use crate::acl::{Effect, InviteInfo, JoinRequest};
use crate::events::{Event, LoggedEvent};
use crate::join::{JoinInfo, JoinStage};
use crate::objects::Object;
use crate::space::recovery::{Accusation, LostEntry};
use crate::space::{LoggedChange, MemberInfo, RefusedContent, RefusedWrite, TreeSnapshot, TreeWritten};
use crate::status::{
    Confirmed, Example, PeerClass, PeerStatus, Reason, ReasonCode, SpaceStatus, SyncState, ToldHeads, TreeStatus,
};
use crate::synced::{Level, Progress, Settled, Synced};
use crate::waits::{WaitFor, WaitInfo};

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A role as it stands in a message; unspecified for a former member.
pub(super) fn role(role: Option<Role>) -> i32 {
    match role {
        None => pb::Role::Unspecified,
        Some(Role::Guest) => pb::Role::Guest,
        Some(Role::Reader) => pb::Role::Reader,
        Some(Role::Writer) => pb::Role::Writer,
        Some(Role::Admin) => pb::Role::Admin,
        Some(Role::Owner) => pb::Role::Owner,
    }
    .into()
}

fn history(mode: HistoryMode) -> i32 {
    match mode {
        HistoryMode::All => pb::HistoryMode::All,
        HistoryMode::SinceJoin => pb::HistoryMode::SinceJoin,
    }
    .into()
}

pub(super) fn options(options: SpaceOptions) -> pb::SpaceOptions {
    pb::SpaceOptions { history: history(options.history), min_version: options.min_version }
}

impl From<DeviceInfo> for pb::Device {
    fn from(device: DeviceInfo) -> Self {
        Self { device: device.id.to_string(), name: device.name, added_ms: device.added_ms, is_this: device.is_this }
    }
}

impl From<MemberInfo> for pb::Member {
    fn from(member: MemberInfo) -> Self {
        Self {
            account: member.account.to_string(),
            role: role(Some(member.role)),
            name: member.name,
            joined_seq: member.joined.0,
        }
    }
}

impl From<&Effect> for pb::Effect {
    fn from(effect: &Effect) -> Self {
        use pb::effect::{Effect as Wire, Goes, Joins, NewKeys, RequestEnds, RoleChanges, RotationOwed, SpaceEnds};
        let effect = match effect {
            Effect::Joins { account, role: given, reads_history } => Wire::Joins(Joins {
                account: account.to_string(),
                role: role(Some(*given)),
                reads_history: *reads_history,
            }),
            Effect::Goes { account, role: had } => {
                Wire::Goes(Goes { account: account.to_string(), role: role(Some(*had)) })
            }
            Effect::Role { account, from, to } => {
                Wire::Role(RoleChanges { account: account.to_string(), from: role(Some(*from)), to: role(Some(*to)) })
            }
            Effect::InviteEnds { invite } => Wire::InviteEnds(invite.to_string()),
            Effect::NewKeys { epoch, members, invites } => {
                Wire::NewKeys(NewKeys { epoch: *epoch, members: count(*members), invites: count(*invites) })
            }
            Effect::RotationOwed => Wire::RotationOwed(RotationOwed {}),
            Effect::History { mode } => Wire::History(history(*mode)),
            Effect::SpaceEnds => Wire::SpaceEnds(SpaceEnds {}),
            Effect::RequestEnds { account, accepted } => {
                Wire::RequestEnds(RequestEnds { account: account.to_string(), accepted: *accepted })
            }
        };
        Self { effect: Some(effect) }
    }
}

pub(super) fn mode(mode: InviteMode) -> i32 {
    match mode {
        InviteMode::Open => pb::InviteMode::Open,
        InviteMode::Approval => pb::InviteMode::Approval,
    }
    .into()
}

impl From<InviteInfo> for pb::Invite {
    fn from(invite: InviteInfo) -> Self {
        let status = match invite.status {
            InviteStatus::Live => pb::InviteStatus::Live,
            InviteStatus::Revoked => pb::InviteStatus::Revoked,
            InviteStatus::Dead => pb::InviteStatus::Dead,
        };
        Self {
            invite: invite.id.to_string(),
            mode: mode(invite.mode),
            role: role(Some(invite.role)),
            creator: invite.creator.to_string(),
            uses: invite.uses,
            max_uses: invite.max_uses,
            expires_ms: invite.expires_ms,
            status: status.into(),
            label: invite.label,
            created_seq: invite.created.0,
        }
    }
}

impl From<&JoinInfo> for pb::JoinInfo {
    fn from(join: &JoinInfo) -> Self {
        let stage = match join.stage {
            JoinStage::Kept => pb::JoinStage::Kept,
            JoinStage::Requested => pb::JoinStage::Requested,
            JoinStage::Joined => pb::JoinStage::Joined,
            JoinStage::Declined => pb::JoinStage::Declined,
            JoinStage::Cancelling => pb::JoinStage::Cancelling,
        };
        Self {
            space: join.space.to_string(),
            mode: mode(join.mode),
            role: role(Some(join.role)),
            stage: stage.into(),
            here: join.here,
        }
    }
}

impl From<JoinRequest> for pb::Request {
    fn from(request: JoinRequest) -> Self {
        let status = match request.status {
            RequestStatus::Pending => pb::RequestStatus::Pending,
            RequestStatus::Accepted { .. } => pb::RequestStatus::Accepted,
            RequestStatus::Declined { .. } => pb::RequestStatus::Declined,
            RequestStatus::Cancelled { .. } => pb::RequestStatus::Cancelled,
        };
        Self {
            request: request.id.to_string(),
            account: request.account.to_string(),
            role: role(Some(request.role)),
            name: request.name,
            at_ms: request.at_ms,
            status: status.into(),
        }
    }
}

impl From<Object> for pb::Object {
    fn from(object: Object) -> Self {
        Self {
            r#type: object.object_type,
            id: object.id,
            tree: object.tree.to_string(),
            fields_json: serde_json::Value::Object(object.fields).to_string(),
            pending: count(object.pending),
            omitted_bytes: 0,
        }
    }
}

pub(super) fn written(write: Option<WriteId>) -> pb::Written {
    pb::Written { write: write.map(|w| w.0) }
}

impl From<TreeWritten> for pb::TreeWritten {
    fn from(written: TreeWritten) -> Self {
        Self {
            tree: written.tree.to_string(),
            writes: written.writes.iter().map(|w| w.0).collect(),
            changes: written.changes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&TreeSnapshot> for pb::Tree {
    fn from(tree: &TreeSnapshot) -> Self {
        let object = tree.object.as_ref();
        Self {
            tree: tree.tree.to_string(),
            heads: tree.heads.iter().map(ToString::to_string).collect(),
            pending: count(tree.pending),
            purged: tree.purged,
            object: object.map(|o| pb::ObjectRef { r#type: o.object_type.clone(), id: o.id.clone() }),
        }
    }
}

impl From<LoggedChange> for pb::LoggedChange {
    fn from(change: LoggedChange) -> Self {
        let readable = change.content.is_some();
        let (data_type, payload) = change.content.unwrap_or_default();
        Self {
            change: change.id.to_string(),
            seq: change.seq,
            height: change.height,
            parents: change.parents.iter().map(ToString::to_string).collect(),
            author: change.author.to_string(),
            at_ms: change.at_ms,
            readable,
            data_type,
            payload,
        }
    }
}

impl From<Event> for pb::Event {
    fn from(event: Event) -> Self {
        use pb::event::{
            AclChanged, JoinRequested, KeysRotated, ListAgain, LogRewound, LostByNode, MemberGone, MemberJoined,
            NodeAccused, ObjectChanged, RequestDecided, Revealed, RoleChanged, SpaceDeleted, TreeChanged, WriteRefused,
        };
        let (space, event) = match event {
            Event::Object { space, tree, object_type, id } => {
                let object = ObjectChanged { tree: tree.to_string(), r#type: object_type, id };
                (Some(space), Wire::Object(object))
            }
            Event::Tree { space, tree } => (Some(space), Wire::Tree(TreeChanged { tree: tree.to_string() })),
            Event::Acl { space } => (Some(space), Wire::Acl(AclChanged {})),
            Event::JoinRequested { space, request, account } => {
                let asked = JoinRequested { request: request.to_string(), account: account.to_string() };
                (Some(space), Wire::JoinRequested(asked))
            }
            Event::RequestDecided { space, request, account, accepted } => {
                let decided = RequestDecided { request: request.to_string(), account: account.to_string(), accepted };
                (Some(space), Wire::RequestDecided(decided))
            }
            Event::MemberJoined { space, account, role: given } => {
                let joined = MemberJoined { account: account.to_string(), role: role(Some(given)) };
                (Some(space), Wire::MemberJoined(joined))
            }
            Event::RoleChanged { space, account, role: given } => {
                let changed = RoleChanged { account: account.to_string(), role: role(Some(given)) };
                (Some(space), Wire::RoleChanged(changed))
            }
            Event::MemberGone { space, account, removed } => {
                (Some(space), Wire::MemberGone(MemberGone { account: account.to_string(), removed }))
            }
            Event::KeysRotated { space, epoch } => (Some(space), Wire::KeysRotated(KeysRotated { epoch: epoch.0 })),
            Event::SpaceDeleted { space } => (Some(space), Wire::SpaceDeleted(SpaceDeleted {})),
            Event::WriteRefused { space, write, code } => {
                let refused = WriteRefused { write: write.0, code: code_name(code) };
                (Some(space), Wire::WriteRefused(refused))
            }
            Event::NodeAccused { space, accusation, kind } => {
                let accused = NodeAccused { accusation: accusation.0, kind: kind.name().to_owned() };
                (Some(space), Wire::NodeAccused(accused))
            }
            Event::LogRewound { space, to } => (Some(space), Wire::LogRewound(LogRewound { to: to.0 })),
            Event::LostByNode { space, entries } => (Some(space), Wire::LostByNode(LostByNode { entries })),
            Event::Revealed { space } => (Some(space), Wire::Revealed(Revealed {})),
            Event::ListAgain { space } => (Some(space), Wire::ListAgain(ListAgain {})),
            Event::Lagged { missed } => (None, Wire::Lagged(pb::Lagged { missed })),
        };
        Self {
            space: space.map(|s| s.to_string()).unwrap_or_default(),
            event: Some(event),
            cursor: String::new(),
            seq: 0,
        }
    }
}

impl From<LoggedEvent> for pb::Event {
    fn from(told: LoggedEvent) -> Self {
        Self { cursor: told.cursor.to_string(), seq: told.seq, ..told.event.into() }
    }
}

impl From<ClientEvent> for pb::Event {
    fn from(event: ClientEvent) -> Self {
        use pb::event::{DeviceRevoked, DevicesChanged, JoinsChanged, SpaceAppeared, SpaceGone};
        let (space, event) = match event {
            ClientEvent::SpaceAppeared { space } => (Some(space), Wire::SpaceAppeared(SpaceAppeared {})),
            ClientEvent::SpaceGone { space } => (Some(space), Wire::SpaceGone(SpaceGone {})),
            ClientEvent::JoinsChanged => (None, Wire::JoinsChanged(JoinsChanged {})),
            ClientEvent::DevicesChanged => (None, Wire::DevicesChanged(DevicesChanged {})),
            ClientEvent::DeviceRevoked => (None, Wire::DeviceRevoked(DeviceRevoked {})),
            ClientEvent::Lagged { missed } => (None, Wire::Lagged(pb::Lagged { missed })),
        };
        Self {
            space: space.map(|s| s.to_string()).unwrap_or_default(),
            event: Some(event),
            cursor: String::new(),
            seq: 0,
        }
    }
}

fn code_name(code: i32) -> String {
    Code::from_number(code).map_or("UNKNOWN", Code::name).to_owned()
}

impl From<&Reason> for pb::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.name().to_owned(),
            scope: reason.scope.clone(),
            detail: reason.detail.clone(),
            attempts: reason.attempts,
            next_retry_ms: reason.next_retry_ms,
            suggestion: reason.suggestion.to_owned(),
            count: reason.count,
            since_ms: reason.since_ms,
            examples: reason.examples.iter().map(Into::into).collect(),
            causes: reason.causes.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Example> for pb::ReasonItem {
    fn from(item: &Example) -> Self {
        Self {
            scope: item.scope.clone(),
            detail: item.detail.clone(),
            attempts: item.attempts,
            next_retry_ms: item.next_retry_ms,
        }
    }
}

fn sync_state(state: SyncState) -> i32 {
    match state {
        SyncState::Offline => pb::SyncState::Offline,
        SyncState::CatchingUp => pb::SyncState::CatchingUp,
        SyncState::Pushing => pb::SyncState::Pushing,
        SyncState::UpToDate => pb::SyncState::UpToDate,
        SyncState::Attention => pb::SyncState::Attention,
    }
    .into()
}

fn confirmed(confirmed: Option<Confirmed>) -> Option<pb::Confirmed> {
    confirmed.map(|c| pb::Confirmed { seq: c.seq, at_ms: c.at_ms })
}

impl From<TreeStatus> for pb::TreeStatus {
    fn from(status: TreeStatus) -> Self {
        let told = |t: ToldHeads| pb::ToldHeads { peer: t.peer, heads: t.heads, seq: t.seq, told_ms: t.told_ms };
        Self {
            tree: status.tree,
            state: sync_state(status.state),
            logged: status.logged,
            purged: status.purged,
            ahead: status.ahead,
            heads: status.heads,
            told: status.told.into_iter().map(told).collect(),
            pending: wide(status.pending),
            quarantined: wide(status.quarantined),
            missing: wide(status.missing),
            void: wide(status.void),
            hidden: wide(status.hidden),
            misplaced: wide(status.misplaced),
            reasons: status.reasons.iter().map(Into::into).collect(),
        }
    }
}

impl From<PeerStatus> for pb::Peer {
    fn from(peer: PeerStatus) -> Self {
        let class = match peer.kind {
            PeerClass::Node => pb::PeerClass::Node,
            PeerClass::Client => pb::PeerClass::Client,
        };
        Self {
            peer: peer.peer,
            class: class.into(),
            connected: peer.connected,
            fresh_ms: peer.fresh_ms,
            seq: peer.seq,
            durable_seq: peer.durable_seq,
            missing: peer.missing,
            pending: peer.pending,
            trees_apart: peer.trees_apart,
            receipt_seq: peer.receipt_seq,
            confirmed: confirmed(peer.confirmed),
            budget: peer.budget.map(|b| pb::PeerBudget { requests: b.requests, hold_ms: b.hold_ms }),
        }
    }
}

impl From<Progress> for pb::Progress {
    fn from(progress: Progress) -> Self {
        let missing = |(code, count): (ReasonCode, u64)| pb::Missing { code: code.name().to_owned(), count };
        Self {
            target: progress.target,
            here: progress.here,
            missing: progress.missing.into_iter().map(missing).collect(),
        }
    }
}

impl From<&Settled> for pb::Settled {
    fn from(settled: &Settled) -> Self {
        Self { seq: settled.seq.0, receipt: settled.receipt.as_ref().map(receipt) }
    }
}

fn level(level: Level) -> i32 {
    match level {
        Level::Received => pb::Level::Received,
        Level::Durable => pb::Level::Durable,
    }
    .into()
}

impl From<WaitInfo> for pb::KeptAwait {
    fn from(wait: WaitInfo) -> Self {
        use pb::kept_await::What;
        let what = match wait.what {
            WaitFor::Synced => What::Synced(pb::EverythingSynced {}),
            WaitFor::Write { write, level: wanted } => What::Write(pb::OneWrite { write, level: level(wanted) }),
            WaitFor::Object { object_type, id } => What::Object(pb::ObjectRef { r#type: object_type, id }),
        };
        Self { wait: wait.id.0, space: wait.space.to_string(), made_ms: wait.made_ms, what: Some(what) }
    }
}

/// A status, and the role that its log says this account has.
pub(super) fn status(status: &SpaceStatus, own: Option<Role>) -> pb::SpaceStatus {
    pb::SpaceStatus {
        space: status.space.clone(),
        role: role(own),
        deleted: status.deleted,
        state: sync_state(status.state),
        seq: status.seq,
        durable_seq: status.durable_seq,
        node_seq: status.node_seq,
        trees: status.trees,
        changes: status.changes,
        pending: wide(status.pending),
        refused: wide(status.refused),
        quarantined: wide(status.quarantined),
        missing: wide(status.missing),
        void: wide(status.void),
        hidden: wide(status.hidden),
        misplaced: wide(status.misplaced),
        fresh_ms: status.fresh_ms,
        confirmed: confirmed(status.confirmed),
        reasons: status.reasons.iter().map(Into::into).collect(),
        projection_lag: status.projection_lag,
        wanted: status.wanted,
        failing: status.failing,
    }
}

pub(super) fn receipt(receipt: &SignedReceipt) -> pb::Receipt {
    let body = receipt.body();
    pb::Receipt {
        text: receipt.to_text(),
        space: body.space.to_string(),
        seq: body.seq.0,
        chain: body.chain.to_string(),
        acl_head: body.acl_head.to_string(),
        authority: body.authority.to_string(),
        node: body.node.to_string(),
        durable: body.durable,
        at_ms: body.at_ms,
    }
}

impl From<&Synced> for pb::Synced {
    fn from(synced: &Synced) -> Self {
        let one =
            |(tree, change): &(TreeId, ChangeId)| pb::ChangeRef { tree: tree.to_string(), change: change.to_string() };
        Self {
            receipt: Some(receipt(&synced.receipt)),
            void: synced.void.iter().map(one).collect(),
            hidden: synced.hidden.iter().map(one).collect(),
            equal_now: synced.equal_now,
            heads: synced.heads.iter().map(tree_heads).collect(),
        }
    }
}

fn tree_heads((tree, heads): (&TreeId, &BTreeSet<ChangeId>)) -> pb::TreeHeads {
    pb::TreeHeads { tree: tree.to_string(), heads: heads.iter().map(ToString::to_string).collect() }
}

fn refusal(row: RefusalRow) -> pb::write::Refusal {
    pb::write::Refusal { code: code_name(row.code), message: row.message }
}

pub(super) fn write(id: u64, state: WriteState) -> pb::Write {
    use pb::write::{Dismissed, Pending, State};
    let state = match state {
        WriteState::Pending { attempts, last_refusal, next_retry_ms } => {
            State::Pending(Pending { attempts, last_refusal: last_refusal.map(refusal), next_retry_ms })
        }
        WriteState::Logged { seq } => State::LoggedSeq(seq.0),
        WriteState::Durable { seq } => State::DurableSeq(seq.0),
        WriteState::Refused(row) => State::Refused(refusal(row)),
        WriteState::Dismissed => State::Dismissed(Dismissed {}),
    };
    pb::Write { write: id, state: Some(state) }
}

impl From<RefusedWrite> for pb::RefusedWrite {
    fn from(refused: RefusedWrite) -> Self {
        use pb::refused_write::Content;
        let content = match refused.content {
            RefusedContent::Object { object_type, id, fields } => {
                let fields_json = serde_json::Value::Object(fields).to_string();
                Content::Object(pb::NewObject { r#type: object_type, id, fields_json })
            }
            RefusedContent::Purge { object_type, id } => Content::Purge(pb::ObjectRef { r#type: object_type, id }),
            RefusedContent::Foreign { data_type, payload } => {
                Content::Foreign(pb::ForeignContent { data_type, payload })
            }
        };
        Self {
            write: refused.write.0,
            tree: refused.tree.to_string(),
            code: refused.code.to_owned(),
            message: refused.message,
            content: Some(content),
        }
    }
}

impl From<Accusation> for pb::Accusation {
    fn from(accusation: Accusation) -> Self {
        let kind = match accusation.kind {
            AccusationKind::Rollback => "rollback",
            AccusationKind::Fork => "fork",
            AccusationKind::Seen => "seen",
        };
        let state = match accusation.state {
            AccusationState::Open => "open",
            AccusationState::MadeGood => "made_good",
            AccusationState::Followed => "followed",
            AccusationState::Dismissed => "dismissed",
        };
        Self {
            accusation: accusation.id.0,
            kind: kind.to_owned(),
            state: state.to_owned(),
            seq: accusation.claim.seq.0,
            chain: accusation.claim.chain.to_string(),
            detail: accusation.detail,
            has_evidence: accusation.evidence.is_some(),
            at_ms: accusation.at_ms,
        }
    }
}

impl From<LostEntry> for pb::LostEntry {
    fn from(lost: LostEntry) -> Self {
        Self {
            lost: lost.id.0,
            seq: lost.seq.0,
            entry: lost.entry.to_string(),
            what: lost.what(),
            author: lost.author.map(|author| author.to_string()).unwrap_or_default(),
            tree: lost.tree.map(|tree| tree.to_string()).unwrap_or_default(),
            acts: lost.acts,
            code: lost.code.to_owned(),
            message: lost.message,
        }
    }
}
