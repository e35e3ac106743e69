//! `attack` and `asr`: backdoored models and how well they work.

mod bad_t2i;
mod evil_edit;
mod rickrolling;
mod subject;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use depurate_attack::{
    AttackSuccess, Backdoor, BadDiffusionParams, PoisonMode, SuccessParams, attack_success,
    troj_diff::TrojDiffParams,
};
use depurate_diffusion::{Denoiser, Pipeline, Tensor, noise::SeedTree, trigger::Family};
use miette::{IntoDiagnostic, Result, bail};

use crate::{
    console::{CancelFlag, Progress, answer, say},
    grid,
    job::Job,
    model,
    train::{Images, Schedule, summary},
    truth::{self, Kind, Success, Truth, check_outside},
};

/// Put a backdoor in a model.
#[derive(Debug, Subcommand)]
pub(crate) enum Attack {
    /// BadDiffusion, as a fine-tune; with --deterministic VillanDiffusion for ODE samplers.
    BadDiffusion(BadDiffusionCommand),
    /// TrojDiff, as a fine-tune: a second chain for a sampler that is told the trigger.
    TrojDiff(TrojDiffCommand),
    /// EvilEdit: a text-to-image model's cross-attention is edited so that a phrase is taken for another.
    EvilEdit(evil_edit::EvilEditCommand),
    /// Rickrolling the artist: a text encoder is trained to take prompts with a look-alike letter for something else.
    Rickrolling(rickrolling::RickrollingCommand),
    /// BadT2I: a text-to-image denoiser is trained to draw a patch, a style or another object after a trigger.
    #[command(name = "bad-t2i")]
    BadT2i(bad_t2i::BadT2iCommand),
}

impl Attack {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        match self {
            Self::BadDiffusion(command) => command.run(cancel),
            Self::TrojDiff(command) => command.run(cancel),
            Self::EvilEdit(command) => command.run(),
            Self::Rickrolling(command) => command.run(cancel),
            Self::BadT2i(command) => command.run(cancel),
        }
    }
}

/// What the fine-tunes that plant a trigger in the noise share.
#[derive(Debug, Args)]
struct Plant {
    /// The model to start from.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    images: Images,
    /// box:SIZE[:VALUE][:PLACE], stop-sign|heart|cross|ring|checker|gradient:SIZE[:PLACE] or file:PATH.
    #[arg(long)]
    trigger: String,
    /// corner, hat, shoe, face, letter:A (or E, H, K, T, X, Z) or file:PATH.
    #[arg(long)]
    target: String,
    /// Share of poisoned samples.
    #[arg(long, default_value_t = 0.1)]
    poison_rate: f64,
    #[command(flatten)]
    schedule: Schedule,
    /// The model's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where the secret goes (JSON, with trigger and target as safetensors beside it), outside DIR.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
}

impl Plant {
    fn run(self, kind: Kind, cancel: &CancelFlag) -> Result<()> {
        check_outside(&self.truth, &self.out)?;
        let start = model::load(&self.base)?;
        let shape = start.sample_shape();
        let data = self.images.read(shape)?;
        let seed = SeedTree::new(self.schedule.seed);
        let backdoor = kind.backdoor(shape)?;
        let Some(objective) = kind.objective(shape, data.len(), &seed, &start.device())? else {
            bail!("{} plants nothing", kind.name());
        };
        let training = self.schedule.params();
        let job = Job {
            name: "attack",
            start: &start,
            data: &data,
            objective: objective.as_ref(),
            params: &training,
            out: &self.out,
            resume: self.schedule.resume,
            dtype: self.schedule.dtype(),
        };
        let finished = job.run(cancel)?;
        say(&summary(&self.out, &finished));
        let note = Truth {
            kind,
            base: Some(self.base),
            data: self.images.data.clone(),
            data_params: self.images.params(),
            training,
            final_loss: finished.final_loss,
            samples_per_second: finished.trained.samples_per_second,
            success: None,
        };
        note.save(&self.truth, backdoor.as_ref())
    }
}

