//! The backward passes of convolutions and linear layers.

use burn::backend::{
    Backend,
    autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
    tensor::FloatTensor,
};

use super::{BiasShape, ConvolutionGrads, ConvolutionOps, KeptWeights, Stride};
use crate::ops::back::{WayBack, tracked};

/// Input (for the weights' gradient) and weights (for the input's).
#[derive(Clone, Debug)]
struct Operands<B: Backend> {
    x: Option<FloatTensor<B>>,
    w: Option<FloatTensor<B>>,
}

impl<B: Backend> Operands<B> {
    fn new(x: &FloatTensor<B>, w: &FloatTensor<B>, [x_wanted, w_wanted, _]: [bool; 3]) -> Self {
        Self {
            x: w_wanted.then(|| x.clone()),
            w: x_wanted.then(|| w.clone()),
        }
    }
}

#[derive(Clone, Debug)]
struct Conv3x3<B: Backend> {
    operands: Operands<B>,
    input: [usize; 4],
    bias: BiasShape,
    stride: Stride,
    kept: Option<KeptWeights>,
}

impl<B: ConvolutionGrads> WayBack<B, 3> for Conv3x3<B> {
    fn gradients(
        self,
        g: FloatTensor<B>,
        [_, _, b_wanted]: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let Operands { x, w } = self.operands;
        let gb = b_wanted.then(|| B::bias_grad(g.clone(), self.bias));
        let gw = x.map(|x| B::conv3x3_weight_grad(g.clone(), x, self.stride));
        let gx = w.map(|w| B::conv3x3_input_grad(g, w, self.input, self.stride, self.kept));
        [gx, gw, gb]
    }
}

#[derive(Clone, Debug)]
struct Conv1x1<B: Backend>(Operands<B>);

impl<B: ConvolutionGrads> WayBack<B, 3> for Conv1x1<B> {
    fn gradients(
        self,
        g: FloatTensor<B>,
        [_, _, b_wanted]: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let Operands { x, w } = self.0;
        let gb = b_wanted.then(|| B::bias_grad(g.clone(), BiasShape::Channels));
        let gw = x.map(|x| B::conv1x1_weight_grad(g.clone(), x));
        [w.map(|w| B::conv1x1_input_grad(g, w)), gw, gb]
    }
}

#[derive(Clone, Debug)]
struct Linear<B: Backend>(Operands<B>);

impl<B: ConvolutionGrads> WayBack<B, 3> for Linear<B> {
    fn gradients(
        self,
        g: FloatTensor<B>,
        [_, _, b_wanted]: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let Operands { x, w } = self.0;
        let gb = b_wanted.then(|| B::linear_bias_grad(g.clone()));
        let gw = x.map(|x| B::linear_weight_grad(g.clone(), x));
        [w.map(|w| B::linear_input_grad(g, w)), gw, gb]
    }
}

impl<B: ConvolutionGrads, C: CheckpointStrategy> ConvolutionOps for Autodiff<B, C> {
    fn conv3x3_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        stride: Stride,
        kept: Option<KeptWeights>,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([x, w, b], |[x, w, b], wanted| {
            let way_back = Conv3x3 {
                operands: Operands::new(&x, &w, wanted),
                input: B::sizes(&x),
                bias: B::bias_shape(&b),
                stride,
                kept: kept.filter(|_| !wanted[1]),
            };
            let kept = way_back.kept.clone();
            (B::conv3x3_op(x, w, b, stride, kept), way_back)
        })
    }

    fn conv1x1_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([x, w, b], |[x, w, b], wanted| {
            let way_back = Conv1x1(Operands::new(&x, &w, wanted));
            (B::conv1x1_op(x, w, b), way_back)
        })
    }

    fn linear_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([x, w, b], |[x, w, b], wanted| {
            let way_back = Linear(Operands::new(&x, &w, wanted));
            (B::linear_op(x, w, b), way_back)
        })
    }
}
