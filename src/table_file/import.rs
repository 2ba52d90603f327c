//! Imports table files, either all of them or none. The module `rows` has the rules for a row, and
//! the store has the rules for the table.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    BadLines, Enrollments, ImportFileError, Input, LineError, ReadError, Rows, Source,
    bad_lines::BadFile,
    read,
    remarks::{Noted, Remarks},
    values,
};
use crate::{
    device::{AskedId, DeviceId},
    store::{
        Actor, Bulk, Conflict, ImportError, ImportJob, ImportReport, ImportRow, ImportStage, Rejection,
        StoreError, Unreadable, undo::ImportId,
    },
};

/// Number of lines between two calls of an import's `progress`.
const PROGRESS_EVERY: u64 = 1000;

/// Maximum number of files that an entry of the audit log names.
const NAMED: usize = 10;

/// Remark about a dry run that may have seen a part of another import's changes.
const NOT_AT_REST: &str = "another import or undo was running, so these numbers may count a part of its changes; \
                           repeat the dry run when it has ended";

/// Settings of an import of files.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// Enrollments to which the rows may belong.
    pub enrollments: &'a Enrollments,
    /// Operator who imports the files, for the audit log.
    pub by: &'a Actor,
    /// Set to report the changes without making them.
    pub dry_run: bool,
    /// Set to ignore unknown columns.
    pub ignores_unknown: bool,
}

/// Result of an import, or of a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Number by which the import can be undone; `None` if the import changed nothing, or replaced
    /// pre-shared keys.
    pub id: Option<ImportId>,
    /// Numbers of rows, by the kind of change.
    pub report: ImportReport,
    /// Sentences for the operator about rows that were left out, and about values that seem to have
    /// been changed by accident.
    pub remarks: Vec<String>,
    /// Contents of the files.
    pub summary: Summary,
}

/// Maximum number of pairs of an enrollment and a product that a [`Summary`] distinguishes.
const PAIRS: usize = 20;

/// Contents of the files of an import, in the form in which they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The first and the last device, in the order of the files.
    pub ends: Option<(DeviceId, DeviceId)>,
    /// Number of rows for each enrollment and product.
    pub pairs: Vec<Pair>,
    /// Number of rows whose pair is not in `pairs`.
    pub others: u64,
}

/// Rows of an import with the same enrollment and product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Name of the enrollment.
    pub enrollment: String,
    /// The product.
    pub product_key: String,
    /// Number of rows.
    pub rows: u64,
}

impl Summary {
    fn add(&mut self, row: &ImportRow) {
        match &mut self.ends {
            Some((_, last)) => last.clone_from(&row.device),
            None => self.ends = Some((row.device.clone(), row.device.clone())),
        }
        let (enrollment, product_key) =
            (&row.enrollment, row.product_key.as_ref().unwrap_or(&row.enrollment_product));
        let is_same = |pair: &&mut Pair| pair.enrollment == *enrollment && pair.product_key == *product_key;
        if let Some(pair) = self.pairs.iter_mut().find(is_same) {
            pair.rows += 1;
        } else if self.pairs.len() < PAIRS {
            let (enrollment, product_key) = (enrollment.clone(), product_key.clone());
            self.pairs.push(Pair { enrollment, product_key, rows: 1 });
        } else {
            self.others += 1;
        }
    }

    /// Removes a row that is left out.
    fn remove(&mut self, enrollment: &str, product_key: &str) {
        let is_same = |pair: &&mut Pair| pair.enrollment == enrollment && pair.product_key == product_key;
        let rows = self.pairs.iter_mut().find(is_same).map_or(&mut self.others, |pair| &mut pair.rows);
        *rows = rows.saturating_sub(1);
    }
}

/// Functions that an import calls while it runs.
pub struct Feedback<'a> {
    /// Receives, at regular intervals, the part of a stage that is done, and the total. The two
    /// numbers are bytes of all files while the files are read, and rows in later stages.
    pub progress: &'a mut dyn FnMut(ImportStage, u64, u64),
    /// Receives every bad line and its file, including the lines that the import's error does not
    /// list.
    pub bad_line: &'a mut dyn FnMut(&Path, &LineError),
}

