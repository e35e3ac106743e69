//! The command line.

mod args;
mod calibrate;
mod calibrate_prompts;
mod diagnostic;
mod explain;
mod inspect;
mod output;
mod progress;
mod prompt_args;
mod prompts;
mod repair;
mod reproduce;
mod sample;
mod scan;
mod screen;
mod signals;

use std::{panic::AssertUnwindSafe, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use depurate::error::{EXIT_ERROR, EXIT_OK};
use tracing_subscriber::{EnvFilter, fmt::time};

use args::{Cli, Command};
use signals::Signals;

/// Parses the arguments, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    // a panic is a defect of this program; its message is on stderr, and the code is that of an internal error
    let code = std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        output::say("depurate failed inside; please report the message above with the command that led to it");
        EXIT_ERROR
    });
    ExitCode::from(code)
}

fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // help and version go to stdout with code 0, usage errors to stderr with code 2
            let code = if error.use_stderr() {
                EXIT_ERROR
            } else {
                EXIT_OK
            };
            let _ = error.print();
            return code;
        }
    };
    diagnostic::install();
    log(cli.verbose);
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(error),
    };
    let result = match cli.command {
        Command::Scan(args) => scan::run(args, cli.verbose, &signals),
        Command::Repair(args) => repair::run(&args, cli.verbose, &signals),
        Command::Inspect(args) => inspect::run(&args),
        Command::Report(args) => scan::render(&args),
        Command::Explain(args) => explain::run(args.id.as_deref()),
        Command::Sample(args) => sample::run(args, cli.verbose, &signals),
        Command::Calibrate(args) => calibrate::run(args, cli.verbose, &signals),
        Command::Screen(args) => screen::run(&args, &signals),
        Command::CalibratePrompts(args) => calibrate_prompts::run(&args, cli.verbose, &signals),
        Command::Completions { shell } => completions(shell),
    };
    match result {
        Ok(code) => code,
        Err(depurate::Error::Interrupted) => {
            output::say("interrupted; the same command goes on where this one stopped");
            signals.exit_code().unwrap_or(EXIT_ERROR)
        }
        Err(error) => fail(error),
    }
}

/// Shows an error and gives its exit code.
fn fail(error: depurate::Error) -> u8 {
    let code = error.exit_code();
    diagnostic::show(error);
    code
}

fn completions(shell: clap_complete::Shell) -> Result<u8, depurate::Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "depurate", &mut script);
    output::write(None, &script)?;
    Ok(EXIT_OK)
}

/// Messages of the libraries, on stderr. `RUST_LOG` wins over `-v`.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let builder = builder
        .with_ansi(output::stderr_is_colourful())
        .with_target(verbose > 1);
    match verbose {
        0 | 1 => builder.without_time().init(),
        _ => builder.with_timer(time::uptime()).init(),
    }
}
