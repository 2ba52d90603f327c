//! Keeps samples of the counters for the last hour, day and week. The overview uses them to draw
//! its chart, and to show since when an event has occurred. Performs no I/O.

use std::{collections::VecDeque, time::Duration};

use super::{Sources, metrics};
use crate::{coap::Code, dtls::Failure, resource::failures::Reason, store::UnixSeconds};

/// Pause between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Pause in seconds after which further events begin a new episode.
const QUIET: i64 = 15 * 60;

/// An event that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// 2.xx: the request was served.
    Served,
    /// 4.04: the device is not in the table, or not in the enrollment of its key.
    Invalid,
    /// 4.03: the key belongs to another device.
    NotYours,
    /// 4.03: the operator has disabled the device.
    Disabled,
    /// 4.03: the certificate was issued already.
    Issued,
    /// 4.03: the enrollment is closed or full.
    Closed,
    /// 4.29: too many requests.
    TooMany,
    /// Other 4.xx, 5.00 and 5.05: the request itself is at fault.
    Malformed,
    /// 5.02: IoT Platform has refused a call.
    Operator,
    /// 5.03: the device is asked to retry later.
    Later,
    /// 5.03: the enrollment is not open yet.
    NotOpen,
    /// 5.03: the device waits to be admitted.
    Held,
    /// 5.04: IoT Platform did not answer in time.
    TimedOut,
    /// A handshake was completed.
    Handshake,
    /// A handshake failed because of an unknown identity or a wrong key.
    WrongKey,
    /// A handshake failed because the client stopped answering.
    Silent,
    /// A handshake failed for another reason.
    OtherHandshake,
    /// A client began to guess device IDs.
    Guessing,
    /// A write to the database failed.
    StoreFailed,
    /// A datagram was not accepted by the system for sending.
    Unsent,
}

impl Kind {
    /// All kinds, in the order in which they are declared.
    pub(super) const ALL: [Self; 20] = [
        Self::Served,
        Self::Invalid,
        Self::NotYours,
        Self::Disabled,
        Self::Issued,
        Self::Closed,
        Self::TooMany,
        Self::Malformed,
        Self::Operator,
        Self::Later,
        Self::NotOpen,
        Self::Held,
        Self::TimedOut,
        Self::Handshake,
        Self::WrongKey,
        Self::Silent,
        Self::OtherHandshake,
        Self::Guessing,
        Self::StoreFailed,
        Self::Unsent,
    ];

    /// Requests that certdist refused for its own reasons, not because of IoT Platform.
    pub(super) const REFUSED: [Self; 7] = [
        Self::Invalid,
        Self::NotYours,
        Self::Disabled,
        Self::Issued,
        Self::Closed,
        Self::TooMany,
        Self::Malformed,
    ];

    /// Failed handshakes.
    pub(super) const FAILED_HANDSHAKES: [Self; 3] = [Self::WrongKey, Self::Silent, Self::OtherHandshake];
}

/// Values of the counters at one moment, or their growth between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Time of the sample.
    pub(super) at: UnixSeconds,
    counts: [u64; Kind::ALL.len()],
}

