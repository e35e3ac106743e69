//! The arguments of the verbs about prompts.

use std::path::{Path, PathBuf};

use clap::Args;
use depurate::{
    Error,
    cache::Cache,
    screen::{InputForm, Preset, PromptCheck, PromptModel, RunChoice},
};
use depurate_checkpoint::Limits;

use super::args::{FailOn, LayerArgs, OnInconclusive, ResumeArgs, RunArgs, finite, probability};

/// How a text-to-image model is run on prompts. A calibration belongs to one way.
#[derive(Debug, Args)]
pub struct PromptRunArgs {
    /// Parameters of the detectors; `reference` are those of the authors' code
    #[arg(long, value_enum, default_value_t)]
    pub preset: Preset,
    /// Steps of the checkpoint's own sampler
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// How strongly guidance leads to the prompt; 1 is the prompt alone
    #[arg(long, value_name = "G", default_value_t = 7.5, value_parser = finite)]
    pub guidance: f64,
    /// Attention at 1/N of the latent's side [default: 4, or what the model has nearest to it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub reduction: Option<u16>,
}

impl PromptRunArgs {
    /// The choice that they make, with the seed of `run`.
    pub fn choice(&self, run: &RunArgs) -> RunChoice {
        RunChoice {
            steps: self.steps as usize,
            guidance: self.guidance,
            seed: run.seed,
            reduction: self.reduction.map(usize::from),
        }
    }

    /// The model in `dir` with `layers` over it, to be run in this way.
    ///
    /// # Errors
    /// As [`PromptModel::open`].
    pub fn open(
        &self,
        dir: &Path,
        layers: &LayerArgs,
        run: &RunArgs,
        cache: &Cache,
    ) -> Result<PromptModel, Error> {
        PromptModel::open(
            dir,
            &layers.layers(),
            &self.choice(run),
            run.device,
            &Limits::default(),
            cache.hashes(),
        )
    }
}

/// Where prompts come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PromptSource {
    /// A file with one prompt a line, as {"prompt": "...", "id": ...} or as text
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// One prompt
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read lines from standard input, and answer each as it comes
    #[arg(value_name = "-", value_parser = ["-"])]
    pub stdin: Option<String>,
}

/// `screen`
#[derive(Debug, Args)]
pub struct ScreenArgs {
    /// The pipeline whose prompts are screened
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub source: PromptSource,
    /// What a line is
    #[arg(long, value_enum, default_value_t)]
    pub input: InputForm,
    /// With what to screen [default: everything, or what the calibration covers and unicode]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub detector: Option<Vec<PromptCheck>>,
    /// What benign prompts score on this model; without it no score becomes a verdict
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// The false-positive rate of each detector
    #[arg(long, value_name = "RATE", default_value_t = 0.05, value_parser = probability)]
    pub fpr: f64,
    /// The least verdict of a prompt that gives exit code 1
    #[arg(long, value_enum, default_value_t)]
    pub fail_on: FailOn,
    /// Whether a prompt that cannot be judged gives exit code 3
    #[arg(long, value_enum, default_value_t)]
    pub on_inconclusive: OnInconclusive,
    /// Write a page with curves and maps for each of the first 20 prompts into DIR; of these every call is made
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    #[command(flatten)]
    pub way: PromptRunArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `calibrate-prompts`
#[derive(Debug, Args)]
pub struct CalibratePromptsArgs {
    /// The pipeline whose prompts will be screened
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// Benign prompts, one a line, as {"prompt": "..."} or as text; 200 or more
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// What a line is
    #[arg(long, value_enum, default_value_t)]
    pub input: InputForm,
    /// The calibration to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What the prompts are, in words: it is kept with the calibration
    #[arg(long, value_name = "TEXT")]
    pub population: String,
    /// The detectors that it is for
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "daa-i,daa-s"
    )]
    pub detector: Vec<PromptCheck>,
    /// The rate whose thresholds are shown; a calibration is for any
    #[arg(long, value_name = "RATE", default_value_t = 0.05, value_parser = probability)]
    pub fpr: f64,
    /// Make every call of the sampler, for the band of benign prompts in reports; scores stay the same
    #[arg(long)]
    pub all_calls: bool,
    #[command(flatten)]
    pub way: PromptRunArgs,
    #[command(flatten)]
    pub resume: ResumeArgs,
    #[command(flatten)]
    pub run: RunArgs,
}
