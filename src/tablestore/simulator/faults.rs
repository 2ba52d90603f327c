//! Faults of the stand-in: scripted ones for tests, and random ones from a seed. This module only
//! chooses them, and its caller applies them.

use std::collections::{HashMap, VecDeque};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{Operation, Refusal};

/// Fault of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// 503 `OTSServerBusy`; the call is not carried out.
    Busy,
    /// 403 `OTSNotEnoughCapacityUnit`; the call is not carried out.
    Throttled,
    /// 409 `OTSRowOperationConflict`; the call is not carried out.
    Conflict,
    /// 503 `OTSPartitionUnavailable`, as while a partition moves; the call is not carried out.
    Unavailable,
    /// 503 `OTSTimeout`; the call is not carried out.
    Timeout,
    /// 503 `OTSTimeout`, although the call is carried out.
    DoneTimeout,
    /// The connection ends without an answer; the call is not carried out.
    Drop,
    /// The connection ends without an answer, although the call is carried out.
    Lost,
    /// The call is carried out, and the signature of its answer is wrong.
    WrongSignature,
    /// The call is carried out, but in a batch the first row fails with `OTSServerBusy`.
    Row,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 10] = [
        Self::Busy,
        Self::Throttled,
        Self::Conflict,
        Self::Unavailable,
        Self::Timeout,
        Self::DoneTimeout,
        Self::Drop,
        Self::Lost,
        Self::WrongSignature,
        Self::Row,
    ];

    /// Returns the name of the fault in options and counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Throttled => "throttled",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::DoneTimeout => "done-timeout",
            Self::Drop => "drop",
            Self::Lost => "lost",
            Self::WrongSignature => "wrong-signature",
            Self::Row => "row",
        }
    }

    /// Finds the fault with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Returns whether the call is carried out.
    pub(super) fn is_carried_out(self) -> bool {
        matches!(self, Self::DoneTimeout | Self::Lost | Self::WrongSignature | Self::Row)
    }

    /// Returns the error that replaces the answer, if it is an error.
    pub(super) fn refusal(self) -> Option<Refusal> {
        Some(match self {
            Self::Busy => Refusal::new(503, "OTSServerBusy", "Server is busy."),
            Self::Throttled => not_enough_capacity(),
            Self::Conflict => {
                Refusal::new(409, "OTSRowOperationConflict", "Data is being modified by the other request.")
            }
            Self::Unavailable => {
                Refusal::new(503, "OTSPartitionUnavailable", "The partition is not available.")
            }
            Self::Timeout | Self::DoneTimeout => Refusal::new(503, "OTSTimeout", "Operation timeout."),
            Self::Drop | Self::Lost | Self::WrongSignature | Self::Row => return None,
        })
    }
}

/// Returns the error for a call that finds no capacity left.
pub(super) fn not_enough_capacity() -> Refusal {
    Refusal::new(403, "OTSNotEnoughCapacityUnit", "Remaining capacity unit is not enough.")
}

/// Chooses the faults of the next calls.
pub(super) struct Faults {
    scripted: HashMap<Operation, VecDeque<Fault>>,
    /// Fault of every call that has no scripted one.
    standing: Option<Fault>,
    /// Probabilities of random faults.
    rates: Vec<(Fault, f64)>,
    random: StdRng,
}

impl Faults {
    pub fn new(rates: Vec<(Fault, f64)>, seed: u64) -> Self {
        Self { scripted: HashMap::new(), standing: None, rates, random: StdRng::seed_from_u64(seed) }
    }

    pub fn script(&mut self, operation: Operation, fault: Fault) {
        self.scripted.entry(operation).or_default().push_back(fault);
    }

    pub fn set_standing(&mut self, fault: Option<Fault>) {
        self.standing = fault;
    }

    /// Returns the fault of the next call: the next scripted one, or else the standing one, or else a
    /// random one.
    pub fn next(&mut self, operation: Operation) -> Option<Fault> {
        let scripted = self.scripted.get_mut(&operation).and_then(VecDeque::pop_front);
        scripted.or(self.standing).or_else(|| self.throw())
    }

    fn throw(&mut self) -> Option<Fault> {
        if self.rates.is_empty() {
            return None;
        }
        let mut point: f64 = self.random.random();
        self.rates
            .iter()
            .find(|(_, rate)| {
                point -= rate;
                point < 0.0
            })
            .map(|(fault, _)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripted_faults_come_before_standing_and_random_ones() {
        let mut faults = Faults::new(vec![(Fault::Busy, 1.0)], 1);
        assert_eq!(faults.next(Operation::GetRow), Some(Fault::Busy));
        faults.set_standing(Some(Fault::Timeout));
        faults.script(Operation::GetRow, Fault::Lost);
        assert_eq!(faults.next(Operation::PutRow), Some(Fault::Timeout));
        assert_eq!(faults.next(Operation::GetRow), Some(Fault::Lost));
        assert_eq!(faults.next(Operation::GetRow), Some(Fault::Timeout));
    }

    #[test]
    fn random_faults_come_at_their_rates_and_repeat_with_the_seed() {
        let draw = || {
            let mut faults = Faults::new(vec![(Fault::Busy, 0.1), (Fault::Lost, 0.2)], 7);
            (0..10_000).map(|_| faults.next(Operation::GetRow)).collect::<Vec<_>>()
        };
        let count = |fault| draw().iter().filter(|drawn| **drawn == fault).count();
        assert_eq!(draw(), draw());
        for (fault, expected) in [(Some(Fault::Busy), 1000), (Some(Fault::Lost), 2000), (None, 7000)] {
            assert!(count(fault).abs_diff(expected) < 200, "{fault:?}: {}", count(fault));
        }
    }

    #[test]
    fn each_fault_is_found_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(Fault::named(fault.name()), Some(fault));
        }
    }
}
