//! The devices of each target, and what keeps the devices of an enrollment from their first
//! certificates. Pure: the console and `certdist stats` pass in what they know of the clouds.

use std::collections::HashMap;

use crate::{
    guards::Unlisted,
    policy::{self, Reason},
    psk::EnrollmentOutline,
    store::{Totals, UnixSeconds, place::Places},
};

/// An obstacle: it keeps the devices of an enrollment from their first certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The enrollment is not in the configuration.
    #[error("it is not in the configuration")]
    NotConfigured,
    /// The enrollment opens at this time.
    #[error("it opens at {}", policy::time(*.0))]
    NotOpen(UnixSeconds),
    /// The enrollment closed at this time.
    #[error("it closed at {}", policy::time(*.0))]
    Closed(UnixSeconds),
    /// The enrollment is full: this many devices have a certificate, which is the maximum.
    #[error("{0} devices have a certificate, and max_devices permits no more")]
    Full(u64),
    /// All places of the enrollment's maximum are taken, by devices with and without a certificate.
    #[error(
        "{} devices have a certificate and {} are being registered or were rotated, and max_devices permits no more \
         than {max}",
        .taken.registered,
        .taken.claimed
    )]
    Taken {
        /// Maximum number of places.
        max: u64,
        /// Places that are taken.
        taken: Places,
    },
    /// The target of the enrollment is not configured.
    #[error("its target {0} is not configured")]
    NoTarget(String),
    /// The cloud of this target cannot be called, for this reason.
    #[error("its target {0} cannot be called: {1}")]
    NoCloud(String, String),
    /// The cloud refuses registrations for this reason, until an operator acts.
    #[error("IoT Platform refuses registrations: {0}")]
    Stopped(String),
}

/// State of the target of an enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cloud {
    /// No problem with the target is known.
    Called,
    /// The target refuses registrations of the enrollment's product for this reason.
    Stopped(String),
    /// This target cannot be called, for this reason.
    Missing(String, String),
    /// This target is not configured.
    NotConfigured(String),
}

/// Returns the obstacles of an enrollment. Returns none if all its devices are registered, no device
/// waits to be admitted, and `unlisted` is `Refuse`. `enrolled` is `None` if the enrollment is not
/// in the configuration; this is an obstacle if the table has devices of the enrollment. `waiting`
/// is the number of devices that wait to be admitted. `taken` has the places that are taken, as
/// [`place::reported`](crate::store::place::reported) counts them.
pub fn of(
    enrolled: Option<&EnrollmentOutline>,
    totals: &Totals,
    taken: Places,
    waiting: u64,
    cloud: Cloud,
    now: UnixSeconds,
) -> Vec<Obstacle> {
    let unregistered = totals.devices.saturating_sub(totals.registered);
    let is_any = unregistered > 0 || waiting > 0;
    let Some(enrolled) = enrolled else {
        return if totals.devices > 0 { vec![Obstacle::NotConfigured] } else { Vec::new() };
    };
    if !is_any && enrolled.guards.unlisted == Unlisted::Refuse {
        return Vec::new();
    }
    let terms = enrolled.terms();
    let guarded = [policy::may_have_first(terms, now), policy::may_have_place(terms, taken)];
    let of_guard = |reason: Reason<'_>| match reason {
        Reason::NotOpen { opens, .. } => Some(Obstacle::NotOpen(opens)),
        Reason::Closed(closed) => Some(Obstacle::Closed(closed)),
        Reason::Full(max) => Some(Obstacle::Full(max)),
        // The devices that have a place can be registered.
        Reason::Filling { .. } => {
            let is_kept =
                unregistered > taken.claimed || waiting > 0 || enrolled.guards.unlisted != Unlisted::Refuse;
            enrolled.guards.max_devices.filter(|_| is_kept).map(|max| Obstacle::Taken { max, taken })
        }
        Reason::Disabled | Reason::Issued | Reason::Refused(..) => None,
    };
    let mut all: Vec<Obstacle> = guarded.into_iter().filter_map(|allowed| of_guard(allowed.err()?)).collect();
    all.extend(match cloud {
        Cloud::Called => None,
        Cloud::Stopped(reason) => Some(Obstacle::Stopped(reason)),
        Cloud::Missing(target, reason) => Some(Obstacle::NoCloud(target, reason)),
        Cloud::NotConfigured(target) => Some(Obstacle::NoTarget(target)),
    });
    all
}

/// Numbers of devices of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfTarget {
    /// Name of the target.
    pub name: String,
    /// Set if the target is configured.
    pub is_configured: bool,
    /// Number of the configured enrollments whose devices are registered there.
    pub enrollments: u64,
    /// Devices of these enrollments.
    pub totals: Totals,
    /// Devices that wait to be admitted to these enrollments.
    pub waiting: u64,
}

