//! `PlainBuffer`, the form in which Tablestore sends rows inside its messages, with its two kinds of
//! checksums. The client and the stand-in use it in both directions. This module knows bytes only:
//! nothing about tables, or about the legal sizes of names and values.
//!
//! The grammar is that of the official SDKs, because the published grammar differs from the bytes that
//! the service sends (docs/tablestore.md). All integers are little-endian.
//!
//! ```text
//! buffer  = 75 00 00 00 row*
//! row     = 01 cell* [02 cell*] [08] 09 checksum
//! cell    = 03 04 len:u32 name [05 len:u32 variant] [06 change:u8] [07 version:i64] 0A checksum
//! variant = 00 i64 | 01 f64 | 02 bool:u8 | 03 len:u32 text | 07 len:u32 bytes | 09 | 0A | 0B
//! ```

use zeroize::Zeroizing;

use super::value::Value;

/// Maximum number of rows in a buffer: those of one page of `GetRange`.
pub const MAX_ROWS: usize = 5_000;
/// Maximum number of cells in a buffer, which bounds the memory that decoding takes.
pub const MAX_CELLS: usize = 256 * 1024;

const HEADER: [u8; 4] = [0x75, 0, 0, 0];

const TAG_KEY: u8 = 0x01;
const TAG_COLUMNS: u8 = 0x02;
const TAG_CELL: u8 = 0x03;
const TAG_NAME: u8 = 0x04;
const TAG_VALUE: u8 = 0x05;
const TAG_CHANGE: u8 = 0x06;
const TAG_VERSION: u8 = 0x07;
const TAG_DELETE_ROW: u8 = 0x08;
const TAG_ROW_CHECKSUM: u8 = 0x09;
const TAG_CELL_CHECKSUM: u8 = 0x0a;

const INTEGER: u8 = 0x00;
const DOUBLE: u8 = 0x01;
const BOOLEAN: u8 = 0x02;
const TEXT: u8 = 0x03;
const BLOB: u8 = 0x07;
const MINIMUM: u8 = 0x09;
const MAXIMUM: u8 = 0x0a;
const AUTO_INCREMENT: u8 = 0x0b;

/// Content of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Variant {
    /// A value.
    Value(Value),
    /// −∞, at an end of a range.
    Minimum,
    /// +∞, at an end of a range.
    Maximum,
    /// Placeholder for a number that the service chooses.
    AutoIncrement,
}

/// Change of a column in `UpdateRow`, other than setting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Removes all versions of the column.
    DeleteAll,
    /// Removes the version that the cell names.
    DeleteVersion,
    /// Adds the cell's number to the column.
    Increment,
}

impl Change {
    fn code(self) -> u8 {
        match self {
            Self::DeleteAll => 1,
            Self::DeleteVersion => 3,
            Self::Increment => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::DeleteAll, Self::DeleteVersion, Self::Increment]
            .into_iter()
            .find(|change| change.code() == code)
    }
}

/// A key column or an attribute column of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Name of the column.
    pub name: String,
    /// Content; `None` if the cell only removes versions.
    pub variant: Option<Variant>,
    /// Change; `None` if the cell sets the column.
    pub change: Option<Change>,
    /// Version in milliseconds since 1970.
    pub version: Option<i64>,
}

impl Cell {
    /// Makes a cell with a content only.
    pub fn new(name: impl Into<String>, variant: Variant) -> Self {
        Self { name: name.into(), variant: Some(variant), change: None, version: None }
    }
}

/// A row as it is sent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WireRow {
    /// Key columns.
    pub key: Vec<Cell>,
    /// Attribute columns.
    pub columns: Vec<Cell>,
    /// Set if the row is to be deleted.
    pub deleted: bool,
}

/// Reason why bytes are not a `PlainBuffer`. It never contains any of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A part is shorter than its length says.
    #[error("it is cut off")]
    Cut,
    /// The first four bytes are not the header.
    #[error("its header is wrong")]
    Header,
    /// Another part was expected.
    #[error("a tag is wrong")]
    Tag,
    /// The type of a value is unknown, or a length does not fit it.
    #[error("a value has a wrong type or length")]
    Variant,
    /// A name or a text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A checksum is wrong.
    #[error("a checksum is wrong")]
    Checksum,
    /// There are more than [`MAX_ROWS`] or [`MAX_CELLS`].
    #[error("it has too many rows or cells")]
    TooMany,
}

/// Checksum of cells and rows: CRC-8 with polynomial 0x07, initial value 0, neither reflected nor
/// inverted at the end (CRC-8/SMBUS).
#[derive(Clone, Copy, Default)]
struct Checksum(u8);

