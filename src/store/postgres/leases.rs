//! Leases: work that only one process does at a time.

use super::{
    Postgres,
    claims::{abandoned, note_owner},
    session::{Session, column, values},
};
use crate::store::{
    StoreError, StoreFuture,
    claim::{Owner, OwnerId},
    lease::Leases,
};

impl Leases for Postgres {
    fn take_lease<'a>(&'a self, owner: &'a Owner, name: &'a str) -> StoreFuture<'a, Option<String>> {
        const SQL: &str = concat!(
            "INSERT INTO lease AS l (name, owner, cursor) VALUES ($1, $2, '') \
             ON CONFLICT (name) DO UPDATE SET owner = excluded.owner WHERE l.owner = excluded.owner OR ",
            abandoned!("l.owner"),
            " RETURNING cursor"
        );
        let (owner, name, now) = (owner.clone(), name.to_owned(), self.clock.now());
        self.engine.transact(async move |session: &Session| {
            let taken = session.row(SQL, values![name, owner.id]).await?;
            note_owner(session, &owner, now).await?;
            taken.map(|row| column(&row, 0)).transpose()
        })
    }

    fn set_cursor<'a>(&'a self, owner: OwnerId, name: &'a str, cursor: &'a str) -> StoreFuture<'a, ()> {
        const SQL: &str = "UPDATE lease SET cursor = $3 WHERE name = $1 AND owner = $2";
        let (name, cursor) = (name.to_owned(), cursor.to_owned());
        self.settled(async move |session: &Session| {
            let changed = session.execute(SQL, values![name, owner, cursor]).await?;
            Ok(if changed > 0 { Ok(()) } else { Err(StoreError::Fenced) })
        })
    }

    fn give_lease_up<'a>(&'a self, owner: OwnerId, name: &'a str) -> StoreFuture<'a, ()> {
        const SQL: &str = "UPDATE lease SET owner = NULL WHERE name = $1 AND owner = $2";
        let name = name.to_owned();
        self.engine.transact(async move |session: &Session| {
            session.execute(SQL, values![name, owner]).await.map(drop)
        })
    }
}
