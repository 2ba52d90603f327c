//! Draws the numbers of answers in an hour, a day or a week as an SVG chart. The kinds of answers
//! differ in pattern as well as in colour, and a table below the chart has the numbers. Performs no
//! I/O.

use maud::{Markup, html};

use super::{grouped, language::Texts};
use crate::{
    admin::ring::{Kind, Range, Sample},
    store::UnixSeconds,
};

const WIDTH: usize = 720;
const HEIGHT: usize = 100;

/// Groups of answers in the order in which they are stacked in a bar, the lowest first. Each group
/// has a class in the style sheet, the catalogue key of its name, and its kinds of answers.
const GROUPS: [(&str, &str, &[Kind]); 4] = [
    ("served", "chart-served", &[Kind::Served]),
    ("refused", "chart-refused", &Kind::REFUSED),
    ("cloud", "chart-cloud", &[Kind::Operator]),
    ("later", "chart-later", &[Kind::Later, Kind::TimedOut]),
];

/// Draws the bars of a range, the current bar last. If the server started within the range, the
/// chart marks the time at which the data begin.
pub(super) fn draw(
    t: Texts,
    range: Range,
    bars: &[Sample],
    started: UnixSeconds,
    now: UnixSeconds,
) -> Markup {
    let total = |bar: &Sample| GROUPS.iter().map(|(_, _, kinds)| bar.sum(kinds)).sum::<u64>();
    let most = bars.iter().map(total).max().unwrap_or(0);
    let scale = nice(most);
    let first = range.bars().saturating_sub(bars.len());
    let step = WIDTH / range.bars();
    let begin = range.end_of_bar(now) - range.seconds();
    let of_group = |kinds: &[Kind]| bars.iter().map(|bar| bar.sum(kinds)).sum::<u64>();
    let counts = GROUPS.map(|(_, _, kinds)| of_group(kinds));
    let words = t.with(
        "chart-words",
        [
            ("served", counts[0].into()),
            ("refused", counts[1].into()),
            ("cloud", counts[2].into()),
            ("later", counts[3].into()),
            ("most", most.into()),
        ],
    );
    let unit = match range {
        Range::Hour => t.with("chart-a-minute", [("count", scale.into())]),
        Range::Day => t.with("chart-20-minutes", [("count", scale.into())]),
        Range::Week => t.with("chart-2-hours", [("count", scale.into())]),
    };
    html! {
        figure.chart {
            div.axis aria-hidden="true" { span { (unit) } }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(words) {
                defs {
                    pattern id="refused" width="6" height="6" patternUnits="userSpaceOnUse" {
                        rect.refused width="6" height="6" {}
                        path.ink d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" {}
                    }
                    pattern id="cloud" width="6" height="6" patternUnits="userSpaceOnUse" {
                        rect.cloud width="6" height="6" {}
                        path.ink d="M0,3 h6 M3,0 v6" {}
                    }
                    pattern id="later" width="6" height="6" patternUnits="userSpaceOnUse" {
                        rect.later width="6" height="6" {}
                        path.ink d="M0,3 h6" {}
                    }
                }
                line.grid x1="0" x2=(WIDTH) y1=(HEIGHT / 2) y2=(HEIGHT / 2) {}
                @if started > begin {
                    @let x = ((started - begin) * WIDTH as i64 / range.seconds()).clamp(0, (first * step) as i64);
                    line.start x1=(x) x2=(x) y1="0" y2=(HEIGHT) {}
                }
                @for (index, bar) in bars.iter().take(range.bars()).enumerate() {
                    @let x = (first + index) * step + 1;
                    g {
                        title { (clock(range, bar.at - range.step())) ": " (grouped(total(bar))) }
                        @for part in parts(bar, scale) {
                            rect.served[part.class == "served"] fill=[(part.class != "served").then(|| format!("url(#{})", part.class))]
                                x=(x) width=(step.saturating_sub(2).max(1)) y=(part.top) height=(part.height) {}
                        }
                    }
                }
            }
            div.axis aria-hidden="true" {
                @for quarter in 0..=4 {
                    @let at = begin + range.seconds() * quarter / 4;
                    span { (clock(range, at)) }
                }
            }
            @if started > begin {
                p.hint { (t.rich("chart-begins", [("time", super::page::moment(started).into())])) }
            }
            figcaption {
                @for ((class, name, _), count) in GROUPS.into_iter().zip(counts) {
                    span class={ "key " (class) } { (t.say(name)) " " b { (grouped(count)) } }
                }
            }
        }
        (values(t, range, bars))
    }
}

