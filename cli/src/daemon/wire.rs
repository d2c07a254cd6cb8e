//! Messages in pieces, paths as bytes, errors of the system with their number.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use client_sdk::local::LOCAL_COMMAND_BYTES_MAX;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pb;

/// What one message of the stream carries at most of something larger, bytes.
const PIECE_BYTES: usize = 256 << 10;
/// What room is counted in, bytes.
const ROOM_UNIT: usize = 1 << 10;

pub(super) fn path_bytes(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

pub(super) fn path(bytes: &Bytes) -> PathBuf {
    PathBuf::from(os_string(bytes))
}

pub(super) fn os_string(bytes: &Bytes) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Which directory it is, by whatever name.
pub(super) fn identity(dir: &Path) -> io::Result<pb::DirIdentity> {
    let found = std::fs::metadata(dir)?;
    Ok(pb::DirIdentity { device: found.dev(), inode: found.ino() })
}

/// A message as pieces; at least one. What is too large is refused before anything of it is sent.
pub(super) fn pieces<M: Message>(message: &M) -> io::Result<impl Iterator<Item = pb::Piece> + use<M>> {
    if message.encoded_len() > LOCAL_COMMAND_BYTES_MAX {
        return Err(too_large());
    }
    let whole = Bytes::from(message.encode_to_vec());
    let count = whole.len().div_ceil(PIECE_BYTES).max(1);
    Ok((0..count).map(move |n| {
        let part = whole.slice(n * PIECE_BYTES..whole.len().min((n + 1) * PIECE_BYTES));
        pb::Piece { part, last: n + 1 == count }
    }))
}

fn too_large() -> io::Error {
    let max = LOCAL_COMMAND_BYTES_MAX >> 20;
    let text = format!("more than {max} MiB do not pass between a command and its daemon: stop the daemon first");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

/// Room for what is not whole yet, of all who share it.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / ROOM_UNIT)))
    }

    /// None of it is given back before the permit goes.
    fn take(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let full = |_| io::Error::new(io::ErrorKind::ResourceBusy, "too many large files are on their way: try again");
        self.0.clone().try_acquire_many_owned(units).map_err(full)
    }
}

/// Bytes to print, in parts that fit a message.
pub(super) fn parts(bytes: Vec<u8>) -> impl Iterator<Item = Bytes> {
    let whole = Bytes::from(bytes);
    (0..whole.len().div_ceil(PIECE_BYTES))
        .map(move |n| whole.slice(n * PIECE_BYTES..whole.len().min((n + 1) * PIECE_BYTES)))
}

/// Pieces on their way to a message.
#[derive(Debug)]
pub(super) struct Assembly {
    bytes: Vec<u8>,
    room: Room,
    taken: Vec<OwnedSemaphorePermit>,
}

impl Assembly {
    pub(super) fn within(room: Room) -> Self {
        Self { bytes: Vec::new(), room, taken: Vec::new() }
    }

    /// The message, once its last piece is here.
    pub(super) fn add<M: Message + Default>(&mut self, piece: pb::Piece) -> io::Result<Option<M>> {
        if self.bytes.len() + piece.part.len() > LOCAL_COMMAND_BYTES_MAX {
            return Err(too_large());
        }
        self.taken.push(self.room.take(piece.part.len())?);
        self.bytes.extend_from_slice(&piece.part);
        if !piece.last {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.bytes);
        self.taken.clear();
        M::decode(whole.as_slice()).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

pub(super) fn failed(error: &io::Error) -> pb::Failed {
    pb::Failed { os_error: error.raw_os_error(), text: error.to_string() }
}

pub(super) fn io_error(failed: pb::Failed) -> io::Error {
    match failed.os_error {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(failed.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_apart_comes_together() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES * 2 + 1] {
            let message = pb::WriteFile { path: path_bytes(Path::new("a")), content: vec![7; length].into() };
            let mut assembly = Assembly::within(Room::new(1 << 20));
            let mut whole = None;
            for piece in pieces(&message).expect("it is small") {
                assert!(whole.is_none());
                whole = assembly.add::<pb::WriteFile>(piece).expect("a piece");
            }
            assert_eq!(whole, Some(message));
        }
        assert_eq!(parts(Vec::new()).count(), 0);
        assert_eq!(parts(vec![1; PIECE_BYTES + 1]).map(|p| p.len()).collect::<Vec<_>>(), [PIECE_BYTES, 1]);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let kind = |result: io::Result<Option<pb::WriteFile>>| result.expect_err("it is too large").kind();
        let piece = |bytes: usize| pb::Piece { part: vec![7; bytes].into(), last: false };
        let message = pb::WriteFile { path: Bytes::new(), content: vec![7; LOCAL_COMMAND_BYTES_MAX].into() };
        assert_eq!(pieces(&message).map(drop).expect_err("a little too large").kind(), io::ErrorKind::FileTooLarge);

        let room = Room::new(LOCAL_COMMAND_BYTES_MAX * 2);
        let mut assembly = Assembly::within(room.clone());
        assert!(matches!(assembly.add::<pb::WriteFile>(piece(LOCAL_COMMAND_BYTES_MAX)), Ok(None)));
        assert_eq!(kind(assembly.add(piece(1))), io::ErrorKind::FileTooLarge);

        // Those of others count, too, until they are whole or gone.
        let mut another = Assembly::within(room.clone());
        assert!(matches!(another.add::<pb::WriteFile>(piece(LOCAL_COMMAND_BYTES_MAX)), Ok(None)));
        let mut third = Assembly::within(room);
        assert_eq!(kind(third.add(piece(1))), io::ErrorKind::ResourceBusy);
        drop(another);
        assert!(matches!(third.add::<pb::WriteFile>(piece(1)), Ok(None)));
    }

    #[test]
    fn errors_of_the_system_stay_what_they_are() {
        let error = std::fs::read("/nowhere/at/all").expect_err("not there");
        let passed = io_error(failed(&error));
        assert_eq!((passed.kind(), passed.to_string()), (error.kind(), error.to_string()));
    }
}
