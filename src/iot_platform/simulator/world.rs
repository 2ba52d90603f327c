//! The simulated cloud without its connections: takes a request and the time, and returns a
//! verdict. This module performs no I/O, so its tests need no network.

use std::{collections::BTreeMap, io, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Action, Fault, SimulatorConfig,
    account::Account,
    actions::{self, Failure},
    faults::{Dice, Faults},
    gateway::Gateway,
    instances::Instances,
    limits::Buckets,
    request::{HttpRequest, Parameters, Refusal},
};

/// Maximum length of a `Host` header that the answer repeats as `HostId`, in bytes.
const MAX_HOST: usize = 253;

/// Counters of the calls so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Number of calls of each action, successful or not. Throttled and refused calls are not
    /// included.
    pub calls: BTreeMap<&'static str, u64>,
    /// Number of devices of all instances.
    pub devices: u64,
    /// Number of devices of each instance, if there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub instances: BTreeMap<String, u64>,
    /// Calls that were answered with `Throttling.User` or another code of the same family.
    pub throttled: u64,
    /// Requests that the gateway refused because of their signature, access key or parameters.
    pub refused: u64,
}

/// Result of a request.
pub(super) struct Verdict {
    /// Delay of the answer, in addition to the configured latency.
    pub delay: Duration,
    /// Answer; `None` closes the connection.
    pub reply: Option<Reply>,
    /// Set if the account has changes to save.
    pub changed: bool,
}

/// An HTTP answer.
pub(super) struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

/// The simulated cloud.
pub(super) struct World {
    pub faults: Faults,
    gateway: Gateway,
    limits: Buckets,
    instances: Instances,
    batch_delay: Duration,
    stats: Stats,
    request_ids: Dice,
    /// Number of changes of the instances at the last save.
    saved: u64,
}

impl World {
    pub fn new(config: &SimulatorConfig, instances: Instances, seed: u64) -> Self {
        Self {
            saved: instances.changes(),
            faults: Faults::new(config.fail_rate, seed),
            gateway: Gateway::new(config.access_key_id.clone(), config.access_key_secret.clone()),
            limits: Buckets::new(config.limits),
            instances,
            batch_delay: config.batch_delay,
            stats: Stats::default(),
            request_ids: Dice(!seed),
        }
    }

    pub fn stats(&mut self, now: jiff::Timestamp) -> Stats {
        self.instances.advance(now.as_millisecond());
        let (devices, instances) = (self.instances.devices(), self.instances.counts());
        Stats { devices, instances, ..self.stats.clone() }
    }

    pub fn instances(&self) -> &Instances {
        &self.instances
    }

    /// Completes the batch steps that are due at `now`, and returns the data of an instance.
    pub fn account(&mut self, instance: usize, now: jiff::Timestamp) -> &mut Account {
        self.instances.advance(now.as_millisecond());
        self.instances.account(instance)
    }

    /// Deletes an instance with its devices.
    pub fn expire(&mut self, instance: usize) {
        self.instances.expire(instance);
    }

    /// Returns whether anything has changed since the state was last saved.
    pub fn is_changed(&self) -> bool {
        self.instances.changes() != self.saved
    }

    /// Returns the content of the state file and marks it as saved. Returns `None` if nothing has
    /// changed since the last save.
    pub fn changed_state(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !self.is_changed() {
            return Ok(None);
        }
        let text = self.instances.to_json()?;
        self.saved = self.instances.changes();
        Ok(Some(text))
    }

    /// Marks the state as not saved, so that it is written again.
    pub fn mark_changed(&mut self) {
        self.saved = self.instances.changes().wrapping_sub(1);
    }

    /// Handles a request that arrived at `now`. `uptime` is the time since the simulator started.
    pub fn handle(&mut self, request: &HttpRequest, now: jiff::Timestamp, uptime: Duration) -> Verdict {
        self.instances.advance(now.as_millisecond());
        let host = request.header("host").unwrap_or_default();
        let (delay, reply) = match self.admit(request, now) {
            Ok((action, parameters)) => self.call(action, &parameters, host, now, uptime),
            Err(refusal) => (Duration::ZERO, Some(self.refuse(&refusal, host))),
        };
        Verdict { delay, reply, changed: self.is_changed() }
    }

    /// Counts a refusal, and makes its answer.
    pub fn refuse(&mut self, refusal: &Refusal, host: &str) -> Reply {
        match refusal.code.starts_with("Throttling") {
            true => self.stats.throttled += 1,
            false => self.stats.refused += 1,
        }
        self.gateway_error(refusal, host)
    }

    fn admit(
        &mut self,
        request: &HttpRequest,
        now: jiff::Timestamp,
    ) -> Result<(Action, Parameters), Refusal> {
        let parameters = request.parameters()?;
        let action = self.gateway.admit(request, &parameters, now.as_second())?;
        Ok((action, parameters))
    }