/// Imports a table file without feedback. Either all of its rows are imported, or none.
pub fn import_file(store: &dyn Bulk, path: &Path, how: Import<'_>) -> Result<Imported, ImportFileError> {
    let unread = |error| ImportFileError::Read { path: path.to_owned(), error };
    let source = Source::open(path).map_err(unread)?;
    let feedback = Feedback { progress: &mut |_, _, _| (), bad_line: &mut |_, _| () };
    import(store, vec![source.input().map_err(unread)?], how, feedback)
}

/// Imports tables in one step, either all of them or none. Errors contain the full names of the
/// inputs. The audit log contains only the last part of each name.
pub fn import(
    store: &dyn Bulk,
    inputs: Vec<Input<'_>>,
    how: Import<'_>,
    Feedback { progress, bad_line }: Feedback<'_>,
) -> Result<Imported, ImportFileError> {
    let names: Vec<PathBuf> = inputs.iter().map(|input| input.name.to_owned()).collect();
    let shown: Vec<String> = names.iter().map(|path| values::visible(&path.to_string_lossy())).collect();
    let before = how.dry_run.then(|| store.import_activity()).transpose()?;
    let mut tables = Tables::new(inputs, how, store.spelled_macs()?);
    let progress = RefCell::new(progress);
    let (places, unreadable) = (RefCell::new(Places::default()), Cell::new(None));
    let (mut failed, summary) = (None, RefCell::new(Summary::default()));
    let mut items = std::iter::from_fn(|| {
        let row = tables.next();
        tables.report(row.is_none(), *progress.borrow_mut());
        let row = row?;
        places.borrow_mut().push(tables.place());
        let mut row = row.map_err(|error| {
            unreadable.set(Some(error));
            Unreadable
        });
        if let Ok(row) = &mut row
            && let Err(error) = tables.recognize(row, store)
        {
            failed = Some(error);
            return Some(Err(Unreadable));
        }
        if let Ok(row) = &row {
            summary.borrow_mut().add(row);
        }
        Some(row)
    });
    let mut bad_lines = BadFiles::new(&names, bad_line);
    let mut repeated: Vec<Noted> = names.iter().map(|_| Noted::default()).collect();
    let mut broken = None;
    let id = (!how.dry_run).then(|| store.new_import()).transpose()?;
    let file = file_names(&names);
    let report = |stage, done, all| (progress.borrow_mut())(stage, done, all);
    let job = ImportJob { dry_run: how.dry_run, id, progress: &report, ..ImportJob::new(how.by, &file) };
    let outcome = store.import(job, &mut items, &mut |at, rejection| {
        let places = places.borrow();
        let (file, line) = places.of(at);
        let earlier = |first| match places.of(first) {
            (other, line) if other == file => format!("line {line}"),
            (other, line) => format!("line {line} of {}", shown.get(other).map_or("", String::as_str)),
        };
        let fault = |column, reason| LineError { line, column: Some(column), reason };
        let error = match rejection {
            Rejection::Unreadable => match unreadable.take() {
                Some(ReadError::Line(error)) => error,
                Some(ReadError::Io(error)) => return broken = Some((file, error)),
                None => return,
            },
            Rejection::Conflict(Conflict { column, reason }) => fault(column, reason),
            Rejection::Differs { device, first } => {
                let device = values::device(&device);
                fault("deviceId", format!("{device} is already in {}, with other values", earlier(first)))
            }
            Rejection::SameIdentity { first } => {
                fault("pskIdentity", format!("this identity is already in {}", earlier(first)))
            }
            Rejection::Repeated { enrollment, product_key, .. } => {
                summary.borrow_mut().remove(&enrollment, &product_key);
                return repeated.get_mut(file).map_or((), |repeated| repeated.note(line));
            }
        };
        bad_lines.push(file, error);
    });
    let files = bad_lines.complete();
    if let Some(error) = failed {
        return Err(error.into());
    }
    match (outcome, broken) {
        (Ok(report), _) => {
            let mut remarks = Vec::new();
            for (file, mut observed) in tables.remarks {
                observed.repeated = repeated.get_mut(file).map(std::mem::take).unwrap_or_default();
                // A remark names its file only if there are several files.
                let name = shown.get(file).filter(|_| names.len() > 1);
                let named = |remark: String| match name {
                    Some(name) => format!("{name}: {remark}"),
                    None => remark,
                };
                remarks.extend(observed.sentences().into_iter().map(named));
            }
            remarks.extend(moved(report.moved));
            remarks.extend(lost_keys(report.lost_keys));
            if let Some(before) = before
                && (before.is_unfinished || store.import_activity()? != before)
            {
                remarks.push(NOT_AT_REST.to_owned());
            }
            let can_be_undone = report.added + report.changed > 0 && report.lost_keys == 0;
            let id = id.filter(|_| can_be_undone);
            Ok(Imported { id, report, remarks, summary: summary.into_inner() })
        }
        (Err(ImportError::Store(error)), _) => Err(error.into()),
        (Err(ImportError::Rejected(_)), Some((file, error))) => {
            Err(ImportFileError::Read { path: names.into_iter().nth(file).unwrap_or_default(), error })
        }
        (Err(ImportError::Rejected(_)), None) => {
            let files = std::iter::zip(names, files).map(|(path, lines)| BadFile { path, lines });
            Err(ImportFileError::Lines { files: files.filter(|file| file.lines.count() > 0).collect() })
        }
    }
}

