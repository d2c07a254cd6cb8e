//! Events as the log tells them: in its order, each once, from any cursor on.
//!
//! Nothing is queued for a reader. It reads the log after its own place whenever the log has moved, a page at a time; so a slow
//! one loses nothing, holds nobody up, and one that comes back after a week goes on where it was.

use std::collections::VecDeque;
use std::sync::Arc;

use sync_core::acl::AclState;
use sync_core::ids::{Epoch, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{EntryKind, Position};
use sync_core::record::{AclRecord, AclRoot, RawRecord, TreeChange, verify_as};
use sync_e2ee::KeyRing;
use sync_store::{LogRow, ReadTx, StoreError};
use tokio::sync::watch;

use super::cursor::EventCursor;
use super::{Event, older_epochs_held};
use crate::acl::events_of;
use crate::client::Shared;
use crate::error::ReadError;
use crate::space::{Content, Space, SpaceInner, absorb, open_change};

/// Entries read at a time.
const PAGE_ENTRIES: usize = 256;

/// An event with the cursor after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Kept once the event was dealt with, it is where to go on.
    pub cursor: EventCursor,
    /// The entry of the log that the event is of.
    pub seq: u64,
    pub event: Event,
}

/// The events of a space from a cursor on: first those that were, then those that come. See [`Space::events_from`].
pub struct LoggedEvents {
    space: Arc<SpaceInner>,
    /// Where the reader is.
    cursor: EventCursor,
    /// What was read of the log: the queue holds the events up to here.
    read: Position,
    /// Events of the entry after `read` that were told already.
    told: u32,
    queue: VecDeque<LoggedEvent>,
    /// The ACL as of `read`, once an entry of it was met.
    acl: Option<AclFold>,
    moved: watch::Receiver<u64>,
}

