//! Repairs: the released removal's numbers, what the lessons teach, and that a fine-tune holds what it shall hold.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use burn::tensor::{Device, Tensor};
use depurate_defense::{
    DefenseError,
    repair::{
        FineTuning, KnownTrigger, Lesson, Method, Patient, Shown, Task,
        elijah_removal::ElijahRemoval, features::Features, fine_tune, repair, repair_again,
        replay::perturbed, shifted_denoising::ShiftedDenoising,
    },
};
use depurate_diffusion::{
    Denoiser, Pipeline, SampleShape,
    firing::Firing,
    module_weights::{flat_gradients, flat_values, with_flat},
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
};
use depurate_testkit::{assert_close, assert_close_slices, golden::Case};
use depurate_training::{Dataset, Draw, StateFile, TrainingPair};
use support::with_cx;

fn model(device: &Device) -> Pipeline {
    let dir = depurate_testkit::golden::root().join("unet2d/c1_attn_all/pipeline");
    Pipeline::load(&dir, &Default::default(), device).unwrap()
}

fn known(
    shift: Vec<f32>,
    gamma: Option<Vec<f32>>,
    firing: Firing,
    shape: SampleShape,
) -> KnownTrigger {
    KnownTrigger {
        shape,
        shift,
        gamma,
        firing,
        target: None,
    }
}

/// Images, noise and timesteps with the suspect's answer, for `count` samples.
fn shown(teacher: &Pipeline, t: Vec<usize>) -> Shown {
    let (shape, device) = (teacher.sample_shape(), teacher.device());
    let seed = SeedTree::new(5);
    let normal = |name: &str| {
        let mut noise = seed.child(name, 0).noise(0, t.len());
        noise.normal(shape.batched(t.len()), &device).unwrap()
    };
    let draw = Draw {
        step: 0,
        indices: (0..t.len()).collect(),
        images: normal("images").clamp(-1.0, 1.0),
        eps: normal("eps"),
        t,
        seed,
    };
    let schedule = teacher.schedule();
    let x_t = schedule
        .add_noise(draw.images.clone(), draw.eps.clone(), &draw.t)
        .unwrap();
    let old = teacher.epsilon(x_t.clone(), &draw.t).unwrap();
    Shown { draw, x_t, old }
}

#[test]
fn elijahs_removal_has_the_released_losses_and_gradients() {
    let device = Device::flex().autodiff();
    let suspect = model(&device);
    let teacher = suspect.frozen();
    let mut values = flat_values(suspect.unet());
    let weight = values.remove("conv_out.weight").unwrap();
    values.insert("conv_out.weight".into(), weight * 1.05);
    let student = with_flat(suspect.unet().clone(), &values);
    for case in Case::all("attack-losses", "elijah_lambda") {
        let plain = Device::flex();
        let tau = case.numbers("trigger").iter().map(|&v| v as f32).collect();
        let trigger = known(tau, None, Firing::Stochastic, suspect.sample_shape());
        let lesson = ElijahRemoval::new(&[trigger], &suspect).unwrap();
        let eps: Tensor<4> = case.tensor("noise", &plain);
        let t = case.integers("rem.t");
        let images: Tensor<4> = case.tensor("rem.x0", &plain);
        let x_t = teacher
            .schedule()
            .add_noise(images.clone(), eps.clone(), &t)
            .unwrap();
        let shown = Shown {
            old: eps.zeros_like(),
            x_t,
            draw: Draw {
                step: 0,
                indices: vec![0; t.len()],
                images,
                eps,
                t,
                seed: SeedTree::new(0),
            },
        };
        let pairs = lesson.pairs(&teacher, &shown).unwrap();
        let loss = |pair: &TrainingPair| {
            let x_t = pair.x_t.clone().autodiff();
            let e = student
                .forward(x_t, &pair.t, &mut depurate_diffusion::NoTap)
                .unwrap();
            (e - pair.target.clone().autodiff()).square().mean()
        };
        let losses: Vec<Tensor<1>> = pairs.iter().map(loss).collect();
        for (loss, key) in losses
            .iter()
            .zip(["rem.loss1_triggered", "rem.loss2_clean"])
        {
            let got = f64::from(loss.clone().inner().into_scalar::<f32>());
            assert_close_slices(key, &[got], case.numbers(key), 1e-5, 0.0);
        }
        let total = losses[0].clone() + losses[1].clone();
        let gradients = flat_gradients(&student, total.backward());
        assert_eq!(
            gradients.len(),
            values.len(),
            "every parameter has a gradient"
        );
        for name in [
            "conv_in.weight",
            "mid_block.attentions.0.to_q.weight",
            "conv_out.bias",
        ] {
            let got: Vec<f64> = gradients[name].clone().into_data().iter::<f64>().collect();
            let want = case.numbers(&format!("rem.loss12.grad.{name}"));
            let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert_close_slices(name, &got, want, 0.0, 1e-4 * largest);
        }
    }
}

