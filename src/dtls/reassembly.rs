//! Reassembly of one handshake message from fragments that arrive in any order and may
//! overlap (RFC 6347 §4.2.3).

use super::message::Fragment;

/// Longest handshake message accepted, in bytes. A ClientHello with every extension in use
/// stays below 1 KB, and a ClientKeyExchange below 200 bytes.
pub(crate) const MAX_MESSAGE: usize = 2048;
/// Maximum number of separate byte ranges kept for a message. An honest sender never needs
/// more.
const MAX_RANGES: usize = 32;

/// The message being reassembled; empty between messages.
#[derive(Default)]
pub(crate) struct Reassembly {
    kind: u8,
    length: usize,
    /// Body of the message, up to the highest byte that has arrived.
    body: Vec<u8>,
    /// Byte ranges that have arrived, as start and end. They neither overlap nor touch.
    ranges: Vec<(usize, usize)>,
    started: bool,
}

impl Reassembly {
    /// Adds a fragment of the expected message. Returns the whole body once it is complete. A
    /// message that is too long is ignored. A fragment that differs from the earlier fragments in
    /// kind or message length replaces them: any of the fragments may be forged, and the client
    /// resends its own.
    pub(crate) fn add(&mut self, fragment: &Fragment<'_>) -> Option<Vec<u8>> {
        if fragment.length > MAX_MESSAGE {
            return None;
        }
        if !self.started || fragment.kind != self.kind || fragment.length != self.length {
            let Fragment { kind, length, .. } = *fragment;
            *self = Self { kind, length, started: true, ..Self::default() };
        }
        let (mut start, mut end) = (fragment.offset, fragment.offset + fragment.body.len());
        if end > self.length {
            return None;
        }
        if self.body.len() < end {
            self.body.resize(end, 0);
        }
        self.body.get_mut(start..end)?.copy_from_slice(fragment.body);
        self.ranges.retain(|&(from, to)| {
            let apart = to < start || end < from;
            if !apart {
                start = start.min(from);
                end = end.max(to);
            }
            apart
        });
        self.ranges.push((start, end));
        self.ranges.truncate(MAX_RANGES);
        let whole = self.ranges == [(0, self.length)];
        whole.then(|| std::mem::take(self).body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"an identity in pieces";

    fn fragment(offset: usize, length: usize) -> Fragment<'static> {
        Fragment {
            kind: 16,
            length: MESSAGE.len(),
            sequence: 2,
            offset,
            body: &MESSAGE[offset..offset + length],
        }
    }

    #[test]
    fn fragments_in_any_order_and_overlapping_make_the_message() {
        for order in [[(0, 8), (8, 8), (16, 5)], [(16, 5), (0, 8), (8, 8)], [(10, 11), (0, 4), (2, 9)]] {
            let mut reassembly = Reassembly::default();
            let mut whole = None;
            for (offset, length) in order {
                assert_eq!(whole, None);
                whole = reassembly.add(&fragment(offset, length));
            }
            assert_eq!(whole.as_deref(), Some(MESSAGE), "{order:?}");
        }
    }

    #[test]
    fn single_bytes_in_reverse_order_make_the_message() {
        let mut reassembly = Reassembly::default();
        for offset in (1..MESSAGE.len()).rev() {
            assert_eq!(reassembly.add(&fragment(offset, 1)), None);
        }
        assert_eq!(reassembly.add(&fragment(0, 1)).as_deref(), Some(MESSAGE));
    }

    #[test]
    fn an_empty_message_is_whole_at_once() {
        let empty = Fragment { kind: 14, length: 0, sequence: 0, offset: 0, body: &[] };
        assert_eq!(Reassembly::default().add(&empty), Some(Vec::new()));
    }

    #[test]
    fn the_longest_message_is_accepted_and_a_longer_one_is_not() {
        let body = vec![7; MAX_MESSAGE + 1];
        let add = |length: usize| {
            let whole = Fragment { kind: 1, length, sequence: 0, offset: 0, body: &body[..length] };
            Reassembly::default().add(&whole).map(|body| body.len())
        };
        assert_eq!(add(MAX_MESSAGE), Some(MAX_MESSAGE));
        assert_eq!(add(MAX_MESSAGE + 1), None);
    }

    #[test]
    fn oversized_fragments_change_nothing() {
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.add(&fragment(0, 8)), None);
        assert_eq!(reassembly.add(&Fragment { length: MAX_MESSAGE + 1, ..fragment(8, 13) }), None);
        assert_eq!(reassembly.add(&fragment(8, 13)).as_deref(), Some(MESSAGE));
    }

    #[test]
    fn fragments_that_contradict_the_earlier_ones_take_their_place() {
        for first in [Fragment { kind: 20, ..fragment(0, 3) }, Fragment { length: 400, ..fragment(0, 1) }] {
            let mut reassembly = Reassembly::default();
            assert_eq!(reassembly.add(&first), None);
            assert_eq!(reassembly.add(&fragment(0, 8)), None);
            assert_eq!(reassembly.add(&fragment(8, 13)).as_deref(), Some(MESSAGE));
        }
    }

    #[test]
    fn memory_grows_only_with_what_has_arrived() {
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.add(&Fragment { length: MAX_MESSAGE, ..fragment(0, 16) }), None);
        assert!(reassembly.body.capacity() < 64, "{}", reassembly.body.capacity());
    }

    #[test]
    fn the_number_of_gaps_is_bounded() {
        let body = [0; 1];
        let mut reassembly = Reassembly::default();
        for offset in (0..MAX_MESSAGE).step_by(2) {
            let tooth = Fragment { kind: 1, length: MAX_MESSAGE, sequence: 0, offset, body: &body };
            assert_eq!(reassembly.add(&tooth), None);
        }
        assert_eq!(reassembly.ranges.len(), MAX_RANGES);
        let body = [0; MAX_MESSAGE];
        let whole = Fragment { kind: 1, length: MAX_MESSAGE, sequence: 0, offset: 0, body: &body };
        assert!(reassembly.add(&whole).is_some(), "a copy in one piece completes it");
    }
}
