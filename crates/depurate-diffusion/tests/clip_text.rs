//! CLIP's text encoder against transformers: hidden states, output, pooled output and gradients, in both key layouts.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Limits, Weights};
use depurate_diffusion::{
    clip_text::{ClipText, ClipTextConfig},
    module_weights::gradients,
    noise::SeedTree,
};
use depurate_testkit::{
    close::{assert_close, assert_close_slices},
    golden::Case,
};

const CASES: [&str; 4] = [
    "small_vocab",
    "small_vocab_legacy_eos2",
    "sd2_gelu_pad0",
    "real_vocab_h16",
];
/// `tolerance` of every case.
const RELATIVE: f64 = 1e-4;
const ABSOLUTE: f64 = 2e-5;

fn encoder(dir: &Path, device: &Device) -> ClipText {
    let limits = Limits::default();
    let config = ClipTextConfig::read(&dir.join("config.json"), &limits).unwrap();
    let path = dir.join("model.safetensors");
    let weights = Weights::open_file(&path, &limits).unwrap();
    ClipText::new(&config, &SeedTree::new(0), device)
        .load(&weights, &path)
        .unwrap()
}

fn prompts(case: &Case, tokens: usize) -> Vec<Vec<u32>> {
    let ids = case.integers("input_ids");
    ids.chunks(tokens)
        .map(|ids| ids.iter().map(|id| u32::try_from(*id).unwrap()).collect())
        .collect()
}

#[test]
fn states_are_those_of_transformers_in_both_layouts() {
    let device = Device::flex();
    for name in CASES {
        let case = Case::named(&format!("clip-text/{name}"));
        let want: Tensor<3> = case.tensor("last_hidden_state", &device);
        let ids = prompts(&case, want.dims()[1]);
        for layout in ["model", "model_tf5_names"] {
            let dir = case.dir.join(layout);
            if !dir.exists() {
                continue;
            }
            let states = encoder(&dir, &device).forward(&ids).unwrap();
            let close = |what: &str, got: &Tensor<3>| {
                let want: Tensor<3> = case.tensor(what, &device);
                let got = got.clone().swap_dims(1, 2);
                assert_close(
                    &format!("{name} {layout} {what}"),
                    &got,
                    &want,
                    RELATIVE,
                    ABSOLUTE,
                );
            };
            for (i, state) in states.hidden.iter().enumerate() {
                close(&format!("hidden_states.{i}"), state);
            }
            assert!(!case.has(&format!("hidden_states.{}", states.hidden.len())));
            close("last_hidden_state", &states.last);
            let want: Tensor<2> = case.tensor("pooler_output", &device);
            assert_close(
                &format!("{name} pooled"),
                &states.pooled,
                &want,
                RELATIVE,
                ABSOLUTE,
            );
        }
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    let device = Device::flex().autodiff();
    for name in CASES {
        let case = Case::named(&format!("clip-text/{name}"));
        let [_, tokens, width] = case
            .tensor::<3>("last_hidden_state", &Device::flex())
            .dims();
        let encoder = encoder(&case.dir.join("model"), &device);
        let last = encoder.forward(&prompts(&case, tokens)).unwrap().last;
        let ramp: Vec<f32> = (0..tokens)
            .map(|s| -1.0 + 2.0 * s as f32 / (tokens - 1) as f32)
            .collect();
        let ramp = Tensor::<1>::from_floats(ramp.as_slice(), &device).reshape([1, 1, tokens]);
        let loss = last.clone().square().sum() + (last.narrow(1, 0, 1) * ramp).sum();
        let got = f64::from(loss.clone().inner().into_scalar::<f32>());
        assert_close_slices(
            &format!("{name} loss"),
            &[got],
            case.numbers("loss"),
            RELATIVE,
            0.0,
        );
        let found = gradients(&encoder, &loss.backward());
        let of = |name: &str| -> Vec<f64> {
            let found = found.iter().find(|gradient| gradient.name == name).unwrap();
            found.data.iter().map(|v| f64::from(*v)).collect()
        };
        let close = |what: &str, got: &[f64], want: &[f64]| {
            let most = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            assert_close_slices(&format!("{name} {what}"), got, want, 0.0, RELATIVE * most);
        };
        let projection = of("text_model.encoder.layers.0.self_attn.q_proj.weight");
        close("q_proj", &projection, case.numbers("grad.q_proj0"));
        let table = of("text_model.embeddings.token_embedding.weight");
        let rows = case.integers("grad.token_embedding.rows");
        let used: Vec<f64> = rows
            .iter()
            .flat_map(|row| table[row * width..(row + 1) * width].to_vec())
            .collect();
        close(
            "embedding",
            &used,
            case.numbers("grad.token_embedding.values"),
        );
        let all: f64 = table.iter().map(|v| v * v).sum();
        let some: f64 = used.iter().map(|v| v * v).sum();
        assert!(
            (all - some).abs() <= 1e-9 * all,
            "{name}: other rows have a gradient"
        );
        // every parameter that the loss reaches has one: all but those of unused positions
        assert_eq!(found.len(), encoder.parameters().len());
    }
}

#[test]
fn prompts_and_configurations_out_of_range_are_errors() {
    let case = Case::named("clip-text/small_vocab");
    let dir = case.dir.join("model");
    let encoder = encoder(&dir, &Device::flex());
    for ids in [
        vec![],
        vec![vec![]],
        vec![vec![1; 78]],
        vec![vec![1, 2], vec![1]],
    ] {
        assert!(encoder.forward(&ids).is_err(), "{ids:?}");
    }
    let error = encoder.forward(&[vec![1, 120]]).unwrap_err().to_string();
    assert!(error.contains("120"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (config, option) in [
        (r#"{"vocab_size": 1e9}"#, "option"),
        (r#"{"hidden_size": 0}"#, "hidden_size"),
        (r#"{"num_attention_heads": 7}"#, "num_attention_heads"),
        (r#"{"hidden_act": "relu"}"#, "hidden_act"),
        (r#"{"layer_norm_eps": -1}"#, "layer_norm_eps"),
        (r#"{"num_hidden_layers": 100000}"#, "num_hidden_layers"),
    ] {
        std::fs::write(&path, config).unwrap();
        let error = ClipTextConfig::read(&path, &Limits::default()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(option) && error.contains("config.json"),
            "{error}"
        );
    }
}
