//! The client's side of a connection, under inputs in any order.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use sync_core::ids::{Seq, SpaceId};
use sync_core::limits;
use sync_core::session::{Input, Link, Moment, Output, pause};

fn space(n: u8) -> SpaceId {
    SpaceId::from_hash([n; 32])
}

fn input() -> impl Strategy<Value = Input> {
    let space = (0..3u8).prop_map(space);
    let seq = (0..12u64).prop_map(Seq);
    prop_oneof![
        2 => Just(Input::Tick),
        3 => (space.clone(), seq.clone()).prop_map(|(space, cursor)| Input::SpaceOpened { space, cursor }),
        1 => space.clone().prop_map(|space| Input::SpaceClosed { space }),
        1 => Just(Input::Wake),
        3 => Just(Input::Connected),
        1 => any::<u8>().prop_map(|jitter| Input::Disconnected { jitter }),
        12 => (space.clone(), seq.clone(), seq.clone())
            .prop_map(|(space, first, last)| Input::EntriesArrived { space, first, last }),
        4 => (space.clone(), seq).prop_map(|(space, cursor)| Input::Applied { space, cursor }),
        2 => space.clone().prop_map(|space| Input::SubscriptionFailed { space }),
        1 => (space.clone(), (0..12u64).prop_map(Seq)).prop_map(|(space, cursor)| Input::Rewound { space, cursor }),
        1 => space.clone().prop_map(|space| Input::AskAgain { space }),
        2 => (space, (0..12u64).prop_map(Seq)).prop_map(|(space, seq)| Input::NodeReaches { space, seq }),
        2 => (0..6u64).prop_map(|number| Input::PongArrived { number }),
    ]
}

/// Where the node's log ends, once the outside behaves.
const END: Seq = Seq(20);

/// What the outside knows of one open space.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// In the local store.
    stored: Seq,
    /// The first entry that did not come on the subscription, if there is a subscription.
    next: Option<Seq>,
    /// When the rest was last asked for again, since something new came.
    asked: Option<Moment>,
}

/// A link and everything that must hold of what it says.
struct Watched {
    link: Link,
    now: Moment,
    connected: bool,
    spaces: BTreeMap<SpaceId, Known>,
}

impl Watched {
    fn new() -> Self {
        Self { link: Link::new(), now: Moment::default(), connected: false, spaces: BTreeMap::new() }
    }

    fn handle(&mut self, input: Input) -> Result<Vec<Output>, TestCaseError> {
        let gap = self.shows_a_gap(input);
        self.link.handle(input, self.now);
        self.note(input);
        let outputs: Vec<_> = std::iter::from_fn(|| self.link.poll()).collect();
        for output in &outputs {
            self.check(*output)?;
        }
        if let Some(space) = gap {
            let asked = self.spaces[&space].asked;
            let lately = asked.is_some_and(|at| self.now.0 - at.0 < limits::RETRY_FIRST);
            prop_assert!(lately, "a gap is asked for, and not long ago: {asked:?}, now {:?}", self.now);
        }
        Ok(outputs)
    }

    /// The space, if entries are missing before what this says.
    fn shows_a_gap(&self, input: Input) -> Option<SpaceId> {
        let (space, first_missing_before, last) = match input {
            Input::EntriesArrived { space, first, last } if last >= first => (space, first, last),
            Input::NodeReaches { space, seq } => (space, seq.next(), seq),
            Input::Tick
            | Input::SpaceOpened { .. }
            | Input::SpaceClosed { .. }
            | Input::Wake
            | Input::Connected
            | Input::Disconnected { .. }
            | Input::EntriesArrived { .. }
            | Input::Applied { .. }
            | Input::Subscribed { .. }
            | Input::SubscriptionFailed { .. }
            | Input::Rewound { .. }
            | Input::AskAgain { .. }
            | Input::PongArrived { .. } => return None,
        };
        let next = self.spaces.get(&space)?.next?;
        (self.connected && last >= next && first_missing_before > next).then_some(space)
    }

    fn note(&mut self, input: Input) {
        match input {
            Input::SpaceOpened { space, cursor } => {
                self.spaces.entry(space).or_insert(Known { stored: cursor, next: None, asked: None });
            }
            Input::SpaceClosed { space } => {
                self.spaces.remove(&space);
            }
            Input::Connected => self.streams_end(true),
            Input::Disconnected { .. } => self.streams_end(false),
            Input::Applied { space, cursor } => {
                if let Some(known) = self.spaces.get_mut(&space) {
                    known.stored = known.stored.max(cursor);
                    known.next = known.next.map(|next| next.max(cursor.next()));
                }
            }
            Input::SubscriptionFailed { space } => {
                if let Some(known) = self.spaces.get_mut(&space) {
                    (known.next, known.asked) = (None, None);
                }
            }
            Input::Rewound { space, cursor } => {
                if let Some(known) = self.spaces.get_mut(&space) {
                    *known = Known { stored: cursor, next: None, asked: None };
                }
            }
            Input::Tick
            | Input::Wake
            | Input::EntriesArrived { .. }
            | Input::NodeReaches { .. }
            | Input::Subscribed { .. }
            | Input::AskAgain { .. }
            | Input::PongArrived { .. } => {}
        }
    }

    fn streams_end(&mut self, connected: bool) {
        self.connected = connected;
        for known in self.spaces.values_mut() {
            (known.next, known.asked) = (None, None);
        }
    }

