//! The two halves of a session that need no IO: the proofs at its beginning, and the client's side of a connection as a
//! state machine.
//!
//! [`Link`] takes what happened ([`Input`]) and the time, and says what to do next ([`Output`]). It never reads a clock and
//! never waits: a thin shell drives it, in production with sockets, in tests with a virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ed25519_dalek::SigningKey;

use crate::ids::{AccountId, AuthorityId, DeviceId, NodeId, Seq, SpaceId};
use crate::limits;
use crate::record::{VerifyError, sign_bytes, verify_bytes};

// ---- proofs ---------------------------------------------------------------------------------------------------------

const NODE_PROOF: &str = "headwater/session/node/v1";
const CLIENT_PROOF: &str = "headwater/session/client/v1";

/// What both sides of a handshake put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonces {
    pub client: [u8; 32],
    pub server: [u8; 32],
}

impl Nonces {
    /// Both in one, for proofs that are good for this session only.
    #[must_use]
    pub fn joined(&self) -> [u8; 64] {
        let mut joined = [0; 64];
        joined[..32].copy_from_slice(&self.client);
        joined[32..].copy_from_slice(&self.server);
        joined
    }
}

/// The node's half: it holds the key that the authority certified, here and now.
#[must_use]
pub fn sign_challenge(node: &SigningKey, nonces: &Nonces, account: &AccountId, device: &DeviceId) -> [u8; 64] {
    sign_bytes(node, NODE_PROOF, &[&nonces.client, &nonces.server, account.as_bytes(), device.as_bytes()])
}

/// Checks [`sign_challenge`].
///
/// # Errors
/// [`VerifyError::BadSignature`].
pub fn verify_challenge(
    node: &NodeId,
    nonces: &Nonces,
    account: &AccountId,
    device: &DeviceId,
    signature: &[u8],
) -> Result<(), VerifyError> {
    let parts: [&[u8]; 4] = [&nonces.client, &nonces.server, account.as_bytes(), device.as_bytes()];
    verify_bytes(node.as_bytes(), NODE_PROOF, &parts, signature)
}

/// The client's half: it holds the device key, and means this authority and no other.
#[must_use]
pub fn sign_proof(device: &SigningKey, nonces: &Nonces, authority: &AuthorityId) -> [u8; 64] {
    let id = DeviceId::from(&device.verifying_key());
    sign_bytes(device, CLIENT_PROOF, &[&nonces.client, &nonces.server, authority.as_bytes(), id.as_bytes()])
}

/// Checks [`sign_proof`].
///
/// # Errors
/// [`VerifyError::BadSignature`].
pub fn verify_proof(
    device: &DeviceId,
    nonces: &Nonces,
    authority: &AuthorityId,
    signature: &[u8],
) -> Result<(), VerifyError> {
    let parts: [&[u8]; 4] = [&nonces.client, &nonces.server, authority.as_bytes(), device.as_bytes()];
    verify_bytes(device.as_bytes(), CLIENT_PROOF, &parts, signature)
}

/// One side's half of a meeting of two clients: it holds the device key, and means this space, this device opposite, and these
/// two nonces. The side that asks and the side that serves sign different things.
#[must_use]
pub fn sign_meeting(device: &SigningKey, side: MeetingSide, meeting: &Meeting) -> [u8; 64] {
    sign_bytes(device, side.context(), &meeting.parts())
}

/// Checks [`sign_meeting`] by the device of that side.
///
/// # Errors
/// [`VerifyError::BadSignature`].
pub fn verify_meeting(side: MeetingSide, meeting: &Meeting, signature: &[u8]) -> Result<(), VerifyError> {
    let device = match side {
        MeetingSide::Asks => meeting.asks,
        MeetingSide::Serves => meeting.serves,
    };
    verify_bytes(device.as_bytes(), side.context(), &meeting.parts(), signature)
}

/// Which side of a meeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeetingSide {
    Asks,
    Serves,
}

impl MeetingSide {
    const fn context(self) -> &'static str {
        match self {
            Self::Asks => "headwater/meeting/asks/v1",
            Self::Serves => "headwater/meeting/serves/v1",
        }
    }
}

/// Two clients that meet over one space. In `nonces`, the client is the side that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meeting {
    pub space: SpaceId,
    pub nonces: Nonces,
    pub asks: DeviceId,
    pub serves: DeviceId,
}

