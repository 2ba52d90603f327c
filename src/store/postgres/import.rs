//! Imports. An import is one transaction: its rows are checked, many at a time, and those that change
//! the table are written, many at a time. Others see nothing of it until the commit, and nothing ever
//! if it is cut off. Only one import or undo runs at a time, in all processes together.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use super::{
    Access, Postgres, audit,
    engine::{BEGIN_BULK, Blocking, SNAPSHOT},
    failure::Failure,
    read::{self, device_columns},
    schema, secrets,
    session::{Session, column, number, values},
};
use crate::{
    device::{DeviceId, Secret},
    seal,
    store::{
        Conflict, DeviceRow, ImportError, ImportJob, ImportReport, ImportRow, ImportStage, Reject, Rejection,
        Rows, StoreError, UnixSeconds,
        check::{self, Checked, Staged, Standing},
        merge::{self, Change, Columns, Merged},
        roll::DeviceKeys,
        undo::{ImportId, KeyChange, REMEMBERED, UNDOABLE},
    },
};

/// Number of rows that are written at once.
const AT_ONCE: usize = 1000;

/// Maximum number of attempts to find an unused number for an import.
const ATTEMPTS: usize = 16;

/// Waits for the end of another import or undo, and keeps others from beginning one until the end of
/// the transaction.
pub(super) async fn take_turn(session: &Session) -> Result<(), Failure> {
    session.execute("UPDATE import_turn SET times = times + 1 WHERE id = 0", &[]).await.map(drop)
}

/// Returns a random number that no import has had.
pub(super) fn unused_number(store: &Postgres) -> Result<ImportId, StoreError> {
    const IS_USED: &str = "SELECT 1 FROM import_number WHERE importId = $1";
    for _ in 0..ATTEMPTS {
        let id = ImportId::random()?;
        let is_used = store.engine.read_now(async move |session: &Session| {
            session.exists(IS_USED, values![i64::from(id.0)]).await
        })?;
        if !is_used {
            return Ok(id);
        }
    }
    Err(StoreError::Failed("no unused number was found for an import; try again".into()))
}

/// Runs an import or a dry run.
pub(super) fn run(
    store: &Postgres,
    job: ImportJob<'_>,
    rows: Rows<'_>,
    reject: Reject<'_>,
) -> Result<ImportReport, ImportError> {
    // The rows are read before the transaction begins, because another program may write them slowly.
    let staged = Staged::read(rows, reject)?;
    let session = store.engine.blocking()?;
    if job.dry_run {
        session.run(async |session| match store.engine.access() {
            // Tables that are created in a transaction are gone when it ends.
            Access::PreviewsNew => {
                session.run("BEGIN").await?;
                session.run(schema::CREATE).await
            }
            Access::Full | Access::Looks => session.run(SNAPSHOT).await,
        })?;
        return Ok(check::check(&job, staged, &View::new(&session), reject)?.report);
    }
    store.engine.may_write()?;
    session.run(async |session| {
        session.run(BEGIN_BULK).await?;
        take_turn(session).await
    })?;
    let checked = check::check(&job, staged, &View::new(&session), reject)?;
    if checked.changes() == 0 {
        return Ok(checked.report);
    }
    let written = Import::new(&job, &session, store.clock.now()).write(&checked);
    match written {
        Ok(report) => {
            session.commit()?;
            Ok(report)
        }
        Err(Unwritten::Rejected(at, conflict)) => {
            reject(at, Rejection::Conflict(conflict));
            Err(ImportError::Rejected(1))
        }
        Err(Unwritten::Failed(error)) => Err(error.into()),
    }
}

/// The table, read for the check of an import. What is stored about the expected rows is read at once.
struct View<'s> {
    session: &'s Blocking,
    expected: RefCell<Expected>,
}

/// The table's data about some rows. An entry of `None` says that the table has nothing about a row.
#[derive(Default)]
struct Expected {
    devices: HashMap<DeviceId, Option<DeviceRow>>,
    keys: HashMap<DeviceId, Option<DeviceKeys>>,
    /// Devices by PSK identity, and their keys.
    owners: HashMap<String, Option<(String, DeviceKeys)>>,
    /// Devices by product and name.
    names: HashMap<(String, String), Option<DeviceId>>,
    iot_ids: HashMap<String, Option<DeviceId>>,
}

