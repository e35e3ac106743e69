//! Descent on the diversity of the images that a shift leads to.
//!
//! ```text
//! V(r) = mean_{b outside the cluster} || x_0(g eps_b + r) - y ||^2 / D      (1)
//! dV/dr = (2 / D) mean_b J_b^T (x_0b - y),  J_b = dx_0b / dx_T             (2)
//! ```
//!
//! `y` is the largest cluster's image, held fixed in a step. What replaces `J` is the variants' difference.

use burn::tensor::Tensor;
use depurate_diffusion::{
    firing::Firing,
    noise::{NoiseSource, SeedTree},
};

use super::{
    Descent,
    look::{Looking, representative},
};
use crate::{
    DefenseError,
    detect::model_level::shift_response::controls::smooth,
    hypothesis::{
        Hypothesis,
        similarity::{distance, largest_cluster},
    },
    probe::{Probe, values},
};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
/// Size of a probing step of the gradient-free variant, as a part of the shift's bound.
const PROBING: f32 = 0.2;

/// How far and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) descent: Descent,
    pub(super) iterations: usize,
    pub(super) learning_rate: f64,
    pub(super) bound: f64,
}

/// Moves `hypothesis` so that its images become alike; the noises are the same in every step. Returns it with (1) by step.
pub(super) fn descend(
    probe: &Probe<'_>,
    mut hypothesis: Hypothesis,
    looking: &Looking,
    settings: &Settings,
    seed: &SeedTree,
) -> Result<(Hypothesis, Vec<f64>), DefenseError> {
    let len = hypothesis.shift.len();
    let mut moments = vec![(0.0f64, 0.0f64); len];
    let mut trace = Vec::with_capacity(settings.iterations);
    for iteration in 0..settings.iterations {
        let images = looking.images(probe, &hypothesis, seed)?;
        let cluster = largest_cluster(&images, len, looking.similar);
        let target = representative(&images, len, &cluster);
        let outside: Vec<usize> = (0..looking.images)
            .filter(|b| !cluster.contains(b))
            .collect();
        trace.push(diversity(&images, &target));
        if outside.is_empty() {
            break; // all alike
        }
        let gradient = match settings.descent {
            Descent::IdentityJacobian => identity(&images, &target, &outside), // eq. (2), J = 1
            Descent::GradientFree => {
                let seed = seed.child("probing", iteration as u64);
                probed(probe, &hypothesis, &target, looking, &seed)?
            }
        };
        let n = iteration as i32 + 1;
        let rate = settings.learning_rate
            * if hypothesis.firing == Firing::Modified {
                0.3
            } else {
                1.0
            };
        for ((value, g), moment) in hypothesis.shift.iter_mut().zip(&gradient).zip(&mut moments) {
            moment.0 = BETA_1 * moment.0 + (1.0 - BETA_1) * g;
            moment.1 = BETA_2 * moment.1 + (1.0 - BETA_2) * g * g;
            let mean = moment.0 / (1.0 - BETA_1.powi(n));
            let root = (moment.1 / (1.0 - BETA_2.powi(n))).sqrt() + 1e-8;
            let moved = f64::from(*value) - rate * mean / root;
            *value = moved.clamp(-settings.bound, settings.bound) as f32;
        }
    }
    Ok((hypothesis, trace))
}

/// (1) over all images.
fn diversity(images: &[f32], target: &[f32]) -> f64 {
    let distances = images
        .chunks_exact(target.len())
        .map(|image| distance(image, target));
    distances.sum::<f64>() / (images.len() / target.len()) as f64
}

/// Mean of `x_0 - y` over the images `outside` the cluster.
fn identity(images: &[f32], target: &[f32], outside: &[usize]) -> Vec<f64> {
    let len = target.len();
    (0..len)
        .map(|p| {
            let off = |&b: &usize| f64::from(images[b * len + p] - target[p]);
            outside.iter().map(off).sum::<f64>() / outside.len() as f64
        })
        .collect()
}

/// Antithetic finite differences of (1) along a few smooth random fields, one image each way.
fn probed(
    probe: &Probe<'_>,
    hypothesis: &Hypothesis,
    target: &[f32],
    looking: &Looking,
    seed: &SeedTree,
) -> Result<Vec<f64>, DefenseError> {
    let shape = probe.shape();
    let pairs = looking.images / 2;
    let mut noise = seed.noise(0, pairs);
    let eps = noise.normal(shape.batched(pairs), &probe.model.device())?;
    let fields: Vec<Vec<f32>> = (0..pairs)
        .map(|i| smooth(shape, &seed.child("field", i as u64)))
        .collect();
    let step: Vec<f32> = fields.concat().iter().map(|v| v * PROBING).collect();
    let step = Tensor::from_data(
        burn::tensor::TensorData::new(step, shape.batched(pairs)),
        &probe.model.device(),
    );
    // a step of the start is a step of the shift
    let per_noise = match &hypothesis.gamma {
        Some(gamma) => step / probe.image(gamma),
        None => step,
    };
    let both = Tensor::cat(vec![eps.clone() + per_noise.clone(), eps - per_noise], 0);
    let images = values(
        hypothesis
            .sample(probe, both, looking.steps)?
            .clamp(-1.0, 1.0),
    );
    let distances: Vec<f64> = images
        .chunks_exact(target.len())
        .map(|image| distance(image, target))
        .collect();
    let mut gradient = vec![0.0; target.len()];
    for (i, field) in fields.iter().enumerate() {
        let slope = (distances[i] - distances[i + pairs]) / f64::from(2.0 * PROBING);
        for (g, &f) in gradient.iter_mut().zip(field) {
            *g += slope * f64::from(f) / pairs as f64;
        }
    }
    Ok(gradient)
}
