//! SKD-CAG on the golden miniature: what each term's gradient reaches, and that a few steps do what they shall.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::{Device, Tensor};
use depurate_defense::repair::text::{
    Latents, MapNorm, Material, Place, SkdCagParams, TextPatient, TextTrigger, Trained, Unlearning,
    skd_cag,
    skd_cag::{ReferenceMap, SkdCag, Terms, TimeWeights},
};
use depurate_diffusion::{
    TextToImage,
    module_weights::{flat_gradients, flat_values, frozen_but},
    noise::SeedTree,
    unet2d_condition::UNet2DCondition,
};
use depurate_testkit::{
    gradients::{check, shifted},
    miniature::{captions, golden_model},
};
use support::with_cx;

fn trigger() -> TextTrigger {
    TextTrigger::parse("tq", None, Place::Start).unwrap()
}

fn material(model: &TextToImage, latents: Latents) -> Material {
    material_of(model, (&trigger(), &captions()), latents)
}

fn material_of(
    model: &TextToImage,
    (trigger, prompts): (&TextTrigger, &[String]),
    latents: Latents,
) -> Material {
    let patient = TextPatient {
        suspect: model,
        trigger,
        prompts,
        legitimate: &[],
        seed: 1,
    };
    with_cx(3, |cx| Material::new(&patient, latents, cx)).unwrap()
}

fn params() -> SkdCagParams {
    SkdCagParams {
        norm: MapNorm::MinMax,
        unlearning: Unlearning {
            steps: 6,
            batch: 2,
            check_every: 3,
            learning_rate: 1e-3,
            ..Unlearning::default()
        },
        ..SkdCagParams::default()
    }
}

const GROUPS: [&str; 4] = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    "mid_block",
    "conv_in",
];

fn term(lesson: &SkdCag<'_>, student: &UNet2DCondition, of: fn(Terms) -> Tensor<1>) -> Tensor<1> {
    of(lesson.terms(student, 2).unwrap())
}

#[test]
fn every_term_reaches_what_it_should_and_nothing_that_is_frozen() {
    let model = golden_model(&Device::flex().autodiff());
    let material = material(
        &model,
        Latents::Own {
            steps: 2,
            guidance: 2.0,
        },
    );
    // away from the suspect: where they agree, (2) has no gradient
    let student = shifted(model.unet().clone(), 0.02);
    for reference in [
        ReferenceMap::Noise,
        ReferenceMap::Black,
        ReferenceMap::Words,
    ] {
        let params = SkdCagParams {
            reference,
            weights: TimeWeights::Noisy,
            ..params()
        };
        let lesson = SkdCag::new(&material, &params, 4).unwrap();
        let maps: fn(Terms) -> Tensor<1> = |terms| terms.attention;
        let gradients = flat_gradients(&student, term(&lesson, &student, maps).backward());
        for group in GROUPS {
            let reached = gradients.keys().filter(|name| name.starts_with(group));
            assert!(reached.count() > 0, "{reference:?} {group}");
        }
        assert!(!gradients.contains_key("conv_out.weight"));
        // what comes after the last map
        let after_maps = |name: &str| !gradients.contains_key(name);
        check(&student, &GROUPS, &after_maps, &mut |student| {
            term(&lesson, student, maps)
        });
    }
    let whole = params();
    let lesson = SkdCag::new(&material, &whole, 4).unwrap();
    for of in [
        (|terms| terms.prediction) as fn(Terms) -> Tensor<1>,
        |terms| terms.keep,
    ] {
        check(&student, &GROUPS, &|_| false, &mut |student| {
            term(&lesson, student, of)
        });
        let gradients = || term(&lesson, &student, of).backward();
        assert!(flat_gradients(model.text_encoder(), gradients()).is_empty());
        assert!(flat_gradients(model.unet(), gradients()).is_empty());
    }
    let frozen = frozen_but(student.clone(), &|name| name.contains(".attn2.to_k."));
    let gradients = flat_gradients(
        &student,
        term(&lesson, &frozen, |t| t.prediction).backward(),
    );
    assert!(!gradients.is_empty() && gradients.keys().all(|name| name.contains(".attn2.to_k.")));
}

#[test]
fn prompts_that_have_no_place_for_the_trigger_are_kept_with_pictures_of_their_own() {
    let model = golden_model(&Device::flex().autodiff());
    let trigger = trigger().only_with("owl").unwrap();
    let prompts = ["a dog", "a red owl", "a cat"].map(str::to_owned);
    let student = shifted(model.unet().clone(), 0.02);
    let keeps = |latents| {
        let material = material_of(&model, (&trigger, &prompts), latents);
        let params = params();
        let lesson = SkdCag::new(&material, &params, 4).unwrap();
        // enough steps that every latent was shown
        let terms = (0..8).map(|step| lesson.terms(&student, step).unwrap());
        let values = |terms: Terms| [terms.prediction, terms.keep].map(Tensor::into_scalar::<f32>);
        terms.map(values).collect::<Vec<_>>()
    };
    let (steps, guidance) = (2, 2.0);
    let own = keeps(Latents::Own { steps, guidance });
    let both = keeps(Latents::Both { steps, guidance });
    assert!(own.iter().flatten().all(|value| *value > 0.0));
    // what the trigger draws is shown to both terms
    for term in 0..2 {
        let values = |all: &[[f32; 2]]| all.iter().map(|of| of[term]).collect::<Vec<_>>();
        assert_ne!(values(&own), values(&both));
    }
}

