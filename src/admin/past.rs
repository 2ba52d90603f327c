//! Remembers the refusals before the start of the process, so that a restart hides no device that
//! is still refused. Only the audit log has these refusals.

use std::{ops::ControlFlow, time::Duration};

use super::{Sources, blocking, ring::Range};
use crate::{
    rate_limit::Origin,
    resource::failures::{Failures, reason_of},
    store::{
        StoreError,
        audit::{AuditEntry, AuditEvent, Repeats},
    },
};

/// Maximum number of refusals that are read.
const MOST: usize = 4096;

/// Maximum time for reading the refusals.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the latest refusals of the last day from the audit log. If the log cannot be read, another
/// concern reports it.
pub(super) async fn remember(Sources { store, failures, .. }: Sources) {
    let read = blocking(move || {
        // The times in the log come from the clock of the store, which may be ahead of the clock of
        // this machine.
        let ahead = store.ahead();
        let since = store.now().saturating_sub(Range::Day.seconds());
        let mut refusals: Vec<AuditEntry> = Vec::new();
        store.review_audit(&[AuditEvent::Refused], since, PATIENCE, &mut |entry, _| {
            refusals.push(entry);
            if refusals.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        // The refusals are noted in the order of their times, because the last one determines the
        // origin and the message.
        refusals.sort_by_key(|refusal| refusal.at);
        refusals.iter().for_each(|refusal| note(&failures, refusal, ahead));
        Ok::<_, StoreError>(refusals.len())
    });
    if let Err(error) = read.await {
        tracing::debug!(%error, "the refusals before the start could not be read");
    }
}

fn note(failures: &Failures, refusal: &AuditEntry, ahead: i64) {
    let AuditEntry { device: Some(device), enrollment: Some(enrollment), detail: Some(detail), .. } = refusal
    else {
        return;
    };
    let Some((reason, message)) = reason_of(detail) else { return };
    let Some(origin) = refusal.address.as_deref().and_then(origin) else { return };
    let Repeats { count, first, .. } = refusal.as_repeats();
    let [first, last] = [first, refusal.at].map(|at| at.saturating_sub(ahead));
    failures.note_at((first, last, count), reason, device, enrollment, origin, message);
}

/// Parses an origin as the log has it: an IPv4 address, or an IPv6 network.
fn origin(text: &str) -> Option<Origin> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address.parse().ok().map(Origin::of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, resource::failures::Reason};

    #[test]
    fn a_refusal_of_the_log_is_remembered_at_its_time() {
        let failures = Failures::default();
        let refusal = |at, address: &str, detail: &str| AuditEntry {
            device: Some(DeviceId::parse("SN-1").unwrap()),
            enrollment: Some("plug".into()),
            address: Some(address.into()),
            detail: Some(detail.into()),
            ..AuditEntry::new(AuditEvent::Refused, at)
        };
        for refusal in [
            refusal(3700, "192.0.2.7", "the device is invalid"),
            refusal(3800, "2001:db8::/64", "IoT Platform refuses: iot.prod.NotExistedProduct: no"),
            AuditEntry {
                repeats: Some(Repeats { count: 17, first: 3650, first_address: None }),
                ..refusal(3850, "192.0.2.8", "the device is invalid")
            },
            refusal(3900, "192.0.2.7", "a text of another version"),
            refusal(3900, "nowhere", "the device is invalid"),
        ] {
            note(&failures, &refusal, 3600);
        }
        let (all, _) = failures.since(0);
        let seen: Vec<_> = all
            .iter()
            .map(|one| (one.reason, one.last, one.origin.to_string(), one.message.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Reason::Invalid, 250, "192.0.2.8".into(), ""),
                (Reason::Operator, 200, "2001:db8::/64".into(), "iot.prod.NotExistedProduct: no"),
            ]
        );
        assert_eq!((all[0].first, all[0].count), (50, 18));
        assert_eq!(failures.counts().iter().sum::<u64>(), 0);
    }
}