impl Sample {
    /// Reads the counters.
    pub(super) fn of(sources: &Sources, at: UnixSeconds) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        let reasons = sources.failures.counts();
        let refused = |reason: Reason| reasons[reason as usize];
        let answered = |code: Code| metrics::sum(sources, |worker| worker.responses.of(code.byte()));
        let handshakes = |failure: Failure| {
            metrics::sum(sources, |worker| worker.failed_by_reason[failure as usize].load(Relaxed))
        };
        let failed_handshakes: u64 = Failure::ALL.map(handshakes).iter().sum();
        let store = sources.store.metrics();
        let mut sample = Self { at, counts: [0; Kind::ALL.len()] };
        let mut set = |kind: Kind, count| sample.counts[kind as usize] = count;
        set(Kind::Served, metrics::responses_of(sources, 2));
        set(Kind::Invalid, refused(Reason::Invalid));
        set(Kind::NotYours, refused(Reason::NotYours));
        set(Kind::Disabled, refused(Reason::Disabled));
        set(Kind::Issued, refused(Reason::Issued));
        set(Kind::TooMany, answered(Code::TooManyRequests));
        set(Kind::Operator, answered(Code::BadGateway));
        set(Kind::Closed, refused(Reason::Closed));
        let (not_open, held) = (refused(Reason::NotOpen), refused(Reason::Held));
        set(Kind::NotOpen, not_open);
        set(Kind::Held, held);
        set(Kind::Later, answered(Code::ServiceUnavailable).saturating_sub(not_open + held));
        set(Kind::TimedOut, answered(Code::GatewayTimeout));
        let named = [Reason::Invalid, Reason::NotYours, Reason::Disabled, Reason::Issued, Reason::Closed];
        let named = named.map(refused);
        let known = [Code::TooManyRequests, Code::BadGateway, Code::ServiceUnavailable, Code::GatewayTimeout];
        let errors = metrics::responses_of(sources, 4) + metrics::responses_of(sources, 5);
        let known = named.iter().sum::<u64>() + known.map(answered).iter().sum::<u64>();
        set(Kind::Malformed, errors.saturating_sub(known));
        set(Kind::Handshake, metrics::sum(sources, |worker| worker.handshakes_completed.load(Relaxed)));
        set(Kind::WrongKey, handshakes(Failure::WrongKey));
        set(Kind::Silent, handshakes(Failure::TimedOut));
        let known = handshakes(Failure::WrongKey) + handshakes(Failure::TimedOut);
        set(Kind::OtherHandshake, failed_handshakes.saturating_sub(known));
        set(Kind::Guessing, sources.throttle.episodes(crate::resource::throttle::Limit::RefusedLookups));
        set(Kind::StoreFailed, store.map_or(0, |metrics| metrics.failed.load(Relaxed)));
        set(Kind::Unsent, metrics::sum(sources, |worker| worker.datagrams_dropped.load(Relaxed)));
        sample
    }

    #[cfg(test)]
    pub(super) fn counted(at: UnixSeconds, counts: &[(Kind, u64)]) -> Self {
        let mut sample = Self { at, counts: [0; Kind::ALL.len()] };
        counts.iter().for_each(|(kind, count)| sample.counts[*kind as usize] = *count);
        sample
    }

    /// Returns the count of one kind.
    pub(super) fn of_kind(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// Returns the sum of several kinds.
    pub(super) fn sum(&self, kinds: &[Kind]) -> u64 {
        kinds.iter().map(|kind| self.of_kind(*kind)).sum()
    }

    /// Returns how much each counter has grown since an earlier sample. Some counts are differences
    /// between counters that are not read at exactly the same time. Such a count may shrink a
    /// little; its growth is then 0.
    fn since(&self, earlier: &Self) -> Self {
        let mut grown = *self;
        for (count, earlier) in grown.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(earlier);
        }
        grown
    }
}

/// Period that the overview shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Range {
    /// The last hour, in bars of a minute.
    #[default]
    Hour,
    /// The last 24 hours, in bars of 20 minutes.
    Day,
    /// The last seven days, in bars of two hours.
    Week,
}

impl Range {
    /// All ranges, the shortest first.
    pub(super) const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Week];

    /// Returns the name of the range in URLs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
        }
    }

    /// Returns the range of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|range| range.name() == name)
    }

    /// Returns the length of the range, in seconds.
    pub(super) fn seconds(self) -> i64 {
        match self {
            Self::Hour => 3600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
        }
    }

    /// Returns the period of a bar, in seconds.
    pub(super) fn step(self) -> i64 {
        match self {
            Self::Hour => 60,
            Self::Day => 20 * 60,
            Self::Week => 2 * 3600,
        }
    }

    /// Returns the end of the bar that contains this time. Bars end at fixed times, such as full
    /// minutes, so that a bar keeps its label on every page.
    pub(super) fn end_of_bar(self, at: UnixSeconds) -> UnixSeconds {
        at.saturating_add(self.step() - 1).div_euclid(self.step()) * self.step()
    }

    /// Returns whether the range keeps a sample of the time `at`, if the last kept sample is of the
    /// time `last`.
    fn keeps(self, last: UnixSeconds, at: UnixSeconds) -> bool {
        match self {
            Self::Hour => at - last >= EVERY.as_secs().cast_signed(),
            // The first sample of a bar is the edge between this bar and the bar before it.
            Self::Day | Self::Week => at.div_euclid(self.step()) != last.div_euclid(self.step()),
        }
    }

    /// Returns the number of bars.
    pub(super) fn bars(self) -> usize {
        (self.seconds() / self.step()) as usize
    }
}

/// One or more events without a long pause between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Episode {
    /// Beginning of the episode, as precise as the samples permit.
    pub(super) since: UnixSeconds,
    /// Time of the last event.
    pub(super) last: UnixSeconds,
    /// Number of events.
    pub(super) count: u64,
}

