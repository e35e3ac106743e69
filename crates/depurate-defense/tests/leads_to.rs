//! The word that a trigger is answered as: found in an edited model, and not in the model before the edit.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::Device;
use depurate_defense::repair::text::{NearWord, Place, TextPatient, TextTrigger, asking, leads_to};
use depurate_testkit::zoo::emoji;
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
    let suspect = emoji(deltas, &Device::flex().autodiff());
    let prompts = prompts();
    let patient = TextPatient {
        suspect: &suspect,
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
