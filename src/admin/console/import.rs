//! Imports a table file in two steps: first a preview of the changes, then, after the operator
//! confirms, the import. Between the steps, the file is in the table (`uploads`).

use std::sync::Arc;

use axum::{
    extract::{DefaultBodyLimit, Multipart, Query, State, multipart::MultipartError},
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    OperatorForm, Visitor, devices, grouped, imports,
    language::Texts,
    page::{self, Frame, Tone, encoded, english, moment},
    plain,
    uploads::{self, ErrorList, Upload},
};
use crate::{
    admin::{Shared, session},
    store::{ImportReport, undo::ImportRecord},
    table_file::{self, BadLines, Enrollments, Feedback, Import, ImportFileError, Imported, Input, Summary},
};

/// Maximum number of enrollments in the form's list. If there are more, their names are only suggested.
const MAX_OPTIONS: usize = 200;
/// Maximum size of a file in bytes; enough for about 500,000 devices.
const MAX_FILE: usize = 16 << 20;
/// Maximum size of the form's other fields, in bytes.
const REST: usize = 64 << 10;
/// Maximum number of bad lines on the page. The file with the bad lines, which can be downloaded,
/// has more.
const MAX_SHOWN: usize = 60;

pub(super) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_FILE + REST)
}

/// Action whose result the page shows.
#[derive(Deserialize)]
pub(super) struct Done {
    /// Number of the import.
    #[serde(default)]
    done: String,
    /// Number of the import that was undone.
    #[serde(default)]
    undone: String,
    /// Enrollment that the form preselects.
    #[serde(default)]
    enrollment: String,
}

pub(super) async fn ask(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(Done { done, undone, enrollment }): Query<Done>,
) -> Response {
    let imports = match imports::recent(&shared).await {
        Ok(imports) => imports,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let t = frame.texts;
    let of = |id: &str| imports.iter().find(|import| !id.is_empty() && import.id.to_string() == id);
    let result = match (of(&done), of(&undone)) {
        (Some(import), _) => imported(t, import),
        (_, Some(import)) => {
            // If the table fails, the message leaves out the names of the devices, and the page is
            // shown nevertheless.
            let left = imports::left(&shared, import.id).await.unwrap_or_default();
            let text = html! { p { bdi { (import.file) } } (imports::left_list(t, &left)) };
            let tone = if left.devices > 0 { Tone::Warning } else { Tone::Good };
            focused(&page::message(tone, &t.say("undo-done"), &text))
        }
        // An import has no number if it changed nothing or replaced keys.
        _ if done == "none" => {
            let text = html! { p { (t.say("import-done-no-number")) } };
            focused(&page::message(Tone::Good, &t.say("imported"), &text))
        }
        _ => html! {},
    };
    page(&shared, &frame, &visitor, StatusCode::OK, (&html! {}, &result), &enrollment, &imports)
}

/// Puts the focus on a result, so that a screen reader reads it, and the Tab key continues from
/// there.
fn focused(result: &Markup) -> Markup {
    html! { div tabindex="-1" autofocus { (result) } }
}

fn imported(t: Texts, import: &ImportRecord) -> Markup {
    let text = html! {
        p { (t.rich("imported-text", [
            ("file", (&import.file).into()),
            ("added", import.added.into()),
            ("changed", import.changed.into()),
            ("time", moment(import.at).into()),
        ])) }
        p { a href="/enrollments" { (t.say("import-progress")) } " · "
            a href={ "/import/undo?id=" (import.id) } { (t.say("imports-undo")) } }
    };
    focused(&page::message(Tone::Good, &t.say("imported"), &text))
}

/// Renders the page. `notice` is placed just before the form, and `result` at the top.
fn page(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    status: StatusCode,
    (notice, result): (&Markup, &Markup),
    enrollment: &str,
    imports: &[ImportRecord],
) -> Response {
    let t = frame.texts;
    let body = html! {
        h1 { (t.say("nav-import")) }
        (result)
        @if visitor.is_operator() { (form(shared, frame, visitor, enrollment)) }
        @else { (page::message(Tone::Note, &t.say("import-operators-only"), &html! { p { (t.say("viewer-signed-in")) } })) }
        (notice)
        (imports::list(t, visitor, imports))
    };
    (status, frame.page(&t.say("nav-import"), Some(visitor), "/import", &body)).into_response()
}

fn form(shared: &Shared, frame: &Frame, visitor: &Visitor, chosen: &str) -> Markup {
    let (t, enrollments) = (frame.texts, shared.enrollments());
    let code = |text: &str| html! { code { (text) } };
    html! {
        form.card.stack method="post" action="/import" enctype="multipart/form-data" {
            // Placed before the file, because the token is checked before the file is read.
            (frame.hidden(visitor))
            label for="file" { (t.say("import-file")) }
            input #file type="file" name="file" accept=".csv,.txt,.tsv,.jsonl,text/csv,text/plain" required aria-describedby="file-hint";
            p.hint #file-hint { (t.rich("import-file-hint", [
                ("command", code("certdist import").into()),
                ("required", code("deviceId").into()),
                ("columns", code("deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk,pskNext,target").into()),
            ])) }
            label for="enrollment" { (t.say("import-enrollment")) }
            @if enrollments.len() > MAX_OPTIONS {
                input #enrollment name="enrollment" value=(chosen) list="enrollments" placeholder=(t.say("import-each-its-own")) autocomplete="off" autocapitalize="none" spellcheck="false";
                (devices::choices("enrollments", enrollments.iter().map(|enrolled| enrolled.name.as_str())))
            } @else { select #enrollment name="enrollment" {
                @if enrollments.len() > 1 { option value="" selected[chosen.is_empty()] { (t.say("import-each-its-own")) } }
                @for enrolled in enrollments.iter() {
                    option value=(enrolled.name) selected[enrolled.name == chosen] { (enrolled.name) " · " (enrolled.product_key) }
                }
            } }
            button type="submit" { (t.say("import-preview")) }
            p.hint { (t.say("import-preview-hint")) }
        }
    }
}

