//! `depurate calibrate-prompts`: scores of benign prompts on one model.

use std::fs::File;

use depurate::{
    Error,
    cache::Cache,
    error::EXIT_OK,
    scan::Watch,
    screen::{CalibratedPrompts, Input, Inputs, PromptCalibrateSettings, calibrate_prompts},
};
use depurate_defense::calibration::prompts::{ENOUGH_PROMPTS, PromptCalibration};

use super::{
    output, progress::Display, prompt_args::CalibratePromptsArgs, reproduce::CommandLine,
    scan::set_threads, signals::Signals,
};

/// Left-out prompts that are named.
const MOST_NAMED: usize = 10;

/// Calibrates.
pub fn run(args: &CalibratePromptsArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    output::check(Some(&args.output))?;
    set_threads(&args.run)?;
    let inputs = read(args)?;
    let cache = Cache::from_environment();
    let model = args
        .way
        .open(&args.model, &args.layers, &args.run, &cache)?;
    let settings = PromptCalibrateSettings {
        checks: args.detector.clone(),
        preset: args.way.preset,
        all_calls: args.all_calls,
        population: args.population.clone(),
        resume: !args.resume.no_resume,
        command: command(args),
    };
    let display = Display::new(verbose);
    let watch = Watch {
        cancel: &signals.cancel,
        progress: &display,
    };
    let calibrated = calibrate_prompts(&model, &inputs, &settings, &cache, watch);
    display.clear();
    let calibrated = calibrated?;
    let json = serde_json::to_string_pretty(&calibrated.file);
    let json = json.map_err(|source| Error::Json {
        what: "the calibration",
        source,
    })? + "\n";
    output::write(Some(&args.output), json.as_bytes())?;
    tell(&calibrated, args.fpr)?;
    calibrated.close();
    Ok(EXIT_OK)
}

fn read(args: &CalibratePromptsArgs) -> Result<Vec<Input>, Error> {
    let path = &args.prompts;
    let file = File::open(path).map_err(Error::io("open", path))?;
    let inputs = Inputs::new(std::io::BufReader::new(file), args.input);
    let inputs: Result<Vec<Input>, _> = inputs.collect();
    inputs.map_err(Error::io("read", path))
}

/// What the calibration is worth, and what it left out.
fn tell(calibrated: &CalibratedPrompts, fpr: f64) -> Result<(), Error> {
    for calibration in &calibrated.file.calibrations {
        tell_thresholds(calibration, fpr)?;
    }
    let refused = &calibrated.refused;
    for refusal in refused.iter().take(MOST_NAMED) {
        output::say(&format!(
            "left out, line {}: {}",
            refusal.line, refusal.reason
        ));
    }
    if let Some(more @ 1..) = refused.len().checked_sub(MOST_NAMED) {
        output::say(&format!("left out, {more} more"));
    }
    if calibrated.repeats > 0 {
        let repeats = calibrated.repeats;
        output::say(&format!(
            "{repeats} prompts stood there before: each counts once"
        ));
    }
    Ok(())
}

fn tell_thresholds(calibration: &PromptCalibration, fpr: f64) -> Result<(), Error> {
    let (detector, n) = (&calibration.detector, calibration.entries.len());
    output::say(&format!("{detector}: {n} benign prompts"));
    for stratum in calibration.strata(fpr)? {
        let (fewest, most) = stratum.tokens;
        let fitted = calibration.threshold(fewest, fpr)?.fitted;
        output::say(&format!(
            "  {fewest} to {most} tokens: {} prompts, threshold {:.5}, stated rate {:.4}",
            fitted.n, fitted.threshold, fitted.stated_fpr
        ));
    }
    if n < ENOUGH_PROMPTS {
        output::say(&format!(
            "warning: fewer than {ENOUGH_PROMPTS} prompts; with these no verdict is stated"
        ));
    }
    Ok(())
}

fn command(args: &CalibratePromptsArgs) -> String {
    let names: Vec<&str> = args.detector.iter().map(|check| check.as_str()).collect();
    let way = &args.way;
    let line = CommandLine::new("calibrate-prompts")
        .word(&args.model)
        .layers(&args.layers.layers())
        .path("--prompts", Some(&args.prompts))
        .path("-o", Some(&args.output))
        .option("--population", &args.population)
        .option("--detector", names.join(","))
        .option("--preset", way.preset.as_str())
        .option("--steps", way.steps.to_string())
        .option("--guidance", way.guidance.to_string())
        .option("--seed", args.run.seed.to_string());
    let line = match way.reduction {
        Some(reduction) => line.option("--reduction", reduction.to_string()),
        None => line,
    };
    let line = if args.all_calls {
        line.word("--all-calls")
    } else {
        line
    };
    line.into_string()
}
