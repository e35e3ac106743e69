//! Samplers against runs of diffusers' schedulers on a toy model.

use depurate_diffusion::{
    Device, Parameterisation, Prediction, Tensor,
    noise::RecordedNoise,
    sampler::{self, Clip, Ddim, Past, Sampler},
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
fn toy(x: &Tensor<4>, t: f64, kind: Parameterisation) -> Prediction {
    let value = x.clone() * 0.3 + (x.clone() * 3.0).sin() * 0.1 + t / 1000.0;
    Prediction { kind, value }
}

fn sampler_of(case: &Case, config: &SchedulerConfig) -> Box<dyn Sampler> {
    let n_steps = case.json["n_steps"].as_u64().expect("n_steps") as usize;
    match config.class {
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
        _ => sampler::from_config(config, n_steps).expect("sampler"),
    }
}

fn follows_diffusers(case: &Case) {
    let (device, name, config) = (Device::flex(), case.name(), config_of(case));
    let sampler = sampler_of(case, &config);
    let times = case.numbers("timesteps");
    let got: Vec<f64> = (0..sampler.timesteps().len())
        .map(|step| sampler.time(step).expect("time"))
        .collect();
    // whole times exactly; those between timesteps come from levels in 32 bits, of which log sigma rises by 0.005 a timestep
    assert_close_slices(&format!("{name}: times"), &got, times, 1e-5, 1e-3);
    for ((got, want), nearest) in got.iter().zip(times).zip(sampler.timesteps()) {
        assert!(
            want.fract() != 0.0 || got.fract() != 0.0 || got == want,
            "{name}: time {got}"
        );
        assert_eq!(*nearest, got.round() as usize, "{name}");
    }
    assert!(sampler.time(got.len()).is_err());
    let want_scale = case.json["init_noise_sigma"].as_f64().unwrap_or(1.0);
    let scale = sampler.initial_scale();
    assert!(
        (scale - want_scale).abs() <= 1e-5 * want_scale,
        "{name}: {scale}"
    );

    let counts = case.integers("noise_count_per_step");
    let mut noise = RecordedNoise::new(case.rows("noise", &device));
    let want = case.rows::<4>("x", &device);
    let want_input = case.rows::<4>("model_input", &device);
    let want_x_0 = case.rows::<4>("pred_original_sample", &device);
    let mut past = Past::default();
    let mut x = want[0].clone();
    for (step, &t) in times.iter().enumerate() {
        let input = sampler.scale_input(step, x.clone()).expect("input");
        if let Some(want) = want_input.get(step) {
            let what = format!("{name}: input of step {step}");
            assert_close(&what, &input, want, 0.0, tolerance(want));
        }
        let prediction = toy(&input, t, config.prediction_type);
        let x_0 = sampler
            .predicted_x0(&prediction, step, &x)
            .expect("predicted x_0");
        if let Some(want) = want_x_0.get(step) {
            let what = format!("{name}: x_0 at step {step}");
            assert_close(&what, &x_0, want, 0.0, tolerance(want));
        }
        let before = noise.remaining();
        x = sampler
            .step(prediction, step, x, &mut past, &mut noise)
            .expect("step");
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
fn pndm_follows_diffusers() {
    let cases = Case::all("schedulers", "pndm_");
    assert_eq!(cases.len(), 4);
    cases.iter().for_each(follows_diffusers);
}

#[test]
fn euler_follows_diffusers() {
    let cases = Case::all("schedulers", "euler_");
    assert_eq!(cases.len(), 4);
    cases.iter().for_each(follows_diffusers);
}

#[test]
fn dpm_solver_follows_diffusers() {
    let cases = Case::all("schedulers", "dpmpp_");
    assert_eq!(cases.len(), 9);
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
    for mut case in Case::all("schedulers", "") {
        let written = config_of(&case).to_json();
        // minus infinity, which is no JSON: left to its default
        let options = case.json["config"].as_object_mut().expect("config");
        options.remove("lambda_min_clipped");
        assert_eq!(
            Value::Object(written),
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
        .predicted_x0(&toy(&x, 900.0, config.prediction_type), 0, &x)
        .expect("x_0");
    assert!(
        largest(&x_0) > 1.5,
        "an unclipped x_0 must leave [-1, 1] here"
    );
    let json = serde_json::to_value(unclipped.settings()).expect("settings");
    assert_eq!(json["clip"], "none");
    assert_eq!(json["steps"]["count"], 10);
}
