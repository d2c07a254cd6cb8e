//! Reads one tree from a place on: in the order of the tree what was there at the beginning, then in the order of the log what
//! came. Holds a place, never the content.

use std::collections::VecDeque;

use sync_core::ids::{Seq, TreeId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::tree::OrderKey;
use sync_e2ee::KeyRing;
use sync_store::{ChangePlace, LogRow, ReadTx};

use super::LoggedChange;
use super::feed::ReplayWhy;
use crate::error::ReadError;
use crate::space::SpaceInner;

/// Changes read at a time.
const PAGE_CHANGES: usize = 256;

/// Where a change goes among those that were told before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// After all of them in the order of the tree: what was made of them only grows.
    Append,
    /// Before some of them, by its [`LoggedChange::order`]. It was written at the same time as those after it, so that where the
    /// order matters they are to be replayed from there.
    Insert,
}

/// How far a follower has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The part of the log that is told, or (while the tree is replayed) is being told.
    pub(super) upto: Position,
    pub(super) phase: Phase,
    /// The greatest place that was told.
    pub(super) top: Option<OrderKey>,
    /// Told changes that could not be read and may be later.
    pub(super) unread: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was told.
    Start,
    /// In the order of the tree, up to `top`.
    Replay,
    /// In the order of the log.
    Follow,
    /// The tree was purged, and that was told.
    Ended,
}

impl Progress {
    pub(super) const START: Self = Self {
        upto: Position { seq: Seq::ZERO, chain: sync_core::ids::Chain::from_hash([0; 32]) },
        phase: Phase::Start,
        top: None,
        unread: 0,
    };
}

/// One change, and the progress after it.
pub(super) struct Followed {
    pub(super) change: LoggedChange,
    pub(super) place: Place,
    pub(super) after: Progress,
}

/// What the next page is.
pub(super) enum Page {
    /// At least one.
    Changes(Vec<Followed>),
    /// What was told counts no more; the follower stands at the beginning of a replay.
    Replay(ReplayWhy),
    Purged,
    /// Nothing more up to where it was asked.
    End,
}

/// A place in a tree, moving.
pub(super) struct Follower {
    tree: TreeId,
    pub(super) at: Progress,
    /// While the tree is replayed: what is left, by place. 56 bytes a change.
    left: Option<VecDeque<ChangePlace>>,
}

impl Follower {
    pub(super) const fn new(tree: TreeId, at: Progress) -> Self {
        Self { tree, at, left: None }
    }

    /// How much of a replay was not read yet.
    pub(super) fn left(&self) -> usize {
        self.left.as_ref().map_or(0, VecDeque::len)
    }

    /// Goes on in the order of the tree after `top`, where so many were unread, in the part of the log that was told already.
    pub(super) fn rewind(&mut self, top: Option<OrderKey>, unread: u64) {
        let phase = match self.at.phase {
            Phase::Start => Phase::Start,
            Phase::Replay | Phase::Follow | Phase::Ended => Phase::Replay,
        };
        self.at = Progress { phase, top, unread, ..self.at };
        self.left = None;
    }

    /// Reads on, in a transaction of the caller's. After a failure it stands where it stood.
    pub(super) fn page(&mut self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<Page, ReadError> {
        let before = self.at;
        let page = self.read(tx, space);
        if page.is_err() {
            (self.at, self.left) = (before, None);
        }
        page
    }

    fn read(&mut self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<Page, ReadError> {
        if self.at.phase == Phase::Ended {
            return Ok(Page::End);
        }
        let end = tx.space(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?.position;
        let acl = tx.acl(space.id)?.ok_or(ReadError::UnknownSpace(space.id))?;
        let purged = tx.tree(space.id, self.tree)?.is_some_and(|tree| tree.purged.is_some());
        if purged || acl.deleted {
            self.at.phase = Phase::Ended;
            self.left = None;
            return Ok(Page::Purged);
        }
        if let Some(why) = self.must_replay(tx, space)? {
            self.at = Progress { upto: end, phase: Phase::Replay, top: None, unread: 0 };
            self.left = None;
            return Ok(Page::Replay(why));
        }
        // Who is no member is owed no new keys, and need not look for them.
        let is_member = acl.members.contains_key(&space.shared.account.id());
        let ring = if is_member { space.ring_of(tx, &acl)? } else { space.ring() };
        if self.at.phase == Phase::Replay {
            let replayed = self.replayed(tx, space, &ring)?;
            if !replayed.is_empty() {
                return Ok(Page::Changes(replayed));
            }
            self.at.phase = Phase::Follow;
            self.left = None;
        }
        self.followed(tx, space, &ring, end)
    }

    fn must_replay(&self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<Option<ReplayWhy>, ReadError> {
        let at = &self.at;
        if at.phase == Phase::Start {
            return Ok(Some(ReplayWhy::Beginning));
        }
        if tx.position_at(space.id, at.upto.seq)?.is_none_or(|own| own != at.upto) {
            return Ok(Some(ReplayWhy::AnotherLog));
        }
        let revealed = at.phase == Phase::Follow && tx.unread_changes(space.id, self.tree, at.upto.seq)? < at.unread;
        Ok(revealed.then_some(ReplayWhy::Revealed))
    }

    fn replayed(&mut self, tx: &ReadTx<'_>, space: &SpaceInner, ring: &KeyRing) -> Result<Vec<Followed>, ReadError> {
        let left = match self.left.take() {
            Some(left) => left,
            None => self.left_of(tx, space)?,
        };
        let left = self.left.insert(left);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while page.len() < PAGE_CHANGES && bytes < limits::BATCH_BYTES_MAX {
            let Some(place) = left.pop_front() else { break };
            let Some(row) = tx.entry_at(space.id, place.seq)? else { continue };
            bytes += row.record.wire_bytes();
            self.at.top = Some(place.order);
            page.extend(followed(space, ring, row, Place::Append, &mut self.at));
        }
        Ok(page)
    }

    fn left_of(&self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<VecDeque<ChangePlace>, ReadError> {
        let mut places = tx.change_places(space.id, self.tree, self.at.upto.seq)?;
        let told = places.partition_point(|place| self.at.top.is_some_and(|top| place.order <= top));
        places.drain(..told);
        Ok(places.into())
    }

    fn followed(
        &mut self,
        tx: &ReadTx<'_>,
        space: &SpaceInner,
        ring: &KeyRing,
        end: Position,
    ) -> Result<Page, ReadError> {
        let range = (self.at.upto.seq, end.seq);
        let rows = tx.tree_changes_after(space.id, self.tree, range, PAGE_CHANGES, limits::BATCH_BYTES_MAX)?;
        if rows.is_empty() {
            self.at.upto = end;
            return Ok(Page::End);
        }
        let mut page = Vec::with_capacity(rows.len());
        for row in rows {
            self.at.upto = row.position;
            let order = row.height.map(|height| OrderKey { height, id: row.id.into() });
            let place = if order > self.at.top { Place::Append } else { Place::Insert };
            self.at.top = self.at.top.max(order);
            page.extend(followed(space, ring, row, place, &mut self.at));
        }
        Ok(Page::Changes(page))
    }
}

/// Opens a change; counts it if it may be readable later.
fn followed(space: &SpaceInner, ring: &KeyRing, row: LogRow, place: Place, at: &mut Progress) -> Option<Followed> {
    let missing = row.record.payload.is_none();
    let (change, epoch) = LoggedChange::open(space.id, ring, row)?;
    at.unread += u64::from(missing || !ring.holds(epoch));
    Some(Followed { change, place, after: *at })
}
