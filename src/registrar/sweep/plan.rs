//! Order in which a sweep looks up devices. A device that has its certificate but has not signed in
//! yet will probably sign in soon, so it is looked up often at first and less often later. Besides,
//! all registered devices are looked up one after another, with a fixed part of the calls. This
//! module performs no I/O: the caller passes the current time. The plan keeps no state for each
//! device, but only the progress of the passes over parts of the table. The plan is stored as the
//! cursor of the sweep's lease, so that it survives restarts.

use std::{ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    device::DeviceId,
    store::{UnixSeconds, sighting::IssuePlace},
};

const DAY: i64 = 86_400;
/// Time after the first issue for which a device counts as new, in seconds.
const NEW: i64 = DAY;
/// Time after the first issue for which a device counts as late if it is not new, in seconds.
const LATE: i64 = 7 * DAY;
/// Maximum time by which a first issue may seem to be in the future, because the clock was
/// corrected.
const AHEAD: i64 = 3600;
/// Time between the starts of two passes over the late devices, as a multiple of the time between
/// the starts of two passes over the new devices.
const LATE_PAUSES: i64 = 48;

/// Part of the registered devices that one pass looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Devices whose first sign-in is not known, and whose first issue was within the last day.
    New,
    /// Devices whose first sign-in is not known, and whose first issue was one to seven days ago.
    Late,
    /// All registered devices.
    All,
}

impl Part {
    /// All parts, the most urgent first.
    pub(super) const ALL: [Self; 3] = [Self::New, Self::Late, Self::All];

    /// Returns the name of the part for log lines.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Late => "late",
            Self::All => "all",
        }
    }
}

/// Progress of the passes over one part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pass {
    /// Time at which the current or the last pass began; `None` if there was none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    began: Option<UnixSeconds>,
    /// Set while a pass is in progress.
    #[serde(default)]
    runs: bool,
    /// Last device that the pass has read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    device: Option<String>,
    /// Time of the first issue of `device`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    issued: Option<UnixSeconds>,
}

/// The passes over all parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    #[serde(default)]
    new: Pass,
    #[serde(default)]
    late: Pass,
    #[serde(default)]
    all: Pass,
}

impl Plan {
    /// Reads a plan from a cursor. Earlier versions stored only the last device of a pass over all
    /// devices. An unreadable cursor gives a plan without any pass.
    pub(super) fn from_cursor(cursor: &str) -> Self {
        serde_json::from_str(cursor).unwrap_or_else(|_| {
            let device = DeviceId::parse_sn(cursor).ok().map(|id| id.to_string());
            Self { all: Pass { runs: device.is_some(), device, ..Pass::default() }, ..Self::default() }
        })
    }

