//! The first page: shows problems that need an operator, and what the server has done.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde_json::json;

use super::{
    Visitor, chart, grouped,
    page::{self, Frame, Tone},
    wants_json,
};
use crate::{
    admin::{
        Shared, metrics,
        ring::{self, Sample},
    },
    histogram::Distribution,
};

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    if wants_json(&headers) {
        return Json(summary(&shared)).into_response();
    }
    let body = html! {
        h1 { "Overview" }
        (frame.live("/live", ring::EVERY, &content(&shared)))
    };
    frame.page("Overview", Some(&visitor), "/", &body).into_response()
}

/// Serves the part of the page that its script updates regularly.
pub(super) async fn live(State(shared): State<Arc<Shared>>, _: Visitor) -> Markup {
    content(&shared)
}

fn summary(shared: &Shared) -> serde_json::Value {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources));
    let hour = shared.ring().hour(now);
    json!({
        "lastHour": { "served": hour.served, "refused": hour.refused, "later": hour.later },
        "sessions": sessions(shared),
        "registrations": sources.registrar.registrations(),
        "registrationsWaiting": sources.registrar.waiting(),
        "batches": sources.registrar.batches(),
        "breakersOpen": sources.registrar.open_breakers(),
        "draining": sources.registrar.is_draining(),
    })
}

fn sessions(shared: &Shared) -> u64 {
    metrics::sum(&shared.sources, |worker| worker.sessions.load(Ordering::Relaxed))
}

fn content(shared: &Shared) -> Markup {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources));
    let (minutes, hour) = {
        let ring = shared.ring();
        (ring.minutes(now), ring.hour(now))
    };
    let registrar = &sources.registrar;
    let counters = registrar.counters();
    let waiting = sources.store.metrics().map_or(0, |metrics| metrics.waiting.load(Ordering::Relaxed));
    html! {
        (problems(shared))
        section.card aria-labelledby="hour" {
            h2 #hour { "Requests in the last hour" }
            (chart::minutes(&minutes))
        }
        dl.tiles {
            (tile("Served", &grouped(hour.served), "2.xx in the last hour"))
            (tile("Refused", &grouped(hour.refused), "4.xx in the last hour"))
            (tile("Asked to retry later", &grouped(hour.later), "5.xx in the last hour"))
            (tile("Sessions", &grouped(sessions(shared)), "DTLS, open now"))
            (tile("Registrations", &grouped(registrar.registrations() as u64), &format!("{} of them waiting for a call", grouped(registrar.waiting() as u64))))
            (tile("Batches", &grouped(registrar.batches() as u64), &format!("{} since the start", grouped(counters.batches))))
            (tile("Answered within", &within(&metrics::request_latency(sources)), "19 of 20 requests"))
            (tile("Registered within", &within(&registrar.latency()), "19 of 20 registrations"))
            (tile("Writes waiting", &grouped(waiting), "waiting for the database"))
        }
    }
}

fn tile(name: &str, value: &str, about: &str) -> Markup {
    html! {
        div.tile {
            dt { (name) }
            dd { strong { (value) } " " span { (about) } }
        }
    }
}

/// Formats the time within which 95 % of the requests or registrations were completed.
fn within(read: &Distribution) -> String {
    match read.quantile(0.95) {
        _ if read.count() == 0 => "–".to_owned(),
        None => "over 30 s".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds} s"),
    }
}

/// Maximum number of refusals by IoT Platform that are shown.
const MAX_REFUSALS: usize = 5;

fn problems(shared: &Shared) -> Markup {
    let registrar = &shared.sources.registrar;
    let store = shared.sources.store.metrics();
    let failed = store.map_or(0, |metrics| metrics.failed.load(Ordering::Relaxed));
    let dropped = metrics::sum(&shared.sources, |worker| worker.datagrams_dropped.load(Ordering::Relaxed));
    let mut all = Vec::new();
    if registrar.is_draining() {
        let text = "It accepts no new registrations, and finishes those in progress.";
        all.push((Tone::Warning, "The server is shutting down", text.to_owned()));
    }
    for (product, reason) in registrar.refusals().into_iter().take(MAX_REFUSALS) {
        let of_product = product.map(|key| format!(" for product {key}")).unwrap_or_default();
        let text = format!(
            "It refuses calls{of_product} until you fix the cause: {reason}. Devices that have no certificate yet \
             wait; all others are served."
        );
        all.push((Tone::Bad, "IoT Platform refuses calls", text));
    }
    if failed > 0 {
        let text = format!(
            "{} writes have failed since the start, and their devices were asked to retry later. The log shows why.",
            grouped(failed)
        );
        all.push((Tone::Warning, "Writes to the database failed", text));
    }
    if dropped > 0 {
        let text = format!(
            "{} since the start: the network or its buffers are too small or too slow.",
            grouped(dropped)
        );
        all.push((Tone::Note, "Datagrams were not sent", text));
    }
    html! {
        @if all.is_empty() {
            (page::message(Tone::Good, "All is well", &html! { p { "Nothing has failed since the server started, and IoT Platform accepts calls." } }))
        }
        @for (tone, title, text) in all {
            (page::message(tone, title, &html! { p { (text) } }))
        }
    }
}