#[test]
fn shifted_denoising_asks_for_the_clean_image_that_was_predicted_without_the_trigger() {
    let suspect = model(&Device::flex().autodiff());
    let (teacher, shape) = (suspect.frozen(), suspect.sample_shape());
    let shown = shown(&teacher, vec![5, 300, 700, 999]);
    let schedule = teacher.schedule();
    let ramp: Vec<f32> = (0..shape.len())
        .map(|i| (i % 7) as f32 / 7.0 - 0.4)
        .collect();
    let gamma = vec![0.5; shape.len()];
    for (gamma, firing) in [
        (None, Firing::Stochastic),
        (None, Firing::Deterministic),
        (Some(gamma), Firing::Modified),
    ] {
        let trigger = known(ramp.clone(), gamma.clone(), firing, shape);
        let lesson = ShiftedDenoising::new(&[trigger], &suspect).unwrap();
        let pairs = lesson.pairs(&teacher, &shown).unwrap();
        let [pair] = pairs.as_slice() else {
            panic!("one block")
        };
        let plain = schedule
            .add_noise(shown.draw.images.clone(), shown.draw.eps.clone(), &pair.t)
            .unwrap();
        let old = teacher.epsilon(plain.clone(), &pair.t).unwrap();
        let last = schedule.len() - 1;
        for (i, &t) in pair.t.iter().enumerate() {
            assert!((schedule.len() / 2..=last).contains(&t), "{t}");
            let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
            let x_0 = |x: Tensor<4>, e: Tensor<4>| (x - e * schedule.s(t)) / schedule.a(t);
            let before = x_0(one(&plain), one(&old));
            let mut after = x_0(one(&pair.x_t), one(&pair.target));
            if firing == Firing::Modified {
                // the sampler subtracts shift and scale itself
                let prior = lesson_prior(&ramp, 0.5, shape);
                let noise = prior.apply(one(&shown.draw.eps)) - one(&shown.draw.eps);
                after = after - noise * (schedule.s(t) / schedule.a(t));
            }
            // a_t is small at the end: what is subtracted there is large
            let scale = 1e-4 / schedule.a(t);
            assert_close(&format!("x_0 at {t}"), &after, &before, 1e-4, scale);
            if gamma.is_some() {
                continue;
            }
            // between what the attack was trained at and what a chain carries along: simulated, not by the lesson's closed form
            let trained = 1.0 - schedule.a(t);
            let carried = carried(schedule, firing, t);
            let largest = ramp.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let moved = one(&pair.x_t) - one(&plain);
            let weight = f64::from(moved.abs().max().into_scalar::<f32>() / largest);
            let range = 0.8 * trained.min(carried) - 1e-4..=1.1 * trained.max(carried) + 1e-4;
            assert!(
                range.contains(&weight),
                "{firing:?} {t}: {weight}, {range:?}"
            );
        }
    }
}

