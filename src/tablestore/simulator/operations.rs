//! Operations of the stand-in on its tables: from the message of a request to the message of its
//! answer, with the service's limits and capacity units. No HTTP, no faults; the time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{
    Operation, Refusal,
    table::{Expectation, Kind, Returning, Selection, Table, units},
};
use crate::tablestore::{
    Capacity, Direction, Filter, KeyType, MAX_BATCH_READ, MAX_BATCH_WRITE, Options, RowExpectation, Schema,
    message,
    plain_buffer::{self, Malformed, WireRow},
};

/// Maximum number of tables of an instance.
const MAX_TABLES: usize = 64;
/// Maximum number of names in `columns_to_get`.
const MAX_COLUMNS_TO_GET: usize = 128;
/// Maximum number of rows of a page.
const MAX_PAGE_ROWS: usize = plain_buffer::MAX_ROWS;
/// Maximum size of all rows of a `BatchWriteRow`, in bytes as they are sent.
const MAX_BATCH_SIZE: usize = 4 * 1024 * 1024;
/// Minimum `time_to_live` of a table whose rows do not live forever, in seconds.
const MIN_TIME_TO_LIVE: i32 = 86_400;

/// Tables of the instance, by name.
#[derive(Default)]
pub(super) struct Tables {
    pub by_name: BTreeMap<String, Table>,
    /// Time for which a new table is not ready, in milliseconds.
    pub not_ready: i64,
}

/// A call in progress: its time, and the capacity units that it has used.
pub(super) struct Call {
    /// Milliseconds since 1970.
    pub now: i64,
    pub used: Capacity,
    /// Set if the first row of a batch is to fail.
    pub fail_row: bool,
}

fn decoded<M: Message + Default>(body: &[u8]) -> Result<M, Refusal> {
    M::decode(body).map_err(|_| Refusal::invalid("Invalid protocol buffer."))
}

fn broken(error: Malformed) -> Refusal {
    Refusal::invalid(format!("Cell data broken: {error}."))
}

fn row(bytes: &[u8]) -> Result<WireRow, Refusal> {
    plain_buffer::decode_first(bytes).map_err(broken)
}

fn consumed(capacity: Capacity) -> message::ConsumedCapacity {
    let number = |units: u64| Some(i32::try_from(units).unwrap_or(i32::MAX));
    let capacity_unit = message::CapacityUnit { read: number(capacity.read), write: number(capacity.write) };
    message::ConsumedCapacity { capacity_unit }
}

impl Call {
    fn use_up(&mut self, capacity: Capacity) -> message::ConsumedCapacity {
        self.used.read += capacity.read;
        self.used.write += capacity.write;
        consumed(capacity)
    }
}

impl Tables {
    /// Carries out a call. Returns the body of its answer.
    pub fn call(&mut self, operation: Operation, body: &[u8], call: &mut Call) -> Result<Vec<u8>, Refusal> {
        Ok(match operation {
            Operation::CreateTable => self.create(decoded(body)?, call.now)?.encode_to_vec(),
            Operation::DescribeTable => self.describe(decoded(body)?)?.encode_to_vec(),
            Operation::ListTable => {
                let table_names = self.by_name.keys().cloned().collect();
                message::ListTableResponse { table_names }.encode_to_vec()
            }
            Operation::DeleteTable => {
                let request: message::TableRequest = decoded(body)?;
                self.by_name.remove(&request.table_name).ok_or_else(no_table)?;
                Vec::new()
            }
            Operation::GetRow => self.get_row(decoded(body)?, call)?.encode_to_vec(),
            Operation::PutRow => self.write_row(Kind::Put, decoded(body)?, call)?.encode_to_vec(),
            Operation::UpdateRow => self.write_row(Kind::Update, decoded(body)?, call)?.encode_to_vec(),
            Operation::DeleteRow => self.write_row(Kind::Delete, decoded(body)?, call)?.encode_to_vec(),
            Operation::BatchGetRow => self.batch_get(decoded(body)?, call)?.encode_to_vec(),
            Operation::BatchWriteRow => self.batch_write(decoded(body)?, call)?.encode_to_vec(),
            Operation::GetRange => self.get_range(decoded(body)?, call)?.encode_to_vec(),
        })
    }

