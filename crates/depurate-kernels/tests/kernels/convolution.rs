//! Convolutions against their definition in f64, on every instruction set of the machine.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::reference::{Plain, assert_close, cases, noise, on_each_isa};
use depurate_kernels::{ConvShape, Stride2Pad, bias_grad, conv1x1, conv3x3, conv3x3_stride2};
use proptest::prelude::*;

const FORWARD: f64 = 5e-6;
const GRADIENT: f64 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Three,
    ThreeStride2(Stride2Pad),
    One,
}

fn plain(kind: Kind, s: ConvShape) -> Plain {
    match kind {
        Kind::Three => Plain {
            s,
            kernel: 3,
            stride: 1,
            before: 1,
            out: (s.height, s.width),
        },
        Kind::ThreeStride2(pad) => {
            let (before, pads) = if pad == Stride2Pad::Symmetric {
                (1, 2)
            } else {
                (0, 1)
            };
            let size = |n: usize| (n + pads - 3) / 2 + 1;
            Plain {
                s,
                kernel: 3,
                stride: 2,
                before,
                out: (size(s.height), size(s.width)),
            }
        }
        Kind::One => Plain {
            s,
            kernel: 1,
            stride: 1,
            before: 0,
            out: (s.height, s.width),
        },
    }
}

/// Forward (with and without bias) and both gradients of one shape.
fn check(kind: Kind, s: ConvShape) {
    let p = plain(kind, s);
    let (x, w, bias) = (noise(p.x_len(), 1), noise(p.w_len(), 2), noise(s.c_out, 3));
    let gy = noise(p.y_len(), 4);
    let no_bias = vec![0.0; s.c_out];
    let (want_y, want_y0) = (p.forward(&x, &w, &bias), p.forward(&x, &w, &no_bias));
    let (want_gx, want_gw) = (p.input_grad(&gy, &w), p.weight_grad(&x, &gy));
    on_each_isa(|isa| {
        // what was there before must not matter
        let mut y = vec![f32::NAN; p.y_len()];
        let mut y0 = y.clone();
        let mut gx = vec![f32::NAN; p.x_len()];
        let mut gw = vec![f32::NAN; p.w_len()];
        match kind {
            Kind::Three => {
                conv3x3::forward(&x, &w, Some(&bias), s, &mut y);
                conv3x3::forward(&x, &w, None, s, &mut y0);
                conv3x3::input_grad(&gy, &w, s, &mut gx);
                conv3x3::weight_grad(&x, &gy, s, &mut gw);
            }
            Kind::ThreeStride2(pad) => {
                conv3x3_stride2::forward(&x, &w, Some(&bias), s, pad, &mut y);
                conv3x3_stride2::forward(&x, &w, None, s, pad, &mut y0);
                conv3x3_stride2::input_grad(&gy, &w, s, pad, &mut gx);
                conv3x3_stride2::weight_grad(&x, &gy, s, pad, &mut gw);
            }
            Kind::One => {
                conv1x1::forward(&x, &w, Some(&bias), s, &mut y);
                conv1x1::forward(&x, &w, None, s, &mut y0);
                conv1x1::input_grad(&gy, &w, s, &mut gx);
                conv1x1::weight_grad(&x, &gy, s, &mut gw);
            }
        }
        let name = |part: &str| format!("{kind:?} {s:?} {isa:?} {part}");
        assert_close(&name("forward"), &y, &want_y, FORWARD);
        assert_close(&name("forward without bias"), &y0, &want_y0, FORWARD);
        assert_close(&name("input gradient"), &gx, &want_gx, GRADIENT);
        assert_close(&name("weight gradient"), &gw, &want_gw, GRADIENT);
    });
}

fn shape(batch: usize, c_in: usize, c_out: usize, height: usize, width: usize) -> ConvShape {
    ConvShape {
        batch,
        c_in,
        c_out,
        height,
        width,
    }
}

