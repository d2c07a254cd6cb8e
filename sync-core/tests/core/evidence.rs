//! The judge: what each bundle proves, and every way in which one proves nothing.

use data_encoding::BASE32_NOPAD;
use prost::Message as _;
use sync_core::evidence::{Evidence, EvidenceError, Proven, ProvesNothing, SeenRecord, Trail, judge};
use sync_core::ids::{AuthorityId, Chain, ChangeId, EntryId, Epoch, HistoryId, NodeId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::pb;
use sync_core::receipt::{ReceiptError, SignedReceipt};
use sync_core::record::{
    AclContent, AclRecord, ChangeKind, NodeCertificate, PayloadClaim, Receipt, Seen, TreeChange, Verified, VerifyError,
};

use crate::fixture::*;

const NODE: u8 = 201;
const AUTHORITY: u8 = 200;

fn space() -> SpaceId {
    SpaceId::from_hash([1; 32])
}

fn id(n: u8) -> EntryId {
    EntryId::from_hash([n; 32])
}

/// A log with these entries.
fn log(ids: &[u8]) -> Position {
    ids.iter().fold(Position::start(&space()), |at, n| at.after(&id(*n)))
}

fn signed_by(authority_key: u8, node_key: u8, mut body: Receipt) -> SignedReceipt {
    let authority = AuthorityId::from(&key(authority_key).verifying_key());
    let node = NodeId::from(&key(node_key).verifying_key());
    (body.authority, body.node) = (authority, node);
    let certificate = NodeCertificate { authority, node, not_before_ms: 0 };
    let certificate = Verified::sign(&certificate, &key(authority_key), None).unwrap();
    SignedReceipt::pair(Verified::sign(&body, &key(node_key), None).unwrap(), certificate).unwrap()
}

fn body(at: Position) -> Receipt {
    Receipt {
        authority: authority(),
        node: NodeId::from(&key(NODE).verifying_key()),
        space: space(),
        history: HistoryId([1; 16]),
        seq: at.seq,
        chain: at.chain,
        acl_head: sync_core::ids::AclId::from_hash([1; 32]),
        epoch: Epoch(0),
        durable: true,
        at_ms: 1,
        nonce: None,
        prev: None,
        set_digest: None,
        trees: Vec::new(),
    }
}

fn receipt_with(at: Position, edit: impl FnOnce(&mut Receipt)) -> SignedReceipt {
    let mut body = body(at);
    edit(&mut body);
    signed_by(AUTHORITY, NODE, body)
}

fn receipt(at: Position) -> SignedReceipt {
    receipt_with(at, |_| {})
}

/// A receipt, changed and signed anew.
type Changed = fn(Receipt) -> SignedReceipt;

/// Every change to a receipt that makes two of them speak of different things.
fn unlike() -> [(ProvesNothing, Changed); 3] {
    fn made(body: Receipt) -> SignedReceipt {
        signed_by(AUTHORITY, NODE, body)
    }
    [
        (ProvesNothing::TwoAuthorities, |body| signed_by(210, NODE, body)),
        (ProvesNothing::TwoSpaces, |body| made(Receipt { space: SpaceId::from_hash([2; 32]), ..body })),
        (ProvesNothing::TwoHistories, |body| made(Receipt { history: HistoryId([2; 16]), ..body })),
    ]
}

// ---- rollback -------------------------------------------------------------------------------------------------------

#[test]
fn a_receipt_that_names_a_longer_log_proves_a_rollback() {
    let earlier = receipt(log(&[1, 2, 3]));
    let prev = Some(earlier.hash());
    let later = receipt_with(log(&[1, 2]), |r| r.prev = prev);
    let rollback = Evidence::Rollback { earlier: earlier.clone(), later };
    let proven = Proven::Rollback { authority: authority(), space: space(), before: Seq(3), after: Seq(2) };
    assert_eq!(judge(&rollback), Ok(proven));
    // Whatever the shorter log says: it need not be the beginning of the longer one.
    let elsewhere = receipt_with(log(&[1, 9]), |r| r.prev = prev);
    assert_eq!(judge(&Evidence::Rollback { earlier, later: elsewhere }), Ok(proven));
    // Another node key of the same authority is the same party.
    let earlier = signed_by(AUTHORITY, 202, body(log(&[1, 2, 3])));
    let later = receipt_with(log(&[1, 2]), |r| r.prev = Some(earlier.hash()));
    assert_eq!(judge(&Evidence::Rollback { earlier, later }), Ok(proven));
}

#[test]
fn a_rollback_that_proves_nothing_says_why() {
    let earlier = receipt(log(&[1, 2, 3]));
    let prev = Some(earlier.hash());
    let naming = |at: Position| Receipt { prev, ..body(at) };
    let judged = |later: SignedReceipt| judge(&Evidence::Rollback { earlier: earlier.clone(), later });

    assert_eq!(judged(receipt(log(&[1, 2]))), Err(ProvesNothing::DoesNotName), "crossed answers");
    let other = receipt_with(log(&[1, 2]), |r| r.prev = Some([7; 32]));
    assert_eq!(judged(other), Err(ProvesNothing::DoesNotName));
    for ids in [&[1, 2, 3][..], &[1, 2, 3, 4]] {
        let after = Seq(ids.len() as u64);
        let later = signed_by(AUTHORITY, NODE, naming(log(ids)));
        assert_eq!(judged(later), Err(ProvesNothing::NotBackwards { before: Seq(3), after }));
    }
    for (why, make) in unlike() {
        assert_eq!(judged(make(naming(log(&[1, 2])))), Err(why));
    }
    let fleeting = signed_by(AUTHORITY, NODE, Receipt { durable: false, ..naming(log(&[1, 2])) });
    assert_eq!(judged(fleeting), Err(ProvesNothing::NotDurable { which: "later" }));

    let fleeting = receipt_with(log(&[1, 2, 3]), |r| r.durable = false);
    let later = receipt_with(log(&[1, 2]), |r| r.prev = Some(fleeting.hash()));
    let power_cut = Evidence::Rollback { earlier: fleeting, later };
    assert_eq!(judge(&power_cut), Err(ProvesNothing::NotDurable { which: "earlier" }), "a power cut");
}

// ---- fork -----------------------------------------------------------------------------------------------------------

/// Evidence that a log with `theirs` is not the one that `ours` was signed for.
fn fork(ours: &[u8], theirs: &[u8]) -> Evidence {
    let trail =
        Trail { chain: log(&theirs[..ours.len()]).chain, ids: theirs[ours.len()..].iter().map(|n| id(*n)).collect() };
    Evidence::Fork { earlier: receipt(log(ours)), later: receipt(log(theirs)), trail }
}

#[test]
fn ids_that_lead_from_another_chain_prove_a_fork() {
    let at = |seq| Ok(Proven::Fork { authority: authority(), space: space(), seq: Seq(seq) });
    assert_eq!(judge(&fork(&[1, 2], &[1, 3])), at(2), "at the same seq");
    assert_eq!(judge(&fork(&[1, 2], &[1, 3, 4, 5])), at(2), "later");
    assert_eq!(judge(&fork(&[1, 2], &[3, 2, 4])), at(2), "they parted before");
}

#[test]
fn a_fork_that_proves_nothing_says_why() {
    assert_eq!(judge(&fork(&[1, 2], &[1, 2, 3])), Err(ProvesNothing::SameStory));
    assert_eq!(judge(&fork(&[1, 2], &[1, 2])), Err(ProvesNothing::SameStory));

    let Evidence::Fork { earlier, later, trail } = fork(&[1, 2], &[1, 3, 4]) else { panic!("a fork") };
    let with = |trail: Trail| judge(&Evidence::Fork { earlier: earlier.clone(), later: later.clone(), trail });
    let wrong_length = |actual| Err(ProvesNothing::WrongLength { from: Seq(2), to: Seq(3), actual });
    assert_eq!(with(Trail { ids: Vec::new(), ..trail.clone() }), wrong_length(0));
    assert_eq!(with(Trail { ids: vec![id(4), id(5)], ..trail.clone() }), wrong_length(2));
    assert_eq!(with(Trail { ids: vec![id(5)], ..trail.clone() }), Err(ProvesNothing::LeadsElsewhere));
    let invented = Trail { chain: Chain::from_hash([8; 32]), ..trail.clone() };
    assert_eq!(with(invented), Err(ProvesNothing::LeadsElsewhere), "nobody can invent another past");

    let shorter = Evidence::Fork {
        earlier: receipt(log(&[1, 2, 3])),
        later: receipt(log(&[1, 9])),
        trail: Trail { chain: log(&[1, 9]).chain, ids: Vec::new() },
    };
    assert_eq!(judge(&shorter), Err(ProvesNothing::Backwards { before: Seq(3), after: Seq(2) }));

    for (why, make) in unlike() {
        let later = make(body(log(&[1, 3, 4])));
        assert_eq!(judge(&Evidence::Fork { earlier: earlier.clone(), later, trail: trail.clone() }), Err(why));
    }
    let fleeting = |at| receipt_with(at, |r| r.durable = false);
    let (lost, kept) = (fleeting(log(&[1, 2])), fleeting(log(&[1, 3, 4])));
    let first = Evidence::Fork { earlier: lost, later: later.clone(), trail: trail.clone() };
    assert_eq!(judge(&first), Err(ProvesNothing::NotDurable { which: "earlier" }));
    let second = Evidence::Fork { earlier, later: kept, trail };
    assert_eq!(judge(&second), Err(ProvesNothing::NotDurable { which: "later" }));
}

// ---- what a record's author had seen --------------------------------------------------------------------------------

fn acl_record(seen: Option<Seen>, of: SpaceId) -> SeenRecord {
    let record = AclRecord {
        space: of,
        prev: sync_core::ids::AclId::from_hash([3; 32]),
        index: 2,
        author: account(WRITER),
        at_ms: 1,
        seen,
        contents: vec![AclContent::Leave],
    };
    SeenRecord::Acl(Verified::sign(&record, &key(WRITER), None).unwrap())
}

fn change(seen: Option<Seen>) -> SeenRecord {
    let change = TreeChange {
        tree: TreeId::from_hash([4; 32]),
        parents: vec![ChangeId::from_hash([4; 32])],
        acl_head: sync_core::ids::AclId::from_hash([3; 32]),
        epoch: Epoch(0),
        author: account(WRITER),
        at_ms: 1,
        seen,
        kind: ChangeKind::Content,
        nonce: [0; 24],
        payload: PayloadClaim::of(b"x"),
    };
    SeenRecord::Change(Verified::sign(&change, &key(WRITER), None).unwrap())
}

fn seen(at: Position) -> Option<Seen> {
    Some(Seen { history: HistoryId([1; 16]), seq: at.seq, chain: at.chain })
}

fn seen_evidence(record: SeenRecord, receipt: SignedReceipt, trail: Trail) -> Evidence {
    Evidence::Seen { record, receipt, trail }
}

#[test]
fn what_an_author_saw_is_its_word_against_the_nodes() {
    let trail = Trail { chain: log(&[1, 3]).chain, ids: vec![id(4)] };
    let told = Proven::WordAgainstWord { authority: authority(), space: space(), author: account(WRITER), seq: Seq(2) };
    for record in [acl_record(seen(log(&[1, 2])), space()), change(seen(log(&[1, 2])))] {
        assert_eq!(judge(&seen_evidence(record, receipt(log(&[1, 3, 4])), trail.clone())), Ok(told));
    }
}

#[test]
fn what_an_author_saw_proves_nothing_where_nothing_can_be_compared() {
    let trail = Trail { chain: log(&[1, 3]).chain, ids: vec![id(4)] };
    let judged = |record: &SeenRecord, receipt: SignedReceipt, trail: &Trail| {
        judge(&seen_evidence(record.clone(), receipt, trail.clone()))
    };
    let record = change(seen(log(&[1, 2])));
    let long = || receipt(log(&[1, 3, 4]));
    assert_eq!(judged(&change(None), long(), &trail), Err(ProvesNothing::NothingSeen));
    let elsewhere = acl_record(seen(log(&[1, 2])), SpaceId::from_hash([2; 32]));
    assert_eq!(judged(&elsewhere, long(), &trail), Err(ProvesNothing::TwoSpaces));
    let restored = receipt_with(log(&[1, 3, 4]), |r| r.history = HistoryId([2; 16]));
    assert_eq!(judged(&record, restored, &trail), Err(ProvesNothing::TwoHistories));
    let fleeting = receipt_with(log(&[1, 3, 4]), |r| r.durable = false);
    assert_eq!(judged(&record, fleeting, &trail), Err(ProvesNothing::NotDurable { which: "only" }));
    let before = receipt(log(&[1]));
    assert_eq!(judged(&record, before, &trail), Err(ProvesNothing::Backwards { before: Seq(2), after: Seq(1) }));
    let none = Trail { ids: Vec::new(), ..trail.clone() };
    let wrong = Err(ProvesNothing::WrongLength { from: Seq(2), to: Seq(3), actual: 0 });
    assert_eq!(judged(&record, long(), &none), wrong);
    let other = Trail { ids: vec![id(5)], ..trail.clone() };
    assert_eq!(judged(&record, long(), &other), Err(ProvesNothing::LeadsElsewhere));
    assert_eq!(judged(&change(seen(log(&[1, 3]))), long(), &trail), Err(ProvesNothing::SameStory));
}

// ---- as text --------------------------------------------------------------------------------------------------------

fn text_of(message: &pb::Evidence) -> String {
    format!("headwater-evidence1{}", BASE32_NOPAD.encode(&message.encode_to_vec()).to_ascii_lowercase())
}

fn every_kind() -> [Evidence; 3] {
    let earlier = receipt(log(&[1, 2, 3]));
    let prev = Some(earlier.hash());
    let rollback = Evidence::Rollback { earlier, later: receipt_with(log(&[1, 2]), |r| r.prev = prev) };
    let trail = Trail { chain: log(&[1, 3]).chain, ids: vec![id(4)] };
    let word = seen_evidence(change(seen(log(&[1, 2]))), receipt(log(&[1, 3, 4])), trail);
    [rollback, fork(&[1, 2], &[1, 3, 4]), word]
}

#[test]
fn evidence_comes_back_as_it_was() {
    for evidence in every_kind() {
        let text = evidence.to_text();
        assert!(Evidence::is_text(&text) && !text.contains(char::is_whitespace));
        assert_eq!(Evidence::from_text(&text), Ok(evidence.clone()));
        assert_eq!(Evidence::from_text(&format!(" {text}\n")), Ok(evidence.clone()));
        assert_eq!(evidence.authority(), authority());
    }
}

#[test]
fn any_damage_is_found() {
    for evidence in every_kind() {
        let text = evidence.to_text();
        let verdict = judge(&evidence);
        for at in ("headwater-evidence1".len()..text.len()).step_by(3) {
            let (before, rest) = text.split_at(at);
            let other = if rest.starts_with('a') { "b" } else { "a" };
            for broken in [format!("{before}{other}{}", &rest[1..]), before.to_owned()] {
                // The chain and the ids carry no signature: what a change of them says must not prove anything.
                let judged = Evidence::from_text(&broken).map(|e| judge(&e));
                assert!(broken == text || !matches!(judged, Ok(Ok(_))), "{broken} proves {judged:?}, not {verdict:?}");
            }
        }
    }
    for none in ["", "headwater1abc", &receipt(log(&[1])).to_text()] {
        assert!(!Evidence::is_text(none));
        assert_eq!(Evidence::from_text(none), Err(EvidenceError::NotEvidence));
    }
}

#[test]
fn half_a_bundle_is_none() {
    use pb::evidence::Proof;
    let read = |proof| Evidence::from_text(&text_of(&pb::Evidence { proof }));
    assert_eq!(read(None), Err(EvidenceError::Damaged));
    let whole = receipt(log(&[1])).to_export();
    let no_later = pb::RollbackEvidence { earlier: Some(whole.clone()), later: None };
    assert_eq!(read(Some(Proof::Rollback(no_later))), Err(EvidenceError::Damaged));
    let no_record = pb::SeenEvidence { receipt: Some(whole.clone()), ..pb::SeenEvidence::default() };
    assert_eq!(read(Some(Proof::Seen(no_record))), Err(EvidenceError::Damaged));

    let mut forged = whole.clone();
    forged.receipt.as_mut().unwrap().signature = vec![0; 64].into();
    let with_forged = pb::RollbackEvidence { earlier: Some(whole.clone()), later: Some(forged) };
    let bad = ReceiptError::Receipt(VerifyError::BadSignature);
    assert_eq!(read(Some(Proof::Rollback(with_forged))), Err(EvidenceError::Receipt { which: "later", source: bad }));

    let fork = |chain: Vec<u8>, ids: Vec<bytes::Bytes>| {
        let (earlier, later) = (Some(whole.clone()), Some(whole.clone()));
        read(Some(Proof::Fork(pb::ForkEvidence { earlier, later, chain: chain.into(), ids })))
    };
    assert!(matches!(fork(vec![1; 31], Vec::new()), Err(EvidenceError::Id(_))));
    assert!(matches!(fork(vec![1; 32], vec![vec![1; 33].into()]), Err(EvidenceError::Id(_))));

    let header = founded().header().raw().clone();
    let no_seen = pb::SeenEvidence {
        record: Some(header.into()),
        receipt: Some(whole),
        chain: vec![1; 32].into(),
        ids: Vec::new(),
    };
    assert_eq!(read(Some(Proof::Seen(no_seen))), Err(EvidenceError::NotSeen));
}

#[test]
fn evidence_is_bounded() {
    let long = format!("headwater-evidence1{}", "a".repeat(limits::EVIDENCE_CHARS_MAX));
    let max = limits::EVIDENCE_CHARS_MAX;
    assert_eq!(Evidence::from_text(&long), Err(EvidenceError::TooLarge { actual: long.len(), max }));

    let full = |count: usize| {
        let ids = vec![id(4); count];
        let start = Trail { chain: log(&[1, 3]).chain, ids };
        let later = receipt(start.end(Seq(2)));
        Evidence::Fork { earlier: receipt(log(&[1, 2])), later, trail: start }
    };
    let most = full(limits::EVIDENCE_IDS_MAX).to_text();
    assert!(most.len() <= limits::EVIDENCE_CHARS_MAX, "a full bundle fits its text: {}", most.len());
    assert!(matches!(judge(&Evidence::from_text(&most).unwrap()), Ok(Proven::Fork { .. })));
    let more = full(limits::EVIDENCE_IDS_MAX + 1).to_text();
    let (actual, max) = (limits::EVIDENCE_IDS_MAX + 1, limits::EVIDENCE_IDS_MAX);
    assert_eq!(Evidence::from_text(&more), Err(EvidenceError::TooManyIds { actual, max }));
}
