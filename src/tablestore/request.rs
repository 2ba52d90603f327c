//! Reads, writes and ranges as callers build them, and their form in messages. Also turns rows of
//! answers into [`Row`]s.

use super::{
    condition::{Condition, Filter},
    message,
    plain_buffer::{self, Cell, Change, Malformed, Variant, WireRow},
    value::{Bound, Column, End, Key, KeyValue, Row, Value},
};

/// Request for the newest version of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// Table.
    pub table: String,
    /// Primary key of the row.
    pub key: Key,
    /// Names of the columns that are returned, at most 128; all of them if empty. A row that has none
    /// of them reads as absent, so name a key column too.
    pub columns: Vec<String>,
}

impl Read {
    /// Makes a request for all columns of a row.
    pub fn new(table: impl Into<String>, key: Key) -> Self {
        Self { table: table.into(), key, columns: Vec::new() }
    }

    /// Limits the columns that are returned.
    #[must_use]
    pub fn columns(mut self, columns: &[&str]) -> Self {
        self.columns = columns.iter().map(|&name| name.to_owned()).collect();
        self
    }

    pub(super) fn to_message(&self) -> message::GetRowRequest {
        message::GetRowRequest {
            table_name: self.table.clone(),
            primary_key: key_buffer(&self.key),
            columns_to_get: self.columns.clone(),
            max_versions: Some(1),
            ..message::GetRowRequest::default()
        }
    }
}

/// Change of one column of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// Sets the column.
    Put(String, Value),
    /// Removes the column.
    Remove(String),
    /// Removes one version of the column.
    RemoveVersion(String, i64),
    /// Adds a number to the column, which counts as 0 if it is missing.
    Increment(String, i64),
}

/// Kind of a write.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteKind {
    /// Replaces the whole row.
    Put(Vec<(String, Value)>),
    /// Changes columns of the row. Creates the row if it does not exist, unless the condition says
    /// otherwise.
    Update(Vec<Update>),
    /// Deletes the row.
    Delete,
}

/// Content of the answer to a write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Returns {
    /// Nothing.
    #[default]
    Nothing,
    /// The primary key.
    Key,
    /// These columns as they are after the write; meant for [`Update::Increment`].
    After(Vec<String>),
}

/// Write of one row. The condition is checked in the same step.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Table.
    pub table: String,
    /// Primary key of the row.
    pub key: Key,
    /// Kind of the write, with its values.
    pub kind: WriteKind,
    /// Condition.
    pub condition: Condition,
    /// Content of the answer.
    pub returns: Returns,
}

impl Write {
    fn new(table: impl Into<String>, key: Key, kind: WriteKind) -> Self {
        let (condition, returns) = (Condition::default(), Returns::default());
        Self { table: table.into(), key, kind, condition, returns }
    }

    /// Makes a write that replaces a row.
    pub fn put<N: Into<String>>(
        table: impl Into<String>,
        key: Key,
        columns: impl IntoIterator<Item = (N, Value)>,
    ) -> Self {
        let columns = columns.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Self::new(table, key, WriteKind::Put(columns))
    }

    /// Makes a write that changes columns of a row.
    pub fn update(table: impl Into<String>, key: Key, changes: Vec<Update>) -> Self {
        Self::new(table, key, WriteKind::Update(changes))
    }

    /// Makes a write that deletes a row.
    pub fn delete(table: impl Into<String>, key: Key) -> Self {
        Self::new(table, key, WriteKind::Delete)
    }

    /// Sets the condition.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// Sets the content of the answer.
    #[must_use]
    pub fn returning(mut self, returns: Returns) -> Self {
        self.returns = returns;
        self
    }

    pub(super) fn to_message(&self) -> message::WriteRowRequest {
        message::WriteRowRequest {
            table_name: self.table.clone(),
            row: self.buffer(),
            condition: self.condition.to_message(),
            return_content: self.return_content(),
            transaction_id: None,
        }
    }

    pub(super) fn to_batch_message(&self) -> message::RowOfBatchWrite {
        let kind = match self.kind {
            WriteKind::Put(_) => 1,
            WriteKind::Update(_) => 2,
            WriteKind::Delete => 3,
        };
        message::RowOfBatchWrite {
            kind,
            row_change: self.buffer(),
            condition: self.condition.to_message(),
            return_content: self.return_content(),
        }
    }

    fn return_content(&self) -> Option<message::ReturnContent> {
        let (kind, return_column_names) = match &self.returns {
            Returns::Nothing => return None,
            Returns::Key => (1, Vec::new()),
            Returns::After(columns) => (2, columns.clone()),
        };
        Some(message::ReturnContent { return_type: Some(kind), return_column_names })
    }

    fn buffer(&self) -> Vec<u8> {
        let columns = match &self.kind {
            WriteKind::Put(columns) => {
                let cell = |(name, value): &(String, Value)| Cell::new(name, Variant::Value(value.clone()));
                columns.iter().map(cell).collect()
            }
            WriteKind::Update(changes) => changes.iter().map(update_cell).collect(),
            WriteKind::Delete => Vec::new(),
        };
        let deleted = matches!(self.kind, WriteKind::Delete);
        plain_buffer::encode(&[WireRow { key: key_cells(&self.key), columns, deleted }])
    }
}

