//! One body has one encoding, and bytes from outside never do more than fail.

use bytes::Bytes;
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use sync_core::ids::{AclId, AuthorityId, Chain, ChangeId, DeviceId, Epoch, HistoryId, NodeId, Seq, SpaceId, TreeId};
use sync_core::receipt::SignedReceipt;
use sync_core::record::{
    AclContent, AclRecord, AclRoot, Body, ChangeKind, DeviceCertificate, DeviceList, HistoryStarted, InviteMode,
    InviteToken, InvitedSpace, Kind, NodeCertificate, PayloadClaim, RawRecord, Receipt, Role, Seen, SpaceHeader,
    Tombstone, TreeChange, TreeHeads, TreeRoot, VERSION, Verified, VerifyError, Who, WriteRule, verify, verify_as,
    verify_many,
};

use crate::fixture::*;

const KINDS: [Kind; 12] = [
    Kind::SpaceHeader,
    Kind::AclRoot,
    Kind::AclRecord,
    Kind::TreeRoot,
    Kind::TreeChange,
    Kind::Tombstone,
    Kind::DeviceCertificate,
    Kind::DeviceList,
    Kind::NodeCertificate,
    Kind::Receipt,
    Kind::HistoryStarted,
    Kind::InviteToken,
];

/// Verifies as its own kind.
pub(crate) fn verify_kind(raw: RawRecord) -> Result<(), VerifyError> {
    match raw.kind {
        Kind::SpaceHeader => verify_as::<SpaceHeader>(raw).map(|_| ()),
        Kind::AclRoot => verify_as::<AclRoot>(raw).map(|_| ()),
        Kind::AclRecord => verify_as::<AclRecord>(raw).map(|_| ()),
        Kind::TreeRoot => verify_as::<TreeRoot>(raw).map(|_| ()),
        Kind::TreeChange => verify_as::<TreeChange>(raw).map(|_| ()),
        Kind::Tombstone => verify_as::<Tombstone>(raw).map(|_| ()),
        Kind::DeviceCertificate => verify_as::<DeviceCertificate>(raw).map(|_| ()),
        Kind::DeviceList => verify_as::<DeviceList>(raw).map(|_| ()),
        Kind::NodeCertificate => verify_as::<NodeCertificate>(raw).map(|_| ()),
        Kind::Receipt => verify_as::<Receipt>(raw).map(|_| ()),
        Kind::InviteToken => verify_as::<InviteToken>(raw).map(|_| ()),
        Kind::HistoryStarted => verify_as::<HistoryStarted>(raw).map(|_| ()),
    }
}

fn signed<B: Body>(body: &B, n: u8, payload: Option<Bytes>) -> RawRecord {
    Verified::sign(body, &key(n), payload).unwrap().into_raw()
}

fn seen() -> Option<Seen> {
    Some(Seen { history: HistoryId([1; 16]), seq: Seq(3), chain: Chain::from_hash([2; 32]) })
}

/// A record of a kind; which fields a longer spelling could add with their default value; and where messages nest in it.
struct Sample {
    raw: RawRecord,
    absent: &'static [u8],
    nested: &'static [&'static [u8]],
}

