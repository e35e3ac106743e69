//! Text-conditional networks without some of their channels.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Limits, SaveDtype, SaveTensor};
use depurate_diffusion::{
    NoTap,
    channel_graph::{ChannelGraph, GroupKind, PrunableConfig, Removal},
    noise::{NoiseSource, SeedTree},
    text_to_image::TextToImage,
    unet2d_condition::{Added, UNet2DCondition, UNet2DConditionConfig},
};
use depurate_testkit::miniature::golden_model;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Checked, assert_same, check, shaken, single};

fn read(json: &Value) -> UNet2DConditionConfig {
    let map = json.as_object().unwrap();
    UNet2DConditionConfig::from_json(map, Path::new("config.json")).unwrap()
}

fn noise(shape: [usize; 4]) -> Tensor<4> {
    let mut noise = SeedTree::new(9).noise(0, shape[0]);
    noise.normal(shape, &Device::flex()).unwrap()
}

impl Checked for UNet2DCondition {
    fn answer(&self, config: &UNet2DConditionConfig) -> Vec<f64> {
        let x = noise(config.sample_shape().batched(2));
        let states = noise([2, config.cross_attention_dim, 1, 5]).squeeze_dim(2);
        let added = config.added.map(|added| Added {
            pooled: noise([2, 1, 1, added.input_width - 6 * added.time_width]).reshape([2, -1]),
            sizes: vec![vec![8.0, 8.0, 0.0, 0.0, 8.0, 8.0]; 2],
        });
        let out = self.forward(x, &[3, 700], states, added.as_ref(), &mut NoTap);
        out.unwrap().into_data().iter::<f64>().collect()
    }
    fn tensors(&self) -> Vec<SaveTensor> {
        self.to_tensors()
    }
    fn written_and_read(config: &UNet2DConditionConfig) -> UNet2DConditionConfig {
        read(&config.to_json())
    }
}

