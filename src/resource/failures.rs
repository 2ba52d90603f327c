//! Remembers recent requests for certificates that were not served, by device and reason, so that
//! an operator can see them. Each thread writes to its own part, so that workers do not wait for
//! one another. The memory is bounded: when a part is full, its oldest failures are forgotten.

use std::{
    hash::RandomState,
    sync::{Mutex, PoisonError},
};

use hashbrown::{Equivalent, HashMap};
use thread_local::ThreadLocal;

use crate::{
    device::DeviceId,
    psk::Principal,
    rate_limit::Origin,
    recent::{Counted, Recent},
    unix_time::{UnixSeconds, unix_now},
};

/// Maximum number of failures that each thread remembers, each for one device and reason.
const MOST: usize = 4096;

/// Maximum length of a remembered message of IoT Platform, in bytes.
const MAX_MESSAGE: usize = 300;

/// Reason why a request for a certificate was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// 4.04: the device is not in the table, or its enrollment is not that of the key.
    Invalid,
    /// 4.03: the key belongs to another device.
    NotYours,
    /// 4.03: the operator has disabled the device.
    Disabled,
    /// 4.03: the certificate was issued before, and the reissue policy permits no further issue
    /// now.
    Issued,
    /// 4.29: too many requests.
    TooMany,
    /// 5.02: IoT Platform refuses the registration until the operator acts.
    Operator,
    /// 5.03: the device is asked to retry later.
    Later,
    /// 5.04: IoT Platform did not answer in time.
    TimedOut,
}

impl Reason {
    /// All reasons, in the order in which they are declared.
    pub const ALL: [Self; 8] = [
        Self::Invalid,
        Self::NotYours,
        Self::Disabled,
        Self::Issued,
        Self::TooMany,
        Self::Operator,
        Self::Later,
        Self::TimedOut,
    ];

    /// Returns the CoAP code of the answer.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "4.04",
            Self::NotYours | Self::Disabled | Self::Issued => "4.03",
            Self::TooMany => "4.29",
            Self::Operator => "5.02",
            Self::Later => "5.03",
            Self::TimedOut => "5.04",
        }
    }
}

/// Requests of one device that were not served for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The device. If the request can stand for several IDs, the first of them.
    pub device: DeviceId,
    /// The reason.
    pub reason: Reason,
    /// Enrollment whose key the client has proven to have.
    pub enrollment: String,
    /// Origin of the last request.
    pub origin: Origin,
    /// Message of IoT Platform for [`Reason::Operator`]; otherwise empty.
    pub message: String,
    /// Time of the first remembered request.
    pub first: UnixSeconds,
    /// Time of the last request.
    pub last: UnixSeconds,
    /// Number of requests.
    pub count: u64,
}

/// Numbers of requests that were not served since the start, in the order of [`Reason::ALL`].
pub type Counts = [u64; Reason::ALL.len()];

/// Map key of a failure in a [`Part`], borrowed for a lookup. Has the same hash as the pair that
/// the map contains.
#[derive(Hash)]
struct Key<'k>(&'k DeviceId, Reason);

impl Equivalent<(DeviceId, Reason)> for Key<'_> {
    fn equivalent(&self, (device, reason): &(DeviceId, Reason)) -> bool {
        (self.0, self.1) == (device, *reason)
    }
}

/// Properties of the last of several requests.
#[derive(Debug, Clone)]
struct Details {
    enrollment: String,
    origin: Origin,
    message: String,
}

#[derive(Debug)]
struct Part {
    counts: Counts,
    failures: Recent<(DeviceId, Reason), Details>,
}

impl Default for Part {
    fn default() -> Self {
        Self { counts: Counts::default(), failures: Recent::new(MOST) }
    }
}

/// The failures of all threads.
#[derive(Debug, Default)]
pub struct Failures(ThreadLocal<Mutex<Part>>);

impl Failures {
    /// Notes a request that was not served.
    pub fn note(
        &self,
        reason: Reason,
        device: &DeviceId,
        principal: &Principal,
        origin: Origin,
        message: &str,
    ) {
        self.note_at(unix_now(), reason, device, &principal.enrollment.name, origin, message);
    }

    fn note_at(
        &self,
        now: UnixSeconds,
        reason: Reason,
        device: &DeviceId,
        enrollment: &str,
        origin: Origin,
        message: &str,
    ) {
        let mut part = self.0.get_or_default().lock().unwrap_or_else(PoisonError::into_inner);
        part.counts[reason as usize] += 1;
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
        let create = || {
            let (enrollment, message) = (enrollment.to_owned(), message.to_owned());
            ((device.clone(), reason), Details { enrollment, origin, message })
        };
        part.failures.note(now, &Key(device, reason), create, |known| {
            known.origin = origin;
            if known.enrollment != enrollment {
                enrollment.clone_into(&mut known.enrollment);
            }
            if known.message != message {
                message.clone_into(&mut known.message);
            }
        });
    }

