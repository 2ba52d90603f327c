//! Reads the text of a configuration: the sections of the file, and the environment variables that
//! replace values in these sections. Collects all errors, each with its place. This module knows
//! TOML, but not the meaning of a configuration key. Each section defines its own configuration
//! keys, and [`bounds`] has the ranges of their numbers.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, Visitor},
    forward_to_deserialize_any,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::bounds;

/// Prefix of the environment variables that replace values of the configuration.
pub(super) const PREFIX: &str = "CERTDIST_";

/// Configuration keys whose values may be secrets. Errors never contain these values.
const SECRET: [&str; 5] = ["key", "key_next", "credentials", "user", "token"];

/// A section of the file. The value of each configuration key is checked separately.
pub(super) trait Section: DeserializeOwned {
    /// Name of the section. It is empty for the configuration keys that precede all sections.
    const NAME: &'static str;
    /// Required configuration keys, each with an example value. An error shows the example to the
    /// operator. The example also replaces a missing or wrong value, so that the rest of the
    /// section is still checked.
    const REQUIRED: &'static [(&'static str, &'static str)];
}

/// Name and configuration keys of every section. The first section has an empty name.
type Sections = [(&'static str, &'static [&'static str])];

/// Place of an error.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The whole file, because something is missing from it.
    File,
    /// The line with this number in the file, counted from 1.
    Line(usize),
    /// The environment variable with this name.
    Variable(String),
}

/// All errors of a configuration.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<(Place, String)>);

impl Problems {
    /// Returns the problems as an error, if there are any.
    pub(super) fn check(mut self) -> Result<(), Self> {
        self.0.sort();
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Adds a problem that belongs to the whole file.
    pub(super) fn of_file(&mut self, what: impl Into<String>) {
        self.0.push((Place::File, what.into()));
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = self.0.len() > 1;
        if several {
            write!(f, "{} errors", self.0.len())?;
        }
        for (place, what) in &self.0 {
            f.write_str(if several { "\n  " } else { "" })?;
            match place {
                Place::File => write!(f, "{what}")?,
                Place::Line(line) => write!(f, "line {line}: {what}")?,
                Place::Variable(name) => write!(f, "{name}: {what}")?,
            }
        }
        Ok(())
    }
}

/// A section, and the places of its configuration keys.
pub(super) struct Table<T> {
    pub(super) values: T,
    title: String,
    place: Place,
    places: BTreeMap<String, Place>,
    wrong: Vec<String>,
}

impl<T> Table<T> {
    /// Converts the values. Keeps their places, and the errors that were already reported.
    pub(super) fn into<V: From<T>>(self) -> Table<V> {
        let Self { values, title, place, places, wrong } = self;
        Table { values: values.into(), title, place, places, wrong }
    }

    /// Reports one error that concerns all these configuration keys, at the place of the first one
    /// that the file has. Does nothing if an error was already reported for one of the keys.
    pub(super) fn wrong(&mut self, problems: &mut Problems, keys: &[&str], what: impl fmt::Display) {
        if keys.iter().any(|key| self.wrong.iter().any(|wrong| wrong == key)) {
            return;
        }
        let place = keys.iter().find_map(|key| self.places.get(*key)).unwrap_or(&self.place);
        problems.0.push((place.clone(), format!("{}{what}", self.title)));
        self.wrong.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Returns the value. If `value` is an error, reports the error at these configuration keys,
    /// and returns `None`.
    pub(super) fn checked<V>(
        &mut self,
        problems: &mut Problems,
        keys: &[&str],
        value: anyhow::Result<V>,
    ) -> Option<V> {
        value.map_err(|error| self.wrong(problems, keys, format!("{error:#}"))).ok()
    }
}

/// The tables of the file. Callers take the sections out of `tables` one by one.
pub(super) struct Document<'t> {
    lines: Lines,
    tables: DeTable<'t>,
    /// Name and value of each environment variable, by the section and configuration key whose
    /// value it replaces.
    variables: BTreeMap<(&'static str, &'static str), (&'t str, &'t str)>,
}

impl<'t> Document<'t> {
    /// Parses the text. If the text is not valid TOML, fails and reports only the syntax errors.
    /// `sections` are all known sections.
    pub(super) fn parse(
        text: &'t str,
        variables: &'t [(String, String)],
        sections: &Sections,
        problems: &mut Problems,
    ) -> Result<Self, Problems> {
        let (tables, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::of(text);
        let mut broken = Problems::default();
        for error in &errors {
            let place = error.span().map_or(Place::File, |span| lines.place(span.start));
            broken.0.push((place, error.message().replace('\n', ", ")));
        }
        broken.check()?;
        let mut document = Self { lines, tables: tables.into_inner(), variables: BTreeMap::new() };
        for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
            match variable(name, sections) {
                Ok(None) => {}
                Ok(Some(key)) => drop(document.variables.insert(key, (name, value))),
                Err(what) => problems.0.push((Place::Variable(name.clone()), what)),
            }
        }
        document.check_sections(sections, problems);
        Ok(document)
    }

    fn check_sections(&mut self, sections: &Sections, problems: &mut Problems) {
        let mut found = Vec::new();
        for (key, value) in &self.tables {
            let (name, place) = (key.get_ref().as_ref(), self.lines.place(key.span().start));
            let is_section = sections.iter().any(|(section, _)| !section.is_empty() && *section == name);
            let is_repeated = value.get_ref().is_array();
            let is_key = sections.iter().any(|(section, keys)| section.is_empty() && keys.contains(&name));
            let what = match () {
                () if is_section && REPEATED.contains(&name) && !is_tables(value.get_ref()) => {
                    format!("{name} is not a [[{name}]]; expected [[{name}]] before the keys of each")
                }
                () if is_section && !REPEATED.contains(&name) && !value.get_ref().is_table() => {
                    format!("{name} is not a section; expected [{name}] before its keys")
                }
                () if is_section || is_key => continue,
                () if value.get_ref().is_table() || is_repeated => {
                    let known: Vec<&str> = sections.iter().map(|(section, _)| *section).collect();
                    format!("[{name}]: unknown section; {}", hint(name, &known[1..]))
                }
                () => unknown_key("", name, sections),
            };
            found.push((name.to_owned(), place, what));
        }
        for (name, place, what) in found {
            self.tables.remove(name.as_str());
            problems.0.push((place, what));
        }
        for (section, keys) in &sections[1..] {
            let Some(value) = self.tables.get_mut(*section) else { continue };
            let tables = match value.get_mut() {
                DeValue::Table(table) => vec![table],
                DeValue::Array(values) => values
                    .iter_mut()
                    .filter_map(|value| match value.get_mut() {
                        DeValue::Table(table) => Some(table),
                        _ => None,
                    })
                    .collect(),
                _ => continue,
            };
            for table in tables {
                let unknown: Vec<_> =
                    table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())).cloned().collect();
                for key in unknown {
                    let what = unknown_key(section, key.get_ref(), sections);
                    problems.0.push((self.lines.place(key.span().start), what));
                    table.remove(&*key.into_inner());
                }
            }
        }
    }

    /// Takes the configuration keys that precede all sections.
    pub(super) fn root<T: Section>(&mut self, problems: &mut Problems) -> Table<T> {
        let keys = keys::<T>();
        let mut table = DeTable::new();
        for key in keys {
            if let Some((name, value)) = self.tables.remove_entry(*key) {
                table.insert(name, value);
            }
        }
        self.read(table, Place::File, String::new(), problems)
    }

    /// Takes a section, if the file has the section or a variable replaces one of its values.
    pub(super) fn section<T: Section>(&mut self, problems: &mut Problems) -> Option<Table<T>> {
        let (place, table) = match self.tables.remove_entry(T::NAME) {
            Some((key, value)) => {
                let DeValue::Table(table) = value.into_inner() else { return None };
                (self.lines.place(key.span().start), table)
            }
            None => {
                self.variables.keys().find(|(section, _)| *section == T::NAME)?;
                (Place::File, DeTable::new())
            }
        };
        Some(self.read(table, place, format!("[{}] ", T::NAME), problems))
    }

    /// Takes all instances of a section that may be repeated.
    pub(super) fn repeated<T: Section>(&mut self, problems: &mut Problems) -> Vec<Table<T>> {
        let Some(value) = self.tables.remove(T::NAME) else { return Vec::new() };
        let DeValue::Array(values) = value.into_inner() else { return Vec::new() };
        let mut tables = Vec::new();
        for value in values {
            let place = self.lines.place(value.span().start);
            let DeValue::Table(table) = value.into_inner() else { continue };
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            let title = match name {
                Some(name) => format!("[[{}]] \"{}\" ", T::NAME, name.escape_debug()),
                None => format!("[[{}]] ", T::NAME),
            };
            tables.push(self.read(table, place, title, problems));
        }
        tables
    }

    fn read<T: Section>(
        &self,
        table: DeTable<'t>,
        place: Place,
        title: String,
        problems: &mut Problems,
    ) -> Table<T> {
        let mut good = stand_ins::<T>();
        let mut places = BTreeMap::new();
        let mut wrong = Vec::new();
        let mut take = |key: &str, place: Place, value: Result<Spanned<DeValue<'t>>, String>| {
            places.insert(key.to_owned(), place.clone());
            match value {
                Ok(value) => {
                    good.insert(Spanned::new(0..0, key.to_owned().into()), value);
                }
                Err(what) => {
                    problems.0.push((place, format!("{title}{what}")));
                    wrong.push(key.to_owned());
                }
            }
        };
        for (name, value) in table {
            let (at, name) = (name.span().start, name.into_inner());
            if self.variables.contains_key(&(T::NAME, known::<T>(&name))) {
                continue;
            }
            let value = fits::<T>(&name, &value).map(|()| value);
            take(&name, self.lines.place(at), value);
        }
        for ((_, key), (name, text)) in self.variables.iter().filter(|((section, _), _)| *section == T::NAME)
        {
            take(key, Place::Variable((*name).to_owned()), from_variable::<T>(key, text));
        }
        for (key, example) in T::REQUIRED.iter().filter(|(key, _)| !places.contains_key(*key)) {
            let what = format!("{title}{key} is missing; expected a line such as {key} = \"{example}\"");
            problems.0.push((place.clone(), what));
            wrong.push((*key).to_owned());
        }
        let whole = toml::Deserializer::from(Spanned::new(0..0, good));
        let Ok(values) = T::deserialize(whole) else {
            unreachable!("each key fits, and each required key is present")
        };
        Table { values, title, place, places, wrong }
    }
}

