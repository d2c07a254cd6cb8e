//! The 24 words that are an account.
//!
//! BIP-39 (<https://github.com/bitcoin/bips/blob/master/bip-0039.mediawiki>), English word list, 256 bits of entropy.

use std::fmt;

use bip39::{Error as Bip39Error, Language};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

const WORDS: usize = 24;

/// Why a text is not a mnemonic of ours. Never repeats what was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MnemonicError {
    /// Not 24 words. (BIP-39 knows shorter ones; an account here has 24.)
    #[error("a mnemonic has {WORDS} words, not {actual}")]
    WordCount { actual: usize },
    /// A word that is not on the English list. The first word has position 1.
    #[error("word {position} is not on the word list")]
    UnknownWord { position: usize },
    /// Every word exists and the last one's checksum does not match: a word is wrong or two are swapped.
    #[error("the words do not fit together: one is wrong, or two are swapped")]
    Checksum,
}

/// 24 words. Whoever has them is the account.
#[derive(Clone)]
pub struct Mnemonic {
    words: bip39::Mnemonic,
    phrase: Zeroizing<String>,
}

impl Mnemonic {
    /// A new account.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut entropy = Zeroizing::new([0; 32]);
        rng.fill_bytes(entropy.as_mut());
        Self::from_words(
            bip39::Mnemonic::from_entropy_in(Language::English, entropy.as_ref())
                .expect("256 bits are a length of BIP-39"),
        )
    }

    /// Reads words as a person types them: any white space, any case.
    ///
    /// # Errors
    /// [`MnemonicError`]: the word count first, then the first unknown word, then the checksum.
    pub fn parse(text: &str) -> Result<Self, MnemonicError> {
        let text = Zeroizing::new(text.to_ascii_lowercase());
        let actual = text.split_whitespace().count();
        if actual != WORDS {
            return Err(MnemonicError::WordCount { actual });
        }
        let words = bip39::Mnemonic::parse_in_normalized(Language::English, &text).map_err(|error| match error {
            Bip39Error::UnknownWord(index) => MnemonicError::UnknownWord { position: index + 1 },
            Bip39Error::BadWordCount(actual) => MnemonicError::WordCount { actual },
            Bip39Error::InvalidChecksum | Bip39Error::BadEntropyBitCount(_) | Bip39Error::AmbiguousLanguages(_) => {
                MnemonicError::Checksum
            }
        })?;
        Ok(Self::from_words(words))
    }

    /// The words, lower case, one space between them: for the person's own eyes.
    #[must_use]
    pub fn phrase(&self) -> &str {
        &self.phrase
    }

    /// BIP-39's 64-byte seed under the empty passphrase.
    pub(crate) fn seed(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.words.to_seed_normalized(""))
    }

    fn from_words(words: bip39::Mnemonic) -> Self {
        // The longest English word has 8 letters: the string never grows, so no copy of it is left behind.
        let mut phrase = Zeroizing::new(String::with_capacity(WORDS * 9));
        for word in words.words() {
            if !phrase.is_empty() {
                phrase.push(' ');
            }
            phrase.push_str(word);
        }
        Self { words, phrase }
    }
}

impl fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mnemonic(redacted)")
    }
}
