//! Intervals of a proportion.

use serde::{Deserialize, Serialize};
use statrs::{
    distribution::{ContinuousCDF as _, Normal},
    function::beta::beta_reg,
};

use crate::StatsError;
use crate::error::check_open_unit;

/// A closed interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub lower: f64,
    /// Its upper end.
    pub upper: f64,
}

impl Interval {
    /// Does `value` lie in the interval, ends included?
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.lower <= value && value <= self.upper
    }
}

impl From<Interval> for (f64, f64) {
    fn from(interval: Interval) -> Self {
        (interval.lower, interval.upper)
    }
}

/// The exact two-sided interval of a proportion after Clopper and Pearson (1934): each end leaves
/// at most `(1 - confidence) / 2` outside. No trials give `[0, 1]`.
///
/// # Errors
/// If `successes > n` or `confidence` is not in (0, 1).
pub fn clopper_pearson(successes: u64, n: u64, confidence: f64) -> Result<Interval, StatsError> {
    check_trials(successes, n, confidence)?;
    let tail = (1.0 - confidence) / 2.0;
    let (k, failures) = (successes as f64, (n - successes) as f64);
    let lower = match successes {
        0 => 0.0,
        _ => beta_quantile(k, failures + 1.0, tail),
    };
    let upper = if successes == n {
        1.0
    } else {
        beta_quantile(k + 1.0, failures, 1.0 - tail)
    };
    Ok(Interval { lower, upper })
}

/// The score interval of a proportion after Wilson (1927): the shares `p` that a normal test with the variance
/// `p (1 - p) / n` does not refuse. Shorter than the exact one, and with the stated confidence only on average over `p`.
/// No trials give `[0, 1]`.
///
/// # Errors
/// If `successes > n` or `confidence` is not in (0, 1).
pub fn wilson(successes: u64, n: u64, confidence: f64) -> Result<Interval, StatsError> {
    check_trials(successes, n, confidence)?;
    if n == 0 {
        return Ok(Interval {
            lower: 0.0,
            upper: 1.0,
        });
    }
    let (n, z) = (
        n as f64,
        Normal::standard().inverse_cdf((1.0 + confidence) / 2.0),
    );
    let share = successes as f64 / n;
    let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    Ok(Interval {
        lower: if successes == 0 { 0.0 } else { centre - half }, // rounding would leave a hair
        upper: if share == 1.0 { 1.0 } else { centre + half },
    })
}

fn check_trials(successes: u64, n: u64, confidence: f64) -> Result<(), StatsError> {
    check_open_unit("confidence", confidence)?;
    if successes > n {
        return Err(StatsError::MoreSuccessesThanTrials { successes, n });
    }
    Ok(())
}

/// The quantile of Beta(a, b) at probability `p`; `a, b > 0`, `0 < p < 1`.
///
/// Bisection of the distribution function down to neighbouring floats: about 60 steps near 1, some
/// hundred more for a quantile near 0, and none of the convergence cases of faster methods.
pub(crate) fn beta_quantile(a: f64, b: f64, p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    loop {
        let middle = 0.5 * (low + high);
        if middle == low || middle == high {
            return middle;
        }
        if beta_reg(a, b, middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
}
