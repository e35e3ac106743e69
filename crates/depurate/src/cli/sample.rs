//! `depurate sample`: a sheet of images.

use depurate::{
    Error,
    cache::Cache,
    error::EXIT_OK,
    evidence::sampler_words,
    images,
    sample::{Prompt, SampleSettings, sample_sheet},
    scan::Watch,
};
use depurate_checkpoint::Limits;

use super::{args::SampleArgs, output, progress::Display, scan::set_threads, signals::Signals};

/// Longer side of the sheet, in pixels, if whole pixels allow it.
const SIDE: u32 = 800;
/// Images of a model without a prompt, unless said otherwise.
const COUNT: u16 = 16;

/// Samples.
pub fn run(args: SampleArgs, verbose: u8, signals: &Signals) -> Result<u8, Error> {
    output::check(Some(&args.output))?;
    set_threads(&args.run)?;
    let prompt = args.prompt.map(|text| Prompt {
        text,
        negative: args.negative,
        guidance: args.guidance,
    });
    let count = args.count.unwrap_or(match prompt {
        Some(_) => 1,
        None => COUNT,
    });
    let settings = SampleSettings {
        prompt,
        layers: args.layers.layers(),
        trigger: args.trigger,
        sampler: args.sampler,
        steps: args.steps.map(|steps| steps as usize),
        clip: args.clip,
        seed: args.run.seed,
        count: count.into(),
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
    let images = match settings.count {
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    let guidance = settings.prompt.map_or(String::new(), |prompt| {
        format!(", guidance {}", prompt.guidance)
    });
    let seed = settings.seed;
    output::say(&format!(
        "{images} with {name}, {steps} steps, {clip}{guidance}, seed {seed}"
    ));
    Ok(EXIT_OK)
}