fn samples() -> Vec<Sample> {
    let root = acl_root(OWNER);
    let header = header(OWNER, &root);
    let space = sync_core::log::space_id(&header);
    let tree = tree_root(space, 1, WriteRule { who: Who::Account(account(1)), once: true });
    let payload = Bytes::from_static(b"ciphertext");
    let change = TreeChange {
        tree: tree.id().into(),
        parents: vec![ChangeId::from_hash([1; 32]), ChangeId::from_hash([2; 32])],
        acl_head: root.id().into(),
        epoch: Epoch(0),
        author: account(1),
        at_ms: 0,
        seen: seen(),
        kind: ChangeKind::Content,
        nonce: [3; 24],
        payload: PayloadClaim::of(&payload),
    };
    let mut peopled = Space::peopled();
    peopled.act(OWNER, AclContent::CreateInvite(Space::invite(50, InviteMode::Open, Role::Writer)));
    let rotation = peopled.rotation(&[READER]);
    let record = AclRecord {
        space,
        prev: root.id().into(),
        index: 7,
        author: account(1),
        at_ms: 0,
        seen: seen(),
        contents: vec![
            AclContent::CreateInvite(Space::invite(50, InviteMode::Open, Role::Writer)),
            AclContent::RemoveMembers { accounts: vec![account(READER)], rotation },
        ],
    };
    let plain_header = RawRecord { payload: None, ..header.into_raw() };
    let receipt = Receipt {
        authority: authority(),
        node: NodeId::from(&key(201).verifying_key()),
        space,
        history: HistoryId([4; 16]),
        seq: Seq(9),
        chain: Chain::from_hash([5; 32]),
        acl_head: root.id().into(),
        epoch: Epoch(0),
        durable: true,
        at_ms: 1,
        nonce: Some([6; 16]),
        prev: Some([7; 32]),
        set_digest: None,
        trees: vec![(tree.id().into(), [8; 32])],
    };
    let token = InviteToken {
        authority: authority(),
        addresses: vec!["headwater://somewhere".to_owned()],
        spaces: vec![InvitedSpace {
            space,
            invite_secret: [9; 32],
            mode: InviteMode::Open,
            role: Role::Writer,
            must_see: vec![TreeHeads { tree: tree.id().into(), heads: vec![ChangeId::from_hash([1; 32])] }],
            receipt: None,
        }],
        inviter: account(1),
        created_ms: 1,
        expires_ms: 0,
    };
    let device = DeviceId::from(&key(60).verifying_key());
    let certificate = DeviceCertificate { account: account(1), device, at_ms: 0 };
    let list = DeviceList { account: account(1), version: 0, devices: vec![device] };
    let node = NodeCertificate { authority: authority(), node: receipt.node, not_before_ms: 0 };
    let started = HistoryStarted {
        authority: authority(),
        node: receipt.node,
        space,
        old: HistoryId([1; 16]),
        new: HistoryId([2; 16]),
        after_seq: Seq(3),
        chain: Chain::from_hash([5; 32]),
        at_ms: 0,
    };
    let tombstone = Tombstone { tree: tree.id().into(), author: account(1), acl_head: root.id().into(), at_ms: 0 };
    let sample = |raw, absent, nested| Sample { raw, absent, nested };
    vec![
        sample(plain_header, &[], &[]),
        sample(root.into_raw(), &[], &[&[7]]),
        sample(
            signed(&record, 1, None),
            &[5],
            &[&[6], &[7], &[7, 2], &[7, 2, 6], &[7, 11], &[7, 11, 2], &[7, 11, 2, 5]],
        ),
        sample(tree.into_raw(), &[], &[&[5]]),
        sample(signed(&change, 1, Some(payload)), &[4, 6, 8], &[&[7]]),
        sample(signed(&tombstone, 1, None), &[4], &[]),
        sample(signed(&certificate, 1, None), &[3], &[]),
        sample(signed(&list, 1, None), &[2], &[]),
        sample(signed(&node, 200, None), &[3], &[]),
        sample(signed(&receipt, 201, None), &[9], &[&[15]]),
        sample(signed(&started, 201, None), &[6], &[]),
        sample(signed(&token, 1, None), &[6], &[&[3], &[3, 5]]),
    ]
}

// ---- protobuf, by hand -----------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct Field {
    number: u8,
    /// Tag and value.
    bytes: Vec<u8>,
    value_at: usize,
    is_message_like: bool,
}

fn varint(bytes: &[u8]) -> (u64, usize) {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (value, at + 1);
        }
    }
    panic!("a varint without an end")
}

fn to_varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

fn fields(mut bytes: &[u8]) -> Vec<Field> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tag, value_at) = varint(bytes);
        let (value, value_len) = varint(&bytes[value_at..]);
        let is_message_like = tag & 7 == 2;
        let end = value_at + value_len + if is_message_like { usize::try_from(value).unwrap() } else { 0 };
        let number = u8::try_from(tag >> 3).unwrap();
        found.push(Field { number, bytes: bytes[..end].to_vec(), value_at, is_message_like });
        bytes = &bytes[end..];
    }
    found
}

fn joined(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|f| f.bytes.clone()).collect()
}

