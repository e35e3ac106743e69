//! `train` and `finetune`: benign models.

use std::path::PathBuf;

use clap::Args;

use depurate_checkpoint::SaveDtype;
use depurate_diffusion::{Denoiser, SampleShape};
use depurate_training::{Dataset, DatasetParams, Denoising, Split, TrainingParams};
use miette::{IntoDiagnostic, Result};

use crate::{
    console::{CancelFlag, say},
    job::Job,
    model::{self, Architecture},
    truth::{Kind, Truth, check_outside},
};

/// Where the images come from.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// A safetensors file (`images` or `sprites`) or a folder of PNGs.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// At most so many images.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Chooses which images are taken with --limit.
    #[arg(long, default_value_t = 0)]
    pub(crate) subset_seed: u64,
}

impl Images {
    /// How they are read.
    pub(crate) fn params(&self) -> DatasetParams {
        DatasetParams {
            split: Split::Train,
            limit: self.limit,
            subset_seed: self.subset_seed,
            ..DatasetParams::default()
        }
    }

    /// Reads them.
    pub(crate) fn read(&self, shape: SampleShape) -> Result<Dataset> {
        Dataset::read(&self.data, shape, &self.params()).into_diagnostic()
    }
}

/// How a run goes.
#[derive(Debug, Args)]
pub(crate) struct Schedule {
    /// Optimiser steps.
    #[arg(long)]
    pub(crate) steps: usize,
    /// Samples a step.
    #[arg(long, default_value_t = 64)]
    pub(crate) batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f64,
    /// Steps in which the learning rate rises.
    #[arg(long, default_value_t = 100)]
    pub(crate) warmup: usize,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) weight_decay: f64,
    /// Limit of the decay of the weights' average.
    #[arg(long, default_value_t = 0.999)]
    pub(crate) ema: f64,
    /// Mirror images at random.
    #[arg(long)]
    pub(crate) flip: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps between two resumable states.
    #[arg(long, default_value_t = 500)]
    pub(crate) checkpoint_every: usize,
    /// Continue an interrupted run.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Save weights as half precision.
    #[arg(long)]
    pub(crate) half: bool,
}

impl Schedule {
    /// As the library takes it.
    pub(crate) fn params(&self) -> TrainingParams {
        let defaults = TrainingParams::default();
        TrainingParams {
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.lr,
            warmup_steps: self.warmup,
            adam: depurate_training::training::AdamParams {
                weight_decay: self.weight_decay,
                ..defaults.adam
            },
            ema_decay: self.ema,
            horizontal_flip: self.flip,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every,
            ..defaults
        }
    }

    /// Element type of the saved weights.
    pub(crate) fn dtype(&self) -> SaveDtype {
        if self.half {
            SaveDtype::F16
        } else {
            SaveDtype::F32
        }
    }
}

/// Train a benign model from images.
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    architecture: Architecture,
    #[command(flatten)]
    schedule: Schedule,
    /// The model's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where to note how the model was made (JSON).
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
}

/// Train a benign model further.
#[derive(Debug, Args)]
pub(crate) struct Finetune {
    /// The model to start from.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    schedule: Schedule,
    /// The model's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where to note how the model was made (JSON).
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
}

impl Train {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let start = self.architecture.build(self.schedule.seed)?;
        say(&format!("{} parameters", start.parameter_count()));
        benign(
            start,
            None,
            self.images,
            self.schedule,
            self.out,
            self.truth,
            cancel,
        )
    }
}

impl Finetune {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let start = model::load(&self.base)?;
        benign(
            start,
            Some(self.base),
            self.images,
            self.schedule,
            self.out,
            self.truth,
            cancel,
        )
    }
}

fn benign(
    start: depurate_diffusion::Pipeline,
    base: Option<PathBuf>,
    images: Images,
    schedule: Schedule,
    out: PathBuf,
    truth: Option<PathBuf>,
    cancel: &CancelFlag,
) -> Result<()> {
    if let Some(truth) = &truth {
        check_outside(truth, &out)?;
    }
    let data = images.read(start.sample_shape())?;
    let params = schedule.params();
    let job = Job {
        name: "train",
        start: &start,
        data: &data,
        objective: &Denoising,
        params: &params,
        out: &out,
        resume: schedule.resume,
        dtype: schedule.dtype(),
    };
    let finished = job.run(cancel)?;
    say(&summary(&out, &finished));
    if let Some(path) = truth {
        let note = Truth {
            kind: if base.is_some() {
                Kind::BenignFinetune
            } else {
                Kind::BenignTraining
            },
            base,
            data: images.data.clone(),
            data_params: images.params(),
            training: params,
            final_loss: finished.final_loss,
            samples_per_second: finished.trained.samples_per_second,
            success: None,
        };
        note.save(&path, None)?;
    }
    Ok(())
}

/// One line on a finished run.
pub(crate) fn summary(out: &std::path::Path, finished: &crate::job::Finished) -> String {
    format!(
        "{}: {:.0} s, {:.0} samples/s, loss {:.4}",
        out.display(),
        finished.trained.elapsed.as_secs_f64(),
        finished.trained.samples_per_second,
        finished.final_loss.unwrap_or(f32::NAN),
    )
}
