//! The fine-tune that every repair is: hold the clean behaviour, learn a [`Lesson`].
//!
//! ```text
//! x_t    = a_t x_0 + s_t eps
//! target = (1 - w) eps + w e_old(x_t, t)                                  (1)
//! ```
//!
//! Regression on (1) has the gradient of the weighted sum of the two squared errors, so `w = 1/2` is the sum that Diff-Cleanse's
//! fine-tune takes, `w = 0` ordinary training and `w = 1` distillation: no gradient at all where the network still does what the
//! suspect does. Clean samples and those of the lesson pass the network together.
//!
//! A lesson is learnt in a part of the steps ([`FineTuning::lesson_share`]), in which it has half of the samples; what it moved by the
//! way is put back in the rest, in which a twelfth is enough to keep it.

use burn::tensor::Tensor;
use depurate_diffusion::{Denoiser, Pipeline, firing::Prior, schedule::NoiseSchedule};
use depurate_training::{
    Dataset, Draw, Monitor, Objective, StateFile, StepReport, TrainingError, TrainingPair,
    TrainingParams, train_until,
};
use serde::{Deserialize, Serialize};

use super::{KnownTrigger, Lesson, Shown};
use crate::{Cx, DefenseError};

/// How the fine-tune goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FineTuning {
    /// Most optimiser steps.
    pub steps: usize,
    /// Part of the steps in which the lesson is learnt, the first ones; from 0 to 1.
    pub lesson_share: f64,
    /// Samples a step: clean ones, and those that a lesson is made of. A lesson of several blocks adds to them.
    pub batch: usize,
    /// Highest learning rate; it falls along a cosine to a hundredth.
    pub learning_rate: f64,
    /// Limit of the decay of the weights' average.
    pub ema_decay: f64,
    /// `w` of (1), from 0 to 1.
    pub teacher_share: f64,
    /// Steps between two questions whether it is enough, and between resumable states.
    pub check_every: usize,
}

impl Default for FineTuning {
    fn default() -> Self {
        Self {
            steps: 900,
            lesson_share: 0.2,
            batch: 48,
            learning_rate: 5e-4,
            ema_decay: 0.98,
            teacher_share: 1.0,
            check_every: 300,
        }
    }
}

impl FineTuning {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), DefenseError> {
        self.training(0).check()?;
        for (field, value) in [
            ("teacher_share", self.teacher_share),
            ("lesson_share", self.lesson_share),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(DefenseError::Params {
                    field,
                    value: value.to_string(),
                    allowed: "0 to 1",
                });
            }
        }
        Ok(())
    }

    /// Those of a second repair, of what a new scan finds in the repaired model: half of the steps, as that much less is left.
    pub(super) fn again(&self) -> Self {
        Self {
            steps: self.steps.div_ceil(2),
            ..self.clone()
        }
    }

    /// Samples of the step `step` that a lesson is made of.
    fn lesson_samples(&self, step: usize) -> usize {
        let learning = (step as f64) < self.lesson_share * self.steps as f64;
        self.batch.div_ceil(if learning { 2 } else { 12 })
    }

    fn training(&self, seed: u64) -> TrainingParams {
        TrainingParams {
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.learning_rate,
            final_learning_rate_share: 0.01,
            warmup_steps: self.steps.min(20),
            ema_decay: self.ema_decay,
            seed,
            checkpoint_every: self.check_every,
            ..TrainingParams::default()
        }
    }
}

/// What is repaired, and with what.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Where the fine-tune starts, on an autodiff device: the suspect, or what pruning left of it.
    pub start: &'a Pipeline,
    /// The suspect; the teacher.
    pub suspect: &'a Pipeline,
    /// Clean images.
    pub clean: &'a Dataset,
    /// What is learnt; `None` only holds the clean behaviour.
    pub lesson: Option<&'a dyn Lesson>,
    /// Root of the run's randomness.
    pub seed: u64,
    /// Where a resumable state is kept.
    pub state: Option<&'a StateFile>,
}

/// A repaired model.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// The model, with averaged weights.
    pub pipeline: Pipeline,
    /// Optimiser steps made.
    pub steps: usize,
    /// Loss of every step in this process.
    pub losses: Vec<f32>,
    /// Network evaluations of one image, a differentiated one counted as three.
    pub evaluations: u64,
    /// Clean images that were not used, because a trigger leads there.
    pub left_out: usize,
}

impl Repaired {
    /// This repair, and then `later`, a repair of its model, as one.
    pub(super) fn then(mut self, later: Self) -> Self {
        self.losses.extend(later.losses);
        Self {
            pipeline: later.pipeline,
            steps: self.steps + later.steps,
            losses: self.losses,
            evaluations: self.evaluations + later.evaluations,
            left_out: self.left_out.max(later.left_out),
        }
    }

    /// Nothing was done.
    pub(super) fn unchanged(suspect: &Pipeline) -> Self {
        Self {
            pipeline: suspect.clone(),
            steps: 0,
            losses: Vec::new(),
            evaluations: 0,
            left_out: 0,
        }
    }
}

