#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod account;
mod content;
mod ring;
mod seal;
mod secrecy;
mod vault;
mod vectors;

use data_encoding::HEXLOWER;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use sync_core::ids::SpaceId;

use crate::{AccountKeys, HistoryKey, Mnemonic, NameKey, ReadKey, SpaceKeys};

const PHRASE: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                      abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon art";
const SPACE: SpaceId = SpaceId::from_hash([4; 32]);

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// The account of `vectors.py`.
fn alice() -> AccountKeys {
    AccountKeys::from_mnemonic(&Mnemonic::parse(PHRASE).unwrap())
}

fn someone(seed: u64) -> AccountKeys {
    AccountKeys::from_mnemonic(&Mnemonic::generate(&mut rng(seed)))
}

/// The keys of `vectors.py`.
fn fixed_keys() -> SpaceKeys {
    SpaceKeys {
        name_key: NameKey::from_slice(&[1; 32]).unwrap(),
        read_key: ReadKey::from_slice(&[2; 32]).unwrap(),
        history_key: HistoryKey::from_slice(&[3; 32]),
    }
}

fn assert_same(actual: &SpaceKeys, expected: &SpaceKeys) {
    assert_eq!(actual.to_plaintext(), expected.to_plaintext());
}
