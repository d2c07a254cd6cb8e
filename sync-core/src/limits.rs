//! Every bound in one place. Both sides apply them: the node to what clients send, clients to what the node sends.

use std::time::Duration;

/// The largest gRPC message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What a sender fills a message with before it starts the next one, bytes. Leaves room for framing and one more record.
pub const BATCH_BYTES_MAX: usize = 512 << 10;
/// The ciphertext of one change, bytes.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// The plaintext that still fits a change's ciphertext after envelope and AEAD tag, bytes.
pub const CONTENT_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 1024;
/// A signed body other than an ACL record's, bytes.
pub const BODY_BYTES_MAX: usize = 4 << 10;
/// The body of an ACL record, bytes.
pub const ACL_BODY_BYTES_MAX: usize = 256 << 10;
/// Parents of a change.
pub const PARENTS_MAX: usize = 32;
/// Heads of a tree.
pub const HEADS_MAX: usize = 1024;
/// Ids in one request.
pub const IDS_PER_REQUEST_MAX: usize = 1000;
/// Contents of one ACL record.
pub const ACL_CONTENTS_MAX: usize = 64;
/// Devices on an account's list.
pub const DEVICES_MAX: usize = 64;
/// Members of a space.
pub const MEMBERS_MAX: usize = 1000;
/// Live invites of a space.
pub const INVITES_MAX: usize = 100;
/// Pending join requests of a space.
pub const REQUESTS_MAX: usize = 1000;
/// Trees that an invite or a frontier may name.
pub const NAMED_TREES_MAX: usize = 64;
/// Points of a subscription's chain ladder.
pub const LADDER_POINTS_MAX: usize = 64;
/// Items of one push message.
pub const PUSH_ITEMS_MAX: usize = 1000;
/// Elements of one HeadSync page.
pub const HEADSYNC_PAGE_MAX: usize = 4096;
/// Cells that come with the news that two digests differ.
pub const HEADSYNC_FIRST_CELLS: usize = 32;
/// Cells of one block: it fits a message.
pub const HEADSYNC_BLOCK_CELLS_MAX: usize = 8192;
/// Cells of one comparison: enough for about 190,000 differing elements. Beyond, the elements are listed.
pub const HEADSYNC_CELLS_MAX: usize = 1 << 18;
/// Cells that a sketch has before somebody needs more, the end of a block: enough for about 3,000 differing elements.
pub const HEADSYNC_SKETCH_CELLS: usize = 4144;
/// Ids of one message between two clients.
pub const PEER_IDS_MAX: usize = 8192;
/// Entries that a client follows another one's receipt for before it takes them.
pub const PEER_PULL_MAX: usize = 1 << 18;
/// Elements that a client takes from another one's list.
pub const PEER_ELEMENTS_MAX: usize = 1 << 22;
/// Memory of all sketches that a node keeps, bytes.
pub const HEADSYNC_SKETCH_BYTES_MAX: usize = 64 << 20;
/// Signed receipt without tree heads, bytes.
pub const RECEIPT_BYTES_MAX: usize = 512;
/// Trees in one receipt.
pub const RECEIPT_TREES_MAX: usize = 256;
/// Ids of log entries in one piece of evidence.
pub const EVIDENCE_IDS_MAX: usize = 65_536;
/// Evidence as text, characters: its ids and two receipts, eight characters for five bytes.
pub const EVIDENCE_CHARS_MAX: usize = 4 << 20;
/// Recognised restores of one space that are told and kept.
pub const HISTORIES_MAX: usize = 64;
/// Accusations of one space that a client keeps; further ones are counted by those that are there.
pub const ACCUSATIONS_MAX: usize = 64;
/// Ids in one message of a re-push.
pub const REPUSH_IDS_PER_MESSAGE_MAX: usize = 16_384;
/// Entries that one re-push brings back: 32 MiB of ids in the node's memory.
pub const REPUSH_IDS_MAX: usize = 1 << 20;
/// Re-pushes that a node takes at the same time.
pub const REPUSHES_MAX: usize = 4;
/// How long one re-push may take; what it brought until then stays, and the next one goes on there.
pub const REPUSH_TURN_MAX: Duration = Duration::from_secs(120);
/// An invite token, characters.
pub const TOKEN_CHARS_MAX: usize = 64 << 10;
/// The body of an invite token, bytes: its text (prefix, envelope and signature included, eight characters for five bytes) fits
/// [`TOKEN_CHARS_MAX`].
pub const TOKEN_BODY_BYTES_MAX: usize = TOKEN_CHARS_MAX / 8 * 5 - 128;
/// Writes that the storage thread puts in one transaction.
pub const GROUP_COMMIT_MAX: usize = 4096;
/// Writes that may wait for the storage thread.
pub const WRITE_QUEUE_MAX: usize = 8192;
/// Signatures verified together.
pub const VERIFY_BATCH_MAX: usize = 256;
/// Subscriptions of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 1024;
/// Sessions that a node keeps.
pub const SESSIONS_MAX: usize = 65_536;
/// Pages of a log that one connection is being sent: each is at most [`BATCH_BYTES_MAX`] and one entry.
pub const PAGES_PER_CONNECTION_MAX: usize = 16;
/// Streams of one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// How long a connection to a client's local port may stand before it brings the token.
pub const LOCAL_UNPROVEN_MAX: Duration = Duration::from_secs(10);
/// Connections to a client's local service.
pub const LOCAL_CONNECTIONS_MAX: usize = 128;
/// Calls of one connection to a client's local service that are under way.
pub const LOCAL_CALLS_MAX: u32 = 1024;
/// Awaits of one connection to a client's local service that are under way.
pub const LOCAL_AWAITS_MAX: usize = 256;
/// Items of one page of a list, as the local service gives them.
pub const LOCAL_PAGE_MAX: usize = 1000;
/// Items of one page where the caller does not say how many.
pub const LOCAL_PAGE_DEFAULT: usize = 100;

