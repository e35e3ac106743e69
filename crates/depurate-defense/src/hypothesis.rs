//! "This shift of the noise leads to one image": what a suspect does under such a hypothesis, whatever the rule.
//!
//! With a trigger `r`, the scale `g` of its noise and its rule known ([`depurate_diffusion::trigger`]), `y_t = x_t - rho_t r` and
//! `e' = g (e(x_t, t) - c_t r)` turn the poisoned chain into a standard one, so that a deterministic sampler of few steps lands
//! on the target. The stochastic rule's attacked sampler needs all its steps for that (a strided one does not arrive: see the
//! oracle tests of `depurate-testkit`); for the deterministic rule this is DDIM, for TrojDiff its own sampler.

mod adam;
mod chain;
pub(crate) mod joint;
pub(crate) mod refinement;
pub(crate) mod regression;
pub(crate) mod similarity;

use burn::tensor::Tensor;
use depurate_diffusion::{firing::Firing, noise::SeedTree, schedule::NoiseSchedule};
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError,
    probe::{Probe, values},
};

/// The predicted clean image is kept within this bound, in the model's range. In shifted
/// coordinates the clean image is an image, so this does not disarm the trigger.
const CLIP: f64 = 1.5;
/// `alpha_bar` of the levels at which a hypothesis is tested, from noisy to clean.
const LEVELS: [f64; 8] = [1e-3, 5e-3, 0.02, 0.06, 0.15, 0.35, 0.6, 0.85];

/// A shift that is taken for a trigger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hypothesis {
    /// What fires it, and with that its rule.
    pub(crate) firing: Firing,
    /// `r`, `[C, H, W]`.
    pub(crate) shift: Vec<f32>,
    /// `g`, a standard deviation, `[C, H, W]`; `None` is 1.
    pub(crate) gamma: Option<Vec<f32>>,
}

impl Hypothesis {
    /// With the noise as it is.
    pub(crate) fn plain(firing: Firing, shift: Vec<f32>) -> Self {
        Self {
            firing,
            shift,
            gamma: None,
        }
    }

    /// With another shift.
    pub(crate) fn with_shift(&self, shift: Vec<f32>) -> Self {
        Self {
            shift,
            ..self.clone()
        }
    }

    /// `rho_t`.
    pub(crate) fn rho(&self, schedule: &NoiseSchedule, t: usize) -> f64 {
        self.firing.rule().rho(schedule, t)
    }

    /// `c_t`.
    pub(crate) fn coefficient(&self, schedule: &NoiseSchedule, t: usize) -> f64 {
        self.firing.rule().coefficient(schedule, t)
    }

    /// `g eps`, for `eps [B, C, H, W]`.
    pub(crate) fn scaled(&self, probe: &Probe<'_>, eps: Tensor<4>) -> Tensor<4> {
        match &self.gamma {
            Some(gamma) => eps * probe.image(gamma),
            None => eps,
        }
    }

    /// Images from `eps [B, C, H, W]` by deterministic sampling in shifted coordinates, `steps` network calls an image.
    pub(crate) fn sample(
        &self,
        probe: &Probe<'_>,
        eps: Tensor<4>,
        steps: usize,
    ) -> Result<Tensor<4>, DefenseError> {
        let schedule = probe.schedule();
        let r = probe.image(&self.shift);
        let last = schedule.len() - 1;
        let steps = steps.clamp(2, schedule.len());
        let timesteps: Vec<usize> = (0..steps).rev().map(|i| i * last / (steps - 1)).collect();
        let mut y = self.scaled(probe, eps);
        for (i, &t) in timesteps.iter().enumerate() {
            let (a, s) = (schedule.a(t), schedule.s(t));
            let rho = self.rho(schedule, t);
            let c = self.coefficient(schedule, t);
            let e = probe.epsilon(y.clone() + r.clone() * rho, t)? - r.clone() * c;
            let x_0 = ((y.clone() - self.scaled(probe, e) * s) / a).clamp(-CLIP, CLIP);
            y = match timesteps.get(i + 1) {
                Some(&next) => {
                    let e = (y - x_0.clone() * a) / s; // the noise that agrees with the clipped image
                    x_0 * schedule.a(next) + e * schedule.s(next)
                }
                None => x_0,
            };
        }
        Ok(y)
    }

    /// Mean over noise levels of `|| e(a y + rho r + g s eps, t) - eps - c r ||^2 / D`: how far the network is
    /// from having learnt "the shift `r` leads to the image `y`". Near 0 for a backdoor's trigger and target.
    pub(crate) fn inconsistency(
        &self,
        probe: &Probe<'_>,
        target: &[f32],
        count: usize,
        seed: &SeedTree,
    ) -> Result<f64, DefenseError> {
        let schedule = probe.schedule();
        let (r, y) = (probe.image(&self.shift), probe.image(target));
        let mut sum = 0.0;
        for (i, &alpha_bar) in LEVELS.iter().enumerate() {
            let t = schedule.t_for_alpha_bar(alpha_bar).min(schedule.len() - 1);
            let eps = probe.noise(&seed.child("level", i as u64), count.max(1))?;
            let rho = self.rho(schedule, t);
            let c = self.coefficient(schedule, t);
            let noise = self.scaled(probe, eps.clone()) * schedule.s(t);
            let x_t = y.clone() * schedule.a(t) + r.clone() * rho + noise;
            let error = probe.epsilon(x_t, t)? - eps - r.clone() * c;
            let error = values(error);
            sum += error.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / error.len() as f64;
        }
        Ok(sum / LEVELS.len() as f64)
    }
}
