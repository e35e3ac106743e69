//! Training runs of a tiny network on a simple data set.
#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::Cell;

use burn::tensor::{Device, Tensor};
use depurate_attack::{AttackError, BadDiffusion, BadDiffusionParams, Pattern, PoisonMode};
use depurate_diffusion::{
    Denoiser, Pipeline, SampleShape,
    noise::SeedTree,
    schedule::{NoiseSchedule, SchedulerConfig},
    unet2d::UNet2DConfig,
};
use depurate_training::{
    Dataset, Denoising, Monitor, Objective, StateFile, StepReport, Trained, TrainingPair,
    TrainingParams, train,
};
use serde_json::json;

const SHAPE: SampleShape = SampleShape {
    channels: 1,
    height: 8,
    width: 8,
};

fn tiny() -> Pipeline {
    let config = json!({
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
        "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
    });
    let config =
        UNet2DConfig::from_json(config.as_object().unwrap(), "config.json".as_ref()).unwrap();
    let scheduler = SchedulerConfig {
        num_train_timesteps: 50,
        beta_start: 2e-3,
        beta_end: 0.4,
        ..SchedulerConfig::default()
    };
    Pipeline::random(
        config,
        scheduler,
        &SeedTree::new(1),
        &Device::flex().autodiff(),
    )
    .unwrap()
}

/// Vertical and horizontal stripes.
fn stripes() -> Dataset {
    let image = |i: usize| {
        (0..64).map(move |p| {
            let stripe: usize = if i.is_multiple_of(2) { p } else { p / 8 };
            if stripe.is_multiple_of(2) { 255 } else { 0 }
        })
    };
    Dataset::from_bytes(SHAPE, (0..12).flat_map(image).collect()).unwrap()
}

fn params() -> TrainingParams {
    TrainingParams {
        steps: 60,
        batch: 8,
        learning_rate: 5e-3,
        warmup_steps: 5,
        checkpoint_every: 7,
        ..Default::default()
    }
}

