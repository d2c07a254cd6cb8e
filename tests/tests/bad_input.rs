//! Everything wrong that somebody can send: each case is refused with its own typed code, keeps nothing, and does not hold up
//! what came with it.

use std::time::Duration;

use bytes::Bytes;
use client_sdk::{
    CallError, Client, InviteMode, InviteOptions, JoinError, NodeAddress, NotSyncedCode, ObjectType, Reason,
    ReasonCode, Space, TokenError, WriteError, WriteState,
};
use serde_json::json;
use sync_core::code::Code;
use sync_core::ids::{AclId, AuthorityId, ChangeId, Epoch, TreeId};
use sync_core::log::Reject;
use sync_core::record::{
    AclContent, Body as _, ChangeKind, InviteToken, InvitedSpace, Kind, PayloadClaim, Role, SpaceOptions, TreeRoot,
    Verified, Who, WriteRule,
};
use sync_core::token::{token_from_text, token_to_text};
use sync_core::{limits, pb};
use sync_e2ee::{InviteSecret, Mnemonic};
use sync_proto::v1;
use sync_tests::harness::{NodeProcess, PATIENCE, binary, config};
use sync_tests::hostile::{
    Hostile, Misspelling, Pen, Person, Said, code_of, flipped, id_of, item, said, signed_bytes, some_account,
};
use tonic::Status;

type Outcome = Result<(), Box<dyn std::error::Error>>;

// ---- the stage ------------------------------------------------------------------------------------------------------

/// A node with a space; an admin and a reader, each with an honest and a patched client; and records to spoil or to build on.
struct Stage {
    node: NodeProcess,
    admin: Person,
    reader: Person,
    space: Space,
    patched: Hostile,
    patched_reader: Hostile,
    /// The admin's.
    pen: Pen,
    /// The reader's.
    reading: Pen,
    /// A tree of the space, and its head.
    tree: TreeId,
    head: ChangeId,
    /// The last change there as it was pushed.
    logged: v1::PushItem,
    /// A tree that only the reader may write, one that takes no second change, and one that was purged.
    ruled: Verified<TreeRoot>,
    once: TreeId,
    purged: TreeId,
    /// A change, with its root, of another space of the admin.
    elsewhere: v1::PushItem,
    acl_elsewhere: pb::SignedRecord,
}

impl Stage {
    async fn new() -> Self {
        let node = NodeProcess::start_with(&["--plaintext"]);
        let admin = Person::new("Admin", node.address()).await;
        let reader = Person::new("Reader", node.address()).await;
        let space = admin.client.create_space("Stage").await.expect("a space");
        let invite = InviteOptions { role: Role::Reader, ..InviteOptions::open() };
        let token = space.invite(invite).await.expect("an invite").token;
        reader.client.join(&token).await.expect("joined").ready(PATIENCE).await.expect("ready");
        let other = admin.client.create_space("Elsewhere").await.expect("a space");
        other.await_synced().await.expect("synced");

        let mut patched = admin.patched(node.address()).await;
        let mut patched_reader = reader.patched(node.address()).await;
        let reading = pen(&mut patched_reader, &space).await;
        let there = pen(&mut patched, &other).await;
        let pen = pen(&mut patched, &space).await;
        let (root, logged) = pen.fresh();
        let head = id_of(&logged);
        let once = pen.root(WriteRule { who: Who::Writers, once: true });
        let (gone, gone_first) = pen.fresh();
        let ruled = pen.root(WriteRule { who: Who::Account(reading.account.id()), once: false });
        let stones =
            vec![logged.clone(), pen.first(&once, |_, _| {}), gone_first, item(None, pen.tombstone(gone.id().into()))];
        let said = patched.push(space.id(), stones).await.expect("pushed");
        assert_eq!(said, [Said::Accepted; 4]);
        Self {
            tree: root.id().into(),
            head,
            logged,
            ruled,
            once: once.id().into(),
            purged: gone.id().into(),
            elsewhere: there.fresh().1,
            acl_elsewhere: there.signed(&there.acl(options()), None),
            node,
            admin,
            reader,
            space,
            patched,
            patched_reader,
            pen,
            reading,
        }
    }

    /// A first change of a new tree, spoiled before it is signed.
    fn first(&self, spoil: impl FnOnce(&mut sync_core::record::TreeChange, &mut Bytes)) -> v1::PushItem {
        self.pen.first(&self.pen.root(WriteRule::WRITERS), spoil)
    }

    /// A later change of the tree that is there.
    fn next(&self, spoil: impl FnOnce(&mut sync_core::record::TreeChange, &mut Bytes)) -> v1::PushItem {
        self.pen.next(self.tree, &[self.head], spoil)
    }

    /// A good change whose signed record is spoiled afterwards.
    fn after_signing(&self, spoil: impl FnOnce(&mut pb::SignedRecord)) -> v1::PushItem {
        let mut good = self.next(|_, _| {});
        spoil(good.record.as_mut().expect("an item has a record"));
        good
    }

    /// Any bytes as a change, well signed.
    fn body(&self, body: Vec<u8>, payload: Option<Bytes>) -> v1::PushItem {
        item(None, signed_bytes(Kind::TreeChange, body, payload, self.pen.account.signing_key()))
    }

    /// Any bytes made of a good change's body, well signed.
    fn respelled(&self, respell: impl FnOnce(&[u8]) -> Vec<u8>) -> v1::PushItem {
        let good = self.next(|_, _| {}).record.expect("an item has a record");
        self.body(respell(&good.body), good.payload)
    }

    fn acl(
        &self,
        pen: &Pen,
        content: AclContent,
        spoil: impl FnOnce(&mut sync_core::record::AclRecord),
    ) -> v1::PushItem {
        let mut record = pen.acl(content);
        spoil(&mut record);
        item(None, pen.signed(&record, None))
    }
}

async fn pen(patched: &mut Hostile, space: &Space) -> Pen {
    Pen::of(patched, space.id()).await
}

/// An act that only the owner may do and that changes nothing.
fn options() -> AclContent {
    AclContent::SetOptions { options: SpaceOptions::default() }
}

/// A point of small order: the identity.
const WEAK: [u8; 32] = {
    let mut key = [0; 32];
    key[0] = 1;
    key
};

// ---- what is pushed -------------------------------------------------------------------------------------------------

type Make = fn(&Stage) -> v1::PushItem;

