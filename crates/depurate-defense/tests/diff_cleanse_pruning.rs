//! Diff-Cleanse's choice of channels: gradients by finite differences, and scores made by hand.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use depurate_defense::{
    CancelToken, Cx, DefenseError, NoJournal, Silent,
    cx::Budget,
    repair::{
        KnownTrigger,
        diff_cleanse_pruning::{
            DiffCleansePruning, DiffCleansePruningParams, Importance, Inputs, Loss, RatioOf, Score,
            UnitImportance, loss,
        },
    },
};
use depurate_diffusion::{
    Denoiser, NoTap, Pipeline,
    channel_graph::{ChannelGraph, GroupKind, Removal},
    firing::Firing,
    module_weights::{Flat, flat_values, with_flat},
    noise::{NoiseSource, SeedTree},
    schedule::SchedulerConfig,
    trigger::Shift,
    unet2d::{UNet2D, UNet2DConfig},
};
use serde_json::json;

fn config(injection: &str) -> UNet2DConfig {
    let json = json!({
        "_class_name": "UNet2DModel", "block_out_channels": [8, 16], "in_channels": 1, "out_channels": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4, "sample_size": 8,
        "resnet_time_scale_shift": injection,
    });
    UNet2DConfig::from_json(json.as_object().unwrap(), Path::new("config.json")).unwrap()
}

/// A random network of which no parameter is 0, with `steps` training timesteps.
fn model(injection: &str, steps: usize) -> Pipeline {
    let device = Device::flex().autodiff();
    let unet = UNet2D::new(&config(injection), &SeedTree::new(3), &device);
    let values: Flat = flat_values(&unet)
        .into_iter()
        .enumerate()
        .map(|(i, (name, values))| {
            let [len] = values.dims();
            let mut noise = SeedTree::new(4).child("more", i as u64).noise(0, 1);
            let noise: Tensor<4> = noise.normal([1, 1, 1, len], &Device::flex()).unwrap();
            (name, values + noise.reshape([len]) * 0.1)
        })
        .collect();
    let scheduler = SchedulerConfig {
        num_train_timesteps: steps,
        beta_end: 20.0 / steps as f64,
        ..SchedulerConfig::default()
    };
    Pipeline::from_parts(
        with_flat(unet, &values),
        config(injection),
        scheduler,
        &device,
    )
    .unwrap()
}

fn known(model: &Pipeline, gamma: bool) -> KnownTrigger {
    let shape = model.sample_shape();
    let ramp = |from: f32| (0..shape.len()).map(|i| from + 0.01 * i as f32).collect();
    KnownTrigger {
        shape,
        shift: ramp(-0.4),
        gamma: gamma.then(|| ramp(0.5)),
        firing: Firing::Stochastic,
        target: None,
    }
}

fn images(model: &Pipeline, count: usize) -> Tensor<4> {
    let shape = model.sample_shape().batched(count);
    let noise = SeedTree::new(6)
        .noise(0, count)
        .normal(shape, &Device::flex());
    noise.unwrap().tanh()
}

fn repair(params: DiffCleansePruningParams) -> DiffCleansePruning {
    params.build().unwrap()
}

