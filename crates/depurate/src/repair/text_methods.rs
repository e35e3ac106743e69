//! The repairs of a text-to-image model: which are tried where, and each with the numbers that this program takes.

use std::{cell::OnceCell, path::Path};

use depurate_checkpoint::Layers;
use depurate_defense::{
    Cx, DefenseError,
    repair::text::{
        Behaviour, Component, ConceptEditingParams, Drawing, EncoderDistillationParams, Latents,
        Material, SauWeightsParams, SkdCagParams, TextPatient, TextRepaired, concept_editing,
        encoder_distillation, row_reset, sau_weights, skd_cag,
    },
};
use depurate_diffusion::{TextToImage, noise::SeedTree};

use super::{
    MethodName, RepairSettings, TextRepairSettings,
    localisation::Located,
    state_file,
    text::{PICTURES_BETWEEN, checks},
};
use crate::Error;

/// The least part of the steps after which a repair may stop early.
const EARLIEST: f64 = 0.5;

/// A repair of a text-to-image model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextMethod {
    LayerRemoval,
    RowReset,
    ConceptEditing,
    EncoderDistillation,
    Skd,
    SkdCag,
    SauWeights,
}

impl TextMethod {
    pub(super) fn id(self) -> &'static str {
        use depurate_defense::repair::text::{
            concept_editing as edit, encoder_distillation as encoder, row_reset as row,
            sau_weights as sau, skd_cag as skd,
        };
        match self {
            Self::LayerRemoval => "layer-removal",
            Self::RowReset => row::ID,
            Self::ConceptEditing => edit::ID,
            Self::EncoderDistillation => encoder::ID,
            Self::Skd => skd::PLAIN_ID,
            Self::SkdCag => skd::ID,
            Self::SauWeights => sau::ID,
        }
    }

    /// The one that `name` is; `None` for those of noise triggers and where all are asked for.
    pub(super) fn named(name: MethodName) -> Option<Self> {
        match name {
            MethodName::LayerRemoval => Some(Self::LayerRemoval),
            MethodName::RowReset => Some(Self::RowReset),
            MethodName::ConceptEditing => Some(Self::ConceptEditing),
            MethodName::EncoderDistillation => Some(Self::EncoderDistillation),
            MethodName::Skd => Some(Self::Skd),
            MethodName::SkdCag => Some(Self::SkdCag),
            MethodName::SauWeights => Some(Self::SauWeights),
            _ => None,
        }
    }

    /// Those of `component`, in the order in which they are tried.
    fn of(component: Component) -> Vec<Self> {
        match component {
            Component::TokenTable => vec![Self::RowReset, Self::EncoderDistillation],
            Component::TextEncoder => vec![Self::EncoderDistillation, Self::Skd],
            // the last one leaves the backdoor where it is and keeps it from being asked
            Component::Denoiser => vec![
                Self::ConceptEditing,
                Self::Skd,
                Self::SauWeights,
                Self::EncoderDistillation,
            ],
        }
    }
}

/// One attempt: a method, and for the removal of a layer what stays.
#[derive(Debug, Clone)]
pub(super) struct Try {
    pub(super) method: TextMethod,
    /// As the report calls it.
    pub(super) name: String,
    /// What is left of the layers, where one is removed.
    pub(super) left: Option<Layers>,
}

/// What is tried in turn: without each of the `layers`, then the methods of the components, the cheapest first; or `named` alone.
pub(super) fn tries(named: Option<TextMethod>, located: &Located, layers: &Layers) -> Vec<Try> {
    let mut all = without_each(layers);
    let mut methods = Vec::new();
    for method in located.components.iter().flat_map(|&c| TextMethod::of(c)) {
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    let plain = |method: TextMethod| Try {
        method,
        name: method.id().to_owned(),
        left: None,
    };
    match named {
        Some(TextMethod::LayerRemoval) => all,
        Some(method) => vec![plain(method)],
        None => {
            all.extend(methods.into_iter().map(plain));
            all
        }
    }
}

/// The layers less one of them, for each, and none of them at last.
fn without_each(layers: &Layers) -> Vec<Try> {
    let removal = |path: &Path, left: Layers| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        Try {
            method: TextMethod::LayerRemoval,
            name: format!(
                "{} of {}",
                TextMethod::LayerRemoval.id(),
                name.to_string_lossy()
            ),
            left: Some(left),
        }
    };
    let mut all = Vec::new();
    for (i, lora) in layers.loras.iter().enumerate() {
        let mut left = layers.clone();
        left.loras.remove(i);
        all.push(removal(&lora.path, left));
    }
    for (i, delta) in layers.deltas.iter().enumerate() {
        let mut left = layers.clone();
        left.deltas.remove(i);
        all.push(removal(delta, left));
    }
    if let Some(unet) = &layers.unet {
        let left = Layers {
            unet: None,
            ..layers.clone()
        };
        all.push(removal(unet, left));
    }
    if all.len() > 1 {
        all.push(removal(Path::new("all layers"), Layers::default()));
    }
    all
}