fn update_cell(change: &Update) -> Cell {
    let cell =
        |name: &String, variant, change, version| Cell { name: name.clone(), variant, change, version };
    match change {
        Update::Put(name, value) => Cell::new(name, Variant::Value(value.clone())),
        Update::Remove(name) => cell(name, None, Some(Change::DeleteAll), None),
        Update::RemoveVersion(name, version) => cell(name, None, Some(Change::DeleteVersion), Some(*version)),
        Update::Increment(name, by) => {
            cell(name, Some(Variant::Value((*by).into())), Some(Change::Increment), None)
        }
    }
}

/// Order of the rows of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys; the start is above the end.
    Backward,
}

/// Request for a page of rows in the order of their keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    /// Table.
    pub table: String,
    /// Order of the rows.
    pub direction: Direction,
    /// First key, inclusive.
    pub start: End,
    /// Last key, exclusive.
    pub end: End,
    /// Names of the columns that are returned, as in [`Read::columns`].
    pub columns: Vec<String>,
    /// Maximum number of rows, at least 1; the service's own limits apply in any case.
    pub limit: Option<i32>,
    /// Condition that a row must meet to be returned. It makes answers smaller, but the service reads
    /// as many rows as without it.
    pub filter: Option<Filter>,
}

impl Range {
    /// Makes a request for all columns, without a filter.
    pub fn new(
        table: impl Into<String>,
        direction: Direction,
        start: impl Into<End>,
        end: impl Into<End>,
    ) -> Self {
        Self {
            table: table.into(),
            direction,
            start: start.into(),
            end: end.into(),
            columns: Vec::new(),
            limit: None,
            filter: None,
        }
    }

    /// Limits the number of rows of a page.
    #[must_use]
    pub fn limit(mut self, rows: i32) -> Self {
        self.limit = Some(rows);
        self
    }

    pub(super) fn to_message(&self) -> message::GetRangeRequest {
        message::GetRangeRequest {
            table_name: self.table.clone(),
            direction: match self.direction {
                Direction::Forward => 0,
                Direction::Backward => 1,
            },
            columns_to_get: self.columns.clone(),
            max_versions: Some(1),
            limit: self.limit,
            inclusive_start_primary_key: end_buffer(&self.start),
            exclusive_end_primary_key: end_buffer(&self.end),
            filter: self.filter.as_ref().map(Filter::encode),
            ..message::GetRangeRequest::default()
        }
    }
}

/// A page of a range.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Rows in the order of the range. A page may be empty although there are more rows.
    pub rows: Vec<Row>,
    /// Start of the next page; `None` at the end of the range.
    pub next: Option<Key>,
}

pub(super) fn key_buffer(key: &Key) -> Vec<u8> {
    plain_buffer::encode(&[WireRow { key: key_cells(key), ..WireRow::default() }])
}

fn key_cells(key: &Key) -> Vec<Cell> {
    key.0.iter().map(|(name, value)| Cell::new(name, key_variant(value))).collect()
}

fn key_variant(value: &KeyValue) -> Variant {
    Variant::Value(match value {
        KeyValue::Integer(number) => (*number).into(),
        KeyValue::Text(text) => text.as_str().into(),
        KeyValue::Blob(bytes) => bytes.clone().into(),
    })
}

fn end_buffer(end: &End) -> Vec<u8> {
    let variant = |bound: &Bound| match bound {
        Bound::Minimum => Variant::Minimum,
        Bound::At(value) => key_variant(value),
        Bound::Maximum => Variant::Maximum,
    };
    let key = end.0.iter().map(|(name, bound)| Cell::new(name, variant(bound))).collect();
    plain_buffer::encode(&[WireRow { key, ..WireRow::default() }])
}

/// Reads the row of an answer; `None` if the bytes are empty, which means that there is no such row.
pub(super) fn read_row(bytes: &[u8]) -> Result<Option<Row>, Malformed> {
    let mut rows = read_rows(bytes)?;
    match rows.len() {
        0 | 1 => Ok(rows.pop()),
        _ => Err(Malformed::TooMany),
    }
}

/// Reads the rows of an answer.
pub(super) fn read_rows(bytes: &[u8]) -> Result<Vec<Row>, Malformed> {
    plain_buffer::decode(bytes)?.into_iter().map(row).collect()
}

fn row(row: WireRow) -> Result<Row, Malformed> {
    if row.deleted {
        return Err(Malformed::Tag);
    }
    let column = |cell: Cell| match cell {
        Cell { name, variant: Some(Variant::Value(value)), change: None, version } => {
            // A counter's new value is returned without a version.
            Ok(Column { name, value, version: version.unwrap_or_default() })
        }
        _ => Err(Malformed::Variant),
    };
    let columns = row.columns.into_iter().map(column).collect::<Result<_, _>>()?;
    Ok(Row { key: read_key(row.key)?, columns })
}

/// Reads the key columns of a row.
pub(super) fn read_key(cells: Vec<Cell>) -> Result<Key, Malformed> {
    let value = |cell: Cell| {
        let value = match cell.variant {
            Some(Variant::Value(Value::Integer(number))) => KeyValue::Integer(number),
            Some(Variant::Value(Value::Text(text))) => KeyValue::Text(text.to_string()),
            Some(Variant::Value(Value::Blob(bytes))) => KeyValue::Blob(bytes.to_vec()),
            _ => return Err(Malformed::Variant),
        };
        Ok((cell.name, value))
    };
    cells.into_iter().map(value).collect::<Result<_, _>>().map(Key)
}
