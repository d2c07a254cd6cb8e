//! Which devices the account has: a list that the account signs and the node keeps, the highest version of it.
//!
//! A device keeps the newest list that counted at the node. What it offers in the handshake follows from that:
//!
//! | what is known | what is offered |
//! |---|---|
//! | no list | version 1 with this device alone |
//! | a list with this device | that list |
//! | a list without it, and it never stood on one | the next version, with this device added: it holds the account's words |
//! | a list without it, and it stood on one before | version 0, which declares nothing: this device is revoked |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::ids::DeviceId;
use sync_core::limits;
use sync_core::pb::SignedRecord;
use sync_core::record::{DeviceList, RawRecord, Verified, verify_as};
use sync_core::session::Input;
use sync_e2ee::{AccountKeys, LocalKey};
use sync_store::{Store, StoreError, WriteTx};

use super::{ClientEvent, DEVICE, LIST, end};
use crate::client::{Client, Shared};
use crate::error::{CallError, OpenError, ReadError, WriteError};

const KEPT: &str = "device-list";
const WAS_LISTED: u8 = 1;
const NEVER_LISTED: u8 = 0;

/// A device of the account, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub id: DeviceId,
    /// `None` while what the device says of itself is not here.
    pub name: Option<String>,
    /// Milliseconds since 1970, by the device's own clock.
    pub added_ms: Option<u64>,
    /// True for the device that asks.
    pub is_this: bool,
}

/// Why a device was not revoked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this is the device itself: revoke it from another one")]
    ThisDevice,
    #[error("{device} is not on the account's list")]
    NotListed { device: DeviceId },
    #[error("this device was revoked itself")]
    Revoked,
    #[error(transparent)]
    Call(#[from] CallError),
}

impl DeviceError {
    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ThisDevice => "THIS_DEVICE",
            Self::NotListed { .. } => "DEVICE_NOT_LISTED",
            Self::Revoked => "DEVICE_REVOKED",
            Self::Call(error) => error.code(),
        }
    }
}

/// What this installation knows of the account's devices.
pub(crate) struct Devices {
    device: DeviceId,
    known: Mutex<Known>,
    /// One change of the list at a time.
    changing: tokio::sync::Mutex<()>,
    /// One list is learned at a time.
    learning: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// The newest list that counted at the node.
    counted: Option<Verified<DeviceList>>,
    /// Whether this device ever stood on one.
    was_listed: bool,
    /// What a call wants the list to be, while it lasts.
    proposal: Option<Verified<DeviceList>>,
    /// Whether this process said that the device is revoked.
    told: bool,
}

impl Known {
    fn is_revoked(&self, device: DeviceId) -> bool {
        self.was_listed && self.counted.as_ref().is_some_and(|list| !has(list, device))
    }
}

fn has(list: &Verified<DeviceList>, device: DeviceId) -> bool {
    list.body().devices.binary_search(&device).is_ok()
}

