//! Floats in JSON. JSON has no NaN and no infinity; a diverged optimisation has both. They are
//! written as `null` and read back as NaN, so that such a report can still be read.

use serde::{Deserialize, Deserializer};

fn or_nan(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

/// One number, `null` for NaN. (Writing needs no help: `serde_json` writes `null`.)
pub(crate) fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(or_nan)
}

/// A list of numbers.
pub(crate) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(or_nan).collect())
}

/// A list of `(x, y)`.
pub(crate) fn points<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(f64, f64)>, D::Error> {
    let values = Vec::<(Option<f64>, Option<f64>)>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|(x, y)| (or_nan(x), or_nan(y)))
        .collect())
}

/// A list of `(x, low, high)`.
pub(crate) fn bands<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(f64, f64, f64)>, D::Error> {
    let values = Vec::<(Option<f64>, Option<f64>, Option<f64>)>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|(x, low, high)| (or_nan(x), or_nan(low), or_nan(high)))
        .collect())
}

/// A list of `(iteration, value)`.
pub(crate) fn trace<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(u64, f64)>, D::Error> {
    let values = Vec::<(u64, Option<f64>)>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|(i, v)| (i, or_nan(v))).collect())
}
