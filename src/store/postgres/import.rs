//! Imports. The rows are checked without a lock. A small import is then one transaction. A large one is
//! written in slices, and devices and other processes can write between two of them. Until the last
//! slice is written, the devices that the import adds are hidden from every reader, and all its changes
//! can be taken back ([`unfinished`]). Only one import or undo runs at a time, in all processes together.

mod merging;
mod standing;

use std::{
    cell::{Cell, RefCell},
    thread,
    time::{Duration, Instant},
};

use self::{
    merging::{Merging, Unwritten, Written},
    standing::View,
};
use super::{
    Access, Postgres, audit,
    engine::{ATTEMPTS, BEGIN, Blocking, SNAPSHOT, blocking_pause, wait},
    failure::Failure,
    schema,
    session::{Session, number, values},
    unfinished::{self, Turn},
};
use crate::store::{
    ImportError, ImportJob, ImportReport, ImportRow, ImportStage, Reject, Rejection, Rows, StoreError,
    UnixSeconds,
    check::{self, Checked, Staged},
    undo::{ImportId, REMEMBERED, UNDOABLE},
};

/// Maximum number of changed rows of an import that is written in one transaction, not in slices.
const SMALL: u64 = 200;

/// Time after which a slice should end. The next slice has as many rows as the last one could have
/// written in this time, within these limits.
const SLICE: Duration = Duration::from_millis(25);
const FEWEST: usize = 20;
const MOST: usize = 1000;

/// Maximum number of attempts to find an unused number for an import.
const NUMBERS: usize = 16;

/// Waits for the end of another import or undo, and keeps others from beginning one until the end of
/// the transaction.
pub(super) async fn take_turn(session: &Session) -> Result<(), Failure> {
    session.execute("UPDATE import_turn SET times = times + 1 WHERE id = 0", &[]).await.map(drop)
}

/// Returns a random number that no import has had.
pub(super) fn unused_number(store: &Postgres) -> Result<ImportId, StoreError> {
    const IS_USED: &str = "SELECT 1 FROM import_number WHERE importId = $1";
    for _ in 0..NUMBERS {
        let id = ImportId::random()?;
        let is_used = store.engine.read_now(async move |session: &Session| {
            session.exists(IS_USED, values![i64::from(id.0)]).await
        })?;
        if !is_used {
            return Ok(id);
        }
    }
    Err(StoreError::Failed("no unused number was found for an import; try again".into()))
}

/// Runs an import or a dry run.
pub(super) fn run(
    store: &Postgres,
    job: ImportJob<'_>,
    rows: Rows<'_>,
    reject: Reject<'_>,
) -> Result<ImportReport, ImportError> {
    // The rows are read before the turn is taken, because they may arrive slowly from another program.
    let staged = Staged::read(rows, reject)?;
    if job.dry_run {
        let session = store.engine.blocking()?;
        session.run(async |session| match store.engine.access() {
            // Tables that are created in a transaction are gone when it ends.
            Access::PreviewsNew => {
                session.run("BEGIN").await?;
                session.run(schema::CREATE).await
            }
            Access::Full | Access::Looks => session.run(SNAPSHOT).await,
        })?;
        return Ok(check::check(&job, staged, &View::new(&session, None), reject)?.report);
    }
    store.engine.may_write()?;
    let turn = Turn::take(store)?;
    let session = store.engine.blocking()?;
    let checked = check::check(&job, staged, &View::new(&session, Some(&turn)), reject)?;
    if checked.changes() == 0 {
        return Ok(checked.report);
    }
    let id = job.id.map_or_else(|| unused_number(store), Ok)?;
    let import = Import { store, job: &job, id, turn: &turn, session: RefCell::new(Some(session)) };
    let outcome = match checked.changes() {
        ..=SMALL => import.at_once(&checked),
        _ => import.in_slices(&checked),
    };
    if let Err(error) = unfinished::take_back_now(store) {
        tracing::warn!(%error, "what an import has left behind is not removed yet; a server, or the next import, removes it");
    }
    outcome.map_err(|unwritten| match unwritten {
        Unwritten::Rejected(at, conflict) => {
            reject(at, Rejection::Conflict(conflict));
            ImportError::Rejected(1)
        }
        Unwritten::Failed(failure) => failure.into_store_error(store.engine.database()).into(),
    })
}

/// An import whose rows are checked.
struct Import<'a> {
    store: &'a Postgres,
    job: &'a ImportJob<'a>,
    id: ImportId,
    turn: &'a Turn,
    /// Connection for the transactions of the import; `None` after the connection was lost.
    session: RefCell<Option<Blocking>>,
}

