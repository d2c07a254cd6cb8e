//! What becomes of own writes: made anew when the ACL passes them, refused with everything that builds on them, tried again.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use sync_core::code::{Code, NextStep};
use sync_core::ids::{ChangeId, TreeId};
use sync_core::log::{Reject, View as _};
use sync_core::record::{TreeChange, verify_as};
use sync_e2ee::Envelope;
use sync_store::{PendingWrite, RefusalRow, WriteId, WriteState, WriteTx};

use super::project::ObjectTouched;
use super::write::{Maker, Rebuild, Rebuilt, is_purge, local_envelope};
use super::{Space, SpaceInner};
use crate::client::Shared;
use crate::error::{ReadError, WriteError, from_store_write};
use crate::events::Event;
use crate::object::{self, ObjectState};

/// A write that the rules refused for good. It is kept, with everything in it, until it is retried or dismissed.
#[derive(Debug, Clone, PartialEq)]
pub struct RefusedWrite {
    pub write: WriteId,
    pub tree: TreeId,
    /// The stable name of the refusal's code.
    pub code: &'static str,
    pub message: String,
    pub content: RefusedContent,
}

/// What a refused write would have written.
#[derive(Debug, Clone, PartialEq)]
pub enum RefusedContent {
    /// Operations on an object; `fields` are those that they alone would give it.
    Object { object_type: String, id: String, fields: Map<String, Value> },
    /// The end of a tree.
    Purge { object_type: String, id: String },
    /// A change of a tree of the application's own.
    Foreign { data_type: String, payload: bytes::Bytes },
}

/// What re-deciding did.
#[derive(Default)]
pub(super) struct Redecided {
    pub(super) events: Vec<Event>,
    pub(super) touched: Vec<ObjectTouched>,
    /// Trees with changes under new ids.
    pub(super) rebuilt: BTreeSet<TreeId>,
}

