//! Profiles of planted changes on a small pipeline, and of the closed-form edit that the reference code made of it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use depurate_checkpoint::{
    DeltaKind, Layers, Limits, Lora, ModelPart, ModelWeights, SaveTensor, UNET_STEM, Weights,
    save_delta, save_tensors,
};
use depurate_defense::{
    Budget, CancelToken, Cx, DefenseError, NoJournal, Silent,
    detect::model_level::static_weights::{
        Drift, KeyValueEdit, adapter_layers, drift, key_value_edit, vocabulary,
    },
};
use depurate_diffusion::noise::SeedTree;

const TABLE: &str = "text_model.embeddings.token_embedding.weight";
const CONV: &str = "down_blocks.0.resnets.0.conv1.weight";

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden")
        .join(part)
}

fn base() -> ModelWeights {
    let open = |part: &str, stem: &str| {
        Weights::open_dir(&golden(part), stem, None, &Limits::default()).unwrap()
    };
    ModelWeights {
        unet: open("unet2d-condition/sd1_style/unet", UNET_STEM),
        text_encoder: Some(open("clip-text/real_vocab_h16/model", "model")),
        vae: Some(open("vae/kl_f2/vae", UNET_STEM)),
    }
}

fn with_cx<T>(run: impl FnOnce(&Cx<'_>) -> T) -> T {
    let cancel = CancelToken::default();
    run(&Cx {
        rng: SeedTree::new(0),
        budget: Budget::UNLIMITED,
        cancel: &cancel,
        progress: &Silent,
        journal: &NoJournal,
    })
}

fn compared(model: &ModelWeights, base: &ModelWeights) -> (Drift, Option<KeyValueEdit>) {
    with_cx(|cx| {
        let drift = drift(model, base, cx).unwrap();
        let edit = key_value_edit(model, base, &drift, cx).unwrap();
        (drift, edit)
    })
}

/// The base with these tensors added to its own.
fn plus(tensors: &[SaveTensor]) -> ModelWeights {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("delta.safetensors");
    save_delta(&file, DeltaKind::Add, tensors).unwrap();
    let mut model = base();
    let layers = Layers {
        deltas: vec![file],
        ..Layers::default()
    };
    layers.apply(&mut model, &Limits::default()).unwrap();
    model
}

fn projections(base: &ModelWeights) -> Vec<(String, Vec<usize>)> {
    let ends = ["attn2.to_k.weight", "attn2.to_v.weight"];
    base.unet
        .infos()
        .filter(|info| ends.iter().any(|end| info.name.ends_with(end)))
        .map(|info| (info.name.clone(), info.shape.clone()))
        .collect()
}

/// A change of every projection, value by value: layer, row and column in.
fn planted(base: &ModelWeights, value: impl Fn(usize, usize, usize) -> f32) -> ModelWeights {
    let tensors: Vec<SaveTensor> = projections(base)
        .into_iter()
        .enumerate()
        .map(|(layer, (name, shape))| SaveTensor {
            name: format!("unet.{name}"),
            data: (0..shape[0] * shape[1])
                .map(|i| value(layer, i / shape[1], i % shape[1]))
                .collect(),
            shape,
        })
        .collect();
    plus(&tensors)
}

/// A number in [-1, 1) that looks random, from where it stands.
fn scattered(i: usize) -> f32 {
    let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z >> 40) as f32) / ((1u64 << 23) as f32) - 1.0
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let base = base();
    let (drift, edit) = compared(&base, &base);
    assert_eq!(drift.changed().count(), 0);
    assert!(drift.is_comparable() && edit.is_none());
    assert!(ModelPart::ALL.iter().all(|part| drift.counts(*part).1 > 30));
}

#[test]
fn one_direction_shared_by_all_layers_is_seen_as_such() {
    let base = base();
    let model = planted(&base, |layer, row, column| {
        (1.0 + scattered(97 * layer + row)) * 0.1 * scattered(10_000 + column)
    });
    let (drift, edit) = compared(&model, &base);
    let edit = edit.unwrap();
    assert!(edit.alone);
    assert_eq!((edit.layers.len(), edit.projections), (12, 12));
    assert_eq!(drift.changed().count(), 12);
    for (_, spectrum) in &edit.layers {
        assert!((spectrum.effective_rank - 1.0).abs() < 1e-4, "{spectrum:?}");
    }
    assert!(edit.own[0] > 0.9999 && edit.common[0] > 0.9999, "{edit:?}");
}

