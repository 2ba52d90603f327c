//! Imports a CSV file in two steps: first a preview of the changes, then, after the operator
//! confirms, the import. Between the steps, the file stays in memory, and only its uploader can
//! confirm it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{DefaultBodyLimit, Multipart, State, multipart::MultipartError},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{
    OperatorForm, Visitor, grouped,
    page::{self, Frame, Tone},
    plain,
};
use crate::{
    admin::{
        Shared,
        session::{self, SessionKey},
    },
    psk::EnrollmentOutline,
    store::ImportReport,
    table_file::{self, BadLines, Enrollments, Feedback, Import, ImportFileError, Imported, Input},
};

/// Maximum size of a file in bytes; enough for about 500,000 devices.
const MAX_FILE: usize = 16 << 20;
/// Maximum size of the form's other fields, in bytes.
const REST: usize = 64 << 10;
/// Maximum number of files that wait for confirmation; a new one replaces the oldest.
const MOST: usize = 4;
/// Time for which a file waits for confirmation.
const KEPT: Duration = Duration::from_secs(600);

pub(super) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_FILE + REST)
}

/// Maximum number of files that are received or imported at once. Each is in memory.
const MOST_AT_ONCE: usize = 4;

/// Previewed files that wait for confirmation, and places for files that are being received.
pub(super) struct Uploads {
    previewed: Mutex<VecDeque<Upload>>,
    receiving: Semaphore,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { previewed: Mutex::default(), receiving: Semaphore::new(MOST_AT_ONCE) }
    }
}

struct Upload {
    token: String,
    owner: SessionKey,
    at: Instant,
    file: CsvFile,
}

/// An uploaded file. It may hold secrets.
struct CsvFile {
    name: String,
    bytes: Zeroizing<Vec<u8>>,
    /// Enrollment of rows that name none.
    enrollment: String,
}

impl Uploads {
    fn keep(&self, token: String, owner: SessionKey, file: CsvFile) {
        let mut all = self.previewed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|upload| now < upload.at + KEPT);
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back(Upload { token, owner, at: now, file });
    }

    fn take(&self, token: &str, owner: &SessionKey) -> Option<CsvFile> {
        let mut all = self.previewed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|upload| now < upload.at + KEPT);
        let index =
            all.iter().position(|upload| upload.owner == *owner && session::same(&upload.token, token))?;
        all.remove(index).map(|upload| upload.file)
    }
}

pub(super) async fn ask(State(shared): State<Arc<Shared>>, frame: Frame, visitor: Visitor) -> Response {
    show(&shared, &frame, &visitor, StatusCode::OK, &html! {})
}

fn show(shared: &Shared, frame: &Frame, visitor: &Visitor, status: StatusCode, result: &Markup) -> Response {
    let enrollments = shared.enrollments();
    let body = html! {
        h1 { "Import" }
        (result)
        @if visitor.is_operator() { (form(frame, visitor, &enrollments)) }
        @else { (page::message(Tone::Note, "Only operators can import", &html! { p { "You are signed in as a viewer." } })) }
    };
    (status, frame.page("Import", Some(visitor), "/import", &body)).into_response()
}