/// Renders the values of the bars that are not empty as a table, for readers who cannot see the
/// chart.
fn values(t: Texts, range: Range, bars: &[Sample]) -> Markup {
    let of_bar = |bar: &Sample| GROUPS.map(|(_, _, kinds)| bar.sum(kinds));
    let filled: Vec<_> = bars
        .iter()
        .rev()
        .map(|bar| (bar.at, of_bar(bar)))
        .filter(|(_, counts)| counts.iter().sum::<u64>() > 0)
        .collect();
    html! {
        details #values {
            summary { (t.say("chart-values")) }
            @if filled.is_empty() { p.hint { (t.say("chart-no-requests")) } }
            @else {
                table {
                    thead { tr {
                        th scope="col" { (t.say("chart-from")) }
                        @for (_, name, _) in GROUPS { th scope="col" { (t.say(name)) } }
                    } }
                    tbody {
                        @for (end, counts) in filled {
                            tr {
                                th scope="row" { (clock(range, end - range.step())) }
                                @for count in counts { td { (grouped(count)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Formats a time of the axis in UTC, as short as the range permits.
fn clock(range: Range, at: UnixSeconds) -> Markup {
    let Ok(time) = jiff::Timestamp::from_second(at) else { return html! {} };
    let text = match range {
        Range::Hour | Range::Day => time.strftime("%H:%M").to_string(),
        Range::Week => time.strftime("%m-%d %H:%M").to_string(),
    };
    html! { (text) }
}

struct Part {
    class: &'static str,
    top: usize,
    height: usize,
}

/// Returns the stacked parts of a bar, without those whose count is zero.
fn parts(bar: &Sample, scale: u64) -> Vec<Part> {
    let mut top = HEIGHT;
    let parts = GROUPS.into_iter().map(|(class, _, kinds)| (class, bar.sum(kinds)));
    let parts = parts.filter(|(_, count)| *count > 0).map(|(class, count)| {
        // Rounded up, so that a small count is visible.
        let height = ((count as f64 / scale as f64 * HEIGHT as f64).ceil() as usize).min(top);
        top -= height;
        Part { class, top, height }
    });
    parts.collect()
}

/// Returns the value at the top of the chart: the smallest number of the series 5, 10, 20, 50, 100,
/// 200, … that is at least `most`.
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
    use crate::admin::console::language::Language;

    const ENGLISH: Texts = Texts(Language::English);

    #[test]
    fn a_scale_fits_its_highest_bar_and_is_a_round_number() {
        for (most, scale) in [(0, 5), (1, 5), (5, 5), (6, 10), (11, 20), (21, 50), (51, 100), (7200, 10_000)]
        {
            assert_eq!(nice(most), scale, "{most}");
        }
        assert!(nice(u64::MAX) == u64::MAX);
    }

    #[test]
    fn a_chart_says_in_words_and_in_a_table_what_it_draws() {
        let bars = [Sample::counted(7200, &[(Kind::Served, 1200), (Kind::Invalid, 3), (Kind::TooMany, 1)])];
        let drawn = draw(ENGLISH, Range::Hour, &bars, 0, 7200).into_string();
        assert!(drawn.contains("1,200 served, 4 refused here"), "{drawn}");
        let bar = drawn.split_once("<g>").unwrap().1.split_once("</g>").unwrap().0;
        assert_eq!(bar.matches("<rect").count(), 2, "nothing is drawn for nothing: {bar}");
        assert!(drawn.contains("<th scope=\"row\">01:59</th><td>1,200</td><td>4</td>"), "{drawn}");
        assert!(!drawn.contains("The server started"), "{drawn}");
    }

    #[test]
    fn a_chart_says_where_it_begins() {
        for (range, has_begun) in [(Range::Hour, false), (Range::Day, true), (Range::Week, true)] {
            let now = 100 * 86_400;
            let drawn = draw(ENGLISH, range, &[], now - 7200, now).into_string();
            assert_eq!(drawn.contains("The server started"), has_begun, "{range:?}: {drawn}");
            assert!(drawn.contains("<line class=\"start\"") == has_begun);
        }
    }
}
