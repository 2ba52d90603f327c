//! Signs users in and out.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use hmac::{Hmac, KeyInit, Mac};
use maud::html;
use serde::Deserialize;
use sha2::Sha256;

use super::{
    From, SubmittedForm, Visitor, browser_cookie_name, cookie, cookie_name,
    page::{self, Frame, Tone},
    set_cookie, wants_json,
};
use crate::{
    admin::{
        Shared,
        access::{Denied, NewSession},
        browsers, session,
    },
    device::Secret,
    random::random,
    store::{
        Table,
        shelf::{ItemKind, ShelfLimits},
    },
};

/// Cookie that ties the sign-in form to a browser that has no session yet.
const FORM_COOKIE: &str = "certdist-form";
/// Lifetime of a sign-in form, in seconds.
const FORM_AGE: u64 = 3600;

/// Verifies that a sign-in form was made by a server of the table, for the browser that sends it.
pub(super) struct Forms {
    key: [u8; 32],
}

impl Forms {
    /// Creates the forms of a server. The servers of the table have the same key, which the first of
    /// them chooses.
    pub(super) async fn new(store: &dyn Table) -> anyhow::Result<Self> {
        const LIMITS: ShelfLimits = ShelfLimits { most: 1, kept: None };
        let own: [u8; 32] = random()?;
        let place = session::key_of("sign-in");
        let key = match store.shelve(ItemKind::FormKey, place, own.to_vec(), LIMITS).await {
            Ok(shared) => shared.try_into().unwrap_or(own),
            Err(error) => {
                tracing::warn!(%error, "the key of the sign-in forms could not be read, so this server has one of its own");
                own
            }
        };
        Ok(Self { key })
    }

    /// Returns the form's token for the browser that has this cookie.
    fn token(&self, cookie: &str) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            unreachable!("HMAC takes any key")
        };
        mac.update(cookie.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }
}

/// Page to return to after signing in.
#[derive(Deserialize)]
pub(super) struct Back {
    #[serde(default)]
    back: String,
}

pub(super) async fn ask(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Option<Visitor>,
    Query(Back { back }): Query<Back>,
) -> Response {
    match visitor {
        Some(_) => Redirect::to(page::local(&back)).into_response(),
        None => form(&shared, &frame, StatusCode::OK, None, "", &back),
    }
}

/// Renders the form. After a failed attempt, the name is already filled in, and the focus is on the
/// empty field.
fn form(
    shared: &Shared,
    frame: &Frame,
    status: StatusCode,
    complaint: Option<&str>,
    name: &str,
    back: &str,
) -> Response {
    let Ok(nonce) = session::token() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let t = frame.texts;
    let body = html! {
        div.narrow {
            h1 { (t.say("sign-in")) }
            @if let Some(complaint) = complaint {
                (page::message(Tone::Bad, &t.say("not-signed-in"), &html! { p { (complaint) } }))
            }
            form.card.stack method="post" action="/sign-in" {
                input type="hidden" name="csrf" value=(shared.pages.sign_in.token(&nonce));
                input type="hidden" name="back" value=(page::local(back));
                label for="name" { (t.say("sign-in-name")) }
                input #name name="name" value=(name) autocomplete="username" autocapitalize="none"
                    spellcheck="false" maxlength="64" required autofocus[name.is_empty()];
                label for="password" { (t.say("sign-in-password")) }
                input #password name="password" type="password" autocomplete="current-password"
                    maxlength="256" required autofocus[!name.is_empty()];
                button type="submit" { (t.say("sign-in")) }
            }
            p.hint { (t.rich("sign-in-hint", [("command", html! { code { "certdist admin hash-password" } }.into())])) }
        }
    };
    let cookie = set_cookie(shared, FORM_COOKIE, &nonce, FORM_AGE);
    let page = frame.page(&t.say("sign-in"), None, "", &body);
    (status, [(header::SET_COOKIE, cookie)], page).into_response()
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    #[serde(default)]
    csrf: String,
    name: String,
    password: String,
    #[serde(default)]
    back: String,
}

pub(super) async fn take(
    State(shared): State<Arc<Shared>>,
    Extension(peer): From,
    frame: Frame,
    headers: HeaderMap,
    Form(Credentials { csrf, name, password, back }): Form<Credentials>,
) -> Response {
    let t = frame.texts;
    let again = |status, complaint: &str| form(&shared, &frame, status, Some(complaint), &name, &back);
    let password = Secret::new(password);
    let nonce = cookie(&headers, FORM_COOKIE).unwrap_or_default();
    if nonce.is_empty() || !session::same(&shared.pages.sign_in.token(nonce), &csrf) {
        return again(StatusCode::FORBIDDEN, &t.say("sign-in-form-expired"));
    }
    let known = cookie(&headers, browser_cookie_name(&shared));
    match shared.gate.sign_in(peer.address.ip(), &name, password, known).await {
        Ok(NewSession { id, browser }) => {
            let cookies = [
                (cookie_name(&shared), id, session::LONGEST),
                (browser_cookie_name(&shared), browser, browsers::KNOWN),
            ];
            let cookies = cookies.map(|(name, value, age)| {
                (header::SET_COOKIE, set_cookie(&shared, name, &value, age.as_secs()))
            });
            (AppendHeaders(cookies), Redirect::to(page::local(&back))).into_response()
        }
        Err(Denied::Wrong) => again(StatusCode::UNAUTHORIZED, &t.say("sign-in-wrong")),
        Err(Denied::TooOften(seconds)) => {
            let complaint = t.with("sign-in-too-often", [("seconds", seconds.into())]);
            let mut response = again(StatusCode::TOO_MANY_REQUESTS, &complaint);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            response
        }
    }
}

/// Returns whether a request comes from a browser and not from a script.
fn is_browser(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::AUTHORIZATION) && !wants_json(headers)
}

pub(super) async fn out(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    headers: HeaderMap,
    sent: Result<SubmittedForm, Response>,
) -> Response {
    let cookie = set_cookie(&shared, cookie_name(&shared), "", 0);
    let SubmittedForm { visitor, .. } = match sent {
        Ok(sent) => sent,
        // The session ended before this request, so the user is signed out already.
        Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED && is_browser(&headers) => {
            return ([(header::SET_COOKIE, cookie)], frame.signed_out_already()).into_response();
        }
        Err(refusal) => return refusal,
    };
    shared.gate.sign_out(&visitor).await;
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
}