/// Answers with the page. The form keeps the chosen enrollment.
async fn show(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    status: StatusCode,
    (notice, result): (&Markup, &Markup),
    enrollment: &str,
) -> Response {
    // If the table fails, the page is shown without the list of imports. `result` then reports the
    // failure.
    let imports = imports::recent(shared).await.unwrap_or_default();
    page(shared, frame, visitor, status, (notice, result), enrollment, &imports)
}

pub(super) async fn upload(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    form: Multipart,
) -> Response {
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let t = frame.texts;
    let Some(_place) = shared.pages.uploads.place() else {
        if visitor.is_script() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, t.say("import-busy"));
        }
        return complain(&shared, &frame, &visitor, "", &t.say("import-busy")).await;
    };
    let Received { file, dry_run } = match receive(&frame, &visitor, form).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    let enrollments = match enrollments(&shared, &file.enrollment) {
        Ok(enrollments) => enrollments,
        Err(sentence) => {
            let text = [("enrollment", (&file.enrollment).into())];
            let text = frame.texts.rich("import-unknown-enrollment", text);
            return refuse(&shared, &frame, &visitor, "", (&sentence, &text)).await;
        }
    };
    let dry_run = dry_run || !visitor.is_script();
    let (file, errors, outcome) = run(&shared, &visitor, file, enrollments, dry_run).await;
    match (outcome, &visitor.session) {
        (Ok(Imported { id, report, mut remarks, .. }), None) => {
            remarks.extend(id.map(|id| format!("to undo this import: certdist import undo {id}")));
            log_import(&visitor, &file, report, dry_run);
            let notes = remarks.iter().map(|remark| format!("\nnote: {remark}"));
            plain(StatusCode::OK, sentence(report, dry_run) + &notes.collect::<String>())
        }
        (Ok(imported), Some((owner, _))) => {
            let Ok(token) = session::token() else {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            };
            let result = preview(&frame, &visitor, &file, &imported, &token);
            let enrollment = file.enrollment.clone();
            if let Err(error) = uploads::keep(&*shared.sources.store, &token, owner, file).await {
                return frame.store_failed(&visitor, &error);
            }
            let notice = html! {};
            show(&shared, &frame, &visitor, StatusCode::OK, (&notice, &result), &enrollment).await
        }
        (Err(error), _) => refused(&shared, &frame, &visitor, &file, errors, error).await,
    }
}

