//! One table of the stand-in: rows with versions of their columns, conditions, and sizes. It knows
//! no messages of requests and no HTTP; the time is an argument.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::Refusal;
use crate::tablestore::{
    Bound, Comparator, Direction, Filter, Key, KeyType, KeyValue, RowExpectation, Schema, Value,
    plain_buffer::{Cell, Change, Variant, WireRow},
};

/// Maximum size of the value of a key column, in bytes.
const MAX_KEY_VALUE: usize = 1024;
/// Maximum size of the value of a column, in bytes.
const MAX_VALUE: usize = 2 * 1024 * 1024;
/// Maximum size of a row that is written, in bytes.
const MAX_ROW: usize = 4 * 1024 * 1024;
/// Maximum number of columns of one write.
const MAX_COLUMNS: usize = 1024;
/// Maximum size of the rows of a page, in bytes.
pub(super) const MAX_PAGE: usize = 4 * 1024 * 1024;
/// Size of a capacity unit, in bytes.
const UNIT: usize = 4096;

/// Values of a key in the order of the schema. All are [`Bound::At`].
pub(super) type StoredKey = Vec<Bound>;
/// Versions of each column, newest last.
type StoredRow = BTreeMap<String, BTreeMap<i64, Value>>;

/// A table with its rows.
pub(super) struct Table {
    pub schema: Schema,
    /// Time of creation in milliseconds since 1970.
    pub created: i64,
    rows: BTreeMap<StoredKey, StoredRow>,
}

/// Parts of each row that a read returns.
#[derive(Default)]
pub(super) struct Selection {
    /// Names of columns; all if empty.
    pub columns: BTreeSet<String>,
    pub max_versions: usize,
    /// Range of versions in milliseconds: includes the first, but not the second.
    pub times: Option<(i64, i64)>,
    pub filter: Option<Filter>,
}

/// Kind of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Update,
    Delete,
}

/// Condition of a write.
pub(super) struct Expectation {
    pub row: RowExpectation,
    pub columns: Option<Filter>,
}

/// Content of the answer to a write.
pub(super) enum Returning {
    Nothing,
    Key,
    After(Vec<String>),
}

/// Rows of a page, with their size.
pub(super) struct Scan {
    pub rows: Vec<WireRow>,
    /// Size of what was read, which is more than what is returned if there is a filter.
    pub size: usize,
    pub next: Option<StoredKey>,
}

/// Returns the number of capacity units for a size.
pub(super) fn units(size: usize) -> u64 {
    size.div_ceil(UNIT).max(1) as u64
}

