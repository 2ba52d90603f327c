//! Rows of a table file: the header, the rules of each column, and the rule that a device or an
//! identity occurs only once. The only I/O is reading the file. The rules do not depend on the rows
//! that are already in the table.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
};

use super::{
    COLUMNS, Enrollments, LineError,
    lines::{self, Line, Lines},
};
use crate::{
    device::{DeviceId, MAX_DEVICE_NAME, Secret},
    psk::{EnrollmentOutline, KindName},
    store::ImportRow,
};

/// Number of hex digits of a key of 16 to 64 bytes.
const PSK_DIGITS: std::ops::RangeInclusive<usize> = 32..=128;

/// Maximum length of a PSK identity, in bytes (RFC 4279 §5.3).
const MAX_IDENTITY: usize = 128;

/// Maximum length of a product key, device secret or IotId, in bytes: several times what
/// IoT Platform assigns.
const MAX_CLOUD_VALUE: usize = 128;

/// Reason why a row could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// This line is wrong; the next line may be right.
    Line(LineError),
    /// The file cannot be read any further.
    Io(io::Error),
}

/// Iterator over the rows of a table file, in their order. After a bad line, it continues with
/// the next line.
pub struct Rows<'e, R> {
    lines: Lines<R>,
    line: u64,
    rules: Rules<'e>,
    broken: bool,
}

/// Reads the header; the returned iterator reads the rows.
pub fn read<R: Read>(reader: R, enrollments: &Enrollments) -> Result<Rows<'_, R>, ReadError> {
    let mut lines = Lines::new(reader);
    let (number, columns) = match lines.next().map_err(ReadError::Io)? {
        Some(Line { number, text: Ok(text) }) => (number, header(text)),
        Some(Line { number, text: Err(reason) }) => (number, Err(Fault::line(reason))),
        None => {
            let reason = format!("the file is empty; expected the header {}", COLUMNS.join(","));
            (1, Err(Fault::line(reason)))
        }
    };
    let columns = columns.map_err(|fault| ReadError::Line(fault.at(number)))?;
    let rules = Rules { columns, enrollments, devices: Seen::default(), identities: Seen::default() };
    Ok(Rows { lines, line: number, rules, broken: false })
}

impl<R: Read> Rows<'_, R> {
    /// Returns the number of the line that was read last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Returns the number of bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.lines.bytes()
    }
}

impl<R: Read> Iterator for Rows<'_, R> {
    type Item = Result<ImportRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        match self.lines.next() {
            Ok(line) => {
                let Line { number, text } = line?;
                self.line = number;
                let row = text.map_err(Fault::line).and_then(|text| self.rules.row(text, number));
                Some(row.map_err(|fault| ReadError::Line(fault.at(number))))
            }
            Err(error) => {
                self.broken = true;
                Some(Err(ReadError::Io(error)))
            }
        }
    }
}

/// An error in a line, without the line number.
struct Fault {
    column: Option<&'static str>,
    reason: String,
}

impl Fault {
    fn line(reason: impl Into<String>) -> Self {
        Self { column: None, reason: reason.into() }
    }

    fn column(column: &'static str, reason: impl Into<String>) -> Self {
        Self { column: Some(column), reason: reason.into() }
    }

    fn at(self, line: u64) -> LineError {
        LineError { line, column: self.column, reason: self.reason }
    }
}

/// Reads the header. Returns, for each field of the file, the index of its column in
/// [`COLUMNS`].
fn header(text: &str) -> Result<Vec<usize>, Fault> {
    let mut columns = Vec::with_capacity(COLUMNS.len());
    for name in lines::fields(text).map_err(Fault::line)? {
        let legal = || format!("the columns are {}", COLUMNS.join(", "));
        let Some(column) = COLUMNS.iter().position(|column| *column == name) else {
            let name = name.escape_debug();
            let hint = if text.contains(',') { "" } else { ", separated by commas" };
            return Err(Fault::line(format!("unknown column \"{name}\"; {}{hint}", legal())));
        };
        if columns.contains(&column) {
            return Err(Fault::line(format!("the column {name} is there twice; {}", legal())));
        }
        columns.push(column);
    }
    if !columns.contains(&0) {
        return Err(Fault::line(format!("the column {} is missing", COLUMNS[0])));
    }
    Ok(columns)
}

/// State that is needed to check a line.
struct Rules<'e> {
    columns: Vec<usize>,
    enrollments: &'e Enrollments,
    devices: Seen,
    identities: Seen,
}

