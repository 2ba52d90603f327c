//! Stores the servers of the table in memory.

use std::time::Duration;

use super::Memory;
use crate::store::{
    StoreFuture,
    server::{Server, ServerId, ServerView, Servers, WallClock, system_millis, with_leases},
};

impl Servers for Memory {
    fn beat_server<'a>(&'a self, server: &'a Server, clock: WallClock) -> StoreFuture<'a, ()> {
        let server = server.clone();
        self.answer(move |tables, _| {
            let now = system_millis();
            let (last_beat, clock_ahead) = (now.div_euclid(1000), clock.millis() - now);
            let since = tables.servers.get(&server.id).map_or(last_beat, |known| known.since);
            let (schema, silent_for, leases) = (1, 0, Vec::new());
            let id = server.id;
            let view = ServerView { server, schema, since, last_beat, silent_for, clock_ahead, leases };
            tables.servers.insert(id, view);
            Ok(())
        })
    }

    fn remove_server(&self, id: ServerId) -> StoreFuture<'_, ()> {
        self.answer(move |tables, _| {
            tables.servers.remove(&id);
            Ok(())
        })
    }

    fn remove_silent_servers(&self, silent: Duration, most: usize) -> StoreFuture<'_, u64> {
        self.answer(move |tables, _| {
            let before = tables.servers.len();
            let last = system_millis().div_euclid(1000) - i64::try_from(silent.as_secs()).unwrap_or(i64::MAX);
            tables.servers.retain(|_, view| view.last_beat > last);
            let mut ids: Vec<ServerId> = tables.servers.keys().copied().collect();
            ids.sort_by_key(|id| (std::cmp::Reverse(tables.servers[id].last_beat), *id));
            for id in ids.into_iter().skip(most) {
                tables.servers.remove(&id);
            }
            Ok((before - tables.servers.len()) as u64)
        })
    }

    fn servers(&self) -> StoreFuture<'_, Vec<ServerView>> {
        self.answer(|tables, _| {
            let now = system_millis().div_euclid(1000);
            let mut all: Vec<ServerView> = tables.servers.values().cloned().collect();
            for view in &mut all {
                view.silent_for = (now - view.last_beat).max(0);
            }
            all.sort_by(|one, other| {
                let key = |view: &ServerView| (view.server.name.clone(), view.since, view.server.id);
                key(one).cmp(&key(other))
            });
            Ok(with_leases(all, tables.journal.leases_held()))
        })
    }
}
