//! `UNet2DConditionModel` against the numbers that diffusers and PyTorch made: outputs, the maps of attention layers, gradients.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_diffusion::{
    AttentionKind, AttentionSite, NoTap, Site, Stage, Tap,
    module_weights::gradients,
    noise::SeedTree,
    unet2d_condition::{Added, UNet2DCondition, UNet2DConditionConfig},
};
use depurate_testkit::{
    close::{assert_close, assert_close_slices},
    golden::Case,
};

const CASES: [&str; 4] = ["sd1_style", "sd1_style_77", "sd2_style", "sdxl_style"];
/// `tolerance` of every case.
const OUTPUT_TOLERANCE: f64 = 1e-4;
const MAP_TOLERANCE: f64 = 5e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;

fn case(name: &str) -> Case {
    Case::named(&format!("unet2d-condition/{name}"))
}

fn network(case: &Case, device: &Device) -> UNet2DCondition {
    let dir = case.dir.join("unet");
    let limits = Limits::default();
    let path = dir.join("config.json");
    let config = read_json(&path, &limits).unwrap();
    let config = UNet2DConditionConfig::from_json(&config, &path).unwrap();
    let weights = Weights::open_file(&dir.join("diffusion_pytorch_model.safetensors"), &limits);
    UNet2DCondition::new(&config, &SeedTree::new(0), device)
        .load(&weights.unwrap(), &dir)
        .unwrap()
}

/// `encoder_hidden_states`, planar.
fn states(case: &Case, device: &Device) -> Tensor<3> {
    case.tensor::<3>("encoder_hidden_states", device)
        .swap_dims(1, 2)
}

fn added(case: &Case, device: &Device) -> Option<Added> {
    case.has("added.text_embeds").then(|| {
        let sizes = case.numbers("added.time_ids");
        Added {
            pooled: case.tensor("added.text_embeds", device),
            sizes: sizes.chunks(6).map(<[f64]>::to_vec).collect(),
        }
    })
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    kind: AttentionKind,
    stage: Stage,
    reduction: usize,
    size: (usize, usize),
    heads: usize,
}

#[derive(Default)]
struct Recorder(BTreeMap<String, (Seen, Tensor<3>)>);

impl Tap for Recorder {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }
    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}
    fn wants_map(&self, _site: &AttentionSite<'_>) -> bool {
        true
    }
    fn observe_map(&mut self, site: &AttentionSite<'_>, map: &Tensor<3>) {
        let seen = Seen {
            kind: site.kind,
            stage: site.stage,
            reduction: site.reduction,
            size: site.size,
            heads: site.heads,
        };
        self.0.insert(site.path.to_owned(), (seen, map.clone()));
    }
}

#[test]
fn outputs_and_maps_are_those_of_diffusers() {
    let device = Device::flex();
    for name in CASES {
        let case = case(name);
        let unet = network(&case, &device);
        let (x, t) = (case.tensor::<4>("x", &device), case.integers("t"));
        let added = added(&case, &device);
        let states = states(&case, &device);
        let want: Tensor<4> = case.tensor("out", &device);
        let out = unet.forward(x.clone(), &t, states.clone(), added.as_ref(), &mut NoTap);
        let close = |what: &str, out: &Tensor<4>| {
            let what = format!("{name} {what}");
            assert_close(&what, out, &want, OUTPUT_TOLERANCE, OUTPUT_TOLERANCE);
        };
        close("out", &out.unwrap());
        let mut recorder = Recorder::default();
        let out = unet.forward(x, &t, states, added.as_ref(), &mut recorder);
        close("out with taps", &out.unwrap());
        let mut compared = 0;
        for (path, (seen, map)) in &recorder.0 {
            let key = format!("probs.{path}");
            assert_eq!(
                seen.kind == AttentionKind::Prompt,
                path.ends_with("attn2"),
                "{path}"
            );
            if !case.has(&key) {
                assert_eq!(
                    seen.kind,
                    AttentionKind::OwnPixels,
                    "{path}: every attn2 is stored"
                );
                continue;
            }
            let want: Tensor<4> = case.tensor(&key, &device);
            let [batch, heads, queries, keys] = want.dims();
            assert_eq!(
                (seen.heads, seen.size.0 * seen.size.1),
                (heads, queries),
                "{path}"
            );
            let got = map
                .clone()
                .reshape([batch, heads, keys, queries])
                .swap_dims(2, 3);
            assert_close(&format!("{name} {key}"), &got, &want, 0.0, MAP_TOLERANCE);
            compared += 1;
        }
        assert!(compared >= 5, "{name}: only {compared} maps compared");
    }
}

