//! The repairs by name, cheapest first.

use depurate_diffusion::Pipeline;
use depurate_training::{Dataset, StateFile};
use serde::{Deserialize, Serialize};

use super::{
    FineTuning, KnownTrigger, Repaired, Task, elijah_removal, elijah_removal::ElijahRemoval,
    fine_tune, shifted_denoising, shifted_denoising::ShiftedDenoising,
};
use crate::{Cx, DefenseError};

/// A repair, or what a repair is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// [`elijah_removal`].
    ElijahRemoval,
    /// [`shifted_denoising`].
    ShiftedDenoising,
    /// The fine-tune of the others without a lesson: a control.
    FineTuning,
}

impl Method {
    /// The id of the algorithm.
    pub fn id(self) -> &'static str {
        match self {
            Self::ElijahRemoval => elijah_removal::ID,
            Self::ShiftedDenoising => shifted_denoising::ID,
            Self::FineTuning => "fine-tuning",
        }
    }
}

/// What a repair is given.
#[derive(Clone, Copy)]
pub struct Patient<'a> {
    /// The suspect, on an autodiff device.
    pub suspect: &'a Pipeline,
    /// The triggers to remove.
    pub triggers: &'a [KnownTrigger],
    /// Clean images.
    pub clean: &'a Dataset,
    /// Root of the repair's randomness.
    pub seed: u64,
    /// Where a resumable state is kept.
    pub state: Option<&'a StateFile>,
}

/// Repairs `patient`; `enough` is asked now and then with the model so far and ends the repair by `true`.
///
/// # Errors
/// As [`fine_tune`], and when a trigger is malformed.
pub fn repair(
    method: Method,
    patient: &Patient<'_>,
    params: &FineTuning,
    cx: &Cx<'_>,
    enough: &mut dyn FnMut(&Pipeline, usize) -> Result<bool, DefenseError>,
) -> Result<Repaired, DefenseError> {
    let mut task = Task {
        start: patient.suspect,
        suspect: patient.suspect,
        clean: patient.clean,
        lesson: None,
        seed: patient.seed,
        state: patient.state,
    };
    match method {
        Method::FineTuning => fine_tune(&task, params, cx, enough),
        Method::ElijahRemoval => {
            let lesson = ElijahRemoval::new(patient.triggers, patient.suspect)?;
            task.lesson = Some(&lesson);
            fine_tune(&task, params, cx, enough)
        }
        Method::ShiftedDenoising => {
            let lesson = ShiftedDenoising::new(patient.triggers, patient.suspect)?;
            task.lesson = Some(&lesson);
            fine_tune(&task, params, cx, enough)
        }
    }
}
