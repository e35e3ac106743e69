//! The whole command on a small random model.

use std::{collections::BTreeSet, fs, path::Path};

use depurate_attack::text_to_image::{Composition, vocabulary::cut_vocabulary};
use depurate_checkpoint::{Limits, SaveDtype};
use depurate_diffusion::{
    Device,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    channel_graph::Removal,
    clip_text::{ClipText, ClipTextConfig},
    image_tower::{ImageTower, ImageTowerConfig},
    schedule::{BetaSchedule, SchedulerClass, SchedulerConfig, SolverOptions},
    text_to_image::Parts,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use serde_json::json;

use super::*;
use crate::text_to_image::{
    component,
    secret::tests::{bad_t2i, evil_edit, sprites},
};

const TEXT_WIDTH: usize = 32;

/// A pipeline of 32 x 32 pictures with random weights, in Stable Diffusion's layout, and a random judge.
pub(crate) fn make_models(dir: &Path) {
    let device = Device::flex();
    let seed = SeedTree::new(3);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let words: BTreeSet<String> = ["background", "cartoon", "dog"].map(str::to_owned).into();
    let tokenizer = dir.join("tokenizer");
    cut_vocabulary(
        &root.join("golden/clip-tokenizer/vocab"),
        &words,
        500,
        24,
        &tokenizer,
    )
    .expect("cut");
    let vocabulary = component::vocabulary(&tokenizer).expect("written");
    let text = ClipTextConfig {
        vocab_size: vocabulary.size,
        hidden_size: TEXT_WIDTH,
        intermediate_size: 2 * TEXT_WIDTH,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 24,
        eos_token_id: vocabulary.eos,
        ..ClipTextConfig::default()
    };
    let vae = AutoencoderKlConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![8, 8],
        layers_per_block: 1,
        norm_num_groups: 4,
        mid_block_add_attention: false,
        use_quant_conv: true,
        use_post_quant_conv: true,
        scaling_factor: 1.0,
        sample_size: 32,
    };
    let unet = UNet2DConditionConfig {
        sample_size: (16, 16),
        in_channels: 4,
        out_channels: 4,
        center_input_sample: false,
        freq_shift: 0.0,
        flip_sin_to_cos: true,
        time_embedding_dim: None,
        down_attention: vec![false, false, true],
        up_attention: vec![true, false, false],
        block_out_channels: vec![8, 8, 16],
        layers_per_block: vec![1, 1, 1],
        transformer_layers_per_block: vec![1, 1, 1],
        heads: vec![1, 1, 2],
        cross_attention_dim: TEXT_WIDTH,
        use_linear_projection: false,
        mid_block_scale_factor: 1.0,
        downsample_padding: 1,
        norm_num_groups: 4,
        norm_eps: 1e-5,
        added: None,
        dropout: 0.0,
        removed: Removal::default(),
    };
    let parts = Parts {
        tokenizer: ClipTokenizer::load(&tokenizer, &Limits::default()).expect("written"),
        text_encoder: ClipText::new(&text, &seed.child("text", 0), &device),
        unet: UNet2DCondition::new(&unet, &seed.child("unet", 0), &device),
        vae: AutoencoderKl::new(&vae, &seed.child("vae", 0), &device),
        scheduler: SchedulerConfig {
            class: SchedulerClass::Pndm,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            clip_sample: false,
            set_alpha_to_one: false,
            steps_offset: 1,
            solver: SolverOptions {
                skip_prk_steps: true,
                ..SolverOptions::default()
            },
            ..SchedulerConfig::default()
        },
    };
    TextToImage::from_parts(parts, &device)
        .and_then(|pipeline| pipeline.save(&dir.join("model"), SaveDtype::F32))
        .expect("saved");
    let sprites = sprites();
    let values = sprites.objects().len()
        + sprites.styles().len()
        + Composition::colors().len()
        + Composition::backgrounds().len();
    let config = ImageTowerConfig {
        channels: 3,
        widths: vec![8, 8],
        groups: 4,
        outputs: values,
    };
    let tower = ImageTower::new(&config, &seed.child("judge", 0), &device).expect("valid");
    component::save(
        &dir.join("judge"),
        component::TRANSFORMERS_STEM,
        &json!({ "tower": config }),
        &tower.to_tensors(),
    )
    .expect("saved");
}

