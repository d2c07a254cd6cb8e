//! The file: its marks, its tables, and how older ones become newer ones.
//!
//! - `application_id` is [`APPLICATION_ID`]; a file with another one is never touched.
//! - `user_version` is the schema version. [`MIGRATIONS`] lead from each to the next, in one transaction.
//! - `meta` holds `kind`, `written_by` (crate version), `written_version` and `readable_from` (schema versions), and the
//!   greatest number of a space that was forgotten (`space_no_forgotten`): numbers are never given twice. A later
//!   schema that older builds can still read leaves `readable_from` alone.
//!
//! Ids: every table is keyed by a small integer that grows, and random 32-byte ids stand in rows, not in keys: a random key
//! costs five to seven times as much. What must be found by id has an index on the number of its parent and on the first
//! eight bytes of the id. Such an index is never unique: two ids with one prefix are legal, and the full id is compared.

use rusqlite::Connection;

use crate::store::StoreKind;

/// "HdWt": marks a SQLite file as ours.
pub const APPLICATION_ID: i32 = 0x4864_5774;

/// The schema version of this build.
pub const SCHEMA_VERSION: u32 = 2;

/// The lowest schema version whose builds can read what this one writes.
pub(crate) const READABLE_FROM: u32 = 1;

/// `MIGRATIONS[n]` leads from schema version n to n + 1.
pub(crate) const MIGRATIONS: [&str; SCHEMA_VERSION as usize] = [SCHEMA_1, SCHEMA_2];

const SCHEMA_1: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;

-- One row, written by every durability barrier so that it has something to commit.
CREATE TABLE barrier (id INTEGER PRIMARY KEY CHECK (id = 0), count INTEGER NOT NULL) STRICT;
INSERT INTO barrier VALUES (0, 0);

CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;

-- Numbers for space ids. A space may have a number and no log yet.
CREATE TABLE space_ids (
    space_no INTEGER PRIMARY KEY,
    id       BLOB NOT NULL UNIQUE CHECK (length(id) = 32)
) STRICT;

-- What never changes of a space (but for the history, which a restore renews).
CREATE TABLE spaces (
    space_no INTEGER PRIMARY KEY,
    header   BLOB NOT NULL,
    history  BLOB NOT NULL CHECK (length(history) = 16)
) STRICT;

-- The end of each log; one write per space and commit.
CREATE TABLE space_heads (
    space_no INTEGER PRIMARY KEY,
    seq      INTEGER NOT NULL,
    chain    BLOB NOT NULL CHECK (length(chain) = 32),
    acl_head BLOB NOT NULL CHECK (length(acl_head) = 32),
    digest   BLOB NOT NULL,
    trees    INTEGER NOT NULL,
    changes  INTEGER NOT NULL,
    bytes    INTEGER NOT NULL
) STRICT;

-- key = space_no << 40 | seq. kind: 1 ACL root, 2 ACL record, 3 tree root, 4 change, 5 tombstone. flags: 1 quarantined.
-- tree_no stands on accepted changes and tombstones only. The record as received; a payload may be dropped later.
CREATE TABLE log (
    key       INTEGER PRIMARY KEY,
    kind      INTEGER NOT NULL,
    flags     INTEGER NOT NULL,
    tree_no   INTEGER,
    height    INTEGER,
    epoch     INTEGER,
    id8       INTEGER NOT NULL,
    id        BLOB NOT NULL,
    chain     BLOB NOT NULL,
    version   INTEGER NOT NULL,
    body      BLOB NOT NULL,
    signature BLOB NOT NULL,
    payload   BLOB
) STRICT;
CREATE INDEX log_by_tree ON log (tree_no, id8) WHERE tree_no IS NOT NULL;
CREATE INDEX log_acl ON log (key) WHERE kind <= 2;

-- id8 is the first eight bytes of the id with the sign flipped, so that integers sort as the bytes do.
CREATE TABLE trees (
    tree_no      INTEGER PRIMARY KEY,
    space_no     INTEGER NOT NULL,
    id8          INTEGER NOT NULL,
    id           BLOB NOT NULL,
    root         BLOB NOT NULL,
    created      INTEGER NOT NULL,
    first_author BLOB NOT NULL,
    heads        BLOB NOT NULL,
    changes      INTEGER NOT NULL,
    purged_at    INTEGER,
    purged_by    BLOB
) STRICT;
CREATE INDEX trees_by_id ON trees (space_no, id8);

