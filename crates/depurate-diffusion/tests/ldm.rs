//! Single-file checkpoints: every parameter of the published sizes has one place, and small networks written in this layout
//! come back with the same values.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::Device;
use depurate_checkpoint::{
    CheckpointError, LdmCheckpoint, LdmConfigs, LdmFamily, LdmLayout, LdmPlace, Limits, ModelPart,
    SaveTensor, Weights, read_json, save_tensors,
};
use depurate_diffusion::{
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    noise::SeedTree,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};

/// Networks of these configurations; parameters are not allocated before they are used.
struct Networks {
    unet: UNet2DCondition,
    text: ClipText,
    vae: AutoencoderKl,
}

impl Networks {
    fn of(configs: &LdmConfigs) -> Self {
        let (path, seed, device) = (
            Path::new("config.json"),
            SeedTree::new(3),
            Device::default(),
        );
        let unet = UNet2DConditionConfig::from_json(&configs.unet, path).unwrap();
        let vae = AutoencoderKlConfig::from_json(&configs.vae, path).unwrap();
        let text: ClipTextConfig =
            serde_json::from_value(configs.text_encoder.clone().into()).unwrap();
        Self {
            unet: UNet2DCondition::new(&unet, &seed.child("unet", 0), &device),
            text: ClipText::new(&text, &seed.child("text", 0), &device),
            vae: AutoencoderKl::new(&vae, &seed.child("vae", 0), &device),
        }
    }

    fn parameters(&self) -> BTreeSet<(ModelPart, String)> {
        let of =
            |part: ModelPart, names: Vec<String>| names.into_iter().map(move |name| (part, name));
        let names = |infos: Vec<depurate_diffusion::module_weights::ParameterInfo>| {
            infos.into_iter().map(|i| i.name).collect()
        };
        of(ModelPart::Unet, names(self.unet.parameters()))
            .chain(of(ModelPart::TextEncoder, names(self.text.parameters())))
            .chain(of(ModelPart::Vae, names(self.vae.parameters())))
            .collect()
    }

    fn tensors(&self) -> Vec<(ModelPart, SaveTensor)> {
        let of =
            |part: ModelPart, tensors: Vec<SaveTensor>| tensors.into_iter().map(move |t| (part, t));
        of(ModelPart::Unet, self.unet.to_tensors())
            .chain(of(ModelPart::TextEncoder, self.text.to_tensors()))
            .chain(of(ModelPart::Vae, self.vae.to_tensors()))
            .collect()
    }
}

fn layout(family: LdmFamily, configs: &LdmConfigs) -> LdmLayout {
    LdmLayout::new(Path::new("model.safetensors"), family, configs).unwrap()
}

/// Every parameter goes to the file and comes back, and no two meet.
fn check_names(family: LdmFamily, configs: &LdmConfigs) -> BTreeSet<String> {
    let layout = layout(family, configs);
    let expected = Networks::of(configs).parameters();
    let mut hit: BTreeMap<(ModelPart, String), usize> = BTreeMap::new();
    let mut stored = BTreeSet::new();
    for (part, parameter) in &expected {
        let (name, third) = layout
            .to_ldm(*part, parameter)
            .unwrap_or_else(|| panic!("{part} {parameter}"));
        let place = LdmPlace {
            part: *part,
            parameter: parameter.clone(),
            third,
        };
        assert!(layout.to_diffusers(&name).contains(&place), "{name}");
        stored.insert(name);
    }
    for name in &stored {
        for place in layout.to_diffusers(name) {
            *hit.entry((place.part, place.parameter)).or_default() += 1;
        }
    }
    assert!(hit.values().all(|times| *times == 1));
    assert_eq!(hit.into_keys().collect::<BTreeSet<_>>(), expected);
    stored
}

