//! What people hand each other as text: it comes back as it was, and damage has a name.

use data_encoding::BASE32_NOPAD;
use sync_core::ids::{
    AccountId, AclId, AuthorityId, Chain, ChangeId, DeviceId, EntryId, Epoch, HistoryId, IdError, InviteId, NodeId,
    Seq, SpaceId, TombstoneId, TreeId,
};
use sync_core::limits;
use sync_core::receipt::{Accusation, ReceiptError, SignedReceipt, contradiction};
use sync_core::record::{
    InviteMode, InviteToken, InvitedSpace, NodeCertificate, RawRecord, Receipt, Role, Verified, VerifyError,
};
use sync_core::token::{AddressError, NodeAddress, TokenError, Transport, token_from_text, token_to_text};

use crate::fixture::*;

fn token() -> Verified<InviteToken> {
    let space = InvitedSpace {
        space: SpaceId::from_hash([1; 32]),
        invite_secret: [1; 32],
        mode: InviteMode::Approval,
        role: Role::Writer,
        must_see: Vec::new(),
        receipt: Some(receipt(9, 1).to_export()),
    };
    let token = InviteToken {
        authority: authority(),
        addresses: vec!["headwater://somewhere".to_owned()],
        spaces: vec![space],
        inviter: account(1),
        created_ms: 1,
        expires_ms: 2,
    };
    Verified::sign(&token, &key(1), None).unwrap()
}

fn receipt_body(seq: u64, chain: u8) -> Receipt {
    Receipt {
        authority: authority(),
        node: NodeId::from(&key(201).verifying_key()),
        space: SpaceId::from_hash([1; 32]),
        history: HistoryId([1; 16]),
        seq: Seq(seq),
        chain: Chain::from_hash([chain; 32]),
        acl_head: AclId::from_hash([1; 32]),
        epoch: Epoch(0),
        durable: true,
        at_ms: 1,
        nonce: None,
        prev: None,
        set_digest: None,
        trees: Vec::new(),
    }
}

fn certificate(authority_key: u8, node_key: u8) -> Verified<NodeCertificate> {
    let authority = AuthorityId::from(&key(authority_key).verifying_key());
    let node = NodeId::from(&key(node_key).verifying_key());
    Verified::sign(&NodeCertificate { authority, node, not_before_ms: 0 }, &key(authority_key), None).unwrap()
}

fn signed(body: &Receipt) -> SignedReceipt {
    SignedReceipt::pair(Verified::sign(body, &key(201), None).unwrap(), certificate(200, 201)).unwrap()
}

fn receipt(seq: u64, chain: u8) -> SignedReceipt {
    signed(&receipt_body(seq, chain))
}

/// Every text with one character replaced by another one of the alphabet, dropped, or doubled; and every shorter one.
fn damaged(text: &str, prefix: usize) -> Vec<String> {
    let mut found = Vec::new();
    for at in prefix..text.len() {
        let (before, rest) = text.split_at(at);
        let (this, after) = rest.split_at(1);
        let other = if this == "a" { "b" } else { "a" };
        found.extend([
            format!("{before}{other}{after}"),
            format!("{before}{after}"),
            format!("{before}{this}{rest}"),
            before.to_owned(),
        ]);
    }
    // Doubling or dropping one of two equal neighbours at the end can give the text itself.
    found.retain(|t| t != text);
    found
}

#[test]
fn tokens_round_trip_and_damage_has_a_name() {
    let text = token_to_text(&token());
    assert!(text.starts_with("headwater1") && text.is_ascii() && !text.contains(char::is_whitespace));
    assert_eq!(token_from_text(&text), Ok(token()));
    assert_eq!(token_from_text(&format!(" {text}\n")), Ok(token()), "copied with the space around it");
    for broken in damaged(&text, "headwater1".len()) {
        match token_from_text(&broken) {
            Err(TokenError::Damaged | TokenError::Invalid(_)) => {}
            other => panic!("{broken}: {other:?}"),
        }
    }
    for no_token in ["", "hello", "headwater2abc", "Headwater1abc", &text[1..]] {
        assert_eq!(token_from_text(no_token), Err(TokenError::NotAToken), "{no_token}");
    }
    let long = format!("headwater1{}", "a".repeat(limits::TOKEN_CHARS_MAX));
    assert_eq!(token_from_text(&long), Err(TokenError::TooLong { actual: long.len(), max: limits::TOKEN_CHARS_MAX }));
    let as_token = |raw: &RawRecord| format!("headwater1{}", BASE32_NOPAD.encode(&raw.to_vec()).to_ascii_lowercase());
    let other_kind = token_from_text(&as_token(certificate(200, 201).raw()));
    assert!(matches!(other_kind, Err(TokenError::Invalid(VerifyError::WrongKind { .. }))), "{other_kind:?}");
    let newer = RawRecord { version: 2, ..token().into_raw() };
    assert_eq!(token_from_text(&as_token(&newer)), Err(TokenError::Invalid(VerifyError::UnknownVersion(2))));
    let forged = RawRecord { signature: vec![0; 64].into(), ..token().into_raw() };
    assert_eq!(token_from_text(&as_token(&forged)), Err(TokenError::Invalid(VerifyError::BadSignature)));
    assert!(!format!("{:?}", token().body()).contains("secret: ["), "Debug shows no secret");
}