    /// Finds a table that is ready.
    fn ready(&mut self, name: &str, now: i64) -> Result<&mut Table, Refusal> {
        let not_ready = self.not_ready;
        let table = self.by_name.get_mut(name).ok_or_else(no_table)?;
        match now < table.created.saturating_add(not_ready) {
            true => Err(Refusal::new(404, "OTSTableNotReady", "The table is not ready.")),
            false => Ok(table),
        }
    }

    fn create(
        &mut self,
        request: message::CreateTableRequest,
        now: i64,
    ) -> Result<message::Nothing, Refusal> {
        let schema = schema(&request)?;
        if self.by_name.contains_key(&schema.name) {
            return Err(Refusal::new(409, "OTSObjectAlreadyExist", "Requested table already exists."));
        }
        if self.by_name.len() >= MAX_TABLES {
            return Err(Refusal::new(403, "OTSQuotaExhausted", "Number of tables exceeded the quota."));
        }
        self.by_name.insert(schema.name.clone(), Table::new(schema, now));
        Ok(message::Nothing {})
    }

    fn describe(&self, request: message::TableRequest) -> Result<message::DescribeTableResponse, Refusal> {
        let table = self.by_name.get(&request.table_name).ok_or_else(no_table)?;
        let created = table.schema.to_message();
        let options = created.table_options.unwrap_or_default();
        Ok(message::DescribeTableResponse {
            table_meta: created.table_meta,
            reserved_throughput_details: message::ReservedThroughputDetails {
                capacity_unit: message::CapacityUnit { read: Some(0), write: Some(0) },
                last_increase_time: table.created / 1000,
                last_decrease_time: None,
            },
            table_options: message::TableOptions {
                allow_update: Some(options.allow_update.unwrap_or(true)),
                ..options
            },
            table_status: Some(1),
        })
    }

    fn get_row(
        &mut self,
        request: message::GetRowRequest,
        call: &mut Call,
    ) -> Result<message::GetRowResponse, Refusal> {
        let extras = [request.start_column.is_some(), request.end_column.is_some(), request.token.is_some()];
        refuse_extras(&extras, request.transaction_id.as_deref())?;
        let selection =
            selection(request.columns_to_get, request.time_range, request.max_versions, request.filter)?;
        let table = self.ready(&request.table_name, call.now)?;
        let (capacity, row) = read_row(table, &request.primary_key, &selection, call.now)?;
        Ok(message::GetRowResponse { consumed: call.use_up(capacity), row })
    }

    fn batch_get(
        &mut self,
        request: message::BatchGetRowRequest,
        call: &mut Call,
    ) -> Result<message::BatchResponse, Refusal> {
        let rows: usize = request.tables.iter().map(|table| table.primary_key.len()).sum();
        if rows > MAX_BATCH_READ {
            return Err(Refusal::invalid(format!("Rows count exceeds the upper limit: {MAX_BATCH_READ}.")));
        }
        check_tables(request.tables.iter().map(|table| (&table.table_name, table.primary_key.len())))?;
        let mut tables = Vec::new();
        for table in request.tables {
            let extras = [table.start_column.is_some(), table.end_column.is_some(), !table.token.is_empty()];
            refuse_extras(&extras, None)?;
            let selection =
                selection(table.columns_to_get, table.time_range, table.max_versions, table.filter)?;
            let mut keys = BTreeSet::new();
            let mut results = Vec::new();
            for key in &table.primary_key {
                if !keys.insert(key) {
                    return Err(Refusal::invalid("Duplicate rows detected."));
                }
                let fails = std::mem::take(&mut call.fail_row);
                let found = match (fails, self.ready(&table.table_name, call.now)) {
                    (true, _) => Err(busy()),
                    (false, Ok(found)) => read_row(found, key, &selection, call.now),
                    (false, Err(refusal)) => Err(refusal),
                };
                results.push(match found {
                    Ok((capacity, row)) => message::RowOfBatch {
                        is_ok: true,
                        consumed: Some(call.use_up(capacity)),
                        row: Some(row),
                        error: None,
                    },
                    Err(refusal) => failed(&refusal, None),
                });
            }
            tables.push(message::TableOfResults { table_name: table.table_name, rows: results });
        }
        Ok(message::BatchResponse { tables })
    }

