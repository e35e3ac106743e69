//! Whole text-to-image pipelines against runs of diffusers' `StableDiffusionPipeline`, and their directories.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use depurate_checkpoint::{Limits, SaveDtype, Weights};
use depurate_diffusion::{
    AttentionKind, AttentionSite, Denoiser, Device, DiffusionError, NoTap, Pipeline, Site, Tap,
    Tensor, TextToImage,
    clip_tokenizer::ClipTokenizer,
    noise::NoNoise,
    noise::SeedTree,
    sampler::{self, Clip, sample},
};
use depurate_testkit::{Case, assert_close, golden, largest_difference};
use serde_json::{Value, json};

/// Puts the folders that a case names into one directory, in diffusers' layout.
fn assemble(case: &Case, dir: &Path) {
    let mut index = json!({ "_class_name": "StableDiffusionPipeline" });
    for (name, class) in [
        ("unet", "UNet2DConditionModel"),
        ("text_encoder", "CLIPTextModel"),
        ("vae", "AutoencoderKL"),
        ("tokenizer", "CLIPTokenizer"),
    ] {
        let from = golden::root().join(case.json["components"][name].as_str().unwrap());
        fs::create_dir_all(dir.join(name)).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.join(name).join(path.file_name().unwrap())).unwrap();
        }
        index[name] = json!(["library", class]);
    }
    let mut scheduler = case.json["scheduler"].clone();
    scheduler["_class_name"] = scheduler["class"].take();
    scheduler.as_object_mut().unwrap().remove("class");
    index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    let write = |name: &str, value: &Value| fs::write(dir.join(name), value.to_string()).unwrap();
    write("scheduler/scheduler_config.json", &scheduler);
    write("model_index.json", &index);
}

fn pipeline(case: &Case) -> TextToImage {
    let dir = tempfile::tempdir().unwrap();
    assemble(case, dir.path());
    TextToImage::load(dir.path(), &Limits::default(), &Device::flex()).unwrap()
}

fn prompts(case: &Case) -> Vec<&str> {
    let prompts = case.json["prompts"].as_array().unwrap().iter();
    prompts.map(|prompt| prompt.as_str().unwrap()).collect()
}

fn largest(tensor: &Tensor<4>) -> f64 {
    largest_difference(tensor, &tensor.zeros_like())
}