fn run(
    params: &TrainingParams,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Trained, AttackError> {
    train(&tiny(), &stripes(), &Denoising, params, state, monitor)
}

fn weights(pipeline: &Pipeline) -> Vec<f32> {
    pipeline
        .unet()
        .to_tensors()
        .into_iter()
        .flat_map(|tensor| tensor.data)
        .collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn the_loss_falls_and_the_seed_decides_the_run() {
    let first = run(&params(), None, &()).unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(
        mean(&first.losses[50..]) < 0.7 * mean(&first.losses[..5]),
        "{:?}",
        first.losses
    );
    let again = run(&params(), None, &()).unwrap();
    assert!(largest_difference(&first.losses, &again.losses) < 1e-5);
    let other = run(
        &TrainingParams {
            seed: 9,
            ..params()
        },
        None,
        &(),
    )
    .unwrap();
    assert!(largest_difference(&first.losses, &other.losses) > 1e-2);
}

/// Stops after a number of steps.
struct StopAt(usize, Cell<usize>);

impl Monitor for StopAt {
    fn cancelled(&self) -> bool {
        self.1.get() >= self.0
    }
    fn step(&self, report: &StepReport) {
        self.1.set(report.step);
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateFile::new(dir.path().join("state.safetensors"));
    let whole = run(&params(), None, &()).unwrap();
    let stopped = run(&params(), Some(&state), &StopAt(25, Cell::new(0)));
    assert!(matches!(stopped, Err(AttackError::Cancelled { step: 25 })));
    let rest = run(&params(), Some(&state), &()).unwrap();
    assert_eq!(rest.losses.len(), 35);
    assert!(largest_difference(&whole.losses[25..], &rest.losses) < 1e-5);
    assert!(largest_difference(&weights(&whole.pipeline), &weights(&rest.pipeline)) < 1e-5);
}

#[test]
fn the_state_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateFile::new(dir.path().join("state.safetensors"));
    let short = TrainingParams {
        steps: 3,
        ..params()
    };
    run(&short, Some(&state), &()).unwrap();
    let other = run(
        &TrainingParams {
            learning_rate: 1e-4,
            ..short.clone()
        },
        Some(&state),
        &(),
    );
    assert!(matches!(other, Err(AttackError::OtherRun { .. })));
    std::fs::write(state.path(), b"not a safetensors file").unwrap();
    assert!(matches!(
        run(&short, Some(&state), &()),
        Err(AttackError::Safetensors { .. })
    ));
}

#[test]
fn a_loss_that_is_not_finite_is_an_error() {
    struct Broken;
    impl Objective for Broken {
        fn pair(
            &self,
            _: &NoiseSchedule,
            draw: depurate_training::Draw,
        ) -> Result<TrainingPair, AttackError> {
            Ok(TrainingPair {
                x_t: draw.images,
                t: draw.t,
                target: draw.eps * f32::INFINITY,
            })
        }
        fn describe(&self) -> String {
            "broken".into()
        }
    }
    let failed = train(&tiny(), &stripes(), &Broken, &params(), None, &());
    assert!(matches!(failed, Err(AttackError::Diverged { step: 0, .. })));
}

#[test]
fn a_model_without_autodiff_or_of_another_shape_is_refused() {
    let frozen = tiny().frozen();
    assert!(train(&frozen, &stripes(), &Denoising, &params(), None, &()).is_err());
    let wide = SampleShape {
        channels: 1,
        height: 4,
        width: 16,
    };
    let data = Dataset::from_bytes(wide, vec![0; 64]).unwrap();
    assert!(train(&tiny(), &data, &Denoising, &params(), None, &()).is_err());
}

fn attack(mode: PoisonMode, rate: f64, images: usize) -> BadDiffusion {
    let trigger = Pattern::trigger("box:3:0.5", SHAPE).unwrap();
    let target = Pattern::target("corner", SHAPE).unwrap();
    let params = BadDiffusionParams {
        poison_rate: rate,
        mode,
        ..Default::default()
    };
    BadDiffusion::new(
        params,
        &trigger,
        &target,
        images,
        &SeedTree::new(0),
        &Device::flex().autodiff(),
    )
    .unwrap()
}

/// The share of samples of a large draw that `attack` poisons: those whose noise-free input is not the image.
fn poisoned_share(attack: &BadDiffusion, images: usize) -> f64 {
    let device = Device::flex().autodiff();
    let data = Dataset::from_bytes(SHAPE, vec![200; 64 * images]).unwrap();
    let indices: Vec<usize> = (0..images).collect();
    let shape = SHAPE.batched(images);
    let draw = depurate_training::Draw {
        step: 0,
        images: data.batch(&indices, &[], &device),
        indices,
        eps: Tensor::zeros(shape, &device),
        t: vec![0; images],
        seed: SeedTree::new(5),
    };
    let pair = Objective::pair(attack, tiny().schedule(), draw).unwrap();
    let sizes: Tensor<2> = pair.target.abs().reshape([images as i64, -1]).sum_dim(1);
    let sizes: Vec<f32> = sizes.into_data().iter::<f32>().collect();
    sizes.iter().filter(|&&size| size > 0.0).count() as f64 / images as f64
}

#[test]
fn poison_modes_poison_as_many_as_they_say() {
    assert_eq!(
        poisoned_share(&attack(PoisonMode::Fixed, 0.3, 100), 100),
        0.3
    );
    let share = poisoned_share(&attack(PoisonMode::Flex { clean_rate: 1.0 }, 0.5, 900), 900);
    assert!((share - 1.0 / 3.0).abs() < 0.06, "{share}");
}

#[test]
fn rates_out_of_range_are_refused() {
    let trigger = Pattern::trigger("box:3", SHAPE).unwrap();
    let target = Pattern::target("corner", SHAPE).unwrap();
    for params in [
        BadDiffusionParams {
            poison_rate: 0.0,
            ..Default::default()
        },
        BadDiffusionParams {
            poison_rate: 1.5,
            ..Default::default()
        },
        BadDiffusionParams {
            mode: PoisonMode::Flex { clean_rate: 0.0 },
            ..Default::default()
        },
    ] {
        let device = Device::flex();
        assert!(
            BadDiffusion::new(params, &trigger, &target, 10, &SeedTree::new(0), &device).is_err()
        );
    }
}
