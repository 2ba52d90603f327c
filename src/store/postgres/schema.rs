//! The tables of certdist in a database: their creation, their version, and the reasons why a database
//! is not used.

use tokio_postgres::error::SqlState;

use super::{
    failure::Failure,
    session::{Session, column, number},
};
use crate::store::StoreError;

/// The version of the tables that this program reads and writes.
const VERSION: i64 = 1;

/// The statements that create the tables.
pub(super) const CREATE: &str = include_str!("../../../schema.postgres.sql");

/// Creates the tables if the database has none, in the caller's transaction. Refuses the tables of
/// another program or version, and changes nothing then.
///
/// Of several servers that create them at once, one succeeds. The others fail at the first statement,
/// when it has committed, with an error after which the transaction is repeated.
pub(super) async fn create_or_check(session: &Session, database: &str) -> Result<(), Failure> {
    if is_current(session, database).await? {
        return Ok(());
    }
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
        odd => Err(unusable(format!("its tables have version {odd}, which no certdist has written"))),
    }
}
