//! Entry point of the fuzzer and of tests. It reads bytes as every answer and every part of a request.

use prost::Message;

use super::{
    condition::Filter,
    message, plain_buffer,
    request::{read_row, read_rows},
    schema::TableDescription,
};

/// Reads bytes as every message that has rows or conditions. Returns the number of messages and rows
/// that could be read, so that a fuzzer can report that it reaches them.
pub fn read_as_everything(bytes: &[u8]) -> u64 {
    let mut read = 0;
    let mut count = |is_ok: bool| read += u64::from(is_ok);
    if let Ok(answer) = message::GetRowResponse::decode(bytes) {
        count(read_row(&answer.row).is_ok());
    }
    if let Ok(answer) = message::GetRangeResponse::decode(bytes) {
        count(read_rows(&answer.rows).is_ok());
        count(plain_buffer::decode_first(&answer.next_start_primary_key.unwrap_or_default()).is_ok());
    }
    if let Ok(answer) = message::BatchResponse::decode(bytes) {
        for row in answer.tables.iter().flat_map(|table| &table.rows) {
            count(read_row(row.row.as_deref().unwrap_or_default()).is_ok());
        }
    }
    if let Ok(request) = message::WriteRowRequest::decode(bytes) {
        count(plain_buffer::decode_first(&request.row).is_ok());
        count(Filter::decode(&request.condition.column_condition.unwrap_or_default()).is_ok());
    }
    if let Ok(answer) = message::DescribeTableResponse::decode(bytes) {
        count(TableDescription::from_message(answer).is_some());
    }
    count(message::Error::decode(bytes).is_ok());
    count(plain_buffer::decode(bytes).is_ok());
    count(Filter::decode(bytes).is_ok());
    read
}
