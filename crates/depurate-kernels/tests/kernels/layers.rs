//! Layer normalisation, linear layers, activations, Adam and sums of vectors against their definitions in f64.

use depurate_kernels::activation::{self, Activation};
use depurate_kernels::{adam, layer_norm, linear, vectors};
use proptest::prelude::*;

use crate::reference::{assert_close, cases, differences, noise, on_each_isa, wide};

const FORWARD: f64 = 5e-6;
const GRADIENT: f64 = 1e-5;

fn normed(x: &[f64], gamma: &[f64], beta: &[f64], s: layer_norm::Shape) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for image in 0..s.batch {
        for token in 0..s.tokens {
            let at = |c: usize| (image * s.channels + c) * s.tokens + token;
            let n = s.channels as f64;
            let mean = (0..s.channels).map(|c| x[at(c)]).sum::<f64>() / n;
            let variance = (0..s.channels)
                .map(|c| (x[at(c)] - mean).powi(2))
                .sum::<f64>()
                / n;
            for c in 0..s.channels {
                let hat = (x[at(c)] - mean) / (variance + f64::from(s.eps)).sqrt();
                y[at(c)] = hat * gamma[c] + beta[c];
            }
        }
    }
    y
}

fn check_layer_norm(s: layer_norm::Shape) {
    let n = s.batch * s.channels * s.tokens;
    let x: Vec<f32> = noise(n, 1).iter().map(|v| v * 1.5 + 0.7).collect();
    let (gy, gamma, beta) = (noise(n, 2), noise(s.channels, 3), noise(s.channels, 4));
    let (x64, gamma64, beta64) = (wide(&x), wide(&gamma), wide(&beta));
    let want = normed(&x64, &gamma64, &beta64, s);
    let want_gx = differences(&x64, &gy, |x| normed(x, &gamma64, &beta64, s));
    let want_ggamma = differences(&gamma64, &gy, |gamma| normed(&x64, gamma, &beta64, s));
    let want_gbeta = differences(&beta64, &gy, |beta| normed(&x64, &gamma64, beta, s));
    on_each_isa(|isa| {
        let (mut y, mut gx) = (vec![f32::NAN; n], vec![f32::NAN; n]);
        let (mut ggamma, mut gbeta) = (vec![f32::NAN; s.channels], vec![f32::NAN; s.channels]);
        layer_norm::forward(&x, &gamma, &beta, s, &mut y);
        layer_norm::backward(&x, &gy, &gamma, s, &mut gx, &mut ggamma, &mut gbeta);
        for (part, got, want, bound) in [
            ("forward", &y, &want, FORWARD),
            ("gx", &gx, &want_gx, GRADIENT),
            ("ggamma", &ggamma, &want_ggamma, GRADIENT),
            ("gbeta", &gbeta, &want_gbeta, GRADIENT),
        ] {
            assert_close(&format!("{s:?} {isa:?} {part}"), got, want, bound);
        }
    });
}

fn tokens(batch: usize, channels: usize, tokens: usize) -> layer_norm::Shape {
    layer_norm::Shape {
        batch,
        channels,
        tokens,
        eps: 1e-5,
    }
}

#[test]
fn layer_norm_matches_its_definition_and_differences() {
    for (batch, channels, count) in [(1, 3, 1), (2, 5, 16), (1, 17, 67), (3, 8, 64)] {
        check_layer_norm(tokens(batch, channels, count));
    }
}

#[test]
fn layer_norm_of_many_tasks_matches() {
    let s = tokens(3, 96, 700);
    let n = s.batch * s.channels * s.tokens;
    let (x, gamma, beta) = (noise(n, 1), noise(96, 2), noise(96, 3));
    let want = normed(&wide(&x), &wide(&gamma), &wide(&beta), s);
    on_each_isa(|isa| {
        let mut y = vec![f32::NAN; n];
        layer_norm::forward(&x, &gamma, &beta, s, &mut y);
        assert_close(&format!("{isa:?}"), &y, &want, FORWARD);
    });
}

/// `c[m][n] = Σ_k a(m, k) b(k, n)`.
fn product(
    (m, k, n): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k)
                .map(|step| f64::from(a(i, step)) * f64::from(b(step, j)))
                .sum();
        }
    }
    c
}