#[test]
fn directions_that_differ_by_layer_are_not_common() {
    let base = base();
    let model = planted(&base, |layer, row, column| {
        (1.0 + scattered(97 * layer + row)) * 0.1 * scattered(1000 * (layer + 20) + column)
    });
    let edit = compared(&model, &base).1.unwrap();
    assert!(edit.own[0] > 0.9999 && edit.common[0] < 0.5, "{edit:?}");
}

#[test]
fn a_change_without_structure_has_no_leading_directions() {
    let base = base();
    let model = planted(&base, |layer, row, column| {
        0.1 * scattered(5000 * layer + 16 * row + column)
    });
    let edit = compared(&model, &base).1.unwrap();
    // 16 columns of independent values: far from rank one, and each layer on its own
    assert!(edit.own[0] < 0.35 && edit.common[0] < 0.2, "{edit:?}");
    assert!(
        edit.layers
            .iter()
            .all(|(_, spectrum)| spectrum.effective_rank > 6.0)
    );
}

#[test]
fn the_reference_codes_closed_form_edit_has_few_common_directions() {
    let file = golden("closed-form-edits/eviledit_pipeline_lam1/data.safetensors");
    let weights = Weights::open_file(&file, &Limits::default()).unwrap();
    let base = base();
    let tensors: Vec<SaveTensor> = projections(&base)
        .into_iter()
        .map(|(name, shape)| {
            let module = name.strip_suffix(".weight").unwrap();
            let read = |kind: &str| weights.read_f32(&format!("{kind}.{module}")).unwrap();
            let data = read("after_f64")
                .iter()
                .zip(read("before"))
                .map(|(a, b)| a - b)
                .collect();
            SaveTensor {
                name: format!("unet.{name}"),
                shape,
                data,
            }
        })
        .collect();
    let (drift, edit) = compared(&plus(&tensors), &base);
    let edit = edit.unwrap();
    assert!(edit.alone && edit.layers.len() == edit.projections);
    assert_eq!(drift.counts(ModelPart::TextEncoder).0, 0);
    // an edit W' - W = W E A^T B: every layer reads the text along the same few directions
    assert!(edit.common[2] > 0.9, "{:?} {:?}", edit.own, edit.common);
}

#[test]
fn a_change_elsewhere_is_not_the_keys_and_values_alone() {
    let base = base();
    let shape = base.unet.get(CONV).unwrap().shape.clone();
    let ones = |name: &str, shape: &[usize]| SaveTensor {
        name: format!("unet.{name}"),
        shape: shape.to_vec(),
        data: vec![0.5; shape.iter().product()],
    };
    let (name, of) = projections(&base).remove(0);
    let (drift, edit) = compared(&plus(&[ones(&name, &of), ones(CONV, &shape)]), &base);
    assert_eq!(drift.changed().count(), 2);
    assert!(!edit.unwrap().alone);
    let (drift, edit) = compared(&plus(&[ones(CONV, &shape)]), &base);
    assert!(edit.is_none());
    let changed = drift.changed().next().unwrap();
    let before = base.unet.read_f32(CONV).unwrap();
    let norm: f64 = before
        .iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt();
    let expected = 0.5 * (before.len() as f64).sqrt() / norm;
    assert!((changed.relative - expected).abs() < 1e-5 * expected);
}

