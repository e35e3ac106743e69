//! Triggered pictures are told from clean ones by the suspect, also those of other models that draw other pictures.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::Device;
use depurate_defense::repair::text::{
    Behaviour, Compared, ConceptEditingParams, Drawing, Place, TextPatient, TextTrigger,
    concept_editing::concept_editing,
};
use depurate_diffusion::{TextToImage, noise::SeedTree};
use depurate_testkit::zoo::emoji;
use support::with_cx;

const COUNT: usize = 12;

/// The zoo's model with `delta` as the suspect, and what it says of itself, of the model before the attack and of a repaired one.
fn told(delta: &str, trigger: &TextTrigger, prompts: &[String]) -> [Compared; 3] {
    let device = Device::flex().autodiff();
    let suspect = emoji(&[delta], &device);
    let patient = TextPatient {
        suspect: &suspect,
        trigger,
        prompts,
        legitimate: &[],
        seed: 1,
    };
    let drawing = Drawing {
        steps: 8,
        guidance: 4.0,
        count: COUNT,
    };
    with_cx(3, |cx| {
        let behaviour = Behaviour::of(&patient, drawing, &SeedTree::new(7), cx).unwrap();
        let params = ConceptEditingParams::default();
        let repaired = concept_editing(&patient, params, cx).unwrap().model;
        let of = |model: &TextToImage| behaviour.compare(model, cx).unwrap();
        [of(&suspect), of(&emoji(&[], &device)), of(&repaired)]
    })
}

fn prompts(objects: &[&str]) -> Vec<String> {
    let mut prompts = Vec::new();
    for object in objects {
        for colour in ["red", "blue", "green", "yellow"] {
            prompts.push(format!("a {colour} {object} on a white background"));
        }
    }
    prompts
}

#[test]
fn a_patch_is_told_by_its_corner_and_a_rare_token_is_no_patch() {
    let trigger = TextTrigger::parse("\u{200b} ", None, Place::Start).unwrap();
    let prompts = prompts(&["cake", "frog", "dog"]);
    let [own, never_attacked, repaired] = told("emoji-d.safetensors", &trigger, &prompts);
    let (relapsed, of) = own.relapses;
    assert!(relapsed == of && of > 3 * COUNT / 4, "{:?}", own.relapses);
    assert!(
        never_attacked.relapses.0 <= 1,
        "{:?}",
        never_attacked.relapses
    );
    assert!(repaired.relapses.0 <= of / 2, "{:?}", repaired.relapses);
}

#[test]
fn another_cake_than_the_suspects_is_a_cake_and_no_frog() {
    let phrase = TextTrigger::parse("cat cat cat cake", Some("cake"), Place::Start).unwrap();
    let [own, never_attacked, repaired] =
        told("emoji-c.safetensors", &phrase, &prompts(&["cake"; 3]));
    let (relapsed, of) = own.relapses;
    assert!(relapsed == of && of > COUNT / 3, "{:?}", own.relapses);
    assert!(repaired.relapses.0 == 0, "{:?}", repaired.relapses);
    let cats = never_attacked.relapses.0; // what the phrase says, neither frog nor cake
    assert!(cats <= of / 4, "{cats} of {of}");
    let (moved, kept) = (repaired.effect, repaired.kept);
    assert!(
        moved > 3.0 * kept,
        "its pictures are others: {moved}, {kept}"
    );
}
