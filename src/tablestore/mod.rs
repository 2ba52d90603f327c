//! Tablestore, Alibaba Cloud's wide-column store, as certdist uses it: a signed client, and a stand-in
//! for the service that verifies the client's signatures. This module knows the API (version
//! 2015-12-31), and nothing about devices or the meaning of the tables.
//!
//! `plain_buffer` and `message` are the bytes of the API, `exchange` is one request with its
//! answer, and `client` makes calls. docs/tablestore.md gives the source of each fact.

pub mod client;
pub mod condition;
mod exchange;
mod failure;
mod message;
pub mod plain_buffer;
mod request;
mod schema;
pub mod signature;
#[cfg(feature = "simulation")]
pub mod simulator;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod value;

use std::fmt;

pub use self::{
    client::{Client, ClientConfig, ConfigError},
    condition::{Comparator, Condition, Filter, RowExpectation},
    failure::{Class, Error, NO_ANSWER, NOT_AN_ANSWER, NOT_SENT},
    request::{Direction, Page, Range, Read, Returns, Update, Write, WriteKind},
    schema::{Capacity, KeyType, Options, Schema, Status, TableDescription},
    value::{Bound, Column, End, Key, KeyValue, Row, Value},
};

/// Maximum number of rows of one `BatchGetRow`.
pub const MAX_BATCH_READ: usize = 100;
/// Maximum number of rows of one `BatchWriteRow`.
pub const MAX_BATCH_WRITE: usize = 200;

/// An operation of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The names are the API's.
pub enum Operation {
    CreateTable,
    DescribeTable,
    ListTable,
    DeleteTable,
    GetRow,
    PutRow,
    UpdateRow,
    DeleteRow,
    BatchGetRow,
    BatchWriteRow,
    GetRange,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 11] = [
        Self::CreateTable,
        Self::DescribeTable,
        Self::ListTable,
        Self::DeleteTable,
        Self::GetRow,
        Self::PutRow,
        Self::UpdateRow,
        Self::DeleteRow,
        Self::BatchGetRow,
        Self::BatchWriteRow,
        Self::GetRange,
    ];

    /// Returns the name of the operation, which is also the path of its requests without the slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateTable => "CreateTable",
            Self::DescribeTable => "DescribeTable",
            Self::ListTable => "ListTable",
            Self::DeleteTable => "DeleteTable",
            Self::GetRow => "GetRow",
            Self::PutRow => "PutRow",
            Self::UpdateRow => "UpdateRow",
            Self::DeleteRow => "DeleteRow",
            Self::BatchGetRow => "BatchGetRow",
            Self::BatchWriteRow => "BatchWriteRow",
            Self::GetRange => "GetRange",
        }
    }

    /// Finds the operation with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Returns whether the operation changes nothing.
    pub fn is_read(self) -> bool {
        matches!(
            self,
            Self::DescribeTable | Self::ListTable | Self::GetRow | Self::BatchGetRow | Self::GetRange
        )
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
