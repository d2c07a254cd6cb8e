//! Dialing: TCP, TLS where the address wants it, HTTP/2, and the session handshake.

use std::fmt;
use std::future::{Future, ready};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use hyper_util::rt::TokioIo;
use sync_core::code::Code;
use sync_core::ids::AuthorityId;
use sync_core::limits;
use sync_core::pb::SignedRecord;
use sync_core::record::{NodeCertificate, RawRecord, Verified};
use sync_core::session::{Nonces, sign_proof, verify_challenge};
use sync_core::token::{NodeAddress, Transport};
use sync_host::{Host, Stream};
use sync_proto::status::Failure;
use sync_proto::v1::sync_client::SyncClient;
use sync_proto::v1::{self, Challenge, Hello, Proof, VersionRange};
use sync_proto::{WireError, array, id, read_verified, required};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

use super::tls::{self, CertificateProblem, PinError, TlsError};
use super::{Conn, Identity, RpcError, SessionToken, failure};

/// The protocol versions that this build speaks.
const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };
/// What a message may have on top of [`limits::MESSAGE_BYTES_MAX`] for field tags and lengths, bytes.
const FRAMING_BYTES_MAX: usize = 64 << 10;
/// HTTP/2 flow control: what one stream may have in flight, bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow control: what all streams together may have in flight, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Why there is no session: one variant for each thing that a person would do something different about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nothing accepts connections at the endpoint, or there is no way to it.
    #[error("cannot reach {}", .address.endpoint)]
    Unreachable { address: NodeAddress, source: io::Error },
    #[error("{} did not answer in time: {step}", .address.endpoint)]
    TimedOut { address: NodeAddress, step: Step },
    /// Something answers, but it is no node, or not over this transport.
    #[error("what answers at {} is not a Headwater node", .address.endpoint)]
    NotHeadwater { address: NodeAddress, source: Box<Stranger> },
    /// A node answers, but of another authority than the address names.
    #[error("this node belongs to {actual}, not to {expected}")]
    WrongNode { expected: AuthorityId, actual: AuthorityId },
    /// Shown: the right node certificate. Not shown: its key. Somebody imitates the node, or stands in between.
    #[error("what answers at {} does not hold the key of its node certificate", .address.endpoint)]
    BadChallenge { address: NodeAddress },
    #[error("this build speaks protocol {ours}; the node says: {theirs}")]
    VersionMismatch { ours: String, theirs: String },
    /// The node refuses this session: a revoked device, too much load, …
    #[error("the node refused the session")]
    Refused(#[source] Failure),
    /// The connection failed during the session handshake.
    #[error("{step} failed")]
    Rpc { step: Step, source: Box<tonic::Status> },
}

impl DialError {
    /// The stable name, as in reasons and in `--json`. A refusal has the name that the node gave it.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "UNREACHABLE",
            Self::TimedOut { .. } => "TIMED_OUT",
            Self::NotHeadwater { .. } => "NOT_HEADWATER",
            Self::WrongNode { .. } => "WRONG_NODE",
            Self::BadChallenge { .. } => "BAD_CHALLENGE",
            Self::VersionMismatch { .. } => Code::VersionMismatch.name(),
            Self::Refused(failure) => failure.code.name(),
            Self::Rpc { .. } => "CONNECTION_LOST",
        }
    }
}

/// How we can tell that it is no node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stranger {
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("it speaks TLS, but not HTTP/2")]
    NoHttp2,
    #[error("its certificate is not a node's")]
    Certificate(#[source] CertificateProblem),
    #[error("it does not speak HTTP/2")]
    Http2(#[source] tonic::transport::Error),
    #[error("it does not offer the sync service")]
    Service(#[source] Box<tonic::Status>),
    #[error("its answer is not one of this protocol")]
    Answer(#[source] WireError),
}

/// The parts of dialing; each has [`limits::HANDSHAKE_TIMEOUT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    Tls,
    Http2,
    OpenSession,
    ProveSession,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Tls => "the TLS handshake",
            Self::Http2 => "the HTTP/2 preface",
            Self::OpenSession => "opening a session",
            Self::ProveSession => "proving the session",
        })
    }
}

