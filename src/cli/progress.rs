//! Shows progress on a terminal, for work that takes longer than a second.

use std::{
    io::{self, Write},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time after which progress is shown; shorter work shows none.
const PATIENCE: Duration = Duration::from_secs(1);

/// A progress bar, removed when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    since: Instant,
    is_shown: bool,
}

impl Progress {
    /// Creates a bar with a spinner, followed by an indicatif template.
    pub(super) fn new(template: &str) -> Self {
        let style = ProgressStyle::with_template(&format!("{{spinner}} {template}"));
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self { bar, since: Instant::now(), is_shown: false }
    }

    /// Adds to the amount of work that is done.
    pub(super) fn add(&mut self, more: u64) {
        if !self.is_shown && self.since.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.is_shown = true;
        }
        self.bar.inc(more);
    }

    /// Sets the amount of work that is done, and the total.
    fn set(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.add(done.saturating_sub(self.bar.position()));
    }

    /// Shows a bar while `work` runs. `work` receives a function to report the amount done and
    /// the total.
    pub(super) fn showing<T>(template: &str, work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
        let mut progress = Self::new(template);
        work(&mut |done, total| progress.set(done, total))
    }

    /// Shows a spinner while `work` runs, for work that does not report its progress.
    pub(super) fn during<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if let Err(mpsc::RecvTimeoutError::Timeout) = is_done.recv_timeout(PATIENCE) {
                    let bar = ProgressBar::new_spinner().with_message(what);
                    bar.enable_steady_tick(Duration::from_millis(100));
                    // Returns when the sender is dropped.
                    let _ = is_done.recv();
                    bar.finish_and_clear();
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    /// Wraps a writer, to count the bytes written.
    pub(super) fn counting<W: Write>(&mut self, writer: W) -> Counting<'_, W> {
        Counting { writer, progress: self }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A writer that counts its bytes.
pub(super) struct Counting<'p, W> {
    writer: W,
    progress: &'p mut Progress,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.progress.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
