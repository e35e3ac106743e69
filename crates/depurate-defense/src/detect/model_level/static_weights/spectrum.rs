//! Singular values of differences and of low-rank products.

use nalgebra::DMatrix;

/// Singular values that are computed of a large matrix.
const LEADING: usize = 16;
/// Vectors beyond those, which make the iteration settle.
const OVERSAMPLING: usize = 8;
/// Steps of the orthogonal iteration. Eigenvalues are squares of singular values, so two values that differ by a tenth part
/// within `1.21^30`.
const STEPS: usize = 30;

/// The spectrum of a matrix `D [m, n]`, from its Gram matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// `|D|_F^2`
    pub energy: f64,
    /// The largest singular values, in descending order: all of them up to 24 columns, else 16.
    pub singular_values: Vec<f64>,
    /// Eq. (3): 1 for a matrix of rank one, the number of values if they are all equal; 0 for a matrix of zeros.
    pub effective_rank: f64,
}

impl Spectrum {
    /// Of a symmetric matrix `[n, n]` that is a Gram matrix, or a sum of such.
    pub(super) fn of_gram(gram: &DMatrix<f64>) -> Self {
        let energy = gram.trace();
        let squared = gram.norm_squared();
        Self {
            energy,
            singular_values: leading_eigenvalues(gram)
                .into_iter()
                .map(|value| value.max(0.0).sqrt())
                .collect(),
            effective_rank: if squared > 0.0 {
                energy * energy / squared // eq. (3)
            } else {
                0.0
            },
        }
    }

    /// Eq. (2): the share of the energy in the first `r` directions; 0 for a matrix of zeros.
    pub fn energy_share(&self, r: usize) -> f64 {
        if self.energy <= 0.0 {
            return 0.0;
        }
        let first = self.singular_values.iter().take(r).map(|s| s * s);
        (first.sum::<f64>() / self.energy).min(1.0)
    }
}

/// `G = D^T D` of a matrix `[rows, columns]`, row-major.
pub(super) fn gram(difference: &[f32], columns: usize) -> DMatrix<f64> {
    let rows = difference.len() / columns.max(1);
    let wide = DMatrix::from_row_iterator(rows, columns, difference.iter().map(|&v| f64::from(v)));
    wide.tr_mul(&wide)
}

/// The largest eigenvalues of a positive semi-definite matrix, in descending order.
fn leading_eigenvalues(gram: &DMatrix<f64>) -> Vec<f64> {
    let n = gram.nrows();
    let width = LEADING + OVERSAMPLING;
    if n <= width {
        return descending(gram.clone().symmetric_eigenvalues().as_slice());
    }
    let mut basis = DMatrix::from_fn(n, width, sign).qr().q();
    for _ in 0..STEPS {
        basis = (gram * basis).qr().q();
    }
    let small = basis.tr_mul(&(gram * &basis));
    let mut values = descending(small.symmetric_eigenvalues().as_slice());
    values.truncate(LEADING);
    values
}

/// A start that depends on nothing but the place: a sign by a mix of both indices (splitmix64).
fn sign(row: usize, column: usize) -> f64 {
    let mut z = (row as u64)
        .wrapping_mul(0x1_0000)
        .wrapping_add(column as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
}

fn descending(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

/// Eq. (6): the singular values of `U V` in descending order, for `up` `U [m, r]` and `down` `V [r, n]`, row-major, without
/// forming the product. Empty if `rank` divides neither.
pub fn product_singular_values(up: &[f32], down: &[f32], rank: usize) -> Vec<f64> {
    if rank == 0 || !up.len().is_multiple_of(rank) || !down.len().is_multiple_of(rank) {
        return Vec::new();
    }
    let (m, n) = (up.len() / rank, down.len() / rank);
    if m == 0 || n == 0 {
        return Vec::new();
    }
    let up = DMatrix::from_row_iterator(m, rank, up.iter().map(|&v| f64::from(v)));
    let down_t = DMatrix::from_column_slice(
        n,
        rank,
        &down.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
    );
    let small = up.qr().r() * down_t.qr().r().transpose();
    descending(small.singular_values().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * b.abs().max(1.0)
    }

    #[test]
    fn a_matrix_of_known_singular_values() {
        // rows 3 e_1, 4 e_2, 0
        let d = [3.0, 0.0, 0.0, 4.0, 0.0, 0.0];
        let s = Spectrum::of_gram(&gram(&d, 2));
        assert!(
            close(s.singular_values[0], 4.0) && close(s.singular_values[1], 3.0),
            "{s:?}"
        );
        assert!(close(s.energy, 25.0) && close(s.energy_share(1), 16.0 / 25.0));
        assert!(close(s.effective_rank, 625.0 / (256.0 + 81.0)));
        let nothing = Spectrum::of_gram(&gram(&[0.0; 6], 2));
        assert_eq!(
            (nothing.effective_rank, nothing.energy_share(1)),
            (0.0, 0.0)
        );
    }

    /// `columns` wide, singular values `values` along directions that are mixed by a reflection.
    fn planted(values: &[f64], columns: usize) -> Vec<f32> {
        let v: Vec<f64> = (0..columns).map(|i| ((i + 1) as f64).sqrt()).collect();
        let square: f64 = v.iter().map(|x| x * x).sum();
        let reflect = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square;
        values
            .iter()
            .enumerate()
            .flat_map(|(row, s)| (0..columns).map(move |j| (s * reflect(row, j)) as f32))
            .collect()
    }

    #[test]
    fn leading_values_of_a_wide_matrix_are_found_by_iteration() {
        let values: Vec<f64> = (0..60).map(|i| 0.8f64.powi(i)).collect();
        let d = planted(&values, 60);
        let s = Spectrum::of_gram(&gram(&d, 60));
        assert_eq!(s.singular_values.len(), LEADING);
        for (got, expected) in s.singular_values.iter().zip(&values) {
            assert!((got - expected).abs() < 1e-5 * expected, "{got} {expected}");
        }
        let all: f64 = values.iter().map(|s| s * s).sum();
        let first: f64 = values.iter().take(4).map(|s| s * s).sum();
        assert!(close(s.energy_share(4), first / all));
    }

    #[test]
    fn a_product_has_the_singular_values_of_the_matrix_that_it_is() {
        let up: Vec<f32> = (0..30 * 3)
            .map(|i| ((i * 7 % 11) as f32 - 5.0) / 3.0)
            .collect();
        let down: Vec<f32> = (0..3 * 20)
            .map(|i| ((i * 5 % 13) as f32 - 6.0) / 4.0)
            .collect();
        let mut dense = vec![0f32; 30 * 20];
        for i in 0..30 {
            for j in 0..20 {
                dense[i * 20 + j] = (0..3).map(|r| up[i * 3 + r] * down[r * 20 + j]).sum();
            }
        }
        let direct = Spectrum::of_gram(&gram(&dense, 20)).singular_values;
        let found = product_singular_values(&up, &down, 3);
        assert_eq!(found.len(), 3);
        for (got, expected) in found.iter().zip(direct) {
            assert!((got - expected).abs() < 1e-4 * found[0], "{got} {expected}");
        }
        assert!(product_singular_values(&up, &down, 0).is_empty());
        assert!(product_singular_values(&up, &down, 7).is_empty());
        // more directions than the matrix has
        assert_eq!(
            product_singular_values(&[1.0, 2.0, 3.0], &[1.0, 1.0, 1.0], 3).len(),
            1
        );
    }
}
