//! The key of a client's own database.

use std::fmt;

use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::aead::{self, NONCE_BYTES};
use crate::content::ContentError;
use crate::keys::secret;

secret!(
    /// 32 random bytes, one per installation: encrypts what the client's own database holds about plaintext.
    ///
    /// ```text
    /// row = nonce (24) || XChaCha20-Poly1305(derive_key("headwater/local-row/v1", key), aad = context, plaintext)
    /// tag = keyed BLAKE3(derive_key("headwater/local-tag/v1", key), len || label || value), first 16 bytes; len u64, big-endian
    /// ```
    LocalKey, pub generate
);

impl LocalKey {
    /// Encrypts one value. `context` says where it stands (table and key, say): in another place it does not open.
    #[must_use]
    pub fn seal_row(&self, context: &[u8], plaintext: &[u8], rng: &mut impl CryptoRng) -> Vec<u8> {
        let nonce = aead::random::<NONCE_BYTES>(rng);
        let mut row = nonce.to_vec();
        row.append(&mut aead::encrypt(&self.subkey("headwater/local-row/v1"), &nonce, context, plaintext));
        row
    }

    /// Decrypts what [`LocalKey::seal_row`] made for the same context.
    ///
    /// # Errors
    /// [`ContentError::Undecryptable`].
    pub fn open_row(&self, context: &[u8], bytes: &[u8]) -> Result<Vec<u8>, ContentError> {
        let (nonce, ciphertext) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(ContentError::Undecryptable)?;
        aead::decrypt(&self.subkey("headwater/local-row/v1"), nonce, context, ciphertext)
            .map(|mut plaintext| std::mem::take(&mut *plaintext))
            .ok_or(ContentError::Undecryptable)
    }

    /// A keyed hash, 16 bytes: equal values under one label have equal tags, so a row can be found without its plaintext.
    #[must_use]
    pub fn tag(&self, label: &str, value: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.subkey("headwater/local-tag/v1"));
        hasher.update(&(label.len() as u64).to_be_bytes());
        hasher.update(label.as_bytes());
        hasher.update(value);
        let mut tag = [0; 16];
        hasher.finalize_xof().fill(&mut tag);
        tag
    }

    fn subkey(&self, context: &str) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(blake3::derive_key(context, self.expose()))
    }
}
