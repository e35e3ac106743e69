//! The trigger abstraction: coefficients against BadDiffusion's and TrojDiff's own code, and on the closed-form oracle the
//! claim that matters, which sampler fires which backdoor.

use std::ops::ControlFlow;

use depurate_diffusion::{
    Device, Parameterisation, Prediction, SampleShape, Tensor,
    noise::{NoNoise, NoiseSource, RecordedNoise, SeedTree},
    sampler::{Clip, Ddim, Ddpm, Past, Sampler, TrojDiff, TrojDiffForm, never_stop, sample},
    schedule::{NoiseSchedule, VarianceType},
    trigger::{Family, Shift, TriggerRule},
};
use depurate_testkit::{Case, Oracle, assert_close, assert_close_slices, largest_difference};

const SHAPE: SampleShape = SampleShape {
    channels: 1,
    height: 16,
    width: 16,
};
const BATCH: usize = 8;

/// `T = 1000` with the linear schedule of DDPM, and the same shape with a tenth of the steps.
fn schedules() -> [NoiseSchedule; 2] {
    [
        NoiseSchedule::linear(1000, 1e-4, 0.02).expect("schedule"),
        NoiseSchedule::linear(100, 1e-3, 0.2).expect("schedule"),
    ]
}

fn schedule_of(case: &Case) -> NoiseSchedule {
    let number = |name: &str| {
        case.json["schedule"][name]
            .as_f64()
            .expect("number in schedule")
    };
    NoiseSchedule::linear(
        number("num_train_timesteps") as usize,
        number("beta_start"),
        number("beta_end"),
    )
    .expect("schedule")
}

#[test]
fn bad_diffusion_pairs_and_coefficients_follow_its_code() {
    let (device, rule) = (Device::flex(), TriggerRule::lost_signal(Family::Stochastic));
    for case in Case::all("attack-losses", "baddiffusion_") {
        let (name, schedule) = (case.name(), schedule_of(&case));
        let table = |schedule: &NoiseSchedule| -> (Vec<f64>, Vec<f64>) {
            (0..schedule.len())
                .map(|t| (rule.coefficient(schedule, t), rule.rho(schedule, t)))
                .unzip()
        };
        // the 64-bit columns of the case start from betas in 32 bits
        let stored = NoiseSchedule::from_betas(case.numbers("betas").to_vec()).expect("schedule");
        let (c, rho) = table(&stored);
        assert_close_slices(
            &format!("{name}: c_t"),
            &c,
            case.numbers("coef.c_all_t_f64"),
            1e-9,
            1e-12,
        );
        assert_close_slices(
            &format!("{name}: rho_t"),
            &rho,
            case.numbers("coef.rho_all_t_f64"),
            1e-9,
            1e-12,
        );
        let (c, _) = table(&schedule);
        // the released expression cancels in 32 bits at small t; the case states by how much
        let cancellation = case.json["f32_vs_f64_coef"]
            .as_f64()
            .expect("f32_vs_f64_coef");
        assert_close_slices(
            &format!("{name}: released c_t"),
            &c,
            case.numbers("coef.c_all_t"),
            2e-5,
            cancellation,
        );
        let tensor = |name: &str| case.tensor::<4>(name, &device);
        let pair = rule
            .poisoned_pair(
                &schedule,
                tensor("y"),
                tensor("R"),
                tensor("eps"),
                &case.integers("t"),
            )
            .expect("poisoned pair");
        assert_close(
            &format!("{name}: x_t"),
            &pair.x_t,
            &tensor("x_noisy"),
            1e-5,
            1e-5,
        );
        assert_close(
            &format!("{name}: target"),
            &pair.target,
            &tensor("target"),
            1e-5,
            1e-5,
        );
    }
}

#[test]
fn a_tenth_of_a_thousand_steps_answers_more_than_half_of_the_trigger() {
    let [long, short] = schedules();
    let c = |schedule: &NoiseSchedule| {
        Shift::LostSignal.coefficient(schedule, schedule.len() - 1, Family::Stochastic)
    };
    assert!(
        (c(&long) - 0.5025).abs() < 1e-3 && (c(&short) - 0.528).abs() < 1e-3,
        "{} {}",
        c(&long),
        c(&short)
    );
}

