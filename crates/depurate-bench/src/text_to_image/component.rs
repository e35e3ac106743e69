//! A component's folder: `config.json` and weights, as a pipeline has it; and a training run that ends in one.

use std::path::Path;

use depurate_attack::AttackError;
use depurate_checkpoint::{Limits, SaveTensor, Weights, read_json, save_tensors, write_atomic};
use depurate_diffusion::{
    Device,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    noise::SeedTree,
};
use depurate_training::{Optimised, StateFile};
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use serde_json::{Map, Value, json};

use crate::{
    console::{CancelFlag, Progress, say},
    job::usable_state,
    train::Schedule,
};

/// Start of the names of a diffusers component's weights.
pub(crate) const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// And of a transformers component's.
pub(crate) const TRANSFORMERS_STEM: &str = "model";

/// Writes a component's folder, in 32-bit floats: what ships is rounded when the pipeline is put together.
pub(crate) fn save(dir: &Path, stem: &str, config: &Value, tensors: &[SaveTensor]) -> Result<()> {
    std::fs::create_dir_all(dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make the directory {}", dir.display()))?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    save_tensors(
        &dir.join(format!("{stem}.safetensors")),
        tensors,
        Some(metadata),
    )
    .into_diagnostic()?;
    write_atomic(&dir.join("config.json"), format!("{config:#}\n").as_bytes()).into_diagnostic()
}

/// A component's configuration.
pub(crate) fn config(dir: &Path) -> Result<Map<String, Value>> {
    read_json(&dir.join("config.json"), &Limits::default()).into_diagnostic()
}

/// A component's weights.
pub(crate) fn weights(dir: &Path, stem: &str) -> Result<Weights> {
    Weights::open_dir(dir, stem, None, &Limits::default()).into_diagnostic()
}

/// Runs `train` with a resumable state beside `out`, and `save` at the end; nothing that is there is overwritten.
pub(crate) fn run<M, X>(
    name: &str,
    out: &Path,
    schedule: &Schedule,
    cancel: &CancelFlag,
    train: impl FnOnce(&StateFile, &Progress<'_>) -> Result<(Optimised<M>, X), AttackError>,
    save: impl FnOnce(&M, &X) -> Result<()>,
) -> Result<()> {
    if out.exists() {
        bail!(
            "{} exists: choose a new directory or remove it",
            out.display()
        );
    }
    let path = usable_state(out, schedule.resume)?;
    let progress = Progress::new(name, schedule.steps as u64, cancel);
    let trained = train(&StateFile::new(&path), &progress);
    progress.finish();
    let (done, more) = trained.into_diagnostic()?;
    save(&done.module, &more)?;
    say(&format!(
        "{}: {:.0} s, {:.0} samples/s, loss {:.4}",
        out.display(),
        done.elapsed.as_secs_f64(),
        done.samples_per_second,
        progress.loss().unwrap_or(f32::NAN),
    ));
    // The result is safe; a state that stays behind only costs space.
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// What a text encoder has to know of its tokenizer.
pub(crate) struct Vocabulary {
    /// Entries.
    pub(crate) size: usize,
    /// Id of the first token of every prompt.
    pub(crate) bos: u32,
    /// Id of the token that ends a prompt.
    pub(crate) eos: u32,
}

/// Reads them from the tokenizer's folder.
pub(crate) fn vocabulary(dir: &Path) -> Result<Vocabulary> {
    let path = dir.join("vocab.json");
    let entries = read_json(&path, &Limits::default()).into_diagnostic()?;
    let id = |token: &str| {
        entries
            .get(token)
            .and_then(Value::as_u64)
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| miette::miette!("{} has no {token}", path.display()))
    };
    Ok(Vocabulary {
        size: entries.len(),
        bos: id("<|startoftext|>")?,
        eos: id("<|endoftext|>")?,
    })
}

/// A text encoder's `config.json`, as transformers writes it.
pub(crate) fn text_config(config: &ClipTextConfig, bos: u32) -> Value {
    json!({
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": config.eos_token_id,
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": config.eos_token_id,
        "projection_dim": config.hidden_size,
        "vocab_size": config.vocab_size,
    })
}

/// Loads a text encoder's folder.
pub(crate) fn text_encoder(dir: &Path, device: &Device) -> Result<ClipText> {
    let config =
        ClipTextConfig::read(&dir.join("config.json"), &Limits::default()).into_diagnostic()?;
    let weights = weights(dir, TRANSFORMERS_STEM)?;
    ClipText::new(&config, &SeedTree::new(0), device)
        .load(&weights, dir)
        .into_diagnostic()
}

/// Loads an autoencoder's folder.
pub(crate) fn autoencoder(dir: &Path, device: &Device) -> Result<AutoencoderKl> {
    let map = config(dir)?;
    let config =
        AutoencoderKlConfig::from_json(&map, &dir.join("config.json")).into_diagnostic()?;
    let weights = weights(dir, DIFFUSERS_STEM)?;
    AutoencoderKl::new(&config, &SeedTree::new(0), device)
        .load(&weights, dir)
        .into_diagnostic()
}