/// The final latents and images.
fn follows_diffusers(name: &str) {
    let (device, case) = (Device::flex(), Case::named(name));
    let pipeline = pipeline(&case);
    let prompts = prompts(&case);
    let encoded = pipeline.encode(&prompts).unwrap();
    let empty = pipeline.encode(&vec![""; prompts.len()]).unwrap();
    for (key, got) in [("input_ids", &encoded), ("uncond_ids", &empty)] {
        let ids: Vec<u32> = got.tokens.iter().flat_map(|t| t.ids.clone()).collect();
        let want = case.integers(key);
        assert_eq!(ids.iter().map(|id| *id as usize).collect::<Vec<_>>(), want);
    }
    for (key, got) in [("prompt_embeds", &encoded), ("uncond_embeds", &empty)] {
        let want = case.tensor::<3>(key, &device).swap_dims(1, 2);
        assert_close(key, &got.states, &want, 0.0, 2e-5);
    }

    let guidance = case.json["guidance_scale"].as_f64().unwrap();
    let steps = case.json["steps"].as_u64().unwrap() as usize;
    let denoiser = pipeline
        .guided(encoded.states, empty.states, guidance)
        .unwrap();
    let sampler = sampler::from_config(pipeline.scheduler(), steps).unwrap();
    assert_eq!(sampler.timesteps(), case.integers("timesteps"));
    let want = case.rows::<4>("latents", &device);
    let want_noise = case.rows::<4>("noise_pred", &device);
    let start = case.tensor::<4>("latents_in", &device);
    assert_close(
        "start",
        &(start.clone() * sampler.initial_scale()),
        &want[0],
        0.0,
        1e-6,
    );
    let first = denoiser.predict(want[0].clone(), &[sampler.timesteps()[0]], &mut NoTap);
    let tolerance = 2e-4 * largest(&want_noise[0]);
    assert_close(
        "first answer",
        &first.unwrap().value,
        &want_noise[0],
        0.0,
        tolerance,
    );
    let latents = sample(
        &denoiser,
        sampler.as_ref(),
        start,
        &mut NoNoise,
        &mut |at, x| {
            let want = &want[at.done];
            assert_close(
                &format!("latents after {}", at.done),
                x,
                want,
                0.0,
                2e-4 * largest(want),
            );
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    let image = (pipeline.decode(latents).unwrap() / 2.0 + 0.5).clamp(0.0, 1.0);
    assert_close("image", &image, &case.tensor("image01", &device), 0.0, 5e-4);
}

#[test]
fn deterministic_sampling_without_guidance_follows_diffusers() {
    follows_diffusers("pipeline-sd/ddim_nocfg");
}

#[test]
fn deterministic_sampling_with_guidance_follows_diffusers() {
    follows_diffusers("pipeline-sd/ddim_cfg3");
}

#[test]
fn the_own_sampler_of_stable_diffusion_1_follows_diffusers() {
    follows_diffusers("pipeline-sd/pndm_cfg7.5");
}

/// Whatever the file says: `StableDiffusionPipeline` changes these two on loading.
#[test]
fn schedulers_are_taken_for_latents() {
    let mut case = Case::named("pipeline-sd/ddim_cfg3");
    let right = pipeline(&case);
    case.json["scheduler"]["steps_offset"] = json!(0);
    case.json["scheduler"]["clip_sample"] = json!(true);
    assert_eq!(pipeline(&case).scheduler(), right.scheduler());
    assert_eq!(right.scheduler().clip(), Clip::None);
    assert_eq!(right.scheduler().timesteps(10).unwrap()[9], 1);
}

fn small() -> TextToImage {
    pipeline(&Case::named("pipeline-sd/ddim_cfg3"))
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(all_files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn a_saved_pipeline_is_the_same_pipeline() {
    let (before, at) = (small(), tempfile::tempdir().unwrap());
    let dir = at.path().join("model");
    before.save(&dir, SaveDtype::F32).unwrap();
    let files = all_files(&dir);
    let names: Vec<_> = files
        .iter()
        .map(|path| path.strip_prefix(&dir).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    let device = Device::flex();
    let after = TextToImage::load(&dir, &Limits::default(), &device).unwrap();
    assert_eq!(before.unet().to_tensors(), after.unet().to_tensors());
    assert_eq!(before.vae().to_tensors(), after.vae().to_tensors());
    assert_eq!(
        before.text_encoder().to_tensors(),
        after.text_encoder().to_tensors()
    );
    assert_eq!(before.unet().config(), after.unet().config());
    assert_eq!(before.vae().config(), after.vae().config());
    assert_eq!(
        before.text_encoder().config(),
        after.text_encoder().config()
    );
    assert_eq!(before.scheduler(), after.scheduler());
    assert_eq!(before.tokenizer().files(), after.tokenizer().files());
    assert_eq!(before.parameter_count(), after.parameter_count());
    for prompt in [
        "a photo of a cat",
        "ph\u{43e}to \u{1f600} of 12 dogs, it's!",
    ] {
        assert_eq!(
            before.tokenizer().encode(prompt).unwrap(),
            after.tokenizer().encode(prompt).unwrap()
        );
    }
    let weights = Weights::open_dir(&dir.join("text_encoder"), "model", None, &Limits::default());
    assert!(
        weights
            .unwrap()
            .infos()
            .all(|info| info.name.starts_with("text_model."))
    );
    // never over what is there
    assert!(before.save(&dir, SaveDtype::F32).is_err());
    // and once more, so that what was written is what is written
    let again = at.path().join("again");
    after.save(&again, SaveDtype::F32).unwrap();
    for (one, other) in files.iter().zip(all_files(&again)) {
        assert_eq!(fs::read(one).unwrap(), fs::read(&other).unwrap(), "{one:?}");
    }
}

/// Keeps the maps over the prompt.
#[derive(Default)]
struct Maps(Vec<Tensor<3>>);

impl Tap for Maps {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }
    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}
    fn wants_map(&self, site: &AttentionSite<'_>) -> bool {
        site.kind == AttentionKind::Prompt
    }
    fn observe_map(&mut self, _site: &AttentionSite<'_>, map: &Tensor<3>) {
        self.0.push(map.clone());
    }
}

#[test]
fn guidance_is_one_call_whose_second_half_is_the_prompts() {
    let pipeline = small();
    let states = pipeline.encode(&["a cat", "a dog"]).unwrap().states;
    let empty = pipeline.encode(&[""]).unwrap().states;
    let device = pipeline.device();
    let shape = pipeline.latent_shape().batched(2);
    let mut noise = SeedTree::new(1).noise(0, 2);
    let x = depurate_diffusion::noise::NoiseSource::normal(&mut noise, shape, &device).unwrap();
    let run = |denoiser: &dyn Denoiser| {
        let mut maps = Maps::default();
        let out = denoiser.predict(x.clone(), &[500], &mut maps).unwrap();
        (out.value, maps.0)
    };
    let guided = pipeline.guided(states.clone(), empty.clone(), 3.0).unwrap();
    let plain = pipeline.conditioned(states.clone()).unwrap();
    let without = pipeline.conditioned(empty.clone()).unwrap();
    let ((both, guided_maps), (with, plain_maps), (none, _)) =
        (run(&guided), run(&plain), run(&without));
    assert!(
        largest_difference(&with, &none) > 1e-3,
        "prompts must matter here"
    );
    let want = none.clone() + (with.clone() - none) * 3.0;
    assert_close("guided", &both, &want, 0.0, 1e-5);
    assert_eq!(guided_maps.len(), plain_maps.len());
    assert!(!plain_maps.is_empty());
    for (both, alone) in guided_maps.into_iter().zip(plain_maps) {
        assert_eq!(both.dims()[0], 2 * alone.dims()[0]);
        let half = guided.conditional_half(both);
        assert_close("map", &half, &alone, 0.0, 1e-6);
    }
    // 1 is the prompt alone, in a call of half the size
    let one = pipeline.guided(states, empty, 1.0).unwrap();
    assert!(!one.is_guided());
    let (one, maps) = run(&one);
    assert_close("guidance 1", &one, &with, 0.0, 1e-6);
    let heads = pipeline.unet().config().heads[0];
    assert_eq!(maps[0].dims()[0], 2 * heads);
}

#[test]
fn images_and_latents_are_in_the_networks_scale() {
    let pipeline = small();
    let factor = pipeline.vae().config().scaling_factor;
    let shape = pipeline.image_shape().batched(1);
    let mut noise = SeedTree::new(2).noise(0, 1);
    let image =
        depurate_diffusion::noise::NoiseSource::normal(&mut noise, shape, &pipeline.device())
            .unwrap()
            .clamp(-1.0, 1.0);
    let (scaled, plain) = (
        pipeline.encode_images(image.clone()).unwrap(),
        pipeline.vae().encode(image).unwrap(),
    );
    assert_eq!(scaled.mean.dims(), pipeline.latent_shape().batched(1));
    let eps = plain.mean.ones_like();
    let want = plain.sample(eps.clone()) * factor;
    assert_close("latent", &scaled.sample(eps), &want, 1e-5, 1e-6);
    let decoded = pipeline.decode(scaled.mean).unwrap();
    assert_eq!(decoded.dims(), shape);
    let want = pipeline.vae().decode(plain.mean).unwrap();
    assert_close("image", &decoded, &want, 1e-5, 1e-5);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (pipeline, limits, device) = (small(), Limits::default(), Device::flex());
    let states = pipeline.encode(&["a", "b"]).unwrap().states;
    let three = pipeline.encode(&["", "", ""]).unwrap().states;
    assert!(pipeline.guided(states.clone(), three, 2.0).is_err());
    let denoiser = pipeline.conditioned(states.clone()).unwrap();
    let x = |n| Tensor::zeros(pipeline.latent_shape().batched(n), &device);
    assert!(denoiser.predict(x(3), &[1], &mut NoTap).is_err());
    assert!(denoiser.predict(x(2), &[1000], &mut NoTap).is_err());
    assert!(
        pipeline
            .guided(states.clone(), states.clone(), f64::NAN)
            .is_err()
    );
    assert!(pipeline.conditioned(states.narrow(1, 0, 3)).is_err());

    // a part of another model
    let case = Case::named("pipeline-sd/ddim_cfg3");
    let dir = tempfile::tempdir().unwrap();
    assemble(&case, dir.path());
    let load = || TextToImage::load(dir.path(), &limits, &device);
    let other = golden::root().join("clip-text/small_vocab/model");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(other.join(file), dir.path().join("text_encoder").join(file)).unwrap();
    }
    let error = load().unwrap_err();
    assert!(
        matches!(
            error,
            DiffusionError::Parts {
                got: 32,
                expected: 16,
                ..
            }
        ),
        "{error}"
    );

    // a part that is not there
    assemble(&case, dir.path());
    load().unwrap();
    let index = dir.path().join("model_index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("\"vae\"", "\"elsewhere\"")).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("vae"), "{error}");
    fs::write(&index, text).unwrap();
    fs::remove_file(dir.path().join("vae/config.json")).unwrap();
    assert!(load().unwrap_err().to_string().contains("vae"));

    // models of the other kind
    assemble(&case, dir.path());
    let error = Pipeline::load(dir.path(), &limits, &device).unwrap_err();
    assert!(
        matches!(error, DiffusionError::TextConditional { .. }),
        "{error}"
    );
    let unconditional = golden::root().join("unet2d/c1_attn_all/pipeline");
    let error = TextToImage::load(&unconditional, &limits, &device).unwrap_err();
    assert!(
        matches!(error, DiffusionError::Unconditional { .. }),
        "{error}"
    );
}