#[test]
fn a_site_says_where_it_is() {
    let device = Device::flex();
    let case = case("sd1_style");
    let unet = network(&case, &device);
    let mut recorder = Recorder::default();
    unet.forward(
        case.tensor("x", &device),
        &case.integers("t"),
        states(&case, &device),
        None,
        &mut recorder,
    )
    .unwrap();
    let of = |path: &str| recorder.0[path].0.clone();
    let seen = of("down_blocks.0.attentions.1.transformer_blocks.0.attn2");
    assert_eq!(
        (seen.stage, seen.reduction, seen.size),
        (Stage::Down, 1, (8, 8))
    );
    let seen = of("mid_block.attentions.0.transformer_blocks.0.attn1");
    assert_eq!(
        (seen.stage, seen.reduction, seen.size),
        (Stage::Middle, 2, (4, 4))
    );
    let seen = of("up_blocks.1.attentions.2.transformer_blocks.0.attn2");
    assert_eq!((seen.stage, seen.reduction, seen.heads), (Stage::Up, 1, 8));
    assert_eq!(
        recorder.0.len(),
        12,
        "two maps for each of six transformers"
    );
}

#[test]
fn gradients_are_those_of_pytorch_with_and_without_taps() {
    let device = Device::flex().autodiff();
    for name in CASES {
        for tapped in [false, true] {
            let case = case(name);
            let unet = network(&case, &device);
            let x = case.tensor::<4>("x", &device).require_grad();
            let states = states(&case, &Device::flex());
            let states = Tensor::from_inner(states).require_grad();
            let added = added(&case, &device);
            let mut recorder = Recorder::default();
            let tap: &mut dyn Tap = if tapped { &mut recorder } else { &mut NoTap };
            let out = unet.forward(
                x.clone(),
                &case.integers("t"),
                states.clone(),
                added.as_ref(),
                tap,
            );
            let grads = out.unwrap().powi_scalar(2).sum().backward();
            let close = |what: &str, got: Vec<f64>| {
                let want = case.numbers(what);
                let most = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                let what = format!("{name} {what}, tapped: {tapped}");
                assert_close_slices(&what, &got, want, 0.0, GRADIENT_TOLERANCE * most);
            };
            close(
                "grad.x",
                x.grad(&grads).unwrap().into_data().iter::<f64>().collect(),
            );
            let of_states = states.grad(&grads).unwrap().swap_dims(1, 2);
            close(
                "grad.encoder_hidden_states",
                of_states.into_data().iter::<f64>().collect(),
            );
            let found = gradients(&unet, &grads);
            assert_eq!(
                found.len(),
                unet.parameters().len(),
                "{name}: every parameter has one"
            );
            let mut compared = 0;
            for gradient in found {
                let key = format!("grad.{}", gradient.name);
                if case.has(&key) {
                    close(&key, gradient.data.iter().map(|v| f64::from(*v)).collect());
                    compared += 1;
                }
            }
            assert!(compared >= 2, "{name}: only {compared} compared");
        }
    }
}

