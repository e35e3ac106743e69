//! # CLIP's text encoder
//!
//! `CLIPTextModel` of transformers, as Stable Diffusion 1 and 2 use it: learnt positions, pre-norm transformer layers, a causal
//! mask and no padding mask.
//!
//! | symbol | shape |
//! |---|---|
//! | ids | `[B, T]`, `T <= max_position_embeddings` |
//! | hidden states | `[B, C, T]`: planar, as the kernels take them (transformers has `[B, T, C]`) |
//!
//! ```text
//! h_0 = token[ids] + position[0..T]
//! h'  = h_l + out(attention(norm_1 h_l)),   h_{l+1} = h' + fc_2 f(fc_1 norm_2 h')
//! last = norm h_L
//! ```
//!
//! The module tree has the classic names (`text_model.encoder.layers.0...`); the names that transformers 5 writes lack the
//! first part and are understood too.
//!
//! Cost: linear in layers; attention forms its map of `T²`, since `T` is 77.

mod config;

use std::path::Path;

use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor, TensorData, activation::softmax},
};
use depurate_checkpoint::{SaveTensor, Weights};

pub use config::ClipTextConfig;

use crate::{
    DiffusionError,
    layers::{Init, LayerNorm, Linear},
    module_weights::{self, ParameterInfo},
    noise::SeedTree,
    ops::{self, Activation},
};

/// A table of vectors, weight `[entries, C]`.
#[derive(Module, Debug)]
struct Embedding {
    weight: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    /// `x [B, C, T]` → the same shape; `mask [1, T, T]` is added to the scores `[keys, queries]`.
    fn forward(&self, x: Tensor<3>, mask: &Tensor<3>) -> Tensor<3> {
        let [batch, channels, tokens] = x.dims();
        let width = channels / self.heads;
        let split = |t: Tensor<3>| t.reshape([batch * self.heads, width, tokens]);
        let q = split(self.q_proj.forward_tokens(x.clone()));
        let k = split(self.k_proj.forward_tokens(x.clone()));
        let v = split(self.v_proj.forward_tokens(x));
        let scores = k.swap_dims(1, 2).matmul(q) * (width as f64).powf(-0.5);
        let map = softmax(scores + mask.clone(), 1);
        let mixed = ops::attention_mix(map, v).reshape([batch, channels, tokens]);
        self.out_proj.forward_tokens(mixed)
    }
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

#[derive(Module, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(init: &Init, config: &ClipTextConfig) -> Self {
        let width = config.hidden_size;
        let norm = |name: &str| LayerNorm::new(&init.at(name), width, config.layer_norm_eps);
        let linear = |name: &str, from, to| Linear::new(&init.at(name), from, to);
        let square = |name: &str| linear(&format!("self_attn.{name}"), width, width);
        Self {
            layer_norm1: norm("layer_norm1"),
            self_attn: SelfAttention {
                q_proj: square("q_proj"),
                k_proj: square("k_proj"),
                v_proj: square("v_proj"),
                out_proj: square("out_proj"),
                heads: config.num_attention_heads,
            },
            layer_norm2: norm("layer_norm2"),
            mlp: Mlp {
                fc1: linear("mlp.fc1", width, config.intermediate_size),
                fc2: linear("mlp.fc2", config.intermediate_size, width),
            },
        }
    }

    fn forward(&self, h: Tensor<3>, mask: &Tensor<3>, f: Activation) -> Tensor<3> {
        let mixed = self
            .self_attn
            .forward(self.layer_norm1.forward(h.clone()), mask);
        let h = ops::add(mixed, h);
        let inner = self
            .mlp
            .fc1
            .forward_tokens(self.layer_norm2.forward(h.clone()));
        ops::add(self.mlp.fc2.forward_tokens(ops::activation(inner, f)), h)
    }
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct TextModel {
    embeddings: Embeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

/// The encoder. See the [module](self).
#[derive(Module, Debug)]
pub struct ClipText {
    text_model: TextModel,
    #[module(skip)]
    config: ClipTextConfig,
}

/// What the encoder makes of prompts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// `h_0` to `h_L`, each `[B, C, T]`, before the final norm: `hidden[L - 1]` is the penultimate layer's.
    pub hidden: Vec<Tensor<3>>,
    /// The final norm of `h_L`, `[B, C, T]`.
    pub last: Tensor<3>,
    /// `last` at each prompt's EOS, `[B, C]`.
    pub pooled: Tensor<2>,
}

impl ClipText {
    /// An encoder with random weights drawn from `seed`; nothing is allocated before it is used.
    pub fn new(config: &ClipTextConfig, seed: &SeedTree, device: &Device) -> Self {
        let init = Init::new(device.clone(), seed.clone()).at("text_model");
        let width = config.hidden_size;
        let table = |name: &str, entries| Embedding {
            weight: init
                .at("embeddings")
                .at(name)
                .uniform("weight", [entries, width], 0.02),
        };
        Self {
            text_model: TextModel {
                embeddings: Embeddings {
                    token_embedding: table("token_embedding", config.vocab_size),
                    position_embedding: table("position_embedding", config.max_position_embeddings),
                },
                encoder: Encoder {
                    layers: (0..config.num_hidden_layers)
                        .map(|i| Layer::new(&init.at(format!("encoder.layers.{i}")), config))
                        .collect(),
                },
                final_layer_norm: LayerNorm::new(
                    &init.at("final_layer_norm"),
                    width,
                    config.layer_norm_eps,
                ),
            },
            config: config.clone(),
        }
    }

