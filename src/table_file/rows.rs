//! Rows of a table file: which columns need each other, and the rule that a device or an identity
//! occurs only once. The only I/O is reading the file. The rules do not depend on the rows that are
//! already in the table.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
};

use zeroize::Zeroizing;

use super::{
    COLUMNS, Enrollments, LineError,
    encoding::{self, Text},
    header::{self, Header, Meaning},
    lines::{self, Line, Lines},
    remarks::Remarks,
    values,
};
use crate::{
    psk::{EnrollmentOutline, KindName},
    store::ImportRow,
};

/// Reason why a row could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// This line is wrong; the next line may be right.
    Line(LineError),
    /// The file cannot be read any further.
    Io(io::Error),
}

/// Form in which a file has its rows.
enum Form {
    /// Lines of fields.
    Csv(Header),
    /// A JSON object on each line.
    Json,
}

/// Iterator over the rows of a table file, in their order. After a bad line, it continues with
/// the next line. A row that is there twice is returned once.
pub struct Rows<'e, R> {
    lines: Lines<Text<R>>,
    line: u64,
    rules: Rules<'e>,
    /// A first line that is already a row.
    first: Option<Zeroizing<String>>,
    broken: bool,
}

/// Reads the header, if the file has one; the returned iterator reads the rows. Unknown columns are
/// errors, or are ignored on request.
pub fn read<R: Read>(
    reader: R,
    enrollments: &Enrollments,
    ignores_unknown: bool,
) -> Result<Rows<'_, R>, ReadError> {
    let fault = |line, reason| ReadError::Line(Fault::line(reason).at(line));
    let text = encoding::recognized(reader).map_err(ReadError::Io)?.map_err(|reason| fault(1, reason))?;
    let mut lines = Lines::new(text);
    let mut named = None;
    let (line, first) = loop {
        match lines.next().map_err(ReadError::Io)? {
            Some(Line { number, text: Ok(text) }) => match header::named_separator(text) {
                Some(separator) if named.is_none() => named = Some(separator),
                _ => break (number, Zeroizing::new(text.to_owned())),
            },
            Some(Line { number, text: Err(reason) }) => return Err(fault(number, reason)),
            None => {
                let reason = format!("the file is empty; expected the header {}", COLUMNS.join(","));
                return Err(fault(1, reason));
            }
        }
    };
    let mut remarks = Remarks::default();
    let begins = |character| first.trim_start_matches(values::is_blank).starts_with(character);
    if begins('[') {
        let reason = "this is a JSON array; write one object on each line: jq -c '.[]' FILE".to_owned();
        return Err(fault(line, reason));
    }
    let (form, is_row) = if begins('{') {
        (Form::Json, true)
    } else if named.is_none() && header::is_bare_device(&first) {
        remarks.has_no_header = true;
        (Form::Csv(Header { separator: ',', columns: vec![Meaning::Column(0)], ignored: Vec::new() }), true)
    } else {
        let separator = named.unwrap_or_else(|| header::separator(&first));
        let header =
            header::read(&first, separator, ignores_unknown).map_err(|reason| fault(line, reason))?;
        remarks.ignored.clone_from(&header.ignored);
        (Form::Csv(header), false)
    };
    let rules = Rules {
        form,
        header_line: first.clone(),
        enrollments,
        ignores_unknown,
        devices: Seen::default(),
        identities: Seen::default(),
        remarks,
    };
    // The number of the first line is set again when the line is read as a row.
    let line = if is_row { line.saturating_sub(1) } else { line };
    Ok(Rows { lines, line, rules, first: is_row.then_some(first), broken: false })
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

    /// Returns what an operator should know about the rows that were read.
    pub fn remarks(&self) -> Vec<String> {
        self.rules.remarks.sentences(self.lines.is_gb18030())
    }
}

impl<R: Read> Iterator for Rows<'_, R> {
    type Item = Result<ImportRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.broken {
            let row = if let Some(first) = self.first.take() {
                self.line += 1;
                self.rules.row(&first, self.line)
            } else {
                match self.lines.next() {
                    Ok(line) => {
                        let Line { number, text } = line?;
                        self.line = number;
                        text.map_err(Fault::line).and_then(|text| self.rules.row(text, number))
                    }
                    Err(error) => {
                        self.broken = true;
                        return Some(Err(ReadError::Io(error)));
                    }
                }
            };
            match row {
                Ok(None) => {}
                Ok(Some(row)) => return Some(Ok(row)),
                Err(fault) => return Some(Err(ReadError::Line(fault.at(self.line)))),
            }
        }
        None
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

