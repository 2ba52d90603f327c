//! Verification of the audit log's chain of hashes, block by block. Pure: a store reads the blocks, and
//! this module finds the first fault. The rules are the same for every store.

use super::audit::{AuditEntry, AuditEvent, Chain, Link, link};

/// A block of the log, as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredBlock<'b> {
    /// Number of the first entry.
    pub first: u64,
    /// Number of the last entry.
    pub last: u64,
    /// Text that the hash covers.
    pub text: &'b str,
    /// Hash of the previous block's hash and of this block.
    pub hash: &'b Link,
}

/// State of a verification that has come to some block.
pub struct Verification {
    chain: Chain,
    anchor: Link,
    seq: u64,
    previous: Link,
    /// Set if an entry says that the pruned entries were pruned.
    is_signed_off: bool,
}

impl Verification {
    /// Begins a verification. `anchor` is the number and the hash of the last pruned entry, and `head`
    /// those of the last entry.
    pub fn new(anchor: (u64, Link), head: (u64, Link)) -> Self {
        let (pruned, anchor) = anchor;
        let (last, hash) = head;
        let chain = Chain { entries: 0, pruned, last, hash, fault: None };
        Self { chain, anchor, seq: pruned, previous: anchor, is_signed_off: pruned == 0 }
    }

    /// Verifies the next block, oldest first. `lines` are its entries.
    pub fn block<'l>(&mut self, block: StoredBlock<'_>, lines: impl Iterator<Item = &'l str>) {
        let StoredBlock { first, last, text, hash } = block;
        let pruning = format!("\"event\":\"{}\"", AuditEvent::Pruned.name());
        let mut count = 0;
        for line in lines {
            count += 1;
            let detail = || serde_json::from_str::<AuditEntry>(line).ok()?.detail;
            self.is_signed_off |= line.contains(&pruning)
                && detail()
                    .is_some_and(|detail| detail.ends_with(&anchoring(self.chain.pruned, &self.anchor)));
        }
        if first != self.seq + 1 {
            self.fault(sentence(self.seq + 1, first.saturating_sub(1), "missing"));
        } else if *hash != link(&self.previous, first, text) || first + count != last + 1 {
            self.fault(sentence(first, last, "not what was written"));
        }
        self.chain.entries += (last + 1).saturating_sub(first);
        (self.seq, self.previous) = (last, *hash);
    }

    /// Ends the verification after the last block.
    pub fn end(mut self) -> Chain {
        let Chain { pruned, last, hash, .. } = self.chain;
        if self.seq < last {
            self.fault(format!("the last entries, {} to {last}, are missing", self.seq + 1));
        } else if self.seq > last || self.previous != hash {
            self.fault(format!("the chain ends with entry {last}, which is not the last one or was changed"));
        }
        if !self.is_signed_off {
            self.fault(format!(
                "no entry says that entries up to {pruned} were pruned: the beginning was cut off"
            ));
        }
        self.chain
    }

    fn fault(&mut self, sentence: String) {
        self.chain.fault.get_or_insert(sentence);
    }
}

/// Returns the detail of the entry about pruned entries, the last of which has the number `last` and
/// the hash `hash`.
pub fn pruning(entries: u64, last: u64, hash: &Link) -> String {
    format!("{entries} entries, {}", anchoring(last, hash))
}

/// Returns the last part of the text of an entry about pruning. This part must match the anchor of
/// the chain.
fn anchoring(seq: u64, hash: &Link) -> String {
    format!("up to {seq}, hash {}", hex::encode(hash))
}

/// Returns a sentence such as `entry 7 is missing` or `entries 7 to 9 are missing`.
fn sentence(first: u64, last: u64, what: &str) -> String {
    if first < last {
        format!("entries {first} to {last} are {what}")
    } else {
        format!("entry {first} is {what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: (u64, Link) = (0, [0; 32]);

    /// Returns lines, and the hash of each as a block of its own.
    fn blocks(lines: &[String]) -> Vec<(String, Link)> {
        let mut previous = NONE.1;
        let block = |(line, first): (&String, u64)| {
            previous = link(&previous, first, line);
            (line.clone(), previous)
        };
        lines.iter().zip(1..).map(block).collect()
    }

    fn verify(blocks: &[(u64, &(String, Link))], anchor: (u64, Link), head: (u64, Link)) -> Chain {
        let mut verification = Verification::new(anchor, head);
        for (seq, (line, hash)) in blocks {
            let block = StoredBlock { first: *seq, last: *seq, text: line, hash };
            verification.block(block, [line.as_str()].into_iter());
        }
        verification.end()
    }

    fn fault(chain: Chain) -> String {
        chain.fault.unwrap_or_default()
    }

    #[test]
    fn each_change_of_a_chain_is_a_fault() {
        let line = |at| AuditEntry::new(AuditEvent::Imported, at).line();
        let all = blocks(&[line(1), line(2), line(3)]);
        let numbered: Vec<(u64, &(String, Link))> = (1..).zip(&all).collect();
        let head = (3, all[2].1);
        let chain = verify(&numbered, NONE, head);
        assert_eq!((chain.fault, chain.entries, chain.last), (None, 3, 3));

        assert!(fault(verify(&numbered[1..], NONE, head)).contains("entry 1 is missing"));
        assert!(fault(verify(&[numbered[0], numbered[2]], NONE, head)).contains("entry 2 is missing"));
        assert!(fault(verify(&numbered[..2], NONE, head)).contains("the last entries, 3 to 3"));
        assert!(fault(verify(&numbered, NONE, (3, [7; 32]))).contains("not the last one"));
        let changed = (line(9), all[1].1);
        let chain = verify(&[numbered[0], (2, &changed), numbered[2]], NONE, head);
        assert_eq!(fault(chain), "entry 2 is not what was written");
    }

    #[test]
    fn a_beginning_that_was_cut_off_needs_an_entry_about_it() {
        let line = |at| AuditEntry::new(AuditEvent::Imported, at).line();
        let first = blocks(&[line(1)])[0].1;
        let detail = Some(pruning(1, 1, &first));
        let about = AuditEntry { detail, ..AuditEntry::new(AuditEvent::Pruned, 2) }.line();
        let all = blocks(&[line(1), about.clone()]);
        let head = (2, all[1].1);
        assert_eq!(verify(&[(2, &all[1])], (1, first), head).fault, None);
        let other = blocks(&[line(1), line(2)]);
        let chain = verify(&[(2, &other[1])], (1, first), (2, other[1].1));
        assert!(fault(chain).contains("the beginning was cut off"));
    }
}
