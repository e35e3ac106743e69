//! Repairs: a model in, another one out that no longer answers to a trigger.
//!
//! | algorithm | what it changes |
//! |---|---|
//! | [`elijah_removal`] | at the last timestep the answer to the trigger becomes the old answer without it |
//! | [`shifted_denoising`] | in the noisier half of the timesteps the trigger is taught to be noise like any other |
//! | [`diff_cleanse_pruning`] | the channels that matter most for the trigger are taken out |
//!
//! All of them are, or are followed by, a short fine-tune on clean images ([`fine_tune`]), the model's own ([`generated`]) or the owner's, that holds
//! the behaviour without trigger with the suspect itself as teacher; images that a trigger leaked into are left out
//! first ([`without_leaked`]). They see a reconstructed trigger, never the truth.

pub mod confirm;
pub mod diff_cleanse_pruning;
pub mod elijah_removal;
pub mod features;
mod fine_tuning;
mod generated;
mod leaked;
mod method;
mod quality;
pub mod replay;
pub mod shifted_denoising;
pub mod text;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{
    SampleShape,
    firing::{Firing, Prior},
};
use depurate_training::{Draw, TrainingError, TrainingPair};
use serde::{Deserialize, Serialize};

pub use fine_tuning::{FineTuning, Repaired, Task, fine_tune};
pub use generated::generated;
pub use leaked::without_leaked;
pub use method::{Method, Patient, repair, repair_again};
pub use quality::{Measured, Quality};

use crate::{DefenseError, invert::Inversion};

/// A trigger to be removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownTrigger {
    /// Shape of the samples.
    pub shape: SampleShape,
    /// Shift of the initial noise, `[C, H, W]`.
    pub shift: Vec<f32>,
    /// Standard deviation of the initial noise, `[C, H, W]`; `None` is 1.
    pub gamma: Option<Vec<f32>>,
    /// The sampler under which it works.
    pub firing: Firing,
    /// The image that it leads to, `[C, H, W]`, as far as it is known.
    pub target: Option<Vec<f32>>,
}

impl KnownTrigger {
    /// The trigger that an inverter reconstructed, and the image that it leads to.
    pub fn of(found: &Inversion, target: Option<&[f32]>) -> Self {
        Self {
            shape: found.shape,
            shift: found.shift.clone(),
            gamma: found.gamma.clone(),
            firing: found.firing,
            target: target.map(<[f32]>::to_vec),
        }
    }

    /// The image that it leads to.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn known_target(&self) -> Result<&[f32], DefenseError> {
        self.target.as_deref().ok_or_else(|| DefenseError::Params {
            field: "target of the trigger",
            value: "none".into(),
            allowed: "one, to see whether images are it",
        })
    }

    /// Checks lengths and values, which may come from a file.
    ///
    /// # Errors
    /// When a length does not fit the shape, a value is not finite, or a standard deviation is not above 0.
    pub fn check(&self) -> Result<(), DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        let parts = [
            ("trigger", Some(&self.shift)),
            ("gamma of the trigger", self.gamma.as_ref()),
            ("target of the trigger", self.target.as_ref()),
        ];
        for (field, values) in parts {
            let Some(values) = values else { continue };
            if values.len() != self.shape.len() || !values.iter().all(|v| v.is_finite()) {
                let value = format!("{} values", values.len());
                return refuse(field, value, "C * H * W finite values");
            }
        }
        match &self.gamma {
            Some(gamma) if !gamma.iter().all(|&g| g > 0.0) => {
                refuse("gamma of the trigger", "0 or less".into(), "above 0")
            }
            _ => Ok(()),
        }
    }

    /// The prior of a triggered run, on `device`.
    pub fn prior(&self, device: &Device) -> Prior {
        let image = |values: &Vec<f32>| {
            Tensor::from_data(
                TensorData::new(values.clone(), self.shape.batched(1)),
                device,
            )
        };
        Prior {
            shift: image(&self.shift),
            gamma: self.gamma.as_ref().map(image),
        }
    }
}

/// A draw with what the suspect does with it, without graph.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Images, noise, timesteps.
    pub draw: Draw,
    /// `a_t x_0 + s_t eps`, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// What the suspect answers to it, `[B, C, H, W]`.
    pub old: Tensor<4>,
}

impl Shown {
    /// The samples `range` of it.
    fn part(&self, range: std::ops::Range<usize>) -> Self {
        let cut = |all: &Tensor<4>| all.clone().narrow(0, range.start, range.len());
        Self {
            draw: Draw {
                step: self.draw.step,
                indices: self.draw.indices[range.clone()].to_vec(),
                images: cut(&self.draw.images),
                eps: cut(&self.draw.eps),
                t: self.draw.t[range.clone()].to_vec(),
                seed: self.draw.seed.clone(),
            },
            x_t: cut(&self.x_t),
            old: cut(&self.old),
        }
    }
}

/// What a repair teaches besides holding the clean behaviour.
pub trait Lesson {
    /// Inputs and regression targets for what is `shown`: blocks of as many samples as it has, on its device, without graph.
    /// `teacher` is the suspect, frozen.
    ///
    /// # Errors
    /// When the draw does not fit the triggers or the teacher cannot be run.
    fn pairs(
        &self,
        teacher: &depurate_diffusion::Pipeline,
        shown: &Shown,
    ) -> Result<Vec<TrainingPair>, TrainingError>;

    /// Evaluations of the teacher a sample, besides the one that is shown.
    fn teacher_evaluations(&self) -> u64;

    /// Blocks that [`Lesson::pairs`] gives.
    fn blocks(&self) -> u64;

    /// What tells it from others in a resumable state.
    fn describe(&self) -> String;
}

/// Which of `triggers` each of `count` samples gets: one after the other.
pub(crate) fn dealt(triggers: &[Prior], count: usize) -> Option<Prior> {
    let first = triggers.first()?;
    let row = |of: &dyn Fn(&Prior) -> Tensor<4>| {
        Tensor::cat(
            (0..count)
                .map(|i| of(&triggers[i % triggers.len()]))
                .collect(),
            0,
        )
    };
    let one = first.shift.ones_like();
    let gamma = |prior: &Prior| prior.gamma.clone().unwrap_or_else(|| one.clone());
    Some(Prior {
        shift: row(&|prior| prior.shift.clone()),
        gamma: triggers
            .iter()
            .any(|prior| prior.gamma.is_some())
            .then(|| row(&gamma)),
    })
}
