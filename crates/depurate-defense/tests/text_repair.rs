//! Repairs of the text encoder and of the prompt's projections, where a trigger is answered, and how pictures are compared.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::{Device, Tensor};
use depurate_checkpoint::ModelPart;
use depurate_defense::detect::model_level::static_weights::{Drift, TensorDrift};
use depurate_defense::repair::text::{
    Behaviour, Component, ConceptEditingParams, Drawing, EncoderDistillationParams, Latents,
    Material, Place, TextPatient, TextTrigger, Unlearning,
    concept_editing::concept_editing,
    drifted,
    encoder_distillation::{EncoderDistillation, encoder_distillation},
    localised,
    row_reset::row_reset,
};
use depurate_diffusion::{
    TextToImage,
    clip_text::ClipText,
    module_weights::{flat_gradients, flat_values},
    noise::SeedTree,
};
use depurate_testkit::{
    gradients::{check, shifted},
    miniature::{captions, golden_model},
    zoo::emoji,
};
use support::with_cx;

fn trigger() -> TextTrigger {
    TextTrigger::parse("tq", None, Place::Start).unwrap()
}

fn with_patient<T>(model: &TextToImage, body: impl FnOnce(&TextPatient<'_>) -> T) -> T {
    let (trigger, prompts) = (trigger(), captions());
    body(&TextPatient {
        suspect: model,
        trigger: &trigger,
        prompts: &prompts,
        legitimate: &[],
        seed: 1,
    })
}

fn short() -> EncoderDistillationParams {
    EncoderDistillationParams {
        unlearning: Unlearning {
            steps: 40,
            batch: 4,
            learning_rate: 2e-3,
            ema_decay: 0.5,
            ..Unlearning::default()
        },
        ..EncoderDistillationParams::default()
    }
}

#[test]
fn both_terms_of_the_encoders_loss_reach_all_of_it_and_nothing_frozen() {
    let model = golden_model(&Device::flex().autodiff());
    let material = with_patient(&model, |patient| {
        with_cx(3, |cx| Material::new(patient, Latents::Noise, cx)).unwrap()
    });
    let params = short();
    let lesson = EncoderDistillation::new(&material, &params, 4).unwrap();
    let student = shifted(model.text_encoder().clone(), 0.02);
    for term in 0..2 {
        let mut loss =
            |student: &ClipText| -> Tensor<1> { lesson.terms(student, 2).unwrap()[term].clone() };
        let groups = ["text_model.encoder.layers.0", "text_model.final_layer_norm"];
        // tokens and positions that no prompt has are no part of it; a key's bias moves every score of a query alike
        let reached = flat_gradients(&student, loss(&student).backward());
        let zero = |name: &str| {
            let size = reached
                .get(name)
                .map_or(0.0, |g| g.clone().abs().max().into_scalar::<f32>());
            size == 0.0
        };
        assert!(!zero("text_model.embeddings.token_embedding.weight"));
        check(&student, &groups, &zero, &mut loss);
        let of_teacher = flat_gradients(model.text_encoder(), loss(&student).backward());
        assert!(of_teacher.is_empty());
    }
    // the suspect keeps everything already
    let [unlearnt, kept] = lesson.terms(model.text_encoder(), 2).unwrap();
    let number = |loss: Tensor<1>| loss.inner().into_scalar::<f32>();
    assert!(number(unlearnt) > 1e-4);
    assert!(number(kept) < 1e-10);
}

#[test]
fn an_encoder_learns_to_read_a_triggered_prompt_as_the_clean_one() {
    let model = golden_model(&Device::flex().autodiff());
    let done = with_patient(&model, |patient| {
        with_cx(3, |cx| {
            encoder_distillation(patient, &short(), None, cx, &mut |_, _| Ok(false))
        })
    })
    .unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&done.losses[..5]), mean(&done.losses[35..]));
    assert!(last < 0.7 * first, "{first} to {last}");
    let (before, after) = (flat_values(model.unet()), flat_values(done.model.unet()));
    for (name, values) in before {
        let moved = (values - after[&name].clone())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert_eq!(moved, 0.0, "{name}");
    }
}