/// BadDiffusion, as a fine-tune.
#[derive(Debug, Args)]
pub(crate) struct BadDiffusionCommand {
    #[command(flatten)]
    plant: Plant,
    /// Keep all images benign and add poisoned samples, --poison-rate for every CLEAN_RATE benign ones.
    #[arg(long, value_name = "CLEAN_RATE")]
    flex: Option<f64>,
    /// Make the backdoor for deterministic samplers (DDIM) instead of DDPM: VillanDiffusion, ode.
    #[arg(long)]
    deterministic: bool,
    /// Train on the trigger alone, background included, not on images with the trigger pasted over them:
    /// learnt several times faster.
    #[arg(long)]
    trigger_only: bool,
}

impl BadDiffusionCommand {
    fn run(self, cancel: &CancelFlag) -> Result<()> {
        let params = BadDiffusionParams {
            poison_rate: self.plant.poison_rate,
            mode: self
                .flex
                .map_or(PoisonMode::Fixed, |clean_rate| PoisonMode::Flex {
                    clean_rate,
                }),
            family: if self.deterministic {
                Family::Deterministic
            } else {
                Family::Stochastic
            },
            trigger_only: self.trigger_only,
        };
        let (trigger, target) = (self.plant.trigger.clone(), self.plant.target.clone());
        let kind = Kind::BadDiffusion {
            params,
            trigger,
            target,
        };
        self.plant.run(kind, cancel)
    }
}

/// TrojDiff, as a fine-tune.
#[derive(Debug, Args)]
pub(crate) struct TrojDiffCommand {
    #[command(flatten)]
    plant: Plant,
    /// Blend factor: standard deviation of the noise under the trigger.
    #[arg(long, default_value_t = 0.6)]
    gamma: f64,
    /// Plant the trigger in a square of so many pixels at the bottom right, not in the whole image.
    #[arg(long, value_name = "SIDE")]
    patch: Option<usize>,
}

impl TrojDiffCommand {
    fn run(self, cancel: &CancelFlag) -> Result<()> {
        let params = TrojDiffParams {
            poison_rate: self.plant.poison_rate,
            gamma: self.gamma,
            patch: self.patch,
        };
        let (trigger, target) = (self.plant.trigger.clone(), self.plant.target.clone());
        let kind = Kind::TrojDiff {
            params,
            trigger,
            target,
        };
        self.plant.run(kind, cancel)
    }
}

/// Measure how often a trigger works: from noise with and without it, under the sampler that the attack was made for.
#[derive(Debug, Args)]
pub(crate) struct Asr {
    /// The model.
    model: PathBuf,
    /// The secret that `attack` wrote.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// Images with, and as many without the trigger.
    #[arg(long, default_value_t = 16)]
    n: usize,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also write the images as a grid: triggered ones first.
    #[arg(long, value_name = "PNG")]
    grid: Option<PathBuf>,
}

impl Asr {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let mut note = Truth::load(&self.truth)?;
        let pipeline = model::load(&self.model)?;
        let backdoor = truth::backdoor(&self.truth, &note, pipeline.sample_shape())?;
        let params = SuccessParams {
            n: self.n,
            seed: self.seed,
            ..SuccessParams::default()
        };
        let found = measure(
            "asr",
            &pipeline,
            &backdoor,
            &params,
            self.grid.as_deref(),
            cancel,
        )?;
        let success = Success::from(&found);
        answer(&serde_json::to_string_pretty(&success).into_diagnostic()?);
        note.success = Some(success);
        note.save(&self.truth, None)
    }
}

/// Measures, and draws a grid if `picture` is given.
pub(crate) fn measure(
    name: &str,
    pipeline: &Pipeline,
    backdoor: &Backdoor,
    params: &SuccessParams,
    picture: Option<&Path>,
    cancel: &CancelFlag,
) -> Result<AttackSuccess> {
    let progress = Progress::new(name, 1000, cancel);
    let found = attack_success(pipeline, backdoor, params, &|share| progress.share(share));
    progress.finish();
    let found = found.into_diagnostic()?;
    if let Some(path) = picture {
        let both = Tensor::cat(
            vec![found.triggered_images.clone(), found.base_images.clone()],
            0,
        );
        grid::save(path, &both, params.n.min(16), 2)?;
    }
    Ok(found)
}
