//! Layers with PyTorch's parameter names and layouts, so that a parameter's path in the module tree
//! is its name in the checkpoint.

use std::{collections::BTreeMap, sync::Arc};

use burn::{
    module::{Module, Param, ParamId},
    tensor::{Device, Shape, Tensor, TensorData},
};
use rand::RngExt;

use crate::{
    channel_graph::{ChannelGraph, PrunableConfig},
    noise::SeedTree,
    ops::{self, KeptWeights, Norm, NormConv, Stride},
};

/// Where parameters come from before a checkpoint is applied: nothing is allocated until a
/// parameter is first used, and random values depend only on the seed and the parameter's path.
#[derive(Debug, Clone)]
pub(crate) struct Init {
    device: Device,
    seed: SeedTree,
    path: String,
    shapes: Option<Arc<BTreeMap<String, Vec<usize>>>>,
}

impl Init {
    pub(crate) fn new(device: Device, seed: SeedTree) -> Self {
        Self {
            device,
            seed,
            path: String::new(),
            shapes: None,
        }
    }

    /// For the network of `config`, whose layers have the channels that are left of those of its configuration. A note of
    /// removed units that does not fit removes nothing, which [`ChannelGraph::of`] makes an error.
    pub(crate) fn of(config: &impl PrunableConfig, seed: &SeedTree, device: &Device) -> Self {
        let graph = (!config.removed().is_empty()).then(|| ChannelGraph::of(config));
        let shapes = graph.and_then(|graph| graph.ok().map(|graph| Arc::new(graph.shapes())));
        Self {
            shapes,
            ..Self::new(device.clone(), seed.clone())
        }
    }

    /// The initialiser of the child `name`.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        let path = if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        };
        Self {
            device: self.device.clone(),
            seed: self.seed.clone(),
            path,
            shapes: self.shapes.clone(),
        }
    }

    /// The shape of the parameter `name`, where the network's configuration asks for `whole`.
    fn shape<const D: usize>(&self, name: &str, whole: [usize; D]) -> [usize; D] {
        let shapes = self.shapes.as_ref();
        let found = shapes.and_then(|shapes| shapes.get(&format!("{}.{name}", self.path)));
        found
            .and_then(|shape| shape.as_slice().try_into().ok())
            .unwrap_or(whole)
    }

    /// Uniform in `[-bound, bound]`.
    pub(crate) fn uniform<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        bound: f32,
    ) -> Param<Tensor<D>> {
        let seed = self.seed.child(&format!("{}.{name}", self.path), 0);
        self.lazy(self.shape(name, shape), move |count| {
            let mut rng = seed.rng();
            (0..count)
                .map(|_| rng.random_range(-bound..=bound))
                .collect()
        })
    }

    pub(crate) fn constant<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        value: f32,
    ) -> Param<Tensor<D>> {
        self.lazy(self.shape(name, shape), move |count| vec![value; count])
    }

    fn lazy<const D: usize>(
        &self,
        shape: [usize; D],
        values: impl FnOnce(usize) -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        let create = move |device: &Device, require_grad: bool| {
            let data = TensorData::new(values(shape.iter().product()), shape);
            Tensor::from_data(data, device).set_require_grad(require_grad)
        };
        Param::uninitialized(
            ParamId::new(),
            create,
            self.device.clone(),
            true,
            Shape::from(shape),
        )
    }
}

/// 3x3 convolution, weight `[Co, Ci, 3, 3]`.
#[derive(Module, Debug)]
pub struct Conv3x3 {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    kept: KeptWeights,
}

impl Conv3x3 {
    pub(crate) fn new(init: &Init, c_in: usize, c_out: usize) -> Self {
        let bound = 1.0 / ((c_in * 9) as f32).sqrt();
        Self {
            weight: init.uniform("weight", [c_out, c_in, 3, 3], bound),
            bias: init.uniform("bias", [c_out], bound),
            kept: KeptWeights::default(),
        }
    }

