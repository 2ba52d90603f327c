//! Conditions of writes and filters of reads: as callers build them, and as messages contain them. Only
//! the service or the stand-in evaluates them.

use prost::Message as _;

use super::{
    message,
    plain_buffer::{self, Malformed, Variant},
    value::Value,
};

/// Maximum number of comparisons in one condition.
pub const MAX_COMPARISONS: usize = 10;
/// Maximum depth of a condition that is read from a message.
const MAX_DEPTH: usize = 10;

const SINGLE: i32 = 1;
const COMPOSITE: i32 = 2;

/// Expectation about the row before a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowExpectation {
    /// The row may exist or not.
    #[default]
    Ignore,
    /// The row must exist.
    Exists,
    /// The row must not exist.
    Absent,
}

impl RowExpectation {
    /// Returns the number of the expectation in a message.
    pub fn code(self) -> i32 {
        match self {
            Self::Ignore => 0,
            Self::Exists => 1,
            Self::Absent => 2,
        }
    }
}

/// Condition of a write. The service checks it and carries out the write in one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Condition {
    /// Expectation about the row.
    pub row: RowExpectation,
    /// Expectation about its columns.
    pub columns: Option<Filter>,
}

impl Condition {
    /// Makes a condition about the row only.
    pub fn row(row: RowExpectation) -> Self {
        Self { row, columns: None }
    }

    pub(super) fn to_message(&self) -> message::Condition {
        message::Condition {
            row_existence: self.row.code(),
            column_condition: self.columns.as_ref().map(Filter::encode),
        }
    }
}

/// Comparison of a column with a value of the same type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparator {
    /// `=`
    Equal,
    /// `≠`
    NotEqual,
    /// `>`
    Greater,
    /// `≥`
    AtLeast,
    /// `<`
    Less,
    /// `≤`
    AtMost,
}

impl Comparator {
    const ALL: [Self; 6] =
        [Self::Equal, Self::NotEqual, Self::Greater, Self::AtLeast, Self::Less, Self::AtMost];

    fn code(self) -> i32 {
        match self {
            Self::Equal => 1,
            Self::NotEqual => 2,
            Self::Greater => 3,
            Self::AtLeast => 4,
            Self::Less => 5,
            Self::AtMost => 6,
        }
    }
}

/// Condition about the newest versions of the columns of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Compares one column.
    Compare {
        /// Name of the column.
        column: String,
        /// Comparison, with the column on its left side and the value on its right side.
        comparator: Comparator,
        /// Value.
        value: Value,
        /// Result if the row has no such column.
        if_missing: bool,
    },
    /// Is true if the inner condition is false.
    Not(Box<Filter>),
    /// Is true if all inner conditions are true.
    All(Vec<Filter>),
    /// Is true if at least one inner condition is true.
    Any(Vec<Filter>),
}

impl Filter {
    /// Makes a comparison that is true if the column is missing.
    pub fn missing_or(column: impl Into<String>, comparator: Comparator, value: impl Into<Value>) -> Self {
        Self::Compare { column: column.into(), comparator, value: value.into(), if_missing: true }
    }

    /// Makes a comparison that is false if the column is missing.
    pub fn present_and(column: impl Into<String>, comparator: Comparator, value: impl Into<Value>) -> Self {
        Self::Compare { column: column.into(), comparator, value: value.into(), if_missing: false }
    }

    /// Returns the number of comparisons.
    pub fn comparisons(&self) -> usize {
        match self {
            Self::Compare { .. } => 1,
            Self::Not(inner) => inner.comparisons(),
            Self::All(parts) | Self::Any(parts) => parts.iter().map(Self::comparisons).sum(),
        }
    }

    /// Encodes the condition as the bytes of a message `Filter`.
    pub fn encode(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    fn to_message(&self) -> message::Filter {
        let composite = |combinator, parts: &[&Self]| {
            let sub_filters = parts.iter().map(|part| part.to_message()).collect();
            let filter = message::CompositeFilter { combinator, sub_filters }.encode_to_vec();
            message::Filter { kind: COMPOSITE, filter }
        };
        match self {
            Self::Compare { column, comparator, value, if_missing } => {
                let filter = message::SingleFilter {
                    comparator: comparator.code(),
                    column_name: column.clone(),
                    column_value: plain_buffer::encode_variant(&Variant::Value(value.clone())),
                    // The message says the opposite of the SDKs' `pass_if_missing`.
                    filter_if_missing: !if_missing,
                    latest_version_only: true,
                    value_trans_rule: None,
                };
                message::Filter { kind: SINGLE, filter: filter.encode_to_vec() }
            }
            Self::Not(inner) => composite(1, &[&**inner]),
            Self::All(parts) => composite(2, &parts.iter().collect::<Vec<_>>()),
            Self::Any(parts) => composite(3, &parts.iter().collect::<Vec<_>>()),
        }
    }

    /// Decodes the bytes of a message `Filter`.
    ///
    /// # Errors
    ///
    /// Fails if the bytes are anything else, if the condition is too deep or too large, or if it is
    /// of a kind that certdist does not use: pages, rules for values, and old versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, WrongFilter> {
        let filter = Self::decode_at(&decoded::<message::Filter>(bytes)?, 0)?;
        match filter.comparisons() > MAX_COMPARISONS {
            true => Err(WrongFilter::TooLarge),
            false => Ok(filter),
        }
    }

