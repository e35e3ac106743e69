//! Diff-Cleanse's inversion and detection on the closed-form oracle, for every rule.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::Device;
use depurate_defense::{
    detect::model_level::{Inspection, diff_cleanse::DiffCleanse},
    invert::diff_cleanse::{Descent, DiffCleanseParams},
    repair::{
        KnownTrigger,
        confirm::{LEAST_EFFECT, effect},
    },
};
use depurate_diffusion::{
    SampleShape,
    firing::Firing,
    schedule::NoiseSchedule,
    trigger::{Family, TriggerRule},
};
use depurate_testkit::Oracle;
use support::with_cx;

const SHAPE: SampleShape = SampleShape {
    channels: 1,
    height: 8,
    width: 8,
};

fn target() -> Vec<f32> {
    (0..64).map(|i| 0.8 * (i as f32 * 0.7).sin()).collect()
}

/// A bright box of 4 x 4 on a background of -1.
fn trigger() -> Vec<f32> {
    let inside = |i: usize| i % 8 < 4 && i / 8 < 4;
    (0..64)
        .map(|i| if inside(i) { 0.8 } else { -1.0 })
        .collect()
}

fn oracle(backdoor: Option<(Vec<f32>, TriggerRule)>) -> Oracle {
    let schedule = NoiseSchedule::linear(100, 1e-3, 0.2).unwrap();
    let benign = Oracle::new(schedule, SHAPE, Device::flex()).benign(&[0.0; 64], 0.5, 1.0);
    match backdoor {
        Some((trigger, rule)) => benign.backdoored(&target(), &trigger, rule, 0.5),
        None => benign,
    }
}

fn inspect(oracle: &Oracle, params: DiffCleanseParams) -> Inspection {
    let detector = DiffCleanse::new(params).unwrap();
    with_cx(5, |cx| detector.inspect_denoiser(oracle, cx)).unwrap()
}

fn rms(a: &[f32], b: &[f32]) -> f32 {
    let sum: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (sum / a.len() as f32).sqrt()
}

fn check(found: &Inspection, firing: Firing, trigger: &[f32], tolerance: f32) {
    let shift = &found.inversion.shift;
    assert_eq!(
        found.inversion.firing, firing,
        "{:?}",
        found.inversion.restarts
    );
    assert!(
        rms(shift, trigger) < tolerance,
        "shift off by {}",
        rms(shift, trigger)
    );
    assert!(
        rms(&found.target, &target()) < 0.1,
        "target off by {}",
        rms(&found.target, &target())
    );
    assert!(found.score > 0.3, "score {}", found.score);
}

#[test]
fn a_stochastic_trigger_is_found() {
    let rule = TriggerRule::lost_signal(Family::Stochastic);
    let found = inspect(&oracle(Some((trigger(), rule))), DiffCleanseParams::quick());
    check(&found, Firing::Stochastic, &trigger(), 0.15);
    assert!(found.inversion.gamma.is_none());
    assert_eq!(found.tested.len(), 3);
}

#[test]
fn a_deterministic_trigger_is_found() {
    let rule = TriggerRule::lost_signal(Family::Deterministic);
    let found = inspect(&oracle(Some((trigger(), rule))), DiffCleanseParams::quick());
    check(&found, Firing::Deterministic, &trigger(), 0.15);
}

#[test]
fn a_blend_and_its_scale_are_found() {
    let mu: Vec<f32> = trigger().iter().map(|v| 0.4 * v).collect();
    let found = inspect(
        &oracle(Some((mu.clone(), TriggerRule::noise_level(0.6)))),
        DiffCleanseParams::quick(),
    );
    check(&found, Firing::Modified, &mu, 0.1);
    let gamma = found.inversion.gamma.unwrap();
    assert!(rms(&gamma, &[0.6; 64]) < 0.05, "gamma is {}", gamma[0]);
}

#[test]
fn a_benign_model_has_no_cluster_beyond_the_controls() {
    let found = inspect(&oracle(None), DiffCleanseParams::quick());
    assert!(found.score < 0.2, "score {}", found.score);
}

#[test]
fn a_repair_confirms_a_trigger_and_no_large_shift_of_a_benign_model() {
    let claimed = |shift: Vec<f32>, target: Option<Vec<f32>>| KnownTrigger {
        shape: SHAPE,
        shift,
        gamma: None,
        firing: Firing::Stochastic,
        target,
    };
    let rule = TriggerRule::lost_signal(Family::Stochastic);
    let found = claimed(trigger(), Some(target()));
    let of = |oracle: &Oracle, trigger: &KnownTrigger| with_cx(5, |cx| effect(oracle, trigger, cx));
    assert!(of(&oracle(Some((trigger(), rule))), &found).unwrap() >= LEAST_EFFECT);
    for shift in [trigger(), vec![-4.0; 64]] {
        let mistaken = claimed(shift, Some(target()));
        assert!(of(&oracle(None), &mistaken).unwrap() < LEAST_EFFECT);
    }
    let refused = of(&oracle(None), &claimed(trigger(), None)).unwrap_err();
    assert!(refused.to_string().contains("target"), "{refused}");
}

#[test]
fn without_a_gradient_too() {
    let params = DiffCleanseParams {
        firings: vec![Firing::Modified],
        descent: Descent::GradientFree,
        refinements: 0,
        ..DiffCleanseParams::quick()
    };
    let mu: Vec<f32> = trigger().iter().map(|v| 0.5 * v).collect();
    let found = inspect(
        &oracle(Some((mu.clone(), TriggerRule::noise_level(0.5)))),
        params,
    );
    check(&found, Firing::Modified, &mu, 0.1);
    assert_eq!((found.tested.len(), found.not_tested.len()), (1, 3));
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let good = DiffCleanseParams::default();
    for (params, named) in [
        (
            DiffCleanseParams {
                firings: Vec::new(),
                ..good.clone()
            },
            "firings",
        ),
        (
            DiffCleanseParams {
                images: 2,
                ..good.clone()
            },
            "images",
        ),
        (
            DiffCleanseParams {
                similar: f64::NAN,
                ..good.clone()
            },
            "similar",
        ),
        (
            DiffCleanseParams {
                candidates: 0,
                ..good.clone()
            },
            "candidates",
        ),
    ] {
        let error = params.build().err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
    for params in [
        DiffCleanseParams::quick(),
        DiffCleanseParams::standard(),
        DiffCleanseParams::deep(),
    ] {
        assert!(params.build().is_ok());
    }
}
