//! Histories: what a recognised restore of a node leaves behind, and whose words about a log may be compared.
//!
//! A history is one unbroken life of a node's copy of a space. A restore that the operator made with the node's own command
//! begins a new one and leaves a [`HistoryStarted`] for it; any other way back in time is an accusation. Receipts and
//! [`Seen`] speak of one history: what was seen of another is compared only as far as both are the same log.

use crate::ids::{HistoryId, Seq};
use crate::pb;
use crate::record::{HistoryStarted, NodeCertificate, RawRecord, Seen, Verified, VerifyError, verify_as};

/// Why a word about a restore counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("the record or its certificate is missing")]
    Incomplete,
    #[error("the record of the restore does not verify")]
    Started(#[source] VerifyError),
    #[error("the node certificate does not verify")]
    Certificate(#[source] VerifyError),
    #[error("the certificate is not for the node and authority that signed")]
    WrongNode,
}

/// A recognised restore with the authority's word for the node that says so. Private fields: both signatures were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHistory {
    started: Verified<HistoryStarted>,
    certificate: Verified<NodeCertificate>,
}

impl SignedHistory {
    /// Puts a restore and its node's certificate together.
    ///
    /// # Errors
    /// [`HistoryError::WrongNode`].
    pub fn pair(
        started: Verified<HistoryStarted>,
        certificate: Verified<NodeCertificate>,
    ) -> Result<Self, HistoryError> {
        let (by, of) = (started.body(), certificate.body());
        if by.node != of.node || by.authority != of.authority {
            return Err(HistoryError::WrongNode);
        }
        Ok(Self { started, certificate })
    }

    /// Checks an export.
    ///
    /// # Errors
    /// Which half is wrong, and how.
    pub fn from_export(export: pb::HistoryExport) -> Result<Self, HistoryError> {
        let (Some(started), Some(certificate)) = (export.started, export.node_certificate) else {
            return Err(HistoryError::Incomplete);
        };
        let started = RawRecord::try_from(started).and_then(verify_as).map_err(HistoryError::Started)?;
        let certificate = RawRecord::try_from(certificate).and_then(verify_as).map_err(HistoryError::Certificate)?;
        Self::pair(started, certificate)
    }

    /// With everything that a judge needs.
    #[must_use]
    pub fn to_export(&self) -> pb::HistoryExport {
        pb::HistoryExport {
            started: Some(self.started.raw().clone().into()),
            node_certificate: Some(self.certificate.raw().clone().into()),
        }
    }

    /// What was signed.
    #[must_use]
    pub const fn body(&self) -> &HistoryStarted {
        self.started.body()
    }
}

/// How far an earlier history and the present one are the same log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Common {
    /// It is the present one.
    Whole,
    /// The present one grew out of it after this entry.
    UpTo(Seq),
}

/// How far `earlier` and `present` are the same log; `None` if `earlier` is no ancestor.
#[must_use]
pub fn common(present: HistoryId, started: &[HistoryStarted], earlier: HistoryId) -> Option<Common> {
    let (mut at, mut common) = (present, Common::Whole);
    // Each step goes one restore back; more steps than restores would be a circle.
    for _ in 0..=started.len() {
        if at == earlier {
            return Some(common);
        }
        let step = started.iter().find(|s| s.new == at)?;
        at = step.old;
        common = Common::UpTo(match common {
            Common::Whole => step.after_seq,
            Common::UpTo(seq) => seq.min(step.after_seq),
        });
    }
    None
}

/// What a reader does with the `seen` of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// It is of another history, or of a part that a restore took back: it says nothing about this log.
    Never,
    /// The reader's own chain at [`Seen::seq`] must be [`Seen::chain`].
    Chain,
    /// The author had seen a log longer than the one that its record stands in: they cannot be the same.
    Differs,
}

/// What is to be compared of a record that stands at `stands_at`, for a reader whose log has that much in common with the
/// history that was seen.
#[must_use]
pub fn compare(seen: &Seen, common: Option<Common>, stands_at: Seq) -> Compare {
    match common {
        None => Compare::Never,
        Some(Common::UpTo(last)) if seen.seq > last => Compare::Never,
        Some(Common::Whole | Common::UpTo(_)) if seen.seq >= stands_at => Compare::Differs,
        Some(Common::Whole | Common::UpTo(_)) => Compare::Chain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AuthorityId, Chain, NodeId, SpaceId};

    fn history(n: u8) -> HistoryId {
        HistoryId([n; 16])
    }

    fn started(old: u8, new: u8, after: u64) -> HistoryStarted {
        let key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]).verifying_key();
        HistoryStarted {
            authority: AuthorityId::from(&key),
            node: NodeId::from(&key),
            space: SpaceId::from_hash([1; 32]),
            old: history(old),
            new: history(new),
            after_seq: Seq(after),
            chain: Chain::from_hash([2; 32]),
            at_ms: 0,
        }
    }

    #[test]
    fn histories_are_common_up_to_the_earliest_restore_between_them() {
        // 1 -> 2 after 40; 2 -> 3 after 30 (an older backup than the last restore); 2 -> 4 after 60, of another copy.
        let known = [started(1, 2, 40), started(2, 3, 30), started(2, 4, 60)];
        for (present, earlier, expected) in [
            (1, 1, Some(Common::Whole)),
            (3, 3, Some(Common::Whole)),
            (2, 1, Some(Common::UpTo(Seq(40)))),
            (3, 2, Some(Common::UpTo(Seq(30)))),
            (3, 1, Some(Common::UpTo(Seq(30)))),
            (4, 1, Some(Common::UpTo(Seq(40)))),
            (4, 2, Some(Common::UpTo(Seq(60)))),
            (4, 3, None),
            (1, 2, None),
            (3, 9, None),
        ] {
            assert_eq!(common(history(present), &known, history(earlier)), expected, "{earlier} of {present}");
        }
    }

    #[test]
    fn a_circle_of_restores_ends() {
        let circle = [started(1, 2, 5), started(2, 1, 5)];
        assert_eq!(common(history(1), &circle, history(9)), None);
    }

    #[test]
    fn what_was_seen_is_compared_only_where_the_logs_are_one() {
        let seen = |seq| Seen { history: history(1), seq: Seq(seq), chain: Chain::from_hash([0; 32]) };
        let at = |seq, common, stands| compare(&seen(seq), common, Seq(stands));
        assert_eq!(at(5, None, 9), Compare::Never);
        assert_eq!(at(8, Some(Common::Whole), 9), Compare::Chain);
        assert_eq!(at(9, Some(Common::Whole), 9), Compare::Differs);
        assert_eq!(at(10, Some(Common::Whole), 9), Compare::Differs);
        assert_eq!(at(7, Some(Common::UpTo(Seq(7))), 9), Compare::Chain);
        // Taken back by a restore that everybody knows of: accuses nobody, wherever the record stands now.
        assert_eq!(at(8, Some(Common::UpTo(Seq(7))), 9), Compare::Never);
        assert_eq!(at(50, Some(Common::UpTo(Seq(7))), 9), Compare::Never);
    }
}
