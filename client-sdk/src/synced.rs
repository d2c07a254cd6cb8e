//! The awaits. They answer yes only with a receipt that the node signed for this very call, and never no without naming what
//! is missing.
//!
//! The target is fixed at the call: the log position of a Certify answer, every write of ours that was not durable yet, and
//! nothing that others write later.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::{ChangeId, Seq, TreeId};
use sync_core::limits;
use sync_core::receipt::SignedReceipt;
use sync_proto::v1;
use sync_store::{VerdictKind, WriteId, WriteState};

use crate::connect::{Conn, failure};
use crate::error::{CallError, NotSynced, NotSyncedCode, ReadError};
use crate::objects::Object;
use crate::space::{Space, SpaceInner};
use crate::status::{Reason, ReasonCode};

/// How long an await waits unless it is told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The proof that local and node agree, durably, readably.
#[derive(Debug, Clone, PartialEq)]
pub struct Synced {
    /// Signed by the node for this call; verifiable offline.
    pub receipt: SignedReceipt,
    /// Changes that can never be shown because their authors made them wrongly. Settled, the same for everyone.
    pub void: Vec<(TreeId, ChangeId)>,
    /// Changes of epochs whose keys this member was never given. Settled.
    pub hidden: Vec<(TreeId, ChangeId)>,
    /// True if nothing was added on either side since the target was fixed.
    pub equal_now: bool,
}

impl From<&CallError> for NotSyncedCode {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Offline { .. } | CallError::Broken(_) => Self::NoNode,
            CallError::TimedOut => Self::DeadlineExceeded,
            CallError::Refused(failure) if failure.code == Code::Forbidden => Self::Forbidden,
            CallError::Refused(_) => Self::Refused,
            CallError::BadAnswer(_) => Self::NodeFault,
        }
    }
}

impl Space {
    /// Waits until everything that the node has is here and readable, and everything of ours is on the node's disk, as of
    /// this call; at most 30 seconds.
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing.
    pub async fn await_synced(&self) -> Result<Synced, NotSynced> {
        self.await_synced_within(DEADLINE).await
    }

    /// [`Space::await_synced`] with its own deadline.
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing.
    pub async fn await_synced_within(&self, deadline: Duration) -> Result<Synced, NotSynced> {
        self.inner.within(deadline, self.inner.synced()).await
    }

    /// Waits until a write is on the node's disk; the receipt proves it.
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_durable(&self, write: WriteId) -> Result<SignedReceipt, NotSynced> {
        self.await_durable_within(write, DEADLINE).await
    }

    /// [`Space::await_durable`] with its own deadline.
    ///
    /// # Errors
    /// [`NotSynced`].
    pub async fn await_durable_within(&self, write: WriteId, deadline: Duration) -> Result<SignedReceipt, NotSynced> {
        self.inner.within(deadline, self.inner.durable(&[write])).await
    }

    /// Waits until an object is here and readable. It may not have been written yet.
    ///
    /// # Errors
    /// [`NotSynced`]: never an Ok for an object that is not here.
    pub async fn await_object(&self, object_type: &str, id: &str, deadline: Duration) -> Result<Object, NotSynced> {
        let wait = self.inner.object(object_type, id);
        let missing =
            || Reason::new(ReasonCode::Missing, format!("{object_type}/{id}"), "nobody's write of it arrived");
        match tokio::time::timeout(deadline, wait).await {
            Ok(found) => found,
            Err(_) => {
                let mut failed = self.inner.deadline_exceeded();
                failed.residue.insert(0, missing());
                Err(failed)
            }
        }
    }
}

impl SpaceInner {
    /// [`Space::await_durable`].
    pub(crate) async fn durable_within(&self, write: WriteId) -> Result<SignedReceipt, NotSynced> {
        self.within(DEADLINE, self.durable(&[write])).await
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        wait: impl Future<Output = Result<T, NotSynced>>,
    ) -> Result<T, NotSynced> {
        match tokio::time::timeout(deadline, wait).await {
            Ok(result) => result,
            Err(_) => Err(self.deadline_exceeded()),
        }
    }

    fn deadline_exceeded(&self) -> NotSynced {
        let residue = match self.reasons() {
            Ok(reasons) => reasons,
            Err(error) => return store_failed(&error),
        };
        let offline = residue.iter().any(|r| matches!(r.code, ReasonCode::NoNode | ReasonCode::WrongNode));
        let code = if offline { NotSyncedCode::NoNode } else { NotSyncedCode::DeadlineExceeded };
        let mut failed = NotSynced { code, residue };
        if failed.residue.is_empty() {
            failed.residue.push(Reason::new(ReasonCode::TimedOut, self.id.short(), "the time was too short"));
        }
        failed
    }

