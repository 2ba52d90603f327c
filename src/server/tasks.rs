//! Work in progress of a worker. Each piece is polled on the worker's own thread when it can
//! continue. In an earlier version, the runtime's threads polled the work and passed the results
//! back. This exchange between threads took a fifth of the server's time while many certificates
//! were issued for the first time.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Identifies a piece of work.
pub(super) type TaskId = u64;

/// Receiver of notices that work can continue.
pub(super) trait Notify: Send + Sync + 'static {
    /// Notifies that a task can continue. May be called from any thread, and more often
    /// than needed.
    fn notify(&self, task: TaskId);
}

struct Wakeup<N> {
    task: TaskId,
    notify: N,
    /// Set between a notice and the next poll, so that at most one notice per piece of work is
    /// waiting.
    notified: AtomicBool,
}

impl<N: Notify> Wake for Wakeup<N> {
    fn wake(self: Arc<Self>) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            self.notify.notify(self.task);
        }
    }
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Work in progress.
pub(super) struct Tasks<T, N> {
    tasks: HashMap<TaskId, Task<T, N>>,
    next: TaskId,
}

struct Task<T, N> {
    work: Work<T>,
    wakeup: Arc<Wakeup<N>>,
    waker: Waker,
}

impl<T, N: Notify> Tasks<T, N> {
    pub(super) fn new() -> Self {
        Self { tasks: HashMap::new(), next: 0 }
    }

    /// Adds a piece of work without polling it. The caller must poll it once, because nothing wakes
    /// work that was never polled.
    pub(super) fn add(&mut self, work: Work<T>, notify: N) -> TaskId {
        let task = self.next;
        self.next += 1;
        let wakeup = Arc::new(Wakeup { task, notify, notified: AtomicBool::new(false) });
        let waker = Waker::from(wakeup.clone());
        self.tasks.insert(task, Task { work, wakeup, waker });
        task
    }

    /// Returns whether all work is done.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Polls a piece of work. Returns its result if it is done.
    pub(super) fn poll(&mut self, task: TaskId) -> Option<T> {
        let Task { work, wakeup, waker } = self.tasks.get_mut(&task)?;
        // The flag is cleared before the poll, so that any later event sends a notice again.
        wakeup.notified.store(false, Ordering::Release);
        match work.as_mut().poll(&mut Context::from_waker(waker)) {
            Poll::Ready(result) => {
                self.tasks.remove(&task);
                Some(result)
            }
            Poll::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use tokio::sync::oneshot;

    use super::*;

    impl Notify for Sender<TaskId> {
        fn notify(&self, task: TaskId) {
            self.send(task).unwrap();
        }
    }

    #[test]
    fn work_continues_when_what_it_waits_for_has_happened() {
        let (notify, notified) = channel();
        let mut tasks = Tasks::new();
        let (first, answer) = oneshot::channel::<u32>();
        let one = tasks.add(Box::pin(async { answer.await.unwrap() }), notify.clone());
        let two = tasks.add(Box::pin(std::future::pending()), notify);
        assert_eq!((tasks.poll(one), tasks.poll(two)), (None, None));
        assert!(notified.try_recv().is_err());
        first.send(7).unwrap();
        assert_eq!(notified.try_recv(), Ok(one));
        assert_eq!(tasks.poll(one), Some(7));
        assert_eq!(tasks.poll(one), None, "it is done");
    }

    #[test]
    fn many_wakeups_send_one_notice_until_the_work_is_polled() {
        let (notify, notified) = channel();
        let mut tasks = Tasks::new();
        let (sender, waker) = channel();
        let work = std::future::poll_fn(move |context| {
            sender.send(context.waker().clone()).unwrap();
            Poll::<()>::Pending
        });
        let task = tasks.add(Box::pin(work), notify);
        for _ in 0..2 {
            assert_eq!(tasks.poll(task), None);
            let waker = waker.recv().unwrap();
            (0..100).for_each(|_| waker.wake_by_ref());
            assert_eq!(notified.try_iter().collect::<Vec<_>>(), [task]);
        }
    }
}
