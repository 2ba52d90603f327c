//! Questions that have arrived together become one statement: a statement for a hundred devices costs
//! little more than one for a single device. A question never waits for others to come: while one
//! statement runs, the next questions gather.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::engine::{Engine, Transactions};
use crate::store::{StoreError, StoreFuture};

/// Maximum number of questions in one statement, and of questions that wait.
const TOGETHER: usize = 512;
const WAITING: usize = 16_384;

/// Maximum number of statements that run at the same time for one kind of question.
const STATEMENTS: usize = 2;

/// The questions of one kind that wait.
pub(super) struct Gather<Q, A>(Arc<Mutex<State<Q, A>>>);

struct State<Q, A> {
    waiting: VecDeque<Waiting<Q, A>>,
    /// Number of tasks that ask, or are about to.
    tasks: usize,
}

struct Waiting<Q, A> {
    question: Q,
    reply: oneshot::Sender<Result<A, StoreError>>,
}

impl<Q, A> Default for Gather<Q, A> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { waiting: VecDeque::new(), tasks: 0 })))
    }
}

fn lock<Q, A>(state: &Mutex<State<Q, A>>) -> MutexGuard<'_, State<Q, A>> {
    // Another thread that has panicked cannot have left the state half changed.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Asks a question soon, together with others. `ask` returns the answers in the order of the
    /// questions. It is the same for all questions of a kind.
    pub(super) fn ask<W>(&self, engine: &Engine, question: Q, ask: W) -> StoreFuture<'static, A>
    where
        W: AsyncFn(&Transactions, Vec<Q>) -> Result<Vec<A>, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let begins = {
            let mut state = lock(&self.0);
            if state.waiting.len() >= WAITING {
                let full = format!("{}: {WAITING} requests are waiting already", engine.database());
                return Box::pin(std::future::ready(Err(StoreError::Busy(full))));
            }
            state.waiting.push_back(Waiting { question, reply });
            let begins = state.tasks < STATEMENTS;
            state.tasks += usize::from(begins);
            begins
        };
        if begins {
            let state = Arc::clone(&self.0);
            let begun = engine.spawn(async move |transactions| answer_all(&state, &transactions, &ask).await);
            if !begun {
                // Dropping the questions answers them.
                let mut state = lock(&self.0);
                state.tasks -= 1;
                state.waiting.clear();
            }
        }
        let gone = StoreError::Busy(format!("{}: the request was given up; try again", engine.database()));
        Box::pin(async move { answer.await.unwrap_or(Err(gone)) })
    }
}

/// Asks until no question waits.
async fn answer_all<Q, A>(
    state: &Mutex<State<Q, A>>,
    transactions: &Transactions,
    ask: &impl AsyncFn(&Transactions, Vec<Q>) -> Result<Vec<A>, StoreError>,
) {
    loop {
        let (questions, replies): (Vec<Q>, Vec<_>) = {
            let mut state = lock(state);
            let count = state.waiting.len().min(TOGETHER);
            if count == 0 {
                state.tasks -= 1;
                return;
            }
            state.waiting.drain(..count).map(|waiting| (waiting.question, waiting.reply)).unzip()
        };
        match ask(transactions, questions).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Sending fails if no one waits any more.
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
        }
    }
}
