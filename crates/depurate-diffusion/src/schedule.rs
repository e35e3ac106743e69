//! # Noise schedules
//!
//! How much of the sample and how much noise a noisy sample `x_t` holds at every training timestep.
//!
//! ## Paper
//! Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239, eq. (2) and (4);
//! Nichol and Dhariwal, arXiv:2102.09672, eq. (17) for the cosine schedule; Lin et al., arXiv:2305.08891,
//! algorithm 1 for the zero-terminal-SNR rescaling.
//!
//! ## Notation
//! | code | paper | range |
//! |---|---|---|
//! | `t` | t | `0 ..= T - 1`; the papers count from 1. 0 is almost clean, `T - 1` almost pure noise |
//! | `beta(t)` | β_t | (0, 1); the last may be 1 with zero terminal SNR |
//! | `alpha(t)` | α_t = 1 − β_t | [0, 1) |
//! | `alpha_bar(t)` | ᾱ_t = ∏ α | strictly decreasing; `alphas_cumprod` in diffusers' files |
//! | `a(t)` | √ᾱ_t | weight of the clean sample |
//! | `s(t)` | √(1 − ᾱ_t) | standard deviation of the noise |
//!
//! `x_t = a_t x_0 + s_t eps` (eq. 4).
//!
//! ## Deviations
//! diffusers computes its tables in 32-bit floats, this module in 64-bit: runs differ by up to 5e-5 of
//! the largest `|x|` (2e-4 with the cosine schedule). [`NoiseSchedule::from_alphas_cumprod`] takes a stored table as it is.

mod config;

pub use config::{
    BetaSchedule, DpmAlgorithm, FinalSigma, SchedulerClass, SchedulerConfig, SolverOptions,
    SolverType, TimestepSpacing, VarianceType,
};

use crate::DiffusionError;

