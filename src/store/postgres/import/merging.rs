//! Writes some rows of an import at once, in the caller's transaction. The rows must not depend on each
//! other. The rules are those of [`merge`], which are applied again here, because the table may have
//! changed since the check.

use std::collections::HashSet;

use super::super::{
    counts,
    failure::Failure,
    read::{self, device_columns},
    secrets,
    session::{Session, values},
};
use super::standing::Expected;
use crate::{
    device::{DeviceId, Secret},
    seal,
    store::{
        Conflict, DeviceRow, ImportReport, ImportRow, SameSecret, StoreError, UnixSeconds,
        merge::{self, Change, Columns, Merged},
        undo::{ImportId, KeyChange},
    },
};

/// Reason why rows were not written. The transaction must be rolled back.
pub(super) enum Unwritten {
    /// The table has changed since the check, and now contradicts this row.
    Rejected(u64, Conflict),
    /// The database failed.
    Failed(Failure),
}

impl From<Failure> for Unwritten {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for Unwritten {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// Properties of an import that its rows share.
pub(super) struct Merging<'a> {
    /// Number of the import, by which it can be undone, or taken back if it was cut off.
    pub(super) id: Option<ImportId>,
    /// Set if added devices stay hidden until the import ends, and former keys are kept until then.
    pub(super) is_in_slices: bool,
    /// Time of the import.
    pub(super) at: UnixSeconds,
    pub(super) same_secret: SameSecret<'a>,
}

/// Result of writing some rows.
#[derive(Default)]
pub(super) struct Written {
    pub(super) report: ImportReport,
    /// Devices that were added. They are counted when the import ends and they are no longer hidden.
    pub(super) added: counts::Added,
    /// Number of devices that the import has changed so far.
    pub(super) changes: i64,
}

/// Change of a device that is in the table.
struct Known<'r> {
    row: &'r ImportRow,
    change: Option<Change<'r>>,
    key: KeyChange,
}

