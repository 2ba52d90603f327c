//! Rows of an import in a temporary database, where they wait until they are written to the table.
//! The temporary database puts the rows in order of device ID. An import of any size therefore
//! needs little memory, and writes the table page by page. The temporary database has no name and
//! ends with the process. Secrets in it are sealed under a random database key that never leaves
//! this process.

use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::{Conflict, ImportRow, Reject, Rejection, Rows, StoreError};
use crate::{
    device::{DeviceId, Secret},
    seal::{DatabaseKey, Keyring, Place, SealError, key_of},
};

/// Tables of the temporary database. `row` contains the rows that came in order of device ID.
/// `unsorted` contains all other rows, until [`Staging::sort`] moves them to `row`. `claimed`
/// contains the names, `IotId`s and identities that rows ask for. `late` lists the rows that are
/// written after all others.
const SCHEMA: &str = "
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA cache_size = -16384;
    CREATE TABLE row (device TEXT, at INTEGER, enrollment INTEGER, product TEXT, name TEXT, secret TEXT, iotId TEXT,
                      identity TEXT, psk TEXT, target TEXT, pskNext TEXT, PRIMARY KEY (device, at)) WITHOUT ROWID;
    CREATE TABLE unsorted (device, at, enrollment, product, name, secret, iotId, identity, psk, target, pskNext);
    CREATE TABLE claimed (what TEXT, at INTEGER, device TEXT);
    CREATE TABLE late (at INTEGER PRIMARY KEY, device TEXT);
    CREATE TABLE rejected (at INTEGER PRIMARY KEY, kind INTEGER, column TEXT, reason TEXT, first INTEGER);
    BEGIN;";

/// Columns that [`Staging::row`] reads.
macro_rules! columns {
    () => {
        "device, at, enrollment, product, name, secret, iotId, identity, psk, target, pskNext"
    };
}

/// A value that no two devices may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim<'a> {
    /// Device name in a product.
    Name {
        /// The product.
        product_key: &'a str,
        /// The name.
        name: &'a str,
    },
    /// `IotId`, by which IoT Platform identifies a device.
    IotId(&'a str),
    /// PSK identity.
    Identity(&'a str),
}

/// Two rows that ask for the same value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clash {
    /// Index of the later row.
    pub(super) at: u64,
    /// Index and device of the first row that asks for the value.
    pub(super) first: (u64, DeviceId),
    /// The value, as [`Claim::text`] returns it: a letter for the kind of value, and the value
    /// itself.
    pub(super) what: String,
}

impl Claim<'_> {
    fn text(self) -> String {
        match self {
            // The zero byte marks the end of the product key, which contains none.
            Self::Name { product_key, name } => format!("n{product_key}\0{name}"),
            Self::IotId(iot_id) => format!("i{iot_id}"),
            Self::Identity(identity) => format!("k{identity}"),
        }
    }
}

impl Clash {
    /// Returns the value that both rows ask for.
    pub(super) fn claim(&self) -> Claim<'_> {
        match (self.what.split_at_checked(1), self.what.split_once('\0')) {
            (Some(("n", _)), Some((product, name))) => {
                Claim::Name { product_key: product.get(1..).unwrap_or_default(), name }
            }
            (Some(("i", iot_id)), _) => Claim::IotId(iot_id),
            _ => Claim::Identity(self.what.get(1..).unwrap_or_default()),
        }
    }
}

/// Enrollment of a row: its name, its product, and whether each device has a key of its own. All
/// rows of the enrollment share one entry in [`Staging::groups`].
type Group = (String, String, bool, Option<String>);

/// The rows of an import, and the results of their check. Each row has an index, its position in
/// the file from 0.
pub(super) struct Staging {
    scratch: Connection,
    keys: Keyring,
    groups: Vec<Group>,
    index_of: HashMap<Group, i64>,
    last: Option<DeviceId>,
    /// Number of rows.
    pub(super) rows: u64,
    /// Set if a row contains a device name, an `IotId` or an identity.
    pub(super) has_claims: bool,
}

/// Converts an error of the temporary database. The message of such an error contains no values of
/// rows.
pub(super) fn scratch_error(error: rusqlite::Error) -> StoreError {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "free some space there, or name another folder in SQLITE_TMPDIR",
        _ => "TMPDIR names their folder",
    };
    StoreError::Failed(format!("the rows could not be kept in a temporary file ({error}); {remedy}"))
}

