//! TERD's losses and gradients against the numbers of the released code.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor};
use depurate_defense::invert::terd::{
    Pairs, TerdParams, divergence, estimation, refinement, reversed_loss,
};
use depurate_diffusion::{
    Denoiser, Pipeline,
    noise::NoNoise,
    sampler::{Clip, Ddim, never_stop, sample},
};
use depurate_testkit::{assert_close, golden::Case, largest_difference};

/// `tolerance` of the cases.
const LOSS_RTOL: f64 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-3;
const LAMBDA: f64 = 5e-5;

fn model() -> Pipeline {
    let dir = depurate_testkit::golden::root().join("unet2d/c1_attn_all/pipeline");
    Pipeline::load(&dir, &Default::default(), &Device::flex()).unwrap()
}

fn check_loss(name: &str, got: f64, case: &Case) {
    let want = case.numbers(name)[0];
    assert!(
        (got - want).abs() <= LOSS_RTOL * want.abs().max(1e-6),
        "{name}: {got} instead of {want}"
    );
}

fn check_gradient(name: &str, got: &Tensor<4>, case: &Case) {
    let want: Tensor<3> = case.tensor(name, &Device::flex());
    let want = want.unsqueeze_dim::<4>(0);
    let largest = f64::from(want.clone().abs().max().into_scalar::<f32>());
    let worst = largest_difference(got, &want);
    assert!(
        worst <= GRADIENT_TOLERANCE * largest,
        "{name}: {worst} of {largest}"
    );
}

fn shift(case: &Case) -> Tensor<4> {
    case.tensor::<3>("mu", &Device::flex()).unsqueeze_dim(0)
}

fn pairs(case: &Case, noise: &str, rows: [usize; 2], t: &str) -> Pairs {
    let mut draws: Vec<Tensor<4>> = case.rows(noise, &Device::flex());
    let second = draws.swap_remove(rows[1]);
    let first = draws.swap_remove(rows[0]);
    Pairs {
        x_0: case.tensor("x_fake", &Device::flex()),
        eps: [first, second],
        t: case.integers(t),
    }
}

#[test]
fn stage_1_is_that_of_the_released_code() {
    let model = model();
    for case in Case::all("attack-losses", "terd_baddiff_3step") {
        let pairs = pairs(&case, "s1.noise", [0, 1], "t_hi");
        let shift = shift(&case);
        let loss = reversed_loss(&model, &pairs, &shift, None, 1.0).unwrap();
        check_loss("s1.loss", f64::from(loss.into_scalar::<f32>()), &case);
        let objective = estimation(&model, &pairs, &shift, None, LAMBDA).unwrap();
        check_loss("s1.loss_total", objective.value, &case);
        check_gradient("s1.grad_mu", &objective.shift, &case);
        check_gradient(
            "s1.mu_after_sgd_lr0.5",
            &(shift - objective.shift * 0.5),
            &case,
        );
    }
}

#[test]
fn stage_2_is_that_of_the_released_code() {
    let model = model();
    for (name, clip) in [
        ("terd_baddiff_3step_clip0", Clip::None),
        ("terd_baddiff_3step_clip1", Clip::Range(1.0)),
    ] {
        let case = Case::named(&format!("attack-losses/{name}"));
        let device = Device::flex();
        let sampler = Ddim::new(
            model.schedule().clone(),
            case.integers("s2.ddim_timesteps"),
            0.0,
            clip,
        )
        .unwrap();
        let start: Tensor<4> = case.tensor("s2.init_noise", &device);
        let shift = shift(&case);
        let generated = sample(
            &model,
            &sampler,
            start.clone() + shift.clone(),
            &mut NoNoise,
            &mut never_stop,
        )
        .unwrap();
        assert_close(
            "s2.generated",
            &generated,
            &case.tensor("s2.generated", &device),
            1e-4,
            1e-4,
        );
        let noisy = pairs(&case, "s2.noise", [0, 1], "t_hi");
        let clean = pairs(&case, "s2.noise", [2, 3], "t_lo");
        let objective = refinement(
            &model, &sampler, start, &noisy, &clean, &shift, None, LAMBDA,
        )
        .unwrap();
        check_loss("s2.loss_total", objective.value, &case);
        check_gradient("s2.grad_mu", &objective.shift, &case);
    }
}

#[test]
fn the_divergence_is_that_of_the_released_code() {
    for case in Case::all("attack-losses", "terd_baddiff_3step") {
        let shift: Vec<f32> = case.numbers("mu").iter().map(|&v| v as f32).collect();
        let (mean, variance) = divergence(&shift, None);
        // the released code takes off N_m = -0.4 and N_v = 0.003
        check_loss("M_r", mean + 0.4, &case);
        check_loss("V_r", variance - 0.003, &case);
    }
}

#[test]
fn a_deviation_gamma_at_zero_is_finite() {
    let (mean, variance) = divergence(&[0.5; 4], Some(&[0.0; 4]));
    assert!(mean.is_finite() && variance.is_finite());
}

#[test]
fn parameters_are_checked_by_name() {
    for (params, named) in [
        (
            TerdParams {
                batch: 0,
                ..TerdParams::default()
            },
            "batch",
        ),
        (
            TerdParams {
                sampler_steps: 1,
                ..TerdParams::default()
            },
            "sampler_steps",
        ),
        (
            TerdParams {
                noisy_alpha_bar: 0.0,
                ..TerdParams::default()
            },
            "noisy_alpha_bar",
        ),
        (
            TerdParams {
                learning_rate: f64::NAN,
                ..TerdParams::default()
            },
            "learning_rate",
        ),
    ] {
        let error = params.build().err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
}
