//! # PNDM: pseudo numerical methods, Stable Diffusion 1's own sampler
//!
//! A step along the manifold of noisy samples (eq. 11), with the noise combined from several answers as linear multistep
//! and Runge-Kutta methods combine derivatives.
//!
//! ## Paper
//! Liu et al., ICLR 2022, arXiv:2202.09778, eq. (11) to (13); the start without Runge-Kutta steps ("PLMS") is that of
//! CompVis's latent diffusion.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `eps` | e_t, and the combined e'_t | `[B, C, H, W]` |
//! | `from`, `to` | t, t − δ | timesteps between which a call moves the sample |
//! | `transfer` | φ(x_t, e_t, t, t − δ) | `[B, C, H, W]` |
//!
//! ## Deviations
//! As in diffusers: outputs of a velocity network are combined as they are, and turned into noise with the sample of the last
//! call; the second PLMS call averages two answers and moves the *first* sample again, so that `n` steps take `n + 1` calls,
//! two of them at one timestep.
//!
//! ## Fails when
//! The network predicts the clean sample: the combination is of noise or velocity.

use burn::tensor::Tensor;

use super::{Past, Sampler, SamplerSettings, Steps, step_at};
use crate::{
    DiffusionError, Parameterisation, Prediction,
    noise::NoiseSource,
    schedule::{NoiseSchedule, SchedulerConfig},
};

/// Timesteps that the Runge-Kutta start covers.
const WARM_UP: usize = 4;

/// Pseudo linear multistep sampling. See the [module](self).
#[derive(Debug, Clone)]
pub struct Pndm {
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    calls: Vec<Call>,
    last: f64,
    n_steps: usize,
    runge_kutta: bool,
}

/// What one answer of the network is used for.
#[derive(Debug, Clone, Copy)]
struct Call {
    t: usize,
    from: usize,
    /// `None` is the clean end of the chain.
    to: Option<usize>,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// One of the four stages of a Runge-Kutta step.
    RungeKutta(usize),
    /// The first call of a multistep start.
    First,
    /// The second: the first step again, with the mean of both answers.
    Again,
    /// With as many earlier answers as there are, at most three.
    Multistep,
}

impl Pndm {
    /// The sampler of a checkpoint with `n_steps` steps.
    ///
    /// # Errors
    /// When the number of steps or the options are out of range, or the network predicts the clean sample.
    pub fn from_config(config: &SchedulerConfig, n_steps: usize) -> Result<Self, DiffusionError> {
        let schedule = config.schedule()?;
        let visited = config.timesteps(n_steps)?;
        let runge_kutta = !config.solver.skip_prk_steps;
        if config.prediction_type == Parameterisation::Sample {
            return Err(DiffusionError::Argument {
                what: "prediction of a network sampled with PNDM",
                got: "sample".into(),
                allowed: "epsilon or v_prediction".into(),
            });
        }
        if runge_kutta && n_steps < WARM_UP {
            return Err(DiffusionError::Argument {
                what: "number of PNDM steps with a Runge-Kutta start",
                got: n_steps.to_string(),
                allowed: format!("{WARM_UP} or more"),
            });
        }
        let stride = config.num_train_timesteps / n_steps;
        let calls = if runge_kutta {
            let multistep = visited.get(WARM_UP - 1..).unwrap_or_default();
            runge_kutta_calls(&visited, stride)
                .chain(multistep.iter().map(|t| multistep_call(*t, stride)))
                .collect()
        } else {
            multistep_calls(&visited, stride)
        };
        let timesteps: Vec<usize> = calls.iter().map(|call: &Call| call.t).collect();
        schedule.check_timesteps(&timesteps)?;
        let from: Vec<usize> = calls.iter().map(|call| call.from).collect();
        schedule.check_timesteps(&from)?;
        Ok(Self {
            last: if config.set_alpha_to_one {
                1.0
            } else {
                schedule.alpha_bar(0)
            },
            schedule,
            timesteps,
            calls,
            n_steps,
            runge_kutta,
        })
    }