pub(super) async fn confirm(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let (frame, visitor) = (sent.frame, sent.visitor);
    let file = match &visitor.session {
        Some((owner, _)) => uploads::take(&*shared.sources.store, &sent.fields.upload, owner).await,
        None => Ok(None),
    };
    let file = match file {
        Ok(file) => file,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let Some(file) = file else {
        let sentence = frame.texts.say("import-gone");
        return complain(&shared, &frame, &visitor, "", &sentence).await;
    };
    let enrollments = match enrollments(&shared, &file.enrollment) {
        Ok(enrollments) => enrollments,
        Err(sentence) => {
            let text = [("enrollment", (&file.enrollment).into())];
            let text = frame.texts.rich("import-unknown-enrollment", text);
            return refuse(&shared, &frame, &visitor, "", (&sentence, &text)).await;
        }
    };
    let (file, errors, outcome) = run(&shared, &visitor, file, enrollments, false).await;
    match outcome {
        // The answer leads to another page, so that a reload shows the result again and does not
        // repeat the import.
        Ok(Imported { id, report, .. }) => {
            log_import(&visitor, &file, report, false);
            let done = id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let to = format!("/import?done={done}&enrollment={}", encoded(&file.enrollment));
            Redirect::to(&to).into_response()
        }
        Err(error) => refused(&shared, &frame, &visitor, &file, errors, error).await,
    }
}

/// Token of a list of bad lines.
#[derive(Deserialize)]
pub(super) struct List {
    #[serde(default)]
    list: String,
}

/// Serves all bad lines of a refused file.
pub(super) async fn errors(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(List { list }): Query<List>,
) -> Response {
    let csv = match &visitor.session {
        Some((owner, _)) => uploads::errors(&*shared.sources.store, &list, owner).await,
        None => Ok(None),
    };
    match csv {
        Err(error) => frame.store_failed(&visitor, &error),
        Ok(Some(csv)) => {
            let headers = [
                (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"bad-lines.csv\""),
            ];
            (headers, csv).into_response()
        }
        Ok(None) => {
            let sentence = frame.texts.say("import-errors-gone");
            complain(&shared, &frame, &visitor, "", &sentence).await
        }
    }
}

fn log_import(visitor: &Visitor, file: &Upload, report: ImportReport, dry_run: bool) {
    if !dry_run {
        let ImportReport { added, changed, unchanged, .. } = report;
        tracing::info!(
            user = visitor.name,
            file = file.name,
            added,
            changed,
            unchanged,
            "a file was imported in the console"
        );
    }
}

struct Received {
    file: Upload,
    dry_run: bool,
}

/// Reads the form. Checks its CSRF token before it reads the file.
async fn receive(frame: &Frame, visitor: &Visitor, mut form: Multipart) -> Result<Received, Response> {
    let (mut is_genuine, mut file, mut enrollment, mut dry_run) =
        (visitor.has_csrf(""), None, String::new(), false);
    while let Some(mut field) = form.next_field().await.map_err(|error| unreadable(frame, visitor, &error))? {
        match field.name().unwrap_or_default() {
            "csrf" => {
                let csrf = field.text().await.map_err(|error| unreadable(frame, visitor, &error))?;
                is_genuine = visitor.has_csrf(&csrf);
            }
            _ if !is_genuine => return Err(frame.stale_form(Some(visitor))),
            "enrollment" => {
                enrollment = field.text().await.map_err(|error| unreadable(frame, visitor, &error))?
            }
            "dry_run" => dry_run = true,
            "file" => {
                let name: String = field.file_name().unwrap_or("the file").chars().take(80).collect();
                let mut bytes = Zeroizing::new(Vec::new());
                while let Some(chunk) =
                    field.chunk().await.map_err(|error| unreadable(frame, visitor, &error))?
                {
                    bytes.extend_from_slice(&chunk);
                }
                file = Some((name, bytes));
            }
            _ => {}
        }
    }
    if !is_genuine {
        return Err(frame.stale_form(Some(visitor)));
    }
    let Some((name, bytes)) = file else {
        return Err(plain(StatusCode::BAD_REQUEST, "the field \"file\" with the CSV file is missing"));
    };
    Ok(Received { file: Upload { name, bytes, enrollment }, dry_run })
}

fn unreadable(frame: &Frame, visitor: &Visitor, error: &MultipartError) -> Response {
    let t = frame.texts;
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        if visitor.is_script() {
            let text = "The file is larger than 16 MiB. Import it with `certdist import`, which works beside a running server.";
            return plain(StatusCode::PAYLOAD_TOO_LARGE, text);
        }
        let text = html! {
            p { (t.rich("import-too-large-text", [("command", html! { code { "certdist import" } }.into())])) }
            p { a href="/import" { (t.say("back")) } }
        };
        let message = page::message(Tone::Bad, &t.say("import-too-large"), &text);
        let body = html! { h1 { (t.say("nav-import")) } (message) };
        let page = frame.page(&t.say("nav-import"), Some(visitor), "/import", &body);
        return (StatusCode::PAYLOAD_TOO_LARGE, page).into_response();
    }
    plain(StatusCode::BAD_REQUEST, "could not read the form; send it as multipart/form-data")
}