/// Opens a connection and a session on it. `device_list` is the account's newest that we know; `generation` is the caller's
/// number for the result.
///
/// # Errors
/// [`DialError`]. None of them is final: networks, nodes and certificates get repaired.
pub(crate) async fn dial(
    host: &Host,
    address: &NodeAddress,
    identity: &Identity,
    device_list: RawRecord,
    generation: u64,
) -> Result<Conn, DialError> {
    let endpoint = endpoint(address)?;
    let stream = connect(host, address).await?;
    let (channel, pinned) = match address.transport {
        Transport::Tls => {
            let (stream, certificate) = secure(address, stream).await?;
            (start_http2(address, &endpoint, stream).await?, Some(certificate))
        }
        Transport::Plain => (start_http2(address, &endpoint, stream).await?, None),
    };
    let client_nonce = host.random();
    let challenge = open_session(address, &channel, identity, device_list, &client_nonce).await?;
    let proven = verify_answer(address, identity, client_nonce, &challenge, pinned.as_ref())?;
    let (token, device_list) = prove_session(address, &channel, identity, &proven, challenge.session).await?;
    let rpc = SyncClient::new(InterceptedService::new(channel, token))
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX + FRAMING_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX + FRAMING_BYTES_MAX);
    Ok(Conn {
        rpc,
        nonces: proven.nonces,
        node: Arc::new(proven.certificate),
        generation,
        device_list: device_list.map(Arc::new),
    })
}

// ---- the connection -------------------------------------------------------------------------------------------------

