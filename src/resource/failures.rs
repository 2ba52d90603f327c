//! Remembers recent requests for certificates that were not served, by device and reason, so that
//! an operator can see them. Each thread writes to its own part, so that workers do not wait for
//! one another. The memory is bounded: when a part has no room for another failure with the same
//! reason, its older failures with this reason are forgotten.

use std::{
    hash::RandomState,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashMap;
use thread_local::ThreadLocal;

use crate::{
    device::DeviceId,
    provision::Refusal,
    psk::Principal,
    rate_limit::Origin,
    recent::{self, Counted, Recent},
    unix_time::{UnixSeconds, unix_now},
};

/// Maximum number of devices that each thread remembers for a reason that can affect many healthy
/// devices at once.
const MOST: usize = 2048;

/// Maximum number of devices that each thread remembers for any other reason.
const FEWER: usize = 512;

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
    /// 4.03: the device has had no certificate, and its enrollment is closed or full.
    Closed,
    /// 4.29: too many requests.
    TooMany,
    /// 5.02: IoT Platform refuses the registration until the operator acts.
    Operator,
    /// 5.03: the device is asked to retry later.
    Later,
    /// 5.03: the enrollment is not open yet.
    NotOpen,
    /// 5.03: the device waits to be admitted.
    Held,
    /// 5.04: IoT Platform did not answer in time.
    TimedOut,
}

impl Reason {
    /// All reasons, in the order in which they are declared.
    pub const ALL: [Self; 11] = [
        Self::Invalid,
        Self::NotYours,
        Self::Disabled,
        Self::Issued,
        Self::Closed,
        Self::TooMany,
        Self::Operator,
        Self::Later,
        Self::NotOpen,
        Self::Held,
        Self::TimedOut,
    ];

    /// Returns the maximum number of devices that each thread remembers for this reason.
    fn remembered(self) -> usize {
        match self {
            Self::Invalid | Self::Operator | Self::Later | Self::TimedOut => MOST,
            Self::NotYours
            | Self::Disabled
            | Self::Issued
            | Self::Closed
            | Self::TooMany
            | Self::NotOpen
            | Self::Held => FEWER,
        }
    }

    /// Returns the CoAP code of the answer.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "4.04",
            Self::NotYours | Self::Disabled | Self::Issued | Self::Closed => "4.03",
            Self::TooMany => "4.29",
            Self::Operator => "5.02",
            Self::Later | Self::NotOpen | Self::Held => "5.03",
            Self::TimedOut => "5.04",
        }
    }
}

/// Reads the reason from the text of a refusal in the audit log, and also returns IoT Platform's
/// message, which is empty for most reasons. Returns `None` for a text that this version never
/// writes.
pub fn reason_of(detail: &str) -> Option<(Reason, &str)> {
    let own = [
        (Refusal::Invalid, Reason::Invalid),
        (Refusal::NotYours, Reason::NotYours),
        (Refusal::Disabled, Reason::Disabled),
        (Refusal::Issued, Reason::Issued),
        (Refusal::Closed, Reason::Closed),
        (Refusal::Full, Reason::Closed),
    ];
    if let Some((_, reason)) = own.into_iter().find(|(refusal, _)| refusal.to_string() == detail) {
        return Some((reason, ""));
    }
    let message = detail.strip_prefix(&Refusal::Operator(String::new()).to_string())?;
    Some((Reason::Operator, message))
}

/// Requests of one device that were not served for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The device. If the ID in the request may stand for several devices, this is the first of
    /// them.
    pub device: DeviceId,
    /// The reason.
    pub reason: Reason,
    /// Enrollment whose key the client has proven.
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

/// Properties of the last request among those that are counted together.
#[derive(Debug, Clone)]
struct Details {
    enrollment: String,
    origin: Origin,
    message: String,
}

#[derive(Debug)]
struct Part {
    counts: Counts,
    /// Failures for each reason, in the order of [`Reason::ALL`]. Each reason has its own record,
    /// so that a stranger who causes many failures for one reason does not displace the failures
    /// for another.
    failures: [Recent<DeviceId, Details>; Reason::ALL.len()],
}

impl Default for Part {
    fn default() -> Self {
        let failures = Reason::ALL.map(|reason| Recent::new(reason.remembered()));
        Self { counts: Counts::default(), failures }
    }
}

impl Part {
    fn remember(
        &mut self,
        times: (UnixSeconds, UnixSeconds, u64),
        reason: Reason,
        device: &DeviceId,
        enrollment: &str,
        origin: Origin,
        message: &str,
    ) {
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
        let create = || {
            let (enrollment, message) = (enrollment.to_owned(), message.to_owned());
            (device.clone(), Details { enrollment, origin, message })
        };
        self.failures[reason as usize].note_many(times, device, create, |known| {
            known.origin = origin;
            if known.enrollment != enrollment {
                enrollment.clone_into(&mut known.enrollment);
            }
            if known.message != message {
                message.clone_into(&mut known.message);
            }
        });
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
        let mut part = self.part();
        part.counts[reason as usize] += 1;
        let now = unix_now();
        part.remember((now, now, 1), reason, device, &principal.enrollment.name, origin, message);
    }

