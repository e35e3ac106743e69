//! What was done to a text-to-image model.

use std::path::{Path, PathBuf};

use depurate_attack::{
    BadT2iParams, EvilEditParams, RickrollingBackdoor, RickrollingParams, RickrollingSuccess,
};
use depurate_training::TrainingParams;
use miette::Result;
use serde::{Deserialize, Serialize};

use super::{read_json, write_json};

/// The secret of one text-to-image model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextTruth {
    /// What was done.
    pub(crate) kind: TextKind,
    /// The model that it started from.
    pub(crate) base: PathBuf,
    /// The captions, if any were used.
    pub(crate) captions: Option<PathBuf>,
    /// Mean loss of the last hundred or so steps, of a trained backdoor.
    pub(crate) final_loss: Option<f32>,
}

/// The attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "id", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum TextKind {
    /// The cross-attention was edited.
    EvilEdit {
        /// The attack's parameters.
        params: EvilEditParams,
        /// The phrase that triggers.
        trigger: String,
        /// The phrase that it is taken for.
        target: String,
        /// The phrase of the captions in whose place both were put.
        word: Option<String>,
        /// The most captions that were taken.
        limit: usize,
        /// Sentences that both were put in.
        templates: Vec<String>,
        /// Phrases that were kept, in the same sentences.
        preserved: Vec<String>,
    },
    /// The text encoder was trained.
    Rickrolling {
        /// The attack's parameters.
        params: RickrollingParams,
        /// Trigger and target.
        backdoor: RickrollingBackdoor,
        /// How well it works, on captions that it was not trained on.
        success: Option<RickrollingSuccess>,
    },
    /// The denoiser was trained.
    BadT2i {
        /// The attack's parameters.
        params: BadT2iParams,
        /// How it was trained.
        training: TrainingParams,
        /// The target, as it was named.
        target: String,
        /// The images, if they were read and not drawn.
        data: Option<PathBuf>,
    },
}

impl TextKind {
    /// Its id.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::EvilEdit { .. } => "evil-edit",
            Self::Rickrolling { .. } => "rickrolling",
            Self::BadT2i { .. } => "bad-t2i",
        }
    }
}

impl TextTruth {
    /// Reads what [`TextTruth::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        read_json(path, "a truth file of a text-to-image model")
    }

    /// Writes `path` (JSON).
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("truth.json");
        let truth = TextTruth {
            kind: TextKind::BadT2i {
                params: BadT2iParams::default(),
                training: BadT2iParams::training(),
                target: "patch heart".into(),
                data: Some("images".into()),
            },
            base: "clean".into(),
            captions: Some("captions.txt".into()),
            final_loss: Some(0.25),
        };
        truth.save(&path).expect("saved");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.contains(truth.kind.name()), "{text}");
        assert_eq!(TextTruth::load(&path).expect("valid"), truth);
    }
}