    fn get_range(
        &mut self,
        request: message::GetRangeRequest,
        call: &mut Call,
    ) -> Result<message::GetRangeResponse, Refusal> {
        let extras = [
            request.start_column.is_some(),
            request.end_column.is_some(),
            request.token.is_some(),
            request.data_block_type_hint.is_some_and(|hint| hint != 0),
            request.compress_type_hint.is_some_and(|hint| hint != 0),
        ];
        refuse_extras(&extras, request.transaction_id.as_deref())?;
        let direction = match request.direction {
            0 => Direction::Forward,
            1 => Direction::Backward,
            _ => return Err(Refusal::invalid("Invalid direction.")),
        };
        let limit = match request.limit {
            None => MAX_PAGE_ROWS,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| *limit > 0)
                .ok_or_else(|| Refusal::invalid("The limit must be greater than 0."))?,
        };
        let selection =
            selection(request.columns_to_get, request.time_range, request.max_versions, request.filter)?;
        let table = self.ready(&request.table_name, call.now)?;
        let start = table.end(&row(&request.inclusive_start_primary_key)?.key)?;
        let end = table.end(&row(&request.exclusive_end_primary_key)?.key)?;
        let limit = limit.min(MAX_PAGE_ROWS);
        let scan = table.scan(direction, (&start, &end), limit, &selection, call.now)?;
        let next = scan.next.map(|key| WireRow { key: table.key_cells(&key), ..WireRow::default() });
        Ok(message::GetRangeResponse {
            consumed: call.use_up(Capacity { read: units(scan.size), write: 0 }),
            rows: plain_buffer::encode(&scan.rows),
            next_start_primary_key: next.map(|next| plain_buffer::encode(&[next])),
        })
    }

    fn write_row(
        &mut self,
        kind: Kind,
        request: message::WriteRowRequest,
        call: &mut Call,
    ) -> Result<message::WriteRowResponse, Refusal> {
        refuse_extras(&[], request.transaction_id.as_deref())?;
        let table = self.ready(&request.table_name, call.now)?;
        let write =
            Write::new(table, kind, &request.row, &request.condition, request.return_content, call.now)?;
        let (capacity, result) = write.carry_out(table, call.now);
        let consumed = call.use_up(capacity);
        let row = result?.map(|row| plain_buffer::encode(&[row]));
        Ok(message::WriteRowResponse { consumed, row: Some(row.unwrap_or_default()) })
    }

    fn batch_write(
        &mut self,
        request: message::BatchWriteRowRequest,
        call: &mut Call,
    ) -> Result<message::BatchResponse, Refusal> {
        refuse_extras(&[], request.transaction_id.as_deref())?;
        if request.is_atomic == Some(true) {
            return Err(Refusal::not_supported("is_atomic"));
        }
        let rows: usize = request.tables.iter().map(|table| table.rows.len()).sum();
        let all = request.tables.iter().flat_map(|table| &table.rows);
        if rows > MAX_BATCH_WRITE || all.map(|row| row.row_change.len()).sum::<usize>() > MAX_BATCH_SIZE {
            return Err(Refusal::invalid(format!(
                "Rows count exceeds the upper limit: {MAX_BATCH_WRITE}, or their size does: {MAX_BATCH_SIZE}."
            )));
        }
        check_tables(request.tables.iter().map(|table| (&table.table_name, table.rows.len())))?;
        // Everything is read before anything is written, because a key that occurs twice is an error
        // for the whole call.
        let mut writes = Vec::new();
        for table in &request.tables {
            let mut keys = BTreeSet::new();
            for row in &table.rows {
                let kind = match row.kind {
                    1 => Kind::Put,
                    2 => Kind::Update,
                    3 => Kind::Delete,
                    _ => return Err(Refusal::invalid("Invalid operation type.")),
                };
                let content = row.return_content.clone();
                let write = self.ready(&table.table_name, call.now).and_then(|found| {
                    Write::new(found, kind, &row.row_change, &row.condition, content, call.now)
                });
                if let Ok(write) = &write
                    && !keys.insert(write.key.clone())
                {
                    return Err(Refusal::invalid("Duplicate rows detected."));
                }
                writes.push(write);
            }
        }
        let mut writes = writes.into_iter();
        let mut tables = Vec::new();
        for table in request.tables {
            let mut results = Vec::new();
            for write in writes.by_ref().take(table.rows.len()) {
                let fails = std::mem::take(&mut call.fail_row);
                results.push(match write {
                    _ if fails => failed(&busy(), None),
                    Ok(write) => self.carry_out(&table.table_name, write, call),
                    Err(refusal) => failed(&refusal, None),
                });
            }
            tables.push(message::TableOfResults { table_name: table.table_name, rows: results });
        }
        Ok(message::BatchResponse { tables })
    }

    fn carry_out(&mut self, table: &str, write: Write, call: &mut Call) -> message::RowOfBatch {
        let table = match self.ready(table, call.now) {
            Ok(table) => table,
            Err(refusal) => return failed(&refusal, None),
        };
        let (capacity, result) = write.carry_out(table, call.now);
        let consumed = call.use_up(capacity);
        match result {
            Ok(row) => message::RowOfBatch {
                is_ok: true,
                error: None,
                consumed: Some(consumed),
                row: row.map(|row| plain_buffer::encode(&[row])),
            },
            Err(refusal) => failed(&refusal, Some(consumed)),
        }
    }
}

