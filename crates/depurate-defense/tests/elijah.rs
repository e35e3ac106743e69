//! Elijah's inversion: the released code's numbers and the closed-form oracle.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor};
use depurate_defense::{
    Budget, CancelToken, Cx, NoJournal, Silent,
    detect::model_level::elijah_model::{self, ElijahModelParams, LEAST_EFFECT},
    invert::elijah::{ElijahParams, descend, objective},
};
use depurate_diffusion::{
    Denoiser, Pipeline, SampleShape,
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
    trigger::{Family, Shift, TriggerRule},
};
use depurate_testkit::{Oracle, assert_close, golden::Case, largest_difference};

fn model() -> Pipeline {
    let dir = depurate_testkit::golden::root().join("unet2d/c1_attn_all/pipeline");
    Pipeline::load(&dir, &Default::default(), &Device::flex()).unwrap()
}

/// The cases' numbers with their own `lambda`.
fn cases() -> Vec<(Case, f64)> {
    let cases = Case::all("attack-losses", "elijah_lambda");
    let with_lambda = |case: Case| {
        let lambda = case.json["lambda"].as_f64().unwrap();
        (case, lambda)
    };
    cases.into_iter().map(with_lambda).collect()
}

/// Whether every residual is so far from 0 that rounding does not decide its sign, and with it the gradient.
fn decided(case: &Case, lambda: f64) -> bool {
    let (shift, answer) = (case.numbers("trigger"), case.numbers("model_out_mean"));
    let mut pairs = shift.iter().zip(answer);
    pairs.all(|(tau, e)| (lambda * tau - e).abs() > 1e-5)
}

#[test]
fn loss_and_gradient_are_those_of_the_released_code() {
    let model = model().frozen();
    let device = Device::flex();
    for (case, lambda) in cases() {
        let (noises, shift) = (
            case.tensor::<4>("noise", &device),
            case.tensor::<4>("trigger", &device),
        );
        let found = objective(&model, &noises, &shift, lambda).unwrap();
        let want = case.numbers("inv.loss")[0];
        assert!(
            (found.value - want).abs() <= 1e-5 * want,
            "{} instead of {want}",
            found.value
        );
        let answer: Tensor<3> = case.tensor("model_out_mean", &device);
        let answer = answer.unsqueeze_dim::<4>(0);
        assert_close("mean answer", &found.answer, &answer, 1e-5, 1e-5);
        let want: Tensor<4> = case.tensor("inv.grad_trigger", &device);
        if decided(&case, lambda) {
            let largest = f64::from(want.clone().abs().max().into_scalar::<f32>());
            let worst = largest_difference(&found.shift, &want);
            assert!(worst <= 1e-4 * largest, "gradient: {worst} of {largest}");
        }
    }
}

#[test]
fn three_steps_of_adam_are_those_of_the_released_code() {
    let model = model().frozen();
    let device = Device::flex();
    let cases: Vec<_> = cases()
        .into_iter()
        .filter(|(case, lambda)| decided(case, *lambda))
        .collect();
    assert!(!cases.is_empty());
    for (case, lambda) in cases {
        let params = ElijahParams {
            lambda,
            iterations: 3,
            ..ElijahParams::default()
        };
        let (noises, start) = (
            case.tensor::<4>("noise", &device),
            case.tensor::<4>("trigger", &device),
        );
        let mut losses = Vec::new();
        let mut report = |value| {
            losses.push(value);
            Ok(())
        };
        let shift = descend(&model, &noises, start, &params, &mut report).unwrap();
        for (got, want) in losses.iter().zip(case.numbers("inv.adam3.losses")) {
            assert!((got - want).abs() <= 1e-3 * want, "{got} instead of {want}");
        }
        assert_eq!(losses.len(), 3);
        let want: Tensor<4> = case.tensor("inv.adam3.trigger", &device);
        let mut differences: Vec<f32> = (shift - want).abs().into_data().iter().collect();
        differences.sort_by(f32::total_cmp);
        // a gradient's sign may flip where it is nearly 0
        assert!(differences[differences.len() / 2] < 1e-5);
    }
}

const SHAPE: SampleShape = SampleShape {
    channels: 1,
    height: 8,
    width: 8,
};

/// A box of 4 x 4 in a corner, on a background of -1.
fn trigger() -> Vec<f32> {
    let inside = |i: usize| i % 8 < 4 && i / 8 < 4;
    (0..64)
        .map(|i| if inside(i) { 0.8 } else { -1.0 })
        .collect()
}

