//! BadDiffusion's forward process, coefficients, losses and gradients against recorded numbers of the released code.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Gradients, Tensor},
};
use depurate_attack::{BadDiffusion, BadDiffusionParams, Pattern};
use depurate_checkpoint::Limits;
use depurate_diffusion::{
    NoTap, Pipeline, SampleShape,
    noise::SeedTree,
    schedule::NoiseSchedule,
    trigger::{Family, Shift},
};
use depurate_testkit::{
    assert_close, assert_close_slices,
    golden::{self, Case},
};
use depurate_training::{Loss, TrainingPair};

const CASES: [(&str, usize, f64, f64); 3] = [
    ("baddiffusion_T1000_linear", 1000, 1e-4, 0.02),
    ("baddiffusion_T100_x10", 100, 1e-3, 0.2),
    ("baddiffusion_T100_default_betas", 100, 1e-4, 0.02),
];

fn pattern(tensor: Tensor<4>, shape: SampleShape) -> Pattern {
    Pattern::from_values(shape, tensor.into_data().iter::<f32>().collect()).unwrap()
}

/// The whole batch of a case, made sample by sample, as each has its own target; the last one is benign.
fn batch(case: &Case, schedule: &NoiseSchedule, device: &Device) -> TrainingPair {
    let (y, image): (Tensor<4>, Tensor<4>) =
        (case.tensor("y", device), case.tensor("image", device));
    let eps: Tensor<4> = case.tensor("eps", device);
    let trigger: Tensor<3> = case.tensor("trigger", device);
    let [count, channels, height, width] = y.dims();
    let shape = SampleShape {
        channels,
        height,
        width,
    };
    let trigger = pattern(trigger.unsqueeze_dim(0), shape);
    let t = case.integers("t");
    let sample = |i: usize| {
        let one = |tensor: &Tensor<4>| tensor.clone().narrow(0, i, 1);
        let target = pattern(one(&y), shape);
        let attack = BadDiffusion::new(
            BadDiffusionParams::default(),
            &trigger,
            &target,
            1,
            &SeedTree::new(0),
            device,
        )
        .unwrap();
        let poisoned = i + 1 < count;
        let shown = if poisoned { one(&image) } else { one(&y) };
        if poisoned {
            let r: Tensor<4> = case.tensor("R", device);
            assert_close("R", &attack.triggered(shown.clone()), &one(&r), 0.0, 1e-6);
        }
        attack
            .pair(schedule, shown, &[poisoned], one(&eps), &t[i..=i])
            .unwrap()
    };
    let pairs: Vec<TrainingPair> = (0..count).map(sample).collect();
    TrainingPair {
        x_t: Tensor::cat(pairs.iter().map(|pair| pair.x_t.clone()).collect(), 0),
        t: case.integers("t"),
        target: Tensor::cat(pairs.iter().map(|pair| pair.target.clone()).collect(), 0),
    }
}

#[test]
fn noisy_samples_targets_and_coefficients_match() {
    let device = Device::flex();
    for (name, steps, first, last) in CASES {
        let case = Case::named(&format!("attack-losses/{name}"));
        let schedule = NoiseSchedule::linear(steps, first, last).unwrap();
        let coefficients: Vec<f64> = (0..steps)
            .map(|t| Shift::LostSignal.coefficient(&schedule, t, Family::Stochastic))
            .collect();
        assert_close_slices(
            "c",
            &coefficients,
            case.numbers("coef.c_all_t_f64"),
            2e-5,
            1e-7,
        );
        let pair = batch(&case, &schedule, &device);
        assert_close(
            "x_t",
            &pair.x_t,
            &case.tensor("x_noisy", &device),
            1e-5,
            1e-5,
        );
        assert_close(
            "target",
            &pair.target,
            &case.tensor("target", &device),
            1e-5,
            1e-5,
        );
    }
}

#[derive(Default)]
struct Named {
    path: Vec<String>,
    gradients: Option<Gradients>,
    found: Vec<(String, Vec<f64>)>,
}

impl ModuleVisitor for Named {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param
            .val()
            .grad_remove(self.gradients.as_mut().unwrap())
            .expect("every parameter has a gradient");
        self.found.push((
            self.path.join("."),
            gradient.into_data().iter::<f64>().collect(),
        ));
    }
}

#[test]
fn losses_and_gradients_of_a_network_match() {
    let device = Device::flex().autodiff();
    let model = golden::root().join("unet2d/c1_attn_all/pipeline");
    let model = Pipeline::load(&model, &Limits::default(), &device).unwrap();
    for (name, steps, first, last) in CASES {
        let case = Case::named(&format!("attack-losses/{name}"));
        let schedule = NoiseSchedule::linear(steps, first, last).unwrap();
        let pair = batch(&case, &schedule, &device);
        let prediction = model
            .unet()
            .forward(pair.x_t, &case.integers("t"), &mut NoTap)
            .unwrap();
        for (loss, key) in [
            (Loss::L1, "loss.l1"),
            (Loss::Huber, "loss.huber"),
            (Loss::L2, "loss.l2"),
        ] {
            let value = loss.of(prediction.clone(), pair.target.clone());
            let number = f64::from(value.clone().inner().into_scalar::<f32>());
            assert_close_slices(key, &[number], case.numbers(key), 1e-5, 0.0);
            if loss != Loss::L2 {
                continue;
            }
            let mut named = Named {
                gradients: Some(value.backward()),
                ..Named::default()
            };
            model.unet().visit(&mut named);
            let mut compared = 0;
            for (parameter, got) in &named.found {
                assert!(
                    got.iter().any(|g| *g != 0.0),
                    "no gradient reaches {parameter}"
                );
                let key = format!("grad.{parameter}");
                if !case.has(&key) {
                    continue;
                }
                compared += 1;
                let want = case.numbers(&key);
                let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                assert_close_slices(&key, got, want, 0.0, 1e-4 * largest);
            }
            assert_eq!(compared, 3, "{name}");
        }
    }
}
