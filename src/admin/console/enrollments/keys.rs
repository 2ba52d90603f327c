//! The uses of the keys of an enrollment that has two, or whose devices have two: the operator sees
//! when no device uses the former key any more.

use maud::{Markup, html};

use crate::{
    admin::console::{language::Texts, page::moment},
    psk::{WhichKey, uses::Reported},
    store::{key_use::KeyUse, roll::RollCount},
};

/// Renders a line for each key.
pub(super) fn lines(t: Texts, uses: &Reported) -> Markup {
    let line = |which: WhichKey, used: Option<&KeyUse>| {
        let name = t.say(match which {
            WhichKey::Current => "enrollments-key-current",
            WhichKey::Next => "enrollments-key-next",
        });
        let name = || ("key", (&name).into());
        match used {
            None => t.rich("enrollments-key-unknown", [name()]),
            Some(KeyUse { since, last: None, .. }) => {
                t.rich("enrollments-key-unused", [name(), ("since", moment(*since).into())])
            }
            Some(KeyUse { since, last: Some(last), handshakes, .. }) => {
                let times = [("time", moment(*last).into()), ("since", moment(*since).into())];
                let [time, since] = times;
                t.rich("enrollments-key-used", [name(), time, since, ("count", (*handshakes).into())])
            }
        }
    };
    html! {
        @if !uses.is_empty() {
            ul { @for (which, used) in uses { li { (line(*which, used.as_ref())) } } }
        }
    }
}

/// Renders the devices that have two keys, by the key that they have used last.
pub(super) fn of_devices(t: Texts, count: &RollCount) -> Markup {
    let RollCount { devices, by_key: [current, next], used, is_complete } = *count;
    let neither = devices.saturating_sub(current + next);
    let groups = [
        ("enrollments-rolling-current", current, used[0]),
        ("enrollments-rolling-next", next, used[1]),
        ("enrollments-rolling-neither", neither, None),
    ];
    html! {
        @if devices > 0 {
            p { (t.rich("enrollments-rolling", [("count", devices.into())])) }
            ul {
                @for (key, count, used) in groups {
                    @if count > 0 || used.is_some() {
                        li { (t.rich(key, [("count", count.into())])) @if let Some(used) = used { " · " (moment(used)) } }
                    }
                }
            }
            @if !is_complete { p.hint { (t.say("enrollments-rolling-more")) } }
        }
    }
}
