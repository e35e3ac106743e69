//! Kernels at the sizes that small diffusion networks have, forward and backward.
#![allow(missing_docs)]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use depurate_kernels::activation::{self, Activation};
use depurate_kernels::{
    ConvShape, Stride2Pad, adam, attention, conv1x1, conv3x3, conv3x3_stride2, group_norm,
    layer_norm, linear, planes, softmax, upsample2x, vectors,
};

/// Smooth values of about unit size; their content does not change the speed.
fn filled(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.618).sin()).collect()
}

fn shape(batch: usize, c_in: usize, size: usize, c_out: usize) -> ConvShape {
    ConvShape {
        batch,
        c_in,
        c_out,
        height: size,
        width: size,
    }
}

/// Throughput is in elements: one element is one floating-point operation of a direct convolution.
fn convolutions(criterion: &mut Criterion) {
    for (batch, c_in, size, c_out) in [
        (16, 128, 32, 128),
        (32, 32, 28, 32),
        (32, 64, 14, 64),
        (64, 32, 32, 32),
        (32, 128, 7, 128),
        (32, 128, 4, 128),
        (32, 1, 28, 32),
        (32, 3, 32, 32),
        (32, 32, 28, 1),
        (32, 8, 28, 32),
    ] {
        let s = shape(batch, c_in, size, c_out);
        let (x, w, bias) = (
            filled(s.input_len()),
            filled(c_out * c_in * 9),
            filled(c_out),
        );
        let mut y = filled(batch * c_out * size * size);
        let (mut gx, mut gw) = (x.clone(), w.clone());
        let mut group =
            criterion.benchmark_group(format!("conv3x3 [{batch},{c_in},{size},{size}]->{c_out}"));
        group.throughput(Throughput::Elements((y.len() * c_in * 18) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| conv3x3::forward(&x, &w, Some(&bias), s, &mut y))
        });
        group.bench_function("input_grad", |b| {
            b.iter(|| conv3x3::input_grad(&y, &w, s, &mut gx))
        });
        group.bench_function("weight_grad", |b| {
            b.iter(|| conv3x3::weight_grad(&x, &y, s, &mut gw))
        });
        group.finish();
    }
    for (batch, channels, size) in [(32, 32, 28), (16, 128, 32)] {
        let s = shape(batch, channels, size, channels);
        let pad = Stride2Pad::Symmetric;
        let (x, w, bias) = (
            filled(s.input_len()),
            filled(channels * channels * 9),
            filled(channels),
        );
        let mut y = filled(s.input_len() / 4);
        let (mut gx, mut gw) = (x.clone(), w.clone());
        let mut group =
            criterion.benchmark_group(format!("conv3x3 /2 [{batch},{channels},{size},{size}]"));
        group.throughput(Throughput::Elements((y.len() * channels * 18) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| conv3x3_stride2::forward(&x, &w, Some(&bias), s, pad, &mut y));
        });
        group.bench_function("input_grad", |b| {
            b.iter(|| conv3x3_stride2::input_grad(&y, &w, s, pad, &mut gx));
        });
        group.bench_function("weight_grad", |b| {
            b.iter(|| conv3x3_stride2::weight_grad(&x, &y, s, pad, &mut gw));
        });
        group.finish();
    }
    for (batch, c_in, size, c_out) in [(32, 64, 28, 32), (16, 256, 16, 128), (32, 128, 7, 128)] {
        let s = shape(batch, c_in, size, c_out);
        let (x, w, bias) = (filled(s.input_len()), filled(c_out * c_in), filled(c_out));
        let mut y = filled(batch * c_out * size * size);
        let (mut gx, mut gw) = (x.clone(), w.clone());
        let mut group =
            criterion.benchmark_group(format!("conv1x1 [{batch},{c_in},{size},{size}]->{c_out}"));
        group.throughput(Throughput::Elements((y.len() * c_in * 2) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| conv1x1::forward(&x, &w, Some(&bias), s, &mut y))
        });
        group.bench_function("input_grad", |b| {
            b.iter(|| conv1x1::input_grad(&y, &w, s, &mut gx))
        });
        group.bench_function("weight_grad", |b| {
            b.iter(|| conv1x1::weight_grad(&x, &y, s, &mut gw))
        });
        group.finish();
    }
}

