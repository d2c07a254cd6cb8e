//! Why not: everything that stands between a space and "synced", as a tree. A reason that stands for many things counts them
//! and names the first few; the rest is read in pages.

use sync_core::ids::{ChangeId, TreeId};
use sync_core::limits;
use sync_store::{
    ReadTx, Registration, SyncItem, SyncItemKind, VerdictKind, VerdictRow, WriteClass, WriteCount, WriteId, WriteLine,
    WriteState,
};

use crate::acl::leave_key;
use crate::error::ReadError;
use crate::link::Connection;
use crate::space::{Space, SpaceInner};
use crate::status::{Example, Reason, ReasonCode};

impl Space {
    /// Why the space is not synced, most important first; empty when nothing is known to be missing. What a reason comes from
    /// stands below it.
    ///
    /// ```no_run
    /// # fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// for reason in space.explain()? {
    ///     println!("{reason}");
    ///     for cause in &reason.causes {
    ///         println!("  because {cause}: {}", cause.suggestion);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn explain(&self) -> Result<Vec<Reason>, ReadError> {
        self.inner.reasons()
    }

    /// Why one tree is not synced, or not here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn explain_tree(&self, tree: TreeId) -> Result<Vec<Reason>, ReadError> {
        self.inner.shared.store.read(|tx| self.inner.tree_reasons_in(tx, tree))
    }

    /// The things that a reason of the space stands for, after the first `skip`, at most `max`. Empty for a reason that stands
    /// for the space as a whole.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn reason_items(&self, code: ReasonCode, skip: usize, max: usize) -> Result<Vec<Example>, ReadError> {
        let max = max.min(limits::IDS_PER_REQUEST_MAX);
        self.inner.shared.store.read(|tx| self.inner.items_of(tx, code, skip, max))
    }
}

impl SpaceInner {
    pub(crate) fn reasons(&self) -> Result<Vec<Reason>, ReadError> {
        self.shared.store.read(|tx| self.reasons_in(tx))
    }

    pub(crate) fn reasons_in(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = self.reasons_over_all(tx)?;
        if tx.kv(&leave_key(self.id))?.is_some() && !reasons.iter().any(|r| r.code == ReasonCode::NotAMember) {
            reasons.push(Reason::new(ReasonCode::Leaving, self.id.short(), "kept here, not on the node yet"));
        }
        let (_, lost) = tx.salvage_counts(self.id)?;
        reasons.extend(self.lost_reason(tx, lost)?);
        reasons.extend(self.behind_reasons(tx)?);
        reasons.extend(self.write_reasons(tx)?);
        reasons.extend(self.verdict_reasons(tx)?);
        reasons.extend(self.item_reason(tx, SyncItemKind::Fetch)?);
        Ok(self.with_link(reasons))
    }

    /// What stands over the space as a whole, and so over every tree of it.
    fn reasons_over_all(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = Vec::from_iter(self.membership_reason(tx)?);
        reasons.extend(self.trouble().reasons(self.id));
        reasons.extend(self.recovery_reasons(tx)?);
        if reasons.iter().any(|r| r.code == ReasonCode::NotAMember) {
            // What the node says to a stranger is no news then.
            reasons.retain(|r| r.code != ReasonCode::Forbidden);
        }
        let unregistered = tx.node_state(self.id)?.registration == Registration::Unregistered;
        if unregistered && !reasons.iter().any(|r| r.code == ReasonCode::NotRegistered) {
            let detail = "made here, not on the node yet";
            reasons.push(Reason::new(ReasonCode::NotRegistered, self.id.short(), detail));
        }
        Ok(reasons)
    }

    /// Entries of the node that are not here, or not shown yet.
    fn behind_reasons(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let behind = |detail| Reason::new(ReasonCode::Behind, self.id.short(), detail);
        let Some(row) = tx.space(self.id)? else { return Ok(Vec::new()) };
        let (here, node, shown) = (row.position.seq, self.node_seq(), tx.projected_to(self.id)?);
        let mut reasons = Vec::new();
        if node > here {
            reasons.push(behind(format!("here {here} of {node}")));
        }
        if shown < here && tx.counts(self.id)?.is_some_and(|c| c.changes > 0) {
            reasons.push(behind(format!("objects show {shown} of {here}")));
        }
        Ok(reasons)
    }

    /// A former member's space stands still, and says so.
    fn membership_reason(&self, tx: &ReadTx<'_>) -> Result<Option<Reason>, ReadError> {
        let account = self.shared.account.id();
        let acl = tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
        let removed = acl.removed.get(&account).map(|at| format!("removed by an admin, at entry {at}"));
        let left = acl.left.get(&account).map(|at| format!("left, at entry {at}"));
        Ok(removed.or(left).map(|detail| Reason::new(ReasonCode::NotAMember, self.id.short(), detail)))
    }

