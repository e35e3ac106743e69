//! # Elijah: the shift that the network answers with a fixed part of itself
//!
//! At almost pure noise a backdoored network that sees its trigger predicts the noise plus a part of the trigger. The mean
//! over many noises cancels the noise, and the shift of which a fixed part is left is a candidate trigger.
//!
//! ## Paper
//! An et al., "Elijah: eliminating backdoors injected in diffusion models via distribution shift", AAAI 2024,
//! arXiv:2312.00050. Implements the trigger inversion.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `shift` | tau | `[1, C, H, W]`, in the model's range |
//! | `noises` | eps_n, one bank for the whole run | `[N, C, H, W]` |
//! | `lambda` | lambda, the part that is answered | |
//! | `residual` | lambda tau - mean_n e(eps_n + tau, T) | `[1, C, H, W]` |
//!
//! ## Method
//! ```text
//! L(tau)  = mean_CHW | lambda tau - mean_n e(eps_n + tau, T) |                       (1)
//! dL/dtau = lambda g - mean_n J_n^T g,   g = sign(residual) / CHW                    (2)
//! ```
//! `T` is the last timestep, `J_n` the network's Jacobian at noise `n`. Adam on `tau`. `lambda` is 1/2 for the stochastic rule
//! and 1 for the deterministic one ([`depurate_diffusion::trigger`]).
//!
//! ## Needs
//! Gradients of the network in its input.
//!
//! ## Deviations
//! - Several restarts from the starts that the released scripts use for different attacks; the one of least (1) is
//!   reported. The released code makes one and is told which attack it meets.
//! - The bank passes the network a few noises at a time: (2) is linear in them once `g` is known.
//!
//! ## Fails when
//! the start is nearer to 0, which (1) likes as well in every model, than to the trigger; or the network answers with another
//! part than `lambda`. An exact backdoor `r` answers with `tau + (c - 1) r` on average, so that the residual is
//! `(lambda - 1) (tau - r)` where `lambda = c`: near 1, for the deterministic rule, it hardly says anything, and the mean of
//! the bank, of size `1 / sqrt(N)`, drowns it. The value of (1) is no verdict.
//!
//! ## Cost
//! `noises` evaluations and as many differentiated ones an iteration.

use burn::tensor::Tensor;
use depurate_diffusion::{
    Denoiser, Pipeline,
    ops::{self, AdamStep, Moved},
    trigger::Family,
};
use depurate_report::Paper;
use serde::{Deserialize, Serialize};

use super::{
    Inversion, Inverter,
    runs::{Run, best, runs, start},
};
use crate::{
    Cx, DefenseError,
    probe::{Probe, values},
};

/// The inverter's id.
pub const ID: &str = "elijah";
/// The paper behind it.
pub const PAPER: Paper = Paper {
    authors: "An et al.",
    title: "Elijah: Eliminating Backdoors Injected in Diffusion Models via Distribution Shift",
    venue: "AAAI",
    year: 2024,
    arxiv: Some("2312.00050"),
    implements: "trigger inversion",
};
/// Noises that pass the network at once.
const AT_ONCE: usize = 16;
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Parameters. The default is the published recipe for the stochastic rule, from three starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElijahParams {
    /// The rule that the attack is taken to follow; it decides the samplers that the shift is reported for.
    pub family: Family,
    /// The part of the shift that is answered, above 0.
    pub lambda: f64,
    /// Noises in the bank, at least 1.
    pub noises: usize,
    /// Steps of Adam, at least 1.
    pub iterations: usize,
    /// Its learning rate, above 0.
    pub learning_rate: f64,
    /// Starts, at least 1.
    pub restarts: usize,
}

impl Default for ElijahParams {
    fn default() -> Self {
        Self {
            family: Family::Stochastic,
            lambda: 0.5,
            noises: 100,
            iterations: 100,
            learning_rate: 0.1,
            restarts: 3,
        }
    }
}

impl ElijahParams {
    /// The published recipe for the deterministic rule, from three starts.
    pub fn deterministic() -> Self {
        Self {
            family: Family::Deterministic,
            lambda: 1.0,
            iterations: 10,
            ..Self::default()
        }
    }

    /// Network evaluations of one image, a differentiated one counted as three.
    pub fn evaluations(&self) -> u64 {
        4 * (self.restarts * self.iterations * self.noises) as u64
    }

    /// Checks the parameters and makes the inverter.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn build(self) -> Result<Box<dyn Inverter>, DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        for (field, value) in [
            ("noises", self.noises),
            ("iterations", self.iterations),
            ("restarts", self.restarts),
        ] {
            if value == 0 {
                return refuse(field, value.to_string(), "at least 1");
            }
        }
        for (field, value) in [
            ("lambda", self.lambda),
            ("learning_rate", self.learning_rate),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(field, value.to_string(), "above 0 and finite");
            }
        }
        Ok(Box::new(Elijah { params: self }))
    }
}