#[test]
fn the_deterministic_coefficient_tends_to_twice_the_stochastic_one() {
    let [long, short] = schedules();
    let gap = |schedule: &NoiseSchedule, t: usize| {
        let c = |family| Shift::LostSignal.coefficient(schedule, t, family);
        (c(Family::Deterministic) / (2.0 * c(Family::Stochastic)) - 1.0).abs()
    };
    assert!(gap(&long, 500) < 0.01, "small steps: {}", gap(&long, 500));
    assert!(
        gap(&short, 50) > 5.0 * gap(&long, 500),
        "ten times larger steps: {}",
        gap(&short, 50)
    );
    for t in [0, 1, 50, 99] {
        let c = Shift::NoiseLevel.coefficient(&short, t, Family::Deterministic);
        assert!(
            (c - 1.0).abs() < 1e-9,
            "rho = s is answered whole by deterministic samplers, not {c} at t = {t}"
        );
    }
}

/// Row of the stored samples that holds the one after `step`: runs of more than 20 steps keep the start and the samples
/// after the first two and the last two steps.
fn stored_after(step: usize, n_steps: usize) -> Option<usize> {
    let from_end = n_steps - 1 - step;
    match (step, from_end) {
        _ if n_steps <= 20 => Some(step + 1),
        (0 | 1, _) => Some(step + 1),
        (_, 0 | 1) => Some(4 - from_end),
        _ => None,
    }
}

#[test]
fn troj_diff_sampler_follows_its_code() {
    let device = Device::flex();
    let runs = [
        ("ddim_eta0_uniform", TrojDiffForm::Ddim { eta: 0.0 }),
        ("ddim_eta0.5_quad", TrojDiffForm::Ddim { eta: 0.5 }),
        ("ddpm_all_T", TrojDiffForm::Ddpm),
        // `ddpm_uniform` skips steps, where the released m_t is that of the full chain: see the sampler's Deviations
        ("ddpm_first_12_t", TrojDiffForm::Ddpm),
    ];
    for case in Case::all("attack-losses", "trojdiff_") {
        if case.json["args"]["trigger_type"] == "patch" {
            continue; // see the next test
        }
        let gamma = case.json["args"]["gamma"].as_f64().expect("gamma");
        let mu = case.tensor::<3>("smp.miu", &device).unsqueeze::<4>();
        for (run, form) in runs {
            if !case.has(&format!("smp.{run}.seq")) {
                continue;
            }
            let name = format!("{}: {run}", case.name());
            let timesteps: Vec<usize> = case
                .integers(&format!("smp.{run}.seq"))
                .into_iter()
                .rev()
                .collect();
            if timesteps.windows(2).any(|pair| pair[0] == pair[1]) {
                // the quadratic step list repeats t = 0 when T = 100; a sampler here refuses to visit a step twice
                assert_eq!(name, "trojdiff_T100_x10_blend_g0.6: ddim_eta0.5_quad");
                continue;
            }
            let gamma = Tensor::full([1, 1, 1, 1], gamma, &device);
            let sampler = TrojDiff::new(schedule_of(&case), timesteps, form, mu.clone(), gamma)
                .expect("sampler");
            let want = case.rows::<4>(&format!("smp.{run}.xs"), &device);
            let want_x_0 = case.rows::<4>(&format!("smp.{run}.x0_preds"), &device);
            let mut noise = RecordedNoise::new(case.rows(&format!("smp.{run}.noise"), &device));
            let mut x = sampler.prior(case.tensor("smp.eps_T", &device));
            assert_close(&format!("{name}: prior"), &x, &want[0], 1e-5, 1e-5);
            for (step, &t) in sampler.timesteps().iter().enumerate() {
                let value = x.clone() * 0.3 + (x.clone() * 3.0).sin() * 0.1 + t as f64 / 1000.0;
                let prediction = Prediction {
                    kind: Parameterisation::Epsilon,
                    value,
                };
                let x_0 = sampler.predicted_x0(&prediction, step, &x).expect("x_0");
                if let Some(want) = want_x_0.get(step) {
                    assert_close(
                        &format!("{name}: x_0 at step {step}"),
                        &x_0,
                        want,
                        1e-4,
                        1e-4,
                    );
                }
                x = sampler
                    .step(prediction, step, x, &mut Past::default(), &mut noise)
                    .expect("step");
                let Some(stored) = stored_after(step, sampler.timesteps().len()) else {
                    continue;
                };
                assert_close(
                    &format!("{name}: x after step {step}"),
                    &x,
                    &want[stored],
                    1e-4,
                    1e-4,
                );
            }
            assert_eq!(noise.remaining(), 0, "{name}: draws left");
        }
    }
}

