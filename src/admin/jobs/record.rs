//! Records of jobs in the audit log: one entry when a job begins, and one when it ends. After a
//! restart, the console reads from these entries how a job ended. This module depends on the form
//! of these two entries, but not on how a job runs.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    time::Duration,
};

use super::{Action, How, Job, Order, Progress, Target, began_of};
use crate::store::{
    Actor, StoreError, Table, UnixSeconds,
    audit::{AuditEntry, AuditEvent},
    filter::{Filter, Text},
};

/// Time by which the clocks of two processes of one table may differ, in seconds. The log is
/// searched this far beyond the beginning of a job.
const CLOCKS: UnixSeconds = 3600;

/// Maximum number of jobs that [`unfinished`] returns.
const MOST: usize = 20;

/// Result of a search for a job in the audit log.
pub(in crate::admin) enum Recorded {
    /// The log has the beginning of the job. If the log has no entry about the end, the job has
    /// ended with [`How::Unrecorded`].
    Job(Box<Job>),
    /// The log has no such job.
    None,
    /// The search reached its time limit before it found the entry about the job's beginning.
    TimeUp,
}

/// Returns the entry about the beginning of a job.
pub(super) fn beginning(job: &Job) -> AuditEntry {
    let Order { action, target, expected, by } = &job.order;
    let devices = match target {
        Target::List(_) => "of a list".to_owned(),
        Target::Filter(filter) => words(filter),
    };
    let detail = format!("{}{} {expected} devices, {devices}", prefix(&job.id), action.name());
    AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Began, job.began) }
}

/// Returns the entry about the end of a job.
pub(super) fn end(job: &Job, at: UnixSeconds, how: &How) -> AuditEntry {
    let Progress { changed, unchanged, absent, failed, disabled, refused, .. } = job.progress();
    let how = match how {
        How::Complete => "complete".to_owned(),
        How::More => "more devices match".to_owned(),
        How::Stopped(by) => format!("stopped by {by}"),
        How::ShuttingDown => "the server shut down".to_owned(),
        How::Failed(error) => format!("failed: {error}"),
        How::Unrecorded => String::new(),
    };
    let detail = format!(
        "{}{changed} changed, {unchanged} unchanged, {absent} absent, {failed} failed, {disabled} disabled, \
         {refused} refused; {how}",
        prefix(&job.id)
    );
    AuditEntry { detail: Some(detail), ..job.order.by.entry(AuditEvent::Ended, at) }
}

fn prefix(id: &str) -> String {
    format!("job {id}: ")
}

/// Returns the ID of the job that an entry is about, and the rest of the entry's detail.
fn parts(entry: &AuditEntry) -> Option<(&str, &str)> {
    entry.detail.as_deref()?.strip_prefix("job ")?.split_once(": ")
}

/// Describes the conditions of a filter.
fn words(filter: &Filter) -> String {
    let Filter {
        enrollment,
        product_key,
        state,
        is_registered,
        refusal,
        issued_from,
        issued_before,
        text,
        target,
    } = filter;
    let text = text.as_ref().map(|text| match text {
        Text::Begins(text) => ("begins", text.clone()),
        Text::Ends(text) => ("ends", text.clone()),
        Text::Name(text) => ("name", text.clone()),
        Text::IotId(text) => ("iotId", text.clone()),
    });
    let conditions = [
        enrollment.clone().map(|value| ("enrollment", value)),
        product_key.clone().map(|value| ("product", value)),
        state.map(|state| ("state", state.name().to_owned())),
        is_registered.map(|value| ("registered", value.to_string())),
        refusal.clone().map(|value| ("refusal", value)),
        issued_from.map(|at| ("from", at.to_string())),
        issued_before.map(|at| ("before", at.to_string())),
        text,
        target.clone().map(|value| ("target", value)),
    ];
    let words: Vec<String> =
        conditions.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    if words.is_empty() { "the whole table".to_owned() } else { words.join(" ") }
}

