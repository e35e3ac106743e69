//! The receiver operating characteristic: true against false positives over all thresholds.

use serde::{Deserialize, Serialize};

use crate::StatsError;
use crate::error::{check_values, sorted};

/// One operating point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RocPoint {
    /// Everything with `score >= threshold` is flagged here; `None` flags nothing.
    pub threshold: Option<f64>,
    /// The share of benign subjects that is flagged.
    pub fpr: f64,
    /// The share of backdoored subjects that is flagged.
    pub tpr: f64,
}

/// A curve from (0, 0) to (1, 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roc {
    /// One point for each distinct score in descending order, after one that flags nothing.
    pub points: Vec<RocPoint>,
}

impl Roc {
    /// The greatest true-positive rate of an operating point whose false-positive rate is at most
    /// `fpr`. Nothing is interpolated: the value belongs to a threshold that exists.
    #[must_use]
    pub fn tpr_at_fpr(&self, fpr: f64) -> f64 {
        let allowed = self.points.iter().filter(|point| point.fpr <= fpr);
        allowed.map(|point| point.tpr).fold(0.0, f64::max)
    }

    /// The least false-positive rate of an operating point whose true-positive rate is at least
    /// `tpr`.
    #[must_use]
    pub fn fpr_at_tpr(&self, tpr: f64) -> f64 {
        let enough = self.points.iter().filter(|point| point.tpr >= tpr);
        enough.map(|point| point.fpr).fold(1.0, f64::min)
    }
}

/// The curve of `scores_pos` (backdoored) against `scores_neg` (benign).
///
/// # Errors
/// If a side is empty or a score is not finite.
pub fn roc(scores_pos: &[f64], scores_neg: &[f64]) -> Result<Roc, StatsError> {
    check_values("scores_pos", scores_pos, 1)?;
    check_values("scores_neg", scores_neg, 1)?;
    let (pos, neg) = (sorted(scores_pos), sorted(scores_neg));
    let mut thresholds = sorted(&[scores_pos, scores_neg].concat());
    thresholds.dedup();
    let at_least = |sorted: &[f64], t: f64| {
        (sorted.len() - sorted.partition_point(|&s| s < t)) as f64 / sorted.len() as f64
    };
    let nothing = RocPoint {
        threshold: None,
        fpr: 0.0,
        tpr: 0.0,
    };
    let rest = thresholds.iter().rev().map(|&t| RocPoint {
        threshold: Some(t),
        fpr: at_least(&neg, t),
        tpr: at_least(&pos, t),
    });
    Ok(Roc {
        points: std::iter::once(nothing).chain(rest).collect(),
    })
}

/// The area under the curve: the probability that a backdoored subject scores higher than a benign
/// one, ties counted half (Mann and Whitney). Only the order of the scores matters.
///
/// # Errors
/// If a side is empty or a score is not finite.
pub fn auc(scores_pos: &[f64], scores_neg: &[f64]) -> Result<f64, StatsError> {
    check_values("scores_pos", scores_pos, 1)?;
    check_values("scores_neg", scores_neg, 1)?;
    let neg = sorted(scores_neg);
    // twice the wins, so that ties stay whole numbers
    let twice_wins: u128 = scores_pos
        .iter()
        .map(|&p| (neg.partition_point(|&n| n < p) + neg.partition_point(|&n| n <= p)) as u128)
        .sum();
    Ok(twice_wins as f64 / (2.0 * scores_pos.len() as f64 * neg.len() as f64))
}
