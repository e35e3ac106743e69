//! Reads diffusers checkpoints as hostile files.
//!
//! A checkpoint of unknown origin is data that somebody else chose. Nothing in it is executed: there is no unpickling and no
//! remote code, and pickles are refused by name. Every length that a file states is held against the size of the file and
//! against [`Limits`] before memory is allocated for it.
//!
//! | to do | use |
//! |---|---|
//! | open a pipeline directory or a bare UNet directory | [`Checkpoint::open`] |
//! | read the tensors of one file, or of shards with an index | [`Weights`] |
//! | read a Stable Diffusion 1 or 2 checkpoint that is one file | [`LdmCheckpoint`] |
//! | read the networks of a text-to-image model, one file or a directory | [`ModelWeights`] |
//! | lay LoRAs, learnt tokens and deltas over them | [`Layers`], [`Lora`], [`TextualInversion`], [`Delta`] |
//! | hold a file's tensors against the tensors that a network expects | [`plan`] |
//! | list what a directory holds, with hashes and odd tensors | [`inspect`] |
//! | write a directory that diffusers loads | [`save_pipeline`] |
//! | write one file so that a crash leaves the old or the new one | [`write_atomic`], [`save_tensors`] |
//!
//! The crate knows bytes and `f32` slices and no tensor framework.

#![deny(unsafe_code)]
#![deny(rustdoc::broken_intra_doc_links)]

mod apply;
mod atomic;
mod checkpoint;
mod delta;
mod dtype;
mod error;
mod hash;
mod header;
mod inspect;
mod json;
mod layers;
mod ldm;
mod limits;
mod locate;
mod lora;
mod mmap;
mod model_weights;
mod pipeline_index;
mod save;
mod shard_index;
mod stray_files;
mod tensor_stats;
mod textual_inversion;
mod weights;

pub use apply::{ApplyReport, plan, rename_deprecated_attention};
pub use atomic::write_atomic;
pub use checkpoint::{Checkpoint, CheckpointKind, TRANSFORMERS_STEM, UNET_STEM};
pub use delta::{Delta, DeltaKind, save_delta};
pub use dtype::Dtype;
pub use error::{CheckpointError, Result};
pub use hash::{HashCache, sha256_file};
pub use inspect::{
    ComponentInspection, FileInspection, Inspection, TensorAnomaly, WeightsInspection, inspect,
};
pub use json::{parse_json, read_json, read_text};
pub use layers::{AddedTokens, Layers, ScaledFile};
pub use ldm::{LdmCheckpoint, LdmConfigs, LdmFamily, LdmLayout, LdmPlace};
pub use limits::Limits;
pub use lora::{Lora, LoraFactors, LoraLayout, LoraPair};
pub use model_weights::{ModelPart, ModelWeights};
pub use pipeline_index::{Component, PipelineIndex};
pub use save::{
    SaveComponent, SaveDtype, SaveTensor, save_pipeline, save_tensors, save_tensors_as,
};
pub use shard_index::ShardIndex;
pub use stray_files::{StrayFile, StrayFiles};
pub use tensor_stats::{AnomalyKind, OUTLIER_Z, TensorStats};
pub use textual_inversion::TextualInversion;
pub use weights::{LowRank, NonFinite, TensorInfo, Weights};