/// The largest ask or reply between a command and the daemon that runs it, bytes: a file that is read or written there.
pub const LOCAL_COMMAND_BYTES_MAX: usize = 128 << 20;
/// What the daemon holds of replies that are not whole yet, of all commands together, bytes.
pub const LOCAL_COMMANDS_BYTES_MAX: usize = 256 << 20;

/// How long a client serves another one that asks nothing.
pub const PEER_IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a node holds the sketch of a comparison that asks for nothing; after that the comparison lists.
pub const HEADSYNC_HELD_MAX: Duration = Duration::from_secs(60);
/// How long a node keeps a sketch up to date that nobody asks for.
pub const HEADSYNC_IDLE_MAX: Duration = Duration::from_secs(600);
/// Things that a reason names, of those that it stands for.
pub const REASON_EXAMPLES_MAX: usize = 5;
/// Reasons that a failed await names one by one.
pub const RESIDUE_MAX: usize = 100;
/// An await, or a stream of statuses, that took longer than this to look at what is missing rests before it looks again.
pub const LOOK_LONG: Duration = Duration::from_millis(10);
/// It rests so many times as long as the look took: the processor is for what it waits for.
pub const LOOK_REST: u32 = 3;
/// And at most this long.
pub const LOOK_REST_MAX: Duration = Duration::from_secs(1);
/// Awaits that a client keeps over a restart.
pub const WAITS_MAX: usize = 1000;
/// Items that the sync of a space holds in memory; the others wait in the store.
pub const SYNC_WINDOW_MAX: usize = 256;
/// Trees that are judged again over one reading of the log.
pub const JUDGED_TREES_MAX: usize = 4096;
/// Entries of a tree that are read ahead of the tail; a larger tree waits for it.
pub const AHEAD_ENTRIES_MAX: usize = 4096;
/// Entries that the log here must lack before a tree is fetched ahead of the tail by itself: fewer come as fast.
pub const AHEAD_BEHIND_MIN: u64 = 256;
/// Trees that are fetched from one peer at a time.
pub const FETCHES_MAX: u32 = 10;

/// How often a client pings and a node sends a heartbeat. Two missed ones end "synced".
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// HTTP/2 keepalive: ping after this much silence.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// HTTP/2 keepalive: a link that does not answer within this is dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS handshake, preface and authentication, each.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a subscription may be silent, which brings a heartbeat every [`HEARTBEAT_INTERVAL`]: then it is made anew.
pub const TAIL_SILENT_MAX: Duration = Duration::from_secs(30);
/// A unary call.
pub const UNARY_TIMEOUT: Duration = Duration::from_secs(30);
/// A message of a push, from its first byte to the next verdict: on a slow line most of it is the way there.
pub const PUSH_ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a question is asked again that was answered with what passes by itself, before whoever asks hears of it.
pub const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);
/// How long an act on an ACL is made again while other admins are faster.
pub const ACL_INTENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a session token lives unused.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(3600);
/// The first pause before a failed item is tried again.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause before a failed item is tried again.
pub const RETRY_MAX: Duration = Duration::from_secs(20);
/// The longest pause that a peer's hint can ask for.
pub const RETRY_HINT_MAX: Duration = Duration::from_secs(60);
/// What a stopping process gives its work to finish.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node takes nothing new after a recognised restore, unless its operator says otherwise.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(600);
/// The longest hint to a client whose write waits for that.
pub const RECOVERY_RETRY: Duration = Duration::from_secs(5);
