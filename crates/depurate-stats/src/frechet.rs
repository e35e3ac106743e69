//! # Fréchet distance of two sets of feature vectors
//!
//! ```text
//! d = |mu_a - mu_b|² + tr(C_a) + tr(C_b) - 2 tr((C_a^½ C_b C_a^½)^½)
//! ```
//!
//! of the Gaussians fitted to the sets (Dowson and Landau, 1982). With features of the Inception network it is called FID; with any
//! others it must not be.
//!
//! Covariances are unbiased. Roots are taken by eigenvalues of symmetric matrices, negative ones (rounding) as 0, which is stable
//! where a covariance is singular.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

use crate::StatsError;

/// Most features a vector may have: the cost grows with their cube.
const MOST_FEATURES: usize = 4096;

/// The distance of `a` and `b`, each row-major vectors of `features` numbers, 2 or more of them.
///
/// # Errors
/// When a set holds fewer than two vectors or a part of one, or a value is not finite.
pub fn frechet_distance(a: &[f64], b: &[f64], features: usize) -> Result<f64, StatsError> {
    let (mean_a, cov_a) = fitted("a", a, features)?;
    let (mean_b, cov_b) = fitted("b", b, features)?;
    let root = root(cov_a.clone());
    let mixed = &root * &cov_b * &root;
    // symmetric but for rounding
    let mixed = (&mixed + mixed.transpose()) * 0.5;
    let cross: f64 = SymmetricEigen::new(mixed)
        .eigenvalues
        .iter()
        .map(|value| value.max(0.0).sqrt())
        .sum();
    let means = (mean_a - mean_b).norm_squared();
    Ok((means + cov_a.trace() + cov_b.trace() - 2.0 * cross).max(0.0))
}

fn fitted(
    what: &'static str,
    values: &[f64],
    features: usize,
) -> Result<(DVector<f64>, DMatrix<f64>), StatsError> {
    if features == 0 || features > MOST_FEATURES || !values.len().is_multiple_of(features) {
        return Err(StatsError::OutOfRange {
            what: "features of a vector",
            value: features as f64,
            range: "1 to 4096, a divisor of the number of values",
        });
    }
    crate::error::check_values(what, values, 2 * features)?;
    let rows = DMatrix::from_row_slice(values.len() / features, features, values);
    let mean = rows.row_mean().transpose();
    let mut centred = rows;
    for mut row in centred.row_iter_mut() {
        row -= mean.transpose();
    }
    let count = centred.nrows() as f64;
    let covariance = centred.transpose() * &centred / (count - 1.0);
    Ok((mean, covariance))
}

fn root(covariance: DMatrix<f64>) -> DMatrix<f64> {
    let mut eigen = SymmetricEigen::new(covariance);
    eigen
        .eigenvalues
        .apply(|value| *value = value.max(0.0).sqrt());
    eigen.recompose()
}
