//! Operations on the whole table. Each runs on the calling thread over its own connection, while
//! other threads read and write.

use std::{collections::HashSet, path::Path, time::Duration};

use super::{
    Access, Sqlite, backup, connection, counts, find, import, imports, look, read, store_error, undo,
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

impl Bulk for Sqlite {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        import::run(self, job, rows, reject)
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        self.query(|connection| read::export(connection, each))
    }

    fn new_import(&self) -> Result<ImportId, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        imports::unused(&connection).map_err(|error| error.into_store_error(&self.path))
    }

    fn import_activity(&self) -> Result<ImportActivity, StoreError> {
        match self.access {
            Access::PreviewsNew => Ok(ImportActivity::default()),
            Access::Full | Access::Looks => self.query(imports::activity),
        }
    }

    fn targets(&self) -> Result<Vec<String>, StoreError> {
        self.read_now(find::targets)
    }

    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError> {
        self.read_now(imports::all)
    }

    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError> {
        self.read_now(|connection| imports::of(connection, device))
    }

    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError> {
        self.read_now(|connection| imports::left_of(connection, id, limit))
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        undo::run(self, how)
    }

    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError> {
        match self.access {
            Access::PreviewsNew => Ok(HashSet::new()),
            Access::Full | Access::Looks => self.query(read::spelled_macs),
        }
    }

    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError> {
        self.read_now(|connection| read::known_as(connection, asked))
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.query(counts::count)
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        self.query(counts::totals)
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        self.query(|connection| counts::count_unregistered(connection, enrollment))
    }

    fn check_counts(&self) -> Result<CountCheck, StoreError> {
        self.query(counts::check)
    }

    fn recount(&self) -> Result<CountCheck, StoreError> {
        let connection = connection::open_again(&self.path, self.bulk_wait)?;
        let corrected = counts::recount(&connection).map_err(|error| store_error(&self.path, error))?;
        corrected.ok_or_else(|| {
            StoreError::Conflict(format!(
                "{}: another process has corrected the counts meanwhile; check them again",
                self.path.display()
            ))
        })
    }

    fn find(
        &self,
        filter: &Filter,
        from: &Cursor,
        limit: usize,
        time: Duration,
    ) -> Result<Found, StoreError> {
        self.query(|connection| find::find(connection, filter, from, limit, time))
    }

    fn tally(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError> {
        self.query(|connection| find::tally(connection, filter, time))
    }

    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        self.query(|connection| find::held(connection, limit))
    }

    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
        self.query(|connection| find::listed(connection, ids))
    }

    fn are_rolling(&self) -> Result<bool, StoreError> {
        self.read_now(read::are_rolling)
    }

    fn products(&self) -> Result<Vec<String>, StoreError> {
        self.query(find::products)
    }

    fn back_up(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Contents, StoreError> {
        match self.access {
            Access::Full => {
                let source = connection::open_reader(&self.path)?;
                backup::back_up(&source, &self.path, to, progress)
            }
            Access::Looks | Access::PreviewsNew => {
                look::check(&self.path, |source| backup::back_up(source, &self.path, to, progress))
            }
        }?
        .complete(to)
    }
}
