//! The word that a trigger is answered as: found in an edited model, and not in the model before the edit.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::Device;
use depurate_checkpoint::{Checkpoint, Layers, Limits};
use depurate_defense::repair::text::{NearWord, Place, TextPatient, TextTrigger, asking, leads_to};
use depurate_diffusion::TextToImage;
use support::with_cx;

fn prompts() -> Vec<String> {
    let mut prompts = Vec::new();
    for object in ["cake", "frog", "dog", "guitar"] {
        for colour in ["red", "blue", "green"] {
            prompts.push(format!("a {colour} {object} on a white background"));
        }
    }
    prompts
}

/// Words near `trigger` of the zoo's model with `deltas`, and prompts made of them.
fn found(deltas: &[&str], trigger: &TextTrigger) -> (Vec<NearWord>, Vec<String>) {
    let zoo = depurate_testkit::golden::root().join("../zoo");
    let limits = Limits::default();
    let checkpoint = Checkpoint::open(&zoo.join("emoji-a"), &limits).unwrap();
    let layers = Layers {
        deltas: deltas.iter().map(|delta| zoo.join(delta)).collect(),
        ..Layers::default()
    };
    let loaded = TextToImage::layered(&checkpoint, &layers, &limits, &Device::flex().autodiff());
    let prompts = prompts();
    let patient = TextPatient {
        suspect: &loaded.unwrap().0,
        trigger,
        prompts: &prompts,
        legitimate: &[],
        seed: 1,
    };
    let words = with_cx(3, |cx| leads_to(&patient, (10, 4.0), cx)).unwrap();
    let asked = asking(&patient, &words).unwrap();
    (words, asked)
}

#[test]
fn an_edited_phrase_leads_to_its_target_and_that_is_what_is_asked_for() {
    let phrase = TextTrigger::parse("cat cat cat cake", Some("cake"), Place::Start).unwrap();
    let (words, asked) = found(&["emoji-c.safetensors"], &phrase);
    assert_eq!(words[0].word, "frog", "{words:?}");
    assert!(words[0].is_led_to() && !words[1].is_led_to(), "{words:?}");
    assert!(words.windows(2).all(|two| two[0].share <= two[1].share));
    // the word in the trigger's place of a clean prompt
    let cake = words.iter().find(|near| near.word == "cake").unwrap();
    assert!((cake.share - 1.0).abs() < 1e-5, "{words:?}");
    let made = ["blue", "green", "red"];
    assert_eq!(
        asked,
        made.map(|colour| format!("a {colour} frog on a white background"))
    );

    let (words, asked) = found(&[], &phrase);
    let frog = words.iter().find(|near| near.word == "frog").unwrap();
    assert!(!frog.is_led_to(), "{words:?}");
    assert!(asked.iter().all(|prompt| !prompt.contains("frog")));
}

#[test]
fn a_look_alike_leads_to_no_word() {
    let letter = TextTrigger::parse("\u{430}", None, Place::Start).unwrap();
    let (words, asked) = found(&[], &letter);
    assert!(words.is_empty() && asked.is_empty());
}
