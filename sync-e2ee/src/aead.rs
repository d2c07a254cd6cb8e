//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) and HKDF-SHA256 (RFC 5869), with the sizes that this crate uses.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// What Poly1305 adds to a plaintext, bytes.
pub(crate) const TAG_BYTES: usize = 16;
/// Long enough that random nonces do not repeat, bytes.
pub(crate) const NONCE_BYTES: usize = 24;

pub(crate) fn encrypt(key: &[u8; 32], nonce: &[u8; NONCE_BYTES], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    XChaCha20Poly1305::new(key.into())
        .encrypt(nonce.into(), Payload { msg: plaintext, aad })
        .expect("the plaintext is in memory, so it is shorter than the cipher's 256 GiB")
}

/// `None` if key, nonce, associated data or ciphertext is not the one that was used.
pub(crate) fn decrypt(
    key: &[u8; 32],
    nonce: &[u8; NONCE_BYTES],
    aad: &[u8],
    ciphertext: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let payload = Payload { msg: ciphertext, aad };
    XChaCha20Poly1305::new(key.into()).decrypt(nonce.into(), payload).ok().map(Zeroizing::new)
}

/// HKDF-SHA256 with the given salt (empty: RFC 5869's default of zeros) and `info` in parts.
pub(crate) fn hkdf<const N: usize>(salt: &[u8], ikm: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * 32, "HKDF-SHA256 cannot give more") };
    let mut out = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(Some(salt), ikm).expand_multi_info(info, out.as_mut()).expect("N was checked at compile time");
    out
}

pub(crate) fn random<const N: usize>(rng: &mut impl rand_core::CryptoRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}