/// Values of a line, by column. An empty field and a missing column mean the same.
type Values<'l> = [Option<Cow<'l, str>>; COLUMNS.len()];

/// State that is needed to check a line.
struct Rules<'e> {
    form: Form,
    /// The first line of the file.
    header_line: Zeroizing<String>,
    enrollments: &'e Enrollments,
    ignores_unknown: bool,
    devices: Seen,
    identities: Seen,
    remarks: Remarks,
}

impl Rules<'_> {
    /// Reads a row; returns `None` for a line that adds nothing: one without values, the header
    /// again, or a row that is already there.
    fn row(&mut self, text: &str, line: u64) -> Result<Option<ImportRow>, Fault> {
        self.remarks.line = line;
        let values = match &self.form {
            Form::Csv(_) if line > 1 && text == &**self.header_line && !self.remarks.has_no_header => {
                self.remarks.headers.note(line);
                return Ok(None);
            }
            Form::Csv(header) => csv_values(header, text)?,
            Form::Json => json_values(text, self.ignores_unknown)?,
        };
        if values.iter().all(Option::is_none) {
            return Ok(None);
        }
        let is_named_by_name =
            values[0].is_none() && matches!(&self.form, Form::Csv(header) if !header.has(0));
        self.remarks.has_rows = true;
        let row = self.checked(values, is_named_by_name)?;
        let mut rest = self.devices.low.hash_one((
            &row.enrollment,
            &row.product_key,
            &row.device_name,
            row.device_secret.as_ref().map(crate::device::Secret::expose),
            &row.iot_id,
            row.key.as_ref().map(|(identity, psk)| (identity, psk.expose())),
        ));
        // Zero stands for no row.
        rest |= 1;
        match self.devices.first(row.device.as_str(), line, rest) {
            Some((_, same)) if same == rest => {
                self.remarks.repeated.note(line);
                return Ok(None);
            }
            Some((first, _)) => {
                let reason = format!("device {} is already in line {first}, with other values", row.device);
                return Err(Fault::column("deviceId", reason));
            }
            None => {}
        }
        if let Some((identity, _)) = &row.key
            && let Some((first, _)) = self.identities.first(identity, line, 0)
        {
            return Err(Fault::column("pskIdentity", format!("this identity is already in line {first}")));
        }
        Ok(Some(row))
    }

    /// Checks the values of a row by themselves.
    fn checked(&mut self, values: Values<'_>, is_named_by_name: bool) -> Result<ImportRow, Fault> {
        let [device, enrollment, product_key, device_name, device_secret, iot_id, identity, psk] = values;
        let in_column = |column| move |reason: String| Fault::column(column, reason);
        let device = if is_named_by_name { device_name.clone() } else { device };
        let device = device.unwrap_or_default();
        let device = values::device_id(&device).map_err(in_column("deviceId")).inspect(|id| {
            self.remarks.look_at(&device, id);
        })?;
        let enrollment = self.enrollment(enrollment.as_deref())?;
        let key = match (identity, psk) {
            (None, None) => None,
            (Some(identity), Some(psk)) => Some((
                values::psk_identity(&identity).map_err(in_column("pskIdentity"))?,
                values::psk(&psk).map_err(in_column("psk"))?,
            )),
            (Some(_), None) => return Err(Fault::column("psk", "empty, but there is a pskIdentity")),
            (None, Some(_)) => return Err(Fault::column("pskIdentity", "empty, but there is a psk")),
        };
        let row = ImportRow {
            enrollment: enrollment.name.clone(),
            enrollment_product: enrollment.product_key.clone(),
            individual: enrollment.kind == KindName::Individual,
            product_key: product_key
                .map(|value| values::product_key(&value).map_err(in_column("productKey")))
                .transpose()?,
            device_name: device_name
                .map(|value| values::device_name(&value).map_err(in_column("deviceName")))
                .transpose()?,
            device_secret: device_secret
                .map(|value| values::device_secret(&value).map_err(in_column("deviceSecret")))
                .transpose()?,
            iot_id: iot_id.map(|value| values::iot_id(&value).map_err(in_column("iotId"))).transpose()?,
            key,
            device,
        };
        if row.product_key.as_ref().is_some_and(|product_key| *product_key != row.enrollment_product) {
            self.remarks.other_products.note(self.remarks.line);
        }
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
            if let Some(shared) = self.enrollments.sharing(identity) {
                let reason = format!(
                    "this is the shared identity of enrollment \"{}\"; expected one of the device's own",
                    shared.name
                );
                return Err(Fault::column("pskIdentity", reason));
            }
        }
        Ok(row)
    }

    fn enrollment(&self, name: Option<&str>) -> Result<&EnrollmentOutline, Fault> {
        let fault = |reason: String| Fault::column("enrollment", format!("{reason}; {}", self.enrollments));
        match name {
            Some(name) => self.enrollments.named(name).ok_or_else(|| {
                let similar = self.enrollments.similar(name);
                let hint = similar.map(|name| format!(", did you mean \"{name}\"?")).unwrap_or_default();
                fault(format!("unknown enrollment \"{}\"{hint}", name.escape_debug()))
            }),
            None => self.enrollments.default().ok_or_else(|| {
                fault("empty, and there is no default; add the column, or use --enrollment NAME".into())
            }),
        }
    }
}