#[test]
fn one_sample_in_three_is_led_from_the_target_to_its_clean_image() {
    let suspect = model(&Device::flex().autodiff());
    let (teacher, shape) = (suspect.frozen(), suspect.sample_shape());
    let shown = shown(&teacher, vec![5, 300, 5, 999, 700, 40]);
    let schedule = teacher.schedule();
    let picture: Vec<f32> = (0..shape.len())
        .map(|i| (i % 5) as f32 / 2.5 - 0.9)
        .collect();
    let mut trigger = known(vec![0.3; shape.len()], None, Firing::Deterministic, shape);
    trigger.target = Some(picture.clone());
    let lesson = ShiftedDenoising::new(&[trigger], &suspect).unwrap();
    let pairs = lesson.pairs(&teacher, &shown).unwrap();
    let [pair] = pairs.as_slice() else {
        panic!("one block")
    };
    let plain = schedule
        .add_noise(shown.draw.images.clone(), shown.draw.eps.clone(), &pair.t)
        .unwrap();
    let old = teacher.epsilon(plain.clone(), &pair.t).unwrap();
    let y = known(picture, None, Firing::Deterministic, shape)
        .prior(&Device::flex())
        .shift;
    for (i, &t) in pair.t.iter().enumerate() {
        let late = schedule.len() / 2..schedule.len();
        assert!(late.contains(&t), "{i}: {t}");
        let one = |x: &Tensor<4>| x.clone().narrow(0, i, 1);
        let x_0 = |x: Tensor<4>, e: Tensor<4>| (x - e * schedule.s(t)) / schedule.a(t);
        let (before, after) = (
            x_0(one(&plain), one(&old)),
            x_0(one(&pair.x_t), one(&pair.target)),
        );
        let scale = 1e-4 / schedule.a(t);
        assert_close(&format!("x_0 at {t}"), &after, &before, 1e-4, scale);
        let moved = one(&pair.x_t) - one(&plain);
        let toward = (y.clone() - one(&shown.draw.images)) * schedule.a(t);
        let share = f64::from(
            (moved.clone() * toward.clone()).sum().into_scalar::<f32>()
                / toward.clone().square().sum().into_scalar::<f32>(),
        );
        let beside = f64::from((moved - toward * share).abs().max().into_scalar::<f32>());
        if i == 2 {
            assert!((0.5..=1.0).contains(&share), "{share}");
            assert!(beside < 1e-4, "without the trigger: {beside}");
        } else {
            assert!(beside > 1e-2, "{i}: the trigger is there: {beside}");
        }
    }
}

/// What a chain that starts at `eps + r` holds of `r` at `t`, where the answer at each step is the shift in units of the noise: a
/// number is sampled, with `r = 1`, no noise and an image of 0.
fn carried(schedule: &NoiseSchedule, firing: Firing, t: usize) -> f64 {
    let mut held = 1.0;
    for from in (t + 1..schedule.len()).rev() {
        let to = from - 1;
        let (a, s) = (schedule.a(from), schedule.s(from));
        held = match firing {
            // x_0 is predicted right: what is left is the noise's part
            Firing::Deterministic => schedule.s(to) * (held / s),
            _ => {
                let alpha = (a / schedule.a(to)).powi(2);
                alpha.sqrt() * (schedule.s(to) / s).powi(2) * held
            }
        };
    }
    held
}

fn lesson_prior(
    shift: &[f32],
    gamma: f32,
    shape: SampleShape,
) -> depurate_diffusion::firing::Prior {
    let gamma = Some(vec![gamma; shape.len()]);
    known(shift.to_vec(), gamma, Firing::Modified, shape).prior(&Device::flex())
}

/// 12 images of noise for the golden model.
fn images(shape: SampleShape) -> Dataset {
    let bytes = (0..12 * shape.len())
        .map(|i| (i * 37 % 251) as u8)
        .collect();
    Dataset::from_bytes(shape, bytes).unwrap()
}

fn short() -> FineTuning {
    FineTuning {
        steps: 6,
        batch: 2,
        check_every: 2,
        ..FineTuning::default()
    }
}

#[test]
fn without_a_lesson_and_with_the_teacher_alone_nothing_moves() {
    let suspect = model(&Device::flex().autodiff());
    let clean = images(suspect.sample_shape());
    let task = Task {
        start: &suspect,
        suspect: &suspect,
        clean: &clean,
        lesson: None,
        seed: 1,
        state: None,
    };
    let held = with_cx(3, |cx| {
        fine_tune(&task, &short(), cx, &mut |_, _| Ok(false))
    })
    .unwrap();
    let (before, after) = (
        flat_values(suspect.unet()),
        flat_values(held.pipeline.unet()),
    );
    for (name, values) in before {
        let gap = (values - after[&name].clone())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(gap < 1e-3, "{name} moved by {gap}");
    }
    assert!(
        held.losses.iter().all(|&loss| loss < 1e-6),
        "{:?}",
        held.losses
    );
}

