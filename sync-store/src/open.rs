//! Opening a directory: the lock, the file's marks, the connections.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

use crate::db::{Session, Tuning};
use crate::error::{OpenError, StoreError};
use crate::schema::{self, APPLICATION_ID, SCHEMA_VERSION};
use crate::store::StoreKind;

/// The database's name in the data directory.
pub const DATABASE_FILE: &str = "headwater.db";
/// The lock's name in the data directory.
pub const LOCK_FILE: &str = "lock";

/// How long a statement waits for a lock that only another program (a backup) can hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// What an open directory consists of.
pub(crate) struct Opened {
    pub(crate) writer: Session,
    pub(crate) lock: DirLock,
    pub(crate) database: PathBuf,
}

pub(crate) fn open(dir: &Path, kind: StoreKind, tuning: Tuning) -> Result<Opened, OpenError> {
    make_dir(dir)?;
    open_locked(lock(dir)?, kind, tuning)
}

/// The same for a directory that is locked already.
pub(crate) fn open_locked(lock: DirLock, kind: StoreKind, tuning: Tuning) -> Result<Opened, OpenError> {
    let dir = lock.dir();
    let database = dir.join(DATABASE_FILE);
    check_header(&database)?;
    let mut conn = connect(&database, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| in_sqlite(&database, e))?;
    let version = check_marks(&conn, &database, dir, kind)?;
    set_up(&mut conn, version, kind).map_err(|e| in_sqlite(&database, e))?;
    sync_dir(dir)?;
    Ok(Opened { writer: Session::new(conn, tuning), lock, database })
}

/// A database in memory, with what an image says. No log of its own: commits are in it at once.
pub(crate) fn open_image(path: &Path, image: Option<&[u8]>, kind: StoreKind) -> Result<Connection, OpenError> {
    let mut conn = fill(image).map_err(|e| in_sqlite(path, e))?;
    let version = check_marks(&conn, path, path, kind)?;
    schema::migrate(&mut conn, version, kind).map_err(|e| in_sqlite(path, e))?;
    Ok(conn)
}

fn fill(image: Option<&[u8]>) -> rusqlite::Result<Connection> {
    let mut conn = Connection::open_in_memory()?;
    match image {
        Some(bytes) => conn.deserialize_read_exact(rusqlite::MAIN_DB, bytes, bytes.len(), false)?,
        None => {
            conn.execute_batch(&format!("PRAGMA page_size = 4096; PRAGMA application_id = {APPLICATION_ID};"))?;
        }
    }
    harden(&conn)?;
    conn.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA secure_delete = ON")?;
    Ok(conn)
}

