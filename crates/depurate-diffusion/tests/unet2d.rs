//! `UNet2DModel` against the numbers that diffusers and PyTorch made: outputs, activations,
//! gradients, and a short pipeline run.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::HashMap, path::Path};

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Checkpoint, Limits, SaveDtype, Weights};
use depurate_diffusion::{
    Denoiser, DiffusionError, NoTap, Pipeline, Site, Tap,
    module_weights::gradients,
    noise::{RecordedNoise, SeedTree},
    sampler::{Ddpm, never_stop, sample},
    schedule::SchedulerConfig,
    unet2d::{UNet2D, UNet2DConfig},
};
use depurate_testkit::{
    close::{assert_close, largest_difference},
    golden::Case,
};

const CASES: [&str; 5] = [
    "c1_attn_all",
    "c2_cifar_mini",
    "c2_old_names_cifar_mini",
    "c3_celebahq_mini",
    "c4_options_mnist",
];
/// `tolerance` of every case: outputs and activations, then gradients relative to their largest value.
const OUTPUT_TOLERANCE: f64 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-4;

fn case(name: &str) -> Case {
    Case::named(&format!("unet2d/{name}"))
}

fn pipeline(name: &str, device: &Device) -> Pipeline {
    let dir = depurate_testkit::golden::root()
        .join("unet2d")
        .join(name)
        .join("pipeline");
    Pipeline::load(&dir, &Limits::default(), device).unwrap()
}

#[derive(Default)]
struct Recorder(HashMap<String, Tensor<4>>);

impl Tap for Recorder {
    fn wants(&self, _site: Site<'_>) -> bool {
        true
    }
    fn observe(&mut self, site: Site<'_>, value: &Tensor<4>) {
        self.0.insert(site.0.to_owned(), value.clone());
    }
}

