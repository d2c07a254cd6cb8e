use bytes::Bytes;
use proptest::prelude::*;
use sync_core::ids::{Epoch, TreeId};
use sync_core::limits;
use sync_core::record::{ChangeKind, TreeName, TreeRoot, Who, WriteRule};

use super::*;
use crate::aead;
use crate::{ContentContext, ContentError, Envelope, decrypt, encrypt, name_tag, object_root};

fn context() -> ContentContext {
    ContentContext {
        space: SPACE,
        tree: TreeId::from_hash([5; 32]),
        epoch: Epoch(7),
        author: alice().id(),
        kind: ChangeKind::Content,
    }
}

fn envelope(payload: impl Into<Bytes>) -> Envelope {
    Envelope {
        object_type: "note".into(),
        object_id: "shopping".into(),
        data_type: "text".into(),
        payload: payload.into(),
    }
}

#[test]
fn content_opens_only_in_its_place() {
    let keys = fixed_keys();
    let change = encrypt(&keys, &context(), &envelope("milk"), &mut rng(1)).unwrap();
    let open = |keys: &SpaceKeys, context| decrypt(keys, &context, &change.nonce, &change.ciphertext);
    assert_eq!(open(&keys, context()), Ok(envelope("milk")));
    assert_eq!(open(&keys.without_history(), context()), Ok(envelope("milk")));
    let refused = Err(ContentError::Undecryptable);
    assert_eq!(open(&SpaceKeys::generate(&mut rng(2)), context()), refused);
    assert_eq!(open(&keys, ContentContext { space: SpaceId::from_hash([6; 32]), ..context() }), refused);
    assert_eq!(open(&keys, ContentContext { tree: TreeId::from_hash([6; 32]), ..context() }), refused);
    assert_eq!(open(&keys, ContentContext { epoch: Epoch(8), ..context() }), refused);
    assert_eq!(open(&keys, ContentContext { author: someone(1).id(), ..context() }), refused);
    assert_eq!(open(&keys, ContentContext { kind: ChangeKind::Snapshot, ..context() }), refused);
    assert_eq!(decrypt(&keys, &context(), &[0; 24], &change.ciphertext), refused);
    assert_eq!(decrypt(&keys, &context(), &change.nonce, &[]), refused);
}

#[test]
fn nonces_are_fresh() {
    let mut rng = rng(1);
    let first = encrypt(&fixed_keys(), &context(), &envelope("milk"), &mut rng).unwrap();
    let second = encrypt(&fixed_keys(), &context(), &envelope("milk"), &mut rng).unwrap();
    assert_ne!(first.nonce, second.nonce);
    assert_ne!(first.ciphertext, second.ciphertext);
}

#[test]
fn the_size_limits_are_exact() {
    let encrypt = |envelope: &Envelope| encrypt(&fixed_keys(), &context(), envelope, &mut rng(1));
    let max = limits::CONTENT_BYTES_MAX;
    let largest = encrypt(&envelope(vec![1; max])).unwrap();
    assert!(largest.ciphertext.len() <= limits::PAYLOAD_BYTES_MAX);
    assert_eq!(encrypt(&envelope(vec![1; max + 1])), Err(ContentError::TooLarge { actual: max + 1, max }));
    // A small payload does not make room for a boundless name.
    let long = |bytes| Envelope { object_id: "x".repeat(bytes), ..envelope("") };
    let overhead = encrypt(&long(limits::CONTENT_BYTES_MAX)).unwrap().ciphertext.len() - limits::CONTENT_BYTES_MAX;
    let fits = limits::PAYLOAD_BYTES_MAX - overhead;
    assert_eq!(encrypt(&long(fits)).unwrap().ciphertext.len(), limits::PAYLOAD_BYTES_MAX);
    let (actual, max) = (limits::PAYLOAD_BYTES_MAX + 1, limits::PAYLOAD_BYTES_MAX);
    assert_eq!(encrypt(&long(fits + 1)), Err(ContentError::TooLarge { actual, max }));
}

