//! Rows of a table file. The rules in this module say which columns require each other. They depend
//! neither on other rows nor on the table. The only I/O is reading the file.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use zeroize::Zeroizing;

use super::{
    COLUMNS, Enrollments, LineError,
    encoding::{self, Text},
    export,
    header::{self, Header, Meaning},
    lines::{self, Line, Lines},
    remarks::Remarks,
    values,
};
use crate::{
    device::AskedId,
    psk::{EnrollmentOutline, KindName},
    store::ImportRow,
};

/// Length of the shortest secret, in characters. A pre-shared key of 16 bytes has 32 hex digits,
/// and a device secret has 32 characters.
const SECRET: usize = 32;

/// Reason why a row could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// This line is bad, but reading can continue with the next line.
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

/// Iterator over the rows of a table file, in their order. After a bad line, the iterator continues
/// with the next line.
pub struct Rows<'e, R> {
    lines: Lines<Text<R>>,
    line: u64,
    rules: Rules<'e>,
    /// The first line, if it is a row instead of a header.
    first: Option<Zeroizing<String>>,
    is_stream: bool,
    /// Set if the last line was bad.
    is_bad: bool,
    is_over: bool,
}

/// Reads the header, if there is one. The returned iterator reads the rows. Unknown columns are
/// errors unless `ignores_unknown` is set. A stream must end with a line end.
pub fn read<'e, R: Read>(
    reader: R,
    enrollments: &'e Enrollments,
    ignores_unknown: bool,
    is_stream: bool,
) -> Result<Rows<'e, R>, ReadError> {
    let fault = |line, reason| ReadError::Line(Fault::line(reason).at(line));
    let text = encoding::recognized(reader).map_err(ReadError::Io)?.map_err(|reason| fault(1, reason))?;
    let mut lines = Lines::new(text);
    let mut named = None;
    let (line, first) = loop {
        match lines.next().map_err(ReadError::Io)? {
            Some(Line { number, text: Ok(text), .. }) => match header::named_separator(text) {
                Some(separator) if named.is_none() => named = Some(separator),
                // A line that begins with `#` may be a header whose first column is called `#`.
                _ if is_comment(text) && header::read(text, header::separator(text), true).is_err() => {}
                _ => break (number, Zeroizing::new(text.to_owned())),
            },
            Some(Line { number, text: Err(reason), .. }) => return Err(fault(number, reason)),
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
        remarks.first_device = Some(values::shown(values::unwrapped(&first)));
        (Form::Csv(Header { separator: ',', columns: vec![Meaning::Column(0)], ignored: Vec::new() }), true)
    } else {
        let separator = named.unwrap_or_else(|| header::separator(&first));
        let header =
            header::read(&first, separator, ignores_unknown).map_err(|reason| fault(line, reason))?;
        remarks.ignored.clone_from(&header.ignored);
        (Form::Csv(header), false)
    };
    let rules = Rules { form, enrollments, ignores_unknown, remarks, asked: None };
    // If the first line is a row, it is counted later, when it is read as a row.
    let line = if is_row { line.saturating_sub(1) } else { line };
    let first = is_row.then_some(first);
    Ok(Rows { lines, line, rules, first, is_stream, is_bad: false, is_over: false })
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

    /// Returns the device ID of the last row, in the row's spelling.
    pub fn asked(&self) -> Option<&AskedId> {
        self.rules.asked.as_ref()
    }

    /// Returns the remarks for an operator about the rows that were read.
    pub fn remarks(&self) -> Vec<String> {
        self.rules.remarks.sentences()
    }

    /// Takes the observations about the rows that were read.
    pub(super) fn take_remarks(&mut self) -> Remarks {
        std::mem::take(&mut self.rules.remarks)
    }
}

impl<R: Read> Iterator for Rows<'_, R> {
    type Item = Result<ImportRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(Rules::row)
    }
}

impl<'e, R: Read> Rows<'e, R> {
    /// Returns the device ID of the next row, and ignores the row's other values.
    pub(super) fn next_id(&mut self) -> Option<Result<AskedId, ReadError>> {
        self.next_with(Rules::id)
    }

