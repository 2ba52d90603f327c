//! Shows the progress of each enrollment: imported, registered, issued, activated, refused.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use tokio::sync::Mutex;

use super::{
    Visitor, advice, grouped,
    page::{self, Frame, Tone},
};
use crate::{
    admin::Shared,
    psk::EnrollmentOutline,
    store::{StoreError, Totals},
};

/// Minimum time for which counts are reused, because counting reads the whole table.
const COUNTS: Duration = Duration::from_secs(3);
/// Minimum time for which counts are reused, as a multiple of the time that counting took. With
/// millions of rows, counting takes seconds.
const TIMES: u32 = 10;

/// The most recent counts.
#[derive(Default)]
pub(super) struct Counts(Mutex<Option<Counted>>);

#[derive(Clone)]
struct Counted {
    at: Instant,
    took: Duration,
    progress: Vec<Totals>,
}

impl Counts {
    /// Returns recent counts. Concurrent requests wait for the same count of the table.
    async fn of(&self, shared: &Shared) -> Result<Counted, StoreError> {
        let mut last = self.0.lock().await;
        if let Some(counted) = &*last
            && counted.at.elapsed() < COUNTS.max(counted.took * TIMES)
        {
            return Ok(counted.clone());
        }
        let (store, begun) = (shared.sources.store.clone(), Instant::now());
        let progress = tokio::task::spawn_blocking(move || store.totals()).await;
        let progress = progress.map_err(|error| StoreError::Failed(error.to_string()))??;
        let counted = Counted { at: Instant::now(), took: begun.elapsed(), progress };
        *last = Some(counted.clone());
        Ok(counted)
    }
}

pub(super) async fn show(State(shared): State<Arc<Shared>>, frame: Frame, visitor: Visitor) -> Response {
    let counted = match shared.pages.enrollments.of(&shared).await {
        Ok(counted) => counted,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let enrollments = shared.enrollments();
    let unknown = counted
        .progress
        .iter()
        .filter(|progress| !enrollments.iter().any(|enrolled| enrolled.name == progress.enrollment));
    let body = html! {
        h1 { "Enrollments" }
        p.hint { "How far the devices of each enrollment are. Counted "
            @match counted.at.elapsed().as_secs() { 0 => "just now", seconds => { (seconds) " s ago" } } "." }
        @for enrolled in &enrollments {
            @let progress = counted.progress.iter().find(|progress| progress.enrollment == enrolled.name);
            (card(&enrolled.name, Some(enrolled), &progress.cloned().unwrap_or_default()))
        }
        @for progress in unknown { (card(&progress.enrollment, None, progress)) }
    };
    frame.page("Enrollments", Some(&visitor), "/enrollments", &body).into_response()
}

fn card(name: &str, enrolled: Option<&EnrollmentOutline>, progress: &Totals) -> Markup {
    let steps = [
        ("Registered", progress.registered, "at IoT Platform, with a certificate here"),
        ("Issued", progress.issued, "have fetched their certificate"),
        ("Activated", progress.activated, "have signed in at IoT Platform"),
    ];
    html! {
        section.card.enrollment {
            h2 { (name) }
            @if let Some(EnrollmentOutline { product_key, kind, reissue, .. }) = enrolled {
                p.hint { (kind.as_str()) " key · product " (product_key) " · issued " (advice::reissue(*reissue)) }
            } @else {
                (page::message(Tone::Warning, "Not configured", &html! { p { "Its devices have no key to sign in with. Add this enrollment to the configuration." } }))
            }
            p { strong.count { (grouped(progress.devices)) } " imported" }
            @for (step, count, about) in steps {
                div.step {
                    span { b { (step) } " " span.hint { (about) } }
                    span.number { (grouped(count)) " · " (percent(count, progress.devices)) }
                    progress aria-label={ (name) ": " (step) } value=(count) max=(progress.devices.max(1)) {}
                }
            }
            @if progress.refused > 0 { p.bad { (grouped(progress.refused)) " refused by IoT Platform. Each device's page shows the reason." } }
            @if progress.disabled > 0 { p.hint { (grouped(progress.disabled)) " disabled here." } }
        }
    }
}

/// Formats a share in percent, rounded down, so that 100 % means all.
fn percent(count: u64, of: u64) -> String {
    match (count, of) {
        (0, _) | (_, 0) => "0 %".to_owned(),
        (count, of) if count * 100 < of => "under 1 %".to_owned(),
        (count, of) => format!("{} %", count * 100 / of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_means_all() {
        assert_eq!(percent(0, 0), "0 %");
        assert_eq!(percent(1, 1000), "under 1 %");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(1000, 1000), "100 %");
    }
}