#[test]
fn every_parameter_of_stable_diffusion_1_has_one_place() {
    let stored = check_names(LdmFamily::Sd1, &LdmFamily::Sd1.configs());
    let of = |prefix: &str| {
        stored
            .iter()
            .filter(|name| name.starts_with(prefix))
            .count()
    };
    // the numbers of tensors in the published files
    assert_eq!(of("model.diffusion_model."), 686);
    assert_eq!(of("first_stage_model."), 248);
    assert_eq!(of("cond_stage_model.transformer.text_model."), 196);
    let layout = layout(LdmFamily::Sd1, &LdmFamily::Sd1.configs());
    for (name, parameter) in [
        (
            "model.diffusion_model.time_embed.0.weight",
            "time_embedding.linear_1.weight",
        ),
        (
            "model.diffusion_model.input_blocks.3.0.op.bias",
            "down_blocks.0.downsamplers.0.conv.bias",
        ),
        (
            "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
            "down_blocks.1.resnets.0.conv_shortcut.weight",
        ),
        (
            "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        (
            "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight",
            "down_blocks.3.resnets.1.time_emb_proj.weight",
        ),
        (
            "model.diffusion_model.middle_block.1.proj_in.weight",
            "mid_block.attentions.0.proj_in.weight",
        ),
        (
            "model.diffusion_model.output_blocks.2.1.conv.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
        ),
        (
            "model.diffusion_model.output_blocks.5.2.conv.weight",
            "up_blocks.1.upsamplers.0.conv.weight",
        ),
        (
            "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias",
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.bias",
        ),
        ("model.diffusion_model.out.2.weight", "conv_out.weight"),
        (
            "first_stage_model.encoder.down.2.downsample.conv.weight",
            "encoder.down_blocks.2.downsamplers.0.conv.weight",
        ),
        (
            "first_stage_model.decoder.up.3.block.2.norm2.bias",
            "decoder.up_blocks.0.resnets.2.norm2.bias",
        ),
        (
            "first_stage_model.decoder.up.1.upsample.conv.weight",
            "decoder.up_blocks.2.upsamplers.0.conv.weight",
        ),
        (
            "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
            "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
        ),
        (
            "first_stage_model.decoder.mid.attn_1.proj_out.weight",
            "decoder.mid_block.attentions.0.to_out.0.weight",
        ),
    ] {
        let places = layout.to_diffusers(name);
        assert_eq!(places.len(), 1, "{name}");
        assert_eq!(places[0].parameter, parameter);
    }
}

#[test]
fn every_parameter_of_stable_diffusion_2_has_one_place() {
    let stored = check_names(LdmFamily::Sd2, &LdmFamily::Sd2.configs());
    let of = |prefix: &str| {
        stored
            .iter()
            .filter(|name| name.starts_with(prefix))
            .count()
    };
    assert_eq!(of("model.diffusion_model."), 686);
    // 23 layers of 12 tensors, two tables, the last norm
    assert_eq!(of("cond_stage_model.model."), 23 * 12 + 4);
    let layout = layout(LdmFamily::Sd2, &LdmFamily::Sd2.configs());
    let fused =
        layout.to_diffusers("cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight");
    let names: Vec<_> = fused
        .iter()
        .map(|p| (p.parameter.as_str(), p.third))
        .collect();
    let of = |name: &str| format!("text_model.encoder.layers.22.self_attn.{name}.weight");
    assert_eq!(
        names,
        [
            (of("q_proj").as_str(), Some(0)),
            (of("k_proj").as_str(), Some(1)),
            (of("v_proj").as_str(), Some(2))
        ]
    );
    assert_eq!(
        layout.to_diffusers("cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"),
        []
    );
}

/// Small networks of the family's kind.
fn small(family: LdmFamily) -> LdmConfigs {
    let sd2 = family == LdmFamily::Sd2;
    let mut configs = family.configs();
    for (map, changes) in [
        (
            &mut configs.unet,
            serde_json::json!({
                "attention_head_dim": 2, "block_out_channels": [4, 8, 8], "cross_attention_dim": 6, "norm_num_groups": 2, "sample_size": 8,
                "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "use_linear_projection": sd2,
            }),
        ),
        (
            &mut configs.vae,
            serde_json::json!({
                "block_out_channels": [4, 8], "norm_num_groups": 2, "sample_size": 16,
                "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
            }),
        ),
        (
            &mut configs.text_encoder,
            serde_json::json!({
                "hidden_size": 6, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 20,
            }),
        ),
    ] {
        map.extend(changes.as_object().unwrap().clone());
    }
    configs
}

/// The file's tensors: thirds joined, the autoencoder's attention as 1x1 convolutions.
fn single_file(networks: &Networks, layout: &LdmLayout) -> Vec<SaveTensor> {
    let mut stored: BTreeMap<String, BTreeMap<usize, SaveTensor>> = BTreeMap::new();
    for (part, mut tensor) in networks.tensors() {
        let (name, third) = layout.to_ldm(part, &tensor.name).unwrap();
        if name.contains(".mid.attn_1.") && tensor.shape.len() == 2 {
            tensor.shape.extend([1, 1]);
        }
        stored
            .entry(name)
            .or_default()
            .insert(third.unwrap_or(0), tensor);
    }
    stored
        .into_iter()
        .map(|(name, parts)| {
            let mut parts = parts.into_values();
            let mut whole = parts.next().unwrap();
            for part in parts {
                whole.shape[0] += part.shape[0];
                whole.data.extend(part.data);
            }
            SaveTensor { name, ..whole }
        })
        .collect()
}