fn form(frame: &Frame, visitor: &Visitor, enrollments: &[EnrollmentOutline]) -> Markup {
    html! {
        form.card.stack method="post" action="/import" enctype="multipart/form-data" {
            // Placed before the file, because the token is checked before the file is read.
            (frame.hidden(visitor))
            label for="file" { "CSV file" }
            input #file type="file" name="file" accept=".csv,.txt,.jsonl,text/csv,text/plain" required aria-describedby="file-hint";
            p.hint #file-hint { "Up to 16 MiB; import larger files with " code { "certdist import" } ". The first line is a header, in which only "
                code { "deviceId" } " is required: " code { "deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk" } }
            label for="enrollment" { "Enrollment of lines without one" }
            select #enrollment name="enrollment" {
                @if enrollments.len() > 1 { option value="" { "each line has its own" } }
                @for enrolled in enrollments { option value=(enrolled.name) { (enrolled.name) } }
            }
            button type="submit" { "Preview" }
            p.hint { "Shows what would change, and changes nothing yet." }
        }
    }
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
    let Ok(_receiving) = shared.pages.uploads.receiving.try_acquire() else {
        let text = "Other files are being sent and imported. Try again when they are finished, or use `certdist import`.";
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let Received { file, dry_run } = match receive(&frame, &visitor, form).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    let enrollments = match enrollments(&shared, &file.enrollment) {
        Ok(enrollments) => enrollments,
        Err(sentence) => return complain(&shared, &frame, &visitor, &sentence),
    };
    let dry_run = dry_run || !visitor.is_script();
    let (file, outcome) = run(&shared, &visitor, file, enrollments, dry_run).await;
    match (outcome, &visitor.session) {
        (Ok(Imported { id, report, mut remarks }), None) => {
            remarks.extend(id.map(|id| format!("to undo this import: certdist import undo {id}")));
            log_import(&visitor, &file, report, dry_run);
            let notes = remarks.iter().map(|remark| format!("\nnote: {remark}"));
            plain(StatusCode::OK, sentence(report, dry_run) + &notes.collect::<String>())
        }
        (Ok(Imported { report, remarks, .. }), Some((owner, _))) => {
            let Ok(token) = session::token() else {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            };
            let result = preview(&frame, &visitor, &file, (report, &remarks), &token);
            shared.pages.uploads.keep(token, *owner, file);
            show(&shared, &frame, &visitor, StatusCode::OK, &result)
        }
        (Err(error), _) => refused(&shared, &frame, &visitor, &file, &error),
    }
}

pub(super) async fn confirm(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let (frame, visitor) = (sent.frame, sent.visitor);
    let file =
        visitor.session.as_ref().and_then(|(owner, _)| shared.pages.uploads.take(&sent.fields.upload, owner));
    let Some(file) = file else {
        return complain(
            &shared,
            &frame,
            &visitor,
            "The file is no longer here: it was already imported, or the confirmation came too late. Send it again.",
        );
    };
    let enrollments = match enrollments(&shared, &file.enrollment) {
        Ok(enrollments) => enrollments,
        Err(sentence) => return complain(&shared, &frame, &visitor, &sentence),
    };
    let (file, outcome) = run(&shared, &visitor, file, enrollments, false).await;
    match outcome {
        Ok(Imported { id, report, remarks }) => {
            log_import(&visitor, &file, report, false);
            let text = html! { (notes(&remarks)) p { (file.name) ": " (sentence(report, false)) "." }
            @if let Some(id) = id { p { "To undo this import: " code { "certdist import undo " (id) } } } p { a href="/enrollments" { "Progress of the enrollments" } } };
            show(&shared, &frame, &visitor, StatusCode::OK, &page::message(Tone::Good, "Imported", &text))
        }
        Err(error) => refused(&shared, &frame, &visitor, &file, &error),
    }
}

fn log_import(visitor: &Visitor, file: &CsvFile, report: ImportReport, dry_run: bool) {
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
    file: CsvFile,
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
    Ok(Received { file: CsvFile { name, bytes, enrollment }, dry_run })
}

fn unreadable(frame: &Frame, visitor: &Visitor, error: &MultipartError) -> Response {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let text = "The file is larger than 16 MiB. Import it with `certdist import`, which works beside a running server.";
        if visitor.is_script() {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, text);
        }
        let body = html! { h1 { "Import" } (page::message(Tone::Bad, "The file is too large", &html! { p { (text) } p { a href="/import" { "Back" } } })) };
        return (StatusCode::PAYLOAD_TOO_LARGE, frame.page("Import", Some(visitor), "/import", &body))
            .into_response();
    }
    plain(StatusCode::BAD_REQUEST, "could not read the form; send it as multipart/form-data")
}

fn enrollments(shared: &Shared, default: &str) -> Result<Enrollments, String> {
    let known = Enrollments::new(shared.enrollments());
    if default.is_empty() {
        Ok(known)
    } else {
        known.with_default(default).map_err(|error| error.to_string())
    }
}

