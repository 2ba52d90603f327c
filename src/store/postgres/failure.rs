//! Failures of work in PostgreSQL, and what follows from each: whether the work is tried again, and
//! what the caller and the operator are told.

use tokio_postgres::error::{DbError, SqlState};

use crate::store::StoreError;

/// Failure of a piece of work. Its transaction is rolled back.
#[derive(Debug)]
pub(super) enum Failure {
    /// Error of the connection or the server.
    Database(tokio_postgres::Error),
    /// Error that is passed to the caller unchanged.
    Store(StoreError),
}

impl Failure {
    /// Returns the failure of a server that does not behave as expected.
    pub(super) fn unexpected(what: impl std::fmt::Display) -> Self {
        Self::Store(StoreError::Failed(what.to_string()))
    }

    /// Returns whether the same work may succeed at once: another transaction was in the way, or the
    /// connection ended before the commit. After a violation of a unique index, the repeated work
    /// sees the row of the other transaction, and answers by it.
    pub(super) fn is_temporary(&self) -> bool {
        let Self::Database(error) = self else { return false };
        match error.code() {
            None => error.is_closed() || is_io(error),
            Some(code) => {
                is_conflict(code)
                    || is_lost(code)
                    || [
                        SqlState::ADMIN_SHUTDOWN,
                        SqlState::CRASH_SHUTDOWN,
                        SqlState::CANNOT_CONNECT_NOW,
                        SqlState::READ_ONLY_SQL_TRANSACTION,
                    ]
                    .contains(code)
            }
        }
    }

    /// Returns whether the server has refused a commit, so that nothing was done. After any other
    /// failure of a commit, for example because the server is shutting down, it may have been done.
    pub(super) fn is_rolled_back(&self) -> bool {
        let Self::Database(error) = self else { return false };
        // Classes of SQLSTATE: constraints, and transactions that were rolled back.
        error.code().is_some_and(|code| code.code().starts_with("23") || code.code().starts_with("40"))
    }

    /// Returns whether the server has answered with an error and the connection can be used further.
    pub(super) fn leaves_connection(&self) -> bool {
        match self {
            Self::Store(_) => true,
            // The connection leads to a standby, which takes no writes. The next connection must lead to
            // the primary.
            Self::Database(error) => error.code().is_some_and(|code| {
                *code != SqlState::READ_ONLY_SQL_TRANSACTION
                    && !code.code().starts_with("57P")
                    && !is_lost(code)
            }),
        }
    }

    /// Returns the error for the caller. `database` names the database without its password.
    pub(super) fn into_store_error(self, database: &str) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Database(error) => store_error(&error, database),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

/// Returns whether an error says that another transaction was in the way.
fn is_conflict(code: &SqlState) -> bool {
    [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::UNIQUE_VIOLATION,
        // Another server creates the tables as well.
        SqlState::DUPLICATE_TABLE,
    ]
    .contains(code)
}

/// Returns whether an error means that the connection can no longer be used. A pooler also reports such
/// an error when it cannot reach its server.
fn is_lost(code: &SqlState) -> bool {
    code.code().starts_with("08")
}

/// Converts an error of the server or the connection. The server's sentence has no values of rows:
/// those are only in the detail of an error, which is left out.
pub(super) fn store_error(error: &tokio_postgres::Error, database: &str) -> StoreError {
    let Some(server) = error.as_db_error() else {
        return StoreError::Busy(format!("{database}: the connection failed ({})", chain(error)));
    };
    let said = said(server);
    match server.code() {
        code if is_conflict(code) => {
            StoreError::Busy(format!("{database}: other processes change the same rows ({said}); try again"))
        }
        code if *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::QUERY_CANCELED => {
            StoreError::Busy(format!(
                "{database}: another process holds the same rows for long ({said}); try again"
            ))
        }
        code if *code == SqlState::DISK_FULL => StoreError::Busy(format!(
            "{database}: the disk of the database server is full ({said}); free some space on it"
        )),
        code if *code == SqlState::READ_ONLY_SQL_TRANSACTION => StoreError::Busy(format!(
            "{database}: the server is a standby and takes no writes ({said}); name the primary as well, or add \
             target_session_attrs=read-write to the URL"
        )),
        code if is_lost(code) || code.code().starts_with("53") || code.code().starts_with("57") => {
            StoreError::Busy(format!("{database}: the server does not serve now ({said}); try again"))
        }
        code if code.code().starts_with("28") => StoreError::Unusable(format!(
            "{database}: the server refused the user ({said}); correct the user or the password in `database`"
        )),
        code if *code == SqlState::INVALID_CATALOG_NAME => StoreError::Unusable(format!(
            "{database}: there is no such database ({said}); create it with `createdb`, or correct `database`"
        )),
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => StoreError::Unusable(format!(
            "{database}: the user lacks a right ({said}); grant it, or use the user that owns the tables"
        )),
        code if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN => {
            StoreError::Unusable(format!(
                "{database}: a table or a column of certdist is missing ({said}); restore it from a backup"
            ))
        }
        code => StoreError::Failed(format!("{database}: {said} (SQLSTATE {})", code.code())),
    }
}

/// Returns the server's sentence, without control characters.
fn said(server: &DbError) -> String {
    server.message().chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// Returns an error with its causes.
fn chain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