    /// Returns the numbers of requests that were not served since the start.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for part in self.0.iter() {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            sum.iter_mut().zip(part.counts).for_each(|(sum, count)| *sum += count);
        }
        sum
    }

    /// Returns the failures since `from`, the latest first, and whether any failures were forgotten
    /// for lack of room. The failures of a device that several threads have seen are added up.
    pub fn since(&self, from: UnixSeconds) -> (Vec<Failure>, bool) {
        let mut all = HashMap::<(DeviceId, Reason), Counted<Details>, RandomState>::default();
        let mut forgotten = false;
        for part in self.0.iter() {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            forgotten |= part.failures.has_forgotten();
            for (key, failure) in part.failures.since(from) {
                match all.get_mut(key) {
                    Some(known) => known.add(failure),
                    None => _ = all.insert(key.clone(), failure.clone()),
                }
            }
        }
        let mut all: Vec<Failure> =
            all.into_iter().map(|((device, reason), counted)| Failure::of(device, reason, counted)).collect();
        all.sort_unstable_by(|a, b| (b.last, &a.device).cmp(&(a.last, &b.device)));
        (all, forgotten)
    }

    /// Returns the last remembered failure of a device.
    pub fn last_of(&self, device: &DeviceId) -> Option<Failure> {
        let mut last: Option<Failure> = None;
        for part in self.0.iter() {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            for reason in Reason::ALL {
                let Some(counted) = part.failures.get(&Key(device, reason)) else { continue };
                if last.as_ref().is_none_or(|last| counted.last > last.last) {
                    last = Some(Failure::of(device.clone(), reason, counted.clone()));
                }
            }
        }
        last
    }
}

impl Failure {
    fn of(device: DeviceId, reason: Reason, counted: Counted<Details>) -> Self {
        let Counted { first, last, count, value: Details { enrollment, origin, message } } = counted;
        Self { device, reason, enrollment, origin, message, first, last, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse_sn(id).unwrap()
    }

    fn origin() -> Origin {
        Origin::of([192, 0, 2, 1].into())
    }

    #[test]
    fn requests_for_the_same_reason_are_one_failure_with_its_first_and_last_time() {
        let failures = Failures::default();
        let sn = device("SN-1");
        failures.note_at(100, Reason::Later, &sn, "lamp", origin(), "");
        failures.note_at(160, Reason::Later, &sn, "lamp", origin(), "");
        failures.note_at(130, Reason::Operator, &sn, "lamp", origin(), "no such product");
        let (all, forgotten) = failures.since(0);
        assert!(!forgotten);
        let seen: Vec<_> = all
            .iter()
            .map(|one| (one.reason, one.first, one.last, one.count, one.message.as_str()))
            .collect();
        assert_eq!(
            seen,
            [(Reason::Later, 100, 160, 2, ""), (Reason::Operator, 130, 130, 1, "no such product")]
        );
        assert_eq!(failures.last_of(&sn).unwrap().reason, Reason::Later);
        assert_eq!(failures.last_of(&device("SN-2")), None);
        assert_eq!(failures.since(131).0.len(), 1);
        assert_eq!(failures.counts()[Reason::Later as usize], 2);
    }

    #[test]
    fn threads_have_parts_of_their_own_that_are_added_up() {
        let failures = Failures::default();
        std::thread::scope(|scope| {
            for second in [10, 20, 30] {
                let failures = &failures;
                scope.spawn(move || {
                    failures.note_at(second, Reason::Invalid, &device("SN-1"), "lamp", origin(), "");
                });
            }
        });
        let (all, _) = failures.since(0);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].first, all[0].last, all[0].count), (10, 30, 3));
        assert_eq!(failures.counts()[Reason::Invalid as usize], 3);
    }

    #[test]
    fn a_stranger_with_a_million_ids_takes_bounded_memory_and_the_latest_stay() {
        let failures = Failures::default();
        for number in 0..3 * MOST {
            let id = device(&format!("SN-{number}"));
            failures.note_at(number as i64 / 7, Reason::Invalid, &id, "plug", origin(), "");
        }
        let (all, forgotten) = failures.since(0);
        assert!(forgotten && all.len() <= MOST && all.len() >= MOST / 2, "{}", all.len());
        let last = device(&format!("SN-{}", 3 * MOST - 1));
        assert!(failures.last_of(&last).is_some());
        assert!(failures.last_of(&device("SN-0")).is_none());
        assert_eq!(failures.counts()[Reason::Invalid as usize], 3 * MOST as u64);
    }

    #[test]
    fn all_failures_of_one_second_leave_room_too() {
        let failures = Failures::default();
        for number in 0..=MOST {
            failures.note_at(5, Reason::Invalid, &device(&format!("SN-{number}")), "plug", origin(), "");
        }
        assert_eq!(failures.since(0).0.len(), MOST - MOST / 2 + 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failures = Failures::default();
        failures.note_at(5, Reason::Operator, &device("SN-1"), "plug", origin(), &"器".repeat(200));
        let message = failures.last_of(&device("SN-1")).unwrap().message;
        assert!(message.len() <= MAX_MESSAGE && message.ends_with('器'));
    }
}