fn no_table() -> Refusal {
    Refusal::new(404, "OTSObjectNotExist", "Requested table does not exist.")
}

fn busy() -> Refusal {
    Refusal::new(503, "OTSServerBusy", "Server is busy.")
}

fn failed(refusal: &Refusal, consumed: Option<message::ConsumedCapacity>) -> message::RowOfBatch {
    message::RowOfBatch { is_ok: false, error: Some(refusal.to_message()), consumed, row: None }
}

/// Refuses the parts of a request that the stand-in does not support, because it would give a wrong
/// answer without them.
fn refuse_extras(extras: &[bool], transaction: Option<&str>) -> Result<(), Refusal> {
    if transaction.is_some_and(|id| !id.is_empty()) {
        return Err(Refusal::not_supported("a local transaction"));
    }
    match extras.contains(&true) {
        true => Err(Refusal::not_supported("a range of columns, a token, or another form of rows")),
        false => Ok(()),
    }
}

fn check_tables<'a>(tables: impl Iterator<Item = (&'a String, usize)>) -> Result<(), Refusal> {
    let mut names = BTreeSet::new();
    for (name, rows) in tables {
        if !names.insert(name) {
            return Err(Refusal::invalid(format!("Duplicated table name: '{name}'.")));
        }
        if rows == 0 {
            return Err(Refusal::invalid(format!("No row specified in table: '{name}'.")));
        }
    }
    match names.is_empty() {
        true => Err(Refusal::invalid("No row is specified.")),
        false => Ok(()),
    }
}

fn selection(
    columns: Vec<String>,
    times: Option<message::TimeRange>,
    max_versions: Option<i32>,
    filter: Option<Vec<u8>>,
) -> Result<Selection, Refusal> {
    if columns.len() > MAX_COLUMNS_TO_GET {
        return Err(Refusal::invalid(format!(
            "The number of columns from the request exceeds the limit: {MAX_COLUMNS_TO_GET}."
        )));
    }
    if max_versions.is_none() && times.is_none() {
        return Err(Refusal::invalid("No version condition is specified while querying row."));
    }
    let max_versions = match max_versions {
        None => usize::MAX,
        Some(number) => usize::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Refusal::invalid("max_versions must be greater than 0."))?,
    };
    let times = times.map(|times| match times.specific_time {
        Some(time) => (time, time.saturating_add(1)),
        None => (times.start_time.unwrap_or(0), times.end_time.unwrap_or(i64::MAX)),
    });
    let filter = read_filter(filter)?;
    let columns: BTreeSet<_> = columns.into_iter().collect();
    // It is not known whether the service applies the filter before or after it has chosen columns.
    if let Some(filter) = &filter
        && !columns.is_empty()
        && !names(filter).is_subset(&columns.iter().map(String::as_str).collect())
    {
        return Err(Refusal::not_supported("a filter on a column that columns_to_get does not name"));
    }
    Ok(Selection { columns, max_versions, times, filter })
}

fn names(filter: &Filter) -> BTreeSet<&str> {
    match filter {
        Filter::Compare { column, .. } => [column.as_str()].into(),
        Filter::Not(inner) => names(inner),
        Filter::All(parts) | Filter::Any(parts) => parts.iter().flat_map(names).collect(),
    }
}

fn read_filter(bytes: Option<Vec<u8>>) -> Result<Option<Filter>, Refusal> {
    let read = |bytes: Vec<u8>| Filter::decode(&bytes).map_err(|error| Refusal::invalid(error.to_string()));
    bytes.filter(|bytes| !bytes.is_empty()).map(read).transpose()
}