/// The sections that may be repeated.
const REPEATED: [&str; 2] = ["enrollment", "target"];

fn is_tables(value: &DeValue<'_>) -> bool {
    value.as_array().is_some_and(|values| values.iter().all(|value| value.get_ref().is_table()))
}

/// Finds the configuration key whose value a variable replaces. Returns `None` if the variable is
/// not for certdist.
fn variable(name: &str, sections: &Sections) -> Result<Option<(&'static str, &'static str)>, String> {
    let Some(path) = name.strip_prefix(PREFIX) else { return Ok(None) };
    let path = path.to_ascii_lowercase();
    let (section, key) = path.split_once("__").unwrap_or(("", &path));
    let Some((section, keys)) = sections.iter().find(|(known, _)| *known == section) else { return Ok(None) };
    match *section {
        "enrollment" => {
            return Err(
                "an [[enrollment]] cannot be set by variables; to read its key from one, use key = \"env:NAME\" \
                        in the file"
                    .into(),
            );
        }
        repeated if REPEATED.contains(&repeated) => {
            return Err(format!("a [[{repeated}]] cannot be set by variables; set its keys in the file"));
        }
        _ => {}
    }
    match keys.iter().find(|known| **known == key) {
        Some(key) => Ok(Some((section, key))),
        // A container cluster sets variables that are named after its services, such as
        // CERTDIST_PORT. So an unknown name is an error only if it resembles a known key.
        None if section.is_empty() && nearest(key, keys).is_none() => Ok(None),
        None => Err(format!("{}: unknown key; {}", key, hint(key, keys))),
    }
}

