//! How a prompt's attention evolves from call to call: what DAA-I and DAA-S sum up, as curves to look at, beside the band in
//! which benign prompts run.

use depurate_stats::quantile;
use serde::{Deserialize, Serialize};

use super::{
    CallMaps,
    daa_i::{Change, ContentMean},
};
use crate::DefenseError;

/// Quantiles of benign prompts that a [`BenignBand`] holds.
pub const BAND_LEVELS: [f64; 5] = [0.025, 0.25, 0.5, 0.75, 0.975];

/// The curves of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evolution {
    /// At each call, the mean of EOS's map over pixels: its share of the attention.
    pub eos_share: Vec<f64>,
    /// At each call, the mean share of the tokens between BOS and EOS.
    pub content_share: Vec<f64>,
    /// From each call to the next, `e_t - m_t`: how much more EOS's map changes than those of the content do on average.
    pub relative_change: Vec<f64>,
}

impl Evolution {
    /// Of the calls that were made, in order.
    pub fn of(calls: &[CallMaps]) -> Self {
        let share =
            |map: &[f32]| map.iter().map(|&value| f64::from(value)).sum::<f64>() / map.len() as f64;
        let eos = |maps: &CallMaps| maps.maps().next_back().map_or(0.0, share);
        let content = |maps: &CallMaps| {
            let count = maps.tokens() - 2;
            maps.maps().skip(1).take(count).map(share).sum::<f64>() / count as f64
        };
        let change = |pair: &[CallMaps]| {
            let change = Change::between(&pair[0], &pair[1], ContentMean::Content);
            change.eos - change.content
        };
        Self {
            eos_share: calls.iter().map(eos).collect(),
            content_share: calls.iter().map(content).collect(),
            relative_change: calls.windows(2).map(change).collect(),
        }
    }
}

/// Where benign prompts run, change by change. A band of single points: the chance that a benign curve leaves it somewhere is
/// larger than at one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenignBand {
    /// Number of benign prompts.
    pub n: usize,
    /// For each change, the quantiles [`BAND_LEVELS`] of `relative_change`.
    pub relative_change: Vec<[f64; BAND_LEVELS.len()]>,
}

impl BenignBand {
    /// From the curves of benign prompts; it is as long as the shortest of them.
    ///
    /// # Errors
    /// When there is no curve, or a value is not finite.
    pub fn of(curves: &[Evolution]) -> Result<Self, DefenseError> {
        let length = curves.iter().map(|curve| curve.relative_change.len()).min();
        let length = length.ok_or_else(|| refuse("no benign prompt".into()))?;
        let at = |t: usize| {
            let values: Vec<f64> = curves
                .iter()
                .map(|curve| curve.relative_change[t])
                .collect();
            let mut quantiles = [0.0; BAND_LEVELS.len()];
            for (slot, level) in quantiles.iter_mut().zip(BAND_LEVELS) {
                *slot = quantile(&values, level).map_err(|error| refuse(error.to_string()))?;
            }
            Ok(quantiles)
        };
        Ok(Self {
            n: curves.len(),
            relative_change: (0..length).map(at).collect::<Result<_, DefenseError>>()?,
        })
    }
}

fn refuse(value: String) -> DefenseError {
    DefenseError::Params {
        field: "curves",
        value,
        allowed: "at least one, of finite values",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn curve(rate: f32) -> Evolution {
        let call = |t: usize| {
            let t = t as f32;
            let of_pixels = [9.0 * t, t, 1.0, rate * t].map(|value| [value; 2]);
            CallMaps::new(4, (1, 2), of_pixels.concat()).unwrap()
        };
        Evolution::of(&(0..4).map(call).collect::<Vec<_>>())
    }

    #[test]
    fn shares_are_means_over_pixels_and_changes_are_relative_to_the_content() {
        let curve = curve(2.0);
        assert_eq!(curve.eos_share, [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(curve.content_share, [0.5, 1.0, 1.5, 2.0]);
        let expected = 2.0f64.sqrt() * (2.0 - 0.5);
        assert_eq!(curve.relative_change.len(), 3);
        assert!(
            curve
                .relative_change
                .iter()
                .all(|change| (change - expected).abs() < 1e-12)
        );
    }

    #[test]
    fn the_band_holds_the_quantiles_of_each_change_up_to_the_shortest_curve() {
        let mut curves: Vec<Evolution> = (0..=40).map(|i| curve(i as f32 * 0.25)).collect();
        curves[3].relative_change.truncate(2);
        let band = BenignBand::of(&curves).unwrap();
        assert_eq!((band.n, band.relative_change.len()), (41, 2));
        for quantiles in &band.relative_change {
            let median = 2.0f64.sqrt() * (5.0 - 0.5);
            assert!((quantiles[2] - median).abs() < 1e-9);
            assert!(quantiles.is_sorted());
        }
        assert!(BenignBand::of(&[]).is_err());
        curves[0].relative_change[0] = f64::NAN;
        assert!(BenignBand::of(&curves).is_err());
    }
}
