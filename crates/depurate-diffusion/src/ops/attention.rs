//! Attention, with and without its map.

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
use depurate_kernels::attention as kernel;

use super::{
    back::{WayBack, tracked},
    buffers::{fresh, recycle},
    flex::{contiguous, dims, tensor, values},
    framework::{self, has_kernels},
};

/// `Σ_k v[., k] softmax_k(scale Σ_c k[c, k] q[c, .])`: attention of `q [N, D, Q]` on `k`, `v [N, D, K]`, `N` heads of all
/// images. The map is never formed.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scale: f32) -> Tensor<3> {
    if !has_kernels(&q.device()) {
        return framework::attention(q, k, v, scale);
    }
    Tensor::from_dispatch(Dispatch::attention_op(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        scale,
    ))
}

/// The map `softmax_k(scale Σ_c k[c, k] q[c, .])` as `[N, K, Q]`, for taps: with [`attention_mix`] it is [`attention`].
pub fn attention_map(q: Tensor<3>, k: Tensor<3>, scale: f32) -> Tensor<3> {
    if !has_kernels(&q.device()) {
        return framework::attention_map(q, k, scale);
    }
    Tensor::from_dispatch(Dispatch::attention_map_op(
        q.into_dispatch(),
        k.into_dispatch(),
        scale,
    ))
}

/// Values `v [N, D, K]` mixed by a map `[N, K, Q]` to `[N, D, Q]`.
pub fn attention_mix(map: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
    if !has_kernels(&v.device()) {
        return framework::attention_mix(map, v);
    }
    Tensor::from_dispatch(Dispatch::attention_mix_op(
        map.into_dispatch(),
        v.into_dispatch(),
    ))
}