    async fn synced(&self) -> Result<Synced, NotSynced> {
        let ours = self.unsettled_writes()?;
        let mut receipt = self.certified().await?;
        self.arrives(receipt.body().seq).await?;
        if !ours.is_empty() {
            self.logged(&ours).await?;
            receipt = self.certified().await?;
            self.arrives(receipt.body().seq).await?;
        }
        self.check_receipt(&receipt)?;
        self.settled(&receipt)
    }

    /// Our writes that are not known to be on the node's disk, and refused ones that nobody dismissed.
    fn unsettled_writes(&self) -> Result<BTreeSet<WriteId>, NotSynced> {
        let read = self.shared.store.read(|tx| -> Result<_, ReadError> {
            let refused = tx.refused(self.id)?.into_iter();
            Ok(tx.outbox(self.id)?.into_iter().chain(refused).map(|w| w.id).collect())
        });
        read.map_err(|e| store_failed(&e))
    }

    /// A durable receipt with a nonce of our own, checked; waits for a session as long as it takes.
    async fn certified(&self) -> Result<SignedReceipt, NotSynced> {
        loop {
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            let conn = self.shared.conn().await.map_err(|e| self.call_failed(&e))?;
            // As of the question: it may be registered while the answer is on its way.
            let on_its_way = !self.shared.is_registered(self.id);
            match self.certify(&conn).await {
                Ok(receipt) => return Ok(receipt),
                // A session that broke is replaced by a new one; a space that is on its way to the node arrives.
                Err(CallError::Broken(_) | CallError::Offline { .. } | CallError::TimedOut) => {}
                Err(CallError::Refused(failure)) if on_its_way && failure.code == Code::SpaceUnknown => {}
                Err(CallError::Refused(failure)) if self.may_pass(failure.code) => {}
                Err(error) => return Err(self.call_failed(&error)),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn may_pass(&self, code: Code) -> bool {
        // Made here, and not registered yet.
        let on_its_way = code == Code::SpaceUnknown && !self.shared.is_registered(self.id);
        let passing = [Code::SessionExpired, Code::Overloaded, Code::ShuttingDown, Code::StoreFailed];
        on_its_way || passing.contains(&code)
    }

    /// One Certify call.
    async fn certify(&self, conn: &Conn) -> Result<SignedReceipt, CallError> {
        let nonce: [u8; 16] = self.shared.host.random();
        // Whatever is in our log came from the node's disk: an honest node never stands before it again.
        let floor = self.cursor();
        let before = self.last_receipt().map_err(|e| CallError::BadAnswer(e.to_string()))?;
        let request = v1::CertifyRequest {
            space: self.id.to_bytes(),
            nonce: nonce.to_vec().into(),
            prev: before.as_ref().map_or_else(Vec::new, |r| r.hash().to_vec()).into(),
            trees: Vec::new(),
            with_set_digest: false,
        };
        let mut rpc = conn.rpc();
        let call = rpc.certify(request);
        let answer = tokio::time::timeout(limits::UNARY_TIMEOUT, call).await.map_err(|_| CallError::TimedOut)?;
        let receipt = answer.map_err(|s| CallError::from(failure(&s)))?.into_inner().receipt;
        let receipt = receipt.and_then(|r| r.try_into().ok());
        let receipt = receipt.ok_or_else(|| CallError::BadAnswer("Certify answered without a receipt".to_owned()))?;
        let receipt = self.take_receipt(conn, receipt).await?;
        let body = receipt.body();
        if body.nonce != Some(nonce) || !body.durable || body.prev != before.map(|r| r.hash()) {
            return Err(CallError::BadAnswer("the receipt was not made for this call".to_owned()));
        }
        if body.seq < floor {
            let text = format!("the node signs for {} entries; it sent {floor}", body.seq);
            self.note_trouble(|t| t.rewound = Some(text.clone()));
            return Err(CallError::BadAnswer(text));
        }
        Ok(receipt)
    }

    /// Waits until our log, and with it everything derived from it, holds `seq`.
    async fn arrives(&self, seq: Seq) -> Result<(), NotSynced> {
        self.saw_node_seq(seq);
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            if self.announced() >= seq {
                return Ok(());
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    /// Waits until each of our writes is in the log.
    async fn logged(&self, writes: &BTreeSet<WriteId>) -> Result<(), NotSynced> {
        let mut moved = self.moved.subscribe();
        for write in writes {
            loop {
                moved.borrow_and_update();
                match self.write_state(*write).map_err(|e| store_failed(&e))? {
                    Some(WriteState::Logged { .. } | WriteState::Durable { .. } | WriteState::Dismissed) => break,
                    Some(WriteState::Refused(refusal)) => return Err(self.refused_write(*write, &refusal.message)),
                    Some(WriteState::Pending { .. }) => {}
                    None => return Err(self.refused_write(*write, "no such write")),
                }
                if let Some(failed) = self.stopped() {
                    return Err(failed);
                }
                if moved.changed().await.is_err() {
                    return Err(self.call_failed(&self.shared.offline()));
                }
            }
        }
        Ok(())
    }

    fn refused_write(&self, write: WriteId, why: &str) -> NotSynced {
        let reason = Reason::new(ReasonCode::Refused, format!("write {write}"), why);
        NotSynced { code: NotSyncedCode::Refused, residue: vec![reason] }
    }

    /// What no waiting changes.
    fn stopped(&self) -> Option<NotSynced> {
        let trouble = self.trouble();
        let fault = trouble.faulted.or(trouble.forked).or(trouble.rewound);
        if fault.is_some() {
            let residue = self.reasons().unwrap_or_default();
            return Some(NotSynced { code: NotSyncedCode::NodeFault, residue });
        }
        let (code, text) = trouble.refused?;
        if self.may_pass(code) {
            return None;
        }
        let found = if code == Code::Forbidden { NotSyncedCode::Forbidden } else { NotSyncedCode::Refused };
        let reason = if code == Code::Forbidden { ReasonCode::Forbidden } else { ReasonCode::NotRegistered };
        Some(NotSynced { code: found, residue: vec![Reason::new(reason, self.id.short(), text)] })
    }

    fn call_failed(&self, error: &CallError) -> NotSynced {
        NotSynced { code: error.into(), residue: vec![Reason::of_call(self.id.short(), error)] }
    }

    /// Our own log says at the receipt's position what the node signed.
    fn check_receipt(&self, receipt: &SignedReceipt) -> Result<(), NotSynced> {
        let body = receipt.body();
        let read = self.shared.store.read(|tx| -> Result<_, ReadError> {
            let chain = tx.position_at(self.id, body.seq)?.map(|p| p.chain);
            let acl = tx.acl(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let head = acl.records.iter().filter(|(_, at)| **at <= body.seq).max_by_key(|(_, at)| **at);
            Ok((chain, head.map(|(id, _)| *id), acl.home))
        });
        let (chain, acl_head, home) = read.map_err(|e| store_failed(&e))?;
        let wrong = |what: &str| {
            let reason = Reason::new(ReasonCode::Forked, self.id.short(), what);
            Err(NotSynced { code: NotSyncedCode::NodeFault, residue: vec![reason] })
        };
        if !receipt.proves(body.seq, chain) {
            return wrong("the node signed another log than ours");
        }
        if acl_head != Some(body.acl_head) {
            return wrong("the node signed another ACL than ours");
        }
        if home != Some(body.authority) {
            return wrong("the receipt is not by the space's home");
        }
        Ok(())
    }

    /// The residue at the target: anything in it is a no.
    fn settled(&self, receipt: &SignedReceipt) -> Result<Synced, NotSynced> {
        let target = receipt.body().seq;
        let read = self.shared.store.read(|tx| -> Result<_, ReadError> {
            let projected = tx.projected_to(self.id)?;
            let end = tx.space(self.id)?.map_or(Seq::ZERO, |s| s.position.seq);
            Ok((tx.verdicts(self.id)?, projected, end, tx.pending_count(self.id)?))
        });
        let (verdicts, projected, end, pending) = read.map_err(|e| store_failed(&e))?;
        let mut residue = Vec::new();
        let (mut void, mut hidden) = (Vec::new(), Vec::new());
        for (tree, change, verdict) in verdicts.into_iter().filter(|(_, _, v)| v.seq <= target) {
            match verdict.kind {
                VerdictKind::Void | VerdictKind::Misplaced => void.push((tree, change)),
                VerdictKind::Hidden => hidden.push((tree, change)),
                VerdictKind::Quarantined | VerdictKind::Missing => {
                    residue.push(Reason::of_verdict(tree, change, verdict))
                }
            }
        }
        if projected < target {
            let detail = format!("objects show {projected} of {target}");
            residue.push(Reason::new(ReasonCode::Behind, self.id.short(), detail));
        }
        if let Some(problem) = self.trouble().key {
            residue.push(Reason::new(ReasonCode::KeyOwed, self.id.short(), problem));
        }
        if !residue.is_empty() {
            return Err(NotSynced { code: NotSyncedCode::NodeFault, residue });
        }
        let equal_now = end == target && pending == 0 && self.node_seq() <= target;
        Ok(Synced { receipt: receipt.clone(), void, hidden, equal_now })
    }

    /// Certifies the given writes.
    async fn durable(&self, writes: &[WriteId]) -> Result<SignedReceipt, NotSynced> {
        let writes: BTreeSet<_> = writes.iter().copied().collect();
        self.logged(&writes).await?;
        let dismissed = |write: &&WriteId| matches!(self.write_state(**write), Ok(Some(WriteState::Dismissed)));
        if let Some(write) = writes.iter().find(dismissed) {
            return Err(self.refused_write(*write, "it was refused and dismissed"));
        }
        let receipt = self.certified().await?;
        self.arrives(receipt.body().seq).await?;
        self.check_receipt(&receipt)?;
        Ok(receipt)
    }

    async fn object(self: &Arc<Self>, object_type: &str, id: &str) -> Result<Object, NotSynced> {
        let objects = crate::objects::Objects::new(self.clone());
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            match objects.get(object_type, id) {
                Ok(Some(object)) => return Ok(object),
                Ok(None) => {
                    if let Some(failed) = self.unreadable(&objects, object_type, id)? {
                        return Err(failed);
                    }
                }
                Err(ReadError::NoKeys) => {}
                Err(error) => return Err(store_failed(&error)),
            }
            if let Some(failed) = self.stopped() {
                return Err(failed);
            }
            if moved.changed().await.is_err() {
                return Err(self.call_failed(&self.shared.offline()));
            }
        }
    }

    /// The object is here and waiting will not show it: purged, or hidden from this member for good.
    fn unreadable(
        &self,
        objects: &crate::objects::Objects,
        object_type: &str,
        id: &str,
    ) -> Result<Option<NotSynced>, NotSynced> {
        let tree = objects.tree_id(object_type, id).map_err(|e| store_failed(&e))?;
        let why = self.readability(tree).map_err(|e| store_failed(&e))?;
        let detail = match why {
            Readability::Purged => "it was purged",
            Readability::Hidden => "all of it was written before this member's keys begin",
            Readability::Readable | Readability::Absent => return Ok(None),
        };
        let reason = Reason::new(ReasonCode::Unreadable, format!("{object_type}/{id}"), detail);
        Ok(Some(NotSynced { code: NotSyncedCode::Unreadable, residue: vec![reason] }))
    }

    /// Whether this member can read a tree.
    pub(crate) fn readability(&self, tree: TreeId) -> Result<Readability, ReadError> {
        self.shared.store.read(|tx| {
            let Some(state) = tx.tree(self.id, tree)? else { return Ok(Readability::Absent) };
            if state.purged.is_some() {
                return Ok(Readability::Purged);
            }
            let hidden: BTreeSet<_> = tx
                .verdicts(self.id)?
                .into_iter()
                .filter(|(t, _, v)| *t == tree && v.kind == VerdictKind::Hidden)
                .map(|(_, change, _)| change)
                .collect();
            let all_hidden = !state.heads.is_empty() && state.heads.iter().all(|h| hidden.contains(h));
            let is_member = tx.acl(self.id)?.is_some_and(|acl| acl.members.contains_key(&self.shared.account.id()));
            Ok(match (all_hidden, is_member) {
                (false, _) => Readability::Readable,
                (true, true) => Readability::Hidden,
                // The log here does not reach our own join yet, and with it the keys.
                (true, false) => Readability::Absent,
            })
        })
    }
}

/// Whether this member can read a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readability {
    Readable,
    /// Not in the log here.
    Absent,
    Purged,
    Hidden,
}

pub(crate) fn store_failed(error: &ReadError) -> NotSynced {
    let reason = Reason::new(ReasonCode::StoreFailed, "local store", error.to_string());
    NotSynced { code: NotSyncedCode::StoreFailed, residue: vec![reason] }
}
