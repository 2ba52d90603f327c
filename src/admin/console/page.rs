//! Parts that all pages share: the frame with navigation and footer, messages, and the error pages.
//! All text goes through the template, which escapes it.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use maud::{DOCTYPE, Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    LIVE, Visitor, cookie,
    language::{Language, Texts},
    set_cookie,
};
use crate::{
    admin::{Shared, ring::Range},
    store::{StoreError, UnixSeconds, unix_now},
};

/// Kind of a message. The words of the message express the kind, too, so that the colour is never
/// the only sign of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    Good,
    Note,
    Warning,
    Bad,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// Paths of the pages in the navigation, with the catalogue keys of their names.
const PAGES: [(&str, &str); 4] = [
    ("/", "nav-overview"),
    ("/devices", "nav-devices"),
    ("/enrollments", "nav-enrollments"),
    ("/import", "nav-import"),
];

/// Name of the cookie that keeps the language that a user has chosen.
const LANGUAGE_COOKIE: &str = "certdist-language";
/// Lifetime of the language cookie, in seconds.
const LANGUAGE_AGE: u64 = 365 * 86_400;
/// Maximum length of a path to which a form or a link may lead back, in bytes.
const MAX_PATH: usize = 1024;

/// Context of a page: its language, and the data that its header and footer show.
pub(super) struct Frame {
    /// The sentences in the reader's language.
    pub(super) texts: Texts,
    shared: Arc<Shared>,
    /// Path and query of the page. If the request has sent a form, this is the page of the form;
    /// `None` if the form does not name its page.
    here: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for Frame {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Infallible> {
        Ok(Self::of(parts, shared))
    }
}

impl Frame {
    /// Returns the frame of the answer to a request.
    pub(super) fn of(parts: &Parts, shared: &Arc<Shared>) -> Self {
        let here = (parts.method == Method::GET)
            .then(|| parts.uri.path_and_query().map(|here| here.as_str().to_owned()))
            .flatten();
        Self { texts: Texts(language(&parts.headers)), shared: shared.clone(), here }
    }

    /// Notes the page of the form that the request has sent.
    pub(super) fn on(mut self, back: &str) -> Self {
        if self.here.is_none() && !back.is_empty() {
            self.here = Some(local(back).to_owned());
        }
        self
    }

