//! Messages on a stream: each behind its length.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use sync_core::limits;
use sync_host::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::PeerError;

/// A stream of messages. A call that was cancelled half way leaves it useless.
pub(super) struct Frames(Stream);

impl Frames {
    pub(super) const fn new(stream: Stream) -> Self {
        Self(stream)
    }

    pub(super) async fn send(&mut self, message: &impl Message) -> Result<(), PeerError> {
        let len = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend(message.encode_to_vec());
        self.0.write_all(&frame).await?;
        self.0.flush().await?;
        Ok(())
    }

    /// The next message; `None` if the other side ended between two.
    pub(super) async fn receive<M: Message + Default>(&mut self, within: Duration) -> Result<Option<M>, PeerError> {
        tokio::time::timeout(within, self.next()).await.map_err(|_| PeerError::TimedOut)?
    }

    async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, PeerError> {
        let mut len = [0; 4];
        if self.0.read(&mut len[..1]).await? == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut len[1..]).await?;
        let len = u32::from_be_bytes(len) as usize;
        if len > limits::MESSAGE_BYTES_MAX {
            return Err(PeerError::BadAnswer(format!("a message of {len} bytes")));
        }
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).await?;
        M::decode(Bytes::from(bytes)).map(Some).map_err(|e| PeerError::bad(&e))
    }
}