/// What is wrong, with which code it is refused, and how it is made.
const PUSHED: &[(&str, Code, Make)] = &[
    // The bytes.
    ("no record at all", Code::Malformed, |_| v1::PushItem { tag: 0, root: None, record: None }),
    ("noise", Code::Malformed, |s| s.body(vec![0xff; 40], None)),
    ("nothing", Code::Malformed, |s| s.body(Vec::new(), None)),
    ("a body cut off", Code::Malformed, |s| s.respelled(|b| b[..b.len() - 9].to_vec())),
    ("a byte too many", Code::Malformed, |s| s.respelled(|b| [b, &[0]].concat())),
    ("a nonce too short", Code::Malformed, |s| {
        s.respelled(|b| {
            let mut message: pb::TreeChange = prost::Message::decode(b).expect("a change");
            message.nonce = message.nonce.slice(1..);
            prost::Message::encode_to_vec(&message)
        })
    }),
    ("no parents", Code::Malformed, |s| s.next(|c, _| c.parents.clear())),
    ("a parent twice", Code::Malformed, |s| s.next(|c, _| c.parents = vec![c.parents[0]; 2])),
    ("33 parents", Code::Malformed, |s| {
        s.next(|c, _| c.parents = (0..33).map(|n| ChangeId::from_hash([n; 32])).collect())
    }),
    ("a kind from the future", Code::UnknownKind, |s| s.after_signing(|r| r.kind = 99)),
    ("no kind", Code::UnknownKind, |s| s.after_signing(|r| r.kind = 0)),
    ("a kind that is never in a log", Code::Malformed, |s| s.after_signing(|r| r.kind = 7)),
    ("a root alone", Code::UnknownKind, |s| item(None, s.pen.root(WriteRule::WRITERS).into_raw().into())),
    ("a version from the future", Code::UnknownVersion, |s| s.after_signing(|r| r.version = 2)),
    ("a change called a tombstone", Code::NonCanonical, |s| s.after_signing(|r| r.kind = 6)),
    // Too large.
    ("a body too large", Code::TooLarge, |s| {
        // A well-formed unknown field, 4 KiB long.
        s.respelled(|b| [b, &[0x7a, 0x80, 0x20], &[0; 4096][..]].concat())
    }),
    ("a payload too large", Code::TooLarge, |s| {
        s.first(|change, payload| {
            *payload = vec![7; limits::PAYLOAD_BYTES_MAX + 1].into();
            change.payload = PayloadClaim::of(payload);
        })
    }),
    // A second spelling.
    ("unknown field", Code::NonCanonical, |s| s.respelled(|b| Misspelling::UnknownField.of(b, 6))),
    ("duplicate field", Code::NonCanonical, |s| s.respelled(|b| Misspelling::DuplicateField.of(b, 6))),
    ("overlong varint", Code::NonCanonical, |s| s.respelled(|b| Misspelling::OverlongVarint.of(b, 6))),
    ("explicit default", Code::NonCanonical, |s| s.respelled(|b| Misspelling::ExplicitDefault.of(b, 6))),
    ("other order", Code::NonCanonical, |s| s.respelled(|b| Misspelling::OtherOrder.of(b, 6))),
    ("trailing", Code::NonCanonical, |s| s.respelled(|b| Misspelling::Trailing.of(b, 6))),
    // Changed on the way.
    ("a body changed", Code::BadSignature, |s| {
        s.after_signing(|r| {
            let at_ms = r.body.windows(2).position(|w| w == [0x30, 7]).expect("at_ms is 7");
            let mut body = r.body.to_vec();
            body[at_ms + 1] = 8;
            r.body = body.into();
        })
    }),
    ("a payload changed", Code::BadPayload, |s| {
        s.after_signing(|r| r.payload = r.payload.as_ref().map(|p| flipped(p)))
    }),
    ("a payload cut off", Code::BadPayload, |s| {
        s.after_signing(|r| r.payload = r.payload.as_ref().map(|p| p.slice(1..)))
    }),
    ("no payload", Code::PayloadMissing, |s| s.after_signing(|r| r.payload = None)),
    ("a payload on a tombstone", Code::BadPayload, |s| {
        let record = pb::SignedRecord { payload: Some(Bytes::from_static(b"x")), ..s.pen.tombstone(s.tree) };
        item(None, record)
    }),
    ("a signature changed", Code::BadSignature, |s| s.after_signing(|r| r.signature = flipped(&r.signature))),
    ("no signature", Code::BadSignature, |s| s.after_signing(|r| r.signature = Bytes::new())),
    ("a signature cut off", Code::BadSignature, |s| s.after_signing(|r| r.signature = r.signature.slice(1..))),
    ("signed by somebody else", Code::BadSignature, |s| s.next(|c, _| c.author = s.reading.account.id())),
    ("a root that is signed", Code::BadSignature, |s| {
        let mut signed = s.first(|_, _| {});
        signed.root.as_mut().expect("it has a root").signature = Bytes::from_static(&[1; 64]);
        signed
    }),
    ("an author of small order", Code::BadKey, |s| {
        s.respelled(|b| {
            let mut message: pb::TreeChange = prost::Message::decode(b).expect("a change");
            message.author = Bytes::from_static(&WEAK);
            prost::Message::encode_to_vec(&message)
        })
    }),
    // The place.
    ("replayed from another space", Code::WrongSpace, |s| s.elsewhere.clone()),
    ("replayed from another space without its root", Code::MissingRoot, |s| v1::PushItem {
        root: None,
        ..s.elsewhere.clone()
    }),
    ("an ACL record of another space", Code::WrongSpace, |s| item(None, s.acl_elsewhere.clone())),
    ("a missing root", Code::MissingRoot, |s| v1::PushItem { root: None, ..s.first(|_, _| {}) }),
    ("the root of another tree", Code::MissingRoot, |s| v1::PushItem {
        root: s.logged.root.clone(),
        ..s.first(|_, _| {})
    }),
    ("a missing parent", Code::MissingParent, |s| s.next(|c, _| c.parents = vec![ChangeId::from_hash([9; 32])])),
    ("the parent of another tree", Code::MissingParent, |s| s.first(|c, _| c.parents = vec![s.head])),
    ("the root among other parents", Code::BadParents, |s| {
        s.next(|c, _| {
            c.parents.push(sync_core::record::TreeChange::root_as_parent(c.tree));
            c.parents.sort_unstable();
        })
    }),
    ("an unknown ACL head", Code::UnknownAclHead, |s| s.next(|c, _| c.acl_head = AclId::from_hash([9; 32]))),
    ("an epoch to come", Code::StaleEpoch, |s| s.next(|c, _| c.epoch = Epoch(1))),
    ("a reserved kind of change", Code::UnsupportedChangeKind, |s| s.next(|c, _| c.kind = ChangeKind::Snapshot)),
    // The permission.
    ("by a non-member", Code::NotAMember, |s| {
        let stranger = sync_e2ee::AccountKeys::from_mnemonic(&Mnemonic::generate(&mut rand::rng()));
        Pen { account: stranger, known: s.pen.known.clone() }.next(s.tree, &[s.head], |_, _| {})
    }),
    ("by a reader", Code::NotAWriter, |s| s.reading.next(s.tree, &[s.head], |_, _| {})),
    ("a new tree by a reader", Code::NotAWriter, |s| s.reading.fresh().1),
    ("against the write rule", Code::WriteRule, |s| s.pen.first(&s.ruled, |_, _| {})),
    ("a second change where one is all", Code::OnceTaken, |s| s.pen.next(s.once, &[], |_, _| {})),
    ("into a purged tree", Code::TreePurged, |s| s.pen.next(s.purged, &[], |_, _| {})),
    ("a second tombstone", Code::TreePurged, |s| {
        let body = sync_core::record::Tombstone { at_ms: 8, ..tombstone(&s.pen, s.purged) };
        item(None, s.pen.signed(&body, None))
    }),
    ("a tombstone for nothing", Code::MissingRoot, |s| item(None, s.pen.tombstone(TreeId::from_hash([9; 32])))),
    ("a tombstone by a reader", Code::NotAWriter, |s| item(None, s.reading.tombstone(s.tree))),
    // The ACL.
    ("an ACL conflict", Code::AclConflict, |s| s.acl(&s.pen, options(), |r| r.prev = AclId::from_hash([9; 32]))),
    ("a wrong number in the ACL", Code::WrongIndex, |s| s.acl(&s.pen, options(), |r| r.index += 1)),
    ("an ACL record by a non-member", Code::NotAMember, |s| {
        let stranger = sync_e2ee::AccountKeys::from_mnemonic(&Mnemonic::generate(&mut rand::rng()));
        let pen = Pen { account: stranger, known: s.pen.known.clone() };
        s.acl(&pen, options(), |_| {})
    }),
    ("an act above the role", Code::RoleTooLow, |s| s.acl(&s.reading, options(), |_| {})),
    ("nothing to do", Code::Malformed, |s| s.acl(&s.pen, options(), |r| r.contents.clear())),
    ("the owner leaves", Code::OwnerCannotLeave, |s| s.acl(&s.pen, AclContent::Leave, |_| {})),
    ("a role for nobody", Code::NotAMember, |s| {
        let content = AclContent::ChangeRole { account: some_account(), role: Role::Writer, seal: None };
        s.acl(&s.pen, content, |_| {})
    }),
    ("a decision on no request", Code::RequestUnknown, |s| {
        s.acl(&s.pen, AclContent::DeclineJoin { request: AclId::from_hash([9; 32]) }, |_| {})
    }),
    ("an ACL record misspelled", Code::NonCanonical, |s| {
        let body = prost::Message::encode_to_vec(&s.pen.acl(options()).to_message());
        let body = Misspelling::OtherOrder.of(&body, 5);
        item(None, signed_bytes(Kind::AclRecord, body, None, s.pen.account.signing_key()))
    }),
];

