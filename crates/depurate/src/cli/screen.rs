//! `depurate screen`: one JSON object a prompt, as prompts come.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use depurate::{
    Error,
    cache::Cache,
    error::{EXIT_ERROR, EXIT_FINDING, EXIT_OK, EXIT_UNCHECKED},
    screen::{Calls, PromptModel, ScreenSettings, Screener, Screening},
};
use depurate_checkpoint::Limits;
use depurate_report::Verdict;

use super::{
    args::OnInconclusive, output, prompt_args::ScreenArgs, prompts::Stream, scan::set_threads,
    signals::Signals,
};

/// Screens every prompt; the exit code is that of the gravest.
pub fn run(args: &ScreenArgs, signals: &Signals) -> Result<u8, Error> {
    set_threads(&args.run)?;
    let stream = Stream::open(&args.source, args.input)?;
    let cache = Cache::from_environment();
    let choice = args.way.choice(&args.run);
    let (device, limits) = (args.run.device, Limits::default());
    let model = PromptModel::open(&args.model, &choice, device, &limits, cache.hashes())?;
    let settings = ScreenSettings {
        checks: args.detector.clone(),
        preset: args.way.preset,
        calibration: args.calibration.as_deref(),
        target_fpr: args.fpr,
    };
    let screener = Screener::new(model, &settings)?;
    let mut counts = BTreeMap::new();
    let ended = screen_all(&screener, &stream, signals, &mut counts);
    output::say(&summary(&counts));
    match ended {
        Ok(()) => Ok(exit_code(args, &counts)),
        Err(Error::Interrupted) => Ok(signals.exit_code().unwrap_or(EXIT_ERROR)),
        Err(error) => Err(error),
    }
}

/// Prints a line for each prompt, and counts verdicts.
fn screen_all(
    screener: &Screener,
    stream: &Stream,
    signals: &Signals,
    counts: &mut BTreeMap<Verdict, usize>,
) -> Result<(), Error> {
    while let Some(input) = stream.next(&signals.cancel)? {
        let screened = screener.screen(&input, Calls::Needed, &signals.cancel)?;
        *counts.entry(screened.screening.verdict).or_default() += 1;
        if !print(&screened.screening)? {
            break;
        }
    }
    Ok(())
}

/// Prints a result at once; `false` if nobody reads any more.
fn print(screening: &Screening) -> Result<bool, Error> {
    let line = serde_json::to_string(screening).map_err(|source| Error::Json {
        what: "a result",
        source,
    })?;
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("write", "standard output")(error)),
    }
}

fn summary(counts: &BTreeMap<Verdict, usize>) -> String {
    let all: usize = counts.values().sum();
    let parts = counts.iter().rev();
    let parts: Vec<String> = parts
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    let prompts = if all == 1 { "prompt" } else { "prompts" };
    match parts.as_slice() {
        [] => "no prompts".into(),
        parts => format!("{all} {prompts}: {}", parts.join(", ")),
    }
}

fn exit_code(args: &ScreenArgs, counts: &BTreeMap<Verdict, usize>) -> u8 {
    let fail_on = args.fail_on.verdict();
    let undecided = counts.contains_key(&Verdict::Inconclusive);
    if counts.keys().any(|verdict| verdict.reaches(fail_on)) {
        EXIT_FINDING
    } else if counts.is_empty() || undecided && args.on_inconclusive == OnInconclusive::Fail {
        EXIT_UNCHECKED
    } else {
        EXIT_OK
    }
}