impl Expected {
    async fn read(session: &Session, rows: &[(u64, ImportRow)]) -> Result<Self, Failure> {
        const DEVICES: &str =
            concat!("SELECT ", device_columns!(), " FROM device_table d WHERE d.deviceId = ANY ($1)");
        const KEYS: &str = "SELECT deviceId, pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key \
                            WHERE deviceId = ANY ($1) OR pskIdentity = ANY ($2)";
        const NAMES: &str = "SELECT deviceId, productKey, name FROM device_table WHERE name = ANY ($1)";
        const IOT_IDS: &str = "SELECT deviceId, IotId FROM device_table WHERE IotId = ANY ($1)";
        let mut all = Self::default();
        let ids: Vec<&str> = rows.iter().map(|(_, row)| row.device.as_str()).collect();
        all.devices.extend(rows.iter().map(|(_, row)| (row.device.clone(), None)));
        for row in session.rows(DEVICES, values![ids]).await? {
            let row = read::device_row(&row)?;
            all.devices.insert(row.id.clone(), Some(row));
        }
        all.keys.extend(rows.iter().map(|(_, row)| (row.device.clone(), None)));
        let identities: Vec<&str> =
            rows.iter().filter_map(|(_, row)| Some(row.key.as_ref()?.0.as_str())).collect();
        all.owners.extend(identities.iter().map(|identity| ((*identity).to_owned(), None)));
        for row in session.rows(KEYS, values![ids, identities]).await? {
            let (owner, keys): (String, DeviceKeys) = (column(&row, 0)?, read::keys(&row, 1)?);
            if let Some(known) = DeviceId::parse_sn(&owner).ok().and_then(|id| all.keys.get_mut(&id)) {
                *known = Some(keys.clone());
            }
            all.owners.insert(keys.identity.clone(), Some((owner, keys)));
        }
        for (_, row) in rows {
            let stored = all.devices.get(&row.device).and_then(Option::as_ref);
            let change = match stored {
                None => Some(merge::new_device(row)),
                // Of a row that is in conflict, no name is asked for. Whether its secret is the same
                // does not change the name.
                Some(stored) => {
                    merge::known_device(stored, row, true).ok().flatten().map(|change| change.columns)
                }
            };
            let Some(columns) = change else { continue };
            let name = merge::name_of(&row.device, &columns);
            all.names.insert((columns.product_key.to_owned(), name), None);
            all.iot_ids.extend(columns.iot_id.map(|iot_id| (iot_id.to_owned(), None)));
        }
        let names: Vec<&str> = all.names.keys().map(|(_, name)| name.as_str()).collect();
        for row in session.rows(NAMES, values![names]).await? {
            let key = (column(&row, 1)?, column(&row, 2)?);
            all.names.insert(key, Some(read::id(&row, 0)?));
        }
        let iot_ids: Vec<&str> = all.iot_ids.keys().map(String::as_str).collect();
        for row in session.rows(IOT_IDS, values![iot_ids]).await? {
            all.iot_ids.insert(column(&row, 1)?, Some(read::id(&row, 0)?));
        }
        Ok(all)
    }
}

impl<'s> View<'s> {
    fn new(session: &'s Blocking) -> Self {
        Self { session, expected: RefCell::default() }
    }
}

impl Standing for View<'_> {
    fn expect(&self, rows: &[(u64, ImportRow)]) -> Result<(), StoreError> {
        let expected = self.session.run(async |session| Expected::read(session, rows).await)?;
        self.expected.replace(expected);
        Ok(())
    }

    fn device(&self, id: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        if let Some(known) = self.expected.borrow().devices.get(id) {
            return Ok(known.clone());
        }
        self.session.run(async |session| read::device(session, id).await)
    }

    fn keys(&self, id: &DeviceId) -> Result<Option<DeviceKeys>, StoreError> {
        if let Some(known) = self.expected.borrow().keys.get(id) {
            return Ok(known.clone());
        }
        self.session.run(async |session| keys_of(session, id).await)
    }

    fn owner(&self, identity: &str) -> Result<Option<(String, DeviceKeys)>, StoreError> {
        if let Some(known) = self.expected.borrow().owners.get(identity) {
            return Ok(known.clone());
        }
        self.session.run(async |session| owner_of(session, identity).await)
    }

    fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Result<Option<DeviceId>, StoreError> {
        let key = (product_key.to_owned(), name.to_owned());
        if let Some(known) = self.expected.borrow().names.get(&key) {
            return Ok(known.clone().filter(|holder| holder != device));
        }
        self.session.run(async |session| read::holder_of_name(session, device, product_key, name).await)
    }

    fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Result<Option<DeviceId>, StoreError> {
        if let Some(known) = self.expected.borrow().iot_ids.get(iot_id) {
            return Ok(known.clone().filter(|holder| holder != device));
        }
        self.session.run(async |session| read::holder_of_iot_id(session, device, iot_id).await)
    }
}

