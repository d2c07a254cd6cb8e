//! The token of a loopback service: 32 random bytes in a file that only the owner can read. Who has it proves so in both
//! directions: the service by a keyed hash of the caller's nonce, then the caller by the token itself.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use sync_host::Host;
use sync_proto::client_v1 as pb;
use sync_proto::client_v1::door_server::Door;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Response, Status};

use super::failure::LocalError;
use super::from_wire::BadRequest;
use super::listen::Peer;

const SCHEME: &str = "Bearer ";
/// What a proof is a proof of.
const PROVE_CONTEXT: &[u8] = b"headwater/local/prove/v1";
/// Bytes of a caller's nonce.
pub(super) const NONCE_BYTES: usize = 32;

/// What every call on a loopback port brings.
#[derive(Clone)]
pub(super) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(redacted)")
    }
}

impl Token {
    pub(super) fn generate(host: &Host) -> Self {
        Self(BASE32_NOPAD.encode(&host.random::<32>()).to_ascii_lowercase())
    }

    /// Keeps it where the owner's programs find it. Every start has another one.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_private(path, format!("{}\n", self.0).as_bytes())
    }

    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::read_to_string(path)?.trim().to_owned()))
    }

    fn is(&self, said: &str) -> bool {
        self.0.as_bytes().ct_eq(said.as_bytes()).into()
    }

    /// What only a holder of the token can answer to a nonce.
    fn prove(&self, nonce: &[u8]) -> Vec<u8> {
        self.keyed(nonce).finalize().into_bytes().to_vec()
    }

    /// True if `proof` was made by a holder of the token, for this nonce.
    pub(super) fn is_proven(&self, nonce: &[u8], proof: &[u8]) -> bool {
        self.keyed(nonce).verify_slice(proof).is_ok()
    }

    fn keyed(&self, nonce: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("a key may have any length");
        mac.update(PROVE_CONTEXT);
        mac.update(nonce);
        mac
    }

    fn metadata(&self) -> Option<MetadataValue<Ascii>> {
        let mut value: MetadataValue<Ascii> = format!("{SCHEME}{}", self.0).parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Writes a file of mode 0600 as a whole: a reader sees the one before or this one.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    fs::rename(&beside, path)
}

/// Lets calls through: all where the socket itself is the proof, those with the token elsewhere.
#[derive(Debug, Clone)]
pub(super) enum Guard {
    Socket,
    Token(Token),
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Self::Token(token) = self else { return Ok(request) };
        let said = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match said.and_then(|value| value.strip_prefix(SCHEME)) {
            Some(said) if token.is(said) => {
                if let Some(peer) = request.extensions().get::<Peer>() {
                    peer.note_proven();
                }
                Ok(request)
            }
            Some(_) | None => Err(LocalError::Unauthenticated.into()),
        }
    }
}

/// Proves to callers who they reached, before they say anything.
#[derive(Debug)]
pub(super) struct Prover(pub(super) Token);

#[tonic::async_trait]
impl Door for Prover {
    async fn prove(&self, request: Request<pb::ProveRequest>) -> Result<Response<pb::ProveResponse>, Status> {
        let nonce = request.into_inner().nonce;
        if nonce.len() != NONCE_BYTES {
            let wrong = BadRequest::Length { field: "nonce", actual: nonce.len(), expected: NONCE_BYTES };
            return Err(LocalError::from(wrong).into());
        }
        Ok(Response::new(pb::ProveResponse { proof: self.0.prove(&nonce).into() }))
    }
}

/// Brings the token along, where there is one.
#[derive(Debug, Clone)]
pub struct Bearer(pub(super) Option<Token>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = self.0.as_ref().and_then(Token::metadata) {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(authorization: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(text) = authorization {
            request.metadata_mut().insert("authorization", text.parse().expect("ASCII"));
        }
        request
    }

    #[test]
    fn only_the_token_opens() {
        let token = Token::generate(&Host::real());
        let mut guard = Guard::Token(token.clone());
        let good = format!("Bearer {}", token.0);
        assert!(guard.call(asked(Some(&good))).is_ok());
        let none = String::new();
        for wrong in [&none, &token.0, &format!("{good}x"), &good[..good.len() - 1].to_owned(), &"Bearer ".to_owned()] {
            assert!(guard.call(asked(Some(wrong))).is_err(), "{wrong}");
        }
        assert!(guard.call(asked(None)).is_err());
        assert!(Guard::Socket.call(asked(None)).is_ok());
        assert_eq!(format!("{token:?}"), "Token(redacted)");
    }

    #[test]
    fn a_proof_is_for_one_nonce_and_one_token() {
        let (token, other) = (Token("abc".to_owned()), Token::generate(&Host::real()));
        let nonce = [7; NONCE_BYTES];
        let proof = token.prove(&nonce);
        assert!(token.is_proven(&nonce, &proof));
        assert!(!other.is_proven(&nonce, &proof) && !token.is_proven(&[8; NONCE_BYTES], &proof));
        assert!(!token.is_proven(&nonce, &proof[1..]) && !token.is_proven(&nonce, &[]));
        // python3: hmac.new(b"abc", b"headwater/local/prove/v1" + bytes([7] * 32), "sha256").hexdigest()
        assert_eq!(
            data_encoding::HEXLOWER.encode(&proof),
            "1fa2503275cd6f830a26f576a341fd30ab7e6658b7d9dcc0f2180112b6d86860"
        );
    }

    #[test]
    fn the_file_is_its_owners() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("daemon.token");
        Token::generate(&Host::real()).write(&path).expect("written");
        let second = Token::generate(&Host::real());
        second.write(&path).expect("written again");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(Token::read(&path).expect("read").is(&second.0));
    }
}