impl Devices {
    /// What was kept by an earlier process.
    pub(crate) fn load(store: &Store, local: &LocalKey, device: DeviceId) -> Result<Self, OpenError> {
        let sealed = store.read(|tx| tx.kv(KEPT))?;
        let read = |row: Vec<u8>| {
            let bytes = local.open_row(KEPT.as_bytes(), &row).ok()?;
            let (listed, list) = bytes.split_first()?;
            Some((*listed == WAS_LISTED, RawRecord::from_slice(list).and_then(verify_as).ok()?))
        };
        // A row that does not open must not pass for a device that was on no list yet: it would put itself on the next one.
        let damaged = || OpenError::Damaged { what: "the row with the account's device list" };
        let known = match sealed {
            Some(row) => {
                let (was_listed, list) = read(row).ok_or_else(damaged)?;
                Known { counted: Some(list), was_listed, ..Known::default() }
            }
            None => Known::default(),
        };
        let (changing, learning) = Default::default();
        Ok(Self { device, known: Mutex::new(known), changing, learning })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when this device stood on a list that counted, and does not stand on the newest.
    pub(crate) fn is_revoked(&self) -> bool {
        self.known().is_revoked(self.device)
    }

    pub(crate) fn counted(&self) -> Option<Verified<DeviceList>> {
        self.known().counted.clone()
    }

    /// What the next handshake presents.
    pub(crate) fn offer(&self, account: &AccountKeys) -> Verified<DeviceList> {
        let known = self.known();
        let Some(counted) = &known.counted else { return account.device_list(1, vec![self.device]) };
        let newer = |list: &&Verified<DeviceList>| list.body().version > counted.body().version;
        if let Some(proposal) = known.proposal.as_ref().filter(newer) {
            return proposal.clone();
        }
        let DeviceList { version, devices, .. } = counted.body();
        if has(counted, self.device) {
            counted.clone()
        } else if known.was_listed || devices.len() >= limits::DEVICES_MAX {
            account.device_list(0, vec![self.device])
        } else {
            account.device_list(version.saturating_add(1), devices.iter().copied().chain([self.device]).collect())
        }
    }

    fn propose(&self, list: Option<Verified<DeviceList>>) {
        self.known().proposal = list;
    }

    /// What is to be kept of a list that counts at the node. `None` if the same or a newer one is known.
    fn weigh(&self, list: &Verified<DeviceList>) -> Option<Vec<u8>> {
        let known = self.known();
        let (id, version) = (list.id(), list.body().version);
        if known.counted.as_ref().is_some_and(|c| c.body().version > version || c.id() == id) {
            return None;
        }
        let was_listed = known.was_listed || has(list, self.device);
        let listed = if was_listed { WAS_LISTED } else { NEVER_LISTED };
        Some([vec![listed], list.raw().to_vec()].concat())
    }

    /// Goes by a list, which is kept.
    fn adopt(&self, list: Verified<DeviceList>) {
        let mut known = self.known();
        known.was_listed |= has(&list, self.device);
        known.counted = Some(list);
    }

    /// True once in a process, if the device is revoked.
    fn is_news_that_revoked(&self) -> bool {
        let mut known = self.known();
        let news = known.is_revoked(self.device) && !known.told;
        known.told |= news;
        news
    }
}

/// Takes a proposal back when the call that made it ends, however it ends.
struct Proposed<'a>(&'a Devices);

impl Drop for Proposed<'_> {
    fn drop(&mut self) {
        self.0.propose(None);
    }
}

impl Client {
    /// The devices of the account, by id. Those that are on the list which counts at the node, as far as it is known here.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for device in client.devices()? {
    ///     println!("{} {}", device.id, device.name.unwrap_or_default());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, ReadError> {
        let shared = &self.shared;
        let list = shared.devices.counted().unwrap_or_else(|| shared.devices.offer(&shared.account));
        let objects = shared.account_space()?.objects();
        let mut devices = Vec::with_capacity(list.body().devices.len());
        for id in &list.body().devices {
            let said = objects.get(DEVICE, &id.to_string())?.map(|object| object.fields).unwrap_or_default();
            devices.push(DeviceInfo {
                id: *id,
                name: said.get("name").and_then(|name| name.as_str()).map(str::to_owned),
                added_ms: said.get("added_ms").and_then(serde_json::Value::as_u64),
                is_this: *id == self.device(),
            });
        }
        Ok(devices)
    }

    /// True when another device of the account revoked this one. It shows what it has and gets nothing new.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.devices.is_revoked()
    }

    /// Takes a device off the account's list. Returns when the node has the new list: it ends that device's sessions and opens
    /// no more for it. What the device holds stays on it, behind its lock: its vault has the account's words, too. Whoever can
    /// open that is the account, and new keys do not shut it out; the remedy is another account
    /// ([`Space::replace_account`](crate::Space::replace_account)).
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let lost = client.devices()?.into_iter().find(|d| d.name.as_deref() == Some("phone"));
    /// if let Some(lost) = lost {
    ///     client.revoke_device(lost.id).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DeviceError`]. After an error of the connection it is unknown whether the node has the new list;
    /// revoking again is safe.
    pub async fn revoke_device(&self, device: DeviceId) -> Result<(), DeviceError> {
        if device == self.device() {
            return Err(DeviceError::ThisDevice);
        }
        let _one = self.shared.devices.changing.lock().await;
        let _until_the_end = Proposed(&self.shared.devices);
        let work = self.shared.revoke(device);
        let revoked = tokio::time::timeout(limits::UNARY_TIMEOUT, work).await;
        revoked.map_err(|_| DeviceError::from(self.shared.timed_out()))??;
        // Only its name is left; a failure leaves that of a device on no list.
        if let Ok(space) = self.shared.account_space()
            && let Err(error) = end(space.objects().delete(DEVICE, &device.to_string()).await)
        {
            tracing::warn!(error = %error, "the name of a revoked device is still there");
        }
        Ok(())
    }
}

