//! TLS that is pinned by the node's address, not by a certificate authority.
//!
//! The certificate is self-signed by the node's Ed25519 key and carries the signed `NodeCertificate` record in the extension
//! [`CERTIFICATE_EXTENSION_OID`]. During the handshake a client checks that
//!
//! 1. the extension holds a `NodeCertificate` (the bytes of `RawRecord::to_vec`) that verifies,
//! 2. its `authority` is the one in the node's address,
//! 3. its `node` is the public key (SPKI) of the certificate, with which the handshake is signed.
//!
//! Names, dates and issuer of the certificate mean nothing.

use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ED25519};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sync_proto::CERTIFICATE_EXTENSION_OID;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::identity::Identity;

/// The name in the certificate. Clients do not check it.
pub const CERTIFICATE_NAME: &str = "headwater-node";

/// PKCS#8 version 1 of an Ed25519 seed, up to the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the TLS certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
}

/// What accepts TLS connections in the node's name: TLS 1.3, HTTP/2 only.
pub(crate) fn acceptor(identity: &Identity) -> Result<TlsAcceptor, TlsError> {
    let pkcs8 = pkcs8(identity);
    let key = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    let key_pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)?;
    let mut params = CertificateParams::new([CERTIFICATE_NAME.to_owned()])?;
    let record = identity.certificate.raw().to_vec();
    params.custom_extensions = vec![CustomExtension::from_oid_content(CERTIFICATE_EXTENSION_OID, record)];
    let certificate = params.self_signed(&key_pair)?.der().clone();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.clone_key()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn pkcs8(identity: &Identity) -> Zeroizing<Vec<u8>> {
    let seed = Zeroizing::new(identity.node_key.to_bytes());
    Zeroizing::new([PKCS8_PREFIX.as_slice(), seed.as_slice()].concat())
}