impl std::fmt::Debug for LoggedEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedEvents")
            .field("space", &self.space.id)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl LoggedEvents {
    fn new(space: Arc<SpaceInner>, cursor: EventCursor) -> Self {
        let read = Position { seq: cursor.seq, chain: cursor.chain };
        let moved = space.moved.subscribe();
        Self { space, cursor, read, told: cursor.told, queue: VecDeque::new(), acl: None, moved }
    }

    /// The next event; waits for one. `None` after the client was closed. A call that is dropped before it ends loses nothing.
    ///
    /// # Errors
    /// [`ReadError`]; the same event comes next.
    pub async fn next(&mut self) -> Result<Option<LoggedEvent>, ReadError> {
        loop {
            self.moved.borrow_and_update();
            if let Some(event) = self.next_now()? {
                return Ok(Some(event));
            }
            tokio::select! {
                biased;
                () = self.space.closed.cancelled() => return Ok(None),
                moved = self.moved.changed() => if moved.is_err() { return Ok(None) },
            }
        }
    }

    /// The next event, if the log here has it already.
    ///
    /// # Errors
    /// [`ReadError`]; the same event comes next.
    pub fn next_now(&mut self) -> Result<Option<LoggedEvent>, ReadError> {
        while self.queue.is_empty() && self.read_page()? {}
        let next = self.queue.pop_front();
        if let Some(event) = &next {
            self.cursor = event.cursor;
        }
        Ok(next)
    }

    /// Where the reader is: after the last event that it was given.
    #[must_use]
    pub const fn cursor(&self) -> EventCursor {
        self.cursor
    }

    /// Reads on; false at the end of the log.
    fn read_page(&mut self) -> Result<bool, ReadError> {
        let space = self.space.clone();
        space.shared.store.read(|tx| {
            let until = end_of(tx, &space)?;
            if !self.stands(tx)? {
                return Ok(self.list_again(until));
            }
            let page = tx.entries(space.id, self.read.seq, PAGE_ENTRIES, limits::BATCH_BYTES_MAX)?;
            let mut advanced = false;
            for entry in page.into_iter().take_while(|entry| entry.position.seq <= until.seq) {
                let at = entry.position;
                let events = self.events_of_entry(tx, entry)?;
                self.enqueue(at, events);
                advanced = true;
            }
            Ok(advanced)
        })
    }

    /// The log here is still the one that was read so far.
    fn stands(&self, tx: &ReadTx<'_>) -> Result<bool, ReadError> {
        if self.read.seq == Seq::ZERO {
            return Ok(true);
        }
        Ok(tx.position_at(self.space.id, self.read.seq)?.is_some_and(|own| own == self.read))
    }

    /// What was told is not what the log says: the reader begins anew at the end.
    fn list_again(&mut self, end: Position) -> bool {
        self.read = end;
        (self.told, self.acl) = (0, None);
        let event = Event::ListAgain { space: self.space.id };
        self.queue.push_back(LoggedEvent { cursor: EventCursor::at(self.read), seq: self.read.seq.0, event });
        true
    }

    /// Cursors between the events of one entry count them from the entry before.
    fn enqueue(&mut self, at: Position, events: Vec<Event>) {
        let before = self.read;
        let skipped = std::mem::take(&mut self.told);
        let last = u32::try_from(events.len()).unwrap_or(u32::MAX);
        for (event, number) in events.into_iter().zip(1..).skip(skipped as usize) {
            let between = EventCursor { seq: before.seq, chain: before.chain, told: number };
            let cursor = if number == last { EventCursor::at(at) } else { between };
            self.queue.push_back(LoggedEvent { cursor, seq: at.seq.0, event });
        }
        self.read = at;
    }

    fn events_of_entry(&mut self, tx: &ReadTx<'_>, entry: LogRow) -> Result<Vec<Event>, ReadError> {
        match entry.kind {
            // Its first change stands right after it, and tells of the tree.
            EntryKind::Root => Ok(Vec::new()),
            EntryKind::Change | EntryKind::Tombstone => self.tree_moved(tx, entry),
            EntryKind::Acl => {
                let (shared, space, at) = (&self.space.shared, self.space.id, entry.position.seq);
                let before = match self.acl.take() {
                    Some(fold) => Some(fold),
                    None => AclFold::before(tx, shared, space, at)?,
                };
                let (fold, events) = AclFold::after(before, shared, space, at, entry.record)?;
                self.acl = Some(fold);
                Ok(events)
            }
        }
    }

    fn tree_moved(&self, tx: &ReadTx<'_>, entry: LogRow) -> Result<Vec<Event>, ReadError> {
        let space = self.space.id;
        let Some(tree) = entry.tree else { return Ok(Vec::new()) };
        let object = match entry.quarantined || entry.kind == EntryKind::Tombstone {
            true => None,
            false => self.object_named(tx, tree, entry.record)?,
        };
        Ok(vec![match object {
            Some((object_type, id)) => Event::Object { space, tree, object_type, id },
            None => Event::Tree { space, tree },
        }])
    }

    /// The object that a change is of, if it can be read.
    fn object_named(
        &self,
        tx: &ReadTx<'_>,
        tree: TreeId,
        record: RawRecord,
    ) -> Result<Option<(String, String)>, ReadError> {
        let Some(state) = tx.tree(self.space.id, tree)? else { return Ok(None) };
        let Ok(change) = verify_as::<TreeChange>(record) else { return Ok(None) };
        let payload = change.raw().payload.as_ref();
        let content = open_change(&self.space.shared, &self.space.ring(), &state.root, change.body(), payload);
        Ok(match content {
            Content::Ops { object_type, object_id, .. } => Some((object_type, object_id)),
            Content::Foreign | Content::Settled { .. } => None,
        })
    }
}

