//! What can go wrong: opening, reading, writing.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use sync_core::ids::{Seq, SpaceId, TreeId};

use crate::client::WriteId;
use crate::store::StoreKind;

/// The error below one of ours, shared so that everybody who waits can have it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why the store could not be opened. Every variant names the path, and its text says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another handle of this one) holds the directory.
    #[error("{} is in use{}: stop that process, or use another directory", .path.display(), pid_text(.pid))]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who wrote itself into the lock file, when it is legible.
        pid: Option<u32>,
    },
    /// A later version wrote the store, and says that this one cannot read it.
    #[error(
        "{} needs a build that reads schema {readable_from}; this one knows up to {ours} (it was written by {written_by}): upgrade",
        .path.display()
    )]
    TooNew {
        /// The database file.
        path: PathBuf,
        /// The lowest schema version that can read the file, as the file says.
        readable_from: u32,
        /// The schema version of this build.
        ours: u32,
        /// The version text of the crate that wrote it last.
        written_by: String,
    },
    /// The file is not SQLite, or some other program's.
    #[error("{} is not a Headwater store: move it away, or use another directory", .path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
    },
    /// A node's store opened as a client's, or the other way round.
    #[error("{} is the store of a {found}, not of a {expected}: use another directory", .path.display())]
    WrongKind {
        /// The data directory.
        path: PathBuf,
        /// What the caller asked for.
        expected: StoreKind,
        /// What the file says.
        found: StoreKind,
    },
    /// The directory or a file in it cannot be written.
    #[error("{} cannot be written: check owner, permissions and mount options", .path.display())]
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// The file is ours, but not whole.
    #[error("{} is damaged: restore a backup, or move the directory away and sync again", .path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// Any other failure of the file system or of SQLite.
    #[error("{} could not be opened: check the disk", .path.display())]
    Io {
        /// What was being opened.
        path: PathBuf,
        #[source]
        source: Cause,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

/// A failure of the store. Ours, never a peer's fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room. The transaction was rolled back and the store goes on.
    #[error("there is no room for the write")]
    Full {
        #[source]
        source: Cause,
    },
    /// The disk, or SQLite's use of it, failed. Nothing is retried on the same handle.
    #[error("the disk under the store failed (SQLite code {code})")]
    Io {
        /// SQLite's extended result code.
        code: i32,
        #[source]
        source: Cause,
    },
    /// What was read is not what was once written.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// SQLite refused one statement; its transaction is unharmed.
    #[error("SQLite refused a statement (code {code})")]
    Statement {
        /// SQLite's extended result code.
        code: i32,
        #[source]
        source: Cause,
    },
    /// A job panicked: what it was about to do is unknown, so the store stops.
    #[error("a job panicked on the storage thread: {message}")]
    Panicked {
        /// The panic's own words.
        message: String,
    },
    /// The storage thread could not be started.
    #[error("the storage thread did not start")]
    NoThread {
        #[source]
        source: Cause,
    },
    /// There is no log of this space here.
    #[error("{space} is not in this store")]
    UnknownSpace {
        /// The space asked for.
        space: SpaceId,
    },
    /// There is no such tree in the log.
    #[error("{tree} is not in the log of {space}")]
    UnknownTree {
        /// The space asked in.
        space: SpaceId,
        /// The tree asked for.
        tree: TreeId,
    },
    /// The decision does not begin where the log ends: it was made over another state.
    #[error(
        "a decision for entry {decided} of {space} meets a log that ends with entry {log_end}, or differs before it"
    )]
    StaleDecision {
        /// The space.
        space: SpaceId,
        /// The last entry of the log.
        log_end: Seq,
        /// The first entry of the decision.
        decided: Seq,
    },
    /// There is no local write of this number.
    #[error("there is no local write {id:?}")]
    UnknownWrite {
        /// The number asked for.
        id: WriteId,
    },
    /// The local write is durable or dismissed: its bytes are gone, and it cannot go back.
    #[error("local write {id:?} is settled")]
    WriteSettled {
        /// The number asked for.
        id: WriteId,
    },
    /// A number that the store cannot hold.
    #[error("{what} {value} is beyond what the store can hold")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// What an error means for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The one call failed.
    Call,
    /// The transaction is rolled back, and the store goes on.
    Transaction,
    /// Fail-stop.
    Store,
}

impl StoreError {
    pub(crate) fn severity(&self) -> Severity {
        match self {
            Self::Full { .. } => Severity::Transaction,
            Self::Io { .. } | Self::Damaged { .. } | Self::Panicked { .. } | Self::NoThread { .. } => Severity::Store,
            Self::Statement { .. }
            | Self::UnknownSpace { .. }
            | Self::UnknownTree { .. }
            | Self::StaleDecision { .. }
            | Self::UnknownWrite { .. }
            | Self::WriteSettled { .. }
            | Self::OutOfRange { .. }
            | Self::Closed => Severity::Call,
        }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    /// The one place where SQLite's codes are read. Not a `From`: that would put another crate's type in our interface.
    pub(crate) fn of_sqlite(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let Some(failure) = error.sqlite_error() else { return Self::of_conversion(error) };
        let (primary, code) = (failure.code, failure.extended_code);
        if primary == Code::DiskFull {
            return Self::Full { source: Arc::new(error) };
        }
        if matches!(primary, Code::DatabaseCorrupt | Code::NotADatabase) {
            return Self::damaged(error.to_string());
        }
        let of_the_statement = matches!(
            primary,
            Code::ConstraintViolation | Code::TypeMismatch | Code::TooBig | Code::ParameterOutOfRange
        );
        let source: Cause = Arc::new(error);
        if of_the_statement { Self::Statement { code, source } } else { Self::Io { code, source } }
    }

    /// Errors that rusqlite makes itself: either a stored value has the wrong shape, or we called it wrongly.
    fn of_conversion(error: rusqlite::Error) -> Self {
        let of_the_row = matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..)
        );
        if of_the_row {
            return Self::damaged(error.to_string());
        }
        Self::Statement { code: -1, source: Arc::new(error) }
    }
}

/// Why a write did not come back with [`crate::Written`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError<E> {
    /// The job itself said no. Nothing of it was stored.
    #[error(transparent)]
    Job(E),
    /// The queue is full: nothing was tried. Come back later.
    #[error("the storage queue is full")]
    Overloaded,
    /// There was no room. Nothing of the job was stored.
    #[error("there is no room on the disk")]
    Full,
    /// The store failed while the job was on its way to the disk. It may be stored or not; writing it again is safe.
    #[error("the store failed during the write: its outcome is unknown")]
    OutcomeUnknown(#[source] StoreError),
    /// The store had failed before. Nothing was tried.
    #[error("the store has failed")]
    Failed(#[source] StoreError),
    /// The store was closed. Nothing was tried.
    #[error("the store is closed")]
    Closed,
}

impl<E> WriteError<E> {
    /// Translates the job's own error.
    pub fn map_job<F>(self, f: impl FnOnce(E) -> F) -> WriteError<F> {
        match self {
            Self::Job(e) => WriteError::Job(f(e)),
            Self::Overloaded => WriteError::Overloaded,
            Self::Full => WriteError::Full,
            Self::OutcomeUnknown(e) => WriteError::OutcomeUnknown(e),
            Self::Failed(e) => WriteError::Failed(e),
            Self::Closed => WriteError::Closed,
        }
    }
}
