//! Trigger inversion: from a model to the shift of the initial noise that it answers to.

pub mod diff_cleanse;
pub mod elijah;
pub mod response_fixed_point;
mod runs;
pub(crate) mod starts;
pub mod terd;

use depurate_diffusion::{Pipeline, SampleShape, firing::Firing};
use serde::{Deserialize, Serialize};

use crate::{Cx, DefenseError};

/// Reconstructs a trigger from a model.
pub trait Inverter: Send + Sync {
    /// Inverts; the model is not changed.
    ///
    /// # Errors
    /// When the model cannot be run, the budget is spent or the caller asked to stop.
    fn invert(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inversion, DefenseError>;
}

/// A reconstructed trigger and how it was reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inversion {
    /// Shape of the trigger.
    pub shape: SampleShape,
    /// Shift of the initial noise, `[C, H, W]`.
    pub shift: Vec<f32>,
    /// Standard deviation of the initial noise, `[C, H, W]`; `None` is 1 everywhere.
    pub gamma: Option<Vec<f32>>,
    /// What fires the shift: the sampler whose rule the candidate was found by. [`Firing::Modified`] is also told
    /// [`Self::gamma`].
    pub firing: Firing,
    /// Final objective; lower is better.
    pub objective: f64,
    /// What the objective is.
    pub objective_meaning: String,
    /// Objective by iteration.
    pub trace: Vec<(usize, f64)>,
    /// Whether the iteration settled.
    pub converged: bool,
    /// Every restart, the selected one included.
    pub restarts: Vec<Restart>,
}

/// One restart of an inversion.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restart {
    /// Where it started from.
    pub start: String,
    /// Its final objective; lower is better.
    pub objective: f64,
    /// Euclidean norm of its shift.
    pub norm: f64,
    /// Whether it settled.
    pub converged: bool,
    /// Whether it is the one reported.
    pub selected: bool,
}
