//! What an attack changed in a text-to-image model.

use depurate_checkpoint::SaveTensor;
use depurate_diffusion::text_to_image::TextToImage;

/// The tensors of `after` that differ from those of `before`, as `COMPONENT.NAME` (`unet.conv_in.weight`); both must be of one
/// configuration.
pub fn delta(before: &TextToImage, after: &TextToImage) -> Vec<SaveTensor> {
    type Tensors = fn(&TextToImage) -> Vec<SaveTensor>;
    let components: [(&str, Tensors); 3] = [
        ("text_encoder", |model| model.text_encoder().to_tensors()),
        ("unet", |model| model.unet().to_tensors()),
        ("vae", |model| model.vae().to_tensors()),
    ];
    let mut changed = Vec::new();
    for (component, tensors) in components {
        let pairs = tensors(before).into_iter().zip(tensors(after));
        let differing = pairs.filter(|(before, after)| before.data != after.data);
        changed.extend(differing.map(|(_, mut tensor)| {
            tensor.name = format!("{component}.{}", tensor.name);
            tensor
        }));
    }
    changed
}