pub(crate) fn open_reader(database: &Path, tuning: Tuning) -> Result<Session, StoreError> {
    let open = || {
        let conn = connect(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -8192;")?;
        Ok(conn)
    };
    let conn = open().map_err(StoreError::of_sqlite)?;
    Ok(Session::new(conn, tuning))
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(|e| in_files(dir, e))?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists || !dir.is_dir() => Err(in_files(dir, e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Files are made with their mode, not given it later.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Keeps every other process out of a data directory, without opening what is in it. The directory is free again when the last
/// clone is dropped, a store that was opened with one included.
#[derive(Debug, Clone)]
#[must_use = "the directory is free again when it is dropped"]
pub struct DirLock {
    dir: PathBuf,
    _file: Arc<File>,
}

impl DirLock {
    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Takes the lock of a data directory that is there.
///
/// # Errors
/// [`OpenError::InUse`], or the file system's.
pub fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    Ok(DirLock { dir: dir.to_owned(), _file: Arc::new(take_lock(dir)?) })
}

/// Who has a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// A process, by its number; `None` while it has not written it yet.
    Process(Option<u32>),
}

/// Looks who has a data directory. What a process wrote into the lock that has ended since counts for nothing.
///
/// # Errors
/// The file system's.
pub fn holder(dir: &Path) -> std::io::Result<Holder> {
    let mut file = match File::open(dir.join(LOCK_FILE)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Holder::Nobody),
        opened => opened?,
    };
    match file.try_lock_shared() {
        // Given back with the file.
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(Holder::Process(read_pid(&mut file))),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// One process per directory. The kernel drops the lock when the process ends, however it ends; the file stays.
fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let mut file = private().open(&path).map_err(|e| in_files(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse { path: dir.to_owned(), pid: read_pid(&mut file) });
        }
        Err(TryLockError::Error(e)) => return Err(in_files(&path, e)),
    }
    let mut write_pid = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid().map_err(|e| in_files(&path, e))?;
    Ok(file)
}

/// Looks at the first bytes before SQLite does, so that nobody else's file is ever touched. Makes an empty file if there is
/// none. A file cut short before its first page was written is new, too.
fn check_header(database: &Path) -> Result<(), OpenError> {
    check_first_page(database, private().open(database).map_err(|e| in_files(database, e))?)
}

/// The same for a file that must be there.
pub(crate) fn check_file(database: &Path) -> Result<(), OpenError> {
    check_first_page(database, File::open(database).map_err(|e| in_files(database, e))?)
}

fn check_first_page(database: &Path, file: File) -> Result<(), OpenError> {
    let mut header = Vec::new();
    file.take(100).read_to_end(&mut header).map_err(|e| in_files(database, e))?;
    if header.is_empty() {
        return Ok(());
    }
    // https://www.sqlite.org/fileformat.html, section 1.3: the magic string, and the application id at 68.
    let ours = header.starts_with(b"SQLite format 3\0") && header.get(68..72) == Some(&APPLICATION_ID.to_be_bytes());
    if ours { Ok(()) } else { Err(OpenError::Foreign { path: database.to_owned() }) }
}

fn connect(database: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(database, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    harden(&conn)?;
    conn.execute_batch(
        "PRAGMA temp_store = MEMORY; PRAGMA mmap_size = 268435456; PRAGMA cache_size = -65536;
         PRAGMA cell_size_check = ON;",
    )?;
    Ok(conn)
}

fn harden(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(())
}

/// The schema version of the file, if this build may write it.
fn check_marks(conn: &Connection, database: &Path, dir: &Path, kind: StoreKind) -> Result<u32, OpenError> {
    let marks = schema::read_marks(conn).map_err(|e| in_sqlite(database, e))?;
    if marks.readable_from > SCHEMA_VERSION {
        return Err(OpenError::TooNew {
            path: database.to_owned(),
            readable_from: marks.readable_from,
            ours: SCHEMA_VERSION,
            written_by: marks.written_by,
        });
    }
    match marks.kind {
        Some(found) if found != kind => Err(OpenError::WrongKind { path: dir.to_owned(), expected: kind, found }),
        Some(_) | None => Ok(marks.user_version),
    }
}

fn set_up(conn: &mut Connection, version: u32, kind: StoreKind) -> rusqlite::Result<()> {
    // What is dropped is written over: a purge means that the ciphertext is gone from the file.
    conn.execute_batch("PRAGMA secure_delete = ON")?;
    if version == 0 {
        // Before WAL, so that the mark is in the file's first page from its first byte on.
        conn.execute_batch(&format!("PRAGMA page_size = 4096; PRAGMA application_id = {APPLICATION_ID};"))?;
    }
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(rusqlite::Error::InvalidColumnType(0, format!("journal mode {mode}"), rusqlite::types::Type::Text));
    }
    // After a failure nothing more is written through a handle, not even on closing it: checkpoints are ours to call.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.execute_batch(
        "PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 67108864; PRAGMA synchronous = FULL;",
    )?;
    // With synchronous FULL this commit is a barrier: it syncs the log with everything found in it.
    schema::migrate(conn, version, kind)?;
    checkpoint(conn, CheckpointMode::TRUNCATE)?;
    conn.execute_batch("PRAGMA synchronous = NORMAL")
}

/// What a checkpoint could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checkpointed {
    Done,
    /// A reader or a full disk was in the way; later.
    NotNow,
}

pub(crate) fn checkpoint(conn: &Connection, mode: CheckpointMode) -> rusqlite::Result<Checkpointed> {
    use rusqlite::ErrorCode as Code;
    match conn.wal_checkpoint_v2(rusqlite::MAIN_DB.into(), mode) {
        Ok(_) => Ok(Checkpointed::Done),
        Err(e) if matches!(e.sqlite_error_code(), Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::DiskFull)) => {
            Ok(Checkpointed::NotNow)
        }
        Err(e) => Err(e),
    }
}

/// Puts the name of a file on the disk.
pub(crate) fn sync_parent(file: &Path) -> std::io::Result<()> {
    match file.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A file whose name is not on disk is not durable.
fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    let sync = |path: &Path| File::open(path)?.sync_all();
    sync(dir).map_err(|e| in_files(dir, e))?;
    match dir.canonicalize().map_err(|e| in_files(dir, e))?.parent() {
        // A parent that may not be listed was not made by us.
        Some(parent) => sync(parent).or_else(|e| if e.kind() == ErrorKind::PermissionDenied { Ok(()) } else { Err(e) }),
        None => Ok(()),
    }
    .map_err(|e| in_files(dir, e))
}

fn in_files(path: &Path, error: std::io::Error) -> OpenError {
    let path = path.to_owned();
    let read_only = matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem);
    let source = Arc::new(error);
    if read_only { OpenError::ReadOnly { path, source } } else { OpenError::Io { path, source } }
}

fn in_sqlite(database: &Path, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode as Code;
    let path = database.to_owned();
    let code = error.sqlite_error_code();
    if matches!(code, Some(Code::ReadOnly | Code::PermissionDenied)) {
        return OpenError::ReadOnly { path, source: Arc::new(error) };
    }
    if code == Some(Code::NotADatabase) {
        return OpenError::Foreign { path };
    }
    // Without a code it is a value that is not there, or not what it should be.
    let damaged = matches!(code, None | Some(Code::DatabaseCorrupt | Code::Unknown));
    let source = Arc::new(error);
    if damaged { OpenError::Damaged { path, source } } else { OpenError::Io { path, source } }
}
