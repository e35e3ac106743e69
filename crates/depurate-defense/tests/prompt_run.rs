//! Prompts of a whole pipeline, run as far as they are asked for, against a run that is driven by hand.
#![allow(clippy::unwrap_used, missing_docs)]

use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_defense::{
    CancelToken, DefenseError,
    detect::input_level::{
        CallMaps, MapCollector, PromptDetector, PromptRun, RunOptions, SiteSelection,
        daa_i::DaaIParams, daa_s::DaaSParams,
    },
};
use depurate_diffusion::{
    Device, TextToImage,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    clip_tokenizer::ClipTokenizer,
    noise::{NoiseSource, SeedTree},
    sampler::{self, Chain},
    schedule::SchedulerConfig,
    text_to_image::Parts,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_testkit::golden;

/// A pipeline with random weights around a real tokenizer, and Stable Diffusion's schedule.
fn pipeline() -> TextToImage {
    let (limits, device, seed) = (Limits::default(), Device::flex(), SeedTree::new(0));
    let root = golden::root();
    let read = |dir: &str| {
        let path = root.join(dir).join("config.json");
        (read_json(&path, &limits).unwrap(), path)
    };
    let weights =
        |dir: &str, stem: &str| Weights::open_dir(&root.join(dir), stem, None, &limits).unwrap();
    let (unet, path) = read("unet2d-condition/sd1_style/unet");
    let unet = UNet2DConditionConfig::from_json(&unet, &path).unwrap();
    let unet = UNet2DCondition::new(&unet, &seed, &device)
        .load(
            &weights("unet2d-condition/sd1_style/unet", "diffusion_pytorch_model"),
            &path,
        )
        .unwrap();
    let path = root.join("clip-text/real_vocab_h16/model/config.json");
    let text = ClipTextConfig::read(&path, &limits).unwrap();
    let text = ClipText::new(&text, &seed, &device)
        .load(&weights("clip-text/real_vocab_h16/model", "model"), &path)
        .unwrap();
    let (vae, path) = read("vae/kl_f2/vae");
    let vae = AutoencoderKlConfig::from_json(&vae, &path).unwrap();
    let parts = Parts {
        tokenizer: ClipTokenizer::load(&root.join("clip-tokenizer/vocab"), &limits).unwrap(),
        text_encoder: text,
        unet,
        vae: AutoencoderKl::new(&vae, &seed, &device),
        scheduler: SchedulerConfig::default(),
    };
    TextToImage::from_parts(parts, &device).unwrap()
}

const STEPS: usize = 8;

fn options(pipeline: &TextToImage, guidance: f64) -> RunOptions {
    RunOptions {
        guidance,
        seed: 3,
        sites: SiteSelection::of_unet(pipeline.unet().config(), None).unwrap(),
    }
}

fn run(guidance: f64) -> PromptRun {
    let pipeline = pipeline();
    let sampler = sampler::from_config(pipeline.scheduler(), STEPS).unwrap();
    let options = options(&pipeline, guidance);
    PromptRun::new(pipeline, sampler, options).unwrap()
}

/// All maps of a prompt, by hand: the noise, the encoder, the sampler and the tap.
fn by_hand(prompt: &str, guidance: f64) -> Vec<CallMaps> {
    let pipeline = pipeline().frozen();
    let options = options(&pipeline, guidance);
    let sampler = sampler::from_config(pipeline.scheduler(), STEPS).unwrap();
    let encoded = pipeline.encode(&[prompt]).unwrap();
    let empty = pipeline.encode(&[""]).unwrap().states;
    let denoiser = pipeline.guided(encoded.states, empty, guidance).unwrap();
    let mut noise = SeedTree::new(options.seed).child("screen", 0).noise(0, 1);
    let shape = pipeline.latent_shape().batched(1);
    let start = noise.normal(shape, &pipeline.device()).unwrap();
    let mut chain = Chain::new(&denoiser, sampler.as_ref(), start);
    let sample = usize::from(guidance != 1.0);
    let tokens = vec![encoded.tokens[0].used];
    let mut collector = MapCollector::new(options.sites, sample..sample + 1, tokens).unwrap();
    let mut all = Vec::new();
    while chain.remaining() > 0 {
        chain.advance(&mut noise, &mut collector).unwrap();
        all.extend(collector.take().unwrap());
    }
    all
}

#[test]
fn the_maps_are_those_of_a_run_by_hand_and_no_call_is_made_unasked() {
    let never = CancelToken::default();
    for guidance in [7.5, 1.0] {
        let run = run(guidance);
        let prompt = "a photo of a cat";
        let want = by_hand(prompt, guidance);
        assert_eq!(want.len(), run.calls());
        let tokens = run.tokens(prompt).unwrap();
        for calls in [0, 1, 3, run.calls()] {
            let looked = run.with_maps(&tokens, &never, |maps| maps.first(calls).unwrap().to_vec());
            let looked = looked.unwrap();
            assert_eq!(looked.calls, calls);
            assert_eq!(looked.value, want[..calls], "guidance {guidance}");
        }
        let looked = run.with_maps(&tokens, &never, |maps| {
            let missing = maps.first(run.calls() + 1).unwrap_err();
            assert!(
                matches!(missing, DefenseError::NoSuchCall { .. }),
                "{missing}"
            );
        });
        assert_eq!(looked.unwrap().calls, run.calls());
    }
}

#[test]
fn detectors_share_the_calls_that_they_need() {
    let (run, never) = (run(7.5), CancelToken::default());
    let (i, s) = (
        DaaIParams::default().build().unwrap(),
        DaaSParams::default().build().unwrap(),
    );
    let tokens = run.tokens("two dogs, watercolour").unwrap();
    let looked = |detectors: &[&dyn PromptDetector]| {
        run.with_maps(&tokens, &never, |maps| {
            let scores = detectors.iter().map(|one| one.score(maps).unwrap().score);
            scores.collect::<Vec<f64>>()
        })
        .unwrap()
    };
    let (one, six, both) = (looked(&[&s]), looked(&[&i]), looked(&[&s, &i]));
    assert_eq!((one.calls, six.calls, both.calls), (1, 6, 6));
    assert_eq!(both.value, [one.value[0], six.value[0]]);
}

#[test]
fn a_stop_is_heard_before_the_next_call_and_lengths_are_checked_before_the_first() {
    let run = run(7.5);
    let tokens = run.tokens("a red fish").unwrap();
    let stop = CancelToken::default();
    let looked = run.with_maps(&tokens, &stop, |maps| {
        maps.first(2).unwrap();
        stop.cancel();
        maps.first(3).unwrap_err()
    });
    let looked = looked.unwrap();
    assert!(matches!(looked.value, DefenseError::Cancelled));
    assert_eq!(looked.calls, 2);
    assert!(matches!(
        run.tokens(""),
        Err(DefenseError::ShortPrompt { tokens: 2 })
    ));
    assert!(matches!(
        run.tokens(&"fish ".repeat(80)),
        Err(DefenseError::LongPrompt {
            tokens: 82,
            limit: 77
        })
    ));
}

#[test]
fn a_call_that_fails_ends_a_run_and_later_ones_say_why() {
    let run = run(1.0);
    let mut tokens = run.tokens("a red fish").unwrap();
    // more tokens than there are keys cannot be collected
    tokens.used = 78;
    let never = CancelToken::default();
    let looked = run.with_maps(&tokens, &never, |maps| {
        let first = maps.first(1).unwrap_err().to_string();
        (first, maps.first(1).unwrap_err())
    });
    let looked = looked.unwrap();
    let (first, second) = looked.value;
    assert!(first.contains("78"), "{first}");
    assert!(
        matches!(&second, DefenseError::RunFailed { reason } if *reason == first),
        "{second}"
    );
    assert_eq!(looked.calls, 1);
}

#[test]
fn the_size_is_that_nearest_to_stable_diffusions() {
    let pipeline = pipeline();
    let mut config = pipeline.unet().config().clone();
    assert_eq!(SiteSelection::of_unet(&config, None).unwrap().reduction, 1);
    assert!(SiteSelection::of_unet(&config, Some(2)).is_err());
    let mut of = |down: &[bool], up: &[bool]| {
        (config.down_attention, config.up_attention) = (down.to_vec(), up.to_vec());
        SiteSelection::of_unet(&config, None).map(|sites| sites.reduction)
    };
    let sd = [true, true, true, false];
    assert_eq!(of(&sd, &[false, true, true, true]).unwrap(), 4);
    assert_eq!(of(&[true, true, false], &[false, false, false]).unwrap(), 2);
    assert_eq!(of(&[false, false], &[true, false]).unwrap(), 2);
    let deep = [false, false, false, true];
    assert_eq!(of(&deep, &[true, false, false, false]).unwrap(), 8);
    assert!(of(&[false, false], &[false, false]).is_err());
}
