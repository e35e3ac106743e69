//! LoRAs, learnt tokens and deltas laid over a small model, against the same sums written out.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use depurate_checkpoint::{
    CheckpointError, DeltaKind, Layers, Limits, Lora, LoraLayout, ModelPart, ModelWeights,
    SaveTensor, ScaledFile, TextualInversion, Weights, save_delta, save_tensors,
};

const TO_K: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
const TO_OUT: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0";
const CONV: &str = "down_blocks.0.resnets.0.conv1";
const Q_PROJ: &str = "encoder.layers.0.self_attn.q_proj";
const TABLE: &str = "embeddings.token_embedding.weight";

/// Values that are no two alike, and exact in f32.
fn values(shape: &[usize], from: i32) -> Vec<f32> {
    let n: usize = shape.iter().product();
    (0..n as i32)
        .map(|i| (i * 7 % 23 + from) as f32 / 8.0)
        .collect()
}

fn tensor(name: &str, shape: &[usize], from: i32) -> SaveTensor {
    SaveTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: values(shape, from),
    }
}

fn file(dir: &Path, name: &str, tensors: &[SaveTensor]) -> PathBuf {
    let path = dir.join(name);
    save_tensors(&path, tensors, None).unwrap();
    path
}

/// A UNet of three layers and a text encoder of two, whose names lack `text_model.` as transformers 5 writes them.
fn model(dir: &Path) -> ModelWeights {
    let unet = [
        tensor(&format!("{TO_K}.weight"), &[6, 4], 1),
        tensor(&format!("{TO_OUT}.weight"), &[6, 6], 2),
        tensor(&format!("{TO_OUT}.bias"), &[6], 2),
        tensor(&format!("{CONV}.weight"), &[5, 3, 3, 3], 3),
    ];
    let text = [
        tensor(&format!("{Q_PROJ}.weight"), &[4, 4], 4),
        tensor(TABLE, &[10, 4], 5),
    ];
    let open = |path: PathBuf| Weights::open_file(&path, &Limits::default()).unwrap();
    ModelWeights {
        unet: open(file(dir, "unet.safetensors", &unet)),
        text_encoder: Some(open(file(dir, "text.safetensors", &text))),
        vae: None,
    }
}

/// `W + s U V`, written out in f64.
fn merged(w: &[f32], up: &[f32], down: &[f32], rank: usize, scale: f64) -> Vec<f32> {
    let n = down.len() / rank;
    let at = |i: usize| {
        let (row, column) = (i / n, i % n);
        let product: f64 = (0..rank)
            .map(|r| f64::from(up[row * rank + r]) * f64::from(down[r * n + column]))
            .sum();
        (f64::from(w[i]) + scale * product) as f32
    };
    (0..w.len()).map(at).collect()
}

fn assert_close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= 1e-5 * e.abs().max(1.0), "{g} and {e}");
    }
}

/// The pair of `to_k` and of the convolution, under the names that `name` gives them; rank 2.
fn pairs(name: &dyn Fn(&str, bool) -> String) -> Vec<SaveTensor> {
    vec![
        tensor(&name(TO_K, true), &[6, 2], -3),
        tensor(&name(TO_K, false), &[2, 4], -5),
        tensor(&name(CONV, true), &[5, 2, 1, 1], -4),
        tensor(&name(CONV, false), &[2, 3, 3, 3], -6),
    ]
}