#[test]
fn receipts_round_trip_and_damage_has_a_name() {
    let text = receipt(9, 1).to_text();
    assert_eq!(SignedReceipt::from_text(&text), Ok(receipt(9, 1)));
    assert_eq!(SignedReceipt::from_text(&format!("{text}\r\n")), Ok(receipt(9, 1)));
    for broken in damaged(&text, "headwater-receipt1".len()) {
        match SignedReceipt::from_text(&broken) {
            Err(ReceiptError::Damaged | ReceiptError::Receipt(_) | ReceiptError::Certificate(_)) => {}
            other => panic!("{broken}: {other:?}"),
        }
    }
    for no_receipt in ["", "receipt", &token_to_text(&token()), &text[1..]] {
        assert_eq!(SignedReceipt::from_text(no_receipt), Err(ReceiptError::NotAReceipt));
    }
    let body = Verified::sign(&receipt_body(9, 1), &key(201), None).unwrap();
    let other_node = SignedReceipt::pair(body.clone(), certificate(200, 202));
    assert_eq!(other_node, Err(ReceiptError::WrongNode));
    let other_authority = SignedReceipt::pair(body.clone(), certificate(199, 201));
    assert!(matches!(other_authority, Err(ReceiptError::WrongAuthority { .. })));
    let swapped = SignedReceipt::verify(certificate(200, 201).into_raw(), body.clone().into_raw());
    assert!(matches!(swapped, Err(ReceiptError::Receipt(VerifyError::WrongKind { .. }))), "{swapped:?}");
    let no_certificate = SignedReceipt::verify(body.clone().into_raw(), body.into_raw());
    assert!(matches!(no_certificate, Err(ReceiptError::Certificate(VerifyError::WrongKind { .. }))));
    let mut export = receipt(9, 1).to_export();
    export.node_certificate = None;
    assert_eq!(SignedReceipt::from_export(export), Err(ReceiptError::Damaged));
}

#[test]
fn a_receipt_proves_what_it_says_and_no_more() {
    let chain = Chain::from_hash([1; 32]);
    assert!(receipt(9, 1).proves(Seq(9), Some(chain)));
    assert!(receipt(9, 1).proves(Seq(3), Some(chain)));
    assert!(!receipt(9, 1).proves(Seq(10), Some(chain)), "a later position");
    assert!(!receipt(9, 2).proves(Seq(9), Some(chain)), "another log");
    assert!(!receipt(9, 1).proves(Seq(9), None), "we have no such position");
    let fleeting = signed(&Receipt { durable: false, ..receipt_body(9, 1) });
    assert!(!fleeting.proves(Seq(9), Some(chain)), "not on disk");
}

#[test]
fn contradictions_accuse_and_crossed_answers_do_not() {
    let edited = |seq, chain, edit: &dyn Fn(&mut Receipt)| {
        let mut body = receipt_body(seq, chain);
        edit(&mut body);
        signed(&body)
    };
    let plain = |seq, chain| edited(seq, chain, &|_| {});
    let naming = |seq, older: &SignedReceipt| edited(seq, 1, &|r| r.prev = Some(older.hash()));
    let old = plain(9, 1);
    assert_eq!(contradiction(&old, &plain(9, 2)), Some(Accusation::Fork { seq: Seq(9) }));
    assert_eq!(contradiction(&old, &naming(8, &old)), Some(Accusation::Rollback { before: Seq(9), after: Seq(8) }));
    assert_eq!(contradiction(&old, &plain(8, 1)), None, "answers may cross");
    assert_eq!(contradiction(&old, &naming(9, &old)), None);
    assert_eq!(contradiction(&old, &naming(10, &old)), None);
    let unlike: [&dyn Fn(&mut Receipt); 3] =
        [&|r| r.history = HistoryId([2; 16]), &|r| r.space = SpaceId::from_hash([2; 32]), &|r| r.durable = false];
    for edit in unlike {
        assert_eq!(contradiction(&old, &edited(9, 2, edit)), None);
        assert_eq!(contradiction(&edited(9, 2, edit), &old), None);
    }
}

