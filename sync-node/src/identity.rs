//! Who the node is: the authority's key, the node's key, and the authority's word that they belong together.
//!
//! `DIR/keys` holds `authority.key` and `node.key` (32-byte Ed25519 seeds, mode 0600) and `node.cert` (the signed
//! [`NodeCertificate`]). They are made at the first start and never changed. Whoever copies the authority's key can speak for
//! every space of this node.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use sync_core::ids::{AuthorityId, NodeId};
use sync_core::record::{NodeCertificate, RawRecord, Verified, VerifyError, verify_as};
use sync_host::Host;
use zeroize::Zeroizing;

const SEED_BYTES: usize = 32;
pub(crate) const AUTHORITY_FILE: &str = "authority.key";
pub(crate) const NODE_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.cert";
/// A certificate is some 200 bytes; a larger file is not one.
const CERTIFICATE_BYTES_MAX: u64 = 4096;

/// The node's keys. Secret: `Debug` shows the public halves.
pub(crate) struct Identity {
    pub(crate) node_key: SigningKey,
    pub(crate) certificate: Verified<NodeCertificate>,
}

/// The seeds of a node's Ed25519 keys, where no directory holds them: see [`crate::Node::start_on`]. Secret.
#[derive(Clone)]
pub struct NodeKeys {
    /// Whoever has it can speak for every space of the node.
    pub authority: [u8; SEED_BYTES],
    pub node: [u8; SEED_BYTES],
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKeys(redacted)")
    }
}

/// Why the node does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{} can be read by others (mode {mode:o}); make it private: chmod 600", .path.display())]
    LooseMode { path: PathBuf, mode: u32 },
    #[error("{} is {actual} bytes long; a key is {SEED_BYTES}: restore it from a backup", .path.display())]
    NotAKey { path: PathBuf, actual: usize },
    #[error("{} is not this node's certificate: restore the keys directory from a backup", .path.display())]
    NotItsCertificate { path: PathBuf },
    #[error(
        "{} is missing, and this node has been used with it: put the keys back from your copy; with other keys no client knows \
         this node, and its spaces are lost to them", .path.display()
    )]
    Missing { path: PathBuf },
    #[error("{} does not verify", .path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: VerifyError,
    },
    #[error("{} cannot be read or written", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the keys that were given sign no certificate")]
    Given(#[source] VerifyError),
    #[error("the operating system has no random numbers: {0}")]
    Random(String),
}

impl Identity {
    /// Reads the keys in `dir`, and makes them for a node that has never run.
    pub(crate) fn open(host: &Host, dir: &Path) -> Result<Self, IdentityError> {
        // It is made last: without it, making the keys came to no end.
        if dir.join(CERTIFICATE_FILE).exists() {
            check_there(dir)?;
        }
        Self::open_or_make(host, dir)
    }

    /// Reads the keys of a node that has spaces. Others would make it another node.
    pub(crate) fn existing(host: &Host, dir: &Path) -> Result<Self, IdentityError> {
        check_there(dir)?;
        Self::open_or_make(host, dir)
    }

    fn open_or_make(host: &Host, dir: &Path) -> Result<Self, IdentityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let authority_key = key(&dir.join(AUTHORITY_FILE))?;
        let node_key = key(&dir.join(NODE_FILE))?;
        let certificate = certificate(host, &dir.join(CERTIFICATE_FILE), &authority_key, &node_key)?;
        Ok(Self { node_key, certificate })
    }

    /// Of keys that somebody else keeps.
    pub(crate) fn of(host: &Host, keys: &NodeKeys) -> Result<Self, IdentityError> {
        let [authority, node] = [&keys.authority, &keys.node].map(SigningKey::from_bytes);
        let certificate = certify(host, &authority, &node).map_err(IdentityError::Given)?;
        Ok(Self { node_key: node, certificate })
    }

    pub(crate) fn authority(&self) -> AuthorityId {
        self.certificate.body().authority
    }

    pub(crate) fn node(&self) -> NodeId {
        self.certificate.body().node
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (authority, node) = (self.authority(), self.node());
        f.debug_struct("Identity").field("authority", &authority).field("node", &node).finish_non_exhaustive()
    }
}

fn check_there(dir: &Path) -> Result<(), IdentityError> {
    let missing = [AUTHORITY_FILE, NODE_FILE].map(|file| dir.join(file)).into_iter().find(|path| !path.exists());
    missing.map_or(Ok(()), |path| Err(IdentityError::Missing { path }))
}

