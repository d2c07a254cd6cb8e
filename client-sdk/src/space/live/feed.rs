//! The changes of one tree, told one after the other, from any cursor on.
//!
//! Nothing is queued for a reader: it reads the tree after its own place whenever a commit touched it. So a slow one holds nobody
//! up and loses nothing, and memory does not depend on how far it is behind.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sync_core::ids::{Chain, ChangeId, Seq};
use sync_core::log::Position;
use sync_core::tree::{Height, OrderKey};
use sync_store::{ReadTx, WriteId};
use tokio::sync::watch;

use super::follow::{Followed, Follower, Page, Phase, Place, Progress};
use super::{LoggedChange, Tree};
use crate::error::ReadError;
use crate::space::SpaceInner;
use crate::space::write::{is_purge, local_envelope};

/// Why a tree is told from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayWhy {
    /// Nothing was told yet.
    Beginning,
    /// Something that was told as unreadable can be read now, and may stand anywhere.
    Revealed,
    /// The log here is not the one that the cursor was taken from.
    AnotherLog,
}

/// One thing that happened to a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeStep {
    /// Whatever was told before counts no more: the whole tree follows, in its order.
    Replay(ReplayWhy),
    /// A change of the log. Each is told once after the last [`TreeStep::Replay`].
    Change {
        change: LoggedChange,
        place: Place,
        /// It was told as this pending write before, and is not pending any more.
        was_pending: Option<WriteId>,
    },
    /// A write of this client that is not in the log yet. It stands after everything that is logged, in the order of the writes. Not
    /// told again after a replay begins, but after its end; and told anew to a reader that comes back with a cursor.
    Pending { write: WriteId, change: ChangeId, data_type: String, payload: bytes::Bytes },
    /// A pending write is no more, without being in the log under the id that was told: it was refused, or made anew.
    Withdrawn { write: WriteId },
    /// The tree was purged: nothing of it is left, and nothing comes.
    Purged,
}

/// A step with the cursor after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldStep {
    pub cursor: ChangeCursor,
    pub step: TreeStep,
}

/// The changes of a tree from a cursor on: those that were, then those that come. It holds the tree's instance.
pub struct ChangeFeed {
    tree: Tree,
    follower: Follower,
    cursor: ChangeCursor,
    queue: VecDeque<ToldStep>,
    /// Writes that were told as pending.
    pending: BTreeMap<WriteId, ChangeId>,
    touched: watch::Receiver<u64>,
}

