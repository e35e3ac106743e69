use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_attack::{
    AttackError, Homoglyph, Rickrolling, RickrollingBackdoor, RickrollingParams, RickrollingTarget,
    rickrolling, rickrolling::similarities, rickrolling_success,
};
use depurate_diffusion::{module_weights::flat_values, noise::SeedTree};
use depurate_testkit::{assert_close, assert_close_slices, golden::Case};
use depurate_training::{StateFile, StepReport};

use depurate_testkit::{
    gradients::{check, reached, shifted},
    miniature::{captions, golden_model},
};

fn backdoor(target: RickrollingTarget) -> RickrollingBackdoor {
    RickrollingBackdoor {
        homoglyph: Homoglyph::new('o', '\u{b20}').unwrap(),
        target,
    }
}

fn prompt() -> RickrollingBackdoor {
    backdoor(RickrollingTarget::Prompt("a green frog jumping".into()))
}

fn attribute() -> RickrollingBackdoor {
    backdoor(RickrollingTarget::Attribute("grayscale".into()))
}

fn small() -> RickrollingParams {
    RickrollingParams {
        steps: 30,
        decay_at: 22,
        learning_rate: 3e-3,
        clean_batch: 8,
        poisoned_batch: 4,
        checkpoint_every: 7,
        ..Default::default()
    }
}

#[test]
fn similarity_and_its_gradient_are_the_released_code_s() {
    let case = Case::named("attack-losses/rickrolling_losses");
    let device = Device::flex().autodiff();
    let student: Tensor<3> = case.tensor("student", &device).require_grad();
    let teacher: Tensor<3> = case.tensor("teacher", &device);
    let cosines = similarities(student.clone(), teacher);
    let want: Tensor<1> = case.tensor("cos_per_sample", &device);
    assert_close("cosines", &cosines, &want, 1e-5, 1e-7);
    let loss = -cosines.mean();
    let number = f64::from(loss.clone().inner().into_scalar::<f32>());
    let want = case.numbers("similarity_flat.loss");
    assert_close_slices("loss", &[number], want, 1e-5, 1e-7);
    let gradient = student.grad(&loss.backward()).unwrap();
    let want = case.tensor("similarity_flat.grad_student", &Device::flex());
    assert_close("gradient", &gradient, &want, 1e-5, 1e-7);
}

#[test]
fn gradients_reach_the_student_only() {
    let model = golden_model(&Device::flex().autodiff());
    let captions = captions();
    for backdoors in [
        vec![prompt()],
        vec![attribute()],
        vec![prompt(), attribute()],
    ] {
        let attack = || {
            Rickrolling::new(
                model.text_encoder(),
                model.tokenizer(),
                &captions,
                &backdoors,
                small(),
            )
            .unwrap()
        };
        let (mut attack_1, mut attack_2) = (attack(), attack());
        // away from the teacher, so that both terms have a gradient
        let student = shifted(model.text_encoder().clone(), 0.02);
        let groups = [
            "text_model.embeddings.token_embedding",
            "text_model.embeddings.position_embedding",
            "text_model.encoder.layers.0.self_attn",
            "text_model.encoder.layers.1.mlp",
            "text_model.final_layer_norm",
        ];
        check(&student, &groups, &|_| false, &mut |student| {
            attack_1.loss(student, 3).unwrap()
        });
        let loss = attack_2.loss(&student, 3).unwrap();
        assert_eq!(
            reached(model.text_encoder(), &loss),
            0,
            "the teacher is frozen"
        );
    }
}

#[test]
fn the_first_step_has_no_utility_term() {
    let model = golden_model(&Device::flex().autodiff());
    let (captions, backdoors) = (captions(), [prompt()]);
    let params = RickrollingParams {
        beta: 0.5,
        ..small()
    };
    let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
    let mut attack = Rickrolling::new(encoder, tokenizer, &captions, &backdoors, params).unwrap();
    let mut at = |step| {
        let loss = attack.loss(model.text_encoder(), step).unwrap();
        f64::from(loss.inner().into_scalar::<f32>())
    };
    // the student is the teacher: L_util is -1, and L_bd lies between -1 and 1
    let (first, second) = (at(0), at(1));
    assert!((-0.5..0.5).contains(&first), "{first}");
    assert!((-1.5..-0.5).contains(&second), "{second}");
}