/// Lays the adapter over the model and compares both layers with the written-out sums.
fn check(path: &Path, dir: &Path, layout: LoraLayout, own: f64, user: f32) {
    let mut model = model(dir);
    let before = model.clone();
    let lora = Lora::open(path, &model, &Limits::default()).unwrap();
    assert_eq!((lora.layout(), lora.pairs().len()), (layout, 2));
    lora.apply(&mut model, user).unwrap();
    for pair in lora.pairs() {
        let factors = lora.factors(pair).unwrap();
        let w = before.unet.read_f32(&pair.parameter).unwrap();
        let scale = own * f64::from(user);
        let expected = merged(&w, &factors.up, &factors.down, 2, scale);
        assert_close(&model.unet.read_f32(&pair.parameter).unwrap(), &expected);
        assert_eq!(pair.rank, 2);
        assert!((f64::from(pair.scale) - own).abs() < 1e-6);
    }
    let out = format!("{TO_OUT}.weight");
    assert_eq!(
        model.unet.read_f32(&out).unwrap(),
        before.unet.read_f32(&out).unwrap()
    );
    // the base is as it was, and its file is not written to
    let to_k = format!("{TO_K}.weight");
    assert_eq!(before.unet.read_f32(&to_k).unwrap(), values(&[6, 4], 1));
    assert_ne!(model.unet.read_f32(&to_k).unwrap(), values(&[6, 4], 1));
}

#[test]
fn every_layout_gives_the_same_sum_with_its_own_strength() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kohya = |module: &str, up: bool| {
        let end = if up { "lora_up" } else { "lora_down" };
        format!("lora_unet_{}.{end}.weight", module.replace('.', "_"))
    };
    let mut with_alpha = pairs(&kohya);
    for module in [TO_K, CONV] {
        with_alpha.push(SaveTensor {
            name: format!("lora_unet_{}.alpha", module.replace('.', "_")),
            shape: vec![],
            data: vec![1.0],
        });
    }
    let path = file(dir.path(), "kohya.safetensors", &with_alpha);
    check(&path, dir.path(), LoraLayout::Kohya, 0.5, 0.8);
    let path = file(dir.path(), "kohya-plain.safetensors", &pairs(&kohya));
    check(&path, dir.path(), LoraLayout::Kohya, 1.0, 1.0);

    let diffusers = |module: &str, up: bool| {
        format!("unet.{module}.lora_{}.weight", if up { "B" } else { "A" })
    };
    let path = at("diffusers.safetensors");
    save_tensors(&path, &pairs(&diffusers), None).unwrap();
    check(&path, dir.path(), LoraLayout::Diffusers, 1.0, -1.5);
    let metadata =
        r#"{"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"resnets.0.conv1": 8}}"#;
    let metadata = HashMap::from([("lora_adapter_metadata".to_owned(), metadata.to_owned())]);
    save_tensors(&path, &pairs(&diffusers), Some(metadata)).unwrap();
    check(&path, dir.path(), LoraLayout::Diffusers, 4.0, 1.0);

    let peft = |module: &str, up: bool| {
        format!(
            "base_model.model.{module}.lora_{}.weight",
            if up { "B" } else { "A" }
        )
    };
    std::fs::create_dir(at("peft")).unwrap();
    save_tensors(&at("peft/adapter_model.safetensors"), &pairs(&peft), None).unwrap();
    let limits = Limits::default();
    let without = Lora::open(&at("peft"), &model(dir.path()), &limits);
    assert!(matches!(
        without,
        Err(CheckpointError::UnsupportedLayout { .. })
    ));
    std::fs::write(
        at("peft/adapter_config.json"),
        r#"{"r": 2, "lora_alpha": 3}"#,
    )
    .unwrap();
    check(&at("peft"), dir.path(), LoraLayout::Peft, 1.5, 1.0);
    let root = r#"{"r": 2, "lora_alpha": 3, "use_rslora": true}"#;
    std::fs::write(at("peft/adapter_config.json"), root).unwrap();
    check(
        &at("peft"),
        dir.path(),
        LoraLayout::Peft,
        3.0 / 2f64.sqrt(),
        1.0,
    );
    let dora = r#"{"r": 2, "lora_alpha": 3, "use_dora": true}"#;
    std::fs::write(at("peft/adapter_config.json"), dora).unwrap();
    assert!(Lora::open(&at("peft"), &model(dir.path()), &limits).is_err());
}

