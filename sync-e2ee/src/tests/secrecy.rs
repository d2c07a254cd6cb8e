//! What this crate must never do, as far as a test can see it.

use std::fmt::Debug;

use zeroize::ZeroizeOnDrop;

use super::*;
use crate::{DeviceKeys, InviteSecret, KeyRing, LocalKey, Secrets, Unlock};

/// No spelling of eight consecutive bytes of the secret stands in the text.
fn assert_silent(value: &dyn Debug, secret: &[u8]) {
    for text in [format!("{value:?}"), format!("{value:#?}")] {
        let squeezed: String = text.to_lowercase().split_whitespace().collect();
        for part in secret.windows(8) {
            let list = format!("{part:?}").replace(' ', "");
            let list = list.trim_matches(['[', ']']);
            let base32 = data_encoding::BASE32_NOPAD.encode(&part[..5]).to_lowercase();
            let literal = String::from_utf8_lossy(part).to_lowercase();
            for spelling in [HEXLOWER.encode(part).as_str(), list, &base32, &literal] {
                assert!(!squeezed.contains(spelling), "{text} tells {spelling}");
            }
        }
    }
}

#[test]
fn no_secret_prints_its_bytes() {
    let keys = SpaceKeys::generate(&mut rng(1));
    assert_silent(&keys.name_key, keys.name_key.expose());
    assert_silent(&keys.read_key, keys.read_key.expose());
    assert_silent(&keys.history_key, keys.history_key.as_ref().unwrap().expose());
    assert_silent(&keys, &keys.to_plaintext());

    let mnemonic = Mnemonic::generate(&mut rng(2));
    assert_silent(&mnemonic, mnemonic.phrase().as_bytes());
    let account = AccountKeys::from_mnemonic(&mnemonic);
    assert_silent(&account, account.signing_key().as_bytes());
    let device = DeviceKeys::generate(&mut rng(3));
    assert_silent(&device, device.signing_key().as_bytes());
    let invite = InviteSecret::generate(&mut rng(4));
    assert_silent(&invite, &invite.to_bytes());
    let local_key = LocalKey::generate(&mut rng(5));
    assert_silent(&local_key, local_key.expose());

    let secrets = Secrets { mnemonic, device, local_key };
    assert_silent(&secrets, secrets.mnemonic.phrase().as_bytes());
    assert_silent(&secrets, secrets.device.signing_key().as_bytes());
    assert_silent(&Unlock::Passphrase("correct horse"), b"correct horse");
    assert_silent(&Unlock::KeyFile(&[9; 32]), &[9; 32]);

    let mut ring = KeyRing::new(account.clone());
    ring.hold_invite(invite.clone());
    assert_silent(&ring, account.signing_key().as_bytes());
    assert_silent(&ring, &invite.to_bytes());
}

#[test]
fn keys_are_zeroized() {
    fn check<T: ZeroizeOnDrop>() {}
    check::<NameKey>();
    check::<ReadKey>();
    check::<HistoryKey>();
    check::<LocalKey>();
    check::<AccountKeys>();
    check::<DeviceKeys>();
    check::<InviteSecret>();
    check::<bip39::Mnemonic>();
    check::<ed25519_dalek::SigningKey>();
}

#[test]
fn the_crate_takes_everything_as_an_argument() {
    let sources = [
        ("account.rs", include_str!("../account.rs")),
        ("aead.rs", include_str!("../aead.rs")),
        ("content.rs", include_str!("../content.rs")),
        ("keys.rs", include_str!("../keys.rs")),
        ("local.rs", include_str!("../local.rs")),
        ("mnemonic.rs", include_str!("../mnemonic.rs")),
        ("ring.rs", include_str!("../ring.rs")),
        ("seal.rs", include_str!("../seal.rs")),
        ("vault.rs", include_str!("../vault.rs")),
        ("Cargo.toml", include_str!("../../Cargo.toml").split("[dev-dependencies]").next().unwrap()),
    ];
    let never = ["std::fs", "std::net", "std::io", "std::time", "std::env", "getrandom", "async ", "serde", "tokio"];
    for (name, text) in sources {
        for word in never {
            assert!(!text.contains(word), "{name} has {word:?}");
        }
    }
}