impl Meeting {
    fn parts(&self) -> [&[u8]; 5] {
        let Self { space, nonces, asks, serves } = self;
        [space.as_bytes(), &nonces.client, &nonces.server, asks.as_bytes(), serves.as_bytes()]
    }

    /// What the symbols of their comparison are keyed with.
    #[must_use]
    pub fn symbol_seed(&self) -> [u8; 32] {
        blake3::derive_key("headwater/meeting/symbols/v1", &self.nonces.joined())
    }
}

// ---- the client's side of a connection ------------------------------------------------------------------------------

/// A moment on a clock that runs through suspend, counted from any fixed beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// The moment `pause` later.
    #[must_use]
    pub fn plus(self, pause: Duration) -> Self {
        Self(self.0 + pause)
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Time passed; see [`Link::deadline`].
    Tick,
    /// The application opened a space, whose log ends at `cursor` here.
    SpaceOpened {
        space: SpaceId,
        cursor: Seq,
    },
    SpaceClosed {
        space: SpaceId,
    },
    /// Dial again at once (the user asked, or the network came back).
    Wake,
    /// A session is open and its streams stand.
    Connected,
    /// Dialing failed, or an open connection ended. `jitter` in 0..=255 spreads the next try.
    Disconnected {
        jitter: u8,
    },
    /// Entries `first..=last` of a space arrived.
    EntriesArrived {
        space: SpaceId,
        first: Seq,
        last: Seq,
    },
    /// Everything up to `cursor` is in the local store.
    Applied {
        space: SpaceId,
        cursor: Seq,
    },
    /// The local log was taken back, or is known to be continued again: what is subscribed is not this log any more.
    Rewound {
        space: SpaceId,
        cursor: Seq,
    },
    /// The node answered the subscription: its log continues ours, and frames follow.
    Subscribed {
        space: SpaceId,
    },
    /// The node refused the subscription, or the arrived entries could not be applied.
    SubscriptionFailed {
        space: SpaceId,
    },
    /// What the node refused before it may allow now: subscribe without waiting for the end of the pause.
    AskAgain {
        space: SpaceId,
    },
    /// The node says, after everything that it sent up to there, that its log reaches `seq`.
    NodeReaches {
        space: SpaceId,
        seq: Seq,
    },
    PongArrived {
        number: u64,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Dial,
    /// Close the streams: the other side is silent.
    HangUp,
    Subscribe {
        space: SpaceId,
        cursor: Seq,
    },
    Unsubscribe {
        space: SpaceId,
    },
    /// Push what is pending, run HeadSync, fetch a receipt: the space just came online.
    Online {
        space: SpaceId,
    },
    /// These entries continue the log: apply them.
    Apply {
        space: SpaceId,
        first: Seq,
        last: Seq,
    },
    Ping {
        number: u64,
    },
}

/// How a space stands on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// No subscription, and none wanted before this moment.
    Idle { retry: Moment },
    /// Subscribed; everything up to `expected` arrived. `asked`: when the rest was last asked for again, because entries were
    /// lost on the way. `heard`: when anything was last heard of the subscription, which is its answer first.
    Live { expected: Seq, asked: Option<Moment>, heard: Heard },
}

/// What was heard of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Nothing since it was made, then. What comes may be of one before.
    Nothing(Moment),
    /// It stands; the last frame came then.
    Frames(Moment),
}

impl Heard {
    const fn at(self) -> Moment {
        match self {
            Self::Nothing(at) | Self::Frames(at) => at,
        }
    }

    const fn frame(self, now: Moment) -> Self {
        match self {
            Self::Nothing(_) => self,
            Self::Frames(_) => Self::Frames(now),
        }
    }

    /// When the subscription is made anew if nothing more is heard.
    fn silent(self) -> Moment {
        self.at().plus(limits::TAIL_SILENT_MAX)
    }
}

#[derive(Debug, Clone, Copy)]
struct SpaceLink {
    /// What the local store holds.
    cursor: Seq,
    tail: Tail,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing to do until a space is opened.
    Asleep,
    Waiting {
        until: Moment,
    },
    Dialing,
    Connected,
}

/// The client's side of the connection to one node.
#[derive(Debug)]
pub struct Link {
    phase: Phase,
    failures: u32,
    spaces: BTreeMap<SpaceId, SpaceLink>,
    pings: Pings,
    outputs: VecDeque<Output>,
}

