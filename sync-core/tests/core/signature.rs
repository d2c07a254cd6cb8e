//! ZIP 215: one by one and in a batch, every verifier gives one verdict, on crafted signatures, too.

use bytes::Bytes;
use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use prost::Message as _;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha512};
use sync_core::ids::{AccountId, IdError};
use sync_core::limits;
use sync_core::pb;
use sync_core::record::{
    Kind, RawRecord, Tombstone, VERSION, Verified, VerifyError, verify, verify_as, verify_bytes, verify_many,
};

use crate::fixture::{account, key};

/// The order of the base point, little-endian (RFC 8032).
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Encodings that RFC 8032 forbids, of points of small order: y is not below 2^255 - 19, or x is 0 with a sign.
fn non_canonical_small_points() -> Vec<[u8; 32]> {
    let mut y_is_p = [0xff; 32];
    y_is_p[0] = 0xed;
    y_is_p[31] = 0x7f;
    let mut y_is_p_plus_1 = y_is_p;
    y_is_p_plus_1[0] = 0xee;
    let mut minus_zero = [0; 32];
    minus_zero[0] = 1;
    minus_zero[31] = 0x80;
    let mut with_signs = vec![minus_zero];
    for encoding in [y_is_p, y_is_p_plus_1] {
        let mut signed = encoding;
        signed[31] |= 0x80;
        with_signs.extend([encoding, signed]);
    }
    with_signs
}

/// A record whose author is these bytes.
fn unsigned_by(author: &[u8; 32], at_ms: u64) -> RawRecord {
    let bytes = |b: &[u8; 32]| Bytes::copy_from_slice(b);
    let body = pb::Tombstone { tree: bytes(&[1; 32]), author: bytes(author), acl_head: bytes(&[2; 32]), at_ms };
    let body = Bytes::from(body.encode_to_vec());
    RawRecord { kind: Kind::Tombstone, version: VERSION, body, signature: Bytes::new(), payload: None }
}

/// Signs as RFC 8032 does, but with an R of our choice: `s = r + H(R, A, M) a`.
fn sign_with(mut raw: RawRecord, author: &[u8; 32], secret: Scalar, r: Scalar, r_bytes: [u8; 32]) -> RawRecord {
    let message = [b"headwater/tombstone/sig/v1".as_slice(), raw.id().as_bytes()].concat();
    let hash = Sha512::new().chain_update(r_bytes).chain_update(author).chain_update(&message).finalize();
    let k = Scalar::from_bytes_mod_order_wide(&hash.as_slice().try_into().unwrap());
    raw.signature = [r_bytes, (r + k * secret).to_bytes()].concat().into();
    raw
}

struct Crafted {
    what: String,
    raw: RawRecord,
    valid: bool,
}

/// Signatures at the edges, with the verdict that ZIP 215 gives each.
fn crafted() -> Vec<Crafted> {
    let signing = key(42);
    let secret = signing.to_scalar();
    let nonce = Scalar::from(123_456_789u64);
    let mut cases = Vec::new();
    let mut add = |what: String, raw: RawRecord, valid| cases.push(Crafted { what, raw, valid });
    for (i, torsion_of_key) in EIGHT_TORSION.iter().enumerate() {
        let author = (ED25519_BASEPOINT_POINT * secret + torsion_of_key).compress().to_bytes();
        for (j, torsion_of_r) in EIGHT_TORSION.iter().enumerate() {
            let raw = || unsigned_by(&author, (i * 8 + j) as u64);
            let mixed = |r: Scalar| -> EdwardsPoint { ED25519_BASEPOINT_POINT * r + torsion_of_r };
            let signed = |r: Scalar| sign_with(raw(), &author, secret, r, mixed(r).compress().to_bytes());
            add(format!("key + T{i}, R + T{j}"), signed(nonce), true);
            add(format!("key + T{i}, R = T{j} alone"), signed(Scalar::ZERO), true);
        }
        for (j, r) in non_canonical_small_points().into_iter().enumerate() {
            let raw = unsigned_by(&author, 100 + (i * 8 + j) as u64);
            add(
                format!("key + T{i}, R in non-canonical form {j}"),
                sign_with(raw, &author, secret, Scalar::ZERO, r),
                true,
            );
        }
    }
    let author = *account(42).as_bytes();
    let good = |at| {
        sign_with(
            unsigned_by(&author, at),
            &author,
            secret,
            nonce,
            (ED25519_BASEPOINT_POINT * nonce).compress().to_bytes(),
        )
    };
    let spoiled = |at, spoil: &dyn Fn(&mut [u8])| {
        let mut raw = good(at);
        let mut signature = raw.signature.to_vec();
        spoil(&mut signature);
        raw.signature = signature.into();
        raw
    };
    add("a plain signature".into(), good(500), true);
    add("s + L: the same s, not reduced".into(), spoiled(501, &add_order), false);
    add("a bit of s".into(), spoiled(502, &|s| s[40] ^= 1), false);
    add("a bit of R".into(), spoiled(503, &|s| s[3] ^= 1), false);
    add("the top bits of s".into(), spoiled(504, &|s| s[63] |= 0xe0), false);
    add("R is no point".into(), spoiled(505, &|s| s[..32].copy_from_slice(&no_point())), false);
    let mut cut = good(506);
    cut.signature = cut.signature.slice(..63);
    add("a byte too short".into(), cut, false);
    let mut none = good(507);
    none.signature = Bytes::new();
    add("none".into(), none, false);
    let mut moved = good(508);
    moved.signature = good(509).signature;
    add("of another record".into(), moved, false);
    cases
}

