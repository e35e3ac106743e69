//! How far the work is: a bar with rate and time left on a terminal, lines under `-v`, else nothing.

use std::{
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use depurate_defense::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{spinner} {msg} [{wide_bar}] {pos}/{len} {per_sec}, {eta} left";

/// Progress on stderr.
pub struct Display {
    bar: Mutex<ProgressBar>,
    on_terminal: bool,
}

impl Display {
    /// A display that shows a bar only on a terminal and only where `verbose` does not print lines.
    pub fn new(verbose: u8) -> Self {
        Self {
            bar: Mutex::new(ProgressBar::hidden()),
            on_terminal: io::stderr().is_terminal() && verbose == 0,
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.with_bar(|bar| bar.finish_and_clear());
    }

    fn with_bar(&self, act: impl FnOnce(&mut ProgressBar)) {
        // the bar is whole even if a thread panicked while it held the lock
        act(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Display {
    fn start(&self, stage: &str, total: u64) {
        tracing::info!(steps = total, "{stage}");
        if !self.on_terminal {
            return;
        }
        self.with_bar(|bar| {
            bar.finish_and_clear();
            *bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar.set_message(stage.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
        });
    }

    fn advance(&self, steps: u64) {
        if self.on_terminal {
            self.with_bar(|bar| bar.inc(steps));
        }
    }
}
