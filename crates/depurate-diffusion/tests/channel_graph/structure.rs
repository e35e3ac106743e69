//! What the graph says of networks.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Device;
use depurate_diffusion::{
    channel_graph::{ChannelGraph, GroupKind},
    noise::SeedTree,
    unet2d::UNet2D,
};
use serde_json::json;

use super::{config, configs};

#[test]
fn every_channel_axis_of_the_network_is_in_the_graph() {
    for (what, config) in configs() {
        let unet = UNet2D::new(&config, &SeedTree::new(0), &Device::flex());
        let graph = ChannelGraph::of(&config).unwrap();
        let known: BTreeMap<(&str, usize), _> = graph
            .axes()
            .map(|axis| ((axis.parameter, axis.axis), axis))
            .collect();
        for info in unet.parameters() {
            let name = info.name.as_str();
            for axis in 0..info.shape.len().min(2) {
                let fixed = name.starts_with("time_embedding.")
                    || (name == "conv_in.weight" && axis == 1)
                    || (name.starts_with("conv_out.") && axis == 0)
                    || (name.ends_with("time_emb_proj.weight") && axis == 1);
                match known.get(&(name, axis)) {
                    Some(found) => {
                        assert!(!fixed, "{what}: {name} {axis}");
                        assert_eq!(found.shape, info.shape, "{what}: {name}");
                        assert_eq!(found.units.len(), info.shape[axis], "{what}: {name} {axis}");
                    }
                    None => assert!(fixed, "{what}: {name} {axis} is in no unit"),
                }
            }
        }
        // every unit is in the lists, and numbers are distinct
        let in_groups: BTreeSet<usize> = graph
            .groups()
            .iter()
            .flat_map(|group| group.units.iter().map(|unit| unit.id))
            .collect();
        assert_eq!(in_groups.len(), graph.ids(), "{what}");
        let on_axes: BTreeSet<usize> = graph
            .axes()
            .flat_map(|axis| axis.units.iter().map(|unit| *unit as usize))
            .collect();
        assert_eq!(in_groups, on_axes, "{what}");
    }
}

/// A normalisation's groups keep their width, whatever is removed: each is in one unit.
#[test]
fn no_group_of_a_normalisation_is_in_two_units() {
    for (what, config) in configs() {
        for axis in ChannelGraph::of(&config).unwrap().axes() {
            let groups = match axis.parameter {
                name if !name.contains("norm") => continue,
                name if name.starts_with("mid_block.attentions") => config
                    .attn_norm_num_groups
                    .unwrap_or(config.norm_num_groups),
                _ => config.norm_num_groups,
            };
            for group in axis.units.chunks(axis.units.len() / groups) {
                let one = group.iter().all(|unit| *unit == group[0]);
                assert!(one, "{what}: {}", axis.parameter);
            }
        }
    }
}

#[test]
fn the_streams_of_a_small_network_are_known() {
    let graph = ChannelGraph::of(&config(json!({"norm_num_groups": 2}))).unwrap();
    let inner = graph.group("down_blocks.1.resnets.0.inner").unwrap();
    assert_eq!(inner.kind, GroupKind::Inner);
    // 16 channels, 2 groups of a normalisation
    assert_eq!(
        inner
            .units
            .iter()
            .map(|unit| unit.channels)
            .collect::<Vec<_>>(),
        [8, 8]
    );
    let parts: Vec<_> = graph
        .parts(inner.units[1].id)
        .into_iter()
        .map(|part| (part.parameter, part.axis, part.ranges[0].clone()))
        .collect();
    let at = |name: &str| format!("down_blocks.1.resnets.0.{name}");
    assert_eq!(
        parts,
        [
            (at("conv1.bias"), 0, 8..16),
            (at("conv1.weight"), 0, 8..16),
            (at("conv2.weight"), 1, 8..16),
            (at("norm2.bias"), 0, 8..16),
            (at("norm2.weight"), 0, 8..16),
            (at("time_emb_proj.bias"), 0, 8..16),
            (at("time_emb_proj.weight"), 0, 8..16),
        ]
    );
    // two heads of 8
    let heads = graph.group("mid_block.attentions.0.heads").unwrap();
    assert_eq!((heads.kind, heads.units.len()), (GroupKind::Heads, 2));
    assert_eq!(
        graph.parts(heads.units[0].id).len(),
        7,
        "3 layers with biases, and columns"
    );
    // On the way up, 16 channels from below and 8 from the side are normalised in groups of 12: the second group has 4 of the
    // former and all 8 of the latter, which therefore cannot go.
    let residual = graph.group("conv_in").unwrap();
    let streams = ["conv_in", "up_blocks.0.upsamplers.0"];
    assert_eq!(residual.streams, streams);
    let units: Vec<_> = residual
        .units
        .iter()
        .map(|unit| (unit.channels, unit.removable))
        .collect();
    assert_eq!(units, [(12, false), (12, true)]);

    let graph = ChannelGraph::of(&config(json!({"norm_num_groups": 1}))).unwrap();
    let inner = graph.group("down_blocks.1.resnets.0.inner").unwrap();
    assert!(inner.why_not_prunable().unwrap().contains("one unit"));
}

#[test]
fn the_time_embedding_of_scale_and_shift_has_two_rows_a_channel() {
    let graph =
        ChannelGraph::of(&config(json!({"resnet_time_scale_shift": "scale_shift"}))).unwrap();
    let inner = graph.group("down_blocks.0.resnets.0.inner").unwrap();
    let parts = graph.parts(inner.units[1].id);
    let rows = parts
        .iter()
        .find(|part| part.parameter.ends_with("time_emb_proj.weight"))
        .unwrap();
    assert_eq!(rows.ranges, [2..4, 10..12]);
}
