//! Takes back the changes of an import in short transactions, because the import was cut off or
//! because an operator undoes it. Devices that have changed since the import, or are being
//! registered, stay as they are. The caller holds the lock of imports, has marked the import as
//! unfinished, and removes the mark at the end.

use std::time::Instant;

use rusqlite::{Connection, Transaction, params};

use super::{
    connection, counts, imports,
    unfinished::{Kind, Mark, ROWS, SLICE, Turns},
};

/// Maximum number of rows of the table that one step reads to find the devices of an import.
const SEARCHED: i64 = 10_000;

/// Text that comes after each device ID, because an ID has only printable ASCII characters.
const END: &str = "\x7f";

/// Removes a device that an import has added. The condition names the device, because a subquery
/// that reads all changed devices would be repeated for each added device.
const REMOVE: &str = "DELETE FROM main.device_table WHERE deviceId = ?1 AND importId = ?2 \
                      AND NOT EXISTS (SELECT 1 FROM import_before b WHERE b.importId = ?2 AND b.deviceId = ?1) \
                      AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = ?1) \
                      RETURNING deviceSecret IS NOT NULL";

/// Takes back the changes of an import. Returns false if it was stopped between two transactions;
/// another call continues.
pub(super) fn run(connection: &Connection, mark: &Mark, turns: &mut Turns<'_>) -> rusqlite::Result<bool> {
    let reversal = Reversal { connection, mark };
    // The added devices go first, because they may have the names and identities that the changed
    // devices had before. Those of an import that was cut off are not counted yet, so their removal
    // must not change the counts.
    if mark.kind == Kind::Import {
        counts::without_triggers(connection)?;
    }
    let removed = reversal.remove_all(turns);
    counts::with_triggers(connection)?;
    if !removed? {
        return Ok(false);
    }
    // For the same reason, the new keys of all changed devices go before the first former key comes
    // back. An undo restores no keys.
    if mark.kind == Kind::Import && !reversal.remove_all_keys(turns)? {
        return Ok(false);
    }
    if !reversal.restore_all(turns)? {
        return Ok(false);
    }
    Ok(mark.kind == Kind::Undo || reversal.leave_all(turns)?)
}

struct Reversal<'a> {
    connection: &'a Connection,
    mark: &'a Mark,
}

/// Next of the changed devices to restore. They are restored in the reverse of the order in which
/// the import has changed them, so that a name or an `IotId` that one device has given up for another
/// is free again when its turn comes.
enum Next {
    /// Devices that were changed out of order, before this position.
    Late(i64),
    /// Devices that were changed in order of their IDs, before this ID.
    Before(String),
}

/// A changed device that may be restored.
struct Changed {
    device: String,
    late: Option<i64>,
    is_untouched: bool,
    key_change: Option<String>,
    added_next: bool,
}

/// Number of devices that a transaction has restored, and number of devices that it could not
/// restore because another device has their former name or `IotId`.
#[derive(Default)]
struct Passed {
    restored: u64,
    blocked: u64,
}

