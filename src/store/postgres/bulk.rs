//! Work on the whole table: exports, counts and searches. Imports and undos are in modules of their own.

use std::{collections::HashSet, ops::ControlFlow, path::Path, time::Duration};

use super::{
    Postgres,
    engine::SNAPSHOT,
    import,
    read::{self, DEVICE_COLUMNS, device_columns},
    session::{Session, column, number, values},
    undo,
};
use crate::{
    device::{AskedId, DeviceId},
    store::{
        Bulk, CountCheck, Each, ImportActivity, ImportError, ImportJob, ImportReport, Reject, Rows,
        StoreError, Totals,
        backup::Contents,
        filter::{Cursor, Filter, Found, Held, Listed, Tally},
        undo::{ImportId, ImportRecord, Left, Undo, UndoError, Undone},
    },
};

/// Number of rows that an export reads at a time.
const EXPORTED_AT_ONCE: i64 = 5000;

impl Bulk for Postgres {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        let outcome = import::run(self, job, rows, reject);
        self.chainer.wake(&self.engine);
        outcome
    }

    fn new_import(&self) -> Result<ImportId, StoreError> {
        import::unused_number(self)
    }

    fn import_activity(&self) -> Result<ImportActivity, StoreError> {
        // An undo shows its changes all at once, so it is never seen unfinished.
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM import_unfinished), (SELECT coalesce(max(number), 0) FROM import), \
                           (SELECT count(*) FROM import WHERE undone IS NOT NULL)";
        self.engine.read_now(async |session: &Session| {
            let row = session.one(SQL, &[]).await?;
            let (imports, undone) = (number(&row, 1)?, number(&row, 2)?);
            Ok(ImportActivity { is_unfinished: column(&row, 0)?, imports, undone })
        })
    }

    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError> {
        self.engine.read_now(undo::all)
    }

    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError> {
        let device = device.clone();
        self.engine.read_now(async move |session: &Session| undo::of(session, &device).await)
    }

    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError> {
        self.engine.blocking()?.run(async |session| undo::left_of(session, id, limit).await)
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        let outcome = undo::run(self, how);
        self.chainer.wake(&self.engine);
        outcome
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        const SQL: &str = concat!(
            "SELECT ",
            device_columns!(),
            ", k.pskIdentity, k.psk, k.pskNext, k.pskUsed, k.pskNextUsed FROM device_shown d \
             LEFT JOIN device_key k ON k.deviceId = d.deviceId WHERE d.deviceId > $1 ORDER BY d.deviceId LIMIT $2"
        );
        let state = self.engine.blocking()?;
        state.run(async |session| session.run(SNAPSHOT).await)?;
        let mut after = String::new();
        loop {
            let page = state.run(async |session| {
                let rows = session.rows(SQL, values![after, EXPORTED_AT_ONCE]).await?;
                let mut page = Vec::with_capacity(rows.len());
                for row in &rows {
                    let keys = match column::<Option<&str>>(row, DEVICE_COLUMNS)? {
                        Some(_) => Some(read::keys(row, DEVICE_COLUMNS)?),
                        None => None,
                    };
                    page.push((read::device_row(row)?, keys));
                }
                Ok(page)
            })?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            last.id.as_str().clone_into(&mut after);
            for (row, keys) in page {
                if let ControlFlow::Break(()) = each(row, keys) {
                    return Ok(());
                }
            }
        }
    }

    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError> {
        const SQL: &str = "SELECT spelledMac FROM device_shown WHERE spelledMac IS NOT NULL";
        self.engine.read_now(async |session: &Session| {
            session.rows(SQL, &[]).await?.iter().map(|row| read::id(row, 0)).collect()
        })
    }

    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError> {
        let asked = asked.clone();
        self.engine.read_now(async move |session: &Session| read::known_as(session, &asked).await)
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.count_devices()
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        self.count_all()
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        self.unregistered(enrollment)
    }

    fn check_counts(&self) -> Result<CountCheck, StoreError> {
        self.compare_counts()
    }

    fn recount(&self) -> Result<CountCheck, StoreError> {
        self.correct_counts()
    }

    fn find(
        &self,
        filter: &Filter,
        from: &Cursor,
        limit: usize,
        time: Duration,
    ) -> Result<Found, StoreError> {
        self.search(filter, from, limit, time)
    }

    fn tally(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError> {
        self.count_admitted(filter, time)
    }

    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        self.count_held(limit)
    }

    fn targets(&self) -> Result<Vec<String>, StoreError> {
        // One search of the index for each target, as few rows as there are targets.
        const NEXT: &str = "SELECT min(target) FROM device_shown WHERE target IS NOT NULL AND target > $1";
        self.engine.read_now(async |session: &Session| {
            let mut targets: Vec<String> = Vec::new();
            loop {
                let after = targets.last().cloned().unwrap_or_default();
                match column(&session.one(NEXT, values![after]).await?, 0)? {
                    Some(target) => targets.push(target),
                    None => return Ok(targets),
                }
            }
        })
    }

    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
        self.list(ids)
    }

    fn are_rolling(&self) -> Result<bool, StoreError> {
        self.engine.read_now(read::are_rolling)
    }

    /// Always fails, with a message that names the backup tools of the database.
    fn back_up(&self, _to: &Path, _progress: &mut dyn FnMut(u64, u64)) -> Result<Contents, StoreError> {
        Err(StoreError::Unusable(format!(
            "{}: a database on a server is backed up with its own tools: `pg_dump --format=custom --no-owner \
             --file=FILE URL`; `pg_restore --exit-on-error --single-transaction --no-owner --dbname=URL FILE` restores \
             the file into an empty database (docs/operations.md, \"Back up PostgreSQL\")",
            self.engine.database()
        )))
    }

    fn products(&self) -> Result<Vec<String>, StoreError> {
        self.counted_products()
    }
}
