//! # DPM-Solver++: multistep solver of the diffusion ODE or SDE in the log signal-to-noise ratio
//!
//! ## Paper
//! Lu et al., arXiv:2211.01095, eq. (9) (first order), algorithm 2 (second order, multistep) and the third-order
//! multistep of its reference code; sec. 5 for the SDE form.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `sigma` | σ/α, the level in the variance-exploding scale | falling, the last 0 |
//! | `a`, `s` | α, σ | `a² + s² = 1` |
//! | `lambda` | λ = log(α/σ) | rising, the last infinite |
//! | `h`, `h_0`, `h_1` | h of this and of earlier steps | |
//! | `m_0`, `m_1`, `m_2` | x_θ at the last calls, the latest first | `[B, C, H, W]` |
//! | `d_1`, `d_2` | D: differences of them | `[B, C, H, W]` |
//!
//! ## Deviations
//! As in diffusers: with `linspace` and `leading` spacing, `n` of `n + 1` points are visited; Karras levels belong to rounded
//! timesteps; the last step is of first order where it goes to `sigma = 0`, and lower orders are used at the end of runs with
//! fewer than 15 steps. Noise is drawn at every step of the SDE form, also where its factor is 0.

use burn::tensor::Tensor;

use super::{
    Clip, Past, Sampler, SamplerSettings, Steps,
    sigmas::{TrainingSigmas, karras},
    step_at,
};
use crate::{
    DiffusionError, Parameterisation, Prediction,
    noise::NoiseSource,
    parameterisation::check_same_shape,
    schedule::{
        BetaSchedule, DpmAlgorithm, FinalSigma, SchedulerConfig, SolverOptions, SolverType,
        TimestepSpacing, linspace,
    },
};

/// Runs shorter than this lower their order at the end.
const SHORT_RUN: usize = 15;

/// Multistep DPM-Solver++ of order 1 to 3. See the [module](self).
#[derive(Debug, Clone)]
pub struct DpmSolver {
    timesteps: Vec<usize>,
    /// One more than timesteps.
    levels: Vec<Level>,
    solver: SolverOptions,
    clip: Clip,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    a: f64,
    s: f64,
    lambda: f64,
}

impl Level {
    fn new(sigma: f64) -> Self {
        let a = 1.0 / sigma.hypot(1.0);
        Self {
            a,
            s: sigma * a,
            lambda: -sigma.ln(),
        }
    }
}

