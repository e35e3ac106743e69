//! Gradients through a sampling run: against the full graph and against finite differences.

use depurate_diffusion::{
    Denoiser, Device, DiffusionError, Parameterisation, Prediction, SampleShape, Tap, Tensor,
    differentiable::{sample_gradient, sample_gradient_with},
    noise::{NoNoise, NoiseSource, SeedTree},
    sampler::{Clip, Ddim, Ddpm, never_stop, sample},
    schedule::{NoiseSchedule, VarianceType},
    trigger::{Family, TriggerRule},
};
use depurate_testkit::{Oracle, assert_close};

const SHAPE: SampleShape = SampleShape {
    channels: 2,
    height: 4,
    width: 4,
};

fn schedule() -> NoiseSchedule {
    NoiseSchedule::linear(100, 1e-3, 0.2).expect("schedule")
}

fn oracle() -> Oracle {
    let image = |phase: f32| -> Vec<f32> {
        (0..SHAPE.len())
            .map(|i| (i as f32 * 0.7 + phase).sin() * 0.5)
            .collect()
    };
    Oracle::new(schedule(), SHAPE, Device::flex())
        .benign(&image(0.0), 0.4, 1.0)
        .benign(&image(2.0), 0.6, 2.0)
        .backdoored(
            &image(4.0),
            &image(1.0),
            TriggerRule::lost_signal(Family::Deterministic),
            1.0,
        )
}

fn ddim() -> Ddim {
    Ddim::new(
        schedule(),
        (0..10).rev().map(|i| i * 10).collect(),
        0.0,
        Clip::None,
    )
    .expect("sampler")
}

fn start() -> Tensor<4> {
    SeedTree::new(2)
        .noise(0, 3)
        .normal(SHAPE.batched(3), &Device::flex())
        .expect("noise")
}

fn loss(x_0: Tensor<4>) -> Tensor<1> {
    ((x_0.clone() - 0.2).square() + (x_0 * 2.0).sin()).sum()
}

#[test]
fn the_gradient_is_that_of_the_full_graph() {
    let (oracle, sampler) = (oracle(), ddim());
    let got = sample_gradient(&oracle, &sampler, start(), |x_0| Ok(loss(x_0))).expect("gradient");
    let leaf = start().autodiff().require_grad();
    let x_0 = sample(
        &oracle,
        &sampler,
        leaf.clone(),
        &mut NoNoise,
        &mut never_stop,
    )
    .expect("sample");
    let gradients = loss(x_0.clone()).backward();
    let want = leaf.grad(&gradients).expect("full-graph gradient");
    assert_close("x_0", &got.x_0, &x_0.inner(), 1e-5, 1e-5);
    let scale = want.clone().abs().max().into_scalar::<f64>();
    assert!(
        scale > 1e-3,
        "the gradient must not vanish in this test: {scale}"
    );
    assert_close("gradient", &got.grad_x_t, &want, 0.0, 1e-4 * scale);
    assert!(!got.grad_x_t.is_autodiff() && !got.x_0.is_autodiff());
}

#[test]
fn the_gradient_is_the_slope() {
    let (oracle, sampler) = (oracle(), ddim());
    let got = sample_gradient(&oracle, &sampler, start(), |x_0| Ok(loss(x_0))).expect("gradient");
    let direction = SeedTree::new(9)
        .noise(0, 3)
        .normal(SHAPE.batched(3), &Device::flex())
        .expect("direction");
    let at = |h: f32| -> f64 {
        let x = start() + direction.clone() * h;
        let x_0 = sample(&oracle, &sampler, x, &mut NoNoise, &mut never_stop).expect("sample");
        loss(x_0).into_scalar()
    };
    let h = 2e-3;
    let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
    let along: f64 = (got.grad_x_t * direction).sum().into_scalar();
    assert!(
        (slope - along).abs() < 0.01 * slope.abs().max(1.0),
        "finite difference {slope}, gradient {along}"
    );
    let value: f64 = loss(got.x_0).into_scalar();
    assert!((value - f64::from(got.loss)).abs() < 1e-3 * value.abs());
}

/// `eps = weight x`, with a weight that can be trained.
struct Linear {
    weight: Tensor<4>,
    schedule: NoiseSchedule,
}

impl Denoiser for Linear {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }
    fn sample_shape(&self) -> SampleShape {
        SHAPE
    }
    fn device(&self) -> Device {
        Device::flex()
    }
    fn predict(
        &self,
        x_t: Tensor<4>,
        _t: &[usize],
        _tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        Ok(Prediction {
            kind: Parameterisation::Epsilon,
            value: x_t * self.weight.clone(),
        })
    }
}

#[test]
fn gradients_of_parameters_add_up_over_the_steps() {
    let weight = Tensor::<4>::full([1, 1, 1, 1], 0.9, &Device::flex())
        .autodiff()
        .require_grad();
    let model = Linear {
        weight: weight.clone(),
        schedule: schedule(),
    };
    let mut summed = Tensor::<4>::zeros([1, 1, 1, 1], &Device::flex());
    let mut steps = 0;
    sample_gradient_with(
        &model,
        &ddim(),
        start(),
        |x_0| Ok(loss(x_0)),
        &mut |gradients| {
            summed = summed.clone() + weight.grad(gradients).expect("gradient of the weight");
            steps += 1;
        },
    )
    .expect("gradient");
    assert_eq!(steps, 10);

    let x_0 = sample(&model, &ddim(), start(), &mut NoNoise, &mut never_stop).expect("sample");
    let want = weight
        .grad(&loss(x_0).backward())
        .expect("full-graph gradient");
    assert_close("gradient of the weight", &summed, &want, 1e-4, 1e-4);
}

#[test]
fn clipping_stops_the_gradient_and_stochastic_samplers_are_refused() {
    let oracle = oracle();
    let clipped = Ddim::new(schedule(), vec![0], 0.0, Clip::Range(1e-3)).expect("sampler");
    let got = sample_gradient(&oracle, &clipped, start() * 0.1 + 5.0, |x_0| Ok(x_0.sum()))
        .expect("gradient");
    assert_eq!(got.grad_x_t.abs().max().into_scalar::<f64>(), 0.0);
    let constant = sample_gradient(&oracle, &ddim(), start(), |_| {
        Ok(Tensor::zeros([1], &Device::flex()))
    })
    .expect("gradient");
    assert_eq!(constant.grad_x_t.abs().max().into_scalar::<f64>(), 0.0);
    let ancestral = Ddpm::new(
        schedule(),
        vec![99, 50],
        VarianceType::FixedSmall,
        Clip::None,
    )
    .expect("sampler");
    assert!(sample_gradient(&oracle, &ancestral, start(), |x_0| Ok(x_0.sum())).is_err());
}