    pub(crate) fn forward(&self, x: Tensor<4>, stride: Stride) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        ops::conv3x3(x, weight, bias, stride, Some(&self.kept))
    }

    /// Number of channels that it writes.
    pub(crate) fn channels(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// With stride 1 on the normalised `x`, followed by SiLU; `more [B, Co]` is added to every pixel.
    pub(crate) fn forward_normed(
        &self,
        norm: &GroupNorm,
        x: Tensor<4>,
        more: Option<Tensor<2>>,
    ) -> Tensor<4> {
        let bias = self.bias.val().unsqueeze_dim(0);
        let weights = NormConv {
            scale: norm.weight.val(),
            shift: norm.bias.val(),
            weight: self.weight.val(),
            bias: match more {
                Some(more) => more + bias,
                None => bias,
            },
        };
        ops::norm_conv3x3(x, weights, norm.options(true), Some(&self.kept))
    }
}

/// 1x1 convolution, weight `[Co, Ci, 1, 1]`.
#[derive(Module, Debug)]
pub struct Conv1x1 {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

impl Conv1x1 {
    pub(crate) fn new(init: &Init, c_in: usize, c_out: usize) -> Self {
        let bound = 1.0 / (c_in as f32).sqrt();
        Self {
            weight: init.uniform("weight", [c_out, c_in, 1, 1], bound),
            bias: init.uniform("bias", [c_out], bound),
        }
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv1x1(x, self.weight.val(), self.bias.val())
    }
}

/// Linear layer, weight `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Linear {
    pub(crate) fn new(init: &Init, width_in: usize, width_out: usize) -> Self {
        let bound = 1.0 / (width_in as f32).sqrt();
        Self {
            weight: init.uniform("weight", [width_out, width_in], bound),
            bias: init.uniform("bias", [width_out], bound),
        }
    }

    /// Width of what it writes.
    pub(crate) fn width_out(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// `x [N, in]` → `[N, out]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::linear(x, self.weight.val(), self.bias.val())
    }

    /// The same map on the channels of `x [B, in, T]` → `[B, out, T]`.
    pub(crate) fn forward_tokens(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, width, tokens] = x.dims();
        let y = self.forward_channels(x.reshape([batch, width, 1, tokens]));
        let channels = y.dims()[1];
        y.reshape([batch, channels, tokens])
    }

    /// The same map on the channels of `x [B, in, H, W]` → `[B, out, H, W]`.
    pub(crate) fn forward_channels(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [width_out, width_in] = weight.dims();
        ops::conv1x1(
            x,
            weight.reshape([width_out, width_in, 1, 1]),
            self.bias.val(),
        )
    }
}

/// Linear layer without bias, weight `[out, in]`, on the channels of tokens.
#[derive(Module, Debug)]
pub struct Projection {
    weight: Param<Tensor<2>>,
}

impl Projection {
    pub(crate) fn new(init: &Init, width_in: usize, width_out: usize) -> Self {
        let bound = 1.0 / (width_in as f32).sqrt();
        Self {
            weight: init.uniform("weight", [width_out, width_in], bound),
        }
    }

    /// Width of what it writes.
    pub(crate) fn width_out(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// `x [B, in, T]` → `[B, out, T]`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, width, tokens] = x.dims();
        let weight = self.weight.val();
        let [width_out, width_in] = weight.dims();
        let none = Tensor::zeros([width_out], &weight.device());
        let weight = weight.reshape([width_out, width_in, 1, 1]);
        let y = ops::conv1x1(x.reshape([batch, width, 1, tokens]), weight, none);
        y.reshape([batch, width_out, tokens])
    }
}

/// Group normalisation.
#[derive(Module, Debug)]
pub struct GroupNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn new(init: &Init, channels: usize, groups: usize, eps: f64) -> Self {
        let [left] = init.shape("weight", [channels]);
        Self {
            weight: init.constant("weight", [channels], 1.0),
            bias: init.constant("bias", [channels], 0.0),
            // Whole groups go, so that those left are as wide as before.
            groups: groups * left / channels,
            eps,
        }
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), self.options(false))
    }

    fn options(&self, silu: bool) -> Norm {
        Norm {
            groups: self.groups,
            eps: self.eps as f32,
            silu,
        }
    }
}

/// Layer normalisation over channels.
#[derive(Module, Debug)]
pub struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(init: &Init, channels: usize, eps: f64) -> Self {
        Self {
            weight: init.constant("weight", [channels], 1.0),
            bias: init.constant("bias", [channels], 0.0),
            eps,
        }
    }

    /// `x [B, C, T]` → as `x`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps as f32)
    }
}
