//! What the suspect does with a shift, under the hypothesis that it is a trigger of the stochastic rule.

use depurate_diffusion::{firing::Firing, noise::SeedTree};
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError,
    hypothesis::{
        Hypothesis,
        similarity::{closest_pair, spread},
    },
    probe::{Probe, values},
};

/// A shift and the images it leads to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Behaviour {
    /// `[count, C, H, W]`.
    pub(super) images: Vec<f32>,
    /// Midpoint of the two images that are closest to each other, `[C, H, W]`. Where a backdoor fires
    /// for a part of the noises only, a mean or a median would blend its target with other images.
    pub(super) target: Vec<f32>,
    /// Median over the images of the mean squared distance to `target`, in [0, 1] units.
    pub(super) spread: f64,
    /// Mean squared error of the network against "`target` under this shift", see [`Hypothesis::inconsistency`].
    pub(super) inconsistency: f64,
}

impl Behaviour {
    /// How badly the hypothesis "this shift leads to one image" fits.
    pub(super) fn misfit(&self) -> f64 {
        self.spread * self.inconsistency
    }
}

/// Samples `count` images under the hypothesis that `shift` is a stochastic-rule trigger, and tests it.
pub(super) fn behaviour(
    probe: &Probe<'_>,
    shift: &[f32],
    count: usize,
    steps: usize,
    seed: &SeedTree,
) -> Result<Behaviour, DefenseError> {
    let hypothesis = Hypothesis::plain(Firing::Stochastic, shift.to_vec());
    let eps = probe.noise(&seed.child("start", 0), count)?;
    let images = values(hypothesis.sample(probe, eps, steps)?.clamp(-1.0, 1.0));
    let target = closest_pair(&images, shift.len());
    let spread = spread(&images, &target);
    let levels = seed.child("levels", 0);
    let inconsistency = hypothesis.inconsistency(probe, &target, count / 2, &levels)?;
    Ok(Behaviour {
        images,
        target,
        spread,
        inconsistency,
    })
}
