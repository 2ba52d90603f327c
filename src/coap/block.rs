//! Block-wise transfers (RFC 7959): the Block options, request bodies being reassembled,
//! and response bodies that clients fetch in parts. Bodies are kept for a limited time,
//! and their number is limited per peer and in total.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Response;

/// Maximum number of transfers of one peer.
const MAX_OF_PEER: usize = 4;
/// Largest size exponent, which stands for blocks of 1,024 bytes.
const MAX_SIZE_EXPONENT: u8 = 6;

/// The value of a Block1 or Block2 option (RFC 7959 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// NUM: below 2^20.
    number: u32,
    /// M: more blocks follow.
    pub(super) more: bool,
    /// SZX: 0..=6.
    size_exponent: u8,
}

/// Error: the size exponent is 7, which must be answered with 4.00 (RFC 7959 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadBlock;

impl Block {
    /// Reads the value of a Block option. The value has at most three bytes.
    pub(super) fn read(value: &[u8]) -> Result<Self, BadBlock> {
        let bits = value.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte));
        let size_exponent = (bits & 7) as u8;
        if size_exponent > MAX_SIZE_EXPONENT {
            return Err(BadBlock);
        }
        Ok(Self { number: bits >> 4, more: bits & 8 != 0, size_exponent })
    }

    pub(super) fn value(self) -> u32 {
        self.number << 4 | u32::from(self.more) << 3 | u32::from(self.size_exponent)
    }

    /// Returns block 0 with the maximum size.
    pub(super) fn first() -> Self {
        Self { number: 0, more: false, size_exponent: MAX_SIZE_EXPONENT }
    }

    pub(super) fn with_more(self, more: bool) -> Self {
        Self { more, ..self }
    }

    pub(super) fn is_first(self) -> bool {
        self.number == 0
    }

    /// Returns the size of the block, 16..=1024 bytes.
    pub(super) fn size(self) -> usize {
        16 << self.size_exponent
    }

    /// Returns the offset of the block in its body, in bytes.
    pub(super) fn offset(self) -> usize {
        self.number as usize * self.size()
    }

    /// Returns the block at the same offset with a size of at most `size`, or with the minimum of
    /// 16 bytes if `size` is smaller.
    pub(super) fn at_most(self, size: usize) -> Self {
        let mut smaller = self;
        while smaller.size() > size && smaller.size_exponent > 0 {
            smaller.size_exponent -= 1;
            smaller.number *= 2;
        }
        smaller
    }
}

/// Identifies a transfer of a peer: a digest of the request's method and options, without the
/// options that differ from block to block.
pub(super) type TransferKey = u64;

/// Result of adding a block of a request body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assembled {
    /// The block was the last one. Contains the complete body.
    Complete(Vec<u8>),
    /// More blocks will follow. The answer is 2.31.
    Continue,
    /// An earlier block is missing, or a different block was received before at the same offset.
    /// The answer is 4.08.
    Incomplete,
    /// The body is longer than the endpoint accepts. The answer is 4.13.
    TooLarge,
    /// The payload does not have the announced size. The answer is 4.00.
    BadSize,
}

enum Body {
    Request(Vec<u8>),
    /// A response body: the digest of the request's payload, and the response.
    Response(u64, Arc<Response>),
}

struct Transfer<K> {
    peer: K,
    key: TransferKey,
    expires: Instant,
    body: Body,
}

/// The transfers in progress, of all peers.
pub(super) struct Transfers<K> {
    /// Transfers by number. An older transfer has a lower number.
    transfers: BTreeMap<u64, Transfer<K>>,
    /// Numbers of each peer's transfers, oldest first.
    of_peer: HashMap<K, Vec<u64>>,
    /// Numbers of the oldest transfer of each peer. The set at index n covers the peers that have n
    /// + 1 transfers.
    oldest: [BTreeSet<u64>; MAX_OF_PEER],
    evicted: u64,
    next: u64,
    max: usize,
    lifetime: Duration,
}

