//! Shows the recent handshakes that failed, by identity and address. Nothing in a failed handshake
//! is authenticated: any client can claim any identity.

use std::{collections::HashSet, sync::Arc};

use axum::{
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use hashbrown::HashMap;
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Visitor,
    devices::link,
    grouped,
    language::Texts,
    page::{self, Frame, encoded, moment},
};
use crate::{
    admin::{Shared, ring::Range},
    device::{AskedId, DeviceId},
    dtls::Failure,
    rate_limit::Origin,
    recent::{self, Counted},
    server::failed_handshakes::Claimed,
    store::{UnixSeconds, unix_now},
};

/// Maximum number of rows on the page.
const MAX_LISTED: usize = 200;

/// Failed handshakes of one client for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// The client, as far as it is known.
    pub(super) claimed: Claimed,
    /// The reason.
    pub(super) reason: Failure,
    /// Number and times of the handshakes, and origin of the last one.
    pub(super) counted: Counted<Origin>,
}

impl Failed {
    /// Returns the device ID that the client claimed as its identity, if the identity is a device
    /// ID.
    fn device(&self) -> Option<DeviceId> {
        match &self.claimed {
            Claimed::Identity(identity) => {
                AskedId::parse(identity).ok().map(|asked| asked.canonical().clone())
            }
            Claimed::Origin(_) => None,
        }
    }
}

/// Returns the failed handshakes since `from`, the latest first, and whether any were forgotten for
/// lack of room.
pub(super) fn since(shared: &Shared, from: UnixSeconds) -> (Vec<Failed>, bool) {
    let (mut all, mut forgotten) = (HashMap::default(), false);
    for worker in &shared.sources.workers {
        forgotten |= worker.failed.since(from, |claimed, reason, counted| {
            recent::add_up(&mut all, (claimed.clone(), reason), counted);
        });
    }
    let failed = |((claimed, reason), counted)| Failed { claimed, reason, counted };
    let mut all: Vec<Failed> = all.into_iter().map(failed).collect();
    all.sort_by_key(|failed| std::cmp::Reverse(failed.counted.last));
    (all, forgotten)
}

/// Returns the last failed handshake of a client that claimed this device ID as its identity.
pub(super) fn last_of(shared: &Shared, device: &DeviceId) -> Option<Failed> {
    let (all, _) = since(shared, unix_now() - Range::Day.seconds());
    all.into_iter().find(|failed| failed.device().as_ref() == Some(device))
}

/// Returns the name of the group of a reason in URLs, and the catalogue key of its name.
pub(super) fn group(reason: Failure) -> (&'static str, &'static str) {
    match reason {
        Failure::WrongKey => ("wrong-key", "handshake-wrong-key"),
        Failure::TimedOut => ("silent", "handshake-silent"),
        _ => ("other", "handshake-other"),
    }
}

/// Renders a reason: its group in the language of the page and, if the group has several reasons,
/// the reason itself.
pub(super) fn sentence(t: Texts, reason: Failure) -> Markup {
    let (name, key) = group(reason);
    html! {
        (t.say(key))
        @if name == "other" { ": " span lang="en" { (reason) } }
    }
}

#[derive(Deserialize)]
pub(super) struct Selection {
    /// Name of a group of reasons; empty for all.
    #[serde(default)]
    result: String,
    /// Name of the range; if empty, the range is a day.
    #[serde(default)]
    range: String,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(selection): Query<Selection>,
) -> Response {
    let t = frame.texts;
    let range = Range::named(&selection.range).unwrap_or(Range::Day);
    let from = unix_now() - range.seconds();
    let (mut all, forgotten) = since(&shared, from);
    let is_selection = !selection.result.is_empty();
    all.retain(|failed| !is_selection || group(failed.reason).0 == selection.result);
    let result = encoded(&selection.result);
    let handshakes: u64 = all.iter().map(|failed| failed.counted.count).sum();
    let clients = all.iter().map(|failed| &failed.claimed).collect::<HashSet<_>>().len() as u64;
    let begin = shared.sources.started.max(from);
    let body = html! {
        p.crumb { a href="/" { (t.say("nav-overview")) } }
        div.head {
            h1 { (t.say("handshakes-failed")) }
            (page::ranges(t, range, |other| format!("/handshakes?result={result}&range={}", other.name())))
        }
        p.hint {
            @if forgotten { (t.say("at-least")) " " }
            (t.with("handshakes-counts", [("clients", clients.into()), ("handshakes", handshakes.into())]))
            " · " (t.rich("failures-since", [("time", moment(begin).into())]))
            @if is_selection { " · " a href={ "/handshakes?range=" (range.name()) } { (t.say("handshakes-all")) } }
        }
        p.hint { (t.say("handshakes-hint")) }
        @if all.is_empty() { p { (t.say("failures-none")) } }
        @else { div.card { (table(t, &all)) } }
        @if all.len() > MAX_LISTED { p.hint { (t.with("failures-latest", [("count", (MAX_LISTED as u64).into())])) } }
        @if forgotten { p.hint { (t.say("handshakes-forgotten")) } }
    };
    frame.page(&t.say("handshakes-failed"), Some(&visitor), "/", &body).into_response()
}

fn table(t: Texts, all: &[Failed]) -> Markup {
    html! {
        table.stacked {
            thead { tr {
                th scope="col" { (t.say("column-identity")) }
                th scope="col" { (t.say("column-reason")) }
                th scope="col" { (t.say("column-address")) }
                th scope="col" { (t.say("column-last")) }
                th scope="col" { (t.say("column-handshakes")) }
            } }
            tbody {
                @for failed in all.iter().take(MAX_LISTED) {
                    tr {
                        th scope="row" {
                            @match (&failed.claimed, failed.device()) {
                                (Claimed::Identity(identity), Some(device)) => { a.id href=(link(&device)) { (identity) } }
                                (Claimed::Identity(identity), None) => { bdi { (identity) } }
                                (Claimed::Origin(_), _) => "–",
                            }
                        }
                        td data-label=(t.say("column-reason")) { (sentence(t, failed.reason)) }
                        td data-label=(t.say("column-address")) { (failed.counted.value) }
                        td data-label=(t.say("column-last")) { (moment(failed.counted.last)) }
                        td data-label=(t.say("column-handshakes")) { (grouped(failed.counted.count)) }
                    }
                }
            }
        }
    }
}