/// Decides the pending writes to some trees again (all without `trees`), after an entry of the log that may have passed them.
/// Whatever the node said or will say, the same log gives the same answer to everybody.
pub(super) fn redecide(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    maker: &Maker<'_>,
    trees: Option<&BTreeSet<TreeId>>,
    redecided: &mut Redecided,
) -> Result<(), WriteError> {
    let space = maker.space();
    let affected = match trees {
        Some(trees) => trees.clone(),
        None => tx.pending_trees(space)?,
    };
    for tree in affected {
        if tx.pending_of_tree(space, tree)?.is_empty() {
            continue;
        }
        for kind in [Writes::Changes, Writes::Purges] {
            let asked = match kind {
                Writes::Changes => maker.may_write(tx, tree),
                Writes::Purges => maker.may_purge(tx, tree),
            };
            match asked {
                Ok(()) => {}
                Err(WriteError::Rejected(reject)) if Code::from(&reject).next_step() == NextStep::Refuse => {
                    refuse_all(tx, shared, maker, (tree, kind), &reject, redecided)?;
                }
                Err(WriteError::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match maker.rebuild(tx, tree, Rebuild::Stale) {
            // The keys are on their way, or are owed; the node's answer will bring it up again.
            Ok(Rebuilt::No) | Err(WriteError::Read(ReadError::NoKeys)) => {}
            Ok(Rebuilt::Yes) => drop(redecided.rebuilt.insert(tree)),
            Err(WriteError::Read(ReadError::Store(error))) => return Err(error.into()),
            Err(error) => tracing::warn!(tree = %tree.short(), error = %error, "a write could not be made anew"),
        }
    }
    Ok(())
}

/// The rules ask other things of a purge than of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Changes,
    Purges,
}

fn refuse_all(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    maker: &Maker<'_>,
    of: (TreeId, Writes),
    reject: &Reject,
    redecided: &mut Redecided,
) -> Result<(), WriteError> {
    let (space, (tree, kind)) = (maker.space(), of);
    let log_seq = tx.view(space)?.ok_or(ReadError::UnknownSpace(space))?.position().seq;
    let code = Code::from(reject);
    let never_begins = tx.tree(space, tree)?.is_none();
    let refusal = RefusalRow { code: code.number(), message: reject.to_string(), log_seq };
    for write in tx.pending_of_tree(space, tree)? {
        // A tree that will never begin needs no end either.
        let is_theirs = is_purge(&write) == (kind == Writes::Purges) || (kind == Writes::Changes && never_begins);
        // What waits in the salvage may come back as it was.
        if !is_theirs || tx.is_salvage_waiting(space, write.record.id())? {
            continue;
        }
        if kind == Writes::Purges && code == Code::TreePurged {
            // Somebody else was faster; it is what was wanted.
            let at = tx.tree(space, tree)?.and_then(|t| t.purged).map(|p| p.at).unwrap_or_default();
            tx.set_write_state(write.id, &WriteState::Logged { seq: at })?;
        } else {
            refuse_one(tx, shared, maker, &write, &refusal, redecided)?;
        }
    }
    Ok(())
}

fn refuse_one(
    tx: &mut WriteTx<'_>,
    shared: &Shared,
    maker: &Maker<'_>,
    write: &PendingWrite,
    refusal: &RefusalRow,
    redecided: &mut Redecided,
) -> Result<(), WriteError> {
    tx.set_write_state(write.id, &WriteState::Refused(refusal.clone()))?;
    redecided.events.push(Event::WriteRefused { space: maker.space(), write: write.id, code: refusal.code });
    let Envelope { object_type, object_id: id, .. } = local_envelope(shared, write)?;
    redecided.touched.push(ObjectTouched { tree: write.tree, object_type, id });
    Ok(())
}

impl SpaceInner {
    /// The write and everything of ours that builds on it become refused rows.
    pub(super) fn refuse(
        &self,
        tx: &mut WriteTx<'_>,
        write: &PendingWrite,
        refusal: &RefusalRow,
        events: &mut Vec<Event>,
    ) -> Result<(), WriteError> {
        let mut gone = BTreeSet::from([ChangeId::from(write.record.id())]);
        let root_gone = write.root.is_some() && tx.tree(self.id, write.tree)?.is_none();
        for pending in tx.pending_of_tree(self.id, write.tree)? {
            let builds_on_it = || {
                let change = verify_as::<TreeChange>(pending.record.clone());
                // A retried write may bring the root of its tree once more.
                (root_gone && pending.root.is_none())
                    || change.is_ok_and(|c| c.body().parents.iter().any(|p| gone.contains(p)))
            };
            if pending.id < write.id || (pending.id > write.id && !builds_on_it()) {
                continue;
            }
            gone.insert(pending.record.id().into());
            tx.set_write_state(pending.id, &WriteState::Refused(refusal.clone()))?;
            events.push(Event::WriteRefused { space: self.id, write: pending.id, code: refusal.code });
        }
        Ok(())
    }

    async fn retry(self: &std::sync::Arc<Self>, write: WriteId) -> Result<(), WriteError> {
        let (here, space) = (self.clone(), self.clone());
        let job = move |tx: &mut WriteTx<'_>| -> Result<TreeId, WriteError> {
            let refused = tx.open_write(space.id, write)?.filter(|w| matches!(w.state, WriteState::Refused(_)));
            let refused = refused.ok_or(WriteError::NotRefused { write })?;
            Maker::new(tx, &space)?.retry(tx, &refused)?;
            Ok(refused.tree)
        };
        let keeping = async move {
            let tree = here.shared.store.write(job).await.map_err(from_store_write::<WriteError>)?.value;
            here.refresh(tree);
            here.emit(Event::Tree { space: here.id, tree });
            here.push_anew();
            here.touch();
            Ok(())
        };
        self.shared.to_its_end(keeping).await?
    }

    fn refused_writes(&self) -> Result<Vec<RefusedWrite>, ReadError> {
        let rows = self.shared.store.read(|tx| tx.refused(self.id))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let WriteState::Refused(refusal) = &row.state else { continue };
            let code = Code::from_number(refusal.code).map_or("UNKNOWN", Code::name);
            let content = content_of(&row, local_envelope(&self.shared, &row)?);
            let message = refusal.message.clone();
            found.push(RefusedWrite { write: row.id, tree: row.tree, code, message, content });
        }
        Ok(found)
    }
}

fn content_of(row: &PendingWrite, envelope: Envelope) -> RefusedContent {
    let Envelope { object_type, object_id: id, data_type, payload } = envelope;
    if is_purge(row) {
        return RefusedContent::Purge { object_type, id };
    }
    match object::decode(&payload) {
        Ok(ops) if data_type == object::DATA_TYPE => {
            let mut state = ObjectState::new(&object_type, &id);
            let key = sync_core::tree::OrderKey { height: Default::default(), id: row.record.id().into() };
            state.apply(key, &ops);
            RefusedContent::Object { object_type, id, fields: state.fields() }
        }
        Ok(_) | Err(_) => RefusedContent::Foreign { data_type, payload },
    }
}

impl Space {
    /// Own writes that were refused for good, the oldest first, with what is in them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn refused(&self) -> Result<Vec<RefusedWrite>, ReadError> {
        let refused = self.inner.refused_writes()?;
        self.inner.follow_refused(&refused);
        Ok(refused)
    }

    /// Makes a refused write anew, on top of everything that is here, and sends it again: after the role came back, say.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// for refused in space.refused()? {
    ///     println!("{}: {}", refused.code, refused.message);
    ///     if space.retry(refused.write).await.is_err() {
    ///         space.dismiss(refused.write).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError`], if the rules refuse it still; it stays refused then.
    pub async fn retry(&self, write: WriteId) -> Result<(), WriteError> {
        self.inner.retry(write).await
    }
}