    fn check(&mut self, output: Output) -> Result<(), TestCaseError> {
        match output {
            Output::Subscribe { space, cursor } => {
                prop_assert!(self.connected);
                let known = self.spaces.get_mut(&space).expect("only open spaces are subscribed");
                prop_assert_eq!(cursor, known.stored, "from what is stored, neither more nor less");
                match known.next {
                    None => known.next = Some(cursor.next()),
                    Some(_) => known.asked = Some(self.now),
                }
            }
            Output::Apply { space, first, last } => {
                let known = self.spaces.get_mut(&space).expect("only open spaces are applied");
                let next = known.next.expect("only what is subscribed is applied");
                prop_assert!(first <= next, "{:?} is missing before {:?}", next, first);
                prop_assert!(last >= next, "nothing new in {:?}..={:?}", first, last);
                (known.next, known.asked) = (Some(last.next()), None);
            }
            Output::Online { space } | Output::Unsubscribe { space } => {
                prop_assert!(self.connected);
                let open = self.spaces.contains_key(&space);
                prop_assert_eq!(open, matches!(output, Output::Online { .. }));
            }
            Output::Ping { .. } | Output::HangUp => prop_assert!(self.connected),
            Output::Dial => prop_assert!(!self.connected),
        }
        Ok(())
    }

    /// What a node, a network and a store that behave answer.
    fn answers(&self, output: Output) -> Vec<Input> {
        match output {
            Output::Dial => vec![Input::Connected],
            Output::HangUp if self.connected => vec![Input::Disconnected { jitter: 0 }],
            Output::Ping { number } => {
                let reaches = self.spaces.keys().map(|space| Input::NodeReaches { space: *space, seq: END });
                reaches.chain([Input::PongArrived { number }]).collect()
            }
            Output::Subscribe { space, cursor } if cursor < END => {
                vec![Input::Subscribed { space }, Input::EntriesArrived { space, first: cursor.next(), last: END }]
            }
            Output::Apply { space, last, .. } => vec![Input::Applied { space, cursor: last }],
            Output::HangUp | Output::Subscribe { .. } | Output::Unsubscribe { .. } | Output::Online { .. } => {
                Vec::new()
            }
        }
    }

    /// The outside behaves for two minutes.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let end = Moment(self.now.0 + Duration::from_secs(120));
        let mut inputs = VecDeque::new();
        // A dial that was asked for before ends now.
        if !self.connected && self.link.waiting().is_none() && !self.spaces.is_empty() {
            inputs.push_back(Input::Connected);
        }
        for _ in 0..2000 {
            let (input, due) = match (inputs.pop_front(), self.link.deadline()) {
                (Some(input), _) => (input, None),
                (None, Some(due)) if due <= end => (Input::Tick, Some(due)),
                (None, Some(_) | None) => return Ok(()),
            };
            self.now = self.now.max(due.unwrap_or_default());
            let outputs = self.handle(input)?;
            let done = due.is_none_or(|due| self.link.deadline() > Some(due) || !outputs.is_empty());
            prop_assert!(done, "a deadline that passes is done with");
            for output in outputs {
                inputs.extend(self.answers(output));
            }
        }
        Err(TestCaseError::fail("settling does not end"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn entries_are_applied_without_gaps_and_everything_arrives_in_the_end(
        inputs in prop::collection::vec((input(), 0..7000u64), 0..60),
    ) {
        let mut watched = Watched::new();
        for (input, later_ms) in inputs {
            watched.now = Moment(watched.now.0 + Duration::from_millis(later_ms));
            watched.handle(input)?;
        }
        watched.settle()?;
        for (space, known) in &watched.spaces {
            prop_assert!(watched.connected && known.next.is_some(), "{:?} is not subscribed: {:?}", space, known);
            prop_assert!(known.stored >= END, "{:?} did not get what the node has: {:?}", space, known);
        }
        if watched.connected {
            let fresh = watched.link.fresh_at(watched.now).expect("a link whose pings are answered is fresh");
            prop_assert!(fresh <= watched.now);
        }
    }

    #[test]
    fn freshness_is_never_newer_than_the_last_ping_that_came_back(
        steps in prop::collection::vec((0..8000u64, any::<bool>()), 1..40),
    ) {
        let mut watched = Watched::new();
        watched.handle(Input::SpaceOpened { space: space(0), cursor: Seq(2) })?;
        let mut sent = Vec::new();
        let mut echoed = None;
        let mut outputs = watched.handle(Input::Connected)?;
        for (later_ms, answers) in steps {
            for output in outputs {
                match output {
                    Output::Ping { number } => sent.push((number, watched.now)),
                    Output::HangUp => return Ok(()),
                    Output::Dial | Output::Subscribe { .. } | Output::Unsubscribe { .. } | Output::Online { .. } | Output::Apply { .. } => {}
                }
            }
            watched.now = Moment(watched.now.0 + Duration::from_millis(later_ms));
            outputs = match sent.pop().filter(|_| answers) {
                Some((number, at)) => {
                    echoed = echoed.max(Some(at));
                    watched.handle(Input::PongArrived { number })?
                }
                None => watched.handle(Input::Tick)?,
            };
            let fresh = watched.link.fresh_at(watched.now);
            prop_assert!(fresh <= echoed, "{:?} is newer than {:?}", fresh, echoed);
            if let Some(fresh) = fresh {
                prop_assert!(watched.now.0 - fresh.0 <= limits::HEARTBEAT_INTERVAL * 2);
            }
        }
    }

    #[test]
    fn pauses_grow_and_are_bounded(failures in 1..u32::MAX, jitter in any::<u8>()) {
        let this = pause(failures, jitter);
        prop_assert!(this <= limits::RETRY_MAX && this >= limits::RETRY_FIRST * 3 / 4);
        prop_assert!(pause(failures.saturating_add(1), jitter) >= this);
        prop_assert!(pause(failures, 0) >= this && pause(failures, 255) <= this, "jitter only shortens, by a quarter at most");
    }
}