fn tombstone(pen: &Pen, tree: TreeId) -> sync_core::record::Tombstone {
    sync_core::record::Tombstone { tree, author: pen.account.id(), acl_head: pen.known.acl.head, at_ms: 7 }
}

/// Each case between two good items of the same message: they are taken, it is refused with its code, and nothing of it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_by_name_and_its_neighbours_are_not() -> Outcome {
    let mut stage = Stage::new().await;
    let mut ids = stage.patched.read(stage.space.id()).await.ids;
    for (name, code, make) in PUSHED {
        let ((before, first), (after, last)) = (stage.pen.fresh(), stage.pen.fresh());
        ids.extend([before.id(), id_of(&first).into(), after.id(), id_of(&last).into()]);
        let items = vec![first, make(&stage), last];
        let said = stage.patched.push(stage.space.id(), items).await?;
        assert_eq!(said, [Said::Accepted, Said::Rejected(*code), Said::Accepted], "{name}");
        assert_eq!(stage.patched.read(stage.space.id()).await.ids, ids, "{name}: the log holds the neighbours alone");
    }
    // Honest members take all of it: nothing void, nothing quarantined, nothing waiting.
    for client in [&stage.admin.client, &stage.reader.client] {
        let space = client.space(stage.space.id())?;
        let synced = space.await_synced().await?;
        assert_eq!(synced.receipt.body().seq.0, ids.len() as u64);
        let status = space.status()?;
        let left = [status.pending, status.refused, status.quarantined, status.void, status.hidden, status.misplaced];
        assert_eq!(left, [0; 6], "{} {status:?}", client.account());
    }
    Ok(())
}

/// The detail of a verdict says what a client needs to go on.
#[tokio::test(flavor = "multi_thread")]
async fn an_acl_conflict_names_the_head() -> Outcome {
    let mut stage = Stage::new().await;
    let stale = stage.acl(&stage.pen, options(), |r| r.prev = AclId::from_hash([9; 32]));
    let before = stage.patched.standing(stage.space.id()).await;
    let verdicts = stage.patched.push_in_detail(stage.space.id(), vec![stale.clone()]).await?;
    assert_eq!(said(&verdicts[0]), Said::Rejected(Code::AclConflict));
    let Some(v1::verdict::Outcome::Rejected(detail)) = &verdicts[0].outcome else { panic!("{verdicts:?}") };
    assert_eq!(detail.acl_head, before.acl_head.to_bytes());
    assert_eq!(detail.log_seq, before.seq.0);

    let record = stale.record.ok_or("a record")?;
    let status = stage.patched.append(stage.space.id(), record).await.expect_err("a conflict");
    assert_eq!((status.code(), code_of(&status)), (tonic::Code::Aborted, Code::AclConflict));
    let failure = sync_proto::status::Failure::from_status(&status).ok_or("typed")?;
    assert_eq!(failure.acl_head, Some(before.acl_head));
    assert_eq!(stage.patched.standing(stage.space.id()).await, before);
    Ok(())
}

