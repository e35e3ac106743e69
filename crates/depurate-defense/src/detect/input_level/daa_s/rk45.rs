//! Dormand and Prince's method of order 5(4) with the step controller of SciPy's `solve_ivp(method="RK45")` and its default
//! tolerances, since the released score depends on where that controller puts its steps.
//!
//! Dormand and Prince, J. Comput. Appl. Math. 6 (1980); first step after Hairer, Nørsett and Wanner, "Solving Ordinary
//! Differential Equations I", sec. II.4. The solution goes on with the result of order 5, and the last stage of a step is the
//! first of the next.

use crate::DefenseError;

/// Relative tolerance.
const RTOL: f64 = 1e-3;
/// Absolute tolerance.
const ATOL: f64 = 1e-6;
/// The next step is this much shorter than the error allows.
const SAFETY: f64 = 0.9;
/// A step is at least this times the one before it.
const MIN_FACTOR: f64 = 0.2;
/// A step is at most this times the one before it.
const MAX_FACTOR: f64 = 10.0;
/// The error estimate's order.
const ERROR_ORDER: f64 = 4.0;

/// Times of the stages.
const C: [f64; 6] = [0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0];
/// Weights of the earlier stages in each stage.
const A: [&[f64]; 6] = [
    &[],
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[
        19372.0 / 6561.0,
        -25360.0 / 2187.0,
        64448.0 / 6561.0,
        -212.0 / 729.0,
    ],
    &[
        9017.0 / 3168.0,
        -355.0 / 33.0,
        46732.0 / 5247.0,
        49.0 / 176.0,
        -5103.0 / 18656.0,
    ],
];
/// Weights of the stages in the result of order 5.
const B: [f64; 6] = [
    35.0 / 384.0,
    0.0,
    500.0 / 1113.0,
    125.0 / 192.0,
    -2187.0 / 6784.0,
    11.0 / 84.0,
];
/// Weights of the stages, the result's own rate included, in the difference of the results of order 5 and 4.
const E: [f64; 7] = [
    -71.0 / 57600.0,
    0.0,
    71.0 / 16695.0,
    -71.0 / 1920.0,
    17253.0 / 339_200.0,
    -22.0 / 525.0,
    1.0 / 40.0,
];

/// A system of ordinary differential equations.
pub trait System {
    /// Writes the rate of change of the state `y` at time `t` into `rate`.
    ///
    /// # Errors
    /// When the system is not known at `t`.
    fn rate(&mut self, t: f64, y: &[f64], rate: &mut [f64]) -> Result<(), DefenseError>;
}

/// The solver at one of its accepted points.
#[derive(Debug, Clone)]
pub struct Rk45 {
    t: f64,
    y: Vec<f64>,
    /// Rate at `t`, and of the stages of a step; the first is the rate at `t`.
    stages: [Vec<f64>; 7],
    trial: Vec<f64>,
    step: f64,
    end: f64,
    evaluations: usize,
}

impl Rk45 {
    /// At time 0 in state `y`, with the size of the first step chosen; `end` is the last time.
    ///
    /// # Errors
    /// When the system is not known where it is evaluated.
    pub fn new(system: &mut dyn System, y: &[f64], end: f64) -> Result<Self, DefenseError> {
        let zeros = || vec![0.0; y.len()];
        let mut solver = Self {
            t: 0.0,
            y: y.to_vec(),
            stages: std::array::from_fn(|_| zeros()),
            trial: zeros(),
            step: 0.0,
            end,
            evaluations: 0,
        };
        solver.step = solver.first_step(system)?;
        Ok(solver)
    }

    /// Time of the last accepted point.
    pub fn t(&self) -> f64 {
        self.t
    }

    /// State `[n]` at the last accepted point.
    pub fn state(&self) -> &[f64] {
        &self.y
    }

    /// How often the system was evaluated.
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// Hairer's rule: how far a linear, and then a quadratic, model of the solution can be trusted.
    fn first_step(&mut self, system: &mut dyn System) -> Result<f64, DefenseError> {
        let [rate, next_rate, ..] = &mut self.stages;
        let y = &self.y;
        system.rate(0.0, y, rate)?;
        let scaled = |value: f64, y: f64| value / (ATOL + y.abs() * RTOL);
        let d0 = rms(y.iter().map(|&y| scaled(y, y)));
        let d1 = rms(rate.iter().zip(y).map(|(&rate, &y)| scaled(rate, y)));
        let h0 = if d0 < 1e-5 || d1 < 1e-5 {
            1e-6
        } else {
            0.01 * d0 / d1
        };
        let h0 = h0.min(self.end);
        for ((trial, y), rate) in self.trial.iter_mut().zip(y).zip(&*rate) {
            *trial = y + h0 * rate;
        }
        system.rate(h0, &self.trial, next_rate)?;
        self.evaluations += 2;
        let bend = next_rate.iter().zip(&*rate).zip(y);
        let d2 = rms(bend.map(|((&next, &rate), &y)| scaled(next - rate, y))) / h0;
        let h1 = if d1 <= 1e-15 && d2 <= 1e-15 {
            (h0 * 1e-3).max(1e-6)
        } else {
            (0.01 / d1.max(d2)).powf(1.0 / (ERROR_ORDER + 1.0))
        };
        Ok((100.0 * h0).min(h1).min(self.end))
    }

