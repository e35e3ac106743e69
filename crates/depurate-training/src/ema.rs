//! Exponential moving average of the parameters: what is sampled from and saved.

use depurate_diffusion::ops;

use crate::parameters::Flat;

/// The average. Its decay warms up as `(1 + n) / (10 + n)`, so that the first values, which are
/// far from where training ends, are forgotten soon.
pub(crate) struct Ema {
    decay: f64,
    /// Updates done.
    pub(crate) updates: usize,
    /// The averaged values.
    pub(crate) values: Flat,
}

impl Ema {
    /// Starts from `values`; `decay` is its limit, in [0, 1).
    pub(crate) fn new(decay: f64, values: Flat) -> Self {
        Self {
            decay,
            updates: 0,
            values,
        }
    }

    /// Takes in the parameters after an update.
    pub(crate) fn update(&mut self, parameters: &Flat) {
        self.updates += 1;
        let decay = self.decay_now();
        for (name, parameter) in parameters {
            let Some(average) = self.values.remove(name) else {
                continue;
            };
            let average = ops::average(average, parameter.clone(), decay);
            self.values.insert(name.clone(), average);
        }
    }

    fn decay_now(&self) -> f64 {
        let n = self.updates as f64;
        self.decay.min((1.0 + n) / (10.0 + n))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    fn one(value: f32) -> Flat {
        Flat::from([(
            "w".to_owned(),
            Tensor::from_floats([value], &Device::flex()),
        )])
    }

    fn read(ema: &Ema) -> f64 {
        f64::from(ema.values["w"].clone().into_scalar::<f32>())
    }

    #[test]
    fn follows_the_recursion_with_the_decay_warming_up() {
        let mut ema = Ema::new(0.5, one(0.0));
        let mut expected = 0.0;
        for n in 1..40 {
            let decay = (f64::from(1 + n) / f64::from(10 + n)).min(0.5);
            expected = expected * decay + (1.0 - decay) * f64::from(n);
            ema.update(&one(n as f32));
            assert!(
                (read(&ema) - expected).abs() < 1e-4,
                "{n}: {} {expected}",
                read(&ema)
            );
        }
    }

    #[test]
    fn a_constant_is_kept() {
        let mut ema = Ema::new(0.999, one(3.0));
        for _ in 0..100 {
            ema.update(&one(3.0));
        }
        assert!((read(&ema) - 3.0).abs() < 1e-5);
    }
}