impl<K: Copy + Eq + Hash> Transfers<K> {
    pub(super) fn new(max: usize, lifetime: Duration) -> Self {
        let (transfers, of_peer, oldest) = Default::default();
        Self { transfers, of_peer, oldest, evicted: 0, next: 0, max, lifetime }
    }

    /// Adds one block to a request body of at most `most` bytes. Blocks must arrive in order, but a
    /// block may be repeated.
    pub(super) fn assemble(
        &mut self,
        now: Instant,
        peer: K,
        key: TransferKey,
        block: Block,
        payload: &[u8],
        most: usize,
    ) -> Assembled {
        // RFC 7959 §2.3: only the last block may be shorter than the block size.
        if payload.len() > block.size() || (block.more && payload.len() != block.size()) {
            return Assembled::BadSize;
        }
        let number = self.find(peer, |transfer| {
            transfer.key == key && transfer.expires > now && matches!(transfer.body, Body::Request(_))
        });
        let number = match number {
            // RFC 7959 §2.5: a new first block discards the body received so far.
            Some(number) if block.is_first() => {
                self.remove(number);
                self.insert(now, peer, key, Body::Request(Vec::new()))
            }
            Some(number) => number,
            None if block.is_first() => self.insert(now, peer, key, Body::Request(Vec::new())),
            None => return Assembled::Incomplete,
        };
        let body = match self.transfers.get_mut(&number).map(|transfer| &mut transfer.body) {
            Some(Body::Request(body)) => body,
            _ => return Assembled::Incomplete,
        };
        if block.offset() + payload.len() > most {
            self.remove(number);
            return Assembled::TooLarge;
        }
        match body.get(block.offset()..) {
            Some([]) => body.extend_from_slice(payload),
            Some(again) if again.starts_with(payload) => {}
            // The transfer is kept, because the expected block may still arrive.
            _ => return Assembled::Incomplete,
        }
        if block.more {
            return Assembled::Continue;
        }
        let body = std::mem::take(body);
        self.remove(number);
        Assembled::Complete(body)
    }

    /// Keeps a response, because the client will request its remaining blocks. Returns the number
    /// of the transfer. This number serves as the ETag.
    pub(super) fn keep(
        &mut self,
        now: Instant,
        peer: K,
        key: TransferKey,
        payload: u64,
        response: Arc<Response>,
    ) -> u64 {
        let same = |transfer: &Transfer<K>| {
            transfer.key == key && matches!(transfer.body, Body::Response(known, _) if known == payload)
        };
        if let Some(number) = self.find(peer, same) {
            self.remove(number);
        }
        self.insert(now, peer, key, Body::Response(payload, response))
    }

    /// Returns the response kept for a request, and its ETag. `payload` is the digest of
    /// the request's payload, or `None` if a request for a further block does not repeat
    /// the payload.
    pub(super) fn kept(
        &self,
        now: Instant,
        peer: K,
        key: TransferKey,
        payload: Option<u64>,
    ) -> Option<(u64, Arc<Response>)> {
        let number = self.find(peer, |transfer| {
            let same = |known| payload.is_none_or(|payload| payload == known);
            transfer.key == key
                && transfer.expires > now
                && matches!(transfer.body, Body::Response(known, _) if same(known))
        })?;
        match &self.transfers.get(&number)?.body {
            Body::Response(_, response) => Some((number, response.clone())),
            Body::Request(_) => None,
        }
    }

    pub(super) fn forget(&mut self, peer: K) {
        while let Some(&number) = self.of_peer.get(&peer).and_then(|numbers| numbers.first()) {
            self.remove(number);
        }
    }

