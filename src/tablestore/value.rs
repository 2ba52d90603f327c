//! Values, keys and rows as callers see them. This module does not know how they are encoded. A column
//! may hold a secret, so `Debug` shows no value of a column, and texts and blobs are wiped when
//! dropped.

use std::fmt;

use zeroize::Zeroizing;

/// Value of a column.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `INTEGER`.
    Integer(i64),
    /// `DOUBLE`.
    Double(f64),
    /// `BOOLEAN`.
    Boolean(bool),
    /// `STRING`, at most 2 MiB.
    Text(Zeroizing<String>),
    /// `BLOB`, at most 2 MiB.
    Blob(Zeroizing<Vec<u8>>),
}

impl Value {
    /// Returns the text of a `STRING`.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the number of an `INTEGER`.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Integer(_) => "Integer(…)",
            Self::Double(_) => "Double(…)",
            Self::Boolean(_) => "Boolean(…)",
            Self::Text(_) => "Text(…)",
            Self::Blob(_) => "Blob(…)",
        })
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Double(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Boolean(truth)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Zeroizing::new(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Zeroizing::new(text))
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(Zeroizing::new(bytes))
    }
}

/// Value of a key column. Values of one type are in the order of the table: numbers by size, texts
/// and blobs by bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyValue {
    /// `INTEGER`.
    Integer(i64),
    /// `STRING`, at most 1 KiB.
    Text(String),
    /// `BINARY`, at most 1 KiB.
    Blob(Vec<u8>),
}

impl From<i64> for KeyValue {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<&str> for KeyValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for KeyValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u8>> for KeyValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(bytes)
    }
}

/// Primary key of a row: 1 to 4 columns with their values, in the order of the table's schema.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Vec<(String, KeyValue)>);

impl Key {
    /// Makes a key of one column.
    pub fn of(name: impl Into<String>, value: impl Into<KeyValue>) -> Self {
        Self(Vec::new()).and(name, value)
    }

    /// Adds a column.
    #[must_use]
    pub fn and(mut self, name: impl Into<String>, value: impl Into<KeyValue>) -> Self {
        self.0.push((name.into(), value.into()));
        self
    }

    /// Returns the value of a column.
    pub fn get(&self, name: &str) -> Option<&KeyValue> {
        self.0.iter().find(|(column, _)| column == name).map(|(_, value)| value)
    }
}

/// Value of a key column at an end of a range. The order of bounds is that of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// Before every value.
    Minimum,
    /// A value.
    At(KeyValue),
    /// After every value.
    Maximum,
}

/// End of a range: every key column of the table, in the order of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End(pub Vec<(String, Bound)>);

impl End {
    /// Makes the end before all rows of a table with these key columns.
    pub fn minimum(columns: &[&str]) -> Self {
        Self(columns.iter().map(|&name| (name.to_owned(), Bound::Minimum)).collect())
    }

    /// Makes the end after all rows of a table with these key columns.
    pub fn maximum(columns: &[&str]) -> Self {
        Self(columns.iter().map(|&name| (name.to_owned(), Bound::Maximum)).collect())
    }
}

impl From<Key> for End {
    fn from(key: Key) -> Self {
        Self(key.0.into_iter().map(|(name, value)| (name, Bound::At(value))).collect())
    }
}

/// A column of a row that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name of the column.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// Version of the value: milliseconds since 1970, unless its writer has chosen another number.
    pub version: i64,
}

/// A row that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Primary key. An answer may leave it out if only certain columns were asked for.
    pub key: Key,
    /// Columns, sorted by name.
    pub columns: Vec<Column>,
}

impl Row {
    /// Returns the value of a column, the newest if there are several versions.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let versions = self.columns.iter().filter(|column| column.name == name);
        versions.max_by_key(|column| column.version).map(|column| &column.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_a_column_is_printed() {
        let columns =
            ["hush", "hush"].map(|text| Column { name: "a".into(), value: text.into(), version: 1 });
        let row = Row { key: Key::of("deviceId", "SN1"), columns: columns.into() };
        let values: [Value; 3] = [31_337.into(), 31_337.5.into(), b"31337".to_vec().into()];
        let printed = format!("{row:?} {values:?}");
        assert!(!printed.contains("hush") && !printed.contains("31337"), "{printed}");
        assert!(!printed.contains("51, 49"), "{printed}");
    }

    #[test]
    fn the_newest_version_of_a_column_is_its_value() {
        let column = |value: i64, version| Column { name: "a".into(), value: value.into(), version };
        let row = Row { key: Key::of("id", 1), columns: vec![column(1, 10), column(2, 30), column(3, 20)] };
        assert_eq!(row.get("a").and_then(Value::as_integer), Some(2));
        assert_eq!(row.get("b"), None);
    }
}
