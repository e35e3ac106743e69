//! Numbers with intervals, over one or several subjects: the mean over attacks of the mean over an attack's subjects, since
//! scores of different models have different scales.

use std::collections::BTreeMap;

use depurate_diffusion::noise::SeedTree;
use depurate_stats::{auc, bootstrap_interval_of_groups};
use miette::{IntoDiagnostic, Result};

/// Resamples of an interval.
const RESAMPLES: usize = 1000;
/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// The number.
    pub(crate) value: f64,
    /// Lower end.
    pub(crate) lower: f64,
    /// Upper end.
    pub(crate) upper: f64,
}

/// Two groups of one subject: triggered and benign.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sides {
    /// The attack.
    pub(crate) attack: String,
    /// Of the triggered prompts.
    pub(crate) triggered: Vec<f64>,
    /// Of the benign ones.
    pub(crate) benign: Vec<f64>,
}

/// The statistic averaged over subjects, then over attacks, with a bootstrap interval that resamples each group by itself.
/// Subjects with an empty group are left out; `None` if none is left.
pub(crate) fn estimate(
    subjects: &[Sides],
    statistic: impl Fn(&[f64], &[f64]) -> f64,
) -> Result<Option<Estimate>> {
    let subjects: Vec<&Sides> = subjects
        .iter()
        .filter(|sides| !sides.triggered.is_empty() && !sides.benign.is_empty())
        .collect();
    let groups: Vec<&[f64]> = subjects
        .iter()
        .flat_map(|sides| [&sides.triggered[..], &sides.benign[..]])
        .collect();
    if groups.is_empty() {
        return Ok(None);
    }
    let mean = |values: &[f64]| {
        let mut by_attack: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (sides, value) in subjects.iter().zip(values) {
            let (sum, count) = by_attack.entry(&sides.attack).or_default();
            *sum += value;
            *count += 1.0;
        }
        let attacks = by_attack.len() as f64;
        by_attack
            .values()
            .map(|(sum, count)| sum / count)
            .sum::<f64>()
            / attacks
    };
    let of = |groups: &[&[f64]]| {
        let each: Vec<f64> = groups
            .chunks_exact(2)
            .map(|pair| statistic(pair[0], pair[1]))
            .collect();
        mean(&each)
    };
    let resampled = |groups: &[Vec<f64>]| {
        let groups: Vec<&[f64]> = groups.iter().map(Vec::as_slice).collect();
        of(&groups)
    };
    let mut rng = SeedTree::new(0).child("bootstrap", 0).rng();
    let interval =
        bootstrap_interval_of_groups(&groups, resampled, RESAMPLES, CONFIDENCE, &mut rng)
            .into_diagnostic()?;
    Ok(Some(Estimate {
        value: of(&groups),
        lower: interval.lower,
        upper: interval.upper,
    }))
}

/// AUROC of scores.
pub(crate) fn auroc(triggered: &[f64], benign: &[f64]) -> f64 {
    auc(triggered, benign).unwrap_or(f64::NAN)
}

/// F1 of flags, 1 where a prompt was flagged.
pub(crate) fn f1(triggered: &[f64], benign: &[f64]) -> f64 {
    let (hits, alarms) = (triggered.iter().sum::<f64>(), benign.iter().sum::<f64>());
    let missed = triggered.len() as f64 - hits;
    2.0 * hits / (2.0 * hits + alarms + missed)
}

/// Difference of means.
pub(crate) fn difference(triggered: &[f64], benign: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    mean(triggered) - mean(benign)
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    fn sides(attack: &str, shift: f64, seed: u64) -> Sides {
        let mut rng = SeedTree::new(seed).rng();
        let mut draw = |shift: f64| (0..200).map(|_| rng.random::<f64>() + shift).collect();
        Sides {
            attack: attack.into(),
            triggered: draw(shift),
            benign: draw(0.0),
        }
    }

    #[test]
    fn auroc_of_known_scores_is_found_with_its_interval() {
        // two uniform variables, one shifted by d: 1 - (1 - d)^2 / 2
        let found = estimate(&[sides("a", 0.5, 1)], auroc)
            .expect("finite")
            .expect("some");
        assert!((found.value - 0.875).abs() < 0.04, "{found:?}");
        assert!(found.lower < 0.875 && 0.875 < found.upper, "{found:?}");
        assert!(found.upper - found.lower < 0.1, "{found:?}");
        let none = estimate(&[sides("a", 0.0, 2)], auroc)
            .expect("finite")
            .expect("some");
        assert!(none.lower < 0.5 && 0.5 < none.upper, "{none:?}");
        let apart = estimate(&[sides("a", 2.0, 3)], auroc)
            .expect("finite")
            .expect("some");
        assert_eq!((apart.value, apart.lower), (1.0, 1.0));
    }

    #[test]
    fn attacks_weigh_the_same_whatever_their_number_of_subjects() {
        let subjects = [
            sides("a", 2.0, 1),
            sides("a", 2.0, 2),
            sides("a", 2.0, 3),
            sides("b", -2.0, 4),
        ];
        let found = estimate(&subjects, auroc).expect("finite").expect("some");
        assert_eq!(found.value, 0.5);
        let empty = Sides {
            benign: vec![],
            ..sides("b", 0.0, 1)
        };
        assert_eq!(estimate(&[empty], auroc).expect("finite"), None);
    }

    #[test]
    fn f1_counts_flags() {
        // 3 of 4 found, 1 of 4 false: precision 3/4, recall 3/4
        assert_eq!(f1(&[1.0, 1.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 0.0]), 0.75);
        assert_eq!(f1(&[0.0], &[0.0]), 0.0);
    }
}