fn spec(dir: &Path, subjects: &[(&str, &str, TextTruth)]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let subjects: Vec<serde_json::Value> = subjects
        .iter()
        .map(|(name, attack, truth)| {
            let path = dir.join(format!("{name}.json"));
            truth.save(&path).expect("saved");
            let model = dir.join("model");
            json!({ "name": name, "attack": attack, "model": model, "truth": path, "clean": model })
        })
        .collect();
    let spec = json!({
        "sprites": root.join("data/sprites.safetensors"),
        "judge": dir.join("judge"),
        "prompts": 4,
        "calibration": 4,
        "run": { "steps": 8, "batch": 3 },
        "subjects": subjects,
    });
    let path = dir.join("spec.json");
    fs::write(&path, spec.to_string()).expect("written");
    path
}

fn evaluate(spec: &Path, out: &Path, only: &[&str]) -> Result<()> {
    let command = EvalT2i {
        spec: spec.to_owned(),
        out: out.to_owned(),
        only: only.iter().map(|name| (*name).to_owned()).collect(),
    };
    command.run(&CancelFlag::default())
}

/// A prompt, the model that it was put to, and its scores by name.
type Scored = (String, Model, Vec<(String, f64)>);

fn scores(out: &Path, name: &str) -> Vec<Scored> {
    let lines = results::read(&out.join("results.jsonl"), name).expect("read");
    let mut all: Vec<_> = lines
        .into_iter()
        .map(|((model, text), line)| (text, model, line.scores.into_iter().collect()))
        .collect();
    all.sort_by(|a, b| (&a.0, a.1.name()).cmp(&(&b.0, b.1.name())));
    all
}

#[test]
fn a_run_is_continued_and_its_scores_depend_on_the_prompts_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    make_models(dir);
    let both = [
        ("edit", "evil-edit", evil_edit("cat")),
        ("patch", "bad-t2i", bad_t2i()),
    ];
    let (path, out) = (spec(dir, &both), dir.join("out"));
    evaluate(&path, &out, &["edit"]).expect("one subject");
    let table = fs::read_to_string(out.join("table.md")).expect("written");
    assert!(table.contains("**Not scored yet:** patch"), "{table}");
    evaluate(&path, &out, &[]).expect("the other");
    // 4 triggered, 4 benign and 4 for the threshold, on the suspect; the first 8 on the clean model
    assert_eq!(scores(&out, "edit").len(), 20);
    assert_eq!(scores(&out, "patch").len(), 20);
    let whole = fs::read_to_string(out.join("results.jsonl")).expect("read");
    assert_eq!(whole.lines().count(), 40);
    let table = fs::read_to_string(out.join("table.md")).expect("written");
    for needed in [
        "a rehearsal",
        "all, mean of attacks",
        "daa-s reference",
        "eval t2i --spec",
    ] {
        assert!(table.contains(needed), "{needed} in {table}");
    }
    let svg = fs::read_to_string(out.join("premise.svg")).expect("written");
    assert_eq!(svg.matches("<polyline").count(), 6);
    let csv = fs::read_to_string(out.join("premise.csv")).expect("written");
    assert_eq!(csv.lines().count(), 1 + 3 * 7);

    // suspect and clean are the same model here, so a prompt scores the same on both
    let all = scores(&out, "edit");
    for pair in all.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        assert_eq!(pair[0].2.len(), 8, "every method has a score: {pair:?}");
        for (a, b) in pair[0].2.iter().zip(&pair[1].2) {
            // batches differ, and with them the last bits
            assert!((a.1 - b.1).abs() <= 1e-3 * a.1.abs() + 1e-6, "{pair:?}");
        }
    }

    // an interrupted run: without its last lines it scores those again, and ends the same
    let kept: Vec<&str> = whole.lines().take(33).collect();
    fs::write(
        out.join("results.jsonl"),
        kept.join("\n") + "\n{\"subject\":",
    )
    .expect("written");
    evaluate(&path, &out, &[]).expect("continued");
    assert_eq!(scores(&out, "edit"), all);
    assert_eq!(scores(&out, "patch").len(), 20);

    // another target, the same trigger: the same prompts and the same scores
    let (path, again) = (
        spec(dir, &[("edit", "evil-edit", evil_edit("car"))]),
        dir.join("again"),
    );
    evaluate(&path, &again, &[]).expect("another secret");
    assert_eq!(scores(&again, "edit"), all);
    // but never in the place of other results
    let (path, _) = (spec(dir, &[("patch", "bad-t2i", evil_edit("car"))]), ());
    let error = evaluate(&path, &again, &[]).expect_err("not what its truth says");
    assert!(error.to_string().contains("evil-edit"), "{error}");
}
