//! Thresholds with a stated false-positive rate, from benign scores alone.
//!
//! Split-conformal prediction: if the benign scores and the score of a further benign subject are
//! exchangeable, then the further one exceeds the `rank`-th smallest of `n` with probability at
//! most `(n + 1 - rank) / (n + 1)`, whatever the distribution. Given the calibration set, the true
//! rate is Beta(n + 1 - rank, rank) distributed when scores are continuous (Vovk 2012), and
//! smaller when there are ties.

use serde::{Deserialize, Serialize};

use crate::binomial::{Interval, beta_quantile};
use crate::error::{check_open_unit, check_values, sorted};
use crate::{StatsError, error};

/// A threshold fitted on benign scores: flag when `score > threshold`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConformalThreshold {
    /// The `rank`-th smallest benign score.
    pub threshold: f64,
    /// The false-positive rate that was asked for.
    pub target_fpr: f64,
    /// The false-positive rate that `n` benign scores justify: `(n + 1 - rank) / (n + 1)`. At most
    /// the target, except where the target is below `1 / (n + 1)`.
    pub stated_fpr: f64,
    /// How many benign scores there were.
    pub n: usize,
    /// Which of them, counted from 1 in ascending order, is the threshold.
    pub rank: usize,
}

impl ConformalThreshold {
    /// Does the threshold flag this score?
    #[must_use]
    pub fn flags(&self, score: f64) -> bool {
        score > self.threshold
    }

    /// Is the stated rate at most the one that was asked for?
    #[must_use]
    pub fn meets_target(&self) -> bool {
        self.stated_fpr <= self.target_fpr
    }

    /// The exact equal-tailed interval of the true false-positive rate given this calibration set.
    ///
    /// # Errors
    /// If `confidence` is not in (0, 1), or if `rank` is not in `1..=n` (a threshold read from a
    /// damaged file).
    pub fn fpr_interval(&self, confidence: f64) -> Result<Interval, StatsError> {
        check_open_unit("confidence", confidence)?;
        if self.rank == 0 || self.rank > self.n {
            return Err(StatsError::OutOfRange {
                what: "rank",
                value: self.rank as f64,
                range: "1..=n",
            });
        }
        let tail = (1.0 - confidence) / 2.0;
        let (a, b) = ((self.n + 1 - self.rank) as f64, self.rank as f64);
        Ok(Interval {
            lower: beta_quantile(a, b, tail),
            upper: beta_quantile(a, b, 1.0 - tail),
        })
    }
}

/// Fits the threshold whose false-positive rate is at most `target_fpr`: the
/// `ceil((n + 1) (1 - target_fpr))`-th smallest benign score.
///
/// With `target_fpr < 1 / (n + 1)` no finite threshold is justified. The greatest benign score is
/// then the threshold and `1 / (n + 1)` the stated rate.
///
/// # Errors
/// If there are no benign scores, one is not finite, or `target_fpr` is not in (0, 1).
pub fn conformal_threshold(
    benign_scores: &[f64],
    target_fpr: f64,
) -> Result<ConformalThreshold, StatsError> {
    check_values("benign_scores", benign_scores, 1)?;
    check_open_unit("target_fpr", target_fpr)?;
    let n = benign_scores.len();
    // floor((n + 1) alpha) scores may lie above; the factor forgives the rounding of a decimal
    // alpha, as in 100 * 0.29 = 28.999999999999996
    let above = ((n + 1) as f64 * target_fpr * (1.0 + 4.0 * f64::EPSILON)) as usize;
    let rank = n + 1 - above.clamp(1, n);
    Ok(ConformalThreshold {
        threshold: error::sorted(benign_scores)[rank - 1],
        target_fpr,
        stated_fpr: (n + 1 - rank) as f64 / (n + 1) as f64,
        n,
        rank,
    })
}

/// The conformal p-value of a score: `(1 + #{benign >= score}) / (n + 1)`. Without benign scores 1.
///
/// # Errors
/// If a value is not finite.
pub fn conformal_p_value(score: f64, benign: &[f64]) -> Result<f64, StatsError> {
    check_values("score", &[score], 1)?;
    check_values("benign", benign, 0)?;
    let benign = sorted(benign);
    let as_high = benign.len() - benign.partition_point(|&b| b < score);
    Ok((1 + as_high) as f64 / (1 + benign.len()) as f64)
}
