//! TLS towards a node: version 1.3, HTTP/2, and a certificate that is pinned to an authority instead of to a name.
//!
//! A node's X.509 certificate is self-signed with its node key (Ed25519). Its only content is the non-critical extension
//! [`CERTIFICATE_EXTENSION_OID`]: the octets of the extension's `extnValue` are the protobuf bytes of the `SignedRecord` with
//! the `NodeCertificate`, as [`RawRecord::to_vec`] writes them, without a further ASN.1 wrapping. Names, dates and
//! usages in the certificate mean nothing and are not read.

use std::io;
use std::sync::{Arc, OnceLock};

use ed25519_dalek::{Signature, VerifyingKey};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme};
use sync_core::ids::{AuthorityId, NodeId};
use sync_core::record::{NodeCertificate, RawRecord, Verified, VerifyError, verify_as};
use sync_host::Socket;
use sync_proto::CERTIFICATE_EXTENSION_OID;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_SIG_ED25519;

/// The server name that we send. Nodes have no names: the authority in the address says who must answer.
const SERVER_NAME: &str = "headwater";
const HTTP2: &[u8] = b"h2";

/// What is wrong with an X.509 certificate that cannot be a node's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateProblem {
    #[error("it is not an X.509 certificate")]
    NotX509,
    #[error("it is not for an Ed25519 key")]
    NotEd25519,
    #[error("it is not signed with its own key")]
    NotSelfSigned,
    #[error("it carries no node certificate")]
    NoNodeCertificate,
    #[error("the node certificate that it carries does not verify")]
    NodeCertificate(#[from] VerifyError),
}

/// Why a certificate is not the one that we dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PinError {
    NotANode(CertificateProblem),
    /// A node of another authority.
    WrongAuthority {
        actual: AuthorityId,
    },
    /// The authority certified another key than the one that answers.
    WrongKey,
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub(super) enum TlsError {
    /// The other side does not speak TLS 1.3, or the connection broke.
    Handshake(io::Error),
    /// TLS, but not HTTP/2.
    NoHttp2,
    Pin(PinError),
    /// The certificate is right, but whoever showed it does not hold its key.
    KeyNotHeld,
}

/// The TLS handshake, and the node certificate that the other side proved to hold.
///
/// # Errors
/// [`TlsError`]. Has no timeout of its own.
pub(super) async fn handshake<S: Socket>(
    stream: S,
    authority: AuthorityId,
) -> Result<(TlsStream<S>, Verified<NodeCertificate>), TlsError> {
    let pin = Arc::new(Pin::new(authority));
    let connector = TlsConnector::from(Arc::new(client_config(pin.clone())));
    let name = ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name");
    let connected = connector.connect(name, stream).await;
    match (connected, pin.verdict.get().cloned()) {
        (_, Some(Err(error))) => Err(TlsError::Pin(error)),
        (Ok(stream), Some(Ok(certificate))) => match stream.get_ref().1.alpn_protocol() {
            Some(HTTP2) => Ok((stream, certificate)),
            Some(_) | None => Err(TlsError::NoHttp2),
        },
        (Err(error), Some(Ok(_))) if is_bad_signature(&error) => Err(TlsError::KeyNotHeld),
        (Err(error), Some(Ok(_)) | None) => Err(TlsError::Handshake(error)),
        // Only a resumed session has no certificate, and we resume none.
        (Ok(_), None) => Err(TlsError::Pin(PinError::NotANode(CertificateProblem::NotX509))),
    }
}

