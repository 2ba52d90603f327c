//! The stand-in's state file: its tables and rows, in the forms in which they are sent, as JSON.

use std::{fs, io, path::Path};

use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    Refusal,
    operations::{Tables, schema},
    table::Table,
};
use crate::tablestore::{message, plain_buffer};

#[derive(Serialize, Deserialize)]
struct File {
    tables: Vec<StoredTable>,
}

#[derive(Serialize, Deserialize)]
struct StoredTable {
    /// The request that creates the table, in hexadecimal digits.
    create: String,
    /// Time of creation in milliseconds since 1970.
    created: i64,
    /// Rows with all versions, each a `PlainBuffer` in hexadecimal digits.
    rows: Vec<String>,
}

/// Returns the content of the state file.
pub(super) fn write(tables: &Tables) -> io::Result<Vec<u8>> {
    let table = |table: &Table| StoredTable {
        create: hex::encode(table.schema.to_message().encode_to_vec()),
        created: table.created,
        rows: table.dump().map(|row| hex::encode(plain_buffer::encode(&[row]))).collect(),
    };
    let file = File { tables: tables.by_name.values().map(table).collect() };
    Ok(serde_json::to_vec(&file)?)
}

/// Reads the state file, if it exists.
///
/// # Errors
///
/// Fails if the file cannot be read, or is not a state file.
pub(super) fn read(path: &Path, tables: &mut Tables) -> io::Result<()> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let refused = |refusal: Refusal| wrong(&refusal.message);
    let file: File = serde_json::from_slice(&text)?;
    for stored in file.tables {
        let create =
            hex::decode(&stored.create).map_err(|_| wrong("a table is not in hexadecimal digits"))?;
        let create =
            message::CreateTableRequest::decode(&*create).map_err(|_| wrong("a table is malformed"))?;
        let mut table = Table::new(schema(&create).map_err(refused)?, stored.created);
        for row in &stored.rows {
            let row = hex::decode(row).map_err(|_| wrong("a row is not in hexadecimal digits"))?;
            let row = plain_buffer::decode_first(&row).map_err(|_| wrong("a row is malformed"))?;
            table.restore(row).map_err(refused)?;
        }
        tables.by_name.insert(table.schema.name.clone(), table);
    }
    Ok(())
}