impl Shared {
    /// Presents lists without the device until one of them counts.
    async fn revoke(&self, device: DeviceId) -> Result<(), DeviceError> {
        let mut asked = false;
        let mut connection = self.connection.clone();
        self.link(Input::Wake);
        loop {
            // A session stands, so the list that counts is known.
            let online = connection.wait_for(|c| c.online().is_some() || self.devices.is_revoked()).await;
            let generation = online.map_err(|_| self.offline())?.generation();
            if self.devices.is_revoked() {
                return Err(DeviceError::Revoked);
            }
            let Some(counted) = self.devices.counted() else { return Err(self.offline().into()) };
            if !has(&counted, device) {
                return if asked { Ok(()) } else { Err(DeviceError::NotListed { device }) };
            }
            asked = true;
            let rest = counted.body().devices.iter().copied().filter(|d| *d != device).collect();
            self.devices.propose(Some(self.account.device_list(counted.body().version.saturating_add(1), rest)));
            self.redial();
            self.link(Input::Wake);
            let other = |c: &crate::link::Connection| c.generation() != generation;
            connection.wait_for(other).await.map_err(|_| self.offline())?;
        }
    }

    /// Takes over a list that the node, or another device, says counts. True if it is news.
    pub(crate) async fn learn_devices(&self, list: SignedRecord) -> bool {
        let list = RawRecord::try_from(list).and_then(verify_as::<DeviceList>);
        let list = match list {
            Ok(list) if list.body().account == self.account.id() && list.body().version > 0 => list,
            Ok(_) | Err(_) => {
                tracing::warn!("a device list was not acceptable");
                return false;
            }
        };
        let _one = self.devices.learning.lock().await;
        let Some(kept) = self.devices.weigh(&list) else {
            self.tell_if_revoked();
            return false;
        };
        let sealed = self.local.seal_row(KEPT.as_bytes(), &kept, &mut self.host.rng());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), StoreError> { tx.kv_put(KEPT, &sealed) };
        let written = self.store.write(job).await.map_err(|error| error.to_string());
        let kept = match written {
            Ok(written) => self.store.durable(written.commit).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            // Nothing is gone by that a restart would not know of; every session tells of it again.
            tracing::warn!(error, "the device list could not be kept");
            return false;
        }
        self.devices.adopt(list);
        self.own.tell(ClientEvent::DevicesChanged);
        self.own.devices_moved();
        self.tell_if_revoked();
        true
    }

    fn tell_if_revoked(&self) {
        if self.devices.is_news_that_revoked() {
            self.own.tell(ClientEvent::DeviceRevoked);
        }
    }

    /// The other devices learn of a new list from the account's space, without a session of their own in between.
    pub(super) async fn compare_devices(self: &Arc<Self>) -> Result<(), WriteError> {
        let objects = self.account_space()?.objects();
        let said = objects.get(LIST, "self")?.and_then(|object| read_list(object.fields.get("record")?.as_str()?));
        let counted = self.devices.counted();
        let version = |list: &Option<Verified<DeviceList>>| list.as_ref().map_or(0, |list| list.body().version);
        if version(&said) < version(&counted)
            && let Some(counted) = counted
        {
            let text = data_encoding::BASE32_NOPAD.encode(&counted.raw().to_vec()).to_ascii_lowercase();
            objects.put(LIST, "self", serde_json::json!({ "record": text })).await?;
        } else if version(&said) > version(&counted)
            && let Some(said) = said
            && self.learn_devices(said.into_raw().into()).await
            && self.devices.is_revoked()
        {
            self.redial();
        }
        Ok(())
    }
}

fn read_list(text: &str) -> Option<Verified<DeviceList>> {
    let bytes = data_encoding::BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?;
    RawRecord::from_slice(&bytes).and_then(verify_as).ok()
}
