//! Messages in pieces, paths as bytes, errors of the system with their number.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::pb;

/// What one message of the stream carries at most of something larger, bytes.
const PIECE_BYTES: usize = 256 << 10;
/// The largest ask or reply, bytes: a file that is imported or written.
const WHOLE_BYTES_MAX: usize = 1 << 30;

pub(super) fn path_bytes(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

pub(super) fn path(bytes: &Bytes) -> PathBuf {
    PathBuf::from(os_string(bytes))
}

pub(super) fn os_string(bytes: &Bytes) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// A message as pieces; at least one.
pub(super) fn pieces(message: &impl Message) -> Vec<pb::Piece> {
    let whole = Bytes::from(message.encode_to_vec());
    let count = whole.len().div_ceil(PIECE_BYTES).max(1);
    let piece = |n: usize| {
        let part = whole.slice(n * PIECE_BYTES..whole.len().min((n + 1) * PIECE_BYTES));
        pb::Piece { part, last: n + 1 == count }
    };
    (0..count).map(piece).collect()
}

/// Bytes to print, in parts that fit a message.
pub(super) fn parts(bytes: Vec<u8>) -> impl Iterator<Item = Bytes> {
    let whole = Bytes::from(bytes);
    (0..whole.len().div_ceil(PIECE_BYTES))
        .map(move |n| whole.slice(n * PIECE_BYTES..whole.len().min((n + 1) * PIECE_BYTES)))
}

/// Pieces on their way to a message.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    bytes: Vec<u8>,
}

impl Assembly {
    /// The message, once its last piece is here.
    pub(super) fn add<M: Message + Default>(&mut self, piece: pb::Piece) -> io::Result<Option<M>> {
        if self.bytes.len() + piece.part.len() > WHOLE_BYTES_MAX {
            let text = format!("more than {WHOLE_BYTES_MAX} bytes do not pass between a command and its daemon");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.bytes.extend_from_slice(&piece.part);
        if !piece.last {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.bytes);
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
            let mut assembly = Assembly::default();
            let mut whole = None;
            for piece in pieces(&message) {
                assert!(whole.is_none());
                whole = assembly.add::<pb::WriteFile>(piece).expect("a piece");
            }
            assert_eq!(whole, Some(message));
        }
        assert_eq!(parts(Vec::new()).count(), 0);
        assert_eq!(parts(vec![1; PIECE_BYTES + 1]).map(|p| p.len()).collect::<Vec<_>>(), [PIECE_BYTES, 1]);
    }

    #[test]
    fn errors_of_the_system_stay_what_they_are() {
        let error = std::fs::read("/nowhere/at/all").expect_err("not there");
        let passed = io_error(failed(&error));
        assert_eq!((passed.kind(), passed.to_string()), (error.kind(), error.to_string()));
    }
}
