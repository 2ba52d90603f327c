//! Reads and writes the content of a database as records ([`copy`](crate::store::copy)). A source is read in one snapshot.
//! The tables of a target have the version 0 until the copy is complete, so that no version of certdist
//! uses them.

use std::{thread, time::Duration};

use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::{
    Access, Postgres,
    address::Address,
    audit, counts,
    engine::{BEGIN_BULK, Blocking, Engine, SNAPSHOT},
    failure::Failure,
    read, schema, secrets,
    session::{Session, Value as Bound, column, number, value, values},
};
use crate::{
    device::DeviceId,
    store::{
        StoreError,
        audit::{AuditEntry, Chain, Link, day},
        copy::{Contents, EachRecord, Kind, Part, Readable, Record, Source, Target, Value},
    },
};

/// Number of rows that are fetched at a time.
const FETCHED: usize = 2000;

/// Time between two readings of the owners' beats, and the number of readings. A living owner beats
/// every 2 s.
const LOOK: Duration = Duration::from_millis(2500);
const LOOKS: u32 = 3;

/// Keeps the server from ending the snapshot while the other database is written or read.
const PATIENCE: &str = "SET LOCAL idle_in_transaction_session_timeout = '3600s'";

/// Finds an import whose devices are hidden. In a copy, they would be visible.
const UNFINISHED: &str = "SELECT 1 FROM import_unfinished";

/// The audit entries, including the pending ones.
const ENTRIES: &str = "SELECT seq, line FROM audit_entry UNION ALL \
                       SELECT c.headSeq + row_number() OVER (ORDER BY p.number), p.line \
                       FROM audit_pending p, audit_chain c ORDER BY 1";

/// A database that is copied, read in one snapshot.
pub struct CopySource {
    engine: Engine,
    snapshot: Blocking,
}

/// A database that receives a copy.
pub struct CopyTarget {
    engine: Engine,
    session: Blocking,
}

impl Postgres {
    /// Opens a database of the current version, to copy it. Fails if a process that uses it is alive.
    /// With `anyway`, connections of processes without claims do not count. Takes some seconds if a
    /// process has, or had, claims.
    pub fn copy_source(
        url: &str,
        accepts: impl Fn(&[String]) -> Result<(), String>,
        anyway: bool,
    ) -> Result<CopySource, StoreError> {
        let store = Self::look(url, accepts)?;
        let engine = &store.engine;
        let in_use = |who: String| {
            StoreError::Unusable(format!(
                "{}: it is in use by {who}; stop all servers that use it first, because what they write during the \
                 copy would be lost",
                engine.database()
            ))
        };
        if !anyway && let Some(who) = engine.read_now(other_session)? {
            return Err(in_use(format!(
                "{who} (if it uses other tables in the same database, or is only an idle connection of a pooler, \
                 give --anyway)"
            )));
        }
        let first = engine.read_now(owners)?;
        let looks = if first.is_empty() { 0 } else { LOOKS };
        for _ in 0..looks {
            thread::sleep(LOOK);
            let now = engine.read_now(owners)?;
            if let Some((_, name, _)) = now.iter().find(|owner| !first.contains(owner)) {
                return Err(in_use(name.clone()));
            }
        }
        let snapshot = engine.blocking()?;
        let is_unfinished = snapshot.run(async |session| {
            session.run(SNAPSHOT).await?;
            session.run(PATIENCE).await?;
            // The first statement that reads takes the snapshot.
            session.exists(UNFINISHED, &[]).await
        })?;
        if is_unfinished {
            return Err(StoreError::Unusable(format!(
                "{}: an import was cut off; start and stop `certdist serve` on it once, which takes its changes back",
                engine.database()
            )));
        }
        Ok(CopySource { snapshot, engine: store.into_engine() })
    }

    /// Opens a database to copy another one into it. It must have no tables, or a part of a copy. Changes
    /// nothing yet.
    pub fn copy_target(url: &str) -> Result<CopyTarget, StoreError> {
        let engine = Engine::start(Address::parse(url)?, Access::Full)?;
        let session = engine.blocking()?;
        session.run(async |session| has_part_of_copy(session, engine.database()).await)?;
        Ok(CopyTarget { engine, session })
    }
}

/// Returns the owners: their numbers, names and beats.
async fn owners(session: &Session) -> Result<Vec<(i64, String, i64)>, Failure> {
    const SQL: &str = "SELECT ownerId, name, beats FROM registration_owner ORDER BY ownerId";
    let owner = |row: &Row| Ok((column(row, 0)?, column(row, 1)?, column(row, 2)?));
    session.rows(SQL, &[]).await?.iter().map(owner).collect()
}

