//! One connection to PostgreSQL while one piece of work uses it: statements and their values. Each
//! statement is sent without a name, in one round trip, so that a pooler such as PgBouncer may give
//! each transaction another connection. This module knows no table.

use rand::RngExt;
use tokio_postgres::{
    Client, Row,
    types::{FromSql, ToSql, Type},
};

use super::failure::Failure;

/// A value of a statement, and its type in SQL.
pub(super) type Value<'v> = (&'v (dyn ToSql + Sync), Type);

/// Makes the values `$1`, `$2`, … of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::postgres::session::value(&$value)),*] };
}
pub(super) use values;

/// Rust type with a fixed type in SQL. An unnamed statement names the types of its values, so the
/// server need not be asked for them first.
pub(super) trait Typed {
    /// The type in SQL.
    const TYPE: Type;
}

macro_rules! typed {
    ($($rust:ty => $sql:ident),* $(,)?) => { $(impl Typed for $rust { const TYPE: Type = Type::$sql; })* };
}

typed! {
    str => TEXT,
    String => TEXT,
    i64 => INT8,
    bool => BOOL,
    [u8] => BYTEA,
    Vec<u8> => BYTEA,
    Vec<bool> => BOOL_ARRAY,
    Vec<i64> => INT8_ARRAY,
    Vec<Option<i64>> => INT8_ARRAY,
    Vec<String> => TEXT_ARRAY,
    Vec<&str> => TEXT_ARRAY,
    Vec<Option<String>> => TEXT_ARRAY,
    Vec<Option<&str>> => TEXT_ARRAY,
    Vec<Vec<u8>> => BYTEA_ARRAY,
}

impl<T: Typed + ?Sized> Typed for &T {
    const TYPE: Type = T::TYPE;
}

impl<T: Typed> Typed for Option<T> {
    const TYPE: Type = T::TYPE;
}

/// Returns a value with its type.
pub(super) fn value<T: Typed + ToSql + Sync>(value: &T) -> Value<'_> {
    (value, T::TYPE)
}

/// Reads a column of a row. Fails if the column has another type, for example because the schema was
/// changed by hand.
pub(super) fn column<'r, T: FromSql<'r>>(row: &'r Row, index: usize) -> Result<T, Failure> {
    Ok(row.try_get(index)?)
}

/// Reads a column with a number of something.
pub(super) fn number(row: &Row, index: usize) -> Result<u64, Failure> {
    Ok(column::<i64>(row, index)?.unsigned_abs())
}

/// Identifies a transaction: the random number of its connection, and its own number in that
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    id: i64,
    number: i64,
}

impl Note {
    /// Returns the note of a new connection, before its first transaction.
    pub(super) fn new_connection() -> Self {
        Self { id: rand::rng().random(), number: 0 }
    }
}

/// A connection that one piece of work uses. It is closed when it is dropped, unless the pool takes
/// it back.
pub(super) struct Session {
    client: Client,
    /// Random number of the connection, and number of its last transaction.
    note: Note,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Session {
    pub(super) fn new(client: Client, note: Note, permit: tokio::sync::OwnedSemaphorePermit) -> Self {
        Self { client, note, _permit: permit }
    }

    /// Returns the connection, for other work.
    pub(super) fn into_client(self) -> (Client, Note) {
        (self.client, self.note)
    }

    /// Begins a transaction that can be found again if the answer to its commit is lost. `begin`
    /// contains the statements that begin it.
    pub(super) async fn begin_noted(&mut self, begin: &str) -> Result<Note, Failure> {
        self.note.number += 1;
        let Note { id, number } = self.note;
        self.run(&format!(
            "{begin}; INSERT INTO write_note (id, number, at) \
             VALUES ({id}, {number}, extract(epoch FROM clock_timestamp())::int8) \
             ON CONFLICT (id) DO UPDATE SET number = excluded.number, at = excluded.at"
        ))
        .await?;
        Ok(self.note)
    }

    /// Returns whether a transaction of another connection was committed. Waits until the transaction
    /// has ended.
    pub(super) async fn was_committed(&self, note: Note) -> Result<bool, Failure> {
        // A transaction that has not ended has the row locked. If it was rolled back, the row has the
        // number of the transaction before it.
        const SQL: &str = "INSERT INTO write_note AS w (id, number, at) VALUES ($1, 0, 0) \
                           ON CONFLICT (id) DO UPDATE SET number = w.number RETURNING number";
        let row = self.one(SQL, values![note.id]).await?;
        Ok(column::<i64>(&row, 0)? == note.number)
    }

    /// Runs statements without values, and ignores their rows.
    pub(super) async fn run(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Runs a statement, and returns its rows.
    pub(super) async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        Ok(self.client.query_typed(sql, values).await?)
    }

    /// Runs a statement, and returns its first row.
    pub(super) async fn row(&self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, Failure> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs a statement that always has a row.
    pub(super) async fn one(&self, sql: &str, values: &[Value<'_>]) -> Result<Row, Failure> {
        self.row(sql, values).await?.ok_or_else(|| Failure::unexpected("a statement returned no row"))
    }

    /// Returns whether a statement has a row.
    pub(super) async fn exists(&self, sql: &str, values: &[Value<'_>]) -> Result<bool, Failure> {
        Ok(!self.rows(sql, values).await?.is_empty())
    }

    /// Runs a statement, and returns the number of rows that it has changed.
    pub(super) async fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Failure> {
        Ok(self.client.execute_typed(sql, values).await?)
    }
}
