//! Each operation of the API: its request, and the meaning of its answer. A batch repeats only the rows
//! that failed and may be repeated.

use std::collections::HashSet;

use prost::Message;
use zeroize::Zeroizing;

use super::{Client, Patience, refusal, unreadable};
use crate::{
    iot_platform::answer::sanitized,
    tablestore::{
        Class, Error, Key, MAX_BATCH_READ, MAX_BATCH_WRITE, Operation, Page, Range, Read, Row, Schema,
        TableDescription, Write, WriteKind,
        failure::classify,
        message,
        plain_buffer::{self, Malformed},
        request::{key_buffer, read_key, read_row, read_rows},
    },
};

/// Result of one row of a batch.
pub type RowResult = Result<Option<Row>, Error>;

impl Client {
    /// Creates a table. It cannot be used at once: calls about it are [`Class::Busy`] for some
    /// seconds.
    ///
    /// # Errors
    ///
    /// Fails with [`Class::TableExists`] if there is a table of this name.
    pub async fn create_table(&self, table: &Schema) -> Result<(), Error> {
        let _: message::Nothing = self.call(Operation::CreateTable, &table.to_message()).await?;
        Ok(())
    }

    /// Describes a table.
    ///
    /// # Errors
    ///
    /// Fails with [`Class::NoTable`] if there is no such table.
    pub async fn describe_table(&self, table: &str) -> Result<TableDescription, Error> {
        let request = message::TableRequest { table_name: table.to_owned() };
        let answer = self.call(Operation::DescribeTable, &request).await?;
        TableDescription::from_message(answer)
            .ok_or_else(|| not_expected(Operation::DescribeTable, "a key column is of an unknown type"))
    }

    /// Lists the names of the instance's tables.
    ///
    /// # Errors
    ///
    /// Fails if the service cannot be asked.
    pub async fn list_tables(&self) -> Result<Vec<String>, Error> {
        let answer: message::ListTableResponse =
            self.call(Operation::ListTable, &message::Nothing {}).await?;
        Ok(answer.table_names)
    }

    /// Deletes a table with all its rows.
    ///
    /// # Errors
    ///
    /// Fails with [`Class::NoTable`] if there is no such table.
    pub async fn delete_table(&self, table: &str) -> Result<(), Error> {
        let request = message::TableRequest { table_name: table.to_owned() };
        let _: message::Nothing = self.call(Operation::DeleteTable, &request).await?;
        Ok(())
    }

    /// Reads a row; `None` if there is no such row, or if it has none of the columns.
    ///
    /// # Errors
    ///
    /// Fails if the service cannot be asked, or refuses.
    pub async fn get_row(&self, read: &Read) -> Result<Option<Row>, Error> {
        let answer: message::GetRowResponse = self.call(Operation::GetRow, &read.to_message()).await?;
        self.count(answer.consumed);
        let row = Zeroizing::new(answer.row);
        read_row(&row).map_err(|error| malformed(Operation::GetRow, error))
    }

    /// Writes a row. Returns what [`Write::returns`] asks for.
    ///
    /// # Errors
    ///
    /// Fails with [`Class::Conflict`] if the condition was not met, and with [`Class::Unknown`] if the
    /// write may have been carried out.
    pub async fn write_row(&self, write: &Write) -> Result<Option<Row>, Error> {
        let operation = match write.kind {
            WriteKind::Put(_) => Operation::PutRow,
            WriteKind::Update(_) => Operation::UpdateRow,
            WriteKind::Delete => Operation::DeleteRow,
        };
        let answer: message::WriteRowResponse = self.call(operation, &write.to_message()).await?;
        self.count(answer.consumed);
        let row = Zeroizing::new(answer.row.unwrap_or_default());
        read_row(&row).map_err(|error| malformed(operation, error))
    }

