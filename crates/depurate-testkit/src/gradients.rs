//! What every objective's gradient must be: that of its value, in every parameter, and in no frozen one.

use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use depurate_diffusion::module_weights::{Flat, flat_gradients, flat_values, with_flat};

fn number(loss: &Tensor<1>) -> f64 {
    f64::from(loss.clone().inner().into_scalar::<f32>())
}

/// Checks `loss_of` at `module`: every parameter has a gradient that is not 0, except those that `unreached` names, and the loss
/// changes along the whole gradient, and along that of each of `groups` (by the start of names), as it says. Returns the gradient.
///
/// # Panics
/// When one of them does not hold.
pub fn check<M: Module>(
    module: &M,
    groups: &[&str],
    unreached: &dyn Fn(&str) -> bool,
    loss_of: &mut dyn FnMut(&M) -> Tensor<1>,
) -> Flat {
    let loss = loss_of(module);
    let gradients = flat_gradients(module, loss.backward());
    let values = flat_values(module);
    let norm = |flat: &Flat| -> f64 {
        let squares = flat.values().map(|g| {
            let values = g.clone().into_data();
            values.iter::<f64>().map(|v| v * v).sum::<f64>()
        });
        squares.sum::<f64>().sqrt()
    };
    for name in values.keys() {
        let size = gradients.get(name).map_or(0.0, |gradient| {
            norm(&Flat::from([(name.clone(), gradient.clone())]))
        });
        assert_eq!(
            size == 0.0,
            unreached(name),
            "the gradient of {name} is {size}"
        );
    }
    for group in groups.iter().chain(&[""]) {
        let of_group: Flat = gradients
            .iter()
            .filter(|(name, _)| name.starts_with(group))
            .map(|(name, gradient)| (name.clone(), gradient.clone()))
            .collect();
        let size = norm(&of_group);
        assert!(size > 0.0, "no gradient below {group:?}");
        // a step that changes the loss by far more than its rounding, and by little
        let step = 2e-3 * number(&loss).abs().max(0.1) / (size * size);
        let mut at = |sign: f64| {
            let moved: Flat = of_group
                .iter()
                .map(|(name, gradient)| {
                    let delta = gradient.clone() * (sign * step);
                    (name.clone(), values[name].clone() + delta)
                })
                .collect();
            number(&loss_of(&with_flat(module.clone(), &moved)))
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        let relative = slope / (size * size) - 1.0;
        assert!(relative.abs() < 0.02, "{group:?}: off by {relative:.4}");
    }
    gradients
}

/// The number of parameters of `module` that `loss` has a gradient in.
pub fn reached<M: Module>(module: &M, loss: &Tensor<1>) -> usize {
    flat_gradients(module, loss.backward()).len()
}

/// `module` with every parameter moved a little, the same way each time.
pub fn shifted<M: Module>(module: M, by: f32) -> M {
    let moved: Flat = flat_values(&module)
        .into_iter()
        .map(|(name, values)| {
            let count = values.dims()[0];
            let noise: Vec<f32> = (0..count).map(|i| by * (i as f32 * 1.7).sin()).collect();
            let noise = Tensor::from_data(TensorData::new(noise, [count]), &values.device());
            (name, values + noise)
        })
        .collect();
    with_flat(module, &moved)
}
