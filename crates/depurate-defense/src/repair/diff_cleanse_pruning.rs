//! # Diff-Cleanse, pruning: the channels whose loss the trigger moves go
//!
//! Near pure noise a backdoored network answers the trigger with channels of its own, the paper holds. Units of channels are
//! scored by how much a loss depends on them, once with the trigger and once without, and those that matter most for the
//! trigger are taken out. Training heals what that costs; it is not part of this.
//!
//! ## Paper
//! Hao et al., "Diff-Cleanse: identifying and mitigating backdoor attacks in diffusion models", 2024, arXiv:2407.21316.
//! Implements the choice of channels of its second stage.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `images` | x, benign or made by the model | `[B, C, H, W]`, in the model's range |
//! | `eps` | one noise for all timesteps | `[B, C, H, W]` |
//! | `shift` | r, the inverted trigger | `[1, C, H, W]` |
//! | `gamma` | factor of the noise, 1 unless it was inverted | `[1, C, H, W]` |
//! | `rho` | weight of the trigger at `t`; `t` counts from 0, almost clean | |
//! | `backdoor`, `clean` | I of a unit under either loss | |
//!
//! ## Method
//! ```text
//! L_clean(t) = mean | eps - e(a_t x + s_t eps, t) |^2                         (1)
//! L_bd(t)    = mean | eps - e(a_t x + rho_t r + gamma s_t eps, t) |^2         (2)
//! I_k        = mean over layers and channels of k: sum | w sum_t dL(t)/dw |   (3)
//! score_k    = I_k of L_bd -+ I_k of L_clean, each over its mean in the group (4)
//! ```
//! A unit `k` is a set of channels that go together ([`depurate_diffusion::channel_graph`]). The inner sum of (3) runs over a
//! row of a layer that writes the channel, a column of one that reads it, or the weight of a normalisation; biases do not
//! count. The timesteps are those of the last tenth. The units of highest score go.
//!
//! ## Needs
//! An inverted trigger, a batch of images, and a model on a device with autodiff.
//!
//! ## Deviations
//! - Units are coarser than the released code's channels: a normalisation loses whole groups, so that what is left sees what
//!   it saw before. A ratio of 1 % means at least one unit, which in a small network is far more than 1 %.
//! - The released code adds the two importances where its comments subtract them: [`Score`] has both, the test
//!   `released_and_intended_scores_differ` an example. Adding removes what matters most at these timesteps, trigger or not.
//! - Gradients are summed over evenly spaced timesteps if fewer than the tenth holds are asked for.
//! - The loss is the mean over pixels, not the sum; (4) takes the factor out again.
//!
//! ## Fails when
//! the trigger is answered by channels that benign noise needs as well, which nothing rules out; the inverted trigger is not
//! the trigger; or a network is so small that one unit is a large part of a layer.
//!
//! ## Cost
//! `2 B` differentiated evaluations a timestep; choosing costs none.

mod choice;

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{
    Denoiser, DiffusionError, Pipeline, SampleShape,
    channel_graph::{ChannelGraph, GroupKind, Removal},
    module_weights::{Flat, flat_gradients, flat_values},
    noise::{NoiseSource, SeedTree},
    trigger::Shift,
};
use depurate_report::Paper;
use serde::{Deserialize, Serialize};

use super::KnownTrigger;
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "diff-cleanse-pruning";
/// The paper behind it.
pub const PAPER: Paper = Paper {
    implements: "structural pruning, the choice of channels",
    ..crate::invert::diff_cleanse::PAPER
};
/// Images that pass the network at once.
const AT_ONCE: usize = 16;

/// How the importances of a unit make its score; the highest go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// With the trigger minus without, as the paper means it.
    Intended,
    /// With the trigger plus without, as the released code does it.
    Released,
    /// At random, as a control.
    Random,
}