/// Removes what surrounds a value. A PSK identity stays as it is, because devices send it byte for
/// byte.
fn cleaned(column: usize, field: Cow<'_, str>) -> Option<Cow<'_, str>> {
    const ENROLLMENT: usize = 1;
    const IDENTITY: usize = 6;
    let bare = values::unwrapped(&field);
    if bare.is_empty() {
        return None;
    }
    if column == IDENTITY {
        return Some(field);
    }
    let bare = if column == ENROLLMENT { Cow::Borrowed(bare) } else { values::folded(bare) };
    Some(Cow::Owned(bare.into_owned()))
}

fn csv_values<'l>(header: &Header, text: &'l str) -> Result<Values<'l>, Fault> {
    let fields = lines::fields(text, header.separator).map_err(Fault::line)?;
    let mut values = Values::default();
    let expected = header.columns.len();
    let found = fields.len();
    let mut is_too_long = false;
    for (at, field) in fields.into_iter().enumerate() {
        match header.columns.get(at) {
            Some(Meaning::Column(column)) => values[*column] = cleaned(*column, field),
            Some(Meaning::Ignored) => {}
            Some(Meaning::Unnamed) if values::unwrapped(&field).is_empty() => {}
            Some(Meaning::Unnamed) => {
                return Err(Fault::line(format!("column {} has a value but no name in the header", at + 1)));
            }
            None => is_too_long |= !values::unwrapped(&field).is_empty(),
        }
    }
    // A line of separators has no values, however many there are.
    let is_empty = values.iter().all(Option::is_none);
    if is_too_long || (found < expected && !is_empty) {
        return Err(Fault::line(format!("{found} fields, the header has {expected}")));
    }
    Ok(values)
}

fn json_values(text: &str, ignores_unknown: bool) -> Result<Values<'_>, Fault> {
    let fault = |error: serde_json::Error| {
        let at = error.column();
        Fault::line(format!("not a JSON object on one line (character {at})"))
    };
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(fault)?;
    let mut values = Values::default();
    for (name, value) in object {
        let column = match header::meaning(&name) {
            Some(Meaning::Column(column)) => column,
            Some(_) => continue,
            None if ignores_unknown => continue,
            None => {
                let (name, legal) = (name.escape_debug(), COLUMNS.join(", "));
                return Err(Fault::line(format!(
                    "unknown key \"{name}\"; the columns are {legal}; remove it, or ignore it with --ignore-unknown"
                )));
            }
        };
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(value) => value,
            _ => return Err(Fault::column(COLUMNS[column], "expected a JSON string")),
        };
        if values[column].is_some() {
            return Err(Fault::column(COLUMNS[column], "the object has it twice"));
        }
        values[column] = cleaned(column, Cow::Owned(value));
    }
    Ok(values)
}

/// Remembers the line in which each text first occurred. Takes about 30 bytes per text, so that
/// files of many million lines fit in memory. Stores only 96 bits of a hash with a random key. In a
/// file of 10 million lines, the chance of a false alarm is one in 10^15.
#[derive(Default)]
struct Seen {
    low: RandomState,
    high: RandomState,
    lines: HashMap<[u32; 3], (u32, u64)>,
}

impl Seen {
    /// Returns the line in which `text` occurred before, and the hash of the rest of that line. If it
    /// did not, remembers this line for it.
    fn first(&mut self, text: &str, line: u64, rest: u64) -> Option<(u64, u64)> {
        let (low, high) = (self.low.hash_one(text), self.high.hash_one(text));
        let key = [low as u32, (low >> 32) as u32, high as u32];
        // Beyond 4 billion lines, only the line number in the message is wrong.
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        match self.lines.entry(key) {
            std::collections::hash_map::Entry::Occupied(first) => {
                let (line, rest) = *first.get();
                Some((u64::from(line), rest))
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert((line, rest));
                None
            }
        }
    }
}