    /// Calls `read` with each line until `read` returns a value or an error.
    fn next_with<T>(
        &mut self,
        read: impl Fn(&mut Rules<'e>, &str, u64, bool) -> Result<Option<T>, Fault>,
    ) -> Option<Result<T, ReadError>> {
        while !self.is_over {
            let row = if let Some(first) = self.first.take() {
                self.line += 1;
                read(&mut self.rules, &first, self.line, false)
            } else {
                match self.lines.next() {
                    Ok(Some(Line { number, text, is_guessed })) => {
                        self.line = number;
                        text.map_err(Fault::line)
                            .and_then(|text| read(&mut self.rules, text, number, is_guessed))
                    }
                    Ok(None) => {
                        self.is_over = true;
                        let is_cut = self.lines.is_unended() && !self.is_bad;
                        let reason = is_cut.then(|| self.rules.cut(self.is_stream)).flatten()?;
                        Err(Fault::line(reason))
                    }
                    Err(error) => {
                        self.is_over = true;
                        return Some(Err(ReadError::Io(error)));
                    }
                }
            };
            self.is_bad = row.is_err();
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

/// Values of a line, by column; `None` for an empty field or a missing column.
type Values<'l> = [Option<Cow<'l, str>>; COLUMNS.len()];

/// State with which a line is checked.
struct Rules<'e> {
    form: Form,
    enrollments: &'e Enrollments,
    ignores_unknown: bool,
    remarks: Remarks,
    /// Device ID of the last row, in the row's spelling.
    asked: Option<AskedId>,
}

impl Rules<'_> {
    /// Returns the reason why a file whose last line has no line end seems to be cut off; `None` if
    /// the file is probably complete. Some spreadsheets and editors omit the last line end. Such a
    /// file is refused only if the last values of all other rows have the same length, and the last
    /// value of the last row is shorter. A stream without a last line end is always refused.
    fn cut(&self, is_stream: bool) -> Option<String> {
        const REMEDY: &str = "if it is complete, add a line end: sed -i -e '$a\\' FILE";
        // JSON needs no check, because a JSON object that is cut off cannot be read.
        let is_csv = matches!(self.form, Form::Csv(_));
        match is_stream {
            true if is_csv => {
                Some(format!("the input ends without a line end, so it may be cut off; {REMEDY}"))
            }
            false if is_csv && self.remarks.is_last_shorter() => Some(format!(
                "the file ends without a line end, and the last value is shorter than those of the other lines, so \
                 the file may be cut off; {REMEDY}"
            )),
            _ => None,
        }
    }

    /// Reads the values of a line. Returns `None` for a line without values, a comment, or a
    /// repeated header.
    fn values<'l>(
        &mut self,
        text: &'l str,
        line: u64,
        is_guessed: bool,
    ) -> Result<Option<Values<'l>>, Fault> {
        self.remarks.line = line;
        if is_guessed {
            self.remarks.guessed.note(line);
        }
        match &self.form {
            _ if self.is_comment(text) => {
                self.remarks.comments.note(line);
                Ok(None)
            }
            Form::Csv(header) if header::is_header(text, header.separator) => {
                let again = header::read(text, header.separator, true).map_err(Fault::line)?;
                if again.columns != header.columns || self.remarks.first_device.is_some() {
                    return Err(Fault::line("another header; put these rows into a file of their own"));
                }
                self.remarks.headers.note(line);
                Ok(None)
            }
            Form::Csv(header) => csv_values(header, text, &mut self.remarks),
            Form::Json => json_values(text, self.ignores_unknown, &mut self.remarks),
        }
    }

    /// Reads the device ID of a row.
    fn id(&mut self, text: &str, line: u64, is_guessed: bool) -> Result<Option<AskedId>, Fault> {
        let Some([device, _, _, name, ..]) = self.values(text, line, is_guessed)? else { return Ok(None) };
        let text = if self.is_named_by_name(device.as_deref()) { name } else { device };
        self.device(text.as_deref().unwrap_or_default()).map(Some)
    }

    /// Returns whether the device name serves as the device ID. This is the case if the row has no
    /// device ID and the file is not a CSV file with a column for device IDs.
    fn is_named_by_name(&self, device: Option<&str>) -> bool {
        device.is_none() && !matches!(&self.form, Form::Csv(header) if header.has(0))
    }

    fn device(&mut self, text: &str) -> Result<AskedId, Fault> {
        let asked = values::device_id(text).map_err(|reason| {
            // The message shows the value, so that it can be found in the file. If the columns are
            // shifted, a long text may be a secret, so it is not shown.
            let shown = if (1..SECRET).contains(&text.chars().count()) {
                format!("{reason}; found \"{}\"", values::visible(text))
            } else {
                reason
            };
            Fault::column("deviceId", shown)
        })?;
        self.remarks.has_rows = true;
        self.remarks.look_at(text, &asked);
        Ok(asked)
    }

    /// Reads a row. Returns `None` for a line that is not a row.
    fn row(&mut self, text: &str, line: u64, is_guessed: bool) -> Result<Option<ImportRow>, Fault> {
        let Some(values) = self.values(text, line, is_guessed)? else { return Ok(None) };
        self.remarks.has_rows = true;
        const IDENTITY: usize = 6;
        if is_guessed && values[IDENTITY].as_ref().is_some_and(|identity| !identity.is_ascii()) {
            let reason = "the line is not UTF-8, so the identity is uncertain; save the file as CSV UTF-8";
            return Err(Fault::column("pskIdentity", reason));
        }
        let is_named_by_name = self.is_named_by_name(values[0].as_deref());
        self.checked(values, is_named_by_name).map(Some)
    }

    /// Checks the values of a row, without comparing them with other rows.
    fn checked(&mut self, values: Values<'_>, is_named_by_name: bool) -> Result<ImportRow, Fault> {
        let [
            device,
            enrollment,
            product_key,
            device_name,
            device_secret,
            iot_id,
            identity,
            psk,
            next,
            target,
        ] = values;
        let in_column = |column| move |reason: String| Fault::column(column, reason);
        let text = if is_named_by_name { device_name.clone() } else { device }.unwrap_or_default();
        let asked = self.device(&text)?;
        let device = asked.canonical().clone();
        self.asked = Some(asked);
        let enrollment = self.enrollment(enrollment.as_deref())?;
        let key = match (identity, psk) {
            (None, None) if next.is_some() => {
                let reason = "a device gets a second key beside the one that it has; expected its pskIdentity and psk \
                              too";
                return Err(Fault::column("pskNext", reason));
            }
            (None, None) => None,
            (Some(identity), Some(psk)) => Some((
                values::psk_identity(&identity).map_err(in_column("pskIdentity"))?,
                values::psk(&psk).map_err(in_column("psk"))?,
            )),
            (Some(_), None) => return Err(Fault::column("psk", "empty, but there is a pskIdentity")),
            (None, Some(_)) => return Err(Fault::column("pskIdentity", "empty, but there is a psk")),
        };
        let next_key = next.map(|next| values::psk(&next).map_err(in_column("pskNext"))).transpose()?;
        if next_key.is_some() && next_key.as_ref() == key.as_ref().map(|(_, psk)| psk) {
            let reason =
                "the same key as psk; expected another one (`certdist key new` makes one), or an empty field";
            return Err(Fault::column("pskNext", reason));
        }
        let row = ImportRow {
            enrollment: enrollment.name.clone(),
            enrollment_product: enrollment.product_key.clone(),
            individual: enrollment.kind == KindName::Individual,
            // A product key that equals the product key of the enrollment was already checked with
            // the configuration.
            product_key: product_key
                .map(|value| match *value == *enrollment.product_key {
                    true => Ok(value.into_owned()),
                    false => values::product_key(&value).map_err(in_column("productKey")),
                })
                .transpose()?,
            device_name: device_name
                .map(|value| values::device_name(&value).map_err(in_column("deviceName")))
                .transpose()?,
            device_secret: device_secret
                .map(|value| values::device_secret(&value).map_err(in_column("deviceSecret")))
                .transpose()?,
            iot_id: iot_id.map(|value| values::iot_id(&value).map_err(in_column("iotId"))).transpose()?,
            key,
            next_key,
            target: target
                .map(|name| self.enrollments.check_target(&name).map(|()| name.into_owned()))
                .transpose()
                .map_err(in_column("target"))?,
            enrollment_target: self.enrollments.target_of(&enrollment.name).map(str::to_owned),
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

    /// Returns whether a line after the header is a comment. A line with several fields is a row.
    /// The text `#N/A` is not a comment. It is a value that a spreadsheet could not compute.
    fn is_comment(&self, text: &str) -> bool {
        let is_row = match &self.form {
            Form::Csv(header) => header.columns.len() > 1 && text.contains(header.separator),
            Form::Json => false,
        };
        is_comment(text)
            && !is_row
            && values::device_id(values::unwrapped(text))
                .is_err_and(|error| !error.contains("stands for no value"))
    }

    fn enrollment(&self, name: Option<&str>) -> Result<&EnrollmentOutline, Fault> {
        let fault = |reason: String| Fault::column("enrollment", format!("{reason}; {}", self.enrollments));
        match name {
            Some(name) => self
                .enrollments
                .named(name)
                .or_else(|| self.enrollments.named(values::unwrapped(name)))
                .ok_or_else(|| {
                    let similar = self.enrollments.similar(name);
                    let hint = similar.map(|name| format!(", did you mean \"{name}\"?")).unwrap_or_default();
                    fault(format!("unknown enrollment {}{hint}", values::shown(name)))
                }),
            None => self.enrollments.default().ok_or_else(|| {
                fault("empty, and there is no default; add the column, or use --enrollment NAME".into())
            }),
        }
    }
}

fn is_comment(text: &str) -> bool {
    text.trim_start_matches(values::is_blank).starts_with('#')
}

/// Removes blanks, quotes and marks around a value. A PSK identity is not changed, because
/// identities are compared byte for byte.
fn cleaned(column: usize, field: Cow<'_, str>) -> Option<Cow<'_, str>> {
    const ENROLLMENT: usize = 1;
    const IDENTITY: usize = 6;
    let bare = values::unwrapped(&field);
    if bare.is_empty() {
        return None;
    }
    // The name of an enrollment is not changed here, because it is first looked up as it is written.
    if column == IDENTITY || column == ENROLLMENT {
        return Some(field);
    }
    Some(Cow::Owned(values::folded(bare).into_owned()))
}

fn csv_values<'l>(
    header: &Header,
    text: &'l str,
    remarks: &mut Remarks,
) -> Result<Option<Values<'l>>, Fault> {
    let fields = lines::fields(text, header.separator).map_err(Fault::line)?;
    let mut values = Values::default();
    let expected = header.columns.len();
    let found = fields.len();
    let (mut is_too_long, mut has_ignored) = (false, false);
    for (at, field) in fields.into_iter().enumerate() {
        let is_empty = values::unwrapped(&field).is_empty();
        match header.columns.get(at) {
            Some(Meaning::Column(column @ export::IDENTITY)) => {
                values[*column] = cleaned(*column, export::unmarked(field));
            }
            Some(Meaning::Column(column)) => values[*column] = cleaned(*column, field),
            Some(Meaning::Ignored) => has_ignored |= !is_empty,
            Some(Meaning::Unnamed) if is_empty => {}
            Some(Meaning::Unnamed) => {
                return Err(Fault::line(format!("column {} has a value but no name in the header", at + 1)));
            }
            None => is_too_long |= !is_empty,
        }
    }
    let has_values = values.iter().any(Option::is_some);
    if let Some(Meaning::Column(last)) = header.columns.last()
        && has_values
    {
        remarks.note_end(values[*last].as_ref().map_or(0, |value| value.len()));
    }
    // A line that consists only of separators has no values, so the number of its fields is not
    // checked.
    if is_too_long || (found < expected && has_values) {
        return Err(Fault::line(format!("{found} fields, the header has {expected}")));
    }
    if !has_values && has_ignored {
        remarks.only_ignored.note(remarks.line);
    }
    Ok(has_values.then_some(values))
}