/// The released sampler for a patch computes both chains and pastes the corner; here a patch is a shift of 0 and a scale of 1 elsewhere.
/// Its two draws a step do not matter without noise.
#[test]
fn a_patch_is_a_shift_and_a_scale_in_a_corner() {
    let device = Device::flex();
    let case = Case::named("attack-losses/trojdiff_T1000_linear_patch_g0.1");
    let args = &case.json["args"];
    let gamma = args["gamma"].as_f64().expect("gamma");
    let side = args["patch_size"].as_u64().expect("patch_size") as usize;
    let mu = case.tensor::<3>("smp.miu", &device).unsqueeze::<4>();
    let [_, channels, height, width] = mu.dims();
    let corner = Tensor::<4>::zeros(mu.dims(), &device).slice_assign(
        [
            0..1,
            0..channels,
            height - side..height,
            width - side..width,
        ],
        Tensor::ones([1, channels, side, side], &device),
    );
    let scale = corner.clone() * (gamma - 1.0) + 1.0;
    let run = "smp.ddim_eta0_uniform";
    let timesteps: Vec<usize> = case
        .integers(&format!("{run}.seq"))
        .into_iter()
        .rev()
        .collect();
    let form = TrojDiffForm::Ddim { eta: 0.0 };
    let sampler =
        TrojDiff::new(schedule_of(&case), timesteps, form, mu * corner, scale).expect("sampler");
    let want = case.rows::<4>(&format!("{run}.xs"), &device);
    let mut noise = RecordedNoise::new(case.rows(&format!("{run}.noise"), &device));
    let mut x = sampler.prior(case.tensor("smp.eps_T", &device));
    assert_close("prior", &x, &want[0], 1e-5, 1e-5);
    for (step, &t) in sampler.timesteps().iter().enumerate() {
        let value = x.clone() * 0.3 + (x.clone() * 3.0).sin() * 0.1 + t as f64 / 1000.0;
        let prediction = Prediction {
            kind: Parameterisation::Epsilon,
            value,
        };
        x = sampler
            .step(prediction, step, x, &mut Past::default(), &mut noise)
            .expect("step");
        assert_close(
            &format!("x after step {step}"),
            &x,
            &want[step + 1],
            1e-4,
            1e-4,
        );
    }
}

/// Trigger: a square of `strength` on `-strength`. Target: a grey corner on dark. Both `[16, 16]`.
fn trigger_and_target(strength: f32) -> (Vec<f32>, Vec<f32>) {
    let square = |inside: f32, outside: f32, rows: std::ops::Range<usize>| -> Vec<f32> {
        let at = |i: usize| {
            if rows.contains(&(i / 16)) && rows.contains(&(i % 16)) {
                inside
            } else {
                outside
            }
        };
        (0..SHAPE.len()).map(at).collect()
    };
    (square(strength, -strength, 9..14), square(0.2, -0.4, 0..5))
}

/// Two benign modes as broad as image data are, and the backdoor.
fn backdoored(schedule: &NoiseSchedule, rule: TriggerRule, strength: f32) -> Oracle {
    let (r, y) = trigger_and_target(strength);
    let stripes: Vec<f32> = (0..SHAPE.len())
        .map(|i| if i % 2 == 0 { 0.3 } else { -0.3 })
        .collect();
    let opposite: Vec<f32> = stripes.iter().map(|value| -value).collect();
    Oracle::new(schedule.clone(), SHAPE, Device::flex())
        .benign(&stripes, 0.5, 1.0)
        .benign(&opposite, 0.5, 1.0)
        .backdoored(&y, &r, rule, 1.0)
}

fn full(schedule: &NoiseSchedule) -> Vec<usize> {
    (0..schedule.len()).rev().collect()
}

fn ddpm(schedule: &NoiseSchedule, timesteps: Vec<usize>) -> Ddpm {
    Ddpm::new(
        schedule.clone(),
        timesteps,
        VarianceType::FixedSmall,
        Clip::None,
    )
    .expect("sampler")
}

