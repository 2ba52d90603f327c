//! Stores the servers of the table, with times of the database's clock.

use std::time::Duration;

use tokio_postgres::Row;

use super::{
    Postgres,
    failure::Failure,
    schema,
    session::{Session, column, number, values},
};
use crate::store::{
    StoreFuture,
    server::{
        Facts, Load, Server, ServerId, ServerView, Servers, WallClock, owners_of, owners_text, with_leases,
    },
};

const BEAT: &str = "INSERT INTO server_table (serverId, name, command, version, schemaVersion, host, process, \
                    listen, owners, enrollments, keyHash, sealKey, perMinute, registrations, startedAt, lastBeat, \
                    clockAhead) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                    extract(epoch FROM clock_timestamp())::int8, extract(epoch FROM clock_timestamp())::int8, \
                    $15 - (extract(epoch FROM clock_timestamp()) * 1000)::int8) \
                    ON CONFLICT (serverId) DO UPDATE SET name = excluded.name, listen = excluded.listen, \
                    owners = excluded.owners, enrollments = excluded.enrollments, keyHash = excluded.keyHash, \
                    sealKey = excluded.sealKey, perMinute = excluded.perMinute, \
                    registrations = excluded.registrations, lastBeat = excluded.lastBeat, \
                    clockAhead = excluded.clockAhead";

const SILENT: &str = "DELETE FROM server_table WHERE lastBeat <= extract(epoch FROM clock_timestamp())::int8 - $1 \
                      OR serverId NOT IN \
                      (SELECT serverId FROM server_table ORDER BY lastBeat DESC, serverId LIMIT $2)";

const READ: &str = "SELECT serverId, name, command, version, host, process, listen, owners, enrollments, keyHash, \
                    sealKey, perMinute, registrations, schemaVersion, startedAt, lastBeat, clockAhead, \
                    greatest(extract(epoch FROM clock_timestamp())::int8 - lastBeat, 0) \
                    FROM server_table ORDER BY name, startedAt, serverId";

const LEASES: &str = "SELECT l.name, l.owner FROM lease l JOIN registration_owner o ON o.ownerId = l.owner";

fn view(row: &Row) -> Result<ServerView, Failure> {
    Ok(ServerView {
        server: Server {
            id: column(row, 0)?,
            name: column(row, 1)?,
            command: column(row, 2)?,
            version: column(row, 3)?,
            host: column(row, 4)?,
            process: u32::try_from(number(row, 5)?).unwrap_or_default(),
            listen: column(row, 6)?,
            owners: owners_of(column(row, 7)?),
            facts: Facts {
                enrollments: column(row, 8)?,
                keys: column(row, 9)?,
                database_key: column(row, 10)?,
            },
            load: Load { requests_per_minute: number(row, 11)?, registrations: number(row, 12)? },
        },
        schema: column(row, 13)?,
        since: column(row, 14)?,
        last_beat: column(row, 15)?,
        silent_for: column(row, 17)?,
        clock_ahead: column(row, 16)?,
        leases: Vec::new(),
    })
}

impl Servers for Postgres {
    fn beat_server<'a>(&'a self, server: &'a Server, clock: WallClock) -> StoreFuture<'a, ()> {
        let server = server.clone();
        self.engine.transact(async move |session: &Session| {
            let Server { id, name, command, version, host, process, listen, owners, facts, load } = &server;
            let owners = owners_text(owners);
            let process = i64::from(*process);
            let (requests, registrations) =
                (load.requests_per_minute.cast_signed(), load.registrations.cast_signed());
            // The clock is read only now, because the transaction may have waited for a connection.
            let now = clock.millis();
            let values = values![
                *id,
                *name,
                *command,
                *version,
                schema::VERSION,
                *host,
                process,
                *listen,
                owners,
                facts.enrollments,
                facts.keys,
                facts.database_key,
                requests,
                registrations,
                now,
            ];
            session.execute(BEAT, values).await.map(drop)
        })
    }

    fn remove_server(&self, id: ServerId) -> StoreFuture<'_, ()> {
        const SQL: &str = "DELETE FROM server_table WHERE serverId = $1";
        self.engine.transact(async move |session: &Session| session.execute(SQL, values![id]).await.map(drop))
    }

    fn remove_silent_servers(&self, silent: Duration, most: usize) -> StoreFuture<'_, u64> {
        let silent = i64::try_from(silent.as_secs()).unwrap_or(i64::MAX);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.engine
            .transact(async move |session: &Session| session.execute(SILENT, values![silent, most]).await)
    }

    fn servers(&self) -> StoreFuture<'_, Vec<ServerView>> {
        self.engine.read(async |session: &Session| {
            let servers: Result<Vec<_>, Failure> = session.rows(READ, &[]).await?.iter().map(view).collect();
            let leases = session.rows(LEASES, &[]).await?;
            let leases: Result<Vec<_>, Failure> =
                leases.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?))).collect();
            Ok(with_leases(servers?, leases?))
        })
    }
}