const SHAPES: [(usize, usize, usize, usize, usize); 18] = [
    (1, 1, 1, 1, 1),
    (1, 1, 16, 7, 7),
    (2, 3, 32, 28, 28),
    (2, 32, 1, 28, 28),
    (2, 20, 3, 9, 11),
    (1, 17, 23, 5, 6),
    (3, 16, 16, 4, 4),
    (5, 64, 48, 4, 4),
    (3, 32, 64, 7, 7),
    (2, 33, 9, 14, 14),
    (1, 96, 80, 8, 8),
    (2, 8, 8, 32, 32),
    (1, 12, 40, 3, 18),
    (1, 9, 130, 2, 2),
    (1, 4, 5, 40, 3),
    (7, 16, 24, 13, 10),
    // many channels and few pixels
    (1, 48, 50, 4, 4),
    (1, 90, 96, 5, 4),
];

#[test]
fn stride_1_matches_its_definition() {
    for (b, i, o, h, w) in SHAPES {
        check(Kind::Three, shape(b, i, o, h, w));
    }
}

/// A bias for every image, and weights that are transformed once.
#[test]
fn biases_of_images_and_kept_weights_change_nothing_else() {
    for (b, i, o, h, w) in SHAPES {
        let s = shape(b, i, o, h, w);
        let p = plain(Kind::Three, s);
        let (x, weights, bias) = (noise(p.x_len(), 1), noise(p.w_len(), 2), noise(b * o, 3));
        let gy = noise(p.y_len(), 4);
        let mut want = p.forward(&x, &weights, &vec![0.0; o]);
        for (at, y) in want.iter_mut().enumerate() {
            *y += f64::from(bias[at / (h * w)]);
        }
        let want_gx = p.input_grad(&gy, &weights);
        on_each_isa(|isa| {
            let kept = conv3x3::Transformed::default();
            for turn in 0..2 {
                let (mut y, mut gx) = (vec![f32::NAN; p.y_len()], vec![f32::NAN; p.x_len()]);
                conv3x3::forward_keeping(&x, &weights, Some(&kept), Some(&bias), s, &mut y);
                conv3x3::input_grad_keeping(&gy, &weights, Some(&kept), s, &mut gx);
                assert_close(&format!("{s:?} {isa:?} {turn}"), &y, &want, FORWARD);
                assert_close(&format!("{s:?} {isa:?} {turn} gx"), &gx, &want_gx, GRADIENT);
            }
        });
    }
}

#[test]
fn stride_2_matches_its_definition() {
    for (b, i, o, h, w) in SHAPES {
        check(
            Kind::ThreeStride2(Stride2Pad::Symmetric),
            shape(b, i, o, h, w),
        );
        if h > 1 && w > 1 {
            check(
                Kind::ThreeStride2(Stride2Pad::AfterOnly),
                shape(b, i, o, h, w),
            );
        }
    }
}

#[test]
fn pointwise_matches_its_definition() {
    for (b, i, o, h, w) in SHAPES {
        check(Kind::One, shape(b, i, o, h, w));
    }
    // more pixels than are turned to channels-last at a time
    check(Kind::One, shape(1, 5, 7, 30, 41));
}

#[test]
fn images_of_several_bands_match() {
    check(Kind::Three, shape(1, 6, 5, 150, 90));
    check(
        Kind::ThreeStride2(Stride2Pad::AfterOnly),
        shape(1, 24, 20, 61, 95),
    );
}

