//! Reads registered devices for a sweep, and stores the data about them from IoT Platform.

use std::ops::Range;

use tokio_postgres::Row;

use super::{
    Postgres, counts,
    failure::Failure,
    read,
    session::{Session, column, values},
};
use crate::{
    device::DeviceId,
    store::{
        CloudState, StoreFuture, UnixSeconds,
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
    },
};

/// The columns of a [`Watched`], in the order in which [`watched`] reads them.
macro_rules! columns {
    () => {
        "deviceId, productKey, deviceName, firstIssued, registerTime, activateTime, cloudState, \
         coalesce(target, 'default')"
    };
}

/// Number of columns that [`watched`] reads.
const COLUMNS: usize = 8;

fn watched(row: &Row) -> Result<Watched, Failure> {
    Ok(Watched {
        id: read::id(row, 0)?,
        product_key: column(row, 1)?,
        device_name: column(row, 2)?,
        first_issued: column(row, 3)?,
        registered: column(row, 4)?,
        activated: column(row, 5)?,
        cloud_state: read::cloud_state(row, 6)?,
        target: column(row, 7)?,
    })
}

impl Sightings for Postgres {
    fn registered_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Examined> {
        // Also returns the rows without a certificate, so that `LIMIT` bounds the number of rows that
        // are read.
        const SQL: &str = concat!(
            "SELECT ",
            columns!(),
            ", deviceSecret IS NOT NULL FROM device_shown WHERE deviceId > $1 ORDER BY deviceId LIMIT $2"
        );
        let after = after.map_or("", DeviceId::as_str).to_owned();
        self.engine.read(async move |session: &Session| {
            let most = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = session.rows(SQL, values![after, most]).await?;
            let last = rows.last().filter(|_| rows.len() == limit).map(|row| read::id(row, 0)).transpose()?;
            let mut devices = Vec::new();
            for row in &rows {
                if column(row, COLUMNS)? {
                    devices.push(watched(row)?);
                }
            }
            Ok(Examined { devices, last })
        })
    }

    fn unactivated<'a>(
        &'a self,
        issued: Range<UnixSeconds>,
        after: Option<&'a IssuePlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Watched>> {
        const SQL: &str = concat!(
            "SELECT ",
            columns!(),
            " FROM device_shown WHERE firstIssued IS NOT NULL AND activateTime IS NULL \
             AND cloudState IS DISTINCT FROM 'deleted' AND deviceSecret IS NOT NULL \
             AND firstIssued >= $1 AND (firstIssued, deviceId) < ($2, $3) \
             ORDER BY firstIssued DESC, deviceId DESC LIMIT $4"
        );
        // All IDs come after the empty text, so a device whose first issue is at the end of the range
        // does not come before this place.
        let end = (issued.end, String::new());
        let after = after.map(|place| (place.issued, place.device.as_str().to_owned()));
        let (before, id) = after.map_or(end.clone(), |after| after.min(end));
        let (from, limit) = (issued.start, i64::try_from(limit).unwrap_or(i64::MAX));
        self.engine.read(async move |session: &Session| {
            session.rows(SQL, values![from, before, id, limit]).await?.iter().map(watched).collect()
        })
    }

    fn store_sightings(&self, mut sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()> {
        const STORE: &str = "UPDATE device_table SET activateTime = coalesce(activateTime, $2), \
                             registerTime = coalesce($4, registerTime), cloudState = $3 \
                             WHERE deviceId = $1 AND deviceSecret IS NOT NULL AND productKey = $5 \
                             AND deviceName = $6 AND registerTime IS NOT DISTINCT FROM $7";
        const LOCK: &str =
            "SELECT deviceId FROM device_table WHERE deviceId = ANY ($1) ORDER BY deviceId FOR UPDATE";
        sightings.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        self.write(async move |session: &Session| {
            let devices: Vec<&str> = sightings.iter().map(|(seen, _)| seen.id.as_str()).collect();
            session.rows(LOCK, values![devices]).await?;
            counts::take(session, &devices).await?;
            for (seen, Sighting { registered, activated, state }) in &sightings {
                let state = state.map(|state| match state {
                    CloudState::Disabled => "disabled",
                    CloudState::Deleted => "deleted",
                });
                let Watched { id, product_key, device_name, registered: seen_registered, .. } = seen;
                let id = id.as_str();
                let values =
                    values![id, *activated, state, *registered, product_key, device_name, *seen_registered];
                session.execute(STORE, values).await?;
            }
            counts::give(session, &devices).await
        })
    }
}
