//! Previews of jobs that wait for a confirmation. Each preview has a random token, which begins
//! only one job. If a confirmation arrives twice, the second one leads to the job that the first
//! one began.

use std::collections::VecDeque;

/// Maximum number of previews that are remembered. The oldest is forgotten first.
const REMEMBERED: usize = 1000;

/// A preview that an operator has seen.
struct Preview {
    token: String,
    /// Number of jobs that had begun when the preview was shown.
    jobs: u64,
    /// ID of the job that the preview's confirmation began.
    job: Option<String>,
}

/// Previews of this server.
#[derive(Default)]
pub(super) struct Previews(VecDeque<Preview>);

/// Use of a preview.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The preview was not confirmed yet. It was shown when this many jobs had begun.
    New(u64),
    /// The preview was confirmed, and began the job with this ID.
    Begun(String),
    /// The server has forgotten the preview, or never showed it.
    Unknown,
}

impl Previews {
    /// Adds a preview that is shown when `jobs` jobs have begun.
    pub(super) fn add(&mut self, token: String, jobs: u64) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Preview { token, jobs, job: None });
    }

    pub(super) fn used(&self, token: &str) -> Use {
        match self.0.iter().find(|preview| preview.token == token) {
            Some(Preview { job: Some(job), .. }) => Use::Begun(job.clone()),
            Some(preview) => Use::New(preview.jobs),
            None => Use::Unknown,
        }
    }

    /// Notes the job that the confirmation of a preview has begun.
    pub(super) fn began(&mut self, token: &str, job: &str) {
        if let Some(preview) = self.0.iter_mut().find(|preview| preview.token == token) {
            preview.job = Some(job.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_begins_one_job_and_is_forgotten_after_many_others() {
        let mut previews = Previews::default();
        previews.add("one".into(), 3);
        assert_eq!((previews.used("one"), previews.used("two")), (Use::New(3), Use::Unknown));
        previews.began("one", "7-1");
        assert_eq!(previews.used("one"), Use::Begun("7-1".into()));
        (0..REMEMBERED).for_each(|number| previews.add(number.to_string(), 4));
        assert_eq!((previews.used("one"), previews.used("0")), (Use::Unknown, Use::New(4)));
    }
}
