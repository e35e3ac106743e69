//! Every operation's gradients against central differences of its forward pass, nothing for what is frozen, and the same
//! result with kept weights as without.

use burn::tensor::{Device, Tensor};
use depurate_diffusion::ops::{
    self, Activation, AdamStep, KeptWeights, Moved, Norm, NormConv, Stride,
};

use crate::{Loss, filled, read, tensor, weighted};

/// Gradients with respect to every operand against central differences; then each operand alone is tracked.
fn check(name: &str, operands: &[Vec<f32>], loss: Loss<'_>) {
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let flat = |values: &[f32], device: &Device| tensor(values, [values.len()], device);
    let gradients = |tracked: &dyn Fn(usize) -> bool| -> Vec<Option<Vec<f32>>> {
        let inputs: Vec<Tensor<1>> = (0..operands.len())
            .map(|i| {
                let x = flat(&operands[i], &device);
                if tracked(i) { x.require_grad() } else { x }
            })
            .collect();
        let gradients = loss(&inputs).backward();
        inputs
            .iter()
            .map(|x| x.grad(&gradients).map(read))
            .collect()
    };
    let all = gradients(&|_| true);
    for (i, got) in all.iter().enumerate() {
        let got = got.as_ref().unwrap();
        let step = 5e-3;
        let value = |at: usize, by: f32| {
            let mut moved: Vec<Tensor<1>> = operands.iter().map(|x| flat(x, &plain)).collect();
            let mut values = operands[i].clone();
            values[at] += by;
            moved[i] = flat(&values, &plain);
            f64::from(loss(&moved).into_scalar::<f32>())
        };
        let want: Vec<f64> = (0..operands[i].len())
            .map(|at| (value(at, step) - value(at, -step)) / (2.0 * f64::from(step)))
            .collect();
        let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        let error = want
            .iter()
            .zip(got)
            .map(|(w, g)| (w - f64::from(*g)).powi(2));
        let error = error.sum::<f64>().sqrt();
        assert!(size > 0.0, "{name}: operand {i} does not matter");
        assert!(
            error < 5e-3 * size,
            "{name}: operand {i} is off by {}",
            error / size
        );
        let alone = gradients(&|j| j == i);
        for (j, gradient) in alone.iter().enumerate() {
            let want = (i == j).then(|| got.clone());
            assert_eq!(gradient, &want, "{name}: only {i} is tracked, {j} is asked");
        }
    }
}

#[test]
fn convolutions() {
    let (x, w) = (filled(2 * 9 * 30, 1), filled(8 * 9 * 9, 2));
    for stride in [Stride::One, Stride::TwoSymmetric, Stride::TwoAfterOnly] {
        let operands = [x.clone(), w.clone(), filled(8, 3)];
        check("conv3x3", &operands, &|o| {
            let (x, w) = (o[0].clone(), o[1].clone());
            let (x, w) = (x.reshape([2, 9, 6, 5]), w.reshape([8, 9, 3, 3]));
            weighted(ops::conv3x3(x, w, o[2].clone(), stride, None))
        });
    }
    check("conv3x3_image_bias", &[x, w, filled(16, 3)], &|o| {
        let (x, w) = (o[0].clone(), o[1].clone());
        let (x, w) = (x.reshape([2, 9, 6, 5]), w.reshape([8, 9, 3, 3]));
        let bias = o[2].clone().reshape([2, 8]);
        weighted(ops::conv3x3_image_bias(x, w, bias, None))
    });
    let operands = [filled(2 * 3 * 20, 1), filled(12, 2), filled(4, 3)];
    check("conv1x1", &operands, &|o| {
        let (x, w) = (o[0].clone(), o[1].clone());
        let (x, w) = (x.reshape([2, 3, 4, 5]), w.reshape([4, 3, 1, 1]));
        weighted(ops::conv1x1(x, w, o[2].clone()))
    });
    let operands = [filled(21, 1), filled(35, 2), filled(5, 3)];
    check("linear", &operands, &|o| {
        let (x, w) = (o[0].clone().reshape([3, 7]), o[1].clone().reshape([5, 7]));
        weighted(ops::linear(x, w, o[2].clone()))
    });
}

#[test]
fn normalisations() {
    for silu in [false, true] {
        let norm = Norm {
            groups: 3,
            eps: 1e-5,
            silu,
        };
        let operands = [filled(2 * 6 * 12, 1), filled(6, 2), filled(6, 3)];
        check("group_norm", &operands, &|o| {
            let x = o[0].clone().reshape([2, 6, 3, 4]);
            weighted(ops::group_norm(x, o[1].clone(), o[2].clone(), norm))
        });
    }
    for images in [1, 2] {
        let operands = [
            filled(2 * 9 * 12, 1),
            filled(9, 2),
            filled(9, 3),
            filled(8 * 81, 4),
            filled(8 * images, 5),
        ];
        check("norm_conv3x3", &operands, &|o| {
            let weights = NormConv {
                scale: o[1].clone(),
                shift: o[2].clone(),
                weight: o[3].clone().reshape([8, 9, 3, 3]),
                bias: o[4].clone().reshape([images, 8]),
            };
            let norm = Norm {
                groups: 3,
                eps: 1e-5,
                silu: true,
            };
            let x = o[0].clone().reshape([2, 9, 3, 4]);
            weighted(ops::norm_conv3x3(x, weights, norm, None))
        });
    }
    let operands = [filled(2 * 6 * 7, 1), filled(6, 2), filled(6, 3)];
    check("layer_norm", &operands, &|o| {
        let x = o[0].clone().reshape([2, 6, 7]);
        weighted(ops::layer_norm(x, o[1].clone(), o[2].clone(), 1e-5))
    });
}