/// Returns the stored keys of a device.
async fn keys_of(session: &Session, device: &DeviceId) -> Result<Option<DeviceKeys>, Failure> {
    const SQL: &str =
        "SELECT pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key WHERE deviceId = $1";
    session.row(SQL, values![device.as_str()]).await?.map(|row| read::keys(&row, 0)).transpose()
}

/// Returns the device to which a PSK identity belongs, and its stored keys.
async fn owner_of(session: &Session, identity: &str) -> Result<Option<(String, DeviceKeys)>, Failure> {
    const SQL: &str = "SELECT deviceId, pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key WHERE pskIdentity = $1";
    let Some(row) = session.row(SQL, values![identity]).await? else { return Ok(None) };
    Ok(Some((column(&row, 0)?, read::keys(&row, 1)?)))
}

/// Reason why checked rows were not written.
enum Unwritten {
    /// The table has changed since the check, and now contradicts this row.
    Rejected(u64, Conflict),
    /// The database failed.
    Failed(StoreError),
}

impl From<StoreError> for Unwritten {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

type Unmerged = merge::Unmerged<Failure>;

impl From<Failure> for Unmerged {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// An import whose rows are checked.
struct Import<'a> {
    job: &'a ImportJob<'a>,
    session: &'a Blocking,
    /// Time of the import.
    at: UnixSeconds,
    report: ImportReport,
    /// Database keys that are noted as in use; `None` stands for clear text.
    noted: HashSet<Option<String>>,
    /// Number of devices that the import has changed.
    changes: i64,
}

impl<'a> Import<'a> {
    fn new(job: &'a ImportJob<'a>, session: &'a Blocking, at: UnixSeconds) -> Self {
        Self { job, session, at, report: ImportReport::default(), noted: HashSet::new(), changes: 0 }
    }

    /// Writes the rows that change the table, the record of the import and its audit entry.
    fn write(mut self, checked: &Checked) -> Result<ImportReport, Unwritten> {
        self.report.unchanged = checked.report.unchanged;
        if let Some(id) = self.job.id {
            self.session.run(async |session| note_number(session, id).await)?;
        }
        let mut some: Vec<(u64, ImportRow)> = Vec::with_capacity(AT_ONCE);
        checked.each_in_order(|row| {
            some.extend(row);
            if some.len() < AT_ONCE {
                return Ok(());
            }
            self.write_some(&mut some)?;
            let done = self.report.added + self.report.changed;
            (self.job.progress)(ImportStage::Writing, done, checked.changes());
            Ok::<_, Unwritten>(())
        })?;
        self.write_some(&mut some)?;
        // Each late row needs what an earlier one gives up, so they are written one by one.
        checked.each_late(|at, row| self.write_some(&mut vec![(at, row)]))?;
        (self.job.progress)(ImportStage::Writing, checked.changes(), checked.changes());
        let report = self.report;
        let entry = checked.entry(self.job, report, self.at);
        self.session.run(async |session| {
            audit::append(session, &entry).await?;
            if let Some(id) = self.job.id {
                record(session, id, self.job, report, self.at).await?;
            }
            Ok(())
        })?;
        Ok(report)
    }

    /// Writes some rows, none of which depends on another one. Most of them add a device.
    fn write_some(&mut self, rows: &mut Vec<(u64, ImportRow)>) -> Result<(), Unwritten> {
        if rows.is_empty() {
            return Ok(());
        }
        let session = self.session;
        let added = session.run(async |session| self.add(session, rows).await)?;
        for (at, row) in rows.drain(..) {
            if added.contains(&row.device) {
                self.report.count(Merged::Added);
                continue;
            }
            // The rules of a row's key are checked here for a known device, and before for a new one.
            let merged = session.run(async |session| match self.merge(session, &row).await {
                Ok(merged) => Ok(Ok(merged)),
                Err(Unmerged::Conflict(conflict)) => Ok(Err(conflict)),
                Err(Unmerged::Failed(failure)) => Err(failure),
            })?;
            self.report.count(merged.map_err(|conflict| Unwritten::Rejected(at, conflict))?);
        }
        Ok(())
    }

