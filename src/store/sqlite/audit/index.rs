//! Index from devices to parts of the log. A part is about a thousand consecutive entries. For each
//! part, the index stores a four-byte hash of each device that has an entry in the part. The index
//! grows only at its end, like the log. An index by device would instead change a page for nearly
//! every entry. `verify` and exports do not rely on the index.

use rusqlite::{Connection, params};

use super::{BLOCKS, Block, parse};
use crate::{device::DeviceId, store::audit::AuditEntry};

/// Minimum number of entries in a part. A part consists of whole blocks, so it may have more.
const PART: u64 = 1024;

/// Text before the device ID in an entry's line. The text cannot occur within another field,
/// because a quote in a field is escaped with a backslash.
const KEY: &str = "\"deviceId\":\"";

/// Returns the FNV-1a hash (draft-eastlake-fnv). The index stores the hash, so the function must
/// never change; the hash function of the standard library may change. The bytes are big-endian, so
/// that they sort like the number.
pub(super) fn hash(device: &str) -> [u8; 4] {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    device.bytes().fold(0x811c_9dc5, step).to_be_bytes()
}

/// Returns the device ID in an entry's line. JSON escapes no character of a device ID.
fn device_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(KEY)?;
    rest.split_once('"').map(|(device, _)| device)
}

/// Returns two entry numbers: the last entry that is indexed or pruned, and the last entry of
/// the log.
fn extent(connection: &Connection) -> rusqlite::Result<[u64; 2]> {
    const SQL: &str = "SELECT max(anchorSeq, coalesce((SELECT max(lastSeq) FROM audit_device), 0)), headSeq \
                       FROM audit_chain";
    connection
        .prepare_cached(SQL)?
        .query_row((), |row| Ok([row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned)))
}

/// Returns whether there are enough unindexed entries for another part.
pub(super) fn is_behind(connection: &Connection) -> rusqlite::Result<bool> {
    let [indexed, head] = extent(connection)?;
    Ok(head.saturating_sub(indexed) >= PART)
}

/// Adds the next part of the index in the open transaction. The part covers at least [`PART`]
/// entries. Returns false and adds no part if fewer entries follow the last indexed or pruned one.
pub(super) fn add_part(connection: &Connection) -> rusqlite::Result<bool> {
    const PUT: &str = "INSERT INTO audit_device (lastSeq, firstSeq, devices) VALUES (?1, ?2, ?3)";
    let [indexed, head] = extent(connection)?;
    if head.saturating_sub(indexed) < PART {
        return Ok(false);
    }
    let (last, devices) = devices_after(connection, indexed)?;
    let is_whole = last - indexed >= PART;
    if is_whole {
        connection.prepare_cached(PUT)?.execute(params![
            last.cast_signed(),
            (indexed + 1).cast_signed(),
            devices.as_flattened()
        ])?;
    }
    Ok(is_whole)
}

/// Returns the number of the last entry of the part that begins after the entry `indexed`, and the
/// hashes of the devices in this part.
fn devices_after(connection: &Connection, indexed: u64) -> rusqlite::Result<(u64, Vec<[u8; 4]>)> {
    let (mut last, mut devices) = (indexed, Vec::new());
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let mut rows = statement.query([(indexed + 1).cast_signed(), i64::MAX])?;
    while last - indexed < PART
        && let Some(row) = rows.next()?
    {
        let block = Block::read(row)?;
        devices.extend(block.lines().filter_map(|(_, line)| device_of(line)).map(hash));
        last = last.max(block.last);
    }
    devices.sort_unstable();
    devices.dedup();
    Ok((last, devices))
}

/// Returns the entries about a device, newest first. `state` must be a transaction, so that the
/// index and the log are read in the same state.
pub(super) fn history(state: &Connection, id: &DeviceId, limit: usize) -> rusqlite::Result<Vec<AuditEntry>> {
    const PARTS: &str = "SELECT firstSeq, lastSeq, devices FROM audit_device ORDER BY lastSeq DESC";
    let [indexed, _] = extent(state)?;
    let mut newest = entries_about(state, id, (indexed + 1).cast_signed(), i64::MAX)?;
    let mut statement = state.prepare_cached(PARTS)?;
    let mut parts = statement.query(())?;
    while newest.len() < limit
        && let Some(part) = parts.next()?
    {
        let (devices, _) = part.get_ref(2)?.as_blob()?.as_chunks();
        if devices.binary_search(&hash(id.as_str())).is_ok() {
            newest.extend(entries_about(state, id, part.get(0)?, part.get(1)?)?);
        }
    }
    newest.truncate(limit);
    Ok(newest)
}

/// Returns the entries of a range that are about a device, newest first.
fn entries_about(
    connection: &Connection,
    id: &DeviceId,
    first: i64,
    last: i64,
) -> rusqlite::Result<Vec<AuditEntry>> {
    let wanted = format!("{KEY}{id}\"");
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let mut rows = statement.query([first, last])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let block = Block::read(row)?;
        if block.entries.contains(&wanted) {
            let lines = block.lines().filter(|(_, line)| line.contains(&wanted));
            found.extend(lines.map(parse).collect::<rusqlite::Result<Vec<_>>>()?);
        }
    }
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_drafts_vectors() {
        for (text, expected) in [("", 0x811c_9dc5_u32), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(hash(text), expected.to_be_bytes());
        }
    }

    #[test]
    fn the_device_of_a_line_is_not_what_another_text_says() {
        let line = r#"{"at":5,"event":"refused","who":"\"deviceId\":\"SN-2\""}"#;
        assert_eq!(device_of(line), None);
        assert_eq!(device_of(r#"{"at":5,"deviceId":"SN-1","who":"x"}"#), Some("SN-1"));
    }
}
