//! What the keys of adapters mean.

use std::collections::HashMap;

use super::LoraLayout;
use crate::{ModelPart, ModelWeights};

/// Which tensor of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Up,
    Down,
    Alpha,
}

/// A key taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub layout: LoraLayout,
    pub role: Role,
    /// The network, where the key names it.
    pub part: Option<ModelPart>,
    /// The module, with dots, or in kohya's layout without.
    pub module: String,
}

/// Ends of keys, longest first where one ends on another.
const ENDS: &[(&str, Role)] = &[
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Parts of keys that give away what is not supported: part, what it is, what to do.
const REFUSED: &[(&str, &str, &str)] = &[
    ("dora_scale", "a DoRA", MERGE),
    ("lora_magnitude_vector", "a DoRA", MERGE),
    ("hada_", "a LoHa", MERGE),
    ("lokr_", "a LoKr", MERGE),
    ("lora_mid", "a LoRA in Tucker form", MERGE),
    ("lora_embedding_", "a LoRA of an embedding table", MERGE),
    ("lora_te1_", SDXL, ONLY),
    ("lora_te2_", SDXL, ONLY),
    ("text_encoder_2.", SDXL, ONLY),
];
const MERGE: &str =
    "merge it into the model with the program that made it, and give the merged model";
const SDXL: &str = "a LoRA for SDXL, which has two text encoders";
const ONLY: &str = "give one for Stable Diffusion 1 or 2";

/// What a key gives away that is not supported, and what to do instead.
pub(super) fn refused(key: &str) -> Option<(&'static str, &'static str)> {
    let found = REFUSED.iter().find(|(part, _, _)| key.contains(part));
    found.map(|(_, what, mend)| (*what, *mend))
}

/// Order of layouts by how surely a key of theirs tells them: an `.alpha` of any of them reads as diffusers'. PEFT is the first
/// because its strength stands in another file.
pub(super) fn certainty(layout: LoraLayout) -> usize {
    match layout {
        LoraLayout::Peft => 0,
        LoraLayout::Kohya => 1,
        LoraLayout::AttentionProcessors => 2,
        LoraLayout::Diffusers => 3,
    }
}

impl Key {
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (end, role) = ENDS.iter().find(|(end, _)| key.ends_with(end))?;
        let stem = &key[..key.len() - end.len()];
        for (prefix, part) in [
            ("lora_unet_", ModelPart::Unet),
            ("lora_te_", ModelPart::TextEncoder),
        ] {
            if let Some(module) = stem.strip_prefix(prefix) {
                return Some(Self {
                    layout: LoraLayout::Kohya,
                    role: *role,
                    part: Some(part),
                    module: module.into(),
                });
            }
        }
        let (mut layout, stem) = match stem.strip_prefix("base_model.model.") {
            Some(stem) => (LoraLayout::Peft, stem),
            None => (LoraLayout::Diffusers, stem),
        };
        let (part, module) = match stem.split_once('.') {
            Some(("unet", module)) => (Some(ModelPart::Unet), module),
            Some(("text_encoder", module)) => (Some(ModelPart::TextEncoder), module),
            _ => (None, stem),
        };
        let mut module = module.to_owned();
        if let Some((attention, projection)) = module.rsplit_once(".processor.") {
            layout = LoraLayout::AttentionProcessors;
            let projection = match projection {
                "to_out" => "to_out.0",
                other => other,
            };
            module = format!("{attention}.{projection}");
        } else if end.starts_with('_') {
            return None;
        }
        Some(Self {
            layout,
            role: *role,
            part,
            module,
        })
    }
}

/// The modules of a model that have a weight, by name with dots and without.
#[derive(Debug)]
pub(super) struct ModuleNames {
    dotted: HashMap<(ModelPart, String), String>,
    flat: HashMap<(ModelPart, String), Option<String>>,
}