impl Reversal<'_> {
    fn remove_all(&self, turns: &mut Turns<'_>) -> rusqlite::Result<bool> {
        let mut after = String::new();
        while let Some((last, has_written)) = self.remove(&after)? {
            after = last;
            // A step that has only read needs no pause.
            let stops = if has_written { turns.end() } else { turns.is_stopped() };
            if stops {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Examines some of the rows after the device `after`, and removes the devices that the import
    /// has added. Returns the last device that was examined, and whether there was a transaction, or
    /// `None` if no device comes after `after`.
    fn remove(&self, after: &str) -> rusqlite::Result<Option<(String, bool)>> {
        const SEARCH: &str = "SELECT deviceId, importId IS ?1 FROM main.device_table WHERE deviceId > ?2 \
                              ORDER BY deviceId LIMIT ?3";
        let id = self.mark.id.0;
        let (mut found, mut last) = (Vec::new(), None);
        {
            let mut statement = self.connection.prepare_cached(SEARCH)?;
            let mut rows = statement.query(params![id, after, SEARCHED])?;
            while let Some(row) = rows.next()? {
                let device: String = row.get(0)?;
                if row.get(1)? {
                    found.push(device.clone());
                }
                last = Some(device);
                if found.len() as i64 >= ROWS {
                    break;
                }
            }
        }
        if !found.is_empty() {
            let transaction = connection::begin(self.connection)?;
            let begun = Instant::now();
            let (mut removed, mut certificates) = (0, 0);
            let mut remove = transaction.prepare_cached(REMOVE)?;
            for device in &found {
                let mut rows = remove.query(params![device, id])?;
                while let Some(row) = rows.next()? {
                    removed += 1;
                    certificates += i64::from(row.get::<_, bool>(0)?);
                }
                if begun.elapsed() >= SLICE {
                    // The next step searches on from here.
                    last = Some(device.clone());
                    break;
                }
            }
            drop(remove);
            self.note(&transaction, "removed", removed)?;
            self.note(&transaction, "certificates", certificates)?;
            transaction.commit()?;
        }
        Ok(last.map(|last| (last, !found.is_empty())))
    }

    /// Adds to a number of the mark. The mark is in the database, so the number is right even if
    /// another process continues.
    fn note(&self, transaction: &Transaction<'_>, column: &str, more: i64) -> rusqlite::Result<()> {
        let sql = format!("UPDATE import_unfinished SET {column} = {column} + ?2 WHERE importId = ?1");
        transaction.prepare_cached(&sql)?.execute(params![self.mark.id.0, more]).map(drop)
    }

    fn remove_all_keys(&self, turns: &mut Turns<'_>) -> rusqlite::Result<bool> {
        let mut after = String::new();
        while let Some(last) = self.remove_keys(&after)? {
            after = last;
            if turns.end() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the new keys of some devices after the device `after` that the import has changed.
    /// Returns the last of these devices, or `None` if there are no more.
    fn remove_keys(&self, after: &str) -> rusqlite::Result<Option<String>> {
        const CHANGED: &str = concat!(
            "SELECT deviceId FROM import_before b WHERE importId = ?1 AND deviceId > ?2 AND keyChange IS NOT NULL AND ",
            imports::is_untouched!(),
            " ORDER BY deviceId LIMIT ?3"
        );
        let transaction = connection::begin(self.connection)?;
        let devices: Vec<String> = transaction
            .prepare_cached(CHANGED)?
            .query_map(params![self.mark.id.0, after, ROWS], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for device in &devices {
            remove_key(&transaction, device)?;
        }
        transaction.commit()?;
        Ok(devices.into_iter().next_back())
    }

    /// Restores all devices that can be restored. Rows of an import of an earlier version have no
    /// order, so a device whose former name is still taken is tried again after the others.
    fn restore_all(&self, turns: &mut Turns<'_>) -> rusqlite::Result<bool> {
        loop {
            let mut all = Passed::default();
            let mut next = Some(Next::Late(i64::MAX));
            while let Some(from) = next {
                let (after, passed) = self.restore(from)?;
                all.restored += passed.restored;
                all.blocked += passed.blocked;
                next = after;
                if turns.end() {
                    return Ok(false);
                }
            }
            if all.restored == 0 || all.blocked == 0 {
                return Ok(true);
            }
        }
    }

    /// Restores some devices. Returns the position of the next device, and the numbers of devices
    /// that were restored and could not be restored.
    fn restore(&self, from: Next) -> rusqlite::Result<(Option<Next>, Passed)> {
        let transaction = connection::begin(self.connection)?;
        let begun = Instant::now();
        let mut devices = self.changed(&transaction, &from)?;
        let (mut passed, mut done) = (Passed::default(), 0);
        for changed in &devices {
            self.restore_device(&transaction, changed, &mut passed)?;
            done += 1;
            if begun.elapsed() >= SLICE {
                break;
            }
        }
        devices.truncate(done);
        if self.mark.kind == Kind::Undo {
            self.note(&transaction, "restored", passed.restored.cast_signed())?;
        }
        transaction.commit()?;
        let next = match (devices.into_iter().next_back(), from) {
            (Some(Changed { late: Some(late), .. }), _) => Some(Next::Late(late)),
            (Some(Changed { device, .. }), _) => Some(Next::Before(device)),
            (None, Next::Late(_)) => Some(Next::Before(END.to_owned())),
            (None, Next::Before(_)) => None,
        };
        Ok((next, passed))
    }

    fn changed(&self, transaction: &Transaction<'_>, from: &Next) -> rusqlite::Result<Vec<Changed>> {
        const LATE: &str = concat!(
            "SELECT deviceId, late, keyChange, addedNext, ",
            imports::is_untouched!(),
            " FROM import_before b INDEXED BY import_late WHERE importId = ?1 AND late IS NOT NULL AND late < ?2 \
             ORDER BY late DESC LIMIT ?3"
        );
        const OTHERS: &str = concat!(
            "SELECT deviceId, late, keyChange, addedNext, ",
            imports::is_untouched!(),
            " FROM import_before b WHERE importId = ?1 AND late IS NULL AND deviceId < ?2 \
             ORDER BY deviceId DESC LIMIT ?3"
        );
        let changed = |row: &rusqlite::Row<'_>| {
            Ok(Changed {
                device: row.get(0)?,
                late: row.get(1)?,
                key_change: row.get(2)?,
                added_next: row.get(3)?,
                is_untouched: row.get(4)?,
            })
        };
        let id = self.mark.id.0;
        match from {
            Next::Late(late) => {
                transaction.prepare_cached(LATE)?.query_map(params![id, late, ROWS], changed)?.collect()
            }
            Next::Before(device) => {
                transaction.prepare_cached(OTHERS)?.query_map(params![id, device, ROWS], changed)?.collect()
            }
        }
    }

    /// Restores a device, unless it has changed since the import or is being registered, or another
    /// device now has its former name or `IotId`. Forgets the former values of a restored device. If
    /// the import was cut off, also forgets the former values of a device that has changed since. An
    /// undo keeps these, because they show that the import has changed the device.
    fn restore_device(
        &self,
        transaction: &Transaction<'_>,
        changed: &Changed,
        passed: &mut Passed,
    ) -> rusqlite::Result<()> {
        let (id, device) = (self.mark.id, changed.device.as_str());
        let step = |sql| transaction.prepare_cached(sql)?.execute(());
        if !changed.is_untouched {
            if self.mark.kind == Kind::Import {
                // The device may have changed after its new key was removed.
                restore_key(transaction, self.mark, device)?;
                imports::leave_row(transaction, id, device)?;
            }
            return Ok(());
        }
        // An undo has no former key to restore. No undo begins if the import has replaced keys, but
        // a device that was being registered at that time may have been left out of this check.
        if self.mark.kind == Kind::Undo && changed.key_change.as_deref() == Some("lost") {
            return Ok(());
        }
        step("SAVEPOINT device")?;
        imports::restore_row(transaction, id, device)?;
        let is_shared = imports::is_shared(transaction, device)?;
        if is_shared {
            step("ROLLBACK TO device")?;
        }
        step("RELEASE device")?;
        if is_shared {
            #[cfg(test)]
            BLOCKED.set(BLOCKED.get() + 1);
            passed.blocked += 1;
            return Ok(());
        }
        if changed.added_next {
            remove_next(transaction, device)?;
        }
        match self.mark.kind {
            Kind::Import => restore_key(transaction, self.mark, device)?,
            Kind::Undo if changed.key_change.is_some() => remove_key(transaction, device)?,
            Kind::Undo => {}
        }
        imports::forget_before(transaction, id, device)?;
        passed.restored += 1;
        Ok(())
    }

    /// Leaves the devices that could not be restored as the import has changed them, but with their
    /// former keys.
    fn leave_all(&self, turns: &mut Turns<'_>) -> rusqlite::Result<bool> {
        const LEFT: &str = "SELECT deviceId FROM import_before WHERE importId = ?1 LIMIT ?2";
        loop {
            let transaction = connection::begin(self.connection)?;
            let devices: Vec<String> = transaction
                .prepare_cached(LEFT)?
                .query_map(params![self.mark.id.0, ROWS], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for device in &devices {
                restore_key(&transaction, self.mark, device)?;
                imports::leave_row(&transaction, self.mark.id, device)?;
            }
            self.note(&transaction, "taken", devices.len() as i64)?;
            transaction.commit()?;
            if devices.is_empty() {
                return Ok(true);
            }
            if turns.end() {
                return Ok(false);
            }
        }
    }
}

fn remove_key(connection: &Connection, device: &str) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM device_key WHERE deviceId = ?1";
    connection.prepare_cached(SQL)?.execute([device]).map(drop)
}

/// Removes the second key that an import has given to a device.
fn remove_next(connection: &Connection, device: &str) -> rusqlite::Result<()> {
    const SQL: &str = "UPDATE device_key SET pskNext = NULL, nextSince = NULL, pskUsed = NULL, pskNextUsed = NULL \
                       WHERE deviceId = ?1";
    connection.prepare_cached(SQL)?.execute([device]).map(drop)
}

/// Gives a device the keys that it had before an import, if the import has replaced or removed them
/// and the device has no key.
fn restore_key(connection: &Connection, mark: &Mark, device: &str) -> rusqlite::Result<()> {
    const KEY: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince, pskUsed, pskNextUsed) \
                       SELECT formerIdentity, deviceId, formerPsk, formerNext, formerSince, formerUsed, formerNextUsed \
                       FROM import_before \
                       WHERE importId = ?1 AND deviceId = ?2 AND formerPsk IS NOT NULL ON CONFLICT DO NOTHING";
    connection.prepare_cached(KEY)?.execute(params![mark.id.0, device]).map(drop)
}

#[cfg(test)]
thread_local! {
    /// Number of times that a device could not be restored, because another one had its former name
    /// or `IotId`.
    pub(super) static BLOCKED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::store::{Actor, undo::ImportId};

    #[test]
    fn a_device_is_removed_without_reading_the_devices_that_were_changed() {
        let steps = |changed: i64| {
            let database = connection::open_empty().unwrap();
            let rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                        INSERT INTO import_before (importId, deviceId, enrollment, productKey, hadSecret) \
                        SELECT 7, printf('SN-%06d', i), 'lamps', 'a1', 0 FROM n";
            database.execute(rows, [changed]).unwrap();
            let added = "INSERT INTO device_table (deviceId, productKey, enrollment, importId) \
                         VALUES ('new-1', 'a1', 'lamps', 7)";
            database.execute(added, ()).unwrap();
            let (id, by, file) = (ImportId(7), Actor::system_user(), String::new());
            let mark = Mark { id, kind: Kind::Undo, at: 0, by, file };
            let reversal = Reversal { connection: &database, mark: &mark };
            assert_eq!(reversal.remove("").unwrap(), Some(("new-1".to_owned(), true)));
            database.prepare_cached(REMOVE).unwrap().reset_status(StatementStatus::VmStep)
        };
        assert_eq!(steps(10), steps(1000));
    }
}