#[test]
fn outputs_are_as_non_finite_as_the_plain_sum() {
    for (i, o) in [(16, 16), (1, 20), (20, 1)] {
        let s = shape(2, i, o, 10, 9);
        let p = plain(Kind::Three, s);
        for poison in [f32::NAN, f32::INFINITY] {
            let (mut x, w, bias) = (noise(p.x_len(), 5), noise(p.w_len(), 6), noise(o, 7));
            x[p.x_len() / 2 + 13] = poison;
            let mut gy = noise(p.y_len(), 8);
            let want_y = p.forward(&x, &w, &bias);
            let want_gw = p.weight_grad(&x, &gy);
            on_each_isa(|isa| {
                let mut y = vec![0.0; p.y_len()];
                let mut gw = vec![0.0; p.w_len()];
                conv3x3::forward(&x, &w, Some(&bias), s, &mut y);
                conv3x3::weight_grad(&x, &gy, s, &mut gw);
                for (got, want) in y.iter().zip(&want_y).chain(gw.iter().zip(&want_gw)) {
                    assert!(
                        want.is_finite() || !got.is_finite(),
                        "{isa:?} {i}->{o}: {want} became {got}"
                    );
                }
                // the other image is not touched
                assert!(y[..p.y_len() / 2].iter().all(|v| v.is_finite()));
            });
            gy[p.y_len() / 3] = poison;
            let want_gx = p.input_grad(&gy, &w);
            on_each_isa(|isa| {
                let mut gx = vec![0.0; p.x_len()];
                conv3x3::input_grad(&gy, &w, s, &mut gx);
                for (got, want) in gx.iter().zip(&want_gx) {
                    assert!(
                        want.is_finite() || !got.is_finite(),
                        "{isa:?} {i}->{o}: {want} became {got}"
                    );
                }
            });
        }
    }
}

#[test]
fn results_are_repeatable_to_the_last_bit() {
    for s in [
        shape(9, 32, 48, 14, 14),
        shape(5, 3, 32, 28, 28),
        shape(9, 64, 64, 4, 4),
    ] {
        let p = plain(Kind::Three, s);
        let (x, w, gy) = (
            noise(p.x_len(), 1),
            noise(p.w_len(), 2),
            noise(p.y_len(), 3),
        );
        let run = || {
            let mut y = vec![0.0; p.y_len()];
            let (mut gx, mut gw) = (vec![0.0; p.x_len()], vec![0.0; p.w_len()]);
            conv3x3::forward(&x, &w, None, s, &mut y);
            conv3x3::input_grad(&gy, &w, s, &mut gx);
            conv3x3::weight_grad(&x, &gy, s, &mut gw);
            (y, gx, gw)
        };
        let first = run();
        for _ in 0..5 {
            assert!(run() == first);
        }
    }
}

#[test]
fn bias_gradient_sums_over_batch_and_pixels() {
    for (batch, channels, hw) in [(1, 1, 1), (3, 5, 49), (2, 33, 784), (4, 16, 16)] {
        let gy = noise(batch * channels * hw, 1);
        let mut want = vec![0.0; channels];
        for (i, g) in gy.iter().enumerate() {
            want[i / hw % channels] += f64::from(*g);
        }
        on_each_isa(|_| {
            let mut out = vec![f32::NAN; channels];
            bias_grad(&gy, batch, channels, hw, &mut out);
            assert_close("bias gradient", &out, &want, GRADIENT);
        });
    }
}

#[test]
#[should_panic(expected = "y has 3 elements")]
fn wrong_lengths_panic() {
    conv3x3::forward(
        &[0.0; 4],
        &[0.0; 9],
        None,
        shape(1, 1, 1, 2, 2),
        &mut [0.0; 3],
    );
}

proptest! {
    #![proptest_config(cases(40))]
    #[test]
    fn any_shape_matches(
        batch in 1usize..4, c_in in 1usize..40, c_out in 1usize..40, height in 2usize..18, width in 2usize..18,
        kind in prop_oneof![
            Just(Kind::Three),
            Just(Kind::One),
            Just(Kind::ThreeStride2(Stride2Pad::Symmetric)),
            Just(Kind::ThreeStride2(Stride2Pad::AfterOnly)),
        ],
    ) {
        check(kind, shape(batch, c_in, c_out, height, width));
    }
}
