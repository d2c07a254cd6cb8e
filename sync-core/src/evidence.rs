//! Evidence: what can be shown to anybody against a node, and the judge.
//!
//! A bundle leaves the system as one line of text, `headwater-evidence1` and the base32 of a `pb::Evidence`. Reading it checks
//! every signature; [`judge`] then says what it proves, or why it proves nothing. Only durable receipts of one history of one
//! space by one authority contradict each other: answers that cross on the wire, power cuts that take what was not durable,
//! and recognised restores accuse nobody.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use prost::Message as _;

use crate::ids::{AccountId, AuthorityId, Chain, EntryId, IdError, Seq, SpaceId};
use crate::limits;
use crate::log::Position;
use crate::pb;
use crate::receipt::{ReceiptError, SignedReceipt};
use crate::record::{AclRecord, Kind, RawRecord, Seen, TreeChange, Verified, VerifyError, verify_as};

const TEXT_PREFIX: &str = "headwater-evidence1";

/// A bundle whose signatures were checked. What it proves is for [`judge`] to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// `later` should name `earlier` in `prev`, and have a lower seq.
    Rollback { earlier: SignedReceipt, later: SignedReceipt },
    /// `trail` should lead from another chain than that of `earlier`, at its seq, to `later`.
    Fork { earlier: SignedReceipt, later: SignedReceipt, trail: Trail },
    /// `trail` should lead from another chain than the one that the author of `record` saw, at the seq it saw, to `receipt`.
    Seen { record: SeenRecord, receipt: SignedReceipt, trail: Trail },
}

/// How a log goes on from a chain: the ids of its next entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    pub chain: Chain,
    pub ids: Vec<EntryId>,
}

impl Trail {
    /// Where it leads, from `seq`. A log has one chain at each seq, and a chain has one past: the hash binds both.
    #[must_use]
    pub fn end(&self, seq: Seq) -> Position {
        self.ids.iter().fold(Position { seq, chain: self.chain }, |at, id| at.after(id))
    }
}

/// A record that says what its author had seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenRecord {
    Acl(Verified<AclRecord>),
    Change(Verified<TreeChange>),
}

impl SeenRecord {
    /// Who signed it.
    #[must_use]
    pub const fn author(&self) -> AccountId {
        match self {
            Self::Acl(record) => record.body().author,
            Self::Change(record) => record.body().author,
        }
    }

    /// What its author had seen.
    #[must_use]
    pub const fn seen(&self) -> Option<Seen> {
        match self {
            Self::Acl(record) => record.body().seen,
            Self::Change(record) => record.body().seen,
        }
    }

    /// The space that it says it is of. A change names only its tree.
    const fn space(&self) -> Option<SpaceId> {
        match self {
            Self::Acl(record) => Some(record.body().space),
            Self::Change(_) => None,
        }
    }

    const fn raw(&self) -> &RawRecord {
        match self {
            Self::Acl(record) => record.raw(),
            Self::Change(record) => record.raw(),
        }
    }

    fn verify(raw: RawRecord) -> Result<Self, EvidenceError> {
        match raw.kind {
            Kind::AclRecord => verify_as(raw).map(Self::Acl).map_err(EvidenceError::Record),
            Kind::TreeChange => verify_as(raw).map(Self::Change).map_err(EvidenceError::Record),
            Kind::SpaceHeader
            | Kind::AclRoot
            | Kind::TreeRoot
            | Kind::Tombstone
            | Kind::DeviceCertificate
            | Kind::DeviceList
            | Kind::NodeCertificate
            | Kind::Receipt
            | Kind::HistoryStarted
            | Kind::InviteToken => Err(EvidenceError::NotSeen),
        }
    }
}

/// Why a text is no evidence at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    #[error("this is not evidence: it should begin with \"{TEXT_PREFIX}\"")]
    NotEvidence,
    #[error("the evidence is damaged")]
    Damaged,
    #[error("the evidence is {actual} characters long; the limit is {max}")]
    TooLarge { actual: usize, max: usize },
    #[error("the evidence names {actual} entries; the limit is {max}")]
    TooManyIds { actual: usize, max: usize },
    #[error("an id in the evidence is none")]
    Id(#[from] IdError),
    #[error("the {which} receipt proves nothing")]
    Receipt {
        which: &'static str,
        #[source]
        source: ReceiptError,
    },
    #[error("the record does not verify")]
    Record(#[source] VerifyError),
    #[error("the record is of a kind that says nothing of what its author had seen")]
    NotSeen,
}

/// What a bundle proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// The authority's node signed for `before` on its disk, and later for `after`, which is less, to somebody who had shown
    /// it the first receipt.
    Rollback { authority: AuthorityId, space: SpaceId, before: Seq, after: Seq },
    /// The authority's nodes signed for two logs of one history that differ at `seq` or before.
    Fork { authority: AuthorityId, space: SpaceId, seq: Seq },
    /// The node signed for another log than `author` says it was shown: the node told two stories, or the author lies. A
    /// receipt of the author's decides which.
    WordAgainstWord { authority: AuthorityId, space: SpaceId, author: AccountId, seq: Seq },
}

