//! What the user sees: progress, log lines, errors, and Ctrl-C.

use depurate_training::{Monitor, StepReport};
use std::{
    io::IsTerminal,
    ops::ControlFlow,
    process::ExitCode,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use miette::{IntoDiagnostic, Report, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag::{register, register_conditional_shutdown},
};

/// Time between two plain progress lines.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;
/// All bars on the screen, one below the other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Sends the libraries' log to standard error; `RUST_LOG` chooses what.
pub(crate) fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// A line on standard error.
#[expect(clippy::print_stderr, reason = "a program's own progress")]
pub(crate) fn say(text: &str) {
    BARS.suspend(|| eprintln!("{text}"));
}

/// A line on standard output.
#[expect(clippy::print_stdout, reason = "a program's own result")]
pub(crate) fn answer(text: &str) {
    println!("{text}");
}

/// Prints an error and gives the exit code.
pub(crate) fn fail(error: Report, interrupted: bool) -> ExitCode {
    if interrupted {
        say("interrupted; run the same command with --resume to go on");
        return ExitCode::from(INTERRUPTED);
    }
    say(&format!("{error:?}"));
    ExitCode::FAILURE
}

/// Set by Ctrl-C and by termination; a second Ctrl-C ends the program at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Listens for Ctrl-C and termination.
    pub(crate) fn install() -> Result<Self> {
        let flag = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // in this order: the first signal finds the exit not yet armed, and arms it
            register_conditional_shutdown(signal, i32::from(INTERRUPTED), flag.0.clone())
                .into_diagnostic()?;
            register(signal, flag.0.clone()).into_diagnostic()?;
        }
        Ok(flag)
    }

    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Shows a training run or a sampling run: a bar on a terminal, a line every ten seconds elsewhere.
pub(crate) struct Progress<'a> {
    cancel: &'a CancelFlag,
    bar: Option<ProgressBar>,
    name: String,
    last_line: Mutex<Instant>,
    smooth_loss: Mutex<Option<f32>>,
}

impl<'a> Progress<'a> {
    /// For the run called `name` with `total` steps.
    pub(crate) fn new(name: &str, total: u64, cancel: &'a CancelFlag) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(total));
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {eta} {msg}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar
        });
        Self {
            cancel,
            bar,
            name: name.to_owned(),
            last_line: Mutex::new(Instant::now()),
            smooth_loss: Mutex::new(None),
        }
    }

    /// A share done, in [0, 1], of a run of `total` steps.
    pub(crate) fn share(&self, share: f64) -> ControlFlow<()> {
        if let Some(bar) = &self.bar {
            bar.set_position((share * bar.length().unwrap_or(0) as f64) as u64);
        } else if self.line_is_due() {
            say(&format!("{}: {:.0} %", self.name, share * 100.0));
        }
        if self.cancel.is_set() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// The mean of the last hundred or so losses, if there was a step.
    pub(crate) fn loss(&self) -> Option<f32> {
        *locked(&self.smooth_loss)
    }

    /// Clears the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line_is_due(&self) -> bool {
        let mut last_line = locked(&self.last_line);
        let due = last_line.elapsed() >= LOG_EVERY;
        if due {
            *last_line = Instant::now();
        }
        due
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Monitor for Progress<'_> {
    fn cancelled(&self) -> bool {
        self.cancel.is_set()
    }

    fn step(&self, report: &StepReport) {
        let smooth = self
            .loss()
            .map_or(report.loss, |loss| loss + 0.02 * (report.loss - loss));
        *locked(&self.smooth_loss) = Some(smooth);
        let text = format!(
            "loss {smooth:.4}, {:.0} samples/s",
            report.samples_per_second
        );
        if let Some(bar) = &self.bar {
            bar.set_position(report.step as u64);
            bar.set_message(text);
        } else if self.line_is_due() {
            say(&format!(
                "{}: step {}/{}, {text}",
                self.name, report.step, report.steps
            ));
        }
    }
}
