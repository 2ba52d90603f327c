//! A progress bar for what takes longer than a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work that may not need a bar.
pub(super) struct Progress {
    started: Instant,
    unit: &'static str,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Work that begins now, counted in `unit`.
    pub(super) fn new(unit: &'static str) -> Self {
        Self { started: Instant::now(), unit, bar: None }
    }

    /// So much of it is done.
    pub(super) fn set(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.started.elapsed() < Duration::from_secs(1) {
            return;
        }
        let unit = self.unit;
        let bar = self.bar.get_or_insert_with(|| {
            let style = format!("{{bar:40}} {{percent}}% {{pos}}/{{len}} {unit} {{eta}} left");
            let style = ProgressStyle::with_template(&style);
            ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