/// The varint with the same value and one byte more.
fn longer(bytes: &[u8], at: usize) -> Vec<u8> {
    let (_, len) = varint(&bytes[at..]);
    let mut longer = bytes.to_vec();
    longer[at + len - 1] |= 0x80;
    longer.insert(at + len, 0);
    longer
}

/// Other encodings of the same message, by what was done to it. Field numbers that repeat are lists: for those a copy would
/// be another message.
fn re_encodings(message: &[u8], absent: &[u8]) -> Vec<(String, Vec<u8>)> {
    let all = fields(message);
    assert_eq!(joined(&all), message);
    let mut made = Vec::new();
    let mut replace = |what: String, at: usize, with: Vec<u8>| {
        let mut changed = all.clone();
        changed[at].bytes = with;
        made.push((what, joined(&changed)));
    };
    for (at, field) in all.iter().enumerate() {
        replace(format!("long tag of {}", field.number), at, longer(&field.bytes, 0));
        replace(format!("long value or length of {}", field.number), at, longer(&field.bytes, field.value_at));
        replace(format!("unknown field after {}", field.number), at, [&field.bytes[..], &[0xc8, 0x3e, 1]].concat());
        replace(format!("unknown bytes after {}", field.number), at, [&field.bytes[..], &[0xca, 0x3e, 1, 0]].concat());
        if !field.is_message_like {
            replace(format!("{} twice", field.number), at, [&field.bytes[..], &field.bytes].concat());
        }
    }
    for at in 1..all.len() {
        if all[at].number != all[at - 1].number {
            let mut swapped = all.clone();
            swapped.swap(at - 1, at);
            made.push((format!("{} before {}", all[at].number, all[at - 1].number), joined(&swapped)));
        }
    }
    for number in absent {
        let place = all.iter().position(|f| f.number > *number).unwrap_or(all.len());
        let mut spelt = all.clone();
        let bytes = vec![number << 3, 0];
        spelt.insert(place, Field { number: *number, bytes, value_at: 1, is_message_like: false });
        made.push((format!("default of {number}"), joined(&spelt)));
    }
    made
}

/// The bytes of a message in a field.
fn inside(field: &Field) -> &[u8] {
    let (_, len) = varint(&field.bytes[field.value_at..]);
    &field.bytes[field.value_at + len..]
}

/// True if the path goes through this field, in a list perhaps not the first of its number.
fn leads(field: &Field, path: &[u8]) -> bool {
    field.number == path[0] && (path.len() == 1 || fields(inside(field)).iter().any(|f| leads(f, &path[1..])))
}

/// The same, for a message that lies in another one.
fn nested_re_encodings(message: &[u8], path: &[u8]) -> Vec<(String, Vec<u8>)> {
    let all = fields(message);
    let at = all.iter().position(|f| leads(f, path)).unwrap_or_else(|| panic!("no message at {path:?}"));
    let inner = inside(&all[at]);
    let changed = if path.len() == 1 { re_encodings(inner, &[]) } else { nested_re_encodings(inner, &path[1..]) };
    changed
        .into_iter()
        .map(|(what, inner)| {
            let mut outer = all.clone();
            outer[at].bytes = [&[path[0] << 3 | 2][..], &to_varint(inner.len() as u64), &inner].concat();
            (format!("in {}: {what}", path[0]), joined(&outer))
        })
        .collect()
}

#[test]
fn every_other_encoding_of_every_body_is_refused() {
    let samples = samples();
    assert_eq!(samples.len(), KINDS.len(), "every kind that has a body type");
    let mut tried = 0;
    for Sample { raw, absent, nested } in samples {
        assert_eq!(verify_kind(raw.clone()), Ok(()), "{:?}", raw.kind);
        let mut others = re_encodings(&raw.body, absent);
        for path in nested {
            others.extend(nested_re_encodings(&raw.body, path));
        }
        for (what, body) in others {
            assert_ne!(body, raw.body, "{:?}, {what}", raw.kind);
            tried += 1;
            let refused = verify_kind(RawRecord { body: body.into(), ..raw.clone() });
            assert_eq!(refused, Err(VerifyError::NonCanonical), "{:?}, {what}", raw.kind);
        }
    }
    assert!(tried > 400, "{tried}");
}

