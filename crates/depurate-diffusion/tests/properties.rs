//! Laws of schedules, parameterisations, noise and options.

use std::path::Path;

use depurate_diffusion::{
    Device, DiffusionError, Parameterisation, Prediction, Tensor,
    noise::{NoNoise, NoiseSource, SeedTree},
    sampler::{Clip, Ddim, Past, Sampler},
    schedule::{NoiseSchedule, SchedulerConfig, TimestepSpacing},
};
use depurate_testkit::{assert_close, largest_difference};
use proptest::prelude::*;
use serde_json::{Value, json};

fn schedules() -> impl Strategy<Value = NoiseSchedule> {
    let options = (
        2_usize..1200,
        1e-5_f64..1e-3,
        1e-3_f64..0.05,
        0..4_usize,
        any::<bool>(),
    );
    options.prop_map(|(n, start, end, kind, zero_snr)| {
        let schedule = match kind {
            0 => NoiseSchedule::linear(n, start, end),
            1 => NoiseSchedule::scaled_linear(n, start, end),
            2 => NoiseSchedule::squared_cosine(n),
            _ => NoiseSchedule::sigmoid(n, start, end),
        }
        .expect("schedule");
        if zero_snr {
            schedule.rescaled_to_zero_snr().expect("zero SNR")
        } else {
            schedule
        }
    })
}

fn normal(index: u64) -> Tensor<4> {
    SeedTree::new(5)
        .child("test", index)
        .noise(0, 3)
        .normal([3, 2, 4, 4], &Device::flex())
        .expect("noise")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn alpha_bar_falls_and_betas_are_probabilities(schedule in schedules()) {
        let last = schedule.len() - 1;
        let mut before = 1.0;
        for t in 0..=last {
            let (alpha_bar, beta) = (schedule.alpha_bar(t), schedule.beta(t));
            prop_assert!(alpha_bar < before && alpha_bar >= 0.0, "alpha_bar {alpha_bar} at {t}");
            prop_assert!(beta > 0.0 && (beta < 1.0 || (t == last && alpha_bar == 0.0)), "beta {beta} at {t}");
            prop_assert!((schedule.a(t).powi(2) + schedule.s(t).powi(2) - 1.0).abs() < 1e-12);
            before = alpha_bar;
        }
    }

    #[test]
    fn a_timestep_is_found_again_by_its_level(schedule in schedules(), share in 0.0_f64..1.0) {
        let t = (share * schedule.len() as f64) as usize;
        prop_assert_eq!(schedule.t_for_alpha_bar(schedule.alpha_bar(t)), t);
        let closest = schedule.t_for_alpha_bar(share);
        for other in 0..schedule.len() {
            prop_assert!((schedule.alpha_bar(closest) - share).abs() <= (schedule.alpha_bar(other) - share).abs());
        }
    }

    #[test]
    fn timesteps_fall_within_the_schedule(n_train in 1_usize..1200, share in 0.0_f64..1.0, kind in 0..3_usize) {
        let n_steps = 1 + (share * (n_train - 1) as f64) as usize;
        let spacing = [TimestepSpacing::Leading, TimestepSpacing::Linspace, TimestepSpacing::Trailing][kind];
        let config = SchedulerConfig { num_train_timesteps: n_train, timestep_spacing: spacing, ..Default::default() };
        let timesteps = config.timesteps(n_steps).expect("timesteps");
        prop_assert_eq!(timesteps.len(), n_steps);
        prop_assert!(timesteps.iter().all(|&t| t < n_train));
        prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]), "{:?}", timesteps);
    }

    #[test]
    fn conversions_invert(share in 0.02_f64..0.6, kind in 0..3_usize) {
        let schedule = NoiseSchedule::linear(1000, 1e-4, 0.02).expect("schedule");
        let t: Vec<usize> = [0.3, 0.7, 1.0].iter().map(|part| (part * share * 1000.0) as usize).collect();
        let (x_0, eps) = (normal(0), normal(1));
        let x_t = schedule.add_noise(x_0.clone(), eps.clone(), &t).expect("add_noise");
        let v = schedule.velocity(x_0.clone(), eps.clone(), &t).expect("velocity");
        let (kind, value) = match kind {
            0 => (Parameterisation::Epsilon, eps.clone()),
            1 => (Parameterisation::Sample, x_0.clone()),
            _ => (Parameterisation::Velocity, v.clone()),
        };
        let prediction = Prediction { kind, value };
        let seen = prediction.clone().x0(x_t.clone(), &t, &schedule).expect("x_0");
        assert_close("x_0", &seen, &x_0, 1e-4, 1e-4);
        assert_close("eps", &prediction.clone().epsilon(x_t.clone(), &t, &schedule).expect("eps"), &eps, 1e-3, 1e-3);
        assert_close("v", &prediction.velocity(x_t, &t, &schedule).expect("v"), &v, 1e-3, 1e-3);
    }

    #[test]
    fn noise_of_an_item_does_not_depend_on_its_batch(first in 0_u64..5, batch in 1_usize..5) {
        let (tree, device) = (SeedTree::new(11), Device::flex());
        let draw = |first, batch: usize| {
            let mut noise = tree.noise(first, batch);
            let _skipped = noise.normal([batch, 2, 3, 3], &device).expect("first draw");
            noise.normal([batch, 2, 3, 3], &device).expect("second draw")
        };
        let alone = draw(first + batch as u64 - 1, 1);
        let last = draw(first, batch).narrow(0, batch - 1, 1);
        prop_assert_eq!(largest_difference(&alone, &last), 0.0);
    }
}

