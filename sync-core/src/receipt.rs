//! Receipts: what a node signed, and how anybody can judge it offline.
//!
//! A [`Receipt`] says *"node N holds space S up to seq n, with chain c and ACL head a, on disk"*. Together with the
//! [`NodeCertificate`] of its node it is a [`SignedReceipt`], which leaves the system as one line of text:
//! `headwater-receipt1` and the base32 of a `ReceiptExport`.

use data_encoding::BASE32_NOPAD;
use prost::Message as _;

use crate::ids::{AuthorityId, Chain, Seq};
use crate::limits;
use crate::log::Position;
use crate::pb;
use crate::record::{NodeCertificate, RawRecord, Receipt, Verified, VerifyError, verify_as};

const TEXT_PREFIX: &str = "headwater-receipt1";

/// Why a receipt proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    #[error("this is not a receipt: it should begin with \"{TEXT_PREFIX}\"")]
    NotAReceipt,
    #[error("the receipt is damaged")]
    Damaged,
    #[error("the receipt does not verify")]
    Receipt(#[source] VerifyError),
    #[error("the node certificate does not verify")]
    Certificate(#[source] VerifyError),
    #[error("the certificate is for another node than the one that signed")]
    WrongNode,
    #[error("the receipt is by {actual}; expected {expected}")]
    WrongAuthority { expected: AuthorityId, actual: AuthorityId },
    #[error("the receipt is {actual} bytes long; the limit is {max}")]
    TooLarge { actual: usize, max: usize },
}

/// A receipt with the authority's word for its node. Private fields: both signatures were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    receipt: Verified<Receipt>,
    certificate: Verified<NodeCertificate>,
}

impl SignedReceipt {
    /// Checks a receipt and its certificate, and that they belong together.
    ///
    /// # Errors
    /// Which of the two is wrong, and how.
    pub fn verify(receipt: RawRecord, certificate: RawRecord) -> Result<Self, ReceiptError> {
        let receipt: Verified<Receipt> = verify_as(receipt).map_err(ReceiptError::Receipt)?;
        let certificate: Verified<NodeCertificate> = verify_as(certificate).map_err(ReceiptError::Certificate)?;
        Self::pair(receipt, certificate)
    }

    /// Puts a receipt and its node's certificate together.
    ///
    /// # Errors
    /// If they do not belong together.
    pub fn pair(receipt: Verified<Receipt>, certificate: Verified<NodeCertificate>) -> Result<Self, ReceiptError> {
        if receipt.body().node != certificate.body().node {
            return Err(ReceiptError::WrongNode);
        }
        let (expected, actual) = (certificate.body().authority, receipt.body().authority);
        if expected != actual {
            return Err(ReceiptError::WrongAuthority { expected, actual });
        }
        let actual = receipt.raw().wire_bytes();
        if receipt.body().trees.is_empty() && actual > limits::RECEIPT_BYTES_MAX {
            return Err(ReceiptError::TooLarge { actual, max: limits::RECEIPT_BYTES_MAX });
        }
        Ok(Self { receipt, certificate })
    }

    /// What was signed.
    #[must_use]
    pub const fn body(&self) -> &Receipt {
        self.receipt.body()
    }

    /// The hash by which a later receipt names this one in `prev`.
    #[must_use]
    pub const fn hash(&self) -> [u8; 32] {
        *self.receipt.id().as_bytes()
    }

    /// The position it speaks of.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { seq: self.body().seq, chain: self.body().chain }
    }

    /// True if the receipt proves that the node holds the log up to `seq`, given our own chain at the receipt's position.
    #[must_use]
    pub fn proves(&self, seq: Seq, own_chain: Option<Chain>) -> bool {
        self.body().durable && self.body().seq >= seq && own_chain == Some(self.body().chain)
    }

    /// The protobuf form with everything that an offline judge needs.
    #[must_use]
    pub fn to_export(&self) -> pb::ReceiptExport {
        pb::ReceiptExport {
            receipt: Some(self.receipt.raw().clone().into()),
            node_certificate: Some(self.certificate.raw().clone().into()),
        }
    }

    /// Checks an export.
    ///
    /// # Errors
    /// As [`SignedReceipt::verify`].
    pub fn from_export(export: pb::ReceiptExport) -> Result<Self, ReceiptError> {
        let raw = |record: Option<pb::SignedRecord>| {
            RawRecord::try_from(record.ok_or(ReceiptError::Damaged)?).map_err(ReceiptError::Receipt)
        };
        Self::verify(raw(export.receipt)?, raw(export.node_certificate)?)
    }

    /// One line of text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let encoded = BASE32_NOPAD.encode(&self.to_export().encode_to_vec());
        format!("{TEXT_PREFIX}{}", encoded.to_ascii_lowercase())
    }

    /// Reads and checks what [`SignedReceipt::to_text`] wrote.
    ///
    /// # Errors
    /// As [`SignedReceipt::verify`], and for text that is none.
    pub fn from_text(text: &str) -> Result<Self, ReceiptError> {
        let encoded = text.trim().strip_prefix(TEXT_PREFIX).ok_or(ReceiptError::NotAReceipt)?;
        let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes()).map_err(|_| ReceiptError::Damaged)?;
        Self::from_export(pb::ReceiptExport::decode(bytes.as_slice()).map_err(|_| ReceiptError::Damaged)?)
    }
}

/// Two receipts of one history that contradict each other or go backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Accusation {
    #[error("the node signed two different logs at seq {seq}")]
    Fork { seq: Seq },
    #[error("the node was at seq {before}, durably, and now says {after}")]
    Rollback { before: Seq, after: Seq },
}

/// What a newer receipt says about an older one. Answers may cross on the wire, so going backwards accuses only when the
/// newer one names the older one in `prev`.
#[must_use]
pub fn contradiction(older: &SignedReceipt, newer: &SignedReceipt) -> Option<Accusation> {
    let (before, after) = (older.body(), newer.body());
    if before.history != after.history || !before.durable || !after.durable || before.space != after.space {
        return None;
    }
    if before.seq == after.seq && before.chain != after.chain {
        return Some(Accusation::Fork { seq: before.seq });
    }
    if after.seq < before.seq && after.prev == Some(older.hash()) {
        return Some(Accusation::Rollback { before: before.seq, after: after.seq });
    }
    None
}