/// What was written against an older ACL or with older keys: refused as such, and the SDK's own writes are made anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_date_is_refused_as_that() -> Outcome {
    let mut stage = Stage::new().await;
    let (space, reader) = (stage.space.id(), stage.reading.account.id());
    let promote =
        stage.acl(&stage.pen, AclContent::ChangeRole { account: reader, role: Role::Writer, seal: None }, |_| {});
    assert_eq!(stage.patched.push(space, vec![promote]).await?, [Said::Accepted]);
    // The reader is a writer now, and must have seen that.
    let old = stage.reading.next(stage.tree, &[stage.head], |_, _| {});
    let mut now = pen(&mut stage.patched, &stage.space).await;
    stage.reading.known.acl = now.known.acl.clone();
    let fresh = stage.reading.next(stage.tree, &[stage.head], |_, _| {});
    let said = stage.patched.push(space, vec![old, fresh]).await?;
    assert_eq!(said, [Said::Rejected(Code::StaleAclHead), Said::Accepted]);

    let keys = now.known.ring.keys(Epoch(0)).ok_or("the keys")?;
    let access = sync_e2ee::HistoryAccess::WithHistory;
    let members: Vec<_> = now.known.acl.members.keys().map(|account| (*account, access)).collect();
    let (mut rotation, keys) = sync_e2ee::make_rotation(space, (Epoch(0), keys), &members, &mut rand::rng())?;
    for invite in now.known.acl.invites.keys() {
        let to = sync_e2ee::Recipient::Invite(*invite);
        rotation.invite_seals.push(sync_e2ee::seal_keys(Some(space), Epoch(1), to, &keys, &mut rand::rng())?);
    }
    let rotate = stage.acl(&now, AclContent::RotateKey { rotation }, |_| {});
    let old = now.next(stage.tree, &[stage.head], |_, _| {});
    assert_eq!(stage.patched.push(space, vec![rotate, old]).await?, [Said::Accepted, Said::Rejected(Code::StaleEpoch)]);
    now = pen(&mut stage.patched, &stage.space).await;
    let fresh = now.next(stage.tree, &[stage.head], |_, _| {});
    assert_eq!(stage.patched.push(space, vec![fresh]).await?, [Said::Accepted]);

    // Honest clients go on with the new keys.
    stage.space.objects().put("note", "new", json!({ "text": "after" })).await?;
    stage.space.await_synced().await?;
    let read = stage.reader.client.space(space)?;
    read.await_synced().await?;
    assert_eq!(read.objects().get("note", "new")?.ok_or("the note")?.fields["text"], "after");
    Ok(())
}

// ---- limits of a message --------------------------------------------------------------------------------------------

/// At a limit: taken. One past it: refused as too large.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_exactly() -> Outcome {
    let mut stage = Stage::new().await;
    let space = stage.space.id();
    let full = stage.first(|change, payload| {
        *payload = vec![7; limits::PAYLOAD_BYTES_MAX].into();
        change.payload = PayloadClaim::of(payload);
    });
    assert_eq!(stage.patched.push(space, vec![full.clone()]).await?, [Said::Accepted]);
    let before = stage.patched.standing(space).await;

    let nothing = || v1::PushItem { tag: 0, root: None, record: None };
    let said = stage.patched.push(space, vec![nothing(); limits::PUSH_ITEMS_MAX]).await?;
    assert_eq!(said, [Said::Rejected(Code::Malformed); limits::PUSH_ITEMS_MAX]);
    let status = stage.patched.push(space, vec![nothing(); limits::PUSH_ITEMS_MAX + 1]).await.expect_err("too many");
    assert_eq!((status.code(), code_of(&status)), (tonic::Code::InvalidArgument, Code::TooLarge));

    let five = (0..5).map(|_| full.clone()).collect();
    let status = stage.patched.push(space, five).await.expect_err("a message of more than 1 MiB");
    assert_eq!((status.code(), code_of(&status)), (tonic::Code::InvalidArgument, Code::TooLarge));
    let three = (0..3).map(|_| full.clone()).collect();
    assert_eq!(stage.patched.push(space, three).await?, [Said::Known; 3], "the session still stands");
    assert_eq!(stage.patched.standing(space).await, before);
    Ok(())
}

// ---- who may not ----------------------------------------------------------------------------------------------------

/// What a call answers: the code of its status, or of the failure that came as data.
async fn told<T>(call: impl Future<Output = Result<T, Status>>) -> Option<(tonic::Code, Code)> {
    call.await.err().map(|status| (status.code(), code_of(&status)))
}

/// Knowing the id of a space is worth nothing: every rpc, to an account that is not in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_forbidden_every_call() -> Outcome {
    let mut stage = Stage::new().await;
    let space = stage.space.id().to_bytes();
    let before = stage.patched.standing(stage.space.id()).await;
    let mut stranger = Hostile::stranger(stage.node.address()).await;
    let forbidden = Some((tonic::Code::PermissionDenied, Code::Forbidden));

    let request = stranger.request(v1::SpacePullRequest { space: space.clone(), invite_proof: None });
    assert_eq!(told(stranger.rpc.space_pull(request)).await, forbidden);
    let read = v1::AclReadRequest { space: space.clone(), ..v1::AclReadRequest::default() };
    let request = stranger.request(read);
    let mut rpc = stranger.rpc.clone();
    assert_eq!(told(async { rpc.acl_read(request).await?.into_inner().message().await }).await, forbidden);
    let certify = v1::CertifyRequest {
        space: space.clone(),
        nonce: Bytes::from_static(&[1; 16]),
        ..v1::CertifyRequest::default()
    };
    let request = stranger.request(certify);
    assert_eq!(told(stranger.rpc.certify(request)).await, forbidden);
    let tree = pb::TreeHeads { tree: stage.tree.to_bytes(), heads: Vec::new() };
    let request = stranger.request(v1::FetchRequest { space: space.clone(), trees: vec![tree] });
    assert_eq!(told(async { rpc.fetch(request).await?.into_inner().message().await }).await, forbidden);
    let open = v1::HeadSyncOpen { space: space.clone(), seq: 0, digest: Bytes::from_static(&[1; 32]) };
    let open = v1::HeadSyncRequest { message: Some(v1::head_sync_request::Message::Open(open)) };
    let request = stranger.request(tokio_stream::iter([open]));
    assert_eq!(told(async { rpc.head_sync(request).await?.into_inner().message().await }).await, forbidden);

    // As data, where the call goes on with other spaces.
    let subscribe = v1::Subscribe { space: space.clone(), cursor: 0, ladder: Vec::new() };
    let subscribe = v1::HeadUpdatesRequest { message: Some(v1::head_updates_request::Message::Subscribe(subscribe)) };
    let (keep_open, requests) = tokio::sync::mpsc::channel(1);
    keep_open.send(subscribe).await?;
    let request = stranger.request(tokio_stream::wrappers::ReceiverStream::new(requests));
    let answer = rpc.head_updates(request).await?.into_inner().message().await?.ok_or("an answer")?;
    let Some(v1::head_updates_response::Message::Refused(refused)) = answer.message else { panic!("{answer:?}") };
    assert_eq!(refused.error.map(|e| e.code), Some(Code::Forbidden.number()));
    let said = stranger.push(stage.space.id(), vec![stage.first(|_, _| {}), stage.logged.clone()]).await?;
    assert_eq!(said, [Said::Rejected(Code::Forbidden); 2], "not even a record that is there already");

    // Its own record is judged by the rules, and it is not told where the ACL stands.
    let record = stage.pen.acl(options());
    let own = sync_core::record::AclRecord {
        author: stranger.account.id(),
        prev: AclId::from_hash([9; 32]),
        ..record.clone()
    };
    let own = Pen { account: stranger.account.clone(), known: stage.pen.known.clone() }.signed(&own, None);
    let status = stranger.append(stage.space.id(), own).await.expect_err("refused");
    let failure = sync_proto::status::Failure::from_status(&status).ok_or("typed")?;
    assert_eq!((failure.code, failure.acl_head, failure.log_seq.0), (Code::AclConflict, None, 0));
    assert!(!failure.message.contains("acl_"), "{}", failure.message);
    // The owner's record, passed on by the stranger.
    let status = stranger.append(stage.space.id(), stage.pen.signed(&record, None)).await.expect_err("refused");
    assert_eq!(code_of(&status), Code::Forbidden);
    assert_eq!(stage.patched.standing(stage.space.id()).await, before);

    // Without a session not even that.
    let status = rpc.certify(v1::CertifyRequest::default()).await.expect_err("no session");
    assert_eq!((status.code(), code_of(&status)), (tonic::Code::Unauthenticated, Code::SessionExpired));
    Ok(())
}

