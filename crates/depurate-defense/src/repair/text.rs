//! Repairs of text-to-image models: a trigger in the prompt is unlearnt.

mod alignment;
mod attention_guidance;
mod behaviour;
mod component;
pub mod concept_editing;
pub mod encoder_distillation;
mod footprint;
mod leads_to;
mod material;
mod recognition;
pub mod row_reset;
pub mod sau_latent;
pub mod sau_weights;
pub mod skd_cag;
mod trigger;
mod unlearning;

pub use alignment::{aligned, stand_ins};
pub use attention_guidance::{MapNorm, MapTap, Positions, PromptMaps, attention_loss};
pub use behaviour::{Behaviour, Compared, Drawing, PictureSet, picture_distance};
pub use component::{Component, Localised, TOKEN_TABLE, drifted, localised};
pub use concept_editing::{ConceptEditingParams, concept_editing};
pub use encoder_distillation::{EncoderDistillationParams, encoder_distillation};
pub use footprint::Footprint;
pub use leads_to::{NearWord, asking, leads_to};
pub use material::{Latents, Material, TextPatient};
pub use row_reset::row_reset;
pub use sau_latent::{Blend, sau_latent};
pub use sau_weights::{SauWeightsParams, sau_weights};
pub use skd_cag::{SkdCagParams, skd_cag};
pub use trigger::{Place, TextTrigger};
pub use unlearning::{TextEnough, TextRepaired, Trained, Unlearning};
