//! Reports whether the process is alive and whether it can serve. These health checks need no
//! token, so that a supervisor or a load balancer can use them. The answer shows the problems only
//! to clients that may read them. Refusals by IoT Platform are only a note, because devices that
//! have a certificate are served without IoT Platform.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::sync::Mutex;

use super::Sources;
use crate::{
    server::{self, Pulse, ROUND},
    store::Table,
};

/// Maximum time for a probe, which reads and writes the table.
const PROBE: Duration = Duration::from_secs(2);
/// Time for which the result of a probe is reused, because each probe writes to the disk.
const PROBE_COUNTS: Duration = Duration::from_secs(1);

/// Maximum number of refusals that are shown.
const MAX_NOTES: usize = 10;

/// Line in place of the problems, for clients that may not read them.
const HIDDEN: &str = "the reasons are shown on the server itself, and to requests with a token";

/// Time and result of the last probe.
#[derive(Default)]
pub(super) struct Health {
    probed: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// Amount of detail in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// The state, without its reasons.
    StateOnly,
    /// The state and its reasons, which name products and describe the database.
    Reasons,
}

/// Answers `/healthz`, which checks that every worker makes progress.
pub(super) async fn live(pulses: &[Pulse], detail: Detail) -> Response {
    let silent = server::silent_workers(pulses).await;
    let problems = silent.into_iter().map(|number| {
        format!("worker {number} has made no progress for {} s; restart certdist", ROUND.as_secs())
    });
    answer("ok", problems.collect(), &[], detail)
}

impl Health {
    /// Answers `/readyz`, which checks that the server is listening, that the table can be read
    /// and written, and that the server is not draining.
    pub(super) async fn ready(&self, sources: &Sources, detail: Detail) -> Response {
        let mut problems = Vec::new();
        // The sockets are bound before the workers start, so a worker that makes progress is
        // listening.
        for number in server::silent_workers(&sources.pulses).await {
            problems.push(format!("worker {number} has made no progress for {} s", ROUND.as_secs()));
        }
        if let Err(problem) = self.probe(&sources.store).await {
            problems.push(problem);
        }
        if sources.targets.is_draining() {
            problems.push("draining: the server is shutting down".to_owned());
        }
        let refusals = sources.targets.all().iter().flat_map(|target| {
            let place = match sources.targets.are_named() {
                true => format!("IoT Platform at target {}", target.name()),
                false => "IoT Platform".to_owned(),
            };
            target.registrar.refusals().into_iter().map(move |(product, reason)| match product {
                Some(key) => format!("note: {place} refuses product {key}: {reason}"),
                None => format!("note: {place} refuses calls: {reason}"),
            })
        });
        let mut notes: Vec<String> = refusals.take(MAX_NOTES).collect();
        if !notes.is_empty() {
            notes.push("note: devices that have no certificate yet wait, all others are served".into());
        }
        answer("ready", problems, &notes, detail)
    }

    async fn probe(&self, store: &Arc<dyn Table>) -> Result<(), String> {
        let look = async {
            let mut probed = self.probed.lock().await;
            if let Some((at, outcome)) = &*probed
                && at.elapsed() < PROBE_COUNTS
            {
                return outcome.clone();
            }
            let outcome = match tokio::time::timeout(PROBE, store.probe()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the database has taken no write for {} s", PROBE.as_secs())),
            };
            *probed = Some((Instant::now(), outcome.clone()));
            outcome
        };
        // Concurrent requests wait for the same probe.
        let waited = tokio::time::timeout(2 * PROBE, look).await;
        waited.unwrap_or_else(|_| Err("the database does not answer".to_owned()))
    }
}

fn answer(good: &str, problems: Vec<String>, notes: &[String], detail: Detail) -> Response {
    let is_good = problems.is_empty();
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut lines = vec![if is_good { good.to_owned() } else { format!("not {good}") }];
    match detail {
        Detail::Reasons => lines.extend(problems.into_iter().chain(notes.iter().cloned())),
        Detail::StateOnly if is_good => {}
        Detail::StateOnly => lines.push(HIDDEN.to_owned()),
    }
    let text = lines.join("\n") + "\n";
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