/// Fine-tunes `task`; `enough` is asked now and then with the averaged model and ends the run by `true`.
///
/// # Errors
/// When a parameter is out of range, the training diverges or its state cannot be kept, and when the budget is spent or the caller
/// asked to stop; a state file then lets the same call go on.
pub fn fine_tune(
    task: &Task<'_>,
    params: &FineTuning,
    cx: &Cx<'_>,
    enough: &mut dyn FnMut(&Pipeline, usize) -> Result<bool, DefenseError>,
) -> Result<Repaired, DefenseError> {
    params.check()?;
    let objective = Lessons {
        teacher: task.suspect.frozen(),
        lesson: task.lesson,
        params,
    };
    cx.progress.start("fine-tuning", params.steps as u64);
    let watch = Watch(cx);
    let training = params.training(task.seed);
    let trained = train_until(
        task.start, task.clean, &objective, &training, task.state, &watch, enough,
    );
    let trained = trained.map_err(|error| watch.failure(error))?;
    let (blocks, teacher) = task.lesson.map_or((0, 0), |lesson| {
        (lesson.blocks(), lesson.teacher_evaluations())
    });
    let taught = |steps: std::ops::Range<usize>| -> u64 {
        steps.map(|step| params.lesson_samples(step) as u64).sum()
    };
    let lessons = if task.lesson.is_some() {
        taught(0..trained.steps)
    } else {
        0
    };
    let all = (trained.steps * params.batch) as u64;
    Ok(Repaired {
        pipeline: trained.pipeline,
        steps: trained.steps,
        losses: trained.losses,
        evaluations: all + 3 * (all - lessons) + (3 * blocks + teacher) * lessons,
        left_out: 0,
    })
}

/// The triggers as tensors on the device of `model`, without graph.
pub(super) fn priors(
    triggers: &[KnownTrigger],
    model: &Pipeline,
) -> Result<Vec<Prior>, DefenseError> {
    let (device, shape) = (model.device().inner(), model.sample_shape());
    if triggers.is_empty() || triggers.iter().any(|trigger| trigger.shape != shape) {
        return Err(DefenseError::Params {
            field: "triggers",
            value: format!("{} of them", triggers.len()),
            allowed: "one or more of the model's shape",
        });
    }
    triggers
        .iter()
        .map(|trigger| {
            trigger.check()?;
            Ok(trigger.prior(&device))
        })
        .collect()
}

struct Lessons<'a> {
    teacher: Pipeline,
    lesson: Option<&'a dyn Lesson>,
    params: &'a FineTuning,
}

impl Objective for Lessons<'_> {
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, TrainingError> {
        let draw = Draw {
            images: draw.images.inner(),
            eps: draw.eps.inner(),
            ..draw
        };
        let count = draw.t.len();
        let x_t = schedule.add_noise(draw.images.clone(), draw.eps.clone(), &draw.t)?;
        let old = self.teacher.epsilon(x_t.clone(), &draw.t)?;
        let step = draw.step;
        let shown = Shown { draw, x_t, old };
        let mut pairs = Vec::new();
        let mut clean = shown.clone();
        if let Some(lesson) = self.lesson {
            let taught = self.params.lesson_samples(step).min(count);
            pairs = lesson.pairs(&self.teacher, &shown.part(0..taught))?;
            clean = shown.part(taught..count);
        }
        let w = self.params.teacher_share;
        pairs.push(TrainingPair {
            x_t: clean.x_t,
            t: clean.draw.t,
            target: clean.draw.eps * (1.0 - w) + clean.old * w, // eq. (1)
        });
        let together = |of: &dyn Fn(&TrainingPair) -> Tensor<4>| {
            Tensor::cat(pairs.iter().map(of).collect(), 0).autodiff()
        };
        Ok(TrainingPair {
            x_t: together(&|pair| pair.x_t.clone()),
            target: together(&|pair| pair.target.clone()),
            t: pairs.iter().flat_map(|pair| pair.t.clone()).collect(),
        })
    }

    fn describe(&self) -> String {
        let lesson = self.lesson.map_or("none".to_owned(), Lesson::describe);
        format!(
            "repair: {lesson} in {} of the steps, teacher's share {}",
            self.params.lesson_share, self.params.teacher_share
        )
    }
}

/// Passes progress and stops between the training loop and the caller.
pub(super) struct Watch<'a, 'b>(pub(super) &'a Cx<'b>);

impl Watch<'_, '_> {
    /// What a repair makes of a training's failure: one that was stopped says by whom.
    pub(super) fn failure(&self, error: DefenseError) -> DefenseError {
        match error {
            DefenseError::Training(TrainingError::Cancelled { .. }) => {
                self.0.step().err().unwrap_or(DefenseError::Cancelled)
            }
            other => other,
        }
    }
}

impl Monitor for Watch<'_, '_> {
    fn cancelled(&self) -> bool {
        self.0.cancel.is_cancelled() || self.0.budget.is_spent()
    }
    fn step(&self, _report: &StepReport) {
        self.0.progress.advance(1);
    }
}