/// Counts the devices of each target: first the configured targets, in this order, and then other
/// targets that enrollments or rows name. The store keeps no numbers by target. So each device
/// counts at the target of its enrollment, even if its own row names another target.
pub fn by_target<'t>(
    configured: impl Iterator<Item = &'t str>,
    in_rows: &[String],
    of_enrollments: &HashMap<String, String>,
    totals: &[Totals],
    waiting: &HashMap<String, u64>,
) -> Vec<OfTarget> {
    let new =
        |name: &str, is_configured| OfTarget { name: name.to_owned(), is_configured, ..OfTarget::default() };
    let mut all: Vec<OfTarget> = configured.map(|name| new(name, true)).collect();
    let mut others: Vec<&String> = of_enrollments.values().chain(in_rows).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|name| all.iter().all(|known| known.name != **name));
    all.extend(others.into_iter().map(|name| new(name, false)));
    let numbers: HashMap<String, usize> = all.iter().map(|target| target.name.clone()).zip(0..).collect();
    let number = |enrollment: &str| numbers.get(of_enrollments.get(enrollment)?).copied();
    let mut own: Vec<Vec<Totals>> = vec![Vec::new(); all.len()];
    for totals in totals {
        if let Some(number) = number(&totals.enrollment) {
            own[number].push(totals.clone());
        }
    }
    for (enrollment, count) in waiting {
        if let Some(number) = number(enrollment) {
            all[number].waiting += count;
        }
    }
    for name in of_enrollments.values() {
        if let Some(number) = numbers.get(name) {
            all[*number].enrollments += 1;
        }
    }
    for (target, own) in all.iter_mut().zip(own) {
        target.totals = Totals::sum(&own);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guards::Guards,
        psk::{KindName, Reissue},
    };

    fn outline(guards: Guards) -> EnrollmentOutline {
        EnrollmentOutline {
            name: "lamp".into(),
            product_key: "a1".into(),
            kind: KindName::Derived,
            reissue: Reissue::Always,
            guards,
            shared_identities: Vec::new(),
            key_ids: None,
        }
    }

    fn totals(enrollment: &str, devices: u64, registered: u64) -> Totals {
        Totals { enrollment: enrollment.into(), devices, registered, ..Totals::default() }
    }

    fn places(totals: &Totals, claimed: u64) -> Places {
        Places { registered: totals.registered, claimed }
    }

    #[test]
    fn each_obstacle_is_named_while_it_keeps_a_device() {
        let guards = Guards { closes: Some(100), max_devices: Some(2), ..Guards::default() };
        let said = |guards, totals: &Totals, waiting, cloud, now| {
            let all = of(Some(&outline(guards)), totals, places(totals, 0), waiting, cloud, now);
            all.iter().map(Obstacle::to_string).collect::<Vec<_>>()
        };
        let some = totals("lamp", 3, 2);
        assert_eq!(
            said(guards, &some, 0, Cloud::Stopped("unpaid".into()), 100),
            [
                "it closed at 1970-01-01T00:01:40Z",
                "2 devices have a certificate, and max_devices permits no more",
                "IoT Platform refuses registrations: unpaid",
            ]
        );
        assert_eq!(said(guards, &totals("lamp", 2, 1), 0, Cloud::Called, 99), [""; 0]);
        assert_eq!(said(guards, &totals("lamp", 2, 2), 0, Cloud::Called, 100), [""; 0], "all have theirs");
        assert_eq!(said(guards, &totals("lamp", 2, 2), 1, Cloud::Called, 99).len(), 1, "one waits");
        let admits = Guards { unlisted: Unlisted::Admit, ..guards };
        assert_eq!(said(admits, &totals("lamp", 2, 2), 0, Cloud::Called, 99).len(), 1, "others may come");
        let opens = Guards { opens: Some(7), ..Guards::default() };
        let lost = || Cloud::NotConfigured("kobe".into());
        assert_eq!(
            said(opens, &some, 0, lost(), 6),
            ["it opens at 1970-01-01T00:00:07Z", "its target kobe is not configured"]
        );
        let missing = Cloud::Missing("osaka".into(), "no access key".into());
        let expected = "its target osaka cannot be called: no access key";
        assert_eq!(said(opens, &some, 0, missing, 7), [expected]);
        let none = Places::default();
        assert_eq!(of(None, &some, none, 0, Cloud::Called, 0), [Obstacle::NotConfigured]);
        assert_eq!(of(None, &totals("lamp", 0, 0), none, 0, Cloud::Called, 0), []);
    }

    #[test]
    fn places_of_devices_without_a_certificate_are_an_obstacle_for_others() {
        let guards = Guards { max_devices: Some(3), ..Guards::default() };
        let said = |guards, totals: &Totals, claimed, waiting| {
            let taken = places(totals, claimed);
            let all = of(Some(&outline(guards)), totals, taken, waiting, Cloud::Called, 0);
            all.iter().map(Obstacle::to_string).collect::<Vec<_>>()
        };
        let expected =
            ["1 devices have a certificate and 2 are being registered or were rotated, and max_devices \
                         permits no more than 3"];
        assert_eq!(said(guards, &totals("lamp", 4, 1), 2, 0), expected);
        assert_eq!(said(guards, &totals("lamp", 4, 1), 1, 0), [""; 0], "a place is free");
        assert_eq!(said(guards, &totals("lamp", 3, 1), 2, 0), [""; 0], "they have the places themselves");
        assert_eq!(said(guards, &totals("lamp", 3, 1), 2, 1), expected, "one waits");
        let admits = Guards { unlisted: Unlisted::Admit, ..guards };
        assert_eq!(said(admits, &totals("lamp", 3, 1), 2, 0), expected, "others may come");
    }

    #[test]
    fn devices_count_at_the_target_of_their_enrollment() {
        let of_enrollments = [("lamp", "tokyo"), ("plug", "default"), ("fan", "tokyo")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        let all = by_target(
            ["default", "tokyo"].into_iter(),
            &["kobe".into(), "tokyo".into()],
            &of_enrollments.into(),
            &[totals("fan", 1, 1), totals("former", 9, 9), totals("lamp", 3, 2), totals("plug", 5, 0)],
            &[("lamp".to_owned(), 4), ("former".to_owned(), 2)].into(),
        );
        let shown: Vec<_> = all
            .iter()
            .map(|of| (of.name.as_str(), of.is_configured, of.enrollments, of.totals.devices, of.waiting))
            .collect();
        assert_eq!(shown, [("default", true, 1, 5, 0), ("tokyo", true, 2, 4, 4), ("kobe", false, 0, 0, 0)]);
        assert_eq!(all[1].totals.registered, 3);
    }
}
