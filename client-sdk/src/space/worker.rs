//! What arrives for one space, in order: entries, durability, heartbeats. Owned by the space, not by any caller.

use std::sync::Arc;

use sync_core::ids::Seq;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{RawRecord, TreeHeads};
use sync_core::session::Input;
use sync_proto::status::Failure;
use sync_proto::v1;
use sync_store::{Registration, WriteTx};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::apply::{AclMoved, ApplyError, Arrived};
use super::recovery::{Tail, accuse};
use super::{SpaceInner, headsync, project};
use crate::connect::Conn;
use crate::error::{CallError, ReadError, WriteError, from_store_write, local};

/// One thing from the node about one space.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// The log was asked for on this connection.
    Online(Conn),
    /// The node's log continues ours.
    Subscribed(v1::Subscribed),
    Entries {
        entries: Vec<v1::LogEntry>,
        /// Of the touched trees, after the last entry.
        heads: Vec<TreeHeads>,
        durable: Seq,
    },
    /// From another client: entries that the home signed for, which its disk holds.
    Relayed {
        entries: Vec<v1::LogEntry>,
        durable: Seq,
        done: oneshot::Sender<Result<(), String>>,
    },
    Durable(Seq),
    Heartbeat(RawRecord),
    Rewound(v1::Rewound),
    Refused(Failure),
}

pub(super) async fn run(space: Arc<SpaceInner>, mut inbox: mpsc::Receiver<Inbound>) {
    space.place_misplaced().await;
    let mut comparison = CancellationToken::new();
    // Frames come after the Online of their connection.
    let mut online: Option<Conn> = None;
    // One at a time: a newer comparison makes an older one worthless.
    let mut compare_on = |conn: Conn| {
        comparison.cancel();
        comparison = CancellationToken::new();
        space.shared.spawn(headsync::run(space.clone(), conn, comparison.clone()));
    };
    loop {
        let inbound = tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            inbound = inbox.recv() => inbound,
        };
        match inbound {
            None => return,
            Some(Inbound::Online(conn)) => {
                // What an earlier connection claimed of the node's log is not known of this one.
                space.node_seq.send_replace(Seq::ZERO);
                space.note_trouble(|t| t.refused = None);
                space.note_tail(Tail::Asked);
                online = Some(conn.clone());
                space.push_anew();
                space.drive_intents();
                compare_on(conn);
            }
            Some(Inbound::Subscribed(subscribed)) => space.subscribed(subscribed, generation(online.as_ref())).await,
            Some(Inbound::Entries { entries, heads, durable }) => {
                space.tail_continues(generation(online.as_ref()));
                if space.entries_arrived(entries, heads, durable).await == AclMoved::Yes {
                    space.drive_intents();
                }
            }
            Some(Inbound::Relayed { entries, durable, done }) => {
                let taken = space.relayed(entries, durable).await;
                if matches!(taken, Ok(AclMoved::Yes)) {
                    space.drive_intents();
                }
                // Who asked may have gone.
                let _ = done.send(taken.map(|_| ()));
            }
            Some(Inbound::Durable(seq)) => {
                space.tail_continues(generation(online.as_ref()));
                space.durable_to(seq).await;
            }
            Some(Inbound::Heartbeat(receipt)) => {
                let differs = space.heartbeat(receipt).await == Derived::Otherwise;
                if let Some(conn) = online.clone().filter(|_| differs) {
                    compare_on(conn);
                }
            }
            Some(Inbound::Rewound(rewound)) => {
                space.drop_ahead().await;
                space.rewound(rewound, online.clone());
            }
            Some(Inbound::Refused(failure)) => space.shut_out(failure, online.clone()),
        }
    }
}

/// What a heartbeat says of the state that both sides derive from the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Derived {
    Alike,
    Otherwise,
}

fn generation(online: Option<&Conn>) -> u64 {
    online.map_or(0, Conn::generation)
}