impl Import<'_> {
    fn merging(&self, id: Option<ImportId>, is_in_slices: bool) -> Merging<'_> {
        Merging { id, is_in_slices, at: self.store.clock.now(), same_secret: self.job.same_secret }
    }

    /// Writes all rows in one transaction.
    fn at_once(&self, checked: &Checked) -> Result<ImportReport, Unwritten> {
        let (mut rows, mut late) = (Vec::new(), Vec::new());
        checked.each_in_order(|row| {
            rows.extend(row);
            Ok::<_, StoreError>(())
        })?;
        checked.each_late(|at, row| {
            late.push((at, row));
            Ok::<_, StoreError>(())
        })?;
        let merging = self.merging(self.job.id, false);
        let work = async |session: &Session| {
            if !note_number(session, self.id).await? {
                return Ok(None);
            }
            let mut report = ImportReport { unchanged: checked.report.unchanged, ..ImportReport::default() };
            let mut changes = 0;
            // Each late row needs a value that an earlier row gives up, so late rows are written one by
            // one.
            for some in std::iter::once(&rows[..]).chain(late.chunks(1)) {
                let written = merging.write(session, some, changes).await?;
                changes = written.changes;
                add(&mut report, written.report);
            }
            self.record(session, checked, report).await?;
            Ok(Some(report))
        };
        match self.transact(work)? {
            Some(report) => Ok(report),
            None => Err(self.number_is_taken().into()),
        }
    }

    fn number_is_taken(&self) -> StoreError {
        let id = self.id;
        StoreError::Conflict(format!(
            "another import has the number {id}, so nothing was imported; try again"
        ))
    }

    /// Writes the rows in slices.
    fn in_slices(&self, checked: &Checked) -> Result<ImportReport, Unwritten> {
        let (at, ImportJob { by, file, .. }) = (self.store.clock.now(), self.job);
        let begun = self.transact(async |session: &Session| {
            if !note_number(session, self.id).await? {
                return Ok(None);
            }
            unfinished::begin(session, self.id, at, &by.name, file).await?;
            Ok(Some(()))
        })?;
        if begun.is_none() {
            return Err(self.number_is_taken().into());
        }
        let mut slices = Slices {
            import: self,
            merging: self.merging(Some(self.id), true),
            all: checked.changes(),
            number: 0,
            rows: FEWEST,
            written: Written::default(),
        };
        let mut some: Vec<(u64, ImportRow)> = Vec::new();
        checked.each_in_order(|row| {
            some.extend(row);
            if some.len() >= slices.rows { slices.write(&mut some) } else { Ok::<_, Unwritten>(()) }
        })?;
        slices.write(&mut some)?;
        checked.each_late(|at, row| slices.write(&mut vec![(at, row)]))?;
        let Written { mut report, added, .. } = slices.written;
        report.unchanged += checked.report.unchanged;
        self.transact(async |session: &Session| {
            if !unfinished::end(session, self.id).await? {
                return Ok(None);
            }
            added.give(session).await?;
            self.record(session, checked, report).await?;
            Ok(Some(()))
        })?;
        Ok(report)
    }

    /// Writes the audit entry and the record of the import.
    async fn record(
        &self,
        session: &Session,
        checked: &Checked,
        report: ImportReport,
    ) -> Result<(), Failure> {
        let now = self.store.clock.now();
        audit::append(session, &checked.entry(self.job, report, now)).await?;
        match self.job.id {
            Some(id) => record(session, id, self.job, report, now).await,
            None => Ok(()),
        }
    }

    /// Runs a transaction, and repeats it as long as another one is in its way. `work` returns `None`
    /// if its changes are already in the database. If the answer to a commit is lost, `work` is
    /// repeated on another connection. If it then returns `None`, the first transaction was committed,
    /// and this function returns the first result. Returns `None` if the first call of `work` returned
    /// `None`.
    fn transact<T>(
        &self,
        work: impl AsyncFn(&Session) -> Result<Option<T>, Unwritten>,
    ) -> Result<Option<T>, Unwritten> {
        let lost = Cell::new(None);
        let mut attempt = 1;
        loop {
            self.turn.keep()?;
            let failure = match self.attempt(&work, &lost) {
                Ok(None) => return Ok(lost.take()),
                Ok(done) => return Ok(done),
                Err(Unwritten::Failed(failure)) => failure,
                Err(rejected) => return Err(rejected),
            };
            if !failure.is_temporary() || attempt == ATTEMPTS {
                return Err(failure.into());
            }
            thread::sleep(blocking_pause(attempt));
            attempt += 1;
        }
    }

    /// Runs a transaction once. If the answer to the commit is lost, keeps the result in `lost`.
    fn attempt<T>(
        &self,
        work: &impl AsyncFn(&Session) -> Result<Option<T>, Unwritten>,
        lost: &Cell<Option<T>>,
    ) -> Result<Option<T>, Unwritten> {
        let known = self.session.take();
        let connection = known.map_or_else(|| self.store.engine.blocking(), Ok)?;
        let session = connection.session();
        let worked = wait(async {
            session.run(BEGIN).await?;
            work(session).await
        });
        let outcome = match worked {
            // Nothing was changed.
            Ok(None) => wait(session.run("ROLLBACK")).map(|()| None).map_err(Unwritten::from),
            Ok(value) => match wait(session.run("COMMIT")) {
                Ok(()) => Ok(value),
                Err(failure) => {
                    if !failure.is_rolled_back() && value.is_some() {
                        lost.set(value);
                    }
                    Err(failure.into())
                }
            },
            Err(unwritten) => Err(unwritten),
        };
        let is_usable = match &outcome {
            Ok(_) => true,
            Err(Unwritten::Failed(failure)) if !failure.leaves_connection() => false,
            Err(_) => wait(session.run("ROLLBACK")).is_ok(),
        };
        if is_usable {
            self.session.replace(Some(connection));
        }
        outcome
    }
}

