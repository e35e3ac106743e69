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
    bootstrap_interval_of_groups(
        &[values],
        |groups| groups.first().map_or(f64::NAN, |sample| statistic(sample)),
        resamples,
        confidence,
        rng,
    )
}

/// As [`bootstrap_interval`], for a statistic that compares groups: each is resampled by itself, so that their sizes stay.
///
/// # Errors
/// As [`bootstrap_interval`]; every group needs a value.
pub fn bootstrap_interval_of_groups(
    groups: &[&[f64]],
    statistic: impl Fn(&[Vec<f64>]) -> f64,
    resamples: usize,
    confidence: f64,
    rng: &mut impl Rng,
) -> Result<Interval, StatsError> {
    for values in groups {
        check_values("values", values, 1)?;
    }
    check_open_unit("confidence", confidence)?;
    let mut samples: Vec<Vec<f64>> = groups.iter().map(|values| values.to_vec()).collect();
    let statistics: Vec<f64> = (0..resamples)
        .map(|_| {
            for (sample, values) in samples.iter_mut().zip(groups) {
                for slot in sample {
                    *slot = values[rng.random_range(0..values.len())];
                }
            }
            statistic(&samples)
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