/// Describes another connection with the same database user and application name, if there is one.
async fn other_session(session: &Session) -> Result<Option<String>, Failure> {
    const SQL: &str = "SELECT coalesce(host(client_addr), 'this machine'), pid::int8 \
                       FROM pg_catalog.pg_stat_activity WHERE datname = current_database() \
                       AND usename = current_user AND pid <> pg_backend_pid() \
                       AND application_name = current_setting('application_name') \
                       ORDER BY backend_start LIMIT 1";
    let Some(row) = session.row(SQL, &[]).await? else { return Ok(None) };
    let (address, pid): (String, i64) = (column(&row, 0)?, column(&row, 1)?);
    Ok(Some(format!("a connection from {address}, process {pid} of the database server")))
}

/// Returns whether a database has a part of a copy, and false if it has no tables. Fails if it has any
/// other tables of certdist.
async fn has_part_of_copy(session: &Session, database: &str) -> Result<bool, Failure> {
    if schema::has_part_of_copy(session).await? {
        return Ok(true);
    }
    match schema::is_current(session, database).await? {
        false => Ok(false),
        true => Err(Failure::Store(StoreError::Unusable(format!(
            "{database}: it has tables of certdist already; copy to a database, or a schema in its search_path, without \
             tables"
        )))),
    }
}

/// Returns the statement that reads the records of a part.
fn statement(part: Part) -> String {
    if part == Part::Entries {
        return ENTRIES.into();
    }
    let columns: Vec<String> = part
        .columns()
        .iter()
        .map(|column| match (column.kind, column.name) {
            (Kind::Flag, name) => format!("{name}::int4::int8"),
            (_, "firstAddress") => "coalesce(firstAddress, address)".into(),
            (_, name) => name.into(),
        })
        .collect();
    format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), part.table(), part.order())
}

fn record(row: &Row, part: Part) -> Result<Record, Failure> {
    let read = |(index, of): (usize, &crate::store::copy::Column)| {
        Ok(match of.kind {
            Kind::Number | Kind::Flag => {
                column::<Option<i64>>(row, index)?.map_or(Value::None, Value::Number)
            }
            Kind::Text | Kind::Secret => {
                column::<Option<String>>(row, index)?.map_or(Value::None, Value::text)
            }
        })
    };
    part.columns().iter().enumerate().map(read).collect()
}

/// Reads the records of a part with a cursor, in the transaction of the connection.
fn read_records(
    session: &Blocking,
    database: &str,
    part: Part,
    skip: u64,
    each: EachRecord<'_>,
) -> Result<(), StoreError> {
    let declare = format!("DECLARE part NO SCROLL CURSOR FOR {} OFFSET {skip}", statement(part));
    let fetch = format!("FETCH {FETCHED} FROM part");
    session.run(async |session| session.run(&declare).await)?;
    loop {
        let rows = session.run(async |session| session.rows(&fetch, &[]).await)?;
        for row in &rows {
            each(record(row, part).map_err(|failure| failure.into_store_error(database))?)?;
        }
        if rows.len() < FETCHED {
            return session.run(async |session| session.run("CLOSE part").await);
        }
    }
}

async fn count(session: &Session, part: Part) -> Result<u64, Failure> {
    let sql = match part {
        Part::Entries => {
            "SELECT headSeq - anchorSeq + (SELECT count(*) FROM audit_pending) FROM audit_chain".to_owned()
        }
        _ => format!("SELECT count(*) FROM {}", part.table()),
    };
    number(&session.one(&sql, &[]).await?, 0)
}

async fn contents(session: &Session) -> Result<Contents, Failure> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq + (SELECT count(*) FROM audit_pending) \
                         FROM audit_chain";
    let row = session.one(CHAIN, &[]).await?;
    let (anchor, last) = ((number(&row, 0)?, audit::hash(&row, 1)?), number(&row, 2)?);
    let mut records = Vec::with_capacity(Part::ALL.len());
    for part in Part::ALL {
        records.push(count(session, part).await?);
    }
    Ok(Contents { anchor, last, records })
}

impl Readable for CopySource {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        read_records(&self.snapshot, self.engine.database(), part, skip, each)
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        audit::verify(&self.engine, &mut |_, _| ())
    }
}

impl Source for CopySource {
    fn contents(&self) -> Result<Contents, StoreError> {
        self.snapshot.run(contents)
    }

