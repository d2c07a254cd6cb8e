//! Where a client is at home: the vault with the account's secrets, and the store. A directory, or memory that somebody
//! else keeps.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng as _;
use sync_e2ee::{Secrets, vault};
use sync_host::HostRng;
use sync_store::{DirLock, Store, StoreKind};

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

/// Where a client keeps what it is.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    Directory {
        dir: PathBuf,
        unlock: Unlock,
        /// The directory's, where this process keeps it between two openings.
        held: Option<DirLock>,
    },
    /// A vault and an open store that somebody else keeps.
    Memory { vault: MemoryVault, store: Store },
}

/// The vault of a client without a directory. A cheap handle: who keeps a clone can open the client again.
#[derive(Clone, Default)]
pub struct MemoryVault(Arc<Mutex<Option<Locked>>>);

/// A vault, and what opens it.
#[derive(Clone)]
struct Locked {
    key: [u8; 32],
    bytes: Vec<u8>,
}

impl std::fmt::Debug for MemoryVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryVault").field("is_empty", &self.locked().is_none()).finish_non_exhaustive()
    }
}

impl MemoryVault {
    fn locked(&self) -> MutexGuard<'_, Option<Locked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, secrets: &Secrets, rng: &mut HostRng) -> Result<(), OpenError> {
        let mut locked = self.locked();
        if locked.is_some() {
            return Err(OpenError::AccountExists { dir: IN_MEMORY.into() });
        }
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        let bytes = vault::lock(secrets, &vault::Unlock::KeyFile(&key), rng)?;
        *locked = Some(Locked { key, bytes });
        Ok(())
    }

    /// What is in it: who keeps a vault in memory keeps what opens it. For whoever checks that none of it is seen anywhere.
    ///
    /// # Errors
    /// [`OpenError::NoAccount`] while it is empty.
    pub fn secrets(&self) -> Result<Secrets, OpenError> {
        let locked = self.locked().clone().ok_or_else(|| OpenError::NoAccount { dir: IN_MEMORY.into() })?;
        Ok(vault::unlock(&locked.bytes, &vault::Unlock::KeyFile(&locked.key))?)
    }
}

/// What stands in errors where others have the path of a directory.
const IN_MEMORY: &str = "(in memory)";

impl Home {
    /// The directory, as errors name it.
    pub(crate) fn dir(&self) -> PathBuf {
        match self {
            Self::Directory { dir, .. } => dir.clone(),
            Self::Memory { .. } => IN_MEMORY.into(),
        }
    }

    /// Locks the directory of an account for as long as a clone of this lives.
    pub(crate) fn hold(&mut self) -> Result<(), OpenError> {
        let Self::Directory { dir, held, .. } = self else { return Ok(()) };
        if !dir.join(VAULT).exists() {
            return Err(OpenError::NoAccount { dir: dir.clone() });
        }
        if held.is_none() {
            *held = Some(sync_store::lock(dir)?);
        }
        Ok(())
    }

    /// Keeps the secrets of a new account.
    pub(crate) fn create(&self, secrets: &Secrets, rng: &mut HostRng) -> Result<(), OpenError> {
        match self {
            Self::Directory { dir, unlock, held: _ } => create(dir, unlock, secrets, rng),
            Self::Memory { vault, .. } => vault.create(secrets, rng),
        }
    }

    /// Reads the secrets of an account.
    pub(crate) fn secrets(&self) -> Result<Secrets, OpenError> {
        match self {
            Self::Directory { dir, unlock, held: _ } => open(dir, unlock),
            Self::Memory { vault, .. } => vault.secrets(),
        }
    }

    /// Opens the store; one process at a time.
    pub(crate) fn store(&self) -> Result<Store, OpenError> {
        match self {
            Self::Directory { held: Some(lock), .. } => Ok(Store::open_locked(lock, StoreKind::Client)?),
            Self::Directory { dir, .. } => Ok(Store::open(dir, StoreKind::Client)?),
            Self::Memory { store, .. } => Ok(store.clone()),
        }
    }

    /// What the account's other devices call this one unless they are told otherwise.
    pub(crate) fn device_name(&self) -> String {
        let name = match self {
            Self::Directory { .. } => nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            Self::Memory { .. } => None,
        };
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| "device".to_owned())
    }
}

fn create(dir: &Path, unlock: &Unlock, secrets: &Secrets, rng: &mut HostRng) -> Result<(), OpenError> {
    if dir.join(VAULT).exists() {
        return Err(OpenError::AccountExists { dir: dir.to_owned() });
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    if let Unlock::KeyFile(path) = unlock
        && !path.exists()
    {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        write_new(path, &key)?;
    }
    let bytes = with_unlock(unlock, |unlock| Ok(vault::lock(secrets, unlock, rng)?))?;
    let temporary = dir.join("vault.new");
    let _ = fs::remove_file(&temporary);
    write_new(&temporary, &bytes)?;
    let path = dir.join(VAULT);
    fs::rename(&temporary, &path).map_err(io(&path))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}

fn open(dir: &Path, unlock: &Unlock) -> Result<Secrets, OpenError> {
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

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + '_ {
    |source| OpenError::Io { path: path.to_owned(), source }
}
