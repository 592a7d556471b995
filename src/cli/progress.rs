//! A fetch as a person sees it: a bar on a terminal, a line per step elsewhere.

use std::cell::RefCell;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::models::Observer;

const TEMPLATE: &str = "{msg:18} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, \
                        {decimal_bytes_per_sec}, {eta} left";

/// A bar on stderr, if that is a terminal, in indicatif's `template`.
pub fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // A template that does not parse leaves indicatif's own.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// A [`bar`] for work in stages that have names.
pub struct Stages {
    bar: ProgressBar,
    doing: &'static str,
}

impl Stages {
    /// A bar that appears with the first report.
    pub fn new(template: &str) -> Self {
        Self { bar: bar(template), doing: "" }
    }

    /// So many steps of so many of stage `doing` are done.
    pub fn show(&mut self, doing: &'static str, done: u64, total: u64) {
        if self.doing != doing {
            self.doing = doing;
            tracing::info!("{doing}");
            self.bar.set_message(doing);
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Reports on stderr, so that stdout stays clean for results.
pub struct Terminal {
    bar: ProgressBar,
    step: RefCell<String>,
}

impl Terminal {
    /// A bar that appears with the first report.
    pub fn new() -> Self {
        Self { bar: bar(TEMPLATE), step: RefCell::default() }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Terminal {
    fn notice(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn progress(&self, doing: &str, done: u64, total: u64) {
        if *self.step.borrow() != doing {
            doing.clone_into(&mut self.step.borrow_mut());
            self.bar.set_message(doing.to_owned());
            if self.bar.is_hidden() {
                eprintln!("{doing}: {done} of {total} bytes so far");
            }
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
