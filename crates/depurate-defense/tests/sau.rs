//! SAU: the edit of latents by hand-made numbers, and the gradients of its form in the weights.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_defense::repair::text::{
    Blend, Footprint, Latents, Material, Place, SauWeightsParams, TextPatient, TextTrigger,
    Trained, Unlearning, sau_latent,
    sau_weights::{self, SauWeights, Terms},
};
use depurate_diffusion::{
    TextToImage,
    module_weights::{flat_gradients, flat_values},
    noise::{NoiseSource, SeedTree},
    unet2d_condition::UNet2DCondition,
};
use depurate_testkit::{
    gradients::{check, shifted},
    miniature::{captions, golden_model},
};
use proptest::prelude::*;
use support::with_cx;

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Two channels, two by two places: the trigger has changed the first two, and the first and the third attend to it.
fn footprint() -> Footprint {
    let zeros = Tensor::zeros([1, 2, 2, 2], &Device::flex());
    Footprint {
        difference: tensor(&[1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [1, 2, 2, 2]),
        change: tensor(&[1.0, 1.0, 0.0, 0.0], [2, 2]),
        attention: tensor(&[1.0, 0.0, 1.0, 0.0], [2, 2]),
        triggered: zeros.clone(),
        clean: zeros,
    }
}

#[test]
fn latents_are_blended_as_the_equations_say() {
    let clean = tensor(&[1.0; 8], [1, 2, 2, 2]);
    // the cosine with the trigger's change: 1, 1, none, none
    let triggered = tensor(&[3.0, 3.0, 3.0, 3.0, 0.0, 3.0, 3.0, 3.0], [1, 2, 2, 2]);
    let mended = |blend| {
        let mended = sau_latent(&triggered, &clean, &footprint(), blend).unwrap();
        numbers(mended)
    };
    let soft = |x: f64| 1.0 / (1.0 + (-12.0 * x).exp());
    let (on, off) = (soft(0.5), soft(-0.5));
    // eq. (1) and (2), whose last blur changes 7e-6 of a value at most
    let published = |h: f64, p: f64, s: f64| h * (1.0 - p) * (1.0 - s) + p + 0.5 * s;
    // eq. (3) and (4); the change's size is above its median at the first two places
    let corrected = |h: f64, p: f64, s: f64| {
        let m = 1.0 - (1.0 - p) * (1.0 - 0.5 * s);
        (1.0 - m) * h + m
    };
    let want = |of: &dyn Fn(f64, f64, f64) -> f64, p: [f64; 4], s: [f64; 4]| -> Vec<f64> {
        let h = numbers(triggered.clone());
        (0..8).map(|i| of(h[i], p[i % 4], s[i % 4])).collect()
    };
    let near = |got: &[f64], want: &[f64]| {
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() < 1e-4, "{got:?} {want:?}");
        }
    };
    let want_published = want(&published, [on, on, off, off], [on, off, on, off]);
    near(&mended(Blend::Published), &want_published);
    assert!(want_published[0] > 1.49, "both masks on: half too much");
    let secondary = [soft(0.7), soft(-0.3), soft(0.7), soft(-0.3)];
    let want_corrected = want(&corrected, [on, on, 0.0, 0.0], secondary);
    near(&mended(Blend::Corrected), &want_corrected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    /// The corrected weights are a partition of unity: what is mended lies between the two latents.
    #[test]
    fn corrected_blends_lie_between(seed in any::<u64>()) {
        let noise = |name: &str, shape: [usize; 4]| {
            let mut source = SeedTree::new(seed).child(name, 0).noise(0, shape[0]);
            source.normal(shape, &Device::flex()).unwrap()
        };
        let (triggered, clean) = (noise("a", [2, 4, 6, 5]), noise("b", [2, 4, 6, 5]));
        let map = |name: &str| noise(name, [1, 1, 6, 5]).abs().clamp(0.0, 1.0).reshape([6, 5]);
        let footprint = Footprint {
            difference: noise("d", [1, 4, 6, 5]),
            change: map("c"),
            attention: map("e"),
            triggered: triggered.clone(),
            clean: clean.clone(),
        };
        let mended = sau_latent(&triggered, &clean, &footprint, Blend::Corrected).unwrap();
        for ((m, a), b) in numbers(mended).into_iter().zip(numbers(triggered.clone())).zip(numbers(clean)) {
            prop_assert!(m >= a.min(b) - 1e-5 && m <= a.max(b) + 1e-5, "{m} of {a} and {b}");
        }
        let same = sau_latent(&triggered, &triggered, &footprint, Blend::Corrected).unwrap();
        for (m, a) in numbers(same).into_iter().zip(numbers(triggered)) {
            prop_assert!((m - a).abs() < 1e-5);
        }
    }
}

