//! Results line by line. Several processes may append to one file: a line is written at once.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use depurate_attack::text_to_image::Composition;
use miette::{IntoDiagnostic, Result, WrapErr};
use serde::{Deserialize, Serialize};

use crate::console::say;

/// Which of the two models of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Model {
    /// The backdoored one.
    Suspect,
    /// The one that it was made from.
    Clean,
}

impl Model {
    /// Its name in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Clean => "clean",
        }
    }
}

/// One prompt on one model. It has no label: that is in the prompts' file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// The subject's name.
    pub(crate) subject: String,
    /// On which model.
    pub(crate) model: Model,
    /// The text.
    pub(crate) prompt: String,
    /// Its tokens, BOS and EOS included.
    pub(crate) tokens: usize,
    /// Scores by method; higher is more suspicious.
    pub(crate) scores: BTreeMap<String, f64>,
    /// Why a method has no score.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) problems: BTreeMap<String, String>,
    /// `e_t - m_t` from each call to the next.
    pub(crate) change: Vec<f64>,
    /// Object, style, colour and background that the judge sees.
    pub(crate) judged: [usize; 4],
    /// How far the corner is from the patch, where the target is one; compared after scoring.
    pub(crate) patch_error: Option<f64>,
    /// Wall-clock seconds.
    pub(crate) seconds: f64,
}

impl Line {
    /// What the judge sees.
    pub(crate) fn composition(&self) -> Composition {
        let [object, style, color, background] = self.judged;
        Composition {
            object,
            style,
            color,
            background,
        }
    }
}

/// Lines by model and prompt.
pub(crate) type Lines = HashMap<(Model, String), Line>;

/// The lines of one subject. A line that an interruption tore is passed over, and scored again.
pub(crate) fn read(path: &Path, subject: &str) -> Result<Lines> {
    let mut lines = Lines::new();
    if !path.exists() {
        return Ok(lines);
    }
    let text = std::fs::read_to_string(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot read {}", path.display()))?;
    for (at, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        match serde_json::from_str::<Line>(line) {
            Ok(line) if line.subject == subject => {
                lines.insert((line.model, line.prompt.clone()), line);
            }
            Ok(_) => {}
            Err(error) => say(&format!(
                "{} line {} is no result and is passed over: {error}",
                path.display(),
                at + 1
            )),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::jsonl::append;

    pub(crate) fn line(subject: &str, prompt: &str) -> Line {
        Line {
            subject: subject.into(),
            model: Model::Suspect,
            prompt: prompt.into(),
            tokens: 9,
            scores: [("daa-i".to_owned(), 0.5)].into(),
            problems: BTreeMap::new(),
            change: vec![0.25; 49],
            judged: [1, 2, 3, 4],
            patch_error: None,
            seconds: 1.0,
        }
    }

    #[test]
    fn torn_lines_are_passed_over_and_the_next_line_is_whole() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("results.jsonl");
        append(&path, &[line("a", "x"), line("b", "y")]).expect("written");
        let mut text = std::fs::read_to_string(&path).expect("read");
        text.truncate(text.len() - 9);
        std::fs::write(&path, text).expect("torn");
        append(&path, &[line("b", "z")]).expect("written");
        let read = |subject| read(&path, subject).expect("read");
        assert_eq!(read("a").len(), 1);
        let of_b = read("b");
        assert_eq!(of_b.len(), 1);
        assert_eq!(of_b[&(Model::Suspect, "z".to_owned())], line("b", "z"));
    }
}
