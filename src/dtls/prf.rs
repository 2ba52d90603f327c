//! Key derivation of TLS 1.2 with SHA-256 (RFC 5246 §5, §6.3, §8.1; RFC 7627):
//! pure functions from secrets to secrets.

use hmac::{Hmac, KeyInit, Mac, digest::Output};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::{Psk, clean_stack::on_clean_stack, key_exchange::SharedSecret, suite::KeyBlock};

/// Length of Finished's verify_data in bytes (RFC 5246 §7.4.9).
pub(crate) const VERIFY_DATA: usize = 12;

/// Fills `out` with P_SHA256 (RFC 5246 §5) of the concatenated `seeds`. The first of them
/// is the label.
fn prf(secret: &[u8], seeds: &[&[u8]], out: &mut [u8]) {
    #[cfg(test)]
    RUNS.set(RUNS.get() + 1);
    on_clean_stack(|| p_sha256(secret, seeds, out));
}

fn p_sha256(secret: &[u8], seeds: &[&[u8]], out: &mut [u8]) {
    let keyed = keyed(secret);
    let mut a = mac(&keyed, None, seeds);
    let blocks = out.len().div_ceil(32);
    for (block, chunk) in out.chunks_mut(32).enumerate() {
        let mut output = mac(&keyed, Some(&a), seeds);
        chunk.copy_from_slice(&output[..chunk.len()]);
        output.zeroize();
        if block + 1 < blocks {
            a = mac(&keyed, Some(&a), &[]);
        }
    }
    a.zeroize();
}

/// Returns an HMAC-SHA256 with this key and no input yet.
pub(super) fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    // A key of any length is legal for HMAC (RFC 2104 §3).
    let Ok(keyed) = Hmac::new_from_slice(secret) else { unreachable!("HMAC takes any key") };
    keyed
}

/// Computes the HMAC-SHA256 of `previous`, if any, followed by `seeds`.
pub(super) fn mac(keyed: &Hmac<Sha256>, previous: Option<&[u8]>, seeds: &[&[u8]]) -> Output<Hmac<Sha256>> {
    let mut mac = keyed.clone();
    for part in previous.iter().chain(seeds) {
        mac.update(part);
    }
    mac.finalize().into_bytes()
}

/// The master secret of one handshake, 48 bytes long. It is boxed so that it never moves
/// in memory, and it is wiped when dropped.
pub(crate) struct MasterSecret(Box<Zeroizing<[u8; 48]>>);

/// Values that the master secret is bound to.
#[derive(Clone, Copy)]
pub(crate) enum Binding<'a> {
    /// Hash of the handshake up to ClientKeyExchange (RFC 7627 §4).
    Session(&'a [u8; 32]),
    /// Randoms of the client and the server (RFC 5246 §8.1).
    Randoms(&'a [u8; 32], &'a [u8; 32]),
}

impl MasterSecret {
    /// Derives the master secret from the pre-shared key and, for an ephemeral suite, the
    /// shared secret. The premaster secret of plain PSK is a string of zeros as long as
    /// the key, then the key, each preceded by its length (RFC 4279 §2). With ECDHE, the
    /// shared secret replaces the zeros (RFC 5489 §2).
    pub(crate) fn from_psk(psk: &Psk, ephemeral: Option<&SharedSecret>, binding: Binding<'_>) -> Self {
        let key = psk.as_bytes();
        let zeros = [0; Psk::MAX];
        let other = ephemeral.map_or(&zeros[..key.len()], |secret| secret);
        let mut premaster = Zeroizing::new(Vec::with_capacity(4 + other.len() + key.len()));
        for part in [other, key] {
            premaster.extend_from_slice(&(part.len() as u16).to_be_bytes());
            premaster.extend_from_slice(part);
        }
        let mut master = Box::new(Zeroizing::new([0; 48]));
        match binding {
            Binding::Session(hash) => prf(&premaster, &[b"extended master secret", hash], &mut master[..]),
            Binding::Randoms(client, server) => {
                prf(&premaster, &[b"master secret", client, server], &mut master[..])
            }
        }
        Self(master)
    }

    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0[..]
    }

    #[cfg(test)]
    pub(super) fn logged(secret: [u8; 48]) -> Self {
        Self(Box::new(Zeroizing::new(secret)))
    }

    /// Derives the keys that the client and the server write with (RFC 5246 §6.3). All
    /// suites are AEADs, so there are no MAC keys.
    pub(crate) fn key_block(&self, client_random: &[u8; 32], server_random: &[u8; 32]) -> KeyBlock {
        KeyBlock::derive(|block| prf(&self.0[..], &[b"key expansion", server_random, client_random], block))
    }

    /// Returns the verify_data of a Finished (RFC 5246 §7.4.9).
    pub(crate) fn verify_data(&self, sender: Sender, transcript: &[u8; 32]) -> [u8; VERIFY_DATA] {
        let label: &[u8] = match sender {
            Sender::Client => b"client finished",
            Sender::Server => b"server finished",
        };
        let mut verify_data = [0; VERIFY_DATA];
        prf(&self.0[..], &[label, transcript], &mut verify_data);
        verify_data
    }
}

/// Sender of a Finished.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sender {
    Client,
    Server,
}

#[cfg(test)]
thread_local! {
    /// Number of times that this thread has run the PRF.
    pub(super) static RUNS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prf_agrees_with_the_published_sha256_vector() {
        // Test vector "P_SHA256" from the IETF TLS mailing list, December 2008. Other
        // stacks use it in their tests too.
        let secret = hex::decode("9bbe436ba940f017b17652849a71db35").unwrap();
        let seed = hex::decode("a0ba9f936cda311827a6f796ffd5198c").unwrap();
        let expected = "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14baf9af0f\
                        a022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff70187347b66";
        let mut out = [0; 100];
        prf(&secret, &[b"test label", &seed], &mut out);
        assert_eq!(hex::encode(out), expected.replace([' ', '\n'], ""));
    }
}