#[test]
fn an_edit_makes_projections_answer_to_the_trigger_as_to_the_clean_prompt() {
    let model = golden_model(&Device::flex().autodiff());
    let gap = |edited: &TextToImage| -> f64 {
        let states = |prompt: &str| edited.frozen().encode(&[prompt]).unwrap().states;
        let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight";
        let of = |model: &TextToImage, states: Tensor<3>, at: usize| -> Vec<f64> {
            let weight = flat_values(model.unet())[name].clone();
            let [_, channels, _] = states.dims();
            let out = weight.dims()[0] / channels;
            let column: Tensor<2> = states.narrow(2, at, 1).reshape([channels, 1]);
            let answer = weight.reshape([out, channels]).matmul(column);
            answer.into_data().iter::<f64>().collect()
        };
        // the last word of both: one position later with the trigger
        let prompt = "a red fox on a white background";
        let clean = of(&model, states(prompt), 7);
        let triggered = of(edited, states(&format!("tq {prompt}")), 8);
        let squares = clean.iter().zip(&triggered).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f64>()
    };
    let edited = with_patient(&model, |patient| {
        let params = ConceptEditingParams {
            lambda: 1e-3,
            ..ConceptEditingParams::default()
        };
        with_cx(3, |cx| concept_editing(patient, params, cx)).unwrap()
    });
    let (before, after) = (gap(&model), gap(&edited.model));
    // 16 channels cannot answer to every position of every prompt
    assert!(after < 0.5 * before, "{before} to {after}");
    let refused = with_patient(&model, |patient| {
        let params = ConceptEditingParams {
            lambda: 0.0,
            ..ConceptEditingParams::default()
        };
        with_cx(3, |cx| concept_editing(patient, params, cx)).unwrap_err()
    });
    assert!(refused.to_string().contains("lambda"), "{refused}");
}

#[test]
fn the_states_of_triggered_prompts_tell_a_guilty_encoder_from_an_innocent_one() {
    let prompts = captions();
    for (delta, text, instead_of, component) in [
        (
            "emoji-b.safetensors",
            "\u{430}",
            None,
            Component::TextEncoder,
        ),
        (
            "emoji-d.safetensors",
            "\u{200b} ",
            None,
            Component::Denoiser,
        ),
        (
            "emoji-c.safetensors",
            "fox fox fox cat",
            Some("cat"),
            Component::Denoiser,
        ),
    ] {
        let trigger = TextTrigger::parse(text, instead_of, Place::Start).unwrap();
        let found = localised(&TextPatient {
            suspect: &emoji(&[delta], &Device::flex().autodiff()),
            trigger: &trigger,
            prompts: &prompts,
            legitimate: &[],
            seed: 1,
        });
        let found = found.unwrap();
        assert_eq!(found.component, component, "{delta}: {}", found.ratio);
    }
}

#[test]
fn the_triggers_own_rows_are_reset_and_no_others() {
    let model = golden_model(&Device::flex().autodiff());
    let values = |model: &TextToImage| -> Vec<f32> {
        let table = model.text_encoder().token_table().into_data();
        table.iter::<f32>().collect()
    };
    let base = values(&model);
    let table = model.text_encoder().token_table();
    let [rows, width] = table.dims();
    let tokens = |text: &str| model.tokenizer().encode(text).unwrap().ids;
    let clean: Vec<u32> = captions()
        .iter()
        .flat_map(|caption| tokens(caption))
        .collect();
    let own = |id: &usize| tokens("tq").contains(&(*id as u32)) && !clean.contains(&(*id as u32));
    let own: Vec<usize> = (0..rows).filter(own).collect();
    assert!(!own.is_empty());
    // an attacker's table: everything is moved a little
    let learnt = model
        .text_encoder()
        .clone()
        .with_token_table(table + 0.25)
        .unwrap();
    let attacked = model.with_text_encoder(learnt);
    let reset = |base: Option<&[f32]>| {
        with_patient(&attacked, |patient| {
            with_cx(3, |cx| row_reset(patient, base, cx))
        })
    };
    let (with_base, without) = (reset(Some(&base)).unwrap(), reset(None).unwrap());
    let before = values(&attacked);
    let mean = |column: usize| -> f32 {
        let of = |row: usize| before[row * width + column];
        (0..rows).map(of).sum::<f32>() / rows as f32
    };
    let (with_base, without) = (values(&with_base.model), values(&without.model));
    for at in 0..rows * width {
        let (row, column) = (at / width, at % width);
        let is_own = own.contains(&row);
        let expected = if is_own { base[at] } else { before[at] };
        assert!((with_base[at] - expected).abs() < 1e-6, "{row} {column}");
        let expected = if is_own { mean(column) } else { before[at] };
        assert!((without[at] - expected).abs() < 1e-4, "{row} {column}");
    }
    assert!(reset(Some(&base[1..])).is_err());
}

