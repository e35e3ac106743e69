//! The encoder's `config.json`.

use std::path::Path;

use depurate_checkpoint::{Limits, read_json};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{DiffusionError, ops::Activation};

/// Most entries, channels and layers that a configuration may ask for.
const MOST_ENTRIES: usize = 1 << 20;
const MOST_CHANNELS: usize = 1 << 14;
const MOST_LAYERS: usize = 128;
/// The EOS id that early configurations of Stable Diffusion 1 hold by mistake; the largest id of a prompt counts instead.
const LEGACY_EOS: u32 = 2;

/// Sizes and options of a text encoder, with the names of `config.json`; the defaults are those of transformers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Channels.
    pub hidden_size: usize,
    /// Channels inside a layer's second half.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; they divide the channels.
    pub num_attention_heads: usize,
    /// Longest prompt, in tokens.
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Added to the variance.
    pub layer_norm_eps: f64,
    /// The token whose state stands for the prompt.
    pub eos_token_id: u32,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When it cannot be read or an option is out of range; file and option are named.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self, DiffusionError> {
        let refuse = |option: &str, reason: String| DiffusionError::Config {
            path: path.to_owned(),
            option: option.to_owned(),
            reason,
        };
        let object = Value::Object(read_json(path, limits)?);
        let config: Self = serde_json::from_value(object)
            .map_err(|error| refuse("(some option)", error.to_string()))?;
        for (option, value, most) in [
            ("vocab_size", config.vocab_size, MOST_ENTRIES),
            (
                "max_position_embeddings",
                config.max_position_embeddings,
                MOST_CHANNELS,
            ),
            ("hidden_size", config.hidden_size, MOST_CHANNELS),
            (
                "intermediate_size",
                config.intermediate_size,
                4 * MOST_CHANNELS,
            ),
            ("num_hidden_layers", config.num_hidden_layers, MOST_LAYERS),
            (
                "num_attention_heads",
                config.num_attention_heads,
                MOST_CHANNELS,
            ),
        ] {
            if !(1..=most).contains(&value) {
                return Err(refuse(option, format!("{value}, allowed: 1 to {most}")));
            }
        }
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            let reason = format!("it does not divide the {} channels", config.hidden_size);
            return Err(refuse("num_attention_heads", reason));
        }
        if !["quick_gelu", "gelu"].contains(&config.hidden_act.as_str()) {
            let reason = format!("{:?}, allowed: quick_gelu, gelu", config.hidden_act);
            return Err(refuse("hidden_act", reason));
        }
        if !(config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0) {
            let reason = format!("{}, allowed: above 0, below 1", config.layer_norm_eps);
            return Err(refuse("layer_norm_eps", reason));
        }
        Ok(config)
    }

    /// `config.json` as transformers writes it.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "eos_token_id": self.eos_token_id,
            "hidden_act": self.hidden_act,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "clip_text_model",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "vocab_size": self.vocab_size,
        })
    }

    pub(super) fn activation(&self) -> Activation {
        if self.hidden_act == "gelu" {
            Activation::Gelu
        } else {
            Activation::QuickGelu
        }
    }

    /// The token whose state stands for a prompt: the first EOS (the first token, if there is none).
    pub(super) fn pooled_at(&self, ids: &[u32]) -> usize {
        let eos = if self.eos_token_id == LEGACY_EOS {
            ids.iter().max().copied()
        } else {
            Some(self.eos_token_id)
        };
        ids.iter().position(|id| Some(*id) == eos).unwrap_or(0)
    }
}