    /// Adds those devices that are not in the table, with their keys, and returns them.
    async fn add(
        &mut self,
        session: &Session,
        rows: &[(u64, ImportRow)],
    ) -> Result<HashSet<DeviceId>, Failure> {
        const DEVICES: &str = "INSERT INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, \
                               IotId, importId, target, name, spelledMac) \
                               SELECT i.deviceId, i.enrollment, i.productKey, i.deviceName, i.deviceSecret, i.IotId, $7, \
                               i.target, i.name, i.spelledMac FROM unnest($1, $2, $3, $4, $5, $6, $8, $9, $10) \
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
                    self.job.id.map(|id| i64::from(id.0)),
                    optional(|columns| columns.target),
                    names,
                    spelled
                ],
            )
            .await?;
        let added: HashSet<DeviceId> = added.iter().map(|row| read::id(row, 0)).collect::<Result<_, _>>()?;
        let new: Vec<&ImportRow> =
            rows.iter().map(|(_, row)| row).filter(|row| added.contains(&row.device)).collect();
        for secret in new.iter().filter_map(|row| row.device_secret.as_ref()) {
            self.note(session, secret).await?;
        }
        let (identities, psks): (Vec<&str>, Vec<&str>) = new
            .iter()
            .filter_map(|row| row.key.as_ref())
            .map(|(id, psk)| (id.as_str(), psk.expose()))
            .unzip();
        if !identities.is_empty() {
            let keyed = || new.iter().filter(|row| row.key.is_some());
            let devices: Vec<&str> = keyed().map(|row| row.device.as_str()).collect();
            let next: Vec<Option<&str>> =
                keyed().map(|row| row.next_key.as_ref().map(Secret::expose)).collect();
            session.execute(KEYS, values![identities, devices, psks, next, self.at]).await?;
            for row in keyed() {
                self.note_keys(session, row).await?;
            }
        }
        Ok(added)
    }

    /// Merges a row into a device that is in the table.
    async fn merge(&mut self, session: &Session, row: &ImportRow) -> Result<Merged, Unmerged> {
        let absent =
            || Failure::unexpected(format!("device {} was deleted meanwhile; try again", row.device));
        let stored = read::locked(session, &row.device).await?.ok_or_else(absent)?;
        let (device_changed, lost_key) = self.update(session, &stored, row).await?;
        let key_change = self.merge_key(session, row).await?.or_lost(lost_key);
        if device_changed || key_change != KeyChange::None {
            self.note_before(session, &stored, key_change).await?;
        }
        Ok(Merged::of(stored.enrollment != row.enrollment, device_changed, key_change))
    }

    /// Merges a row into a device that is in the table. Returns whether the device has changed, and
    /// whether it has lost its key.
    async fn update(
        &mut self,
        session: &Session,
        stored: &DeviceRow,
        row: &ImportRow,
    ) -> Result<(bool, bool), Unmerged> {
        const UPDATE: &str = "UPDATE device_table SET enrollment = $2, productKey = $3, deviceName = $4, \
                              deviceSecret = $5, IotId = $6, refusal = NULL, target = $7, name = $8 \
                              WHERE deviceId = $1";
        const DELETE_KEY: &str = "DELETE FROM device_key WHERE deviceId = $1";
        let same_secret =
            merge::has_same_secret(stored, row, self.job.same_secret).map_err(Failure::Store)?;
        let Some(Change { columns, drops_key }) = merge::known_device(stored, row, same_secret)? else {
            return Ok((false, false));
        };
        let Columns { enrollment, product_key, device_name, device_secret, iot_id, target } = columns;
        let (device, name) = (&row.device, merge::name_of(&row.device, &columns));
        merge::unique_name(read::holder_of_name(session, device, product_key, &name).await?, &name)?;
        if let Some(iot_id) = iot_id {
            merge::unique_iot_id(read::holder_of_iot_id(session, device, iot_id).await?)?;
        }
        if let Some(secret) = device_secret {
            self.note(session, secret).await?;
        }
        let (id, secret) = (device.as_str(), device_secret.map(Secret::expose));
        session
            .execute(UPDATE, values![id, enrollment, product_key, device_name, secret, iot_id, target, name])
            .await?;
        Ok((true, drops_key && session.execute(DELETE_KEY, values![id]).await? > 0))
    }

    /// Sets the device's keys, and returns how they have changed.
    async fn merge_key(&mut self, session: &Session, row: &ImportRow) -> Result<KeyChange, Unmerged> {
        const PUT: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince) \
                           VALUES ($1, $2, $3, $4, $5) ON CONFLICT (deviceId) DO UPDATE SET \
                           pskIdentity = excluded.pskIdentity, psk = excluded.psk, pskNext = excluded.pskNext, \
                           nextSince = excluded.nextSince, pskUsed = NULL, pskNextUsed = NULL";
        let Some((identity, psk)) = &row.key else {
            let has_key = row.individual && keys_of(session, &row.device).await?.is_some();
            merge::without_key(row, has_key)?;
            return Ok(KeyChange::None);
        };
        let stored = match owner_of(session, identity).await? {
            Some((owner, stored)) => {
                merge::identity_of(&owner, row)?;
                Some(stored)
            }
            None => keys_of(session, &row.device).await?,
        };
        let change =
            merge::key_change(stored.as_ref(), row, self.job.same_secret).map_err(Failure::Store)??;
        if change != KeyChange::None {
            let next = row.next_key.as_ref().map(Secret::expose);
            let since = next.map(|_| self.at);
            self.note_keys(session, row).await?;
            session.execute(PUT, values![identity, row.device.as_str(), psk.expose(), next, since]).await?;
        }
        Ok(change)
    }

    /// Notes a row's values before the import, and that the row now comes from this import. For an
    /// import without a number, which cannot be undone, only notes that the row has changed.
    async fn note_before(
        &mut self,
        session: &Session,
        before: &DeviceRow,
        key_change: KeyChange,
    ) -> Result<(), Failure> {
        const BEFORE: &str = "INSERT INTO import_before (importId, deviceId, number, former, enrollment, productKey, \
                              deviceName, IotId, refusal, hadSecret, keyChange, addedNext, target, name) \
                              SELECT $1, deviceId, $3, importId, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 \
                              FROM device_table WHERE deviceId = $2";
        const LABEL: &str =
            "UPDATE device_table SET importId = coalesce($2, -abs(importId)) WHERE deviceId = $1";
        let (id, device) = (self.job.id.map(|id| i64::from(id.0)), before.id.as_str());
        if let Some(id) = id {
            let added_next = key_change == KeyChange::NextAdded;
            let key_change = match key_change {
                KeyChange::None | KeyChange::NextAdded => None,
                KeyChange::Added => Some("added"),
                KeyChange::Lost => Some("lost"),
            };
            self.changes += 1;
            session
                .execute(
                    BEFORE,
                    values![
                        id,
                        device,
                        self.changes,
                        before.enrollment,
                        before.product_key,
                        before.device_name,
                        before.iot_id,
                        before.refusal,
                        before.certificate.is_some(),
                        key_change,
                        added_next,
                        before.target,
                        before.name()
                    ],
                )
                .await?;
        }
        session.execute(LABEL, values![device, id]).await.map(drop)
    }

    /// Notes the database keys under which the written keys of a device are sealed.
    async fn note_keys(&mut self, session: &Session, row: &ImportRow) -> Result<(), Failure> {
        for stored in row.key.iter().map(|(_, psk)| psk).chain(&row.next_key) {
            self.note(session, stored).await?;
        }
        Ok(())
    }

    /// Notes the database key under which a written secret is sealed.
    async fn note(&mut self, session: &Session, stored: &Secret) -> Result<(), Failure> {
        if self.noted.insert(seal::key_of(stored.expose()).map(str::to_owned)) {
            secrets::note(session, stored.expose()).await?;
        }
        Ok(())
    }
}