    /// Renders a whole page; `nav` is the path of its navigation entry.
    pub(super) fn page(&self, title: &str, visitor: Option<&Visitor>, nav: &str, body: &Markup) -> Markup {
        let t = self.texts;
        html! {
            (DOCTYPE)
            html lang=(t.0.tag()) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · certdist" }
                    link rel="icon" href="/icon.svg" type="image/svg+xml";
                    link rel="stylesheet" href="/console.css";
                    script src="/console.js" defer {}
                }
                body {
                    a.skip href="#main" { (t.say("nav-skip")) }
                    header.top {
                        div.wide {
                            a.brand href="/" { img src="/icon.svg" alt="" width="28" height="28"; "certdist" }
                            @if let Some(visitor) = visitor {
                                nav aria-label=(t.say("nav-pages")) {
                                    @for (path, name) in PAGES {
                                        @if path == nav { a href=(path) aria-current="page" { (t.say(name)) } }
                                        @else { a href=(path) { (t.say(name)) } }
                                    }
                                }
                                form.who method="post" action="/sign-out" {
                                    (self.hidden(visitor))
                                    span { (visitor.name) " · " (role(t, visitor)) }
                                    button.quiet type="submit" { (t.say("sign-out")) }
                                }
                            }
                        }
                    }
                    main.wide #main tabindex="-1" { (body) }
                    (self.footer(visitor, nav))
                }
            }
        }
    }

    /// Renders the footer. Only visitors who have signed in see the details of the server.
    fn footer(&self, visitor: Option<&Visitor>, nav: &str) -> Markup {
        let (t, sources) = (self.texts, &self.shared.sources);
        let here = self.here.as_deref().unwrap_or(if nav.is_empty() { "/" } else { nav });
        html! {
            footer.wide {
                @if visitor.is_some() {
                    p { (t.rich("footer-server", [
                        ("now", moment(unix_now()).into()),
                        ("version", env!("CARGO_PKG_VERSION").into()),
                        ("started", moment(sources.started).into()),
                        ("host", (&sources.name).into()),
                        ("database", (&sources.database).into()),
                    ])) }
                }
                p.languages {
                    @for language in Language::ALL {
                        @if language == t.0 { b lang=(language.tag()) aria-current="true" { (language.own_name()) } }
                        @else {
                            a href={ "/language?to=" (language.tag()) "&back=" (encoded(here)) } lang=(language.tag())
                                hreflang=(language.tag()) { (language.own_name()) }
                        }
                        " "
                    }
                }
            }
        }
    }

    /// Renders the hidden fields of a form: the CSRF token, and the form's page. If the session has
    /// ended when the form is sent, the user returns to this page after signing in.
    pub(super) fn hidden(&self, visitor: &Visitor) -> Markup {
        html! {
            input type="hidden" name="csrf" value=(visitor.csrf());
            @if let Some(here) = &self.here { input type="hidden" name="back" value=(here); }
        }
    }

    /// Renders a part of a page that the page's script requests again from `path` at the interval
    /// `every`. If the script cannot get the part, the page says so.
    pub(super) fn live(&self, path: &str, every: std::time::Duration, content: &Markup) -> Markup {
        let t = self.texts;
        html! {
            div #stale role="alert" {}
            div #live data-path=(path) data-every=(every.as_secs()) data-stale=(t.say("live-stale"))
                data-ended=(t.say("live-ended")) data-sign-in=(t.say("sign-in")) { (content) }
        }
    }

    fn plain(
        &self,
        status: StatusCode,
        visitor: Option<&Visitor>,
        title: &'static str,
        text: &Markup,
    ) -> Response {
        let title = self.texts.say(title);
        let body = html! { h1 { (title) } div.card { (text) } };
        (status, self.page(&title, visitor, "", &body)).into_response()
    }

    /// Rejects a form that does not belong to the session that sends it.
    pub(super) fn stale_form(&self, visitor: Option<&Visitor>) -> Response {
        let t = self.texts;
        let text =
            html! { p { (t.say("form-expired-text")) } p { a href="/" { (t.say("go-to-overview")) } } };
        self.plain(StatusCode::FORBIDDEN, visitor, "form-expired", &text)
    }

    /// Answers a form that was sent after the session had ended.
    pub(super) fn signed_out(&self, back: &str) -> Response {
        let t = self.texts;
        let text = html! {
            p { (t.say("signed-out-text")) }
            p { a.button href=(sign_in_path(local(back))) autofocus { (t.say("sign-in")) } }
        };
        self.plain(StatusCode::UNAUTHORIZED, None, "signed-out", &text)
    }

    /// Answers a request to sign out that was sent after the session had ended.
    pub(super) fn signed_out_already(&self) -> Response {
        let t = self.texts;
        let text = html! {
            p { (t.say("signed-out-already")) }
            p { a.button href="/sign-in" autofocus { (t.say("sign-in")) } }
        };
        self.plain(StatusCode::UNAUTHORIZED, None, "signed-out", &text)
    }

    /// Rejects a viewer's attempt to change something.
    pub(super) fn not_allowed(&self, visitor: &Visitor) -> Response {
        let text = self
            .texts
            .rich("operators-only-text", [("role", html! { code { "role = \"operator\"" } }.into())]);
        self.plain(StatusCode::FORBIDDEN, Some(visitor), "operators-only", &html! { p { (text) } })
    }

    /// Reports that the table could not be used.
    pub(super) fn store_failed(&self, visitor: &Visitor, error: &StoreError) -> Response {
        tracing::error!(%error, "the console could not use the database");
        let t = self.texts;
        let text = html! {
            p { (t.say("database-failed-text")) }
            pre { code { (error) } }
            p { (t.say("database-failed-advice")) }
        };
        self.plain(StatusCode::SERVICE_UNAVAILABLE, Some(visitor), "database-failed", &text)
    }

    /// Explains how to turn the console on. Shown while the configuration has no user and no token.
    pub(super) fn no_accounts(&self) -> Response {
        let t = self.texts;
        let code = |text: &str| html! { code { (text) } };
        let text = html! {
            p { (t.rich("console-off-text", [
                ("health", html! { a href="/readyz" { "/readyz" } }.into()),
                ("metrics", html! { a href="/metrics" { "/metrics" } }.into()),
            ])) }
            p { (t.say("console-off-hash")) }
            pre { code { "certdist admin hash-password" } }
            p { (t.rich("console-off-config", [("file", code("certdist.toml").into()), ("command", code("systemctl reload certdist").into())])) }
            pre { code { "[[admin.user]]\nname          = \"lead\"\npassword_hash = \"$argon2id$…\"\nrole          = \"operator\"   # or \"viewer\"" } }
        };
        self.plain(StatusCode::OK, None, "console-off", &text)
    }
}

fn role(t: Texts, visitor: &Visitor) -> String {
    if visitor.is_operator() { t.say("role-operator") } else { t.say("role-viewer") }
}

