//! Draws the last hour as an SVG chart with one bar for each minute. Pure.

use maud::{Markup, html};

use super::grouped;
use crate::admin::ring::Sample;

const WIDTH: usize = 720;
const HEIGHT: usize = 100;
/// Width of a bar, including the gap after it.
const STEP: usize = 12;
const MINUTES: usize = 60;

/// Draws the number of requests in each minute of the last hour, the current minute last.
pub(super) fn minutes(minutes: &[Sample]) -> Markup {
    let most = minutes.iter().map(|minute| minute.total()).max().unwrap_or(0);
    let scale = nice(most);
    let first = MINUTES - minutes.len().min(MINUTES);
    let sum = |of: fn(&Sample) -> u64| minutes.iter().map(of).sum::<u64>();
    let words = format!(
        "Requests in each of the last {} minutes: {} served, {} refused, {} asked to retry later; at most {} in a minute.",
        minutes.len(),
        grouped(sum(|minute| minute.served)),
        grouped(sum(|minute| minute.refused)),
        grouped(sum(|minute| minute.later)),
        grouped(most)
    );
    html! {
        figure.chart {
            div.axis aria-hidden="true" { span { (grouped(scale)) " a minute" } }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(words) {
                line.grid x1="0" x2=(WIDTH) y1=(HEIGHT / 2) y2=(HEIGHT / 2) {}
                @for (index, minute) in minutes.iter().take(MINUTES).enumerate() {
                    @let x = (first + index) * STEP + 1;
                    @for bar in bars(minute, scale) {
                        rect class=(bar.class) x=(x) width=(STEP - 2) y=(bar.top) height=(bar.height) {}
                    }
                }
            }
            div.axis aria-hidden="true" { span { "an hour ago" } span { "now" } }
            figcaption {
                span.key.served { "served" }
                span.key.refused { "refused (4.xx)" }
                span.key.later { "asked to retry later (5.xx)" }
            }
        }
    }
}

struct Bar {
    class: &'static str,
    top: usize,
    height: usize,
}

/// Returns the stacked bars of a minute, without those whose count is zero.
fn bars(minute: &Sample, scale: u64) -> Vec<Bar> {
    let mut top = HEIGHT;
    let parts = [("served", minute.served), ("refused", minute.refused), ("later", minute.later)];
    let bars = parts.into_iter().filter(|(_, count)| *count > 0).map(|(class, count)| {
        // Rounded up, so that a small count is visible.
        let height = ((count as f64 / scale as f64 * HEIGHT as f64).ceil() as usize).min(top);
        top -= height;
        Bar { class, top, height }
    });
    bars.collect()
}

/// Returns the value at the top of the chart: the smallest of 5, 10, 20, 50, 100 and so on that
/// is at least `most`.
fn nice(most: u64) -> u64 {
    let mut step = 1;
    loop {
        for factor in [1, 2, 5] {
            if step * factor >= most {
                return (step * factor).max(5);
            }
        }
        step *= 10;
        if step > u64::MAX / 100 {
            return u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_fits_its_highest_bar_and_is_a_round_number() {
        for (most, scale) in [(0, 5), (1, 5), (5, 5), (6, 10), (11, 20), (21, 50), (51, 100), (7200, 10_000)]
        {
            assert_eq!(nice(most), scale, "{most}");
        }
        assert!(nice(u64::MAX) == u64::MAX);
    }

    #[test]
    fn a_chart_says_in_words_what_it_draws() {
        let minutes = [Sample { served: 1200, refused: 3, later: 0 }];
        let drawn = super::minutes(&minutes).into_string();
        assert!(drawn.contains("1,200 served, 3 refused, 0 asked to retry later"), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 2, "nothing is drawn for nothing");
        // HTML allows a figcaption, which explains the colours, only in a figure.
        assert!(drawn.starts_with("<figure class=\"chart\">") && drawn.ends_with("</figcaption></figure>"));
    }
}
