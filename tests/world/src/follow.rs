//! An application that follows the events of its spaces from a cursor, and is away now and then.

use std::collections::BTreeMap;

use client_sdk::{AccountId, Event, EventCursor, LoggedEvent, Role, Space, SpaceId, TreeId};
use sync_core::log::EntryKind;
use sync_core::record::{TreeChange, verify_as};
use sync_store::{LogRow, Store};

use crate::invariants::{Held, read, unless};
use crate::story::Who;
use crate::violation::Violation;

const NAME: &str = "events_are_told_once_and_in_order";

/// What the readers of all clients have been told. They keep it when a process ends.
#[derive(Default)]
pub(crate) struct Readers(BTreeMap<(Who, SpaceId), Reader>);

struct Reader {
    /// Where to go on.
    cursor: EventCursor,
    /// From where `told` goes: the beginning, or where everything had to be listed again.
    since: EventCursor,
    told: Vec<Told>,
}

/// An event, with its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    seq: u64,
    what: What,
}

/// What of an event stays the same: whether a change can be read depends on when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Tree(TreeId),
    /// The first event of a record of the ACL.
    Acl,
    Is(AccountId, Role),
    Gone(AccountId),
    /// More about a record of the ACL.
    Other,
}

impl What {
    const fn of(event: &Event) -> Self {
        match event {
            Event::Object { tree, .. } | Event::Tree { tree, .. } => Self::Tree(*tree),
            Event::Acl { .. } => Self::Acl,
            Event::MemberJoined { account, role, .. } | Event::RoleChanged { account, role, .. } => {
                Self::Is(*account, *role)
            }
            Event::MemberGone { account, .. } => Self::Gone(*account),
            Event::JoinRequested { .. }
            | Event::RequestDecided { .. }
            | Event::KeysRotated { .. }
            | Event::SpaceDeleted { .. }
            | Event::WriteRefused { .. }
            | Event::NodeAccused { .. }
            | Event::LogRewound { .. }
            | Event::LostByNode { .. }
            | Event::Revealed { .. }
            | Event::ListAgain { .. }
            | Event::Lagged { .. } => Self::Other,
        }
    }
}

impl Readers {
    /// Reads some events on, from where this reader was; then it goes away, with events of an entry untold perhaps.
    pub(crate) fn read_on(&mut self, who: Who, space: &Space, most: usize) -> Held {
        let start = Reader { cursor: EventCursor::START, since: EventCursor::START, told: Vec::new() };
        self.0.entry((who, space.id())).or_insert(start).read_on(who, space, most)
    }

    /// When nothing is under way: what was told piece by piece is what is told at once, and what the log says.
    pub(crate) fn have_been_told_all(&mut self, who: Who, space: &Space, store: &Store) -> Held {
        self.read_on(who, space, usize::MAX)?;
        let Some(reader) = self.0.get(&(who, space.id())) else { return Ok(()) };
        let mut anew = Reader { cursor: reader.since, since: reader.since, told: Vec::new() };
        anew.read_on(who, space, usize::MAX)?;
        unless(reader.told == anew.told, || {
            Violation::new(NAME, format!("{who}, told at once: {:?}", anew.told), &reader.told)
        })?;
        reader.agrees_with_the_log(who, space, store)
    }
}

impl Reader {
    fn read_on(&mut self, who: Who, space: &Space, most: usize) -> Held {
        let mut events = space.events_from(self.cursor);
        for _ in 0..most {
            match events.next_now() {
                Ok(Some(event)) => self.take(who, &event)?,
                // A store that failed is told of elsewhere.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, who: Who, told: &LoggedEvent) -> Held {
        // As an application keeps it.
        self.cursor = told.cursor.to_string().parse().map_err(|e| Violation::new(NAME, "a cursor that is read", e))?;
        if let Event::ListAgain { .. } = told.event {
            (self.since, self.told) = (self.cursor, Vec::new());
            return Ok(());
        }
        let last = self.told.last().map_or(self.since.seq(), |before| before.seq);
        let in_order = told.seq >= last && told.seq > self.since.seq();
        unless(in_order, || Violation::new(NAME, format!("{who}: something after entry {last}"), told))?;
        self.told.push(Told { seq: told.seq, what: What::of(&told.event) });
        Ok(())
    }

    /// Each entry has its event, in the order of the log, and no event is of nothing. Whoever is told of a change was told before
    /// that its author may write.
    fn agrees_with_the_log(&self, who: Who, space: &Space, store: &Store) -> Held {
        let rows =
            read(store, |tx| tx.entries(space.id(), sync_core::ids::Seq(self.since.seq()), usize::MAX, usize::MAX))?;
        let expected: Vec<Told> = rows.iter().filter_map(of_row).collect();
        let seen: Vec<Told> =
            self.told.iter().filter(|t| matches!(t.what, What::Tree(_) | What::Acl)).copied().collect();
        unless(expected == seen, || Violation::new(NAME, format!("{who}, as in the log: {expected:?}"), &seen))?;
        if self.since != EventCursor::START {
            return Ok(());
        }
        let Ok(acl) = space.acl() else { return Ok(()) };
        let authors: BTreeMap<u64, AccountId> = rows.iter().filter_map(author_of).collect();
        let mut members = BTreeMap::from([(acl.owner, Role::Owner)]);
        for told in &self.told {
            match told.what {
                What::Is(account, role) => drop(members.insert(account, role)),
                What::Gone(account) => drop(members.remove(&account)),
                What::Tree(_) => {
                    let author = authors.get(&told.seq);
                    let role = author.map(|author| members.get(author));
                    let may_write = role.is_none_or(|role| role.is_some_and(|role| *role >= Role::Writer));
                    unless(may_write, || {
                        Violation::new(NAME, format!("{who} was told before {told:?} that {author:?} may write"), role)
                    })?;
                }
                What::Acl | What::Other => {}
            }
        }
        let held: BTreeMap<AccountId, Role> = acl.members.iter().map(|(account, m)| (*account, m.role)).collect();
        unless(members == held, || Violation::new(NAME, format!("{who}: the members {held:?}"), &members))
    }
}

fn of_row(row: &LogRow) -> Option<Told> {
    let what = match row.kind {
        // Its first change tells of the tree.
        EntryKind::Root => return None,
        EntryKind::Acl => What::Acl,
        EntryKind::Change | EntryKind::Tombstone => What::Tree(row.tree?),
    };
    Some(Told { seq: row.position.seq.0, what })
}

fn author_of(row: &LogRow) -> Option<(u64, AccountId)> {
    if row.kind != EntryKind::Change || row.quarantined {
        return None;
    }
    let change = verify_as::<TreeChange>(row.record.clone()).ok()?;
    Some((row.position.seq.0, change.body().author))
}