/// Places of rows: for the index of each row, its file (from 0) and its line (from 1). Rows on
/// consecutive lines share an entry, so that files of many million lines fit in memory.
#[derive(Default)]
struct Places {
    /// Index, file and line of the first row of each entry.
    entries: Vec<(u64, usize, u64)>,
    rows: u64,
}

impl Places {
    fn push(&mut self, (file, line): (usize, u64)) {
        if self.rows == 0 || self.of(self.rows) != (file, line) {
            self.entries.push((self.rows, file, line));
        }
        self.rows += 1;
    }

    fn of(&self, at: u64) -> (usize, u64) {
        let next = self.entries.partition_point(|(first, ..)| *first <= at);
        let entry = next.checked_sub(1).and_then(|index| self.entries.get(index));
        entry.map_or((0, 0), |(first, file, line)| (*file, line + (at - first)))
    }
}

/// Maximum number of bad lines that are sorted by their place. If there are more, the unreadable
/// lines come before the lines that contradict the table or one another.
const ORDERED: usize = 100_000;

/// Bad lines of all files.
struct BadFiles<'a> {
    names: &'a [PathBuf],
    bad_line: &'a mut dyn FnMut(&Path, &LineError),
    files: Vec<BadLines>,
    waiting: Vec<(usize, LineError)>,
}

impl<'a> BadFiles<'a> {
    fn new(names: &'a [PathBuf], bad_line: &'a mut dyn FnMut(&Path, &LineError)) -> Self {
        let files = names.iter().map(|_| BadLines::default()).collect();
        Self { names, bad_line, files, waiting: Vec::new() }
    }

    fn push(&mut self, file: usize, error: LineError) {
        self.waiting.push((file, error));
        if self.waiting.len() >= ORDERED {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        self.waiting.sort_by_key(|(file, error)| (*file, error.line));
        for (file, error) in self.waiting.drain(..) {
            if let (Some(name), Some(lines)) = (self.names.get(file), self.files.get_mut(file)) {
                (self.bad_line)(name, &error);
                lines.push(error);
            }
        }
    }

    fn complete(mut self) -> Vec<BadLines> {
        self.pass_on();
        self.files
    }
}

/// The rows of several inputs, one after another.
struct Tables<'a> {
    inputs: std::vec::IntoIter<Input<'a>>,
    how: Import<'a>,
    /// Number of inputs that were begun.
    begun: usize,
    /// MAC addresses that the table has in an unusual spelling only.
    spelled: HashSet<DeviceId>,
    current: Option<Rows<'a, Box<dyn Read + 'a>>>,
    /// Observations about each input that was read completely, with the number of the input.
    remarks: Vec<(usize, Remarks)>,
    /// Size of the inputs that were read completely (`bytes`), and of all inputs (`size`), in
    /// bytes.
    bytes: u64,
    size: u64,
    /// Line at which progress was last reported.
    reported: u64,
}

