//! Mean, standard deviation, quantiles.

use crate::StatsError;
use crate::error::{check_values, sorted};

/// The arithmetic mean.
///
/// # Errors
/// If there is no value or one is not finite.
pub fn mean(values: &[f64]) -> Result<f64, StatsError> {
    check_values("values", values, 1)?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of the population that `values` is a sample of (divisor `n - 1`).
///
/// # Errors
/// If there are fewer than two values or one is not finite.
pub fn std(values: &[f64]) -> Result<f64, StatsError> {
    check_values("values", values, 2)?;
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Ok((squares / (values.len() - 1) as f64).sqrt())
}

/// The quantile at probability `p`, interpolated linearly between order statistics (type 7 of
/// Hyndman and Fan, as NumPy does by default).
///
/// # Errors
/// If there is no value, one is not finite, or `p` is not in `[0, 1]`.
pub fn quantile(values: &[f64], p: f64) -> Result<f64, StatsError> {
    check_values("values", values, 1)?;
    if !(0.0..=1.0).contains(&p) {
        return Err(StatsError::OutOfRange {
            what: "p",
            value: p,
            range: "[0, 1]",
        });
    }
    Ok(quantile_of_sorted(&sorted(values), p))
}

/// The median.
///
/// # Errors
/// If there is no value or one is not finite.
pub fn median(values: &[f64]) -> Result<f64, StatsError> {
    quantile(values, 0.5)
}

/// [`quantile`] of values in ascending order, at least one, and `p` in `[0, 1]`.
pub(crate) fn quantile_of_sorted(values: &[f64], p: f64) -> f64 {
    let at = p * (values.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    values[below] + (at - below as f64) * (values[above] - values[below])
}
