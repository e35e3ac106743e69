//! # The oracle: an exact backdoored denoiser without training
//!
//! For data that are a mixture of Gaussian modes, some of which belong to a backdoor, the denoiser that minimises the
//! training loss has a closed form. Samplers, coefficients and inversion losses are tested on it, apart from
//! whatever a trained network adds.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `mean` | m_k, centre of mode k; the target image for the backdoor's mode | `[1, C, H, W]` |
//! | `std` | σ_k, 0 for a single image | |
//! | `weight` | π_k, any positive number; relative | |
//! | `r`, `rho`, `c`, `g` | trigger and rule of [`depurate_diffusion::trigger`]; 0, 0, 0 and 1 for benign modes | |
//! | `v` | a² σ² + g² s², variance of `x_t` in mode k | |
//!
//! ```text
//! x_t | k  ~ N(a m_k + rho r, v_k)                                        (1)
//! e(x, t)  = sum_k w_k(x) (eps_k + c_k r)                                 (2)
//! eps_k    = E[eps | x, k] = g s (x - a m_k - rho r) / v_k                (3)
//! w_k(x)   = softmax_k(ln pi_k - D/2 ln v_k - |x - a m_k - rho r|² / 2 v_k) (4)
//! ```
//!
//! A benign prior is needed in every test of a trigger: with the backdoor's mode alone every sampler lands on the
//! target, because the oracle pulls there from everywhere.

use burn::tensor::{Device, Tensor, TensorData, activation::softmax};
use depurate_diffusion::{
    Denoiser, DiffusionError, Parameterisation, Prediction, SampleShape, Tap,
    schedule::NoiseSchedule, trigger::TriggerRule,
};

/// The closed-form denoiser of a mixture; predicts the noise. Differentiable in its input.
#[derive(Debug, Clone)]
pub struct Oracle {
    schedule: NoiseSchedule,
    shape: SampleShape,
    device: Device,
    modes: Vec<Mode>,
}

#[derive(Debug, Clone)]
struct Mode {
    mean: Tensor<4>,
    std: f64,
    log_weight: f64,
    backdoor: Option<(Tensor<4>, TriggerRule)>,
}

impl Oracle {
    /// An oracle without modes yet.
    pub fn new(schedule: NoiseSchedule, shape: SampleShape, device: Device) -> Self {
        Self {
            schedule,
            shape,
            device,
            modes: Vec::new(),
        }
    }

    /// Adds a benign mode around `mean` (`C * H * W` values, row-major) with standard deviation `std` per value.
    #[must_use]
    pub fn benign(self, mean: &[f32], std: f64, weight: f64) -> Self {
        self.mode(mean, std, weight, None)
    }

    /// Adds the backdoor's mode: target `y` and trigger `r` (`C * H * W` values each), bound by `rule`.
    #[must_use]
    pub fn backdoored(self, y: &[f32], r: &[f32], rule: TriggerRule, weight: f64) -> Self {
        let trigger = self.image(r);
        self.mode(y, 0.0, weight, Some((trigger, rule)))
    }

    /// `C * H * W` values as a tensor `[1, C, H, W]`.
    ///
    /// # Panics
    /// When the number of values is another.
    pub fn image(&self, values: &[f32]) -> Tensor<4> {
        assert_eq!(
            values.len(),
            self.shape.len(),
            "values of an image {:?}",
            self.shape
        );
        Tensor::from_data(
            TensorData::new(values.to_vec(), self.shape.batched(1)),
            &self.device,
        )
    }

    fn mode(
        mut self,
        mean: &[f32],
        std: f64,
        weight: f64,
        backdoor: Option<(Tensor<4>, TriggerRule)>,
    ) -> Self {
        assert!(
            weight > 0.0 && std >= 0.0,
            "weight {weight} and std {std} of a mode"
        );
        self.modes.push(Mode {
            mean: self.image(mean),
            std,
            log_weight: weight.ln(),
            backdoor,
        });
        self
    }
}

impl Mode {
    /// `(eps_k + c r, logit of w_k)`, `[B, C, H, W]` and `[B, 1, 1, 1]`.
    fn answer(
        &self,
        x_t: &Tensor<4>,
        t: &[usize],
        schedule: &NoiseSchedule,
    ) -> (Tensor<4>, Tensor<4>) {
        let size = self.mean.dims().iter().product::<usize>() as f64;
        let per_sample = |value: &dyn Fn(usize) -> f64| -> Tensor<4> {
            let values: Vec<f32> = t.iter().map(|&t| value(t) as f32).collect();
            Tensor::from_data(TensorData::new(values, [t.len(), 1, 1, 1]), &x_t.device())
        };
        let scale = self
            .backdoor
            .as_ref()
            .map_or(1.0, |(_, rule)| rule.noise_scale);
        let variance =
            |t: usize| schedule.alpha_bar(t) * self.std.powi(2) + (scale * schedule.s(t)).powi(2);

        let mut centre = per_sample(&|t| schedule.a(t)) * self.mean.clone();
        if let Some((r, rule)) = &self.backdoor {
            centre = centre + per_sample(&|t| rule.rho(schedule, t)) * r.clone(); // eq. (1)
        }
        let off = x_t.clone() - centre;
        let mut answer = per_sample(&|t| scale * schedule.s(t) / variance(t)) * off.clone(); // eq. (3)
        if let Some((r, rule)) = &self.backdoor {
            answer = answer + per_sample(&|t| rule.coefficient(schedule, t)) * r.clone(); // eq. (2)
        }
        let prior = per_sample(&|t| self.log_weight - 0.5 * size * variance(t).ln());
        let logit = prior - per_sample(&|t| 0.5 / variance(t)) * off.square().sum_dims(&[1, 2, 3]); // eq. (4)
        (answer, logit)
    }
}

impl Denoiser for Oracle {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn sample_shape(&self) -> SampleShape {
        self.shape
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn predict(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        _tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        let batch = x_t.dims()[0];
        if x_t.dims() != self.shape.batched(batch) || (t.len() != 1 && t.len() != batch) {
            return Err(DiffusionError::Shape {
                what: "x_t or t of the oracle",
                expected: format!(
                    "{:?} and one timestep per sample or for all",
                    self.shape.batched(batch)
                ),
                got: x_t.dims().to_vec(),
            });
        }
        self.schedule.check_timesteps(t)?;
        let (answers, logits): (Vec<_>, Vec<_>) = self
            .modes
            .iter()
            .map(|mode| mode.answer(&x_t, t, &self.schedule))
            .unzip();
        let weights = softmax(Tensor::cat(logits, 1), 1); // eq. (4), [B, K, 1, 1]
        let weighted = answers
            .into_iter()
            .enumerate()
            .map(|(k, answer)| weights.clone().narrow(1, k, 1) * answer);
        let value = weighted
            .reduce(|sum, part| sum + part)
            .unwrap_or_else(|| x_t.zeros_like()); // eq. (2)
        Ok(Prediction {
            kind: Parameterisation::Epsilon,
            value,
        })
    }
}
