//! Previews of jobs that wait for a confirmation. Each preview has a random token, which begins only
//! one job. If a confirmation arrives twice, the second one leads to the job that the first one began.
//! The previews are in the table, so that any server of the table can take the confirmation. While the
//! table accepts no writes, each server keeps its own previews in memory.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{Job, Jobs, NotBegun, Order, lock};
use crate::{
    admin::session,
    psk::EnrollmentOutline,
    registrar::Targets,
    store::{
        StoreError, Table, UnixSeconds,
        shelf::{ItemKind, ShelfLimits},
        unix_now,
    },
};

/// Limits of the previews that are remembered.
const LIMITS: ShelfLimits = ShelfLimits { most: 1000, kept: Some(session::LONGEST) };

/// Number of times that a confirmation checks whether another confirmation of the same preview has
/// begun the job, and the pause between two checks.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// State of a preview in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    /// The preview was not confirmed yet. It was shown by the server with this number, after this many
    /// jobs had begun there.
    New { server: String, jobs: u64 },
    /// A server is about to begin the job.
    Beginning,
    /// The preview has begun the job with this ID.
    Begun(String),
}

impl Use {
    fn text(&self) -> Vec<u8> {
        match self {
            Self::New { server, jobs } => format!("new {server} {jobs}"),
            Self::Beginning => "beginning".to_owned(),
            Self::Begun(id) => format!("begun {id}"),
        }
        .into_bytes()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        Some(match (words.next()?, words.next(), words.next()) {
            ("new", Some(server), Some(jobs)) => {
                Self::New { server: server.to_owned(), jobs: jobs.parse().ok()? }
            }
            ("beginning", None, None) => Self::Beginning,
            ("begun", Some(id), None) => Self::Begun(id.to_owned()),
            _ => return None,
        })
    }
}

/// Jobs that an operator knew when a preview was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Seen {
    /// This number of jobs of this server, counted from its first one.
    First(u64),
    /// The jobs that began before this time.
    Before(UnixSeconds),
}

/// Previews that only this server knows. Each has the number of jobs that had begun when it was shown,
/// and the job that it has begun.
#[derive(Default)]
pub(super) struct Unshared(VecDeque<(String, (u64, Option<String>))>);

impl Unshared {
    fn add(&mut self, token: String, known: (u64, Option<String>)) {
        if self.0.len() >= LIMITS.most {
            self.0.pop_front();
        }
        self.0.push_back((token, known));
    }

    /// Removes a preview and returns it, so that only one of several confirmations gets it.
    fn take(&mut self, token: &str) -> Option<(u64, Option<String>)> {
        let at = self.0.iter().position(|(known, _)| known == token)?;
        self.0.remove(at).map(|(_, known)| known)
    }
}

impl Jobs {
    /// Returns the token of a new preview. The token can begin only one job.
    pub(in crate::admin) async fn preview(&self, store: &dyn Table) -> Result<String, StoreError> {
        let token = session::token().map_err(|error| StoreError::Failed(error.to_string()))?;
        let new = Use::New { server: self.number(), jobs: self.begun() };
        let shelved = store.shelve(ItemKind::Preview, session::key_of(&token), new.text(), LIMITS).await;
        if shelved.is_err() {
            let mut all = lock(&self.all);
            let jobs = all.last;
            all.unshared.add(token.clone(), (jobs, None));
        }
        Ok(token)
    }

    /// Begins the job of a confirmed preview, in a task of the current runtime.
    pub(in crate::admin) async fn confirm(
        &self,
        order: Order,
        preview: &str,
        store: Arc<dyn Table>,
        targets: Arc<Targets>,
        enrollments: Arc<Vec<EnrollmentOutline>>,
    ) -> Result<Arc<Job>, NotBegun> {
        let unshared = lock(&self.all).unshared.take(preview);
        if let Some((jobs, job)) = unshared {
            let begun = match job {
                Some(id) => Err(NotBegun::Again(id)),
                None => self.begin(order, Some(Seen::First(jobs)), store, targets, enrollments),
            };
            let id = match &begun {
                Ok(job) => Some(job.id.clone()),
                Err(NotBegun::Again(id)) => Some(id.clone()),
                Err(_) => None,
            };
            lock(&self.all).unshared.add(preview.to_owned(), (jobs, id));
            return begun;
        }
        let key = session::key_of(preview);
        for _ in 0..LOOKS {
            let item = store.shelved(ItemKind::Preview, key).await.map_err(NotBegun::Unrecorded)?;
            let known = item.as_ref().and_then(|item| Some((Use::parse(&item.value)?, item.age)));
            let (new, seen) = match known {
                Some((Use::Begun(id), _)) => return Err(NotBegun::Again(id)),
                Some((Use::Beginning, _)) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Some((Use::New { server, jobs }, _)) if server == self.number() => {
                    (Use::New { server, jobs }, Seen::First(jobs))
                }
                Some((new @ Use::New { .. }, age)) => {
                    let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
                    (new, Seen::Before(unix_now().saturating_sub(age)))
                }
                None => return Err(NotBegun::NotPreviewed),
            };
            let replace =
                |from: &Use, to: &Use| store.replace_item(ItemKind::Preview, key, from.text(), to.text());
            if !replace(&new, &Use::Beginning).await.map_err(NotBegun::Unrecorded)? {
                continue;
            }
            let begun = self.begin(order, Some(seen), store.clone(), targets, enrollments);
            let after = begun.as_ref().map_or(new, |job| Use::Begun(job.id.clone()));
            if let Err(error) = replace(&Use::Beginning, &after).await {
                tracing::warn!(%error, "could not note that a preview was confirmed; show it again to confirm it again");
            }
            return begun;
        }
        Err(NotBegun::NotPreviewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_is_read_as_it_was_written() {
        for one in [
            Use::New { server: "0011".into(), jobs: 7 },
            Use::Beginning,
            Use::Begun("1700000000-0011aabb".into()),
        ] {
            assert_eq!(Use::parse(&one.text()), Some(one));
        }
        for odd in ["", "new", "new a", "new a b", "begun", "beginning now", "other"] {
            assert_eq!(Use::parse(odd.as_bytes()), None, "{odd}");
        }
    }
}
