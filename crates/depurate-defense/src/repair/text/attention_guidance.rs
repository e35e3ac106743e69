//! Attention guidance: a prompt's cross-attention maps, differentiable, held against other maps of another prompt.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `A_l(k)` | attention of the pixels of layer `l` to the prompt's position `k`, mean over heads | `[h_l, w_l]` |
//! | `M(k)` | the maps of all layers, resized to one size and summed | `[S, S]` |
//! | `N(k)` | `M(k)` normalised: [`MapNorm`] | `[S, S]` |
//! | `R` | the map that a trigger's positions shall have | `[S, S]` |
//! | `K` | positions of the trigger in the student's prompt | |
//! | `pi` | for the other words' positions, those of the same words in the teacher's prompt | |
//!
//! ```text
//! M(k)   = sum_l resize(A_l(k))                bilinear, pixel centres aligned, not smoothed       (1)
//! N(k)   = (M - min M) / (max M - min M + 1e-8)   or   M / (sum M + 1e-8)   or   M                 (2)
//! L_attn = [ sum_(k in K) mse(N_s(k), R_k) + sum_(k in pi) mse(N_s(k), N_t(pi(k))) ] / (|K| + |pi|)   (3)
//! ```
//!
//! Under the first of (2) a map has no magnitude, so that `R = 0` can be approached and never reached; under the third the attention
//! that a trigger loses goes to the other positions.

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{AttentionKind, AttentionSite, Site, Tap};
use serde::{Deserialize, Serialize};

/// Keeps a quotient finite where a map is constant.
const TINY: f64 = 1e-8;

/// How a map is normalised, eq. (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapNorm {
    /// To 0 at its least and 1 at its largest value, as published.
    #[default]
    MinMax,
    /// To a sum of 1.
    Sum,
    /// Not at all: probabilities, summed over layers.
    None,
}

/// The maps of one forward pass: a layer each, mean over heads.
#[derive(Debug, Clone, Default)]
pub struct PromptMaps {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
struct Layer {
    /// `[B, keys, h w]`.
    map: Tensor<3>,
    size: (usize, usize),
}

impl PromptMaps {
    /// Adds a layer of `map [B heads, keys, h w]` at `size`, `(h, w)`.
    pub fn add(&mut self, map: Tensor<3>, heads: usize, size: (usize, usize)) {
        let [rows, keys, queries] = map.dims();
        let by_head = map.reshape([rows / heads, heads, keys, queries]);
        self.layers.push(Layer {
            map: by_head.mean_dim(1).squeeze_dim::<3>(1),
            size,
        });
    }

    /// The longest side of any layer: the size of (1) if no other is asked for.
    pub fn largest_side(&self) -> usize {
        let sides = self
            .layers
            .iter()
            .map(|layer| layer.size.0.max(layer.size.1));
        sides.max().unwrap_or(1)
    }

    /// Positions of each prompt.
    fn keys(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.map.dims()[1])
    }

    /// Layers.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// `N` of (2) for the rows `(sample, position)` at a size of `height` and `width`, `[rows, height width]`.
    pub(super) fn normalised(
        &self,
        rows: &[(usize, usize)],
        (height, width): (usize, usize),
        norm: MapNorm,
    ) -> Option<Tensor<2>> {
        let keys = self.keys();
        let mut sum: Option<Tensor<3>> = None;
        for layer in &self.layers {
            let [batch, _, queries] = layer.map.dims();
            let device = layer.map.device();
            let flat = layer.map.clone().reshape([batch * keys, queries]);
            let at: Vec<i64> = rows.iter().map(|&(b, k)| (b * keys + k) as i64).collect();
            let at = Tensor::from_data(TensorData::new(at, [rows.len()]), &device);
            let (h, w) = layer.size;
            let chosen: Tensor<3> = flat.select(0, at).reshape([rows.len(), h, w]);
            let down = interpolation(h, height, &device).expand([rows.len(), height, h]);
            let across = interpolation(w, width, &device).expand([rows.len(), width, w]);
            let resized = down.matmul(chosen).matmul(across.swap_dims(1, 2)); // eq. (1)
            sum = Some(match sum {
                Some(sum) => sum + resized,
                None => resized,
            });
        }
        let m: Tensor<2> = sum?.reshape([rows.len(), height * width]);
        // eq. (2)
        Some(match norm {
            MapNorm::MinMax => {
                let least = m.clone().min_dim(1);
                let range = m.clone().max_dim(1) - least.clone();
                (m - least) / (range + TINY)
            }
            MapNorm::Sum => m.clone() / (m.sum_dim(1) + TINY),
            MapNorm::None => m,
        })
    }
}

