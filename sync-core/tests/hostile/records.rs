//! What a fuzzer runs: records out of any bytes, and honest records that were touched.

use ed25519_dalek::SigningKey;
use sync_core::ids::{AccountId, AclId, DeviceId, TreeId};
use sync_core::record::{DeviceCertificate, RawRecord, Tombstone, Verified, verify, verify_as};

/// Runs one input. Panics if a promise is broken.
pub(crate) fn run(input: &[u8]) {
    if let Ok(raw) = RawRecord::from_slice(input) {
        assert_eq!(RawRecord::from_slice(&raw.to_vec()).as_ref(), Ok(&raw), "a record is read back");
        let _ = verify(raw);
    }
    let (tombstone, certificate) = samples();
    if let Some(raw) = touched(&tombstone, input) {
        assert_eq!(verify(raw.clone()).is_ok(), raw == tombstone, "what was touched does not verify");
    }
    if let Some(raw) = touched(&certificate, input) {
        let verified = verify_as::<DeviceCertificate>(raw.clone());
        assert_eq!(verified.is_ok(), raw == certificate, "what was touched does not verify");
    }
}

fn touched(honest: &RawRecord, input: &[u8]) -> Option<RawRecord> {
    let mut bytes = honest.to_vec();
    for edit in input.chunks_exact(3).take(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        bytes[at] ^= edit[2];
    }
    RawRecord::from_slice(&bytes).ok()
}

fn samples() -> (RawRecord, RawRecord) {
    let key = SigningKey::from_bytes(&[1; 32]);
    let account = AccountId::from(&key.verifying_key());
    let device = DeviceId::from(&SigningKey::from_bytes(&[2; 32]).verifying_key());
    let (tree, acl_head) = (TreeId::from_hash([3; 32]), AclId::from_hash([4; 32]));
    let tombstone = Verified::sign(&Tombstone { tree, author: account, acl_head, at_ms: 5 }, &key, None);
    let certificate = Verified::sign(&DeviceCertificate { account, device, at_ms: 6 }, &key, None);
    (tombstone.expect("a fixed record").into_raw(), certificate.expect("a fixed record").into_raw())
}