    /// Goes to the next point; `false` if the end was reached before.
    ///
    /// # Errors
    /// When the system is not known where it is evaluated, or no step is small enough for the tolerance.
    pub fn step(&mut self, system: &mut dyn System) -> Result<bool, DefenseError> {
        if self.t >= self.end {
            return Ok(false);
        }
        let least = 10.0 * (self.t.next_up() - self.t).abs();
        let mut size = self.step.max(least);
        let mut rejected = false;
        loop {
            if size < least || size.is_nan() {
                return Err(DefenseError::StepTooSmall { t: self.t });
            }
            let t_new = (self.t + size).min(self.end);
            let h = t_new - self.t;
            let error = self.attempt(system, h)?;
            if error < 1.0 {
                let growth = match error {
                    0.0 => MAX_FACTOR,
                    error => (SAFETY * error.powf(-1.0 / (ERROR_ORDER + 1.0))).min(MAX_FACTOR),
                };
                // no growth right after a rejection
                self.step = h * if rejected { growth.min(1.0) } else { growth };
                self.t = t_new;
                std::mem::swap(&mut self.y, &mut self.trial);
                self.stages.swap(0, 6);
                return Ok(true);
            }
            size = h * MIN_FACTOR.max(SAFETY * error.powf(-1.0 / (ERROR_ORDER + 1.0)));
            rejected = true;
        }
    }

    /// The state after a step of `h` into `trial` and its rate into the last stage; returns the scaled error.
    fn attempt(&mut self, system: &mut dyn System, h: f64) -> Result<f64, DefenseError> {
        for s in 1..C.len() {
            self.combine(A[s], h);
            system.rate(self.t + C[s] * h, &self.trial, &mut self.stages[s])?;
        }
        self.combine(&B, h);
        system.rate(self.t + h, &self.trial, &mut self.stages[6])?;
        self.evaluations += 6;
        let scaled_error = |(i, (&y, &y_new)): (usize, (&f64, &f64))| {
            let error: f64 = self.stages.iter().zip(E).map(|(k, e)| k[i] * e).sum();
            error * h / (ATOL + y.abs().max(y_new.abs()) * RTOL)
        };
        Ok(rms(self
            .y
            .iter()
            .zip(&self.trial)
            .enumerate()
            .map(scaled_error)))
    }

    /// `y + h sum_s weights_s stage_s` into `trial`.
    fn combine(&mut self, weights: &[f64], h: f64) {
        for (i, (trial, y)) in self.trial.iter_mut().zip(&self.y).enumerate() {
            let sum: f64 = self.stages.iter().zip(weights).map(|(k, w)| k[i] * w).sum();
            *trial = y + sum * h;
        }
    }
}

fn rms(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.map(|value| value * value).sum::<f64>().sqrt() / count.sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Decay(f64);

    impl System for Decay {
        fn rate(&mut self, _t: f64, y: &[f64], rate: &mut [f64]) -> Result<(), DefenseError> {
            rate[0] = self.0 * y[0];
            Ok(())
        }
    }

    #[test]
    fn weights_are_consistent_with_a_constant_rate() {
        for (row, c) in A.iter().zip(C) {
            assert!((row.iter().sum::<f64>() - c).abs() < 1e-14);
        }
        assert!((B.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        assert!(E.iter().sum::<f64>().abs() < 1e-15);
    }

    #[test]
    fn decay_is_followed_to_the_end_within_the_tolerance() {
        let mut system = Decay(-2.0);
        let mut solver = Rk45::new(&mut system, &[3.0], 4.0).unwrap();
        let (mut last, mut before, mut allowed) = (0.0, 3.0f64, 0.0);
        while solver.step(&mut system).unwrap() {
            assert!(solver.t() > last);
            // what was allowed decays with the solution, and each step adds its own tolerance
            let decay = (-2.0 * (solver.t() - last)).exp();
            allowed = allowed * decay + ATOL + RTOL * before;
            (last, before) = (solver.t(), solver.state()[0]);
            let exact = 3.0 * (-2.0 * last).exp();
            assert!((before - exact).abs() < allowed, "{last}");
        }
        assert_eq!(last, 4.0);
    }

    #[test]
    fn a_rate_that_is_not_a_number_ends_in_an_error() {
        let mut system = Decay(f64::NAN);
        let mut solver = Rk45::new(&mut system, &[3.0], 4.0).unwrap();
        assert!(matches!(
            solver.step(&mut system),
            Err(DefenseError::StepTooSmall { t: 0.0 })
        ));
    }
}