/// Runs `body` with surroundings of the seed 1.
fn in_cx<T>(body: impl FnOnce(&Cx<'_>) -> T) -> T {
    body(&Cx {
        rng: SeedTree::new(1),
        budget: Budget::UNLIMITED,
        cancel: &CancelToken::default(),
        progress: &Silent,
        journal: &NoJournal,
    })
}

fn numbers(values: &Tensor<1>) -> Vec<f32> {
    values.to_data().iter::<f32>().collect()
}

/// The sum of the loss over the timesteps, with one parameter's values replaced.
fn total(
    model: &Pipeline,
    inputs: &Inputs,
    of: Loss,
    times: &[usize],
    changed: &[(String, Vec<f32>)],
) -> f64 {
    let values = changed
        .iter()
        .map(|(name, data)| {
            let data = TensorData::new(data.clone(), [data.len()]);
            (name.clone(), Tensor::from_data(data, &Device::flex()))
        })
        .collect();
    let model = model.with_unet(with_flat(model.unet().clone(), &values));
    let sum = times.iter().map(|&t| {
        let value = loss(&model, inputs, of, t).unwrap();
        f64::from(value.inner().into_scalar::<f32>())
    });
    sum.sum()
}

const LOSSES: [Loss; 3] = [
    Loss::Clean,
    Loss::Backdoor(Shift::NoiseLevel),
    Loss::Backdoor(Shift::LostSignal),
];

fn few() -> DiffCleansePruningParams {
    DiffCleansePruningParams {
        timesteps: 2,
        ..DiffCleansePruningParams::default()
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for injection in ["default", "scale_shift"] {
        let model = model(injection, 40);
        let weights = flat_values(model.unet());
        let times = few().timesteps_of(40);
        assert_eq!(times, [37, 39]);
        for of in LOSSES {
            // more images than pass at once
            let inputs = Inputs::new(
                &model,
                &images(&model, 17),
                &known(&model, true),
                &SeedTree::new(2),
            )
            .unwrap();
            let found = in_cx(|cx| repair(few()).gradients(&model, &inputs, of, cx)).unwrap();
            assert_eq!(found.len(), weights.len());
            for name in [
                "conv_in.weight",
                "down_blocks.0.resnets.0.norm2.weight",
                "down_blocks.1.resnets.0.conv1.weight",
                "down_blocks.1.resnets.0.conv2.weight",
                "down_blocks.1.resnets.0.conv_shortcut.weight",
                "down_blocks.1.resnets.0.time_emb_proj.weight",
                "down_blocks.0.downsamplers.0.conv.weight",
                "mid_block.attentions.0.to_v.weight",
                "mid_block.attentions.0.to_out.0.weight",
                "up_blocks.0.attentions.0.group_norm.weight",
                "conv_out.weight",
            ] {
                let (gradient, w) = (numbers(&found[name]), numbers(&weights[name]));
                let largest =
                    |a: &usize, b: &usize| gradient[*a].abs().total_cmp(&gradient[*b].abs());
                let at = (0..w.len()).max_by(largest).unwrap();
                let moved = |by: f32| {
                    let mut values = w.clone();
                    values[at] += by;
                    total(&model, &inputs, of, &times, &[(name.to_owned(), values)])
                };
                let h = 4e-3;
                let want = (moved(h) - moved(-h)) / f64::from(2.0 * h);
                let got = f64::from(gradient[at]);
                assert!(
                    (got - want).abs() <= 0.01 * want.abs() + 5e-4,
                    "{injection} {of:?} {name}: {got} instead of {want}"
                );
            }
        }
    }
}

/// The weights that (3) counts, by name and index, from the unit's own list.
fn entries(graph: &ChannelGraph, id: usize) -> Vec<(String, Vec<usize>)> {
    let shapes: BTreeMap<&str, &[usize]> = graph
        .axes()
        .map(|axis| (axis.parameter, axis.shape))
        .collect();
    let parts = graph.parts(id).into_iter();
    let weights = parts.filter(|part| part.parameter.ends_with("weight"));
    let indices = weights.map(|part| {
        let shape = shapes[part.parameter.as_str()];
        let inner: usize = shape[part.axis + 1..].iter().product();
        let size: usize = shape.iter().product();
        let inside = |i: &usize| {
            let index = i / inner % shape[part.axis];
            part.ranges.iter().any(|range| range.contains(&index))
        };
        (part.parameter, (0..size).filter(inside).collect())
    });
    indices.collect()
}

#[test]
fn importance_is_the_sum_over_the_listed_weights() {
    let (model, params) = (model("scale_shift", 40), few());
    let (images, trigger) = (images(&model, 2), known(&model, false));
    let found =
        in_cx(|cx| repair(params.clone()).importance(&model, &images, &trigger, cx)).unwrap();
    assert_eq!(found.evaluations, 2 * 2 * 2 * 3);
    let graph = ChannelGraph::of(model.config()).unwrap();
    assert_eq!(found.units.len(), graph.ids());

    let inputs = in_cx(|cx| {
        Inputs::new(
            &model,
            &images,
            &trigger,
            &cx.rng.child("diff-cleanse-pruning", 0),
        )
        .unwrap()
    });
    let weights = flat_values(model.unet());
    for (of, clean) in [
        (Loss::Clean, true),
        (Loss::Backdoor(Shift::NoiseLevel), false),
    ] {
        let gradients =
            in_cx(|cx| repair(params.clone()).gradients(&model, &inputs, of, cx)).unwrap();
        let products: BTreeMap<_, Vec<f64>> = weights
            .iter()
            .map(|(name, w)| {
                let pairs = numbers(w).into_iter().zip(numbers(&gradients[name]));
                (
                    name.clone(),
                    pairs.map(|(w, g)| f64::from(w) * f64::from(g)).collect(),
                )
            })
            .collect();
        let units = graph
            .groups()
            .iter()
            .flat_map(|g| g.units.iter().map(move |u| (g, u)));
        for ((group, unit), found) in units.zip(&found.units) {
            assert_eq!((&found.group, found.unit), (&group.name, unit.index));
            let parts = graph.parts(unit.id).into_iter();
            let parts = parts.filter(|part| part.parameter.ends_with("weight"));
            let channels: usize = parts
                .flat_map(|part| part.ranges)
                .map(|range| range.len())
                .sum();
            let sum: f64 = entries(&graph, unit.id)
                .iter()
                .flat_map(|(name, indices)| indices.iter().map(|i| products[name][*i].abs()))
                .sum();
            let want = sum / channels as f64;
            let got = if clean { found.clean } else { found.backdoor };
            assert!(
                (got - want).abs() <= 1e-5 * want && want > 0.0,
                "{}: {got} {want}",
                group.name
            );
        }
        // what the first order says of a loss whose unit is scaled by 1 - h: dL = - h sum w dL/dw
        for name in [
            "mid_block.attentions.0.heads",
            "down_blocks.1.resnets.0.inner",
        ] {
            let unit = graph.group(name).unwrap().units[1];
            let mut scaled = BTreeMap::new();
            let mut want = 0.0;
            for (parameter, indices) in entries(&graph, unit.id) {
                let w: &mut Vec<f32> = scaled
                    .entry(parameter.clone())
                    .or_insert_with(|| numbers(&weights[&parameter]));
                for i in indices {
                    want += products[&parameter][i];
                    w[i] *= 1.01;
                }
            }
            let up: Vec<_> = scaled.into_iter().collect();
            let down: Vec<_> = up
                .iter()
                .map(|(name, w)| {
                    let old = numbers(&weights[name]);
                    let down = w.iter().zip(old).map(|(w, old)| 2.0 * old - w).collect();
                    (name.clone(), down)
                })
                .collect();
            let at = |changed: &[_]| total(&model, &inputs, of, &params.timesteps_of(40), changed);
            let got = (at(&up) - at(&down)) / 0.02;
            assert!(
                (got - want).abs() <= 0.02 * want.abs() + 1e-3,
                "{name} {of:?}: {got} {want}"
            );
        }
    }
}

#[test]
fn timesteps_are_evenly_spaced_in_the_last_tenth() {
    let of = |timesteps, len| {
        let params = DiffCleansePruningParams {
            timesteps,
            ..DiffCleansePruningParams::default()
        };
        params.timesteps_of(len)
    };
    assert_eq!(of(100, 1000), (900..1000).collect::<Vec<_>>());
    assert_eq!(of(1000, 1000).len(), 100);
    assert_eq!(of(4, 1000), [924, 949, 974, 999]);
    assert_eq!(of(100, 50), [45, 46, 47, 48, 49]);
    assert_eq!(of(3, 5), [4]);
}

/// Importances made by hand: 1 for every unit of the network but those named, under both losses.
fn by_hand(graph: &ChannelGraph, other: &[(&str, usize, f64, f64)]) -> Importance {
    let units = graph.groups().iter().flat_map(|group| {
        group.units.iter().map(move |unit| {
            let named = other
                .iter()
                .find(|(name, index, ..)| *name == group.name && *index == unit.index);
            let (backdoor, clean) = named.map_or((1.0, 1.0), |(_, _, b, c)| (*b, *c));
            UnitImportance {
                group: group.name.clone(),
                kind: group.kind,
                unit: unit.index,
                backdoor,
                clean,
            }
        })
    });
    Importance {
        units: units.collect(),
        evaluations: 0,
    }
}

const INNER: &str = "down_blocks.1.resnets.0.inner";
const HEADS: &str = "mid_block.attentions.0.heads";

fn chosen(params: DiffCleansePruningParams, importance: &Importance) -> Removal {
    let graph = ChannelGraph::of(&config("default")).unwrap();
    let chosen = repair(params)
        .choose(&graph, importance, &SeedTree::new(5))
        .unwrap();
    graph.check(&chosen).unwrap();
    chosen
}

fn units(removal: &Removal, group: &str) -> Vec<usize> {
    let found = removal.groups().find(|(name, _)| *name == group);
    found.map_or(vec![], |(_, units)| units.iter().copied().collect())
}

#[test]
fn released_and_intended_scores_differ() {
    let graph = ChannelGraph::of(&config("default")).unwrap();
    // unit 1 matters for the trigger alone, unit 2 for everything
    let importance = by_hand(
        &graph,
        &[
            (INNER, 1, 3.0, 0.5),
            (INNER, 2, 5.0, 9.0),
            (HEADS, 3, 2.0, 1.0),
        ],
    );
    let with = |score| {
        let params = DiffCleansePruningParams {
            score,
            ..DiffCleansePruningParams::default()
        };
        chosen(params, &importance)
    };
    assert_eq!(units(&with(Score::Intended), INNER), [1]);
    assert_eq!(units(&with(Score::Released), INNER), [2]);
    assert_eq!(units(&with(Score::Intended), HEADS), [3]);
    // every group that can loses one unit
    let removal = with(Score::Intended);
    let prunable = graph.groups().iter().filter(|group| group.prunable());
    assert_eq!(removal.len(), prunable.clone().count());
    assert!(
        prunable
            .into_iter()
            .all(|group| units(&removal, &group.name).len() == 1)
    );
    // the control is one of its seed
    assert_eq!(with(Score::Random), with(Score::Random));
    assert_ne!(with(Score::Random), with(Score::Intended));
    assert_ne!(with(Score::Random), with(Score::Released));
}

#[test]
fn ratios_are_of_each_group_or_of_all() {
    let graph = ChannelGraph::of(&config("default")).unwrap();
    let importance = by_hand(
        &graph,
        &[
            (INNER, 0, 4.0, 1.0),
            (INNER, 3, 3.0, 1.0),
            (HEADS, 2, 9.0, 1.0),
        ],
    );
    let params = DiffCleansePruningParams {
        kinds: vec![GroupKind::Inner, GroupKind::Heads],
        ratio: 0.5,
        ..DiffCleansePruningParams::default()
    };
    let half = chosen(params.clone(), &importance);
    assert_eq!(units(&half, INNER), [0, 3]);
    for group in graph.groups() {
        let want = if group.kind == GroupKind::Residual {
            0
        } else {
            group.units.len() / 2
        };
        assert_eq!(units(&half, &group.name).len(), want, "{}", group.name);
    }
    let of_all = |ratio| {
        let params = DiffCleansePruningParams {
            ratio,
            ratio_of: RatioOf::All,
            ..params.clone()
        };
        chosen(params, &importance)
    };
    let count: usize = graph
        .groups()
        .iter()
        .filter(|group| group.kind != GroupKind::Residual)
        .map(|group| group.units.len())
        .sum();
    assert_eq!(of_all(0.5 / count as f64).len(), 1, "at least one");
    // relative to its group's mean the head comes first: 9 / 3 - 1, before 4 / 2.25 - 1 and 3 / 2.25 - 1
    assert_eq!(units(&of_all(1.0 / count as f64), HEADS), [2]);
    let three = of_all(3.0 / count as f64);
    assert_eq!(
        (units(&three, HEADS), units(&three, INNER)),
        (vec![2], vec![0, 3])
    );
    // with almost everything asked for, every layer keeps a channel
    assert!(of_all(0.99).len() < count);
    // what cannot go stays, and the next one goes
    let stubborn = graph
        .groups()
        .iter()
        .flat_map(|group| group.units.iter().map(move |unit| (group, unit)))
        .find(|(group, unit)| group.prunable() && !unit.removable);
    if let Some((group, unit)) = stubborn {
        let importance = by_hand(&graph, &[(&group.name, unit.index, 9.0, 1.0)]);
        let removal = chosen(DiffCleansePruningParams::default(), &importance);
        assert_eq!(units(&removal, &group.name).len(), 1);
        assert!(!removal.contains(&group.name, unit.index));
    }
}

#[test]
fn the_chosen_units_go_and_the_network_runs() {
    let model = model("default", 40);
    let repair = repair(few());
    let trigger = known(&model, false);
    let importance =
        in_cx(|cx| repair.importance(&model, &images(&model, 2), &trigger, cx)).unwrap();
    let graph = ChannelGraph::of(model.config()).unwrap();
    let removal = repair
        .choose(&graph, &importance, &SeedTree::new(5))
        .unwrap();
    let pruned = model.pruned(&removal).unwrap();
    assert!(pruned.parameter_count() < model.parameter_count());
    let out = pruned
        .predict(images(&model, 1).autodiff(), &[3], &mut NoTap)
        .unwrap();
    assert_eq!(out.value.dims(), model.sample_shape().batched(1));

    // A pruned network can be scored again, and an old score is not taken for the new network.
    let again = in_cx(|cx| repair.importance(&pruned, &images(&model, 2), &trigger, cx)).unwrap();
    assert_eq!(again.units.len(), importance.units.len() - removal.len());
    let left = ChannelGraph::of(pruned.config()).unwrap();
    let second = repair.choose(&left, &again, &SeedTree::new(5)).unwrap();
    assert!(pruned.pruned(&second).unwrap().parameter_count() < pruned.parameter_count());
    let error = repair
        .choose(&left, &importance, &SeedTree::new(5))
        .unwrap_err();
    assert!(error.to_string().contains("score it again"), "{error}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let default = DiffCleansePruningParams::default;
    for (params, field) in [
        (
            DiffCleansePruningParams {
                timesteps: 0,
                ..default()
            },
            "timesteps",
        ),
        (
            DiffCleansePruningParams {
                ratio: 0.0,
                ..default()
            },
            "ratio",
        ),
        (
            DiffCleansePruningParams {
                ratio: 1.0,
                ..default()
            },
            "ratio",
        ),
        (
            DiffCleansePruningParams {
                ratio: f64::NAN,
                ..default()
            },
            "ratio",
        ),
        (
            DiffCleansePruningParams {
                kinds: vec![],
                ..default()
            },
            "kinds",
        ),
    ] {
        let error = params.build().unwrap_err();
        assert!(matches!(error, DefenseError::Params { field: found, .. } if found == field));
    }
    let unknown = serde_json::from_value::<DiffCleansePruningParams>(json!({"ratios": 0.1}));
    assert!(unknown.is_err());

    let model = model("default", 40);
    let run = |model: &Pipeline, images: &Tensor<4>, trigger: &KnownTrigger| {
        in_cx(|cx| repair(few()).importance(model, images, trigger, cx))
            .unwrap_err()
            .to_string()
    };
    let (two, fits) = (images(&model, 2), known(&model, true));
    assert!(run(&model.frozen(), &two, &fits).contains("autodiff"));
    let cut = |pixels: &Tensor<4>| pixels.clone().narrow(3, 0, 4);
    assert!(run(&model, &cut(&two), &fits).contains("images"));
    let mut other = fits.clone();
    other.shape.height = 4;
    assert!(run(&model, &two, &other).contains("inverted trigger"));
    let mut other = fits.clone();
    other.gamma = Some(vec![1.0; 3]);
    assert!(run(&model, &two, &other).contains("inverted gamma"));
    let mut other = fits;
    other.shift[5] = f32::NAN;
    assert!(run(&model, &two, &other).contains("not finite"));
}