impl DpmSolver {
    /// The sampler with a checkpoint's options and `n_steps` steps.
    ///
    /// # Errors
    /// When the number of steps or the options are out of range.
    pub fn from_config(config: &SchedulerConfig, n_steps: usize) -> Result<Self, DiffusionError> {
        config.check_steps(n_steps)?;
        let training = TrainingSigmas::new(&config.schedule()?);
        let total = config.num_train_timesteps;
        let (timesteps, mut sigmas) = if config.solver.karras_sigmas {
            let sigmas = karras(training.largest(), training.least(), n_steps);
            let time = |sigma: &f64| training.time_of(*sigma);
            let whole = |time: f64| match config.beta_schedule {
                BetaSchedule::SquaredCosine => time as usize,
                _ => time.round_ties_even() as usize,
            };
            (sigmas.iter().map(time).map(whole).collect(), sigmas)
        } else {
            let timesteps: Vec<usize> = match config.timestep_spacing {
                TimestepSpacing::Linspace => linspace(0.0, (total - 1) as f64, n_steps + 1)
                    .into_iter()
                    .skip(1)
                    .rev()
                    .map(|t| t.round_ties_even() as usize)
                    .collect(),
                TimestepSpacing::Leading => {
                    let stride = total / (n_steps + 1);
                    let at = |i: usize| i * stride + config.steps_offset;
                    (1..=n_steps).rev().map(at).collect()
                }
                TimestepSpacing::Trailing => config.timesteps(n_steps)?,
            };
            let sigmas = timesteps.iter().map(|t| training.at(*t as f64)).collect();
            (timesteps, sigmas)
        };
        config.schedule()?.check_timesteps(&timesteps)?;
        sigmas.push(match config.solver.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::Least => training.least(),
        });
        Ok(Self {
            timesteps,
            levels: sigmas.into_iter().map(Level::new).collect(),
            solver: config.solver.clone(),
            clip: if config.thresholding {
                config.clip()
            } else {
                Clip::None
            },
        })
    }

    /// The order of a step, at most one more than the earlier answers that there are.
    fn order(&self, index: usize, earlier: usize) -> usize {
        let n = self.timesteps.len();
        let short = self.solver.lower_order_final && n < SHORT_RUN;
        let to_zero = self.solver.final_sigma == FinalSigma::Zero;
        let wanted = self.solver.order.min(earlier + 1);
        if index + 1 == n && (self.solver.euler_at_final || short || to_zero) {
            1
        } else if index + 2 == n && short {
            wanted.min(2)
        } else {
            wanted
        }
    }
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::DpmSolver {
            steps: Steps::of(&self.timesteps),
            order: self.solver.order,
            stochastic: self.solver.algorithm == DpmAlgorithm::Stochastic,
            karras: self.solver.karras_sigmas,
        }
    }

    fn is_multistep(&self) -> bool {
        self.solver.order > 1
    }

    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError> {
        step_at(&self.timesteps, step_index)?;
        let Level { a, s, .. } = *step_at(&self.levels, step_index)?;
        let value = prediction.value.clone();
        check_same_shape("prediction", &value, x_t)?;
        Ok(self.clip.apply(match prediction.kind {
            Parameterisation::Epsilon => (x_t.clone() - value * s) / a,
            Parameterisation::Sample => value,
            Parameterisation::Velocity => x_t.clone() * a - value * s,
        }))
    }

    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
        past: &mut Past,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor<4>, DiffusionError> {
        let m_0 = self.predicted_x0(&prediction, step_index, &x_t)?;
        let order = self.order(step_index, past.outputs.len());
        let lambda = |back: usize| self.levels[step_index - back].lambda;
        let (from, to) = (self.levels[step_index], self.levels[step_index + 1]);
        let h = to.lambda - from.lambda;
        let stochastic = self.solver.algorithm == DpmAlgorithm::Stochastic;
        // what is left of the old sample, and what is taken of the predicted one
        let decay = if stochastic { (-h).exp() } else { 1.0 };
        let gain = if stochastic {
            -(-2.0 * h).exp_m1()
        } else {
            -(-h).exp_m1()
        };
        let mut x = x_t.clone() * (to.s / from.s * decay) + m_0.clone() * (to.a * gain); // eq. (9)
        // the weight of a first difference in the third-order and Heun forms
        let slope = || 1.0 - gain / if stochastic { 2.0 * h } else { h };
        let earlier = |back: usize| {
            let at = past.outputs.len().checked_sub(back);
            at.and_then(|at| past.outputs.get(at))
                .ok_or_else(|| Past::missing(step_index))
        };
        if order >= 2 {
            let r_0 = (lambda(0) - lambda(1)) / h;
            let d_1 = (m_0.clone() - earlier(1)?.clone()) / r_0;
            if order == 2 {
                let weight = match self.solver.kind {
                    SolverType::Midpoint => gain / 2.0, // algorithm 2
                    SolverType::Heun => slope(),
                };
                x = x + d_1 * (to.a * weight);
            } else {
                let r_1 = (lambda(1) - lambda(2)) / h;
                let before = (earlier(1)?.clone() - earlier(2)?.clone()) / r_1;
                let d_2 = (d_1.clone() - before) / (r_0 + r_1);
                let d_1 = d_1 + d_2.clone() * r_0;
                x = x + d_1 * (to.a * slope()) - d_2 * (to.a * ((h - gain) / (h * h) - 0.5));
            }
        }
        past.keep(m_0, self.solver.order.saturating_sub(1).max(1));
        if stochastic {
            let z = noise.normal(x_t.dims(), &x_t.device())?;
            check_same_shape("noise", &z, &x_t)?;
            x = x + z * (to.s * gain.sqrt());
        }
        Ok(x)
    }
}