/// Members of a JSON object, in their order. A name may occur twice.
struct Members(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn json_values<'l>(
    text: &str,
    ignores_unknown: bool,
    remarks: &mut Remarks,
) -> Result<Option<Values<'l>>, Fault> {
    let fault = |error: serde_json::Error| {
        let at = error.column();
        Fault::line(format!(
            "not a JSON object on one line (character {at}); write one on each line: jq -c . FILE"
        ))
    };
    let Members(members) = serde_json::from_str(text).map_err(fault)?;
    let mut values = Values::default();
    for (name, value) in members {
        let column = match header::meaning(&name) {
            Some(Meaning::Column(column)) => column,
            None if !ignores_unknown => {
                let (name, legal) = (values::shown(&name), COLUMNS.join(", "));
                return Err(Fault::line(format!(
                    "unknown key {name}; the columns are {legal}; remove it, or ignore it with --ignore-unknown"
                )));
            }
            Some(Meaning::Unnamed) => return Err(Fault::line("a value without a name")),
            Some(Meaning::Ignored) | None => {
                let name = values::visible(&name);
                if !remarks.ignored.contains(&name) && remarks.ignored.len() < COLUMNS.len() {
                    remarks.ignored.push(name);
                }
                continue;
            }
        };
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(value) => value,
            _ => return Err(Fault::column(COLUMNS[column], "expected a JSON string, in quotes")),
        };
        if values[column].is_some() {
            return Err(Fault::column(COLUMNS[column], "the object has it twice"));
        }
        values[column] = cleaned(column, Cow::Owned(value));
    }
    Ok(values.iter().any(Option::is_some).then_some(values))
}