const CRC_TABLE: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u8;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 0x80 == 0 { value << 1 } else { (value << 1) ^ 0x07 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
};

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = CRC_TABLE[usize::from(self.0 ^ byte)];
        }
    }
}

/// Encodes rows as a buffer. Without rows, the buffer is empty and has no header.
pub fn encode(rows: &[WireRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * rows.len());
    if !rows.is_empty() {
        out.extend(HEADER);
    }
    for row in rows {
        encode_row(row, &mut out);
    }
    out
}

fn encode_row(row: &WireRow, out: &mut Vec<u8>) {
    let mut checksum = Checksum::default();
    out.push(TAG_KEY);
    for cell in &row.key {
        checksum.add(&[encode_cell(cell, out)]);
    }
    if !row.columns.is_empty() {
        out.push(TAG_COLUMNS);
        for cell in &row.columns {
            checksum.add(&[encode_cell(cell, out)]);
        }
    }
    if row.deleted {
        out.push(TAG_DELETE_ROW);
    }
    checksum.add(&[u8::from(row.deleted)]);
    out.extend([TAG_ROW_CHECKSUM, checksum.0]);
}

/// Encodes a cell, and returns its checksum.
fn encode_cell(cell: &Cell, out: &mut Vec<u8>) -> u8 {
    let mut checksum = Checksum::default();
    out.extend([TAG_CELL, TAG_NAME]);
    out.extend(length(cell.name.len()));
    out.extend(cell.name.as_bytes());
    checksum.add(cell.name.as_bytes());
    if let Some(variant) = &cell.variant {
        let bytes = Zeroizing::new(encode_variant(variant));
        out.push(TAG_VALUE);
        out.extend(length(bytes.len()));
        out.extend(&*bytes);
        checksum.add(&bytes);
    }
    if let Some(change) = cell.change {
        out.extend([TAG_CHANGE, change.code()]);
    }
    if let Some(version) = cell.version {
        out.push(TAG_VERSION);
        out.extend(version.to_le_bytes());
        checksum.add(&version.to_le_bytes());
    }
    // In the bytes, the change comes before the version; in the checksum, it comes after the version.
    if let Some(change) = cell.change {
        checksum.add(&[change.code()]);
    }
    out.extend([TAG_CELL_CHECKSUM, checksum.0]);
    checksum.0
}

/// Encodes a value without a cell around it, as in a condition.
pub fn encode_variant(variant: &Variant) -> Vec<u8> {
    let with = |tag: u8, parts: [&[u8]; 2]| [&[tag][..], parts[0], parts[1]].concat();
    match variant {
        Variant::Value(Value::Integer(number)) => with(INTEGER, [&number.to_le_bytes(), &[]]),
        Variant::Value(Value::Double(number)) => with(DOUBLE, [&number.to_le_bytes(), &[]]),
        Variant::Value(Value::Boolean(truth)) => vec![BOOLEAN, u8::from(*truth)],
        Variant::Value(Value::Text(text)) => with(TEXT, [&length(text.len()), text.as_bytes()]),
        Variant::Value(Value::Blob(bytes)) => with(BLOB, [&length(bytes.len()), bytes]),
        Variant::Minimum => vec![MINIMUM],
        Variant::Maximum => vec![MAXIMUM],
        Variant::AutoIncrement => vec![AUTO_INCREMENT],
    }
}

/// Encodes a length. A length that does not fit belongs to a request that is far too long, and the
/// client refuses it before it is sent.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

/// Decodes a buffer that consists of whole rows. An empty buffer has no rows.
///
/// # Errors
///
/// Fails if the bytes are anything else, or have more than [`MAX_ROWS`] or [`MAX_CELLS`].
pub fn decode(bytes: &[u8]) -> Result<Vec<WireRow>, Malformed> {
    let mut rows = Vec::new();
    if bytes.is_empty() {
        return Ok(rows);
    }
    let mut reader = Reader { rest: bytes, cells: 0 };
    reader.header()?;
    while !reader.rest.is_empty() {
        if rows.len() == MAX_ROWS {
            return Err(Malformed::TooMany);
        }
        rows.push(reader.row()?);
    }
    // The service never sends a header without a row: for "no rows", it sends an empty buffer.
    if rows.is_empty() { Err(Malformed::Cut) } else { Ok(rows) }
}

/// Decodes the first row of a buffer and ignores what follows it. The SDK for Node.js pads some
/// rows with zeros.
///
/// # Errors
///
/// Fails if the buffer does not begin with a whole row.
pub fn decode_first(bytes: &[u8]) -> Result<WireRow, Malformed> {
    let mut reader = Reader { rest: bytes, cells: 0 };
    reader.header()?;
    reader.row()
}