impl<'a> Tables<'a> {
    fn new(inputs: Vec<Input<'a>>, how: Import<'a>, spelled: HashSet<DeviceId>) -> Self {
        Self {
            spelled,
            size: inputs.iter().map(|input| input.size).sum(),
            inputs: inputs.into_iter(),
            how,
            begun: 0,
            current: None,
            remarks: Vec::new(),
            bytes: 0,
            reported: 0,
        }
    }

    /// Returns the next row. When an input has no more rows, continues with the next input.
    fn next(&mut self) -> Option<Result<ImportRow, ReadError>> {
        loop {
            if let Some(rows) = &mut self.current {
                if let Some(row) = rows.next() {
                    return Some(row);
                }
                self.remarks.push((self.begun.saturating_sub(1), rows.take_remarks()));
                self.bytes += rows.bytes();
                (self.current, self.reported) = (None, 0);
            }
            let Input { is_stream, reader, .. } = self.inputs.next()?;
            self.begun += 1;
            let Import { enrollments, ignores_unknown, .. } = self.how;
            match read(reader, enrollments, ignores_unknown, is_stream) {
                Ok(rows) => self.current = Some(rows),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Returns the place of the last row: the number of its input, from 0, and its line.
    fn place(&self) -> (usize, u64) {
        (self.begun.saturating_sub(1), self.current.as_ref().map_or(0, Rows::line))
    }

    fn report(&mut self, is_last: bool, progress: &mut dyn FnMut(ImportStage, u64, u64)) {
        let (line, bytes) = self.current.as_ref().map_or((0, 0), |rows| (rows.line(), rows.bytes()));
        if is_last || line >= self.reported + PROGRESS_EVERY {
            self.reported = line;
            progress(ImportStage::Reading, self.bytes + bytes, self.size);
        }
    }

    /// Replaces the row's device ID with the ID under which the table has the device. The two IDs
    /// differ if an earlier version stored the device's MAC address as a serial number.
    fn recognize(&self, row: &mut ImportRow, store: &dyn Bulk) -> Result<(), StoreError> {
        let asked = self.current.as_ref().and_then(Rows::asked);
        if let Some(asked) = asked.filter(|_| self.spelled.contains(&row.device))
            && let Some(id) = store.known_as(asked)?
        {
            row.device = id;
        }
        Ok(())
    }
}

/// Returns the names of files for the audit log.
fn file_names(names: &[PathBuf]) -> String {
    let name = |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut text = names.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

/// Returns a sentence about the number of devices that were in another enrollment.
fn moved(count: u64) -> Option<String> {
    match count {
        0 => None,
        1 => Some("1 device is in the table with another enrollment, and moves to the one of its row".into()),
        _ => Some(format!(
            "{count} devices are in the table with another enrollment, and move to the one of their row"
        )),
    }
}

/// Returns a sentence about the number of devices that have lost their former key.
fn lost_keys(count: u64) -> Option<String> {
    let devices = if count == 1 { "device gets" } else { "devices get" };
    (count > 0).then(|| {
        format!(
            "{count} {devices} another key, or none; former keys are not kept, so this import cannot be undone"
        )
    })
}

/// Reads the device IDs of a table in any form that an import accepts. Returns the IDs, and remarks
/// for the operator. Ignores other columns. Fails if a line is bad.
pub fn device_ids(
    Input { name: path, is_stream, reader, .. }: Input<'_>,
) -> Result<(Vec<AskedId>, Vec<String>), ImportFileError> {
    let enrollments = Enrollments::new([]);
    let (mut ids, mut lines, mut remarks) = (Vec::new(), BadLines::default(), Vec::new());
    let unread = |error: io::Error| ImportFileError::Read { path: path.to_owned(), error };
    match read(reader, &enrollments, true, is_stream) {
        Ok(mut rows) => {
            while let Some(id) = rows.next_id() {
                match id {
                    Ok(id) => ids.push(id),
                    Err(ReadError::Line(error)) => lines.push(error),
                    Err(ReadError::Io(error)) => return Err(unread(error)),
                }
            }
            remarks = rows.remarks();
        }
        Err(ReadError::Line(error)) => lines.push(error),
        Err(ReadError::Io(error)) => return Err(unread(error)),
    }
    match lines.count() {
        0 => Ok((ids, remarks)),
        _ => Err(ImportFileError::Lines { files: vec![BadFile { path: path.to_owned(), lines }] }),
    }
}