    /// Remembers requests that were made before the start, without adding them to the counts since
    /// the start. `times` contains the time of the first request, the time of the last request, and
    /// the number of requests.
    pub fn note_at(
        &self,
        times: (UnixSeconds, UnixSeconds, u64),
        reason: Reason,
        device: &DeviceId,
        enrollment: &str,
        origin: Origin,
        message: &str,
    ) {
        self.part().remember(times, reason, device, enrollment, origin, message);
    }

    /// Locks the part of this thread.
    fn part(&self) -> MutexGuard<'_, Part> {
        self.0.get_or_default().lock().unwrap_or_else(PoisonError::into_inner)
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
            for (reason, failures) in Reason::ALL.into_iter().zip(&part.failures) {
                forgotten |= failures.has_forgotten();
                for (device, failure) in failures.since(from) {
                    recent::add_up(&mut all, (device.clone(), reason), failure);
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
                let Some(counted) = part.failures[reason as usize].get(device) else { continue };
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

    fn note(
        failures: &Failures,
        at: UnixSeconds,
        reason: Reason,
        device: &DeviceId,
        enrollment: &str,
        origin: Origin,
        message: &str,
    ) {
        failures.note_at((at, at, 1), reason, device, enrollment, origin, message);
    }

    #[test]
    fn requests_for_the_same_reason_are_one_failure_with_its_first_and_last_time() {
        let failures = Failures::default();
        let sn = device("SN-1");
        note(&failures, 100, Reason::Later, &sn, "lamp", origin(), "");
        note(&failures, 160, Reason::Later, &sn, "lamp", origin(), "");
        note(&failures, 130, Reason::Operator, &sn, "lamp", origin(), "no such product");
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
        assert_eq!(failures.counts()[Reason::Later as usize], 0, "the past is not counted");
    }

    #[test]
    fn threads_have_parts_of_their_own_that_are_added_up() {
        let failures = Failures::default();
        std::thread::scope(|scope| {
            for second in [10, 20, 30] {
                let failures = &failures;
                scope.spawn(move || {
                    note(failures, second, Reason::Invalid, &device("SN-1"), "lamp", origin(), "");
                });
            }
        });
        let (all, _) = failures.since(0);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].first, all[0].last, all[0].count), (10, 30, 3));
    }

    #[test]
    fn a_stranger_with_a_million_ids_takes_bounded_memory_and_the_latest_stay() {
        let failures = Failures::default();
        for number in 0..3 * MOST {
            let id = device(&format!("SN-{number}"));
            note(&failures, number as i64 / 7, Reason::Invalid, &id, "plug", origin(), "");
        }
        let (all, forgotten) = failures.since(0);
        assert!(forgotten && all.len() <= MOST && all.len() >= MOST / 2, "{}", all.len());
        let last = device(&format!("SN-{}", 3 * MOST - 1));
        assert!(failures.last_of(&last).is_some());
        assert!(failures.last_of(&device("SN-0")).is_none());
    }

    #[test]
    fn the_reason_of_each_final_refusal_is_read_from_the_audit_log() {
        for (refusal, expected) in [
            (Refusal::Invalid, (Reason::Invalid, "")),
            (Refusal::NotYours, (Reason::NotYours, "")),
            (Refusal::Disabled, (Reason::Disabled, "")),
            (Refusal::Issued, (Reason::Issued, "")),
            (Refusal::Operator("odd: no".into()), (Reason::Operator, "odd: no")),
        ] {
            assert_eq!(reason_of(&refusal.to_string()), Some(expected));
        }
        assert_eq!(reason_of("whatever"), None);
    }

    #[test]
    fn a_flood_for_one_reason_displaces_no_device_with_another() {
        let failures = Failures::default();
        note(&failures, 1, Reason::Operator, &device("SN-1"), "lamp", origin(), "no such product");
        note(&failures, 1, Reason::Invalid, &device("SN-2"), "plug", origin(), "");
        for number in 0..4 * MOST {
            let id = device(&format!("QQ-{number}"));
            note(&failures, 2, Reason::TooMany, &id, "plug", origin(), "");
        }
        let (all, forgotten) = failures.since(0);
        assert!(forgotten && all.len() <= FEWER + 2, "{}", all.len());
        assert!(failures.last_of(&device("SN-1")).is_some() && failures.last_of(&device("SN-2")).is_some());
    }

    #[test]
    fn all_failures_of_one_second_leave_room_too() {
        let failures = Failures::default();
        for number in 0..=MOST {
            note(&failures, 5, Reason::Invalid, &device(&format!("SN-{number}")), "plug", origin(), "");
        }
        assert_eq!(failures.since(0).0.len(), MOST - MOST / 2 + 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failures = Failures::default();
        note(&failures, 5, Reason::Operator, &device("SN-1"), "plug", origin(), &"器".repeat(200));
        let message = failures.last_of(&device("SN-1")).unwrap().message;
        assert!(message.len() <= MAX_MESSAGE && message.ends_with('器'));
    }
}
