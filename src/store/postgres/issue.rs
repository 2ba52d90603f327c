//! First issues of certificates. Those that are asked for together are recorded in one transaction,
//! with their audit entries.

use std::{collections::HashMap, sync::atomic::Ordering, time::Instant};

use super::{
    engine::Transactions,
    failure::Failure,
    session::{Session, column, values},
};
use crate::{
    device::{Certificate, DeviceId},
    store::{
        Issue, Metrics, StoreError, UnixSeconds,
        audit::{Asker, AuditEvent},
    },
};

/// A request for the first issue of a certificate.
pub(super) struct Asking {
    pub(super) device: DeviceId,
    pub(super) certificate: Certificate,
    /// Random number of the request, by which it is known again.
    pub(super) issue_id: i64,
    pub(super) asker: Asker,
}

/// Records first issues, and returns a result for each.
pub(super) async fn record(
    transactions: &Transactions,
    metrics: &Metrics,
    all: &[Asking],
    now: UnixSeconds,
) -> Result<Vec<Result<Issue, StoreError>>, StoreError> {
    let begun = Instant::now();
    let count = all.len() as u64;
    metrics.waiting.fetch_add(count, Ordering::Relaxed);
    let recorded = transactions.run(&async |session: &Session| record_in(session, all, now).await).await;
    metrics.commit_latency.observe(begun.elapsed());
    metrics.waiting.fetch_sub(count, Ordering::Relaxed);
    let refused = match &recorded {
        Ok(answers) => answers.iter().filter(|answer| answer.is_err()).count() as u64,
        Err(_) => 0,
    };
    metrics.refused.fetch_add(refused, Ordering::Relaxed);
    let counter = if recorded.is_ok() { &metrics.written } else { &metrics.failed };
    counter.fetch_add(count - refused, Ordering::Relaxed);
    recorded
}

/// The database chooses one of several requests for one device. Its number is then in the row, so that
/// the row says which request had the first issue. A request that is repeated only reads the row.
async fn record_in(
    session: &Session,
    all: &[Asking],
    now: UnixSeconds,
) -> Result<Vec<Result<Issue, StoreError>>, Failure> {
    const ISSUE: &str = "WITH issued AS (UPDATE device_table d SET firstIssued = $7, issueId = a.issueId, \
         importId = -abs(d.importId) FROM unnest($1, $2, $3, $4, $5, $6) \
         AS a (deviceId, enrollment, productKey, deviceName, issueId, line) \
         WHERE d.deviceId = a.deviceId AND d.state = 'enabled' AND d.enrollment = a.enrollment \
         AND d.productKey = a.productKey AND d.deviceName = a.deviceName AND d.deviceSecret IS NOT NULL \
         AND d.firstIssued IS NULL RETURNING d.deviceId, a.line, d.enrollment, d.productKey), \
         counted AS (INSERT INTO count_change (enrollment, productKey, refusal, devices, registered, unissued, issued, \
         activated, disabled, unregistered, cloudDisabled, cloudDeleted, clear) \
         SELECT enrollment, productKey, '', 0, 0, -count(*), count(*), 0, 0, 0, 0, 0, 0 FROM issued \
         GROUP BY enrollment, productKey) \
         INSERT INTO audit_pending (deviceId, at, event, line) SELECT deviceId, $7, $8, line FROM issued";
    // Prevents deadlocks between servers that record issues of the same devices.
    const LOCK: &str = "SELECT deviceId FROM device_table WHERE deviceId = ANY ($1) AND firstIssued IS NULL \
                        ORDER BY deviceId FOR UPDATE";
    const KNOWN: &str = "SELECT deviceId, enrollment, productKey, deviceName, firstIssued, issueId FROM device_table \
         WHERE deviceId = ANY ($1) AND state = 'enabled' AND deviceSecret IS NOT NULL AND firstIssued IS NOT NULL";
    let texts = |of: fn(&Asking) -> &str| all.iter().map(of).collect::<Vec<&str>>();
    let ids = texts(|asking| asking.device.as_str());
    let numbers: Vec<i64> = all.iter().map(|asking| asking.issue_id).collect();
    session.rows(LOCK, values![ids]).await?;
    session
        .execute(
            ISSUE,
            values![
                ids,
                texts(|asking| &asking.asker.enrollment),
                texts(|asking| &asking.certificate.product_key),
                texts(|asking| &asking.certificate.device_name),
                numbers,
                all.iter().map(|asking| asking.line(now)).collect::<Vec<String>>(),
                now,
                AuditEvent::Issued.name()
            ],
        )
        .await?;
    let mut known: HashMap<String, (String, String, String, UnixSeconds, Option<i64>)> = HashMap::new();
    for row in session.rows(KNOWN, values![ids]).await? {
        let row_of =
            (column(&row, 1)?, column(&row, 2)?, column(&row, 3)?, column(&row, 4)?, column(&row, 5)?);
        known.insert(column(&row, 0)?, row_of);
    }
    let answer = |asking: &Asking| {
        let Asking { device, certificate: Certificate { product_key, device_name, .. }, .. } = asking;
        match known.get(device.as_str()) {
            Some((enrollment, product, name, first, issue_id))
                if (enrollment, product, name) == (&asking.asker.enrollment, product_key, device_name) =>
            {
                Ok(Issue { first: *first, is_first: *issue_id == Some(asking.issue_id) })
            }
            _ => {
                let reason = format!("device {device} was disabled, moved or reset meanwhile");
                Err(StoreError::Conflict(reason))
            }
        }
    };
    Ok(all.iter().map(answer).collect())
}

impl Asking {
    /// Returns the audit entry about the first issue.
    fn line(&self, now: UnixSeconds) -> String {
        let Certificate { product_key, device_name, .. } = &self.certificate;
        let detail = format!("{product_key}/{device_name}");
        self.asker.clone().entry(AuditEvent::Issued, now, self.device.clone(), detail).line()
    }
}
