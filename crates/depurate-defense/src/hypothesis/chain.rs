//! The network's error under a hypothesis at levels of the chain, differentiable in shift and target.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::noise::{NoiseSource, SeedTree};

use super::Hypothesis;
use crate::{DefenseError, probe::Probe};

/// `of(t)` for each of the timesteps `t`, `[B, 1, 1, 1]`, on the probe's device with gradients.
pub(super) fn column(probe: &Probe<'_>, t: &[usize], of: impl Fn(usize) -> f64) -> Tensor<4> {
    let values: Vec<f32> = t.iter().map(|&t| of(t) as f32).collect();
    let data = TensorData::new(values, [t.len(), 1, 1, 1]);
    Tensor::from_data(data, &probe.model.device().autodiff())
}

/// `e(a_t y + rho_t r + g s_t eps, t) - eps - c_t r`, `[B, C, H, W]`, for shift `r` and target `y [1, C, H, W]` on a device with
/// gradients, the scale and the rule of `hypothesis`, and one noise of `seed` for each of `t`.
pub(super) fn error(
    probe: &Probe<'_>,
    hypothesis: &Hypothesis,
    (r, y): (&Tensor<4>, &Tensor<4>),
    t: &[usize],
    seed: &SeedTree,
) -> Result<Tensor<4>, DefenseError> {
    let schedule = probe.schedule();
    let device = probe.model.device().autodiff();
    let eps = seed
        .noise(0, t.len())
        .normal(probe.shape().batched(t.len()), &device)?;
    let scaled = match &hypothesis.gamma {
        Some(gamma) => eps.clone() * probe.image(gamma).autodiff(),
        None => eps.clone(),
    };
    let x_t = y.clone() * column(probe, t, |t| schedule.a(t))
        + r.clone() * column(probe, t, |t| hypothesis.rho(schedule, t))
        + scaled * column(probe, t, |t| schedule.s(t));
    let answered = r.clone() * column(probe, t, |t| hypothesis.coefficient(schedule, t));
    Ok(probe.epsilon_at(x_t, t)? - eps - answered)
}