#[test]
fn attention_processors_and_text_encoders() {
    let dir = tempfile::tempdir().unwrap();
    let out = TO_OUT.replace(".to_out.0", ".processor.to_out_lora");
    let tensors = [
        tensor(&format!("{out}.up.weight"), &[6, 1], 1),
        tensor(&format!("{out}.down.weight"), &[1, 6], 2),
        tensor(
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            &[4, 3],
            1,
        ),
        tensor(
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
            &[3, 4],
            2,
        ),
    ];
    let path = file(dir.path(), "old.safetensors", &tensors);
    let mut model = model(dir.path());
    let lora = Lora::open(&path, &model, &Limits::default()).unwrap();
    let found: Vec<_> = lora
        .pairs()
        .iter()
        .map(|p| (p.part, p.parameter.as_str(), p.rank, p.shape))
        .collect();
    assert_eq!(
        found,
        [
            (
                ModelPart::Unet,
                format!("{TO_OUT}.weight").as_str(),
                1,
                (6, 6)
            ),
            (
                ModelPart::TextEncoder,
                format!("{Q_PROJ}.weight").as_str(),
                3,
                (4, 4)
            ),
        ]
    );
    lora.apply(&mut model, 1.0).unwrap();
    let text = model.text_encoder.unwrap();
    let expected = merged(
        &values(&[4, 4], 4),
        &values(&[4, 3], 1),
        &values(&[3, 4], 2),
        3,
        1.0,
    );
    assert_close(
        &text.read_f32(&format!("{Q_PROJ}.weight")).unwrap(),
        &expected,
    );
}

#[test]
fn keys_that_name_nothing_halves_and_other_shapes_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let open = |tensors: &[SaveTensor]| {
        let path = file(dir.path(), "lora.safetensors", tensors);
        Lora::open(&path, &model, &Limits::default())
            .unwrap_err()
            .to_string()
    };
    let (up, down) = (
        format!("unet.{TO_K}.lora_B.weight"),
        format!("unet.{TO_K}.lora_A.weight"),
    );
    let stray = open(&[tensor("unet.nowhere.lora_B.weight", &[6, 2], 1)]);
    assert!(stray.contains("unet.nowhere.lora_B.weight"), "{stray}");
    let half = open(&[tensor(&up, &[6, 2], 1)]);
    assert!(half.contains(&up) && half.contains("\"A\""), "{half}");
    let wide = open(&[tensor(&up, &[6, 2], 1), tensor(&down, &[2, 5], 1)]);
    assert!(wide.contains("[2, 5]") && wide.contains("[6, 4]"), "{wide}");
    let ranks = open(&[tensor(&up, &[6, 3], 1), tensor(&down, &[2, 4], 1)]);
    assert!(ranks.contains("[6, 3]"), "{ranks}");
    let nothing = open(&[tensor(&up, &[6, 0], 1), tensor(&down, &[0, 4], 1)]);
    assert!(nothing.contains("does not fit"), "{nothing}");
    let loha = open(&[tensor("lora_unet_x.hada_w1_a", &[2, 2], 1)]);
    assert!(loha.contains("LoHa"), "{loha}");
    let mut infinite = [tensor(&up, &[6, 2], 1), tensor(&down, &[2, 4], 1)];
    infinite[0].data[3] = f32::INFINITY;
    assert!(open(&infinite).contains("infinite"));
}

