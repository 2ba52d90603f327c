//! Shows progress on a terminal, for work that takes longer than a second. Other lines on standard
//! error, such as log lines, appear above the progress bar.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time after which progress is shown. Shorter work shows no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// The progress bar on the terminal, if one is shown.
static ON_TERMINAL: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn on_terminal() -> MutexGuard<'static, Option<ProgressBar>> {
    ON_TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bar that stays on the terminal until this value is dropped.
pub(super) struct Shown(ProgressBar);

impl Shown {
    pub(super) fn new(bar: &ProgressBar) -> Self {
        *on_terminal() = Some(bar.clone());
        Self(bar.clone())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        *on_terminal() = None;
        self.0.finish_and_clear();
    }
}

/// Standard error, for whole lines. A progress bar is removed while a line is written, and then
/// drawn again.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().write(bytes);
        match &*on_terminal() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Returns the style of a bar: a spinner, followed by an indicatif template.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(&format!("{{spinner}} {template}"))
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A progress bar, removed when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    since: Instant,
    shown: Option<Shown>,
}

impl Progress {
    /// Creates a bar that shows a spinner, followed by an indicatif template.
    pub(super) fn new(template: &str) -> Self {
        let bar =
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style(template));
        Self { bar, since: Instant::now(), shown: None }
    }

    /// Begins the next stage of the work, which has its own template.
    pub(super) fn next(&mut self, template: &str) {
        self.bar.reset();
        self.bar.set_style(style(template));
    }

    /// Increases the amount of work that is done.
    pub(super) fn add(&mut self, more: u64) {
        if self.shown.is_none() && self.since.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = Some(Shown::new(&self.bar));
        }
        self.bar.inc(more);
    }

    /// Sets the amount of work that is done, and the total.
    pub(super) fn set(&mut self, done: u64, total: u64) {
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
                    let _shown = Shown::new(&bar);
                    // `recv` returns when `done` is dropped.
                    let _ = is_done.recv();
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

/// Progress bars of work in several stages. A bar is removed when the next stage begins.
#[derive(Default)]
pub(super) struct Stages(Option<(&'static str, Progress)>);

impl Stages {
    /// Sets the amount of work that is done in a stage, and the stage's total. The template
    /// identifies the stage.
    pub(super) fn set(&mut self, template: &'static str, done: u64, total: u64) {
        let is_same = |(shown, progress): &(&'static str, Progress)| {
            *shown == template && progress.bar.position() <= done
        };
        if !self.0.as_ref().is_some_and(is_same) {
            // The former bar is removed from the terminal before the next one appears.
            self.0 = None;
            self.0 = Some((template, Progress::new(template)));
        }
        if let Some((_, progress)) = &mut self.0 {
            progress.set(done, total);
        }
    }
}

/// A writer that counts the bytes that it writes.
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

#[cfg(test)]
mod tests {
    use indicatif::{InMemoryTerm, TermLike};

    use super::*;

    #[test]
    fn each_stage_of_a_bar_begins_at_its_beginning() {
        let mut progress = Progress::new("reading {pos}/{len}");
        progress.set(8, 10);
        progress.next("writing {pos}/{len}");
        progress.set(3, 20);
        assert_eq!((progress.bar.position(), progress.bar.length()), (3, Some(20)));
    }

    /// The test draws a bar on a terminal in memory, and writes a line to this terminal while the
    /// bar is suspended.
    #[test]
    fn a_line_goes_above_the_bar_and_the_bar_is_drawn_again() {
        let terminal = InMemoryTerm::new(5, 40);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(10), target)
            .with_style(ProgressStyle::with_template("{pos} of {len}").unwrap());
        bar.set_position(3);
        let shown = Shown::new(&bar);
        assert_eq!(terminal.contents(), "3 of 10");
        match &*on_terminal() {
            Some(bar) => bar.suspend(|| {
                assert_eq!(terminal.contents(), "");
                terminal.write_line("a line").unwrap();
            }),
            None => panic!("it is on the terminal"),
        }
        assert_eq!(terminal.contents(), "a line\n3 of 10");
        drop(shown);
        assert_eq!(terminal.contents(), "a line");
        assert!(on_terminal().is_none());
    }
}