    /// Reads a page of a range.
    ///
    /// # Errors
    ///
    /// Fails if the service cannot be asked, or refuses.
    pub async fn get_range(&self, range: &Range) -> Result<Page, Error> {
        let answer: message::GetRangeResponse = self.call(Operation::GetRange, &range.to_message()).await?;
        self.count(answer.consumed);
        let rows = Zeroizing::new(answer.rows);
        let read = || {
            let rows = read_rows(&rows)?;
            let next = match answer.next_start_primary_key {
                Some(key) => Some(read_key(plain_buffer::decode_first(&key)?.key)?),
                None => None,
            };
            Ok(Page { rows, next })
        };
        read().map_err(|error| malformed(Operation::GetRange, error))
    }

    /// Reads at most [`MAX_BATCH_READ`] rows. The results are in the order of the reads. All reads of
    /// one table must ask for the same columns, and no row may be asked for twice.
    ///
    /// # Errors
    ///
    /// Fails if no row was read. Rows that failed on their own have their own errors.
    pub async fn batch_get_rows(&self, reads: &[Read]) -> Result<Vec<RowResult>, Error> {
        let operation = Operation::BatchGetRow;
        check_batch(operation, reads.iter().map(|read| (&read.table, &read.key)), MAX_BATCH_READ)?;
        let same =
            |one: &Read| reads.iter().all(|other| other.table != one.table || other.columns == one.columns);
        if !reads.iter().all(same) {
            let message = "reads of one table ask for different columns";
            return Err(refusal(operation, Class::Invalid, "Request", message.into()));
        }
        let request = |open: &[usize]| {
            let mut tables: Vec<message::TableOfBatchGet> = Vec::new();
            for read in open.iter().map(|&at| &reads[at]) {
                let key = key_buffer(&read.key);
                match tables.iter_mut().find(|table| table.table_name == read.table) {
                    Some(table) => table.primary_key.push(key),
                    None => tables.push(message::TableOfBatchGet {
                        table_name: read.table.clone(),
                        primary_key: vec![key],
                        columns_to_get: read.columns.clone(),
                        max_versions: Some(1),
                        ..message::TableOfBatchGet::default()
                    }),
                }
            }
            message::BatchGetRowRequest { tables }
        };
        let tables: Vec<_> = reads.iter().map(|read| read.table.as_str()).collect();
        self.batch(operation, &tables, request).await
    }

    /// Carries out at most [`MAX_BATCH_WRITE`] writes, each independent of the others. The results are
    /// in the order of the writes. No row may be written twice.
    ///
    /// # Errors
    ///
    /// Fails if the whole call failed. With [`Class::Unknown`], each write may have been carried out.
    /// Rows that failed on their own have their own errors.
    pub async fn batch_write_rows(&self, writes: &[Write]) -> Result<Vec<RowResult>, Error> {
        let operation = Operation::BatchWriteRow;
        check_batch(operation, writes.iter().map(|write| (&write.table, &write.key)), MAX_BATCH_WRITE)?;
        let request = |open: &[usize]| {
            let mut tables: Vec<message::TableOfBatchWrite> = Vec::new();
            for write in open.iter().map(|&at| &writes[at]) {
                let row = write.to_batch_message();
                match tables.iter_mut().find(|table| table.table_name == write.table) {
                    Some(table) => table.rows.push(row),
                    None => tables.push(message::TableOfBatchWrite {
                        table_name: write.table.clone(),
                        rows: vec![row],
                    }),
                }
            }
            message::BatchWriteRowRequest { tables, transaction_id: None, is_atomic: None }
        };
        let tables: Vec<_> = writes.iter().map(|write| write.table.as_str()).collect();
        self.batch(operation, &tables, request).await
    }