fn endpoint(address: &NodeAddress) -> Result<Endpoint, DialError> {
    let uri = |scheme: &str| format!("{scheme}://{}", address.endpoint).parse::<Uri>();
    let invalid = |error| DialError::Unreachable {
        address: address.clone(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    };
    // The scheme is only what requests say of themselves; the stream is made here, with TLS or without.
    let origin = uri(match address.transport {
        Transport::Tls => "https",
        Transport::Plain => "http",
    });
    Ok(Endpoint::from(uri("http").map_err(invalid)?)
        .origin(origin.map_err(invalid)?)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

async fn connect(host: &Host, address: &NodeAddress) -> Result<Stream, DialError> {
    let connecting = host.connect(&address.endpoint);
    let unreachable = |source| DialError::Unreachable { address: address.clone(), source };
    within(address, Step::Connect, connecting).await?.map_err(unreachable)
}

async fn secure(
    address: &NodeAddress,
    stream: Stream,
) -> Result<(TlsStream<Stream>, Verified<NodeCertificate>), DialError> {
    let secured = within(address, Step::Tls, tls::handshake(stream, address.authority)).await?;
    secured.map_err(|error| match error {
        TlsError::Handshake(error) => stranger(address, Stranger::Tls(error)),
        TlsError::NoHttp2 => stranger(address, Stranger::NoHttp2),
        TlsError::Pin(PinError::NotANode(problem)) => stranger(address, Stranger::Certificate(problem)),
        TlsError::Pin(PinError::WrongAuthority { actual }) => wrong_node(address, actual),
        TlsError::Pin(PinError::WrongKey) | TlsError::KeyNotHeld => bad_challenge(address),
    })
}

/// A channel over this stream and no other: a session is bound to its connection, so a channel that reconnects by itself would
/// go on without one.
async fn start_http2<S>(address: &NodeAddress, endpoint: &Endpoint, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let only_once = tower::service_fn(move |_: Uri| {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection of this session has ended");
        ready(stream.take().ok_or_else(gone))
    });
    let started = within(address, Step::Http2, endpoint.connect_with_connector(only_once)).await?;
    started.map_err(|error| stranger(address, Stranger::Http2(error)))
}

// ---- the session ----------------------------------------------------------------------------------------------------

async fn open_session(
    address: &NodeAddress,
    channel: &Channel,
    identity: &Identity,
    device_list: RawRecord,
    client_nonce: &[u8; 32],
) -> Result<Challenge, DialError> {
    let hello = Hello {
        versions: Some(VERSIONS),
        features: Vec::new(),
        account: identity.account.to_bytes(),
        device: identity.device().to_bytes(),
        certificate: Some(identity.certificate.clone().into()),
        device_list: Some(device_list.into()),
        client_nonce: Bytes::copy_from_slice(client_nonce),
    };
    let mut rpc = SyncClient::new(channel.clone());
    match within(address, Step::OpenSession, rpc.open_session(hello)).await? {
        Ok(challenge) => Ok(challenge.into_inner()),
        // The first bytes that are not ours to choose arrive here: also those of a server that is no node.
        Err(status) if is_foreign(&status) => Err(stranger(address, Stranger::Service(Box::new(status)))),
        Err(status) => Err(refused(Step::OpenSession, status)),
    }
}

/// What a node proved to be.
struct Proven {
    nonces: Nonces,
    certificate: Verified<NodeCertificate>,
}

/// The node must be of the authority that was dialed, the same that TLS saw, and hold its key now.
fn verify_answer(
    address: &NodeAddress,
    identity: &Identity,
    client_nonce: [u8; 32],
    challenge: &Challenge,
    pinned: Option<&Verified<NodeCertificate>>,
) -> Result<Proven, DialError> {
    let answer = decode_challenge(challenge).map_err(|error| stranger(address, Stranger::Answer(error)))?;
    let NodeCertificate { authority, node, not_before_ms: _ } = *answer.certificate.body();
    for named in [answer.authority, authority] {
        if named != address.authority {
            return Err(wrong_node(address, named));
        }
    }
    if pinned.is_some_and(|pinned| pinned.id() != answer.certificate.id()) {
        return Err(bad_challenge(address));
    }
    let nonces = Nonces { client: client_nonce, server: answer.server_nonce };
    verify_challenge(&node, &nonces, &identity.account, &identity.device(), &challenge.signature)
        .map_err(|_| bad_challenge(address))?;
    // Last: only now is it the node's own word.
    let VersionRange { min, max } = answer.versions;
    if min > VERSIONS.max || max < VERSIONS.min {
        return Err(DialError::VersionMismatch { ours: range_text(VERSIONS), theirs: range_text(answer.versions) });
    }
    Ok(Proven { nonces, certificate: answer.certificate })
}

struct Answer {
    authority: AuthorityId,
    certificate: Verified<NodeCertificate>,
    server_nonce: [u8; 32],
    versions: VersionRange,
}

fn decode_challenge(challenge: &Challenge) -> Result<Answer, WireError> {
    Ok(Answer {
        authority: id(&challenge.authority)?,
        certificate: read_verified("node_certificate", challenge.node_certificate.clone())?,
        server_nonce: array("server_nonce", &challenge.server_nonce)?,
        versions: required("versions", challenge.versions)?,
    })
}

async fn prove_session(
    address: &NodeAddress,
    channel: &Channel,
    identity: &Identity,
    proven: &Proven,
    session: Bytes,
) -> Result<(SessionToken, Option<SignedRecord>), DialError> {
    let signature = sign_proof(&identity.device_key, &proven.nonces, &address.authority);
    let proof = Proof { session, signature: Bytes::copy_from_slice(&signature) };
    let mut rpc = SyncClient::new(channel.clone());
    let proved = within(address, Step::ProveSession, rpc.prove_session(proof)).await?;
    let answer = proved.map_err(|status| refused(Step::ProveSession, status))?.into_inner();
    let v1::SessionToken { token, expires_in_ms: _, device_list } = answer;
    if token.is_empty() {
        return Err(stranger(address, Stranger::Answer(WireError::Missing("token"))));
    }
    Ok((token_metadata(&token), device_list))
}

fn token_metadata(token: &[u8]) -> SessionToken {
    let text = BASE32_NOPAD.encode(token).to_ascii_lowercase();
    let mut value = AsciiMetadataValue::try_from(text).expect("base32 is visible ASCII");
    value.set_sensitive(true);
    SessionToken(value)
}

// ---- errors ---------------------------------------------------------------------------------------------------------

async fn within<T>(address: &NodeAddress, step: Step, work: impl Future<Output = T>) -> Result<T, DialError> {
    let late = |_| DialError::TimedOut { address: address.clone(), step };
    tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, work).await.map_err(late)
}

/// No node's answer: an unknown service or path (`Unimplemented`), bytes that are not HTTP/2 (`Internal`), or an HTTP
/// response that is not gRPC (`Unknown`). A node's own failures carry a detail.
fn is_foreign(status: &tonic::Status) -> bool {
    let foreign = matches!(status.code(), tonic::Code::Unimplemented | tonic::Code::Internal | tonic::Code::Unknown);
    foreign && Failure::from_status(status).is_none()
}

fn refused(step: Step, status: tonic::Status) -> DialError {
    match failure(&status) {
        RpcError::Node(failure) if failure.code == Code::VersionMismatch => {
            DialError::VersionMismatch { ours: range_text(VERSIONS), theirs: failure.message }
        }
        RpcError::Node(failure) => DialError::Refused(failure),
        RpcError::Transport(_) => DialError::Rpc { step, source: Box::new(status) },
    }
}

fn range_text(range: VersionRange) -> String {
    let VersionRange { min, max } = range;
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

fn stranger(address: &NodeAddress, why: Stranger) -> DialError {
    DialError::NotHeadwater { address: address.clone(), source: Box::new(why) }
}

fn wrong_node(address: &NodeAddress, actual: AuthorityId) -> DialError {
    DialError::WrongNode { expected: address.authority, actual }
}

fn bad_challenge(address: &NodeAddress) -> DialError {
    DialError::BadChallenge { address: address.clone() }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use sync_core::ids::{AccountId, DeviceId, NodeId};
    use sync_core::record::{DeviceCertificate, DeviceList};
    use sync_core::session::sign_challenge;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const CLIENT_NONCE: [u8; 32] = [7; 32];

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn authority(seed: u8) -> AuthorityId {
        AuthorityId::from(&key(seed).verifying_key())
    }

    fn address(endpoint: &str, transport: Transport) -> NodeAddress {
        NodeAddress { transport, authority: authority(1), endpoint: endpoint.to_owned() }
    }

    fn identity() -> Identity {
        let (account_key, device_key) = (key(20), key(21));
        let account = AccountId::from(&account_key.verifying_key());
        let device = DeviceId::from(&device_key.verifying_key());
        let certificate = DeviceCertificate { account, device, at_ms: 1 };
        Identity {
            account,
            device_key,
            certificate: Verified::sign(&certificate, &account_key, None).expect("signed").into_raw(),
        }
    }

    fn device_list() -> RawRecord {
        let Identity { account, .. } = identity();
        let body = DeviceList { account, version: 1, devices: vec![identity().device()] };
        Verified::sign(&body, &key(20), None).expect("signed").into_raw()
    }

    fn certificate(authority_seed: u8, node_seed: u8) -> Verified<NodeCertificate> {
        let node = NodeId::from(&key(node_seed).verifying_key());
        let body = NodeCertificate { authority: authority(authority_seed), node, not_before_ms: 1 };
        Verified::sign(&body, &key(authority_seed), None).expect("signed")
    }

    /// The answer of a node with this certificate, signed with this key.
    fn challenge(certificate: &Verified<NodeCertificate>, signer_seed: u8) -> Challenge {
        let nonces = Nonces { client: CLIENT_NONCE, server: [8; 32] };
        let identity = identity();
        let signature = sign_challenge(&key(signer_seed), &nonces, &identity.account, &identity.device());
        Challenge {
            session: Bytes::from_static(b"session"),
            authority: certificate.body().authority.to_bytes(),
            node_certificate: Some(certificate.raw().clone().into()),
            server_nonce: Bytes::copy_from_slice(&nonces.server),
            limits: None,
            features: Vec::new(),
            versions: Some(VERSIONS),
            signature: Bytes::copy_from_slice(&signature),
        }
    }

    fn verify(challenge: &Challenge, pinned: Option<&Verified<NodeCertificate>>) -> Result<Proven, &'static str> {
        let address = address("node.example:4710", Transport::Tls);
        verify_answer(&address, &identity(), CLIENT_NONCE, challenge, pinned).map_err(|error| error.code())
    }

    #[test]
    fn an_honest_answer_proves_the_node() {
        let certificate = certificate(1, 10);
        let proven = verify(&challenge(&certificate, 10), Some(&certificate)).expect("proven");
        assert_eq!(proven.certificate, certificate);
        assert_eq!(proven.nonces, Nonces { client: CLIENT_NONCE, server: [8; 32] });
    }

    #[test]
    fn every_lie_in_the_answer_is_found() {
        let ours = certificate(1, 10);
        let honest = challenge(&ours, 10);
        let other = certificate(1, 11);
        let refused = |challenge: &Challenge, pinned| verify(challenge, pinned).err();
        assert_eq!(refused(&challenge(&certificate(2, 10), 10), None), Some("WRONG_NODE"));
        let renamed = Challenge { authority: authority(1).to_bytes(), ..challenge(&certificate(2, 10), 10) };
        assert_eq!(refused(&renamed, None), Some("WRONG_NODE"));
        assert_eq!(refused(&challenge(&ours, 11), None), Some("BAD_CHALLENGE"));
        let replayed = Challenge { server_nonce: Bytes::from_static(&[9; 32]), ..honest.clone() };
        assert_eq!(refused(&replayed, None), Some("BAD_CHALLENGE"));
        assert_eq!(refused(&honest, Some(&other)), Some("BAD_CHALLENGE"), "TLS ends at another node");
        let newer = Challenge { versions: Some(VersionRange { min: 2, max: 3 }), ..honest.clone() };
        assert_eq!(refused(&newer, None), Some("VERSION_MISMATCH"));
        let nameless = Challenge { node_certificate: None, ..honest };
        assert_eq!(refused(&nameless, None), Some("NOT_HEADWATER"));
    }

    #[test]
    fn a_nodes_refusal_keeps_its_code() {
        let refusal = |code| refused(Step::OpenSession, Failure::new(code, "because").into());
        assert!(matches!(refusal(Code::DeviceRevoked), DialError::Refused(f) if f.code == Code::DeviceRevoked));
        assert_eq!(refusal(Code::Overloaded).code(), "OVERLOADED");
        assert!(matches!(refusal(Code::VersionMismatch), DialError::VersionMismatch { .. }));
        assert_eq!(refused(Step::OpenSession, tonic::Status::unavailable("gone")).code(), "CONNECTION_LOST");
    }

    #[test]
    fn the_token_is_lower_case_base32() {
        assert_eq!(token_metadata(b"foobar").0.to_str().ok(), Some("mzxw6ytboi"));
    }

    async fn dial_code(endpoint: &str, transport: Transport) -> &'static str {
        dial(&Host::real(), &address(endpoint, transport), &identity(), device_list(), 1)
            .await
            .expect_err("no node")
            .code()
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let endpoint = listener.local_addr().expect("address").to_string();
        drop(listener);
        assert_eq!(dial_code(&endpoint, Transport::Tls).await, "UNREACHABLE");
        assert_eq!(dial_code("not a host:1", Transport::Plain).await, "UNREACHABLE");
    }

    #[tokio::test]
    async fn another_server_is_not_headwater() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let endpoint = listener.local_addr().expect("address").to_string();
        let server = tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.expect("accepted");
                let _ = tcp.read(&mut [0; 1024]).await;
                let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
                let _ = tcp.shutdown().await;
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            }
        });
        assert_eq!(dial_code(&endpoint, Transport::Tls).await, "NOT_HEADWATER");
        assert_eq!(dial_code(&endpoint, Transport::Plain).await, "NOT_HEADWATER");
        server.abort();
    }
}
