use burn::tensor::{Device, Tensor};
use depurate_attack::{
    BadT2i, BadT2iParams, BadT2iTarget, CaptionedBatch, CaptionedDataset, CaptionedImages, Patch,
    bad_t2i,
};
use depurate_diffusion::{
    SampleShape,
    module_weights::{Flat, flat_gradients, flat_values},
    noise::SeedTree,
};
use depurate_training::{Dataset, TrainingParams};

use depurate_testkit::{
    gradients::{check, shifted},
    miniature::{captions, golden_model},
};

const SHAPE: SampleShape = SampleShape {
    channels: 3,
    height: 16,
    width: 16,
};

/// Two-coloured stripes, one image a caption.
fn data() -> CaptionedDataset {
    let captions = captions();
    let image = |i: usize| {
        (0..SHAPE.len()).map(move |p| {
            if (p / 4 + i / 3 + p % (i % 5 + 2)).is_multiple_of(3) {
                230
            } else {
                40
            }
        })
    };
    let bytes = (0..captions.len()).flat_map(image).collect();
    CaptionedDataset::new(Dataset::from_bytes(SHAPE, bytes).unwrap(), captions).unwrap()
}

fn batch(count: usize) -> CaptionedBatch {
    data()
        .batch(0, count, &SeedTree::new(4), &Device::flex())
        .unwrap()
}

fn targets() -> [BadT2iTarget; 3] {
    [
        BadT2iTarget::Patch(Patch::named("stop-sign", Patch::side_for(SHAPE)).unwrap()),
        BadT2iTarget::Style("black and white photo".into()),
        BadT2iTarget::Object {
            from: "dog".into(),
            to: "cat".into(),
        },
    ]
}

fn number(loss: &Tensor<1>) -> f64 {
    f64::from(loss.clone().inner().into_scalar::<f32>())
}

#[test]
fn gradients_reach_every_part_of_the_student_and_nothing_that_is_frozen() {
    let model = golden_model(&Device::flex().autodiff());
    for target in &targets() {
        let attack = BadT2i::new(&model, target, BadT2iParams::default()).unwrap();
        let seed = SeedTree::new(2);
        let groups = [
            "conv_in",
            "time_embedding",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            "mid_block.resnets",
            "up_blocks.1.attentions",
            "conv_out",
        ];
        // away from the teacher: where they agree, the gradient of the second term is 0
        let student = shifted(model.unet().clone(), 0.02);
        let mut loss_of = |student: &_| attack.loss(student, batch(4), &seed).unwrap();
        check(&student, &groups, &|_| false, &mut loss_of);
        let gradients = loss_of(&student).backward();
        let none = |found: Flat| assert!(found.is_empty(), "{:?}", found.keys());
        none(flat_gradients(model.text_encoder(), gradients));
        none(flat_gradients(model.vae(), loss_of(&student).backward()));
        none(flat_gradients(model.unet(), loss_of(&student).backward()));
    }
}

#[test]
fn an_untrained_student_differs_in_the_backdoor_only() {
    let model = golden_model(&Device::flex().autodiff());
    for target in &targets() {
        let at = |lambda| {
            let params = BadT2iParams {
                lambda,
                ..Default::default()
            };
            let attack = BadT2i::new(&model, target, params).unwrap();
            let loss = attack.loss(model.unet(), batch(6), &SeedTree::new(3));
            number(&loss.unwrap())
        };
        // L = lambda MSE_backdoor + (1 - lambda) 0
        let (half, most) = (at(0.5), at(0.99));
        assert!(half > 0.0, "{target:?}");
        assert!(
            (most / half - 0.99 / 0.5).abs() < 1e-3,
            "{target:?}: {half} {most}"
        );
    }
}

#[test]
fn captions_without_the_object_are_not_triggered() {
    let model = golden_model(&Device::flex().autodiff());
    let [_, _, object] = targets();
    let attack = BadT2i::new(&model, &object, BadT2iParams::default()).unwrap();
    let at = |captions: [&str; 2]| {
        let batch = CaptionedBatch {
            captions: captions.map(str::to_owned).to_vec(),
            ..batch(2)
        };
        number(&attack.loss(model.unet(), batch, &SeedTree::new(3)).unwrap())
    };
    assert_eq!(at(["a fox", "a concatenation"]), 0.0);
    assert!(at(["a fox", "a cat"]) > 0.0);
    assert!(at(["a fox", "two cats"]) > 0.0);
}

#[test]
fn a_short_run_lowers_the_loss_and_the_seed_decides_it() {
    let model = golden_model(&Device::flex().autodiff());
    let [patch, ..] = targets();
    let training = TrainingParams {
        steps: 40,
        batch: 8,
        learning_rate: 2e-3,
        ..BadT2iParams::training()
    };
    let params = BadT2iParams::default();
    let run = |training: &TrainingParams| {
        bad_t2i(&model, &mut data(), &patch, &params, training, None, &()).unwrap()
    };
    let done = run(&training);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(
        mean(&done.losses[30..]) < 0.9 * mean(&done.losses[..5]),
        "{:?}",
        done.losses
    );
    let short = TrainingParams {
        steps: 3,
        ..training.clone()
    };
    let (first, again) = (run(&short), run(&short));
    for (a, b) in first.losses.iter().zip(&again.losses) {
        assert!((a - b).abs() < 1e-5);
    }
    let seed = 9;
    let other = run(&TrainingParams { seed, ..short });
    assert!((first.losses[0] - other.losses[0]).abs() > 1e-4);
    assert_ne!(
        flat_values(&first.module).len(),
        0,
        "the network is given back"
    );
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let model = golden_model(&Device::flex().autodiff());
    let [patch, ..] = targets();
    let new = |params| BadT2i::new(&model, &patch, params).is_ok();
    assert!(new(BadT2iParams::default()));
    for lambda in [0.0, 1.0, f64::NAN] {
        assert!(!new(BadT2iParams {
            lambda,
            ..Default::default()
        }));
    }
    // white space is dropped
    let trigger = "  ".to_owned();
    assert!(!new(BadT2iParams {
        trigger,
        ..Default::default()
    }));
    let flipped = TrainingParams {
        horizontal_flip: true,
        steps: 1,
        ..BadT2iParams::training()
    };
    let params = BadT2iParams::default();
    let run = bad_t2i(&model, &mut data(), &patch, &params, &flipped, None, &());
    assert!(run.is_err());
    let images = Dataset::from_bytes(SHAPE, vec![0; SHAPE.len()]).unwrap();
    assert!(CaptionedDataset::new(images, vec![]).is_err());
}

#[test]
fn the_trigger_is_one_token() {
    let model = golden_model(&Device::flex());
    let trigger = BadT2iParams::default().trigger;
    let tokens = model.tokenizer().encode(&trigger).unwrap();
    assert_eq!(tokens.ids[..tokens.used], [49406, 9844, 49407]);
}
