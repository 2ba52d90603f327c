//! Writes the metrics in the Prometheus text format. Each worker updates its own counters; this
//! module only reads and sums them. Each label has a few values that are known in advance, so that
//! a stranger cannot create new time series.

use std::{
    fmt::{Display, Write},
    iter,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Sources, census::Census, connections::Connections};
use crate::{
    coap::Code,
    dtls::{Dropped, Failure, Suite},
    guards::Unlisted,
    histogram::{Distribution, Histogram},
    iot_platform::{Action, calls::Ended},
    psk::{EnrollmentOutline, WhichKey, uses::UseCounters},
    registrar::{self, Target, Targets},
    resource::throttle::{Counters, Limit},
    server::Metrics,
    store::{self, Totals},
};

/// Media type of the Prometheus text format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Actions of IoT Platform that certdist calls.
const CALLED: [Action; 7] = [
    Action::RegisterDevice,
    Action::QueryDeviceDetail,
    Action::BatchCheckDeviceNames,
    Action::QueryBatchRegisterDeviceStatus,
    Action::BatchRegisterDeviceWithApplyId,
    Action::QueryPageByApplyId,
    Action::BatchQueryDeviceDetail,
];

/// Sums a metric over all workers.
pub(super) fn sum(sources: &Sources, counter: impl Fn(&Metrics) -> u64) -> u64 {
    sources.workers.iter().map(|worker| counter(worker)).sum()
}

/// Returns the distribution of request durations over all workers.
pub(super) fn request_latency(sources: &Sources) -> Distribution {
    sources
        .workers
        .iter()
        .map(|worker| worker.request_latency.read())
        .fold(Distribution::default(), |sum, one| sum.plus(one))
}

/// Returns the number of responses whose code has this class (2, 4 or 5).
pub(super) fn responses_of(sources: &Sources, class: u8) -> u64 {
    (0..32).map(|detail| sum(sources, |worker| worker.responses.of(class << 5 | detail))).sum()
}

/// Returns all metrics. The numbers of devices are left out if they are not known.
pub(super) fn exposition(
    sources: &Sources,
    connections: &Connections,
    enrollments: &[EnrollmentOutline],
    census: Option<&Census>,
) -> String {
    let mut page = Page(String::with_capacity(16_384));
    process(&mut page, sources);
    handshakes(&mut page, sources);
    keys(&mut page, &sources.key_uses);
    requests(&mut page, sources);
    throttling(&mut page, &sources.throttle);
    registrations(&mut page, sources);
    if let Some(census) = census {
        devices(&mut page, &census.sum);
        waiting(&mut page, enrollments, census);
    }
    if let Some(metrics) = sources.store.metrics() {
        table(&mut page, &metrics);
        audit(&mut page, &metrics);
    }
    admin(&mut page, connections);
    page.0
}

fn process(page: &mut Page, sources: &Sources) {
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    page.metric("certdist_build_info", "gauge", "Version of certdist; always 1.", [(version, 1)]);
    let labels = format!("{{name=\"{}\",version=\"{}\"}}", escaped(&sources.name), env!("CARGO_PKG_VERSION"));
    let help = "Name of this server among those of the table, and its version; always 1.";
    page.metric("certdist_server_info", "gauge", help, [(labels, 1)]);
    let help = "Start time of the process as a Unix timestamp, in seconds.";
    page.one("process_start_time_seconds", "gauge", help, sources.started);
    if let Some(bytes) = resident_memory() {
        page.one("process_resident_memory_bytes", "gauge", "Resident memory, in bytes.", bytes);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        page.one("process_open_fds", "gauge", "Open file descriptors.", entries.count());
    }
    page.one("certdist_workers", "gauge", "Threads that serve devices.", sources.workers.len());
}

fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn handshakes(page: &mut Page, sources: &Sources) {
    let of = |counter: fn(&Metrics) -> &AtomicU64| sum(sources, |worker| load(counter(worker)));
    let help = "Cookies sent to clients.";
    page.one("certdist_hello_verify_requests_total", "counter", help, of(|f| &f.hello_verify_requests));
    let completed = iter::zip(Suite::ALL, 0..).map(|(suite, index): (Suite, usize)| {
        let labels = format!("{{outcome=\"completed\",suite=\"{}\"}}", suite.name());
        (labels, sum(sources, |worker| load(&worker.completed_by_suite[index])))
    });
    // A handshake may fail before a suite is agreed on.
    let failed = ("{outcome=\"failed\",suite=\"\"}".to_owned(), of(|f| &f.handshakes_failed));
    let help = "Handshakes with a good cookie, by outcome, and by cipher suite when completed.";
    page.metric("certdist_handshakes_total", "counter", help, completed.chain([failed]));
    let reasons = iter::zip(Failure::ALL, 0..).map(|(reason, index): (Failure, usize)| {
        let labels = format!("{{reason=\"{}\"}}", reason.name());
        (labels, sum(sources, |worker| load(&worker.failed_by_reason[index])))
    });
    page.metric("certdist_handshake_failures_total", "counter", "Failed handshakes, by reason.", reasons);
    page.one("certdist_handshakes", "gauge", "Handshakes in progress.", of(|f| &f.handshakes));
    page.one("certdist_sessions", "gauge", "DTLS sessions held.", of(|f| &f.sessions));
    let help = "Sessions ended because the table was full or their key had too many.";
    page.one("certdist_sessions_evicted_total", "counter", help, of(|f| &f.sessions_evicted));
    let help = "Moves of sessions with a connection ID to another address.";
    page.one("certdist_sessions_moved_total", "counter", help, of(|f| &f.sessions_moved));
    let help = "ClientHellos repeated after their session had begun.";
    page.one("certdist_late_hellos_total", "counter", help, of(|f| &f.late_hellos));
    let help = "Requests answered with 4.29 because their session or network had too many in progress.";
    page.one("certdist_requests_put_off_total", "counter", help, of(|f| &f.too_many_in_progress));
    let help = "Answers kept back because the device's new address was not yet validated.";
    page.one("certdist_answers_kept_total", "counter", help, of(|f| &f.answers_kept));
    let help = "Kept answers sent after the device's new address was validated.";
    page.one("certdist_answers_resumed_total", "counter", help, of(|f| &f.answers_resumed));
    let help = "Requests dropped because their session had too many in progress or answered in the last EXCHANGE_LIFETIME.";
    page.one("certdist_requests_dropped_total", "counter", help, of(|f| &f.requests_dropped));
    let help = "Separate answers that were not acknowledged after all transmissions.";
    page.one("certdist_answers_given_up_total", "counter", help, of(|f| &f.answers_given_up));
    let help = "Block-wise transfers removed to make room for others.";
    page.one("certdist_transfers_evicted_total", "counter", help, of(|f| &f.transfers_evicted));
    let dropped = iter::zip(Dropped::ALL, 0..).map(|(reason, index): (Dropped, usize)| {
        let labels = format!("{{reason=\"{}\"}}", reason.name());
        (labels, sum(sources, |worker| load(&worker.dtls_dropped[index])))
    });
    let help = "ClientHellos, messages, flights and records dropped without an answer, by reason.";
    page.metric("certdist_dtls_dropped_total", "counter", help, dropped);
    let help = "Protected records that failed authentication, and replays.";
    page.one("certdist_bad_records_total", "counter", help, of(|f| &f.bad_records));
    let help = "DTLS flights sent again.";
    page.one("certdist_retransmissions_total", "counter", help, of(|f| &f.retransmissions));
    let help = "Datagrams that the system did not accept for sending.";
    page.one("certdist_datagrams_dropped_total", "counter", help, of(|f| &f.datagrams_dropped));
    let help =
        "Datagrams for another worker's session, dropped because too many were waiting for that worker.";
    page.one("certdist_forwarded_dropped_total", "counter", help, of(|f| &f.forwarded_dropped));
}