impl Table {
    pub fn new(schema: Schema, created: i64) -> Self {
        Self { schema, created, rows: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Reads the key of a row, which must fit the schema.
    pub fn key(&self, cells: &[Cell]) -> Result<StoredKey, Refusal> {
        let key = self.end(cells)?;
        match key.iter().all(|bound| matches!(bound, Bound::At(_))) {
            true => Ok(key),
            false => Err(Refusal::new(400, "OTSInvalidPK", "INF_MIN and INF_MAX are for ranges only.")),
        }
    }

    /// Reads an end of a range, which must fit the schema.
    pub fn end(&self, cells: &[Cell]) -> Result<StoredKey, Refusal> {
        let wrong = |what: String| Refusal::new(400, "OTSInvalidPK", what);
        let schema = &self.schema.key;
        if cells.len() != schema.len() {
            let message = format!("Validate PK size fail. Input: {}, Meta: {}.", cells.len(), schema.len());
            return Err(wrong(message));
        }
        let bound = |(cell, (name, kind)): (&Cell, &(String, KeyType))| {
            if cell.name != *name {
                return Err(wrong(format!("Validate PK name fail. Input: {}, Meta: {name}.", cell.name)));
            }
            let (bound, size) = match (&cell.variant, kind) {
                (Some(Variant::Minimum), _) => (Bound::Minimum, 0),
                (Some(Variant::Maximum), _) => (Bound::Maximum, 0),
                (Some(Variant::Value(Value::Integer(number))), KeyType::Integer) => {
                    (Bound::At(KeyValue::Integer(*number)), 8)
                }
                (Some(Variant::Value(Value::Text(text))), KeyType::Text) => {
                    (Bound::At(KeyValue::Text(text.to_string())), text.len())
                }
                (Some(Variant::Value(Value::Blob(bytes))), KeyType::Blob) => {
                    (Bound::At(KeyValue::Blob(bytes.to_vec())), bytes.len())
                }
                _ => return Err(wrong(format!("Validate PK type fail. Column: {name}."))),
            };
            match size > MAX_KEY_VALUE {
                true => Err(Refusal::invalid(format!(
                    "The length of primary key column '{name}' exceeds the limit."
                ))),
                false => Ok(bound),
            }
        };
        cells.iter().zip(schema).map(bound).collect()
    }

    /// Removes what is older than `time_to_live`. A row whose columns are all too old is removed.
    fn expire(&mut self, key: &StoredKey, now: i64) {
        let life = i64::from(self.schema.options.time_to_live.max(0));
        let Some(row) = self.rows.get_mut(key).filter(|row| life > 0 && !row.is_empty()) else { return };
        for versions in row.values_mut() {
            versions.retain(|version, _| version.saturating_add(life.saturating_mul(1000)) > now);
        }
        row.retain(|_, versions| !versions.is_empty());
        if row.is_empty() {
            self.rows.remove(key);
        }
    }

    /// Reads a row. Returns it, if it exists and is selected, with the size of what was read.
    pub fn read(&mut self, key: &StoredKey, selection: &Selection, now: i64) -> (Option<WireRow>, usize) {
        self.expire(key, now);
        match self.rows.get(key) {
            Some(row) => (self.selected(key, row, selection), self.size(key, row)),
            None => (None, 0),
        }
    }

    /// Reads rows from `start` (inclusive) to `end` (exclusive).
    pub fn scan(
        &mut self,
        direction: Direction,
        (start, end): (&StoredKey, &StoredKey),
        limit: usize,
        selection: &Selection,
        now: i64,
    ) -> Result<Scan, Refusal> {
        use std::ops::Bound::{Excluded, Included};
        let order = start.cmp(end);
        let (bounds, is_legal) = match direction {
            Direction::Forward => ((Included(start), Excluded(end)), order != Ordering::Greater),
            Direction::Backward => ((Excluded(end), Included(start)), order != Ordering::Less),
        };
        let mut scan = Scan { rows: Vec::new(), size: 0, next: None };
        if !is_legal {
            return Err(Refusal::invalid(
                "Begin key must less than end key in FORWARD, and more in BACKWARD.",
            ));
        }
        if order == Ordering::Equal {
            return Ok(scan);
        }
        if self.schema.options.time_to_live > 0 {
            let keys: Vec<_> = self.rows.range::<StoredKey, _>(bounds).map(|(key, _)| key.clone()).collect();
            keys.iter().for_each(|key| self.expire(key, now));
        }
        let mut rows = self.rows.range::<StoredKey, _>(bounds);
        let mut read = 0;
        while let Some((key, row)) = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        } {
            let size = self.size(key, row);
            if read == limit || (read > 0 && scan.size + size > MAX_PAGE) {
                scan.next = Some(key.clone());
                break;
            }
            read += 1;
            scan.size += size;
            scan.rows.extend(self.selected(key, row, selection));
        }
        Ok(scan)
    }

    /// Returns the part of a row that a read selects; `None` if it selects nothing.
    fn selected(&self, key: &StoredKey, row: &StoredRow, selection: &Selection) -> Option<WireRow> {
        let is_named = |name: &String| selection.columns.is_empty() || selection.columns.contains(name);
        let is_timely =
            |version: i64| selection.times.is_none_or(|(from, before)| (from..before).contains(&version));
        let mut columns = Vec::new();
        for (name, versions) in row.iter().filter(|(name, _)| is_named(name)) {
            let newest = versions.iter().rev().filter(|(version, _)| is_timely(**version));
            columns.extend(newest.take(selection.max_versions).map(|(version, value)| Cell {
                version: Some(*version),
                ..Cell::new(name, Variant::Value(value.clone()))
            }));
        }
        let names_key = self.schema.key.iter().any(|(name, _)| selection.columns.contains(name));
        let is_there = selection.columns.is_empty() || names_key || !columns.is_empty();
        let passes = selection.filter.as_ref().is_none_or(|filter| is_met(filter, row));
        (is_there && passes).then(|| WireRow { key: self.key_cells(key), columns, deleted: false })
    }

    /// Returns the cells of a key.
    pub fn key_cells(&self, key: &StoredKey) -> Vec<Cell> {
        let value = |bound: &Bound| match bound {
            Bound::Minimum => Variant::Minimum,
            Bound::Maximum => Variant::Maximum,
            Bound::At(KeyValue::Integer(number)) => Variant::Value((*number).into()),
            Bound::At(KeyValue::Text(text)) => Variant::Value(text.as_str().into()),
            Bound::At(KeyValue::Blob(bytes)) => Variant::Value(bytes.clone().into()),
        };
        self.schema.key.iter().zip(key).map(|((name, _), bound)| Cell::new(name, value(bound))).collect()
    }

    fn size(&self, key: &StoredKey, row: &StoredRow) -> usize {
        let columns = row
            .iter()
            .flat_map(|(name, versions)| versions.values().map(move |value| name.len() + value_size(value)));
        self.key_size(key) + columns.sum::<usize>()
    }

    fn key_size(&self, key: &StoredKey) -> usize {
        let value = |bound: &Bound| match bound {
            Bound::At(KeyValue::Text(text)) => text.len(),
            Bound::At(KeyValue::Blob(bytes)) => bytes.len(),
            Bound::At(KeyValue::Integer(_)) | Bound::Minimum | Bound::Maximum => 8,
        };
        self.schema.key.iter().zip(key).map(|((name, _), bound)| name.len() + value(bound)).sum()
    }

    /// Checks a write without carrying it out. Returns the key of its row and the size of the write.
    pub fn check(&self, kind: Kind, row: &WireRow, now: i64) -> Result<(StoredKey, usize), Refusal> {
        let key = self.key(&row.key)?;
        match (kind, row.deleted, row.columns.len()) {
            (Kind::Delete, false, _) => return Err(Refusal::invalid("missing RowDeleteMarker")),
            (Kind::Put | Kind::Update, true, _) => {
                return Err(Refusal::invalid("unexpected RowDeleteMarker"));
            }
            (Kind::Delete, true, 1..) => return Err(Refusal::invalid("unexpected cells in request")),
            (Kind::Update, _, 0) => return Err(Refusal::invalid("missing cells in request")),
            (_, _, columns) if columns > MAX_COLUMNS => {
                let message = format!("The number of columns exceeds the limit: {MAX_COLUMNS}.");
                return Err(Refusal::new(400, "OTSOutOfColumnCountLimit", message));
            }
            _ => {}
        }
        let mut size = self.key_size(&key);
        for cell in &row.columns {
            self.check_cell(kind, cell, now)?;
            size += cell.name.len();
            if let Some(Variant::Value(value)) = &cell.variant {
                size += value_size(value);
            }
        }
        match size > MAX_ROW {
            true => Err(Refusal::new(
                400,
                "OTSOutOfRowSizeLimit",
                "The total data size of columns in one row exceeds the limit.",
            )),
            false => Ok((key, size)),
        }
    }

    fn check_cell(&self, kind: Kind, cell: &Cell, now: i64) -> Result<(), Refusal> {
        let name = &cell.name;
        if name.is_empty() || name.len() > 255 || self.schema.key.iter().any(|(key, _)| key == name) {
            return Err(Refusal::invalid(format!("Invalid column name: '{name}'.")));
        }
        let is_legal = match (cell.change, &cell.variant, cell.version) {
            (None, Some(Variant::Value(value)), _) => {
                if value_size(value) > MAX_VALUE {
                    let message = format!("The length of attribute column: '{name}' exceeds the limit.");
                    return Err(Refusal::invalid(message));
                }
                true
            }
            (Some(Change::DeleteAll), None, None) | (Some(Change::DeleteVersion), None, Some(_)) => {
                kind == Kind::Update
            }
            (Some(Change::Increment), Some(Variant::Value(Value::Integer(_))), None) => kind == Kind::Update,
            _ => false,
        };
        if !is_legal {
            return Err(Refusal::invalid(format!("Invalid Column({name}).")));
        }
        let deviation = self.schema.options.version_deviation.saturating_mul(1000);
        let is_put = cell.change.is_none();
        match cell.version.is_some_and(|version| is_put && version.abs_diff(now) > deviation.unsigned_abs()) {
            true => Err(Refusal::invalid(format!("The version of column '{name}' is too far from now."))),
            false => Ok(()),
        }
    }

    /// Returns whether the expectations of a write are met.
    pub fn is_met(&mut self, key: &StoredKey, expectation: &Expectation, now: i64) -> bool {
        self.expire(key, now);
        let row = self.rows.get(key);
        let row_is_right = match expectation.row {
            RowExpectation::Ignore => true,
            RowExpectation::Exists => row.is_some(),
            RowExpectation::Absent => row.is_none(),
        };
        let nothing = StoredRow::new();
        let met = |filter| is_met(filter, row.unwrap_or(&nothing));
        row_is_right && expectation.columns.as_ref().is_none_or(met)
    }

    /// Carries out a write that was checked. Returns the row of the answer.
    pub fn write(
        &mut self,
        kind: Kind,
        key: StoredKey,
        cells: Vec<Cell>,
        returning: &Returning,
        now: i64,
    ) -> Result<Option<WireRow>, Refusal> {
        let max_versions = usize::try_from(self.schema.options.max_versions).unwrap_or(1).max(1);
        if kind == Kind::Delete {
            self.rows.remove(&key);
            return Ok(self.returned(&key, returning));
        }
        // The row is replaced only at the end, so that a cell that is refused changes nothing.
        let mut row = match kind {
            Kind::Update => self.rows.get(&key).cloned().unwrap_or_default(),
            _ => StoredRow::new(),
        };
        for cell in cells {
            let versions = row.entry(cell.name.clone()).or_default();
            match (cell.change, cell.variant) {
                (None, Some(Variant::Value(value))) => {
                    versions.insert(cell.version.unwrap_or(now), value);
                }
                (Some(Change::Increment), Some(Variant::Value(Value::Integer(by)))) => {
                    let before = match versions.last_key_value() {
                        None => 0,
                        Some((_, Value::Integer(number))) => *number,
                        Some(_) => {
                            let message = format!("Column '{}' is not an INTEGER.", cell.name);
                            return Err(Refusal::invalid(message));
                        }
                    };
                    versions.insert(now, before.wrapping_add(by).into());
                }
                (Some(Change::DeleteVersion), _) => {
                    cell.version.map(|version| versions.remove(&version));
                }
                _ => versions.clear(),
            }
            while versions.len() > max_versions {
                versions.pop_first();
            }
        }
        row.retain(|_, versions| !versions.is_empty());
        self.rows.insert(key.clone(), row);
        Ok(self.returned(&key, returning))
    }

    fn returned(&self, key: &StoredKey, returning: &Returning) -> Option<WireRow> {
        let cells = self.key_cells(key);
        match returning {
            Returning::Nothing => None,
            Returning::Key => Some(WireRow { key: cells, ..WireRow::default() }),
            Returning::After(names) => {
                let row = self.rows.get(key)?;
                let newest = |name: &String| {
                    let (version, value) = row.get(name)?.last_key_value()?;
                    let cell = Cell::new(name, Variant::Value(value.clone()));
                    Some(Cell { version: Some(*version), ..cell })
                };
                let columns = names.iter().filter_map(newest).collect();
                Some(WireRow { key: cells, columns, deleted: false })
            }
        }
    }

    /// Returns all rows with all versions, for the state file.
    pub fn dump(&self) -> impl Iterator<Item = WireRow> + '_ {
        let all = Selection { max_versions: usize::MAX, ..Selection::default() };
        self.rows.iter().filter_map(move |(key, row)| self.selected(key, row, &all))
    }