fn configs() -> Vec<(&'static str, UNet2DConditionConfig)> {
    let config = |changed: Value| {
        let mut options = json!({
            "_class_name": "UNet2DConditionModel", "block_out_channels": [8, 16], "layers_per_block": 1, "sample_size": 8,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "in_channels": 2, "out_channels": 2, "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 6,
        });
        let map = options.as_object_mut().unwrap();
        map.extend(changed.as_object().unwrap().clone());
        read(&options)
    };
    vec![
        ("convolutions", config(json!({}))),
        (
            "linear, more layers",
            config(json!({
                "use_linear_projection": true, "layers_per_block": 2, "transformer_layers_per_block": [1, 2],
                "attention_head_dim": [2, 4], "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
                "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            })),
        ),
        (
            "added conditioning",
            config(json!({
                "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30,
            })),
        ),
    ]
}

fn network(config: &UNet2DConditionConfig, seed: u64) -> UNet2DCondition {
    shaken(config.network(&SeedTree::new(seed), &Device::flex()), seed)
}

#[test]
fn every_channel_axis_of_the_network_is_in_the_graph() {
    for (what, config) in configs() {
        let unet = network(&config, 0);
        let graph = ChannelGraph::of(&config).unwrap();
        for info in unet.parameters() {
            let name = info.name.as_str();
            for axis in 0..info.shape.len().min(2) {
                let prompt = name.contains("attn2.to_k") || name.contains("attn2.to_v");
                let fixed = name.starts_with("time_embedding.")
                    || name.starts_with("add_embedding.")
                    || (name == "conv_in.weight" && axis == 1)
                    || (name.starts_with("conv_out.") && axis == 0)
                    || (axis == 1 && (name.ends_with("time_emb_proj.weight") || prompt));
                let found = graph
                    .axes()
                    .find(|found| found.parameter == name && found.axis == axis);
                assert_eq!(found.is_none(), fixed, "{what}: {name} {axis}");
                if let Some(found) = found {
                    assert_eq!(found.shape, info.shape, "{what}: {name}");
                    assert_eq!(found.units.len(), info.shape[axis], "{what}: {name}");
                }
            }
        }
    }
}

#[test]
fn a_transformer_keeps_its_stream_and_can_lose_heads_and_inner_channels() {
    let (_, config) = configs().swap_remove(0);
    let graph = ChannelGraph::of(&config).unwrap();
    let at = "down_blocks.0.attentions.0";
    let block = format!("{at}.transformer_blocks.0");
    let hidden = graph.group(&format!("{at}.hidden")).unwrap();
    assert!(!hidden.prunable(), "layer normalisations tie it");
    let heads = graph.group(&format!("{block}.attn2.heads")).unwrap();
    assert_eq!((heads.kind, heads.units.len()), (GroupKind::Heads, 2));
    let inner = graph.group(&format!("{block}.ff.inner")).unwrap();
    assert_eq!((inner.kind, inner.units.len()), (GroupKind::Inner, 32));
    let parts: Vec<_> = graph
        .parts(inner.units[3].id)
        .into_iter()
        .map(|part| (part.parameter, part.axis, part.ranges))
        .collect();
    let value_and_gate = vec![3..4, 35..36];
    let name = |name: &str| format!("{block}.ff.net.{name}");
    assert_eq!(
        parts,
        [
            (name("0.proj.bias"), 0, value_and_gate.clone()),
            (name("0.proj.weight"), 0, value_and_gate.clone()),
            (name("2.weight"), 1, value_and_gate[..1].to_vec()),
        ]
    );
}

#[test]
fn a_network_without_a_unit_answers_as_with_zeros_in_its_place() {
    for (what, config) in configs() {
        let unet = network(&config, 1);
        for group in ChannelGraph::of(&config).unwrap().groups() {
            // of many units of one kind, the first and the last
            let ends = [group.units.first(), group.units.last()];
            for unit in ends.into_iter().flatten().filter(|unit| unit.removable) {
                let label = format!("{what}: {} {}", group.name, unit.index);
                check(&label, &unet, &config, &single(&group.name, unit.index));
            }
        }
    }
}

/// A share of all units that can go together.
fn some(config: &UNet2DConditionConfig, seed: u64, share: f64) -> Removal {
    let graph = ChannelGraph::of(config).unwrap();
    let mut rng = SeedTree::new(seed).rng();
    let mut removal = Removal::default();
    for group in graph.groups() {
        for unit in &group.units {
            if rand::RngExt::random_range(&mut rng, 0.0..1.0) < share {
                removal.insert(&group.name, unit.index);
                if graph.check(&removal).is_err() {
                    removal.withdraw(&group.name, unit.index);
                }
            }
        }
    }
    removal
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_choice_answers_as_with_zeros(which in 0_usize..3, seed in any::<u64>(), share in 0.02_f64..0.7) {
        let (what, config) = configs().swap_remove(which);
        let removal = some(&config, seed, share);
        prop_assume!(!removal.is_empty());
        check(what, &network(&config, seed), &config, &removal);
    }
}

#[test]
fn a_pruned_pipeline_is_the_same_after_a_round_trip() {
    let device = Device::flex();
    let whole = golden_model(&device);
    let pruned = whole.pruned(&some(whole.unet().config(), 5, 0.3)).unwrap();
    let count = |model: &TextToImage| model.unet().parameter_count();
    assert!(count(&pruned) < count(&whole) * 9 / 10);
    let dir = tempfile::tempdir().unwrap();
    let again = |model: &TextToImage, name: &str| {
        let path = dir.path().join(name);
        model.save(&path, SaveDtype::F32).unwrap();
        TextToImage::load(&path, &Limits::default(), &device).unwrap()
    };
    let answer = |model: &TextToImage| model.unet().answer(model.unet().config());
    let loaded = again(&pruned, "pruned");
    assert_eq!(loaded.unet().config(), pruned.unet().config());
    assert_eq!(answer(&loaded), answer(&pruned));

    let expanded = again(&pruned.expanded().unwrap(), "expanded");
    assert_eq!(expanded.unet().config(), whole.unet().config());
    assert_same("expanded", &answer(&expanded), &answer(&pruned));
    let text = std::fs::read_to_string(dir.path().join("expanded/unet/config.json")).unwrap();
    assert!(
        !text.contains("_depurate"),
        "a plain directory of diffusers"
    );
}

#[test]
fn a_hostile_note_is_an_error() {
    let (_, config) = configs().swap_remove(0);
    for (note, says) in [
        (json!([1]), "expected an object"),
        (json!({"mid_block.attentions.0.hidden": [0]}), "no channel"),
        (json!({"nothing": [0]}), "no such group"),
    ] {
        let mut json = config.to_json();
        json["_depurate_removed"] = note;
        let map = json.as_object().unwrap();
        let error = UNet2DConditionConfig::from_json(map, Path::new("config.json")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("_depurate_removed") && text.contains(says),
            "{text}"
        );
    }
}