impl fmt::Display for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollback { authority, space, before, after } => {
                write!(f, "{authority} held {before} entries of {space} on its disk, and later only {after}")
            }
            Self::Fork { authority, space, seq } => {
                write!(f, "{authority} signed for two different logs of {space}: they differ at entry {seq} or before")
            }
            Self::WordAgainstWord { authority, space, author, seq } => write!(
                f,
                "{authority} signed for another log of {space} than {author} says it saw, at entry {seq} or before: \
                 one of the two lies; a receipt that {author} holds says which"
            ),
        }
    }
}

/// Why a bundle with good signatures proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProvesNothing {
    #[error("the receipts are of two authorities")]
    TwoAuthorities,
    #[error("the receipts are for two spaces")]
    TwoSpaces,
    #[error("the receipts are of two histories: a recognised restore lies between them")]
    TwoHistories,
    #[error("the {which} receipt does not claim to be on the disk: a power cut may take what it speaks of")]
    NotDurable { which: &'static str },
    #[error("the later receipt does not name the earlier one: the answers may have crossed on their way")]
    DoesNotName,
    #[error("the later receipt is at entry {after}, which is not before {before}")]
    NotBackwards { before: Seq, after: Seq },
    #[error("the later receipt is at entry {after}, before {before}: there is nothing to compare")]
    Backwards { before: Seq, after: Seq },
    #[error("{actual} ids do not lead from entry {from} to entry {to}")]
    WrongLength { from: Seq, to: Seq, actual: usize },
    #[error("the ids do not lead to the receipt")]
    LeadsElsewhere,
    #[error("both tell the same story")]
    SameStory,
    #[error("the record does not say what its author had seen")]
    NothingSeen,
}

/// Says what a bundle proves.
///
/// # Errors
/// Why it proves nothing.
pub fn judge(evidence: &Evidence) -> Result<Proven, ProvesNothing> {
    match evidence {
        Evidence::Rollback { earlier, later } => judge_rollback(earlier, later),
        Evidence::Fork { earlier, later, trail } => judge_fork(earlier, later, trail),
        Evidence::Seen { record, receipt, trail } => judge_seen(record, receipt, trail),
    }
}

fn judge_rollback(earlier: &SignedReceipt, later: &SignedReceipt) -> Result<Proven, ProvesNothing> {
    comparable(earlier, later)?;
    let (before, after) = (earlier.body().seq, later.body().seq);
    if later.body().prev != Some(earlier.hash()) {
        return Err(ProvesNothing::DoesNotName);
    }
    if after >= before {
        return Err(ProvesNothing::NotBackwards { before, after });
    }
    let (authority, space) = (earlier.body().authority, earlier.body().space);
    Ok(Proven::Rollback { authority, space, before, after })
}

fn judge_fork(earlier: &SignedReceipt, later: &SignedReceipt, trail: &Trail) -> Result<Proven, ProvesNothing> {
    comparable(earlier, later)?;
    let from = earlier.body().seq;
    leads(trail, from, later)?;
    if trail.chain == earlier.body().chain {
        return Err(ProvesNothing::SameStory);
    }
    Ok(Proven::Fork { authority: earlier.body().authority, space: earlier.body().space, seq: from })
}

fn judge_seen(record: &SeenRecord, receipt: &SignedReceipt, trail: &Trail) -> Result<Proven, ProvesNothing> {
    let seen = record.seen().ok_or(ProvesNothing::NothingSeen)?;
    let body = receipt.body();
    if record.space().is_some_and(|space| space != body.space) {
        return Err(ProvesNothing::TwoSpaces);
    }
    if seen.history != body.history {
        return Err(ProvesNothing::TwoHistories);
    }
    if !body.durable {
        return Err(ProvesNothing::NotDurable { which: "only" });
    }
    leads(trail, seen.seq, receipt)?;
    if trail.chain == seen.chain {
        return Err(ProvesNothing::SameStory);
    }
    let (authority, space) = (body.authority, body.space);
    Ok(Proven::WordAgainstWord { authority, space, author: record.author(), seq: seen.seq })
}

fn comparable(earlier: &SignedReceipt, later: &SignedReceipt) -> Result<(), ProvesNothing> {
    let (a, b) = (earlier.body(), later.body());
    if a.authority != b.authority {
        return Err(ProvesNothing::TwoAuthorities);
    }
    if a.space != b.space {
        return Err(ProvesNothing::TwoSpaces);
    }
    if a.history != b.history {
        return Err(ProvesNothing::TwoHistories);
    }
    if !a.durable {
        return Err(ProvesNothing::NotDurable { which: "earlier" });
    }
    if !b.durable {
        return Err(ProvesNothing::NotDurable { which: "later" });
    }
    Ok(())
}

