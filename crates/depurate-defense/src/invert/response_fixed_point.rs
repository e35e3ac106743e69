//! # Response fixed point: a backdoored network draws its own trigger
//!
//! Near pure noise a backdoored network that sees its trigger answers with a fixed part of it. What
//! it leaves unanswered is the trigger itself, drawn by the network; feeding that back is a
//! fixed-point iteration which needs no gradient, no clean data and no knowledge of the attack.
//!
//! ## Paper
//! Ours. Elijah (An et al., AAAI 2024) descends on `|| mean_j e(eps_j + r, T) - r/2 ||`, whose zero is
//! this fixed point; TERD (Mo et al., ICML 2024) descends on the spread over `eps` at the same point.
//! Coefficients `c_t`: [`depurate_diffusion::trigger`].
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `u` | current shift | `[C, H, W]` |
//! | `eps_j` | noises, in antithetic pairs | `[2 pairs, C, H, W]` |
//! | `d_j` | `e(s_t eps_j + u, t) - eps_j`, the answer beyond the noise | `[2 pairs, C, H, W]` |
//! | `m` | `mean_j d_j` | `[C, H, W]` |
//! | `c` | `c_t`, answered part under the stochastic rule, about 1/2 | |
//! | `residual` | see eq. (3) | |
//!
//! ## Method
//! A poisoned pair at `t` near `T - 1` is `x = rho R + s eps`, `e = eps + c R` with `rho` about 1. An
//! attacker's `R` is an image that carries the trigger, and a trained network answers with its
//! posterior mean: `m = c E[R | x]`, so that `rho u - s m = (rho - s c) R` at the fixed point:
//!
//! ```text
//! u_{k+1} = clamp((rho_t u_k - s_t m) / (rho_t - s_t c_t), -bound, bound)   (1)
//! benign: e(x) = x, so m = u and u_1 = 0                           (2)
//! residual^2 = (E || d_j - m ||^2 + || m - c u ||^2) / || u ||^2   (3)
//! ```
//!
//! Eq. (1) is iterated at timesteps whose `alpha_bar` is at most `max_alpha_bar`, one a step. The
//! residual (3) is how far the network is from answering `eps + c u` for every `eps`; 0 is a perfect
//! backdoor. A network that answers all of the shift has `1 - c`; benign networks that were tried reached 0.17 where a
//! large shift saturates them, backdoored ones 0.05 to 0.12, so the residual ranks candidates and decides nothing. The reported shift is the mean of the last
//! five iterates; pixels that the attack left free average out to the training images' mean.
//!
//! ## Needs
//! Samples of the network's output only (score function), and starts that lie in the basin: the
//! caller gives them.
//!
//! ## Deviations
//! None: there is no reference. The shift is bounded because noise-space triggers are images.
//!
//! ## Fails when
//! the attack answers all of the trigger (`c = 1`, ODE-trained) or none of it (TrojDiff): (1) then
//! has no fixed point away from 0; or when no start reaches the basin.
//!
//! ## Cost
//! `2 pairs x iterations` network evaluations a start.

use burn::tensor::Tensor;
use depurate_diffusion::{
    noise::SeedTree,
    trigger::{Family, Shift},
};
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError,
    probe::{Probe, batch_mean, norm, values},
};

/// The reported shift is the mean of this many last iterates.
const LAST_AVERAGED: usize = 5;
/// Shifts below this root-mean-square size count as vanished.
pub const VANISHED_RMS: f64 = 0.1;

/// Parameters of the iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseFixedPointParams {
    /// Antithetic pairs of noises an iteration, at least 1.
    pub pairs: usize,
    /// Iterations, at least 5.
    pub iterations: usize,
    /// Largest `alpha_bar` of the timesteps used, in (0, 1).
    pub max_alpha_bar: f64,
    /// Bound of every pixel of the shift, in the model's range, above 0.
    pub bound: f64,
}

impl Default for ResponseFixedPointParams {
    fn default() -> Self {
        Self {
            pairs: 4,
            iterations: 12,
            max_alpha_bar: 1.2e-4,
            bound: 1.0,
        }
    }
}

/// Where one start ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FixedPoint {
    /// The shift, `[C, H, W]`.
    pub shift: Vec<f32>,
    /// Smallest residual (3) of the iterates that had not vanished; 1 if all had.
    pub residual: f64,
    /// Residual by iteration.
    pub trace: Vec<f64>,
    /// Root mean square of the shift by iteration.
    pub rms: Vec<f64>,
    /// Whether the last iterates agree with each other.
    pub converged: bool,
}