/// As far as keys and live trees have followed the log, which may have been rewound since.
fn end_of(tx: &ReadTx<'_>, space: &SpaceInner) -> Result<Position, ReadError> {
    let end = tx.space(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?.position;
    let announced = space.announced();
    if end.seq <= announced {
        return Ok(end);
    }
    Ok(tx.position_at(space.id, announced)?.unwrap_or(end))
}

/// The ACL and our keys, folded up to a place in the log: what an ACL record means depends on what was before it.
struct AclFold {
    acl: AclState,
    ring: KeyRing,
    epoch: Epoch,
}

impl AclFold {
    /// As of the entry before `seq`; `None` before the first.
    fn before(tx: &ReadTx<'_>, shared: &Shared, space: SpaceId, seq: Seq) -> Result<Option<Self>, ReadError> {
        let mut fold = None;
        for (at, record) in tx.acl_records(space)?.into_iter().filter(|(at, _)| *at < seq) {
            fold = Some(Self::after(fold, shared, space, at, record)?.0);
        }
        Ok(fold)
    }

    /// With one more record, and the events of it.
    fn after(
        before: Option<Self>,
        shared: &Shared,
        space: SpaceId,
        at: Seq,
        record: RawRecord,
    ) -> Result<(Self, Vec<Event>), ReadError> {
        match before {
            None => Self::found(shared, space, record),
            Some(fold) => fold.fold_in(space, at, record),
        }
    }

    fn found(shared: &Shared, space: SpaceId, record: RawRecord) -> Result<(Self, Vec<Event>), ReadError> {
        let root = verify_as::<AclRoot>(record.clone()).map_err(|e| damaged(space, &e))?;
        let acl = AclState::found(space, &root);
        let mut fold = Self { acl, ring: KeyRing::new(shared.account.clone()), epoch: Epoch(0) };
        fold.take_keys(record);
        Ok((fold, vec![Event::Acl { space }]))
    }

    fn fold_in(self, space: SpaceId, at: Seq, record: RawRecord) -> Result<(Self, Vec<Event>), ReadError> {
        let verified = verify_as::<AclRecord>(record.clone()).map_err(|e| damaged(space, &e))?;
        let acl = self.acl.fold_in(&verified, at).map_err(|e| damaged(space, &e))?;
        let mut fold = Self { acl, ..self };
        let before = older_epochs_held(&fold.acl, &fold.ring, at);
        fold.take_keys(record);
        let mut events = vec![Event::Acl { space }];
        events.extend(events_of(&fold.acl, &verified));
        if older_epochs_held(&fold.acl, &fold.ring, at) > before {
            events.push(Event::Revealed { space });
        }
        Ok((fold, events))
    }

    /// A key that does not open is owed, which the status of the space says; events do not depend on it.
    fn take_keys(&mut self, record: RawRecord) {
        if let Err(problem) = absorb(&mut self.ring, record, &mut self.epoch, &self.acl) {
            tracing::debug!(problem, "a record of the ACL gave no keys");
        }
    }
}

fn damaged(space: SpaceId, why: &dyn std::fmt::Display) -> ReadError {
    StoreError::Damaged { what: format!("the ACL log of {space}: {why}") }.into()
}

impl Space {
    /// The events of the space from a cursor on, in the order of the log and each once: those that were, then those that come.
    ///
    /// What the log says is told, and told again to a reader that comes back with an older cursor. What is only here is not
    /// in it: [`Space::events`] hints at own writes before they are in the log, and [`Space::refused`] lists those that never
    /// will be. One change is one event. A change that cannot be read, or is no more, is told as [`Event::Tree`].
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{Event, EventCursor};
    /// let kept = std::fs::read_to_string("cursor").ok();
    /// let from = kept.map_or(Ok(EventCursor::START), |text| text.parse())?;
    /// let mut events = space.events_from(from);
    /// while let Some(told) = events.next().await? {
    ///     if let Event::Object { object_type, id, .. } = &told.event {
    ///         println!("{}: {object_type} {id}", told.seq);
    ///     }
    ///     // Whatever happens now, it is told neither never nor twice.
    ///     std::fs::write("cursor", told.cursor.to_string())?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn events_from(&self, cursor: EventCursor) -> LoggedEvents {
        LoggedEvents::new(self.inner.clone(), cursor)
    }

    /// The cursor after everything that was told up to now: [`Space::events_from`] tells what comes later.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn event_cursor(&self) -> Result<EventCursor, ReadError> {
        let space = &self.inner;
        Ok(EventCursor::at(space.shared.store.read(|tx| end_of(tx, space))?))
    }
}
