//! Who is calling: handshakes that wait for their proof, and the sessions that came of them.
//!
//! Both live in memory only: a restarted node knows no session, and clients open new ones by themselves. A token is 32 random
//! bytes; the table holds its hash, so finding it takes no time that depends on it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use sync_core::code::Code;
use sync_core::ids::{AccountId, DeviceId, EntryId};
use sync_core::limits;
use sync_core::record::{DeviceList, Verified};
use sync_core::session::{Moment, Nonces};
use sync_proto::TOKEN_KEY;
use sync_proto::status::Failure;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use crate::incoming::{Binding, Link, LinkWatch};

/// Handshakes that wait for their proof, on all connections.
const HANDSHAKES_MAX: usize = 4096;
/// Handshakes that wait for their proof, on one connection.
const HANDSHAKES_PER_CONNECTION_MAX: usize = 16;
/// Between two searches of a full table for sessions that are over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Ids of pushed records that a session remembers, to send them back as ids.
const PUSHED_IDS_MAX: usize = 8192;

/// The proof that a caller holds the key of a device of an account. Only [`Sessions`] makes one. Cheap to clone; while a clone
/// lives, the session is in use.
#[derive(Debug, Clone)]
pub(crate) struct Session(Arc<SessionInner>);

#[derive(Debug)]
struct SessionInner {
    account: AccountId,
    device: DeviceId,
    nonces: Nonces,
    pushed: Mutex<RecentIds>,
    /// The version of the newest device list that is known to name this device. An older list ends no session.
    listed_in: AtomicU64,
    revoked: CancellationToken,
    /// Room for subscriptions.
    subscriptions: Arc<Semaphore>,
    /// Room for pages that are being sent.
    pages: Arc<Semaphore>,
}

impl Session {
    pub(crate) fn account(&self) -> AccountId {
        self.0.account
    }

    pub(crate) fn device(&self) -> DeviceId {
        self.0.device
    }

    /// Both nonces of the handshake: what invite proofs of this session are bound to.
    pub(crate) fn nonces(&self) -> &Nonces {
        &self.0.nonces
    }

    /// Notes records that this session pushed: their bodies need not travel back.
    pub(crate) fn note_pushed(&self, ids: impl IntoIterator<Item = EntryId>) {
        let mut pushed = lock(&self.0.pushed);
        for id in ids {
            pushed.insert(id);
        }
    }

    pub(crate) fn has_pushed(&self, id: &EntryId) -> bool {
        lock(&self.0.pushed).known.contains(id)
    }

    /// Room for one more subscription, if there is any: see [`Link::subscriptions`].
    pub(crate) fn subscription_room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.subscriptions).try_acquire_owned().ok()
    }

    /// Room for the pages that this session is being sent: see [`Link::pages`].
    pub(crate) fn pages(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.pages)
    }

    /// Notes that a list which counts names this device.
    fn note_listed(&self, list: &DeviceList) {
        self.0.listed_in.fetch_max(list.version, Ordering::SeqCst);
    }

    /// True if `list` is the account's, newer than every list that is known to name the device, and does not name it.
    fn is_left_out(&self, list: &DeviceList) -> bool {
        self.account() == list.account
            && !list.names(&self.device())
            && list.version > self.0.listed_in.load(Ordering::SeqCst)
    }

    /// Resolves when the device lost its place on the account's device list.
    pub(crate) async fn revoked(&self) {
        self.0.revoked.cancelled().await;
    }
}

/// The last [`PUSHED_IDS_MAX`] ids.
#[derive(Debug, Default)]
struct RecentIds {
    known: HashSet<EntryId>,
    order: VecDeque<EntryId>,
}

impl RecentIds {
    fn insert(&mut self, id: EntryId) {
        if !self.known.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > PUSHED_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// A caller that said who it is, with papers in order, and has not proved it yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) account: AccountId,
    pub(crate) device: DeviceId,
    pub(crate) device_list: Verified<DeviceList>,
    pub(crate) nonces: Nonces,
}

/// Names a handshake.
pub(crate) type HandshakeId = [u8; 32];

/// What a client sends with every call. Secret: not shown.
pub(crate) struct Token([u8; 32]);

impl Token {
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

struct Handshake {
    candidate: Candidate,
    link: u64,
    link_watch: LinkWatch,
    since: Moment,
}

struct Entry {
    session: Session,
    /// Absent where a session may be used on any connection.
    bound_to: Option<(u64, LinkWatch)>,
    used: Moment,
    /// Its connection's room for one session.
    _room: Option<OwnedSemaphorePermit>,
}

impl Entry {
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.session.0) > 1
    }

    /// It opens nothing any more.
    fn is_over(&self, now: Moment) -> bool {
        let idle = !self.is_in_use() && elapsed(self.used, now) > limits::SESSION_IDLE_MAX;
        idle || self.session.0.revoked.is_cancelled() || self.bound_to.as_ref().is_some_and(|(_, link)| link.is_gone())
    }

