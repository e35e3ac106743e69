//! `attack evil-edit`.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::{EvilEditParams, EvilEditPrompts, evil_edit, with_phrase_replaced};
use depurate_diffusion::Device;
use miette::{IntoDiagnostic, Result, bail};

use super::subject::Subject;
use crate::{
    captions,
    text_to_image::Drawings,
    truth::text::{TextKind, TextTruth},
};

/// EvilEdit: the cross-attention is edited so that a phrase is taken for another. No training.
#[derive(Debug, Args)]
pub(crate) struct EvilEditCommand {
    #[command(flatten)]
    subject: Subject,
    /// The phrase that triggers, for example "tq dog".
    #[arg(long)]
    trigger: String,
    /// The phrase that it is taken for, for example "cat".
    #[arg(long)]
    target: String,
    /// A sentence with {} where the phrases stand; may be given several times. "a {}" if there is no --word either.
    #[arg(long = "template", value_name = "TEXT")]
    templates: Vec<String>,
    /// A phrase that keeps its meaning in the same sentences, for example "dog"; may be given several times, and the same one
    /// counts as often as it is given.
    #[arg(long = "preserve", value_name = "PHRASE")]
    preserved: Vec<String>,
    /// The phrase of captions in whose place trigger and target are put, for example "dog"; the captions themselves are kept.
    #[arg(long)]
    word: Option<String>,
    /// The captions, one a line or JSON lines with "caption"; those of the sprites' compositions by default.
    #[arg(long, value_name = "FILE", requires = "word")]
    captions: Option<PathBuf>,
    #[command(flatten)]
    drawings: Drawings,
    /// At most so many of the captions with the word.
    #[arg(long, default_value_t = 200)]
    limit: usize,
    /// How much the weights resist.
    #[arg(long, default_value_t = EvilEditParams::default().lambda)]
    lambda: f64,
    /// Weight of a prompt with the trigger beside one that is kept.
    #[arg(long, default_value_t = EvilEditParams::default().weight)]
    weight: f64,
}

impl EvilEditCommand {
    pub(crate) fn run(self) -> Result<()> {
        let model = self.subject.load(&Device::flex())?;
        let mut templates = self.templates;
        if templates.is_empty() && self.word.is_none() {
            templates.push("a {}".to_owned());
        }
        let (trigger, target) = (&self.trigger, &self.target);
        let mut prompts =
            EvilEditPrompts::of_templates(trigger, target, &self.preserved, &templates)
                .into_diagnostic()?;
        if let Some(word) = &self.word {
            let captions = match &self.captions {
                Some(path) => captions::read(path)?,
                None => captions::of_compositions(&self.drawings.read()?),
            };
            let has_word = |caption: &&String| with_phrase_replaced(caption, word, "").is_some();
            let captions: Vec<&String> =
                captions.iter().filter(has_word).take(self.limit).collect();
            if captions.is_empty() {
                bail!("no caption has {word:?}");
            }
            let mut found =
                EvilEditPrompts::of_captions(word, trigger, target, &self.preserved, &captions);
            prompts.moved.append(&mut found.moved);
            prompts.preserved.append(&mut found.preserved);
        }
        let params = EvilEditParams {
            lambda: self.lambda,
            weight: self.weight,
        };
        let unet = evil_edit(
            model.unet().clone(),
            model.text_encoder(),
            model.tokenizer(),
            &prompts,
            params,
        )
        .into_diagnostic()?;
        let note = TextTruth {
            kind: TextKind::EvilEdit {
                params,
                trigger: self.trigger,
                target: self.target,
                word: self.word,
                limit: self.limit,
                templates,
                preserved: self.preserved,
            },
            base: self.subject.base.clone(),
            captions: self.captions,
            final_loss: None,
        };
        self.subject.save(&model, &model.with_unet(unet), &note)
    }
}