    /// What the encoder was made from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Every parameter's name and shape, without allocating any of them.
    pub fn parameters(&self) -> Vec<ParameterInfo> {
        module_weights::parameters(self)
    }

    /// Replaces every parameter by the one of the same name in `weights`, with or without `text_model.` in front.
    ///
    /// # Errors
    /// When a parameter is missing, unexpected, mis-shaped or not finite; `path` is named.
    pub fn load(self, weights: &Weights, path: &Path) -> Result<Self, DiffusionError> {
        let classic = |name: &str| Some(format!("text_model.{name}"));
        // old versions stored the numbers 0, 1, 2, ... too
        let buffer = |name: &str| name.ends_with("embeddings.position_ids");
        module_weights::load(self, weights, path, &classic, &buffer)
    }

    /// The table of tokens, `[V, C]`.
    pub fn token_table(&self) -> Tensor<2> {
        self.text_model.embeddings.token_embedding.weight.val()
    }

    /// The encoder with `table` in the place of its [`Self::token_table`].
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn with_token_table(mut self, table: Tensor<2>) -> Result<Self, DiffusionError> {
        let expected = [self.config.vocab_size, self.config.hidden_size];
        if table.dims() != expected {
            return Err(DiffusionError::Shape {
                what: "table of tokens",
                expected: format!("{expected:?}"),
                got: table.dims().to_vec(),
            });
        }
        let embedding = &mut self.text_model.embeddings.token_embedding;
        embedding.weight = embedding.weight.clone().map(|_| table);
        Ok(self)
    }

    /// Every parameter's values under its classic checkpoint name.
    pub fn to_tensors(&self) -> Vec<SaveTensor> {
        module_weights::to_tensors(self)
    }

    /// Runs the encoder on prompts of equal length.
    ///
    /// # Errors
    /// When there is no prompt, they differ in length, are too long, or hold an id that is not in the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Result<TextStates, DiffusionError> {
        let tokens = self.checked_length(ids)?;
        let (batch, width) = (ids.len(), self.config.hidden_size);
        let table = self.token_table();
        let device = table.device();
        let flat: Vec<i64> = ids.iter().flatten().map(|id| i64::from(*id)).collect();
        let flat = TensorData::new(flat, [batch * tokens]);
        let flat = Tensor::<1, Int>::from_data(flat, &device);
        let positions = self.text_model.embeddings.position_embedding.weight.val();
        let positions = positions.narrow(0, 0, tokens).unsqueeze_dim(0);
        let embedded = table.select(0, flat).reshape([batch, tokens, width]) + positions;
        let mut h = embedded.swap_dims(1, 2);
        let mask = causal_mask(tokens, &device);
        let mut hidden = vec![h.clone()];
        for layer in &self.text_model.encoder.layers {
            h = layer.forward(h, &mask, self.config.activation());
            hidden.push(h.clone());
        }
        let last = self.text_model.final_layer_norm.forward(h);
        let ends = ids.iter().enumerate().map(|(i, ids)| {
            let at = self.config.pooled_at(ids);
            let of = last.clone().narrow(0, i, 1).narrow(2, at, 1);
            of.reshape([1, width])
        });
        let pooled = Tensor::cat(ends.collect(), 0);
        Ok(TextStates {
            hidden,
            last,
            pooled,
        })
    }

    fn checked_length(&self, ids: &[Vec<u32>]) -> Result<usize, DiffusionError> {
        let tokens = ids.first().map_or(0, Vec::len);
        let most = self.config.max_position_embeddings;
        if tokens == 0 || tokens > most || ids.iter().any(|ids| ids.len() != tokens) {
            return Err(DiffusionError::Shape {
                what: "token ids",
                expected: format!("prompts of one length, from 1 to {most}"),
                got: ids.iter().map(Vec::len).collect(),
            });
        }
        let known = |id: &u32| (*id as usize) < self.config.vocab_size;
        match ids.iter().flatten().find(|id| !known(id)) {
            None => Ok(tokens),
            Some(id) => Err(DiffusionError::Argument {
                what: "token id",
                got: id.to_string(),
                allowed: format!("below {}", self.config.vocab_size),
            }),
        }
    }
}

/// `[1, keys, queries]`: 0 where a query may look, minus infinity at keys behind it.
fn causal_mask(tokens: usize, device: &Device) -> Tensor<3> {
    let values: Vec<f32> = (0..tokens * tokens)
        .map(|i| {
            let behind = i / tokens > i % tokens;
            if behind { f32::NEG_INFINITY } else { 0.0 }
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [1, tokens, tokens]), device)
}