fn language(headers: &HeaderMap) -> Language {
    let chosen = cookie(headers, LANGUAGE_COOKIE).and_then(Language::tagged);
    let accepted =
        || headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    chosen.unwrap_or_else(|| Language::accepted(accepted()))
}

/// Choice of a language.
#[derive(serde::Deserialize)]
pub(super) struct Choice {
    /// Tag of the language.
    #[serde(default)]
    to: String,
    /// Page to return to.
    #[serde(default)]
    back: String,
}

/// Stores the chosen language in a cookie, and returns to the page.
pub(super) async fn choose_language(
    axum::extract::State(shared): axum::extract::State<Arc<Shared>>,
    axum::extract::Query(Choice { to, back }): axum::extract::Query<Choice>,
) -> Response {
    let back = Redirect::to(local(&back));
    match Language::tagged(&to) {
        Some(language) => {
            let cookie = set_cookie(&shared, LANGUAGE_COOKIE, language.tag(), LANGUAGE_AGE);
            ([(header::SET_COOKIE, cookie)], back).into_response()
        }
        None => back.into_response(),
    }
}

/// Returns the text if it is a path on this server, or else the overview's path. A browser
/// interprets `//host` and `/\host` as the address of another server.
pub(super) fn local(path: &str) -> &str {
    let is_local = path.starts_with('/')
        && !path.starts_with("//")
        && path.len() <= MAX_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_local { path } else { "/" }
}

/// Returns the path of the whole page if `path` leads to a part of a page that updates itself.
/// Otherwise, returns `path`.
pub(super) fn whole(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    match path.strip_suffix(LIVE) {
        Some("") => format!("/{query}"),
        Some(page) => format!("{page}{query}"),
        None => format!("{path}{query}"),
    }
}

/// Encodes a text for the query of a URL.
pub(super) fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// Returns the path of the sign-in page that leads to `back` after the sign-in.
pub(super) fn sign_in_path(back: &str) -> String {
    if back == "/" { "/sign-in".to_owned() } else { format!("/sign-in?back={}", encoded(back)) }
}

/// Renders a time in UTC. The page's script adds the local time.
pub(super) fn moment(seconds: UnixSeconds) -> Markup {
    let Ok(time) = jiff::Timestamp::from_second(seconds) else { return html! { "–" } };
    html! { time datetime=(time.strftime("%Y-%m-%dT%H:%M:%SZ")) { (time.strftime("%Y-%m-%d %H:%M:%S UTC")) } }
}

/// Renders a text that is in English on the pages of every language.
pub(super) fn english(text: impl std::fmt::Display) -> Markup {
    html! { bdi lang="en" { (text.to_string()) } }
}

/// Renders a message.
pub(super) fn message(tone: Tone, title: &str, text: &Markup) -> Markup {
    html! {
        div class={ "message " (tone.class()) } role=(if tone == Tone::Bad { "alert" } else { "status" }) {
            h2 { (title) }
            (text)
        }
    }
}

pub(super) async fn not_found(frame: Frame, visitor: Option<Visitor>) -> Response {
    let t = frame.texts;
    let link = html! { a href="/" { (t.say("go-to-overview")) } };
    let text = html! { p { (t.rich("page-not-found", [("link", link.into())])) } };
    frame.plain(StatusCode::NOT_FOUND, visitor.as_ref(), "page-not-found-title", &text)
}

/// Renders the ranges to choose from. Each name is a link, except that of the current range.
pub(super) fn ranges(t: Texts, current: Range, link: impl Fn(Range) -> String) -> Markup {
    let name = |range| match range {
        Range::Hour => t.say("range-hour"),
        Range::Day => t.say("range-day"),
        Range::Week => t.say("range-week"),
    };
    html! {
        p.ranges {
            @for range in Range::ALL {
                @if range == current { b aria-current="true" { (name(range)) } }
                @else { a href=(link(range)) { (name(range)) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_leads_to_its_page() {
        for (path, page) in [
            ("/live", "/"),
            ("/live?range=day", "/?range=day"),
            ("/jobs/live?id=1%2D2", "/jobs?id=1%2D2"),
            ("/devices?q=/live", "/devices?q=/live"),
            ("/alive", "/alive"),
        ] {
            assert_eq!(whole(path), page);
        }
    }

    #[test]
    fn a_page_leads_back_only_to_this_server() {
        for path in ["/", "/device?id=SN%2D1", "/devices?q=a&after=b"] {
            assert_eq!(local(path), path);
        }
        for path in
            ["", "//evil.example", "/\\evil.example", "https://evil.example", "/a\nb", "/ü", "javascript:x"]
        {
            assert_eq!(local(path), "/", "{path}");
        }
        assert_eq!(local(&format!("/{}", "a".repeat(MAX_PATH))), "/");
    }
}
