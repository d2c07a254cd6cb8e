//! TLS: the certificate is the node's, and carries the authority's word.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sync_core::record::{NodeCertificate, RawRecord, Verified, verify_as};
use sync_core::token::Transport;
use sync_node::{CERTIFICATE_NAME, Node, NodeConfig, RunningNode};
use sync_proto::TOKEN_KEY;
use sync_proto::v1::SpacePullRequest;
use sync_proto::v1::sync_client::SyncClient;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::common::{Caller, Person, Space, code};

/// Checks the handshake's signature, and leaves the certificate to the test.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

async fn handshake(node: &RunningNode) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(node.local_addr().unwrap()).await.unwrap();
    let name = ServerName::try_from(CERTIFICATE_NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
}

async fn dial(node: &RunningNode) -> SyncClient<Channel> {
    let mut stream = Some(handshake(node).await);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection")) }
    });
    let endpoint = Endpoint::from_static("http://node");
    SyncClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_for_the_node_key_and_carries_its_certification() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig::on_loopback(dir.path())).await.unwrap();
    assert_eq!(node.address().transport, Transport::Tls);
    let kept = std::fs::read(dir.path().join("keys/node.cert")).unwrap();
    let certificate: Verified<NodeCertificate> = verify_as(RawRecord::from_slice(&kept).unwrap()).unwrap();
    assert_eq!(certificate.body().authority, node.address().authority);

    let stream = handshake(&node).await;
    let (_, session) = stream.get_ref();
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let der = &session.peer_certificates().unwrap()[0];
    // SubjectPublicKeyInfo of an Ed25519 key, RFC 8410, section 4.
    let spki = [
        &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00],
        &certificate.body().node.as_bytes()[..],
    ]
    .concat();
    assert!(contains(der, &spki));
    assert!(contains(der, &kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_bound_to_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig::on_loopback(dir.path())).await.unwrap();
    let alice = Person::new(1);
    let mut caller = Caller::over(dial(&node).await, &alice, alice.hello()).await.unwrap();
    let space = Space::found(&alice, node.address().authority, 1);
    caller.push_space(&space).await.unwrap();

    let message = SpacePullRequest { space: space.id.to_bytes(), invite_proof: None };
    let request = caller.request(message.clone());
    let token = request.metadata().get(TOKEN_KEY).unwrap().clone();
    caller.client.space_pull(request).await.unwrap();
    let mut stolen = tonic::Request::new(message);
    stolen.metadata_mut().insert(TOKEN_KEY, token);
    let error = dial(&node).await.space_pull(stolen).await.unwrap_err();
    assert_eq!(code(&error), sync_core::code::Code::SessionExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_so_many_sessions_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig::on_loopback(dir.path())).await.unwrap();
    let alice = Person::new(1);
    let client = dial(&node).await;
    for _ in 0..16 {
        Caller::over(client.clone(), &alice, alice.hello()).await.unwrap();
    }
    let refused = Caller::over(client, &alice, alice.hello()).await.err().unwrap();
    assert_eq!(code(&refused), sync_core::code::Code::Overloaded);
    Caller::over(dial(&node).await, &alice, alice.hello()).await.unwrap();
}