/// Loss (1) and its gradient (2).
pub struct Objective {
    /// The loss.
    pub value: f64,
    /// Its gradient, `[1, C, H, W]`.
    pub shift: Tensor<4>,
    /// `mean_n e(eps_n + tau, T)`, `[1, C, H, W]`.
    pub answer: Tensor<4>,
}

/// (1) and (2) at `shift [1, C, H, W]`, without graph, for the bank `noises [N, C, H, W]`.
///
/// # Errors
/// When shapes do not fit.
pub fn objective(
    model: &dyn Denoiser,
    noises: &Tensor<4>,
    shift: &Tensor<4>,
    lambda: f64,
) -> Result<Objective, DefenseError> {
    let last = model.schedule().len() - 1;
    let count = noises.dims()[0];
    let mut chunks = Vec::new();
    for first in (0..count).step_by(AT_ONCE) {
        chunks.push(noises.clone().narrow(0, first, AT_ONCE.min(count - first)));
    }
    let mut answer = shift.zeros_like();
    for eps in &chunks {
        let e = model.epsilon(eps.clone() + shift.clone(), &[last])?;
        answer = answer + e.sum_dim(0) / count as f64;
    }
    let residual = shift.clone() * lambda - answer.clone();
    let value = residual.clone().abs().mean().into_scalar::<f32>(); // eq. (1)
    let size: usize = shift.dims().iter().product();
    let g = residual.sign() / size as f64;
    let mut gradient = g.clone() * lambda;
    for eps in chunks {
        let leaf = shift.clone().autodiff().require_grad();
        let e = model.epsilon(eps.autodiff() + leaf.clone(), &[last])?;
        let pulled = (e.sum_dim(0) * g.clone().autodiff()).sum();
        if let Some(part) = leaf.grad(&pulled.backward()) {
            gradient = gradient - part / count as f64; // eq. (2)
        }
    }
    Ok(Objective {
        value: f64::from(value),
        shift: gradient,
        answer,
    })
}

/// Adam on (1) from `start [1, C, H, W]`; `report` is given each step's loss and may stop the run by an error. Returns the
/// shift; its loss is the one that a further step would report.
///
/// # Errors
/// When shapes do not fit, and those of `report`.
pub fn descend(
    model: &dyn Denoiser,
    noises: &Tensor<4>,
    start: Tensor<4>,
    params: &ElijahParams,
    report: &mut dyn FnMut(f64) -> Result<(), DefenseError>,
) -> Result<Tensor<4>, DefenseError> {
    let dims = start.dims();
    let flat = |image: Tensor<4>| image.reshape([-1]);
    let zeros = flat(start.zeros_like());
    let mut at = Moved {
        values: flat(start),
        first: zeros.clone(),
        second: zeros,
    };
    for step in 1..=params.iterations {
        let shift = at.values.clone().reshape(dims);
        let objective = objective(model, noises, &shift, params.lambda)?;
        report(objective.value)?;
        let step = AdamStep {
            gradient_scale: 1.0,
            beta_1: BETA_1 as f32,
            beta_2: BETA_2 as f32,
            correction_1: (1.0 - BETA_1.powi(step as i32)) as f32,
            correction_2: (1.0 - BETA_2.powi(step as i32)) as f32,
            epsilon: EPSILON as f32,
            learning_rate: params.learning_rate as f32,
            weight_decay: 0.0,
        };
        at = ops::adam(at, flat(objective.shift), step);
    }
    Ok(at.values.reshape(dims))
}

/// The inverter. Made by [`ElijahParams::build`].
#[derive(Debug, Clone)]
pub struct Elijah {
    params: ElijahParams,
}

impl Inverter for Elijah {
    fn invert(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inversion, DefenseError> {
        let model = model.frozen();
        let probe = Probe::new(&model, cx);
        let params = &self.params;
        let steps = (params.restarts * params.iterations) as u64;
        cx.progress.start("Elijah", steps);
        let id = match params.family {
            Family::Stochastic => "elijah-stochastic",
            Family::Deterministic => "elijah-deterministic",
        };
        let runs = runs(id, params.restarts, cx, |restart, seed| {
            let (label, start) = start(probe.shape(), restart, seed);
            let noises = probe.noise(&seed.child("bank", 0), params.noises)?;
            let mut trace = Vec::with_capacity(params.iterations + 1);
            let mut report = |value| {
                cx.step()?;
                trace.push((trace.len(), value));
                Ok(())
            };
            let start = probe.image(&start);
            let shift = descend(probe.model, &noises, start, params, &mut report)?;
            let last = objective(probe.model, &noises, &shift, params.lambda)?.value;
            trace.push((trace.len(), last));
            Ok(Run {
                start: label,
                shift: values(shift),
                gamma: None,
                objective: last,
                trace,
                converged: last.is_finite(),
            })
        })?;
        Ok(best(
            runs,
            model.sample_shape(),
            params.family.into(),
            "Elijah's loss, mean absolute residual; lower is better, and no evidence by itself",
        ))
    }
}
