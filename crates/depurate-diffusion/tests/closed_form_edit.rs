//! Closed-form edits against the released EvilEdit and UCE codes, as solved in 64-bit floats, and against what they must do.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use burn::tensor::Device;
use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_diffusion::{
    closed_form_edit::{Association, ClosedFormEdit, projects_prompt},
    noise::SeedTree,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_testkit::{
    assert_close_slices,
    golden::{self, Case},
};

fn cases(prefix: &str) -> Vec<Case> {
    Case::all("closed-form-edits", prefix)
}

fn number(case: &Case, name: &str) -> f64 {
    case.json[name].as_f64().unwrap()
}

/// The golden network that the pipeline cases were made on.
fn network() -> UNet2DCondition {
    let dir = golden::root().join("unet2d-condition/sd1_style/unet");
    let limits = Limits::default();
    let path = dir.join("config.json");
    let config =
        UNet2DConditionConfig::from_json(&read_json(&path, &limits).unwrap(), &path).unwrap();
    let file = dir.join("diffusion_pytorch_model.safetensors");
    let weights = Weights::open_file(&file, &limits).unwrap();
    UNet2DCondition::new(&config, &SeedTree::new(0), &Device::flex())
        .load(&weights, Path::new("golden network"))
        .unwrap()
}

/// Every edited weight of the golden network is the case's `after_f64`, and nothing else has changed.
fn assert_edits_the_network(case: &Case, edit: &ClosedFormEdit) {
    let before = network();
    let after = edit.apply(before.clone(), &projects_prompt).unwrap();
    let mut compared = 0;
    for (before, after) in before.to_tensors().iter().zip(after.to_tensors()) {
        let name = before.name.trim_end_matches(".weight");
        let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|v| f64::from(*v)).collect() };
        if !case.has(&format!("before.{name}")) {
            assert_eq!(*before, after, "{name} has changed");
            continue;
        }
        let stored = case.numbers(&format!("before.{name}"));
        assert_close_slices(name, &wide(&before.data), stored, 0.0, 0.0);
        let want = case.numbers(&format!("after_f64.{name}"));
        // the case's: relative 1e-4, in terms of the largest weight where one is almost 0
        let largest = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        assert_close_slices(name, &wide(&after.data), want, 1e-4, 1e-6 * largest);
        // before rounding
        let exact = edit.edited(stored).unwrap();
        assert_close_slices(name, &exact, want, 1e-7, 1e-9 * largest);
        assert_ne!(before.data, after.data, "{name} was not edited");
        compared += 1;
    }
    assert_eq!(compared, 12, "six cross-attention layers");
}

#[test]
fn random_edits_are_the_ridge_solution() {
    for case in cases("random_") {
        let width = case.json["tensors"]["W"]["shape"][1].as_u64().unwrap() as usize;
        let associate = |new: &str| Association {
            old: case.numbers("e_old").to_vec(),
            new: case.numbers(new).to_vec(),
            scale: 1.0,
        };
        let edited = |new: &str| {
            let edit = ClosedFormEdit::new(width, number(&case, "lambda"), &[associate(new)]);
            edit.unwrap().edited(case.numbers("W")).unwrap()
        };
        let close = |what: &str, got: &[f64], want: &[f64]| {
            let largest = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            let what = format!("{} {what}", case.name());
            assert_close_slices(&what, got, want, 1e-9, 1e-12 * largest);
        };
        close("edit", &edited("e_new"), case.numbers("W_after"));
        let identity = edited("e_old");
        close("identity", &identity, case.numbers("W_identity_edit"));
        close("identity", &identity, case.numbers("W"));
    }
}

#[test]
fn evil_edit_is_the_released_one() {
    for case in cases("eviledit_") {
        let (old, new) = (case.numbers("old_emb"), case.numbers("new_emb"));
        let pair = old.len() / 2;
        let associations = [0, 1].map(|i| Association {
            old: old[i * pair..(i + 1) * pair].to_vec(),
            new: new[i * pair..(i + 1) * pair].to_vec(),
            scale: 1.0,
        });
        let edit = ClosedFormEdit::new(16, number(&case, "lambda"), &associations).unwrap();
        assert_edits_the_network(&case, &edit);
    }
}

#[test]
fn uce_is_the_released_one() {
    for case in cases("uce_") {
        let words = |name: &str| -> Vec<String> {
            let list = case.json[name].as_array().unwrap();
            list.iter()
                .map(|word| word.as_str().unwrap().to_owned())
                .collect()
        };
        let order = words("concept_order");
        let state = |word: &String| {
            let row = order.iter().position(|other| other == word).unwrap();
            case.numbers("emb")[row * 16..(row + 1) * 16].to_vec()
        };
        let associate = |old: &String, new: &String, scale: &str| Association {
            old: state(old),
            new: state(new),
            scale: number(&case, scale),
        };
        let (edit, guide) = (words("edit"), words("guide"));
        let erased = edit.iter().zip(&guide);
        let erased = erased.map(|(old, new)| associate(old, new, "erase_scale"));
        let preserve = words("preserve");
        let preserved = preserve
            .iter()
            .map(|word| associate(word, word, "preserve_scale"));
        let associations: Vec<Association> = erased.chain(preserved).collect();
        let edit = ClosedFormEdit::new(16, number(&case, "lambda"), &associations).unwrap();
        assert_edits_the_network(&case, &edit);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let one = Association {
        old: vec![1.0, 0.0],
        new: vec![0.0, 1.0],
        scale: 1.0,
    };
    let edit = |width, lambda, association: &Association| {
        ClosedFormEdit::new(width, lambda, std::slice::from_ref(association))
    };
    assert!(edit(2, 1.0, &one).is_ok());
    for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(edit(2, lambda, &one).is_err(), "{lambda}");
    }
    assert!(edit(3, 1.0, &one).is_err() && edit(0, 1.0, &one).is_err());
    assert!(ClosedFormEdit::new(2, 1.0, &[]).is_err());
    let with = |old: Vec<f64>, scale| Association {
        old,
        scale,
        ..one.clone()
    };
    for bad in [
        with(vec![1.0; 4], 1.0),
        with(vec![], 1.0),
        with(vec![f64::NAN, 0.0], 1.0),
        with(vec![1.0, 0.0], -1.0),
    ] {
        assert!(edit(2, 1.0, &bad).is_err(), "{bad:?}");
    }
    let edit = edit(2, 1.0, &one).unwrap();
    assert!(edit.edited(&[1.0; 3]).is_err());
    // the golden network's projections have 16 inputs
    assert!(edit.apply(network(), &projects_prompt).is_err());
    assert!(edit.apply(network(), &|_| false).is_err());
}
