//! # TERD, input level: is this initial noise shifted by a known trigger?
//!
//! Given an inverted trigger, an initial noise is more likely under the triggered prior than under the
//! benign one, or it is not.
//!
//! ## Paper
//! Mo et al., "TERD", ICML 2024, arXiv:2409.05294, input detection.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `x_T` | initial noise | `[C, H, W]` |
//! | `shift` | r | `[C, H, W]` |
//! | `gamma` | gamma, a standard deviation | `[C, H, W]`, 1 where it is not inverted |
//!
//! ## Method
//! ```text
//! score = log N(x_T; r, diag(gamma^2)) - log N(x_T; 0, I)                                     (1)
//!       = sum_i [ x_i^2 / 2 - (x_i - r_i)^2 / (2 gamma_i^2) - ln gamma_i ]
//! ```
//! Higher is more suspicious; 0 is where both are equally likely. With `gamma = 1` a benign noise scores above
//! `s` with probability `Phi(-(s + |r|^2 / 2) / |r|)` exactly, so that a threshold for a false-positive rate needs
//! no calibration: see [`TerdInput::threshold`].
//!
//! ## Needs
//! The trigger, from an inversion.
//!
//! ## Deviations
//! - `gamma` is a standard deviation; the released code passes `diag(gamma)` where a covariance is expected
//!   (test `gamma_is_a_standard_deviation`).
//! - Rates are named by what is flagged: the paper's TPR counts benign inputs that are accepted.
//!
//! ## Fails when
//! the inverted trigger is far from the true one, or the trigger is so small that `|r|` is a few units: then no
//! detector can tell the two priors apart.
//!
//! ## Cost
//! `O(C H W)`, no network.

use crate::{DefenseError, invert::terd::GAMMA_MIN, probe::norm};

/// The detector's id.
pub const ID: &str = "terd-input";

/// The detector for one trigger.
#[derive(Debug, Clone)]
pub struct TerdInput {
    shift: Vec<f32>,
    gamma: Option<Vec<f32>>,
}

impl TerdInput {
    /// For the trigger `shift [C, H, W]` and, where it was inverted, the noise's scale `gamma [C, H, W]`.
    ///
    /// # Errors
    /// When there is no trigger, the lengths differ, or a value is not finite.
    pub fn new(shift: Vec<f32>, gamma: Option<Vec<f32>>) -> Result<Self, DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        if norm(&shift) == 0.0 || !norm(&shift).is_finite() {
            return refuse(
                "shift",
                norm(&shift).to_string(),
                "finite and not zero everywhere",
            );
        }
        if let Some(gamma) = &gamma {
            if gamma.len() != shift.len() {
                return refuse(
                    "gamma",
                    gamma.len().to_string(),
                    "one value for each of the shift's",
                );
            }
            if gamma.iter().any(|gamma| !gamma.is_finite() || *gamma < 0.0) {
                return refuse("gamma", "negative or not finite".into(), "at least 0");
            }
        }
        Ok(Self { shift, gamma })
    }

    /// Score (1) of one initial noise `[C, H, W]`; `None` if it has another length.
    pub fn score(&self, x_t: &[f32]) -> Option<f64> {
        (x_t.len() == self.shift.len()).then(|| {
            let of = |i: usize| {
                let (x, r) = (f64::from(x_t[i]), f64::from(self.shift[i]));
                let gamma = self
                    .gamma
                    .as_ref()
                    .map_or(1.0, |gamma| f64::from(gamma[i]).max(GAMMA_MIN));
                x * x / 2.0 - ((x - r) / gamma).powi(2) / 2.0 - gamma.ln() // eq. (1)
            };
            (0..x_t.len()).map(of).sum()
        })
    }

    /// The score that a benign noise exceeds at a chosen rate: for `gamma = 1` the score is
    /// normal with mean `-|r|^2 / 2` and standard deviation `|r|`, and `z` is the upper quantile of the standard
    /// normal distribution at the false-positive rate asked for (1.645 for 5 %). `None` where `gamma` was inverted:
    /// then the threshold is 0, as in the paper.
    pub fn threshold(&self, z: f64) -> Option<f64> {
        let size = norm(&self.shift);
        self.gamma.is_none().then(|| z * size - size * size / 2.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use depurate_diffusion::noise::SeedTree;
    use rand::RngExt;

    use super::*;

    /// Sums of twelve uniform draws: mean 0, variance 1.
    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let mut rng = SeedTree::new(seed).rng();
        (0..len)
            .map(|_| (0..12).map(|_| rng.random_range(-0.5f32..0.5)).sum())
            .collect()
    }

    #[test]
    fn benign_noise_passes_at_the_stated_rate_and_triggered_noise_does_not() {
        let shift = vec![0.15; 256]; // a norm of 2.4: hard to tell
        let detector = TerdInput::new(shift.clone(), None).unwrap();
        let threshold = detector.threshold(1.645).unwrap();
        let (mut benign, mut triggered) = (0, 0);
        for seed in 0..2000 {
            let eps = noise(seed, 256);
            benign += u32::from(detector.score(&eps).unwrap() > threshold);
            let shifted: Vec<f32> = eps.iter().zip(&shift).map(|(eps, r)| eps + r).collect();
            triggered += u32::from(detector.score(&shifted).unwrap() > threshold);
        }
        // 5 % of 2000, four standard deviations of the binomial either way
        assert!((61..=139).contains(&benign), "{benign}");
        // Phi(2.4 - 1.645) = 77 %
        assert!((1465..=1625).contains(&triggered), "{triggered}");
    }

    #[test]
    fn gamma_is_a_standard_deviation() {
        let detector = TerdInput::new(vec![1.0; 4], Some(vec![0.6; 4])).unwrap();
        let score = detector.score(&[1.3, 0.7, 1.0, 1.0]).unwrap();
        let by_hand: f64 = [1.3f64, 0.7, 1.0, 1.0]
            .iter()
            .map(|x| x * x / 2.0 - (x - 1.0) * (x - 1.0) / (2.0 * 0.36) - 0.6f64.ln())
            .sum();
        assert!((score - by_hand).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        assert!(
            TerdInput::new(vec![0.0; 4], None)
                .unwrap_err()
                .to_string()
                .contains("shift")
        );
        assert!(
            TerdInput::new(vec![1.0; 4], Some(vec![1.0; 3]))
                .unwrap_err()
                .to_string()
                .contains("gamma")
        );
        assert!(
            TerdInput::new(vec![1.0; 4], Some(vec![f32::NAN; 4]))
                .unwrap_err()
                .to_string()
                .contains("gamma")
        );
        let detector = TerdInput::new(vec![1.0; 4], None).unwrap();
        assert_eq!(detector.score(&[0.0; 3]), None);
    }
}
