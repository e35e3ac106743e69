//! # Parameterisations of a denoiser
//!
//! A network may output the noise, the clean sample or the velocity; given `x_t` each determines the others.
//!
//! ## Paper
//! Ho et al., arXiv:2006.11239, eq. (4); Salimans and Ho, "Progressive distillation", arXiv:2202.00512, sec. 4 (velocity).
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `x_t` | x_t | `[B, C, H, W]` |
//! | `x_0` | x_0 | `[B, C, H, W]`, clean |
//! | `eps` | ε | `[B, C, H, W]`, standard normal |
//! | `a`, `s` | √ᾱ_t, √(1 − ᾱ_t) | one per sample |
//! | `v` | v_t = a ε − s x_0 | `[B, C, H, W]` |
//!
//! Every function takes timesteps `t` with one entry per sample or one for all;
//! `t = T - 1` is almost pure noise.

use burn::tensor::{Tensor, TensorData};

use crate::{DiffusionError, Parameterisation, Prediction, schedule::NoiseSchedule};

impl Prediction {
    /// The noise `eps: [B, C, H, W]` that this prediction sees in `x_t: [B, C, H, W]`.
    ///
    /// # Errors
    /// When shapes do not fit or a timestep is out of range.
    pub fn epsilon(
        self,
        x_t: Tensor<4>,
        t: &[usize],
        schedule: &NoiseSchedule,
    ) -> Result<Tensor<4>, DiffusionError> {
        let level = Level::new(schedule, t, &x_t)?;
        level.check_shape("prediction", &self.value)?;
        Ok(match self.kind {
            Parameterisation::Epsilon => self.value,
            Parameterisation::Sample => (x_t - level.a() * self.value) / level.s(),
            Parameterisation::Velocity => level.a() * self.value + level.s() * x_t,
        })
    }

    /// The clean sample `x_0: [B, C, H, W]` that this prediction sees in `x_t: [B, C, H, W]`.
    ///
    /// # Errors
    /// When shapes do not fit, a timestep is out of range, or the noise is predicted where `x_t` holds
    /// no signal at all (zero terminal SNR).
    pub fn x0(
        self,
        x_t: Tensor<4>,
        t: &[usize],
        schedule: &NoiseSchedule,
    ) -> Result<Tensor<4>, DiffusionError> {
        let level = Level::new(schedule, t, &x_t)?;
        level.check_shape("prediction", &self.value)?;
        Ok(match self.kind {
            Parameterisation::Epsilon => {
                level.check_signal()?;
                (x_t - level.s() * self.value) / level.a() // eq. (4) solved for x_0
            }
            Parameterisation::Sample => self.value,
            Parameterisation::Velocity => level.a() * x_t - level.s() * self.value,
        })
    }

    /// The velocity `v: [B, C, H, W]` that this prediction sees in `x_t: [B, C, H, W]`.
    ///
    /// # Errors
    /// As [`Self::x0`].
    pub fn velocity(
        self,
        x_t: Tensor<4>,
        t: &[usize],
        schedule: &NoiseSchedule,
    ) -> Result<Tensor<4>, DiffusionError> {
        let level = Level::new(schedule, t, &x_t)?;
        level.check_shape("prediction", &self.value)?;
        Ok(match self.kind {
            Parameterisation::Velocity => self.value,
            // x_t = a x_0 + s eps turned by a right angle, with x_0 or eps eliminated
            Parameterisation::Epsilon => {
                level.check_signal()?;
                (self.value - level.s() * x_t) / level.a()
            }
            Parameterisation::Sample => (level.a() * x_t - self.value) / level.s(),
        })
    }
}

impl NoiseSchedule {
    /// The noisy sample `x_t = a x_0 + s eps` (eq. 4); all tensors `[B, C, H, W]`.
    ///
    /// # Errors
    /// When shapes do not fit or a timestep is out of range.
    pub fn add_noise(
        &self,
        x_0: Tensor<4>,
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<Tensor<4>, DiffusionError> {
        let level = Level::new(self, t, &x_0)?;
        level.check_shape("noise", &eps)?;
        Ok(level.a() * x_0 + level.s() * eps) // eq. (4)
    }

    /// The velocity `v = a eps - s x_0`; all tensors `[B, C, H, W]`.
    ///
    /// # Errors
    /// As [`Self::add_noise`].
    pub fn velocity(
        &self,
        x_0: Tensor<4>,
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<Tensor<4>, DiffusionError> {
        let level = Level::new(self, t, &x_0)?;
        level.check_shape("noise", &eps)?;
        Ok(level.a() * eps - level.s() * x_0)
    }
}

/// Noise levels of a batch, checked against it.
pub(crate) struct Level<'a> {
    schedule: &'a NoiseSchedule,
    t: &'a [usize],
    like: Tensor<4>,
}

impl<'a> Level<'a> {
    /// Checks that `t` has one entry, or one per sample of `like: [B, C, H, W]`, all in range.
    pub(crate) fn new(
        schedule: &'a NoiseSchedule,
        t: &'a [usize],
        like: &Tensor<4>,
    ) -> Result<Self, DiffusionError> {
        let batch = like.dims()[0];
        if t.len() != 1 && t.len() != batch {
            return Err(DiffusionError::Shape {
                what: "timesteps",
                expected: format!("[1] or [{batch}], one per sample"),
                got: vec![t.len()],
            });
        }
        schedule.check_timesteps(t)?;
        Ok(Self {
            schedule,
            t,
            like: like.clone().detach(),
        })
    }

    /// `sqrt(alpha_bar)`, `[B or 1, 1, 1, 1]`.
    pub(crate) fn a(&self) -> Tensor<4> {
        self.per_sample(|t| self.schedule.a(t))
    }

    /// `sqrt(1 - alpha_bar)`, `[B or 1, 1, 1, 1]`.
    pub(crate) fn s(&self) -> Tensor<4> {
        self.per_sample(|t| self.schedule.s(t))
    }

    /// A function of the timestep as a tensor that broadcasts over the batch, `[B or 1, 1, 1, 1]`.
    pub(crate) fn per_sample(&self, value: impl Fn(usize) -> f64) -> Tensor<4> {
        let values: Vec<f32> = self.t.iter().map(|&t| value(t) as f32).collect();
        Tensor::from_data(
            TensorData::new(values, [self.t.len(), 1, 1, 1]),
            &self.like.device(),
        )
    }

    pub(crate) fn check_shape(
        &self,
        what: &'static str,
        tensor: &Tensor<4>,
    ) -> Result<(), DiffusionError> {
        check_same_shape(what, tensor, &self.like)
    }

    fn check_signal(&self) -> Result<(), DiffusionError> {
        match self.t.iter().find(|&&t| self.schedule.alpha_bar(t) == 0.0) {
            None => Ok(()),
            Some(t) => Err(DiffusionError::Argument {
                what: "timestep of a noise prediction",
                got: format!("{t}, where alpha_bar is 0"),
                allowed: "timesteps with signal left; use a velocity or sample prediction with zero terminal SNR".into(),
            }),
        }
    }
}

/// Refuses two `[B, C, H, W]` tensors of different shapes.
pub(crate) fn check_same_shape(
    what: &'static str,
    got: &Tensor<4>,
    expected: &Tensor<4>,
) -> Result<(), DiffusionError> {
    if got.dims() == expected.dims() {
        return Ok(());
    }
    Err(DiffusionError::Shape {
        what,
        expected: format!("{:?}", expected.dims()),
        got: got.dims().to_vec(),
    })
}
