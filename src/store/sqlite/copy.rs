//! Reads and writes the content of a database as records ([`copy`](crate::store::copy)). A source is locked, so that no
//! other process of certdist writes to it, and is read as it is. A target has the version 0 until the
//! copy is complete, so that no version of certdist opens it.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection, Row, Transaction, TransactionBehavior, params_from_iter,
    types::{ToSql, ToSqlOutput, Type, ValueRef},
};

use super::{
    Sqlite, audit,
    connection::{self, Found},
    files::identity,
    lock::Lock,
    look, secrets, store_error, unfinished,
};
use crate::store::{
    Condition, StoreError,
    audit::{AuditEntry, Chain, Link},
    copy::{Contents, EachRecord, Part, Readable, Record, Source, Target, Value},
};

/// Page cache of a target, in KiB, so that the upper levels of each index stay in memory.
const CACHE: i64 = 65_536;

/// Number of entries in a block of the audit log of a target.
const BLOCK: usize = 256;

/// Records of repeats, one for all equal requests of a device on one day.
const REPEATS: &str = "SELECT event, deviceId, enrollment, who, detail, total, begun, latest, latestAddress, \
     begunAddress FROM (SELECT number, event, deviceId, enrollment, who, detail, sum(count) OVER same AS total, \
     min(first) OVER same AS begun, max(last) OVER same AS latest, \
     first_value(address) OVER (PARTITION BY deviceId, last / 86400, event, enrollment, who, detail \
         ORDER BY last DESC, number DESC) AS latestAddress, \
     first_value(coalesce(firstAddress, address)) OVER (PARTITION BY deviceId, last / 86400, event, enrollment, who, \
         detail ORDER BY first, number) AS begunAddress, \
     row_number() OVER (PARTITION BY deviceId, last / 86400, event, enrollment, who, detail ORDER BY number) AS nth \
     FROM audit_repeat WINDOW same AS (PARTITION BY deviceId, last / 86400, event, enrollment, who, detail)) \
     WHERE nth = 1 ORDER BY number";

/// A database that is copied. Until it is dropped, no other process of certdist can write to it.
pub struct CopySource {
    path: PathBuf,
    _lock: Lock,
}

impl Sqlite {
    /// Locks a database of the current version, to copy it. First moves the audit entries of killed
    /// processes into the log, and takes back an import that was cut off. Fails if another process has
    /// the database open.
    pub fn copy_source(
        path: &Path,
        accepts: impl Fn(&[String]) -> Result<(), String>,
    ) -> Result<CopySource, StoreError> {
        look::is_there(path)?;
        let path = &*super::absolute(path)?;
        // The version is checked before the database is opened, because that would upgrade it.
        look::at(path, |_| Ok(()))?;
        let advice = "stop the server first, for example with `systemctl stop certdist`";
        // The lock is also taken before the database is opened, so that the copy does not disturb a
        // running server.
        drop(Lock::exclusive(path, advice)?);
        let store = Self::open_if(path, accepts)?;
        unfinished::recover_now(path, store.bulk_wait)?;
        drop(store);
        let lock = Lock::exclusive(path, advice)?;
        let is_unfinished = look::at(path, |source| Ok(unfinished::mark(source)?.is_some()))?;
        if is_unfinished || look::check(path, |source| audit::has_waiting(source, path))? {
            return Err(look::unusable(
                path,
                "an import was cut off, or audit entries of a killed process are not in the log yet; start and stop \
                 `certdist serve` on it once",
            ));
        }
        Ok(CopySource { path: path.to_owned(), _lock: lock })
    }

    /// Opens a file to copy a database into it. The file must be empty, or not exist, or have a part of a
    /// copy. Changes nothing yet.
    pub fn copy_target(path: &Path) -> Result<CopyTarget, StoreError> {
        CopyTarget::open(path)
    }

    /// Returns whether both paths lead to one file.
    pub fn is_same_file(one: &Path, other: &Path) -> bool {
        identity(one).is_ok_and(|one| identity(other).is_ok_and(|other| one == other))
    }
}

/// Runs a query, and names the file in the error.
fn failing<T>(path: &Path, result: rusqlite::Result<T>) -> Result<T, StoreError> {
    result.map_err(|error| store_error(path, error))
}

/// Returns the statement that reads the records of a part.
fn statement(part: Part) -> String {
    if part == Part::Repeats {
        return REPEATS.into();
    }
    let columns: Vec<&str> = part
        .columns()
        .iter()
        .map(|column| match (part, column.name) {
            // Entries of earlier versions do not name the enrollment.
            (Part::Claims, "enrollment") => {
                "coalesce(t.enrollment, (SELECT d.enrollment FROM main.device_table d WHERE d.deviceId = t.deviceId))"
            }
            (_, name) => name,
        })
        .collect();
    let order = match part {
        // An import changes most rows in order of their IDs, and then the late ones in the order of
        // `late`.
        Part::Before => "importId, late IS NOT NULL, late, deviceId",
        _ => part.order(),
    };
    format!("SELECT {} FROM main.{} t ORDER BY {order}", columns.join(", "), part.table())
}

