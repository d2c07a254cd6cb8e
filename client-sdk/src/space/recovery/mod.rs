//! A node that went back in time: how it is noticed, accused, given back what it lost, or followed without it.
//!
//! Nothing new goes to the node before its log is known to continue ours, on every connection anew ([`SpaceInner::tail_stands`]).
//! If it does not, [`rewound`] brings back what is lost in its old order, or, where the node's log has gone another way, takes
//! our own log back; then [`salvage`] offers what was in it as ordinary pushes. [`accuse`] keeps what the node signed.

pub(super) mod accuse;
mod rewound;
pub(super) mod salvage;
pub(super) mod seen;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use sync_core::history::SignedHistory;
use sync_core::ids::HistoryId;
use sync_core::limits;
use sync_core::pb;
use sync_core::session::Input;
use sync_proto::v1;
use sync_store::{AccusationKind, AccusationState, ReadTx, WriteTx};
use tokio::sync::{Notify, watch};

use super::SpaceInner;
use crate::connect::Conn;
use crate::error::{CallError, ReadError};
use crate::status::{Reason, ReasonCode};

pub use accuse::{Accusation, Compared};
pub use salvage::LostEntry;
pub(crate) use seen::seen_now;

/// What a space knows of how its node's log and its own meet.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    tail: watch::Sender<Tail>,
    /// A task brings back, or follows.
    running: AtomicBool,
    /// How often our log was taken back; moves before it happens and when it has happened.
    rewinds: AtomicU64,
    salvage_wanted: Notify,
}

impl Recovery {
    /// What was found out of the log before this number moved may have gone.
    pub(crate) fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Acquire)
    }

    fn note_rewind(&self) {
        self.rewinds.fetch_add(1, Ordering::AcqRel);
    }

    /// The node's log is known not to continue ours.
    pub(crate) fn is_parted(&self) -> bool {
        *self.tail.borrow() == Tail::Rewound
    }
}

/// How the node's log meets ours, on which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tail {
    /// Not known yet.
    #[default]
    Asked,
    /// It continues ours.
    Stands(u64),
    /// The node does not say.
    Refused(u64),
    /// It does not continue ours.
    Rewound,
}

/// What the history that a node tells of is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing was known before.
    First,
    Same,
    /// A new one, with the authority's word that it began with a restore.
    Restored,
    /// A new one, and nobody says why.
    Unheard,
}

impl SpaceInner {
    /// What the node says of the time after its restore, if it is within it.
    pub(super) fn note_recovering(&self, text: Option<String>) {
        if self.trouble().recovering != text {
            self.note_trouble(|t| t.recovering = text);
        }
    }

    pub(super) fn note_tail(&self, tail: Tail) {
        self.recovery.tail.send_replace(tail);
    }

    /// Waits until the node's log is known to continue ours on this connection, or the node does not say.
    ///
    /// # Errors
    /// If the connection ends before.
    pub(crate) async fn tail_stands(&self, conn: &Conn) -> Result<(), CallError> {
        tokio::select! {
            biased;
            () = self.tail_answered(conn.generation()) => Ok(()),
            parted = self.shared.parted(conn) => Err(parted),
        }
    }

    /// As [`SpaceInner::tail_stands`], for as long as it takes.
    pub(super) async fn tail_answered(&self, generation: u64) {
        let answered = |tail: &Tail| match tail {
            Tail::Stands(on) | Tail::Refused(on) => *on == generation,
            Tail::Asked | Tail::Rewound => false,
        };
        let mut tail = self.recovery.tail.subscribe();
        // The sender is ours, and lives as long as we do.
        let _ = tail.wait_for(answered).await;
    }

    /// How long ago it was known that the node has nothing new about this space: a pong says nothing of a space before its
    /// tail was answered on the same connection.
    pub(crate) fn fresh_age(&self) -> Option<Duration> {
        let generation = self.shared.connection.borrow().generation()?;
        let answered = match *self.recovery.tail.borrow() {
            Tail::Stands(on) | Tail::Refused(on) => on == generation,
            Tail::Asked | Tail::Rewound => false,
        };
        self.shared.fresh_age().filter(|_| answered)
    }

    /// The node's log continues ours.
    pub(super) async fn subscribed(&self, subscribed: v1::Subscribed, generation: u64) {
        match HistoryId::try_from(subscribed.history.as_ref()) {
            Ok(history) => {
                if let Err(error) = self.meet_history(history, subscribed.histories).await {
                    tracing::warn!(space = %self.id.short(), error = %error, "the node's history could not be noted");
                    // Without it nothing that the node signs can be judged: it is asked for once more.
                    return self.shared.link(Input::SubscriptionFailed { space: self.id });
                }
            }
            Err(error) => tracing::warn!(space = %self.id.short(), error = %error, "the node names no history"),
        }
        self.tail_continues(generation);
    }

    /// Whatever came of the log shows that it continues ours.
    pub(super) fn tail_continues(&self, generation: u64) {
        let moved = self.recovery.tail.send_if_modified(|tail| {
            let news = *tail != Tail::Stands(generation);
            *tail = Tail::Stands(generation);
            news
        });
        if moved {
            self.note_trouble(|t| t.rewound = None);
            self.push_anew();
            self.recovery.salvage_wanted.notify_one();
        }
    }