#[test]
fn a_lesson_is_learnt_resumed_and_stopped_early() {
    let suspect = model(&Device::flex().autodiff());
    let shape = suspect.sample_shape();
    let clean = images(shape);
    let trigger = known(vec![0.8; shape.len()], None, Firing::Stochastic, shape);
    let lesson = ShiftedDenoising::new(&[trigger], &suspect).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = StateFile::new(dir.path().join("state.safetensors"));
    let task = |state| Task {
        start: &suspect,
        suspect: &suspect,
        clean: &clean,
        lesson: Some(&lesson as &dyn Lesson),
        seed: 1,
        state,
    };
    let whole = with_cx(3, |cx| {
        fine_tune(&task(None), &short(), cx, &mut |_, _| Ok(false))
    })
    .unwrap();
    assert!(whole.losses[5] < whole.losses[0], "{:?}", whole.losses);
    // a sample of the lesson and a clean one a step: forward and backward, the teacher on both and once more on the lesson's
    assert_eq!(whole.evaluations, 6 * (2 * 3 + 2 + 1));

    // stopped by an error after four steps, then on to the end
    let broken = with_cx(3, |cx| {
        fine_tune(&task(Some(&state)), &short(), cx, &mut |_, step| {
            if step < 4 {
                Ok(false)
            } else {
                Err(DefenseError::BudgetSpent)
            }
        })
    });
    assert!(matches!(broken, Err(DefenseError::BudgetSpent)));
    let resumed = with_cx(3, |cx| {
        fine_tune(&task(Some(&state)), &short(), cx, &mut |_, _| Ok(false))
    })
    .unwrap();
    assert_eq!((resumed.steps, resumed.losses.len()), (6, 2));
    let (a, b) = (
        flat_values(whole.pipeline.unet()),
        flat_values(resumed.pipeline.unet()),
    );
    for (name, values) in a {
        let gap = (values - b[&name].clone()).abs().max().into_scalar::<f32>();
        assert_eq!(gap, 0.0, "{name}");
    }

    let early = with_cx(3, |cx| {
        fine_tune(&task(None), &short(), cx, &mut |_, step| Ok(step == 2))
    });
    assert_eq!(early.unwrap().steps, 2);
}

#[test]
fn a_second_round_starts_from_the_first_ones_model_and_both_are_counted() {
    let suspect = model(&Device::flex().autodiff());
    let shape = suspect.sample_shape();
    let clean = images(shape);
    let shift = |value: f32| known(vec![value; shape.len()], None, Firing::Stochastic, shape);
    let (triggers, found) = ([shift(0.8)], [shift(-0.6)]);
    let patient = Patient {
        suspect: &suspect,
        triggers: &triggers,
        clean: &clean,
        seed: 3,
        state: None,
    };
    let method = Method::ShiftedDenoising;
    let round = |patient: &Patient<'_>, params: &FineTuning| {
        let never = &mut |_: &_, _| Ok(false);
        with_cx(3, |cx| repair(method, patient, params, cx, never)).unwrap()
    };
    let first = round(&patient, &short());
    let second = Patient {
        suspect: &first.pipeline,
        triggers: &found,
        ..patient
    };
    let half = FineTuning {
        steps: 3,
        ..short()
    };
    let again = round(&second, &half);
    assert_eq!((first.steps, again.steps), (6, 3));
    let evaluations = first.evaluations + again.evaluations;
    let losses = [first.losses.clone(), again.losses.clone()].concat();
    let moved = |a: &Pipeline, b: &Pipeline| {
        let (a, b) = (flat_values(a.unet()), flat_values(b.unet()));
        let gap = |(name, values): (&String, &Tensor<1>)| {
            let gap = (values.clone() - b[name].clone()).abs().max();
            gap.into_scalar::<f32>()
        };
        a.iter().map(gap).fold(0.0, f32::max)
    };
    let last = again.pipeline;
    assert!(moved(&first.pipeline, &last) > 0.0);
    let dir = tempfile::tempdir().unwrap();
    let state = StateFile::new(dir.path().join("again.safetensors"));
    let patient = Patient {
        state: Some(&state),
        ..patient
    };
    let both = || {
        let so_far = (first.clone(), found.as_slice());
        with_cx(3, |cx| repair_again(method, so_far, &patient, &short(), cx)).unwrap()
    };
    let whole = both();
    assert_eq!((whole.steps, whole.evaluations), (9, evaluations));
    assert_eq!(whole.losses, losses);
    assert_eq!(moved(&whole.pipeline, &last), 0.0);
    // what was trained is kept: the same call trains no step again
    let resumed = both();
    assert_eq!(resumed.losses, first.losses);
    assert_eq!(moved(&resumed.pipeline, &last), 0.0);
}

