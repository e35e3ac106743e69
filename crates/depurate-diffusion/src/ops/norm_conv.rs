//! Group normalisation, SiLU and a 3x3 convolution as one operation, because of its memory: what lies between them is not
//! kept for the backward pass but computed again, on the normalisation's own way back, so that a residual block keeps half
//! as much.

use burn::{
    backend::{
        Backend, Dispatch, Flex,
        autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};
use burn_flex::FlexTensor;

use super::{
    KeptWeights, Norm, NormalisationOps, Stride,
    back::{WayBack, tracked},
    convolution::{BiasShape, ConvolutionGrads, ConvolutionOps},
    framework::{self, has_kernels},
    normalisation::NormalisationGrads,
};

/// Weights of the operation.
#[derive(Debug, Clone)]
pub struct NormConv {
    /// Scale of the normalisation, `[Ci]`.
    pub scale: Tensor<1>,
    /// Its shift, `[Ci]`.
    pub shift: Tensor<1>,
    /// Weights of the convolution, `[Co, Ci, 3, 3]`.
    pub weight: Tensor<4>,
    /// Its bias, `[1, Co]`, or `[B, Co]` with one for every image.
    pub bias: Tensor<2>,
}

/// `conv3x3(group_norm(x))` of `x [B, Ci, H, W]` with stride 1, to `[B, Co, H, W]`.
pub fn norm_conv3x3(
    x: Tensor<4>,
    weights: NormConv,
    norm: Norm,
    kept: Option<&KeptWeights>,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::norm_conv3x3(x, weights, norm);
    }
    Tensor::from_dispatch(Dispatch::norm_conv3x3_op(
        x.into_dispatch(),
        weights.scale.into_dispatch(),
        weights.shift.into_dispatch(),
        weights.weight.into_dispatch(),
        weights.bias.into_dispatch(),
        norm,
        kept.cloned(),
    ))
}

/// The operation.
#[backend_extension(Flex, Autodiff)]
pub trait NormConvOps: Backend {
    /// See [`norm_conv3x3`].
    fn norm_conv3x3_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        norm: Norm,
        kept: Option<KeptWeights>,
    ) -> FloatTensor<Self>;
}

impl NormConvOps for Flex {
    fn norm_conv3x3_op(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        w: FlexTensor,
        b: FlexTensor,
        norm: Norm,
        kept: Option<KeptWeights>,
    ) -> FlexTensor {
        let h = Self::group_norm_op(x, scale, shift, norm);
        Self::conv3x3_op(h, w, b, Stride::One, kept)
    }
}

#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    w: FloatTensor<B>,
    bias: BiasShape,
    norm: Norm,
    kept: Option<KeptWeights>,
}

impl<B: NormalisationGrads + ConvolutionGrads> WayBack<B, 5> for Saved<B> {
    fn gradients(self, g: FloatTensor<B>, wanted: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        let Self {
            x,
            scale,
            shift,
            w,
            bias,
            norm,
            kept,
        } = self;
        let [x_wanted, scale_wanted, shift_wanted, w_wanted, b_wanted] = wanted;
        let gb = b_wanted.then(|| B::bias_grad(g.clone(), bias));
        if !(x_wanted || scale_wanted || shift_wanted) {
            let gw = w_wanted.then(|| {
                let h = B::group_norm_op(x, scale, shift, norm);
                B::conv3x3_weight_grad(g, h, Stride::One)
            });
            return [None, None, None, gw, gb];
        }
        let gh = B::conv3x3_input_grad(g.clone(), w, B::sizes(&x), Stride::One, kept);
        if !w_wanted {
            let [gx, gscale, gshift] = B::group_norm_grad(x, scale, shift, gh, norm).map(Some);
            return [gx, gscale, gshift, None, gb];
        }
        let (gradients, h) = B::group_norm_grad_and_output(x, scale, shift, gh, norm);
        let gw = B::conv3x3_weight_grad(g, h, Stride::One);
        let [gx, gscale, gshift] = gradients.map(Some);
        [gx, gscale, gshift, Some(gw), gb]
    }
}

impl<B: NormConvOps + NormalisationGrads + ConvolutionGrads, C: CheckpointStrategy> NormConvOps
    for Autodiff<B, C>
{
    fn norm_conv3x3_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        norm: Norm,
        kept: Option<KeptWeights>,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 5>(
            [x, scale, shift, w, b],
            |[x, scale, shift, w, b], wanted| {
                let kept = kept.filter(|_| !wanted[3]);
                let way_back = Saved {
                    x: x.clone(),
                    scale: scale.clone(),
                    shift: shift.clone(),
                    w: w.clone(),
                    bias: B::bias_shape(&b),
                    norm,
                    kept: kept.clone(),
                };
                (
                    B::norm_conv3x3_op(x, scale, shift, w, b, norm, kept),
                    way_back,
                )
            },
        )
    }
}
