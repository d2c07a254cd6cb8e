//! Secret keys and plaintext: what only clients link.
//!
//! | module | holds |
//! |---|---|
//! | [`mnemonic`] | the 24 words that are an account |
//! | [`account`] | account, device and invite keys |
//! | [`seal`] | the keys of a space, and how they travel to one member (HPKE) |
//! | [`ring`](mod@ring) | the keys of a space that this account holds, and rotations |
//! | [`content`] | what is inside a change, and the names of trees |
//! | [`vault`] | secrets and projections at rest |
//!
//! Everything is a function of its arguments. Random generators are arguments; they must be cryptographic and seeded by the
//! operating system, as in `rand_core::UnwrapErr(getrandom::SysRng)`. Secrets are zeroized when dropped; the compiler may still
//! have copied them on the stack while they moved, so a memory image of a running client is not safe to publish.
//!
//! ```
//! use rand_core::SeedableRng as _;
//! use sync_core::{ids::{Epoch, SpaceId, TreeId}, record::{ChangeKind, WriteRule}};
//! use sync_e2ee::{AccountKeys, ContentContext, Envelope, Mnemonic, Recipient, SpaceKeys};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut rng = rand_chacha::ChaCha20Rng::from_seed([7; 32]); // a client seeds it from the operating system
//! let bob = AccountKeys::from_mnemonic(&Mnemonic::generate(&mut rng));
//! let space = SpaceId::from_hash([1; 32]);
//!
//! // The keys of a space travel to a member in a seal, which the node carries and cannot open.
//! let keys = SpaceKeys::generate(&mut rng);
//! let seal = sync_e2ee::seal_keys(Some(space), Epoch(0), Recipient::Account(bob.id()), &keys, &mut rng)?;
//! let opened = sync_e2ee::open_keys(Some(space), Epoch(0), &seal, bob.signing_key())?;
//! assert_eq!(opened.key_id(), keys.key_id());
//!
//! // Content is bound to its place: nobody can move it to another tree, epoch or author.
//! let root = sync_e2ee::object_root(space, &keys.name_key, "note", "shopping", WriteRule::WRITERS);
//! let context = ContentContext {
//!     space, tree: root.tree_id(), epoch: Epoch(0), author: bob.id(), kind: ChangeKind::Content,
//! };
//! let envelope = Envelope {
//!     object_type: "note".into(), object_id: "shopping".into(), data_type: "text".into(), payload: "milk".into(),
//! };
//! let change = sync_e2ee::encrypt(&keys, &context, &envelope, &mut rng)?;
//! assert_eq!(sync_e2ee::decrypt(&opened, &context, &change.nonce, &change.ciphertext)?, envelope);
//! let moved = ContentContext { tree: TreeId::from_hash([2; 32]), ..context };
//! assert!(sync_e2ee::decrypt(&opened, &moved, &change.nonce, &change.ciphertext).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # Never here
//!
//! No IO, no clock, no global randomness, no async. No secret is serialized but by [`vault::lock`], printed by `Debug`, compared
//! in variable time, or put in an error. The node never links this crate.

pub mod account;
pub mod content;
pub mod mnemonic;
pub mod ring;
pub mod seal;
pub mod vault;

mod aead;
mod keys;
mod local;

pub use account::{AccountKeys, DeviceKeys, InviteSecret};
pub use content::{ContentContext, ContentError, Encrypted, Envelope, decrypt, encrypt, name_tag, object_root};
pub use mnemonic::{Mnemonic, MnemonicError};
pub use ring::{HistoryAccess, KeyError, KeyRing, make_rotation};
pub use seal::{
    HistoryKey, NameKey, ReadKey, Recipient, SealError, SpaceKeys, open_keys, open_profile, seal_keys, seal_profile,
};
pub use vault::{LocalKey, Secrets, Unlock, VaultError, lock, unlock};

#[cfg(test)]
mod tests;
