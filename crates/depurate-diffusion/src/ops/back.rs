//! One way to write an operation with its backward pass: gradients are computed only for operands that are tracked, and only
//! what they need is kept, so that a frozen network costs neither weight gradients nor its activations.

use std::{fmt::Debug, marker::PhantomData};

use burn::backend::{
    Backend,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

/// What an operation with `N` operands keeps for its backward pass.
pub(super) trait WayBack<B: Backend, const N: usize>:
    Clone + Debug + Send + 'static
{
    /// The gradients of the operands that are `wanted`, given that of the output.
    fn gradients(self, g: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

#[derive(Debug)]
struct Step<W>(PhantomData<W>);

impl<B: Backend, W: WayBack<B, N>, const N: usize> Backward<B, N> for Step<W> {
    type State = W;

    fn backward(self, ops: Ops<W, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let g = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = ops.state.gradients(g, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Runs `forward` on the operands; it is told which of them are tracked, and says what the backward pass needs.
pub(super) fn tracked<B: Backend, C: CheckpointStrategy, W: WayBack<B, N>, const N: usize>(
    operands: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N], [bool; N]) -> (FloatTensor<B>, W),
) -> FloatTensor<Autodiff<B, C>> {
    let wanted = operands.each_ref().map(|x| x.is_tracked());
    let nodes = operands.each_ref().map(|x| x.node());
    let (y, way_back) = forward(operands.map(|x| x.into_primitive()), wanted);
    match Step::<W>(PhantomData)
        .prepare::<C>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(way_back, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