#[test]
fn a_repair_does_not_hold_images_that_the_trigger_leads_to() {
    let suspect = model(&Device::flex().autodiff());
    let shape = suspect.sample_shape();
    let honest = images(shape);
    let white = Dataset::from_bytes(shape, vec![255; 2 * shape.len()]).unwrap();
    let clean = honest.clone().joined(white).unwrap();
    let mut trigger = known(vec![0.3; shape.len()], None, Firing::Stochastic, shape);
    trigger.target = Some(vec![1.0; shape.len()]);
    let repaired = |clean: &Dataset| {
        let triggers = std::slice::from_ref(&trigger);
        let patient = Patient {
            suspect: &suspect,
            triggers,
            clean,
            seed: 3,
            state: None,
        };
        let method = Method::ShiftedDenoising;
        let never = &mut |_: &_, _| Ok::<_, DefenseError>(false);
        with_cx(3, |cx| repair(method, &patient, &short(), cx, never)).unwrap()
    };
    let (with, without) = (repaired(&clean), repaired(&honest));
    assert_eq!((with.left_out, without.left_out), (2, 0));
    assert_eq!(with.losses, without.losses);
}

#[test]
fn hostile_triggers_are_refused() {
    let suspect = model(&Device::flex().autodiff());
    let shape = suspect.sample_shape();
    let zeros = vec![0.0; shape.len()];
    let bad = [
        known(vec![0.0; 3], None, Firing::Stochastic, shape),
        known(vec![f32::NAN; shape.len()], None, Firing::Stochastic, shape),
        known(zeros.clone(), Some(zeros.clone()), Firing::Modified, shape),
    ];
    for trigger in bad {
        assert!(ElijahRemoval::new(std::slice::from_ref(&trigger), &suspect).is_err());
        assert!(ShiftedDenoising::new(&[trigger], &suspect).is_err());
    }
    assert!(ShiftedDenoising::new(&[], &suspect).is_err());
    assert!(
        FineTuning {
            teacher_share: 1.5,
            ..short()
        }
        .check()
        .is_err()
    );
    assert!(
        FineTuning {
            lesson_share: -0.1,
            ..short()
        }
        .check()
        .is_err()
    );
    assert!(
        FineTuning {
            steps: 0,
            ..short()
        }
        .check()
        .is_err()
    );
}

#[test]
fn perturbations_are_near_the_trigger_and_differ_from_it() {
    let suspect = model(&Device::flex());
    let shape = suspect.sample_shape();
    let ramp: Vec<f32> = (0..shape.len()).map(|i| (i % 5) as f32 / 5.0).collect();
    let trigger = known(ramp, None, Firing::Stochastic, shape);
    let whole = trigger.prior(&Device::flex()).shift;
    let found = perturbed(&trigger, &suspect, &SeedTree::new(1)).unwrap();
    assert_eq!(found.len(), 4);
    for (name, prior) in found {
        let gap = (prior.shift - whole.clone())
            .square()
            .mean()
            .into_scalar::<f32>();
        let size = whole.clone().square().mean().into_scalar::<f32>();
        assert!(gap > 0.0 && gap < size, "{name}: {gap} of {size}");
    }
}

#[test]
fn features_tell_sets_of_digits_from_noise() {
    let features = Features::built_in().unwrap();
    let path = depurate_testkit::golden::root().join("../data/mnist4k.safetensors");
    let shape = SampleShape {
        channels: 1,
        height: 28,
        width: 28,
    };
    let digits = Dataset::read(&path, shape, &Default::default()).unwrap();
    let device = Device::flex();
    let of = |first: usize| digits.batch(&(first..first + 128).collect::<Vec<_>>(), &[], &device);
    let noise = SeedTree::new(1)
        .noise(0, 128)
        .normal(shape.batched(128), &device)
        .unwrap();
    let same = features.distance(of(0), of(0)).unwrap();
    let alike = features.distance(of(0), of(128)).unwrap();
    let other = features.distance(of(0), noise.clamp(-1.0, 1.0)).unwrap();
    assert!(
        same < 1e-6 && alike > same && other > 10.0 * alike,
        "{same} {alike} {other}"
    );
}