fn unsealed(error: SealError) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Staging {
    /// Reads all rows. Passes each unreadable row to `reject` before the next row is read. Returns
    /// the rows, and the number of unreadable rows.
    pub(super) fn read(rows: Rows<'_>, reject: Reject<'_>) -> Result<(Self, u64), StoreError> {
        let mut staging = Self::create()?;
        let mut unreadable = 0;
        for (at, row) in (0..).zip(rows) {
            match row {
                Ok(row) => staging.add(at, row)?,
                Err(reason) => {
                    unreadable += 1;
                    reject(at, reason.into());
                }
            }
        }
        staging.sort().map_err(scratch_error)?;
        Ok((staging, unreadable))
    }

    fn create() -> Result<Self, StoreError> {
        let scratch = Connection::open("").and_then(|scratch| {
            scratch.execute_batch(SCHEMA)?;
            scratch.set_prepared_statement_cache_capacity(16);
            Ok(scratch)
        });
        let key = DatabaseKey::generate().map_err(unsealed)?;
        let key = DatabaseKey::parse(key.expose()).map_err(StoreError::Failed)?;
        Ok(Self {
            scratch: scratch.map_err(scratch_error)?,
            keys: Keyring::new([key]),
            groups: Vec::new(),
            index_of: HashMap::new(),
            last: None,
            rows: 0,
            has_claims: false,
        })
    }

    fn add(&mut self, at: u64, row: ImportRow) -> Result<(), StoreError> {
        const SORTED: &str = concat!(
            "INSERT INTO row (",
            columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        );
        const UNSORTED: &str = concat!(
            "INSERT INTO unsorted (",
            columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        );
        let is_next = self.last.as_ref().is_none_or(|last| last.as_str() <= row.device.as_str());
        let device = row.device.as_str();
        let seal = |place: Place<'_>, value: &Secret| match key_of(value.expose()) {
            Some(_) => Ok(value.clone()),
            None => self.keys.seal(place, value.expose()).map_err(unsealed),
        };
        let secret = row.device_secret.as_ref().map(|value| seal(Place::DeviceSecret(device), value));
        let keys = row.key.as_ref().map(|(identity, value)| {
            let place = Place::Psk { device, identity };
            let next = row.next_key.as_ref().map(|value| seal(place, value));
            Ok::<_, StoreError>((seal(place, value)?, next.transpose()?))
        });
        let secret = secret.transpose()?;
        let (psk, psk_next) = keys.transpose()?.unzip();
        self.has_claims |= row.device_name.is_some() || row.iot_id.is_some() || row.key.is_some();
        let group = (row.enrollment, row.enrollment_product, row.individual, row.enrollment_target);
        let next = self.groups.len() as i64;
        let enrollment = *self.index_of.entry(group).or_insert_with_key(|group| {
            self.groups.push(group.clone());
            next
        });
        let insert = || {
            self.scratch.prepare_cached(if is_next { SORTED } else { UNSORTED })?.execute(params![
                device,
                at.cast_signed(),
                enrollment,
                row.product_key,
                row.device_name,
                secret.as_ref().map(Secret::expose),
                row.iot_id,
                row.key.as_ref().map(|(identity, _)| identity),
                psk.as_ref().map(Secret::expose),
                row.target,
                psk_next.as_ref().and_then(|next| next.as_ref().map(Secret::expose)),
            ])
        };
        insert().map_err(scratch_error)?;
        self.rows += 1;
        if is_next {
            self.last = Some(row.device);
        }
        Ok(())
    }

    /// Moves the rows of `unsorted` to `row`, which is in order of device ID.
    fn sort(&mut self) -> rusqlite::Result<()> {
        self.index_of.clear();
        self.scratch.execute_batch(concat!(
            "INSERT INTO row (",
            columns!(),
            ") SELECT ",
            columns!(),
            " FROM unsorted ORDER BY device, at; DROP TABLE unsorted;"
        ))
    }

    /// Calls `each` with all rows and their indexes, in order of device ID. Several rows of one
    /// device come in order of their indexes.
    pub(super) fn each<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(u64, ImportRow) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_wanted(|_| true, |row| row.map_or(Ok(()), |(at, row)| each(at, row)))
    }

    /// Calls `each` with the rows whose number `is_wanted`, like [`each`](Self::each). Rows are
    /// numbered from 0 in this order. For each other row, calls `each` with `None`.
    pub(super) fn each_wanted<E: From<StoreError>>(
        &self,
        is_wanted: impl Fn(usize) -> bool,
        mut each: impl FnMut(Option<(u64, ImportRow)>) -> Result<(), E>,
    ) -> Result<(), E> {
        const ALL: &str = concat!("SELECT ", columns!(), " FROM row ORDER BY device, at");
        let failed = |error| E::from(scratch_error(error));
        let mut statement = self.scratch.prepare_cached(ALL).map_err(failed)?;
        let mut rows = statement.query(()).map_err(failed)?;
        let mut number = 0;
        while let Some(row) = rows.next().map_err(failed)? {
            let wanted = if is_wanted(number) { Some(self.row(row)?) } else { None };
            number += 1;
            each(wanted)?;
        }
        Ok(())
    }

    /// Returns the first row of a device, and its index.
    pub(super) fn find(&self, device: &DeviceId) -> Result<Option<(u64, ImportRow)>, StoreError> {
        const ONE: &str =
            concat!("SELECT ", columns!(), " FROM row WHERE device = ?1 ORDER BY device, at LIMIT 1");
        let mut statement = self.scratch.prepare_cached(ONE).map_err(scratch_error)?;
        let mut rows = statement.query([device.as_str()]).map_err(scratch_error)?;
        rows.next().map_err(scratch_error)?.map(|row| self.row(row)).transpose()
    }

    fn row(&self, row: &Row<'_>) -> Result<(u64, ImportRow), StoreError> {
        let text = |column| row.get::<_, Option<String>>(column).map_err(scratch_error);
        let device: String = row.get(0).map_err(scratch_error)?;
        let device = DeviceId::parse_sn(&device).map_err(|error| StoreError::Failed(error.to_string()))?;
        let at: i64 = row.get(1).map_err(scratch_error)?;
        let group: i64 = row.get(2).map_err(scratch_error)?;
        let group = usize::try_from(group).ok().and_then(|group| self.groups.get(group));
        let (enrollment, enrollment_product, individual, enrollment_target) =
            group.cloned().unwrap_or_default();
        let open = |place: Place<'_>, stored: String| {
            let mut value = Secret::new(stored);
            // Only the values that this file has sealed are opened. A value that came sealed stays as it
            // came.
            if key_of(value.expose()) == self.keys.first().map(|key| key.to_string()).as_deref() {
                self.keys.open_in_place(place, &mut value).map_err(unsealed)?;
            }
            Ok::<_, StoreError>(value)
        };
        let device_secret = text(5)?.map(|stored| open(Place::DeviceSecret(device.as_str()), stored));
        let (key, next_key) = match (text(7)?, text(8)?) {
            (Some(identity), Some(stored)) => {
                let place = Place::Psk { device: device.as_str(), identity: &identity };
                let psk = open(place, stored)?;
                let next = text(10)?.map(|stored| open(place, stored)).transpose()?;
                (Some((identity, psk)), next)
            }
            _ => (None, None),
        };
        let row = ImportRow {
            enrollment,
            enrollment_product,
            individual,
            product_key: text(3)?,
            device_name: text(4)?,
            device_secret: device_secret.transpose()?,
            iot_id: text(6)?,
            key,
            next_key,
            target: text(9)?,
            enrollment_target,
            device,
        };
        Ok((at.cast_unsigned(), row))
    }

    /// Returns the names of the enrollments of all rows.
    pub(super) fn enrollments(&self) -> BTreeSet<&str> {
        self.groups.iter().map(|(enrollment, ..)| enrollment.as_str()).collect()
    }

    /// Notes that a row asks for a value.
    pub(super) fn claim(&self, claim: Claim<'_>, at: u64, device: &DeviceId) -> Result<(), StoreError> {
        let insert = || {
            self.scratch.prepare_cached("INSERT INTO claimed VALUES (?1, ?2, ?3)")?.execute(params![
                claim.text(),
                at.cast_signed(),
                device.as_str()
            ])
        };
        insert().map(drop).map_err(scratch_error)
    }

    /// Calls `each` for every row that asks for the same value as an earlier row.
    pub(super) fn clashes(
        &self,
        mut each: impl FnMut(Clash) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        const SQL: &str = "SELECT what, at, device FROM claimed ORDER BY what, at";
        let mut statement = self.scratch.prepare(SQL).map_err(scratch_error)?;
        let mut rows = statement.query(()).map_err(scratch_error)?;
        let mut first: Option<(String, u64, String)> = None;
        while let Some(row) = rows.next().map_err(scratch_error)? {
            let read = || Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned(), row.get(2)?));
            let (what, at, device): (String, u64, String) = read().map_err(scratch_error)?;
            match &first {
                Some((known, known_at, known_device)) if *known == what => {
                    if let Ok(device) = DeviceId::parse_sn(known_device) {
                        each(Clash { at, first: (*known_at, device), what })?;
                    }
                }
                _ => first = Some((what, at, device)),
            }
        }
        Ok(())
    }

    /// Notes that a row is late: it is written after all rows that are not late.
    pub(super) fn is_late(&self, at: u64, device: &DeviceId) -> Result<(), StoreError> {
        let parameters = params![at.cast_signed(), device.as_str()];
        self.scratch
            .execute("INSERT OR IGNORE INTO late VALUES (?1, ?2)", parameters)
            .map(drop)
            .map_err(scratch_error)
    }

    /// Calls `each` with the late rows, in the order of the file.
    pub(super) fn each_late<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(u64, ImportRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = -1;
        let next = |after: i64| {
            self.scratch
                .query_row("SELECT at, device FROM late WHERE at > ?1 ORDER BY at LIMIT 1", [after], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
                })
                .optional()
                .map_err(scratch_error)
        };
        while let Some((at, device)) = next(after)? {
            after = at;
            let device =
                DeviceId::parse_sn(&device).map_err(|error| StoreError::Failed(error.to_string()))?;
            if let Some((at, row)) = self.find(&device)? {
                each(at, row)?;
            }
        }
        Ok(())
    }

    /// Notes that a row is rejected. If the row was rejected before, the first reason stays.
    pub(super) fn reject(&self, at: u64, rejection: &Rejection) -> Result<(), StoreError> {
        let (kind, column, reason, first) = match rejection {
            Rejection::Unreadable => return Ok(()),
            Rejection::Conflict(Conflict { column, reason }) => {
                (0, Some(*column), Some(reason.as_str()), None)
            }
            Rejection::Differs { device, first } => (1, None, Some(device.as_str()), Some(*first)),
            Rejection::SameIdentity { first } => (2, None, None, Some(*first)),
            Rejection::Repeated { enrollment, product_key } => {
                (3, Some(enrollment.as_str()), Some(product_key.as_str()), None)
            }
        };
        let insert = || {
            self.scratch
                .prepare_cached("INSERT OR IGNORE INTO rejected VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![at.cast_signed(), kind, column, reason, first.map(u64::cast_signed)])
        };
        insert().map(drop).map_err(scratch_error)
    }

    /// Passes the noted rejections to `reject`, in the order of the file. Returns the number of
    /// rejected rows, not counting repeated rows.
    pub(super) fn rejections(&self, reject: Reject<'_>) -> Result<u64, StoreError> {
        let mut rejected = 0;
        let mut pass = || {
            let mut statement = self.scratch.prepare("SELECT * FROM rejected ORDER BY at")?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                let first = || row.get::<_, i64>(4).map(i64::cast_unsigned);
                let rejection = match row.get::<_, i64>(1)? {
                    0 => Rejection::Conflict(Conflict {
                        column: Conflict::column_named(&row.get::<_, String>(2)?),
                        reason: row.get(3)?,
                    }),
                    1 => match DeviceId::parse_sn(&row.get::<_, String>(3)?) {
                        Ok(device) => Rejection::Differs { device, first: first()? },
                        Err(_) => continue,
                    },
                    2 => Rejection::SameIdentity { first: first()? },
                    _ => Rejection::Repeated { enrollment: row.get(2)?, product_key: row.get(3)? },
                };
                rejected += u64::from(!matches!(rejection, Rejection::Repeated { .. }));
                reject(row.get::<_, i64>(0)?.cast_unsigned(), rejection);
            }
            rusqlite::Result::Ok(())
        };
        pass().map_err(scratch_error)?;
        Ok(rejected)
    }
}