#[test]
fn seeded_noise_is_standard_normal() {
    let noise = SeedTree::new(3)
        .noise(0, 4)
        .normal([4, 4, 64, 64], &Device::flex())
        .expect("noise");
    let mean: f64 = noise.clone().mean().into_scalar();
    let square: f64 = noise.square().mean().into_scalar();
    // 65 536 values: standard errors 0.004 and 0.0055
    assert!(
        mean.abs() < 0.02 && (square - 1.0).abs() < 0.03,
        "{mean} {square}"
    );
}

#[test]
fn a_deterministic_run_cannot_draw() {
    assert!(NoNoise.normal([1, 1, 1, 1], &Device::flex()).is_err());
    assert!(
        SeedTree::new(0)
            .noise(0, 2)
            .normal([3, 1, 1, 1], &Device::flex())
            .is_err()
    );
}

#[test]
fn thresholding_bounds_a_sample_by_its_own_quantile() {
    let x = normal(2) * 4.0;
    let cut = Clip::Threshold {
        ratio: 0.9,
        max: 3.0,
    }
    .apply(x);
    let largest: f64 = cut.abs().max().into_scalar();
    assert!((largest - 1.0).abs() < 1e-6, "{largest}");
}

#[test]
fn a_noise_prediction_without_signal_is_refused() {
    let schedule = NoiseSchedule::scaled_linear(1000, 0.00085, 0.012)
        .and_then(NoiseSchedule::rescaled_to_zero_snr)
        .expect("schedule");
    assert_eq!(schedule.alpha_bar(999), 0.0);
    let prediction = |kind| Prediction {
        kind,
        value: normal(0),
    };
    assert!(
        prediction(Parameterisation::Epsilon)
            .x0(normal(1), &[999], &schedule)
            .is_err()
    );
    assert!(
        prediction(Parameterisation::Velocity)
            .x0(normal(1), &[999], &schedule)
            .is_ok()
    );
    assert!(
        prediction(Parameterisation::Velocity)
            .x0(normal(1), &[1000], &schedule)
            .is_err(),
        "t out of range"
    );
    assert!(
        prediction(Parameterisation::Velocity)
            .x0(normal(1), &[1, 2], &schedule)
            .is_err(),
        "two timesteps, three samples"
    );
}

fn read(value: Value) -> Result<SchedulerConfig, DiffusionError> {
    SchedulerConfig::from_json(
        value.as_object().expect("object"),
        Path::new("scheduler_config.json"),
    )
}

#[test]
fn refused_options_are_named() {
    let refused = [
        ("trained_beta", json!({"trained_beta": null})),
        ("beta_schedule", json!({"beta_schedule": "laplace"})),
        ("variance_type", json!({"variance_type": "learned_range"})),
        (
            "_class_name",
            json!({"_class_name": "HeunDiscreteScheduler"}),
        ),
        ("num_train_timesteps", json!({"num_train_timesteps": -1})),
        (
            "num_train_timesteps",
            json!({"num_train_timesteps": 1_000_000_000_000_u64}),
        ),
        ("beta_start", json!({"beta_start": 0.0})),
        ("beta_end", json!({"beta_end": "x".repeat(10_000)})),
        (
            "trained_betas",
            json!({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2]}),
        ),
        (
            "trained_betas",
            json!({"num_train_timesteps": 2, "trained_betas": [0.1, 1.5]}),
        ),
        ("clip_sample_range", json!({"clip_sample_range": -1.0})),
        (
            "dynamic_thresholding_ratio",
            json!({"dynamic_thresholding_ratio": 2.0}),
        ),
        ("steps_offset", json!({"steps_offset": 1000})),
    ];
    for (option, value) in refused {
        let error = read(value).expect_err(option).to_string();
        assert!(
            error.contains(&format!("`{option}`")) && error.contains("scheduler_config.json"),
            "{error}"
        );
        assert!(error.len() < 300, "{error}");
    }
}

#[test]
fn old_and_private_options_are_read() {
    let config =
        read(json!({"_class_name": "DDPMScheduler", "_anything": 1, "predict_epsilon": false}))
            .expect("old config");
    assert_eq!(
        config,
        SchedulerConfig {
            prediction_type: Parameterisation::Sample,
            ..Default::default()
        }
    );
    let betas = read(json!({"num_train_timesteps": 2, "trained_betas": [0.1, 0.5]}))
        .expect("trained betas");
    assert_eq!(betas.schedule().expect("schedule").betas(), [0.1, 0.5]);
    assert_eq!(
        read(Value::Object(betas.to_json())).expect("written config"),
        betas
    );
}

#[test]
fn steps_that_leave_the_schedule_are_refused() {
    let config = SchedulerConfig {
        steps_offset: 1,
        ..Default::default()
    };
    assert!(config.timesteps(1000).is_err(), "999 + 1");
    assert_eq!(config.timesteps(10).expect("timesteps")[0], 901);
    assert!(config.timesteps(0).is_err() && config.timesteps(1001).is_err());
    let schedule = config.schedule().expect("schedule");
    assert!(Ddim::new(schedule.clone(), vec![3, 3], 0.0, Clip::None).is_err());
    assert!(Ddim::new(schedule.clone(), vec![3, 1], 1.5, Clip::None).is_err());
    let ddim = Ddim::new(schedule, vec![3, 1], 0.0, Clip::None).expect("sampler");
    let prediction = Prediction {
        kind: Parameterisation::Epsilon,
        value: normal(0),
    };
    assert!(
        ddim.step(prediction, 2, normal(1), &mut Past::default(), &mut NoNoise)
            .is_err(),
        "no third step"
    );
}
