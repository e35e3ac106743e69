use burn::tensor::Device;
use depurate_attack::{EvilEditParams, EvilEditPrompts, delta, evil_edit};
use depurate_checkpoint::{Limits, SaveDtype, Weights, save_tensors_as};
use depurate_diffusion::closed_form_edit::projects_prompt;

use depurate_testkit::miniature::golden_model;

#[test]
fn a_delta_holds_the_changed_tensors_and_no_others() {
    let before = golden_model(&Device::flex());
    assert!(delta(&before, &before).is_empty());
    let prompts = EvilEditPrompts::of_templates("a dog", "a cat", &[], &["{} sits"]).unwrap();
    let unet = evil_edit(
        before.unet().clone(),
        before.text_encoder(),
        before.tokenizer(),
        &prompts,
        EvilEditParams::default(),
    );
    let after = before.with_unet(unet.unwrap());
    let changed = delta(&before, &after);
    assert_eq!(changed.len(), 12);
    let after = after.unet().to_tensors();
    for tensor in &changed {
        let name = tensor.name.strip_prefix("unet.").unwrap();
        assert!(projects_prompt(name), "{name}");
        let whole = after.iter().find(|other| other.name == name).unwrap();
        assert_eq!(tensor.data, whole.data);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("delta.safetensors");
    save_tensors_as(&path, &changed, SaveDtype::F16, None).unwrap();
    let stored = Weights::open_file(&path, &Limits::default()).unwrap();
    for tensor in &changed {
        let read = stored.read_f32(&tensor.name).unwrap();
        for (read, value) in read.iter().zip(&tensor.data) {
            assert!((read - value).abs() <= 1e-3 * value.abs() + 1e-7);
        }
    }
}