    /// Makes a batch, and repeats its failed rows as long as that is safe and useful. `tables` names
    /// the table of each row, and `request` makes the request for the rows with these numbers.
    async fn batch<M: Message>(
        &self,
        operation: Operation,
        tables: &[&str],
        request: impl Fn(&[usize]) -> M,
    ) -> Result<Vec<RowResult>, Error> {
        let mut results: Vec<Option<RowResult>> = tables.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..tables.len()).collect();
        let mut patience = Patience::new(&self.timeouts);
        while !open.is_empty() {
            // The rows of one table are together in requests and answers.
            let order = grouped(&open, tables);
            let body = Zeroizing::new(request(&order).encode_to_vec());
            let answer = self.signed(operation, &body, patience.deadline).await;
            let answer = answer.and_then(|answer| rows_of(operation, answer, &order, tables));
            let rows = match answer {
                Ok(rows) => rows,
                Err(error) => match patience.wait(error).await {
                    Ok(()) => continue,
                    Err(error) if results.iter().all(Option::is_none) => return Err(error),
                    // Some rows have their results already, from an earlier attempt.
                    Err(error) => {
                        open.iter().for_each(|&at| results[at] = Some(Err(error.clone())));
                        break;
                    }
                },
            };
            let mut repeated = None;
            open.clear();
            for (at, row) in order.into_iter().zip(rows) {
                let result = self.row_of_batch(operation, row);
                if let Err(error) = &result
                    && error.may_repeat()
                {
                    open.push(at);
                    repeated = Some(error.clone());
                }
                results[at] = Some(result.map_err(Error::settled));
            }
            if let Some(error) = repeated
                && patience.wait(error).await.is_err()
            {
                break;
            }
        }
        let missing = || Err(not_expected(operation, "it has no result for a row"));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
    }

    fn row_of_batch(&self, operation: Operation, row: message::RowOfBatch) -> RowResult {
        if let Some(consumed) = row.consumed {
            self.count(consumed);
        }
        let bytes = Zeroizing::new(row.row.unwrap_or_default());
        if row.is_ok {
            return read_row(&bytes).map_err(|error| malformed(operation, error));
        }
        let error = row.error.unwrap_or_default();
        let message = error.message.unwrap_or_default();
        // A row has no HTTP status. An unknown code means that the outcome is unknown, too.
        let class = classify(500, &error.code, &message);
        Err(refusal(operation, class, &sanitized(&error.code, &[]), sanitized(&message, &[])))
    }
}

/// Sorts the numbers of rows so that those of one table are together, in the order of the first row of
/// each table.
fn grouped(open: &[usize], tables: &[&str]) -> Vec<usize> {
    let mut order = Vec::with_capacity(open.len());
    let mut seen = HashSet::new();
    for &first in open {
        if seen.insert(tables[first]) {
            order.extend(open.iter().copied().filter(|&at| tables[at] == tables[first]));
        }
    }
    order
}

/// Returns the results of an answer, after a check that it has one for each row.
fn rows_of(
    operation: Operation,
    answer: message::BatchResponse,
    order: &[usize],
    tables: &[&str],
) -> Result<Vec<message::RowOfBatch>, Error> {
    let mut rows = Vec::with_capacity(order.len());
    let mut names = Vec::with_capacity(order.len());
    for table in answer.tables {
        names.extend(table.rows.iter().map(|_| table.table_name.clone()));
        rows.extend(table.rows);
    }
    let is_same = names.len() == order.len() && names.iter().zip(order).all(|(name, &at)| name == tables[at]);
    match is_same {
        true => Ok(rows),
        false => Err(not_expected(operation, "its rows are not those of the request")),
    }
}

fn check_batch<'a>(
    operation: Operation,
    rows: impl Iterator<Item = (&'a String, &'a Key)>,
    maximum: usize,
) -> Result<(), Error> {
    let mut seen = HashSet::new();
    let invalid = |message: String| Err(refusal(operation, Class::Invalid, "Request", message));
    for (table, key) in rows {
        // The service refuses a whole batch in which a row occurs twice.
        if !seen.insert((table, key)) {
            return invalid(format!("a row of {table} occurs twice"));
        }
        if seen.len() > maximum {
            return invalid(format!("there are more than {maximum} rows"));
        }
    }
    Ok(())
}

fn malformed(operation: Operation, error: Malformed) -> Error {
    not_expected(operation, &format!("a row cannot be read: {error}"))
}

fn not_expected(operation: Operation, what: &str) -> Error {
    unreadable(operation, format!("the answer is signed, but {what}"))
}