#[test]
fn latents_of_other_shapes_are_refused() {
    let a = tensor(&[0.0; 8], [1, 2, 2, 2]);
    let b = tensor(&[0.0; 4], [1, 1, 2, 2]);
    assert!(sau_latent(&a, &b, &footprint(), Blend::Corrected).is_err());
    assert!(sau_latent(&b, &b, &footprint(), Blend::Published).is_err());
}

fn material(model: &TextToImage) -> Material {
    let trigger = TextTrigger::parse("tq", None, Place::Start).unwrap();
    let prompts = captions();
    let patient = TextPatient {
        suspect: model,
        trigger: &trigger,
        prompts: &prompts,
        legitimate: &[],
        seed: 1,
    };
    with_cx(3, |cx| Material::new(&patient, Latents::Noise, cx)).unwrap()
}

fn params() -> SauWeightsParams {
    SauWeightsParams {
        pairs: 3,
        drawing: (3, 2.0),
        unlearning: Unlearning {
            steps: 30,
            batch: 2,
            check_every: 10,
            learning_rate: 1e-3,
            ema_decay: 0.5,
            trained: Trained::CrossAttention,
        },
        ..SauWeightsParams::default()
    }
}

#[test]
fn a_footprint_is_of_the_pairs_that_it_was_taken_from() {
    let model = golden_model(&Device::flex().autodiff());
    let material = material(&model);
    let footprint = with_cx(3, |cx| {
        Footprint::of(&material, 3, (3, 2.0), &SeedTree::new(2), cx)
    })
    .unwrap();
    let (h, clean) = (&footprint.triggered, &footprint.clean);
    let want = numbers((h.clone() - clean.clone()).mean_dim(0));
    for (a, b) in numbers(footprint.difference.clone()).iter().zip(&want) {
        assert!((a - b).abs() < 1e-6);
    }
    assert!(
        want.iter().any(|v| v.abs() > 1e-6),
        "the trigger does nothing"
    );
    let change = numbers(footprint.change.clone());
    let [_, channels, height, width] = h.dims();
    // D by hand, up to its range
    let (a, b) = (numbers(h.clone()), numbers(clean.clone()));
    let places = height * width;
    let by_hand: Vec<f64> = (0..places)
        .map(|x| {
            let one = |i: usize| {
                let at = |c: usize| (i * channels + c) * places + x;
                let squares = (0..channels).map(|c| (a[at(c)] - b[at(c)]).powi(2));
                (squares.sum::<f64>() / channels as f64).sqrt()
            };
            (0..3).map(one).sum::<f64>() / 3.0
        })
        .collect();
    let (least, most) = by_hand
        .iter()
        .fold((f64::MAX, f64::MIN), |(l, m), &v| (l.min(v), m.max(v)));
    for (got, v) in change.iter().zip(&by_hand) {
        assert!((got - (v - least) / (most - least)).abs() < 1e-4);
    }
    let attention = numbers(footprint.attention.clone());
    assert!(attention.iter().all(|v| (-1e-6..=1.0 + 1e-6).contains(v)));
    assert!(attention.iter().any(|v| *v > 0.1));
    let m = numbers(sau_weights::mask(&footprint));
    assert!(m.iter().all(|v| (0.0..=1.0).contains(v)));
}

#[test]
fn a_mask_of_most_places_is_of_all() {
    let whole = Footprint {
        change: tensor(&[1.0, 1.0, 0.9, 0.0], [2, 2]),
        ..footprint()
    };
    assert_eq!(numbers(sau_weights::mask(&whole)), [1.0; 4]);
    let one = Footprint {
        change: tensor(&[1.0, 0.0, 0.0, 0.0], [2, 2]),
        ..footprint()
    };
    let some = numbers(sau_weights::mask(&one));
    // the third place is attended to only: half of the weight
    let near = |got: f64, want: f64| (got - want).abs() < 0.02;
    assert!(
        near(some[0], 1.0) && near(some[2], 0.5) && some[3] < 0.05,
        "{some:?}"
    );
}

