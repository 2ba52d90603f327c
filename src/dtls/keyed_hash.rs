//! Hashing with a key that is derived from the endpoint's seed, so that two runs with the same seed
//! behave alike. With the random key of a `RandomState`, the hashes of two values could collide in
//! one run and not in the next. A collision, for example in `Completions`, changes what the
//! endpoint does.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

use sha2::{Digest, Sha256};

/// Creates hashers that have already hashed a secret hash key, so that an attacker cannot choose
/// values that collide.
pub(crate) struct KeyedState([u8; 32]);

impl KeyedState {
    /// Derives the hash key from the endpoint's seed. The hash key is not taken from the endpoint's
    /// generator, which has the same seed, because much of what the generator produces is sent to
    /// clients.
    pub(crate) fn of_seed(seed: &[u8; 32]) -> Self {
        Self(Sha256::new().chain_update(b"hash key").chain_update(seed).finalize().into())
    }
}

impl BuildHasher for KeyedState {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.0);
        hasher
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_follows_from_the_seed_and_the_value() {
        let hash = |seed, value: &str| KeyedState::of_seed(&[seed; 32]).hash_one(value);
        assert_eq!(hash(1, "a"), hash(1, "a"));
        assert_ne!(hash(1, "a"), hash(1, "b"));
        assert_ne!(hash(1, "a"), hash(2, "a"));
    }
}
