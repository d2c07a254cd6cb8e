use sync_core::ids::DeviceId;
use sync_core::limits;
use sync_core::record::{DeviceCertificate, DeviceList, verify_as};

use super::*;
use crate::{DeviceKeys, InviteSecret, MnemonicError};

#[test]
fn mnemonics_round_trip_and_are_read_as_typed() {
    let mnemonic = Mnemonic::generate(&mut rng(1));
    assert_eq!(mnemonic.phrase().split(' ').count(), 24);
    let typed = mnemonic.phrase().to_uppercase().replace(' ', " \n\t ");
    assert_eq!(Mnemonic::parse(&typed).unwrap().phrase(), mnemonic.phrase());
    assert_ne!(Mnemonic::generate(&mut rng(2)).phrase(), mnemonic.phrase());
}

#[test]
fn every_mistake_in_a_mnemonic_has_its_own_error() {
    let check = |text: &str, expected: MnemonicError| assert_eq!(Mnemonic::parse(text).unwrap_err(), expected);
    check("", MnemonicError::WordCount { actual: 0 });
    check(&PHRASE.replacen("abandon ", "", 1), MnemonicError::WordCount { actual: 23 });
    // A valid BIP-39 mnemonic of 12 words is still none of ours.
    let twelve = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    check(twelve, MnemonicError::WordCount { actual: 12 });
    check(&PHRASE.replacen("abandon", "headwater", 1), MnemonicError::UnknownWord { position: 1 });
    check(&PHRASE.replace(" art", " \u{e9}t\u{e9}"), MnemonicError::UnknownWord { position: 24 });
    check(&PHRASE.replace(" art", " abandon"), MnemonicError::Checksum);
}

#[test]
fn a_mnemonic_error_does_not_repeat_the_words() {
    let error = Mnemonic::parse(&PHRASE.replacen("abandon", "secretword", 1)).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secretword"));
}

#[test]
fn device_records_verify_from_their_bytes() {
    let device = DeviceKeys::generate(&mut rng(1)).id();
    let certificate = alice().certify_device(device, 1_700_000_000_000);
    let read = verify_as::<DeviceCertificate>(certificate.raw().clone()).unwrap();
    assert_eq!(*read.body(), DeviceCertificate { account: alice().id(), device, at_ms: 1_700_000_000_000 });
}

#[test]
fn a_device_list_takes_any_order_and_repeats() {
    let mut devices: Vec<DeviceId> = (0..5).map(|seed| DeviceKeys::generate(&mut rng(seed)).id()).collect();
    devices.extend(devices.clone());
    let list = alice().device_list(3, devices.clone());
    let read = verify_as::<DeviceList>(list.raw().clone()).unwrap();
    devices.sort();
    devices.dedup();
    assert_eq!(*read.body(), DeviceList { account: alice().id(), version: 3, devices });
    assert!(alice().device_list(4, Vec::new()).body().devices.is_empty());
}

#[test]
#[should_panic(expected = "at most 64 devices")]
fn a_device_list_over_the_limit_is_a_bug_of_the_caller() {
    let devices = (0..=limits::DEVICES_MAX as u64).map(|seed| DeviceKeys::generate(&mut rng(seed)).id());
    let _ = alice().device_list(1, devices.collect());
}

#[test]
fn an_invite_survives_its_token() {
    let invite = InviteSecret::generate(&mut rng(1));
    assert_eq!(InviteSecret::from_bytes(invite.to_bytes()).id(), invite.id());
}