    /// Returns the number of transfers dropped to make room for others.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn len(&self) -> usize {
        self.transfers.len()
    }

    /// Returns the time at which the oldest transfer expires.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.transfers.first_key_value().map(|(_, oldest)| oldest.expires)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|at| at <= now) {
            self.remove_oldest();
        }
    }

    /// Returns the number of the peer's youngest transfer for which `fits` returns true.
    fn find(&self, peer: K, fits: impl Fn(&Transfer<K>) -> bool) -> Option<u64> {
        let mut numbers = self.of_peer.get(&peer)?.iter().rev();
        numbers.find(|number| self.transfers.get(number).is_some_and(&fits)).copied()
    }

    fn insert(&mut self, now: Instant, peer: K, key: TransferKey, body: Body) -> u64 {
        let of_peer = self.of_peer.get(&peer).map_or(&[][..], Vec::as_slice);
        if let (MAX_OF_PEER.., Some(&number)) = (of_peer.len(), of_peer.first()) {
            self.remove(number);
            self.evicted += 1;
        }
        let number = self.next;
        self.next += 1;
        self.transfers.insert(number, Transfer { peer, key, expires: now + self.lifetime, body });
        self.change(peer, |numbers| numbers.push(number));
        // The peer with the most transfers, including the new transfer, loses its oldest one. So a
        // peer cannot displace a transfer of another peer that has fewer transfers.
        if self.transfers.len() > self.max
            && let Some(&oldest) = self.oldest.iter().rev().find_map(BTreeSet::first)
        {
            self.remove(oldest);
            self.evicted += 1;
        }
        number
    }

    fn remove_oldest(&mut self) {
        if let Some((&number, _)) = self.transfers.first_key_value() {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(transfer) = self.transfers.remove(&number) else { return };
        self.change(transfer.peer, |numbers| numbers.retain(|other| *other != number));
    }

    /// Changes the list of a peer's transfers, and updates `oldest` to match.
    fn change(&mut self, peer: K, change: impl FnOnce(&mut Vec<u64>)) {
        let numbers = self.of_peer.entry(peer).or_default();
        let place = |numbers: &[u64]| Some((numbers.len().checked_sub(1)?, *numbers.first()?));
        if let Some((more, oldest)) = place(numbers) {
            self.oldest[more].remove(&oldest);
        }
        change(numbers);
        match place(numbers) {
            Some((more, oldest)) => drop(self.oldest[more].insert(oldest)),
            None => drop(self.of_peer.remove(&peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_written_as_it_was_read() {
        for (value, number, more, size) in [
            (&[][..], 0, false, 16),
            (&[0x0a], 0, true, 64),
            (&[0x12, 0x3e], 0x123, true, 1024),
            (&[0xf2, 0x34, 0x51], 0xf2345, false, 32),
        ] {
            let block = Block::read(value).unwrap();
            assert_eq!((block.number, block.more, block.size()), (number, more, size));
            assert_eq!(block.value().to_be_bytes()[4 - value.len()..], *value);
        }
    }

    #[test]
    fn a_block_is_made_no_smaller_than_necessary() {
        let block = Block { number: 3, more: false, size_exponent: 2 };
        assert_eq!(block.at_most(64), block);
        assert_eq!(block.at_most(63), Block { number: 6, size_exponent: 1, ..block });
        assert_eq!(block.at_most(1), Block { number: 12, size_exponent: 0, ..block });
    }

    /// When a transfer expires, a message may be processed before the timeout that removes the
    /// transfer.
    #[test]
    fn an_expired_transfer_is_not_found_before_it_is_removed() {
        let (lifetime, now) = (Duration::from_secs(9), Instant::now());
        let block = |number| Block { number, more: true, size_exponent: 0 };
        for (after, good) in [(8, true), (9, false)] {
            let mut transfers = Transfers::new(10, lifetime);
            let later = now + Duration::from_secs(after);
            transfers.assemble(now, 1, 7, block(0), &[0; 16], 100);
            let next = transfers.assemble(later, 1, 7, block(1), &[0; 16], 100);
            assert_eq!(next == Assembled::Continue, good);
            transfers.keep(now, 1, 8, 0, Arc::new(Response::empty(super::super::Code::Content)));
            assert_eq!(transfers.kept(later, 1, 8, None).is_some(), good);
        }
    }
}