    /// Own writes that are not on the node's disk, or are not known to be.
    pub(crate) fn not_pushed(&self) -> Result<Vec<Reason>, ReadError> {
        self.shared.store.read(|tx| self.write_reasons(tx))
    }

    fn write_reasons(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        tx.write_counts(self.id)?.iter().map(|count| self.write_reason(tx, count)).collect()
    }

    fn write_reason(&self, tx: &ReadTx<'_>, count: &WriteCount) -> Result<Reason, ReadError> {
        let first = tx.writes_of(self.id, count.class, 0, limits::REASON_EXAMPLES_MAX)?;
        let now_ms = self.shared.host.wall_ms();
        let mut reason = group(code_of(count.class), "write", count.count, write_examples(first, now_ms));
        reason.attempts = count.attempts_max;
        reason.next_retry_ms = count.next_retry_ms.map(|at| at.saturating_sub(now_ms));
        Ok(reason)
    }

    fn verdict_reasons(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = Vec::new();
        for (kind, count) in tx.verdict_counts(self.id)? {
            let Some(code) = code_of_verdict(kind) else { continue };
            let first = tx.verdicts_of(self.id, kind, None, limits::REASON_EXAMPLES_MAX)?;
            let mut reason = group(code, "change", count, first.into_iter().map(verdict_example).collect());
            match kind {
                VerdictKind::Missing => reason.causes.extend(self.item_reason(tx, SyncItemKind::Content)?),
                VerdictKind::Quarantined => reason.causes.extend(self.item_reason(tx, SyncItemKind::Judge)?),
                VerdictKind::Broken | VerdictKind::Void | VerdictKind::Hidden | VerdictKind::Misplaced => {}
            }
            reasons.push(reason);
        }
        if !reasons.iter().any(|r| r.code == ReasonCode::Quarantined) {
            reasons.extend(self.item_reason(tx, SyncItemKind::Judge)?);
        }
        Ok(reasons)
    }

    /// What is fetched by itself.
    fn item_reason(&self, tx: &ReadTx<'_>, kind: SyncItemKind) -> Result<Option<Reason>, ReadError> {
        let counted = tx.sync_item_counts(self.id)?.into_iter().find(|(k, _, _)| *k == kind);
        let Some((_, count, _)) = counted else { return Ok(None) };
        let first = tx.sync_items_of(self.id, kind, 0, limits::REASON_EXAMPLES_MAX)?;
        Ok(Some(items_reason(kind, count, &first, self.shared.host.wall_ms())))
    }

    /// With what the connection adds: below everything that waits for it, or alone.
    fn with_link(&self, reasons: Vec<Reason>) -> Vec<Reason> {
        let offline = Reason::offline(self.id, &self.shared.connection.borrow(), self.shared.host.now());
        let stale = || {
            let online = matches!(*self.shared.connection.borrow(), Connection::Online(_));
            let silent = online && self.fresh_ms().is_none();
            silent.then(|| Reason::new(ReasonCode::NotFresh, self.id.short(), "the node has yet to answer"))
        };
        nest(reasons, offline.or_else(stale))
    }

    /// Every reason why one tree is not synced, or not here: what stands over the whole space, and its own.
    pub(crate) fn tree_reasons_in(&self, tx: &ReadTx<'_>, tree: TreeId) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = self.reasons_over_all(tx)?;
        reasons.extend(self.lost_of_tree(tx, tree)?);
        let now_ms = self.shared.host.wall_ms();
        let writes = tx.writes_of_tree(self.id, tree)?;
        for class in [WriteClass::Pending, WriteClass::Retrying, WriteClass::Logged, WriteClass::Refused] {
            let of_class: Vec<_> = writes.iter().filter(|w| class_of(&w.state) == Some(class)).cloned().collect();
            let count = of_class.len() as u64;
            if count > 0 {
                let first = of_class.into_iter().take(limits::REASON_EXAMPLES_MAX).collect();
                reasons.push(group(code_of(class), "write", count, write_examples(first, now_ms)));
            }
        }
        let verdicts = tx.verdicts_of_tree(self.id, tree)?;
        let content = tx.sync_item(self.id, tree, SyncItemKind::Content)?;
        for kind in UNSETTLED {
            let of_kind: Vec<_> = verdicts.iter().filter(|(_, _, v)| v.kind == kind).cloned().collect();
            let Some(code) = code_of_verdict(kind).filter(|_| !of_kind.is_empty()) else { continue };
            let count = of_kind.len() as u64;
            let first = of_kind.into_iter().take(limits::REASON_EXAMPLES_MAX).map(verdict_example).collect();
            let mut reason = group(code, "change", count, first);
            if kind == VerdictKind::Missing {
                reason
                    .causes
                    .extend(content.iter().map(|item| items_reason(item.kind, 1, std::slice::from_ref(item), now_ms)));
            }
            reasons.push(reason);
        }
        if let Some(item) = tx.sync_item(self.id, tree, SyncItemKind::Judge)? {
            reasons.push(items_reason(SyncItemKind::Judge, 1, &[item], now_ms));
        }
        // What is on its way may be of this tree.
        let behind = self.behind_reasons(tx)?;
        if tx.tree(self.id, tree)?.is_some() || !writes.is_empty() {
            reasons.extend(behind);
        } else {
            let mut absent = Reason::new(ReasonCode::Missing, tree.short(), "the log here does not have it");
            let item = tx.sync_item(self.id, tree, SyncItemKind::Fetch)?;
            absent.causes.extend(item.map(|item| items_reason(SyncItemKind::Fetch, 1, &[item], now_ms)));
            absent.causes.extend(behind);
            reasons.push(absent);
        }
        Ok(self.with_link(reasons))
    }

