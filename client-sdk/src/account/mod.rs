//! What the devices of one account know together: the account's own space, which every device derives for itself, and in it
//! the spaces, the devices and the unfinished joins of the account.
//!
//! Nothing that a person does waits for any of this. One task compares what is here with what the account's space says, and
//! writes or fetches what differs; it runs again whenever either of them moved. So it may be ended anywhere, and two devices
//! that do it at once come to the same.

mod devices;
mod events;
pub(crate) mod joins;
mod recovery;
mod spaces;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sync_core::ids::{AclId, AuthorityId, HistoryId, SpaceId};
use sync_core::limits;
use sync_core::log::{Genesis, genesis, space_id};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, RawRecord, Salt, SpaceHeader, SpaceOptions, Verified, verify_as,
};
use sync_e2ee::{AccountKeys, KeyRing, SpaceKeys};
use sync_host::Host;
use sync_store::{Store, WriteTx};
use tokio::sync::{Notify, broadcast, watch};

use crate::client::{Client, Shared, open_from_store_write};
use crate::error::{NotSynced, OpenError, ReadError, WriteError};
use crate::events::Event;
use crate::space::Space;
use crate::synced::Synced;

pub(crate) use devices::Devices;
pub use devices::{DeviceError, DeviceInfo};
pub use events::{ClientEvent, ClientEvents};
pub use recovery::{MissingSpace, MissingWhy, RecoverError, Recovered};

/// The label that the account's own space is derived with.
const LABEL: &[u8] = b"account";
/// One object for every space that the account is a member of; its id is the space's.
pub(crate) const SPACE: &str = "headwater.account.space";
/// One object for every device; its id is the device's.
pub(crate) const DEVICE: &str = "headwater.account.device";
/// One object for every join that is not over; its id is the space's.
pub(crate) const JOIN: &str = "headwater.account.join";
/// The account's device list, as it counts at the node; its only id is `self`.
pub(crate) const LIST: &str = "headwater.account.devices";
const EVENTS_KEPT: usize = 1024;

/// What a client keeps in memory about its account's space.
pub(crate) struct Own {
    /// The account's space.
    pub(crate) id: SpaceId,
    device_name: String,
    wake: Notify,
    todo: Mutex<Todo>,
    /// True while nothing is left to compare.
    settled: watch::Sender<bool>,
    events: broadcast::Sender<ClientEvent>,
    /// Spaces that the node is being asked about, and what the last attempt met.
    asking: Mutex<BTreeMap<SpaceId, String>>,
    /// Spaces that this account was a member of when this process last looked.
    member_of: Mutex<BTreeSet<SpaceId>>,
}

/// What has to be compared.
#[derive(Default)]
struct Todo {
    /// As after opening: nothing was heard of what moved before.
    everything: bool,
    devices: bool,
    spaces: BTreeSet<SpaceId>,
}

impl Own {
    pub(crate) fn new(id: SpaceId, device_name: String) -> Self {
        Self {
            id,
            device_name,
            wake: Notify::new(),
            todo: Mutex::new(Todo { everything: true, ..Todo::default() }),
            settled: watch::channel(false).0,
            events: broadcast::channel(EVENTS_KEPT).0,
            asking: Mutex::default(),
            member_of: Mutex::default(),
        }
    }

    /// Something moved about a space or the join of it, here or in the account's space.
    pub(crate) fn moved(&self, space: SpaceId) {
        self.left_to_do(|todo| _ = todo.spaces.insert(space));
    }

    /// The device list moved, here or in the account's space.
    fn devices_moved(&self) {
        self.left_to_do(|todo| todo.devices = true);
    }

    fn left_to_do(&self, note: impl FnOnce(&mut Todo)) {
        let mut todo = self.todo();
        note(&mut todo);
        self.settled.send_replace(false);
        drop(todo);
        self.wake.notify_one();
    }