/// Returns the configuration key of this name in the section, or an empty text if there is none.
fn known<T: Section>(name: &str) -> &'static str {
    keys::<T>().iter().copied().find(|key| *key == name).unwrap_or("")
}

/// Returns a table with the example values of the required configuration keys.
fn stand_ins<'t, T: Section>() -> DeTable<'t> {
    let text = |text: &'static str| Spanned::new(0..0, DeValue::String(text.into()));
    let entry =
        |(key, example): &(&'static str, &'static str)| (Spanned::new(0..0, (*key).into()), text(example));
    T::REQUIRED.iter().map(entry).collect()
}

/// Checks that a value fits its configuration key. An error names the configuration key and says
/// what is expected.
fn fits<T: Section>(key: &str, value: &Spanned<DeValue<'_>>) -> Result<(), String> {
    bounds::check(T::NAME, key, value.get_ref())?;
    let mut table = stand_ins::<T>();
    table.insert(Spanned::new(0..0, key.to_owned().into()), value.clone());
    let table = toml::Deserializer::from(Spanned::new(0..0, table));
    T::deserialize(table).map(drop).map_err(|error| format!("{key}: {}", explained(key, error.message())))
}

/// Reads the text of a variable as a TOML value, such as a number or a table, if this value fits
/// the configuration key. Otherwise, reads the text as a string.
fn from_variable<'t, T: Section>(key: &str, text: &'t str) -> Result<Spanned<DeValue<'t>>, String> {
    let string = Spanned::new(0..0, DeValue::String(text.into()));
    let as_text = fits::<T>(key, &string).map(|()| string);
    let Ok(parsed) = DeValue::parse(text) else { return as_text };
    fits::<T>(key, &parsed).map(|()| parsed).or_else(|what| as_text.map_err(|_| what))
}

