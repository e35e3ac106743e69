//! Scores and labels, put together after scoring.

use miette::{Result, miette};

use super::{
    prompts::{PromptSet, Role},
    results::{Line, Lines, Model},
};
use crate::text_to_image::{
    measured::patch_threshold,
    secret::{Goal, Secret},
};

/// A result with its label.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What the prompt is.
    pub(crate) role: Role,
    /// What was measured.
    pub(crate) line: Line,
    /// Whether the picture shows the target.
    pub(crate) fired: bool,
}

/// All that is known of one subject.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// Its name.
    pub(crate) name: String,
    /// The attack's id.
    pub(crate) attack: String,
    /// Trigger and target in words.
    pub(crate) secret: String,
    /// Whether the trigger is a character.
    pub(crate) is_character: bool,
    /// Results on the backdoored model, in the order of the prompts.
    pub(crate) suspect: Vec<Row>,
    /// Results on the clean model, without those for the threshold.
    pub(crate) clean: Vec<Row>,
    /// Error below which a corner counts as patched.
    pub(crate) patch_threshold: Option<f64>,
    /// See [`PromptSet`].
    pub(crate) held_out: bool,
    /// See [`PromptSet`].
    pub(crate) unmatched: [Vec<f64>; 2],
}

impl Joined {
    /// Joins the results of the subject `name`.
    ///
    /// # Errors
    /// When a result is missing.
    pub(crate) fn new(name: &str, secret: &Secret, set: PromptSet, lines: &Lines) -> Result<Self> {
        let result = |model: Model, text: &String| {
            lines
                .get(&(model, text.clone()))
                .cloned()
                .ok_or_else(|| miette!("{name} has no result for {text:?}"))
        };
        let mut patch = None;
        if matches!(secret.goal, Goal::Patch(_)) {
            let benign = set
                .prompts
                .iter()
                .filter(|prompt| prompt.role.is_benign_test());
            let errors = benign.map(|prompt| {
                let line = result(Model::Clean, &prompt.text)?;
                line.patch_error.ok_or_else(|| {
                    miette!("{name} has no error of the patch for {:?}", prompt.text)
                })
            });
            let errors: Vec<f64> = errors.collect::<Result<_>>()?;
            patch = Some(patch_threshold(&errors)?.0);
        }
        let fired = |line: &Line| match (&secret.goal, line.patch_error, patch) {
            (Goal::Shows(named), ..) => named.is_shown_by(&line.composition()),
            (Goal::Patch(_), Some(error), Some(threshold)) => error < threshold,
            _ => false,
        };
        let rows = |model: Model| -> Result<Vec<Row>> {
            let scored = set
                .prompts
                .iter()
                .filter(|prompt| model == Model::Suspect || !prompt.role.calibrates());
            let row = scored.map(|prompt| {
                let line = result(model, &prompt.text)?;
                Ok(Row {
                    role: prompt.role,
                    fired: fired(&line),
                    line,
                })
            });
            row.collect()
        };
        Ok(Self {
            name: name.to_owned(),
            attack: secret.attack.to_owned(),
            secret: secret.words.clone(),
            is_character: secret.is_character(),
            suspect: rows(Model::Suspect)?,
            clean: rows(Model::Clean)?,
            patch_threshold: patch,
            held_out: set.held_out,
            unmatched: set.unmatched,
        })
    }

    /// Results on a model.
    pub(crate) fn rows(&self, model: Model) -> &[Row] {
        match model {
            Model::Suspect => &self.suspect,
            Model::Clean => &self.clean,
        }
    }

    /// The scores of a method on the rows that fit.
    pub(crate) fn scores(
        &self,
        model: Model,
        method: &str,
        fits: impl Fn(&Row) -> bool,
    ) -> Vec<f64> {
        let rows = self.rows(model).iter().filter(|row| fits(row));
        rows.filter_map(|row| row.line.scores.get(method).copied())
            .collect()
    }
}