    fn items_of(&self, tx: &ReadTx<'_>, code: ReasonCode, skip: usize, max: usize) -> Result<Vec<Example>, ReadError> {
        let until = skip.saturating_add(max);
        let rest = |all: Vec<Example>| all.into_iter().skip(skip).collect();
        if let Some(class) = class_of_code(code) {
            return Ok(write_examples(tx.writes_of(self.id, class, skip, max)?, self.shared.host.wall_ms()));
        }
        if let Some(kind) = verdict_of_code(code) {
            let found = tx.verdicts_of(self.id, kind, None, until)?;
            return Ok(rest(found.into_iter().map(verdict_example).collect()));
        }
        if code == ReasonCode::Fetching {
            let items = tx.sync_items_of(self.id, SyncItemKind::Fetch, skip, max)?;
            let now_ms = self.shared.host.wall_ms();
            return Ok(items.iter().map(|item| item_example(item, now_ms)).collect());
        }
        Ok(Vec::new())
    }
}

/// What holds all of it up stands below each reason that waits for it; alone if none does.
fn nest(mut reasons: Vec<Reason>, link: Option<Reason>) -> Vec<Reason> {
    let below = |reasons: &mut Vec<Reason>, cause: &Reason, waits: fn(ReasonCode) -> bool| {
        let mut held = false;
        for reason in reasons.iter_mut().filter(|r| waits(r.code)) {
            reason.causes.push(cause.clone());
            held = true;
        }
        held
    };
    if let Some(link) = link {
        let held = below(&mut reasons, &link, waits_for_the_node);
        if !held {
            reasons.push(link);
        }
    }
    if let Some(at) = reasons.iter().position(|r| r.code == ReasonCode::NotRegistered) {
        let unregistered = reasons.remove(at);
        reasons.iter_mut().filter(|r| waits_for_registration(r.code)).for_each(|r| r.causes.clear());
        if !below(&mut reasons, &unregistered, waits_for_registration) {
            reasons.insert(at, unregistered);
        }
    }
    reasons
}

const fn waits_for_registration(code: ReasonCode) -> bool {
    matches!(code, ReasonCode::Pending | ReasonCode::Retrying | ReasonCode::NotDurable)
}

const fn waits_for_the_node(code: ReasonCode) -> bool {
    use ReasonCode as R;
    matches!(
        code,
        R::Behind
            | R::Pending
            | R::Retrying
            | R::NotDurable
            | R::NotRegistered
            | R::ContentMissing
            | R::Fetching
            | R::Missing
            | R::Leaving
    )
}

fn items_reason(kind: SyncItemKind, count: u64, first: &[SyncItem], now_ms: u64) -> Reason {
    let code = match kind {
        SyncItemKind::Fetch | SyncItemKind::Content => ReasonCode::Fetching,
        SyncItemKind::Judge => ReasonCode::Different,
    };
    let mut reason = group(code, "tree", count, first.iter().map(|item| item_example(item, now_ms)).collect());
    reason.since_ms = first.iter().map(|i| i.since_ms).min();
    reason.attempts = first.iter().map(|i| i.attempts).max().unwrap_or_default();
    reason
}

