//! Pruned pipelines on disk and in training, and notes that somebody else wrote.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Limits, SaveDtype};
use depurate_diffusion::{
    DiffusionError, NoTap, Pipeline,
    channel_graph::{ChannelGraph, Removal},
    noise::SeedTree,
    schedule::SchedulerConfig,
    unet2d::UNet2D,
};
use serde_json::{Value, json};

use super::{answer, assert_same, configs, network, parsed, shipped};

fn pruned_pipeline() -> (Pipeline, Pipeline) {
    let (_, config) = configs().swap_remove(1);
    let unet = network(&config, 4);
    let whole = Pipeline::from_parts(
        unet,
        config.clone(),
        SchedulerConfig::default(),
        &Device::flex(),
    )
    .unwrap();
    let graph = ChannelGraph::of(&config).unwrap();
    let mut removal = Removal::default();
    for group in graph.groups() {
        for unit in &group.units {
            if removal.len() % 2 == unit.index % 2 {
                removal.insert(&group.name, unit.index);
                if graph.check(&removal).is_err() {
                    removal.withdraw(&group.name, unit.index);
                }
            }
        }
    }
    assert!(removal.len() > 10);
    let pruned = whole.pruned(&removal).unwrap();
    (whole, pruned)
}

#[test]
fn a_pruned_pipeline_is_the_same_after_a_round_trip() {
    let (whole, pruned) = pruned_pipeline();
    assert!(pruned.parameter_count() < whole.parameter_count() * 9 / 10);
    let dir = tempfile::tempdir().unwrap();
    pruned
        .save(&dir.path().join("pruned"), SaveDtype::F32)
        .unwrap();
    let load =
        |name: &str| Pipeline::load(&dir.path().join(name), &Limits::default(), &Device::flex());
    let loaded = load("pruned").unwrap();
    assert_eq!(loaded.config(), pruned.config());
    assert_eq!(
        answer(loaded.unet(), loaded.config()),
        answer(pruned.unet(), pruned.config())
    );

    let expanded = pruned.expanded().unwrap();
    expanded
        .save(&dir.path().join("expanded"), SaveDtype::F32)
        .unwrap();
    let text = std::fs::read_to_string(dir.path().join("expanded/unet/config.json")).unwrap();
    assert!(
        !text.contains("_depurate"),
        "a plain directory of diffusers"
    );
    let loaded = load("expanded").unwrap();
    assert_eq!(loaded.config(), whole.config());
    assert_same(
        "expanded",
        &answer(loaded.unet(), loaded.config()),
        &answer(pruned.unet(), pruned.config()),
    );
    assert_eq!(loaded.parameter_count(), whole.parameter_count());
}

#[test]
fn weights_of_another_shape_are_refused_by_name() {
    let (whole, pruned) = pruned_pipeline();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole");
    whole.save(&path, SaveDtype::F32).unwrap();
    std::fs::write(
        path.join("unet/config.json"),
        pruned.config().to_json().to_string(),
    )
    .unwrap();
    let error = Pipeline::load(&path, &Limits::default(), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("down_blocks.0"), "{error}");
}

#[test]
fn a_pruned_network_has_gradients_of_its_own_shapes() {
    let (_, pruned) = pruned_pipeline();
    let device = Device::flex().autodiff();
    let unet = UNet2D::new(pruned.config(), &SeedTree::new(1), &device);
    let shape = pruned.config().sample_shape().batched(1);
    let x = Tensor::ones(shape, &device);
    let loss = unet
        .forward(x, &[5], &mut NoTap)
        .unwrap()
        .powi_scalar(2)
        .sum();
    let found = depurate_diffusion::module_weights::gradients(&unet, &loss.backward());
    let shapes: Vec<_> = found
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect();
    let want: Vec<_> = pruned
        .unet()
        .parameters()
        .into_iter()
        .map(|p| (p.name, p.shape))
        .collect();
    assert_eq!(shapes, want);
}

#[test]
fn hostile_notes_are_errors() {
    let base = shipped();
    let with = |note: Value| {
        let mut json = base.to_json();
        json["_depurate_removed"] = note;
        parsed(&json)
    };
    let group = "down_blocks.1.resnets.0.inner";
    assert_eq!(with(json!({})).unwrap(), base);
    assert_eq!(with(Value::Null).unwrap(), base);
    assert_eq!(with(json!({group: [0, 3]})).unwrap().removed.len(), 2);
    let every: BTreeMap<String, Vec<usize>> = ChannelGraph::of(&base)
        .unwrap()
        .groups()
        .iter()
        .map(|group| (group.name.clone(), (0..group.units.len()).collect()))
        .collect();
    for (note, says) in [
        (json!("all"), "expected an object"),
        (json!([group]), "expected an object"),
        (json!({group: 3}), "expected a list"),
        (json!({group: []}), "at least one number"),
        (json!({group: [-1]}), "no whole number"),
        (json!({group: [0.5]}), "no whole number"),
        (json!({group: ["0"]}), "no whole number"),
        (json!({group: [1, 1]}), "twice"),
        (json!({group: [8]}), "no such unit"),
        (json!({group: [u64::MAX]}), "no such unit"),
        (
            json!({"down_blocks.7.resnets.0.inner": [0]}),
            "no such group",
        ),
        (json!({"time_embedding": [0]}), "no such group"),
        (json!({"": [0]}), "no such group"),
        (json!({group: [0, 1, 2, 3, 4, 5, 6, 7]}), "no channel"),
        (json!(every), "no channel"),
    ] {
        let error = with(note.clone()).unwrap_err();
        assert!(
            matches!(error, DiffusionError::Config { .. }),
            "{note}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("_depurate_removed") && text.contains(says),
            "{note}: {text}"
        );
    }
    // a middle normalisation that does not fit is refused before channels are counted
    let mut json = base.to_json();
    json["attn_norm_num_groups"] = json!(5);
    assert!(
        parsed(&json)
            .unwrap_err()
            .to_string()
            .contains("attn_norm_num_groups")
    );
}

#[test]
fn the_largest_configuration_with_a_note_is_read() {
    let kinds = |name: &str| vec![name.to_owned(); 12];
    let mut json = shipped().to_json();
    json["block_out_channels"] = json!(vec![4096; 12]);
    json["down_block_types"] = json!(kinds("AttnDownBlock2D"));
    json["up_block_types"] = json!(kinds("AttnUpBlock2D"));
    json["layers_per_block"] = json!(16);
    json["norm_num_groups"] = json!(4096);
    json["attention_head_dim"] = json!(1);
    json["sample_size"] = json!(2048);
    json["_depurate_removed"] = json!({"conv_in": [0, 1], "down_blocks.3.resnets.1.inner": [5]});
    let config = parsed(&json).unwrap();
    assert_eq!(config.removed.len(), 3);
}
