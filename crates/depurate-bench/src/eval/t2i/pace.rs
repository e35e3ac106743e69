//! How fast prompts are scored.

use std::time::{Duration, Instant};

use crate::console::say;

/// Time between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// Says how fast a model's prompts are scored, and how long the rest takes.
pub(crate) struct Pace {
    name: String,
    total: usize,
    done: usize,
    start: Instant,
    last: Option<Instant>,
}

impl Pace {
    /// For `total` prompts under a name.
    pub(crate) fn new(name: String, total: usize) -> Self {
        say(&format!("{name}: {total} prompts"));
        Self {
            name,
            total,
            done: 0,
            start: Instant::now(),
            last: None,
        }
    }

    /// So many more are done.
    pub(crate) fn advance(&mut self, count: usize) {
        self.done += count;
        let is_due = self.last.is_none_or(|last| last.elapsed() >= SAY_EVERY);
        if is_due || self.done == self.total {
            self.last = Some(Instant::now());
            let rate = self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
            let left = (self.total - self.done.min(self.total)) as f64 / rate;
            say(&format!(
                "{}: {} of {}, {rate:.2} prompts/s, {:.1} min left",
                self.name,
                self.done,
                self.total,
                left / 60.0
            ));
        }
    }
}
