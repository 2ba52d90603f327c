//! Checks the rows of an import against the table and against one another before anything is
//! written. The check takes no lock, so the table may change before the rows are written; a store
//! therefore applies the rules of [`merge`] again when it writes. The rules are the same for every
//! store.

use super::{
    DeviceRow, ImportError, ImportJob, ImportReport, ImportRow, ImportStage, Reject, Rejection, Rows,
    StoreError, UnixSeconds,
    audit::{AuditEntry, AuditEvent},
    merge::{self, Columns, Merged, Unmerged},
    roll::DeviceKeys,
    staging::{Claim, Staging},
    undo::KeyChange,
};
use crate::{
    device::{DeviceId, Secret},
    seal::Place,
};

/// Number of rows after which the check reports its progress.
const PROGRESS_EVERY: usize = 1000;

/// Number of rows that the check announces to the table at a time.
const TOGETHER: usize = 500;

/// Maximum number of enrollments that an audit entry names.
const NAMED: usize = 20;

/// View of the table for the check of an import.
pub trait Standing {
    /// Announces the rows that are checked next, so that a store behind a network can read what it has
    /// about all of them at once.
    fn expect(&self, _rows: &[(u64, ImportRow)]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the row of a device. The device secret is as it is stored, sealed or in clear text.
    fn device(&self, id: &DeviceId) -> Result<Option<DeviceRow>, StoreError>;

    /// Returns the stored keys of a device.
    fn keys(&self, id: &DeviceId) -> Result<Option<DeviceKeys>, StoreError>;

    /// Returns the device to which a PSK identity belongs, and its stored keys.
    fn owner(&self, identity: &str) -> Result<Option<(String, DeviceKeys)>, StoreError>;

    /// Returns a device other than `device` that has this name in this product.
    fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Result<Option<DeviceId>, StoreError>;

    /// Returns a device other than `device` that has this `IotId`.
    fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Result<Option<DeviceId>, StoreError>;
}

/// Rows that passed the check.
pub struct Checked {
    staging: Staging,
    writes: Marks,
    /// Expected result of the import.
    pub report: ImportReport,
}

/// A set of row numbers, one bit for each row.
#[derive(Default)]
struct Marks(Vec<u64>);

impl Marks {
    fn set(&mut self, number: usize) {
        let (word, bit) = (number / 64, number % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

impl Checked {
    /// Calls `each` with every row that changes the table: first those that are not late, and then
    /// the late ones. For every other row, calls `each` with `None`, so that the caller can look at
    /// the clock.
    pub fn each_change<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(Option<(u64, ImportRow)>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_in_order(&mut each)?;
        self.each_late(|at, row| each(Some((at, row))))
    }

    /// Calls `each` with every row that changes the table and is not late, in order of device ID.
    /// None of these rows depends on another one. For every other row, calls `each` with `None`.
    pub fn each_in_order<E: From<StoreError>>(
        &self,
        each: impl FnMut(Option<(u64, ImportRow)>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.staging.each_wanted(|number| self.writes.has(number), each)
    }

    /// Calls `each` with every late row, in the order of the file. Each of them needs a value that an
    /// earlier row of the file gives up.
    pub fn each_late<E: From<StoreError>>(
        &self,
        each: impl FnMut(u64, ImportRow) -> Result<(), E>,
    ) -> Result<(), E> {
        self.staging.each_late(each)
    }

    /// Returns the audit entry about the import, which has this result and was made at this time. The
    /// entry names the enrollments of the imported rows.
    pub(super) fn entry(&self, job: &ImportJob<'_>, report: ImportReport, at: UnixSeconds) -> AuditEntry {
        let ImportReport { added, changed, unchanged, .. } = report;
        let mut detail = format!("{}{unchanged} unchanged", counts(job.file, added, changed));
        let enrollments = self.staging.enrollments();
        let count = enrollments.len();
        let mut named = enrollments.into_iter().take(NAMED);
        let enrollment = if count == 1 { named.next().map(str::to_owned) } else { None };
        if count > 1 {
            detail.push_str(", in ");
            detail.push_str(&named.collect::<Vec<_>>().join(", "));
            if count > NAMED {
                detail.push_str(&format!(" and {} more", count - NAMED));
            }
        }
        AuditEntry { enrollment, detail: Some(detail), ..job.by.entry(AuditEvent::Imported, at) }
    }

    /// Returns the number of rows that change the table.
    pub fn changes(&self) -> u64 {
        self.report.added + self.report.changed
    }
}

/// Returns the beginning of an import's audit entry. By this text, the entry in the log is matched to
/// the record of the import.
pub(super) fn counts(file: &str, added: u64, changed: u64) -> String {
    format!("{file}: {added} devices added, {changed} changed, ")
}

/// Rows of an import that were read and are not checked yet.
pub struct Staged {
    staging: Staging,
    unreadable: u64,
}

impl Staged {
    /// Reads all rows. Passes each unreadable row to `reject` before the next row is read.
    pub fn read(rows: Rows<'_>, reject: Reject<'_>) -> Result<Self, StoreError> {
        let (staging, unreadable) = Staging::read(rows, reject)?;
        Ok(Self { staging, unreadable })
    }
}

/// Checks all rows of an import. Passes every rejected row to `reject`. Fails if a row is rejected
/// for any reason except that it repeats an earlier row.
pub fn check(
    job: &ImportJob<'_>,
    Staged { staging, unreadable }: Staged,
    table: &impl Standing,
    reject: Reject<'_>,
) -> Result<Checked, ImportError> {
    let (mut writes, mut report) = (Marks::default(), ImportReport::default());
    let (mut number, mut first): (usize, Option<(u64, ImportRow)>) = (0, None);
    let check = Check { job, staging: &staging, table };
    let mut one = |at: u64, row: ImportRow| {
        number += 1;
        if number.is_multiple_of(PROGRESS_EVERY) {
            (job.progress)(ImportStage::Checking, number as u64, staging.rows);
        }
        if let Some((first, same)) = first.as_ref().filter(|(_, first)| first.device == row.device) {
            let first = *first;
            let is_same = is_repeated(same, &row, job)?;
            let rejection = match is_same {
                true => {
                    let product_key = row.product_key.unwrap_or(row.enrollment_product);
                    Rejection::Repeated { enrollment: row.enrollment, product_key }
                }
                false => Rejection::Differs { device: row.device, first },
            };
            return staging.reject(at, &rejection);
        }
        match check.row(at, &row) {
            Ok((merged, is_late)) => {
                report.count(merged);
                if merged != Merged::Unchanged {
                    if is_late { staging.is_late(at, &row.device)? } else { writes.set(number - 1) }
                }
            }
            Err(Unmerged::Conflict(conflict)) => staging.reject(at, &Rejection::Conflict(conflict))?,
            Err(Unmerged::Failed(error)) => return Err(error),
        }
        first = Some((at, row));
        Ok(())
    };
    let mut some = Vec::with_capacity(TOGETHER);
    let mut together = |some: &mut Vec<(u64, ImportRow)>| {
        table.expect(some)?;
        some.drain(..).try_for_each(|(at, row)| one(at, row))
    };
    staging.each(|at, row| {
        some.push((at, row));
        if some.len() == TOGETHER { together(&mut some) } else { Ok(()) }
    })?;
    together(&mut some)?;
    staging.clashes(|clash| {
        let (first, device) = clash.first.clone();
        let conflict = match clash.claim() {
            Claim::Name { name, .. } => merge::unique_name(Some(device), name),
            Claim::IotId(_) => merge::unique_iot_id(Some(device)),
            Claim::Identity(_) => return staging.reject(clash.at, &Rejection::SameIdentity { first }),
        };
        conflict.err().map_or(Ok(()), |conflict| staging.reject(clash.at, &Rejection::Conflict(conflict)))
    })?;
    match unreadable + staging.rejections(reject)? {
        0 => Ok(Checked { staging, writes, report }),
        rejected => Err(ImportError::Rejected(rejected)),
    }
}

/// Returns whether two rows of one device have the same values.
fn is_repeated(first: &ImportRow, row: &ImportRow, job: &ImportJob<'_>) -> Result<bool, StoreError> {
    let device = row.device.as_str();
    let are_same = |place, first: Option<&Secret>, second: Option<&Secret>| match (first, second) {
        (Some(first), Some(second)) => (job.same_secret)(place, first, second),
        (first, second) => Ok(first.is_none() && second.is_none()),
    };
    let values = |row: &ImportRow| {
        let identity = row.key.as_ref().map(|(identity, _)| identity.clone());
        let ImportRow { enrollment, product_key, device_name, iot_id, target, .. } = row.clone();
        (enrollment, product_key, device_name, iot_id, target, identity)
    };
    if values(first) != values(row) {
        return Ok(false);
    }
    let identity = row.key.as_ref().map_or("", |(identity, _)| identity);
    let psk = |row: &ImportRow| row.key.as_ref().map(|(_, psk)| psk.clone());
    let secrets = (first.device_secret.as_ref(), row.device_secret.as_ref());
    let place = Place::Psk { device, identity };
    Ok(are_same(Place::DeviceSecret(device), secrets.0, secrets.1)?
        && are_same(place, psk(first).as_ref(), psk(row).as_ref())?
        && are_same(place, first.next_key.as_ref(), row.next_key.as_ref())?)
}

/// The check of single rows.
struct Check<'a, T> {
    job: &'a ImportJob<'a>,
    staging: &'a Staging,
    table: &'a T,
}

impl<T: Standing> Check<'_, T> {
    /// Returns how a row changes the table, and whether the row needs a value that an earlier row
    /// of the file gives up.
    fn row(&self, at: u64, row: &ImportRow) -> Result<(Merged, bool), Unmerged<StoreError>> {
        let stored = self.table.device(&row.device).map_err(Unmerged::Failed)?;
        let mut is_late = false;
        let mut drops_key = false;
        let columns = match &stored {
            None => Some(merge::new_device(row)),
            Some(stored) => {
                let same_secret = merge::has_same_secret(stored, row, self.job.same_secret);
                let same_secret = same_secret.map_err(Unmerged::Failed)?;
                merge::known_device(stored, row, same_secret)?.map(|change| {
                    drops_key = change.drops_key;
                    change.columns
                })
            }
        };
        if let Some(columns) = &columns {
            is_late |= self.values(at, row, columns)?;
        }
        let (key_change, needs_key) = self.key(at, row, stored.is_some(), drops_key)?;
        is_late |= needs_key;
        let merged = match &stored {
            None => Merged::Added,
            Some(stored) => Merged::of(stored.enrollment != row.enrollment, columns.is_some(), key_change),
        };
        Ok((merged, is_late))
    }

    /// Checks that the device name and the `IotId` of a row belong to no other device, or only to
    /// one that gives them up in an earlier row of the file. Returns whether the row needs such an
    /// earlier row.
    fn values(&self, at: u64, row: &ImportRow, columns: &Columns<'_>) -> Result<bool, Unmerged<StoreError>> {
        let name = merge::name_of(&row.device, columns);
        let Columns { product_key, iot_id, .. } = *columns;
        if self.staging.has_claims {
            let name = Claim::Name { product_key, name: &name };
            for claim in [Some(name), iot_id.map(Claim::IotId)].into_iter().flatten() {
                self.staging.claim(claim, at, &row.device).map_err(Unmerged::Failed)?;
            }
        }
        let mut is_late = false;
        let named = self.table.holder_of_name(&row.device, product_key, &name).map_err(Unmerged::Failed)?;
        if let Some(holder) = named {
            let gives_up = |after: &Columns<'_>| {
                after.product_key != product_key || merge::name_of(&holder, after) != name
            };
            match self.is_given_up(at, &holder, gives_up)? {
                true => is_late = true,
                false => merge::unique_name(Some(holder), &name)?,
            }
        }
        if let Some(iot_id) = iot_id
            && let Some(holder) =
                self.table.holder_of_iot_id(&row.device, iot_id).map_err(Unmerged::Failed)?
        {
            match self.is_given_up(at, &holder, |after| after.iot_id != Some(iot_id))? {
                true => is_late = true,
                false => merge::unique_iot_id(Some(holder))?,
            }
        }
        Ok(is_late)
    }

    /// Returns whether a row before row `at` changes the device `holder` in such a way that
    /// `gives_up` returns true for the device's new columns.
    fn is_given_up(
        &self,
        at: u64,
        holder: &DeviceId,
        gives_up: impl Fn(&Columns<'_>) -> bool,
    ) -> Result<bool, Unmerged<StoreError>> {
        let Some((before, row)) = self.staging.find(holder).map_err(Unmerged::Failed)? else {
            return Ok(false);
        };
        let Some(stored) = self.table.device(holder).map_err(Unmerged::Failed)? else { return Ok(false) };
        let same_secret = merge::has_same_secret(&stored, &row, self.job.same_secret);
        let change = merge::known_device(&stored, &row, same_secret.map_err(Unmerged::Failed)?);
        Ok(before < at && matches!(change, Ok(Some(change)) if gives_up(&change.columns)))
    }

    /// Checks the key of a row. Returns how the device's key changes, and whether the row needs an
    /// identity that an earlier row of the file gives up.
    fn key(
        &self,
        at: u64,
        row: &ImportRow,
        is_known: bool,
        drops_key: bool,
    ) -> Result<(KeyChange, bool), Unmerged<StoreError>> {
        let keys = || match is_known {
            true => self.table.keys(&row.device).map_err(Unmerged::Failed),
            false => Ok(None),
        };
        let Some((wanted, _)) = &row.key else {
            let has_key = (row.individual || drops_key) && keys()?.is_some();
            merge::without_key(row, has_key)?;
            let is_lost = drops_key && has_key;
            return Ok((if is_lost { KeyChange::Lost } else { KeyChange::None }, false));
        };
        self.staging.claim(Claim::Identity(wanted), at, &row.device).map_err(Unmerged::Failed)?;
        let mut is_late = false;
        let stored = match self.table.owner(wanted).map_err(Unmerged::Failed)? {
            None => keys()?,
            Some((owner, stored)) => match merge::identity_of(&owner, row) {
                Ok(()) => Some(stored),
                Err(_) if self.gives_identity_up(at, &owner, wanted)? => {
                    is_late = true;
                    keys()?
                }
                Err(conflict) => return Err(conflict.into()),
            },
        };
        let change = merge::key_change(stored.as_ref(), row, self.job.same_secret);
        Ok((change.map_err(Unmerged::Failed)??, is_late))
    }

    /// Returns whether the device `owner` gives up `identity` in a row before row `at`, because that
    /// row contains another identity or removes the device's key.
    fn gives_identity_up(&self, at: u64, owner: &str, identity: &str) -> Result<bool, Unmerged<StoreError>> {
        let Ok(owner) = DeviceId::parse_sn(owner) else { return Ok(false) };
        let found = self.staging.find(&owner).map_err(Unmerged::Failed)?;
        let Some((_, row)) = found.filter(|(before, _)| *before < at) else { return Ok(false) };
        let stored = self.table.device(&owner).map_err(Unmerged::Failed)?;
        let moves = stored.is_some_and(|stored| stored.enrollment != row.enrollment);
        Ok(match &row.key {
            Some((other, _)) => other != identity,
            None => moves && !row.individual,
        })
    }
}