/// The samples.
#[derive(Debug)]
pub(super) struct Ring {
    /// The samples of each range, the oldest first.
    kept: [VecDeque<Sample>; 3],
    /// The first sample, taken at the start of the process.
    start: Option<Sample>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { kept: Range::ALL.map(|_| VecDeque::new()), start: None }
    }
}

impl Ring {
    /// Adds a sample, and removes those that are too old. If the clock was set back, also removes
    /// the samples whose time is now in the future.
    pub(super) fn push(&mut self, sample: Sample) {
        self.start.get_or_insert(sample);
        for range in Range::ALL {
            let kept = &mut self.kept[range as usize];
            while kept.back().is_some_and(|last| last.at > sample.at) {
                kept.pop_back();
            }
            if kept.back().is_none_or(|last| range.keeps(last.at, sample.at)) {
                kept.push_back(sample);
            }
            let oldest = sample.at - range.seconds() - range.step();
            while kept.front().is_some_and(|first| first.at < oldest) {
                kept.pop_front();
            }
        }
    }

    /// Returns the growth of the counters in each bar of a range, the current bar last. The time of
    /// a bar is its end; the current bar may end in the future. Bars before the first sample are
    /// left out.
    pub(super) fn bars(&self, range: Range, now: &Sample) -> Vec<Sample> {
        let kept = &self.kept[range as usize];
        let (mut bars, mut later, mut end) =
            (Vec::with_capacity(range.bars()), *now, range.end_of_bar(now.at));
        let mut earlier = kept.iter().rev().filter(|sample| sample.at <= now.at).peekable();
        while bars.len() < range.bars() {
            // A bar begins at its first sample. If it has no sample, it begins at the latest
            // earlier one.
            let begin = end - range.step();
            let mut edge = None;
            while let Some(sample) = earlier.next_if(|sample| sample.at >= begin) {
                edge = Some(*sample);
            }
            let Some(edge) = edge.or_else(|| earlier.peek().copied().copied()) else { break };
            bars.push(Sample { at: end, ..later.since(&edge) });
            if earlier.peek().is_none() {
                break;
            }
            (later, end) = (edge, begin);
        }
        bars.reverse();
        bars
    }

    /// Returns the growth of the counters within a range.
    pub(super) fn total(&self, range: Range, now: &Sample) -> Sample {
        let from = now.at - range.seconds();
        let kept = &self.kept[range as usize];
        let before = kept.iter().rev().find(|sample| sample.at <= from);
        match before.or_else(|| kept.front()) {
            Some(earlier) => now.since(earlier),
            None => now.since(now),
        }
    }

    /// Returns the last episode of these kinds, if its last event was within the last hour. The
    /// episode may have begun earlier.
    pub(super) fn episode(&self, kinds: &[Kind], now: &Sample) -> Option<Episode> {
        let mut episode: Option<Episode> = None;
        let mut later = *now;
        for earlier in self.backward(now) {
            let count = later.since(&earlier).sum(kinds);
            match &mut episode {
                None if count > 0 => {
                    episode = Some(Episode { since: earlier.at, last: later.at, count });
                }
                None if now.at - earlier.at > Range::Hour.seconds() => return None,
                Some(known) if count > 0 => (known.since, known.count) = (earlier.at, known.count + count),
                Some(known) if known.since - earlier.at >= QUIET => break,
                _ => {}
            }
            later = earlier;
        }
        episode.filter(|episode| now.at - episode.last <= Range::Hour.seconds())
    }