fn read_row(
    table: &mut Table,
    key: &[u8],
    selection: &Selection,
    now: i64,
) -> Result<(Capacity, Vec<u8>), Refusal> {
    let key = table.key(&row(key)?.key)?;
    let (row, size) = table.read(&key, selection, now);
    let row = row.map(|row| plain_buffer::encode(&[row])).unwrap_or_default();
    Ok((Capacity { read: units(size), write: 0 }, row))
}

/// A write of one row that was checked against its table.
struct Write {
    kind: Kind,
    key: super::table::StoredKey,
    row: WireRow,
    size: usize,
    expectation: Expectation,
    returning: Returning,
}

impl Write {
    fn new(
        table: &Table,
        kind: Kind,
        bytes: &[u8],
        condition: &message::Condition,
        content: Option<message::ReturnContent>,
        now: i64,
    ) -> Result<Self, Refusal> {
        let row = row(bytes)?;
        if kind == Kind::Update && table.schema.options.allow_update == Some(false) {
            return Err(Refusal::invalid("The table does not allow UpdateRow."));
        }
        let (key, size) = table.check(kind, &row, now)?;
        let expectations = [RowExpectation::Ignore, RowExpectation::Exists, RowExpectation::Absent];
        let expected = expectations.into_iter().find(|known| known.code() == condition.row_existence);
        let expectation = Expectation {
            row: expected.ok_or_else(|| Refusal::invalid("Invalid row existence."))?,
            columns: read_filter(condition.column_condition.clone())?,
        };
        let returning = match content {
            Some(message::ReturnContent { return_type: Some(1), .. }) => Returning::Key,
            Some(message::ReturnContent { return_type: Some(2), return_column_names }) => {
                Returning::After(return_column_names)
            }
            _ => Returning::Nothing,
        };
        Ok(Self { kind, key, row, size, expectation, returning })
    }

    /// Checks the condition and writes, in one step. Returns the capacity units in either case.
    fn carry_out(self, table: &mut Table, now: i64) -> (Capacity, Result<Option<WireRow>, Refusal>) {
        let is_conditional =
            self.expectation.row != RowExpectation::Ignore || self.expectation.columns.is_some();
        let read = u64::from(is_conditional);
        if !table.is_met(&self.key, &self.expectation, now) {
            let refusal = Refusal::new(403, "OTSConditionCheckFail", "Condition check failed.");
            return (Capacity { read, write: 1 }, Err(refusal));
        }
        let capacity = Capacity { read, write: units(self.size) };
        (capacity, table.write(self.kind, self.key, self.row.columns, &self.returning, now))
    }
}

/// Reads the schema of a new table, and checks it.
pub(super) fn schema(request: &message::CreateTableRequest) -> Result<Schema, Refusal> {
    let name = &request.table_meta.table_name;
    let is_legal = |name: &str| {
        let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_word && (1..=255).contains(&name.len()) && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    if !is_legal(name) {
        return Err(Refusal::invalid(format!("Invalid table name: '{name}'.")));
    }
    if !request.index_metas.is_empty() || !request.table_meta.defined_column.is_empty() {
        return Err(Refusal::not_supported("a secondary index or a defined column"));
    }
    let reserved = request.reserved_throughput.capacity_unit;
    if reserved.read.unwrap_or(0) != 0 || reserved.write.unwrap_or(0) != 0 {
        let message = "The reserved throughput of a capacity instance must be 0.";
        return Err(Refusal::invalid(message));
    }
    let columns = &request.table_meta.primary_key;
    if !(1..=4).contains(&columns.len()) {
        return Err(Refusal::invalid("The number of primary key columns must be in range: [1, 4]."));
    }
    let column = |column: &message::PrimaryKeySchema| {
        if column.option.is_some() {
            return Err(Refusal::not_supported("a key column that the service numbers"));
        }
        let kind = KeyType::from_code(column.kind).filter(|_| is_legal(&column.name));
        let wrong = || Refusal::invalid(format!("Invalid primary key column: '{}'.", column.name));
        Ok((column.name.clone(), kind.ok_or_else(wrong)?))
    };
    let key = columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    if key.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len() < key.len() {
        return Err(Refusal::invalid("Duplicated primary key column."));
    }
    let options = request.table_options.map_or_else(Options::default, Options::from_message);
    let lives = options.time_to_live == -1 || options.time_to_live >= MIN_TIME_TO_LIVE;
    if !lives || options.max_versions < 1 || options.version_deviation < 1 {
        return Err(Refusal::invalid("Invalid table options."));
    }
    Ok(Schema { name: name.clone(), key, options })
}
