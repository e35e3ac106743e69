//! Every operation in the tensor framework's own terms: what runs on devices that the kernels do not serve, and, on the CPU,
//! what they are compared with in the tests. Gradients are the framework's.

use burn::{
    backend::DispatchDevice,
    tensor::{
        Device, Tensor,
        activation::{gelu, sigmoid, silu, softmax},
        module,
        ops::{ConvOptions, PadMode},
    },
};

use super::{Activation, AdamStep, Moved, Norm, NormConv, Stride};

/// Whether the kernels serve a device.
pub(super) fn has_kernels(device: &Device) -> bool {
    matches!(
        device.clone().without_autodiff().as_dispatch(),
        DispatchDevice::Flex(_)
    )
}

/// See [`super::conv3x3`].
pub fn conv3x3(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>, stride: Stride) -> Tensor<4> {
    let (x, step, pad) = match stride {
        Stride::One => (x, 1, 1),
        Stride::TwoSymmetric => (x, 2, 1),
        Stride::TwoAfterOnly => (x.pad((0, 1, 0, 1), PadMode::Constant(0.0)), 2, 0),
    };
    let options = ConvOptions::new([step, step], [pad, pad], [1, 1], 1);
    module::conv2d(x, w, Some(b), options)
}

/// See [`super::conv3x3_image_bias`]; the bias may also be `[1, Co]`.
pub fn conv3x3_image_bias(x: Tensor<4>, w: Tensor<4>, b: Tensor<2>) -> Tensor<4> {
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let [images, channels] = b.dims();
    module::conv2d(x, w, None, options) + b.reshape([images, channels, 1, 1])
}

/// See [`super::conv1x1`].
pub fn conv1x1(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>) -> Tensor<4> {
    let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    module::conv2d(x, w, Some(b), options)
}

/// See [`super::linear`].
pub fn linear(x: Tensor<2>, w: Tensor<2>, b: Tensor<1>) -> Tensor<2> {
    x.matmul(w.transpose()) + b.unsqueeze_dim(0)
}

/// See [`super::group_norm`].
pub fn group_norm(x: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, norm: Norm) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let grouped = x.reshape([batch, norm.groups, channels / norm.groups * height * width]);
    let centred = grouped.clone() - grouped.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normed = (centred / (variance + norm.eps).sqrt()).reshape([batch, channels, height, width]);
    let (scale, shift) = (
        scale.reshape([1, channels, 1, 1]),
        shift.reshape([1, channels, 1, 1]),
    );
    let y = normed * scale + shift;
    if norm.silu { silu(y) } else { y }
}

/// See [`super::norm_conv3x3`].
pub fn norm_conv3x3(x: Tensor<4>, weights: NormConv, norm: Norm) -> Tensor<4> {
    let normed = group_norm(x, weights.scale, weights.shift, norm);
    conv3x3_image_bias(normed, weights.weight, weights.bias)
}

/// See [`super::layer_norm`].
pub fn layer_norm(x: Tensor<3>, scale: Tensor<1>, shift: Tensor<1>, eps: f32) -> Tensor<3> {
    let channels = x.dims()[1];
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    let (scale, shift) = (
        scale.reshape([1, channels, 1]),
        shift.reshape([1, channels, 1]),
    );
    centred / (variance + eps).sqrt() * scale + shift
}

/// See [`super::attention`].
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scale: f32) -> Tensor<3> {
    attention_mix(attention_map(q, k, scale), v)
}

/// See [`super::attention_map`].
pub fn attention_map(q: Tensor<3>, k: Tensor<3>, scale: f32) -> Tensor<3> {
    softmax(k.swap_dims(1, 2).matmul(q) * scale, 1)
}

/// See [`super::attention_mix`].
pub fn attention_mix(map: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
    v.matmul(map)
}

/// See [`super::activation`].
pub fn activation<const D: usize>(x: Tensor<D>, f: Activation) -> Tensor<D> {
    match f {
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::QuickGelu => sigmoid(x.clone() * 1.702) * x,
    }
}

/// See [`super::geglu`].
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    let half = x.dims()[1] / 2;
    x.clone().narrow(1, 0, half) * gelu(x.narrow(1, half, half))
}

/// See [`super::upsample2x`].
pub fn upsample2x(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch * channels, height, 1, width, 1])
        .expand([batch * channels, height, 2, width, 2])
        .reshape([batch, channels, 2 * height, 2 * width])
}

/// See [`super::adam`].
pub fn adam(at: Moved, gradient: Tensor<1>, step: AdamStep) -> Moved {
    let gradient = gradient * step.gradient_scale;
    let first = at.first * step.beta_1 + gradient.clone() * (1.0 - step.beta_1);
    let second = at.second * step.beta_2 + gradient.square() * (1.0 - step.beta_2);
    let root = (second.clone() / step.correction_2).sqrt() + step.epsilon;
    let kept = at.values * (1.0 - step.learning_rate * step.weight_decay);
    let length = step.learning_rate / step.correction_1;
    Moved {
        values: kept - first.clone() / root * length,
        first,
        second,
    }
}