/// Made anew for each handshake: a resumed TLS session would skip the verifier.
fn client_config(pin: Arc<Pin>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(pin)
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn is_bad_signature(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner == Some(&rustls::Error::InvalidCertificate(CertificateError::BadSignature))
}

/// Accepts the nodes of one authority, for one handshake. Keeps its verdict, because rustls passes none of ours on.
#[derive(Debug)]
struct Pin {
    authority: AuthorityId,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: OnceLock<Result<Verified<NodeCertificate>, PinError>>,
}

impl Pin {
    fn new(authority: AuthorityId) -> Self {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Self { authority, algorithms, verdict: OnceLock::new() }
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = verify_pinned(end_entity, self.authority);
        let accepted = verdict.is_ok();
        if self.verdict.set(verdict).is_ok() && accepted {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // With the key as our own parser reads it, so that the pinned key and the proven key cannot be two.
        let certificate = decode_x509(cert).map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn verify_pinned(der: &[u8], expected: AuthorityId) -> Result<Verified<NodeCertificate>, PinError> {
    let (key, certificate) = verify_node_x509(der).map_err(PinError::NotANode)?;
    let NodeCertificate { authority, node, not_before_ms: _ } = *certificate.body();
    if authority != expected {
        Err(PinError::WrongAuthority { actual: authority })
    } else if node != key {
        Err(PinError::WrongKey)
    } else {
        Ok(certificate)
    }
}

/// The key of a self-signed certificate, and the node certificate beside it, each verified for itself.
fn verify_node_x509(der: &[u8]) -> Result<(NodeId, Verified<NodeCertificate>), CertificateProblem> {
    let x509 = decode_x509(der)?;
    let key = verify_self_signed(&x509)?;
    let is_ours = |arcs: &mut dyn Iterator<Item = u64>| arcs.eq(CERTIFICATE_EXTENSION_OID.iter().copied());
    let mut ours = x509.extensions().iter().filter(|e| e.oid.iter().is_some_and(|mut arcs| is_ours(&mut arcs)));
    let (Some(extension), None) = (ours.next(), ours.next()) else {
        return Err(CertificateProblem::NoNodeCertificate);
    };
    Ok((key, verify_as(RawRecord::from_slice(extension.value)?)?))
}

fn decode_x509(der: &[u8]) -> Result<X509Certificate<'_>, CertificateProblem> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(CertificateProblem::NotX509),
    }
}

fn verify_self_signed(x509: &X509Certificate<'_>) -> Result<NodeId, CertificateProblem> {
    let info = x509.public_key();
    if info.algorithm.algorithm != OID_SIG_ED25519 {
        return Err(CertificateProblem::NotEd25519);
    }
    let node = NodeId::try_from(&*info.subject_public_key.data).map_err(|_| CertificateProblem::NotEd25519)?;
    let key = VerifyingKey::from_bytes(node.as_bytes()).map_err(|_| CertificateProblem::NotEd25519)?;
    let signature = Signature::from_slice(&x509.signature_value.data).map_err(|_| CertificateProblem::NotSelfSigned)?;
    key.verify_strict(x509.tbs_certificate.as_ref(), &signature).map_err(|_| CertificateProblem::NotSelfSigned)?;
    Ok(node)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::ResolvesServerCert;
    use rustls::sign::CertifiedKey;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// What a server shows, and the key that it signs the handshake with.
    struct Shown {
        certificate: CertificateDer<'static>,
        key: KeyPair,
    }

    fn authority(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn authority_id(seed: u8) -> AuthorityId {
        AuthorityId::from(&authority(seed).verifying_key())
    }

    fn node_key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ED25519).expect("key")
    }

    fn record(authority_seed: u8, key: &KeyPair) -> Vec<u8> {
        let node = NodeId::try_from(key.public_key_raw()).expect("Ed25519 key");
        let body = NodeCertificate { authority: authority_id(authority_seed), node, not_before_ms: 1 };
        Verified::sign(&body, &authority(authority_seed), None).expect("signed").raw().to_vec()
    }

    fn self_signed(key: KeyPair, extensions: &[Vec<u8>]) -> Shown {
        let mut params = CertificateParams::new(["node".to_owned()]).expect("name");
        let extension =
            |content: &Vec<u8>| CustomExtension::from_oid_content(CERTIFICATE_EXTENSION_OID, content.clone());
        params.custom_extensions = extensions.iter().map(extension).collect();
        Shown { certificate: params.self_signed(&key).expect("signed").der().clone(), key }
    }

    fn node_of(authority_seed: u8) -> Shown {
        let key = node_key();
        let record = record(authority_seed, &key);
        self_signed(key, &[record])
    }

    #[derive(Debug)]
    struct Always(Arc<CertifiedKey>);

    impl ResolvesServerCert for Always {
        fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    fn server_config(shown: Shown, alpn: &[&[u8]]) -> ServerConfig {
        let key = PrivateKeyDer::try_from(shown.key.serialize_der()).expect("key");
        let signer = ring::sign::any_supported_type(&key).expect("signer");
        // By hand: rustls' own constructor refuses a certificate for another key, which one test is about.
        let certified = CertifiedKey::new(vec![shown.certificate], signer);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Always(Arc::new(certified))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    async fn shake(shown: Shown, alpn: &[&[u8]]) -> Result<Verified<NodeCertificate>, TlsError> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(shown, alpn)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let tcp = TcpStream::connect(listener.local_addr().expect("address")).await.expect("loopback");
        let (accepted, _) = listener.accept().await.expect("accepted");
        let (_, shaken) = tokio::join!(acceptor.accept(accepted), handshake(tcp, authority_id(1)));
        shaken.map(|(_, certificate)| certificate)
    }

    #[tokio::test]
    async fn the_node_of_the_authority_is_accepted() {
        let shown = node_of(1);
        let node = NodeId::try_from(shown.key.public_key_raw()).expect("Ed25519 key");
        let certificate = shake(shown, &[HTTP2]).await.expect("accepted");
        assert_eq!(certificate.body().node, node);
    }

    #[tokio::test]
    async fn another_authority_is_named() {
        let refused = shake(node_of(2), &[HTTP2]).await;
        let Err(TlsError::Pin(PinError::WrongAuthority { actual })) = refused else { panic!("{refused:?}") };
        assert_eq!(actual, authority_id(2));
    }

    #[tokio::test]
    async fn a_copied_node_certificate_is_worth_nothing() {
        let copied = record(1, &node_key());
        let refused = shake(self_signed(node_key(), &[copied]), &[HTTP2]).await;
        assert!(matches!(refused, Err(TlsError::Pin(PinError::WrongKey))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_copied_x509_certificate_is_worth_nothing() {
        let Shown { certificate, key: _ } = node_of(1);
        let refused = shake(Shown { certificate, key: node_key() }, &[HTTP2]).await;
        assert!(matches!(refused, Err(TlsError::KeyNotHeld)), "{refused:?}");
    }

    #[tokio::test]
    async fn tls_without_http2_is_refused() {
        let refused = shake(node_of(1), &[]).await;
        assert!(matches!(refused, Err(TlsError::NoHttp2)), "{refused:?}");
        let refused = shake(node_of(1), &[b"http/1.1"]).await;
        assert!(matches!(refused, Err(TlsError::Handshake(_))), "{refused:?}");
    }

    #[test]
    fn other_certificates_say_what_is_wrong_with_them() {
        let problem = |shown: Shown| match verify_pinned(&shown.certificate, authority_id(1)) {
            Err(PinError::NotANode(problem)) => problem,
            other => panic!("{other:?}"),
        };
        let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        assert_eq!(problem(self_signed(p256, &[])), CertificateProblem::NotEd25519);
        assert_eq!(problem(self_signed(node_key(), &[])), CertificateProblem::NoNodeCertificate);

        let key = node_key();
        let twice = vec![record(1, &key), record(1, &key)];
        assert_eq!(problem(self_signed(key, &twice)), CertificateProblem::NoNodeCertificate);

        let key = node_key();
        let mut forged = record(1, &key);
        let last = forged.last_mut().expect("signature");
        *last ^= 1;
        let forged = self_signed(key, &[forged]);
        assert_eq!(problem(forged), CertificateProblem::NodeCertificate(VerifyError::BadSignature));

        let Shown { certificate, key } = node_of(1);
        let mut changed = certificate.to_vec();
        let last = changed.last_mut().expect("signature");
        *last ^= 1;
        assert_eq!(problem(Shown { certificate: changed.into(), key }), CertificateProblem::NotSelfSigned);

        let not_x509 = Shown { certificate: vec![0x30, 0].into(), key: node_key() };
        assert_eq!(problem(not_x509), CertificateProblem::NotX509);
    }
}