/// The slices of an import.
struct Slices<'a> {
    import: &'a Import<'a>,
    merging: Merging<'a>,
    /// Number of rows that change the table.
    all: u64,
    /// Number of the last slice.
    number: i64,
    /// Number of rows in the next slice.
    rows: usize,
    written: Written,
}

impl Slices<'_> {
    /// Writes the next slice.
    fn write(&mut self, rows: &mut Vec<(u64, ImportRow)>) -> Result<(), Unwritten> {
        if rows.is_empty() {
            return Ok(());
        }
        self.number += 1;
        let begun = Instant::now();
        let (number, changes) = (self.number, self.written.changes);
        let written = self.import.transact(async |session: &Session| {
            if !unfinished::begin_slice(session, self.import.id, number).await? {
                return Ok(None);
            }
            self.merging.write(session, rows, changes).await.map(Some)
        })?;
        let Some(written) = written else {
            return Err(
                StoreError::Failed("a slice of an import was written by another process".into()).into()
            );
        };
        if rows.len() >= FEWEST {
            let fitting = rows.len() as f64 * SLICE.as_secs_f64() / begun.elapsed().as_secs_f64().max(1e-6);
            self.rows = (fitting as usize).min(2 * rows.len()).clamp(FEWEST, MOST);
        }
        rows.clear();
        add(&mut self.written.report, written.report);
        self.written.added.append(&written.added);
        self.written.changes = written.changes;
        let done = self.written.report.added + self.written.report.changed;
        (self.import.job.progress)(ImportStage::Writing, done, self.all);
        Ok(())
    }
}

/// Adds the numbers of another report.
fn add(report: &mut ImportReport, other: ImportReport) {
    report.added += other.added;
    report.changed += other.changed;
    report.unchanged += other.unchanged;
    report.moved += other.moved;
    report.lost_keys += other.lost_keys;
}

/// Notes the number of an import. Returns false if it was already noted, by another import or by an
/// earlier attempt of this one.
async fn note_number(session: &Session, id: ImportId) -> Result<bool, Failure> {
    const SQL: &str = "INSERT INTO import_number (importId) VALUES ($1) ON CONFLICT (importId) DO NOTHING";
    Ok(session.execute(SQL, values![i64::from(id.0)]).await? > 0)
}

/// Writes the record of an import. Deletes the records of imports that are too old to be undone; the
/// former values of their rows are removed later.
async fn record(
    session: &Session,
    id: ImportId,
    job: &ImportJob<'_>,
    report: ImportReport,
    now: UnixSeconds,
) -> Result<(), Failure> {
    const RECORD: &str = "INSERT INTO import (number, importId, at, who, file, added, changed) \
                          SELECT coalesce(max(number), 0) + 1, $1, $2, $3, $4, $5, $6 FROM import RETURNING number";
    const FORGET: &str = "DELETE FROM import WHERE at < $1 OR number <= $2";
    let (added, changed) = (report.added.cast_signed(), report.changed.cast_signed());
    let last = number(
        &session.one(RECORD, values![i64::from(id.0), now, job.by.name, job.file, added, changed]).await?,
        0,
    )?;
    let beyond = last.cast_signed() - i64::try_from(REMEMBERED).unwrap_or(i64::MAX);
    session.execute(FORGET, values![now.saturating_sub(UNDOABLE), beyond]).await.map(drop)
}