    /// Returns the plan as a cursor.
    pub(super) fn cursor(&self) -> String {
        // A plan has only numbers, flags and device IDs, so the conversion to JSON cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the most urgent part that is due, if any. `pause` is the pause between the starts of
    /// two passes over the new devices. If `turn_of_all` is set, [`Part::All`] comes first, so that
    /// a crowd of new devices does not stop the pass over all devices. Otherwise, [`Part::All`] is
    /// not returned, so that its pass takes only a fixed part of the calls.
    pub(super) fn due(&self, now: UnixSeconds, pause: Duration, turn_of_all: bool) -> Option<Part> {
        let is_due = |part: &Part| self.wait(*part, now, pause).is_zero();
        match turn_of_all && is_due(&Part::All) {
            true => Some(Part::All),
            false => [Part::New, Part::Late].into_iter().find(is_due),
        }
    }

    /// Returns the time until a part is due; zero while a pass over the part is in progress.
    pub(super) fn wait(&self, part: Part, now: UnixSeconds, pause: Duration) -> Duration {
        let pass = self.pass(part);
        let pause = i64::try_from(pause.as_secs()).unwrap_or(i64::MAX);
        let pause = if part == Part::Late { pause.saturating_mul(LATE_PAUSES) } else { pause };
        match pass.began {
            // If the start of the pass is in the future, the clock was set back since then. The
            // part is then due.
            Some(began) if !pass.runs && began <= now => {
                let left = began.saturating_add(pause).saturating_sub(now);
                Duration::from_secs(u64::try_from(left).unwrap_or(0))
            }
            _ => Duration::ZERO,
        }
    }

    /// Begins a pass over a part, unless one is in progress.
    pub(super) fn begin(&mut self, part: Part, now: UnixSeconds) {
        let pass = self.pass_mut(part);
        if !pass.runs {
            *pass = Pass { began: Some(now), runs: true, ..Pass::default() };
        }
    }

    /// Returns the range of times of first issue that the current pass over a part covers.
    pub(super) fn issued(&self, part: Part, now: UnixSeconds) -> Range<UnixSeconds> {
        let began = self.pass(part).began.unwrap_or(now);
        match part {
            Part::New => began.saturating_sub(NEW)..began.saturating_add(AHEAD),
            Part::Late => began.saturating_sub(LATE)..began.saturating_sub(NEW),
            Part::All => 0..i64::MAX,
        }
    }

    /// Returns the last device that the pass has read.
    pub(super) fn device(&self, part: Part) -> Option<DeviceId> {
        self.pass(part).device.as_deref().and_then(|device| DeviceId::parse_sn(device).ok())
    }

    /// Returns the position of the last device that the pass has read, in the order of first
    /// issues. Returns `None` before the first device, and for a pass in another order.
    pub(super) fn place(&self, part: Part) -> Option<IssuePlace> {
        let (issued, device) = (self.pass(part).issued?, self.device(part)?);
        Some(IssuePlace { issued, device })
    }

    /// Notes the last device that the pass has read.
    pub(super) fn advance(&mut self, part: Part, device: &DeviceId, issued: Option<UnixSeconds>) {
        let pass = self.pass_mut(part);
        (pass.device, pass.issued) = (Some(device.to_string()), issued);
    }

    /// Ends the pass over a part.
    pub(super) fn end(&mut self, part: Part) {
        let pass = self.pass_mut(part);
        *pass = Pass { began: pass.began, ..Pass::default() };
    }

    fn pass(&self, part: Part) -> &Pass {
        match part {
            Part::New => &self.new,
            Part::Late => &self.late,
            Part::All => &self.all,
        }
    }

    fn pass_mut(&mut self, part: Part) -> &mut Pass {
        match part {
            Part::New => &mut self.new,
            Part::Late => &mut self.late,
            Part::All => &mut self.all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(300);
    const START: i64 = 1_700_000_000;

    /// Begins every pass that is due in this range of seconds, and ends it within the same second.
    /// Returns the number of passes over each part.
    fn passes(plan: &mut Plan, seconds: Range<i64>) -> [usize; 3] {
        let mut count = [0; 3];
        for now in seconds.map(|second| START + second) {
            for turn_of_all in [true, false, false] {
                if let Some(part) = plan.due(now, PAUSE, turn_of_all) {
                    plan.begin(part, now);
                    plan.end(part);
                    count[part as usize] += 1;
                }
            }
        }
        count
    }

    #[test]
    fn new_devices_are_due_in_each_pause_and_late_ones_rarely() {
        let mut plan = Plan::default();
        assert_eq!(passes(&mut plan, 0..86_400), [288, 6, 288]);
        // The pauses go on after a restart.
        let mut plan = Plan::from_cursor(&plan.cursor());
        assert_eq!(passes(&mut plan, 86_400..86_400 + 300), [1, 1, 1]);
        assert_eq!(passes(&mut plan, 86_400 + 300..86_400 + 14_400), [47, 0, 47]);
    }

    #[test]
    fn a_pass_in_progress_is_due_until_it_ends_and_goes_on_after_a_restart() {
        let mut plan = Plan::default();
        plan.begin(Part::New, START);
        plan.advance(Part::New, &DeviceId::parse("SN-2").unwrap(), Some(START - 5));
        let mut plan = Plan::from_cursor(&plan.cursor());
        assert!(plan.new.runs);
        plan.begin(Part::New, START + 60);
        let place = IssuePlace { issued: START - 5, device: DeviceId::parse("SN-2").unwrap() };
        assert_eq!(plan.place(Part::New), Some(place));
        assert_eq!(plan.issued(Part::New, START + 60), START - NEW..START + AHEAD);
        assert_eq!(plan.due(START + 60, PAUSE, false), Some(Part::New));
        plan.end(Part::New);
        assert_eq!((plan.place(Part::New), plan.wait(Part::New, START + 60, PAUSE).as_secs()), (None, 240));
    }

    #[test]
    fn each_issue_of_the_last_week_belongs_to_one_part() {
        let mut plan = Plan::default();
        plan.begin(Part::New, START);
        plan.begin(Part::Late, START);
        let (new, late) = (plan.issued(Part::New, START), plan.issued(Part::Late, START));
        assert_eq!((late.start, late.end, new.end), (START - 7 * DAY, new.start, START + AHEAD));
    }

    #[test]
    fn all_devices_have_their_turn_beside_a_crowd_and_no_more() {
        let mut plan = Plan::default();
        for part in Part::ALL {
            plan.begin(part, START);
        }
        assert_eq!(plan.due(START, PAUSE, true), Some(Part::All));
        assert_eq!(plan.due(START, PAUSE, false), Some(Part::New));
        plan.end(Part::New);
        assert_eq!(plan.due(START, PAUSE, false), Some(Part::Late));
        plan.end(Part::Late);
        assert_eq!(plan.due(START, PAUSE, false), None);
    }

    #[test]
    fn a_clock_that_was_set_back_stops_no_pass() {
        let mut plan = Plan::default();
        plan.begin(Part::New, START + 365 * DAY);
        plan.end(Part::New);
        assert_eq!(plan.due(START, PAUSE, false), Some(Part::New));
    }

    #[test]
    fn a_cursor_of_an_earlier_version_and_an_unreadable_one_are_accepted() {
        let plan = Plan::from_cursor("SN-7");
        assert_eq!((plan.all.runs, plan.device(Part::All)), (true, DeviceId::parse("SN-7").ok()));
        let odd = r#"{"all":{"began":1,"runs":true,"device":"no such ID","issued":null}}"#;
        assert_eq!(Plan::from_cursor(odd).device(Part::All), None);
        for unreadable in ["", "{", "[]", r#"{"all":7}"#, r#"{"other":{}}"#] {
            assert_eq!(Plan::from_cursor(unreadable), Plan::default(), "{unreadable}");
        }
    }
}
