//! Faults of the simulated cloud. Tests add faults for individual calls, and `fail_rate` adds
//! random faults from a seed. This module only chooses the faults, and its caller applies them.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::Action;

/// Delay of the answer for a random [`Fault::Delay`].
const LATE: Duration = Duration::from_secs(3);

/// Fault of a call. The fault usually replaces the answer of the call. The call is not carried out,
/// unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends without an answer.
    Drop,
    /// The call is carried out immediately, but the answer is delayed by this time.
    Delay(Duration),
    /// An error of the gateway, such as 400 `Throttling.User`.
    Gateway {
        /// HTTP status, 100–999.
        status: u16,
        /// `Code`.
        code: Cow<'static, str>,
    },
    /// An error of the business level, with HTTP 200.
    Business {
        /// `Code`.
        code: Cow<'static, str>,
    },
    /// Any other response.
    Raw {
        /// HTTP status, 100–999.
        status: u16,
        /// `Content-Type`.
        content_type: &'static str,
        /// The whole body.
        body: String,
    },
    /// The call is carried out twice, as if a proxy had repeated it. The answer is that of the
    /// second execution.
    Twice,
    /// The call is carried out, and then the fault replaces its answer.
    AfterCarryingOut(Box<Fault>),
}

impl Fault {
    /// Makes an error of the gateway.
    pub fn gateway(status: u16, code: impl Into<Cow<'static, str>>) -> Self {
        Self::Gateway { status, code: code.into() }
    }

    /// Makes an error of the business level.
    pub fn business(code: impl Into<Cow<'static, str>>) -> Self {
        Self::Business { code: code.into() }
    }

    /// Makes an HTML page like that of a proxy or a captive portal.
    pub fn html(status: u16) -> Self {
        let body = format!("<html><head><title>{status}</title></head><body>{status}</body></html>\n");
        Self::Raw { status, content_type: "text/html", body }
    }

    /// Makes a fault that carries out the call and then replaces its answer with this fault.
    pub fn after_carrying_out(self) -> Self {
        Self::AfterCarryingOut(Box::new(self))
    }
}

/// Chooses the faults of the next calls.
pub(super) struct Faults {
    scripted: HashMap<Action, VecDeque<Fault>>,
    /// Fault of every call that has no scripted fault.
    standing: Option<Fault>,
    /// Probability of a random fault, 0.0–1.0.
    fail_rate: f64,
    dice: Dice,
}

impl Faults {
    pub fn new(fail_rate: f64, seed: u64) -> Self {
        Self { scripted: HashMap::new(), standing: None, fail_rate, dice: Dice(seed) }
    }

    pub fn script(&mut self, action: Action, fault: Fault) {
        self.scripted.entry(action).or_default().push_back(fault);
    }

    pub fn set_standing(&mut self, fault: Option<Fault>) {
        self.standing = fault;
    }

    /// Returns the fault of the next call: the next scripted fault, or else the standing fault, or
    /// else a random fault.
    pub fn next(&mut self, action: Action) -> Option<Fault> {
        let scripted = self.scripted.get_mut(&action).and_then(VecDeque::pop_front);
        scripted.or_else(|| self.standing.clone()).or_else(|| self.throw())
    }

    fn throw(&mut self) -> Option<Fault> {
        if self.fail_rate <= 0.0 || self.dice.fraction() >= self.fail_rate {
            return None;
        }
        let unavailable = Fault::gateway(503, "ServiceUnavailable");
        let exception = Fault::business("iot.system.SystemException");
        Some(match self.dice.next() % 8 {
            0 => unavailable,
            1 => exception,
            2 => Fault::Drop,
            3 => unavailable.after_carrying_out(),
            4 => exception.after_carrying_out(),
            5 => Fault::Drop.after_carrying_out(),
            6 => Fault::Twice,
            _ => Fault::Delay(LATE),
        })
    }
}

/// SplitMix64, a random number generator whose output is determined by its seed. It is good enough
/// for choosing faults, and no secret depends on it.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0.0 up to, but not including, 1.0.
    fn fraction(&mut self) -> f64 {
        // The fraction has 53 bits, like the mantissa of an `f64`.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripted_faults_happen_in_order_and_only_to_their_action() {
        let mut faults = Faults::new(0.0, 1);
        faults.script(Action::RegisterDevice, Fault::Drop);
        faults.script(Action::RegisterDevice, Fault::html(502));
        assert_eq!(faults.next(Action::QueryDeviceDetail), None);
        assert_eq!(faults.next(Action::RegisterDevice), Some(Fault::Drop));
        assert_eq!(faults.next(Action::RegisterDevice), Some(Fault::html(502)));
        assert_eq!(faults.next(Action::RegisterDevice), None);
    }

    #[test]
    fn a_standing_fault_stays_until_it_is_removed() {
        let mut faults = Faults::new(0.0, 1);
        faults.set_standing(Some(Fault::Drop));
        assert_eq!(faults.next(Action::RegisterDevice), Some(Fault::Drop));
        assert_eq!(faults.next(Action::QueryDeviceDetail), Some(Fault::Drop));
        faults.set_standing(None);
        assert_eq!(faults.next(Action::RegisterDevice), None);
    }

    #[test]
    fn random_faults_keep_to_their_rate_and_repeat_with_their_seed() {
        let run = |seed| {
            let mut faults = Faults::new(0.25, seed);
            (0..4000).map(|_| faults.next(Action::RegisterDevice)).collect::<Vec<_>>()
        };
        let first = run(7);
        assert_eq!(first, run(7));
        assert_ne!(first, run(8));
        let failed = first.iter().flatten().count();
        assert!((900..1100).contains(&failed), "{failed}");
        assert!(first.iter().flatten().any(|fault| matches!(fault, Fault::AfterCarryingOut(_))));
    }
}