    /// Adds a row from the state file.
    pub fn restore(&mut self, row: WireRow) -> Result<(), Refusal> {
        let key = self.key(&row.key)?;
        let mut stored = StoredRow::new();
        for cell in row.columns {
            if let (Some(Variant::Value(value)), Some(version)) = (cell.variant, cell.version) {
                stored.entry(cell.name).or_default().insert(version, value);
            }
        }
        self.rows.insert(key, stored);
        Ok(())
    }

    /// Returns a row as the client would read it, for access without a call.
    pub fn peek(&self, key: &Key) -> Option<WireRow> {
        let key: StoredKey = key.0.iter().map(|(_, value)| Bound::At(value.clone())).collect();
        let all = Selection { max_versions: 1, ..Selection::default() };
        self.rows.get(&key).and_then(|row| self.selected(&key, row, &all))
    }
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Integer(_) | Value::Double(_) => 8,
        Value::Boolean(_) => 1,
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
    }
}

/// Evaluates a condition on the newest versions of a row's columns.
fn is_met(filter: &Filter, row: &StoredRow) -> bool {
    match filter {
        Filter::Compare { column, comparator, value, if_missing } => {
            let found = row.get(column).and_then(|versions| versions.last_key_value());
            found.map_or(*if_missing, |(_, found)| compares(found, *comparator, value))
        }
        Filter::Not(inner) => !is_met(inner, row),
        Filter::All(parts) => parts.iter().all(|part| is_met(part, row)),
        Filter::Any(parts) => parts.iter().any(|part| is_met(part, row)),
    }
}

/// Compares a column with a value. Values of different types are unequal, and neither is greater; the
/// answer of the service to such a comparison is not known (docs/tablestore.md).
fn compares(found: &Value, comparator: Comparator, value: &Value) -> bool {
    let order = match (found, value) {
        (Value::Integer(a), Value::Integer(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Boolean(a), Value::Boolean(b)) => Some(a.cmp(b)),
        (Value::Text(a), Value::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Value::Blob(a), Value::Blob(b)) => Some(a.as_slice().cmp(b.as_slice())),
        _ => None,
    };
    match comparator {
        Comparator::NotEqual => order != Some(Ordering::Equal),
        Comparator::Equal => order == Some(Ordering::Equal),
        Comparator::Greater => order == Some(Ordering::Greater),
        Comparator::AtLeast => order.is_some_and(Ordering::is_ge),
        Comparator::Less => order == Some(Ordering::Less),
        Comparator::AtMost => order.is_some_and(Ordering::is_le),
    }
}
