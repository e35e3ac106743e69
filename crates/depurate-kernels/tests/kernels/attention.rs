//! Attention against its definition in f64, forward and gradients, on every instruction set of the machine.

use depurate_kernels::attention::{Saved, Shape, backward, forward, map, map_grad, mix, mix_grad};
use proptest::prelude::*;

use crate::reference::{assert_close, cases, noise, on_each_isa};

const FORWARD: f64 = 5e-6;
const GRADIENT: f64 = 1e-5;

/// Output, map, and gradients w.r.t. q, k and v of an output's gradient and a map's.
struct Plain {
    y: Vec<f64>,
    map: Vec<f64>,
    gq: Vec<f64>,
    gk: Vec<f64>,
    gv: Vec<f64>,
}

fn plain(q: &[f32], k: &[f32], v: &[f32], gy: &[f32], gmap: &[f32], s: Shape) -> Plain {
    let (d, nq, nk, scale) = (s.width, s.queries, s.keys, f64::from(s.scale));
    let mut out = Plain {
        y: vec![0.0; q.len()],
        map: vec![0.0; s.heads * nq * nk],
        gq: vec![0.0; q.len()],
        gk: vec![0.0; k.len()],
        gv: vec![0.0; k.len()],
    };
    for head in 0..s.heads {
        let of = |x: &[f32], c: usize, i: usize, n: usize| f64::from(x[(head * d + c) * n + i]);
        for i in 0..nq {
            let score = |j: usize| {
                scale
                    * (0..d)
                        .map(|c| of(q, c, i, nq) * of(k, c, j, nk))
                        .sum::<f64>()
            };
            let scores: Vec<f64> = (0..nk).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / total).collect();
            let place = |j: usize| (head * nk + j) * nq + i;
            for (j, p) in p.iter().enumerate() {
                out.map[place(j)] = *p;
            }
            let gp: Vec<f64> = (0..nk)
                .map(|j| {
                    let by_output: f64 = (0..d).map(|c| of(v, c, j, nk) * of(gy, c, i, nq)).sum();
                    by_output + f64::from(gmap[place(j)])
                })
                .collect();
            let dot: f64 = p.iter().zip(&gp).map(|(p, g)| p * g).sum();
            for j in 0..nk {
                let gs = p[j] * (gp[j] - dot) * scale;
                for c in 0..d {
                    let (at_q, at_k) = ((head * d + c) * nq + i, (head * d + c) * nk + j);
                    out.y[at_q] += of(v, c, j, nk) * p[j];
                    out.gv[at_k] += of(gy, c, i, nq) * p[j];
                    out.gq[at_q] += gs * of(k, c, j, nk);
                    out.gk[at_k] += gs * of(q, c, i, nq);
                }
            }
        }
    }
    out
}

fn check(s: Shape, sharpness: f32) {
    let (nq, nk) = (s.heads * s.width * s.queries, s.heads * s.width * s.keys);
    let q: Vec<f32> = noise(nq, 1).iter().map(|v| v * sharpness).collect();
    let (k, v, gy) = (noise(nk, 2), noise(nk, 3), noise(nq, 4));
    let no_gmap = vec![0.0; s.heads * s.queries * s.keys];
    let want = plain(&q, &k, &v, &gy, &no_gmap, s);
    on_each_isa(|isa| {
        let (mut y, mut lse) = (vec![f32::NAN; nq], vec![f32::NAN; s.heads * s.queries]);
        forward(&q, &k, &v, s, &mut y, &mut lse);
        assert_close(&format!("{s:?} {isa:?}"), &y, &want.y, FORWARD);
        let (mut gq, mut gk, mut gv) = (vec![f32::NAN; nq], vec![f32::NAN; nk], vec![f32::NAN; nk]);
        let saved = Saved {
            q: &q,
            k: &k,
            v: &v,
            y: &y,
            lse: &lse,
        };
        backward(saved, &gy, s, &mut gq, &mut gk, &mut gv);
        assert_close(&format!("gv {s:?} {isa:?}"), &gv, &want.gv, GRADIENT);
        // one key takes all attention whatever it is: nothing to be relative to
        if s.keys > 1 {
            assert_close(&format!("gq {s:?} {isa:?}"), &gq, &want.gq, GRADIENT);
            assert_close(&format!("gk {s:?} {isa:?}"), &gk, &want.gk, GRADIENT);
        }
    });
}

