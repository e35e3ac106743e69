//! The modules of the three networks, under both names.
//!
//! ```text
//! UNet, L residual blocks a level, B levels, i = 1 + b (L + 1) + l on the way down, o = b (L + 1) + l on the way up:
//!   down_blocks.b.resnets.l        input_blocks.i.0          down_blocks.b.attentions.l    input_blocks.i.1
//!   down_blocks.b.downsamplers.0   input_blocks.i.0, l = L   (the convolution is `op`)
//!   up_blocks.b.resnets.l          output_blocks.o.0         up_blocks.b.attentions.l      output_blocks.o.1
//!   up_blocks.b.upsamplers.0       output_blocks.o.k, l = L, behind the attention if there is one
//! autoencoder: down_blocks.i = encoder.down.i, up_blocks.i = decoder.up.(B - 1 - i)
//! ```

use super::layout::{TextNames, UnetCounts, VaeCounts};

/// Names inside a module: diffusers' and the file's.
type Inner = &'static [(&'static str, &'static str)];

/// A module under both names; inside it, names are equal unless `inner` lists them.
#[derive(Debug, Clone)]
pub(super) struct Module {
    pub diffusers: String,
    pub ldm: String,
    pub inner: Inner,
}

const SAME: Inner = &[];
const UNET_RESNET: Inner = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
const VAE_RESNET: Inner = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
];
const VAE_ATTENTION: Inner = &[
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
];
const OPENCLIP_LAYER: Inner = &[
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];

/// A text encoder's layers with OpenCLIP's names.
pub(super) const OPENCLIP_LAYERS: (&str, &str) =
    ("text_model.encoder.layers", "transformer.resblocks");
/// Its position table, which has no `.weight` in OpenCLIP.
pub(super) const POSITIONS: (&str, &str) = (
    "text_model.embeddings.position_embedding.weight",
    "positional_embedding",
);
/// The projections that OpenCLIP stores as one, in its order.
pub(super) const FUSED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Whether a parameter is a projection of the autoencoder's attention.
pub(super) fn is_vae_attention(parameter: &str) -> bool {
    parameter.contains("mid_block.attentions.")
        && (parameter.starts_with("encoder.") || parameter.starts_with("decoder."))
}

fn module(diffusers: impl Into<String>, ldm: impl Into<String>, inner: Inner) -> Module {
    Module {
        diffusers: diffusers.into(),
        ldm: ldm.into(),
        inner,
    }
}

/// The UNet's modules, without the file's prefix.
pub(super) fn unet(counts: &UnetCounts) -> Vec<Module> {
    let (levels, per_level) = (counts.levels(), counts.layers_per_block);
    let mut modules = vec![
        module("time_embedding.linear_1", "time_embed.0", SAME),
        module("time_embedding.linear_2", "time_embed.2", SAME),
        module("conv_in", "input_blocks.0.0", SAME),
        module("conv_norm_out", "out.0", SAME),
        module("conv_out", "out.2", SAME),
        module("mid_block.resnets.0", "middle_block.0", UNET_RESNET),
        module("mid_block.attentions.0", "middle_block.1", SAME),
        module("mid_block.resnets.1", "middle_block.2", UNET_RESNET),
    ];
    for (b, attends) in counts.down_attention.iter().enumerate() {
        for l in 0..per_level {
            let i = 1 + b * (per_level + 1) + l;
            let of = |kind: &str| format!("down_blocks.{b}.{kind}.{l}");
            modules.push(module(
                of("resnets"),
                format!("input_blocks.{i}.0"),
                UNET_RESNET,
            ));
            if *attends {
                modules.push(module(
                    of("attentions"),
                    format!("input_blocks.{i}.1"),
                    SAME,
                ));
            }
        }
        if b + 1 < levels {
            let i = 1 + b * (per_level + 1) + per_level;
            modules.push(module(
                format!("down_blocks.{b}.downsamplers.0.conv"),
                format!("input_blocks.{i}.0.op"),
                SAME,
            ));
        }
    }
    for (b, attends) in counts.up_attention.iter().enumerate() {
        for l in 0..=per_level {
            let o = b * (per_level + 1) + l;
            let of = |kind: &str| format!("up_blocks.{b}.{kind}.{l}");
            modules.push(module(
                of("resnets"),
                format!("output_blocks.{o}.0"),
                UNET_RESNET,
            ));
            if *attends {
                modules.push(module(
                    of("attentions"),
                    format!("output_blocks.{o}.1"),
                    SAME,
                ));
            }
        }
        if b + 1 < levels {
            let o = b * (per_level + 1) + per_level;
            let behind = if *attends { 2 } else { 1 };
            modules.push(module(
                format!("up_blocks.{b}.upsamplers.0.conv"),
                format!("output_blocks.{o}.{behind}.conv"),
                SAME,
            ));
        }
    }
    modules
}

/// The autoencoder's modules, without the file's prefix.
pub(super) fn vae(counts: &VaeCounts) -> Vec<Module> {
    let (levels, per_level) = (counts.levels, counts.layers_per_block);
    let mut modules = vec![
        module("quant_conv", "quant_conv", SAME),
        module("post_quant_conv", "post_quant_conv", SAME),
    ];
    for half in ["encoder", "decoder"] {
        let mut push = |diffusers: &str, ldm: &str, inner| {
            modules.push(module(
                format!("{half}.{diffusers}"),
                format!("{half}.{ldm}"),
                inner,
            ));
        };
        push("conv_in", "conv_in", SAME);
        push("conv_norm_out", "norm_out", SAME);
        push("conv_out", "conv_out", SAME);
        push("mid_block.resnets.0", "mid.block_1", VAE_RESNET);
        push("mid_block.resnets.1", "mid.block_2", VAE_RESNET);
        push("mid_block.attentions.0", "mid.attn_1", VAE_ATTENTION);
        let is_encoder = half == "encoder";
        for i in 0..levels {
            let (way, theirs, blocks, resampler) = if is_encoder {
                ("down", i, per_level, "downsample")
            } else {
                ("up", levels - 1 - i, per_level + 1, "upsample")
            };
            for j in 0..blocks {
                let (ours, ldm) = (
                    format!("{way}_blocks.{i}.resnets.{j}"),
                    format!("{way}.{theirs}.block.{j}"),
                );
                push(&ours, &ldm, VAE_RESNET);
            }
            if i + 1 < levels {
                let ours = format!("{way}_blocks.{i}.{resampler}rs.0.conv");
                push(&ours, &format!("{way}.{theirs}.{resampler}.conv"), SAME);
            }
        }
    }
    modules
}

/// The text encoder's modules, without the file's prefix.
pub(super) fn text(names: TextNames, layers: usize) -> Vec<Module> {
    if names == TextNames::Transformers {
        // Old files leave `text_model.` out; the loader of the encoder understands both.
        return ["text_model", "embeddings", "encoder", "final_layer_norm"]
            .map(|same| module(same, same, SAME))
            .to_vec();
    }
    let (ours, theirs) = OPENCLIP_LAYERS;
    let mut modules = vec![
        module(
            "text_model.embeddings.token_embedding",
            "token_embedding",
            SAME,
        ),
        module("text_model.final_layer_norm", "ln_final", SAME),
    ];
    modules.extend((0..layers).map(|i| {
        let (ours, theirs) = (format!("{ours}.{i}"), format!("{theirs}.{i}"));
        module(ours, theirs, OPENCLIP_LAYER)
    }));
    modules
}