/// What a malicious member may put under a correct key.
#[test]
fn only_a_canonical_envelope_is_one() {
    let keys = fixed_keys();
    let check = |plaintext: &[u8], expected: Result<Envelope, ContentError>| {
        let info: [&[u8]; 2] = [b"headwater/content/v1", &[5; 32]];
        let key = aead::hkdf(b"", keys.read_key.expose(), &info);
        let author = alice().id();
        let aad = [SPACE.as_bytes().as_slice(), &[5; 32], &7_u32.to_be_bytes(), author.as_bytes(), &[0]].concat();
        let ciphertext = aead::encrypt(&key, &[0; 24], &aad, plaintext);
        assert_eq!(decrypt(&keys, &context(), &[0; 24], &ciphertext), expected, "{plaintext:?}");
    };
    let empty = Envelope {
        object_type: String::new(),
        object_id: String::new(),
        data_type: String::new(),
        payload: Bytes::new(),
    };
    check(b"", Ok(empty.clone()));
    check(b"\x0a\x01n", Ok(Envelope { object_type: "n".into(), ..empty }));
    check(b"\x0a\x00", Err(ContentError::BadEnvelope)); // an explicit default
    check(b"\x0a\x81\x00n", Err(ContentError::BadEnvelope)); // an overlong varint
    check(b"\x12\x01n\x0a\x01n", Err(ContentError::BadEnvelope)); // another order
    check(b"\x0a\x01m\x0a\x01n", Err(ContentError::BadEnvelope)); // a field twice
    check(b"\x2a\x01n", Err(ContentError::BadEnvelope)); // an unknown field
    check(b"\x0a\x01\xff", Err(ContentError::BadEnvelope)); // not UTF-8
    check(b"\x0a\x05n", Err(ContentError::BadEnvelope)); // cut off
}

#[test]
fn names_do_not_run_into_each_other() {
    let key = fixed_keys().name_key;
    assert_eq!(name_tag(&key, "note", "1"), name_tag(&key, "note", "1"));
    assert_ne!(name_tag(&key, "note", "1"), name_tag(&key, "note1", ""));
    assert_ne!(name_tag(&key, "note", "1"), name_tag(&key, "", "note1"));
    assert_ne!(name_tag(&key, "note", "1"), name_tag(&SpaceKeys::generate(&mut rng(1)).name_key, "note", "1"));
}

#[test]
fn an_object_has_one_tree_per_rule() {
    let key = fixed_keys().name_key;
    let root = object_root(SPACE, &key, "note", "1", WriteRule::WRITERS);
    let name = TreeName::Tag(name_tag(&key, "note", "1"));
    assert_eq!(root, TreeRoot { space: SPACE, name, write_rule: WriteRule::WRITERS });
    let rule = WriteRule { who: Who::Admins, once: false };
    assert_ne!(root.tree_id(), object_root(SPACE, &key, "note", "1", rule).tree_id());
}

#[test]
fn an_envelope_does_not_print_what_it_holds() {
    let printed = format!("{:?}", envelope("milk"));
    assert!(["milk", "note", "shopping", "text"].iter().all(|secret| !printed.contains(secret)), "{printed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_envelope_round_trips(object_type: String, object_id: String, data_type: String, payload: Vec<u8>, seed: u64) {
        let envelope = Envelope { object_type, object_id, data_type, payload: payload.into() };
        let change = encrypt(&fixed_keys(), &context(), &envelope, &mut rng(seed)).unwrap();
        prop_assert_eq!(decrypt(&fixed_keys(), &context(), &change.nonce, &change.ciphertext), Ok(envelope));
    }

    #[test]
    fn a_changed_byte_of_a_change_is_refused(at: prop::sample::Index, mask in 1..=255_u8) {
        let change = encrypt(&fixed_keys(), &context(), &envelope("milk"), &mut rng(1)).unwrap();
        let mut bytes = [change.nonce.as_slice(), &change.ciphertext].concat();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let (nonce, ciphertext) = bytes.split_first_chunk().unwrap();
        prop_assert_eq!(decrypt(&fixed_keys(), &context(), nonce, ciphertext), Err(ContentError::Undecryptable));
    }

    #[test]
    fn a_changed_byte_of_the_place_is_refused(at in 0..68_usize, mask in 1..=255_u8) {
        let change = encrypt(&fixed_keys(), &context(), &envelope("milk"), &mut rng(1)).unwrap();
        let place = context();
        let mut bytes = [place.space.as_bytes().as_slice(), place.tree.as_bytes(), &place.epoch.0.to_be_bytes()].concat();
        bytes[at] ^= mask;
        let moved = ContentContext {
            space: SpaceId::try_from(&bytes[..32]).unwrap(),
            tree: TreeId::try_from(&bytes[32..64]).unwrap(),
            epoch: Epoch(u32::from_be_bytes(bytes[64..].try_into().unwrap())),
            ..place
        };
        let opened = decrypt(&fixed_keys(), &moved, &change.nonce, &change.ciphertext);
        prop_assert_eq!(opened, Err(ContentError::Undecryptable));
    }
}