/// Writes the uses of keys, for enrollments that have two keys or whose devices have two. The names
/// of the enrollments come from the configuration.
fn keys(page: &mut Page, uses: &UseCounters) {
    let (mut handshakes, mut last_uses) = (Vec::new(), Vec::new());
    let of_enrollments =
        uses.all().into_iter().map(|(name, pair)| (name, pair.map(|counter| counter.read())));
    for (enrollment, counts) in of_enrollments.chain(uses.own_counts()) {
        for (which, (count, last)) in iter::zip(WhichKey::ALL, counts) {
            let labels = format!("{{enrollment=\"{}\",key=\"{}\"}}", escaped(&enrollment), which.as_str());
            last_uses.extend(last.map(|last| (labels.clone(), last)));
            handshakes.push((labels, count));
        }
    }
    if handshakes.is_empty() {
        return;
    }
    let help =
        "Completed handshakes with each key of the enrollments that have two, or whose devices have two.";
    page.metric("certdist_key_handshakes_total", "counter", help, handshakes);
    let help = "Time of the last of these handshakes as a Unix timestamp, in seconds.";
    page.metric("certdist_key_last_used_timestamp_seconds", "gauge", help, last_uses);
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn requests(page: &mut Page, sources: &Sources) {
    let count = |code: Code| sum(sources, |worker| worker.responses.of(code.byte()));
    let known = Code::ALL.map(|code| (format!("{{code=\"{}\"}}", code.name()), count(code)));
    let all: u64 = (0..=u8::MAX).map(|byte| sum(sources, |worker| worker.responses.of(byte))).sum();
    let other = all.saturating_sub(known.iter().map(|(_, count)| count).sum());
    let help = "Requests answered, by CoAP response code.";
    let values = known.into_iter().chain([("{code=\"other\"}".to_owned(), other)]);
    page.metric("certdist_responses_total", "counter", help, values);
    let in_progress = sum(sources, |worker| load(&worker.in_progress));
    page.one(
        "certdist_requests_in_work",
        "gauge",
        "Requests and key lookups that wait for the table or IoT Platform.",
        in_progress,
    );
    let help = "Time from a request's arrival to its answer.";
    page.histogram("certdist_request_duration_seconds", help, &request_latency(sources));
}

fn throttling(page: &mut Page, counters: &Counters) {
    let by_limit = |count: fn(&Counters, Limit) -> u64| {
        Limit::ALL.map(|limit| (format!("{{limit=\"{}\"}}", limit.name()), count(counters, limit)))
    };
    let help = "Requests answered with 4.29, by rate limit.";
    page.metric("certdist_throttled_total", "counter", help, by_limit(Counters::throttled));
    let help = "Number of times a client began to exceed a rate limit.";
    page.metric("certdist_throttling_episodes_total", "counter", help, by_limit(Counters::episodes));
    let help = "Requests under a shared identity refused with 4.03 or 4.04.";
    page.one("certdist_refused_lookups_total", "counter", help, counters.refused_lookups());
}

fn registrations(page: &mut Page, sources: &Sources) {
    let targets = ByTarget(&sources.targets);
    let help = "Registrations waiting or in progress.";
    targets.one(page, "certdist_registrations", "gauge", help, |target| target.registrar.registrations());
    let help = "Registrations that wait for a call.";
    targets.one(page, "certdist_registrations_waiting", "gauge", help, |target| target.registrar.waiting());
    let outcomes = targets.each(|target| {
        let counters = target.registrar.counters();
        let outcome = |outcome| format!("outcome=\"{outcome}\"");
        vec![
            (outcome("registered"), counters.registered),
            (outcome("recovered"), counters.recovered),
            (outcome("failed"), counters.failed),
        ]
    });
    page.metric("certdist_registrations_total", "counter", "Registrations, by outcome.", outcomes);
    let help = "Time from a registration's start to its certificate on disk.";
    let latencies = targets.each(|target| vec![(String::new(), target.registrar.latency())]);
    page.histograms("certdist_registration_duration_seconds", help, &latencies);
    let calls = targets.each(|target| {
        let of = |action: Action| {
            let Ended { worked, failed, timed_out } = target.calls.ended(action);
            let labels = move |outcome| format!("action=\"{}\",outcome=\"{outcome}\"", action.name());
            [(labels("worked"), worked), (labels("failed"), failed), (labels("timed_out"), timed_out)]
        };
        CALLED.into_iter().flat_map(of).collect()
    });
    let help = "Calls of IoT Platform, by action and outcome.";
    page.metric("certdist_cloud_calls_total", "counter", help, calls);
    let counter = |page: &mut Page, name, help, count: fn(&registrar::Counters) -> u64| {
        targets.one(page, name, "counter", help, |target| count(&target.registrar.counters()));
    };
    let help = "Repeated calls to IoT Platform.";
    counter(page, "certdist_registration_retries_total", help, |counters| counters.retries);
    let help = "Batches that gather devices or are in progress.";
    targets.one(page, "certdist_batches", "gauge", help, |target| target.registrar.batches());
    counter(page, "certdist_batches_total", "Batches started.", |counters| counters.batches);
    let help = "Calls that IoT Platform rejected because of its rate limit.";
    counter(page, "certdist_cloud_throttled_total", help, |counters| counters.throttled);
    let help = "Products and accounts that IoT Platform refuses until an operator acts.";
    targets.one(page, "certdist_breakers_open", "gauge", help, |target| target.registrar.open_breakers());
}

/// Values of a metric for each target. If the configuration names targets, each value has the label
/// `target`. The names are those of the configuration, so there are only a few.
struct ByTarget<'t>(&'t Targets);

impl ByTarget<'_> {
    /// Returns all values of all targets, each with its labels.
    fn each<V>(&self, values: impl Fn(&Target) -> Vec<(String, V)>) -> Vec<(String, V)> {
        let of = |target| {
            values(target).into_iter().map(move |(labels, value)| (self.labels(target, &labels), value))
        };
        self.0.all().iter().flat_map(of).collect()
    }

    fn labels(&self, target: &Target, others: &str) -> String {
        match (self.0.are_named(), others) {
            (false, "") => String::new(),
            (false, others) => format!("{{{others}}}"),
            (true, "") => format!("{{target=\"{}\"}}", target.name()),
            (true, others) => format!("{{target=\"{}\",{others}}}", target.name()),
        }
    }

    fn one<V: Display>(
        &self,
        page: &mut Page,
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&Target) -> V,
    ) {
        page.metric(name, kind, help, self.each(|target| vec![(String::new(), value(target))]));
    }
}