fn enrollments(shared: &Shared, default: &str) -> Result<Enrollments, String> {
    let targets = &shared.sources.targets;
    let names = targets.all().iter().map(|target| target.name().to_owned());
    let known =
        Enrollments::new(shared.enrollments().iter().cloned()).with_targets(names, targets.of_enrollments());
    if default.is_empty() {
        Ok(known)
    } else {
        known.with_default(default).map_err(|error| error.to_string())
    }
}

/// Imports a file, or previews its import, on a thread for blocking work.
async fn run(
    shared: &Shared,
    visitor: &Visitor,
    file: Upload,
    enrollments: Enrollments,
    dry_run: bool,
) -> (Upload, ErrorList, Result<Imported, ImportFileError>) {
    let (store, by) = (shared.sources.store.clone(), visitor.actor());
    let work = move || {
        let mut errors = ErrorList::default();
        let how = Import { enrollments: &enrollments, by: &by, dry_run, ignores_unknown: false };
        let input = Input {
            name: file.name.as_ref(),
            size: file.bytes.len() as u64,
            is_stream: false,
            reader: Box::new(&file.bytes[..]),
        };
        let mut note = |path: &std::path::Path, error: &table_file::LineError| errors.add(path, error);
        let feedback = Feedback { progress: &mut |_, _, _| (), bad_line: &mut note };
        let outcome = table_file::import(&*store, vec![input], how, feedback);
        (file, errors, outcome)
    };
    // The work does not panic. If it did, only this request would fail.
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Returns the sentence that reports an import to a script, in English.
fn sentence(report: ImportReport, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    format!(
        "{} devices {would}added, {} {would}changed, {} unchanged",
        grouped(report.added),
        grouped(report.changed),
        grouped(report.unchanged)
    )
}

/// Shows the enrollments and products of the rows, the effect of the import, and the remarks.
fn preview(frame: &Frame, visitor: &Visitor, file: &Upload, imported: &Imported, token: &str) -> Markup {
    let t = frame.texts;
    let Imported { report, remarks, summary, .. } = imported;
    let text = html! {
        p { (t.rich("preview-counts", [
            ("file", (&file.name).into()),
            ("added", report.added.into()),
            ("changed", report.changed.into()),
            ("unchanged", report.unchanged.into()),
        ])) }
        (contents(t, summary))
        @if !remarks.is_empty() {
            p { b { (t.say("preview-odd")) } }
            ul { @for remark in remarks { li { (english(remark)) } } }
        }
        @if report.added + report.changed == 0 {
            p { (t.say("preview-nothing-new")) }
        } @else {
            form method="post" action="/import/confirm" {
                (frame.hidden(visitor))
                input type="hidden" name="upload" value=(token);
                button type="submit" autofocus { (t.say("import-it")) }
            }
        }
    };
    page::message(Tone::Note, &t.say("nothing-changed-yet"), &text)
}

fn contents(t: Texts, summary: &Summary) -> Markup {
    html! {
        ul {
            @for pair in &summary.pairs {
                li { (t.rich("preview-pair", [
                    ("count", pair.rows.into()),
                    ("enrollment", (&pair.enrollment).into()),
                    ("product", (&pair.product_key).into()),
                ])) }
            }
            @if summary.others > 0 { li { (t.with("preview-other-pairs", [("count", summary.others.into())])) } }
            @if let Some((first, last)) = &summary.ends {
                li { (t.rich("preview-ends", [
                    ("first", html! { span.id { (first) } }.into()),
                    ("last", html! { span.id { (last) } }.into()),
                ])) }
            }
        }
    }
}

async fn complain(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    enrollment: &str,
    sentence: &str,
) -> Response {
    let text = html! { bdi { (sentence) } };
    refuse(shared, frame, visitor, enrollment, (sentence, &text)).await
}

/// Says why nothing was imported: to a script as plain text, to a browser as markup.
async fn refuse(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    enrollment: &str,
    (sentence, text): (&str, &Markup),
) -> Response {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    if visitor.is_script() {
        return plain(status, sentence);
    }
    let result = page::message(Tone::Bad, &frame.texts.say("nothing-imported"), &html! { p { (text) } });
    show(shared, frame, visitor, status, (&html! {}, &result), enrollment).await
}

async fn refused(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    file: &Upload,
    errors: ErrorList,
    error: ImportFileError,
) -> Response {
    let lines = match &error {
        ImportFileError::Lines { files } if files.len() == 1 => &files[0].lines,
        ImportFileError::Store(error) => return frame.store_failed(visitor, error),
        ImportFileError::Lines { .. } | ImportFileError::Read { .. } => {
            let sentence = error.to_string();
            let text = english(&sentence);
            return refuse(shared, frame, visitor, &file.enrollment, (&sentence, &text)).await;
        }
    };
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let Some((owner, _)) = &visitor.session else {
        return plain(status, format!("nothing was imported\n{lines}"));
    };
    let Ok(token) = session::token() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let t = frame.texts;
    let count = t.rich("bad-lines-count", [("file", (&file.name).into()), ("count", lines.count().into())]);
    let result = page::message(Tone::Bad, &t.say("nothing-imported"), &html! { p { (count) } });
    let notice = bad_lines(t, lines, &token);
    if let Err(error) = uploads::keep_errors(&*shared.sources.store, &token, owner, errors).await {
        return frame.store_failed(visitor, &error);
    }
    show(shared, frame, visitor, status, (&notice, &result), &file.enrollment).await
}

/// Returns the catalogue key of the sentence that says, in the reader's language, what is wrong in
/// a column. The details are in English.
fn kind_of(column: Option<&str>) -> &'static str {
    match column {
        Some("deviceId") => "bad-device-id",
        Some("enrollment") => "bad-enrollment",
        Some("productKey") => "bad-product",
        Some("deviceName") => "bad-name",
        Some("deviceSecret") => "bad-secret",
        Some("iotId") => "bad-iotid",
        Some("pskIdentity" | "psk" | "pskNext") => "bad-key",
        Some(_) => "bad-value",
        None => "bad-line",
    }
}

/// Lists the first bad lines of each kind, and links to the file with all of them.
fn bad_lines(t: Texts, lines: &BadLines, token: &str) -> Markup {
    html! {
        section.card aria-labelledby="bad" {
            h2 #bad { (t.say("bad-lines")) }
            p { a.button.secondary href={ "/import/errors.csv?list=" (encoded(token)) } download { (t.with("bad-lines-download", [("count", lines.count().into())])) } }
            table.stacked {
                thead { tr {
                    th scope="col" { (t.say("bad-lines-line")) }
                    th scope="col" { (t.say("bad-lines-column")) }
                    th scope="col" { (t.say("bad-lines-reason")) }
                } }
                tbody {
                    @for error in lines.listed.iter().take(MAX_SHOWN) {
                        tr {
                            th scope="row" { (error.line) }
                            td data-label=(t.say("bad-lines-column")) { (error.column.unwrap_or("–")) }
                            td data-label=(t.say("bad-lines-reason")) { b { (t.say(kind_of(error.column))) } ": " (english(&error.reason)) }
                        }
                    }
                }
            }
            @for (more, first) in lines.more() {
                p { (t.with("bad-lines-more", [("count", more.into()), ("line", first.into())])) }
            }
        }
    }
}