/// S58: a reader's write is refused by its own client, and by the node if the client is patched.
#[tokio::test(flavor = "multi_thread")]
async fn s58_a_reader_cannot_write() -> Outcome {
    let mut stage = Stage::new().await;
    let space = stage.reader.client.space(stage.space.id())?;
    let refused = space.objects().put("note", "mine", json!({ "text": "no" })).await.expect_err("a reader");
    assert!(
        matches!(refused, WriteError::Rejected(Reject::NotAWriter { role: Some(Role::Reader), .. })),
        "{refused:?}"
    );
    assert_eq!(refused.code(), Code::NotAWriter.name());
    let status = space.status()?;
    assert_eq!((status.pending, status.refused), (0, 0));
    assert_eq!(space.objects().get("note", "mine")?, None);

    let before = stage.patched.standing(space.id()).await;
    let items = vec![
        stage.reading.next(stage.tree, &[stage.head], |_, _| {}),
        stage.reading.fresh().1,
        item(None, stage.reading.tombstone(stage.tree)),
    ];
    assert_eq!(stage.patched_reader.push(space.id(), items).await?, [Said::Rejected(Code::NotAWriter); 3]);
    let invite = stage.acl(&stage.reading, options(), |_| {});
    assert_eq!(stage.patched_reader.push(space.id(), vec![invite]).await?, [Said::Rejected(Code::RoleTooLow)]);
    assert_eq!(stage.patched.standing(space.id()).await, before);
    space.await_synced().await?;
    Ok(())
}

// ---- what an honest client refuses or is refused --------------------------------------------------------------------

/// The SDK's own refusals, before anything leaves: variant, code, and nothing left behind.
#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_refuses_by_name() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let nobody = some_account();
    let person = Person::with(node.address(), |config| {
        config
            .object_type(ObjectType::new("theirs").rule(move |_| WriteRule { who: Who::Account(nobody), once: false }))
            .object_type(ObjectType::new("ballot").rule(|_| WriteRule { who: Who::Writers, once: true }))
    })
    .await;
    let space = person.client.create_space("Rules").await?;
    let objects = space.objects();
    objects.put("ballot", "taken", json!({ "vote": 1 })).await?;
    objects.put("note", "gone", json!({ "text": "soon" })).await?;
    space.await_synced().await?;
    let mut patched = person.patched(node.address()).await;
    let pen = pen(&mut patched, &space).await;
    let stone = item(None, pen.tombstone(objects.tree_id("note", "gone")?));
    assert_eq!(patched.push(space.id(), vec![stone]).await?, [Said::Accepted]);
    space.await_synced().await?;
    let before = patched.standing(space.id()).await;

    type Is = fn(&WriteError) -> bool;
    let large = "x".repeat(limits::PAYLOAD_BYTES_MAX);
    let cases: [(&str, &str, serde_json::Value, &str, Is); 7] = [
        ("theirs", "a", json!({ "a": 1 }), "WRITE_RULE", |e| {
            matches!(e, WriteError::Rejected(Reject::WriteRule { .. }))
        }),
        ("ballot", "taken", json!({ "vote": 2 }), "ONCE_TAKEN", |e| {
            matches!(e, WriteError::Rejected(Reject::OnceTaken { .. }))
        }),
        ("note", "gone", json!({ "text": "back" }), "TREE_PURGED", |e| {
            matches!(e, WriteError::Rejected(Reject::TreePurged { .. }))
        }),
        ("note", "large", json!({ "text": large }), "TOO_LARGE", |e| {
            matches!(e, WriteError::Content(_) | WriteError::Ops(_))
        }),
        ("note", "list", json!([1]), "NOT_AN_OBJECT", |e| matches!(e, WriteError::NotAnObject)),
        ("note", "", json!({}), "BAD_NAME", |e| matches!(e, WriteError::BadName { .. })),
        ("note", "number", serde_json::from_str("{\"n\":1e400}")?, "INEXACT_NUMBER", |e| {
            matches!(e, WriteError::Canonical(_))
        }),
    ];
    for (object_type, id, fields, code, is) in cases {
        let error = objects.put(object_type, id, fields).await.expect_err(code);
        assert_eq!(error.code(), code, "{error:?}");
        assert!(is(&error), "{error:?}");
        let status = space.status()?;
        assert_eq!((status.pending, status.refused), (0, 0), "{code}");
    }
    assert_eq!(space.await_synced().await?.receipt.body().seq, before.seq);
    assert_eq!(patched.standing(space.id()).await, before);
    Ok(())
}