fn check_linear(s: linear::Shape) {
    let (rows, i, o) = (s.rows, s.wide_in, s.wide_out);
    let (x, w, bias) = (noise(rows * i, 1), noise(o * i, 2), noise(o, 3));
    let gy = noise(rows * o, 4);
    let want0 = product((rows, i, o), |r, k| x[r * i + k], |k, c| w[c * i + k]);
    let want: Vec<f64> = want0
        .iter()
        .enumerate()
        .map(|(at, y)| y + f64::from(bias[at % o]))
        .collect();
    let want_gx = product((rows, o, i), |r, k| gy[r * o + k], |k, c| w[k * i + c]);
    let want_gw = product((o, rows, i), |r, k| gy[k * o + r], |k, c| x[k * i + c]);
    on_each_isa(|isa| {
        let (mut y, mut y0) = (vec![f32::NAN; rows * o], vec![f32::NAN; rows * o]);
        let (mut gx, mut gw) = (vec![f32::NAN; rows * i], vec![f32::NAN; o * i]);
        linear::forward(&x, &w, Some(&bias), s, &mut y);
        linear::forward(&x, &w, None, s, &mut y0);
        linear::input_grad(&gy, &w, s, &mut gx);
        linear::weight_grad(&x, &gy, s, &mut gw);
        for (part, got, want, bound) in [
            ("forward", &y, &want, FORWARD),
            ("forward without bias", &y0, &want0, FORWARD),
            ("gx", &gx, &want_gx, GRADIENT),
            ("gw", &gw, &want_gw, GRADIENT),
        ] {
            assert_close(&format!("{s:?} {isa:?} {part}"), got, want, bound);
        }
    });
}

#[test]
fn linear_matches_its_definition() {
    for (rows, wide_in, wide_out) in [
        (1, 1, 1),
        (1, 16, 64),
        (3, 7, 5),
        (64, 128, 130),
        (77, 33, 200),
        (2, 300, 65),
    ] {
        check_linear(linear::Shape {
            rows,
            wide_in,
            wide_out,
        });
    }
}

