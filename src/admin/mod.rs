//! The operator's HTTP port: is it alive, and what has it done. Reads figures,
//! decides nothing.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};

use crate::{
    cert::throttle::{Counters, Limit},
    registrar::Registrar,
    server::Figures,
};

/// Where the figures come from.
#[derive(Clone)]
pub struct Sources {
    /// One a worker.
    pub workers: Vec<Arc<Figures>>,
    /// The queue to the cloud.
    pub registrar: Arc<Registrar>,
    /// Who asked too often.
    pub throttle: Arc<Counters>,
}

/// Listens, as a task of the current runtime. Answers with the address.
pub async fn start(listen: SocketAddr, sources: Sources) -> Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("[admin] cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state(sources);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "health and metrics are gone");
        }
    });
    Ok(address)
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], exposition(&sources))
}

/// Prometheus' text format.
fn exposition(sources: &Sources) -> String {
    let sum = |figure: fn(&Figures) -> &AtomicU64| {
        sources.workers.iter().map(|worker| figure(worker).load(Ordering::Relaxed)).sum::<u64>()
    };
    let calls = sources.registrar.counters();
    let mut out = String::with_capacity(4096);
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP certdist_{name} {help}\n# TYPE certdist_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "certdist_{name}{labels} {value}");
        }
    };
    metric(
        "hello_verify_requests_total",
        "counter",
        "Cookies sent to clients.",
        &[("", sum(|f| &f.hello_verify_requests))],
    );
    metric(
        "handshakes_total",
        "counter",
        "Handshakes with a good cookie, by outcome.",
        &[
            ("{outcome=\"completed\"}", sum(|f| &f.handshakes_completed)),
            ("{outcome=\"failed\"}", sum(|f| &f.handshakes_failed)),
        ],
    );
    metric("handshakes", "gauge", "Handshakes in progress.", &[("", sum(|f| &f.handshakes))]);
    metric("sessions", "gauge", "DTLS sessions held.", &[("", sum(|f| &f.sessions))]);
    metric(
        "bad_records_total",
        "counter",
        "Protected records that no key opened, and replays.",
        &[("", sum(|f| &f.bad_records))],
    );
    metric(
        "retransmissions_total",
        "counter",
        "DTLS flights sent again.",
        &[("", sum(|f| &f.retransmissions))],
    );
    metric(
        "datagrams_dropped_total",
        "counter",
        "Datagrams that the system did not take.",
        &[("", sum(|f| &f.datagrams_dropped))],
    );
    metric(
        "responses_total",
        "counter",
        "CoAP responses, by class of their code.",
        &[
            ("{class=\"2\"}", sum(|f| &f.responses[0])),
            ("{class=\"4\"}", sum(|f| &f.responses[1])),
            ("{class=\"5\"}", sum(|f| &f.responses[2])),
        ],
    );
    let by_limit = |count: fn(&Counters, Limit) -> u64| {
        Limit::ALL.map(|limit| (format!("{{limit=\"{}\"}}", limit.name()), count(&sources.throttle, limit)))
    };
    for (name, help, values) in [
        (
            "throttled_total",
            "Requests answered with 4.29, by the limit that they met.",
            by_limit(Counters::throttled),
        ),
        (
            "throttling_episodes_total",
            "Times that somebody began to exceed a limit.",
            by_limit(Counters::episodes),
        ),
    ] {
        let values = values.each_ref().map(|(labels, value)| (labels.as_str(), *value));
        metric(name, "counter", help, &values);
    }
    metric(
        "refused_lookups_total",
        "counter",
        "Requests under a shared identity refused with 4.03 or 4.04.",
        &[("", sources.throttle.refused_lookups())],
    );
    metric(
        "registrations",
        "gauge",
        "Registrations waiting or in progress.",
        &[("", sources.registrar.flights() as u64)],
    );
    metric(
        "registrations_total",
        "counter",
        "Registrations, by outcome.",
        &[
            ("{outcome=\"registered\"}", calls.registered),
            ("{outcome=\"recovered\"}", calls.recovered),
            ("{outcome=\"failed\"}", calls.failed),
        ],
    );
    metric(
        "registration_retries_total",
        "counter",
        "Calls to IoT Platform made again.",
        &[("", calls.retries)],
    );
    out
}
