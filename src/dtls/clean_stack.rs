//! Wipes secrets from the stack. The ciphers, the hash and the curves work on copies of keys in
//! their stack frames, and do not wipe all of these copies. A value that later occupies the same
//! memory may have padding or unused variants, which still hold such a copy. If that value is then
//! moved, for example into a box, the copy moves along and is never wiped.

/// Maximum amount of stack that one use of a key takes, in bytes. Without optimization, stack
/// frames are several times larger.
const DEPTH: usize = if cfg!(debug_assertions) { 64 << 10 } else { 12 << 10 };

/// Calls `work`, which uses a key, and then overwrites the stack that the call used. `work` may
/// capture secrets only by reference, and may return secrets only on the heap.
pub(super) fn on_clean_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// Calls `work` in a stack frame that begins at the same address as the frame of [`wipe`].
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    // The array is written as a whole, because volatile writes of single bytes took 10 µs
    // per device.
    std::hint::black_box(&mut [0u8; DEPTH]);
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use super::*;
    use crate::dtls::{
        Psk,
        key_exchange::{EphemeralKey, Group},
        prf::{Binding, MasterSecret},
        record::{ContentType, HEADER, Header},
        suite::{KeyBlock, Suite},
    };

    /// Calls `work`, and returns a copy of the stack memory that `work` may have used.
    fn stack_below(work: impl FnOnce()) -> Vec<u8> {
        let mut bytes = vec![0; 2 * DEPTH];
        let here = std::ptr::from_ref(&bytes) as usize;
        apart(work);
        let memory = fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, (here - 2 * DEPTH) as u64).unwrap();
        bytes
    }

    fn assert_left_none(what: &str, secret: &[u8], work: impl FnOnce()) {
        let stack = stack_below(work);
        assert!(memchr::memmem::find(&stack, secret).is_none(), "{what}");
    }

    /// Returns random bytes, so that a test can recognize any copy of them in memory.
    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn no_use_of_a_key_leaves_it_on_the_stack() {
        let secrets = random(40);
        let keys = KeyBlock::derive(|block| block.copy_from_slice(&secrets));
        let header = Header { kind: ContentType::ApplicationData, epoch: 1, sequence: 5 };
        for suite in Suite::ALL {
            for length in [0, 10, 2000] {
                let (plaintext, mut out) = (vec![7; length], Vec::with_capacity(3000));
                assert_left_none(suite.name(), &secrets[16..32], || {
                    keys.server().seal(suite, header, &[], &plaintext, &mut out);
                });
                assert_left_none(suite.name(), &secrets[16..32], || {
                    keys.server().open(suite, header, &[], &mut out[HEADER..]).unwrap();
                });
                // The record was sealed under the server's key, so it does not open under the
                // client's key.
                assert_left_none(suite.name(), &secrets[..16], || {
                    keys.client().open(suite, header, &[], &mut out[HEADER..]).unwrap_err();
                });
            }
        }
    }

    #[test]
    fn no_derivation_leaves_a_secret_on_the_stack() {
        let secret = random(16);
        let psk = Psk::new(secret.clone()).unwrap();
        let derive = || MasterSecret::from_psk(&psk, None, Binding::Session(&[1; 32]));
        let master = derive();
        assert_left_none("the pre-shared key", &secret, || drop(derive()));
        assert_left_none("the master secret", master.as_bytes(), || drop(derive()));
        let keys = master.key_block(&[1; 32], &[2; 32]);
        for key in [keys.client(), keys.server()] {
            assert_left_none("a traffic key", key.as_bytes(), || drop(master.key_block(&[1; 32], &[2; 32])));
        }
    }

    #[test]
    fn no_key_exchange_leaves_a_secret_on_the_stack() {
        for group in Group::ALL {
            let [mine, other] = [7, 8].map(|seed| EphemeralKey::known(group, [seed; 32]));
            let point = other.public();
            let shared = mine.agree(&point).unwrap();
            assert_left_none("the own secret", &[7; 32], || drop(mine.public()));
            assert_left_none("the own secret", &[7; 32], || drop(mine.agree(&point)));
            assert_left_none("the shared secret", &shared, || drop(mine.agree(&point)));
        }
    }
}