    /// Handles a call that the gateway has admitted.
    fn call(
        &mut self,
        action: Action,
        parameters: &Parameters,
        host: &str,
        now: jiff::Timestamp,
        uptime: Duration,
    ) -> (Duration, Option<Reply>) {
        if !self.limits.take(action, uptime) {
            let throttled =
                Refusal::new(400, "Throttling.User", "Request was denied due to user flow control.");
            return (Duration::ZERO, Some(self.refuse(&throttled, host)));
        }
        match self.faults.next(action) {
            None => (Duration::ZERO, Some(self.answer(action, parameters, host, now))),
            Some(Fault::Delay(delay)) => (delay, Some(self.answer(action, parameters, host, now))),
            Some(Fault::Twice) => {
                self.answer(action, parameters, host, now);
                (Duration::ZERO, Some(self.answer(action, parameters, host, now)))
            }
            Some(Fault::AfterCarryingOut(fault)) => {
                self.answer(action, parameters, host, now);
                self.spoil(*fault, host)
            }
            // The gateway refuses this call, so it does not count as a call of the action.
            Some(Fault::Gateway { status: status @ 400..=499, code }) => {
                let refusal = Refusal::new(status, code, "Simulated.");
                (Duration::ZERO, Some(self.refuse(&refusal, host)))
            }
            Some(fault) => {
                self.count(action);
                self.spoil(fault, host)
            }
        }
    }

    /// Makes the response that replaces an answer.
    fn spoil(&mut self, fault: Fault, host: &str) -> (Duration, Option<Reply>) {
        match fault {
            Fault::Drop => (Duration::ZERO, None),
            // This case occurs only inside `AfterCarryingOut`. The answer is lost, and the
            // connection is closed.
            Fault::Twice => (Duration::ZERO, None),
            // This case occurs only inside `AfterCarryingOut`. The answer is lost, and the
            // connection is closed after a delay.
            Fault::Delay(delay) => (delay, None),
            Fault::Gateway { status, code } => {
                let reply = self.gateway_error(&Refusal::new(status, code, "Simulated."), host);
                (Duration::ZERO, Some(reply))
            }
            Fault::Business { code } => (Duration::ZERO, Some(self.business_error(&code, "Simulated."))),
            Fault::Raw { status, content_type, body } => {
                (Duration::ZERO, Some(Reply { status, content_type, body }))
            }
            Fault::AfterCarryingOut(fault) => self.spoil(*fault, host),
        }
    }

    /// Carries out the action in the instance that the call names.
    fn answer(&mut self, action: Action, parameters: &Parameters, host: &str, now: jiff::Timestamp) -> Reply {
        let outcome = self.instances.select(parameters).and_then(|instance| {
            let mut context = actions::Context {
                account: &mut instance.account,
                products: &instance.config.products,
                batch_delay: self.batch_delay,
                now_ms: now.as_millisecond(),
            };
            actions::carry_out(action, parameters, &mut context)
        });
        match outcome {
            Ok(mut answer) => {
                self.count(action);
                answer["Success"] = true.into();
                answer["RequestId"] = self.request_id().into();
                json_reply(200, &answer)
            }
            Err(Failure::Business { code, message }) => {
                self.count(action);
                self.business_error(code, message)
            }
            Err(Failure::Refused(refusal)) => self.refuse(&refusal, host),
        }
    }

    fn count(&mut self, action: Action) {
        *self.stats.calls.entry(action.name()).or_default() += 1;
    }

    fn business_error(&mut self, code: &str, message: &str) -> Reply {
        let request_id = self.request_id();
        json_reply(
            200,
            &json!({ "RequestId": request_id, "Success": false, "Code": code, "ErrorMessage": message }),
        )
    }

    fn gateway_error(&mut self, refusal: &Refusal, host: &str) -> Reply {
        let host = if host.len() <= MAX_HOST { host } else { "" };
        let request_id = self.request_id();
        json_reply(
            refusal.status,
            &json!({
                "RequestId": request_id, "HostId": host, "Code": refusal.code, "Message": refusal.message,
            }),
        )
    }

    /// Makes a UUID in upper case.
    fn request_id(&mut self) -> String {
        let (high, low) = (self.request_ids.next(), self.request_ids.next());
        format!(
            "{:08X}-{:04X}-4{:03X}-{:04X}-{:012X}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 48 & 0x3fff | 0x8000,
            low & 0xffff_ffff_ffff
        )
    }
}

fn json_reply(status: u16, body: &Value) -> Reply {
    Reply { status, content_type: "application/json;charset=utf-8", body: body.to_string() }
}