#[test]
fn learnt_tokens_become_rows_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let one = file(dir.path(), "one.safetensors", &[tensor("<cat>", &[4], 9)]);
    let three = file(
        dir.path(),
        "style.safetensors",
        &[tensor("emb_params", &[3, 4], 11)],
    );
    let mut model = model(dir.path());
    let layers = Layers {
        embeddings: vec![one, three.clone()],
        ..Layers::default()
    };
    let added = layers.apply(&mut model, &Limits::default()).unwrap();
    assert_eq!(added[0].tokens, ["<cat>"]);
    assert_eq!(added[1].tokens, ["style", "style_1", "style_2"]);
    assert_eq!(
        (added[0].ids.clone(), added[1].ids.clone()),
        (10..11, 11..14)
    );
    let text = model.text_encoder.as_ref().unwrap();
    assert_eq!(text.get(TABLE).unwrap().shape, [14, 4]);
    let expected = [values(&[10, 4], 5), values(&[4], 9), values(&[3, 4], 11)].concat();
    assert_eq!(text.read_f32(TABLE).unwrap(), expected);
    assert_eq!(text.files().len(), 3);

    let wide = file(dir.path(), "wide.safetensors", &[tensor("<x>", &[5], 0)]);
    let limits = Limits::default();
    let refused = TextualInversion::open(&wide, &limits)
        .unwrap()
        .apply(&mut model);
    assert!(matches!(refused, Err(CheckpointError::Misfit { .. })));
    for (name, tensors) in [
        ("two", vec![tensor("<a>", &[4], 0), tensor("<b>", &[4], 0)]),
        (
            "xl",
            vec![tensor("clip_l", &[4], 0), tensor("clip_g", &[4], 0)],
        ),
        ("cube", vec![tensor("<a>", &[1, 1, 4], 0)]),
        ("long", vec![tensor("<a>", &[78, 4], 0)]),
        ("empty", vec![tensor("<a>", &[0, 4], 0)]),
    ] {
        let path = file(dir.path(), name, &tensors);
        assert!(TextualInversion::open(&path, &limits).is_err(), "{name}");
    }
}

#[test]
fn deltas_replace_or_add_and_every_layer_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (to_k, conv) = (format!("{TO_K}.weight"), format!("{CONV}.weight"));
    save_delta(
        &at("r"),
        DeltaKind::Replace,
        &[tensor(&format!("unet.{to_k}"), &[6, 4], 40)],
    )
    .unwrap();
    // concept-editing code saves names without a component
    save_tensors(&at("bare"), &[tensor(&to_k, &[6, 4], 60)], None).unwrap();
    save_delta(
        &at("a"),
        DeltaKind::Add,
        &[
            tensor(&format!("unet.{to_k}"), &[6, 4], 50),
            tensor(
                &format!("text_encoder.text_model.{Q_PROJ}.weight"),
                &[4, 4],
                50,
            ),
        ],
    )
    .unwrap();
    let sum =
        |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(&b).map(|(a, b)| a + b).collect() };
    let limits = Limits::default();
    let mut model = model(dir.path());
    let layers = Layers {
        deltas: vec![at("bare"), at("r"), at("a")],
        ..Layers::default()
    };
    layers.apply(&mut model, &limits).unwrap();
    assert_eq!(
        model.unet.read_f32(&to_k).unwrap(),
        sum(values(&[6, 4], 40), values(&[6, 4], 50))
    );
    assert_eq!(
        model.unet.read_f32(&conv).unwrap(),
        values(&[5, 3, 3, 3], 3)
    );
    let text = model.text_encoder.as_ref().unwrap();
    assert_eq!(
        text.read_f32(&format!("{Q_PROJ}.weight")).unwrap(),
        sum(values(&[4, 4], 4), values(&[4, 4], 50))
    );

    save_delta(
        &at("stray"),
        DeltaKind::Add,
        &[tensor("unet.no.such", &[1], 0)],
    )
    .unwrap();
    save_delta(&at("vae"), DeltaKind::Add, &[tensor("vae.conv", &[1], 0)]).unwrap();
    save_delta(
        &at("shape"),
        DeltaKind::Replace,
        &[tensor(&to_k, &[4, 6], 0)],
    )
    .unwrap();
    let kind = HashMap::from([("delta".to_owned(), "multiply".to_owned())]);
    save_tensors(&at("kind"), &[tensor(&to_k, &[6, 4], 0)], Some(kind)).unwrap();
    for (name, part) in [
        ("stray", "unet.no.such"),
        ("vae", "vae.conv"),
        ("shape", "[4, 6]"),
        ("kind", "multiply"),
    ] {
        let layers = Layers {
            deltas: vec![at(name)],
            ..Layers::default()
        };
        let error = layers.apply(&mut model, &limits).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_whole_unet_comes_before_what_is_laid_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let (to_k, up, down) = (
        format!("{TO_K}.weight"),
        format!("unet.{TO_K}.lora_B.weight"),
        format!("unet.{TO_K}.lora_A.weight"),
    );
    let other = file(
        dir.path(),
        "other.safetensors",
        &[tensor(&to_k, &[6, 4], 70)],
    );
    let lora = file(
        dir.path(),
        "l.safetensors",
        &[tensor(&up, &[6, 2], 1), tensor(&down, &[2, 4], 1)],
    );
    let mut model = model(dir.path());
    let layers = Layers {
        unet: Some(other),
        loras: vec![
            ScaledFile {
                path: lora.clone(),
                scale: 0.5,
            },
            ScaledFile {
                path: lora,
                scale: -0.5,
            },
        ],
        ..Layers::default()
    };
    layers.apply(&mut model, &Limits::default()).unwrap();
    assert_eq!(model.unet.infos().count(), 1);
    assert_close(&model.unet.read_f32(&to_k).unwrap(), &values(&[6, 4], 70));
}