    fn newest(&self) -> Result<Contents, StoreError> {
        let state = self.engine.blocking()?;
        state.run(async |session| {
            session.run(SNAPSHOT).await?;
            contents(session).await
        })
    }

    fn shown(&self) -> String {
        self.engine.database().to_owned()
    }
}

impl CopyTarget {
    /// Runs a transaction. After a failure, the connection must not be used further.
    fn transact<T>(&self, work: impl AsyncFnOnce(&Session) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.session.run(async |session| {
            session.run(BEGIN_BULK).await?;
            let done = work(session).await?;
            session.run("COMMIT").await?;
            Ok(done)
        })
    }
}

/// Values of one column of many records, as an array.
enum Array<'r> {
    Numbers(Vec<Option<i64>>),
    Texts(Vec<Option<&'r str>>),
    Owned(Vec<Option<String>>),
    Bytes(Vec<Vec<u8>>),
}

impl<'r> Array<'r> {
    fn of(records: &'r [Record], index: usize, kind: Kind) -> Self {
        match kind {
            Kind::Number | Kind::Flag => {
                Self::Numbers(records.iter().map(|record| record[index].as_number()).collect())
            }
            Kind::Text | Kind::Secret => {
                Self::Texts(records.iter().map(|record| record[index].as_text()).collect())
            }
        }
    }

    fn bound(&self) -> Bound<'_> {
        match self {
            Self::Numbers(numbers) => value(numbers),
            Self::Texts(texts) => value(texts),
            Self::Owned(texts) => value(texts),
            Self::Bytes(bytes) => (bytes as &(dyn ToSql + Sync), tokio_postgres::types::Type::BYTEA_ARRAY),
        }
    }
}

/// Returns the columns that are derived from a record and its number in the part.
fn derived(
    part: Part,
    done: u64,
    records: &[Record],
) -> Result<Vec<(&'static str, Array<'static>)>, Failure> {
    let text = |record: &Record, index: usize| record[index].as_text().map(str::to_owned);
    let id = |record: &Record, index: usize| {
        DeviceId::parse_sn(record[index].as_text().unwrap_or_default()).map_err(Failure::unexpected)
    };
    // The name under which a device is registered: the name in its row, or else the name derived from
    // its ID.
    let names = |device: usize, name: usize| {
        let name = |record| Ok(Some(text(record, name).unwrap_or(id(record, device)?.device_name())));
        records.iter().map(name).collect::<Result<Vec<_>, Failure>>()
    };
    let numbers = || {
        let end = done + records.len() as u64;
        Array::Numbers((done + 1..=end).map(|number| Some(number.cast_signed())).collect())
    };
    Ok(match part {
        Part::Devices => {
            let spelled = |record| Ok(read::spelled_mac(&id(record, 0)?));
            let spelled = records.iter().map(spelled).collect::<Result<Vec<_>, Failure>>()?;
            vec![("name", Array::Owned(names(0, 4)?)), ("spelledMac", Array::Owned(spelled))]
        }
        Part::Before => vec![("name", Array::Owned(names(1, 5)?)), ("number", numbers())],
        Part::Repeats => {
            let days = records.iter().map(|record| record[7].as_number().map(day)).collect();
            let kind = |record: &Record| {
                let texts = [2, 3, 4].map(|index| record[index].as_text());
                audit::kind_of(record[0].as_text().unwrap_or_default(), texts)
            };
            vec![
                ("day", Array::Numbers(days)),
                ("kind", Array::Bytes(records.iter().map(kind).collect())),
                ("number", numbers()),
            ]
        }
        _ => Vec::new(),
    })
}