fn value(row: &Row<'_>, index: usize) -> rusqlite::Result<Value> {
    Ok(match row.get_ref(index)? {
        ValueRef::Null => Value::None,
        ValueRef::Integer(number) => Value::Number(number),
        text @ ValueRef::Text(_) => Value::text(text.as_str()?),
        ValueRef::Real(_) | ValueRef::Blob(_) => {
            return Err(rusqlite::Error::InvalidColumnType(index, "a value".into(), Type::Blob));
        }
    })
}

/// Reads the records of a part over a connection.
fn read(
    connection: &Connection,
    path: &Path,
    part: Part,
    skip: u64,
    each: EachRecord<'_>,
) -> Result<(), StoreError> {
    if part == Part::Entries {
        return audit::read_lines(connection, path, skip, &mut |seq, line| {
            each(vec![Value::Number(seq.cast_signed()), Value::text(line)])
        });
    }
    let sql = format!("{} LIMIT -1 OFFSET {skip}", statement(part));
    let mut statement = failing(path, connection.prepare(&sql))?;
    let mut rows = failing(path, statement.query(()))?;
    let columns = part.columns().len();
    while let Some(row) = failing(path, rows.next())? {
        each(failing(path, (0..columns).map(|index| value(row, index)).collect())?)?;
    }
    Ok(())
}

fn count(connection: &Connection, part: Part) -> rusqlite::Result<u64> {
    let sql = match part {
        Part::Entries => "SELECT headSeq - anchorSeq FROM audit_chain".to_owned(),
        Part::Repeats => "SELECT count(*) FROM (SELECT 1 FROM audit_repeat \
                          GROUP BY deviceId, last / 86400, event, enrollment, who, detail)"
            .to_owned(),
        _ => format!("SELECT count(*) FROM main.{}", part.table()),
    };
    connection.query_row(&sql, (), |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

fn contents(connection: &Connection) -> rusqlite::Result<Contents> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq FROM audit_chain";
    let (anchor, last) = connection.query_row(CHAIN, (), |row| {
        let [pruned, last] = [row.get::<_, i64>(0)?, row.get(2)?].map(i64::cast_unsigned);
        Ok(((pruned, row.get(1)?), last))
    })?;
    let records = Part::ALL.iter().map(|part| count(connection, *part)).collect::<rusqlite::Result<_>>()?;
    Ok(Contents { anchor, last, records })
}

impl Readable for CopySource {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        look::check(&self.path, |connection| read(connection, &self.path, part, skip, each))
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        look::at(&self.path, |connection| audit::verify(connection, |_, _| ()))
    }
}

impl Source for CopySource {
    fn contents(&self) -> Result<Contents, StoreError> {
        look::at(&self.path, contents)
    }

    fn newest(&self) -> Result<Contents, StoreError> {
        self.contents()
    }

    fn shown(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }
}

/// A database that receives a copy, locked against other processes.
pub struct CopyTarget {
    path: PathBuf,
    /// Set when the copy has begun. Until then, the file may not exist.
    connection: OnceCell<Connection>,
    _lock: Lock,
}

impl CopyTarget {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let path = &*super::absolute(path)?;
        match connection::condition(path) {
            Ok(Condition::Missing) => {}
            Ok(Condition::Current | Condition::Older(_)) => return Err(not_empty(path)),
            Err(error) => {
                if !matches!(look::found(path), Ok(Found::PartOfCopy)) {
                    return Err(error);
                }
            }
        }
        let lock = Lock::exclusive(path, "stop it first")?;
        Ok(Self { path: path.to_owned(), connection: OnceCell::new(), _lock: lock })
    }

    fn connection(&self) -> Result<&Connection, StoreError> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let connection = connection::open_for_copy(&self.path, CACHE)?;
        Ok(self.connection.get_or_init(|| connection))
    }

    fn transaction(&self) -> Result<Transaction<'_>, StoreError> {
        let begun = Transaction::new_unchecked(self.connection()?, TransactionBehavior::Immediate);
        failing(&self.path, begun)
    }

    fn write_in(
        transaction: Transaction<'_>,
        part: Part,
        done: u64,
        records: &[Record],
    ) -> rusqlite::Result<()> {
        if part == Part::Entries {
            for block in records.chunks(BLOCK) {
                let lines: Vec<&str> =
                    block.iter().map(|record| record[1].as_text().unwrap_or_default()).collect();
                audit::put(&transaction, &lines)?;
            }
        } else {
            let mut insert = transaction.prepare(&insert(part))?;
            let mut noted = false;
            for (record, number) in records.iter().zip(done + 1..) {
                let number = Value::Number(number.cast_signed());
                insert.execute(params_from_iter(record.iter().chain([&number])))?;
                if !noted && let Some(secret) = part.secret_of(record) {
                    secrets::note(&transaction, secret)?;
                    noted = true;
                }
            }
        }
        transaction.commit()
    }
}