fn key(path: &Path) -> Result<SigningKey, IdentityError> {
    let seed = match private_bytes(path, SEED_BYTES as u64) {
        Ok(bytes) => bytes,
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => new_seed(path)?,
        Err(error) => return Err(error),
    };
    let not_a_key = || IdentityError::NotAKey { path: path.to_owned(), actual: seed.len() };
    Ok(SigningKey::from_bytes(seed.as_slice().try_into().map_err(|_| not_a_key())?))
}

fn new_seed(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut seed = Zeroizing::new(vec![0; SEED_BYTES]);
    getrandom::fill(&mut seed).map_err(|e| IdentityError::Random(e.to_string()))?;
    write_private(path, &seed)?;
    Ok(seed)
}

fn certificate(
    host: &Host,
    path: &Path,
    authority: &SigningKey,
    node: &SigningKey,
) -> Result<Verified<NodeCertificate>, IdentityError> {
    let invalid = |source| IdentityError::Certificate { path: path.to_owned(), source };
    let ids = (AuthorityId::from(&authority.verifying_key()), NodeId::from(&node.verifying_key()));
    let bytes = match private_bytes(path, CERTIFICATE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let made = certify(host, authority, node).map_err(invalid)?;
            write_private(path, &made.raw().to_vec())?;
            return Ok(made);
        }
        Err(error) => return Err(error),
    };
    let found: Verified<NodeCertificate> = RawRecord::from_slice(&bytes).and_then(verify_as).map_err(invalid)?;
    if (found.body().authority, found.body().node) != ids {
        return Err(IdentityError::NotItsCertificate { path: path.to_owned() });
    }
    Ok(found)
}

/// The authority's word for the node key.
fn certify(host: &Host, authority: &SigningKey, node: &SigningKey) -> Result<Verified<NodeCertificate>, VerifyError> {
    let body = NodeCertificate {
        authority: AuthorityId::from(&authority.verifying_key()),
        node: NodeId::from(&node.verifying_key()),
        not_before_ms: host.wall_ms(),
    };
    Verified::sign(&body, authority, None)
}

/// Reads at most one byte more than `bytes_max`, of a file that nobody else can read.
fn private_bytes(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let file = File::open(path).map_err(at(path))?;
    let mode = file.metadata().map_err(at(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::LooseMode { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(at(path))?;
    Ok(bytes)
}

/// Writes beside, syncs, and renames: the file is either whole or not there.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let beside = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(at(&beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&beside))?;
    fs::rename(&beside, path).map_err(at(path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let first = Identity::open(&Host::real(), &keys).unwrap();
        let second = Identity::open(&Host::real(), &keys).unwrap();
        assert_eq!(first.certificate, second.certificate);
        assert_eq!(first.node_key.to_bytes(), second.node_key.to_bytes());
        let mode = fs::metadata(keys.join("node.key")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(&Host::real(), dir.path()).unwrap();
        let path = dir.path().join("authority.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::open(&Host::real(), dir.path()), Err(IdentityError::LooseMode { mode: 0o640, .. })));
    }

    #[test]
    fn a_node_that_was_used_is_given_no_new_keys() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let refused = Identity::existing(&Host::real(), &keys);
        assert!(matches!(refused, Err(IdentityError::Missing { .. })), "{refused:?}");
        assert!(!keys.exists(), "nothing is made");
        Identity::open(&Host::real(), &keys).unwrap();
        for file in [AUTHORITY_FILE, NODE_FILE] {
            let path = keys.join(file);
            let kept = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            let refused = Identity::open(&Host::real(), &keys);
            assert!(matches!(refused, Err(IdentityError::Missing { .. })), "{refused:?}");
            assert!(!path.exists(), "nothing is made");
            write_private(&path, &kept).unwrap();
        }
        Identity::existing(&Host::real(), &keys).unwrap();
    }

    #[test]
    fn a_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(&Host::real(), dir.path()).unwrap();
        let path = dir.path().join("node.key");
        fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(Identity::open(&Host::real(), dir.path()), Err(IdentityError::NotAKey { actual: 31, .. })));
        fs::write(&path, [7; 32]).unwrap();
        assert!(matches!(Identity::open(&Host::real(), dir.path()), Err(IdentityError::NotItsCertificate { .. })));
    }
}
