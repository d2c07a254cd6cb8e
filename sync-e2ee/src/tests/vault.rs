use proptest::prelude::*;

use super::*;
use crate::{ContentError, DeviceKeys, LocalKey, Secrets, Unlock, VaultError, lock, unlock};

const KEY_FILE: Unlock<'static> = Unlock::KeyFile(&[9; 32]);
const SUM_BYTES: usize = 32;

fn secrets() -> Secrets {
    Secrets {
        mnemonic: Mnemonic::generate(&mut rng(1)),
        device: DeviceKeys::generate(&mut rng(2)),
        local_key: LocalKey::generate(&mut rng(3)),
    }
}

fn assert_ours(opened: &Secrets) {
    assert_eq!(opened.mnemonic.phrase(), secrets().mnemonic.phrase());
    assert_eq!(opened.device.id(), secrets().device.id());
    assert_eq!(opened.local_key.expose(), secrets().local_key.expose());
}

fn locked() -> Vec<u8> {
    lock(&secrets(), &KEY_FILE, &mut rng(4)).unwrap()
}

/// Puts right the sum of an altered vault, as somebody would who means harm.
fn resum(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - SUM_BYTES);
    let sum = blake3::derive_key("headwater/vault-sum/v1", &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn error(bytes: &[u8], secret: &Unlock<'_>) -> VaultError {
    unlock(bytes, secret).unwrap_err()
}

#[test]
fn a_passphrase_vault() {
    let passphrase = Unlock::Passphrase("correct horse");
    let bytes = lock(&secrets(), &passphrase, &mut rng(4)).unwrap();
    // 64 MiB, 3 passes, 1 lane stand in the file.
    assert_eq!(bytes[..21], *b"HWVAULT\x01\x01\x00\x01\x00\x00\x00\x00\x00\x03\x00\x00\x00\x01");
    assert_ours(&unlock(&bytes, &passphrase).unwrap());
    assert_eq!(error(&bytes, &Unlock::Passphrase("correct hose")), VaultError::WrongSecret);
    assert_eq!(error(&bytes, &KEY_FILE), VaultError::WrongKind);
}

#[test]
fn a_key_file_vault() {
    assert_ours(&unlock(&locked(), &KEY_FILE).unwrap());
    assert_eq!(error(&locked(), &Unlock::KeyFile(&[8; 32])), VaultError::WrongSecret);
    assert_eq!(error(&locked(), &Unlock::Passphrase("")), VaultError::WrongKind);
}

#[test]
fn a_vault_that_is_none() {
    assert_eq!(error(b"", &KEY_FILE), VaultError::NotAVault);
    assert_eq!(error(b"SQLite format 3\0", &KEY_FILE), VaultError::NotAVault);
    assert_eq!(error(b"HWVAULT\x02", &KEY_FILE), VaultError::UnknownVersion(2));
}

#[test]
fn every_truncation_is_damage() {
    let bytes = locked();
    for end in 7..bytes.len() {
        assert_eq!(error(&bytes[..end], &KEY_FILE), VaultError::Damaged, "{end} bytes");
    }
    assert_eq!(error(&[bytes.as_slice(), &[0]].concat(), &KEY_FILE), VaultError::Damaged);
}

/// A file cannot make its reader allocate without bound.
#[test]
fn a_greedy_cost_is_damage() {
    let bytes = lock(&secrets(), &Unlock::Passphrase("p"), &mut rng(4)).unwrap();
    for (at, byte) in [(9, 0x7f), (13, 0x7f), (17, 0x7f), (16, 0)] {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        assert_eq!(error(&resum(bytes), &Unlock::Passphrase("p")), VaultError::Damaged, "byte {at}");
    }
    let mut unknown_kind = bytes;
    unknown_kind[8] = 3;
    assert_eq!(error(&resum(unknown_kind), &Unlock::Passphrase("p")), VaultError::Damaged);
}

/// The right key over the wrong content: only a faulty writer makes this.
#[test]
fn a_vault_with_other_content_is_damage() {
    let bytes = locked();
    let (header, rest) = bytes.split_at(61);
    let key = crate::aead::hkdf(&header[21..37], &[9; 32], &[b"headwater/vault/v1"]);
    let nonce: [u8; 24] = header[37..].try_into().unwrap();
    let ours = crate::aead::decrypt(&key, &nonce, header, &rest[..rest.len() - SUM_BYTES]).unwrap();
    let unknown_field = [ours.as_slice(), b"\x22\x01x"].concat();
    let a_field_twice = [b"\x0a\x01x".as_slice(), &ours].concat();
    for plaintext in [b"".as_slice(), b"\x0a\x03abc", b"\xff", &unknown_field, &a_field_twice] {
        let ciphertext = crate::aead::encrypt(&key, &nonce, header, plaintext);
        let forged = resum([header, &ciphertext, &[0; SUM_BYTES]].concat());
        assert_eq!(error(&forged, &KEY_FILE), VaultError::Damaged);
    }
}

#[test]
fn a_vault_does_not_hold_its_secrets_in_the_clear() {
    let bytes = locked();
    let phrase = secrets().mnemonic.phrase().to_owned();
    let device = *secrets().device.signing_key().as_bytes();
    for secret in [phrase.as_bytes(), &device, secrets().local_key.expose()] {
        assert!(!bytes.windows(8).any(|window| secret.windows(8).any(|part| part == window)));
    }
}

#[test]
fn rows_open_only_in_their_place() {
    let key = LocalKey::generate(&mut rng(1));
    let row = key.seal_row(b"objects/1", b"milk", &mut rng(2));
    assert_eq!(key.open_row(b"objects/1", &row).unwrap(), b"milk");
    assert_eq!(key.open_row(b"objects/2", &row), Err(ContentError::Undecryptable));
    assert_eq!(LocalKey::generate(&mut rng(2)).open_row(b"objects/1", &row), Err(ContentError::Undecryptable));
    assert_eq!(key.open_row(b"objects/1", &row[..23]), Err(ContentError::Undecryptable));
    assert_eq!(key.open_row(b"objects/1", &[]), Err(ContentError::Undecryptable));
}

#[test]
fn tags_tell_labels_and_keys_apart() {
    let key = LocalKey::generate(&mut rng(1));
    assert_eq!(key.tag("note", b"1"), key.tag("note", b"1"));
    assert_ne!(key.tag("note", b"1"), key.tag("note1", b""));
    assert_ne!(key.tag("note", b"1"), LocalKey::generate(&mut rng(2)).tag("note", b"1"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_changed_byte_of_a_vault_is_told(at: prop::sample::Index, mask in 1..=255_u8) {
        let mut bytes = locked();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let expected = match at {
            0..7 => VaultError::NotAVault,
            7 => VaultError::UnknownVersion(bytes[7]),
            _ => VaultError::Damaged,
        };
        prop_assert_eq!(error(&bytes, &KEY_FILE), expected);
    }

    /// The sum is no protection and needs to be none: the cipher refuses whatever was altered on purpose.
    #[test]
    fn a_vault_altered_on_purpose_does_not_open(at: prop::sample::Index, mask in 1..=255_u8) {
        let mut bytes = locked();
        let at = 21 + at.index(bytes.len() - 21 - SUM_BYTES);
        bytes[at] ^= mask;
        prop_assert_eq!(error(&resum(bytes), &KEY_FILE), VaultError::WrongSecret);
    }

    #[test]
    fn no_bytes_make_unlock_panic(bytes: Vec<u8>, with_magic: bool) {
        let bytes = if with_magic { [b"HWVAULT\x01".as_slice(), &bytes].concat() } else { bytes };
        prop_assert!(unlock(&bytes, &KEY_FILE).is_err());
    }

    #[test]
    fn a_changed_byte_of_a_row_is_refused(at in 0..44_usize, mask in 1..=255_u8) {
        let key = LocalKey::generate(&mut rng(1));
        let mut row = key.seal_row(b"objects/1", b"milk", &mut rng(2));
        prop_assert_eq!(row.len(), 44);
        row[at] ^= mask;
        prop_assert_eq!(key.open_row(b"objects/1", &row), Err(ContentError::Undecryptable));
    }
}
