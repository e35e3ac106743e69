//! Names of a single-file checkpoint in both directions.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::modules::{self, FUSED, Module, OPENCLIP_LAYERS, POSITIONS};
use super::{LdmConfigs, LdmFamily};
use crate::{CheckpointError, ModelPart, Result};

/// Most levels, and blocks or layers of one, that a configuration may state: the tables grow with them.
const MOST: usize = 128;
/// Buffers at the top of the file: tables of the noise schedule that are computed anew.
const SCHEDULE_TABLES: [&str; 18] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "model_ema.decay",
    "model_ema.num_updates",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "scale_factor",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "global_step",
];

/// Block counts of a UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnetCounts {
    pub layers_per_block: usize,
    pub down_attention: Vec<bool>,
    pub up_attention: Vec<bool>,
}

impl UnetCounts {
    pub(super) fn levels(&self) -> usize {
        self.down_attention.len()
    }
}

/// Block counts of an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VaeCounts {
    pub levels: usize,
    pub layers_per_block: usize,
}

/// Whose names the text encoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextNames {
    Transformers,
    OpenClip,
}

/// Where a stored tensor belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdmPlace {
    /// The network.
    pub part: ModelPart,
    /// The name that diffusers or transformers gives the parameter.
    pub parameter: String,
    /// Which third of the stored tensor's rows it is, where Q, K and V are one tensor.
    pub third: Option<usize>,
}

/// The names of a single-file checkpoint, unfolded from block counts.
#[derive(Debug, Clone)]
pub struct LdmLayout {
    tables: Vec<Table>,
    text_names: TextNames,
    text_layers: usize,
    ema: HashMap<String, Module>,
}

/// The modules of one network, by either name.
#[derive(Debug, Clone)]
struct Table {
    part: ModelPart,
    prefix: &'static str,
    by_diffusers: HashMap<String, Module>,
    by_ldm: HashMap<String, Module>,
}

impl Table {
    fn new(part: ModelPart, prefix: &'static str, modules: Vec<Module>) -> Self {
        let by = |name: fn(&Module) -> &String| {
            modules
                .iter()
                .map(|m| (name(m).clone(), m.clone()))
                .collect()
        };
        Self {
            part,
            prefix,
            by_diffusers: by(|m| &m.diffusers),
            by_ldm: by(|m| &m.ldm),
        }
    }
}

impl LdmLayout {
    /// The names that belong to these configurations; `path` is named in errors.
    ///
    /// # Errors
    /// A block count is missing or out of range.
    pub fn new(path: &Path, family: LdmFamily, configs: &LdmConfigs) -> Result<Self> {
        let read = |map| Counts { path, map };
        let unet = read(&configs.unet).unet()?;
        let vae = read(&configs.vae).vae()?;
        let text_layers = read(&configs.text_encoder).size("num_hidden_layers")?;
        let text_names = match family {
            LdmFamily::Sd1 => TextNames::Transformers,
            LdmFamily::Sd2 => TextNames::OpenClip,
        };
        let text_prefix = match text_names {
            TextNames::Transformers => "cond_stage_model.transformer.",
            TextNames::OpenClip => "cond_stage_model.model.",
        };
        let unet_modules = modules::unet(&unet);
        let ema = unet_modules
            .iter()
            .map(|module| (flat(&module.ldm), module.clone()));
        Ok(Self {
            ema: ema.collect(),
            tables: vec![
                Table::new(ModelPart::Unet, "model.diffusion_model.", unet_modules),
                Table::new(ModelPart::Vae, "first_stage_model.", modules::vae(&vae)),
                Table::new(
                    ModelPart::TextEncoder,
                    text_prefix,
                    modules::text(text_names, text_layers),
                ),
            ],
            text_names,
            text_layers,
        })
    }