impl SpaceInner {
    /// What another program on this data directory could not place for want of a type that this one declares.
    async fn place_misplaced(&self) {
        let (id, ring, shared) = (self.id, self.ring(), self.shared.clone());
        let job = move |tx: &mut WriteTx<'_>| project::place_misplaced(tx, &shared, id, &ring);
        match self.shared.store.write(job).await {
            Ok(placed) => self.tell_objects(placed.value, placed.commit),
            Err(error) => tracing::warn!(space = %self.id.short(), error = %error, "misplaced trees stay so"),
        }
    }

    async fn entries_arrived(&self, entries: Vec<v1::LogEntry>, heads: Vec<TreeHeads>, durable: Seq) -> AclMoved {
        let last = entries.last().map_or(Seq::ZERO, |e| Seq(e.seq));
        self.saw_node_seq(last);
        let told = heads.clone();
        let result = self.apply(Arrived { entries, heads, last, durable }).await;
        if result.is_err() {
            // What the peer has is known, although it is not here.
            self.heads_receive(told, last).await;
        }
        match result {
            Ok((cursor, acl_moved)) => {
                self.shared.link(Input::Applied { space: self.id, cursor });
                acl_moved
            }
            Err(error) => {
                self.note_apply_failure(&error);
                self.shared.link(Input::SubscriptionFailed { space: self.id });
                AclMoved::No
            }
        }
    }

    /// What the home signed for is taken from whoever has it.
    async fn relayed(&self, entries: Vec<v1::LogEntry>, durable: Seq) -> Result<AclMoved, String> {
        let last = entries.last().map_or(Seq::ZERO, |e| Seq(e.seq));
        self.saw_node_seq(durable);
        match self.apply(Arrived { entries, heads: Vec::new(), last, durable }).await {
            Ok((cursor, acl_moved)) => {
                self.shared.link(Input::Applied { space: self.id, cursor });
                Ok(acl_moved)
            }
            Err(error) => {
                // What is wrong with it is the word of whoever brought it, and not the node's.
                if !matches!(error, ApplyError::Fault(_)) {
                    self.note_apply_failure(&error);
                }
                Err(error.to_string())
            }
        }
    }

    fn note_apply_failure(&self, error: &ApplyError) {
        tracing::warn!(space = %self.id.short(), error = %error, "entries could not be applied");
        match error {
            ApplyError::Fault(text) => self.note_trouble(|t| t.faulted = Some(text.clone())),
            ApplyError::Write(WriteError::StoreFull) => {
                self.note_trouble(|t| t.store_full = Some("entries of the node do not fit on the disk".to_owned()));
            }
            // Entries that do not continue the log are asked for again; a store that failed says so itself.
            ApplyError::Gap { .. } | ApplyError::Read(_) | ApplyError::Write(_) => self.touch(),
            // A new session gets full records.
            ApplyError::UnknownOwn { .. } => self.shared.redial(),
        }
    }

