//! Every algorithm on one page.

use depurate_defense::{
    detect::{
        input_level::{daa_i, daa_s, terd_input, unicode},
        model_level::{diff_cleanse, elijah_model, shift_response, static_weights, terd_model},
    },
    invert::{elijah, terd},
    repair::{
        diff_cleanse_pruning, elijah_removal, shifted_denoising,
        text::{
            concept_editing, encoder_distillation, row_reset, sau_latent, sau_weights, skd_cag,
        },
    },
};
use depurate_report::{
    Access, AlgorithmId, AlgorithmInfo, FINDINGS, FindingInfo, Kind, Paper, Status,
};

use crate::Error;

/// An algorithm with the documentation of its module, which is the only copy of it.
#[derive(Debug, Clone)]
pub struct Algorithm {
    /// Who it is.
    pub info: AlgorithmInfo,
    source: &'static str,
}

impl Algorithm {
    /// The documentation of the algorithm's module, as Markdown.
    pub fn documentation(&self) -> String {
        let lines = self
            .source
            .lines()
            .map_while(|line| line.strip_prefix("//!"));
        let mut text: String = lines
            .flat_map(|line| [line.strip_prefix(' ').unwrap_or(line), "\n"])
            .collect();
        text.truncate(text.trim_end().len());
        text
    }
}

/// Every algorithm of the library. A scan runs the model detectors: `static-weights` on text-to-image models, the chosen one on
/// others.
pub fn algorithms() -> Vec<Algorithm> {
    vec![
        Algorithm {
            info: shift_response::info(),
            source: include_str!("../../depurate-defense/src/detect/model_level/shift_response.rs"),
        },
        Algorithm {
            info: static_weights::info(),
            source: include_str!("../../depurate-defense/src/detect/model_level/static_weights.rs"),
        },
        Algorithm {
            info: terd_model::info(),
            source: include_str!("../../depurate-defense/src/detect/model_level/terd_model.rs"),
        },
        Algorithm {
            info: diff_cleanse::info(),
            source: include_str!("../../depurate-defense/src/detect/model_level/diff_cleanse.rs"),
        },
        Algorithm {
            info: elijah_model::info(),
            source: include_str!("../../depurate-defense/src/detect/model_level/elijah_model.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(terd::ID),
                name: "TERD",
                kind: Kind::Inverter,
                paper: Paper {
                    implements: "reversed loss, trigger estimation, trigger refinement",
                    ..terd::PAPER
                },
                reference: None,
                needs: Access::SCORE_FN.union(Access::GRADIENTS),
                deviations: &[
                    "timesteps by alpha_bar",
                    "restarts",
                    "no clipping",
                    "gamma starts at 1",
                ],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/invert/terd.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(elijah::ID),
                name: "Elijah",
                kind: Kind::Inverter,
                paper: elijah::PAPER,
                reference: None,
                needs: Access::SCORE_FN.union(Access::GRADIENTS),
                deviations: &["restarts from the starts of all released scripts"],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/invert/elijah.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(elijah_removal::ID),
                name: "Elijah's removal",
                kind: Kind::Repair,
                paper: elijah_removal::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &[
                    "the mean of the three terms",
                    "the teacher may hold the clean behaviour",
                    "several triggers",
                ],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/elijah_removal.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(diff_cleanse_pruning::ID),
                name: "Diff-Cleanse, pruning",
                kind: Kind::Repair,
                paper: diff_cleanse_pruning::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &[
                    "units of whole normalisation groups",
                    "the score as meant and as released",
                    "a share of all units",
                ],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/diff_cleanse_pruning.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(shifted_denoising::ID),
                name: "Shifted denoising",
                kind: Kind::Repair,
                paper: shifted_denoising::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &[],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/shifted_denoising.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(skd_cag::ID),
                name: "SKD-CAG",
                kind: Kind::Repair,
                paper: skd_cag::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &[
                    "the attention term has a gradient",
                    "a term that keeps clean prompts",
                    "latents that the model draws",
                    "positions aligned by tokens",
                ],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/skd_cag.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(sau_latent::ID),
                name: "SAU, latent",
                kind: Kind::Repair,
                paper: sau_latent::PAPER,
                reference: None,
                needs: Access::TRIGGER,
                deviations: &["a corrected blend beside the published one"],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/sau_latent.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(sau_weights::ID),
                name: "SAU, weights",
                kind: Kind::Repair,
                paper: sau_weights::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &["a reconstruction: the published method changes no weights"],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/sau_weights.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(encoder_distillation::ID),
                name: "Encoder distillation",
                kind: Kind::Repair,
                paper: encoder_distillation::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &[],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/encoder_distillation.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(row_reset::ID),
                name: "Row reset",
                kind: Kind::Repair,
                paper: row_reset::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::WEIGHTS),
                deviations: &[],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/row_reset.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(concept_editing::ID),
                name: "Concept editing",
                kind: Kind::Repair,
                paper: concept_editing::PAPER,
                reference: None,
                needs: Access::TRIGGER.union(Access::GRADIENTS),
                deviations: &["whole prompts, padding included"],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/repair/text/concept_editing.rs"),
        },
        Algorithm {
            info: AlgorithmInfo {
                id: AlgorithmId::from_static(terd_input::ID),
                name: "TERD, input level",
                kind: Kind::InputDetector,
                paper: Paper {
                    implements: "input detection",
                    ..terd::PAPER
                },
                reference: None,
                needs: Access::TRIGGER,
                deviations: &["gamma is a standard deviation"],
                status: Status::Preview,
            },
            source: include_str!("../../depurate-defense/src/detect/input_level/terd_input.rs"),
        },
        Algorithm {
            info: daa_i::info(),
            source: include_str!("../../depurate-defense/src/detect/input_level/daa_i.rs"),
        },
        Algorithm {
            info: daa_s::info(),
            source: include_str!("../../depurate-defense/src/detect/input_level/daa_s.rs"),
        },
        Algorithm {
            info: unicode::info(),
            source: include_str!("../../depurate-defense/src/detect/input_level/unicode.rs"),
        },
    ]
}