    /// Where a stored tensor belongs: nowhere, in one place, or, if it holds Q, K and V, in three.
    pub fn to_diffusers(&self, stored: &str) -> Vec<LdmPlace> {
        let found = self.tables.iter().find_map(|table| {
            let name = stored.strip_prefix(table.prefix)?;
            Some((table, name))
        });
        let Some((table, name)) = found else {
            return Vec::new();
        };
        let place = |parameter, third| LdmPlace {
            part: table.part,
            parameter,
            third,
        };
        if table.part == ModelPart::TextEncoder {
            if name.ends_with("embeddings.position_ids") {
                return Vec::new();
            }
            if self.text_names == TextNames::OpenClip {
                if name == POSITIONS.1 {
                    return vec![place(POSITIONS.0.into(), None)];
                }
                if let Some((layer, leaf)) = fused(name).filter(|(i, _)| *i < self.text_layers) {
                    let of = |(third, projection): (usize, &str)| {
                        let ours = OPENCLIP_LAYERS.0;
                        let parameter = format!("{ours}.{layer}.self_attn.{projection}.{leaf}");
                        place(parameter, Some(third))
                    };
                    return FUSED.iter().copied().enumerate().map(of).collect();
                }
            }
        }
        let translated = translate(&table.by_ldm, name, Way::ToDiffusers);
        translated
            .map(|parameter| place(parameter, None))
            .into_iter()
            .collect()
    }

    /// The stored tensor that holds a parameter, and which third of it.
    pub fn to_ldm(&self, part: ModelPart, parameter: &str) -> Option<(String, Option<usize>)> {
        let table = self.tables.iter().find(|table| table.part == part)?;
        let stored = |name: String| format!("{}{name}", table.prefix);
        if part == ModelPart::TextEncoder && self.text_names == TextNames::OpenClip {
            if parameter == POSITIONS.0 {
                return Some((stored(POSITIONS.1.into()), None));
            }
            if let Some((layer, third, leaf)) = unfused(parameter) {
                let theirs = OPENCLIP_LAYERS.1;
                let name = format!("{theirs}.{layer}.attn.in_proj_{leaf}");
                return (layer < self.text_layers).then(|| (stored(name), Some(third)));
            }
        }
        let name = translate(&table.by_diffusers, parameter, Way::ToLdm)?;
        Some((stored(name), None))
    }

    /// The UNet's parameter that a name of the moving average (without `model_ema.`) stands for.
    pub(super) fn ema_parameter(&self, flat_name: &str) -> Option<String> {
        let rest = flat_name.strip_prefix("diffusion_model")?;
        // The longest module whose name without dots begins this one and leaves a leaf that belongs to it.
        (1..=rest.len())
            .rev()
            .filter(|end| rest.is_char_boundary(*end))
            .find_map(|end| {
                let module = self.ema.get(&rest[..end])?;
                let leaf = &rest[end..];
                let inner = if module.inner.is_empty() {
                    unflatten(leaf)?
                } else {
                    let found = module.inner.iter().find_map(|(ours, theirs)| {
                        let leaf = leaf.strip_prefix(flat(theirs).as_str())?;
                        is_leaf(leaf).then(|| format!("{ours}.{leaf}"))
                    });
                    found?
                };
                Some(format!("{}.{inner}", module.diffusers))
            })
    }