fn item_example(item: &SyncItem, now_ms: u64) -> Example {
    let detail = match &item.error {
        Some((_, text)) => text.clone(),
        None if item.kind == SyncItemKind::Judge => "it is derived again from the log".to_owned(),
        None => "asked for".to_owned(),
    };
    let left = item.next_retry_ms.saturating_sub(now_ms);
    let next_retry_ms = (item.attempts > 0).then_some(left);
    Example { scope: item.tree.short(), detail, attempts: item.attempts, next_retry_ms }
}

fn verdict_example((tree, change, verdict): (TreeId, ChangeId, VerdictRow)) -> Example {
    let scope = format!("{} of {}", change.short(), tree.short());
    Example { scope, detail: verdict.detail, attempts: 0, next_retry_ms: None }
}

fn write_examples(lines: Vec<WriteLine>, now_ms: u64) -> Vec<Example> {
    lines.into_iter().map(|line| write_example(&line, now_ms)).collect()
}

fn write_example(line: &WriteLine, now_ms: u64) -> Example {
    let scope = write_scope(line.id, line.tree);
    let plain = |detail: String| Example { scope: scope.clone(), detail, attempts: 0, next_retry_ms: None };
    match &line.state {
        WriteState::Pending { attempts, last_refusal, next_retry_ms } => {
            let detail = last_refusal.as_ref().map_or_else(|| "waits for the node".to_owned(), |r| r.message.clone());
            let next_retry_ms = next_retry_ms.map(|at| at.saturating_sub(now_ms));
            Example { attempts: *attempts, next_retry_ms, ..plain(detail) }
        }
        WriteState::Logged { seq } => plain(format!("logged at {seq}, disk not confirmed")),
        WriteState::Refused(refusal) => plain(refusal.message.clone()),
        WriteState::Durable { seq } => plain(format!("on the node's disk at {seq}")),
        WriteState::Dismissed => plain("dismissed".to_owned()),
    }
}

fn write_scope(write: WriteId, tree: TreeId) -> String {
    format!("write {write} of {}", tree.short())
}

/// One reason for one thing, or for many of a kind.
fn group(code: ReasonCode, what: &str, count: u64, mut first: Vec<Example>) -> Reason {
    let example = first.first().cloned();
    let (scope, detail) = match (count, example) {
        (0 | 1, Some(only)) => {
            first.clear();
            let mut reason = Reason::new(code, only.scope, only.detail);
            (reason.attempts, reason.next_retry_ms) = (only.attempts, only.next_retry_ms);
            return reason;
        }
        (_, example) => (format!("{count} {what}s"), example.map(|e| e.detail).unwrap_or_default()),
    };
    let mut reason = Reason::new(code, scope, detail);
    reason.count = count;
    reason.next_retry_ms = first.iter().filter_map(|e| e.next_retry_ms).min();
    reason.examples = first;
    reason
}

const fn code_of(class: WriteClass) -> ReasonCode {
    match class {
        WriteClass::Pending => ReasonCode::Pending,
        WriteClass::Retrying => ReasonCode::Retrying,
        WriteClass::Logged => ReasonCode::NotDurable,
        WriteClass::Refused => ReasonCode::Refused,
    }
}

fn class_of_code(code: ReasonCode) -> Option<WriteClass> {
    [WriteClass::Pending, WriteClass::Retrying, WriteClass::Logged, WriteClass::Refused]
        .into_iter()
        .find(|class| code_of(*class) == code)
}

const fn class_of(state: &WriteState) -> Option<WriteClass> {
    match state {
        WriteState::Pending { last_refusal: None, .. } => Some(WriteClass::Pending),
        WriteState::Pending { last_refusal: Some(_), .. } => Some(WriteClass::Retrying),
        WriteState::Logged { .. } => Some(WriteClass::Logged),
        WriteState::Refused(_) => Some(WriteClass::Refused),
        WriteState::Durable { .. } | WriteState::Dismissed => None,
    }
}

/// Verdicts that stand in the way of "synced".
pub(crate) const UNSETTLED: [VerdictKind; 3] = [VerdictKind::Quarantined, VerdictKind::Missing, VerdictKind::Broken];

/// Void, hidden and misplaced changes are settled.
const fn code_of_verdict(kind: VerdictKind) -> Option<ReasonCode> {
    match kind {
        VerdictKind::Quarantined => Some(ReasonCode::Quarantined),
        VerdictKind::Missing => Some(ReasonCode::ContentMissing),
        VerdictKind::Broken => Some(ReasonCode::Panicked),
        VerdictKind::Void | VerdictKind::Hidden | VerdictKind::Misplaced => None,
    }
}

fn verdict_of_code(code: ReasonCode) -> Option<VerdictKind> {
    UNSETTLED.into_iter().find(|kind| code_of_verdict(*kind) == Some(code))
}
