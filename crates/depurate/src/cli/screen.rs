//! `depurate screen`: one JSON object a prompt, as prompts come.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
};

use depurate::{
    Error,
    cache::Cache,
    error::{EXIT_ERROR, EXIT_FINDING, EXIT_OK, EXIT_UNCHECKED},
    report_dir,
    screen::{Calls, ScreenSettings, Screener, Screening, write_page},
};
use depurate_report::Verdict;

use super::{
    args::OnInconclusive, output, prompt_args::ScreenArgs, prompts::Stream, scan::set_threads,
    signals::Signals,
};

/// Prompts that get a page; the file of a page is some hundred kilobytes large, and nobody looks at thousands.
const MOST_PAGES: usize = 20;

/// Screens every prompt; the exit code is that of the gravest.
pub fn run(args: &ScreenArgs, signals: &Signals) -> Result<u8, Error> {
    set_threads(&args.run)?;
    let stream = Stream::open(&args.source, args.input)?;
    let cache = Cache::from_environment();
    if let Some(dir) = &args.report_dir {
        report_dir::prepare(dir)?;
    }
    let model = args
        .way
        .open(&args.model, &args.layers, &args.run, &cache)?;
    let settings = ScreenSettings {
        checks: args.detector.clone(),
        preset: args.way.preset,
        calibration: args.calibration.as_deref(),
        target_fpr: args.fpr,
    };
    let screener = Screener::new(model, &settings)?;
    let mut counts = BTreeMap::new();
    let dir = args.report_dir.as_deref();
    let ended = screen_all(&screener, &stream, dir, signals, &mut counts);
    output::say(&summary(&counts));
    if let Some(dir) = dir {
        let (prompts, all) = (
            counts.values().sum::<usize>(),
            screener.model().run().calls(),
        );
        output::say(&format!(
            "{} of them with a page in {}: for these the whole run of {all} calls was made, not only what the scores need",
            prompts.min(MOST_PAGES),
            dir.display()
        ));
    }
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
    dir: Option<&Path>,
    signals: &Signals,
    counts: &mut BTreeMap<Verdict, usize>,
) -> Result<(), Error> {
    while let Some(input) = stream.next(&signals.cancel)? {
        let done: usize = counts.values().sum();
        let dir = dir.filter(|_| done < MOST_PAGES);
        let calls = dir.map_or(Calls::Needed, |_| Calls::All);
        let screened = screener.screen(&input, calls, &signals.cancel)?;
        if let Some(dir) = dir {
            write_page(dir, screener, &screened)?;
        }
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
