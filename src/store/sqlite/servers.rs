//! Stores the servers of the table. The clock of the database is the system's clock, because all
//! processes that share the file run on one machine.

use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::{Sqlite, connection};
use crate::store::{
    StoreFuture,
    claim::OwnerId,
    server::{
        Facts, Load, Server, ServerId, ServerView, Servers, WallClock, owners_of, owners_text, system_millis,
        with_leases,
    },
};

const BEAT: &str = "INSERT INTO server_table (serverId, name, command, version, schemaVersion, host, process, \
                    listen, owners, enrollments, keyHash, sealKey, perMinute, registrations, startedAt, lastBeat, \
                    clockAhead) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15, ?16) \
                    ON CONFLICT (serverId) DO UPDATE SET name = excluded.name, listen = excluded.listen, \
                    owners = excluded.owners, enrollments = excluded.enrollments, keyHash = excluded.keyHash, \
                    sealKey = excluded.sealKey, perMinute = excluded.perMinute, \
                    registrations = excluded.registrations, lastBeat = excluded.lastBeat, \
                    clockAhead = excluded.clockAhead";

const SILENT: &str = "DELETE FROM server_table WHERE lastBeat <= ?1 OR serverId NOT IN \
                      (SELECT serverId FROM server_table ORDER BY lastBeat DESC, serverId LIMIT ?2)";

const READ: &str = "SELECT serverId, name, command, version, host, process, listen, owners, enrollments, keyHash, \
                    sealKey, perMinute, registrations, schemaVersion, startedAt, lastBeat, clockAhead \
                    FROM server_table ORDER BY name, startedAt, serverId";

const LEASES: &str = "SELECT lease.name, owner FROM lease JOIN registration_owner ON ownerId = owner";

fn beat(connection: &Connection, server: &Server, clock: WallClock) -> rusqlite::Result<()> {
    let Server { id, name, command, version, host, process, listen, owners, facts, load } = server;
    // The clock is read only now, because the write may have waited for other transactions.
    let now = system_millis();
    connection.prepare_cached(BEAT)?.execute(params![
        id,
        name,
        command,
        version,
        connection::VERSION as i64,
        host,
        process,
        listen,
        owners_text(owners),
        facts.enrollments,
        facts.keys,
        facts.database_key,
        load.requests_per_minute.cast_signed(),
        load.registrations.cast_signed(),
        now.div_euclid(1000),
        clock.millis().saturating_sub(now),
    ])?;
    Ok(())
}

fn view(row: &Row<'_>, now: i64) -> rusqlite::Result<ServerView> {
    let last_beat: i64 = row.get(15)?;
    Ok(ServerView {
        server: Server {
            id: row.get(0)?,
            name: row.get(1)?,
            command: row.get(2)?,
            version: row.get(3)?,
            host: row.get(4)?,
            process: row.get(5)?,
            listen: row.get(6)?,
            owners: owners_of(row.get_ref(7)?.as_str()?),
            facts: Facts { enrollments: row.get(8)?, keys: row.get(9)?, database_key: row.get(10)? },
            load: Load {
                requests_per_minute: row.get::<_, i64>(11)?.unsigned_abs(),
                registrations: row.get::<_, i64>(12)?.unsigned_abs(),
            },
        },
        schema: row.get(13)?,
        since: row.get(14)?,
        last_beat,
        silent_for: (now - last_beat).max(0),
        clock_ahead: row.get(16)?,
        leases: Vec::new(),
    })
}

fn servers(connection: &Connection) -> rusqlite::Result<Vec<ServerView>> {
    let now = system_millis().div_euclid(1000);
    let mut statement = connection.prepare_cached(READ)?;
    let servers: rusqlite::Result<Vec<_>> = statement.query_map((), |row| view(row, now))?.collect();
    let mut statement = connection.prepare_cached(LEASES)?;
    let leases: rusqlite::Result<Vec<(String, OwnerId)>> =
        statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect();
    Ok(with_leases(servers?, leases?))
}

impl Servers for Sqlite {
    fn beat_server<'a>(&'a self, server: &'a Server, clock: WallClock) -> StoreFuture<'a, ()> {
        let server = server.clone();
        self.writer.submit(move |connection| Ok(beat(connection, &server, clock)?))
    }

    fn remove_server(&self, id: ServerId) -> StoreFuture<'_, ()> {
        const SQL: &str = "DELETE FROM server_table WHERE serverId = ?1";
        self.writer.submit(move |connection| {
            connection.prepare_cached(SQL)?.execute([id])?;
            Ok(())
        })
    }

    fn remove_silent_servers(&self, silent: Duration, most: usize) -> StoreFuture<'_, u64> {
        let silent = i64::try_from(silent.as_secs()).unwrap_or(i64::MAX);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.writer.submit(move |connection| {
            let before = system_millis().div_euclid(1000).saturating_sub(silent);
            let removed = connection.prepare_cached(SILENT)?.execute([before, most])?;
            Ok(removed as u64)
        })
    }

    fn servers(&self) -> StoreFuture<'_, Vec<ServerView>> {
        self.read(servers)
    }
}
