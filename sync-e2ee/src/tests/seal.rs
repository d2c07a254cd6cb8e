use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use proptest::prelude::*;
use sync_core::ids::{AccountId, Epoch};
use sync_core::record::Seal;

use super::*;
use crate::seal::seal_plaintext;
use crate::{InviteSecret, Recipient, SealError, open_keys, open_profile, seal_keys, seal_profile};

const EPOCH: Epoch = Epoch(7);

fn seal_to_alice(keys: &SpaceKeys) -> Seal {
    seal_keys(Some(SPACE), EPOCH, Recipient::Account(alice().id()), keys, &mut rng(1)).unwrap()
}

#[test]
fn keys_reach_accounts_and_invites_with_and_without_history() {
    let invite = InviteSecret::generate(&mut rng(3));
    for keys in [SpaceKeys::generate(&mut rng(2)), SpaceKeys::generate(&mut rng(2)).without_history()] {
        for space in [None, Some(SPACE)] {
            let seal = seal_keys(space, EPOCH, Recipient::Account(alice().id()), &keys, &mut rng(4)).unwrap();
            assert_same(&open_keys(space, EPOCH, &seal, alice().signing_key()).unwrap(), &keys);
            let seal = seal_keys(space, EPOCH, Recipient::Invite(invite.id()), &keys, &mut rng(4)).unwrap();
            assert_same(&open_keys(space, EPOCH, &seal, invite.signing_key()).unwrap(), &keys);
        }
    }
}

#[test]
fn no_two_seals_are_alike() {
    let mut rng = rng(1);
    let mut seal = || seal_keys(None, EPOCH, Recipient::Account(alice().id()), &fixed_keys(), &mut rng).unwrap();
    assert_ne!(seal(), seal());
}

#[test]
fn a_seal_opens_only_where_it_was_made() {
    let seal = seal_to_alice(&fixed_keys());
    let open = |space, epoch, account: &AccountKeys| open_keys(space, epoch, &seal, account.signing_key()).unwrap_err();
    assert_eq!(open(None, EPOCH, &alice()), SealError::Undecryptable);
    assert_eq!(open(Some(SpaceId::from_hash([5; 32])), EPOCH, &alice()), SealError::Undecryptable);
    assert_eq!(open(Some(SPACE), Epoch(8), &alice()), SealError::Undecryptable);
    assert_eq!(open(Some(SPACE), EPOCH, &someone(2)), SealError::NotForUs);
    // Somebody who puts their own name on it gains nothing.
    let stolen = Seal { recipient: *someone(2).id().as_bytes(), ..seal.clone() };
    let error = open_keys(Some(SPACE), EPOCH, &stolen, someone(2).signing_key()).unwrap_err();
    assert_eq!(error, SealError::Undecryptable);
}

#[test]
fn impossible_lengths_are_named() {
    let seal = seal_to_alice(&fixed_keys());
    let error = |seal: Seal| open_keys(Some(SPACE), EPOCH, &seal, alice().signing_key()).unwrap_err();
    assert_eq!(error(Seal { enc: seal.enc.slice(1..), ..seal.clone() }), SealError::BadLength);
    assert_eq!(error(Seal { ciphertext: seal.ciphertext.slice(..15), ..seal.clone() }), SealError::BadLength);
    assert_eq!(error(Seal { ciphertext: seal.ciphertext.slice(..16), ..seal.clone() }), SealError::Undecryptable);
    // Enough for a tag, authentic, and no keys.
    let odd = seal_plaintext(Some(SPACE), EPOCH, Recipient::Account(alice().id()), &[1; 65], &mut rng(1)).unwrap();
    assert_eq!(error(odd), SealError::BadLength);
    assert_eq!(open_profile(SPACE, EPOCH, &fixed_keys(), &[0; 47]), Err(SealError::BadLength));
    assert_eq!(open_profile(SPACE, EPOCH, &fixed_keys(), &[0; 31]), Err(SealError::BadLength));
}

#[test]
fn weak_recipients_are_refused() {
    // The identity: as an id it is refused when read, so it can only come from a key object.
    let mut identity = [0; 32];
    identity[0] = 1;
    let weak = AccountId::from(&VerifyingKey::from_bytes(&identity).unwrap());
    let sealed = seal_keys(None, EPOCH, Recipient::Account(weak), &fixed_keys(), &mut rng(1));
    assert_eq!(sealed, Err(SealError::BadRecipientKey));
    assert_eq!(seal_profile(SPACE, EPOCH, &[0; 32], b"Alice", &mut rng(1)), Err(SealError::BadRecipientKey));
}

#[test]
fn profiles_open_for_the_members_of_their_epoch() {
    let keys = SpaceKeys::generate(&mut rng(1));
    for profile in [b"".as_slice(), b"Alice"] {
        let sealed = seal_profile(SPACE, EPOCH, &keys.profile_public(), profile, &mut rng(2)).unwrap();
        assert_eq!(open_profile(SPACE, EPOCH, &keys.without_history(), &sealed).unwrap(), profile);
        assert_eq!(open_profile(SPACE, Epoch(8), &keys, &sealed), Err(SealError::Undecryptable));
        assert_eq!(open_profile(SPACE, EPOCH, &fixed_keys(), &sealed), Err(SealError::Undecryptable));
    }
}

/// The map of one key pair to the other is the standard one: both halves meet.
#[test]
fn the_x25519_halves_belong_together() {
    for seed in 0..20 {
        let key = someone(seed).signing_key().clone();
        let public = key.verifying_key().to_montgomery().to_bytes();
        assert_eq!(crate::seal::x25519_public(&key.to_scalar_bytes()), public);
    }
}

fn flip(bytes: &Bytes, at: usize, mask: u8) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= mask;
    bytes.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_byte_of_a_seal_is_refused(at in 0..160_usize, mask in 1..=255_u8) {
        let seal = seal_to_alice(&fixed_keys());
        let (expected, changed) = match at {
            0..32 => {
                let mut recipient = seal.recipient;
                recipient[at] ^= mask;
                (SealError::NotForUs, Seal { recipient, ..seal })
            }
            32..64 => (SealError::Undecryptable, Seal { enc: flip(&seal.enc, at - 32, mask), ..seal }),
            _ => {
                let at = (at - 64) % seal.ciphertext.len();
                (SealError::Undecryptable, Seal { ciphertext: flip(&seal.ciphertext, at, mask), ..seal })
            }
        };
        let error = open_keys(Some(SPACE), EPOCH, &changed, alice().signing_key()).unwrap_err();
        prop_assert_eq!(error, expected);
    }

    #[test]
    fn a_changed_byte_of_a_profile_is_refused(at in 0..53_usize, mask in 1..=255_u8) {
        let sealed = seal_profile(SPACE, EPOCH, &fixed_keys().profile_public(), b"Alice", &mut rng(2)).unwrap();
        prop_assert_eq!(sealed.len(), 53);
        let error = open_profile(SPACE, EPOCH, &fixed_keys(), &flip(&sealed, at, mask));
        prop_assert_eq!(error, Err(SealError::Undecryptable));
    }
}
