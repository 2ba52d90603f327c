//! The uses of the keys of an enrollment that has two: the operator sees when no device uses the
//! former key any more.

use maud::{Markup, html};

use crate::{
    admin::console::{language::Texts, page::moment},
    psk::{WhichKey, uses::Reported},
    store::key_use::KeyUse,
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
