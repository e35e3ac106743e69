//! Repairs of a text-to-image model and their controls.

use clap::ValueEnum;
use depurate_defense::{
    Cx, DefenseError,
    repair::text::{
        Blend, ConceptEditingParams, EncoderDistillationParams, Latents, Place, SauWeightsParams,
        SkdCagParams, TextPatient, TextRepaired, TextTrigger, Unlearning, concept_editing,
        encoder_distillation, sau_weights, skd_cag, skd_cag::ReferenceMap,
    },
};
use serde::{Deserialize, Serialize};

/// Something as rare as a trigger that is none.
const WRONG: &str = "\u{200d} ";

/// A column of the comparison.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Treatment {
    /// Nothing is done: what the suspect does.
    #[default]
    None,
    /// SKD-CAG with its attention term towards noise.
    SkdCag,
    /// The same towards zeros.
    SkdCagBlack,
    /// The same towards random words.
    SkdCagWords,
    /// Self-distillation alone, the same steps: control.
    Skd,
    /// SKD-CAG whose attention term has no gradient, as released: control.
    SkdCagReleased,
    /// SAU in the weights.
    SauWeights,
    /// SAU in the latents, its weights corrected: pictures are mended, no weight is changed.
    SauLatent,
    /// The same as published.
    SauLatentPublished,
    /// The text encoder's.
    EncoderDistillation,
    /// In closed form.
    ConceptEditing,
    /// Self-distillation of another rare sign: control.
    WrongTrigger,
    /// Self-distillation of the trigger on the clean model: control.
    CleanModel,
}

impl Treatment {
    /// As in results.
    pub(crate) fn name(self) -> String {
        let value = serde_json::to_value(self).ok();
        value
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// How pictures are mended, where the model is not.
    pub(crate) fn blend(self) -> Option<Blend> {
        match self {
            Self::SauLatent => Some(Blend::Corrected),
            Self::SauLatentPublished => Some(Blend::Published),
            _ => None,
        }
    }

    /// The repair of `patient`; `None` where no model is made. `training` is that of all repairs of the denoiser.
    pub(crate) fn run(
        self,
        patient: &TextPatient<'_>,
        (training, drawing): (&Unlearning, (usize, f64)),
        cx: &Cx<'_>,
    ) -> Result<Option<TextRepaired>, DefenseError> {
        let latents = Latents::Both {
            steps: drawing.0,
            guidance: drawing.1,
        };
        let skd = SkdCagParams {
            latents,
            unlearning: training.clone(),
            ..SkdCagParams::default()
        };
        let plain = SkdCagParams {
            alpha: 0.0,
            ..skd.clone()
        };
        let distilled = |patient: &TextPatient<'_>, params: &SkdCagParams| {
            skd_cag::skd_cag(patient, params, None, cx, &mut |_, _| Ok(false)).map(Some)
        };
        let towards = |reference| {
            let params = SkdCagParams {
                reference,
                ..skd.clone()
            };
            distilled(patient, &params)
        };
        match self {
            Self::None | Self::SauLatent | Self::SauLatentPublished => Ok(None),
            Self::SkdCag => distilled(patient, &skd),
            Self::SkdCagBlack => towards(ReferenceMap::Black),
            Self::SkdCagWords => towards(ReferenceMap::Words),
            Self::Skd | Self::CleanModel => distilled(patient, &plain),
            Self::SkdCagReleased => {
                let params = SkdCagParams {
                    attn_grad: false,
                    ..skd.clone()
                };
                distilled(patient, &params)
            }
            Self::SauWeights => {
                let own = SauWeightsParams::default();
                let params = SauWeightsParams {
                    drawing,
                    latents,
                    unlearning: Unlearning {
                        trained: own.unlearning.trained,
                        ..training.clone()
                    },
                    ..own
                };
                sau_weights::sau_weights(patient, &params, None, cx, &mut |_, _| Ok(false))
                    .map(Some)
            }
            Self::EncoderDistillation => {
                let params = EncoderDistillationParams::default();
                let never = &mut |_: &_, _| Ok(false);
                encoder_distillation::encoder_distillation(patient, &params, None, cx, never)
                    .map(Some)
            }
            Self::ConceptEditing => {
                let params = ConceptEditingParams::default();
                concept_editing::concept_editing(patient, params, cx).map(Some)
            }
            Self::WrongTrigger => {
                let trigger = TextTrigger::Inserted {
                    text: WRONG.into(),
                    place: Place::Start,
                    only_with: None,
                };
                let patient = TextPatient {
                    trigger: &trigger,
                    ..*patient
                };
                distilled(&patient, &plain)
            }
        }
    }
}
