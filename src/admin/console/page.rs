//! Parts that all pages share: head, navigation, messages, and the error pages. All text
//! goes through the template, which escapes it.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

use super::Visitor;
use crate::store::StoreError;

/// Kind of a message. The words of the message express the kind as well, so that colour is never
/// the only sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

const PAGES: [(&str, &str); 4] =
    [("/", "Overview"), ("/devices", "Devices"), ("/enrollments", "Enrollments"), ("/import", "Import")];

/// Renders a whole page; `here` is the path of its navigation entry.
pub(super) fn page(title: &str, visitor: Option<&Visitor>, here: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
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
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    div.wide {
                        a.brand href="/" { img src="/icon.svg" alt="" width="28" height="28"; "certdist" }
                        @if let Some(visitor) = visitor {
                            nav aria-label="Pages" {
                                @for (path, name) in PAGES {
                                    @if path == here { a href=(path) aria-current="page" { (name) } }
                                    @else { a href=(path) { (name) } }
                                }
                            }
                            form.who method="post" action="/sign-out" {
                                input type="hidden" name="csrf" value=(visitor.csrf());
                                span { (visitor.name) " · " (visitor.role) }
                                button.quiet type="submit" { "Sign out" }
                            }
                        }
                    }
                }
                main.wide #main tabindex="-1" { (body) }
            }
        }
    }
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

fn plain_page(status: StatusCode, visitor: Option<&Visitor>, title: &str, text: &Markup) -> Response {
    let body = html! { h1 { (title) } div.card { (text) } };
    (status, page(title, visitor, "", &body)).into_response()
}

pub(super) async fn not_found(visitor: Option<Visitor>) -> Response {
    let text = html! { p { "There is no page at this address. " a href="/" { "Go to the overview" } } };
    plain_page(StatusCode::NOT_FOUND, visitor.as_ref(), "No such page", &text)
}

/// Explains how to turn the console on, if the configuration has no user and no token.
pub(super) fn no_accounts() -> Response {
    let text = html! {
        p { "The console is off, because no user is configured yet. Health and metrics are at "
            a href="/readyz" { "/readyz" } " and " a href="/metrics" { "/metrics" } "." }
        p { "To turn it on, make the hash of a password:" }
        pre { code { "certdist admin hash-password" } }
        p { "Put it into certdist.toml, then reload certdist (" code { "systemctl reload certdist" } ", or SIGHUP)." }
        pre { code { "[[admin.user]]\nname          = \"lead\"\npassword_hash = \"$argon2id$…\"\nrole          = \"operator\"   # or \"viewer\"" } }
    };
    plain_page(StatusCode::OK, None, "No user can sign in yet", &text)
}

/// Rejects a form that does not belong to the session that sends it.
pub(super) fn stale_form() -> Response {
    let text = html! {
        p { "The form was not made for this session, so nothing was changed. Open the page again and repeat "
            "the action." }
        p { a href="/" { "Go to the overview" } }
    };
    plain_page(StatusCode::FORBIDDEN, None, "This form has expired", &text)
}

/// Rejects a change by a viewer.
pub(super) fn not_allowed(visitor: &Visitor) -> Response {
    let text = html! {
        p { "You are signed in as a viewer, who can see everything but change nothing. Changes need "
            code { "role = \"operator\"" } " in the configuration." }
    };
    plain_page(StatusCode::FORBIDDEN, Some(visitor), "Only operators can do this", &text)
}

/// Reports that the table failed.
pub(super) fn store_failed(visitor: &Visitor, error: &StoreError) -> Response {
    tracing::error!(%error, "the console could not use the database");
    let text = html! {
        p { "Nothing was changed. The database reported:" }
        pre { code { (error) } }
        p { "If this persists, check that the disk is not full, and that no other process holds the file." }
    };
    plain_page(StatusCode::SERVICE_UNAVAILABLE, Some(visitor), "The database failed", &text)
}