#[test]
fn addresses_round_trip_and_damage_has_a_name() {
    let auth = authority().to_string();
    for (scheme, transport) in [("headwater", Transport::Tls), ("headwater+plain", Transport::Plain)] {
        for endpoint in ["127.0.0.1:4710", "node.example.org:1", "[::1]:4710", "[fe80::1%eth0]:65535", "läufer:80"] {
            let text = format!("{scheme}://{auth}@{endpoint}");
            let expected = NodeAddress { transport, authority: authority(), endpoint: endpoint.to_owned() };
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(format!("  {text}\n").parse(), Ok(expected.clone()));
            assert_eq!(expected.to_string(), text);
        }
    }
    let form = |text: String| assert!(matches!(text.parse::<NodeAddress>(), Err(AddressError::Form(_))), "{text}");
    for endpoint in [
        "",
        "host",
        "host:",
        ":80",
        "host:70000",
        "host:-1",
        "host:+80",
        "host:x",
        "host: 80",
        "ho st:80",
        "host/a:80",
        "host?a:80",
        "host#a:80",
        "me@host:80",
        "::1:80",
        "[::1:80",
        "[]:80",
        "host:80/",
    ] {
        form(format!("headwater://{auth}@{endpoint}"));
    }
    for text in ["", "headwater://", "https://host:1", &auth, "headwater:/auth@h:1"] {
        form(text.to_owned());
    }
    form(format!("{auth}@host:1"));
    form(format!("headwater://{auth}host:1"));
    let authority_of = |authority: &str| match format!("headwater://{authority}@host:1").parse::<NodeAddress>() {
        Err(AddressError::Authority(error)) => error,
        other => panic!("{authority}: {other:?}"),
    };
    assert!(matches!(authority_of(&account(1).to_string()), IdError::Prefix { .. }));
    assert!(matches!(authority_of(&auth[..auth.len() - 1]), IdError::Encoding { .. } | IdError::Length { .. }));
    assert!(matches!(authority_of(&auth.replace("auth_", "auth_!")), IdError::Encoding { .. }));
    let weak = format!("auth_{}", BASE32_NOPAD.encode(&[0; 32]).to_ascii_lowercase());
    assert!(matches!(authority_of(&weak), IdError::WeakKey { .. }));
}

#[test]
fn every_kind_of_id_has_its_own_text() {
    macro_rules! check {
        ($($id:expr => $type:ty),* $(,)?) => {{
            let mut texts = Vec::new();
            $({
                let id: $type = $id;
                let text = id.to_string();
                assert!(text.starts_with(<$type>::PREFIX));
                assert_eq!(text.parse::<$type>(), Ok(id));
                assert_eq!(<$type>::try_from(id.as_bytes().as_slice()), Ok(id));
                assert!(text.starts_with(&id.short()) && format!("{id:?}") == id.short());
                for broken in damaged(&text, <$type>::PREFIX.len()) {
                    match broken.parse::<$type>() {
                        // Another id; for a key, if the bytes are one.
                        Ok(other) => assert!(other != id && other.to_string() == broken),
                        Err(IdError::Encoding { .. } | IdError::Length { .. } | IdError::WeakKey { .. }) => {}
                        Err(error) => panic!("{broken}: {error}"),
                    }
                }
                let shouted = format!("{}{}", <$type>::PREFIX, text[<$type>::PREFIX.len()..].to_ascii_uppercase());
                assert!(matches!(shouted.parse::<$type>(), Err(IdError::Encoding { .. })), "one id has one spelling");
                for short in [0, 31, 33] {
                    let bytes = vec![1; short];
                    assert!(matches!(<$type>::try_from(bytes.as_slice()), Err(IdError::Length { .. })));
                }
                for other in &texts {
                    let refused = std::convert::identity::<&String>(other).parse::<$type>();
                    assert!(matches!(refused, Err(IdError::Prefix { .. })), "{other}");
                }
                texts.push(text);
            })*
        }};
    }
    check! {
        SpaceId::from_hash([1; 32]) => SpaceId,
        AclId::from_hash([1; 32]) => AclId,
        TreeId::from_hash([1; 32]) => TreeId,
        ChangeId::from_hash([1; 32]) => ChangeId,
        TombstoneId::from_hash([1; 32]) => TombstoneId,
        EntryId::from_hash([1; 32]) => EntryId,
        Chain::from_hash([1; 32]) => Chain,
        account(1) => AccountId,
        DeviceId::from(&key(1).verifying_key()) => DeviceId,
        NodeId::from(&key(1).verifying_key()) => NodeId,
        authority() => AuthorityId,
        invite_id(1) => InviteId,
    }
}
