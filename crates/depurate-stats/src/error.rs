//! What the statistics refuse.

/// Errors of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// Too few values.
    #[error("{what} holds {got} values, at least {need} are needed")]
    TooFew {
        /// Which argument.
        what: &'static str,
        /// How many values it holds.
        got: usize,
        /// How many are needed.
        need: usize,
    },
    /// A value that cannot be ordered or averaged.
    #[error("{what}[{index}] is {value}: only finite values can be compared")]
    NonFinite {
        /// Which argument.
        what: &'static str,
        /// Where in it.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A number that should be a probability.
    #[error("{what} is {value}, it must lie in {range}")]
    OutOfRange {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range: "(0, 1)".
        range: &'static str,
    },
    /// More successes than trials.
    #[error("{successes} successes in {n} trials")]
    MoreSuccessesThanTrials {
        /// Successes.
        successes: u64,
        /// Trials.
        n: u64,
    },
}

/// Are there at least `need` values, all finite?
pub(crate) fn check_values(
    what: &'static str,
    values: &[f64],
    need: usize,
) -> Result<(), StatsError> {
    if values.len() < need {
        return Err(StatsError::TooFew {
            what,
            got: values.len(),
            need,
        });
    }
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(StatsError::NonFinite {
            what,
            index,
            value: values[index],
        }),
    }
}

/// Does `value` lie strictly between 0 and 1?
pub(crate) fn check_open_unit(what: &'static str, value: f64) -> Result<(), StatsError> {
    if value > 0.0 && value < 1.0 {
        Ok(())
    } else {
        Err(StatsError::OutOfRange {
            what,
            value,
            range: "(0, 1)",
        })
    }
}

/// The values in ascending order.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}