    /// What is in use stays, whatever else: revocation must find it here.
    fn may_go(&self, now: Moment) -> bool {
        self.is_over(now) && !self.is_in_use()
    }
}

/// Every handshake and session of this process.
#[derive(Default)]
pub(crate) struct Sessions {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    handshakes: BTreeMap<HandshakeId, Handshake>,
    sessions: BTreeMap<[u8; 32], Entry>,
    /// When the sessions were last searched for those that are over.
    swept: Option<Moment>,
}

impl Sessions {
    /// Keeps a candidate until it proves itself, [`limits::HANDSHAKE_TIMEOUT`] has passed, or its connection is gone. In a full
    /// table the oldest one goes: who means it proves itself at once, so a flood keeps nobody out.
    pub(crate) fn begin(&self, now: Moment, id: HandshakeId, candidate: Candidate, link: &Link) -> Result<(), Failure> {
        let mut tables = lock(&self.tables);
        tables.handshakes.retain(|_, h| elapsed(h.since, now) <= limits::HANDSHAKE_TIMEOUT && !h.link_watch.is_gone());
        if tables.has_many_of(link) {
            return Err(Failure::new(Code::Overloaded, "too many handshakes are waiting for their proof")
                .retry_after(millis(limits::RETRY_FIRST)));
        }
        if tables.handshakes.len() >= HANDSHAKES_MAX {
            tables.drop_oldest_handshake();
        }
        let (link, link_watch) = (link.number(), link.watch());
        tables.handshakes.insert(id, Handshake { candidate, link, link_watch, since: now });
        Ok(())
    }

    /// Gives a candidate back, once, on the connection that it came on.
    pub(crate) fn take(&self, now: Moment, id: &HandshakeId, link: &Link) -> Result<Candidate, Failure> {
        let refused = || Failure::new(Code::SessionRefused, "the handshake is unknown or too old: open a new session");
        let handshake = lock(&self.tables).handshakes.remove(id).ok_or_else(refused)?;
        let on_its_link = match link.binding() {
            Binding::ThisConnection => handshake.link == link.number(),
            Binding::AnyConnection => true,
        };
        if !on_its_link || elapsed(handshake.since, now) > limits::HANDSHAKE_TIMEOUT {
            return Err(refused());
        }
        Ok(handshake.candidate)
    }

    /// Makes a candidate that proved itself a session. The caller has checked the proof.
    ///
    /// # Errors
    /// `OVERLOADED` if the connection, or the node, has as many sessions as it may have.
    pub(crate) fn admit(&self, now: Moment, token: [u8; 32], proven: Candidate, link: &Link) -> Result<Token, Failure> {
        let room = link.session_room().ok_or_else(|| full("this connection has as many sessions as it may have"))?;
        let Candidate { account, device, nonces, device_list } = proven;
        let offered = device_list.body();
        let listed_in = AtomicU64::new(if offered.names(&device) { offered.version } else { 0 });
        let session = Session(Arc::new(SessionInner {
            account,
            device,
            nonces,
            pushed: Mutex::default(),
            listed_in,
            revoked: CancellationToken::new(),
            subscriptions: link.subscriptions(),
            pages: link.pages(),
        }));
        let bound_to = match link.binding() {
            Binding::ThisConnection => Some((link.number(), link.watch())),
            Binding::AnyConnection => None,
        };
        let mut tables = lock(&self.tables);
        tables.make_room(now)?;
        let entry = Entry { session, bound_to, used: now, _room: room.into_permit() };
        tables.sessions.insert(hashed(&token), entry);
        Ok(Token(token))
    }

    /// Takes a session back whose token nobody was given.
    pub(crate) fn discard(&self, token: &Token) {
        lock(&self.tables).sessions.remove(&hashed(&token.0));
    }

    /// The session of a call, by the token in its metadata.
    pub(crate) fn authenticate(&self, now: Moment, metadata: &MetadataMap, link: &Link) -> Result<Session, Failure> {
        let token = metadata.get(TOKEN_KEY).and_then(|value| read_token(value.as_bytes())).ok_or_else(expired)?;
        let key = hashed(&token);
        let mut tables = lock(&self.tables);
        let entry = tables.sessions.get_mut(&key).ok_or_else(expired)?;
        if entry.session.0.revoked.is_cancelled() {
            return Err(revoked());
        }
        if entry.may_go(now) {
            tables.sessions.remove(&key);
            return Err(expired());
        }
        if entry.is_over(now) {
            return Err(expired());
        }
        if entry.bound_to.as_ref().is_some_and(|(number, _)| *number != link.number()) {
            return Err(expired());
        }
        entry.used = now;
        // Behind a proxy, the session may have begun on another connection.
        link.note_proven();
        Ok(entry.session.clone())
    }