/// Pings under way, and the latest that came back.
#[derive(Debug, Default)]
struct Pings {
    next: u64,
    due: Option<Moment>,
    sent: BTreeMap<u64, Moment>,
    /// When the newest echoed ping was *sent*: whatever the node says is at least as new as that.
    fresh_at: Option<Moment>,
    /// When the node was last heard at all. A node that still sends is alive, although its pong stands behind a backlog.
    heard_at: Moment,
}

/// Missed heartbeats after which a silent link is dead.
const MISSED_MAX: u32 = 2;

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Link {
    /// A link that has nothing to do yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Phase::Asleep,
            failures: 0,
            spaces: BTreeMap::new(),
            pings: Pings::default(),
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do, if any.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Asleep | Phase::Dialing => None,
            Phase::Waiting { until } => Some(until),
            Phase::Connected => {
                let retries = self.spaces.values().map(|s| match s.tail {
                    Tail::Idle { retry } => retry,
                    Tail::Live { heard, .. } => heard.silent(),
                });
                retries.chain(self.pings.due).min()
            }
        }
    }

    /// True while a session is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// When the next dial is due, while waiting for it, and how many failed.
    #[must_use]
    pub const fn waiting(&self) -> Option<(Moment, u32)> {
        match self.phase {
            Phase::Waiting { until } => Some((until, self.failures)),
            Phase::Asleep | Phase::Dialing | Phase::Connected => None,
        }
    }

    /// The moment since which nothing unknown can have happened at the node: when the newest echoed ping was sent. `None`
    /// when two heartbeats were missed or there is no connection.
    #[must_use]
    pub fn fresh_at(&self, now: Moment) -> Option<Moment> {
        let fresh = self.pings.fresh_at.filter(|_| self.phase == Phase::Connected)?;
        (now.0.saturating_sub(fresh.0) <= limits::HEARTBEAT_INTERVAL * MISSED_MAX).then_some(fresh)
    }

    /// Takes one input. Outputs are read with [`Link::poll`].
    pub fn handle(&mut self, input: Input, now: Moment) {
        match input {
            Input::Tick => {}
            Input::SpaceOpened { space, cursor } => {
                let link = SpaceLink { cursor, tail: Tail::Idle { retry: now }, failures: 0 };
                self.spaces.entry(space).or_insert(link);
                if self.phase == Phase::Asleep {
                    self.dial();
                }
            }
            Input::SpaceClosed { space } => {
                if self.spaces.remove(&space).is_some() && self.phase == Phase::Connected {
                    self.outputs.push_back(Output::Unsubscribe { space });
                }
            }
            Input::Wake => {
                if matches!(self.phase, Phase::Waiting { .. } | Phase::Asleep) {
                    self.dial();
                }
            }
            Input::Connected => self.connected(now),
            Input::Disconnected { jitter } => self.disconnected(now, jitter),
            Input::EntriesArrived { space, first, last } => {
                self.pings.heard_at = now;
                self.entries_arrived(space, first, last, now);
            }
            Input::NodeReaches { space, seq } => {
                self.pings.heard_at = now;
                self.node_reaches(space, seq, now);
            }
            Input::Applied { space, cursor } => {
                if let Some(link) = self.spaces.get_mut(&space) {
                    link.cursor = link.cursor.max(cursor);
                    link.failures = 0;
                    if let Tail::Live { expected, asked, heard } = link.tail {
                        // What is stored need not come again, whichever way it came.
                        link.tail = Tail::Live { expected: expected.max(cursor), asked, heard };
                    }
                }
            }
            Input::Rewound { space, cursor } => {
                if let Some(link) = self.spaces.get_mut(&space) {
                    *link = SpaceLink { cursor, tail: Tail::Idle { retry: now }, failures: 0 };
                }
            }
            Input::Subscribed { space } => {
                if let Some(SpaceLink { tail: Tail::Live { heard, .. }, .. }) = self.spaces.get_mut(&space) {
                    *heard = Heard::Frames(now);
                }
            }
            Input::SubscriptionFailed { space } => self.subscription_failed(space, now),
            Input::AskAgain { space } => {
                if let Some(SpaceLink { tail: Tail::Idle { retry }, .. }) = self.spaces.get_mut(&space) {
                    *retry = now;
                }
            }
            Input::PongArrived { number } => {
                self.pings.heard_at = now;
                self.pings.pong(number);
            }
        }
        self.advance(now);
    }

    fn dial(&mut self) {
        self.phase = Phase::Dialing;
        self.outputs.push_back(Output::Dial);
    }

    fn connected(&mut self, now: Moment) {
        self.phase = Phase::Connected;
        self.failures = 0;
        self.pings = Pings { due: Some(now), heard_at: now, ..Pings::default() };
        for link in self.spaces.values_mut() {
            link.tail = Tail::Idle { retry: now };
            link.failures = 0;
        }
    }

    fn disconnected(&mut self, now: Moment, jitter: u8) {
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Waiting { until: now.plus(pause(self.failures, jitter)) };
        self.pings = Pings::default();
        for link in self.spaces.values_mut() {
            link.tail = Tail::Idle { retry: now };
        }
    }

    fn entries_arrived(&mut self, space: SpaceId, first: Seq, last: Seq, now: Moment) {
        let Some(link) = self.spaces.get_mut(&space) else { return };
        // What arrives for an ended subscription is from before its end.
        let Tail::Live { expected, asked, heard } = link.tail else { return };
        let heard = heard.frame(now);
        link.tail = Tail::Live { expected, asked, heard };
        if last <= expected || last < first {
            // A repetition.
        } else if first <= expected.next() {
            // It may begin with entries that are here already: what is asked for again comes from what is stored.
            link.tail = Tail::Live { expected: last, asked: None, heard };
            self.outputs.push_back(Output::Apply { space, first, last });
        } else {
            self.ask_again(space, now);
        }
    }

    fn node_reaches(&mut self, space: SpaceId, seq: Seq, now: Moment) {
        let Some(SpaceLink { tail: Tail::Live { expected, heard, .. }, .. }) = self.spaces.get_mut(&space) else {
            return;
        };
        *heard = heard.frame(now);
        if seq > *expected {
            self.ask_again(space, now);
        }
    }

    /// A gap: something was lost on the way. Never skipped: asked for again from what is stored, once for all that is still
    /// on its way from before.
    fn ask_again(&mut self, space: SpaceId, now: Moment) {
        let Some(link) = self.spaces.get_mut(&space) else { return };
        let Tail::Live { expected, asked, .. } = link.tail else { return };
        if asked.is_some_and(|at| now < at.plus(limits::RETRY_FIRST)) {
            return;
        }
        link.tail = Tail::Live { expected, asked: Some(now), heard: Heard::Nothing(now) };
        self.outputs.push_back(Output::Subscribe { space, cursor: link.cursor });
    }

    fn subscription_failed(&mut self, space: SpaceId, now: Moment) {
        if let Some(link) = self.spaces.get_mut(&space)
            // What fails after the subscription ended failed for the same reason.
            && let Tail::Live { .. } = link.tail
        {
            link.failures = link.failures.saturating_add(1);
            link.tail = Tail::Idle { retry: now.plus(pause(link.failures, 0)) };
        }
    }

    /// What is due now.
    fn advance(&mut self, now: Moment) {
        match self.phase {
            Phase::Asleep | Phase::Dialing => {}
            Phase::Waiting { until } => {
                if until <= now {
                    self.dial();
                }
            }
            Phase::Connected if self.pings.is_dead(now) => self.outputs.push_back(Output::HangUp),
            Phase::Connected => {
                self.subscribe_idle(now);
                self.subscribe_silent(now);
                if let Some(number) = self.pings.send(now) {
                    self.outputs.push_back(Output::Ping { number });
                }
            }
        }
    }

    fn subscribe_idle(&mut self, now: Moment) {
        for (space, link) in &mut self.spaces {
            if matches!(link.tail, Tail::Idle { retry } if retry <= now) {
                link.tail = Tail::Live { expected: link.cursor, asked: None, heard: Heard::Nothing(now) };
                self.outputs.push_back(Output::Subscribe { space: *space, cursor: link.cursor });
                self.outputs.push_back(Output::Online { space: *space });
            }
        }
    }

    /// A subscription lives as long as its heartbeats. What became of one that is silent nobody knows: its beginning, the
    /// answer to it, or the word of its end was lost on the way.
    fn subscribe_silent(&mut self, now: Moment) {
        for (space, link) in &mut self.spaces {
            if let Tail::Live { expected, heard, .. } = link.tail
                && heard.silent() <= now
            {
                link.tail = Tail::Live { expected, asked: Some(now), heard: Heard::Nothing(now) };
                self.outputs.push_back(Output::Subscribe { space: *space, cursor: link.cursor });
            }
        }
    }
}

