//! A copy of a store as of one moment, made while its owner goes on, or while nobody has it open.
//!
//! The copy is SQLite's own (`VACUUM INTO`): one read transaction, written into a new file without what was dropped before. It
//! takes no lock that a node would miss; the node's write-ahead log grows meanwhile.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use crate::open::{DATABASE_FILE, check_file, sync_parent};
use crate::schema::{self, SCHEMA_VERSION};
use crate::store::StoreKind;
use crate::{Cause, OpenError};

/// Why there is no backup.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already: name a file that is not", .path.display())]
    Exists { path: PathBuf },
    #[error("there is no store in {}", .path.display())]
    NoStore { path: PathBuf },
    #[error("the backup {} could not be written", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error("the store cannot be read")]
    Store(#[from] OpenError),
}

/// Copies the store in `dir` into the new file `to`. When this returns, the copy is whole and on the disk.
///
/// # Errors
/// See [`BackupError`]. Nothing is left behind then.
pub fn backup(dir: &Path, kind: StoreKind, to: &Path) -> Result<(), BackupError> {
    let database = dir.join(DATABASE_FILE);
    if !database.is_file() {
        return Err(BackupError::NoStore { path: dir.to_owned() });
    }
    check_backup(&database, kind)?;
    if to.exists() {
        return Err(BackupError::Exists { path: to.to_owned() });
    }
    let beside = beside(to);
    let made = copy(&database, &beside).and_then(|()| {
        // Taken by nobody else in the meantime: a link does not replace.
        std::fs::hard_link(&beside, to).map_err(|e| in_files(to, e))?;
        sync_parent(to).map_err(|e| in_files(to, e))
    });
    // It was the way, or is half a copy.
    let _ = std::fs::remove_file(&beside);
    made
}

/// Copies a backup, or a store that nobody has open, into the new file `to`: with what stands in its write-ahead log only. When
/// this returns, the copy is on the disk.
///
/// # Errors
/// See [`BackupError`].
pub fn copy_backup(file: &Path, kind: StoreKind, to: &Path) -> Result<(), BackupError> {
    check_backup(file, kind)?;
    copy(file, to)
}

/// Checks that a file is a store of this kind that this build can open.
///
/// # Errors
/// Whose file it is instead.
pub fn check_backup(file: &Path, kind: StoreKind) -> Result<(), OpenError> {
    check_file(file)?;
    let damaged = |e| OpenError::Damaged { path: file.to_owned(), source: Arc::new(e) };
    let conn = read_only(file).map_err(damaged)?;
    let marks = schema::read_marks(&conn).map_err(damaged)?;
    if marks.readable_from > SCHEMA_VERSION {
        let (readable_from, written_by) = (marks.readable_from, marks.written_by);
        return Err(OpenError::TooNew { path: file.to_owned(), readable_from, ours: SCHEMA_VERSION, written_by });
    }
    match marks.kind {
        Some(found) if found == kind => Ok(()),
        Some(found) => Err(OpenError::WrongKind { path: file.to_owned(), expected: kind, found }),
        None => Err(OpenError::Foreign { path: file.to_owned() }),
    }
}

fn copy(database: &Path, to: &Path) -> Result<(), BackupError> {
    // Made with its mode; SQLite writes into an empty file.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(to).map_err(|e| in_files(to, e))?;
    let failed = |e: rusqlite::Error| BackupError::Io { path: to.to_owned(), source: Arc::new(e) };
    let conn = read_only(database).map_err(failed)?;
    let name = to.to_str().ok_or_else(|| in_files(to, ErrorKind::InvalidFilename.into()))?;
    conn.execute("VACUUM INTO ?1", [name]).map_err(failed)?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|e| in_files(to, e))
}

fn read_only(database: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    to.with_file_name(name)
}

fn in_files(path: &Path, error: std::io::Error) -> BackupError {
    BackupError::Io { path: path.to_owned(), source: Arc::new(error) }
}