#[test]
fn an_id_covers_kind_and_body_and_not_the_envelope() {
    for Sample { raw, .. } in samples() {
        let bytes = raw.to_vec();
        assert_eq!(RawRecord::from_slice(&bytes), Ok(raw.clone()));
        for kind in KINDS.into_iter().filter(|k| *k != raw.kind) {
            let lie = RawRecord { kind, ..raw.clone() };
            assert_ne!(lie.id(), raw.id());
            assert!(verify_kind(lie).is_err(), "{:?} as {kind:?}", raw.kind);
        }
        let wrapped = RawRecord::from_slice(&[&bytes[..], &[0xc8, 0x3e, 1]].concat()).unwrap();
        assert_eq!(wrapped.id(), raw.id(), "a re-wrapped envelope is the same record");
        let old = [&bytes[..2], &[0x10, 2], &bytes[4..]].concat();
        assert_eq!(RawRecord::from_slice(&old), Err(VerifyError::UnknownVersion(2)));
        let future = RawRecord { version: 2, ..raw };
        assert!(verify_kind(future).is_err());
    }
    assert_eq!(RawRecord::from_slice(&[8, 99, 16, 1]), Err(VerifyError::UnknownKind(99)));
    assert_eq!(RawRecord::from_slice(&[]), Err(VerifyError::UnknownKind(0)));
}

#[test]
fn payloads_stand_where_they_belong() {
    for Sample { raw, .. } in samples() {
        let with = RawRecord { payload: Some(Bytes::from_static(b"other")), ..raw.clone() };
        assert_eq!(verify_kind(with), Err(VerifyError::BadPayload), "{:?}", raw.kind);
        let without = RawRecord { payload: None, ..raw.clone() };
        assert_eq!(verify_kind(without), Ok(()), "{:?}: what is dropped leaves the rest verifiable", raw.kind);
        if raw.signature.is_empty() {
            let signed = RawRecord { signature: vec![0; 64].into(), payload: None, ..raw };
            assert_eq!(verify_kind(signed), Err(VerifyError::BadSignature));
        }
    }
}

fn spoil(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    for (at, value) in edits {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0usize..12) {
        let _ = RawRecord::from_slice(&bytes).map(verify_kind);
        let body = Bytes::from(bytes);
        let raw = RawRecord { kind: KINDS[kind], version: VERSION, body: body.clone(), signature: body.clone(), payload: Some(body) };
        prop_assert!(verify_kind(raw).is_err());
    }

    #[test]
    fn spoilt_records_never_panic_and_never_verify(
        sample in 0usize..11,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let raw = samples().swap_remove(sample).raw;
        let body = Bytes::from(spoil(raw.body.to_vec(), &edits, cut));
        let spoilt = RawRecord { body: body.clone(), payload: None, ..raw.clone() };
        let verdict = verify_kind(spoilt.clone());
        // What only a hash names has no signature to break: it is another record then.
        prop_assert!(body == raw.body || verdict.is_err() || raw.signature.is_empty());
        let batch = verify_many(vec![spoilt.clone()], &mut ChaCha20Rng::seed_from_u64(1)).swap_remove(0);
        prop_assert_eq!(batch, verify(spoilt));
        let envelope = spoil(raw.to_vec(), &edits, cut);
        let _ = RawRecord::from_slice(&envelope).map(verify_kind);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let texts = [text.clone(), format!("headwater1{text}"), format!("headwater-receipt1{text}"),
                     format!("headwater://{text}"), format!("headwater://auth_{text}@host:1"), format!("acct_{text}")];
        for text in texts {
            prop_assert!(sync_core::token::token_from_text(&text).is_err());
            prop_assert!(SignedReceipt::from_text(&text).is_err());
            prop_assert!(text.parse::<sync_core::token::NodeAddress>().is_err());
            prop_assert!(text.parse::<AuthorityId>().is_err());
            prop_assert!(text.parse::<sync_core::ids::AccountId>().is_err());
            let _ = (text.parse::<SpaceId>(), text.parse::<TreeId>(), text.parse::<AclId>());
        }
    }
}