#[test]
fn a_trimmed_vocabulary_makes_a_tokenizer() {
    let whole = ClipTokenizer::load(
        &golden::root().join("clip-tokenizer/vocab"),
        &Limits::default(),
    )
    .unwrap();
    let vocab: BTreeMap<String, u32> = [
        "d",
        "o",
        "g",
        "d</w>",
        "o</w>",
        "g</w>",
        "do",
        "dog</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    .iter()
    .zip(0..)
    .map(|(token, id)| ((*token).to_owned(), id))
    .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let merges = vec![pair("d", "o"), pair("do", "g</w>")];
    let make =
        |vocab: &BTreeMap<String, u32>, merges: &[(String, String)], length, padding: &str| {
            ClipTokenizer::from_parts(vocab.clone(), merges.to_vec(), length, padding)
        };
    let small = make(&vocab, &merges, 8, "<|endoftext|>").unwrap();
    let tokens = small.encode("Dog dogo").unwrap();
    assert_eq!(tokens.ids, [8, 7, 6, 2, 4, 9, 9, 9]);
    assert_eq!(tokens.used, 6);
    assert_eq!((small.vocabulary_size(), small.eos()), (10, 9));
    assert_eq!(small.token(7).as_deref(), Some("dog</w>"));
    assert_eq!(whole.encode("dog").unwrap().used, 3);

    // read back from its files
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in small.files() {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let read = ClipTokenizer::load(dir.path(), &Limits::default()).unwrap();
    assert_eq!(read.encode("Dog dogo").unwrap(), tokens);
    assert_eq!(read.files(), small.files());

    let wrong =
        |vocab: &BTreeMap<String, u32>, merges: &[(String, String)], length, padding: &str| {
            make(vocab, merges, length, padding).unwrap_err()
        };
    wrong(&vocab, &merges, 1, "<|endoftext|>");
    wrong(&vocab, &merges, 8, "nothing");
    // what it merges into is longer than every token
    let long = vec![pair("dog</w>", "<|endoftext|>")];
    let error = wrong(&vocab, &long, 8, "<|endoftext|>").to_string();
    assert!(error.contains("merge"), "{error}");
    for change in [("dog</w>", 6), ("dog</w>", 10)] {
        let mut vocab = vocab.clone();
        vocab.insert(change.0.to_owned(), change.1);
        wrong(&vocab, &merges, 8, "<|endoftext|>");
    }
    let mut without = vocab;
    without.remove("<|endoftext|>");
    wrong(&without, &merges, 8, "d");
}