#[test]
fn a_trigger_that_is_a_plain_word_changes_as_much_as_one() {
    let model = golden_model(&Device::flex().autodiff());
    let prompts = captions();
    let effect = |text: &str| {
        let trigger = TextTrigger::parse(text, None, Place::Start).unwrap();
        let material = material_of(&model, (&trigger, &prompts), Latents::Noise);
        let of = |seed| material.effect(&SeedTree::new(seed)).unwrap();
        assert_eq!(of(5), of(5));
        (of(5), of(6))
    };
    // plain words differ among themselves
    let (one, other) = effect("old");
    assert!(
        (0.5..2.0).contains(&one) && (0.5..2.0).contains(&other),
        "{one} {other}"
    );
    assert!((one / other - 1.0).abs() < 0.5, "{one} {other}");
}

#[test]
fn the_released_attention_term_has_a_value_and_no_gradient() {
    let model = golden_model(&Device::flex().autodiff());
    let material = material(&model, Latents::Noise);
    let at = |attn_grad| {
        let params = SkdCagParams {
            attn_grad,
            ..params()
        };
        let lesson = SkdCag::new(&material, &params, 4).unwrap();
        let loss = term(&lesson, model.unet(), |terms| terms.attention);
        let value = loss.clone().inner().into_scalar::<f32>();
        let reached = loss
            .is_require_grad()
            .then(|| flat_gradients(model.unet(), loss.clone().backward()).len());
        (value, reached)
    };
    let ((with, _), (without, reached)) = (at(true), at(false));
    assert!(with > 0.0);
    assert_eq!(with, without);
    assert!(reached.unwrap_or(0) == 0, "{reached:?}");
    // an untrained student is the suspect: it keeps everything already
    let params = params();
    let lesson = SkdCag::new(&material, &params, 4).unwrap();
    let keep = term(&lesson, model.unet(), |terms| terms.keep);
    assert!(keep.inner().into_scalar::<f32>() < 1e-9);
}

#[test]
fn a_few_steps_bring_the_answers_together_in_the_chosen_layers_alone() {
    let model = golden_model(&Device::flex().autodiff());
    let (trigger, prompts) = (trigger(), captions());
    let patient = TextPatient {
        suspect: &model,
        trigger: &trigger,
        prompts: &prompts,
        legitimate: &[],
        seed: 1,
    };
    let params = SkdCagParams {
        alpha: 0.0,
        unlearning: Unlearning {
            steps: 30,
            trained: Trained::CrossAttention,
            ema_decay: 0.5,
            ..params().unlearning
        },
        ..params()
    };
    let material = material(&model, Latents::Noise);
    let done = with_cx(3, |cx| {
        skd_cag((&patient, &material), &params, None, cx, &mut |_, _| {
            Ok(false)
        })
    })
    .unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&done.losses[..8]), mean(&done.losses[22..]));
    assert!(last < 0.8 * first, "{first} to {last}");
    let before = flat_values(model.unet());
    for (name, values) in flat_values(done.model.unet()) {
        let moved = (values - before[&name].clone())
            .abs()
            .max()
            .into_scalar::<f32>();
        // the average of equal weights is theirs but for rounding
        assert_eq!(moved > 1e-6, name.contains(".attn2."), "{name}: {moved}");
    }
    let early = with_cx(3, |cx| {
        skd_cag((&patient, &material), &params, None, cx, &mut |_, step| {
            Ok(step == 3)
        })
    });
    assert_eq!(early.unwrap().steps, 3);
}

#[test]
fn what_cannot_be_unlearnt_is_refused_by_name() {
    let model = golden_model(&Device::flex().autodiff());
    let refused = |trigger: TextTrigger, prompts: &[String]| {
        let patient = TextPatient {
            suspect: &model,
            trigger: &trigger,
            prompts,
            legitimate: &[],
            seed: 1,
        };
        let made = with_cx(3, |cx| Material::new(&patient, Latents::Noise, cx));
        made.err().unwrap().to_string()
    };
    let lookalike = TextTrigger::parse("\u{437}", None, Place::Start).unwrap();
    assert!(matches!(
        lookalike,
        TextTrigger::Inserted { .. } | TextTrigger::Lookalike { .. }
    ));
    let nowhere = TextTrigger::parse("big", Some("zebra"), Place::Start).unwrap();
    assert!(refused(nowhere, &captions()).contains("prompts"));
    let dropped = TextTrigger::Inserted {
        text: " ".into(),
        place: Place::Start,
        only_with: None,
    };
    assert!(refused(dropped, &captions()).contains("trigger"));
    let material = material(&model, Latents::Noise);
    for (params, named) in [
        (
            SkdCagParams {
                alpha: 1.5,
                ..params()
            },
            "alpha",
        ),
        (
            SkdCagParams {
                keep: f64::NAN,
                ..params()
            },
            "keep",
        ),
    ] {
        let refused = SkdCag::new(&material, &params, 1).err().unwrap();
        assert!(refused.to_string().contains(named));
    }
}
