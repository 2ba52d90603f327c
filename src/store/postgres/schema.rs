//! The tables of certdist in a database: their creation, their version, and the reasons why a database
//! is not used.

use tokio_postgres::error::SqlState;

use super::{
    failure::Failure,
    session::{Session, column, number, values},
};
use crate::store::StoreError;

/// The version of the tables that this program reads and writes.
pub(super) const VERSION: i64 = 1;

/// The version of tables with a part of a copy.
const PART_OF_COPY: i64 = 0;

/// The statements that create the tables.
pub(super) const CREATE: &str = include_str!("../../../schema.postgres.sql");

/// Creates the tables if the database has none, in the caller's transaction. Refuses the tables of
/// another program or version, and changes nothing then.
///
/// If several servers create them at once, one succeeds. The others fail at the first statement, when
/// it has committed, with an error after which the transaction is repeated.
pub(super) async fn create_or_check(session: &Session, database: &str) -> Result<(), Failure> {
    if is_current(session, database).await? {
        return Ok(());
    }
    create(session, database).await
}

async fn create(session: &Session, database: &str) -> Result<(), Failure> {
    match session.run(CREATE).await {
        Err(Failure::Database(error))
            if error.code().is_some_and(|code| {
                *code == SqlState::INSUFFICIENT_PRIVILEGE || *code == SqlState::INVALID_SCHEMA_NAME
            }) =>
        {
            Err(StoreError::Unusable(format!(
                "{database}: the user may not create tables ({}); run `GRANT CREATE ON SCHEMA public TO USER` as the \
                 owner of the database, or create the tables with schema.postgres.sql",
                error.as_db_error().map_or("no reason given", |error| error.message())
            ))
            .into())
        }
        outcome => outcome,
    }
}

/// Creates the tables for a copy, in the caller's transaction, with a version that no program accepts.
pub(super) async fn create_for_copy(session: &Session, database: &str) -> Result<(), Failure> {
    create(session, database).await?;
    session.run("CREATE TABLE certdist_copy (id text NOT NULL, source text NOT NULL)").await?;
    set_version(session, PART_OF_COPY).await
}

/// Returns whether the database has a part of a copy.
pub(super) async fn has_part_of_copy(session: &Session) -> Result<bool, Failure> {
    const SQL: &str = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = current_schema() \
                       AND tablename = 'certdist_copy'";
    session.exists(SQL, &[]).await
}

/// Sets the version of a database into which everything was copied.
pub(super) async fn end_copy(session: &Session) -> Result<(), Failure> {
    session.run("DROP TABLE certdist_copy").await?;
    set_version(session, VERSION).await
}

async fn set_version(session: &Session, version: i64) -> Result<(), Failure> {
    session.execute("UPDATE certdist_schema SET version = $1", values![version]).await.map(drop)
}

/// Returns whether the database has the tables of this version, and false if it has no tables at all.
pub(super) async fn is_current(session: &Session, database: &str) -> Result<bool, Failure> {
    const TABLES: &str = "SELECT count(*), count(*) FILTER (WHERE tablename = 'certdist_schema') \
                          FROM pg_catalog.pg_tables WHERE schemaname = current_schema()";
    let unusable = |reason: String| Failure::Store(StoreError::Unusable(format!("{database}: {reason}")));
    let row = session.one(TABLES, &[]).await?;
    match (number(&row, 0)?, number(&row, 1)?) {
        (0, _) => return Ok(false),
        (_, 0) => {
            return Err(unusable(
                "it has tables, but not those of certdist; name a database, or a schema in its search_path, of \
                 certdist's own"
                    .into(),
            ));
        }
        _ => {}
    }
    let row = session.one("SELECT version FROM certdist_schema", &[]).await?;
    match column::<i64>(&row, 0)? {
        VERSION => Ok(true),
        newer @ VERSION.. => Err(unusable(format!(
            "its tables have version {newer}, and this certdist knows version {VERSION}; install the version of \
             certdist that the other servers have"
        ))),
        PART_OF_COPY => Err(unusable(
            "a copy into it is not complete; run the same `certdist copy` again, or remove its tables".into(),
        )),
        odd => Err(unusable(format!("its tables have version {odd}, which no certdist has written"))),
    }
}