/// What a ratio is a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioOf {
    /// The units of each group, of which at least one goes.
    EachGroup,
    /// The units of all groups together, of which at least one goes.
    All,
}

/// Parameters. The default is the published recipe, with the score as the paper means it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffCleansePruningParams {
    /// Weight of the trigger; the released code has [`Shift::NoiseLevel`] for every attack.
    pub shift: Shift,
    /// Timesteps, evenly spaced in the last tenth, at least 1; all of it if it holds fewer.
    pub timesteps: usize,
    /// Which units go.
    pub score: Score,
    /// Share of the units that goes, above 0 and below 1.
    pub ratio: f64,
    /// What `ratio` is a share of.
    pub ratio_of: RatioOf,
    /// Kinds of groups that may lose units, at least one.
    pub kinds: Vec<GroupKind>,
}

impl Default for DiffCleansePruningParams {
    fn default() -> Self {
        Self {
            shift: Shift::NoiseLevel,
            timesteps: 100,
            score: Score::Intended,
            ratio: 0.01,
            ratio_of: RatioOf::EachGroup,
            kinds: vec![GroupKind::Inner, GroupKind::Heads, GroupKind::Residual],
        }
    }
}

impl DiffCleansePruningParams {
    /// The timesteps of a schedule of `len` that count, ascending.
    pub fn timesteps_of(&self, len: usize) -> Vec<usize> {
        let held = len.div_ceil(10);
        let count = self.timesteps.min(held);
        let mut all: Vec<usize> = (0..count).map(|i| len - 1 - i * held / count).collect();
        all.reverse();
        all
    }

    /// Network evaluations of one image for `images` images and a schedule of `len`, a differentiated one counted as three.
    pub fn evaluations(&self, images: usize, len: usize) -> u64 {
        2 * 3 * (images * self.timesteps_of(len).len()) as u64
    }

    /// Checks the parameters and makes the repair.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn build(self) -> Result<DiffCleansePruning, DefenseError> {
        let refuse = |field, value: String, allowed| {
            Err(DefenseError::Params {
                field,
                value,
                allowed,
            })
        };
        if self.timesteps == 0 {
            return refuse("timesteps", "0".into(), "at least 1");
        }
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            return refuse("ratio", self.ratio.to_string(), "above 0 and below 1");
        }
        if self.kinds.is_empty() {
            return refuse("kinds", "empty".into(), "at least one kind of group");
        }
        Ok(DiffCleansePruning { params: self })
    }
}

/// How much the losses depend on one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitImportance {
    /// Name of its group.
    pub group: String,
    /// What the group's streams are.
    pub kind: GroupKind,
    /// Its number in the group.
    pub unit: usize,
    /// `I_k` of the loss with the trigger, not yet divided by the group's mean; at least 0.
    pub backdoor: f64,
    /// The same without it.
    pub clean: f64,
}

/// The importances of all units, by group and number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    /// One entry a unit, whether it can go or not.
    pub units: Vec<UnitImportance>,
    /// Network evaluations of one image spent, a differentiated one counted as three.
    pub evaluations: u64,
}

/// What the losses are taken of, on the model's device.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// `x`, `[B, C, H, W]`.
    pub images: Tensor<4>,
    /// One noise each, `[B, C, H, W]`.
    pub eps: Tensor<4>,
    /// The trigger, `[1, C, H, W]`.
    pub shift: Tensor<4>,
    /// Factor of the noise under the trigger, `[1, C, H, W]`.
    pub gamma: Tensor<4>,
}