/// The forward operations.
#[backend_extension(Flex, Autodiff)]
pub trait AttentionOps: Backend {
    /// See [`attention`].
    fn attention_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
    /// See [`attention_map`].
    fn attention_map_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
    /// See [`attention_mix`].
    fn attention_mix_op(map: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward halves.
pub(crate) trait AttentionGrads: AttentionOps {
    /// The output, and the logarithms of sums `[N, Q]` that the backward pass needs.
    fn attention_saving(
        qkv: [FloatTensor<Self>; 3],
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Gradients w.r.t. queries, keys and values.
    fn attention_grad(
        qkv: [FloatTensor<Self>; 3],
        y: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale: f32,
    ) -> [FloatTensor<Self>; 3];
    /// Gradients w.r.t. queries and keys.
    fn attention_map_grad(
        qk: [FloatTensor<Self>; 2],
        map: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale: f32,
    ) -> [FloatTensor<Self>; 2];
    /// Gradients w.r.t. map and values.
    fn attention_mix_grad(
        map: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
}

fn shape(q: &FlexTensor, k: &FlexTensor, scale: f32) -> kernel::Shape {
    let [heads, width, queries] = dims::<3>(q);
    kernel::Shape {
        heads,
        width,
        queries,
        keys: dims::<3>(k)[2],
        scale,
    }
}

fn mix_shape(map: &FlexTensor, v: &FlexTensor) -> kernel::Shape {
    let [heads, keys, queries] = dims::<3>(map);
    kernel::Shape {
        heads,
        width: dims::<3>(v)[1],
        queries,
        keys,
        scale: 1.0,
    }
}

impl AttentionOps for Flex {
    fn attention_op(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
        Self::attention_saving([q, k, v], scale).0
    }

    fn attention_map_op(q: FlexTensor, k: FlexTensor, scale: f32) -> FlexTensor {
        let (q, k) = (contiguous(q), contiguous(k));
        let s = shape(&q, &k, scale);
        let mut map = fresh(s.heads * s.keys * s.queries);
        kernel::map(values(&q), values(&k), s, &mut map);
        tensor(map, &[s.heads, s.keys, s.queries])
    }

    fn attention_mix_op(map: FlexTensor, v: FlexTensor) -> FlexTensor {
        let (map, v) = (contiguous(map), contiguous(v));
        let s = mix_shape(&map, &v);
        let mut y = fresh(s.heads * s.width * s.queries);
        kernel::mix(values(&map), values(&v), s, &mut y);
        recycle([map, v]);
        tensor(y, &[s.heads, s.width, s.queries])
    }
}

impl AttentionGrads for Flex {
    fn attention_saving(qkv: [FlexTensor; 3], scale: f32) -> (FlexTensor, FlexTensor) {
        let [q, k, v] = qkv.map(contiguous);
        let s = shape(&q, &k, scale);
        let mut y = fresh(values(&q).len());
        let mut lse = vec![0.0; s.heads * s.queries];
        kernel::forward(values(&q), values(&k), values(&v), s, &mut y, &mut lse);
        let queries = dims::<3>(&q);
        recycle([q, k, v]);
        (tensor(y, &queries), tensor(lse, &[s.heads, s.queries]))
    }

    fn attention_grad(
        qkv: [FlexTensor; 3],
        y: FlexTensor,
        lse: FlexTensor,
        g: FlexTensor,
        scale: f32,
    ) -> [FlexTensor; 3] {
        let [q, k, v] = qkv.map(contiguous);
        let [y, lse, g] = [y, lse, g].map(contiguous);
        let mut gradients = [&q, &k, &v].map(|x| fresh(values(x).len()));
        let [gq, gk, gv] = &mut gradients;
        let saved = kernel::Saved {
            q: values(&q),
            k: values(&k),
            v: values(&v),
            y: values(&y),
            lse: values(&lse),
        };
        kernel::backward(saved, values(&g), shape(&q, &k, scale), gq, gk, gv);
        let [gq, gk, gv] = gradients;
        let (queries, keys) = (dims::<3>(&q), dims::<3>(&k));
        recycle([q, k, v, y, g]);
        [tensor(gq, &queries), tensor(gk, &keys), tensor(gv, &keys)]
    }

    fn attention_map_grad(
        qk: [FlexTensor; 2],
        map: FlexTensor,
        g: FlexTensor,
        scale: f32,
    ) -> [FlexTensor; 2] {
        let [q, k] = qk.map(contiguous);
        let [map, g] = [map, g].map(contiguous);
        let mut gradients = [&q, &k].map(|x| fresh(values(x).len()));
        let [gq, gk] = &mut gradients;
        let saved = (values(&q), values(&k), values(&map));
        kernel::map_grad(saved, values(&g), shape(&q, &k, scale), gq, gk);
        let [gq, gk] = gradients;
        let (queries, keys) = (dims::<3>(&q), dims::<3>(&k));
        recycle([q, k, map, g]);
        [tensor(gq, &queries), tensor(gk, &keys)]
    }

    fn attention_mix_grad(map: FlexTensor, v: FlexTensor, g: FlexTensor) -> [FlexTensor; 2] {
        let [map, v, g] = [map, v, g].map(contiguous);
        let mut gradients = [&map, &v].map(|x| fresh(values(x).len()));
        let [gmap, gv] = &mut gradients;
        let (of_map, of_values) = (values(&map), values(&v));
        kernel::mix_grad(of_map, of_values, values(&g), mix_shape(&map, &v), gmap, gv);
        let [gmap, gv] = gradients;
        let (of_map, of_values) = (dims::<3>(&map), dims::<3>(&v));
        recycle([map, v, g]);
        [tensor(gmap, &of_map), tensor(gv, &of_values)]
    }
}

#[derive(Clone, Debug)]
struct Attention<B: Backend> {
    qkv: [FloatTensor<B>; 3],
    y: FloatTensor<B>,
    lse: FloatTensor<B>,
    scale: f32,
}

impl<B: AttentionGrads> WayBack<B, 3> for Attention<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        B::attention_grad(self.qkv, self.y, self.lse, g, self.scale).map(Some)
    }
}

#[derive(Clone, Debug)]
struct Map<B: Backend> {
    qk: [FloatTensor<B>; 2],
    map: FloatTensor<B>,
    scale: f32,
}

impl<B: AttentionGrads> WayBack<B, 2> for Map<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        B::attention_map_grad(self.qk, self.map, g, self.scale).map(Some)
    }
}

#[derive(Clone, Debug)]
struct Mix<B: Backend>([FloatTensor<B>; 2]);

impl<B: AttentionGrads> WayBack<B, 2> for Mix<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        let [map, v] = self.0;
        B::attention_mix_grad(map, v, g).map(Some)
    }
}

impl<B: AttentionGrads, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([q, k, v], |qkv, _| {
            let (y, lse) = B::attention_saving(qkv.clone(), scale);
            let way_back = Attention {
                qkv,
                y: y.clone(),
                lse,
                scale,
            };
            (y, way_back)
        })
    }

    fn attention_map_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 2>([q, k], |qk, _| {
            let [q, k] = qk.clone();
            let map = B::attention_map_op(q, k, scale);
            let way_back = Map {
                qk,
                map: map.clone(),
                scale,
            };
            (map, way_back)
        })
    }

    fn attention_mix_op(map: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<B, C, _, 2>([map, v], |[map, v], _| {
            let way_back = Mix([map.clone(), v.clone()]);
            (B::attention_mix_op(map, v), way_back)
        })
    }
}