async fn run(
    shared: &Shared,
    visitor: &Visitor,
    file: CsvFile,
    enrollments: Enrollments,
    dry_run: bool,
) -> (CsvFile, Result<Imported, ImportFileError>) {
    let (store, by) = (shared.sources.store.clone(), visitor.actor());
    let work = move || {
        let how = Import { enrollments: &enrollments, by: &by, dry_run, ignores_unknown: false };
        let input = Input {
            name: file.name.as_ref(),
            size: file.bytes.len() as u64,
            is_stream: false,
            reader: Box::new(&file.bytes[..]),
        };
        let feedback = Feedback { progress: &mut |_, _| (), bad_line: &mut |_, _| () };
        let outcome = table_file::import(&*store, vec![input], how, feedback);
        (file, outcome)
    };
    // The work does not panic; if it did, only this task would end.
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn sentence(report: ImportReport, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    format!(
        "{} devices {would}added, {} {would}changed, {} unchanged",
        grouped(report.added),
        grouped(report.changed),
        grouped(report.unchanged)
    )
}

/// Shows what the operator should know about a file.
fn notes(remarks: &[String]) -> Markup {
    html! {
        @if !remarks.is_empty() {
            ul { @for remark in remarks { li { (remark) } } }
        }
    }
}

fn preview(
    frame: &Frame,
    visitor: &Visitor,
    file: &CsvFile,
    (report, remarks): (ImportReport, &[String]),
    token: &str,
) -> Markup {
    let text = html! {
        p { b { (file.name) } ": " (sentence(report, true)) "." }
        (notes(remarks))
        @if report.added + report.changed == 0 {
            p { "The table already has all of it." }
        } @else {
            form method="post" action="/import/confirm" {
                (frame.hidden(visitor))
                input type="hidden" name="upload" value=(token);
                button type="submit" { "Import it" }
            }
        }
    };
    page::message(Tone::Note, "Nothing has changed yet", &text)
}

fn complain(shared: &Shared, frame: &Frame, visitor: &Visitor, sentence: &str) -> Response {
    if visitor.is_script() {
        return plain(StatusCode::UNPROCESSABLE_ENTITY, sentence);
    }
    let result = page::message(Tone::Bad, "Nothing was imported", &html! { p { (sentence) } });
    show(shared, frame, visitor, StatusCode::UNPROCESSABLE_ENTITY, &result)
}

fn refused(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    file: &CsvFile,
    error: &ImportFileError,
) -> Response {
    let lines = match error {
        ImportFileError::Lines { files } => match &files[..] {
            [file] => &file.lines,
            _ => return complain(shared, frame, visitor, &error.to_string()),
        },
        ImportFileError::Store(error) => return frame.store_failed(visitor, error),
        ImportFileError::Read { error, .. } => return complain(shared, frame, visitor, &error.to_string()),
    };
    if visitor.is_script() {
        return plain(StatusCode::UNPROCESSABLE_ENTITY, format!("nothing was imported\n{lines}"));
    }
    let result = page::message(Tone::Bad, "Nothing was imported", &bad_lines(&file.name, lines));
    show(shared, frame, visitor, StatusCode::UNPROCESSABLE_ENTITY, &result)
}

fn bad_lines(name: &str, lines: &BadLines) -> Markup {
    let count = lines.count();
    html! {
        p { b { (name) } " has " (grouped(count)) (if count == 1 { " bad line" } else { " bad lines" })
            ". Fix them and send the file again." }
        table.stacked {
            thead { tr { th scope="col" { "Line" } th scope="col" { "Column" } th scope="col" { "What is wrong, and what is expected" } } }
            tbody {
                @for error in &lines.listed {
                    tr {
                        th scope="row" { (error.line) }
                        td data-label="Column" { (error.column.unwrap_or("–")) }
                        td data-label="Reason" { (error.reason) }
                    }
                }
            }
        }
        @for (more, first) in lines.more() { p { "And " (grouped(more)) " more like line " (grouped(first)) "." } }
    }
}