/// The same with the map, whose gradient counts too.
fn check_with_map(s: Shape) {
    let (nq, nk) = (s.heads * s.width * s.queries, s.heads * s.width * s.keys);
    let (q, k, v, gy) = (noise(nq, 1), noise(nk, 2), noise(nk, 3), noise(nq, 4));
    let gmap = noise(s.heads * s.queries * s.keys, 5);
    let want = plain(&q, &k, &v, &gy, &gmap, s);
    on_each_isa(|isa| {
        let (mut y, mut p) = (vec![f32::NAN; nq], vec![f32::NAN; gmap.len()]);
        map(&q, &k, s, &mut p);
        mix(&p, &v, s, &mut y);
        let (mut gq, mut gk, mut gv) = (vec![f32::NAN; nq], vec![f32::NAN; nk], vec![f32::NAN; nk]);
        let mut gp = vec![f32::NAN; gmap.len()];
        mix_grad(&p, &v, &gy, s, &mut gp, &mut gv);
        for (to, of_map) in gp.iter_mut().zip(&gmap) {
            *to += of_map;
        }
        map_grad((&q, &k, &p), &gp, s, &mut gq, &mut gk);
        let name = |part: &str| format!("{part} {s:?} {isa:?}");
        assert_close(&name("y"), &y, &want.y, FORWARD);
        assert_close(&name("map"), &p, &want.map, FORWARD);
        assert_close(&name("gv"), &gv, &want.gv, GRADIENT);
        // one key takes all attention whatever it is: nothing to be relative to
        if s.keys > 1 {
            assert_close(&name("gq"), &gq, &want.gq, GRADIENT);
            assert_close(&name("gk"), &gk, &want.gk, GRADIENT);
        }
    });
}

fn shape(heads: usize, width: usize, queries: usize, keys: usize) -> Shape {
    Shape {
        heads,
        width,
        queries,
        keys,
        scale: (width as f32).powf(-0.5),
    }
}

#[test]
fn odd_sizes_match_the_definition() {
    for (heads, width, queries, keys) in [
        (1, 1, 1, 1),
        (2, 8, 49, 49),
        (3, 40, 70, 77),
        (1, 33, 65, 129),
        (2, 16, 64, 128),
        (1, 5, 3, 300),
    ] {
        check(shape(heads, width, queries, keys), 1.0);
        check_with_map(shape(heads, width, queries, keys));
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    check(shape(2, 8, 20, 200), 30.0);
}

#[test]
fn what_is_not_finite_does_not_get_lost() {
    let s = shape(1, 4, 5, 6);
    let (mut q, k, v) = (noise(20, 1), noise(24, 2), noise(24, 3));
    q[2] = f32::NAN;
    on_each_isa(|isa| {
        let (mut y, mut lse) = (vec![0.0; 20], vec![0.0; 5]);
        forward(&q, &k, &v, s, &mut y, &mut lse);
        assert!(y[2].is_nan() && lse[2].is_nan(), "{isa:?}");
        assert!(y[1].is_finite(), "{isa:?}");
    });
}

proptest! {
    #![proptest_config(cases(24))]
    #[test]
    fn any_size_matches(heads in 1usize..3, width in 1usize..40, queries in 1usize..140, keys in 2usize..140) {
        check(shape(heads, width, queries, keys), 1.0);
        check_with_map(shape(heads, width, queries, keys));
    }
}
