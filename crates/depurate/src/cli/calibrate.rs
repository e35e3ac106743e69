//! `depurate calibrate`: scores of benign models.

use depurate::{
    Error,
    cache::Cache,
    calibrate::{BenignModel, CalibrateSettings, ENOUGH_MODELS, calibrate, read_list},
    error::EXIT_OK,
    scan::Watch,
};
use depurate_checkpoint::Limits;

use super::{
    args::CalibrateArgs, output, progress::Display, reproduce::CommandLine, scan::set_threads,
    signals::Signals,
};

/// Calibrates.
pub fn run(args: CalibrateArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    output::check(Some(&args.output))?;
    set_threads(&args.run)?;
    let mut models = args
        .model_list
        .as_deref()
        .map(read_list)
        .transpose()?
        .unwrap_or_default();
    let named = args.models.iter().map(|path| BenignModel {
        path: path.clone(),
        provenance: String::new(),
    });
    models.extend(named);
    let detector = args.detector.build(args.profile)?;
    let settings = CalibrateSettings {
        population: args.population.clone(),
        seed: args.run.seed,
        resume: !args.resume.no_resume,
        device: args.run.device,
        limits: Limits::default(),
        command: command(&args),
    };
    let cache = Cache::from_environment();
    let display = Display::new(verbose);
    let watch = Watch {
        cancel: &signals.cancel,
        progress: &display,
    };
    let calibrated = calibrate(&models, &settings, &detector, &cache, watch);
    display.clear();
    let calibrated = calibrated?;
    let json = serde_json::to_string_pretty(&calibrated.calibration);
    let json = json.map_err(|source| Error::Json {
        what: "the calibration",
        source,
    })? + "\n";
    output::write(Some(&args.output), json.as_bytes())?;
    let n = models.len();
    output::say(&format!(
        "{n} benign models: no false-positive rate below {:.4} can be stated",
        1.0 / (n as f64 + 1.0)
    ));
    if n < ENOUGH_MODELS {
        output::say(&format!(
            "warning: fewer than {ENOUGH_MODELS} models; a rate of 0.05 needs at least 19"
        ));
    }
    calibrated.close();
    Ok(EXIT_OK)
}

fn command(args: &CalibrateArgs) -> String {
    let line = args
        .models
        .iter()
        .fold(CommandLine::new("calibrate"), |line, model| {
            line.word(model)
        });
    line.path("--model-list", args.model_list.as_deref())
        .path("-o", Some(&args.output))
        .option("--profile", args.profile.as_str())
        .option("--detector", args.detector.as_str())
        .option("--population", &args.population)
        .option("--seed", args.run.seed.to_string())
        .into_string()
}