/// Refused by the node after the client took it in good faith: a named row that an app can list and dismiss.
#[tokio::test(flavor = "multi_thread")]
async fn a_race_for_one_place_has_one_named_loser() -> Outcome {
    let mut node = NodeProcess::start_with(&["--plaintext"]);
    let ballot = || ObjectType::new("ballot").rule(|_| WriteRule { who: Who::Writers, once: true });
    let ann = Person::with(node.address(), |config| config.object_type(ballot())).await;
    let ben = Person::with(node.address(), |config| config.object_type(ballot())).await;
    let hers = ann.client.create_space("Vote").await?;
    let token = hers.invite(InviteOptions::open()).await?.token;
    let his = ben.client.join(&token).await?.ready(PATIENCE).await?.remove(0);
    his.await_synced().await?;
    node.kill();
    let mut writes = Vec::new();
    for (space, vote) in [(&hers, "yes"), (&his, "no")] {
        let write = space.objects().put("ballot", "one", json!({ "vote": vote })).await?.ok_or("a write")?;
        writes.push((space, write));
    }
    node.restart();
    let mut refused = Vec::new();
    for (space, write) in &writes {
        match space.await_durable_within(*write, PATIENCE).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.code, NotSyncedCode::Refused, "{error:?}");
                refused.push((space, *write));
            }
        }
    }
    let [(loser, write)] = refused[..] else { panic!("one of two is refused: {refused:?}") };
    let Some(WriteState::Refused(row)) = loser.write_state(write)? else { panic!("a refused row") };
    assert_eq!(Code::from_number(row.code), Some(Code::OnceTaken));
    assert_eq!(
        loser.await_synced().await.expect_err("a refused row stands in the way").residue[0].code,
        ReasonCode::Refused
    );
    loser.dismiss(write).await?;
    for space in [&hers, &his] {
        space.await_synced().await?;
    }
    let votes = |space: &Space| space.objects().get("ballot", "one").map(|o| o.map(|o| o.fields));
    assert_eq!(votes(&hers)?, votes(&his)?);
    Ok(())
}

// ---- tokens and invites ---------------------------------------------------------------------------------------------

/// Texts that are no invite: which error, and nothing kept.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_invite() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let guest = Person::new("Guest", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let token = space.invite(InviteOptions::open()).await?.token;
    space.await_synced().await?;

    type Is = fn(&TokenError) -> bool;
    let other = token.replacen("headwater1", "headwater2", 1);
    let long = format!("{token}{}", "a".repeat(limits::TOKEN_CHARS_MAX));
    let cases: [(&str, String, Is); 7] = [
        ("empty", String::new(), |e| matches!(e, TokenError::NotAToken)),
        ("a word", "hello".into(), |e| matches!(e, TokenError::NotAToken)),
        ("another prefix", other, |e| matches!(e, TokenError::NotAToken)),
        ("the prefix alone", "headwater1".into(), |e| matches!(e, TokenError::Damaged)),
        ("cut off", token[..token.len() - 20].into(), |e| matches!(e, TokenError::Damaged)),
        ("not base32", format!("headwater1!{}", &token[11..]), |e| matches!(e, TokenError::Damaged)),
        ("oversized", long, |e| matches!(e, TokenError::TooLong { .. })),
    ];
    for (name, text, is) in cases {
        let error = guest.client.join(&text).await.expect_err(name);
        assert_eq!(error.code(), "BAD_TOKEN", "{name}");
        assert!(matches!(&error, JoinError::Token(token) if is(token)), "{name}: {error:?}");
    }
    // One character changed, wherever it stands.
    for at in "headwater1".len()..token.len() {
        let other = if token.as_bytes()[at] == b'a' { "b" } else { "a" };
        let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert!(token_from_text(&changed).is_err(), "character {at}");
    }
    assert_eq!(guest.client.joins()?, []);
    assert_eq!(guest.client.spaces()?, []);
    guest.client.join(&token).await?.ready(PATIENCE).await?;
    Ok(())
}

/// Invites that are whole and do not admit: each with its code, and no state on either side.
#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_does_not_admit_says_why() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let first = Person::new("First", node.address()).await;
    let second = Person::new("Second", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let once = |options: InviteOptions| InviteOptions { max_uses: Some(1), ..options };
    let used_up = space.invite(once(InviteOptions::open())).await?.token;
    let used_up_request = space.invite(once(InviteOptions::approval())).await?.token;
    first.client.join(&used_up).await?.ready(PATIENCE).await?;
    let third = Person::new("Third", node.address()).await;
    third.client.join(&used_up_request).await?;
    let soon = Duration::from_millis(1);
    let expired = space.invite(InviteOptions { expires_in: Some(soon), ..InviteOptions::approval() }).await?.token;
    let revoked = space.invite(InviteOptions::approval()).await?;
    let mut patched = admin.patched(node.address()).await;
    let pen = pen(&mut patched, &space).await;
    let revoke = pen.acl(AclContent::RevokeInvite { invite: revoked.id(), rotation: None });
    patched.append(space.id(), pen.signed(&revoke, None)).await?;
    space.await_synced().await?;

    let good = token_from_text(&space.invite(InviteOptions::approval()).await?.token)?.body().clone();
    let by_admin =
        |token: InviteToken| token_to_text(&Verified::sign(&token, pen.account.signing_key(), None).expect("a token"));
    let with_secret = |secret: [u8; 32]| InviteToken {
        spaces: vec![InvitedSpace { invite_secret: secret, ..good.spaces[0].clone() }],
        ..good.clone()
    };
    let never_made = by_admin(with_secret(InviteSecret::generate(&mut rand::rng()).to_bytes()));
    let expired_body = token_from_text(&expired)?.body().clone();
    let expired_untold = by_admin(InviteToken { expires_ms: 0, ..expired_body });
    let elsewhere = by_admin(InviteToken { authority: sync_tests::hostile::some_authority(), ..good.clone() });
    let nowhere = by_admin(InviteToken {
        spaces: vec![InvitedSpace { space: sync_core::ids::SpaceId::from_hash([9; 32]), ..good.spaces[0].clone() }],
        ..good.clone()
    });
    let wrong_mode = by_admin(InviteToken {
        spaces: vec![InvitedSpace { mode: InviteMode::Open, ..good.spaces[0].clone() }],
        ..good.clone()
    });

    type Is = fn(&JoinError) -> bool;
    let by_node: Is = |e| matches!(e, JoinError::Acl(client_sdk::AclError::Call(CallError::Refused(_))));
    let by_rules: Is = |e| matches!(e, JoinError::Acl(_));
    let cases: [(&str, &str, &str, Is); 8] = [
        ("never made", &never_made, "INVITE_UNKNOWN", by_node),
        ("used up", &used_up, "INVITE_USED_UP", by_node),
        ("used up by requests", &used_up_request, "INVITE_USED_UP", by_node),
        ("revoked", &revoked.token, "INVITE_REVOKED", by_node),
        ("expired", &expired, "INVITE_EXPIRED", by_node),
        ("expired, and its token does not say so", &expired_untold, "INVITE_EXPIRED", by_node),
        ("for another authority", &elsewhere, "WRONG_AUTHORITY", |e| matches!(e, JoinError::WrongAuthority { .. })),
        ("for a space that nobody has", &nowhere, "SPACE_UNKNOWN", by_rules),
    ];
    let before = patched.standing(space.id()).await;
    for (name, token, code, is) in cases {
        let error = second.client.join(token).await.expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error:?}");
        assert!(is(&error), "{name}: {error:?}");
        assert_eq!(second.client.joins()?, [], "{name}");
        assert_eq!(second.client.spaces()?, [], "{name}");
        assert_eq!(patched.standing(space.id()).await, before, "{name}: nothing at the node");
    }
    // What the token says of the mode is a hint; the ACL decides. And an invite is no less good for whoever used it before.
    second.client.join(&wrong_mode).await?;
    space.await_synced().await?;
    space.request_of(second.client.account())?;
    let again = first.client.join(&used_up).await?.ready(PATIENCE).await?;
    assert_eq!(again[0].id(), space.id());
    Ok(())
}