fn devices(page: &mut Page, all: &Totals) {
    page.one("certdist_devices", "gauge", "Devices in the table.", all.devices);
    let states = [
        ("registered", all.registered),
        ("unregistered", all.unregistered),
        ("issued", all.issued),
        ("unissued", all.unissued),
        ("activated", all.activated),
        ("refused", all.refused),
        ("disabled", all.disabled),
        ("cloud-disabled", all.disabled_at_cloud),
        ("cloud-deleted", all.deleted_at_cloud),
    ];
    let states = states.map(|(state, count)| (format!("{{state=\"{state}\"}}"), count));
    let help = "Devices in the table, by state; a device can have several.";
    page.metric("certdist_devices_in_state", "gauge", help, states);
}

/// Writes the numbers of devices that wait to be admitted, for the enrollments of the configuration
/// that hold devices, or in which some still wait.
fn waiting(page: &mut Page, enrollments: &[EnrollmentOutline], census: &Census) {
    let counts = enrollments.iter().filter_map(|enrolled| {
        let waiting = census.waiting.get(&enrolled.name).copied();
        let holds = enrolled.guards.unlisted == Unlisted::Hold;
        let labels = || format!("{{enrollment=\"{}\"}}", escaped(&enrolled.name));
        (holds || waiting.is_some()).then(|| (labels(), waiting.unwrap_or(0)))
    });
    let counts: Vec<_> = counts.collect();
    if !counts.is_empty() {
        let help = "Devices that are not in the table and wait to be admitted, by enrollment.";
        page.metric("certdist_devices_to_admit", "gauge", help, counts);
    }
}

fn audit(page: &mut Page, metrics: &store::Metrics) {
    let class = |class| format!("{{class=\"{class}\"}}");
    let dropped = [
        (class("repeat"), load(&metrics.repeats_dropped)),
        (class("unreadable"), load(&metrics.lines_unreadable)),
    ];
    let help = "Repeated requests that were not written to the audit log because too many entries were waiting, and \
                lines of ended processes that could not be read.";
    page.metric("certdist_audit_dropped_total", "counter", help, dropped);
    let removed = [
        (class("change"), load(&metrics.changes_removed)),
        (class("repeat"), load(&metrics.repeats_removed)),
    ];
    let help = "Expired entries that this process has removed from the audit log, by class.";
    page.metric("certdist_audit_removed_total", "counter", help, removed);
}

fn table(page: &mut Page, metrics: &store::Metrics) {
    let help = "Writes to the database that wait for their commit.";
    page.one("certdist_store_writes_waiting", "gauge", help, load(&metrics.waiting));
    let outcomes = [
        ("written", load(&metrics.written)),
        ("refused", load(&metrics.refused)),
        ("failed", load(&metrics.failed)),
    ];
    let outcomes = outcomes.map(|(outcome, count)| (format!("{{outcome=\"{outcome}\"}}"), count));
    page.metric("certdist_store_writes_total", "counter", "Writes to the database, by outcome.", outcomes);
    let help = "Time for a commit to the database, which may contain many writes.";
    page.histogram("certdist_store_commit_duration_seconds", help, &Histogram::read(&metrics.commit_latency));
    let help = "Keys that seal secrets of the database and are not configured.";
    page.one("certdist_database_keys_missing", "gauge", help, load(&metrics.keys_missing));
}

fn admin(page: &mut Page, connections: &Connections) {
    page.one("certdist_admin_connections", "gauge", "Connections to the admin port.", connections.open());
    let lost = connections.lost().map(|(loss, count)| (format!("{{reason=\"{}\"}}", loss.name()), count));
    let help =
        "Connections to the admin port that were refused, made room for others or were too slow, by reason.";
    page.metric("certdist_admin_connections_dropped_total", "counter", help, lost);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

struct Page(String);

impl Page {
    fn metric<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, V)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help, [(String::new(), value)]);
    }

    fn histogram(&mut self, name: &str, help: &str, read: &Distribution) {
        self.histograms(name, help, std::slice::from_ref(&(String::new(), *read)));
    }

    /// Writes a histogram for each item of `all`, which contains the labels, with braces, and the
    /// distribution.
    fn histograms(&mut self, name: &str, help: &str, all: &[(String, Distribution)]) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (labels, read) in all {
            let own = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}'));
            let own = own.map(|own| format!("{own},")).unwrap_or_default();
            for (bound, count) in read.cumulated() {
                let _ = writeln!(self.0, "{name}_bucket{{{own}le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(self.0, "{name}_bucket{{{own}le=\"+Inf\"}} {}", read.count());
            let _ = writeln!(
                self.0,
                "{name}_sum{labels} {}\n{name}_count{labels} {}",
                read.seconds(),
                read.count()
            );
        }
    }
}