impl Pings {
    fn send(&mut self, now: Moment) -> Option<u64> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.next += 1;
        self.sent.insert(self.next, now);
        self.due = Some(now.plus(limits::HEARTBEAT_INTERVAL));
        Some(self.next)
    }

    fn pong(&mut self, number: u64) {
        if let Some(sent) = self.sent.remove(&number) {
            self.fresh_at = self.fresh_at.max(Some(sent));
            self.sent.retain(|n, _| *n > number);
        }
    }

    fn is_dead(&self, now: Moment) -> bool {
        // One interval more than "not fresh": a ping that was just sent may still be answered.
        now.0.saturating_sub(self.heard_at.0) > limits::HEARTBEAT_INTERVAL * (MISSED_MAX + 1)
    }
}

/// The pause after `failures` failures in a row: 1 s × 1.5 each time, up to 20 s, spread by up to a quarter.
#[must_use]
pub fn pause(failures: u32, jitter: u8) -> Duration {
    let grown = limits::RETRY_FIRST.as_secs_f64() * 1.5f64.powi(failures.saturating_sub(1).min(32) as i32);
    let base = Duration::from_secs_f64(grown.min(limits::RETRY_MAX.as_secs_f64()));
    base - base / 4 * u32::from(jitter) / 255
}

/// The same, and no less than the peer asked for, up to a minute.
#[must_use]
pub fn pause_asked(failures: u32, jitter: u8, asked: Duration) -> Duration {
    pause(failures, jitter).max(asked).min(limits::RETRY_HINT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: SpaceId = SpaceId::from_hash([1; 32]);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    fn drain(link: &mut Link) -> Vec<Output> {
        std::iter::from_fn(|| link.poll()).collect()
    }

    fn online() -> Link {
        let mut link = Link::new();
        link.handle(Input::SpaceOpened { space: SPACE, cursor: Seq(2) }, at(0));
        assert_eq!(drain(&mut link), [Output::Dial]);
        link.handle(Input::Connected, at(10));
        let expected = [
            Output::Subscribe { space: SPACE, cursor: Seq(2) },
            Output::Online { space: SPACE },
            Output::Ping { number: 1 },
        ];
        assert_eq!(drain(&mut link), expected);
        link
    }

    #[test]
    fn opening_a_space_is_starting_its_sync() {
        online();
    }

    #[test]
    fn a_gap_is_never_skipped() {
        let mut link = online();
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(3), last: Seq(4) }, at(20));
        assert_eq!(drain(&mut link), [Output::Apply { space: SPACE, first: Seq(3), last: Seq(4) }]);
        link.handle(Input::Applied { space: SPACE, cursor: Seq(4) }, at(21));
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(6), last: Seq(6) }, at(22));
        assert_eq!(drain(&mut link), [Output::Subscribe { space: SPACE, cursor: Seq(4) }]);
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(5), last: Seq(6) }, at(23));
        assert_eq!(drain(&mut link), [Output::Apply { space: SPACE, first: Seq(5), last: Seq(6) }]);
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(5), last: Seq(6) }, at(24));
        assert_eq!(drain(&mut link), [], "a repetition changes nothing");
    }

    #[test]
    fn a_gap_with_more_behind_it_is_asked_for_once() {
        let mut link = online();
        for seq in 4..8 {
            link.handle(Input::EntriesArrived { space: SPACE, first: Seq(seq), last: Seq(seq) }, at(20));
        }
        assert_eq!(drain(&mut link), [Output::Subscribe { space: SPACE, cursor: Seq(2) }]);
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(3), last: Seq(7) }, at(30));
        assert_eq!(drain(&mut link), [Output::Apply { space: SPACE, first: Seq(3), last: Seq(7) }]);
        link.handle(Input::EntriesArrived { space: SPACE, first: Seq(6), last: Seq(9) }, at(31));
        let overlapping = Output::Apply { space: SPACE, first: Seq(6), last: Seq(9) };
        assert_eq!(drain(&mut link), [overlapping], "a new entry counts, whatever comes with it");
    }

    #[test]
    fn a_lost_end_is_noticed() {
        let mut link = online();
        let reaches = Input::NodeReaches { space: SPACE, seq: Seq(3) };
        let again = [Output::Subscribe { space: SPACE, cursor: Seq(2) }];
        link.handle(Input::NodeReaches { space: SPACE, seq: Seq(2) }, at(20));
        assert_eq!(drain(&mut link), [], "nothing is missing");
        link.handle(reaches, at(21));
        assert_eq!(drain(&mut link), again);
        link.handle(reaches, at(22));
        assert_eq!(drain(&mut link), [], "it was just asked for");
        link.handle(reaches, at(2000));
        assert_eq!(drain(&mut link), again, "the answer was lost, too");
    }

    #[test]
    fn a_silent_subscription_is_made_anew() {
        let mut link = online();
        let silent = u64::try_from(limits::TAIL_SILENT_MAX.as_millis()).expect("seconds");
        let pong = |link: &mut Link, ms| {
            // The link itself is alive.
            let number = link.pings.next;
            link.handle(Input::PongArrived { number }, at(ms));
            drain(link).into_iter().filter(|o| !matches!(o, Output::Ping { .. })).collect::<Vec<_>>()
        };
        let anew = [Output::Subscribe { space: SPACE, cursor: Seq(2) }];
        let mut now = 10;
        let mut wait = |link: &mut Link, ms: u64| {
            let until = now + ms;
            let mut seen = Vec::new();
            while now < until {
                now = (now + 2500).min(until);
                seen.extend(pong(link, now));
            }
            (seen, now)
        };
        // Frames are of a subscription before this one until it is answered.
        link.handle(Input::NodeReaches { space: SPACE, seq: Seq(2) }, at(10));
        assert_eq!(wait(&mut link, silent - 1).0, []);
        assert_eq!(wait(&mut link, 1).0, anew, "the question or its answer was lost");
        let (seen, now) = wait(&mut link, silent - 1);
        assert_eq!(seen, []);
        link.handle(Input::Subscribed { space: SPACE }, at(now));
        let (seen, now) = wait(&mut link, silent - 1);
        assert_eq!(seen, []);
        link.handle(Input::NodeReaches { space: SPACE, seq: Seq(2) }, at(now));
        assert_eq!(wait(&mut link, silent - 1).0, [], "a heartbeat came");
        let (seen, now) = wait(&mut link, 1);
        assert_eq!(seen, anew, "none came");
        link.handle(Input::SubscriptionFailed { space: SPACE }, at(now));
        assert_eq!(drain(&mut link), [], "what is known to have ended is asked for after its pause");
    }

    #[test]
    fn a_refused_subscription_is_asked_again_when_it_may_be_allowed() {
        let mut link = online();
        link.handle(Input::AskAgain { space: SPACE }, at(20));
        assert_eq!(drain(&mut link), [], "it stands already");
        link.handle(Input::SubscriptionFailed { space: SPACE }, at(20));
        assert_eq!(drain(&mut link), [], "a pause first");
        link.handle(Input::AskAgain { space: SPACE }, at(21));
        let again = [Output::Subscribe { space: SPACE, cursor: Seq(2) }, Output::Online { space: SPACE }];
        assert_eq!(drain(&mut link), again);
    }

    #[test]
    fn a_silent_link_is_not_fresh_and_is_hung_up() {
        let mut link = online();
        link.handle(Input::PongArrived { number: 1 }, at(30));
        assert_eq!(link.fresh_at(at(31)), Some(at(10)), "fresh since the ping was sent, not since it came back");
        link.handle(Input::Tick, at(60_000));
        assert_eq!(link.fresh_at(at(60_000)), None, "a process that was stopped for a minute is not fresh");
        assert_eq!(drain(&mut link), [Output::HangUp]);
    }

    #[test]
    fn dialing_backs_off_and_resubscribes_everything() {
        let mut link = online();
        link.handle(Input::Disconnected { jitter: 0 }, at(1000));
        assert_eq!(link.deadline(), Some(at(2000)));
        link.handle(Input::Tick, at(2000));
        assert_eq!(drain(&mut link), [Output::Dial]);
        link.handle(Input::Disconnected { jitter: 0 }, at(2000));
        assert_eq!(link.deadline(), Some(at(3500)));
        link.handle(Input::Wake, at(2100));
        assert_eq!(drain(&mut link), [Output::Dial]);
        link.handle(Input::Connected, at(2200));
        assert!(drain(&mut link).contains(&Output::Subscribe { space: SPACE, cursor: Seq(2) }));
        assert_eq!(pause(100, 0), Duration::from_secs(20));
        let asked = |seconds| pause_asked(1, 0, Duration::from_secs(seconds)).as_secs();
        assert_eq!([asked(0), asked(7), asked(3600)], [1, 7, 60], "what is asked for counts, within reason");
    }
}
