//! The backward passes, one explicit step an operation: gradients are computed only for parents
//! that are tracked, so a frozen network costs no weight gradients.

use burn::backend::{
    TensorMetadata,
    autodiff::{
        Autodiff, NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{FastGrads, FastOps, Norm, Stride};

#[derive(Debug)]
struct Conv3x3;

impl<B: FastGrads> Backward<B, 3> for Conv3x3 {
    type State = (NodeId, NodeId, [usize; 4], Stride);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x_node, w_node, b_node] = ops.parents;
        let g = grads.consume::<B>(&ops.node);
        let (x_id, w_id, input, stride) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x_id);
        let w: FloatTensor<B> = checkpointer.retrieve_node_output(w_id);
        if let Some(node) = b_node {
            grads.register::<B>(node.id, B::bias_grad(g.clone()));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::conv3x3_weight_grad(g.clone(), x, stride));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::conv3x3_input_grad(g, w, input, stride));
        }
    }
}

#[derive(Debug)]
struct Conv1x1;

impl<B: FastGrads> Backward<B, 3> for Conv1x1 {
    type State = (NodeId, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x_node, w_node, b_node] = ops.parents;
        let g = grads.consume::<B>(&ops.node);
        let (x_id, w_id) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x_id);
        let w: FloatTensor<B> = checkpointer.retrieve_node_output(w_id);
        if let Some(node) = b_node {
            grads.register::<B>(node.id, B::bias_grad(g.clone()));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::conv1x1_weight_grad(g.clone(), x));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::conv1x1_input_grad(g, w));
        }
    }
}

#[derive(Debug)]
struct GroupNorm;

impl<B: FastGrads> Backward<B, 3> for GroupNorm {
    type State = ([NodeId; 3], Norm);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let (ids, norm) = ops.state;
        let [x, scale, shift] =
            ids.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let gradients = B::group_norm_grad(x, scale, shift, g, norm);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: FastGrads> Backward<B, 3> for Attention {
    /// Queries, keys and values; output, logarithms of sums; scale.
    type State = ([NodeId; 3], [FloatTensor<B>; 2], f32);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let g = grads.consume::<B>(&ops.node);
        let (ids, [y, lse], scale) = ops.state;
        let qkv = ids.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let gradients = B::attention_grad(qkv, y, lse, g, scale);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Upsample2x;

impl<B: FastGrads> Backward<B, 1> for Upsample2x {
    type State = ();

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [x_node] = ops.parents;
        let g = grads.consume::<B>(&ops.node);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::upsample2x_grad(g));
        }
    }
}

impl<B: FastGrads, C: CheckpointStrategy> FastOps for Autodiff<B, C> {
    fn conv3x3_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        stride: Stride,
    ) -> FloatTensor<Self> {
        let input = x.primitive().shape().dims::<4>();
        match Conv3x3
            .prepare::<C>([x.node(), w.node(), b.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&w), input, stride);
                let y = B::conv3x3_op(
                    x.primitive().clone(),
                    w.primitive().clone(),
                    b.primitive().clone(),
                    stride,
                );
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::conv3x3_op(
                x.primitive().clone(),
                w.primitive().clone(),
                b.primitive().clone(),
                stride,
            )),
        }
    }

    fn conv1x1_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match Conv1x1
            .prepare::<C>([x.node(), w.node(), b.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&w));
                prep.finish(
                    state,
                    B::conv1x1_op(
                        x.primitive().clone(),
                        w.primitive().clone(),
                        b.primitive().clone(),
                    ),
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(B::conv1x1_op(
                x.primitive().clone(),
                w.primitive().clone(),
                b.primitive().clone(),
            )),
        }
    }

    fn group_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        match GroupNorm
            .prepare::<C>([x.node(), scale.node(), shift.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (
                    [
                        prep.checkpoint(&x),
                        prep.checkpoint(&scale),
                        prep.checkpoint(&shift),
                    ],
                    norm,
                );
                let y = B::group_norm_op(
                    x.primitive().clone(),
                    scale.primitive().clone(),
                    shift.primitive().clone(),
                    norm,
                );
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::group_norm_op(
                x.primitive().clone(),
                scale.primitive().clone(),
                shift.primitive().clone(),
                norm,
            )),
        }
    }

    fn attention_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let primitives = || [&q, &k, &v].map(|x| x.primitive().clone());
        match Attention
            .prepare::<C>([q.node(), k.node(), v.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let ids = [&q, &k, &v].map(|x| prep.checkpoint(x));
                let (y, lse) = B::attention_saving(primitives(), scale);
                prep.finish((ids, [y.clone(), lse], scale), y)
            }
            OpsKind::UnTracked(prep) => {
                let [q, k, v] = primitives();
                prep.finish(B::attention_op(q, k, v, scale))
            }
        }
    }

    fn upsample2x_op(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Upsample2x
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((), B::upsample2x_op(x.primitive().clone())),
            OpsKind::UnTracked(prep) => prep.finish(B::upsample2x_op(x.primitive().clone())),
        }
    }
}
