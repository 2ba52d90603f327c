//! The messages of Tablestore's API (version 2015-12-31), in protobuf. Names and numbers are those of
//! the official SDKs; fields that certdist neither sends nor reads are left out, and decoding skips
//! them. `row`, `rows` and keys are `PlainBuffer`s.
//!
//! The messages with rows do not implement `Debug` for their fields, because a row may hold a secret.

use prost::Message;

/// Body of an answer with a status other than 2xx, and reason why one row of a batch failed.
#[derive(Clone, PartialEq, Message)]
pub struct Error {
    #[prost(string, required, tag = "1")]
    pub code: String,
    #[prost(string, optional, tag = "2")]
    pub message: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PrimaryKeySchema {
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// 1 `INTEGER`, 2 `STRING`, 3 `BINARY`.
    #[prost(int32, required, tag = "2")]
    pub kind: i32,
    /// 1 for a number that the service chooses.
    #[prost(int32, optional, tag = "3")]
    pub option: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DefinedColumnSchema {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(int32, required, tag = "2")]
    pub kind: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TableMeta {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(message, repeated, tag = "2")]
    pub primary_key: Vec<PrimaryKeySchema>,
    #[prost(message, repeated, tag = "3")]
    pub defined_column: Vec<DefinedColumnSchema>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TableOptions {
    /// Seconds; -1 for never.
    #[prost(int32, optional, tag = "1")]
    pub time_to_live: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    pub max_versions: Option<i32>,
    #[prost(int64, optional, tag = "5")]
    pub deviation_cell_version_in_sec: Option<i64>,
    #[prost(bool, optional, tag = "6")]
    pub allow_update: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct CapacityUnit {
    #[prost(int32, optional, tag = "1")]
    pub read: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    pub write: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ReservedThroughput {
    #[prost(message, required, tag = "1")]
    pub capacity_unit: CapacityUnit,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ConsumedCapacity {
    #[prost(message, required, tag = "1")]
    pub capacity_unit: CapacityUnit,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ReservedThroughputDetails {
    #[prost(message, required, tag = "1")]
    pub capacity_unit: CapacityUnit,
    #[prost(int64, required, tag = "2")]
    pub last_increase_time: i64,
    #[prost(int64, optional, tag = "3")]
    pub last_decrease_time: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct IndexMeta {
    #[prost(string, required, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub primary_key: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub defined_column: Vec<String>,
    #[prost(int32, required, tag = "4")]
    pub index_update_mode: i32,
    #[prost(int32, required, tag = "5")]
    pub index_type: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateTableRequest {
    #[prost(message, required, tag = "1")]
    pub table_meta: TableMeta,
    #[prost(message, required, tag = "2")]
    pub reserved_throughput: ReservedThroughput,
    #[prost(message, optional, tag = "3")]
    pub table_options: Option<TableOptions>,
    #[prost(message, repeated, tag = "7")]
    pub index_metas: Vec<IndexMeta>,
    #[prost(bool, optional, tag = "8")]
    pub enable_local_txn: Option<bool>,
}

/// Request about one table: `DescribeTable` and `DeleteTable`.
#[derive(Clone, PartialEq, Message)]
pub struct TableRequest {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct DescribeTableResponse {
    #[prost(message, required, tag = "1")]
    pub table_meta: TableMeta,
    #[prost(message, required, tag = "2")]
    pub reserved_throughput_details: ReservedThroughputDetails,
    #[prost(message, required, tag = "3")]
    pub table_options: TableOptions,
    /// 1 `ACTIVE`, 2 `INACTIVE`, 3 `LOADING`, 4 `UNLOADING`, 5 `UPDATING`. The SDK for Go requires
    /// this field, and that for Python does not know it.
    #[prost(int32, optional, tag = "4")]
    pub table_status: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListTableResponse {
    #[prost(string, repeated, tag = "1")]
    pub table_names: Vec<String>,
}

/// An empty message: requests and answers without fields.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Nothing {}

/// Versions that a read returns, in milliseconds.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct TimeRange {
    #[prost(int64, optional, tag = "1")]
    pub start_time: Option<i64>,
    #[prost(int64, optional, tag = "2")]
    pub end_time: Option<i64>,
    #[prost(int64, optional, tag = "3")]
    pub specific_time: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Condition {
    /// 0 `IGNORE`, 1 `EXPECT_EXIST`, 2 `EXPECT_NOT_EXIST`.
    #[prost(int32, required, tag = "1")]
    pub row_existence: i32,
    /// A [`Filter`].
    #[prost(bytes = "vec", optional, tag = "2")]
    pub column_condition: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReturnContent {
    /// 0 `RT_NONE`, 1 `RT_PK`, 2 `RT_AFTER_MODIFY`.
    #[prost(int32, optional, tag = "1")]
    pub return_type: Option<i32>,
    #[prost(string, repeated, tag = "2")]
    pub return_column_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct GetRowRequest {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(bytes = "vec", required, tag = "2")]
    pub primary_key: Vec<u8>,
    #[prost(string, repeated, tag = "3")]
    pub columns_to_get: Vec<String>,
    #[prost(message, optional, tag = "4")]
    pub time_range: Option<TimeRange>,
    #[prost(int32, optional, tag = "5")]
    pub max_versions: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub filter: Option<Vec<u8>>,
    #[prost(string, optional, tag = "8")]
    pub start_column: Option<String>,
    #[prost(string, optional, tag = "9")]
    pub end_column: Option<String>,
    #[prost(bytes = "vec", optional, tag = "10")]
    pub token: Option<Vec<u8>>,
    #[prost(string, optional, tag = "11")]
    pub transaction_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct GetRowResponse {
    #[prost(message, required, tag = "1")]
    pub consumed: ConsumedCapacity,
    /// Empty if there is no such row.
    #[prost(bytes = "vec", required, tag = "2")]
    pub row: Vec<u8>,
}

/// Request of `PutRow`, `UpdateRow` and `DeleteRow`, which have the same fields.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct WriteRowRequest {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(bytes = "vec", required, tag = "2")]
    pub row: Vec<u8>,
    #[prost(message, required, tag = "3")]
    pub condition: Condition,
    #[prost(message, optional, tag = "4")]
    pub return_content: Option<ReturnContent>,
    #[prost(string, optional, tag = "5")]
    pub transaction_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct WriteRowResponse {
    #[prost(message, required, tag = "1")]
    pub consumed: ConsumedCapacity,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub row: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct TableOfBatchGet {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub primary_key: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub token: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "4")]
    pub columns_to_get: Vec<String>,
    #[prost(message, optional, tag = "5")]
    pub time_range: Option<TimeRange>,
    #[prost(int32, optional, tag = "6")]
    pub max_versions: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub filter: Option<Vec<u8>>,
    #[prost(string, optional, tag = "9")]
    pub start_column: Option<String>,
    #[prost(string, optional, tag = "10")]
    pub end_column: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct BatchGetRowRequest {
    #[prost(message, repeated, tag = "1")]
    pub tables: Vec<TableOfBatchGet>,
}

/// Result of one row of a batch.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct RowOfBatch {
    #[prost(bool, required, tag = "1")]
    pub is_ok: bool,
    #[prost(message, optional, tag = "2")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "3")]
    pub consumed: Option<ConsumedCapacity>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub row: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct TableOfResults {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(message, repeated, tag = "2")]
    pub rows: Vec<RowOfBatch>,
}

/// Answer of `BatchGetRow` and of `BatchWriteRow`.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct BatchResponse {
    #[prost(message, repeated, tag = "1")]
    pub tables: Vec<TableOfResults>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct RowOfBatchWrite {
    /// 1 `PUT`, 2 `UPDATE`, 3 `DELETE`.
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    #[prost(bytes = "vec", required, tag = "2")]
    pub row_change: Vec<u8>,
    #[prost(message, required, tag = "3")]
    pub condition: Condition,
    #[prost(message, optional, tag = "4")]
    pub return_content: Option<ReturnContent>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct TableOfBatchWrite {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    #[prost(message, repeated, tag = "2")]
    pub rows: Vec<RowOfBatchWrite>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct BatchWriteRowRequest {
    #[prost(message, repeated, tag = "1")]
    pub tables: Vec<TableOfBatchWrite>,
    #[prost(string, optional, tag = "2")]
    pub transaction_id: Option<String>,
    #[prost(bool, optional, tag = "3")]
    pub is_atomic: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct GetRangeRequest {
    #[prost(string, required, tag = "1")]
    pub table_name: String,
    /// 0 `FORWARD`, 1 `BACKWARD`.
    #[prost(int32, required, tag = "2")]
    pub direction: i32,
    #[prost(string, repeated, tag = "3")]
    pub columns_to_get: Vec<String>,
    #[prost(message, optional, tag = "4")]
    pub time_range: Option<TimeRange>,
    #[prost(int32, optional, tag = "5")]
    pub max_versions: Option<i32>,
    #[prost(int32, optional, tag = "6")]
    pub limit: Option<i32>,
    #[prost(bytes = "vec", required, tag = "7")]
    pub inclusive_start_primary_key: Vec<u8>,
    #[prost(bytes = "vec", required, tag = "8")]
    pub exclusive_end_primary_key: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "10")]
    pub filter: Option<Vec<u8>>,
    #[prost(string, optional, tag = "11")]
    pub start_column: Option<String>,
    #[prost(string, optional, tag = "12")]
    pub end_column: Option<String>,
    #[prost(bytes = "vec", optional, tag = "13")]
    pub token: Option<Vec<u8>>,
    #[prost(string, optional, tag = "14")]
    pub transaction_id: Option<String>,
    /// 0 `PlainBuffer`.
    #[prost(int32, optional, tag = "15")]
    pub data_block_type_hint: Option<i32>,
    /// 0 for none.
    #[prost(int32, optional, tag = "17")]
    pub compress_type_hint: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct GetRangeResponse {
    #[prost(message, required, tag = "1")]
    pub consumed: ConsumedCapacity,
    /// Empty if there is no row.
    #[prost(bytes = "vec", required, tag = "2")]
    pub rows: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub next_start_primary_key: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Filter {
    /// 1 `SINGLE`, 2 `COMPOSITE`, 3 `PAGINATION`.
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    /// A [`SingleFilter`] or a [`CompositeFilter`].
    #[prost(bytes = "vec", required, tag = "2")]
    pub filter: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct SingleFilter {
    /// 1 `=`, 2 `≠`, 3 `>`, 4 `≥`, 5 `<`, 6 `≤`.
    #[prost(int32, required, tag = "1")]
    pub comparator: i32,
    #[prost(string, required, tag = "2")]
    pub column_name: String,
    /// A value, as in a cell.
    #[prost(bytes = "vec", required, tag = "3")]
    pub column_value: Vec<u8>,
    #[prost(bool, required, tag = "4")]
    pub filter_if_missing: bool,
    #[prost(bool, required, tag = "5")]
    pub latest_version_only: bool,
    /// A rule that cuts the value before it is compared; certdist uses none.
    #[prost(bytes = "vec", optional, tag = "6")]
    pub value_trans_rule: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CompositeFilter {
    /// 1 `NOT`, 2 `AND`, 3 `OR`.
    #[prost(int32, required, tag = "1")]
    pub combinator: i32,
    #[prost(message, repeated, tag = "2")]
    pub sub_filters: Vec<Filter>,
}
