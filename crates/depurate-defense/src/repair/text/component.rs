//! Where a text backdoor sits: in the table of tokens, in the text encoder or behind it. A base that the suspect was made from tells by
//! the tensors that differ; without one the states of triggered prompts tell.
//!
//! ```text
//! r(w)  = mean over positions of |T(p with w)[k] - T(p)[sigma(k)]|^2, of prompts p        (1)
//! ratio = r(trigger) / median over plain words of r                                       (2)
//! ```
//!
//! An encoder whose states under a trigger are those of another prompt has a ratio far above 1; a rare token that an innocent encoder
//! only passes on has one of about 1, whatever the denoiser makes of it.

use burn::tensor::Tensor;
use depurate_checkpoint::ModelPart;
use depurate_diffusion::clip_tokenizer::Tokens;
use serde::{Deserialize, Serialize};

use super::{
    TextPatient,
    material::{Encoded, chosen},
    stand_ins,
    trigger::WORDS,
};
use crate::{DefenseError, detect::model_level::static_weights::Drift};

/// The ratio (2) from which the encoder is treated first.
const FROM: f64 = 3.0;
/// Prompts that are looked at.
const PROMPTS: usize = 32;

/// How the name of the table of tokens ends in every text encoder.
pub const TOKEN_TABLE: &str = "embeddings.token_embedding.weight";

/// A component of a text-to-image model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The text encoder's table of tokens alone.
    TokenTable,
    /// The text encoder.
    TextEncoder,
    /// The denoiser.
    Denoiser,
}

impl Component {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokenTable => "table of tokens",
            Self::TextEncoder => "text encoder",
            Self::Denoiser => "denoiser",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Localised {
    /// The component.
    pub component: Component,
    /// (2).
    pub ratio: f64,
}

/// The components that differ from the base.
pub fn drifted(drift: &Drift) -> Vec<Component> {
    let differs = |part: ModelPart| {
        let changed = drift.changed().filter(move |tensor| tensor.part == part);
        let names = changed.map(|tensor| &tensor.name);
        names.chain(
            drift
                .only_here
                .iter()
                .filter(move |(of, _)| *of == part)
                .map(|(_, name)| name),
        )
    };
    let mut encoder = differs(ModelPart::TextEncoder).peekable();
    let mut found = Vec::new();
    if encoder.peek().is_some() {
        found.push(if encoder.all(|name| name.ends_with(TOKEN_TABLE)) {
            Component::TokenTable
        } else {
            Component::TextEncoder
        });
    }
    if differs(ModelPart::Unet).next().is_some() {
        found.push(Component::Denoiser);
    }
    found
}

/// Where the trigger of `patient` is answered, by the states of its prompts.
///
/// # Errors
/// When no prompt has a place for the trigger, or the model cannot be run.
pub fn localised(patient: &TextPatient<'_>) -> Result<Localised, DefenseError> {
    let model = patient.suspect.frozen();
    let prompts = patient.fitting(PROMPTS)?;
    let clean = Encoded::of(&model, &prompts)?;
    let response = |with: &dyn Fn(&str) -> Option<String>| {
        let changed: Vec<String> = prompts.iter().filter_map(|p| with(p)).collect();
        let changed = Encoded::of(&model, &changed)?;
        let mut sum = 0.0;
        for i in 0..prompts.len() {
            sum += moved(&changed, &clean, i);
        }
        Ok::<_, DefenseError>(sum / prompts.len() as f64) // eq. (1)
    };
    let of_trigger = response(&|p| patient.trigger.put(p))?;
    let of_words: Result<Vec<f64>, _> = (0..WORDS.len())
        .map(|i| response(&|p| patient.trigger.put_instead(p, i)))
        .collect();
    let ratio = of_trigger / depurate_stats::median(&of_words?)?.max(f64::MIN_POSITIVE); // eq. (2)
    let component = if ratio >= FROM {
        Component::TextEncoder
    } else {
        Component::Denoiser
    };
    Ok(Localised { component, ratio })
}

/// Mean squared distance of the states of prompt `i`, position by position.
fn moved(changed: &Encoded, clean: &Encoded, i: usize) -> f64 {
    let at = stand_ins(&changed.tokens[i], &clean.tokens[i]);
    let rows = |encoded: &Encoded| -> Tensor<2> {
        let states = encoded.states(&[i]);
        let [_, channels, tokens] = states.dims();
        states.swap_dims(1, 2).reshape([tokens, channels])
    };
    let used = used(&changed.tokens[i]);
    let wanted = chosen(&rows(clean), &at[..used]);
    let got = rows(changed).narrow(0, 0, used);
    f64::from((got - wanted).square().mean().into_scalar::<f32>())
}

/// Positions that are not padding.
fn used(tokens: &Tokens) -> usize {
    tokens.used.clamp(1, tokens.ids.len())
}