/// The trail begins at `from` and ends exactly where the receipt stands.
fn leads(trail: &Trail, from: Seq, receipt: &SignedReceipt) -> Result<(), ProvesNothing> {
    let to = receipt.body().seq;
    let steps = to.0.checked_sub(from.0).ok_or(ProvesNothing::Backwards { before: from, after: to })?;
    let actual = trail.ids.len();
    if actual as u64 != steps {
        return Err(ProvesNothing::WrongLength { from, to, actual });
    }
    if trail.end(from) == receipt.position() { Ok(()) } else { Err(ProvesNothing::LeadsElsewhere) }
}

// ---- as bytes and as text -------------------------------------------------------------------------------------------

impl Evidence {
    /// The protobuf form.
    #[must_use]
    pub fn to_message(&self) -> pb::Evidence {
        use pb::evidence::Proof;
        let ids = |trail: &Trail| trail.ids.iter().map(|id| id.to_bytes()).collect();
        let proof = match self {
            Self::Rollback { earlier, later } => Proof::Rollback(pb::RollbackEvidence {
                earlier: Some(earlier.to_export()),
                later: Some(later.to_export()),
            }),
            Self::Fork { earlier, later, trail } => Proof::Fork(pb::ForkEvidence {
                earlier: Some(earlier.to_export()),
                later: Some(later.to_export()),
                chain: trail.chain.to_bytes(),
                ids: ids(trail),
            }),
            Self::Seen { record, receipt, trail } => Proof::Seen(pb::SeenEvidence {
                record: Some(record.raw().clone().into()),
                receipt: Some(receipt.to_export()),
                chain: trail.chain.to_bytes(),
                ids: ids(trail),
            }),
        };
        pb::Evidence { proof: Some(proof) }
    }

    /// Checks every signature of a bundle.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_message(message: pb::Evidence) -> Result<Self, EvidenceError> {
        use pb::evidence::Proof;
        match message.proof.ok_or(EvidenceError::Damaged)? {
            Proof::Rollback(proof) => Ok(Self::Rollback {
                earlier: receipt("earlier", proof.earlier)?,
                later: receipt("later", proof.later)?,
            }),
            Proof::Fork(proof) => Ok(Self::Fork {
                earlier: receipt("earlier", proof.earlier)?,
                later: receipt("later", proof.later)?,
                trail: trail(&proof.chain, &proof.ids)?,
            }),
            Proof::Seen(proof) => {
                let record = proof.record.ok_or(EvidenceError::Damaged)?;
                let record = RawRecord::try_from(record).map_err(EvidenceError::Record)?;
                Ok(Self::Seen {
                    record: SeenRecord::verify(record)?,
                    receipt: receipt("only", proof.receipt)?,
                    trail: trail(&proof.chain, &proof.ids)?,
                })
            }
        }
    }

    /// One line of text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let encoded = BASE32_NOPAD.encode(&self.to_message().encode_to_vec());
        format!("{TEXT_PREFIX}{}", encoded.to_ascii_lowercase())
    }

    /// True if a text means to be evidence.
    #[must_use]
    pub fn is_text(text: &str) -> bool {
        text.trim_start().starts_with(TEXT_PREFIX)
    }

    /// Reads what [`Evidence::to_text`] wrote, and checks every signature.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, EvidenceError> {
        let (actual, max) = (text.len(), limits::EVIDENCE_CHARS_MAX);
        if actual > max {
            return Err(EvidenceError::TooLarge { actual, max });
        }
        let encoded = text.trim().strip_prefix(TEXT_PREFIX).ok_or(EvidenceError::NotEvidence)?;
        let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes()).map_err(|_| EvidenceError::Damaged)?;
        Self::from_message(pb::Evidence::decode(bytes.as_slice()).map_err(|_| EvidenceError::Damaged)?)
    }

    /// The authority that it is about.
    #[must_use]
    pub const fn authority(&self) -> AuthorityId {
        match self {
            Self::Rollback { later, .. } | Self::Fork { later, .. } => later.body().authority,
            Self::Seen { receipt, .. } => receipt.body().authority,
        }
    }
}

fn receipt(which: &'static str, export: Option<pb::ReceiptExport>) -> Result<SignedReceipt, EvidenceError> {
    let export = export.ok_or(EvidenceError::Damaged)?;
    SignedReceipt::from_export(export).map_err(|source| EvidenceError::Receipt { which, source })
}

fn trail(chain: &[u8], ids: &[bytes::Bytes]) -> Result<Trail, EvidenceError> {
    let (actual, max) = (ids.len(), limits::EVIDENCE_IDS_MAX);
    if actual > max {
        return Err(EvidenceError::TooManyIds { actual, max });
    }
    let ids = ids.iter().map(|id| EntryId::try_from(id.as_ref())).collect::<Result<_, _>>()?;
    Ok(Trail { chain: Chain::try_from(chain)?, ids })
}