    fn decode_at(filter: &message::Filter, depth: usize) -> Result<Self, WrongFilter> {
        if depth > MAX_DEPTH {
            return Err(WrongFilter::TooLarge);
        }
        match filter.kind {
            SINGLE => {
                let single = decoded::<message::SingleFilter>(&filter.filter)?;
                let comparator = Comparator::ALL.into_iter().find(|known| known.code() == single.comparator);
                let is_used = single.value_trans_rule.is_none() && single.latest_version_only;
                let Variant::Value(value) = plain_buffer::decode_variant(&single.column_value)? else {
                    return Err(WrongFilter::NotSupported);
                };
                Ok(Self::Compare {
                    column: single.column_name,
                    comparator: comparator.filter(|_| is_used).ok_or(WrongFilter::NotSupported)?,
                    value,
                    if_missing: !single.filter_if_missing,
                })
            }
            COMPOSITE => {
                let composite = decoded::<message::CompositeFilter>(&filter.filter)?;
                let parts = composite.sub_filters.iter().map(|part| Self::decode_at(part, depth + 1));
                let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
                match (composite.combinator, parts.len()) {
                    (1, 1) => Ok(Self::Not(Box::new(parts.remove(0)))),
                    (2, 1..) => Ok(Self::All(parts)),
                    (3, 1..) => Ok(Self::Any(parts)),
                    _ => Err(WrongFilter::NotSupported),
                }
            }
            _ => Err(WrongFilter::NotSupported),
        }
    }
}

fn decoded<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, WrongFilter> {
    M::decode(bytes).map_err(|_| WrongFilter::NotAMessage)
}

/// Reason why a condition cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongFilter {
    /// The bytes are not a message, or not a message `Filter`.
    #[error("the filter is not a message")]
    NotAMessage,
    /// A value is malformed.
    #[error("a value of the filter is malformed: {0}")]
    Value(#[from] Malformed),
    /// The condition has more than [`MAX_COMPARISONS`] comparisons, or is too deep.
    #[error("The count of filter exceeds the max: {MAX_COMPARISONS}.")]
    TooLarge,
    /// The condition is of a kind that certdist does not use.
    #[error("the filter is of a kind that is not supported")]
    NotSupported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_read_back_as_it_was_written() {
        let filter = Filter::All(vec![
            Filter::missing_or("a", Comparator::Equal, ""),
            Filter::Any(vec![
                Filter::present_and("b", Comparator::AtLeast, 7),
                Filter::Not(Box::new(Filter::present_and("c", Comparator::Less, true))),
            ]),
        ]);
        assert_eq!(Filter::decode(&filter.encode()), Ok(filter));
    }

    #[test]
    fn a_condition_that_is_too_large_is_refused() {
        let one = Filter::missing_or("a", Comparator::Equal, "");
        let many = |count| Filter::Any(vec![one.clone(); count]).encode();
        assert!(Filter::decode(&many(MAX_COMPARISONS)).is_ok());
        assert_eq!(Filter::decode(&many(MAX_COMPARISONS + 1)), Err(WrongFilter::TooLarge));
        let deep = |depth| {
            let mut filter = one.clone();
            for _ in 0..depth {
                filter = Filter::Not(Box::new(filter));
            }
            filter.encode()
        };
        assert!(Filter::decode(&deep(MAX_DEPTH)).is_ok());
        assert_eq!(Filter::decode(&deep(MAX_DEPTH + 1)), Err(WrongFilter::TooLarge));
        assert_eq!(Filter::decode(&deep(1000)), Err(WrongFilter::TooLarge));
    }

    #[test]
    fn what_certdist_does_not_use_is_refused_and_not_misread() {
        let single = |comparator, latest_version_only, rule: Option<Vec<u8>>| {
            let filter = message::SingleFilter {
                comparator,
                column_name: "a".into(),
                column_value: plain_buffer::encode_variant(&Variant::Value(1.into())),
                filter_if_missing: true,
                latest_version_only,
                value_trans_rule: rule,
            };
            message::Filter { kind: SINGLE, filter: filter.encode_to_vec() }.encode_to_vec()
        };
        assert!(Filter::decode(&single(1, true, None)).is_ok());
        for wrong in [single(7, true, None), single(1, false, None), single(1, true, Some(Vec::new()))] {
            assert_eq!(Filter::decode(&wrong), Err(WrongFilter::NotSupported));
        }
        let pages = message::Filter { kind: 3, filter: Vec::new() }.encode_to_vec();
        assert_eq!(Filter::decode(&pages), Err(WrongFilter::NotSupported));
        let empty = message::CompositeFilter { combinator: 2, sub_filters: Vec::new() }.encode_to_vec();
        let empty = message::Filter { kind: COMPOSITE, filter: empty }.encode_to_vec();
        assert_eq!(Filter::decode(&empty), Err(WrongFilter::NotSupported));
    }
}