#[test]
fn rounding_to_half_precision_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let base = base();
    // the text encoder is stored in F16, so the same values in F32 differ in type only
    let text = base.text_encoder.as_ref().unwrap();
    let wide: Vec<SaveTensor> = text
        .infos()
        .map(|info| SaveTensor {
            // and under the names that transformers 5 writes
            name: info.name.trim_start_matches("text_model.").to_owned(),
            shape: info.shape.clone(),
            // below half a unit in the last place of 11 bits
            data: text
                .read_f32(&info.name)
                .unwrap()
                .iter()
                .map(|v| v * (1.0 + 1e-4))
                .collect(),
        })
        .collect();
    let file = dir.path().join("model.safetensors");
    save_tensors(&file, &wide, None).unwrap();
    let mut model = base.clone();
    model.text_encoder = Some(Weights::open_file(&file, &Limits::default()).unwrap());
    let (drift, _) = compared(&model, &base);
    assert!(drift.is_comparable());
    assert_eq!(drift.counts(ModelPart::TextEncoder).0, 0);
    // and two files of the same type are compared exactly
    let mut again = model.clone();
    again
        .text_encoder
        .as_mut()
        .unwrap()
        .add(
            TABLE.trim_start_matches("text_model."),
            &Weights::open_file(&file, &Limits::default()).unwrap(),
            TABLE.trim_start_matches("text_model."),
            1e-6,
        )
        .unwrap();
    assert_eq!(
        compared(&again, &model).0.counts(ModelPart::TextEncoder).0,
        1
    );
}

#[test]
fn single_rows_of_the_token_table_are_named() {
    let base = base();
    let [rows, width] = base
        .text_encoder
        .as_ref()
        .unwrap()
        .get(TABLE)
        .unwrap()
        .shape[..]
    else {
        panic!()
    };
    let mut data = vec![0.0; rows * width];
    data[1929 * width..1930 * width].fill(30.0);
    let model = plus(&[SaveTensor {
        name: format!("text_encoder.{TABLE}"),
        shape: vec![rows, width],
        data,
    }]);
    let seen = vocabulary(&model, Some(&base)).unwrap().unwrap();
    assert_eq!((seen.rows, seen.base_rows), (rows, Some(rows)));
    let changed: Vec<usize> = seen.changed.unwrap().iter().map(|(row, _)| *row).collect();
    assert_eq!(changed, [1929]);
    assert_eq!(
        seen.outliers
            .iter()
            .map(|(row, _, _)| *row)
            .collect::<Vec<_>>(),
        [1929]
    );
    let alone = vocabulary(&base, None).unwrap().unwrap();
    assert_eq!(
        (alone.changed, alone.base_rows, alone.outliers),
        (None, None, vec![])
    );
}

#[test]
fn an_adapters_spectrum_is_that_of_the_change_that_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let (name, shape) = projections(&base()).remove(0);
    let module = name.strip_suffix(".weight").unwrap();
    let tensor = |end: &str, shape: [usize; 2], from: usize| SaveTensor {
        name: format!("unet.{module}.{end}.weight"),
        shape: shape.to_vec(),
        data: (0..shape[0] * shape[1])
            .map(|i| scattered(i + from))
            .collect(),
    };
    let tensors = [
        tensor("lora_B", [shape[0], 3], 1),
        tensor("lora_A", [3, shape[1]], 99),
    ];
    let file = dir.path().join("lora.safetensors");
    save_tensors(&file, &tensors, None).unwrap();
    let base = base();
    let lora = Lora::open(&file, &base, &Limits::default()).unwrap();
    let layers = with_cx(|cx| adapter_layers(&lora, &base, cx)).unwrap();
    let mut model = base.clone();
    lora.apply(&mut model, 1.0).unwrap();
    let (drift, edit) = compared(&model, &base);
    let (_, spectrum) = &edit.unwrap().layers[0];
    for (got, expected) in layers[0]
        .singular_values
        .iter()
        .zip(&spectrum.singular_values)
    {
        assert!((got - expected).abs() < 1e-4 * expected, "{got} {expected}");
    }
    assert!((layers[0].effective_rank() - spectrum.effective_rank).abs() < 1e-3);
    assert!((layers[0].relative - drift.changed().next().unwrap().relative).abs() < 1e-5);
}

#[test]
fn a_stop_is_honoured() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let cx = Cx {
        rng: SeedTree::new(0),
        budget: Budget::UNLIMITED,
        cancel: &cancel,
        progress: &Silent,
        journal: &NoJournal,
    };
    assert!(matches!(
        drift(&base(), &base(), &cx),
        Err(DefenseError::Cancelled)
    ));
}