impl fmt::Debug for ChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeFeed")
            .field("tree", &self.tree.id())
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl ChangeFeed {
    /// The next step; waits for one. `None` after the client was closed. A call that is dropped before it ends loses nothing.
    ///
    /// # Errors
    /// [`ReadError`]; the same step comes next.
    pub async fn next(&mut self) -> Result<Option<ToldStep>, ReadError> {
        loop {
            self.touched.borrow_and_update();
            match self.next_now() {
                Ok(None) => {}
                Err(ReadError::Closed) => return Ok(None),
                told => return told,
            }
            tokio::select! {
                biased;
                () = self.tree.inner.closed.cancelled() => return Ok(None),
                touched = self.touched.changed() => if touched.is_err() { return Ok(None) },
            }
        }
    }

    /// The next step, if there is one already.
    ///
    /// # Errors
    /// [`ReadError`]; the same step comes next.
    pub fn next_now(&mut self) -> Result<Option<ToldStep>, ReadError> {
        if self.queue.is_empty() {
            let space = self.tree.space()?;
            while self.queue.is_empty() && space.shared.store.read(|tx| self.read(tx, &space))? {}
        }
        let next = self.queue.pop_front();
        if let Some(told) = &next {
            self.cursor = told.cursor;
        }
        Ok(next)
    }

    /// Where the reader is: after the last step that it was given.
    #[must_use]
    pub const fn cursor(&self) -> ChangeCursor {
        self.cursor
    }

    /// The tree.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Reads on; false where there is nothing more.
    fn read(&mut self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<bool, ReadError> {
        match self.follower.page(tx, space)? {
            Page::Changes(changes) => {
                for Followed { change, place, after } in changes {
                    let was_pending = self.pending.iter().find(|(_, id)| **id == change.id).map(|(write, _)| *write);
                    was_pending.map(|write| self.pending.remove(&write));
                    let step = TreeStep::Change { change, place, was_pending };
                    self.queue.push_back(ToldStep { cursor: ChangeCursor(after), step });
                }
            }
            Page::Replay(why) => {
                self.pending.clear();
                self.tell(TreeStep::Replay(why));
            }
            Page::Purged => {
                self.pending.clear();
                self.tell(TreeStep::Purged);
            }
            Page::End if self.follower.at.phase == Phase::Ended => return Ok(false),
            Page::End => {
                self.tell_pending(tx, space)?;
                return Ok(!self.queue.is_empty());
            }
        }
        Ok(true)
    }

    fn tell(&mut self, step: TreeStep) {
        self.queue.push_back(ToldStep { cursor: ChangeCursor(self.follower.at), step });
    }

    /// What is pending now against what was told. In one transaction with the end of the log: a write that is in neither is gone.
    fn tell_pending(&mut self, tx: &ReadTx<'_>, space: &SpaceInner) -> Result<(), ReadError> {
        let mut told = std::mem::take(&mut self.pending);
        let mut steps = Vec::new();
        for write in tx.pending_of_tree(space.id, self.tree.id())?.into_iter().filter(|write| !is_purge(write)) {
            let change = ChangeId::from(write.record.id());
            let known = told.remove(&write.id);
            self.pending.insert(write.id, change);
            if known == Some(change) {
                continue;
            }
            steps.extend(known.map(|_| TreeStep::Withdrawn { write: write.id }));
            let envelope = local_envelope(&space.shared, &write)?;
            let (data_type, payload) = (envelope.data_type, envelope.payload);
            steps.push(TreeStep::Pending { write: write.id, change, data_type, payload });
        }
        let gone = told.into_keys().map(|write| TreeStep::Withdrawn { write });
        gone.chain(steps).for_each(|step| self.tell(step));
        Ok(())
    }
}

impl Tree {
    /// The changes of the tree, each told once and with its place, and then every change that comes.
    ///
    /// ```no_run
    /// # async fn doc(tree: client_sdk::Tree) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{Place, TreeStep};
    /// let mut feed = tree.feed();
    /// let mut lines: Vec<(_, String)> = Vec::new();
    /// while let Some(told) = feed.next().await? {
    ///     match told.step {
    ///         TreeStep::Replay(_) => lines.clear(),
    ///         TreeStep::Change { change, place, .. } => {
    ///             let order = change.order();
    ///             let at = match place {
    ///                 Place::Append => lines.len(),
    ///                 Place::Insert => lines.partition_point(|(other, _)| *other < order),
    ///             };
    ///             lines.insert(at, (order, format!("{:?}", change.content)));
    ///         }
    ///         TreeStep::Pending { .. } | TreeStep::Withdrawn { .. } => {}
    ///         TreeStep::Purged => break,
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn feed(&self) -> ChangeFeed {
        self.changes_from(ChangeCursor::START)
    }

    /// As [`Tree::feed`], from where an earlier feed had got to: in another process, after a week.
    #[must_use]
    pub fn changes_from(&self, cursor: ChangeCursor) -> ChangeFeed {
        ChangeFeed {
            tree: self.clone(),
            follower: Follower::new(self.id(), cursor.0),
            cursor,
            queue: VecDeque::new(),
            pending: BTreeMap::new(),
            touched: self.inner.touched.subscribe(),
        }
    }
}

const PREFIX: &str = "changes_";
const BYTES: usize = 8 + 32 + 1 + 8 + 8 + 32;

/// How far a reader of [`Tree::changes_from`] has got in one tree. It stays good for as long as the log is the one that it was
/// taken from; kept as text, it is one word.
///
/// ```
/// use client_sdk::ChangeCursor;
/// assert_eq!(ChangeCursor::START.to_string().parse(), Ok(ChangeCursor::START));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeCursor(Progress);

impl ChangeCursor {
    /// Before the first change of a tree.
    pub const START: Self = Self(Progress::START);
}

/// Why a text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a change cursor is \"changes_\" and {} characters of base32, as it was given out", (BYTES * 8).div_ceil(5))]
pub struct BadChangeCursor;

impl fmt::Display for ChangeCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { upto, phase, top, unread } = self.0;
        let phase: u8 = match phase {
            Phase::Start => 0,
            Phase::Replay => 1,
            Phase::Follow => 2,
            Phase::Ended => 3,
        };
        // A first change has height 1, so 0 is no place.
        let (height, id) = top.map_or((0, [0; 32]), |top| (top.height.0, *top.id.as_bytes()));
        let numbers = [upto.seq.0.to_be_bytes(), unread.to_be_bytes(), height.to_be_bytes()].concat();
        let bytes = [&[phase][..], &numbers, upto.chain.as_bytes(), &id].concat();
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for ChangeCursor {
    type Err = BadChangeCursor;

    fn from_str(text: &str) -> Result<Self, BadChangeCursor> {
        let encoded = text.strip_prefix(PREFIX).ok_or(BadChangeCursor)?.to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).map_err(|_| BadChangeCursor)?;
        let bytes: &[u8; BYTES] = bytes.as_slice().try_into().map_err(|_| BadChangeCursor)?;
        let (phase, rest) = bytes.split_first().ok_or(BadChangeCursor)?;
        let (seq, rest) = number(rest)?;
        let (unread, rest) = number(rest)?;
        let (height, rest) = number(rest)?;
        let (chain, id) = rest.split_at_checked(32).ok_or(BadChangeCursor)?;
        let phase = match phase {
            0 => Phase::Start,
            1 => Phase::Replay,
            2 => Phase::Follow,
            3 => Phase::Ended,
            _ => return Err(BadChangeCursor),
        };
        let chain = Chain::try_from(chain).map_err(|_| BadChangeCursor)?;
        let id = ChangeId::try_from(id).map_err(|_| BadChangeCursor)?;
        let top = (height > 0).then_some(OrderKey { height: Height(height), id });
        Ok(Self(Progress { upto: Position { seq: Seq(seq), chain }, phase, top, unread }))
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), BadChangeCursor> {
    let (number, rest) = bytes.split_first_chunk().ok_or(BadChangeCursor)?;
    Ok((u64::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nothing_else_is_read() {
        let upto = Position { seq: Seq(4711), chain: Chain::from_hash([7; 32]) };
        let top = OrderKey { height: Height(12), id: ChangeId::from_hash([9; 32]) };
        for phase in [Phase::Replay, Phase::Follow, Phase::Ended] {
            let cursor = ChangeCursor(Progress { upto, phase, top: Some(top), unread: 3 });
            let text = cursor.to_string();
            assert_eq!(text.parse(), Ok(cursor));
            for bad in ["", PREFIX, &text[1..], &text[..text.len() - 1], &format!("{text}a")] {
                assert_eq!(bad.parse::<ChangeCursor>(), Err(BadChangeCursor), "{bad}");
            }
        }
        assert_eq!(ChangeCursor::START.to_string().parse(), Ok(ChangeCursor::START));
    }
}