fn oracle(rule: Option<TriggerRule>) -> Oracle {
    let schedule = NoiseSchedule::linear(100, 1e-3, 0.2).unwrap();
    let target: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    let benign = Oracle::new(schedule, SHAPE, Device::flex()).benign(&[0.0; 64], 0.5, 1.0);
    match rule {
        Some(rule) => benign.backdoored(&target, &trigger(), rule, 0.5),
        None => benign,
    }
}

/// Cosine of the shift that is found from near the trigger, and the shift's root mean square.
fn recovered(oracle: &Oracle, params: &ElijahParams) -> (f64, f64) {
    let device = Device::flex();
    let mut bank = SeedTree::new(3).noise(0, params.noises);
    let noises = bank.normal(SHAPE.batched(params.noises), &device).unwrap();
    let truth = trigger();
    // both 0 and the trigger are answered as they should be: a start nearer to the trigger
    let start = oracle.image(&truth.iter().map(|v| 0.8 * v).collect::<Vec<f32>>());
    let shift = descend(oracle, &noises, start, params, &mut |_| Ok(())).unwrap();
    let found: Vec<f64> = shift.into_data().iter::<f32>().map(f64::from).collect();
    let dot: f64 = found
        .iter()
        .zip(&truth)
        .map(|(a, b)| a * f64::from(*b))
        .sum();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut found.iter().copied());
    let cosine = dot / (size * norm(&mut truth.iter().map(|v| f64::from(*v))));
    (cosine, size / 8.0)
}

#[test]
fn the_oracle_s_trigger_is_found_by_the_rule_that_it_follows() {
    let family = Family::Stochastic;
    let backdoored = oracle(Some(TriggerRule::lost_signal(family)));
    let params = ElijahParams {
        family,
        lambda: Shift::LostSignal.coefficient(backdoored.schedule(), 99, family),
        noises: 64,
        ..ElijahParams::default()
    };
    let (cosine, size) = recovered(&backdoored, &params);
    assert!(cosine > 0.97 && size > 0.7, "{cosine} {size}");
}

#[test]
fn on_a_benign_model_the_shift_vanishes() {
    let params = ElijahParams {
        noises: 64,
        ..ElijahParams::default()
    };
    // a benign model answers with all of a shift, so that only 0 is answered by half: (1 - lambda) tau is the mean of the
    // bank, which has a root mean square of 1/8
    let (_, size) = recovered(&oracle(None), &params);
    assert!(size < 0.35, "{size}");
}

#[test]
fn parameters_out_of_range_are_refused() {
    let good = ElijahParams::default();
    for bad in [
        ElijahParams {
            noises: 0,
            ..good.clone()
        },
        ElijahParams {
            iterations: 0,
            ..good.clone()
        },
        ElijahParams {
            lambda: 0.0,
            ..good.clone()
        },
        ElijahParams {
            learning_rate: f64::NAN,
            ..good.clone()
        },
    ] {
        assert!(bad.build().is_err());
    }
    assert_eq!(good.evaluations(), 4 * 3 * 100 * 100);
    assert!(ElijahParams::deterministic().build().is_ok());
}

#[test]
fn both_rules_are_tried_and_an_untrained_network_is_no_finding() {
    let small = |params: ElijahParams| ElijahParams {
        noises: 4,
        iterations: 2,
        restarts: 1,
        ..params
    };
    let published = ElijahModelParams::published().inversions;
    let params = ElijahModelParams {
        inversions: published.into_iter().map(small).collect(),
    };
    let inverted: u64 = params
        .inversions
        .iter()
        .map(ElijahParams::evaluations)
        .sum();
    let detector = elijah_model::build(params).unwrap();
    let cancel = CancelToken::default();
    let cx = Cx {
        rng: SeedTree::new(3),
        budget: Budget::UNLIMITED,
        cancel: &cancel,
        progress: &Silent,
        journal: &NoJournal,
    };
    let found = detector.inspect(&model(), &cx).unwrap();
    assert!(
        found.score.is_finite() && found.score <= LEAST_EFFECT,
        "{}",
        found.score
    );
    assert!(found.evaluations > inverted);
    let [share, inconsistency] = found.comparisons.as_slice() else {
        panic!("two statistics")
    };
    assert!(share.controls.len() > 3 && inconsistency.value > 0.0);
    assert_eq!(found.target.len(), found.inversion.shift.len());
    assert!(
        elijah_model::build(ElijahModelParams {
            inversions: Vec::new()
        })
        .is_err()
    );
}