/// Largest number of training timesteps accepted; bounds what a hostile file can make us allocate.
pub const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// Tables of one noise schedule, in f64. Immutable and checked: every `alpha_bar` is below its predecessor.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// `n` betas from `beta_start` to `beta_end`, equally spaced.
    ///
    /// # Errors
    /// When `n` is 0 or too large or a beta leaves (0, 1).
    pub fn linear(n: usize, beta_start: f64, beta_end: f64) -> Result<Self, DiffusionError> {
        check_len(n)?;
        Self::from_betas(linspace(beta_start, beta_end, n))
    }

    /// `n` betas whose square roots are equally spaced (latent diffusion).
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn scaled_linear(n: usize, beta_start: f64, beta_end: f64) -> Result<Self, DiffusionError> {
        check_len(n)?;
        Self::from_betas(
            linspace(beta_start.sqrt(), beta_end.sqrt(), n)
                .into_iter()
                .map(|root| root * root)
                .collect(),
        )
    }

    /// The cosine schedule, `squaredcos_cap_v2` in diffusers.
    ///
    /// # Errors
    /// When `n` is 0 or too large.
    pub fn squared_cosine(n: usize) -> Result<Self, DiffusionError> {
        check_len(n)?;
        // eq. (17) of arXiv:2102.09672
        let level = |u: f64| {
            ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        let at = |i: usize| i as f64 / n as f64;
        Self::from_betas(
            (0..n)
                .map(|i| (1.0 - level(at(i + 1)) / level(at(i))).min(0.999))
                .collect(),
        )
    }

    /// `n` betas along a sigmoid over [-6, 6] (GeoDiff; `sigmoid` in diffusers).
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn sigmoid(n: usize, beta_start: f64, beta_end: f64) -> Result<Self, DiffusionError> {
        check_len(n)?;
        let logistic = |u: f64| 1.0 / (1.0 + (-u).exp());
        let betas = linspace(-6.0, 6.0, n)
            .into_iter()
            .map(|u| logistic(u) * (beta_end - beta_start) + beta_start)
            .collect();
        Self::from_betas(betas)
    }

    /// From the betas themselves.
    ///
    /// # Errors
    /// When there is none or too many, or one is outside (0, 1); the last may be 1 (zero terminal SNR).
    pub fn from_betas(betas: Vec<f64>) -> Result<Self, DiffusionError> {
        check_len(betas.len())?;
        let last = betas.len() - 1;
        for (t, &beta) in betas.iter().enumerate() {
            if !(beta > 0.0 && (beta < 1.0 || (t == last && beta == 1.0))) {
                return Err(DiffusionError::Argument {
                    what: "a beta of the noise schedule",
                    got: format!("{beta} at t = {t}"),
                    allowed: "0 < beta < 1 (the last may be 1)".into(),
                });
            }
        }
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Self {
            betas,
            alphas_cumprod,
        }
        .checked()
    }

    /// From a stored table of `alpha_bar` (`alphas_cumprod`), kept as it is.
    ///
    /// # Errors
    /// When the table is empty, too long, leaves [0, 1) or does not fall strictly.
    pub fn from_alphas_cumprod(alphas_cumprod: Vec<f64>) -> Result<Self, DiffusionError> {
        check_len(alphas_cumprod.len())?;
        let before = std::iter::once(1.0).chain(alphas_cumprod.iter().copied());
        let betas = before
            .zip(&alphas_cumprod)
            .map(|(before, now)| 1.0 - now / before)
            .collect();
        Self {
            betas,
            alphas_cumprod,
        }
        .checked()
    }

    /// Shifts and scales `a_t` so that the last step holds no signal at all: `alpha_bar(T - 1) = 0`
    /// (`rescale_betas_zero_snr` in diffusers).
    ///
    /// # Errors
    /// When the schedule has a single step.
    pub fn rescaled_to_zero_snr(self) -> Result<Self, DiffusionError> {
        let last = self.len() - 1;
        if last == 0 {
            return Err(DiffusionError::Argument {
                what: "number of training timesteps with zero terminal SNR",
                got: "1".into(),
                allowed: "2 or more".into(),
            });
        }
        let (a_0, a_last) = (self.a(0), self.a(last));
        // algorithm 1 of arXiv:2305.08891
        let rescaled = (0..self.len())
            .map(|t| ((self.a(t) - a_last) * a_0 / (a_0 - a_last)).powi(2))
            .collect();
        Self::from_alphas_cumprod(rescaled)
    }

    /// Number of training timesteps, `T`.
    #[expect(clippy::len_without_is_empty, reason = "a schedule is never empty")]
    pub fn len(&self) -> usize {
        self.betas.len()
    }

    /// All betas, by `t`.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// All `alpha_bar`, by `t`.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Variance that one step of the chain adds.
    ///
    /// # Panics
    /// As every accessor below: when `t >= T`. Check timesteps from outside with [`Self::check_timesteps`].
    pub fn beta(&self, t: usize) -> f64 {
        self.betas[t]
    }

    /// `1 - beta(t)`.
    pub fn alpha(&self, t: usize) -> f64 {
        1.0 - self.betas[t]
    }

    /// Share of the clean sample's variance that is left in `x_t`.
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alphas_cumprod[t]
    }

    /// `alpha_bar` of the step before `t`, one step of the chain closer to the clean sample; 1 before `t = 0`.
    pub fn alpha_bar_before(&self, t: usize) -> f64 {
        t.checked_sub(1)
            .map_or(1.0, |before| self.alpha_bar(before))
    }

    /// Weight of the clean sample in `x_t`, `sqrt(alpha_bar)`.
    pub fn a(&self, t: usize) -> f64 {
        self.alpha_bar(t).sqrt()
    }

    /// Standard deviation of the noise in `x_t`, `sqrt(1 - alpha_bar)`.
    pub fn s(&self, t: usize) -> f64 {
        (1.0 - self.alpha_bar(t)).sqrt()
    }

    /// The timestep whose `alpha_bar` is closest to `value` (the earlier one, if two are).
    ///
    /// Windows such as "the noisiest steps" are stated by `alpha_bar`, not by index: the same index means
    /// another noise level as soon as `T` or the betas change.
    pub fn t_for_alpha_bar(&self, value: f64) -> usize {
        let above = self
            .alphas_cumprod
            .partition_point(|&alpha_bar| alpha_bar > value); // first t at or below `value`
        if above == 0 {
            return 0;
        }
        if above == self.len() {
            return self.len() - 1;
        }
        let (before, after) = (
            self.alpha_bar(above - 1) - value,
            value - self.alpha_bar(above),
        );
        if before <= after { above - 1 } else { above }
    }

    /// Checks timesteps that come from outside.
    ///
    /// # Errors
    /// When one is not below `T`.
    pub fn check_timesteps(&self, t: &[usize]) -> Result<(), DiffusionError> {
        match t.iter().find(|&&t| t >= self.len()) {
            None => Ok(()),
            Some(t) => Err(DiffusionError::Argument {
                what: "timestep",
                got: t.to_string(),
                allowed: format!("0 ..= {}", self.len() - 1),
            }),
        }
    }

    /// Checks a time between timesteps.
    ///
    /// # Errors
    /// When it is not from 0 to `T - 1`.
    pub fn check_time(&self, time: f64) -> Result<(), DiffusionError> {
        let last = self.len() - 1;
        if (0.0..=last as f64).contains(&time) {
            return Ok(());
        }
        Err(DiffusionError::Argument {
            what: "time",
            got: time.to_string(),
            allowed: format!("0 to {last}"),
        })
    }

    fn checked(self) -> Result<Self, DiffusionError> {
        let mut before = 1.0;
        for (t, &alpha_bar) in self.alphas_cumprod.iter().enumerate() {
            if !(alpha_bar >= 0.0 && alpha_bar < before) {
                return Err(DiffusionError::Argument {
                    what: "alpha_bar of the noise schedule",
                    got: format!("{alpha_bar} at t = {t} after {before}"),
                    allowed: "strictly decreasing from below 1 to 0 or more; use fewer steps or smaller betas".into(),
                });
            }
            before = alpha_bar;
        }
        Ok(self)
    }
}

fn check_len(n: usize) -> Result<(), DiffusionError> {
    if (1..=MAX_TRAIN_TIMESTEPS).contains(&n) {
        return Ok(());
    }
    Err(DiffusionError::Argument {
        what: "number of training timesteps",
        got: n.to_string(),
        allowed: format!("1 ..= {MAX_TRAIN_TIMESTEPS}"),
    })
}

/// `n` equally spaced values, both ends included; only `start` when `n` is 1.
pub(crate) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let width = (end - start) / (n.max(2) - 1) as f64;
    (0..n)
        .map(|i| {
            if i > 0 && i + 1 == n {
                end
            } else {
                start + width * i as f64
            }
        })
        .collect()
}
