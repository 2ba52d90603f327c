//! The keys that the client of a claim may have. While a key is being replaced, an identity has two
//! keys. A ClientKeyExchange names only the identity (RFC 4279 §2), so only the client's Finished
//! shows which key the client has. Each step is done with every key, so that its duration does not
//! reveal which key is right. This module knows neither the identities nor the holders of the keys.

use std::ops::Range;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    Psk,
    key_exchange::SharedSecret,
    message::Fragment,
    prf::{Binding, MasterSecret, Sender, VERIFY_DATA},
    reassembly::Reassembly,
    record::{ContentType, Header},
    suite::{KeyBlock, Suite},
};

/// Maximum number of keys of an identity.
pub(crate) const MAX_KEYS: usize = 2;

/// The secrets derived from one key, and the fragments of the client's Finished that were protected
/// with these secrets. Each key has its own fragments, so a record under one key never completes a
/// Finished under the other key.
struct Candidate {
    master: MasterSecret,
    keys: KeyBlock,
    finished: Reassembly,
}

/// The secrets of a claim, one set for each key that its client may have.
pub(crate) struct Candidates {
    first: Candidate,
    second: Option<Candidate>,
}

impl Candidates {
    /// Derives the secrets from each key.
    pub(crate) fn derive(
        (first, second): (&Psk, Option<&Psk>),
        ephemeral: Option<&SharedSecret>,
        binding: Binding<'_>,
        [client_random, server_random]: [&[u8; 32]; 2],
    ) -> Self {
        let candidate = |psk: &Psk| {
            let master = MasterSecret::from_psk(psk, ephemeral, binding);
            let keys = master.key_block(client_random, server_random);
            Candidate { master, keys, finished: Reassembly::default() }
        };
        Self { first: candidate(first), second: second.map(candidate) }
    }

    /// Returns whether there are two keys that the client may have.
    pub(crate) fn are_two(&self) -> bool {
        self.second.is_some()
    }

    /// Decrypts a record's payload in place with the key that fits. Returns the index of this key,
    /// the content type, and the range of the plaintext; `None` if no key fits. Every key is tried,
    /// even if an earlier one fits.
    pub(crate) fn open(
        &self,
        suite: Suite,
        header: Header,
        connection_id: &[u8],
        payload: &mut [u8],
    ) -> Option<(usize, ContentType, Range<usize>)> {
        // Decryption destroys a record that fails to authenticate, so the second key gets a copy.
        let mut copy = Zeroizing::new(self.second.as_ref().map_or_else(Vec::new, |_| payload.to_vec()));
        let first = self.first.keys.client().open(suite, header, connection_id, payload);
        let second = self
            .second
            .as_ref()
            .map(|second| second.keys.client().open(suite, header, connection_id, &mut copy));
        match (first, second) {
            (Ok((kind, plaintext)), _) => Some((0, kind, plaintext)),
            (Err(_), Some(Ok((kind, plaintext)))) => {
                payload.copy_from_slice(&copy);
                Some((1, kind, plaintext))
            }
            (Err(_), Some(Err(_)) | None) => None,
        }
    }

    /// Adds a fragment of the Finished that arrived under the key with this index. Returns the whole
    /// body once it is complete.
    pub(crate) fn add_finished(&mut self, index: usize, fragment: &Fragment<'_>) -> Option<Vec<u8>> {
        self.get_mut(index)?.finished.add(fragment)
    }

    /// Returns whether the body of the client's Finished is right under the key with this index.
    pub(crate) fn verifies(&self, index: usize, hash: &[u8; 32], body: &[u8]) -> bool {
        let Some(candidate) = self.get(index) else { return false };
        let expected = candidate.master.verify_data(Sender::Client, hash);
        body.len() == VERIFY_DATA && bool::from(expected.ct_eq(body))
    }

    /// Returns the secrets of the key with this index, which the client has proven. Wipes the
    /// secrets of the other key.
    pub(crate) fn into_proven(self, index: usize) -> Option<(MasterSecret, KeyBlock)> {
        let Candidate { master, keys, .. } = if index == 0 { Some(self.first) } else { self.second }?;
        Some((master, keys))
    }

    fn get(&self, index: usize) -> Option<&Candidate> {
        if index == 0 { Some(&self.first) } else { self.second.as_ref() }
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut Candidate> {
        if index == 0 { Some(&mut self.first) } else { self.second.as_mut() }
    }
}