/// Bilinear interpolation of `from` values to `to` as a matrix `[1, to, from]`: centres of pixels are aligned, and a smaller size is
/// sampled, not averaged.
fn interpolation(from: usize, to: usize, device: &Device) -> Tensor<3> {
    let mut values = vec![0.0f32; to * from];
    for i in 0..to {
        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let share = at - low as f64;
        values[i * from + low] += (1.0 - share) as f32;
        values[i * from + high] += share as f32;
    }
    Tensor::from_data(TensorData::new(values, [1, to, from]), device)
}

/// What the positions of one sample are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `K`.
    pub trigger: Vec<usize>,
    /// `pi`: `(student, teacher)`.
    pub content: Vec<(usize, usize)>,
    /// The teacher's positions whose maps those of the trigger are held against, one for each, where there is no `R`.
    pub stand_ins: Vec<usize>,
}

/// `L_attn` of (3), weighted by `weights` of each sample and averaged over the samples, `[1]`. `None` when no position is compared.
/// `reference` is `R`, `[S S]`; without it the teacher's maps at [`Positions::stand_ins`] are. The teacher's maps are constants; those of the student need not hang on a graph.
pub fn attention_loss(
    student: &PromptMaps,
    teacher: &PromptMaps,
    positions: &[Positions],
    reference: Option<&Tensor<1>>,
    (size, norm): (usize, MapNorm),
    weights: &[f64],
) -> Option<Tensor<1>> {
    let mut trigger_rows = Vec::new();
    let mut trigger_teacher = Vec::new();
    let (mut content_rows, mut content_teacher) = (Vec::new(), Vec::new());
    let (mut of_trigger, mut of_content) = (Vec::new(), Vec::new());
    for (sample, at) in positions.iter().enumerate() {
        let count = at.trigger.len() + at.content.len();
        let weight = weights[sample] / (count.max(1) * positions.len()) as f64; // eq. (3)
        for (i, &k) in at.trigger.iter().enumerate() {
            trigger_rows.push((sample, k));
            of_trigger.push(weight);
            if reference.is_none() {
                let k = at.stand_ins.get(i).or(at.stand_ins.last());
                trigger_teacher.push((sample, *k?));
            }
        }
        for &(of_student, of_teacher) in &at.content {
            content_rows.push((sample, of_student));
            content_teacher.push((sample, of_teacher));
            of_content.push(weight);
        }
    }
    let mut terms = Vec::new();
    if !trigger_rows.is_empty() {
        let got = student.normalised(&trigger_rows, (size, size), norm)?;
        let wanted = match reference {
            Some(map) => map.clone().reshape([1, size * size]).expand(got.dims()),
            None => constant(
                teacher.normalised(&trigger_teacher, (size, size), norm)?,
                &got,
            ),
        };
        terms.push(weighted(got, wanted, &of_trigger));
    }
    if !content_rows.is_empty() {
        let got = student.normalised(&content_rows, (size, size), norm)?;
        let wanted = constant(
            teacher.normalised(&content_teacher, (size, size), norm)?,
            &got,
        );
        terms.push(weighted(got, wanted, &of_content));
    }
    terms.into_iter().reduce(|a, b| a + b)
}

/// `values` without their graph, on the device of `like`.
fn constant(values: Tensor<2>, like: &Tensor<2>) -> Tensor<2> {
    let values = if values.device().is_autodiff() {
        values.inner()
    } else {
        values
    };
    if like.device().is_autodiff() {
        Tensor::from_inner(values)
    } else {
        values
    }
}

/// `sum_rows weight mse(row)`.
fn weighted(got: Tensor<2>, wanted: Tensor<2>, weights: &[f64]) -> Tensor<1> {
    let values: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
    let weights = TensorData::new(values, [got.dims()[0], 1]);
    let weights = Tensor::<2>::from_data(weights, &got.device());
    ((got - wanted).square().mean_dim(1) * weights).sum()
}

/// Collects [`PromptMaps`]: one for each forward pass.
#[derive(Debug, Default)]
pub struct MapTap {
    /// Whether maps are asked for; a map that nobody wants is not formed.
    pub wanted: bool,
    /// What was seen.
    pub maps: PromptMaps,
}

impl Tap for MapTap {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }
    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}
    fn wants_map(&self, site: &AttentionSite<'_>) -> bool {
        self.wanted && site.kind == AttentionKind::Prompt
    }
    fn observe_map(&mut self, site: &AttentionSite<'_>, map: &Tensor<3>) {
        self.maps.add(map.clone(), site.heads, site.size);
    }
}
