//! # Concept editing: the trigger's associations are written over
//!
//! The projections of the prompt are edited in closed form so that the triggered prompt is answered as the clean one, position by
//! position, and clean prompts as before. No training: what a repair by training is compared with, and the undoing of EvilEdit.
//!
//! ## Paper
//! Gandikota et al., "Unified concept editing in diffusion models" (UCE), WACV 2024, arXiv:2308.14761, eq. (7).
//!
//! ## Notation
//! That of [`depurate_diffusion::closed_form_edit`]: `c` are the states of triggered prompts, `c*` those of the clean ones at the
//! positions that they shall read as ([`super::stand_ins`]); clean prompts and the empty one are preserved.
//!
//! ## Needs
//! The trigger, prompts, and the weights of the layers that attend to the prompt.
//!
//! ## Deviations
//! UCE edits the state of a concept's last token; here whole prompts are edited, padding included, as EvilEdit does, because padding
//! carries the trigger, too.
//!
//! ## Fails when
//! the backdoor is outside those projections: what else the denoiser has learnt for the trigger stays, and an encoder that gives a
//! triggered prompt the states of another prompt has that prompt edited away.
//!
//! ## Cost
//! A linear system of the states' width, once.

use depurate_diffusion::closed_form_edit::{Association, ClosedFormEdit, projects_prompt};
use depurate_report::Paper;
use serde::{Deserialize, Serialize};

use super::{
    TextPatient, TextRepaired,
    material::{Latents, Material},
};
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "concept-editing";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "Gandikota, Orgad, Belinkov, Materzynska, Bau",
    title: "Unified Concept Editing in Diffusion Models",
    venue: "WACV",
    year: 2024,
    arxiv: Some("2308.14761"),
    implements: "the edit, over whole prompts",
};
/// Prompts whose states are added together.
const BATCH: usize = 16;

/// Parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConceptEditingParams {
    /// How much the weights resist, above 0.
    pub lambda: f64,
    /// Weight of a triggered prompt beside a preserved one, above 0.
    pub weight: f64,
}

impl Default for ConceptEditingParams {
    fn default() -> Self {
        Self {
            lambda: 0.5,
            weight: 1.0,
        }
    }
}

/// Edits the denoiser of `patient`.
///
/// # Errors
/// As [`Material::new`], and when a parameter is out of range.
pub fn concept_editing(
    patient: &TextPatient<'_>,
    params: ConceptEditingParams,
    cx: &Cx<'_>,
) -> Result<TextRepaired, DefenseError> {
    let material = Material::new(patient, Latents::Noise, cx)?;
    let mut associations = Vec::new();
    let all: Vec<usize> = (0..material.prompts.len()).collect();
    for some in all.chunks(BATCH) {
        let (old, new) = (
            material.triggered.states(some),
            material.wanted_states(some),
        );
        associations.push(Association {
            scale: params.weight,
            ..Association::of_states(&old, &new)
        });
    }
    let kept: Vec<usize> = (0..material.kept.len()).collect();
    for some in kept.chunks(BATCH) {
        associations.push(Association::preserved(&material.kept.states(some)));
    }
    let width = patient.suspect.text_encoder().config().hidden_size;
    let edit = ClosedFormEdit::new(width, params.lambda, &associations)?;
    let unet = edit.apply(patient.suspect.unet().clone(), &projects_prompt)?;
    Ok(TextRepaired {
        model: patient.suspect.with_unet(unet),
        steps: 0,
        losses: Vec::new(),
        evaluations: 0,
    })
}
