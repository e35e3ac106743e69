//! `AutoencoderKL` against the numbers that diffusers made.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_diffusion::{
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    module_weights::gradients,
    noise::SeedTree,
};
use depurate_testkit::{close::assert_close, golden::Case};

/// `tolerance` of every case.
const TOLERANCE: f64 = 1e-4;

fn autoencoder(case: &Case, folder: &str, device: &Device) -> AutoencoderKl {
    let dir = case.dir.join(folder);
    let limits = Limits::default();
    let path = dir.join("config.json");
    let config = read_json(&path, &limits).unwrap();
    let config = AutoencoderKlConfig::from_json(&config, &path).unwrap();
    let weights = Weights::open_file(&dir.join("diffusion_pytorch_model.safetensors"), &limits);
    AutoencoderKl::new(&config, &SeedTree::new(0), device)
        .load(&weights.unwrap(), &dir)
        .unwrap()
}

#[test]
fn both_ways_are_those_of_diffusers_with_new_and_old_names() {
    let device = Device::flex();
    for (name, folder) in [
        ("kl_f2", "vae"),
        ("kl_f2", "vae_deprecated_names"),
        ("kl_f8_layers2", "vae"),
    ] {
        let case = Case::named(&format!("vae/{name}"));
        let vae = autoencoder(&case, folder, &device);
        let close = |what: &str, got: &Tensor<4>| {
            let want: Tensor<4> = case.tensor(what, &device);
            assert_close(
                &format!("{name} {folder} {what}"),
                got,
                &want,
                TOLERANCE,
                TOLERANCE,
            );
        };
        let posterior = vae.encode(case.tensor("x", &device)).unwrap();
        close("mean", &posterior.mean);
        close("logvar_clamped", &posterior.log_variance);
        close("sample", &posterior.sample(case.tensor("eps", &device)));
        let want: Tensor<1> = case.tensor("kl", &device);
        assert_close(
            &format!("{name} kl"),
            &posterior.divergence(),
            &want,
            TOLERANCE,
            TOLERANCE,
        );
        close("decoded", &vae.decode(case.tensor("z", &device)).unwrap());
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    let device = Device::flex().autodiff();
    for name in ["kl_f2", "kl_f8_layers2"] {
        let case = Case::named(&format!("vae/{name}"));
        let vae = autoencoder(&case, "vae", &device);
        let close = |what: &str, got: Tensor<4>| {
            let want: Tensor<4> = case.tensor(what, &Device::flex());
            let most = f64::from(want.clone().abs().max().into_scalar::<f32>());
            assert_close(
                &format!("{name} {what}"),
                &got,
                &want,
                0.0,
                TOLERANCE * most,
            );
        };
        let x = case.tensor::<4>("x", &device).require_grad();
        let loss = vae.encode(x.clone()).unwrap().mean.square().sum();
        let grads = loss.backward();
        close("grad.x_of_sum_mean2", x.grad(&grads).unwrap());
        let encoder = gradients(&vae, &grads);
        assert!(
            encoder
                .iter()
                .all(|gradient| !gradient.name.starts_with("decoder"))
        );
        let z = case.tensor::<4>("z", &device).require_grad();
        let loss = vae.decode(z.clone()).unwrap().square().sum();
        let grads = loss.backward();
        close("grad.z_of_sum_decoded2", z.grad(&grads).unwrap());
        let decoder = gradients(&vae, &grads);
        assert_eq!(encoder.len() + decoder.len(), vae.parameters().len());
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::flex();
    let case = Case::named("vae/kl_f8_layers2");
    let vae = autoencoder(&case, "vae", &device);
    assert!(vae.encode(Tensor::zeros([1, 3, 20, 16], &device)).is_err());
    assert!(vae.encode(Tensor::zeros([1, 1, 16, 16], &device)).is_err());
    assert!(vae.decode(Tensor::zeros([1, 3, 4, 4], &device)).is_err());
    let path = case.dir.join("vae/config.json");
    let map = read_json(&path, &Limits::default()).unwrap();
    for (option, value) in [
        (
            "down_block_types",
            serde_json::json!(["DownEncoderBlock2D"]),
        ),
        ("norm_num_groups", serde_json::json!(5)),
        ("latents_mean", serde_json::json!([0.0])),
        ("scaling_factor", serde_json::json!(0)),
        ("a_new_option", serde_json::json!(0)),
    ] {
        let mut map = map.clone();
        map.insert(option.into(), value);
        let error = AutoencoderKlConfig::from_json(&map, &path).unwrap_err();
        assert!(error.to_string().contains(option), "{error}");
    }
    let config = AutoencoderKlConfig::from_json(&map, &path).unwrap();
    let written = config.to_json();
    let again = AutoencoderKlConfig::from_json(written.as_object().unwrap(), &path).unwrap();
    assert_eq!(config, again);
}