/// Notes the number of an import. Fails if another import has taken it since it was chosen.
async fn note_number(session: &Session, id: ImportId) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO import_number (importId) VALUES ($1) ON CONFLICT (importId) DO NOTHING";
    if session.execute(SQL, values![i64::from(id.0)]).await? == 0 {
        let reason = format!("another import has the number {id}, so nothing was imported; try again");
        return Err(StoreError::Conflict(reason).into());
    }
    Ok(())
}

/// Writes the record of an import. Deletes the records of imports that are too old to be undone, and
/// the former values of their rows.
async fn record(
    session: &Session,
    id: ImportId,
    job: &ImportJob<'_>,
    report: ImportReport,
    now: UnixSeconds,
) -> Result<(), Failure> {
    const RECORD: &str = "INSERT INTO import (number, importId, at, who, file, added, changed) \
                          SELECT coalesce(max(number), 0) + 1, $1, $2, $3, $4, $5, $6 FROM import RETURNING number";
    const FORGET: &str = "DELETE FROM import WHERE at < $1 OR number <= $2";
    const FORGET_ROWS: &str = "DELETE FROM import_before b \
                               WHERE NOT EXISTS (SELECT 1 FROM import i WHERE i.importId = b.importId)";
    let (added, changed) = (report.added.cast_signed(), report.changed.cast_signed());
    let last = number(
        &session.one(RECORD, values![i64::from(id.0), now, job.by.name, job.file, added, changed]).await?,
        0,
    )?;
    let beyond = last.cast_signed() - i64::try_from(REMEMBERED).unwrap_or(i64::MAX);
    if session.execute(FORGET, values![now.saturating_sub(UNDOABLE), beyond]).await? > 0 {
        session.execute(FORGET_ROWS, &[]).await?;
    }
    Ok(())
}