/// Decodes a value without a cell around it.
///
/// # Errors
///
/// Fails if the bytes are not exactly one value.
pub fn decode_variant(bytes: &[u8]) -> Result<Variant, Malformed> {
    let mut reader = Reader { rest: bytes, cells: 0 };
    let variant = match reader.byte()? {
        INTEGER => Variant::Value(Value::Integer(i64::from_le_bytes(reader.array()?))),
        DOUBLE => Variant::Value(Value::Double(f64::from_le_bytes(reader.array()?))),
        BOOLEAN => match reader.byte()? {
            0 => Variant::Value(Value::Boolean(false)),
            1 => Variant::Value(Value::Boolean(true)),
            _ => return Err(Malformed::Variant),
        },
        TEXT => Variant::Value(reader.text()?.into()),
        BLOB => Variant::Value(reader.sized()?.to_vec().into()),
        MINIMUM => Variant::Minimum,
        MAXIMUM => Variant::Maximum,
        AUTO_INCREMENT => Variant::AutoIncrement,
        _ => return Err(Malformed::Variant),
    };
    if reader.rest.is_empty() { Ok(variant) } else { Err(Malformed::Variant) }
}

/// The rest of a buffer. Nothing can be read beyond its end.
struct Reader<'a> {
    rest: &'a [u8],
    /// Number of cells so far.
    cells: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Cut)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// Reads bytes that follow their length.
    fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).map_err(|_| Malformed::Cut)?)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.sized()?).map_err(|_| Malformed::Text)
    }

    /// Reads the tag if it is the next one.
    fn has(&mut self, tag: u8) -> bool {
        let is_next = self.rest.first() == Some(&tag);
        if is_next {
            self.rest = &self.rest[1..];
        }
        is_next
    }

    fn expect(&mut self, tag: u8) -> Result<(), Malformed> {
        match self.byte()? == tag {
            true => Ok(()),
            false => Err(Malformed::Tag),
        }
    }

    fn header(&mut self) -> Result<(), Malformed> {
        match self.array()? == HEADER {
            true => Ok(()),
            false => Err(Malformed::Header),
        }
    }

    fn row(&mut self) -> Result<WireRow, Malformed> {
        let mut row = WireRow::default();
        let mut checksum = Checksum::default();
        self.expect(TAG_KEY)?;
        self.row_cells(&mut row.key, &mut checksum)?;
        if self.has(TAG_COLUMNS) {
            self.row_cells(&mut row.columns, &mut checksum)?;
        }
        row.deleted = self.has(TAG_DELETE_ROW);
        checksum.add(&[u8::from(row.deleted)]);
        self.expect(TAG_ROW_CHECKSUM)?;
        match self.byte()? == checksum.0 {
            true => Ok(row),
            false => Err(Malformed::Checksum),
        }
    }

    fn row_cells(&mut self, cells: &mut Vec<Cell>, checksum: &mut Checksum) -> Result<(), Malformed> {
        while self.has(TAG_CELL) {
            self.cells += 1;
            if self.cells > MAX_CELLS {
                return Err(Malformed::TooMany);
            }
            let (cell, sum) = self.cell()?;
            checksum.add(&[sum]);
            cells.push(cell);
        }
        Ok(())
    }

    /// Reads a cell, after its tag was read. Returns the cell and its checksum.
    fn cell(&mut self) -> Result<(Cell, u8), Malformed> {
        let mut checksum = Checksum::default();
        self.expect(TAG_NAME)?;
        let name = self.text()?;
        checksum.add(name.as_bytes());
        let mut cell = Cell { name: name.to_owned(), variant: None, change: None, version: None };
        if self.has(TAG_VALUE) {
            let bytes = self.sized()?;
            checksum.add(bytes);
            cell.variant = Some(decode_variant(bytes)?);
        }
        if self.has(TAG_CHANGE) {
            cell.change = Some(Change::from_code(self.byte()?).ok_or(Malformed::Tag)?);
        }
        if self.has(TAG_VERSION) {
            let bytes: [u8; 8] = self.array()?;
            checksum.add(&bytes);
            cell.version = Some(i64::from_le_bytes(bytes));
        }
        if let Some(change) = cell.change {
            checksum.add(&[change.code()]);
        }
        self.expect(TAG_CELL_CHECKSUM)?;
        match self.byte()? == checksum.0 {
            true => Ok((cell, checksum.0)),
            false => Err(Malformed::Checksum),
        }
    }
}

#[cfg(test)]
mod tests;