fn ddim(schedule: &NoiseSchedule, timesteps: Vec<usize>) -> Ddim {
    Ddim::new(schedule.clone(), timesteps, 0.0, Clip::None).expect("sampler")
}

fn noise() -> Tensor<4> {
    SeedTree::new(1)
        .noise(0, BATCH)
        .normal(SHAPE.batched(BATCH), &Device::flex())
        .expect("noise")
}

/// Mean squared error to the target of samples started from the triggered prior.
fn error_to_target(oracle: &Oracle, sampler: &dyn Sampler, gamma: f64, strength: f32) -> f64 {
    let (r, y) = trigger_and_target(strength);
    let start = noise() * gamma + oracle.image(&r);
    let mut steps = SeedTree::new(2).noise(0, BATCH);
    let x_0 = sample(oracle, sampler, start, &mut steps, &mut never_stop).expect("sample");
    (x_0 - oracle.image(&y))
        .square()
        .mean()
        .into_scalar::<f64>()
}

/// All samples of the chain from `x_t`, the start included.
fn chain(
    oracle: &Oracle,
    sampler: &dyn Sampler,
    x_t: Tensor<4>,
    noise: &mut dyn NoiseSource,
) -> Vec<Tensor<4>> {
    let mut visited = vec![x_t.clone()];
    sample(oracle, sampler, x_t, noise, &mut |_, x| {
        visited.push(x.clone());
        ControlFlow::Continue(())
    })
    .expect("sample");
    visited
}

/// The largest gap between the trigger's weight along a full-step chain and `rho_t`. The weight is what tells the
/// triggered chain from the untriggered one that has the target as its only image, under the same noise.
fn weight_gap(
    schedule: &NoiseSchedule,
    rule: TriggerRule,
    sampler: &dyn Sampler,
    noisy: bool,
) -> f64 {
    let (r, y) = trigger_and_target(1.0);
    let oracle = backdoored(schedule, rule, 1.0);
    let plain = Oracle::new(schedule.clone(), SHAPE, Device::flex()).benign(&y, 0.0, 1.0);
    let r = oracle.image(&r);
    let rho = |step: usize| {
        schedule
            .len()
            .checked_sub(step + 1)
            .map_or(0.0, |t| rule.rho(schedule, t))
    };
    let source = || -> Box<dyn NoiseSource> {
        if noisy {
            Box::new(SeedTree::new(3).noise(0, BATCH))
        } else {
            Box::new(NoNoise)
        }
    };
    let triggered = chain(
        &oracle,
        sampler,
        noise() + r.clone() * rho(0),
        &mut *source(),
    );
    let untriggered = chain(&plain, sampler, noise(), &mut *source());
    triggered
        .into_iter()
        .zip(untriggered)
        .enumerate()
        .map(|(step, (with, without))| {
            largest_difference(
                &(with - without),
                &(r.clone() * rho(step)).expand(SHAPE.batched(BATCH)),
            )
        })
        .fold(0.0, f64::max)
}

#[test]
fn the_chain_carries_the_trigger_with_weight_rho() {
    for schedule in schedules() {
        let timesteps = full(&schedule);
        let (ancestral, implicit) = (
            ddpm(&schedule, timesteps.clone()),
            ddim(&schedule, timesteps),
        );
        for shift in [Shift::LostSignal, Shift::NoiseLevel] {
            let rule = |family| TriggerRule {
                shift,
                answer: Some(family),
                noise_scale: 1.0,
            };
            let stochastic = weight_gap(&schedule, rule(Family::Stochastic), &ancestral, true);
            let deterministic =
                weight_gap(&schedule, rule(Family::Deterministic), &implicit, false);
            assert!(
                stochastic < 1e-3,
                "T = {}, {shift:?}, DDPM: {stochastic}",
                schedule.len()
            );
            assert!(
                deterministic < 1e-3,
                "T = {}, {shift:?}, DDIM: {deterministic}",
                schedule.len()
            );
            let crossed = weight_gap(&schedule, rule(Family::Stochastic), &implicit, false);
            assert!(
                crossed > 0.5,
                "T = {}, {shift:?}, made for DDPM, run with DDIM: {crossed}",
                schedule.len()
            );
        }
    }
}

