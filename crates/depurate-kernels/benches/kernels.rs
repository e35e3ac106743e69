//! Kernels at the sizes that small diffusion networks have, forward and backward.
#![allow(missing_docs)]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use depurate_kernels::{
    ConvShape, Stride2Pad, attention, conv1x1, conv3x3, conv3x3_stride2, group_norm, softmax,
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
    let mut group = criterion.benchmark_group("softmax [8192,256]");
    group.throughput(Throughput::Bytes(4 * x.len() as u64));
    group.bench_function("forward", |b| b.iter(|| softmax::forward(&x, 256, &mut y)));
    group.finish();
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
    targets = convolutions, passes, attentions
}
criterion_main!(benches);
