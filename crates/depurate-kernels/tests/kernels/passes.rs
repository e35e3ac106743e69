//! Group normalisation, softmax and upsampling against their definitions in f64, on every instruction set of the machine.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::reference::{assert_close, cases, differences, noise, on_each_isa, wide};
use depurate_kernels::{group_norm, softmax, upsample2x};
use proptest::prelude::*;

const FORWARD: f64 = 5e-6;
const GRADIENT: f64 = 1e-5;

fn silu64(v: f64) -> f64 {
    v / (1.0 + (-v).exp())
}

/// Group norm in f64, as its definition says.
fn normed(x: &[f64], gamma: &[f64], beta: &[f64], s: group_norm::Shape) -> Vec<f64> {
    let per = s.channels / s.groups * s.hw;
    let mut y = Vec::with_capacity(x.len());
    for (g, group) in x.chunks(per).enumerate() {
        let mean = group.iter().sum::<f64>() / per as f64;
        let variance = group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / per as f64;
        for (i, v) in group.iter().enumerate() {
            let c = g % s.groups * (s.channels / s.groups) + i / s.hw;
            let v = (v - mean) / (variance + f64::from(s.eps)).sqrt() * gamma[c] + beta[c];
            y.push(if s.silu { silu64(v) } else { v });
        }
    }
    y
}

fn check_group_norm(s: group_norm::Shape) {
    let n = s.batch * s.channels * s.hw;
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
        group_norm::forward(&x, &gamma, &beta, s, &mut y);
        let mut again = vec![f32::NAN; n];
        let (to, more) = ((&mut ggamma, &mut gbeta), Some(&mut again[..]));
        gx.copy_from_slice(&gy);
        group_norm::backward(&x, &mut gx, &gamma, &beta, s, to.0, to.1, more);
        assert_close(&format!("{s:?} {isa:?} again"), &again, &want, FORWARD);
        let mut alone = gy.clone();
        group_norm::backward(
            &x,
            &mut alone,
            &gamma,
            &beta,
            s,
            &mut ggamma,
            &mut gbeta,
            None,
        );
        assert_eq!(gx, alone);
        assert_close(&format!("{s:?} {isa:?} forward"), &y, &want, FORWARD);
        assert_close(&format!("{s:?} {isa:?} gx"), &gx, &want_gx, GRADIENT);
        assert_close(
            &format!("{s:?} {isa:?} ggamma"),
            &ggamma,
            &want_ggamma,
            GRADIENT,
        );
        assert_close(
            &format!("{s:?} {isa:?} gbeta"),
            &gbeta,
            &want_gbeta,
            GRADIENT,
        );
    });
}

#[test]
fn group_norm_matches_its_definition_and_differences() {
    for silu in [false, true] {
        for (batch, channels, hw, groups) in [
            (1, 4, 16, 2),
            (2, 6, 49, 3),
            (3, 32, 5, 8),
            (1, 8, 30, 8),
            (2, 3, 67, 1),
        ] {
            check_group_norm(group_norm::Shape {
                batch,
                channels,
                hw,
                groups,
                eps: 1e-5,
                silu,
            });
        }
    }
}

#[test]
fn group_norm_of_many_tasks_matches() {
    let s = group_norm::Shape {
        batch: 8,
        channels: 64,
        hw: 784,
        groups: 32,
        eps: 1e-6,
        silu: true,
    };
    let n = s.batch * s.channels * s.hw;
    let (x, gamma, beta) = (noise(n, 1), noise(64, 2), noise(64, 3));
    let want = normed(&wide(&x), &wide(&gamma), &wide(&beta), s);
    on_each_isa(|isa| {
        let mut y = vec![f32::NAN; n];
        group_norm::forward(&x, &gamma, &beta, s, &mut y);
        assert_close(&format!("{isa:?}"), &y, &want, FORWARD);
    });
}

fn softmax64(x: &[f64], row: usize) -> Vec<f64> {
    x.chunks(row)
        .flat_map(|row| {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = row.iter().map(|v| (v - most).exp()).collect();
            let total: f64 = e.iter().sum();
            e.into_iter().map(move |v| v / total)
        })
        .collect()
}

#[test]
fn softmax_matches_its_definition_and_differences() {
    for (rows, row) in [(1, 1), (3, 5), (2, 16), (4, 49), (2, 77)] {
        let x: Vec<f32> = noise(rows * row, 1).iter().map(|v| v * 4.0).collect();
        let gy = noise(rows * row, 2);
        let want = softmax64(&wide(&x), row);
        let want_gx = differences(&wide(&x), &gy, |x| softmax64(x, row));
        on_each_isa(|isa| {
            let (mut y, mut gx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            softmax::forward(&x, row, &mut y);
            softmax::backward(&y, &gy, row, &mut gx);
            assert_close(&format!("softmax {row} {isa:?}"), &y, &want, FORWARD);
            // a row of one has no gradient, and nothing to be relative to
            if row > 1 {
                assert_close(
                    &format!("softmax gradient {row} {isa:?}"),
                    &gx,
                    &want_gx,
                    GRADIENT,
                );
            }
        });
    }
}

#[test]
fn softmax_of_many_rows_matches() {
    let x = noise(3000 * 64, 1);
    let want = softmax64(&wide(&x), 64);
    on_each_isa(|_| {
        let mut y = vec![f32::NAN; x.len()];
        softmax::forward(&x, 64, &mut y);
        assert_close("softmax", &y, &want, FORWARD);
    });
}

#[test]
fn softmax_of_masked_and_broken_rows() {
    on_each_isa(|isa| {
        let mut y = vec![0.0; 40];
        let mut x = noise(40, 1);
        x[3] = f32::NEG_INFINITY;
        x[25] = f32::NAN;
        softmax::forward(&x, 20, &mut y);
        assert!(y[3] == 0.0, "{isa:?}: a masked element got {}", y[3]);
        assert!((y[..20].iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(
            y[20..].iter().all(|v| v.is_nan()),
            "{isa:?}: a NaN got lost"
        );
    });
}

#[test]
fn upsampling_repeats_and_its_gradient_sums() {
    for (planes, h, w) in [(1, 1, 1), (3, 4, 5), (40, 28, 28)] {
        let x = noise(planes * h * w, 1);
        let mut y = vec![f32::NAN; 4 * x.len()];
        upsample2x::forward(&x, planes, h, w, &mut y);
        for (i, v) in y.iter().enumerate() {
            let (p, row, column) = (i / (4 * h * w), i / (2 * w) % (2 * h), i % (2 * w));
            assert_eq!(*v, x[(p * h + row / 2) * w + column / 2]);
        }
        let gy = noise(y.len(), 2);
        let mut want = vec![0.0; x.len()];
        for (i, g) in gy.iter().enumerate() {
            let (p, row, column) = (i / (4 * h * w), i / (2 * w) % (2 * h), i % (2 * w));
            want[(p * h + row / 2) * w + column / 2] += f64::from(*g);
        }
        let mut gx = vec![f32::NAN; x.len()];
        upsample2x::backward(&gy, planes, h, w, &mut gx);
        assert_close("upsampling gradient", &gx, &want, GRADIENT);
    }
}

proptest! {
    #![proptest_config(cases(12))]
    #[test]
    fn any_group_norm_matches(
        batch in 1usize..3, per in 1usize..5, groups in 1usize..5, hw in 3usize..40, silu in any::<bool>(),
    ) {
        check_group_norm(group_norm::Shape { batch, channels: per * groups, hw, groups, eps: 1e-5, silu });
    }
}