impl Merging<'_> {
    /// Writes rows. `changes` is the number of devices that the import has changed before.
    pub(super) async fn write(
        &self,
        session: &Session,
        rows: &[(u64, ImportRow)],
        changes: i64,
    ) -> Result<Written, Unwritten> {
        let mut written = Written { changes, ..Written::default() };
        let added = self.add(session, rows).await?;
        let known: Vec<(u64, ImportRow)> =
            rows.iter().filter(|(_, row)| !added.contains(&row.device)).cloned().collect();
        for (_, row) in rows.iter().filter(|(_, row)| added.contains(&row.device)) {
            written.report.count(Merged::Added);
            written.added.add(&merge::new_device(row));
        }
        if !self.is_in_slices {
            let devices: Vec<&str> = added.iter().map(DeviceId::as_str).collect();
            counts::give(session, &devices).await?;
        }
        if !known.is_empty() {
            self.change(session, &known, &mut written).await?;
        }
        self.note(session, rows).await?;
        Ok(written)
    }

    /// Adds those devices that are not in the table, with their keys, and returns them.
    async fn add(&self, session: &Session, rows: &[(u64, ImportRow)]) -> Result<HashSet<DeviceId>, Failure> {
        const DEVICES: &str = "INSERT INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, \
                               IotId, importId, target, name, spelledMac, addedBy) \
                               SELECT i.deviceId, i.enrollment, i.productKey, i.deviceName, i.deviceSecret, i.IotId, $7, \
                               i.target, i.name, i.spelledMac, $11 FROM unnest($1, $2, $3, $4, $5, $6, $8, $9, $10) \
                               AS i (deviceId, enrollment, productKey, deviceName, deviceSecret, IotId, target, name, spelledMac) \
                               ON CONFLICT (deviceId) DO NOTHING RETURNING deviceId";
        const KEYS: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince) \
                            SELECT k.*, CASE WHEN k.pskNext IS NOT NULL THEN $5 END \
                            FROM unnest($1, $2, $3, $4) AS k (pskIdentity, deviceId, psk, pskNext)";
        let columns: Vec<Columns<'_>> = rows.iter().map(|(_, row)| merge::new_device(row)).collect();
        let text = |of: for<'c> fn(&Columns<'c>) -> &'c str| columns.iter().map(of).collect::<Vec<&str>>();
        let optional = |of: for<'c> fn(&Columns<'c>) -> Option<&'c str>| {
            columns.iter().map(of).collect::<Vec<Option<&str>>>()
        };
        let ids: Vec<&str> = rows.iter().map(|(_, row)| row.device.as_str()).collect();
        let names: Vec<String> = rows
            .iter()
            .zip(&columns)
            .map(|((_, row), columns)| merge::name_of(&row.device, columns))
            .collect();
        let spelled: Vec<Option<String>> =
            rows.iter().map(|(_, row)| read::spelled_mac(&row.device)).collect();
        let id = self.id.map(|id| i64::from(id.0));
        let added = session
            .rows(
                DEVICES,
                values![
                    ids,
                    text(|columns| columns.enrollment),
                    text(|columns| columns.product_key),
                    optional(|columns| columns.device_name),
                    optional(|columns| columns.device_secret.map(Secret::expose)),
                    optional(|columns| columns.iot_id),
                    id,
                    optional(|columns| columns.target),
                    names,
                    spelled,
                    id.filter(|_| self.is_in_slices)
                ],
            )
            .await?;
        let added: HashSet<DeviceId> = added.iter().map(|row| read::id(row, 0)).collect::<Result<_, _>>()?;
        let new = || rows.iter().map(|(_, row)| row).filter(|row| added.contains(&row.device));
        let keyed = || new().filter_map(|row| row.key.as_ref().map(|key| (row, key)));
        let identities: Vec<&str> = keyed().map(|(_, (identity, _))| identity.as_str()).collect();
        if !identities.is_empty() {
            let devices: Vec<&str> = keyed().map(|(row, _)| row.device.as_str()).collect();
            let psks: Vec<&str> = keyed().map(|(_, (_, psk))| psk.expose()).collect();
            let next: Vec<Option<&str>> =
                keyed().map(|(row, _)| row.next_key.as_ref().map(Secret::expose)).collect();
            session.execute(KEYS, values![identities, devices, psks, next, self.at]).await?;
        }
        Ok(added)
    }

    /// Changes devices that are in the table.
    async fn change(
        &self,
        session: &Session,
        rows: &[(u64, ImportRow)],
        written: &mut Written,
    ) -> Result<(), Unwritten> {
        let expected = lock(session, rows).await?;
        let mut changed: Vec<Known<'_>> = Vec::new();
        for (at, row) in rows {
            let Some(before) = expected.devices.get(&row.device).and_then(Option::as_ref) else {
                let reason = format!("device {} was deleted meanwhile; try again", row.device);
                return Err(StoreError::Busy(reason).into());
            };
            let known = self.known(&expected, before, row).map_err(|unmerged| match unmerged {
                merge::Unmerged::Conflict(conflict) => Unwritten::Rejected(*at, conflict),
                merge::Unmerged::Failed(failure) => Unwritten::Failed(failure),
            })?;
            let moves = before.enrollment != row.enrollment;
            let merged = Merged::of(moves, known.change.is_some(), known.key);
            written.report.count(merged);
            if merged != Merged::Unchanged {
                changed.push(known);
            }
        }
        if !changed.is_empty() {
            self.put(session, &changed, written.changes).await?;
            written.changes += changed.len() as i64;
        }
        Ok(())
    }

    /// Merges a row into a device that is in the table.
    fn known<'r>(
        &self,
        expected: &'r Expected,
        before: &'r DeviceRow,
        row: &'r ImportRow,
    ) -> Result<Known<'r>, merge::Unmerged<Failure>> {
        let failed = |error: StoreError| merge::Unmerged::Failed(Failure::from(error));
        let same_secret = merge::has_same_secret(before, row, self.same_secret).map_err(failed)?;
        let change = merge::known_device(before, row, same_secret)?;
        if let Some(Change { columns, .. }) = &change {
            let name = merge::name_of(&row.device, columns);
            let key = (columns.product_key.to_owned(), name.clone());
            let other =
                |holder: Option<&Option<DeviceId>>| holder.cloned().flatten().filter(|id| *id != row.device);
            merge::unique_name(other(expected.names.get(&key)), &name)?;
            if let Some(iot_id) = columns.iot_id {
                merge::unique_iot_id(other(expected.iot_ids.get(iot_id)))?;
            }
        }
        let own = expected.keys.get(&row.device).and_then(Option::as_ref);
        let drops_key = change.is_some_and(|change| change.drops_key) && own.is_some();
        let own = own.filter(|_| !drops_key);
        let key = match &row.key {
            None => {
                merge::without_key(row, own.is_some())?;
                KeyChange::None
            }
            Some((identity, _)) => {
                let stored = match expected.owners.get(identity).and_then(Option::as_ref) {
                    Some((owner, stored)) => {
                        merge::identity_of(owner, row)?;
                        Some(stored).filter(|_| !drops_key)
                    }
                    None => own,
                };
                merge::key_change(stored, row, self.same_secret).map_err(failed)??
            }
        };
        Ok(Known { row, change, key: key.or_lost(drops_key) })
    }

    /// Writes changed devices, and their former values.
    async fn put(&self, session: &Session, changed: &[Known<'_>], changes: i64) -> Result<(), Failure> {
        const LABEL: &str =
            "UPDATE device_table SET importId = coalesce($2, -abs(importId)) WHERE deviceId = ANY ($1)";
        const UPDATE: &str = "UPDATE device_table d SET enrollment = i.enrollment, productKey = i.productKey, \
                              deviceName = i.deviceName, deviceSecret = i.deviceSecret, IotId = i.IotId, refusal = NULL, \
                              target = i.target, name = i.name \
                              FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) \
                              AS i (deviceId, enrollment, productKey, deviceName, deviceSecret, IotId, target, name) \
                              WHERE d.deviceId = i.deviceId";
        const DROP_KEYS: &str = "DELETE FROM device_key WHERE deviceId = ANY ($1)";
        const PUT_KEYS: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince) \
                                SELECT k.*, CASE WHEN k.pskNext IS NOT NULL THEN $5 END \
                                FROM unnest($1, $2, $3, $4) AS k (pskIdentity, deviceId, psk, pskNext) \
                                ON CONFLICT (deviceId) DO UPDATE SET pskIdentity = excluded.pskIdentity, \
                                psk = excluded.psk, pskNext = excluded.pskNext, nextSince = excluded.nextSince, \
                                pskUsed = NULL, pskNextUsed = NULL";
        let all: Vec<&str> = changed.iter().map(|known| known.row.device.as_str()).collect();
        counts::take(session, &all).await?;
        if let Some(id) = self.id {
            self.note_before(session, id, changed, changes).await?;
        }
        session.execute(LABEL, values![all, self.id.map(|id| i64::from(id.0))]).await?;
        let devices: Vec<(&DeviceId, Columns<'_>)> =
            changed.iter().filter_map(|known| Some((&known.row.device, known.change?.columns))).collect();
        let text = |of: for<'c> fn(&Columns<'c>) -> &'c str| {
            devices.iter().map(|(_, columns)| of(columns)).collect::<Vec<&str>>()
        };
        let optional = |of: for<'c> fn(&Columns<'c>) -> Option<&'c str>| {
            devices.iter().map(|(_, columns)| of(columns)).collect::<Vec<Option<&str>>>()
        };
        if !devices.is_empty() {
            let names: Vec<String> =
                devices.iter().map(|(device, columns)| merge::name_of(device, columns)).collect();
            let ids: Vec<&str> = devices.iter().map(|(device, _)| device.as_str()).collect();
            session
                .execute(
                    UPDATE,
                    values![
                        ids,
                        text(|columns| columns.enrollment),
                        text(|columns| columns.product_key),
                        optional(|columns| columns.device_name),
                        optional(|columns| columns.device_secret.map(Secret::expose)),
                        optional(|columns| columns.iot_id),
                        optional(|columns| columns.target),
                        names
                    ],
                )
                .await?;
        }
        let lost: Vec<&str> = changed
            .iter()
            .filter(|known| known.row.key.is_none() && known.key == KeyChange::Lost)
            .map(|known| known.row.device.as_str())
            .collect();
        if !lost.is_empty() {
            session.execute(DROP_KEYS, values![lost]).await?;
        }
        let keyed = || {
            let keyed = changed.iter().filter(|known| known.key != KeyChange::None);
            keyed.filter_map(|known| known.row.key.as_ref().map(|key| (known.row, key)))
        };
        let identities: Vec<&str> = keyed().map(|(_, (identity, _))| identity.as_str()).collect();
        if !identities.is_empty() {
            let devices: Vec<&str> = keyed().map(|(row, _)| row.device.as_str()).collect();
            let psks: Vec<&str> = keyed().map(|(_, (_, psk))| psk.expose()).collect();
            let next: Vec<Option<&str>> =
                keyed().map(|(row, _)| row.next_key.as_ref().map(Secret::expose)).collect();
            session.execute(PUT_KEYS, values![identities, devices, psks, next, self.at]).await?;
        }
        counts::give(session, &all).await
    }

    /// Notes the values that devices have before the import. Former keys are kept only if the import is
    /// in slices, so that it can be taken back.
    async fn note_before(
        &self,
        session: &Session,
        id: ImportId,
        changed: &[Known<'_>],
        changes: i64,
    ) -> Result<(), Failure> {
        const BEFORE: &str = "INSERT INTO import_before (importId, deviceId, number, former, enrollment, productKey, \
                              deviceName, IotId, refusal, hadSecret, keyChange, addedNext, target, name, \
                              formerIdentity, formerPsk, formerNext, formerSince, formerUsed, formerNextUsed) \
                              SELECT $1, d.deviceId, i.number, d.importId, d.enrollment, d.productKey, d.deviceName, d.IotId, \
                              d.refusal, d.deviceSecret IS NOT NULL, i.keyChange, i.addedNext, d.target, d.name, \
                              k.pskIdentity, k.psk, k.pskNext, k.nextSince, k.pskUsed, k.pskNextUsed \
                              FROM unnest($2, $3, $4, $5) AS i (deviceId, number, keyChange, addedNext) \
                              JOIN device_table d ON d.deviceId = i.deviceId \
                              LEFT JOIN device_key k ON $6 AND k.deviceId = i.deviceId AND i.keyChange = 'lost'";
        let devices: Vec<&str> = changed.iter().map(|known| known.row.device.as_str()).collect();
        let numbers: Vec<i64> = (changes + 1..).take(changed.len()).collect();
        let keys: Vec<Option<&str>> = changed
            .iter()
            .map(|known| match known.key {
                KeyChange::None | KeyChange::NextAdded => None,
                KeyChange::Added => Some("added"),
                KeyChange::Lost => Some("lost"),
            })
            .collect();
        let added_next: Vec<bool> = changed.iter().map(|known| known.key == KeyChange::NextAdded).collect();
        let id = i64::from(id.0);
        session
            .execute(BEFORE, values![id, devices, numbers, keys, added_next, self.is_in_slices])
            .await
            .map(drop)
    }

    /// Notes the database keys under which secrets of the rows are sealed.
    async fn note(&self, session: &Session, rows: &[(u64, ImportRow)]) -> Result<(), Failure> {
        let mut noted = HashSet::new();
        for (_, row) in rows {
            let keys = row.key.iter().map(|(_, psk)| psk).chain(&row.next_key);
            for stored in row.device_secret.iter().chain(keys) {
                if noted.insert(seal::key_of(stored.expose()).map(str::to_owned)) {
                    secrets::note(session, stored.expose()).await?;
                }
            }
        }
        Ok(())
    }
}

/// Locks the devices of rows, and then their keys, in order of device ID. Returns the table's data
/// about them after the locks were taken.
async fn lock(session: &Session, rows: &[(u64, ImportRow)]) -> Result<Expected, Failure> {
    const DEVICES: &str = concat!(
        "SELECT ",
        device_columns!(),
        " FROM device_table d WHERE d.deviceId = ANY ($1) ORDER BY d.deviceId FOR UPDATE"
    );
    const KEYS: &str =
        "SELECT deviceId FROM device_key WHERE deviceId = ANY ($1) ORDER BY deviceId FOR UPDATE";
    let ids: Vec<&str> = rows.iter().map(|(_, row)| row.device.as_str()).collect();
    session.rows(DEVICES, values![ids]).await?;
    session.rows(KEYS, values![ids]).await?;
    Expected::read(session, rows).await
}
