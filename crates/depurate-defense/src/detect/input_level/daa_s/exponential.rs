//! The exact solution of a linear system with constant coefficients.
//!
//! Only `exp(t M) x` is needed, not the matrix exponential: with `p` parts of length `h = t / p`, so that `|| h M || <= 1`, each
//! part is a Taylor series whose terms fall at least as fast as `1 / k!`. Nothing cancels where it matters: for the negative
//! definite matrices here every part shrinks the state. The recorded states, products of SciPy's `expm` (Padé approximants
//! with scaling and squaring), are met within 1e-9 (test `exact_states_are_those_of_the_matrix_exponential`).

use super::graph::product;

/// Most terms of a series; `1 / 30!` is far below the precision of `f64`.
const MOST_TERMS: u32 = 30;

/// Replaces the state `x [n]` at a time by that after a further `t`: `exp(t M) x` with `matrix [n, n]` as M.
pub fn propagate(matrix: &[f64], x: &mut [f64], t: f64) {
    let row_sums = matrix
        .chunks_exact(x.len())
        .map(|row| row.iter().map(|entry| entry.abs()).sum::<f64>());
    let norm = row_sums.fold(0.0, f64::max) * t.abs();
    let parts = norm.ceil().max(1.0);
    let h = t / parts;
    let (mut term, mut image) = (x.to_vec(), x.to_vec());
    for _part in 0..parts as usize {
        term.copy_from_slice(x);
        for k in 1..=MOST_TERMS {
            product(matrix, &term, &mut image);
            let (mut largest_term, mut largest) = (0.0f64, 0.0f64);
            for ((term, image), x) in term.iter_mut().zip(&image).zip(x.iter_mut()) {
                *term = image * h / f64::from(k);
                *x += *term;
                largest_term = largest_term.max(term.abs());
                largest = largest.max(x.abs());
            }
            if largest_term <= largest * f64::EPSILON / 8.0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symmetric_pair_has_its_closed_form() {
        // eigenvalues -1 (sum) and -41 (difference)
        let matrix = [-21.0, 20.0, 20.0, -21.0];
        for t in [0.01, 0.7, 1.0, 3.0] {
            let mut x = [3.0, 1.0];
            propagate(&matrix, &mut x, t);
            let (sum, difference) = (4.0 * (-t).exp(), 2.0 * (-41.0 * t).exp());
            assert!((x[0] + x[1] - sum).abs() < 1e-14, "{t}");
            assert!((x[0] - x[1] - difference).abs() < 1e-14, "{t}");
        }
    }

    #[test]
    fn no_time_and_no_rate_change_nothing() {
        let mut x = [1.0, -2.0];
        propagate(&[-1.0, 0.5, 0.5, -1.0], &mut x, 0.0);
        propagate(&[0.0; 4], &mut x, 5.0);
        assert_eq!(x, [1.0, -2.0]);
    }
}
