//! The first page: is all well, and what has the server done.

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
    page::{self, Tone},
    wants_json,
};
use crate::{
    admin::{
        Room, metrics,
        ring::{self, Sample},
    },
    figures::Distribution,
};

pub(super) async fn show(State(room): State<Arc<Room>>, visitor: Visitor, headers: HeaderMap) -> Response {
    if wants_json(&headers) {
        return Json(figures(&room)).into_response();
    }
    let body = html! {
        h1 { "Overview" }
        div #live data-every=(ring::EVERY.as_secs()) { (content(&room)) }
    };
    page::page("Overview", Some(&visitor), "/", &body).into_response()
}

/// What the page's script puts into its place, now and then.
pub(super) async fn live(State(room): State<Arc<Room>>, _: Visitor) -> Markup {
    content(&room)
}

fn figures(room: &Room) -> serde_json::Value {
    let (sources, now) = (&room.sources, Sample::of(&room.sources));
    let hour = room.ring().hour(now);
    json!({
        "lastHour": { "served": hour.served, "refused": hour.refused, "later": hour.later },
        "sessions": sessions(room),
        "registrations": sources.registrar.flights(),
        "registrationsWaiting": sources.registrar.waiting(),
        "batches": sources.registrar.batches(),
        "breakersOpen": sources.registrar.open_breakers(),
        "draining": sources.registrar.is_draining(),
    })
}

fn sessions(room: &Room) -> u64 {
    metrics::sum(&room.sources, |worker| worker.sessions.load(Ordering::Relaxed))
}

fn content(room: &Room) -> Markup {
    let (sources, now) = (&room.sources, Sample::of(&room.sources));
    let (minutes, hour) = {
        let ring = room.ring();
        (ring.minutes(now), ring.hour(now))
    };
    let registrar = &sources.registrar;
    let counters = registrar.counters();
    let waiting = sources.store.figures().map_or(0, |figures| figures.waiting.load(Ordering::Relaxed));
    html! {
        (concerns(room))
        section.card aria-labelledby="hour" {
            h2 #hour { "Requests, the last hour" }
            (chart::minutes(&minutes))
        }
        dl.tiles {
            (tile("Served", &grouped(hour.served), "2.xx in the last hour"))
            (tile("Refused", &grouped(hour.refused), "4.xx in the last hour"))
            (tile("To come back later", &grouped(hour.later), "5.xx in the last hour"))
            (tile("Sessions", &grouped(sessions(room)), "DTLS, held now"))
            (tile("Registrations", &grouped(registrar.flights() as u64), &format!("{} of them wait for a call", grouped(registrar.waiting() as u64))))
            (tile("Batches", &grouped(registrar.batches() as u64), &format!("{} so far", grouped(counters.batches))))
            (tile("Answers within", &within(&metrics::request_latency(sources)), "19 of 20 requests"))
            (tile("Registered within", &within(&registrar.latency()), "19 of 20 registrations"))
            (tile("Writes waiting", &grouped(waiting), "for the database"))
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

/// A time that 95 of 100 took at most.
fn within(read: &Distribution) -> String {
    match read.quantile(0.95) {
        _ if read.count() == 0 => "–".to_owned(),
        None => "over 30 s".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds} s"),
    }
}

fn concerns(room: &Room) -> Markup {
    let registrar = &room.sources.registrar;
    let store = room.sources.store.figures();
    let failed = store.map_or(0, |figures| figures.failed.load(Ordering::Relaxed));
    let dropped = metrics::sum(&room.sources, |worker| worker.datagrams_dropped.load(Ordering::Relaxed));
    let mut all = Vec::new();
    if registrar.is_draining() {
        let text = "It was told to end: it takes no new registrations, and finishes those in progress.";
        all.push((Tone::Warning, "The server is ending", text.to_owned()));
    }
    if registrar.open_breakers() > 0 {
        let text = format!(
            "It refuses {} products or accounts in a way that only you can mend. Devices that have no certificate \
             yet wait; all others are served. The log has its reason: credentials, permissions, quota or product.",
            registrar.open_breakers()
        );
        all.push((Tone::Bad, "IoT Platform refuses", text));
    }
    if failed > 0 {
        let text = format!(
            "{} writes failed since the start, and devices were told to come back. The log says why.",
            grouped(failed)
        );
        all.push((Tone::Warning, "The database failed", text));
    }
    if dropped > 0 {
        let text = format!("{} since the start: the network or its buffers are too slow.", grouped(dropped));
        all.push((Tone::Note, "Datagrams were not sent", text));
    }
    html! {
        @if all.is_empty() {
            (page::message(Tone::Good, "All is well", &html! { p { "Nothing has failed since the server started, and IoT Platform does not refuse." } }))
        }
        @for (tone, title, text) in all {
            (page::message(tone, title, &html! { p { (text) } }))
        }
    }
}
