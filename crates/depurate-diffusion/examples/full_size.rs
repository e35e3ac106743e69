//! Stable Diffusion 1.5 and 2.1 at full size with random weights: what saving, loading and one step cost.
//!
//! ```text
//! cargo run --release -p depurate-diffusion --example full_size -- make sd1 DIR    # a pipeline with half-precision weights
//! cargo run --release -p depurate-diffusion --example full_size -- run DIR         # load it, one guided step, one image
//! ```
//!
//! `run` prints seconds, and the most anonymous memory at any time of each stage over the bytes of the f32 weights. Files that
//! are mapped are no anonymous memory. Linux only.

#![expect(clippy::print_stdout, reason = "an evaluation that people read")]

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use depurate_checkpoint::{Limits, SaveDtype, read_json};
use depurate_diffusion::{
    Denoiser, Device, NoTap, TextToImage,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    clip_tokenizer::ClipTokenizer,
    noise::{NoiseSource, SeedTree},
    schedule::SchedulerConfig,
    text_to_image::Parts,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["make", model, dir] => make(model, Path::new(dir)),
        ["run", dir] => run(Path::new(dir)),
        _ => Err("expected: make sd1|sd2 DIR, or run DIR".into()),
    }
}

/// Writes a pipeline with random weights.
fn make(model: &str, dir: &Path) -> Fallible<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (limits, device, seed) = (Limits::default(), Device::flex(), SeedTree::new(0));
    let file = |part: &str| -> PathBuf {
        let configs = root.join("tests/full_size").join(model);
        configs.join(part).with_extension("json")
    };
    let object = |part: &str| read_json(&file(part), &limits);
    let unet = UNet2DConditionConfig::from_json(&object("unet")?, &file("unet"))?;
    let vae = AutoencoderKlConfig::from_json(&object("vae")?, &file("vae"))?;
    let text = ClipTextConfig::read(&file("text_encoder"), &limits)?;
    let vocabulary = root.join("../../golden/clip-tokenizer/vocab");
    let parts = Parts {
        tokenizer: ClipTokenizer::load(&vocabulary, &limits)?,
        text_encoder: ClipText::new(&text, &seed.child("text", 0), &device),
        unet: UNet2DCondition::new(&unet, &seed.child("unet", 0), &device),
        vae: AutoencoderKl::new(&vae, &seed.child("vae", 0), &device),
        scheduler: SchedulerConfig::from_json(&object("scheduler")?, &file("scheduler"))?,
    };
    let memory = Memory::watched();
    let start = Instant::now();
    TextToImage::from_parts(parts, &device)?.save(dir, SaveDtype::F16)?;
    memory.report("make and save", start, None);
    Ok(())
}

/// Loads a pipeline and makes one step.
fn run(dir: &Path) -> Fallible<()> {
    let device = Device::flex();
    let memory = Memory::watched();
    let start = Instant::now();
    let pipeline = TextToImage::load(dir, &Limits::default(), &device)?.frozen();
    let weights = 4 * pipeline.parameter_count() as u64;
    println!("{} parameters", pipeline.parameter_count());
    memory.report("load", start, Some(weights));

    let start = Instant::now();
    let prompts = pipeline.encode(&["a photo of a cat"])?.states;
    let empty = pipeline.encode(&[""])?.states;
    memory.report("encode two prompts", start, Some(weights));

    let shape = pipeline.latent_shape().batched(1);
    let x = SeedTree::new(1).noise(0, 1).normal(shape, &device)?;
    for (what, guidance) in [("one step alone", 1.0), ("one step guided", 7.5)] {
        let start = Instant::now();
        let denoiser = pipeline.guided(prompts.clone(), empty.clone(), guidance)?;
        let answer = denoiser.predict(x.clone(), &[500], &mut NoTap)?.value;
        let largest = answer.abs().max().into_data().iter::<f32>().next();
        memory.report(what, start, Some(weights));
        println!("  largest answer {largest:?}");
    }
    let start = Instant::now();
    let image = pipeline.decode(x)?;
    println!("image {:?}", image.dims());
    memory.report("decode", start, Some(weights));
    Ok(())
}

/// The most anonymous memory since the last report.
struct Memory {
    peak: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Memory {
    fn watched() -> Self {
        let (peak, done) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (of_thread, stop) = (Arc::clone(&peak), Arc::clone(&done));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                of_thread.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { peak, done }
    }

    fn report(&self, what: &str, start: Instant, weights: Option<u64>) {
        let rest = anonymous_bytes();
        let peak = self.peak.swap(rest, Ordering::Relaxed);
        let (seconds, mib, rest) = (start.elapsed().as_secs_f64(), peak >> 20, rest >> 20);
        let share = weights.map_or(String::new(), |weights| {
            format!(", {:.2} x the f32 weights", peak as f64 / weights as f64)
        });
        println!("{what}: {seconds:.1} s, {mib} MiB{share}; {rest} MiB in the end");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