/// Rewrites serde's message so that an operator understands it.
fn explained(key: &str, message: &str) -> String {
    let mut message = message.trim_end().replace('\n', ", ");
    if SECRET.contains(&key)
        && message.starts_with("invalid ")
        && let Some(at) = message.rfind("expected ")
    {
        message.drain(..at);
    }
    for (word, meaning) in [
        ("expected f64", "expected a number"),
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        (
            "invalid socket address syntax",
            "invalid socket address, expected ADDRESS:PORT, such as 0.0.0.0:5684",
        ),
    ] {
        message = message.replace(word, meaning);
    }
    message
}

/// Returns the header of a section, as it is written in the file.
fn written(section: &str) -> String {
    if REPEATED.contains(&section) { format!("[[{section}]]") } else { format!("[{section}]") }
}

fn unknown_key(section: &str, key: &str, sections: &Sections) -> String {
    let title = match section {
        "" => String::new(),
        _ => format!("{} ", written(section)),
    };
    let own = sections.iter().find(|(name, _)| *name == section).map_or(&[][..], |(_, keys)| keys);
    let elsewhere = sections.iter().find(|(_, keys)| keys.contains(&key));
    let hint = match elsewhere {
        Some(("", _)) => "it belongs before all sections".to_owned(),
        Some((name, _)) => format!("it belongs in {}", written(name)),
        None => hint(key, own),
    };
    format!("{title}{}: unknown key; {hint}", key.escape_debug())
}

fn hint(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("expected one of {}", known.join(", ")),
    }
}

/// Returns the known name that the operator probably meant.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let nearest = known.iter().copied().min_by_key(|other| distance(other))?;
    (distance(nearest) <= (nearest.len() / 3).max(1)).then_some(nearest)
}

/// Ends of the lines of a text, by which the line of a position is found without reading the text
/// again.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// Returns the line of the byte at `at`.
    fn place(&self, at: usize) -> Place {
        Place::Line(1 + self.0.partition_point(|end| *end < at))
    }
}

/// Returns the names of the fields of a section's struct, as they are written in the file.
pub(super) fn keys<T: Section>() -> &'static [&'static str] {
    T::deserialize(Fields).err().map_or(&[], |Names(names)| names)
}

/// A deserializer that returns the field names of a struct, and does not fill the struct.
struct Fields;

/// The field names. They are returned as an error, which is the only way in which a deserializer
/// can return them.
#[derive(Debug)]
struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Fields {
    type Error = Names;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
