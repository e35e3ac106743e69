//! Noise levels as `sigma = s / a`, of training timesteps and between them.
//!
//! A sample in the variance-exploding scale is `x / a = x_0 + sigma eps`. Karras et al., NeurIPS 2022, arXiv:2206.00364, eq. (5)
//! spaces levels evenly in `sigma^(1/7)`.

use crate::schedule::{NoiseSchedule, linspace};

/// What diffusers puts in place of the last `alpha_bar` of a schedule without signal at its end.
const IN_PLACE_OF_ZERO: f64 = 1.0 / (1 << 24) as f64;
/// The exponent of eq. (5).
const RHO: f64 = 7.0;

/// The `sigma` of every training timestep.
#[derive(Debug, Clone)]
pub(crate) struct TrainingSigmas(Vec<f64>);

impl TrainingSigmas {
    pub(crate) fn new(schedule: &NoiseSchedule) -> Self {
        let sigma = |alpha_bar: &f64| {
            let alpha_bar = match *alpha_bar {
                0.0 => IN_PLACE_OF_ZERO,
                some => some,
            };
            ((1.0 - alpha_bar) / alpha_bar).sqrt()
        };
        Self(schedule.alphas_cumprod().iter().map(sigma).collect())
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    pub(crate) fn largest(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    /// The level at a time between timesteps, linear between its neighbours.
    pub(crate) fn at(&self, time: f64) -> f64 {
        let last = self.0.len() - 1;
        let below = (time.max(0.0) as usize).min(last);
        let above = (below + 1).min(last);
        let share = (time - below as f64).clamp(0.0, 1.0);
        self.0[below] + share * (self.0[above] - self.0[below])
    }

    /// The time of a level, linear in `log sigma` between its neighbours.
    pub(crate) fn time_of(&self, sigma: f64) -> f64 {
        let above = self.0.partition_point(|level| *level <= sigma);
        let low = above.saturating_sub(1).min(self.0.len().saturating_sub(2));
        let high = (low + 1).min(self.0.len() - 1);
        let (a, b) = (self.0[low].ln(), self.0[high].ln());
        let share = if a == b {
            0.0
        } else {
            (a - sigma.ln()) / (a - b)
        };
        low as f64 + share.clamp(0.0, 1.0)
    }
}

/// `n` levels from `largest` to `least`, eq. (5).
pub(crate) fn karras(largest: f64, least: f64, n: usize) -> Vec<f64> {
    let (from, to) = (largest.powf(1.0 / RHO), least.powf(1.0 / RHO));
    linspace(0.0, 1.0, n)
        .into_iter()
        .map(|u| (from + u * (to - from)).powf(RHO)) // eq. (5)
        .collect()
}