/// Adds records with one statement.
async fn insert(session: &Session, part: Part, done: u64, records: &[Record]) -> Result<(), Failure> {
    let columns = part.columns();
    let own = columns.iter().enumerate().map(|(index, of)| (of.name, Array::of(records, index, of.kind)));
    let arrays: Vec<(&str, Array<'_>)> = own.chain(derived(part, done, records)?).collect();
    let names: Vec<&str> = arrays.iter().map(|(name, _)| *name).collect();
    let selected: Vec<String> = names
        .iter()
        .zip(0..)
        .map(|(name, index)| match columns.get(index) {
            Some(of) if of.kind == Kind::Flag => format!("v.{name} <> 0"),
            _ => format!("v.{name}"),
        })
        .collect();
    let places: Vec<String> = (1..=names.len()).map(|place| format!("${place}")).collect();
    let overriding =
        if matches!(part, Part::Orders | Part::Repeats) { "OVERRIDING SYSTEM VALUE" } else { "" };
    let sql = format!(
        "INSERT INTO {} ({names}) {overriding} SELECT {} FROM unnest({}) AS v ({names})",
        part.table(),
        selected.join(", "),
        places.join(", "),
        names = names.join(", "),
    );
    let bound: Vec<Bound<'_>> = arrays.iter().map(|(_, array)| array.bound()).collect();
    session.execute(&sql, &bound).await.map(drop)
}

/// Explains why this database cannot contain records that another kind of store can contain.
fn shared(failure: Failure, database: &str, part: Part) -> Failure {
    match &failure {
        Failure::Database(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            let said = error.as_db_error().map_or("no reason given", |error| error.message());
            Failure::Store(StoreError::Unusable(format!(
                "{database}: two records of `{}` cannot be in it together ({said}); correct them in the database that is \
                 copied, remove the tables of the copy, and begin again",
                part.name()
            )))
        }
        _ => failure,
    }
}

impl Readable for CopyTarget {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        let state = self.engine.blocking()?;
        state.run(async |session| session.run(SNAPSHOT).await)?;
        read_records(&state, self.engine.database(), part, skip, each)
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        audit::verify(&self.engine, &mut |_, _| ())
    }
}

impl Target for CopyTarget {
    fn begin(&self, id: &str, source: &str, anchor: (u64, Link)) -> Result<(), StoreError> {
        const BEGUN: &str = "SELECT id, source FROM certdist_copy";
        const NOTE: &str = "INSERT INTO certdist_copy (id, source) VALUES ($1, $2)";
        const SET_ANCHOR: &str =
            "UPDATE audit_chain SET anchorSeq = $1, anchorHash = $2, headSeq = $1, headHash = $2";
        let database = self.engine.database();
        self.transact(async |session| {
            if has_part_of_copy(session, database).await? {
                let row = session.one(BEGUN, &[]).await?;
                let (begun, from): (String, String) = (column(&row, 0)?, column(&row, 1)?);
                if begun == id {
                    return Ok(());
                }
                return Err(Failure::Store(StoreError::Unusable(format!(
                    "{database}: it has a part of another copy, from {from}, or that database has changed since; remove \
                     its tables and begin again"
                ))));
            }
            schema::create_for_copy(session, database).await?;
            session.execute(NOTE, values![id, source]).await?;
            let (pruned, hash) = anchor;
            session.execute(SET_ANCHOR, values![pruned.cast_signed(), &hash[..]]).await.map(drop)
        })
    }

    fn count(&self, part: Part) -> Result<u64, StoreError> {
        self.session.run(async |session| count(session, part).await)
    }

    fn write(&self, part: Part, done: u64, records: &[Record]) -> Result<(), StoreError> {
        self.transact(async |session| {
            if part != Part::Entries {
                let inserted = insert(session, part, done, records).await;
                inserted.map_err(|failure| shared(failure, self.engine.database(), part))?;
                return match records.iter().find_map(|record| part.secret_of(record)) {
                    Some(secret) => secrets::note(session, secret).await,
                    None => Ok(()),
                };
            }
            let lines: Vec<&str> = records.iter().filter_map(|record| record[1].as_text()).collect();
            audit::put_lines(session, &lines).await
        })
    }

    fn complete(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        const WAITING: &str = "INSERT INTO enrollment_turn (enrollment, waiting) \
                               SELECT enrollment, count(*) FROM device_waiting GROUP BY enrollment";
        const ANALYZE: &str = "ANALYZE device_table, device_key, audit_entry, audit_repeat";
        self.transact(async |session| {
            for part in [Part::Orders, Part::Repeats] {
                let last = format!("SELECT coalesce(max(number), 0) + 1 FROM {}", part.table());
                let next: i64 = column(&session.one(&last, &[]).await?, 0)?;
                let table = part.table();
                session.run(&format!("ALTER TABLE {table} ALTER COLUMN number RESTART WITH {next}")).await?;
            }
            session.execute(WAITING, &[]).await?;
            counts::count_anew(session).await?;
            audit::append(session, entry).await?;
            schema::end_copy(session).await
        })?;
        // The database does this by itself, but only later. The copy is complete without it.
        if let Err(error) = self.session.run(async |session| session.run(ANALYZE).await) {
            tracing::debug!(%error, "the tables of a copy could not be analyzed");
        }
        Ok(())
    }
}