    fn todo(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to what spaces say has happened in them.
    pub(crate) fn heard(&self, space: SpaceId, event: &Event) {
        match event {
            Event::Acl { .. } if space != self.id => self.moved(space),
            Event::Object { object_type, id, .. } if space == self.id => self.heard_own(object_type, id),
            Event::Acl { .. }
            | Event::Object { .. }
            | Event::Tree { .. }
            | Event::JoinRequested { .. }
            | Event::RequestDecided { .. }
            | Event::MemberJoined { .. }
            | Event::MemberGone { .. }
            | Event::RoleChanged { .. }
            | Event::KeysRotated { .. }
            | Event::SpaceDeleted { .. }
            | Event::WriteRefused { .. }
            | Event::NodeAccused { .. }
            | Event::LogRewound { .. }
            | Event::LostByNode { .. }
            | Event::Revealed { .. }
            | Event::ListAgain { .. }
            | Event::Lagged { .. } => {}
        }
    }

    fn heard_own(&self, object_type: &str, id: &str) {
        match (object_type, id.parse()) {
            (SPACE, Ok(space)) => self.moved(space),
            (JOIN, Ok(space)) => {
                self.tell(ClientEvent::JoinsChanged);
                self.moved(space);
            }
            (DEVICE, _) => self.tell(ClientEvent::DevicesChanged),
            (LIST, _) => self.devices_moved(),
            _ => {}
        }
    }

    pub(crate) fn tell(&self, event: ClientEvent) {
        // Nobody listening is fine: the feed is a hint over durable rows.
        let _ = self.events.send(event);
    }
}

/// The beginning of the account's own space: the same bytes on every device that uses this authority.
fn derived(account: &AccountKeys, home: AuthorityId) -> Genesis {
    const OWN: &str = "records made here have the form that is checked here";
    let keys = SpaceKeys::derived(account, LABEL);
    let root = AclRoot {
        owner: account.id(),
        options: SpaceOptions::default(),
        key_id: keys.key_id(),
        history_id: keys.history_id().expect("derived keys have a history key"),
        profile_key: keys.profile_public(),
        seals: Vec::new(),
    };
    let root = Verified::sign(&root, account.signing_key(), None).expect(OWN);
    let header = SpaceHeader {
        owner: account.id(),
        created_ms: 0,
        salt: Salt::Derivation(Bytes::from_static(LABEL)),
        acl_root: AclId::from(root.id()),
    };
    let header = Verified::unsigned(&header).expect(OWN);
    let set_home = AclRecord {
        space: space_id(&header),
        prev: AclId::from(root.id()),
        index: 1,
        author: account.id(),
        at_ms: 0,
        seen: None,
        contents: vec![AclContent::SetHome { authority: home }],
    };
    let set_home = Verified::sign(&set_home, account.signing_key(), None).expect(OWN);
    genesis(header, &root, &set_home).expect(OWN)
}

/// Makes the account's own space in a store that does not have it, and says which it is.
pub(crate) async fn found(
    host: &Host,
    store: &Store,
    account: &AccountKeys,
    home: AuthorityId,
) -> Result<SpaceId, OpenError> {
    let genesis = derived(account, home);
    let id = genesis.space();
    if store.read(|tx| tx.space(id))?.is_some() {
        return Ok(id);
    }
    let history = HistoryId(host.random());
    let job = move |tx: &mut WriteTx<'_>| -> Result<(), sync_store::StoreError> {
        tx.create_space(&genesis, history)?;
        Ok(())
    };
    store.write(job).await.map_err(|error| open_from_store_write("the account's space", error))?;
    Ok(id)
}

/// The label of our own derived space, from its header.
pub(crate) fn label_of(header: RawRecord) -> Option<Bytes> {
    match verify_as::<SpaceHeader>(header).ok()?.body().salt.clone() {
        Salt::Derivation(label) => Some(label),
        Salt::Nonce(_) => None,
    }
}

/// Takes the keys of a derived space: its root seals them to nobody.
pub(crate) fn absorb_derived(ring: &mut KeyRing, root: RawRecord, label: &[u8]) -> Result<(), String> {
    let root = verify_as::<AclRoot>(root).map_err(|e| e.to_string())?;
    ring.absorb_derived_root(root.body(), label).map_err(|e| e.to_string())
}

/// Compares whenever something moved, until the client closes.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let again = match shared.compare_account().await {
            Ok(()) => None,
            Err(WriteError::Closed) => return,
            Err(error) => {
                tracing::warn!(error = %error, "the account's space could not be compared with what is here");
                Some(limits::RETRY_FIRST)
            }
        };
        tokio::select! {
            biased;
            () = shared.cancel.cancelled() => return,
            () = shared.own.wake.notified() => {}
            () = pause(again) => {}
        }
    }
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