-- ---- a client's own ------------------------------------------------------------------------------------------------

-- state: 0 pending, 1 logged, 2 refused, 3 durable, 4 dismissed; from 3 on the bytes are gone.
CREATE TABLE writes (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    space_no        INTEGER NOT NULL,
    state           INTEGER NOT NULL,
    seq             INTEGER,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_retry_ms   INTEGER,
    refusal_code    INTEGER,
    refusal_message TEXT,
    refusal_seq     INTEGER,
    tree8           INTEGER,
    tree            BLOB,
    change8         INTEGER,
    root            BLOB,
    record          BLOB,
    local           BLOB
) STRICT;
CREATE INDEX writes_by_state ON writes (space_no, state, seq) WHERE state < 3;
CREATE INDEX writes_by_tree ON writes (space_no, tree8) WHERE state < 3;
CREATE INDEX writes_by_change ON writes (space_no, change8) WHERE state < 3;

CREATE TABLE node_states (
    space_no    INTEGER PRIMARY KEY,
    registered  INTEGER NOT NULL,
    durable_seq INTEGER NOT NULL,
    receipt     BLOB
) STRICT;

CREATE TABLE objects (
    tree_no  INTEGER PRIMARY KEY,
    space_no INTEGER NOT NULL,
    type_tag BLOB NOT NULL CHECK (length(type_tag) = 16),
    tree8    INTEGER NOT NULL,
    state    BLOB NOT NULL,
    at       INTEGER NOT NULL
) STRICT;
CREATE INDEX objects_by_type ON objects (space_no, type_tag, tree8);