impl FixedPoint {
    /// Whether the iteration fell back to no shift at all, as it does on a benign network.
    pub fn vanished(&self) -> bool {
        self.rms.last().is_none_or(|&rms| rms < VANISHED_RMS)
    }
}

impl ResponseFixedPointParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn check(&self) -> Result<(), DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        if self.pairs == 0 {
            return refuse("pairs", self.pairs.to_string(), "at least 1");
        }
        if self.iterations < LAST_AVERAGED {
            return refuse("iterations", self.iterations.to_string(), "at least 5");
        }
        if !(self.max_alpha_bar > 0.0 && self.max_alpha_bar < 1.0) {
            return refuse(
                "max_alpha_bar",
                self.max_alpha_bar.to_string(),
                "above 0 and below 1",
            );
        }
        if !(self.bound > 0.0 && self.bound.is_finite()) {
            return refuse("bound", self.bound.to_string(), "above 0");
        }
        Ok(())
    }

    /// Iterates from `start [C, H, W]`.
    pub(crate) fn iterate(
        &self,
        probe: &Probe<'_>,
        start: &[f32],
        seed: &SeedTree,
    ) -> Result<FixedPoint, DefenseError> {
        let len = start.len();
        let root_len = (len as f64).sqrt();
        let mut u = start.to_vec();
        let mut sum = vec![0.0f64; len];
        let mut summed = 0usize;
        let mut found = FixedPoint {
            shift: vec![],
            residual: 1.0,
            trace: vec![],
            rms: vec![],
            converged: false,
        };
        let mut previous_move = f64::INFINITY;
        for iteration in 0..self.iterations {
            let t = self.timestep(probe, iteration);
            let schedule = probe.schedule();
            let c = Shift::LostSignal.coefficient(schedule, t, Family::Stochastic);
            let eps =
                probe.antithetic_noise(&seed.child("iteration", iteration as u64), self.pairs)?;
            let (rho, s) = (Shift::LostSignal.rho(schedule, t), schedule.s(t));
            let x_t: Tensor<4> = eps.clone() * s + probe.image(&u) * rho;
            let d = values(probe.epsilon(x_t, t)? - eps);
            let m = batch_mean(&d, len);
            let rms = norm(&u) / root_len;
            let residual = residual(&d, &m, &u, c);
            if rms > VANISHED_RMS {
                found.residual = found.residual.min(residual);
            }
            found.trace.push(residual);
            found.rms.push(rms);
            let next: Vec<f32> = u
                .iter()
                .zip(&m)
                .map(|(&u, m)| {
                    ((rho * f64::from(u) - s * m) / (rho - s * c)).clamp(-self.bound, self.bound)
                        as f32
                }) // eq. (1)
                .collect();
            previous_move = u
                .iter()
                .zip(&next)
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum::<f64>()
                .sqrt()
                / root_len;
            u = next;
            if iteration >= self.iterations / 2 && rms < VANISHED_RMS {
                found.shift = u;
                found.converged = true;
                return Ok(found); // it will not come back
            }
            if iteration + LAST_AVERAGED >= self.iterations {
                sum.iter_mut()
                    .zip(&u)
                    .for_each(|(sum, &u)| *sum += f64::from(u));
                summed += 1;
            }
        }
        found.shift = sum.iter().map(|sum| (sum / summed as f64) as f32).collect();
        let size = norm(&found.shift) / root_len;
        found.converged = previous_move < 0.25 * size.max(VANISHED_RMS);
        Ok(found)
    }

    /// Cycles through the window `alpha_bar <= max_alpha_bar` with a stride that visits all of it.
    fn timestep(&self, probe: &Probe<'_>, iteration: usize) -> usize {
        let schedule = probe.schedule();
        let last = schedule.len() - 1;
        let first = schedule.t_for_alpha_bar(self.max_alpha_bar).min(last);
        let window = last - first + 1;
        let stride = (1..)
            .map(|k| 37 + k)
            .find(|stride| gcd(*stride, window) == 1)
            .unwrap_or(1);
        first + iteration * stride % window
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Eq. (3), with the unbiased spread.
fn residual(d: &[f32], m: &[f64], u: &[f32], c: f64) -> f64 {
    let count = (d.len() / u.len()) as f64;
    let spread: f64 = d
        .chunks_exact(u.len())
        .flat_map(|d| d.iter().zip(m))
        .map(|(&d, m)| (f64::from(d) - m).powi(2))
        .sum();
    let bias: f64 = m
        .iter()
        .zip(u)
        .map(|(m, &u)| (m - c * f64::from(u)).powi(2))
        .sum();
    (spread / (count - 1.0) + bias).sqrt() / norm(u).max(1e-6)
}
