//! The kernels and the framework's own operations give the same values and gradients.

use burn::tensor::{Device, Tensor};
use depurate_diffusion::ops::{
    self, Activation, AdamStep, Moved, Norm, NormConv, Stride, framework,
};

use crate::{Loss, filled, read, tensor, weighted};

/// Relative to the largest value; a loss is a sum of hundreds of outputs that cancel.
const TOLERANCE: f32 = 1e-4;

fn assert_close(name: &str, ours: &[f32], theirs: &[f32]) {
    let size = theirs.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= TOLERANCE * size, "{name}: {a} and {b}");
    }
}

fn agree(name: &str, operands: &[Vec<f32>], ours: Loss<'_>, theirs: Loss<'_>) {
    let device = Device::flex().autodiff();
    let run = |loss: Loss<'_>| {
        let inputs: Vec<Tensor<1>> = operands
            .iter()
            .map(|x| tensor(x, [x.len()], &device).require_grad())
            .collect();
        let value = loss(&inputs);
        let gradients = value.clone().backward();
        let mut all = vec![read(value)];
        all.extend(inputs.iter().map(|x| read(x.grad(&gradients).unwrap())));
        all
    };
    for (ours, theirs) in run(ours).iter().zip(&run(theirs)) {
        assert_close(name, ours, theirs);
    }
}

#[test]
fn convolutions() {
    let (x, w) = (filled(2 * 9 * 30, 1), filled(8 * 9 * 9, 2));
    let image = |o: &[Tensor<1>]| {
        (
            o[0].clone().reshape([2, 9, 6, 5]),
            o[1].clone().reshape([8, 9, 3, 3]),
        )
    };
    for stride in [Stride::One, Stride::TwoSymmetric, Stride::TwoAfterOnly] {
        let run = |o: &[Tensor<1>], ours: bool| {
            let ((x, w), b) = (image(o), o[2].clone());
            weighted(if ours {
                ops::conv3x3(x, w, b, stride, None)
            } else {
                framework::conv3x3(x, w, b, stride)
            })
        };
        let operands = [x.clone(), w.clone(), filled(8, 3)];
        agree("conv3x3", &operands, &|o| run(o, true), &|o| run(o, false));
    }
    let run = |o: &[Tensor<1>], ours: bool| {
        let ((x, w), b) = (image(o), o[2].clone().reshape([2, 8]));
        weighted(if ours {
            ops::conv3x3_image_bias(x, w, b, None)
        } else {
            framework::conv3x3_image_bias(x, w, b)
        })
    };
    let operands = [x.clone(), w.clone(), filled(16, 3)];
    agree("image bias", &operands, &|o| run(o, true), &|o| {
        run(o, false)
    });
    let run = |o: &[Tensor<1>], ours: bool| {
        let (x, w) = image(o);
        let weights = NormConv {
            scale: o[2].clone(),
            shift: o[3].clone(),
            weight: w,
            bias: o[4].clone().reshape([1, 8]),
        };
        let norm = Norm {
            groups: 3,
            eps: 1e-5,
            silu: true,
        };
        weighted(if ours {
            ops::norm_conv3x3(x, weights, norm, None)
        } else {
            framework::norm_conv3x3(x, weights, norm)
        })
    };
    let operands = [x, w, filled(9, 3), filled(9, 4), filled(8, 5)];
    agree("norm_conv3x3", &operands, &|o| run(o, true), &|o| {
        run(o, false)
    });
    let pointwise = |o: &[Tensor<1>]| {
        let (x, w) = (o[0].clone(), o[1].clone());
        (
            x.reshape([2, 3, 4, 5]),
            w.reshape([4, 3, 1, 1]),
            o[2].clone(),
        )
    };
    agree(
        "conv1x1",
        &[filled(120, 1), filled(12, 2), filled(4, 3)],
        &|o| {
            let (x, w, b) = pointwise(o);
            weighted(ops::conv1x1(x, w, b))
        },
        &|o| {
            let (x, w, b) = pointwise(o);
            weighted(framework::conv1x1(x, w, b))
        },
    );
    let rows = |o: &[Tensor<1>]| (o[0].clone().reshape([3, 7]), o[1].clone().reshape([5, 7]));
    agree(
        "linear",
        &[filled(21, 1), filled(35, 2), filled(5, 3)],
        &|o| weighted(ops::linear(rows(o).0, rows(o).1, o[2].clone())),
        &|o| weighted(framework::linear(rows(o).0, rows(o).1, o[2].clone())),
    );
}

#[test]
fn layer_norm_and_attention() {
    let x = |o: &[Tensor<1>]| o[0].clone().reshape([2, 6, 7]);
    agree(
        "layer_norm",
        &[filled(84, 1), filled(6, 2), filled(6, 3)],
        &|o| weighted(ops::layer_norm(x(o), o[1].clone(), o[2].clone(), 1e-5)),
        &|o| {
            weighted(framework::layer_norm(
                x(o),
                o[1].clone(),
                o[2].clone(),
                1e-5,
            ))
        },
    );
    let operands = [filled(48, 1), filled(40, 2), filled(40, 3)];
    let (q, k) = (
        |o: &[Tensor<1>]| o[0].clone().reshape([2, 4, 6]),
        |o: &[Tensor<1>], i: usize| o[i].clone().reshape([2, 4, 5]),
    );
    agree(
        "attention",
        &operands,
        &|o| weighted(ops::attention(q(o), k(o, 1), k(o, 2), 0.5)),
        &|o| weighted(framework::attention(q(o), k(o, 1), k(o, 2), 0.5)),
    );
    agree(
        "attention with its map",
        &operands,
        &|o| {
            weighted(ops::attention_mix(
                ops::attention_map(q(o), k(o, 1), 0.5),
                k(o, 2),
            ))
        },
        &|o| weighted(framework::attention(q(o), k(o, 1), k(o, 2), 0.5)),
    );
}

#[test]
fn pointwise() {
    for f in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        agree(
            "activation",
            &[filled(40, 1)],
            &|o| weighted(ops::activation(o[0].clone() * 3.0, f)),
            &|o| weighted(framework::activation(o[0].clone() * 3.0, f)),
        );
    }
    agree(
        "geglu",
        &[filled(60, 1)],
        &|o| weighted(ops::geglu(o[0].clone().reshape([2, 6, 5]))),
        &|o| weighted(framework::geglu(o[0].clone().reshape([2, 6, 5]))),
    );
    agree(
        "upsample2x",
        &[filled(24, 1)],
        &|o| weighted(ops::upsample2x(o[0].clone().reshape([1, 2, 3, 4]))),
        &|o| weighted(framework::upsample2x(o[0].clone().reshape([1, 2, 3, 4]))),
    );
}

#[test]
fn adam() {
    let device = Device::flex();
    let flat = |seed| tensor(&filled(20, seed), [20], &device);
    let at = || Moved {
        values: flat(1),
        first: flat(2),
        second: flat(3).abs(),
    };
    let step = AdamStep {
        gradient_scale: 0.7,
        beta_1: 0.9,
        beta_2: 0.99,
        correction_1: 0.4,
        correction_2: 0.2,
        epsilon: 1e-6,
        learning_rate: 0.1,
        weight_decay: 0.3,
    };
    let (ours, theirs) = (
        ops::adam(at(), flat(4), step),
        framework::adam(at(), flat(4), step),
    );
    assert_close("values", &read(ours.values), &read(theirs.values));
    assert_close("first", &read(ours.first), &read(theirs.first));
    assert_close("second", &read(ours.second), &read(theirs.second));
}