    /// Returns all samples before `now`, latest first: first those kept for the hour, then the
    /// earlier ones kept for the day, and then those kept for the week. The last sample is from the
    /// start of the process.
    fn backward(&self, now: &Sample) -> impl Iterator<Item = Sample> {
        let mut last = now.at;
        let all = self.kept.iter().flat_map(|kept| kept.iter().rev()).chain(&self.start);
        all.copied().filter(move |sample| {
            let is_earlier = sample.at < last;
            if is_earlier {
                last = sample.at;
            }
            is_earlier
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: i64, served: u64) -> Sample {
        Sample::counted(at, &[(Kind::Served, served)])
    }

    fn served(sample: &Sample) -> u64 {
        sample.of_kind(Kind::Served)
    }

    /// Returns a ring after `seconds`, in which one request a second was served from `from` to
    /// `until`.
    fn ring(seconds: i64, from: i64, until: i64) -> (Ring, Sample) {
        let mut ring = Ring::default();
        let count = |now: i64| (now.min(until) - from).max(0).cast_unsigned();
        (0..seconds).step_by(10).for_each(|now| ring.push(at(now, count(now))));
        (ring, at(seconds, count(seconds)))
    }

    #[test]
    fn each_range_is_kept_in_bars_that_add_up() {
        let (ring, now) = ring(10 * 86_400, 0, i64::MAX);
        for range in Range::ALL {
            let bars = ring.bars(range, &now);
            assert_eq!(bars.len(), range.bars(), "{range:?}");
            let step = range.step().cast_unsigned();
            assert!(bars.iter().all(|bar| served(bar).abs_diff(step) <= step / 5), "{range:?}: {bars:?}");
            let total = range.seconds().cast_unsigned();
            let sum: u64 = bars.iter().map(served).sum();
            assert!(sum.abs_diff(total) <= step && served(&ring.total(range, &now)).abs_diff(total) <= step);
            let kept = ring.kept[range as usize].len();
            assert!(kept <= 400, "{range:?}: {kept}");
        }
    }

    #[test]
    fn a_young_server_has_few_bars_and_loses_nothing() {
        let mut ring = Ring::default();
        assert_eq!(ring.bars(Range::Hour, &at(5, 5)), []);
        ring.push(at(0, 0));
        assert_eq!(ring.bars(Range::Hour, &at(7, 7)), [at(60, 7)], "the bar of the first minute");
        (1..10).for_each(|sample| ring.push(at(sample * 10, sample.cast_unsigned() * 10)));
        let now = at(95, 95);
        let bars = ring.bars(Range::Hour, &now);
        assert_eq!(bars.iter().map(|bar| bar.at).collect::<Vec<_>>(), [60, 120]);
        assert_eq!((bars.len(), bars.iter().map(served).sum::<u64>()), (2, 95));
        for range in Range::ALL {
            assert_eq!(served(&ring.total(range, &now)), 95);
        }
    }

    #[test]
    fn an_episode_says_when_it_began_and_ended_and_how_often_it_happened() {
        let served = [Kind::Served];
        // The episode lasted 40 minutes, and ended 20 minutes ago.
        let (hour, now) = ring(7200, 3600, 6000);
        let episode = hour.episode(&served, &now).unwrap();
        assert!((episode.since - 3600).abs() <= 60 && (episode.last - 6000).abs() <= 60, "{episode:?}");
        assert_eq!(episode.count, 2400);
        // This episode ended more than an hour ago.
        let (over, now) = ring(7200, 0, 3000);
        assert_eq!(over.episode(&served, &now), None);
        // This episode began three days ago, and has not ended.
        let (long, now) = ring(4 * 86_400, 86_400, i64::MAX);
        let episode = long.episode(&served, &now).unwrap();
        assert!((episode.since - 86_400).abs() <= 2 * 7200, "{episode:?}");
        assert_eq!(episode.last, now.at);
        assert!(episode.count.abs_diff(3 * 86_400) < 7200);
        assert_eq!(long.episode(&[Kind::WrongKey], &now), None);
    }

    #[test]
    fn after_a_long_pause_an_episode_begins_anew_and_after_a_short_one_it_goes_on() {
        for (pause, is_new) in [(QUIET + 60, true), (QUIET - 60, false)] {
            let mut ring = Ring::default();
            let count = |now: i64| u64::from(now >= 600) + u64::from(now >= 600 + pause);
            (0..600 + pause + 300).step_by(10).for_each(|now| ring.push(at(now, count(now))));
            let now = at(600 + pause + 300, 2);
            let episode = ring.episode(&[Kind::Served], &now).unwrap();
            assert_eq!(episode.count, if is_new { 1 } else { 2 }, "{pause}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_or_far_ahead_loses_no_more_than_the_past() {
        let (mut ring, _) = ring(7200, 0, i64::MAX);
        ring.push(at(1000, 7300));
        let now = at(1060, 7360);
        assert_eq!(served(ring.bars(Range::Hour, &now).last().unwrap()), 60);
        ring.push(at(i64::from(i32::MAX), 7400));
        let bars = ring.bars(Range::Week, &at(i64::from(i32::MAX) + 10, 7410));
        assert!(!bars.is_empty() && bars.len() <= Range::Week.bars());
    }
}
