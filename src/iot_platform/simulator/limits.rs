//! Rate limits of the account. Each action has a token bucket for the calls of one second. This
//! module performs no I/O: the caller passes the current time.

use std::{collections::HashMap, time::Duration};

use super::Action;

/// Rate limits that the simulator enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Limits {
    /// Any number of calls.
    #[default]
    None,
    /// The documented calls per second of each action. Calls beyond this limit are answered with
    /// `Throttling.User`.
    Real,
}

/// Token buckets of the account. All buckets are full at first.
pub(super) struct Buckets {
    limits: Limits,
    buckets: HashMap<Action, Bucket>,
}

struct Bucket {
    /// Number of tokens. The maximum is the number of calls allowed in one second.
    tokens: f64,
    /// Time of the last refill, measured from the start of the simulator.
    filled: Duration,
}

impl Buckets {
    pub fn new(limits: Limits) -> Self {
        Self { limits, buckets: HashMap::new() }
    }

    /// Takes a token for a call at `now`, measured from the start of the simulator. Returns false
    /// if there is no token, so that the call is refused.
    pub fn take(&mut self, action: Action, now: Duration) -> bool {
        if self.limits == Limits::None {
            return true;
        }
        let per_second = f64::from(action.calls_per_second());
        let bucket = self.buckets.entry(action).or_insert(Bucket { tokens: per_second, filled: now });
        let since = now.saturating_sub(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * per_second).min(per_second);
        bucket.filled = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(buckets: &mut Buckets, action: Action, now: Duration) -> usize {
        (0..1000).take_while(|_| buckets.take(action, now)).count()
    }

    #[test]
    fn each_action_has_its_documented_limit_and_regains_it_in_a_second() {
        let start = Duration::from_secs(5);
        let mut buckets = Buckets::new(Limits::Real);
        assert_eq!(allowed(&mut buckets, Action::RegisterDevice, start), 30);
        assert_eq!(allowed(&mut buckets, Action::QueryDeviceDetail, start), 50);
        assert_eq!(allowed(&mut buckets, Action::DeleteDevice, start), 50);
        assert_eq!(allowed(&mut buckets, Action::DisableThing, start), 500);
        assert_eq!(allowed(&mut buckets, Action::EnableThing, start), 500);
        assert_eq!(allowed(&mut buckets, Action::RegisterDevice, start + Duration::from_millis(510)), 15);
        assert_eq!(allowed(&mut buckets, Action::RegisterDevice, start + Duration::from_secs(3600)), 30);
    }

    #[test]
    fn without_limits_every_call_is_allowed() {
        let mut buckets = Buckets::new(Limits::None);
        assert_eq!(allowed(&mut buckets, Action::RegisterDevice, Duration::ZERO), 1000);
    }
}
