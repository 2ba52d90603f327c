//! The last hour as a picture: a bar a minute, drawn on the server. Pure.

use maud::{Markup, html};

use super::grouped;
use crate::admin::ring::Sample;

const WIDTH: usize = 720;
const HEIGHT: usize = 132;
const BASE: usize = 108;
/// Of a bar and the gap after it.
const STEP: usize = 12;
const MINUTES: usize = 60;

/// Requests in each of the last minutes, the present one last.
pub(super) fn minutes(minutes: &[Sample]) -> Markup {
    let most = minutes.iter().map(|minute| minute.total()).max().unwrap_or(0);
    let scale = nice(most);
    let height = |count: u64| (count as f64 / scale as f64 * (BASE - 12) as f64).ceil() as usize;
    let first = MINUTES - minutes.len().min(MINUTES);
    let sum = |of: fn(&Sample) -> u64| minutes.iter().map(of).sum::<u64>();
    let words = format!(
        "Requests in each of the last {} minutes: {} served, {} refused, {} told to come back; at most {} in a minute.",
        minutes.len(),
        grouped(sum(|minute| minute.served)),
        grouped(sum(|minute| minute.refused)),
        grouped(sum(|minute| minute.later)),
        grouped(most)
    );
    html! {
        figure.chart {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(words) {
                @for line in [12, (12 + BASE) / 2, BASE] {
                    line.grid x1="0" x2=(WIDTH) y1=(line) y2=(line) {}
                }
                text.axis x="0" y="9" { (grouped(scale)) " a minute" }
                @for (index, minute) in minutes.iter().take(MINUTES).enumerate() {
                    @let x = (first + index) * STEP + 1;
                    @let served = height(minute.served);
                    @let refused = height(minute.refused);
                    @let later = height(minute.later);
                    @if served > 0 { rect.served x=(x) width="10" y=(BASE.saturating_sub(served)) height=(served) {} }
                    @if refused > 0 { rect.refused x=(x) width="10" y=(BASE.saturating_sub(served + refused)) height=(refused) {} }
                    @if later > 0 { rect.later x=(x) width="10" y=(BASE.saturating_sub(served + refused + later)) height=(later) {} }
                }
                text.axis x="0" y="126" { "an hour ago" }
                text.axis x=(WIDTH) y="126" text-anchor="end" { "now" }
            }
            figcaption {
                span.key.served { "served" }
                span.key.refused { "refused (4.xx)" }
                span.key.later { "come back later (5.xx)" }
            }
        }
    }
}

/// The next of 1, 2, 5, 10, 20, 50 and so on: what the chart's height stands for.
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
    fn a_scale_holds_its_highest_bar_and_is_a_round_number() {
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
        assert!(drawn.contains("1,200 served, 3 refused, 0 told to come back"), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 2, "nothing is drawn for nothing");
    }
}
