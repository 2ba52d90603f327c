//! Tables: their key columns and options, and their form in messages.

use super::message;

/// Type of a key column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// `INTEGER`.
    Integer,
    /// `STRING`.
    Text,
    /// `BINARY`.
    Blob,
}

impl KeyType {
    const ALL: [Self; 3] = [Self::Integer, Self::Text, Self::Blob];

    /// Returns the number of the type in a message.
    pub fn code(self) -> i32 {
        match self {
            Self::Integer => 1,
            Self::Text => 2,
            Self::Blob => 3,
        }
    }

    /// Finds the type with this number.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// Options of a table that can be changed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Seconds until a value is removed; -1 keeps it forever.
    pub time_to_live: i32,
    /// Number of versions that are kept of a column.
    pub max_versions: i32,
    /// Maximum difference between the service's clock and a version that a writer chooses, in seconds.
    pub version_deviation: i64,
    /// Permission to use `UpdateRow`; `None` in a request for the service's default.
    pub allow_update: Option<bool>,
}

impl Default for Options {
    /// Makes options that keep one version forever.
    fn default() -> Self {
        Self { time_to_live: -1, max_versions: 1, version_deviation: 86_400, allow_update: None }
    }
}

impl Options {
    fn to_message(self) -> message::TableOptions {
        message::TableOptions {
            time_to_live: Some(self.time_to_live),
            max_versions: Some(self.max_versions),
            deviation_cell_version_in_sec: Some(self.version_deviation),
            allow_update: self.allow_update,
        }
    }

    pub(super) fn from_message(options: message::TableOptions) -> Self {
        let default = Self::default();
        Self {
            time_to_live: options.time_to_live.unwrap_or(default.time_to_live),
            max_versions: options.max_versions.unwrap_or(default.max_versions),
            version_deviation: options.deviation_cell_version_in_sec.unwrap_or(default.version_deviation),
            allow_update: options.allow_update,
        }
    }
}

/// A table to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Name: 1–255 of `[A-Za-z0-9_]`, not beginning with a digit.
    pub name: String,
    /// Key columns in their order, 1 to 4. The first one decides the partition.
    pub key: Vec<(String, KeyType)>,
    /// Options.
    pub options: Options,
}

impl Schema {
    /// Makes a schema that keeps one version forever.
    pub fn new(name: impl Into<String>, key: &[(&str, KeyType)]) -> Self {
        let key = key.iter().map(|&(name, kind)| (name.to_owned(), kind)).collect();
        Self { name: name.into(), key, options: Options::default() }
    }

    /// Makes the request that creates the table, without reserved throughput.
    pub(super) fn to_message(&self) -> message::CreateTableRequest {
        let column = |(name, kind): &(String, KeyType)| message::PrimaryKeySchema {
            name: name.clone(),
            kind: kind.code(),
            option: None,
        };
        message::CreateTableRequest {
            table_meta: message::TableMeta {
                table_name: self.name.clone(),
                primary_key: self.key.iter().map(column).collect(),
                defined_column: Vec::new(),
            },
            // Required, and 0 for instances that are paid by use.
            reserved_throughput: message::ReservedThroughput {
                capacity_unit: message::CapacityUnit { read: Some(0), write: Some(0) },
            },
            table_options: Some(self.options.to_message()),
            index_metas: Vec::new(),
            enable_local_txn: None,
        }
    }
}

/// Capacity units: 4 KB each, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Read units.
    pub read: u64,
    /// Write units.
    pub write: u64,
}

/// State of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The table can be used.
    Active,
    /// The table cannot be used at the moment.
    NotActive,
    /// The answer does not say.
    NotReported,
}

/// A table as the service describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// Name, key and options.
    pub schema: Schema,
    /// State.
    pub status: Status,
    /// Reserved throughput, which costs money also when nothing is read.
    pub reserved: Capacity,
}

impl TableDescription {
    /// Reads the answer of `DescribeTable`; `None` if a key column is of an unknown type.
    pub(super) fn from_message(answer: message::DescribeTableResponse) -> Option<Self> {
        let column =
            |column: message::PrimaryKeySchema| Some((column.name, KeyType::from_code(column.kind)?));
        let reserved = answer.reserved_throughput_details.capacity_unit;
        Some(Self {
            schema: Schema {
                name: answer.table_meta.table_name,
                key: answer.table_meta.primary_key.into_iter().map(column).collect::<Option<_>>()?,
                options: Options::from_message(answer.table_options),
            },
            status: match answer.table_status {
                None => Status::NotReported,
                Some(1) => Status::Active,
                Some(_) => Status::NotActive,
            },
            reserved: Capacity { read: units(reserved.read), write: units(reserved.write) },
        })
    }
}

/// Returns a number of units in a message; a negative or missing one counts as 0.
pub(super) fn units(number: Option<i32>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default()
}
