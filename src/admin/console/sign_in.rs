//! Signs users in and out.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use hmac::{Hmac, KeyInit, Mac};
use maud::html;
use serde::Deserialize;
use sha2::Sha256;

use super::{
    From, SubmittedForm, Visitor, browser_cookie_name, cookie, cookie_name, page, page::Tone, set_cookie,
};
use crate::{
    admin::{
        Shared,
        access::{Denied, NewSession},
        browsers, session,
    },
    device::Secret,
    random::random,
};

/// Cookie that ties the sign-in form to its browser, before there is a session.
const FORM_COOKIE: &str = "certdist-form";
/// Lifetime of a sign-in form, in seconds.
const FORM_AGE: u64 = 3600;

/// Verifies that a sign-in form was made by this server, for the browser that sends it.
pub(super) struct Forms {
    key: [u8; 32],
}

impl Forms {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { key: random()? })
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

pub(super) async fn ask(State(shared): State<Arc<Shared>>, visitor: Option<Visitor>) -> Response {
    match visitor {
        Some(_) => Redirect::to("/").into_response(),
        None => form(&shared, StatusCode::OK, None, ""),
    }
}

fn form(shared: &Shared, status: StatusCode, complaint: Option<&str>, name: &str) -> Response {
    let Ok(nonce) = session::token() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let body = html! {
        div.narrow {
            h1 { "Sign in" }
            @if let Some(complaint) = complaint {
                (page::message(Tone::Bad, "You are not signed in", &html! { p { (complaint) } }))
            }
            form.card.stack method="post" action="/sign-in" {
                input type="hidden" name="csrf" value=(shared.pages.sign_in.token(&nonce));
                label for="name" { "Name" }
                input #name name="name" value=(name) autocomplete="username" autocapitalize="none"
                    spellcheck="false" maxlength="64" required autofocus;
                label for="password" { "Password" }
                input #password name="password" type="password" autocomplete="current-password"
                    maxlength="256" required;
                button type="submit" { "Sign in" }
            }
            p.hint { "Users are configured in certdist.toml. Forgotten your password? Make a new hash with "
                code { "certdist admin hash-password" } "." }
        }
    };
    let cookie = set_cookie(shared, FORM_COOKIE, &nonce, FORM_AGE);
    (status, [(header::SET_COOKIE, cookie)], page::page("Sign in", None, "", &body)).into_response()
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    #[serde(default)]
    csrf: String,
    name: String,
    password: String,
}

pub(super) async fn take(
    State(shared): State<Arc<Shared>>,
    Extension(peer): From,
    headers: HeaderMap,
    Form(Credentials { csrf, name, password }): Form<Credentials>,
) -> Response {
    let password = Secret::new(password);
    let nonce = cookie(&headers, FORM_COOKIE).unwrap_or_default();
    if nonce.is_empty() || !session::same(&shared.pages.sign_in.token(nonce), &csrf) {
        let complaint = "The form has expired, or cookies are turned off. Try again.";
        return form(&shared, StatusCode::FORBIDDEN, Some(complaint), &name);
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
            (AppendHeaders(cookies), Redirect::to("/")).into_response()
        }
        Err(Denied::Wrong) => {
            form(&shared, StatusCode::UNAUTHORIZED, Some("Name or password is wrong."), &name)
        }
        Err(Denied::TooOften(seconds)) => {
            let complaint = format!(
                "Too many attempts. Try again in {seconds} s, or in a browser in which you have signed in before."
            );
            let mut response = form(&shared, StatusCode::TOO_MANY_REQUESTS, Some(&complaint), &name);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            response
        }
    }
}

pub(super) async fn out(
    State(shared): State<Arc<Shared>>,
    SubmittedForm { visitor, .. }: SubmittedForm,
) -> Response {
    shared.gate.sign_out(&visitor);
    let cookie = set_cookie(&shared, cookie_name(&shared), "", 0);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
}
