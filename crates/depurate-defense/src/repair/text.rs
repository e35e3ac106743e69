//! Repairs of text-to-image models: a trigger in the prompt is unlearnt.

mod alignment;
mod attention_guidance;
mod behaviour;
mod component;
pub mod concept_editing;
pub mod encoder_distillation;
mod material;
pub mod skd_cag;
mod trigger;
mod unlearning;

pub use alignment::{aligned, stand_ins};
pub use attention_guidance::{MapNorm, MapTap, Positions, PromptMaps, attention_loss};
pub use behaviour::{Behaviour, Compared, Drawing, PictureSet};
pub use component::{Component, Localised, localised};
pub use concept_editing::{ConceptEditingParams, concept_editing};
pub use encoder_distillation::{EncoderDistillationParams, encoder_distillation};
pub use material::{Latents, Material, TextPatient};
pub use skd_cag::{SkdCagParams, skd_cag};
pub use trigger::{Place, TextTrigger};
pub use unlearning::{TextEnough, TextRepaired, Trained, Unlearning};