#[test]
fn attentions() {
    let operands = [
        filled(2 * 4 * 6, 1),
        filled(2 * 4 * 5, 2),
        filled(2 * 4 * 5, 3),
    ];
    let split = |o: &[Tensor<1>]| {
        (
            o[0].clone().reshape([2, 4, 6]),
            o[1].clone().reshape([2, 4, 5]),
        )
    };
    check("attention", &operands, &|o| {
        let (q, k) = split(o);
        let v = o[2].clone().reshape([2, 4, 5]);
        weighted(ops::attention(q, k, v, 0.5))
    });
    // the map itself counts too, as a tap's loss would
    check("attention in two steps", &operands, &|o| {
        let (q, k) = split(o);
        let v = o[2].clone().reshape([2, 4, 5]);
        let map = ops::attention_map(q, k, 0.5);
        weighted(ops::attention_mix(map.clone(), v)) + weighted(map) * 3.0
    });
    let device = Device::flex();
    let o: Vec<Tensor<1>> = operands
        .iter()
        .map(|x| tensor(x, [x.len()], &device))
        .collect();
    let ((q, k), v) = (split(&o), o[2].clone().reshape([2, 4, 5]));
    let map = ops::attention_map(q.clone(), k.clone(), 0.5);
    let totals = read(map.clone().sum_dim(1).reshape([12]));
    assert!(totals.iter().all(|total| (total - 1.0).abs() < 1e-5));
    let difference = ops::attention_mix(map, v.clone()) - ops::attention(q, k, v, 0.5);
    assert!(difference.abs().max().into_scalar::<f32>() < 1e-5);
}

#[test]
fn pointwise() {
    for f in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        check("activation", &[filled(40, 1)], &|o| {
            weighted(ops::activation(o[0].clone(), f))
        });
    }
    check("geglu", &[filled(2 * 6 * 5, 1)], &|o| {
        weighted(ops::geglu(o[0].clone().reshape([2, 6, 5])))
    });
    check("add", &[filled(30, 1), filled(30, 2)], &|o| {
        weighted(ops::add(o[0].clone(), o[1].clone()))
    });
    check("join_channels", &[filled(24, 1), filled(36, 2)], &|o| {
        let (a, b) = (o[0].clone(), o[1].clone());
        let (a, b) = (a.reshape([2, 2, 2, 3]), b.reshape([2, 3, 2, 3]));
        weighted(ops::join_channels(a, b))
    });
    check("upsample2x", &[filled(24, 1)], &|o| {
        weighted(ops::upsample2x(o[0].clone().reshape([1, 2, 3, 4])))
    });
}

#[test]
fn a_sum_leaves_its_operands_alone() {
    let device = Device::flex();
    let (a, b) = (
        tensor(&[1.0, 2.0], [2], &device),
        tensor(&[10.0, 20.0], [2], &device),
    );
    assert_eq!(read(ops::add(a.clone(), b.clone())), [11.0, 22.0]);
    assert_eq!(read(ops::add(a.clone(), b.clone() * 1.0)), [11.0, 22.0]);
    assert_eq!((read(a), read(b)), (vec![1.0, 2.0], vec![10.0, 20.0]));
}

#[test]
fn kept_weights_follow_the_weights() {
    let device = Device::flex();
    let kept = KeptWeights::default();
    let x = tensor(&filled(9 * 30, 1), [1, 9, 6, 5], &device);
    let bias = tensor(&filled(8, 3), [8], &device);
    // the first layer's weights go and others may come to lie where they were
    for seed in [2, 4, 4, 5] {
        let w = tensor(&filled(8 * 9 * 9, seed), [8, 9, 3, 3], &device);
        let run = |kept| ops::conv3x3(x.clone(), w.clone(), bias.clone(), Stride::One, kept);
        let want = read(run(None));
        for _ in 0..2 {
            assert_eq!(read(run(Some(&kept))), want);
        }
    }
}

#[test]
fn an_optimiser_changes_only_what_it_gives_back() {
    let device = Device::flex();
    let flat = |values: &[f32]| tensor(values, [values.len()], &device);
    let (values, zeros) = (flat(&[1.0, -1.0]), flat(&[0.0, 0.0]));
    let at = Moved {
        values: values.clone(),
        first: zeros.clone(),
        second: zeros.clone(),
    };
    let step = AdamStep {
        gradient_scale: 1.0,
        beta_1: 0.9,
        beta_2: 0.999,
        correction_1: 0.1,
        correction_2: 0.001,
        epsilon: 1e-8,
        learning_rate: 0.5,
        weight_decay: 0.0,
    };
    let moved = ops::adam(at, flat(&[2.0, -4.0]), step);
    // the first step goes along the gradient's sign
    let got = read(moved.values);
    assert!(
        (got[0] - 0.5).abs() < 1e-4 && (got[1] + 0.5).abs() < 1e-4,
        "{got:?}"
    );
    assert_eq!(read(values.clone()), [1.0, -1.0]);
    assert_eq!(read(zeros), [0.0, 0.0]);
    let average = ops::average(values.clone(), flat(&[3.0, 3.0]), 0.75);
    assert_eq!(read(average), [1.5, 0.0]);
    assert_eq!(read(values.clone()), [1.0, -1.0]);
    assert_eq!(read(ops::sum_of_squares(values)), [2.0]);
}