#[test]
fn a_map_s_gradient_reaches_the_prompt_and_the_weights() {
    let device = Device::flex().autodiff();
    let case = case("sd2_style");
    let unet = network(&case, &device);
    let x = case.tensor::<4>("x", &device);
    let states = Tensor::from_inner(states(&case, &Device::flex())).require_grad();
    let mut recorder = Recorder::default();
    unet.forward(x, &case.integers("t"), states.clone(), None, &mut recorder)
        .unwrap();
    let path = "up_blocks.1.attentions.0.transformer_blocks.0.attn2";
    let grads = recorder.0[path].1.clone().square().sum().backward();
    let total = states
        .grad(&grads)
        .unwrap()
        .abs()
        .sum()
        .into_scalar::<f32>();
    assert!(total > 0.0);
    let found = gradients(&unet, &grads);
    let largest = |name: &str| {
        let of = found
            .iter()
            .find(|gradient| gradient.name == format!("{path}.{name}.weight"));
        of.map_or(0.0, |gradient| {
            gradient.data.iter().fold(0.0f32, |m, v| m.max(v.abs()))
        })
    };
    assert!(largest("to_q") > 0.0 && largest("to_k") > 0.0);
    assert_eq!(largest("to_v"), 0.0, "values come after the map");
}

#[test]
fn configurations_survive_writing_and_what_is_not_supported_is_refused() {
    for name in CASES {
        let case = case(name);
        let path = case.dir.join("unet/config.json");
        let map = read_json(&path, &Limits::default()).unwrap();
        let config = UNet2DConditionConfig::from_json(&map, &path).unwrap();
        let written = config.to_json();
        let again = UNet2DConditionConfig::from_json(written.as_object().unwrap(), &path).unwrap();
        assert_eq!(config, again);
    }
    let path = case("sd1_style").dir.join("unet/config.json");
    let map = read_json(&path, &Limits::default()).unwrap();
    for (option, value) in [
        ("class_embed_type", serde_json::json!("timestep")),
        ("only_cross_attention", serde_json::json!(true)),
        ("attention_head_dim", serde_json::json!([3, 3])),
        ("attention_head_dim", serde_json::json!([8])),
        ("layers_per_block", serde_json::json!(1000)),
        ("cross_attention_dim", serde_json::json!([16, 16])),
        ("addition_embed_type", serde_json::json!("image")),
        ("conv_in_kernel", serde_json::json!(1)),
        ("a_new_option", serde_json::json!(1)),
        ("sample_size", serde_json::json!(9)),
    ] {
        let mut map = map.clone();
        map.insert(option.into(), value);
        let error = UNet2DConditionConfig::from_json(&map, Path::new("config.json")).unwrap_err();
        assert!(error.to_string().contains(option), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let device = Device::flex();
    let unet = network(&case("sdxl_style"), &device);
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
    let states = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &device);
    let added = |batch: usize, numbers: usize| Added {
        pooled: Tensor::zeros([batch, 20], &device),
        sizes: vec![vec![0.0; numbers]; batch],
    };
    let run = |x, t: &[usize], s, a: Option<Added>| unet.forward(x, t, s, a.as_ref(), &mut NoTap);
    let good = [2, 4, 8, 8];
    assert!(run(zeros(good), &[1], states([2, 24, 7]), Some(added(2, 6))).is_ok());
    assert!(
        run(
            zeros([2, 4, 7, 8]),
            &[1],
            states([2, 24, 7]),
            Some(added(2, 6))
        )
        .is_err()
    );
    assert!(
        run(
            zeros(good),
            &[1, 2, 3],
            states([2, 24, 7]),
            Some(added(2, 6))
        )
        .is_err()
    );
    assert!(run(zeros(good), &[1], states([1, 24, 7]), Some(added(2, 6))).is_err());
    assert!(run(zeros(good), &[1], states([2, 24, 0]), Some(added(2, 6))).is_err());
    assert!(run(zeros(good), &[1], states([2, 24, 7]), None).is_err());
    assert!(run(zeros(good), &[1], states([2, 24, 7]), Some(added(2, 5))).is_err());
}
