//! The client's data directory: the vault with the account's secrets, and the store.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sync_e2ee::{Secrets, vault};

use crate::error::OpenError;

const VAULT: &str = "vault";

/// What opens the vault of an account.
#[derive(Clone)]
pub enum Unlock {
    /// Stretched with Argon2id; some tenths of a second.
    Passphrase(String),
    /// A file of 32 random bytes; made when the account is created, if it is not there.
    KeyFile(PathBuf),
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passphrase(_) => f.write_str("Passphrase(redacted)"),
            Self::KeyFile(path) => f.debug_tuple("KeyFile").field(path).finish(),
        }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + '_ {
    |source| OpenError::Io { path: path.to_owned(), source }
}

/// Writes the vault of a new account.
pub(crate) fn create(dir: &Path, unlock: &Unlock, secrets: &Secrets) -> Result<(), OpenError> {
    if dir.join(VAULT).exists() {
        return Err(OpenError::AccountExists { dir: dir.to_owned() });
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    if let Unlock::KeyFile(path) = unlock
        && !path.exists()
    {
        write_new(path, &rand::random::<[u8; 32]>())?;
    }
    let bytes = with_unlock(unlock, |unlock| Ok(vault::lock(secrets, unlock, &mut rand::rng())?))?;
    let temporary = dir.join("vault.new");
    let _ = fs::remove_file(&temporary);
    write_new(&temporary, &bytes)?;
    let path = dir.join(VAULT);
    fs::rename(&temporary, &path).map_err(io(&path))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}

/// Reads the secrets of an account.
pub(crate) fn open(dir: &Path, unlock: &Unlock) -> Result<Secrets, OpenError> {
    let path = dir.join(VAULT);
    if !path.exists() {
        return Err(OpenError::NoAccount { dir: dir.to_owned() });
    }
    check_mode(&path)?;
    let bytes = fs::read(&path).map_err(io(&path))?;
    with_unlock(unlock, |unlock| Ok(vault::unlock(&bytes, unlock)?))
}

fn with_unlock<T>(
    unlock: &Unlock,
    then: impl FnOnce(&vault::Unlock<'_>) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    match unlock {
        Unlock::Passphrase(passphrase) => then(&vault::Unlock::Passphrase(passphrase)),
        Unlock::KeyFile(path) => {
            check_mode(path)?;
            let bytes = fs::read(path).map_err(io(path))?;
            let key: [u8; 32] =
                bytes.as_slice().try_into().map_err(|_| OpenError::BadKeyFile { path: path.clone() })?;
            then(&vault::Unlock::KeyFile(&key))
        }
    }
}

fn check_mode(path: &Path) -> Result<(), OpenError> {
    let mode = fs::metadata(path).map_err(io(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(OpenError::LooseMode { path: path.to_owned() });
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(path))
}