const GROUPS: [&str; 3] = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block",
    "conv_in",
];

fn uneven(model: &TextToImage) -> Tensor<2> {
    let shape = model.latent_shape();
    let places = shape.height * shape.width;
    let values: Vec<f32> = (0..places).map(|i| (i % 3) as f32 / 2.0).collect();
    tensor(&values, [shape.height, shape.width])
}

#[test]
fn every_term_has_the_gradient_of_its_value() {
    let model = golden_model(&Device::flex().autodiff());
    let (material, params) = (material(&model), params());
    let student = shifted(model.unet().clone(), 0.02);
    let lesson = SauWeights::new(&material, &params, uneven(&model), 4).unwrap();
    let term = |student: &UNet2DCondition, of: fn(Terms) -> Tensor<1>| {
        of(lesson.terms(student, 2).unwrap())
    };
    for of in [
        (|terms| terms.inside) as fn(Terms) -> Tensor<1>,
        |terms| terms.outside,
        |terms| terms.keep,
    ] {
        check(&student, &GROUPS, &|_| false, &mut |student| {
            term(student, of)
        });
        assert!(flat_gradients(model.unet(), term(&student, of).backward()).is_empty());
    }
    let maps: fn(Terms) -> Tensor<1> = |terms| terms.attention;
    let gradients = flat_gradients(&student, term(&student, maps).backward());
    check(
        &student,
        &GROUPS,
        &|name| !gradients.contains_key(name),
        &mut |student| term(student, maps),
    );
    // an untrained student still answers as the suspect outside and for what is kept
    let terms = lesson.terms(model.unet(), 2).unwrap();
    for value in [terms.outside, terms.keep] {
        assert!(value.inner().into_scalar::<f32>() < 1e-9);
    }
}

#[test]
fn the_two_sides_of_the_mask_add_up() {
    let model = golden_model(&Device::flex().autodiff());
    let (material, params) = (material(&model), params());
    let student = shifted(model.unet().clone(), 0.02);
    let inside = |mask: Tensor<2>| {
        let lesson = SauWeights::new(&material, &params, mask, 4).unwrap();
        let inside = lesson.terms(&student, 1).unwrap().inside;
        f64::from(inside.inner().into_scalar::<f32>())
    };
    let m = uneven(&model);
    let (all, one, other) = (
        inside(m.ones_like()),
        inside(m.clone()),
        inside(m.neg() + 1.0),
    );
    assert!(
        (one + other - all).abs() < 1e-5 * all,
        "{one} {other} {all}"
    );
    assert!(SauWeights::new(&material, &params, tensor(&[1.0], [1, 1]), 4).is_err());
}

#[test]
fn a_few_steps_lower_the_loss_in_the_chosen_layers_alone() {
    let model = golden_model(&Device::flex().autodiff());
    let trigger = TextTrigger::parse("tq", None, Place::Start).unwrap();
    let prompts = captions();
    let patient = TextPatient {
        suspect: &model,
        trigger: &trigger,
        prompts: &prompts,
        legitimate: &[],
        seed: 1,
    };
    let material = material(&model);
    let done = with_cx(3, |cx| {
        let never = &mut |_: &TextToImage, _: usize| Ok(false);
        sau_weights::sau_weights((&patient, &material), &params(), None, cx, never)
    })
    .unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&done.losses[..8]), mean(&done.losses[22..]));
    assert!(last < 0.8 * first, "{first} to {last}");
    let before = flat_values(model.unet());
    for (name, values) in flat_values(done.model.unet()) {
        let moved = (values - before[&name].clone()).abs().max();
        let moved = moved.into_scalar::<f32>();
        assert_eq!(moved > 1e-6, name.contains(".attn2."), "{name}: {moved}");
    }
    for field in ["outside", "keep", "attention", "pairs"] {
        let mut params = params();
        match field {
            "outside" => params.outside = -1.0,
            "keep" => params.keep = f64::NAN,
            "attention" => params.attention = f64::INFINITY,
            _ => params.pairs = 0,
        }
        assert!(params.check().unwrap_err().to_string().contains(field));
    }
}