fn add_order(signature: &mut [u8]) {
    let mut carry = 0;
    for (byte, add) in signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
}

/// Bytes that no point has.
fn no_point() -> [u8; 32] {
    (2..=255u8)
        .map(|n| [n; 32])
        .find(|bytes| curve25519_dalek::edwards::CompressedEdwardsY(*bytes).decompress().is_none())
        .expect("about half of all strings are no point")
}

#[test]
fn crafted_signatures_have_the_verdict_of_zip_215() {
    for case in crafted() {
        let expected = if case.valid { Ok(()) } else { Err(VerifyError::BadSignature) };
        assert_eq!(verify_as::<Tombstone>(case.raw.clone()).map(|_| ()), expected, "{}, typed", case.what);
        assert_eq!(verify(case.raw.clone()).map(|_| ()), expected, "{}, alone", case.what);
        // A batch of its own, and one beside an honest record: several generators, since a batch is a random test.
        for seed in 0..4 {
            let mut rng = ChaCha20Rng::seed_from_u64(seed);
            let alone = verify_many(vec![case.raw.clone()], &mut rng);
            assert_eq!(alone[0].clone().map(|_| ()), expected, "{}, in a batch of one, seed {seed}", case.what);
        }
    }
}

#[test]
fn a_batch_says_what_each_verification_says() {
    let pool = crafted();
    let honest: Vec<RawRecord> = (0..40u8)
        .map(|n| {
            let body = Tombstone {
                tree: sync_core::ids::TreeId::from_hash([n; 32]),
                author: account(n),
                acl_head: sync_core::ids::AclId::from_hash([0; 32]),
                at_ms: 0,
            };
            Verified::sign(&body, &key(n), None).unwrap().into_raw()
        })
        .collect();
    for seed in 0..24 {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        // Past the size of one internal batch, once.
        let length = if seed == 0 { limits::VERIFY_BATCH_MAX + 70 } else { 1 + rng.next_u32() as usize % 60 };
        let spoil_in_256 = rng.next_u32() % 64;
        let raws: Vec<RawRecord> = (0..length)
            .map(|_| {
                let pick = rng.next_u32() as usize;
                match rng.next_u32() % 256 {
                    n if n < spoil_in_256 => pool[pick % pool.len()].raw.clone(),
                    n if n % 8 == 0 => {
                        let valid: Vec<_> = pool.iter().filter(|c| c.valid).collect();
                        valid[pick % valid.len()].raw.clone()
                    }
                    _ => honest[pick % honest.len()].clone(),
                }
            })
            .collect();
        let one_by_one: Vec<_> = raws.iter().cloned().map(verify).collect();
        assert_eq!(verify_many(raws, &mut rng), one_by_one, "seed {seed}");
    }
}

#[test]
fn a_bad_form_in_a_batch_is_its_own_fault_only() {
    let good = verify_as::<Tombstone>(crafted().into_iter().find(|c| c.valid).unwrap().raw).unwrap().into_raw();
    let mut cut = good.clone();
    cut.body = cut.body.slice(..cut.body.len() - 1);
    let mut wrong_kind = good.clone();
    wrong_kind.kind = Kind::Receipt;
    let batch = vec![good.clone(), cut, good.clone(), wrong_kind, good];
    let verdicts = verify_many(batch, &mut ChaCha20Rng::seed_from_u64(1));
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false, true]);
    assert!(matches!(verdicts[1], Err(VerifyError::Undecodable(_) | VerifyError::Field { .. } | VerifyError::Id(_))));
}

#[test]
fn small_and_misspelt_keys_enter_nowhere() {
    let small = EIGHT_TORSION.iter().map(|p| p.compress().to_bytes());
    for weak in small.chain(non_canonical_small_points()) {
        let weak_key = Err(IdError::WeakKey { what: "an account id" });
        assert_eq!(AccountId::try_from(weak.as_slice()), weak_key, "{weak:?}");
        let refused = verify(unsigned_by(&weak, 1));
        assert!(matches!(refused, Err(VerifyError::Id(IdError::WeakKey { .. }))), "{weak:?}: {refused:?}");
    }
    // A key with a torsion part has one spelling and a large order: it may enter, and ZIP 215 keeps verdicts equal.
    let mixed = (ED25519_BASEPOINT_POINT * key(42).to_scalar() + EIGHT_TORSION[1]).compress().to_bytes();
    assert!(AccountId::try_from(mixed.as_slice()).is_ok());
}

#[test]
fn a_signature_is_bound_to_kind_context_and_parts() {
    let signature = sync_core::record::sign_bytes(&key(1), "context", &[b"ab", b"c"]);
    let check = |context, parts: &[&[u8]]| verify_bytes(account(1).as_bytes(), context, parts, &signature);
    assert_eq!(check("context", &[b"ab", b"c"]), Ok(()));
    assert_eq!(check("contexts", &[b"ab", b"c"]), Err(VerifyError::BadSignature));
    assert_eq!(check("context", &[b"a", b"bc"]), Err(VerifyError::BadSignature), "parts do not run into each other");
    assert_eq!(check("context", &[b"abc"]), Err(VerifyError::BadSignature));
}