impl Rules<'_> {
    fn row(&mut self, text: &str, line: u64) -> Result<ImportRow, Fault> {
        let fields = lines::fields(text).map_err(Fault::line)?;
        if fields.len() != self.columns.len() {
            let (found, expected) = (fields.len(), self.columns.len());
            return Err(Fault::line(format!("{found} fields, the header has {expected}")));
        }
        // An empty field and a missing column mean the same.
        let mut values: [Option<Cow<'_, str>>; COLUMNS.len()] = Default::default();
        for (field, &column) in fields.into_iter().zip(&self.columns) {
            values[column] = (!field.is_empty()).then_some(field);
        }
        let [device, enrollment, product_key, device_name, device_secret, iot_id, identity, psk] = values;

        let device = device.unwrap_or_default();
        let device =
            DeviceId::parse(&device).map_err(|error| Fault::column("deviceId", error.to_string()))?;
        if let Some(first) = self.devices.first_line(device.as_str(), line) {
            let reason = format!("device {device} is already in line {first}");
            return Err(Fault::column("deviceId", reason));
        }
        let enrollment = self.enrollment(enrollment.as_deref())?;
        let row = ImportRow {
            enrollment: enrollment.name.clone(),
            enrollment_product: enrollment.product_key.clone(),
            individual: enrollment.kind == KindName::Individual,
            product_key: product_key.map(|value| cloud_value("productKey", value)).transpose()?,
            device_name: device_name.map(legal_device_name).transpose()?,
            device_secret: device_secret
                .map(|value| cloud_value("deviceSecret", value).map(Secret::new))
                .transpose()?,
            iot_id: iot_id.map(|value| cloud_value("iotId", value)).transpose()?,
            key: key(identity, psk)?,
            device,
        };
        if row.device_secret.is_some() && row.device_name.is_none() {
            return Err(Fault::column("deviceName", "empty, but there is a deviceSecret"));
        }
        if let Some((identity, _)) = &row.key {
            if !row.individual {
                let reason = format!(
                    "enrollment \"{}\" is not individual, so its devices have no key of their own; expected an \
                     empty pskIdentity and psk",
                    row.enrollment
                );
                return Err(Fault::column("pskIdentity", reason));
            }
            if let Some(first) = self.identities.first_line(identity, line) {
                return Err(Fault::column(
                    "pskIdentity",
                    format!("this identity is already in line {first}"),
                ));
            }
        }
        Ok(row)
    }

    fn enrollment(&self, name: Option<&str>) -> Result<&EnrollmentOutline, Fault> {
        let fault = |reason: String| Fault::column("enrollment", format!("{reason}; {}", self.enrollments));
        match name {
            Some(name) => self
                .enrollments
                .named(name)
                .ok_or_else(|| fault(format!("unknown enrollment \"{}\"", name.escape_debug()))),
            None => self.enrollments.default().ok_or_else(|| fault("empty, and there is no default".into())),
        }
    }
}

/// Checks IoT Platform's rule for a DeviceName.
fn legal_device_name(name: Cow<'_, str>) -> Result<String, Fault> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:@-".contains(&byte);
    if !(4..=MAX_DEVICE_NAME).contains(&name.len()) || !name.bytes().all(legal) {
        let reason = format!("expected 4 to {MAX_DEVICE_NAME} of A-Z a-z 0-9 _ . : @ -");
        return Err(Fault::column("deviceName", reason));
    }
    Ok(name.into_owned())
}

/// Accepts any value that IoT Platform may have assigned, unchanged.
fn cloud_value(column: &'static str, value: Cow<'_, str>) -> Result<String, Fault> {
    if value.len() > MAX_CLOUD_VALUE || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = format!("expected 1 to {MAX_CLOUD_VALUE} printable ASCII characters without spaces");
        return Err(Fault::column(column, reason));
    }
    Ok(value.into_owned())
}

/// Checks the PSK identity and the key of an individual device, which must be both present or both
/// absent.
fn key(identity: Option<Cow<'_, str>>, psk: Option<Cow<'_, str>>) -> Result<Option<(String, Secret)>, Fault> {
    let (identity, psk) = match (identity, psk) {
        (None, None) => return Ok(None),
        (Some(identity), Some(psk)) => (identity, psk),
        (Some(_), None) => {
            return Err(Fault::column("psk", "empty, but there is a pskIdentity"));
        }
        (None, Some(_)) => {
            return Err(Fault::column("pskIdentity", "empty, but there is a psk"));
        }
    };
    if identity.len() > MAX_IDENTITY || identity.chars().any(char::is_control) {
        let reason = format!("expected 1 to {MAX_IDENTITY} bytes of UTF-8 without control characters");
        return Err(Fault::column("pskIdentity", reason));
    }
    if let Some(at) = psk.chars().position(|character| !character.is_ascii_hexdigit()) {
        return Err(Fault::column("psk", format!("character {} is not a hex digit", at + 1)));
    }
    let (digits, least, most) = (psk.len(), PSK_DIGITS.start(), PSK_DIGITS.end());
    if !PSK_DIGITS.contains(&digits) {
        return Err(Fault::column("psk", format!("{digits} hex digits, expected {least} to {most}")));
    }
    if digits % 2 == 1 {
        return Err(Fault::column("psk", format!("{digits} hex digits, expected an even number")));
    }
    let mut psk = psk.into_owned();
    psk.make_ascii_lowercase();
    Ok(Some((identity.into_owned(), Secret::new(psk))))
}

/// Remembers the line in which each text first occurred. Takes about 20 bytes per text, so that
/// files of many million lines fit in memory. Stores only 96 bits of a hash with a random key. In a
/// file of 10 million lines, the chance of a false alarm is one in 10^15.
#[derive(Default)]
struct Seen {
    low: RandomState,
    high: RandomState,
    lines: HashMap<[u32; 3], u32>,
}

impl Seen {
    /// Returns the line in which `text` occurred before. If it did not, remembers `line` for it.
    fn first_line(&mut self, text: &str, line: u64) -> Option<u64> {
        let (low, high) = (self.low.hash_one(text), self.high.hash_one(text));
        let key = [low as u32, (low >> 32) as u32, high as u32];
        // Beyond 4 billion lines, only the line number in the message is wrong.
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        match self.lines.entry(key) {
            std::collections::hash_map::Entry::Occupied(first) => Some(u64::from(*first.get())),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(line);
                None
            }
        }
    }
}
