//! Small texts that several commands share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client_sdk::{HistoryMode, InviteMode, RequestStatus, Role, SyncState};

use crate::args::RoleArg;

/// A moment, in milliseconds since 1970, as RFC 3339.
pub(crate) fn moment(at_ms: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_millis(at_ms)) {
        // The formatter covers the years up to 9999.
        Some(at) if at_ms < 253_402_300_800_000 => humantime::format_rfc3339_seconds(at).to_string(),
        Some(_) | None => format!("{at_ms} ms"),
    }
}

/// This machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A duration in whole seconds, or milliseconds below one.
pub(crate) fn duration(ms: u64) -> String {
    let rounded = if ms < 1000 { ms } else { ms / 1000 * 1000 };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) const fn mode(mode: InviteMode) -> &'static str {
    match mode {
        InviteMode::Open => "open",
        InviteMode::Approval => "approval",
    }
}

pub(crate) const fn request_status(status: &RequestStatus) -> &'static str {
    match status {
        RequestStatus::Pending => "pending",
        RequestStatus::Accepted { .. } => "accepted",
        RequestStatus::Declined { .. } => "declined",
        RequestStatus::Cancelled { .. } => "cancelled",
    }
}

pub(crate) const fn sync_state(state: SyncState) -> &'static str {
    match state {
        SyncState::Offline => "offline",
        SyncState::CatchingUp => "catching up",
        SyncState::Pushing => "pushing",
        SyncState::UpToDate => "up to date",
        SyncState::Attention => "needs attention",
    }
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Guest => Self::Guest,
            RoleArg::Reader => Self::Reader,
            RoleArg::Writer => Self::Writer,
            RoleArg::Admin => Self::Admin,
        }
    }
}

pub(crate) const fn history(mode: HistoryMode) -> &'static str {
    match mode {
        HistoryMode::All => "all",
        HistoryMode::SinceJoin => "since-join",
    }
}

/// How much of a long text a table shows.
const SHOWN_CHARS: usize = 72;

/// The beginning of a text, for a table.
pub(crate) fn start(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// "a writer", "an admin", "the owner".
pub(crate) const fn a_role(role: Role) -> &'static str {
    match role {
        Role::Guest => "a guest",
        Role::Reader => "a reader",
        Role::Writer => "a writer",
        Role::Admin => "an admin",
        Role::Owner => "the owner",
    }
}

/// What somebody else wrote, for the terminal: nothing in it moves the cursor or changes the order of what stands there.
pub(crate) fn plain(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// "1 record", "2 records".
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_durations() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(u64::MAX), format!("{} ms", u64::MAX));
        assert_eq!(duration(250), "250ms");
        assert_eq!(duration(61_250), "1m 1s");
        assert_eq!(hex(&[0, 255]), "00ff");
        assert_eq!(count(1, "record"), "1 record");
        assert_eq!(count(2, "record"), "2 records");
    }

    #[test]
    fn names_of_others_cannot_move_the_cursor() {
        assert_eq!(plain("Bo\u{1b}[2J\n\u{202e}x"), "Bo\u{fffd}[2J\u{fffd}\u{fffd}x");
        assert_eq!(plain("Zoë 李"), "Zoë 李");
    }
}