    /// A device list counts: notes whom it names, and ends the sessions of the account's other devices. How many it ended.
    /// Handshakes run beside each other, so an older list may come here after a newer one: it ends nothing that the newer
    /// one names.
    pub(crate) fn apply_device_list(&self, list: &DeviceList) -> u64 {
        let mut ended = 0;
        for entry in lock(&self.tables).sessions.values() {
            let session = &entry.session;
            if session.account() == list.account && list.names(&session.device()) {
                session.note_listed(list);
            } else if session.is_left_out(list) && !session.0.revoked.is_cancelled() {
                session.0.revoked.cancel();
                ended += 1;
            }
        }
        ended
    }
}

impl Tables {
    /// Where a connection is one client's, it gets its share and no more.
    fn has_many_of(&self, link: &Link) -> bool {
        let is_its = |h: &&Handshake| h.link == link.number();
        match link.binding() {
            Binding::ThisConnection => self.handshakes.values().filter(is_its).count() >= HANDSHAKES_PER_CONNECTION_MAX,
            Binding::AnyConnection => false,
        }
    }

    fn drop_oldest_handshake(&mut self) {
        let oldest = self.handshakes.iter().min_by_key(|(_, h)| h.since).map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            self.handshakes.remove(&oldest);
        }
    }

    /// Drops what is over. A session that is not over makes room for nobody.
    fn make_room(&mut self, now: Moment) -> Result<(), Failure> {
        if self.swept.is_none_or(|swept| elapsed(swept, now) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.sessions.retain(|_, entry| !entry.may_go(now));
        }
        if self.sessions.len() < limits::SESSIONS_MAX {
            Ok(())
        } else {
            Err(full("the node has all the sessions it can"))
        }
    }
}

/// What a client is told that proved itself and finds no room.
fn full(why: &str) -> Failure {
    Failure::new(Code::Overloaded, why).retry_after(millis(limits::RETRY_MAX))
}

/// What a call with a token that opens nothing is told.
fn expired() -> Failure {
    Failure::new(Code::SessionExpired, "there is no such session: open a new one")
}

/// What a device is told that is not on its account's list (any more).
pub(crate) fn revoked() -> Failure {
    Failure::new(Code::DeviceRevoked, "this device is not on the account's device list")
}

fn read_token(text: &[u8]) -> Option<[u8; 32]> {
    if text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    BASE32_NOPAD.decode(&text.to_ascii_uppercase()).ok()?.as_slice().try_into().ok()
}

fn hashed(token: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("headwater/node/session-token/v1", token)
}

fn elapsed(since: Moment, now: Moment) -> Duration {
    now.0.saturating_sub(since.0)
}

pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A panic while one of these short sections runs leaves nothing half done in them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn device(n: u8) -> DeviceId {
        DeviceId::from(&key(n).verifying_key())
    }

    fn list(version: u64, devices: &[u8]) -> Verified<DeviceList> {
        let mut devices: Vec<_> = devices.iter().map(|n| device(*n)).collect();
        devices.sort_unstable();
        let account = AccountId::from(&key(1).verifying_key());
        Verified::sign(&DeviceList { account, version, devices }, &key(1), None).unwrap()
    }

    fn admit(sessions: &Sessions, n: u8, offered: &Verified<DeviceList>) -> Session {
        let link = Link::new(1, Binding::AnyConnection);
        let nonces = Nonces { client: [0; 32], server: [0; 32] };
        let (account, device_list) = (offered.body().account, offered.clone());
        let token = sessions.admit(
            Moment(Duration::ZERO),
            [n; 32],
            Candidate { account, device: device(n), device_list, nonces },
            &link,
        );
        lock(&sessions.tables).sessions[&hashed(token.unwrap().as_bytes())].session.clone()
    }

    fn is_revoked(session: &Session) -> bool {
        session.0.revoked.is_cancelled()
    }

    #[test]
    fn an_older_list_that_comes_late_ends_nothing_that_a_newer_one_names() {
        let sessions = Sessions::default();
        let nothing = list(0, &[]);
        let (phone, laptop, tablet) =
            (admit(&sessions, 2, &nothing), admit(&sessions, 3, &list(6, &[2, 3])), admit(&sessions, 4, &nothing));
        let newer = list(6, &[2, 3]);
        assert_eq!(sessions.apply_device_list(newer.body()), 1);
        assert!(!is_revoked(&phone) && !is_revoked(&laptop) && is_revoked(&tablet));
        // It was decided before the newer one, and gets here after it.
        assert_eq!(sessions.apply_device_list(list(5, &[4]).body()), 0);
        assert!(!is_revoked(&phone) && !is_revoked(&laptop));
        assert_eq!(sessions.apply_device_list(newer.body()), 0, "nobody is ended twice");
        assert_eq!(sessions.apply_device_list(list(7, &[3]).body()), 1);
        assert!(is_revoked(&phone) && !is_revoked(&laptop));
    }
}