/// Looks a job up in the audit log, for about `time` at most. Blocks the thread.
pub(in crate::admin) fn find(store: &dyn Table, id: &str, time: Duration) -> Result<Recorded, StoreError> {
    let Some(began) = began_of(id) else { return Ok(Recorded::None) };
    let (mut first, mut last) = (None, None);
    let kinds = [AuditEvent::Began, AuditEvent::Ended];
    let is_whole = store.review_audit(&kinds, began.saturating_sub(CLOCKS), time, &mut |entry, _| {
        let detail = parts(&entry).filter(|(job, _)| *job == id).map(|(_, detail)| detail.to_owned());
        match (entry.event, detail) {
            (AuditEvent::Ended, Some(detail)) => last = Some((entry.at, detail)),
            (AuditEvent::Began, Some(detail)) => {
                first = Some((entry, detail));
                return ControlFlow::Break(());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let Some((entry, detail)) = first else {
        return Ok(if is_whole { Recorded::None } else { Recorded::TimeUp });
    };
    let Some(order) = order(&entry, &detail) else { return Ok(Recorded::None) };
    let unrecorded = Progress { end: Some((entry.at, How::Unrecorded)), ..Progress::default() };
    let progress = last.and_then(|(at, detail)| progress(&detail, at)).unwrap_or(unrecorded);
    Ok(Recorded::Job(Box::new(Job::new(id.to_owned(), order, entry.at, progress))))
}

/// Returns the jobs since `since` that have an entry about their beginning, but none about their
/// end, newest first. Searches for about `time` at most. Blocks the thread.
pub(in crate::admin) fn unfinished(
    store: &dyn Table,
    since: UnixSeconds,
    time: Duration,
) -> Result<Vec<Job>, StoreError> {
    let (mut ended, mut jobs) = (HashSet::new(), Vec::new());
    let kinds = [AuditEvent::Began, AuditEvent::Ended];
    store.review_audit(&kinds, since, time, &mut |entry, _| {
        let Some((id, detail)) = parts(&entry) else { return ControlFlow::Continue(()) };
        let (id, detail) = (id.to_owned(), detail.to_owned());
        // The newest entry comes first, so the end of a job comes before its beginning.
        if entry.event == AuditEvent::Ended {
            ended.insert(id);
        } else if !ended.contains(&id)
            && let Some(order) = order(&entry, &detail)
        {
            let progress = Progress { end: Some((entry.at, How::Unrecorded)), ..Progress::default() };
            jobs.push(Job::new(id, order, entry.at, progress));
        }
        if jobs.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(jobs)
}

/// Reads the entry about the beginning of a job. The entry does not have the devices of the job.
fn order(entry: &AuditEntry, detail: &str) -> Option<Order> {
    let mut words = detail.split(' ');
    let action = Action::named(words.next()?)?;
    let expected = words.next()?.parse().ok()?;
    let by = Actor { name: entry.who.clone()?, address: entry.address.clone() };
    Some(Order { action, target: Target::List([].into()), expected, by })
}

/// Reads the entry about the end of a job.
fn progress(detail: &str, at: UnixSeconds) -> Option<Progress> {
    let (counts, how) = detail.split_once("; ")?;
    let mut counts = counts.split(", ").map(|count| count.split_once(' ')?.0.parse::<u64>().ok());
    let mut count = || counts.next().flatten();
    let (changed, unchanged, absent) = (count()?, count()?, count()?);
    let (failed, disabled, refused) = (count()?, count()?, count()?);
    let how = match how {
        "complete" => How::Complete,
        "more devices match" => How::More,
        "the server shut down" => How::ShuttingDown,
        _ => match (how.strip_prefix("stopped by "), how.strip_prefix("failed: ")) {
            (Some(by), _) => How::Stopped(by.to_owned()),
            (_, Some(error)) => How::Failed(error.to_owned()),
            _ => return None,
        },
    };
    let (reasons, end) = (BTreeMap::new(), Some((at, how)));
    Some(Progress { changed, unchanged, absent, failed, disabled, refused, reasons, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_read_as_it_was_written() {
        let by = Actor { name: "console:anna".into(), address: Some("192.0.2.1".into()) };
        let filter = Filter { refusal: Some("odd; 7 changed".into()), ..Filter::default() };
        let order = Order { action: Action::Reset, target: Target::Filter(filter), expected: 7, by };
        let job = Job::new("10-0000000a".into(), order, 10, Progress::default());
        let entry = beginning(&job);
        let expected = "job 10-0000000a: reset 7 devices, refusal=odd; 7 changed";
        assert_eq!(entry.detail.as_deref(), Some(expected));
        let detail = expected.strip_prefix(&prefix(&job.id)).unwrap();
        let read = super::order(&entry, detail).unwrap();
        assert_eq!((read.action, read.expected, read.by), (Action::Reset, 7, job.order.by.clone()));
        for how in [
            How::Complete,
            How::More,
            How::Stopped("console:ben; complete".into()),
            How::ShuttingDown,
            How::Failed("no, the disk is full".into()),
        ] {
            let (disabled, refused) = (5, 6);
            let counts = Progress {
                changed: 4,
                unchanged: 3,
                absent: 2,
                failed: 1,
                disabled,
                refused,
                ..Progress::default()
            };
            job.note(|progress| *progress = counts.clone());
            let detail = end(&job, 12, &how).detail.unwrap();
            let read = progress(detail.strip_prefix(&prefix(&job.id)).unwrap(), 12).unwrap();
            assert_eq!(read, Progress { end: Some((12, how)), ..counts });
        }
    }
}