    /// Moves `x [B, C, H, W]` from one timestep to another with a network's output, eq. (11).
    fn transfer(
        &self,
        x: Tensor<4>,
        output: Tensor<4>,
        kind: Parameterisation,
        call: &Call,
    ) -> Result<Tensor<4>, DiffusionError> {
        let alpha_bar = self.schedule.alpha_bar(call.from);
        let to = call.to.map_or(self.last, |t| self.schedule.alpha_bar(t));
        let seen = Prediction {
            kind,
            value: output,
        };
        let eps = seen.epsilon(x.clone(), &[call.from], &self.schedule)?;
        let below = alpha_bar * (1.0 - to).sqrt() + (alpha_bar * (1.0 - alpha_bar) * to).sqrt();
        Ok(x * (to / alpha_bar).sqrt() - eps * ((to - alpha_bar) / below)) // eq. (11)
    }
}

/// Two half steps' worth of calls for each of the first three steps: at the start, twice in the middle, at the end.
fn runge_kutta_calls(visited: &[usize], stride: usize) -> impl Iterator<Item = Call> {
    let half = stride / 2;
    let pairs: Vec<(usize, usize)> = visited
        .windows(2)
        .take(WARM_UP - 1)
        .map(|pair| (pair[0], pair[1]))
        .collect();
    pairs.into_iter().flat_map(move |(from, next)| {
        let middle = next + half;
        [from, middle, middle, next]
            .into_iter()
            .enumerate()
            .map(move |(stage, t)| Call {
                t,
                from,
                // the first and the third answer move half a step on, the second and the fourth are already there
                to: t.checked_sub(if stage % 2 == 0 { half } else { 0 }),
                rule: Rule::RungeKutta(stage),
            })
    })
}

/// `n + 1` calls for `n` timesteps.
fn multistep_calls(visited: &[usize], stride: usize) -> Vec<Call> {
    let mut calls = Vec::with_capacity(visited.len() + 1);
    for (i, &t) in visited.iter().enumerate() {
        if i == 0 {
            calls.push(Call {
                rule: Rule::First,
                ..multistep_call(t, stride)
            });
            continue;
        }
        if i == 1 {
            calls.push(Call {
                t,
                from: t + stride,
                to: Some(t),
                rule: Rule::Again,
            });
        }
        calls.push(multistep_call(t, stride));
    }
    calls
}

fn multistep_call(t: usize, stride: usize) -> Call {
    Call {
        t,
        from: t,
        to: t.checked_sub(stride),
        rule: Rule::Multistep,
    }
}

/// The linear multistep combination of answers, the latest last; eq. (12), and its lower orders.
fn combined(outputs: &[Tensor<4>]) -> Option<Tensor<4>> {
    let weights: &[f64] = match outputs.len() {
        0 => return None,
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    };
    let latest_first = outputs.iter().rev().zip(weights);
    latest_first
        .map(|(output, weight)| output.clone() * *weight)
        .reduce(|sum, part| sum + part)
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::Pndm {
            steps: Steps {
                count: self.n_steps,
                ..Steps::of(&self.timesteps)
            },
            runge_kutta: self.runge_kutta,
        }
    }

    fn is_multistep(&self) -> bool {
        true
    }

    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError> {
        let call = step_at(&self.calls, step_index)?;
        prediction
            .clone()
            .x0(x_t.clone(), &[call.t], &self.schedule)
    }

    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
        past: &mut Past,
        _noise: &mut dyn NoiseSource,
    ) -> Result<Tensor<4>, DiffusionError> {
        let call = step_at(&self.calls, step_index)?;
        let Prediction { kind, value } = prediction;
        let missing = || Past::missing(step_index);
        let (x, output) = match call.rule {
            Rule::RungeKutta(stage) => {
                let weight = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0][stage]; // eq. (13)
                let part = value.clone() * weight;
                if stage == 0 {
                    past.keep(value.clone(), WARM_UP);
                    past.start = Some(x_t);
                    past.sum = Some(part);
                } else {
                    past.sum = Some(past.sum.take().ok_or_else(missing)? + part);
                }
                let output = match stage {
                    3 => past.sum.take().ok_or_else(missing)?,
                    _ => value,
                };
                (past.start.clone().ok_or_else(missing)?, output)
            }
            Rule::First => {
                past.keep(value.clone(), WARM_UP);
                past.start = Some(x_t.clone());
                (x_t, value)
            }
            Rule::Again => {
                let first = past.outputs.last().cloned().ok_or_else(missing)?;
                (
                    past.start.take().ok_or_else(missing)?,
                    (value + first) * 0.5,
                )
            }
            Rule::Multistep => {
                past.keep(value, WARM_UP);
                (x_t, combined(&past.outputs).ok_or_else(missing)?)
            }
        };
        self.transfer(x, output, kind, call)
    }
}
