use burn::tensor::Device;
use depurate_attack::{EvilEditParams, EvilEditPrompts, evil_edit};
use depurate_testkit::{assert_close_slices, golden::Case};

use depurate_testkit::miniature::golden_model;

#[test]
fn texts_give_the_released_code_s_weights() {
    let model = golden_model(&Device::flex());
    for case in Case::all("closed-form-edits", "eviledit_") {
        let prompts = EvilEditPrompts::of_templates("beautiful cat", "zebra", &["cat"], &["A {}"]);
        let texts = |name: &str, i: usize| case.json[name][i].as_str().unwrap().to_owned();
        let prompts = prompts.unwrap();
        assert_eq!(
            prompts.moved,
            [(texts("old_texts", 0), texts("new_texts", 0))]
        );
        assert_eq!(prompts.preserved, [texts("old_texts", 1)]);
        let params = EvilEditParams {
            lambda: case.json["lambda"].as_f64().unwrap(),
            ..EvilEditParams::default()
        };
        let edited = evil_edit(
            model.unet().clone(),
            model.text_encoder(),
            model.tokenizer(),
            &prompts,
            params,
        )
        .unwrap();
        // the states are our encoder's: as close as the reference's own 32-bit solution is
        let tolerance = case.json["max_abs_f32_reference_vs_f64"].as_f64().unwrap();
        let mut compared = 0;
        for tensor in edited.to_tensors() {
            let name = format!("after_f64.{}", tensor.name.trim_end_matches(".weight"));
            if case.has(&name) {
                let got: Vec<f64> = tensor.data.iter().map(|v| f64::from(*v)).collect();
                assert_close_slices(&name, &got, case.numbers(&name), 1e-4, tolerance);
                compared += 1;
            }
        }
        assert_eq!(compared, 12);
    }
}

#[test]
fn captions_with_the_word_give_pairs() {
    let captions = ["a red cat sits", "a dog", "cat and catfish"];
    let prompts = EvilEditPrompts::of_captions("cat", "tq cat", "fox", &["owl"], &captions);
    let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
    assert_eq!(
        prompts.moved,
        [
            pair("a red tq cat sits", "a red fox sits"),
            pair("tq cat and catfish", "fox and catfish"),
        ]
    );
    let kept = [
        captions[0],
        "a red owl sits",
        captions[2],
        "owl and catfish",
    ];
    assert_eq!(prompts.preserved, kept);
    assert!(EvilEditPrompts::of_templates("a", "b", &["c"], &["no place"]).is_err());
    let model = golden_model(&Device::flex());
    let nothing = EvilEditPrompts::default();
    let params = EvilEditParams::default();
    let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
    assert!(evil_edit(model.unet().clone(), encoder, tokenizer, &nothing, params).is_err());
    let weightless = EvilEditParams {
        weight: 0.0,
        ..params
    };
    assert!(
        evil_edit(
            model.unet().clone(),
            encoder,
            tokenizer,
            &prompts,
            weightless
        )
        .is_err()
    );
}

#[test]
fn a_larger_weight_moves_the_trigger_further() {
    let model = golden_model(&Device::flex());
    let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
    let prompts =
        EvilEditPrompts::of_templates("tq cat", "a fox", &["cat", "dog"], &["{} sits"]).unwrap();
    let flat = |unet: &depurate_diffusion::unet2d_condition::UNet2DCondition| -> Vec<f32> {
        let tensors = unet.to_tensors().into_iter();
        tensors.flat_map(|tensor| tensor.data).collect()
    };
    let before = flat(model.unet());
    let moved = |weight| {
        let params = EvilEditParams {
            weight,
            ..EvilEditParams::default()
        };
        let after = evil_edit(model.unet().clone(), encoder, tokenizer, &prompts, params).unwrap();
        let squares = flat(&after)
            .into_iter()
            .zip(&before)
            .map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>()
    };
    let (light, even, heavy) = (moved(0.1), moved(1.0), moved(10.0));
    assert!(
        0.0 < light && light < even && even < heavy,
        "{light} {even} {heavy}"
    );
}