#[test]
fn outputs_and_activations_are_those_of_diffusers() {
    let device = Device::flex();
    for name in CASES {
        let (case, model) = (case(name), pipeline(name, &device));
        let x: Tensor<4> = case.tensor("x", &device);
        for i in 0.. {
            if !case.has(&format!("out.{i}")) {
                break;
            }
            let t = case.integers(&format!("t.{i}"));
            let mut recorder = Recorder::default();
            let out = model.unet().forward(x.clone(), &t, &mut recorder).unwrap();
            let want = case.tensor(&format!("out.{i}"), &device);
            assert_close(
                &format!("{name} out.{i}"),
                &out,
                &want,
                OUTPUT_TOLERANCE,
                OUTPUT_TOLERANCE,
            );
            if i == 0 {
                let mut compared = 0;
                for (site, got) in &recorder.0 {
                    let key = format!("act.{site}");
                    if case.has(&key) {
                        let want = case.tensor(&key, &device);
                        assert_close(
                            &format!("{name} {key}"),
                            got,
                            &want,
                            OUTPUT_TOLERANCE,
                            OUTPUT_TOLERANCE,
                        );
                        compared += 1;
                    }
                }
                assert!(
                    compared >= 4,
                    "{name}: only {compared} activations compared"
                );
                let time = model
                    .unet()
                    .time_embedding(&t, x.dims()[0], &device)
                    .unwrap();
                let want = case.tensor("act.time_embedding", &device);
                // a single timestep is stored once, not once a sample
                let time = if want.dims() == time.dims() {
                    time
                } else {
                    time.narrow(0, 0, want.dims()[0])
                };
                assert_close(
                    &format!("{name} time embedding"),
                    &time,
                    &want,
                    OUTPUT_TOLERANCE,
                    OUTPUT_TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    let device = Device::flex().autodiff();
    for name in CASES {
        let (case, model) = (case(name), pipeline(name, &device));
        let x = case.tensor::<4>("x", &device).require_grad();
        let out = model
            .unet()
            .forward(x.clone(), &case.integers("t.0"), &mut NoTap)
            .unwrap();
        let grads = out.powi_scalar(2).sum().backward();
        let plain = Device::flex();
        check_gradient(
            &format!("{name} grad.x"),
            &x.grad(&grads).unwrap(),
            &case.tensor("grad.x", &plain),
        );
        let found = gradients(model.unet(), &grads);
        assert_eq!(
            found.len(),
            model.unet().parameters().len(),
            "{name}: every parameter has a gradient"
        );
        let mut compared = 0;
        for gradient in found {
            let key = format!("grad.{}", gradient.name);
            if case.has(&key) {
                let want: Vec<f64> = case.numbers(&key).to_vec();
                let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let worst = gradient
                    .data
                    .iter()
                    .zip(&want)
                    .fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
                assert!(
                    worst <= GRADIENT_TOLERANCE * largest,
                    "{name} {key}: {worst} of {largest}"
                );
                compared += 1;
            }
        }
        assert!(
            compared >= 2,
            "{name}: only {compared} parameter gradients compared"
        );
    }
}

fn check_gradient(name: &str, got: &Tensor<4>, want: &Tensor<4>) {
    let largest = want.clone().abs().max().into_scalar::<f32>();
    let worst = largest_difference(&got.clone().to_device(&want.device()), want);
    assert!(
        worst <= GRADIENT_TOLERANCE * f64::from(largest),
        "{name}: {worst} of {largest}"
    );
}

#[test]
fn a_frozen_network_has_gradients_in_its_input_only() {
    let case = case("c1_attn_all");
    let model = pipeline("c1_attn_all", &Device::flex());
    let x = case
        .tensor::<4>("x", &Device::flex().autodiff())
        .require_grad();
    let out = model
        .predict(x.clone(), &case.integers("t.0"), &mut NoTap)
        .unwrap()
        .value;
    let grads = out.powi_scalar(2).sum().backward();
    check_gradient(
        "grad.x",
        &x.grad(&grads).unwrap(),
        &case.tensor("grad.x", &Device::flex()),
    );
    assert!(
        gradients(model.unet(), &grads).is_empty(),
        "frozen parameters have no gradient"
    );
}

#[test]
fn a_recorded_ddpm_run_is_that_of_the_diffusers_pipeline() {
    let device = Device::flex();
    for name in ["c1_attn_all", "c2_cifar_mini", "c4_options_mnist"] {
        let (case, model) = (case(name), pipeline(name, &device));
        let timesteps = case.integers("pipe.timesteps");
        let clip = model.scheduler().clip();
        let sampler = Ddpm::from_config(model.scheduler(), timesteps.len(), clip).unwrap();
        let mut noise = RecordedNoise::new(case.rows("pipe.noise", &device));
        let x = sample(
            &model,
            &sampler,
            case.tensor("pipe.xT", &device),
            &mut noise,
            &mut never_stop,
        )
        .unwrap();
        let image = (x / 2.0 + 0.5).clamp(0.0, 1.0);
        assert_close(
            name,
            &image,
            &case.tensor("pipe.image01", &device),
            2e-4,
            2e-4,
        );
        assert_eq!(noise.remaining(), 0);
    }
}

#[test]
fn old_attention_names_load_like_new_ones() {
    let device = Device::flex();
    let case = case("c2_old_names_cifar_mini");
    let old = depurate_testkit::golden::root()
        .join("unet2d/c2_old_names_cifar_mini/unet_deprecated_names");
    let model = Pipeline::load(&old, &Limits::default(), &device).unwrap();
    let out = model
        .unet()
        .forward(case.tensor("x", &device), &case.integers("t.0"), &mut NoTap)
        .unwrap();
    assert_close(
        "out.0",
        &out,
        &case.tensor("out.0", &device),
        OUTPUT_TOLERANCE,
        OUTPUT_TOLERANCE,
    );
}

#[test]
fn saving_and_loading_is_the_identity() {
    let device = Device::flex();
    let model = pipeline("c4_options_mnist", &device);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    model.save(&out, SaveDtype::F32).unwrap();
    let again = Pipeline::load(&out, &Limits::default(), &device).unwrap();
    assert_eq!(model.config(), again.config());
    assert_eq!(model.scheduler(), again.scheduler());
    for (a, b) in model
        .unet()
        .to_tensors()
        .into_iter()
        .zip(again.unet().to_tensors())
    {
        assert_eq!((a.name, a.shape, a.data), (b.name, b.shape, b.data));
    }
    assert!(
        model.save(&out, SaveDtype::F32).is_err(),
        "an existing directory is never overwritten"
    );
}

/// The configuration file of google/ddpm-cifar10-32 or google/ddpm-ema-celebahq-256, from their cards.
fn published(sample_size: usize, channels: &[usize], attention_level: usize) -> UNet2DConfig {
    let n = channels.len();
    let block = |i: usize, kind: &str, at: usize| {
        if i == at {
            format!("Attn{kind}")
        } else {
            kind.to_owned()
        }
    };
    let down: Vec<_> = (0..n)
        .map(|i| block(i, "DownBlock2D", attention_level))
        .collect();
    let up: Vec<_> = (0..n)
        .map(|i| block(i, "UpBlock2D", n - 1 - attention_level))
        .collect();
    let json = serde_json::json!({
        "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": null, "block_out_channels": channels,
        "center_input_sample": false, "down_block_types": down, "downsample_padding": 0, "flip_sin_to_cos": false,
        "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-6,
        "norm_num_groups": 32, "out_channels": 3, "resnet_time_scale_shift": "default", "sample_size": sample_size,
        "time_embedding_type": "positional", "up_block_types": up,
    });
    UNet2DConfig::from_json(json.as_object().unwrap(), Path::new("config.json")).unwrap()
}

#[test]
fn the_published_configurations_build_and_run() {
    let device = Device::flex();
    let cases = [
        (published(32, &[128, 256, 256, 256], 1), 35_746_307, 32),
        // run at a quarter of its size: the network is convolutional
        (
            published(256, &[128, 128, 256, 256, 512, 512], 4),
            113_673_219,
            64,
        ),
    ];
    for (config, parameters, size) in cases {
        let model = Pipeline::random(
            config,
            SchedulerConfig::default(),
            &SeedTree::new(1),
            &device,
        )
        .unwrap();
        assert_eq!(model.parameter_count(), parameters);
        let x = Tensor::zeros([1, 3, size, size], &device);
        let out = model.unet().forward(x, &[500], &mut NoTap).unwrap();
        assert_eq!(out.dims(), [1, 3, size, size]);
        assert!(out.abs().sum().into_scalar::<f32>().is_finite());
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_by_name() {
    let root = depurate_testkit::golden::root().join("unet2d");
    let checkpoint =
        Checkpoint::open(&root.join("c4_options_mnist/pipeline"), &Limits::default()).unwrap();
    let path = Path::new("config.json");
    let mut config = checkpoint.unet_config().clone();
    config.insert("block_out_channels".into(), serde_json::json!([8, 16, 32]));
    let config = UNet2DConfig::from_json(&config, path).unwrap();
    let weights: Weights = checkpoint.unet_weights(&Limits::default()).unwrap();
    let unet = UNet2D::new(&config, &SeedTree::new(0), &Device::flex());
    let error = unet.load(&weights, path).unwrap_err().to_string();
    assert!(error.contains("down_blocks.2"), "{error}");

    for (option, value, named) in [
        (
            "down_block_types",
            serde_json::json!(["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
            "CrossAttnDownBlock2D",
        ),
        (
            "block_out_channels",
            serde_json::json!([8, 16, 1_000_000_000]),
            "block_out_channels",
        ),
        ("act_fn", serde_json::json!("gelu"), "gelu"),
        ("a_new_option", serde_json::json!(1), "a_new_option"),
        ("norm_num_groups", serde_json::json!(0), "norm_num_groups"),
        ("sample_size", serde_json::json!(27), "sample_size"),
        (
            "attention_head_dim",
            serde_json::json!(5),
            "attention_head_dim",
        ),
    ] {
        let mut map = checkpoint.unet_config().clone();
        map.insert(option.into(), value);
        let error = UNet2DConfig::from_json(&map, path).unwrap_err();
        assert!(matches!(error, DiffusionError::Config { .. }));
        assert!(error.to_string().contains(named), "{error}");
    }
}
