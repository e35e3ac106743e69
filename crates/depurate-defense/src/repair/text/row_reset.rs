//! # Row reset: a token that was learnt is forgotten
//!
//! A backdoor by textual inversion is a row of the table of tokens and nothing else: the row of a rare token holds what the attacker
//! learnt. It is put back, or made to mean nothing in particular.
//!
//! ## Paper
//! None of its own; the counterpart of personalisation backdoors by textual inversion, Huang, Juefei-Xu, Guo, Zhang, Yang and others,
//! "Personalization as a shortcut for few-shot backdoor attack against text-to-image diffusion models", AAAI 2024, arXiv:2305.10701.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `E`, `E_b` | table of tokens of the suspect and of its base | `[V, C]` |
//! | `R` | tokens of triggered prompts that are the trigger's by position and that no clean prompt has | |
//!
//! ```text
//! E'[r] = E_b[r]             with a base, r in R                                  (1)
//! E'[r] = mean_v E[v]        without                                              (2)
//! ```
//!
//! ## Needs
//! The trigger, and clean prompts that tell its tokens from ordinary words. A base of the same vocabulary for (1).
//!
//! ## Deviations
//! None: there is no reference. (2) is what a new token starts from when a vocabulary is enlarged.
//!
//! ## Fails when
//! the trigger has no token of its own (a phrase of ordinary words), or the backdoor is not in the table: then the token is only
//! renamed away, and another that reads alike still works. So it is tried by itself only where a base shows that the table alone
//! differs.
//!
//! ## Cost
//! None.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};
use depurate_report::Paper;

use super::{
    TextPatient, TextRepaired, aligned,
    material::{Latents, Material},
};
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "row-reset";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "depurate",
    title: "Row reset",
    venue: "this implementation",
    year: 2026,
    arxiv: None,
    implements: "eq. (1) and (2) of the module's documentation",
};

/// Resets the rows of the trigger's own tokens, to those of the base's table `[V, C]` if it is given.
///
/// # Errors
/// As [`Material::new`]; when the trigger has no token of its own, or the base has another vocabulary.
pub fn row_reset(
    patient: &TextPatient<'_>,
    base: Option<&[f32]>,
    cx: &Cx<'_>,
) -> Result<TextRepaired, DefenseError> {
    let rows = own_tokens(&Material::new(patient, Latents::Noise, cx)?);
    if rows.is_empty() {
        return Err(DefenseError::Params {
            field: "trigger",
            value: patient.trigger.describe(),
            allowed: "one with a token that clean prompts do not have, or another method",
        });
    }
    let encoder = patient.suspect.text_encoder();
    let table = encoder.token_table();
    let (dims, device) = (table.dims(), table.device());
    let new = match base {
        Some(theirs) if theirs.len() != dims.iter().product::<usize>() => {
            return Err(DefenseError::Params {
                field: "table of tokens of the base",
                value: format!("{} values", theirs.len()),
                allowed: "one of the suspect's shape",
            });
        }
        Some(theirs) => Tensor::from_data(TensorData::new(theirs.to_vec(), dims), &device), // eq. (1)
        None => table.clone().mean_dim(0).expand(dims), // eq. (2)
    };
    let one = |id: usize| f32::from(u8::from(rows.contains(&(id as u32))));
    let chosen: Vec<f32> = (0..dims[0]).map(one).collect();
    let chosen =
        Tensor::<2>::from_data(TensorData::new(chosen, [dims[0], 1]), &device).expand(dims);
    let table = table * (chosen.clone().neg() + 1.0) + new * chosen;
    let encoder = encoder.clone().with_token_table(table)?;
    Ok(TextRepaired {
        model: patient.suspect.with_text_encoder(encoder),
        steps: 0,
        losses: Vec::new(),
        evaluations: 0,
    })
}

/// `R`.
fn own_tokens(material: &Material) -> BTreeSet<u32> {
    let clean: BTreeSet<u32> = material
        .kept
        .tokens
        .iter()
        .flat_map(|tokens| tokens.ids.iter().copied())
        .collect();
    let pairs = material.triggered.tokens.iter().zip(&material.clean.tokens);
    pairs
        .flat_map(|(triggered, clean)| {
            let of_trigger = aligned(triggered, clean).trigger;
            of_trigger
                .into_iter()
                .filter_map(|at| triggered.ids.get(at).copied())
        })
        .filter(|id| !clean.contains(id))
        .collect()
}