    /// The node's disk holds the log up to `seq`: our writes up to there are done.
    pub(super) async fn durable_to(&self, seq: Seq) {
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(settle(tx, space, seq)?) };
        if let Err(error) = self.shared.store.write(job).await {
            tracing::warn!(space = %self.id.short(), error = %error, "durability could not be noted");
        }
        self.saw_node_seq(seq);
        self.touch();
    }

    /// The node has the space.
    pub(crate) async fn note_registered(&self) -> Result<(), WriteError> {
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            let mut state = tx.node_state(space)?;
            state.registration = Registration::Registered;
            Ok(tx.put_node_state(space, &state)?)
        };
        let noted = self.shared.store.write(job).await.map_err(from_store_write);
        if let Err(WriteError::StoreFull) = noted {
            self.note_trouble(|t| {
                t.store_full = Some("that the node has the space does not fit on the disk".to_owned())
            });
        }
        noted.map(|_| ())
    }

    async fn heartbeat(&self, receipt: RawRecord) -> Derived {
        let connection = self.shared.connection.borrow().online();
        let Some(conn) = connection else { return Derived::Alike };
        match self.take_receipt(&conn, receipt).await {
            Ok(receipt) => {
                self.shared.link(Input::NodeReaches { space: self.id, seq: receipt.body().seq });
                self.derived_alike(&receipt)
            }
            Err(error) => {
                tracing::warn!(space = %self.id.short(), error = %error, "a heartbeat was not acceptable");
                Derived::Alike
            }
        }
    }

    /// Whether the node derives the same from the same log, as far as one receipt tells. What is known to differ is being
    /// compared already.
    fn derived_alike(&self, receipt: &SignedReceipt) -> Derived {
        let body = receipt.body();
        let theirs = body.set_digest.map(|digest| (body.seq, digest));
        match (self.own_digest(), theirs) {
            (Ok((seq, own)), Some((at, digest)))
                if seq == at && own != digest && self.trouble().different.is_none() =>
            {
                Derived::Otherwise
            }
            // Another place in the log says nothing.
            (Ok(_), _) => Derived::Alike,
            (Err(error), _) => {
                tracing::warn!(space = %self.id.short(), error = %error, "the digest could not be read");
                Derived::Alike
            }
        }
    }

    /// Checks a receipt against this connection, our own log and the receipt before, and keeps it.
    pub(crate) async fn take_receipt(&self, conn: &Conn, receipt: RawRecord) -> Result<SignedReceipt, CallError> {
        let bad = |text: String| CallError::BadAnswer(text);
        let certificate = conn.node_certificate().raw().clone();
        let receipt = SignedReceipt::verify(receipt, certificate).map_err(|e| bad(e.to_string()))?;
        if receipt.body().space != self.id {
            return Err(bad("a receipt for another space".to_owned()));
        }
        let before = self.last_receipt().map_err(local)?;
        let history = self.shared.store.read(|tx| tx.node_history(self.id)).map_err(local)?;
        if history.is_some_and(|known| known != receipt.body().history) {
            // The tail says what it is about; until then nobody is accused.
            return Err(CallError::Broken("the node signs for a history that it has not told of yet".to_owned()));
        }
        self.hold_against(before.as_ref(), &receipt).await?;
        self.saw_node_seq(receipt.body().seq);
        self.keep_receipt(&receipt).await;
        Ok(receipt)
    }

    async fn keep_receipt(&self, receipt: &SignedReceipt) {
        let (space, seq, text) = (self.id, receipt.body().seq, receipt.to_text());
        let signed = receipt.clone();
        let durable = receipt.body().durable;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            if tx.space(space)?.is_none() {
                // Forgotten in the meantime.
                return Ok(());
            }
            let of_this_log = tx.node_history(space)?.is_none_or(|known| known == signed.body().history)
                && tx.position_at(space, seq)?.is_none_or(|own| own.chain == signed.body().chain);
            if !of_this_log {
                // The log was taken back in the meantime, and with it what this speaks of.
                return Ok(());
            }
            let mut state = tx.node_state(space)?;
            // Answers cross on the wire: an older one proves what it says and replaces nothing.
            let kept =
                state.receipt.as_deref().and_then(|b| SignedReceipt::from_text(std::str::from_utf8(b).ok()?).ok());
            if kept.is_none_or(|kept| kept.body().seq <= seq) {
                state.receipt = Some(text.into_bytes());
                tx.put_node_state(space, &state)?;
            }
            if durable {
                settle(tx, space, seq)?;
                accuse::settle(tx, space, &signed)?;
            }
            Ok(())
        };
        if let Err(error) = self.shared.store.write(job).await {
            tracing::warn!(space = %self.id.short(), error = %error, "a receipt could not be kept");
        }
        self.touch();
    }
}

/// Notes that the node's disk holds the log up to `seq`, as far as it is here; never going back.
pub(super) fn settle(
    tx: &mut WriteTx<'_>,
    space: sync_core::ids::SpaceId,
    seq: Seq,
) -> Result<(), sync_store::StoreError> {
    let Some(row) = tx.space(space)? else { return Ok(()) };
    let seq = seq.min(row.position.seq);
    let mut state = tx.node_state(space)?;
    if seq <= state.durable_seq {
        return Ok(());
    }
    state.durable_seq = seq;
    tx.put_node_state(space, &state)?;
    tx.settle_durable(space, seq)?;
    Ok(())
}
