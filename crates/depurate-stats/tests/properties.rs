//! What must hold for every input, and the coverage that the intervals promise.
#![allow(clippy::unwrap_used)]

use depurate_stats::{
    StatsError, auc, bootstrap_interval, bootstrap_interval_of_groups, clopper_pearson,
    conformal_p_value, conformal_threshold, mean, median, quantile, roc, std, wilson,
};
use proptest::collection::vec;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Few distinct values, so that ties are common.
fn scores() -> impl Strategy<Value = Vec<f64>> {
    vec((-8i32..8).prop_map(f64::from), 1..40)
}

proptest! {
    #[test]
    fn auc_depends_on_the_order_alone(pos in scores(), neg in scores()) {
        let squash = |v: &[f64]| v.iter().map(|x| (x / 3.0).exp() - 7.0).collect::<Vec<_>>();
        let area = auc(&pos, &neg).unwrap();
        prop_assert_eq!(area, auc(&squash(&pos), &squash(&neg)).unwrap());
        // swapping sides or turning scores round mirrors it
        prop_assert!((area + auc(&neg, &pos).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn auc_is_the_area_under_the_curve(pos in scores(), neg in scores()) {
        let points = roc(&pos, &neg).unwrap().points;
        let area: f64 = points
            .windows(2)
            .map(|p| (p[1].fpr - p[0].fpr) * (p[0].tpr + p[1].tpr) / 2.0)
            .sum();
        prop_assert!((area - auc(&pos, &neg).unwrap()).abs() < 1e-12);
        let last = points.last().unwrap();
        prop_assert_eq!((last.fpr, last.tpr), (1.0, 1.0));
    }

    #[test]
    fn threshold_states_what_its_rank_justifies(benign in scores(), target in 0.001f64..0.999) {
        let t = conformal_threshold(&benign, target).unwrap();
        let n = benign.len();
        prop_assert!(t.stated_fpr >= 1.0 / (n + 1) as f64);
        prop_assert!(t.meets_target() || (t.rank == n && target < 1.0 / (n + 1) as f64));
        let above = benign.iter().filter(|&&b| t.flags(b)).count();
        prop_assert!(above <= n - t.rank);
        let interval = t.fpr_interval(0.95).unwrap();
        prop_assert!(0.0 < interval.lower && interval.lower < interval.upper && interval.upper < 1.0);
    }

    #[test]
    fn flagged_means_a_small_p_value(benign in scores(), score in -9f64..9.0, target in 0.05f64..0.5) {
        let t = conformal_threshold(&benign, target).unwrap();
        let p = conformal_p_value(score, &benign).unwrap();
        // score > the rank-th smallest leaves at most n - rank benign scores above it
        prop_assert!(!t.flags(score) || p <= t.stated_fpr + 1e-12);
    }

    #[test]
    fn quantiles_are_monotone_and_within_the_range(v in scores(), a in 0f64..1.0, b in 0f64..1.0) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(quantile(&v, low).unwrap() <= quantile(&v, high).unwrap());
        prop_assert_eq!(quantile(&v, 0.0).unwrap(), v.iter().copied().fold(f64::MAX, f64::min));
        prop_assert_eq!(quantile(&v, 1.0).unwrap(), v.iter().copied().fold(f64::MIN, f64::max));
    }

    #[test]
    fn intervals_contain_the_observed_share(n in 1u64..500, share in 0f64..=1.0) {
        let k = (n as f64 * share) as u64;
        for interval_of in [clopper_pearson, wilson] {
            let interval = interval_of(k, n, 0.95).unwrap();
            prop_assert!(interval.contains(k as f64 / n as f64));
            prop_assert!(0.0 <= interval.lower && interval.upper <= 1.0);
            let mirrored = interval_of(n - k, n, 0.95).unwrap();
            prop_assert!((interval.lower - (1.0 - mirrored.upper)).abs() < 1e-12);
        }
    }
}

#[test]
fn a_target_below_one_in_n_plus_one_states_one_in_n_plus_one() {
    let benign: Vec<f64> = (0..20).map(f64::from).collect();
    let t = conformal_threshold(&benign, 0.01).unwrap();
    assert_eq!((t.threshold, t.rank, t.n), (19.0, 20, 20));
    assert_eq!(t.stated_fpr, 1.0 / 21.0);
    assert!(!t.meets_target());
    // Beta(1, 20) has the closed-form quantile 1 - (1 - p)^(1/20)
    let interval = t.fpr_interval(0.95).unwrap();
    assert!((interval.lower - (1.0 - 0.975f64.powf(0.05))).abs() < 1e-12);
    assert!((interval.upper - (1.0 - 0.025f64.powf(0.05))).abs() < 1e-12);
}

#[test]
fn decimal_targets_are_not_lost_to_rounding() {
    let benign: Vec<f64> = (1..100).map(f64::from).collect();
    // 100 * 0.29 is 28.999999999999996 in floating point
    let t = conformal_threshold(&benign, 0.29).unwrap();
    assert_eq!((t.rank, t.stated_fpr), (71, 0.29));
}

/// The stated rate is an average over calibration sets, the interval holds for 95 % of them.
#[test]
fn conformal_rate_and_interval_hold_on_normal_scores() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (sets, n, fresh) = (2000, 24, 200);
    let (mut flagged, mut covered) = (0u64, 0u64);
    let survival = |x: f64| 0.5 * statrs::function::erf::erfc(x / f64::sqrt(2.0));
    let mut stated = 0.0;
    for _ in 0..sets {
        let benign: Vec<f64> = (0..n).map(|_| rng.sample(StandardNormal)).collect();
        let t = conformal_threshold(&benign, 0.1).unwrap();
        stated = t.stated_fpr;
        let hits = (0..fresh).filter(|_| t.flags(rng.sample(StandardNormal)));
        flagged += hits.count() as u64;
        covered += u64::from(
            t.fpr_interval(0.95)
                .unwrap()
                .contains(survival(t.threshold)),
        );
    }
    // 2 of 25; the mean of 2000 draws of Beta(2, 23) has a standard error of 0.0012
    let rate = flagged as f64 / (sets * fresh) as f64;
    assert_eq!(stated, 0.08);
    assert!((rate - stated).abs() < 4.0 * 0.0012, "rate {rate}");
    assert!(
        clopper_pearson(covered, sets, 0.9999)
            .unwrap()
            .contains(0.95)
    );
}

#[test]
fn bootstrap_is_seeded_and_covers_the_mean() {
    let draw = |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f64> = (0..60).map(|_| rng.sample(StandardNormal)).collect();
        let average = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        bootstrap_interval(&values, average, 400, 0.95, &mut rng).unwrap()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    let covered = (0..300).filter(|&seed| draw(seed).contains(0.0)).count() as u64;
    // the percentile bootstrap of 60 values covers a little less than it says
    let share = clopper_pearson(covered, 300, 0.999).unwrap();
    assert!(share.contains(0.94), "{covered} of 300");
}

#[test]
fn groups_are_resampled_by_themselves() {
    let (low, high) = ([0.0, 1.0, 2.0], [10.0; 5]);
    let sizes_stay = |groups: &[Vec<f64>]| {
        assert_eq!((groups[0].len(), groups[1].len()), (3, 5));
        assert!(groups[0].iter().all(|value| low.contains(value)));
        mean(&groups[1]).unwrap() - mean(&groups[0]).unwrap()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let groups: [&[f64]; 2] = [&low, &high];
    let interval = bootstrap_interval_of_groups(&groups, sizes_stay, 200, 0.95, &mut rng).unwrap();
    assert!(interval.contains(9.0) && interval.lower >= 8.0 && interval.upper <= 10.0);
    let empty: [&[f64]; 2] = [&low, &[]];
    assert!(bootstrap_interval_of_groups(&empty, |_| 0.0, 10, 0.95, &mut rng).is_err());
}

#[test]
fn descriptions_of_a_known_sample() {
    let v = [4.0, 1.0, 3.0, 2.0];
    assert_eq!(mean(&v).unwrap(), 2.5);
    assert_eq!(median(&v).unwrap(), 2.5);
    assert_eq!(quantile(&v, 0.25).unwrap(), 1.75);
    assert!((std(&v).unwrap() - (5.0f64 / 3.0).sqrt()).abs() < 1e-15);
}

#[test]
fn bad_input_is_an_error() {
    let nan = [1.0, f64::NAN];
    let error = conformal_threshold(&nan, 0.05).unwrap_err();
    assert!(matches!(error, StatsError::NonFinite { index: 1, .. }));
    assert!(conformal_threshold(&[], 0.05).is_err());
    assert!(conformal_threshold(&[1.0], 0.0).is_err());
    assert!(conformal_p_value(f64::INFINITY, &[1.0]).is_err());
    assert!(auc(&[], &[1.0]).is_err());
    assert!(roc(&nan, &[1.0]).is_err());
    assert!(quantile(&[1.0], 1.1).is_err());
    assert!(std(&[1.0]).is_err());
    for interval_of in [clopper_pearson, wilson] {
        assert_eq!(interval_of(0, 0, 0.95).unwrap().upper, 1.0);
        assert!(interval_of(3, 2, 0.95).is_err() && interval_of(1, 2, 1.0).is_err());
    }
}