fn check_values(family: LdmFamily) {
    let (dir, configs, limits) = (
        tempfile::tempdir().unwrap(),
        small(family),
        Limits::default(),
    );
    let networks = Networks::of(&configs);
    let mut tensors = single_file(&networks, &layout(family, &configs));
    let ema: Vec<SaveTensor> = tensors
        .iter()
        .filter_map(|tensor| {
            let inner = tensor.name.strip_prefix("model.")?;
            let data = tensor.data.iter().map(|v| v + 1.0).collect();
            Some(SaveTensor {
                name: format!("model_ema.{}", inner.replace('.', "")),
                data,
                shape: tensor.shape.clone(),
            })
        })
        .collect();
    tensors.extend(ema);
    let buffer = |name: &str| SaveTensor {
        name: name.into(),
        shape: vec![2],
        data: vec![0.0; 2],
    };
    tensors.extend(["betas", "model_ema.decay"].map(buffer));
    let path = dir.path().join("model.safetensors");
    save_tensors(&path, &tensors, None).unwrap();

    let weights = Weights::open_file(&path, &limits).unwrap();
    assert_eq!(LdmFamily::detect(&path, &weights).unwrap(), family);
    let opened = LdmCheckpoint::from_weights(&path, &weights, family, configs.clone()).unwrap();
    assert_eq!(opened.left_out, ["betas", "model_ema.decay"]);
    let read: BTreeMap<_, _> = networks
        .tensors()
        .into_iter()
        .map(|(part, t)| ((part, t.name.clone()), t))
        .collect();
    for ((part, name), expected) in &read {
        let weights = opened.weights.get(*part).unwrap();
        assert_eq!(weights.get(name).unwrap().shape, expected.shape, "{name}");
        assert_eq!(weights.read_f32(name).unwrap(), expected.data, "{name}");
    }
    let ema = opened.unet_ema.unwrap();
    assert_eq!(ema.infos().count(), opened.weights.unet.infos().count());
    for info in opened.weights.unet.infos() {
        let expected: Vec<f32> = opened
            .weights
            .unet
            .read_f32(&info.name)
            .unwrap()
            .iter()
            .map(|v| v + 1.0)
            .collect();
        assert_eq!(ema.read_f32(&info.name).unwrap(), expected, "{}", info.name);
    }
    // and the networks load them
    let fresh = Networks::of(&configs);
    fresh.unet.load(&opened.weights.unet, &path).unwrap();
    fresh
        .text
        .load(opened.weights.text_encoder.as_ref().unwrap(), &path)
        .unwrap();
    fresh
        .vae
        .load(opened.weights.vae.as_ref().unwrap(), &path)
        .unwrap();

    tensors.push(buffer("model.diffusion_model.extra.weight"));
    save_tensors(&path, &tensors, None).unwrap();
    let weights = Weights::open_file(&path, &limits).unwrap();
    let error = LdmCheckpoint::from_weights(&path, &weights, family, configs).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::UnknownKeys { keys, .. } if keys == &["model.diffusion_model.extra.weight"]),
        "{error}"
    );
}

#[test]
fn a_small_file_of_each_family_comes_back_with_its_values() {
    check_values(LdmFamily::Sd1);
    check_values(LdmFamily::Sd2);
}

#[test]
fn other_families_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let unet_in = "model.diffusion_model.input_blocks.0.0.weight";
    for (names, part) in [
        (
            vec![
                (unet_in, vec![4, 4, 3, 3]),
                ("conditioner.embedders.0.x", vec![1]),
            ],
            "SDXL",
        ),
        (
            vec![
                (unet_in, vec![4, 9, 3, 3]),
                ("cond_stage_model.transformer.x", vec![1]),
            ],
            "inpainting",
        ),
        (
            vec![("model.diffusion_model.joint_blocks.0.x", vec![1])],
            "Stable Diffusion 3",
        ),
        (
            vec![("conv_in.weight", vec![1])],
            "no single-file checkpoint",
        ),
        (vec![(unet_in, vec![4, 4, 3, 3])], "text encoder"),
    ] {
        let tensors: Vec<_> = names
            .into_iter()
            .map(|(name, shape)| SaveTensor {
                name: name.into(),
                data: vec![0.0; shape.iter().product()],
                shape,
            })
            .collect();
        save_tensors(&path, &tensors, None).unwrap();
        let error = LdmCheckpoint::open(&path, &Limits::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn old_configurations_are_read_from_their_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let read = |part: &str| read_json(&golden.join(part), &Limits::default()).unwrap();
    let configs = LdmConfigs {
        unet: read("unet2d-condition/sd1_style/unet/config.json"),
        text_encoder: read("clip-text/real_vocab_h16/model/config.json"),
        vae: read("vae/kl_f2/vae/config.json"),
    };
    check_names(LdmFamily::Sd1, &configs);
}