impl Inputs {
    /// `images [B, C, H, W]` with an inverted trigger and noises of `seed`.
    ///
    /// # Errors
    /// When there is no image, or shapes do not fit the model.
    pub fn new(
        model: &dyn Denoiser,
        images: &Tensor<4>,
        trigger: &KnownTrigger,
        seed: &SeedTree,
    ) -> Result<Self, DefenseError> {
        let (shape, device) = (model.sample_shape(), model.device());
        let count = images.dims()[0];
        check("images", shape, count.max(1), &images.dims())?;
        let SampleShape {
            channels,
            height,
            width,
        } = trigger.shape;
        check("inverted trigger", shape, 1, &[1, channels, height, width])?;
        let image = |what, values: &[f32]| {
            if values.len() != shape.len() {
                check(what, shape, 1, &[values.len()])?;
            }
            let data = TensorData::new(values.to_vec(), shape.batched(1));
            Ok::<_, DefenseError>(Tensor::from_data(data, &device))
        };
        Ok(Self {
            images: Tensor::from_data(images.to_data(), &device),
            eps: seed.noise(0, count).normal(shape.batched(count), &device)?,
            shift: image("inverted trigger", &trigger.shift)?,
            gamma: match &trigger.gamma {
                Some(gamma) => image("inverted gamma", gamma)?,
                None => Tensor::ones(shape.batched(1), &device),
            },
        })
    }
}

fn check(
    what: &'static str,
    shape: SampleShape,
    count: usize,
    got: &[usize],
) -> Result<(), DefenseError> {
    let expected = shape.batched(count);
    if got == expected {
        return Ok(());
    }
    Err(DiffusionError::Shape {
        what,
        expected: format!("{expected:?}"),
        got: got.to_vec(),
    }
    .into())
}

/// One of the two losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// (1), without the trigger.
    Clean,
    /// (2), with the trigger in the weight that it has here.
    Backdoor(Shift),
}

/// (1) or (2) at the timestep `t`, a scalar `[1]`.
///
/// # Errors
/// When shapes do not fit or the timestep is out of range.
pub fn loss(
    model: &dyn Denoiser,
    inputs: &Inputs,
    loss: Loss,
    t: usize,
) -> Result<Tensor<1>, DefenseError> {
    let schedule = model.schedule();
    schedule.check_timesteps(&[t])?;
    let (images, eps) = (inputs.images.clone(), inputs.eps.clone());
    let (signal, noise) = (images * schedule.a(t), eps.clone() * schedule.s(t));
    let x_t = match loss {
        Loss::Clean => signal + noise, // eq. (1)
        Loss::Backdoor(shift) => {
            let rho = shift.rho(schedule, t);
            signal + inputs.shift.clone() * rho + noise * inputs.gamma.clone() // eq. (2)
        }
    };
    Ok((model.epsilon(x_t, &[t])? - eps).powi_scalar(2).mean())
}

/// The repair. Made by [`DiffCleansePruningParams::build`].
#[derive(Debug, Clone)]
pub struct DiffCleansePruning {
    params: DiffCleansePruningParams,
}

impl DiffCleansePruning {
    /// `sum_t dL(t)/dw` of every parameter by its name, flat; one step of `cx` a timestep.
    ///
    /// # Errors
    /// When shapes do not fit, the model's device has no autodiff, a loss is not finite, or the run is stopped.
    pub fn gradients(
        &self,
        model: &Pipeline,
        inputs: &Inputs,
        of: Loss,
        cx: &Cx<'_>,
    ) -> Result<Flat, DefenseError> {
        let device = model.device();
        if !device.is_autodiff() {
            return Err(DefenseError::Params {
                field: "device",
                value: format!("{device:?}"),
                allowed: "one with autodiff: load the model on such a device, and not frozen",
            });
        }
        let count = inputs.images.dims()[0];
        let mut sums = Flat::new();
        for t in self.params.timesteps_of(model.schedule().len()) {
            cx.step()?;
            for first in (0..count).step_by(AT_ONCE) {
                let size = AT_ONCE.min(count - first);
                let some = Inputs {
                    images: inputs.images.clone().narrow(0, first, size),
                    eps: inputs.eps.clone().narrow(0, first, size),
                    ..inputs.clone()
                };
                let share = size as f64 / count as f64;
                let part = loss(model, &some, of, t)? * share;
                if !part.clone().inner().into_scalar::<f32>().is_finite() {
                    return Err(DiffusionError::NotFinite { t }.into());
                }
                for (name, gradient) in flat_gradients(model.unet(), part.backward()) {
                    let sum = match sums.remove(&name) {
                        Some(sum) => sum + gradient,
                        None => gradient,
                    };
                    sums.insert(name, sum);
                }
            }
        }
        Ok(sums)
    }