mod hostile {
    use super::*;
    use depurate_checkpoint::{Delta, LdmFamily};
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        let module = prop_oneof![
            Just(TO_K),
            Just(TO_OUT),
            Just(CONV),
            Just(""),
            Just("text_model.encoder")
        ];
        let prefix = prop_oneof![
            Just("unet."),
            Just("lora_unet_"),
            Just("lora_te_"),
            Just("base_model.model."),
            Just("")
        ];
        let end = prop_oneof![
            Just(".lora_A.weight"),
            Just(".lora_B.weight"),
            Just(".lora_up.weight"),
            Just(".lora_down.weight"),
            Just(".alpha"),
            Just("_lora.up.weight"),
            Just(".weight"),
            Just("")
        ];
        (prefix, module, end, any::<bool>()).prop_map(|(prefix, module, end, flat)| {
            let module = if flat {
                module.replace('.', "_")
            } else {
                module.to_owned()
            };
            format!("{prefix}{module}{end}")
        })
    }

    proptest! {
        // every case writes two files and waits for the disk
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever a file says, it is read, refused or laid on; and what is laid on keeps the model's shapes.
        #[test]
        fn adapters_never_panic(tensors in prop::collection::btree_map(name(), prop::collection::vec(0usize..7, 0..4), 0..8)) {
            let dir = tempfile::tempdir().unwrap();
            let tensors: Vec<_> = tensors.iter().map(|(name, shape)| tensor(name, shape, 0)).collect();
            let path = file(dir.path(), "x.safetensors", &tensors);
            let limits = Limits::default();
            let mut model = model(dir.path());
            let shapes = |model: &ModelWeights| -> Vec<Vec<usize>> { model.unet.infos().map(|i| i.shape.clone()).collect() };
            let before = shapes(&model);
            if let Ok(lora) = Lora::open(&path, &model, &limits) {
                lora.apply(&mut model, 1.0).unwrap();
                for pair in lora.pairs() {
                    let weights = model.get(pair.part).unwrap();
                    let n: usize = weights.get(&pair.parameter).unwrap().shape.iter().product();
                    prop_assert_eq!(weights.read_f32(&pair.parameter).unwrap().len(), n);
                }
            }
            let weights = Weights::open_file(&path, &limits).unwrap();
            let _ = LdmFamily::detect(&path, &weights);
            let _ = TextualInversion::open(&path, &limits);
            let _ = Delta::open(&path, &limits).unwrap().apply(&mut model);
            prop_assert_eq!(shapes(&model), before);
        }
    }
}
