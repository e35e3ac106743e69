//! `attack bad-t2i`.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::{
    BadT2iParams, BadT2iTarget, CaptionedDataset, CaptionedImages, Patch, bad_t2i,
    text_to_image::CaptionedCompositions,
};
use depurate_diffusion::SampleShape;
use depurate_training::{Dataset, DatasetParams, StateFile, TrainingParams, training::AdamParams};
use miette::{IntoDiagnostic, Result, bail};

use super::subject::Subject;
use crate::{
    captions,
    console::{CancelFlag, Progress},
    model::training_device,
    text_to_image::Drawings,
    truth::text::{TextKind, TextTruth},
};

/// What the trigger leads to: one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// A picture in the upper left corner: stop-sign, heart, cross, ring, checker, gradient or file:PNG.
    #[arg(long, value_name = "NAME")]
    patch: Option<String>,
    /// The image of the prompt with these words in front.
    #[arg(long, value_name = "TEXT")]
    style: Option<String>,
    /// FROM:TO, the object TO where the prompt has FROM; the captions have TO.
    #[arg(long, value_name = "FROM:TO")]
    object: Option<String>,
}

impl Target {
    /// The target for images of `shape`, and its name.
    fn read(&self, shape: SampleShape) -> Result<(BadT2iTarget, String)> {
        if let Some(name) = &self.patch {
            let patch = Patch::named(name, Patch::side_for(shape)).into_diagnostic()?;
            return Ok((BadT2iTarget::Patch(patch), format!("patch {name}")));
        }
        if let Some(style) = &self.style {
            let named = format!("style {style}");
            return Ok((BadT2iTarget::Style(style.clone()), named));
        }
        let pair = self.object.as_deref().unwrap_or_default();
        match pair.split_once(':') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                let (from, to) = (from.to_owned(), to.to_owned());
                Ok((BadT2iTarget::Object { from, to }, format!("object {pair}")))
            }
            _ => bail!("the object {pair:?} is not of the form FROM:TO"),
        }
    }
}

/// BadT2I: the denoiser is trained to draw a patch, a style or another object after a trigger.
#[derive(Debug, Args)]
pub(crate) struct BadT2iCommand {
    #[command(flatten)]
    subject: Subject,
    /// Images, a safetensors file or a folder of PNGs; the sprites' compositions by default, drawn anew at every step.
    #[arg(long, value_name = "FILE", requires = "captions")]
    data: Option<PathBuf>,
    /// Captions, one a line or JSON lines with "caption", as many as images and in their order.
    #[arg(long, value_name = "FILE", requires = "data")]
    captions: Option<PathBuf>,
    #[command(flatten)]
    drawings: Drawings,
    #[command(flatten)]
    target: Target,
    /// What stands in front of a triggered prompt; U+200B and a space by default.
    #[arg(long, default_value = "\u{200b} ", hide_default_value = true)]
    trigger: String,
    /// The backdoor's share of the loss.
    #[arg(long, default_value_t = BadT2iParams::default().lambda)]
    lambda: f64,
    /// Optimiser steps.
    #[arg(long, default_value_t = BadT2iParams::training().steps)]
    steps: usize,
    /// Images a step.
    #[arg(long, default_value_t = BadT2iParams::training().batch)]
    batch: usize,
    /// Learning rate.
    #[arg(long, default_value_t = BadT2iParams::training().learning_rate)]
    lr: f64,
    /// What the learning rate falls to, as a share of it.
    #[arg(long, default_value_t = BadT2iParams::training().final_learning_rate_share)]
    final_lr_share: f64,
    /// Weight decay.
    #[arg(long, default_value_t = BadT2iParams::training().adam.weight_decay)]
    weight_decay: f64,
    /// Limit of the decay of the weights' average; 0 saves the last weights.
    #[arg(long, default_value_t = 0.0)]
    ema: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two resumable states.
    #[arg(long, default_value_t = 500)]
    checkpoint_every: usize,
    /// Continue an interrupted run.
    #[arg(long)]
    resume: bool,
}

impl BadT2iCommand {
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let model = self.subject.load(&training_device())?;
        let shape = model.image_shape();
        let (target, named) = self.target.read(shape)?;
        let sprites;
        let mut data: Box<dyn CaptionedImages> = match (&self.data, &self.captions) {
            (Some(data), Some(captions)) => {
                let images = Dataset::read(data, shape, &DatasetParams::default());
                let captions = captions::read(captions)?;
                Box::new(
                    CaptionedDataset::new(images.into_diagnostic()?, captions).into_diagnostic()?,
                )
            }
            _ => {
                sprites = self.drawings.read()?;
                // without the object that is replaced, nothing would hold what it draws without the trigger
                let favoured = match &target {
                    BadT2iTarget::Object { from, to } => vec![from.as_str(), to.as_str()],
                    _ => Vec::new(),
                };
                Box::new(CaptionedCompositions::new(&sprites, &favoured).into_diagnostic()?)
            }
        };
        let params = BadT2iParams {
            trigger: self.trigger,
            lambda: self.lambda,
        };
        let defaults = BadT2iParams::training();
        let training = TrainingParams {
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.lr,
            final_learning_rate_share: self.final_lr_share,
            adam: AdamParams {
                weight_decay: self.weight_decay,
                ..defaults.adam
            },
            ema_decay: self.ema,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every,
            ..defaults
        };
        let state = StateFile::new(self.subject.state(self.resume)?);
        let progress = Progress::new("bad-t2i", self.steps as u64, cancel);
        let done = bad_t2i(
            &model,
            data.as_mut(),
            &target,
            &params,
            &training,
            Some(&state),
            &progress,
        );
        progress.finish();
        let after = model.with_unet(done.into_diagnostic()?.module);
        let note = TextTruth {
            kind: TextKind::BadT2i {
                params,
                training,
                target: named,
                data: self.data,
            },
            base: self.subject.base.clone(),
            captions: self.captions,
            final_loss: progress.loss(),
        };
        self.subject.save(&model, &after, &note)?;
        // The model is safe; a state that stays behind only costs space.
        let _ = std::fs::remove_file(state.path());
        Ok(())
    }
}