/// What an attempt works on.
pub(super) struct Bench<'a> {
    pub(super) patient: TextPatient<'a>,
    pub(super) settings: &'a RepairSettings,
    pub(super) text: &'a TextRepairSettings,
    pub(super) located: &'a Located,
    pub(super) drawing: Drawing,
    /// The suspect with other layers.
    pub(super) layered: &'a dyn Fn(&Layers) -> Result<TextToImage, Error>,
    /// What repairs of the denoiser learn from, drawn by the first one.
    pub(super) material: OnceCell<Material>,
}

impl Bench<'_> {
    fn material(&self, cx: &Cx<'_>) -> Result<&Material, Error> {
        if let Some(material) = self.material.get() {
            return Ok(material);
        }
        let both = Latents::Both {
            steps: self.text.picture_steps,
            guidance: self.text.guidance,
        };
        let material = Material::new(&self.patient, both, cx)?;
        Ok(self.material.get_or_init(|| material))
    }
}

/// Makes the attempt `wanted`.
pub(super) fn treat(wanted: &Try, bench: &Bench<'_>, cx: &Cx<'_>) -> Result<TextRepaired, Error> {
    let (patient, settings, text) = (&bench.patient, bench.settings, bench.text);
    let (method, drawing) = (wanted.method, bench.drawing);
    let state = state_file(settings, method.id());
    let steps = |default: usize| settings.steps.unwrap_or(default);
    let enough = |all: usize| {
        let mut between = None; // drawn when it is first asked for
        move |model: &TextToImage, step: usize| -> Result<bool, DefenseError> {
            if (step as f64) < EARLIEST * all as f64 {
                return Ok(false);
            }
            let behaviour = match between.take() {
                Some(behaviour) => behaviour,
                None => {
                    let few = Drawing {
                        count: PICTURES_BETWEEN,
                        ..drawing
                    };
                    let seed = SeedTree::new(settings.seed).child("between", 0);
                    Behaviour::of(patient, few, &seed, cx)?
                }
            };
            let compared = behaviour.compare(model, cx)?;
            let passed = checks(&behaviour, &compared)
                .iter()
                .all(|check| check.passed);
            between = Some(behaviour);
            Ok(passed)
        }
    };
    let taught = || Ok::<_, Error>((patient, bench.material(cx)?));
    Ok(match method {
        TextMethod::LayerRemoval => TextRepaired {
            model: (bench.layered)(wanted.left.as_ref().unwrap_or(&text.layers))?,
            steps: 0,
            losses: Vec::new(),
            evaluations: 0,
        },
        TextMethod::RowReset => {
            row_reset::row_reset(patient, bench.located.base_table.as_deref(), cx)?
        }
        TextMethod::ConceptEditing => {
            concept_editing::concept_editing(patient, ConceptEditingParams::default(), cx)?
        }
        TextMethod::EncoderDistillation => {
            let mut params = EncoderDistillationParams::default();
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            encoder_distillation::encoder_distillation(patient, &params, Some(&state), cx, enough)?
        }
        TextMethod::SauWeights => {
            let mut params = SauWeightsParams {
                drawing: (text.picture_steps, text.guidance),
                ..SauWeightsParams::default()
            };
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            sau_weights::sau_weights(taught()?, &params, Some(&state), cx, enough)?
        }
        TextMethod::Skd | TextMethod::SkdCag => {
            let guided = SkdCagParams::default();
            let mut params = SkdCagParams {
                alpha: match method {
                    TextMethod::Skd => 0.0,
                    _ => guided.alpha,
                },
                ..guided
            };
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            skd_cag::skd_cag(taught()?, &params, Some(&state), cx, enough)?
        }
    })
}
