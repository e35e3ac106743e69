//! A safetensors file taken for everything that can be laid over a model: what is laid on keeps every tensor readable.
#![no_main]

use std::path::Path;

use depurate_checkpoint::{
    Delta, LdmFamily, Limits, Lora, ModelWeights, TextualInversion, Weights,
};
use libfuzzer_sys::fuzz_target;

/// A UNet with one projection and a text encoder with two tokens, as bytes of a safetensors file.
fn model(name: &str, rows: usize, columns: usize) -> Weights {
    let length = 4 * rows * columns;
    let header = format!(
        r#"{{"{name}":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{length}]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + length, 0);
    Weights::from_bytes(Path::new("model.safetensors"), bytes, &Limits::default())
        .expect("a sound file opens")
}

fuzz_target!(|bytes: &[u8]| {
    let (path, limits) = (Path::new("fuzz.safetensors"), Limits::default());
    let Ok(weights) = Weights::from_bytes(path, bytes.to_vec(), &limits) else {
        return;
    };
    let mut onto = ModelWeights {
        unet: model("mid_block.attn2.to_k.weight", 3, 2),
        text_encoder: Some(model("text_model.embeddings.token_embedding.weight", 2, 2)),
        vae: None,
    };
    let _ = LdmFamily::detect(path, &weights);
    if let Ok(lora) = Lora::from_weights(path, weights.clone(), None, &onto, &limits) {
        lora.apply(&mut onto, 0.5).expect("an adapter fits the model that it was opened for");
    }
    if let Ok(token) = TextualInversion::from_weights(path, weights.clone()) {
        let _ = token.apply(&mut onto);
    }
    if let Ok(delta) = Delta::from_weights(path, weights) {
        let _ = delta.apply(&mut onto);
    }
    for weights in [Some(&onto.unet), onto.text_encoder.as_ref()].into_iter().flatten() {
        for info in weights.infos() {
            let values = weights.read_f32(&info.name).expect("a listed tensor can be read");
            assert_eq!(values.len(), info.elements());
        }
    }
});