/// Throughput is in bytes of the input, once.
fn passes(criterion: &mut Criterion) {
    let shape = group_norm::Shape {
        batch: 16,
        channels: 128,
        hw: 1024,
        groups: 32,
        eps: 1e-5,
        silu: true,
    };
    let x = filled(16 * 128 * 1024);
    let (gamma, beta) = (filled(128), filled(128));
    let (mut y, mut ggamma, mut gbeta) = (x.clone(), gamma.clone(), beta.clone());
    let mut group = criterion.benchmark_group("group norm + silu [16,128,32,32]");
    group.throughput(Throughput::Bytes(4 * x.len() as u64));
    group.bench_function("forward", |b| {
        b.iter(|| group_norm::forward(&x, &gamma, &beta, shape, &mut y))
    });
    group.bench_function("backward", |b| {
        b.iter(|| {
            // the gradient is changed in place: it starts anew every time, which is measured too
            y.copy_from_slice(&x);
            let (gamma_to, beta_to) = (&mut ggamma, &mut gbeta);
            group_norm::backward(&x, &mut y, &gamma, &beta, shape, gamma_to, beta_to, None);
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("passes over 2 Mi elements");
    group.throughput(Throughput::Bytes(4 * x.len() as u64));
    group.bench_function("softmax of 256 forward", |b| {
        b.iter(|| softmax::forward(&x, 256, &mut y))
    });
    group.bench_function("softmax of 256 backward", |b| {
        b.iter(|| softmax::backward(&x, &x, 256, &mut y))
    });
    for f in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        group.bench_function(format!("{f:?} forward"), |b| {
            b.iter(|| activation::forward(&x, f, &mut y))
        });
        group.bench_function(format!("{f:?} backward"), |b| {
            b.iter(|| activation::backward(&x, &x, f, &mut y))
        });
    }
    let half = x.len() / 2;
    group.bench_function("GEGLU forward", |b| {
        b.iter(|| activation::geglu(&x, 2, &mut y[..half]))
    });
    group.bench_function("GEGLU backward", |b| {
        b.iter(|| activation::geglu_backward(&x, &x[..half], 2, &mut y))
    });
    group.bench_function("sum", |b| b.iter(|| vectors::add(&x, &x, &mut y)));
    group.bench_function("blend", |b| {
        b.iter(|| vectors::blend(0.01, &x, 0.99, &mut y))
    });
    group.bench_function("sum of squares", |b| b.iter(|| vectors::sum_of_squares(&x)));
    group.bench_function("join of channels", |b| {
        b.iter(|| planes::join(&x[..half], &x[half..], 16, &mut y))
    });
    group.bench_function("upsampling forward", |b| {
        b.iter(|| upsample2x::forward(&x[..half / 2], 512, 32, 32, &mut y))
    });
    let step = adam::Step {
        gradient_scale: 1.0,
        beta_1: 0.9,
        beta_2: 0.999,
        correction_1: 0.1,
        correction_2: 0.001,
        epsilon: 1e-8,
        learning_rate: 1e-9,
        weight_decay: 0.0,
    };
    let (mut first, mut second) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    group.bench_function("Adam", |b| {
        b.iter(|| adam::step(&mut y, &x, &mut first, &mut second, step))
    });
    let tokens = layer_norm::Shape {
        batch: 2,
        channels: 320,
        tokens: 3276,
        eps: 1e-5,
    };
    let n = tokens.batch * tokens.channels * tokens.tokens;
    let (gamma, beta) = (filled(320), filled(320));
    let (mut ggamma, mut gbeta) = (filled(320), filled(320));
    group.bench_function("layer norm of 320 forward", |b| {
        b.iter(|| layer_norm::forward(&x[..n], &gamma, &beta, tokens, &mut y[..n]))
    });
    group.bench_function("layer norm of 320 backward", |b| {
        b.iter(|| {
            let (gx, x) = (&mut y[..n], &x[..n]);
            layer_norm::backward(x, x, &gamma, tokens, gx, &mut ggamma, &mut gbeta);
        })
    });
    group.finish();
}

/// Throughput is in elements: one element is one floating-point operation.
fn rows(criterion: &mut Criterion) {
    for (rows, wide_in, wide_out) in [(64, 128, 128), (8, 256, 512), (77, 768, 3072)] {
        let s = linear::Shape {
            rows,
            wide_in,
            wide_out,
        };
        let (x, w, bias) = (
            filled(rows * wide_in),
            filled(wide_in * wide_out),
            filled(wide_out),
        );
        let mut y = filled(rows * wide_out);
        let (mut gx, mut gw) = (x.clone(), w.clone());
        let mut group = criterion.benchmark_group(format!("linear [{rows},{wide_in}]->{wide_out}"));
        group.throughput(Throughput::Elements((2 * rows * wide_in * wide_out) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| linear::forward(&x, &w, Some(&bias), s, &mut y))
        });
        group.bench_function("input_grad", |b| {
            b.iter(|| linear::input_grad(&y, &w, s, &mut gx))
        });
        group.bench_function("weight_grad", |b| {
            b.iter(|| linear::weight_grad(&x, &y, s, &mut gw))
        });
        group.finish();
    }
}

/// Throughput is in elements: one element is one floating-point operation of the two products, forward.
fn attentions(criterion: &mut Criterion) {
    for (heads, width, queries, keys) in [
        (16, 40, 4096, 4096),
        (16, 40, 4096, 77),
        (16, 128, 256, 256),
        (256, 8, 49, 49),
    ] {
        let s = attention::Shape {
            heads,
            width,
            queries,
            keys,
            scale: (width as f32).powf(-0.5),
        };
        let (q, k) = (
            filled(heads * width * queries),
            filled(heads * width * keys),
        );
        let v = k.clone();
        let (mut y, mut lse) = (q.clone(), filled(heads * queries));
        let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), k.clone());
        let mut group = criterion.benchmark_group(format!(
            "attention [{heads} heads, {queries} queries, {keys} keys, {width}]"
        ));
        group.throughput(Throughput::Elements(
            (4 * heads * width * queries * keys) as u64,
        ));
        group.bench_function("forward", |b| {
            b.iter(|| attention::forward(&q, &k, &v, s, &mut y, &mut lse));
        });
        group.bench_function("backward", |b| {
            b.iter(|| {
                let saved = attention::Saved {
                    q: &q,
                    k: &k,
                    v: &v,
                    y: &y,
                    lse: &lse,
                };
                attention::backward(saved, &q, s, &mut gq, &mut gk, &mut gv);
            });
        });
        let mut map = vec![0.0; heads * keys * queries];
        let mut gmap = map.clone();
        group.bench_function("with its map, forward", |b| {
            b.iter(|| {
                attention::map(&q, &k, s, &mut map);
                attention::mix(&map, &v, s, &mut y);
            });
        });
        group.bench_function("with its map, backward", |b| {
            b.iter(|| {
                attention::mix_grad(&map, &v, &q, s, &mut gmap, &mut gv);
                attention::map_grad((&q, &k, &map), &gmap, s, &mut gq, &mut gk);
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots();
    targets = convolutions, passes, rows, attentions
}
criterion_main!(benches);