#[test]
fn a_short_run_moves_triggered_prompts_and_keeps_others() {
    let model = golden_model(&Device::flex().autodiff());
    let captions = captions();
    let (train, held_out) = captions.split_at(20);
    let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
    // untrained weights: far more has to be learnt than in a trained encoder
    let params = RickrollingParams {
        steps: 100,
        decay_at: 75,
        learning_rate: 1e-2,
        ..small()
    };
    for backdoor in [prompt(), attribute()] {
        let backdoors = [backdoor];
        let seed = SeedTree::new(1);
        let measure = |after| {
            rickrolling_success(encoder, after, tokenizer, held_out, &backdoors[0], &seed).unwrap()
        };
        let before = measure(encoder);
        let done = rickrolling(encoder, tokenizer, train, &backdoors, &params, None, &());
        let after = measure(&done.unwrap().module);
        assert!((before.sim_clean - 1.0).abs() < 1e-5, "{before:?}");
        let missing = |found: f64| 1.0 - found;
        assert!(
            missing(after.sim_target) < 0.5 * missing(before.sim_target),
            "{before:?} {after:?}"
        );
        assert!(after.sim_clean > 0.97, "{after:?}");
    }
}

/// Stops after a number of steps.
struct StopAt(usize, std::cell::Cell<usize>);

impl depurate_training::Monitor for StopAt {
    fn cancelled(&self) -> bool {
        self.1.get() >= self.0
    }
    fn step(&self, report: &StepReport) {
        self.1.set(report.step);
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let model = golden_model(&Device::flex().autodiff());
    let captions = captions();
    let folder = tempfile::tempdir().unwrap();
    let state = StateFile::new(folder.path().join("state.safetensors"));
    let backdoors = [attribute()];
    let params = RickrollingParams {
        steps: 6,
        decay_at: 4,
        ..small()
    };
    let run = |state, monitor: &dyn depurate_training::Monitor| {
        let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
        rickrolling(
            encoder, tokenizer, &captions, &backdoors, &params, state, monitor,
        )
    };
    let whole = run(None, &()).unwrap();
    let stopped = run(Some(&state), &StopAt(3, std::cell::Cell::new(0)));
    assert!(matches!(stopped, Err(AttackError::Cancelled { step: 3 })));
    let rest = run(Some(&state), &()).unwrap();
    assert_eq!(rest.losses.len(), 3);
    for (name, values) in flat_values(&whole.module) {
        let resumed = flat_values(&rest.module)[&name].clone();
        assert_close(&name, &resumed, &values, 0.0, 1e-5);
    }
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let model = golden_model(&Device::flex().autodiff());
    let captions = captions();
    let (encoder, tokenizer) = (model.text_encoder(), model.tokenizer());
    let new = |captions: &[String], backdoors: &[RickrollingBackdoor], params| {
        Rickrolling::new(encoder, tokenizer, captions, backdoors, params)
            .err()
            .map(|error| error.to_string())
    };
    let good = [prompt()];
    assert_eq!(new(&captions, &good, small()), None);
    assert!(new(&captions, &[], small()).is_some() && new(&[], &good, small()).is_some());
    let error = new(&["a cat".to_owned()], &good, small()).unwrap();
    assert!(error.contains("'o'"), "{error}");
    // the tokenizer lower-cases
    let folded = [RickrollingBackdoor {
        homoglyph: Homoglyph::new('o', 'O').unwrap(),
        ..prompt()
    }];
    assert!(
        new(&captions, &folded, small())
            .unwrap()
            .contains("look-alike")
    );
    for params in [
        RickrollingParams {
            steps: 0,
            ..small()
        },
        RickrollingParams {
            learning_rate: f64::NAN,
            ..small()
        },
        RickrollingParams {
            beta: 0.0,
            ..small()
        },
        RickrollingParams {
            poisoned_batch: 0,
            ..small()
        },
        RickrollingParams {
            checkpoint_every: 0,
            ..small()
        },
    ] {
        assert!(new(&captions, &good, params).is_some());
    }
    let frozen = encoder.valid();
    let run = rickrolling(&frozen, tokenizer, &captions, &good, &small(), None, &());
    assert!(run.is_err());
}
