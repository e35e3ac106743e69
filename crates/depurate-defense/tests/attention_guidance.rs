//! The attention term of SKD-CAG against an independent implementation in double precision.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor, activation::softmax};
use depurate_defense::repair::text::{MapNorm, Positions, PromptMaps, attention_loss};
use depurate_testkit::{assert_close, assert_close_slices, golden::Case};

struct Side {
    logits: Vec<Tensor<3>>,
    maps: PromptMaps,
}

fn side(case: &Case, name: &str, device: &Device) -> Side {
    let layers = case.json["layers_heads_h_w"].as_array().unwrap().clone();
    let (mut logits, mut maps) = (Vec::new(), PromptMaps::default());
    for (i, layer) in layers.iter().enumerate() {
        let of = |j: usize| layer[j].as_u64().unwrap() as usize;
        let values: Tensor<3> = case.tensor(&format!("{name}_logits.{i}"), &Device::flex());
        let values = if device.is_autodiff() {
            Tensor::from_inner(values).require_grad()
        } else {
            values
        };
        let probabilities = softmax(values.clone(), 2).swap_dims(1, 2);
        maps.add(probabilities, of(0), (of(1), of(2)));
        logits.push(values);
    }
    Side { logits, maps }
}

#[test]
fn losses_and_gradients_are_those_of_the_intended_loss() {
    for case in Case::all("skd-cag", "case") {
        let json = case.json.clone();
        let (plain, autodiff) = (Device::flex(), Device::flex().autodiff());
        let student = side(&case, "student", &autodiff);
        let teacher = side(&case, "teacher", &plain);
        let size = json["S"].as_u64().unwrap() as usize;
        let norm = match json["norm"].as_str().unwrap() {
            "minmax" => MapNorm::MinMax,
            "sum" => MapNorm::Sum,
            _ => MapNorm::None,
        };
        let trigger = json["K_trig"].as_array().unwrap();
        let content = json["pi_student_to_teacher"].as_object().unwrap();
        let positions = Positions {
            trigger: trigger
                .iter()
                .map(|k| k.as_u64().unwrap() as usize)
                .collect(),
            content: content
                .iter()
                .map(|(s, t)| (s.parse().unwrap(), t.as_u64().unwrap() as usize))
                .collect(),
            stand_ins: Vec::new(),
        };
        let r: Tensor<2> = case.tensor("R", &plain);
        let r: Tensor<1> = Tensor::from_inner(r).reshape([-1]);
        let weight = json["w_t"].as_f64().unwrap_or(1.0);
        let l_attn = attention_loss(
            &student.maps,
            &teacher.maps,
            &[positions],
            Some(&r),
            (size, norm),
            &[weight],
        )
        .unwrap();
        let value = |loss: &Tensor<1>| f64::from(loss.clone().inner().into_scalar::<f32>());
        let near = |key: &str, got: f64| {
            assert_close_slices(key, &[got], case.numbers(key), 1e-4, 1e-9);
        };
        near("L_attn", value(&l_attn));
        let eps: Tensor<3> = case.tensor("eps_student", &plain);
        let eps = Tensor::from_inner(eps).require_grad();
        let wanted: Tensor<3> = case.tensor("eps_teacher", &plain);
        let l_pred = (eps.clone() - Tensor::from_inner(wanted)).square().mean();
        near("L_pred", value(&l_pred));
        let alpha = json["alpha"].as_f64().unwrap();
        let total = l_attn * alpha + l_pred * (1.0 - alpha);
        near("L_total", value(&total));
        let mut gradients = total.backward();
        for (i, logits) in student.logits.iter().enumerate() {
            let key = format!("grad.student_logits.{i}");
            let got = logits.grad_remove(&mut gradients).unwrap();
            let want: Tensor<3> = case.tensor(&key, &plain);
            let largest = f64::from(want.clone().abs().max().into_scalar::<f32>());
            assert_close(
                &format!("{} {key}", case.name()),
                &got,
                &want,
                1e-4,
                1e-4 * largest,
            );
        }
    }
}
