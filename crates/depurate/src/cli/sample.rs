//! `depurate sample`: a sheet of images.

use depurate::{
    Error,
    cache::Cache,
    error::EXIT_OK,
    evidence::sampler_words,
    images,
    sample::{SampleSettings, sample_sheet},
    scan::Watch,
};
use depurate_checkpoint::Limits;

use super::{args::SampleArgs, output, progress::Display, scan::set_threads, signals::Signals};

/// Longer side of the sheet, in pixels, if whole pixels allow it.
const SIDE: u32 = 800;

/// Samples.
pub fn run(args: SampleArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    output::check(Some(&args.output))?;
    set_threads(&args.run)?;
    let settings = SampleSettings {
        trigger: args.trigger,
        sampler: args.sampler,
        steps: args.steps.map(|steps| steps as usize),
        clip: args.clip,
        seed: args.run.seed,
        count: args.count.into(),
        device: args.run.device,
        limits: Limits::default(),
    };
    let cache = Cache::from_environment();
    let display = Display::new(verbose);
    let watch = Watch {
        cancel: &signals.cancel,
        progress: &display,
    };
    let sampled = sample_sheet(&args.model, &settings, cache.hashes(), watch);
    display.clear();
    let (sheet, sampler) = sampled?;
    output::write(
        Some(&args.output),
        &images::png("samples", &images::magnify(&sheet, SIDE))?,
    )?;
    let (name, steps, clip) = sampler_words(&sampler);
    let clip = clip.map_or("not clipped".to_owned(), |range| {
        format!("clipped to {range}")
    });
    let count = settings.count;
    output::say(&format!(
        "{count} images with {name}, {steps} steps, {clip}, seed {}",
        settings.seed
    ));
    Ok(EXIT_OK)
}
