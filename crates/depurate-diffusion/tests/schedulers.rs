//! DDPM and DDIM against runs of diffusers' schedulers on a toy model.

use depurate_diffusion::{
    Device, Parameterisation, Prediction, Tensor,
    noise::RecordedNoise,
    sampler::{Clip, Ddim, Ddpm, Sampler},
    schedule::{SchedulerClass, SchedulerConfig},
};
use depurate_testkit::{Case, assert_close, assert_close_slices};
use serde_json::Value;

/// The rule that every case states: `max|d| <= 2e-5 max(1, max|x|)`, although its tables are 32-bit and ours 64-bit.
fn tolerance(want: &Tensor<4>) -> f64 {
    2e-5 * largest(want).max(1.0)
}

fn config_of(case: &Case) -> SchedulerConfig {
    let Value::Object(map) = &case.json["config"] else {
        panic!("{}: config is no object", case.name())
    };
    SchedulerConfig::from_json(map, &case.dir.join("case.json")).expect("the case's config")
}

/// The model of the cases: `0.3 x + 0.1 sin(3 x) + t / 1000`, read as the configured parameterisation.
fn toy(x: &Tensor<4>, t: usize, kind: Parameterisation) -> Prediction {
    let value = x.clone() * 0.3 + (x.clone() * 3.0).sin() * 0.1 + t as f64 / 1000.0;
    Prediction { kind, value }
}

fn sampler_of(case: &Case, config: &SchedulerConfig) -> Box<dyn Sampler> {
    let n_steps = case.json["n_steps"].as_u64().expect("n_steps") as usize;
    match config.class {
        SchedulerClass::Ddpm => {
            Box::new(Ddpm::from_config(config, n_steps, config.clip()).expect("sampler"))
        }
        SchedulerClass::Ddim => {
            let eta = case.json["step_kwargs"]["eta"].as_f64().unwrap_or(0.0);
            let ddim = Ddim::from_config(config, n_steps, eta, config.clip()).expect("sampler");
            let clipped = case.json["step_kwargs"]["use_clipped_model_output"]
                .as_bool()
                .unwrap_or(false);
            if clipped {
                Box::new(ddim.with_clipped_model_output())
            } else {
                Box::new(ddim)
            }
        }
    }
}

fn follows_diffusers(case: &Case) {
    let (device, name, config) = (Device::flex(), case.name(), config_of(case));
    let sampler = sampler_of(case, &config);
    assert_eq!(
        sampler.timesteps(),
        case.integers("timesteps"),
        "{name}: timesteps"
    );

    let counts = case.integers("noise_count_per_step");
    let mut noise = RecordedNoise::new(case.rows("noise", &device));
    let want = case.rows::<4>("x", &device);
    let want_x_0 = case.rows::<4>("pred_original_sample", &device);
    let mut x = want[0].clone();
    for (step, &t) in sampler.timesteps().iter().enumerate() {
        let prediction = toy(&x, t, config.prediction_type);
        let x_0 = sampler
            .predicted_x0(&prediction, step, &x)
            .expect("predicted x_0");
        assert_close(
            &format!("{name}: x_0 at step {step}"),
            &x_0,
            &want_x_0[step],
            0.0,
            tolerance(&want_x_0[step]),
        );
        let before = noise.remaining();
        x = sampler.step(prediction, step, x, &mut noise).expect("step");
        assert_eq!(
            before - noise.remaining(),
            counts[step],
            "{name}: draws at step {step}"
        );
        assert_close(
            &format!("{name}: x after step {step}"),
            &x,
            &want[step + 1],
            0.0,
            tolerance(&want[step + 1]),
        );
    }
    assert_eq!(noise.remaining(), 0, "{name}: draws left");
}

fn largest(tensor: &Tensor<4>) -> f64 {
    tensor
        .clone()
        .abs()
        .max()
        .into_data()
        .iter::<f64>()
        .fold(0.0, f64::max)
}

#[test]
fn ddpm_follows_diffusers() {
    let cases = Case::all("schedulers", "ddpm_");
    assert_eq!(cases.len(), 9);
    cases.iter().for_each(follows_diffusers);
}

#[test]
fn ddim_follows_diffusers() {
    let cases = Case::all("schedulers", "ddim_");
    assert_eq!(cases.len(), 12);
    cases.iter().for_each(follows_diffusers);
}

#[test]
fn tables_noising_and_velocity_follow_diffusers() {
    let device = Device::flex();
    for case in [
        Case::all("schedulers", "ddpm_"),
        Case::all("schedulers", "ddim_"),
    ]
    .concat()
    {
        let (name, config) = (case.name(), config_of(&case));
        let schedule = config.schedule().expect("schedule");
        // 32-bit products of up to 1000 factors
        assert_close_slices(
            &format!("{name}: alphas_cumprod"),
            schedule.alphas_cumprod(),
            case.numbers("alphas_cumprod"),
            5e-5,
            1e-7,
        );
        if case.has("betas") {
            assert_close_slices(
                &format!("{name}: betas"),
                schedule.betas(),
                case.numbers("betas"),
                5e-5,
                1e-6,
            );
        }
        let (x_0, eps) = (
            case.tensor("add_noise.x0", &device),
            case.tensor("add_noise.eps", &device),
        );
        let noisy = schedule
            .add_noise(x_0.clone(), eps.clone(), &case.integers("add_noise.t"))
            .expect("add_noise");
        assert_close(
            &format!("{name}: add_noise"),
            &noisy,
            &case.tensor("add_noise.out", &device),
            2e-5,
            2e-5,
        );
        let velocity = schedule
            .velocity(x_0, eps, &case.integers("get_velocity.t"))
            .expect("velocity");
        assert_close(
            &format!("{name}: velocity"),
            &velocity,
            &case.tensor("get_velocity.out", &device),
            2e-5,
            2e-5,
        );
    }
}

#[test]
fn configs_are_written_as_diffusers_writes_them() {
    for case in [
        Case::all("schedulers", "ddpm_"),
        Case::all("schedulers", "ddim_"),
    ]
    .concat()
    {
        assert_eq!(
            Value::Object(config_of(&case).to_json()),
            case.json["config"],
            "{}",
            case.name()
        );
    }
}

#[test]
fn clipping_is_what_the_caller_says() {
    let case = Case::named("schedulers/ddim_lin_eta0_clip_default");
    let config = config_of(&case);
    assert_eq!(config.clip(), Clip::Range(1.0));
    let unclipped = Ddim::from_config(&config, 10, 0.0, Clip::None).expect("sampler");
    let x = case.rows::<4>("x", &Device::flex()).remove(0);
    let x_0 = unclipped
        .predicted_x0(&toy(&x, 900, config.prediction_type), 0, &x)
        .expect("x_0");
    assert!(
        largest(&x_0) > 1.5,
        "an unclipped x_0 must leave [-1, 1] here"
    );
    let json = serde_json::to_value(unclipped.settings()).expect("settings");
    assert_eq!(json["clip"], "none");
    assert_eq!(json["steps"]["count"], 10);
}
