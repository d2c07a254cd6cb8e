//! Reasons as people read them: what is not synced, what it comes from below it, and what can be done.

use client_sdk::{Example, Reason};

use crate::output::{Paint, some_of};
use crate::text;

/// Reasons, one below the other, each line indented; empty for none. A cause that several have in common is told once.
pub(crate) fn render(paint: Paint, reasons: &[Reason]) -> String {
    let mut told = Vec::new();
    some_of(reasons, |reason| one(paint, reason, Place { depth: 1, lead: "" }, &mut told)).concat()
}

/// Where a reason stands in the tree.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    lead: &'static str,
}

impl Place {
    fn line(self, more: usize, text: &str) -> String {
        format!("\n{:indent$}{text}", "", indent = (self.depth + more) * 2)
    }

    fn below(self) -> Self {
        Self { depth: self.depth + 1, lead: "because " }
    }
}

fn one<'a>(paint: Paint, reason: &'a Reason, place: Place, told: &mut Vec<&'a Reason>) -> String {
    let known = told.iter().any(|t| (t.code, &t.scope, &t.detail) == (reason.code, &reason.scope, &reason.detail));
    let (lead, name) = (paint.dim(place.lead), paint.yellow(reason.code.name()));
    if known {
        return place.line(0, &format!("{lead}{name} {}: as above", reason.scope));
    }
    told.push(reason);
    // Of many things it says what is the matter with the first, or with all of them.
    let of_first = reason.examples.first().is_some_and(|first| first.detail == reason.detail);
    let of = if of_first { ", the first" } else { "" };
    let detail = format!("{}{of}: {}", reason.scope, reason.detail);
    let mut text = place.line(0, &format!("{lead}{name} {detail}"));
    if let Some(line) = history(reason) {
        text.push_str(&place.line(1, &line));
    }
    for example in &reason.examples {
        text.push_str(&place.line(1, &example_text(example)));
    }
    let more = reason.count.saturating_sub(reason.examples.len() as u64);
    if !reason.examples.is_empty() && more > 0 {
        text.push_str(&place.line(1, &format!("… and {more} more")));
    }
    text.push_str(&place.line(1, &paint.dim(reason.suggestion)));
    for cause in &reason.causes {
        text.push_str(&one(paint, cause, place.below(), told));
    }
    text
}

/// Since when, how often tried, and when again.
fn history(reason: &Reason) -> Option<String> {
    let since = reason.since_ms.map(|at| format!("since {}", text::moment(at)));
    let tried = tries(reason.attempts, reason.next_retry_ms);
    match (since, tried) {
        (Some(since), Some(tried)) => Some(format!("{since}, {tried}")),
        (one, other) => one.or(other),
    }
}

fn tries(attempts: u32, next_retry_ms: Option<u64>) -> Option<String> {
    if attempts == 0 {
        return None;
    }
    let tried = format!("tried {}", text::count(attempts.try_into().unwrap_or(usize::MAX), "time"));
    Some(match next_retry_ms {
        Some(ms) => format!("{tried}, again in {}", text::duration(ms)),
        None => tried,
    })
}

fn example_text(example: &Example) -> String {
    let tried = tries(example.attempts, example.next_retry_ms).map_or_else(String::new, |t| format!(" ({t})"));
    format!("- {}: {}{tried}", example.scope, example.detail)
}

#[cfg(test)]
pub(crate) use tests::of;

#[cfg(test)]
mod tests {
    use client_sdk::ReasonCode as Code;

    use super::*;

    fn reason(code: Code, scope: &str, detail: &str) -> Reason {
        Reason {
            code,
            scope: scope.to_owned(),
            detail: detail.to_owned(),
            count: 1,
            since_ms: None,
            attempts: 0,
            next_retry_ms: None,
            suggestion: code.suggestion(),
            examples: Vec::new(),
            causes: Vec::new(),
        }
    }

    fn example(n: u32, detail: &str) -> Example {
        let scope = format!("write {n} of tree_4jkq");
        Example { scope, detail: detail.to_owned(), attempts: n % 3, next_retry_ms: Some(u64::from(n) * 500) }
    }