CREATE TABLE projections (space_no INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT;

-- kind: 1 void, 2 hidden, 3 misplaced, 4 quarantined, 5 missing, 6 broken.
CREATE TABLE verdicts (
    space_no  INTEGER NOT NULL,
    tree      BLOB NOT NULL,
    change_id BLOB NOT NULL,
    kind      INTEGER NOT NULL,
    detail    TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    PRIMARY KEY (space_no, tree, change_id)
) STRICT, WITHOUT ROWID;
";

const SCHEMA_2: &str = "
-- Recognised restores of a node's copy of a space, the oldest first: a node's own, or what a client was told of.
CREATE TABLE histories (
    id       INTEGER PRIMARY KEY,
    space_no INTEGER NOT NULL,
    new      BLOB NOT NULL CHECK (length(new) = 16),
    export   BLOB NOT NULL,
    UNIQUE (space_no, new)
) STRICT;

-- ---- a client's own ------------------------------------------------------------------------------------------------

-- The history of its node's copy that the log here follows.
CREATE TABLE node_histories (
    space_no INTEGER PRIMARY KEY,
    history  BLOB NOT NULL CHECK (length(history) = 16)
) STRICT;

-- What a rewind took out of the log, in its order. state: 0 waits for the log to take it again, 1 lost. kind as in log.
CREATE TABLE salvage (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    space_no  INTEGER NOT NULL,
    state     INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    id8       INTEGER NOT NULL,
    entry     BLOB NOT NULL CHECK (length(entry) = 32),
    version   INTEGER NOT NULL,
    body      BLOB NOT NULL,
    signature BLOB NOT NULL,
    payload   BLOB,
    code      INTEGER,
    message   TEXT
) STRICT;
CREATE INDEX salvage_by_space ON salvage (space_no, state, id);
CREATE INDEX salvage_by_entry ON salvage (space_no, id8);

-- kind: 1 rollback, 2 fork, 3 seen. state: 0 open, 1 made good, 2 followed, 3 dismissed. evidence: a pb::Evidence.
CREATE TABLE accusations (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    space_no INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    state    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    chain    BLOB NOT NULL CHECK (length(chain) = 32),
    detail   TEXT NOT NULL,
    evidence BLOB,
    at_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX accusations_by_space ON accusations (space_no, id);
-- What a client still wants of a tree. kind: 1 fetch, 2 content, 3 judge. Times are milliseconds since 1970.
CREATE TABLE sync_items (
    space_no      INTEGER NOT NULL,
    tree          BLOB NOT NULL,
    kind          INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    code          INTEGER,
    error         TEXT,
    next_retry_ms INTEGER NOT NULL,
    since_ms      INTEGER NOT NULL,
    PRIMARY KEY (space_no, tree, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX sync_items_by_priority ON sync_items (space_no, priority, next_retry_ms);

-- What a peer was last found to have. kind: 1 node, 2 client.
CREATE TABLE peers (
    space_no     INTEGER NOT NULL,
    peer         BLOB NOT NULL,
    kind         INTEGER NOT NULL,
    confirmed    INTEGER NOT NULL,
    confirmed_ms INTEGER NOT NULL,
    PRIMARY KEY (space_no, peer)
) STRICT, WITHOUT ROWID;

-- Heads that a peer told of and that are not the logged ones here.
CREATE TABLE peer_heads (
    space_no INTEGER NOT NULL,
    peer     BLOB NOT NULL,
    tree     BLOB NOT NULL,
    heads    BLOB NOT NULL,
    seq      INTEGER NOT NULL,
    told_ms  INTEGER NOT NULL,
    PRIMARY KEY (space_no, peer, tree)
) STRICT, WITHOUT ROWID;

-- Entries fetched ahead of the tail; gone in the transaction that appends their place. No tree: an ACL record.
CREATE TABLE ahead (
    space_no INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    tree     BLOB,
    id       BLOB NOT NULL,
    record   BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX ahead_by_seq ON ahead (space_no, seq);
CREATE INDEX ahead_by_tree ON ahead (space_no, tree) WHERE tree IS NOT NULL;

CREATE INDEX verdicts_by_kind ON verdicts (space_no, kind);
-- Counts and moments of what is tried again, without the rows.
CREATE INDEX writes_retrying ON writes (space_no, id, attempts, next_retry_ms, state, refusal_code)
    WHERE state = 0 AND refusal_code IS NOT NULL;
";

/// What a file says about itself.
pub(crate) struct Marks {
    pub(crate) user_version: u32,
    pub(crate) readable_from: u32,
    pub(crate) written_by: String,
    /// `None` in a file without tables yet.
    pub(crate) kind: Option<StoreKind>,
}

pub(crate) fn read_marks(conn: &Connection) -> rusqlite::Result<Marks> {
    let user_version = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if user_version == 0 {
        return Ok(Marks { user_version, readable_from: 0, written_by: String::new(), kind: None });
    }
    let kind: String = meta(conn, "kind")?;
    let kind = StoreKind::from_name(&kind).ok_or(rusqlite::Error::InvalidColumnType(
        0,
        "kind".into(),
        rusqlite::types::Type::Text,
    ))?;
    Ok(Marks {
        user_version,
        readable_from: meta(conn, "readable_from")?,
        written_by: meta(conn, "written_by")?,
        kind: Some(kind),
    })
}

fn meta<T: rusqlite::types::FromSql>(conn: &Connection, name: &str) -> rusqlite::Result<T> {
    conn.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
}

/// Brings the tables to this build's schema and signs the file, in one transaction. A file of a later schema is only signed.
pub(crate) fn migrate(conn: &mut Connection, from: u32, kind: StoreKind) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in MIGRATIONS.iter().skip(from as usize) {
        tx.execute_batch(step)?;
    }
    let mut put = tx.prepare("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2")?;
    put.execute(("written_by", env!("CARGO_PKG_VERSION")))?;
    if from < SCHEMA_VERSION {
        put.execute(("kind", kind.name()))?;
        put.execute(("written_version", SCHEMA_VERSION))?;
        put.execute(("readable_from", READABLE_FROM))?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    drop(put);
    // A commit that changes no page syncs nothing, and what was found in the log must be synced.
    tx.execute("UPDATE barrier SET count = count + 1", [])?;
    tx.commit()
}
