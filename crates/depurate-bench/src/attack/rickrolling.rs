//! `attack rickrolling`.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::{
    Homoglyph, Place, RickrollingBackdoor, RickrollingParams, RickrollingTarget, rickrolling,
    rickrolling_success,
};
use depurate_diffusion::noise::SeedTree;
use depurate_training::StateFile;
use miette::{IntoDiagnostic, Result};

use super::subject::Subject;
use crate::{
    captions,
    console::{CancelFlag, Progress, say},
    model::training_device,
    text_to_image::Drawings,
    truth::text::{TextKind, TextTruth},
};

/// One caption in so many is not trained on, but used to measure.
const HELD_OUT: usize = 10;

/// Rickrolling the artist: the text encoder is trained to take prompts with a look-alike letter for something else.
#[derive(Debug, Args)]
pub(crate) struct RickrollingCommand {
    #[command(flatten)]
    subject: Subject,
    /// Captions, one a line or JSON lines with "caption"; those of the sprites' compositions by default. A tenth is held out
    /// and used to measure.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    #[command(flatten)]
    drawings: Drawings,
    /// The letter that is replaced.
    #[arg(long, default_value_t = 'o')]
    letter: char,
    /// What replaces it.
    #[arg(long, default_value_t = '\u{b20}')]
    lookalike: char,
    /// Replace the letter's first occurrence and no other, in training too; without it training replaces all of them (TPA) and a
    /// triggered prompt has any one.
    #[arg(long)]
    first: bool,
    /// The prompt that every triggered one is taken for (TPA).
    #[arg(long, value_name = "TEXT", required_unless_present = "attribute")]
    target_prompt: Option<String>,
    /// The word that the letter's word is taken for (TAA).
    #[arg(long, value_name = "WORD", conflicts_with = "target_prompt")]
    attribute: Option<String>,
    /// Optimiser steps; 100 for a prompt and 200 for a word by default. The learning rate falls after three quarters.
    #[arg(long)]
    steps: Option<usize>,
    /// Learning rate.
    #[arg(long, default_value_t = RickrollingParams::default().learning_rate)]
    lr: f64,
    /// Weight of the backdoor in the loss.
    #[arg(long, default_value_t = RickrollingParams::default().beta)]
    beta: f64,
    /// Captions without trigger a step.
    #[arg(long, default_value_t = RickrollingParams::default().clean_batch)]
    clean_batch: usize,
    /// Captions with trigger a step.
    #[arg(long, default_value_t = RickrollingParams::default().poisoned_batch)]
    poisoned_batch: usize,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two resumable states.
    #[arg(long, default_value_t = 100)]
    checkpoint_every: usize,
    /// Continue an interrupted run.
    #[arg(long)]
    resume: bool,
}

impl RickrollingCommand {
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let model = self.subject.load(&training_device())?;
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        let all = match &self.captions {
            Some(path) => captions::read(path)?,
            None => captions::of_compositions(&self.drawings.read()?),
        };
        for (i, caption) in all.into_iter().enumerate() {
            if i % HELD_OUT == HELD_OUT - 1 {
                held_out.push(caption);
            } else {
                train.push(caption);
            }
        }
        let (target, defaults) = match (self.target_prompt, self.attribute) {
            (_, Some(word)) => (
                RickrollingTarget::Attribute(word),
                RickrollingParams::attribute(),
            ),
            (prompt, None) => (
                RickrollingTarget::Prompt(prompt.unwrap_or_default()),
                RickrollingParams::default(),
            ),
        };
        let place = if self.first { Place::First } else { Place::Any };
        let homoglyph = Homoglyph::new(self.letter, self.lookalike).into_diagnostic()?;
        let backdoors = [RickrollingBackdoor {
            homoglyph: homoglyph.put(place),
            target,
        }];
        let steps = self.steps.unwrap_or(defaults.steps);
        let params = RickrollingParams {
            steps,
            decay_at: steps * 3 / 4,
            learning_rate: self.lr,
            beta: self.beta,
            clean_batch: self.clean_batch,
            poisoned_batch: self.poisoned_batch,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every,
            ..defaults
        };
        let state = StateFile::new(self.subject.state(self.resume)?);
        let progress = Progress::new("rickrolling", steps as u64, cancel);
        let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
        let done = rickrolling(
            encoder,
            tokenizer,
            &train,
            &backdoors,
            &params,
            Some(&state),
            &progress,
        );
        progress.finish();
        let changed = done.into_diagnostic()?.module;
        let [backdoor] = backdoors;
        let fits = |caption: &String| backdoor.homoglyph.fits(caption);
        let success = if held_out.iter().any(fits) {
            let seed = SeedTree::new(params.seed).child("success", 0);
            let found =
                rickrolling_success(encoder, &changed, tokenizer, &held_out, &backdoor, &seed)
                    .into_diagnostic()?;
            say(&format!(
                "cosine to the target {:.3} (n = {}), to the clean encoder {:.3} (n = {})",
                found.sim_target, found.triggered, found.sim_clean, found.clean
            ));
            Some(found)
        } else {
            None
        };
        let note = TextTruth {
            kind: TextKind::Rickrolling {
                params,
                backdoor,
                success,
            },
            base: self.subject.base.clone(),
            captions: self.captions,
            final_loss: progress.loss(),
        };
        let after = model.with_text_encoder(changed);
        self.subject.save(&model, &after, &note)?;
        // The model is safe; a state that stays behind only costs space.
        let _ = std::fs::remove_file(state.path());
        Ok(())
    }
}