impl ModuleNames {
    /// The UNet's and the text encoder's modules. Those of text encoders count with `text_model.` in front.
    pub(super) fn of(model: &ModelWeights) -> Self {
        let (mut dotted, mut flat) = (HashMap::new(), HashMap::new());
        for part in [ModelPart::Unet, ModelPart::TextEncoder] {
            for info in model.get(part).into_iter().flat_map(|w| w.infos()) {
                let Some(module) = info.name.strip_suffix(".weight") else {
                    continue;
                };
                let classic = part != ModelPart::TextEncoder || module.starts_with("text_model.");
                let module = if classic {
                    module.to_owned()
                } else {
                    format!("text_model.{module}")
                };
                // Two names that differ in dots only cannot be told apart without them.
                flat.entry((part, module.replace('.', "_")))
                    .and_modify(|known| *known = None)
                    .or_insert_with(|| Some(info.name.clone()));
                dotted.insert((part, module), info.name.clone());
            }
        }
        Self { dotted, flat }
    }

    /// The network and stored parameter that a key is for.
    pub(super) fn find(&self, key: &Key) -> Option<(ModelPart, String)> {
        let module = &key.module;
        let in_part = |part: ModelPart| {
            let found = if key.layout == LoraLayout::Kohya {
                self.flat.get(&(part, module.clone())).cloned().flatten()
            } else {
                let dotted = |module: String| self.dotted.get(&(part, module)).cloned();
                dotted(module.clone()).or_else(|| {
                    let short = part == ModelPart::TextEncoder;
                    short.then(|| dotted(format!("text_model.{module}")))?
                })
            };
            found.map(|parameter| (part, parameter))
        };
        match key.part {
            Some(part) => in_part(part),
            None => in_part(ModelPart::Unet).or_else(|| in_part(ModelPart::TextEncoder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_module_in_every_layout() {
        let module = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0";
        let flat = module.replace('.', "_");
        let processor = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.processor.to_out";
        let unet = Some(ModelPart::Unet);
        for (key, layout, role, part, name) in [
            (
                format!("lora_unet_{flat}.lora_down.weight"),
                LoraLayout::Kohya,
                Role::Down,
                unet,
                &flat[..],
            ),
            (
                format!("lora_unet_{flat}.alpha"),
                LoraLayout::Kohya,
                Role::Alpha,
                unet,
                &flat[..],
            ),
            (
                format!("unet.{module}.lora_A.weight"),
                LoraLayout::Diffusers,
                Role::Down,
                unet,
                module,
            ),
            (
                format!("unet.{module}.lora.up.weight"),
                LoraLayout::Diffusers,
                Role::Up,
                unet,
                module,
            ),
            (
                format!("{processor}_lora.up.weight"),
                LoraLayout::AttentionProcessors,
                Role::Up,
                None,
                module,
            ),
            (
                format!("unet.{processor}_lora.down.weight"),
                LoraLayout::AttentionProcessors,
                Role::Down,
                unet,
                module,
            ),
            (
                format!("base_model.model.{module}.lora_B.weight"),
                LoraLayout::Peft,
                Role::Up,
                None,
                module,
            ),
            (
                format!("base_model.model.{module}.lora_A.default.weight"),
                LoraLayout::Peft,
                Role::Down,
                None,
                module,
            ),
        ] {
            let expected = Key {
                layout,
                role,
                part,
                module: name.to_owned(),
            };
            assert_eq!(Key::parse(&key), Some(expected), "{key}");
        }
        assert_eq!(Key::parse("unet.conv_in.weight"), None);
        assert_eq!(Key::parse("unet.attn2.to_k_lora.up.weight"), None);
    }

    #[test]
    fn forms_that_are_no_plain_product_are_refused_by_name() {
        for key in [
            "a.dora_scale",
            "a.hada_w1_a",
            "a.lokr_w1",
            "a.lora_mid.weight",
            "lora_te2_a.alpha",
        ] {
            assert!(refused(key).is_some(), "{key}");
        }
        assert_eq!(refused("lora_unet_a.lora_up.weight"), None);
    }
}