/// The normal distribution's cumulative function, by its series about 0.
fn cumulative(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return f64::from(u8::from(x > 0.0));
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs().max(1e-30) {
        term *= x * x / (n + 2.0);
        sum += term;
        n += 2.0;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn plain(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * cumulative(x),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::QuickGelu];

#[test]
fn activations_match_their_definitions_and_differences() {
    for f in ALL {
        let x: Vec<f32> = noise(40_001, 1).iter().map(|v| v * 4.0).collect();
        let gy = noise(x.len(), 2);
        let want: Vec<f64> = x.iter().map(|v| plain(f, f64::from(*v))).collect();
        let slope = |v: f64| (plain(f, v + 1e-5) - plain(f, v - 1e-5)) / 2e-5;
        let want_gx: Vec<f64> = x
            .iter()
            .zip(&gy)
            .map(|(v, g)| slope(f64::from(*v)) * f64::from(*g))
            .collect();
        on_each_isa(|isa| {
            let (mut y, mut gx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            activation::forward(&x, f, &mut y);
            activation::backward(&x, &gy, f, &mut gx);
            assert_close(&format!("{f:?} {isa:?}"), &y, &want, FORWARD);
            assert_close(&format!("{f:?} gradient {isa:?}"), &gx, &want_gx, GRADIENT);
        });
    }
}

#[test]
fn activations_far_out_and_broken() {
    for f in ALL {
        on_each_isa(|isa| {
            let x = [0.0, -300.0, 300.0, f32::NAN, f32::INFINITY, -88.0, 88.0];
            let mut y = [1.0; 7];
            activation::forward(&x, f, &mut y);
            assert!(
                y[0] == 0.0 && y[1].abs() < 1e-30 && y[2] == 300.0,
                "{f:?} {isa:?} {y:?}"
            );
            assert!(
                y[3].is_nan() && y[4] == f32::INFINITY,
                "{f:?} {isa:?} {y:?}"
            );
            assert!(y[5].abs() < 1e-30 && y[6] == 88.0, "{f:?} {isa:?} {y:?}");
        });
    }
}

#[test]
fn geglu_gates_every_image_by_its_second_half() {
    for (batch, n) in [(1, 1), (3, 37), (2, 40_000)] {
        let x: Vec<f32> = noise(batch * 2 * n, 1).iter().map(|v| v * 2.0).collect();
        let gy = noise(batch * n, 2);
        let (mut want, mut want_gx) = (vec![0.0; batch * n], vec![0.0; x.len()]);
        for (at, y) in want.iter_mut().enumerate() {
            let a = at / n * 2 * n + at % n;
            let (left, right, g) = (f64::from(x[a]), f64::from(x[a + n]), f64::from(gy[at]));
            let gelu = |v| plain(Activation::Gelu, v);
            *y = left * gelu(right);
            want_gx[a] = g * gelu(right);
            want_gx[a + n] = g * left * (gelu(right + 1e-5) - gelu(right - 1e-5)) / 2e-5;
        }
        on_each_isa(|isa| {
            let (mut y, mut gx) = (vec![f32::NAN; want.len()], vec![f32::NAN; x.len()]);
            activation::geglu(&x, batch, &mut y);
            activation::geglu_backward(&x, &gy, batch, &mut gx);
            assert_close(&format!("geglu {isa:?}"), &y, &want, FORWARD);
            assert_close(&format!("geglu gradient {isa:?}"), &gx, &want_gx, GRADIENT);
        });
    }
}

#[test]
fn adam_follows_its_algorithm() {
    let (n, steps) = (37, 25);
    let (beta_1, beta_2, epsilon, rate, decay): (f64, f64, f64, f64, f64) =
        (0.9, 0.999, 1e-8, 3e-3, 0.01);
    let start = noise(n, 1);
    let gradients: Vec<Vec<f32>> = (0..steps).map(|step| noise(n, 2 + step)).collect();
    let (mut values, mut m, mut v) = (wide(&start), vec![0.0; n], vec![0.0; n]);
    for (step, gradient) in gradients.iter().enumerate() {
        let count = step as i32 + 1;
        for i in 0..n {
            let g = 0.5 * f64::from(gradient[i]);
            m[i] = beta_1 * m[i] + (1.0 - beta_1) * g;
            v[i] = beta_2 * v[i] + (1.0 - beta_2) * g * g;
            let (mhat, vhat) = (
                m[i] / (1.0 - beta_1.powi(count)),
                v[i] / (1.0 - beta_2.powi(count)),
            );
            values[i] -= rate * (mhat / (vhat.sqrt() + epsilon) + decay * values[i]);
        }
    }
    on_each_isa(|isa| {
        let (mut got, mut first, mut second) = (start.clone(), vec![0.0; n], vec![0.0; n]);
        for (step, gradient) in gradients.iter().enumerate() {
            let count = step as i32 + 1;
            let step = adam::Step {
                gradient_scale: 0.5,
                beta_1: beta_1 as f32,
                beta_2: beta_2 as f32,
                correction_1: (1.0 - beta_1.powi(count)) as f32,
                correction_2: (1.0 - beta_2.powi(count)) as f32,
                epsilon: epsilon as f32,
                learning_rate: rate as f32,
                weight_decay: decay as f32,
            };
            adam::step(&mut got, gradient, &mut first, &mut second, step);
        }
        assert_close(&format!("values {isa:?}"), &got, &values, FORWARD);
        assert_close(&format!("first moment {isa:?}"), &first, &m, FORWARD);
        // 1 - 0.999 in f32 is off by 5e-5
        assert_close(&format!("second moment {isa:?}"), &second, &v, 1e-4);
    });
}

#[test]
fn vectors_are_added_blended_and_measured() {
    for n in [0, 1, 15, 33, 70_001] {
        let (a, b) = (noise(n, 1), noise(n, 2));
        let sum: Vec<f64> = wide(&a).iter().zip(wide(&b)).map(|(a, b)| a + b).collect();
        let blended: Vec<f64> = wide(&a)
            .iter()
            .zip(wide(&b))
            .map(|(a, b)| 0.25 * a - 2.0 * b)
            .collect();
        let squares: f64 = wide(&a).iter().map(|v| v * v).sum();
        on_each_isa(|isa| {
            let mut y = vec![f32::NAN; n];
            vectors::add(&a, &b, &mut y);
            assert_close(&format!("sum {isa:?}"), &y, &sum, FORWARD);
            y.copy_from_slice(&b);
            vectors::blend(0.25, &a, -2.0, &mut y);
            assert_close(&format!("blend {isa:?}"), &y, &blended, FORWARD);
            let got = vectors::sum_of_squares(&a);
            assert!(
                (got - squares).abs() <= 1e-6 * squares,
                "{isa:?} {got} {squares}"
            );
        });
    }
}

proptest! {
    #![proptest_config(cases(12))]
    #[test]
    // of 2 channels nothing but their order is left: a gradient of nearly 0, to which no error is relative
    fn any_layer_norm_matches(batch in 1usize..3, channels in 5usize..20, count in 3usize..90) {
        check_layer_norm(tokens(batch, channels, count));
    }

    #[test]
    fn any_linear_matches(rows in 1usize..20, wide_in in 1usize..150, wide_out in 1usize..150) {
        check_linear(linear::Shape { rows, wide_in, wide_out });
    }
}
