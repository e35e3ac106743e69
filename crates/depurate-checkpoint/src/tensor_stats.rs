//! Whether the values of a weight tensor look like those of a trained network.

use serde::Serialize;

/// A tensor is an outlier if one of its values is this many robust standard deviations from the median. In trained UNets of a
/// million parameters the largest is below 10; the margin is for the heavier tails of large networks.
pub const OUTLIER_Z: f64 = 100.0;
/// Elements from which median and spread are estimated; evenly spaced ones of a larger tensor.
const MAX_SAMPLE: usize = 1 << 18;
/// Below this many elements a spread says little, so such tensors are never outliers.
const MIN_ELEMENTS: usize = 32;

/// Why a tensor is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AnomalyKind {
    /// It holds NaN or infinite values: the network cannot run.
    NotFinite,
    /// One value is far from all others.
    Outlier,
    /// All values are zero. New networks have such biases; trained ones seldom do.
    AllZero,
}

/// Summary of one tensor's values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorStats {
    /// NaN values.
    pub nan: usize,
    /// Infinite values.
    pub infinite: usize,
    /// Largest absolute finite value.
    pub abs_max: f64,
    /// Largest distance of a finite value from the median, in units of 1.4826 times the median absolute deviation (which is
    /// the standard deviation for normal values); of the standard deviation itself where more than half of the values are
    /// equal. 0 if all are equal.
    pub robust_z: f64,
}

impl TensorStats {
    /// Computes the summary.
    pub fn of(values: &[f32]) -> Self {
        let nan = values.iter().filter(|v| v.is_nan()).count();
        let infinite = values.iter().filter(|v| v.is_infinite()).count();
        let finite = || {
            values
                .iter()
                .filter(|v| v.is_finite())
                .map(|&v| f64::from(v))
        };
        let step = values.len().div_ceil(MAX_SAMPLE).max(1);
        let mut sample: Vec<f64> = finite().step_by(step).collect();
        let median = median(&mut sample);
        let furthest = finite().map(|v| (v - median).abs()).fold(0.0, f64::max);
        sample.iter_mut().for_each(|v| *v = (*v - median).abs());
        let mad = self::median(&mut sample);
        let spread = if mad > 0.0 {
            1.4826 * mad
        } else {
            let (n, squares) =
                finite().fold((0.0, 0.0), |(n, s), v| (n + 1.0, s + (v - median).powi(2)));
            if n > 0.0 { f64::sqrt(squares / n) } else { 0.0 }
        };
        Self {
            nan,
            infinite,
            abs_max: finite().map(f64::abs).fold(0.0, f64::max),
            robust_z: if spread > 0.0 { furthest / spread } else { 0.0 },
        }
    }

    /// What is odd about a tensor of `elements` values with this summary.
    pub fn anomalies(&self, elements: usize) -> Vec<AnomalyKind> {
        let not_finite = self.nan + self.infinite;
        let all_zero = self.abs_max == 0.0 && not_finite == 0 && elements > 0;
        let outlier = self.robust_z > OUTLIER_Z && elements >= MIN_ELEMENTS;
        [
            (not_finite > 0).then_some(AnomalyKind::NotFinite),
            outlier.then_some(AnomalyKind::Outlier),
            all_zero.then_some(AnomalyKind::AllZero),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The middle value (the upper of two); 0 for none. Reorders.
fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> Vec<f32> {
        (0..1001).map(|i| i as f32 / 1000.0 - 0.5).collect()
    }

    #[test]
    fn a_ramp_is_ordinary() {
        let stats = TensorStats::of(&ramp());
        // median 0, median absolute deviation 0.25, furthest value 0.5
        assert!(
            (stats.robust_z - 0.5 / (1.4826 * 0.25)).abs() < 1e-6,
            "{stats:?}"
        );
        assert_eq!(stats.abs_max, 0.5);
        assert_eq!(stats.anomalies(1001), []);
    }

    #[test]
    fn one_forged_weight_is_an_outlier() {
        let mut values = ramp();
        values[17] = 60.0;
        assert_eq!(
            TensorStats::of(&values).anomalies(1001),
            [AnomalyKind::Outlier]
        );
    }

    #[test]
    fn values_that_are_not_numbers_are_counted_and_left_out() {
        let mut values = ramp();
        values[3] = f32::NAN;
        values[4] = f32::INFINITY;
        values[5] = f32::NEG_INFINITY;
        let stats = TensorStats::of(&values);
        assert_eq!((stats.nan, stats.infinite, stats.abs_max), (1, 2, 0.5));
        assert_eq!(stats.anomalies(1001), [AnomalyKind::NotFinite]);
    }

    #[test]
    fn constant_and_empty_tensors() {
        assert_eq!(
            TensorStats::of(&[0.0; 64]).anomalies(64),
            [AnomalyKind::AllZero]
        );
        assert_eq!(TensorStats::of(&[1.0; 64]).anomalies(64), []);
        assert_eq!(TensorStats::of(&[]).anomalies(0), []);
        let nothing_but_nan = TensorStats::of(&[f32::NAN; 64]);
        assert_eq!(nothing_but_nan.anomalies(64), [AnomalyKind::NotFinite]);
    }

    #[test]
    fn a_norm_weight_of_mostly_ones_falls_back_to_the_standard_deviation() {
        let mut values = vec![1.0_f32; 100];
        values[0] = 2.0;
        // deviation 1 of one value in 100: standard deviation about the median 0.1
        assert!((TensorStats::of(&values).robust_z - 10.0).abs() < 1e-9);
    }
}
