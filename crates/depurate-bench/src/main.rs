//! `depurate-bench`: trains models, puts backdoors in them, and measures.
//!
//! The only program that links the attacks. Exit codes: 0 done, 1 failed, 130 interrupted (a run continues with
//! `--resume`).

mod attack;
mod captions;
mod classifier;
mod console;
mod eval;
mod grid;
mod job;
mod model;
mod population;
mod sample;
mod text_to_image;
mod train;
mod truth;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use miette::IntoDiagnostic as _;

/// Training allocates and frees many large tensors; the system's allocator gives that memory back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains diffusion models, puts backdoors in them, and measures.
#[derive(Debug, Parser)]
#[command(name = "depurate-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a benign model from images.
    Train(train::Train),
    /// Train a benign model further.
    Finetune(train::Finetune),
    /// Put a backdoor in a model.
    #[command(subcommand)]
    Attack(attack::Attack),
    /// Measure how often a trigger works.
    Asr(attack::Asr),
    /// Train every model of a population.
    Population(population::Population),
    /// Train the small classifier whose features compare sets of images.
    Classifier(classifier::Classifier),
    /// Measure against the truth.
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Sample images as a PNG grid.
    Sample(sample::Sample),
    /// Train a small text-to-image model, part by part.
    #[command(subcommand)]
    TextToImage(text_to_image::TextToImageCommand),
}

fn main() -> ExitCode {
    console::start_logging();
    let cancel = match console::CancelFlag::install() {
        Ok(cancel) => cancel,
        Err(error) => return console::fail(error, false),
    };
    let command = Cli::parse().command;
    // this thread works too: every kernel has one thread less to wake
    let threads = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
    if let Err(error) = threads.into_diagnostic() {
        return console::fail(error, false);
    }
    let done = match command {
        Command::Train(command) => command.run(&cancel),
        Command::Finetune(command) => command.run(&cancel),
        Command::Attack(command) => command.run(&cancel),
        Command::Asr(command) => command.run(&cancel),
        Command::Population(command) => command.run(&cancel),
        Command::Classifier(command) => command.run(&cancel),
        Command::Eval(command) => command.run(&cancel),
        Command::Sample(command) => command.run(&cancel),
        Command::TextToImage(command) => command.run(&cancel),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::fail(error, cancel.is_set()),
    }
}
