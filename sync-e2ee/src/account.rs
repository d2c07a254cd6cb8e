//! The three Ed25519 keys of a client: the account (a person), the device (an installation), the invite (a capability).

use std::fmt;

use ed25519_dalek::SigningKey;
use rand_core::CryptoRng;
use sync_core::ids::{AccountId, DeviceId, InviteId};
use sync_core::limits;
use sync_core::record::{DeviceCertificate, DeviceList, Verified};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::mnemonic::Mnemonic;

/// `m/44'/18519'/0'`: BIP-44's purpose, an unregistered coin type ("HW" in ASCII), the first account. SLIP-0010 knows only
/// hardened children for Ed25519.
const PATH: [u32; 3] = [44, 0x4857, 0];

/// An account: signs ACL records, changes and device lists, and opens what is sealed to it.
///
/// The key is that of [SLIP-0010](https://github.com/satoshilabs/slips/blob/master/slip-0010.md) at `m/44'/18519'/0'`, from the
/// BIP-39 seed of the mnemonic under the empty passphrase. The same words give the same account everywhere.
#[derive(Clone, ZeroizeOnDrop)]
pub struct AccountKeys {
    key: SigningKey,
}

impl AccountKeys {
    /// The account of these words. Takes milliseconds (BIP-39 stretches).
    #[must_use]
    pub fn from_mnemonic(mnemonic: &Mnemonic) -> Self {
        let secret = Zeroizing::new(slip10_ed25519::derive_ed25519_private_key(mnemonic.seed().as_ref(), &PATH));
        Self { key: SigningKey::from_bytes(&secret) }
    }

    /// The public key.
    #[must_use]
    pub fn id(&self) -> AccountId {
        (&self.key.verifying_key()).into()
    }

    /// For signing records and opening seals.
    #[must_use]
    pub const fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// The account's word that a device is its own. `at_ms`: milliseconds since 1970, by the device's clock.
    #[must_use]
    pub fn certify_device(&self, device: DeviceId, at_ms: u64) -> Verified<DeviceCertificate> {
        let body = DeviceCertificate { account: self.id(), device, at_ms };
        Verified::sign(&body, &self.key, None).expect("both ids are strong keys and ours signs")
    }

    /// The account's devices, in any order; a node keeps the highest version and refuses devices that are not on it.
    ///
    /// # Panics
    /// If there are more than [`limits::DEVICES_MAX`] devices: no reader would take such a list.
    #[must_use]
    pub fn device_list(&self, version: u64, mut devices: Vec<DeviceId>) -> Verified<DeviceList> {
        devices.sort_unstable();
        devices.dedup();
        assert!(devices.len() <= limits::DEVICES_MAX, "an account has at most 64 devices");
        let body = DeviceList { account: self.id(), version, devices };
        Verified::sign(&body, &self.key, None).expect("sorted, within the limit, strong keys, and ours signs")
    }
}

impl fmt::Debug for AccountKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountKeys({:?}, redacted)", self.id())
    }
}

/// One installation: opens sessions with nodes. Random, so that losing a device loses no account.
#[derive(Clone, ZeroizeOnDrop)]
pub struct DeviceKeys {
    key: SigningKey,
}

impl DeviceKeys {
    /// A new device.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self { key: random_key(rng) }
    }

    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(seed) }
    }

    /// The public key.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        (&self.key.verifying_key()).into()
    }

    /// For answering a node's challenge.
    #[must_use]
    pub const fn signing_key(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for DeviceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKeys({:?}, redacted)", self.id())
    }
}

/// The secret half of an invite. It lives in the invite token; of an open invite it is as good as a read key.
#[derive(Clone, ZeroizeOnDrop)]
pub struct InviteSecret {
    key: SigningKey,
}

impl InviteSecret {
    /// A new invite.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self { key: random_key(rng) }
    }

    /// The secret that an invite token carries: an Ed25519 seed (RFC 8032), 32 bytes.
    #[must_use]
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self { key: SigningKey::from_bytes(&seed) }
    }

    /// For the invite token, and for nothing else: the bytes are not zeroized once they are out.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The public key, which names the invite in the ACL.
    #[must_use]
    pub fn id(&self) -> InviteId {
        (&self.key.verifying_key()).into()
    }

    /// For proofs, and for opening what is sealed to the invite.
    #[must_use]
    pub const fn signing_key(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteSecret({:?}, redacted)", self.id())
    }
}

fn random_key(rng: &mut impl CryptoRng) -> SigningKey {
    let mut seed = Zeroizing::new([0; 32]);
    rng.fill_bytes(seed.as_mut());
    SigningKey::from_bytes(&seed)
}