/// What an id stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An algorithm.
    Algorithm(Box<Algorithm>),
    /// A kind of finding.
    Finding(&'static FindingInfo),
}

/// Looks up an algorithm (`shift-response`) or a kind of finding (`DPR101`).
///
/// # Errors
/// When there is none of this id.
pub fn find(id: &str) -> Result<Entry, Error> {
    if let Some(finding) = FINDINGS
        .iter()
        .find(|info| info.id.to_string().eq_ignore_ascii_case(id))
    {
        return Ok(Entry::Finding(finding));
    }
    algorithms()
        .into_iter()
        .find(|algorithm| algorithm.info.id.as_str() == id)
        .map(|algorithm| Entry::Algorithm(Box::new(algorithm)))
        .ok_or_else(|| Error::UnknownId { id: id.to_owned() })
}

/// A status in words.
pub fn status(status: Status) -> String {
    match status {
        Status::Preview => "preview".into(),
        Status::Stable { since } => format!("stable since {since}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_every_module_documents_itself() {
        let algorithms = algorithms();
        let ids: BTreeSet<_> = algorithms
            .iter()
            .map(|algorithm| algorithm.info.id.clone())
            .collect();
        assert_eq!(ids.len(), algorithms.len());
        for algorithm in &algorithms {
            let text = algorithm.documentation();
            for heading in [
                "# ",
                "## Paper",
                "## Notation",
                "## Needs",
                "## Deviations",
                "## Fails when",
                "## Cost",
            ] {
                assert!(
                    text.lines().any(|line| line.starts_with(heading)),
                    "{}: {heading}",
                    algorithm.info.id
                );
            }
        }
    }

    #[test]
    fn ids_are_found_and_misspelt_ones_are_not() {
        assert!(matches!(find("DPR101"), Ok(Entry::Finding(_))));
        assert!(matches!(find("dpr101"), Ok(Entry::Finding(_))));
        for algorithm in algorithms() {
            assert!(matches!(
                find(algorithm.info.id.as_str()),
                Ok(Entry::Algorithm(_))
            ));
        }
        assert!(find("shift_response").is_err());
    }
}
