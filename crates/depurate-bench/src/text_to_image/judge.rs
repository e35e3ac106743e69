//! The judge of pictures.

use std::path::{Path, PathBuf};

use clap::Args;
use depurate_attack::text_to_image::{
    Accuracy, Composition, Judge, JudgeParams, Sprites, judge::train_judge, pictures,
};
use depurate_diffusion::{
    Device,
    image_tower::{ImageTower, ImageTowerConfig},
    noise::SeedTree,
};
use miette::{IntoDiagnostic, Result};
use rand::RngExt;
use serde_json::{Value, json};

use super::{Drawings, component};
use crate::{
    console::{CancelFlag, answer},
    model::training_device,
    train::Schedule,
};

/// Drawn pictures on which a new judge is measured.
const MEASURED_ON: usize = 2000;

/// Train a judge of pictures.
#[derive(Debug, Args)]
pub(crate) struct JudgeCommand {
    #[command(flatten)]
    drawings: Drawings,
    #[command(flatten)]
    schedule: Schedule,
    /// The judge's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl JudgeCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let sprites = self.drawings.read()?;
        let training = self.schedule.params();
        let params = JudgeParams::default();
        component::run(
            "judge",
            &self.out,
            &self.schedule,
            cancel,
            |state, progress| {
                let device = training_device();
                let (judge, done) =
                    train_judge(&sprites, &params, &training, &device, Some(state), progress)?;
                Ok((done, judge))
            },
            |tower, judge| {
                let accuracy = measure(judge, &sprites, self.schedule.seed)?;
                answer(&serde_json::to_string(&accuracy).into_diagnostic()?);
                component::save(
                    &self.out,
                    component::TRANSFORMERS_STEM,
                    &json!({ "tower": tower.config(), "accuracy": accuracy }),
                    &tower.to_tensors(),
                )
            },
        )
    }
}

/// How often the judge is right on new drawings of all compositions.
fn measure(judge: &Judge, sprites: &Sprites, seed: u64) -> Result<Accuracy> {
    let mut rng = SeedTree::new(seed).child("judge-test", 0).rng();
    let all = sprites.compositions();
    let asked: Vec<Composition> = (0..MEASURED_ON)
        .map(|_| all[rng.random_range(0..all.len())])
        .collect();
    let drawn = pictures(sprites, &asked, &mut rng, &training_device().inner());
    // the network is still on the training device
    let drawn = depurate_diffusion::Tensor::from_inner(drawn);
    Ok(Accuracy::of(
        &judge.judge(&drawn).into_diagnostic()?,
        &asked,
    ))
}

/// Loads a judge.
pub(crate) fn load(dir: &Path, sprites: &Sprites, device: &Device) -> Result<Judge> {
    let config = component::config(dir)?;
    let tower = config.get("tower").cloned().unwrap_or(Value::Null);
    let tower: ImageTowerConfig = serde_json::from_value(tower).into_diagnostic()?;
    let weights = component::weights(dir, component::TRANSFORMERS_STEM)?;
    let tower = ImageTower::new(&tower, &SeedTree::new(0), device)
        .and_then(|tower| tower.load(&weights, dir))
        .into_diagnostic()?;
    Judge::new(tower, sprites).into_diagnostic()
}