    /// (3) of every unit under both losses, for `images [B, C, H, W]` and an inverted trigger. The model is not changed.
    ///
    /// # Errors
    /// As [`Self::gradients`], and when there is no image or the trigger has another shape than the model's.
    pub fn importance(
        &self,
        model: &Pipeline,
        images: &Tensor<4>,
        trigger: &KnownTrigger,
        cx: &Cx<'_>,
    ) -> Result<Importance, DefenseError> {
        let inputs = Inputs::new(model, images, trigger, &cx.rng.child(ID, 0))?;
        let graph = ChannelGraph::of(model.config())?;
        let len = model.schedule().len();
        let timesteps = self.params.timesteps_of(len).len() as u64;
        cx.progress.start("importance of channels", 2 * timesteps);
        let weights = numbers(flat_values(model.unet()));
        let of = |loss| {
            let gradients = self.gradients(model, &inputs, loss, cx)?;
            Ok::<_, DefenseError>(by_unit(&graph, &weights, &numbers(gradients)))
        };
        let clean = of(Loss::Clean)?;
        let backdoor = of(Loss::Backdoor(self.params.shift))?;
        let units = graph.groups().iter().flat_map(|group| {
            group.units.iter().map(|unit| UnitImportance {
                group: group.name.clone(),
                kind: group.kind,
                unit: unit.index,
                backdoor: backdoor[unit.id],
                clean: clean[unit.id],
            })
        });
        Ok(Importance {
            units: units.collect(),
            evaluations: self.params.evaluations(images.dims()[0], len),
        })
    }

    /// The units that go: in each group, or of all, those of highest score (4). A unit without which a layer would have no
    /// channel stays, and the next one goes in its place. `seed` is for [`Score::Random`].
    ///
    /// # Errors
    /// When `importance` holds units that `graph` does not have.
    pub fn choose(
        &self,
        graph: &ChannelGraph,
        importance: &Importance,
        seed: &SeedTree,
    ) -> Result<Removal, DefenseError> {
        choice::choose(&self.params, graph, importance, seed)
    }
}

fn numbers(tensors: Flat) -> BTreeMap<String, Vec<f32>> {
    let read = |values: Tensor<1>| values.into_data().iter::<f32>().collect();
    let all = tensors.into_iter();
    all.map(|(name, values)| (name, read(values))).collect()
}

/// (3) for every unit by its id, from the weights and their gradients.
fn by_unit(
    graph: &ChannelGraph,
    weights: &BTreeMap<String, Vec<f32>>,
    gradients: &BTreeMap<String, Vec<f32>>,
) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; graph.ids()], vec![0_usize; graph.ids()]);
    for axis in graph.axes() {
        if axis.parameter.ends_with(".bias") {
            continue;
        }
        for unit in axis.units {
            counts[*unit as usize] += 1;
        }
        // A parameter without gradient has no part in the loss.
        let (Some(w), Some(g)) = (weights.get(axis.parameter), gradients.get(axis.parameter))
        else {
            continue;
        };
        let inner: usize = axis.shape[axis.axis + 1..].iter().product();
        for (i, (w, g)) in w.iter().zip(g).enumerate() {
            let index = i / inner % axis.units.len();
            sums[axis.units[index] as usize] += f64::from(w * g).abs(); // eq. (3)
        }
    }
    let pairs = sums.iter().zip(counts);
    pairs
        .map(|(sum, count)| sum / count.max(1) as f64)
        .collect()
}
