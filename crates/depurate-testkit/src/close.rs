//! Comparison with a tolerance; a failure says where it is worst.

use burn::tensor::Tensor;

/// Panics unless `|got - want| <= atol + rtol * |want|` everywhere; NaN never passes.
///
/// # Panics
/// When shapes differ or a value is out of tolerance; the message holds the worst index and its values.
pub fn assert_close<const D: usize>(
    name: &str,
    got: &Tensor<D>,
    want: &Tensor<D>,
    rtol: f64,
    atol: f64,
) {
    assert_eq!(got.dims(), want.dims(), "{name}: shapes of got and want");
    let (got_values, want_values) = (values(got), values(want));
    if let Some(worst) = worst(&got_values, &want_values, rtol, atol) {
        panic!(
            "{name} at {:?}: {}",
            unravel(worst.index, &want.dims()),
            worst.message
        );
    }
}

/// As [`assert_close`] for slices.
///
/// # Panics
/// As [`assert_close`].
pub fn assert_close_slices(name: &str, got: &[f64], want: &[f64], rtol: f64, atol: f64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths of got and want");
    if let Some(worst) = worst(got, want, rtol, atol) {
        panic!("{name} at {}: {}", worst.index, worst.message);
    }
}

/// The largest `|a - b|`; infinite if any is NaN.
///
/// # Panics
/// When shapes differ.
pub fn largest_difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f64 {
    assert_eq!(a.dims(), b.dims(), "shapes to compare");
    let differences = values(a)
        .into_iter()
        .zip(values(b))
        .map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, d| {
        if d.is_nan() {
            f64::INFINITY
        } else {
            largest.max(d)
        }
    })
}

struct Worst {
    index: usize,
    message: String,
}

fn worst(got: &[f64], want: &[f64], rtol: f64, atol: f64) -> Option<Worst> {
    let excess = |(got, want): (&f64, &f64)| {
        let excess = (got - want).abs() - (atol + rtol * want.abs());
        if excess.is_nan() {
            f64::INFINITY
        } else {
            excess
        }
    };
    let excesses = got.iter().zip(want).map(excess);
    let (index, largest) = excesses.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    (largest > 0.0).then(|| {
        let failures = got.iter().zip(want).map(excess).filter(|&excess| excess > 0.0).count();
        Worst {
            index,
            message: format!(
                "got {}, want {} (difference {:.3e}, allowed {atol:.3e} + {rtol:.3e} |want|); {failures} of {} values out of tolerance",
                got[index], want[index], (got[index] - want[index]).abs(), want.len()
            ),
        }
    })
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().detach().into_data().iter::<f64>().collect()
}

fn unravel(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let at = rest % size;
            rest /= size;
            at
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_tolerance_is_named() {
        let failure =
            worst(&[1.0, 2.0, 3.0, 4.5], &[1.0, 2.0, 3.0, 4.0], 0.0, 0.1).map(|worst| worst.index);
        assert_eq!(failure, Some(3));
        assert_eq!(unravel(3, &[2, 2]), [1, 1]);
        assert!(worst(&[1.0], &[1.05], 0.0, 0.1).is_none());
        assert!(worst(&[f64::NAN], &[1.0], 0.0, 0.1).is_some());
    }
}
