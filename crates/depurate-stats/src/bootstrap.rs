//! The percentile bootstrap.

use rand::{Rng, RngExt};

use crate::StatsError;
use crate::binomial::Interval;
use crate::describe::quantile_of_sorted;
use crate::error::{check_open_unit, check_values, sorted};

/// The percentile interval of `statistic` over `resamples` resamplings of `values` with
/// replacement (Efron 1979). The result depends on the state of `rng` alone: seed it from the run.
///
/// # Errors
/// If there is no value or no resample, a value or a resampled statistic is not finite, or
/// `confidence` is not in (0, 1).
pub fn bootstrap_interval(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    resamples: usize,
    confidence: f64,
    rng: &mut impl Rng,
) -> Result<Interval, StatsError> {
    check_values("values", values, 1)?;
    check_open_unit("confidence", confidence)?;
    let mut sample = vec![0.0; values.len()];
    let statistics: Vec<f64> = (0..resamples)
        .map(|_| {
            for slot in &mut sample {
                *slot = values[rng.random_range(0..values.len())];
            }
            statistic(&sample)
        })
        .collect();
    check_values("resampled statistics", &statistics, 1)?;
    let statistics = sorted(&statistics);
    let tail = (1.0 - confidence) / 2.0;
    Ok(Interval {
        lower: quantile_of_sorted(&statistics, tail),
        upper: quantile_of_sorted(&statistics, 1.0 - tail),
    })
}
