//! Repairs of a text-to-image model and their controls.

use clap::ValueEnum;
use depurate_defense::{
    Cx, DefenseError,
    repair::text::{
        Blend, ConceptEditingParams, EncoderDistillationParams, Material, Place, SauWeightsParams,
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
    /// Self-distillation where the owner has seen the target and gives prompts that ask for it.
    SkdTargetKnown,
    /// Self-distillation that does not ask what the trigger leads to: control.
    SkdBlind,
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
    /// The text encoder's distillation, of another rare sign: control.
    EncoderWrongTrigger,
    /// The same, of the trigger on the clean model: control.
    EncoderCleanModel,
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

    /// Whether the clean model is repaired, not the suspect.
    pub(crate) fn of_clean(self) -> bool {
        matches!(self, Self::CleanModel | Self::EncoderCleanModel)
    }

    /// The trigger that a repair is told, where the owner knows `known`.
    pub(crate) fn told(self, known: &TextTrigger) -> TextTrigger {
        match self {
            Self::WrongTrigger | Self::EncoderWrongTrigger => TextTrigger::Inserted {
                text: WRONG.into(),
                place: Place::Start,
                only_with: None,
            },
            _ => known.clone(),
        }
    }

    /// What it teaches the denoiser by `training`, as all repairs of the denoiser, with the weight `keep` of what stays; `None` where
    /// that is not trained.
    pub(crate) fn lesson(
        self,
        (training, keep): (&Unlearning, f64),
        drawing: (usize, f64),
    ) -> Option<Lesson> {
        let skd = SkdCagParams {
            keep,
            unlearning: training.clone(),
            ..SkdCagParams::default()
        };
        let towards = |reference| SkdCagParams {
            reference,
            ..skd.clone()
        };
        Some(Lesson::SkdCag(match self {
            Self::None
            | Self::SauLatent
            | Self::SauLatentPublished
            | Self::EncoderDistillation
            | Self::EncoderWrongTrigger
            | Self::EncoderCleanModel
            | Self::ConceptEditing => return None,
            Self::SkdCag => skd,
            Self::SkdCagBlack => towards(ReferenceMap::Black),
            Self::SkdCagWords => towards(ReferenceMap::Words),
            Self::Skd
            | Self::SkdTargetKnown
            | Self::SkdBlind
            | Self::CleanModel
            | Self::WrongTrigger => SkdCagParams { alpha: 0.0, ..skd },
            Self::SkdCagReleased => SkdCagParams {
                attn_grad: false,
                ..skd
            },
            Self::SauWeights => {
                let own = SauWeightsParams::default();
                return Some(Lesson::SauWeights(SauWeightsParams {
                    keep,
                    drawing,
                    unlearning: Unlearning {
                        trained: own.unlearning.trained,
                        ..training.clone()
                    },
                    ..own
                }));
            }
        }))
    }

    /// The repair of `patient` where the denoiser is not trained; `None` where no model is made.
    pub(crate) fn run(
        self,
        patient: &TextPatient<'_>,
        cx: &Cx<'_>,
    ) -> Result<Option<TextRepaired>, DefenseError> {
        match self {
            Self::EncoderDistillation | Self::EncoderWrongTrigger | Self::EncoderCleanModel => {
                let params = EncoderDistillationParams::default();
                let never = &mut |_: &_, _| Ok(false);
                encoder_distillation::encoder_distillation(patient, &params, None, cx, never)
                    .map(Some)
            }
            Self::ConceptEditing => {
                let params = ConceptEditingParams::default();
                concept_editing::concept_editing(patient, params, cx).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// A training of the denoiser.
#[derive(Debug)]
pub(crate) enum Lesson {
    SkdCag(SkdCagParams),
    SauWeights(SauWeightsParams),
}

impl Lesson {
    /// The repair of the patient by its material.
    pub(crate) fn teach(
        &self,
        of: (&TextPatient<'_>, &Material),
        cx: &Cx<'_>,
    ) -> Result<TextRepaired, DefenseError> {
        let never = &mut |_: &_, _| Ok(false);
        match self {
            Self::SkdCag(params) => skd_cag::skd_cag(of, params, None, cx, never),
            Self::SauWeights(params) => sau_weights::sau_weights(of, params, None, cx, never),
        }
    }
}