    /// Follows the history that the node tells of. A new one that nobody explains is held against it.
    async fn meet_history(&self, history: HistoryId, told: Vec<pb::HistoryExport>) -> Result<(), ReadError> {
        self.learn(told).await?;
        let heard = self.shared.store.read(|tx| self.heard(tx, history))?;
        if heard == Heard::Unheard {
            self.accuse_plainly("it began a new history, and does not say that it was restored").await;
        }
        if heard != Heard::Same {
            // What the node showed before is not what it has now.
            self.drop_ahead().await;
            let space = self.id;
            let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
                if tx.space(space)?.is_some() {
                    tx.set_node_history(space, history)?;
                }
                Ok(())
            };
            self.shared.store.write(job).await.map_err(read_error)?;
        }
        Ok(())
    }

    /// Keeps what is good of what the node tells about its restores.
    pub(super) async fn learn(&self, told: Vec<pb::HistoryExport>) -> Result<(), ReadError> {
        let known = self.shared.store.read(|tx| tx.histories(self.id))?;
        let mut news = Vec::new();
        for export in told.into_iter().take(limits::HISTORIES_MAX) {
            let bytes = export.encode_to_vec();
            if known.contains(&bytes) {
                continue;
            }
            match SignedHistory::from_export(export) {
                Ok(signed) if self.is_of_our_node(&signed) => news.push((signed.body().new, bytes)),
                Ok(_) => tracing::warn!(space = %self.id.short(), "a restore of something else is no news"),
                Err(error) => tracing::warn!(space = %self.id.short(), error = %error, "a restore that nobody signed"),
            }
        }
        // A node that invents restores fills no disk.
        news.truncate((limits::HISTORIES_MAX * 4).saturating_sub(known.len()));
        if news.is_empty() {
            return Ok(());
        }
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            if tx.space(space)?.is_some() {
                for (new, bytes) in &news {
                    tx.put_history(space, *new, bytes)?;
                }
            }
            Ok(())
        };
        self.shared.store.write(job).await.map_err(read_error)?;
        Ok(())
    }

    fn is_of_our_node(&self, signed: &SignedHistory) -> bool {
        signed.body().space == self.id && signed.body().authority == self.shared.address.authority
    }

    pub(super) fn heard(&self, tx: &ReadTx<'_>, history: HistoryId) -> Result<Heard, ReadError> {
        let restored =
            || -> Result<bool, ReadError> { Ok(restores(tx, self.id)?.iter().any(|started| started.new == history)) };
        Ok(match tx.node_history(self.id)? {
            // What the node said before may not have come through.
            None if restored()? => Heard::Restored,
            None => Heard::First,
            Some(known) if known == history => Heard::Same,
            Some(_) if restored()? => Heard::Restored,
            Some(_) => Heard::Unheard,
        })
    }

    /// What is known of the node's losses and lies, and of what waits to be brought back.
    pub(crate) fn recovery_reasons(&self, tx: &ReadTx<'_>) -> Result<Vec<Reason>, ReadError> {
        let mut reasons = Vec::new();
        for (id, row) in tx.accusations(self.id)? {
            if row.state != AccusationState::Open {
                continue;
            }
            let code = match row.kind {
                AccusationKind::Rollback => ReasonCode::RolledBack,
                AccusationKind::Fork | AccusationKind::Seen => ReasonCode::Forked,
            };
            let scope = format!("accusation {id} of {}", self.id.short());
            reasons.push(Reason::new(code, scope, row.detail).since(Some(row.at_ms)));
        }
        let (waiting, _) = tx.salvage_counts(self.id)?;
        if waiting > 0 {
            let detail = format!("{waiting} entries that the node lost wait for its log to take them again");
            let mut reason = Reason::new(ReasonCode::Rewound, self.id.short(), detail);
            reason.count = waiting;
            reasons.push(reason);
        }
        Ok(reasons)
    }
}

/// The recognised restores that are known of a space.
pub(super) fn restores(
    tx: &ReadTx<'_>,
    space: sync_core::ids::SpaceId,
) -> Result<Vec<sync_core::record::HistoryStarted>, ReadError> {
    let read = |bytes: Vec<u8>| {
        let export = pb::HistoryExport::decode(bytes.as_slice()).ok()?;
        // Our own rows; the signatures were checked when they came.
        Some(*SignedHistory::from_export(export).ok()?.body())
    };
    Ok(tx.histories(space)?.into_iter().filter_map(read).collect())
}

pub(super) fn read_error(error: sync_store::WriteError<ReadError>) -> ReadError {
    match error {
        sync_store::WriteError::Job(error) => error,
        sync_store::WriteError::OutcomeUnknown(error) | sync_store::WriteError::Failed(error) => error.into(),
        sync_store::WriteError::Overloaded | sync_store::WriteError::Full | sync_store::WriteError::Closed => {
            sync_store::StoreError::Closed.into()
        }
    }
}