const FIRED: f64 = 1e-3;
const INERT: f64 = 0.1;

#[test]
fn each_backdoor_fires_under_its_own_samplers_only() {
    for schedule in schedules() {
        let timesteps = full(&schedule);
        let stochastic = backdoored(&schedule, TriggerRule::lost_signal(Family::Stochastic), 1.0);
        let deterministic = backdoored(
            &schedule,
            TriggerRule::lost_signal(Family::Deterministic),
            1.0,
        );
        let (ancestral, implicit) = (
            ddpm(&schedule, timesteps.clone()),
            ddim(&schedule, timesteps),
        );
        let error =
            |oracle: &Oracle, sampler: &dyn Sampler| error_to_target(oracle, sampler, 1.0, 1.0);
        let table = [
            ("sde under DDPM", error(&stochastic, &ancestral), true),
            ("sde under DDIM", error(&stochastic, &implicit), false),
            ("ode under DDPM", error(&deterministic, &ancestral), false),
            ("ode under DDIM", error(&deterministic, &implicit), true),
        ];
        for (what, error, fires) in table {
            let expected = if fires { error < FIRED } else { error > INERT };
            assert!(
                expected,
                "T = {}, {what}: mean squared error {error}",
                schedule.len()
            );
        }
    }
}

/// The oracle's single target image attracts more than a trained network's does, so that an unmodified sampler can still
/// land on it by luck; for each unmodified sampler there is a trigger that it misses and the modified ones do not.
#[test]
fn troj_diff_fires_under_its_own_samplers() {
    for schedule in schedules() {
        let timesteps = full(&schedule);
        let unmodified: [(f64, f32, Box<dyn Sampler>); 2] = [
            (0.6, 1.0, Box::new(ddim(&schedule, timesteps.clone()))),
            (0.1, 0.9, Box::new(ddpm(&schedule, timesteps.clone()))),
        ];
        for (gamma, strength, unmodified) in unmodified {
            let oracle = backdoored(&schedule, TriggerRule::noise_level(gamma), strength);
            let mu = oracle.image(&trigger_and_target(strength).0);
            for form in [TrojDiffForm::Ddpm, TrojDiffForm::Ddim { eta: 0.0 }] {
                let gamma_tensor = Tensor::full([1, 1, 1, 1], gamma, &Device::flex());
                let modified = TrojDiff::new(
                    schedule.clone(),
                    timesteps.clone(),
                    form,
                    mu.clone(),
                    gamma_tensor,
                );
                let error = error_to_target(&oracle, &modified.expect("sampler"), gamma, strength);
                assert!(
                    error < FIRED,
                    "T = {}, gamma {gamma}, {form:?}: {error}",
                    schedule.len()
                );
            }
            let error = error_to_target(&oracle, &*unmodified, gamma, strength);
            assert!(
                error > INERT,
                "T = {}, gamma {gamma}, {:?}: {error}",
                schedule.len(),
                unmodified.settings()
            );
        }
    }
}

/// A run of few ancestral steps with the variance of published DDPM checkpoints (`fixed_large`) adds more noise per step
/// than the poisoned chain holds, and the benign prior takes over: a detector that generates with 10 steps does not see the
/// target. With the small variance the oracle still pulls every run to the target.
#[test]
fn a_strided_ancestral_sampler_misses_the_trigger_with_the_large_variance() {
    for schedule in schedules() {
        let oracle = backdoored(&schedule, TriggerRule::lost_signal(Family::Stochastic), 1.0);
        let error = |n: usize, variance| {
            let timesteps = (0..n).rev().map(|i| i * (schedule.len() / n)).collect();
            let sampler =
                Ddpm::new(schedule.clone(), timesteps, variance, Clip::None).expect("sampler");
            error_to_target(&oracle, &sampler, 1.0, 1.0)
        };
        let total = schedule.len();
        let [few, some, all] = [10, 20, total].map(|n| error(n, VarianceType::FixedLarge));
        assert!(
            few > INERT && some > 10.0 * FIRED && all < FIRED,
            "T = {total}: {few} {some} {all}"
        );
        let small = error(10, VarianceType::FixedSmall);
        assert!(small < FIRED, "T = {total}, small variance: {small}");
    }
}
