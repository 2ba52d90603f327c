//! Migrates the audit log from version 3 of the schema, which had a row and a hash for each entry.
//! Verifies the old chain and puts its entries into blocks. A fault in the old chain becomes a
//! fault in the new chain.

use rusqlite::{Connection, Row, params};
use sha2::{Digest, Sha256};

use super::{BLOCK, block_of, put_block};
use crate::store::audit::{Link, link};

/// Hash of a faulty block. It never matches, so `verify` finds the fault.
const BROKEN: Link = [0; 32];

/// Entries collected for one block.
struct Gathered {
    first: u64,
    lines: Vec<String>,
    is_whole: bool,
}

/// Moves the entries of `audit_log_3` into blocks, in the caller's transaction.
pub(in crate::store::sqlite) fn into_blocks(connection: &Connection) -> rusqlite::Result<()> {
    copy(connection)?;
    connection.execute_batch("DROP TABLE audit_log_3")
}

fn copy(connection: &Connection) -> rusqlite::Result<()> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq, headHash FROM audit_chain";
    const ROWS: &str = "SELECT seq, at, event, deviceId, enrollment, who, address, detail, hash, \
                        json_patch('{}', json_object('at', at, 'event', event, 'deviceId', deviceId, \
                        'enrollment', enrollment, 'who', who, 'address', address, 'detail', detail)) \
                        FROM audit_log_3 ORDER BY seq";
    let (anchor, anchor_hash, head, head_hash): (i64, Link, i64, Link) =
        connection.query_row(CHAIN, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let (mut seq, mut row_hash, mut block_hash) = (anchor.cast_unsigned(), anchor_hash, anchor_hash);
    let mut gathered = Gathered { first: seq + 1, lines: Vec::new(), is_whole: true };
    let mut statement = connection.prepare(ROWS)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let number = row.get::<_, i64>(0)?.cast_unsigned();
        // A gap in the numbers begins a new block, so that `verify` still finds the gap.
        if gathered.lines.len() == BLOCK || number != seq + 1 {
            block_hash = gathered.put(connection, &block_hash)?;
            gathered = Gathered { first: number, lines: Vec::new(), is_whole: true };
        }
        gathered.is_whole &= number == seq + 1 && row.get::<_, Link>(8)? == row_link(row, &row_hash)?;
        gathered.lines.push(row.get(9)?);
        (seq, row_hash) = (number, row.get(8)?);
    }
    block_hash = gathered.put(connection, &block_hash)?;
    let is_whole = (seq, row_hash) == (head.cast_unsigned(), head_hash);
    let head_hash = if is_whole { block_hash } else { BROKEN };
    connection.execute("UPDATE audit_chain SET headSeq = ?1, headHash = ?2", params![head, head_hash])?;
    Ok(())
}

impl Gathered {
    fn put(&self, connection: &Connection, previous: &Link) -> rusqlite::Result<Link> {
        if self.lines.is_empty() {
            return Ok(*previous);
        }
        let entries = block_of(&self.lines);
        let hash = if self.is_whole { link(previous, self.first, &entries) } else { BROKEN };
        put_block(connection, self.first, self.first + self.lines.len() as u64 - 1, &entries, &hash)?;
        Ok(hash)
    }
}

/// Returns the hash of a row by the rule of version 3: the hash covers the previous row's hash, the
/// entry's number and time, and each text preceded by its length.
fn row_link(row: &Row<'_>, previous: &Link) -> rusqlite::Result<Link> {
    let mut hash = Sha256::new().chain_update(previous);
    for number in 0..2 {
        hash.update(row.get::<_, i64>(number)?.to_be_bytes());
    }
    for text in 2..8 {
        match row.get_ref(text)?.as_str_or_null()? {
            Some(text) => {
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text);
            }
            None => hash.update(u64::MAX.to_be_bytes()),
        }
    }
    Ok(hash.finalize().into())
}