/// Creates the tables for a copy, in an open transaction, with a version that no program accepts.
/// Returns false if the tables are there already.
fn create(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    if transaction.table_exists(None, "certdist_copy")? {
        return Ok(false);
    }
    transaction.execute_batch(connection::SCHEMA)?;
    transaction
        .execute_batch("CREATE TABLE certdist_copy (id TEXT NOT NULL, source TEXT NOT NULL) STRICT")?;
    transaction.pragma_update(None, "user_version", 0)?;
    Ok(true)
}

fn not_empty(path: &Path) -> StoreError {
    look::unusable(path, "there is a database already; copy to a file that does not exist yet")
}

/// Returns the statement that adds a record. Its last value is the number of the record in the part.
fn insert(part: Part) -> String {
    let mut names: Vec<&str> = part.columns().iter().map(|column| column.name).collect();
    let mut values: Vec<String> = (1..=names.len()).map(|index| format!("?{index}")).collect();
    let number = format!("?{}", names.len() + 1);
    match part {
        Part::Before => {
            names.push("late");
            values.push(number);
        }
        Part::Repeats => {
            // NULL means that the first request came from the same address as the last one.
            let [address, first] = [9, 10];
            values[first - 1] = format!("nullif(?{first}, ?{address})");
            names.push("number");
            values.push(number);
        }
        // SQLite requires that the statement uses each value that is passed to it.
        _ => {
            return format!(
                "INSERT INTO {} ({}) SELECT {} WHERE {number} > 0",
                part.table(),
                names.join(", "),
                values.join(", ")
            );
        }
    }
    format!("INSERT INTO {} ({}) VALUES ({})", part.table(), names.join(", "), values.join(", "))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::None => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.expose().as_bytes()),
        }))
    }
}

impl Readable for CopyTarget {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        read(self.connection()?, &self.path, part, skip, each)
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        failing(&self.path, audit::verify(self.connection()?, |_, _| ()))
    }
}

impl Target for CopyTarget {
    fn begin(&self, id: &str, source: &str, anchor: (u64, Link)) -> Result<(), StoreError> {
        const BEGUN: &str = "SELECT id, source FROM certdist_copy";
        const NOTE: &str = "INSERT INTO certdist_copy (id, source) VALUES (?1, ?2)";
        const SET_ANCHOR: &str =
            "UPDATE audit_chain SET anchorSeq = ?1, anchorHash = ?2, headSeq = ?1, headHash = ?2";
        let transaction = self.transaction()?;
        if failing(&self.path, create(&transaction))? {
            failing(&self.path, transaction.execute(NOTE, [id, source]))?;
            let (pruned, hash) = anchor;
            failing(&self.path, transaction.execute(SET_ANCHOR, (pruned.cast_signed(), hash)))?;
            return failing(&self.path, transaction.commit());
        }
        let begun = transaction.query_row(BEGUN, (), |row| Ok((row.get(0)?, row.get(1)?)));
        let (begun, from): (String, String) = failing(&self.path, begun)?;
        if begun == id {
            return Ok(());
        }
        Err(look::unusable(
            &self.path,
            &format!(
                "it has a part of another copy, from {from}, or that database has changed since; remove the file and \
                 begin again"
            ),
        ))
    }

    fn count(&self, part: Part) -> Result<u64, StoreError> {
        failing(&self.path, count(self.connection()?, part))
    }

    fn write(&self, part: Part, done: u64, records: &[Record]) -> Result<(), StoreError> {
        failing(&self.path, Self::write_in(self.transaction()?, part, done, records))
    }

    fn complete(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        failing(&self.path, audit::index_all(self.connection()?))?;
        let transaction = self.transaction()?;
        let end = || {
            audit::append(&transaction, entry)?;
            transaction.execute_batch("DROP TABLE certdist_copy")?;
            transaction.pragma_update(None, "user_version", connection::VERSION as i64)
        };
        failing(&self.path, end())?;
        failing(&self.path, transaction.commit())?;
        connection::empty_log(self.connection()?);
        Ok(())
    }
}