    /// Whether a key belongs to no network, and may be left out.
    pub(super) fn is_left_out(&self, stored: &str) -> bool {
        if SCHEDULE_TABLES.contains(&stored) || stored.ends_with("embeddings.position_ids") {
            return true;
        }
        let Some(name) = stored.strip_prefix("cond_stage_model.model.") else {
            return stored.starts_with("cond_stage_model.transformer.text_projection")
                || stored == "cond_stage_model.logit_scale";
        };
        // Stable Diffusion 2 takes the states before the last of OpenCLIP's layers, and diffusers drops that layer.
        let unused_layer = format!("{}.{}.", OPENCLIP_LAYERS.1, self.text_layers);
        self.text_names == TextNames::OpenClip
            && (matches!(name, "text_projection" | "logit_scale" | "attn_mask")
                || name.starts_with(&unused_layer))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    ToDiffusers,
    ToLdm,
}

/// Translates a parameter by the longest module that it is in.
fn translate(modules: &HashMap<String, Module>, name: &str, way: Way) -> Option<String> {
    let ends = name.rmatch_indices('.').map(|(at, _)| at);
    for end in ends {
        let Some(module) = modules.get(&name[..end]) else {
            continue;
        };
        let rest = &name[end + 1..];
        let (other, inner) = match way {
            Way::ToDiffusers => (&module.diffusers, inner(module, rest, |(o, t)| (t, o))),
            Way::ToLdm => (&module.ldm, inner(module, rest, |(o, t)| (o, t))),
        };
        return inner.map(|inner| format!("{other}.{inner}"));
    }
    None
}

type Pair = (&'static str, &'static str);

/// The name inside a module on the other side; `order` gives a pair as (from, to).
fn inner(module: &Module, rest: &str, order: impl Fn(Pair) -> Pair) -> Option<String> {
    if module.inner.is_empty() {
        return Some(rest.to_owned());
    }
    module
        .inner
        .iter()
        .copied()
        .map(order)
        .find_map(|(from, to)| {
            let leaf = rest.strip_prefix(from)?.strip_prefix('.')?;
            is_leaf(leaf).then(|| format!("{to}.{leaf}"))
        })
}

fn is_leaf(name: &str) -> bool {
    name == "weight" || name == "bias"
}

fn flat(name: &str) -> String {
    name.replace('.', "")
}

/// `resblocks.3.attn.in_proj_weight` → `(3, "weight")`.
fn fused(name: &str) -> Option<(usize, &str)> {
    let rest = name.strip_prefix(OPENCLIP_LAYERS.1)?.strip_prefix('.')?;
    let (layer, rest) = rest.split_once('.')?;
    let leaf = rest.strip_prefix("attn.in_proj_")?;
    let plain = layer
        .parse()
        .ok()
        .filter(|i: &usize| i.to_string() == layer);
    is_leaf(leaf).then_some((plain?, leaf))
}

/// `layers.3.self_attn.k_proj.weight` → `(3, 1, "weight")`.
fn unfused(parameter: &str) -> Option<(usize, usize, &str)> {
    let rest = parameter
        .strip_prefix(OPENCLIP_LAYERS.0)?
        .strip_prefix('.')?;
    let (layer, rest) = rest.split_once('.')?;
    let (projection, leaf) = rest.strip_prefix("self_attn.")?.split_once('.')?;
    let third = FUSED.iter().position(|name| *name == projection)?;
    is_leaf(leaf).then_some((layer.parse().ok()?, third, leaf))
}

/// A name inside a transformer that has lost its dots: every part of such names is one of these.
fn unflatten(name: &str) -> Option<String> {
    const PARTS: [&str; 24] = [
        "transformer_blocks",
        "attn1",
        "attn2",
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "norm1",
        "norm2",
        "norm3",
        "ff",
        "net",
        "proj_in",
        "proj_out",
        "proj",
        "norm",
        "weight",
        "bias",
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
    ];
    let mut rest = name;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let longest = PARTS
            .iter()
            .filter(|part| rest.starts_with(**part))
            .max_by_key(|part| part.len())?;
        parts.push(*longest);
        rest = &rest[longest.len()..];
    }
    parts
        .last()
        .is_some_and(|leaf| is_leaf(leaf))
        .then(|| parts.join("."))
}

/// Reads block counts of a configuration.
struct Counts<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Counts<'_> {
    fn unet(&self) -> Result<UnetCounts> {
        Ok(UnetCounts {
            layers_per_block: self.size("layers_per_block")?,
            down_attention: self.attention("down_block_types")?,
            up_attention: self.attention("up_block_types")?,
        })
    }

    fn vae(&self) -> Result<VaeCounts> {
        let levels = self.list("block_out_channels")?.len();
        Ok(VaeCounts {
            levels,
            layers_per_block: self.size("layers_per_block")?,
        })
    }

    fn attention(&self, field: &str) -> Result<Vec<bool>> {
        let kinds = self.list(field)?.iter().map(|kind| match kind {
            Value::String(kind) => Ok(kind.starts_with("CrossAttn")),
            _ => Err(self.bad(field, "a list of block names")),
        });
        kinds.collect()
    }

    fn list(&self, field: &str) -> Result<&Vec<Value>> {
        match self.map.get(field) {
            Some(Value::Array(list)) if (1..=MOST).contains(&list.len()) => Ok(list),
            _ => Err(self.bad(field, "a list of 1 to 128 entries")),
        }
    }

    fn size(&self, field: &str) -> Result<usize> {
        let size = self.map.get(field).and_then(Value::as_u64);
        match size {
            Some(size) if (1..=MOST as u64).contains(&size) => Ok(size as usize),
            _ => Err(self.bad(field, "a number from 1 to 128")),
        }
    }

    fn bad(&self, field: &str, expected: &'static str) -> CheckpointError {
        CheckpointError::JsonField {
            path: self.path.into(),
            field: field.into(),
            expected,
        }
    }
}
