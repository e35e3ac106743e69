//! TrojDiff's and VillanDiffusion's forward processes and losses against recorded numbers of the released code.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor};
use depurate_attack::{
    Pattern,
    troj_diff::{TrojDiff, TrojDiffParams},
};
use depurate_checkpoint::Limits;
use depurate_diffusion::{
    NoTap, Pipeline, SampleShape,
    schedule::NoiseSchedule,
    trigger::{Family, TriggerRule},
};
use depurate_testkit::{
    assert_close, assert_close_slices,
    golden::{self, Case},
};

/// TrojDiff marks poisoned samples of another data set by this label.
const POISONED: usize = 1000;

fn schedule(case: &Case) -> NoiseSchedule {
    let number = |name: &str| case.json["schedule"][name].as_f64().unwrap();
    NoiseSchedule::linear(
        number("num_train_timesteps") as usize,
        number("beta_start"),
        number("beta_end"),
    )
    .unwrap()
}

fn model(device: &Device) -> Pipeline {
    let model = golden::root().join("unet2d/c1_attn_all/pipeline");
    Pipeline::load(&model, &Limits::default(), device).unwrap()
}

#[test]
fn troj_diff_samples_losses_and_prior_match() {
    let (device, plain) = (Device::flex().autodiff(), Device::flex());
    let model = model(&device);
    let cases = Case::all("attack-losses", "trojdiff_");
    assert!(cases.len() >= 3);
    for case in cases {
        let name = case.name();
        let images: Tensor<4> = case.tensor("x0", &plain);
        let eps: Tensor<4> = case.tensor("eps", &plain);
        let [count, channels, height, width] = images.dims();
        let shape = SampleShape {
            channels,
            height,
            width,
        };
        let args = &case.json["args"];
        let patch = args["trigger_type"] == "patch";
        let params = TrojDiffParams {
            gamma: args["gamma"].as_f64().unwrap(),
            patch: patch.then(|| args["patch_size"].as_u64().unwrap() as usize),
            ..TrojDiffParams::default()
        };
        let image: Vec<f32> = case
            .numbers("trigger_image01")
            .iter()
            .map(|&v| (2.0 * v - 1.0) as f32)
            .collect();
        let trigger = Pattern::from_values(shape, image).unwrap();
        let (mu, gamma) = params.prior(&trigger).unwrap();
        if !patch {
            let mu: Vec<f64> = mu.values().iter().map(|&v| f64::from(v)).collect();
            assert_close_slices(&format!("{name}: mu"), &mu, case.numbers("miu"), 0.0, 1e-6);
            assert!(
                gamma
                    .iter()
                    .all(|&g| f64::from(g) == f64::from(params.gamma as f32))
            );
        }
        let (t, labels) = (case.integers("t"), case.integers("out.y_label"));
        // each sample is its own target: the released code poisons the image itself
        let pair = |i: usize| {
            let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
            let values = one(&images).into_data().iter::<f32>().collect();
            let target = Pattern::from_values(shape, values).unwrap();
            let attack = TrojDiff::new(params, &trigger, &target, &plain).unwrap();
            let poisoned = [labels[i] == POISONED];
            attack
                .pair(
                    &schedule(&case),
                    one(&images),
                    &poisoned,
                    one(&eps),
                    &t[i..=i],
                )
                .unwrap()
        };
        let pairs: Vec<_> = (0..count).map(pair).collect();
        let x_t = Tensor::cat(pairs.iter().map(|pair| pair.x_t.clone()).collect(), 0);
        let target = Tensor::cat(pairs.iter().map(|pair| pair.target.clone()).collect(), 0);
        let want = case.tensor("out.x_model", &plain);
        assert_close(&format!("{name}: x_t"), &x_t, &want, 1e-5, 1e-5);
        let e = model
            .unet()
            .forward(x_t.autodiff(), &t, &mut NoTap)
            .unwrap();
        // the released loss is the sum over an image, the mean over the batch
        let loss = (e - target.autodiff()).square().sum() / count as f64;
        let got = f64::from(loss.inner().into_scalar::<f32>());
        assert_close_slices(
            &format!("{name}: loss"),
            &[got],
            case.numbers("out.loss"),
            1e-5,
            0.0,
        );
    }
}

#[test]
fn villan_diffusion_for_ode_samplers_shifts_as_released_and_answers_nearly_so() {
    let plain = Device::flex();
    let case = Case::named("attack-losses/villan_vp_T1000_linear_psi1.0_ode");
    let (schedule, rule) = (
        schedule(&case),
        TriggerRule::lost_signal(Family::Deterministic),
    );
    let tensor = |name: &str| case.tensor::<4>(name, &plain);
    let t = case.integers("t");
    let pair = rule
        .poisoned_pair(&schedule, tensor("y"), tensor("R"), tensor("eps"), &t)
        .unwrap();
    assert_close("x_t", &pair.x_t, &tensor("x_noisy"), 1e-5, 1e-5);
    let rho: Vec<f64> = (0..1000).map(|t| rule.rho(&schedule, t)).collect();
    assert_close_slices("rho", &rho, case.numbers("coef.step_all_t"), 5e-4, 1e-5);
    // the released coefficient is twice the stochastic one, here it is that of DDIM's step: equal in the limit of small steps
    let c: Vec<f64> = (0..1000).map(|t| rule.coefficient(&schedule, t)).collect();
    let released = case.numbers("coef.R_coef_all_t");
    assert_close_slices("c from t = 50", &c[50..], &released[50..], 0.02, 0.0);
    assert!(
        (released[0] / c[0] - 2.0).abs() < 0.01,
        "one step is no limit"
    );
}