    /// A reason of each code, as the SDK makes it.
    pub(crate) fn of(code: Code) -> Reason {
        let space = "space_m2xw";
        let refused = "connection refused (os error 111)";
        let offline = || {
            let mut reason = reason(Code::NoNode, space, refused);
            (reason.attempts, reason.next_retry_ms, reason.since_ms) = (4, Some(3_375), Some(1_700_000_000_000));
            reason
        };
        match code {
            Code::NoNode => offline(),
            Code::WrongNode => reason(code, space, "this node belongs to auth_7qlz, not to auth_kk3a"),
            Code::SessionRefused => reason(code, space, "DEVICE_REVOKED: the account took this device off its list"),
            Code::NotRegistered => {
                Reason { causes: vec![offline()], ..reason(code, space, "made here, not on the node yet") }
            }
            Code::Forbidden => reason(code, space, "this account may not do that in space_m2xw"),
            Code::NotFresh => reason(code, space, "the node has yet to answer"),
            Code::Fetching => Reason {
                attempts: 5,
                next_retry_ms: Some(7_594),
                since_ms: Some(1_700_000_000_000),
                ..reason(code, "tree_4jkq", "the connection broke: no route")
            },
            Code::Behind => Reason { causes: vec![offline()], ..reason(code, space, "here 40 of 52") },
            Code::Pending => Reason {
                count: 12,
                examples: (1..=5).map(|n| example(n, "waits for the node")).collect(),
                causes: vec![offline()],
                ..reason(code, "12 writes", "waits for the node")
            },
            Code::Retrying => Reason {
                attempts: 2,
                next_retry_ms: Some(1_500),
                ..reason(code, "write 7 of tree_4jkq", "there is no room on the node's disk")
            },
            Code::NotDurable => reason(code, "write 7 of tree_4jkq", "logged at 51, disk not confirmed"),
            Code::Refused => reason(code, "write 7 of tree_4jkq", "acct_h7ra may not write here (its role: reader)"),
            Code::Quarantined => {
                reason(code, "chg_a3bd of tree_4jkq", "parent chg_77qa is not in the log of tree_4jkq")
            }
            Code::ContentMissing => Reason {
                causes: vec![of(Code::Fetching)],
                ..reason(code, "chg_a3bd of tree_4jkq", "the node sent the change without its content")
            },
            Code::Panicked => {
                reason(code, "chg_a3bd of tree_4jkq", "this program panicked over it: index out of bounds")
            }
            Code::Missing => {
                Reason { causes: vec![of(Code::Behind)], ..reason(code, "profile/mia", "nobody's write of it arrived") }
            }
            Code::NotAMember => reason(code, space, "removed by an admin, at entry 30"),
            Code::Leaving => reason(code, space, "kept here, not on the node yet"),
            Code::Unreadable => reason(code, "tree_4jkq", "all of it was written before this member's keys begin"),
            Code::KeyOwed => reason(code, space, "of epoch 3: no key in the log opens it"),
            Code::Faulted => reason(code, space, "the node logged one record twice, at 4 and 9"),
            Code::Rewound => {
                reason(code, space, "the node's log ends at 20 and agrees with ours up to 20; ours ends at 31")
            }
            Code::RolledBack => reason(
                code,
                "accusation 1 of space_m2xw",
                "the node was at entry 31, durably: auth_7qlz held 31 entries of space_m2xw on its disk, and later only 20",
            ),
            Code::LostByNode => Reason {
                count: 2,
                examples: [
                    (
                        "change of tree_4jkq by acct_h7ra, entry 30 before",
                        "STALE_EPOCH: the change is of epoch 1; the space is at epoch 2",
                    ),
                    (
                        "RequestJoin by acct_d2ue, entry 31 before",
                        "INVITE_EXPIRED: invite inv_w3pc expired at 1700000000000 ms",
                    ),
                ]
                .map(|(scope, detail)| Example {
                    scope: scope.to_owned(),
                    detail: detail.to_owned(),
                    attempts: 0,
                    next_retry_ms: None,
                })
                .to_vec(),
                ..reason(code, space, "2 entries that the node lost cannot stand in its log again")
            },
            Code::Recovering => reason(
                code,
                space,
                "the node was restored from a backup and first takes back what it lost: 540 s are left",
            ),
            Code::Forked => {
                reason(code, "accusation 1 of space_m2xw", "at entry 31 the node signed another log than it sent")
            }
            Code::Different => reason(code, space, "3 tree(s) differ"),
            Code::StoreFull => reason(code, space, "entries of the node do not fit on the disk"),
            Code::StoreFailed => reason(code, "local store", "the disk under the store failed (SQLite code 1034)"),
            Code::TimedOut => reason(code, space, "the time was too short"),
        }
    }

    #[test]
    fn every_reason_code_reads_as_the_snapshot_says() {
        let render = |code: &Code| format!("{}:{}\n", code.name(), render(Paint::Plain, &[of(*code)]));
        let rendered: String = Code::ALL.iter().map(render).collect::<Vec<_>>().join("\n");
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/reasons.txt"), &rendered)
                .expect("a file to write");
        }
        let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/reasons.txt"));
        assert_eq!(rendered, kept.unwrap_or_default(), "UPDATE_SNAPSHOTS=1 writes what is right now");
    }

    #[test]
    fn a_cause_that_two_have_in_common_is_told_once() {
        let text = render(Paint::Plain, &[of(Code::Behind), of(Code::Pending)]);
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
        assert!(text.contains("because NO_NODE space_m2xw: as above"), "{text}");
    }
}