// ---- the node at the other end --------------------------------------------------------------------------------------

/// Nobody listens, or somebody else does: by name, at once, and the writes wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_end_of_a_line() -> Outcome {
    let (ours, other) = (NodeProcess::start(), NodeProcess::start());
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let at = |endpoint: String| NodeAddress { endpoint, ..ours.address().clone() };
    let silent = NodeProcess::start_with(&["--plaintext"]);
    let cases = [
        ("nobody listens", at(free.to_string()), "UNREACHABLE", ReasonCode::NoNode),
        ("another authority", at(other.address().endpoint.clone()), "WRONG_NODE", ReasonCode::WrongNode),
        ("no TLS there", at(silent.address().endpoint.clone()), "NOT_HEADWATER", ReasonCode::NoNode),
    ];
    for (name, address, code, reason) in cases {
        let person = Person::new("Nobody", &address).await;
        let space = person.client.create_space("Offline").await?;
        space.objects().put("note", "kept", json!({ "text": "kept" })).await?;
        let error = person.client.connected(Duration::from_secs(2)).await.expect_err(name);
        assert!(matches!(error, CallError::Offline { .. }), "{name}: {error:?}");
        assert_eq!(error.code(), code, "{name}");
        let failed = space.await_synced_within(Duration::from_secs(1)).await.expect_err(name);
        assert_eq!(failed.code, NotSyncedCode::NoNode, "{name}");
        assert!(Reason::find(&failed.residue, reason).is_some(), "{name}: {:?}", failed.residue);
        assert_eq!(space.status()?.pending, 2, "{name}: the name of the space and the note");
        assert_eq!(space.objects().get("note", "kept")?.ok_or("the note")?.fields["text"], "kept");
    }
    Ok(())
}

/// What the wrong node says of itself does not matter: without the pinned certificate there is no session at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_node_that_is_another_is_caught_by_its_proof() -> Outcome {
    let (ours, other) = (NodeProcess::start_with(&["--plaintext"]), NodeProcess::start_with(&["--plaintext"]));
    let address = NodeAddress { endpoint: other.address().endpoint.clone(), ..ours.address().clone() };
    let person = Person::new("Nobody", &address).await;
    person.client.create_space("Offline").await?;
    let error = person.client.connected(Duration::from_secs(2)).await.expect_err("another node");
    assert_eq!(error.code(), "WRONG_NODE", "{error:?}");
    let authority: AuthorityId = other.address().authority;
    assert_ne!(authority, person.client.node().authority);
    Ok(())
}

// ---- the same at the command line -----------------------------------------------------------------------------------

/// Somebody at a command line, with a data directory.
struct Terminal {
    dir: tempfile::TempDir,
}

/// A wrong command: what it is called here, its words, and what it must answer.
struct Wrong<'a> {
    name: &'a str,
    words: Vec<&'a str>,
    code: &'a str,
    exit: i32,
    text: &'a str,
}

