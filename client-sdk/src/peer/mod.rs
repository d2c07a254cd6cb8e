//! Two clients of one space that meet without a node: on a LAN, over a cable, in one room with no network.
//!
//! They prove to each other who they are, compare what they derived as HeadSync does, and the one whose log is shorter may
//! take the rest of it from the other. It takes only what the home signed for: entries whose ids lead from its own chain to
//! the chain of a durable receipt. So a peer can withhold, and nothing else. What no log has is shown as *unlogged* and is
//! neither kept nor built upon.
//!
//! The stream is the caller's: what crosses it is signatures and ciphertext, and who wants to hide who meets whom puts TLS
//! below.

mod ask;
mod frames;
mod serve;

use std::io;
use std::sync::Arc;

use sync_core::ids::{AccountId, DeviceId, SpaceId};
use sync_core::record::{DeviceCertificate, Verified};
use sync_core::session::{Meeting, Nonces};
use sync_host::Stream;
use sync_proto::peer_v1::{PeerHello, PeerRefusal};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{CallError, ReadError};
use crate::space::{Space, SpaceInner};

pub use ask::{Comparison, Peer, Pulled, TreeComparison, TreeStands};

/// The version of what is said between two clients.
const VERSION: u32 = 1;

/// Why a meeting with another client ended.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("the connection to the other client broke")]
    Io(#[from] io::Error),
    #[error("the other client ended the connection")]
    Ended,
    #[error("the other client did not answer in time")]
    TimedOut,
    #[error("the other client speaks version {theirs}, this one {VERSION}: upgrade the older one")]
    Version { theirs: u32 },
    #[error("the other client means another space than {expected}")]
    OtherSpace { expected: SpaceId },
    #[error("{account} is no member of this space as far as the log here tells: sync with the node first")]
    NotAMember { account: AccountId },
    #[error("the other client did not prove that it holds its device key")]
    BadProof,
    #[error("the other client refused: {message}")]
    Refused { reason: &'static str, message: String },
    #[error("the other client answered what no honest client answers: {0}")]
    BadAnswer(String),
    #[error(
        "the other client's log goes on after {here}, and it has no receipt of the home for that: sync with the node"
    )]
    Unproven { here: sync_core::ids::Seq },
    #[error(
        "the other client's log and ours part before entry {at}, for which it has a receipt of the home: sync with the node"
    )]
    Diverged { at: sync_core::ids::Seq },
    #[error("entries of the home could not be taken: {0}")]
    NotTaken(String),
    #[error(transparent)]
    Local(#[from] CallError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl PeerError {
    /// The stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io(_) | Self::Ended => "PEER_GONE",
            Self::TimedOut => "PEER_SILENT",
            Self::Version { .. } => "PEER_VERSION",
            Self::OtherSpace { .. } => "PEER_OTHER_SPACE",
            Self::NotAMember { .. } => "PEER_NOT_A_MEMBER",
            Self::BadProof => "PEER_BAD_PROOF",
            Self::Refused { .. } => "PEER_REFUSED",
            Self::BadAnswer(_) => "PEER_FAULT",
            Self::Unproven { .. } => "PEER_UNPROVEN",
            Self::Diverged { .. } => "PEER_DIVERGED",
            Self::NotTaken(_) => "PEER_NOT_TAKEN",
            Self::Local(error) => error.code(),
            Self::Read(error) => error.code(),
        }
    }

    fn bad(error: &dyn std::fmt::Display) -> Self {
        Self::BadAnswer(error.to_string())
    }

    /// What the other side is told.
    const fn refusal(&self) -> PeerRefusal {
        match self {
            Self::Version { .. } => PeerRefusal::Version,
            Self::OtherSpace { .. } => PeerRefusal::Space,
            Self::NotAMember { .. } => PeerRefusal::NotAMember,
            Self::BadProof => PeerRefusal::BadProof,
            Self::BadAnswer(_) => PeerRefusal::Malformed,
            Self::Io(_)
            | Self::Ended
            | Self::TimedOut
            | Self::Refused { .. }
            | Self::Unproven { .. }
            | Self::Diverged { .. }
            | Self::NotTaken(_)
            | Self::Local(_)
            | Self::Read(_) => PeerRefusal::Failed,
        }
    }
}

/// The client on the other side, as it proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    pub account: AccountId,
    pub device: DeviceId,
}

impl Space {
    /// Meets another client of this space that serves ([`Space::serve_peer`]), over any stream.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = tokio::net::TcpStream::connect("192.168.1.7:4711").await?;
    /// let mut peer = space.meet(stream).await?;
    /// println!("{:?}", peer.compare().await?);
    /// // What the home signed for, and the other client has, without the home.
    /// let pulled = peer.pull().await?;
    /// println!("the log here ends at {} now", pulled.to);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PeerError`]; both must be members as far as the logs of both tell.
    pub async fn meet(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Peer, PeerError> {
        Peer::meet(Arc::clone(&self.inner), Box::new(stream) as Stream).await
    }

    /// Serves another client of this space ([`Space::meet`]) until it ends the connection.
    ///
    /// # Errors
    /// [`PeerError`]; both must be members as far as the logs of both tell.
    pub async fn serve_peer(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), PeerError> {
        serve::serve(Arc::clone(&self.inner), Box::new(stream) as Stream).await
    }
}

impl SpaceInner {
    fn hello(&self, nonce: [u8; 32], signature: Option<[u8; 64]>) -> PeerHello {
        PeerHello {
            version: VERSION,
            space: self.id.to_bytes(),
            certificate: Some(self.shared.identity.certificate.clone().into()),
            nonce: nonce.to_vec().into(),
            signature: signature.map_or_else(Vec::new, |s| s.to_vec()).into(),
        }
    }

    /// Who says hello, which it has not proved yet, and its nonce.
    fn read_hello(&self, hello: PeerHello) -> Result<(PeerIdentity, [u8; 32]), PeerError> {
        if hello.version != VERSION {
            return Err(PeerError::Version { theirs: hello.version });
        }
        if hello.space != self.id.to_bytes() {
            return Err(PeerError::OtherSpace { expected: self.id });
        }
        let nonce = sync_proto::array("nonce", &hello.nonce).map_err(|e| PeerError::bad(&e))?;
        let certificate: Verified<DeviceCertificate> =
            sync_proto::read_verified("certificate", hello.certificate).map_err(|e| PeerError::bad(&e))?;
        let DeviceCertificate { account, device, at_ms: _ } = *certificate.body();
        let peer = PeerIdentity { account, device };
        self.require_member(&peer)?;
        Ok((peer, nonce))
    }

    /// Of other accounts only the node knows which devices were revoked; of our own, we do.
    fn require_member(&self, peer: &PeerIdentity) -> Result<(), PeerError> {
        let account = peer.account;
        let own = account == self.shared.account.id();
        let revoked = own && self.shared.devices.counted().is_some_and(|list| !list.body().names(&peer.device));
        if revoked || !self.acl()?.members.contains_key(&account) {
            return Err(PeerError::NotAMember { account });
        }
        Ok(())
    }

    fn meeting(&self, asks: DeviceId, serves: DeviceId, client: [u8; 32], server: [u8; 32]) -> Meeting {
        Meeting { space: self.id, nonces: Nonces { client, server }, asks, serves }
    }
}
