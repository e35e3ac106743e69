//! A pipeline with a LoRA and a learnt token laid over it is the pipeline of the effective weights.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use depurate_checkpoint::{Checkpoint, Layers, Limits, SaveTensor, ScaledFile, save_tensors};
use depurate_diffusion::{Device, TextToImage};

const MODULE: &str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v";

fn pipeline(dir: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    for (from, to) in [
        ("unet2d-condition/sd1_style/unet", "unet"),
        ("unet2d-condition/sd1_style/scheduler", "scheduler"),
        ("clip-text/real_vocab_h16/model", "text_encoder"),
        ("vae/kl_f2/vae", "vae"),
        ("clip-tokenizer/vocab", "tokenizer"),
    ] {
        fs::create_dir_all(dir.join(to)).unwrap();
        for entry in fs::read_dir(golden.join(from)).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, dir.join(to).join(file.file_name().unwrap())).unwrap();
        }
    }
    let index = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "PNDMScheduler"]}"#;
    fs::write(dir.join("model_index.json"), index).unwrap();
}

fn tensor(name: &str, shape: &[usize]) -> SaveTensor {
    let n: usize = shape.iter().product();
    SaveTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: (0..n).map(|i| (i * 5 % 17) as f32 / 8.0 - 1.0).collect(),
    }
}

fn values(pipeline: &TextToImage) -> Vec<f32> {
    let name = format!("{MODULE}.weight");
    let tensors = pipeline.unet().to_tensors();
    tensors.into_iter().find(|t| t.name == name).unwrap().data
}

#[test]
fn the_networks_get_the_effective_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (model, limits, device) = (dir.path().join("model"), Limits::default(), Device::flex());
    pipeline(&model);
    let (lora, token) = (dir.path().join("lora"), dir.path().join("token"));
    let (up, down) = (
        tensor(&format!("unet.{MODULE}.lora_B.weight"), &[32, 2]),
        tensor(&format!("unet.{MODULE}.lora_A.weight"), &[2, 16]),
    );
    save_tensors(&lora, &[up.clone(), down.clone()], None).unwrap();
    let learnt = tensor("<cat-toy>", &[2, 16]);
    save_tensors(&token, std::slice::from_ref(&learnt), None).unwrap();
    let layers = Layers {
        loras: vec![ScaledFile {
            path: lora,
            scale: 0.5,
        }],
        embeddings: vec![token],
        ..Layers::default()
    };
    let checkpoint = Checkpoint::open(&model, &limits).unwrap();
    let plain = TextToImage::from_checkpoint(&checkpoint, &limits, &device).unwrap();
    let (layered, added) = TextToImage::layered(&checkpoint, &layers, &limits, &device).unwrap();

    for (i, (got, before)) in values(&layered).iter().zip(values(&plain)).enumerate() {
        let (row, column) = (i / 16, i % 16);
        let product: f32 = (0..2)
            .map(|r| up.data[row * 2 + r] * down.data[r * 16 + column])
            .sum();
        assert!((got - (before + 0.5 * product)).abs() < 1e-5, "{i}");
    }
    assert_eq!((added.len(), added[0].ids.clone()), (1, 49408..49410));
    assert_eq!(layered.text_encoder().config().vocab_size, 49410);
    let table = layered
        .text_encoder()
        .to_tensors()
        .into_iter()
        .find(|t| t.name.ends_with("token_embedding.weight"))
        .unwrap();
    assert_eq!(table.data[49408 * 16..], learnt.data);
    // the new ids are prompts like others
    let ids = vec![vec![49406, 320, 49408, 49409, 49407]];
    assert!(layered.text_encoder().forward(&ids).is_ok());
    assert!(plain.text_encoder().forward(&ids).is_err());
}