impl Client {
    /// The account's own space, which every device of the account derives for itself: its spaces, devices and unfinished
    /// joins are objects in it. It is in no listing. What it holds is written by the SDK alone.
    ///
    /// ```no_run
    /// # fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("{:?}", client.account_space()?.status()?.state);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn account_space(&self) -> Result<Space, ReadError> {
        self.shared.account_space()
    }

    /// Waits until the account's space says all that this device has to say, and is synced: another device finds every space
    /// and every unfinished join of this one from then on.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.create_space("Shopping").await?;
    /// client.account_synced(std::time::Duration::from_secs(30)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NotSynced`] with everything that is missing, after `timeout`.
    pub async fn account_synced(&self, timeout: Duration) -> Result<Synced, NotSynced> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut settled = self.shared.own.settled.subscribe();
        // Whatever keeps it from settling keeps it from being synced, and is named by that.
        let _ = tokio::time::timeout_at(deadline, settled.wait_for(|settled| *settled)).await;
        let space = self.account_space().map_err(|error| crate::synced::store_failed(&error))?;
        space.await_synced_within(deadline.saturating_duration_since(tokio::time::Instant::now())).await
    }
}

impl Shared {
    pub(crate) fn account_space(self: &Arc<Self>) -> Result<Space, ReadError> {
        self.open_space(self.own.id)
    }

    /// Writes what the account's space does not say yet, and fetches what it says and is not here.
    async fn compare_account(self: &Arc<Self>) -> Result<(), WriteError> {
        if self.devices.is_revoked() {
            // What it would write reaches nobody, and what it has stays as it is.
            return Ok(());
        }
        let mut todo = std::mem::take(&mut *self.own.todo());
        let compared = self.compare(&mut todo).await;
        if compared.is_err() {
            // Whatever is left is looked at again; what was done already changes nothing.
            let mut left = self.own.todo();
            left.everything |= todo.everything;
            left.devices |= todo.devices;
            left.spaces.append(&mut todo.spaces);
        } else {
            let left = self.own.todo();
            self.own.settled.send_replace(!left.everything && !left.devices && left.spaces.is_empty());
        }
        compared
    }

    async fn compare(self: &Arc<Self>, todo: &mut Todo) -> Result<(), WriteError> {
        if todo.everything {
            todo.spaces.append(&mut self.known_spaces()?);
            todo.spaces.extend(self.known_joins()?);
        }
        // Whatever keeps the rest of this from being done keeps no join.
        for space in &todo.spaces {
            self.go_on_with_join(*space)?;
        }
        if todo.everything {
            self.name_device().await?;
            (todo.everything, todo.devices) = (false, true);
        }
        if todo.devices {
            self.compare_devices().await?;
            todo.devices = false;
        }
        while let Some(space) = todo.spaces.first().copied() {
            self.compare_space(space).await?;
            self.compare_join(space).await?;
            todo.spaces.remove(&space);
        }
        Ok(())
    }

    /// What this device is called, for the others.
    async fn name_device(self: &Arc<Self>) -> Result<(), WriteError> {
        let objects = self.account_space()?.objects();
        let id = self.identity.device().to_string();
        match objects.get(DEVICE, &id)? {
            Some(device) if device.fields.get("name") == Some(&json!(self.own.device_name)) => Ok(()),
            Some(_) => objects.put(DEVICE, &id, json!({ "name": self.own.device_name })).await.map(|_| ()),
            None => {
                let device = json!({ "name": self.own.device_name, "added_ms": self.host.wall_ms() });
                objects.put(DEVICE, &id, device).await.map(|_| ())
            }
        }
    }
}

/// An object that is gone already needs no end.
fn end<T>(deleted: Result<T, WriteError>) -> Result<(), WriteError> {
    match deleted {
        Ok(_) | Err(WriteError::NoSuchObject { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use sync_core::ids::Epoch;
    use sync_e2ee::Mnemonic;

    use super::*;

    #[test]
    fn every_device_derives_the_same_space() {
        let words = Mnemonic::generate(&mut rand::rng());
        let home = AuthorityId::from(&AccountKeys::from_mnemonic(&words).signing_key().verifying_key());
        let make = || derived(&AccountKeys::from_mnemonic(&words), home);
        let (one, other) = (make(), make());
        assert_eq!(one.header().raw(), other.header().raw());
        let records = |g: &Genesis| g.entries().iter().map(|e| e.record.clone()).collect::<Vec<_>>();
        assert_eq!(records(&one), records(&other));
        let mut ring = KeyRing::new(AccountKeys::from_mnemonic(&words));
        let label = label_of(one.header().raw().clone()).expect("derived");
        absorb_derived(&mut ring, one.entries()[0].record.clone(), &label).expect("our own keys");
        assert!(ring.holds(Epoch(0)));
    }
}
