//! Pictures and curves for people to judge by. None of it changes the score.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use depurate_diffusion::{
    Device,
    noise::SeedTree,
    sampler::{Clip, Ddim, Ddpm, Sampler, SamplerSettings, sample},
    schedule::VarianceType,
    trigger::{Family, Shift},
};

use super::{Behaviour, ShiftResponseParams, controls::smooth};
use crate::{
    Cx, DefenseError,
    detect::model_level::{Curve, Samples},
    invert::response_fixed_point::FixedPoint,
    probe::{Probe, batch_mean, norm, values},
};

/// Scales of the candidate at which its response is drawn.
const SCALES: [f32; 7] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4];

/// The response curve, and the trace of the inversion.
pub(super) fn curves(
    probe: &Probe<'_>,
    shift: &[f32],
    found: &FixedPoint,
    seed: &SeedTree,
) -> Result<Vec<Curve>, DefenseError> {
    let size = norm(shift).max(1e-12);
    let other = smooth(probe.shape(), &seed.child("curve control", 0));
    let factor = (size / norm(&other)) as f32;
    let other: Vec<f32> = other.iter().map(|v| v * factor).collect();
    let series = vec![
        (
            "candidate trigger".to_owned(),
            response(probe, shift, seed)?,
        ),
        (
            "smooth random control".to_owned(),
            response(probe, &other, seed)?,
        ),
        (
            "ideal backdoor (stochastic rule)".to_owned(),
            vec![
                (0.0, 1.0),
                (0.5, 1.0),
                (0.5, answered(probe)),
                (1.4, answered(probe)),
            ],
        ),
    ];
    let trace = |values: &[f64]| {
        values
            .iter()
            .enumerate()
            .map(|(i, &v)| (i as f64, v))
            .collect()
    };
    Ok(vec![
        Curve {
            title: "Response to the shift at almost pure noise".into(),
            x_label: "scale of the shift".into(),
            y_label: "answered part of the shift".into(),
            series,
        },
        Curve {
            title: "Trigger inversion".into(),
            x_label: "iteration".into(),
            y_label: "residual, and size of the shift".into(),
            series: vec![
                ("residual".into(), trace(&found.trace)),
                ("root mean square of the shift".into(), trace(&found.rms)),
            ],
        },
    ])
}

fn answered(probe: &Probe<'_>) -> f64 {
    let schedule = probe.schedule();
    Shift::LostSignal.coefficient(schedule, schedule.len() - 1, Family::Stochastic)
}

/// `<mean_j e(s eps_j + l u) - eps_j, l u> / || l u ||^2` by scale `l`; 1 for a benign network.
fn response(
    probe: &Probe<'_>,
    u: &[f32],
    seed: &SeedTree,
) -> Result<Vec<(f64, f64)>, DefenseError> {
    let schedule = probe.schedule();
    let t = schedule.len() - 1;
    let eps = probe.antithetic_noise(&seed.child("response", 0), 4)?;
    let mut points = Vec::with_capacity(SCALES.len());
    for scale in SCALES {
        let shift: Vec<f32> = u.iter().map(|v| v * scale).collect();
        let e = probe.epsilon(eps.clone() * schedule.s(t) + probe.image(&shift), t)?;
        let m = batch_mean(&values(e - eps.clone()), shift.len());
        let dot: f64 = m.iter().zip(&shift).map(|(m, &u)| m * f64::from(u)).sum();
        points.push((f64::from(scale), dot / norm(&shift).powi(2).max(1e-12)));
    }
    Ok(points)
}

/// Images by hypothesis, and full-step images where the profile asks for them.
pub(super) fn samples(
    probe: &Probe<'_>,
    params: &ShiftResponseParams,
    shift: &[f32],
    compared: &[(String, Behaviour)],
    chosen: &Behaviour,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Vec<Samples>, DefenseError> {
    let shape = probe.shape();
    let shifted = |label: &str, behaviour: &Behaviour| Samples {
        label: label.to_owned(),
        sampler: SamplerSettings::Ddim {
            steps: depurate_diffusion::sampler::Steps {
                count: params.steps,
                first: probe.schedule().len() - 1,
                last: 0,
            },
            eta: 0.0,
            clip: Clip::Range(1.5),
            use_clipped_model_output: true,
        },
        shape,
        count: params.images,
        pixels: behaviour.images.clone(),
    };
    let mut found = vec![shifted(
        "noise + inverted trigger, in shifted coordinates",
        chosen,
    )];
    for (label, behaviour) in compared {
        found.push(shifted(
            &format!("noise + control: {label}, in shifted coordinates"),
            behaviour,
        ));
    }
    if params.full_step_images > 0 {
        found.extend(full_step(probe, params.full_step_images, shift, seed, cx)?);
    }
    Ok(found)
}

/// The samplers that an operator would run, unmodified, from noise and from noise + trigger.
fn full_step(
    probe: &Probe<'_>,
    count: usize,
    shift: &[f32],
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Vec<Samples>, DefenseError> {
    let schedule = probe.schedule().clone();
    let timesteps: Vec<usize> = (0..schedule.len()).rev().collect();
    let ddpm = Ddpm::new(
        schedule.clone(),
        timesteps,
        VarianceType::FixedSmall,
        Clip::None,
    )?;
    let strided: Vec<usize> = (0..50)
        .rev()
        .map(|i| i * (schedule.len() - 1) / 49)
        .collect();
    let ddim = Ddim::new(schedule, strided, 0.0, Clip::None)?;
    let eps = probe.noise(&seed.child("full-step start", 0), count)?;
    let triggered = eps.clone() + probe.image(shift);
    let calls = ddpm.timesteps().len() + ddim.timesteps().len();
    cx.progress.start(
        "full-step sampling with and without the trigger",
        calls as u64,
    );

    let both = Tensor::cat(vec![eps, triggered], 0);
    let mut found = Vec::with_capacity(4);
    for (name, sampler) in [
        ("DDPM, every step", &ddpm as &dyn Sampler),
        ("DDIM, 50 steps", &ddim),
    ] {
        // the same noise stream for image i with and without the trigger
        let mut noise = Paired(seed.child("full-step noise", 0).noise(0, count));
        let mut stopped = Ok(());
        let images = sample(
            probe.model,
            sampler,
            both.clone(),
            &mut noise,
            &mut |_, _| {
                stopped = cx.step();
                if stopped.is_err() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        stopped?;
        let pixels = values(images?.clamp(-1.0, 1.0));
        let (plain, triggered) = pixels.split_at(pixels.len() / 2);
        for (label, pixels) in [("noise", plain), ("noise + inverted trigger", triggered)] {
            found.push(Samples {
                label: format!("{label}, {name}"),
                sampler: sampler.settings(),
                shape: probe.shape(),
                count,
                pixels: pixels.to_vec(),
            });
        }
    }
    Ok(found)
}

/// Gives both halves of a batch the same noise.
struct Paired(depurate_diffusion::noise::SeededNoise);

impl depurate_diffusion::noise::NoiseSource for Paired {
    fn normal(
        &mut self,
        shape: [usize; 4],
        device: &Device,
    ) -> Result<Tensor<4>, depurate_diffusion::DiffusionError> {
        let [batch, channels, height, width] = shape;
        let half = self
            .0
            .normal([batch / 2, channels, height, width], device)?;
        Ok(Tensor::cat(vec![half.clone(), half], 0))
    }
}
