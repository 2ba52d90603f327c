//! Hashes under a key that comes from the endpoint's seed. Where two hashes that collide change
//! what the endpoint does, as in `Completions`, the key of a `RandomState` would make each run of
//! one seed different.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

use sha2::{Digest, Sha256};

/// Makes hashers that have read the key first. No one who does not know the key can choose
/// values that collide.
pub(crate) struct KeyedState([u8; 32]);

impl KeyedState {
    /// Derives the key from the endpoint's seed. The key is not a part of what the endpoint's
    /// generator makes of the same seed, because much of that is public.
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
