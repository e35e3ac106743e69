//! Whether a reconstructed trigger is one: asked of the suspect before a repair changes anything.
//!
//! An inverter gives back its best candidate for a benign model, too, and a shift that saturates any network leads to one image as a
//! trigger does. Teaching a model to ignore such a shift removes nothing and costs quality. So each trigger is held against control
//! shifts of equal norm under noises that no inverter saw, by the score of
//! [`crate::detect::model_level::diff_cleanse`]: the smaller of the gains in alike images and in consistency, in decades.

use depurate_diffusion::Denoiser;

use super::KnownTrigger;
use crate::{
    Cx, DefenseError, detect::model_level::alike, hypothesis::Hypothesis,
    invert::diff_cleanse::DiffCleanseParams, invert::diff_cleanse::look::Looking, probe::Probe,
};

pub use crate::detect::model_level::alike::LEAST_EFFECT;

/// What the noises of the question are derived by.
const ID: &str = "confirm";
/// Images a look.
const IMAGES: usize = 32;

/// How far `trigger` stands out on `model`, in decades: a trigger does by [`LEAST_EFFECT`] or more. About 7,000 network evaluations.
///
/// # Errors
/// When the trigger is malformed or has no target, the model cannot be run, the budget is spent or the caller asked to stop.
pub fn effect(
    model: &dyn Denoiser,
    trigger: &KnownTrigger,
    cx: &Cx<'_>,
) -> Result<f64, DefenseError> {
    trigger.check()?;
    let target = trigger.known_target()?;
    let looking = Looking {
        images: IMAGES,
        ..DiffCleanseParams::default().looking()
    };
    let candidate = Hypothesis {
        firing: trigger.firing,
        shift: trigger.shift.clone(),
        gamma: trigger.gamma.clone(),
    };
    let probe = Probe::new(model, cx);
    Ok(alike::judge(ID, &probe, looking, &candidate, target, cx)?.score)
}
