//! Where a trigger acts: the places of a latent that it changes, and those that attend to its words.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `h~_i`, `h_i` | what the suspect draws for a triggered prompt and for the clean one, from the same noise | `[C, h, w]` |
//! | `d` | `mean_i (h~_i - h_i)` | `[C, h, w]` |
//! | `D` | `mean_i sqrt(mean_c (h~_i - h_i)^2)` | `[h, w]` |
//! | `A` | attention to the trigger's positions, mean over heads, layers, prompts and [`TIMES`] | `[h, w]` |
//!
//! `D` and `A` are brought to 0 at their least and 1 at their largest value, and `A` is then smoothed by a Gaussian of standard
//! deviation 2 over five places, at the edges mirrored, as published.

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::noise::{NoiseSource, SeedTree};

use super::{
    MapNorm, MapTap, aligned,
    material::{BATCH, Material, drawn},
};
use crate::{Cx, DefenseError};

/// Parts of the schedule at which attention is looked at.
const TIMES: [f64; 4] = [0.8, 0.6, 0.4, 0.2];
/// Places on either side that the smoothing of `A` reaches, and its standard deviation.
const REACH: usize = 2;
const BLUR: f64 = 2.0;
/// Keeps a quotient finite where a map is constant.
const TINY: f64 = 1e-8;

/// The footprint of a trigger. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Footprint {
    /// `d`, `[1, C, h, w]`.
    pub difference: Tensor<4>,
    /// `D`, `[h, w]`, from 0 to 1.
    pub change: Tensor<2>,
    /// `A`, `[h, w]`, smoothed, from 0 to 1; zeros where no position is the trigger's.
    pub attention: Tensor<2>,
    /// `h~`, `[N, C, h, w]`.
    pub triggered: Tensor<4>,
    /// `h`, `[N, C, h, w]`.
    pub clean: Tensor<4>,
}

impl Footprint {
    /// Of `count` prompts, drawn in `steps` deterministic steps under `guidance`.
    ///
    /// # Errors
    /// When the networks cannot be run, the budget is spent or the caller asked to stop.
    pub fn of(
        material: &Material,
        count: usize,
        (steps, guidance): (usize, f64),
        seed: &SeedTree,
        cx: &Cx<'_>,
    ) -> Result<Self, DefenseError> {
        let indices: Vec<usize> = (0..material.prompts.len()).cycle().take(count).collect();
        let noises = seed.child("pairs", 0);
        let how = (steps, guidance);
        let pictures = |prompts| drawn(&material.teacher, (prompts, &indices), how, &noises, cx);
        let (clean, triggered) = (pictures(&material.clean)?, pictures(&material.triggered)?);
        let difference = triggered.clone() - clean.clone();
        let [_, _, height, width] = difference.dims();
        let per_place = difference.clone().square().mean_dim(1).sqrt();
        let change = min_max(per_place.mean_dim(0).reshape([height, width]));
        let attention = attention(material, (&indices, &triggered), seed, cx)?;
        Ok(Self {
            difference: difference.mean_dim(0),
            change,
            attention: blurred(
                min_max(attention).reshape([1, 1, height, width]),
                (REACH, BLUR),
            )
            .reshape([height, width]),
            triggered,
            clean,
        })
    }
}

/// `A` before it is brought to 0 and 1, `[h, w]`, from latents of triggered prompts.
fn attention(
    material: &Material,
    (indices, latents): (&[usize], &Tensor<4>),
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Tensor<2>, DefenseError> {
    let schedule = material.teacher.schedule();
    let [_, _, height, width] = latents.dims();
    let mut sum = Tensor::<2>::zeros([1, height * width], &latents.device());
    let mut positions = 0;
    for (round, part) in TIMES.iter().enumerate() {
        for (first, some) in indices.chunks(BATCH).enumerate() {
            cx.step()?;
            let count = some.len();
            let time = (part * schedule.len() as f64) as usize;
            let t = vec![time.min(schedule.len() - 1); count];
            let mut source = seed
                .child("attention", round as u64)
                .noise((first * BATCH) as u64, count);
            let shape = material.teacher.latent_shape().batched(count);
            let eps = source.normal(shape, &latents.device())?;
            let drawn = latents.clone().narrow(0, first * BATCH, count);
            let z = schedule.add_noise(drawn, eps, &t)?;
            let mut tap = MapTap {
                wanted: true,
                ..MapTap::default()
            };
            let states = material.triggered.states(some);
            let unet = material.teacher.unet();
            unet.forward(z, &t, states, None, &mut tap)?;
            let rows: Vec<(usize, usize)> = material.trigger_rows(some);
            let maps = tap.maps.normalised(&rows, (height, width), MapNorm::None);
            if let Some(maps) = maps.filter(|_| !rows.is_empty()) {
                sum = sum + maps.sum_dim(0) / tap.maps.layers() as f64;
                positions += rows.len();
            }
        }
    }
    Ok((sum / positions.max(1) as f64).reshape([height, width]))
}

impl Material {
    /// The places `(row, position)` of the trigger in the triggered prompts `indices`.
    pub(super) fn trigger_rows(&self, indices: &[usize]) -> Vec<(usize, usize)> {
        let of = |(row, &i): (usize, &usize)| {
            let found = aligned(&self.triggered.tokens[i], &self.clean.tokens[i]);
            found.trigger.into_iter().map(move |k| (row, k))
        };
        indices.iter().enumerate().flat_map(of).collect()
    }
}

/// 0 at the least and 1 at the largest value.
fn min_max(map: Tensor<2>) -> Tensor<2> {
    let least = map.clone().min().reshape([1, 1]);
    let range = map.clone().max().reshape([1, 1]) - least.clone();
    (map - least) / (range + TINY)
}

/// A Gaussian of standard deviation `sigma` over `reach` places on either side, of every image and channel of `x [B, C, h, w]`; what
/// lies beyond an edge is mirrored at it.
pub(super) fn blurred(x: Tensor<4>, how: (usize, f64)) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let device = x.device();
    let planes: Tensor<3> = x.reshape([batch * channels, height, width]);
    let matrix = |n: usize| {
        let one: Tensor<3> = gaussian(n, how, &device).reshape([1, n, n]);
        one.expand([batch * channels, n, n])
    };
    let blurred = matrix(height)
        .matmul(planes)
        .matmul(matrix(width).swap_dims(1, 2));
    blurred.reshape([batch, channels, height, width])
}

/// The blur of a line of `n` values as a matrix `[n, n]`.
fn gaussian(n: usize, (reach, sigma): (usize, f64), device: &Device) -> Tensor<2> {
    let reach = reach.min(n.saturating_sub(1)) as isize;
    let weight = |k: isize| (-0.5 * (k as f64 / sigma).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(weight).sum();
    let mut values = vec![0.0f32; n * n];
    for i in 0..n as isize {
        for k in -reach..=reach {
            let last = n as isize - 1;
            let beyond = (i + k).abs(); // mirrored at the first value
            let at = if beyond > last {
                2 * last - beyond
            } else {
                beyond
            };
            values[i as usize * n + at as usize] += (weight(k) / total) as f32;
        }
    }
    Tensor::from_data(TensorData::new(values, [n, n]), device)
}

/// `map [h, w]` for every image and channel of a batch's shape `[B, C, h, w]`.
pub(super) fn spread(map: &Tensor<2>, [batch, channels, height, width]: [usize; 4]) -> Tensor<4> {
    let map: Tensor<4> = map.clone().reshape([1, 1, height, width]);
    map.expand([batch, channels, height, width])
}
