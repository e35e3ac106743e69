//! The training that repairs of a text-to-image model share: a loss on the denoiser or on the text encoder, all of it or the
//! parameters that meet the prompt.

use burn::{module::Module, tensor::Tensor};
use depurate_diffusion::{
    closed_form_edit::projects_prompt, module_weights::frozen_but, text_to_image::TextToImage,
};
use depurate_training::{
    StateFile,
    training::{TrainingParams, optimise_until},
};
use serde::{Deserialize, Serialize};

use crate::{Cx, DefenseError, repair::fine_tuning::Watch};

/// Which parameters of the denoiser are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trained {
    /// All of them, as published.
    #[default]
    All,
    /// The layers that attend to the prompt.
    CrossAttention,
    /// Their projections of the prompt alone.
    KeysAndValues,
}

impl Trained {
    fn includes(self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::CrossAttention => name.contains(".attn2."),
            Self::KeysAndValues => projects_prompt(name),
        }
    }
}

/// How the training goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unlearning {
    /// Most optimiser steps.
    pub steps: usize,
    /// Triggered prompts a step, and as many that are kept.
    pub batch: usize,
    /// Highest learning rate; it falls along a cosine to a hundredth.
    pub learning_rate: f64,
    /// Limit of the decay of the weights' average.
    pub ema_decay: f64,
    /// Parameters of the denoiser that are trained.
    pub trained: Trained,
    /// Steps between two questions whether it is enough, and between resumable states.
    pub check_every: usize,
}

impl Default for Unlearning {
    fn default() -> Self {
        Self {
            steps: 800,
            batch: 8,
            learning_rate: 1e-4,
            ema_decay: 0.98,
            trained: Trained::All,
            check_every: 100,
        }
    }
}

impl Unlearning {
    /// The training that these parameters ask for.
    pub(super) fn training(&self, seed: u64) -> TrainingParams {
        TrainingParams {
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.learning_rate,
            final_learning_rate_share: 0.01,
            warmup_steps: self.steps.min(10),
            ema_decay: self.ema_decay,
            seed,
            checkpoint_every: self.check_every,
            ..TrainingParams::default()
        }
    }
}

/// A loss on a module of the suspect.
pub(super) trait Lesson<M> {
    /// The loss of `student` at `step`, `[1]`; it depends on both alone.
    fn loss(&self, student: &M, step: usize) -> Result<Tensor<1>, DefenseError>;
    /// Evaluations a step, as in [`TextRepaired::evaluations`].
    fn evaluations(&self) -> u64;
    /// What tells it from others in a resumable state.
    fn describe(&self) -> String;
}

/// A repaired model.
#[derive(Debug, Clone)]
pub struct TextRepaired {
    /// The model, with averaged weights where there was a training.
    pub model: TextToImage,
    /// Optimiser steps made.
    pub steps: usize,
    /// Loss of every step in this process.
    pub losses: Vec<f32>,
    /// Evaluations of the trained component for one prompt, a differentiated one counted as three.
    pub evaluations: u64,
}

/// Asked now and then with the averaged model and the steps made; ends the training by `true`.
pub type TextEnough<'a> = &'a mut dyn FnMut(&TextToImage, usize) -> Result<bool, DefenseError>;

/// How a trained module becomes a model again.
pub(super) type Rebuilt<'a, M> = &'a dyn Fn(M) -> TextToImage;

/// Trains `module` by `lesson`.
///
/// # Errors
/// When a parameter is out of range, the training diverges or its state cannot be kept, and when the budget is spent or the caller
/// asked to stop; a state file then lets the same call go on.
pub(super) fn unlearn<M: Module>(
    module: M,
    lesson: &dyn Lesson<M>,
    (params, seed): (&Unlearning, u64),
    rebuilt: Rebuilt<'_, M>,
    state: Option<&StateFile>,
    cx: &Cx<'_>,
    enough: TextEnough<'_>,
) -> Result<TextRepaired, DefenseError> {
    let training = params.training(seed);
    training.check()?;
    cx.progress.start("unlearning", params.steps as u64);
    let watch = Watch(cx);
    let learning_rate = |step| training.learning_rate_at(step);
    let run = format!("{} | {params:?} | {seed}", lesson.describe());
    let how = training.optimisation(run, &learning_rate);
    let done = optimise_until(
        module,
        &how,
        state,
        &watch,
        &mut |module: &M, step| {
            let student = frozen_but(module.clone(), &|name| params.trained.includes(name));
            lesson.loss(&student, step)
        },
        &mut |module: &M, step| enough(&rebuilt(module.clone()), step),
    );
    let done = done.map_err(|error| watch.failure(error))?;
    Ok(TextRepaired {
        model: rebuilt(done.module),
        evaluations: lesson.evaluations() * done.steps as u64,
        steps: done.steps,
        losses: done.losses,
    })
}
