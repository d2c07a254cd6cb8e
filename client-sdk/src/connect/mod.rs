//! One connection to a node: dialing, pinning, the session handshake, and the client that carries its token.
//!
//! A session lives and dies with the connection it was opened on. Nothing here reconnects: a call on a dead connection
//! fails, and the caller dials again, which makes a new session.

mod dial;
mod tls;

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use sync_core::ids::{AccountId, DeviceId};
use sync_core::pb::SignedRecord;
use sync_core::record::{NodeCertificate, RawRecord, Verified};
use sync_core::session::Nonces;
use sync_proto::TOKEN_KEY;
use sync_proto::status::Failure;
use sync_proto::v1::sync_client::SyncClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub(crate) use dial::{DialError, dial};

/// The client of an open session: every call carries the session's token.
pub(crate) type Rpc = SyncClient<InterceptedService<Channel, SessionToken>>;

/// Who we are towards a node.
#[derive(Clone)]
pub(crate) struct Identity {
    pub account: AccountId,
    pub device_key: SigningKey,
    /// The account's `DeviceCertificate` of this device.
    pub certificate: RawRecord,
}

impl Identity {
    /// The device that opens sessions.
    pub(crate) fn device(&self) -> DeviceId {
        DeviceId::from(&self.device_key.verifying_key())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, device_key: _, certificate: _ } = self;
        f.debug_struct("Identity").field("account", account).field("device", &self.device()).finish_non_exhaustive()
    }
}

/// One open session with a node: cheap to clone. The connection closes when the last clone, and the last client that
/// [`Conn::rpc`] handed out, is dropped.
#[derive(Clone)]
pub(crate) struct Conn {
    rpc: Rpc,
    nonces: Nonces,
    node: Arc<Verified<NodeCertificate>>,
    generation: u64,
    device_list: Option<Arc<SignedRecord>>,
}

impl Conn {
    /// The account's device list that the node said counts, unverified.
    pub(crate) fn device_list(&self) -> Option<&SignedRecord> {
        self.device_list.as_deref()
    }

    /// A client on this connection. Calls have no deadline of their own.
    pub(crate) fn rpc(&self) -> Rpc {
        self.rpc.clone()
    }

    /// Both nonces of this session in one: what an invite's read proof signs.
    pub(crate) fn nonces(&self) -> [u8; 64] {
        self.nonces.joined()
    }

    /// The authority's word for the node key that answered; receipts of this session are signed by it.
    pub(crate) fn node_certificate(&self) -> &Verified<NodeCertificate> {
        &self.node
    }

    /// The number that was given to [`dial`], to tell connections apart.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rpc: _, nonces: _, node, generation, device_list: _ } = self;
        f.debug_struct("Conn").field("node", node.body()).field("generation", generation).finish_non_exhaustive()
    }
}

/// The token of a session, as the metadata value of every call. Marked sensitive: no log and no `Debug` shows it.
#[derive(Clone, Debug)]
pub(crate) struct SessionToken(AsciiMetadataValue);

impl Interceptor for SessionToken {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert(TOKEN_KEY, self.0.clone());
        Ok(request)
    }
}

/// Why a call on an open session failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RpcError {
    /// The node answered with a failure.
    #[error(transparent)]
    Node(Failure),
    /// The connection failed, or something between us and the node answered in its place.
    #[error("the connection to the node failed: {0}")]
    Transport(String),
}

/// Reads a status. Without the typed detail that every node sends, it came from the transport.
pub(crate) fn failure(status: &tonic::Status) -> RpcError {
    Failure::from_status(status).map_or_else(|| RpcError::Transport(transport_text(status)), RpcError::Node)
}

/// The transport's message with its causes, for people. The causes are all that says which of the many "transport error" it
/// was.
fn transport_text(status: &tonic::Status) -> String {
    let said = if status.message().is_empty() { status.code().description() } else { status.message() };
    let mut text = said.to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use sync_core::code::Code;

    use super::*;

    #[test]
    fn a_status_without_detail_is_the_transports() {
        let known = Failure::new(Code::Overloaded, "come back later").retry_after(500);
        assert_eq!(failure(&known.clone().into()), RpcError::Node(known));
        let unknown = tonic::Status::unavailable("no route");
        assert_eq!(failure(&unknown), RpcError::Transport("no route".into()));
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut value = AsciiMetadataValue::from_static("mfrggzdf");
        value.set_sensitive(true);
        assert!(!format!("{:?}", SessionToken(value)).contains("mfrggzdf"));
    }
}