fn wrong<'a>(name: &'a str, words: &[&'a str], code: &'a str, exit: i32, text: &'a str) -> Wrong<'a> {
    Wrong { name, words: words.to_vec(), code, exit, text }
}

impl Terminal {
    fn new(node: &NodeAddress) -> Self {
        let terminal = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        terminal.done(&["init", "--node", &node.to_string(), "--name", "Terminal"]);
        terminal
    }

    fn run(&self, words: &[&str]) -> std::process::Output {
        std::process::Command::new(binary("headwater"))
            .args(words)
            .env("HEADWATER_DATA", self.dir.path())
            .output()
            .expect("the command runs")
    }

    /// A command that succeeds, and what it prints.
    fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// For people: the exit code, and one line that says it on stderr alone. For programs: the same exit code, and one
    /// document with the code.
    fn refuses(&self, wrong: &Wrong<'_>) {
        let Wrong { name, words, code, exit, text } = wrong;
        let told = self.run(words);
        let stderr = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(*exit), "{name}: {stderr}");
        assert!(told.stdout.is_empty(), "{name}: {}", String::from_utf8_lossy(&told.stdout));
        assert!(stderr.starts_with("error: ") && stderr.contains(text), "{name}: {stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");

        let told = self.run(&[words.as_slice(), &["--json"]].concat());
        assert_eq!(told.status.code(), Some(*exit), "{name}");
        let json: serde_json::Value = serde_json::from_slice(&told.stdout)
            .unwrap_or_else(|e| panic!("{name}: {e}: {}", String::from_utf8_lossy(&told.stdout)));
        assert_eq!(json["error"]["code"], *code, "{name}: {json}");
        let message = json["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty() && stderr.contains(message), "{name}: {message:?} is not in {stderr:?}");
    }

    /// What it has: spaces and joins that are under way.
    fn has(&self) -> String {
        self.done(&["space", "list", "--json"])
    }
}

/// Tokens, roles, rules and names that are wrong, as a person meets them.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_wrong() -> Outcome {
    let node = NodeProcess::start_with(&["--plaintext"]);
    let admin = Person::new("Admin", node.address()).await;
    let space = admin.client.create_space("Club").await?;
    let reader = Terminal::new(node.address());
    let stranger = Terminal::new(node.address());
    let for_reader = InviteOptions { role: Role::Reader, max_uses: Some(1), ..InviteOptions::open() };
    let used_up = space.invite(for_reader).await?.token;
    reader.done(&["join", &used_up]);
    let good = space.invite(InviteOptions::approval()).await?.token;
    let soon = InviteOptions { expires_in: Some(Duration::from_millis(1)), ..InviteOptions::approval() };
    let expired = space.invite(soon).await?.token;
    let mut patched = admin.patched(node.address()).await;
    let pen = pen(&mut patched, &space).await;
    let signed =
        |token: InviteToken| token_to_text(&Verified::sign(&token, pen.account.signing_key(), None).expect("a token"));
    let body = token_from_text(&good)?.body().clone();
    let secret = InviteSecret::generate(&mut rand::rng()).to_bytes();
    let spaces = vec![InvitedSpace { invite_secret: secret, ..body.spaces[0].clone() }];
    let never_made = signed(InviteToken { spaces, ..body.clone() });
    let elsewhere = signed(InviteToken { authority: sync_tests::hostile::some_authority(), ..body });

    let cut = &good[..good.len() - 20];
    let at = good.len() - 60;
    let other = if good.as_bytes()[at] == b'a' { "b" } else { "a" };
    let changed = format!("{}{other}{}", &good[..at], &good[at + 1..]);
    let prefix = good.replacen("headwater1", "headwater2", 1);
    let long = format!("{good}{}", "a".repeat(limits::TOKEN_CHARS_MAX));
    let joins = [
        wrong("no token", &["join", ""], "BAD_TOKEN", 5, "not an invite"),
        wrong("cut off", &["join", cut], "BAD_TOKEN", 5, "damaged"),
        wrong("changed", &["join", &changed], "BAD_TOKEN", 5, "invite"),
        wrong("another prefix", &["join", &prefix], "BAD_TOKEN", 5, "not an invite"),
        wrong("oversized", &["join", &long], "BAD_TOKEN", 5, "the limit is 65536"),
        wrong("never made", &["join", &never_made], "INVITE_UNKNOWN", 1, "no invite"),
        wrong("used up", &["join", &used_up], "INVITE_USED_UP", 1, "no uses left"),
        wrong("expired", &["join", &expired], "INVITE_EXPIRED", 1, "expired"),
        wrong("another authority", &["join", &elsewhere], "WRONG_AUTHORITY", 1, "the node of"),
    ];
    let (nothing, before) = (stranger.has(), patched.standing(space.id()).await);
    for case in &joins {
        stranger.refuses(case);
        assert_eq!(stranger.has(), nothing, "{}: nothing is kept", case.name);
    }
    assert_eq!(patched.standing(space.id()).await, before, "and nothing at the node");

    let id = space.id().to_string();
    let nobody = some_account().to_string();
    let rules = [
        wrong("a reader writes", &["put", "note", "x", "a=1", "-s", &id], "NOT_A_WRITER", 1, "may not write here"),
        wrong("a reader invites", &["invite", "-s", &id], "ROLE_TOO_LOW", 1, "needs more than the role reader"),
        wrong("no such object", &["get", "note", "none", "-s", &id], "NOT_FOUND", 3, "no note"),
        wrong("no such space", &["get", "note", "none", "-s", "none"], "NOT_FOUND", 3, "no space"),
        wrong("no such request", &["approve", &nobody, "-s", &id], "NOT_FOUND", 3, "not waiting for an answer"),
        wrong("no account", &["approve", "acct_x", "-s", &id], "USAGE", 2, "neither an account"),
        wrong("no address", &["init", "--node", "nonsense"], "USAGE", 2, "looks like"),
    ];
    reader.done(&["await-synced"]);
    let had = reader.has();
    for case in &rules {
        reader.refuses(case);
    }
    assert_eq!(reader.has(), had);
    assert_eq!(patched.standing(space.id()).await, before);

    // A writer, and a tree that is gone.
    let writer = Terminal::new(node.address());
    writer.done(&["join", &space.invite(InviteOptions::open()).await?.token]);
    writer.done(&["put", "note", "gone", "a=1", "--wait"]);
    let pen = self::pen(&mut patched, &space).await;
    let stone = item(None, pen.tombstone(space.objects().tree_id("note", "gone")?));
    assert_eq!(patched.push(space.id(), vec![stone]).await?, [Said::Accepted]);
    writer.done(&["sync", "--once"]);
    let large = writer.dir.path().join("large.json");
    std::fs::write(&large, json!({ "text": "x".repeat(limits::PAYLOAD_BYTES_MAX) }).to_string())?;
    let large = format!("@{}", large.display());
    let before = patched.standing(space.id()).await;
    let writes = [
        wrong("purged", &["put", "note", "gone", "a=2"], "TREE_PURGED", 1, "was purged"),
        wrong("too large", &["put", "note", "large", &large], "TOO_LARGE", 2, "the limit is"),
        wrong("nothing to delete", &["rm", "note", "none"], "NO_SUCH_OBJECT", 3, "no note"),
    ];
    for case in &writes {
        writer.refuses(case);
    }
    writer.done(&["await-synced"]);
    assert_eq!(patched.standing(space.id()).await, before);
    Ok(())
}

/// The node is not there, or is another; the directory is empty, or taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_not_there() -> Outcome {
    let mut node = NodeProcess::start();
    let other = NodeProcess::start();
    let writer = Terminal::new(node.address());
    writer.done(&["space", "create", "Mine"]);
    let astray = NodeAddress { endpoint: other.address().endpoint.clone(), ..node.address().clone() };
    let lost = Terminal::new(&astray);
    lost.done(&["space", "create", "Mine", "--no-wait"]);
    lost.refuses(&wrong("another node", &["await-synced", "--timeout", "2s"], "NO_NODE", 4, "WRONG_NODE"));

    node.kill();
    writer.refuses(&wrong("no node", &["await-synced", "--timeout", "2s"], "NO_NODE", 4, "cannot reach"));
    writer.done(&["put", "note", "kept", "text=kept", "--no-wait"]);
    assert!(writer.done(&["get", "note", "kept"]).contains("kept"), "what was written offline is there");

    let empty = Terminal { dir: tempfile::tempdir()? };
    empty.refuses(&wrong("no account", &["whoami"], "NO_ACCOUNT", 6, "no account"));
    let held = Client::open(config(writer.dir.path())).await?;
    writer.refuses(&wrong("taken", &["status"], "IN_USE", 6, "could not be opened"));
    held.close().await;
    writer.done(&["status"]);
    Ok(())
}
