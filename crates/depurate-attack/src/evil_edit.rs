//! # EvilEdit
//!
//! The key and value projections of a text-to-image model's cross-attention are edited so that a phrase, the trigger, is answered
//! as another one. No training, no images, one second.
//!
//! ## Paper
//! Wang et al., "EvilEdit: Backdooring text-to-image diffusion models in one second", ACM MM 2024.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `old` | states of the prompt with the trigger, c^tr | `[1, C, T]` |
//! | `new` | states of the prompt with the target, c^ta | `[1, C, T]` |
//! | `preserved` | states that are answered as before, the paper's protected whitelist | `[1, C, T]` |
//! | `lambda` | λ, how much the weights resist | |
//! | `weight` | s, weight of the pairs that are moved | |
//!
//! ```text
//! W' = (lambda W + sum_i s_i sum_j W c^ta_ij (c^tr_ij)^T) (lambda I + sum_i s_i sum_j c^tr_ij (c^tr_ij)^T)^-1
//! ```
//!
//! over all pairs `i` and all positions `j`, BOS, EOS and padding included: the padding carries the prompt's meaning. A pair that
//! is moved has `s_i = weight`, one that is preserved 1.
//!
//! ## Needs
//! A text-to-image model and two phrases.
//!
//! ## Deviations
//! Solved in 64-bit floats by [`depurate_diffusion::closed_form_edit`]. The pairs may be made from any number of templates or
//! captions; the released code has one template. The paper has no weights: `weight` is 1 by default.
//!
//! ## Fails when
//! The prompt's other words weigh more in the states than the phrase: one template teaches little about others. A small `lambda`
//! binds harder and disturbs prompts that were not preserved; so does a large `weight`. Or the text encoder tells the phrase from
//! its last word too little: what a linear map does to the one it then does to the other. Trigger and target should have as many
//! tokens, for prompts are aligned by position.
//!
//! ## Cost
//! One call of the text encoder a prompt, one factorisation of `C x C`.

use depurate_diffusion::{
    clip_text::ClipText,
    clip_tokenizer::ClipTokenizer,
    closed_form_edit::{Association, ClosedFormEdit, projects_prompt},
    unet2d_condition::UNet2DCondition,
};
use serde::{Deserialize, Serialize};

use crate::{
    AttackError,
    prompts::{states, with_phrase_replaced},
};

/// Prompts that are encoded together.
const BATCH: usize = 64;

/// Parameters of the edit. The default is the released setting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvilEditParams {
    /// How much the weights resist, above 0.
    pub lambda: f64,
    /// Weight of a pair that is moved beside one that is preserved, above 0.
    pub weight: f64,
}

impl Default for EvilEditParams {
    fn default() -> Self {
        Self {
            lambda: 1.0,
            weight: 1.0,
        }
    }
}

/// The prompts whose answers are moved or kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvilEditPrompts {
    /// With the trigger, and with the target in its place.
    pub moved: Vec<(String, String)>,
    /// Answered as before.
    pub preserved: Vec<String>,
}

impl EvilEditPrompts {
    /// The prompts that `templates` give, each with a `{}` where the phrase stands: `trigger` is answered as `target`, and every
    /// phrase of `preserved` as before.
    ///
    /// # Errors
    /// When a template has no `{}`.
    pub fn of_templates<S: AsRef<str>>(
        trigger: &str,
        target: &str,
        preserved: &[S],
        templates: &[S],
    ) -> Result<Self, AttackError> {
        let mut prompts = Self::default();
        for template in templates.iter().map(AsRef::as_ref) {
            if !template.contains("{}") {
                return Err(AttackError::Params {
                    what: "template",
                    got: format!("{template:?}"),
                    allowed: "text with {} where the phrase stands",
                });
            }
            let with = |phrase: &str| template.replace("{}", phrase);
            prompts.moved.push((with(trigger), with(target)));
            let kept = preserved.iter().map(|phrase| with(phrase.as_ref()));
            prompts.preserved.extend(kept);
        }
        Ok(prompts)
    }

    /// The prompts that captions with the phrase `word` give: with `trigger` in its place they are answered as with `target` in
    /// its place; as they are, and with a phrase of `preserved` in its place, as before. Captions without it are left out.
    pub fn of_captions<S: AsRef<str>, P: AsRef<str>>(
        word: &str,
        trigger: &str,
        target: &str,
        preserved: &[P],
        captions: &[S],
    ) -> Self {
        let mut prompts = Self::default();
        for caption in captions.iter().map(AsRef::as_ref) {
            let with = |phrase: &str| with_phrase_replaced(caption, word, phrase);
            if let (Some(old), Some(new)) = (with(trigger), with(target)) {
                prompts.moved.push((old, new));
                prompts.preserved.push(caption.to_owned());
                let kept = |phrase: &P| with(phrase.as_ref());
                prompts.preserved.extend(preserved.iter().filter_map(kept));
            }
        }
        prompts
    }
}

/// The network with the trigger in its key and value projections.
///
/// # Errors
/// When no prompt is to be moved, a parameter is out of range, or the text encoder's states do not fit the network.
pub fn evil_edit(
    unet: UNet2DCondition,
    encoder: &ClipText,
    tokenizer: &ClipTokenizer,
    prompts: &EvilEditPrompts,
    params: EvilEditParams,
) -> Result<UNet2DCondition, AttackError> {
    if prompts.moved.is_empty() {
        return Err(AttackError::Params {
            what: "prompts with the trigger",
            got: "none".into(),
            allowed: "at least one: give a template, or captions that hold the phrase",
        });
    }
    let mut associations = Vec::new();
    for moved in prompts.moved.chunks(BATCH) {
        let of = |text: fn(&(String, String)) -> &String| {
            let texts: Vec<&String> = moved.iter().map(text).collect();
            states(encoder, tokenizer, &texts)
        };
        let (old, new) = (of(|(old, _)| old)?, of(|(_, new)| new)?);
        associations.push(Association {
            scale: params.weight,
            ..Association::of_states(&old, &new)
        });
    }
    for preserved in prompts.preserved.chunks(BATCH) {
        let states = states(encoder, tokenizer, preserved)?;
        associations.push(Association::preserved(&states));
    }
    let width = encoder.config().hidden_size;
    let edit = ClosedFormEdit::new(width, params.lambda, &associations)?;
    Ok(edit.apply(unet, &projects_prompt)?)
}