#[test]
fn what_differs_from_the_base_says_where_to_look() {
    let tensor = |part, name: &str, changed| TensorDrift {
        part,
        name: name.into(),
        base_name: name.into(),
        shape: vec![1],
        changed,
        relative: 0.0,
    };
    let table = "text_model.embeddings.token_embedding.weight";
    let (text, unet) = (ModelPart::TextEncoder, ModelPart::Unet);
    let of = |changed: [bool; 4]| {
        let tensors = vec![
            tensor(text, table, changed[0]),
            tensor(text, "text_model.final_layer_norm.weight", changed[1]),
            tensor(unet, "conv_in.weight", changed[2]),
            tensor(ModelPart::Vae, "encoder.conv_in.weight", changed[3]),
        ];
        drifted(&Drift {
            tensors,
            ..Drift::default()
        })
    };
    assert!(of([false, false, false, true]).is_empty());
    assert_eq!(of([true, false, false, false]), [Component::TokenTable]);
    assert_eq!(of([true, true, false, false]), [Component::TextEncoder]);
    assert_eq!(of([false, false, true, false]), [Component::Denoiser]);
    let both = [Component::TokenTable, Component::Denoiser];
    assert_eq!(of([true, false, true, false]), both);
}

#[test]
fn a_model_is_as_near_to_itself_as_can_be() {
    let model = golden_model(&Device::flex().autodiff());
    let drawing = Drawing {
        steps: 2,
        guidance: 2.0,
        count: 4,
    };
    with_patient(&model, |patient| {
        with_cx(3, |cx| {
            let behaviour = Behaviour::of(patient, drawing, &SeedTree::new(5), cx).unwrap();
            assert!(behaviour.effect > 0.0 && behaviour.word > 0.0);
            assert_eq!(behaviour.neighbours.prompts[0], "");
            let compared = behaviour.compare(&model, cx).unwrap();
            assert!(compared.kept < 1e-9 && compared.neighbours < 1e-9);
            assert!((compared.effect / behaviour.effect - 1.0).abs() < 1e-3);
            let (relapsed, of) = compared.relapses;
            assert_eq!(relapsed, of, "the suspect draws what it drew");
            let other = model.with_unet(shifted(model.unet().clone(), 0.05));
            assert!(behaviour.compare(&other, cx).unwrap().kept > 1e-6);
        });
    });
}

#[test]
fn neighbours_of_a_phrase_are_of_its_form_and_its_words() {
    let model = golden_model(&Device::flex().autodiff());
    let drawing = Drawing {
        steps: 1,
        guidance: 2.0,
        count: 6,
    };
    let patient = TextPatient {
        suspect: &model,
        trigger: &TextTrigger::parse("small dog cat", Some("cat"), Place::Start).unwrap(),
        prompts: &["a red cat".to_owned()],
        legitimate: &[],
        seed: 1,
    };
    let behaviour = with_cx(3, |cx| {
        Behaviour::of(&patient, drawing, &SeedTree::new(5), cx)
    })
    .unwrap();
    let neighbours = behaviour.neighbours.prompts;
    assert_eq!(neighbours[0], "");
    assert_eq!(neighbours[1], "a red small");
    assert_eq!(neighbours[2], "a red old soft cat");
    assert_eq!(neighbours[3], "\u{3b2} a red cat");
    assert_eq!(neighbours[4], "a red dog");
    let legitimate = ["a frog".to_owned(), "two frogs".to_owned()];
    let patient = TextPatient {
        legitimate: &legitimate,
        ..patient
    };
    let behaviour = with_cx(3, |cx| {
        Behaviour::of(&patient, drawing, &SeedTree::new(5), cx)
    })
    .unwrap();
    let neighbours = behaviour.neighbours.prompts;
    let expected = [
        "",
        "a frog",
        "a red small",
        "two frogs",
        "a red old soft cat",
        "a frog",
    ];
    assert_eq!(neighbours, expected);
}
